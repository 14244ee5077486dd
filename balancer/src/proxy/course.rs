//! What is decided about one request, whatever protocol it comes in and goes out by: its route, whom it is sent to,
//! whom next, and what the balancer answers by itself. Others carry it out.
//!
//! A request keeps the route that it began with, also when routes are replaced meanwhile; endpoints are picked from
//! the latest pool of that route, so that one that is tried again sees what has changed.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use prometheus::IntGauge;
use tracing::debug;

use super::account::{Account, End, Sender};
use super::belonging::Belonging;
use super::deadline::Deadline;
use super::headers::{self, PLAIN};
use super::http1::Request;
use super::meter::Meter;
use super::retry::{self, Fault, Plan, Step};
use super::trail::Trail;
use super::upstream::{ConnectError, HeadError};
use super::worker::{Here, Worker};
use crate::access::line::write;
use crate::picker::{self, Ask, Key, Missing, Strategy};
use crate::pool::{Endpoint, InFlight, Pool, Ticket};
use crate::report::Failure;
use crate::route::limit::By;
use crate::route::{Action, Asked, Limits, Route, Target, Unmatched};

/// The body of a 503, the original's.
const NO_BACKEND: &str = "No healthy backend available";

/// The body of a 503 where requests are limited.
const ALL_BUSY: &str = "Every backend has as many requests as it may have";

/// Picks of one attempt that another worker may come in before, each of which makes an endpoint full.
const PICKS_MAX: usize = 64;

/// The balancer's own metrics, on the data port because that is where old scrape configurations look.
pub const METRICS: &str = "/metrics";

/// An answer of the balancer's own.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// The type of its text.
    pub kind: Cow<'static, str>,
    /// Its text.
    pub text: String,
    /// Further fields, each a line with its end.
    pub fields: Vec<u8>,
}

impl Answer {
    /// A text for people.
    pub fn plain(status: StatusCode, text: impl Into<String>) -> Answer {
        Answer { status, kind: PLAIN.into(), text: text.into(), fields: Vec::new() }
    }
}

impl Answer {
    fn too_many(wait: Duration) -> Answer {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let fields = format!("retry-after: {}\r\n", seconds.max(1)).into_bytes();
        Answer { fields, ..Answer::plain(StatusCode::TOO_MANY_REQUESTS, "Too many requests") }
    }
}

/// See the file's head.
pub struct Course {
    worker: Rc<Worker>,
    here: Rc<Here>,
    route: usize,
    /// Which of the route's targets it goes to.
    draw: u64,
    /// Its target, if the route changes it.
    target: Option<String>,
    /// When all of it has to be over.
    until: Option<Instant>,
    /// What it costs, until its response has ended.
    pub meter: Meter,
    /// Given to the request if it came without one.
    fresh_id: Option<String>,
    belonging: Belonging,
    plan: Plan,
    tried: Vec<u64>,
    turn: Option<Turn>,
    /// For whoever looks at requests.
    account: Option<Box<Account>>,
}

/// A request's place in the queue.
struct Turn {
    ticket: Ticket,
    deadline: Deadline,
    until: Instant,
    /// Whether it has looked for a slot since it queued up.
    looked: bool,
    waiting: IntGauge,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.waiting.dec();
    }
}

impl Course {
    /// Begins with the head of a request, `from` whom it is; ends with it, if the balancer answers by itself.
    pub fn begin(worker: &Rc<Worker>, request: &Request, from: &Sender<'_>) -> (Course, Option<Answer>) {
        let here = worker.here();
        let routes = &here.table.routes;
        let found = if routes.are_many() {
            asked(request, |asked| routes.find(request.path(), asked))
        } else {
            Ok(0)
        };
        let index = found.unwrap_or_else(|_| routes.nowhere());
        let route = routes.get(index);
        let belonging = Belonging::of(&route.picking, request, from.address);
        let has_home = route.picking.strategy == Strategy::StickySessions && belonging.key().is_some();
        let fresh_id = headers::request_id(&request.fields).is_none().then(|| {
            let random = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes());
            random.into_uuid().as_hyphenated().to_string()
        });
        let plan = Plan::new(&request.method, has_home, route.retry);
        let meter = Meter::begin(worker, &here, index, &request.method);
        let draw = match (belonging.key(), route.is_split()) {
            (_, false) => 0,
            (None, true) => fastrand::u64(..),
            (Some(Key::Hash(key)), true) => route.draw(key),
            (Some(Key::Home(session)), true) => route.draw(session.key()),
        };
        let mut course = Course {
            until: route.limits.total.map(|total| meter.began() + total),
            target: route.rewrite.target(request.target()),
            meter,
            draw,
            worker: worker.clone(),
            here,
            route: index,
            fresh_id,
            plan,
            belonging,
            tried: Vec::new(),
            account: None,
            turn: None,
        };
        course.account = worker.sight.as_ref().map(|s| s.open(request, from, course.request_id(request)));
        let answer = course.by_itself(request, found.err(), from);
        (course, answer)
    }

    /// What the balancer answers without asking anybody.
    fn by_itself(
        &mut self,
        request: &Request,
        unmatched: Option<Unmatched>,
        from: &Sender<'_>,
    ) -> Option<Answer> {
        match (&request.method, request.path()) {
            (&Method::CONNECT, _) => {
                self.refuse("method");
                Some(Answer::plain(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported"))
            }
            (&Method::GET | &Method::HEAD, METRICS) => {
                self.meter.uncounted();
                let text = (self.worker.exposition)();
                let kind = prometheus::TEXT_FORMAT.into();
                Some(Answer { status: StatusCode::OK, kind, text, fields: Vec::new() })
            }
            _ => unmatched.map(|why| self.lost(why)).or_else(|| self.of_route(request, from)),
        }
    }

    /// There is no route.
    fn lost(&mut self, why: Unmatched) -> Answer {
        let (reason, status) = match why {
            Unmatched::None => ("no_route", StatusCode::NOT_FOUND),
            Unmatched::Misread(_) | Unmatched::Ambiguous => ("path", StatusCode::BAD_REQUEST),
        };
        self.refuse(reason);
        match status {
            StatusCode::NOT_FOUND => Answer::plain(status, "No route for this request"),
            _ => Answer::plain(status, format!("Bad request: {why}")),
        }
    }

    /// How long the client has to wait if there have been too many requests.
    fn too_soon(&self, request: &Request, from: &Sender<'_>) -> Option<Duration> {
        let rate = self.route().rate.as_ref()?;
        let value = match &rate.allowance.by {
            By::Field(name) => request.fields.iter().find(|f| f.text.eq_ignore_ascii_case(name.as_bytes())),
            By::Route | By::Client => None,
        };
        rate.take(from.address, value.map(|f| f.value)).err()
    }

    /// What the route says, if that needs no endpoint.
    fn of_route(&mut self, request: &Request, from: &Sender<'_>) -> Option<Answer> {
        if let Some(wait) = self.too_soon(request, from) {
            self.refuse("rate_limit");
            return Some(Answer::too_many(wait));
        }
        let route = self.route();
        match &route.action {
            Action::Forward(_) | Action::Nowhere => None,
            Action::Answer(own) => {
                let fields = route.response.written().to_vec();
                let (kind, text) = (own.kind.clone().into(), own.text.clone());
                Some(Answer { status: own.status, kind, text, fields })
            }
            Action::Redirect(redirect) => {
                let host = request.host().and_then(|host| std::str::from_utf8(host).ok()).unwrap_or_default();
                let location = redirect.location(from.scheme, host, request.target());
                let mut fields = route.response.written().to_vec();
                fields.extend_from_slice(format!("location: {location}\r\n").as_bytes());
                let text = format!("See {location}");
                Some(Answer { status: redirect.status, kind: PLAIN.into(), text, fields })
            }
        }
    }

    /// How this request is treated.
    pub fn route(&self) -> &Route {
        self.here.table.routes.get(self.route)
    }

    /// What it may take.
    pub fn limits(&self) -> &Limits {
        &self.route().limits
    }

    /// When all of it has to be over, if it has to.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// The path and the query that an endpoint is asked for.
    pub fn target<'a>(&'a self, request: &'a Request) -> &'a str {
        self.target.as_deref().unwrap_or_else(|| request.target())
    }

    /// Names the request in logs, here and at the endpoint.
    pub fn request_id<'a>(&'a self, request: &'a Request) -> &'a str {
        self.fresh_id.as_deref().or_else(|| headers::request_id(&request.fields)).unwrap_or_default()
    }

    /// Its trace, if it is traced here.
    pub fn trail(&self) -> Option<&Trail> {
        self.account.as_ref().and_then(|account| account.trail())
    }

    /// The session that the client is told to keep to, as `NAME=VALUE`.
    pub fn session_to_give(&self) -> Option<&str> {
        self.belonging.cookie()
    }

    /// Whom to send the request to; `None` if it has to wait for its turn, see [`Course::poll_turn`].
    pub fn first(&mut self) -> Option<Result<Arc<Endpoint>, Answer>> {
        let is_waited_for = self.worker.gate.is_waited_for(self.pool_number());
        let picked = if is_waited_for { Err(Missing::Full) } else { self.pick() };
        self.go(picked)
    }

    fn attempt(&mut self, in_flight: InFlight) {
        self.meter.attempt(in_flight);
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
    /// with `left` of the request's body left to send. `None` as for [`Course::first`].
    pub fn next(
        &mut self,
        endpoint: &Arc<Endpoint>,
        fault: Fault,
        what: &str,
        left: retry::Upload,
    ) -> Option<Result<Arc<Endpoint>, Answer>> {
        if let Some(account) = &mut self.account {
            account.failed(endpoint, what);
        }
        let Some(next) = self.after(fault, left, endpoint) else {
            self.because(fault.reason());
            let (status, text) = match fault {
                Fault::Timeout => (StatusCode::GATEWAY_TIMEOUT, "Gateway timeout"),
                _ => (StatusCode::BAD_GATEWAY, "Bad gateway"),
            };
            return Some(Err(Answer::plain(status, format!("{text}: backend {} {what}", endpoint.id))));
        };
        debug!(upstream = %endpoint.id, what, "trying again");
        self.go(next)
    }

    /// Where a further attempt goes, if there is one.
    fn after(
        &mut self,
        fault: Fault,
        left: retry::Upload,
        endpoint: &Arc<Endpoint>,
    ) -> Option<Result<InFlight, Missing>> {
        self.tried.push(endpoint.key);
        let step = self.plan.after(fault, left);
        let next = match step {
            Step::GiveUp => return None,
            Step::Again => None,
            Step::Elsewhere | Step::ElsewhereOrAgain => Some(self.pick()),
        };
        let next = match (next, step) {
            (Some(Err(Missing::Nobody)), Step::Elsewhere) => Some(Ok(self.spare()?)),
            (Some(Err(_)), Step::ElsewhereOrAgain) => None,
            (next, _) => next,
        };
        if !self.worker.budget.borrow_mut().pay_out(Instant::now()) {
            self.worker.metrics.retries_unaffordable.inc();
            return None;
        }
        self.worker.metrics.retries.with_label_values(&[fault.reason()]).inc();
        // Where it is asked again, it has kept its slot.
        next.or_else(|| self.meter.release().map(Ok))
    }

    /// Begins an attempt; queues up if there is no slot for it.
    fn go(&mut self, picked: Result<InFlight, Missing>) -> Option<Result<Arc<Endpoint>, Answer>> {
        match picked {
            Ok(in_flight) => {
                if self.tried.is_empty() {
                    self.worker.budget.borrow_mut().pay_in();
                }
                let endpoint = in_flight.endpoint().clone();
                self.attempt(in_flight);
                Some(Ok(endpoint))
            }
            Err(Missing::Nobody) => {
                self.refuse("no_endpoint");
                Some(Err(Answer::plain(StatusCode::SERVICE_UNAVAILABLE, NO_BACKEND)))
            }
            Err(Missing::Full) => self.queue_up(),
        }
    }

    fn queue_up(&mut self) -> Option<Result<Arc<Endpoint>, Answer>> {
        // An attempt that failed needs no slot any more.
        drop(self.meter.release());
        let queue = self.route().picking.queue;
        let Ok(ticket) = self.worker.gate.enter(self.pool_number(), &self.tried, queue.size) else {
            self.refuse("full");
            return Some(Err(Answer::plain(StatusCode::SERVICE_UNAVAILABLE, ALL_BUSY)));
        };
        let (deadline, waiting) = (self.worker.deadlines.add(), self.worker.metrics.waiting.clone());
        waiting.inc();
        let until = Instant::now() + queue.timeout;
        self.turn = Some(Turn { ticket, deadline, until, looked: false, waiting });
        None
    }

    /// Waits for a turn: whom to send the request to. Dropping the course gives the place up.
    pub fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arc<Endpoint>, Answer>> {
        loop {
            let turn = self.turn.as_mut().expect("it waits only after it was told to");
            // What became free before it had queued up called nobody. But who came first goes first.
            let is_called = turn.ticket.poll(cx).is_ready();
            let is_first = !std::mem::replace(&mut turn.looked, true) && turn.ticket.is_first();
            if !is_called && !is_first {
                if turn.deadline.poll(cx, turn.until).is_pending() {
                    return Poll::Pending;
                }
                self.turn = None;
                self.refuse("waited");
                return Poll::Ready(Err(Answer::plain(StatusCode::SERVICE_UNAVAILABLE, ALL_BUSY)));
            }
            match self.pick() {
                Err(Missing::Full) => {}
                picked => {
                    self.turn = None;
                    let gone = self.go(picked);
                    return Poll::Ready(gone.expect("it does not queue up unless all are full"));
                }
            }
        }
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

    /// Fields that tell the client about the way of its request, whole; none unless that is switched on.
    pub fn facts(&self, request: &Request) -> Vec<u8> {
        let telling = self.worker.telling;
        let debug = telling.debug_headers && asks_for_facts(request);
        let mut out = Vec::new();
        if debug || telling.server_timing {
            let ms = |took: Duration| took.as_secs_f64() * 1e3;
            let (total, attempt) = self.meter.took();
            write(&mut out, format_args!("server-timing: total;dur={:.3}", ms(total)));
            if let Some(attempt) = attempt {
                write(&mut out, format_args!(", upstream;dur={:.3}", ms(attempt)));
            }
            out.extend_from_slice(b"\r\n");
        }
        if debug {
            let endpoint = self.meter.endpoint();
            let attempts = self.meter.attempts();
            let revision = self.here.table.revision;
            write(&mut out, format_args!("x-balancer-route: {}\r\n", visible(&self.route().name)));
            if let Some(endpoint) = endpoint {
                write(&mut out, format_args!("x-balancer-endpoint: {}\r\n", visible(&endpoint.id)));
            }
            write(
                &mut out,
                format_args!("x-balancer-attempts: {attempts}\r\nx-balancer-revision: {revision}\r\n"),
            );
            if let Some(age) = (self.worker.age)() {
                write(&mut out, format_args!("x-balancer-pool-age: {:.3}\r\n", age.as_secs_f64()));
            }
        }
        out
    }

    /// Counts that the balancer refuses the request, for `reason`.
    pub fn refuse(&mut self, reason: &'static str) {
        self.worker.metrics.refused.with_label_values(&[reason]).inc();
        self.because(reason);
    }

    /// A slot at whoever is picked: from the target that has its turn, or from the next that has anybody.
    fn pick(&mut self) -> Result<InFlight, Missing> {
        let (here, latest) = (self.here.clone(), self.latest());
        let route = here.table.routes.get(self.route);
        for selector in self.selectors(route, &latest) {
            match self.pick_from(&route.picking, &latest.table.pools[selector]) {
                Err(Missing::Nobody) => {}
                picked => return picked,
            }
        }
        Err(Missing::Nobody)
    }

    fn pick_from(&mut self, picking: &picker::Settings, pool: &Pool) -> Result<InFlight, Missing> {
        let now = match picking.strategy {
            Strategy::PeakEwma => Instant::now(),
            // Nobody looks at it.
            _ => self.meter.began(),
        };
        for _ in 0..PICKS_MAX {
            let (turn, draw) = (self.worker.turn(), fastrand::u64(..));
            let ask = Ask { turn, draw, now, key: self.belonging.key(), tried: &self.tried };
            let entry = picker::pick(picking, pool, &ask)?;
            // Another worker may have taken the last slot in between.
            if let Some(in_flight) = entry.endpoint.begin_within(picking.requests_max) {
                self.belonging.settle(picking, pool, entry);
                return Ok(in_flight);
            }
        }
        Err(Missing::Full)
    }

    /// For a request that failed everywhere in the rotation: whoever else might answer it.
    fn spare(&mut self) -> Option<InFlight> {
        let (here, latest) = (self.here.clone(), self.latest());
        let route = here.table.routes.get(self.route);
        let turn = self.worker.turn();
        self.selectors(route, &latest).find_map(|selector| {
            let pool = &latest.table.pools[selector];
            let entry = picker::spare(&route.picking, pool, turn, &self.tried)?;
            let in_flight = entry.endpoint.begin_within(route.picking.requests_max)?;
            self.belonging.settle(&route.picking, pool, entry);
            Some(in_flight)
        })
    }

    /// The table's pools that the request may go to, the one that has its turn first. A session that names its endpoint
    /// goes where that is.
    fn selectors<'r>(&self, route: &'r Route, latest: &Here) -> impl Iterator<Item = usize> + use<'r> {
        let home = match self.belonging.key() {
            Some(Key::Home(session)) if route.is_split() => {
                let has_it = |t: &Target| latest.table.pools[t.selector].home(session.endpoint).is_some();
                route.targets(self.draw).find(has_it)
            }
            _ => None,
        };
        let others = route.targets(self.draw).filter(move |t| Some(*t) != home);
        home.into_iter().chain(others).map(|target| target.selector)
    }

    /// Names the queue of those who wait for an endpoint of the pool that has its turn.
    fn pool_number(&self) -> u64 {
        self.route().targets(self.draw).next().map_or(0, |target| target.selector as u64)
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

/// What is asked of `request` to find its route.
pub fn asked<T>(request: &Request, then: impl FnOnce(&Asked<'_>) -> T) -> T {
    let any_field = |name: &str, allows: &dyn Fn(&[u8]) -> bool| {
        request.fields.iter().any(|f| f.text.eq_ignore_ascii_case(name.as_bytes()) && allows(f.value))
    };
    then(&Asked {
        host: request.host(),
        method: &request.method,
        query: request.target().split_once('?').map(|(_, query)| query),
        any_field: &any_field,
    })
}

impl Drop for Course {
    fn drop(&mut self) {
        let (Some(account), Some(sight)) = (self.account.take(), &self.worker.sight) else { return };
        let end = End {
            status: self.meter.status(),
            route: &self.route().name,
            endpoint: self.meter.endpoint(),
            revision: self.here.table.revision,
        };
        sight.close(account, &end);
    }
}

/// Whether a client wants to know about the way of its request.
fn asks_for_facts(request: &Request) -> bool {
    request.fields.iter().any(|f| f.text.eq_ignore_ascii_case(b"x-balancer-debug") && f.value == b"1")
}

/// A name as a field's value may have it.
fn visible(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}
