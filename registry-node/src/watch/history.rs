//! The recent past, for watchers to resume from: a bounded ring of what changed, by revision.
//!
//! One ring per node, shared by all watchers; a watcher is only a cursor into it. What is pushed out of it can no
//! longer be replayed: a cursor from before that starts over with the present records.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::catalog::{Event, EventKind, InstanceId, Record};

/// Memory of the events kept. With records of 300 bytes that is the last 50 000 changes or more.
pub const BYTES_MAX: usize = 64 << 20;

/// Batches kept: bounds what the estimate of bytes does not see.
pub const BATCHES_MAX: usize = 1 << 17;

/// Everything that one revision changed; never empty.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    /// When.
    pub revision: u64,
    /// What, in order. More than one for an expiry of several or a move between services.
    pub events: Vec<Event>,
}

impl Batch {
    /// An estimate of the memory it pins.
    pub fn bytes(&self) -> usize {
        /// A record's fixed part, its provenance, the containers around them, and what the allocator adds to each
        /// of a dozen strings.
        const OVERHEAD: usize = 704;
        /// Of a pair of metadata: its place in the slice, and what the allocator adds to two strings.
        const PAIR: usize = 64;
        let record = |record: &Record| OVERHEAD + PAIR * record.spec.metadata.len() + record.spec.bytes();
        // What was before is often pinned by an earlier event as well, but that one is forgotten first.
        let event = |event: &Event| {
            let previous = event.previous.as_deref().map_or(0, record);
            record(&event.record) + previous + event.cause.by.len() + event.cause.why.len()
        };
        self.events.iter().map(event).sum()
    }
}

/// What follows a revision.
#[derive(Debug)]
pub enum Slice<'a> {
    /// All of it, in order; empty if nothing does.
    Batches(std::collections::vec_deque::Iter<'a, Arc<Batch>>),
    /// Part of it is gone: only what follows `compact_revision` is left.
    Compacted {
        /// The last revision that is gone.
        compact_revision: u64,
    },
}

/// The ring.
#[derive(Debug)]
pub struct History {
    /// By revision, strictly rising; all greater than `compact_revision`.
    batches: VecDeque<Arc<Batch>>,
    /// Of each, by [`Batch::bytes`].
    sizes: VecDeque<usize>,
    bytes: usize,
    compact_revision: u64,
    last_revision: u64,
    bytes_max: usize,
    batches_max: usize,
}

impl Default for History {
    fn default() -> History {
        History::new()
    }
}

impl History {
    /// An empty past before revision 0, with the bounds above.
    pub fn new() -> History {
        History::with_bounds(BYTES_MAX, BATCHES_MAX)
    }

    /// An empty past that keeps at most so many bytes and batches. The newest batch is kept whatever its size.
    pub fn with_bounds(bytes_max: usize, batches_max: usize) -> History {
        let (batches, sizes) = (VecDeque::new(), VecDeque::new());
        History { batches, sizes, bytes: 0, compact_revision: 0, last_revision: 0, bytes_max, batches_max }
    }

    /// Appends a batch and forgets the oldest beyond the bounds.
    ///
    /// # Panics
    /// If its revision does not exceed the last one: revisions are given out by the catalog, in order.
    pub fn push(&mut self, batch: Arc<Batch>) {
        let (revision, last) = (batch.revision, self.last_revision);
        assert!(revision > last, "revision {revision} pushed after {last}");
        self.last_revision = revision;
        let bytes = batch.bytes();
        self.bytes += bytes;
        self.sizes.push_back(bytes);
        self.batches.push_back(batch);
        while (self.bytes > self.bytes_max || self.batches.len() > self.batches_max) && self.batches.len() > 1
        {
            self.forget_oldest();
        }
    }

    /// What follows `after_revision`. Nothing, if that is in the future.
    pub fn since(&self, after_revision: u64) -> Slice<'_> {
        if after_revision < self.compact_revision {
            return Slice::Compacted { compact_revision: self.compact_revision };
        }
        let start = self.batches.partition_point(|batch| batch.revision <= after_revision);
        Slice::Batches(self.batches.range(start..))
    }

    /// Revisions up to here can no longer be replayed.
    pub fn compact_revision(&self) -> u64 {
        self.compact_revision
    }

    /// The newest revision known, whether or not it can be replayed.
    pub fn last_revision(&self) -> u64 {
        self.last_revision
    }

    /// How many bytes are kept, by [`Batch::bytes`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many batches are kept.
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    /// Whether nothing can be replayed.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Starts over at `revision`, with nothing to replay: a snapshot took the place of what was known.
    pub fn reset(&mut self, revision: u64) {
        self.batches.clear();
        self.sizes.clear();
        self.bytes = 0;
        self.compact_revision = revision;
        self.last_revision = revision;
    }

    fn forget_oldest(&mut self) {
        if let (Some(batch), Some(bytes)) = (self.batches.pop_front(), self.sizes.pop_front()) {
            self.bytes -= bytes;
            self.compact_revision = batch.revision;
        }
    }
}

/// The records as they were before `batches`, which are all changes since then, given the `records` after them.
pub fn rewind<'a>(
    records: impl IntoIterator<Item = &'a Arc<Record>>,
    batches: &[Arc<Batch>],
) -> BTreeMap<InstanceId, Arc<Record>> {
    let mut records: BTreeMap<_, _> =
        records.into_iter().map(|record| (record.spec.id.clone(), record.clone())).collect();
    let newest_first = batches.iter().rev().flat_map(|batch| batch.events.iter().rev());
    for event in newest_first {
        let before = match event.kind {
            EventKind::Put => event.previous.as_ref(),
            EventKind::Delete | EventKind::Expire => Some(&event.record),
        };
        match before {
            Some(record) => records.insert(record.spec.id.clone(), record.clone()),
            None => records.remove(&event.record.spec.id),
        };
    }
    records
}

#[cfg(test)]
mod tests;
