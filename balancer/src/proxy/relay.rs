//! Bodies on their way through, piece by piece, never collected: [`Upload`] carries a request to an endpoint,
//! [`Download`] a response to a client.
//!
//! Each reads from one side only when the other has taken everything before, so that a slow reader slows the sender
//! down and nothing piles up here. A head leaves together with what there is of its body.

use std::io;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::AsyncWrite;

use super::buffer::Output;
use super::connection::Client;
use super::deadline;
use super::http1::{Body, Framing, Malformed, Pieces, Request, chunk_head};
use super::retry;
use super::upstream::Link;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

#[cfg(test)]
mod tests;

/// What is written at once: a head, a chunk's head, pieces and end, the end of a body.
struct Slices<'a> {
    list: [&'a [u8]; 24],
    count: usize,
}

impl<'a> Slices<'a> {
    fn new(head: &'a [u8]) -> Slices<'a> {
        let mut slices = Slices { list: [&[]; 24], count: 0 };
        slices.push(head);
        slices
    }

    fn push(&mut self, slice: &'a [u8]) {
        if !slice.is_empty() {
            self.list[self.count] = slice;
            self.count += 1;
        }
    }

    fn push_data(&mut self, pieces: &Pieces, input: &'a [u8], chunk: Option<&'a [u8]>) {
        if !pieces.is_empty() {
            self.push(chunk.unwrap_or_default());
            pieces.iter().for_each(|place| self.push(&input[place]));
            self.push(if chunk.is_some() { b"\r\n" } else { b"" });
        }
    }

    fn push_end(&mut self, trailer: &'a [u8]) {
        self.push(b"0\r\n");
        self.push(trailer);
        self.push(b"\r\n");
    }

    fn list(&self) -> &[&'a [u8]] {
        &self.list[..self.count]
    }
}

/// Ready once the socket has taken everything that waits; any byte it takes is progress.
fn flush(
    cx: &mut Context<'_>,
    output: &mut Output,
    stream: &mut (impl AsyncWrite + Unpin),
    progress: &mut Instant,
) -> Poll<io::Result<()>> {
    let before = output.len();
    let flushed = output.poll_flush(cx, stream);
    if output.len() != before {
        *progress = deadline::now();
    }
    flushed
}

/// How a client failed to send its request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadFailure {
    /// It left.
    Left,
    /// It sent what is not HTTP.
    Malformed(Malformed),
    /// It stayed silent.
    Silent,
}

/// Why an upload does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The client failed.
    Client,
    /// The endpoint takes no more of it. It may still answer.
    Endpoint,
    /// The endpoint took nothing at all.
    Unsent,
}

/// A request on its way to an endpoint, and perhaps to another after that.
pub struct Upload {
    /// The client has sent all of it.
    pub over: bool,
    /// How the client failed, if it did.
    pub failed: Option<UploadFailure>,
    /// Whether it is the client that is being waited for.
    pub waiting: bool,
    /// When something last moved.
    pub progress: Instant,
    /// Bytes of the body that have been sent on.
    pub carried: u64,
    head_sent: bool,
    touched: bool,
    invited: bool,
}

impl Upload {
    /// Nothing has been sent. A request without a body has nothing else to come.
    pub fn new() -> Upload {
        Upload {
            over: false,
            failed: None,
            waiting: false,
            progress: deadline::now(),
            carried: 0,
            head_sent: false,
            touched: false,
            invited: false,
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

    /// The response has begun: an invitation to send the body would stand in the middle of it.
    pub fn answered(&mut self) {
        self.invited = true;
    }

    /// What is left to send.
    pub fn left(&self, request: &Request) -> retry::Upload {
        match (request.framing, self.touched) {
            (Framing::Empty | Framing::Length(0), _) => retry::Upload::None,
            (_, false) => retry::Upload::Untouched,
            (_, true) => retry::Upload::Consumed,
        }
    }

    /// Sends on what there is: `head` first, which is looked at by the first call only, then the body. Ready once all of
    /// it is handed over.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Client,
        request: &mut Request,
        link: &mut Link,
        head: &[u8],
    ) -> Poll<Result<(), Stopped>> {
        let mut pieces = Pieces::default();
        loop {
            self.waiting = false;
            if ready!(flush(cx, &mut link.output, &mut link.stream, &mut self.progress)).is_err() {
                return Poll::Ready(Err(Stopped::Endpoint));
            }
            if self.over {
                return Poll::Ready(Ok(()));
            }
            let has_body = !matches!(request.framing, Framing::Empty | Framing::Length(0));
            let before = (has_body && !self.head_sent).then(|| client.requests.clone());
            pieces.clear();
            let mut consumed = 0;
            if has_body && !client.input.is_empty() {
                match client.requests.advance(client.input.bytes(), request, &mut pieces) {
                    Ok((n, _)) => consumed = n,
                    Err(why) => return self.stop(UploadFailure::Malformed(why)),
                }
            } else if has_body && self.head_sent {
                self.waiting = true;
                if ready!(self.poll_client(cx, client, request)).is_err() {
                    return self.stop(UploadFailure::Left);
                }
                self.progress = deadline::now();
                continue;
            }
            let body = client.requests.body();
            let is_done = body.is_none_or(Body::is_done);
            let mut room = [0; 18];
            let is_chunked = request.framing == Framing::Chunked;
            let chunk = is_chunked.then(|| chunk_head(pieces.len(), &mut room));
            let mut slices = Slices::new(if self.head_sent { &[] } else { head });
            slices.push_data(&pieces, client.input.bytes(), chunk);
            if is_chunked && is_done {
                slices.push_end(body.map(Body::trailer).unwrap_or_default());
            }
            if link.output.send(cx, &mut link.stream, slices.list()).is_err() {
                let Some(before) = before.filter(|_| !self.head_sent) else {
                    return Poll::Ready(Err(if self.head_sent {
                        Stopped::Endpoint
                    } else {
                        Stopped::Unsent
                    }));
                };
                client.requests = before;
                return Poll::Ready(Err(Stopped::Unsent));
            }
            client.input.consume(consumed);
            self.head_sent = true;
            self.touched |= consumed > 0;
            self.carried += pieces.len() as u64;
            self.over = is_done;
            self.progress = deadline::now();
        }
    }

    /// Waits for more of the body, and tells a client that waits to be told.
    fn poll_client(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Client,
        request: &Request,
    ) -> Poll<Result<(), ()>> {
        if request.expects_continue && !self.touched && !std::mem::replace(&mut self.invited, true) {
            client.output.send(cx, &mut client.stream, &[CONTINUE]).map_err(drop)?;
        }
        // A client that does not read may still be sending.
        if let Poll::Ready(Err(_)) = client.output.poll_flush(cx, &mut client.stream) {
            return Poll::Ready(Err(()));
        }
        match ready!(client.input.poll_fill(cx, &mut client.stream)) {
            Ok(1..) => Poll::Ready(Ok(())),
            Ok(0) | Err(_) => Poll::Ready(Err(())),
        }
    }

    fn stop(&mut self, failure: UploadFailure) -> Poll<Result<(), Stopped>> {
        self.failed = Some(failure);
        Poll::Ready(Err(Stopped::Client))
    }
}

/// Why a response does not get to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The client has left or does not read.
    Client,
    /// The endpoint broke off, or sent what is not HTTP.
    Endpoint,
}

/// A response on its way to the client.
pub struct Download {
    /// Whether it is the endpoint that is being waited for.
    pub waiting: bool,
    /// When something last moved.
    pub progress: Instant,
    /// Bytes of the body that have been sent on.
    pub carried: u64,
    body: Body,
    is_chunked: bool,
    head_sent: bool,
    ended: bool,
}

impl Download {
    /// A body that comes framed as `from`, and goes on in chunks or not.
    pub fn new(from: Framing, is_chunked: bool) -> Download {
        Download {
            waiting: false,
            progress: deadline::now(),
            carried: 0,
            body: Body::new(from),
            is_chunked,
            head_sent: false,
            ended: false,
        }
    }

    /// Whether the endpoint's connection is in step: the body had an end of its own.
    pub fn is_in_step(&self) -> bool {
        self.body.is_done()
    }

    /// Sends on what there is: `head` first, which is looked at by the first call only, then the body. Ready once the
    /// client has been sent all of it.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (output, stream): (&mut Output, &mut (impl AsyncWrite + Unpin)),
        link: &mut Link,
        head: &[u8],
    ) -> Poll<Result<(), Broken>> {
        let mut pieces = Pieces::default();
        // `head` is whoever's writes one next: it has to leave now, or to be copied behind what still waits.
        if !self.head_sent && !output.is_empty() {
            if output.send(cx, stream, &[head]).is_err() {
                return Poll::Ready(Err(Broken::Client));
            }
            self.head_sent = true;
        }
        loop {
            self.waiting = false;
            // Not before the head: what TLS has taken may be stuck there, though nothing waits here.
            if self.head_sent && ready!(flush(cx, output, stream, &mut self.progress)).is_err() {
                return Poll::Ready(Err(Broken::Client));
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            pieces.clear();
            let (mut consumed, mut is_end) = (0, false);
            if !self.body.is_done() && !link.input.is_empty() {
                match self.body.decode(link.input.bytes(), &mut pieces) {
                    Ok(n) => consumed = n,
                    Err(_) => return Poll::Ready(Err(Broken::Endpoint)),
                }
            } else if !self.body.is_done() && self.head_sent {
                self.waiting = true;
                match ready!(link.input.poll_fill(cx, &mut link.stream)) {
                    Ok(1..) => {
                        self.progress = deadline::now();
                        continue;
                    }
                    Ok(0) if self.body.ends_with_connection() => is_end = true,
                    Ok(0) | Err(_) => return Poll::Ready(Err(Broken::Endpoint)),
                }
            }
            is_end |= self.body.is_done();
            let mut room = [0; 18];
            let chunk = self.is_chunked.then(|| chunk_head(pieces.len(), &mut room));
            let mut slices = Slices::new(if self.head_sent { &[] } else { head });
            slices.push_data(&pieces, link.input.bytes(), chunk);
            if self.is_chunked && is_end {
                slices.push_end(self.body.trailer());
            }
            if output.send(cx, stream, slices.list()).is_err() {
                return Poll::Ready(Err(Broken::Client));
            }
            link.input.consume(consumed);
            self.head_sent = true;
            self.carried += pieces.len() as u64;
            self.ended = is_end;
            self.progress = deadline::now();
        }
    }
}
