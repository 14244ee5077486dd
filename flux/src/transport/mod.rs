//! How bytes travel.

use std::fmt;

/// A protocol, or the choice of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// gRPC first, REST when gRPC cannot connect, back to gRPC when it can.
    #[default]
    Auto,
    /// gRPC only.
    Grpc,
    /// REST only.
    Rest,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Auto => "auto",
            Transport::Grpc => "grpc",
            Transport::Rest => "rest",
        })
    }
}
