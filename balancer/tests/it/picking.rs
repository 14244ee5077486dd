//! Who gets a request when more than health decides: hashing, signed sessions, latency, zones, limits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;

use crate::backend::{Backend, Tape};
use crate::balancer::{Balancer, eventually, system_with};
use crate::client::{self, Answer};
use crate::registry::Registry;

const SECRET: &str = "stickySecret: of-all-our-balancers\n";

async fn get(lb: &Balancer, path: &str, headers: &[(&str, &str)]) -> Answer {
    client::send(lb.http, client::request(Method::GET, path, headers, "")).await.expect("an answer")
}

/// Another balancer for the same registry, with `ids` in rotation.
async fn another(registry: &Registry, settings: &str, ids: &[&str]) -> Balancer {
    let config = format!("port: 0\nhost: 127.0.0.1\nserviceRegistryURL: {}\n{settings}", registry.url());
    let lb = Balancer::spawn(&[], &config).await;
    lb.rotates(ids).await;
    lb
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_header_leads_every_balancer_to_the_same_backend() {
    let settings = "strategy: consistent_hash\nhashOn: header:X-Cart\n";
    let (registry, mut backends, one) = system_with(3, settings).await;
    let two = another(&registry, settings, &["b0", "b1", "b2"]).await;
    let mut homes = BTreeMap::new();
    for i in 0..30 {
        let cart = format!("cart-{i}");
        let (a, b) = (get(&one, "/", &[("x-cart", &cart)]).await, get(&two, "/", &[("x-cart", &cart)]).await);
        assert_eq!(a.header("x-instance"), b.header("x-instance"));
        homes.insert(cart, a.header("x-instance"));
    }
    assert_eq!(homes.values().collect::<BTreeSet<_>>().len(), 3, "carts spread");
    assert_eq!(get(&one, "/", &[]).await.status, 200, "a request without a cart is served, too");
    backends[1].kill();
    one.rotates(&["b0", "b2"]).await;
    for (cart, home) in homes {
        let now = get(&one, "/", &[("x-cart", &cart)]).await.header("x-instance");
        assert!(now == home || home == "b1", "{cart} moved from {home} to {now}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_address_and_a_cookie_are_keys_as_well() {
    for (on, distinct) in [("clientIp", 1), ("cookie:cart", 3)] {
        let (_registry, _backends, lb) =
            system_with(3, &format!("strategy: consistent_hash\nhashOn: {on}\n")).await;
        let mut homes = BTreeSet::new();
        for i in 0..30 {
            let cookie = format!("theme=dark; cart={i}");
            let home = get(&lb, "/", &[("cookie", &cookie)]).await.header("x-instance");
            assert_eq!(get(&lb, "/", &[("cookie", &cookie)]).await.header("x-instance"), home);
            homes.insert(home);
        }
        assert_eq!(homes.len(), distinct, "{on}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_session_holds_at_every_balancer_and_is_given_anew_only_when_its_backend_is_gone() {
    let settings = &format!("strategy: sticky_sessions\n{SECRET}");
    let (registry, mut backends, one) = system_with(3, settings).await;
    let two = another(&registry, settings, &["b0", "b1", "b2"]).await;
    let first = get(&one, "/own-session", &[]).await;
    let cookies: Vec<&str> =
        first.headers.get_all("set-cookie").iter().map(|v| v.to_str().unwrap()).collect();
    assert_eq!(cookies[0], "SESSIONID=of-the-application; Path=/", "an application's own is left alone");
    let attributes = cookies[1].split_once("; ").map(|(_, a)| a);
    assert_eq!(attributes, Some("Path=/; Max-Age=86400; HttpOnly; SameSite=Lax"));
    let pair = cookies[1].split(';').next().unwrap().to_owned();
    assert!(pair.starts_with("LBSESSION=1."), "{pair}");
    let cookie = format!("SESSIONID=of-the-application; {pair}");
    let home = get(&one, "/", &[("cookie", &cookie)]).await.header("x-instance");
    for lb in [&one, &two, &one] {
        let answer = get(lb, "/", &[("cookie", &cookie)]).await;
        assert_eq!((answer.header("x-instance"), answer.header("set-cookie")), (home.clone(), String::new()));
    }
    let forged = format!("{}0", &pair[..pair.len() - 1]);
    let forged = if forged == pair { format!("{}1", &pair[..pair.len() - 1]) } else { forged };
    assert_ne!(
        get(&one, "/", &[("cookie", &forged)]).await.header("set-cookie"),
        "",
        "it is as good as none"
    );

    // Its backend is down, and may come back: the session goes elsewhere for now.
    let others: Vec<&str> = ["b0", "b1", "b2"].into_iter().filter(|id| *id != home).collect();
    backends.iter_mut().find(|b| b.id == home).unwrap().kill();
    one.rotates(&others).await;
    two.rotates(&others).await;
    let (a, b) = (get(&one, "/", &[("cookie", &cookie)]).await, get(&two, "/", &[("cookie", &cookie)]).await);
    assert_eq!(a.header("x-instance"), b.header("x-instance"));
    assert_eq!((a.header("set-cookie"), b.header("set-cookie")), (String::new(), String::new()));
    // It is gone for good.
    registry.deregister(&home);
    eventually("it is forgotten", async || one.endpoint(&home, "state").await.is_null()).await;
    let moved = get(&one, "/", &[("cookie", &cookie)]).await;
    let fresh = moved.header("set-cookie").split(';').next().unwrap().to_owned();
    assert!(fresh.starts_with("LBSESSION=1.") && fresh != pair, "{fresh}");
    let again = get(&one, "/", &[("cookie", &fresh)]).await;
    assert_eq!(
        (again.header("x-instance"), again.header("set-cookie")),
        (moved.header("x-instance"), "".into())
    );
}

/// Nothing answers as quickly as an error.
#[tokio::test(flavor = "multi_thread")]
async fn peak_ewma_does_not_favour_whoever_fails_fast() {
    let registry = Registry::start().await;
    let (good, bad) =
        (Backend::start("good"), Tape::start(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await);
    registry.register("good", &good.url());
    registry.register("bad", &bad.url());
    let lb = another(&registry, "strategy: peak_ewma\n", &["bad", "good"]).await;
    for _ in 0..100 {
        get(&lb, "/slow?ms=3", &[]).await;
    }
    let failed = bad.text().matches("GET /slow").count();
    assert!(failed < 25, "{failed} of 100 went where all fail");
    for id in ["good", "bad"] {
        let latency = lb.endpoint(id, "latency_ms").await;
        assert!(
            latency.as_f64().is_none_or(|ms| ms > 0.0) && (id == "bad" || latency.is_number()),
            "{latency}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_own_zone_comes_first_and_the_others_stand_by() {
    let registry = Registry::start().await;
    let (mut here, there) = (Backend::start("here"), Backend::start("there"));
    registry.register_as("here", &here.url(), &json!({"zone": "a"}));
    registry.register_as("there", &there.url(), &json!({"zone": "b"}));
    let lb = another(&registry, "zone: a\n", &["here"]).await;
    eventually("the other one is known to be up", async || lb.endpoint("there", "state").await == "up").await;
    lb.rotates(&["here"]).await;
    for _ in 0..10 {
        assert_eq!(get(&lb, "/", &[]).await.header("x-instance"), "here");
    }
    assert_eq!(lb.endpoint("there", "zone").await, "b");
    let why = "probe passed; stands by, its zone is not needed";
    assert_eq!(lb.endpoint("there", "why").await, why);
    assert_eq!(lb.endpoint("here", "share").await, 1.0);
    here.kill();
    for _ in 0..10 {
        assert_eq!(get(&lb, "/", &[]).await.header("x-instance"), "there");
    }
    here.revive();
    lb.rotates(&["here"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_starts_slowly_where_that_is_asked_for() {
    let (registry, _backends, lb) = system_with(1, "slowStart: 1h\n").await;
    let fresh = Backend::start("b1");
    registry.register("b1", &fresh.url());
    lb.rotates(&["b0", "b1"]).await;
    assert_eq!(lb.endpoint("b1", "weight_in_effect").await, 10.0);
    assert_eq!(lb.endpoint("b1", "weight").await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_errors_eject_where_they_count_and_nowhere_else() {
    for (settings, ejects) in [("outlierDetection: {gatewayErrors: true}\n", true), ("", false)] {
        let registry = Registry::start().await;
        let (good, bad) =
            (Backend::start("good"), Tape::start(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await);
        registry.register("good", &good.url());
        registry.register("bad", &bad.url());
        let lb = another(&registry, settings, &["bad", "good"]).await;
        for _ in 0..40 {
            get(&lb, "/", &[]).await;
        }
        match ejects {
            true => {
                eventually("it is ejected", async || {
                    get(&lb, "/", &[]).await;
                    lb.endpoint("bad", "state").await == "ejected"
                })
                .await;
            }
            false => assert_eq!(lb.endpoint("bad", "state").await, "up"),
        }
    }
}

async fn is_waiting(lb: &Balancer, n: usize) {
    eventually(&format!("{n} wait"), async || {
        lb.metrics().await.contains(&format!("\nbalancer_requests_waiting {n}\n"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_a_slot_and_one_too_many_is_refused() {
    let settings = "maxRequestsPerEndpoint: 1\nqueue: {size: 2, timeout: 1m}\n";
    let (_registry, backends, lb) = system_with(1, settings).await;
    let address = lb.http;
    let holds = tokio::spawn(client::get(address, "/slow?ms=60000"));
    eventually("it holds the slot", async || backends[0].seen.open.load(Ordering::SeqCst) == 1).await;
    let leaves = tokio::spawn(client::get(address, "/"));
    is_waiting(&lb, 1).await;
    let waits = tokio::spawn(client::post(address, "/", "a body"));
    is_waiting(&lb, 2).await;

    let refused = client::get(address, "/").await.unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1".into()));
    assert_eq!(refused.text(), "Every backend has as many requests as it may have");
    leaves.abort();
    is_waiting(&lb, 1).await;
    assert_eq!(backends[0].requests(), 1, "nobody else was let through");
    assert_eq!(lb.endpoint("b0", "in_flight").await, 1);

    holds.abort();
    let answer = waits.await.unwrap().unwrap();
    assert_eq!((answer.status, answer.json()["body_bytes"].clone()), (200, json!(6)));
    is_waiting(&lb, 0).await;
    eventually("nothing is in flight", async || lb.endpoint("b0", "in_flight").await == 0).await;
    assert_eq!(client::get(address, "/").await.unwrap().status, 200);
    assert!(lb.metrics().await.contains("balancer_refused_total{reason=\"full\"} 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_in_time_and_without_a_queue_there_is_none() {
    for (queue, patience) in [("queue: {size: 9, timeout: 400ms}\n", 400), ("", 0)] {
        let (_registry, backends, lb) = system_with(1, &format!("maxRequestsPerEndpoint: 1\n{queue}")).await;
        let holds = tokio::spawn(client::get(lb.http, "/slow?ms=60000"));
        eventually("it holds the slot", async || backends[0].seen.open.load(Ordering::SeqCst) == 1).await;
        let since = Instant::now();
        let refused = client::get(lb.http, "/").await.unwrap();
        assert_eq!((refused.status, refused.header("retry-after")), (503, "1".into()));
        assert!(since.elapsed() >= Duration::from_millis(patience));
        is_waiting(&lb, 0).await;
        holds.abort();
    }
}

/// Over several workers, each with its own clients, whoever asks first.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_never_has_more_than_it_may_and_everybody_gets_through() {
    let settings = "workers: 3\nmaxRequestsPerEndpoint: 2\nqueue: {size: 100, timeout: 1m}\n";
    let (_registry, backends, lb) = system_with(2, settings).await;
    let (address, each) = (lb.http, 10);
    let clients: Vec<_> = (0..20)
        .map(|_| {
            tokio::spawn(async move {
                for _ in 0..each {
                    assert_eq!(client::get(address, "/slow?ms=5").await.unwrap().status, 200);
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    for backend in &backends {
        let most = backend.seen.open_max.load(Ordering::SeqCst);
        assert!((1..=2).contains(&most), "{most}");
        eventually("nothing is in flight", async || lb.endpoint(&backend.id, "in_flight").await == 0).await;
    }
    assert_eq!(backends.iter().map(Backend::requests).sum::<usize>(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_says_how_it_is_probed() {
    let registry = Registry::start().await;
    // Accepts, and never says a word.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", mute.local_addr().unwrap());
    registry.register_as("by-tcp", &url, &json!({"metadata": {"health-check": "tcp"}}));
    registry.register("by-http", &url);
    let lb = another(&registry, "healthCheckTimeout: 100ms\n", &["by-tcp"]).await;
    eventually("it is probed by HTTP", async || lb.endpoint("by-http", "state").await == "failing").await;
    assert_eq!(lb.endpoint("by-http", "why").await, "probe: no answer within 100ms");
}
