//! What is decided about one request, whatever protocol it comes in and goes out by: its route, whom it is sent to,
//! whom next, and what the balancer answers by itself. Others carry it out.
//!
//! A request keeps the route that it began with, also when routes are replaced meanwhile; endpoints are picked from
//! the latest pool of that route, so that one that is tried again sees what has changed.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::{Method, StatusCode};
use tracing::debug;

use super::account::{Account, End, Sender};
use super::headers::{self, PLAIN};
use super::http1::Request;
use super::meter::Meter;
use super::retry::{self, Fault, Plan, Step};
use super::upstream::{ConnectError, HeadError};
use super::worker::{Here, Worker};
use crate::config::Limits;
use crate::picker::{self, Strategy};
use crate::pool::Endpoint;
use crate::report::Failure;
use crate::route::Route;

/// The body of a 503, the original's.
const NO_BACKEND: &str = "No healthy backend available";

/// The balancer's own metrics, on the data port because that is where old scrape configurations look.
const METRICS: &str = "/metrics";

/// An answer of the balancer's own.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// The type of its text.
    pub kind: &'static str,
    /// Its text.
    pub text: String,
}

impl Answer {
    /// A text for people.
    pub fn plain(status: StatusCode, text: impl Into<String>) -> Answer {
        Answer { status, kind: PLAIN, text: text.into() }
    }
}

/// The session of a request, where sessions decide.
enum Session {
    None,
    Brought(String),
    Fresh(String),
}

/// See the file's head.
pub struct Course {
    worker: Rc<Worker>,
    here: Rc<Here>,
    route: usize,
    /// What it costs, until its response has ended.
    pub meter: Meter,
    /// Given to the request if it came without one.
    fresh_id: Option<String>,
    session: Session,
    plan: Plan,
    tried: Vec<u64>,
    /// For whoever looks at requests.
    account: Option<Box<Account>>,
}

impl Course {
    /// Begins with the head of a request, `from` whom it is; ends with it, if the balancer answers by itself.
    pub fn begin(worker: &Rc<Worker>, request: &Request, from: &Sender<'_>) -> (Course, Option<Answer>) {
        let here = worker.here();
        let found = here.table.routes.find();
        let route = found.unwrap_or_default();
        let strategy = here.table.routes.get(route).strategy;
        let session = match strategy {
            Strategy::StickySessions => match headers::session(&request.fields) {
                Some(key) => Session::Brought(key.to_owned()),
                None => Session::Fresh(format!("{:032x}", fastrand::u128(..))),
            },
            _ => Session::None,
        };
        let fresh_id = headers::request_id(&request.fields).is_none().then(|| {
            let random = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes());
            random.into_uuid().as_hyphenated().to_string()
        });
        let mut course = Course {
            meter: Meter::begin(worker, &here, route, &request.method),
            worker: worker.clone(),
            here,
            route,
            fresh_id,
            plan: Plan::new(&request.method, !matches!(session, Session::None)),
            session,
            tried: Vec::new(),
            account: None,
        };
        course.account = worker.sight.as_ref().map(|s| s.open(request, from, course.request_id(request)));
        let answer = course.by_itself(request);
        (course, answer)
    }

    /// What the balancer answers without asking anybody.
    fn by_itself(&mut self, request: &Request) -> Option<Answer> {
        match (&request.method, request.path()) {
            (&Method::CONNECT, _) => {
                self.refuse("method");
                Some(Answer::plain(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported"))
            }
            (&Method::GET | &Method::HEAD, METRICS) => {
                self.meter.uncounted();
                let text = (self.worker.exposition)();
                Some(Answer { status: StatusCode::OK, kind: prometheus::TEXT_FORMAT, text })
            }
            _ => None,
        }
    }

    /// How this request is treated.
    pub fn route(&self) -> &Route {
        self.here.table.routes.get(self.route)
    }

    /// What it may take.
    pub fn limits(&self) -> &Limits {
        &self.worker.limits
    }

    /// Names the request in logs, here and at the endpoint.
    pub fn request_id<'a>(&'a self, request: &'a Request) -> &'a str {
        self.fresh_id.as_deref().or_else(|| headers::request_id(&request.fields)).unwrap_or_default()
    }

    /// The session that the client is told to keep to.
    pub fn session_to_give(&self) -> Option<&str> {
        match &self.session {
            Session::Fresh(key) => Some(key),
            Session::None | Session::Brought(_) => None,
        }
    }

    /// Whom to send the request to.
    pub fn first(&mut self) -> Result<Arc<Endpoint>, Answer> {
        let Some(endpoint) = self.pick() else {
            self.refuse("no_endpoint");
            return Err(Answer::plain(StatusCode::SERVICE_UNAVAILABLE, NO_BACKEND));
        };
        self.worker.budget.borrow_mut().pay_in();
        self.attempt(&endpoint);
        Ok(endpoint)
    }

    fn attempt(&mut self, endpoint: &Arc<Endpoint>) {
        self.meter.attempt(endpoint);
        if let Some(account) = &mut self.account {
            account.attempt();
        }
    }

    /// A connection was made for the attempt that goes on.
    pub fn connected(&mut self) {
        if let Some(account) = &mut self.account {
            account.connected();
        }
    }

    /// The client gets this status.
    pub fn answered(&mut self, status: StatusCode) {
        self.meter.answered(status);
        if let Some(account) = &mut self.account {
            account.answered();
        }
    }

    /// So many bytes of the request's body and of the response's have passed.
    pub fn carried(&mut self, up: u64, down: u64) {
        if let Some(account) = &mut self.account {
            account.carried((up, down));
        }
    }

    /// Why the request does not end as it should.
    pub fn because(&mut self, reason: &'static str) {
        if let Some(account) = &mut self.account {
            account.because(reason);
        }
    }

    /// Whom next, after an attempt at `endpoint` failed by `fault`, because it did `what` (to follow "backend ID"),
    /// with `left` of the request's body left to send.
    pub fn next(
        &mut self,
        endpoint: &Arc<Endpoint>,
        fault: Fault,
        what: &str,
        left: retry::Upload,
    ) -> Result<Arc<Endpoint>, Answer> {
        if let Some(account) = &mut self.account {
            account.failed(&endpoint.id, what);
        }
        let Some(next) = self.after(fault, left, endpoint) else {
            self.because(fault.reason());
            let (status, text) = match fault {
                Fault::Timeout => (StatusCode::GATEWAY_TIMEOUT, "Gateway timeout"),
                _ => (StatusCode::BAD_GATEWAY, "Bad gateway"),
            };
            return Err(Answer::plain(status, format!("{text}: backend {} {what}", endpoint.id)));
        };
        debug!(upstream = %endpoint.id, next = %next.id, what, "trying again");
        self.attempt(&next);
        Ok(next)
    }

    fn after(
        &mut self,
        fault: Fault,
        left: retry::Upload,
        endpoint: &Arc<Endpoint>,
    ) -> Option<Arc<Endpoint>> {
        self.tried.push(endpoint.key);
        let next = match self.plan.after(fault, left) {
            Step::GiveUp => None,
            Step::Again => Some(endpoint.clone()),
            Step::Elsewhere => self.pick().or_else(|| self.spare()),
            Step::ElsewhereOrAgain => self.pick().or_else(|| Some(endpoint.clone())),
        };
        if next.is_some() && !self.worker.budget.borrow_mut().pay_out(Instant::now()) {
            self.worker.metrics.retries_unaffordable.inc();
            return None;
        }
        if next.is_some() {
            self.worker.metrics.retries.with_label_values(&[fault.reason()]).inc();
        }
        next
    }

    /// No connection to the endpoint could be made. Returns what it did.
    pub fn cannot_connect(&self, error: &ConnectError) -> String {
        self.worker.metrics.connect_failures.inc();
        match error {
            ConnectError::Refused => self.meter.blame(Failure::Refused),
            ConnectError::Timeout(_) | ConnectError::Other(_) => self.meter.blame(Failure::Unreachable),
            // Ours, and no endpoint's.
            ConnectError::Local(_) => {}
        }
        error.to_string()
    }

    /// The endpoint broke off, before a response. Returns what it did.
    pub fn broken(&self, request: &Request, why: HeadError, fault: Fault) -> String {
        // A failed upgrade says nothing about the endpoint.
        if request.upgrade().is_none() {
            self.meter.blame(if fault == Fault::Broke { Failure::Broke } else { Failure::Reset });
        }
        why.to_string()
    }

    /// Counts that the balancer refuses the request, for `reason`.
    pub fn refuse(&mut self, reason: &'static str) {
        self.worker.metrics.refused.with_label_values(&[reason]).inc();
        self.because(reason);
    }

    fn pick(&self) -> Option<Arc<Endpoint>> {
        let (route, latest) = (self.route(), self.latest());
        let session = match &self.session {
            Session::None => None,
            Session::Brought(key) | Session::Fresh(key) => Some(key.as_str()),
        };
        let (turn, draw) = (self.worker.turn(), fastrand::u64(..));
        let pool = &latest.table.pools[route.selector];
        picker::pick(route.strategy, pool, turn, draw, session, &self.tried)
            .map(|entry| entry.endpoint.clone())
    }

    /// For a request that failed everywhere in the rotation: whoever else might answer it.
    fn spare(&self) -> Option<Arc<Endpoint>> {
        let latest = self.latest();
        let pool = &latest.table.pools[self.route().selector];
        picker::spare(pool, self.worker.turn(), &self.tried).map(|entry| entry.endpoint.clone())
    }

    /// The latest table with the routes that the request began with.
    fn latest(&self) -> Rc<Here> {
        let latest = self.worker.here();
        match Arc::ptr_eq(&latest.table.routes, &self.here.table.routes) {
            true => latest,
            false => self.here.clone(),
        }
    }
}

impl Drop for Course {
    fn drop(&mut self) {
        let (Some(account), Some(sight)) = (self.account.take(), &self.worker.sight) else { return };
        let end = End {
            status: self.meter.status(),
            route: &self.route().name,
            endpoint: self.meter.endpoint().map(|endpoint| &*endpoint.id),
            revision: self.here.table.revision,
        };
        sight.close(account, &end);
    }
}
