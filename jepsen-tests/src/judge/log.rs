//! What happened, in order: the log that all watch transcripts together tell.
//!
//! A watcher of everything that starts from a snapshot and goes on without a gap knows every revision from there. The
//! log is the union of such pieces. Where no watcher was (all of them had to start anew from later snapshots) it has
//! a hole, and says so: nothing is judged by replay inside a hole.

use std::collections::BTreeMap;

use super::Findings;
use crate::history::Entry;
use crate::transcript::{Body, Change, Event, Transcript};

/// An instance as far as the judges care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The integer in its metadata.
    pub value: Option<u64>,
    /// The revision that registered this incarnation.
    pub reg_rev: u64,
    /// The revision that last changed it.
    pub mod_rev: u64,
}

impl From<&Entry> for Record {
    fn from(Entry(_, value, reg_rev, mod_rev): &Entry) -> Self {
        Self { value: *value, reg_rev: *reg_rev, mod_rev: *mod_rev }
    }
}

/// The catalog at one revision, by id.
pub type State = BTreeMap<String, Record>;

/// The catalog that a list or a snapshot shows.
pub fn state_of(entries: &[Entry]) -> State {
    entries.iter().map(|entry| (entry.0.clone(), Record::from(entry))).collect()
}

/// The merged log.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// Every revision that a watcher of everything was told of.
    pub revisions: BTreeMap<u64, Revision>,
    /// Where the log is complete, in order, disjoint.
    pub segments: Vec<Segment>,
}

/// What one revision changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// In the order of the message.
    pub events: Vec<Event>,
    /// When the first watcher learned of it.
    pub seen: u64,
}

/// A stretch without a gap.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The revision of `base`.
    pub start: u64,
    /// The last revision that a watcher of the stretch vouches for.
    pub end: u64,
    /// The catalog at `start`.
    pub base: State,
    /// When the snapshot was received.
    pub seen: u64,
}

/// How an incarnation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Deregistered.
    Deleted,
    /// Its lease ran out.
    Expired,
    /// Registered again under the same id.
    Replaced,
    /// Gone after a hole in the log.
    Unseen,
}

/// The end of one incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The id.
    pub key: String,
    /// The incarnation.
    pub reg_rev: u64,
    /// The revision that ended it; after a hole the first one known afterwards.
    pub revision: u64,
    /// When the first watcher learned of it.
    pub seen: u64,
    /// How.
    pub end: End,
}

impl Log {
    /// Merges the transcripts of the watchers of everything. Who disagrees with the first report of a revision is
    /// found by `watches`.
    pub fn merge(transcripts: &[Transcript]) -> Self {
        let mut revisions: BTreeMap<u64, Revision> = BTreeMap::new();
        let mut pieces: Vec<Segment> = Vec::new();
        for transcript in transcripts.iter().filter(|transcript| transcript.service.is_none()) {
            let mut piece: Option<Segment> = None;
            for message in &transcript.messages {
                match &message.body {
                    Body::Open { .. } => {}
                    Body::Reset { revision, instances } => {
                        let base = state_of(instances);
                        let next = Segment { start: *revision, end: *revision, base, seen: message.time };
                        pieces.extend(piece.replace(next));
                    }
                    Body::Events { revision, events } => {
                        merge_events(&mut revisions, events, message.time);
                        extend(&mut piece, *revision);
                    }
                    Body::Progress { revision } => extend(&mut piece, *revision),
                }
            }
            pieces.extend(piece);
        }
        Self { revisions, segments: join(pieces) }
    }

    /// Whether the catalog at `revision` is known.
    pub fn covers(&self, revision: u64) -> bool {
        self.segments.iter().any(|segment| segment.start <= revision && revision <= segment.end)
    }

    /// Whether what `revision` changed is known: as [`Self::covers`], but a snapshot does not say what made it.
    pub fn knows_change(&self, revision: u64) -> bool {
        self.segments.iter().any(|segment| segment.start < revision && revision <= segment.end)
    }

    /// Whether there is no hole between the first snapshot and the end.
    pub fn is_whole(&self) -> bool {
        self.segments.len() == 1
    }

    /// A reader that moves forward through the revisions.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { log: self, segment: None, at: 0, state: State::new() }
    }

    /// The ends of all incarnations, in order.
    pub fn removals(&self) -> Vec<Removal> {
        let mut removals = Vec::new();
        let mut state = State::new();
        for segment in &self.segments {
            for (key, record) in &state {
                if segment.base.get(key).is_none_or(|now| now.reg_rev != record.reg_rev) {
                    let (revision, seen) = (segment.start, segment.seen);
                    let (key, reg_rev) = (key.clone(), record.reg_rev);
                    removals.push(Removal { key, reg_rev, revision, seen, end: End::Unseen });
                }
            }
            state = segment.base.clone();
            for (revision, event, seen) in self.events_of(segment) {
                let before = state.get(&event.entry.0).copied();
                apply(&mut state, event);
                let end = match event.change {
                    Change::Delete => End::Deleted,
                    Change::Expire => End::Expired,
                    Change::Put => End::Replaced,
                };
                if let Some(before) = before
                    && state.get(&event.entry.0).is_none_or(|now| now.reg_rev != before.reg_rev)
                {
                    let (key, reg_rev) = (event.entry.0.clone(), before.reg_rev);
                    removals.push(Removal { key, reg_rev, revision, seen, end });
                }
            }
        }
        removals
    }

    /// Judges the log by itself: puts carry their revision, removals name what was there, and snapshots agree with
    /// the replay up to them.
    pub fn check(&self, findings: &mut Findings) {
        for segment in &self.segments {
            self.check_contiguous(segment, findings);
            let mut state = segment.base.clone();
            for (revision, event, _) in self.events_of(segment) {
                let Entry(id, _, reg_rev, mod_rev) = &event.entry;
                let before = state.get(id).copied();
                match event.change {
                    Change::Put if *mod_rev != revision || *reg_rev > revision => findings.add(
                        "S1",
                        format!("revision {revision} puts {id} with mod_rev {mod_rev}, reg_rev {reg_rev}"),
                    ),
                    Change::Put => {}
                    Change::Delete | Change::Expire if before != Some(Record::from(&event.entry)) => findings
                        .add(
                            "S1",
                            format!(
                                "revision {revision} takes out {:?}, but {} was there",
                                event.entry,
                                before.map_or("nothing".into(), |before| format!("{before:?}"))
                            ),
                        ),
                    Change::Delete | Change::Expire => {}
                }
                apply(&mut state, event);
            }
        }
    }

    /// Each revision comes with at least one event, so a watcher of everything that lacks one was told too little.
    fn check_contiguous(&self, segment: &Segment, findings: &mut Findings) {
        let mut last = segment.start;
        let known = self.revisions.keys().copied().filter(|it| segment.start < *it && *it <= segment.end);
        for revision in known.chain([segment.end + 1]) {
            if revision > last + 1 {
                findings.add("W3", format!("no watcher was told of {} up to {}", last + 1, revision - 1));
            }
            last = revision;
        }
    }

    fn events_of(&self, segment: &Segment) -> impl Iterator<Item = (u64, &Event, u64)> {
        self.revisions
            .range(segment.start + 1..=segment.end.max(segment.start + 1))
            .filter(|(revision, _)| **revision <= segment.end)
            .flat_map(|(revision, known)| {
                known.events.iter().map(move |event| (*revision, event, known.seen))
            })
    }
}

/// The catalog at one revision after another.
#[derive(Debug)]
pub struct Cursor<'a> {
    log: &'a Log,
    segment: Option<usize>,
    at: u64,
    state: State,
}

impl Cursor<'_> {
    /// The catalog at `revision`, which must not be lower than that of the call before; nothing if it lies in a hole.
    pub fn seek(&mut self, revision: u64) -> Option<&State> {
        let log = self.log;
        let holds = |segment: &Segment| segment.start <= revision && revision <= segment.end;
        if self.segment.is_none_or(|at| !holds(&log.segments[at])) {
            let at = log.segments.iter().position(holds)?;
            self.segment = Some(at);
            self.at = log.segments[at].start;
            self.state = log.segments[at].base.clone();
        }
        assert!(revision >= self.at, "cursor at {} cannot go back to {revision}", self.at);
        if revision > self.at {
            for known in log.revisions.range(self.at + 1..=revision).map(|(_, known)| known) {
                known.events.iter().for_each(|event| apply(&mut self.state, event));
            }
            self.at = revision;
        }
        Some(&self.state)
    }
}

/// Carries out one event.
pub fn apply(state: &mut State, event: &Event) {
    match event.change {
        Change::Put => {
            state.insert(event.entry.0.clone(), Record::from(&event.entry));
        }
        Change::Delete | Change::Expire => {
            state.remove(&event.entry.0);
        }
    }
}

fn merge_events(revisions: &mut BTreeMap<u64, Revision>, events: &[Event], seen: u64) {
    for group in events.chunk_by(|one, next| one.revision == next.revision) {
        revisions
            .entry(group[0].revision)
            .and_modify(|known| known.seen = known.seen.min(seen))
            .or_insert_with(|| Revision { events: group.to_vec(), seen });
    }
}

fn extend(piece: &mut Option<Segment>, revision: u64) {
    if let Some(piece) = piece {
        piece.end = piece.end.max(revision);
    }
}

/// Joins pieces that overlap or touch. What lies before the first event of the earliest piece is its base.
fn join(mut pieces: Vec<Segment>) -> Vec<Segment> {
    pieces.sort_by_key(|piece| (piece.start, piece.seen));
    let mut joined: Vec<Segment> = Vec::new();
    for piece in pieces {
        match joined.last_mut() {
            Some(last) if piece.start <= last.end => last.end = last.end.max(piece.end),
            _ => joined.push(piece),
        }
    }
    joined
}
