//! Which trace a request belongs to: W3C Trace Context, levels 1 and 2 (<https://www.w3.org/TR/trace-context-2/>). Pure.

use std::fmt;

use crate::access::line::write;

/// Longest `tracestate` passed on; vendors must take as much (§3.3.1.5).
const STATE_BYTES_MAX: usize = 512;

/// Most members of a `tracestate` (§3.3.1.2).
const STATE_MEMBERS_MAX: usize = 32;

/// A trace. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(pub u128);

/// A step of a trace. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(pub u64);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl TraceId {
    /// A fresh one. The right half is random, as level 2 wants it for sampling.
    pub fn fresh() -> TraceId {
        TraceId(fastrand::u128(1..))
    }
}

impl SpanId {
    /// A fresh one.
    pub fn fresh() -> SpanId {
        SpanId(fastrand::u64(1..))
    }
}

/// What a `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The trace.
    pub trace: TraceId,
    /// The step that this request was made in.
    pub span: SpanId,
    /// Whether the caller records it.
    pub is_sampled: bool,
    /// Whether the trace's id is random (level 2).
    pub is_random: bool,
}

impl Parent {
    /// Reads a `traceparent`: `00-<32 digits>-<16 digits>-<2 digits>`. Of a later version, which may say more behind that, what
    /// is known. `None` for whatever breaks the rules, letters in upper case included (§3.2.2).
    pub fn parse(value: &[u8]) -> Option<Parent> {
        let (known, more) = value.split_at_checked(55)?;
        let at = |range: std::ops::Range<usize>| hex(&known[range]);
        let version = at(0..2)?;
        let has_dashes = [2, 35, 52].iter().all(|&i| known[i] == b'-');
        let ends = match version {
            0 => more.is_empty(),
            0xff => false,
            _ => more.is_empty() || more[0] == b'-',
        };
        let (trace, span, flags) = (at(3..35)?, at(36..52)? as u64, at(53..55)?);
        (has_dashes && ends && trace != 0 && span != 0).then_some(Parent {
            trace: TraceId(trace),
            span: SpanId(span),
            is_sampled: flags & 1 == 1,
            // Later versions may mean something else by the other bits.
            is_random: flags & 2 == 2,
        })
    }

    /// Writes it as a `traceparent`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let flags = u8::from(self.is_sampled) | u8::from(self.is_random) << 1;
        write(out, format_args!("00-{}-{}-{flags:02x}", self.trace, self.span));
    }
}

/// The number that lower-case hexadecimal `digits` stand for; at most 32 of them.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |n, &digit| match digit {
        b'0'..=b'9' => Some(n << 4 | u128::from(digit - b'0')),
        b'a'..=b'f' => Some(n << 4 | u128::from(digit - b'a' + 10)),
        _ => None,
    })
}

/// Joins the `tracestate` fields of a request; empty if there is none, or one that breaks the rules (§3.3): then it is as if it
/// had not come, and the trace goes on all the same.
pub fn state<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut joined = Vec::new();
    let mut keys: Vec<&[u8]> = Vec::new();
    for member in values.flat_map(|value| value.split(|&b| b == b',')).map(<[u8]>::trim_ascii) {
        if member.is_empty() {
            continue;
        }
        let key = member.split(|&b| b == b'=').next().unwrap_or_default();
        let value = &member[(key.len() + 1).min(member.len())..];
        let is_good = member.len() > key.len() && is_key(key) && is_value(value) && !keys.contains(&key);
        if !is_good || keys.len() == STATE_MEMBERS_MAX {
            return Vec::new();
        }
        keys.push(key);
        if !joined.is_empty() {
            joined.push(b',');
        }
        joined.extend_from_slice(member);
    }
    if joined.len() > STATE_BYTES_MAX { Vec::new() } else { joined }
}

/// §3.3.1.3.1, in the words of level 2: a lower-case letter or digit, then up to 255 of a few more.
fn is_key(key: &[u8]) -> bool {
    let is_inner = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@');
    key.first().is_some_and(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9'))
        && key.len() <= 256
        && key.iter().all(is_inner)
}

/// §3.3.1.3.2: up to 256 printable characters but comma and equals sign, the last one no space.
fn is_value(value: &[u8]) -> bool {
    let is_inner = |b: &u8| matches!(b, b' '..=b'~') && *b != b',' && *b != b'=';
    !value.is_empty() && value.len() <= 256 && value.iter().all(is_inner) && !value.ends_with(b" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_to_the_letter() {
        let parent = Parent::parse(GOOD.as_bytes()).expect("the one of the recommendation");
        assert_eq!(parent.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parent.span.to_string(), "00f067aa0ba902b7");
        assert!(parent.is_sampled && !parent.is_random);
        let with = |from: &str, to: &str| GOOD.replacen(from, to, 1);
        let good = [
            with("-01", "-00"),
            with("-01", "-03"),
            with("-01", "-ff"),
            with("00-4", "01-4"),
            with("00-4", "cc-4"),
            with("00-4", "cc-4") + "-what.the-future-will-be.like",
        ];
        for text in good {
            assert!(Parent::parse(text.as_bytes()).is_some(), "{text}");
        }
        let bad = [
            String::new(),
            with("4bf", "4BF"),
            with("b7-", "B7-"),
            with("00-4", "ff-4"),
            with("00-4", "0g-4"),
            with("00-4", "00_4"),
            with("-01", "-0"),
            with("-01", "-1"),
            with("-01", "-.0"),
            with("-01", "-01 "),
            with("-01", "-01-"),
            with("-01", "-01-x"),
            with("00-4", "cc-4") + ".x",
            with("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            with("00f067aa0ba902b7", &"0".repeat(16)),
            with("4bf92f3577b34da6a3ce929d0e0e4736", "4bf92f3577b34da6a3ce929d0e0e473"),
            GOOD[..54].to_owned(),
        ];
        for text in bad {
            assert_eq!(Parent::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_tracestate_is_joined_or_nothing() {
        let joined =
            |values: &[&str]| String::from_utf8(state(values.iter().map(|v| v.as_bytes()))).expect("ASCII");
        assert_eq!(joined(&[]), "");
        assert_eq!(
            joined(&["congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"]),
            "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"
        );
        assert_eq!(joined(&["a=1 , ,b=2", "c@d=x y"]), "a=1,b=2,c@d=x y");
        let many = |n: usize| (0..n).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
        assert_eq!(joined(&[&many(32)]), many(32));
        for bad in [
            "a",
            "a=",
            "=1",
            "A=1",
            "a=1,a=2",
            "a=1=2",
            "a=\u{7f}",
            "_a=1",
            &many(33),
            &format!("a={}", "x".repeat(257)),
        ] {
            assert_eq!(joined(&[bad]), "", "{bad}");
        }
        let long = format!("a={0},b={0},c={0}", "x".repeat(200));
        assert_eq!(joined(&[&long]), "");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(trace in 1u128.., span in 1u64.., is_sampled: bool, is_random: bool) {
            let parent = Parent { trace: TraceId(trace), span: SpanId(span), is_sampled, is_random };
            let mut out = Vec::new();
            parent.write(&mut out);
            prop_assert_eq!(Parent::parse(&out), Some(parent));
        }

        #[test]
        fn nothing_panics(value: Vec<u8>) {
            let _ = (Parent::parse(&value), state(std::iter::once(value.as_slice())));
        }
    }
}
