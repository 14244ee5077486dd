//! What is noted about one request for the access log. Made only if there is one: otherwise a request pays a look at
//! an `Option`.

use std::cell::RefCell;
use std::time::{Duration, Instant, SystemTime};

use super::http1::Request;
use super::worker::Spares;
use crate::access::line::Fields;
use crate::access::{FLUSH_EVERY, Pen};

/// Longest path, host and other text in a line. What is longer is cut: a line must not be as long as a head may be.
const PATH_BYTES_MAX: usize = 1024;
const TEXT_BYTES_MAX: usize = 256;

/// What a worker writes its log with.
pub struct Sight {
    pen: RefCell<Pen>,
    spares: Spares<Account>,
}

impl Sight {
    /// Writes with `pen`.
    pub fn new(pen: Pen) -> Sight {
        Sight { pen: RefCell::new(pen), spares: Spares::default() }
    }

    /// The head of a request is complete.
    pub fn open(&self, request: &Request, from: &Sender<'_>, request_id: &str) -> Box<Account> {
        let mut account = self.spares.take();
        account.begin(request, from, request_id);
        account
    }

    /// A request has ended.
    pub fn close(&self, mut account: Box<Account>, end: &End<'_>) {
        account.end(end);
        self.pen.borrow_mut().write(&account.line);
        self.spares.give_back(account);
    }

    /// A head was refused before it was a request.
    pub fn refused(&self, client: &str, status: u16, why: &str) {
        let mut account = self.spares.take();
        account.refused(client, status, why);
        self.pen.borrow_mut().write(&account.line);
        self.spares.give_back(account);
    }

    /// Hands lines over now and then, for ever.
    pub async fn flush(&self) {
        let mut ticks = tokio::time::interval(FLUSH_EVERY);
        loop {
            ticks.tick().await;
            self.pen.borrow_mut().flush();
        }
    }
}

/// Who sent a request, and how.
pub struct Sender<'a> {
    /// The client's address.
    pub address: &'a str,
    /// `HTTP/1.1` and the like.
    pub protocol: &'static str,
}

/// How a request ended.
pub struct End<'a> {
    /// The status that the client got, or 499.
    pub status: u16,
    /// The route that it took.
    pub route: &'a str,
    /// Who answered, or was asked last.
    pub endpoint: Option<&'a str>,
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
    connect: Option<Duration>,
    first_byte: Option<Duration>,
    reason: Option<&'static str>,
    carried: (u64, u64),
}

impl Default for Account {
    fn default() -> Account {
        let now = Instant::now();
        Account {
            line: Vec::new(),
            failed: Vec::new(),
            began: now,
            attempt_began: now,
            connect: None,
            first_byte: None,
            reason: None,
            carried: (0, 0),
        }
    }
}

impl Account {
    fn begin(&mut self, request: &Request, from: &Sender<'_>, request_id: &str) {
        self.line.clear();
        self.failed.clear();
        self.began = Instant::now();
        self.attempt_began = self.began;
        (self.connect, self.first_byte, self.reason, self.carried) = (None, None, None, (0, 0));
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
    }

    fn refused(&mut self, client: &str, status: u16, why: &str) {
        self.line.clear();
        stamp(&mut self.line)
            .text("client", client.as_bytes(), TEXT_BYTES_MAX)
            .plain("status", status)
            .text("reason", b"malformed", TEXT_BYTES_MAX)
            .text("why", why.as_bytes(), TEXT_BYTES_MAX)
            .end();
        self.line.push(b'\n');
    }

    fn end(&mut self, end: &End<'_>) {
        Fields::go_on(&mut self.line)
            .plain("status", end.status)
            .plain("bytes_in", self.carried.0)
            .plain("bytes_out", self.carried.1)
            .millis("duration_ms", Some(self.began.elapsed()))
            .millis("connect_ms", self.connect)
            .millis("first_byte_ms", self.first_byte)
            .text("route", end.route.as_bytes(), TEXT_BYTES_MAX)
            .maybe("endpoint", end.endpoint.map(str::as_bytes), TEXT_BYTES_MAX)
            .array("failed_attempts", &self.failed)
            .maybe("reason", self.reason.map(str::as_bytes), TEXT_BYTES_MAX)
            .plain("revision", end.revision)
            .end();
        self.line.push(b'\n');
    }

    /// An attempt begins.
    pub fn attempt(&mut self) {
        self.attempt_began = Instant::now();
        self.connect = None;
    }

    /// A connection was made for the attempt that goes on.
    pub fn connected(&mut self) {
        self.connect = Some(self.attempt_began.elapsed());
    }

    /// The attempt at `endpoint` failed because of what it did.
    pub fn failed(&mut self, endpoint: &str, what: &str) {
        if !self.failed.is_empty() {
            self.failed.push(b',');
        }
        Fields::begin(&mut self.failed)
            .text("endpoint", endpoint.as_bytes(), TEXT_BYTES_MAX)
            .text("why", what.as_bytes(), TEXT_BYTES_MAX)
            .millis("duration_ms", Some(self.attempt_began.elapsed()))
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
