//! The revision judge: acknowledged calls, the log and real time agree.
//!
//! - S1: an acknowledged write is in the log at its revision, with its content.
//! - S2: what returned before a call began is at or below the call's revision; strictly below if the call wrote.
//! - S3: a linearizable read shows exactly the catalog at its revision. S4: a stale read too, and one node does not go
//!   back before the eyes of one client.
//! - S8: what is in the log was asked for, once. S9: a cas took effect on the revision it expected.
//!
//! One sort and one sweep each: O(n log n).

use std::collections::{BTreeMap, HashMap};

use super::log::{Log, Record, State, state_of};
use super::{Findings, Writes};
use crate::history::{Call, Consistency, F, Kind, Op, Value, service_of};
use crate::transcript::{Change, Event};

/// Judges `calls` against `log`. Returns how many acknowledged calls lie at revisions that the log does not cover.
pub fn check(calls: &[Call], writes: &Writes<'_>, log: &Log, findings: &mut Findings) -> u64 {
    unique(calls, findings);
    let presence = Presence::of(log);
    let floors = order(calls, log, &presence, findings);
    acknowledged_are_in_log(calls, log, findings);
    log_was_asked_for(calls, writes, log, findings);
    sessions(calls, findings);
    let earliest = earliest(calls, writes, log);
    nothing_from_the_future(calls, &earliest, findings);
    absences(calls, &floors, &presence, &earliest, findings);
    replay(calls, writes, log, findings)
}

/// Every acknowledged write made a revision of its own.
fn unique(calls: &[Call], findings: &mut Findings) {
    let mut made: HashMap<u64, u64> = HashMap::new();
    for call in calls {
        let Some(ok) = call.ok() else { continue };
        let Some(revision) = call.wrote() else {
            let effective = ok.value != Value::Bool(false);
            if call.f().writes() && effective {
                findings.add("S2", format!("line {} acknowledges a write without a revision", ok.index));
            }
            continue;
        };
        if let Some(other) = made.insert(revision, ok.index) {
            findings.add("S2", format!("lines {other} and {} both made revision {revision}", ok.index));
        }
    }
}

/// When each key was there, where the log is whole.
struct Presence<'a> {
    /// What the log covers; nothing if it has holes.
    covered: Option<(u64, u64)>,
    /// By key: from each of these revisions on it is there (or is not), in order.
    changes: HashMap<&'a str, Vec<(u64, bool)>>,
}

impl<'a> Presence<'a> {
    fn of(log: &'a Log) -> Self {
        let [segment] = &log.segments[..] else {
            return Self { covered: None, changes: HashMap::new() };
        };
        let mut changes: HashMap<&str, Vec<(u64, bool)>> = HashMap::new();
        for key in segment.base.keys() {
            changes.entry(key).or_default().push((segment.start, true));
        }
        for (revision, known) in log.revisions.range(segment.start + 1..) {
            for event in &known.events {
                let there = event.change == Change::Put;
                changes.entry(&event.entry.0).or_default().push((*revision, there));
            }
        }
        Self { covered: Some((segment.start, segment.end)), changes }
    }

    /// The first revision from `floor` on without `key`. `Err` if there is none, `Ok(None)` if that is not known.
    fn absent_from(&self, key: &str, floor: u64) -> Result<Option<u64>, ()> {
        if self.covered.is_none_or(|(start, end)| floor < start || end < floor) {
            return Ok(None);
        }
        let changes = self.changes.get(key).map_or(&[][..], Vec::as_slice);
        let later = changes.partition_point(|(revision, _)| *revision <= floor);
        if later.checked_sub(1).is_none_or(|at| !changes[at].1) {
            return Ok(Some(floor));
        }
        let removed = changes[later..].iter().find(|(_, there)| !there);
        removed.map(|(revision, _)| Some(*revision)).ok_or(())
    }
}

/// The key and the answer of a linearizable read that was told "not registered", without a revision.
fn absence(call: &Call) -> Option<(&str, &Op)> {
    let linearizable = call.f() == F::Read && call.invoke.consistency != Some(Consistency::Stale);
    let ok = call.ok().filter(|ok| linearizable && ok.revision.is_none() && ok.value == Value::None)?;
    Some((call.key().unwrap_or_default(), ok))
}

/// The sweep of S2. Returns for every call the highest revision that anybody knew of when it began.
fn order(calls: &[Call], log: &Log, presence: &Presence<'_>, findings: &mut Findings) -> Vec<u64> {
    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    enum Step {
        // At the same instant a call began before the other returned: they may have been concurrent.
        Begin(usize),
        Learn(u64),
        // Who was told "not registered" knows that the first such revision has been.
        Missed(usize),
    }
    let mut steps: Vec<(u64, Step)> = Vec::new();
    for (at, call) in calls.iter().enumerate() {
        steps.push((call.invoked(), Step::Begin(at)));
        if let Some(ok) = call.ok()
            && let Some(revision) = ok.revision
        {
            steps.push((ok.time, Step::Learn(revision)));
        } else if let Some((_, ok)) = absence(call) {
            steps.push((ok.time, Step::Missed(at)));
        }
    }
    steps.extend(log.revisions.iter().map(|(revision, known)| (known.seen, Step::Learn(*revision))));
    steps.sort();

    let mut floors = vec![0; calls.len()];
    let mut highest = 0;
    for (_, step) in steps {
        match step {
            Step::Begin(at) => floors[at] = highest,
            Step::Learn(revision) => highest = highest.max(revision),
            Step::Missed(at) => {
                let key = calls[at].key().unwrap_or_default();
                if let Ok(Some(revision)) = presence.absent_from(key, floors[at]) {
                    highest = highest.max(revision);
                }
            }
        }
    }
    for (call, &floor) in calls.iter().zip(&floors) {
        let Some(ok) = call.ok() else { continue };
        let Some(revision) = ok.revision else { continue };
        let index = ok.index;
        if call.wrote().is_some() {
            if revision <= floor {
                findings.add(
                    "S2",
                    format!("line {index} wrote revision {revision}, but {floor} was known before it"),
                );
            }
        } else if call.invoke.consistency != Some(Consistency::Stale)
            && call.f() != F::Renew
            && revision < floor
        {
            findings.add("S2", format!("line {index} read at {revision}, but {floor} was known before it"));
        }
    }
    floors
}

fn acknowledged_are_in_log(calls: &[Call], log: &Log, findings: &mut Findings) {
    for call in calls {
        let (Some(revision), Some(key)) = (call.wrote(), call.key()) else { continue };
        if !log.knows_change(revision) {
            continue;
        }
        let wanted = if call.f() == F::Deregister { Change::Delete } else { Change::Put };
        let found = log.revisions.get(&revision).is_some_and(|known| {
            known.events.iter().any(|event| {
                event.change == wanted
                    && event.entry.0 == key
                    && (wanted == Change::Delete || event.entry.1 == call.invoke.value.written())
            })
        });
        if !found {
            let index = call.ok().map_or(call.invoke.index, |ok| ok.index);
            findings.add(
                "S1",
                format!("line {index} was acknowledged at revision {revision}, the log has another"),
            );
        }
    }
}

/// Every change was asked for, before it was seen, and took effect once.
fn log_was_asked_for(calls: &[Call], writes: &Writes<'_>, log: &Log, findings: &mut Findings) {
    let mut removers: HashMap<&str, Vec<&Call>> = HashMap::new();
    for call in calls.iter().filter(|call| call.f() == F::Deregister) {
        removers.entry(call.key().unwrap_or_default()).or_default().push(call);
    }
    let mut effects: HashMap<u64, u64> = HashMap::new();
    for (revision, known) in &log.revisions {
        for event in &known.events {
            match event.change {
                Change::Put => put_was_asked_for(event, known.seen, writes, &mut effects, findings),
                Change::Delete => {
                    let asked = removers.get(event.entry.0.as_str()).is_some_and(|calls| {
                        calls.iter().any(|call| {
                            call.invoked() <= known.seen
                                && call.may_have_written()
                                && call.wrote().is_none_or(|wrote| wrote == *revision)
                                && call.invoke.reg_rev.is_none_or(|reg_rev| reg_rev == event.entry.2)
                        })
                    });
                    if !asked {
                        findings.add("S8", format!("revision {revision} deletes {}, unasked", event.entry.0));
                    }
                }
                Change::Expire => {}
            }
        }
    }
}

fn put_was_asked_for(
    event: &Event,
    seen: u64,
    writes: &Writes<'_>,
    effects: &mut HashMap<u64, u64>,
    findings: &mut Findings,
) {
    let revision = event.revision;
    if let Some(why) = writes.objection(&event.entry.0, event.entry.1, seen) {
        findings.add("S8", format!("revision {revision} puts {why}"));
        return;
    }
    let Some(call) = writes.of(event.entry.1) else { return };
    if let Some(wrote) = call.wrote()
        && wrote != revision
    {
        findings.add("S8", format!("line {} took effect at {wrote} and at {revision}", call.invoke.index));
    }
    if let Some(other) = effects.insert(event.entry.1.unwrap_or_default(), revision)
        && other != revision
    {
        findings.add("S8", format!("line {} took effect at {other} and at {revision}", call.invoke.index));
    }
}

/// S4: what one node shows one client does not go back. Acknowledged writes do not count: a follower forwards them, and may
/// answer a stale read before it has applied them.
fn sessions(calls: &[Call], findings: &mut Findings) {
    let mut last: HashMap<(&str, &str), (u64, u64)> = HashMap::new();
    for call in calls.iter().filter(|call| matches!(call.f(), F::Read | F::List)) {
        let (Some(ok), Some(client), Some(node)) = (call.ok(), &call.invoke.client, &call.invoke.node) else {
            continue;
        };
        let Some(revision) = ok.revision else { continue };
        let session = last.entry((client, node)).or_insert((0, 0));
        if revision < session.0 {
            let (index, (before, at)) = (ok.index, *session);
            findings.add(
                "S4",
                format!(
                    "{client} on {node} went back from {before} (line {at}) to {revision} (line {index})"
                ),
            );
        }
        *session = (*session).max((revision, ok.index));
    }
}

/// When each revision can have happened at the earliest: not before its cause was asked for, and not before those below it.
/// Expiries ask nobody. A removal belongs to who was told so; the others to calls of unknown outcome, each of which made at
/// most one: the n-th of them needs n such calls.
fn earliest(calls: &[Call], writes: &Writes<'_>, log: &Log) -> BTreeMap<u64, u64> {
    let mut owners: HashMap<u64, u64> = HashMap::new();
    let mut unknown: HashMap<&str, Vec<u64>> = HashMap::new();
    for call in calls.iter().filter(|call| call.f() == F::Deregister && call.may_have_written()) {
        match call.wrote() {
            Some(revision) => drop(owners.insert(revision, call.invoked())),
            None => unknown.entry(call.key().unwrap_or_default()).or_default().push(call.invoked()),
        }
    }
    unknown.values_mut().for_each(|invoked| invoked.sort_unstable());
    let mut unowned: HashMap<&str, usize> = HashMap::new();
    let mut earliest = BTreeMap::new();
    let mut latest = 0;
    for (revision, known) in &log.revisions {
        for event in &known.events {
            let key = event.entry.0.as_str();
            let asked = match event.change {
                Change::Put => writes.of(event.entry.1).map(Call::invoked),
                Change::Delete => owners.get(revision).copied().or_else(|| {
                    let before = unowned.entry(key).or_default();
                    *before += 1;
                    unknown.get(key)?.get(*before - 1).copied()
                }),
                Change::Expire => None,
            };
            latest = latest.max(asked.unwrap_or(0));
        }
        earliest.insert(*revision, latest);
    }
    earliest
}

/// S2 from the other side: nobody is told of a revision before it can have happened.
fn nothing_from_the_future(calls: &[Call], earliest: &BTreeMap<u64, u64>, findings: &mut Findings) {
    for ok in calls.iter().filter_map(Call::ok) {
        let Some(revision) = ok.revision else { continue };
        if earliest.get(&revision).is_some_and(|earliest| *earliest > ok.time) {
            findings
                .add("S2", format!("line {} tells of revision {revision} before it was asked for", ok.index));
        }
    }
}

/// "Not registered" without a revision: there must have been such a moment between call and return.
fn absences(
    calls: &[Call],
    floors: &[u64],
    presence: &Presence<'_>,
    earliest: &BTreeMap<u64, u64>,
    findings: &mut Findings,
) {
    for (call, floor) in calls.iter().zip(floors) {
        let Some((key, ok)) = absence(call) else { continue };
        let possible = match presence.absent_from(key, *floor) {
            Ok(None) => true,
            Ok(Some(revision)) => {
                revision == *floor || earliest.get(&revision).is_none_or(|at| *at <= ok.time)
            }
            Err(()) => false,
        };
        if !possible {
            findings.add("S3", format!("line {} did not find {key}, which was there", ok.index));
        }
    }
}

/// S3, S4, S9: what was read is the catalog at that revision; a cas met what it expected.
fn replay(calls: &[Call], writes: &Writes<'_>, log: &Log, findings: &mut Findings) -> u64 {
    let mut questions: Vec<(u64, &Call)> = Vec::new();
    let mut uncovered = 0;
    for call in calls {
        let Some(revision) = call.ok().and_then(|ok| ok.revision) else { continue };
        match call.f() {
            F::Read | F::List if log.covers(revision) => questions.push((revision, call)),
            F::Cas if log.covers(revision.saturating_sub(1)) => questions.push((revision - 1, call)),
            F::Renew | F::Register | F::Deregister if log.covers(revision) => {}
            _ => uncovered += 1,
        }
    }
    questions.sort_by_key(|(revision, call)| (*revision, call.invoke.index));
    let mut cursor = log.cursor();
    for (revision, call) in questions {
        let Some(state) = cursor.seek(revision) else { continue };
        if let Some(what) = answer_differs(call, revision, state) {
            let rule = match (call.f(), call.invoke.consistency) {
                (F::Cas, _) => "S9",
                (_, Some(Consistency::Stale)) => "S4",
                _ => "S3",
            };
            findings.add(rule, what);
        }
    }
    for call in calls.iter().filter(|call| matches!(call.f(), F::Read | F::List) && call.kind() == Kind::Ok) {
        for (key, value) in shown(call) {
            let returned = call.returned().unwrap_or(u64::MAX);
            if let Some(why) = writes.objection(key, value, returned) {
                findings.add("S8", format!("line {} shows {why}", call.invoke.index));
            }
        }
    }
    uncovered
}

fn shown(call: &Call) -> Vec<(&str, Option<u64>)> {
    match (call.ok().map(|ok| &ok.value), call.key()) {
        (Some(Value::List(entries)), _) => entries.iter().map(|entry| (entry.0.as_str(), entry.1)).collect(),
        (Some(Value::Int(value)), Some(key)) => vec![(key, Some(*value))],
        _ => Vec::new(),
    }
}

fn answer_differs(call: &Call, revision: u64, state: &State) -> Option<String> {
    let ok = call.ok()?;
    let index = ok.index;
    match (&ok.value, call.key()) {
        (Value::List(entries), service) => {
            let shown = state_of(entries);
            if shown.len() != entries.len() {
                return Some(format!("line {index} lists an id twice"));
            }
            let wanted = |key: &str| service.is_none_or(|service| service == service_of(key));
            let mut differing: Vec<String> = Vec::new();
            for (key, record) in state.iter().filter(|(key, _)| wanted(key)) {
                if shown.get(key) != Some(record) {
                    differing.push(format!("{key} {:?} where {record:?} was", shown.get(key)));
                }
            }
            differing.extend(
                shown
                    .iter()
                    .filter(|(key, _)| !state.contains_key(*key))
                    .map(|(key, _)| format!("{key} is extra")),
            );
            let first = differing.first()?;
            Some(format!(
                "line {index} lists revision {revision} wrongly in {} places: {first}",
                differing.len()
            ))
        }
        (_, Some(key)) if call.f() == F::Cas => {
            let found = state.get(key).map_or(0, |record| record.mod_rev);
            let expected = call.invoke.expected?;
            (found != expected).then(|| {
                format!(
                    "line {index} swapped {key} at {revision} + 1 expecting {expected}, {found} was there"
                )
            })
        }
        (value, Some(key)) => {
            let wanted = state.get(key);
            let shown = match value {
                Value::Int(value) => Some(Record {
                    value: Some(*value),
                    reg_rev: ok.reg_rev.unwrap_or_default(),
                    mod_rev: ok.mod_rev.unwrap_or_default(),
                }),
                _ => None,
            };
            (shown.as_ref() != wanted)
                .then(|| format!("line {index} read {key} at {revision} as {shown:?}, it was {wanted:?}"))
        }
        (_, None) => None,
    }
}
