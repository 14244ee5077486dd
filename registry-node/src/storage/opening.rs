//! What happens before a store takes its first job: the database is compared with the sidecar, and the store is
//! opened exactly as it was, or the database is set aside and the node goes into quarantine, or nothing is opened.
//!
//! | found | done |
//! |---|---|
//! | everything the sidecar claims, whole | opened |
//! | frames that are not whole, behind everything it claims | dropped with a warning: nobody was told of them |
//! | anything else wrong with the database, the sidecar whole, other voters | database set aside, quarantine |
//! | the same with one slot of the sidecar unreadable, or no other voter | refused |
//! | the sidecar unreadable, missing, of another node, of a newer program | refused |
//!
//! A directory of format 1 has no sidecar. It is verified as strictly as it was then, and gets one.

use std::{io, path::Path};

use bytes::Bytes;
use tracing::{error, info, warn};

use super::{
    Error, FORMAT, Purged, Quarantine, Recovered, Slot, Snapshot,
    disk::{DATABASE, Disk, Medium, SIDECAR, Tree},
    frame::{self, Frame},
    seal,
    sidecar::{self, Claim, Record, Sidecar, State, Unreadable},
    unseal,
    writer::{
        Ballot, Contents, Extent, FORMAT_KEY, PURGED_KEY, Pointer, SNAPSHOT_KEY, Writer, caught, crc_of,
    },
};

/// Databases that may lie aside. Each may be as large as the whole store; only a person removes one.
const ASIDE_MAX: u32 = 4;
/// Format 1 kept the bare vote here.
const VOTE_1_KEY: &[u8] = b"vote";

/// Whether what was found makes sense to the caller; what is wrong if not.
pub type Sound<'a> = &'a dyn Fn(&Recovered) -> Result<(), String>;

/// Why a database cannot be used.
enum Trouble {
    Io(io::Error),
    /// It is not what was written.
    Damaged(String),
    /// It is another node's.
    Foreign,
    Newer(u32),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Files that are cut short or gone are damage as well; a disk that cannot be read is not.
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound => {
                Self::Damaged(error.to_string())
            }
            _ => Self::Io(error),
        }
    }
}

struct Opening<'a, M> {
    medium: M,
    dir: &'a Path,
    sound: Sound<'a>,
}

/// Opens, creates, migrates, or sets aside and creates.
pub(super) fn open<M: Medium>(
    medium: M,
    dir: &Path,
    sound: Sound<'_>,
) -> Result<(Writer<M>, Recovered), Error> {
    let mut opening = Opening { medium, dir, sound };
    let Some(bytes) = opening.medium.read_sidecar().map_err(|e| opening.io(e))? else {
        return opening.without_sidecar();
    };
    let sidecar = Sidecar::read(&bytes).map_err(|unreadable| match unreadable {
        Unreadable::Newer(found) => Error::Newer { dir: dir.into(), found: u32::from(found) },
        Unreadable::Damaged(what) => opening.damaged(SIDECAR, what),
    })?;
    // A slot that was written before a crash and never synced is as good as the one before it only from now on.
    opening.medium.sync_sidecar().map_err(|e| opening.io(e))?;
    match &sidecar.record.state {
        State::Sound | State::Repairing { .. } => opening.compared(sidecar),
        State::Condemned { why } | State::Replacing { why, .. } => {
            let why = why.clone();
            opening.quarantined(sidecar, why)
        }
    }
}

impl<M: Medium> Opening<'_, M> {
    fn io(&self, source: io::Error) -> Error {
        Error::Io { dir: self.dir.into(), source }
    }

    fn damaged(&self, file: &str, what: String) -> Error {
        Error::Damaged { dir: self.dir.into(), file: file.into(), what }
    }

    fn refused(&self, trouble: Trouble) -> Error {
        match trouble {
            Trouble::Io(source) => self.io(source),
            Trouble::Damaged(what) => self.damaged(DATABASE, what),
            Trouble::Foreign => Error::Foreign { dir: self.dir.into() },
            Trouble::Newer(found) => Error::Newer { dir: self.dir.into(), found },
        }
    }

    /// A new directory, or one of format 1.
    fn without_sidecar(mut self) -> Result<(Writer<M>, Recovered), Error> {
        let found = caught(|| {
            let disk = self.medium.open()?;
            let format = read_format(&disk)?;
            Ok((disk, format))
        });
        let (disk, format) = found.map_err(|e| self.refused(e.into()))?;
        let opened = match format {
            None | Some(1) => verify(&disk, &Record::default(), Strictness::Everything, self.sound),
            Some(found) if found > FORMAT => Err(Trouble::Newer(found)),
            Some(_) => {
                let what = "it is missing, and the database beside it cannot be believed without it";
                return Err(self.damaged(SIDECAR, what.into()));
            }
        };
        let found = opened.map_err(|trouble| self.refused(trouble))?;
        let mut record = Record { log: vec![found.contents.claim()], ..Record::default() };
        record.snapshot = found.contents.snapshot_index.map_or(0, |index| index + 1);
        record.identity.clone_from(&found.recovered.identity);
        if let Some(ballot) = &found.ballot {
            (record.votes, record.vote) = (ballot.number, Some(ballot.vote.clone()));
        }
        if format.is_some() {
            info!(dir = %self.dir.display(), "the store has format 1: migrating it to {FORMAT}");
        }
        // Everything in format 1 is durable only once it has been synced by this program.
        let mut disk = disk;
        disk.sync().map_err(|e| self.io(e))?;
        let sidecar = Sidecar::create(record, &mut self.medium).map_err(|e| self.io(e))?;
        self.finished(sidecar, disk, found)
    }

    /// The usual way.
    fn compared(mut self, sidecar: Sidecar) -> Result<(Writer<M>, Recovered), Error> {
        let opened = caught(|| {
            if !self.medium.has_database()? && !sidecar.record.is_blank() {
                return Ok(Err(Trouble::Damaged("the database is missing".into())));
            }
            let disk = self.medium.open()?;
            Ok(verify(&disk, &sidecar.record, Strictness::Claimed, self.sound).map(|found| (disk, found)))
        });
        match opened.map_err(Trouble::from).flatten() {
            Ok((disk, found)) => self.finished(sidecar, disk, found),
            Err(Trouble::Damaged(what)) => self.quarantined(sidecar, what),
            Err(trouble) => Err(self.refused(trouble)),
        }
    }

    /// Tidies up what a crash left half done and brings the format up to date.
    fn finished(
        mut self,
        mut sidecar: Sidecar,
        mut disk: M::Disk,
        found: Found,
    ) -> Result<(Writer<M>, Recovered), Error> {
        let Found { contents, ballot, mut recovered, leftover, format } = found;
        let tidied = caught(|| {
            // From the outside inwards: a crash leaves no hole.
            for key in leftover.purged.iter().chain(leftover.torn.iter().rev()) {
                disk.remove(Tree::Log, &key.to_be_bytes())?;
            }
            // A crash between chunks and pointer leaves chunks that the next generation would be mixed with.
            drop_old_chunks(&mut disk, contents.snapshot_generation)?;
            if format != Some(FORMAT) {
                if let Some(ballot) = &ballot {
                    disk.put(Tree::Meta, Slot::Vote.key(), &seal(ballot))?;
                }
                disk.put(Tree::Meta, FORMAT_KEY, &seal(&FORMAT))?;
            }
            if !leftover.torn.is_empty() || format != Some(FORMAT) {
                disk.sync()?;
            }
            if format.is_some_and(|format| format < FORMAT) {
                disk.remove(Tree::Meta, VOTE_1_KEY)?;
            }
            // The database may be ahead: a crash fell between its barrier and the claim.
            if let Some(ballot) = ballot {
                (sidecar.record.votes, sidecar.record.vote) = (ballot.number, Some(ballot.vote));
            }
            sidecar.record.identity.clone_from(&recovered.identity);
            sidecar.record.log = vec![contents.claim()];
            sidecar.record.snapshot = contents.snapshot_index.map_or(0, |index| index + 1);
            sidecar.sync(&mut self.medium)
        });
        tidied.map_err(|e| self.io(e))?;
        recovered.quarantine = quarantine(&sidecar.record);
        Ok((Writer::new(self.medium, disk, sidecar, contents), recovered))
    }

    /// Sets the database aside and begins an empty one that knows whose it is and how it voted. A crash at any
    /// point is taken up here again.
    fn quarantined(mut self, mut sidecar: Sidecar, why: String) -> Result<(Writer<M>, Recovered), Error> {
        if sidecar.torn {
            let what = format!(
                "{why}; and a slot of {SIDECAR} cannot be read, so that this node's vote is uncertain"
            );
            return Err(self.damaged(DATABASE, what));
        }
        if sidecar.record.alone {
            let what = format!("{why}; and no other voter is known that could repair it");
            return Err(self.damaged(DATABASE, what));
        }
        let number = match sidecar.record.state {
            State::Replacing { number, .. } => number,
            _ => self.free_number(&why)?,
        };
        let replaced = caught(|| self.replace(&mut sidecar, &why, number));
        let disk = replaced.map_err(|e| self.refused(e.into()))?;
        error!(
            dir = %self.dir.display(), aside = format!("{DATABASE}.damaged-{number}"), floor = sidecar.record.floor, why,
            "the database is damaged and was set aside: this node is in quarantine until its peers have repaired it"
        );
        let recovered = Recovered {
            vote: sidecar.record.vote.clone(),
            identity: sidecar.record.identity.clone(),
            quarantine: quarantine(&sidecar.record),
            ..Recovered::default()
        };
        Ok((Writer::new(self.medium, disk, sidecar, Contents::default()), recovered))
    }

    fn free_number(&self, why: &str) -> Result<u32, Error> {
        for number in 1..=ASIDE_MAX {
            if !self.medium.is_aside(number).map_err(|e| self.io(e))? {
                return Ok(number);
            }
        }
        Err(Error::Aside { dir: self.dir.into(), count: ASIDE_MAX, what: why.into() })
    }

    fn replace(&mut self, sidecar: &mut Sidecar, why: &str, number: u32) -> io::Result<M::Disk> {
        let why = sidecar::bounded(why.into());
        if !matches!(sidecar.record.state, State::Replacing { .. }) {
            sidecar.record.state = State::Replacing { why: why.clone(), number };
            sidecar.sync(&mut self.medium)?;
        }
        if self.medium.is_aside(number)? {
            self.medium.discard()?;
        } else {
            self.medium.set_aside(number)?;
        }
        let mut disk = self.medium.open()?;
        let record = &mut sidecar.record;
        if let Some(vote) = &record.vote {
            let ballot = Ballot { number: record.votes, vote: vote.clone() };
            disk.put(Tree::Meta, Slot::Vote.key(), &seal(&ballot))?;
        }
        if let Some(identity) = &record.identity {
            disk.put(Tree::Meta, Slot::Identity.key(), identity)?;
        }
        disk.put(Tree::Meta, FORMAT_KEY, &seal(&FORMAT))?;
        disk.sync()?;
        record.floor = record.durable_end();
        if record.vote_before.is_none() {
            record.vote_before.clone_from(&record.vote);
        }
        record.log = vec![Claim { next: 0, crc: 0 }];
        record.snapshot = 0;
        record.state = State::Repairing { why };
        sidecar.sync(&mut self.medium)?;
        Ok(disk)
    }
}

fn quarantine(record: &Record) -> Option<Quarantine> {
    match &record.state {
        State::Repairing { why } => Some(Quarantine {
            why: why.clone(),
            floor: record.floor,
            vote_before: record.vote_before.clone(),
        }),
        _ => None,
    }
}

/// How much of the log must be whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strictness {
    /// All of it: there is no sidecar to tell what nobody was told of.
    Everything,
    /// What the sidecar claims.
    Claimed,
}

/// Frames that are to be dropped, in order.
#[derive(Default)]
struct Leftover {
    purged: Vec<u64>,
    torn: Vec<u64>,
}

/// A database that holds what it must.
struct Found {
    contents: Contents,
    ballot: Option<Ballot>,
    recovered: Recovered,
    leftover: Leftover,
    format: Option<u32>,
}

/// Reads all of the database and compares it with `record`. Changes nothing.
fn verify(
    disk: &impl Disk,
    record: &Record,
    strictness: Strictness,
    sound: Sound<'_>,
) -> Result<Found, Trouble> {
    let damaged = |what: String| Trouble::Damaged(what);
    let format = read_format(disk)?;
    if let Some(found) = format.filter(|found| *found > FORMAT) {
        return Err(Trouble::Newer(found));
    }
    let purged: Option<Purged> = get(disk, PURGED_KEY, "the purge mark")?;
    let identity = disk.get(Tree::Meta, Slot::Identity.key())?;
    match (&record.identity, &identity) {
        (Some(_), None) => return Err(damaged("the node's identity is missing".into())),
        (Some(ours), Some(theirs)) if ours != theirs => return Err(Trouble::Foreign),
        _ => {}
    }
    let ballot = read_ballot(disk)?;
    let number = ballot.as_ref().map_or(0, |ballot| ballot.number);
    if number < record.votes
        || (number == record.votes && ballot.as_ref().map(|b| &b.vote) != record.vote.as_ref())
    {
        return Err(damaged(format!(
            "its newest vote is number {number}, and number {} was kept",
            record.votes
        )));
    }
    let claimed = match strictness {
        Strictness::Everything => u64::MAX,
        Strictness::Claimed => record.log.iter().map(|claim| claim.next).min().unwrap_or(0),
    };
    let (mut contents, leftover) = verify_log(disk, purged.as_ref(), claimed)?.map_err(damaged)?;
    let as_claimed = |claim: &Claim| {
        claim.next <= contents.begin
            || contents.frames.values().any(|e| e.last + 1 == claim.next && e.crc == claim.crc)
    };
    if !record.log.iter().any(as_claimed) {
        let (claim, next) = (record.log[0], contents.next);
        return Err(damaged(match next < claim.next {
            true => {
                format!("its log ends before index {next}, and was durable up to index {}", claim.next - 1)
            }
            false => format!("its log has no frame that ends at index {} as it was written", claim.next - 1),
        }));
    }
    let snapshot = read_snapshot(disk)?.map_err(damaged)?;
    if let Some((generation, snapshot)) = &snapshot {
        (contents.snapshot_generation, contents.snapshot_index) = (*generation, Some(snapshot.index));
        contents.snapshot_chunks = snapshot.chunks.len() as u32;
    }
    let reach = contents.snapshot_index.map_or(0, |index| index + 1);
    if reach < record.snapshot {
        return Err(damaged(format!(
            "its snapshot holds the entries below {reach}, and one held those below {}",
            record.snapshot
        )));
    }
    let blank = contents.next == 0 && ballot.is_none() && identity.is_none() && snapshot.is_none();
    if format.is_none() && !(blank && record.is_blank()) {
        return Err(damaged("there are entries, and no format mark".into()));
    }
    let log = contents.begin.min(contents.next)..contents.next;
    let recovered = Recovered {
        vote: ballot.as_ref().map(|ballot| ballot.vote.clone()),
        committed: disk.get(Tree::Meta, Slot::Committed.key())?,
        identity,
        purged,
        log,
        snapshot: snapshot.map(|(_, snapshot)| snapshot),
        quarantine: None,
    };
    sound(&recovered).map_err(damaged)?;
    Ok(Found { contents, ballot, recovered, leftover, format })
}

fn get<T: serde::de::DeserializeOwned>(
    disk: &impl Disk,
    key: &[u8],
    what: &str,
) -> Result<Option<T>, Trouble> {
    let value = disk.get(Tree::Meta, key)?.map(|bytes| unseal(&bytes)).transpose();
    value.map_err(|error| Trouble::Damaged(format!("{what}: {error}")))
}

fn read_format(disk: &impl Disk) -> io::Result<Option<u32>> {
    let found = disk.get(Tree::Meta, FORMAT_KEY)?.map(|bytes| unseal(&bytes)).transpose();
    found.map_err(|error| super::writer::invalid(format!("the format mark: {error}")))
}

/// The newest vote: numbered, or that of format 1.
fn read_ballot(disk: &impl Disk) -> Result<Option<Ballot>, Trouble> {
    let ballot = get(disk, Slot::Vote.key(), "the vote")?;
    let old = || Ok(disk.get(Tree::Meta, VOTE_1_KEY)?.map(|vote| Ballot { number: 1, vote }));
    ballot.map_or_else(old, |ballot| Ok(Some(ballot)))
}

/// Checks every frame, their chain and their order. Gives what is there and which frames are to be dropped: those
/// that a purge left, and from the first that is not whole on if all of them begin at `claimed` or behind.
fn verify_log(
    disk: &impl Disk,
    purged: Option<&Purged>,
    claimed: u64,
) -> io::Result<Result<(Contents, Leftover), String>> {
    let begin = purged.map_or(0, |p| p.index + 1);
    let mut contents = Contents { begin, ..Contents::default() };
    let mut leftover = Leftover::default();
    let mut last: Option<Frame> = None;
    let mut torn = None;
    for pair in disk.scan(Tree::Log, &[]) {
        let (key, value) = pair?;
        let Ok(key) = <[u8; 8]>::try_from(key.as_slice()).map(u64::from_be_bytes) else {
            return Ok(Err(format!("the log has a key of {} bytes", key.len())));
        };
        if torn.is_some() {
            leftover.torn.push(key);
            continue;
        }
        match verify_frame(key, value, last.as_ref(), begin) {
            Ok(frame) if frame.last() < begin => {
                leftover.purged.push(key);
                last = Some(frame);
            }
            Ok(frame) => {
                let extent = Extent { last: frame.last(), previous: frame.previous, crc: frame.crc };
                contents.frames.insert(key, extent);
                last = Some(frame);
            }
            Err(what) if key < claimed => return Ok(Err(what)),
            Err(what) => {
                leftover.torn.push(key);
                torn = Some(what);
            }
        }
    }
    contents.next = contents.frames.values().next_back().map_or(begin, |extent| extent.last + 1);
    if let Some(what) = torn {
        warn!(what, from = contents.next, "dropping the torn end of the log: nothing of it was acknowledged");
    }
    Ok(Ok((contents, leftover)))
}

fn verify_frame(key: u64, value: Vec<u8>, last: Option<&Frame>, begin: u64) -> Result<Frame, String> {
    let frame = frame::decode(key, &Bytes::from(value)).map_err(|error| error.to_string())?;
    match last {
        Some(last) if frame.first != last.last() + 1 || frame.previous != last.crc => {
            Err(format!("frame {key} does not follow the one that ends at {}", last.last()))
        }
        None if frame.first > begin => {
            Err(format!("the log begins at {key}, and entries from {begin} on are missing"))
        }
        _ => Ok(frame),
    }
}

/// The newest whole snapshot and its generation.
/// Where the newest whole snapshot lies; the inner error says what is wrong with that.
pub(super) fn read_pointer(disk: &impl Disk) -> io::Result<Result<Option<Pointer>, String>> {
    let pointer = disk.get(Tree::Meta, SNAPSHOT_KEY)?.map(|bytes| unseal(&bytes)).transpose();
    Ok(pointer.map_err(|error| format!("the snapshot's pointer: {error}")))
}

pub(super) fn read_snapshot(disk: &impl Disk) -> io::Result<Result<Option<(u64, Snapshot)>, String>> {
    let pointer = match read_pointer(disk)? {
        Ok(Some(pointer)) => pointer,
        Ok(None) => return Ok(Ok(None)),
        Err(error) => return Ok(Err(error)),
    };
    let mut chunks = Vec::new();
    for pair in disk.scan(Tree::Snapshot, &pointer.generation.to_be_bytes()) {
        chunks.push(Bytes::from(pair?.1));
    }
    if chunks.len() != pointer.chunks as usize || crc_of(&chunks) != pointer.crc {
        return Ok(Err(format!(
            "{} of {} snapshot chunks are there, or they have changed",
            chunks.len(),
            pointer.chunks
        )));
    }
    Ok(Ok(Some((pointer.generation, Snapshot { index: pointer.index, meta: pointer.meta, chunks }))))
}

pub(super) fn drop_old_chunks(disk: &mut impl Disk, current: u64) -> io::Result<()> {
    let keys: io::Result<Vec<_>> =
        disk.scan(Tree::Snapshot, &[]).map(|pair| pair.map(|(key, _)| key)).collect();
    for key in keys?.into_iter().filter(|key| !key.starts_with(&current.to_be_bytes())) {
        disk.remove(Tree::Snapshot, &key)?;
    }
    Ok(())
}
