//! Guards the peers' port: so many connections and no more, and none that says nothing.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::{debug, warn};

use crate::config::Limits;

/// Between two attempts to accept when descriptors or memory are short: others have to let go first.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// A peer's connection and its place among them.
pub struct Peer {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

/// The connections on `listener`, each once its first byte has come, until `stop`.
pub fn accept(
    listener: TcpListener,
    limits: &Limits,
    tracker: &TaskTracker,
    stop: CancellationToken,
) -> impl Stream<Item = io::Result<Peer>> + use<> {
    let (ready, begun) = mpsc::channel(1);
    let (max, first_byte) = (limits.peer_connections_max, limits.head_timeout);
    let tasks = tracker.clone();
    tracker.spawn(async move {
        let places = Arc::new(Semaphore::new(max));
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    debug!(%error, "a peer's connection could not be accepted");
                    sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                warn!(max, "too many connections on the peers' port: one is closed (--peer-connections-max)");
                continue;
            };
            let (ready, stop) = (ready.clone(), stop.clone());
            tasks.spawn(async move {
                let _ = stream.set_nodelay(true); // slower without, not wrong
                let spoke = timeout(first_byte, stream.peek(&mut [0])).await;
                if matches!(spoke, Ok(Ok(1))) {
                    stop.run_until_cancelled(ready.send(Ok(Peer { stream, _place: place }))).await;
                }
            });
        }
    });
    ReceiverStream::new(begun)
}

impl Connected for Peer {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
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
