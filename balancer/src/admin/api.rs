//! What is served under which path and method. The table is all there is: what is not in it is a problem, and
//! `openapi.json` describes exactly it.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;
use tracing::info;

use super::problem::Problem;
use super::views::{Endpoints, Overview, Routes};
use super::{Admin, origin, query};
use crate::proxy::explain;

/// An answer.
pub type Reply = Response<Full<Bytes>>;

/// One thing that is served. What changes something is a POST.
pub struct Operation {
    /// `GET`, which answers HEAD too, or `POST`.
    pub method: Method,
    /// Its path.
    pub path: &'static str,
    serve: fn(&Admin, &str) -> Reply,
}

const fn get(path: &'static str, serve: fn(&Admin, &str) -> Reply) -> Operation {
    Operation { method: Method::GET, path, serve }
}

const fn post(path: &'static str, serve: fn(&Admin, &str) -> Reply) -> Operation {
    Operation { method: Method::POST, path, serve }
}

/// Everything that is served.
pub static OPERATIONS: [Operation; 11] = [
    get("/", |_, _| page()),
    get("/livez", |_, _| text(StatusCode::OK, "ok\n")),
    get("/readyz", |admin, _| readiness(admin)),
    get("/metrics", |admin, _| typed(StatusCode::OK, admin.exposition(), prometheus::TEXT_FORMAT)),
    get("/openapi.json", |_, _| typed(StatusCode::OK, OPENAPI, JSON)),
    get("/v1/endpoints", |admin, _| json(StatusCode::OK, &Endpoints::of(admin))),
    get("/v1/explain", explain),
    get("/v1/overview", |admin, _| json(StatusCode::OK, &Overview::of(admin))),
    get("/v1/routes", |admin, _| json(StatusCode::OK, &Routes::of(admin))),
    post("/v1/drain", |admin, _| drain(admin)),
    post("/v1/reload", |admin, _| reload(admin)),
];

const JSON: &str = "application/json";
const OPENAPI: &str = include_str!("openapi.json");
const PAGE: &str = include_str!("page.html");

/// Answers a request. Bodies are not read: no operation has one.
pub fn answer<B>(admin: &Admin, request: &Request<B>) -> Reply {
    let (method, path) = (request.method(), request.uri().path());
    let query = request.uri().query().unwrap_or_default();
    let asked = if *method == Method::HEAD { &Method::GET } else { method };
    let Some(operation) = OPERATIONS.iter().find(|o| o.path == path && o.method == *asked) else {
        return unserved(method, path);
    };
    match operation.method {
        Method::GET => (operation.serve)(admin, query),
        _ => match origin::check(request.headers()) {
            Ok(()) => (operation.serve)(admin, query),
            Err(why) => problem(&Problem::foreign(why)),
        },
    }
}

fn unserved(method: &Method, path: &str) -> Reply {
    let Some(known) = OPERATIONS.iter().find(|o| o.path == path) else {
        let paths: Vec<&str> = OPERATIONS.iter().map(|o| o.path).collect();
        let detail = format!("there is no {path}; there are {}", paths.join(" "));
        return problem(&Problem::no_such_path(detail));
    };
    let allowed = if known.method == Method::GET { "GET, HEAD" } else { "POST" };
    let detail = format!("{path} takes {allowed}, not {method}");
    let mut reply = problem(&Problem::no_such_method(detail));
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    reply
}

/// The page that people look at. Nothing of it comes from elsewhere, and only its own script and style count.
fn page() -> Reply {
    // From the system's random numbers: a nonce must not be guessed.
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let mut reply = typed(StatusCode::OK, PAGE.replace("NONCE", &nonce), "text/html; charset=utf-8");
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let policy = HeaderValue::from_str(&policy).expect("letters, digits and signs of ASCII");
    reply.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    reply
}

fn explain(admin: &Admin, query: &str) -> Reply {
    match query::question(query, admin.turn.load(Ordering::Relaxed)) {
        Ok(question) => json(StatusCode::OK, &explain::explain(&admin.table.load(), &question)),
        Err(why) => problem(&Problem::bad_query(why)),
    }
}

fn readiness(admin: &Admin) -> Reply {
    match admin.unready() {
        None => text(StatusCode::OK, "ready\n"),
        Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
    }
}

#[derive(Serialize)]
struct Draining {
    draining: bool,
    grace_ms: u64,
}

/// Begins what SIGTERM begins. Asking again changes nothing.
fn drain(admin: &Admin) -> Reply {
    if !admin.drain.is_cancelled() {
        info!(grace = ?admin.drain_grace, "draining, as the admin API was asked to");
    }
    admin.drain.cancel();
    let grace_ms = admin.drain_grace.as_millis() as u64;
    json(StatusCode::ACCEPTED, &Draining { draining: true, grace_ms })
}

/// Does what SIGHUP does, and says what became of it.
fn reload(admin: &Admin) -> Reply {
    match admin.reloader.reload() {
        Ok(outcome) => json(StatusCode::OK, &outcome),
        Err(error) => problem(&Problem::bad_configuration(format!("{error}; what was in force still is"))),
    }
}

fn problem(problem: &Problem) -> Reply {
    let status = StatusCode::from_u16(problem.status).expect("it was made from a status");
    let json = serde_json::to_string_pretty(problem).unwrap_or_default();
    typed(status, json + "\n", "application/problem+json")
}

fn json(status: StatusCode, answer: &impl Serialize) -> Reply {
    let json = serde_json::to_string_pretty(answer).unwrap_or_default();
    typed(status, json + "\n", JSON)
}

/// An answer of plain text.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Reply {
    typed(status, text, "text/plain; charset=utf-8")
}

fn typed(status: StatusCode, text: impl Into<Bytes>, kind: &'static str) -> Reply {
    let mut reply = Response::new(Full::new(text.into()));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}
