//! Which node to ask next. Pure: it is told what happened and when, and answers with a node.
//!
//! The configured nodes are the ground: they are never forgotten, whatever the registry says of itself, because
//! its own idea of its addresses may be wrong from here. On top of them come the leader, as the last answer
//! named it, and the other members. A node that did not answer rests for a while: it is not left out, it is
//! asked last.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proto::registry::v1 as wire;
use tokio::time::Instant;

use crate::Error;

#[cfg(test)]
mod tests;

/// The first rest of a node that did not answer. It doubles with each failure in a row.
const REST_MIN: Duration = Duration::from_millis(500);

/// The longest rest: a node that is back is found within this time even if nobody names it.
const REST_MAX: Duration = Duration::from_secs(15);

/// Where one node is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    /// URL for gRPC, without a trailing slash.
    pub(crate) grpc: Arc<str>,
    /// URL for REST, often the same: both ports take both protocols.
    pub(crate) rest: Arc<str>,
}

/// All nodes known, and what is known of them.
#[derive(Clone, Debug)]
pub(crate) struct Nodes {
    /// Never empty, never changes.
    configured: Vec<Node>,
    /// Members that are none of the configured.
    learned: Vec<Node>,
    /// Whom the last answer named.
    leader: Option<Node>,
    /// Who answered last: the next best guess.
    last: Option<Node>,
    resting: HashMap<Node, Rest>,
}

#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Instant,
    failures: u32,
}

impl Node {
    /// Reads an endpoint as people write it: `http://host:port` or `host:port`.
    pub(crate) fn parse(endpoint: &str) -> Result<Node, Error> {
        let url = normalize(endpoint)?;
        Ok(Node { grpc: Arc::clone(&url), rest: url })
    }

    /// The node that `member` describes; none if it names no address that can be dialled.
    pub(crate) fn of_member(member: &wire::Member) -> Option<Node> {
        Node::of_urls(&member.grpc, &member.rest)
    }

    /// The node with these addresses; one stands in for the other where it is missing.
    pub(crate) fn of_urls(grpc: &str, rest: &str) -> Option<Node> {
        let dialable = |url: &str| normalize(url).ok().filter(|url| !url.contains("//0.0.0.0:"));
        let (grpc, rest) = (dialable(grpc), dialable(rest));
        Some(Node { grpc: grpc.clone().or_else(|| rest.clone())?, rest: rest.or(grpc)? })
    }

    /// Whether both are one node: they share an address.
    fn is(&self, other: &Node) -> bool {
        self.grpc == other.grpc || self.rest == other.rest
    }
}

impl Nodes {
    /// Nodes reached at `configured`, in the order of preference.
    pub(crate) fn new(configured: Vec<Node>) -> Nodes {
        assert!(!configured.is_empty(), "a client has at least one endpoint");
        Nodes { configured, learned: Vec::new(), leader: None, last: None, resting: HashMap::new() }
    }

    /// All nodes, whom to ask first at the front: the leader, then who answered last, then as configured, then
    /// as learned. Those that rest come last, the one that has rested longest first.
    pub(crate) fn order(&self, now: Instant) -> Vec<Node> {
        self.ranked(self.leader.iter().chain(&self.last), 0, now)
    }

    /// The configured nodes alone, for questions about themselves.
    pub(crate) fn order_configured(&self, now: Instant) -> Vec<Node> {
        let mut order = self.ranked(std::iter::empty(), 0, now);
        order.retain(|node| self.configured.contains(node));
        order
    }

    /// All nodes for a watch, which any node can serve: beginning at the `turn`-th configured one, so that
    /// watchers spread. The node just `left` comes after all others that do not rest.
    pub(crate) fn order_for_watch(&self, turn: usize, left: Option<&Node>, now: Instant) -> Vec<Node> {
        let mut order = self.ranked(std::iter::empty(), turn, now);
        order.sort_by_key(|node| (self.rests_until(node, now), Some(node) == left));
        order
    }

    /// `node` answered, and named `leader`.
    pub(crate) fn answered(&mut self, node: &Node, leader: Option<&Node>) {
        self.resting.remove(node);
        self.last = Some(node.clone());
        if let Some(leader) = leader {
            self.follow(leader);
        }
    }

    /// Somebody named `leader`: it is asked next, unless it did not answer just now.
    pub(crate) fn follow(&mut self, leader: &Node) {
        self.leader = Some(self.known(leader));
    }

    /// `node` did not answer, or could not serve.
    pub(crate) fn failed(&mut self, node: &Node, now: Instant) {
        let failures = self.resting.get(node).map_or(0, |rest| rest.failures);
        let rest = REST_MAX.min(REST_MIN * 2u32.pow(failures.min(5)));
        self.resting.insert(node.clone(), Rest { until: now + rest, failures: failures + 1 });
    }

    /// The members, as one of them knows them. What was learned before is forgotten, what was configured is not.
    pub(crate) fn learn(&mut self, members: impl IntoIterator<Item = Node>) {
        self.learned = members.into_iter().filter(|m| !self.configured.iter().any(|c| c.is(m))).collect();
        let Nodes { configured, learned, leader, .. } = self;
        self.resting.retain(|node, _| {
            configured.contains(node) || learned.contains(node) || leader.as_ref() == Some(node)
        });
    }

    /// How many nodes there are to choose from.
    pub(crate) fn len(&self) -> usize {
        self.configured.len() + self.learned.len()
    }

    /// The configured address of `node`, if it has one: that one is known to be right from here.
    fn known(&self, node: &Node) -> Node {
        self.configured.iter().find(|c| c.is(node)).unwrap_or(node).clone()
    }

    fn ranked<'a>(&'a self, first: impl Iterator<Item = &'a Node>, turn: usize, now: Instant) -> Vec<Node> {
        let (front, back) = self.configured.split_at(turn % self.configured.len());
        let mut order: Vec<Node> = Vec::with_capacity(self.len() + 1);
        for node in first.chain(back).chain(front).chain(&self.learned) {
            if !order.contains(node) {
                order.push(node.clone());
            }
        }
        order.sort_by_key(|node| self.rests_until(node, now));
        order
    }

    fn rests_until(&self, node: &Node, now: Instant) -> Option<Instant> {
        self.resting.get(node).map(|rest| rest.until).filter(|until| *until > now)
    }
}

/// `scheme://host:port`, whatever came in. The original's SDK was given the path of its API as well.
fn normalize(endpoint: &str) -> Result<Arc<str>, Error> {
    let endpoint = endpoint.trim();
    let wrong = |why: &str| Error::invalid(format!("{endpoint:?} is not an endpoint: {why}"));
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("http", endpoint));
    let rest = rest.trim_end_matches('/');
    let authority = rest.strip_suffix("/api/v1/services").unwrap_or(rest);
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(wrong("only http:// is spoken"));
    }
    match authority.parse::<http::uri::Authority>() {
        Ok(parsed) if parsed.host().is_empty() || parsed.as_str().contains('@') => {
            Err(wrong("give it as http://host:port"))
        }
        Ok(parsed) if parsed.port_u16().is_none() && parsed.as_str() != parsed.host() => {
            Err(wrong("the port is not one"))
        }
        Ok(parsed) => Ok(format!("http://{parsed}").into()),
        Err(_) => Err(wrong("give it as http://host:port")),
    }
}
