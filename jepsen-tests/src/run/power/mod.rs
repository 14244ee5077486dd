//! Power cuts: nodes on disks of their own lose them without warning, come back, and must know all that they acknowledged.
//!
//! A cluster of real processes runs with each node's directory on its own loop-mounted file system. Writers register,
//! overwrite and deregister through every node. At a moment of the plan the disks stop without flushing, the nodes
//! are killed, the file systems are mounted again (their journals replayed) and the nodes started; then every node must show
//! every acknowledged write at its revision, nothing that nobody asked for, and no older revision. The cluster lives on for the
//! next cut. Before the first, every disk proves that a cut loses what was not synced.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cluster::{Cluster, Kind, Options, Ports, ProcessSpec};
use futures_util::future::{join_all, try_join_all};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::door::{Door, Write};
use super::rest::Rest;
use crate::evidence::CLUSTER;
use crate::history::{Consistency, Entry};
use crate::judge::ledger::{Held, Ledger};
use crate::plan::cuts::{Cut, Fs, Mode, Rig, plan};
use crate::plan::workload::TTL_FOREVER;
use crate::plan::{self};

mod disk;

use disk::Disk;

/// What to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Everything random comes from it.
    pub seed: u64,
    /// Power cuts in all.
    pub cycles: usize,
    /// The file systems to cut; they run side by side.
    pub fs: Vec<Fs>,
    /// Only clusters of one node, or of three; both if none.
    pub nodes: Option<usize>,
    /// The nodes' `fsync` and `fdatasync` do nothing, and the run must lose something: it proves that the others would see it.
    pub drop_syncs: bool,
    /// An empty or new directory for everything that the run writes.
    pub dir: PathBuf,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Cuts survived, by file system and mode.
    pub cuts: Vec<(Fs, Mode)>,
    /// Acknowledged writes.
    pub acked: u64,
    /// Writes whose outcome nobody was told.
    pub unknown: u64,
}

/// A rig that did not hold: what was lost, or what went wrong.
#[derive(Debug)]
struct Broken {
    rig: usize,
    violations: Vec<String>,
}

/// Writers of a node.
const WRITERS_PER_NODE: usize = 3;
/// A call that takes longer has an unknown outcome.
const CALL_TIMEOUT: Duration = Duration::from_millis(1_000);
/// A read after a cut must succeed: it gets the time that any client would give.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// All nodes are ready again after their power is back.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// The acknowledgements that a cut waits for. They take a fraction of a second; on a machine that is busy, several.
const TRAFFIC_WITHIN: Duration = Duration::from_secs(60);
const TRAFFIC_POLL: Duration = Duration::from_millis(2);
/// Acknowledged by the others while one node is dark, so that it comes back to a log that went on.
const ACKS_MEANWHILE: u64 = 60;
/// Between two tries of a writer whose node is away.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);
/// Small, so that snapshots and purges happen all the time; and elections as short as a busy machine allows.
const NODE_ARGS: [&str; 10] = [
    "--snapshot-every",
    "150",
    "--log-keep",
    "40",
    "--heartbeat-ms",
    "50",
    "--election-min-ms",
    "200",
    "--election-max-ms",
    "400",
];

/// Runs all cuts. Fails with everything that was lost; the directory stays, whatever comes of it.
pub async fn run(settings: &Settings) -> anyhow::Result<Tally> {
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "power cuts mount file systems: run this as root");
    std::fs::create_dir_all(&settings.dir)
        .with_context(|| format!("cannot create {}", settings.dir.display()))?;
    disk::sweep().context("cannot sweep what an earlier run left")?;
    let rigs = plan(settings.seed, settings.cycles, &settings.fs, settings.nodes);
    let planned = specs_of(settings, &rigs)?;
    let beside = settings.fs.iter().map(async |fs| {
        let mut tally = Tally::default();
        for (rig, specs) in planned.iter().filter(|(rig, _)| rig.fs == *fs) {
            tally.add(Bench::run(settings, rig, specs.clone()).await?);
        }
        anyhow::Ok(tally)
    });
    let survived = tokio::select! {
        survived = try_join_all(beside) => survived,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if !settings.drop_syncs {
        return Ok(survived?.into_iter().fold(Tally::default(), Tally::with));
    }
    match survived {
        Ok(_) => anyhow::bail!("no sync did anything, and nothing was found missing: the rig is blind"),
        Err(error) if error.downcast_ref::<Broken>().is_some() => {
            info!(%error, "found, as it must be");
            Ok(Tally::default())
        }
        Err(error) => Err(error),
    }
}

/// The processes of every rig. No two rigs have a port in common: one whose nodes are down must not lose theirs to
/// another that starts meanwhile.
fn specs_of<'a>(settings: &Settings, rigs: &'a [Rig]) -> anyhow::Result<Vec<(&'a Rig, Vec<ProcessSpec>)>> {
    let mut taken = HashSet::new();
    let mut planned = Vec::with_capacity(rigs.len());
    for rig in rigs {
        let options = options(rig, &dir_of(settings, rig));
        let specs = loop {
            let specs = Cluster::plan(&options, &dir_of(settings, rig).join(CLUSTER))?;
            let urls: Vec<String> = specs.iter().flat_map(urls_of).collect();
            if urls.iter().all(|url| !taken.contains(url)) {
                taken.extend(urls);
                break specs;
            }
        };
        planned.push((rig, specs));
    }
    Ok(planned)
}

fn urls_of(spec: &ProcessSpec) -> Vec<String> {
    match &spec.kind {
        Kind::Node { rest, grpc, peer, .. } => vec![rest.clone(), grpc.clone(), peer.clone()],
        _ => Vec::new(),
    }
}

fn dir_of(settings: &Settings, rig: &Rig) -> PathBuf {
    settings.dir.join(format!("rig-{}-{}-{}", rig.number, rig.fs, rig.nodes))
}

fn options(rig: &Rig, dir: &Path) -> Options {
    Options {
        nodes: rig.nodes,
        balancers: 0,
        backends: 0,
        dir: Some(dir.join(CLUSTER)),
        ports: Ports::Free,
        node_args: NODE_ARGS.map(str::to_owned).to_vec(),
        ready_within: READY_WITHIN,
        ..Options::default()
    }
}

/// A cluster on its disks, and the account of what it acknowledged.
struct Bench<'a> {
    rig: &'a Rig,
    seed: u64,
    // Dropped in this order: nobody has a file open when the disks go.
    cluster: Cluster,
    disks: Vec<Disk>,
    nodes: Vec<(String, String)>,
    book: Arc<Book>,
}

/// The account, and its story for whoever looks into a failure.
struct Book {
    ledger: Mutex<Ledger>,
    tape: Mutex<BufWriter<File>>,
    began: Instant,
}

impl<'a> Bench<'a> {
    async fn run(settings: &Settings, rig: &'a Rig, specs: Vec<ProcessSpec>) -> anyhow::Result<Tally> {
        let dir = dir_of(settings, rig);
        let place = || format!("rig {} ({} nodes on {})", rig.number, rig.nodes, rig.fs);
        let bench = Bench::start(settings, rig, specs, &dir).await.with_context(place)?;
        let mut survived = Ok(());
        for (number, cut) in rig.cuts.iter().enumerate() {
            survived = bench.cycle(number, cut).await;
            if survived.is_err() {
                break;
            }
        }
        let tally = bench.tally();
        let written = bench.book.tape().flush();
        let stopped = bench.cluster.shutdown().await;
        drop(bench.disks);
        survived.with_context(place)?;
        written?;
        stopped?;
        // What is left proves nothing any more.
        std::fs::remove_dir_all(&dir)?;
        Ok(tally)
    }

    async fn start(
        settings: &Settings,
        rig: &'a Rig,
        mut specs: Vec<ProcessSpec>,
        dir: &Path,
    ) -> anyhow::Result<Bench<'a>> {
        std::fs::create_dir_all(dir.join(CLUSTER))?;
        if settings.drop_syncs {
            specs.iter_mut().for_each(drop_syncs);
        }
        let made = specs.iter().map(|spec| Disk::make(rig.fs, dir, &spec.name, spec.dir.clone()));
        let disks = try_join_all(made).await?;
        try_join_all(disks.iter().map(Disk::prove)).await?;
        let nodes = super::node_urls_of(&specs);
        let cluster = Cluster::launch_specs(options(rig, dir), specs).await?;
        cluster.wait_ready().await?;
        let tape = BufWriter::new(File::create(dir.join("ledger.jsonl"))?);
        let book = Book { ledger: Mutex::default(), tape: Mutex::new(tape), began: Instant::now() };
        Ok(Bench { rig, seed: settings.seed, cluster, disks, nodes, book: Arc::new(book) })
    }

    async fn cycle(&self, number: usize, cut: &Cut) -> anyhow::Result<()> {
        let began = Instant::now();
        let stop = CancellationToken::new();
        let writers = self.write(number, &stop);
        let struck = self.strike(number, cut).await;
        stop.cancel();
        writers.join_all().await;
        struck?;
        let names: Vec<&str> = self.nodes.iter().map(|(name, _)| name.as_str()).collect();
        if let Err(error) = self.cluster.wait_ready_of(&names).await {
            return Err(self.broken(vec![format!("a node does not come back: {error}")]));
        }
        let wrong = self.judge().await?;
        anyhow::ensure!(wrong.is_empty(), self.broken(wrong));
        let (rig, acked, mode) = (self.rig.number, self.book.ledger().acked(), cut.mode);
        info!(rig, fs = %self.rig.fs, cut = number + 1, %mode, acked, took = ?began.elapsed(), "survived");
        Ok(())
    }

    fn broken(&self, violations: Vec<String>) -> anyhow::Error {
        self.book.note(json!({ "violations": violations }));
        Broken { rig: self.rig.number, violations }.into()
    }

    /// Starts the writers. Each has keys of its own, dealt anew for every cut.
    fn write(&self, number: usize, stop: &CancellationToken) -> JoinSet<()> {
        let mut hands: Vec<Vec<String>> = vec![Vec::new(); self.nodes.len() * WRITERS_PER_NODE];
        let writers = hands.len();
        for (at, key) in self.book.ledger().settled().into_iter().enumerate() {
            hands[at % writers].push(key);
        }
        let mut tasks = JoinSet::new();
        for (at, keys) in hands.into_iter().enumerate() {
            let (_, rest) = &self.nodes[at % self.nodes.len()];
            let name = format!("power-{number}-{at}");
            let draw = plan::rng(self.seed, &format!("rig {} {name}", self.rig.number));
            let door = Door::Node(Rest::new(rest, CALL_TIMEOUT).into());
            tasks.spawn(write(door, self.book.clone(), Hand { name, keys, made: 0, draw }, stop.clone()));
        }
        tasks
    }

    /// The cut itself, and everything up to the moment that all nodes are started again.
    async fn strike(&self, number: usize, cut: &Cut) -> anyhow::Result<()> {
        self.acks(cut.acks).await?;
        tokio::time::sleep(cut.after).await;
        let dark = cut.mode.dark(cut.node);
        let killed = if cut.mode == Mode::Minority { dark.clone() } else { (0..self.nodes.len()).collect() };
        self.book.note(json!({ "cut": number + 1, "mode": cut.mode.to_string(), "dark": dark }));
        for node in &dark {
            self.disks[*node].cut()?;
        }
        tokio::time::sleep(cut.limps).await;
        join_all(killed.iter().map(|node| self.kill(*node))).await.into_iter().collect::<Result<(), _>>()?;
        self.book.note(json!({ "killed": killed }));
        if cut.mode == Mode::Minority {
            self.acks(ACKS_MEANWHILE).await?;
        }
        try_join_all(dark.iter().map(|node| self.disks[*node].restore())).await?;
        for node in killed {
            self.cluster.start(&self.nodes[node].0).await?;
        }
        self.book.note(json!({ "started": true }));
        Ok(())
    }

    /// Waits for so many further acknowledgements: a cut with nothing to lose proves nothing.
    async fn acks(&self, more: u64) -> anyhow::Result<()> {
        let enough = self.book.ledger().acked() + more;
        let deadline = Instant::now() + TRAFFIC_WITHIN;
        while self.book.ledger().acked() < enough {
            let had = self.book.ledger().acked();
            anyhow::ensure!(
                Instant::now() < deadline,
                "{} of {more} writes were acknowledged within {TRAFFIC_WITHIN:?}",
                had + more - enough
            );
            tokio::time::sleep(TRAFFIC_POLL).await;
        }
        Ok(())
    }

    /// SIGKILL. A node that has found its disk gone and ended by itself is as dead.
    async fn kill(&self, node: usize) -> Result<(), cluster::Error> {
        match self.cluster.kill(&self.nodes[node].0).await {
            Err(cluster::Error::NotRunning { .. }) => Ok(()),
            other => other,
        }
    }

    /// Everything as every node shows it; and two that show the same revision show the same.
    async fn judge(&self) -> anyhow::Result<Vec<String>> {
        let mut wrong = Vec::new();
        let mut shown: Vec<(&str, u64, Vec<Entry>)> = Vec::new();
        for (name, rest) in &self.nodes {
            let node = Rest::new(rest, READ_TIMEOUT);
            let found = node.list(None, Consistency::Linearizable).await;
            let found =
                found.map_err(|trouble| anyhow::anyhow!("{name} cannot be read: {}", trouble.message))?;
            let revision = found.revision.context("a list names its revision")?;
            let mut entries = found.value;
            entries.sort_by(|one, other| one.0.cmp(&other.0));
            wrong.extend(self.book.ledger().judge(name, revision, &entries));
            shown.push((name, revision, entries));
        }
        for pair in shown.windows(2) {
            if pair[0].1 == pair[1].1 && pair[0].2 != pair[1].2 {
                wrong.push(format!("{} and {} differ at revision {}", pair[0].0, pair[1].0, pair[0].1));
            }
        }
        Ok(wrong)
    }

    fn tally(&self) -> Tally {
        let ledger = self.book.ledger();
        let cuts = self.rig.cuts.iter().map(|cut| (self.rig.fs, cut.mode)).collect();
        Tally { cuts, acked: ledger.acked(), unknown: ledger.unknown() }
    }
}

/// A writer's keys: its own until the next cut.
struct Hand {
    name: String,
    keys: Vec<String>,
    made: u64,
    draw: fastrand::Rng,
}

impl Hand {
    /// A key to write next: mostly one that has been written.
    fn draw(&mut self) -> String {
        if self.keys.is_empty() || self.draw.u8(..4) == 0 {
            self.made += 1;
            self.keys.push(format!("{}-{}", self.name, self.made));
        }
        self.keys.swap_remove(self.draw.usize(..self.keys.len()))
    }
}

/// Writes until `stop`; the call in hand is finished. A key whose call has no known outcome is put aside.
async fn write(door: Door, book: Arc<Book>, mut hand: Hand, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let key = hand.draw();
        let there = matches!(book.ledger().held(&key), Held::Value { .. });
        let value = (!there || hand.draw.u8(..4) != 0).then(|| book.ledger().value());
        book.ledger().ask(&key, value);
        book.note(json!({ "ask": key, "value": value }));
        let outcome = match value {
            Some(value) => {
                let put = door.put(&Write::new(&key, value, TTL_FOREVER, None)).await;
                put.map(|found| (found.revision, None))
            }
            None => door.deregister(&key, None).await.map(|found| (found.revision, Some(found.value))),
        };
        match outcome {
            Ok((revision, was_there)) => {
                book.ledger().ack(&key, revision, was_there);
                book.note(json!({ "ack": key, "revision": revision }));
                hand.keys.push(key);
            }
            Err(trouble) if trouble.no_effect => {
                book.ledger().refused(&key);
                book.note(json!({ "refused": key, "why": trouble.message }));
                hand.keys.push(key);
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(REFUSED_PAUSE) => {}
                }
            }
            Err(trouble) => {
                book.ledger().lost_track();
                book.note(json!({ "unknown": key, "why": trouble.message }));
            }
        }
    }
}

/// Runs a node under strace (`-D`: the node stays our child), which answers for its syncs that they are done.
fn drop_syncs(spec: &mut ProcessSpec) {
    let strace = ["strace", "-D", "-f", "--seccomp-bpf", "-qqq", "-o", "/dev/null"];
    let lie = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:retval=0"];
    let argv = strace.iter().chain(&lie).map(|arg| (*arg).to_owned());
    spec.argv = argv.chain(std::mem::take(&mut spec.argv)).collect();
}

impl Book {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tape(&self) -> MutexGuard<'_, BufWriter<File>> {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For people only: nothing is judged by it, so nothing depends on its order or on its being written.
    fn note(&self, mut line: serde_json::Value) {
        line["ms"] = (self.began.elapsed().as_micros() as f64 / 1_000.0).into();
        let _ = writeln!(self.tape(), "{line}");
    }
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.cuts.extend(other.cuts);
        self.acked += other.acked;
        self.unknown += other.unknown;
    }

    fn with(mut self, other: Tally) -> Tally {
        self.add(other);
        self
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: Vec<(Fs, Mode)> = self.cuts.clone();
        kinds.sort();
        kinds.dedup();
        let count = |kind: &(Fs, Mode)| self.cuts.iter().filter(|cut| *cut == kind).count();
        let each = kinds.iter().map(|kind| format!("{} {} {}", count(kind), kind.0, kind.1));
        let each = each.collect::<Vec<_>>().join(", ");
        let (cuts, acked, unknown) = (self.cuts.len(), self.acked, self.unknown);
        write!(f, "{cuts} power cuts ({each}), {acked} writes acknowledged, {unknown} unknown, 0 lost")
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_MAX: usize = 12;
        write!(f, "rig {}: {} violations", self.rig, self.violations.len())?;
        for violation in self.violations.iter().take(SHOWN_MAX) {
            write!(f, "\n  {violation}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Broken {}
