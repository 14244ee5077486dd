//! What one request costs and whom it burdens, from its head to the end of its response.
//!
//! A [`Meter`] is made when a request's head is complete and dropped when its response has ended, has been cut
//! off, or its task is gone for whatever reason; so counts fall exactly once, on every path.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::deadline;
use super::worker::{Here, Worker};
use crate::metrics::NO_BACKEND;
use crate::picker::Strategy;
use crate::pool::{Endpoint, InFlight};
use crate::report::{Failure, Report};

/// The status of a request whose client left before there was one; nginx's convention.
const CLIENT_LEFT: u16 = 499;

/// See the file's head.
pub struct Meter {
    worker: Rc<Worker>,
    here: Rc<Here>,
    route: usize,
    began: Instant,
    method: usize,
    status: u16,
    attempt: Option<Attempt>,
    /// Whether an attempt begins later than the request.
    is_late: bool,
    attempts: u32,
    counted: bool,
}

struct Attempt {
    in_flight: InFlight,
    began: Instant,
    /// Whether its outcome has been added to the endpoint's latency.
    observed: Cell<bool>,
}

impl Meter {
    /// The head of a request that takes the route numbered `route` is complete.
    pub fn begin(worker: &Rc<Worker>, here: &Rc<Here>, route: usize, method: &http::Method) -> Meter {
        Meter {
            worker: worker.clone(),
            here: here.clone(),
            route,
            began: deadline::look(),
            method: crate::metrics::method_index(method),
            status: CLIENT_LEFT,
            attempt: None,
            is_late: false,
            attempts: 0,
            counted: true,
        }
    }

    /// It concerns the balancer alone and is not counted as a request.
    pub fn uncounted(&mut self) {
        self.counted = false;
    }

    /// When the request's head was complete.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// An attempt at an endpoint begins, where it is in flight; one before it, if any, is over.
    pub fn attempt(&mut self, in_flight: InFlight) {
        let began = if self.is_late { deadline::look() } else { self.began };
        self.is_late = true;
        self.attempts += 1;
        self.attempt = Some(Attempt { in_flight, began, observed: Cell::new(false) });
    }

    /// The current attempt is over, if there is one.
    pub fn release(&mut self) -> Option<InFlight> {
        self.is_late = true;
        self.attempt.take().map(|attempt| attempt.in_flight)
    }

    /// The endpoint of the current attempt failed it. Says so to the control side.
    pub fn blame(&self, failure: Failure) {
        let Some(attempt) = &self.attempt else { return };
        let endpoint = attempt.in_flight.endpoint().key;
        self.worker.reporter.report(Report { endpoint, failure, began: attempt.began });
        if failure != Failure::Reset {
            self.observe(attempt, true);
        }
    }

    /// The endpoint of the current attempt answered it with this status.
    pub fn heard(&self, status: http::StatusCode) {
        let Some(attempt) = &self.attempt else { return };
        let endpoint = attempt.in_flight.endpoint();
        if self.worker.limits.gateway_failures && matches!(status.as_u16(), 502..=504) {
            endpoint.reached();
            return self.blame(Failure::Gateway);
        }
        endpoint.answered();
        self.observe(attempt, status.is_server_error() || status == http::StatusCode::TOO_MANY_REQUESTS);
    }

    /// Adds an attempt to its endpoint's latency, where that decides anything.
    fn observe(&self, attempt: &Attempt, failed: bool) {
        let picking = &self.here.table.routes.get(self.route).picking;
        if picking.strategy == Strategy::PeakEwma && !attempt.observed.replace(true) {
            let now = Instant::now();
            attempt.in_flight.endpoint().observe(now.duration_since(attempt.began), failed, now);
        }
    }

    /// How long it has taken so far, and the current attempt at an endpoint of that.
    pub fn took(&self) -> (Duration, Option<Duration>) {
        let now = deadline::look();
        let attempt = self.attempt.as_ref().map(|attempt| now.duration_since(attempt.began));
        (now.duration_since(self.began), attempt)
    }

    /// How often an endpoint was asked.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// What the client got.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Who was asked last.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.attempt.as_ref().map(|attempt| &**attempt.in_flight.endpoint())
    }

    /// The client gets this status.
    pub fn answered(&mut self, status: http::StatusCode) {
        self.status = status.as_u16();
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        let (key, id) = match &self.attempt {
            Some(Attempt { in_flight, .. }) => (in_flight.endpoint().key, &*in_flight.endpoint().id),
            None => (0, NO_BACKEND),
        };
        let route = self.here.table.routes.get(self.route);
        self.worker.measure(
            route,
            self.method,
            self.status,
            (key, id),
            deadline::look().duration_since(self.began),
        );
    }
}
