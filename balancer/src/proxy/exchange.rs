//! One request over HTTP/1: send, try again, answer. Reads top to bottom.
//!
//! What is decided is decided by its [`Course`] and [`headers`]; this file carries it out. What a client did wrong is
//! answered and never held against an endpoint.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::StatusCode;

use super::account::Sender;
use super::connection::{After, Client};
use super::course::{Answer, Course};
use super::deadline;
use super::headers::{self, Arrival, Own, Return};
use super::http1::{Framing, Request, Response};
use super::relay::{Broken, Download, Stopped, Upload, UploadFailure};
use super::retry::Fault;
use super::tunnel;
use super::upstream::{HeadError, Link};
use super::worker::Worker;
use crate::pool::Endpoint;
use crate::report::Failure;
use crate::route::rewrite::Edits;

/// Responses before the one that counts, at most: nobody sends more than a few, and a client need not read them.
const INTERIM_MAX: u32 = 16;

/// Serves `request`, which `client` has sent the head of.
pub async fn serve(worker: &Rc<Worker>, client: &mut Client, request: &mut Request) -> After {
    let mut response = worker.responses.take();
    let protocol = if request.is_1_1 { "HTTP/1.1" } else { "HTTP/1.0" };
    let from = Sender { address: &client.address, scheme: client.stream.scheme(), protocol };
    let (course, answer) = Course::begin(worker, request, &from);
    let upload = Upload::new();
    let mut exchange = Exchange { worker, client, request, response: &mut response, course, upload };
    let after = match answer {
        None => exchange.run().await,
        Some(answer) => exchange.answer_by_itself(answer).await,
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
    course: Course,
    upload: Upload,
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

impl Exchange<'_> {
    /// Attempts until there is a response or nothing left to try.
    async fn run(&mut self) -> After {
        let first = self.course.first();
        let mut endpoint = match self.whom(first).await {
            Ok(endpoint) => endpoint,
            Err(after) => return after,
        };
        let mut fresh = false;
        loop {
            let (fault, what) = match self.attempt(&endpoint, fresh).await {
                Ok(link) => return self.answer(&endpoint, link).await,
                Err(Failed::Client) => return self.blame_client().await,
                Err(Failed::Fault(fault, what)) => (fault, what),
            };
            let next = self.course.next(&endpoint, fault, &what, self.upload.left(self.request));
            endpoint = match self.whom(next).await {
                Ok(next) => next,
                Err(after) => return after,
            };
            fresh = true;
        }
    }

    /// Whom to send the request to, once it is its turn.
    async fn whom(&mut self, told: Option<Result<Arc<Endpoint>, Answer>>) -> Result<Arc<Endpoint>, After> {
        let told = match told {
            Some(told) => told,
            None => poll_fn(|cx| self.poll_turn(cx)).await.ok_or(After::Cut)?,
        };
        match told {
            Ok(endpoint) => Ok(endpoint),
            Err(answer) => Err(self.answer_by_itself(answer).await),
        }
    }

    /// Waits for a turn; nothing comes of it if the client leaves.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Arc<Endpoint>, Answer>>> {
        if let Poll::Ready(told) = self.course.poll_turn(cx) {
            return Poll::Ready(Some(told));
        }
        // While a body is on its way, nobody reads it yet, and so cannot see its end.
        if !self.is_bodiless() || !self.client.input.is_empty() {
            return Poll::Pending;
        }
        match self.client.input.poll_fill(cx, &mut self.client.stream) {
            Poll::Ready(Ok(1..)) | Poll::Pending => Poll::Pending,
            Poll::Ready(_) => Poll::Ready(None),
        }
    }

    fn is_bodiless(&self) -> bool {
        matches!(self.request.framing, Framing::Empty | Framing::Length(0))
    }

    async fn connect(&mut self, endpoint: &Arc<Endpoint>) -> Result<Link, Failed> {
        let connected = match self.course.until() {
            None => self.worker.upstreams.connect(endpoint).await,
            Some(until) => self.worker.upstreams.connect_until(endpoint, until).await,
        };
        let link = connected.map_err(|e| Failed::Fault(Fault::Connect, self.course.cannot_connect(&e)))?;
        self.course.connected();
        Ok(link)
    }

    /// One attempt at one endpoint, until the head of its response is there.
    async fn attempt(&mut self, endpoint: &Arc<Endpoint>, fresh: bool) -> Result<Link, Failed> {
        let kept = (!fresh).then(|| self.worker.upstreams.take(endpoint.key)).flatten();
        let mut link = match kept {
            Some(link) => link,
            None => Box::pin(self.connect(endpoint)).await?,
        };
        self.upload.restart();
        self.write_request(endpoint);
        let mut state = Attempt { takes: true, interim: 0 };
        poll_fn(|cx| self.poll_attempt(cx, &mut link, &mut state)).await?;
        self.course.meter.heard(self.response.status);
        Ok(link)
    }

    /// The head for `endpoint`, to be sent before anybody else writes one.
    fn write_request(&self, endpoint: &Endpoint) {
        let mut head = self.worker.head.borrow_mut();
        head.clear();
        let arrival = Arrival {
            client: &self.client.address,
            scheme: self.client.stream.scheme(),
            target: self.course.target(self.request),
            told_host: self.course.route().rewrite.host.as_deref(),
            edits: &self.course.route().request,
            base_path: &endpoint.address.base_path,
            host: &endpoint.authority,
            id: self.course.request_id(self.request),
            trail: self.course.trail(),
        };
        headers::to_upstream(self.request, &arrival, &mut head);
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
                    self.course.meter.blame(Failure::Broke);
                    let what = format!("sent more than {INTERIM_MAX} interim responses");
                    return Poll::Ready(Err(Failed::Fault(Fault::Broke, what)));
                }
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(why)) => {
                    return Poll::Ready(Err(self.broken(why, link.fault())));
                }
                Poll::Pending => break,
            }
        }
        if self.poll_leaves(cx).is_ready() {
            return Poll::Ready(Err(Failed::Client));
        }
        let limits = self.course.limits();
        match self.upload.waiting && state.takes && !self.upload.over {
            true => {
                let at = self.upload.progress + limits.body_idle;
                ready!(self.client.deadline.poll(cx, self.course.until().map_or(at, |until| at.min(until))));
                self.upload.failed = Some(UploadFailure::Silent);
                Poll::Ready(Err(Failed::Client))
            }
            // Its time begins when it has all of the request; a slow client is not its fault.
            false => {
                let takes = state.takes && self.upload.goes_on(link);
                let limit = if takes { limits.body_idle } else { limits.response_timeout };
                let at = self.upload.progress + limit;
                let (at, limit) = match self.course.until() {
                    Some(until) if until < at => (until, limits.total.unwrap_or(limit)),
                    _ => (at, limit),
                };
                ready!(self.client.deadline.poll(cx, at));
                self.course.meter.blame(Failure::Silent);
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
            edits: &Edits::NONE,
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

    fn broken(&self, why: HeadError, fault: Fault) -> Failed {
        Failed::Fault(fault, self.course.broken(self.request, why, fault))
    }

    /// Answers a client that failed to send its body, if it is still there.
    async fn blame_client(&mut self) -> After {
        match self.upload.failed {
            None | Some(UploadFailure::Left) => {
                self.course.because("client_left");
                After::Cut
            }
            Some(UploadFailure::Silent) => {
                self.course.because("client_silent");
                let text = "The request's body stopped coming";
                self.answer_by_itself(Answer::plain(StatusCode::REQUEST_TIMEOUT, text)).await
            }
            Some(UploadFailure::Malformed(why)) => {
                self.course.refuse("malformed");
                self.answer_by_itself(Answer::plain(StatusCode::BAD_REQUEST, format!("Bad request: {why}")))
                    .await
            }
        }
    }

    /// Passes a response on, whose head has come over `link`.
    async fn answer(&mut self, endpoint: &Endpoint, mut link: Link) -> After {
        if self.response.status == StatusCode::SWITCHING_PROTOCOLS {
            return Box::pin(self.switch(endpoint, link)).await;
        }
        self.course.answered(self.response.status);
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
        if let Err(why) = ended {
            self.course.because(why);
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
        let session = self.course.session_to_give();
        let date = self.worker.date();
        let edits = &self.course.route().response;
        let is_1_1 = self.request.is_1_1;
        let to = Return { is_1_1, framing, keep_alive, session, upgrade, edits, date: &date };
        headers::to_downstream(self.response, &to, &mut head);
        let facts = self.course.facts(self.request);
        if !facts.is_empty() {
            headers::add(&facts, &mut head);
        }
    }

    /// Sends the response on, and what is left of the request. Fails with why it cannot.
    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut Link,
        download: &mut Download,
        takes: &mut bool,
    ) -> Poll<Result<(), &'static str>> {
        let head = self.worker.head.borrow();
        let to = (&mut self.client.output, &mut self.client.stream);
        let downloaded = download.poll(cx, to, link, &head);
        self.course.carried(self.upload.carried, download.carried);
        match downloaded {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(Broken::Client)) => return Poll::Ready(Err("client_left")),
            Poll::Ready(Err(Broken::Endpoint)) => {
                self.course.meter.blame(Failure::Broke);
                return Poll::Ready(Err("upstream_broke"));
            }
            Poll::Pending => {}
        }
        if *takes && self.upload.goes_on(link) {
            match self.upload.poll(cx, self.client, self.request, link, &[]) {
                Poll::Ready(Err(Stopped::Client)) => return Poll::Ready(Err("client_left")),
                Poll::Ready(Err(Stopped::Endpoint | Stopped::Unsent)) => *takes = false,
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        drop(head);
        if self.poll_leaves(cx).is_ready() {
            return Poll::Ready(Err("client_left"));
        }
        let limits = self.course.limits();
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
        let (at, whose) = match self.course.until() {
            Some(until) if until < at => (until, None),
            _ => (at, whose),
        };
        ready!(self.client.deadline.poll(cx, at));
        if let Some(failure) = whose.filter(|_| !may_rest) {
            self.course.meter.blame(failure);
            return Poll::Ready(Err("upstream_silent"));
        }
        Poll::Ready(Err("idle"))
    }

    /// Both sides switch protocols and are joined; the request is in flight until they part.
    async fn switch(&mut self, endpoint: &Endpoint, mut link: Link) -> After {
        let Some(protocol) = self.request.upgrade() else {
            let text = format!("Bad gateway: backend {} switched protocols unasked", endpoint.id);
            self.course.meter.blame(Failure::Broke);
            return self.answer_by_itself(Answer::plain(StatusCode::BAD_GATEWAY, text)).await;
        };
        self.course.answered(self.response.status);
        self.write_response(Framing::Empty, true, Some(protocol));
        let mut download = Download::new(Framing::Empty, false);
        let mut early = (link.input.bytes().to_vec(), self.client.input.bytes().to_vec());
        let until = deadline::now() + self.course.limits().body_idle;
        let switched = poll_fn(|cx| {
            let head = self.worker.head.borrow();
            let to = (&mut self.client.output, &mut self.client.stream);
            if let Poll::Ready(sent) = download.poll(cx, to, &mut link, &head) {
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
        let idle = self.course.limits().tunnel_idle;
        tunnel::run((&mut self.client.stream, &mut early.1), (&mut link.stream, &mut early.0), idle).await;
        After::Close
    }

    /// An answer of the balancer's own. Boxed: see the door.
    fn answer_by_itself(&mut self, answer: Answer) -> Pin<Box<dyn Future<Output = After> + '_>> {
        Box::pin(self.own(answer))
    }

    async fn own(&mut self, Answer { status, kind, text, fields }: Answer) -> After {
        self.course.answered(status);
        self.course.carried(self.upload.carried, text.len() as u64);
        let is_read = self.upload.over || self.is_bodiless();
        let keep_alive = self.request.keep_alive && is_read && self.worker.stopping().is_none();
        let id = Some(self.course.request_id(self.request))
            .filter(|_| status.is_server_error())
            .map(str::to_owned);
        let mut more = self.course.facts(self.request);
        more.extend_from_slice(&fields);
        let own = Own { status, kind: &kind, text: text.as_bytes(), id: id.as_deref(), more: &more };
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
