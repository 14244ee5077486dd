//! HTTP/2 to endpoints that speak it by prior knowledge (RFC 9113 §3.3), gRPC above all: a few connections to each, which
//! many requests share.
//!
//! Whoever carries a request out speaks HTTP/1 to every endpoint. To one of these it does so through a pipe in memory: a
//! task at the other end reads the request, asks over a stream of its own and writes the response as HTTP/1. So
//! attempts, time limits, backpressure, trailers and whatever else is decided about a request are the same
//! for both, and so is what happens if the client leaves: the pipe closes, and the stream is reset.
//!
//! # Why not PING
//! gRPC's servers take a client that sends one now and then on a connection without data for an attacker
//! (`too_many_pings`), and close it with the calls that wait on it. The kernel is asked instead: what it sent must be
//! acknowledged, and a connection that rests is probed.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::error::Error as _;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tracing::debug;

use super::ConnectError;
use crate::proxy::deadline;
use crate::proxy::http1::{self, Framing, Lines, Pieces, chunk_head};
use crate::proxy::retry::Fault;

/// Requests on one connection at a time, at most; an endpoint may allow fewer. One more opens another connection.
const STREAMS_MAX: usize = 100;

/// What an endpoint may send of one response, and of all of a connection, before it is taken.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// What is kept of one request while the endpoint does not take it.
const SEND_BYTES_MAX: usize = 128 * 1024;

/// What is in a pipe each way, at most.
const PIPE_BYTES: usize = 32 * 1024;

/// What is read from a pipe at once.
const READ_BYTES: usize = 16 * 1024;

/// How long what was sent may stay unacknowledged, and how often a connection that rests is probed.
const SILENCE: Duration = Duration::from_secs(20);
const PROBE_EVERY: Duration = Duration::from_secs(15);

/// Fields of a head as it is written here: those of a client's, and our own.
const FIELDS_MAX: usize = 192;

/// The connections of one worker.
pub struct Connections {
    homes: RefCell<HashMap<u64, Rc<Home>>>,
    idle: Duration,
    head_bytes_max: u32,
}

/// Those to one endpoint.
#[derive(Default)]
struct Home {
    list: RefCell<Vec<Rc<Connection>>>,
    /// Held while another one is made, which others then share.
    making: tokio::sync::Mutex<()>,
}

/// What moves the bytes of a connection; nothing once that has ended.
type Driver = Rc<RefCell<Option<http2::Connection<TokioIo<TcpStream>, Upload, Local>>>>;

struct Connection {
    sender: SendRequest<Upload>,
    /// Knows how many the endpoint allows at a time.
    driver: Driver,
    /// Requests that use it.
    open: Cell<usize>,
    /// When the last one of them ended.
    since: Cell<Instant>,
    /// Whether it takes no more: the endpoint said so, or it broke.
    retired: Cell<bool>,
}

/// A place on a connection, for one request.
pub struct Place(Rc<Connection>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.since.set(deadline::now());
    }
}

impl Connections {
    /// None yet.
    pub fn new(idle: Duration, head_bytes_max: usize) -> Connections {
        let head_bytes_max = u32::try_from(head_bytes_max).unwrap_or(u32::MAX);
        Connections { homes: RefCell::default(), idle, head_bytes_max }
    }

    /// A place on a connection to the endpoint `key`, if there is one.
    pub fn take(&self, key: u64) -> Option<Place> {
        self.homes.borrow().get(&key)?.place()
    }

    /// A place, on a new connection if there is none: then `connect` makes the TCP connection. Whoever asks meanwhile
    /// waits and shares it.
    pub async fn place(
        &self,
        key: u64,
        connect: impl Future<Output = Result<TcpStream, ConnectError>>,
    ) -> Result<Place, ConnectError> {
        let home = self.homes.borrow_mut().entry(key).or_default().clone();
        let _making = home.making.lock().await;
        if let Some(place) = home.place() {
            return Ok(place);
        }
        let stream = connect.await?;
        let (sender, driver) =
            self.greet(stream).await.map_err(|e| ConnectError::Other(io::Error::other(e)))?;
        let (open, since, retired) = (Cell::new(0), Cell::new(deadline::now()), Cell::new(false));
        let connection = Rc::new(Connection { sender, driver, open, since, retired });
        home.list.borrow_mut().push(connection.clone());
        Ok(connection.place())
    }

    /// Begins to speak HTTP/2.
    async fn greet(&self, stream: TcpStream) -> hyper::Result<(SendRequest<Upload>, Driver)> {
        let socket = socket2::SockRef::from(&stream);
        let keepalive = socket2::TcpKeepalive::new().with_time(PROBE_EVERY).with_interval(PROBE_EVERY);
        // Without it a dead endpoint is noticed by time limits alone.
        let _ = socket.set_tcp_keepalive(&keepalive).and(socket.set_tcp_user_timeout(Some(SILENCE)));
        let (sender, connection) = http2::Builder::new(Local)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BYTES_MAX)
            .max_header_list_size(self.head_bytes_max)
            .handshake(TokioIo::new(stream))
            .await?;
        let driver = Rc::new(RefCell::new(Some(connection)));
        let driven = driver.clone();
        tokio::task::spawn_local(async move {
            let ended = poll_fn(|cx| match driven.borrow_mut().as_mut() {
                Some(connection) => Pin::new(connection).poll(cx),
                None => Poll::Ready(Ok(())),
            });
            let ended = ended.await;
            // Only then those learn of it who still have a sender.
            *driven.borrow_mut() = None;
            if let Err(error) = ended {
                debug!(%error, "an HTTP/2 connection to an endpoint broke");
            }
        });
        Ok((sender, driver))
    }

    /// Drops connections that have been idle for long, are closed, or lead to endpoints not among `keys`. What is under
    /// way on them ends first.
    pub fn sweep(&self, keys: &HashSet<u64>, now: Instant) {
        self.homes.borrow_mut().retain(|key, home| {
            let is_used = |c: &Rc<Connection>| {
                c.open.get() > 0 || now.duration_since(c.since.get()) < self.idle && c.is_usable()
            };
            let mut list = home.list.borrow_mut();
            list.retain(|c| keys.contains(key) && is_used(c));
            // Somebody may be making one.
            !list.is_empty() || Rc::strong_count(home) > 1
        });
    }

    /// Drops every connection once nothing is under way on it.
    pub fn clear(&self) {
        self.homes.borrow_mut().clear();
    }
}

impl Home {
    /// On the connection that has most to do and can do more: the others get a chance to grow old.
    fn place(&self) -> Option<Place> {
        let mut list = self.list.borrow_mut();
        list.retain(|c| c.open.get() > 0 || c.is_usable());
        list.iter().filter(|c| c.has_room()).max_by_key(|c| c.open.get()).map(Connection::place)
    }
}

impl Connection {
    fn is_usable(&self) -> bool {
        !self.retired.get() && !self.sender.is_closed()
    }

    fn has_room(&self) -> bool {
        let driver = self.driver.borrow();
        let allowed = driver.as_ref().map_or(0, http2::Connection::current_max_send_streams);
        self.is_usable() && self.open.get() < allowed.min(STREAMS_MAX)
    }

    fn place(self: &Rc<Self>) -> Place {
        self.open.set(self.open.get() + 1);
        Place(self.clone())
    }
}

/// How an attempt failed, once that is known; nothing if it broke off and nobody can say more.
pub type Verdict = Rc<Cell<Option<Fault>>>;

/// Begins a request at `place`. What is written to the pipe is the request and what can be read is the response, both
/// as HTTP/1.
pub fn open(place: Place) -> (DuplexStream, Verdict) {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let verdict = Verdict::default();
    tokio::task::spawn_local(carry(theirs, place, verdict.clone()));
    (ours, verdict)
}

async fn carry(pipe: DuplexStream, place: Place, verdict: Verdict) {
    let (read, out) = tokio::io::split(pipe);
    let mut written = Written { read, bytes: BytesMut::new(), body: http1::Body::new(Framing::Empty) };
    let Some((request, pieces)) = written.head().await else {
        verdict.set(Some(Fault::Unsent));
        return;
    };
    let head_only = request.method() == Method::HEAD;
    let response = place.0.sender.clone().send_request(request);
    let answered = async {
        match response.await {
            Ok(response) => drop(answer(response, head_only, out).await),
            Err(error) => {
                let (fault, retires) = judge(&error);
                debug!(%error, ?fault, "an HTTP/2 stream failed");
                verdict.set(fault);
                place.0.retired.set(place.0.retired.get() || retires);
            }
        }
    };
    tokio::select! {
        biased;
        () = written.send(pieces) => {}
        () = answered => {}
    }
}

/// What an error means for its request, and whether its connection takes no more. A stream that was refused, or is
/// beyond the last one that the endpoint will look at, had no effect (RFC 9113 §8.7).
fn judge(error: &hyper::Error) -> (Option<Fault>, bool) {
    if error.is_canceled() {
        return (Some(Fault::Unsent), true);
    }
    let source = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    match source {
        Some(e) if e.is_go_away() && e.is_remote() => (Some(Fault::Unsent), true),
        Some(e) if e.is_reset() && e.reason() == Some(h2::Reason::REFUSED_STREAM) => {
            (Some(Fault::Unsent), false)
        }
        Some(e) if e.is_reset() => (Some(Fault::Broke), false),
        _ => (None, true),
    }
}

/// A request as it is written to a pipe.
struct Written {
    read: ReadHalf<DuplexStream>,
    bytes: BytesMut,
    body: http1::Body,
}

/// A piece of a body; nothing at its end.
type Piece = Option<Frame<Bytes>>;

impl Written {
    /// The head, and where the body goes, if there is one. Nothing if the other side gave up, or what it wrote cannot
    /// be said in HTTP/2.
    async fn head(&mut self) -> Option<(Request<Upload>, Option<mpsc::Sender<Piece>>)> {
        let mut lines = Lines::default();
        let place = loop {
            // It was written here: however long it is, the client's was within its limits.
            if let Some(place) = lines.scan(&self.bytes, usize::MAX).ok()? {
                break place;
            }
            if !self.more().await {
                return None;
            }
        };
        let (mut request, framing) = to_http2(&self.bytes[place.clone()])?;
        self.bytes.advance(place.end);
        self.body = http1::Body::new(framing);
        if self.body.is_done() {
            return Some((request, None));
        }
        let (sender, receiver) = mpsc::channel(1);
        *request.body_mut() = Upload { pieces: Some(receiver) };
        Some((request, Some(sender)))
    }

    /// Sends the body on. Ends only when the other side has given up.
    async fn send(mut self, mut pieces: Option<mpsc::Sender<Piece>>) {
        let mut places = Pieces::default();
        loop {
            while !self.bytes.is_empty() && !self.body.is_done() {
                places.clear();
                let Ok(n) = self.body.decode(&self.bytes, &mut places) else { return };
                let taken = self.bytes.split_to(n).freeze();
                for place in places.iter() {
                    deliver(&mut pieces, Some(Frame::data(taken.slice(place)))).await;
                }
            }
            if self.body.is_done() && pieces.is_some() {
                if let Some(trailers) = fields(self.body.trailer()).filter(|trailers| !trailers.is_empty()) {
                    deliver(&mut pieces, Some(Frame::trailers(trailers))).await;
                }
                deliver(&mut pieces, None).await;
                pieces = None;
            }
            // Nothing comes behind the body.
            self.bytes.clear();
            if !self.more().await {
                return;
            }
        }
    }

    async fn more(&mut self) -> bool {
        self.bytes.reserve(READ_BYTES);
        matches!(self.read.read_buf(&mut self.bytes).await, Ok(1..))
    }
}

/// An endpoint that wants no more of a body may still answer: what comes is dropped.
async fn deliver(pieces: &mut Option<mpsc::Sender<Piece>>, piece: Piece) {
    if let Some(sender) = pieces
        && sender.send(piece).await.is_err()
    {
        *pieces = None;
    }
}

/// A request's body on its way to an endpoint.
struct Upload {
    pieces: Option<mpsc::Receiver<Piece>>,
}

/// The client did not send all of it: the stream is reset, so that nobody takes it for whole.
#[derive(Debug, thiserror::Error)]
#[error("the request was broken off")]
struct BrokenOff;

impl Body for Upload {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let Some(pieces) = &mut self.pieces else { return Poll::Ready(None) };
        match ready!(pieces.poll_recv(cx)) {
            Some(Some(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(None) => {
                self.pieces = None;
                Poll::Ready(None)
            }
            None => Poll::Ready(Some(Err(BrokenOff))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.pieces {
            None => SizeHint::with_exact(0),
            Some(_) => SizeHint::default(),
        }
    }
}

/// Reads a head of HTTP/1 that was written here.
fn to_http2(head: &[u8]) -> Option<(Request<Upload>, Framing)> {
    let mut room = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut room);
    parsed.parse(head).ok()?;
    let mut request = Request::new(Upload { pieces: None });
    *request.method_mut() = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    *request.version_mut() = Version::HTTP_2;
    let (mut host, mut framing) = (None, Framing::Empty);
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        if name == header::HOST {
            host = Some(field.value);
            continue;
        }
        if name == header::TRANSFER_ENCODING {
            framing = Framing::Chunked;
        }
        if is_of_connection(&name) {
            continue;
        }
        if name == header::CONTENT_LENGTH {
            framing = Framing::Length(std::str::from_utf8(field.value).ok()?.parse().ok()?);
        }
        request.headers_mut().append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    // It is: and gRPC's servers refuse who does not say so.
    request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    let uri = Uri::builder().scheme("http").authority(host?).path_and_query(parsed.path?);
    *request.uri_mut() = uri.build().ok()?;
    Some((request, framing))
}

/// Fields that say something about a connection of HTTP/1 (RFC 9113 §8.2.2).
fn is_of_connection(name: &HeaderName) -> bool {
    matches!(*name, header::CONNECTION | header::TRANSFER_ENCODING | header::UPGRADE | header::TE)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

/// The fields of a trailer section as HTTP/1 has it.
fn fields(lines: &[u8]) -> Option<HeaderMap> {
    let mut room = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let whole = [lines, b"\r\n"].concat();
    let httparse::Status::Complete((_, list)) = httparse::parse_headers(&whole, &mut room).ok()? else {
        return None;
    };
    let mut map = HeaderMap::new();
    for field in list {
        map.append(
            HeaderName::from_bytes(field.name.as_bytes()).ok()?,
            HeaderValue::from_bytes(field.value).ok()?,
        );
    }
    Some(map)
}

/// Writes a response as HTTP/1 has it. A broken one has no end.
async fn answer(
    response: Response<Incoming>,
    head_only: bool,
    mut out: WriteHalf<DuplexStream>,
) -> io::Result<()> {
    let (head, mut body) = response.into_parts();
    let mut text = Vec::with_capacity(256);
    let framing = framing(&head, head_only, body.is_end_stream());
    text.extend_from_slice(b"HTTP/1.1 ");
    text.extend_from_slice(head.status.as_str().as_bytes());
    text.extend_from_slice(b" \r\n");
    lines(head.headers.iter().filter(|(name, _)| !is_of_connection(name)), &mut text);
    match framing {
        // One that is over with its head, as an error of gRPC, is so for the client, too.
        Framing::Length(0) if !head.headers.contains_key(header::CONTENT_LENGTH) => {
            text.extend_from_slice(b"content-length: 0\r\n");
        }
        Framing::Chunked => text.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Empty | Framing::Length(_) | Framing::UntilClose => {}
    }
    text.extend_from_slice(b"\r\n");
    out.write_all(&text).await?;
    let is_chunked = framing == Framing::Chunked;
    text.clear();
    while let Some(frame) = body.frame().await {
        match frame.map_err(io::Error::other)?.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => {
                let mut room = [0; 18];
                let chunk = is_chunked.then(|| chunk_head(data.len(), &mut room));
                out.write_all(chunk.unwrap_or_default()).await?;
                out.write_all(&data).await?;
                out.write_all(if is_chunked { b"\r\n" } else { b"" }).await?;
            }
            Err(frame) => lines(frame.trailers_ref().into_iter().flatten(), &mut text),
        }
    }
    if is_chunked {
        out.write_all(&[b"0\r\n", &text[..], b"\r\n"].concat()).await?;
    }
    Ok(())
}

/// How the body is delimited; HTTP/1 has no trailers behind a length, so gRPC's responses come in chunks.
fn framing(head: &http::response::Parts, head_only: bool, is_over: bool) -> Framing {
    let bodiless = head_only || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = head.headers.get(header::CONTENT_LENGTH);
    match length.and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok()) {
        _ if bodiless => Framing::Empty,
        Some(length) => Framing::Length(length),
        None if is_over => Framing::Length(0),
        None => Framing::Chunked,
    }
}

fn lines<'a>(fields: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>, out: &mut Vec<u8>) {
    for (name, value) in fields {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// Runs hyper's tasks on the worker's thread.
#[derive(Clone, Copy)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}
