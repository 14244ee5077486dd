//! What a node keeps: log, vote, pointers, snapshots, as bytes and indices. Durable when it says so.
//!
//! One thread owns the database (`writer`). Whatever waits in its queue is written together and pays for one
//! barrier (`disk`). The log lies in checksummed, chained frames (`frame`), and a small file beside the database
//! says what was promised (`sidecar`). Opening verifies all of it (`opening`): a store is exactly what it was, or in
//! quarantine, or refused, so that a damaged one never answers for an intact one.

mod disk;
mod frame;
mod opening;
mod pace;
mod sidecar;
mod space;
mod survey;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

#[cfg(test)]
pub(crate) use self::tests::memory::Memory as MemoryMedium;
use self::writer::Job;
pub use self::{
    disk::{Directory, Disk, Medium, Sled, Tree},
    frame::ENTRY_BYTES_MAX,
    opening::Sound,
    pace::Pace,
    space::{BALLAST, Full, Space},
    survey::{Flaw, Survey, SurveyError, await_release, hold, survey},
};
use crate::{
    envelope::{self, Kind},
    metrics::Metrics,
};

/// The version of everything in a store's directory. An older program refuses a newer directory.
/// 1: no sidecar, votes without a number.
pub const FORMAT: u32 = 2;

/// Jobs that may wait for the writer; beyond it callers wait.
const QUEUE: usize = 4_096;

/// Called when a write is durable, or has failed; then the process is about to end.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system says no.
    #[error("cannot open the store in {}", .dir.display())]
    Io {
        /// The store.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is there is not what was written, and the node's peers cannot repair it in place.
    #[error(
        "the store is damaged: {}: {what}. Nothing was removed: keep {} for inspection, and replace this node by a new one \
         with a new id: `registry-node --id NEW --dir NEW_DIR --join HOST:PEER_PORT`. If no other member has the data, \
         `registry-node recover --help` says what can be saved", .dir.join(.file).display(), .dir.display()
    )]
    Damaged {
        /// The store.
        dir: PathBuf,
        /// The file or directory in it.
        file: PathBuf,
        /// Where and how.
        what: String,
    },
    /// The database and the sidecar are of two nodes.
    #[error(
        "{} does not belong to {}: they are of two different nodes. Put each node's own files together again; \
         a node whose own are lost is replaced by a new one with a new id: `registry-node --id NEW --dir NEW_DIR --join HOST:PEER_PORT`",
        .dir.join(disk::SIDECAR).display(), .dir.join(disk::DATABASE).display()
    )]
    Foreign {
        /// The store.
        dir: PathBuf,
    },
    /// Too many damaged databases lie there already.
    #[error(
        "the database in {} is damaged ({what}), and {count} damaged ones are set aside there already: this disk needs a look. \
         Remove {}.damaged-* once they are not needed any more, and start this node again", .dir.display(), disk::DATABASE
    )]
    Aside {
        /// The store.
        dir: PathBuf,
        /// How many.
        count: u32,
        /// What is wrong with the newest.
        what: String,
    },
    /// Written by a newer program.
    #[error("the store in {} has format {found}, this program knows {FORMAT}: start the newer program again", .dir.display())]
    Newer {
        /// The store.
        dir: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// Single values kept beside the log. Their bytes are the caller's, checksummed by the caller's envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Raft's vote.
    Vote,
    /// The last log id known to be committed; see [`Store::note_committed`].
    Committed,
    /// Cluster id and node id.
    Identity,
}

impl Slot {
    fn key(self) -> &'static [u8] {
        match self {
            Self::Vote => VOTE_KEY,
            Self::Committed => b"committed",
            Self::Identity => b"identity",
        }
    }
}

/// How far the log has been purged: the index, and the caller's bytes for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purged {
    /// Entries up to here are gone.
    pub index: u64,
    /// The caller's description of the last of them.
    pub mark: Vec<u8>,
}

/// A snapshot as it was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The last log index it holds. A snapshot never replaces one that reaches further.
    pub index: u64,
    /// The caller's description.
    pub meta: Vec<u8>,
    /// Its chunks, in order.
    pub chunks: Vec<Bytes>,
}

/// Why a node takes no part although it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// What was wrong with the database that was set aside.
    pub why: String,
    /// The log has to hold all entries below again: they were durable once.
    pub floor: u64,
    /// The newest vote when the database was set aside.
    pub vote_before: Option<Vec<u8>>,
}

/// What was found at opening.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// [`Slot::Vote`].
    pub vote: Option<Vec<u8>>,
    /// [`Slot::Committed`].
    pub committed: Option<Vec<u8>>,
    /// [`Slot::Identity`].
    pub identity: Option<Vec<u8>>,
    /// How far the log was purged.
    pub purged: Option<Purged>,
    /// The entries that are there.
    pub log: Range<u64>,
    /// The newest whole snapshot.
    pub snapshot: Option<Snapshot>,
    /// Set if the log is not what it was: this node must not vote until [`Store::rejoin`] says so.
    pub quarantine: Option<Quarantine>,
}

/// A handle to the thread that owns the database. Cheap to clone; the thread ends with the last handle.
#[derive(Debug, Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    /// What the next append takes along, or the end does.
    committed: writer::Noted,
    space: Space,
    /// Held by whoever saves a snapshot.
    saving: Arc<tokio::sync::Mutex<()>>,
    pace: Pace,
}

impl Store {
    /// Opens or creates the store in `dir`, verifies it, and asks `sound` whether what was found makes sense.
    /// `on_failure` is called once if a write ever fails: the store takes nothing more, and the process must end,
    /// because a failed sync cannot be repeated.
    pub fn open(
        dir: &Path,
        sound: Sound<'_>,
        metrics: Arc<Metrics>,
        on_failure: impl FnOnce(&io::Error) + Send + 'static,
    ) -> Result<(Self, Recovered), Error> {
        let io = |source| Error::Io { dir: dir.into(), source };
        let medium = Directory::open(dir).map_err(io)?;
        let (store, recovered, work) =
            Self::in_task(medium, dir, sound, metrics, on_failure, || Duration::ZERO)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(io)?;
        let thread = std::thread::Builder::new().name("storage".into());
        thread.spawn(move || runtime.block_on(work)).map_err(io)?;
        Ok((store, recovered))
    }

    /// The same on any medium and without a thread: whoever runs the future is the writer; it blocks as long as
    /// the medium does, and ends with the last handle or the first failure. `dir` is for messages. `latency` says
    /// how long it waits before each batch of writes, and again before it tells the callers, in simulated time.
    pub fn in_task<M, F, L>(
        medium: M,
        dir: &Path,
        sound: Sound<'_>,
        metrics: Arc<Metrics>,
        on_failure: F,
        latency: L,
    ) -> Result<(Self, Recovered, impl Future<Output = ()> + Send + use<M, F, L>), Error>
    where
        M: Medium,
        F: FnOnce(&io::Error) + Send + 'static,
        L: FnMut() -> Duration + Send + 'static,
    {
        let (writer, recovered) = opening::open(medium, dir, sound)?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let pace = Pace::default();
        let committed = writer.noted();
        let work = writer.run(queue, metrics, pace.clone(), on_failure, latency);
        let store = Self { jobs, committed, space: Space::unbounded(), saving: Arc::default(), pace };
        Ok((store, recovered, work))
    }

    /// The same store, which tells its users of the room that is left for it.
    pub fn within(self, space: Space) -> Self {
        Self { space, ..self }
    }

    /// The room that is left on its disk. Whoever begins something new asks first; the store itself takes all.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// How long its disk takes to make things durable.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Appends `entries`, which must follow the last index without a gap; `done` is called once they survive a
    /// power cut. Each is at most [`ENTRY_BYTES_MAX`].
    pub async fn append(&self, first: u64, entries: Vec<Bytes>, done: Done) -> io::Result<()> {
        let committed = self.committed.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.send(Job::Append { first, entries, committed, done }).await
    }

    /// Keeps a single value; durable on return.
    pub async fn put(&self, slot: Slot, value: Vec<u8>) -> io::Result<()> {
        self.wait(|done| Job::Put { slot, value, done }).await
    }

    /// Keeps [`Slot::Committed`] with the next append, or at a clean stop: after a crash it is older, and never speaks
    /// of an entry that was appended after it was noted. Wakes nobody.
    pub fn note_committed(&self, mark: Vec<u8>) {
        *self.committed.lock().unwrap_or_else(PoisonError::into_inner) = Some(mark);
    }

    /// Drops the entries from `index` on; durable on return.
    pub async fn truncate_from(&self, index: u64) -> io::Result<()> {
        self.wait(|done| Job::Truncate { from: index, done }).await
    }

    /// Drops the entries up to `purged.index`. What a crash leaves of them is dropped at the next opening.
    pub async fn purge(&self, purged: Purged) -> io::Result<()> {
        self.wait(|done| Job::Purge { purged, done }).await
    }

    /// Keeps a snapshot in place of the one before; durable on return. Appends go on between its parts.
    pub async fn save_snapshot(&self, snapshot: Snapshot) -> io::Result<()> {
        let Snapshot { index, meta, chunks } = snapshot;
        let _one_at_a_time = self.saving.lock().await;
        let mut first = 0;
        loop {
            let to = chunks.len().min(first + writer::CHUNKS_AT_ONCE);
            let (number, group) = (first as u32, chunks[first..to].to_vec());
            self.wait(|done| Job::SaveChunks { first: number, chunks: group, done }).await?;
            first = to;
            if to == chunks.len() {
                break;
            }
        }
        let crc = writer::crc_of(&chunks);
        self.wait(|done| Job::SaveSnapshot { index, meta, crc, done }).await?;
        loop {
            let (reply, more) = oneshot::channel();
            self.send(Job::DropChunks { reply }).await?;
            if !more.await.map_err(|_| gone())? {
                return Ok(());
            }
        }
    }

    /// The newest whole snapshot. Appends go on between its parts; one that is replaced meanwhile is begun anew.
    pub async fn load_snapshot(&self) -> io::Result<Option<Snapshot>> {
        while let Some(pointer) = self.ask(|reply| Job::FindSnapshot { reply }).await? {
            let Some(chunks) = self.load_chunks(pointer.generation, pointer.chunks).await? else { continue };
            if writer::crc_of(&chunks) != pointer.crc {
                return Err(writer::invalid("the snapshot's chunks have changed".into()));
            }
            return Ok(Some(Snapshot { index: pointer.index, meta: pointer.meta, chunks }));
        }
        Ok(None)
    }

    /// The chunks of a snapshot; none if another has taken its place.
    async fn load_chunks(&self, generation: u64, count: u32) -> io::Result<Option<Vec<Bytes>>> {
        let mut chunks = Vec::new();
        while chunks.len() < count as usize {
            let first = chunks.len() as u32;
            match self.ask(|reply| Job::LoadChunks { generation, first, reply }).await? {
                Some(more) => chunks.extend(more),
                None => return Ok(None),
            }
        }
        Ok(Some(chunks))
    }

    /// The entries of a range that is in the log.
    pub async fn read(&self, range: Range<u64>) -> io::Result<Vec<Bytes>> {
        self.ask(|reply| Job::Read { range, reply }).await
    }

    /// Calls the database damaged, durably: at the next opening it is set aside, and the node goes into quarantine.
    pub async fn condemn(&self, why: &str) -> io::Result<()> {
        self.wait(|done| Job::Condemn { why: why.into(), done }).await
    }

    /// Ends the quarantine, durably, if the log holds again everything that was ever durable here, or
    /// `regardless`; false if it does not, or if there is no quarantine.
    pub async fn rejoin(&self, regardless: bool) -> io::Result<bool> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Rejoin { regardless, reply }).await?;
        answer.await.map_err(|_| gone())
    }

    /// Notes whether no other voter could repair this node; then damage is refused instead of set aside.
    pub async fn alone(&self, alone: bool) -> io::Result<()> {
        self.send(Job::Alone { alone }).await
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<io::Result<T>>) -> Job) -> io::Result<T> {
        let (reply, answer) = oneshot::channel();
        self.send(job(reply)).await?;
        answer.await.map_err(|_| gone())?
    }

    async fn wait(&self, job: impl FnOnce(Done) -> Job) -> io::Result<()> {
        let (reply, answer) = oneshot::channel();
        let done: Done = Box::new(move |result| drop(reply.send(result)));
        self.send(job(done)).await?;
        answer.await.map_err(|_| gone())?
    }

    async fn send(&self, job: Job) -> io::Result<()> {
        self.jobs.send(job).await.map_err(|_| gone())
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the storage thread has ended")
}

/// Seals a value of the store's own.
fn seal<T: Serialize>(value: &T) -> Vec<u8> {
    envelope::seal(Kind::META, 1, value)
}

fn unseal<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, envelope::Error> {
    let (_, payload) = envelope::open(bytes, Kind::META)?;
    envelope::decode(payload)
}

/// Where the numbered vote lies in [`Tree::Meta`]; for tests that read along on a disk, with [`vote_in`].
#[doc(hidden)]
pub const VOTE_KEY: &[u8] = b"ballot";

/// The caller's vote in a value under [`VOTE_KEY`].
#[doc(hidden)]
pub fn vote_in(bytes: &[u8]) -> Option<Vec<u8>> {
    unseal::<writer::Ballot>(bytes).ok().map(|ballot| ballot.vote)
}

#[doc(hidden)]
pub use writer::{SNAPSHOT_KEY, snapshot_reach};

/// The entries of a frame under its key; for tests that read along on a disk.
#[doc(hidden)]
pub fn frame_entries(key: &[u8], frame: &[u8]) -> Result<Vec<Bytes>, String> {
    let key = key.try_into().map(u64::from_be_bytes).map_err(|_| "no frame's key".to_owned())?;
    frame::decode(key, &Bytes::copy_from_slice(frame)).map(|frame| frame.entries).map_err(|e| e.to_string())
}
