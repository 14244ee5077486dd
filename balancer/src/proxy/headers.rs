//! What happens to headers on the way through. Pure: a head as it came in, the bytes of one to send out.
//!
//! RFC 9110 §7.6.1 (hop-by-hop fields) and §7.8 (upgrades), RFC 6265 (cookies).

use super::http1::{Fields, Framing, Name, Request, Response, members};
use super::trail::{self, Trail};

use crate::route::rewrite::Edits;

#[cfg(test)]
mod tests;

/// The type of the balancer's own texts.
pub const PLAIN: &str = "text/plain; charset=utf-8";

/// Longest request id taken over from a client: it goes into logs.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// For a request on its way to an endpoint.
pub struct Arrival<'a> {
    /// The client's address.
    pub client: &'a str,
    /// What it came by: `http` or `https`.
    pub scheme: &'a str,
    /// The path and the query.
    pub target: &'a str,
    /// The host that the endpoint is told instead of the request's.
    pub told_host: Option<&'a str>,
    /// Changes to its fields.
    pub edits: &'a Edits,
    /// The path in front of the request's own: empty or `/segment...`.
    pub base_path: &'a str,
    /// The host of a request that names none, as HTTP/1.0 allows; HTTP/1.1, which endpoints are spoken to in, does not.
    pub host: &'a str,
    /// Names the request in logs, here and at the endpoint.
    pub id: &'a str,
    /// Its trace, if it is traced here; else what the client says of one passes as it is.
    pub trail: Option<&'a Trail>,
}

/// Writes the head for an endpoint. Its body is framed as it came: by a length, or by chunks.
pub fn to_upstream(request: &Request, arrival: &Arrival<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(request.method.as_str().as_bytes());
    out.push(b' ');
    if arrival.target != "*" {
        out.extend_from_slice(arrival.base_path.as_bytes());
    }
    out.extend_from_slice(arrival.target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let host = request.host().unwrap_or(arrival.host.as_bytes());
    field(out, b"host", arrival.told_host.map_or(host, str::as_bytes));
    let edits = (!arrival.edits.is_empty()).then_some(arrival.edits);
    let drops = |name: &[u8]| edits.is_some_and(|edits| edits.drops(name));
    let nominated = Nominated::by(&request.fields);
    let (mut named_host, mut named_proto) = (drops(b"x-forwarded-host"), drops(b"x-forwarded-proto"));
    for f in request.fields.iter() {
        match f.name {
            Name::Host | Name::Expect | Name::ContentLength | Name::XForwardedFor | Name::XRequestId => {
                continue;
            }
            name if name.is_hop_by_hop() => continue,
            _ if drops(f.text) => continue,
            Name::XForwardedHost => named_host = true,
            Name::XForwardedProto => named_proto = true,
            Name::Other | Name::Trailer | Name::ContentType if nominated.has(f.text) => continue,
            Name::Other if arrival.trail.is_some() && trail::is_ours(f.text) => continue,
            _ => {}
        }
        field(out, f.text, f.value);
    }
    if let Some(trail) = arrival.trail {
        trail.write(out);
    }
    match request.framing {
        Framing::Length(n) => number(out, b"content-length", n),
        // Without a word about it a GET has no body.
        Framing::Chunked => field(out, b"transfer-encoding", b"chunked"),
        Framing::Empty | Framing::UntilClose => {}
    }
    out.extend_from_slice(b"x-forwarded-for: ");
    for before in request.fields.all(Name::XForwardedFor) {
        out.extend_from_slice(before);
        out.extend_from_slice(b", ");
    }
    out.extend_from_slice(arrival.client.as_bytes());
    out.extend_from_slice(b"\r\n");
    if !named_host && request.host().is_some() {
        field(out, b"x-forwarded-host", host);
    }
    if !named_proto {
        field(out, b"x-forwarded-proto", arrival.scheme.as_bytes());
    }
    field(out, b"x-request-id", arrival.id.as_bytes());
    out.extend_from_slice(arrival.edits.written());
    if let Some(protocol) = request.upgrade() {
        switch(out, protocol);
    }
    out.extend_from_slice(b"\r\n");
}

/// The client's request id, if it brings one that can stand in a log.
pub fn request_id(fields: &Fields) -> Option<&str> {
    let mut ids = fields.all(Name::XRequestId);
    let (Some(id), None) = (ids.next(), ids.next()) else { return None };
    let is_good = !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.iter().all(u8::is_ascii_graphic);
    std::str::from_utf8(id).ok().filter(|_| is_good)
}

/// For a response on its way to a client.
pub struct Return<'a> {
    /// Whether the client speaks HTTP/1.1.
    pub is_1_1: bool,
    /// How its body is framed there.
    pub framing: Framing,
    /// Whether the connection may be used again.
    pub keep_alive: bool,
    /// A session to give to the client, as `NAME=VALUE`.
    pub session: Option<&'a str>,
    /// Changes to its fields.
    pub edits: &'a Edits,
    /// The protocol that both sides switch to.
    pub upgrade: Option<&'a [u8]>,
    /// Now, for a response without a date.
    pub date: &'a str,
}

/// Writes an endpoint's head for the client.
pub fn to_downstream(response: &Response, to: &Return<'_>, out: &mut Vec<u8>) {
    status_line(out, to.is_1_1, response.status, response.reason());
    let nominated = Nominated::by(&response.fields);
    // A length says nothing where there cannot be a body (RFC 9110 §8.6).
    let has_length = !response.status.is_informational() && response.status != http::StatusCode::NO_CONTENT;
    let (mut dated, mut own_session) = (false, false);
    let edits = (!to.edits.is_empty()).then_some(to.edits);
    for f in response.fields.iter() {
        match f.name {
            name if name.is_hop_by_hop() => continue,
            Name::ContentLength if !has_length => continue,
            _ if edits.is_some_and(|edits| edits.drops(f.text)) => continue,
            Name::SetCookie => own_session |= to.session.is_some_and(|s| is_same_cookie(f.value, s)),
            Name::Date => dated = true,
            Name::Other | Name::Trailer if nominated.has(f.text) => continue,
            _ => {}
        }
        field(out, f.text, f.value);
    }
    out.extend_from_slice(to.edits.written());
    if !dated && !response.status.is_informational() {
        field(out, b"date", to.date.as_bytes());
    }
    // An application's own cookie of that name is its own business.
    if let Some(key) = to.session.filter(|_| !own_session) {
        out.extend_from_slice(b"set-cookie: ");
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(b"; Path=/; Max-Age=86400; HttpOnly; SameSite=Lax\r\n");
    }
    if to.framing == Framing::Chunked {
        field(out, b"transfer-encoding", b"chunked");
    }
    match to.upgrade {
        Some(protocol) => switch(out, protocol),
        None => connection(out, to.is_1_1, to.keep_alive),
    }
    out.extend_from_slice(b"\r\n");
}

/// Adds `fields`, whole ones, to a head that has been written to its end.
pub fn add(fields: &[u8], head: &mut Vec<u8>) {
    head.truncate(head.len().saturating_sub(2));
    head.extend_from_slice(fields);
    head.extend_from_slice(b"\r\n");
}

/// An answer of the balancer's own.
pub struct Own<'a> {
    /// The status.
    pub status: http::StatusCode,
    /// The type of its text.
    pub kind: &'a str,
    /// The text.
    pub text: &'a [u8],
    /// The request's id, if there is a request.
    pub id: Option<&'a str>,
    /// Further fields, each a line with its end.
    pub more: &'a [u8],
}

/// Writes the whole of `own`; to a HEAD request without the text.
pub fn own(own: &Own<'_>, to: &Return<'_>, head_only: bool, out: &mut Vec<u8>) {
    let reason = own.status.canonical_reason().unwrap_or_default();
    status_line(out, to.is_1_1, own.status, reason.as_bytes());
    field(out, b"content-type", own.kind.as_bytes());
    number(out, b"content-length", own.text.len() as u64);
    field(out, b"date", to.date.as_bytes());
    match own.status {
        http::StatusCode::SERVICE_UNAVAILABLE => field(out, b"retry-after", b"1"),
        http::StatusCode::METHOD_NOT_ALLOWED => {
            field(out, b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE")
        }
        _ => {}
    }
    if let Some(id) = own.id {
        field(out, b"x-request-id", id.as_bytes());
    }
    out.extend_from_slice(own.more);
    connection(out, to.is_1_1, to.keep_alive);
    out.extend_from_slice(b"\r\n");
    if !head_only {
        out.extend_from_slice(own.text);
    }
}

/// Whether a response is a stream of events, which may rest for as long as nothing happens.
pub fn is_events(fields: &Fields) -> bool {
    let kind = fields.first(Name::ContentType).unwrap_or_default();
    let essence = kind.split(|&b| b == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// The client's cookie `name`, if it has a value.
pub fn cookie<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    let cookies = fields.all(Name::Cookie).filter_map(|v| std::str::from_utf8(v).ok());
    cookies
        .flat_map(|v| v.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(n, value)| *n == name && !value.is_empty())
        .map(|(_, value)| value)
}

fn cookie_name(pair: &[u8]) -> &[u8] {
    pair.split(|&b| b == b'=').next().unwrap_or_default().trim_ascii()
}

/// Whether both, as `NAME=VALUE`, have the same name.
fn is_same_cookie(cookie: &[u8], pair: &str) -> bool {
    cookie_name(cookie) == cookie_name(pair.as_bytes())
}

/// What `Connection` names besides what every connection knows.
struct Nominated<'a>(Option<&'a Fields>);

impl<'a> Nominated<'a> {
    fn by(fields: &'a Fields) -> Nominated<'a> {
        let is_known = |option: &&[u8]| {
            ["close", "keep-alive", "upgrade"].iter().any(|o| option.eq_ignore_ascii_case(o.as_bytes()))
        };
        let any = fields.all(Name::Connection).flat_map(members).any(|option| !is_known(&option));
        Nominated(any.then_some(fields))
    }

    /// Whether it names `field`. Only asked for fields that the client may take back: not for those that are ours, or
    /// say how the message is framed, where it goes and who sent it.
    fn has(&self, field: &[u8]) -> bool {
        let options = self.0.into_iter().flat_map(|fields| fields.all(Name::Connection)).flat_map(members);
        options.into_iter().any(|option| option.eq_ignore_ascii_case(field))
    }
}

fn status_line(out: &mut Vec<u8>, is_1_1: bool, status: http::StatusCode, reason: &[u8]) {
    out.extend_from_slice(if is_1_1 { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

fn connection(out: &mut Vec<u8>, is_1_1: bool, keep_alive: bool) {
    match (is_1_1, keep_alive) {
        (_, false) => field(out, b"connection", b"close"),
        (false, true) => field(out, b"connection", b"keep-alive"),
        (true, true) => {}
    }
}

fn switch(out: &mut Vec<u8>, protocol: &[u8]) {
    field(out, b"connection", b"upgrade");
    field(out, b"upgrade", protocol);
}

fn number(out: &mut Vec<u8>, name: &[u8], mut n: u64) {
    let (mut digits, mut at) = ([0; 20], 20);
    while n > 0 || at == 20 {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
    }
    field(out, name, &digits[at..]);
}

fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
