//! The way to the other nodes: one lasting channel per peer and purpose, a deadline on every call, the cluster's
//! id and both nodes' ids in each.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as _,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use openraft::{
    OptionalSend, Raft, RaftNetworkFactory, RaftNetworkV2,
    async_runtime::watch::WatchReceiver,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{RPCOption, stream_append_sequential},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use proto::raft::v1::{self as pb, raft_client::RaftClient};
use tokio::time::Instant;
use tonic::{Code, Status, body::Body, transport::Endpoint};
use tower::{BoxError, ServiceExt, util::BoxCloneSyncService};

use super::{
    Error,
    audit::{Answer, MARKS_MAX, Mark},
    codec,
    lane::{Lane, worth_sending},
    state_machine::Machine,
    types::{Address, Chunks, LogId, Snapshot, Types, Vote},
};
use crate::{
    catalog::{HASH_VERSION, InstanceId, decode_outcome},
    config::{Config, Timers},
    watch::Effect,
};

/// A peer that does not answer a connection attempt within this is away; peers are near.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// HTTP/2 pings notice a connection that has silently died.
const PING_EVERY: Duration = Duration::from_secs(4);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of one chunk message; a log append may hold several frames.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// A snapshot's chunk may wait for the follower's disk.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);

/// A way to one node's peer port: calls of gRPC go in, answers come out.
pub type Wire = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, WireError>;

/// Opens a way to the node at a URL, without waiting for it.
pub type Dial = Arc<dyn Fn(&str) -> Wire + Send + Sync>;

/// A call did not get through, or its answer did not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WireError(#[source] pub BoxError);

/// A call that failed because no connection stood: nobody has seen it.
#[derive(Debug, thiserror::Error)]
#[error("no connection")]
pub struct NoConnection;

/// How servers reach each other.
pub fn over_tcp() -> Dial {
    Arc::new(connect_lazily)
}

/// What a channel is for; each has its own, so that a snapshot never delays a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    Log,
    Heartbeat,
    Snapshot,
    Forward,
}

/// Lasting channels to the other nodes. Cheap to clone.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    id: u64,
    cluster_id: Arc<str>,
    timers: Timers,
    overrides: BTreeMap<u64, String>,
    dial: Dial,
    /// Ours, for what a peer's answer must change here when we lead.
    raft: OnceLock<Raft<Types, Machine>>,
    /// Peers that may fall back behind what they had acknowledged, because they said that they lost it.
    reverting: Mutex<BTreeSet<u64>>,
    channels: Mutex<BTreeMap<(u64, Purpose), (String, Wire)>>,
}

impl Peers {
    pub fn new(config: &Config, cluster_id: Arc<str>, dial: Dial) -> Self {
        let overrides = config.peer_override.clone();
        let channels = Mutex::default();
        let (raft, reverting) = (OnceLock::new(), Mutex::default());
        let timers = config.timers;
        Self(Arc::new(Inner {
            id: config.id,
            cluster_id,
            timers,
            overrides,
            dial,
            raft,
            reverting,
            channels,
        }))
    }

    /// From now on peers that have lost their log can be repaired from here.
    pub fn leads_with(&self, raft: Raft<Types, Machine>) {
        assert!(self.0.raft.set(raft).is_ok(), "consensus starts once");
    }

    /// A peer has lost entries that it had acknowledged: without leave openraft takes that for a broken promise
    /// and never sends them again. Must be known before openraft sees the conflict.
    async fn let_revert(&self, id: u64) {
        let Some(raft) = self.0.raft.get() else { return };
        if matches!(raft.trigger().allow_next_revert(&id, true).await, Ok(Ok(())))
            && self.0.reverting.lock().expect("no panic while it is held").insert(id)
        {
            tracing::warn!(peer = id, "the peer has lost its log and is repaired from here");
        }
    }

    /// Whether this node's log does not reach back to `index` any more. A stream of entries that was begun before
    /// would wait for them for ever: once it has failed, openraft sends a snapshot.
    fn has_purged(&self, index: u64) -> bool {
        let purged = |raft: &Raft<Types, Machine>| raft.data_metrics().borrow_watched().purged;
        self.0.raft.get().and_then(purged).is_some_and(|purged| purged.index >= index)
    }

    /// The peer takes entries again: the leave ends.
    async fn end_revert(&self, id: u64) {
        let ended = self.0.reverting.lock().expect("no panic while it is held").remove(&id);
        if let Some(raft) = self.0.raft.get().filter(|_| ended) {
            let _ = raft.trigger().allow_next_revert(&id, false).await; // not leading any more: there is no leave
        }
    }

    /// Returns once a quorum has answered this leader lately, or within `patience` fails. `since` counts as its
    /// last answer if there was none.
    ///
    /// To a follower whatever its leader sends is a sign of life, be it entries that nobody acknowledges or the mark of
    /// what is committed: one of them in the silence in which the others would elect, and a leader that is heard and
    /// hears nothing is not replaced. Heartbeats openraft holds back by itself.
    async fn hear_quorum(&self, since: Instant, patience: Duration) -> Result<(), RPCError<Types>> {
        let Some(raft) = self.0.raft.get() else { return Ok(()) };
        let mut metrics = raft.metrics();
        let heard = async {
            loop {
                let silence = {
                    let metrics = metrics.borrow_watched();
                    if metrics.membership_config.voter_ids().eq([self.0.id]) {
                        return; // it is a quorum by itself
                    }
                    let acked = metrics.last_quorum_acked;
                    acked.map_or(since.elapsed(), |at| openraft::Instant::elapsed(&at.into_inner()))
                };
                if silence < self.0.timers.election_max || metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        let silent = |_| RPCError::Network(NetworkError::from_string("no quorum has answered lately"));
        tokio::time::timeout(patience, heard).await.map_err(silent)
    }

    fn client(&self, id: u64, address: &Address, purpose: Purpose) -> RaftClient<Wire> {
        self.client_to(id, &address.peer, purpose)
    }

    fn client_to(&self, id: u64, peer: &str, purpose: Purpose) -> RaftClient<Wire> {
        let url = self.0.overrides.get(&id).map_or_else(|| peer.to_owned(), |to| format!("http://{to}"));
        let mut channels = self.0.channels.lock().expect("no panic while it is held");
        let known =
            channels.get(&(id, purpose)).filter(|(at, _)| *at == url).map(|(_, channel)| channel.clone());
        let channel = known.unwrap_or_else(|| {
            let channel = (self.0.dial)(&url);
            channels.insert((id, purpose), (url, channel.clone()));
            channel
        });
        client_on(channel)
    }

    fn header(&self, to: u64) -> Option<pb::PeerHeader> {
        Some(pb::PeerHeader { cluster_id: self.0.cluster_id.to_string(), from: self.0.id, to })
    }

    /// Hands proposals to the leader; one outcome each, in order.
    pub async fn propose(
        &self,
        id: u64,
        address: &Address,
        commands: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Vec<Result<Effect, Error>>, Error> {
        let count = commands.len();
        let request = pb::ProposeRequest { header: self.header(id), commands };
        let mut client = self.client(id, address, Purpose::Forward);
        let outcomes = by(deadline, client.propose(request)).await?.outcomes;
        if outcomes.len() != count {
            return Err(Error::Unknown { why: "the leader's answer is too short".into() });
        }
        Ok(outcomes.into_iter().map(|outcome| proposed(outcome.result)).collect())
    }

    /// Asks the leader for a read point.
    pub async fn read_index(&self, id: u64, address: &Address, deadline: Instant) -> Result<u64, Error> {
        let request = pb::ReadIndexRequest { header: self.header(id) };
        let mut client = self.client(id, address, Purpose::Forward);
        Ok(by(deadline.min(Instant::now() + super::READ_INDEX_TIMEOUT), client.read_index(request))
            .await?
            .index)
    }

    /// Asks a peer what its catalog hashed to.
    pub async fn catalog_marks(&self, id: u64, peer: &str, deadline: Instant) -> Answer {
        let request = pb::CatalogMarksRequest { header: self.header(id) };
        let mut client = self.client_to(id, peer, Purpose::Forward);
        match tokio::time::timeout_at(deadline, client.catalog_marks(request)).await {
            Ok(Ok(answer)) => {
                let pb::CatalogMarksResponse { hash_version, marks } = answer.into_inner();
                let marks = marks.into_iter().map(|pb::CatalogMark { index, hash }| Mark { index, hash });
                let comparable = if hash_version == HASH_VERSION { MARKS_MAX } else { 0 };
                Answer::Marks(marks.take(comparable).collect())
            }
            Ok(Err(status)) if status.code() == Code::PermissionDenied => {
                Answer::Removed(status.message().to_owned())
            }
            _ => Answer::Silence,
        }
    }

    /// Takes heartbeats to the leader.
    pub async fn heartbeat(
        &self,
        id: u64,
        address: &Address,
        beats: &[(InstanceId, Option<u64>)],
        deadline: Instant,
    ) -> Result<Vec<bool>, Error> {
        let beats: Vec<_> = beats
            .iter()
            .map(|(id, rev)| pb::PeerBeat { id: id.to_string(), reg_rev: rev.unwrap_or(0) })
            .collect();
        let count = beats.len();
        let request = pb::PeerHeartbeatRequest { header: self.header(id), beats };
        let mut client = self.client(id, address, Purpose::Forward);
        let renewed = by(deadline, client.heartbeat(request)).await?.renewed;
        if renewed.len() == count {
            Ok(renewed)
        } else {
            Err(Error::Unknown { why: "the leader's answer is too short".into() })
        }
    }
}

/// A client for a peer that is not yet a member, for bootstrap.
pub fn client_at(dial: &Dial, address: &str) -> RaftClient<Wire> {
    client_on(dial(&format!("http://{address}")))
}

fn client_on(channel: Wire) -> RaftClient<Wire> {
    RaftClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn connect_lazily(url: &str) -> Wire {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .unwrap_or_else(|_| Endpoint::from_static("http://invalid.invalid"));
    let channel = endpoint
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_lazy();
    BoxCloneSyncService::new(channel.map_err(|error| WireError(error.into())))
}

/// A forwarded call with its deadline, and what its failure means.
async fn by<T>(
    deadline: Instant,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout_at(deadline, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) if never_sent(&status) || status.code() == Code::FailedPrecondition => {
            Err(Error::NoLeader)
        }
        Ok(Err(status)) if status.code() == Code::PermissionDenied => {
            Err(Error::NotReady { why: status.message().to_owned() })
        }
        Ok(Err(status)) => {
            Err(Error::Unknown { why: format!("the leader did not answer: {}", status.message()) })
        }
        Err(_) => Err(Error::Unknown { why: "the leader did not answer in time".into() }),
    }
}

/// Whether a call failed before a connection stood: then nobody has seen it.
fn never_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() || error.is::<NoConnection>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What the leader says became of one proposal.
fn proposed(result: Option<pb::propose_outcome::Result>) -> Result<Effect, Error> {
    match result {
        Some(pb::propose_outcome::Result::Outcome(effect)) => {
            let outcome = decode_outcome(&effect.outcome)
                .map_err(|e| Error::Unknown { why: format!("the leader's answer: {e}") })?;
            Ok(Effect { revision: effect.revision, outcome })
        }
        Some(pb::propose_outcome::Result::Error(error)) => Err(from_peer(error)),
        None => Err(Error::Unknown { why: "the leader's answer is empty".into() }),
    }
}

/// What a peer says went wrong, as it would have been here.
fn from_peer(error: pb::PeerError) -> Error {
    let why = error.message;
    match error.code.as_str() {
        "NO_LEADER" => Error::NoLeader,
        "NOT_READY" => Error::NotReady { why },
        "OVERLOADED" => Error::Overloaded { what: why },
        "REFUSED" => Error::Refused { why },
        "DISK_FULL" => Error::DiskFull { why },
        _ => Error::Unknown { why },
    }
}

/// The other way round.
pub fn to_peer(error: &Error) -> pb::PeerError {
    let (code, message) = match error {
        Error::NoLeader => ("NO_LEADER", String::new()),
        Error::NotReady { why } => ("NOT_READY", why.clone()),
        Error::Overloaded { what } => ("OVERLOADED", what.clone()),
        Error::Refused { why } => ("REFUSED", why.clone()),
        Error::DiskFull { why } => ("DISK_FULL", why.clone()),
        Error::Unknown { why } => ("UNKNOWN", why.clone()),
    };
    pb::PeerError { code: code.into(), message }
}

/// Makes openraft's clients; they share the lasting channels.
pub struct Network {
    peers: Peers,
}

impl Network {
    pub fn new(peers: Peers) -> Self {
        Self { peers }
    }

    fn link(&self, id: u64, address: &Address, purpose: Purpose) -> Link {
        let client = self.peers.client(id, address, purpose);
        let (lane, answered) = (Lane::default(), Instant::now());
        Link { client, lane, peers: self.peers.clone(), id, purpose, answered }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, address: &Address) -> Link {
        self.link(target, address, Purpose::Log)
    }

    async fn new_heartbeat_client(&mut self, target: u64, address: &Address) -> Link {
        self.link(target, address, Purpose::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: u64, address: &Address) -> Link {
        self.link(target, address, Purpose::Snapshot)
    }
}

/// What became of appends, in their order.
type Appended<'s> = BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>;

/// openraft's client of one peer for one purpose.
pub struct Link {
    client: RaftClient<Wire>,
    lane: Lane,
    peers: Peers,
    id: u64,
    purpose: Purpose,
    /// When the peer last answered an append, or since when it could have.
    answered: Instant,
}

impl Link {
    /// An append with entries waits for the follower's disk, however busy; a heartbeat must not.
    fn patience(&self, option: &RPCOption) -> Duration {
        match self.purpose {
            Purpose::Log => option.hard_ttl().max(2 * self.peers.0.timers.election_max),
            _ => option.hard_ttl(),
        }
    }

    async fn vote_call(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
        pre: bool,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let request = pb::VoteRequest {
            header: self.peers.header(self.id),
            vote: Some(to_vote(&request.vote)),
            last_log: request.last_log_id.as_ref().map(to_log_id),
            leadership_transfer: request.leadership_transfer,
        };
        let patience = self.patience(&option);
        let answer = match pre {
            true => within(patience, self.client.pre_vote(request)).await?,
            false => within(patience, self.client.vote(request)).await?,
        };
        let mut vote = answer.vote.as_ref().and_then(from_vote).ok_or_else(|| garbled("a vote"))?;
        if pre && !answer.granted {
            // openraft takes the vote of a leader that refuses for a newer one than its own vote for that leader, and
            // gives up the round before the others have answered: who always answers first would prevent elections.
            vote.committed = false;
        }
        Ok(VoteResponse {
            vote,
            vote_granted: answer.granted,
            last_log_id: answer.last_log.as_ref().and_then(from_log_id),
        })
    }
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = Chunks;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let next = request.prev_log_id.as_ref().map_or(0, |id| id.index + 1);
        if self.purpose == Purpose::Log && request.entries.is_empty() && self.peers.has_purged(next) {
            return Err(RPCError::Network(NetworkError::from_string("what comes next has been purged")));
        }
        let request = pb::AppendRequest {
            header: self.peers.header(self.id),
            vote: Some(to_vote(&request.vote)),
            prev: request.prev_log_id.as_ref().map(to_log_id),
            entries: request.entries.iter().map(codec::encode_entry).collect(),
            leader_commit: request.leader_commit.as_ref().map(to_log_id),
        };
        let patience = self.patience(&option);
        let replicates = self.purpose == Purpose::Log && !request.entries.is_empty();
        if self.purpose == Purpose::Log && self.answered.elapsed() >= self.peers.0.timers.election_max {
            self.peers.hear_quorum(self.answered, patience).await?;
        }
        let result = within(patience, self.lane.append(&mut self.client, request)).await?.result;
        self.answered = Instant::now();
        match &result {
            Some(pb::append_response::Result::Conflict(conflict)) if conflict.log_lost => {
                self.peers.let_revert(self.id).await;
            }
            Some(pb::append_response::Result::Success(_)) if replicates => {
                self.peers.end_revert(self.id).await;
            }
            _ => {}
        }
        match result {
            Some(pb::append_response::Result::Success(_)) => Ok(AppendEntriesResponse::Success),
            Some(pb::append_response::Result::Partial(id)) => {
                Ok(AppendEntriesResponse::PartialSuccess(from_log_id(&id)))
            }
            Some(pb::append_response::Result::Conflict(_)) => Ok(AppendEntriesResponse::Conflict),
            Some(pb::append_response::Result::HigherVote(vote)) => {
                Ok(AppendEntriesResponse::HigherVote(from_vote(&vote).ok_or_else(|| garbled("a vote"))?))
            }
            None => Err(garbled("an append's result")),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        appends: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<Appended<'s>, RPCError<Types>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        stream_append_sequential(self, worth_sending(appends), option)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.vote_call(request, option, false).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.vote_call(request, option, true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let meta = pb::SnapshotMeta {
            header: self.peers.header(self.id),
            vote: Some(to_vote(&vote)),
            last_log: snapshot.meta.last_log_id.as_ref().map(to_log_id),
            membership: codec::encode_stored_membership(&snapshot.meta.last_membership).into(),
            total_bytes: snapshot.snapshot.iter().map(|chunk| chunk.len() as u64).sum(),
        };
        let first = pb::SnapshotChunk { meta: Some(meta), ..Default::default() };
        let chunks =
            snapshot.snapshot.into_iter().map(|data| pb::SnapshotChunk { data, ..Default::default() });
        let end = pb::SnapshotChunk { last: true, ..Default::default() };
        let stream =
            futures_util::stream::iter(std::iter::once(first).chain(chunks).chain(std::iter::once(end)));
        let sent = within(SNAPSHOT_TIMEOUT, self.client.install_snapshot(stream));
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = sent => {
                let answer = answer.map_err(|error| match error {
                    RPCError::Unreachable(error) => StreamingError::Unreachable(error),
                    other => StreamingError::Network(NetworkError::new(&other)),
                })?;
                let vote = answer.vote.as_ref().and_then(from_vote);
                vote.map(SnapshotResponse::new).ok_or_else(|| StreamingError::Network(NetworkError::from_string("the answer has no vote")))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let request = pb::TransferLeaderRequest {
            header: self.peers.header(self.id),
            from_leader: Some(to_vote(request.from_leader())),
            to_node: *request.to_node_id(),
            last_log: request.last_log_id().map(to_log_id),
        };
        let patience = self.patience(&option);
        within(patience, self.client.transfer_leader(request)).await?;
        Ok(Ok(()))
    }
}

/// A call of Raft's own, with its deadline. An unreachable peer is given a pause, others are tried again at once.
async fn within<T>(
    patience: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, RPCError<Types>> {
    match tokio::time::timeout(patience, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(RPCError::Unreachable(Unreachable::from_string(status.to_string()))),
        Err(_) => Err(RPCError::Network(NetworkError::from_string(format!("no answer within {patience:?}")))),
    }
}

fn garbled(what: &str) -> RPCError<Types> {
    RPCError::Network(NetworkError::from_string(format!("the answer lacks {what}")))
}

pub fn to_vote(vote: &Vote) -> pb::Vote {
    let leader = pb::LeaderId { term: vote.leader_id.term, node_id: vote.leader_id.node_id };
    pb::Vote { leader: Some(leader), committed: vote.committed }
}

pub fn from_vote(vote: &pb::Vote) -> Option<Vote> {
    let leader = vote.leader.as_ref()?;
    Some(if vote.committed {
        Vote::new_committed(leader.term, leader.node_id)
    } else {
        Vote::new(leader.term, leader.node_id)
    })
}

pub fn to_log_id(id: &LogId) -> pb::LogId {
    let leader = pb::LeaderId { term: id.leader_id.term, node_id: id.leader_id.node_id };
    pb::LogId { leader: Some(leader), index: id.index }
}

pub fn from_log_id(id: &pb::LogId) -> Option<LogId> {
    let leader = id.leader.as_ref()?;
    Some(LogId { leader_id: openraft::vote::RaftLeaderId::new(leader.term, leader.node_id), index: id.index })
}
