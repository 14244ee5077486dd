//! Clients that speak HTTP/2 without having asked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::signal::Signal;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::backend::{Breaker, Tape};
use crate::balancer::{Balancer, eventually, system, system_with};
use crate::client::{self, Answer};
use crate::registry::Registry;

/// Nothing in these tests takes as long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(15);

/// A channel as a body.
struct Frames(mpsc::Receiver<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

/// A body whose frames are sent one by one.
fn frames() -> (mpsc::Sender<Frame<Bytes>>, Frames) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, Frames(receiver))
}

async fn connect<B>(address: SocketAddr) -> SendRequest<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    over(TcpStream::connect(address).await.unwrap()).await
}

pub async fn over<B, S>(stream: S) -> SendRequest<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("it speaks HTTP/2");
    tokio::spawn(async move { drop(connection.await) });
    sender
}

fn request<B>(method: Method, path: &str, body: B) -> Request<B> {
    Request::builder().method(method).uri(format!("http://shop.example{path}")).body(body).unwrap()
}

fn empty(method: Method, path: &str) -> Request<Full<Bytes>> {
    request(method, path, Full::default())
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it does not hang")
}

/// The whole answer, and its trailers.
async fn whole(response: Response<Incoming>) -> (Answer, HeaderMap) {
    let (head, body) = response.into_parts();
    let body = within(body.collect()).await.expect("the whole body");
    let trailers = body.trailers().cloned().unwrap_or_default();
    (Answer { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes() }, trailers)
}

pub async fn get(sender: &mut SendRequest<Full<Bytes>>, path: &str) -> Answer {
    let response = within(sender.send_request(empty(Method::GET, path))).await.expect("an answer");
    whole(response).await.0
}

async fn nothing_is_in_flight(lb: &Balancer) {
    eventually("nothing is in flight", async || {
        let all = lb.endpoints().await;
        all["endpoints"].as_array().unwrap().iter().all(|e| e["in_flight"] == 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_passes_with_the_same_header_rules_as_over_http_1() {
    let (_registry, _backends, lb) = system(1, &["--strategy", "sticky_sessions"]).await;
    let mut sender = connect(lb.http).await;
    let mut asked = empty(Method::GET, "/a%20b?q=%2F&q=2");
    for (name, value) in
        [("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers"), ("x-forwarded-for", "203.0.113.7")]
    {
        asked.headers_mut().append(name, value.parse().unwrap());
    }
    let (answer, _) = whole(within(sender.send_request(asked)).await.unwrap()).await;
    assert_eq!((answer.status, answer.json()["target"].as_str().unwrap()), (200, "/a%20b?q=%2F&q=2"));
    let names = ["host", "cookie", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "te"];
    let got = names.map(|name| answer.echoed(name));
    assert_eq!(got, ["shop.example", "a=1; b=2", "203.0.113.7, 127.0.0.1", "http", "shop.example", ""]);
    assert_eq!(answer.echoed("x-request-id").len(), 36);
    assert!(answer.header("set-cookie").starts_with("SESSIONID="), "{:?}", answer.headers);
    assert_eq!((answer.header("x-secret"), answer.header("connection")), (String::new(), String::new()));
    assert!(!answer.header("date").is_empty());

    let head = within(sender.send_request(empty(Method::HEAD, "/"))).await.unwrap();
    assert!(head.body().is_end_stream());
    let (head, _) = whole(head).await;
    assert!(head.status == 200 && head.body.is_empty() && head.header("content-length") != "0", "{head:?}");

    let metrics = get(&mut sender, "/metrics").await;
    assert!(metrics.text().contains("loadbalancer_total_requests"), "{}", metrics.text());
    // The same port goes on to speak HTTP/1, but not on a connection that has begun with it.
    assert_eq!(client::get(lb.http, "/").await.unwrap().status, 200);
    let late = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    assert!(client::raw(lb.http, late).await.contains("HTTP/1.1 505"));
    nothing_is_in_flight(&lb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_http_1_refuses_is_refused() {
    let (_registry, backends, lb) = system(1, &[]).await;
    let mut sender = connect(lb.http).await;
    let mut two_hosts = empty(Method::GET, "/");
    two_hosts.headers_mut().insert("host", "other.example".parse().unwrap());
    let mut underscore = empty(Method::GET, "/");
    underscore.headers_mut().insert("content_length", "1".parse().unwrap());
    let mut expects = empty(Method::GET, "/");
    expects.headers_mut().insert("expect", "magic".parse().unwrap());
    let mut many = empty(Method::GET, "/");
    (0..200).for_each(|i| {
        drop(
            many.headers_mut().insert(
                http::HeaderName::from_bytes(format!("x-{i}").as_bytes()).unwrap(),
                "1".parse().unwrap(),
            ),
        )
    });
    let cases = [
        (two_hosts, 400, "Bad request: :authority and Host name different hosts"),
        (underscore, 400, "Bad request: invalid header field"),
        (expects, 417, "Bad request: unsupported Expect"),
        (many, 431, "Bad request: too many header fields"),
    ];
    for (asked, status, text) in cases {
        let (answer, _) = whole(within(sender.send_request(asked)).await.unwrap()).await;
        assert_eq!((answer.status, answer.text().as_str()), (status, text));
    }
    let mut tunnel = empty(Method::CONNECT, "/");
    *tunnel.uri_mut() = "other.example:443".parse().unwrap();
    let (answer, _) = whole(within(sender.send_request(tunnel)).await.unwrap()).await;
    assert_eq!((answer.status, answer.text().as_str()), (405, "CONNECT is not supported"));
    let mut long = empty(Method::GET, "/");
    long.headers_mut().insert("x-long", "x".repeat(100 * 1024).parse().unwrap());
    assert_eq!(within(sender.send_request(long)).await.unwrap().status(), 431);
    assert_eq!(backends[0].requests(), 0);
    assert_eq!(get(&mut connect(lb.http).await, "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_streams_share_a_connection() {
    let (_registry, backends, lb) = system(2, &[]).await;
    let sender: SendRequest<Full<Bytes>> = connect(lb.http).await;
    let one = |i: usize| {
        let mut sender = sender.clone();
        async move {
            let body = Full::from(vec![b'x'; i * 100]);
            let answer = within(sender.send_request(request(Method::POST, "/", body))).await.unwrap();
            let (answer, _) = whole(answer).await;
            assert_eq!((answer.status, answer.json()["body_bytes"].as_u64()), (200, Some(i as u64 * 100)));
        }
    };
    futures_util::future::join_all((0..500).map(one)).await;
    assert_eq!(backends.iter().map(|b| b.requests()).sum::<usize>(), 500);
    nothing_is_in_flight(&lb).await;
}

/// 8 MiB one way, 4 MiB the other, by a client that opens its windows late.
#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_both_ways_and_a_slow_reader_slows_the_sender() {
    let (_registry, _backends, lb) = system(1, &[]).await;
    let mut sender = connect(lb.http).await;
    let response = within(sender.send_request(empty(Method::GET, "/big"))).await.unwrap();
    // While nobody reads this one, others are served on the same connection.
    for _ in 0..20 {
        assert_eq!(get(&mut sender, "/").await.status, 200);
    }
    assert_eq!(lb.endpoint("b0", "in_flight").await, 1);
    assert_eq!(whole(response).await.0.body.len(), 8 * 1024 * 1024);

    let mut sender = connect(lb.http).await;
    let (body, stream) = frames();
    let answer = tokio::spawn(async move { sender.send_request(request(Method::POST, "/", stream)).await });
    for _ in 0..64 {
        within(body.send(Frame::data(Bytes::from(vec![b'x'; 65_536])))).await.unwrap();
    }
    drop(body);
    let (answer, _) = whole(within(answer).await.unwrap().unwrap()).await;
    assert_eq!(answer.json()["body_bytes"], 64 * 65_536);
    nothing_is_in_flight(&lb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_may_begin_before_the_request_has_ended() {
    let (_registry, _backends, lb) = system(1, &[]).await;
    let mut sender = connect(lb.http).await;
    let (body, stream) = frames();
    let response = within(sender.send_request(request(Method::POST, "/duplex", stream))).await.unwrap();
    let (_, mut answer) = response.into_parts();
    let first = within(answer.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "begins,");
    within(body.send(Frame::data(Bytes::from_static(b"more")))).await.unwrap();
    drop(body);
    assert_eq!(within(answer.collect()).await.unwrap().to_bytes(), "4 bytes");
    // One that has ended before: what is left of the request is not waited for.
    let (_body, stream) = frames();
    let early = within(sender.send_request(request(Method::POST, "/early", stream))).await.unwrap();
    let (early, _) = whole(early).await;
    assert_eq!((early.status, early.text().as_str()), (413, "too much"));
    nothing_is_in_flight(&lb).await;
}

/// A backend that passes probes, answers with the very bytes of a chunked body once that has ended, and with a trailer.
async fn trailing() -> SocketAddr {
    async fn answer(mut stream: TcpStream) {
        let mut bytes = Vec::new();
        while let Ok(1..) = stream.read_buf(&mut bytes).await {
            if bytes.starts_with(b"GET /health ") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                return;
            }
            let Some(head) = bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4) else {
                continue;
            };
            let body = &bytes[head..];
            if body.windows(3).any(|w| w == b"0\r\n") && body.ends_with(b"\r\n\r\n") {
                let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n";
                let body = String::from_utf8_lossy(body).into_owned();
                let answer = format!("{head}{:x}\r\n{body}\r\n0\r\nx-sum: 7\r\n\r\n", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
                bytes.clear();
            }
        }
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass_both_ways() {
    let registry = Registry::start().await;
    let address = trailing().await;
    registry.register("trailing", &format!("http://{address}"));
    let lb = Balancer::start(&registry, &[]).await;
    lb.rotates(&["trailing"]).await;
    let mut sender = connect(lb.http).await;
    for trailing in [true, false] {
        let (body, stream) = frames();
        let mut sender = sender.clone();
        let answer =
            tokio::spawn(async move { sender.send_request(request(Method::PUT, "/", stream)).await });
        body.send(Frame::data(Bytes::from_static(b"data"))).await.unwrap();
        if trailing {
            let trailers = HeaderMap::from_iter([("x-mine".parse().unwrap(), "1".parse().unwrap())]);
            body.send(Frame::trailers(trailers)).await.unwrap();
        }
        drop(body);
        let (answer, trailers) = whole(within(answer).await.unwrap().unwrap()).await;
        assert_eq!(trailers["x-sum"], "7");
        let got = if trailing { "4\r\ndata\r\n0\r\nx-mine: 1\r\n\r\n" } else { "4\r\ndata\r\n0\r\n\r\n" };
        assert_eq!(answer.text(), got);
    }
    // One that would frame the message anew is refused with it.
    let (body, stream) = frames();
    let answer = tokio::spawn(async move { sender.send_request(request(Method::PUT, "/", stream)).await });
    body.send(Frame::trailers(HeaderMap::from_iter([("host".parse().unwrap(), "b".parse().unwrap())])))
        .await
        .unwrap();
    let (answer, _) = whole(within(answer).await.unwrap().unwrap()).await;
    assert_eq!((answer.status, answer.text().as_str()), (400, "Bad request: invalid trailer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_reset_cancels_its_request_and_nobody_is_blamed() {
    let (_registry, backends, lb) = system(1, &[]).await;
    let mut sender = connect(lb.http).await;
    for _ in 0..10 {
        let before = backends[0].requests();
        let waiting = tokio::spawn(sender.send_request(empty(Method::GET, "/slow?ms=60000")));
        eventually("it is asked", async || backends[0].requests() > before).await;
        waiting.abort();
        eventually("it is not asked any more", async || backends[0].seen.open.load(Ordering::SeqCst) == 0)
            .await;
    }
    // Also within a response.
    let response = within(sender.send_request(empty(Method::GET, "/quiet"))).await.unwrap();
    assert_eq!(lb.endpoint("b0", "in_flight").await, 1);
    drop(response);
    nothing_is_in_flight(&lb).await;
    assert_eq!(lb.endpoint("b0", "state").await, "up");
    assert_eq!(get(&mut sender, "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_response_resets_its_stream_alone_and_a_broken_attempt_is_repeated() {
    let registry = Registry::start().await;
    let tape = Tape::start(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\nConnection: close\r\n\r\nhalf").await;
    registry.register("tape", &tape.url());
    let lb = Balancer::start(&registry, &[]).await;
    lb.rotates(&["tape"]).await;
    let mut sender = connect(lb.http).await;
    let response = within(sender.send_request(empty(Method::GET, "/"))).await.unwrap();
    assert!(within(response.into_body().collect()).await.is_err(), "half a body must not look whole");
    assert_eq!(get(&mut sender, "/metrics").await.status, 200);
    drop(lb);

    let registry = Registry::start().await;
    let (breaker, good) = (Breaker::start().await, crate::backend::Backend::start("good"));
    registry.register("breaker", &breaker.url());
    registry.register("good", &good.url());
    let lb = Balancer::start(&registry, &[]).await;
    lb.rotates(&["breaker", "good"]).await;
    let mut sender = connect(lb.http).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let post = request(Method::POST, "/order", Full::from("one book"));
        let (answer, _) = whole(within(sender.send_request(post)).await.unwrap()).await;
        if answer.status != 200 {
            let text = "Bad gateway: backend breaker closed the connection without a response";
            assert_eq!(answer.text(), text);
        }
        statuses.push(answer.status);
    }
    for _ in 0..4 {
        assert_eq!(get(&mut sender, "/").await.status, 200, "a GET goes elsewhere");
    }
    assert!(lb.metrics().await.contains("balancer_retries_total{reason=\"broke\"}"));
    assert!(statuses.contains(&502) && statuses.contains(&200), "a POST is sent once: {statuses:?}");
    nothing_is_in_flight(&lb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_balancer_answers_by_itself_is_what_it_answers_over_http_1() {
    let registry = Registry::start().await;
    let lb = Balancer::start(&registry, &[]).await;
    let mut sender = connect(lb.http).await;
    let answer = get(&mut sender, "/").await;
    assert_eq!((answer.status, answer.text().as_str()), (503, "No healthy backend available"));
    assert_eq!((answer.header("retry-after").as_str(), answer.header("x-request-id").len()), ("1", 36));
    let call = |path| {
        let mut call = request(Method::POST, path, Full::from("\0\0\0\0\0"));
        call.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
        call
    };
    let answered = within(sender.send_request(call("/a.B/C"))).await.unwrap();
    assert!(answered.body().is_end_stream(), "gRPC is told by a head that ends its stream");
    let told =
        ["content-type", "grpc-status", "grpc-message"].map(|n| answered.headers()[n].to_str().unwrap());
    assert_eq!(answered.status(), 200);
    assert_eq!(told, ["application/grpc", "14", "No healthy backend available"]);
    let (_registry, _backends, lb) = system_with(1, "responseTimeout: 300ms\nbodyIdleTimeout: 600ms\n").await;
    let mut sender = connect(lb.http).await;
    let answer = get(&mut sender, "/slow?ms=60000").await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (504, "Gateway timeout: backend b0 did not answer within 300ms")
    );
    let late = within(sender.send_request(call("/never"))).await.unwrap();
    assert_eq!(late.headers()["grpc-status"], "4");
    let (_body, stream) = frames();
    let mut sender = connect(lb.http).await;
    let silent = within(sender.send_request(request(Method::POST, "/", stream))).await.unwrap();
    let (silent, _) = whole(silent).await;
    assert_eq!((silent.status, silent.text().as_str()), (408, "The request's body stopped coming"));
    nothing_is_in_flight(&lb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_grpc_may_rest_longer_than_a_body() {
    let (_registry, _backends, lb) = system_with(1, "bodyIdleTimeout: 300ms\n").await;
    let mut sender = connect(lb.http).await;
    let mut call = empty(Method::GET, "/quiet");
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let call = within(sender.send_request(call)).await.unwrap();
    // Whoever comes after it and is no call is cut off, twice.
    for _ in 0..2 {
        let plain = within(sender.send_request(empty(Method::GET, "/quiet"))).await.unwrap();
        assert!(within(plain.into_body().collect()).await.is_err());
    }
    assert_eq!(lb.endpoint("b0", "in_flight").await, 1);
    drop(call);
    nothing_is_in_flight(&lb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_streams_finish() {
    let (_registry, backends, mut lb) = system(1, &[]).await;
    let mut sender = connect(lb.http).await;
    let slow = tokio::spawn(sender.send_request(empty(Method::GET, "/slow?ms=1000")));
    eventually("it is asked", async || backends[0].seen.open.load(Ordering::SeqCst) == 1).await;
    lb.signal(Signal::SIGTERM);
    let (answer, _) = whole(within(slow).await.unwrap().expect("it is let finish")).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "b0"));
    assert_eq!(lb.exited().await.code(), Some(0));
    assert!(within(sender.send_request(empty(Method::GET, "/"))).await.is_err());
}

/// A client made of bare bytes.
struct Raw(TcpStream);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A request's head: `GET /` or `POST /`, `http`, without anything that HPACK would have to remember. Its path and its
/// authority are literal.
fn head(method: u8, path: &str) -> Vec<u8> {
    let mut block = vec![method, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    block.extend([0x01, 1, b'a']);
    block
}

const GET: u8 = 0x82;
const POST: u8 = 0x83;

impl Raw {
    async fn connect(address: SocketAddr) -> Raw {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        stream.write_all(&SETTINGS).await.unwrap();
        Raw(stream)
    }

    /// Sends what `next` makes, up to a number of bytes that is far beyond any limit, until the other side has closed;
    /// reads what comes, if `reads`. Returns whether it closed.
    async fn floods(self, reads: bool, mut next: impl FnMut(u32) -> Vec<u8> + Send) -> bool {
        let (mut from, mut to) = self.0.into_split();
        let reader = tokio::spawn(async move {
            let mut bytes = vec![0; 65_536];
            while reads && matches!(from.read(&mut bytes).await, Ok(1..)) {}
            if !reads {
                std::future::pending::<()>().await;
            }
        });
        let write = async {
            for i in 0..200_000u32 {
                if to.write_all(&next(i)).await.is_err() {
                    return true;
                }
                if reader.is_finished() {
                    return true;
                }
            }
            false
        };
        let closed = tokio::time::timeout(Duration::from_secs(60), write).await;
        reader.abort();
        closed.expect("it is neither served nor closed")
    }
}

/// Each flood ends its connection, and meanwhile others are served.
#[tokio::test(flavor = "multi_thread")]
async fn floods_end_their_connection_and_nobody_elses() {
    let (_registry, backends, lb) = system(1, &[]).await;
    let (served, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (address, good, bad) = (lb.http, served.clone(), failed.clone());
    let others = tokio::spawn(async move {
        let mut sender = connect(address).await;
        loop {
            let answer = within(sender.send_request(empty(Method::GET, "/"))).await;
            let counter = if answer.is_ok_and(|a| a.status() == 200) { &good } else { &bad };
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    type Flood = fn(u32) -> Vec<u8>;
    let floods: [(&str, Flood); 10] = [
        ("ping", |_| frame(6, 0, 0, &[7; 8]).repeat(100)),
        ("settings", |_| frame(4, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(100)),
        ("priority", |i| frame(2, 0, 2 * i + 1, &[0, 0, 0, 0, 9]).repeat(100)),
        ("window", |_| frame(8, 0, 0, &[0, 0, 0, 1]).repeat(100)),
        ("unknown", |_| frame(99, 0, 0, b"hello").repeat(100)),
        ("empty data", |i| match i {
            0 => frame(1, 0x4, 1, &head(POST, "/")),
            _ => frame(0, 0, 1, b"").repeat(100),
        }),
        ("rapid reset", |i| {
            let id = 2 * i + 1;
            [frame(1, 0x5, id, &head(GET, "/slow?ms=60000")), frame(3, 0, id, &[0, 0, 0, 8])].concat()
        }),
        ("continuation", |i| match i {
            0 => frame(1, 0x1, 1, &head(GET, "/")),
            _ => frame(9, 0, 1, b""),
        }),
        ("growing head", |i| match i {
            0 => frame(1, 0x1, 1, &head(GET, "/")),
            // A literal field of a thousand bytes that is never ended.
            _ => frame(9, 0, 1, &[&[0x00, 1, b'x', 0x7f, 0xe9, 0x06][..], &[b'y'; 1000]].concat()),
        }),
        ("refused streams", |i| frame(1, 0x4, 2 * i + 1, &head(POST, "/"))),
    ];
    for (name, flood) in floods {
        let before = served.load(Ordering::SeqCst);
        let ended = Raw::connect(lb.http).await.floods(true, flood).await;
        assert!(ended, "{name}: goes on for ever");
        eventually("others are served", async || served.load(Ordering::SeqCst) > before + 5).await;
    }
    others.abort();
    assert_eq!(failed.load(Ordering::SeqCst), 0);
    eventually("nothing is left", async || backends[0].seen.open.load(Ordering::SeqCst) == 0).await;
    nothing_is_in_flight(&lb).await;
    eventually("no connection is left", async || {
        lb.metrics().await.contains("balancer_downstream_connections 0\n")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_contradicts_its_length_is_an_error_and_reaches_nobody_as_another_request() {
    let (_registry, backends, lb) = system(1, &[]).await;
    // Longer and shorter than it says: a literal content-length of 3.
    for (data, flags) in [(&b"12345GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"[..], 0x1), (b"1", 0x1)] {
        let mut raw = Raw::connect(lb.http).await;
        let mut block = head(POST, "/");
        block.extend([0x0f, 0x0d, 1, b'3']);
        raw.0.write_all(&frame(1, 0x4, 1, &block)).await.unwrap();
        raw.0.write_all(&frame(0, flags, 1, data)).await.unwrap();
        // Another stream of the connection is served, and then the client is done.
        raw.0.write_all(&frame(1, 0x5, 3, &head(GET, "/metrics"))).await.unwrap();
        let is_reset = |w: &[u8]| w[..4] == [0, 0, 4, 3] && w[5..] == [0, 0, 0, 1];
        let mut bytes = Vec::new();
        while !bytes.windows(9).any(is_reset) {
            assert!(within(raw.0.read_buf(&mut bytes)).await.unwrap() > 0, "no reset in {bytes:?}");
        }
    }
    for _ in 0..10 {
        assert_eq!(client::get(lb.http, "/").await.unwrap().json()["target"], "/");
    }
    nothing_is_in_flight(&lb).await;
    assert_eq!(lb.endpoint("b0", "state").await, "up");
    assert!(backends[0].requests() <= 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_asks_for_nothing_ends() {
    let config = "headerTimeout: 300ms\nkeepAliveTimeout: 500ms\n";
    let (_registry, _backends, lb) = system_with(1, config).await;
    // Half a preface, a preface alone, a head that never ends, and one that rests after a request.
    let whole = [PREFACE, &SETTINGS].concat();
    let cases = [
        PREFACE[..20].to_vec(),
        whole.clone(),
        [&whole[..], &frame(1, 0x1, 1, &head(GET, "/"))].concat(),
        [&whole[..], &frame(1, 0x5, 1, &head(GET, "/"))].concat(),
    ];
    for (i, bytes) in cases.iter().enumerate() {
        let mut stream = TcpStream::connect(lb.http).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut out = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut out)).await;
        let _ = closed.unwrap_or_else(|_| panic!("case {i} is still open"));
        assert_eq!(String::from_utf8_lossy(&out).contains("\"target\":\"/\""), i == 3, "case {i}");
    }
    eventually("no connection is left", async || {
        lb.metrics().await.contains("balancer_downstream_connections 0\n")
    })
    .await;
}
