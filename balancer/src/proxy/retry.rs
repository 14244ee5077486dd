//! Whether a failed attempt may be followed by another. Pure.
//!
//! The rule: a request is sent again only if it cannot have had an effect (nothing was sent) or may have its
//! effect twice (its method is idempotent, RFC 9110 §9.2.2) and it can be sent again (its body was not touched)
//! and no byte of a response reached the client (then there is no failed attempt but a broken response).
//! Never to an endpoint already tried, but for one case: a kept connection that turned out to be closed says
//! nothing about its endpoint, so that one may be asked again on a fresh connection.

use std::time::{Duration, Instant};

use http::Method;

use crate::route::Retry;

#[cfg(test)]
mod tests;

/// How an attempt failed before any byte of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No connection could be made.
    Connect,
    /// The connection closed before a byte was written.
    Unsent,
    /// A connection kept from earlier closed after something was written.
    Stale,
    /// A fresh connection closed after something was written, or what came was not HTTP.
    Broke,
    /// No response in time.
    Timeout,
}

impl Fault {
    /// Its name in metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Fault::Connect => "connect",
            Fault::Unsent => "unsent",
            Fault::Stale => "stale",
            Fault::Broke => "broke",
            Fault::Timeout => "timeout",
        }
    }
}

/// What is left of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upload {
    /// There is none.
    None,
    /// Nothing was read from the client yet.
    Untouched,
    /// Some was, and is gone.
    Consumed,
}

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another attempt, at an endpoint not tried yet.
    Elsewhere,
    /// Another attempt on a fresh connection, at an endpoint not tried yet or, if there is none, at this one.
    ElsewhereOrAgain,
    /// Another attempt on a fresh connection at this endpoint, because the client belongs to it.
    Again,
    /// No further attempt.
    GiveUp,
}

/// The attempts of one request.
#[derive(Clone, Debug)]
pub struct Plan {
    allowed: Retry,
    idempotent: bool,
    sticky: bool,
    attempts: u8,
    replayed: bool,
}

impl Plan {
    /// For a request with `method`; `sticky` if it has a session at its endpoint. No more than `allowed` is done.
    pub fn new(method: &Method, sticky: bool, allowed: Retry) -> Plan {
        Plan { allowed, idempotent: is_idempotent(method), sticky, attempts: 0, replayed: false }
    }

    /// Decides after an attempt failed by `fault`, with `upload` left.
    pub fn after(&mut self, fault: Fault, upload: Upload) -> Step {
        self.attempts += 1;
        if self.attempts >= self.allowed.attempts || upload == Upload::Consumed {
            return Step::GiveUp;
        }
        match fault {
            Fault::Connect if self.allowed.connect => Step::Elsewhere,
            Fault::Unsent if self.allowed.stale => self.past_a_closed_connection(),
            Fault::Stale if self.allowed.stale && self.idempotent => self.past_a_closed_connection(),
            Fault::Broke if self.allowed.broke && self.idempotent && !self.replayed => {
                self.replayed = true;
                Step::Elsewhere
            }
            Fault::Connect | Fault::Unsent | Fault::Stale | Fault::Broke | Fault::Timeout => Step::GiveUp,
        }
    }

    fn past_a_closed_connection(&self) -> Step {
        if self.sticky { Step::Again } else { Step::ElsewhereOrAgain }
    }
}

/// What further attempts may cost: a share of the requests, so that a failing service gets a little more load from us and
/// not several times as much. After Finagle's retry budget: each request pays in, each further attempt pays out, and a
/// little comes in with time, for services with few requests.
#[derive(Clone, Debug)]
pub struct Budget {
    tokens: f64,
    at: Instant,
}

/// Further attempts for each request.
const SHARE: f64 = 0.2;
/// Further attempts a second that anybody has.
const PER_SECOND: f64 = 10.0;
/// What can be saved: enough for every request that a busy worker has at one endpoint when that dies.
const SAVED_MAX: f64 = 500.0;

impl Budget {
    /// Enough for an endpoint that is dead when the first requests come.
    pub fn new(now: Instant) -> Budget {
        Budget { tokens: SAVED_MAX / 5.0, at: now }
    }

    /// A request begins.
    pub fn pay_in(&mut self) {
        self.tokens = (self.tokens + SHARE).min(SAVED_MAX);
    }

    /// Whether a further attempt can be afforded, which then is paid for.
    pub fn pay_out(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at).min(Duration::from_secs(60));
        self.at = now;
        self.tokens = (self.tokens + elapsed.as_secs_f64() * PER_SECOND).min(SAVED_MAX);
        let affords = self.tokens >= 1.0;
        if affords {
            self.tokens -= 1.0;
        }
        affords
    }
}

fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}
