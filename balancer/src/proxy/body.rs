//! Bodies on their way through, piece by piece, never collected.
//!
//! [`Upload`] is a request's body, which may have to be offered to a second endpoint. [`Download`] is a
//! response's body together with what must happen when it ends: the upstream connection is kept or dropped,
//! the request is counted out and measured. Both give up on a side that stays silent.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Instant;

use super::meter::Meter;
use super::retry;
use super::socket::{Phase, Timer};
use super::upstream::Lease;
use crate::report::Failure;

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other side closed or sent what is not HTTP.
    #[error("the peer broke off")]
    Broken(#[source] hyper::Error),
    /// The other side stayed silent.
    #[error("the peer stayed silent")]
    Silent,
    /// The request's body has meanwhile been offered to another endpoint.
    #[error("the request went elsewhere")]
    Withdrawn,
}

/// A request's body, kept here while attempts come and go. Each attempt gets a [`Share`].
#[derive(Clone)]
pub struct Upload(Option<Rc<RefCell<Source>>>);

struct Source {
    incoming: Incoming,
    phase: Phase,
    patience: Duration,
    timer: Timer,
    /// The attempt that may read; shares of earlier ones are void.
    attempt: u32,
    touched: bool,
    ended: bool,
    failed: Option<UploadFailure>,
    /// Whether it is the client that is being waited for.
    waiting: bool,
    progress: Instant,
}

/// How a client failed to send its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadFailure {
    /// It left, or sent what is not HTTP.
    Broken,
    /// It stayed silent.
    Silent,
}

impl Upload {
    /// Wraps a request's body. `patience` is for the client, from piece to piece; `phase` is told of the end.
    pub fn new(incoming: Incoming, phase: Phase, patience: Duration) -> Upload {
        if incoming.is_end_stream() {
            return Upload(None);
        }
        Upload(Some(Rc::new(RefCell::new(Source {
            incoming,
            phase,
            patience,
            timer: Timer::default(),
            attempt: 0,
            touched: false,
            ended: false,
            failed: None,
            waiting: false,
            progress: Instant::now(),
        }))))
    }

    /// The body for a further attempt. Shares given out before are void from now on.
    pub fn share(&self) -> Share {
        Share(self.0.clone().map(|source| {
            source.borrow_mut().attempt += 1;
            let attempt = source.borrow().attempt;
            (source, attempt)
        }))
    }

    /// What is left to send.
    pub fn left(&self) -> retry::Upload {
        match &self.0 {
            None => retry::Upload::None,
            Some(source) if source.borrow().touched => retry::Upload::Consumed,
            Some(_) => retry::Upload::Untouched,
        }
    }

    /// Whether the client failed to send it.
    pub fn failed(&self) -> Option<UploadFailure> {
        self.0.as_ref().and_then(|source| source.borrow().failed)
    }

    /// Since when, or since `began` if that is later, the endpoint alone is waited for; `None` while it is the
    /// client's turn.
    pub fn handed_over(&self, began: Instant) -> Option<Instant> {
        let Some(source) = &self.0 else { return Some(began) };
        let source = source.borrow();
        (!source.waiting || source.ended).then_some(source.progress.max(began))
    }

    /// Whether all of it has been passed on.
    pub fn is_done(&self) -> bool {
        self.0.as_ref().is_none_or(|source| source.borrow().ended)
    }
}

/// One attempt's hold of an [`Upload`].
pub struct Share(Option<(Rc<RefCell<Source>>, u32)>);

impl Body for Share {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some((source, attempt)) = &self.0 else { return Poll::Ready(None) };
        let mut source = source.borrow_mut();
        if source.attempt != *attempt {
            return Poll::Ready(Some(Err(Error::Withdrawn)));
        }
        source.poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|(source, _)| source.borrow().incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or(SizeHint::with_exact(0), |(source, _)| source.borrow().incoming.size_hint())
    }
}

impl Source {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Poll::Ready(piece) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            self.waiting = true;
            let patience = self.patience;
            ready!(self.timer.poll(cx, || Instant::now() + patience));
            self.failed = Some(UploadFailure::Silent);
            return Poll::Ready(Some(Err(Error::Silent)));
        };
        self.timer.stop();
        self.waiting = false;
        self.touched = true;
        self.progress = Instant::now();
        if piece.is_none() || self.incoming.is_end_stream() {
            self.ended = true;
            self.phase.body_read();
        }
        Poll::Ready(piece.map(|piece| {
            piece.map_err(|e| {
                self.failed = Some(UploadFailure::Broken);
                Error::Broken(e)
            })
        }))
    }
}

/// A response's body.
pub enum Reply {
    /// Made here.
    Own {
        /// The text.
        text: Full<Bytes>,
        /// Ends with it, if it is the last of its request.
        _meter: Option<Meter>,
    },
    /// An endpoint's.
    Upstream(Download),
}

impl Reply {
    /// A body made here.
    pub fn own(text: impl Into<Bytes>, meter: Option<Meter>) -> Reply {
        Reply::Own { text: Full::new(text.into()), _meter: meter }
    }
}

/// How long a response's body may stay silent.
#[derive(Clone, Copy)]
pub struct Patience {
    /// Between two pieces.
    pub idle: Duration,
    /// Whether silence is as it should be. Then its end says nothing about the endpoint.
    pub may_rest: bool,
}

/// A response's body as it arrives. Dropping it before its end closes the upstream connection: the client has
/// left, and the rest would be in the way of the next response.
pub struct Download {
    incoming: Incoming,
    /// Given back when the body ends well.
    lease: Option<Lease>,
    /// The request's body. While some of it is still to be sent, nobody else may use the connection.
    upload: Upload,
    patience: Patience,
    timer: Timer,
    /// Since when the next piece is waited for.
    quiet: Option<Instant>,
    meter: Meter,
}

impl Download {
    /// The body of a response over `lease`.
    pub fn new(
        incoming: Incoming,
        lease: Lease,
        upload: Upload,
        patience: Patience,
        meter: Meter,
    ) -> Download {
        let (lease, timer) = (Some(lease), Timer::default());
        let mut download = Download { incoming, lease, upload, patience, timer, quiet: None, meter };
        download.settle();
        download
    }

    /// Gives the connection back if the body has ended.
    fn settle(&mut self) {
        if self.incoming.is_end_stream() {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if let Some(lease) = self.lease.take().filter(|_| self.upload.is_done()) {
            lease.give_back();
        }
    }

    /// A client that failed to send its body brought the connection to the endpoint down with it.
    fn fail(&mut self, failure: Failure) {
        self.lease = None;
        let may_rest = failure == Failure::Silent && self.patience.may_rest;
        if self.upload.failed().is_none() && !may_rest {
            self.meter.blame(failure);
        }
    }

    /// Ready once the endpoint has been silent for too long. While it waits for the client it may be.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let began = *self.quiet.get_or_insert_with(Instant::now);
        loop {
            let since = self.upload.handed_over(began).unwrap_or_else(Instant::now);
            let until = since + self.patience.idle;
            if until <= Instant::now() {
                return Poll::Ready(());
            }
            ready!(self.timer.poll(cx, || until));
            self.timer.stop();
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let me = &mut *self;
        let Poll::Ready(piece) = Pin::new(&mut me.incoming).poll_frame(cx) else {
            ready!(me.poll_silence(cx));
            me.fail(Failure::Silent);
            return Poll::Ready(Some(Err(Error::Silent)));
        };
        me.timer.stop();
        me.quiet = None;
        match piece {
            None => {
                me.finish();
                Poll::Ready(None)
            }
            Some(Ok(frame)) => {
                me.settle();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(e)) => {
                me.fail(Failure::Broke);
                Poll::Ready(Some(Err(Error::Broken(e))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            Reply::Own { text, .. } => Pin::new(text).poll_frame(cx).map_err(|never| match never {}),
            Reply::Upstream(download) => Pin::new(download).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Reply::Own { text, .. } => text.is_end_stream(),
            Reply::Upstream(download) => download.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Own { text, .. } => text.size_hint(),
            Reply::Upstream(download) => download.size_hint(),
        }
    }
}
