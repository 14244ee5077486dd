//! The publish point: holds the catalog and the ring of its recent changes, lets one writer apply, and wakes
//! whoever follows what changed, and nobody else. A watcher is a cursor and a filter; it has no queue, so a slow
//! one costs nothing.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{
    Batch, History, Slice, history,
    topic::{self, Shared, Snapshot, Topic},
};
use crate::{
    catalog::{Catalog, Event, InstanceId, Outcome, Proposal, Record, ServiceName},
    latest,
};

/// An idle watcher hears that it is up to date this often; a client gives a stream up after three times that.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Revisions handed over at once, and bytes of them after which no further one is taken: one message of a stream,
/// small enough not to block its connection's other streams for long.
const BATCHES_AT_ONCE: usize = 512;
const BYTES_AT_ONCE: usize = 256 << 10;

/// Snapshots on their way to watchers at once; each may pin the records of another revision.
const SNAPSHOTS_AT_ONCE: usize = 64;

/// How long a watcher waits for its turn to be sent a snapshot; below the 3 s of silence that end a stream.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(2);

/// Revisions that may be forgotten before topics that nothing concerns forget them as well.
const SWEEP_EVERY: u64 = 4_096;

/// The catalog, its recent changes, and who waits for more. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: RwLock<State>,
    /// The catalog's revision, for those who wait.
    revision: latest::Sender<u64>,
    watchers: AtomicUsize,
    watchers_max: usize,
    /// How often a watcher was called.
    wake_ups: AtomicU64,
    snapshots: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    /// Shared with snapshots being built; copied on the next write while one is.
    catalog: Arc<Catalog>,
    /// The last log entry that the catalog holds.
    index: u64,
    history: History,
    /// By service, and by none for those who follow all; each has a watcher.
    topics: HashMap<Option<ServiceName>, Topic>,
    /// The ring's compact revision when the topics last forgot what it had forgotten.
    swept: u64,
}

/// What a proposal did, and the catalog's revision after it.
#[derive(Debug, Clone)]
pub struct Effect {
    /// The catalog's revision after the proposal.
    pub revision: u64,
    /// What it did.
    pub outcome: Outcome,
}

/// What came after a revision.
#[derive(Debug)]
pub enum Changes {
    /// These revisions, in order; none if it is the newest.
    Batches(Vec<Arc<Batch>>),
    /// The ring no longer knows.
    Compacted,
}

/// What is remembered of one instance.
#[derive(Debug)]
pub struct Past {
    /// The catalog's revision.
    pub revision: u64,
    /// The record now, if there is one.
    pub record: Option<Arc<Record>>,
    /// The newest changes, oldest first.
    pub events: Vec<Event>,
    /// Whether older ones are remembered, too.
    pub more: bool,
}

impl Hub {
    /// An empty catalog at revision 0.
    pub fn new(watchers_max: usize) -> Self {
        Self::with_history(watchers_max, History::new())
    }

    /// The same with another ring, which is empty.
    pub fn with_history(watchers_max: usize, history: History) -> Self {
        let (revision, _) = latest::channel(0);
        Self(Arc::new(Inner {
            state: RwLock::new(State { history, ..State::default() }),
            revision,
            watchers: AtomicUsize::new(0),
            watchers_max,
            wake_ups: AtomicU64::new(0),
            snapshots: Arc::new(Semaphore::new(SNAPSHOTS_AT_ONCE)),
        }))
    }

    /// Applies the proposals of the log entry at `index`, which is of `term`, and publishes what they changed.
    pub fn apply<'a>(
        &self,
        term: u64,
        index: u64,
        proposals: impl IntoIterator<Item = &'a Proposal>,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut bells = Vec::new();
        let revision = {
            let mut state = self.write();
            for proposal in proposals {
                let applied = Arc::make_mut(&mut state.catalog).apply(term, proposal);
                if !applied.events.is_empty() {
                    let batch = Arc::new(Batch { revision: applied.revision, events: applied.events });
                    state.tell(&batch, &mut bells);
                    state.history.push(batch);
                }
                effects.push(Effect { revision: applied.revision, outcome: applied.outcome });
            }
            state.index = index;
            state.sweep();
            state.catalog.revision()
        };
        self.publish(revision);
        bells.iter().for_each(|bell| bell.send_replace(revision));
        effects
    }

    /// Notes that nodes were removed from the cluster by the log entry at `index`.
    pub fn retire_nodes(&self, index: u64, ids: impl Iterator<Item = u64>) {
        let mut state = self.write();
        state.index = index;
        ids.for_each(|id| Arc::make_mut(&mut state.catalog).retire_node(id));
    }

    /// Replaces the catalog by a snapshot's of the log up to `index`; watchers behind it start over from it.
    pub fn install(&self, index: u64, catalog: Catalog) {
        let revision = catalog.revision();
        let bells: Vec<_> = {
            let mut state = self.write();
            state.history.reset(revision);
            (state.catalog, state.index) = (Arc::new(catalog), index);
            state.topics.values_mut().for_each(|topic| topic.reset(revision));
            // In one order, so that a simulation can be repeated.
            let mut topics: Vec<_> = state.topics.iter().collect();
            topics.sort_unstable_by_key(|(service, _)| *service);
            topics.into_iter().map(|(_, topic)| topic.bell().clone()).collect()
        };
        self.publish(revision);
        bells.iter().for_each(|bell| bell.send_replace(revision));
    }

    fn publish(&self, revision: u64) {
        self.0.revision.send_if_modified(|current| std::mem::replace(current, revision) != revision);
    }

    /// The catalog as it is now.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.state().catalog.clone()
    }

    /// The same, and the last log entry that it holds.
    pub fn catalog_and_index(&self) -> (Arc<Catalog>, u64) {
        let state = self.state();
        (state.catalog.clone(), state.index)
    }

    /// Asks the catalog something short.
    pub fn read<T>(&self, query: impl FnOnce(&Catalog) -> T) -> T {
        query(&self.state().catalog)
    }

    /// The catalog's revision.
    pub fn revision(&self) -> u64 {
        *self.0.revision.borrow()
    }

    /// Events up to here can no longer be replayed.
    pub fn compact_revision(&self) -> u64 {
        self.state().history.compact_revision()
    }

    /// Memory that the ring holds, by estimate.
    pub fn history_bytes(&self) -> usize {
        self.state().history.bytes()
    }

    /// How many watchers there are.
    pub fn watchers(&self) -> usize {
        self.0.watchers.load(Ordering::Relaxed)
    }

    /// How often watchers were called: each time something changed that concerns them.
    pub fn wake_ups(&self) -> u64 {
        self.0.wake_ups.load(Ordering::Relaxed)
    }

    /// Everything after a revision that the ring still has.
    pub fn since(&self, after_revision: u64) -> Changes {
        match self.state().history.since(after_revision) {
            Slice::Batches(batches) => Changes::Batches(batches.cloned().collect()),
            Slice::Compacted { .. } => Changes::Compacted,
        }
    }

    /// The records as they were right after `revision`, which has been reached, by id; or the oldest revision that
    /// is remembered. Works through all that is registered and all that is remembered: milliseconds.
    pub fn at(&self, service: Option<&ServiceName>, revision: u64) -> Result<Vec<Arc<Record>>, u64> {
        let (catalog, batches) = {
            let state = self.state();
            match state.history.since(revision) {
                Slice::Compacted { compact_revision } => return Err(compact_revision),
                Slice::Batches(batches) => (state.catalog.clone(), batches.cloned().collect::<Vec<_>>()),
            }
        };
        let records = history::rewind(catalog.records(), &batches).into_values();
        Ok(records.filter(|record| service.is_none_or(|service| record.service() == service)).collect())
    }

    /// The newest changes of `id`, `limit` at most.
    pub fn past(&self, id: &InstanceId, limit: usize) -> Past {
        let (catalog, batches) = {
            let state = self.state();
            let Slice::Batches(batches) = state.history.since(state.history.compact_revision()) else {
                unreachable!("the ring begins after its compact revision")
            };
            (state.catalog.clone(), batches.cloned().collect::<Vec<_>>())
        };
        let newest_first = batches.iter().rev().flat_map(|batch| batch.events.iter().rev());
        let mut newest_first = newest_first.filter(|event| event.record.spec.id == *id);
        let mut events: Vec<Event> = newest_first.by_ref().take(limit).cloned().collect();
        events.reverse();
        let more = newest_first.next().is_some();
        Past { revision: catalog.revision(), record: catalog.get(id).cloned(), events, more }
    }

    /// Returns once the catalog is at `revision` or beyond; at the deadline fails with where it is.
    pub async fn reached(&self, revision: u64, deadline: Instant) -> Result<(), u64> {
        let mut current = self.0.revision.subscribe();
        let waited =
            tokio::time::timeout_at(deadline, current.wait_for(|current| *current >= revision)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            _ => Err(self.revision()),
        }
    }

    /// Returns once the catalog's revision is no longer `revision`.
    pub async fn moved_from(&self, revision: u64) {
        let mut current = self.0.revision.subscribe();
        let _ = current.wait_for(|current| *current != revision).await; // the sender lives in self
    }

    /// A watcher that resumes after a revision, or starts with a reset. None if there are too many.
    pub fn watcher(&self, service: Option<ServiceName>, resume: Option<u64>) -> Option<Watcher> {
        let (follows, bell) = Following::begin(self, service)?;
        let progress_at = Instant::now() + PROGRESS_EVERY;
        Some(Watcher { follows, bell, cursor: resume, progress_at })
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.0.state.read().expect("no panic while it is held")
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.state.write().expect("no panic while it is held")
    }
}

impl State {
    /// Lets those topics know that a batch concerns, and gathers their bells.
    fn tell(&mut self, batch: &Arc<Batch>, bells: &mut Vec<latest::Sender<u64>>) {
        if self.topics.is_empty() {
            return;
        }
        // Mostly one service: those of a batch that are the same follow each other.
        let mut services: Vec<_> = batch.events.iter().map(|event| event.record.service().clone()).collect();
        services.dedup();
        if services.len() > 1 {
            services.sort_unstable();
            services.dedup();
        }
        for service in services.into_iter().map(Some).chain([None]) {
            if let Some(topic) = self.topics.get_mut(&service)
                && topic.push(batch)
                && !bells.iter().any(|bell| bell.same_channel(topic.bell()))
            {
                bells.push(topic.bell().clone());
            }
        }
    }

    /// Lets topics forget what the ring has forgotten, once that is worth looking at each.
    fn sweep(&mut self) {
        let compact_revision = self.history.compact_revision();
        if compact_revision >= self.swept + SWEEP_EVERY {
            self.swept = compact_revision;
            self.topics.values_mut().for_each(|topic| topic.forget_until(compact_revision));
        }
    }
}

/// A place among a topic's watchers, given back in the end.
#[derive(Debug)]
struct Following {
    hub: Hub,
    service: Option<ServiceName>,
}

impl Following {
    fn begin(hub: &Hub, service: Option<ServiceName>) -> Option<(Self, latest::Receiver<u64>)> {
        if hub.0.watchers.fetch_add(1, Ordering::Relaxed) >= hub.0.watchers_max {
            hub.0.watchers.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let mut state = hub.write();
        let revision = state.catalog.revision();
        let topic = state.topics.entry(service.clone());
        let topic = topic.or_insert_with(|| Topic::new(service.clone(), revision));
        topic.watchers += 1;
        let bell = topic.bell().subscribe();
        drop(state);
        Some((Self { hub: hub.clone(), service }, bell))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.hub.0.watchers.fetch_sub(1, Ordering::Relaxed);
        let mut state = self.hub.write();
        if let Some(topic) = state.topics.get_mut(&self.service) {
            topic.watchers -= 1;
            if topic.watchers == 0 {
                state.topics.remove(&self.service);
            }
        }
    }
}

/// What a watcher hears, always in order of revisions.
#[derive(Debug)]
pub enum Update {
    /// Replaces all it holds, by what is at the snapshot's revision.
    Reset {
        /// The instances that match, by id; shared with whoever is sent them as well.
        snapshot: Arc<Snapshot>,
        /// Its turn to be sent one, given back with it.
        turn: OwnedSemaphorePermit,
    },
    /// One revision or more, each whole; events of other services are left out.
    Events {
        /// Everything up to here has been delivered.
        revision: u64,
        /// In order, none empty; together no more than one message should carry.
        batches: Vec<Arc<Shared>>,
    },
    /// There is nothing more up to this revision.
    Progress {
        /// Everything up to here has been delivered.
        revision: u64,
    },
}

impl Update {
    /// Everything up to here has been delivered.
    pub fn revision(&self) -> u64 {
        match self {
            Self::Reset { snapshot, .. } => snapshot.revision,
            Self::Events { revision, .. } | Self::Progress { revision } => *revision,
        }
    }
}

/// Too many watchers are being sent a snapshot: this one's turn did not come. It can resume later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many watchers start over at once")]
pub struct Crowded;

/// A cursor over the changes of a service, or of all.
#[derive(Debug)]
pub struct Watcher {
    follows: Following,
    bell: latest::Receiver<u64>,
    /// The last revision delivered; none before the first reset.
    cursor: Option<u64>,
    progress_at: Instant,
}

/// What a cursor finds.
enum Found {
    /// Nothing that concerns it.
    Nothing,
    Events(Update),
    /// It has to start over.
    Behind,
}

impl Watcher {
    /// The next update, at the latest after a second, or two where a snapshot is due. Cancel-safe: the cursor moves
    /// only with what is returned.
    pub async fn next(&mut self) -> Result<Update, Crowded> {
        let update = loop {
            self.bell.mark_unchanged();
            match self.look() {
                Found::Events(update) => break update,
                Found::Behind => break self.reset().await?,
                Found::Nothing => {}
            }
            match tokio::time::timeout_at(self.progress_at, self.bell.changed()).await {
                Ok(_) => {
                    self.hub().wake_ups.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => match self.look() {
                    Found::Events(update) => break update,
                    Found::Behind => break self.reset().await?,
                    Found::Nothing => break Update::Progress { revision: self.cursor.unwrap_or(0) },
                },
            }
        };
        self.progress_at = Instant::now() + PROGRESS_EVERY;
        self.cursor = Some(update.revision());
        Ok(update)
    }

    /// What there is to tell a client that waits no longer: how far it is, unless it has to start over and was not
    /// sent a snapshot yet. Then it must not take itself for up to date.
    pub fn standing(&self) -> Result<Update, Crowded> {
        self.cursor.map(|revision| Update::Progress { revision }).ok_or(Crowded)
    }

    fn hub(&self) -> &Inner {
        &self.follows.hub.0
    }

    /// What is there now. Moves the cursor over revisions that are of no interest.
    fn look(&mut self) -> Found {
        let Some(cursor) = self.cursor else { return Found::Behind };
        let service = &self.follows.service;
        let (now, found) = {
            let state = self.follows.hub.state();
            let topic = state.topics.get(service).expect("it has a watcher");
            let found = match topic.since(cursor) {
                Some(recent) => Some(some_of(recent.cloned())),
                None => topic::select(state.history.since(cursor), service.as_ref()).map(some_of),
            };
            (state.catalog.revision(), found)
        };
        match found {
            None => Found::Behind,
            Some((batches, _)) if batches.is_empty() => {
                self.cursor = Some(now.max(cursor));
                Found::Nothing
            }
            Some((batches, all)) => {
                let last = batches.last().map_or(cursor, |shared| shared.batch().revision);
                Found::Events(Update::Events { revision: if all { now.max(last) } else { last }, batches })
            }
        }
    }

    /// A snapshot that is no older than this call.
    async fn reset(&self) -> Result<Update, Crowded> {
        let needed = self.follows.hub.read(Catalog::revision);
        let turn = self.hub().snapshots.clone().acquire_owned();
        let turn = tokio::time::timeout(SNAPSHOT_WAIT, turn).await.map_err(|_| Crowded)?;
        let turn = turn.expect("the semaphore is never closed");
        let state = self.follows.hub.state();
        let topic = state.topics.get(&self.follows.service).expect("it has a watcher");
        // Whoever comes next waits here and shares it.
        let mut sent = topic.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(snapshot) = sent.upgrade()
            && snapshot.revision >= needed
            && topic.since(snapshot.revision).is_some()
        {
            return Ok(Update::Reset { snapshot, turn });
        }
        let records = state.catalog.list(self.follows.service.as_ref());
        let snapshot = Arc::new(Snapshot::new(state.catalog.revision(), records));
        *sent = Arc::downgrade(&snapshot);
        Ok(Update::Reset { snapshot, turn })
    }
}

/// As many as one message should carry, and whether that was all.
fn some_of(batches: impl Iterator<Item = Arc<Shared>>) -> (Vec<Arc<Shared>>, bool) {
    let (mut some, mut bytes) = (Vec::new(), 0);
    for shared in batches {
        bytes += shared.batch().bytes();
        if some.len() == BATCHES_AT_ONCE || (bytes > BYTES_AT_ONCE && !some.is_empty()) {
            return (some, false);
        }
        some.push(shared);
    }
    (some, true)
}

#[cfg(test)]
mod tests;
