//! Plain clients: HTTP/1.1, and gRPC by hand, so that what is tested is the wire and not a library's idea of it.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The original's clients give up after this long.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// A call over HTTP/1.1 on a connection of its own, within the original's time-out.
pub async fn try_call(method: &str, url: &str, body: &str) -> anyhow::Result<Reply> {
    let request = Request::builder().method(method).uri(url).body(Full::new(Bytes::from(body.to_owned())))?;
    send(request, false).await
}

/// The same where it must be answered.
pub async fn call(method: &str, url: &str, body: &str) -> Reply {
    try_call(method, url, body).await.unwrap_or_else(|error| panic!("{method} {url}: {error:#}"))
}

/// The same with `Accept`, over HTTP/2 if wanted.
pub async fn call_as(method: &str, url: &str, accept: &str, http2: bool) -> Reply {
    let request = Request::builder().method(method).uri(url).header("accept", accept);
    let request = request.body(Full::new(Bytes::new())).expect("valid");
    send(request, http2).await.expect("an answer")
}

/// A unary gRPC call: `message` is the encoded request. Gives the gRPC status, and the message or else nothing.
pub async fn grpc(base: &str, path: &str, message: &[u8]) -> (i32, Bytes) {
    let mut frame = vec![0];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    grpc_frame(base, path, frame).await
}

/// The same with the frame as it is, whatever it holds.
pub async fn grpc_frame(base: &str, path: &str, frame: Vec<u8>) -> (i32, Bytes) {
    let request = Request::builder().method("POST").uri(format!("{base}/{path}"));
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    let reply =
        send(request.body(Full::new(Bytes::from(frame))).expect("valid"), true).await.expect("an answer");
    let status = reply.header("grpc-status").parse().unwrap_or(-1);
    let message = if reply.body.len() >= 5 { reply.body.slice(5..) } else { Bytes::new() };
    (status, message)
}

/// Sends raw bytes and reads what comes within two seconds, or until the node closes.
pub async fn raw(base: &str, bytes: &[u8]) -> Vec<u8> {
    let address = base.strip_prefix("http://").expect("http");
    let mut stream = TcpStream::connect(address).await.expect("the node listens");
    let _ = stream.write_all(bytes).await; // it may close before it has read everything
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(2), stream.read_to_end(&mut answer)).await; // an open end is fine too
    answer
}

async fn send(request: Request<Full<Bytes>>, http2: bool) -> anyhow::Result<Reply> {
    let mut client = Client::builder(TokioExecutor::new());
    let client = client.http2_only(http2).build_http::<Full<Bytes>>();
    let reply = timeout(CALL_TIMEOUT, async {
        let (head, body) = client.request(request).await?.into_parts();
        let body = body.collect().await?;
        let mut headers = head.headers;
        headers.extend(body.trailers().cloned().unwrap_or_default());
        Ok::<Reply, anyhow::Error>(Reply { status: head.status.as_u16(), headers, body: body.to_bytes() })
    });
    reply.await?
}
