//! Which endpoint gets a request: pure functions over a [`Pool`].
//!
//! Relies on the pool's rotation being what may take requests at all. Why plain functions: a few strategies
//! with one caller need no trait, and all randomness, all counters and the time are arguments, so a pick can be
//! replayed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pool::{Endpoint, Entry, Pool};

mod hashed;
mod load;
mod session;

pub use crate::pool::{hash, mix};
pub use session::{COOKIE_AGE, SecretTooShort, Session, Signer};

#[cfg(test)]
mod tests;

/// How endpoints are picked. The names are those of the `strategy` key; of the original are round robin, least
/// connections and sticky sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Strategy {
    /// One after the other, by weight.
    RoundRobin,
    /// The fewest requests in flight for its weight.
    LeastConnections,
    /// Of two endpoints drawn by weight the one with fewer requests in flight for its weight.
    LeastRequest,
    /// Of two endpoints drawn by weight the one that is likely to answer sooner.
    PeakEwma,
    /// The same endpoint for the same header, cookie or client address.
    ConsistentHash,
    /// By chance, by weight.
    Random,
    /// The same endpoint for the same session cookie.
    StickySessions,
}

impl Strategy {
    /// The name in configuration and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::RoundRobin => "round_robin",
            Strategy::LeastConnections => "least_connections",
            Strategy::LeastRequest => "least_request",
            Strategy::PeakEwma => "peak_ewma",
            Strategy::ConsistentHash => "consistent_hash",
            Strategy::Random => "random",
            Strategy::StickySessions => "sticky_sessions",
        }
    }
}

/// A strategy and what it needs to know. One value for each route.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The strategy.
    pub strategy: Strategy,
    /// What [`Strategy::ConsistentHash`] goes by.
    pub hash_on: HashOn,
    /// A key's own endpoint is passed over while it has more than this share of what the endpoints have on average in
    /// flight, in percent; 0 for never.
    pub balance_percent: u32,
    /// Requests an endpoint has in flight at most; `u32::MAX` for any number.
    pub requests_max: u32,
    /// Where requests wait while every endpoint has as many.
    pub queue: Queue,
    /// Signs the cookies of [`Strategy::StickySessions`]; without one the cookie is only hashed.
    pub signer: Option<Arc<Signer>>,
}

impl From<Strategy> for Settings {
    fn from(strategy: Strategy) -> Settings {
        Settings {
            strategy,
            hash_on: HashOn::ClientIp,
            balance_percent: 0,
            requests_max: u32::MAX,
            queue: Queue { size: 0, timeout: Duration::ZERO },
            signer: None,
        }
    }
}

/// Where a key for hashing comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    /// The address of the client, without its port.
    ClientIp,
    /// The first value of this header, in lower case.
    Header(String),
    /// The value of this cookie.
    Cookie(String),
}

/// A bounded wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Requests that may wait for the endpoints of one pool.
    pub size: usize,
    /// How long each may.
    pub timeout: Duration,
}

/// One pick, besides the pool.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Counts picks over all workers.
    pub turn: usize,
    /// A random number.
    pub draw: u64,
    /// Now; only [`Strategy::PeakEwma`] looks at it.
    pub now: Instant,
    /// What the request belongs to, where that decides. Without one, sticky sessions and consistent hashing pick like
    /// [`Strategy::LeastRequest`].
    pub key: Option<Key>,
    /// The keys of endpoints that are out of the question.
    pub tried: &'a [u64],
}

/// What a request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// To whoever a good hash leads to.
    Hash(u64),
    /// To an endpoint that a signed session names.
    Home(Session),
}

impl Key {
    /// What leads everything that comes with the same `bytes` to the same endpoint.
    pub fn of(bytes: &[u8]) -> Key {
        Key::Hash(mix(hash(bytes)))
    }
}

/// Why nobody was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// There is nobody who takes requests and was not tried.
    Nobody,
    /// There is, but each has as many requests as it may have.
    Full,
}

/// Who is out of the question.
#[derive(Clone, Copy)]
struct Need<'a> {
    tried: &'a [u64],
    requests_max: u32,
}

impl Need<'_> {
    fn admits(&self, endpoint: &Endpoint) -> bool {
        !self.tried.contains(&endpoint.key)
            && (self.requests_max == u32::MAX || endpoint.in_flight() < self.requests_max)
    }
}

/// Picks from `pool` an endpoint that takes requests, whose key is not among those tried.
pub fn pick<'a>(settings: &Settings, pool: &'a Pool, ask: &Ask<'_>) -> Result<&'a Entry, Missing> {
    let need = Need { tried: ask.tried, requests_max: settings.requests_max };
    let bound =
        |bounds: bool| (bounds && settings.balance_percent > 0).then(|| pool.bound(settings.balance_percent));
    let picked = match (settings.strategy, ask.key) {
        (Strategy::LeastConnections, _) => load::least_connections(pool, ask.turn, &need),
        (Strategy::LeastRequest, _) => load::least_request(pool, ask.draw, &need),
        (Strategy::PeakEwma, _) => load::peak_ewma(pool, ask.draw, ask.now, &need),
        (Strategy::Random, _) => round_robin(pool, ask.draw as usize, &need),
        (Strategy::RoundRobin, _) => round_robin(pool, ask.turn, &need),
        (Strategy::ConsistentHash, Some(Key::Hash(key))) => hashed::pick(pool, key, bound(true), &need),
        (Strategy::StickySessions, Some(Key::Hash(key))) => hashed::pick(pool, key, None, &need),
        (Strategy::StickySessions | Strategy::ConsistentHash, Some(Key::Home(session))) => {
            hashed::at_home(pool, session, bound(true), &need)
        }
        (Strategy::StickySessions | Strategy::ConsistentHash, None) => {
            load::least_request(pool, ask.draw, &need)
        }
    };
    picked.or_else(|| elsewhere(pool, ask.turn, &need)).ok_or_else(|| missing(pool, &need))
}

/// An endpoint as good as those of the rotation, but of another zone: asked when the own zone has no slot left.
fn elsewhere<'a>(pool: &'a Pool, turn: usize, need: &Need<'_>) -> Option<&'a Entry> {
    if need.requests_max == u32::MAX {
        return None;
    }
    let peers = || pool.peers().filter(|e| need.admits(&e.endpoint));
    let n = peers().count();
    (n > 0).then(|| peers().nth(turn % n))?
}

fn missing(pool: &Pool, need: &Need<'_>) -> Missing {
    let any = Need { requests_max: u32::MAX, ..*need };
    let untried = pool.slots().iter().any(|slot| any.admits(&slot.endpoint));
    if untried { Missing::Full } else { Missing::Nobody }
}

/// For a request that failed at all of the rotation: an untried endpoint outside of it, of the best tier left, which
/// has a slot. `turn` spreads such requests over its endpoints.
pub fn spare<'a>(settings: &Settings, pool: &'a Pool, turn: usize, tried: &[u64]) -> Option<&'a Entry> {
    let need = Need { tried, requests_max: settings.requests_max };
    let untried: Vec<&Entry> = pool.spares().filter(|e| need.admits(&e.endpoint)).collect();
    let best = untried.first()?.standing.tier();
    let peers = untried.iter().take_while(|e| e.standing.tier() == best).count();
    Some(untried[turn % peers])
}

fn round_robin<'a>(pool: &'a Pool, turn: usize, need: &Need<'_>) -> Option<&'a Entry> {
    let slots = pool.slots();
    let first = pool.scheduled(turn)?;
    let (before, from) = slots.split_at(first);
    from.iter().chain(before).find(|slot| need.admits(&slot.endpoint)).map(|slot| pool.entry(slot))
}
