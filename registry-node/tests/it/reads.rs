//! What reads answer while nodes come and go: never less than was acknowledged, and many cost little.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::node::{Cluster, PATIENCE};
use super::wire::{Reply, call, try_call};

fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Registers one more instance and gives the revision that acknowledged it.
async fn write(node: &str, id: usize) -> u64 {
    let body = json!({ "service": "web", "url": "http://127.0.0.1:1", "ttlMs": 3_600_000 }).to_string();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reply = try_call("PUT", &format!("{node}/v1/instances/i{id}"), &body).await;
        if let Ok(reply) = &reply
            && matches!(reply.status, 200 | 201)
        {
            return number(&reply.json()["instance"]["modRev"]);
        }
        assert!(Instant::now() < deadline, "{reply:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// An answer is refused, or at `acknowledged` or later with all `written` instances.
fn judge(reply: &Reply, acknowledged: u64, written: usize, log: impl Fn() -> String) -> bool {
    if reply.status == 503 {
        return false;
    }
    let list = reply.json();
    assert_eq!(reply.status, 200, "{list}");
    let (revision, found) =
        (number(&list["header"]["revision"]), list["instances"].as_array().map_or(0, Vec::len));
    assert!(
        revision >= acknowledged && found >= written,
        "revision {revision} with {found} instances after {acknowledged} with {written}: {}",
        log()
    );
    true
}

/// Killed or stopped, leader or follower: from the first connection that a restarted node accepts it refuses, or
/// knows all that was acknowledged. A stale read may miss what came after the start, never what came before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_answers_with_all_that_was_acknowledged_or_not_at_all() {
    let mut cluster = Cluster::start(3, &["--snapshot-every", "7", "--log-keep", "3"]).await;
    let mut written = 0;
    for round in 0..20 {
        let victim = round % 3;
        let other = cluster.nodes[(victim + 1) % 3].rest.clone();
        written += 1;
        write(&other, written).await;
        if round % 2 == 0 {
            cluster.nodes[victim].kill();
        } else {
            cluster.nodes[victim].stop().await;
        }
        written += 1;
        let before_start = (write(&other, written).await, written);
        cluster.nodes[victim].spawn();
        let url = format!("{}/v1/services/web", cluster.nodes[victim].rest);
        let stale = format!("{url}?consistency=stale");
        let mut acknowledged = before_start;
        let (mut answered, mut stale_answered) = (0, 0);
        let deadline = Instant::now() + PATIENCE;
        while answered < 2 || stale_answered < 2 {
            let log = || cluster.nodes[victim].log();
            assert!(Instant::now() < deadline, "{}", log());
            let (fresh, old) = tokio::join!(try_call("GET", &url, ""), try_call("GET", &stale, ""));
            if let Ok(reply) = fresh {
                answered += usize::from(judge(&reply, acknowledged.0, acknowledged.1, log));
            }
            if let Ok(reply) = old {
                stale_answered += usize::from(judge(&reply, before_start.0, before_start.1, log));
            }
            if answered == 1 {
                written += 1;
                acknowledged = (write(&other, written).await, written);
            }
        }
    }
}

async fn rounds(node: &str) -> u64 {
    let metrics = call("GET", &format!("{node}/metrics"), "").await;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let counted = metrics.lines().filter(|line| line.starts_with("registry_read_rounds_total"));
    counted.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_reads_share_their_rounds() {
    let mut cluster = Cluster::start(3, &[]).await;
    let nodes = [cluster.leader().await, cluster.follower().await];
    write(&cluster.nodes[nodes[0]].rest.clone(), 1).await;
    for node in nodes {
        let node = cluster.nodes[node].rest.clone();
        let before = rounds(&node).await;
        let url = format!("{node}/v1/services/web");
        let replies = join_all((0..256).map(|_| call("GET", &url, ""))).await;
        assert!(replies.iter().all(|reply| reply.status == 200));
        let taken = rounds(&node).await - before;
        assert!((1..256).contains(&taken), "256 reads at once took {taken} rounds");
    }
}
