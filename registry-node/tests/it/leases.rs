//! Leases of a real node: the brake on mass expiry, and time that does not count.

use std::time::{Duration, Instant};

use proto::registry::v1 as pb;
use proto::registry::v1::pipeline_request::Call;
use proto::registry::v1::pipeline_response::Result as Answer;
use proto::registry::v1::registry_client::RegistryClient;
use tokio::time::sleep;

use super::node::{Cluster, PATIENCE};
use super::wire::{call, try_call};

const INSTANCES: usize = 200;

/// The brake holds for one TTL, and would let nobody go before.
pub const TTL: Duration = Duration::from_secs(20);

pub async fn listed(node: &str) -> usize {
    let list = call("GET", &format!("{node}/v1/services/mass"), "").await;
    assert_eq!(list.status, 200, "{}", list.json());
    list.json()["instances"].as_array().map_or(0, Vec::len)
}

async fn is_braked(node: &str) -> bool {
    let scrape = call("GET", &format!("{node}/metrics"), "").await;
    String::from_utf8_lossy(&scrape.body).lines().any(|line| line == "registry_expiry_brake 1")
}

/// Waits until the brake holds back what has run out.
pub async fn await_brake(node: &str) {
    let begun = Instant::now();
    while !is_braked(node).await {
        assert!(begun.elapsed() < TTL + PATIENCE, "the brake does not engage");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_runs_out_is_held_back_until_it_is_much() {
    let cluster = Cluster::start(1, &[]).await;
    let node = &cluster.nodes[0].rest;
    let none = call("POST", &format!("{node}/v1/leases/release"), "").await;
    assert_eq!((none.status, none.json()["released"].as_str()), (200, None), "{}", none.json());
    assert!(!is_braked(node).await);
}

/// A leader that stood still heard no heartbeat meanwhile: what ran out in that time has its whole time again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_in_which_a_leader_stood_still_does_not_count() {
    const SHORT: Duration = Duration::from_secs(4);
    let cluster = Cluster::start(1, &[]).await;
    let node = &cluster.nodes[0];
    let instance = format!("{}/v1/instances/a", node.rest);
    let body = format!(r#"{{"service":"w","url":"http://127.0.0.1:1","ttlMs":{}}}"#, SHORT.as_millis());
    assert_eq!(call("PUT", &instance, &body).await.status, 201);
    node.pause();
    sleep(SHORT + Duration::from_secs(1)).await; // the fault itself: it has to last
    let resumed = Instant::now();
    node.resume();
    // Uncounted, the time is a third and an election more than the TTL; counted, it is over at the first tick.
    while resumed.elapsed() < SHORT / 3 {
        assert_eq!(call("GET", &instance, "").await.status, 200, "gone after {:?}", resumed.elapsed());
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(call("POST", &format!("{instance}/heartbeat"), "").await.status, 200);
}

/// A leader that stood still until its leases had run out, and was replaced meanwhile, must not act on what it
/// remembers. Those who beat at its successor stay, in the same incarnation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_wakes_after_it_was_replaced_expires_nobody() {
    const SHORT: Duration = Duration::from_secs(6);
    let mut cluster = Cluster::start(3, &[]).await;
    let old = cluster.leader().await;
    let others = [(old + 1) % 3, (old + 2) % 3].map(|other| cluster.nodes[other].rest.clone());
    let body = format!(r#"{{"service":"w","url":"http://127.0.0.1:1","ttlMs":{}}}"#, SHORT.as_millis());
    let registered = call("PUT", &format!("{}/v1/instances/a", others[0]), &body).await.json();
    let reg_rev = registered["instance"]["regRev"].as_str().expect("a revision").to_owned();
    let beat = format!("{}/v1/instances/a/heartbeat?reg_rev={reg_rev}", others[1]);
    cluster.nodes[old].pause();
    let paused = Instant::now();
    let (mut acknowledged, mut resumed) = (0, None);
    // Until it has stood still for longer than the lease, and then for as long as it could do harm.
    while resumed.is_none_or(|at: Instant| at.elapsed() < SHORT / 2) {
        match try_call("POST", &beat, "").await {
            Ok(reply) if reply.status == 200 => acknowledged += 1,
            // There is no leader for a while; a lease that is lost would be told so.
            Ok(reply) => assert!(reply.status >= 500, "{}", reply.json()),
            Err(_) => {}
        }
        if resumed.is_none() && paused.elapsed() > SHORT + Duration::from_secs(1) {
            assert!(acknowledged > 0, "nobody leads in its place");
            cluster.nodes[old].resume();
            resumed = Some(Instant::now());
        }
        sleep(Duration::from_millis(200)).await;
    }
    cluster.wait_ready().await;
    for node in &cluster.nodes {
        let seen = call("GET", &format!("{}/v1/instances/a", node.rest), "").await;
        assert_eq!((seen.status, seen.json()["instance"]["regRev"].as_str()), (200, Some(&*reg_rev)));
    }
}

/// While no quorum answers no heartbeat is acknowledged, and nobody is punished for that: who beats again once it
/// is back is the incarnation it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_without_a_quorum_costs_no_lease() {
    const SHORT: Duration = Duration::from_secs(4);
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let rest = cluster.nodes[leader].rest.clone();
    let followers = [(leader + 1) % 3, (leader + 2) % 3];
    let body = format!(r#"{{"service":"w","url":"http://127.0.0.1:1","ttlMs":{}}}"#, SHORT.as_millis());
    let registered = call("PUT", &format!("{rest}/v1/instances/a"), &body).await.json();
    let reg_rev = registered["instance"]["regRev"].as_str().expect("a revision").to_owned();
    followers.iter().for_each(|follower| cluster.nodes[*follower].pause());
    sleep(SHORT + Duration::from_secs(1)).await; // the fault itself: it has to last
    let beat = format!("{rest}/v1/instances/a/heartbeat?reg_rev={reg_rev}");
    let alone = try_call("POST", &beat, "").await;
    assert!(
        alone.as_ref().map_or(true, |reply| reply.status >= 500),
        "acknowledged by one of three: {alone:?}"
    );
    followers.iter().for_each(|follower| cluster.nodes[*follower].resume());
    let resumed = Instant::now();
    loop {
        match try_call("POST", &beat, "").await {
            Ok(reply) if reply.status == 200 => break,
            Ok(reply) => assert!(reply.status >= 500, "{}", reply.json()),
            Err(_) => {}
        }
        assert!(resumed.elapsed() < PATIENCE, "no heartbeat is acknowledged");
        sleep(Duration::from_millis(50)).await;
    }
    let seen = call("GET", &format!("{rest}/v1/instances/a"), "").await;
    assert_eq!((seen.status, seen.json()["instance"]["regRev"].as_str()), (200, Some(&*reg_rev)));
}

/// A heartbeat is the leader's memory and nothing else: it makes no entry of the log, and no revision.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_leave_no_trace_in_the_log() {
    let cluster = Cluster::start(1, &[]).await;
    let node = &cluster.nodes[0].rest;
    let instance = format!("{node}/v1/instances/a");
    let body = r#"{"service":"w","url":"http://127.0.0.1:1","ttlMs":600000}"#;
    assert_eq!(call("PUT", &instance, body).await.status, 201);
    let where_it_is = async || {
        let status = call("GET", &format!("{node}/v1/status"), "").await.json();
        (status["lastLogIndex"].clone(), status["header"]["revision"].clone())
    };
    let before = where_it_is().await;
    assert!(before.0.is_string() && before.1 == "1", "{before:?}");
    for _ in 0..100 {
        assert_eq!(call("POST", &format!("{instance}/heartbeat"), "").await.status, 200);
    }
    assert_eq!(where_it_is().await, before);
}

/// So many at once that, as nobody beats, most of them run out together.
pub async fn register_all(node: &str) {
    let requests = (0..INSTANCES as u64).map(|seq| {
        let instance = pb::Instance {
            id: format!("m-{seq}"),
            service: "mass".to_owned(),
            url: "http://127.0.0.1:1".to_owned(),
            ttl_ms: TTL.as_millis() as u32,
            ..Default::default()
        };
        let call = Call::Register(pb::RegisterRequest { instance: Some(instance), ..Default::default() });
        pb::PipelineRequest { seq, call: Some(call) }
    });
    let mut client = RegistryClient::connect(node.to_owned()).await.expect("it listens");
    let requests = tokio_stream::iter(requests.collect::<Vec<_>>());
    let mut answers = client.pipeline(requests).await.expect("a stream").into_inner();
    while let Some(answer) = answers.message().await.expect("it goes on") {
        assert!(matches!(answer.result, Some(Answer::Register(_))), "{answer:?}");
    }
}
