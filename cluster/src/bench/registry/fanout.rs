//! Many watchers on one node, the leader, which also takes the writes: what they hear and what they cost.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use proto::registry::v1 as pb;
use tonic::transport::Channel;

use super::{
    Run,
    nodes::{Node, Nodes, Unary, client},
    watchers::{Said, Watch, follow},
};
use crate::bench::{
    etcd::connect,
    load::{Door, explain},
    machine,
    report::{Bound, Line, quantile},
};

pub(super) const NAME: &str = "fanout";

/// Watchers share connections, as those behind one proxy do.
const PER_CONNECTION: usize = 50;
/// Events a second, and how long each rate is kept up.
const RATES: [u64; 2] = [100, 500];
const KEEP_UP: Duration = Duration::from_secs(8);
/// How long idle watchers are left alone before they are weighed: each has then heard of progress.
const IDLE: Duration = Duration::from_secs(3);
/// Watchers that stop reading.
const STOPPED: usize = 50;
/// Writes at once while the ring is filled.
const FILLERS: usize = 64;
/// Writes that are certain to push everything out of the ring, which holds 2^17 revisions at most.
const FILL_MAX: u64 = (1 << 17) + 1_000;

pub(super) fn estimate(_: &Run<'_>) -> Duration {
    (KEEP_UP + Duration::from_secs(3)) * 2 + IDLE + Duration::from_secs(60)
}

pub(super) async fn measure(run: &mut Run<'_>) -> Result<()> {
    let nodes = run.nodes("fanout").await?;
    let leader = nodes.leader().await?;
    idle(run, &leader).await?;
    for rate in RATES {
        let watches = open(&leader, run.watchers()).await?;
        let writers = Unary::callers(&nodes.clients(2).await?, 2);
        let (received, clock) = follow(watches, writers, rate, KEEP_UP).await?;
        // A write that failed counts as one that nobody heard of.
        let offered = (clock.writes() + received.failed) * run.watchers();
        let share = received.in_time as f64 / offered as f64;
        let must = if rate == RATES[0] { 0.999 } else { 0.0 };
        let what = format!("{} watchers, {rate} events/s", run.watchers());
        let per_second = received.events as f64 / KEEP_UP.as_secs_f64();
        let line = Line::info(NAME, format!("{what}: delivered within a second"), vec![share], "of all");
        let from = format!(
            "{} of {offered} delivered, {per_second:.0}/s; {} writes failed",
            received.events, received.failed
        );
        run.line(line.held_to(Bound::AtLeast { must, goal: 0.999 }).with(from));
        let lag = vec![quantile(&received.since_sent, 0.99)];
        run.line(Line::info(NAME, format!("{what}: lag p99"), lag, "ms").with(received.describe()));
        run.progress(&format!("fanout, {rate} events/s: done"));
    }
    stopped(run, &nodes, &leader).await?;
    nodes.shutdown().await
}

/// Watchers on connections of their own.
async fn open(node: &Node, count: usize) -> Result<Vec<Watch>> {
    let mut watches = Vec::with_capacity(count);
    let mut channel: Option<Channel> = None;
    for nth in 0..count {
        if nth % PER_CONNECTION == 0 || channel.is_none() {
            channel = Some(connect(&node.grpc).await?);
        }
        if let Some(channel) = &channel {
            watches.push(Watch::open(channel).await?);
        }
    }
    Ok(watches)
}

/// What watchers cost that have nothing to do.
async fn idle(run: &mut Run<'_>, leader: &Node) -> Result<()> {
    // The first ones pay for what all share.
    let warm = open(leader, run.watchers()).await?;
    drop(warm);
    tokio::time::sleep(IDLE).await;
    let before = machine::rss_mib(leader.pid.pid);
    let watches = open(leader, run.watchers()).await?;
    let cpu = machine::cpu_time(leader.pid.pid);
    tokio::time::sleep(IDLE).await;
    let cpu = machine::cpu_time(leader.pid.pid).saturating_sub(cpu).as_secs_f64() / IDLE.as_secs_f64();
    let after = machine::rss_mib(leader.pid.pid);
    drop(watches);
    let each = (after - before) * 1_024.0 / run.watchers() as f64;
    run.line(
        Line::info(NAME, "memory of an idle watcher", vec![each], "KiB")
            .held_to(Bound::AtMost { must: 4.0, goal: 4.0 })
            .with(format!(
                "{} watchers: {before:.1} MiB, {after:.1} MiB with them; they take {:.1} % of a core",
                run.watchers(),
                100.0 * cpu
            )),
    );
    Ok(())
}

/// Fills the ring, then again while some watchers do not read: those must be told to start over.
async fn stopped(run: &mut Run<'_>, nodes: &Nodes, leader: &Node) -> Result<()> {
    let before = machine::rss_mib(leader.pid.pid);
    fill_ring(nodes).await?;
    let full = machine::rss_mib(leader.pid.pid);
    // The log's tail in memory grows with it, to 16 MiB.
    run.line(
        Line::info(NAME, "memory of a full ring, and of the log's tail", vec![full - before], "MiB")
            .held_to(Bound::AtMost { must: 64.0 + 16.0, goal: 64.0 })
            .with(format!("{before:.1} MiB before, {full:.1} MiB with it")),
    );
    let mut watches = open(leader, STOPPED).await?;
    let stopped_at = head(leader).await?;
    let before = machine::rss_mib(leader.pid.pid);
    fill_ring(nodes).await?;
    let after = machine::rss_mib(leader.pid.pid);
    let each = (after - before) * 1_024.0 / STOPPED as f64;
    let channel = connect(&leader.grpc).await?;
    let (mut told, mut let_go) = (0, 0);
    for watch in &mut watches {
        let heard = match hears_reset(watch).await {
            // It read nothing for too long: it comes back with the revision it holds.
            Err(_) => {
                let_go += 1;
                hears_reset(&mut Watch::resume(&channel, &stopped_at).await?).await?
            }
            heard => heard?,
        };
        told += usize::from(heard);
    }
    run.line(
        Line::info(NAME, "stopped watchers told to start over", vec![told as f64 / STOPPED as f64], "of all")
            .held_to(Bound::AtLeast { must: 1.0, goal: 1.0 })
            .with(format!(
                "{told} of {STOPPED}, {let_go} of them let go before and come back; each pinned {each:.1} KiB while it did not read"
            )),
    );
    Ok(())
}

/// Reads what was on its way, up to the reset. A gap would be an event beyond the ring without one.
async fn hears_reset(watch: &mut Watch) -> Result<bool> {
    let listen = async {
        loop {
            match watch.next().await? {
                Said::Reset => return Ok(true),
                Said::Events(_) => {}
                Said::Progress => return Ok(false),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), listen).await.unwrap_or(Ok(false))
}

/// Where a node is now.
async fn head(node: &Node) -> Result<pb::ResponseHeader> {
    let answer = client(&node.grpc).await?.list_services(pb::ListServicesRequest::default()).await?;
    answer.into_inner().header.context("an answer without a header")
}

/// Writes until nothing that was in the ring is in it any more.
async fn fill_ring(nodes: &Nodes) -> Result<()> {
    let leader = nodes.leader().await?;
    let begin = head(&leader).await?.revision;
    let writers = Unary::callers(&nodes.clients(4).await?, FILLERS);
    let mut callers = tokio::task::JoinSet::new();
    for mut writer in writers {
        callers.spawn(async move {
            for _ in 0..FILL_MAX / FILLERS as u64 {
                if writer.compact_revision() > begin {
                    break;
                }
                writer.call(fastrand::u64(..1_000)).await?;
            }
            Ok::<_, tonic::Status>(writer.compact_revision())
        });
    }
    let mut compact = 0;
    while let Some(done) = callers.join_next().await {
        compact = compact.max(done?.map_err(|s| anyhow::anyhow!("cannot fill the ring: {}", explain(&s)))?);
    }
    match compact > begin {
        true => Ok(()),
        false => {
            bail!("{FILL_MAX} writes have not filled the ring: it begins at {compact}, not beyond {begin}")
        }
    }
}
