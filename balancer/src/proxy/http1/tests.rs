//! The corpus, one line per case, and properties that hold for anything that comes.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

mod corpus;
mod hostile;
mod reading;

use crate::proxy::http1 as codec;
use reading::{HEAD_BYTES_MAX, told, told_in};

/// What a response comes to.
fn answered(bytes: &[u8], method: &str) -> String {
    let place = match Lines::default().scan(bytes, HEAD_BYTES_MAX) {
        Ok(Some(place)) => place,
        Ok(None) => return "…".to_owned(),
        Err(why) => return why.to_string(),
    };
    let mut response = Response::default();
    let method = method.parse().expect("a method");
    if let Err(why) = response.parse(&bytes[place.clone()], &method) {
        return why.to_string();
    }
    let framing = response.framing.expect("a parsed response has one");
    let keep = if response.keep_alive { "keep" } else { "last" };
    let reason = String::from_utf8_lossy(response.reason()).into_owned();
    let mut out = format!("{} {reason:?} {framing:?} {keep}", response.status.as_u16());
    let (mut body, mut pieces, mut rest) = (Body::new(framing), Pieces::default(), &bytes[place.end..]);
    while !rest.is_empty() && !body.is_done() {
        pieces.clear();
        match body.decode(rest, &mut pieces) {
            Ok(n) => rest = &rest[n..],
            Err(why) => return format!("{out}; {why}"),
        }
    }
    if !rest.is_empty() {
        let _ = write!(out, "; {} bytes too many", rest.len());
    } else if !body.is_done() && !body.ends_with_connection() {
        out.push_str("; …");
    }
    out
}

#[test]
fn chunk_heads_are_hexadecimal() {
    let text = |len| String::from_utf8(chunk_head(len, &mut [0; 18]).to_vec()).expect("digits");
    assert_eq!([0, 9, 10, 255, 65_536].map(text), ["0\r\n", "9\r\n", "a\r\n", "ff\r\n", "10000\r\n"]);
    assert_eq!(text(usize::MAX), "ffffffffffffffff\r\n");
}

#[test]
fn tiny_chunks_come_in_several_turns() {
    let mut body = Body::new(Framing::Chunked);
    let input = b"1\r\nx\r\n".repeat(40);
    let (mut pieces, mut rest, mut turns, mut data) = (Pieces::default(), &input[..], 0, 0);
    while !rest.is_empty() {
        pieces.clear();
        rest = &rest[body.decode(rest, &mut pieces).expect("it is well-formed")..];
        turns += 1;
        data += pieces.len();
    }
    assert_eq!((turns, data), (3, 40));
}

#[test]
fn extensions_are_bounded() {
    let mut body = Body::new(Framing::Chunked);
    let input = b"1;a=b\r\nx\r\n".repeat(2000);
    let (mut pieces, mut rest) = (Pieces::default(), &input[..]);
    let refused = loop {
        pieces.clear();
        match body.decode(rest, &mut pieces) {
            Ok(n) => rest = &rest[n..],
            Err(why) => break why,
        }
    };
    assert_eq!(refused, Malformed::ChunkExtension);
}
