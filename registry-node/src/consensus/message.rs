//! What other nodes ask, taken apart. Raft takes for granted what a peer of its own kind cannot get wrong, and ends
//! where it finds otherwise: so all of it is checked here, and a peer that is broken or of another make is refused,
//! with nothing changed. What it says may still be untrue; that is for Raft to tell.

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use proto::raft::v1 as pb;
use tonic::Status;

use super::{
    codec,
    network::{from_log_id, from_vote},
    types::{Entry, LeaderId, LogId, SnapshotMeta, Types, Vote},
};

/// Terms and indices of peers stay below: Raft goes on counting from them.
const COUNT_MAX: u64 = 1 << 62;

pub fn missing(what: &'static str) -> Status {
    Status::invalid_argument(format!("the call has no {what}"))
}

pub fn garbled(what: &str, error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{what}: {error}"))
}

/// A leader's entries, or its heartbeat.
pub fn append(request: &pb::AppendRequest) -> Result<AppendEntriesRequest<Types>, Status> {
    let vote = leader_vote(request.vote.as_ref())?;
    let prev_log_id = log_id("the entry before", request.prev.as_ref())?;
    let entries: Vec<Entry> = request.entries.iter().map(entry).collect::<Result<_, _>>()?;
    let mut before = prev_log_id;
    for Entry { log_id, .. } in &entries {
        follows(before, *log_id)?;
        before = Some(*log_id);
    }
    made_under(&vote, before)?;
    let leader_commit = log_id("the commit mark", request.leader_commit.as_ref())?;
    made_under(&vote, leader_commit)?;
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

/// A candidate's question.
pub fn vote(request: &pb::VoteRequest) -> Result<VoteRequest<Types>, Status> {
    let vote = a_vote(request.vote.as_ref())?;
    if vote.committed {
        return Err(Status::invalid_argument("a candidate cannot have won before it asks"));
    }
    let last_log_id = log_id("the last entry", request.last_log.as_ref())?;
    made_under(&vote, last_log_id)?;
    Ok(VoteRequest { vote, last_log_id, leadership_transfer: request.leadership_transfer })
}

/// A leader that steps aside.
pub fn transfer(request: &pb::TransferLeaderRequest) -> Result<TransferLeaderRequest<Types>, Status> {
    let vote = leader_vote(request.from_leader.as_ref())?;
    let last_log_id = log_id("the last entry", request.last_log.as_ref())?;
    made_under(&vote, last_log_id)?;
    Ok(TransferLeaderRequest::new(vote, request.to_node, last_log_id))
}

/// The beginning of a snapshot.
pub fn snapshot(meta: &pb::SnapshotMeta) -> Result<(Vote, SnapshotMeta), Status> {
    let vote = leader_vote(meta.vote.as_ref())?;
    let last_log_id = log_id("the snapshot's last entry", meta.last_log.as_ref())?;
    made_under(&vote, last_log_id)?;
    let last_membership =
        codec::decode_stored_membership(&meta.membership).map_err(|e| garbled("the membership", e))?;
    if *last_membership.log_id() > last_log_id {
        return Err(Status::invalid_argument("the snapshot's membership is newer than the snapshot"));
    }
    if last_log_id.is_some() && last_membership.membership().voter_ids().next().is_none() {
        return Err(Status::invalid_argument("the snapshot says that nobody votes"));
    }
    Ok((vote, SnapshotMeta { last_log_id, last_membership }))
}

/// Refuses entries or a snapshot of a leader that has another entry where this node has `applied` one: what is
/// applied cannot be taken back.
pub fn agrees(applied: Option<LogId>, told: impl IntoIterator<Item = LogId>) -> Result<(), Status> {
    let Some(applied) = applied else { return Ok(()) };
    let contradicts = |told: &LogId| told.index.cmp(&applied.index) != told.cmp(&applied);
    match told.into_iter().find(contradicts) {
        Some(told) => Err(Status::failed_precondition(format!(
            "this node has applied {applied}, and the call speaks of {told}: these are two histories"
        ))),
        None => Ok(()),
    }
}

fn a_vote(vote: Option<&pb::Vote>) -> Result<Vote, Status> {
    let vote = vote.and_then(from_vote).ok_or_else(|| missing("vote"))?;
    countable("the vote's term", vote.leader_id.term)?;
    Ok(vote)
}

fn leader_vote(vote: Option<&pb::Vote>) -> Result<Vote, Status> {
    let vote = a_vote(vote)?;
    match vote.committed {
        true => Ok(vote),
        false => {
            Err(Status::invalid_argument("the vote is that of a candidate, and only a leader asks this"))
        }
    }
}

fn log_id(what: &'static str, id: Option<&pb::LogId>) -> Result<Option<LogId>, Status> {
    let Some(id) = id else { return Ok(None) };
    let id = from_log_id(id).ok_or_else(|| garbled(what, "it names no leader"))?;
    countable(what, id.index)?;
    countable(what, id.leader_id.term)?;
    Ok(Some(id))
}

fn entry(bytes: &Bytes) -> Result<Entry, Status> {
    codec::decode_entry(bytes).map_err(|error| garbled("a log entry", error))
}

fn follows(before: Option<LogId>, next: LogId) -> Result<(), Status> {
    let expected = before.map_or(0, |before| before.index + 1);
    let older = before.is_some_and(|before| next.leader_id < before.leader_id);
    if next.index != expected || older {
        let before = before.map_or_else(|| "nothing".to_owned(), |before| before.to_string());
        return Err(Status::invalid_argument(format!("log entry {next} cannot follow {before}")));
    }
    countable("a log entry", next.index)
}

/// Nobody has an entry that was made after the vote it has.
fn made_under(vote: &Vote, id: Option<LogId>) -> Result<(), Status> {
    let leader: LeaderId = vote.leader_id;
    match id.filter(|id| id.leader_id > leader) {
        Some(id) => {
            Err(Status::invalid_argument(format!("entry {id} is newer than its sender's vote {vote}")))
        }
        None => Ok(()),
    }
}

fn countable(what: &str, number: u64) -> Result<(), Status> {
    match number < COUNT_MAX {
        true => Ok(()),
        false => Err(garbled(what, format!("{number} is out of range"))),
    }
}
