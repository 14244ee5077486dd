//! Picks that look at what endpoints have to do: requests in flight, and how long they take.

use std::cmp::Ordering;
use std::time::Instant;

use super::{Need, round_robin};
use crate::pool::{Entry, Pool, Slot};

/// What an endpoint that nobody has heard from yet counts as once it has a request, in µs: one is enough to find out.
/// As Finagle has it.
const UNKNOWN: f32 = 1e9;

/// Looks at all. Ties go to whoever's turn it is, so that idle endpoints share alike.
pub fn least_connections<'a>(pool: &'a Pool, turn: usize, need: &Need<'_>) -> Option<&'a Entry> {
    let (before, from) = pool.slots().split_at(pool.scheduled(turn)?);
    let mut best: Option<&Slot> = None;
    // More than anybody has.
    let (mut least, mut weight) = (u32::MAX, 1);
    for slots in [from, before] {
        for slot in slots {
            let load = slot.endpoint.in_flight();
            let is_less = lighter(load, slot.weight, least, weight).is_lt();
            if is_less && load < need.requests_max && !need.tried.contains(&slot.endpoint.key) {
                (best, least, weight) = (Some(slot), load, slot.weight);
            }
        }
    }
    best.map(|slot| pool.entry(slot))
}

/// The fewer in flight of two.
pub fn least_request<'a>(pool: &'a Pool, draw: u64, need: &Need<'_>) -> Option<&'a Entry> {
    two_choices(pool, draw, need, |a, b| {
        lighter(a.endpoint.in_flight(), a.weight, b.endpoint.in_flight(), b.weight)
    })
}

/// The likelier of two to answer soon: the least latency times requests in flight, the one to come included, after
/// Finagle's `PeakEwma`; the latency counts failures, see [`crate::pool::Endpoint::observe`].
pub fn peak_ewma<'a>(pool: &'a Pool, draw: u64, now: Instant, need: &Need<'_>) -> Option<&'a Entry> {
    let cost = |slot: &Slot| {
        let load = slot.endpoint.in_flight() as f32;
        let latency = slot.endpoint.latency(now);
        latency.unwrap_or(if load == 0.0 { 0.0 } else { UNKNOWN }) * (load + 1.0) / slot.weight as f32
    };
    two_choices(pool, draw, need, |a, b| cost(a).total_cmp(&cost(b)))
}

/// The power of two choices (Mitzenmacher 2001): nearly as even as looking at all, at a cost that does not grow with
/// them, and many balancers that know nothing of each other do not all rush to the same idle endpoint.
fn two_choices<'a>(
    pool: &'a Pool,
    draw: u64,
    need: &Need<'_>,
    compare: impl Fn(&Slot, &Slot) -> Ordering,
) -> Option<&'a Entry> {
    let slots = pool.slots();
    let one = pool.scheduled((draw >> 32) as usize)?;
    let mut other = pool.scheduled(draw as u32 as usize)?;
    if other == one {
        other = (one + 1) % slots.len();
    }
    let (one, other) = (&slots[one], &slots[other]);
    let picked = match (need.admits(&one.endpoint), need.admits(&other.endpoint)) {
        (true, true) if compare(other, one).is_lt() => other,
        (true, _) => one,
        (false, true) => other,
        (false, false) => return round_robin(pool, draw as usize, need),
    };
    Some(pool.entry(picked))
}

/// Compares load per weight without dividing. The load counts the request to come, so that of two idle
/// endpoints the heavier is preferred.
fn lighter(a_load: u32, a_weight: u32, b_load: u32, b_weight: u32) -> Ordering {
    let a = (u64::from(a_load) + 1) * u64::from(b_weight);
    let b = (u64::from(b_load) + 1) * u64::from(a_weight);
    a.cmp(&b)
}
