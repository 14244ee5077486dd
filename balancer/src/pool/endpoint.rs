//! One upstream: where it is, and what changes while it is known, in atomics that survive from pool to pool.
//!
//! Requests are counted in flight where they begin and end, on the worker threads; a slot that a request gives back
//! is offered to whoever waits for one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::gate::Gate;
use super::latency::Latency;

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

/// What an endpoint is spoken to in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 without TLS and without asking first (RFC 9113 §3.3).
    H2c,
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
    /// What it is spoken to in.
    pub protocol: Protocol,
    /// `host:port`, for connecting, logs and labels.
    pub authority: Arc<str>,
    /// A hash of `id`, the same in every balancer: what a signed session names.
    pub id_hash: u64,
    /// Since when it is known.
    born: Instant,
    in_flight: AtomicU32,
    served: AtomicU64,
    reached: AtomicU64,
    answered: AtomicU64,
    latency: Latency,
    gate: Arc<Gate>,
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
            protocol: Protocol::default(),
            authority,
            id_hash: mix(hash(id.as_bytes())),
            born: Instant::now(),
            in_flight: AtomicU32::new(0),
            served: AtomicU64::new(0),
            reached: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            latency: Latency::default(),
            gate: Arc::default(),
        }
    }

    /// The same, telling those who wait at `gate` of slots that become free.
    pub fn behind(self, gate: Arc<Gate>) -> Endpoint {
        Endpoint { gate, ..self }
    }

    /// The same, spoken to in `protocol`.
    pub fn speaking(self, protocol: Protocol) -> Endpoint {
        Endpoint { protocol, ..self }
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
        self.reached.load(Ordering::Relaxed) + self.times_answered()
    }

    /// How often a response came.
    pub fn times_answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// It showed that it is there.
    pub fn reached(&self) {
        self.reached.fetch_add(1, Ordering::Relaxed);
    }

    /// It answered a request, which shows that it is there, too.
    pub fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// How long it takes to answer as of `now`, in µs, as a peak EWMA has it; `None` if nobody has looked yet.
    pub fn latency(&self, now: Instant) -> Option<f32> {
        self.latency.read(self.age_ms(now))
    }

    /// An attempt was answered, or failed, by `now` after `took`.
    pub fn observe(&self, took: Duration, failed: bool, now: Instant) {
        match failed {
            false => self.latency.observe(took, self.age_ms(now)),
            true => self.latency.observe_failure(took, self.age_ms(now)),
        }
    }

    /// Counts one request in. It counts until the guard is dropped, however that comes about.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.served.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// The same, unless `limit` are in flight; whoever else begins at the same moment.
    pub fn begin_within(self: &Arc<Self>, limit: u32) -> Option<InFlight> {
        if limit == u32::MAX {
            return Some(self.begin());
        }
        let room = |n: u32| (n < limit).then_some(n + 1);
        self.in_flight.fetch_update(Ordering::SeqCst, Ordering::SeqCst, room).ok()?;
        self.served.fetch_add(1, Ordering::Relaxed);
        Some(InFlight(self.clone()))
    }

    /// Wraps after 49 days, which [`Latency`] bears.
    fn age_ms(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.born).as_millis() as u32
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
        let before = self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "in-flight count of {:?} fell below zero", self.0);
        self.0.gate.freed(self.0.key);
    }
}

/// FNV-1a: the same in every process and every release, which the standard library's hashers do not promise.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// The finalizer of MurmurHash3: FNV alone leaves similar keys similar.
pub fn mix(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}
