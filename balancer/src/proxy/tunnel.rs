//! Upgraded connections: bytes both ways until one side is done, or nothing moves for too long.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

/// One side of a tunnel: its socket, and what it sent ahead of the switch.
type Side<'a, S> = (&'a mut S, &'a mut Vec<u8>);

/// Joins both sides, which have switched.
pub async fn run(
    downstream: Side<'_, impl AsyncRead + AsyncWrite + Unpin>,
    upstream: Side<'_, impl AsyncRead + AsyncWrite + Unpin>,
    idle: Duration,
) {
    let last = Rc::new(Cell::new(Instant::now()));
    let mut down = Watched { stream: downstream.0, last: last.clone() };
    let mut up = Watched { stream: upstream.0, last: last.clone() };
    let joined = async {
        up.write_all(downstream.1).await?;
        down.write_all(upstream.1).await?;
        copy_bidirectional(&mut down, &mut up).await
    };
    tokio::select! {
        // An error is one of the sides leaving without a word, which ends the tunnel all the same.
        _ = joined => {}
        () = silence(&last, idle) => debug!("tunnel was idle for too long"),
    }
}

async fn silence(last: &Cell<Instant>, idle: Duration) {
    while last.get().elapsed() < idle {
        sleep_until(last.get() + idle).await;
    }
}

/// Notes when bytes last moved.
struct Watched<'a, S> {
    stream: &'a mut S,
    last: Rc<Cell<Instant>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut *self.stream).poll_read(cx, buf);
        if result.is_ready() {
            self.last.set(Instant::now());
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut *self.stream).poll_write(cx, buf);
        if result.is_ready() {
            self.last.set(Instant::now());
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}
