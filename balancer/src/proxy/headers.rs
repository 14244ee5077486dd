//! What happens to headers on the way through. Pure: header maps in, header maps out.
//!
//! RFC 9110 §7.6.1 (hop-by-hop fields), RFC 9112 §3.2 and §6.3 (what must be refused), RFC 6265 (cookies).

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Parts, PathAndQuery, Uri};
use http::{Method, Version};

#[cfg(test)]
mod tests;

/// The session cookie's name, the original's.
const SESSION: &str = "SESSIONID";

/// Longest request id taken over from a client: it goes into logs.
const REQUEST_ID_BYTES_MAX: usize = 128;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Names a request in logs, here and at the endpoint.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Fields that a client may not have removed by naming them in `Connection`: they are ours, or say how the
/// message is framed or where it goes.
const NEVER_NOMINATED: [HeaderName; 8] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::COOKIE,
    header::AUTHORIZATION,
    X_FORWARDED_FOR,
    X_FORWARDED_HOST,
    X_FORWARDED_PROTO,
    X_REQUEST_ID,
];

/// Why a request is refused with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// HTTP/1.1 demands exactly one.
    #[error("missing Host header")]
    NoHost,
    /// Which of them is meant is anybody's guess.
    #[error("more than one Host header")]
    ManyHosts,
    /// Not `host[:port]`.
    #[error("invalid Host header")]
    BadHost,
    /// Two ways to frame the body: the classic of request smuggling.
    #[error("both Content-Length and Transfer-Encoding")]
    TwoFramings,
    /// Only chunked is understood.
    #[error("unsupported Transfer-Encoding")]
    BadCoding,
}

/// Refuses requests that two readers could understand differently.
pub fn check(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), Malformed> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(Malformed::ManyHosts),
        (None, _) if version >= Version::HTTP_11 && uri.authority().is_none() => {
            return Err(Malformed::NoHost);
        }
        (Some(host), _) if !is_host(host) => return Err(Malformed::BadHost),
        _ => {}
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if headers.contains_key(header::CONTENT_LENGTH) {
            return Err(Malformed::TwoFramings);
        }
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(Malformed::BadCoding);
        }
    }
    Ok(())
}

/// Empty is allowed (RFC 9112 §3.2: a target without an authority).
fn is_host(host: &HeaderValue) -> bool {
    let bytes = host.as_bytes();
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%:[]".contains(b);
    bytes.iter().all(is_plain)
}

/// The protocol that a request wants to switch to, if it is one that may pass: `h2c` would let a client talk
/// past us (and HTTP/2 over TLS is not asked for this way).
pub fn upgrade(method: &Method, headers: &HeaderMap) -> Option<HeaderValue> {
    let mut wanted = headers.get_all(header::UPGRADE).iter();
    let protocol = wanted.next()?;
    let alone = wanted.next().is_none();
    let passes = !tokens(protocol).any(|t| t.eq_ignore_ascii_case("h2c") || t.eq_ignore_ascii_case("h2"));
    let nominated = headers.get_all(header::CONNECTION).iter().flat_map(tokens);
    let asked = nominated.into_iter().any(|t| t.eq_ignore_ascii_case("upgrade"));
    (alone && passes && asked && *method == Method::GET).then(|| protocol.clone())
}

/// What a request came with, for the headers that tell the endpoint.
pub struct Arrival<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// The protocol to switch to, from [`upgrade`].
    pub upgrade: Option<HeaderValue>,
    /// The target as it came.
    pub uri: &'a Uri,
    /// For a request that brings no id of its own.
    pub fresh_id: u128,
}

/// Turns a client's request headers into those for an endpoint. A target in absolute form overrides `Host`.
///
/// A body that came in chunks is announced as chunked again: without a word about it a GET has no body.
pub fn to_upstream(headers: &mut HeaderMap, arrival: Arrival<'_>) {
    let chunked = headers.contains_key(header::TRANSFER_ENCODING);
    strip_hop_by_hop(headers);
    if chunked {
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    headers.remove(header::EXPECT);
    headers.remove(HTTP2_SETTINGS);
    let authority = arrival.uri.authority().map(strip_userinfo);
    if let Some(Ok(host)) = authority.map(HeaderValue::from_str) {
        headers.insert(header::HOST, host);
    }
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
    headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    append_client(headers, arrival.client);
    identify(headers, arrival.fresh_id);
    if let Some(protocol) = arrival.upgrade {
        switch(headers, protocol);
    }
}

/// Turns an endpoint's response headers into those for the client. Of two framings the length is the wrong one
/// (RFC 9112 §6.3).
pub fn to_downstream(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    strip_hop_by_hop(headers);
}

/// Whether a response is a stream of events, which may rest for as long as nothing happens.
pub fn is_events(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let essence = kind.split(|&b| b == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// As [`to_downstream`], for a response that switches protocols.
pub fn to_downstream_switching(headers: &mut HeaderMap) {
    let protocol = headers.get(header::UPGRADE).cloned();
    strip_hop_by_hop(headers);
    if let Some(protocol) = protocol {
        switch(headers, protocol);
    }
}

/// The request's id, once [`to_upstream`] has seen to it that there is one.
pub fn request_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(X_REQUEST_ID)
}

/// The target for an endpoint: origin form, the endpoint's base path in front, the query kept. `OPTIONS *`
/// stays as it is.
pub fn target(base_path: &str, uri: &Uri) -> Uri {
    let has_authority = uri.authority().is_some();
    if base_path.is_empty() && !has_authority || uri.path() == "*" {
        return uri.clone();
    }
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let joined = match path {
        query if query.starts_with('?') => format!("{base_path}/{query}"),
        path => format!("{base_path}{path}"),
    };
    let mut parts = Parts::default();
    parts.path_and_query = joined.parse().ok();
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

/// The client's session key.
pub fn session(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
    cookies
        .flat_map(|v| v.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, value)| *name == SESSION && !value.is_empty())
        .map(|(_, value)| value)
}

/// Gives the client the session `key`, unless the application sets a cookie of that name itself.
pub fn set_session(headers: &mut HeaderMap, key: &str) {
    let ours = |v: &HeaderValue| {
        let name = v.as_bytes().split(|&b| b == b'=').next().unwrap_or_default();
        name.trim_ascii() == SESSION.as_bytes()
    };
    if headers.get_all(header::SET_COOKIE).iter().any(ours) {
        return;
    }
    let cookie = format!("{SESSION}={key}; Path=/; Max-Age=86400; HttpOnly; SameSite=Lax");
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        headers.append(header::SET_COOKIE, cookie);
    }
}

/// Removes what concerns one connection only, and what `Connection` names.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let nominated: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(tokens)
            .filter_map(|token| token.parse().ok())
            .filter(|name| !NEVER_NOMINATED.contains(name))
            .collect();
        nominated.iter().for_each(|name| drop(headers.remove(name)));
        headers.remove(header::CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
}

fn switch(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// Appends the client's address, once, and makes one line of several.
fn append_client(headers: &mut HeaderMap, client: IpAddr) {
    let mut line = Vec::with_capacity(48);
    for value in headers.get_all(X_FORWARDED_FOR) {
        line.extend_from_slice(value.as_bytes());
        line.extend_from_slice(b", ");
    }
    line.extend_from_slice(client.to_canonical().to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(line)) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

/// Keeps the client's request id if it is one that can stand in a log, else gives it a fresh one.
fn identify(headers: &mut HeaderMap, fresh: u128) {
    let is_good = |v: &HeaderValue| {
        !v.is_empty() && v.len() <= REQUEST_ID_BYTES_MAX && v.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    let mut ids = headers.get_all(X_REQUEST_ID).iter();
    if let (Some(id), None) = (ids.next(), ids.next())
        && is_good(id)
    {
        return;
    }
    let id = uuid::Builder::from_random_bytes(fresh.to_ne_bytes()).into_uuid();
    let id = HeaderValue::from_str(id.as_hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
    headers.insert(X_REQUEST_ID, id.expect("a UUID is hexadecimal digits and hyphens"));
}

fn strip_userinfo(authority: &http::uri::Authority) -> &str {
    authority.as_str().rsplit('@').next().unwrap_or_default()
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|t| !t.is_empty())
}
