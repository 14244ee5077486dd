//! How a command fails: what failed, why, what to try next, and the exit code that tells scripts causes apart.

use crate::{Code, Error};

/// Why a command failed.
pub(super) enum Failed {
    /// A call failed with this error; the hint says what to try, or is empty for the one that fits its code.
    Call { what: String, error: Error, hint: String },
    /// The command itself cannot be carried out as given.
    Usage { what: String, hint: String },
    /// What was asked for is not there.
    NotFound { what: String, hint: String },
    /// It would do harm as things are.
    Refused { what: String, hint: String },
    /// It took longer than allowed.
    TimedOut { what: String, hint: String },
    /// The nodes answer, and none of them leads.
    NoLeader,
    /// By a signal.
    Interrupted,
    /// Nobody reads the output any more; that is how `| head` ends.
    OutputClosed,
    /// On this machine.
    Other(String),
}

impl Failed {
    /// A call failed, and the hint that goes with the error's code is right.
    pub(super) fn call(what: impl Into<String>, error: Error) -> Failed {
        Failed::Call { what: what.into(), error, hint: String::new() }
    }

    /// The exit code, what failed and why, and what to try next.
    pub(super) fn explain(self, endpoints: &[String]) -> (u8, String, String) {
        match self {
            Failed::Call { what, error, hint } => {
                let (code, usual) = explain(error.code(), endpoints);
                let doubt = if error.had_no_effect() {
                    ""
                } else {
                    " (it may have taken effect: look before you repeat it)"
                };
                (code, format!("{what}: {error}{doubt}"), if hint.is_empty() { usual } else { hint })
            }
            Failed::Usage { what, hint } => (2, what, hint),
            Failed::NotFound { what, hint } => (3, what, hint),
            Failed::TimedOut { what, hint } => (4, what, hint),
            Failed::Refused { what, hint } => (6, what, hint),
            Failed::NoLeader => {
                let hint = "try again in a second: an election takes less. If it stays so, a majority of the \
                            nodes is down: start them";
                (4, "no node is the leader now: nothing can be registered".to_owned(), hint.to_owned())
            }
            Failed::Interrupted => {
                let hint = "what was under way may have taken effect; the same command can be run again";
                (130, "interrupted".to_owned(), hint.to_owned())
            }
            Failed::OutputClosed => (0, String::new(), String::new()),
            Failed::Other(what) => (1, what, String::new()),
        }
    }
}

fn explain(code: Code, endpoints: &[String]) -> (u8, String) {
    let unavailable = || {
        format!(
            "is the registry running at {}? name its nodes by --endpoints or REGISTRY_ENDPOINTS; \
             a node's own view is at its /readyz?verbose",
            endpoints.join(", ")
        )
    };
    match code {
        Code::InvalidArgument => (2, "try `registryctl --help`".to_owned()),
        Code::NotFound => (3, "try `registryctl instances` for what is registered".to_owned()),
        Code::Unavailable | Code::Timeout => (4, unavailable()),
        Code::Precondition | Code::Superseded | Code::LeaseLost => {
            (6, "it was changed meanwhile: look again with `registryctl instances`".to_owned())
        }
        Code::Compacted => {
            (3, "the past is remembered in memory, a bounded ring of changes on each node: another node may reach \
                 further back".to_owned())
        }
        Code::Unimplemented => (1, "the registry is older than this program".to_owned()),
        Code::ResourceExhausted | Code::StaleSequence | Code::Internal => {
            (1, "the nodes' logs say more".to_owned())
        }
    }
}
