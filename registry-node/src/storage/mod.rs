//! What a node keeps: log, vote, pointers, snapshots, as bytes and indices. Durable when it says so.
//!
//! One thread owns the database (`writer`). Whatever waits in its queue is written together and pays for one
//! barrier (`disk`). The log lies in checksummed, chained frames (`frame`); opening verifies all of it and
//! refuses what is not exact, so that a damaged store never answers for an intact one.

mod disk;
mod frame;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use self::writer::{Job, Writer};
pub use self::{
    disk::{Disk, Sled, Tree},
    frame::ENTRY_BYTES_MAX,
};
use crate::{
    envelope::{self, Kind},
    metrics::Metrics,
};

/// The version of everything in a store's directory. An older program refuses a newer directory.
pub const FORMAT: u32 = 1;

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
    /// What is there is not what was written.
    #[error(
        "the store in {} is damaged: {what}. Nothing in it was changed. Keep the directory for inspection, and \
         replace this node by a new one with a new id: `registry-node --id NEW --join HOST:PEER_PORT`", .dir.display()
    )]
    Damaged {
        /// The store.
        dir: PathBuf,
        /// Where and how.
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
    /// The last log id known to be committed.
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
}

/// A handle to the thread that owns the database. Cheap to clone; the thread ends with the last handle.
#[derive(Debug, Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
}

impl Store {
    /// Opens or creates the store in `dir` and verifies it. `on_failure` is called once if a write ever fails:
    /// the store takes nothing more, and the process must end, because a failed sync cannot be repeated.
    pub fn open(
        dir: &Path,
        metrics: Arc<Metrics>,
        on_failure: impl FnOnce(&io::Error) + Send + 'static,
    ) -> Result<(Self, Recovered), Error> {
        let io = |source| Error::Io { dir: dir.into(), source };
        fs::create_dir_all(dir).map_err(io)?;
        let disk = Sled::open(&dir.join("sled")).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => Error::Damaged { dir: dir.into(), what: source.to_string() },
            _ => io(source),
        })?;
        Self::on(disk, dir, metrics, on_failure)
    }

    /// The same on any disk; `dir` is for messages.
    pub fn on(
        disk: impl Disk,
        dir: &Path,
        metrics: Arc<Metrics>,
        on_failure: impl FnOnce(&io::Error) + Send + 'static,
    ) -> Result<(Self, Recovered), Error> {
        let (writer, recovered) = Writer::open(disk, dir)?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("storage".into())
            .spawn(move || writer.run(queue, &metrics, on_failure))
            .map_err(|source| Error::Io { dir: dir.into(), source })?;
        Ok((Self { jobs }, recovered))
    }

    /// The same without a thread: whoever runs the future is the writer. `latency` says how long it waits before
    /// each batch of writes, and again before it tells the callers. For disks in memory, in simulated time.
    pub fn in_task(
        disk: impl Disk,
        dir: &Path,
        metrics: Arc<Metrics>,
        on_failure: impl FnOnce(&io::Error) + Send + 'static,
        latency: impl FnMut() -> Duration + Send + 'static,
    ) -> Result<(Self, Recovered, impl Future<Output = ()> + Send), Error> {
        let (writer, recovered) = Writer::open(disk, dir)?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let work = async move { writer.run_in_task(queue, &metrics, on_failure, latency).await };
        Ok((Self { jobs }, recovered, work))
    }

    /// Appends `entries`, which must follow the last index without a gap; `done` is called once they survive a
    /// power cut. Each is at most [`ENTRY_BYTES_MAX`].
    pub async fn append(&self, first: u64, entries: Vec<Bytes>, done: Done) -> io::Result<()> {
        self.send(Job::Append { first, entries, done }).await
    }

    /// Keeps a single value; durable on return.
    pub async fn put(&self, slot: Slot, value: Vec<u8>) -> io::Result<()> {
        self.wait(|done| Job::Put { slot, value, done: Some(done) }).await
    }

    /// Keeps a single value with the next barrier that something else pays for.
    pub async fn put_lazily(&self, slot: Slot, value: Vec<u8>) -> io::Result<()> {
        self.send(Job::Put { slot, value, done: None }).await
    }

    /// Drops the entries from `index` on; durable on return.
    pub async fn truncate_from(&self, index: u64) -> io::Result<()> {
        self.wait(|done| Job::Truncate { from: index, done }).await
    }

    /// Drops the entries up to `purged.index`. What a crash leaves of them is dropped at the next opening.
    pub async fn purge(&self, purged: Purged) -> io::Result<()> {
        self.wait(|done| Job::Purge { purged, done }).await
    }

    /// Keeps a snapshot in place of the one before; durable on return.
    pub async fn save_snapshot(&self, snapshot: Snapshot) -> io::Result<()> {
        self.wait(|done| Job::SaveSnapshot { snapshot, done }).await
    }

    /// The newest whole snapshot.
    pub async fn load_snapshot(&self) -> io::Result<Option<Snapshot>> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::LoadSnapshot { reply }).await?;
        answer.await.map_err(|_| gone())?
    }

    /// The entries of a range that is in the log.
    pub async fn read(&self, range: Range<u64>) -> io::Result<Vec<Bytes>> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Read { range, reply }).await?;
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

/// Where the vote lies in [`Tree::Meta`]; for tests that read along on a disk.
#[doc(hidden)]
pub const VOTE_KEY: &[u8] = b"vote";

#[doc(hidden)]
pub use writer::{SNAPSHOT_KEY, snapshot_reach};

/// The entries of a frame under its key; for tests that read along on a disk.
#[doc(hidden)]
pub fn frame_entries(key: &[u8], frame: &[u8]) -> Result<Vec<Bytes>, String> {
    let key = key.try_into().map(u64::from_be_bytes).map_err(|_| "no frame's key".to_owned())?;
    frame::decode(key, &Bytes::copy_from_slice(frame)).map(|frame| frame.entries).map_err(|e| e.to_string())
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
