//! The use cases, one method each: what a caller of the registry can ask for, whichever protocol carried it and
//! whichever node it reached.
//!
//! A write is proposed wherever the leader is; a linearizable read waits until this node has applied what the
//! leader had committed when the read began; a heartbeat is renewed by the leader's lease keeper. Calls wait
//! for a leader up to [`Limits::call_timeout`], so that a caller without fail-over of its own sees an election
//! as a slow answer, not as an error.

mod clients;
mod pipeline;

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use crate::{
    catalog::{
        Catalog, Command, InstanceId, Invalid, Origin, Outcome, Proposal, Provenance, Record, Refusal,
        ServiceName, Spec, Status,
    },
    config::Limits,
    consensus::{self, Consensus, Sealed},
    lease::Keeper,
    watch::{self, Effect, Hub},
};

use self::clients::Clients;
pub use self::pipeline::{Answered, Done, Pipeline};
pub use crate::{
    consensus::{Header, Member, NodeStatus, Role},
    watch::{Batch, Past, Shared, Snapshot, Update},
};

/// How long a watch waits for a revision that this node has not applied yet.
const WATCH_CATCH_UP: Duration = Duration::from_secs(2);

/// Heartbeats of one call: a follower passes them on whole, and a late one delays only these.
const BEATS_MAX: usize = 1_024;

/// Records of one restore call, and how many of them are proposed at once: they share log entries.
const RESTORE_MAX: usize = 1_024;
const RESTORE_AT_ONCE: usize = 256;

/// How long the readiness check may take to read; a node that needs longer is not ready.
const READY_TIMEOUT: Duration = Duration::from_secs(1);

/// An answer and what it is an answer about.
#[derive(Debug, Clone)]
pub struct Answer<T> {
    /// Who answered, about which revision.
    pub header: Header,
    /// What was asked for.
    pub value: T,
}

/// Who asks, for people to read later, and how to tell a repeated request.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// A name or an address.
    pub by: String,
    /// The caller's reason.
    pub why: String,
    /// Makes the request take effect at most once however often it is sent.
    pub origin: Option<Origin>,
    /// Whether the caller would only repeat the request when it hears nothing: then we do, while time lasts.
    pub repeats: bool,
}

/// The catalog at one revision.
#[derive(Debug, Clone)]
pub struct Backup {
    /// All of it; writes go on beside.
    pub catalog: Arc<Catalog>,
    /// It holds what the log says up to here.
    pub index: u64,
}

/// What becomes of instances that are registered when others are restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreMode {
    /// There must be none.
    IntoEmpty,
    /// They stay.
    Keep,
    /// They give way to those of the same id.
    Replace,
}

/// What became of the records of one call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Restored {
    /// Registered.
    pub restored: u32,
    /// Something was registered under their id, and stayed.
    pub kept: u32,
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// As if there were one copy.
    #[default]
    Linearizable,
    /// What this node has applied.
    Stale,
}

/// A service and how many instances it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSummary {
    /// Its name.
    pub name: ServiceName,
    /// Registered.
    pub instances: usize,
    /// Of these, up.
    pub up: usize,
}

/// Why a call failed, in terms its caller can act on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// This node cannot answer correctly now.
    #[error("this node is not ready: {why}")]
    NotReady {
        /// What it waits for.
        why: String,
    },
    /// No leader could be found in time; nothing happened.
    #[error("the cluster has no leader")]
    NoLeader,
    /// No answer in time; it may have happened.
    #[error("the outcome is unknown: {why}")]
    Unknown {
        /// What went missing.
        why: String,
    },
    /// No such instance.
    #[error("instance {id} is not registered")]
    NotFound {
        /// The id asked for.
        id: String,
    },
    /// The precondition on the revision does not hold.
    #[error("the precondition does not hold: {}", match .current { Some(r) => format!("the instance is at revision {r}"), None => "the instance is not registered".into() })]
    Precondition {
        /// The record's `mod_rev`, if it is registered.
        current: Option<u64>,
    },
    /// The call names an incarnation that has been replaced.
    #[error("instance {id} has been registered again, at revision {current}")]
    Superseded {
        /// The instance.
        id: String,
        /// The incarnation that is registered.
        current: u64,
    },
    /// The request's number is older than what is remembered of its client: it may have happened, once.
    #[error("the client's sequence number is older than those still remembered")]
    StaleSequence,
    /// The request says something that cannot be.
    #[error("{field}: {why}")]
    Invalid {
        /// Where.
        field: String,
        /// What and what would be right.
        why: String,
    },
    /// The past asked for is forgotten.
    #[error("revision {asked} is no longer remembered: {oldest} is the oldest that this node can show")]
    Compacted {
        /// The revision.
        asked: u64,
        /// The oldest that can be asked for.
        oldest: u64,
    },
    /// It cannot be done as things are.
    #[error("{why}")]
    Refused {
        /// What stands in the way.
        why: String,
    },
    /// A bound is reached.
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
    /// Not served.
    #[error("{what} is not supported")]
    Unsupported {
        /// What.
        what: String,
    },
}

impl Error {
    /// A stable name: `reason` of ErrorInfo, `code` of problem+json.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotReady { .. } => "NOT_READY",
            Self::NoLeader => "NO_LEADER",
            Self::Unknown { .. } => "UNKNOWN_OUTCOME",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::Precondition { .. } => "PRECONDITION",
            Self::Superseded { .. } => "SUPERSEDED",
            Self::StaleSequence => "STALE_SEQUENCE",
            Self::Invalid { .. } => "INVALID",
            Self::Compacted { .. } => "COMPACTED",
            Self::Refused { .. } => "REFUSED",
            Self::Overloaded { .. } => "OVERLOADED",
            Self::DiskFull { .. } => "DISK_FULL",
            Self::Unsupported { .. } => "UNSUPPORTED",
        }
    }

    /// Whether the same call can succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::NotReady { .. }
                | Self::NoLeader
                | Self::Unknown { .. }
                | Self::Overloaded { .. }
                | Self::DiskFull { .. }
        )
    }

    /// Whether it is certain that nothing changed.
    pub fn had_no_effect(&self) -> bool {
        !matches!(self, Self::Unknown { .. } | Self::StaleSequence)
    }
}

impl From<consensus::Error> for Error {
    fn from(error: consensus::Error) -> Self {
        match error {
            consensus::Error::NotReady { why } => Self::NotReady { why },
            consensus::Error::NoLeader => Self::NoLeader,
            consensus::Error::Unknown { why } => Self::Unknown { why },
            consensus::Error::Overloaded { what } => Self::Overloaded { what },
            consensus::Error::DiskFull { why } => Self::DiskFull { why },
            consensus::Error::Refused { why } => Self::Refused { why },
        }
    }
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid { field: invalid.field.into(), why: invalid.why }
    }
}

/// A node's registry. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    consensus: Consensus,
    hub: Hub,
    keeper: Keeper,
    limits: Arc<Limits>,
    watching: Clients,
}

impl Registry {
    /// Puts the use cases on top of their parts.
    pub fn new(consensus: Consensus, hub: Hub, keeper: Keeper, limits: Arc<Limits>) -> Self {
        Self { consensus, hub, keeper, limits, watching: Clients::default() }
    }

    /// Registers `spec`, which is valid, and grants its lease. With `expected`, only if the record is at that revision (0: not
    /// registered at all).
    pub async fn register(
        &self,
        spec: Spec,
        expected: Option<u64>,
        caller: Caller,
    ) -> Result<Answer<Arc<Record>>, Error> {
        let id = spec.id.clone();
        match self.propose(Command::Register { spec: Arc::new(spec), expected }, caller).await? {
            Effect { outcome: Outcome::Registered(record), .. } => Ok(self.answer_at(record.mod_rev, record)),
            other => Err(refusal(&id, other.outcome)),
        }
    }

    /// Takes an instance out. With `reg_rev`, only that incarnation. The answer is whether something was there.
    pub async fn deregister(
        &self,
        id: InstanceId,
        reg_rev: Option<u64>,
        caller: Caller,
    ) -> Result<Answer<bool>, Error> {
        match self.propose(Command::Deregister { id: id.clone(), reg_rev }, caller).await? {
            Effect { revision, outcome: Outcome::Deregistered { found } } => {
                Ok(self.answer_at(revision, found))
            }
            other => Err(refusal(&id, other.outcome)),
        }
    }

    /// Changes an instance's status, keeping its incarnation.
    pub async fn set_status(
        &self,
        id: InstanceId,
        status: Status,
        reg_rev: Option<u64>,
        caller: Caller,
    ) -> Result<Answer<Arc<Record>>, Error> {
        match self.propose(Command::SetStatus { id: id.clone(), status, reg_rev }, caller).await? {
            Effect { outcome: Outcome::StatusSet(record), revision } => Ok(self.answer_at(revision, record)),
            other => Err(refusal(&id, other.outcome)),
        }
    }

    /// Renews leases; one result a beat, in order: false means that the lease is gone and the instance must
    /// register again.
    pub async fn heartbeat(&self, beats: Vec<(InstanceId, Option<u64>)>) -> Result<Answer<Vec<bool>>, Error> {
        if beats.len() > BEATS_MAX {
            return Err(too_many_beats(beats.len()));
        }
        let deadline = Instant::now() + self.limits.call_timeout;
        let renewed = self.keeper.renew(&beats, deadline).await?;
        Ok(Answer { header: self.header(), value: renewed })
    }

    /// A client's calls on their way at once.
    pub fn pipeline(&self) -> Pipeline {
        Pipeline::new(self.clone())
    }

    /// The instances of a service, or of all, in order of their ids.
    pub async fn list(
        &self,
        service: Option<ServiceName>,
        consistency: Consistency,
        min_revision: u64,
    ) -> Result<Answer<Vec<Arc<Record>>>, Error> {
        self.fresh(consistency, min_revision).await?;
        Ok(self.read(|catalog| catalog.list(service.as_ref())))
    }

    /// The instances of a service, or of all, as they were right after `revision`, in order of their ids.
    pub async fn list_at(
        &self,
        service: Option<ServiceName>,
        revision: u64,
    ) -> Result<Answer<Vec<Arc<Record>>>, Error> {
        self.fresh(Consistency::Linearizable, 0).await?;
        let now = self.hub.revision();
        if revision > now {
            let why = format!("is {revision}: the catalog is at revision {now}");
            return Err(Error::Invalid { field: "at_revision".into(), why });
        }
        match self.hub.at(service.as_ref(), revision) {
            Ok(records) => Ok(self.answer_at(revision, records)),
            Err(oldest) => Err(Error::Compacted { asked: revision, oldest }),
        }
    }

    /// The newest changes of an instance that this node remembers, `limit` at most.
    pub async fn history(
        &self,
        id: InstanceId,
        limit: usize,
        consistency: Consistency,
        min_revision: u64,
    ) -> Result<Answer<Past>, Error> {
        self.fresh(consistency, min_revision).await?;
        let past = self.hub.past(&id, limit);
        Ok(self.answer_at(past.revision, past))
    }

    /// One instance.
    pub async fn get(
        &self,
        id: InstanceId,
        consistency: Consistency,
        min_revision: u64,
    ) -> Result<Answer<Option<Arc<Record>>>, Error> {
        self.fresh(consistency, min_revision).await?;
        Ok(self.read(|catalog| catalog.get(&id).cloned()))
    }

    /// Services in order of their names.
    pub async fn services(
        &self,
        consistency: Consistency,
        min_revision: u64,
    ) -> Result<Answer<Vec<ServiceSummary>>, Error> {
        self.fresh(consistency, min_revision).await?;
        Ok(self.read(|catalog| {
            catalog
                .services()
                .into_iter()
                .map(|(name, instances, up)| ServiceSummary { name, instances, up })
                .collect()
        }))
    }

    /// Follows the changes of a service, or of all, for a client at `peer` that holds a revision of a cluster.
    /// Whatever cannot be resumed (another cluster, nothing held, behind the ring) starts with a reset, which is
    /// not older than `min_revision`: a node that is behind what the client knows waits for it.
    pub async fn watch(
        &self,
        service: Option<ServiceName>,
        cluster_id: &str,
        after_revision: Option<u64>,
        min_revision: u64,
        peer: Option<IpAddr>,
    ) -> Result<Watcher, Error> {
        self.consensus.caught_up()?;
        let limits = &self.limits;
        let place = self.watching.enter(peer, limits.watchers_per_client_max).ok_or_else(|| {
            let what =
                format!("watchers of one client: each address may have {}", limits.watchers_per_client_max);
            Error::Overloaded { what }
        })?;
        let ours = cluster_id == &*self.consensus.cluster_id();
        let resume = after_revision.filter(|_| ours);
        // What is known of another cluster means nothing here.
        let known = if ours || cluster_id.is_empty() { min_revision } else { 0 };
        let needed = resume.unwrap_or(0).max(known);
        self.hub.reached(needed, Instant::now() + WATCH_CATCH_UP).await.map_err(|at| Error::NotReady {
            why: format!(
                "it has applied revision {at}, the watch needs {needed}; if that is another cluster's, name its \
                 cluster_id with it"
            ),
        })?;
        let too_many =
            || Error::Overloaded { what: format!("watchers: this node serves {}", limits.watchers_max) };
        let cursor = self.hub.watcher(service, resume).ok_or_else(too_many)?;
        Ok(Watcher { cursor, _place: place })
    }

    /// Memory that the ring of recent changes holds, by estimate.
    pub fn history_bytes(&self) -> usize {
        self.hub.history_bytes()
    }

    /// How often watchers were called because something changed that concerns them.
    pub fn wake_ups(&self) -> u64 {
        self.hub.wake_ups()
    }

    /// What this node knows now.
    pub fn header(&self) -> Header {
        self.read(|_| ()).header
    }

    /// This node's state, for operators.
    pub fn status(&self) -> NodeStatus {
        self.consensus.status()
    }

    /// Whether this node answers linearizable reads now, proven by one; else why not.
    pub async fn ready(&self) -> Result<(), String> {
        let deadline = Instant::now() + READY_TIMEOUT;
        self.consensus.read_barrier(deadline).await.map_err(|e| Error::from(e).to_string())
    }

    /// The members as this node last applied them: at once, because clients find their way by it. A node that was
    /// removed does not know them; it answers as ever until it has heard of that, a second at most.
    pub fn members(&self) -> Result<Answer<Vec<Member>>, Error> {
        self.consensus.takes_part()?;
        Ok(self.known_members())
    }

    fn known_members(&self) -> Answer<Vec<Member>> {
        Answer { header: self.header(), value: self.consensus.members() }
    }

    /// Adds a node that receives the log and has no vote. The leader only.
    pub async fn add_learner(&self, member: Member) -> Result<Answer<Vec<Member>>, Error> {
        self.consensus.add_learner(member).await?;
        Ok(self.known_members())
    }

    /// Gives a learner that has caught up a vote. The leader only.
    pub async fn promote(&self, id: u64) -> Result<Answer<Vec<Member>>, Error> {
        self.consensus.promote(id).await?;
        Ok(self.known_members())
    }

    /// Takes a node out for good. The leader only.
    pub async fn remove_member(&self, id: u64) -> Result<Answer<Vec<Member>>, Error> {
        self.consensus.remove(id).await?;
        Ok(self.known_members())
    }

    /// Hands leadership to a node, or to the most up to date. The leader only.
    pub async fn transfer(&self, to: Option<u64>) -> Result<Answer<()>, Error> {
        self.consensus.transfer(to).await?;
        Ok(Answer { header: self.header(), value: () })
    }

    /// The whole catalog now, as linearizable reads see it.
    pub async fn backup(&self) -> Result<Answer<Backup>, Error> {
        self.fresh(Consistency::Linearizable, 0).await?;
        let (catalog, index) = self.hub.catalog_and_index();
        Ok(self.answer_at(catalog.revision(), Backup { catalog, index }))
    }

    /// Registers records, which are valid, as they were, with the provenance they had, many at once. An error says that nothing
    /// happened only if nothing did; the same call can be repeated in the modes that allow for what is there.
    pub async fn restore(
        &self,
        records: Vec<(Spec, Provenance)>,
        mode: RestoreMode,
    ) -> Result<Answer<Restored>, Error> {
        if records.len() > RESTORE_MAX {
            let why = format!(
                "are {} in one call, at most {RESTORE_MAX} are taken: send several calls",
                records.len()
            );
            return Err(Error::Invalid { field: "instances".into(), why });
        }
        if mode == RestoreMode::IntoEmpty {
            self.fresh(Consistency::Linearizable, 0).await?;
            let there = self.hub.read(Catalog::len);
            if there > 0 {
                return Err(Error::Refused { why: format!("the cluster holds {there} instances") });
            }
        }
        let expected = (mode != RestoreMode::Replace).then_some(0);
        let deadline = Instant::now() + self.limits.call_timeout;
        let register = async |(spec, cause)| {
            let (spec, cause) = (Arc::new(spec), Arc::new(cause));
            let command = Command::Register { spec, expected };
            self.consensus.propose(Sealed::new(Proposal { command, cause, origin: None }), deadline).await
        };
        let mut outcomes = stream::iter(records).map(register).buffer_unordered(RESTORE_AT_ONCE);
        let (mut restored, mut failed) = (Restored::default(), None);
        while let Some(outcome) = outcomes.next().await {
            match outcome.map(|effect| effect.outcome) {
                Ok(Outcome::Registered(_)) => restored.restored += 1,
                Ok(_) => restored.kept += 1,
                Err(error) => failed = Some(Error::from(error)),
            }
        }
        match failed {
            None => Ok(Answer { header: self.header(), value: restored }),
            Some(error) if restored.restored == 0 => Err(error),
            Some(error) => {
                let why = format!("{} records were restored, others were not: {error}", restored.restored);
                Err(Error::Unknown { why })
            }
        }
    }

    /// Lets the overdue leases expire that are held back because they are so many; the answer is how many. The
    /// leader only.
    pub fn release_leases(&self) -> Result<Answer<usize>, Error> {
        let released = self.keeper.release()?;
        Ok(Answer { header: self.header(), value: released })
    }

    /// Takes a snapshot now; the answer is the log index it holds.
    pub async fn snapshot(&self) -> Result<Answer<u64>, Error> {
        let index = self.consensus.snapshot().await?;
        Ok(Answer { header: self.header(), value: index })
    }

    async fn propose(&self, command: Command, caller: Caller) -> Result<Effect, Error> {
        let repeats = caller.repeats;
        let sealed = seal(command, caller);
        let bytes = sealed.bytes.clone();
        let deadline = Instant::now() + self.limits.call_timeout;
        let (mut next, mut doubt) = (sealed, None);
        loop {
            match self.consensus.propose(next, deadline).await {
                Err(unknown @ consensus::Error::Unknown { .. }) if repeats && Instant::now() < deadline => {
                    doubt = Some(unknown);
                    self.consensus.await_change(deadline).await;
                }
                // However the repetition failed, the first may still have happened.
                Err(error) => return Err(doubt.unwrap_or(error).into()),
                Ok(effect) => return Ok(effect),
            }
            next = Sealed::again(&bytes);
        }
    }

    /// Waits until a read here is as fresh as asked for.
    async fn fresh(&self, consistency: Consistency, min_revision: u64) -> Result<(), Error> {
        let deadline = Instant::now() + self.limits.call_timeout;
        match consistency {
            Consistency::Linearizable => self.consensus.read_barrier(deadline).await?,
            Consistency::Stale => self.consensus.caught_up()?,
        }
        self.hub.reached(min_revision, deadline).await.map_err(|at| Error::NotReady {
            why: format!("it has applied revision {at}, the read asks for {min_revision}"),
        })
    }

    fn read<T>(&self, query: impl FnOnce(&Catalog) -> T) -> Answer<T> {
        let (revision, value) = self.hub.read(|catalog| (catalog.revision(), query(catalog)));
        self.answer_at(revision, value)
    }

    fn answer_at<T>(&self, revision: u64, value: T) -> Answer<T> {
        let compact_revision = self.hub.compact_revision();
        Answer { header: self.consensus.header(revision, compact_revision), value }
    }
}

/// A cursor over the changes of a service, or of all.
pub struct Watcher {
    cursor: watch::Watcher,
    _place: clients::Place,
}

impl Watcher {
    /// The next update, at the latest after a second, or two where it starts over. Cancel-safe. After an error
    /// the watch has to be resumed anew.
    pub async fn next(&mut self) -> Result<Update, Error> {
        self.cursor.next().await.map_err(crowded)
    }

    /// What there is to tell a client that waits no longer: progress, or an error if it has to start over first.
    pub fn standing(&self) -> Result<Update, Error> {
        self.cursor.standing().map_err(crowded)
    }
}

fn crowded(_: watch::Crowded) -> Error {
    Error::Overloaded { what: "watchers that start over at once".into() }
}

/// The proposal of a command, stamped with who asked for it and when.
fn seal(command: Command, caller: Caller) -> Sealed {
    let cause = consensus::provenance(caller.by, caller.why);
    Sealed::new(Proposal { command, cause, origin: caller.origin })
}

fn too_many_beats(count: usize) -> Error {
    let why = format!("are {count} in one call, at most {BEATS_MAX} are taken: send several calls");
    Error::Invalid { field: "beats".into(), why }
}

fn reused_sequence() -> Error {
    let why = "was used for another request of this client: number every request anew";
    Error::Invalid { field: "seq".into(), why: why.into() }
}

fn refusal(id: &InstanceId, outcome: Outcome) -> Error {
    match outcome {
        Outcome::Refused(Refusal::SequenceReused) => reused_sequence(),
        Outcome::Refused(Refusal::StaleSequence) => Error::StaleSequence,
        Outcome::Refused(Refusal::NotFound) => Error::NotFound { id: id.to_string() },
        Outcome::Refused(Refusal::Precondition { current }) => Error::Precondition { current },
        Outcome::Refused(Refusal::Superseded { current }) => {
            Error::Superseded { id: id.to_string(), current }
        }
        // Only a number used twice is answered with what became of another command.
        _ => reused_sequence(),
    }
}
