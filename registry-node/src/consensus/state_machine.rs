//! Raft's state machine: applies committed entries to the catalog behind the hub, builds and installs snapshots.

use std::{collections::BTreeSet, io, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, OptionalSend,
    storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine},
};
use tracing::{info, warn};

use super::{
    audit::{MARK_EVERY, Marks},
    codec,
    types::{Chunks, LogId, Snapshot, SnapshotMeta, StoredMembership, Types},
};
use crate::{
    catalog::Catalog,
    latest,
    storage::{self, Store},
    watch::Hub,
};

/// What a record takes in a snapshot, generously.
const RECORD_BYTES: u64 = 1 << 10;

pub struct Machine {
    hub: Hub,
    store: Store,
    applied: latest::Sender<Option<LogId>>,
    membership: StoredMembership,
    marks: Marks,
}

impl Machine {
    /// Begins with the newest snapshot, if there is one.
    pub fn open(hub: Hub, store: Store, snapshot: Option<storage::Snapshot>) -> Result<Self, String> {
        let (applied, _) = latest::channel(None);
        let mut machine =
            Self { hub, store, applied, membership: StoredMembership::default(), marks: Marks::default() };
        if let Some(snapshot) = snapshot {
            let meta = codec::decode_snapshot_meta(&snapshot.meta)
                .map_err(|e| format!("the snapshot's description: {e}"))?;
            let catalog = Catalog::from_chunks(&snapshot.chunks).map_err(|e| format!("the snapshot: {e}"))?;
            machine.adopt(&meta, catalog);
        }
        Ok(machine)
    }

    /// The last entry that is applied, as it moves.
    pub fn applied(&self) -> latest::Receiver<Option<LogId>> {
        self.applied.subscribe()
    }

    /// What the catalog hashed to on the way.
    pub fn marks(&self) -> Marks {
        self.marks.clone()
    }

    /// Moves on to another membership; who is no longer in it never comes back.
    fn change_members(&mut self, index: u64, membership: StoredMembership) {
        let members: BTreeSet<u64> = membership.nodes().map(|(id, _)| *id).collect();
        let gone = self.membership.nodes().map(|(id, _)| *id).filter(|id| !members.contains(id));
        self.hub.retire_nodes(index, gone);
        self.membership = membership;
    }

    fn adopt(&mut self, meta: &SnapshotMeta, catalog: Catalog) {
        self.marks.restart(index_of(meta), catalog.hash());
        self.hub.install(index_of(meta), catalog);
        self.membership = meta.last_membership.clone();
        self.applied.send_replace(meta.last_log_id);
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Chunks;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((*self.applied.borrow(), self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let id = entry.log_id;
            let effects = match entry.payload {
                EntryPayload::Blank => self.hub.apply(id.leader_id.term, id.index, []),
                EntryPayload::Normal(batch) => {
                    let proposals = batch.proposals().iter().map(|sealed| &sealed.proposal);
                    self.hub.apply(id.leader_id.term, id.index, proposals)
                }
                EntryPayload::Membership(membership) => {
                    self.change_members(id.index, StoredMembership::new(Some(id), membership));
                    Vec::new()
                }
            };
            if id.index.is_multiple_of(MARK_EVERY) {
                self.marks.note(id.index, self.hub.read(Catalog::hash));
            }
            self.applied.send_replace(Some(id));
            if let Some(responder) = responder {
                responder.send(effects);
            }
        }
        if let Some(id) = *self.applied.borrow() {
            self.marks.note(id.index, self.hub.read(Catalog::hash));
        }
        Ok(())
    }

    /// None while there is no room for a snapshot: a failed one would end the node, a later one does no harm.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        let bytes = self.hub.read(Catalog::len) as u64 * RECORD_BYTES;
        let room = self.store.space().for_replication(bytes);
        if let Err(full) = &room {
            warn!(%full, "no snapshot is taken");
        }
        (force || room.is_ok()).then_some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta =
            SnapshotMeta { last_log_id: *self.applied.borrow(), last_membership: self.membership.clone() };
        Builder { meta, catalog: self.hub.catalog(), store: self.store.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, chunks: Chunks) -> io::Result<()> {
        let invalid = |e: String| io::Error::new(io::ErrorKind::InvalidData, e);
        let catalog = Catalog::from_chunks(&chunks).map_err(|e| invalid(e.to_string()))?;
        self.store
            .save_snapshot(storage::Snapshot {
                index: index_of(meta),
                meta: codec::encode_snapshot_meta(meta),
                chunks,
            })
            .await?;
        info!(revision = catalog.revision(), instances = catalog.len(), "installed a snapshot");
        self.adopt(meta, catalog);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let Some(stored) = self.store.load_snapshot().await? else { return Ok(None) };
        let meta = codec::decode_snapshot_meta(&stored.meta)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        Ok(Some(Snapshot { meta, snapshot: stored.chunks }))
    }
}

fn index_of(meta: &SnapshotMeta) -> u64 {
    meta.last_log_id.map_or(0, |id| id.index)
}

/// Records that are encoded in less time than a thread takes to wake up.
const INLINE_MAX: usize = 128;

/// A copy of the catalog at one log id, on its way to disk.
pub struct Builder {
    meta: SnapshotMeta,
    catalog: Arc<Catalog>,
    store: Store,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Chunks;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let catalog = self.catalog.clone();
        let encode = move || catalog.to_chunks().into_iter().map(Bytes::from).collect::<Chunks>();
        let chunks = match self.catalog.len() {
            0..INLINE_MAX => encode(),
            _ => tokio::task::spawn_blocking(encode).await.map_err(io::Error::other)?,
        };
        let stored = storage::Snapshot {
            index: index_of(&self.meta),
            meta: codec::encode_snapshot_meta(&self.meta),
            chunks: chunks.clone(),
        };
        self.store.save_snapshot(stored).await?;
        info!(
            revision = self.catalog.revision(),
            instances = self.catalog.len(),
            chunks = chunks.len(),
            "took a snapshot"
        );
        Ok(Snapshot { meta: self.meta.clone(), snapshot: chunks })
    }
}
