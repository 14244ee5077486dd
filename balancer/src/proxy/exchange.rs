//! One request: route, pick, send, try again, answer. Reads top to bottom.
//!
//! Decisions are [`route`], [`headers`], [`retry`] and the picker's; this file carries them out. What a client
//! did wrong is answered and never held against an endpoint.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER};
use http::request::Parts;
use http::{Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::body::{Download, Patience, Reply, Share, Upload, UploadFailure};
use super::headers::{self, Arrival};
use super::meter::Meter;
use super::retry::{Fault, Plan, Step};
use super::route::{self, Routed};
use super::socket::Phase;
use super::tunnel;
use super::upstream::{ConnectError, Lease};
use super::worker::Worker;
use crate::pool::Endpoint;
use crate::report::Failure;

/// The body of a 503, the original's.
const NO_BACKEND: &str = "No healthy backend available";

/// Serves one request of a client.
pub async fn serve(
    worker: Rc<Worker>,
    phase: Phase,
    client: IpAddr,
    request: Request<Incoming>,
) -> Response<Reply> {
    phase.begin(!request.body().is_end_stream());
    let mut meter = Meter::begin(&worker, &phase, request.method(), route::ALL);
    match route::route(request.method(), request.uri()) {
        Routed::OwnMetrics => {
            meter.uncounted();
            let mut response = own(StatusCode::OK, (worker.exposition)(), meter);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT));
            return response;
        }
        Routed::Unsupported => {
            worker.metrics.refused.with_label_values(&["method"]).inc();
            return own(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported", meter);
        }
        Routed::Pool(_) => {}
    }
    if let Err(why) = headers::check(request.version(), request.uri(), request.headers()) {
        worker.metrics.refused.with_label_values(&["malformed"]).inc();
        return own(StatusCode::BAD_REQUEST, format!("Bad request: {why}"), meter);
    }
    Exchange::new(&worker, phase, client, request, meter).run().await
}

/// What does not change from attempt to attempt.
struct Exchange {
    worker: Rc<Worker>,
    meter: Meter,
    parts: Parts,
    upload: Upload,
    /// The client's half of an upgrade, if it asks for one.
    upgrade: Option<OnUpgrade>,
    /// It names no host, as HTTP/1.0 allows; HTTP/1.1, which an endpoint is spoken to in, does not.
    hostless: bool,
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
struct Failed {
    fault: Fault,
    /// What the endpoint did, to follow "backend ID".
    what: String,
    /// Given back if nothing of it was sent.
    headers: Option<HeaderMap>,
}

impl Exchange {
    fn new(
        worker: &Rc<Worker>,
        phase: Phase,
        client: IpAddr,
        mut request: Request<Incoming>,
        meter: Meter,
    ) -> Exchange {
        let protocol = headers::upgrade(request.method(), request.headers());
        let upgrade = protocol.is_some().then(|| hyper::upgrade::on(&mut request));
        let (mut parts, incoming) = request.into_parts();
        let session = match worker.is_sticky() {
            false => Session::None,
            true => match headers::session(&parts.headers) {
                Some(key) => Session::Brought(key.to_owned()),
                None => Session::Fresh(format!("{:032x}", fastrand::u128(..))),
            },
        };
        let arrival = Arrival { client, upgrade: protocol, uri: &parts.uri, fresh_id: fastrand::u128(..) };
        headers::to_upstream(&mut parts.headers, arrival);
        Exchange {
            plan: Plan::new(&parts.method, session.key().is_some()),
            upload: Upload::new(incoming, phase, worker.limits.body_idle),
            worker: worker.clone(),
            meter,
            hostless: !parts.headers.contains_key(HOST),
            parts,
            upgrade,
            session,
            tried: Vec::new(),
        }
    }

    /// Attempts until there is a response or nothing left to try.
    async fn run(mut self) -> Response<Reply> {
        let Some(mut endpoint) = self.worker.pick(self.session.key(), &self.tried) else {
            self.worker.metrics.refused.with_label_values(&["no_endpoint"]).inc();
            let mut response = own(StatusCode::SERVICE_UNAVAILABLE, NO_BACKEND, self.meter);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return response;
        };
        let mut fresh = false;
        loop {
            self.meter.attempt(&endpoint);
            let failed = match self.attempt(&endpoint, fresh).await {
                Ok((response, lease)) => return self.answer(&endpoint, response, lease),
                Err(failed) => failed,
            };
            let (fault, what) = (failed.fault, failed.what.clone());
            let Some(next) = self.after(failed, &endpoint) else {
                return self.give_up(&endpoint, fault, &what);
            };
            debug!(upstream = %endpoint.id, next = %next.id, what, "trying again");
            endpoint = next;
            fresh = true;
        }
    }

    /// One attempt at one endpoint.
    async fn attempt(
        &mut self,
        endpoint: &Arc<Endpoint>,
        fresh: bool,
    ) -> Result<(Response<Incoming>, Lease), Failed> {
        let upstreams = self.worker.upstreams.clone();
        let mut lease = upstreams.lease(endpoint, fresh).await.map_err(|e| self.cannot_connect(e))?;
        let request = self.request(endpoint);
        let limit = self.worker.limits.response_timeout;
        let response = lease.sender().try_send_request(request);
        tokio::pin!(response);
        let began = Instant::now();
        let mut until = began + limit;
        loop {
            tokio::select! {
                biased;
                result = &mut response => return match result {
                    Ok(response) => {
                        endpoint.reached();
                        Ok((response, lease))
                    }
                    Err(error) => Err(self.broken(error, lease.reused)),
                },
                () = sleep_until(until) => {}
            }
            // The endpoint's time begins when it has all of the request; a slow client is not its fault.
            until = self.upload.handed_over(began).unwrap_or_else(Instant::now) + limit;
            if until <= Instant::now() {
                break;
            }
        }
        self.meter.blame(Failure::Silent);
        let what = format!("did not answer within {}", humantime::format_duration(limit));
        Err(Failed { fault: Fault::Timeout, what, headers: None })
    }

    /// The request for `endpoint`. Keeps a copy of its headers only if it may have to be sent twice.
    fn request(&mut self, endpoint: &Endpoint) -> Request<Share> {
        let mut request = Request::new(self.upload.share());
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = headers::target(&endpoint.address.base_path, &self.parts.uri);
        *request.version_mut() = Version::HTTP_11;
        *request.headers_mut() = match self.plan.may_replay() {
            true => self.parts.headers.clone(),
            false => std::mem::take(&mut self.parts.headers),
        };
        if let (true, Ok(host)) = (self.hostless, HeaderValue::from_str(&endpoint.authority)) {
            request.headers_mut().insert(HOST, host);
        }
        request
    }

    fn cannot_connect(&self, error: ConnectError) -> Failed {
        self.worker.metrics.connect_failures.inc();
        match error {
            ConnectError::Refused => self.meter.blame(Failure::Refused),
            ConnectError::Timeout(_) | ConnectError::Other(_) => self.meter.blame(Failure::Unreachable),
            // Ours, and no endpoint's.
            ConnectError::Local(_) => {}
        }
        Failed { fault: Fault::Connect, what: error.to_string(), headers: None }
    }

    fn broken(&self, mut error: hyper::client::conn::TrySendError<Request<Share>>, reused: bool) -> Failed {
        let headers = error.take_message().map(|m| m.into_parts().0.headers);
        let fault = match (&headers, reused) {
            (Some(_), _) => Fault::Unsent,
            (None, true) => Fault::Stale,
            (None, false) => Fault::Broke,
        };
        // Neither a client that stopped sending nor a failed upgrade says anything about the endpoint.
        if self.upload.failed().is_none() && self.upgrade.is_none() {
            self.meter.blame(if fault == Fault::Broke { Failure::Broke } else { Failure::Reset });
        }
        let what = match error.error().is_parse() {
            true => format!("sent what is not HTTP: {}", error.error()),
            false => "closed the connection without a response".to_owned(),
        };
        Failed { fault, what, headers }
    }

    /// Whom to ask after a failed attempt at `endpoint`; `None` if nobody.
    fn after(&mut self, failed: Failed, endpoint: &Arc<Endpoint>) -> Option<Arc<Endpoint>> {
        if let Some(headers) = failed.headers {
            self.parts.headers = headers;
        }
        if self.upload.failed().is_some() {
            return None;
        }
        self.tried.push(endpoint.key);
        let elsewhere = |me: &Exchange| me.worker.pick(me.session.key(), &me.tried);
        let next = match self.plan.after(failed.fault, self.upload.left()) {
            Step::GiveUp => None,
            Step::Again => Some(endpoint.clone()),
            Step::Elsewhere => elsewhere(self).or_else(|| self.worker.spare(&self.tried)),
            Step::ElsewhereOrAgain => elsewhere(self).or_else(|| Some(endpoint.clone())),
        };
        if next.is_some() {
            self.worker.metrics.retries.with_label_values(&[failed.fault.reason()]).inc();
        }
        next
    }

    fn give_up(self, endpoint: &Endpoint, fault: Fault, what: &str) -> Response<Reply> {
        let (status, text) = match (self.upload.failed(), fault) {
            (Some(UploadFailure::Silent), _) => {
                (StatusCode::REQUEST_TIMEOUT, "The request's body stopped coming".to_owned())
            }
            (Some(UploadFailure::Broken), _) => {
                (StatusCode::BAD_REQUEST, "The request's body broke off".to_owned())
            }
            (None, Fault::Timeout) => {
                (StatusCode::GATEWAY_TIMEOUT, format!("Gateway timeout: backend {} {what}", endpoint.id))
            }
            (None, Fault::Connect | Fault::Unsent | Fault::Stale | Fault::Broke) => {
                (StatusCode::BAD_GATEWAY, format!("Bad gateway: backend {} {what}", endpoint.id))
            }
        };
        let id = headers::request_id(&self.parts.headers).cloned();
        let mut response = own(status, text, self.meter);
        response.headers_mut().extend(id.map(|id| (headers::X_REQUEST_ID, id)));
        response
    }

    /// Passes a response on.
    fn answer(self, endpoint: &Endpoint, response: Response<Incoming>, lease: Lease) -> Response<Reply> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(endpoint, response);
        }
        let mut meter = self.meter;
        let (mut head, incoming) = response.into_parts();
        let patience = match headers::is_events(&head.headers) {
            true => Patience { idle: self.worker.limits.tunnel_idle, may_rest: true },
            false => Patience { idle: self.worker.limits.body_idle, may_rest: false },
        };
        let closes = meter.answered(head.status);
        headers::to_downstream(&mut head.headers);
        if closes {
            head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Session::Fresh(key) = &self.session {
            headers::set_session(&mut head.headers, key);
        }
        passed(head, Reply::Upstream(Download::new(incoming, lease, self.upload, patience, meter)))
    }

    /// Both sides switch protocols and are joined; the request is in flight until they part.
    fn switch(mut self, endpoint: &Endpoint, mut response: Response<Incoming>) -> Response<Reply> {
        let Some(downstream) = self.upgrade.take() else {
            let text = format!("Bad gateway: backend {} switched protocols unasked", endpoint.id);
            return own(StatusCode::BAD_GATEWAY, text, self.meter);
        };
        let upstream = hyper::upgrade::on(&mut response);
        let (mut head, _) = response.into_parts();
        self.meter.answered(head.status);
        headers::to_downstream_switching(&mut head.headers);
        let idle = self.worker.limits.tunnel_idle;
        self.worker.tasks.spawn_local(tunnel::run(downstream, upstream, idle, self.meter));
        passed(head, Reply::own("", None))
    }
}

/// An endpoint's head with our body. Always HTTP/1.1 for the client's library to lower if it must.
fn passed(head: http::response::Parts, body: Reply) -> Response<Reply> {
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
}

/// An answer of the balancer's own.
fn own(status: StatusCode, text: impl Into<bytes::Bytes>, mut meter: Meter) -> Response<Reply> {
    let closes = meter.answered(status);
    let mut response = Response::new(Reply::own(text, Some(meter)));
    *response.status_mut() = status;
    if closes {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
