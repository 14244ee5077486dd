//! The admin server: is it alive, is it ready, what does it count, whom does it know. For operators and
//! probes; it must not be reachable for strangers.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1::{self, Connection};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::debug;

use crate::control::Catalog;
use crate::metrics::Metrics;
use crate::picker::Strategy;
use crate::table::Table;

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
    /// Whether the balancer is on its way out.
    pub draining: AtomicBool,
}

#[derive(Serialize)]
struct Endpoints<'a> {
    name: &'a str,
    strategy: &'a str,
    revision: u64,
    age_ms: Option<u64>,
    registry: Registry,
    ready: usize,
    endpoints: Vec<Endpoint<'a>>,
}

#[derive(Serialize)]
struct Registry {
    connected: bool,
    endpoint: String,
    transport: String,
}

#[derive(Serialize)]
struct Endpoint<'a> {
    id: &'a str,
    service: &'a str,
    address: &'a str,
    base_path: &'a str,
    state: &'a str,
    why: &'a str,
    in_rotation: bool,
    weight: u32,
    in_flight: u32,
    served: u64,
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
            async move { Ok::<_, Infallible>(admin.answer(request.method(), request.uri().path())) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        builder.max_header_size(HEAD_BYTES_MAX).max_buf_size(HEAD_BYTES_MAX);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = bounded(connection, AGE_MAX, ENDING_MAX).await {
            debug!(%error, "admin connection ended");
        }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match path {
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => self.readiness(),
            "/metrics" => typed(StatusCode::OK, self.exposition(), prometheus::TEXT_FORMAT),
            "/v1/endpoints" => self.endpoints(),
            _ => text(StatusCode::NOT_FOUND, "there are /livez /readyz /metrics /v1/endpoints\n"),
        }
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        if self.draining.load(Ordering::Relaxed) {
            return text(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
        }
        if !self.catalog.is_known() {
            let status = self.catalog.status();
            let what = format!("no catalog yet; last tried registry {}\n", status.endpoint);
            return text(StatusCode::SERVICE_UNAVAILABLE, what);
        }
        text(StatusCode::OK, "ready\n")
    }

    fn endpoints(&self) -> Response<Full<Bytes>> {
        let table = self.table.load();
        let status = self.catalog.status();
        let rotation: HashSet<u64> =
            table.pools.iter().flat_map(|pool| pool.rotation()).map(|e| e.endpoint.key).collect();
        let endpoint = |e: &'_ crate::pool::Entry| rotation.contains(&e.endpoint.key);
        let answer = Endpoints {
            name: &self.name,
            strategy: self.strategy.name(),
            revision: table.revision,
            age_ms: self.catalog.age().map(|age| age.as_millis() as u64),
            registry: Registry {
                connected: status.connected,
                endpoint: status.endpoint,
                transport: format!("{:?}", status.transport).to_lowercase(),
            },
            ready: rotation.len(),
            endpoints: table
                .entries()
                .map(|e| Endpoint {
                    id: &e.endpoint.id,
                    service: &e.endpoint.service,
                    address: &e.endpoint.authority,
                    base_path: &e.endpoint.address.base_path,
                    state: e.standing.name(),
                    why: &e.why,
                    in_rotation: endpoint(e),
                    weight: e.weight,
                    in_flight: e.endpoint.in_flight(),
                    served: e.endpoint.served(),
                })
                .collect(),
        };
        let json = serde_json::to_string_pretty(&answer).unwrap_or_default();
        typed(StatusCode::OK, json + "\n", "application/json")
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

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    typed(status, text, "text/plain; charset=utf-8")
}

fn typed(status: StatusCode, text: impl Into<Bytes>, kind: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
