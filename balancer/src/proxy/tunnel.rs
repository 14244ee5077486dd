//! Upgraded connections: bytes both ways until one side is done, or nothing moves for too long.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::meter::Meter;

/// Joins both sides once both have switched. `meter` is held as long as the tunnel stands.
pub async fn run(downstream: OnUpgrade, upstream: OnUpgrade, idle: Duration, meter: Meter) {
    let (downstream, upstream) = match tokio::try_join!(downstream, upstream) {
        Ok(both) => both,
        Err(error) => return debug!(%error, "upgrade failed"),
    };
    let last = Rc::new(Cell::new(Instant::now()));
    let mut downstream = Watched { io: TokioIo::new(downstream), last: last.clone() };
    let mut upstream = Watched { io: TokioIo::new(upstream), last: last.clone() };
    let copying = copy_bidirectional(&mut downstream, &mut upstream);
    tokio::select! {
        // An error is one of the sides leaving without a word, which ends the tunnel all the same.
        _ = copying => {}
        () = silence(&last, idle) => debug!("tunnel was idle for too long"),
    }
    drop(meter);
}

async fn silence(last: &Cell<Instant>, idle: Duration) {
    while last.get().elapsed() < idle {
        sleep_until(last.get() + idle).await;
    }
}

/// Notes when bytes last moved.
struct Watched {
    io: TokioIo<Upgraded>,
    last: Rc<Cell<Instant>>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        if result.is_ready() {
            self.last.set(Instant::now());
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        if result.is_ready() {
            self.last.set(Instant::now());
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
