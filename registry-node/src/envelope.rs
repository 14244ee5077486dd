//! The envelope around everything this program puts on a disk or between its nodes.
//!
//! Layout, little-endian: `magic u32 | kind u16 | version u16 | len u32 | crc32c u32 | payload`. The checksum
//! covers everything but the magic and itself, so neither a flipped bit nor a payload read as another kind goes
//! unnoticed. A payload is bincode of a struct that is frozen for its version: bincode is positional, so a new
//! field is a new version. This file is the only one that names bincode, and the only one that knows the layout.

use serde::{Deserialize, Serialize};

/// `FLUX` in the order of the bytes.
const MAGIC: u32 = u32::from_le_bytes(*b"FLUX");

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 16;

/// No payload is larger. It bounds what a damaged or hostile length can make us allocate; the largest honest
/// payload, a chunk of a snapshot, is far below.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// What an envelope holds. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub u16);

impl Kind {
    /// A proposal: what is replicated.
    pub const COMMAND: Kind = Kind(1);
    /// An entry of the log.
    pub const ENTRY: Kind = Kind(2);
    /// What became of a proposal.
    pub const OUTCOME: Kind = Kind(3);
    /// What a snapshot is of.
    pub const SNAPSHOT_META: Kind = Kind(4);
    /// A chunk of a snapshot.
    pub const RECORDS: Kind = Kind(5);
    /// A vote.
    pub const VOTE: Kind = Kind(6);
    /// Who the members are.
    pub const MEMBERSHIP: Kind = Kind(7);
    /// What a node knows of itself.
    pub const META: Kind = Kind(8);
    /// The file beside the database that tells of a lost tail.
    pub const SIDECAR: Kind = Kind(9);
    /// A frame of log entries.
    pub const FRAME: Kind = Kind(10);
}

/// Why bytes are not the envelope that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not even a header.
    #[error("{have} bytes are too few for an envelope of at least {HEADER_BYTES}")]
    TooShort {
        /// How many there are.
        have: usize,
    },
    /// Something else entirely, or overwritten.
    #[error("not an envelope: magic {found:#010x}")]
    Magic {
        /// What stands in its place.
        found: u32,
    },
    /// An envelope of another kind.
    #[error("envelope of kind {found} where kind {expected} belongs")]
    Kind {
        /// The kind asked for.
        expected: u16,
        /// The kind found.
        found: u16,
    },
    /// Written by a newer program.
    #[error("kind {kind} has version {found}; this program reads up to {known}")]
    Version {
        /// The envelope's kind.
        kind: u16,
        /// The version found.
        found: u16,
        /// The newest version this program reads.
        known: u16,
    },
    /// Cut off, or followed by something.
    #[error("envelope of kind {kind} says {said} bytes of payload, {have} are there")]
    Length {
        /// The envelope's kind.
        kind: u16,
        /// What the header says.
        said: usize,
        /// What follows the header.
        have: usize,
    },
    /// Damaged.
    #[error("envelope of kind {kind} is damaged: checksum {found:#010x}, computed {computed:#010x}")]
    Crc {
        /// The envelope's kind, as far as it can be trusted.
        kind: u16,
        /// What the header says.
        found: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// Intact, and still not what its kind and version promise.
    #[error("unreadable payload: {0}")]
    Payload(String),
}

/// Seals `value` as `kind` in `version`.
///
/// # Panics
/// If the payload exceeds [`PAYLOAD_BYTES_MAX`]: whoever builds values bounds them.
pub fn seal<T: Serialize>(kind: Kind, version: u16, value: &T) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(SEALED_BYTES);
    sealed.resize(HEADER_BYTES, 0);
    feed(value, |bytes| sealed.extend_from_slice(bytes));
    let (header, payload) = sealed.split_at_mut(HEADER_BYTES);
    header.copy_from_slice(&header_of(kind, version, payload));
    sealed
}

/// What most envelopes fit in.
const SEALED_BYTES: usize = 512;

/// Seals bytes that are already encoded. Panics as [`seal`] does.
pub fn seal_bytes(kind: Kind, version: u16, payload: &[u8]) -> Vec<u8> {
    [&header_of(kind, version, payload), payload].concat()
}

fn header_of(kind: Kind, version: u16, payload: &[u8]) -> [u8; HEADER_BYTES] {
    assert!(payload.len() <= PAYLOAD_BYTES_MAX, "payload of {} bytes, kind {}", payload.len(), kind.0);
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[4..6].copy_from_slice(&kind.0.to_le_bytes());
    header[6..8].copy_from_slice(&version.to_le_bytes());
    header[8..12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let crc = checksum(&header[4..12], payload);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Opens an envelope that must fill `bytes` exactly. Returns its version and payload.
pub fn open(bytes: &[u8], kind: Kind) -> Result<(u16, &[u8]), Error> {
    let (version, payload, rest) = open_prefix(bytes, kind)?;
    if !rest.is_empty() {
        let have = payload.len() + rest.len();
        return Err(Error::Length { kind: kind.0, said: payload.len(), have });
    }
    Ok((version, payload))
}

/// Opens the envelope at the start of `bytes`. Returns its version, its payload and what follows it.
pub fn open_prefix(bytes: &[u8], kind: Kind) -> Result<(u16, &[u8], &[u8]), Error> {
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(Error::TooShort { have: bytes.len() });
    };
    let magic = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    if magic != MAGIC {
        return Err(Error::Magic { found: magic });
    }
    let found_kind = u16::from_le_bytes([header[4], header[5]]);
    if found_kind != kind.0 {
        return Err(Error::Kind { expected: kind.0, found: found_kind });
    }
    let version = u16::from_le_bytes([header[6], header[7]]);
    let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
    if len > body.len() || len > PAYLOAD_BYTES_MAX {
        return Err(Error::Length { kind: kind.0, said: len, have: body.len() });
    }
    let (payload, rest) = body.split_at(len);
    let found = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
    let computed = checksum(&header[4..12], payload);
    if found != computed {
        return Err(Error::Crc { kind: kind.0, found, computed });
    }
    Ok((version, payload, rest))
}

/// The payload of `value`.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, config())
        .expect("our frozen structs have lengths and no skipped fields")
}

/// Hands the payload of `value` to `take`, piece by piece.
pub fn feed<T: Serialize>(value: &T, take: impl FnMut(&[u8])) {
    struct Pieces<F>(F);

    impl<F: FnMut(&[u8])> bincode::enc::write::Writer for Pieces<F> {
        fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
            (self.0)(bytes);
            Ok(())
        }
    }

    bincode::serde::encode_into_writer(value, Pieces(take), config())
        .expect("our frozen structs have lengths and no skipped fields")
}

/// Reads a payload; it must be `T` to the last byte.
pub fn decode<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, Error> {
    let (value, read) = bincode::serde::borrow_decode_from_slice(payload, config())
        .map_err(|error| Error::Payload(error.to_string()))?;
    if read != payload.len() {
        return Err(Error::Payload(format!("{} bytes follow the value", payload.len() - read)));
    }
    Ok(value)
}

/// Refuses versions this program does not know: kinds without a history have `known` 1.
pub fn require_version(kind: Kind, found: u16, known: u16) -> Result<(), Error> {
    if found == 0 || found > known {
        return Err(Error::Version { kind: kind.0, found, known });
    }
    Ok(())
}

/// Little-endian, fixed-width integers: the format of bincode 1, which other crates read too.
fn config() -> impl bincode::config::Config {
    bincode::config::legacy().with_limit::<PAYLOAD_BYTES_MAX>()
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(header), payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn layout_is_frozen() {
        let sealed = seal(Kind::META, 3, &(7u32, "ab".to_owned()));
        let hex: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
        expect_test::expect!["464c5558080003000e0000007ee886f10700000002000000000000006162"].assert_eq(&hex);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let sealed = seal(Kind::VOTE, 1, &(1u64, 2u64));
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            open(&damaged, Kind::VOTE).expect_err("a flipped bit was not noticed");
        }
    }

    #[test]
    fn every_truncation_and_every_trailing_byte_is_noticed() {
        let sealed = seal(Kind::FRAME, 1, &vec![1u8; 40]);
        for len in 0..sealed.len() {
            open(&sealed[..len], Kind::FRAME).expect_err("a truncation was not noticed");
        }
        let mut longer = sealed.clone();
        longer.push(0);
        assert!(matches!(open(&longer, Kind::FRAME), Err(Error::Length { .. })));
        let (_, payload, rest) = open_prefix(&longer, Kind::FRAME).expect("a prefix may be followed");
        assert_eq!((decode::<Vec<u8>>(payload), rest), (Ok(vec![1u8; 40]), &[0u8][..]));
    }

    #[test]
    fn a_hostile_length_allocates_nothing() {
        let payload = encode(&u64::MAX);
        assert!(matches!(decode::<Vec<u8>>(&payload), Err(Error::Payload(_))));
    }

    proptest! {
        #[test]
        fn opens_what_it_sealed(kind: u16, version: u16, payload: Vec<u8>) {
            let sealed = seal_bytes(Kind(kind), version, &payload);
            prop_assert_eq!(open(&sealed, Kind(kind)), Ok((version, &payload[..])));
        }

        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = open(&bytes, Kind::ENTRY);
            let _ = decode::<Vec<(u64, String)>>(&bytes);
        }
    }
}
