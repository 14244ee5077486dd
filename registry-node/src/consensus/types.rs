//! openraft's types filled in with ours, and nothing of it outside this folder.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use super::runtime::Runtime;
use crate::{catalog::Proposal, watch::Effect};

/// A proposal and the bytes it has on disk and between nodes; encoded once.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// What is proposed.
    pub proposal: Proposal,
    /// In its envelope.
    pub bytes: Bytes,
}

/// The proposals of one log entry, applied in order.
#[derive(Debug, Clone)]
pub struct Batch(pub Arc<[Sealed]>);

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} proposals", self.0.len())
    }
}

/// Where a member is reached; full URLs. Replicated with the membership.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Address {
    /// For people.
    pub name: String,
    /// For other nodes.
    pub peer: String,
    /// For gRPC clients.
    pub grpc: String,
    /// For REST clients.
    pub rest: String,
}

openraft::declare_raft_types!(
    /// Our Raft: batches in, effects out. Leader ids are (term, node), so that a tie between candidates breaks.
    pub Types:
        D = Batch,
        R = Vec<Effect>,
        Node = Address,
        AsyncRuntime = Runtime,
);

pub type LeaderId = openraft::type_config::alias::LeaderIdOf<Types>;
pub type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub type Vote = openraft::type_config::alias::VoteOf<Types>;
pub type Entry = openraft::type_config::alias::EntryOf<Types>;
pub type Membership = openraft::Membership<u64, Address>;
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;
/// A snapshot's chunks, as they lie on disk and travel.
pub type Chunks = Vec<Bytes>;
pub type Snapshot = openraft::type_config::alias::SnapshotOf<Types, Chunks>;
