//! A client's HTTP/1 connection: head after head, each served, until one side has had enough.
//!
//! - A request's head has to be complete within a time from its first byte (from accepting, for a connection's first
//!   request), however slowly its bytes trickle in. Between requests the connection may rest longer.
//! - When a head was refused or a request was answered before its body had come, what the client is still sending is
//!   read and thrown away for a moment before closing: closing with unread bytes makes the kernel send a reset, and
//!   the client would never see the answer.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::AsyncWrite;
use tracing::debug;

use super::buffer::{Input, Output};
use super::deadline::{self, Deadline};
use super::exchange;
use super::headers::{self, Own, Return};
use super::http1::{Event, Framing, Malformed, Pieces, Request, Requests};
use super::http2;
use super::stream::Stream;
use super::worker::Worker;
use crate::route::rewrite::Edits;

/// How long and how much is read before closing.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// On stopping, for a connection whose request is on its way: its client could connect and so counts on an
/// answer. Long enough for a round trip around the world, short beside the grace.
const LAST_CALL: Duration = Duration::from_millis(500);

/// What becomes of a connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It serves another one.
    KeepAlive,
    /// It ends.
    Close,
    /// It ends, and the client may still be sending.
    Linger,
    /// It is broken off: the client must notice that its response is not whole, or has left.
    Cut,
    /// It goes on as HTTP/2, whose preface has come and is still in the input.
    Http2,
}

/// See the file's head.
pub struct Client {
    /// Its socket.
    pub stream: Stream,
    /// What it has sent and nobody has looked at.
    pub input: Input,
    /// What it has not taken yet.
    pub output: Output,
    /// What its bytes mean.
    pub requests: Requests,
    /// For whatever it is waited for, or waits for itself.
    pub deadline: Deadline,
    /// Its address, as text.
    pub address: String,
    worker: Rc<Worker>,
    /// When its next head has to be complete; `None` while it may rest.
    head_until: Option<Instant>,
    /// When it began to rest.
    since: Instant,
    /// Whether no request has been served.
    is_first: bool,
}

enum Next {
    Request,
    Refused(Malformed),
    End,
}

/// Serves `stream` until it ends.
pub async fn serve(worker: Rc<Worker>, stream: Stream, peer: SocketAddr) {
    let now = deadline::now();
    let mut client = Client {
        stream,
        input: Input::new(worker.buffers.clone()),
        output: Output::default(),
        requests: Requests::new(worker.limits.buffer_bytes_max),
        deadline: worker.deadlines.add(),
        address: peer.ip().to_canonical().to_string(),
        head_until: Some(now + worker.limits.header_timeout),
        since: now,
        is_first: true,
        worker,
    };
    let after = loop {
        match client.serve_next().await {
            After::KeepAlive => client.is_first = false,
            After::Http2 => return Box::pin(client.serve_http2()).await,
            after => break after,
        }
    };
    client.end(after).await;
}

impl Client {
    async fn serve_next(&mut self) -> After {
        if !self.rest().await {
            return After::Close;
        }
        // From here on there are bytes of a head; while a connection rests it has none of this.
        let mut request = self.worker.requests.take();
        let next = poll_fn(|cx| self.poll_next(cx, &mut request)).await;
        let after = match next {
            Next::End => After::Close,
            Next::Refused(_) if self.speaks_http2() => After::Http2,
            Next::Refused(why) => self.refuse(why).await,
            Next::Request => {
                let after = exchange::serve(&self.worker.clone(), self, &mut request).await;
                (self.head_until, self.since) = (None, deadline::now());
                after
            }
        };
        self.worker.requests.give_back(request);
        after
    }

    /// Whether it began with the preface of HTTP/2: to HTTP/1 that is a head of an unknown version, so that no other head
    /// has to be looked at for it.
    fn speaks_http2(&self) -> bool {
        self.is_first && self.input.bytes().starts_with(http2::PREFACE_HEAD)
    }

    async fn serve_http2(self) {
        let Client { stream, input, deadline, address, worker, .. } = self;
        deadline.clear();
        let early = input.bytes().to_vec();
        drop(input);
        let scheme = stream.scheme();
        http2::serve(worker, stream, early, http2::Peer { address: address.into(), scheme }).await;
    }

    /// Waits for the first byte of a head. Returns whether there is one.
    async fn rest(&mut self) -> bool {
        poll_fn(|cx| {
            if !self.input.is_empty() {
                return Poll::Ready(true);
            }
            if let Poll::Ready(read) = self.input.poll_fill(cx, &mut self.stream) {
                return Poll::Ready(read.is_ok_and(|n| n > 0));
            }
            let at = self.head_until.unwrap_or(self.since + self.worker.limits.keep_alive);
            self.poll_limit(cx, at).map(|()| false)
        })
        .await
    }

    /// What the client sends next, some of which is there.
    fn poll_next(&mut self, cx: &mut Context<'_>, request: &mut Request) -> Poll<Next> {
        let patience = self.worker.limits.header_timeout;
        let until = *self.head_until.get_or_insert_with(|| deadline::now() + patience);
        loop {
            match self.requests.advance(self.input.bytes(), request, &mut Pieces::default()) {
                Err(why) => return Poll::Ready(Next::Refused(why)),
                Ok((_, Event::Closed)) => return Poll::Ready(Next::End),
                Ok((consumed, event)) => {
                    self.input.consume(consumed);
                    if event == Event::Head {
                        return Poll::Ready(Next::Request);
                    }
                }
            }
            match self.input.poll_fill(cx, &mut self.stream) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return Poll::Ready(Next::End),
                Poll::Pending => return self.poll_limit(cx, until).map(|()| Next::End),
            }
        }
    }

    /// Ready at `at`, or when the worker stops and this connection need not be waited for: it rests after a request,
    /// or has had its last call.
    fn poll_limit(&self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        match self.worker.stopping() {
            Some(_) if self.head_until.is_none() => Poll::Ready(()),
            Some(since) => self.deadline.poll(cx, at.min(since + LAST_CALL)),
            None => self.deadline.poll(cx, at),
        }
    }

    async fn refuse(&mut self, why: Malformed) -> After {
        self.worker.metrics.refused.with_label_values(&["malformed"]).inc();
        debug!(peer = self.address, %why, "refused a request");
        if let Some(sight) = &self.worker.sight {
            sight.refused(&self.address, why.status().as_u16(), &why.to_string());
        }
        let text = format!("Bad request: {why}");
        let own =
            Own { status: why.status(), kind: headers::PLAIN, text: text.as_bytes(), id: None, more: &[] };
        self.answer(&own, true, false, false).await;
        After::Linger
    }

    /// Sends an answer of the balancer's own. Returns whether the client took it.
    pub async fn answer(&mut self, own: &Own<'_>, is_1_1: bool, keep_alive: bool, head_only: bool) -> bool {
        let bytes = self.own_bytes(own, is_1_1, keep_alive, head_only);
        let until = deadline::now() + self.worker.limits.body_idle;
        let mut begun = false;
        poll_fn(|cx| {
            if !std::mem::replace(&mut begun, true)
                && self.output.send(cx, &mut self.stream, &[&bytes]).is_err()
            {
                return Poll::Ready(false);
            }
            match self.output.poll_flush(cx, &mut self.stream) {
                Poll::Ready(taken) => Poll::Ready(taken.is_ok()),
                Poll::Pending => self.deadline.poll(cx, until).map(|()| false),
            }
        })
        .await
    }

    fn own_bytes(&self, own: &Own<'_>, is_1_1: bool, keep_alive: bool, head_only: bool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(own.text.len() + 256);
        let date = self.worker.date();
        let framing = Framing::Length(own.text.len() as u64);
        let to = Return {
            is_1_1,
            framing,
            keep_alive,
            session: None,
            upgrade: None,
            edits: &Edits::NONE,
            date: &date,
        };
        headers::own(own, &to, head_only, &mut bytes);
        bytes
    }

    async fn end(&mut self, after: After) {
        match after {
            After::Cut => {
                // A body that ends with the connection would look whole.
                let _ = socket2::SockRef::from(self.stream.socket()).set_linger(Some(Duration::ZERO));
            }
            After::Close | After::KeepAlive | After::Http2 => {
                self.shut().await;
                if !self.input.is_empty() {
                    self.linger().await;
                }
            }
            After::Linger => {
                self.shut().await;
                self.linger().await;
            }
        }
    }

    /// Says that nothing more comes. TLS says so with a message of its own, which the client may not take.
    async fn shut(&mut self) {
        let until = deadline::now() + LINGER;
        poll_fn(|cx| match Pin::new(&mut self.stream).poll_shutdown(cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => self.deadline.poll(cx, until),
        })
        .await;
    }

    /// Reads and drops what still comes, until the client closes or it has been enough.
    async fn linger(&mut self) {
        let (until, mut left) = (deadline::now() + LINGER, LINGER_BYTES_MAX);
        poll_fn(|cx| {
            while left > 0 {
                self.input.consume(self.input.bytes().len());
                match self.input.poll_fill(cx, &mut self.stream) {
                    Poll::Ready(Ok(n @ 1..)) => left = left.saturating_sub(n),
                    Poll::Ready(_) => break,
                    Poll::Pending => return self.deadline.poll(cx, until),
                }
            }
            Poll::Ready(())
        })
        .await;
    }
}
