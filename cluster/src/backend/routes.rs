//! What the sample backend answers: one route for each thing a balancer must carry well.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{
        MatchedPath, Query, Request, State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response, Sse, sse},
    routing::{any, get},
};
use futures_util::{Stream, StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;

/// Longest delay of `/slow` and between two events of `/sse`.
const DELAY_MS_MAX: u64 = 60_000;
/// Most events of one `/sse`.
const EVENTS_MAX: u64 = 10_000;
/// Longest WebSocket message that is echoed.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// What every handler sees.
#[derive(Clone)]
pub(super) struct Shared {
    /// The id it registers as.
    pub instance: Arc<str>,
    pub metrics: Arc<Metrics>,
    /// Streams without an end of their own end with it.
    pub stopping: CancellationToken,
}

/// The service itself.
pub(super) fn service(shared: Shared) -> Router {
    Router::new()
        .route("/", get(who))
        .route("/health", get(|| async { "ok\n" }))
        .route("/slow", get(slow))
        .route("/echo", any(echo))
        .route("/sse", get(events))
        .route("/ws", any(websocket))
        .layer(middleware::from_fn_with_state(shared.clone(), count))
        .with_state(shared)
}

/// `/metrics`, on a port of its own.
pub(super) fn scrape(shared: Shared) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(shared)
}

/// Which instance answered.
#[derive(Serialize)]
struct Who {
    instance: Arc<str>,
}

async fn who(State(shared): State<Shared>) -> Json<Who> {
    Json(Who { instance: shared.instance })
}

/// `?ms=`: how long the answer takes.
#[derive(Deserialize)]
struct Slow {
    #[serde(default)]
    ms: u64,
}

async fn slow(State(shared): State<Shared>, Query(Slow { ms }): Query<Slow>) -> Json<Who> {
    tokio::time::sleep(delay(ms)).await;
    who(State(shared)).await
}

fn delay(ms: u64) -> Duration {
    Duration::from_millis(ms.min(DELAY_MS_MAX))
}

/// What arrived. The body is counted as it streams in, never held.
#[derive(Serialize)]
struct Echo {
    instance: Arc<str>,
    method: String,
    uri: String,
    headers: BTreeMap<String, String>,
    body_bytes: u64,
}

async fn echo(State(shared): State<Shared>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    match length(body).await {
        Ok(body_bytes) => Json(Echo {
            instance: shared.instance,
            method: head.method.to_string(),
            uri: head.uri.to_string(),
            headers: printable(&head.headers),
            body_bytes,
        })
        .into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, format!("the body broke off: {error}\n")).into_response(),
    }
}

async fn length(body: Body) -> Result<u64, axum::Error> {
    let mut chunks = body.into_data_stream();
    let mut bytes = 0;
    while let Some(chunk) = chunks.next().await {
        bytes += chunk?.len() as u64;
    }
    Ok(bytes)
}

/// Names in order; values of one name joined as RFC 9110 §5.3 says.
fn printable(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut printable: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let entry = printable.entry(name.to_string()).or_default();
        if !entry.is_empty() {
            entry.push_str(", ");
        }
        entry.push_str(&value);
    }
    printable
}

/// `?n=&ms=`: how many events, and how far apart.
#[derive(Deserialize)]
struct Events {
    #[serde(default = "ten")]
    n: u64,
    #[serde(default = "hundred")]
    ms: u64,
}

fn ten() -> u64 {
    10
}

fn hundred() -> u64 {
    100
}

async fn events(
    State(shared): State<Shared>,
    Query(Events { n, ms }): Query<Events>,
) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
    let stopping = shared.stopping.clone().cancelled_owned();
    let events = stream::iter(0..n.min(EVENTS_MAX)).then(move |number| {
        let data = json!({"instance": &*shared.instance, "n": number}).to_string();
        async move {
            if number > 0 {
                tokio::time::sleep(delay(ms)).await;
            }
            Ok(sse::Event::default().id(number.to_string()).data(data))
        }
    });
    Sse::new(events.take_until(stopping))
}

async fn websocket(State(shared): State<Shared>, upgrade: WebSocketUpgrade) -> Response {
    upgrade
        .max_message_size(MESSAGE_BYTES_MAX)
        .on_upgrade(move |socket| echo_messages(socket, shared.stopping))
}

async fn echo_messages(mut socket: WebSocket, stopping: CancellationToken) {
    loop {
        let message = tokio::select! {
            message = socket.recv() => message,
            () = stopping.cancelled() => {
                drop(socket.send(Message::Close(None)).await);
                return;
            }
        };
        let sent = match message {
            Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => socket.send(message).await,
            // The library answers pings.
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Close(_)) | Err(_)) | None => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    match shared.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn count(
    State(shared): State<Shared>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let route = path.as_ref().map_or("none", MatchedPath::as_str);
    // Dropped also when the caller goes away in between.
    let in_flight = InFlight::of(&shared.metrics);
    let response = next.run(request).await;
    drop(in_flight);
    shared.metrics.requests.with_label_values(&[route, response.status().as_str()]).inc();
    response
}

struct InFlight<'a>(&'a Metrics);

impl InFlight<'_> {
    fn of(metrics: &Metrics) -> InFlight<'_> {
        metrics.in_flight.inc();
        InFlight(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}
