//! The history of a run: one JSON object per line, in the order things were recorded.
//!
//! Owns the line format `flux-history/1`, its reader and writer, and the pairing of invocations with their
//! completions. `time` is nanoseconds since the start of the run, from one monotonic clock that all recording parties
//! share, so comparing times is comparing real time. A process has one call open at a time; after an unknown
//! outcome its id is never used again.

use std::collections::HashMap;
use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The format this crate writes, and the only one it reads.
pub const FORMAT: &str = "flux-history/1";

/// The first line: where the history comes from, and what the run had to achieve to count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Always [`FORMAT`].
    pub format: String,
    /// Everything random in the run came from this number.
    pub seed: u64,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// The commit that was tested, or `unknown`.
    pub git: String,
    /// The command line of the run.
    pub argv: Vec<String>,
    /// Wall clock at the start, RFC 3339; for people.
    pub start: String,
    /// What the run must have exercised.
    #[serde(default)]
    pub gates: Gates,
}

/// What a run must have exercised: one that did not proves nothing and fails.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gates {
    /// Faults that must have been installed and healed, as `kill-leader`.
    pub faults: Vec<String>,
    /// Acknowledged calls per second before the first fault, at least.
    pub calls_per_second_min: u64,
    /// Share of calls that may stay unknown, in percent.
    pub unknown_percent_max: u64,
    /// Share of calls that must succeed while at most a minority is faulty, in percent.
    pub ok_percent_min: u64,
    /// Kinds of calls of which at least one must have succeeded.
    pub calls: Vec<F>,
    /// Share of acknowledged calls whose revision no watcher covered, in percent.
    pub uncovered_percent_max: u64,
    /// Every node must have answered a read of everything after the last heal, and every final call must be ok.
    pub final_reads: bool,
}

/// None: everything counts.
impl Default for Gates {
    fn default() -> Self {
        Self {
            faults: Vec::new(),
            calls_per_second_min: 0,
            unknown_percent_max: 100,
            ok_percent_min: 0,
            calls: Vec::new(),
            uncovered_percent_max: 100,
            final_reads: false,
        }
    }
}

/// Any line but the first.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// What a client did or learned.
    Op(Op),
    /// What was done to the cluster.
    Nemesis(Nemesis),
}

/// A client invokes a call, or learns its outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Op {
    /// Position in the history.
    pub index: u64,
    /// Nanoseconds since the start of the run.
    pub time: u64,
    /// Who: one call open at a time, never used again after `info`.
    pub process: u64,
    /// Invocation or outcome.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// What is called.
    pub f: F,
    /// The instance; of a list the service, or nothing for all of them.
    #[serde(default)]
    pub key: Option<String>,
    /// What is written, or what was read.
    #[serde(default)]
    pub value: Value,
    /// Of a cas: the `mod_rev` it depends on, 0 for "not registered".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
    /// Of a register: how long it lives without a heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// Reads and lists: how fresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// Of an acknowledged effective write the revision that it made; of a read the revision it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// The incarnation that the call names, or that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reg_rev: Option<u64>,
    /// Of a read: the revision that last changed the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mod_rev: Option<u64>,
    /// The node that the client is bound to; absent if the client follows the leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The client; it outlives its process ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Number of the call within its client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// Why it failed, or why the outcome is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// One of the calls after the last heal, which must succeed.
    #[serde(default, rename = "final", skip_serializing_if = "std::ops::Not::not")]
    pub last: bool,
}

/// A fault was installed, healed or could not be installed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Nemesis {
    /// Position in the history.
    pub index: u64,
    /// Nanoseconds since the start of the run: of an install when it began, of a heal when it was complete.
    pub time: u64,
    /// Always `nemesis`.
    pub process: NemesisProcess,
    /// Always `info`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// What was done: `kill`, `term`, `pause`.
    pub f: String,
    /// To whom.
    pub value: Target,
    /// What became of it.
    pub phase: Phase,
}

/// The process id of every [`Nemesis`] line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NemesisProcess {
    /// The only one there is.
    Nemesis,
}

/// Whom a fault hits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Pairs an install with its heal.
    pub fault: u64,
    /// How the nodes were chosen: `leader`, `follower`, `one`, `majority`, `all`.
    pub scope: String,
    /// The nodes.
    pub nodes: Vec<String>,
    /// Who led when the fault was installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Why it was not installed or healed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It is in effect from here on.
    Installed,
    /// It is in effect no more.
    Healed,
    /// It could not be installed.
    Skipped,
}

/// Invocation or outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The call begins.
    Invoke,
    /// It took effect and says what it saw.
    Ok,
    /// It certainly had no effect.
    Fail,
    /// Nobody knows.
    Info,
}

/// What a client calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum F {
    /// Puts an instance, whatever was there.
    Register,
    /// Puts an instance if the record is at an expected revision.
    Cas,
    /// Takes an instance out.
    Deregister,
    /// Renews a lease.
    Renew,
    /// Reads one instance.
    Read,
    /// Reads a service, or everything.
    List,
}

impl F {
    /// Whether an acknowledged one with a revision made that revision.
    pub fn writes(self) -> bool {
        matches!(self, Self::Register | Self::Cas | Self::Deregister)
    }
}

/// How fresh a read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Sees everything acknowledged before the call.
    Linearizable,
    /// What the node has applied.
    Stale,
}

/// What is written or read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// Nothing, or not known yet.
    #[default]
    None,
    /// Renew: whether the lease was renewed. Deregister: whether something was taken out.
    Bool(bool),
    /// The integer in the instance's metadata; every write of a run has its own.
    Int(u64),
    /// Cas: the value depended on, and the new one.
    Swap(Option<u64>, u64),
    /// List: the instances.
    List(Vec<Entry>),
}

impl Value {
    /// The integer that a register or cas writes.
    pub fn written(&self) -> Option<u64> {
        match self {
            Self::Int(value) | Self::Swap(_, value) => Some(*value),
            _ => None,
        }
    }
}

/// One instance in a list: `[id, value, reg_rev, mod_rev]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry(pub String, pub Option<u64>, pub u64, pub u64);

/// The service of an instance is its id up to the first dash.
pub fn service_of(id: &str) -> &str {
    id.split_once('-').map_or(id, |(service, _)| service)
}

/// A whole history.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// The first line.
    pub header: Header,
    /// The others.
    pub lines: Vec<Line>,
}

/// Why a history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read the history")]
    Io(#[from] std::io::Error),
    /// A line is not what it should be.
    #[error("line {line}: {why}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
}

impl History {
    /// Reads what [`write_line`] wrote. A last line without its newline is an interrupted write and is refused.
    pub fn read(from: impl BufRead) -> Result<Self, Error> {
        let mut header = None;
        let mut lines = Vec::new();
        for (at, text) in from.lines().enumerate() {
            let text = text?;
            let malformed = |why: String| Error::Line { line: at + 1, why };
            if header.is_none() {
                let read: Header =
                    serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
                if read.format != FORMAT {
                    return Err(malformed(format!("format {:?} is not {FORMAT:?}", read.format)));
                }
                header = Some(read);
                continue;
            }
            let line = parse(&text).map_err(|error| malformed(error.to_string()))?;
            if line.index() != lines.len() as u64 {
                return Err(malformed(format!("index {} where {} follows", line.index(), lines.len())));
            }
            lines.push(line);
        }
        let header = header.ok_or_else(|| Error::Line { line: 1, why: "the file is empty".into() })?;
        Ok(Self { header, lines })
    }

    /// Pairs invocations with their outcomes, in the order of invocation. Who breaks the rules of processes is
    /// refused: nothing could be concluded from such a history.
    pub fn calls(&self) -> Result<Vec<Call>, Error> {
        let mut calls: Vec<Call> = Vec::new();
        let mut open: HashMap<u64, usize> = HashMap::new();
        let mut retired: HashMap<u64, u64> = HashMap::new();
        for op in self.ops() {
            // The header is line 1.
            let refuse = |why: &str| {
                Err(Error::Line { line: op.index as usize + 2, why: format!("process {} {why}", op.process) })
            };
            match (op.kind, open.get(&op.process)) {
                (Kind::Invoke, Some(_)) => return refuse("already has a call open"),
                (Kind::Invoke, None) if retired.contains_key(&op.process) => {
                    return refuse("was used again after an unknown outcome");
                }
                (Kind::Invoke, None) => {
                    open.insert(op.process, calls.len());
                    calls.push(Call { invoke: op.clone(), outcome: None });
                }
                (_, None) => return refuse("completes a call that it has not invoked"),
                (kind, Some(&at)) => {
                    if calls[at].invoke.f != op.f {
                        return refuse("completes another call than it invoked");
                    }
                    open.remove(&op.process);
                    if kind == Kind::Info {
                        retired.insert(op.process, op.index);
                    }
                    calls[at].outcome = Some(op.clone());
                }
            }
        }
        Ok(calls)
    }

    /// The lines of clients.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        self.lines.iter().filter_map(|line| match line {
            Line::Op(op) => Some(op),
            Line::Nemesis(_) => None,
        })
    }

    /// The lines of faults.
    pub fn nemeses(&self) -> impl Iterator<Item = &Nemesis> {
        self.lines.iter().filter_map(|line| match line {
            Line::Op(_) => None,
            Line::Nemesis(nemesis) => Some(nemesis),
        })
    }
}

/// A call from its invocation to its outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// How it began.
    pub invoke: Op,
    /// How it ended; absent if the run ended first, which is as good as unknown.
    pub outcome: Option<Op>,
}

impl Call {
    /// What was called.
    pub fn f(&self) -> F {
        self.invoke.f
    }

    /// The instance, or nothing for a list of everything.
    pub fn key(&self) -> Option<&str> {
        self.invoke.key.as_deref()
    }

    /// When it began.
    pub fn invoked(&self) -> u64 {
        self.invoke.time
    }

    /// When it ended, if its outcome is known.
    pub fn returned(&self) -> Option<u64> {
        self.outcome.as_ref().filter(|op| op.kind != Kind::Info).map(|op| op.time)
    }

    /// [`Kind::Ok`], [`Kind::Fail`] or [`Kind::Info`].
    pub fn kind(&self) -> Kind {
        self.outcome.as_ref().map_or(Kind::Info, |op| op.kind)
    }

    /// The outcome, if the call was acknowledged.
    pub fn ok(&self) -> Option<&Op> {
        self.outcome.as_ref().filter(|op| op.kind == Kind::Ok)
    }

    /// The revision that this call made, if it is known to have made one.
    pub fn wrote(&self) -> Option<u64> {
        let ok = self.ok()?;
        let effective = self.f() != F::Deregister || ok.value == Value::Bool(true);
        if self.f().writes() && effective { ok.revision } else { None }
    }

    /// Whether it may have changed the catalog, for all that its client knows.
    pub fn may_have_written(&self) -> bool {
        self.f().writes()
            && self.kind() != Kind::Fail
            && (self.kind() == Kind::Info || self.wrote().is_some())
    }
}

impl Line {
    /// Position in the history.
    pub fn index(&self) -> u64 {
        match self {
            Self::Op(op) => op.index,
            Self::Nemesis(nemesis) => nemesis.index,
        }
    }

    /// Nanoseconds since the start of the run.
    pub fn time(&self) -> u64 {
        match self {
            Self::Op(op) => op.time,
            Self::Nemesis(nemesis) => nemesis.time,
        }
    }
}

/// Told apart by `process` first, so that an error names the field that is wrong.
fn parse(text: &str) -> Result<Line, serde_json::Error> {
    #[derive(Deserialize)]
    struct Peek {
        process: serde_json::Value,
    }
    let peek: Peek = serde_json::from_str(text)?;
    if peek.process.is_string() {
        serde_json::from_str(text).map(Line::Nemesis)
    } else {
        serde_json::from_str(text).map(Line::Op)
    }
}

/// Writes one line of JSON; header, op and nemesis alike.
pub fn write_line(to: &mut impl Write, line: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *to, line)?;
    to.write_all(b"\n")
}

impl Serialize for Line {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Op(op) => op.serialize(serializer),
            Self::Nemesis(nemesis) => nemesis.serialize(serializer),
        }
    }
}
