//! What a process is: data that can be stored, printed, changed and started somewhere else.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Everything needed to start one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Unique in its cluster: `node-1`, `lb-1`, `backend-1`.
    pub name: String,
    /// What it is and where it answers.
    pub kind: Kind,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Added to the environment of whoever starts it.
    pub env: BTreeMap<String, String>,
    /// Its working directory, created if missing. What it stores lies here and nowhere else.
    pub dir: PathBuf,
    /// Starts it in this network namespace (`ip netns exec`), which needs root.
    pub netns: Option<String>,
}

/// What a process is. Addresses are full URLs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Kind {
    /// A registry node.
    Node {
        /// Its id in the consensus group.
        id: u64,
        /// For clients.
        rest: String,
        /// For clients.
        grpc: String,
        /// For other nodes.
        peer: String,
    },
    /// A balancer.
    Balancer {
        /// For requests.
        http: String,
        /// For operators: readiness, endpoints, metrics.
        admin: String,
    },
    /// A sample backend.
    Backend {
        /// The service it belongs to.
        service: String,
        /// What it registers as.
        id: String,
        /// For requests.
        url: String,
        /// Serves `/metrics`.
        metrics: String,
    },
}

impl Kind {
    /// Answers 200 once the process does its work.
    pub(crate) fn ready_url(&self) -> String {
        match self {
            Kind::Node { rest, .. } => format!("{rest}/readyz"),
            Kind::Balancer { admin, .. } => format!("{admin}/readyz"),
            Kind::Backend { url, .. } => format!("{url}/health"),
        }
    }

    /// Every address it listens on, with the word for what it is.
    pub(crate) fn listens(&self) -> Vec<(&'static str, &str)> {
        match self {
            Kind::Node { rest, grpc, peer, .. } => vec![("rest", rest), ("grpc", grpc), ("peer", peer)],
            Kind::Balancer { http, admin } => vec![("http", http), ("admin", admin)],
            Kind::Backend { url, metrics, .. } => vec![("http", url), ("metrics", metrics)],
        }
    }

    /// Where its metrics are scraped.
    pub fn metrics_url(&self) -> String {
        match self {
            Kind::Node { rest, .. } => format!("{rest}/metrics"),
            Kind::Balancer { admin, .. } => format!("{admin}/metrics"),
            Kind::Backend { metrics, .. } => format!("{metrics}/metrics"),
        }
    }

    /// The order in which processes are stopped: balancers while there is still somebody to send to, backends
    /// while there is still a registry to take leave of.
    pub(crate) fn stop_rank(&self) -> u8 {
        match self {
            Kind::Balancer { .. } => 0,
            Kind::Backend { .. } => 1,
            Kind::Node { .. } => 2,
        }
    }
}

/// The port of a `http://host:port` URL.
pub(crate) fn port_of(url: &str) -> Option<u16> {
    url.rsplit_once(':')?.1.parse().ok()
}
