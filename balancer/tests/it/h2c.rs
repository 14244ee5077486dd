//! Endpoints that speak HTTP/2 alone: one connection for many requests, and what becomes of each.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};

use crate::balancer::{Balancer, eventually};
use crate::client;
use crate::registry::Registry;

/// A server that answers nothing but HTTP/2, and knows over which connections it was asked.
struct Peer {
    address: SocketAddr,
    seen: Arc<Seen>,
    task: tokio::task::JoinHandle<()>,
}

struct Seen {
    /// Connections that anything but a probe came over.
    connections: Mutex<BTreeSet<usize>>,
    requests: AtomicUsize,
    holding: AtomicUsize,
    /// Streams that were reset while they were held.
    resets: AtomicUsize,
    /// What lets those go on that are held, one each.
    release: Semaphore,
    /// Connections end, with what is under way on them.
    shutdown: Notify,
    streams_max: u32,
}

impl Peer {
    async fn start(streams_max: u32) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen {
            connections: Mutex::default(),
            requests: AtomicUsize::new(0),
            holding: AtomicUsize::new(0),
            resets: AtomicUsize::new(0),
            release: Semaphore::new(0),
            shutdown: Notify::new(),
            streams_max,
        });
        let shared = seen.clone();
        let task = tokio::spawn(async move {
            // Dropped, and with them what they serve, when the peer is.
            let mut connections = tokio::task::JoinSet::new();
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                connections.spawn(serve(stream, number, shared.clone()));
            }
        });
        Peer { address, seen, task }
    }

    fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }

    fn connections(&self) -> usize {
        self.seen.connections.lock().unwrap().len()
    }

    async fn holds(&self, n: usize) {
        let holding = &self.seen.holding;
        eventually(&format!("{n} are held"), async || holding.load(Ordering::SeqCst) == n).await;
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, number: usize, seen: Arc<Seen>) {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(seen.streams_max);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    let mut streams = tokio::task::JoinSet::new();
    let mut ending = false;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = seen.shutdown.notified(), if !ending => {
                ending = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(Ok((request, respond))) = accepted else { return };
        if request.uri().path() != "/health" {
            seen.connections.lock().unwrap().insert(number);
            seen.requests.fetch_add(1, Ordering::SeqCst);
        }
        let seen = seen.clone();
        streams.spawn(async move {
            // A stream that the other side gave up.
            let _ = answer(request, respond, &seen).await;
        });
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    seen: &Seen,
) -> Result<(), h2::Error> {
    let (head, body) = request.into_parts();
    match head.uri.path() {
        "/refuse-once" if seen.requests.load(Ordering::SeqCst) == 1 => {
            respond.send_reset(Reason::REFUSED_STREAM)
        }
        "/fail" => respond.send_reset(Reason::INTERNAL_ERROR),
        "/cut" => {
            let mut stream = respond.send_response(Response::new(()), false)?;
            send(&mut stream, Bytes::from_static(b"begins")).await?;
            seen.release.acquire().await.unwrap().forget();
            stream.send_reset(Reason::INTERNAL_ERROR);
        }
        "/grpc-error" => {
            let head =
                Response::builder().header("content-type", "application/grpc").header("grpc-status", "5");
            respond.send_response(head.body(()).unwrap(), true)?;
        }
        "/trailers" => {
            let mut stream = respond.send_response(Response::new(()), false)?;
            send(&mut stream, Bytes::from_static(b"part")).await?;
            stream.send_trailers(HeaderMap::from_iter([(
                "grpc-status".parse().unwrap(),
                "0".parse().unwrap(),
            )]))?;
        }
        "/big" => {
            let mut stream = respond.send_response(Response::new(()), false)?;
            send(&mut stream, Bytes::from(vec![b'x'; 8 * 1024 * 1024])).await?;
            stream.send_data(Bytes::new(), true)?;
        }
        "/hold" => {
            seen.holding.fetch_add(1, Ordering::SeqCst);
            let goes_on = tokio::select! {
                permit = seen.release.acquire() => { permit.unwrap().forget(); true }
                _ = poll_fn(|cx| respond.poll_reset(cx)) => { seen.resets.fetch_add(1, Ordering::SeqCst); false }
            };
            seen.holding.fetch_sub(1, Ordering::SeqCst);
            if goes_on {
                respond.send_response(Response::new(()), true)?;
            }
        }
        _ => echo(head, body, respond).await?,
    }
    Ok(())
}

async fn echo(
    head: http::request::Parts,
    mut body: RecvStream,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        length += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    let pairs = |map: &HeaderMap| -> Vec<(String, String)> {
        map.iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap_or("?").to_owned())).collect()
    };
    let trailers = body.trailers().await?.map(|map| pairs(&map)).unwrap_or_default();
    let text = json!({"method": head.method.as_str(), "uri": head.uri.to_string(), "headers": pairs(&head.headers),
                      "body_bytes": length, "trailers": trailers});
    let length = text.to_string().len();
    let response = Response::builder().header("content-length", length).body(()).unwrap();
    let has_body = head.method != Method::HEAD;
    let mut stream = respond.send_response(response, !has_body)?;
    if has_body {
        send(&mut stream, Bytes::from(text.to_string())).await?;
        stream.send_data(Bytes::new(), true)?;
    }
    Ok(())
}

async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let Some(room) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return Ok(()) };
        let room = room?.min(data.len());
        stream.send_data(data.split_to(room), false)?;
    }
    Ok(())
}

/// One of them, and a balancer with one worker that has it in rotation.
async fn system(streams_max: u32) -> (Registry, Peer, Balancer) {
    let registry = Registry::start().await;
    let peer = Peer::start(streams_max).await;
    let url = format!("http://{}/base", peer.address);
    registry.register_as("g0", &url, &json!({"metadata": {"protocol": "h2c"}, "healthPath": "/health"}));
    let args = ["--registry", &registry.url(), "--workers", "1"];
    let balancer = Balancer::spawn(&args, "").await;
    (registry, peer, balancer)
}

async fn plain_system(streams_max: u32) -> (Registry, Peer, Balancer) {
    let registry = Registry::start().await;
    let peer = Peer::start(streams_max).await;
    let url = format!("http://{}", peer.address);
    registry.register_as("g0", &url, &json!({"metadata": {"protocol": "h2c"}}));
    let balancer = Balancer::start(&registry, &["--workers", "1"]).await;
    balancer.rotates(&["g0"]).await;
    (registry, peer, balancer)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_speaks_http2_alone_is_probed_and_asked_in_it() {
    let (_registry, peer, lb) = plain_system(100).await;
    let headers = [("host", "shop.example:81"), ("x-forwarded-for", "203.0.113.7"), ("te", "gzip")];
    let request = client::request(Method::PUT, "/a%20b?q=%2F", &headers, "four");
    let answer = client::send(lb.http, request).await.unwrap();
    let json = answer.json();
    assert_eq!((answer.status, &json["method"], &json["body_bytes"]), (200, &json!("PUT"), &json!(4)));
    assert_eq!(json["uri"], "http://shop.example:81/a%20b?q=%2F");
    let got = ["host", "te", "x-forwarded-for", "x-forwarded-proto", "content-length", "connection"];
    let got = got.map(|name| answer.echoed(name));
    assert_eq!(got, ["", "trailers", "203.0.113.7, 127.0.0.1", "http", "4", ""]);
    // The same connection serves what comes after it, whatever the client's does.
    let head = client::send(lb.http, client::request(Method::HEAD, "/", &[], "")).await.unwrap();
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert!(head.header("content-length").parse::<usize>().unwrap() > 0);
    for _ in 0..20 {
        assert_eq!(client::get(lb.http, "/").await.unwrap().status, 200);
    }
    assert_eq!((peer.connections(), peer.requests()), (1, 22));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_path_stands_in_front() {
    let (_registry, _peer, lb) = system(100).await;
    eventually("it serves", async || {
        let Ok(answer) = client::get(lb.http, "/x").await else { return false };
        answer.status == 200 && answer.json()["uri"] == "http://shop.example/base/x"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_pass_whole_both_ways() {
    let (_registry, _peer, lb) = plain_system(100).await;
    let body = "y".repeat(4 * 1024 * 1024);
    let answer = client::post(lb.http, "/", &body).await.unwrap();
    assert_eq!(answer.json()["body_bytes"], body.len());
    let answer = client::get(lb.http, "/big").await.unwrap();
    assert_eq!(answer.body.len(), 8 * 1024 * 1024);
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass_both_ways() {
    let (_registry, _peer, lb) = plain_system(100).await;
    let answer =
        client::raw(lb.http, b"GET /trailers HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.ends_with("\r\n4\r\npart\r\n0\r\ngrpc-status: 0\r\n\r\n"), "{answer}");
    let request = b"POST /up HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
                    3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n";
    let answer = client::raw(lb.http, request).await;
    assert!(
        answer.contains(r#""body_bytes":3"#) && answer.contains(r#""trailers":[["x-sum","7"]]"#),
        "{answer}"
    );
    let answer =
        client::raw(lb.http, b"GET /grpc-error HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("grpc-status: 5\r\n") && answer.contains("content-length: 0\r\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_an_endpoint_allows_on_one_connection_open_another() {
    let (_registry, peer, lb) = plain_system(2).await;
    // What is allowed is known with the first response.
    assert_eq!(client::get(lb.http, "/").await.unwrap().status, 200);
    let held: Vec<_> = (0..6).map(|_| tokio::spawn(client::get(lb.http, "/hold"))).collect();
    peer.holds(6).await;
    assert!(peer.connections() >= 3, "{} connections", peer.connections());
    peer.seen.release.add_permits(6);
    for held in held {
        assert_eq!(held.await.unwrap().unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_cancels_its_stream_and_no_other() {
    let (_registry, peer, lb) = plain_system(100).await;
    let stays = tokio::spawn(client::get(lb.http, "/hold"));
    peer.holds(1).await;
    let mut leaves = TcpStream::connect(lb.http).await.unwrap();
    leaves.write_all(b"GET /hold HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    peer.holds(2).await;
    drop(leaves);
    peer.holds(1).await;
    assert_eq!(peer.seen.resets.load(Ordering::SeqCst), 1);
    peer.seen.release.add_permits(1);
    assert_eq!(stays.await.unwrap().unwrap().status, 200);
    assert_eq!(peer.connections(), 1);
    // Nor was the endpoint to blame.
    assert_eq!(lb.endpoint("g0", "state").await, "up");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_endpoint_refused_is_sent_again_and_what_it_may_have_seen_is_not() {
    let (_registry, peer, lb) = plain_system(100).await;
    let answer = client::post(lb.http, "/refuse-once", "").await.unwrap();
    assert_eq!((answer.status, peer.requests()), (200, 2), "{}", answer.text());
    let answer = client::post(lb.http, "/fail", "").await.unwrap();
    assert_eq!((answer.status, peer.requests()), (502, 3), "{}", answer.text());
}

/// A body must not look whole when it is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_breaks_off_is_cut() {
    let (_registry, peer, lb) = plain_system(100).await;
    let mut stream = TcpStream::connect(lb.http).await.unwrap();
    stream.write_all(b"GET /cut HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"begins\r\n") {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "{}", String::from_utf8_lossy(&bytes));
    }
    peer.seen.release.add_permits(1);
    let rest = bytes.len();
    // A reset of the connection, or its end without the end of the body.
    let _ = stream.read_to_end(&mut bytes).await;
    assert_eq!(String::from_utf8_lossy(&bytes[rest..]), "");
}

/// A server that goes away says so, and finishes what it has: nothing fails, not even what must not be sent twice.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_an_endpoint_ends_fail_no_request() {
    let (_registry, peer, lb) = plain_system(100).await;
    let ending = async {
        for _ in 0..20 {
            let before = peer.requests();
            eventually("requests come", async || peer.requests() > before + 5).await;
            peer.seen.shutdown.notify_waiters();
        }
    };
    let asking = async {
        loop {
            let answer = client::post(lb.http, "/x", "").await.expect("an answer");
            assert_eq!(answer.status, 200, "after {}: {}", peer.requests(), answer.text());
        }
    };
    tokio::select! {
        () = ending => {}
        () = asking => {}
    }
    assert!(peer.connections() > 10, "{} connections", peer.connections());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_gone_is_left_for_another() {
    let (registry, peer, lb) = plain_system(100).await;
    let other = Peer::start(100).await;
    let url = format!("http://{}", other.address);
    registry.register_as("g1", &url, &json!({"metadata": {"protocol": "h2c"}}));
    lb.rotates(&["g0", "g1"]).await;
    for _ in 0..10 {
        assert_eq!(client::get(lb.http, "/").await.unwrap().status, 200);
    }
    drop(peer);
    for _ in 0..50 {
        let answer = client::get(lb.http, "/").await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_that_it_speaks_grpc_is_probed_so() {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("shop.Cart", tonic_health::ServingStatus::Serving).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_service(service);
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let _server =
        tokio_util::task::AbortOnDropHandle::new(tokio::spawn(server.serve_with_incoming(incoming)));
    let registry = Registry::start().await;
    let metadata = json!({"protocol": "GRPC", "health-check-service": "shop.Cart"});
    registry.register_as("cart", &url, &json!({"metadata": metadata}));
    let lb = Balancer::start(&registry, &[]).await;
    lb.rotates(&["cart"]).await;
    reporter.set_service_status("shop.Cart", tonic_health::ServingStatus::NotServing).await;
    lb.rotates(&[]).await;
}
