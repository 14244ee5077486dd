//! One request: route, pick, send, try again, answer. Reads top to bottom.
//!
//! Decisions are [`route`], [`headers`], [`retry`] and the picker's; this file carries them out. What a client
//! did wrong is answered and never held against an endpoint.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http::StatusCode;
use tracing::debug;

use super::connection::{After, Client};
use super::headers::{self, Arrival, Own, PLAIN, Return};
use super::http1::{Framing, Request, Response};
use super::meter::Meter;
use super::relay::{Broken, Download, Stopped, Upload, UploadFailure};
use super::retry::{Fault, Plan, Step};
use super::route::{self, Routed};
use super::tunnel;
use super::upstream::{ConnectError, HeadError, Link};
use super::worker::Worker;
use crate::pool::Endpoint;
use crate::report::Failure;

/// The body of a 503, the original's.
const NO_BACKEND: &str = "No healthy backend available";

/// Responses before the one that counts, at most: nobody sends more than a few, and a client need not read them.
const INTERIM_MAX: u32 = 16;

/// Serves `request`, which `client` has sent the head of.
pub async fn serve(worker: &Rc<Worker>, client: &mut Client, request: &mut Request) -> After {
    let meter = Meter::begin(worker, &request.method, route::ALL);
    let routed = route::route(&request.method, request.path());
    let mut response = worker.responses.take();
    let mut exchange = Exchange::new(worker, client, request, &mut response, meter);
    let after = match routed {
        Routed::OwnMetrics => {
            exchange.meter.uncounted();
            let text = (worker.exposition)();
            exchange.own(StatusCode::OK, prometheus::TEXT_FORMAT, &text).await
        }
        Routed::Unsupported => {
            worker.metrics.refused.with_label_values(&["method"]).inc();
            exchange.own(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "CONNECT is not supported").await
        }
        Routed::Pool(_) => exchange.run().await,
    };
    drop(exchange);
    worker.responses.give_back(response);
    after
}

/// What does not change from attempt to attempt.
struct Exchange<'a> {
    worker: &'a Rc<Worker>,
    client: &'a mut Client,
    request: &'a mut Request,
    response: &'a mut Response,
    meter: Meter,
    upload: Upload,
    /// Given to the request if it came without one.
    fresh_id: Option<String>,
    session: Session,
    plan: Plan,
    tried: Vec<u64>,
}

/// The session of a request, where sessions decide.
enum Session {
    None,
    Brought(String),
    Fresh(String),
}

impl Session {
    fn key(&self) -> Option<&str> {
        match self {
            Session::None => None,
            Session::Brought(key) | Session::Fresh(key) => Some(key),
        }
    }
}

/// How an attempt ended without a response.
enum Failed {
    /// By the endpoint's doing, or nobody's; the text is what the endpoint did, to follow "backend ID".
    Fault(Fault, String),
    /// By the client's: it has left, or failed to send its body.
    Client,
}

/// Where an attempt is.
struct Attempt {
    /// Whether the endpoint still reads the request.
    takes: bool,
    /// Interim responses that have come.
    interim: u32,
}

impl<'a> Exchange<'a> {
    fn new(
        worker: &'a Rc<Worker>,
        client: &'a mut Client,
        request: &'a mut Request,
        response: &'a mut Response,
        meter: Meter,
    ) -> Exchange<'a> {
        let session = match worker.is_sticky() {
            false => Session::None,
            true => match headers::session(&request.fields) {
                Some(key) => Session::Brought(key.to_owned()),
                None => Session::Fresh(format!("{:032x}", fastrand::u128(..))),
            },
        };
        let fresh_id = headers::request_id(&request.fields).is_none().then(|| {
            let random = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes());
            random.into_uuid().as_hyphenated().to_string()
        });
        Exchange {
            plan: Plan::new(&request.method, session.key().is_some()),
            upload: Upload::new(),
            worker,
            client,
            request,
            response,
            meter,
            fresh_id,
            session,
            tried: Vec::new(),
        }
    }

    /// Attempts until there is a response or nothing left to try.
    async fn run(&mut self) -> After {
        let Some(mut endpoint) = self.worker.pick(self.session.key(), &self.tried) else {
            self.worker.metrics.refused.with_label_values(&["no_endpoint"]).inc();
            return self.own(StatusCode::SERVICE_UNAVAILABLE, PLAIN, NO_BACKEND).await;
        };
        self.worker.budget.borrow_mut().pay_in();
        let mut fresh = false;
        loop {
            self.meter.attempt(&endpoint);
            let (fault, what) = match self.attempt(&endpoint, fresh).await {
                Ok(link) => return self.answer(&endpoint, link).await,
                Err(Failed::Client) => return self.blame_client().await,
                Err(Failed::Fault(fault, what)) => (fault, what),
            };
            let Some(next) = self.after(fault, &endpoint) else {
                let (status, text) = match fault {
                    Fault::Timeout => (StatusCode::GATEWAY_TIMEOUT, "Gateway timeout"),
                    _ => (StatusCode::BAD_GATEWAY, "Bad gateway"),
                };
                return self.own(status, PLAIN, &format!("{text}: backend {} {what}", endpoint.id)).await;
            };
            debug!(upstream = %endpoint.id, next = %next.id, what, "trying again");
            endpoint = next;
            fresh = true;
        }
    }

    /// One attempt at one endpoint, until the head of its response is there.
    async fn attempt(&mut self, endpoint: &Arc<Endpoint>, fresh: bool) -> Result<Link, Failed> {
        let kept = (!fresh).then(|| self.worker.upstreams.take(endpoint.key)).flatten();
        let mut link = match kept {
            Some(link) => link,
            None => self.worker.upstreams.connect(endpoint).await.map_err(|e| self.cannot_connect(e))?,
        };
        self.upload.restart();
        self.write_request(endpoint);
        let mut state = Attempt { takes: true, interim: 0 };
        poll_fn(|cx| self.poll_attempt(cx, &mut link, &mut state)).await?;
        endpoint.reached();
        Ok(link)
    }

    /// The head for `endpoint`, to be sent before anybody else writes one.
    fn write_request(&self, endpoint: &Endpoint) {
        let mut head = self.worker.head.borrow_mut();
        head.clear();
        let arrival = Arrival {
            client: &self.client.address,
            base_path: &endpoint.address.base_path,
            host: &endpoint.authority,
            id: self.request_id(),
        };
        headers::to_upstream(self.request, &arrival, &mut head);
    }

    fn request_id(&self) -> &str {
        self.fresh_id.as_deref().or_else(|| headers::request_id(&self.request.fields)).unwrap_or_default()
    }

    /// Sends the request while waiting for the head of the response.
    fn poll_attempt(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut Link,
        state: &mut Attempt,
    ) -> Poll<Result<(), Failed>> {
        if state.takes && self.upload.goes_on(link) {
            let head = self.worker.head.borrow();
            match self.upload.poll(cx, self.client, self.request, link, &head) {
                Poll::Ready(Err(Stopped::Client)) => return Poll::Ready(Err(Failed::Client)),
                Poll::Ready(Err(Stopped::Unsent)) => {
                    let fault = if link.reused { Fault::Unsent } else { Fault::Connect };
                    return Poll::Ready(Err(self.broken(HeadError::Closed, fault)));
                }
                // It may have said why.
                Poll::Ready(Err(Stopped::Endpoint)) => state.takes = false,
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        loop {
            match link.poll_head(cx, self.response, &self.request.method) {
                Poll::Ready(Ok(())) if self.is_interim() && state.interim < INTERIM_MAX => {
                    state.interim += 1;
                    self.pass_interim(cx);
                }
                Poll::Ready(Ok(())) if self.is_interim() => {
                    self.meter.blame(Failure::Broke);
                    let what = format!("sent more than {INTERIM_MAX} interim responses");
                    return Poll::Ready(Err(Failed::Fault(Fault::Broke, what)));
                }
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(why)) => {
                    let stale = link.reused && !link.heard;
                    let fault = if stale { Fault::Stale } else { Fault::Broke };
                    return Poll::Ready(Err(self.broken(why, fault)));
                }
                Poll::Pending => break,
            }
        }
        if self.poll_leaves(cx).is_ready() {
            return Poll::Ready(Err(Failed::Client));
        }
        let limits = &self.worker.limits;
        match self.upload.waiting && state.takes && !self.upload.over {
            true => {
                ready!(self.client.deadline.poll(cx, self.upload.progress + limits.body_idle));
                self.upload.failed = Some(UploadFailure::Silent);
                Poll::Ready(Err(Failed::Client))
            }
            // Its time begins when it has all of the request; a slow client is not its fault.
            false => {
                let takes = state.takes && self.upload.goes_on(link);
                let limit = if takes { limits.body_idle } else { limits.response_timeout };
                ready!(self.client.deadline.poll(cx, self.upload.progress + limit));
                self.meter.blame(Failure::Silent);
                let limit = humantime::format_duration(limit);
                Poll::Ready(Err(Failed::Fault(Fault::Timeout, format!("did not answer within {limit}"))))
            }
        }
    }

    /// Whether a response comes before the one that counts (RFC 9110 §15.2).
    fn is_interim(&self) -> bool {
        let status = self.response.status;
        status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
    }

    /// Passes on what HTTP/1.1 clients may use, such as early hints. The invitation to send a body was ours.
    fn pass_interim(&mut self, cx: &mut Context<'_>) {
        if !self.request.is_1_1 || self.response.status == StatusCode::CONTINUE {
            return;
        }
        let date = self.worker.date();
        let to = Return {
            is_1_1: true,
            framing: Framing::Empty,
            keep_alive: true,
            session: None,
            upgrade: None,
            date: &date,
        };
        let mut head = Vec::new();
        headers::to_downstream(self.response, &to, &mut head);
        // If the client does not take it, it will not take the response either.
        let _ = self.client.output.send(cx, &mut self.client.stream, &[&head]);
    }

    /// Ready once a client that has nothing more to send for this request has left.
    fn poll_leaves(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.upload.over || !self.client.input.is_empty() {
            return Poll::Pending;
        }
        match self.client.input.poll_fill(cx, &mut self.client.stream) {
            // A further request, sent ahead.
            Poll::Ready(Ok(1..)) | Poll::Pending => Poll::Pending,
            Poll::Ready(_) => Poll::Ready(()),
        }
    }

    fn cannot_connect(&self, error: ConnectError) -> Failed {
        self.worker.metrics.connect_failures.inc();
        match error {
            ConnectError::Refused => self.meter.blame(Failure::Refused),
            ConnectError::Timeout(_) | ConnectError::Other(_) => self.meter.blame(Failure::Unreachable),
            // Ours, and no endpoint's.
            ConnectError::Local(_) => {}
        }
        Failed::Fault(Fault::Connect, error.to_string())
    }

    fn broken(&self, why: HeadError, fault: Fault) -> Failed {
        // A failed upgrade says nothing about the endpoint.
        if self.request.upgrade().is_none() {
            self.meter.blame(if fault == Fault::Broke { Failure::Broke } else { Failure::Reset });
        }
        Failed::Fault(fault, why.to_string())
    }

    /// Whom to ask after a failed attempt at `endpoint`; `None` if nobody.
    fn after(&mut self, fault: Fault, endpoint: &Arc<Endpoint>) -> Option<Arc<Endpoint>> {
        self.tried.push(endpoint.key);
        let elsewhere = |me: &Exchange<'_>| me.worker.pick(me.session.key(), &me.tried);
        let next = match self.plan.after(fault, self.upload.left(self.request)) {
            Step::GiveUp => None,
            Step::Again => Some(endpoint.clone()),
            Step::Elsewhere => elsewhere(self).or_else(|| self.worker.spare(&self.tried)),
            Step::ElsewhereOrAgain => elsewhere(self).or_else(|| Some(endpoint.clone())),
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

    /// Answers a client that failed to send its body, if it is still there.
    async fn blame_client(&mut self) -> After {
        match self.upload.failed {
            None | Some(UploadFailure::Left) => After::Cut,
            Some(UploadFailure::Silent) => {
                self.own(StatusCode::REQUEST_TIMEOUT, PLAIN, "The request's body stopped coming").await
            }
            Some(UploadFailure::Malformed(why)) => {
                self.worker.metrics.refused.with_label_values(&["malformed"]).inc();
                self.own(StatusCode::BAD_REQUEST, PLAIN, &format!("Bad request: {why}")).await
            }
        }
    }

    /// Passes a response on, whose head has come over `link`.
    async fn answer(&mut self, endpoint: &Endpoint, mut link: Link) -> After {
        if self.response.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(endpoint, link).await;
        }
        self.meter.answered(self.response.status);
        self.upload.answered();
        let from = self.response.framing.unwrap_or(Framing::UntilClose);
        let framing = match (from, self.request.is_1_1) {
            (Framing::Chunked | Framing::UntilClose, true) => Framing::Chunked,
            (Framing::Chunked | Framing::UntilClose, false) => Framing::UntilClose,
            (Framing::Empty | Framing::Length(_), _) => from,
        };
        // A client that has not sent everything yet could not tell where its next request begins to count.
        let keep_alive = self.request.keep_alive
            && self.upload.over
            && framing != Framing::UntilClose
            && self.worker.stopping().is_none();
        self.write_response(framing, keep_alive, None);
        let mut download = Download::new(from, framing == Framing::Chunked);
        let mut takes = true;
        let ended = poll_fn(|cx| self.poll_answer(cx, &mut link, &mut download, &mut takes)).await;
        if ended.is_err() {
            return After::Cut;
        }
        let in_step = self.upload.over && link.input.is_empty() && link.output.is_empty();
        if in_step && download.is_in_step() && self.response.keep_alive {
            self.worker.upstreams.give_back(link);
        }
        match keep_alive {
            true => self.next(),
            false if self.upload.over => After::Close,
            false => After::Linger,
        }
    }

    /// The head for the client, to be sent before anybody else writes one.
    fn write_response(&self, framing: Framing, keep_alive: bool, upgrade: Option<&[u8]>) {
        let mut head = self.worker.head.borrow_mut();
        head.clear();
        let session = match &self.session {
            Session::Fresh(key) => Some(key.as_str()),
            Session::None | Session::Brought(_) => None,
        };
        let date = self.worker.date();
        let to = Return { is_1_1: self.request.is_1_1, framing, keep_alive, session, upgrade, date: &date };
        headers::to_downstream(self.response, &to, &mut head);
    }

    /// Sends the response on, and what is left of the request.
    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut Link,
        download: &mut Download,
        takes: &mut bool,
    ) -> Poll<Result<(), ()>> {
        let head = self.worker.head.borrow();
        match download.poll(cx, self.client, link, &head) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(Broken::Client)) => return Poll::Ready(Err(())),
            Poll::Ready(Err(Broken::Endpoint)) => {
                self.meter.blame(Failure::Broke);
                return Poll::Ready(Err(()));
            }
            Poll::Pending => {}
        }
        if *takes && self.upload.goes_on(link) {
            match self.upload.poll(cx, self.client, self.request, link, &[]) {
                Poll::Ready(Err(Stopped::Client)) => return Poll::Ready(Err(())),
                Poll::Ready(Err(Stopped::Endpoint | Stopped::Unsent)) => *takes = false,
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        drop(head);
        if self.poll_leaves(cx).is_ready() {
            return Poll::Ready(Err(()));
        }
        let limits = &self.worker.limits;
        let may_rest = headers::is_events(&self.response.fields);
        let rest = if may_rest { limits.tunnel_idle } else { limits.body_idle };
        let uploads = *takes && !self.upload.over;
        let progress = download.progress.max(self.upload.progress);
        let (at, whose) = match (download.waiting, uploads && self.upload.waiting) {
            // While the endpoint waits for the client, so may the client for it.
            (true, true) => (progress + rest, None),
            (true, false) => (progress + rest, Some(Failure::Silent)),
            (false, _) => (progress + limits.body_idle, None),
        };
        ready!(self.client.deadline.poll(cx, at));
        if let Some(failure) = whose.filter(|_| !may_rest) {
            self.meter.blame(failure);
        }
        Poll::Ready(Err(()))
    }

    /// Both sides switch protocols and are joined; the request is in flight until they part.
    async fn switch(&mut self, endpoint: &Endpoint, mut link: Link) -> After {
        let Some(protocol) = self.request.upgrade() else {
            let text = format!("Bad gateway: backend {} switched protocols unasked", endpoint.id);
            self.meter.blame(Failure::Broke);
            return self.own(StatusCode::BAD_GATEWAY, PLAIN, &text).await;
        };
        self.meter.answered(self.response.status);
        self.write_response(Framing::Empty, true, Some(protocol));
        let mut download = Download::new(Framing::Empty, false);
        let mut early = (link.input.bytes().to_vec(), self.client.input.bytes().to_vec());
        let until = Instant::now() + self.worker.limits.body_idle;
        let switched = poll_fn(|cx| {
            let head = self.worker.head.borrow();
            if let Poll::Ready(sent) = download.poll(cx, self.client, &mut link, &head) {
                return Poll::Ready(sent.is_ok());
            }
            drop(head);
            self.client.deadline.poll(cx, until).map(|()| false)
        });
        if !switched.await {
            return After::Cut;
        }
        link.input.consume(early.0.len());
        self.client.input.consume(early.1.len());
        self.client.deadline.clear();
        let idle = self.worker.limits.tunnel_idle;
        tunnel::run((&mut self.client.stream, &mut early.1), (&mut link.stream, &mut early.0), idle).await;
        After::Close
    }

    /// An answer of the balancer's own.
    async fn own(&mut self, status: StatusCode, kind: &str, text: &str) -> After {
        self.meter.answered(status);
        let is_bodiless = matches!(self.request.framing, Framing::Empty | Framing::Length(0));
        let is_read = self.upload.over || is_bodiless;
        let keep_alive = self.request.keep_alive && is_read && self.worker.stopping().is_none();
        let id = Some(self.request_id()).filter(|_| status.is_server_error()).map(str::to_owned);
        let own = Own { status, kind, text: text.as_bytes(), id: id.as_deref() };
        let head_only = self.request.method == http::Method::HEAD;
        let taken = self.client.answer(&own, self.request.is_1_1, keep_alive, head_only).await;
        match (taken, keep_alive, is_read) {
            (false, ..) => After::Cut,
            (true, true, _) => self.next(),
            (true, false, true) => After::Close,
            (true, false, false) => After::Linger,
        }
    }

    /// The request has been answered and its connection serves another one.
    fn next(&mut self) -> After {
        match self.client.requests.finish(self.request) {
            true => After::KeepAlive,
            false => After::Close,
        }
    }
}
