//! A store that nobody runs, understood: who it belongs to, what its log says, what that makes of the catalog; and
//! the store of a cluster that begins again with what one node still has.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use openraft::{EntryPayload, vote::RaftLeaderId};

use super::{
    codec::{self, Identity},
    types::{Address, LeaderId, LogId, Membership, SnapshotMeta, StoredMembership, Vote},
};
use crate::{
    catalog::{Applied, Catalog, Proposal},
    metrics::Metrics,
    storage::{self, Flaw, Purged, Slot, Snapshot, Store, Survey},
};

/// Names an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The term of the leader that made it.
    pub term: u64,
    /// That leader.
    pub leader: u64,
    /// Its place in the log.
    pub index: u64,
}

/// A member, as the log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub id: u64,
    /// Whether it votes.
    pub voter: bool,
    /// Where it is.
    pub address: Address,
}

/// What an entry holds.
#[derive(Debug)]
pub enum Content {
    /// The first of a leader's term.
    Blank,
    /// The members from here on.
    Members(Vec<Peer>),
    /// Commands, each with what it did, where the catalog before it is known.
    Commands(Vec<(Proposal, Option<Applied>)>),
}

/// An entry of the log.
#[derive(Debug)]
pub struct LogEntry {
    /// Its name.
    pub mark: Mark,
    /// What it holds.
    pub content: Content,
}

/// The vote that was cast last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastVote {
    /// The term.
    pub term: u64,
    /// For whom.
    pub node: u64,
    /// Whether that one is known to have become the leader.
    pub elected: bool,
}

/// A snapshot's outline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotOutline {
    /// The last entry it holds.
    pub last: Mark,
    /// The catalog's revision.
    pub revision: u64,
    /// Its instances.
    pub instances: usize,
    /// Its size, and in how many chunks.
    pub bytes: usize,
    /// The number of chunks.
    pub chunks: usize,
}

/// A store, understood as far as it can be.
#[derive(Debug, Default)]
pub struct Reading {
    /// Whose it is.
    pub identity: Option<Identity>,
    /// The last vote.
    pub vote: Option<LastVote>,
    /// The last entry that this node knew to be committed; more may be.
    pub committed: Option<Mark>,
    /// Entries up to here are gone.
    pub purged: Option<Mark>,
    /// The newest snapshot.
    pub snapshot: Option<SnapshotOutline>,
    /// All entries that are whole, in order.
    pub log: Vec<LogEntry>,
    /// The members, by the newest word there is, committed or not.
    pub members: Vec<Peer>,
    /// The catalog after the last entry that can be reached without a gap, and that entry. None if there is nothing to begin with.
    pub catalog: Option<(Option<Mark>, Catalog)>,
    /// Everything below this index was called durable once.
    pub promised: Option<u64>,
    /// Everything that is wrong, in the store and in what it holds.
    pub flaws: Vec<Flaw>,
    /// What is worth knowing and nothing wrong.
    pub notes: Vec<Flaw>,
}

impl Reading {
    /// Understands what was found.
    pub fn of(survey: Survey) -> Self {
        let Survey { flaws, notes, promised, .. } = survey;
        let mut reading = Self { flaws, notes, promised, ..Self::default() };
        reading.identity = reading.decoded("sled/meta identity", survey.identity, codec::decode_identity);
        let vote = reading.decoded("sled/meta vote", survey.vote, codec::decode_vote);
        reading.vote = vote.map(|vote| LastVote {
            term: vote.leader_id.term,
            node: vote.leader_id.node_id,
            elected: vote.committed,
        });
        let committed = reading.decoded("sled/meta committed", survey.committed, codec::decode_log_id);
        reading.committed = committed.as_ref().map(Mark::from);
        let purged_mark = survey.purged.map(|purged| purged.mark);
        let purged = reading.decoded("sled/meta purged", purged_mark, codec::decode_log_id);
        reading.purged = purged.as_ref().map(Mark::from);
        if let Some(snapshot) = survey.snapshot {
            reading.take_snapshot(&snapshot);
        } else if reading.purged.is_none() {
            reading.catalog = Some((None, Catalog::default()));
        }
        for (index, bytes) in survey.entries {
            reading.take_entry(index, &bytes);
        }
        reading.compare();
        reading
    }

    /// The last entry there is, in the log or under the snapshot.
    pub fn last(&self) -> Option<Mark> {
        let logged = self.log.last().map(|entry| entry.mark);
        logged.max_by_index(self.snapshot.map(|snapshot| snapshot.last)).max_by_index(self.purged)
    }

    /// The last entry that is certain to be committed: it was known to be, or a snapshot holds it.
    pub fn certain(&self) -> Option<Mark> {
        self.committed.max_by_index(self.snapshot.map(|snapshot| snapshot.last))
    }

    fn decoded<T>(
        &mut self,
        place: &str,
        bytes: Option<Vec<u8>>,
        decode: impl Fn(&[u8]) -> Result<T, crate::envelope::Error>,
    ) -> Option<T> {
        match bytes.map(|bytes| decode(&bytes)).transpose() {
            Ok(value) => value,
            Err(error) => {
                self.flaw(place, error.to_string());
                None
            }
        }
    }

    fn flaw(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.flaws.push(Flaw { place: place.into(), what: what.into() });
    }

    fn take_snapshot(&mut self, snapshot: &Snapshot) {
        let place = format!("sled/snapshot up to entry {}", snapshot.index);
        let meta = match codec::decode_snapshot_meta(&snapshot.meta) {
            Ok(meta) => meta,
            Err(error) => return self.flaw(place, format!("its description: {error}")),
        };
        self.members = peers(meta.last_membership.membership());
        let catalog = match Catalog::from_chunks(&snapshot.chunks) {
            Ok(catalog) => catalog,
            Err(error) => return self.flaw(place, error.to_string()),
        };
        let Some(last) = meta.last_log_id.as_ref().map(Mark::from) else {
            return self.flaw(place, "it holds no entry");
        };
        self.snapshot = Some(SnapshotOutline {
            last,
            revision: catalog.revision(),
            instances: catalog.len(),
            bytes: snapshot.chunks.iter().map(Bytes::len).sum(),
            chunks: snapshot.chunks.len(),
        });
        self.catalog = Some((Some(last), catalog));
    }

    fn take_entry(&mut self, index: u64, bytes: &Bytes) {
        let place = format!("sled/log entry {index}");
        let entry = match codec::decode_entry(bytes) {
            Ok(entry) if entry.log_id.index == index => entry,
            Ok(entry) => return self.flaw(place, format!("it is entry {}", entry.log_id.index)),
            Err(error) => return self.flaw(place, error.to_string()),
        };
        let mark = Mark::from(&entry.log_id);
        if self.log.last().is_some_and(|last| last.mark.term > mark.term) {
            self.flaw(place, "its term is lower than that of the entry before it");
        }
        // The catalog follows only without a gap.
        let follows = self.catalog.as_ref().is_some_and(|(at, _)| at.map_or(0, |at| at.index + 1) == index);
        let content = match entry.payload {
            EntryPayload::Blank => Content::Blank,
            EntryPayload::Membership(membership) => {
                let members = peers(&membership);
                self.members.clone_from(&members);
                Content::Members(members)
            }
            EntryPayload::Normal(batch) => {
                let catalog = self.catalog.as_mut().filter(|_| follows);
                let mut apply =
                    catalog.map(|(_, catalog)| |proposal: &Proposal| catalog.apply(mark.term, proposal));
                let commands = batch.proposals().iter().map(|sealed| {
                    let applied = apply.as_mut().map(|apply| apply(&sealed.proposal));
                    (sealed.proposal.clone(), applied)
                });
                Content::Commands(commands.collect())
            }
        };
        if let Some((at, _)) = self.catalog.as_mut().filter(|_| follows) {
            *at = Some(mark);
        }
        self.log.push(LogEntry { mark, content });
    }

    /// What the parts say of each other.
    fn compare(&mut self) {
        let last = self.last().map(|mark| mark.index);
        if let Some(committed) =
            self.committed.filter(|committed| last.is_none_or(|last| last < committed.index))
        {
            let what =
                format!("entries up to {} were committed, and the log ends at {last:?}", committed.index);
            self.flaw("sled/meta committed", what);
        }
        let reach = self.snapshot.map(|snapshot| snapshot.last.index);
        if let Some(purged) = self.purged.filter(|purged| reach.is_none_or(|reach| reach < purged.index)) {
            let what =
                format!("the log is purged up to {}, and the snapshot reaches to {reach:?}", purged.index);
            self.flaw("sled/meta purged", what);
        }
        if self.identity.is_none() && (self.vote.is_some() || last.is_some()) {
            self.flaw("sled/meta identity", "it is missing");
        }
    }
}

trait Later {
    fn max_by_index(self, other: Self) -> Self;
}

impl Later for Option<Mark> {
    fn max_by_index(self, other: Self) -> Self {
        [self, other].into_iter().flatten().max_by_key(|mark| mark.index)
    }
}

impl From<&LogId> for Mark {
    fn from(id: &LogId) -> Self {
        Self { term: id.leader_id.term, leader: id.leader_id.node_id, index: id.index }
    }
}

fn peers(membership: &Membership) -> Vec<Peer> {
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let peer = |(id, address): (&u64, &Address)| Peer {
        id: *id,
        voter: voters.contains(id),
        address: address.clone(),
    };
    membership.nodes().map(peer).collect()
}

/// What a cluster begins again with.
#[derive(Debug, Clone)]
pub struct Beginning {
    /// The new cluster, and its only node.
    pub identity: Identity,
    /// Where that node is.
    pub address: Address,
    /// The last entry that the catalog holds: the new log follows it.
    pub last: Mark,
    /// Higher than any term that was.
    pub term: u64,
    /// Everything that is known.
    pub catalog: Catalog,
}

/// Writes the store of a cluster of one node into `dir`, which is empty. Everything is durable on return, and nobody
/// has it open.
pub fn begin_again(dir: &Path, beginning: &Beginning) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (store, _) = Store::open(dir, &super::sound, Arc::new(Metrics::new()), |_| ())
        .map_err(|error| io::Error::other(format!("{error}")))?;
    runtime.block_on(async {
        let Beginning { identity, address, last, term, catalog } = beginning;
        let id = identity.node_id;
        let last_id = LogId { leader_id: LeaderId::new(last.term, last.leader), index: last.index };
        let nodes: BTreeMap<u64, Address> = [(id, address.clone())].into();
        let membership = Membership::new(vec![BTreeSet::from([id])], nodes).map_err(io::Error::other)?;
        let last_membership = StoredMembership::new(Some(last_id), membership);
        let meta = SnapshotMeta { last_log_id: Some(last_id), last_membership };
        let chunks = catalog.to_chunks().into_iter().map(Bytes::from).collect();
        let meta = codec::encode_snapshot_meta(&meta);
        store.put(Slot::Identity, codec::encode_identity(identity)).await?;
        store.save_snapshot(Snapshot { index: last.index, meta, chunks }).await?;
        store.purge(Purged { index: last.index, mark: codec::encode_log_id(&last_id) }).await?;
        store.put(Slot::Committed, codec::encode_log_id(&last_id)).await?;
        let vote = Vote { leader_id: LeaderId::new(*term, id), committed: false };
        store.put(Slot::Vote, codec::encode_vote(&vote)).await
    })?;
    drop(store);
    storage::await_release(dir)
}
