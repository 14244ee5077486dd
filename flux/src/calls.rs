//! Makes a call until a node answers it: chooses nodes, follows the leader hint, tries again where that is safe.
//!
//! A call goes from node to node within one time limit. A write moves on only if the attempt before certainly
//! had no effect, or if repeating it is harmless; otherwise the caller learns that the outcome is unknown.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::registry::v1 as wire;
use tokio::time::{Instant, sleep, timeout_at};

use crate::backoff::Backoff;
use crate::error::Code;
use crate::leader_hint::{Node, Nodes};
use crate::metrics::Metrics;
use crate::transport::call::Call;
use crate::transport::{Failure, Pieces, Transport, Wire};
use crate::{Answer, Error, Instance, Status, WriteOptions};

/// How long one node may keep a call that another could answer, unless half of the call's limit is less. Three
/// nodes, two of them mute, fit into the default limit of 5 s.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);

/// The wait after every node was asked in vain: an election takes about half a second.
pub(crate) const ROUND: Backoff =
    Backoff { base: Duration::from_millis(50), cap: Duration::from_millis(400) };

/// What all clones of a client share.
#[derive(Debug)]
pub(crate) struct Calls {
    pub(crate) wire: Arc<Wire>,
    pub(crate) metrics: Metrics,
    /// Who this is, for people.
    pub(crate) name: String,
    /// The longest one call may take, unless it is given a limit of its own.
    pub(crate) limit: Duration,
    nodes: Mutex<Nodes>,
    known: Mutex<Known>,
    /// Unique to this client: with a number of `sequence` it identifies a write across retries.
    identity: String,
    sequence: AtomicU64,
}

/// The newest revision that an answer named, and whose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Empty before the first answer.
    pub(crate) cluster_id: String,
    pub(crate) revision: u64,
}

/// What happened to one call so far.
#[derive(Default)]
struct Trail {
    /// Asked in this round.
    tried: Vec<Node>,
    /// The last word of each node, in the order they were first asked.
    said: Vec<(Node, Error)>,
    rounds: u32,
    /// An attempt may have taken effect.
    in_doubt: bool,
}

impl Calls {
    pub(crate) fn new(
        nodes: Vec<Node>,
        choice: Transport,
        name: String,
        limit: Duration,
        metrics: Metrics,
    ) -> Calls {
        Calls {
            wire: Wire::new(choice, metrics.clone()),
            metrics,
            identity: format!("{name}-{:016x}", fastrand::u64(..)),
            name,
            limit,
            nodes: Mutex::new(Nodes::new(nodes)),
            known: Mutex::default(),
            sequence: AtomicU64::new(0),
        }
    }

    pub(crate) fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the answers so far say is there: a watch that begins has no use for less.
    pub(crate) fn known(&self) -> Known {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes note of an answer's revision; of another cluster's than before, whichever it is.
    pub(crate) fn note(&self, cluster_id: &str, revision: u64) {
        if cluster_id.is_empty() {
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.cluster_id != cluster_id {
            *known = Known { cluster_id: cluster_id.to_owned(), revision };
        }
        known.revision = known.revision.max(revision);
    }

    /// The request that registers `instance`; `why` if the options give no reason of their own.
    pub(crate) fn register(
        &self,
        instance: &Instance,
        options: WriteOptions,
        why: &str,
    ) -> wire::RegisterRequest {
        wire::RegisterRequest {
            instance: Some(instance.into()),
            expected_revision: options.expected_revision,
            by: if options.by.is_empty() { self.name.clone() } else { options.by },
            why: if options.why.is_empty() { why.to_owned() } else { options.why },
            ..Default::default()
        }
    }

    /// The request that takes an instance out; 0 for whichever incarnation.
    pub(crate) fn deregister(&self, id: &str, reg_rev: u64, why: &str) -> wire::DeregisterRequest {
        let (id, by, why) = (id.to_owned(), self.name.clone(), why.to_owned());
        wire::DeregisterRequest { id, reg_rev, by, why, ..Default::default() }
    }

    /// The request that marks an instance; 0 for whichever incarnation.
    pub(crate) fn set_status(
        &self,
        id: &str,
        status: Status,
        reg_rev: u64,
        why: &str,
    ) -> wire::SetStatusRequest {
        let status = wire::instance::Status::from(status).into();
        let (id, by, why) = (id.to_owned(), self.name.clone(), why.to_owned());
        wire::SetStatusRequest { id, status, reg_rev, by, why, ..Default::default() }
    }

    /// Identifies one write across its retries. Each ticket is for one command only; numbers begin at 1.
    pub(crate) fn ticket(&self) -> (String, u64) {
        (self.identity.clone(), 1 + self.sequence.fetch_add(1, Ordering::Relaxed))
    }

    /// A name that is this client's and nobody else's, for something of it that numbers its own writes.
    pub(crate) fn identity(&self) -> String {
        let number = 1 + self.sequence.fetch_add(1, Ordering::Relaxed);
        format!("{}.{number}", self.identity)
    }

    /// The call's answer, from whichever node gives one within the client's limit.
    pub(crate) async fn call<C: Call>(&self, call: C) -> Result<Answer<C::Reply>, Error> {
        self.call_within(call, self.limit).await
    }

    /// The same within `limit`.
    pub(crate) async fn call_within<C: Call>(
        &self,
        call: C,
        limit: Duration,
    ) -> Result<Answer<C::Reply>, Error> {
        let deadline = Instant::now() + limit;
        let mut trail = Trail::default();
        loop {
            let Some(node) = self.next::<C>(&trail.tried) else {
                let wait = trail.next_round();
                if Instant::now() + wait >= deadline {
                    return Err(trail.give_up::<C>(limit));
                }
                sleep(wait).await;
                continue;
            };
            let share = if call.repeatable() { share(limit) } else { limit };
            match self.attempt(&node, &call, share, deadline).await {
                Ok(reply) => {
                    let answer = answer::<C>(reply);
                    self.note(&answer.cluster_id, answer.revision);
                    return Ok(answer);
                }
                Err(failure) if moves_on(&failure.error, &call) => trail.note(node, failure.error),
                Err(failure) => return Err(trail.end::<C>(failure.error)),
            }
            if Instant::now() >= deadline {
                return Err(trail.give_up::<C>(limit));
            }
        }
    }

    /// The bytes of a backup, from the first node that begins to give them within the client's limit.
    pub(crate) async fn backup(&self) -> Result<Pieces, Error> {
        let order = self.nodes().order(Instant::now());
        let mut trail = Trail::default();
        for node in order {
            let open = async {
                let transport = self.way(&node).await?;
                self.wire.backup(&node, transport).await
            };
            match tokio::time::timeout(self.limit, open).await {
                Ok(Ok(pieces)) => return Ok(pieces),
                Ok(Err(failure)) => trail.note(node, failure.error),
                Err(_) => {
                    trail.note(node, Error::new(Code::Timeout, format!("no answer in {:?}", self.limit)))
                }
            }
        }
        Err(trail.give_up::<wire::ListRequest>(self.limit))
    }

    /// Finds out how to reach `node`, and takes in what it says of the members.
    pub(crate) async fn way(&self, node: &Node) -> Result<Transport, Failure> {
        let way = self.wire.way(node).await?;
        if let Some(members) = way.members {
            self.nodes().learn(members.members.iter().filter_map(Node::of_member));
        }
        Ok(way.transport)
    }

    async fn attempt<C: Call>(
        &self,
        node: &Node,
        call: &C,
        share: Duration,
        deadline: Instant,
    ) -> Result<C::Reply, Failure> {
        let result = self.send(node, call, share, deadline).await;
        let now = Instant::now();
        let mut nodes = self.nodes();
        match &result {
            Ok(reply) => nodes.answered(node, C::header(reply).and_then(leader_of).as_ref()),
            Err(failure) => {
                if !failure.reached || cannot_serve(&failure.error) {
                    nodes.failed(node, now);
                }
                if let Some(leader) = &failure.leader {
                    nodes.follow(leader);
                }
            }
        }
        result
    }

    async fn send<C: Call>(
        &self,
        node: &Node,
        call: &C,
        share: Duration,
        deadline: Instant,
    ) -> Result<C::Reply, Failure> {
        let late = || Failure::unreached(Error::new(Code::Unavailable, "no time left to connect"));
        let transport = timeout_at(deadline, self.way(node)).await.unwrap_or_else(|_| Err(late()))?;
        let left = deadline.saturating_duration_since(Instant::now());
        self.wire.call(node, transport, call, left.min(share)).await
    }

    fn next<C: Call>(&self, tried: &[Node]) -> Option<Node> {
        let (nodes, now) = (self.nodes(), Instant::now());
        let order = if C::CONFIGURED_ONLY { nodes.order_configured(now) } else { nodes.order(now) };
        order.into_iter().find(|node| !tried.contains(node))
    }
}

impl Trail {
    fn note(&mut self, node: Node, error: Error) {
        self.in_doubt |= !error.had_no_effect();
        match self.said.iter_mut().find(|(known, _)| *known == node) {
            Some((_, said)) => *said = error,
            None => self.said.push((node.clone(), error)),
        }
        self.tried.push(node);
    }

    fn next_round(&mut self) -> Duration {
        self.tried.clear();
        self.rounds += 1;
        ROUND.wait(self.rounds, &mut fastrand::Rng::new())
    }

    /// `error` is the last word, but an attempt before it may have had an effect.
    fn end<C: Call>(&self, error: Error) -> Error {
        last_word(error, C::READS, self.in_doubt)
    }

    fn give_up<C: Call>(&self, limit: Duration) -> Error {
        let mut message = none_could(limit);
        for (at, (node, error)) in self.said.iter().enumerate() {
            let separator = if at == 0 { ": " } else { "; " };
            write!(message, "{separator}{}: {error}", node.rest).expect("strings take everything");
        }
        let code = self.said.last().map_or(Code::Unavailable, |(_, error)| error.code());
        self.end::<C>(Error::new(code, message).no_effect(Some(true)).retryable(Some(true)))
    }
}

/// Whether another attempt, at this node or another, is safe and may succeed.
fn moves_on<C: Call>(error: &Error, call: &C) -> bool {
    error.is_retryable() && (error.had_no_effect() || call.repeatable())
}

/// How long one node may keep a call that another could answer, of a call that may take `limit` in all.
pub(crate) fn share(limit: Duration) -> Duration {
    ATTEMPT_MAX.min(limit / 2)
}

/// Whether `error`, as a node's answer, means that another node is the better one to ask next.
pub(crate) fn cannot_serve(error: &Error) -> bool {
    matches!(error.code(), Code::Unavailable | Code::Timeout)
}

/// What a call ends with: it had no effect if its last attempt says so and no attempt before leaves it in doubt.
/// One that `changes_nothing` never had.
pub(crate) fn last_word(error: Error, changes_nothing: bool, in_doubt: bool) -> Error {
    let no_effect = changes_nothing || (error.had_no_effect() && !in_doubt);
    error.no_effect(Some(no_effect))
}

/// How the message of a call begins that was given up.
pub(crate) fn none_could(limit: Duration) -> String {
    format!("no node could take the call within {limit:?}")
}

/// The leader that an answer names.
pub(crate) fn leader_of(header: &wire::ResponseHeader) -> Option<Node> {
    header.leader.as_ref().and_then(Node::of_member)
}

fn answer<C: Call>(reply: C::Reply) -> Answer<C::Reply> {
    let header = C::header(&reply).cloned().unwrap_or_default();
    Answer {
        revision: header.revision,
        cluster_id: header.cluster_id,
        node_id: header.node_id,
        age: Duration::from_millis(header.age_ms),
        value: reply,
    }
}
