use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::catalog::{
    Catalog, Command, EventKind, InstanceId, Proposal, Provenance, Record, ServiceName, Spec, Status,
};

fn batch(revision: u64, url_bytes: usize) -> Arc<Batch> {
    let id = InstanceId::new("web-1").expect("valid");
    let service = ServiceName::new("web").expect("valid");
    let spec = Spec::new(id, service, "u".repeat(url_bytes));
    let record = Arc::new(Record {
        spec: Arc::new(spec),
        reg_rev: revision,
        mod_rev: revision,
        changed: Arc::default(),
    });
    let cause = Arc::<Provenance>::default();
    Arc::new(Batch {
        revision,
        events: vec![Event { revision, kind: EventKind::Put, record, previous: None, cause }],
    })
}

fn revisions(slice: Slice<'_>) -> Result<Vec<u64>, u64> {
    match slice {
        Slice::Batches(batches) => Ok(batches.map(|batch| batch.revision).collect()),
        Slice::Compacted { compact_revision } => Err(compact_revision),
    }
}

#[test]
fn a_cursor_behind_the_ring_is_told_and_one_at_its_edge_is_served() {
    let mut history = History::with_bounds(usize::MAX, 2);
    (1..=4).for_each(|revision| history.push(batch(revision, 10)));
    assert_eq!(revisions(history.since(1)), Err(2));
    assert_eq!(revisions(history.since(2)), Ok(vec![3, 4]));
    assert_eq!(revisions(history.since(4)), Ok(vec![]));
    assert_eq!(revisions(history.since(9)), Ok(vec![]), "a future revision has no past to lose");
}

#[test]
fn the_newest_batch_is_kept_whatever_its_size() {
    let mut history = History::with_bounds(1_000, 10);
    history.push(batch(1, 10));
    history.push(batch(2, 10_000));
    assert_eq!(revisions(history.since(1)), Ok(vec![2]));
    assert_eq!(revisions(history.since(0)), Err(1));
}

#[test]
fn a_snapshot_leaves_nothing_to_replay() {
    let mut history = History::new();
    history.push(batch(3, 10));
    history.reset(7);
    assert_eq!((history.compact_revision(), history.last_revision(), history.bytes()), (7, 7, 0));
    assert_eq!(revisions(history.since(6)), Err(7));
    assert_eq!(revisions(history.since(7)), Ok(vec![]));
}

#[test]
#[should_panic(expected = "revision 3 pushed after 3")]
fn a_revision_is_never_pushed_twice() {
    let mut history = History::new();
    history.push(batch(3, 10));
    history.push(batch(3, 10));
}

#[derive(Clone, Debug)]
enum Step {
    Push { gap: u64, url_bytes: usize },
    Reset { ahead: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (1u64..4, 0usize..400).prop_map(|(gap, url_bytes)| Step::Push { gap, url_bytes }),
        1 => (0u64..5).prop_map(|ahead| Step::Reset { ahead }),
    ]
}

proptest! {
    /// The model keeps every batch for ever: what the ring gives must be a suffix of that, and whoever it turns
    /// away has really missed something.
    #[test]
    fn never_a_gap(steps in prop::collection::vec(step(), 1..80), bytes_max in 500usize..6_000, batches_max in 1usize..12) {
        let mut history = History::with_bounds(bytes_max, batches_max);
        let mut all: BTreeMap<u64, Arc<Batch>> = BTreeMap::new();
        let mut lost_to_reset = 0;
        for step in steps {
            match step {
                Step::Push { gap, url_bytes } => {
                    let batch = batch(history.last_revision() + gap, url_bytes);
                    all.insert(batch.revision, batch.clone());
                    history.push(batch);
                }
                Step::Reset { ahead } => {
                    lost_to_reset = history.last_revision() + ahead;
                    history.reset(lost_to_reset);
                }
            }
            prop_assert!(history.len() <= batches_max);
            prop_assert!(history.bytes() <= bytes_max || history.len() == 1);
            for after in 0..=history.last_revision() + 1 {
                let expected: Vec<u64> = all.range(after + 1..).map(|(revision, _)| *revision).collect();
                match revisions(history.since(after)) {
                    Ok(found) => prop_assert_eq!(found, expected),
                    Err(compact) => {
                        prop_assert!(after < compact);
                        prop_assert!(after < lost_to_reset || expected.first().is_some_and(|first| *first <= compact));
                    }
                }
            }
        }
    }
}

fn command() -> impl Strategy<Value = Command> {
    let id = |n: u8| InstanceId::new(format!("i{n}")).expect("valid");
    prop_oneof![
        4 => (0u8..4, 0u8..2, 0u8..3).prop_map(move |(n, service, url)| {
            let service = ServiceName::new(format!("s{service}")).expect("valid");
            Command::Register { spec: Arc::new(Spec::new(id(n), service, format!("http://{url}"))), expected: None }
        }),
        2 => (0u8..4).prop_map(move |n| Command::Deregister { id: id(n), reg_rev: None }),
        2 => (0u8..4, 0u8..3).prop_map(move |(n, status)| {
            let status = [Status::Up, Status::Draining, Status::Maintenance][usize::from(status)];
            Command::SetStatus { id: id(n), status, reg_rev: None }
        }),
        1 => proptest::collection::vec((0u8..4, 1u64..20), 1..4).prop_map(move |victims| {
            let victims = victims.into_iter().map(|(n, reg_rev)| (id(n), reg_rev)).collect();
            Command::Expire { term: 1, victims }
        }),
    ]
}

proptest! {
    /// The model keeps the catalog of every revision: rewinding gives each of them that the ring reaches.
    #[test]
    fn rewinding_gives_the_catalog_as_it_was(
        commands in prop::collection::vec(command(), 1..60), batches_max in 1usize..80,
    ) {
        let (mut catalog, mut history) = (Catalog::default(), History::with_bounds(usize::MAX, batches_max));
        let mut kept = vec![catalog.clone()];
        for command in commands {
            let applied = catalog.apply(1, &Proposal { command, cause: Arc::default(), origin: None });
            if !applied.events.is_empty() {
                history.push(Arc::new(Batch { revision: applied.revision, events: applied.events }));
                kept.push(catalog.clone());
            }
        }
        for (revision, then) in (0..).zip(&kept) {
            match history.since(revision) {
                Slice::Compacted { compact_revision } => prop_assert!(revision < compact_revision),
                Slice::Batches(batches) => {
                    let batches: Vec<Arc<Batch>> = batches.cloned().collect();
                    let was: Vec<Arc<Record>> = rewind(catalog.records(), &batches).into_values().collect();
                    prop_assert_eq!(was, then.list(None), "at revision {}", revision);
                }
            }
        }
    }
}
