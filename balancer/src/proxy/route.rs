//! Where a request belongs, by its method and target alone. Pure.
//!
//! Without configured routes everything is one route over one pool of all instances, as in the original.

use http::Method;

#[cfg(test)]
mod tests;

/// The pattern of the route that takes everything; metrics call it by this name.
pub const ALL: &str = "/";

/// The balancer's own metrics, on the data port because that is where old scrape configurations look.
const METRICS: &str = "/metrics";

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed {
    /// Answer with the balancer's own metrics.
    OwnMetrics,
    /// Send it to the pool; the text is the route's pattern.
    Pool(&'static str),
    /// A method that asks for a proxy of another kind.
    Unsupported,
}

/// Routes a request by its method and the path of its target.
pub fn route(method: &Method, path: &str) -> Routed {
    match (method, path) {
        (&Method::CONNECT, _) => Routed::Unsupported,
        (&Method::GET | &Method::HEAD, METRICS) => Routed::OwnMetrics,
        _ => Routed::Pool(ALL),
    }
}
