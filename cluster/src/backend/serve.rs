//! An accept loop that can end: it stops accepting, lets what is in flight finish, and cuts off the rest.
//!
//! # Why not `axum::serve`
//! Its graceful shutdown has no deadline: one slow caller would keep the process for ever.

use std::{
    future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::Router;
use hyper::{
    Request,
    body::Incoming,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

/// Connections at once, so that a flood meets the listen queue and not this process's memory.
const CONNECTIONS_MAX: usize = 4_096;
/// A caller that has not sent its request's head by then is cut off, be it mute from its first byte on.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a request's head; what is longer is refused with 431. As the registry and the balancer have it.
const HEAD_BYTES_MAX: u32 = 64 << 10;
/// Between failed accepts (no file descriptor left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `router` until `stop`, then for at most `grace` what is in flight.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken, grace: Duration) {
    let (graceful, connections) = (GracefulShutdown::new(), TaskTracker::new());
    let cut = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => accepted,
            // Full: look again soon.
            () = tokio::time::sleep(ACCEPT_PAUSE), if connections.len() >= CONNECTIONS_MAX => continue,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(cut.clone().run_until_cancelled_owned(connection(
                    stream,
                    router.clone(),
                    &graceful,
                )));
            }
            Err(error) => {
                debug!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    drop(timeout(grace, graceful.shutdown()).await);
    cut.cancel();
    connections.wait().await;
}

fn connection(
    stream: TcpStream,
    router: Router,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + use<> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    builder.http1().max_buf_size(HEAD_BYTES_MAX as usize);
    builder.http2().timer(TokioTimer::new()).max_header_list_size(HEAD_BYTES_MAX);
    drop(stream.set_nodelay(true));
    let asked = Arc::new(AtomicBool::new(false));
    let service = {
        let (asked, router) = (asked.clone(), TowerToHyperService::new(router));
        service_fn(move |request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            router.call(request)
        })
    };
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let serving = graceful.watch(serving.into_owned());
    async move {
        tokio::select! {
            ended = serving => if let Err(error) = ended {
                debug!(%error, "connection ended");
            },
            () = still_silent(&asked) => debug!("connection without a request"),
        }
    }
}

/// Returns when nothing has been asked in time; otherwise never. hyper's own limit begins only once it is clear
/// which protocol is spoken.
async fn still_silent(asked: &AtomicBool) {
    tokio::time::sleep(HEAD_WITHIN).await;
    if asked.load(Ordering::Relaxed) {
        future::pending::<()>().await;
    }
}
