//! Nodes that come and go: the way to replace one, as the README and the error messages tell it.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use super::node::{Cluster, PATIENCE};
use super::wire::call;

async fn roles(node: &str) -> Vec<(String, String)> {
    let members = call("GET", &format!("{node}/v1/members"), "").await.json();
    let text = |member: &serde_json::Value, key: &str| member[key].as_str().unwrap_or_default().to_owned();
    let members = members["members"].as_array().expect("an array");
    members.iter().map(|member| (text(member, "id"), text(member, "role"))).collect()
}

/// A node joins under a new id, is added, refused a vote until it has caught up, promoted, and serves. Then its
/// directory is wiped: under the same id it must not come back, because it could vote twice. It is removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_is_promoted_is_wiped_and_must_not_come_back() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let base = format!("{}/v1/members", cluster.nodes[leader].rest);
    let body = json!({ "service": "web", "url": "http://127.0.0.1:1" }).to_string();
    assert_eq!(
        call("PUT", &format!("{}/v1/instances/a", cluster.nodes[leader].rest), &body).await.status,
        201
    );

    let early = call("POST", &format!("{base}/4/promote"), "").await;
    assert!(
        early.status == 409 && early.json()["detail"].to_string().contains("no member"),
        "{}",
        early.json()
    );

    let fourth = cluster.join(4);
    let node = &cluster.nodes[fourth];
    let deadline = Instant::now() + PATIENCE;
    while !node.log().contains("joined cluster") {
        assert!(Instant::now() < deadline, "{}", node.log());
        sleep(Duration::from_millis(20)).await;
    }
    let member =
        json!({ "id": 4, "name": "node-4", "peer": node.peer(), "grpc": node.grpc, "rest": node.rest });
    let added = call("POST", &base, &member.to_string()).await;
    assert_eq!(added.status, 200, "{}", added.json());
    cluster.nodes[fourth].wait_ready().await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let promoted = call("POST", &format!("{base}/4/promote"), "").await;
        if promoted.status == 200 {
            break;
        }
        assert!(promoted.status == 409 && Instant::now() < deadline, "{}", promoted.json());
        sleep(Duration::from_millis(20)).await;
    }
    let known = call("GET", &format!("{}/v1/instances/a", cluster.nodes[fourth].rest), "").await;
    assert_eq!(known.status, 200, "{}", known.json());
    assert_eq!(roles(&cluster.nodes[leader].rest).await.len(), 4);

    cluster.nodes[fourth].kill();
    cluster.nodes[fourth].wipe();
    cluster.nodes[fourth].spawn();
    assert_eq!(cluster.nodes[fourth].exit_code().await, Some(78), "{}", cluster.nodes[fourth].log());
    let log = cluster.nodes[fourth].log();
    assert!(log.contains("node 4 has lost its memory") && log.contains("--join"), "{log}");

    let removed = call("DELETE", &format!("{base}/4"), "").await;
    assert_eq!(removed.status, 200, "{}", removed.json());
    let left: Vec<String> = roles(&cluster.nodes[leader].rest).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(left, ["1", "2", "3"]);
}
