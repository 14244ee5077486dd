//! What the balancer says to a gRPC client that asked for something nobody answered: a status of gRPC, which its library
//! understands, in place of one of HTTP. Pure.
//!
//! "gRPC over HTTP2", Responses: a head alone that ends its stream (`Trailers-Only`), with status 200.

use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::proxy::http1::{Fields, Name};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether a request is a call of gRPC.
pub fn is_call(fields: &Fields) -> bool {
    let kind = fields.first(Name::ContentType).unwrap_or_default();
    let rest = kind.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Makes of an answer of ours, of which this is the head and `text` the body, one that ends with its head.
pub fn trailers_only(mut response: Response<()>, text: &str) -> Response<()> {
    let status = status(response.status());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(STATUS, HeaderValue::from(status));
    headers.insert(MESSAGE, message(text));
    response
}

/// The status of gRPC for one of ours. A call that nobody took may be made again; one that was late was late.
fn status(status: StatusCode) -> u16 {
    const DEADLINE_EXCEEDED: u16 = 4;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNKNOWN: u16 = 2;
    match status {
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => DEADLINE_EXCEEDED,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
            UNAVAILABLE
        }
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => RESOURCE_EXHAUSTED,
        StatusCode::NOT_FOUND => UNIMPLEMENTED,
        StatusCode::BAD_REQUEST => INTERNAL,
        _ => UNKNOWN,
    }
}

/// Percent-encoded, as the protocol has it: everything but what is visible, and the percent sign.
fn message(text: &str) -> HeaderValue {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(out).expect("nothing but visible characters and spaces")
}
