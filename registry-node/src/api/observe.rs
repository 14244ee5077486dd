//! Around every request: counted and timed by operation, and a panic contained.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tonic::Code;

use super::Api;
use super::reply::{self, Problem};
use super::request::within;

/// Runs the request. A panic is a bug; it costs its own request and no other, whatever connection they share.
pub async fn observe(State(api): State<Api>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let grpc = is_grpc(request.headers());
    let call = operation(&request, grpc);
    // What is one message has to come; a stream takes its time.
    let streams = matches!(call, Some(("pipeline" | "watch", _)));
    let request =
        if grpc && !streams { request.map(|body| within(api.limits.body_timeout, body)) } else { request };
    let response = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            tracing::error!(operation = call.map(|(operation, _)| operation), "a request panicked");
            refuse(grpc, Code::Internal, Problem::internal("a bug on this node"))
        }
    };
    if let Some((operation, protocol)) = call {
        api.metrics.request(operation, protocol, result(&response), begun.elapsed());
    }
    response
}

/// Refuses a request in the protocol it came in.
pub fn refuse(grpc: bool, code: Code, problem: Problem) -> Response {
    match grpc {
        true => tonic::Status::new(code, problem.detail()).into_http::<()>().map(|()| Body::empty()),
        false => problem.into_response(),
    }
}

/// Whether the request is a gRPC call.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// What is called, and by which protocol: label values, so of a closed set. Probes and scrapes are not counted.
fn operation(request: &Request, grpc: bool) -> Option<(&'static str, &'static str)> {
    if grpc {
        return grpc_operation(request.uri().path());
    }
    let path = request.extensions().get::<MatchedPath>()?.as_str();
    let method = request.method();
    let operation = match path {
        "/v1/instances/{id}" if method == Method::PUT => "register",
        "/v1/instances/{id}" if method == Method::DELETE => "deregister",
        "/v1/instances/{id}" => "get",
        "/v1/instances/{id}/heartbeat" => "heartbeat",
        "/v1/instances/{id}/status" => "set_status",
        "/v1/instances/{id}/history" => "history",
        "/v1/instances" | "/v1/services/{service}" => "list",
        "/v1/services" => "list_services",
        "/v1/watch" => "watch",
        "/v1/status" => "status",
        "/v1/members" if method == Method::GET => "members",
        "/v1/snapshot" if method == Method::GET => "backup",
        "/v1/snapshot" => "snapshot",
        "/v1/snapshot/restore" => "restore",
        "/v1/leases/release" => "release_leases",
        path if path.starts_with("/v1/") => "change_members",
        "/api/v1/services/register" => return Some(("register", "legacy")),
        "/api/v1/services/heartbeat/{id}" => return Some(("heartbeat", "legacy")),
        "/api/v1/services/deregister/{id}" => return Some(("deregister", "legacy")),
        path if path.starts_with("/api/v1/services") => return Some(("list", "legacy")),
        _ => return None,
    };
    Some((operation, "rest"))
}

fn grpc_operation(path: &str) -> Option<(&'static str, &'static str)> {
    match path.strip_prefix("/serviceregistry.ServiceRegistry/") {
        Some("RegisterService") => return Some(("register", "legacy")),
        Some("SendHeartbeat") => return Some(("heartbeat", "legacy")),
        Some("DeregisterService") => return Some(("deregister", "legacy")),
        Some("GetHealthyServices") => return Some(("list", "legacy")),
        _ => {}
    }
    let operation = match path.strip_prefix("/registry.v1.")? {
        "Registry/Register" => "register",
        "Registry/Heartbeat" => "heartbeat",
        "Registry/Deregister" => "deregister",
        "Registry/History" => "history",
        "Registry/SetStatus" => "set_status",
        "Registry/List" => "list",
        "Registry/Get" => "get",
        "Registry/ListServices" => "list_services",
        "Registry/Pipeline" => "pipeline",
        "Registry/Watch" => "watch",
        "Admin/Status" => "status",
        "Admin/Members" => "members",
        "Admin/Snapshot" => "snapshot",
        "Admin/Backup" => "backup",
        "Admin/Restore" => "restore",
        "Admin/ReleaseLeases" => "release_leases",
        call if call.starts_with("Admin/") => "change_members",
        _ => return None,
    };
    Some((operation, "grpc"))
}

/// `ok` or an error's code: that of the problem, or the name of the gRPC code.
fn result(response: &Response) -> &'static str {
    if let Some(reply::Code(code)) = response.extensions().get() {
        return code;
    }
    let grpc = response.headers().get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()));
    match grpc {
        None if response.status().is_success() => "ok",
        None => "HTTP",
        Some(Code::Ok) => "ok",
        Some(Code::InvalidArgument) => "INVALID_ARGUMENT",
        Some(Code::DeadlineExceeded) => "DEADLINE_EXCEEDED",
        Some(Code::NotFound) => "NOT_FOUND",
        Some(Code::ResourceExhausted) => "RESOURCE_EXHAUSTED",
        Some(Code::FailedPrecondition) => "FAILED_PRECONDITION",
        Some(Code::Aborted) => "ABORTED",
        Some(Code::Unimplemented) => "UNIMPLEMENTED",
        Some(Code::Internal) => "INTERNAL",
        Some(Code::Unavailable) => "UNAVAILABLE",
        Some(_) => "OTHER",
    }
}
