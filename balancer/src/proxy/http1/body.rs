//! Bodies: how they are delimited, and what of the bytes that come is data.
//!
//! Data is handed out as places in the bytes that came, so that forwarding it copies nothing. Chunks are taken apart
//! completely: sizes, extensions and line ends are ours when they go out again, never the sender's, so that nobody
//! behind us reads them otherwise than we did.

use std::ops::Range;

use super::{Malformed, Name, head};

/// How a body is delimited (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// As many bytes. Zero is a length, too: it is passed on.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Whatever comes until the connection is closed. Responses only.
    UntilClose,
}

/// Digits of a chunk's size, at most. Fewer than fit, so that no sum overflows anywhere.
const SIZE_DIGITS_MAX: u8 = 15;

/// Bytes of extensions in one body, at most. Nobody uses them; who sends many wants us to work for nothing.
const EXTENSION_BYTES_MAX: u16 = 4096;

/// Bytes of a trailer section, at most.
const TRAILER_BYTES_MAX: usize = 8192;

/// Places of data that are handed out at once. A sender of tiny chunks gets its data passed on in several turns.
const PIECES_MAX: usize = 16;

/// Reads one body.
#[derive(Clone, Debug)]
pub struct Body {
    state: State,
    extensions: u16,
    trailer: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    Size { size: u64, digits: u8 },
    Extension { size: u64, place: Extension },
    SizeEnd { size: u64 },
    Data { left: u64 },
    DataReturn,
    DataEnd,
    Trailer,
    Done,
}

/// Within `*( ";" name [ "=" ( token / quoted-string ) ] )` (RFC 9112 §7.1.1). White space is not taken there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    /// A name or a value has to begin.
    Begin(Part),
    Within(Part),
    Quoted,
    /// After a backslash.
    Escaped,
    Unquoted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Name,
    Value,
}

/// Where data is in the bytes that came.
#[derive(Clone, Debug, Default)]
pub struct Pieces {
    places: [(usize, usize); PIECES_MAX],
    count: usize,
}

impl Pieces {
    /// The places, in order, none empty.
    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.places[..self.count].iter().map(|&(from, to)| from..to)
    }

    /// Bytes of data in all of them.
    pub fn len(&self) -> usize {
        self.iter().map(|r| r.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.count = 0;
    }

    fn is_full(&self) -> bool {
        self.count == PIECES_MAX
    }

    fn push(&mut self, from: usize, to: usize) {
        if from < to {
            self.places[self.count] = (from, to);
            self.count += 1;
        }
    }
}

impl Body {
    /// A body of which nothing has come yet.
    pub fn new(framing: Framing) -> Body {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(left) => State::Length(left),
            Framing::Chunked => State::Size { size: 0, digits: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Body { state, extensions: 0, trailer: Vec::new() }
    }

    /// Whether all of it has come. Never so for one that ends with the connection.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the connection's end is the body's.
    pub fn ends_with_connection(&self) -> bool {
        self.state == State::UntilClose
    }

    /// The trailer section, once the body is done: whole lines, without the empty one at the end.
    pub fn trailer(&self) -> &[u8] {
        &self.trailer
    }

    /// Takes `input`, adds the places of its data to `pieces` and returns how many bytes belong to the body. Fewer
    /// than there are means that the body is done, or that `pieces` is full.
    pub fn decode(&mut self, input: &[u8], pieces: &mut Pieces) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < input.len() && !pieces.is_full() {
            match self.state {
                State::Done => break,
                State::UntilClose => {
                    pieces.push(at, input.len());
                    at = input.len();
                }
                State::Length(left) => {
                    let n = data(left, &input[at..]);
                    pieces.push(at, at + n);
                    at += n;
                    self.state = match left - n as u64 {
                        0 => State::Done,
                        left => State::Length(left),
                    };
                }
                State::Data { left } => {
                    let n = data(left, &input[at..]);
                    pieces.push(at, at + n);
                    at += n;
                    self.state = match left - n as u64 {
                        0 => State::DataReturn,
                        left => State::Data { left },
                    };
                }
                State::Trailer => at += self.take_trailer(&input[at..])?,
                framing => {
                    self.state = self.step(framing, input[at])?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }

    /// One byte between the data of chunks.
    fn step(&mut self, state: State, byte: u8) -> Result<State, Malformed> {
        Ok(match (state, byte) {
            (State::Size { size, digits }, b) if b.is_ascii_hexdigit() => {
                if digits == SIZE_DIGITS_MAX {
                    return Err(Malformed::ChunkSize);
                }
                let digit = (b as char).to_digit(16).unwrap_or_default();
                State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (State::Size { size, digits: 1.. }, b'\r') => State::SizeEnd { size },
            (State::Size { size, digits: 1.. }, b';') => {
                State::Extension { size, place: Extension::Begin(Part::Name) }
            }
            (State::Size { .. }, _) => return Err(Malformed::ChunkSize),
            (State::Extension { size, place }, b) => {
                self.extensions += 1;
                if self.extensions > EXTENSION_BYTES_MAX {
                    return Err(Malformed::ChunkExtension);
                }
                extension(size, place, b)?
            }
            (State::SizeEnd { size: 0 }, b'\n') => State::Trailer,
            (State::SizeEnd { size }, b'\n') => State::Data { left: size },
            (State::SizeEnd { .. }, _) => return Err(Malformed::ChunkSize),
            (State::DataReturn, b'\r') => State::DataEnd,
            (State::DataEnd, b'\n') => State::Size { size: 0, digits: 0 },
            (State::DataReturn | State::DataEnd, _) => return Err(Malformed::ChunkEnd),
            (State::Length(_) | State::UntilClose | State::Data { .. } | State::Trailer | State::Done, _) => {
                unreachable!("{state:?} is no place between chunks")
            }
        })
    }

    /// Collects the trailer section, a line or what there is of one at a time. Returns how many bytes it took.
    fn take_trailer(&mut self, input: &[u8]) -> Result<usize, Malformed> {
        let end = memchr::memchr(b'\n', input).map_or(input.len(), |at| at + 1);
        self.trailer.extend_from_slice(&input[..end]);
        let lines = &self.trailer;
        if lines.len() > TRAILER_BYTES_MAX || lines.ends_with(b"\n") && !lines.ends_with(b"\r\n") {
            return Err(Malformed::Trailer);
        }
        if lines == b"\r\n" || lines.ends_with(b"\r\n\r\n") {
            self.trailer.truncate(self.trailer.len() - 2);
            head::check_trailer(&self.trailer)?;
            self.state = State::Done;
        }
        Ok(end)
    }
}

/// How many bytes of `input` are data, if `left` are to come.
fn data(left: u64, input: &[u8]) -> usize {
    usize::try_from(left).map_or(input.len(), |left| left.min(input.len()))
}

fn extension(size: u64, place: Extension, byte: u8) -> Result<State, Malformed> {
    use Extension::{Begin, Escaped, Quoted, Unquoted, Within};
    let place = match (place, byte) {
        (Begin(part) | Within(part), b) if head::is_token(b) => Within(part),
        (Begin(Part::Value), b'"') => Quoted,
        (Within(Part::Name), b'=') => Begin(Part::Value),
        (Within(_) | Unquoted, b';') => Begin(Part::Name),
        (Within(_) | Unquoted, b'\r') => return Ok(State::SizeEnd { size }),
        (Quoted, b'"') => Unquoted,
        (Quoted, b'\\') => Escaped,
        (Quoted | Escaped, b'\t' | b' '..=b'~') => Quoted,
        _ => return Err(Malformed::ChunkExtension),
    };
    Ok(State::Extension { size, place })
}

/// What stands before the data of a chunk of `len` bytes, written into `room`.
pub fn chunk_head(len: usize, room: &mut [u8; 18]) -> &[u8] {
    let mut at = 16;
    let mut left = len;
    room[16..].copy_from_slice(b"\r\n");
    while left > 0 || at == 16 {
        at -= 1;
        room[at] = b"0123456789abcdef"[left & 15];
        left >>= 4;
    }
    &room[at..]
}

/// Fields that may not stand after a body: whoever merges them into the head would frame, route or authorise the
/// message anew (RFC 9110 §6.5.1).
pub(super) fn may_trail(name: Name) -> bool {
    name == Name::Other || name == Name::Date
}
