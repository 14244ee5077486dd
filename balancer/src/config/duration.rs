//! Durations as Go writes them, since that is what existing configuration files hold: `300ms`, `1.5h`,
//! `1m30s`. Grammar of Go's `time.ParseDuration`, without signs: a time-out below zero means nothing.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Nothing there.
    #[error("an empty duration; write it like 5s, 300ms or 1m30s")]
    Empty,
    /// A number without a unit.
    #[error("duration {0:?} has no unit; write it like {0}s or {0}ms")]
    NoUnit(String),
    /// A unit that is none.
    #[error("duration {text:?} has an unknown unit {unit:?}; units are ns, us, ms, s, m, h")]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// The unit.
        unit: String,
    },
    /// Anything else.
    #[error("{0:?} is not a duration; write it like 5s, 300ms or 1m30s")]
    Malformed(String),
    /// More than about 292 years, Go's own limit.
    #[error("duration {0:?} is too long")]
    TooLong(String),
}

/// Parses `text`. `0` needs no unit.
pub fn parse(text: &str) -> Result<Duration, Error> {
    let malformed = || Error::Malformed(text.to_owned());
    if text.is_empty() {
        return Err(Error::Empty);
    }
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut nanos) = (text, 0u128);
    while !rest.is_empty() {
        let number = split(&mut rest, |c| c.is_ascii_digit() || c == '.');
        let unit = split(&mut rest, |c| !c.is_ascii_digit() && c != '.');
        let scale = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" if number == text => return Err(Error::NoUnit(text.to_owned())),
            _ if number.is_empty() => return Err(malformed()),
            _ => return Err(Error::UnknownUnit { text: text.to_owned(), unit: unit.to_owned() }),
        };
        nanos += scaled(number, scale).ok_or_else(malformed)?;
        if nanos > i64::MAX as u128 {
            return Err(Error::TooLong(text.to_owned()));
        }
    }
    Ok(Duration::from_nanos(nanos as u64))
}

/// Takes the longest prefix of `rest` whose characters satisfy `wanted`.
fn split<'a>(rest: &mut &'a str, wanted: impl Fn(char) -> bool) -> &'a str {
    let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
    let (head, tail) = rest.split_at(end);
    *rest = tail;
    head
}

/// `number`, which may have a fraction, times `scale`, cut off below one. Digits that cannot matter are dropped.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: u128 = match whole.trim_start_matches('0') {
        "" => 0,
        digits if digits.len() > 20 => return Some(u128::from(u64::MAX)),
        digits => digits.parse().ok()?,
    };
    let fraction = &fraction[..fraction.len().min(15)];
    let parts: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    Some(whole * scale + parts * scale / 10u128.pow(fraction.len() as u32))
}

#[cfg(test)]
mod tests;
