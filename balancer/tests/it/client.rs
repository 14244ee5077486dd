//! Clients: one request on one connection, a connection kept, and bare bytes.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Nothing in these tests takes as long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// What the echo backend answered.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {:?}", self.text()))
    }

    /// A header that the echo backend got; several are joined by `|`.
    pub fn echoed(&self, name: &str) -> String {
        let json = self.json();
        let all = json["headers"].as_array().expect("headers").iter();
        let values = all.filter(|pair| pair[0] == name).map(|pair| pair[1].as_str().unwrap_or_default());
        values.collect::<Vec<_>>().join("|")
    }

    pub fn header(&self, name: &str) -> String {
        let values = self.headers.get_all(name).iter().map(|v| v.to_str().unwrap_or("?"));
        values.collect::<Vec<_>>().join("|")
    }
}

/// A connection kept.
pub struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Client> {
        Client::over(TcpStream::connect(address).await?).await
    }

    /// Over what is connected already.
    pub async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> anyhow::Result<Client> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move { drop(connection.with_upgrades().await) });
        Ok(Client { sender })
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        let answer = async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        tokio::time::timeout(PATIENCE, answer).await?
    }

    pub async fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        self.send(request(Method::GET, path, &[], "")).await
    }

    pub fn sender(&mut self) -> &mut http1::SendRequest<Full<Bytes>> {
        &mut self.sender
    }
}

pub fn request(method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Request<Full<Bytes>> {
    let mut builder = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(n, _)| *n == "host") {
        builder = builder.header("host", "shop.example");
    }
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Full::from(body.to_owned())).expect("a request")
}

/// On a connection of its own.
pub async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
    Client::connect(address).await?.send(request).await
}

pub async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    send(address, request(Method::GET, path, &[], "")).await
}

pub async fn post(address: SocketAddr, path: &str, body: &str) -> anyhow::Result<Answer> {
    send(address, request(Method::POST, path, &[], body)).await
}

/// Sends `bytes`, and returns everything that comes until the other side closes.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    // The other side may refuse before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut out = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut out)).await.expect("it closes");
    String::from_utf8_lossy(&out).into_owned()
}
