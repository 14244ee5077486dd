//! Which endpoint gets a request: pure functions over a [`Pool`].
//!
//! Relies on the pool's rotation being what may take requests at all. Why plain functions: a few strategies
//! with one caller need no trait, and all randomness and all counters are arguments, so a pick can be replayed.

use std::cmp::Ordering;

use crate::pool::{Entry, Pool};

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
            Strategy::Random => "random",
            Strategy::StickySessions => "sticky_sessions",
        }
    }
}

/// Picks from `pool`'s rotation an endpoint whose key is not among `tried`; `None` if there is none.
///
/// `turn` counts picks over all workers, `draw` is a random number. `session` is the key that sticky sessions go
/// by; without one they fall back to round robin.
pub fn pick<'a>(
    strategy: Strategy,
    pool: &'a Pool,
    turn: usize,
    draw: u64,
    session: Option<&str>,
    tried: &[u64],
) -> Option<&'a Entry> {
    match (strategy, session) {
        (Strategy::LeastConnections, _) => least_connections(pool, turn, tried),
        (Strategy::LeastRequest, _) => power_of_two(pool, draw, tried),
        (Strategy::Random, _) => round_robin(pool, draw as usize, tried),
        (Strategy::StickySessions, Some(session)) => rendezvous(pool, session, tried),
        (Strategy::RoundRobin | Strategy::StickySessions, _) => round_robin(pool, turn, tried),
    }
}

/// For a request that failed at all of the rotation: an untried endpoint outside of it, of the best tier left.
/// `turn` spreads such requests over its endpoints.
pub fn spare<'a>(pool: &'a Pool, turn: usize, tried: &[u64]) -> Option<&'a Entry> {
    let untried: Vec<&Entry> = pool.spares().filter(|e| untried(e, tried)).collect();
    let best = untried.first()?.standing.tier();
    let peers = untried.iter().take_while(|e| e.standing.tier() == best).count();
    Some(untried[turn % peers])
}

fn round_robin<'a>(pool: &'a Pool, turn: usize, tried: &[u64]) -> Option<&'a Entry> {
    let n = pool.rotation_len();
    let first = pool.scheduled(turn)?;
    (0..n).map(|step| pool.rotated((first + step) % n)).find(|e| untried(e, tried))
}

/// Ties go to whoever's turn it is, so that idle endpoints share alike.
fn least_connections<'a>(pool: &'a Pool, turn: usize, tried: &[u64]) -> Option<&'a Entry> {
    let n = pool.rotation_len();
    let first = pool.scheduled(turn)?;
    (0..n)
        .map(|step| pool.rotated((first + step) % n))
        .filter(|e| untried(e, tried))
        .map(|e| (e, e.endpoint.in_flight()))
        .min_by(|(a, a_load), (b, b_load)| lighter(*a_load, a.weight, *b_load, b.weight))
        .map(|(e, _)| e)
}

/// The power of two choices (Mitzenmacher 2001): nearly as even as looking at all, at a cost that does not grow with
/// them, and many balancers that know nothing of each other do not all rush to the same idle endpoint.
fn power_of_two<'a>(pool: &'a Pool, draw: u64, tried: &[u64]) -> Option<&'a Entry> {
    let n = pool.rotation_len();
    let one = pool.scheduled((draw >> 32) as usize)?;
    let mut other = pool.scheduled(draw as u32 as usize)?;
    if other == one {
        other = (one + 1) % n;
    }
    let (one, other) = (pool.rotated(one), pool.rotated(other));
    match (untried(one, tried), untried(other, tried)) {
        (true, true) => {
            let (a, b) = (one.endpoint.in_flight(), other.endpoint.in_flight());
            Some(if lighter(b, other.weight, a, one.weight) == Ordering::Less { other } else { one })
        }
        (true, false) => Some(one),
        (false, true) => Some(other),
        (false, false) => round_robin(pool, draw as usize, tried),
    }
}

/// Compares load per weight without dividing. The load counts the request to come, so that of two idle
/// endpoints the heavier is preferred.
fn lighter(a_load: u32, a_weight: u32, b_load: u32, b_weight: u32) -> Ordering {
    let a = (u64::from(a_load) + 1) * u64::from(b_weight.max(1));
    let b = (u64::from(b_load) + 1) * u64::from(a_weight.max(1));
    a.cmp(&b)
}

/// Highest random weight (Thaler and Ravishankar 1998), weighted by `-w / ln(u)`: every balancer picks the
/// same endpoint for a session without sharing state, and when an endpoint leaves only its sessions move.
fn rendezvous<'a>(pool: &'a Pool, session: &str, tried: &[u64]) -> Option<&'a Entry> {
    let session = hash(session.as_bytes());
    pool.rotation()
        .filter(|e| untried(e, tried))
        .map(|e| (e, score(session, e)))
        .max_by(|(a, a_score), (b, b_score)| {
            a_score.total_cmp(b_score).then_with(|| a.endpoint.id.cmp(&b.endpoint.id))
        })
        .map(|(e, _)| e)
}

fn score(session: u64, entry: &Entry) -> f64 {
    let mixed = mix(session ^ hash(entry.endpoint.id.as_bytes()));
    // 53 bits, strictly between 0 and 1.
    let unit = ((mixed >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -f64::from(entry.weight.max(1)) / unit.ln()
}

/// FNV-1a: the same in every process and every release, which the standard library's hashers do not promise.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// The finalizer of MurmurHash3: FNV alone leaves similar keys similar.
fn mix(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

fn untried(entry: &Entry, tried: &[u64]) -> bool {
    !tried.contains(&entry.endpoint.key)
}
