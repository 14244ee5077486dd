//! Connections to endpoints: one worker's own, kept between requests.
//!
//! # Why not a pooled client
//! A pool that connects and retries by itself hides whether a byte of the request was sent, and that decides
//! whether the request may be sent again. Here a connection is taken, used for one request, and given back only
//! after its response has ended.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::body::Share;
use crate::config::Limits;
use crate::pool::{Endpoint, Pool};

#[cfg(test)]
mod tests;

/// For a kept connection to notice that its last response has ended, which takes one turn of its task. One that
/// does not is still sending something; there are others.
const READY_TIMEOUT: Duration = Duration::from_millis(100);

/// The process (`EMFILE`) or the system (`ENFILE`) has no file descriptor left; std has no kind for them.
const NO_DESCRIPTORS: [i32; 2] = [24, 23];

/// Sends one request at a time over one connection.
pub type Sender = http1::SendRequest<Share>;

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing listens there.
    #[error("refused the connection")]
    Refused,
    /// Nothing answers there.
    #[error("could not be connected to within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// This machine has run out of descriptors or ports; no endpoint is to blame.
    #[error("could not be connected to for want of resources: {0}")]
    Local(io::Error),
    /// Anything else.
    #[error("could not be connected to: {0}")]
    Other(io::Error),
}

struct Kept {
    sender: Sender,
    since: Instant,
}

/// The connections of one worker.
pub struct Upstreams {
    kept: RefCell<HashMap<u64, Vec<Kept>>>,
    builder: http1::Builder,
    connect_timeout: Duration,
    idle: Duration,
    idle_max: usize,
}

impl Upstreams {
    /// None yet.
    pub fn new(limits: &Limits) -> Upstreams {
        let mut builder = http1::Builder::new();
        builder.max_header_size(limits.buffer_bytes_max).max_buf_size(limits.buffer_bytes_max);
        Upstreams {
            kept: RefCell::default(),
            builder,
            connect_timeout: limits.connect_timeout,
            idle: limits.upstream_idle,
            idle_max: limits.upstream_idle_max,
        }
    }

    /// A connection to `endpoint`: a kept one unless it has to be `fresh`.
    pub async fn lease(
        self: &Rc<Self>,
        endpoint: &Arc<Endpoint>,
        fresh: bool,
    ) -> Result<Lease, ConnectError> {
        while let Some(mut sender) = (!fresh).then(|| self.take(endpoint.key)).flatten() {
            // Waits for the connection's task to see the end of the last response, which it has been told.
            if sender.is_ready() || becomes_ready(&mut sender).await {
                return Ok(Lease { sender, reused: true, key: endpoint.key, home: self.clone() });
            }
        }
        let sender = self.connect(endpoint).await?;
        Ok(Lease { sender, reused: false, key: endpoint.key, home: self.clone() })
    }

    /// Drops connections that have been idle for long, are closed, or lead to endpoints not in `pool`.
    pub fn sweep(&self, pool: &Pool) {
        let now = Instant::now();
        self.kept.borrow_mut().retain(|key, kept| {
            let known = pool.entries().iter().any(|e| e.endpoint.key == *key);
            kept.retain(|k| known && !k.sender.is_closed() && now.duration_since(k.since) < self.idle);
            !kept.is_empty()
        });
    }

    /// Drops every idle connection.
    pub fn clear(&self) {
        self.kept.borrow_mut().clear();
    }

    /// The connection used last: the others get a chance to grow old.
    fn take(&self, key: u64) -> Option<Sender> {
        let mut kept = self.kept.borrow_mut();
        let list = kept.get_mut(&key)?;
        while let Some(k) = list.pop() {
            if !k.sender.is_closed() && k.since.elapsed() < self.idle {
                return Some(k.sender);
            }
        }
        None
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Sender, ConnectError> {
        let address = (endpoint.address.host.as_str(), endpoint.address.port);
        let connected = tokio::time::timeout(self.connect_timeout, TcpStream::connect(address));
        let stream =
            connected.await.map_err(|_| ConnectError::Timeout(self.connect_timeout))?.map_err(classify)?;
        endpoint.reached();
        // Failing to switch off Nagle's algorithm costs latency, nothing else.
        let _ = stream.set_nodelay(true);
        let handshake = self.builder.handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(|e| ConnectError::Other(io::Error::other(e)))?;
        tokio::task::spawn_local(connection.with_upgrades());
        Ok(sender)
    }
}

async fn becomes_ready(sender: &mut Sender) -> bool {
    matches!(tokio::time::timeout(READY_TIMEOUT, sender.ready()).await, Ok(Ok(())))
}

fn classify(error: io::Error) -> ConnectError {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => ConnectError::Refused,
        ErrorKind::AddrNotAvailable => ConnectError::Local(error),
        _ if error.raw_os_error().is_some_and(|code| NO_DESCRIPTORS.contains(&code)) => {
            ConnectError::Local(error)
        }
        _ => ConnectError::Other(error),
    }
}

/// One connection for one request. Dropping it closes the connection.
pub struct Lease {
    sender: Sender,
    /// Whether it served a request before: then its end says nothing about the endpoint.
    pub reused: bool,
    key: u64,
    home: Rc<Upstreams>,
}

impl Lease {
    /// What sends on it.
    pub fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// Keeps the connection for a later request, unless it is closed or there are enough.
    pub fn give_back(self) {
        if self.sender.is_closed() {
            return;
        }
        let mut kept = self.home.kept.borrow_mut();
        let list = kept.entry(self.key).or_default();
        if list.len() < self.home.idle_max {
            list.push(Kept { sender: self.sender, since: Instant::now() });
        }
    }
}
