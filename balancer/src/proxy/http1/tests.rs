//! The corpus, one line per case, and properties that hold for anything that comes.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

mod corpus;
mod hostile;

/// Longest head in these tests.
const HEAD_BYTES_MAX: usize = 4096;

/// What a connection that gets `bytes` makes of them: each request with its body, and how it ends. `…` stands for
/// more that has to come, `closed` for what is not looked at any more.
fn told(bytes: &[u8]) -> String {
    told_in(&[bytes])
}

/// As [`told`], with the bytes coming in pieces.
fn told_in(arrivals: &[&[u8]]) -> String {
    let mut requests = Requests::new(HEAD_BYTES_MAX);
    let (mut request, mut pieces) = (Request::default(), Pieces::default());
    let (mut out, mut input, mut body) = (String::new(), Vec::new(), Vec::new());
    for arrival in arrivals {
        input.extend_from_slice(arrival);
        loop {
            let (consumed, event) = match requests.advance(&input, &mut request, &mut pieces) {
                Ok(step) => step,
                Err(why) => return format!("{out}{} {why}", why.status().as_u16()),
            };
            match event {
                Event::Head => describe(&request, &mut out),
                Event::Data => pieces.iter().for_each(|place| body.extend_from_slice(&input[place])),
                Event::End => {
                    let _ = write!(out, "{:?}", String::from_utf8_lossy(&std::mem::take(&mut body)));
                    out.push_str("; ");
                }
                Event::More | Event::Closed => {}
            }
            if let (Event::Data, Some(done)) = (event, requests.body().filter(|b| b.is_done()))
                && !done.trailer().is_empty()
            {
                let _ = write!(out, "{:?} then ", String::from_utf8_lossy(done.trailer()));
            }
            input.drain(..consumed);
            match event {
                Event::Closed => return out + "closed",
                Event::More => break,
                Event::Head | Event::Data | Event::End => {}
            }
        }
    }
    match requests.body().is_none() && input.is_empty() {
        true => out.trim_end_matches("; ").to_owned(),
        false => out + "…",
    }
}

fn describe(request: &Request, out: &mut String) {
    let host = String::from_utf8_lossy(request.host().unwrap_or(b"-")).into_owned();
    let _ = write!(out, "{} {} @{host} ", request.method, request.target());
    let _ = match request.framing {
        Framing::Empty => Ok(()),
        Framing::Length(n) => write!(out, "{n} "),
        Framing::Chunked => write!(out, "chunked "),
        Framing::UntilClose => write!(out, "until close "),
    };
    if !request.keep_alive {
        out.push_str("last ");
    }
    if request.expects_continue {
        out.push_str("waits ");
    }
    if let Some(protocol) = request.upgrade() {
        let _ = write!(out, "upgrade={} ", String::from_utf8_lossy(protocol));
    }
}

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
