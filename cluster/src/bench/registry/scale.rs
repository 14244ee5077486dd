//! A hundred thousand instances: memory, restart, reads beside etcd's, and writes beside a small catalog.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use proto::registry::v1 as pb;
use proto::registry::v1::registry_client::RegistryClient;
use tokio::time::Instant;
use tonic::{Status, transport::Channel};

use super::{
    Run,
    nodes::{Nodes, PER_SERVICE, Unary, VALUE_BYTES, fill, key, service},
};
use crate::bench::{
    etcd::{self, Puts},
    load::{Door, Window, closed_loop},
    report::{Bound, Line, median, with_unit},
};

pub(super) const NAME: &str = "scale";

/// The small catalog.
const FEW: u64 = 1_000;
/// Callers that fill, and that write.
const CALLERS: usize = 64;

pub(super) fn estimate(run: &Run<'_>) -> Duration {
    // Filling at 2 500/s: many, few, etcd, and once more for the ring.
    Duration::from_secs(run.instances() * 4 / 2_500)
        + run.window().mul_f64(1.15) * run.rounds() * 4
        + Duration::from_secs(20)
}

pub(super) async fn measure(run: &mut Run<'_>) -> Result<()> {
    let many = run.nodes("scale-many").await?;
    let few = run.nodes("scale-few").await?;
    let etcd = run.etcd("scale-etcd").await?;
    let begun = Instant::now();
    fill(Unary::callers(&many.clients(run.connections()).await?, CALLERS), 0..run.instances()).await?;
    let rate = run.instances() as f64 / begun.elapsed().as_secs_f64();
    run.line(Line::info(NAME, format!("{} instances registered", run.instances()), vec![rate], "/s"));
    // As many writes behind them, so that their rings and logs are as full.
    for _ in 0..run.instances() / FEW {
        fill(Unary::callers(&few.clients(run.connections()).await?, CALLERS), 0..FEW).await?;
    }
    let etcds = match &etcd {
        Some(etcd) => etcd.clients(run.connections()).await?,
        None => Vec::new(),
    };
    if !etcds.is_empty() {
        let door = |client| Puts { client, key, value_bytes: VALUE_BYTES };
        fill(etcds.iter().cloned().map(door).cycle().take(CALLERS).collect(), 0..run.instances()).await?;
    }
    run.progress("scale: filled");
    lists(run, &many, etcds).await?;
    writes(run, &many, &few).await?;
    few.shutdown().await?;
    memory(run, &many, etcd.as_ref()).await?;
    drop(etcd);
    restarts(run, &many).await?;
    many.shutdown().await
}

/// Reads of one service, and of as many keys under one prefix.
struct Lists {
    client: RegistryClient<Channel>,
}

impl Door for Lists {
    async fn call(&mut self, nth: u64) -> Result<(), Status> {
        let list = pb::ListRequest { service: service(nth), ..pb::ListRequest::default() };
        whole(self.client.list(list).await?.into_inner().instances.len())
    }
}

struct Ranges {
    client: etcd::Client,
}

impl Door for Ranges {
    async fn call(&mut self, nth: u64) -> Result<(), Status> {
        whole(self.client.range(format!("{}/", service(nth)).into_bytes()).await?)
    }
}

fn whole(found: usize) -> Result<(), Status> {
    match found as u64 {
        PER_SERVICE => Ok(()),
        found => Err(Status::data_loss(format!("{found} of {PER_SERVICE} instances of a service"))),
    }
}

async fn lists(run: &mut Run<'_>, many: &Nodes, etcds: Vec<etcd::Client>) -> Result<()> {
    let client = many.clients(1).await?.remove(0);
    let (mut ours, mut theirs): (Vec<Window>, Vec<Window>) = (Vec::new(), Vec::new());
    let below = run.instances() / PER_SERVICE * PER_SERVICE;
    for _ in 0..run.rounds() {
        let doors = vec![Lists { client: client.clone() }];
        ours.push(closed_loop(doors, below, run.window()).await.whole("List")?);
        if let Some(client) = etcds.first() {
            let doors = vec![Ranges { client: client.clone() }];
            theirs.push(closed_loop(doors, below, run.window()).await.whole("etcd's range")?);
        }
    }
    let each = |windows: &[Window], share| windows.iter().map(|w| w.quantile(share)).collect::<Vec<_>>();
    let described = |windows: &[Window]| {
        format!(
            "p50 {} p99 {}",
            with_unit(median(&each(windows, 0.5)), "ms"),
            with_unit(median(&each(windows, 0.99)), "ms")
        )
    };
    run.line(
        Line::info(
            NAME,
            format!("linearizable List of {PER_SERVICE} instances: p50"),
            each(&ours, 0.5),
            "ms",
        )
        .held_to(Bound::AtMost { must: 2.0, goal: 2.0 })
        .with(format!("{}, one caller", described(&ours))),
    );
    if !theirs.is_empty() {
        let ratios =
            each(&ours, 0.99).iter().zip(each(&theirs, 0.99)).map(|(ours, etcd)| ours / etcd).collect();
        run.line(
            Line::info(NAME, "the same: p99 beside etcd's range", ratios, "x")
                .held_to(Bound::AtMost { must: 1.0, goal: 1.0 })
                .with(format!("{}; etcd {}", described(&ours), described(&theirs))),
        );
    }
    Ok(())
}

/// The same writes to the large catalog and to the small one, in turns.
async fn writes(run: &mut Run<'_>, many: &Nodes, few: &Nodes) -> Result<()> {
    let (to_many, to_few) = (many.clients(run.connections()).await?, few.clients(run.connections()).await?);
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for round in 0..run.rounds() {
        let mut rate = [0.0; 2];
        for turn in 0..2 {
            let (which, clients, below) = match (round + turn) % 2 {
                0 => (0, &to_many, run.instances()),
                _ => (1, &to_few, FEW),
            };
            let window = closed_loop(Unary::callers(clients, CALLERS), below, run.window()).await;
            rate[which] = window.whole("writes")?.rate();
        }
        ratios.push(rate[0] / rate[1]);
        rates.push(rate);
    }
    let of =
        |which: usize| with_unit(median(&rates.iter().map(|rate| rate[which]).collect::<Vec<_>>()), "/s");
    run.line(
        Line::info(NAME, format!("writes at {} instances against {FEW}", run.instances()), ratios, "x")
            .held_to(Bound::AtLeast { must: 0.9, goal: 0.97 })
            .with(format!("{} against {}, unary, {CALLERS} callers", of(0), of(1))),
    );
    Ok(())
}

/// Writes on until the ring is full, and weighs every node.
async fn memory(run: &mut Run<'_>, many: &Nodes, etcd: Option<&etcd::Etcd>) -> Result<()> {
    let leader = many.leader().await?;
    let full = async || -> Result<bool> { Ok(leader.head().await?.compact_revision > 0) };
    many.write_until(run.filler(), run.instances(), full).await?;
    let rss = many.rss_mib()?;
    let worst = rss.iter().copied().fold(0.0, f64::max);
    let shown = |rss: &[f64]| rss.iter().map(|mib| format!("{mib:.0}")).collect::<Vec<_>>().join(", ");
    let beside = etcd.map_or(String::new(), |etcd| format!("; etcd {} MiB", shown(&etcd.rss_mib())));
    let mut line = Line::info(NAME, "memory of a node, ring full", vec![worst], "MiB")
        .held_to(Bound::AtMost { must: 320.0, goal: 200.0 })
        .with(format!("{} MiB{beside}", shown(&rss)));
    line.samples = rss;
    run.line(line);
    Ok(())
}

/// kill -9 and start, each node in turn: how long until it is ready.
async fn restarts(run: &mut Run<'_>, many: &Nodes) -> Result<()> {
    let mut seconds = Vec::new();
    for node in many.running()? {
        many.signal(&node, Signal::SIGKILL)?;
        ensure!(node.pid.gone(Duration::from_secs(5)).await, "{} does not die", node.name);
        many.leader().await?;
        let begun = Instant::now();
        many.start(&node.name).await?;
        many.ready(&node.name).await?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    let worst = seconds.iter().copied().fold(0.0, f64::max);
    let all = seconds.iter().map(|s| format!("{s:.2}")).collect::<Vec<_>>().join(", ");
    let mut line = Line::info(NAME, "ready after kill -9 and start, the slowest node", vec![worst], "s")
        .held_to(Bound::AtMost { must: 2.0, goal: 2.0 })
        .with(format!("{all} s"));
    line.samples = seconds;
    run.line(line);
    Ok(())
}
