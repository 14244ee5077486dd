//! How many requests a route takes, from everybody together or from each client: the generic cell rate algorithm, in
//! which a bucket of `burst` requests is refilled evenly.
//!
//! All workers share one count. What is counted per client is bounded: see `KEYS_MAX`.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

#[cfg(test)]
#[path = "limit_tests.rs"]
mod tests;

/// Clients that are told apart, about 100 bytes each. Those with a full bucket are forgotten first; beyond the limit the
/// newcomers share [`CROWD`] buckets: whoever sends from a million addresses gets no million allowances and no memory.
const KEYS_MAX: usize = 65_536;

/// Buckets of those who came when the table was full.
const CROWD: u64 = 1024;

/// Between two looks for clients that can be forgotten, as each goes through the whole table.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// What is counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// All requests of the route.
    Route,
    /// The requests of one address; of an IPv6 address the first 64 bits, which one customer has.
    Client,
    /// Requests with the same value of this field; those without it by their address.
    Field(String),
}

/// What is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Requests ...
    pub requests: NonZeroU32,
    /// ... in this time.
    pub per: Duration,
    /// At once, after a rest.
    pub burst: NonZeroU32,
    /// What is counted together.
    pub by: By,
}

impl Allowance {
    /// `None` if that is more than one request in a nanosecond, or none in centuries.
    fn quota(&self) -> Option<Quota> {
        Some(Quota::with_period(self.per / self.requests.get())?.allow_burst(self.burst))
    }
}

/// The counts of one allowance.
pub struct Limiter<C: Clock + Clone = DefaultClock> {
    /// What is counted.
    pub allowance: Allowance,
    counts: RateLimiter<u64, HashMapStateStore<u64>, C, NoOpMiddleware<C::Instant>>,
    hasher: RandomState,
    clock: C,
    began: C::Instant,
    forgot_at: AtomicU64,
    keys_max: usize,
}

impl Limiter {
    /// Nothing counted yet. `None` if the rate cannot be counted.
    pub fn new(allowance: Allowance) -> Option<Limiter> {
        Limiter::with_clock(allowance, DefaultClock::default(), KEYS_MAX)
    }
}

impl<C: Clock + Clone> Limiter<C> {
    fn with_clock(allowance: Allowance, clock: C, keys_max: usize) -> Option<Limiter<C>> {
        let counts = RateLimiter::new(allowance.quota()?, HashMapStateStore::default(), clock.clone());
        let (began, hasher, forgot_at) = (clock.now(), RandomState::new(), AtomicU64::new(0));
        Some(Limiter { allowance, counts, hasher, clock, began, forgot_at, keys_max })
    }

    /// Counts a request of `client`, whose field is `value`. If there are too many already it is not counted, and the
    /// error says when there will be room.
    pub fn take(&self, client: &str, value: Option<&[u8]>) -> Result<(), Duration> {
        let key = match (&self.allowance.by, value) {
            (By::Route, _) => 0,
            (By::Field(_), Some(value)) => self.within_bounds(self.hasher.hash_one(value)),
            (By::Client | By::Field(_), _) => self.within_bounds(self.hasher.hash_one(network(client))),
        };
        self.counts.check_key(&key).map_err(|until| until.wait_time_from(self.clock.now()))
    }

    fn within_bounds(&self, key: u64) -> u64 {
        if self.counts.len() < self.keys_max {
            return key;
        }
        let now = self.clock.now().duration_since(self.began).as_u64();
        let before = self.forgot_at.load(Ordering::Relaxed);
        let is_due = before == 0 || now.saturating_sub(before) >= FORGET_EVERY.as_nanos() as u64;
        if is_due
            && self
                .forgot_at
                .compare_exchange(before, now.max(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            self.counts.retain_recent();
        }
        if self.counts.len() < self.keys_max { key } else { key % CROWD }
    }
}

impl<C: Clock + Clone> std::fmt::Debug for Limiter<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {} keys", self.allowance, self.counts.len())
    }
}

/// What of a client's address is told apart.
fn network(client: &str) -> (u64, bool) {
    match client.parse() {
        Ok(IpAddr::V4(ip)) => (u64::from(ip.to_bits()), true),
        Ok(IpAddr::V6(ip)) => ((ip.to_bits() >> 64) as u64, false),
        Err(_) => (0, false),
    }
}
