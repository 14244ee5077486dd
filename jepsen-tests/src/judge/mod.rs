//! The judges: a history and its watch transcripts in, violations out.
//!
//! They share no code with the servers and no state with the run. Everything is judged by revision in O(n log n); a
//! small search for linearizability ([`wgl`]) looks at compare-and-set keys with nothing but values and times, so
//! that a wrong idea of revisions cannot hide.
//!
//! ```text
//! log        what happened, in order: merged from all transcripts; replay
//! revisions  S1 S2 S3 S4 S8 S9   acknowledged writes, reads and the log agree
//! durability D1                  nothing acknowledged is lost
//! watches    W1..W6 W9 W10       each transcript against the log
//! leases     E1 E2 E3 E6         expiry, neither early nor late
//! linear     S2                  compare-and-set keys through wgl
//! gates                          the run exercised what it had to
//! ledger     D1                  the same promise key by key, for power cuts, whose runs have no history
//! ```

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use crate::history::{Call, Error, F, History, Kind, Phase};
use crate::transcript::Transcript;

pub mod durability;
pub mod gates;
pub mod leases;
pub mod ledger;
pub mod linear;
pub mod log;
pub mod revisions;
#[cfg(test)]
mod tests;
pub mod watches;
pub mod wgl;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which promise: `S2`, `D1`, `W3`, ...
    pub rule: &'static str,
    /// What shows it, with the index of the history line where there is one.
    pub what: String,
}

/// Violations as they are found.
#[derive(Debug, Default)]
pub struct Findings {
    list: Vec<Violation>,
    more: HashMap<&'static str, u64>,
}

/// So many violations of one rule are worth reading; the rest is counted.
const SHOWN_PER_RULE: usize = 20;

impl Findings {
    /// Notes that `rule` was broken.
    pub fn add(&mut self, rule: &'static str, what: impl Into<String>) {
        if self.list.iter().filter(|known| known.rule == rule).count() < SHOWN_PER_RULE {
            self.list.push(Violation { rule, what: what.into() });
        } else {
            *self.more.entry(rule).or_default() += 1;
        }
    }

    /// What was found, in the order it was found.
    pub fn list(&self) -> &[Violation] {
        &self.list
    }
}

/// The verdict on a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Calls that were invoked.
    pub operations: u64,
    /// Those acknowledged.
    pub ok: u64,
    /// Those that certainly had no effect.
    pub failed: u64,
    /// Those whose outcome is unknown.
    pub unknown: u64,
    /// Faults that were installed.
    pub faults: u64,
    /// Watch transcripts.
    pub watchers: u64,
    /// Revisions in the merged log.
    pub revisions: u64,
    /// Acknowledged calls at revisions that no watcher covered: judged by order and durability only.
    pub uncovered: u64,
    /// Keys that went through the search for linearizability.
    pub searched_keys: u64,
    /// Broken promises.
    pub violations: Vec<Violation>,
    /// Violations beyond those listed.
    pub violations_more: u64,
    /// Why the run does not count even without a violation.
    pub gates: Vec<String>,
}

impl Report {
    /// Whether every check passed and the run counts.
    pub fn passed(&self) -> bool {
        self.violations.is_empty() && self.gates.is_empty()
    }

    fn violation_count(&self) -> u64 {
        self.violations.len() as u64 + self.violations_more
    }
}

/// The verdict in one line: the last one a run prints.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed() { "passed" } else { "FAILED" };
        write!(
            f,
            "{verdict}: {} operations ({} ok, {} failed, {} unknown), {} faults, {} revisions seen by {} watchers, \
             {} violations",
            self.operations,
            self.ok,
            self.failed,
            self.unknown,
            self.faults,
            self.revisions,
            self.watchers,
            self.violation_count()
        )?;
        match self.gates.len() {
            0 => Ok(()),
            gates => write!(f, ", {gates} gates missed"),
        }
    }
}

/// Judges a run. Fails if the history breaks its own rules: nothing could be concluded from it.
pub fn judge(history: &History, transcripts: &[Transcript]) -> Result<Report, Error> {
    let calls = history.calls()?;
    let log = log::Log::merge(transcripts);
    let mut findings = Findings::default();

    log.check(&mut findings);
    let writes = Writes::index(&calls, &mut findings);
    let uncovered = revisions::check(&calls, &writes, &log, &mut findings);
    durability::check(&calls, &writes, &log, &mut findings);
    watches::check(transcripts, &log, &mut findings);
    leases::check(history, &calls, &log, &mut findings);
    let searched_keys = linear::check(&calls, &log, &mut findings);

    let count = |kind| calls.iter().filter(|call| call.kind() == kind).count() as u64;
    let installed = history.nemeses().filter(|nemesis| nemesis.phase == Phase::Installed).count() as u64;
    Ok(Report {
        operations: calls.len() as u64,
        ok: count(Kind::Ok),
        failed: count(Kind::Fail),
        unknown: count(Kind::Info),
        faults: installed,
        watchers: transcripts.len() as u64,
        revisions: log.revisions.len() as u64,
        uncovered,
        searched_keys,
        gates: gates::missed(history, &calls, uncovered),
        violations_more: findings.more.values().sum(),
        violations: findings.list,
    })
}

/// Who wrote which value: every write of a run has its own.
#[derive(Debug)]
pub struct Writes<'a> {
    by_value: HashMap<u64, &'a Call>,
}

impl<'a> Writes<'a> {
    /// Indexes the writes of `calls`. Two writes of one value are an error of the run.
    pub fn index(calls: &'a [Call], findings: &mut Findings) -> Self {
        let mut by_value = HashMap::new();
        for call in calls.iter().filter(|call| matches!(call.f(), F::Register | F::Cas)) {
            let Some(value) = call.invoke.value.written() else {
                findings.add("H", format!("line {} writes nothing", call.invoke.index));
                continue;
            };
            if by_value.insert(value, call).is_some() {
                findings.add("H", format!("line {} writes {value} a second time", call.invoke.index));
            }
        }
        Self { by_value }
    }

    /// Why nobody may see `value` under `key` at `seen`, if so: never written there, refused, or not written yet.
    pub fn objection(&self, key: &str, value: Option<u64>, seen: u64) -> Option<String> {
        let Some(value) = value else { return Some(format!("{key} without a value")) };
        let Some(call) = self.by_value.get(&value) else {
            return Some(format!("{key}={value}, which nobody wrote"));
        };
        let index = call.invoke.index;
        if call.key() != Some(key) {
            return Some(format!("{key}={value}, which line {index} wrote under another id"));
        }
        if call.kind() == Kind::Fail {
            return Some(format!("{key}={value}, though the write of line {index} was refused"));
        }
        if call.invoked() > seen {
            return Some(format!("{key}={value} before line {index} wrote it"));
        }
        None
    }

    /// The write of `value`.
    pub fn of(&self, value: Option<u64>) -> Option<&'a Call> {
        self.by_value.get(&value?).copied()
    }
}
