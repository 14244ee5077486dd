//! A history and its transcripts, told in a script. Times are milliseconds.
//!
//! ```text
//! 0..5 register web-1 10 = 1            acknowledged at revision 1; `= fail`, or `0..? ... ` for unknown
//! 0..5 register lease-1 10 ttl 3000 = 1
//! 0..5 cas cas-1 10>11@1 = 2            expects revision 1; `_>11@0` expects nothing
//! 0..5 deregister web-1 = found 3       or `= none 3`
//! 0..5 renew lease-1 1 = true           the incarnation 1
//! 0..5 read web-1 = 10@1/1 at 4         value @ reg_rev / mod_rev; or `= nothing`
//! 0..5 list web = web-1:10@1/1 at 4     `list *` for everything
//!      ... stale, on node-1, final      before the `=`
//! 7 kill leader 1 node-1 led node-1 installed
//! watch w1 @5 reset 0 web-1:10@1/1      watch w2/cas follows one service
//! watch w1 @6 events 2 | 1 put web-1:10@1/1 | 2 delete web-1:10@1/1
//! watch w1 @7 progress 3
//! ```

use std::collections::BTreeMap;

use crate::history::{
    Consistency, Entry, F, FORMAT, Gates, Header, History, Kind, Line, Nemesis, NemesisProcess, Op, Phase,
    Target, Value,
};
use crate::transcript::{Body, Change, Event, Message, Transcript};

pub(super) struct Story {
    pub(super) history: History,
    pub(super) transcripts: Vec<Transcript>,
}

const MS: u64 = 1_000_000;

impl Story {
    pub(super) fn tell(script: &str) -> Self {
        Self::gated(script, Gates::default())
    }

    pub(super) fn gated(script: &str, gates: Gates) -> Self {
        let mut lines = Vec::new();
        let mut watches: BTreeMap<String, Transcript> = BTreeMap::new();
        let told = script.lines().map(str::trim).filter(|line| !line.is_empty());
        for (process, line) in told.enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["watch", id, ..] => {
                    let (id, service) =
                        id.split_once('/').map_or((id, None), |(id, service)| (id, Some(service)));
                    let service = service.map(str::to_owned);
                    let new = || Transcript { id: id.into(), service, messages: Vec::new() };
                    let transcript = watches.entry(id.into()).or_insert_with(new);
                    transcript.messages.push(message(line));
                }
                [times, ..] if times.contains("..") => lines.extend(call(process as u64, line)),
                _ => lines.push(nemesis(&words)),
            }
        }
        // A call that returns when another begins: both may have been at work.
        lines.sort_by_key(|line| (line.time(), matches!(line, Line::Op(op) if op.kind != Kind::Invoke)));
        for (at, line) in lines.iter_mut().enumerate() {
            match line {
                Line::Op(op) => op.index = at as u64,
                Line::Nemesis(nemesis) => nemesis.index = at as u64,
            }
        }
        let header = Header {
            format: FORMAT.into(),
            seed: 1,
            nodes: ["node-1", "node-2", "node-3"].map(str::to_owned).to_vec(),
            git: "unknown".into(),
            argv: Vec::new(),
            start: "2026-11-22T10:00:00Z".into(),
            gates,
        };
        Self { history: History { header, lines }, transcripts: watches.into_values().collect() }
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text} is no number"))
}

/// `10@1/2`, or `_@1/2` for a record without a value.
fn record(text: &str) -> (Option<u64>, u64, u64) {
    let (value, revisions) = text.split_once('@').expect("value@reg/mod");
    let (reg_rev, mod_rev) = revisions.split_once('/').expect("value@reg/mod");
    (value.parse().ok(), number(reg_rev), number(mod_rev))
}

fn entry(text: &str) -> Entry {
    let (id, rest) = text.split_once(':').expect("id:record");
    let (value, reg_rev, mod_rev) = record(rest);
    Entry(id.into(), value, reg_rev, mod_rev)
}

fn call(process: u64, line: &str) -> Vec<Line> {
    let (asked, answered) = line.split_once('=').unwrap_or((line, ""));
    let mut words = asked.split_whitespace();
    let (from, until) = words.next().and_then(|times| times.split_once("..")).expect("times");
    let f = words.next().expect("what is called");
    let key = words.next().expect("of what");
    let mut op = Op {
        index: 0,
        time: number(from) * MS,
        process,
        kind: Kind::Invoke,
        f: serde_json::from_value(f.into()).expect("a known call"),
        key: (key != "*").then(|| key.into()),
        value: Value::None,
        expected: None,
        ttl_ms: None,
        consistency: None,
        revision: None,
        reg_rev: None,
        mod_rev: None,
        node: None,
        client: Some(format!("c{process}")),
        seq: None,
        error: None,
        last: false,
    };
    match op.f {
        F::Register => op.value = Value::Int(number(words.next().expect("a value"))),
        F::Cas => {
            let swap = words.next().expect("from>to@revision");
            let (from, rest) = swap.split_once('>').expect("from>to");
            let (to, expected) = rest.split_once('@').expect("to@revision");
            op.value = Value::Swap(from.parse().ok(), number(to));
            op.expected = Some(number(expected));
        }
        F::Renew => op.reg_rev = words.next().map(number),
        F::Read | F::List => op.consistency = Some(Consistency::Linearizable),
        F::Deregister => {}
    }
    if matches!(op.f, F::Register | F::Cas) {
        op.ttl_ms = Some(3_600_000);
    }
    while let Some(word) = words.next() {
        match word {
            "ttl" => op.ttl_ms = words.next().map(number),
            "stale" => op.consistency = Some(Consistency::Stale),
            "by" => op.client = words.next().map(str::to_owned),
            "on" => op.node = words.next().map(str::to_owned),
            "final" => op.last = true,
            other => panic!("what is {other} in {line}?"),
        }
    }
    let mut lines = vec![Line::Op(op.clone())];
    if until != "?" {
        let outcome = Op { time: number(until) * MS, kind: Kind::Ok, ..op };
        lines.push(Line::Op(answer(outcome, &answered.split_whitespace().collect::<Vec<_>>())));
    }
    lines
}

fn answer(mut op: Op, words: &[&str]) -> Op {
    match (op.f, words) {
        (_, ["fail"]) => op.kind = Kind::Fail,
        (F::Register | F::Cas, [revision]) => op.revision = Some(number(revision)),
        (F::Deregister, [found, revision]) => {
            op.value = Value::Bool(*found == "found");
            op.revision = Some(number(revision));
        }
        (F::Renew, [renewed]) => op.value = Value::Bool(*renewed == "true"),
        (F::Read, ["nothing"]) => {}
        (F::Read, [found, "at", revision]) => {
            let (value, reg_rev, mod_rev) = record(found);
            op.value = value.map_or(Value::None, Value::Int);
            (op.reg_rev, op.mod_rev, op.revision) = (Some(reg_rev), Some(mod_rev), Some(number(revision)));
        }
        (F::List, [found @ .., "at", revision]) => {
            op.value = Value::List(found.iter().map(|text| entry(text)).collect());
            op.revision = Some(number(revision));
        }
        other => panic!("{other:?} is no answer"),
    }
    op
}

fn nemesis(words: &[&str]) -> Line {
    let [time, f, scope, fault, rest @ ..] = words else { panic!("{words:?} is no fault") };
    let (phase, rest) = rest.split_last().expect("a phase");
    let (nodes, leader) = match rest {
        [nodes @ .., "led", leader] => (nodes, Some((*leader).to_owned())),
        nodes => (nodes, None),
    };
    let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
    let phase = match *phase {
        "installed" => Phase::Installed,
        "healed" => Phase::Healed,
        "skipped" => Phase::Skipped,
        other => panic!("{other} is no phase"),
    };
    Line::Nemesis(Nemesis {
        index: 0,
        time: number(time) * MS,
        process: NemesisProcess::Nemesis,
        kind: Kind::Info,
        f: (*f).to_owned(),
        value: Target { fault: number(fault), scope: (*scope).to_owned(), nodes, leader, error: None },
        phase,
    })
}

fn message(line: &str) -> Message {
    let mut parts = line.split('|');
    let words: Vec<&str> = parts.next().expect("the head").split_whitespace().collect();
    let [_, _, time, kind, revision, instances @ ..] = &words[..] else { panic!("{line} is no message") };
    let revision = number(revision);
    let body = match *kind {
        "reset" => Body::Reset { revision, instances: instances.iter().map(|text| entry(text)).collect() },
        "events" => Body::Events { revision, events: parts.map(event).collect() },
        "progress" => Body::Progress { revision },
        other => panic!("{other} is no message"),
    };
    Message { time: number(time.trim_start_matches('@')) * MS, body }
}

fn event(text: &str) -> Event {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [revision, change, what] = &words[..] else { panic!("{text} is no event") };
    let change = match *change {
        "put" => Change::Put,
        "delete" => Change::Delete,
        "expire" => Change::Expire,
        other => panic!("{other} is no change"),
    };
    Event { revision: number(revision), change, entry: entry(what) }
}
