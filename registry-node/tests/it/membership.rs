//! Nodes that come and go: the way to replace one, as the README and the error messages tell it.

use std::time::{Duration, Instant};

use prost::Message;
use proto::raft::v1 as raft;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::node::{Cluster, PATIENCE};
use super::wire::{call, grpc, try_call};

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

/// Waits until `done` says so.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A change of members, asked of every running node until the one that leads answers.
async fn change(cluster: &Cluster, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for node in cluster.running() {
            if let Ok(reply) = try_call(method, &format!("{node}/v1/members{path}"), body).await
                && reply.status != 503
            {
                return (reply.status, reply.json());
            }
        }
        assert!(Instant::now() < deadline, "{method} {path}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Starts a node, adds it, and gives it a vote once it has caught up.
async fn grow(cluster: &mut Cluster, through: usize, id: u64) -> usize {
    let index = cluster.join_through(through, id);
    until("it joins", async || cluster.nodes[index].log().contains("joined cluster")).await;
    let node = &cluster.nodes[index];
    let member = json!({ "id": id, "name": format!("node-{id}"), "peer": node.peer(), "grpc": node.grpc, "rest": node.rest });
    let (status, answer) = change(cluster, "POST", "", &member.to_string()).await;
    assert_eq!(status, 200, "{answer}");
    let deadline = Instant::now() + PATIENCE;
    while change(cluster, "POST", &format!("/{id}/promote"), "").await.0 != 200 {
        assert!(Instant::now() < deadline, "{}", cluster.nodes[index].log());
        sleep(Duration::from_millis(50)).await;
    }
    index
}

/// Writes one instance after the other until told to stop; gives how many were acknowledged.
fn writer(node: String) -> (watch::Sender<bool>, JoinHandle<usize>) {
    let (stop, stopped) = watch::channel(false);
    let body = json!({ "service": "web", "url": "http://127.0.0.1:1", "ttlMs": 3_600_000 }).to_string();
    let writing = tokio::spawn(async move {
        let mut acknowledged = 0;
        while !*stopped.borrow() {
            let url = format!("{node}/v1/instances/w{acknowledged}");
            let reply = try_call("PUT", &url, &body).await;
            acknowledged += usize::from(reply.is_ok_and(|reply| matches!(reply.status, 200 | 201)));
        }
        acknowledged
    });
    (stop, writing)
}

/// Three grow to five while one of them is away, and shrink to three, the leader among those who go: no write that
/// was acknowledged is lost, and those who went cannot come back under their ids or disturb.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_and_shrinks_under_writes_and_who_left_stays_out() {
    let mut cluster = Cluster::start(3, &[]).await;
    let first_leader = cluster.leader().await;
    let (stays, away) = ((first_leader + 1) % 3, (first_leader + 2) % 3);
    let stays_rest = cluster.nodes[stays].rest.clone();
    let (stop, writing) = writer(stays_rest.clone());

    cluster.nodes[away].kill();
    let fourth = grow(&mut cluster, stays, 4).await;
    cluster.nodes[away].spawn();
    cluster.wait_ready().await;
    let fifth = grow(&mut cluster, stays, 5).await;
    assert_eq!(roles(&stays_rest).await.len(), 5);

    // A node that is away when it is removed comes back not knowing it.
    cluster.nodes[fourth].kill();
    let (status, answer) = change(&cluster, "DELETE", "/4", "").await;
    assert_eq!(status, 200, "{answer}");
    // The leader, if it is none of those who stay, else any other.
    let leader = cluster.leader().await;
    let leaves = if [stays, fifth].contains(&leader) { away } else { leader };
    let leaves_id = leaves as u64 + 1;
    let (status, answer) = change(&cluster, "DELETE", &format!("/{leaves_id}"), "").await;
    assert_eq!(status, 200, "{answer}");
    let gone = cluster.nodes[leaves].rest.clone();
    until("the one that runs hears that it was removed", async || {
        try_call("GET", &format!("{gone}/readyz"), "").await.is_ok_and(|reply| {
            reply.status == 503 && String::from_utf8_lossy(&reply.body).contains("was removed at revision")
        })
    })
    .await;
    let stale = call("GET", &format!("{gone}/v1/members"), "").await;
    assert_eq!(stale.status, 503, "{}", stale.json());
    cluster.nodes[leaves].kill();

    cluster.nodes[fourth].spawn();
    until("the one that was away hears it", async || {
        cluster.nodes[fourth].log().contains("takes no part any more")
    })
    .await;
    assert!(
        cluster.nodes[fourth].log().contains("was removed at revision"),
        "{}",
        cluster.nodes[fourth].log()
    );
    cluster.nodes[fourth].kill();

    // Whatever a removed node asks for, its call is refused before Raft sees it: no term rises.
    let status = call("GET", &format!("{stays_rest}/v1/status"), "").await.json();
    let cluster_id = status["header"]["clusterId"].as_str().expect("a text").to_owned();
    let header = raft::PeerHeader { cluster_id, from: 4, to: stays as u64 + 1 };
    let leader = Some(raft::LeaderId { term: 1 << 40, node_id: 4 });
    let vote = Some(raft::Vote { leader, committed: false });
    let request =
        raft::VoteRequest { header: Some(header), vote, leadership_transfer: true, ..Default::default() };
    for method in ["Vote", "PreVote"] {
        let peer = cluster.nodes[stays].peer();
        let (refused, _) = grpc(&peer, &format!("raft.v1.Raft/{method}"), &request.encode_to_vec()).await;
        assert_eq!(refused, tonic::Code::PermissionDenied as i32, "{method}");
    }
    let status = call("GET", &format!("{stays_rest}/v1/status"), "").await.json();
    let term: u64 = status["header"]["term"].as_str().expect("a text").parse().expect("a number");
    assert!(term < 1 << 40, "a removed node has moved the term");

    // Not by its directory, not by an empty one, not by being added again.
    cluster.nodes[fourth].wipe();
    cluster.nodes[fourth].spawn();
    assert_eq!(cluster.nodes[fourth].exit_code().await, Some(78), "{}", cluster.nodes[fourth].log());
    assert!(cluster.nodes[fourth].log().contains("its id is spent"), "{}", cluster.nodes[fourth].log());
    cluster.nodes[fourth].kill();
    let again = json!({ "id": 4, "name": "again", "peer": "http://127.0.0.1:1", "grpc": "http://127.0.0.1:1", "rest": "http://127.0.0.1:1" });
    let (status, answer) = change(&cluster, "POST", "", &again.to_string()).await;
    assert!(status == 409 && answer["detail"].to_string().contains("was removed at revision"), "{answer}");

    stop.send(true).expect("it still writes");
    let acknowledged = writing.await.expect("no panic");
    assert!(acknowledged > 20, "only {acknowledged} writes: the cluster stood still");
    let list = call("GET", &format!("{}/v1/services/web", cluster.nodes[fifth].rest), "").await.json();
    let found = list["instances"].as_array().map_or(0, Vec::len);
    assert!(found >= acknowledged, "{found} of {acknowledged} acknowledged writes are left");
}

/// Of three with one away, taking out another would leave two that need each other, one of them gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_would_cost_the_majority_is_refused() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let (away, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.nodes[away].kill();
    // A follower counts as answering until it has been silent for a while; giving a vote to one that has one
    // changes nothing.
    until("its silence is noticed", async || {
        let (status, answer) = change(&cluster, "POST", &format!("/{}/promote", away + 1), "").await;
        status == 409 && answer["detail"].to_string().contains("does not answer")
    })
    .await;
    let (status, answer) = change(&cluster, "DELETE", &format!("/{}", other + 1), "").await;
    assert!(status == 409 && answer["detail"].to_string().contains("no majority"), "{answer}");

    let nobody = json!({ "id": 9, "name": "nobody", "peer": "http://127.0.0.1:1", "grpc": "http://127.0.0.1:1", "rest": "http://127.0.0.1:1" });
    assert_eq!(change(&cluster, "POST", "", &nobody.to_string()).await.0, 200);
    let (status, answer) = change(&cluster, "POST", "/9/promote", "").await;
    assert!(status == 409 && answer["detail"].to_string().contains("does not answer"), "{answer}");
    assert_eq!(change(&cluster, "DELETE", "/9", "").await.0, 200);

    let (status, answer) = change(&cluster, "DELETE", &format!("/{}", away + 1), "").await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(roles(&cluster.nodes[leader].rest).await.len(), 2);
    let body = json!({ "service": "web", "url": "http://127.0.0.1:1" }).to_string();
    assert_eq!(
        call("PUT", &format!("{}/v1/instances/a", cluster.nodes[other].rest), &body).await.status,
        201
    );
}
