//! Readers of a connection's bytes: ours, cut into arrivals or not, and one that is as lenient as can be. Tests and the
//! fuzzer compare what they make of the same bytes.

use std::fmt::Write as _;

use super::codec::{Event, Framing, Pieces, Request, Requests};

/// Longest head in these tests.
pub const HEAD_BYTES_MAX: usize = 4096;

/// What a connection that gets `bytes` makes of them: each request with its body, and how it ends. `…` stands for
/// more that has to come, `closed` for what is not looked at any more.
pub fn told(bytes: &[u8]) -> String {
    told_in(&[bytes])
}

/// As [`told`], with the bytes coming in pieces.
pub fn told_in(arrivals: &[&[u8]]) -> String {
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

/// One request, as a careless server might read it: the first length or coding that is there, lines however they end.
/// What it takes for the body, and what it leaves.
fn careless(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let text: String = bytes.iter().map(|&b| if b.is_ascii() { b as char } else { '?' }).collect();
    let end = ["\r\n\r\n", "\n\n", "\n\r\n"]
        .iter()
        .filter_map(|mark| text.find(mark).map(|at| at + mark.len()))
        .min()?;
    let head = text[..end].to_ascii_lowercase();
    let mut rest = &bytes[end..];
    let value = |name: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(n, _)| n.trim().replace('_', "-") == name).map(|(_, value)| value.trim().to_owned())
    };
    if value("transfer-encoding").is_some_and(|v| v.contains("chunked")) {
        let mut body = Vec::new();
        loop {
            let line = rest.iter().position(|&b| b == b'\n')?;
            let size: String =
                rest[..line].iter().map(|&b| char::from(b)).take_while(char::is_ascii_hexdigit).collect();
            let size = usize::from_str_radix(&size, 16).ok()?;
            rest = &rest[line + 1..];
            if size == 0 {
                let mut line = Vec::new();
                while !line.trim_ascii().is_empty() || line.is_empty() {
                    let end = rest.iter().position(|&b| b == b'\n')?;
                    line = rest[..=end].to_vec();
                    rest = &rest[end + 1..];
                }
                return Some((body, rest));
            }
            body.extend_from_slice(rest.get(..size)?);
            rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
        }
    }
    let length = value("content-length").map_or(Some(0), |v| v.parse().ok())?;
    Some((rest.get(..length)?.to_vec(), &rest[length..]))
}

/// Fails if the bytes mean something else when they come in other pieces, or if a careless reader finds another body or
/// another place where the first request ends.
pub fn check(bytes: &[u8], cut: usize) {
    let (before, after) = bytes.split_at(cut.min(bytes.len()));
    assert_eq!(told_in(&[before, after]), told(bytes), "cut at {cut}: {:?}", String::from_utf8_lossy(bytes));
    let Some((body, left)) = first(bytes) else { return };
    let start = bytes.iter().position(|b| !b"\r\n".contains(b)).unwrap_or_default();
    let theirs = careless(&bytes[start..]).expect("it is whole");
    assert_eq!(
        (body.as_slice(), left),
        (theirs.0.as_slice(), theirs.1),
        "{:?}",
        String::from_utf8_lossy(bytes)
    );
}

/// The body of the first request, and what follows it, if it is whole.
fn first(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut requests = Requests::new(HEAD_BYTES_MAX);
    let (mut request, mut pieces) = (Request::default(), Pieces::default());
    let (mut rest, mut body) = (bytes, Vec::new());
    loop {
        let (consumed, event) = requests.advance(rest, &mut request, &mut pieces).ok()?;
        pieces.iter().for_each(|place| body.extend_from_slice(&rest[place]));
        rest = &rest[consumed..];
        match event {
            Event::End => return Some((body, rest)),
            Event::More | Event::Closed => return None,
            Event::Head | Event::Data => {}
        }
    }
}
