//! Where bytes lie: the thin seam between the store and sled, the barrier that makes sled durable, and the
//! directory that holds a database, its sidecar and what was set aside.
//!
//! sled's `flush()` on Linux is `sync_file_range`, which neither empties the device's cache nor journals the
//! file's size: after a power cut nearly everything it had confirmed is gone. [`Sled::sync`] therefore does
//! `flush()`, then `fdatasync` on the database file, and syncs the small files and directories beside it
//! whenever they have changed.
//!
//! # Why not sled's own batches
//! `apply_batch` takes a lock that is shared by every database of the process; plain inserts do not.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

/// The trees of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tree {
    /// Frames of the log.
    Log,
    /// Vote, ids, pointers.
    Meta,
    /// Chunks of snapshots.
    Snapshot,
}

/// One key and its value, as they lie on disk.
pub type Pair = (Vec<u8>, Vec<u8>);

/// What the store needs of a disk. Writes are durable only after [`Disk::sync`] has returned.
pub trait Disk: Send + 'static {
    /// Puts a value.
    fn put(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> io::Result<()>;
    /// Takes a value out; nothing happens if there is none.
    fn remove(&mut self, tree: Tree, key: &[u8]) -> io::Result<()>;
    /// The value under a key.
    fn get(&self, tree: Tree, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// All pairs whose keys start with `prefix`, in key order.
    fn scan(&self, tree: Tree, prefix: &[u8]) -> Box<dyn Iterator<Item = io::Result<Pair>> + '_>;
    /// Returns once everything written before survives a power cut.
    fn sync(&mut self) -> io::Result<()>;
}

/// What a store needs of the place it lives in: one database, the sidecar beside it, and room to set a damaged
/// database aside. All of it is on a disk that may fail, and be cut off, at every call.
pub trait Medium: Send + 'static {
    /// The database.
    type Disk: Disk;
    /// Whether there is a database.
    fn has_database(&self) -> io::Result<bool>;
    /// Opens the database, or creates it. [`io::ErrorKind::InvalidData`] says that it is damaged.
    fn open(&mut self) -> io::Result<Self::Disk>;
    /// Removes a database that holds nothing yet. Durable on return.
    fn discard(&mut self) -> io::Result<()>;
    /// Whether something is set aside under a number.
    fn is_aside(&self, number: u32) -> io::Result<bool>;
    /// Moves the database, which is closed, aside. Durable on return; nothing happens if there is none.
    fn set_aside(&mut self, number: u32) -> io::Result<()>;
    /// The sidecar, if there is one.
    fn read_sidecar(&self) -> io::Result<Option<Vec<u8>>>;
    /// Creates the sidecar, whole or not at all. Durable on return.
    fn create_sidecar(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Writes into the sidecar; durable after [`Medium::sync_sidecar`].
    fn write_sidecar(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Returns once everything written to the sidecar survives a power cut.
    fn sync_sidecar(&mut self) -> io::Result<()>;
}

/// The name of the database's directory.
pub const DATABASE: &str = "sled";
/// The name of the sidecar.
pub const SIDECAR: &str = "sidecar";

/// A node's directory: `sled/`, `sidecar`, `sled.damaged-N/`, and a `lock` that a running node holds.
pub struct Directory {
    dir: PathBuf,
    sidecar: Option<File>,
    _lock: File,
}

impl Directory {
    /// Creates the directory if need be, and locks it against every other process.
    pub fn open(dir: &Path) -> io::Result<Self> {
        create_dir(dir)?;
        let lock = File::options().create(true).append(true).open(dir.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::ResourceBusy, "another process is using it")
            }
            TryLockError::Error(error) => error,
        })?;
        let sidecar = match File::options().read(true).write(true).open(dir.join(SIDECAR)) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { dir: dir.into(), sidecar, _lock: lock })
    }

    fn aside(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{DATABASE}.damaged-{number}"))
    }

    fn sidecar(&self) -> io::Result<&File> {
        self.sidecar.as_ref().ok_or_else(|| io::Error::other("there is no sidecar"))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

impl Medium for Directory {
    type Disk = Sled;

    fn has_database(&self) -> io::Result<bool> {
        match fs::read_dir(self.dir.join(DATABASE)) {
            Ok(mut entries) => Ok(entries.next().transpose()?.is_some()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn open(&mut self) -> io::Result<Sled> {
        Sled::open(&self.dir.join(DATABASE))
    }

    fn discard(&mut self) -> io::Result<()> {
        if self.has_database()? {
            fs::remove_dir_all(self.dir.join(DATABASE))?;
        }
        self.sync_names()
    }

    fn is_aside(&self, number: u32) -> io::Result<bool> {
        self.aside(number).try_exists()
    }

    fn set_aside(&mut self, number: u32) -> io::Result<()> {
        match fs::rename(self.dir.join(DATABASE), self.aside(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync_names(),
        }
    }

    fn read_sidecar(&self) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.dir.join(SIDECAR)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create_sidecar(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (unfinished, path) = (self.dir.join("sidecar.new"), self.dir.join(SIDECAR));
        let mut file =
            File::options().create(true).truncate(true).read(true).write(true).open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        self.sync_names()?;
        self.sidecar = Some(file);
        Ok(())
    }

    fn write_sidecar(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.sidecar()?.write_all_at(bytes, offset)
    }

    fn sync_sidecar(&mut self) -> io::Result<()> {
        self.sidecar()?.sync_data()
    }
}

/// Creates a node's directory if need be. A directory whose name is lost in a power cut looks like one that was
/// wiped: it is durable on return.
pub(super) fn create_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// sled, with a barrier that holds.
pub struct Sled {
    db: sled::Db,
    log: sled::Tree,
    meta: sled::Tree,
    snapshot: sled::Tree,
    barrier: Barrier,
}

/// The database's cache; a node's memory is for its catalog.
const CACHE_BYTES: u64 = 32 << 20;

impl Sled {
    /// Opens or creates the database in `dir`. Panics inside sled, which damage can cause, become errors.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        remove_unfinished_snapshots(dir)?;
        let path = dir.to_path_buf();
        let opened = std::panic::catch_unwind(move || {
            let db =
                sled::Config::new().path(path).flush_every_ms(None).cache_capacity(CACHE_BYTES).open()?;
            Ok((db.open_tree("log")?, db.open_tree("meta")?, db.open_tree("snapshot")?, db))
        });
        let (log, meta, snapshot, db) = match opened {
            Ok(opened) => opened.map_err(into_io)?,
            Err(panic) => return Err(io::Error::new(io::ErrorKind::InvalidData, panic_text(&*panic))),
        };
        let mut sled = Self { db, log, meta, snapshot, barrier: Barrier::new(dir)? };
        sled.sync()?;
        Ok(sled)
    }

    fn tree(&self, tree: Tree) -> &sled::Tree {
        match tree {
            Tree::Log => &self.log,
            Tree::Meta => &self.meta,
            Tree::Snapshot => &self.snapshot,
        }
    }
}

impl Disk for Sled {
    fn put(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.tree(tree).insert(key, value).map(drop).map_err(into_io)
    }

    fn remove(&mut self, tree: Tree, key: &[u8]) -> io::Result<()> {
        self.tree(tree).remove(key).map(drop).map_err(into_io)
    }

    fn get(&self, tree: Tree, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.tree(tree).get(key).map_err(into_io)?.map(|v| v.to_vec()))
    }

    fn scan(&self, tree: Tree, prefix: &[u8]) -> Box<dyn Iterator<Item = io::Result<Pair>> + '_> {
        let pairs = self.tree(tree).scan_prefix(prefix);
        Box::new(pairs.map(|pair| pair.map(|(k, v)| (k.to_vec(), v.to_vec())).map_err(into_io)))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.db.flush().map_err(into_io)?;
        self.barrier.sync()
    }
}

/// Two changes of a directory within this may carry one time: the kernel's clock for files ticks every 10 ms at most.
const TICK: Duration = Duration::from_millis(20);

/// Everything that has to reach the disk besides what sled's own flush wrote.
struct Barrier {
    dir: PathBuf,
    db: File,
    /// When the directories last changed, as they say themselves, and since when we know.
    changed: Option<([Option<SystemTime>; 2], Instant)>,
    /// Whether that change, and every one that could carry its time, is synced.
    settled: bool,
}

impl Barrier {
    fn new(dir: &Path) -> io::Result<Self> {
        let db = File::options().read(true).write(true).open(dir.join("db"))?;
        Ok(Self { dir: dir.to_path_buf(), db, changed: None, settled: false })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.db.sync_data()?;
        self.sync_names_if_changed(Instant::now()).map(drop)
    }

    /// Says whether it had to.
    fn sync_names_if_changed(&mut self, now: Instant) -> io::Result<bool> {
        let times = [changed_at(&self.dir), changed_at(&self.dir.join("blobs"))];
        let since = match self.changed {
            Some((known, since)) if known == times => since,
            _ => {
                self.changed = Some((times, now));
                self.settled = false;
                now
            }
        };
        if self.settled {
            return Ok(false);
        }
        self.sync_names()?;
        self.settled = now.duration_since(since) >= TICK;
        Ok(true)
    }

    /// Syncs the small files and the directories that hold them, up to the parent of ours.
    fn sync_names(&self) -> io::Result<()> {
        for dir in [self.dir.clone(), self.dir.join("blobs")] {
            if !dir.is_dir() {
                continue;
            }
            for entry in fs::read_dir(&dir)? {
                let path = entry?.path();
                match File::open(&path) {
                    Ok(file) if path.is_file() => file.sync_all()?,
                    // sled removes its old snapshots whenever it likes.
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            File::open(&dir)?.sync_all()?;
        }
        match self.dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
            _ => Ok(()),
        }
    }
}

fn changed_at(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|m| m.modified()).ok()
}

/// A kill while sled opens leaves a file that makes every later open fail; it holds nothing that is needed.
fn remove_unfinished_snapshots(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn into_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).into()));
    text.unwrap_or_else(|| "the database could not be opened".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's clock for files stands still for milliseconds: a file that comes within a tick after another
    /// leaves the directory's time as it was, and must be synced all the same.
    #[test]
    fn a_change_that_leaves_no_trace_in_the_time_is_synced() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("db"), "").expect("room");
        let mut barrier = Barrier::new(dir.path()).expect("it is there");
        let start = Instant::now();
        let mut synced_after =
            |ms| barrier.sync_names_if_changed(start + Duration::from_millis(ms)).expect("the disk works");
        assert!(synced_after(0), "nothing is known yet");
        // As if something had come in the meantime, in the same tick of the kernel's clock.
        assert!(synced_after(5) && synced_after(500), "a change may have had the time that is known");
        assert!(!synced_after(501) && !synced_after(10_000), "nothing can have changed since");
        fs::write(dir.path().join("snap.1"), "").expect("room");
        let moved = SystemTime::now() + Duration::from_secs(1);
        File::open(dir.path()).and_then(|dir| dir.set_modified(moved)).expect("it is ours");
        assert!(synced_after(10_001) && synced_after(10_021) && !synced_after(10_022));
    }
}
