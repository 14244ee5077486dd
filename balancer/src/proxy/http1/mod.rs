//! HTTP/1, strictly: bytes in, what they mean out. Pure; no socket, no clock.
//!
//! ```text
//! bytes ─▶ lines (where a head ends) ─▶ head (what it says) ─▶ framing (how its body is delimited)
//!                                                                 │
//! bytes ────────────────────────────────────────────────────▶ body (what of them is its data)
//! ```
//!
//! [`Request::parse`] and [`Response::parse`] read a head, [`Body`] its body, and [`Requests`] a whole connection:
//! that is the machine that corpus and fuzzers drive. Sources: RFC 9110 (fields), RFC 9112 (messages).
//!
//! # What two readers could read differently is refused
//! Request smuggling lives on leniency: a proxy and a server each repair a flaw, in different ways, and disagree
//! about where a request ends. So nothing is repaired here. A refused message has a [`Malformed`] that says why,
//! and nothing that follows the flaw is ever handed out.
//!
//! # Why not hyper
//! It drops Content-Length beside Transfer-Encoding without a word, and takes bare line feeds; nobody behind it can
//! tell. Its two tasks and channels per request also cost more than all of the parsing.

mod body;
mod fields;
mod head;
mod lines;
mod requests;

#[cfg(test)]
mod tests;

pub use body::{Body, Framing, Pieces, chunk_head};
pub use fields::{Fields, Name, members};
pub use head::{Request, Response, check_trailer};
pub use lines::Lines;
pub use requests::{Event, Requests};

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A line must end with both carriage return and line feed.
    #[error("a line that ends without carriage return and line feed")]
    BareLineFeed,
    /// Not `method SP target SP version`, or not `version SP status SP reason`.
    #[error("invalid start line")]
    StartLine,
    /// The target is none that this method may have, or has a byte that does not belong there.
    #[error("invalid request target")]
    Target,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("unsupported HTTP version")]
    Version,
    /// A name that is no token, white space around it, a folded line, a control character.
    #[error("invalid header field")]
    Field,
    /// The head is longer than the limit.
    #[error("the head is too long")]
    TooLong,
    /// More fields than anybody needs.
    #[error("too many header fields")]
    TooMany,
    /// HTTP/1.1 demands exactly one.
    #[error("missing Host header")]
    NoHost,
    /// Which of them is meant is anybody's guess.
    #[error("more than one Host header")]
    ManyHosts,
    /// Not `host[:port]`.
    #[error("invalid Host header")]
    BadHost,
    /// Repeated, a list, a sign, empty, or too large.
    #[error("invalid Content-Length")]
    Length,
    /// Two ways to frame the body: the classic of request smuggling.
    #[error("both Content-Length and Transfer-Encoding")]
    TwoFramings,
    /// Only `chunked`, once, is understood.
    #[error("unsupported Transfer-Encoding")]
    Coding,
    /// HTTP/1.0 has none, so one of two readers would ignore it.
    #[error("Transfer-Encoding in HTTP/1.0")]
    OldCoding,
    /// Only `100-continue` is defined.
    #[error("unsupported Expect")]
    Expect,
    /// No hexadecimal digits, too many of them, or something else than an extension or a line end after them.
    #[error("invalid chunk size")]
    ChunkSize,
    /// Not `;name` or `;name=value`, or more of them than anybody needs.
    #[error("invalid chunk extension")]
    ChunkExtension,
    /// A chunk is longer or shorter than it said.
    #[error("invalid chunk end")]
    ChunkEnd,
    /// A field that must not stand after a body, or is none.
    #[error("invalid trailer")]
    Trailer,
}

impl Malformed {
    /// The status that a client is answered with.
    pub fn status(self) -> http::StatusCode {
        match self {
            Malformed::TooLong | Malformed::TooMany => http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Malformed::Version => http::StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Malformed::Expect => http::StatusCode::EXPECTATION_FAILED,
            _ => http::StatusCode::BAD_REQUEST,
        }
    }
}
