//! D1: nothing acknowledged is lost.
//!
//! Judged from the history alone, so that it does not lean on what the watchers were told: the last acknowledged write
//! of every id is in the final read of every node, unless somebody may have overwritten or removed it. Holes in
//! the log are bridged by the same rule.

use std::collections::{BTreeMap, HashMap};

use super::log::{Log, Record, State, state_of};
use super::{Findings, Writes};
use crate::history::{Call, F, Kind, Value};

/// What is known of one id.
#[derive(Default)]
struct Fate<'a> {
    /// Acknowledged writes by revision.
    acknowledged: BTreeMap<u64, &'a Call>,
    /// Deregistrations whose outcome is unknown.
    maybe_removed: bool,
    /// The shortest life without heartbeats that it was registered with.
    ttl_ms: Option<u64>,
}

/// Judges the final reads of all nodes, and what holes in the log swallowed.
pub fn check(calls: &[Call], writes: &Writes<'_>, log: &Log, findings: &mut Findings) {
    let fates = fates(calls);
    let mut first: HashMap<u64, State> = HashMap::new();
    for call in calls.iter().filter(|call| call.invoke.last && call.f() == F::List && call.key().is_none()) {
        let Some(ok) = call.ok() else { continue };
        let (Value::List(entries), Some(revision)) = (&ok.value, ok.revision) else { continue };
        let node = call.invoke.node.as_deref().unwrap_or("the cluster");
        let state = state_of(entries);
        let place = format!("the final read of {node} (line {})", ok.index);
        all_kept(&fates, writes, &state, (0, revision), &place, findings);
        let other = first.entry(revision).or_insert_with(|| state.clone());
        if *other != state {
            findings.add("S7", format!("{place} differs from another node's at revision {revision}"));
        }
    }
    for pair in log.segments.windows(2) {
        let place = format!("the snapshot at {} after a hole from {}", pair[1].start, pair[0].end);
        all_kept(&fates, writes, &pair[1].base, (pair[0].end, pair[1].start), &place, findings);
    }
}

fn fates(calls: &[Call]) -> BTreeMap<&str, Fate<'_>> {
    let mut fates: BTreeMap<&str, Fate<'_>> = BTreeMap::new();
    for call in calls.iter().filter(|call| call.f().writes()) {
        let Some(key) = call.key() else { continue };
        let fate = fates.entry(key).or_default();
        fate.ttl_ms = fate.ttl_ms.into_iter().chain(call.invoke.ttl_ms).min();
        if let Some(revision) = call.wrote() {
            fate.acknowledged.insert(revision, call);
        } else if call.f() == F::Deregister && call.kind() == Kind::Info {
            fate.maybe_removed = true;
        }
    }
    fates
}

/// A lease this long cannot run out within a run: its instance may only go by a client's wish.
const NEVER_EXPIRES_MS: u64 = 600_000;

/// Every write acknowledged in `(after, until]` is in `state` unless something may have undone it.
fn all_kept(
    fates: &BTreeMap<&str, Fate<'_>>,
    writes: &Writes<'_>,
    state: &State,
    (after, until): (u64, u64),
    place: &str,
    findings: &mut Findings,
) {
    for (key, fate) in fates {
        let last = fate.acknowledged.range(..=until).next_back().filter(|(revision, _)| **revision > after);
        let Some((&revision, call)) = last else { continue };
        let removed = call.f() == F::Deregister;
        let line = call.ok().map_or(call.invoke.index, |ok| ok.index);
        let may_be_gone =
            removed || fate.maybe_removed || fate.ttl_ms.is_some_and(|ttl| ttl < NEVER_EXPIRES_MS);
        let lost = match state.get(*key) {
            None => (!may_be_gone).then(|| format!("lacks {key}, acknowledged at {revision} (line {line})")),
            Some(found) if found.mod_rev < revision => Some(format!(
                "shows {key} of {}, but {revision} was acknowledged (line {line})",
                found.mod_rev
            )),
            Some(found) if found.mod_rev == revision => (removed
                || found.value != call.invoke.value.written())
            .then(|| format!("shows {key} = {:?}, which line {line} did not write", found.value)),
            Some(found) => overwritten_by_nobody(found, writes).then(|| {
                format!("shows {key} of {}, newer than line {line}, written by nobody", found.mod_rev)
            }),
        };
        if let Some(lost) = lost {
            findings.add("D1", format!("{place} {lost}"));
        }
    }
}

/// The last acknowledged write is older: only a write of unknown outcome may have come after it.
fn overwritten_by_nobody(found: &Record, writes: &Writes<'_>) -> bool {
    writes.of(found.value).is_none_or(|call| call.kind() != Kind::Info)
}
