//! Every metric of this process, in one struct that is built in `run.rs` and handed down.
//!
//! The names, labels and buckets of the `loadbalancer_` metrics are the original's and never change: old
//! dashboards query them. Their label values are bounded: path is the matched route, method one of a closed
//! set, and the series of a backend go when the backend goes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::core::{Collector, Metric};
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::pool::{Pool, Standing};
use crate::route::{Route, Routes};
use crate::table::Table;

mod traffic;

pub use traffic::{Bucket, RouteTraffic, Traffic};

/// `backend_id` of requests that no backend took.
pub const NO_BACKEND: &str = "none";

/// Methods with a series of their own.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"];

/// Why an attempt was followed by another.
pub const RETRY_REASONS: [&str; 4] = ["connect", "unsent", "stale", "broke"];

/// Why a request was refused without asking an endpoint.
pub const REFUSAL_REASONS: [&str; 9] =
    ["malformed", "method", "no_endpoint", "full", "waited", "handshake", "no_route", "path", "rate_limit"];

const REQUEST_LABELS: [&str; 5] = ["path", "method", "status", "backend_id", "strategy"];
const BACKEND_LABELS: [&str; 2] = ["backend_host", "backend_id"];
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// All metrics. Fields that need more than `inc` or `set` are private behind a method.
pub struct Metrics {
    registry: Registry,
    request_duration: HistogramVec,
    requests: IntCounterVec,
    backend_status: IntGaugeVec,
    backend_active: IntGaugeVec,
    endpoints: IntGaugeVec,
    pool_revision: IntGauge,
    pool_age: Gauge,
    /// Attempts beyond a request's first, by why the one before failed.
    pub retries: IntCounterVec,
    /// Requests that failed because further attempts would have been too many.
    pub retries_unaffordable: IntCounter,
    /// Requests refused by the balancer itself, by why.
    pub refused: IntCounterVec,
    /// Certificates that changed on disk, by whether they could be used.
    pub tls_reloads: IntCounterVec,
    /// Configurations read anew, by what became of them.
    pub config_reloads: IntCounterVec,
    /// How many configurations have been in force.
    pub config_generation: IntGauge,
    /// Endpoints taken out for failing requests.
    pub ejections: IntCounter,
    /// Connections to endpoints that could not be made.
    pub connect_failures: IntCounter,
    /// Reports of workers that found the queue full.
    pub reports_dropped: IntCounter,
    /// Lines of the access log that could not be written.
    pub access_log_dropped: IntCounter,
    /// Requests that wait for a slot at an endpoint.
    pub waiting: IntGauge,
    /// Spans that no collector took.
    pub spans_dropped: IntCounter,
    /// Connections of clients, upgraded ones included.
    pub connections: IntGauge,
    series: Mutex<Series>,
}

/// Which series exist for which backend, so that they can be removed with it.
#[derive(Default)]
struct Series {
    backends: HashMap<String, Backend>,
    /// Of the table that was followed last.
    services: BTreeMap<Arc<str>, Arc<Pool>>,
    /// Of the same table; before the first one there are none.
    routes: Option<Arc<Routes>>,
    /// What the series that have gone came to.
    gone: Traffic,
}

#[derive(Default)]
struct Backend {
    authority: String,
    /// Route, strategy, method and status of its request series.
    requests: Vec<(Arc<str>, &'static str, &'static str, String)>,
}

/// The two series a finished request counts in.
#[derive(Clone)]
pub struct RequestSeries {
    /// `loadbalancer_request_duration_seconds`.
    pub duration: Histogram,
    /// `loadbalancer_total_requests`.
    pub total: IntCounter,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// Registers everything with a registry of its own.
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let r = &registry;
        let duration = HistogramOpts::new(
            "loadbalancer_request_duration_seconds",
            "Time from a request's head to the end of its response",
        );
        let metrics = Metrics {
            request_duration: registered(
                r,
                HistogramVec::new(duration.buckets(BUCKETS.into()), &REQUEST_LABELS),
            ),
            requests: counters(r, "loadbalancer_total_requests", "Requests answered", &REQUEST_LABELS),
            backend_status: gauges(
                r,
                "loadbalancer_backend_status",
                "1 if the backend is up",
                &BACKEND_LABELS,
            ),
            backend_active: gauges(
                r,
                "loadbalancer_backend_active_connections",
                "Requests in flight to the backend",
                &BACKEND_LABELS,
            ),
            endpoints: gauges(r, "balancer_endpoints", "Endpoints by standing", &["state"]),
            pool_revision: gauge(r, "balancer_pool_revision", "Catalog revision that is in rotation"),
            pool_age: registered(
                r,
                Gauge::new("balancer_pool_age_seconds", "Time since the registry was last heard of"),
            ),
            retries: counters(r, "balancer_retries_total", "Further attempts of requests", &["reason"]),
            retries_unaffordable: counter(
                r,
                "balancer_retries_unaffordable_total",
                "Requests not tried again because too many others were",
            ),
            refused: counters(r, "balancer_refused_total", "Requests refused by the balancer", &["reason"]),
            tls_reloads: counters(
                r,
                "balancer_tls_reloads_total",
                "Certificates that changed on disk",
                &["result"],
            ),
            config_reloads: counters(
                r,
                "balancer_config_reloads_total",
                "Configurations read anew",
                &["result"],
            ),
            config_generation: gauge(
                r,
                "balancer_config_generation",
                "Configurations that have been in force",
            ),
            ejections: counter(r, "balancer_ejections_total", "Endpoints ejected for failing requests"),
            connect_failures: counter(
                r,
                "balancer_upstream_connect_failures_total",
                "Connections to endpoints that could not be made",
            ),
            reports_dropped: counter(
                r,
                "balancer_reports_dropped_total",
                "Reports that found the queue full",
            ),
            access_log_dropped: counter(
                r,
                "balancer_access_log_dropped_total",
                "Lines of the access log that could not be written",
            ),
            waiting: gauge(r, "balancer_requests_waiting", "Requests that wait for a slot at a backend"),
            spans_dropped: counter(r, "balancer_spans_dropped_total", "Spans that no collector took"),
            connections: gauge(r, "balancer_downstream_connections", "Connections of clients"),
            series: Mutex::default(),
            registry: registry.clone(),
        };
        metrics.preset();
        metrics
    }

    /// Where other libraries may add theirs.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Adds the series of backends that came and removes those of backends that went. Looks at services that changed
    /// only.
    pub fn follow(&self, table: &Table) {
        let mut series = self.series();
        self.follow_routes(&mut series, &table.routes);
        let before = std::mem::replace(&mut series.services, table.services.clone());
        let same = |name: &str, pool: &Arc<Pool>| before.get(name).is_some_and(|b| Arc::ptr_eq(b, pool));
        let fresh: Vec<&Arc<Pool>> =
            table.services.iter().filter(|(name, pool)| !same(name, pool)).map(|(_, pool)| pool).collect();
        // One that moved from service to service is still there.
        let here: HashSet<&str> =
            fresh.iter().flat_map(|pool| pool.entries()).map(|e| &*e.endpoint.id).collect();
        let stale = before
            .iter()
            .filter(|(name, pool)| !table.services.get(*name).is_some_and(|now| Arc::ptr_eq(now, pool)));
        for id in stale.flat_map(|(_, pool)| pool.entries()).map(|e| &*e.endpoint.id) {
            // An instance may be called as those are that nobody took.
            let is_gone = !here.contains(id) && id != NO_BACKEND;
            if let Some(backend) = is_gone.then(|| series.backends.remove(id)).flatten() {
                self.remove(id, backend, &mut series.gone);
            }
        }
        for entry in fresh.iter().flat_map(|pool| pool.entries()) {
            let backend = series.backends.entry(entry.endpoint.id.to_string()).or_default();
            if *backend.authority != *entry.endpoint.authority {
                self.remove_gauges(&entry.endpoint.id, &backend.authority);
                backend.authority = entry.endpoint.authority.to_string();
            }
        }
        self.pool_revision.set(table.revision as i64);
    }

    /// Removes the series of routes that are not there any more.
    fn follow_routes(&self, series: &mut Series, routes: &Arc<Routes>) {
        if series.routes.as_ref().is_some_and(|before| Arc::ptr_eq(before, routes)) {
            return;
        }
        series.routes = Some(routes.clone());
        let here: HashSet<(&str, &str)> =
            routes.all().iter().map(|r| (&*r.name, r.picking.strategy.name())).collect();
        for (id, backend) in &mut series.backends {
            backend.requests.retain(|(route, strategy, method, status)| {
                let stays = here.contains(&(&**route, *strategy));
                if !stays {
                    let labels = [&**route, *method, status.as_str(), id.as_str(), *strategy];
                    self.remove_requests(&labels, &mut series.gone);
                }
                stays
            });
        }
        series.gone.by_route.retain(|name, _| routes.all().iter().any(|r| *r.name == **name));
    }

    /// The series of a finished request; `None` if its backend or its route is gone. Slow: keep what it returns.
    pub fn request(&self, route: &Route, method: usize, status: u16, backend: &str) -> Option<RequestSeries> {
        let (method, status) = (method_name(method), status.to_string());
        let strategy = route.picking.strategy.name();
        let labels = [&*route.name, method, &status, backend, strategy];
        let mut series = self.series();
        if series.routes.as_ref().is_some_and(|routes| !is_routed(routes, &route.name, strategy)) {
            return None;
        }
        let known = series.backends.get_mut(backend)?;
        let found = RequestSeries {
            duration: self.request_duration.with_label_values(&labels),
            total: self.requests.with_label_values(&labels),
        };
        let entry = (route.name.clone(), strategy, method, status);
        if !known.requests.contains(&entry) {
            known.requests.push(entry);
        }
        Some(found)
    }

    /// The exposition, in Prometheus' text format, with gauges as of `table`.
    pub fn render(&self, table: &Table, age: Option<Duration>) -> String {
        for standing in Standing::ALL {
            let count = table.entries().filter(|e| e.standing == standing).count();
            self.endpoints.with_label_values(&[standing.name()]).set(count as i64);
        }
        self.pool_age.set(age.unwrap_or_default().as_secs_f64());
        let series = self.series();
        for entry in table.entries().filter(|e| series.backends.contains_key(&*e.endpoint.id)) {
            let labels = [&*entry.endpoint.authority, &*entry.endpoint.id];
            self.backend_status.with_label_values(&labels).set(i64::from(entry.standing == Standing::Up));
            self.backend_active.with_label_values(&labels).set(i64::from(entry.endpoint.in_flight()));
        }
        drop(series);
        let mut out = String::new();
        let families = self.registry.gather();
        if let Err(error) = TextEncoder::new().encode_utf8(&families, &mut out) {
            tracing::warn!(%error, "cannot render metrics");
        }
        out
    }

    /// What all requests come to.
    pub fn traffic(&self) -> Traffic {
        let series = self.series();
        let mut traffic = series.gone.clone();
        traffic.add_all(&self.request_duration.collect());
        traffic
    }

    /// Series that exist from the start, so that dashboards find them before the first event.
    fn preset(&self) {
        self.series().backends.insert(NO_BACKEND.to_owned(), Backend::default());
        for reason in RETRY_REASONS {
            self.retries.with_label_values(&[reason]);
        }
        for result in ["done", "failed"] {
            self.tls_reloads.with_label_values(&[result]);
        }
        for result in crate::config::reload::RESULTS {
            self.config_reloads.with_label_values(&[result]);
        }
        for reason in REFUSAL_REASONS {
            self.refused.with_label_values(&[reason]);
        }
    }

    fn remove(&self, id: &str, backend: Backend, gone: &mut Traffic) {
        self.remove_gauges(id, &backend.authority);
        for (route, strategy, method, status) in backend.requests {
            self.remove_requests(&[&*route, method, status.as_str(), id, strategy], gone);
        }
    }

    fn remove_requests(&self, labels: &[&str; 5], gone: &mut Traffic) {
        if let Ok(duration) = self.request_duration.get_metric_with_label_values(labels) {
            gone.add(&duration.metric());
        }
        // An error means that the series is not there, which is what is wanted.
        let _ = self.request_duration.remove_label_values(labels);
        let _ = self.requests.remove_label_values(labels);
    }

    fn remove_gauges(&self, id: &str, authority: &str) {
        let _ = self.backend_status.remove_label_values(&[authority, id]);
        let _ = self.backend_active.remove_label_values(&[authority, id]);
    }

    fn series(&self) -> MutexGuard<'_, Series> {
        // What it guards is whole after every statement, so a panic elsewhere does not spoil it.
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there is a route of this name and strategy.
fn is_routed(routes: &Routes, name: &str, strategy: &str) -> bool {
    routes.all().iter().any(|r| *r.name == *name && r.picking.strategy.name() == strategy)
}

/// The number of `method` for [`Metrics::request`]; all unknown methods share one.
pub fn method_index(method: &http::Method) -> usize {
    METHODS.iter().position(|m| *m == method.as_str()).unwrap_or(METHODS.len())
}

fn method_name(index: usize) -> &'static str {
    METHODS.get(index).copied().unwrap_or("OTHER")
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("names and labels are constants that follow the rules");
    registry.register(Box::new(metric.clone())).expect("every name is registered once");
    metric
}

fn counters(r: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    registered(r, IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauges(r: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    registered(r, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn counter(r: &Registry, name: &str, help: &str) -> IntCounter {
    registered(r, IntCounter::new(name, help))
}

fn gauge(r: &Registry, name: &str, help: &str) -> IntGauge {
    registered(r, IntGauge::new(name, help))
}
