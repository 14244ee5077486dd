//! Damaged disks, with real processes: a node that lost something says so, takes no part, is repaired by its peers
//! and comes back as itself; one that nobody can repair refuses to start.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::time::sleep;

use super::node::{Cluster, PATIENCE};
use super::wire::{call, try_call};

async fn register(node: &str, ids: std::ops::Range<usize>) {
    let body = json!({ "service": "web", "url": "http://127.0.0.1:1", "ttlMs": 3_600_000 }).to_string();
    for id in ids {
        let reply = call("PUT", &format!("{node}/v1/instances/i{id}"), &body).await;
        assert_eq!(reply.status, 201, "{}", reply.json());
    }
}

async fn count(node: &str) -> usize {
    let list = call("GET", &format!("{node}/v1/services/web"), "").await;
    assert_eq!(list.status, 200, "{}", list.json());
    list.json()["instances"].as_array().map_or(0, Vec::len)
}

/// Every page of the database is gone; sled takes it for a new one and says nothing.
fn zero_the_database(dir: &Path) {
    let path = dir.join("sled/db");
    let length = fs::metadata(&path).expect("a database").len();
    fs::write(&path, vec![0; length as usize]).expect("writable");
}

/// A damaged follower is repaired from the leader's log, or from its snapshot where the log is purged, and votes
/// again: the leader's end is survived only with its vote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_node_is_repaired_by_its_peers_and_votes_again() {
    for flags in [&[][..], &["--snapshot-every", "20", "--log-keep", "5"]] {
        let mut cluster = Cluster::start(3, flags).await;
        let leader = cluster.leader().await;
        register(&cluster.nodes[leader].rest, 0..60).await;
        let victim = (leader + 1) % 3;
        cluster.nodes[victim].kill();
        zero_the_database(&cluster.nodes[victim].dir());
        cluster.nodes[victim].spawn();
        cluster.nodes[victim].wait_ready().await;
        let log = cluster.nodes[victim].log();
        assert!(log.contains("this node is in quarantine") && log.contains("takes part again"), "{log}");
        assert!(cluster.nodes[victim].dir().join("sled.damaged-1/db").exists());
        assert_eq!(count(&cluster.nodes[victim].rest).await, 60);

        let leader = cluster.leader().await;
        let gone = if leader == victim { (victim + 1) % 3 } else { leader };
        cluster.nodes[gone].kill();
        cluster.wait_ready().await;
        assert_eq!(count(&cluster.nodes[victim].rest).await, 60);
        register(&cluster.nodes[victim].rest, 60..61).await;
    }
}

/// Damage to one node must not become a loss for all: alone, or with one node that is whole, the damaged one leads
/// nobody and helps nobody to lead. It serves nothing meanwhile and says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_minority_never_decides() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let (victim, whole) = ((leader + 1) % 3, (leader + 2) % 3);
    register(&cluster.nodes[leader].rest, 0..20).await;
    // A node that is whole and yet behind: with the victim's vote it could win, without what was acknowledged.
    cluster.nodes[whole].kill();
    register(&cluster.nodes[leader].rest, 20..40).await;
    cluster.nodes[victim].kill();
    cluster.nodes[leader].kill();
    fs::remove_dir_all(cluster.nodes[victim].dir().join("sled")).expect("there");
    cluster.nodes[victim].spawn();
    cluster.nodes[whole].spawn();

    let base = cluster.nodes[victim].rest.clone();
    let deadline = Instant::now() + PATIENCE;
    let said = loop {
        if let Ok(reply) = try_call("GET", &format!("{base}/readyz"), "").await {
            break reply;
        }
        assert!(Instant::now() < deadline, "{}", cluster.nodes[victim].log());
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(said.status, 503);
    let refused = call("GET", &format!("{base}/v1/services/web?consistency=stale"), "").await;
    let refused = (refused.status, refused.json());
    assert!(refused.0 == 503 && refused.1["detail"].to_string().contains("in quarantine"), "{refused:?}");
    let body = json!({ "service": "web", "url": "http://127.0.0.1:1" }).to_string();
    assert_eq!(call("PUT", &format!("{base}/v1/instances/x"), &body).await.status, 503);
    let status = call("GET", &format!("{base}/v1/status"), "").await.json();
    assert!(status["notReadyReason"].to_string().contains("below index"), "{status}");
    let metrics = call("GET", &format!("{base}/metrics"), "").await;
    let metrics = String::from_utf8_lossy(&metrics.body);
    assert!(metrics.contains("registry_quarantined 1"), "{metrics}");

    // Many election time-outs (600 ms at most) long, nobody leads.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        for node in [victim, whole] {
            if let Ok(reply) = try_call("GET", &format!("{}/v1/status", cluster.nodes[node].rest), "").await {
                // The one that was killed may still be remembered as the leader; nobody takes its place.
                let status = reply.json();
                let named = &status["header"]["leader"]["id"];
                assert!(
                    named.is_null() || *named == json!((leader + 1).to_string()),
                    "node {node}: {status}"
                );
            }
        }
        sleep(Duration::from_millis(100)).await;
    }

    cluster.nodes[leader].spawn();
    cluster.wait_ready().await;
    for node in &cluster.nodes {
        assert_eq!(count(&node.rest).await, 40, "{}", node.rest);
    }
    assert!(cluster.nodes[victim].log().contains("takes part again"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_node_that_nobody_can_repair_refuses_to_start() {
    let mut cluster = Cluster::start(1, &[]).await;
    register(&cluster.nodes[0].rest, 0..5).await;
    cluster.nodes[0].kill();
    zero_the_database(&cluster.nodes[0].dir());
    let node = &mut cluster.nodes[0];
    node.spawn();
    assert_eq!(node.exit_code().await, Some(78), "{}", node.log());
    let log = node.log();
    for word in ["node-1/sled: ", "no other voter", "--join", "recover"] {
        assert!(log.contains(word), "{word}: {log}");
    }
    assert!(node.dir().join("sled/db").exists() && !node.dir().join("sled.damaged-1").exists());
}
