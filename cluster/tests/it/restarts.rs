//! What the registry keeps over restarts, how a node catches up, and what happens to one that lost its memory.

use std::collections::BTreeMap;

use cluster::{Cluster, Error, Options};
use futures_util::future::join_all;
use serde_json::Value;

use crate::support::{
    PATIENCE, eventually, follower, get_json, leader, only_nodes, put, rests, with_cluster,
};

/// An hour: nothing expires by itself here.
const TTL_MS: u64 = 3_600_000;

/// Registers `count` instances called `prefix-…`, one after the other: at once they would share entries of the log, and
/// how many there are decides when it is purged.
async fn register(rest: &str, prefix: &str, count: usize) {
    for number in 0..count {
        put(rest, &format!("{prefix}-{number}"), "http://127.0.0.1:9", TTL_MS).await;
    }
}

/// Ids and incarnations, as the node at `rest` lists them; `None` while it does not.
async fn listed(rest: &str, query: &str) -> Option<BTreeMap<String, String>> {
    let answer = get_json(&format!("{rest}/v1/instances{query}")).await.ok()?;
    let one = |instance: &Value| Some((instance["id"].as_str()?.to_owned(), instance["regRev"].to_string()));
    Some(
        answer["instances"].as_array().map_or_else(BTreeMap::new, |all| all.iter().filter_map(one).collect()),
    )
}

async fn status(rest: &str) -> Option<Value> {
    get_json(&format!("{rest}/v1/status")).await.ok()
}

fn number(status: &Value, key: &str) -> u64 {
    match &status[key] {
        Value::String(text) => text.parse().expect("a number"),
        other => other.as_u64().unwrap_or(0),
    }
}

async fn restart(cluster: &Cluster, name: &str) {
    cluster.start(name).await.expect("it was down");
    cluster.wait_ready_of(&[name]).await.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn killing_all_nodes_at_once_loses_no_registration() {
    with_cluster(only_nodes("restart_all"), async |cluster| {
        let nodes = rests(cluster);
        register(&nodes["node-2"], "kept", 100).await;
        let before = listed(&nodes["node-1"], "").await.expect("it serves");
        assert_eq!(before.len(), 100);
        for done in join_all(nodes.keys().map(|name| cluster.kill(name))).await {
            done.expect("it ran");
        }
        for name in nodes.keys() {
            cluster.start(name).await.expect("it was down");
        }
        let names: Vec<&str> = nodes.keys().map(String::as_str).collect();
        cluster.wait_ready_of(&names).await.unwrap_or_else(|error| panic!("{error}"));
        for (name, rest) in &nodes {
            let after = eventually("it serves again", PATIENCE, async || listed(rest, "").await).await;
            assert_eq!(after, before, "{name}");
        }
    });
}

#[test]
fn a_node_that_was_away_catches_up_by_the_log() {
    with_cluster(only_nodes("catch_up_by_log"), async |cluster| {
        catch_up(cluster, 30, async |away, leads| {
            assert_eq!(number(&leads, "purgedIndex"), 0, "the log is whole: {leads} {away}");
        })
        .await;
    });
}

#[test]
fn a_node_that_was_away_too_long_catches_up_by_a_snapshot() {
    let args = ["--snapshot-every", "40", "--log-keep", "10"].map(String::from).to_vec();
    with_cluster(Options { node_args: args, ..only_nodes("catch_up_by_snapshot") }, async |cluster| {
        catch_up(cluster, 150, async |away, leads| {
            let (had, purged) = (number(&away, "lastLogIndex"), number(&leads, "purgedIndex"));
            assert!(purged > had, "the leader still has what the other misses: {purged} <= {had}");
        })
        .await;
    });
}

/// Stops a follower, registers `count` instances, checks that the catch-up will be of the expected kind, starts
/// it again, and waits until it has them all itself.
async fn catch_up(cluster: &Cluster, count: usize, expected: impl AsyncFnOnce(Value, Value)) {
    let nodes = rests(cluster);
    let away = follower(cluster).await;
    let before = status(&nodes[&away]).await.expect("it runs");
    cluster.stop(&away).await.expect("it stops when told");
    let leads = nodes[&leader(cluster).await].clone();
    register(&leads, "late", count).await;
    let purged = |status: &Value| number(status, "purgedIndex") > number(&before, "lastLogIndex");
    // A snapshot and the purge behind it come a moment after the entry that asks for them.
    if count > 100 {
        eventually("the log is purged", PATIENCE, async || status(&leads).await.filter(purged)).await;
    }
    expected(before, status(&leads).await.expect("it runs")).await;
    restart(cluster, &away).await;
    let all = listed(&leads, "").await.expect("it serves");
    assert_eq!(all.len(), count);
    eventually("the node has everything itself", PATIENCE, async || {
        let own = listed(&nodes[&away], "?consistency=stale").await?;
        (own == all).then_some(())
    })
    .await;
}

#[test]
fn a_wiped_node_refuses_to_start_and_says_how_to_replace_it() {
    with_cluster(only_nodes("wiped"), async |cluster| {
        let nodes = rests(cluster);
        register(&nodes["node-1"], "kept", 5).await;
        let wiped = follower(cluster).await;
        cluster.stop(&wiped).await.expect("it stops when told");
        std::fs::remove_dir_all(cluster.spec(&wiped).expect("it is there").dir).expect("it is ours");
        cluster.start(&wiped).await.expect("it was down");
        match cluster.wait_ready_of(&[&wiped]).await {
            Err(Error::Died { tail, .. }) => {
                let says = tail.to_lowercase();
                assert!(
                    says.contains("replace") && says.contains("new id"),
                    "no word about replacing:\n{tail}"
                );
            }
            other => panic!("it should have ended by itself: {other:?}"),
        }
        let rest = &nodes[&leader(cluster).await];
        register(rest, "more", 5).await;
        assert_eq!(listed(rest, "").await.expect("it serves").len(), 10);
    });
}
