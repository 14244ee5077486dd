//! What clients see: gRPC, REST and the original's API, all on every client port.
//!
//! `convert` is the one place where the domain meets the wire: messages both ways, and one table from an error to
//! its gRPC status, HTTP status and hints. `grpc`, `rest` and `legacy` only read a request, call one use case and
//! write the answer; `pipeline` does so for many calls of one stream, and `watch` sends changes. `health` and
//! `scrape` answer probes and scrapes. `observe` stands around every request, `serve` carries connections, and
//! `stall` lets go of clients that read no more.

mod convert;
mod grpc;
mod health;
mod legacy;
mod observe;
mod pipeline;
mod reply;
mod request;
mod rest;
mod scrape;
mod serve;
mod stall;
mod watch;

use std::ops::Deref;
use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, Method, Uri};
use axum::middleware;
use axum::response::Response;

use crate::config::Limits;
use crate::metrics::Metrics;
use crate::registry::Registry;
use reply::Problem;

pub use serve::serve;

/// What every handler has at hand. Cheap to clone, and small: every stream holds one.
#[derive(Clone)]
struct Api(Arc<Parts>);

struct Parts {
    registry: Registry,
    limits: Arc<Limits>,
    metrics: Arc<Metrics>,
    heads: watch::Heads,
}

impl Deref for Api {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Everything the client ports serve: REST and gRPC, told apart by path.
pub fn router(registry: Registry, metrics: Arc<Metrics>, limits: Arc<Limits>) -> Router {
    let api = Api(Arc::new(Parts { registry, limits, metrics, heads: watch::Heads::default() }));
    Router::new()
        .merge(rest::routes())
        .merge(legacy::routes())
        .merge(health::routes())
        .merge(grpc::routes(&api))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(api.clone(), observe::observe))
        .with_state(api)
}

async fn no_such_path(uri: Uri, headers: HeaderMap) -> Response {
    let why = format!("{} is not served here", uri.path());
    observe::refuse(observe::is_grpc(&headers), tonic::Code::Unimplemented, Problem::no_such_path(why))
}

async fn no_such_method(method: Method, uri: Uri) -> Problem {
    Problem::no_such_method(format!("{method} is not served on {}", uri.path()))
}
