//! The admin server: is it alive, is it ready, what does it count, whom does it know, and a page for people. For
//! operators and probes; it must not be reachable for strangers.
//!
//! Plain hyper and a table of paths: with a dozen of them, none with a body, a framework would be more than what it saves.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1::{self, Connection};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::config::Reloader;
use crate::control::Catalog;
use crate::metrics::Metrics;
use crate::picker::Strategy;
use crate::table::Table;

mod api;
mod origin;
mod problem;
mod query;
mod views;

#[cfg(test)]
mod tests;

/// Connections at a time. Operators and scrapers are few; whoever opens more has to wait.
const CONNECTIONS_MAX: usize = 64;

/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// For a request's head, and for a connection at rest.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection older than this ends after its response. So a peer that asks and never reads gives its place
/// back; a scraper connects anew.
const AGE_MAX: Duration = Duration::from_secs(60);

/// For that last response.
const ENDING_MAX: Duration = Duration::from_secs(5);

/// What the admin server tells of.
pub struct Admin {
    /// Of this balancer.
    pub name: String,
    /// How endpoints are picked.
    pub strategy: Strategy,
    /// The latest table.
    pub table: Arc<ArcSwap<Table>>,
    /// Where it comes from.
    pub catalog: Catalog,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Counts picks, over all workers.
    pub turn: Arc<AtomicUsize>,
    /// When the process began.
    pub started: Instant,
    /// Reads the configuration anew.
    pub reloader: Arc<Reloader>,
    /// Cancelled to make the balancer stop gracefully, as SIGTERM does.
    pub drain: CancellationToken,
    /// How long requests in flight have then.
    pub drain_grace: Duration,
    /// Whether the balancer is on its way out.
    pub draining: AtomicBool,
}

impl Admin {
    /// The exposition of all metrics, as of now.
    pub fn exposition(&self) -> String {
        self.metrics.render(&self.table.load(), self.catalog.age())
    }

    /// Serves `listener` for ever.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok((stream, _)) => {
                    let admin = self.clone();
                    tokio::spawn(async move {
                        admin.connection(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    debug!(%error, "cannot accept an admin connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: tokio::net::TcpStream) {
        let service = service_fn(move |request: Request<Incoming>| {
            let admin = self.clone();
            async move { Ok::<_, Infallible>(api::answer(&admin, &request)) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        builder.max_header_size(HEAD_BYTES_MAX).max_buf_size(HEAD_BYTES_MAX);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = bounded(connection, AGE_MAX, ENDING_MAX).await {
            debug!(%error, "admin connection ended");
        }
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Why no requests should be sent here; `None` if they may.
    fn unready(&self) -> Option<String> {
        if self.is_draining() {
            return Some("draining".to_owned());
        }
        let tried = || format!("no catalog yet; last tried registry {}", self.catalog.status().endpoint);
        (!self.catalog.is_known()).then(tried)
    }

    fn age_ms(&self) -> Option<u64> {
        self.catalog.age().map(|age| age.as_millis() as u64)
    }
}

/// Serves `connection` for `age` at most; what is under way then has `ending`.
async fn bounded<I, S>(connection: Connection<I, S>, age: Duration, ending: Duration) -> hyper::Result<()>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: HttpService<Incoming, ResBody = Full<Bytes>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    tokio::pin!(connection);
    if let Ok(ended) = tokio::time::timeout(age, connection.as_mut()).await {
        return ended;
    }
    connection.as_mut().graceful_shutdown();
    tokio::time::timeout(ending, connection).await.unwrap_or(Ok(()))
}
