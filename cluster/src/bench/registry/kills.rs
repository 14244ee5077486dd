//! How long no write is acknowledged when the leader goes.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    Run,
    nodes::{Node, Nodes, Unary, client},
};
use crate::bench::{
    load::Door as _,
    report::{Bound, Line, quantile},
};

pub(super) const NAME: &str = "kills";

/// Writers on each node that stays.
const WRITERS: usize = 2;
/// Instances they write in turns.
const INSTANCES: u64 = 1_000;
/// Without a write for so long, the cluster has not recovered.
const RECOVERED_WITHIN: Duration = Duration::from_secs(20);
/// After a failure a writer asks again at once, but not in a tight loop.
const AGAIN: Duration = Duration::from_millis(2);
/// A process must be gone by then, however it was told.
const GONE_WITHIN: Duration = Duration::from_secs(15);
/// One cycle: a failover, a restart, and until the node answers again.
const CYCLE: Duration = Duration::from_millis(2_500);

pub(super) fn estimate(run: &Run<'_>) -> Duration {
    CYCLE * run.kills() * 2 + Duration::from_secs(3)
}

pub(super) async fn measure(run: &mut Run<'_>) -> Result<()> {
    let nodes = run.nodes("kills").await?;
    for (what, signal, must, goal) in
        [("kill -9", Signal::SIGKILL, 1_500.0, 1_200.0), ("SIGTERM", Signal::SIGTERM, 250.0, 50.0)]
    {
        let mut gaps = Vec::new();
        for _ in 0..run.kills() {
            gaps.push(gap(&nodes, signal).await?.as_secs_f64() * 1e3);
        }
        run.progress(&format!("kills, {what}: done"));
        let of = |share| vec![quantile(&gaps, share)];
        let what = format!("{what} of the leader, {} times: no write acknowledged", gaps.len());
        let all = format!("p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms", of(0.5)[0], of(0.99)[0], of(1.0)[0]);
        let mut line = Line::info(NAME, format!("{what}: p99"), of(0.99), "ms")
            .held_to(Bound::AtMost { must, goal })
            .with(all);
        line.samples = gaps;
        run.line(line);
    }
    nodes.shutdown().await
}

/// When a write was sent, and when it was acknowledged.
type Acknowledged = (Instant, Instant);

/// Ends the leader under writes to the others, and starts it again. Returns the longest time without an acknowledged
/// write from the signal until one that was sent when the process had gone.
async fn gap(nodes: &Nodes, signal: Signal) -> Result<Duration> {
    let leader = nodes.leader().await?;
    let others: Vec<Node> = nodes.running()?.into_iter().filter(|node| node.name != leader.name).collect();
    let (acknowledged, mut writes) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let _stop_writers = stop.clone().drop_guard();
    for node in &others {
        let connection = client(&node.grpc).await?;
        for writer in Unary::callers(&[connection], WRITERS) {
            let writes = write(writer, acknowledged.clone());
            tokio::spawn(stop.clone().run_until_cancelled_owned(writes));
        }
    }
    writes.recv().await.context("no write before the leader goes")?;
    let told = Instant::now();
    nodes.signal(&leader, signal)?;
    let gone = async {
        match leader.pid.gone(GONE_WITHIN).await {
            true => Ok(Instant::now()),
            false => bail!("{} has not gone within {GONE_WITHIN:?}", leader.name),
        }
    };
    let gap = longest(&mut writes, told, gone).await?;
    nodes.start(&leader.name).await?;
    nodes.ready(&leader.name).await?;
    Ok(gap)
}

/// The longest time between two acknowledged writes that were sent since `told`, until the first sent after `gone`.
async fn longest(
    writes: &mut mpsc::UnboundedReceiver<Acknowledged>,
    told: Instant,
    gone: impl Future<Output = Result<Instant>>,
) -> Result<Duration> {
    let mut gone = std::pin::pin!(gone);
    let (mut last, mut longest, mut gone_at) = (told, Duration::ZERO, None);
    loop {
        tokio::select! {
            at = &mut gone, if gone_at.is_none() => gone_at = Some(at?),
            write = timeout_at(last + RECOVERED_WITHIN, writes.recv()) => {
                let write = write.with_context(|| format!("no write for {RECOVERED_WITHIN:?}"))?;
                let (sent, at) = write.context("the writers have ended")?;
                if sent < told {
                    continue;
                }
                longest = longest.max(at.saturating_duration_since(last));
                last = last.max(at);
                if gone_at.is_some_and(|gone| sent >= gone) {
                    return Ok(longest);
                }
            }
        }
    }
}

/// Writes one after the other, for ever.
async fn write(mut writer: Unary, acknowledged: mpsc::UnboundedSender<Acknowledged>) {
    loop {
        let sent = Instant::now();
        match writer.call(fastrand::u64(..INSTANCES)).await {
            Ok(()) if acknowledged.send((sent, Instant::now())).is_ok() => {}
            Ok(()) => return,
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}
