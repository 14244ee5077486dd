//! Connections to endpoints: one worker's own, kept between requests.
//!
//! # Why not a pooled client
//! A pool that connects and retries by itself hides whether a byte of the request was sent, and that decides
//! whether the request may be sent again. Here a connection is taken, used for one request, and given back only
//! after its response has ended.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::Method;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

use super::buffer::{Buffers, Input, Output};
use super::deadline;
use super::http1::{Lines, Malformed, Response};
use super::retry::Fault;
use crate::config::Limits;
use crate::pool::{Endpoint, Protocol};
use crate::table::Table;

mod h2c;

#[cfg(test)]
mod tests;

/// The process (`EMFILE`) or the system (`ENFILE`) has no file descriptor left; std has no kind for them.
const NO_DESCRIPTORS: [i32; 2] = [24, 23];

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
    stream: TcpStream,
    since: Instant,
}

/// The connections of one worker.
pub struct Upstreams {
    kept: RefCell<HashMap<u64, Vec<Kept>>>,
    /// Those over which many requests go at a time.
    shared: h2c::Connections,
    buffers: Rc<Buffers>,
    head_bytes_max: usize,
    connect_timeout: Duration,
    idle: Duration,
    idle_max: usize,
}

impl Upstreams {
    /// None yet.
    pub fn new(limits: &Limits, buffers: Rc<Buffers>) -> Upstreams {
        Upstreams {
            kept: RefCell::default(),
            shared: h2c::Connections::new(limits.upstream_idle, limits.buffer_bytes_max),
            buffers,
            head_bytes_max: limits.buffer_bytes_max,
            connect_timeout: limits.connect_timeout,
            idle: limits.upstream_idle,
            idle_max: limits.upstream_idle_max,
        }
    }

    /// A connection to the endpoint `key` from an earlier request, if there is one.
    pub fn take(&self, key: u64) -> Option<Link> {
        if let Some(place) = self.shared.take(key) {
            return Some(self.stream(key, place, true));
        }
        let mut kept = self.kept.borrow_mut();
        let list = kept.get_mut(&key)?;
        // The one used last: the others get a chance to grow old.
        while let Some(kept) = list.pop() {
            if deadline::now().duration_since(kept.since) < self.idle && is_at_rest(&kept.stream) {
                return Some(self.link(key, Socket::Tcp(kept.stream), true));
            }
        }
        None
    }

    /// A new connection to `endpoint`; where many requests share one, perhaps one that was made meanwhile.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<Link, ConnectError> {
        self.connect_within(endpoint, self.connect_timeout).await
    }

    /// A new connection to `endpoint`, by `until` at the latest.
    pub async fn connect_until(&self, endpoint: &Endpoint, until: Instant) -> Result<Link, ConnectError> {
        let left = until.saturating_duration_since(Instant::now());
        self.connect_within(endpoint, left.min(self.connect_timeout)).await
    }

    async fn connect_within(&self, endpoint: &Endpoint, limit: Duration) -> Result<Link, ConnectError> {
        let key = endpoint.key;
        if endpoint.protocol == Protocol::H2c {
            let place = tokio::time::timeout(limit, self.shared.place(key, tcp(endpoint, limit))).await;
            let place = place.map_err(|_| ConnectError::Timeout(limit))??;
            return Ok(self.stream(key, place, false));
        }
        Ok(self.link(key, Socket::Tcp(tcp(endpoint, limit).await?), false))
    }

    /// Keeps `link` for a later request, unless there are enough. Its last response has ended, and nothing came
    /// after it.
    pub fn give_back(&self, link: Link) {
        assert!(link.input.is_empty() && link.output.is_empty(), "something is still under way");
        // A stream has ended with its response.
        let Socket::Tcp(stream) = link.stream else { return };
        let mut kept = self.kept.borrow_mut();
        let list = kept.entry(link.key).or_default();
        if list.len() < self.idle_max {
            list.push(Kept { stream, since: deadline::now() });
        }
    }

    /// Drops connections that have been idle for long, are closed, or lead to endpoints not in `table`.
    pub fn sweep(&self, table: &Table) {
        let now = deadline::now();
        let keys: HashSet<u64> = table.entries().map(|e| e.endpoint.key).collect();
        self.kept.borrow_mut().retain(|key, kept| {
            let known = keys.contains(key);
            kept.retain(|k| known && now.duration_since(k.since) < self.idle && is_at_rest(&k.stream));
            !kept.is_empty()
        });
        self.shared.sweep(&keys, now);
    }

    /// Drops every idle connection.
    pub fn clear(&self) {
        self.kept.borrow_mut().clear();
        self.shared.clear();
    }

    fn stream(&self, key: u64, place: h2c::Place, reused: bool) -> Link {
        let (pipe, verdict) = h2c::open(place);
        Link { verdict: Some(verdict), ..self.link(key, Socket::Pipe(pipe), reused) }
    }

    fn link(&self, key: u64, stream: Socket, reused: bool) -> Link {
        Link {
            stream,
            input: Input::new(self.buffers.clone()),
            output: Output::default(),
            reused,
            heard: false,
            verdict: None,
            key,
            lines: Lines::default(),
            head_bytes_max: self.head_bytes_max,
        }
    }
}

async fn tcp(endpoint: &Endpoint, limit: Duration) -> Result<TcpStream, ConnectError> {
    let address = (endpoint.address.host.as_str(), endpoint.address.port);
    let connected = tokio::time::timeout(limit, TcpStream::connect(address));
    let stream = connected.await.map_err(|_| ConnectError::Timeout(limit))?.map_err(classify)?;
    endpoint.reached();
    // Failing to switch off Nagle's algorithm costs latency, nothing else.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Neither closed nor sending what nobody asked for, which the next request would take for its response. Asks the
/// kernel only if it has told of something.
fn is_at_rest(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
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

/// Why there is no head of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The endpoint closed before it was complete.
    #[error("closed the connection without a response")]
    Closed,
    /// What came is not HTTP, or could be read in two ways.
    #[error("sent what is not HTTP: {0}")]
    Malformed(Malformed),
}

/// What leads to an endpoint.
pub enum Socket {
    /// A connection of its own.
    Tcp(TcpStream),
    /// A pipe to a stream of a connection that others use, too.
    Pipe(DuplexStream),
}

macro_rules! both {
    ($me:expr, $stream:ident => $done:expr) => {
        match $me.get_mut() {
            Socket::Tcp($stream) => {
                let $stream = Pin::new($stream);
                $done
            }
            Socket::Pipe($stream) => {
                let $stream = Pin::new($stream);
                $done
            }
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        both!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        both!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        both!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Socket::Tcp(stream) => stream.is_write_vectored(),
            Socket::Pipe(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        both!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        both!(self, stream => stream.poll_shutdown(cx))
    }
}

/// One connection for one request. Dropping it closes the connection.
pub struct Link {
    /// Its socket.
    pub stream: Socket,
    /// What the endpoint has sent and nobody has looked at.
    pub input: Input,
    /// What it has not taken yet.
    pub output: Output,
    /// Whether it served a request before: then its end says nothing about the endpoint.
    pub reused: bool,
    /// Whether anything of a response has come.
    pub heard: bool,
    /// How it failed, where that is told and need not be guessed.
    verdict: Option<h2c::Verdict>,
    key: u64,
    lines: Lines,
    head_bytes_max: usize,
}

impl Link {
    /// How the attempt failed, whose response did not come because the endpoint broke off.
    pub fn fault(&self) -> Fault {
        match self.verdict.as_ref().and_then(|verdict| verdict.get()) {
            Some(fault) => fault,
            None if self.reused && !self.heard => Fault::Stale,
            None => Fault::Broke,
        }
    }

    /// Ready once a response's head is in `response`: an interim one, or the one that `method` asked for.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        response: &mut Response,
        method: &Method,
    ) -> Poll<Result<(), HeadError>> {
        loop {
            let head = self.lines.scan(self.input.bytes(), self.head_bytes_max);
            if let Some(place) = head.map_err(HeadError::Malformed)? {
                response.parse(&self.input.bytes()[place.clone()], method).map_err(HeadError::Malformed)?;
                self.input.consume(place.end);
                self.lines = Lines::default();
                return Poll::Ready(Ok(()));
            }
            match ready!(self.input.poll_fill(cx, &mut self.stream)) {
                Ok(1..) => self.heard = true,
                Ok(0) | Err(_) => return Poll::Ready(Err(HeadError::Closed)),
            }
        }
    }
}
