//! A response on its way from the task that makes it to the connection that sends it: its head, then its body, one piece
//! at a time. The next piece is made when the one before was taken, so a slow client slows the endpoint down.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::Response;
use hyper::body::{Body, Frame};

/// The response does not get to its end: the client must notice, so its stream is reset.
#[derive(Debug, thiserror::Error)]
#[error("the response was broken off")]
pub struct Cut;

/// The client has left, or has reset the stream.
#[derive(Debug)]
pub struct Gone;

#[derive(Default)]
struct Shared {
    head: Option<Response<()>>,
    piece: Option<Frame<Bytes>>,
    end: Option<Result<(), Cut>>,
    is_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// The two ends of a new one.
pub fn pipe() -> (Writer, Reader) {
    let shared = Rc::<RefCell<Shared>>::default();
    (Writer(shared.clone()), Reader(shared))
}

/// Where a response is made. Dropping it before the end breaks the response off.
pub struct Writer(Rc<RefCell<Shared>>);

impl Writer {
    /// The response begins.
    pub fn head(&self, head: Response<()>) {
        self.0.borrow_mut().head = Some(head);
        self.wake();
    }

    /// Ready once everything before was taken.
    pub fn poll_taken(&self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let mut shared = self.0.borrow_mut();
        if shared.head.is_none() && shared.piece.is_none() {
            return Poll::Ready(Ok(()));
        }
        if shared.is_gone {
            return Poll::Ready(Err(Gone));
        }
        shared.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The next piece, once everything before was taken.
    pub fn send(&self, piece: Frame<Bytes>) {
        let before = self.0.borrow_mut().piece.replace(piece);
        assert!(before.is_none(), "a piece was sent before the last one was taken");
        self.wake();
    }

    /// Nothing follows.
    pub fn end(&self) {
        self.0.borrow_mut().end.get_or_insert(Ok(()));
        self.wake();
    }

    /// Returns once nobody takes anything any more.
    pub async fn gone(&self) {
        poll_fn(|cx| {
            let mut shared = self.0.borrow_mut();
            if shared.is_gone {
                return Poll::Ready(());
            }
            shared.writer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn wake(&self) {
        if let Some(waker) = self.0.borrow_mut().reader.take() {
            waker.wake();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.borrow_mut().end.get_or_insert(Err(Cut));
        self.wake();
    }
}

/// Where a response is sent on.
pub struct Reader(Rc<RefCell<Shared>>);

impl Reader {
    /// The response, once its head is there.
    pub async fn head(self) -> Result<Response<Reader>, Cut> {
        let head = poll_fn(|cx| {
            let mut shared = self.0.borrow_mut();
            if let Some(head) = shared.head.take() {
                return Poll::Ready(Ok(head));
            }
            if shared.end.is_some() {
                return Poll::Ready(Err(Cut));
            }
            shared.reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await?;
        self.wake();
        Ok(head.map(|()| self))
    }

    fn wake(&self) {
        if let Some(waker) = self.0.borrow_mut().writer.take() {
            waker.wake();
        }
    }
}

impl Body for Reader {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let mut shared = self.0.borrow_mut();
        if let Some(piece) = shared.piece.take() {
            drop(shared);
            self.wake();
            return Poll::Ready(Some(Ok(piece)));
        }
        match shared.end {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(Cut)) => Poll::Ready(Some(Err(Cut))),
            None => {
                shared.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.0.borrow();
        shared.piece.is_none() && matches!(shared.end, Some(Ok(())))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.borrow_mut().is_gone = true;
        self.wake();
    }
}
