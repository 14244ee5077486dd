//! A store that nobody runs, read as far as it can be read. Nothing in its directory changes: sled writes when it
//! opens, so what is opened is a copy. What is wrong in one place does not hide what is whole elsewhere.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    FORMAT, Purged, Slot, Snapshot,
    disk::{DATABASE, Disk, SIDECAR, Sled, Tree},
    frame::{self, Frame},
    sidecar::{Record, Sidecar, State, Unreadable},
    unseal,
    writer::{Ballot, FORMAT_KEY, PURGED_KEY, Pointer, SNAPSHOT_KEY, crc_of},
};

/// Format 1 kept the bare vote here.
const VOTE_1_KEY: &[u8] = b"vote";
/// The files that a running node holds a lock on.
const LOCKED: [&str; 2] = ["lock", "sled/db"];
/// Closing writes what is in memory; a busy disk may take its time.
const RELEASE_WITHIN: Duration = Duration::from_secs(60);
const RELEASE_POLL: Duration = Duration::from_millis(2);

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// Somebody runs it.
    #[error("a running node holds {}: stop it first, or look at a copy of the directory", .dir.display())]
    Held {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no store.
    #[error("{} holds no store of a node: it should have a directory `{DATABASE}`", .dir.display())]
    None {
        /// The directory.
        dir: PathBuf,
    },
    /// The operating system says no.
    #[error("cannot read the store in {}", .dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Something that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// File, tree and index, as far as they are known.
    pub place: String,
    /// What is wrong there.
    pub what: String,
}

/// What lies in a store.
#[derive(Debug, Default)]
pub struct Survey {
    /// Every file, relative to the directory, with its bytes.
    pub files: Vec<(PathBuf, u64)>,
    /// The version of everything in it.
    pub format: Option<u32>,
    /// [`Slot::Vote`].
    pub vote: Option<Vec<u8>>,
    /// [`Slot::Committed`].
    pub committed: Option<Vec<u8>>,
    /// [`Slot::Identity`].
    pub identity: Option<Vec<u8>>,
    /// How far the log was purged.
    pub purged: Option<Purged>,
    /// The entries of every frame that is whole, by index; what was purged is left out.
    pub entries: BTreeMap<u64, Bytes>,
    /// The snapshot, if it is whole.
    pub snapshot: Option<Snapshot>,
    /// Everything below this index was called durable once, by the file beside the database.
    pub promised: Option<u64>,
    /// Everything that is wrong.
    pub flaws: Vec<Flaw>,
    /// What is worth knowing and nothing wrong.
    pub notes: Vec<Flaw>,
}

/// Reads the store in `dir`, which no node may be running. Holds its locks meanwhile.
pub fn survey(dir: &Path) -> Result<Survey, SurveyError> {
    let io = |source| SurveyError::Io { dir: dir.into(), source };
    if !dir.join(DATABASE).is_dir() && !dir.join(SIDECAR).is_file() {
        return Err(SurveyError::None { dir: dir.into() });
    }
    let _held = hold(dir)?;
    let mut survey = Survey { files: files(dir).map_err(io)?, ..Survey::default() };
    let beside = survey.read_sidecar(dir).map_err(io)?;
    if !dir.join(DATABASE).is_dir() {
        survey.flaw(DATABASE, "the database is missing");
        survey.take_promises(&beside, None, &BTreeMap::new());
        return Ok(survey);
    }
    let copy = tempfile::tempdir().map_err(io)?;
    copy_all(&dir.join(DATABASE), &copy.path().join(DATABASE)).map_err(io)?;
    match Sled::open(&copy.path().join(DATABASE)) {
        Ok(disk) => survey.take(&disk, &beside),
        Err(error) => survey.flaw(DATABASE, format!("the database cannot be opened: {error}")),
    }
    Ok(survey)
}

/// Takes the locks that a running node would hold, without writing. They are released when dropped.
pub fn hold(dir: &Path) -> Result<Vec<File>, SurveyError> {
    let io = |source| SurveyError::Io { dir: dir.into(), source };
    let mut held = Vec::new();
    for name in LOCKED {
        let file = match File::open(dir.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io(error)),
        };
        match file.try_lock() {
            Ok(()) => held.push(file),
            Err(TryLockError::WouldBlock) => return Err(SurveyError::Held { dir: dir.into() }),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
    }
    Ok(held)
}

/// Returns once nobody has the store open any more: its thread ends a moment after the last handle.
pub fn await_release(dir: &Path) -> io::Result<()> {
    let deadline = Instant::now() + RELEASE_WITHIN;
    loop {
        match hold(dir) {
            Ok(_) => return Ok(()),
            Err(SurveyError::Held { .. }) if Instant::now() < deadline => {
                std::thread::park_timeout(RELEASE_POLL)
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

impl Survey {
    /// Notes something wrong.
    pub fn flaw(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.flaws.push(Flaw { place: place.into(), what: what.into() });
    }

    /// What the file beside the database says; a directory of format 1 has none.
    fn read_sidecar(&mut self, dir: &Path) -> io::Result<Beside> {
        let bytes = match fs::read(dir.join(SIDECAR)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Beside::Missing),
            bytes => bytes?,
        };
        match Sidecar::read(&bytes) {
            Ok(sidecar) => {
                if sidecar.torn {
                    let what =
                        "one of its two slots cannot be read: a crash may have torn it, or it is damaged";
                    self.notes.push(Flaw { place: SIDECAR.into(), what: what.into() });
                }
                Ok(Beside::Says(Box::new(sidecar.record)))
            }
            Err(Unreadable::Newer(version)) => {
                self.flaw(SIDECAR, format!("it has version {version}: use the newer program"));
                Ok(Beside::Unreadable)
            }
            Err(Unreadable::Damaged(what)) => {
                self.flaw(SIDECAR, what);
                Ok(Beside::Unreadable)
            }
        }
    }

    fn take(&mut self, disk: &impl Disk, beside: &Beside) {
        match self.meta(disk, FORMAT_KEY).map(|bytes| unseal::<u32>(&bytes)) {
            None => self.flaw("sled/meta format", "it is missing"),
            Some(Err(error)) => self.flaw("sled/meta format", error.to_string()),
            Some(Ok(found)) => {
                self.format = Some(found);
                if found > FORMAT {
                    let what = format!("{found}, and this program knows {FORMAT}: use the newer program");
                    return self.flaw("sled/meta format", what);
                }
            }
        }
        let ballot = self.take_vote(disk);
        self.committed = self.meta(disk, Slot::Committed.key());
        self.identity = self.meta(disk, Slot::Identity.key());
        self.purged = match self.meta(disk, PURGED_KEY).map(|bytes| unseal(&bytes)).transpose() {
            Ok(purged) => purged,
            Err(error) => {
                self.flaw("sled/meta purged", error.to_string());
                None
            }
        };
        let ends = self.take_log(disk, beside.claimed());
        self.take_snapshot(disk);
        if matches!(beside, Beside::Missing) && self.format.is_some_and(|format| format > 1) {
            self.flaw(SIDECAR, "it is missing, and the database cannot be believed without it");
        }
        self.take_promises(beside, ballot, &ends);
    }

    /// The vote, and how many were kept.
    fn take_vote(&mut self, disk: &impl Disk) -> Option<u64> {
        let Some(bytes) = self.meta(disk, Slot::Vote.key()) else {
            self.vote = self.meta(disk, VOTE_1_KEY);
            return self.vote.as_ref().map(|_| 1);
        };
        match unseal::<Ballot>(&bytes) {
            Ok(Ballot { number, vote }) => {
                self.vote = Some(vote);
                Some(number)
            }
            Err(error) => {
                self.flaw("sled/meta ballot", error.to_string());
                None
            }
        }
    }

    /// Compares the database with what was promised of it. `ends` has the checksum of every whole frame by the index after it.
    fn take_promises(&mut self, beside: &Beside, ballot: Option<u64>, ends: &BTreeMap<u64, u32>) {
        let Beside::Says(record) = beside else { return };
        self.promised = Some(record.durable_end());
        match &record.state {
            State::Sound => {}
            State::Condemned { why } | State::Replacing { why, .. } | State::Repairing { why } => {
                let floor = record.floor;
                self.flaw(
                    SIDECAR,
                    format!("the node is in quarantine until its log reaches {floor} again: {why}"),
                );
            }
        }
        if let Some(identity) = &record.identity {
            match &self.identity {
                None => self.identity = Some(identity.clone()),
                Some(ours) if ours != identity => {
                    self.flaw(SIDECAR, "it belongs to another node than the database")
                }
                Some(_) => {}
            }
        }
        if ballot.unwrap_or(0) < record.votes {
            let (found, kept) = (ballot.unwrap_or(0), record.votes);
            self.flaw(
                "sled/meta ballot",
                format!("the newest vote is number {found}, and number {kept} was kept"),
            );
            self.vote.clone_from(&record.vote);
        }
        let begin = self.purged.as_ref().map_or(0, |purged| purged.index + 1);
        let holds = |next: u64, crc: u32| next <= begin || ends.get(&next) == Some(&crc);
        if !record.log.iter().any(|claim| holds(claim.next, claim.crc)) {
            let next = record.log.iter().map(|claim| claim.next).max().unwrap_or(0);
            let what = format!(
                "it has no frame that ends before index {next} as it was written, and one was durable"
            );
            self.flaw("sled/log", what);
        }
        let reach = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.index + 1);
        if reach < record.snapshot {
            let kept = record.snapshot;
            self.flaw(
                "sled/snapshot",
                format!("it holds the entries below {reach}, and one held those below {kept}"),
            );
        }
    }

    fn meta(&mut self, disk: &impl Disk, key: &[u8]) -> Option<Vec<u8>> {
        let place = || format!("sled/meta {}", String::from_utf8_lossy(key));
        match catch_unwind(AssertUnwindSafe(|| disk.get(Tree::Meta, key))) {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => {
                self.flaw(place(), error.to_string());
                None
            }
            Err(_) => {
                self.flaw(place(), "the database cannot read it");
                None
            }
        }
    }

    /// All pairs of a tree that can be read; what comes after one that cannot is not.
    fn pairs(&mut self, disk: &impl Disk, tree: Tree, prefix: &[u8], place: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut pairs = Vec::new();
        let read = catch_unwind(AssertUnwindSafe(|| {
            for pair in disk.scan(tree, prefix) {
                pairs.push(pair?);
            }
            io::Result::Ok(())
        }));
        let after = pairs.len();
        match read {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.flaw(place, format!("unreadable after {after} keys: {error}")),
            Err(_) => self.flaw(place, format!("unreadable after {after} keys")),
        }
        pairs
    }

    /// Takes every entry that is whole. What is torn behind everything that was promised is none, and neither is what
    /// follows it: a node would drop it. Gives the checksum of every whole frame by the index after it.
    fn take_log(&mut self, disk: &impl Disk, claimed: u64) -> BTreeMap<u64, u32> {
        let begin = self.purged.as_ref().map_or(0, |purged| purged.index + 1);
        let mut ends = BTreeMap::new();
        let mut last: Option<Frame> = None;
        let mut next = begin;
        for (key, value) in self.pairs(disk, Tree::Log, &[], "sled/log") {
            let Ok(key) = <[u8; 8]>::try_from(key.as_slice()).map(u64::from_be_bytes) else {
                self.flaw("sled/log", format!("a key of {} bytes", key.len()));
                continue;
            };
            let frame = frame::decode(key, &Bytes::from(value));
            let wrong = match &frame {
                Err(error) => Some(error.to_string()),
                Ok(frame) => misplaced(frame, last.as_ref(), next),
            };
            let place = format!("sled/log frame {key}");
            if let Some(what) = wrong {
                if key >= claimed {
                    let what = format!("{what}; nothing from here on was promised, and a node would drop it");
                    self.notes.push(Flaw { place, what });
                    break;
                }
                self.flaw(place, what);
            }
            last = frame.ok();
            if let Some(frame) = &last {
                next = next.max(frame.last() + 1);
                ends.insert(frame.last() + 1, frame.crc);
                let entries = (frame.first..).zip(&frame.entries).filter(|(index, _)| *index >= begin);
                self.entries.extend(entries.map(|(index, entry)| (index, entry.clone())));
            }
        }
        ends
    }

    fn take_snapshot(&mut self, disk: &impl Disk) {
        let Some(bytes) = self.meta(disk, SNAPSHOT_KEY) else { return };
        let pointer: Pointer = match unseal(&bytes) {
            Ok(pointer) => pointer,
            Err(error) => return self.flaw("sled/meta snapshot", error.to_string()),
        };
        let place = format!("sled/snapshot generation {}", pointer.generation);
        let pairs = self.pairs(disk, Tree::Snapshot, &pointer.generation.to_be_bytes(), &place);
        let chunks: Vec<Bytes> = pairs.into_iter().map(|(_, chunk)| chunk.into()).collect();
        if chunks.len() != pointer.chunks as usize {
            let what = format!("{} of {} chunks are there", chunks.len(), pointer.chunks);
            return self.flaw(place, what);
        }
        if crc_of(&chunks) != pointer.crc {
            return self.flaw(
                place,
                "its chunks are not the ones that were written: the checksum over them differs",
            );
        }
        self.snapshot = Some(Snapshot { index: pointer.index, meta: pointer.meta, chunks });
    }
}

/// What the file beside the database says.
enum Beside {
    Says(Box<Record>),
    Missing,
    Unreadable,
}

impl Beside {
    /// Frames from here on were not promised to anybody.
    fn claimed(&self) -> u64 {
        match self {
            Beside::Says(record) => record.log.iter().map(|claim| claim.next).min().unwrap_or(0),
            Beside::Missing | Beside::Unreadable => u64::MAX,
        }
    }
}

/// Why a whole frame does not belong where it lies: after `last`, or, if that one is not known, where `next` is expected.
fn misplaced(frame: &Frame, last: Option<&Frame>, next: u64) -> Option<String> {
    match last {
        None if frame.first > next => {
            Some(format!("entries {next} to {} are missing before it", frame.first - 1))
        }
        None => None,
        Some(last) if frame.first > last.last() + 1 => {
            Some(format!("entries {} to {} are missing before it", last.last() + 1, frame.first - 1))
        }
        Some(last) if frame.first <= last.last() => {
            Some(format!("it begins at {}, and the one before it ends at {}", frame.first, last.last()))
        }
        Some(last) if frame.previous != last.crc => {
            Some("it was written after another frame than the one before it".into())
        }
        Some(_) => None,
    }
}

fn files(dir: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    fn visit(root: &Path, at: &Path, files: &mut Vec<(PathBuf, u64)>) -> io::Result<()> {
        for entry in fs::read_dir(at)? {
            let path = entry?.path();
            if path.is_dir() {
                visit(root, &path, files)?;
            } else {
                let name = path.strip_prefix(root).map_or_else(|_| path.clone(), Path::to_path_buf);
                files.push((name, path.metadata()?.len()));
            }
        }
        Ok(())
    }
    let mut files = Vec::new();
    visit(dir, dir, &mut files)?;
    files.sort();
    Ok(files)
}

fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() { copy_all(&path, &to)? } else { fs::copy(&path, &to).map(drop)? }
    }
    Ok(())
}
