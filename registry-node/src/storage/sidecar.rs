//! The file beside the database: what the store has promised, told a second time.
//!
//! sled opens damaged files without a word and may come back without its tail. What it holds is therefore compared
//! at start with this file: how far the log was durable and the checksum of its last frame, the newest vote, whose
//! directory it is, and whether the node is in quarantine. The file never claims what is not durable in the
//! database: it is written after the barrier, and lowered before a truncation.
//!
//! Two slots of [`SLOT_BYTES`], each an envelope of one [`Record`]; the higher count wins. Writes go to the slot
//! that was *not* synced last, again and again until a sync: whatever a power cut tears, the slot that was synced
//! last is whole. A log that grows is written with every batch and synced at most every [`SYNC_EVERY`], because a
//! second sync per batch would halve the writes of a single client.

use std::{io, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::disk::Medium;
use crate::envelope::{self, Kind};

/// One page: a slot is never torn by the write of its neighbour.
pub const SLOT_BYTES: usize = 4_096;
/// How long a grown log may go without its claim being synced: after a power cut so much of its tail can be lost
/// without notice, if the database is damaged on top.
pub const SYNC_EVERY: Duration = Duration::from_millis(100);
/// Of a reason, in bytes; a slot must hold the whole record.
const WHY_BYTES_MAX: usize = 1_024;

const VERSION: u16 = 1;

/// Where the durable log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The index the next entry will have.
    pub next: u64,
    /// Checksum of the frame that ends just before it; 0 if the log is empty or purged up to there.
    pub crc: u32,
}

/// Whether the database may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It is what was written.
    Sound,
    /// It must be set aside at the next opening, and the node repaired from its peers.
    Condemned {
        /// What is wrong with it.
        why: String,
    },
    /// It is being set aside under a number that was free; what lies in its place after that is a beginning of
    /// the new one.
    Replacing {
        /// What is wrong with it.
        why: String,
        /// Under which number.
        number: u32,
    },
    /// It was set aside, and the new one is not complete yet.
    Repairing {
        /// What was wrong with the old one.
        why: String,
    },
}

/// What a slot says. Frozen for version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Of two slots the higher one is newer.
    pub count: u64,
    /// One of these is true of the log; more than one only while it is being truncated.
    pub log: Vec<Claim>,
    /// The durable snapshot holds all entries below.
    pub snapshot: u64,
    /// How many votes were kept; orders this one against the database's.
    pub votes: u64,
    /// The newest vote.
    pub vote: Option<Vec<u8>>,
    /// Whose directory this is.
    pub identity: Option<Vec<u8>>,
    /// Whether no other voter could repair this node.
    pub alone: bool,
    /// Whether the database may be used.
    pub state: State,
    /// The log has to reach here again before the node takes part; 0 if it takes part.
    pub floor: u64,
    /// The vote when the database was set aside.
    pub vote_before: Option<Vec<u8>>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            count: 0,
            log: vec![Claim { next: 0, crc: 0 }],
            snapshot: 0,
            votes: 0,
            vote: None,
            identity: None,
            alone: true,
            state: State::Sound,
            floor: 0,
            vote_before: None,
        }
    }
}

impl Record {
    /// Everything that was ever called durable lies below.
    pub fn durable_end(&self) -> u64 {
        let log = self.log.iter().map(|claim| claim.next).max().unwrap_or(0);
        log.max(self.snapshot).max(self.floor)
    }

    /// Whether it claims nothing at all: that of a directory that was never used.
    pub fn is_blank(&self) -> bool {
        self.durable_end() == 0 && self.votes == 0 && self.identity.is_none()
    }
}

/// A reason, short enough for a slot.
pub fn bounded(mut why: String) -> String {
    let end = (0..=WHY_BYTES_MAX).rev().find(|at| why.is_char_boundary(*at)).unwrap_or(0);
    why.truncate(end);
    why
}

/// Why a sidecar says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// Written by a newer program, in this version.
    Newer(u16),
    /// Neither slot is what was written.
    Damaged(String),
}

/// The record and where it lies.
#[derive(Debug)]
pub struct Sidecar {
    /// What the next write will say.
    pub record: Record,
    /// What is in the file.
    written: Record,
    /// The slot that a power cut cannot touch.
    synced_slot: u64,
    synced_at: Option<Instant>,
    /// Whether the other slot holds something newer.
    ahead: bool,
    /// Whether a slot could not be read: then a newer record may have been lost.
    pub torn: bool,
}

impl Sidecar {
    /// Reads the file. Fails if no slot can be read.
    pub fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        let slot = |number: usize| {
            let bytes = bytes.get(number * SLOT_BYTES..).unwrap_or_default();
            decode(&bytes[..bytes.len().min(SLOT_BYTES)])
        };
        let (newest, other) = match (slot(0), slot(1)) {
            (Ok(a), Ok(b)) if a.count >= b.count => ((0, a), Ok(b)),
            (Err(envelope::Error::Version { found, .. }), _)
            | (_, Err(envelope::Error::Version { found, .. })) => {
                return Err(Unreadable::Newer(found));
            }
            (Err(a), Err(b)) => {
                return Err(Unreadable::Damaged(format!("at offset 0: {a}; at offset {SLOT_BYTES}: {b}")));
            }
            (a, Ok(b)) => ((1, b), a),
            (Ok(a), b) => ((0, a), b),
        };
        let (synced_slot, record) = newest;
        let torn = other.is_err();
        Ok(Self { written: record.clone(), record, synced_slot, synced_at: None, ahead: false, torn })
    }

    /// Creates the file with `record` in both slots.
    pub fn create(record: Record, medium: &mut impl Medium) -> io::Result<Self> {
        let mut bytes = vec![0; 2 * SLOT_BYTES];
        let slot = encode(&record)?;
        bytes[..slot.len()].copy_from_slice(&slot);
        bytes[SLOT_BYTES..SLOT_BYTES + slot.len()].copy_from_slice(&slot);
        medium.create_sidecar(&bytes)?;
        Ok(Self {
            written: record.clone(),
            record,
            synced_slot: 0,
            synced_at: None,
            ahead: false,
            torn: false,
        })
    }

    /// Writes the record if it has changed. A crash of the process keeps it from now on, a power cut may not.
    pub fn write(&mut self, medium: &mut impl Medium) -> io::Result<()> {
        if self.record == self.written {
            return Ok(());
        }
        self.record.count = self.written.count + 1;
        medium.write_sidecar((1 - self.synced_slot) * SLOT_BYTES as u64, &encode(&self.record)?)?;
        self.written.clone_from(&self.record);
        self.ahead = true;
        Ok(())
    }

    /// Writes and syncs: durable on return.
    pub fn sync(&mut self, medium: &mut impl Medium) -> io::Result<()> {
        if self.torn {
            // A slot that cannot be read would leave nothing if the other one were damaged too.
            self.record.count = self.written.count + 1;
            self.torn = false;
        }
        self.write(medium)?;
        if self.ahead {
            medium.sync_sidecar()?;
            self.synced_slot = 1 - self.synced_slot;
            self.ahead = false;
        }
        self.synced_at = Some(Instant::now());
        Ok(())
    }

    /// When what was written should be synced; none if it is.
    pub fn due(&self) -> Option<Instant> {
        self.ahead.then(|| self.synced_at.map_or_else(Instant::now, |at| at + SYNC_EVERY))
    }
}

fn encode(record: &Record) -> io::Result<Vec<u8>> {
    let bytes = envelope::seal(Kind::SIDECAR, VERSION, record);
    match bytes.len() {
        ..=SLOT_BYTES => Ok(bytes),
        len => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a sidecar record of {len} bytes does not fit a slot of {SLOT_BYTES}"),
        )),
    }
}

fn decode(bytes: &[u8]) -> Result<Record, envelope::Error> {
    let (version, payload, _) = envelope::open_prefix(bytes, Kind::SIDECAR)?;
    envelope::require_version(Kind::SIDECAR, version, VERSION)?;
    envelope::decode(payload)
}
