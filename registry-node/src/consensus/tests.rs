//! openraft's own storage suite on our store, and the bytes that we put on disk and between nodes.

use std::{collections::BTreeSet, sync::Arc};

use openraft::{
    EntryPayload, StorageError,
    storage::RaftLogReader,
    testing::log::{StoreBuilder, Suite},
    vote::RaftLeaderId,
};
use proptest::prelude::*;

use super::{
    codec::{self, Identity},
    log_store::LogStore,
    state_machine::Machine,
    types::{
        Address, Batch, Entry, LeaderId, LogId, Membership, Sealed, SnapshotMeta, StoredMembership, Types,
        Vote,
    },
};
use crate::{
    catalog::{Command, InstanceId, Proposal, Provenance},
    storage::Store,
    watch::Hub,
};

mod crash;
mod deaf;
mod fan_out;
mod garbled;
mod quarantine;
mod slow_disk;
mod sole_member;
mod trio;

pub use self::sole_member::SoleMember;

struct OnSled;

impl StoreBuilder<Types, LogStore, Machine, tempfile::TempDir> for OnSled {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError<Types>> {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, found) = Store::open(dir.path(), &super::sound, Arc::default(), |e| panic!("{e}"))
            .expect("an empty store");
        let log = LogStore::open(store.clone(), &found).await.expect("an empty log");
        let machine = Machine::open(Hub::new(8), store, None).expect("no snapshot");
        Ok((dir, log, machine))
    }
}

#[test]
fn openrafts_storage_suite_passes() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(Suite::test_all(OnSled)).expect("every test of the suite");
}

fn id(term: u64, node: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId::new(term, node), index }
}

fn deregister(name: &str) -> Sealed {
    let cause = Arc::new(Provenance { by: "me".into(), why: "because".into(), at_ms: 5 });
    let command = Command::Deregister { id: InstanceId::new(name).expect("valid"), reg_rev: Some(7) };
    Sealed::new(Proposal { command, cause, origin: None })
}

fn membership() -> Membership {
    let address = |name: &str| Address {
        name: name.into(),
        peer: "http://p".into(),
        grpc: "http://g".into(),
        rest: "http://r".into(),
    };
    let nodes = [(1, address("a")), (2, address("b")), (3, address("c"))];
    Membership::new(
        vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])],
        std::collections::BTreeMap::from(nodes),
    )
    .expect("valid")
}

fn entries() -> Vec<Entry> {
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(Batch::new([deregister("a"), deregister("b")])),
        EntryPayload::Membership(membership()),
    ];
    payloads.into_iter().zip(1..).map(|(payload, index)| Entry { log_id: id(3, 1, index), payload }).collect()
}

#[test]
fn what_is_encoded_comes_back() {
    for entry in entries() {
        let back = codec::decode_entry(&codec::encode_entry(&entry)).expect("readable");
        assert_eq!(format!("{back:?}"), format!("{entry:?}"));
    }
    for vote in [Vote::new(4, 2), Vote::new_committed(4, 2)] {
        assert_eq!(codec::decode_vote(&codec::encode_vote(&vote)).expect("readable"), vote);
    }
    let stored = StoredMembership::new(Some(id(1, 1, 9)), membership());
    for meta in
        [SnapshotMeta::default(), SnapshotMeta { last_log_id: Some(id(1, 1, 12)), last_membership: stored }]
    {
        assert_eq!(codec::decode_snapshot_meta(&codec::encode_snapshot_meta(&meta)).expect("readable"), meta);
        let bytes = codec::encode_stored_membership(&meta.last_membership);
        assert_eq!(codec::decode_stored_membership(&bytes).expect("readable"), meta.last_membership);
    }
    let identity = Identity { cluster_id: "c".into(), node_id: 3 };
    assert_eq!(codec::decode_identity(&codec::encode_identity(&identity)).expect("readable"), identity);
}

/// The log and every follower get the same bytes, and a follower keeps those that came.
#[test]
fn an_entry_is_encoded_once() {
    let entry = &entries()[1];
    let bytes = codec::encode_entry(entry);
    assert_eq!(codec::encode_entry(&entry.clone()).as_ptr(), bytes.as_ptr());
    let taken = codec::decode_entry(&bytes).expect("readable");
    assert_eq!(codec::encode_entry(&taken).as_ptr(), bytes.as_ptr());
    // The same batch as another entry is another entry.
    let moved = Entry { log_id: id(3, 1, 9), ..taken };
    let back = codec::decode_entry(&codec::encode_entry(&moved)).expect("readable");
    assert_eq!(back.log_id, moved.log_id);
}

/// Bytes of version 1. They never change: what a directory holds must stay readable.
#[test]
fn version_1_keeps_its_bytes() {
    let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let mut lines = vec![
        format!("vote {}", hex(codec::encode_vote(&Vote::new_committed(4, 2)))),
        format!("log id {}", hex(codec::encode_log_id(&id(4, 2, 9)))),
        format!("identity {}", hex(codec::encode_identity(&Identity { cluster_id: "c".into(), node_id: 3 }))),
    ];
    lines.extend(entries().iter().map(|entry| format!("entry {}", hex(codec::encode_entry(entry).into()))));
    expect_test::expect![[r#"
        vote 464c55580600010011000000240bf0340400000000000000020000000000000001
        log id 464c555808000100180000009f69f678040000000000000002000000000000000900000000000000
        identity 464c55580800010011000000b08f5f670100000000000000630300000000000000
        entry 464c5558020001001c0000007d36b3cc03000000000000000100000000000000010000000000000000000000
        entry 464c555802000100c4000000e40c02470300000000000000010000000000000002000000000000000100000002000000000000004800000000000000464c55580100010038000000f0d6aa1e0100000001000000000000006101070000000000000002000000000000006d650700000000000000626563617573650500000000000000004800000000000000464c55580100010038000000b1ba59be0100000001000000000000006201070000000000000002000000000000006d65070000000000000062656361757365050000000000000000
        entry 464c5558020001001f010000808c3edc030000000000000001000000000000000300000000000000020000000200000000000000020000000000000001000000000000000200000000000000020000000000000002000000000000000300000000000000030000000000000001000000000000000100000000000000610800000000000000687474703a2f2f700800000000000000687474703a2f2f670800000000000000687474703a2f2f7202000000000000000100000000000000620800000000000000687474703a2f2f700800000000000000687474703a2f2f670800000000000000687474703a2f2f7203000000000000000100000000000000630800000000000000687474703a2f2f700800000000000000687474703a2f2f670800000000000000687474703a2f2f72"#]].assert_eq(&lines.join("\n"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Nothing that comes from a disk or a peer panics, and nothing damaged is taken for sound.
    #[test]
    fn damaged_bytes_are_refused(which in 0usize..3, at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
        let mut bytes = Vec::from(codec::encode_entry(&entries()[which]));
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        prop_assert!(codec::decode_entry(&bytes.into()).is_err());
    }
}

#[test]
fn entries_older_than_the_tail_are_read_from_disk() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, found) = Store::open(dir.path(), &super::sound, Arc::default(), |e| panic!("{e}"))
            .expect("an empty store");
        let mut log = LogStore::open(store.clone(), &found).await.expect("an empty log");
        // 64 KiB each: the first of 600 have left the 16 MiB that stay in memory.
        let big = "x".repeat(200);
        for index in 0..600 {
            let batch: Vec<Sealed> = (0..180).map(|n| deregister(&format!("{index}-{n}-{big}"))).collect();
            let entry = Entry { log_id: id(1, 1, index), payload: EntryPayload::Normal(Batch::new(batch)) };
            openraft::storage::RaftLogStorageExt::blocking_append(&mut log, [entry]).await.expect("appended");
        }
        let read = log.try_get_log_entries(5..600).await.expect("readable");
        assert_eq!(
            read.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>(),
            (5..600).collect::<Vec<_>>()
        );
    });
}

/// A node whose consensus has ended still answers; it must not spend its processor on asking itself why.
#[tokio::test]
async fn a_lead_that_nobody_follows_any_more_is_waited_for_all_the_same() {
    let (sender, mut lead) = crate::latest::channel(super::Lead::Nowhere);
    drop(sender);
    let until = tokio::time::Instant::now() + std::time::Duration::from_millis(20);
    super::changed_or(until, &mut lead).await;
    assert!(tokio::time::Instant::now() >= until);
}
