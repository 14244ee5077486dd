//! Who is a member, and who leads next: the operator's changes, each refused where it would harm the cluster.

use std::{collections::BTreeSet, time::Duration};

use openraft::{
    ChangeMembers, RaftMetrics,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, RaftError},
    raft::VoteRequest,
    vote::RaftLeaderId,
};
use tokio::time::Instant;

use super::{
    Consensus, Error, Lead, READ_INDEX_TIMEOUT,
    machine_status::Member,
    types::{Address, LogId, Types, Vote},
};
use crate::scope::scoped;

/// How long a leader that stops waits for its successor.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(1);
/// Log entries that a learner may be behind and still be given a vote; replicated within a heartbeat or two.
const PROMOTION_LAG_MAX: u64 = 100;
/// How long a membership change may take: a learner may need a snapshot first.
pub(super) const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(30);

impl Consensus {
    /// Adds a learner. The leader only; refused for the id of a node that was removed.
    pub async fn add_learner(&self, member: Member) -> Result<(), Error> {
        // What was removed before this call is known after it.
        self.read_barrier(Instant::now() + READ_INDEX_TIMEOUT).await?;
        if let Some(revision) = self.retired_at(member.id) {
            return Err(Error::Refused { why: spent(member.id, revision) });
        }
        self.stays()?;
        let address = Address { name: member.name, peer: member.peer, grpc: member.grpc, rest: member.rest };
        outcome(false, self.0.raft.add_learner(member.id, address, false)).await
    }

    /// Gives a learner a vote. The leader only; refused until it has nearly caught up: a voter that is behind or
    /// away counts for the quorum, and taking it out again would need one.
    pub async fn promote(&self, id: u64) -> Result<(), Error> {
        self.has_caught_up(id)?;
        let mut voters = self.voters();
        voters.insert(id);
        self.would_work(&voters).await?;
        self.stays()?;
        let change = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
        outcome(true, self.0.raft.change_membership(change, true)).await
    }

    /// Takes a member out for good. The leader only; refused where those who are left could not decide anything.
    pub async fn remove(&self, id: u64) -> Result<(), Error> {
        let mut voters = self.voters();
        let only = BTreeSet::from([id]);
        if voters.remove(&id) {
            self.would_work(&voters).await?;
            self.stays()?;
            outcome(true, self.0.raft.change_membership(ChangeMembers::RemoveVoters(only), false)).await
        } else {
            self.stays()?;
            outcome(false, self.0.raft.change_membership(ChangeMembers::RemoveNodes(only), false)).await
        }
    }

    /// The members with a vote; of two sets while they change, both.
    pub(super) fn voters(&self) -> BTreeSet<u64> {
        self.0.raft.voter_ids().collect()
    }

    /// The revision at which the node of this id was removed, if it was, as far as this node has applied.
    pub(super) fn retired_at(&self, id: u64) -> Option<u64> {
        let revision = self.0.hub.read(|catalog| catalog.retired_node(id))?;
        // Ids that are spent together with those before them may be those of members that never left.
        let is_member = self.members().iter().any(|member| member.id == id);
        (!is_member).then_some(revision)
    }

    fn has_caught_up(&self, id: u64) -> Result<(), Error> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let replication = metrics.replication.as_ref().ok_or(Error::NoLeader)?;
        let refused = |why: String| Err(Error::Refused { why });
        let Some(matched) = replication.get(&id) else {
            return refused(format!("node {id} is no member: add it first"));
        };
        if matched.is_none() || !self.answering(&metrics).contains(&id) {
            return refused(format!("node {id} does not answer: start it first"));
        }
        let (last, at) = (metrics.last_log_index.unwrap_or(0), matched.map_or(0, |id| id.index));
        if last.saturating_sub(at) > PROMOTION_LAG_MAX {
            return refused(format!(
                "node {id} has caught up to log index {at} of {last} only: try again when it has"
            ));
        }
        Ok(())
    }

    /// Refuses a set of voters of which no majority answers: the change could never be completed or undone. A leader
    /// that is new has heard nobody yet, so it listens for a while before it refuses.
    async fn would_work(&self, voters: &BTreeSet<u64>) -> Result<(), Error> {
        let deadline = Instant::now() + self.lately();
        loop {
            let answering = {
                let metrics = self.0.raft.metrics();
                let metrics = metrics.borrow_watched();
                if metrics.replication.is_none() {
                    return Err(Error::NoLeader);
                }
                self.answering(&metrics).intersection(voters).copied().collect::<BTreeSet<u64>>()
            };
            if answering.len() > voters.len() / 2 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let why = format!(
                    "of the voters {voters:?} that this would leave only {answering:?} answer, and no majority could \
                     decide anything any more: start the others first, or remove one that is away"
                );
                return Err(Error::Refused { why });
            }
            self.await_change(deadline).await;
        }
    }

    /// Who was not heard for so long does not answer.
    fn lately(&self) -> Duration {
        2 * self.0.timers.election_max
    }

    /// The nodes that this leader has heard lately, itself included.
    fn answering(&self, metrics: &RaftMetrics<Types>) -> BTreeSet<u64> {
        let lately = self.lately();
        let heard = metrics.heartbeat.iter().flatten().filter_map(|(id, acked)| acked.map(|at| (*id, at)));
        let fresh = heard.filter(|(_, at)| openraft::Instant::elapsed(&at.into_inner()) < lately);
        fresh.map(|(id, _)| id).chain([self.0.id]).collect()
    }

    /// Fails unless this node, if it leads, goes on doing so: one that was taken out leads a moment longer.
    fn stays(&self) -> Result<(), Error> {
        if self.voters().contains(&self.0.id) { Ok(()) } else { Err(Error::NoLeader) }
    }

    /// Hands leadership over to a voter that answers, and waits until it is gone. The leader only.
    pub async fn transfer(&self, to: Option<u64>) -> Result<(), Error> {
        let Lead::Here { term } = self.lead() else { return Err(Error::NoLeader) };
        let heir = self.heir(to)?;
        let trigger = self.0.raft.trigger();
        trigger.transfer_leader(heir).await.map_err(|e| Error::Unknown { why: e.to_string() })?;
        // Goes on if the caller gives up.
        let handed_over = self.0.tracker.spawn(scoped(self.clone().await_successor(term, heir))).await;
        match handed_over {
            Ok(true) => Ok(()),
            _ => Err(Error::Unknown { why: format!("node {heir} has not taken over") }),
        }
    }

    /// Who is to lead next: `to`, or who has most of the log.
    fn heir(&self, to: Option<u64>) -> Result<u64, Error> {
        let refused = |why: String| Err(Error::Refused { why });
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let replication = metrics.replication.as_ref().ok_or(Error::NoLeader)?;
        let others: BTreeSet<u64> =
            metrics.membership_config.voter_ids().filter(|id| *id != self.0.id).collect();
        let answering = self.answering(&metrics);
        match to {
            Some(to) if !others.contains(&to) => refused(format!("node {to} is no other voter")),
            Some(to) if !answering.contains(&to) => {
                refused(format!("node {to} does not answer: start it first"))
            }
            Some(to) => Ok(to),
            None => {
                let candidates =
                    replication.iter().filter(|(id, _)| others.contains(id) && answering.contains(id));
                match candidates.max_by_key(|(_, matched)| **matched) {
                    Some((id, _)) => Ok(*id),
                    None => refused("no other voter answers".into()),
                }
            }
        }
    }

    /// Waits until another node leads; says whether one does. While openraft's leader hands over it proposes nothing
    /// and sends no heartbeat, for ever if its heir cannot take over; and with the longest log of all it lets nobody
    /// else be elected. So it steps down then: it votes for its heir in the next term, as if that had asked for it,
    /// and takes part in elections again.
    async fn await_successor(self, term: u64, heir: u64) -> bool {
        let mut lead = self.0.lead.clone();
        let gone = lead.wait_for(|lead| *lead != Lead::Here { term });
        if tokio::time::timeout(TRANSFER_TIMEOUT, gone).await.is_ok() {
            return true;
        }
        let last = self.0.raft.metrics().borrow_watched().last_log_index.unwrap_or(0);
        // A leader's last entry is of its own term.
        let last = LogId { leader_id: RaftLeaderId::new(term, self.0.id), index: last };
        let vote = VoteRequest {
            vote: Vote::new(term + 1, heir),
            last_log_id: Some(last),
            leadership_transfer: true,
        };
        if let Err(error) = self.0.raft.vote(vote).await {
            tracing::warn!(%error, "the lead is handed over, nobody has taken it, and it cannot be given up");
        }
        false
    }

    /// Hands leadership over, if this node has it and another can take it.
    pub async fn hand_over(&self) {
        if matches!(self.lead(), Lead::Here { .. })
            && let Err(error) = self.transfer(None).await
        {
            tracing::info!(%error, "leadership was not handed over: the others elect");
        }
    }
}

/// What is said of a node whose id was removed.
pub(super) fn spent(id: u64, revision: u64) -> String {
    format!(
        "node {id} was removed at revision {revision}, and its id is spent: it may have voted for what a new node under \
         it would not know of. Use an id that no member ever had"
    )
}

/// Waits for a membership change and says what became of it.
async fn outcome<T>(
    in_two_steps: bool,
    change: impl Future<Output = Result<T, RaftError<Types, ClientWriteError<Types>>>>,
) -> Result<(), Error> {
    match tokio::time::timeout(MEMBERSHIP_TIMEOUT, change).await {
        Err(_) => Err(Error::Unknown { why: "the membership change takes longer than expected".into() }),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(match error.into_api_error() {
            // Of a change in two steps the first may be done.
            Some(ClientWriteError::ForwardToLeader(_)) if in_two_steps => {
                Error::Unknown { why: "leadership was lost".into() }
            }
            Some(ClientWriteError::ForwardToLeader(_)) => Error::NoLeader,
            Some(ClientWriteError::ChangeMembershipError(refused)) => {
                Error::Refused { why: refused.to_string() }
            }
            Some(other) => Error::Unknown { why: other.to_string() },
            None => Error::NotReady { why: "it is stopping".into() },
        }),
    }
}
