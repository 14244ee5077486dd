//! What the admin API's answers are made of. Shapes are API: `openapi.json` describes them, a test compares.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use prometheus::IntCounterVec;
use serde::Serialize;

use super::Admin;
use crate::metrics::{Metrics, REFUSAL_REASONS, RETRY_REASONS, Traffic};
use crate::pool::{Entry, RAMP_FULL, Standing};
use crate::proxy::explain::named;
use crate::route::Action;
use crate::table::Table;

/// Endpoints in one overview. A page is asked for every second; whoever wants all of more asks `/v1/endpoints`.
pub const OVERVIEW_ENDPOINTS_MAX: usize = 500;

/// Everybody the balancer knows.
#[derive(Serialize)]
pub struct Endpoints<'a> {
    name: &'a str,
    strategy: &'a str,
    revision: u64,
    age_ms: Option<u64>,
    registry: Registry,
    ready: usize,
    endpoints: Vec<Endpoint>,
}

/// How the registry is followed.
#[derive(Serialize)]
struct Registry {
    connected: bool,
    endpoint: String,
    transport: String,
}

/// One endpoint as of now.
#[derive(Serialize)]
struct Endpoint {
    id: Arc<str>,
    service: Arc<str>,
    address: Arc<str>,
    base_path: String,
    zone: Arc<str>,
    state: &'static str,
    why: String,
    in_rotation: bool,
    weight: u32,
    weight_in_effect: f64,
    share: f64,
    in_flight: u32,
    served: u64,
    latency_ms: Option<f32>,
}

/// Where requests go.
#[derive(Serialize)]
pub struct Routes {
    revision: u64,
    routes: Vec<Route>,
}

/// One route as of now.
#[derive(Serialize)]
struct Route {
    name: Arc<str>,
    strategy: &'static str,
    /// Which instances it takes, for people.
    takes: String,
    endpoints: usize,
    in_rotation: usize,
    requests: u64,
    errors: u64,
}

/// Everything that the page shows.
#[derive(Serialize)]
pub struct Overview<'a> {
    name: &'a str,
    version: &'static str,
    strategy: &'a str,
    uptime_ms: u64,
    ready: bool,
    draining: bool,
    revision: u64,
    age_ms: Option<u64>,
    registry: Registry,
    traffic: Traffic,
    connections: i64,
    in_flight: u64,
    in_rotation: usize,
    refused: BTreeMap<&'static str, u64>,
    retries: BTreeMap<&'static str, u64>,
    retries_unaffordable: u64,
    ejections: u64,
    connect_failures: u64,
    endpoints_by_state: BTreeMap<&'static str, usize>,
    endpoints: Vec<Endpoint>,
    endpoints_left_out: usize,
}

impl<'a> Endpoints<'a> {
    /// As of now.
    pub fn of(admin: &'a Admin) -> Endpoints<'a> {
        let table = admin.table.load();
        let endpoints = endpoints(&table);
        Endpoints {
            name: &admin.name,
            strategy: admin.strategy.name(),
            revision: table.revision,
            age_ms: admin.age_ms(),
            registry: Registry::of(admin),
            ready: endpoints.iter().filter(|e| e.in_rotation).count(),
            endpoints,
        }
    }
}

impl<'a> Overview<'a> {
    /// As of now.
    pub fn of(admin: &'a Admin) -> Overview<'a> {
        let table = admin.table.load();
        let mut endpoints = endpoints(&table);
        let mut by_state: BTreeMap<&str, usize> = Standing::ALL.iter().map(|s| (s.name(), 0)).collect();
        endpoints.iter().for_each(|e| *by_state.entry(e.state).or_default() += 1);
        let in_flight = endpoints.iter().map(|e| u64::from(e.in_flight)).sum();
        let in_rotation = endpoints.iter().filter(|e| e.in_rotation).count();
        let left_out = endpoints.len().saturating_sub(OVERVIEW_ENDPOINTS_MAX);
        if left_out > 0 {
            // Whoever has trouble first.
            endpoints.sort_by_key(|e| e.state == Standing::Up.name());
            endpoints.truncate(OVERVIEW_ENDPOINTS_MAX);
        }
        let metrics: &Metrics = &admin.metrics;
        Overview {
            name: &admin.name,
            version: env!("CARGO_PKG_VERSION"),
            strategy: admin.strategy.name(),
            uptime_ms: admin.started.elapsed().as_millis() as u64,
            ready: admin.unready().is_none(),
            draining: admin.is_draining(),
            revision: table.revision,
            age_ms: admin.age_ms(),
            registry: Registry::of(admin),
            traffic: metrics.traffic(),
            connections: metrics.connections.get(),
            in_flight,
            in_rotation,
            refused: by_reason(&metrics.refused, &REFUSAL_REASONS),
            retries: by_reason(&metrics.retries, &RETRY_REASONS),
            retries_unaffordable: metrics.retries_unaffordable.get(),
            ejections: metrics.ejections.get(),
            connect_failures: metrics.connect_failures.get(),
            endpoints_by_state: by_state,
            endpoints,
            endpoints_left_out: left_out,
        }
    }
}

impl Routes {
    /// As of now.
    pub fn of(admin: &Admin) -> Routes {
        let (table, traffic) = (admin.table.load(), admin.metrics.traffic());
        let route = |route: &crate::route::Route| {
            let counts = traffic.by_route.get(&*route.name).cloned().unwrap_or_default();
            let selectors: Vec<usize> = match &route.action {
                Action::Forward(targets) => targets.iter().map(|target| target.selector).collect(),
                Action::Redirect(_) | Action::Answer(_) | Action::Nowhere => Vec::new(),
            };
            let takes = match &route.action {
                Action::Forward(targets) => targets
                    .iter()
                    .map(|t| {
                        format!("{} (weight {})", named(&table.routes.selectors()[t.selector]), t.weight)
                    })
                    .collect::<Vec<_>>()
                    .join(", "),
                Action::Redirect(redirect) => format!("nobody: it redirects with {}", redirect.status),
                Action::Answer(own) => format!("nobody: it answers {}", own.status),
                Action::Nowhere => "nobody: it answers what no route takes".to_owned(),
            };
            let pools = || selectors.iter().map(|&n| &table.pools[n]);
            Route {
                name: route.name.clone(),
                strategy: route.picking.strategy.name(),
                takes,
                endpoints: pools().map(|pool| pool.entries().len()).sum(),
                in_rotation: pools().map(|pool| pool.rotation_len()).sum(),
                requests: counts.requests,
                errors: counts.errors,
            }
        };
        Routes { revision: table.revision, routes: table.routes.all().iter().map(route).collect() }
    }
}

impl Registry {
    fn of(admin: &Admin) -> Registry {
        let status = admin.catalog.status();
        Registry {
            connected: status.connected,
            endpoint: status.endpoint,
            transport: format!("{:?}", status.transport).to_lowercase(),
        }
    }
}

impl Endpoint {
    fn of(entry: &Entry, share: Option<f64>, stands_by: bool, now: Instant) -> Endpoint {
        let endpoint = &entry.endpoint;
        Endpoint {
            id: endpoint.id.clone(),
            service: endpoint.service.clone(),
            address: endpoint.authority.clone(),
            base_path: endpoint.address.base_path.clone(),
            state: entry.standing.name(),
            why: match stands_by {
                true => format!("{}; stands by, its zone is not needed", entry.why),
                false => entry.why.clone(),
            },
            zone: entry.zone.clone(),
            in_rotation: share.is_some(),
            weight: entry.weight,
            weight_in_effect: f64::from(entry.weight) * f64::from(entry.ramp) / f64::from(RAMP_FULL),
            share: share.unwrap_or(0.0),
            in_flight: endpoint.in_flight(),
            served: endpoint.served(),
            latency_ms: endpoint.latency(now).map(|micros| micros / 1000.0),
        }
    }
}

/// Every endpoint, by id. In rotation is who is in that of any pool that a route uses.
fn endpoints(table: &Table) -> Vec<Endpoint> {
    let mut shares: HashMap<u64, f64> = HashMap::new();
    for (entry, share) in table.pools.iter().flat_map(|pool| pool.shares()) {
        let greatest = shares.entry(entry.endpoint.key).or_default();
        *greatest = greatest.max(share);
    }
    let peers = table.pools.iter().flat_map(|pool| pool.peers());
    let waits: HashSet<u64> = peers.map(|e| e.endpoint.key).filter(|key| !shares.contains_key(key)).collect();
    let now = Instant::now();
    let view = |e: &Entry| {
        let key = e.endpoint.key;
        Endpoint::of(e, shares.get(&key).copied(), waits.contains(&key), now)
    };
    let mut all: Vec<Endpoint> = table.entries().map(view).collect();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    all
}

fn by_reason(counts: &IntCounterVec, reasons: &[&'static str]) -> BTreeMap<&'static str, u64> {
    reasons.iter().map(|reason| (*reason, counts.with_label_values(&[reason]).get())).collect()
}
