//! Carries connections: accepts, guards, and lets go.
//!
//! Both protocols come on one port: a connection that begins with HTTP/2's preface is HTTP/2, any other is
//! HTTP/1.1. Every wait for a client has an end: for its first bytes, for its first request's head, for its next
//! request, for an answer to a ping. When this node stops, connections are told, finish what they are at, and are
//! dropped after a grace.

use std::convert::Infallible;
use std::future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::request::Connection;
use super::stall::{Carrying, unless_stalled};
use crate::config::Limits;

/// How HTTP/2 begins (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long an HTTP/1.1 connection may wait for its next request. Beyond the 90 s after which common clients close
/// an idle connection themselves: if it were the heartbeat's interval, their request would meet our close.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// HTTP/2 pings of an idle connection, and how long their answers may take: a dead peer is noticed in 7 s.
const PING_EVERY: Duration = Duration::from_secs(4);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes of a stream that wait for its client's window: what one that stops reading costs, besides a message.
const SEND_BYTES_MAX: usize = 64 << 10;

/// How long requests under way may go on when this node stops; longer than a call waits for a leader.
const GRACE: Duration = Duration::from_secs(5);

/// Between two attempts to accept when descriptors or memory are short: others have to let go first.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `stop`; connections end on their own tasks of `tracker`, within the grace.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Arc<Limits>,
    stop: CancellationToken,
    tracker: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(limits.connections_max));
    while let Some((stream, peer, place)) = stop.run_until_cancelled(accept(&listener, &places)).await {
        let carry = carry(stream, peer, router.clone(), limits.clone(), stop.clone());
        tracker.spawn(async move {
            carry.await;
            drop(place);
        });
    }
}

/// The next connection, as soon as there is a place for it: until then it waits in the kernel's backlog.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, place),
            Err(error) if is_the_peers(&error) => {
                debug!(%error, "a connection failed before it was accepted")
            }
            Err(error) => {
                warn!(%error, "cannot accept connections");
                sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn carry(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    limits: Arc<Limits>,
    stop: CancellationToken,
) {
    let _ = stream.set_nodelay(true); // Slower without, not wrong.
    // HTTP/1.1 has no pings: what a client does not acknowledge ends its connection.
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(limits.stall_timeout)); // Later without.
    let begun = stop.run_until_cancelled(timeout(limits.head_timeout, begin(stream))).await;
    let Some(Ok(Ok(stream))) = begun else {
        debug!(%peer, "a connection ended before its first request");
        return;
    };
    // HTTP/2 has its pings to notice a dead peer; an HTTP/1.1 client has to ask something.
    let asked = AtomicBool::new(stream.is_http2());
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(Connection { peer, stop: stop.clone() });
        // Gone with the answer's head: a stream would keep the room for it as long as it lasts.
        let answer = Box::pin(router.clone().oneshot(request.map(Body::new)));
        async move { Ok::<Response, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let http = builder(&limits);
    // Over HTTP/1.1 the connection itself makes the stream that may stall; over HTTP/2 each stream has its carrier.
    let serving = http.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(serving);
    let ended = tokio::select! {
        ended = unless_stalled(limits.stall_timeout, connection.as_mut()) => match ended {
            Some(ended) => ended,
            None => return debug!(%peer, "a connection was let go: its client reads no more"),
        },
        () = still_silent(&asked, limits.head_timeout) => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%peer, error, "a connection ended badly");
    }
}

/// Returns after `wait` if nothing has been asked by then; otherwise never.
async fn still_silent(asked: &AtomicBool, wait: Duration) {
    sleep(wait).await;
    if asked.load(Ordering::Relaxed) {
        future::pending::<()>().await;
    }
}

fn builder(limits: &Limits) -> auto::Builder<Carrying> {
    let mut http = auto::Builder::new(Carrying(limits.stall_timeout));
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(limits.head_bytes_max);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(limits.streams_per_connection_max)
        .max_send_buf_size(SEND_BYTES_MAX)
        .max_header_list_size(limits.head_bytes_max as u32);
    http
}

/// Reads until it is clear which protocol this is: hyper would wait for that without an end.
async fn begin(mut stream: TcpStream) -> io::Result<Begun> {
    let mut read = Vec::with_capacity(PREFACE.len());
    while PREFACE.starts_with(&read) && read.len() < PREFACE.len() {
        let room = PREFACE.len() - read.len();
        if (&mut stream).take(room as u64).read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Begun { read, taken: 0, stream })
}

/// A stream whose first bytes have been read, and are read again.
struct Begun {
    read: Vec<u8>,
    /// How much of `read` has been handed out.
    taken: usize,
    stream: TcpStream,
}

impl Begun {
    fn is_http2(&self) -> bool {
        self.read.starts_with(PREFACE)
    }
}

impl AsyncRead for Begun {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = &self.read[self.taken..];
        if left.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, into);
        }
        let count = left.len().min(into.remaining());
        into.put_slice(&left[..count]);
        self.taken += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Begun {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
