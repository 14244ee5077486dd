//! Bodies between a client's HTTP/2 stream and an endpoint's HTTP/1 connection, piece by piece, never collected:
//! [`Upload`] carries a request, [`Download`] a response.
//!
//! Each reads from one side only when the other has taken everything before; what is not read stays within the
//! stream's window, and so the sender waits.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as _, Frame, Incoming};

use super::heads;
use super::pipe::Writer;
use crate::proxy::deadline;
use crate::proxy::http1::{Body, Framing, Malformed, Pieces, Request, chunk_head};
use crate::proxy::relay::{Broken, Stopped, UploadFailure};
use crate::proxy::retry;
use crate::proxy::upstream::Link;

/// What a client's stream brings of a request's body.
pub struct Source {
    incoming: Incoming,
    /// How long it says that it is.
    length: Option<u64>,
    /// How long it was so far.
    received: u64,
    /// Lines of HTTP/1.
    trailer: Vec<u8>,
    ended: bool,
}

impl Source {
    /// The body of `request`.
    pub fn new(incoming: Incoming, request: &Request) -> Source {
        let length = match request.framing {
            Framing::Length(length) => Some(length),
            _ => None,
        };
        let ended = has_no_body(request);
        Source { incoming, length, received: 0, trailer: Vec::new(), ended }
    }

    /// The next data; nothing at the end.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, UploadFailure>> {
        while !self.ended {
            let Some(frame) = ready!(Pin::new(&mut self.incoming).poll_frame(cx)) else {
                self.end()?;
                break;
            };
            match frame.map_err(|_| UploadFailure::Left)?.into_data() {
                Ok(data) => {
                    self.received += data.len() as u64;
                    if self.length.is_some_and(|length| self.received > length) {
                        return Poll::Ready(Err(UploadFailure::Malformed(Malformed::Length)));
                    }
                    if self.incoming.is_end_stream() {
                        self.end()?;
                    }
                    if !data.is_empty() {
                        return Poll::Ready(Ok(Some(data)));
                    }
                }
                Err(frame) => {
                    if let Some(trailers) = frame.trailers_ref() {
                        self.trailer = heads::trailer(trailers).map_err(UploadFailure::Malformed)?;
                    }
                    self.end()?;
                }
            }
        }
        Poll::Ready(Ok(None))
    }

    fn end(&mut self) -> Result<(), UploadFailure> {
        self.ended = true;
        match self.length {
            Some(length) if length != self.received => Err(UploadFailure::Malformed(Malformed::Length)),
            _ => Ok(()),
        }
    }
}

fn has_no_body(request: &Request) -> bool {
    matches!(request.framing, Framing::Empty | Framing::Length(0))
}

/// A request on its way to an endpoint, and perhaps to another after that.
pub struct Upload {
    /// The endpoint has been sent all of it.
    pub over: bool,
    /// How the client failed, if it did.
    pub failed: Option<UploadFailure>,
    /// Whether it is the client that is being waited for.
    pub waiting: bool,
    /// When something last moved.
    pub progress: Instant,
    /// Bytes of the body that have been sent on.
    pub carried: u64,
    source: Source,
    /// Has come, and was not sent.
    held: Option<Bytes>,
    head_sent: bool,
    touched: bool,
}

impl Upload {
    /// Nothing has been sent.
    pub fn new(source: Source) -> Upload {
        Upload {
            over: false,
            failed: None,
            waiting: false,
            progress: deadline::now(),
            carried: 0,
            source,
            held: None,
            head_sent: false,
            touched: false,
        }
    }

    /// It begins anew, at another endpoint or on another connection.
    pub fn restart(&mut self) {
        self.head_sent = false;
        self.over = false;
        self.progress = deadline::now();
    }

    /// Whether something is still to be done for it over `link`.
    pub fn goes_on(&self, link: &Link) -> bool {
        !self.over || !link.output.is_empty()
    }

    /// What is left to send.
    pub fn left(&self, request: &Request) -> retry::Upload {
        match (has_no_body(request), self.touched) {
            (true, _) => retry::Upload::None,
            (false, false) => retry::Upload::Untouched,
            (false, true) => retry::Upload::Consumed,
        }
    }

    /// Sends on what there is: `head` first, which is looked at by the first call only, then the body. Ready once all of
    /// it is handed over.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        request: &Request,
        link: &mut Link,
        head: &[u8],
    ) -> Poll<Result<(), Stopped>> {
        loop {
            self.waiting = false;
            let before = link.output.len();
            let flushed = link.output.poll_flush(cx, &mut link.stream);
            if link.output.len() != before {
                self.progress = deadline::now();
            }
            if ready!(flushed).is_err() {
                return Poll::Ready(Err(Stopped::Endpoint));
            }
            if self.over {
                return Poll::Ready(Ok(()));
            }
            if self.held.is_none() {
                match self.source.poll_data(cx) {
                    Poll::Ready(Ok(data)) => self.held = data,
                    Poll::Ready(Err(failure)) => {
                        self.failed = Some(failure);
                        return Poll::Ready(Err(Stopped::Client));
                    }
                    Poll::Pending if self.head_sent => {
                        self.waiting = true;
                        return Poll::Pending;
                    }
                    // The head goes ahead.
                    Poll::Pending => {}
                }
            }
            if self.send(cx, request, link, if self.head_sent { &[] } else { head }).is_err() {
                let stopped = if self.head_sent { Stopped::Endpoint } else { Stopped::Unsent };
                return Poll::Ready(Err(stopped));
            }
        }
    }

    fn send(
        &mut self,
        cx: &mut Context<'_>,
        request: &Request,
        link: &mut Link,
        head: &[u8],
    ) -> std::io::Result<()> {
        let data = self.held.as_deref().unwrap_or_default();
        let is_chunked = request.framing == Framing::Chunked;
        let mut room = [0; 18];
        let (before, after): (&[u8], &[u8]) = match is_chunked && !data.is_empty() {
            true => (chunk_head(data.len(), &mut room), b"\r\n"),
            false => (b"", b""),
        };
        let (zero, end): (&[u8], &[u8]) =
            if is_chunked && self.source.ended { (b"0\r\n", b"\r\n") } else { (b"", b"") };
        let trailer: &[u8] = if zero.is_empty() { b"" } else { &self.source.trailer };
        let slices = [head, before, data, after, zero, trailer, end];
        link.output.send(cx, &mut link.stream, &slices)?;
        self.carried += data.len() as u64;
        self.touched |= !data.is_empty();
        self.held = None;
        self.head_sent = true;
        self.over = self.source.ended;
        self.progress = deadline::now();
        Ok(())
    }
}

/// A response on its way to the client. Its head has been handed over.
pub struct Download {
    /// Whether it is the endpoint that is being waited for.
    pub waiting: bool,
    /// When something last moved.
    pub progress: Instant,
    /// Bytes of the body that have been handed over.
    pub carried: u64,
    body: Body,
    ended: bool,
}

impl Download {
    /// A body that comes framed as `from`.
    pub fn new(from: Framing) -> Download {
        Download {
            waiting: false,
            progress: deadline::now(),
            carried: 0,
            body: Body::new(from),
            ended: false,
        }
    }

    /// Whether the endpoint's connection is in step: the body had an end of its own.
    pub fn is_in_step(&self) -> bool {
        self.body.is_done()
    }

    /// Hands on what there is. Ready once all of it was taken.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        writer: &Writer,
        link: &mut Link,
    ) -> Poll<Result<(), Broken>> {
        let mut pieces = Pieces::default();
        loop {
            self.waiting = false;
            if ready!(writer.poll_taken(cx)).is_err() {
                return Poll::Ready(Err(Broken::Client));
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            pieces.clear();
            let mut is_end = self.body.is_done();
            if !is_end && link.input.is_empty() {
                self.waiting = true;
                match ready!(link.input.poll_fill(cx, &mut link.stream)) {
                    Ok(1..) => {}
                    Ok(0) if self.body.ends_with_connection() => is_end = true,
                    Ok(0) | Err(_) => return Poll::Ready(Err(Broken::Endpoint)),
                }
            }
            self.progress = deadline::now();
            if !self.body.is_done() && !is_end {
                let decoded = self.body.decode(link.input.bytes(), &mut pieces);
                let consumed = decoded.map_err(|_| Broken::Endpoint)?;
                self.hand_over(writer, &pieces, link.input.bytes());
                link.input.consume(consumed);
                is_end = self.body.is_done();
            }
            if is_end {
                self.end(writer, !pieces.is_empty())?;
            }
        }
    }

    fn hand_over(&mut self, writer: &Writer, pieces: &Pieces, input: &[u8]) {
        if pieces.is_empty() {
            return;
        }
        let mut data = BytesMut::with_capacity(pieces.len());
        pieces.iter().for_each(|place| data.extend_from_slice(&input[place]));
        self.carried += data.len() as u64;
        writer.send(Frame::data(data.freeze()));
    }

    /// The body is complete; its trailers follow, once what was handed over has been taken.
    fn end(&mut self, writer: &Writer, hands_over: bool) -> Result<(), Broken> {
        if !self.body.trailer().is_empty() {
            if hands_over {
                return Ok(());
            }
            let trailers = heads::fields(self.body.trailer()).ok_or(Broken::Endpoint)?;
            writer.send(Frame::trailers(trailers));
        }
        writer.end();
        self.ended = true;
        Ok(())
    }
}
