//! A crash at every single step that consensus takes on its disk, and an error at every one: what was acknowledged
//! is there when the node comes back, its catalog is that of the committed entries, and nothing else is claimed.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    EntryPayload,
    storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt, RaftSnapshotBuilder, RaftStateMachine},
};
use tokio::task::JoinHandle;

use super::{
    super::{
        codec,
        log_store::LogStore,
        sound,
        state_machine::Machine,
        types::{Batch, Entry, LogId, Sealed, SnapshotMeta, StoredMembership, Vote},
    },
    id, membership,
};
use crate::{
    catalog::{Catalog, Command, InstanceId, Proposal, Provenance, ServiceName, Spec},
    storage::{Error, MemoryMedium, Store},
    watch::Hub,
};

/// What consensus asks of its store, one after the other, as in the life of a node: it votes, leads, takes
/// snapshots, loses the end of its log to another leader, is far behind and gets a snapshot, and votes again.
#[derive(Debug, Clone, Copy)]
enum Op {
    Vote(u64),
    /// So many entries of a term.
    Append(u64, u64),
    /// Commits and applies up to here.
    Commit(u64),
    Snapshot,
    Purge(u64),
    /// Drops what follows.
    Truncate(u64),
    /// Takes the leader's snapshot that reaches to here.
    Install(u64),
}

const LIFE: [Op; 20] = [
    Op::Vote(1),
    Op::Append(1, 5),
    Op::Commit(4),
    Op::Append(1, 4),
    Op::Commit(6),
    Op::Snapshot,
    Op::Append(1, 3),
    Op::Purge(3),
    Op::Vote(2),
    Op::Truncate(7),
    Op::Append(2, 4),
    Op::Commit(10),
    Op::Snapshot,
    Op::Purge(10),
    Op::Install(40),
    Op::Purge(40),
    Op::Append(3, 2),
    Op::Vote(3),
    Op::Commit(42),
    Op::Append(3, 2),
];

/// What a node holds, or must hold.
#[derive(Debug, Clone, Default)]
struct Model {
    vote: Option<Vote>,
    log: BTreeMap<u64, Entry>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    snapshot: Option<LogId>,
    /// The catalog after the last committed entry, or that of the snapshot that was installed since.
    catalog: Catalog,
}

impl Model {
    fn last(&self) -> Option<LogId> {
        self.log.values().next_back().map(|entry| entry.log_id).or(self.purged)
    }

    fn after(&self, op: Op) -> Model {
        let mut model = self.clone();
        match op {
            Op::Vote(term) => model.vote = Some(Vote::new(term, 1)),
            Op::Append(term, count) => {
                let first = self.last().map_or(0, |last| last.index + 1);
                let entries = (first..first + count).map(|index| (index, entry(term, index)));
                model.log.extend(entries);
            }
            Op::Commit(to) => {
                let from = self.committed.max(self.snapshot).map_or(0, |id| id.index + 1);
                for entry in (from..=to).map(|index| &self.log[&index]) {
                    apply(&mut model.catalog, entry);
                }
                model.committed = Some(self.log[&to].log_id);
            }
            Op::Snapshot => model.snapshot = self.committed,
            Op::Purge(to) => {
                let known = self.log.get(&to).map(|entry| entry.log_id);
                model.purged = known.or(self.snapshot.filter(|id| id.index == to));
                model.log.retain(|index, _| *index > to);
            }
            Op::Truncate(last) => model.log.retain(|index, _| *index <= last),
            Op::Install(to) => {
                let from = self.committed.map_or(0, |id| id.index + 1);
                for index in from..=to {
                    apply(&mut model.catalog, &entry(3, index));
                }
                model.snapshot = Some(id(3, 1, to));
            }
        }
        model
    }
}

fn entry(term: u64, index: u64) -> Entry {
    let payload = match index {
        0 => EntryPayload::Membership(membership()),
        1 => EntryPayload::Blank,
        _ => EntryPayload::Normal(Batch::new([register(term, index), register(term, index + 1)])),
    };
    Entry { log_id: id(term, 1, index), payload }
}

/// Registers one of a few instances anew: what comes later is seen, and an entry too many or too few as well.
fn register(term: u64, index: u64) -> Sealed {
    let name = format!("i{}", index % 5);
    let instance = InstanceId::new(name).expect("valid");
    let spec = Spec::new(instance, ServiceName::new("web").expect("valid"), format!("http://{term}.{index}"));
    let cause = Arc::new(Provenance { by: "me".into(), why: "because".into(), at_ms: index });
    let command = Command::Register { spec: Arc::new(spec), expected: None };
    Sealed::new(Proposal { command, cause, origin: None })
}

fn apply(catalog: &mut Catalog, entry: &Entry) {
    if let EntryPayload::Normal(batch) = &entry.payload {
        for sealed in batch.proposals().iter() {
            catalog.apply(entry.log_id.leader_id.term, &sealed.proposal);
        }
    }
}

/// A node's log and machine on a medium, and the task that writes.
struct Node {
    log: LogStore,
    machine: Machine,
    hub: Hub,
    failed: Arc<AtomicBool>,
    work: JoinHandle<()>,
}

impl Node {
    async fn open(medium: &MemoryMedium) -> Result<Node, Error> {
        let failed = Arc::new(AtomicBool::new(false));
        let told = failed.clone();
        let on_failure = move |_: &io::Error| told.store(true, Ordering::Release);
        let (store, found, work) =
            Store::in_task(medium.clone(), Path::new("memory"), &sound, Arc::default(), on_failure, || {
                Duration::ZERO
            })?;
        assert_eq!(found.quarantine, None, "a crash is no damage");
        let work = tokio::spawn(work);
        let hub = Hub::new(8);
        let log = LogStore::open(store.clone(), &found).await.expect("what was opened can be read");
        let machine = Machine::open(hub.clone(), store, found.snapshot).expect("what was opened can be read");
        Ok(Node { log, machine, hub, failed, work })
    }

    async fn close(self) {
        drop((self.log, self.machine));
        self.work.await.expect("it ends with its handles");
    }

    /// Does it, from one model to the next; durable if it succeeds.
    async fn act(&mut self, op: Op, before: &Model, after: &Model) -> io::Result<()> {
        match op {
            Op::Vote(_) => self.log.save_vote(&after.vote.expect("there is one now")).await,
            Op::Append(..) => {
                let new = after.log.iter().filter(|(index, _)| !before.log.contains_key(index));
                let new: Vec<Entry> = new.map(|(_, entry)| entry.clone()).collect();
                self.log.blocking_append(new).await.map_err(io::Error::other)
            }
            Op::Commit(to) => {
                self.log.save_committed(after.committed).await?;
                self.apply(&before.log, to).await
            }
            Op::Snapshot => {
                let builder = self.machine.try_create_snapshot_builder(true).await;
                builder.expect("it is forced").build_snapshot().await.map(drop)
            }
            Op::Purge(_) => self.log.purge(after.purged.expect("there is one now")).await,
            Op::Truncate(_) => self.log.truncate_after(after.last()).await,
            Op::Install(_) => {
                let last_membership = StoredMembership::new(Some(id(1, 1, 0)), membership());
                let meta = SnapshotMeta { last_log_id: after.snapshot, last_membership };
                let chunks = after.catalog.to_chunks().into_iter().map(Bytes::from).collect();
                self.machine.install_snapshot(&meta, chunks).await
            }
        }
    }

    /// Applies what follows, up to and with `to`.
    async fn apply(&mut self, log: &BTreeMap<u64, Entry>, to: u64) -> io::Result<()> {
        let applied = self.machine.applied_state().await?.0;
        let from = applied.map_or(0, |id| id.index + 1);
        let missing = |index| io::Error::other(format!("entry {index} is in neither log nor snapshot"));
        let entries: Vec<_> = (from..=to)
            .map(|index| log.get(&index).cloned().map(|entry| (entry, None)).ok_or_else(|| missing(index)))
            .collect();
        self.machine.apply(futures_util::stream::iter(entries)).await
    }
}

/// Lives until the disk fails. How many operations were acknowledged.
async fn live(medium: &MemoryMedium, models: &[Model]) -> usize {
    let Ok(mut node) = Node::open(medium).await else { return 0 };
    let mut acknowledged = 0;
    for (op, states) in LIFE.into_iter().zip(models.windows(2)) {
        if node.act(op, &states[0], &states[1]).await.is_err() {
            assert!(node.failed.load(Ordering::Acquire), "{op:?} failed, and the node goes on");
            let late = node.log.save_vote(&Vote::new(99, 1)).await;
            assert!(late.is_err(), "{op:?} failed, and a vote was acknowledged after it");
            break;
        }
        acknowledged += 1;
    }
    node.close().await;
    acknowledged
}

/// Opens what was left and compares: everything in both models must be there, nothing that is in neither.
async fn check(
    left: &MemoryMedium,
    before: &Model,
    after: &Model,
    catalogs: &BTreeMap<u64, Catalog>,
    at: &str,
) {
    let mut node = Node::open(left).await.unwrap_or_else(|error| panic!("{at}: {error}"));
    let vote = node.log.read_vote().await.expect("read");
    assert!(vote == before.vote || vote == after.vote, "{at}: {vote:?}");
    let state = node.log.get_log_state().await.expect("read");
    let purged = state.last_purged_log_id;
    assert!(purged == before.purged || purged == after.purged, "{at}: purged {purged:?}");

    let found = node.log.try_get_log_entries(..).await.expect("readable");
    let found: BTreeMap<u64, Entry> = found.into_iter().map(|entry| (entry.log_id.index, entry)).collect();
    let same =
        |a: Option<&Entry>, b: &Entry| a.is_some_and(|a| codec::encode_entry(a) == codec::encode_entry(b));
    let begin = purged.map_or(0, |id| id.index + 1);
    for (number, (index, entry)) in found.iter().enumerate() {
        assert_eq!(*index, begin + number as u64, "{at}: a hole");
        let known = same(before.log.get(index), entry) || same(after.log.get(index), entry);
        assert!(known, "{at}: nobody wrote {}", entry.log_id);
    }
    for (index, entry) in before.log.range(begin..).filter(|(index, entry)| same(after.log.get(index), entry))
    {
        assert!(same(found.get(index), entry), "{at}: {} is lost", entry.log_id);
    }

    let reach = node.machine.applied_state().await.expect("read").0;
    assert!(reach == before.snapshot || reach == after.snapshot, "{at}: the snapshot reaches to {reach:?}");
    let catalog_at = |id: Option<LogId>| id.map_or_else(Catalog::default, |id| catalogs[&id.index].clone());
    assert_eq!(*node.hub.catalog(), catalog_at(reach), "{at}: the snapshot's catalog");
    // As openraft does at start: up to the mark; and then up to what had been acknowledged.
    let mark = node.log.read_committed().await.expect("read");
    assert!(mark <= after.committed, "{at}: {mark:?} was never committed");
    for to in [mark, before.committed].into_iter().flatten() {
        node.apply(&found, to.index).await.unwrap_or_else(|error| panic!("{at}: up to {to}: {error}"));
        assert_eq!(*node.hub.catalog(), catalog_at(reach.max(Some(to)).max(mark)), "{at}: applied to {to}");
    }
    node.close().await;
}

/// The catalog at every index at which one is ever looked at.
fn catalogs(models: &[Model]) -> BTreeMap<u64, Catalog> {
    let mut catalogs = BTreeMap::new();
    for (op, model) in LIFE.into_iter().zip(&models[1..]) {
        if let Op::Commit(to) | Op::Install(to) = op {
            catalogs.insert(to, model.catalog.clone());
        }
    }
    catalogs
}

#[tokio::test]
async fn consensus_survives_a_crash_and_an_error_at_every_step() {
    let mut models = vec![Model::default()];
    for op in LIFE {
        models.push(models.last().expect("never empty").after(op));
    }
    let catalogs = catalogs(&models);
    let whole = MemoryMedium::default();
    assert_eq!(live(&whole, &models).await, LIFE.len(), "nothing fails");
    let steps = whole.steps();
    assert!(steps > 2 * LIFE.len(), "{steps} steps");
    let end = models.last().expect("never empty");
    check(&whole.killed(), end, end, &catalogs, "whole").await;

    let mut crashes = 0;
    for step in 0..=steps {
        let medium = MemoryMedium::default();
        medium.fail_after(step);
        let acknowledged = live(&medium, &models).await;
        let (before, after) = (&models[acknowledged], &models[(acknowledged + 1).min(LIFE.len())]);
        let at = format!("step {step} of {steps}, in {:?}", LIFE.get(acknowledged));
        check(&medium.killed(), before, after, &catalogs, &format!("killed at {at}")).await;
        for (left, torn) in medium.power_cuts() {
            check(&left, before, after, &catalogs, &format!("power cut at {at}, torn {torn}")).await;
            crashes += 1;
        }

        let medium = MemoryMedium::default();
        medium.fail_once_after(step);
        let acknowledged = live(&medium, &models).await;
        let (before, after) = (&models[acknowledged], &models[(acknowledged + 1).min(LIFE.len())]);
        let at = format!("an error at step {step} of {steps}, in {:?}", LIFE.get(acknowledged));
        check(&medium.killed(), before, after, &catalogs, &at).await;
    }
    assert!(crashes > steps, "{crashes} power cuts at {steps} steps");
}
