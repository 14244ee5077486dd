//! Errors as `application/problem+json` (RFC 9457): what went wrong, and what to do about it.

use http::StatusCode;
use serde::Serialize;

/// An error that a caller of the admin API sees.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Names the kind of problem, for programs.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The kind of problem, for people.
    pub title: &'static str,
    /// The status it is answered with.
    pub status: u16,
    /// What is wrong with this request, and what to do.
    pub detail: String,
}

impl Problem {
    /// Nothing is served under the path.
    pub fn no_such_path(detail: String) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "urn:balancer:problem:no-such-path", "no such path", detail)
    }

    /// The path is served, this method is not.
    pub fn no_such_method(detail: String) -> Problem {
        let kind = "urn:balancer:problem:no-such-method";
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, kind, "method not allowed", detail)
    }

    /// What is asked cannot be read.
    pub fn bad_query(detail: String) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "urn:balancer:problem:bad-query", "bad query", detail)
    }

    /// A page of another origin may have made the request.
    pub fn foreign(detail: String) -> Problem {
        let kind = "urn:balancer:problem:foreign-origin";
        Problem::new(StatusCode::FORBIDDEN, kind, "not from another origin", detail)
    }

    /// The configuration file cannot be used.
    pub fn bad_configuration(detail: String) -> Problem {
        let kind = "urn:balancer:problem:bad-configuration";
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, kind, "the configuration cannot be used", detail)
    }

    fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: String) -> Problem {
        Problem { kind, title, status: status.as_u16(), detail }
    }
}
