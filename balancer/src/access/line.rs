//! One line of the access log: a JSON object, written by hand into memory that is used again. Pure.
//!
//! Whatever a client sends stays inside its string: quotes, backslashes and all control characters are escaped (those from
//! U+0080 on too, which terminals obey), and bytes that are not UTF-8 become U+FFFD. So every line is one line, parses, and
//! gives back what went in.

use std::fmt::Display;
use std::io::Write;
use std::time::Duration;

/// Fields of an object, added one after the other.
pub struct Fields<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Fields<'a> {
    /// Begins an object at the end of `out`.
    pub fn begin(out: &'a mut Vec<u8>) -> Fields<'a> {
        out.push(b'{');
        Fields { out, first: true }
    }

    /// Goes on with an object that has a field already.
    pub fn go_on(out: &'a mut Vec<u8>) -> Fields<'a> {
        Fields { out, first: false }
    }

    /// A text that came from outside, cut to `bytes_max` at the end of a character.
    pub fn text(&mut self, name: &str, text: &[u8], bytes_max: usize) -> &mut Self {
        self.name(name);
        self.out.push(b'"');
        escape(bounded(text, bytes_max), self.out);
        self.out.push(b'"');
        self
    }

    /// A text, or null.
    pub fn maybe(&mut self, name: &str, text: Option<&[u8]>, bytes_max: usize) -> &mut Self {
        match text {
            Some(text) => self.text(name, text, bytes_max),
            None => self.plain(name, "null"),
        }
    }

    /// A number, or anything else whose text is JSON by itself.
    pub fn plain(&mut self, name: &str, value: impl Display) -> &mut Self {
        self.name(name);
        write(self.out, value);
        self
    }

    /// Milliseconds with three decimals, or null.
    pub fn millis(&mut self, name: &str, duration: Option<Duration>) -> &mut Self {
        match duration {
            Some(duration) => {
                let micros = duration.as_micros();
                self.plain(name, format_args!("{}.{:03}", micros / 1000, micros % 1000))
            }
            None => self.plain(name, "null"),
        }
    }

    /// An array of `members`, which are JSON already, with commas between them.
    pub fn array(&mut self, name: &str, members: &[u8]) -> &mut Self {
        self.name(name);
        self.out.push(b'[');
        self.out.extend_from_slice(members);
        self.out.push(b']');
        self
    }

    /// Ends the object.
    pub fn end(&mut self) {
        self.out.push(b'}');
    }

    fn name(&mut self, name: &str) {
        if !std::mem::replace(&mut self.first, false) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }
}

/// Writes `value` at the end of `out`.
pub fn write(out: &mut Vec<u8>, value: impl Display) {
    write!(out, "{value}").expect("memory takes everything");
}

/// At most `max` bytes of `text`, and no half of a character that was whole.
pub fn bounded(text: &[u8], max: usize) -> &[u8] {
    if text.len() <= max {
        return text;
    }
    // A character has four bytes at most, and all but its first begin with the bits 10.
    let is_inner = |at: usize| text[at] & 0b1100_0000 == 0b1000_0000;
    let end = (max.saturating_sub(3)..=max).rev().find(|&at| !is_inner(at)).unwrap_or(max);
    &text[..end]
}

/// Appends `text` as the inside of a JSON string.
fn escape(text: &[u8], out: &mut Vec<u8>) {
    if text.iter().all(|&b| is_plain(b)) {
        return out.extend_from_slice(text);
    }
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
                c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                    write(out, format_args!("\\u{:04x}", c as u32));
                }
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

/// Whether a byte stands for itself in a JSON string.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// Bytes as clients with bad intentions choose them, more often than chance would.
    fn texts() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            any::<Vec<u8>>(),
            any::<String>().prop_map(String::into_bytes),
            prop::sample::select(vec![
                "\n{\"status\":200}",
                "\"",
                "\\",
                "\\\"",
                "\r\n",
                "\0",
                "\u{1b}[2J",
                "\u{9b}2J",
                "\u{7f}",
                "\u{2028}",
                "\u{fffd}",
                "\\u000a",
                "é",
                "日本",
                "🦀",
            ])
            .prop_map(|s| s.as_bytes().to_vec()),
        ];
        prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn every_line_is_one_and_parses_back_to_what_went_in(a in texts(), b in texts(), ms in any::<u32>()) {
            let mut out = Vec::new();
            let took = Duration::from_micros(u64::from(ms));
            Fields::begin(&mut out).text("a", &a, usize::MAX).maybe("b", Some(&b), usize::MAX).plain("n", 7).end();
            let printable = |c: char| !c.is_control();
            prop_assert!(std::str::from_utf8(&out).expect("UTF-8").chars().all(printable));
            let value: Value = serde_json::from_slice(&out).expect("JSON");
            prop_assert_eq!(value["a"].as_str().unwrap(), String::from_utf8_lossy(&a));
            prop_assert_eq!(value["b"].as_str().unwrap(), String::from_utf8_lossy(&b));
            prop_assert_eq!(value.as_object().unwrap().len(), 3);
            let mut out = Vec::new();
            Fields::begin(&mut out).millis("t", Some(took)).millis("none", None).end();
            let value: Value = serde_json::from_slice(&out).expect("JSON");
            prop_assert!((value["t"].as_f64().unwrap() - took.as_secs_f64() * 1e3).abs() < 1e-6);
            prop_assert!(value["none"].is_null());
        }

        #[test]
        fn what_is_cut_is_a_beginning_and_breaks_no_character(text in any::<String>(), max in 0usize..64) {
            let cut = bounded(text.as_bytes(), max);
            prop_assert!(cut.len() <= max && text.as_bytes().starts_with(cut));
            prop_assert!(std::str::from_utf8(cut).is_ok());
            prop_assert!(text.len() <= max || cut.len() + 4 > max);
        }
    }
}
