//! The composition root: builds every part once, starts the threads, and owns shutdown.
//!
//! Threads: one per worker, and this one, which becomes the control thread (discovery, probes, admin, signals).
//! Shutdown in this order: not ready → accept no more → finish what is in flight until the grace ends → exit.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::access::Log;
use crate::admin::Admin;
use crate::config::{Args, Loaded, Reloader, Task};
use crate::control::probe::Prober;
use crate::control::store::Store;
use crate::control::{Control, Parts};
use crate::metrics::Metrics;
use crate::pool::Gate;
use crate::table::Table;
use crate::trace::export::Exporter;
use crate::{proxy, report, trace};

/// A configuration that cannot be used, as sysexits(3) has it.
const EXIT_CONFIG: u8 = 78;

/// For the last spans, and for the last lines of the access log, once everything else is done.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Between looks at the files of certificates.
const CERTIFICATES_LOOKED_AT: Duration = Duration::from_secs(1);

/// Runs the balancer until a signal ends it. Returns 0 after a clean stop, 78 for a configuration that cannot
/// be used, 1 for anything else.
pub fn main(args: Args) -> ExitCode {
    let loaded = match args.task() {
        Ok(Task::Run(loaded)) => loaded,
        Ok(Task::Checked(file, config)) => {
            if let Err(error) = config.listeners.iter().try_for_each(proxy::check) {
                eprintln!("error: {:#}", anyhow::Error::from(error));
                return ExitCode::from(EXIT_CONFIG);
            }
            println!("{} is good\n{config}", file.display());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(tracing::Level::INFO)
        .try_init();
    for warning in &loaded.config.warnings {
        warn!("{warning}");
    }
    match run(&loaded) {
        Ok(code) => code,
        Err(cause) => {
            error!("{cause:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(loaded: &Loaded) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(control_thread(loaded));
    // Probes and the disk may still be at it; nothing depends on them.
    runtime.shutdown_background();
    code
}

async fn control_thread(loaded: &Loaded) -> anyhow::Result<ExitCode> {
    let config = &loaded.config;
    let mut signals = Signals::new()?;
    let listeners = config.listeners.iter().map(|listener| proxy::listen(listener, config.workers));
    let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
    let addresses = listeners.iter().zip(&config.listeners);
    let addresses: Vec<String> =
        addresses.map(|(bound, listener)| format!("{}://{}", listener.scheme(), bound.address)).collect();
    let certificates: Vec<_> = listeners.iter().filter_map(proxy::Bound::certificates).collect();
    let admin_listener = tokio::net::TcpListener::bind(config.admin)
        .await
        .with_context(|| format!("cannot listen on {} for admin", config.admin))?;
    let admin_address = admin_listener.local_addr()?;

    let metrics = Arc::new(Metrics::new());
    let routes = config.routes.clone();
    let table = Arc::new(ArcSwap::from_pointee(Table::empty(routes.clone())));
    let (to_routes, routes) = tokio::sync::watch::channel(routes);
    let reloader = Arc::new(Reloader::new(loaded, to_routes, metrics.clone()));
    reload_on_hangup(reloader.clone())?;
    let (reporter, reports) = report::channel(metrics.reports_dropped.clone());
    let client = flux::Client::builder(config.registry.clone())
        .name(config.name.clone())
        .metrics(metrics.registry())
        .build()
        .context("cannot use the registry's URLs")?;
    let gate = Arc::new(Gate::default());
    let store = config.state_dir.as_ref().map(|dir| Store::open(dir, &config.name)).transpose();
    let control = Control::new(Parts {
        policy: config.health.clone(),
        watch: client.watch(None),
        reports,
        prober: Prober {
            timeout: config.probe_timeout,
            method: config.probe_method,
            statuses: config.probe_statuses.clone(),
        },
        store: store.context("cannot use the state directory")?,
        table: table.clone(),
        routes,
        gate: gate.clone(),
        metrics: metrics.clone(),
    });
    let turn = Arc::new(AtomicUsize::new(0));
    let admin = Arc::new(Admin {
        turn: turn.clone(),
        name: config.name.clone(),
        strategy: config.picking.strategy,
        table: table.clone(),
        catalog: control.catalog(),
        metrics: metrics.clone(),
        started: Instant::now(),
        reloader: reloader.clone(),
        drain: CancellationToken::new(),
        drain_grace: config.limits.drain_grace,
        draining: AtomicBool::new(false),
    });
    let log = config.access_log.as_ref().map(|sink| Log::start(sink, metrics.access_log_dropped.clone()));
    let log = log.transpose().context("cannot open the access log")?;
    let reopening = log.as_ref().map(reopen_on_hangup).transpose()?;
    let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
    let exported = CancellationToken::new();
    let (tracer, exporter) = match &config.tracing {
        None => (None, None),
        Some(settings) => {
            let (tracer, spans) = trace::channel(settings, metrics.spans_dropped.clone());
            let exporter = Exporter::new(settings, &config.name, spans, metrics.spans_dropped.clone());
            (Some(tracer), Some(tokio::spawn(exporter.run(exported.clone()))))
        }
    };
    let (exposition, catalog) = (admin.clone(), admin.catalog.clone());
    let shared = proxy::Shared {
        table,
        turn: turn.clone(),
        gate,
        limits: config.limits.clone(),
        reporter,
        metrics: metrics.clone(),
        exposition: Arc::new(move || exposition.exposition()),
        telling: config.telling,
        age: Arc::new(move || catalog.age()),
        access: log.as_ref().map(Log::pens),
        tracer,
    };
    let workers = Workers::new(proxy::spawn(listeners, config.workers, &shared, &stop, &cut)?);
    let done = CancellationToken::new();
    let control = tokio::spawn(control.run(done.clone()));
    tokio::spawn(admin.clone().serve(admin_listener));
    tokio::spawn(keep_up(certificates, metrics));
    tokio::spawn(async move { reloader.watch().await });
    info!(
        name = config.name,
        http = %addresses.join(","),
        admin = %format_args!("http://{admin_address}"),
        strategy = config.picking.strategy.name(),
        workers = config.workers,
        registry = config.registry.join(","),
        "listening"
    );

    let mut may_ask_again = false;
    tokio::select! {
        name = signals.next() => info!(signal = name, grace = ?config.limits.drain_grace, "draining"),
        () = admin.drain.cancelled() => may_ask_again = true,
        () = stop.cancelled() => anyhow::bail!("a worker ended unasked"),
    }
    admin.draining.store(true, Ordering::Relaxed);
    stop.cancel();
    let insists = async {
        // An orchestrator's hook asks by the API, and then comes the signal that would have come anyway.
        if may_ask_again {
            info!(signal = signals.next().await, "draining already");
        }
        signals.next().await
    };
    tokio::select! {
        () = workers.ended() => {}
        () = tokio::time::sleep(config.limits.drain_grace) => {
            cut.cancel();
            workers.ended().await;
        }
        name = insists => {
            warn!(signal = name, "stopping at once");
            return Ok(ExitCode::FAILURE);
        }
    }
    done.cancel();
    let _ = control.await;
    drop(shared);
    exported.cancel();
    if let Some(exporter) = exporter
        && tokio::time::timeout(LAST_WORDS, exporter).await.is_err()
    {
        warn!("the collector takes no spans; the last ones are lost");
    }
    if let (Some(log), Some(reopening)) = (log, reopening) {
        reopening.abort();
        let _ = reopening.await;
        log.close(LAST_WORDS).await;
    }
    info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// SIGHUP: the configuration may have changed.
fn reload_on_hangup(reloader: Arc<Reloader>) -> std::io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            // What is wrong has been told.
            let _ = reloader.reload();
        }
    });
    Ok(())
}

/// SIGHUP: somebody may have moved the access log away.
fn reopen_on_hangup(log: &Log) -> std::io::Result<tokio::task::JoinHandle<()>> {
    let (mut hangup, reopen) = (signal(SignalKind::hangup())?, log.reopener());
    Ok(tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reopen();
        }
    }))
}

/// Loads certificates anew when their files change.
async fn keep_up(certificates: Vec<Arc<proxy::Certificates>>, metrics: Arc<Metrics>) {
    let mut stamps: Vec<_> = certificates.iter().map(|c| c.stamp()).collect();
    let mut ticks = tokio::time::interval(CERTIFICATES_LOOKED_AT);
    while !certificates.is_empty() {
        ticks.tick().await;
        for (certificates, stamp) in certificates.iter().zip(&mut stamps) {
            let now = certificates.stamp();
            if *stamp == now {
                continue;
            }
            *stamp = now;
            let result = match certificates.reload() {
                Ok(()) => {
                    info!("certificates loaded anew");
                    "done"
                }
                Err(error) => {
                    warn!(%error, "a changed certificate cannot be used; the one before stays in force");
                    "failed"
                }
            };
            metrics.tls_reloads.with_label_values(&[result]).inc();
        }
    }
}

/// The signals that end a process politely.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// The worker threads, joined by a thread of their own so that the control thread can wait without blocking.
struct Workers {
    ended: CancellationToken,
}

impl Workers {
    fn new(threads: Vec<JoinHandle<std::io::Result<()>>>) -> Workers {
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        std::thread::spawn(move || {
            let _guard = guard;
            for thread in threads {
                match thread.join() {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => error!(%error, "a worker failed"),
                    Err(_) => error!("a worker panicked"),
                }
            }
        });
        Workers { ended }
    }

    /// Returns once all have ended.
    async fn ended(&self) {
        self.ended.cancelled().await;
    }
}
