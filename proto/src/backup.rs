//! The file that holds a backup of a catalog: the same bytes whether a node streams it or a program reads it.
//!
//! `REGSNAP\0`, the format's version (u32, little-endian), then frames: a kind (u8), the payload's length (u32), the
//! payload, a CRC-32C of all three (u32). First a head, then records in order of their ids, last an end with the
//! CRC-32C of all bytes before it and the number of records; nothing follows. So every byte is covered, a file that
//! was cut or patched together is noticed, and no length is believed further than it reaches.

use std::fmt;
use std::io::{self, Read};

use prost::Message;

use crate::registry::v1::{BackupEnd, BackupHead, BackupRecords, Instance};

/// How every backup begins.
pub const MAGIC: &[u8; 8] = b"REGSNAP\0";

/// The format written and read.
pub const VERSION: u32 = 1;

/// Bytes of a frame's payload: many times the largest record, and a bound on what a damaged length can ask for.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// Records are put into one frame up to about so many bytes.
const FRAME_BYTES: usize = 128 << 10;

const HEAD: u8 = 1;
const RECORDS: u8 = 2;
const END: u8 = 3;

/// Writes a backup, piece by piece: [`Encoder::begin`], records in order, [`Encoder::finish`].
#[derive(Debug)]
pub struct Encoder {
    crc: u32,
    records: u64,
    gathered: BackupRecords,
    gathered_bytes: usize,
}

/// What a backup says of itself, and that all of it is sound.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Its head.
    pub head: BackupHead,
    /// How many records it holds.
    pub records: u64,
    /// How long it is.
    pub bytes: u64,
}

/// Why bytes are no backup.
#[derive(Debug)]
pub enum Error {
    /// They cannot be read at all.
    Io(io::Error),
    /// They are not what was written.
    Damaged {
        /// Where, in bytes from the beginning: the frame's first byte, or where bytes are missing.
        offset: u64,
        /// In what way.
        what: String,
    },
}

impl Encoder {
    /// An encoder, and the first bytes.
    pub fn begin(head: &BackupHead) -> (Encoder, Vec<u8>) {
        let mut encoder =
            Encoder { crc: 0, records: 0, gathered: BackupRecords::default(), gathered_bytes: 0 };
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        frame(&mut bytes, HEAD, head);
        encoder.crc = crc32c::crc32c(&bytes);
        (encoder, bytes)
    }

    /// Takes one record in; gives bytes when enough have come together.
    pub fn record(&mut self, instance: Instance) -> Option<Vec<u8>> {
        self.records += 1;
        self.gathered_bytes += instance.encoded_len();
        self.gathered.instances.push(instance);
        (self.gathered_bytes >= FRAME_BYTES).then(|| self.flush())
    }

    /// The last bytes.
    pub fn finish(mut self) -> Vec<u8> {
        let mut bytes = if self.gathered.instances.is_empty() { Vec::new() } else { self.flush() };
        frame(&mut bytes, END, &BackupEnd { records: self.records, crc32c: self.crc });
        bytes
    }

    fn flush(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame(&mut bytes, RECORDS, &std::mem::take(&mut self.gathered));
        self.gathered_bytes = 0;
        self.crc = crc32c::crc32c_append(self.crc, &bytes);
        bytes
    }
}

fn frame(bytes: &mut Vec<u8>, kind: u8, message: &impl Message) {
    let (start, payload) = (bytes.len(), message.encode_to_vec());
    let length = u32::try_from(payload.len()).expect("a frame is gathered up to a small size");
    bytes.push(kind);
    bytes.extend(length.to_le_bytes());
    bytes.extend(payload);
    let crc = crc32c::crc32c(&bytes[start..]);
    bytes.extend(crc.to_le_bytes());
}

/// Reads a whole backup and hands its records to `each`, in order. What it has handed over is not to be acted upon
/// before all of it is read: an error may still come.
pub fn read(input: impl Read, mut each: impl FnMut(Instance)) -> Result<Summary, Error> {
    let mut input = Input { input, offset: 0, crc: 0 };
    input.magic()?;
    let (at, kind, payload) = input.frame()?;
    if kind != HEAD {
        return Err(damaged(at, format!("a frame of kind {kind} where the head belongs")));
    }
    let head = BackupHead::decode(&payload[..]).map_err(|error| damaged(at, format!("the head: {error}")))?;
    let (mut records, mut last) = (0, None);
    loop {
        let crc = input.crc;
        let (at, kind, payload) = input.frame()?;
        match kind {
            RECORDS => {
                let part = BackupRecords::decode(&payload[..]);
                let part = part.map_err(|error| damaged(at, format!("records: {error}")))?;
                for instance in part.instances {
                    if last.as_ref().is_some_and(|last| *last >= instance.id) {
                        return Err(damaged(at, format!("record {:?} is out of order", instance.id)));
                    }
                    last = Some(instance.id.clone());
                    records += 1;
                    each(instance);
                }
            }
            END => {
                let end = BackupEnd::decode(&payload[..]);
                let end = end.map_err(|error| damaged(at, format!("the end: {error}")))?;
                if end.crc32c != crc {
                    return Err(damaged(
                        at,
                        format!(
                            "all checksums hold, but {crc:#010x} of the whole is not the {:#010x} that was written",
                            end.crc32c
                        ),
                    ));
                }
                if end.records != records {
                    return Err(damaged(at, format!("{records} records of {}", end.records)));
                }
                input.nothing_more()?;
                return Ok(Summary { head, records, bytes: input.offset });
            }
            kind => return Err(damaged(at, format!("a frame of unknown kind {kind}"))),
        }
    }
}

/// Bytes, where in the file they are, and the checksum of all before.
struct Input<R> {
    input: R,
    offset: u64,
    crc: u32,
}

impl<R: Read> Input<R> {
    fn magic(&mut self) -> Result<(), Error> {
        let mut magic = [0; 8];
        self.fill(&mut magic, "the beginning")?;
        if magic != *MAGIC {
            return Err(damaged(0, "it does not begin as a backup of a registry does".to_owned()));
        }
        let mut version = [0; 4];
        self.fill(&mut version, "the version")?;
        match u32::from_le_bytes(version) {
            VERSION => Ok(()),
            other => {
                Err(damaged(8, format!("it is of format {other}, and this program reads format {VERSION}")))
            }
        }
    }

    /// The next frame: where it begins, its kind and its payload, both confirmed by its checksum.
    fn frame(&mut self) -> Result<(u64, u8, Vec<u8>), Error> {
        let at = self.offset;
        let mut fixed = [0; 5];
        self.fill(&mut fixed, "a frame")?;
        let [kind, length @ ..] = fixed;
        let length = u32::from_le_bytes(length) as usize;
        if length > PAYLOAD_BYTES_MAX {
            return Err(damaged(at, format!("a frame of {length} bytes; {PAYLOAD_BYTES_MAX} are the most")));
        }
        let mut payload = vec![0; length];
        self.fill(&mut payload, "a frame's payload")?;
        let mut crc = [0; 4];
        self.fill(&mut crc, "a frame's checksum")?;
        let (said, found) =
            (u32::from_le_bytes(crc), crc32c::crc32c_append(crc32c::crc32c(&fixed), &payload));
        if said != found {
            return Err(damaged(
                at,
                format!("the frame's checksum is {found:#010x}, {said:#010x} was written"),
            ));
        }
        Ok((at, kind, payload))
    }

    fn fill(&mut self, bytes: &mut [u8], what: &str) -> Result<(), Error> {
        let mut have = 0;
        while have < bytes.len() {
            match self.input.read(&mut bytes[have..]) {
                Ok(0) => {
                    let at = self.offset + have as u64;
                    return Err(damaged(at, format!("it ends in the middle of {what}")));
                }
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Io(error)),
            }
        }
        self.offset += have as u64;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        Ok(())
    }

    fn nothing_more(&mut self) -> Result<(), Error> {
        match self.input.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(damaged(self.offset, "something follows its end".to_owned())),
            Err(error) => Err(Error::Io(error)),
        }
    }
}

fn damaged(offset: u64, what: String) -> Error {
    Error::Damaged { offset, what }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(error) => write!(out, "it cannot be read: {error}"),
            Error::Damaged { offset, what } => write!(out, "damaged at byte {offset}: {what}"),
        }
    }
}

impl std::error::Error for Error {}
