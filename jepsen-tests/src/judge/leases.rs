//! E: leases end neither early nor late.
//!
//! - E1: an incarnation whose last acknowledged renewal was called at t is not gone before t + TTL.
//! - E6: an incarnation whose client never stopped trying is not gone at all, whatever the registry went through.
//! - E3: after its end no renewal of an incarnation is acknowledged; one that is told lost is gone in the end.
//! - E2: an incarnation that nobody renews is gone by TTL + slack, and as much more as changes of leaders cost.
//!
//! When it ended is when the first watcher learned of it: never too soon, so E1 accuses nobody wrongly; for E2 the
//! slack covers the way.

use std::collections::{BTreeMap, HashMap};

use super::Findings;
use super::log::{End, Log, Removal};
use crate::history::{Call, F, History, Phase, Value};

/// Slack with a stable leader, and again at each heal: expiry is promised within TTL + 1 s, propagation on top.
const SLACK: u64 = 1_500_000_000;
/// A new leader within this after a fault.
const FAILOVER: u64 = 3_000_000_000;
/// Election time-out at most; a new leader arms every lease at TTL + this + TTL / 3.
const ELECTION_MAX: u64 = 600_000_000;
/// Leases longer than this are no leases in a run: they cannot run out.
const TTL_MAX_MS: u64 = 60_000;

/// One incarnation of a leased instance.
struct Lease<'a> {
    key: &'a str,
    reg_rev: u64,
    ttl: u64,
    /// The registration that granted it.
    granted: &'a Call,
    /// Heartbeats, in order of their invocation.
    beats: Vec<&'a Call>,
}

/// A stretch of time in which leadership may have changed.
#[derive(Clone, Copy)]
struct Disturbance {
    from: u64,
    until: u64,
}

/// Judges all leases.
pub fn check(history: &History, calls: &[Call], log: &Log, findings: &mut Findings) {
    let removals: HashMap<(String, u64), Removal> =
        log.removals().into_iter().map(|removal| ((removal.key.clone(), removal.reg_rev), removal)).collect();
    let disturbances = disturbances(history);
    let horizon = log.revisions.values().next_back().map_or(0, |known| known.seen).max(last_read(calls));
    let present = log.segments.last().map(|segment| {
        let mut cursor = log.cursor();
        cursor.seek(segment.end).cloned().unwrap_or_default()
    });
    for lease in leases(calls) {
        let removal = removals.get(&(lease.key.to_owned(), lease.reg_rev));
        lease.judge_end(removal, findings);
        let remains = present
            .as_ref()
            .is_some_and(|state| state.get(lease.key).is_some_and(|record| record.reg_rev == lease.reg_rev));
        lease.judge_lateness(removal, remains, &disturbances, horizon, findings);
    }
    unleased_do_not_expire(calls, log, findings);
}

fn leases(calls: &[Call]) -> impl Iterator<Item = Lease<'_>> {
    let mut leases: BTreeMap<(&str, u64), Lease<'_>> = BTreeMap::new();
    for call in calls.iter().filter(|call| matches!(call.f(), F::Register | F::Cas)) {
        let (Some(key), Some(reg_rev), Some(ttl_ms)) = (call.key(), call.wrote(), call.invoke.ttl_ms) else {
            continue;
        };
        if ttl_ms <= TTL_MAX_MS {
            let ttl = ttl_ms * 1_000_000;
            leases.insert((key, reg_rev), Lease { key, reg_rev, ttl, granted: call, beats: Vec::new() });
        }
    }
    for call in calls.iter().filter(|call| call.f() == F::Renew) {
        if let (Some(key), Some(reg_rev)) = (call.key(), call.invoke.reg_rev)
            && let Some(lease) = leases.get_mut(&(key, reg_rev))
        {
            lease.beats.push(call);
        }
    }
    leases.into_values()
}

impl Lease<'_> {
    /// The grant and every acknowledged renewal.
    fn renewals(&self) -> impl Iterator<Item = &Call> {
        let renewed = |call: &&&Call| call.ok().is_some_and(|ok| ok.value == Value::Bool(true));
        std::iter::once(self.granted).chain(self.beats.iter().filter(renewed).copied())
    }

    /// When its client was first told that it is lost.
    fn told_lost(&self) -> Option<u64> {
        let lost = |call: &&&Call| call.ok().is_some_and(|ok| ok.value == Value::Bool(false));
        self.beats.iter().filter(lost).filter_map(|call| call.returned()).min()
    }

    fn judge_end(&self, removal: Option<&Removal>, findings: &mut Findings) {
        let Self { key, reg_rev, ttl, .. } = self;
        let by_client = removal.is_some_and(|removal| matches!(removal.end, End::Deleted | End::Replaced));
        if !by_client && let Some(gone) = self.told_lost().into_iter().chain(removal.map(|it| it.seen)).min()
        {
            let last = self.renewals().map(Call::invoked).filter(|called| *called <= gone).max().unwrap_or(0);
            if gone < last + ttl {
                let early = (last + ttl - gone) / 1_000_000;
                findings
                    .add("E1", format!("{key} of {reg_rev} was gone {early} ms before its lease ran out"));
            } else if self.kept_trying(gone) {
                findings.add(
                    "E6",
                    format!("{key} of {reg_rev} is gone although its client never stopped trying"),
                );
            }
        }
        let Some(removal) = removal else { return };
        if let Some(late) = self.renewals().skip(1).find(|call| call.invoked() > removal.seen) {
            let line = late.invoke.index;
            findings
                .add("E3", format!("line {line} renewed {key} of {reg_rev}, gone at {}", removal.revision));
        }
    }

    /// Whether attempts followed each other within half a TTL from the grant up to `until`.
    fn kept_trying(&self, until: u64) -> bool {
        let granted = self.granted.returned().unwrap_or(u64::MAX);
        let attempts = self.beats.iter().map(|call| call.invoked()).filter(|called| *called <= until);
        let mut last = granted;
        for called in attempts.chain([until]) {
            if called > last + self.ttl / 2 {
                return false;
            }
            last = last.max(called);
        }
        granted <= until
    }

    fn judge_lateness(
        &self,
        removal: Option<&Removal>,
        remains: bool,
        disturbances: &[Disturbance],
        horizon: u64,
        findings: &mut Findings,
    ) {
        let Self { key, reg_rev, ttl, .. } = self;
        // An attempt of unknown outcome may have renewed it as late as it was given up, or a little later.
        let ends = |call: &Call| call.outcome.as_ref().map_or(horizon, |op| op.time);
        let last =
            std::iter::once(self.granted).chain(self.beats.iter().copied()).map(ends).max().unwrap_or(0);
        let deadline = deadline(last, *ttl, disturbances);
        let gone = match removal {
            Some(removal) => removal.seen,
            None if remains => horizon,
            None => return,
        };
        if gone > deadline {
            let late = (gone - deadline) / 1_000_000;
            let still = if removal.is_none() { "still there" } else { "gone" };
            findings.add("E2", format!("{key} of {reg_rev} was {still} {late} ms after it had to be gone"));
        }
        if remains
            && let Some(told) =
                self.told_lost().filter(|told| deadline_after(*told, *ttl, disturbances) < horizon)
        {
            findings.add("E3", format!("{key} of {reg_rev} is still there, though called lost at {told} ns"));
        }
    }
}

fn deadline(last: u64, ttl: u64, disturbances: &[Disturbance]) -> u64 {
    deadline_after(last + ttl, ttl, disturbances)
}

/// `due` and its slack, moved on by every disturbance that begins before it and ends after the lease's last sign of life.
fn deadline_after(due: u64, ttl: u64, disturbances: &[Disturbance]) -> u64 {
    let since = due.saturating_sub(ttl);
    let mut deadline = due + SLACK;
    for disturbance in disturbances {
        if disturbance.from <= deadline && disturbance.until + FAILOVER >= since {
            deadline = deadline.max(disturbance.until + FAILOVER + ttl + ELECTION_MAX + ttl / 3 + SLACK);
        }
    }
    deadline
}

/// Faults that may have changed the leader or held up everybody, in the order of their beginning. Only a lone fault of
/// followers, short of a majority, is none.
fn disturbances(history: &History) -> Vec<Disturbance> {
    let majority = history.header.nodes.len() / 2 + 1;
    let mut open: BTreeMap<u64, (u64, usize, bool)> = BTreeMap::new();
    let mut found = Vec::new();
    for nemesis in history.nemeses() {
        match nemesis.phase {
            Phase::Installed => {
                let target = &nemesis.value;
                let leads = target.leader.as_ref().is_none_or(|leader| target.nodes.contains(leader));
                let others: usize = open.values().map(|(_, nodes, _)| nodes).sum();
                let disturbs = leads || others + target.nodes.len() >= majority;
                open.insert(target.fault, (nemesis.time, target.nodes.len(), disturbs));
            }
            Phase::Healed => {
                if let Some((from, _, true)) = open.remove(&nemesis.value.fault) {
                    found.push(Disturbance { from, until: nemesis.time });
                }
            }
            Phase::Skipped => {}
        }
    }
    found.extend(open.values().map(|(from, ..)| Disturbance { from: *from, until: u64::MAX / 2 }));
    found.sort_by_key(|disturbance| disturbance.from);
    found
}

fn last_read(calls: &[Call]) -> u64 {
    let reads = calls.iter().filter(|call| call.f() == F::List && call.ok().is_some());
    reads.filter_map(|call| call.returned()).max().unwrap_or(0)
}

/// What has a long lease, or was never registered with one, has no business expiring.
fn unleased_do_not_expire(calls: &[Call], log: &Log, findings: &mut Findings) {
    let mut shortest: HashMap<&str, u64> = HashMap::new();
    for call in calls.iter().filter(|call| matches!(call.f(), F::Register | F::Cas)) {
        if let (Some(key), Some(ttl_ms)) = (call.key(), call.invoke.ttl_ms) {
            shortest.entry(key).and_modify(|known| *known = ttl_ms.min(*known)).or_insert(ttl_ms);
        }
    }
    for removal in log.removals().iter().filter(|removal| removal.end == End::Expired) {
        if shortest.get(removal.key.as_str()).is_none_or(|ttl_ms| *ttl_ms > TTL_MAX_MS) {
            findings
                .add("E1", format!("{} expired at {}, long before its TTL", removal.key, removal.revision));
        }
    }
}
