//! What happens when backends or the registry fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::backend::{Backend, Breaker};
use crate::balancer::{Balancer, eventually, system};
use crate::client::{self, Client};
use crate::registry::Registry;

/// GETs on kept connections until told to stop; counts, and keeps what failed.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(lb: &Balancer, clients: usize) -> Load {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let address = lb.http;
        let run = |_| {
            let (stop, sent) = (stop.clone(), sent.clone());
            tokio::spawn(async move {
                let mut failed = Vec::new();
                let mut client = Client::connect(address).await.expect("it listens");
                while !stop.load(Ordering::SeqCst) && failed.len() < 100 {
                    sent.fetch_add(1, Ordering::SeqCst);
                    match client.get("/").await {
                        Ok(answer) if answer.status == 200 => {}
                        Ok(answer) => failed.push(format!("{}: {}", answer.status, answer.text())),
                        Err(error) => {
                            failed.push(error.to_string());
                            client = Client::connect(address).await.expect("it listens");
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                failed
            })
        };
        let tasks = (0..clients).map(run).collect();
        Load { stop, sent, tasks }
    }

    /// Waits for `n` further requests.
    async fn goes_on(&self, n: usize) {
        let from = self.sent.load(Ordering::SeqCst);
        eventually("requests go on", async || self.sent.load(Ordering::SeqCst) >= from + n).await;
    }

    async fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        let mut failed = Vec::new();
        for task in self.tasks {
            failed.extend(task.await.unwrap());
        }
        failed
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backend_fails_no_get_and_is_back_soon_after_it_returns() {
    let (_registry, mut backends, lb) = system(3, &[]).await;
    let load = Load::start(&lb, 8);
    load.goes_on(300).await;
    for backend in &mut backends {
        backend.kill();
        load.goes_on(300).await;
        eventually("it is known to be down", async || lb.endpoint(&backend.id, "state").await == "down")
            .await;
        backend.revive();
        let back = std::time::Instant::now();
        lb.rotates(&["b0", "b1", "b2"]).await;
        assert!(back.elapsed() < Duration::from_millis(1500), "back only after {:?}", back.elapsed());
        load.goes_on(100).await;
    }
    assert_eq!(load.stop().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_never_delivered_twice_and_a_get_goes_elsewhere() {
    let registry = Registry::start().await;
    let (breaker, good) = (Breaker::start().await, Backend::start("good"));
    registry.register("breaker", &breaker.url());
    registry.register("good", &good.url());
    let lb = Balancer::start(&registry, &[]).await;
    lb.rotates(&["breaker", "good"]).await;
    let (mut failed, mut passed) = (0, 0);
    for _ in 0..4 {
        let answer = client::post(lb.http, "/order", "one book").await.unwrap();
        match answer.status {
            200 => passed += 1,
            502 => {
                let text = answer.text();
                assert_eq!(text, "Bad gateway: backend breaker closed the connection without a response");
                failed += 1;
            }
            other => panic!("status {other}"),
        }
    }
    assert_eq!((breaker.requests(), good.requests()), (failed, passed));
    assert!(failed > 0 && failed + passed == 4);
    for _ in 0..4 {
        assert_eq!(client::get(lb.http, "/").await.unwrap().status, 200);
    }
    assert!(lb.metrics().await.contains("balancer_retries_total{reason=\"broke\"}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_to_a_refusing_backend_goes_elsewhere() {
    let (_registry, mut backends, lb) = system(2, &["--strategy", "round_robin"]).await;
    // Kept connections to both, which the death of one makes stale.
    for _ in 0..4 {
        assert_eq!(client::post(lb.http, "/", "x").await.unwrap().status, 200);
    }
    backends[0].kill();
    eventually("only stale connections are left", async || lb.endpoint("b0", "state").await != "unproven")
        .await;
    for _ in 0..8 {
        let answer = client::post(lb.http, "/", "x").await.unwrap();
        assert_eq!((answer.status, answer.header("x-instance").as_str()), (200, "b1"));
    }
    assert_eq!(backends[1].requests(), 2 + 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_fails_requests_is_ejected() {
    let registry = Registry::start().await;
    let (breaker, good) = (Breaker::start().await, Backend::start("good"));
    registry.register("breaker", &breaker.url());
    registry.register("good", &good.url());
    let lb = Balancer::start(&registry, &[]).await;
    lb.rotates(&["breaker", "good"]).await;
    eventually("it is ejected", async || {
        assert_eq!(client::get(lb.http, "/").await.unwrap().status, 200);
        lb.endpoint("breaker", "state").await == "ejected"
    })
    .await;
    assert_eq!(lb.endpoint("breaker", "why").await, "5 failed requests within 10 s; ejected for 5 s");
    assert_eq!(breaker.requests(), 5);
}

/// The only one up dies; the other's probe fails, but it would answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_failed_everywhere_else_goes_to_whoever_is_left() {
    let (_registry, mut backends, lb) = system(2, &[]).await;
    backends[1].seen.sick.store(true, Ordering::SeqCst);
    lb.rotates(&["b0"]).await;
    backends[0].kill();
    let answer = client::get(lb.http, "/").await.unwrap();
    assert_eq!((answer.status, answer.header("x-instance").as_str()), (200, "b1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_backend_is_503_and_refusing_backends_are_502() {
    let registry = Registry::start().await;
    let lb = Balancer::start(&registry, &[]).await;
    let answer = client::get(lb.http, "/").await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (503, "No healthy backend available"));

    let mut backend = Backend::start("b0");
    registry.register("b0", &backend.url());
    lb.rotates(&["b0"]).await;
    backend.kill();
    for _ in 0..2 {
        let answer = client::get(lb.http, "/").await.unwrap();
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (502, "Bad gateway: backend b0 refused the connection")
        );
    }
    registry.deregister("b0");
    eventually("none again", async || client::get(lb.http, "/").await.unwrap().status == 503).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_registry_a_balancer_goes_on_and_then_catches_up() {
    let (registry, _backends, lb) = system(2, &[]).await;
    let load = Load::start(&lb, 2);
    let stopped = registry.stop().await;
    load.goes_on(200).await;
    eventually("it says how old its knowledge is", async || {
        lb.endpoints().await["age_ms"].as_u64() > Some(1500) && lb.ready().await
    })
    .await;
    let registry = stopped.restart().await;
    let fresh = Backend::start("b2");
    registry.register("b2", &fresh.url());
    lb.rotates(&["b0", "b1", "b2"]).await;
    assert_eq!(load.stop().await, Vec::<String>::new());
}

/// The original dropped every backend when a registry that had just restarted answered with an empty list.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lost_everything_takes_nothing_down() {
    let (registry, backends, lb) = system(2, &[]).await;
    let load = Load::start(&lb, 2);
    registry.lose_everything();
    eventually("it has heard", async || lb.endpoints().await["revision"] == 1).await;
    load.goes_on(100).await;
    registry.register("b0", &backends[0].url());
    load.goes_on(100).await;
    assert_eq!(load.stop().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_that_restarts_without_a_registry_knows_what_it_knew() {
    let dir = tempfile::tempdir().unwrap();
    let state = ["--state-dir", dir.path().to_str().unwrap()];
    let (registry, _backends, mut lb) = system(2, &state).await;
    let file = dir.path().join("endpoints-balancer.json");
    eventually("it is saved", async || std::fs::read_to_string(&file).is_ok_and(|t| t.contains("b1"))).await;
    lb.signal(nix::sys::signal::Signal::SIGKILL);
    lb.exited().await;
    let url = registry.url();
    registry.stop().await;
    let again = Balancer::spawn(&[&state[..], &["--registry", &url]].concat(), "").await;
    again.rotates(&["b0", "b1"]).await;
    assert!(again.ready().await);
    assert_eq!(client::get(again.http, "/").await.unwrap().status, 200);
}

/// Everything breaks off: what comes on top of the requests is a fifth of them, and what was saved before.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_fails_is_not_buried_under_retries() {
    const REQUESTS: usize = 1_500;
    let registry = Registry::start().await;
    let breakers = [Breaker::start().await, Breaker::start().await, Breaker::start().await];
    for (n, breaker) in breakers.iter().enumerate() {
        registry.register(&format!("b{n}"), &breaker.url());
    }
    let lb = Balancer::start(&registry, &["--workers", "1"]).await;
    lb.rotates(&["b0", "b1", "b2"]).await;
    let since = std::time::Instant::now();
    let mut connection = Client::connect(lb.http).await.unwrap();
    for _ in 0..REQUESTS {
        assert_eq!(connection.get("/").await.unwrap().status, 502);
    }
    let sent: usize = breakers.iter().map(Breaker::requests).sum();
    let with_time = 10 * (since.elapsed().as_secs() as usize + 1);
    assert!(sent <= REQUESTS + REQUESTS / 5 + 100 + with_time, "{sent} for {REQUESTS}");
    assert!(sent > REQUESTS, "some were tried again");
    assert!(!lb.metrics().await.contains("balancer_retries_unaffordable_total 0\n"));
}
