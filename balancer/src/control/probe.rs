//! Sends one health probe: a GET on a connection of its own, so that accepting is probed too, without
//! redirects, within one time-out for everything.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::state::{ProbeOrder, ProbeResult};

/// How probes are sent and read.
#[derive(Clone, Debug)]
pub struct Prober {
    /// For connecting, sending and the response's head together.
    pub timeout: Duration,
    /// Status codes that mean healthy.
    pub statuses: Vec<u16>,
}

impl Prober {
    /// Carries out `order`.
    pub async fn probe(&self, order: &ProbeOrder) -> ProbeResult {
        match tokio::time::timeout(self.timeout, ask(order)).await {
            Err(_) => ProbeResult::Unhealthy(format!("no answer within {}", human(self.timeout))),
            Ok(Err(Trouble::Refused)) => ProbeResult::Refused,
            Ok(Err(Trouble::Other(why))) => ProbeResult::Unhealthy(why),
            Ok(Ok(status)) if self.statuses.contains(&status) => ProbeResult::Healthy,
            Ok(Ok(status)) => ProbeResult::Unhealthy(format!("{} answered {status}", order.path)),
        }
    }
}

enum Trouble {
    Refused,
    Other(String),
}

async fn ask(order: &ProbeOrder) -> Result<u16, Trouble> {
    let address = &order.endpoint.address;
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(|e| {
        if e.kind() == ErrorKind::ConnectionRefused {
            Trouble::Refused
        } else {
            Trouble::Other(format!("cannot connect: {e}"))
        }
    })?;
    let request = Request::get(&order.path)
        .header(http::header::HOST, &*order.endpoint.authority)
        .header(http::header::USER_AGENT, concat!("balancer-probe/", env!("CARGO_PKG_VERSION")))
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| Trouble::Other(format!("bad probe path {:?}: {e}", order.path)))?;
    let broken = |e: hyper::Error| Trouble::Other(format!("broken answer: {e}"));
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

fn human(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(duration)
}
