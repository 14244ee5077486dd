//! What one request costs and whom it burdens, from its head to the end of its response.
//!
//! A [`Meter`] is made when a request's head is complete and dropped when its response has ended, has been cut
//! off, or its task is gone for whatever reason; so counts fall exactly once, on every path.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::deadline;
use super::worker::{Here, Worker};
use crate::metrics::NO_BACKEND;
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
    attempt: Option<(InFlight, Instant)>,
    counted: bool,
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
            counted: true,
        }
    }

    /// It concerns the balancer alone and is not counted as a request.
    pub fn uncounted(&mut self) {
        self.counted = false;
    }

    /// An attempt at an endpoint begins; one before it, if any, is over.
    pub fn attempt(&mut self, endpoint: &Arc<Endpoint>) {
        let began = if self.attempt.is_none() { self.began } else { deadline::look() };
        self.attempt = Some((endpoint.begin(), began));
    }

    /// The endpoint of the current attempt failed it. Says so to the control side.
    pub fn blame(&self, failure: Failure) {
        if let Some((in_flight, began)) = &self.attempt {
            let endpoint = in_flight.endpoint().key;
            self.worker.reporter.report(Report { endpoint, failure, began: *began });
        }
    }

    /// What the client got.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Who was asked last.
    pub fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.attempt.as_ref().map(|(in_flight, _)| in_flight.endpoint())
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
            Some((in_flight, _)) => (in_flight.endpoint().key, &*in_flight.endpoint().id),
            None => (0, NO_BACKEND),
        };
        let route = &self.here.table.routes.get(self.route).name;
        self.worker.measure(
            route,
            self.method,
            self.status,
            (key, id),
            deadline::look().duration_since(self.began),
        );
    }
}
