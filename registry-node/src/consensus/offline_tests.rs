//! A store as a node leaves it, for the tests of the offline commands.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use openraft::{EntryPayload, vote::RaftLeaderId};

use super::{
    codec::{self, Identity},
    types::{
        Address, Batch, Entry, LeaderId, LogId, Membership, Sealed, SnapshotMeta, StoredMembership, Vote,
    },
};
use crate::{
    catalog::{
        Catalog, Command, InstanceId, Origin, Proposal, Provenance, ServiceName, Spec, encode_proposal,
    },
    metrics::Metrics,
    storage::{self, Purged, Recovered, Slot, Snapshot, Store},
};

pub fn open(dir: &Path) -> (Store, Recovered) {
    Store::open(dir, &super::sound, Arc::new(Metrics::new()), |_| ()).expect("it opens")
}

/// Returns once it is closed.
pub fn close(store: Store, dir: &Path) {
    drop(store);
    storage::await_release(dir).expect("it closes");
}

/// Three members; a and b registered, a deregistered, c registered in an entry that nobody knows to be committed. With
/// `snapshot`, the log before that one is gone.
pub fn write_example(dir: &Path, snapshot: bool) {
    let members: BTreeMap<u64, Address> = (1..=3).map(|id| (id, address(id))).collect();
    let membership =
        Membership::new(vec![members.keys().copied().collect()], members).expect("three members");
    let batch = |proposals: Vec<Proposal>| {
        let sealed = proposals
            .into_iter()
            .map(|proposal| Sealed { bytes: encode_proposal(&proposal).into(), proposal });
        EntryPayload::Normal(Batch::new(sealed.collect::<Vec<_>>()))
    };
    let gone = Command::Deregister { id: InstanceId::new("a").expect("valid"), reg_rev: None };
    let entries = [
        (0, EntryPayload::Membership(membership.clone())),
        (1, EntryPayload::Blank),
        (1, batch(vec![register("a", Some(7)), register("b", None)])),
        (1, batch(vec![proposal(gone, None)])),
        (2, batch(vec![register("c", None)])),
    ];
    let entries: Vec<Entry> = (0..)
        .zip(entries)
        .map(|(index, (term, payload))| Entry { log_id: log_id(term, index), payload })
        .collect();
    let (store, _) = open(dir);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let identity = Identity { cluster_id: "old".into(), node_id: 3 };
        store.put(Slot::Identity, codec::encode_identity(&identity)).await.expect("written");
        for entry in &entries {
            let (done, written) = tokio::sync::oneshot::channel();
            let bytes = vec![codec::encode_entry(entry)];
            let done = Box::new(|result| drop(done.send(result)));
            store.append(entry.log_id.index, bytes, done).await.expect("taken");
            written.await.expect("answered").expect("written");
        }
        let vote = Vote { leader_id: LeaderId::new(2, 1), committed: true };
        store.put(Slot::Vote, codec::encode_vote(&vote)).await.expect("written");
        let committed = log_id(1, 3);
        store.put(Slot::Committed, codec::encode_log_id(&committed)).await.expect("written");
        if snapshot {
            let mut catalog = Catalog::default();
            for entry in &entries[..4] {
                if let EntryPayload::Normal(batch) = &entry.payload {
                    for sealed in batch.proposals().iter() {
                        catalog.apply(1, &sealed.proposal);
                    }
                }
            }
            let last_membership = StoredMembership::new(Some(log_id(0, 0)), membership);
            let meta = SnapshotMeta { last_log_id: Some(committed), last_membership };
            let chunks = catalog.to_chunks().into_iter().map(Bytes::from).collect();
            let meta = codec::encode_snapshot_meta(&meta);
            store.save_snapshot(Snapshot { index: 3, meta, chunks }).await.expect("written");
            let mark = codec::encode_log_id(&committed);
            store.purge(Purged { index: 3, mark }).await.expect("written");
        }
    });
    close(store, dir);
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId::new(term, 1), index }
}

fn address(id: u64) -> Address {
    let at = |port: u64| format!("http://127.0.0.1:{}", port + id);
    Address { name: format!("node-{id}"), peer: at(7_000), grpc: at(9_000), rest: at(8_000) }
}

fn register(id: &str, seq: Option<u64>) -> Proposal {
    let (id, service) = (InstanceId::new(id).expect("valid"), ServiceName::new("web").expect("valid"));
    let spec = Spec::new(id, service, "http://127.0.0.1:1");
    proposal(Command::Register { spec: Arc::new(spec), expected: None }, seq)
}

fn proposal(command: Command, seq: Option<u64>) -> Proposal {
    let cause = Arc::new(Provenance { by: "test".into(), why: "it must be there".into(), at_ms: 5 });
    let origin = seq.map(|seq| Origin { client: "client".into(), seq });
    Proposal { command, cause, origin }
}
