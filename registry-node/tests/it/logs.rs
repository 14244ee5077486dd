//! What the logs of all nodes say together, read from their directories after their leaders were killed one after the
//! other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use super::node::{Cluster, PATIENCE};
use super::offline::inspected;
use super::wire::try_call;

/// Revisions and what they were acknowledged to have registered.
type Acked = Arc<Mutex<BTreeMap<u64, String>>>;

/// Registers one instance after the other through a node until told to stop.
async fn write(node: String, name: usize, acked: Acked, stop: watch::Receiver<bool>) {
    let body = json!({ "service": "web", "url": "http://127.0.0.1:1", "ttlMs": 3_600_000 }).to_string();
    for number in 0.. {
        if *stop.borrow() {
            return;
        }
        let id = format!("n{name}-{number}");
        match try_call("PUT", &format!("{node}/v1/instances/{id}"), &body).await {
            Ok(reply) if reply.status == 201 => {
                let instance = &reply.json()["instance"];
                let revision = instance["modRev"].as_str().and_then(|it| it.parse().ok()).expect("a number");
                acked.lock().expect("no panic").insert(revision, id);
            }
            // The node is down, or nobody leads.
            _ => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Waits until so many more writes are acknowledged.
async fn more(acked: &Acked, count: usize) {
    let wanted = acked.lock().expect("no panic").len() + count;
    let deadline = Instant::now() + PATIENCE;
    while acked.lock().expect("no panic").len() < wanted {
        assert!(Instant::now() < deadline, "nothing is acknowledged");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A node's log: the lines of each entry, by index.
fn log_of(dir: &std::path::Path) -> BTreeMap<u64, Vec<Value>> {
    let (code, lines) = inspected(dir, "--log");
    assert_eq!(code, Some(0), "{}", dir.display());
    let mut entries = BTreeMap::<u64, Vec<Value>>::new();
    for line in lines {
        entries.entry(line["index"].as_u64().expect("a number")).or_default().push(line);
    }
    entries
}

/// The leader id of an entry: of two leaders one comes after the other.
fn leader(entry: &[Value]) -> (u64, u64) {
    let number = |key: &str| entry[0][key].as_u64().expect("a number");
    (number("term"), number("leader"))
}

/// The entry as every node must have it: whether it is known to be committed is each node's own.
fn said(entry: &[Value]) -> Vec<Value> {
    let mut lines = entry.to_vec();
    lines.iter_mut().for_each(|line| line["committed"] = Value::Null);
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_leaders_committed_stays_and_is_on_a_majority() {
    let mut cluster = Cluster::start(3, &[]).await;
    let acked = Acked::default();
    let (stop, stopped) = watch::channel(false);
    let nodes = cluster.nodes.iter().map(|node| node.rest.clone()).enumerate();
    let writers: Vec<_> =
        nodes.map(|(name, node)| tokio::spawn(write(node, name, acked.clone(), stopped.clone()))).collect();
    for _ in 0..3 {
        let leader = cluster.leader().await;
        more(&acked, 15).await;
        cluster.nodes[leader].kill();
        more(&acked, 15).await;
        cluster.nodes[leader].spawn();
        cluster.nodes[leader].wait_ready().await;
    }
    // Killed while they write, all at once.
    cluster.nodes.iter_mut().for_each(super::node::Node::kill);
    stop.send(true).expect("they still write");
    for writer in writers {
        writer.await.expect("no panic");
    }

    let logs: Vec<_> = cluster.nodes.iter().map(|node| log_of(&node.dir())).collect();
    let committed = logs.iter().flat_map(|log| log.values().flatten());
    let committed = committed.filter(|line| line["committed"] == true);
    let committed = committed.filter_map(|line| line["index"].as_u64()).max().expect("something is");

    // On each node: no gap, and leaders only ever follow each other.
    for log in &logs {
        assert!(log.keys().copied().eq(0..log.len() as u64), "a gap: {:?}", log.keys());
        assert!(log.values().is_sorted_by_key(|entry| leader(entry)), "a leader came back");
    }
    // Between them: one entry at each committed index, on a majority.
    let mut history = Vec::new();
    for index in 0..=committed {
        let entries: Vec<&Vec<Value>> = logs.iter().filter_map(|log| log.get(&index)).collect();
        assert!(entries.len() >= 2, "entry {index} is committed, and on {} of 3 nodes", entries.len());
        assert!(entries.iter().all(|entry| said(entry) == said(entries[0])), "{index}: {entries:#?}");
        history.push(entries[0]);
    }
    // Beyond the newest mark that any node had written: a mark is written with the next entry, and an acknowledgement
    // does not wait for that.
    for index in committed + 1.. {
        let entries: Vec<&Vec<Value>> = logs.iter().filter_map(|log| log.get(&index)).collect();
        let same = |entry: &Vec<Value>| entries.iter().filter(|other| said(other) == said(entry)).count();
        let Some(entry) = entries.iter().find(|entry| same(entry) >= 2) else { break };
        history.push(entry);
    }
    // Each leader began with an entry of its own after all that was committed before it.
    let mut leaders = BTreeSet::new();
    for entry in history.iter().skip(1) {
        if leaders.insert(leader(entry)) {
            assert_eq!(entry[0]["command"]["do"], "blank", "{entry:?}");
        }
    }
    assert!(leaders.len() >= 4, "only {leaders:?} led");
    // What was acknowledged is there, at its revision.
    let changes: BTreeMap<u64, &str> = (history.iter().flat_map(|entry| entry.iter()))
        .filter(|line| line["changed"] == true)
        .map(|line| {
            (line["revision"].as_u64().expect("a number"), line["command"]["id"].as_str().unwrap_or_default())
        })
        .collect();
    for (revision, id) in acked.lock().expect("no panic").iter() {
        assert_eq!(changes.get(revision), Some(&id.as_str()), "revision {revision}");
    }
}
