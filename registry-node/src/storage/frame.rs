//! Log frames: how a run of entries lies on disk, pure.
//!
//! A frame is one value in the tree `log`, keyed by its first index. It carries the checksum of the frame before
//! it, so that a missing or foreign frame is noticed, and a checksum of its own, so that a flipped bit is.
//! All integers are little-endian:
//!
//! ```text
//! magic u32 | version u16 | flags u16 | first u64 | count u32 | previous crc u32 | body length u32 | body | crc u32
//! body = count × (length u32 | entry)
//! ```
//!
//! The checksum covers everything before it.

use bytes::Bytes;

/// A value above 128 KiB would go to a file of its own that sled never syncs; this stays well below.
pub const FRAME_BYTES_MAX: usize = 96 << 10;
/// Entries are packed into one frame up to here; a larger entry has a frame of its own. sled rewrites a leaf of 16
/// values as a whole, and beyond 128 KiB into a file of its own, with a sync of it and of two directories.
pub const PACK_BYTES: usize = 8_000;
/// The largest entry that fits a frame.
pub const ENTRY_BYTES_MAX: usize = FRAME_BYTES_MAX - HEAD - 4 - 4;

const MAGIC: u32 = 0x464c_5831; // "FLX1"
const VERSION: u16 = 1;
const HEAD: usize = 4 + 2 + 2 + 8 + 4 + 4 + 4;

/// What is wrong with a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Shorter than a head, or not as long as its head says.
    #[error("frame {key} is {actual} bytes long, not {expected}")]
    Length {
        /// The key it lies under.
        key: u64,
        /// From its head.
        expected: usize,
        /// On disk.
        actual: usize,
    },
    /// Not a frame.
    #[error("frame {key} starts with {magic:#010x}, which is no log frame")]
    Magic {
        /// The key it lies under.
        key: u64,
        /// Its first four bytes.
        magic: u32,
    },
    /// Written by a newer program.
    #[error(
        "frame {key} has format {version}, this program knows {VERSION}: use the program that wrote it, or a newer one"
    )]
    Version {
        /// The key it lies under.
        key: u64,
        /// From its head.
        version: u16,
    },
    /// Bytes have changed since it was written.
    #[error("frame {key} is damaged: its checksum is {actual:#010x}, not {expected:#010x}")]
    Crc {
        /// The key it lies under.
        key: u64,
        /// From its tail.
        expected: u32,
        /// Of its bytes.
        actual: u32,
    },
    /// It lies under a key that is not its first index, or its entries do not fill it.
    #[error("frame {key} does not hold what its head says")]
    Inconsistent {
        /// The key it lies under.
        key: u64,
    },
}

/// A frame, read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Index of the first entry.
    pub first: u64,
    /// Checksum of the frame before it when it was written; 0 for the first of a log.
    pub previous: u32,
    /// Its own checksum.
    pub crc: u32,
    /// The entries, at least one.
    pub entries: Vec<Bytes>,
}

impl Frame {
    /// Index of the last entry.
    pub fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }
}

/// The bytes of a frame and its checksum. `entries` are not empty and fit [`FRAME_BYTES_MAX`].
pub fn encode(first: u64, previous: u32, entries: &[Bytes]) -> (Vec<u8>, u32) {
    let body: usize = entries.iter().map(|e| 4 + e.len()).sum();
    assert!(
        !entries.is_empty() && HEAD + body + 4 <= FRAME_BYTES_MAX,
        "{} entries of {body} bytes",
        entries.len()
    );
    let mut out = Vec::with_capacity(HEAD + body + 4);
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&0u16.to_le_bytes());
    out.extend_from_slice(&first.to_le_bytes());
    out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    out.extend_from_slice(&previous.to_le_bytes());
    out.extend_from_slice(&(body as u32).to_le_bytes());
    for entry in entries {
        out.extend_from_slice(&(entry.len() as u32).to_le_bytes());
        out.extend_from_slice(entry);
    }
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    (out, crc)
}

/// Reads and checks the frame that lies under `key`.
pub fn decode(key: u64, bytes: &Bytes) -> Result<Frame, Error> {
    if bytes.len() < HEAD + 4 {
        return Err(Error::Length { key, expected: HEAD + 4, actual: bytes.len() });
    }
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if u32_at(0) != MAGIC {
        return Err(Error::Magic { key, magic: u32_at(0) });
    }
    if u16_at(4) > VERSION {
        return Err(Error::Version { key, version: u16_at(4) });
    }
    let expected = HEAD + u32_at(24) as usize + 4;
    if bytes.len() != expected {
        return Err(Error::Length { key, expected, actual: bytes.len() });
    }
    let (stored, actual) = (u32_at(expected - 4), crc32c::crc32c(&bytes[..expected - 4]));
    if stored != actual {
        return Err(Error::Crc { key, expected: stored, actual });
    }
    let first = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
    let entries = split(bytes.slice(HEAD..expected - 4), u32_at(16) as usize).filter(|_| first == key);
    let entries = entries.ok_or(Error::Inconsistent { key })?;
    Ok(Frame { first, previous: u32_at(20), crc: stored, entries })
}

/// The `count` entries that fill `body` exactly.
fn split(mut body: Bytes, count: usize) -> Option<Vec<Bytes>> {
    let mut entries = Vec::new();
    while body.len() >= 4 {
        let head = body.split_to(4);
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if body.len() < length {
            return None;
        }
        entries.push(body.split_to(length));
    }
    (body.is_empty() && entries.len() == count && count > 0).then_some(entries)
}
