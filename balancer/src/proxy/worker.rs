//! One worker: a thread with a runtime of its own, a listener of its own on the shared port, and its own
//! connections to endpoints. Nothing a request needs is shared with another thread, except the pool (read
//! only), the in-flight counts and the metrics (atomics).

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, Cache};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::account::Sight;
use super::buffer::Buffers;
use super::connection;
use super::deadline::Deadlines;
use super::door::Door;
use super::http1::{Request, Response};
use super::retry::Budget;
use super::upstream::Upstreams;
use crate::access::Pens;
use crate::config::{Limits, Telling};
use crate::metrics::{Metrics, RequestSeries};
use crate::pool::Gate;
use crate::report::Reporter;
use crate::route::Route;
use crate::table::Table;
use crate::trace::Tracer;

/// Between sweeps of idle connections.
const SWEEP: Duration = Duration::from_secs(5);

/// After accepting failed for want of file descriptors: others have to be closed first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Series kept at hand. Far more than endpoints, methods and statuses in use; beyond it the cache starts anew.
const SERIES_MAX: usize = 8192;

/// Heads kept for later: as many as requests are often in flight at once.
const SPARES_MAX: usize = 256;

/// What all workers share.
#[derive(Clone)]
pub struct Shared {
    /// The latest table.
    pub table: Arc<ArcSwap<Table>>,
    /// Counts picks, so that round robin is one round over all workers.
    pub turn: Arc<AtomicUsize>,
    /// Where requests wait for a slot.
    pub gate: Arc<Gate>,
    /// Limits of the data path.
    pub limits: Limits,
    /// To the control side.
    pub reporter: Reporter,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What `/metrics` answers.
    pub exposition: Arc<dyn Fn() -> String + Send + Sync>,
    /// What clients are told about the way of their requests.
    pub telling: Telling,
    /// How old the catalog behind the table may be.
    pub age: Arc<dyn Fn() -> Option<Duration> + Send + Sync>,
    /// Where finished requests are told of.
    pub access: Option<Pens>,
    /// Where steps of traces are told of.
    pub tracer: Option<Tracer>,
}

/// Route, endpoint, method, status.
type SeriesKey = (u64, u64, usize, u16);

/// One table, as this worker has it: requests share it without touching what other threads touch.
pub struct Here {
    /// The table.
    pub table: Arc<Table>,
}

/// What the tasks of one worker share.
pub struct Worker {
    latest: RefCell<Cache<Arc<ArcSwap<Table>>, Arc<Table>>>,
    here: RefCell<Rc<Here>>,
    turn: Arc<AtomicUsize>,
    /// Where requests wait for a slot.
    pub gate: Arc<Gate>,
    /// Limits of the data path.
    pub limits: Limits,
    /// To the control side.
    pub reporter: Reporter,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What `/metrics` answers.
    pub exposition: Arc<dyn Fn() -> String + Send + Sync>,
    /// What clients are told about the way of their requests.
    pub telling: Telling,
    /// How old the catalog behind the table may be.
    pub age: Arc<dyn Fn() -> Option<Duration> + Send + Sync>,
    /// Who looks at requests.
    pub sight: Option<Sight>,
    /// Connections to endpoints.
    pub upstreams: Upstreams,
    /// For what is being read.
    pub buffers: Rc<Buffers>,
    /// Time limits of its tasks.
    pub deadlines: Rc<Deadlines>,
    /// Heads of requests that nobody has.
    pub requests: Spares<Request>,
    /// Heads of responses that nobody has.
    pub responses: Spares<Response>,
    /// For a head that is written and sent at once.
    pub head: RefCell<Vec<u8>>,
    /// What further attempts may cost.
    pub budget: RefCell<Budget>,
    stopping: Cell<Option<Instant>>,
    /// The time in seconds since 1970, as HTTP has it.
    date: RefCell<(u64, String)>,
    /// Every task of this worker that serves a client.
    pub tasks: TaskTracker,
    series: RefCell<HashMap<SeriesKey, Option<RequestSeries>>>,
}

impl Worker {
    fn new(shared: &Shared) -> Worker {
        let buffers = Buffers::new(shared.limits.buffer_bytes_max);
        Worker {
            latest: RefCell::new(Cache::new(shared.table.clone())),
            here: RefCell::new(Rc::new(Here { table: shared.table.load_full() })),
            turn: shared.turn.clone(),
            gate: shared.gate.clone(),
            upstreams: Upstreams::new(&shared.limits, buffers.clone()),
            buffers,
            deadlines: Rc::default(),
            requests: Spares::default(),
            responses: Spares::default(),
            head: RefCell::default(),
            budget: RefCell::new(Budget::new(Instant::now())),
            stopping: Cell::default(),
            date: RefCell::default(),
            limits: shared.limits.clone(),
            reporter: shared.reporter.clone(),
            metrics: shared.metrics.clone(),
            exposition: shared.exposition.clone(),
            telling: shared.telling,
            age: shared.age.clone(),
            sight: Sight::new(shared.access.as_ref().map(Pens::pen), shared.tracer.clone()),
            tasks: TaskTracker::new(),
            series: RefCell::default(),
        }
    }

    /// The latest table.
    pub fn here(&self) -> Rc<Here> {
        let mut latest = self.latest.borrow_mut();
        let table = latest.load();
        let mut here = self.here.borrow_mut();
        if !Arc::ptr_eq(table, &here.table) {
            *here = Rc::new(Here { table: table.clone() });
        }
        here.clone()
    }

    /// Whose turn it is, counted over all workers.
    pub fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Since when it serves what it has and takes nothing new.
    pub fn stopping(&self) -> Option<Instant> {
        self.stopping.get()
    }

    /// Now, as a Date field has it (RFC 9110 §5.6.7).
    pub fn date(&self) -> Ref<'_, str> {
        let now = SystemTime::now();
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.date.borrow().0 != seconds {
            *self.date.borrow_mut() = (seconds, httpdate::fmt_http_date(now));
        }
        Ref::map(self.date.borrow(), |(_, text)| text.as_str())
    }

    /// Counts a finished request.
    pub fn measure(
        &self,
        route: &Route,
        method: usize,
        status: u16,
        (key, backend): (u64, &str),
        took: Duration,
    ) {
        let mut cache = self.series.borrow_mut();
        if cache.len() > SERIES_MAX {
            cache.clear();
        }
        let series = cache
            .entry((route.key, key, method, status))
            .or_insert_with(|| self.metrics.request(route, method, status, backend));
        if let Some(series) = series {
            series.duration.observe(took.as_secs_f64());
            series.total.inc();
        }
    }
}

/// Values that are filled again and again, so that a request allocates none.
pub struct Spares<T>(RefCell<Vec<Box<T>>>);

impl<T> Default for Spares<T> {
    fn default() -> Spares<T> {
        Spares(RefCell::default())
    }
}

impl<T: Default> Spares<T> {
    /// One with whatever it was filled with last.
    pub fn take(&self) -> Box<T> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps it, unless there are enough.
    pub fn give_back(&self, spare: Box<T>) {
        let mut spares = self.0.borrow_mut();
        if spares.len() < SPARES_MAX {
            spares.push(spare);
        }
    }
}

/// Serves `listeners` until `stop`, then lets what is in flight finish until `cut`. Blocks the thread.
pub fn run(
    listeners: Vec<(Arc<Door>, std::net::TcpListener)>,
    shared: &Shared,
    connections_max: usize,
    stop: CancellationToken,
    cut: CancellationToken,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let worker = Rc::new(Worker::new(shared));
    let ended = tokio::task::LocalSet::new().block_on(&runtime, async move {
        let listeners = listeners.into_iter().map(|(door, l)| Ok((door, TcpListener::from_std(l)?)));
        let listeners = listeners.collect::<std::io::Result<Vec<_>>>()?;
        let sweeper = tokio::task::spawn_local(sweep(worker.clone()));
        let deadlines = worker.deadlines.clone();
        let clock = tokio::task::spawn_local(async move { deadlines.run().await });
        let watching = worker.clone();
        let watcher = tokio::task::spawn_local(async move {
            if let Some(sight) = &watching.sight {
                sight.flush().await;
            }
        });
        let permits = Arc::new(Semaphore::new(connections_max));
        let serving = listeners.into_iter().map(|(door, l)| serve(&worker, door, l, &permits, &stop));
        futures_util::future::join_all(serving).await;
        worker.stopping.set(Some(Instant::now()));
        worker.deadlines.wake_all();
        worker.tasks.close();
        tokio::select! {
            () = worker.tasks.wait() => {}
            () = cut.cancelled() => warn!(tasks = worker.tasks.len(), "cut off what was still in flight"),
        }
        sweeper.abort();
        watcher.abort();
        clock.abort();
        worker.upstreams.clear();
        Ok(())
    });
    // A name may still be being looked up; nobody waits for it any more.
    runtime.shutdown_background();
    ended
}

async fn sweep(worker: Rc<Worker>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        worker.upstreams.sweep(&worker.here().table);
    }
}

/// Accepts until `stop`, and then what has already been accepted by the kernel: those clients believe that they
/// are connected.
async fn serve(
    worker: &Rc<Worker>,
    door: Arc<Door>,
    listener: TcpListener,
    permits: &Arc<Semaphore>,
    stop: &CancellationToken,
) {
    loop {
        let permit = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            permit = permits.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => start(worker, &door, stream, peer, permit),
            Err(error) => {
                debug!(%error, "cannot accept");
                worker.upstreams.sweep(&worker.here().table);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    if let Err(error) = drain(worker, &door, listener, permits) {
        debug!(%error, "cannot accept what was waiting");
    }
}

/// Accepts what waits in the kernel. Asks the kernel itself: the runtime may not have heard of all of it yet.
fn drain(
    worker: &Rc<Worker>,
    door: &Arc<Door>,
    listener: TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<()> {
    let listener = listener.into_std()?;
    while let Ok(permit) = permits.clone().try_acquire_owned() {
        let (stream, peer) = match listener.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            accepted => accepted?,
        };
        stream.set_nonblocking(true)?;
        start(worker, door, TcpStream::from_std(stream)?, peer, permit);
    }
    Ok(())
}

fn start(
    worker: &Rc<Worker>,
    door: &Arc<Door>,
    stream: TcpStream,
    peer: SocketAddr,
    permit: tokio::sync::OwnedSemaphorePermit,
) {
    let (served, door) = (worker.clone(), door.clone());
    worker.tasks.spawn_local(async move {
        served.metrics.connections.inc();
        // Counts down on a panic, too.
        let _open = Open(served.metrics.connections.clone(), permit);
        // Failing to switch off Nagle's algorithm costs latency, nothing else.
        let _ = stream.set_nodelay(true);
        match door.enter(stream, peer, served.limits.header_timeout).await {
            Some((stream, client)) => connection::serve(served, stream, client).await,
            None => served.metrics.refused.with_label_values(&["handshake"]).inc(),
        }
    });
}

struct Open(prometheus::IntGauge, #[allow(dead_code)] tokio::sync::OwnedSemaphorePermit);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
