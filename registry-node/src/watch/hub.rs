//! The publish point: holds the catalog and the ring of its recent changes, lets one writer apply, and wakes
//! whoever follows. A watcher is a cursor and a filter; it has no queue, so a slow one costs nothing.

use std::{
    sync::{
        Arc, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{Batch, History, Slice, history};
use crate::{
    catalog::{Catalog, Event, InstanceId, Outcome, Proposal, Record, ServiceName},
    latest,
};

/// An idle watcher hears that it is up to date this often; a client gives a stream up after three times that.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Revisions handed over at once. Bounds a message: 64 revisions of one record of 16 KiB are 1 MiB.
const BATCHES_AT_ONCE: usize = 64;

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
}

#[derive(Debug, Default)]
struct State {
    /// Shared with snapshots being built; copied on the next write while one is.
    catalog: Arc<Catalog>,
    history: History,
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
        let (revision, _) = latest::channel(0);
        Self(Arc::new(Inner {
            state: RwLock::default(),
            revision,
            watchers: AtomicUsize::new(0),
            watchers_max,
        }))
    }

    /// Applies the proposals of one log entry of `term` and publishes what they changed.
    pub fn apply<'a>(&self, term: u64, proposals: impl IntoIterator<Item = &'a Proposal>) -> Vec<Effect> {
        let mut effects = Vec::new();
        let revision = {
            let mut state = self.write();
            for proposal in proposals {
                let applied = Arc::make_mut(&mut state.catalog).apply(term, proposal);
                if !applied.events.is_empty() {
                    state
                        .history
                        .push(Arc::new(Batch { revision: applied.revision, events: applied.events }));
                }
                effects.push(Effect { revision: applied.revision, outcome: applied.outcome });
            }
            state.catalog.revision()
        };
        self.publish(revision);
        effects
    }

    /// Notes that nodes were removed from the cluster.
    pub fn retire_nodes(&self, ids: impl Iterator<Item = u64>) {
        let mut state = self.write();
        ids.for_each(|id| Arc::make_mut(&mut state.catalog).retire_node(id));
    }

    /// Replaces the catalog by a snapshot's; watchers behind it start over from it.
    pub fn install(&self, catalog: Catalog) {
        let revision = catalog.revision();
        {
            let mut state = self.write();
            state.history.reset(revision);
            state.catalog = Arc::new(catalog);
        }
        self.publish(revision);
    }

    fn publish(&self, revision: u64) {
        self.0.revision.send_if_modified(|current| std::mem::replace(current, revision) != revision);
    }

    /// The catalog as it is now.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.state().catalog.clone()
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
        let hub = Watching::begin(self)?;
        Some(Watcher { hub, service, cursor: resume, progress_at: Instant::now() + PROGRESS_EVERY })
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.0.state.read().expect("no panic while it is held")
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.state.write().expect("no panic while it is held")
    }
}

/// A hub, counted as watched while this lives.
#[derive(Debug)]
struct Watching(Hub);

impl Watching {
    fn begin(hub: &Hub) -> Option<Self> {
        let watchers = hub.0.watchers.fetch_add(1, Ordering::Relaxed);
        let watching = Self(hub.clone());
        (watchers < hub.0.watchers_max).then_some(watching)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a watcher hears, always in order of revisions.
#[derive(Debug)]
pub enum Update {
    /// Replaces all it holds.
    Reset {
        /// What the records are at.
        revision: u64,
        /// The instances that match, by id.
        records: Vec<Arc<Record>>,
    },
    /// One revision or more, each whole; events of other services are left out.
    Events {
        /// Everything up to here has been delivered.
        revision: u64,
        /// In order, none empty.
        batches: Vec<Arc<Batch>>,
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
            Self::Reset { revision, .. } | Self::Events { revision, .. } | Self::Progress { revision } => {
                *revision
            }
        }
    }
}

/// A cursor over the changes of a service, or of all.
#[derive(Debug)]
pub struct Watcher {
    hub: Watching,
    service: Option<ServiceName>,
    /// The last revision delivered; none before the first reset.
    cursor: Option<u64>,
    progress_at: Instant,
}

impl Watcher {
    /// The next update, at the latest after a second. Cancel-safe: the cursor moves only with what is returned.
    pub async fn next(&mut self) -> Update {
        let update = loop {
            match self.poll() {
                Some(update) => break update,
                None => {
                    let cursor = self.cursor.unwrap_or(0);
                    let moved =
                        tokio::time::timeout_at(self.progress_at, self.hub.0.moved_from(cursor)).await;
                    if moved.is_err() {
                        break Update::Progress { revision: cursor };
                    }
                }
            }
        };
        self.progress_at = Instant::now() + PROGRESS_EVERY;
        self.cursor = Some(update.revision());
        update
    }

    /// What is there now. Moves the cursor over revisions that are of no interest.
    fn poll(&mut self) -> Option<Update> {
        let cursor = match self.cursor {
            Some(cursor) => cursor,
            None => return Some(self.reset()),
        };
        let mut matching = Vec::new();
        let mut seen = cursor;
        match self.hub.0.state().history.since(cursor) {
            Slice::Compacted { .. } => {}
            Slice::Batches(batches) => {
                for batch in batches {
                    seen = batch.revision;
                    matching.extend(filtered(batch, self.service.as_ref()));
                    if matching.len() == BATCHES_AT_ONCE {
                        break;
                    }
                }
                self.cursor = if matching.is_empty() { Some(seen) } else { self.cursor };
                return (!matching.is_empty())
                    .then_some(Update::Events { revision: seen, batches: matching });
            }
        }
        Some(self.reset())
    }

    fn reset(&self) -> Update {
        self.hub.0.read(|catalog| Update::Reset {
            revision: catalog.revision(),
            records: catalog.list(self.service.as_ref()),
        })
    }
}

/// The batch as a watcher of `service` sees it, if it sees anything.
fn filtered(batch: &Arc<Batch>, service: Option<&ServiceName>) -> Option<Arc<Batch>> {
    let Some(service) = service else { return Some(batch.clone()) };
    let matching = batch.events.iter().filter(|event| event.record.service() == service).count();
    match matching {
        0 => None,
        all if all == batch.events.len() => Some(batch.clone()),
        _ => {
            let events =
                batch.events.iter().filter(|event| event.record.service() == service).cloned().collect();
            Some(Arc::new(Batch { revision: batch.revision, events }))
        }
    }
}
