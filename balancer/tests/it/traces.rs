//! Traces: the header that endpoints get, and the spans that a collector gets.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use crate::backend::{Backend, Breaker};
use crate::balancer::{Balancer, eventually, system, system_with};
use crate::client::{self, request};
use crate::registry::Registry;

/// A protobuf message as it is on the wire, read without knowing what it means: values by field number.
#[derive(Clone, Debug, Default)]
struct Message(BTreeMap<u64, Vec<Value>>);

#[derive(Clone, Debug)]
enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Message {
    fn read(mut bytes: &[u8]) -> Message {
        let mut message = Message::default();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let value = match key & 7 {
                0 => Value::Number(varint(&mut bytes)),
                1 => Value::Number(u64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
                2 => {
                    let len = varint(&mut bytes) as usize;
                    Value::Bytes(take(&mut bytes, len).to_vec())
                }
                other => panic!("wire type {other}"),
            };
            message.0.entry(key >> 3).or_default().push(value);
        }
        message
    }

    fn all(&self, field: u64) -> Vec<Message> {
        self.0.get(&field).into_iter().flatten().map(|value| Message::read(bytes(value))).collect()
    }

    fn bytes(&self, field: u64) -> Vec<u8> {
        self.0.get(&field).map(|values| bytes(&values[0]).to_vec()).unwrap_or_default()
    }

    fn text(&self, field: u64) -> String {
        String::from_utf8(self.bytes(field)).expect("UTF-8")
    }

    fn number(&self, field: u64) -> u64 {
        match self.0.get(&field).map(|values| &values[0]) {
            Some(Value::Number(number)) => *number,
            other => panic!("field {field} is {other:?}"),
        }
    }

    /// Attributes in `field`: KeyValue has its key in 1 and its value in 2, which has text in 1 and integers in 3.
    fn attributes(&self, field: u64) -> BTreeMap<String, String> {
        let pair = |pair: Message| {
            let value = &pair.all(2)[0];
            let text = if value.0.contains_key(&1) { value.text(1) } else { value.number(3).to_string() };
            (pair.text(1), text)
        };
        self.all(field).into_iter().map(pair).collect()
    }
}

fn bytes(value: &Value) -> &[u8] {
    match value {
        Value::Bytes(bytes) => bytes,
        Value::Number(number) => panic!("{number} where a message should be"),
    }
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(n);
    *bytes = rest;
    taken
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a number without an end")
}

/// A span: by the numbers of `opentelemetry/proto/trace/v1/trace.proto`.
#[derive(Clone, Debug)]
struct Span {
    trace: String,
    id: String,
    state: String,
    parent: String,
    name: String,
    kind: u64,
    nanos: std::ops::Range<u64>,
    attributes: BTreeMap<String, String>,
    /// Code and message of its status, if it has one.
    status: Option<(u64, String)>,
}

fn spans(body: &[u8]) -> Vec<Span> {
    let mut found = Vec::new();
    for resource in Message::read(body).all(1) {
        let about = resource.all(1)[0].attributes(1);
        assert_eq!(about["service.name"], "lb-traced");
        assert!(about.contains_key("service.version"), "{about:?}");
        for scope in resource.all(2) {
            assert_eq!(scope.all(1)[0].text(1), "balancer");
            found.extend(scope.all(2).iter().map(|span| Span {
                trace: hex(&span.bytes(1)),
                id: hex(&span.bytes(2)),
                state: span.text(3),
                parent: hex(&span.bytes(4)),
                name: span.text(5),
                kind: span.number(6),
                nanos: span.number(7)..span.number(8),
                attributes: span.attributes(9),
                status: span.all(15).first().map(|s| (s.number(3), s.text(2))),
            }));
        }
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Takes `POST /v1/traces`, after refusing the first few with 503.
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    _server: tokio::task::JoinSet<()>,
}

impl Collector {
    async fn start(refuses: usize) -> Collector {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let all: Arc<Mutex<Vec<Span>>> = Arc::default();
        let left = Arc::new(AtomicUsize::new(refuses));
        let mut server = tokio::task::JoinSet::new();
        let kept = all.clone();
        server.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (all, left) = (kept.clone(), left.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (all, left) = (all.clone(), left.clone());
                    async move {
                        assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/v1/traces"));
                        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let mut answer = Response::new(Full::<Bytes>::default());
                        match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)) {
                            Ok(_) => *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE,
                            Err(_) => all.lock().unwrap().extend(spans(&body)),
                        }
                        Ok::<_, Infallible>(answer)
                    }
                });
                let http = hyper::server::conn::http1::Builder::new();
                connections
                    .spawn(async move { drop(http.serve_connection(TokioIo::new(stream), service).await) });
            }
        });
        Collector { address, spans: all, _server: server }
    }

    fn config(&self, ratio: f64) -> String {
        format!("name: lb-traced\ntracing:\n  endpoint: http://{}\n  sampleRatio: {ratio}\n", self.address)
    }

    fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    /// Waits for the span of a request for `path`, and the attempts in it.
    async fn request(&self, path: &str) -> (Span, Vec<Span>) {
        let mut found = None;
        eventually(&format!("there is a span for {path}"), async || {
            found =
                self.spans().into_iter().find(|s| s.attributes.get("url.path").is_some_and(|p| p == path));
            found.is_some()
        })
        .await;
        let span = found.unwrap();
        let attempts = self.spans().into_iter().filter(|s| s.parent == span.id).collect();
        (span, attempts)
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_comes_goes_on_and_the_collector_learns_of_it() {
    // The first batch is refused for now, and sent again.
    let collector = Collector::start(1).await;
    let (_registry, _backends, lb) = system_with(1, &collector.config(0.0)).await;
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [("traceparent", parent.as_str()), ("tracestate", "a=1 , b=2")];
    let answer = client::send(lb.http, request(Method::GET, "/traced", &headers, "")).await.unwrap();
    let told = answer.echoed("traceparent");
    let (span, attempts) = collector.request("/traced").await;
    assert_eq!((span.trace.as_str(), span.parent.as_str(), span.state.as_str()), (TRACE, CALLER, "a=1,b=2"));
    assert_eq!((span.name.as_str(), span.kind), ("GET /", 2));
    assert_eq!(span.status, None);
    let fact = |name: &str| span.attributes.get(name).map(String::as_str).unwrap_or_default();
    assert_eq!((fact("http.response.status_code"), fact("http.route")), ("200", "/"));
    assert_eq!((fact("http.request.method"), fact("client.address")), ("GET", "127.0.0.1"));
    let [attempt] = &attempts[..] else { panic!("one attempt: {attempts:?}") };
    assert_eq!((attempt.trace.as_str(), attempt.kind), (TRACE, 3));
    assert_eq!(attempt.attributes["balancer.endpoint"], "b0");
    assert_eq!(attempt.attributes["http.response.status_code"], "200");
    assert!(
        span.nanos.start <= attempt.nanos.start && attempt.nanos.start < attempt.nanos.end,
        "{span:?} {attempt:?}"
    );
    assert_eq!(told, format!("00-{TRACE}-{}-01", attempt.id), "the endpoint is in the attempt");
    assert_eq!(answer.echoed("tracestate"), "a=1,b=2");
    // What the caller does not record is not recorded here.
    let parent = format!("00-{TRACE}-{CALLER}-00");
    let sent = request(Method::GET, "/unsampled", &[("traceparent", &parent)], "");
    let told = client::send(lb.http, sent).await.unwrap().echoed("traceparent");
    assert!(
        told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-00") && !told.contains(CALLER),
        "{told}"
    );
    // What breaks the rules is no parent: a trace begins here, and the state of the other is dropped.
    for bad in
        [format!("00-{TRACE}-{CALLER}"), parent.to_uppercase().replace("00F", "00G"), "00-0-0-00".to_owned()]
    {
        let headers = [("traceparent", bad.as_str()), ("tracestate", "a=1")];
        let answer = client::send(lb.http, request(Method::GET, "/bad", &headers, "")).await.unwrap();
        let told = answer.echoed("traceparent");
        assert!(told.len() == 55 && !told.contains(TRACE) && told.ends_with("-02"), "{told}");
        assert_eq!(answer.echoed("tracestate"), "");
    }
    assert_eq!(collector.spans().len(), 2, "{:?}", collector.spans());
    assert!(lb.metrics().await.contains("balancer_spans_dropped_total 0\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_attempt_is_a_step_of_its_own() {
    let collector = Collector::start(0).await;
    let (registry, breaker, good) = (Registry::start().await, Breaker::start().await, Backend::start("good"));
    registry.register("broken", &breaker.url());
    registry.register("good", &good.url());
    let base = format!("port: 0\nhost: 127.0.0.1\nserviceRegistryURL: {}\n", registry.url());
    let mut lb = Balancer::spawn(&[], &(base + &collector.config(1.0))).await;
    lb.rotates(&["broken", "good"]).await;
    let mut n = 0;
    while breaker.requests() == 0 {
        assert_eq!(client::get(lb.http, &format!("/{n}")).await.unwrap().status, 200);
        n += 1;
    }
    let (span, mut attempts) = collector.request(&format!("/{}", n - 1)).await;
    attempts.sort_by_key(|a| a.nanos.start);
    let [failed, made] = &attempts[..] else { panic!("two attempts: {attempts:?}") };
    assert_eq!(span.parent, "", "it begins here");
    assert_eq!(
        (failed.attributes["balancer.endpoint"].as_str(), failed.status.as_ref().unwrap().0),
        ("broken", 2)
    );
    assert_eq!((made.attributes["balancer.endpoint"].as_str(), &made.status), ("good", &None));
    assert_eq!(made.attributes["http.request.resend_count"], "1");
    assert!(failed.nanos.end <= made.nanos.start);
    // Nothing is lost by a stop.
    let last = request(Method::GET, "/last", &[("connection", "close")], "");
    assert_eq!(client::send(lb.http, last).await.unwrap().status, 200);
    lb.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(lb.exited().await.success());
    collector.request("/last").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tracing_the_header_passes_as_it_is() {
    let (_registry, _backends, lb) = system(1, &[]).await;
    let headers = [("traceparent", "whatever"), ("tracestate", "A=b,,")];
    let answer = client::send(lb.http, request(Method::GET, "/", &headers, "")).await.unwrap();
    assert_eq!(
        (answer.echoed("traceparent").as_str(), answer.echoed("tracestate").as_str()),
        ("whatever", "A=b,,")
    );
    let none = client::get(lb.http, "/").await.unwrap();
    assert_eq!(none.echoed("traceparent"), "");
}

/// Requests are served as if there were no tracing, and what is lost is counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_spans_only() {
    let collector = Collector::start(usize::MAX).await;
    let (_registry, _backends, lb) = system_with(1, &collector.config(1.0)).await;
    for _ in 0..10 {
        assert_eq!(client::get(lb.http, "/").await.unwrap().status, 200);
    }
    eventually("they are counted as lost", async || {
        lb.metrics().await.contains("balancer_spans_dropped_total 20\n")
    })
    .await;
    assert!(lb.log().contains("spans are lost until the collector takes them"), "{}", lb.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_is_told_the_way_of_its_request_where_that_is_allowed() {
    let (registry, _backends, lb) = system_with(1, "debugHeaders: true\n").await;
    let asked = |path: &str| request(Method::GET, path, &[("x-balancer-debug", "1")], "");
    let told = client::send(lb.http, asked("/")).await.unwrap();
    assert_eq!(told.header("x-balancer-route"), "/");
    assert_eq!(told.header("x-balancer-endpoint"), "b0");
    assert_eq!(told.header("x-balancer-attempts"), "1");
    assert!(told.header("x-balancer-pool-age").parse::<f64>().is_ok(), "{:?}", told.headers);
    let timing = told.header("server-timing");
    let durations: Vec<f64> =
        timing.split("dur=").skip(1).map(|d| d.split(',').next().unwrap().parse().unwrap()).collect();
    assert!(durations.len() == 2 && durations[0] >= durations[1], "{timing}");
    let untold = client::get(lb.http, "/").await.unwrap();
    assert!(!untold.headers.keys().any(|k| k.as_str().starts_with("x-balancer") || k == "server-timing"));
    registry.deregister("b0");
    eventually("it is gone", async || lb.endpoint("b0", "id").await.is_null()).await;
    let refused = client::send(lb.http, asked("/")).await.unwrap();
    assert_eq!((refused.status, refused.header("x-balancer-attempts").as_str()), (503, "0"));

    let (_registry, _backends, closed) = system_with(1, "serverTiming: true\n").await;
    let answer = client::send(closed.http, asked("/")).await.unwrap();
    assert!(answer.header("server-timing").starts_with("total;dur="), "{:?}", answer.headers);
    assert_eq!(answer.header("x-balancer-endpoint"), "", "not allowed");
}
