//! What requests notice of faults: nothing. 50 GETs a second on each of two balancers, all the while.

use std::time::{Duration, Instant};

use axum::{Json, Router, routing::get};
use cluster::Cluster;
use futures_util::future::try_join_all;
use hyper::Method;
use serde_json::json;

use crate::{
    load::{Load, Shot, assert_none_failed},
    support::{
        PATIENCE, balancers, eventually, follower, instance_of, leader, metric, options, put, request, rests,
        with_cluster,
    },
};

const PER_SECOND: u32 = 50;

async fn under_load(cluster: &Cluster, during: &str, fault: impl AsyncFnOnce(&Load)) -> Vec<Shot> {
    let load = Load::start(&balancers(cluster), PER_SECOND);
    load.go_on(1).await;
    fault(&load).await;
    load.go_on(1).await;
    let shots = load.finish().await;
    assert_none_failed(during, &shots, during.contains("backend"));
    shots
}

async fn back(cluster: &Cluster, names: &[&str]) {
    for name in names {
        cluster.start(name).await.expect("it was down");
    }
    cluster.wait_ready_of(names).await.unwrap_or_else(|error| panic!("{error}"));
}

async fn ready_endpoints(cluster: &Cluster, expected: u64, within: Duration) {
    eventually(&format!("both balancers have {expected} ready endpoints"), within, async || {
        let status = cluster.status().await.expect("it runs");
        status.balancers.iter().all(|balancer| balancer.ready_endpoints == expected).then_some(())
    })
    .await;
}

#[test]
fn requests_go_on_without_a_leader_without_a_follower_and_without_any_registry() {
    with_cluster(options("registry_faults"), async |cluster| {
        let led = leader(cluster).await;
        under_load(cluster, "kill -9 of the leader", async |load| {
            cluster.kill(&led).await.expect("it ran");
            eventually("another node leads", PATIENCE, async || {
                cluster.leader().await.expect("readable").filter(|now| *now != led)
            })
            .await;
            load.go_on(1).await;
            back(cluster, &[&led]).await;
        })
        .await;

        let led = leader(cluster).await;
        under_load(cluster, "a leader that is paused and comes back", async |load| {
            cluster.pause(&led).await.expect("it ran");
            eventually("another node leads", PATIENCE, async || {
                cluster.leader().await.expect("readable").filter(|now| *now != led)
            })
            .await;
            cluster.resume(&led).await.expect("it was paused");
            load.go_on(1).await;
        })
        .await;

        let follows = follower(cluster).await;
        under_load(cluster, "kill -9 of a follower", async |load| {
            cluster.kill(&follows).await.expect("it ran");
            load.go_on(2).await;
            back(cluster, &[&follows]).await;
        })
        .await;

        under_load(cluster, "all three nodes stopped", async |load| {
            let names: Vec<String> = rests(cluster).into_keys().collect();
            try_join_all(names.iter().map(|name| cluster.stop(name))).await.expect("they stop when told");
            load.go_on(10).await;
            back(cluster, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
            load.go_on(2).await;
        })
        .await;
        ready_endpoints(cluster, 3, PATIENCE).await;
    });
}

#[test]
fn a_killed_backend_fails_no_request_and_leaves_the_rotation() {
    with_cluster(options("backend_faults"), async |cluster| {
        let gone = instance_of(cluster, "backend-2");
        let failures = "balancer_upstream_connect_failures_total";
        under_load(cluster, "kill -9 of a backend", async |load| {
            cluster.kill("backend-2").await.expect("it ran");
            load.go_on(2).await;
            // Its lease is 10 s.
            ready_endpoints(cluster, 2, Duration::from_secs(12)).await;
        })
        .await;
        for url in balancers(cluster) {
            let tried = metric(&url, failures).await;
            assert!(tried <= 3.0, "{url} tried {tried} times to reach one that is dead");
        }
        back(cluster, &["backend-2"]).await;
        ready_endpoints(cluster, 3, PATIENCE).await;
        under_load(cluster, "a backend that came back", async |load| {
            eventually("it gets requests again", PATIENCE, async || {
                load.shots().iter().any(|shot| shot.instance() == Some(&gone)).then_some(())
            })
            .await;
        })
        .await;
        under_load(cluster, "an orderly stop of a backend", async |load| {
            cluster.stop("backend-1").await.expect("it stops when told");
            load.go_on(1).await;
        })
        .await;
    });
}

#[test]
fn a_new_endpoint_gets_requests_within_a_second_and_a_deregistered_one_none_after_250_ms() {
    with_cluster(options("endpoints_come_and_go"), async |cluster| {
        let url = extra_backend().await;
        let rest = rests(cluster).into_values().next().expect("there are nodes");
        let mut registered = Instant::now();
        let mut deregistered = Instant::now();
        let urls = balancers(cluster);
        let shots = under_load(cluster, "a backend comes and goes", async |load| {
            put(&rest, "extra", &url, 60_000).await;
            registered = Instant::now();
            eventually("every balancer sends to it", PATIENCE, async || {
                let shots = load.shots();
                let reached =
                    |url: &String| shots.iter().any(|shot| is_extra(shot) && shot.via.starts_with(url));
                urls.iter().all(reached).then_some(())
            })
            .await;
            let (status, _) = request(Method::DELETE, &format!("{rest}/v1/instances/extra"), None)
                .await
                .expect("an answer");
            deregistered = Instant::now();
            assert_eq!(status, 200);
            load.go_on(2).await;
        })
        .await;
        for url in &urls {
            let first = shots
                .iter()
                .filter(|shot| is_extra(shot) && shot.via.starts_with(url))
                .map(|shot| shot.at)
                .min();
            let after = first.expect("it was reached").saturating_duration_since(registered);
            println!("{url} sent to it {after:?} after it was registered");
            assert!(after <= Duration::from_secs(1), "{url} sent its first request after {after:?}");
        }
        let late = deregistered + Duration::from_millis(250);
        let after: Vec<&Shot> = shots.iter().filter(|shot| is_extra(shot) && shot.at > late).collect();
        assert!(after.is_empty(), "sent to one that is gone: {after:?}");
    });
}

fn is_extra(shot: &Shot) -> bool {
    shot.instance() == Some("extra")
}

/// A backend that registers nothing itself. It ends with the runtime.
async fn extra_backend() -> String {
    let router = Router::new()
        .route("/", get(|| async { Json(json!({"instance": "extra"})) }))
        .route("/health", get(|| async { "ok" }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}
