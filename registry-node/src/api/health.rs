//! Probes and scrapes: is the process alive, does it serve, what does it count.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use super::request::Params;
use super::{Api, scrape};

/// What probes and scrapers ask, the original's `/actuator` included. There is nothing to shut down over HTTP.
pub fn routes() -> Router<Api> {
    Router::new()
        .route("/livez", get(live))
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/actuator/health", get(actuator_health))
        .route("/actuator/info", get(actuator_info))
        .route("/actuator/prometheus", get(metrics))
}

/// Alive means that requests are answered; a node without a leader is alive, and restarting it helps nobody.
async fn live() -> &'static str {
    "ok\n"
}

#[derive(serde::Deserialize)]
struct ReadyQuery {
    verbose: Option<String>,
}

/// Ready means that a linearizable read just succeeded here.
async fn ready(State(api): State<Api>, Params(query): Params<ReadyQuery>) -> Response {
    let ready = api.registry.ready().await;
    let status = if ready.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = match (&ready, query.verbose) {
        (Ok(()), None) => "ok\n".to_owned(),
        (Err(why), None) => format!("{why}\n"),
        (ready, Some(_)) => checks(&api, ready.as_ref().err()),
    };
    (status, body).into_response()
}

fn checks(api: &Api, not_ready: Option<&String>) -> String {
    let head = api.registry.header();
    let line = |good: bool, name: &str, detail: String| match good {
        true => format!("[+]{name} ok: {detail}\n"),
        false => format!("[-]{name} failed: {detail}\n"),
    };
    let leader = head.leader.as_ref().map_or("none known".to_owned(), |leader| leader.name.clone());
    let read = not_ready.cloned().unwrap_or_else(|| format!("revision {}", head.revision));
    let status = api.registry.status();
    let room = match (&status.disk_full, status.disk_free) {
        (Some(full), _) => full.clone(),
        (None, Some(free)) => format!("{} MiB free", free >> 20),
        (None, None) => "no bound".to_owned(),
    };
    let pace = status.disk_slow.clone().unwrap_or_else(|| "fast enough for elections".to_owned());
    line(true, "process", format!("node {}", head.node_id))
        + &line(head.leader.is_some(), "leader", leader)
        + &line(not_ready.is_none(), "linearizable-read", read)
        + &line(status.disk_full.is_none(), "disk", room)
        + &line(status.disk_slow.is_none(), "disk-pace", pace)
        + &line(status.alarm.is_none(), "alarm", status.alarm.clone().unwrap_or_else(|| "none".to_owned()))
}

async fn actuator_health() -> Json<serde_json::Value> {
    Json(json!({ "status": "UP" }))
}

async fn actuator_info() -> Json<serde_json::Value> {
    Json(json!({ "app": { "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") } }))
}

async fn metrics(State(api): State<Api>) -> Response {
    match scrape::exposition(&api).await {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
