//! A client's socket with the time-outs that the HTTP library does not know.
//!
//! - A request's head has to arrive within one limit counted from its first byte (from accepting, for a
//!   connection's first request), however slowly its bytes trickle in. Between requests the connection may
//!   rest longer; that limit is the library's own.
//! - A write has to make progress: a client that stops reading must not hold an endpoint's response for ever.
//! - When a head was refused or a request was answered before its body had come, what the client is still sending
//!   is read and thrown away for a moment before closing: closing with unread bytes makes the kernel send a
//!   reset, and the client would never see the answer.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// How long and how much is read before closing.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 1024 * 1024;

const RESTING: u8 = 0;
const READING_HEAD: u8 = 1;
const BUSY: u8 = 2;

/// Where a connection is between two requests. Shared by the socket and whoever serves the request, because
/// only the latter knows when one begins and ends.
#[derive(Clone)]
pub struct Phase(Arc<State>);

struct State {
    phase: AtomicU8,
    /// Whether some of the request's body is still to come.
    unread: AtomicBool,
}

impl Phase {
    /// A request's head is complete; a body follows, or not.
    pub fn begin(&self, body_follows: bool) {
        self.set(BUSY);
        self.0.unread.store(body_follows, Ordering::Relaxed);
    }

    /// All of the body has been read.
    pub fn body_read(&self) {
        self.0.unread.store(false, Ordering::Relaxed);
    }

    /// Whether some of the body is still to come. A connection with an answer before that must close after it.
    pub fn is_unread(&self) -> bool {
        self.0.unread.load(Ordering::Relaxed)
    }

    /// Whether a request's head is due: some of it has been read, or the connection has had none yet.
    pub fn is_reading_head(&self) -> bool {
        self.is(READING_HEAD)
    }

    /// Its response has been handed over completely.
    pub fn end(&self) {
        self.set(RESTING);
    }

    fn set(&self, phase: u8) {
        self.0.phase.store(phase, Ordering::Relaxed);
    }

    fn is(&self, phase: u8) -> bool {
        self.0.phase.load(Ordering::Relaxed) == phase
    }
}

/// The limits of a [`Socket`].
#[derive(Clone, Copy)]
pub struct Patience {
    /// For a request's head.
    pub head: Duration,
    /// For progress in writing.
    pub write: Duration,
}

/// See the file's head.
pub struct Socket {
    stream: TcpStream,
    phase: Phase,
    patience: Patience,
    head_until: Instant,
    read_timer: Timer,
    write_timer: Timer,
    linger: Option<(Instant, usize)>,
}

impl Socket {
    /// A connection just accepted: its first head is due.
    pub fn new(stream: TcpStream, patience: Patience) -> (Socket, Phase) {
        let state = State { phase: AtomicU8::new(READING_HEAD), unread: AtomicBool::new(false) };
        let phase = Phase(Arc::new(state));
        let socket = Socket {
            stream,
            phase: phase.clone(),
            patience,
            head_until: Instant::now() + patience.head,
            read_timer: Timer::default(),
            write_timer: Timer::default(),
            linger: None,
        };
        (socket, phase)
    }

    /// What a read of `n` bytes means for the head's limit.
    fn note_read(&mut self, n: usize) {
        if n > 0 && self.phase.is(RESTING) {
            self.phase.set(READING_HEAD);
            self.head_until = Instant::now() + self.patience.head;
        }
    }

    fn write_done<T>(&mut self, result: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.write_timer.stop();
            return result;
        }
        let patience = self.patience.write;
        match self.write_timer.poll(cx, || Instant::now() + patience) {
            Poll::Ready(()) => Poll::Ready(Err(ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Reads and drops what still comes, until the peer closes or it has been enough.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (until, mut left) = self.linger.unwrap_or((Instant::now() + LINGER, LINGER_BYTES_MAX));
        let mut scratch = [0u8; 8192];
        while left > 0 {
            self.linger = Some((until, left));
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    left = left.saturating_sub(buf.filled().len())
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return self.read_timer.poll(cx, || until).map(Ok),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                let n = buf.filled().len() - before;
                self.note_read(n);
                Poll::Ready(result)
            }
            Poll::Pending if self.phase.is(READING_HEAD) => {
                let until = self.head_until;
                ready!(self.read_timer.poll(cx, || until));
                Poll::Ready(Err(ErrorKind::TimedOut.into()))
            }
            Poll::Pending => {
                self.read_timer.stop();
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.write_done(result, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.write_done(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.read_timer.stop();
            if !self.phase.is(READING_HEAD) && !self.phase.is_unread() {
                return Poll::Ready(Ok(()));
            }
        }
        self.poll_linger(cx)
    }
}

/// A timer that costs nothing until something has to wait for it.
#[derive(Default)]
pub struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Forgets the time.
    pub fn stop(&mut self) {
        self.0 = None;
    }

    /// Ready once the time is over that `until` named when this was first polled since [`Timer::stop`].
    pub fn poll(&mut self, cx: &mut Context<'_>, until: impl FnOnce() -> Instant) -> Poll<()> {
        self.0.get_or_insert_with(|| Box::pin(sleep_until(until()))).as_mut().poll(cx)
    }
}
