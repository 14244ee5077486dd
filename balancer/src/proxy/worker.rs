//! One worker: a thread with a runtime of its own, a listener of its own on the shared port, and its own
//! connections to endpoints. Nothing a request needs is shared with another thread, except the pool (read
//! only), the in-flight counts and the metrics (atomics).

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::exchange;
use super::socket::{Patience, Phase, Socket};
use super::upstream::Upstreams;
use crate::config::Limits;
use crate::metrics::{Metrics, RequestSeries};
use crate::picker::{self, Strategy};
use crate::pool::{Endpoint, Pool};
use crate::report::Reporter;

/// Between sweeps of idle connections.
const SWEEP: Duration = Duration::from_secs(5);

/// After accepting failed for want of file descriptors: others have to be closed first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// On stopping, for a connection whose request is on its way: its client could connect and so counts on an
/// answer. Long enough for a round trip around the world, short beside the grace.
const LAST_CALL: Duration = Duration::from_millis(500);

/// Series kept at hand. Far more than endpoints, methods and statuses in use; beyond it the cache starts anew.
const SERIES_MAX: usize = 8192;

/// What all workers share.
#[derive(Clone)]
pub struct Shared {
    /// The latest pool.
    pub pool: Arc<ArcSwap<Pool>>,
    /// How endpoints are picked.
    pub strategy: Strategy,
    /// Counts picks, so that round robin is one round over all workers.
    pub turn: Arc<AtomicUsize>,
    /// Limits of the data path.
    pub limits: Limits,
    /// To the control side.
    pub reporter: Reporter,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What `/metrics` answers.
    pub exposition: Arc<dyn Fn() -> String + Send + Sync>,
}

type SeriesKey = (u64, usize, u16);

/// What the tasks of one worker share.
pub struct Worker {
    pool: RefCell<Cache<Arc<ArcSwap<Pool>>, Arc<Pool>>>,
    strategy: Strategy,
    turn: Arc<AtomicUsize>,
    /// Limits of the data path.
    pub limits: Limits,
    /// To the control side.
    pub reporter: Reporter,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What `/metrics` answers.
    pub exposition: Arc<dyn Fn() -> String + Send + Sync>,
    /// Connections to endpoints.
    pub upstreams: Rc<Upstreams>,
    /// Every task of this worker that serves a client.
    pub tasks: TaskTracker,
    series: RefCell<HashMap<SeriesKey, Option<RequestSeries>>>,
}

impl Worker {
    fn new(shared: &Shared) -> Worker {
        Worker {
            pool: RefCell::new(Cache::new(shared.pool.clone())),
            strategy: shared.strategy,
            turn: shared.turn.clone(),
            upstreams: Rc::new(Upstreams::new(&shared.limits)),
            limits: shared.limits.clone(),
            reporter: shared.reporter.clone(),
            metrics: shared.metrics.clone(),
            exposition: shared.exposition.clone(),
            tasks: TaskTracker::new(),
            series: RefCell::default(),
        }
    }

    /// Whether sessions decide.
    pub fn is_sticky(&self) -> bool {
        self.strategy == Strategy::StickySessions
    }

    /// The latest pool.
    pub fn pool(&self) -> Arc<Pool> {
        self.pool.borrow_mut().load().clone()
    }

    /// Picks from the latest pool: a request that is tried again sees what has changed meanwhile.
    pub fn pick(&self, session: Option<&str>, tried: &[u64]) -> Option<Arc<Endpoint>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut cache = self.pool.borrow_mut();
        let pool = cache.load();
        picker::pick(self.strategy, pool, turn, session, tried).map(|entry| entry.endpoint.clone())
    }

    /// For a request that failed everywhere in the rotation: whoever else might answer it.
    pub fn spare(&self, tried: &[u64]) -> Option<Arc<Endpoint>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut cache = self.pool.borrow_mut();
        picker::spare(cache.load(), turn, tried).map(|entry| entry.endpoint.clone())
    }

    /// Counts a finished request.
    pub fn measure(
        &self,
        route: &str,
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
            .entry((key, method, status))
            .or_insert_with(|| self.metrics.request(route, method, status, backend));
        if let Some(series) = series {
            series.duration.observe(took.as_secs_f64());
            series.total.inc();
        }
    }
}

/// Serves `listener` until `stop`, then lets what is in flight finish until `cut`. Blocks the thread.
pub fn run(
    listener: std::net::TcpListener,
    shared: &Shared,
    connections_max: usize,
    stop: CancellationToken,
    cut: CancellationToken,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let worker = Rc::new(Worker::new(shared));
    let ended = tokio::task::LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::from_std(listener)?;
        let sweeper = tokio::task::spawn_local(sweep(worker.clone()));
        serve(&worker, listener, connections_max, &stop).await;
        worker.tasks.close();
        tokio::select! {
            () = worker.tasks.wait() => {}
            () = cut.cancelled() => warn!(tasks = worker.tasks.len(), "cut off what was still in flight"),
        }
        sweeper.abort();
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
        worker.upstreams.sweep(&worker.pool());
    }
}

/// Accepts until `stop`, and then what has already been accepted by the kernel: those clients believe that they
/// are connected.
async fn serve(worker: &Rc<Worker>, listener: TcpListener, connections_max: usize, stop: &CancellationToken) {
    let permits = Arc::new(Semaphore::new(connections_max));
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
            Ok((stream, peer)) => start(worker, stream, peer, permit, stop),
            Err(error) => {
                debug!(%error, "cannot accept");
                worker.upstreams.sweep(&worker.pool());
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    if let Err(error) = drain(worker, listener, &permits, stop) {
        debug!(%error, "cannot accept what was waiting");
    }
}

/// Accepts what waits in the kernel. Asks the kernel itself: the runtime may not have heard of all of it yet.
fn drain(
    worker: &Rc<Worker>,
    listener: TcpListener,
    permits: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> std::io::Result<()> {
    let listener = listener.into_std()?;
    while let Ok(permit) = permits.clone().try_acquire_owned() {
        let (stream, peer) = match listener.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            accepted => accepted?,
        };
        stream.set_nonblocking(true)?;
        start(worker, TcpStream::from_std(stream)?, peer, permit, stop);
    }
    Ok(())
}

fn start(
    worker: &Rc<Worker>,
    stream: TcpStream,
    peer: SocketAddr,
    permit: tokio::sync::OwnedSemaphorePermit,
    stop: &CancellationToken,
) {
    let (served, stop) = (worker.clone(), stop.clone());
    worker.tasks.spawn_local(async move {
        served.metrics.connections.inc();
        // Counts down on a panic, too.
        let _open = Open(served.metrics.connections.clone(), permit);
        connection(served, stream, peer, stop).await;
    });
}

struct Open(prometheus::IntGauge, #[allow(dead_code)] tokio::sync::OwnedSemaphorePermit);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

async fn connection(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr, stop: CancellationToken) {
    // Failing to switch off Nagle's algorithm costs latency, nothing else.
    let _ = stream.set_nodelay(true);
    let patience = Patience { head: worker.limits.header_timeout, write: worker.limits.body_idle };
    let (socket, phase) = Socket::new(stream, patience);
    let last_call = last_call(stop, phase.clone());
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(worker.limits.keep_alive)
        .max_header_size(worker.limits.buffer_bytes_max)
        .max_buf_size(worker.limits.buffer_bytes_max);
    let service = service_fn(move |request| {
        let (worker, phase) = (worker.clone(), phase.clone());
        async move { Ok::<_, std::convert::Infallible>(exchange::serve(worker, phase, peer.ip(), request).await) }
    });
    let connection = builder.serve_connection(TokioIo::new(socket), service).with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = last_call => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%peer, %error, "connection ended");
    }
}

/// Returns when a connection may be told to end: after `stop`, once no head is being waited for or for
/// [`LAST_CALL`] at most. Has to be polled after the connection, by the same task, to see what that has read.
async fn last_call(stop: CancellationToken, phase: Phase) {
    stop.cancelled().await;
    let over = tokio::time::sleep(LAST_CALL);
    tokio::pin!(over);
    std::future::poll_fn(|cx| match phase.is_reading_head() {
        true => over.as_mut().poll(cx),
        false => Poll::Ready(()),
    })
    .await;
}
