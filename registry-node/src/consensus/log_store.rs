//! Raft's log and vote on the store. Recent entries stay decoded in memory, so that replication and apply do not
//! touch the disk.

use std::{
    collections::VecDeque,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    sync::{Arc, Mutex, MutexGuard},
};

use openraft::{
    OptionalSend,
    storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage},
};

use super::{
    codec,
    types::{Entry, LogId, Types, Vote},
};
use crate::storage::{Purged, Recovered, Slot, Store};

/// Memory for the entries that are kept; a node's memory is for its catalog.
const TAIL_BYTES: usize = 16 << 20;
/// What an entry takes in memory, in multiples of its bytes on disk: those, on a leader each proposal's once more, and
/// the records decoded, whose small strings and containers take thrice as much.
const IN_MEMORY: usize = 5;

#[derive(Clone)]
pub struct LogStore {
    store: Store,
    shared: Arc<Mutex<Shared>>,
}

/// What is known without asking the disk.
struct Shared {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    tail: Tail,
}

/// The newest entries, without a gap, with the memory each takes.
#[derive(Default)]
struct Tail {
    entries: VecDeque<(Entry, usize)>,
    bytes: usize,
}

impl LogStore {
    /// What was recovered must be decoded before anything runs: what cannot be decoded is damage.
    pub async fn open(store: Store, found: &Recovered) -> Result<Self, String> {
        let decoded = |what: &str, e: crate::envelope::Error| format!("{what}: {e}");
        let vote =
            found.vote.as_deref().map(codec::decode_vote).transpose().map_err(|e| decoded("the vote", e))?;
        let committed = found.committed.as_deref().map(codec::decode_log_id).transpose();
        let committed = committed.map_err(|e| decoded("the commit mark", e))?;
        let purged = found.purged.as_ref().map(|p| codec::decode_log_id(&p.mark)).transpose();
        let purged = purged.map_err(|e| decoded("the purge mark", e))?;
        let mut last = purged;
        if !found.log.is_empty() {
            let bytes = store.read(found.log.end - 1..found.log.end).await.map_err(|e| e.to_string())?;
            let bytes = bytes.first().ok_or_else(|| format!("entry {} is missing", found.log.end - 1))?;
            last = Some(codec::decode_entry(bytes).map_err(|e| decoded("the last entry", e))?.log_id);
        }
        let shared = Shared { vote, committed, purged, last, tail: Tail::default() };
        Ok(Self { store, shared: Arc::new(Mutex::new(shared)) })
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no panic while it is held")
    }
}

impl Tail {
    fn first(&self) -> Option<u64> {
        self.entries.front().map(|(entry, _)| entry.log_id.index)
    }

    fn push(&mut self, entry: Entry, bytes: usize) {
        self.bytes += bytes;
        self.entries.push_back((entry, bytes));
        while self.bytes > TAIL_BYTES && self.entries.len() > 1 {
            self.bytes -= self.entries.pop_front().map_or(0, |(_, bytes)| bytes);
        }
    }

    fn truncate_from(&mut self, index: u64) {
        while self.entries.back().is_some_and(|(entry, _)| entry.log_id.index >= index) {
            self.bytes -= self.entries.pop_back().map_or(0, |(_, bytes)| bytes);
        }
    }

    fn purge_to(&mut self, index: u64) {
        while self.entries.front().is_some_and(|(entry, _)| entry.log_id.index <= index) {
            self.bytes -= self.entries.pop_front().map_or(0, |(_, bytes)| bytes);
        }
    }

    fn copy(&self, from: u64, to: u64) -> Vec<Entry> {
        let first = self.first().unwrap_or(to);
        let skip = from.saturating_sub(first) as usize;
        let take = to.saturating_sub(from.max(first)) as usize;
        self.entries.iter().skip(skip).take(take).map(|(entry, _)| entry.clone()).collect()
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (from, to, mut entries) = {
            let shared = self.shared();
            let begin = shared.purged.map_or(0, |id| id.index + 1);
            let end = shared.last.map_or(0, |id| id.index + 1);
            let from = match range.start_bound() {
                Bound::Included(&from) => from.max(begin),
                Bound::Excluded(&before) => (before + 1).max(begin),
                Bound::Unbounded => begin,
            };
            let to = match range.end_bound() {
                Bound::Included(&last) => (last + 1).min(end),
                Bound::Excluded(&to) => to.min(end),
                Bound::Unbounded => end,
            };
            if from >= to {
                return Ok(Vec::new());
            }
            let in_memory = shared.tail.first().unwrap_or(end);
            (from, to.min(in_memory), shared.tail.copy(from, to))
        };
        if from < to {
            let mut older = Vec::with_capacity((to - from) as usize + entries.len());
            for bytes in self.store.read(from..to).await? {
                older.push(
                    codec::decode_entry(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?,
                );
            }
            older.append(&mut entries);
            entries = older;
        }
        Ok(entries)
    }

    /// The entries from `start` on, or none: what begins later, because the log has been purged meanwhile, would be
    /// replicated with a gap.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let entries = self.try_get_log_entries(start..end).await?;
        let whole = entries.first().is_some_and(|entry| entry.log_id.index == start);
        Ok(if whole { entries } else { Vec::new() })
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared().vote)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let shared = self.shared();
        Ok(LogState { last_purged_log_id: shared.purged, last_log_id: shared.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    /// The vote is on disk before anyone is told of it.
    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.store.put(Slot::Vote, codec::encode_vote(vote)).await?;
        self.shared().vote = Some(*vote);
        Ok(())
    }

    /// Rides with the next append: after a crash it may be older, never newer, than what was committed.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed else { return Ok(()) };
        self.shared().committed = Some(committed);
        self.store.note_committed(codec::encode_log_id(&committed));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut first = None;
        let mut encoded = Vec::new();
        {
            let mut shared = self.shared();
            for entry in entries {
                let bytes = codec::encode_entry(&entry);
                first.get_or_insert(entry.log_id.index);
                shared.last = Some(entry.log_id);
                shared.tail.push(entry, IN_MEMORY * bytes.len());
                encoded.push(bytes);
            }
        }
        match first {
            Some(first) => {
                self.store.append(first, encoded, Box::new(|result| callback.io_completed(result))).await
            }
            None => {
                callback.io_completed(Ok(()));
                Ok(())
            }
        }
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |id| id.index + 1);
        {
            let mut shared = self.shared();
            shared.tail.truncate_from(from);
            if shared.last.is_some_and(|end| end.index >= from) {
                shared.last = last.or(shared.purged);
            }
        }
        self.store.truncate_from(from).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        {
            let mut shared = self.shared();
            shared.tail.purge_to(upto.index);
            shared.purged = Some(upto);
            shared.last = shared.last.filter(|last| last.index > upto.index).or(Some(upto));
        }
        self.store.purge(Purged { index: upto.index, mark: codec::encode_log_id(&upto) }).await
    }
}
