#![allow(clippy::unwrap_used)] // Tests may be blunt.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::control::record::{Change, Event, Intent, Record};
use crate::control::state::{Policy, State};

/// Nothing here takes as long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(15);

fn order(port: u16, path: &str, method: Option<Probe>) -> ProbeOrder {
    let record = Record {
        id: "a".into(),
        service: "web".into(),
        url: format!("http://127.0.0.1:{port}"),
        health_path: path.into(),
        weight: 1,
        zone: String::new(),
        version: String::new(),
        probe: method,
        probe_service: "shop.Cart".into(),
        protocol: Protocol::Http1,
        intent: Intent::Serve,
        incarnation: 1,
    };
    let mut state = State::new(Policy::default());
    let now = std::time::Instant::now();
    state.apply(Change::Events { revision: 1, events: vec![Event::Put(record)] }, now);
    state.due(now, 1).remove(0)
}

fn prober(method: Probe) -> Prober {
    Prober { timeout: PATIENCE, method, statuses: vec![200, 204] }
}

/// Answers every connection with these bytes once something came, or at once if nothing is to come.
async fn answering(bytes: &'static [u8]) -> (u16, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(bytes).await;
        }
    });
    (port, task)
}

/// A port that nobody listens on.
async fn closed() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn statuses_that_are_expected_pass_and_no_redirect_is_followed() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = elsewhere.local_addr().unwrap();
    let redirect =
        format!("HTTP/1.1 302 Found\r\nlocation: http://{location}/health\r\ncontent-length: 0\r\n\r\n");
    for (answer, healthy) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", true),
        ("HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n", false),
        (redirect.leak(), false),
    ] {
        let (port, _server) = answering(answer.as_bytes()).await;
        let result = prober(Probe::Http).probe(&order(port, "/h", None)).await;
        assert_eq!(result == ProbeResult::Healthy, healthy, "{answer}: {result:?}");
    }
    let followed = std::future::poll_fn(|cx| elsewhere.poll_accept(cx));
    let followed = tokio::time::timeout(Duration::ZERO, followed).await;
    assert!(followed.is_err(), "the redirect was followed");
}

/// A path cannot lead to another host.
#[tokio::test]
async fn a_probe_goes_to_the_instances_own_address_whatever_its_path_says() {
    let (port, _server) = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    for path in ["//elsewhere.example/", "http://elsewhere.example/", "@elsewhere.example"] {
        let result = prober(Probe::Http).probe(&order(port, path, None)).await;
        assert_eq!(result, ProbeResult::Healthy, "{path}");
    }
}

#[tokio::test]
async fn a_connection_is_enough_where_that_is_asked_for_and_a_refused_one_is_told_apart() {
    let (port, _server) = answering(b"not http").await;
    assert_eq!(prober(Probe::Tcp).probe(&order(port, "", None)).await, ProbeResult::Healthy);
    // What the instance says goes first.
    assert_eq!(prober(Probe::Http).probe(&order(port, "", Some(Probe::Tcp))).await, ProbeResult::Healthy);
    let result = prober(Probe::Tcp).probe(&order(port, "", Some(Probe::Http))).await;
    assert!(matches!(result, ProbeResult::Unhealthy(_)), "{result:?}");
    for method in [Probe::Http, Probe::Tcp, Probe::Grpc] {
        let result = prober(method).probe(&order(closed().await, "", None)).await;
        assert_eq!(result, ProbeResult::Refused, "{method:?}");
    }
}

#[tokio::test]
async fn the_health_service_of_grpc_is_asked_for_the_instances_service() {
    let (reporter, service) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tonic::transport::Server::builder().add_service(service);
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let _server = tokio::spawn(server.serve_with_incoming(incoming));
    let probe = async || prober(Probe::Grpc).probe(&order(port, "", None)).await;
    let unhealthy = |why: &str| ProbeResult::Unhealthy(why.to_owned());
    assert_eq!(probe().await, unhealthy("no service \"shop.Cart\" there"));
    reporter.set_service_status("shop.Cart", tonic_health::ServingStatus::Serving).await;
    assert_eq!(probe().await, ProbeResult::Healthy);
    reporter.set_service_status("shop.Cart", tonic_health::ServingStatus::NotServing).await;
    assert_eq!(probe().await, unhealthy("not serving (status 2)"));
}

#[tokio::test]
async fn who_speaks_no_grpc_is_unhealthy() {
    let (port, _server) = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let result = prober(Probe::Grpc).probe(&order(port, "", None)).await;
    assert!(matches!(result, ProbeResult::Unhealthy(_)), "{result:?}");
}

#[tokio::test]
async fn silence_is_unhealthy_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let prober = Prober { timeout: Duration::from_millis(50), ..prober(Probe::Http) };
    for method in [Probe::Http, Probe::Grpc] {
        let result = Arc::new(prober.clone()).probe(&order(port, "", Some(method))).await;
        assert_eq!(result, ProbeResult::Unhealthy("no answer within 50ms".into()));
    }
}

#[test]
fn an_answer_cut_short_or_compressed_is_none() {
    let whole = [0, 0, 0, 0, 2, 8, 1];
    assert_eq!(unframed(&whole), Some(HealthCheckResponse { status: SERVING }));
    assert_eq!(unframed(&[0, 0, 0, 0, 0]), Some(HealthCheckResponse { status: 0 }));
    for bad in [&whole[..6], &whole[..4], &[], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 2, 8, 1, 0]] {
        assert_eq!(unframed(bad), None, "{bad:?}");
    }
}
