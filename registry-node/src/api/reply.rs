//! Answers of the REST APIs that are not messages: problems (RFC 9457).

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{Api, convert};
use crate::registry::{Error, Member};

/// A problem's code, left in its response for who counts.
#[derive(Clone, Copy)]
pub struct Code(pub &'static str);

/// An error as `application/problem+json`.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// Names the kind of problem: a URN made of the code.
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: String,
    /// Stable; the same word as in gRPC's ErrorInfo.
    code: &'static str,
    retryable: bool,
    had_no_effect: bool,
    /// Where the same call is answered without a detour.
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<Box<Leader>>,
}

#[derive(Debug, Serialize)]
struct Leader {
    grpc: String,
    rest: String,
}

impl Problem {
    /// What became of a use case.
    pub fn of(error: &Error, leader: Option<&Member>) -> Problem {
        let wire = convert::wire(error);
        Problem {
            retryable: error.is_retryable(),
            had_no_effect: error.had_no_effect(),
            leader: leader
                .map(|leader| Box::new(Leader { grpc: leader.grpc.clone(), rest: leader.rest.clone() })),
            ..Problem::refused(wire.http, error.code(), wire.title, error.to_string())
        }
    }

    /// The lease a heartbeat was for is gone or another's.
    pub fn lease_lost(id: &str) -> Problem {
        let detail = format!("instance {id} holds no such lease: register again");
        Problem::refused(StatusCode::NOT_FOUND, "LEASE_LOST", "lease lost", detail)
    }

    /// The request cannot be read at all.
    pub fn malformed(detail: impl Into<String>) -> Problem {
        Problem::refused(StatusCode::BAD_REQUEST, "MALFORMED", "malformed request", detail.into())
    }

    /// The body exceeds what one request may have.
    pub fn too_large(bytes_max: usize) -> Problem {
        let detail = format!("a request's body may have {bytes_max} bytes");
        Problem::refused(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", "body too large", detail)
    }

    /// Nothing is served under the path.
    pub fn no_such_path(detail: String) -> Problem {
        Problem::refused(StatusCode::NOT_FOUND, "NO_SUCH_PATH", "no such path", detail)
    }

    /// The path is served, this method is not.
    pub fn no_such_method(detail: String) -> Problem {
        Problem::refused(StatusCode::METHOD_NOT_ALLOWED, "NO_SUCH_METHOD", "method not allowed", detail)
    }

    /// A bug: nothing is known of what happened.
    pub fn internal(detail: &str) -> Problem {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Problem {
            had_no_effect: false,
            ..Problem::refused(status, "INTERNAL", "internal error", detail.to_owned())
        }
    }

    /// What went wrong, for people.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    fn refused(status: StatusCode, code: &'static str, title: &'static str, detail: String) -> Problem {
        Problem {
            kind: format!("urn:registry:error:{}", code.to_lowercase().replace('_', "-")),
            title,
            status: status.as_u16(),
            detail,
            code,
            retryable: false,
            had_no_effect: true,
            leader: None,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).expect("it was made from a status");
        let retry = (self.retryable && matches!(self.status, 429 | 503 | 507))
            .then_some(convert::RETRY_AFTER.as_secs());
        let code = Code(self.code);
        let mut response = (status, Json(self)).into_response();
        response.extensions_mut().insert(code);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl Api {
    /// The problem that answers a failed use case, with the leader as this node knows it.
    pub fn problem(&self, error: impl Into<Error>) -> Problem {
        Problem::of(&error.into(), self.registry.header().leader.as_ref())
    }

    /// The same for gRPC.
    pub fn status(&self, error: impl Into<Error>) -> tonic::Status {
        convert::status(&error.into(), self.registry.header().leader.as_ref())
    }
}
