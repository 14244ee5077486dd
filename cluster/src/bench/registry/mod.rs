//! `cluster bench registry`: three of our nodes, and three of etcd's beside them where it is installed.
//!
//! Everything runs on this machine and shares its processors: nodes, etcd and the load, which this process makes.
//! What is compared is measured in turns within one run, in short windows, and each round gives one ratio; the
//! figure is the median of the rounds. A section starts nodes of its own, so none inherits another's state.

mod fanout;
mod heartbeats;
mod kills;
mod latency;
mod nodes;
mod pipeline;
mod scale;
mod watchers;
mod writes;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use proto::registry::v1 as pb;
use tokio::time::Instant;

use self::nodes::Nodes;
use super::{
    etcd::{self, Etcd},
    machine,
    report::{Line, Peer, Report},
};

/// What to measure, and how.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Measure these alone [default: all].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SECTION")]
    only: Vec<Section>,
    /// Rounds of what is measured beside etcd; the figure is their median.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long one window is, in milliseconds.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    window_ms: u64,
    /// HTTP/2 connections of the load to whoever is measured; a pipeline is one stream on each.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// Watchers of the fan-out, on one node.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=9_000))]
    watchers: u16,
    /// How often the leader is killed, and as often told to stop.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    kills: u32,
    /// Instances of the large catalog.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1_000..=1_000_000))]
    instances: u64,
    /// Instances that are kept alive by heartbeats.
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u64).range(1_000..=1_000_000))]
    live: u64,
    /// Run everything to its end within a minute: tiny windows and counts, whose figures say nothing.
    #[arg(long, conflicts_with = "check")]
    quick: bool,
    /// Fail if etcd is not installed, instead of measuring us alone.
    #[arg(long)]
    require_etcd: bool,
    /// Fail if a figure misses what must be.
    #[arg(long)]
    pub check: bool,
}

/// A group of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Committed writes a second beside etcd's, by callers and by API.
    Writes,
    /// Heartbeats acknowledged a second; many instances kept alive.
    Heartbeats,
    /// Many watchers on one node; what they cost.
    Fanout,
    /// From a commit to the event at a watcher.
    Latency,
    /// Without a write when the leader is killed, or stops.
    Kills,
    /// A large catalog: memory, restart, reads, writes.
    Scale,
}

impl Args {
    /// The same, but tiny.
    fn quick(&self) -> Self {
        let few = Self { rounds: 1, window_ms: 200, watchers: 50, kills: 1, ..self.clone() };
        Self { instances: 1_000, live: 1_000, ..few }
    }
}

impl Section {
    fn name(self) -> &'static str {
        match self {
            Self::Writes => writes::NAME,
            Self::Heartbeats => heartbeats::NAME,
            Self::Fanout => fanout::NAME,
            Self::Latency => latency::NAME,
            Self::Kills => kills::NAME,
            Self::Scale => scale::NAME,
        }
    }

    fn estimate(self, run: &Run<'_>) -> Duration {
        match self {
            Self::Writes => writes::estimate(run),
            Self::Heartbeats => heartbeats::estimate(run),
            Self::Fanout => fanout::estimate(run),
            Self::Latency => latency::estimate(run),
            Self::Kills => kills::estimate(run),
            Self::Scale => scale::estimate(run),
        }
    }

    async fn measure(self, run: &mut Run<'_>) -> Result<()> {
        match self {
            Self::Writes => writes::measure(run).await,
            Self::Heartbeats => heartbeats::measure(run).await,
            Self::Fanout => fanout::measure(run).await,
            Self::Latency => latency::measure(run).await,
            Self::Kills => kills::measure(run).await,
            Self::Scale => scale::measure(run).await,
        }
    }
}

/// One run: what is asked for, where it happens, and what has come of it.
struct Run<'a> {
    args: &'a Args,
    dir: PathBuf,
    beside_etcd: bool,
    note: fn(&str),
    report: Report,
    begun: Instant,
}

/// Beyond its estimate a run may take so many times as long, and a minute, before it is given up.
const PATIENCE: u32 = 2;

/// Measures what `args` ask for.
pub(super) async fn run(args: &Args, note: fn(&str)) -> Result<Report> {
    let args = &if args.quick { args.quick() } else { args.clone() };
    let etcd = etcd::version();
    if etcd.is_none() {
        let how = "etcd is not installed: `apt-get install etcd-server` (its service is not needed)";
        if args.require_etcd {
            bail!("{how}");
        }
        note(&format!("{how}; measuring us alone"));
    }
    if cfg!(debug_assertions) {
        note("this is no release build: the figures say little; use `cargo cluster bench`");
    }
    let dir = tempfile::Builder::new().prefix("flux-bench-").tempdir().context("no temporary directory")?;
    let sections = match args.only.as_slice() {
        [] => Section::value_variants(),
        only => only,
    };
    let peers = vec![Peer { name: "etcd", version: etcd.clone(), package: "etcd-server" }];
    let report = Report { cores: machine::cores(), peers, ..Report::default() };
    let mut run = Run {
        args,
        dir: dir.path().to_owned(),
        beside_etcd: etcd.is_some(),
        note,
        report,
        begun: Instant::now(),
    };
    let estimates: Vec<Duration> = sections.iter().map(|section| section.estimate(&run)).collect();
    let total: Duration = estimates.iter().sum();
    let names: Vec<String> = sections
        .iter()
        .zip(&estimates)
        .map(|(section, estimate)| format!("{} {:.0} s", section.name(), estimate.as_secs_f64()))
        .collect();
    note(&format!("this takes about {:.0} s: {}", total.as_secs_f64(), names.join(", ")));
    run.report.load.push(("before".into(), machine::load_average()));
    let limit = PATIENCE * total + Duration::from_secs(60);
    let measured = tokio::time::timeout(limit, async {
        for section in sections {
            run.progress(section.name());
            if let Err(error) = Box::pin(section.measure(&mut run)).await {
                let failed = format!("{}: {error:#}", section.name());
                run.progress(&failed);
                run.report.failed.push(failed);
            }
            run.report.load.push((section.name().into(), machine::load_average()));
        }
    });
    if measured.await.is_err() {
        let failed = format!("not done within {limit:?}: the machine is too busy to measure");
        run.report.failed.push(failed);
    }
    run.report.method = run.method();
    run.report.seconds = run.begun.elapsed().as_secs_f64();
    Ok(run.report)
}

impl Run<'_> {
    fn window(&self) -> Duration {
        Duration::from_millis(self.args.window_ms)
    }

    fn rounds(&self) -> u32 {
        self.args.rounds
    }

    fn connections(&self) -> usize {
        self.args.connections.into()
    }

    fn watchers(&self) -> usize {
        self.args.watchers.into()
    }

    fn kills(&self) -> u32 {
        self.args.kills
    }

    fn instances(&self) -> u64 {
        self.args.instances
    }

    fn live(&self) -> u64 {
        self.args.live
    }

    /// What fills a ring.
    fn filler(&self) -> fn(u64) -> pb::Instance {
        if self.args.quick { nodes::large } else { nodes::instance }
    }

    fn line(&mut self, line: Line) {
        self.report.lines.push(line);
    }

    fn progress(&self, what: &str) {
        (self.note)(&format!("{:5.1} s  {what}", self.begun.elapsed().as_secs_f64()));
    }

    /// Three fresh nodes of ours.
    async fn nodes(&self, name: &str) -> Result<Nodes> {
        Nodes::launch(&self.dir.join(name)).await
    }

    /// Three fresh nodes of etcd, if it is installed.
    async fn etcd(&self, name: &str) -> Result<Option<Etcd>> {
        match self.beside_etcd {
            true => Etcd::launch(&self.dir.join(name)).await.map(Some),
            false => Ok(None),
        }
    }

    fn method(&self) -> Vec<String> {
        vec![
            format!(
                "median of {} rounds in windows of {} s, in turns; records and values of {} bytes; callers on {} \
                 HTTP/2 connections to the leader, a pipeline is one stream on each; ours numbered as flux sends them",
                self.rounds(),
                self.window().as_secs_f64(),
                nodes::VALUE_BYTES,
                self.connections(),
            ),
            format!("nodes, etcd and load share the machine; data in {}", parent(&self.dir)),
        ]
    }
}

fn parent(dir: &Path) -> String {
    dir.parent().unwrap_or(dir).display().to_string()
}
