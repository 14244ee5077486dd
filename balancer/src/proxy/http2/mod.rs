//! A client's HTTP/2 connection (RFC 9113): its streams, each a task, until one side has had enough.
//!
//! ```text
//! connection (saw the preface) ─▶ serve ─▶ hyper (frames, HPACK, flow control)
//!                                   │          │ a stream's head              ▲ a response's head and pieces
//!                                   │          ▼                              │
//!                                 frames     exchange ─▶ course ─▶ ...      pipe
//!                                 (floods)     ├─ heads (pure: HTTP/2 to HTTP/1 and back)
//!                                              └─ relay (bodies both ways)
//! ```
//!
//! A stream's head is written as one of HTTP/1, which the strict codec then reads: so routes, header rules and what is
//! refused are the same for both. Frames, HPACK and flow control are hyper's and h2's.
//!
//! - A client must open its first stream within the time that a head may take, and may rest as long as an HTTP/1
//!   connection may. One that does not answer a PING is gone.
//! - What h2 does not bound is bounded by [`frames`]: a connection of frames that ask for nothing ends.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use super::deadline::{self, Deadline};
use super::worker::Worker;

mod exchange;
mod frames;
mod grpc;
mod heads;
mod pipe;
mod relay;

#[cfg(test)]
mod tests;

/// What a client that speaks HTTP/2 without having asked begins with, up to where HTTP/1 sees the end of a head.
pub const PREFACE_HEAD: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// Streams of one connection at a time. Browsers want about a hundred.
const STREAMS_MAX: u32 = 128;

/// What a client may send of one body, and of all, before it is taken.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// What is kept of one response while the client does not take it.
const SEND_BYTES_MAX: usize = 128 * 1024;

/// Streams that were reset before anybody saw them (CVE-2023-44487), and streams that we reset for what the client did
/// wrong on them. More of either than this ends the connection.
const RESETS_MAX: usize = 64;
const ERRORS_MAX: usize = 256;

/// A client is asked this often whether it is still there, and has as long to say so.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_PATIENCE: Duration = Duration::from_secs(20);

/// For the client's side of a graceful end, once no stream is left.
const GOODBYE: Duration = Duration::from_secs(1);

/// Nothing is waited for but to be woken.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// Runs what hyper starts for a connection on the worker's own thread.
#[derive(Clone)]
pub struct Here;

impl<F: Future + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move { drop(future.await) });
    }
}

/// Who a client is.
#[derive(Clone)]
pub struct Peer {
    /// Its address, as text.
    pub address: Rc<str>,
    /// What it came by: `http` or `https`.
    pub scheme: &'static str,
}

/// A client, as its streams see it.
#[derive(Clone)]
struct Client {
    worker: Rc<Worker>,
    peer: Peer,
    /// Its streams.
    streams: Rc<Streams>,
}

/// The streams of one connection.
struct Streams {
    open: Cell<usize>,
    /// Since when there is none; before the first, since the connection began.
    resting: Cell<Instant>,
    any: Cell<bool>,
}

/// A stream that is being served.
struct Stream(Rc<Streams>);

impl Stream {
    fn open(streams: &Rc<Streams>) -> Stream {
        streams.open.set(streams.open.get() + 1);
        streams.any.set(true);
        Stream(streams.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.resting.set(deadline::now());
    }
}

/// Serves `stream`, of which `early` has been read, until it ends.
pub async fn serve<S>(worker: Rc<Worker>, stream: S, early: Vec<u8>, peer: Peer)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let streams =
        Rc::new(Streams { open: Cell::new(0), resting: Cell::new(deadline::now()), any: Cell::new(false) });
    let client = Client { worker: worker.clone(), peer: peer.clone(), streams: streams.clone() };
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (writer, reader) = pipe::pipe();
        client.worker.tasks.spawn_local(exchange::serve(client.clone(), request, writer));
        reader.head()
    });
    let io = TokioIo::new(frames::Watched::new(stream, early, Instant::now()));
    let connection = builder(worker.limits.buffer_bytes_max).serve_connection(io, service);
    let mut connection = pin!(connection);
    let limit = worker.deadlines.add();
    let mut leaving = None;
    let ended = poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        if leaving.is_none() && poll_rest(&worker, &streams, &limit, cx).is_ready() {
            connection.as_mut().graceful_shutdown();
            leaving = Some(deadline::now());
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
        }
        match leaving {
            Some(since) if streams.open.get() == 0 => {
                limit.poll(cx, streams.resting.get().max(since) + GOODBYE).map(Ok)
            }
            Some(_) => limit.poll(cx, deadline::now() + NEVER).map(Ok),
            None => Poll::Pending,
        }
    });
    if let Err(error) = ended.await {
        debug!(peer = &*peer.address, %error, "an HTTP/2 connection ended");
    }
}

/// Ready once the connection has rested for as long as it may, or the worker stops.
fn poll_rest(worker: &Worker, streams: &Streams, limit: &Deadline, cx: &mut Context<'_>) -> Poll<()> {
    if worker.stopping().is_some() {
        return Poll::Ready(());
    }
    let limits = &worker.limits;
    let patience = if streams.any.get() { limits.keep_alive } else { limits.header_timeout };
    match streams.open.get() {
        0 => limit.poll(cx, streams.resting.get() + patience),
        _ => limit.poll(cx, deadline::now() + NEVER),
    }
}

fn builder(head_bytes_max: usize) -> http2::Builder<Here> {
    let mut builder = http2::Builder::new(Here);
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BYTES_MAX)
        .max_header_list_size(u32::try_from(head_bytes_max).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(ERRORS_MAX)
        // The same rule as for HTTP/1 decides.
        .auto_date_header(false);
    builder
}
