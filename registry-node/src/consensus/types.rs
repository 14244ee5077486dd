//! openraft's types filled in with ours, and nothing of it outside this folder.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

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

/// The proposals of one log entry, applied in order, and the entry as it lies on disk and travels: the log and each
/// follower get the same bytes. Cheap to clone.
#[derive(Clone)]
pub struct Batch(Arc<Shared>);

struct Shared {
    proposals: Box<[Sealed]>,
    /// The entry in its envelope, and which one it is; unknown until somebody needs it.
    entry: OnceLock<(LogId, Bytes)>,
}

impl Batch {
    /// The proposals of an entry that nobody has encoded yet.
    pub fn new(proposals: impl Into<Box<[Sealed]>>) -> Self {
        Self(Arc::new(Shared { proposals: proposals.into(), entry: OnceLock::new() }))
    }

    /// What is proposed, in order.
    pub fn proposals(&self) -> &[Sealed] {
        &self.0.proposals
    }

    /// The bytes of the entry of this id, which `encode` makes if they are not known.
    pub fn entry_bytes(&self, id: LogId, encode: impl Fn() -> Bytes) -> Bytes {
        let (known, bytes) = self.0.entry.get_or_init(|| (id, encode()));
        if *known == id { bytes.clone() } else { encode() }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Batch").field(&self.proposals()).finish()
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} proposals", self.proposals().len())
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
