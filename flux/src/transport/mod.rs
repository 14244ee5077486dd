//! How a call reaches a node: gRPC first, REST when gRPC cannot get through, and back.
//!
//! What can get through to a node is found out by a harmless read before anything else is sent there, so that
//! no write is ever lost in a protocol that never worked. What stands between may reset or swallow HTTP/2 and
//! let HTTP/1.1 pass; both look like silence to gRPC. A node found reachable by REST alone is probed by gRPC
//! in the background until that works again.

pub(crate) mod call;
pub(crate) mod grpc;
pub(crate) mod rest;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use proto::registry::v1 as wire;
use tokio::sync::watch;
use tokio::time::timeout;

use self::call::Call;
use crate::Error;
use crate::error::Code;
use crate::leader_hint::Node;
use crate::metrics::Metrics;

/// A protocol, or the choice of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// gRPC first, REST when gRPC cannot get through, back to gRPC when it can.
    #[default]
    Auto,
    /// gRPC only.
    Grpc,
    /// REST only.
    Rest,
}

/// Longest wait for a TCP connection. A node on a network that works answers in a few round trips.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest wait for the first sign of life over a protocol.
const PROVE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long gRPC alone is given before REST is tried beside it.
const GRPC_HEAD_START: Duration = Duration::from_millis(250);

/// How often gRPC is probed at a node that only REST reaches.
const RETURN_EVERY: Duration = Duration::from_secs(2);

/// Largest answer taken in: a whole catalog, and a guard against whatever else may answer.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The pieces of something long, as they come.
pub(crate) type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// Why an attempt at one node failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Whether the registry itself answered. If not, the way to the node is in doubt.
    pub(crate) reached: bool,
    /// Whom the node named as the leader.
    pub(crate) leader: Option<Node>,
}

/// The connections to all nodes, and which protocol gets through to each.
#[derive(Debug)]
pub(crate) struct Wire {
    choice: Transport,
    grpc: grpc::Grpc,
    rest: rest::Rest,
    ways: Mutex<Ways>,
    /// Counts nodes that came back to gRPC.
    returned: watch::Sender<u64>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Ways {
    /// What was found to get through, never [`Transport::Auto`]. A node that is not in it is not known.
    found: HashMap<Node, Transport>,
    /// Nodes that are probed by gRPC in the background.
    probed: HashSet<Node>,
}

/// The protocol to use, and what was learned while finding it out.
pub(crate) struct Way {
    /// Never [`Transport::Auto`].
    pub(crate) transport: Transport,
    pub(crate) members: Option<wire::MembersResponse>,
}

impl Failure {
    /// The node was not reached; `error` says whether the request may have been.
    pub(crate) fn unreached(error: Error) -> Failure {
        Failure { error, reached: false, leader: None }
    }

    fn timed_out(waited: Duration) -> Failure {
        Failure::unreached(Error::new(Code::Timeout, format!("no answer in {waited:?}")))
    }
}

impl Wire {
    pub(crate) fn new(choice: Transport, metrics: Metrics) -> Arc<Wire> {
        Arc::new(Wire {
            choice,
            grpc: grpc::Grpc::default(),
            rest: rest::Rest::new(),
            ways: Mutex::default(),
            returned: watch::Sender::new(0),
            metrics,
        })
    }

    pub(crate) fn grpc(&self) -> &grpc::Grpc {
        &self.grpc
    }

    pub(crate) fn rest(&self) -> &rest::Rest {
        &self.rest
    }

    /// Changes whenever gRPC gets through again to a node that only REST reached.
    pub(crate) fn returned(&self) -> watch::Receiver<u64> {
        self.returned.subscribe()
    }

    /// The protocol that gets through to `node`, found out first if it is not known. Fails if neither does.
    pub(crate) async fn way(self: &Arc<Self>, node: &Node) -> Result<Way, Failure> {
        match self.known(node) {
            Some(transport) => Ok(Way { transport, members: None }),
            None => self.find_out(node).await,
        }
    }

    /// One attempt at one node by one protocol. Returns within `limit`.
    pub(crate) async fn call<C: Call>(
        &self,
        node: &Node,
        transport: Transport,
        call: &C,
        limit: Duration,
    ) -> Result<C::Reply, Failure> {
        let timer = self.metrics.call(C::OPERATION, transport);
        let attempt = async {
            match transport {
                Transport::Rest => self.rest.call(node, call).await,
                _ => self.grpc.call(node, call, limit).await,
            }
        };
        let result = timeout(limit, attempt).await.unwrap_or_else(|_| Err(Failure::timed_out(limit)));
        timer.done(result.is_ok());
        if result.as_ref().is_err_and(|failure| !failure.reached) {
            self.doubt(node);
        }
        result
    }

    /// Opens the stream of a backup file's bytes at one node.
    pub(crate) async fn backup(&self, node: &Node, transport: Transport) -> Result<Pieces, Failure> {
        match transport {
            Transport::Rest => self.rest.backup(node).await,
            _ => self.grpc.backup(node).await,
        }
    }

    /// Forgets what was known of the way to `node`: its connection is dropped, and the next call finds out anew.
    pub(crate) fn doubt(&self, node: &Node) {
        self.grpc.forget(node);
        self.lock().found.remove(node);
    }

    async fn find_out(self: &Arc<Self>, node: &Node) -> Result<Way, Failure> {
        let (grpc, rest) = match self.choice {
            Transport::Auto => self.prove_both(node).await,
            Transport::Grpc => (Some(self.prove_grpc(node).await), None),
            Transport::Rest => (None, Some(self.prove_rest(node).await)),
        };
        let (transport, members) = match (grpc, rest) {
            (Some(Ok(members)), _) => (Transport::Grpc, members),
            (grpc, Some(Ok(members))) => {
                if let Some(Err(grpc)) = grpc {
                    tracing::warn!(node = %node.rest, why = %grpc.error, "grpc does not get through, using rest");
                    self.probe(node);
                }
                (Transport::Rest, members)
            }
            (grpc, rest) => {
                self.grpc.forget(node);
                let errors = [grpc, rest].into_iter().flatten().filter_map(Result::err);
                return Err(Failure::unreached(unreachable(errors)));
            }
        };
        self.lock().found.insert(node.clone(), transport);
        Ok(Way { transport, members })
    }

    /// Tries gRPC, and beside it REST once gRPC has failed or taken long.
    async fn prove_both(&self, node: &Node) -> (Option<Proof>, Option<Proof>) {
        let mut grpc = Box::pin(self.prove_grpc(node));
        match timeout(GRPC_HEAD_START, &mut grpc).await {
            Ok(Ok(members)) => (Some(Ok(members)), None),
            Ok(Err(failure)) => (Some(Err(failure)), Some(self.prove_rest(node).await)),
            Err(_) => {
                let (grpc, rest) = tokio::join!(grpc, self.prove_rest(node));
                (Some(grpc), Some(rest))
            }
        }
    }

    async fn prove_grpc(&self, node: &Node) -> Proof {
        within(self.grpc.call(node, &call::Members, PROVE_TIMEOUT)).await
    }

    async fn prove_rest(&self, node: &Node) -> Proof {
        within(self.rest.call(node, &call::Members)).await
    }

    /// Begins to probe gRPC at `node`, unless that goes on already.
    fn probe(self: &Arc<Self>, node: &Node) {
        if self.lock().probed.insert(node.clone()) {
            tokio::spawn(find_back(Arc::downgrade(self), node.clone()));
        }
    }

    fn known(&self, node: &Node) -> Option<Transport> {
        self.lock().found.get(node).copied()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ways> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the registry answered. A refusal is an answer too, only without members.
type Proof = Result<Option<wire::MembersResponse>, Failure>;

async fn within(attempt: impl Future<Output = Result<wire::MembersResponse, Failure>>) -> Proof {
    match timeout(PROVE_TIMEOUT, attempt).await {
        Ok(Ok(members)) => Ok(Some(members)),
        Ok(Err(failure)) if failure.reached => Ok(None),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::timed_out(PROVE_TIMEOUT)),
    }
}

/// Nothing was sent but a read, so nothing happened.
fn unreachable(errors: impl Iterator<Item = Failure>) -> Error {
    let mut why: Vec<String> = errors.map(|failure| failure.error.to_string()).collect();
    why.dedup();
    Error::new(Code::Unavailable, why.join(" (and over rest: ") + if why.len() > 1 { ")" } else { "" })
}

/// Probes gRPC at a node that only REST reaches, until it works, or nobody cares any more.
async fn find_back(wire: Weak<Wire>, node: Node) {
    loop {
        tokio::time::sleep(RETURN_EVERY.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
        let Some(wire) = wire.upgrade() else { return };
        if wire.known(&node) != Some(Transport::Rest) {
            wire.lock().probed.remove(&node);
            return;
        }
        // A connection that was swallowed once may hang for ever: each probe takes its own.
        wire.grpc.forget(&node);
        if wire.prove_grpc(&node).await.is_ok() {
            tracing::info!(node = %node.grpc, "grpc gets through again");
            let mut ways = wire.lock();
            ways.probed.remove(&node);
            ways.found.insert(node, Transport::Grpc);
            drop(ways);
            wire.returned.send_modify(|count| *count += 1);
            return;
        }
    }
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
