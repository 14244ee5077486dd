//! Calls: which node, which protocol, and what is said of an unknown outcome.

use std::time::Duration;

use flux::{Client, Code, Instance, Transport, WriteOptions};
use futures_util::future::join_all;
use proto::registry::v1 as wire;
use tokio::time::Instant;

use crate::fake::{Catalog, Node};
use crate::middlebox::{Middlebox, Mode};
use crate::soon;

fn member(node: &Node) -> wire::Member {
    wire::Member { id: node.knobs().id, grpc: node.url(), rest: node.url(), ..Default::default() }
}

#[tokio::test]
async fn every_call_says_the_same_over_both_protocols() {
    for transport in [Transport::Grpc, Transport::Rest] {
        let catalog = Catalog::new("c1");
        let node = Node::start(&catalog).await;
        let client = Client::builder([node.url()]).transport(transport).build().expect("a client");
        let instance = Instance::new("pay", "10.0.0.1", 80).id("pay / 1?#%").meta("k", "v").tag("t");

        let put = client.put(&instance, WriteOptions::default()).await.expect("registered").value;
        assert_eq!((put.reg_rev, &put.metadata, &put.tags), (1, &instance.metadata, &instance.tags));
        assert_eq!(client.get("pay / 1?#%").await.expect("found").value, put, "{transport}");
        assert_eq!(client.list(Some("pay")).await.expect("listed").value, std::slice::from_ref(&put));
        assert_eq!(client.list(Some("other")).await.expect("listed").value, []);
        assert_eq!(client.services().await.expect("listed").value[0].instances, 1);
        assert!(client.heartbeat(&put.id, put.reg_rev).await.expect("answered").value);
        assert!(!client.heartbeat(&put.id, 99).await.expect("answered").value, "{transport}");
        let draining = client.set_status(&put.id, flux::Status::Draining, None).await.expect("set").value;
        assert_eq!(draining.status, flux::Status::Draining);
        let gone = client.deregister(&put.id, Some(put.reg_rev)).await.expect("deregistered");
        assert_eq!((gone.value, gone.cluster_id.as_str(), gone.revision), (true, "c1", 3));
        let missing = client.get("nobody").await.expect_err("not there");
        assert_eq!((missing.code(), missing.is_retryable()), (Code::NotFound, false), "{transport}");
    }
}

#[tokio::test]
async fn a_node_that_names_the_leader_is_followed_at_once() {
    let catalog = Catalog::new("c1");
    let (follower, leader) = (Node::start(&catalog).await, Node::start(&catalog).await);
    leader.set(|knobs| knobs.id = 2);
    follower.set(|knobs| (knobs.leader, knobs.unavailable) = (Some(member(&leader)), true));
    // The leader is not configured: only the hint leads there.
    let client = Client::connect([follower.url()]).expect("a client");
    assert_eq!(soon("an answer", client.list(None)).await.expect("listed").node_id, 2);
    let asked = follower.knobs().answered;
    client.list(None).await.expect("listed");
    assert_eq!((follower.knobs().answered, leader.knobs().answered), (asked, 3), "the proof and two lists");
}

#[tokio::test]
async fn members_are_learned_and_take_over() {
    let catalog = Catalog::new("c1");
    let (first, second) = (Node::start(&catalog).await, Node::start(&catalog).await);
    let front = Middlebox::before(first.address, Mode::Pass).await;
    first.set(|knobs| knobs.members = vec![member(&second)]);
    second.set(|knobs| knobs.id = 2);
    let client = Client::connect([front.url.clone()]).expect("a client");
    assert_eq!(client.list(None).await.expect("listed").node_id, 1);
    front.set(Mode::Refuse);
    assert_eq!(soon("an answer", client.list(None)).await.expect("listed").node_id, 2);
}

#[tokio::test]
async fn rest_takes_over_where_http2_does_not_get_through_and_grpc_comes_back() {
    join_all([Mode::ResetHttp2, Mode::SwallowHttp2].map(|mode| async move {
        let catalog = Catalog::new("c1");
        let node = Node::start(&catalog).await;
        let front = Middlebox::before(node.address, mode).await;
        let metrics = prometheus::Registry::new();
        let client = Client::builder([front.url.clone()]).metrics(&metrics).build().expect("a client");
        let calls = |protocol: &str| {
            let families = metrics.gather();
            let calls = families.iter().find(|family| family.name() == "flux_registry_calls_total");
            calls.map_or(0.0, |family| {
                let of = |metric: &prometheus::proto::Metric| {
                    let labels = metric.get_label();
                    let is = |name: &str, value: &str| {
                        labels.iter().any(|label| label.name() == name && label.value() == value)
                    };
                    is("protocol", protocol) && is("status", "success")
                };
                let metrics = family.get_metric().iter().filter(|metric| of(metric));
                metrics.map(|metric| metric.get_counter().get_value()).sum()
            })
        };
        let instance = Instance::new("pay", "h", 80);
        soon("rest", client.put(&instance, WriteOptions::default())).await.expect("registered");
        assert_eq!(catalog.log(), ["register pay-h-80"], "{mode:?}: once");
        assert_eq!((calls("http"), calls("grpc")), (1.0, 0.0), "{mode:?}");

        front.set(Mode::Pass);
        soon("grpc", async {
            while calls("grpc") == 0.0 {
                client.list(None).await.expect("either protocol serves");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;

        // And blocked again, in the middle: nothing fails that may be repeated.
        front.set(mode);
        soon("rest again", client.list(None)).await.expect("listed");
    }))
    .await;
}

#[tokio::test]
async fn an_unknown_outcome_is_said_and_never_repeated() {
    let catalog = Catalog::new("c1");
    let nodes = [Node::start(&catalog).await, Node::start(&catalog).await];
    nodes.iter().for_each(|node| node.set(|knobs| knobs.mute_registrations = true));
    let client = Client::builder(nodes.iter().map(Node::url))
        .call_timeout(Duration::from_millis(700))
        .build()
        .expect("a client");
    let error = client.put(&Instance::new("pay", "h", 80), WriteOptions::default()).await.expect_err("mute");
    assert_eq!((error.code(), error.had_no_effect()), (Code::Timeout, false));
    assert_eq!(catalog.log(), ["register pay-h-80"], "sent once");
}

#[tokio::test]
async fn nobody_there_is_said_in_time_with_every_node_and_no_effect() {
    let closed = "127.0.0.1:1";
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    let swallowed = Middlebox::before(node.address, Mode::Swallow).await;
    let client = Client::builder([format!("http://{closed}"), swallowed.url.clone()])
        .call_timeout(Duration::from_secs(2))
        .build()
        .expect("a client");
    let begun = Instant::now();
    let error =
        client.put(&Instance::new("pay", "h", 80), WriteOptions::default()).await.expect_err("nobody");
    assert!(begun.elapsed() < Duration::from_millis(2500), "took {:?}", begun.elapsed());
    assert!(error.is_retryable() && error.had_no_effect(), "{error}");
    assert_eq!(error.code(), Code::Unavailable);
    for part in [closed, &swallowed.url, "refused"] {
        assert!(error.to_string().contains(part), "{part} is missing in: {error}");
    }
}

#[tokio::test]
async fn one_node_that_went_mute_costs_one_call_its_share_and_the_next_nothing() {
    let catalog = Catalog::new("c1");
    let (mute, other) = (Node::start(&catalog).await, Node::start(&catalog).await);
    other.set(|knobs| knobs.id = 2);
    let front = Middlebox::before(mute.address, Mode::Pass).await;
    let client = Client::connect([front.url.clone(), other.url()]).expect("a client");
    assert_eq!(client.list(None).await.expect("listed").node_id, 1);
    front.set(Mode::Swallow);
    assert_eq!(client.list(None).await.expect("within the limit").node_id, 2);
    // The mute node would take a second before it is given up.
    let begun = Instant::now();
    assert_eq!(client.list(None).await.expect("listed").node_id, 2);
    assert!(begun.elapsed() < Duration::from_millis(900), "asked the mute node first: {:?}", begun.elapsed());
}
