//! The brake on mass expiry, and the operator who lets go of it.

use std::time::{Duration, Instant};

use proto::registry::v1 as pb;
use proto::registry::v1::pipeline_request::Call;
use proto::registry::v1::pipeline_response::Result as Answer;
use proto::registry::v1::registry_client::RegistryClient;
use tokio::time::sleep;

use super::node::{Cluster, PATIENCE};
use super::wire::call;

const INSTANCES: usize = 200;

/// The brake holds for one TTL, and would let nobody go before.
const TTL: Duration = Duration::from_secs(20);

async fn listed(node: &str) -> usize {
    let list = call("GET", &format!("{node}/v1/services/mass"), "").await;
    assert_eq!(list.status, 200, "{}", list.json());
    list.json()["instances"].as_array().map_or(0, Vec::len)
}

async fn is_braked(node: &str) -> bool {
    let scrape = call("GET", &format!("{node}/metrics"), "").await;
    String::from_utf8_lossy(&scrape.body).lines().any(|line| line == "registry_expiry_brake 1")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_releases_leases_that_are_held_back() {
    let cluster = Cluster::start(1, &[]).await;
    let node = &cluster.nodes[0].rest;
    let release = format!("{node}/v1/leases/release");
    let none = call("POST", &release, "").await;
    assert_eq!((none.status, none.json()["released"].as_str()), (200, None), "{}", none.json());
    register_all(&cluster.nodes[0].grpc).await;
    // Nobody beats: most of them run out together, and are held back.
    let begun = Instant::now();
    while !is_braked(node).await {
        assert!(begun.elapsed() < TTL + PATIENCE, "the brake does not engage");
        sleep(Duration::from_millis(50)).await;
    }
    let (braked, mut released) = (Instant::now(), 0u64);
    while listed(node).await > 0 {
        // Again for those that run out a little later.
        let reply = call("POST", &release, "").await;
        assert_eq!(reply.status, 200, "{}", reply.json());
        released +=
            reply.json()["released"].as_str().map_or(0, |count| count.parse::<u64>().expect("a number"));
        assert!(braked.elapsed() < TTL * 3 / 4, "{} are still held back", listed(node).await);
        sleep(Duration::from_millis(50)).await;
    }
    assert!(released > 0, "what was held back is told");
}

/// All at once, so that they run out at once.
async fn register_all(node: &str) {
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
