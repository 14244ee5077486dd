//! Many watchers on one node, the leader, which also takes the writes: what they hear and what they cost.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::{
    Run,
    nodes::{Node, Nodes, Unary},
    watchers::{Said, Watch, follow},
};
use crate::{
    bench::{
        etcd::connect,
        machine,
        report::{Bound, Line, quantile},
    },
    http,
};

pub(super) const NAME: &str = "fanout";

/// Watchers share connections, as those behind one proxy do.
const PER_CONNECTION: usize = 50;
/// Events a second, and for how many windows each rate is kept up.
const RATES: [u64; 2] = [100, 500];
const KEEP_UP: u32 = 4;
/// How long idle watchers are left alone before they are weighed: each has then heard of progress.
const IDLE: Duration = Duration::from_secs(3);
/// Watchers that stop reading.
const STOPPED: usize = 50;
/// Instances that are written while the ring is filled.
const INSTANCES: u64 = 1_000;
/// What the ring may hold.
const RING_MIB: f64 = 64.0;
/// How long a scrape may take.
const SCRAPE_WITHIN: Duration = Duration::from_secs(5);
/// How long a watcher that reads again may take to hear of what it missed.
const HEARD_WITHIN: Duration = Duration::from_secs(20);

pub(super) fn estimate(run: &Run<'_>) -> Duration {
    (run.window() * KEEP_UP + Duration::from_secs(3)) * 2
        + 2 * IDLE
        + Duration::from_secs(if run.args.quick { 12 } else { 60 })
}

pub(super) async fn measure(run: &mut Run<'_>) -> Result<()> {
    let nodes = run.nodes("fanout").await?;
    let leader = nodes.leader().await?;
    // Before there is a load: what that leaves behind is given back in its own time.
    idle(run, &leader).await?;
    ring(run, &nodes, &leader).await?;
    run.progress("fanout, ring filled");
    let keep_up = run.window() * KEEP_UP;
    for rate in RATES {
        let watches = open(&leader, run.watchers()).await?;
        let writers = Unary::callers(&nodes.clients(2).await?, 2);
        let (received, clock) = follow(watches, writers, rate, keep_up).await?;
        // A write that failed counts as one that nobody heard of.
        let offered = (clock.writes() + received.failed) * run.watchers();
        let share = received.in_time as f64 / offered as f64;
        let must = if rate == RATES[0] { 0.999 } else { 0.0 };
        let what = format!("{} watchers, {rate} events/s", run.watchers());
        let per_second = received.events as f64 / keep_up.as_secs_f64();
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

/// Fills the ring anew while some watchers do not read: those must be told to start over.
async fn stopped(run: &mut Run<'_>, nodes: &Nodes, leader: &Node) -> Result<()> {
    let watches = open(leader, STOPPED).await?;
    let stopped_at = leader.head().await?;
    let before = machine::rss_mib(leader.pid.pid);
    fill_ring(run, nodes).await?;
    let after = machine::rss_mib(leader.pid.pid);
    let each = (after - before) * 1_024.0 / STOPPED as f64;
    let ring_begins = leader.head().await?.compact_revision;
    // All at once, as a client that reads again does: those of one connection share its window, and one of them alone
    // would wait for what the others leave unread.
    let channel = connect(&leader.grpc).await?;
    let mut hearing = JoinSet::new();
    for mut watch in watches {
        let (channel, stopped_at) = (channel.clone(), stopped_at.clone());
        hearing.spawn(async move {
            match hears_reset(&mut watch, ring_begins).await {
                // It read nothing for too long: it comes back with the revision it holds.
                Err(_) => {
                    let mut again = Watch::resume(&channel, &stopped_at).await?;
                    Ok::<_, anyhow::Error>((hears_reset(&mut again, ring_begins).await?, true))
                }
                Ok(heard) => Ok((heard, false)),
            }
        });
    }
    let (mut told, mut let_go) = (0, 0);
    while let Some(heard) = hearing.join_next().await {
        let (heard, came_back) = heard.context("a watcher has panicked")??;
        told += usize::from(heard);
        let_go += usize::from(came_back);
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

/// What a full ring takes. Its first half fills beside the log's tail, which is kept in memory as well and grows to
/// 16 MiB: the second half is the ring's alone, and says what a byte of the node's own count is in truth.
async fn ring(run: &mut Run<'_>, nodes: &Nodes, leader: &Node) -> Result<()> {
    let empty = (ring_mib(leader).await?, machine::rss_mib(leader.pid.pid));
    let half_full = async || -> Result<bool> { Ok(ring_mib(leader).await? >= RING_MIB / 2.0) };
    nodes.write_until(run.filler(), INSTANCES, half_full).await?;
    let half = (ring_mib(leader).await?, machine::rss_mib(leader.pid.pid));
    fill_ring(run, nodes).await?;
    let full = (ring_mib(leader).await?, machine::rss_mib(leader.pid.pid));
    let grown = (full.1 - half.1).max(0.0) / (full.0 - half.0);
    run.line(
        Line::info(NAME, "memory of a full ring", vec![grown * full.0], "MiB")
            .held_to(Bound::AtMost { must: RING_MIB, goal: RING_MIB })
            .with(format!(
                "{:.1} MiB by the node's count; resident {:.1} MiB at {:.1} MiB of it, {:.1} at {:.1}, {:.1} full",
                full.0, empty.1, empty.0, half.1, half.0, full.1
            )),
    );
    Ok(())
}

/// Memory of the ring by the node's own count.
async fn ring_mib(node: &Node) -> Result<f64> {
    let scrape = http::get(&format!("{}/metrics", node.grpc), SCRAPE_WITHIN).await?;
    let text = String::from_utf8_lossy(&scrape.body);
    let bytes = text.lines().find_map(|line| line.strip_prefix("registry_watch_ring_bytes "));
    let bytes: f64 = bytes.and_then(|bytes| bytes.trim().parse().ok()).context("the ring is not measured")?;
    Ok(bytes / f64::from(1 << 20))
}

/// Reads what was on its way, up to the reset. Progress beyond where the ring begins without one would be a gap.
async fn hears_reset(watch: &mut Watch, ring_begins: u64) -> Result<bool> {
    let listen = async {
        loop {
            match watch.next().await? {
                Said::Reset => return Ok(true),
                Said::Progress(revision) if revision > ring_begins => return Ok(false),
                Said::Events(_) | Said::Progress(_) => {}
            }
        }
    };
    tokio::time::timeout(HEARD_WITHIN, listen).await.unwrap_or(Ok(false))
}

/// Writes until nothing that was in the ring is in it any more.
async fn fill_ring(run: &Run<'_>, nodes: &Nodes) -> Result<()> {
    let leader = nodes.leader().await?;
    let begin = leader.head().await?.revision;
    let replaced = async || -> Result<bool> { Ok(leader.head().await?.compact_revision > begin) };
    nodes.write_until(run.filler(), INSTANCES, replaced).await
}
