//! Who gets a request.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use http::Method;

use crate::backend::Backend;
use crate::balancer::{eventually, system};
use crate::client::{self, Client};

async fn instance(address: std::net::SocketAddr) -> String {
    client::get(address, "/").await.expect("an answer").json()["instance"].as_str().unwrap_or("?").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_rotate_over_all_backends_whichever_worker_takes_them() {
    let (_registry, _backends, lb) = system(3, &["--workers", "3"]).await;
    let mut counts = BTreeMap::new();
    for _ in 0..30 {
        *counts.entry(instance(lb.http).await).or_insert(0) += 1;
    }
    let even = [("b0", 10), ("b1", 10), ("b2", 10)].map(|(id, n)| (id.to_owned(), n));
    assert_eq!(counts, BTreeMap::from(even));
}

#[tokio::test(flavor = "multi_thread")]
async fn least_connections_avoids_whoever_is_busy_and_counts_fall_again() {
    let (_registry, backends, lb) = system(3, &["--strategy", "least_connections"]).await;
    let slow: Vec<_> = (0..6).map(|_| tokio::spawn(client::get(lb.http, "/slow?ms=600"))).collect();
    eventually("each has two", async || {
        backends.iter().all(|b| b.seen.open.load(std::sync::atomic::Ordering::SeqCst) == 2)
    })
    .await;
    for task in slow {
        assert_eq!(task.await.unwrap().unwrap().status, 200);
    }
    for b in &backends {
        eventually("nothing is in flight", async || lb.endpoint(&b.id, "in_flight").await == 0).await;
    }
}

/// The original leaked a count for every client that left, and then avoided that backend for ever.
#[tokio::test(flavor = "multi_thread")]
async fn in_flight_falls_when_the_client_leaves() {
    let (_registry, backends, lb) = system(1, &["--strategy", "least_connections"]).await;
    for path in ["/slow?ms=60000", "/sse"] {
        let leaving = tokio::spawn(client::get(lb.http, path));
        eventually("it is in flight", async || lb.endpoint("b0", "in_flight").await == 1).await;
        leaving.abort();
        eventually("it is not any more", async || lb.endpoint("b0", "in_flight").await == 0).await;
        let open = &backends[0].seen.open;
        eventually("the backend is told", async || open.load(std::sync::atomic::Ordering::SeqCst) == 0).await;
    }
    assert_eq!(lb.endpoint("b0", "state").await, "up");
    assert!(lb.metrics().await.contains("balancer_ejections_total 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_stays_with_its_backend() {
    let (_registry, mut backends, lb) = system(3, &["--strategy", "sticky_sessions"]).await;
    let first = client::get(lb.http, "/").await.unwrap();
    let cookie = first.header("set-cookie");
    let attributes = cookie.split_once("; ").map(|(_, a)| a);
    assert_eq!(attributes, Some("Path=/; Max-Age=86400; HttpOnly; SameSite=Lax"), "{cookie}");
    let home = first.json()["instance"].as_str().unwrap().to_owned();
    let pair = cookie.split(';').next().unwrap().to_owned();
    let again = || client::send(lb.http, client::request(Method::GET, "/", &[("cookie", &pair)], ""));
    for _ in 0..10 {
        let answer = again().await.unwrap();
        assert_eq!(answer.json()["instance"], home.as_str());
        assert_eq!(answer.header("set-cookie"), "", "a session is not renewed");
    }
    // Its backend dies: the session goes on elsewhere, and stays there.
    backends.iter_mut().find(|b| b.id == home).unwrap().kill();
    let mut homes = BTreeSet::new();
    for _ in 0..5 {
        homes.insert(again().await.unwrap().json()["instance"].as_str().unwrap().to_owned());
    }
    assert!(homes.len() == 1 && !homes.contains(&home), "{homes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_balancers_agree_on_a_session_and_leave_the_applications_cookie_alone() {
    let (registry, backends, one) = system(3, &["--strategy", "sticky_sessions"]).await;
    let two = crate::balancer::Balancer::start(&registry, &["--strategy", "sticky_sessions"]).await;
    two.rotates(&["b0", "b1", "b2"]).await;
    let mut homes = BTreeSet::new();
    for i in 0..20 {
        let cookie = format!("theme=dark; SESSIONID=client-{i}");
        let request = || client::request(Method::GET, "/", &[("cookie", &cookie)], "");
        let (a, b) = (client::send(one.http, request()).await, client::send(two.http, request()).await);
        let (a, b) = (a.unwrap().json()["instance"].clone(), b.unwrap().json()["instance"].clone());
        assert_eq!(a, b);
        homes.insert(a.to_string());
    }
    assert_eq!(homes.len(), backends.len(), "sessions spread");
    let own = client::get(one.http, "/own-session").await.unwrap();
    assert_eq!(own.header("set-cookie"), "SESSIONID=of-the-application; Path=/");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_backend_takes_traffic_within_a_second_and_a_gone_one_none() {
    let (registry, backends, lb) = system(1, &[]).await;
    let fresh = Backend::start("b1");
    let since = Instant::now();
    registry.register("b1", &fresh.url());
    eventually("it is asked", async || instance(lb.http).await == "b1").await;
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());

    for leave in ["DRAINING", "gone"] {
        registry.register("b1", &fresh.url());
        lb.rotates(&["b0", "b1"]).await;
        match leave {
            "gone" => registry.deregister("b1"),
            status => registry.put("b1", &fresh.url(), status),
        }
        eventually("it is out of rotation", async || lb.endpoint("b1", "in_rotation").await != true).await;
        let before = fresh.requests();
        for _ in 0..10 {
            assert_eq!(instance(lb.http).await, "b0");
        }
        assert_eq!(fresh.requests(), before, "{leave}");
    }
    assert!(backends[0].requests() >= 20);
}

/// The original kept the first URL of an id for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_moves_is_followed() {
    let (registry, _backends, lb) = system(1, &[]).await;
    let moved = Backend::start("moved");
    registry.register("b0", &format!("{}/base/", moved.url()));
    eventually("requests go to the new place", async || instance(lb.http).await == "moved").await;
    let answer = client::get(lb.http, "/x?q=1").await.unwrap();
    assert_eq!(answer.json()["target"], "/base/x?q=1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_backend_is_left_alone_until_it_recovers_and_the_last_is_kept() {
    let config = "healthCheckInterval: 100ms\n";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fast.yaml");
    std::fs::write(&file, config).unwrap();
    let (_registry, backends, lb) = system(2, &["--config", file.to_str().unwrap()]).await;
    backends[0].seen.sick.store(true, std::sync::atomic::Ordering::SeqCst);
    lb.rotates(&["b1"]).await;
    assert_eq!(lb.endpoint("b0", "why").await, "probe: /health answered 503");
    backends[1].seen.sick.store(true, std::sync::atomic::Ordering::SeqCst);
    eventually("both fail", async || lb.endpoint("b1", "state").await == "failing").await;
    let mut kept = Client::connect(lb.http).await.unwrap();
    assert_eq!(kept.get("/").await.unwrap().status, 200, "probes alone never empty the rotation");
    backends.iter().for_each(|b| b.seen.sick.store(false, std::sync::atomic::Ordering::SeqCst));
    lb.rotates(&["b0", "b1"]).await;
}
