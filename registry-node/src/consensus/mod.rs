//! Consensus: replicates proposals, says who leads, orders reads, changes members. openraft stays in here.
//!
//! Every node takes every call: [`Consensus::propose`] and [`Consensus::read_barrier`] go to the leader, here or
//! over the peers' port, and keep trying until their deadline as long as it is certain that nothing happened.

mod audit;
mod bootstrap;
mod codec;
mod disk_pace;
mod forwarder;
mod lane;
mod log_store;
mod machine_status;
mod membership;
mod message;
mod network;
mod offline;
#[cfg(test)]
pub(crate) mod offline_tests;
mod peer_port;
mod peer_server;
mod proposer;
mod quarantine;
mod reads;
mod runtime;
#[doc(hidden)]
pub mod seam;
mod state_machine;
#[cfg(test)]
mod tests;
mod types;

use std::{
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use openraft::{Config, Raft, ReadPolicy, ServerState, SnapshotPolicy, async_runtime::watch::WatchReceiver};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::task::TaskTracker;

#[cfg(test)]
pub use self::tests::SoleMember;
use self::{
    audit::Marks,
    forwarder::Forwarder,
    log_store::LogStore,
    membership::MEMBERSHIP_TIMEOUT,
    network::{Network, Peers},
    proposer::Proposer,
    quarantine::Quarantine,
    reads::ReadPoints,
    state_machine::Machine,
    types::{LogId, Types},
};
pub use self::{
    bootstrap::{Error as BootstrapError, identity_in},
    codec::Identity,
    machine_status::{Header, Member, NodeStatus, Role},
    network::{Dial, NoConnection, Wire, WireError, over_tcp},
    offline::{Beginning, Content, LastVote, LogEntry, Mark, Peer, Reading, SnapshotOutline, begin_again},
    peer_server::{PeerServer, PeerService, Renew},
    proposer::{Outcome, Reply},
    types::{Address, Sealed},
};
use crate::{
    catalog::{InstanceId, Proposal, Provenance},
    config::{self, Timers},
    latest,
    scope::scoped,
    storage::{Recovered, Space, Store},
    watch::{Effect, Hub},
};

/// Between two attempts when nothing tells that the cluster has changed.
const RETRY: Duration = Duration::from_millis(50);
/// A read's confirmation by a quorum takes a round trip; longer means that there is none.
const READ_INDEX_TIMEOUT: Duration = Duration::from_secs(1);
/// How long consensus may take to stop: what it has acknowledged is on disk already.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How soon it is noticed that consensus has stopped by itself.
const FAILURE_WITHIN: Duration = Duration::from_millis(100);

/// Why consensus could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// This node cannot answer correctly now; nothing happened.
    #[error("this node is not ready: {why}")]
    NotReady {
        /// What it waits for.
        why: String,
    },
    /// No leader in time; nothing happened.
    #[error("the cluster has no leader")]
    NoLeader,
    /// No answer in time; it may have happened.
    #[error("the outcome is unknown: {why}")]
    Unknown {
        /// What went missing.
        why: String,
    },
    /// A queue is full; nothing happened.
    #[error("too many {what}")]
    Overloaded {
        /// Of what.
        what: String,
    },
    /// The leader's disk is nearly full; nothing happened.
    #[error("{why}")]
    DiskFull {
        /// Where, how full, and what to do.
        why: String,
    },
    /// It cannot be done as things are; nothing happened.
    #[error("refused: {why}")]
    Refused {
        /// What stands in the way.
        why: String,
    },
}

/// Who leads, as far as this node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lead {
    /// This node.
    Here {
        /// Its term.
        term: u64,
    },
    /// Another member.
    Elsewhere {
        /// Its id.
        id: u64,
        /// Where it is.
        address: Address,
    },
    /// Nobody known.
    Nowhere,
}

/// A node's part in its cluster. Cheap to clone.
#[derive(Clone)]
pub struct Consensus(Arc<Inner>);

struct Inner {
    raft: Raft<Types, Machine>,
    store: Store,
    quarantine: Quarantine,
    id: u64,
    /// How this node wants to be reached.
    own: Address,
    cluster_id: Arc<str>,
    timers: Timers,
    space: Space,
    hub: Hub,
    lead: latest::Receiver<Lead>,
    applied: latest::Receiver<Option<LogId>>,
    proposer: Proposer,
    forwarder: Forwarder,
    peers: Peers,
    /// Read points of this node as the leader, for itself and for followers that ask.
    read_points: ReadPoints,
    /// Read points asked of another leader.
    forwarded_reads: ReadPoints,
    /// Rounds that read points took here, and questions that they took to a leader elsewhere.
    read_rounds: [AtomicU64; 2],
    /// What this node's catalog hashed to, to compare.
    marks: Marks,
    /// What an operator must look at.
    alarm: Mutex<Option<String>>,
    /// Why this node takes no part any more.
    halted: OnceLock<String>,
    started: Instant,
    /// Milliseconds from `started` to when a leader was last heard of.
    heard_ms: AtomicU64,
    /// Whether this process has once applied all that was committed when it asked.
    caught_up: AtomicBool,
    /// Where tasks run.
    tracker: TaskTracker,
}

/// What a node is started with.
pub struct Parts<'a> {
    /// Its configuration.
    pub config: &'a config::Config,
    /// Its store, and what was found in it.
    pub store: Store,
    /// What was found.
    pub recovered: Recovered,
    /// Where the catalog lives.
    pub hub: Hub,
    /// How the other nodes are reached.
    pub dial: Dial,
    /// The peers' port, already open.
    pub server: &'a PeerServer,
    /// Where tasks run.
    pub tracker: &'a TaskTracker,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It has no place in the cluster.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// What it kept cannot be read.
    #[error(
        "the store in {} is damaged: {what}. Keep the directory for inspection, and replace this node by a new one \
         with a new id: `registry-node --id NEW --join HOST:PEER_PORT`", .dir.display()
    )]
    Damaged {
        /// The store.
        dir: std::path::PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Raft itself.
    #[error("consensus cannot start: {0}")]
    Raft(String),
}

impl Consensus {
    /// Finds or founds the cluster, then runs. Returns before a leader is known.
    pub async fn start(parts: Parts<'_>) -> Result<Self, StartError> {
        let Parts { config, store, recovered, hub, dial, server, tracker } = parts;
        let damaged = |what: String| StartError::Damaged { dir: config.dir.clone(), what };
        let place = bootstrap::find_place(config, &recovered, server, &dial).await?;
        let space = store.space().clone();
        let log = LogStore::open(store.clone(), &recovered).await.map_err(damaged)?;
        let machine = Machine::open(hub.clone(), store.clone(), recovered.snapshot).map_err(damaged)?;
        let (applied, marks) = (machine.applied(), machine.marks());
        let peers = Peers::new(config, place.cluster_id.clone(), dial);
        let network = Network::new(peers.clone());
        let settings = Config { enable_elect: recovered.quarantine.is_none(), ..settings(config)? };
        let raft = Raft::new(config.id, Arc::new(settings), network, log, machine)
            .await
            .map_err(|e| StartError::Raft(e.to_string()))?;
        peers.leads_with(raft.clone());
        if let Some(members) = place.found_with
            && !raft.is_initialized().await.map_err(|e| StartError::Raft(e.to_string()))?
        {
            raft.initialize(members).await.map_err(|e| StartError::Raft(e.to_string()))?;
        }
        let (lead, following) = latest::channel(Lead::Nowhere);
        tracker.spawn(scoped(follow_lead(raft.clone(), config.id, lead)));
        let (read_points, here) = ReadPoints::new();
        let (forwarded_reads, elsewhere) = ReadPoints::new();
        let consensus = Self(Arc::new(Inner {
            proposer: Proposer::start(raft.clone(), space.clone(), tracker),
            forwarder: Forwarder::start(peers.clone(), following.clone(), tracker),
            raft,
            store,
            quarantine: Quarantine::found(recovered.quarantine.as_ref()),
            id: config.id,
            own: Address {
                name: config.name.clone(),
                peer: config.advertise.peer.clone(),
                grpc: config.advertise.grpc.clone(),
                rest: config.advertise.rest.clone(),
            },
            cluster_id: place.cluster_id,
            timers: config.timers,
            space,
            hub,
            lead: following,
            applied,
            peers,
            read_points,
            forwarded_reads,
            read_rounds: Default::default(),
            marks,
            alarm: Mutex::default(),
            halted: OnceLock::new(),
            started: Instant::now(),
            heard_ms: AtomicU64::new(0),
            caught_up: AtomicBool::new(false),
            tracker: tracker.clone(),
        }));
        // The rounds end with the last handle, so they hold none.
        let (asker, forwarder) = (Arc::downgrade(&consensus.0), Arc::downgrade(&consensus.0));
        tracker.spawn(scoped(here.answer(async move || Self::upgraded(&asker)?.ask_quorum().await)));
        tracker.spawn(scoped(elsewhere.answer(async move || Self::upgraded(&forwarder)?.ask_leader().await)));
        tracker.spawn(scoped(consensus.clone().catch_up()));
        tracker.spawn(scoped(consensus.clone().note_company()));
        if let Some(quarantine) = recovered.quarantine {
            tracker.spawn(scoped(consensus.clone().come_back(quarantine)));
        }
        tracker.spawn(scoped(consensus.clone().audit()));
        tracker.spawn(scoped(consensus.clone().watch_the_disk()));
        server.open(consensus.clone());
        Ok(consensus)
    }

    fn upgraded(inner: &Weak<Inner>) -> Result<Self, Error> {
        inner.upgrade().map(Self).ok_or_else(|| Error::NotReady { why: "it is stopping".into() })
    }

    /// Asks for a read point until one is reached: from then on this node may answer from what it has applied.
    async fn catch_up(self) {
        while !self.0.caught_up.load(Ordering::Acquire) && !self.stopped() {
            let deadline = Instant::now() + READ_INDEX_TIMEOUT;
            // Sets the mark itself. Some failures are known at once: asked again without a pause they never let go.
            if self.read_point(deadline).await.is_err() {
                self.await_change(deadline).await;
            }
        }
    }

    /// Whether this node has ever voted or held a log.
    fn is_initialised(&self) -> bool {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.current_term > 0 || metrics.last_log_index.is_some()
    }

    fn stopped(&self) -> bool {
        self.0.raft.metrics().borrow_watched().running_state.is_err()
    }

    /// Who leads.
    pub fn lead(&self) -> Lead {
        match self.0.halted.get() {
            Some(_) => Lead::Nowhere,
            None => self.0.lead.borrow().clone(),
        }
    }

    /// Stops taking part until the process is started again: no vote, no lead, no answer but why.
    async fn halt(&self, why: String) {
        if self.0.halted.set(why.clone()).is_err() {
            return;
        }
        tracing::error!(node = self.0.id, "this node takes no part any more: {why}");
        if matches!(*self.0.lead.borrow(), Lead::Here { .. }) {
            let _ = self.transfer(None).await; // where nobody can take over, the others elect
        }
        self.stop().await;
    }

    /// Fails if this node takes no part any more.
    pub fn takes_part(&self) -> Result<(), Error> {
        self.0.halted.get().map_or(Ok(()), |why| Err(Error::NotReady { why: why.clone() }))
    }

    /// Returns when the lead has changed, or after a moment, at the latest at the deadline.
    pub async fn await_change(&self, deadline: Instant) {
        let mut lead = self.0.lead.clone();
        lead.mark_unchanged();
        changed_or(deadline.min(Instant::now() + RETRY), &mut lead).await;
    }

    /// This node's term if it leads, has applied the first entry of its term, and has heard a quorum within the
    /// longest election time-out: then no other node can lead.
    pub fn confirmed_term(&self) -> Option<u64> {
        let inner = &self.0;
        let Lead::Here { term } = self.lead() else { return None };
        self.0.quarantine.check().ok()?;
        let applied_own = (*inner.applied.borrow())
            .is_some_and(|id| id.leader_id.term == term && id.leader_id.node_id == inner.id);
        (applied_own && self.heard_quorum()).then_some(term)
    }

    fn heard_quorum(&self) -> bool {
        self.quorum_age().is_some_and(|age| age < self.0.timers.election_max)
    }

    /// Replicates a proposal wherever the leader is, and returns what it did. Tries until `deadline` while it is
    /// certain that nothing has happened.
    pub async fn propose(&self, sealed: Sealed, deadline: Instant) -> Result<Effect, Error> {
        let bytes = sealed.bytes.clone();
        let mut next = sealed;
        loop {
            self.takes_part()?;
            let (reply, outcome) = oneshot::channel();
            self.submit(next, deadline, Reply::One(reply));
            match bounded(deadline, answered(outcome)).await {
                Err(Error::NoLeader) if Instant::now() < deadline => self.await_change(deadline).await,
                done => return done,
            }
            next = Sealed::again(&bytes);
        }
    }

    /// Hands a proposal on to wherever the leader is, once, and returns at once: what became of it comes by
    /// `reply`. [`Error::NoLeader`] means that it had no effect; a reply that is dropped, that the node stopped.
    pub fn submit(&self, sealed: Sealed, deadline: Instant, reply: Reply) {
        let inner = &self.0;
        if let Err(error) = inner.quarantine.check() {
            return reply.send(Err(error));
        }
        match *inner.lead.borrow() {
            _ if inner.halted.get().is_some() => reply.send(Err(Error::NoLeader)),
            Lead::Here { .. } => inner.proposer.submit(sealed, reply),
            Lead::Elsewhere { .. } => inner.forwarder.submit(sealed.bytes, deadline, reply),
            Lead::Nowhere => reply.send(Err(Error::NoLeader)),
        }
    }

    /// Replicates a proposal if this node leads; [`Error::NoLeader`] if it does not.
    pub async fn propose_here(&self, proposal: Proposal) -> Result<Effect, Error> {
        self.0.quarantine.check()?;
        let (reply, outcome) = oneshot::channel();
        self.0.proposer.submit(Sealed::new(proposal), Reply::One(reply));
        answered(outcome).await
    }

    /// The same for many at once; one outcome each, in order.
    async fn propose_all_here(&self, proposals: Vec<Sealed>) -> Vec<Result<Effect, Error>> {
        // Outcomes here would be those of a catalog that is wrong.
        if let Err(error) = self.0.quarantine.check() {
            return vec![Err(error); proposals.len()];
        }
        let (replies, mut outcomes) = mpsc::unbounded_channel();
        let mut results = vec![Err(stopped()); proposals.len()];
        for (number, sealed) in (0..).zip(proposals) {
            self.0.proposer.submit(sealed, Reply::Many(number, replies.clone()));
        }
        drop(replies);
        while let Some((number, outcome)) = outcomes.recv().await {
            results[number as usize] = outcome;
        }
        results
    }

    /// Returns once this node has applied everything that was committed when the call began, proven by a quorum.
    pub async fn read_barrier(&self, deadline: Instant) -> Result<(), Error> {
        self.0.quarantine.check()?;
        self.read_point(deadline).await
    }

    /// The same for this node's own sake, whether it may answer others or not.
    async fn read_point(&self, deadline: Instant) -> Result<(), Error> {
        loop {
            self.takes_part()?;
            let attempt = match self.lead() {
                Lead::Here { .. } => self.read_index_here(deadline).await,
                Lead::Elsewhere { .. } => by_deadline(deadline, self.0.forwarded_reads.next()).await,
                Lead::Nowhere => Err(Error::NoLeader),
            };
            // A read point is good for one attempt: a retry asks for a new one.
            match attempt {
                Ok(index) => {
                    self.await_applied(index, deadline).await?;
                    self.0.caught_up.store(true, Ordering::Release);
                    return Ok(());
                }
                Err(_) if Instant::now() < deadline => self.await_change(deadline).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// The read point of a read that begins now, if this node leads and a quorum confirms it. Reads that begin
    /// together share it.
    pub async fn read_index_here(&self, deadline: Instant) -> Result<u64, Error> {
        by_deadline(deadline, self.0.read_points.next()).await
    }

    /// One round of this leader's quorum.
    async fn ask_quorum(&self) -> Result<u64, Error> {
        self.0.read_rounds[0].fetch_add(1, Ordering::Relaxed);
        let asked = async {
            let linearizer = self.0.raft.get_read_linearizer(ReadPolicy::ReadIndex).await;
            linearizer.map(|linearizer| linearizer.read_log_id().index()).map_err(|_| Error::NoLeader)
        };
        self.while_lead_stays(asked).await
    }

    /// One question to the leader elsewhere.
    async fn ask_leader(&self) -> Result<u64, Error> {
        let Lead::Elsewhere { id, address } = self.lead() else { return Err(Error::NoLeader) };
        self.0.read_rounds[1].fetch_add(1, Ordering::Relaxed);
        let deadline = Instant::now() + READ_INDEX_TIMEOUT;
        let answer = self.while_lead_stays(self.0.peers.read_index(id, &address, deadline)).await;
        if let Err(Error::NotReady { why }) = &answer {
            // It knows that this node was removed.
            self.halt(why.clone()).await;
        }
        answer
    }

    /// A round's outcome, or that there is none: in time, and from the leader that was asked.
    async fn while_lead_stays(&self, round: impl Future<Output = Result<u64, Error>>) -> Result<u64, Error> {
        let mut lead = self.0.lead.clone();
        lead.mark_unchanged();
        tokio::select! {
            biased;
            point = tokio::time::timeout(READ_INDEX_TIMEOUT, round) => point.unwrap_or(Err(Error::NoLeader)),
            _ = lead.changed() => Err(Error::NoLeader),
        }
    }

    async fn await_applied(&self, index: u64, deadline: Instant) -> Result<(), Error> {
        let mut applied = self.0.applied.clone();
        let reached = applied.wait_for(|applied| applied.is_some_and(|id| id.index >= index));
        match tokio::time::timeout_at(deadline, reached).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::NotReady { why: format!("it has not applied log index {index} yet") }),
        }
    }

    /// Whether this node has once been up to date since it started: before that it answers nothing.
    pub fn caught_up(&self) -> Result<(), Error> {
        self.0.quarantine.check()?;
        self.takes_part()?;
        match self.0.caught_up.load(Ordering::Acquire) {
            true => Ok(()),
            false => {
                Err(Error::NotReady { why: "it has not caught up with the cluster since it started".into() })
            }
        }
    }

    /// Takes heartbeats to the leader if that is another node; false where a lease is lost.
    pub async fn forward_heartbeats(
        &self,
        beats: Vec<(InstanceId, Option<u64>)>,
        deadline: Instant,
    ) -> Result<Vec<bool>, Error> {
        self.0.quarantine.check()?;
        match self.lead() {
            Lead::Elsewhere { id, address } => self.0.peers.heartbeat(id, &address, &beats, deadline).await,
            _ => Err(Error::NoLeader),
        }
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> Arc<str> {
        self.0.cluster_id.clone()
    }

    /// The longest election time-out.
    pub fn election_max(&self) -> Duration {
        self.0.timers.election_max
    }

    /// What goes with an answer about `revision`.
    pub fn header(&self, revision: u64, compact_revision: u64) -> Header {
        let lead = self.lead();
        let age = self.age(&lead);
        let leader = match lead {
            Lead::Here { .. } => {
                self.own_address().map(|address| Member::new(self.0.id, address, Role::Leader))
            }
            Lead::Elsewhere { id, address } => Some(Member::new(id, address, Role::Leader)),
            Lead::Nowhere => None,
        };
        let (cluster_id, node_id) = (self.cluster_id(), self.0.id);
        Header { cluster_id, node_id, term: self.term(), revision, compact_revision, leader, age }
    }

    /// Where this node is, as the membership says.
    fn own_address(&self) -> Option<Address> {
        self.0.raft.server_metrics().borrow_watched().membership_config.get_node(&self.0.id).cloned()
    }

    /// Since a leader was heard; on the leader, since a quorum was: one that is cut off grows old too.
    fn age(&self, lead: &Lead) -> Duration {
        let heard = Duration::from_millis(self.0.heard_ms.load(Ordering::Relaxed));
        let since_heard = self.0.started.elapsed().saturating_sub(heard);
        match lead {
            Lead::Here { .. } => self.quorum_age().unwrap_or(since_heard),
            _ => since_heard,
        }
    }

    /// Since a quorum answered this leader; none if none has yet.
    fn quorum_age(&self) -> Option<Duration> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.membership_config.voter_ids().eq([self.0.id]) {
            return Some(Duration::ZERO);
        }
        let age = metrics.last_quorum_acked.map(|at| openraft::Instant::elapsed(&at.into_inner()))?;
        // Heartbeats come at intervals: within two of them it is fresh.
        Some(if age <= 2 * self.0.timers.heartbeat { Duration::ZERO } else { age })
    }

    fn term(&self) -> u64 {
        self.0.raft.metrics().borrow_watched().current_term
    }

    /// Notes that a leader was heard.
    fn heard_leader(&self) {
        self.0.heard_ms.store(self.0.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Takes a snapshot and returns the log index it reaches.
    pub async fn snapshot(&self) -> Result<u64, Error> {
        let wanted = (*self.0.applied.borrow()).map_or(0, |id| id.index);
        self.0.raft.trigger().snapshot().await.map_err(|e| Error::NotReady { why: e.to_string() })?;
        let taken = self
            .0
            .raft
            .wait(Some(MEMBERSHIP_TIMEOUT))
            .metrics(|m| m.snapshot.is_some_and(|s| s.index >= wanted), "snapshot")
            .await;
        let taken = taken.map_err(|e| Error::Unknown { why: e.to_string() })?;
        Ok(taken.snapshot.map_or(0, |id| id.index))
    }

    /// Stops, or gives up waiting for a disk that hangs.
    pub async fn stop(&self) {
        let _ = tokio::time::timeout(STOP_TIMEOUT, self.0.raft.shutdown()).await;
    }

    /// Returns when consensus has stopped by itself: then this node can only end.
    pub async fn failed(&self) {
        // Not by waiting for openraft's metrics: they change several times with every write.
        let metrics = self.0.raft.metrics();
        while metrics.borrow_watched().running_state.is_ok() {
            tokio::time::sleep(FAILURE_WITHIN).await;
        }
        if self.0.halted.get().is_some() {
            // It stopped on purpose and goes on saying why.
            std::future::pending::<()>().await;
        }
    }
}

/// Returns when there is a new value, at the latest at `until`: time, too, is a reason to look again. Once
/// consensus has ended nobody tells any more, and whoever asked again at once would spin.
async fn changed_or<T>(until: Instant, value: &mut latest::Receiver<T>) {
    let changed = tokio::time::timeout_at(until, value.changed()).await;
    if let Ok(Err(latest::Closed)) = changed {
        tokio::time::sleep_until(until).await;
    }
}

/// Who wants a proposal and why, stamped with this node's clock: for people, never for decisions.
pub fn provenance(by: String, why: String) -> Arc<Provenance> {
    let at_ms = crate::scope::wall_ms();
    Arc::new(Provenance { by: by.into(), why: why.into(), at_ms })
}

/// A proposal's outcome; unknown if nobody is left to tell.
async fn answered(outcome: oneshot::Receiver<Outcome>) -> Outcome {
    outcome.await.unwrap_or_else(|_| Err(stopped()))
}

fn stopped() -> Error {
    Error::Unknown { why: "the node stopped".into() }
}

/// A read point, or that there is none in time.
async fn by_deadline(
    deadline: Instant,
    point: impl Future<Output = Result<u64, Error>>,
) -> Result<u64, Error> {
    tokio::time::timeout_at(deadline, point).await.unwrap_or(Err(Error::NoLeader))
}

/// A proposal's outcome, or that it is not known yet: an entry that was appended may still be committed.
async fn bounded(
    deadline: Instant,
    outcome: impl Future<Output = Result<Effect, Error>>,
) -> Result<Effect, Error> {
    let late = || Error::Unknown { why: "no quorum has confirmed it in time".into() };
    tokio::time::timeout_at(deadline, outcome).await.unwrap_or_else(|_| Err(late()))
}

/// Mirrors what openraft knows of leadership.
async fn follow_lead(raft: Raft<Types, Machine>, id: u64, lead: latest::Sender<Lead>) {
    let mut metrics = raft.server_metrics();
    loop {
        let now = {
            let metrics = metrics.borrow_watched();
            let address = |id| metrics.membership_config.get_node(&id).cloned();
            match metrics.current_leader {
                Some(leader) if leader == id && metrics.state == ServerState::Leader => {
                    Lead::Here { term: metrics.vote.leader_id.term }
                }
                Some(leader) if leader != id => {
                    address(leader).map_or(Lead::Nowhere, |address| Lead::Elsewhere { id: leader, address })
                }
                _ => Lead::Nowhere,
            }
        };
        lead.send_if_modified(|current| {
            let changed = *current != now;
            if changed {
                tracing::info!(node = id, lead = ?now, "leadership");
                *current = now;
            }
            changed
        });
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Whether a store holds what consensus has put there: everything can be read, what is committed is there, and what
/// is purged from the log is in the snapshot. Else applied entries are nowhere.
pub fn sound(found: &Recovered) -> Result<(), String> {
    let cannot = |what: &'static str| move |error: crate::envelope::Error| format!("{what}: {error}");
    found.vote.as_deref().map(codec::decode_vote).transpose().map_err(cannot("the vote"))?;
    identity_in(found)?;
    let mark = found.purged.as_ref().map(|purged| codec::decode_log_id(&purged.mark)).transpose();
    mark.map_err(cannot("the purge mark"))?;
    let snapshot = found.snapshot.as_ref();
    let described = snapshot.map(|snapshot| codec::decode_snapshot_meta(&snapshot.meta)).transpose();
    described.map_err(cannot("the snapshot's description"))?;
    let reach = snapshot.map_or(0, |snapshot| snapshot.index + 1);
    if let Some(purged) = found.purged.as_ref().filter(|purged| reach <= purged.index) {
        return Err(format!(
            "the log is purged up to index {}, and the snapshot ends before {reach}",
            purged.index
        ));
    }
    let committed = found.committed.as_deref().map(codec::decode_log_id).transpose();
    let end = found.log.end.max(reach);
    match committed.map_err(cannot("the commit mark"))? {
        Some(committed) if committed.index >= end => Err(format!(
            "entries up to index {} were committed, and the log ends before {end}",
            committed.index
        )),
        _ => Ok(()),
    }
}

fn settings(config: &config::Config) -> Result<Config, StartError> {
    let ms = |d: Duration| d.as_millis() as u64;
    let timers = config.timers;
    let settings = Config {
        cluster_name: "registry".into(),
        heartbeat_interval: ms(timers.heartbeat),
        election_timeout_min: ms(timers.election_min),
        election_timeout_max: ms(timers.election_max),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_every),
        max_in_snapshot_log_to_keep: config.log_keep,
        // Entries of 96 KiB at most: one append stays below the message limit.
        max_payload_entries: (network::MESSAGE_BYTES_MAX / 2 / crate::storage::ENTRY_BYTES_MAX) as u64,
        purge_batch_size: 256.min(config.log_keep.max(1)),
        // A leader that hears no quorum must not keep its followers from electing another: it falls silent for as
        // long as the slowest of them takes, and the message that is on its way to it.
        quorum_loss_probe_interval: Some(3 * ms(timers.election_max)),
        enable_pre_vote: Some(true),
        // A restarted leader must win an election first: its state may be behind.
        enable_leader_restore: Some(false),
        // A follower whose log got shorter has lost acknowledged entries.
        allow_log_reversion: None,
        ..Config::default()
    };
    settings.validate().map_err(|e| StartError::Raft(e.to_string()))
}
