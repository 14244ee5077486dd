//! How much room the disk has left: below a mark nothing new is taken, and a ballast file is given back when a
//! full node has to start.
//!
//! Once sled has met a full disk it cannot go on, and it cannot even open again on one. So proposals are refused
//! while there is still room for what is already on its way, and a file of a few megabytes is kept that can be
//! deleted to make room for an opening.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    sys::statvfs::statvfs,
};
use tracing::{error, info, warn};

/// The kernel is asked at most this often. In between a node writes a few megabytes: far less than the mark.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// The ballast's name in the node's directory.
pub const BALLAST: &str = "ballast";

/// There is too little room on the disk; nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the disk of {} is nearly full: {} MiB are free, below {} MiB nothing new is taken. Free space there or give \
     it more; nothing has to be restarted", .dir.display(), .free >> 20, .needed >> 20
)]
pub struct Full {
    /// The node's directory.
    pub dir: PathBuf,
    /// Bytes that are free.
    pub free: u64,
    /// Bytes that would have to be.
    pub needed: u64,
}

/// The room on the disk of a node's directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Space(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    mark: u64,
    ballast: u64,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    at: Instant,
    free: u64,
    /// Whether the last word in the log was that the disk is nearly full.
    told: bool,
}

impl Space {
    /// Room without end: for disks that are not files.
    pub fn unbounded() -> Self {
        Self(None)
    }

    /// The room of `dir`, which is created if need be. Below `mark` bytes proposals are refused; 0 refuses none. If
    /// less is free than the `ballast` is large, the ballast is given back, so that a store can be opened.
    pub fn of(dir: &Path, mark: u64, ballast: u64) -> io::Result<Self> {
        super::disk::create_dir(dir)?;
        let free = free_bytes(dir)?;
        if free < ballast && fs::exists(dir.join(BALLAST))? {
            warn!(dir = %dir.display(), free_mib = free >> 20, "the disk is full: gave the ballast back");
            fs::remove_file(dir.join(BALLAST))?;
        }
        let seen = Seen { at: Instant::now(), free: free_bytes(dir)?, told: false };
        Ok(Self(Some(Arc::new(Inner { dir: dir.into(), mark, ballast, seen: Mutex::new(seen) }))))
    }

    /// Bytes that are free, as of 200 ms ago at most; none where there is no end.
    pub fn free(&self) -> Option<u64> {
        self.0.as_ref().map(|inner| inner.free())
    }

    /// Whether a new proposal may be taken.
    pub fn for_proposals(&self) -> Result<(), Full> {
        self.needs(|mark| mark)
    }

    /// Whether so many bytes may be taken of what the cluster has already agreed on. Half the mark is kept for it:
    /// what a leader has taken must find a place on its followers.
    pub fn for_replication(&self, bytes: u64) -> Result<(), Full> {
        self.needs(|mark| (mark / 2).saturating_add(bytes))
    }

    fn needs(&self, needed: impl FnOnce(u64) -> u64) -> Result<(), Full> {
        let Some(inner) = self.0.as_ref().filter(|inner| inner.mark > 0) else { return Ok(()) };
        let (free, needed) = (inner.free(), needed(inner.mark));
        if free < needed { Err(Full { dir: inner.dir.clone(), free, needed }) } else { Ok(()) }
    }

    /// Says in the log when the disk becomes full and when it has room again, and lays the ballast down when there
    /// is room for it. Blocks; meant to be called every now and then.
    pub fn tend(&self) {
        let Some(inner) = &self.0 else { return };
        let full = self.for_proposals();
        let told = std::mem::replace(&mut inner.seen().told, full.is_err());
        match full {
            Err(full) if !told => error!(%full, "writes are refused"),
            Ok(()) if told => {
                info!(dir = %inner.dir.display(), free_mib = inner.free() >> 20, "the disk has room: writes go on");
            }
            _ => {}
        }
        if inner.free() >= inner.ballast + inner.ballast.max(inner.mark)
            && let Err(error) = inner.lay_ballast()
        {
            warn!(%error, dir = %inner.dir.display(), "there is no ballast: a full disk may keep this node from starting");
        }
    }
}

impl Inner {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic while it is held")
    }

    fn free(&self) -> u64 {
        let mut seen = self.seen();
        if seen.at.elapsed() >= ASK_EVERY {
            seen.at = Instant::now();
            // A file system that does not even answer this will fail the next write, which ends the process.
            seen.free = free_bytes(&self.dir).unwrap_or(seen.free);
        }
        seen.free
    }

    /// Allocates the ballast unless it is there, really: a hole would give nothing back.
    fn lay_ballast(&self) -> io::Result<()> {
        let path = self.dir.join(BALLAST);
        if self.ballast == 0 || fs::metadata(&path).is_ok_and(|m| m.blocks() * 512 >= self.ballast) {
            return Ok(());
        }
        let mut file = File::create(&path)?;
        let laid = match fallocate(&file, FallocateFlags::empty(), 0, self.ballast as i64) {
            Err(nix::Error::EOPNOTSUPP | nix::Error::ENOSYS) => {
                (0..self.ballast >> 20).try_for_each(|_| file.write_all(&[0; 1 << 20]))
            }
            other => other.map_err(io::Error::from),
        };
        match laid.and_then(|()| file.sync_all()) {
            Ok(()) => Ok(()),
            Err(error) => {
                let _ = fs::remove_file(&path); // half a ballast only takes room; the next turn tries again
                Err(error)
            }
        }
    }
}

/// What an ordinary user may still fill; the part that is kept for root is not counted.
fn free_bytes(dir: &Path) -> io::Result<u64> {
    let disk = statvfs(dir)?;
    Ok(disk.blocks_available() * disk.fragment_size())
}
