//! The composition root: opens the store, finds the cluster, serves, and stops in order.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    runtime,
    signal::unix::{SignalKind, signal},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, level_filters::LevelFilter, warn};
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    api,
    config::{Args, Command, Config, Limits},
    consensus::{Consensus, Parts, PeerServer, StartError, identity_in, over_tcp, sound},
    lease::Keeper,
    metrics::Metrics,
    offline,
    registry::Registry,
    storage::{self, Recovered, Space, Store},
    watch::Hub,
};

/// Exit codes, as `sysexits.h` has them, so that a supervisor can tell "start me again" from "look at me".
const EX_USAGE: u8 = 64;
const EX_IOERR: i32 = 74;
const EX_CONFIG: u8 = 78;

/// Open files for the store, the peers and the process itself.
const FILES_RESERVED: usize = 256;
/// What a process may open where nothing says otherwise.
const FILES_ASSUMED: usize = 1_024;

/// How often the room on the disk is looked after; a ballast that is needed again is back within it.
const TEND_EVERY: Duration = Duration::from_secs(1);

/// How long open calls may take to finish once the node stops.
const GRACE: Duration = Duration::from_secs(5);

/// Runs a node, or the command that is asked for instead. A node runs until SIGTERM or SIGINT; a second signal ends it at once.
pub fn main(args: Args) -> ExitCode {
    match &args.command {
        Some(Command::Inspect(inspect)) => return offline::inspect(inspect),
        Some(Command::Recover(recover)) => return offline::recover(recover),
        None => {}
    }
    let threads = args.worker_threads();
    let config = match args.check() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("registry-node: {error}");
            return ExitCode::from(EX_USAGE);
        }
    };
    log_to_stderr();
    let mut runtime = runtime::Builder::new_multi_thread();
    let runtime = match runtime.worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    // On a worker as well: whatever wakes it there wakes no other thread.
    let outcome = runtime.block_on(runtime.spawn(run(config))).unwrap_or_else(|panic| Err(panic.into()));
    runtime.shutdown_timeout(GRACE);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("registry-node: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// openraft tells every step at `info`, and every heartbeat that a stopped peer misses at `warn`: neither is for
/// people. A program that embeds this one may have set up its own log.
fn log_to_stderr() {
    let levels = Targets::new().with_default(LevelFilter::INFO).with_target("openraft", LevelFilter::ERROR);
    let lines =
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let _ = tracing_subscriber::registry().with(lines.with_filter(levels)).try_init();
}

/// What a supervisor should make of it: 78 if starting again can only fail again, 74 if the disk fails.
fn exit_code(error: &anyhow::Error) -> u8 {
    let start = error.downcast_ref::<StartError>();
    match (error.downcast_ref::<storage::Error>(), start) {
        (Some(storage::Error::Io { .. }), _) => EX_IOERR as u8,
        (Some(_), _) | (_, Some(StartError::Bootstrap(_) | StartError::Damaged { .. })) => EX_CONFIG,
        _ => 1,
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    tokio::spawn(stop_on_signal(stop.clone()));
    let listen = async |what, at| {
        TcpListener::bind(at).await.with_context(|| format!("cannot listen on {at} for {what}"))
    };
    let peer = listen("peers", config.peer).await?;

    let metrics = Arc::new(Metrics::new());
    let space = Space::of(&config.dir, config.disk_free_min, config.ballast)
        .map_err(|source| storage::Error::Io { dir: config.dir.clone(), source })?;
    let (store, recovered) = Store::open(&config.dir, &sound, metrics.clone(), end_the_process)?;
    let store = store.within(space.clone());
    tracker.spawn(tend(space, stop.clone()));
    let server = peer_server(&config, &store, &recovered)?;
    let peers_stop = CancellationToken::new();
    server.serve(peer, &tracker, peers_stop.clone())?;

    let hub = Hub::new(config.limits.watchers_max);
    let parts = Parts {
        config: &config,
        store,
        recovered,
        hub: hub.clone(),
        dial: over_tcp(),
        server: &server,
        tracker: &tracker,
    };
    let consensus = tokio::select! {
        started = Consensus::start(parts) => started?,
        () = stop.cancelled() => return Ok(()),
    };
    let (keeper, queue) = Keeper::new(consensus.clone(), hub.clone(), metrics.clone());
    tracker.spawn(keeper.clone().run(queue, peers_stop.clone(), tracker.clone()));
    let forwarded = keeper.clone();
    server.open_leases(Box::new(move |beats| {
        let keeper = forwarded.clone();
        Box::pin(async move { keeper.renew_here(&beats, tokio::time::Instant::now() + GRACE).await })
    }));

    let limits = Arc::new(within_descriptors(config.limits.clone()));
    let registry = Registry::new(consensus.clone(), hub, keeper, limits.clone());
    // Only now: a client that cannot connect asks another node at once.
    let (rest, grpc) = (listen("REST", config.rest).await?, listen("gRPC", config.grpc).await?);
    let router = api::router(registry, metrics, limits.clone());
    info!(node = config.id, rest = %config.rest, grpc = %config.grpc, peer = %config.peer, cluster = %consensus.cluster_id(), "started");
    let clients = TaskTracker::new();
    for listener in [rest, grpc] {
        clients.spawn(api::serve(listener, router.clone(), limits.clone(), stop.clone(), clients.clone()));
    }

    tokio::select! {
        () = stop.cancelled() => {}
        () = consensus.failed() => anyhow::bail!("consensus has failed: see the log"),
    }
    info!("stopping");
    // First the lead moves on, while forwarded calls can still be answered; then clients finish what is open.
    consensus.hand_over().await;
    clients.close();
    let _ = tokio::time::timeout(GRACE, clients.wait()).await; // streams end with their connections
    consensus.stop().await;
    peers_stop.cancel();
    Ok(())
}

/// Raises the process's limit of open files as far as it may, and keeps the clients' share of it below what the
/// store and the peers need.
fn within_descriptors(limits: Limits) -> Limits {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(usize::try_from(hard).unwrap_or(usize::MAX))
    });
    let files = raised.unwrap_or(FILES_ASSUMED);
    // Two client ports.
    let each = files.saturating_sub(FILES_RESERVED) / 2;
    if each < limits.connections_max {
        warn!(
            files,
            connections = each,
            "the limit of open files bounds the connections of each client port"
        );
    }
    Limits { connections_max: limits.connections_max.min(each.max(1)), ..limits }
}

/// Watches over the room on the disk until the node stops.
async fn tend(space: Space, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let space = space.clone();
        let _ = tokio::task::spawn_blocking(move || space.tend()).await; // a slow disk must hold up nobody else
        let _ = tokio::time::timeout(TEND_EVERY, stop.cancelled()).await;
    }
}

fn peer_server(config: &Config, store: &Store, recovered: &Recovered) -> Result<PeerServer, StartError> {
    let identity =
        identity_in(recovered).map_err(|what| StartError::Damaged { dir: config.dir.clone(), what })?;
    let initialised = recovered.vote.is_some() || !recovered.log.is_empty() || recovered.quarantine.is_some();
    Ok(PeerServer::new(config, store.clone(), identity, initialised))
}

/// A failed sync cannot be repeated: what the kernel has dropped it reports once. Only a new start can tell what
/// is on disk.
fn end_the_process(error: &io::Error) {
    error!(%error, "the store cannot be written: ending the process");
    std::process::exit(EX_IOERR);
}

async fn stop_on_signal(stop: CancellationToken) {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return error!("signals cannot be handled: only kill ends this process");
    };
    for first in [true, false] {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        if first {
            stop.cancel();
        }
    }
    std::process::exit(130);
}
