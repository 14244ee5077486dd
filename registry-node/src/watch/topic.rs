//! What one service's watchers share: the newest changes that concern it, each encoded once, the snapshot that is
//! being sent, and the call that wakes them. There is one topic a service that is watched, and one for all services.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex, OnceLock, Weak},
};

use super::{Batch, Slice};
use crate::{
    catalog::{Event, Record, ServiceName},
    latest,
};
use bytes::Bytes;

/// Changes that a topic keeps at hand. A watcher further behind reads the ring itself, and what it is sent is
/// encoded for it alone.
const RECENT_MAX: usize = 1_024;

/// Bytes of records in one part of a snapshot. Well below the 4 MiB that gRPC clients take by default, and small
/// enough not to block a connection's other streams for long.
const PART_BYTES: usize = 256 << 10;

/// A batch as the watchers of one service see it, and its encoding once one of them has needed it.
#[derive(Debug)]
pub struct Shared {
    batch: Arc<Batch>,
    wire: OnceLock<Bytes>,
}

impl Shared {
    /// Not encoded yet.
    pub fn new(batch: Arc<Batch>) -> Self {
        Self { batch, wire: OnceLock::new() }
    }

    /// The batch: some of its revision's events, at least one.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Its encoding; made by `encode` if nobody has needed it yet.
    pub fn wire(&self, encode: impl FnOnce(&Batch) -> Bytes) -> &Bytes {
        self.wire.get_or_init(|| encode(&self.batch))
    }
}

/// The records of a service, or of all, at one revision; in parts that are each encoded once.
#[derive(Debug)]
pub struct Snapshot {
    /// What the records are at.
    pub revision: u64,
    records: Vec<Arc<Record>>,
    parts: Vec<(Range<usize>, OnceLock<Bytes>)>,
}

impl Snapshot {
    /// `records` at `revision`.
    pub fn new(revision: u64, records: Vec<Arc<Record>>) -> Self {
        let mut parts = Vec::new();
        let (mut first, mut bytes) = (0, 0);
        for (index, record) in records.iter().enumerate() {
            let size = record.spec.bytes();
            if bytes + size > PART_BYTES && bytes > 0 {
                parts.push((first..index, OnceLock::new()));
                (first, bytes) = (index, 0);
            }
            bytes += size;
        }
        parts.push((first..records.len(), OnceLock::new()));
        Self { revision, records, parts }
    }

    /// How many parts there are; at least one, which may be empty.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Whether a part is the first, and whether others follow it.
    pub fn place(&self, part: usize) -> (bool, bool) {
        (part == 0, part + 1 < self.parts())
    }

    /// The records of a part.
    pub fn part(&self, part: usize) -> &[Arc<Record>] {
        &self.records[self.parts[part].0.clone()]
    }

    /// Its encoding; made by `encode` if nobody has needed it yet.
    pub fn wire(&self, part: usize, encode: impl FnOnce(&[Arc<Record>]) -> Bytes) -> &Bytes {
        self.parts[part].1.get_or_init(|| encode(self.part(part)))
    }
}

/// A service's newest changes, or everybody's.
#[derive(Debug)]
pub struct Topic {
    service: Option<ServiceName>,
    /// What changed after this revision is in `recent`, whole.
    after: u64,
    /// By revision, strictly rising.
    recent: VecDeque<Arc<Shared>>,
    wake: latest::Sender<u64>,
    /// Who follows it.
    pub watchers: usize,
    /// The one that is being sent.
    pub snapshot: Mutex<Weak<Snapshot>>,
}

impl Topic {
    /// A topic of which nothing is known up to `revision`.
    pub fn new(service: Option<ServiceName>, revision: u64) -> Self {
        let (wake, _) = latest::channel(revision);
        Self {
            service,
            after: revision,
            recent: VecDeque::new(),
            wake,
            watchers: 0,
            snapshot: Mutex::default(),
        }
    }

    /// Calls its watchers.
    pub fn bell(&self) -> &latest::Sender<u64> {
        &self.wake
    }

    /// Takes in a batch; whether it concerns this topic.
    pub fn push(&mut self, batch: &Arc<Batch>) -> bool {
        let Some(batch) = filtered(batch, self.service.as_ref()) else { return false };
        self.recent.push_back(Arc::new(Shared::new(batch)));
        if self.recent.len() > RECENT_MAX {
            self.forget_oldest();
        }
        true
    }

    /// What the ring has forgotten is forgotten here as well: the ring's bound is on both.
    pub fn forget_until(&mut self, revision: u64) {
        while self.recent.front().is_some_and(|shared| shared.batch.revision <= revision) {
            self.forget_oldest();
        }
    }

    /// Starts over at `revision`.
    pub fn reset(&mut self, revision: u64) {
        self.recent.clear();
        self.after = revision;
    }

    /// What concerns it after `revision`; none if that goes further back than it knows.
    pub fn since(&self, revision: u64) -> Option<impl Iterator<Item = &Arc<Shared>>> {
        let start = self.recent.partition_point(|shared| shared.batch.revision <= revision);
        (revision >= self.after).then(|| self.recent.range(start..))
    }

    fn forget_oldest(&mut self) {
        if let Some(shared) = self.recent.pop_front() {
            self.after = shared.batch.revision;
        }
    }
}

/// The batches of a slice of the ring that concern `service`.
pub fn select<'a>(
    slice: Slice<'a>,
    service: Option<&'a ServiceName>,
) -> Option<impl Iterator<Item = Arc<Shared>> + 'a> {
    match slice {
        Slice::Compacted { .. } => None,
        Slice::Batches(batches) => Some(
            batches
                .filter_map(move |batch| filtered(batch, service))
                .map(|batch| Arc::new(Shared::new(batch))),
        ),
    }
}

/// The batch as a watcher of `service` sees it, if it sees anything.
fn filtered(batch: &Arc<Batch>, service: Option<&ServiceName>) -> Option<Arc<Batch>> {
    let Some(service) = service else { return Some(batch.clone()) };
    let concerns = |event: &&Event| event.record.service() == service;
    match batch.events.iter().filter(concerns).count() {
        0 => None,
        all if all == batch.events.len() => Some(batch.clone()),
        _ => {
            let events = batch.events.iter().filter(concerns).cloned().collect();
            Some(Arc::new(Batch { revision: batch.revision, events }))
        }
    }
}
