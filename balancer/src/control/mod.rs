//! Follows the registry, probes endpoints, judges them, and publishes one immutable [`Table`].
//!
//! A single task owns everything. It takes an `Input`, lets [`state`] decide, and publishes; what is slow
//! (probes, the disk) runs beside it and comes back as an input. Runs on the control thread, so that a busy
//! data path never delays a health decision, nor the other way round.

pub mod discovery;
mod member;
pub mod outlier;
mod pace;
pub mod probe;
pub mod record;
pub mod state;
pub mod store;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::pool::{Gate, Standing};
use crate::report::Report;
use crate::route::Routes;
use crate::table::Table;
use pace::Pace;
use probe::Prober;
use record::Change;
use state::{Policy, ProbeOrder, ProbeResult, State, Ticket};
use store::{Saved, Store};

/// Probes under way at once; of the others none is late by more than these take.
const PROBES_MAX: usize = 512;

/// Time that is not spent saving, for each time that it took: a large catalog that changes all the time would keep the
/// disk busy for nothing.
const SAVING_REST: u32 = 20;

/// Reports taken at once before publishing, so that a burst of them makes one pool.
const REPORTS_PER_STEP: usize = 256;

/// What others may know of the catalog behind the pool.
#[derive(Clone)]
pub struct Catalog {
    heard: Arc<AtomicBool>,
    restored: Arc<OnceLock<(Instant, Duration)>>,
    status: watch::Receiver<flux::WatchStatus>,
}

impl Catalog {
    /// Whether there is one at all, from the registry or from disk. Before that a pool says nothing.
    pub fn is_known(&self) -> bool {
        self.heard.load(Ordering::Acquire) || self.restored.get().is_some()
    }

    /// How old it may be: the time since the registry was last heard of, or since what was found on disk was
    /// saved.
    pub fn age(&self) -> Option<Duration> {
        if self.heard.load(Ordering::Acquire) {
            return Some(self.status.borrow().last_heard.elapsed());
        }
        self.restored.get().map(|(loaded, age)| *age + loaded.elapsed())
    }

    /// How the registry is being followed.
    pub fn status(&self) -> flux::WatchStatus {
        self.status.borrow().clone()
    }
}

/// The control side, ready to run.
pub struct Control {
    state: State,
    watch: flux::Watch,
    catalog: Catalog,
    reports: mpsc::Receiver<Report>,
    prober: Arc<Prober>,
    probes: JoinSet<(Ticket, ProbeResult)>,
    store: Option<Store>,
    saving: JoinSet<Duration>,
    unsaved: bool,
    /// No further save before.
    save_floor: Instant,
    pace: Pace,
    table: Arc<ArcSwap<Table>>,
    routes: watch::Receiver<Arc<Routes>>,
    metrics: Arc<Metrics>,
    rng: fastrand::Rng,
    gate: Arc<Gate>,
}

/// What a control side is made of.
pub struct Parts {
    /// Knobs.
    pub policy: Policy,
    /// The registry's changes.
    pub watch: flux::Watch,
    /// What the workers saw.
    pub reports: mpsc::Receiver<Report>,
    /// How to probe.
    pub prober: Prober,
    /// Where records outlive the process.
    pub store: Option<Store>,
    /// Where tables are published.
    pub table: Arc<ArcSwap<Table>>,
    /// The routes in force, and those that replace them.
    pub routes: watch::Receiver<Arc<Routes>>,
    /// Where requests wait for a slot.
    pub gate: Arc<Gate>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

enum Input {
    Update(flux::Update),
    Report(Report),
    Routes(Arc<Routes>),
    Probed(Ticket, ProbeResult),
    Saved(Duration),
    Time,
}

impl Control {
    /// Restores what the store holds and publishes it.
    pub fn new(parts: Parts) -> Control {
        let catalog =
            Catalog { heard: Arc::default(), restored: Arc::default(), status: parts.watch.status() };
        let mut control = Control {
            state: State::new(parts.policy).behind(parts.gate.clone()),
            gate: parts.gate,
            watch: parts.watch,
            catalog,
            reports: parts.reports,
            prober: Arc::new(parts.prober),
            probes: JoinSet::new(),
            store: parts.store,
            saving: JoinSet::new(),
            unsaved: false,
            save_floor: Instant::now(),
            pace: Pace::new(Instant::now()),
            table: parts.table,
            routes: parts.routes,
            metrics: parts.metrics,
            rng: fastrand::Rng::new(),
        };
        let routes = control.routes.borrow_and_update().clone();
        control.state.lead(routes);
        control.restore();
        control
    }

    /// A handle to what is known of the catalog.
    pub fn catalog(&self) -> Catalog {
        self.catalog.clone()
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.act();
            let input = tokio::select! {
                () = stop.cancelled() => return,
                input = self.next() => input,
            };
            self.take(input);
        }
    }

    async fn next(&mut self) -> Input {
        let until = self.pace.at();
        tokio::select! {
            update = self.watch.next() => Input::Update(update),
            Some(report) = self.reports.recv() => Input::Report(report),
            Ok(()) = self.routes.changed() => Input::Routes(self.routes.borrow_and_update().clone()),
            Some(Ok((ticket, result))) = self.probes.join_next() => Input::Probed(ticket, result),
            Some(took) = self.saving.join_next() => Input::Saved(took.unwrap_or_default()),
            () = tokio::time::sleep_until(until.into()) => Input::Time,
        }
    }

    fn take(&mut self, input: Input) {
        let now = Instant::now();
        match input {
            Input::Update(update) => self.learn(update, now),
            Input::Report(report) => {
                self.state.report(report, now);
                for _ in 1..REPORTS_PER_STEP {
                    let Ok(report) = self.reports.try_recv() else { break };
                    self.state.report(report, now);
                }
            }
            Input::Routes(routes) => self.state.lead(routes),
            Input::Probed(ticket, result) => self.state.probed(&ticket, result, now, &mut self.rng),
            Input::Saved(took) => self.save_floor = now + took * SAVING_REST,
            Input::Time => return,
        }
        self.pace.happened();
    }

    fn learn(&mut self, update: flux::Update, now: Instant) {
        let change = discovery::change(update);
        match &change {
            Change::Reset { revision, records } => {
                info!(revision, instances = records.len(), "catalog replaced");
            }
            Change::Events { revision, events } => info!(revision, events = events.len(), "catalog changed"),
            Change::Progress { .. } => {}
        }
        self.unsaved |= !matches!(change, Change::Progress { .. });
        self.state.apply(change, now);
        self.catalog.heard.store(true, Ordering::Release);
    }

    /// Carries out what the state wants: tells, publishes, probes, saves.
    fn act(&mut self) {
        let now = Instant::now();
        let orders = if self.pace.is_due(now) { self.look(now) } else { Vec::new() };
        for notice in self.state.take_notices() {
            let (instance, upstream, why) = (&notice.id, &notice.authority, &notice.why);
            match notice.standing {
                Standing::Up => info!(instance, %upstream, why, "in rotation"),
                standing => warn!(instance, %upstream, why, standing = standing.name(), "out of rotation"),
            }
        }
        self.metrics.ejections.inc_by(self.state.ejections().saturating_sub(self.metrics.ejections.get()));
        if let Some(table) = self.state.take_table() {
            // In this order: a worker that sees a new endpoint finds its series.
            self.metrics.follow(&table);
            self.table.store(Arc::new(table));
            self.gate.changed();
        }
        for order in orders {
            let prober = self.prober.clone();
            self.probes.spawn(async move {
                let result = prober.probe(&order).await;
                (order.ticket, result)
            });
        }
        self.save();
    }

    /// Looks at all endpoints. Returns the probes that are due.
    fn look(&mut self, now: Instant) -> Vec<ProbeOrder> {
        self.state.tick(now);
        let orders = self.state.due(now, PROBES_MAX.saturating_sub(self.probes.len()));
        self.pace.looked(now, self.state.endpoints(), self.state.next_deadline());
        orders
    }

    fn save(&mut self) {
        let may = self.unsaved && self.saving.is_empty() && self.save_floor <= Instant::now();
        let Some(store) = self.store.as_ref().filter(|_| may) else { return };
        self.unsaved = false;
        let saved = Saved::new(self.state.revision(), self.state.records().cloned().collect());
        let store = store.clone();
        self.saving.spawn_blocking(move || {
            let begun = Instant::now();
            if let Err(error) = store.save(&saved) {
                warn!(%error, "cannot save the endpoints; a restart without a registry will know none");
            }
            begun.elapsed()
        });
    }

    fn restore(&mut self) {
        let loaded = self.store.as_ref().map(Store::load);
        match loaded {
            Some(Ok(Some(saved))) if !saved.records.is_empty() => {
                info!(
                    revision = saved.revision,
                    instances = saved.records.len(),
                    "catalog restored from disk"
                );
                let _ = self.catalog.restored.set((Instant::now(), saved.age()));
                let reset = Change::Reset { revision: saved.revision, records: saved.records };
                self.state.apply(reset, Instant::now());
            }
            Some(Err(error)) => warn!(%error, "cannot read the saved endpoints, going on without"),
            Some(Ok(_)) | None => {}
        }
    }
}
