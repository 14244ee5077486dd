//! How soon the watchers of every node hear of a change, in simulated time: what is bounded here is waiting, not work.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::trio::Trio;
use crate::watch::{Update, Watcher};

/// From the acknowledgement to the event, on any node that hears its leader.
const SOON: Duration = Duration::from_millis(200);

/// Whether the watcher is told of `revision` in time, and not too early: it says what a majority has.
async fn hears(watcher: &mut Watcher, revision: u64, by: Instant) {
    loop {
        let update = timeout_at(by, watcher.next()).await;
        let update =
            update.unwrap_or_else(|_| panic!("nothing of revision {revision} in time")).expect("room for it");
        if matches!(update, Update::Events { .. }) && update.revision() >= revision {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_nodes_watchers_hear_of_a_change_within_200_ms() {
    let trio = Trio::start().await;
    let start = trio.leader().await.hub.revision();
    let mut watchers: Vec<Watcher> =
        trio.nodes().map(|node| node.hub.watcher(None, Some(start)).expect("room for one")).collect();
    for number in 0..40 {
        // Through each node, at any moment between two heartbeats.
        let through = trio.nodes().nth(number % 3).expect("three nodes");
        sleep_until(Instant::now() + Duration::from_millis(7 * number as u64)).await;
        let effect = through.register(&format!("i{number}")).await.expect("a quorum");
        let by = Instant::now() + SOON;
        for watcher in &mut watchers {
            hears(watcher, effect.revision, by).await;
        }
    }
}
