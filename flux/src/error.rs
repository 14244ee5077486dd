//! The one error of the SDK. Every call is a remote call, so what can go wrong is the same everywhere, and a
//! caller asks of all of it the same two questions: may I try again, and did anything happen?

use std::fmt;

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    code: Code,
    message: String,
    retryable: bool,
    had_no_effect: bool,
}

/// Kinds of failures that a caller tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request itself is wrong; the message says which part.
    InvalidArgument,
    /// The instance is not registered.
    NotFound,
    /// `expected_revision` did not match, or the request cannot be carried out as things are.
    Precondition,
    /// Another incarnation holds the id: `reg_rev` did not match.
    Superseded,
    /// The lease has run out; register again.
    LeaseLost,
    /// So many later writes of this client went before that the registry has forgotten whether this one took
    /// effect. The same write may be sent again as a new one.
    StaleSequence,
    /// The revision asked for is no longer remembered; the message names the oldest that is.
    Compacted,
    /// A limit of the registry is reached.
    ResourceExhausted,
    /// Nobody could take the request: no node reachable, no leader, or the node is not ready.
    Unavailable,
    /// No answer in time.
    Timeout,
    /// The registry does not offer this call.
    Unimplemented,
    /// The registry, or what stands between, answered something that cannot be understood.
    Internal,
}

impl Error {
    /// Whether the same call may succeed later. It says nothing about this one: see
    /// [`Error::had_no_effect`].
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// Whether the call certainly changed nothing. False means the outcome is unknown.
    pub fn had_no_effect(&self) -> bool {
        self.had_no_effect
    }

    /// What kind of failure it is.
    pub fn code(&self) -> Code {
        self.code
    }

    /// An error with what its code says of retries and effects.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Error {
        let (retryable, had_no_effect) = code.retryable_and_had_no_effect();
        Error { code, message: message.into(), retryable, had_no_effect }
    }

    /// The request is wrong: it was not sent.
    pub(crate) fn invalid(message: impl Into<String>) -> Error {
        Error::new(Code::InvalidArgument, message)
    }

    /// The same, with what the registry itself says of retries.
    pub(crate) fn retryable(mut self, retryable: Option<bool>) -> Error {
        self.retryable = retryable.unwrap_or(self.retryable);
        self
    }

    /// The same, with what is known of effects.
    pub(crate) fn no_effect(mut self, had_no_effect: Option<bool>) -> Error {
        self.had_no_effect = had_no_effect.unwrap_or(self.had_no_effect);
        self
    }
}

impl Code {
    /// The code for a name on the wire. The registry tells more causes apart than a caller can.
    pub(crate) fn named(name: &str) -> Option<Code> {
        Some(match name {
            "INVALID_ARGUMENT" | "INVALID" => Code::InvalidArgument,
            "NOT_FOUND" => Code::NotFound,
            "COMPACTED" => Code::Compacted,
            "REFUSED" | "PRECONDITION" => Code::Precondition,
            "SUPERSEDED" => Code::Superseded,
            "LEASE_LOST" => Code::LeaseLost,
            "RESOURCE_EXHAUSTED" | "OVERLOADED" | "DISK_FULL" => Code::ResourceExhausted,
            "UNAVAILABLE" | "NOT_READY" | "NO_LEADER" => Code::Unavailable,
            "DEADLINE_EXCEEDED" | "UNKNOWN_OUTCOME" => Code::Timeout,
            "UNIMPLEMENTED" | "UNSUPPORTED" => Code::Unimplemented,
            "STALE_SEQUENCE" => Code::StaleSequence,
            "INTERNAL" => Code::Internal,
            _ => return None,
        })
    }

    /// What holds for a code unless the registry says otherwise.
    fn retryable_and_had_no_effect(self) -> (bool, bool) {
        match self {
            Code::InvalidArgument
            | Code::NotFound
            | Code::Precondition
            | Code::Superseded
            | Code::LeaseLost
            | Code::Compacted
            | Code::Unimplemented => (false, true),
            Code::ResourceExhausted | Code::Unavailable => (true, true),
            Code::StaleSequence => (false, false),
            Code::Timeout | Code::Internal => (true, false),
        }
    }

    /// A stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::NotFound => "NOT_FOUND",
            Code::Precondition => "PRECONDITION",
            Code::Superseded => "SUPERSEDED",
            Code::LeaseLost => "LEASE_LOST",
            Code::Compacted => "COMPACTED",
            Code::StaleSequence => "STALE_SEQUENCE",
            Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Code::Unavailable => "UNAVAILABLE",
            Code::Timeout => "DEADLINE_EXCEEDED",
            Code::Unimplemented => "UNIMPLEMENTED",
            Code::Internal => "INTERNAL",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
