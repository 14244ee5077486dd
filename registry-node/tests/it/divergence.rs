//! A node whose catalog is not what the log says: nothing in its files is damaged, and still it must not serve.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use registry_node::catalog::{Catalog, Command, InstanceId, Proposal, Status};
use registry_node::storage::{Snapshot, Store};
use serde_json::json;
use tokio::time::sleep;

use super::node::{Cluster, PATIENCE};
use super::wire::{call, try_call};

/// Marks one instance as draining in the newest snapshot of the store in `dir`, with every checksum right.
async fn alter(dir: &std::path::Path) {
    let (store, found) =
        Store::open(dir, &|_| Ok(()), Arc::default(), |e| panic!("{e}")).expect("it is sound");
    let snapshot = found.snapshot.expect("the node has taken one");
    let mut catalog = Catalog::from_chunks(&snapshot.chunks).expect("it is sound");
    let id = InstanceId::new("i0").expect("valid");
    let command = Command::SetStatus { id, status: Status::Draining, reg_rev: None };
    catalog.apply(1, &Proposal { command, cause: Arc::default(), origin: None });
    let chunks = catalog.to_chunks().into_iter().map(Bytes::from).collect();
    store.save_snapshot(Snapshot { chunks, ..snapshot }).await.expect("it can be written");
    drop(store);
    // The storage thread ends a moment after its last handle.
    let database = std::fs::File::open(dir.join("lock")).expect("it is there");
    let deadline = Instant::now() + PATIENCE;
    while database.try_lock().is_err() {
        assert!(Instant::now() < deadline, "the store is still in use");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_a_majority_contradicts_takes_no_part_and_says_why() {
    let mut cluster = Cluster::start(3, &["--snapshot-every", "20", "--log-keep", "5"]).await;
    let odd = cluster.follower().await;
    let base = cluster.nodes[(odd + 1) % 3].rest.clone();
    let body = json!({ "service": "web", "url": "http://127.0.0.1:1", "ttlMs": 3_600_000 }).to_string();
    for number in 0..60 {
        assert_eq!(call("PUT", &format!("{base}/v1/instances/i{number}"), &body).await.status, 201);
    }
    let node = cluster.nodes[odd].rest.clone();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = call("GET", &format!("{node}/v1/status"), "").await.json();
        if status["snapshotIndex"].as_str().is_some_and(|index| index != "0") {
            break;
        }
        assert!(Instant::now() < deadline, "no snapshot: {status}");
        sleep(Duration::from_millis(20)).await;
    }
    cluster.nodes[odd].kill();
    alter(&cluster.nodes[odd].dir()).await;
    cluster.nodes[odd].spawn();

    let deadline = Instant::now() + PATIENCE;
    let alarm = loop {
        if let Ok(reply) = try_call("GET", &format!("{node}/v1/status"), "").await
            && let Some(alarm) = reply.json()["alarm"].as_str().filter(|alarm| !alarm.is_empty())
        {
            break alarm.to_owned();
        }
        assert!(Instant::now() < deadline, "{}", cluster.nodes[odd].log());
        sleep(Duration::from_millis(50)).await;
    };
    assert!(alarm.contains("majority of the voters") && alarm.contains("after log index"), "{alarm}");
    let ready = call("GET", &format!("{node}/readyz"), "").await;
    let why = String::from_utf8_lossy(&ready.body).into_owned();
    assert!(ready.status == 503 && why.contains("majority of the voters"), "{why}");
    for consistency in ["linearizable", "stale"] {
        let refused = call("GET", &format!("{node}/v1/services/web?consistency={consistency}"), "").await;
        assert_eq!(refused.status, 503, "{}", refused.json());
    }
    let metrics = call("GET", &format!("{node}/metrics"), "").await;
    assert!(String::from_utf8_lossy(&metrics.body).contains("\nregistry_alarm 1\n"));
    assert!(cluster.nodes[odd].log().contains("takes itself out of service"), "{}", cluster.nodes[odd].log());

    // The others hold the truth and go on.
    assert_eq!(call("PUT", &format!("{base}/v1/instances/later"), &body).await.status, 201);
    let kept = call("GET", &format!("{base}/v1/instances/i0"), "").await.json();
    assert_eq!(kept["instance"]["status"], "UP", "{kept}");

    // Started again, it is repaired by them and holds what they hold.
    cluster.nodes[odd].kill();
    cluster.nodes[odd].spawn();
    cluster.nodes[odd].wait_ready().await;
    let repaired = call("GET", &format!("{node}/v1/instances/i0?consistency=stale"), "").await.json();
    assert_eq!(repaired["instance"]["status"], "UP", "{repaired}");
    let status = call("GET", &format!("{node}/v1/status"), "").await.json();
    assert!(status["alarm"].as_str().is_none_or(str::is_empty), "{status}");
}
