//! What a test reads along on a node's disk, in plain terms.

use std::collections::BTreeSet;

use bytes::Bytes;
use openraft::EntryPayload;

use super::codec;
use crate::catalog::Proposal;

/// A log entry.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The term it was proposed in.
    pub term: u64,
    /// The leader that proposed it.
    pub node: u64,
    /// Where it stands.
    pub index: u64,
    /// What it says.
    pub what: What,
}

/// What a log entry says.
#[derive(Debug, Clone)]
pub enum What {
    /// A term begins.
    Blank,
    /// These are proposed, in order.
    Batch(Vec<Proposal>),
    /// From here on a majority of each set of voters is needed, and these are members.
    Members { voters: Vec<BTreeSet<u64>>, nodes: BTreeSet<u64> },
}

/// A vote; ordered as they may follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vote {
    /// Its term.
    pub term: u64,
    /// Who it was given to.
    pub node: u64,
    /// Whether a majority gave theirs.
    pub committed: bool,
}

/// Reads a log entry.
pub fn entry_in(bytes: &[u8]) -> Result<Entry, String> {
    let entry = codec::decode_entry(&Bytes::copy_from_slice(bytes)).map_err(|e| e.to_string())?;
    let id = entry.log_id;
    let what = match entry.payload {
        EntryPayload::Blank => What::Blank,
        EntryPayload::Normal(batch) => {
            What::Batch(batch.proposals().iter().map(|s| s.proposal.clone()).collect())
        }
        EntryPayload::Membership(members) => What::Members {
            voters: members.get_joint_config().clone(),
            nodes: members.nodes().map(|(id, _)| *id).collect(),
        },
    };
    Ok(Entry { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index, what })
}

/// Reads a vote.
pub fn vote_in(bytes: &[u8]) -> Result<Vote, String> {
    let vote = codec::decode_vote(bytes).map_err(|e| e.to_string())?;
    Ok(Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed })
}
