//! What runs and what it says of itself: the shape of `status -o json`, which scripts rely on.

use std::{fmt, time::Duration};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::{
    http,
    spec::Kind,
    state::{Process, State},
};

#[cfg(test)]
mod tests;

/// A process that has not answered by then counts as down.
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// The whole cluster at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// In order of their ids.
    pub nodes: Vec<NodeStatus>,
    /// In order of their names.
    pub balancers: Vec<BalancerStatus>,
    /// In order of their names.
    pub backends: Vec<BackendStatus>,
}

/// A registry node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// `node-1`.
    pub name: String,
    /// Its id in the consensus group.
    pub id: u64,
    /// URL for clients.
    pub rest: String,
    /// URL for clients.
    pub grpc: String,
    /// URL for other nodes.
    pub peer: String,
    /// `None` when no process runs.
    pub pid: Option<i32>,
    /// What it says it is; [`Role::Down`] when it does not answer.
    pub role: Role,
    /// The catalog's revision it has applied; 0 when it does not answer.
    pub revision: u64,
}

/// What a node is in the consensus group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It leads.
    Leader,
    /// It follows a leader, or waits for one.
    Follower,
    /// It receives the log and has no vote.
    Learner,
    /// It campaigns.
    Candidate,
    /// It does not answer: stopped, paused or not yet up.
    #[default]
    Down,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Learner => "learner",
            Role::Candidate => "candidate",
            Role::Down => "down",
        })
    }
}

/// A balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalancerStatus {
    /// `lb-1`.
    pub name: String,
    /// URL for requests.
    pub http: String,
    /// URL for operators.
    pub admin: String,
    /// `None` when no process runs.
    pub pid: Option<i32>,
    /// Endpoints that take requests; 0 when it does not answer.
    pub ready_endpoints: u64,
}

/// A sample backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// `backend-1`.
    pub name: String,
    /// The service it registers.
    pub service: String,
    /// URL for requests.
    pub url: String,
    /// `None` when no process runs.
    pub pid: Option<i32>,
}

impl Status {
    /// Names of nodes that say they lead. Two during a partition; the one with the highest term is right.
    pub fn leaders(&self) -> impl Iterator<Item = &NodeStatus> {
        self.nodes.iter().filter(|node| node.role == Role::Leader)
    }
}

/// Asks every process at once.
pub(crate) async fn gather(state: &State) -> Status {
    let mut status = Status::default();
    for one in join_all(state.processes.iter().map(ask)).await {
        match one {
            One::Node(node) => status.nodes.push(node),
            One::Balancer(balancer) => status.balancers.push(balancer),
            One::Backend(backend) => status.backends.push(backend),
        }
    }
    status
}

enum One {
    Node(NodeStatus),
    Balancer(BalancerStatus),
    Backend(BackendStatus),
}

async fn ask(process: &Process) -> One {
    let name = process.spec.name.clone();
    let pid = process.running().map(|pid| pid.pid);
    match process.spec.kind.clone() {
        Kind::Node { id, rest, grpc, peer } => {
            let said = if pid.is_some() { ask_node(&rest).await } else { None }.unwrap_or_default();
            One::Node(NodeStatus {
                name,
                id,
                rest,
                grpc,
                peer,
                pid,
                role: said.role,
                revision: said.revision,
            })
        }
        Kind::Balancer { http, admin } => {
            let ready_endpoints = if pid.is_some() { ask_balancer(&admin).await } else { 0 };
            One::Balancer(BalancerStatus { name, http, admin, pid, ready_endpoints })
        }
        Kind::Backend { service, url, .. } => One::Backend(BackendStatus { name, service, url, pid }),
    }
}

/// What a node says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeSays {
    pub role: Role,
    pub term: u64,
    pub revision: u64,
}

/// Asks the node at `rest`; `None` if it does not answer.
pub(crate) async fn ask_node(rest: &str) -> Option<NodeSays> {
    let answer = http::get(&format!("{rest}/v1/status"), ASK_WITHIN).await.ok()?;
    answer.is_ok().then(|| parse_node(&answer.json()?))?
}

/// A `registry.v1.StatusResponse` as proto3 JSON: 64-bit numbers are strings, zeros and unspecified are absent.
fn parse_node(json: &serde_json::Value) -> Option<NodeSays> {
    let header = json.get("header")?;
    let number = |key: &str| match header.get(key) {
        Some(serde_json::Value::String(text)) => text.parse().ok(),
        Some(other) => other.as_u64(),
        None => Some(0),
    };
    let role = match json.get("role").and_then(serde_json::Value::as_str) {
        Some("LEADER") => Role::Leader,
        Some("LEARNER") => Role::Learner,
        Some("CANDIDATE") => Role::Candidate,
        _ => Role::Follower,
    };
    Some(NodeSays { role, term: number("term")?, revision: number("revision")? })
}

async fn ask_balancer(admin: &str) -> u64 {
    let answer = http::get(&format!("{admin}/v1/endpoints"), ASK_WITHIN).await;
    answer.ok().and_then(|answer| answer.json()).map_or(0, |json| ready_endpoints(&json))
}

/// What a balancer says of its endpoints counts those that take requests under `ready`.
fn ready_endpoints(json: &serde_json::Value) -> u64 {
    json.get("ready").and_then(serde_json::Value::as_u64).unwrap_or(0)
}
