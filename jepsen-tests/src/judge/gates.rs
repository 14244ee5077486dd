//! What a run must have exercised: a run without faults or without traffic passes every checker and proves nothing.

use std::collections::BTreeSet;

use crate::history::{Call, F, History, Kind, Phase};

/// Fewer calls than this say nothing about a share.
const TRIED_MIN: u64 = 50;

/// The gates that the run missed, in words.
pub fn missed(history: &History, calls: &[Call], uncovered: u64) -> Vec<String> {
    let gates = &history.header.gates;
    let mut missed = Vec::new();
    let ok = calls.iter().filter(|call| call.kind() == Kind::Ok).count() as u64;
    let unknown = calls.iter().filter(|call| call.kind() == Kind::Info).count() as u64;

    for fault in &gates.faults {
        if !happened(history, fault) {
            missed.push(format!("{fault} was not installed and healed"));
        }
    }
    for f in &gates.calls {
        if !calls.iter().any(|call| call.f() == *f && call.kind() == Kind::Ok) {
            missed.push(format!("no {f:?} succeeded").to_lowercase());
        }
    }
    missed.extend(before_faults(history, calls));
    if unknown * 100 > gates.unknown_percent_max * calls.len() as u64 {
        missed.push(format!(
            "{unknown} of {} outcomes are unknown, over {} %",
            calls.len(),
            gates.unknown_percent_max
        ));
    }
    missed.extend(under_faults(history, calls));
    if uncovered * 100 > gates.uncovered_percent_max * ok {
        let max = gates.uncovered_percent_max;
        missed.push(format!(
            "no watcher saw the revisions of {uncovered} of {ok} acknowledged calls, over {max} %"
        ));
    }
    if gates.final_reads {
        missed.extend(final_calls(history, calls));
    }
    missed
}

/// Whether a fault of this name, as `kill-leader`, was both installed and healed.
fn happened(history: &History, fault: &str) -> bool {
    let of_name = |phase| {
        history
            .nemeses()
            .filter(move |it| it.phase == phase && format!("{}-{}", it.f, it.value.scope) == fault)
            .map(|it| it.value.fault)
            .collect::<BTreeSet<u64>>()
    };
    !of_name(Phase::Installed).is_disjoint(&of_name(Phase::Healed))
}

fn before_faults(history: &History, calls: &[Call]) -> Option<String> {
    let wanted = history.header.gates.calls_per_second_min;
    let first = calls.first()?.invoked();
    let installed = history.nemeses().find(|it| it.phase == Phase::Installed).map(|it| it.time);
    let until = installed.unwrap_or_else(|| calls.last().map_or(first, Call::invoked));
    let acknowledged = calls
        .iter()
        .filter(|call| call.ok().is_some() && call.returned().is_some_and(|at| at <= until))
        .count();
    let seconds = until.saturating_sub(first) as f64 / 1e9;
    let rate = acknowledged as f64 / seconds.max(0.001);
    (rate < wanted as f64)
        .then(|| format!("{rate:.0} acknowledged calls per second before the first fault, under {wanted}"))
}

/// Calls that began while at least one node, but no majority, was faulty.
fn under_faults(history: &History, calls: &[Call]) -> Option<String> {
    let wanted = history.header.gates.ok_percent_min;
    let minority = (history.header.nodes.len().max(1) - 1) / 2;
    let mut windows = Vec::new();
    let mut open: Vec<(u64, usize)> = Vec::new();
    let mut since = None;
    for it in history.nemeses().filter(|it| it.phase != Phase::Skipped) {
        let before: usize = open.iter().map(|(_, nodes)| nodes).sum();
        if before > 0 && before <= minority {
            windows.extend(since.map(|since| (since, it.time)));
        }
        if it.phase == Phase::Installed {
            open.push((it.value.fault, it.value.nodes.len()));
        } else {
            open.retain(|(fault, _)| *fault != it.value.fault);
        }
        since = Some(it.time);
    }
    let within =
        |call: &&Call| windows.iter().any(|(from, until)| (*from..=*until).contains(&call.invoked()));
    let tried = calls.iter().filter(within).count() as u64;
    let ok = calls.iter().filter(within).filter(|call| call.kind() == Kind::Ok).count() as u64;
    (tried >= TRIED_MIN && ok * 100 < wanted * tried)
        .then(|| format!("{ok} of {tried} calls succeeded while a majority was up, under {wanted} %"))
}

fn final_calls(history: &History, calls: &[Call]) -> Vec<String> {
    let last: Vec<&Call> = calls.iter().filter(|call| call.invoke.last).collect();
    let mut missed: Vec<String> = last
        .iter()
        .filter(|call| call.kind() != Kind::Ok)
        .map(|call| {
            let why = call.outcome.as_ref().and_then(|op| op.error.as_deref()).unwrap_or("no outcome");
            format!("the final call of line {} is not ok: {why}", call.invoke.index)
        })
        .collect();
    for node in &history.header.nodes {
        let read = |call: &&&Call| {
            call.f() == F::List
                && call.key().is_none()
                && call.invoke.node.as_ref() == Some(node)
                && call.ok().is_some()
        };
        if !last.iter().any(|call| read(&call)) {
            missed.push(format!("{node} answered no final read of everything"));
        }
    }
    missed
}
