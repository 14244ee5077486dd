//! One request of an HTTP/2 stream: send, try again, answer. Reads top to bottom.
//!
//! As `proxy/exchange.rs` does for HTTP/1, it carries out what its [`Course`] decides. A client that resets its stream
//! drops all of this, and with it the endpoint's connection.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, StatusCode};
use hyper::body::{Body, Frame, Incoming};
use tracing::debug;

use super::grpc;
use super::heads::{self, Refused};
use super::pipe::Writer;
use super::relay::{Download, Source, Upload};
use super::{Client, Stream};
use crate::pool::Endpoint;
use crate::proxy::account::Sender;
use crate::proxy::course::{Answer, Course};
use crate::proxy::deadline::Deadline;
use crate::proxy::headers::{self, Arrival, Own, Return};
use crate::proxy::http1::{Framing, Request, Response};
use crate::proxy::relay::{Broken, Stopped, UploadFailure};
use crate::proxy::retry::Fault;
use crate::proxy::upstream::{HeadError, Link};
use crate::proxy::worker::Worker;
use crate::report::Failure;
use crate::route::rewrite::Edits;

/// Responses before the one that counts, at most. None is passed on.
const INTERIM_MAX: u32 = 16;

/// Serves `request`, and writes the response into `writer`.
pub async fn serve(client: Client, request: http::Request<Incoming>, writer: Writer) {
    let _stream = Stream::open(&client.streams);
    let worker = client.worker.clone();
    let (parts, incoming) = request.into_parts();
    let mut request = worker.requests.take();
    let mut response = worker.responses.take();
    match read(&parts, incoming.is_end_stream(), &mut request) {
        Err(why) => refuse(&client, &writer, why, parts.method == Method::HEAD).await,
        Ok(()) => {
            let from =
                Sender { address: &client.peer.address, protocol: "HTTP/2", scheme: client.peer.scheme };
            let (course, answer) = Course::begin(&worker, &request, &from);
            let upload = Upload::new(Source::new(incoming, &request));
            let mut exchange = Exchange {
                worker: &worker,
                client: &client,
                request: &request,
                response: &mut response,
                writer: &writer,
                deadline: worker.deadlines.add(),
                course,
                upload,
                head: Vec::new(),
            };
            let has_left = tokio::select! {
                biased;
                () = exchange.run(answer) => false,
                () = writer.gone() => true,
            };
            if has_left {
                exchange.course.because("client_left");
            }
        }
    }
    worker.requests.give_back(request);
    worker.responses.give_back(response);
}

/// Reads the head as the strict codec does.
fn read(parts: &http::request::Parts, is_over: bool, request: &mut Request) -> Result<(), Refused> {
    let mut head = Vec::with_capacity(512);
    heads::to_http1(parts, is_over, &mut head)?;
    Ok(request.parse(&head)?)
}

async fn refuse(client: &Client, writer: &Writer, why: Refused, head_only: bool) {
    let worker = &client.worker;
    worker.metrics.refused.with_label_values(&["malformed"]).inc();
    debug!(peer = &*client.peer.address, %why, "refused a request");
    if let Some(sight) = &worker.sight {
        sight.refused(&client.peer.address, why.status().as_u16(), &why.to_string());
    }
    let text = format!("Bad request: {why}");
    let own = Own { status: why.status(), kind: headers::PLAIN, text: text.as_bytes(), id: None, more: &[] };
    writer.head(own_head(worker, &own));
    send_text(writer, &own, head_only);
    taken(worker, writer).await;
}

/// The head of an answer of the balancer's own.
fn own_head(worker: &Worker, own: &Own<'_>) -> http::Response<()> {
    let mut bytes = Vec::new();
    let date = worker.date();
    let framing = Framing::Length(own.text.len() as u64);
    let to = Return {
        is_1_1: true,
        framing,
        keep_alive: true,
        session: None,
        upgrade: None,
        edits: &Edits::NONE,
        date: &date,
    };
    headers::own(own, &to, true, &mut bytes);
    heads::from_http1(own.status, &bytes).expect("our own fields are valid")
}

/// Hands over its text, and ends it.
fn send_text(writer: &Writer, own: &Own<'_>, head_only: bool) {
    if !head_only && !own.text.is_empty() {
        writer.send(Frame::data(Bytes::copy_from_slice(own.text)));
    }
    writer.end();
}

/// Waits until the client has taken what it was sent, for as long as it may hold up a body.
async fn taken(worker: &Worker, writer: &Writer) -> bool {
    let deadline = worker.deadlines.add();
    let until = crate::proxy::deadline::now() + worker.limits.body_idle;
    poll_fn(|cx| match writer.poll_taken(cx) {
        Poll::Ready(taken) => Poll::Ready(taken.is_ok()),
        Poll::Pending => deadline.poll(cx, until).map(|()| false),
    })
    .await
}

/// What does not change from attempt to attempt.
struct Exchange<'a> {
    worker: &'a Rc<Worker>,
    client: &'a Client,
    request: &'a Request,
    response: &'a mut Response,
    writer: &'a Writer,
    deadline: Deadline,
    course: Course,
    upload: Upload,
    /// For the endpoint, and then for the client.
    head: Vec<u8>,
}

/// How an attempt ended without a response.
enum Failed {
    /// By the endpoint's doing, or nobody's; the text is what the endpoint did, to follow "backend ID".
    Fault(Fault, String),
    /// By the client's: it failed to send its body.
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
    async fn run(&mut self, answer: Option<Answer>) {
        match answer {
            Some(answer) => self.own(answer).await,
            None => {
                if let Err(answer) = self.attempts().await {
                    self.own(answer).await;
                }
            }
        }
    }

    /// Attempts until there is a response, or nothing left to try.
    async fn attempts(&mut self) -> Result<(), Answer> {
        let first = self.course.first();
        let mut endpoint = self.whom(first).await?;
        let mut fresh = false;
        loop {
            let (fault, what) = match self.attempt(&endpoint, fresh).await {
                Ok(link) => return self.answer(&endpoint, link).await,
                Err(Failed::Client) => return self.blame_client(),
                Err(Failed::Fault(fault, what)) => (fault, what),
            };
            let next = self.course.next(&endpoint, fault, &what, self.upload.left(self.request));
            endpoint = self.whom(next).await?;
            fresh = true;
        }
    }

    /// Whom to send the request to, once it is its turn.
    async fn whom(&mut self, told: Option<Result<Arc<Endpoint>, Answer>>) -> Result<Arc<Endpoint>, Answer> {
        match told {
            Some(told) => told,
            None => poll_fn(|cx| self.course.poll_turn(cx)).await,
        }
    }

    /// One attempt at one endpoint, until the head of its response is there.
    async fn attempt(&mut self, endpoint: &Arc<Endpoint>, fresh: bool) -> Result<Link, Failed> {
        let kept = (!fresh).then(|| self.worker.upstreams.take(endpoint.key)).flatten();
        let mut link = match kept {
            Some(link) => link,
            None => {
                let connected = match self.course.until() {
                    None => self.worker.upstreams.connect(endpoint).await,
                    Some(until) => self.worker.upstreams.connect_until(endpoint, until).await,
                };
                let link =
                    connected.map_err(|e| Failed::Fault(Fault::Connect, self.course.cannot_connect(&e)))?;
                self.course.connected();
                link
            }
        };
        self.upload.restart();
        self.write_request(endpoint);
        let mut state = Attempt { takes: true, interim: 0 };
        poll_fn(|cx| self.poll_attempt(cx, &mut link, &mut state)).await?;
        self.course.meter.heard(self.response.status);
        Ok(link)
    }

    fn write_request(&mut self, endpoint: &Endpoint) {
        self.head.clear();
        let arrival = Arrival {
            client: &self.client.peer.address,
            scheme: self.client.peer.scheme,
            target: self.course.target(self.request),
            told_host: self.course.route().rewrite.host.as_deref(),
            edits: &self.course.route().request,
            base_path: &endpoint.address.base_path,
            host: &endpoint.authority,
            id: self.course.request_id(self.request),
            trail: self.course.trail(),
        };
        headers::to_upstream(self.request, &arrival, &mut self.head);
    }

    /// Sends the request while waiting for the head of the response.
    fn poll_attempt(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut Link,
        state: &mut Attempt,
    ) -> Poll<Result<(), Failed>> {
        if state.takes && self.upload.goes_on(link) {
            match self.upload.poll(cx, self.request, link, &self.head) {
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
        if let Poll::Ready(head) = self.poll_head(cx, link, state) {
            return Poll::Ready(head);
        }
        let limits = self.course.limits();
        if self.upload.waiting && state.takes && !self.upload.over {
            let at = self.upload.progress + limits.body_idle;
            ready!(self.deadline.poll(cx, self.course.until().map_or(at, |until| at.min(until))));
            self.upload.failed = Some(UploadFailure::Silent);
            return Poll::Ready(Err(Failed::Client));
        }
        // Its time begins when it has all of the request; a slow client is not its fault.
        let takes = state.takes && self.upload.goes_on(link);
        let limit = if takes { limits.body_idle } else { limits.response_timeout };
        let at = self.upload.progress + limit;
        let (at, limit) = match self.course.until() {
            Some(until) if until < at => (until, limits.total.unwrap_or(limit)),
            _ => (at, limit),
        };
        ready!(self.deadline.poll(cx, at));
        self.course.meter.blame(Failure::Silent);
        let limit = humantime::format_duration(limit);
        Poll::Ready(Err(Failed::Fault(Fault::Timeout, format!("did not answer within {limit}"))))
    }

    /// Waits for the head of the response that counts.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut Link,
        state: &mut Attempt,
    ) -> Poll<Result<(), Failed>> {
        loop {
            if let Err(why) = ready!(link.poll_head(cx, self.response, &self.request.method)) {
                return Poll::Ready(Err(self.broken(why, link.fault())));
            }
            let status = self.response.status;
            if !status.is_informational() {
                return Poll::Ready(Ok(()));
            }
            state.interim += 1;
            let what = match status {
                StatusCode::SWITCHING_PROTOCOLS => "switched protocols unasked".to_owned(),
                _ if state.interim > INTERIM_MAX => {
                    format!("sent more than {INTERIM_MAX} interim responses")
                }
                _ => continue,
            };
            self.course.meter.blame(Failure::Broke);
            return Poll::Ready(Err(Failed::Fault(Fault::Broke, what)));
        }
    }

    fn broken(&self, why: HeadError, fault: Fault) -> Failed {
        Failed::Fault(fault, self.course.broken(self.request, why, fault))
    }

    /// What to answer a client that failed to send its body, if it is still there.
    fn blame_client(&mut self) -> Result<(), Answer> {
        match self.upload.failed {
            None | Some(UploadFailure::Left) => {
                self.course.because("client_left");
                Ok(())
            }
            Some(UploadFailure::Silent) => {
                self.course.because("client_silent");
                let text = "The request's body stopped coming";
                Err(Answer::plain(StatusCode::REQUEST_TIMEOUT, text))
            }
            Some(UploadFailure::Malformed(why)) => {
                self.course.refuse("malformed");
                Err(Answer::plain(StatusCode::BAD_REQUEST, format!("Bad request: {why}")))
            }
        }
    }

    /// Passes a response on, whose head has come over `link`.
    async fn answer(&mut self, endpoint: &Endpoint, mut link: Link) -> Result<(), Answer> {
        let Some(head) = self.write_response() else {
            self.course.meter.blame(Failure::Broke);
            let text = format!("Bad gateway: backend {} sent a field that HTTP/2 cannot have", endpoint.id);
            return Err(Answer::plain(StatusCode::BAD_GATEWAY, text));
        };
        self.course.answered(self.response.status);
        let from = self.response.framing.unwrap_or(Framing::UntilClose);
        let is_empty = matches!(from, Framing::Empty | Framing::Length(0));
        self.writer.head(head);
        if is_empty {
            self.writer.end();
        }
        let mut download = Download::new(from);
        let mut takes = true;
        let ended = poll_fn(|cx| self.poll_answer(cx, &mut link, &mut download, &mut takes)).await;
        if let Err(why) = ended {
            self.course.because(why);
            return Ok(());
        }
        let in_step = self.upload.over && link.input.is_empty() && link.output.is_empty();
        if in_step && download.is_in_step() && self.response.keep_alive {
            self.worker.upstreams.give_back(link);
        }
        Ok(())
    }

    /// The head for the client; `None` if HTTP/2 cannot say it.
    fn write_response(&mut self) -> Option<http::Response<()>> {
        self.head.clear();
        let date = self.worker.date();
        let to = Return {
            is_1_1: true,
            framing: Framing::Empty,
            keep_alive: true,
            session: self.course.session_to_give(),
            upgrade: None,
            edits: &self.course.route().response,
            date: &date,
        };
        headers::to_downstream(self.response, &to, &mut self.head);
        let facts = self.course.facts(self.request);
        if !facts.is_empty() {
            headers::add(&facts, &mut self.head);
        }
        heads::from_http1(self.response.status, &self.head)
    }

    /// Sends the response on, and what is left of the request. Fails with why it cannot.
    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut Link,
        download: &mut Download,
        takes: &mut bool,
    ) -> Poll<Result<(), &'static str>> {
        let downloaded = download.poll(cx, self.writer, link);
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
            match self.upload.poll(cx, self.request, link, &[]) {
                Poll::Ready(Err(Stopped::Client)) => return Poll::Ready(Err("client_left")),
                Poll::Ready(Err(Stopped::Endpoint | Stopped::Unsent)) => *takes = false,
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        let limits = self.course.limits();
        // A call of gRPC may be a stream, too: its client sets a deadline if it wants one.
        let may_rest = headers::is_events(&self.response.fields) || grpc::is_call(&self.request.fields);
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
        ready!(self.deadline.poll(cx, at));
        if let Some(failure) = whose.filter(|_| !may_rest) {
            self.course.meter.blame(failure);
            return Poll::Ready(Err("upstream_silent"));
        }
        Poll::Ready(Err("idle"))
    }

    /// An answer of the balancer's own.
    async fn own(&mut self, Answer { status, kind, text, fields }: Answer) {
        self.course.answered(status);
        self.course.carried(self.upload.carried, text.len() as u64);
        let id = Some(self.course.request_id(self.request)).filter(|_| status.is_server_error());
        let mut more = self.course.facts(self.request);
        more.extend_from_slice(&fields);
        let own = Own { status, kind: &kind, text: text.as_bytes(), id, more: &more };
        let head = own_head(self.worker, &own);
        let is_call = !status.is_success() && grpc::is_call(&self.request.fields);
        if is_call {
            self.writer.head(grpc::trailers_only(head, &text));
            self.writer.end();
        } else {
            self.writer.head(head);
            send_text(self.writer, &own, self.request.method == Method::HEAD);
        }
        taken(self.worker, self.writer).await;
    }
}
