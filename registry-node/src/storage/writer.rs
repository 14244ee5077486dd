//! The thread that owns the database: drains its queue, writes, pays one barrier, completes every caller.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::{
    Done, Error, FORMAT, Purged, Recovered, Slot, Snapshot,
    disk::{Disk, Tree},
    frame::{self, FRAME_BYTES_MAX, Frame},
    seal, unseal,
};
use crate::metrics::Metrics;

/// Jobs taken together under one barrier; a bound on how long the first of them waits.
const BATCH: usize = 4_096;

const FORMAT_KEY: &[u8] = b"format";
const PURGED_KEY: &[u8] = b"purged";
/// Where the pointer to the snapshot lies in [`Tree::Meta`]; for tests that read along on a disk.
pub const SNAPSHOT_KEY: &[u8] = b"snapshot";

/// What the writer is asked to do.
pub(super) enum Job {
    Append { first: u64, entries: Vec<Bytes>, done: Done },
    Put { slot: Slot, value: Vec<u8>, done: Option<Done> },
    Truncate { from: u64, done: Done },
    Purge { purged: Purged, done: Done },
    SaveSnapshot { snapshot: Snapshot, done: Done },
    LoadSnapshot { reply: oneshot::Sender<io::Result<Option<Snapshot>>> },
    Read { range: Range<u64>, reply: oneshot::Sender<io::Result<Vec<Bytes>>> },
}

/// Points at the chunks of the newest whole snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pointer {
    generation: u64,
    /// The last log index it holds.
    index: u64,
    chunks: u32,
    /// Checksum over all chunks, in order.
    crc: u32,
    meta: Vec<u8>,
}

/// Where a frame ends, and its checksum for the next one's chain.
#[derive(Debug, Clone, Copy)]
struct Extent {
    last: u64,
    previous: u32,
    crc: u32,
}

pub(super) struct Writer<D> {
    disk: D,
    /// By first index; contiguous.
    frames: BTreeMap<u64, Extent>,
    /// The index the next appended entry must have.
    next: u64,
    /// Entries taken from the queue and not yet in a frame; they end just before `next`.
    pending: Vec<Bytes>,
    pending_bytes: usize,
    snapshot_generation: u64,
    /// How far the kept snapshot reaches; none if there is none.
    snapshot_index: Option<u64>,
    /// Whether something was written that a caller waits for.
    dirty: bool,
}

impl<D: Disk> Writer<D> {
    /// Reads everything, verifies it, and tidies up what a crash left half done.
    pub fn open(disk: D, dir: &Path) -> Result<(Self, Recovered), Error> {
        let damaged = |what: String| Error::Damaged { dir: dir.into(), what };
        let io = |source: io::Error| Error::Io { dir: dir.into(), source };
        let mut writer = Self {
            disk,
            frames: BTreeMap::new(),
            next: 0,
            pending: Vec::new(),
            pending_bytes: 0,
            snapshot_generation: 0,
            snapshot_index: None,
            dirty: false,
        };
        writer.check_format(dir)?;
        let purged = writer
            .read_purged()
            .map_err(io)?
            .transpose()
            .map_err(|e| damaged(format!("the purge mark: {e}")))?;
        writer.verify_log(purged.as_ref()).map_err(io)?.map_err(damaged)?;
        let snapshot = writer.verify_snapshot().map_err(io)?.map_err(damaged)?;
        // A crash between chunks and pointer leaves chunks that the next generation would be mixed with.
        writer.drop_old_chunks(writer.snapshot_generation).map_err(io)?;
        let slot = |slot: Slot| writer.disk.get(Tree::Meta, slot.key()).map_err(io);
        let recovered = Recovered {
            vote: slot(Slot::Vote)?,
            committed: slot(Slot::Committed)?,
            identity: slot(Slot::Identity)?,
            log: writer
                .frames
                .keys()
                .next()
                .map_or(writer.next, |first| purged.as_ref().map_or(*first, |p| p.index + 1))
                ..writer.next,
            purged,
            snapshot,
        };
        Ok((writer, recovered))
    }

    fn check_format(&mut self, dir: &Path) -> Result<(), Error> {
        let io = |source: io::Error| Error::Io { dir: dir.into(), source };
        let found = self.disk.get(Tree::Meta, FORMAT_KEY).map_err(io)?;
        match found.map(|bytes| unseal::<u32>(&bytes)).transpose() {
            Err(error) => Err(Error::Damaged { dir: dir.into(), what: format!("the format mark: {error}") }),
            Ok(Some(found)) if found > FORMAT => Err(Error::Newer { dir: dir.into(), found }),
            Ok(Some(_)) => Ok(()),
            Ok(None) if self.disk.scan(Tree::Log, &[]).next().is_some() => {
                Err(Error::Damaged { dir: dir.into(), what: "there is a log, and no format mark".into() })
            }
            Ok(None) => self
                .disk
                .put(Tree::Meta, FORMAT_KEY, &seal(&FORMAT))
                .and_then(|()| self.disk.sync())
                .map_err(io),
        }
    }

    fn read_purged(&self) -> io::Result<Option<Result<Purged, crate::envelope::Error>>> {
        Ok(self.disk.get(Tree::Meta, PURGED_KEY)?.map(|bytes| unseal(&bytes)))
    }

    /// Checks every frame, their chain and their order, and finishes a purge that a crash interrupted.
    fn verify_log(&mut self, purged: Option<&Purged>) -> io::Result<Result<(), String>> {
        let begin = purged.map_or(0, |p| p.index + 1);
        let mut leftover = Vec::new();
        let mut last: Option<Frame> = None;
        for pair in self.disk.scan(Tree::Log, &[]) {
            let (key, value) = pair?;
            let Ok(key) = <[u8; 8]>::try_from(key.as_slice()).map(u64::from_be_bytes) else {
                return Ok(Err(format!("the log has a key of {} bytes", key.len())));
            };
            let frame = match frame::decode(key, &Bytes::from(value)) {
                Ok(frame) => frame,
                Err(error) => return Ok(Err(error.to_string())),
            };
            if let Some(last) = &last
                && (frame.first != last.last() + 1 || frame.previous != last.crc)
            {
                return Ok(Err(format!("frame {key} does not follow the one that ends at {}", last.last())));
            }
            if last.is_none() && frame.first > begin {
                return Ok(Err(format!("the log begins at {key}, and entries from {begin} on are missing")));
            }
            if frame.last() < begin {
                leftover.push(key);
            } else {
                self.frames
                    .insert(key, Extent { last: frame.last(), previous: frame.previous, crc: frame.crc });
            }
            last = Some(frame);
        }
        for key in leftover {
            self.disk.remove(Tree::Log, &key.to_be_bytes())?;
        }
        self.next = self.frames.values().next_back().map_or(begin, |extent| extent.last + 1);
        Ok(Ok(()))
    }

    fn verify_snapshot(&mut self) -> io::Result<Result<Option<Snapshot>, String>> {
        let Some(bytes) = self.disk.get(Tree::Meta, SNAPSHOT_KEY)? else {
            return Ok(Ok(None));
        };
        let pointer: Pointer = match unseal(&bytes) {
            Ok(pointer) => pointer,
            Err(error) => return Ok(Err(format!("the snapshot's pointer: {error}"))),
        };
        self.snapshot_generation = pointer.generation;
        let mut chunks = Vec::new();
        for pair in self.disk.scan(Tree::Snapshot, &pointer.generation.to_be_bytes()) {
            chunks.push(Bytes::from(pair?.1));
        }
        if chunks.len() != pointer.chunks as usize || crc_of(&chunks) != pointer.crc {
            return Ok(Err(format!(
                "{} of {} snapshot chunks are there, or they have changed",
                chunks.len(),
                pointer.chunks
            )));
        }
        self.snapshot_index = Some(pointer.index);
        Ok(Ok(Some(Snapshot { index: pointer.index, meta: pointer.meta, chunks })))
    }

    /// Works until every handle is gone or a write fails.
    pub fn run(
        mut self,
        mut queue: mpsc::Receiver<Job>,
        metrics: &Metrics,
        on_failure: impl FnOnce(&io::Error),
    ) {
        let mut jobs = Vec::with_capacity(BATCH);
        while queue.blocking_recv_many(&mut jobs, BATCH) > 0 {
            let (waiting, result) = self.work_off(&mut jobs, metrics);
            if let Err(error) = result {
                on_failure(&error);
                return fail(waiting, &error);
            }
            waiting.into_iter().for_each(|done| done(Ok(())));
        }
    }

    /// The same as a task, in simulated time.
    pub async fn run_in_task(
        mut self,
        mut queue: mpsc::Receiver<Job>,
        metrics: &Metrics,
        on_failure: impl FnOnce(&io::Error),
        mut latency: impl FnMut() -> Duration,
    ) {
        let mut jobs = Vec::with_capacity(BATCH);
        while queue.recv_many(&mut jobs, BATCH).await > 0 {
            tokio::time::sleep(latency()).await;
            let (waiting, result) = self.work_off(&mut jobs, metrics);
            if let Err(error) = result {
                on_failure(&error);
                return fail(waiting, &error);
            }
            tokio::time::sleep(latency()).await;
            waiting.into_iter().for_each(|done| done(Ok(())));
        }
    }

    /// Writes what was taken from the queue and pays one barrier; with the callers who wait for the result.
    fn work_off(&mut self, jobs: &mut Vec<Job>, metrics: &Metrics) -> (Vec<Done>, io::Result<()>) {
        let started = Instant::now();
        let mut waiting = Vec::with_capacity(jobs.len());
        let written = jobs.drain(..).try_for_each(|job| self.execute(job, &mut waiting));
        let result = written.and_then(|()| self.barrier());
        if result.is_ok() && !waiting.is_empty() {
            metrics.barrier(started.elapsed());
        }
        (waiting, result)
    }

    fn barrier(&mut self) -> io::Result<()> {
        self.write_pending()?;
        if std::mem::take(&mut self.dirty) { self.disk.sync() } else { Ok(()) }
    }

    fn execute(&mut self, job: Job, waiting: &mut Vec<Done>) -> io::Result<()> {
        match job {
            Job::Append { first, entries, done } => {
                waiting.push(done);
                self.append(first, entries)?;
            }
            Job::Put { slot, value, done } => {
                // Frames lie on disk before a mark that speaks of them, wherever a power cut falls.
                self.write_pending()?;
                self.dirty |= done.is_some();
                waiting.extend(done);
                self.disk.put(Tree::Meta, slot.key(), &value)?;
            }
            Job::Truncate { from, done } => {
                waiting.push(done);
                self.truncate(from)?;
            }
            Job::Purge { purged, done } => {
                waiting.push(done);
                self.purge(purged)?;
            }
            Job::SaveSnapshot { snapshot, done } => {
                waiting.push(done);
                self.save_snapshot(snapshot)?;
            }
            Job::LoadSnapshot { reply } => {
                let loaded = self.verify_snapshot().map(|found| found.map_err(invalid));
                let _ = reply.send(loaded.flatten());
            }
            Job::Read { range, reply } => {
                self.write_pending()?;
                let _ = reply.send(self.read(range)); // a reader that gave up wants nothing
            }
        }
        Ok(())
    }

    fn append(&mut self, first: u64, entries: Vec<Bytes>) -> io::Result<()> {
        if self.frames.is_empty() && self.pending.is_empty() {
            // Nothing to follow: Raft decides where a log begins. The next opening checks it against the mark.
            self.next = first;
        }
        assert_eq!(first, self.next, "an append must follow the last entry");
        for entry in entries {
            let bytes = 4 + entry.len();
            if self.pending_bytes + bytes > FRAME_BYTES_MAX - 64 {
                self.write_pending()?;
            }
            self.pending.push(entry);
            self.pending_bytes += bytes;
            self.next += 1;
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
        let first = self.next - entries.len() as u64;
        let previous = self.frames.values().next_back().map_or(0, |extent| extent.crc);
        self.write_frame(first, previous, &entries)
    }

    fn write_frame(&mut self, first: u64, previous: u32, entries: &[Bytes]) -> io::Result<()> {
        let (bytes, crc) = frame::encode(first, previous, entries);
        self.disk.put(Tree::Log, &first.to_be_bytes(), &bytes)?;
        self.frames.insert(first, Extent { last: first + entries.len() as u64 - 1, previous, crc });
        Ok(())
    }

    /// Drops whole frames from the end backwards, so that a crash leaves no hole, then rewrites the one that is
    /// cut.
    fn truncate(&mut self, from: u64) -> io::Result<()> {
        self.write_pending()?;
        self.dirty = true;
        while let Some((&first, &extent)) = self.frames.last_key_value()
            && extent.last >= from
        {
            let kept = if first < from { self.read(first..from)? } else { Vec::new() };
            if kept.is_empty() {
                self.disk.remove(Tree::Log, &first.to_be_bytes())?;
                self.frames.remove(&first);
            } else {
                self.write_frame(first, extent.previous, &kept)?;
            }
        }
        self.next = self.next.min(from);
        Ok(())
    }

    /// Moves the mark first: frames behind it are dropped now or at the next opening.
    fn purge(&mut self, purged: Purged) -> io::Result<()> {
        self.write_pending()?;
        self.dirty = true;
        self.disk.put(Tree::Meta, PURGED_KEY, &seal(&purged))?;
        while let Some((&first, extent)) = self.frames.first_key_value()
            && extent.last <= purged.index
        {
            self.disk.remove(Tree::Log, &first.to_be_bytes())?;
            self.frames.remove(&first);
        }
        self.next = self.next.max(purged.index + 1);
        Ok(())
    }

    /// Chunks first, then the pointer, each behind a barrier; then the chunks of the generation before go.
    /// One that is older than what is kept changes nothing: it was built while a newer one was installed.
    fn save_snapshot(&mut self, snapshot: Snapshot) -> io::Result<()> {
        self.write_pending()?;
        if self.snapshot_index.is_some_and(|kept| kept > snapshot.index) {
            return Ok(());
        }
        let generation = self.snapshot_generation + 1;
        for (number, chunk) in snapshot.chunks.iter().enumerate() {
            self.disk.put(Tree::Snapshot, &chunk_key(generation, number as u32), chunk)?;
        }
        self.disk.sync()?;
        let crc = crc_of(&snapshot.chunks);
        let pointer = Pointer {
            generation,
            index: snapshot.index,
            chunks: snapshot.chunks.len() as u32,
            crc,
            meta: snapshot.meta,
        };
        self.disk.put(Tree::Meta, SNAPSHOT_KEY, &seal(&pointer))?;
        self.disk.sync()?;
        self.snapshot_generation = generation;
        self.snapshot_index = Some(snapshot.index);
        self.drop_old_chunks(generation)
    }

    fn drop_old_chunks(&mut self, current: u64) -> io::Result<()> {
        let keys: io::Result<Vec<_>> =
            self.disk.scan(Tree::Snapshot, &[]).map(|pair| pair.map(|(key, _)| key)).collect();
        for key in keys?.into_iter().filter(|key| !key.starts_with(&current.to_be_bytes())) {
            self.disk.remove(Tree::Snapshot, &key)?;
        }
        Ok(())
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<Bytes>> {
        let mut entries = Vec::new();
        let start = self.frames.range(..=range.start).next_back().map_or(range.start, |(first, _)| *first);
        for (&first, extent) in self.frames.range(start..range.end) {
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
    unseal::<Pointer>(pointer).map(|pointer| pointer.index).map_err(|e| e.to_string())
}

fn fail(waiting: Vec<Done>, error: &io::Error) {
    waiting.into_iter().for_each(|done| done(Err(io::Error::new(error.kind(), error.to_string()))));
}

fn chunk_key(generation: u64, number: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&generation.to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

fn crc_of(chunks: &[Bytes]) -> u32 {
    chunks.iter().fold(0, |crc, chunk| crc32c::crc32c_append(crc, chunk))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
