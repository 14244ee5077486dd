//! The thread that owns the database: drains its queue, writes, pays one barrier, completes every caller.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    Done, Purged, Slot,
    disk::{self, Disk, Medium, Tree},
    frame::{self, PACK_BYTES},
    opening,
    pace::Pace,
    seal,
    sidecar::{self, Claim, Sidecar, State},
};
use crate::metrics::Metrics;

/// Chunks of a snapshot that are written, read or dropped at once: appends wait no longer than that takes.
pub(super) const CHUNKS_AT_ONCE: usize = 64;

/// Jobs taken together under one barrier; a bound on how long the first of them waits.
const BATCH: usize = 4_096;

pub(super) const FORMAT_KEY: &[u8] = b"format";
pub(super) const PURGED_KEY: &[u8] = b"purged";
/// Where the pointer to the snapshot lies in [`Tree::Meta`]; for tests that read along on a disk.
pub const SNAPSHOT_KEY: &[u8] = b"snapshot";

/// What the writer is asked to do.
pub(super) enum Job {
    Append {
        first: u64,
        entries: Vec<Bytes>,
        /// A mark that speaks of entries before these.
        committed: Option<Vec<u8>>,
        done: Done,
    },
    Put {
        slot: Slot,
        value: Vec<u8>,
        done: Done,
    },
    Truncate {
        from: u64,
        done: Done,
    },
    Purge {
        purged: Purged,
        done: Done,
    },
    /// The next chunks of the snapshot under way; the number 0 begins one.
    SaveChunks {
        first: u32,
        chunks: Vec<Bytes>,
        done: Done,
    },
    /// The snapshot under way is whole, and its chunks are durable.
    SaveSnapshot {
        index: u64,
        meta: Vec<u8>,
        crc: u32,
        done: Done,
    },
    /// Drops some of the chunks that no snapshot needs; says whether there are more.
    DropChunks {
        reply: oneshot::Sender<bool>,
    },
    /// Where the newest whole snapshot lies.
    FindSnapshot {
        reply: oneshot::Sender<io::Result<Option<Pointer>>>,
    },
    /// Some of its chunks, from this one on; none if it is the newest no more.
    LoadChunks {
        generation: u64,
        first: u32,
        reply: oneshot::Sender<io::Result<Option<Vec<Bytes>>>>,
    },
    Read {
        range: Range<u64>,
        reply: oneshot::Sender<io::Result<Vec<Bytes>>>,
    },
    Condemn {
        why: String,
        done: Done,
    },
    Rejoin {
        regardless: bool,
        reply: oneshot::Sender<bool>,
    },
    Alone {
        alone: bool,
    },
}

/// A mark that the next append takes along.
pub(super) type Noted = Arc<Mutex<Option<Vec<u8>>>>;

/// Points at the chunks of the newest whole snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Pointer {
    pub generation: u64,
    /// The last log index it holds.
    pub index: u64,
    pub chunks: u32,
    /// Checksum over all chunks, in order.
    pub crc: u32,
    pub meta: Vec<u8>,
}

/// A vote and its number: of two, the higher one is newer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ballot {
    pub number: u64,
    pub vote: Vec<u8>,
}

/// Where a frame ends, and its checksum for the next one's chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub last: u64,
    pub previous: u32,
    pub crc: u32,
}

/// What the database holds, as far as it must be known to write on.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// By first index; contiguous.
    pub frames: BTreeMap<u64, Extent>,
    /// The index the next appended entry must have.
    pub next: u64,
    /// Entries below are purged.
    pub begin: u64,
    pub snapshot_generation: u64,
    pub snapshot_chunks: u32,
    /// How far the kept snapshot reaches; none if there is none.
    pub snapshot_index: Option<u64>,
}

impl Contents {
    /// What the sidecar may say once all of it is durable.
    pub fn claim(&self) -> Claim {
        match self.frames.values().next_back() {
            Some(extent) => Claim { next: extent.last + 1, crc: extent.crc },
            None => Claim { next: self.begin, crc: 0 },
        }
    }
}

/// Chunks of one generation, numbered from 0.
#[derive(Debug)]
struct Generation {
    number: u64,
    chunks: u32,
}

pub(super) struct Writer<M: Medium> {
    medium: M,
    disk: M::Disk,
    sidecar: Sidecar,
    contents: Contents,
    /// Entries taken from the queue and not yet in a frame; they end just before `next`.
    pending: Vec<Bytes>,
    pending_bytes: usize,
    /// Put behind the entries, with their barrier.
    committed: Option<Vec<u8>>,
    /// What comes as `committed` with the next append.
    noted: Noted,
    /// The snapshot under way.
    saving: Option<Generation>,
    /// No number up to this one is used again.
    last_generation: u64,
    /// What no snapshot needs any more.
    stale: Vec<Generation>,
    /// Whether something was written that a caller waits for.
    dirty: bool,
    /// Whether the sidecar must be synced before the callers are told.
    promise: bool,
}

impl<M: Medium> Writer<M> {
    /// A writer for what was opened and verified.
    pub fn new(medium: M, disk: M::Disk, sidecar: Sidecar, contents: Contents) -> Self {
        Self {
            last_generation: contents.snapshot_generation,
            medium,
            disk,
            sidecar,
            contents,
            pending: Vec::new(),
            pending_bytes: 0,
            committed: None,
            noted: Noted::default(),
            saving: None,
            stale: Vec::new(),
            dirty: false,
            promise: false,
        }
    }

    /// Where a mark is left for the next append.
    pub fn noted(&self) -> Noted {
        self.noted.clone()
    }

    /// Works until every handle is gone or a write fails. Panics in the database, which damage can cause, are
    /// failures.
    pub async fn run(
        mut self,
        mut queue: mpsc::Receiver<Job>,
        metrics: Arc<Metrics>,
        pace: Pace,
        on_failure: impl FnOnce(&io::Error),
        mut latency: impl FnMut() -> Duration,
    ) {
        let mut jobs = Vec::with_capacity(BATCH);
        loop {
            let due = self.sidecar.due();
            let taken = match due {
                None => Some(queue.recv_many(&mut jobs, BATCH).await),
                Some(due) => tokio::time::timeout_at(due, queue.recv_many(&mut jobs, BATCH)).await.ok(),
            };
            let started = Instant::now();
            pause(latency()).await;
            let mut waiting = Vec::with_capacity(jobs.len());
            let result = caught(|| match taken {
                // A log that has stopped growing.
                None => self.sidecar.sync(&mut self.medium),
                Some(0) => {
                    self.committed = self.noted.lock().unwrap_or_else(PoisonError::into_inner).take();
                    self.end()
                }
                Some(_) => self.turn(&mut jobs, &mut waiting),
            });
            if let Err(error) = &result {
                on_failure(error);
                let failed = |done: Done| done(Err(io::Error::new(error.kind(), error.to_string())));
                return waiting.into_iter().for_each(failed);
            }
            pause(latency()).await;
            if !waiting.is_empty() {
                let (now, took) = (Instant::now(), started.elapsed());
                metrics.barrier(took);
                pace.note(now, took);
            }
            waiting.into_iter().for_each(|done| done(Ok(())));
            if taken == Some(0) {
                return;
            }
        }
    }

    /// One batch: everything is written, then durable, then claimed; only then is anyone told.
    fn turn(&mut self, jobs: &mut Vec<Job>, waiting: &mut Vec<Done>) -> io::Result<()> {
        jobs.drain(..).try_for_each(|job| self.execute(job, waiting))?;
        self.barrier()?;
        self.claim()
    }

    fn barrier(&mut self) -> io::Result<()> {
        self.write_pending()?;
        if !std::mem::take(&mut self.dirty) {
            return Ok(());
        }
        // Frames lie on disk before a mark that speaks of them, wherever a power cut falls.
        self.put_committed()?;
        self.disk.sync()
    }

    /// A clean stop.
    fn end(&mut self) -> io::Result<()> {
        self.put_committed()?;
        self.sidecar.sync(&mut self.medium)
    }

    fn put_committed(&mut self) -> io::Result<()> {
        let mark = self.committed.take();
        mark.map_or(Ok(()), |mark| self.disk.put(Tree::Meta, Slot::Committed.key(), &mark))
    }

    /// Tells the sidecar what is durable now.
    fn claim(&mut self) -> io::Result<()> {
        let Contents { snapshot_index, .. } = self.contents;
        self.sidecar.record.log.clear();
        self.sidecar.record.log.push(self.contents.claim());
        self.sidecar.record.snapshot = snapshot_index.map_or(0, |index| index + 1);
        let due = self.sidecar.due().is_some_and(|due| due <= Instant::now());
        if std::mem::take(&mut self.promise) || due {
            self.sidecar.sync(&mut self.medium)
        } else {
            self.sidecar.write(&mut self.medium)
        }
    }

    fn execute(&mut self, job: Job, waiting: &mut Vec<Done>) -> io::Result<()> {
        match job {
            Job::Append { first, entries, committed, done } => {
                waiting.push(done);
                self.committed = committed.or(self.committed.take());
                self.append(first, entries)?;
            }
            Job::Put { slot, value, done } => {
                waiting.push(done);
                // As with every mark: what it may speak of lies on disk before it.
                self.write_pending()?;
                self.put(slot, value)?;
            }
            Job::Truncate { from, done } => {
                waiting.push(done);
                self.truncate(from)?;
            }
            Job::Purge { purged, done } => {
                waiting.push(done);
                self.purge(purged)?;
            }
            Job::SaveChunks { first, chunks, done } => {
                waiting.push(done);
                self.save_chunks(first, &chunks)?;
            }
            Job::SaveSnapshot { index, meta, crc, done } => {
                waiting.push(done);
                self.save_snapshot(index, meta, crc)?;
            }
            Job::DropChunks { reply } => {
                let more = self.drop_chunks()?;
                let _ = reply.send(more); // whoever stopped asking leaves the rest to the next one
            }
            Job::FindSnapshot { reply } => {
                let found = opening::read_pointer(&self.disk).and_then(|found| found.map_err(invalid));
                let _ = reply.send(found); // a reader that gave up wants nothing
            }
            Job::LoadChunks { generation, first, reply } => {
                let _ = reply.send(self.load_chunks(generation, first)); // as above
            }
            Job::Read { range, reply } => {
                self.write_pending()?;
                let _ = reply.send(self.read(range)); // a reader that gave up wants nothing
            }
            Job::Condemn { why, done } => {
                waiting.push(done);
                self.sidecar.record.state = State::Condemned { why: sidecar::bounded(why) };
                self.promise = true;
            }
            Job::Rejoin { regardless, reply } => {
                let rejoined = self.rejoin(regardless)?;
                let _ = reply.send(rejoined); // whoever asked will ask again
            }
            Job::Alone { alone } => {
                self.sidecar.record.alone = alone;
                self.promise = true;
            }
        }
        Ok(())
    }

    fn put(&mut self, slot: Slot, value: Vec<u8>) -> io::Result<()> {
        let record = &mut self.sidecar.record;
        match slot {
            Slot::Committed => {
                self.dirty = true;
                return self.disk.put(Tree::Meta, slot.key(), &value);
            }
            Slot::Vote => {
                let ballot = Ballot { number: record.votes + 1, vote: value.clone() };
                self.disk.put(Tree::Meta, slot.key(), &seal(&ballot))?;
                record.votes = ballot.number;
                record.vote = Some(value);
            }
            Slot::Identity => {
                self.disk.put(Tree::Meta, slot.key(), &value)?;
                record.identity = Some(value);
            }
        }
        self.promise = true;
        self.dirty = true;
        Ok(())
    }

    /// Ends the quarantine if the log reaches as far as it ever did, or `regardless`.
    fn rejoin(&mut self, regardless: bool) -> io::Result<bool> {
        self.barrier()?;
        let end = self.contents.next.max(self.contents.snapshot_index.map_or(0, |index| index + 1));
        let record = &mut self.sidecar.record;
        let ready = matches!(record.state, State::Repairing { .. }) && (regardless || end >= record.floor);
        if ready {
            record.state = State::Sound;
            record.floor = 0;
            record.vote_before = None;
            self.claim()?;
            self.sidecar.sync(&mut self.medium)?;
        }
        Ok(ready)
    }

    fn append(&mut self, first: u64, entries: Vec<Bytes>) -> io::Result<()> {
        if self.contents.frames.is_empty() && self.pending.is_empty() {
            // Nothing to follow: Raft decides where a log begins. The next opening checks it against the mark.
            self.contents.next = first;
        }
        assert_eq!(first, self.contents.next, "an append must follow the last entry");
        for entry in entries {
            let bytes = 4 + entry.len();
            if self.pending_bytes + bytes > PACK_BYTES {
                self.write_pending()?;
            }
            self.pending.push(entry);
            self.pending_bytes += bytes;
            self.contents.next += 1;
        }
        self.dirty = true;
        Ok(())
    }

    /// Puts the waiting entries into a frame.
    fn write_pending(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let entries = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let first = self.contents.next - entries.len() as u64;
        let previous = self.contents.frames.values().next_back().map_or(0, |extent| extent.crc);
        self.write_frame(first, previous, &entries)
    }

    fn write_frame(&mut self, first: u64, previous: u32, entries: &[Bytes]) -> io::Result<()> {
        let (bytes, crc) = frame::encode(first, previous, entries);
        self.disk.put(Tree::Log, &first.to_be_bytes(), &bytes)?;
        self.contents.frames.insert(first, Extent { last: first + entries.len() as u64 - 1, previous, crc });
        Ok(())
    }

    /// Drops whole frames from the end backwards, so that a crash leaves no hole, then rewrites the one that is
    /// cut. Before anything is dropped the sidecar says that it may be: what it claims must be there.
    fn truncate(&mut self, from: u64) -> io::Result<()> {
        if from >= self.contents.next {
            return Ok(());
        }
        self.dirty = true;
        self.barrier()?;
        self.sidecar.record.log = self.claims_across(from)?;
        self.sidecar.sync(&mut self.medium)?;
        self.dirty = true;
        while let Some((&first, &extent)) = self.contents.frames.last_key_value()
            && extent.last >= from
        {
            let kept = if first < from { self.read(first..from)? } else { Vec::new() };
            if kept.is_empty() {
                self.disk.remove(Tree::Log, &first.to_be_bytes())?;
                self.contents.frames.remove(&first);
            } else {
                self.write_frame(first, extent.previous, &kept)?;
            }
        }
        self.contents.next = self.contents.next.min(from);
        Ok(())
    }

    /// What is true of the log at any moment of a truncation: the frame that is cut is still whole, or is cut.
    fn claims_across(&self, from: u64) -> io::Result<Vec<Claim>> {
        let Some((&first, extent)) = self.contents.frames.range(..from).next_back() else {
            return Ok(vec![Claim { next: self.contents.begin, crc: 0 }]);
        };
        let whole = Claim { next: extent.last + 1, crc: extent.crc };
        if extent.last < from {
            return Ok(vec![whole]);
        }
        let (_, crc) = frame::encode(first, extent.previous, &self.read(first..from)?);
        Ok(vec![Claim { next: from, crc }, whole])
    }

    /// Moves the mark first: frames behind it are dropped now or at the next opening.
    fn purge(&mut self, purged: Purged) -> io::Result<()> {
        self.write_pending()?;
        self.dirty = true;
        self.disk.put(Tree::Meta, PURGED_KEY, &seal(&purged))?;
        while let Some((&first, extent)) = self.contents.frames.first_key_value()
            && extent.last <= purged.index
        {
            self.disk.remove(Tree::Log, &first.to_be_bytes())?;
            self.contents.frames.remove(&first);
        }
        self.contents.begin = self.contents.begin.max(purged.index + 1);
        self.contents.next = self.contents.next.max(purged.index + 1);
        Ok(())
    }

    /// Chunks lie under a number of their own, which nothing points to yet.
    fn save_chunks(&mut self, first: u32, chunks: &[Bytes]) -> io::Result<()> {
        if first == 0 {
            self.stale.extend(self.saving.take());
            self.last_generation += 1;
        }
        let number = self.last_generation;
        let saving = self.saving.get_or_insert(Generation { number, chunks: 0 });
        assert_eq!(first, saving.chunks, "chunks must follow each other");
        for chunk in chunks {
            self.disk.put(Tree::Snapshot, &chunk_key(number, saving.chunks), chunk)?;
            saving.chunks += 1;
        }
        self.dirty = true;
        Ok(())
    }

    /// Points at the chunks, which are behind a barrier. One that is older than what is kept changes nothing: it
    /// was built while a newer one was installed.
    fn save_snapshot(&mut self, index: u64, meta: Vec<u8>, crc: u32) -> io::Result<()> {
        let saved = self.saving.take().expect("its chunks were saved before");
        if self.contents.snapshot_index.is_some_and(|kept| kept > index) {
            self.stale.push(saved);
            return Ok(());
        }
        self.write_pending()?;
        let pointer = Pointer { generation: saved.number, index, chunks: saved.chunks, crc, meta };
        self.disk.put(Tree::Meta, SNAPSHOT_KEY, &seal(&pointer))?;
        self.disk.sync()?;
        let contents = &mut self.contents;
        let number = std::mem::replace(&mut contents.snapshot_generation, saved.number);
        let chunks = std::mem::replace(&mut contents.snapshot_chunks, saved.chunks);
        contents.snapshot_index = Some(index);
        self.stale.push(Generation { number, chunks });
        Ok(())
    }

    fn load_chunks(&self, generation: u64, first: u32) -> io::Result<Option<Vec<Bytes>>> {
        let Contents { snapshot_generation, snapshot_chunks, .. } = self.contents;
        if generation != snapshot_generation {
            return Ok(None); // another took its place, and its chunks are being dropped
        }
        let chunk = |number| {
            let bytes = self.disk.get(Tree::Snapshot, &chunk_key(generation, number))?;
            bytes
                .map(Bytes::from)
                .ok_or_else(|| invalid(format!("the snapshot's chunk {number} has vanished")))
        };
        let to = snapshot_chunks.min(first.saturating_add(CHUNKS_AT_ONCE as u32));
        (first..to).map(chunk).collect::<io::Result<_>>().map(Some)
    }

    /// What a crash leaves of them is dropped at the next opening.
    fn drop_chunks(&mut self) -> io::Result<bool> {
        let mut room = CHUNKS_AT_ONCE;
        while let Some(generation) = self.stale.last_mut() {
            if generation.chunks == 0 {
                self.stale.pop();
            } else if room == 0 {
                return Ok(true);
            } else {
                room -= 1;
                generation.chunks -= 1;
                self.disk.remove(Tree::Snapshot, &chunk_key(generation.number, generation.chunks))?;
            }
        }
        Ok(false)
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<Bytes>> {
        let mut entries = Vec::new();
        let start =
            self.contents.frames.range(..=range.start).next_back().map_or(range.start, |(first, _)| *first);
        for (&first, extent) in self.contents.frames.range(start..range.end) {
            let bytes = self.disk.get(Tree::Log, &first.to_be_bytes())?;
            let bytes = bytes.ok_or_else(|| invalid(format!("frame {first} has vanished")))?;
            let frame = frame::decode(first, &Bytes::from(bytes)).map_err(|e| invalid(e.to_string()))?;
            let from = range.start.max(first) - first;
            let to = range.end.min(extent.last + 1) - first;
            entries.extend_from_slice(&frame.entries[from.min(to) as usize..to as usize]);
        }
        Ok(entries)
    }
}

/// The last log index that the snapshot behind a pointer holds.
pub fn snapshot_reach(pointer: &[u8]) -> Result<u64, String> {
    super::unseal::<Pointer>(pointer).map(|pointer| pointer.index).map_err(|e| e.to_string())
}

async fn pause(latency: Duration) {
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
}

/// Runs what may panic inside the database.
pub(super) fn caught<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // Whatever it left behind is not looked at again.
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(invalid(format!("the database panicked: {}", disk::panic_text(&*panic)))))
}

fn chunk_key(generation: u64, number: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&generation.to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

pub(super) fn crc_of(chunks: &[Bytes]) -> u32 {
    chunks.iter().fold(0, |crc, chunk| crc32c::crc32c_append(crc, chunk))
}

pub(super) fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
