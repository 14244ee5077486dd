//! The entrance: a cheap handle that speaks to whichever node answers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::registry::v1 as wire;
use serde::Serialize;
use tokio_stream::StreamExt;

use crate::calls::Calls;
use crate::error::Code;
use crate::leader_hint::Node;
use crate::metrics::Metrics;
use crate::transport::Pieces;
use crate::transport::call::{self, Call};
use crate::{Error, EventKind, Instance, Pipeline, Registration, Status, Transport, Watch};

/// The longest a call takes unless the builder is told otherwise.
const CALL_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// The least a change of members may take: the registry gives it 30 s, in which a node may need a snapshot.
const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(35);

/// The registry takes 256; a suffix of ours makes the name unique.
const NAME_BYTES_MAX: usize = 200;

/// A handle to the registry. Cheap to clone; all clones share connections and what is known of the nodes.
#[derive(Clone, Debug)]
pub struct Client {
    calls: Arc<Calls>,
    /// Goes with every write that gives no reason of its own; empty for none.
    why: Arc<str>,
}

/// Settings of a [`Client`].
#[derive(Debug)]
pub struct Builder {
    endpoints: Vec<String>,
    call_timeout: Duration,
    name: String,
    transport: Transport,
    metrics: Option<prometheus::Registry>,
}

/// A value and what it is as of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<T> {
    /// The catalog's revision that the answer is about.
    pub revision: u64,
    /// The cluster that answered. Revisions of different clusters cannot be compared.
    pub cluster_id: String,
    /// The node that answered.
    pub node_id: u64,
    /// How long ago that node last heard of a leader: a stale read may be this old.
    pub age: Duration,
    /// The answer itself.
    pub value: T,
}

/// What goes with a write.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Write only if the id's `mod_rev` is this; 0: only if it is not registered.
    pub expected_revision: Option<u64>,
    /// Who asks, for people. Empty: the client's name.
    pub by: String,
    /// Why, for people. Empty: the client's reason, see [`Client::because`].
    pub why: String,
}

/// A service and how many run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceSummary {
    /// The service.
    pub name: String,
    /// All its instances.
    pub instances: u32,
    /// Those that take requests.
    pub up: u32,
}

/// What a node remembers of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// As it is registered now, if it is.
    pub instance: Option<Instance>,
    /// Its newest changes, oldest first.
    pub changes: Vec<Change>,
    /// Whether older ones are remembered and were left out.
    pub more: bool,
    /// Nothing is remembered up to and including this revision.
    pub compact_revision: u64,
}

/// One change of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The change's place in the order of all changes.
    pub revision: u64,
    /// What happened.
    pub kind: EventKind,
    /// For a put the record; for a removal the record as it was.
    pub instance: Instance,
    /// For a put the record before, if the id was registered.
    pub previous: Option<Instance>,
    /// Who did it.
    pub by: String,
    /// Why.
    pub why: String,
    /// When, in Unix milliseconds by the clock of the node that took the request.
    pub at_ms: u64,
}

/// A node of the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Never used twice in a cluster.
    pub id: u64,
    /// For people.
    pub name: String,
    /// URL for other nodes.
    pub peer: String,
    /// URL for clients.
    pub grpc: String,
    /// URL for clients.
    pub rest: String,
    /// As the answering node knows it.
    pub role: Role,
}

/// What a node is in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Decides.
    Leader,
    /// Votes and follows.
    Follower,
    /// Follows, has no vote.
    Learner,
    /// Asks for votes.
    Candidate,
    /// Not said.
    Unknown,
}

/// What a node knows of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// As others are to know it, whether or not they do; none of a node that is older than this program.
    pub node: Option<Member>,
    /// Of its program.
    pub version: String,
    /// What it is now.
    pub role: Role,
    /// The term it is in.
    pub term: u64,
    /// The leader it knows; 0 if none.
    pub leader_id: u64,
    /// Applied to the catalog.
    pub applied_index: u64,
    /// Known to be on a majority.
    pub committed_index: u64,
    /// The end of its log.
    pub last_log_index: u64,
    /// Its snapshot covers up to here.
    pub snapshot_index: u64,
    /// Its log begins after this.
    pub purged_index: u64,
    /// Registered in all.
    pub instances: u64,
    /// Following its changes.
    pub watchers: u64,
    /// Serves linearizable reads now.
    pub ready: bool,
    /// Why not, for people.
    pub not_ready_reason: String,
    /// Hash of the catalog at the answer's revision.
    pub catalog_hash: String,
    /// What an operator must look at; empty if there is nothing.
    pub alarm: String,
    /// Why its disk is too slow for the election time-outs; empty if it is not.
    pub disk_slow: String,
}

impl Client {
    /// A client of these nodes, such as `http://127.0.0.1:8081`; one string may name several, with commas. Does
    /// no I/O; fails only on an endpoint that cannot be one, or none at all.
    pub fn connect(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Result<Client, Error> {
        Client::builder(endpoints).build()
    }

    /// A client with settings.
    pub fn builder(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Builder {
        Builder {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            call_timeout: CALL_TIMEOUT_DEFAULT,
            name: "flux".to_owned(),
            transport: Transport::Auto,
            metrics: None,
        }
    }

    /// The same client, whose writes give this reason, for people.
    pub fn because(&self, why: impl Into<Arc<str>>) -> Client {
        Client { calls: Arc::clone(&self.calls), why: why.into() }
    }

    /// Registers and stays registered. Returns after the first acknowledgement; until then tries for ever,
    /// unless the registry says that the request can never succeed.
    pub async fn register(&self, instance: Instance) -> Result<Registration, Error> {
        instance.check()?;
        let why = if self.why.is_empty() { "started" } else { &self.why };
        Registration::begin(Arc::clone(&self.calls), instance, why).await
    }

    /// All instances, or those of one service; linearizable.
    pub async fn list(&self, service: Option<&str>) -> Result<Answer<Vec<Instance>>, Error> {
        self.list_by(service, wire::Consistency::Linearizable).await
    }

    /// As [`Client::list`], from whichever node answers: [`Answer::age`] says how old it may be.
    pub async fn list_stale(&self, service: Option<&str>) -> Result<Answer<Vec<Instance>>, Error> {
        self.list_by(service, wire::Consistency::Stale).await
    }

    /// All instances, or those of one service, as they were right after `revision`. [`Code::Compacted`] if the
    /// answering node remembers no longer.
    pub async fn list_at(
        &self,
        service: Option<&str>,
        revision: u64,
    ) -> Result<Answer<Vec<Instance>>, Error> {
        let service = service.unwrap_or("").to_owned();
        let request = wire::ListRequest { service, at_revision: revision, ..Default::default() };
        let answer = self.calls.call(request).await?;
        Ok(answer.map(|reply| reply.instances.into_iter().map(Into::into).collect()))
    }

    /// The newest changes of an instance that the answering node remembers, at most `limit` and 1000.
    pub async fn history(&self, id: &str, limit: u32) -> Result<Answer<History>, Error> {
        let request = wire::HistoryRequest { id: id.to_owned(), limit, ..Default::default() };
        Ok(self.calls.call(request).await?.map(Into::into))
    }

    /// One instance; linearizable. [`Code::NotFound`] if it is not registered.
    pub async fn get(&self, id: &str) -> Result<Answer<Instance>, Error> {
        let request = wire::GetRequest { id: id.to_owned(), ..Default::default() };
        self.calls.call(request).await?.instance(|reply| reply.instance)
    }

    /// Services with the number of their instances; linearizable.
    pub async fn services(&self) -> Result<Answer<Vec<ServiceSummary>>, Error> {
        let answer = self.calls.call(wire::ListServicesRequest::default()).await?;
        Ok(answer.map(|reply| reply.services.into_iter().map(Into::into).collect()))
    }

    /// Registers once, without heartbeats: for tools and tests. Goes to another node only if it certainly had
    /// no effect, so an error whose [`Error::had_no_effect`] is false means that the outcome is unknown.
    pub async fn put(&self, instance: &Instance, options: WriteOptions) -> Result<Answer<Instance>, Error> {
        instance.check()?;
        let request = self.calls.register(instance, options, &self.why);
        self.calls.call(request).await?.instance(|reply| reply.instance)
    }

    /// Deregisters once; only the incarnation `reg_rev` if it is given. The answer says whether something was
    /// there. Goes to another node only as [`Client::put`] does.
    pub async fn deregister(&self, id: &str, reg_rev: Option<u64>) -> Result<Answer<bool>, Error> {
        let request = self.calls.deregister(id, reg_rev.unwrap_or(0), &self.why);
        Ok(self.calls.call(request).await?.map(|reply| reply.found))
    }

    /// Renews a lease; 0 renews whichever incarnation is there. False: it is lost, register again.
    pub async fn heartbeat(&self, id: &str, reg_rev: u64) -> Result<Answer<bool>, Error> {
        beat(&self.calls, id, reg_rev, self.calls.limit).await
    }

    /// Marks an instance up, draining or in maintenance; only the incarnation `reg_rev` if it is given. Goes to
    /// another node only as [`Client::put`] does.
    pub async fn set_status(
        &self,
        id: &str,
        status: Status,
        reg_rev: Option<u64>,
    ) -> Result<Answer<Instance>, Error> {
        let request = self.calls.set_status(id, status, reg_rev.unwrap_or(0), &self.why);
        self.calls.call(request).await?.instance(|reply| reply.instance)
    }

    /// The registry's own nodes.
    pub async fn members(&self) -> Result<Answer<Vec<Member>>, Error> {
        let answer = self.calls.call(call::Members).await?;
        Ok(answer.map(|reply| reply.members.into_iter().map(Into::into).collect()))
    }

    /// What the first configured node that answers knows of itself: a client with one endpoint asks that node.
    pub async fn status(&self) -> Result<Answer<NodeStatus>, Error> {
        Ok(self.calls.call(call::NodeStatus).await?.map(Into::into))
    }

    /// Adds a node as a learner: it receives everything and has no vote. [`Code::Precondition`] if it cannot be
    /// added as things are.
    pub async fn add_learner(&self, member: &Member) -> Result<Answer<Vec<Member>>, Error> {
        let Member { id, name, peer, grpc, rest, .. } = member.clone();
        let member = wire::Member { id, name, peer, grpc, rest, ..Default::default() };
        self.change_members(wire::AddLearnerRequest { member: Some(member) }).await
    }

    /// Gives a learner a vote. [`Code::Precondition`] while it is not caught up.
    pub async fn promote(&self, id: u64) -> Result<Answer<Vec<Member>>, Error> {
        self.change_members(wire::PromoteRequest { id }).await
    }

    /// Takes a node out of the cluster for good.
    pub async fn remove_member(&self, id: u64) -> Result<Answer<Vec<Member>>, Error> {
        self.change_members(wire::RemoveMemberRequest { id }).await
    }

    /// Hands leadership to a node, or to whichever is most up to date. The answer comes when the old leader has
    /// stepped back; the new one may take a moment longer.
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<Answer<()>, Error> {
        let request = wire::TransferLeadershipRequest { to: to.unwrap_or(0) };
        Ok(self.calls.call_within(request, self.calls.limit.max(MEMBERSHIP_TIMEOUT)).await?.map(|_| ()))
    }

    /// Lets the leases expire at once that have run out and are held back because they are so many: for somebody
    /// who knows that those instances are really gone. The answer is how many the leader held back, 0 if none.
    pub async fn release_leases(&self) -> Result<Answer<u64>, Error> {
        Ok(self.calls.call(wire::ReleaseLeasesRequest {}).await?.map(|reply| reply.released))
    }

    /// Has the first configured node that answers write a snapshot of its own and purge its log behind it; the
    /// answer is the log index that it reaches.
    pub async fn take_snapshot(&self) -> Result<Answer<u64>, Error> {
        let limit = self.calls.limit.max(MEMBERSHIP_TIMEOUT);
        let answer = self.calls.call_within(wire::SnapshotRequest {}, limit).await?;
        Ok(answer.map(|reply| reply.snapshot_index))
    }

    /// A backup of the whole catalog at one revision, linearizable, from whichever node begins to send it. What has
    /// begun is not gone on with elsewhere.
    pub async fn backup(&self) -> Result<Backup, Error> {
        Ok(Backup { pieces: self.calls.backup().await?, limit: self.calls.limit })
    }

    /// Registers records of a backup as they were.
    #[cfg(feature = "cli")]
    pub(crate) async fn restore(
        &self,
        instances: Vec<wire::Instance>,
        mode: wire::restore_request::Mode,
    ) -> Result<Answer<wire::RestoreResponse>, Error> {
        self.calls.call(wire::RestoreRequest { instances, mode: mode.into() }).await
    }

    /// Follows one service, or all, from nothing older than what this client's answers have told. Never fails; needs
    /// a tokio runtime, like everything that runs on its own.
    pub fn watch(&self, service: Option<&str>) -> Watch {
        Watch::begin(Arc::clone(&self.calls), service.unwrap_or(""))
    }

    /// One stream for the calls of many tasks: for programs that keep many instances, or write much. Needs gRPC,
    /// and a tokio runtime. Clone what it returns rather than asking again: each is a stream of its own.
    pub fn pipeline(&self) -> Pipeline {
        Pipeline::begin(Arc::clone(&self.calls), Arc::clone(&self.why))
    }

    async fn change_members<C>(&self, call: C) -> Result<Answer<Vec<Member>>, Error>
    where
        C: Call<Reply = wire::MembersResponse>,
    {
        let answer = self.calls.call_within(call, self.calls.limit.max(MEMBERSHIP_TIMEOUT)).await?;
        Ok(answer.map(|reply| reply.members.into_iter().map(Into::into).collect()))
    }

    async fn list_by(
        &self,
        service: Option<&str>,
        consistency: wire::Consistency,
    ) -> Result<Answer<Vec<Instance>>, Error> {
        let request = wire::ListRequest {
            service: service.unwrap_or("").to_owned(),
            consistency: consistency.into(),
            ..Default::default()
        };
        let answer = self.calls.call(request).await?;
        Ok(answer.map(|reply| reply.instances.into_iter().map(Into::into).collect()))
    }
}

/// Renews one lease within `limit`. Over REST a lost lease is an error, over gRPC a result; here it is false.
pub(crate) async fn beat(
    calls: &Calls,
    id: &str,
    reg_rev: u64,
    limit: Duration,
) -> Result<Answer<bool>, Error> {
    let request = wire::Beat { id: id.to_owned(), reg_rev };
    match calls.call_within(request, limit).await {
        Ok(answer) => Ok(answer.map(|reply| reply.results().next() == Some(wire::BeatResult::Renewed))),
        Err(error) if error.code() == Code::LeaseLost => Ok(Answer::bare(false)),
        Err(error) => Err(error),
    }
}

impl Builder {
    /// How long one call may take in all, tries on other nodes included. 5 s unless set.
    pub fn call_timeout(mut self, timeout: Duration) -> Builder {
        self.call_timeout = timeout;
        self
    }

    /// Who this is, for people: in provenance and in lists of watchers.
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = name.into();
        self
    }

    /// The protocol. [`Transport::Auto`] unless set.
    pub fn transport(mut self, transport: Transport) -> Builder {
        self.transport = transport;
        self
    }

    /// Where the client's metrics go. One client per registry: clone it rather than making two.
    pub fn metrics(mut self, registry: &prometheus::Registry) -> Builder {
        self.metrics = Some(registry.clone());
        self
    }

    /// The client. Does no I/O.
    pub fn build(self) -> Result<Client, Error> {
        let nodes: Vec<Node> = self
            .endpoints
            .iter()
            .flat_map(|endpoints| endpoints.split(','))
            .filter(|endpoint| !endpoint.trim().is_empty())
            .map(Node::parse)
            .collect::<Result<_, _>>()?;
        if nodes.is_empty() {
            return Err(Error::invalid(
                "no endpoint is given: name at least one, such as http://127.0.0.1:8081",
            ));
        }
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            return Err(Error::invalid(format!("a client's name has 1 to {NAME_BYTES_MAX} bytes")));
        }
        let metrics = Metrics::new();
        if let Some(registry) = &self.metrics {
            metrics.expose(registry)?;
        }
        let calls = Calls::new(nodes, self.transport, self.name, self.call_timeout, metrics);
        Ok(Client { calls: Arc::new(calls), why: "".into() })
    }
}

impl<T> Answer<T> {
    /// The same answer about something else.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Answer<U> {
        Answer {
            revision: self.revision,
            cluster_id: self.cluster_id,
            node_id: self.node_id,
            age: self.age,
            value: f(self.value),
        }
    }

    fn bare(value: T) -> Answer<T> {
        Answer { revision: 0, cluster_id: String::new(), node_id: 0, age: Duration::ZERO, value }
    }

    /// The record in the answer, which a success always carries.
    pub(crate) fn instance(
        self,
        record: impl FnOnce(T) -> Option<wire::Instance>,
    ) -> Result<Answer<Instance>, Error> {
        let answer = self.map(record);
        if answer.value.is_none() {
            return Err(Error::new(Code::Internal, "the answer carries no instance"));
        }
        Ok(answer.map(|record| record.unwrap_or_default().into()))
    }
}

impl From<wire::ServiceSummary> for ServiceSummary {
    fn from(s: wire::ServiceSummary) -> ServiceSummary {
        ServiceSummary { name: s.name, instances: s.instances, up: s.up }
    }
}

impl From<wire::HistoryResponse> for History {
    fn from(h: wire::HistoryResponse) -> History {
        History {
            instance: h.instance.map(Into::into),
            changes: h.changes.into_iter().filter_map(change).collect(),
            more: h.more,
            compact_revision: h.header.map_or(0, |header| header.compact_revision),
        }
    }
}

/// The bytes of a backup file, as a node sends them. Whole only if the file is: it ends with its own checksum.
pub struct Backup {
    pieces: Pieces,
    /// The longest wait for one piece.
    limit: Duration,
}

impl Backup {
    /// The next bytes; none at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        match tokio::time::timeout(self.limit, self.pieces.next()).await {
            Ok(piece) => piece,
            Err(_) => Some(Err(Error::new(Code::Timeout, format!("nothing came in {:?}", self.limit)))),
        }
    }
}

impl fmt::Debug for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backup").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// A change, unless it lacks what makes it one.
fn change(change: wire::Change) -> Option<Change> {
    let event = change.event?;
    let cause = event.cause.clone().unwrap_or_default();
    Some(Change {
        revision: event.revision,
        kind: event.kind().into(),
        instance: event.instance?.into(),
        previous: change.previous.map(Into::into),
        by: cause.by,
        why: cause.why,
        at_ms: cause.at_ms,
    })
}

impl From<wire::Member> for Member {
    fn from(m: wire::Member) -> Member {
        let role = m.role().into();
        Member { id: m.id, name: m.name, peer: m.peer, grpc: m.grpc, rest: m.rest, role }
    }
}

impl From<wire::member::Role> for Role {
    fn from(role: wire::member::Role) -> Role {
        match role {
            wire::member::Role::Leader => Role::Leader,
            wire::member::Role::Follower => Role::Follower,
            wire::member::Role::Learner => Role::Learner,
            wire::member::Role::Candidate => Role::Candidate,
            wire::member::Role::Unspecified => Role::Unknown,
        }
    }
}

impl From<wire::StatusResponse> for NodeStatus {
    fn from(s: wire::StatusResponse) -> NodeStatus {
        let role = s.role().into();
        let header = s.header.unwrap_or_default();
        NodeStatus {
            name: s.name,
            node: s.node.map(Into::into),
            version: s.version,
            role,
            term: header.term,
            leader_id: header.leader.map_or(0, |leader| leader.id),
            applied_index: s.applied_index,
            committed_index: s.committed_index,
            last_log_index: s.last_log_index,
            snapshot_index: s.snapshot_index,
            purged_index: s.purged_index,
            instances: s.instances,
            watchers: s.watchers,
            ready: s.ready,
            not_ready_reason: s.not_ready_reason,
            alarm: s.alarm,
            disk_slow: s.disk_slow,
            catalog_hash: s.catalog_hash,
        }
    }
}

impl Role {
    /// The name in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Learner => "learner",
            Role::Candidate => "candidate",
            Role::Unknown => "unknown",
        }
    }
}
