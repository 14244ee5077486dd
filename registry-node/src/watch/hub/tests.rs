use std::collections::BTreeMap;

use futures_util::future::poll_immediate;
use proptest::prelude::*;

use super::*;
use crate::catalog::{Command, EventKind, InstanceId, Record, Spec};

fn name(service: &str) -> ServiceName {
    ServiceName::new(service).expect("valid")
}

fn proposal(command: Command) -> Proposal {
    Proposal { command, cause: Arc::default(), origin: None }
}

fn register(id: &str, service: &str) -> Proposal {
    let spec = Spec::new(InstanceId::new(id).expect("valid"), name(service), "http://127.0.0.1:1");
    proposal(Command::Register { spec: spec.into(), expected: None })
}

fn deregister(id: &str) -> Proposal {
    proposal(Command::Deregister { id: InstanceId::new(id).expect("valid"), reg_rev: None })
}

fn put(hub: &Hub, id: &str, service: &str) -> u64 {
    hub.apply(1, 1, [&register(id, service)]).last().expect("one").revision
}

/// The records a watcher holds, kept up to date by what it hears.
#[derive(Default)]
struct Held {
    revision: u64,
    records: BTreeMap<InstanceId, Arc<Record>>,
}

impl Held {
    fn take(&mut self, update: &Update) {
        assert!(update.revision() >= self.revision, "back from {} to {}", self.revision, update.revision());
        match update {
            Update::Reset { snapshot, .. } => {
                let records = (0..snapshot.parts()).flat_map(|part| snapshot.part(part));
                self.records = records.map(|record| (record.spec.id.clone(), record.clone())).collect();
            }
            Update::Events { batches, .. } => {
                assert!(!batches.is_empty());
                let mut last = self.revision;
                for shared in batches {
                    let batch = shared.batch();
                    assert!(batch.revision > last && !batch.events.is_empty(), "{last}: {batch:?}");
                    last = batch.revision;
                    for event in &batch.events {
                        let id = event.record.spec.id.clone();
                        match event.kind {
                            EventKind::Put => drop(self.records.insert(id, event.record.clone())),
                            EventKind::Delete | EventKind::Expire => drop(self.records.remove(&id)),
                        }
                    }
                }
            }
            Update::Progress { .. } => {}
        }
        self.revision = update.revision();
    }

    fn list(&self) -> Vec<Arc<Record>> {
        self.records.values().cloned().collect()
    }
}

#[tokio::test]
async fn only_those_are_called_whom_a_change_concerns() {
    let hub = Hub::new(2_000);
    let follow = |service: &str| hub.watcher(Some(name(service)), Some(0)).expect("there is room");
    let mut quiet: Vec<_> = (0..1_000).map(|n| follow(&format!("quiet-{n}"))).collect();
    let mut waits: Vec<_> = quiet.iter_mut().map(|watcher| Box::pin(watcher.next())).collect();
    for wait in &mut waits {
        assert!(poll_immediate(wait.as_mut()).await.is_none(), "there is nothing yet");
    }
    let mut busy = follow("busy");
    for n in 0..100 {
        let revision = put(&hub, &format!("i-{n}"), "busy");
        assert_eq!(busy.next().await.expect("a turn").revision(), revision);
    }
    assert_eq!(hub.wake_ups(), 0, "the busy one had no need to wait");
    let mut wait = Box::pin(busy.next());
    assert!(poll_immediate(wait.as_mut()).await.is_none(), "there is nothing more");
    let last = put(&hub, "i", "busy");
    assert_eq!(wait.await.expect("a turn").revision(), last);
    assert_eq!(hub.wake_ups(), 1);
    // The others hear within a second how far they are: all that did not concern them included.
    for wait in waits {
        assert_eq!(wait.await.expect("a turn").revision(), last);
    }
    drop((quiet, busy));
    assert_eq!(hub.wake_ups(), 1);
    assert_eq!(hub.watchers(), 0);
    assert!(hub.state().topics.is_empty(), "a topic goes with its last watcher");
}

#[tokio::test]
async fn watchers_of_a_service_share_what_they_are_sent() {
    let hub = Hub::new(8);
    put(&hub, "a", "web");
    let mut watchers: Vec<_> =
        (0..3).map(|_| hub.watcher(Some(name("web")), None).expect("there is room")).collect();
    let mut snapshots = Vec::new();
    for watcher in &mut watchers {
        let Update::Reset { snapshot, .. } = watcher.next().await.expect("a turn") else { panic!("a reset") };
        snapshots.push(snapshot);
    }
    assert!(snapshots.iter().all(|snapshot| Arc::ptr_eq(snapshot, &snapshots[0])));
    put(&hub, "b", "web");
    let mut events = Vec::new();
    for watcher in &mut watchers {
        let Update::Events { mut batches, .. } = watcher.next().await.expect("a turn") else {
            panic!("events")
        };
        assert_eq!(batches.len(), 1);
        events.append(&mut batches);
    }
    assert!(events.iter().all(|shared| Arc::ptr_eq(shared, &events[0])));
    // One that begins after a change is not sent what was there before it.
    let mut late = hub.watcher(Some(name("web")), None).expect("there is room");
    let Update::Reset { snapshot, .. } = late.next().await.expect("a turn") else { panic!("a reset") };
    assert_eq!((snapshot.revision, snapshot.part(0).len()), (hub.revision(), 2));
}

#[tokio::test]
async fn one_that_stopped_is_told_as_much_as_a_message_takes_or_starts_over() {
    let hub = Hub::new(8);
    let mut slow = hub.watcher(None, Some(0)).expect("there is room");
    let mut slower = hub.watcher(Some(name("web")), Some(0)).expect("there is room");
    for n in 0..2_000 {
        put(&hub, &format!("i-{}", n % 10), "web");
    }
    let mut held = Held::default();
    let mut messages = 0;
    while held.revision < hub.revision() {
        let update = slow.next().await.expect("a turn");
        assert!(matches!(&update, Update::Events { batches, .. } if batches.len() <= BATCHES_AT_ONCE));
        held.take(&update);
        messages += 1;
    }
    assert!(messages <= 2_000 / 100, "{messages} messages");
    assert_eq!(held.list(), hub.catalog().list(None));
    // Beyond the ring.
    for n in 0..=history::BATCHES_MAX {
        put(&hub, &format!("i-{}", n % 10), "other");
    }
    put(&hub, "i-0", "web");
    let update = slow.next().await.expect("a turn");
    assert!(matches!(update, Update::Reset { .. }), "{update:?}");
    let mut held = Held::default();
    while held.revision < hub.revision() {
        held.take(&slower.next().await.expect("a turn"));
    }
    assert_eq!(held.list(), hub.catalog().list(Some(&name("web"))));
}

#[tokio::test]
async fn after_a_snapshot_is_installed_everybody_starts_over_from_it() {
    let (hub, other) = (Hub::new(8), Hub::new(8));
    for n in 0..20 {
        put(&other, &format!("i-{n}"), "web");
    }
    put(&hub, "old", "web");
    let mut watcher = hub.watcher(Some(name("web")), Some(1)).expect("there is room");
    let hears = tokio::spawn(async move { (watcher.next().await.expect("a turn"), watcher) });
    tokio::task::yield_now().await; // it waits by then, or starts over by itself
    hub.install(1, Catalog::clone(&other.catalog()));
    let (update, mut watcher) = hears.await.expect("it is called");
    let mut held = Held::default();
    assert!(matches!(update, Update::Reset { .. }), "{update:?}");
    held.take(&update);
    put(&hub, "new", "web");
    held.take(&watcher.next().await.expect("a turn"));
    assert_eq!(held.list(), hub.catalog().list(Some(&name("web"))));
}

#[tokio::test]
async fn snapshots_are_sent_so_many_at_once_and_the_rest_is_told_to_come_again() {
    let hub = Hub::new(1_000);
    let mut watchers: Vec<_> =
        (0..SNAPSHOTS_AT_ONCE + 1).map(|_| hub.watcher(None, None).expect("there is room")).collect();
    let mut last = watchers.pop().expect("one more than fits");
    let mut resets = Vec::new();
    for watcher in &mut watchers {
        resets.push(watcher.next().await.expect("a turn"));
    }
    assert_eq!(last.next().await.expect_err("no turn"), Crowded);
    assert_eq!(last.standing().expect_err("it holds nothing"), Crowded);
    assert!(matches!(watchers[0].standing(), Ok(Update::Progress { revision: 0 })));
    drop(resets);
    assert!(matches!(last.next().await.expect("a turn"), Update::Reset { .. }));
}

#[derive(Debug, Clone)]
enum Step {
    Apply(Box<Proposal>),
    /// Lets a watcher hear the next thing.
    Hear(usize),
    /// Puts a fresh watcher in its place, which resumes where it was.
    Resume(usize),
    /// The catalog is replaced by a snapshot of itself.
    Install,
}

fn step() -> impl Strategy<Value = Step> {
    let id = |n: u8| format!("i-{n}");
    prop_oneof![
        6 => (0u8..6, 0u8..3).prop_map(move |(n, service)| Step::Apply(register(&id(n), &format!("s{service}")).into())),
        3 => (0u8..6).prop_map(move |n| Step::Apply(deregister(&id(n)).into())),
        6 => (0usize..5).prop_map(Step::Hear),
        2 => (0usize..5).prop_map(Step::Resume),
        1 => Just(Step::Install),
    ]
}

/// A backup names the entry that its catalog ends with, however much is written meanwhile.
#[test]
fn the_catalog_and_its_index_are_of_one_moment() {
    let hub = Hub::new(1);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for index in 1..=2_000 {
                hub.apply(1, index, [&register(&format!("i-{}", index % 7), "web")]);
            }
        });
        while !writer.is_finished() {
            let (catalog, index) = hub.catalog_and_index();
            assert_eq!(catalog.revision(), index, "each entry is a revision");
        }
    });
    hub.retire_nodes(2_001, [9].into_iter());
    assert_eq!(hub.catalog_and_index().1, 2_001);
    hub.install(3_000, Catalog::default());
    assert_eq!(hub.catalog_and_index().1, 3_000);
}

proptest! {
    /// Whatever happens, and however late a watcher hears of it: what it holds is what the catalog had at the
    /// revision it was told.
    #[test]
    fn a_watcher_holds_what_the_catalog_had(steps in prop::collection::vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let hub = Hub::new(16);
            let services = [None, Some("s0"), Some("s1"), Some("s2"), Some("s2")].map(|s| s.map(name));
            let follow = |n: usize, at| hub.watcher(services[n].clone(), at).expect("there is room");
            let mut watchers: Vec<_> = (0..5).map(|n| (follow(n, None), Held::default())).collect();
            let mut was = vec![hub.catalog()];
            for step in steps.into_iter().chain((0..5).flat_map(|n| vec![Step::Hear(n); 3])) {
                match step {
                    Step::Apply(proposal) => {
                        hub.apply(1, 1, [&*proposal]);
                        was.resize(hub.revision() as usize + 1, hub.catalog());
                    }
                    Step::Hear(n) => {
                        let (watcher, held) = &mut watchers[n];
                        // As `next` does, without the second that it waits where there is nothing.
                        let update = match watcher.look() {
                            Found::Events(update) => update,
                            Found::Behind => watcher.reset().await.expect("a turn"),
                            Found::Nothing => Update::Progress { revision: watcher.cursor.expect("it has one") },
                        };
                        watcher.cursor = Some(update.revision());
                        held.take(&update);
                        let then = &was[held.revision as usize];
                        assert_eq!(held.list(), then.list(services[n].as_ref()), "at {}", held.revision);
                    }
                    Step::Resume(n) => {
                        let at = watchers[n].0.cursor;
                        watchers[n].0 = follow(n, at);
                    }
                    Step::Install => hub.install(1, Catalog::clone(&hub.catalog())),
                }
            }
            for (n, (_, held)) in watchers.iter().enumerate() {
                assert_eq!(held.list(), hub.catalog().list(services[n].as_ref()));
            }
        });
    }
}
