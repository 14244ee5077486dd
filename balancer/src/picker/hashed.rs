//! Picks that lead the same key to the same endpoint, whichever balancer is asked.
//!
//! A key belongs to one slot of the pool's table. If the slot's endpoint takes no requests, was tried or has too many,
//! the key is hashed again, and again: every balancer comes to the same next one, keys of one endpoint spread over
//! all others, and no other key moves.

use super::{Need, Session, mix};
use crate::pool::{Bound, Entry, Pool};

/// Hashes of one key that are followed. If half of the endpoints are out, one key in 65 536 needs more; such keys go
/// through all in order.
const HASHES_MAX: usize = 16;

/// An endpoint with fewer in flight is never passed over for its load: of so few, an average says nothing.
const SMALL_LOAD: u32 = 4;

/// Whoever `key` leads to.
pub fn pick<'a>(pool: &'a Pool, key: u64, bound: Option<Bound>, need: &Need<'_>) -> Option<&'a Entry> {
    let fits = |&index: &usize| {
        let entry = &pool.entries()[index];
        pool.takes(index) && need.admits(&entry.endpoint) && !is_overloaded(entry, bound)
    };
    let hashes = std::iter::successors(Some(key), |key| Some(mix(key.wrapping_add(1))));
    let found = hashes.take(HASHES_MAX).map_while(|key| pool.owner(key)).find(fits);
    let index = found.or_else(|| {
        let n = pool.entries().len();
        let first = key.checked_rem(n as u64)? as usize;
        (first..n).chain(0..first).find(fits)
    });
    match (index, bound) {
        (Some(index), _) => Some(&pool.entries()[index]),
        // All are over what was a bound a moment ago.
        (None, Some(_)) => pick(pool, key, None, need),
        (None, None) => None,
    }
}

/// The endpoint of `session` if it takes requests; else whoever else the session leads to.
pub fn at_home<'a>(
    pool: &'a Pool,
    session: Session,
    bound: Option<Bound>,
    need: &Need<'_>,
) -> Option<&'a Entry> {
    let home = pool.home(session.endpoint).filter(|&index| pool.takes(index));
    let home = home.map(|index| &pool.entries()[index]);
    let home = home.filter(|entry| need.admits(&entry.endpoint) && !is_overloaded(entry, bound));
    home.or_else(|| pick(pool, session.key(), bound, need))
}

fn is_overloaded(entry: &Entry, bound: Option<Bound>) -> bool {
    let Some(bound) = bound else { return false };
    let load = entry.endpoint.in_flight();
    load >= SMALL_LOAD && u64::from(load) >= bound.of(entry.weight)
}
