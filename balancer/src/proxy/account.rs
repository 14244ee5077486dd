//! What is noted about one request for the access log and for traces. Made only if there is one of them: otherwise a
//! request pays a look at an `Option`.

use std::cell::RefCell;
use std::time::{Duration, Instant, SystemTime};

use super::http1::Request;
use super::trail::{self, Trail};
use super::worker::Spares;
use crate::access::line::Fields;
use crate::access::{FLUSH_EVERY, Pen};
use crate::pool::Endpoint;
use crate::trace::Tracer;
use crate::trace::context::TraceId;

/// Longest path in a line. What is longer is cut: a line must not be as long as a head may be.
pub const PATH_BYTES_MAX: usize = 1024;
/// Longest other text.
pub const TEXT_BYTES_MAX: usize = 256;

/// What a worker tells of requests with.
pub struct Sight {
    pen: Option<RefCell<Pen>>,
    tracer: Option<Tracer>,
    spares: Spares<Account>,
}

impl Sight {
    /// Writes with `pen` and traces with `tracer`; `None` if there is neither.
    pub fn new(pen: Option<Pen>, tracer: Option<Tracer>) -> Option<Sight> {
        let any = pen.is_some() || tracer.is_some();
        any.then(|| Sight { pen: pen.map(RefCell::new), tracer, spares: Spares::default() })
    }

    /// The head of a request is complete.
    pub fn open(&self, request: &Request, from: &Sender<'_>, request_id: &str) -> Box<Account> {
        let mut account = self.spares.take();
        account.begin();
        account.trail = self.tracer.as_ref().map(|tracer| Trail::begin(request, from, tracer));
        if self.pen.is_some() {
            account.write_head(request, from, request_id);
        }
        account
    }

    /// A request has ended.
    pub fn close(&self, mut account: Box<Account>, end: &End<'_>) {
        if let (Some(trail), Some(tracer)) = (account.end_trail(end), &self.tracer) {
            trail.ended(end, account.began.elapsed(), account.reason, tracer);
        }
        if let Some(pen) = &self.pen {
            account.write_end(end);
            pen.borrow_mut().write(&account.line);
        }
        self.spares.give_back(account);
    }

    /// A head was refused before it was a request.
    pub fn refused(&self, client: &str, status: u16, why: &str) {
        let Some(pen) = &self.pen else { return };
        let mut account = self.spares.take();
        account.write_refused(client, status, why);
        pen.borrow_mut().write(&account.line);
        self.spares.give_back(account);
    }

    /// Hands lines over now and then, for ever.
    pub async fn flush(&self) {
        let Some(pen) = &self.pen else { return };
        let mut ticks = tokio::time::interval(FLUSH_EVERY);
        loop {
            ticks.tick().await;
            pen.borrow_mut().flush();
        }
    }
}

/// Who sent a request, and how.
pub struct Sender<'a> {
    /// The client's address.
    pub address: &'a str,
    /// `HTTP/1.1` and the like.
    pub protocol: &'static str,
    /// `http` or `https`.
    pub scheme: &'static str,
}

/// How a request ended.
pub struct End<'a> {
    /// The status that the client got, or 499.
    pub status: u16,
    /// The route that it took.
    pub route: &'a str,
    /// Who answered, or was asked last.
    pub endpoint: Option<&'a Endpoint>,
    /// The catalog's revision that it was routed by.
    pub revision: u64,
}

/// See the file's head.
pub struct Account {
    /// The line as far as it is known.
    line: Vec<u8>,
    /// Failed attempts, as members of a JSON array.
    failed: Vec<u8>,
    began: Instant,
    attempt_began: Instant,
    attempt_failed: bool,
    connect: Option<Duration>,
    first_byte: Option<Duration>,
    reason: Option<&'static str>,
    carried: (u64, u64),
    trail: Option<Trail>,
}

impl Default for Account {
    fn default() -> Account {
        let now = Instant::now();
        Account {
            line: Vec::new(),
            failed: Vec::new(),
            began: now,
            attempt_began: now,
            attempt_failed: false,
            connect: None,
            first_byte: None,
            reason: None,
            carried: (0, 0),
            trail: None,
        }
    }
}

impl Account {
    fn begin(&mut self) {
        self.line.clear();
        self.failed.clear();
        self.began = Instant::now();
        (self.attempt_began, self.attempt_failed) = (self.began, false);
        (self.connect, self.first_byte, self.reason, self.carried) = (None, None, None, (0, 0));
    }

    fn write_head(&mut self, request: &Request, from: &Sender<'_>, request_id: &str) {
        let trace = self.trail.as_ref().map(Trail::trace).or_else(|| trail::parent(request).map(|p| p.trace));
        let agent =
            request.fields.iter().find(|f| f.text.eq_ignore_ascii_case(b"user-agent")).map(|f| f.value);
        stamp(&mut self.line)
            .text("client", from.address.as_bytes(), TEXT_BYTES_MAX)
            .text("method", request.method.as_str().as_bytes(), TEXT_BYTES_MAX)
            .maybe("host", request.host(), TEXT_BYTES_MAX)
            .text("path", request.path().as_bytes(), PATH_BYTES_MAX)
            .text("protocol", from.protocol.as_bytes(), TEXT_BYTES_MAX)
            .text("request_id", request_id.as_bytes(), TEXT_BYTES_MAX)
            .maybe("user_agent", agent, TEXT_BYTES_MAX);
        let mut fields = Fields::go_on(&mut self.line);
        match trace {
            Some(TraceId(id)) => fields.plain("trace_id", format_args!("\"{id:032x}\"")),
            None => fields.plain("trace_id", "null"),
        };
    }

    fn write_refused(&mut self, client: &str, status: u16, why: &str) {
        self.line.clear();
        stamp(&mut self.line)
            .text("client", client.as_bytes(), TEXT_BYTES_MAX)
            .plain("status", status)
            .text("reason", b"malformed", TEXT_BYTES_MAX)
            .text("why", why.as_bytes(), TEXT_BYTES_MAX)
            .end();
        self.line.push(b'\n');
    }

    /// Notes the last attempt.
    fn end_trail(&mut self, end: &End<'_>) -> Option<Trail> {
        let mut trail = self.trail.take()?;
        // One that failed has been noted.
        if let Some(endpoint) = end.endpoint.filter(|_| !self.attempt_failed) {
            let after = self.attempt_began.duration_since(self.began);
            let outcome = match self.first_byte {
                Some(_) => Ok(end.status),
                None => Err(self.reason.unwrap_or("unanswered")),
            };
            trail.attempted(endpoint, after, self.attempt_began.elapsed(), outcome);
        }
        Some(trail)
    }

    fn write_end(&mut self, end: &End<'_>) {
        Fields::go_on(&mut self.line)
            .plain("status", end.status)
            .plain("bytes_in", self.carried.0)
            .plain("bytes_out", self.carried.1)
            .millis("duration_ms", Some(self.began.elapsed()))
            .millis("connect_ms", self.connect)
            .millis("first_byte_ms", self.first_byte)
            .text("route", end.route.as_bytes(), TEXT_BYTES_MAX)
            .maybe("endpoint", end.endpoint.map(|endpoint| endpoint.id.as_bytes()), TEXT_BYTES_MAX)
            .array("failed_attempts", &self.failed)
            .maybe("reason", self.reason.map(str::as_bytes), TEXT_BYTES_MAX)
            .plain("revision", end.revision)
            .end();
        self.line.push(b'\n');
    }

    /// An attempt begins.
    pub fn attempt(&mut self) {
        (self.attempt_began, self.attempt_failed) = (Instant::now(), false);
        self.connect = None;
        if let Some(trail) = &mut self.trail {
            trail.attempt();
        }
    }

    /// The trace of the request, if it is traced here.
    pub fn trail(&self) -> Option<&Trail> {
        self.trail.as_ref()
    }

    /// A connection was made for the attempt that goes on.
    pub fn connected(&mut self) {
        self.connect = Some(self.attempt_began.elapsed());
    }

    /// The attempt at `endpoint` failed because of what it did.
    pub fn failed(&mut self, endpoint: &Endpoint, what: &str) {
        let took = self.attempt_began.elapsed();
        self.attempt_failed = true;
        if let Some(trail) = &mut self.trail {
            trail.attempted(endpoint, self.attempt_began.duration_since(self.began), took, Err(what));
        }
        if !self.failed.is_empty() {
            self.failed.push(b',');
        }
        Fields::begin(&mut self.failed)
            .text("endpoint", endpoint.id.as_bytes(), TEXT_BYTES_MAX)
            .text("why", what.as_bytes(), TEXT_BYTES_MAX)
            .millis("duration_ms", Some(took))
            .end();
    }

    /// The head of a response is there.
    pub fn answered(&mut self) {
        self.first_byte.get_or_insert_with(|| self.began.elapsed());
    }

    /// So much of both bodies has passed.
    pub fn carried(&mut self, bytes: (u64, u64)) {
        self.carried = bytes;
    }

    /// Why it did not end as it should have. The first reason counts.
    pub fn because(&mut self, reason: &'static str) {
        self.reason.get_or_insert(reason);
    }
}

/// Begins a line with the time.
fn stamp(line: &mut Vec<u8>) -> Fields<'_> {
    let mut fields = Fields::begin(line);
    let now = humantime::format_rfc3339_millis(SystemTime::now());
    fields.plain("time", format_args!("\"{now}\""));
    fields
}
