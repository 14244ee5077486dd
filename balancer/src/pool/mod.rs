//! What the balancer knows about its upstreams, as one immutable value.
//!
//! Owns [`Pool`], [`Entry`] and [`Endpoint`]. The control side builds a pool and publishes it with one atomic
//! swap; the proxy side only reads it. Nothing here does I/O, reads a clock or draws a random number.
//!
//! The one thing that changes in place is an endpoint's load: in-flight requests are counted where they begin
//! and end, on the worker threads, in atomics that survive from one pool to the next.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(test)]
mod tests;

/// Most slots a rotation's schedule has. Weights are scaled down to fit: with 1 000 endpoints each still
/// has its share within a few percent, and a pool stays small enough to rebuild on every change.
const SCHEDULE_MAX: u64 = 4096;

/// Where an endpoint is reached: the parsed form of an instance's URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Host name or IP address, IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path to put in front of a request's path; empty or `/segment...` without a trailing slash.
    pub base_path: String,
}

/// Why a URL cannot be used as an upstream.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    /// Not a URL at all.
    #[error("{0:?} is not a URL")]
    Invalid(String),
    /// A scheme this balancer does not speak to upstreams.
    #[error("scheme {0:?} is not supported, only http is")]
    Scheme(String),
    /// A URL without a host.
    #[error("{0:?} names no host")]
    NoHost(String),
}

impl Address {
    /// Parses `http://host[:port][/path]`. Port 80 if none is given; query and fragment are refused.
    pub fn parse(url: &str) -> Result<Address, AddressError> {
        let uri: http::Uri = url.parse().map_err(|_| AddressError::Invalid(url.to_owned()))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(other) => return Err(AddressError::Scheme(other.to_owned())),
            None => return Err(AddressError::Invalid(url.to_owned())),
        }
        if uri.query().is_some() {
            return Err(AddressError::Invalid(url.to_owned()));
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(AddressError::NoHost(url.to_owned()));
        }
        Ok(Address {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(80),
            base_path: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// `host:port`, with brackets around an IPv6 address.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// One upstream address under one instance id, for as long as the balancer knows it.
///
/// The same value is carried from pool to pool while id and URL stay the same, so its counters mean something.
pub struct Endpoint {
    /// Unique among all endpoints this process ever made; never reused.
    pub key: u64,
    /// The instance's id.
    pub id: Arc<str>,
    /// The instance's service.
    pub service: Arc<str>,
    /// Where it is.
    pub address: Address,
    /// `host:port`, for connecting, logs and labels.
    pub authority: Arc<str>,
    in_flight: AtomicU32,
    served: AtomicU64,
    reached: AtomicU64,
}

impl Endpoint {
    /// An endpoint without load.
    pub fn new(key: u64, id: &str, service: &str, address: Address) -> Endpoint {
        let authority = address.authority().into();
        Endpoint {
            key,
            id: id.into(),
            service: service.into(),
            address,
            authority,
            in_flight: AtomicU32::new(0),
            served: AtomicU64::new(0),
            reached: AtomicU64::new(0),
        }
    }

    /// Requests whose response has not ended yet, upgraded connections included.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests ever sent here.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// How often it showed that it is there: a connection was made, or a response came.
    pub fn times_reached(&self) -> u64 {
        self.reached.load(Ordering::Relaxed)
    }

    /// It showed that it is there.
    pub fn reached(&self) {
        self.reached.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one request in. It counts until the guard is dropped, however that comes about.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.served.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}#{}", self.id, self.authority, self.key)
    }
}

/// One request in flight. Dropping it counts the request out.
#[derive(Debug)]
pub struct InFlight(Arc<Endpoint>);

impl InFlight {
    /// Where the request is.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let before = self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        assert!(before > 0, "in-flight count of {:?} fell below zero", self.0);
    }
}

/// How an endpoint stands. The order is the order of preference: see [`Pool::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// Probed and healthy.
    Up,
    /// Known, not probed yet.
    Unproven,
    /// Taken out for failing requests; comes back on its own.
    Ejected,
    /// Accepts connections, but its probe fails.
    Failing,
    /// Refuses connections.
    Down,
    /// Finishes what it has, takes nothing new.
    Draining,
    /// Out of rotation by an operator's wish.
    Maintenance,
    /// Its record cannot be used, such as a URL with an unknown scheme.
    Unusable,
}

impl Standing {
    /// Every standing, for metrics that name them all.
    pub const ALL: [Standing; 8] = [
        Standing::Up,
        Standing::Unproven,
        Standing::Ejected,
        Standing::Failing,
        Standing::Down,
        Standing::Draining,
        Standing::Maintenance,
        Standing::Unusable,
    ];

    /// The name used in metrics, logs and the admin API.
    pub fn name(self) -> &'static str {
        match self {
            Standing::Up => "up",
            Standing::Unproven => "unproven",
            Standing::Ejected => "ejected",
            Standing::Failing => "failing",
            Standing::Down => "down",
            Standing::Draining => "draining",
            Standing::Maintenance => "maintenance",
            Standing::Unusable => "unusable",
        }
    }

    /// Which fallback an endpoint belongs to; `None` if it takes requests under no circumstances.
    pub fn tier(self) -> Option<u8> {
        match self {
            Standing::Up => Some(0),
            Standing::Unproven => Some(1),
            Standing::Ejected | Standing::Failing => Some(2),
            Standing::Down => Some(3),
            Standing::Draining | Standing::Maintenance | Standing::Unusable => None,
        }
    }
}

/// An endpoint as of one pool.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Share of traffic relative to the others, at least 1.
    pub weight: u32,
    /// How it stands.
    pub standing: Standing,
    /// Why it stands so, for people.
    pub why: String,
}

/// Every endpoint the balancer knows, and those that take new requests.
#[derive(Debug, Default)]
pub struct Pool {
    /// The catalog's revision this pool reflects.
    pub revision: u64,
    entries: Vec<Entry>,
    rotation: Vec<usize>,
    spares: Vec<usize>,
    schedule: Vec<u16>,
}

impl Pool {
    /// Builds a pool. `entries` are ordered by id, so the order of the rotation never depends on chance.
    ///
    /// New requests go to the endpoints that are up. If none is, to those not yet probed; else to those that
    /// answer but fail; else to those that refuse, since a refusal costs little and one may just have come back.
    /// So probes alone never empty a rotation.
    pub fn new(revision: u64, entries: Vec<Entry>) -> Pool {
        let best = entries.iter().filter_map(|e| e.standing.tier()).min();
        let rotation: Vec<usize> = match best {
            None => Vec::new(),
            Some(tier) => (0..entries.len()).filter(|&i| entries[i].standing.tier() == Some(tier)).collect(),
        };
        let tier = |i: &usize| entries[*i].standing.tier();
        let mut spares: Vec<usize> =
            (0..entries.len()).filter(|i| tier(i).is_some() && tier(i) != best).collect();
        spares.sort_by_key(tier);
        let weights: Vec<u32> = rotation.iter().map(|&i| entries[i].weight.max(1)).collect();
        Pool { revision, schedule: schedule(&weights), entries, rotation, spares }
    }

    /// Every endpoint, in the order given to [`Pool::new`].
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many endpoints take new requests.
    pub fn rotation_len(&self) -> usize {
        self.rotation.len()
    }

    /// The endpoints that take new requests.
    pub fn rotation(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.rotation.iter().map(|&i| &self.entries[i])
    }

    /// The endpoints outside the rotation that could take a request if all of the rotation failed it, the
    /// likeliest to answer first.
    pub fn spares(&self) -> impl Iterator<Item = &Entry> {
        self.spares.iter().map(|&i| &self.entries[i])
    }

    /// The `n`th endpoint of the rotation. Panics if `n` is not below [`Pool::rotation_len`].
    pub fn rotated(&self, n: usize) -> &Entry {
        &self.entries[self.rotation[n]]
    }

    /// Who has the `turn`th turn, as a position in the rotation: weights are respected, and turns of one
    /// endpoint are spread out. `None` if nobody takes requests.
    pub fn scheduled(&self, turn: usize) -> Option<usize> {
        match self.schedule.len() {
            0 => None,
            n => Some(usize::from(self.schedule[turn % n])),
        }
    }
}

/// The order of turns for `weights`, by smooth weighted round robin (as nginx has it): at each turn everyone
/// gains its weight, the richest is taken and pays the total.
fn schedule(weights: &[u32]) -> Vec<u16> {
    let weights = scaled(&weights[..weights.len().min(usize::from(u16::MAX))]);
    let total: u64 = weights.iter().sum();
    let mut credit = vec![0i64; weights.len()];
    (0..total)
        .map(|_| {
            let mut best = 0;
            for i in 0..credit.len() {
                credit[i] += weights[i] as i64;
                if credit[i] > credit[best] {
                    best = i;
                }
            }
            credit[best] -= total as i64;
            best as u16
        })
        .collect()
}

/// `weights` over their greatest common divisor, and no more in sum than [`SCHEDULE_MAX`] unless there are
/// more endpoints than that. Nobody falls to nothing.
fn scaled(weights: &[u32]) -> Vec<u64> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let mut out: Vec<u64> = weights.iter().map(|&w| u64::from(w / divisor)).collect();
    let total: u64 = out.iter().sum();
    if total > SCHEDULE_MAX {
        out.iter_mut().for_each(|w| *w = (*w * SCHEDULE_MAX / total).max(1));
        let divisor = out.iter().fold(0, |a, &b| gcd(a, b as u32)).max(1);
        out.iter_mut().for_each(|w| *w /= u64::from(divisor));
    }
    out
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
