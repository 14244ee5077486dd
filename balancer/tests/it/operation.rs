//! What operators see and do: configuration, metrics, drain.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use http::Method;
use nix::sys::signal::Signal;

use crate::backend::Backend;
use crate::balancer::{Balancer, command, eventually, system};
use crate::client::{self, Client};
use crate::registry::Registry;

#[tokio::test(flavor = "multi_thread")]
async fn the_original_config_file_starts_it() {
    let registry = Registry::start().await;
    let backend = Backend::start("b0");
    registry.register("b0", &backend.url());
    let config = format!(
        "port: 0\nstrategy: least_connections\nserviceRegistryURL: {}/api/v1/services\n\
         serviceRegistryType: HTTP\nhealthCheckInterval: 1m30s\nbackendHealthPath: /health\n\
         healthCheckTimeout: 300ms\n",
        registry.url()
    );
    let lb = Balancer::spawn(&[], &config).await;
    lb.rotates(&["b0"]).await;
    assert_eq!(lb.endpoints().await["strategy"], "least_connections");
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], lb.http.port()));
    assert_eq!(client::get(address, "/").await.unwrap().status, 200);
}

#[test]
fn check_tells_good_from_bad() {
    let dir = tempfile::tempdir().unwrap();
    let run = |text: &str| {
        std::fs::write(dir.path().join("c.yaml"), text).unwrap();
        let out = command(dir.path()).args(["check", "c.yaml"]).stdin(Stdio::null()).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    };
    let (code, text) = run("port: 8080\nhealthCheckInterval: 1m30s\n");
    assert!(code == Some(0) && text.contains("is good") && text.contains("every 1m 30s"), "{text}");
    let (code, text) = run("port: 8080\nhealthChekInterval: 5s\n");
    assert_eq!(code, Some(78));
    assert_eq!(
        text.trim(),
        r#"error: c.yaml:2:1: unknown key "healthChekInterval", did you mean "healthCheckInterval"?"#
    );
    let help = command(dir.path()).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for word in
        ["--registry", "--admin", "--strategy", "--state-dir", "check", "SIGTERM", "least_connections"]
    {
        assert!(help.contains(word), "--help does not mention {word}:\n{help}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_refused() {
    let registry = Registry::start().await;
    let lb = Balancer::start(&registry, &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let port = lb.http.port().to_string();
    let out = command(dir.path())
        .args(["--host", "127.0.0.1", "--port", &port, "--admin", "127.0.0.1:0"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        out.status.code() == Some(1) && text.contains(&format!("cannot listen on 127.0.0.1:{port}")),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_there_on_both_ports_and_goes_with_its_backend() {
    let (registry, backends, lb) = system(2, &[]).await;
    for i in 0..4 {
        client::get(lb.http, &format!("/some/path/{i}")).await.unwrap();
    }
    client::send(lb.http, client::request("BREW".parse().unwrap(), "/", &[], "")).await.unwrap();
    // A response is counted when all of it is sent; its client may be quicker.
    eventually("all are counted", async || {
        let text = lb.metrics().await;
        let counted = text.lines().filter(|l| l.starts_with("loadbalancer_total_requests{"));
        counted.filter_map(|l| l.rsplit(' ').next()?.parse::<u32>().ok()).sum::<u32>() == 5
    })
    .await;
    let data = client::get(lb.http, "/metrics").await.unwrap();
    assert_eq!(data.header("content-type"), "text/plain; version=0.0.4");
    let host = backends[0].address.to_string();
    for text in [data.text(), lb.metrics().await] {
        for line in [
            r#"loadbalancer_total_requests{backend_id="b0",method="GET",path="/",status="200",strategy="round_robin"} 2"#,
            r#"loadbalancer_request_duration_seconds_count{backend_id="b1",method="GET",path="/",status="200",strategy="round_robin"} 2"#,
            r#"loadbalancer_request_duration_seconds_bucket{backend_id="b0",method="GET",path="/",status="200",strategy="round_robin",le="0.005"}"#,
            r#"method="OTHER",path="/",status="200""#,
            &format!(r#"loadbalancer_backend_status{{backend_host="{host}",backend_id="b0"}} 1"#),
            &format!(r#"loadbalancer_backend_active_connections{{backend_host="{host}",backend_id="b0"}} 0"#),
            "balancer_pool_revision 2",
            "balancer_pool_age_seconds",
            r#"balancer_endpoints{state="up"} 2"#,
            r#"balancer_endpoints{state="down"} 0"#,
            r#"balancer_retries_total{reason="connect"} 0"#,
            "balancer_retries_unaffordable_total 0",
            r#"balancer_refused_total{reason="no_endpoint"} 0"#,
            "balancer_ejections_total 0",
            "balancer_upstream_connect_failures_total 0",
            "balancer_reports_dropped_total 0",
            "balancer_downstream_connections",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
        assert!(!text.contains("/some/path"), "raw paths are not labels");
    }
    registry.deregister("b0");
    eventually("its series are gone", async || !lb.metrics().await.contains("\"b0\"")).await;
    assert!(lb.metrics().await.contains("backend_id=\"b1\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_says_what_is_missing() {
    let lb = Balancer::spawn(&["--registry", "http://127.0.0.1:1"], "").await;
    let answer = client::get(lb.admin, "/readyz").await.unwrap();
    assert!(answer.status == 503 && answer.text().starts_with("no catalog yet"), "{}", answer.text());
    assert_eq!(client::get(lb.admin, "/livez").await.unwrap().status, 200);
    assert_eq!(client::get(lb.admin, "/else").await.unwrap().status, 404);
    let answer = client::send(lb.admin, client::request(Method::POST, "/livez", &[], "")).await.unwrap();
    assert_eq!(answer.status, 405);
    assert_eq!(client::get(lb.http, "/").await.unwrap().text(), "No healthy backend available");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_what_is_in_flight_and_exits_0() {
    let (_registry, _backends, mut lb) = system(1, &[]).await;
    let (http, admin) = (lb.http, lb.admin);
    let slow = tokio::spawn(client::get(http, "/slow?ms=700"));
    let mut resting = Client::connect(http).await.unwrap();
    assert_eq!(resting.get("/").await.unwrap().status, 200);
    eventually("it is in flight", async || lb.endpoint("b0", "in_flight").await == 1).await;
    lb.signal(Signal::SIGTERM);
    eventually("it is not ready", async || {
        client::get(admin, "/readyz")
            .await
            .is_ok_and(|r| (r.status, r.text().as_str()) == (503, "draining\n"))
    })
    .await;
    eventually("it accepts no more", async || client::get(http, "/").await.is_err()).await;
    let answer = slow.await.unwrap().expect("it is finished");
    assert_eq!((answer.status, answer.header("connection").as_str()), (200, "close"));
    assert_eq!(lb.exited().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_ends_and_a_second_signal_ends_it_at_once() {
    let registry = Registry::start().await;
    let backend = Backend::start("b0");
    registry.register("b0", &backend.url());
    for (grace, signals, code) in [("300ms", 1, 0), ("60s", 2, 1)] {
        let config = format!(
            "port: 0\nhost: 127.0.0.1\nserviceRegistryURL: {}\ndrainGrace: {grace}\n",
            registry.url()
        );
        let mut lb = Balancer::spawn(&[], &config).await;
        lb.rotates(&["b0"]).await;
        let endless = tokio::spawn(client::get(lb.http, "/sse"));
        eventually("it is in flight", async || lb.endpoint("b0", "in_flight").await == 1).await;
        let since = Instant::now();
        for _ in 0..signals {
            lb.signal(Signal::SIGTERM);
            eventually("it is heard", async || {
                lb.log().contains("draining") || client::get(lb.admin, "/livez").await.is_err()
            })
            .await;
        }
        assert_eq!(lb.exited().await.code(), Some(code), "{}", lb.log());
        assert!(since.elapsed() < Duration::from_secs(10));
        assert!(endless.await.unwrap().is_err());
    }
}

/// Whoever could connect counts on an answer, whether the request was already sent or comes now.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_resets_no_connection_that_was_made() {
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let (_registry, _backends, mut lb) = system(1, &[]).await;
    let connect = || std::net::TcpStream::connect(lb.http).expect("it listens");
    let mut late: Vec<_> = (0..16).map(|_| connect()).collect();
    let mut early: Vec<_> = (0..64).map(|_| connect()).collect();
    early.iter_mut().for_each(|stream| stream.write_all(REQUEST).expect("it is sent"));
    lb.signal(Signal::SIGTERM);
    eventually("it accepts no more", async || tokio::net::TcpStream::connect(lb.http).await.is_err()).await;
    late.iter_mut().for_each(|stream| stream.write_all(REQUEST).expect("it is sent"));
    for mut stream in late.into_iter().chain(early) {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("no reset");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
    assert_eq!(lb.exited().await.code(), Some(0));
}
