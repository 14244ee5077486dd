//! The bytes of a client's HTTP/2 connection, on their way to hyper: what had been read before it was known to be
//! HTTP/2 first, and a count of frames that ask for nothing.
//!
//! h2 bounds what it keeps: streams, heads and their CONTINUATIONs, resets of streams that nobody saw. What it does not
//! bound is work: PINGs, SETTINGS, PRIORITYs, empty DATA, resets of streams that are being served (CVE-2019-9511 to 9518,
//! CVE-2023-44487). Each costs the client nine bytes, and us an answer or a request cancelled.
//!
//! Each such frame costs a credit. Credits come with time, and with what is sent to the client: one that is sent much
//! has reason to measure its line and to open its windows often. A connection without credit is closed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::deadline;

/// Credits that a connection begins with, and can save. A client that opens a thousand streams and changes its mind on
/// each of them is within it.
const CREDITS_MAX: f64 = 2000.0;

/// Credits that come with time: each second.
const CREDITS_PER_SECOND: f64 = 200.0;

/// Credits that come with each byte that is sent to the client. An answer to a PING is 17 bytes, and must not pay for
/// the next one.
const CREDITS_PER_BYTE: f64 = 1.0 / 64.0;

/// `PRI * HTTP/2.0`, two empty lines and `SM` between them.
const PREFACE_BYTES: usize = 24;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const PADDED: u8 = 0x8;

/// Data with as much padding as there can be is still data.
const PADDED_BYTES_MAX: usize = 256;

/// Counts frames.
#[derive(Debug)]
pub struct Frames {
    /// Bytes that are no frame's head: the preface's, or a payload's.
    skip: usize,
    head: [u8; 9],
    have: usize,
    credits: f64,
    at: Instant,
}

impl Frames {
    /// A connection that begins at `now`.
    pub fn new(now: Instant) -> Frames {
        Frames { skip: PREFACE_BYTES, head: [0; 9], have: 0, credits: CREDITS_MAX, at: now }
    }

    /// `bytes` have come, by `now`. Returns whether the connection may go on.
    pub fn received(&mut self, mut bytes: &[u8], now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.earn(elapsed * CREDITS_PER_SECOND);
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = bytes.len().min(self.head.len() - self.have);
            if self.skip == 0 {
                self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
                self.have += taken;
                bytes = &bytes[taken..];
            }
            if self.have == self.head.len() {
                self.credits -= self.cost();
                (self.skip, self.have) = (self.payload(), 0);
            }
        }
        self.credits >= 0.0
    }

    /// So many bytes have been sent.
    pub fn sent(&mut self, bytes: usize) {
        self.earn(bytes as f64 * CREDITS_PER_BYTE);
    }

    fn earn(&mut self, credits: f64) {
        self.credits = (self.credits + credits).min(CREDITS_MAX);
    }

    fn payload(&self) -> usize {
        let [a, b, c, ..] = self.head;
        u32::from_be_bytes([0, a, b, c]) as usize
    }

    /// What the frame costs whose head is there.
    fn cost(&self) -> f64 {
        let (kind, flags) = (self.head[3], self.head[4]);
        let is_padding = flags & PADDED != 0 && self.payload() <= PADDED_BYTES_MAX;
        let is_free = match kind {
            DATA => flags & END_STREAM != 0 || self.payload() > 0 && !is_padding,
            // Streams and heads are bounded by h2.
            HEADERS | CONTINUATION => true,
            _ => false,
        };
        if is_free { 0.0 } else { 1.0 }
    }
}

/// See the file's head.
pub struct Watched<S> {
    stream: S,
    early: Vec<u8>,
    given: usize,
    frames: Frames,
}

impl<S> Watched<S> {
    /// A connection that began at `now`, of which `early` has been read.
    pub fn new(stream: S, early: Vec<u8>, now: Instant) -> Watched<S> {
        Watched { stream, early, given: 0, frames: Frames::new(now) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = &mut *self;
        let before = buf.filled().len();
        if me.given < me.early.len() {
            let given = buf.remaining().min(me.early.len() - me.given);
            buf.put_slice(&me.early[me.given..me.given + given]);
            me.given += given;
            if me.given == me.early.len() {
                (me.early, me.given) = (Vec::new(), 0);
            }
        } else {
            ready!(Pin::new(&mut me.stream).poll_read(cx, buf))?;
        }
        match me.frames.received(&buf.filled()[before..], deadline::now()) {
            true => Poll::Ready(Ok(())),
            false => Poll::Ready(Err(io::Error::other("too many frames that ask for nothing"))),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.frames.sent(sent);
        Poll::Ready(Ok(sent))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.frames.sent(sent);
        Poll::Ready(Ok(sent))
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
