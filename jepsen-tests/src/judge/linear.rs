//! Compare-and-set keys through the search for linearizability, key by key.
//!
//! A second opinion beside `revisions`: it knows values and times only. Unknown writes are resolved from the log where
//! that is whole, because every unresolved one doubles the search.

use std::collections::{BTreeMap, HashMap};

use super::Findings;
use super::log::Log;
use super::wgl::{self, Action, Answer, Operation};
use crate::history::{Call, F, Kind, Value, service_of};
use crate::transcript::Change;

/// The service whose instances are judged here.
pub const SERVICE: &str = "cas";

/// Steps per key. A key of some hundred resolved calls takes a few thousand; this many take about a second.
const STEPS_MAX: u64 = 2_000_000;

/// Judges each key; returns how many there were.
pub fn check(calls: &[Call], log: &Log, findings: &mut Findings) -> u64 {
    let mut keys: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
    for call in calls {
        if let Some(key) = call.key().filter(|key| service_of(key) == SERVICE && call.f() != F::List) {
            keys.entry(key).or_default().push(call);
        }
    }
    let effects = effects(log);
    for (key, calls) in &keys {
        let operations: Vec<Operation> =
            calls.iter().filter_map(|call| operation(call, log, &effects)).collect();
        match wgl::search(&operations, STEPS_MAX) {
            Answer::Linearizable => {}
            Answer::Illegal => {
                findings.add("S2", format!("the {} calls of {key} have no order", operations.len()))
            }
            Answer::Unknown => {
                findings.add(
                    "S2",
                    format!("no verdict on the {} calls of {key} in {STEPS_MAX} steps", operations.len()),
                );
            }
        }
    }
    keys.len() as u64
}

/// When each value was first seen to have been written.
fn effects(log: &Log) -> HashMap<u64, u64> {
    let puts =
        log.revisions.values().flat_map(|known| known.events.iter().map(move |event| (event, known.seen)));
    puts.filter(|(event, _)| event.change == Change::Put)
        .filter_map(|(event, seen)| Some((event.entry.1?, seen)))
        .collect()
}

fn operation(call: &Call, log: &Log, effects: &HashMap<u64, u64>) -> Option<Operation> {
    let (invoked, outcome) = (call.invoked(), call.ok());
    let action = match (call.f(), &call.invoke.value) {
        _ if call.kind() == Kind::Fail => return None,
        (F::Register, Value::Int(value)) => Action::Write(*value),
        (F::Cas, Value::Swap(from, to)) => Action::Swap { from: *from, to: *to },
        (F::Deregister, _) => Action::Remove { found: outcome.map(|ok| ok.value == Value::Bool(true)) },
        (F::Read, _) => match outcome?.value {
            Value::Int(value) => Action::Read(Some(value)),
            _ => Action::Read(None),
        },
        _ => return None,
    };
    let returned = match (call.returned(), call.invoke.value.written()) {
        (Some(returned), _) => Some(returned),
        (None, Some(value)) if log.is_whole() => Some((*effects.get(&value)?).max(invoked)),
        (None, _) => None,
    };
    Some(Operation { action, invoked, returned })
}
