//! What path a request asks for, in the one form that routes are compared with. Pure.
//!
//! One resource has many spellings (`/a`, `/%61`, `//a`, `/b/../a`), and a route that is meant for all of them must
//! not be passed by any. So paths are compared in a normal form (RFC 3986 §6.2.2, and what servers do besides):
//!
//! - what may be written plainly is decoded, other percent-encodings keep to capital digits;
//! - repeated slashes are one, dot segments are resolved.
//!
//! # What two readers could read differently
//! Some servers take an encoded slash or a backslash for a slash, decode twice, or drop what follows a semicolon;
//! others do not. Such paths are fine as long as it makes no difference: [`Path::others`] are all the ways in which
//! they can be read, and whoever routes them refuses those whose readings belong to different routes. Where readers
//! would not even agree on what `..` leaves, there is no reading at all: see [`Misread`].

use std::borrow::Cow;

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;

/// Why a path is not read at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misread {
    /// A dot segment to some readers and none to others.
    #[error("a path in which not everybody sees the same dot segments")]
    Dots,
    /// `..` beyond the root.
    #[error("a path that leads above its root")]
    Above,
    /// An encoded NUL, or a byte that is never part of a character and that some take for another one.
    #[error("a path with an encoded byte that ends or disguises it")]
    Byte,
}

/// A path that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path<'a> {
    /// In normal form.
    pub normal: Cow<'a, str>,
    /// Other ways to read it, each different from the normal form. Nearly always none.
    pub others: Vec<String>,
}

/// Reads `path`, which has no query. What is in normal form already costs one look at each byte.
pub fn read(path: &str) -> Result<Path<'_>, Misread> {
    if is_plain(path) {
        return Ok(Path { normal: Cow::Borrowed(path), others: Vec::new() });
    }
    if !path.starts_with('/') {
        // `*`: not a path at all.
        return Ok(Path { normal: Cow::Borrowed(path), others: Vec::new() });
    }
    let resolved = resolve(path)?;
    let normal: String =
        resolved.iter().fold(String::new(), |all, segment| all + "/" + &decoded(segment, plainly));
    check(&resolved)?;
    let others = readings(&normal);
    Ok(Path { normal: Cow::Owned(normal), others })
}

/// `path` without its first `segments` segments, as they were sent: dot segments resolved, percent-encodings kept.
/// Empty, or with a slash in front. `path` has been read before.
pub fn rest(path: &str, segments: usize) -> Cow<'_, str> {
    if is_plain(path) {
        let cut = path.match_indices('/').nth(segments).map_or(path.len(), |(at, _)| at);
        return Cow::Borrowed(&path[cut..]);
    }
    let resolved = resolve(path).unwrap_or_default();
    let left = resolved.iter().skip(segments);
    Cow::Owned(left.fold(String::new(), |all, segment| all + "/" + segment))
}

/// A path from a configuration, in normal form. The error says what to do.
pub fn configured(text: &str) -> Result<String, &'static str> {
    if !text.starts_with('/') {
        return Err("a path begins with a slash");
    }
    if text.contains(['?', '#']) {
        return Err("a path ends before ? and #; a query is matched by the key query");
    }
    let mut ascii = String::new();
    for byte in text.bytes() {
        match byte.is_ascii_graphic() {
            true => ascii.push(byte as char),
            false => encode(byte, &mut ascii),
        }
    }
    if ascii.contains("//") || ascii.split('/').any(|s| matches!(&*decoded(s, plainly), "." | "..")) {
        return Err("a path is written without repeated slashes and dot segments, which are resolved before");
    }
    match read(&ascii) {
        Ok(path) if path.others.is_empty() => Ok(path.normal.into_owned()),
        _ => Err(
            "a path cannot have ; or \\ or an encoded slash or percent sign, which servers read differently",
        ),
    }
}

/// Whether `path` is its own normal form and can be read in one way only.
fn is_plain(path: &str) -> bool {
    let mut before = 0;
    for byte in path.bytes() {
        if matches!(byte, b'%' | b';' | b'\\') || before == b'/' && matches!(byte, b'/' | b'.') {
            return false;
        }
        before = byte;
    }
    true
}

/// The segments of `path` without empty ones and dot segments. A trailing slash is an empty last segment.
fn resolve(path: &str) -> Result<Vec<&str>, Misread> {
    let mut segments = Vec::new();
    let (mut skipped, mut ends_in_directory) = (false, false);
    for segment in path.split('/').skip(1) {
        ends_in_directory = true;
        match &*decoded(segment, plainly) {
            "" => skipped = true,
            "." => {}
            // Some count an empty segment as one to go back over.
            ".." if skipped => return Err(Misread::Dots),
            ".." => {
                let left: &str = segments.pop().ok_or(Misread::Above)?;
                // Some see more than one segment in it, or none.
                if is_several(left) {
                    return Err(Misread::Dots);
                }
            }
            _ => {
                segments.push(segment);
                ends_in_directory = false;
            }
        }
    }
    if ends_in_directory {
        segments.push("");
    }
    Ok(segments)
}

/// Whether some read `segment` as several, or as one that is not there.
fn is_several(segment: &str) -> bool {
    segment.contains(['%', ';', '\\']) && {
        let once = decoded(segment, wholly);
        decoded(&once, wholly).contains(['/', '\\', ';'])
    }
}

/// Refuses segments that hide what changes the meaning of the whole path.
fn check(segments: &[&str]) -> Result<(), Misread> {
    for segment in segments.iter().filter(|s| s.contains(['%', ';', '\\'])) {
        let once = decoded(segment, wholly);
        let deep = decoded(&once, wholly);
        if ["%00", "%C0", "%C1"].iter().any(|byte| deep.contains(byte)) {
            return Err(Misread::Byte);
        }
        let mut parts = deep.split(['/', '\\']).map(|part| part.split(';').next().unwrap_or_default());
        if parts.any(|part| matches!(part, "." | "..")) {
            return Err(Misread::Dots);
        }
    }
    Ok(())
}

/// The other readings of a path in normal form.
fn readings(normal: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let once = decoded(normal, wholly);
    let twice = decoded(&once, wholly);
    for text in [normal, &once, &twice] {
        for (cuts, turns) in [(false, false), (true, false), (false, true), (true, true)] {
            let reading = taken(text, cuts, turns);
            if reading != normal && !found.contains(&reading) {
                found.push(reading);
            }
        }
    }
    found
}

/// `text` as somebody takes it who `cuts` parameters off segments, and `turns` backslashes round.
fn taken(text: &str, cuts: bool, turns: bool) -> String {
    let turned = if turns { Cow::Owned(text.replace('\\', "/")) } else { Cow::Borrowed(text) };
    let mut out = String::new();
    let mut segments = turned.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let segment = if cuts { segment.split(';').next().unwrap_or_default() } else { segment };
        if !segment.is_empty() || segments.peek().is_none() {
            out.push('/');
            out.push_str(segment);
        }
    }
    out
}

/// What everybody decodes: bytes that may stand in a path and mean nothing there.
fn plainly(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"/\\;%?#".contains(&byte)
}

/// What some decode besides.
fn wholly(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"?#".contains(&byte)
}

/// `text` with those percent-encodings decoded that `may`; others get capital digits.
fn decoded(text: &str, may: fn(u8) -> bool) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let byte = from.get(1..3).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        match byte.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                match may(byte) {
                    true => out.push(byte as char),
                    false => encode(byte, &mut out),
                }
                rest = &from[3..];
            }
            // Encodes nothing, so it stands for itself; to a second reader it may be the beginning of something.
            None => {
                out.push_str(if may(b'%') { "%" } else { "%25" });
                rest = &from[1..];
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

fn encode(byte: u8, out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(DIGITS[usize::from(byte >> 4)] as char);
    out.push(DIGITS[usize::from(byte & 15)] as char);
}
