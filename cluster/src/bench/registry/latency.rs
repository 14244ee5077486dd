//! From a commit to the event at a watcher.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    Run,
    nodes::{Unary, client},
    watchers::{Watch, follow},
};
use crate::bench::{
    etcd::connect,
    report::{Bound, Line, quantile},
};

pub(super) const NAME: &str = "latency";

const WRITES_PER_SECOND: u64 = 1_000;

pub(super) fn estimate(run: &Run<'_>) -> Duration {
    run.window() * run.rounds() * 2 + Duration::from_secs(5)
}

/// A watcher on the leader and one on a follower, each by itself: they do not disturb each other's figure.
pub(super) async fn measure(run: &mut Run<'_>) -> Result<()> {
    let nodes = run.nodes("latency").await?;
    let leader = nodes.leader().await?;
    let follower = nodes.running()?.into_iter().find(|node| node.name != leader.name);
    for (who, node) in [("leader", Some(leader.clone())), ("follower", follower)] {
        let Some(node) = node else { continue };
        let (mut p50, mut p99, mut described) = (Vec::new(), Vec::new(), String::new());
        for _ in 0..run.rounds() {
            let watch = Watch::open(&connect(&node.grpc).await?).await?;
            let writers = Unary::callers(&[client(&leader.grpc).await?, client(&leader.grpc).await?], 2);
            let (received, _) = follow(vec![watch], writers, WRITES_PER_SECOND, run.window()).await?;
            ensure!(received.failed == 0, "{} writes failed", received.failed);
            p50.push(quantile(&received.since_acknowledged, 0.5));
            p99.push(quantile(&received.since_acknowledged, 0.99));
            described = received.describe();
        }
        let bound = |must, goal| Bound::AtMost { must, goal };
        let what = format!("commit to event, watcher on the {who}");
        run.line(
            Line::info(NAME, format!("{what}: p50"), p50, "ms").held_to(bound(2.0, 2.0)).with(described),
        );
        run.line(Line::info(NAME, format!("{what}: p99"), p99, "ms").held_to(bound(20.0, 5.0)));
    }
    nodes.shutdown().await
}
