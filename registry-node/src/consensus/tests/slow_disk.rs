//! A disk that becomes slow while the node runs: the node says so, and what to do, and stops saying it once it is over.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::trio::{PATIENCE, Trio};

#[tokio::test(start_paused = true)]
async fn a_disk_too_slow_for_elections_is_told_and_forgotten() {
    let trio = Trio::start().await;
    let leader = trio.leader().await;
    let slow = trio.others(leader.id).next().expect("two others");
    for name in ["a", "b", "c"] {
        leader.register(name).await.expect("a quorum");
    }
    assert!(trio.nodes().all(|node| node.consensus.disk_slow().is_none()));

    slow.disk_ms.store(150, Ordering::Relaxed);
    for number in 0..5 {
        let effect = leader.register(&format!("slow-{number}")).await.expect("a quorum of two");
        slow.hub.reached(effect.revision, Instant::now() + PATIENCE).await.expect("it follows, slowly");
    }
    let why = slow.consensus.status().disk_slow.expect("it is slow");
    for part in ["150 ms", "--election-min-ms 600 --election-max-ms 1200"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert!(trio.others(slow.id).all(|node| node.consensus.disk_slow().is_none()), "theirs are fast");

    slow.disk_ms.store(1, Ordering::Relaxed);
    leader.register("after").await.expect("a quorum");
    sleep_until(Instant::now() + Duration::from_secs(120)).await;
    assert_eq!(slow.consensus.status().disk_slow, None, "its last slow write was two minutes ago");
}
