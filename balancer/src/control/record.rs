//! What the catalog says, reduced to what a balancer uses. Records outlive the process, so their shape only grows.

use crate::pool::Protocol;

/// An instance as the catalog has it, reduced to what a balancer uses.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Record {
    /// Unique in the catalog.
    pub id: String,
    /// The service it belongs to.
    pub service: String,
    /// Where it is.
    pub url: String,
    /// Path of its probe; empty for the default.
    pub health_path: String,
    /// Share of traffic, at least 1.
    pub weight: u32,
    /// Where it runs; empty if it does not say.
    #[serde(default)]
    pub zone: String,
    /// Of its program; empty if it does not say.
    #[serde(default)]
    pub version: String,
    /// How it is probed, if it says.
    #[serde(default)]
    pub probe: Option<Probe>,
    /// The service that a gRPC probe asks for; empty for the server as a whole.
    #[serde(default)]
    pub probe_service: String,
    /// What it is spoken to in.
    #[serde(default)]
    pub protocol: Protocol,
    /// What its owner wants.
    pub intent: Intent,
    /// Changes when the instance registers anew.
    pub incarnation: u64,
}

/// Whether an instance wants requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// It does.
    Serve,
    /// It finishes what it has.
    Drain,
    /// It is being worked on.
    Maintain,
}

/// How an instance is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// A GET of its health path.
    Http,
    /// A connection is enough.
    Tcp,
    /// A call of `grpc.health.v1.Health/Check`.
    Grpc,
}

impl Probe {
    /// By its name in configuration and metadata.
    pub fn named(name: &str) -> Option<Probe> {
        match name.to_ascii_lowercase().as_str() {
            "http" => Some(Probe::Http),
            "tcp" => Some(Probe::Tcp),
            "grpc" => Some(Probe::Grpc),
            _ => None,
        }
    }

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Probe::Http => "http",
            Probe::Tcp => "tcp",
            Probe::Grpc => "grpc",
        }
    }
}

/// A change of the catalog.
#[derive(Clone, Debug)]
pub enum Change {
    /// Replaces everything.
    Reset {
        /// The catalog's revision.
        revision: u64,
        /// All records.
        records: Vec<Record>,
    },
    /// What happened, in order.
    Events {
        /// The catalog's revision after them.
        revision: u64,
        /// The events.
        events: Vec<Event>,
    },
    /// Nothing more up to this revision.
    Progress {
        /// The catalog's revision.
        revision: u64,
    },
}

/// One event of a [`Change::Events`].
#[derive(Clone, Debug)]
pub enum Event {
    /// Registered or changed.
    Put(Record),
    /// Gone: deregistered, moved or expired.
    Gone(String),
}
