//! The peers' port: what other nodes ask of this one. It opens before the node has a place in a cluster, and
//! answers only who it is until then. Every call of a running cluster names the cluster and both nodes; one that
//! is meant for another is refused before anything is looked at.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock, RwLock},
    time::Duration,
};

use futures_util::{
    future::BoxFuture,
    stream::{self, BoxStream},
};
use openraft::{async_runtime::watch::WatchReceiver, raft::AppendEntriesResponse};
use proto::raft::v1::{self as pb, raft_server};
use tokio::{net::TcpListener, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Consensus, codec,
    codec::Identity,
    membership::spent,
    message::{self, garbled, missing},
    network::{MESSAGE_BYTES_MAX, to_log_id, to_peer, to_vote},
    peer_port,
    types::{Chunks, LogId, Sealed, Snapshot, Vote},
};
use crate::{
    catalog::{HASH_VERSION, InstanceId, encode_outcome},
    config::{Config, Origin},
    storage::{Slot, Store},
};

/// Renews leases if this node leads; false where one is lost.
pub type Renew = Box<
    dyn Fn(Vec<(InstanceId, Option<u64>)>) -> BoxFuture<'static, Result<Vec<bool>, super::Error>>
        + Send
        + Sync,
>;

/// How long the leader works on what a follower forwarded.
const FORWARDED_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a node that joins waits to hear whether its id is free.
const KNOWS_TIMEOUT: Duration = Duration::from_secs(3);
/// Proposals and heartbeats of one forwarded call.
const FORWARDED_MAX: usize = 4_096;
/// A snapshot is refused beyond this: no catalog within our limits is as large.
const SNAPSHOT_BYTES_MAX: u64 = 4 << 30;
/// Silence after which a connection is given up, as on the client ports.
const PING_EVERY: Duration = Duration::from_secs(4);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// The peers' port. Cheap to clone.
#[derive(Clone)]
pub struct PeerServer(Arc<Inner>);

/// The calls that nodes make to each other, as a service of gRPC.
pub type PeerService = raft_server::RaftServer<PeerServer>;

struct Inner {
    config: Config,
    store: Store,
    identity: RwLock<Option<Identity>>,
    /// Whether this node's store holds a vote or a log.
    initialised: bool,
    consensus: OnceLock<Consensus>,
    renew: OnceLock<Renew>,
}

impl PeerServer {
    /// A server for a node that may not be part of a cluster yet.
    pub fn new(config: &Config, store: Store, identity: Option<Identity>, initialised: bool) -> Self {
        let identity = RwLock::new(identity);
        Self(Arc::new(Inner {
            config: config.clone(),
            store,
            identity,
            initialised,
            consensus: OnceLock::new(),
            renew: OnceLock::new(),
        }))
    }

    /// Answers on `listener` until `stop`.
    pub fn serve(
        &self,
        listener: TcpListener,
        tracker: &TaskTracker,
        stop: CancellationToken,
    ) -> io::Result<SocketAddr> {
        let address = listener.local_addr()?;
        let service = self.service();
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(PING_EVERY))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .add_service(service);
        let incoming = peer_port::accept(listener, &self.0.config.limits, tracker, stop.clone());
        tracker.spawn(async move {
            // Streams from peers never end by themselves: the tracker's owner ends the process.
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
                tracing::error!(%error, "the peers' port has failed");
            }
        });
        Ok(address)
    }

    /// What the port serves.
    pub fn service(&self) -> PeerService {
        PeerService::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// From now on the calls of a running cluster are answered.
    pub fn open(&self, consensus: Consensus) {
        assert!(self.0.consensus.set(consensus).is_ok(), "consensus starts once");
    }

    /// From now on heartbeats that followers forward are renewed.
    pub fn open_leases(&self, renew: Renew) {
        assert!(self.0.renew.set(renew).is_ok(), "leases start once");
    }

    /// The cluster this node belongs to, if any.
    pub fn identity(&self) -> Option<Identity> {
        self.0.identity.read().expect("no panic while it is held").clone()
    }

    /// Makes this node part of a cluster, durably.
    pub async fn adopt(&self, identity: Identity) -> io::Result<()> {
        self.0.store.put(Slot::Identity, codec::encode_identity(&identity)).await?;
        *self.0.identity.write().expect("no panic while it is held") = Some(identity);
        Ok(())
    }

    /// Whether the asker's id is a member's, and when it was removed if it was. For one that joins it must be
    /// certain: a node that lags could have missed that it was added.
    async fn knows(&self, asker: &pb::IdentifyRequest) -> Result<(bool, Option<u64>), Status> {
        let Some(consensus) = self.0.consensus.get() else { return Ok((false, None)) };
        if asker.joining {
            let read = consensus.read_barrier(Instant::now() + KNOWS_TIMEOUT).await;
            read.map_err(|error| {
                Status::unavailable(format!("whether your id is free cannot be said now: {error}"))
            })?;
        }
        let known = consensus.members().iter().any(|member| member.id == asker.from);
        Ok((known, consensus.retired_at(asker.from)))
    }

    /// The node's part in the cluster that the caller names.
    fn checked(&self, header: Option<&pb::PeerHeader>) -> Result<&Consensus, Status> {
        let header = header.ok_or_else(|| Status::invalid_argument("the call has no peer header"))?;
        let consensus = self
            .0
            .consensus
            .get()
            .ok_or_else(|| Status::failed_precondition("this node is still starting"))?;
        if header.cluster_id != *consensus.cluster_id() {
            let ours = consensus.cluster_id();
            return Err(Status::failed_precondition(format!(
                "this node is of cluster {ours}, not of {:?}",
                header.cluster_id
            )));
        }
        if header.to != self.0.config.id {
            return Err(Status::failed_precondition(format!(
                "this is node {}, not node {}",
                self.0.config.id, header.to
            )));
        }
        Ok(consensus)
    }

    /// The same where the caller may not be a node that was removed: it does not know, and must not disturb. What
    /// replicates is left to Raft, whose leader is told by its term.
    fn member(&self, header: Option<&pb::PeerHeader>) -> Result<&Consensus, Status> {
        let consensus = self.checked(header)?;
        let from = header.map_or(0, |header| header.from);
        match consensus.retired_at(from) {
            Some(revision) => Err(Status::permission_denied(spent(from, revision))),
            None => Ok(consensus),
        }
    }
}

impl PeerServer {
    /// The same for calls about votes: a node that may have lost entries must not help to elect anybody, itself
    /// included.
    fn voting(&self, header: Option<&pb::PeerHeader>) -> Result<&Consensus, Status> {
        let consensus = self.member(header)?;
        consensus.0.quarantine.check().map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(consensus)
    }

    /// Takes a leader's entries, or its heartbeat.
    async fn take(&self, request: pb::AppendRequest) -> Result<pb::AppendResponse, Status> {
        let consensus = self.checked(request.header.as_ref())?;
        let append = message::append(&request)?;
        let ends = [append.entries.first(), append.entries.last()].into_iter().flatten();
        let told = ends.map(|entry| entry.log_id).chain(append.prev_log_id).chain(append.leader_commit);
        consensus.shares_history(&append.vote, told)?;
        if !append.entries.is_empty() {
            // An append that fails would end this node; one that is refused comes again.
            self.0.store.space().for_replication(0).map_err(full)?;
        }
        let answer = consensus.0.raft.append_entries(append).await.map_err(stopped)?;
        use pb::append_response::{Conflict, Result as Answer, Success};
        let result = match answer {
            AppendEntriesResponse::Success => Answer::Success(Success {}),
            AppendEntriesResponse::PartialSuccess(id) => {
                Answer::Partial(id.as_ref().map(to_log_id).unwrap_or_default())
            }
            AppendEntriesResponse::Conflict => {
                Answer::Conflict(Conflict { log_lost: consensus.0.quarantine.is_on() })
            }
            AppendEntriesResponse::HigherVote(vote) => Answer::HigherVote(to_vote(&vote)),
        };
        if !matches!(result, Answer::HigherVote(_)) {
            consensus.heard_leader();
        }
        Ok(pb::AppendResponse { result: Some(result) })
    }
}

impl Consensus {
    /// Refuses a leader that has another entry where this node has applied one. One that is deposed may: Raft tells
    /// it so.
    fn shares_history(&self, vote: &Vote, told: impl IntoIterator<Item = LogId>) -> Result<(), Status> {
        let applied = *self.0.applied.borrow();
        message::agrees(applied, told).or_else(|refusal| {
            let deposed = *vote < self.0.raft.server_metrics().borrow_watched().vote;
            if deposed { Ok(()) } else { Err(refusal) }
        })
    }
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("consensus has stopped: {error}"))
}

fn full(error: crate::storage::Full) -> Status {
    Status::resource_exhausted(error.to_string())
}

fn vote_response(answer: openraft::raft::VoteResponse<super::Types>) -> Response<pb::VoteResponse> {
    Response::new(pb::VoteResponse {
        vote: Some(to_vote(&answer.vote)),
        granted: answer.vote_granted,
        last_log: answer.last_log_id.as_ref().map(to_log_id),
    })
}

#[tonic::async_trait]
impl raft_server::Raft for PeerServer {
    type AppendStream = BoxStream<'static, Result<pb::AppendResponse, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.ok_or_else(|| missing("append"))?;
        let begin = (self.clone(), requests, Some(first));
        let answers = stream::try_unfold(begin, async |(server, mut requests, first)| {
            let next = match first {
                Some(first) => Some(first),
                None => requests.message().await?,
            };
            let Some(next) = next else { return Ok(None) };
            Ok(Some((server.take(next).await?, (server, requests, None))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let request = request.into_inner();
        let consensus = self.voting(request.header.as_ref())?;
        consensus.0.raft.vote(message::vote(&request)?).await.map(vote_response).map_err(stopped)
    }

    async fn pre_vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        let request = request.into_inner();
        let consensus = self.voting(request.header.as_ref())?;
        consensus.0.raft.pre_vote(message::vote(&request)?).await.map(vote_response).map_err(stopped)
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        let request = request.into_inner();
        let consensus = self.voting(request.header.as_ref())?;
        let transfer = message::transfer(&request)?;
        match consensus.0.raft.handle_transfer_leader(transfer).await.map_err(stopped)? {
            Ok(()) => Ok(Response::new(pb::TransferLeaderResponse {})),
            Err(refused) => Err(Status::failed_precondition(refused.to_string())),
        }
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotChunk>>,
    ) -> Result<Response<pb::SnapshotAck>, Status> {
        let mut stream = request.into_inner();
        let meta = stream
            .message()
            .await?
            .and_then(|chunk| chunk.meta)
            .ok_or_else(|| missing("snapshot description"))?;
        let consensus = self.checked(meta.header.as_ref())?;
        let (vote, described) = message::snapshot(&meta)?;
        consensus.shares_history(&vote, described.last_log_id)?;
        self.0.store.space().for_replication(meta.total_bytes).map_err(full)?;
        let chunks = receive(&mut stream, meta.total_bytes).await?;
        // A catalog that cannot be read must be refused here: openraft would end the node over it.
        crate::catalog::Catalog::from_chunks(&chunks).map_err(|e| garbled("the snapshot", e))?;
        let snapshot = Snapshot { meta: described, snapshot: chunks };
        let answer = consensus.0.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(pb::SnapshotAck { vote: Some(to_vote(&answer.vote)) }))
    }

    async fn propose(
        &self,
        request: Request<pb::ProposeRequest>,
    ) -> Result<Response<pb::ProposeResponse>, Status> {
        let request = request.into_inner();
        let consensus = self.member(request.header.as_ref())?;
        if request.commands.len() > FORWARDED_MAX {
            return Err(Status::resource_exhausted(format!("at most {FORWARDED_MAX} proposals in one call")));
        }
        let proposals: Result<Vec<_>, _> = request.commands.into_iter().map(Sealed::of).collect();
        let proposals = proposals.map_err(|e| garbled("a proposal", e))?;
        let effects = consensus.propose_all_here(proposals).await;
        use pb::propose_outcome::{Effect, Result as Answer};
        let outcomes = effects.into_iter().map(|effect| match effect {
            Ok(effect) => Answer::Outcome(Effect {
                revision: effect.revision,
                outcome: encode_outcome(&effect.outcome).into(),
            }),
            Err(error) => Answer::Error(to_peer(&error)),
        });
        let outcomes = outcomes.map(|result| pb::ProposeOutcome { result: Some(result) }).collect();
        Ok(Response::new(pb::ProposeResponse { outcomes }))
    }

    async fn read_index(
        &self,
        request: Request<pb::ReadIndexRequest>,
    ) -> Result<Response<pb::ReadIndexResponse>, Status> {
        let request = request.into_inner();
        let consensus = self.member(request.header.as_ref())?;
        let index = consensus.read_index_here(Instant::now() + FORWARDED_TIMEOUT).await;
        let index = index.map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(pb::ReadIndexResponse { index }))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::PeerHeartbeatRequest>,
    ) -> Result<Response<pb::PeerHeartbeatResponse>, Status> {
        let request = request.into_inner();
        self.member(request.header.as_ref())?;
        let renew =
            self.0.renew.get().ok_or_else(|| Status::failed_precondition("this node is still starting"))?;
        if request.beats.len() > FORWARDED_MAX {
            return Err(Status::resource_exhausted(format!(
                "at most {FORWARDED_MAX} heartbeats in one call"
            )));
        }
        let beat =
            |beat: pb::PeerBeat| Ok((InstanceId::new(beat.id)?, Some(beat.reg_rev).filter(|rev| *rev > 0)));
        let beats: Result<Vec<_>, crate::catalog::Invalid> = request.beats.into_iter().map(beat).collect();
        let beats = beats.map_err(|e| garbled("a heartbeat", e.why))?;
        let renewed = renew(beats).await.map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(pb::PeerHeartbeatResponse { renewed }))
    }

    async fn catalog_marks(
        &self,
        request: Request<pb::CatalogMarksRequest>,
    ) -> Result<Response<pb::CatalogMarksResponse>, Status> {
        let consensus = self.member(request.into_inner().header.as_ref())?;
        // What a node in quarantine holds is known to be wrong, or not whole yet: it is no news to others.
        let marks = if consensus.0.quarantine.is_on() { Vec::new() } else { consensus.0.marks.all() };
        let marks = marks.into_iter();
        let marks = marks.map(|mark| pb::CatalogMark { index: mark.index, hash: mark.hash }).collect();
        Ok(Response::new(pb::CatalogMarksResponse { hash_version: HASH_VERSION, marks }))
    }

    async fn identify(
        &self,
        request: Request<pb::IdentifyRequest>,
    ) -> Result<Response<pb::IdentifyResponse>, Status> {
        let config = &self.0.config;
        let (knows_you, removed_at_revision) = self.knows(&request.into_inner()).await?;
        Ok(Response::new(pb::IdentifyResponse {
            node_id: config.id,
            cluster_id: self.identity().map(|identity| identity.cluster_id).unwrap_or_default(),
            knows_you,
            removed_at_revision,
            initialised: self.0.initialised || self.0.consensus.get().is_some_and(Consensus::is_initialised),
            name: config.name.clone(),
            peer: config.advertise.peer.clone(),
            grpc: config.advertise.grpc.clone(),
            rest: config.advertise.rest.clone(),
        }))
    }

    async fn adopt(&self, request: Request<pb::AdoptRequest>) -> Result<Response<pb::AdoptResponse>, Status> {
        let request = request.into_inner();
        let founder = match &self.0.config.origin {
            Origin::Bootstrap(members) => members.keys().next() == Some(&request.from),
            Origin::Join(_) => false,
        };
        if !founder || request.to != self.0.config.id {
            return Err(Status::failed_precondition(format!(
                "node {} does not found a cluster with node {}",
                self.0.config.id, request.from
            )));
        }
        let identity = Identity { cluster_id: request.cluster_id, node_id: self.0.config.id };
        match self.identity() {
            Some(ours) if ours != identity => {
                return Err(Status::failed_precondition(format!(
                    "node {} already belongs to cluster {}",
                    ours.node_id, ours.cluster_id
                )));
            }
            Some(_) => {}
            None => PeerServer::adopt(self, identity).await.map_err(|e| Status::internal(e.to_string()))?,
        }
        Ok(Response::new(pb::AdoptResponse {}))
    }
}

/// The chunks of a snapshot, up to the one that says it is the last.
async fn receive(stream: &mut Streaming<pb::SnapshotChunk>, total_bytes: u64) -> Result<Chunks, Status> {
    if total_bytes > SNAPSHOT_BYTES_MAX {
        return Err(Status::resource_exhausted(format!("a snapshot of {total_bytes} bytes is too large")));
    }
    let mut chunks = Chunks::new();
    let mut bytes = 0;
    while let Some(chunk) = stream.message().await? {
        if chunk.last {
            return match bytes == total_bytes {
                true => Ok(chunks),
                false => Err(Status::data_loss(format!("{bytes} of {total_bytes} bytes arrived"))),
            };
        }
        bytes += chunk.data.len() as u64;
        if bytes > total_bytes {
            return Err(Status::invalid_argument("the snapshot is longer than announced"));
        }
        chunks.push(chunk.data);
    }
    Err(Status::data_loss("the snapshot ended early"))
}
