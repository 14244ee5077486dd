//! Bytes on their way: what has been read and not been used, what has been written and not been taken.
//!
//! A connection that rests holds no buffer: a large one is borrowed from the worker for as long as bytes are in it.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Room beyond the longest head, so that a page of 64 KiB and its head come in one read.
const ROOM: usize = 4 * 1024;

/// Buffers kept for later. Each read that is under way has one; more than this rarely are at once.
const KEPT_MAX: usize = 64;

/// What waits for more is copied out of a large buffer if it is no longer than this.
const SMALL_MAX: usize = 8 * 1024;

/// Slices written at once.
const SLICES_MAX: usize = 24;

/// Several slices that are together no longer than this are put into one: copying them costs less than it costs the
/// kernel to walk them.
const GATHERED_MAX: usize = 4 * 1024;

thread_local! {
    static GATHERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The large buffers of one worker.
pub struct Buffers {
    free: RefCell<Vec<Box<[u8]>>>,
    size: usize,
}

impl Buffers {
    /// Buffers that have room for a head of `head_bytes_max` and more.
    pub fn new(head_bytes_max: usize) -> Rc<Buffers> {
        Rc::new(Buffers { free: RefCell::default(), size: head_bytes_max + ROOM })
    }

    fn take(&self) -> Box<[u8]> {
        self.free.borrow_mut().pop().unwrap_or_else(|| vec![0; self.size].into_boxed_slice())
    }

    fn give_back(&self, buffer: Box<[u8]>) {
        let mut free = self.free.borrow_mut();
        if free.len() < KEPT_MAX {
            free.push(buffer);
        }
    }
}

/// What has been read from a socket and not been used.
pub struct Input {
    home: Rc<Buffers>,
    /// Holds the bytes if it is there, else `small` does.
    large: Option<Box<[u8]>>,
    small: Vec<u8>,
    from: usize,
    to: usize,
}

impl Input {
    /// Nothing yet.
    pub fn new(home: Rc<Buffers>) -> Input {
        Input { home, large: None, small: Vec::new(), from: 0, to: 0 }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.large {
            Some(large) => &large[self.from..self.to],
            None => &self.small[self.from..],
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    /// The first `n` bytes have been used.
    pub fn consume(&mut self, n: usize) {
        self.from += n;
        assert!(self.from <= self.small.len().max(self.to), "used {n} bytes beyond what was read");
        if self.is_empty() {
            self.release();
        }
    }

    /// Reads once. Ready with 0 at the end of the stream, or if there is no room because nothing was used.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Poll<io::Result<usize>> {
        self.make_room();
        let large = self.large.as_mut().expect("room was made in it");
        let mut free = ReadBuf::new(&mut large[self.to..]);
        let result = Pin::new(stream).poll_read(cx, &mut free);
        let read = free.filled().len();
        self.to += read;
        match result {
            Poll::Ready(Ok(())) if read > 0 => return Poll::Ready(Ok(read)),
            _ => self.settle(),
        }
        result.map_ok(|()| 0)
    }

    fn make_room(&mut self) {
        let large = match &mut self.large {
            Some(large) => large,
            None => {
                let mut large = self.home.take();
                let small = &self.small[self.from..];
                large[..small.len()].copy_from_slice(small);
                (self.from, self.to) = (0, small.len());
                self.small = Vec::new();
                self.large.insert(large)
            }
        };
        if self.to == large.len() {
            large.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
    }

    /// Something is waited for: a large buffer is of use to others meanwhile.
    fn settle(&mut self) {
        let len = self.bytes().len();
        if len == 0 {
            self.release();
        } else if len <= SMALL_MAX {
            let small = self.bytes().to_vec();
            self.release();
            self.small = small;
        }
    }

    fn release(&mut self) {
        if let Some(large) = self.large.take() {
            self.home.give_back(large);
        }
        self.small = Vec::new();
        (self.from, self.to) = (0, 0);
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.release();
    }
}

/// What has been written and the socket has not taken yet.
#[derive(Default)]
pub struct Output {
    waiting: Vec<u8>,
    from: usize,
}

impl Output {
    /// Whether the socket has taken everything.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes that the socket has not taken.
    pub fn len(&self) -> usize {
        self.waiting.len() - self.from
    }

    /// Writes `slices`, after everything before them, and keeps what the socket does not take now. Ready with the
    /// number of bytes of them that it took. Nothing may be waiting if there are to be no copies: see
    /// [`Output::poll_flush`].
    pub fn send(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncWrite + Unpin),
        slices: &[&[u8]],
    ) -> io::Result<usize> {
        let mut taken = 0;
        if self.is_empty() {
            let len: usize = slices.iter().map(|slice| slice.len()).sum();
            if len == 0 {
                return Ok(0);
            }
            if let Poll::Ready(result) = write(cx, stream, slices, len) {
                taken = result?;
            }
            if taken == len {
                return Ok(taken);
            }
        }
        let mut skip = taken;
        for slice in slices {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            self.waiting.extend_from_slice(&slice[skipped..]);
        }
        Ok(taken)
    }

    /// Ready once the socket has taken everything, also what TLS has made of it.
    pub fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        while self.from < self.waiting.len() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, &self.waiting[self.from..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.from += n,
            }
        }
        if !self.is_empty() {
            *self = Output::default();
        }
        Pin::new(stream).poll_flush(cx)
    }
}

/// Writes `slices`, `len` bytes, with one call.
fn write(
    cx: &mut Context<'_>,
    stream: &mut (impl AsyncWrite + Unpin),
    slices: &[&[u8]],
    len: usize,
) -> Poll<io::Result<usize>> {
    let stream = Pin::new(stream);
    if let [one] = slices {
        return stream.poll_write(cx, one);
    }
    if len <= GATHERED_MAX {
        return GATHERED.with_borrow_mut(|gathered| {
            gathered.clear();
            slices.iter().for_each(|slice| gathered.extend_from_slice(slice));
            stream.poll_write(cx, gathered)
        });
    }
    let mut room = [IoSlice::new(&[]); SLICES_MAX];
    let count = slices.len().min(SLICES_MAX);
    room.iter_mut().zip(slices).for_each(|(room, slice)| *room = IoSlice::new(slice));
    stream.poll_write_vectored(cx, &room[..count])
}
