//! What consensus puts on disk and between nodes: frozen structs in envelopes, and their way from and to
//! openraft's types. openraft's own encodings are never used: they change between its versions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use openraft::{EntryPayload, vote::RaftLeaderId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};

use super::types::{
    Address, Batch, Entry, LeaderId, LogId, Membership, Sealed, SnapshotMeta, StoredMembership, Vote,
};
use crate::{
    catalog::decode_proposal,
    envelope::{self, Error, Kind},
};

/// The version this program writes of every kind here.
const VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
struct LogIdV1 {
    term: u64,
    node: u64,
    index: u64,
}

#[derive(Serialize, Deserialize)]
struct VoteV1 {
    term: u64,
    node: u64,
    committed: bool,
}

#[derive(Serialize, Deserialize)]
struct AddressV1 {
    name: String,
    peer: String,
    grpc: String,
    rest: String,
}

#[derive(Serialize, Deserialize)]
struct MembershipV1 {
    /// One set of voters, or two while they change.
    configs: Vec<BTreeSet<u64>>,
    nodes: BTreeMap<u64, AddressV1>,
}

#[derive(Serialize, Deserialize)]
struct StoredMembershipV1 {
    log_id: Option<LogIdV1>,
    membership: MembershipV1,
}

#[derive(Serialize, Deserialize)]
struct SnapshotMetaV1 {
    last: Option<LogIdV1>,
    membership: StoredMembershipV1,
}

#[derive(Serialize, Deserialize)]
enum PayloadV1<'a> {
    Blank,
    /// Sealed proposals.
    #[serde(borrow)]
    Batch(Vec<Blob<'a>>),
    Membership(MembershipV1),
}

/// Bytes, as a `Vec<u8>` lies on disk. serde takes that one byte at a time, on every node for every command.
struct Blob<'a>(&'a [u8]);

impl Serialize for Blob<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Blob<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowed;

        impl<'de> Visitor<'de> for Borrowed {
            type Value = Blob<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_borrowed_bytes<E: serde::de::Error>(self, bytes: &'de [u8]) -> Result<Blob<'de>, E> {
                Ok(Blob(bytes))
            }
        }

        deserializer.deserialize_bytes(Borrowed)
    }
}

#[derive(Serialize, Deserialize)]
struct EntryV1<'a> {
    id: LogIdV1,
    #[serde(borrow)]
    payload: PayloadV1<'a>,
}

#[derive(Serialize, Deserialize)]
struct IdentityV1 {
    cluster_id: String,
    node_id: u64,
}

/// Who this directory belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: String,
    /// The node.
    pub node_id: u64,
}

fn open<'a, T: Deserialize<'a>>(bytes: &'a [u8], kind: Kind) -> Result<T, Error> {
    let (version, payload) = envelope::open(bytes, kind)?;
    envelope::require_version(kind, version, VERSION)?;
    envelope::decode(payload)
}

/// The entry as it lies on disk and travels; that of a batch is made once.
pub fn encode_entry(entry: &Entry) -> Bytes {
    let id = entry.log_id;
    let seal = |payload| envelope::seal(Kind::ENTRY, VERSION, &EntryV1 { id: (&id).into(), payload }).into();
    match &entry.payload {
        EntryPayload::Blank => seal(PayloadV1::Blank),
        EntryPayload::Normal(batch) => batch.entry_bytes(id, || {
            seal(PayloadV1::Batch(batch.proposals().iter().map(|sealed| Blob(&sealed.bytes)).collect()))
        }),
        EntryPayload::Membership(membership) => seal(PayloadV1::Membership(membership.into())),
    }
}

/// Reads an entry, whose proposals share its bytes.
pub fn decode_entry(bytes: &Bytes) -> Result<Entry, Error> {
    let entry: EntryV1<'_> = open(bytes, Kind::ENTRY)?;
    let log_id = entry.id.into();
    let payload = match entry.payload {
        PayloadV1::Blank => EntryPayload::Blank,
        PayloadV1::Batch(sealed) => {
            let open = |Blob(sealed)| {
                Ok(Sealed { proposal: decode_proposal(sealed)?, bytes: bytes.slice_ref(sealed) })
            };
            let proposals: Result<Vec<_>, Error> = sealed.into_iter().map(open).collect();
            let batch = Batch::new(proposals?);
            batch.entry_bytes(log_id, || bytes.clone());
            EntryPayload::Normal(batch)
        }
        PayloadV1::Membership(membership) => EntryPayload::Membership(membership.try_into()?),
    };
    Ok(Entry { log_id, payload })
}

pub fn encode_vote(vote: &Vote) -> Vec<u8> {
    let value = VoteV1 { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed };
    envelope::seal(Kind::VOTE, VERSION, &value)
}

pub fn decode_vote(bytes: &[u8]) -> Result<Vote, Error> {
    let vote: VoteV1 = open(bytes, Kind::VOTE)?;
    Ok(Vote { leader_id: LeaderId::new(vote.term, vote.node), committed: vote.committed })
}

pub fn encode_log_id(id: &LogId) -> Vec<u8> {
    envelope::seal(Kind::META, VERSION, &LogIdV1::from(id))
}

pub fn decode_log_id(bytes: &[u8]) -> Result<LogId, Error> {
    Ok(open::<LogIdV1>(bytes, Kind::META)?.into())
}

pub fn encode_identity(identity: &Identity) -> Vec<u8> {
    let value = IdentityV1 { cluster_id: identity.cluster_id.clone(), node_id: identity.node_id };
    envelope::seal(Kind::META, VERSION, &value)
}

pub fn decode_identity(bytes: &[u8]) -> Result<Identity, Error> {
    let IdentityV1 { cluster_id, node_id } = open(bytes, Kind::META)?;
    Ok(Identity { cluster_id, node_id })
}

pub fn encode_stored_membership(stored: &StoredMembership) -> Vec<u8> {
    envelope::seal(Kind::MEMBERSHIP, VERSION, &StoredMembershipV1::from(stored))
}

pub fn decode_stored_membership(bytes: &[u8]) -> Result<StoredMembership, Error> {
    open::<StoredMembershipV1>(bytes, Kind::MEMBERSHIP)?.try_into()
}

pub fn encode_snapshot_meta(meta: &SnapshotMeta) -> Vec<u8> {
    let value = SnapshotMetaV1 {
        last: meta.last_log_id.as_ref().map(LogIdV1::from),
        membership: (&meta.last_membership).into(),
    };
    envelope::seal(Kind::SNAPSHOT_META, VERSION, &value)
}

pub fn decode_snapshot_meta(bytes: &[u8]) -> Result<SnapshotMeta, Error> {
    let meta: SnapshotMetaV1 = open(bytes, Kind::SNAPSHOT_META)?;
    let last_membership = meta.membership.try_into()?;
    Ok(SnapshotMeta { last_log_id: meta.last.map(LogId::from), last_membership })
}

impl From<&LogId> for LogIdV1 {
    fn from(id: &LogId) -> Self {
        Self { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
    }
}

impl From<LogIdV1> for LogId {
    fn from(id: LogIdV1) -> Self {
        Self { leader_id: LeaderId::new(id.term, id.node), index: id.index }
    }
}

impl From<&Membership> for MembershipV1 {
    fn from(membership: &Membership) -> Self {
        let nodes = membership.nodes().map(|(id, a)| (*id, AddressV1::from(a))).collect();
        Self { configs: membership.get_joint_config().clone(), nodes }
    }
}

impl TryFrom<MembershipV1> for Membership {
    type Error = Error;

    fn try_from(membership: MembershipV1) -> Result<Self, Error> {
        let nodes: BTreeMap<u64, Address> =
            membership.nodes.into_iter().map(|(id, a)| (id, a.into())).collect();
        if membership.configs.is_empty() {
            return Ok(Self::default());
        }
        Self::new(membership.configs, nodes).map_err(|e| Error::Payload(format!("membership: {e}")))
    }
}

impl From<&StoredMembership> for StoredMembershipV1 {
    fn from(stored: &StoredMembership) -> Self {
        Self { log_id: stored.log_id().as_ref().map(LogIdV1::from), membership: stored.membership().into() }
    }
}

impl TryFrom<StoredMembershipV1> for StoredMembership {
    type Error = Error;

    fn try_from(stored: StoredMembershipV1) -> Result<Self, Error> {
        Ok(Self::new(stored.log_id.map(LogId::from), stored.membership.try_into()?))
    }
}

impl From<&Address> for AddressV1 {
    fn from(address: &Address) -> Self {
        let Address { name, peer, grpc, rest } = address.clone();
        Self { name, peer, grpc, rest }
    }
}

impl From<AddressV1> for Address {
    fn from(AddressV1 { name, peer, grpc, rest }: AddressV1) -> Self {
        Self { name, peer, grpc, rest }
    }
}
