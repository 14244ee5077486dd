//! Heads: what a request asks for, what a response says, and how the body that follows is delimited.

use std::mem::MaybeUninit;

use http::{Method, StatusCode};

use super::fields::{Span, members};
use super::{Fields, Framing, Malformed, Name, body};

/// Fields of one head, at most. Twice what browsers and tracing send together.
pub const FIELDS_MAX: usize = 128;

/// Digits of a Content-Length, at most: what fits into 64 bits in any case.
const LENGTH_DIGITS_MAX: usize = 18;

/// A request's head. Filled by [`Request::parse`], again and again.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Whether it speaks HTTP/1.1, else 1.0.
    pub is_1_1: bool,
    /// How its body is delimited.
    pub framing: Framing,
    /// Whether its connection may be used again.
    pub keep_alive: bool,
    /// Whether it waits for `100 Continue` before its body.
    pub expects_continue: bool,
    /// All fields, in order.
    pub fields: Fields,
    target: Span,
    authority: Option<Span>,
    upgrade: Option<Span>,
}

impl Default for Request {
    fn default() -> Request {
        Request {
            method: Method::GET,
            is_1_1: true,
            framing: Framing::Empty,
            keep_alive: true,
            expects_continue: false,
            fields: Fields::default(),
            target: Span::default(),
            authority: None,
            upgrade: None,
        }
    }
}

impl Request {
    /// Reads a whole head, from its first byte to the empty line, as [`super::Lines`] found it.
    pub fn parse(&mut self, head: &[u8]) -> Result<(), Malformed> {
        let mut room = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(head, &mut room) {
            Ok(httparse::Status::Complete(n)) if n == head.len() => {}
            // An empty line that it takes for the end and we do not, or the other way round.
            Ok(_) => return Err(Malformed::StartLine),
            Err(error) => return Err(refused(error)),
        }
        let method = parsed.method.unwrap_or_default();
        self.method = Method::from_bytes(method.as_bytes()).map_err(|_| Malformed::StartLine)?;
        self.is_1_1 = parsed.version == Some(1);
        self.fields.clear();
        let target = parsed.path.unwrap_or_default();
        let end_of_line = memchr::memchr(b'\r', head).unwrap_or_default();
        if end_of_line != method.len() + target.len() + " HTTP/1.1 ".len() {
            return Err(Malformed::StartLine);
        }
        self.take_target(target.as_bytes())?;
        for field in parsed.headers.iter() {
            self.fields.push(field.name.as_bytes(), field.value);
        }
        self.understand()
    }

    /// The path and the query; `*` for `OPTIONS *`; the authority for CONNECT.
    pub fn target(&self) -> &str {
        // Checked to be ASCII.
        std::str::from_utf8(self.fields.at(self.target)).unwrap_or_default()
    }

    /// The target without its query.
    pub fn path(&self) -> &str {
        let target = self.target();
        target.split_once('?').map_or(target, |(path, _)| path)
    }

    /// The host it is for, with the port if there is one: the target's, if that names one, else the Host field's.
    pub fn host(&self) -> Option<&[u8]> {
        self.authority.map(|span| self.fields.at(span)).or_else(|| self.fields.first(Name::Host))
    }

    /// The protocol that it wants to switch to, if that may pass.
    pub fn upgrade(&self) -> Option<&[u8]> {
        self.upgrade.map(|span| self.fields.at(span))
    }

    /// Origin form, absolute form (the authority is kept apart), asterisk form, authority form (RFC 9112 §3.2).
    fn take_target(&mut self, target: &[u8]) -> Result<(), Malformed> {
        // A fragment is never sent; whoever sees one differs on where the path ends.
        if !target.iter().all(|&b| b.is_ascii_graphic() && b != b'#') {
            return Err(Malformed::Target);
        }
        self.authority = None;
        if self.method == Method::CONNECT || target.starts_with(b"/") {
            self.target = self.fields.keep(target);
            return Ok(());
        }
        if target == b"*" {
            self.target = self.fields.keep(target);
            return if self.method == Method::OPTIONS { Ok(()) } else { Err(Malformed::Target) };
        }
        let after = ["http://", "https://"].iter().find_map(|scheme| {
            let (start, rest) = target.split_at_checked(scheme.len())?;
            start.eq_ignore_ascii_case(scheme.as_bytes()).then_some(rest)
        });
        let after = after.ok_or(Malformed::Target)?;
        let end = after.iter().position(|b| b"/?".contains(b)).unwrap_or(after.len());
        let (authority, rest) = after.split_at(end);
        if authority.is_empty() || !is_host(authority) {
            return Err(Malformed::Target);
        }
        self.authority = Some(self.fields.keep(authority));
        self.target = match rest.first() {
            Some(b'/') => self.fields.keep(rest),
            _ if rest.is_empty() && self.method == Method::OPTIONS => self.fields.keep(b"*"),
            // An empty path is the root (RFC 9110 §4.2.3).
            _ => self.fields.keep(&[b"/", rest].concat()),
        };
        Ok(())
    }

    /// What its fields say together.
    fn understand(&mut self) -> Result<(), Malformed> {
        let told = Told::of(&self.fields)?;
        self.framing = match (told.chunked, told.length) {
            (true, Some(_)) => return Err(Malformed::TwoFramings),
            (true, None) if !self.is_1_1 => return Err(Malformed::OldCoding),
            (true, None) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::Empty,
        };
        match (told.hosts, self.fields.first(Name::Host)) {
            (2.., _) => return Err(Malformed::ManyHosts),
            (_, Some(host)) if host.is_empty() || !is_host(host) => return Err(Malformed::BadHost),
            (_, None) if self.is_1_1 => return Err(Malformed::NoHost),
            _ => {}
        }
        self.keep_alive = !told.close && (self.is_1_1 || told.keep_alive);
        self.expects_continue = match self.fields.first(Name::Expect) {
            None => false,
            Some(expected) if expected.eq_ignore_ascii_case(b"100-continue") => {
                self.is_1_1 && !matches!(self.framing, Framing::Empty | Framing::Length(0))
            }
            Some(_) => return Err(Malformed::Expect),
        };
        self.upgrade = None;
        if told.upgrade && self.is_1_1 && self.method == Method::GET && self.framing == Framing::Empty {
            self.upgrade = self.protocol();
        }
        Ok(())
    }

    /// The one protocol that is asked for. `h2c` would let a client talk past us, a list leaves open what is spoken.
    fn protocol(&mut self) -> Option<Span> {
        let asked: Vec<&[u8]> = self.fields.all(Name::Upgrade).collect();
        let [protocol] = asked[..] else { return None };
        let is_known = !protocol.is_empty() && protocol.iter().all(|&b| is_token(b) || b == b'/');
        let leads_past = ["h2c", "h2"].iter().any(|name| protocol.eq_ignore_ascii_case(name.as_bytes()));
        let protocol = (is_known && !leads_past).then(|| protocol.to_vec())?;
        Some(self.fields.keep(&protocol))
    }
}

/// A response's head. Filled by [`Response::parse`], again and again.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// How its body is delimited. A response to HEAD has no body, whatever its fields say.
    pub framing: Option<Framing>,
    /// Whether its connection may be used again once its body has come.
    pub keep_alive: bool,
    /// All fields, in order.
    pub fields: Fields,
    reason: Span,
}

impl Response {
    /// Reads a whole head, the answer to a request with `method`.
    pub fn parse(&mut self, head: &[u8], method: &Method) -> Result<(), Malformed> {
        let mut room = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut parsed, head, &mut room) {
            Ok(httparse::Status::Complete(n)) if n == head.len() => {}
            Ok(_) => return Err(Malformed::StartLine),
            Err(error) => return Err(refused(error)),
        }
        let code = parsed.code.filter(|code| (100..600).contains(code));
        let status = code.and_then(|code| StatusCode::from_u16(code).ok());
        self.status = status.ok_or(Malformed::StartLine)?;
        self.fields.clear();
        self.reason = self.fields.keep(parsed.reason.unwrap_or_default().as_bytes());
        for field in parsed.headers.iter() {
            self.fields.push(field.name.as_bytes(), field.value);
        }
        let told = Told::of(&self.fields)?;
        let is_1_1 = parsed.version == Some(1);
        let bodiless = self.status.is_informational()
            || matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || *method == Method::HEAD;
        self.framing = Some(match (told.chunked, told.length) {
            (true, Some(_)) => return Err(Malformed::TwoFramings),
            (true, None) if !is_1_1 => return Err(Malformed::OldCoding),
            _ if bodiless => Framing::Empty,
            (true, None) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::UntilClose,
        });
        self.keep_alive = !told.close && (is_1_1 || told.keep_alive);
        Ok(())
    }

    /// What follows the status: for people, and often empty.
    pub fn reason(&self) -> &[u8] {
        self.fields.at(self.reason)
    }
}

/// What the fields of a head say about its connection and its body.
#[derive(Default)]
struct Told {
    length: Option<u64>,
    chunked: bool,
    hosts: u8,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

impl Told {
    fn of(fields: &Fields) -> Result<Told, Malformed> {
        let mut told = Told::default();
        let mut coded = false;
        for field in fields.iter() {
            match field.name {
                Name::ContentLength if told.length.is_some() => return Err(Malformed::Length),
                Name::ContentLength => told.length = Some(length(field.value)?),
                Name::TransferEncoding if coded || !field.value.eq_ignore_ascii_case(b"chunked") => {
                    return Err(Malformed::Coding);
                }
                Name::TransferEncoding => (coded, told.chunked) = (true, true),
                Name::Host => told.hosts = told.hosts.saturating_add(1),
                Name::Connection => told.connection(field.value),
                // A gateway interface has no hyphens: behind it these are the real ones.
                Name::Other if is_disguised(field.text) => return Err(Malformed::Field),
                _ => {}
            }
        }
        Ok(told)
    }

    fn connection(&mut self, value: &[u8]) {
        for option in members(value) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            self.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
        }
    }
}

fn length(value: &[u8]) -> Result<u64, Malformed> {
    if value.is_empty() || value.len() > LENGTH_DIGITS_MAX || !value.iter().all(u8::is_ascii_digit) {
        return Err(Malformed::Length);
    }
    Ok(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

fn is_disguised(name: &[u8]) -> bool {
    matches!(name.len(), 14 | 17)
        && (name.eq_ignore_ascii_case(b"content_length") || name.eq_ignore_ascii_case(b"transfer_encoding"))
}

/// `uri-host [":" port]` (RFC 9110 §7.2): no user, no path, and a port only where one may stand.
fn is_host(host: &[u8]) -> bool {
    let (name, port) = match host.strip_prefix(b"[") {
        Some(rest) => {
            let Some(end) = rest.iter().position(|&b| b == b']') else { return false };
            let inside = rest[..end].iter().all(|b| b.is_ascii_hexdigit() || b":.vV".contains(b)) && end > 0;
            (inside, &rest[end + 1..])
        }
        None => {
            let end = host.iter().position(|&b| b == b':').unwrap_or(host.len());
            let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%".contains(b);
            (host[..end].iter().all(is_plain) && end > 0, &host[end..])
        }
    };
    name && match port.split_first() {
        None => true,
        Some((b':', digits)) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    }
}

/// Of a method or a field's name (RFC 9110 §5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether `lines`, each with its end, are fields that may stand after a body.
pub fn check_trailer(lines: &[u8]) -> Result<(), Malformed> {
    let whole = [lines, b"\r\n"].concat();
    let mut room = [httparse::EMPTY_HEADER; FIELDS_MAX];
    match httparse::parse_headers(&whole, &mut room) {
        Ok(httparse::Status::Complete((n, fields)))
            if n == whole.len()
                && fields.iter().all(|f| {
                    body::may_trail(Name::of(f.name.as_bytes())) && !is_disguised(f.name.as_bytes())
                }) =>
        {
            Ok(())
        }
        _ => Err(Malformed::Trailer),
    }
}

fn refused(error: httparse::Error) -> Malformed {
    match error {
        httparse::Error::TooManyHeaders => Malformed::TooMany,
        httparse::Error::Version => Malformed::Version,
        httparse::Error::HeaderName | httparse::Error::HeaderValue => Malformed::Field,
        httparse::Error::NewLine | httparse::Error::Status | httparse::Error::Token => Malformed::StartLine,
    }
}
