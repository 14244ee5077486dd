//! Heads and trailers between HTTP/2 and HTTP/1 (RFC 9113 §8). Pure.
//!
//! A request is written as a head of HTTP/1 for the strict codec to read. What it would not see any more is looked at
//! here: two different hosts, and fields that belong to one connection, which HTTP/2 does not have.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Response, StatusCode, request};

use crate::proxy::http1::{Malformed, check_trailer};

/// Fields of a connection (RFC 9113 §8.2.2).
const OF_A_CONNECTION: [&str; 6] =
    ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings"];

/// Why a request is refused before the codec sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Which of them is meant is anybody's guess.
    #[error(":authority and Host name different hosts")]
    TwoHosts,
    /// It says nothing in HTTP/2, and a lot behind us.
    #[error("a field of a connection, which HTTP/2 does not have")]
    OfAConnection,
    /// Only `trailers` may be asked for.
    #[error("unsupported TE")]
    Te,
    /// The codec refuses it.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Refused {
    /// The status that the client is answered with.
    pub fn status(self) -> StatusCode {
        match self {
            Refused::Malformed(why) => why.status(),
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Writes the head of a request as HTTP/1 has it; `is_over` if no body follows.
pub fn to_http1(head: &request::Parts, is_over: bool, out: &mut Vec<u8>) -> Result<(), Refused> {
    check(&head.headers)?;
    let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    let hosts = || head.headers.get_all(header::HOST).iter();
    if authority.is_some_and(|a| hosts().any(|host| !host.as_bytes().eq_ignore_ascii_case(a))) {
        return Err(Refused::TwoHosts);
    }
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(match (&head.method, head.uri.path_and_query(), authority) {
        (&Method::CONNECT, _, Some(authority)) => authority,
        (_, Some(target), _) => target.as_str().as_bytes(),
        (_, None, _) => b"/",
    });
    out.extend_from_slice(b" HTTP/1.1\r\n");
    match authority {
        Some(authority) => field(out, b"host", authority),
        None => hosts().for_each(|host| field(out, b"host", host.as_bytes())),
    }
    for (name, value) in &head.headers {
        if !matches!(*name, header::HOST | header::COOKIE) {
            field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    cookies(&head.headers, out);
    if !is_over && !head.headers.contains_key(header::CONTENT_LENGTH) {
        field(out, b"transfer-encoding", b"chunked");
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn check(headers: &HeaderMap) -> Result<(), Refused> {
    if OF_A_CONNECTION.iter().any(|name| headers.contains_key(*name)) {
        return Err(Refused::OfAConnection);
    }
    match headers.get_all(header::TE).iter().all(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers")) {
        true => Ok(()),
        false => Err(Refused::Te),
    }
}

/// A client may send its cookies one by one, which nobody else may (RFC 9113 §8.2.3).
fn cookies(headers: &HeaderMap, out: &mut Vec<u8>) {
    let mut cookies = headers.get_all(header::COOKIE).iter().peekable();
    if cookies.peek().is_none() {
        return;
    }
    out.extend_from_slice(b"cookie: ");
    while let Some(cookie) = cookies.next() {
        out.extend_from_slice(cookie.as_bytes());
        out.extend_from_slice(if cookies.peek().is_some() { b"; " } else { b"\r\n" });
    }
}

/// A response's head that was written for HTTP/1 by ourselves. `None` if it has what HTTP/2 cannot say.
pub fn from_http1(status: StatusCode, head: &[u8]) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    let first = memchr::memchr(b'\n', head).map_or(head.len(), |at| at + 1);
    *response.headers_mut() = fields(&head[first..])?;
    Some(response)
}

/// Lines `name: value`, each with its end.
pub fn fields(lines: &[u8]) -> Option<HeaderMap> {
    let mut map = HeaderMap::new();
    let mut left = lines;
    while let Some(end) = memchr::memchr(b'\n', left) {
        let line = left[..end].trim_ascii_end();
        left = &left[end + 1..];
        if line.is_empty() {
            continue;
        }
        let colon = memchr::memchr(b':', line)?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_maybe_shared(Bytes::copy_from_slice(line[colon + 1..].trim_ascii()));
        map.append(name, value.ok()?);
    }
    Some(map)
}

/// Trailers as lines of HTTP/1, each with its end.
pub fn trailer(map: &HeaderMap) -> Result<Vec<u8>, Malformed> {
    let mut lines = Vec::new();
    map.iter().for_each(|(name, value)| field(&mut lines, name.as_str().as_bytes(), value.as_bytes()));
    check_trailer(&lines)?;
    Ok(lines)
}

fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
