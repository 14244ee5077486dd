//! The shell: starts a cluster, lets clients, watchers and faults loose on it, and has the files judged.
//!
//! A run has four phases: warm-up without faults, the faults, a quiet time in which everything must come right, and
//! final calls that must all succeed. What is decided is decided in `plan` and `judge`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use cluster::{Cluster, Kind, Options, Ports, ProcessSpec};
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::evidence::{CLUSTER, Evidence};
use crate::history::{Consistency, F, FORMAT, Gates, Header};
use crate::judge::Report;
use crate::plan::nemesis::{Fault, schedule};
use crate::plan::workload::{Keeper, Mixed, TTL_FOREVER};
use crate::plan::{self};

mod clients;
mod door;
mod faults;
pub mod power;
mod recorder;
mod rest;
mod watchers;

use clients::Client;
use door::Door;
use recorder::{HISTORY, Recorder};
use rest::Rest;

/// What to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Everything random comes from it.
    pub seed: u64,
    /// How long faults go on.
    pub time_limit: Duration,
    /// How many nodes.
    pub nodes: usize,
    /// An empty or new directory for everything that the run writes.
    pub dir: PathBuf,
    /// The commit that is tested, for the header.
    pub git: String,
    /// The command line, for the header.
    pub argv: Vec<String>,
    /// The program that has the nodes' role: nothing for the running one.
    pub exe: Option<PathBuf>,
}

/// Traffic before the first fault: what the traffic gate measures.
const WARM_UP: Duration = Duration::from_millis(2_500);
/// After the last heal. Longer than an abandoned lease may last then: failover, re-armed at TTL + TTL / 3 + election
/// time-out, then the slack of promise E2; so that every lease is judged.
const QUIET: Duration = Duration::from_millis(10_500);
/// Clients of one node, and through flux, that write and read.
const MIXED_PER_NODE: usize = 2;
const MIXED_FLUX: usize = 4;
/// Clients that keep leases, through flux. Few enough that a mass expiry is never suspected.
const KEEPERS: usize = 6;
/// Watchers of everything through flux, beside one of each node and one of a single service.
const WATCHERS_FLUX: usize = 2;
/// A call that takes longer has an unknown outcome.
const CALL_TIMEOUT: Duration = Duration::from_millis(1_000);
/// Short of the time between two heartbeats of a lease, so that one stuck attempt costs one beat.
const BEAT_TIMEOUT: Duration = Duration::from_millis(800);
/// Final calls must succeed: they get the time that any client would give.
const FINAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Who leads is asked of nodes that should answer at once.
const LOOK_TIMEOUT: Duration = Duration::from_millis(300);
/// The first snapshots of all watchers.
const WATCHERS_WITHIN: Duration = Duration::from_secs(20);
/// All nodes are ready again after the last heal.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Small, so that snapshots and purges happen all the time, and a node that was away is sent one.
const NODE_ARGS: [&str; 4] = ["--snapshot-every", "400", "--log-keep", "200"];

/// Gates: see `Gates`. On a machine with two busy cores a healthy run stays well clear of all of them.
const CALLS_PER_SECOND_MIN: u64 = 100;
const UNKNOWN_PERCENT_MAX: u64 = 5;
const OK_PERCENT_MIN: u64 = 20;
const UNCOVERED_PERCENT_MAX: u64 = 20;

/// Runs and judges. The files in the directory stay, whatever comes of it.
pub async fn run(settings: &Settings) -> anyhow::Result<Report> {
    std::fs::create_dir_all(&settings.dir)
        .with_context(|| format!("cannot create {}", settings.dir.display()))?;
    let history = settings.dir.join(HISTORY);
    anyhow::ensure!(!history.exists(), "{} exists already; choose another directory", history.display());
    let cluster = launch(settings).await.context("the cluster did not start")?;
    let nodes = node_urls(&cluster)?;
    let faults = schedule(settings.seed, settings.nodes, settings.time_limit);
    let recorder = Recorder::begin(&settings.dir, &header(settings, &nodes, &faults))?;

    let disturbed = drive(settings, &cluster, &nodes, &faults, &recorder).await;
    recorder.flush()?;
    let stopped = cluster.shutdown().await;

    let mut report = Evidence::read(&history)?.judge()?;
    report.gates.extend(disturbed.err().map(|error| format!("{error:#}")));
    report.gates.extend(stopped.err().map(|error| format!("the cluster did not stop: {error}")));
    let results = serde_json::to_vec_pretty(&report).context("a report is plain data")?;
    std::fs::write(settings.dir.join("results.json"), results)?;
    Ok(report)
}

async fn launch(settings: &Settings) -> Result<Cluster, cluster::Error> {
    Cluster::launch(Options {
        nodes: settings.nodes,
        balancers: 0,
        backends: 0,
        dir: Some(settings.dir.join(CLUSTER)),
        ports: Ports::Free,
        node_args: NODE_ARGS.map(str::to_owned).to_vec(),
        exe: settings.exe.clone(),
        ready_within: READY_WITHIN,
        ..Options::default()
    })
    .await
}

/// Names and REST addresses.
fn node_urls(cluster: &Cluster) -> Result<Vec<(String, String)>, cluster::Error> {
    Ok(node_urls_of(&cluster.specs()?))
}

fn node_urls_of(specs: &[ProcessSpec]) -> Vec<(String, String)> {
    let url = |spec: &ProcessSpec| match &spec.kind {
        Kind::Node { rest, .. } => Some((spec.name.clone(), rest.clone())),
        _ => None,
    };
    specs.iter().filter_map(url).collect()
}

fn header(settings: &Settings, nodes: &[(String, String)], faults: &[Fault]) -> Header {
    let mut required: Vec<String> = faults.iter().map(Fault::name).collect();
    required.sort();
    required.dedup();
    Header {
        format: FORMAT.into(),
        seed: settings.seed,
        nodes: nodes.iter().map(|(name, _)| name.clone()).collect(),
        git: settings.git.clone(),
        argv: settings.argv.clone(),
        start: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        gates: Gates {
            faults: required,
            calls_per_second_min: CALLS_PER_SECOND_MIN,
            unknown_percent_max: UNKNOWN_PERCENT_MAX,
            ok_percent_min: OK_PERCENT_MIN,
            calls: vec![F::Register, F::Cas, F::Deregister, F::Renew, F::Read, F::List],
            uncovered_percent_max: UNCOVERED_PERCENT_MAX,
            final_reads: true,
        },
    }
}

/// All four phases. An error is trouble that kept the run from its plan; the history up to there is judged anyway.
async fn drive(
    settings: &Settings,
    cluster: &Cluster,
    nodes: &[(String, String)],
    faults: &[Fault],
    recorder: &Recorder,
) -> anyhow::Result<()> {
    let (tasks, watching) = (TaskTracker::new(), TaskTracker::new());
    let (stop_mixing, last_orders, stop) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let taped = watch_all(nodes, recorder, &watching, &stop).await?;
    mix_all(settings.seed, nodes, recorder, &tasks, &stop_mixing)?;
    keep_all(settings.seed, nodes, recorder, &tasks, (&last_orders, &stop))?;

    info!("warming up");
    tokio::time::sleep(WARM_UP).await;
    let look = nodes.iter().map(|(name, rest)| (name.clone(), Rest::new(rest, LOOK_TIMEOUT))).collect();
    let rng = plan::rng(settings.seed, "whom");
    let broken = faults::Nemesis::new(cluster, recorder, look, rng).run(faults, settings.time_limit).await;
    info!("all healed; quiet");
    stop_mixing.cancel();
    last_orders.cancel();
    let names: Vec<&str> = nodes.iter().map(|(name, _)| name.as_str()).collect();
    let settled = cluster.wait_ready_of(&names);
    let (settled, ()) = tokio::join!(settled, tokio::time::sleep(QUIET));

    let last = match &settled {
        Ok(()) => final_calls(settings.seed, nodes, recorder).await,
        Err(_) => Ok(()),
    };
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    watching.close();
    watching.wait().await;
    broken.context("a fault could not be installed or healed")?;
    settled.context("not all nodes came back")?;
    last?;
    for tape in join_all(taped).await {
        tape.context("a watcher panicked")?.context("a transcript could not be written")?;
    }
    Ok(())
}

type Taped = tokio::task::JoinHandle<std::io::Result<()>>;

/// Starts all watchers and waits for their first snapshots: the log must begin before the first write.
async fn watch_all(
    nodes: &[(String, String)],
    recorder: &Recorder,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<Taped>> {
    let urls: Vec<String> = nodes.iter().map(|(_, rest)| rest.clone()).collect();
    let mut taped = Vec::new();
    let mut positions = Vec::new();
    for (name, rest) in nodes {
        let tape = recorder.tape(name, None, vec![rest.clone()])?;
        let (position, seen) = watch::channel(None);
        let node = Rest::new(rest, CALL_TIMEOUT);
        taped.push(tasks.spawn(watchers::through_node(node, tape, position, stop.clone())));
        positions.push((name.clone(), seen));
    }
    let services = std::iter::repeat_n(None, WATCHERS_FLUX).chain([Some(crate::judge::linear::SERVICE)]);
    for (number, service) in services.enumerate() {
        let id = format!("flux-{}", number + 1);
        let tape = recorder.tape(&id, service, urls.clone())?;
        let (position, seen) = watch::channel(None);
        let client = flux::Client::builder(urls.clone()).name(&id).build()?;
        taped.push(tasks.spawn(watchers::through_flux(client.watch(service), tape, position, stop.clone())));
        positions.push((id, seen));
    }
    for (id, mut seen) in positions {
        let first = timeout(WATCHERS_WITHIN, seen.wait_for(Option::is_some)).await;
        first.with_context(|| format!("watcher {id} has no snapshot after {WATCHERS_WITHIN:?}"))??;
    }
    Ok(taped)
}

fn mix_all(
    seed: u64,
    nodes: &[(String, String)],
    recorder: &Recorder,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut number = 0;
    let mut start = |door: Door, node: Option<&str>| {
        number += 1;
        let client = Client::new(door, recorder, format!("mixed-{number}"), node.map(str::to_owned));
        tasks.spawn(clients::mix(client, Mixed::new(seed, number, node.is_some()), stop.clone()));
    };
    for (name, rest) in nodes {
        for _ in 0..MIXED_PER_NODE {
            start(Door::Node(Rest::new(rest, CALL_TIMEOUT).into()), Some(name));
        }
    }
    for _ in 0..MIXED_FLUX {
        start(flux_door(nodes, CALL_TIMEOUT)?, None);
    }
    Ok(())
}

fn keep_all(
    seed: u64,
    nodes: &[(String, String)],
    recorder: &Recorder,
    tasks: &TaskTracker,
    (last_orders, stop): (&CancellationToken, &CancellationToken),
) -> anyhow::Result<()> {
    // Numbers go on where those of any mixed clients end: values are made of them.
    let first = (nodes.len() * MIXED_PER_NODE + MIXED_FLUX) as u64 + 1;
    for number in (first..).take(KEEPERS) {
        let client = Client::new(flux_door(nodes, BEAT_TIMEOUT)?, recorder, format!("keeper-{number}"), None);
        let plan = Keeper::new(seed, number);
        tasks.spawn(clients::keep(client, plan, last_orders.clone(), stop.clone()));
    }
    Ok(())
}

/// Every node takes a write and answers linearizable reads of it and of everything; so does flux.
async fn final_calls(seed: u64, nodes: &[(String, String)], recorder: &Recorder) -> anyhow::Result<()> {
    let mut doors: Vec<(Door, Option<&str>)> = vec![(flux_door(nodes, FINAL_TIMEOUT)?, None)];
    doors.extend(nodes.iter().map(|(name, rest)| {
        let door = Door::Node(Rest::new(rest, FINAL_TIMEOUT).into());
        (door, Some(name.as_str()))
    }));
    info!(seed, "final calls");
    for (number, (door, node)) in doors.into_iter().enumerate() {
        let name = format!("final-{}", node.unwrap_or("flux"));
        let mut client = Client::new(door, recorder, name, node.map(str::to_owned)).last();
        let key = format!("final-{number}");
        client.register(&key, number as u64 + 1, TTL_FOREVER).await;
        client.read(&key).await;
        client.list(None, Consistency::Linearizable).await;
        client.deregister(&key, None).await;
        client.list(None, Consistency::Linearizable).await;
    }
    Ok(())
}

fn flux_door(nodes: &[(String, String)], call_timeout: Duration) -> Result<Door, flux::Error> {
    let urls = nodes.iter().map(|(_, rest)| rest.clone());
    flux::Client::builder(urls).call_timeout(call_timeout).name("jepsen").build().map(Door::Flux)
}

/// The directory of a run that was given none: below the temporary directory, by seed and process.
pub fn temporary_dir(seed: u64) -> PathBuf {
    std::env::temp_dir().join(format!("jepsen-{seed}-{}", std::process::id()))
}

/// Where the history of a run in `dir` is.
pub fn history_of(dir: &Path) -> PathBuf {
    dir.join(HISTORY)
}
