//! Headers on their way through, and everything that is refused.

use std::time::Duration;

use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::balancer::{Balancer, eventually, system};
use crate::client;

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_learns_who_asked_and_nothing_hop_by_hop() {
    let (_registry, _backends, lb) = system(1, &[]).await;
    let headers = [
        ("host", "shop.example:81"),
        ("x-forwarded-for", "203.0.113.7"),
        ("connection", "close, x-private"),
        ("x-private", "1"),
        ("te", "gzip"),
    ];
    let answer =
        client::send(lb.http, client::request(Method::GET, "/a%20b?q=%2F&q=2", &headers, "")).await.unwrap();
    assert_eq!(answer.json()["target"], "/a%20b?q=%2F&q=2");
    let got =
        ["host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "connection", "x-private", "te"]
            .map(|name| answer.echoed(name));
    assert_eq!(got, ["shop.example:81", "203.0.113.7, 127.0.0.1", "http", "shop.example:81", "", "", ""]);
    assert_eq!(answer.echoed("x-request-id").len(), 36);
    assert_eq!(answer.header("x-secret"), "", "named by the backend's own Connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused_and_service_goes_on() {
    let (_registry, backends, lb) = system(1, &[]).await;
    let big = format!("GET / HTTP/1.1\r\nhost: a\r\nx-big: {}\r\n\r\n", "x".repeat(100 * 1024));
    let cases: [(&[u8], &str); 12] = [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 garbage\r\n\r\n", "400"),
        (b"hello\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nhost : a\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nhost: a\r\n folded\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx", "400"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\nx", "400"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "400"),
        (b"CONNECT other:443 HTTP/1.1\r\nhost: other:443\r\nconnection: close\r\n\r\n", "405"),
        (big.as_bytes(), "431"),
    ];
    for (bytes, status) in cases {
        let answer = client::raw(lb.http, bytes).await;
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let got = &answer[..answer.len().min(60)];
        assert!(got.starts_with(&format!("HTTP/1.1 {status}")), "{start:?} got {got:?}");
    }
    let answer = client::raw(lb.admin, big.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "the admin server got {:?}", &answer[..answer.len().min(60)]);
    assert_eq!(backends[0].requests(), 0);
    assert_eq!(client::get(lb.http, "/").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_trickles_its_head_is_cut_off() {
    let registry = crate::registry::Registry::start().await;
    let config = format!(
        "port: 0\nhost: 127.0.0.1\nserviceRegistryURL: {}\nheaderTimeout: 300ms\nkeepAliveTimeout: 500ms\n",
        registry.url()
    );
    let lb = Balancer::spawn(&[], &config).await;
    // Nothing at all, a head that never ends, and a connection at rest after a request.
    for (bytes, rest) in
        [("", false), ("GET / HTTP/1.1\r\n", false), ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", true)]
    {
        let mut stream = TcpStream::connect(lb.http).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut out = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut out)).await;
        let _ = closed.unwrap_or_else(|_| panic!("still open after {bytes:?}"));
        assert_eq!(!out.is_empty(), rest, "{bytes:?}");
    }
    eventually("no connection is left", async || {
        lb.metrics().await.contains("balancer_downstream_connections 0\n")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_and_pipelining_are_understood() {
    let (_registry, backends, lb) = system(1, &[]).await;
    let answer = client::raw(lb.http, b"GET /old HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200") && answer.contains("\"target\":\"/old\""), "{answer}");
    let host = format!("[\"host\",\"{}\"]", backends[0].address);
    assert!(answer.contains(&host), "HTTP/1.1 demands a host: {answer}");
    let two = b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = client::raw(lb.http, two).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
}
