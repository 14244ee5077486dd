//! W: each watch transcript against the merged log, in one pass.
//!
//! - W1 ordered by revision, never behind the watcher's position. W2 no (revision, instance) twice.
//! - W3 no gap: between two positions exactly the log's events, filtered. W4 a revision comes in one message.
//! - W5 after a reconnection the first event is beyond the position: the same check, since the transcript goes on.
//! - W6 a progress moves the position only over revisions that were delivered, and never back.
//! - W9, W10 a snapshot is complete, at or beyond the position, and equal to the replay up to it.

use std::collections::HashSet;

use super::Findings;
use super::log::{Log, state_of};
use crate::history::{Entry, service_of};
use crate::transcript::{Body, Event, Message, Transcript};

/// Judges every transcript against `log`.
pub fn check(transcripts: &[Transcript], log: &Log, findings: &mut Findings) {
    transcripts.iter().for_each(|transcript| Walk::new(transcript, log, findings).all());
    snapshots(transcripts, log, findings);
}

struct Walk<'a> {
    transcript: &'a Transcript,
    log: &'a Log,
    findings: &'a mut Findings,
    /// Nothing before the first snapshot.
    position: Option<u64>,
}

impl<'a> Walk<'a> {
    fn new(transcript: &'a Transcript, log: &'a Log, findings: &'a mut Findings) -> Self {
        Self { transcript, log, findings, position: None }
    }

    fn all(mut self) {
        for Message { time, body } in &self.transcript.messages {
            match body {
                Body::Open { .. } => {}
                Body::Reset { revision, .. } => self.reset(*time, *revision),
                Body::Events { revision, events } => self.events(*time, *revision, events),
                Body::Progress { revision } => self.advance(*time, *revision, &[], "W6"),
            }
        }
    }

    fn reset(&mut self, time: u64, revision: u64) {
        if let Some(position) = self.position
            && revision < position
        {
            self.add("W9", time, format!("a snapshot goes back from {position} to {revision}"));
        }
        self.position = Some(revision);
    }

    fn events(&mut self, time: u64, revision: u64, events: &[Event]) {
        let mut seen: HashSet<(u64, &str)> = HashSet::new();
        let mut last = self.position.unwrap_or(0);
        for event in events {
            let id = event.entry.0.as_str();
            if self.position.is_some_and(|position| event.revision <= position) {
                let position = self.position.unwrap_or(0);
                self.add("W1", time, format!("revision {} again or late, after {position}", event.revision));
            } else if event.revision < last {
                self.add("W1", time, format!("revision {} after {last}", event.revision));
            }
            if !seen.insert((event.revision, id)) {
                self.add("W2", time, format!("{id} twice in revision {}", event.revision));
            }
            if event.revision > revision {
                self.add("W4", time, format!("an event of {} in a message up to {revision}", event.revision));
            }
            if self.transcript.service.as_deref().is_some_and(|service| service != service_of(id)) {
                self.add("W8", time, format!("{id} is of another service"));
            }
            last = last.max(event.revision);
        }
        self.advance(time, revision, events, "W3");
    }

    /// Moves the position to `revision`; `delivered` must be all that happened in between.
    fn advance(&mut self, time: u64, revision: u64, delivered: &[Event], rule: &'static str) {
        let Some(position) = self.position else {
            self.add("W9", time, format!("revision {revision} before any snapshot"));
            self.position = Some(revision);
            return;
        };
        if revision < position {
            self.add("W1", time, format!("the position goes back from {position} to {revision}"));
            return;
        }
        self.position = Some(revision);
        let wanted: Vec<&Event> = self.log_between(position, revision);
        let got: Vec<&Event> = delivered.iter().filter(|event| event.revision > position).collect();
        if got == wanted {
            return;
        }
        let missing = wanted.iter().find(|event| !got.contains(event));
        let extra = got.iter().find(|event| !wanted.contains(event));
        let what = match (missing, extra) {
            (Some(missing), _) => format!("lacks {missing:?}"),
            (None, Some(extra)) => format!("{extra:?} is not in the log"),
            (None, None) => "order or number differ from the log".into(),
        };
        self.add(rule, time, format!("between {position} and {revision}: {what}"));
    }

    fn log_between(&self, after: u64, until: u64) -> Vec<&'a Event> {
        if until <= after {
            return Vec::new();
        }
        let service = self.transcript.service.as_deref();
        let log = self.log;
        log.revisions
            .range(after + 1..=until)
            .flat_map(|(_, known)| &known.events)
            .filter(|event| service.is_none_or(|service| service == service_of(&event.entry.0)))
            .collect()
    }

    fn add(&mut self, rule: &'static str, time: u64, what: String) {
        self.findings.add(rule, format!("watch {} at {time} ns: {what}", self.transcript.id));
    }
}

/// W10, in one sweep over all snapshots by revision.
fn snapshots(transcripts: &[Transcript], log: &Log, findings: &mut Findings) {
    let mut shown: Vec<(u64, &Transcript, &[Entry])> = Vec::new();
    for transcript in transcripts {
        for message in &transcript.messages {
            if let Body::Reset { revision, instances } = &message.body {
                shown.push((*revision, transcript, instances));
            }
        }
    }
    shown.sort_by_key(|(revision, ..)| *revision);
    let mut cursor = log.cursor();
    for (revision, transcript, instances) in shown {
        let Some(state) = cursor.seek(revision) else { continue };
        let mut wanted = state.clone();
        if let Some(service) = &transcript.service {
            wanted.retain(|key, _| service_of(key) == service);
        }
        if state_of(instances) != wanted {
            let id = &transcript.id;
            let what = format!("watch {id}: the snapshot at {revision} is not the replay up to it");
            findings.add("W10", what);
        }
    }
}
