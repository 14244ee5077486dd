//! What an unmodified client of the original sees while nodes die and come back: a slow answer at worst.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use super::node::{Cluster, PATIENCE};
use super::wire::{call, try_call};

fn body(id: &str) -> String {
    json!({ "id": id, "serviceName": "web", "url": "http://127.0.0.1:1", "healthPath": "/health" })
        .to_string()
}

async fn listed(node: &str) -> Vec<String> {
    let list = call("GET", &format!("{node}/api/v1/services"), "").await;
    assert_eq!(list.status, 200, "{}", list.json());
    let list = list.json();
    list.as_array()
        .expect("an array")
        .iter()
        .map(|one| one["id"].as_str().expect("an id").to_owned())
        .collect()
}

/// One URL, a time-out of 5 s, no fail-over: through a surviving node, no call fails and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_one_url_survives_the_leader() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let survivor = cluster.nodes[(leader + 1) % 3].rest.clone();
    let base = format!("{survivor}/api/v1/services");
    assert_eq!(call("POST", &format!("{base}/register"), &body("first")).await.status, 201);
    cluster.nodes[leader].kill();
    // Each of these begins without a leader.
    assert_eq!(call("POST", &format!("{base}/register"), &body("second")).await.status, 201);
    assert_eq!(call("POST", &format!("{base}/heartbeat/first"), "").await.status, 200);
    assert_eq!(listed(&survivor).await, ["first", "second"]);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        assert_eq!(call("POST", &format!("{base}/heartbeat/second"), "").await.status, 200);
        assert_eq!(listed(&survivor).await.len(), 2);
    }
    cluster.nodes[leader].spawn();
    cluster.wait_ready().await;
    assert_eq!(listed(&cluster.nodes[leader].rest).await, ["first", "second"]);
    assert_eq!(call("DELETE", &format!("{base}/deregister/first"), "").await.status, 204);
    assert_eq!(listed(&cluster.nodes[leader].rest).await, ["second"]);
}

/// 503, never 200 with less than there is: without a quorum, while starting, after all nodes lost power at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_know_says_so() {
    let mut cluster = Cluster::start(3, &[]).await;
    let base = |index: usize, cluster: &Cluster| format!("{}/api/v1/services", cluster.nodes[index].rest);
    for id in ["a", "b", "c"] {
        assert_eq!(call("POST", &format!("{}/register", base(0, &cluster)), &body(id)).await.status, 201);
    }
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    for path in [base(0, &cluster), format!("{}/web/healthy", base(0, &cluster))] {
        let refused = call("GET", &path, "").await;
        assert_eq!((refused.status, refused.header("retry-after")), (503, "1"), "{}", refused.json());
        assert_eq!(refused.json()["retryable"], json!(true));
    }
    assert_eq!(call("GET", &format!("{}/livez", cluster.nodes[0].rest), "").await.status, 200);
    assert_eq!(call("GET", &format!("{}/readyz", cluster.nodes[0].rest), "").await.status, 503);

    cluster.nodes[0].kill();
    cluster.nodes.iter_mut().for_each(super::node::Node::spawn);
    let watched: Vec<String> = (0..3).map(|index| base(index, &cluster)).collect();
    let deadline = Instant::now() + PATIENCE;
    let mut served = [false; 3];
    while served != [true; 3] {
        assert!(Instant::now() < deadline, "not all serve again: {served:?}");
        for (index, base) in watched.iter().enumerate() {
            // Not listening yet is as good as 503.
            let Ok(reply) = try_call("GET", base, "").await else { continue };
            match reply.status {
                200 => assert_eq!(reply.json().as_array().map(Vec::len), Some(3), "node {}", index + 1),
                status => assert_eq!(status, 503, "node {}", index + 1),
            }
            served[index] = reply.status == 200;
        }
    }
}

/// The original's SDK beats every 10 s, give or take; the lease of 30 s has room for that. Without beats it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_with_jitter_keep_an_instance_listed_throughout() {
    let cluster = Cluster::start(1, &[]).await;
    let node = cluster.nodes[0].rest.clone();
    for id in ["beating", "silent"] {
        assert_eq!(call("POST", &format!("{node}/api/v1/services/register"), &body(id)).await.status, 201);
    }
    let begun = Instant::now();
    let mut beats = [13, 20, 33].map(Duration::from_secs).into_iter().peekable();
    loop {
        let ids = listed(&node).await;
        assert!(ids.contains(&"beating".to_owned()), "gone after {:?}", begun.elapsed());
        if beats.next_if(|at| *at <= begun.elapsed()).is_some() {
            assert_eq!(
                call("POST", &format!("{node}/api/v1/services/heartbeat/beating"), "").await.status,
                200
            );
        }
        if !ids.contains(&"silent".to_owned()) {
            assert!(
                begun.elapsed() > Duration::from_secs(29),
                "a lease of 30 s ended after {:?}",
                begun.elapsed()
            );
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(45), "a lease of 30 s never ended");
        sleep(Duration::from_millis(250)).await;
    }
}

/// A leader whose questions arrive and whose answers are lost keeps its followers content while it can commit
/// nothing. It must give way, and follow once it hears again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hears_nobody_gives_way() {
    let (mut cluster, links) = Cluster::start_linked(3).await;
    let deaf = cluster.leader().await;
    let follower = (deaf + 1) % 3;
    let base = format!("{}/api/v1/services", cluster.nodes[follower].rest);
    assert_eq!(call("POST", &format!("{base}/register"), &body("before")).await.status, 201);
    links.iter().filter(|link| link.from == deaf).for_each(|link| link.mute(true));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reply = try_call("POST", &format!("{base}/register"), &body("after")).await;
        if reply.as_ref().is_ok_and(|reply| matches!(reply.status, 200 | 201)) {
            break;
        }
        assert!(Instant::now() < deadline, "nobody took over: {reply:?}");
        sleep(Duration::from_millis(50)).await;
    }
    let status = call("GET", &format!("{}/v1/status", cluster.nodes[follower].rest), "").await.json();
    assert_ne!(status["header"]["leader"]["rest"], cluster.nodes[deaf].rest.as_str(), "{status}");
    links.iter().for_each(|link| link.mute(false));
    cluster.wait_ready().await;
    let mut ids = listed(&cluster.nodes[deaf].rest).await;
    ids.sort();
    assert_eq!(ids, ["after", "before"]);
}

/// SIGTERM: the lead is somebody else's before the leader ends, without an election time-out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_told_to_stop_hands_over() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let base = format!("{}/api/v1/services", cluster.nodes[(leader + 1) % 3].rest);
    assert_eq!(call("POST", &format!("{base}/register"), &body("first")).await.status, 201);
    assert_eq!(cluster.nodes[leader].stop().await, Some(0));
    let log = cluster.nodes[leader].log();
    assert!(log.contains("stopping") && !log.contains("was not handed over"), "{log}");
    assert_eq!(call("POST", &format!("{base}/register"), &body("second")).await.status, 201);
    assert_ne!(cluster.leader().await, leader);
}
