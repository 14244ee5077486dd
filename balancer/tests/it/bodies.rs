//! Bodies and upgraded connections pass through as they come.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::balancer::{eventually, system, system_with};
use crate::client::{self, Client};

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_both_ways() {
    let (_registry, _backends, lb) = system(1, &[]).await;
    let body = "x".repeat(8 * 1024 * 1024);
    for method in [Method::POST, Method::PUT] {
        let answer = client::send(lb.http, client::request(method, "/", &[], &body)).await.unwrap();
        assert_eq!(answer.json()["body_bytes"], body.len());
    }
    let answer = client::get(lb.http, "/big").await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 8 * 1024 * 1024));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_a_length_passes_piece_by_piece() {
    let (_registry, _backends, lb) = system(1, &[]).await;
    let pieces = futures_util::stream::iter(
        (0..50).map(|i| Ok::<_, hyper::Error>(Frame::data(Bytes::from(format!("{i:08}"))))),
    );
    let stream = TcpStream::connect(lb.http).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("/").header("host", "a").body(StreamBody::new(pieces)).unwrap();
    let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let json: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(json["body_bytes"], 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_as_they_happen() {
    let (_registry, _backends, lb) = system(1, &[]).await;
    let mut client = Client::connect(lb.http).await.unwrap();
    let request = client::request(Method::GET, "/sse", &[], "");
    let response = client.sender().send_request(request).await.unwrap();
    let mut body = response.into_body();
    for n in 0..3 {
        let frame = tokio::time::timeout(Duration::from_secs(5), body.frame()).await.expect("it comes");
        let data = frame.unwrap().unwrap().into_data().unwrap();
        assert_eq!(data, format!("data: {n}\n\n"), "one event at a time");
    }
    assert_eq!(lb.endpoint("b0", "in_flight").await, 1);
    drop((body, client));
    eventually("it is over", async || lb.endpoint("b0", "in_flight").await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn web_sockets_pass_and_count_as_in_flight() {
    let (_registry, _backends, lb) = system(1, &[]).await;
    let stream = TcpStream::connect(lb.http).await.unwrap();
    let (mut socket, response) =
        tokio_tungstenite::client_async(format!("ws://{}/ws", lb.http), stream).await.expect("an upgrade");
    assert_eq!(response.status(), 101);
    for i in 0..10 {
        socket.send(Message::text(format!("hello {i}"))).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(format!("hello {i}")));
    }
    assert_eq!(lb.endpoint("b0", "in_flight").await, 1);
    drop(socket);
    eventually("it is over", async || lb.endpoint("b0", "in_flight").await == 0).await;
}

/// In the original every upgrade failed, and five of them took the backend out.
#[tokio::test(flavor = "multi_thread")]
async fn failed_upgrades_are_answered_and_blamed_on_nobody() {
    let (_registry, _backends, lb) = system(1, &[]).await;
    let headers = [("connection", "upgrade"), ("upgrade", "websocket")];
    for _ in 0..10 {
        let answer = client::send(lb.http, client::request(Method::GET, "/ws", &headers, "")).await.unwrap();
        assert_eq!(answer.status, 400, "it lacks a key");
    }
    let h2c = [("connection", "upgrade, http2-settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABk")];
    let answer = client::send(lb.http, client::request(Method::GET, "/", &h2c, "")).await.unwrap();
    assert_eq!(
        (answer.status, answer.echoed("upgrade"), answer.echoed("connection")),
        (200, String::new(), String::new())
    );
    assert_eq!(lb.endpoint("b0", "state").await, "up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_is_told_to_continue() {
    let (_registry, _backends, lb) = system(1, &[]).await;
    let mut stream = TcpStream::connect(lb.http).await.unwrap();
    let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut first = [0; 25];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200") && rest.contains("\"body_bytes\":5"), "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_is_passed_on_and_its_connection_not_shared() {
    let (_registry, _backends, lb) = system(1, &["--workers", "1"]).await;
    let mut stream = TcpStream::connect(lb.http).await.unwrap();
    stream.write_all(b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nsome").await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 413");
    // The upload is still unfinished; nobody else may have to wait for it.
    for _ in 0..3 {
        assert_eq!(client::get(lb.http, "/").await.unwrap().status, 200);
    }
    // A client that writes first and reads then must find the answer, not a reset.
    stream.write_all(&[b'x'; 100_000 - 4]).await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.expect("no reset");
    assert!(rest.contains("connection: close") && rest.ends_with("too much"), "{rest}");
    assert_eq!(lb.endpoint("b0", "state").await, "up");
}

#[tokio::test(flavor = "multi_thread")]
async fn head_has_a_length_and_no_body() {
    let (_registry, _backends, lb) = system(1, &[]).await;
    let mut client = Client::connect(lb.http).await.unwrap();
    let full = client.get("/").await.unwrap();
    let head = client.send(client::request(Method::HEAD, "/", &[], "")).await.unwrap();
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_ne!(full.header("content-length"), "");
    assert_ne!(head.header("content-length"), "");
    assert_eq!(client.get("/").await.unwrap().status, 200, "the connection is still in step");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_breaks_off_its_upload_is_nobody_elses_fault() {
    let (_registry, _backends, lb) = system(1, &[]).await;
    for _ in 0..8 {
        let mut stream = TcpStream::connect(lb.http).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nsome").await.unwrap();
        eventually("it is in flight", async || lb.endpoint("b0", "in_flight").await == 1).await;
        drop(stream);
        eventually("it is not", async || lb.endpoint("b0", "in_flight").await == 0).await;
    }
    let state = lb.endpoint("b0", "state").await;
    assert_eq!(
        (state.as_str(), lb.metrics().await.contains("balancer_ejections_total 0")),
        (Some("up"), true)
    );
    let answer =
        client::send(lb.http, Request::get("/").header("host", "a").body(Full::default()).unwrap()).await;
    assert_eq!(answer.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_or_delete_with_a_body_in_chunks_keeps_it() {
    let (_registry, _backends, lb) = system(1, &[]).await;
    for method in ["GET", "DELETE", "POST"] {
        let bytes = format!(
            "{method} / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
             5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
        );
        let answer = client::raw(lb.http, bytes.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"body_bytes\":11"), "{answer}");
    }
}

/// Nothing happens at times; that is no failure of whoever would tell of it.
#[tokio::test(flavor = "multi_thread")]
async fn quiet_events_outlast_other_bodies_and_are_held_against_nobody() {
    let (_registry, backends, lb) = system_with(2, "bodyIdleTimeout: 200ms\n").await;
    let open = || backends.iter().map(|b| b.seen.open.load(Ordering::SeqCst)).sum::<usize>();
    let events = tokio::spawn(client::get(lb.http, "/quiet-events"));
    eventually("the events are in flight", async || open() == 1).await;
    assert!(client::get(lb.http, "/quiet").await.is_err(), "a body that stays silent is cut off");
    eventually("only the events are left", async || open() == 1).await;
    assert!(!events.is_finished());
    events.abort();

    let (_registry, _backends, lb) = system_with(2, "tunnelIdleTimeout: 50ms\n").await;
    for _ in 0..16 {
        assert!(client::get(lb.http, "/quiet-events").await.is_err(), "even events end");
    }
    lb.rotates(&["b0", "b1"]).await;
    assert!(lb.metrics().await.contains("balancer_ejections_total 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_rest_while_the_client_is_still_sending() {
    let (_registry, _backends, lb) = system_with(1, "bodyIdleTimeout: 500ms\n").await;
    // Slower as a whole than the limit, each piece well within it.
    let ticks = tokio::time::interval(Duration::from_millis(100));
    let pieces = futures_util::stream::unfold((0, ticks), |(n, mut ticks)| async move {
        ticks.tick().await;
        (n < 10).then(|| (Ok::<_, hyper::Error>(Frame::data(Bytes::from_static(b"piece"))), (n + 1, ticks)))
    });
    let stream = TcpStream::connect(lb.http).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let body = StreamBody::new(Box::pin(pieces));
    let request = Request::post("/duplex").header("host", "a").body(body).unwrap();
    let answer = sender.send_request(request).await.unwrap().into_body().collect().await;
    assert_eq!(answer.expect("it is not cut off").to_bytes(), "begins,50 bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_during_the_answer_is_not_the_backends_fault() {
    let (_registry, _backends, lb) = system(2, &[]).await;
    for _ in 0..16 {
        let mut stream = TcpStream::connect(lb.http).await.unwrap();
        let head = b"POST /duplex HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
        stream.write_all(head).await.unwrap();
        let mut answer = vec![0; 4096];
        let mut n = 0;
        while !answer[..n].windows(7).any(|w| w == b"begins,") {
            n += stream.read(&mut answer[n..]).await.unwrap();
        }
        stream.write_all(b"not a length\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut answer).await;
    }
    eventually("it is over", async || lb.metrics().await.contains("balancer_downstream_connections 0\n"))
        .await;
    lb.rotates(&["b0", "b1"]).await;
    assert!(lb.metrics().await.contains("balancer_ejections_total 0"));
}
