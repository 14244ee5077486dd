//! Where a head ends, found while its bytes come in, each looked at once.
//!
//! A head is parsed when it is complete and not before: a client that sends one byte at a time would else have it
//! parsed as many times. What can be refused without parsing is refused here, as soon as it is there: a client that
//! speaks TLS or ends its lines with a bare line feed would else wait for an answer until a time-out.

use std::ops::Range;

use super::Malformed;
use super::head::is_token;

/// See the file's head. One for each head.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lines {
    /// Bytes before it have been looked at.
    seen: usize,
    /// Where the line begins that has not ended yet.
    line: usize,
    /// Where the head begins: after empty lines, which RFC 9112 §2.2 asks to skip before a request.
    start: usize,
}

impl Lines {
    /// Looks at what is new in `bytes`, all that has come since the last head. Returns where the head is once all of
    /// it is there, with the empty line that ends it. `max` is its longest.
    pub fn scan(&mut self, bytes: &[u8], max: usize) -> Result<Option<Range<usize>>, Malformed> {
        let within = &bytes[..bytes.len().min(max)];
        self.check_first(within)?;
        let fresh = within.get(self.seen..).unwrap_or_default();
        for at in memchr::memchr_iter(b'\n', fresh).map(|at| self.seen + at) {
            if at == 0 || within[at - 1] != b'\r' {
                return Err(Malformed::BareLineFeed);
            }
            let (is_empty, is_first) = (at - 1 == self.line, at - 1 == self.start);
            self.line = at + 1;
            if is_empty && is_first {
                self.start = at + 1;
                self.check_first(within)?;
            } else if is_empty {
                return Ok(Some(self.start..at + 1));
            }
        }
        self.seen = within.len();
        match bytes.len() > max {
            true => Err(Malformed::TooLong),
            false => Ok(None),
        }
    }

    /// Neither a method nor a version begins with anything else: most likely it is TLS.
    fn check_first(&self, bytes: &[u8]) -> Result<(), Malformed> {
        match bytes.get(self.start) {
            Some(&first) if !is_token(first) && !b"\r\n".contains(&first) => Err(Malformed::StartLine),
            _ => Ok(()),
        }
    }
}
