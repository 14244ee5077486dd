//! Sends one health probe on a connection of its own, so that accepting is probed too, within one time-out for
//! everything: a GET whose status tells, a connection alone, or a call of gRPC's health service.
//!
//! It goes to the instance's own address whatever a path or an answer says: redirects are answers like others.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::Request;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::record::Probe;
use super::state::{ProbeOrder, ProbeResult};
use crate::pool::Protocol;

#[cfg(test)]
mod tests;

/// What programs call us in their logs.
const AGENT: &str = concat!("balancer-probe/", env!("CARGO_PKG_VERSION"));

/// An answer of the health service takes a few bytes.
const ANSWER_BYTES_MAX: usize = 4096;

/// `grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: i32 = 1;

/// How probes are sent and read.
#[derive(Clone, Debug)]
pub struct Prober {
    /// For connecting, sending and the answer together.
    pub timeout: Duration,
    /// How instances are probed that do not say.
    pub method: Probe,
    /// Status codes that mean healthy.
    pub statuses: Vec<u16>,
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

enum Trouble {
    Refused,
    Other(String),
}

impl Prober {
    /// Carries out `order`.
    pub async fn probe(&self, order: &ProbeOrder) -> ProbeResult {
        match tokio::time::timeout(self.timeout, self.ask(order)).await {
            Err(_) => ProbeResult::Unhealthy(format!("no answer within {}", human(self.timeout))),
            Ok(Err(Trouble::Refused)) => ProbeResult::Refused,
            Ok(Err(Trouble::Other(why))) => ProbeResult::Unhealthy(why),
            Ok(Ok(())) => ProbeResult::Healthy,
        }
    }

    async fn ask(&self, order: &ProbeOrder) -> Result<(), Trouble> {
        let stream = connect(order).await?;
        match order.method.unwrap_or(self.method) {
            Probe::Tcp => Ok(()),
            Probe::Http => {
                let status = get(order, stream).await?;
                match self.statuses.contains(&status) {
                    true => Ok(()),
                    false => Err(Trouble::Other(format!("{} answered {status}", order.path))),
                }
            }
            Probe::Grpc => check(order, stream).await,
        }
    }
}

async fn connect(order: &ProbeOrder) -> Result<TcpStream, Trouble> {
    let address = &order.endpoint.address;
    TcpStream::connect((address.host.as_str(), address.port)).await.map_err(|e| {
        if e.kind() == ErrorKind::ConnectionRefused {
            Trouble::Refused
        } else {
            Trouble::Other(format!("cannot connect: {e}"))
        }
    })
}

/// The status that a GET is answered with.
async fn get(order: &ProbeOrder, stream: TcpStream) -> Result<u16, Trouble> {
    let request = Request::get(&order.path)
        .header(http::header::HOST, &*order.endpoint.authority)
        .header(http::header::USER_AGENT, AGENT)
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| Trouble::Other(format!("bad probe path {:?}: {e}", order.path)))?;
    if order.endpoint.protocol == Protocol::H2c {
        return get_over_http2(order, request, stream).await;
    }
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let response = sender.send_request(request);
    tokio::pin!(response, connection);
    // The connection has to be driven for the response to come; it may end first when the peer closes.
    let response = tokio::select! {
        biased;
        response = &mut response => response,
        _ = &mut connection => response.await,
    };
    response.map(|r| r.status().as_u16()).map_err(broken)
}

/// The same, of an endpoint that speaks nothing else.
async fn get_over_http2(
    order: &ProbeOrder,
    mut request: Request<Empty<Bytes>>,
    stream: TcpStream,
) -> Result<u16, Trouble> {
    let uri = format!("http://{}{}", order.endpoint.authority, order.path);
    *request.uri_mut() =
        uri.parse().map_err(|e| Trouble::Other(format!("bad probe path {:?}: {e}", order.path)))?;
    request.headers_mut().remove(http::header::HOST);
    request.headers_mut().remove(http::header::CONNECTION);
    let io = TokioIo::new(stream);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(broken)?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    sender.send_request(request).await.map(|r| r.status().as_u16()).map_err(broken)
}

/// Calls `grpc.health.v1.Health/Check` over HTTP/2 without TLS; see the gRPC health checking protocol.
async fn check(order: &ProbeOrder, stream: TcpStream) -> Result<(), Trouble> {
    let uri = format!("http://{}/grpc.health.v1.Health/Check", order.endpoint.authority);
    let message = HealthCheckRequest { service: order.grpc_service.clone() };
    let request = Request::post(uri)
        .header(http::header::USER_AGENT, AGENT)
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .body(Full::new(framed(&message)))
        .map_err(|e| Trouble::Other(format!("bad address: {e}")))?;
    let io = TokioIo::new(stream);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(broken)?;
    // Ends with this probe.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
    if head.status != http::StatusCode::OK {
        return Err(Trouble::Other(format!("health service answered {}", head.status.as_u16())));
    }
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|e| Trouble::Other(format!("broken answer: {e}")))?;
    // A response of one piece has them in its head.
    let status = body.trailers().unwrap_or(&head.headers).get("grpc-status").map(|v| v.as_bytes().to_vec());
    match status.as_deref() {
        Some(b"0") => {}
        Some(b"5") => return Err(Trouble::Other(format!("no service {:?} there", order.grpc_service))),
        Some(b"12") => return Err(Trouble::Other("it has no grpc.health.v1.Health".into())),
        other => {
            let code = String::from_utf8_lossy(other.unwrap_or(b"none")).into_owned();
            return Err(Trouble::Other(format!("health service answered with grpc-status {code}")));
        }
    }
    match unframed(&body.to_bytes()) {
        Some(HealthCheckResponse { status: SERVING }) => Ok(()),
        Some(HealthCheckResponse { status }) => Err(Trouble::Other(format!("not serving (status {status})"))),
        None => Err(Trouble::Other("its answer is no HealthCheckResponse".into())),
    }
}

/// With the five bytes that stand in front of a message in gRPC: not compressed, and its length.
fn framed(message: &HealthCheckRequest) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(message.encoded_len() as u32);
    out.extend_from_slice(&message.encode_to_vec());
    out.freeze()
}

fn unframed(bytes: &[u8]) -> Option<HealthCheckResponse> {
    let (head, message) = bytes.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?) as usize;
    let is_whole = head[0] == 0 && message.len() == length;
    HealthCheckResponse::decode(message).ok().filter(|_| is_whole)
}

fn broken(error: hyper::Error) -> Trouble {
    Trouble::Other(format!("broken answer: {error}"))
}

fn human(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(duration)
}
