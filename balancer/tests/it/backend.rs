//! Backends: a well-behaved one on a runtime of its own, so that it can vanish in an instant as a killed
//! process does, and rough ones made of bare sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

pub struct Backend {
    pub id: String,
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    runtime: Option<Runtime>,
}

#[derive(Default)]
pub struct Seen {
    /// Requests to anything but the probe.
    pub requests: AtomicUsize,
    /// What the probe answers is 503 if set.
    pub sick: AtomicBool,
    /// Requests being served.
    pub open: AtomicUsize,
    /// Most of them at a time.
    pub open_max: AtomicUsize,
}

#[derive(Clone)]
struct Shared {
    id: String,
    seen: Arc<Seen>,
}

impl Backend {
    pub fn start(id: &str) -> Backend {
        Backend::on(id, "127.0.0.1:0".parse().unwrap(), Arc::default())
    }

    fn on(id: &str, address: SocketAddr, seen: Arc<Seen>) -> Backend {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shared = Shared { id: id.to_owned(), seen: seen.clone() };
        let (sender, receiver) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(address).expect("a free port");
            let listener = socket.listen(1024).unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            axum::serve(listener, router(shared)).await.unwrap();
        });
        let address = receiver.recv().expect("it listens");
        Backend { id: id.to_owned(), address, seen, runtime: Some(runtime) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }

    /// Vanishes at once: every socket is closed, whatever was under way.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
            // The runtime's threads close their sockets one after the other, and a moment later.
            let deadline = std::time::Instant::now() + Duration::from_secs(15);
            while std::net::TcpStream::connect(self.address).is_ok() {
                assert!(std::time::Instant::now() < deadline, "{} still accepts", self.address);
            }
        }
    }

    /// Comes back at the same address.
    pub fn revive(&mut self) {
        *self = Backend::on(&self.id, self.address, self.seen.clone());
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}

fn router(shared: Shared) -> Router {
    let seen = shared.seen.clone();
    let routes = Router::new()
        .route("/slow", get(slow))
        .route("/sse", get(events))
        .route("/ws", get(socket))
        .route("/own-session", get(own_session))
        .route("/early", any(early))
        .route("/never", any(never))
        .route("/big", get(big))
        .route("/quiet", get(quiet))
        .route("/quiet-events", get(quiet_events))
        .route("/duplex", any(duplex))
        .fallback(echo)
        .layer(axum::middleware::from_fn(move |request: Request, next: axum::middleware::Next| {
            let seen = seen.clone();
            async move {
                seen.requests.fetch_add(1, Ordering::SeqCst);
                next.run(request).await
            }
        }));
    Router::new().route("/health", get(health)).merge(routes).with_state(shared)
}

async fn health(State(shared): State<Shared>) -> http::StatusCode {
    match shared.seen.sick.load(Ordering::SeqCst) {
        true => http::StatusCode::SERVICE_UNAVAILABLE,
        false => http::StatusCode::OK,
    }
}

/// Who it is and what it got.
async fn echo(State(shared): State<Shared>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let headers: Vec<(String, String)> = head
        .headers
        .iter()
        .map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
        .collect();
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        return http::StatusCode::BAD_REQUEST.into_response();
    };
    let answer = json!({"instance": shared.id, "method": head.method.as_str(), "target": head.uri.to_string(),
                        "headers": headers, "body_bytes": body.len()});
    (
        [("x-instance", shared.id), ("connection", "x-secret".into()), ("x-secret", "1".into())],
        answer.to_string(),
    )
        .into_response()
}

struct Open(Arc<Seen>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(serde::Deserialize)]
struct Slow {
    ms: u64,
}

async fn slow(State(shared): State<Shared>, Query(slow): Query<Slow>) -> String {
    let open = shared.seen.open.fetch_add(1, Ordering::SeqCst) + 1;
    shared.seen.open_max.fetch_max(open, Ordering::SeqCst);
    let _open = Open(shared.seen.clone());
    tokio::time::sleep(Duration::from_millis(slow.ms)).await;
    shared.id
}

/// One event at once, the second when the client has said so by a request to anything else, or never.
async fn events(State(shared): State<Shared>) -> Response {
    shared.seen.open.fetch_add(1, Ordering::SeqCst);
    let open = Open(shared.seen.clone());
    let stream = futures_util::stream::unfold((0u32, open), |(n, open)| async move {
        if n > 0 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Some((Ok::<_, std::convert::Infallible>(format!("data: {n}\n\n")), (n + 1, open)))
    });
    ([("content-type", "text/event-stream")], Body::from_stream(stream)).into_response()
}

async fn socket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(|mut socket| async move {
        while let Some(Ok(message)) = socket.recv().await {
            if socket.send(message).await.is_err() {
                return;
            }
        }
    })
}

async fn own_session() -> impl IntoResponse {
    [("set-cookie", "SESSIONID=of-the-application; Path=/")]
}

/// Answers before the body has come.
async fn early() -> impl IntoResponse {
    (http::StatusCode::PAYLOAD_TOO_LARGE, "too much")
}

/// Does not answer.
async fn never() {
    std::future::pending().await
}

/// Begins, and says nothing more.
fn silence(shared: Shared) -> Body {
    shared.seen.open.fetch_add(1, Ordering::SeqCst);
    let open = Open(shared.seen);
    let stream = futures_util::stream::unfold((0, open), |(n, open)| async move {
        if n > 0 {
            std::future::pending::<()>().await;
        }
        Some((Ok::<_, std::convert::Infallible>("data: 0\n\n"), (1, open)))
    });
    Body::from_stream(stream)
}

async fn quiet(State(shared): State<Shared>) -> Body {
    silence(shared)
}

async fn quiet_events(State(shared): State<Shared>) -> impl IntoResponse {
    ([("content-type", "text/event-stream; charset=utf-8")], silence(shared))
}

/// Begins its answer at once, and ends it when it has all of the request.
async fn duplex(request: Request) -> Body {
    let begins = futures_util::stream::once(async { Ok::<_, axum::Error>("begins,".to_owned()) });
    let ends = futures_util::stream::once(async {
        let body = axum::body::to_bytes(request.into_body(), usize::MAX).await?;
        Ok(format!("{} bytes", body.len()))
    });
    Body::from_stream(futures_util::StreamExt::chain(begins, ends))
}

async fn big() -> Vec<u8> {
    vec![b'x'; 8 * 1024 * 1024]
}

/// A backend that passes probes, and reads any other request and closes without a word.
pub struct Breaker {
    pub address: SocketAddr,
    pub requests: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Breaker {
    pub async fn start() -> Breaker {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let requests = counted.clone();
                tokio::spawn(async move {
                    let mut bytes = vec![0; 4096];
                    let n = stream.read(&mut bytes).await.unwrap_or(0);
                    if bytes[..n].starts_with(b"GET /health ") {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                    } else if n > 0 {
                        requests.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        Breaker { address, requests, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Breaker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A backend made of bare sockets: it passes probes, keeps every other byte that comes, and answers each head with
/// the same bytes, whatever they are.
pub struct Tape {
    pub address: SocketAddr,
    bytes: Arc<std::sync::Mutex<Vec<u8>>>,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Tape {
    pub async fn start(answer: &'static [u8]) -> Tape {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (bytes, connections) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
        let (kept, counted): (Arc<std::sync::Mutex<Vec<u8>>>, _) = (bytes, connections.clone());
        let bytes = kept.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(record(stream, answer, kept.clone(), counted.clone()));
            }
        });
        Tape { address, bytes, connections, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything but probes, from all connections.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// Connections over which anything but a probe came.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn record(
    mut stream: tokio::net::TcpStream,
    answer: &'static [u8],
    kept: Arc<std::sync::Mutex<Vec<u8>>>,
    connections: Arc<AtomicUsize>,
) {
    let mut counted = false;
    let mut bytes = vec![0; 65_536];
    while let Ok(n @ 1..) = stream.read(&mut bytes).await {
        if bytes[..n].starts_with(b"GET /health ") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            continue;
        }
        if !std::mem::replace(&mut counted, true) {
            connections.fetch_add(1, Ordering::SeqCst);
        }
        kept.lock().unwrap().extend_from_slice(&bytes[..n]);
        if bytes[..n].windows(4).any(|w| w == b"\r\n\r\n") {
            let _ = stream.write_all(answer).await;
            if answer.windows(17).any(|w| w == b"Connection: close") {
                return;
            }
        }
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        self.task.abort();
    }
}
