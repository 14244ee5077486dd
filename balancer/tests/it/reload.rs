//! The configuration changes while requests are being served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::balancer::{Balancer, eventually};
use crate::client::{self, Client};
use crate::registry::Registry;

/// A file that leads `path` to `service`.
fn config(registry: &Registry, service: &str, more: &str) -> String {
    let url = registry.url();
    format!(
        "port: 0\nhost: 127.0.0.1\nserviceRegistryURL: {url}\nroutes:\n  - {{ name: all, service: {service} }}\n{more}"
    )
}

struct System {
    registry: Registry,
    _backends: Vec<Backend>,
    file: std::path::PathBuf,
    lb: Balancer,
    _dir: tempfile::TempDir,
}

/// Services `a` and `b`, a balancer that leads everything to `a`, and its file.
async fn system() -> System {
    let registry = Registry::start().await;
    let backends: Vec<Backend> = ["a", "b"].map(Backend::start).into();
    for backend in &backends {
        registry.register_as(&backend.id, &backend.url(), &json!({"service": backend.id}));
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lb.yaml");
    std::fs::write(&file, config(&registry, "a", "")).unwrap();
    let lb = Balancer::spawn(&["--config", file.to_str().unwrap()], "").await;
    for id in ["a", "b"] {
        eventually("it is up", async || lb.endpoint(id, "state").await == "up").await;
    }
    System { registry, _backends: backends, file, lb, _dir: dir }
}

impl System {
    /// As editors do it: another file takes the name.
    fn replace(&self, text: &str) {
        let fresh = self.file.with_extension("new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, &self.file).unwrap();
    }

    async fn who(&self) -> String {
        client::get(self.lb.http, "/").await.expect("an answer").header("x-instance")
    }

    async fn reload(&self) -> (u16, Value) {
        let answer = client::send(self.lb.admin, client::request(Method::POST, "/v1/reload", &[], "")).await;
        let answer = answer.expect("an answer");
        (answer.status, answer.json())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_noticed_and_a_request_in_flight_finishes_where_it_began() {
    let system = system().await;
    assert_eq!(system.who().await, "a");
    let slow = tokio::spawn(client::get(system.lb.http, "/slow?ms=2500"));
    eventually("it is in flight", async || system.lb.endpoint("a", "in_flight").await == 1).await;
    system.replace(&config(&system.registry, "b", ""));
    eventually("the new route is taken", async || system.who().await == "b").await;
    assert_eq!(slow.await.unwrap().expect("it is finished").text(), "a");
    // A link that is swapped, as Kubernetes does it.
    let (other, link) = (system.file.with_extension("2"), system.file.with_extension("link"));
    std::fs::write(&other, config(&system.registry, "a", "# again\n")).unwrap();
    std::os::unix::fs::symlink(&other, &link).unwrap();
    std::fs::rename(&link, &system.file).unwrap();
    eventually("the old route is back", async || system.who().await == "a").await;
    let metrics = system.lb.metrics().await;
    assert!(metrics.contains("balancer_config_generation 3"), "{metrics}");
    assert!(metrics.contains("balancer_config_reloads_total{result=\"done\"} 2"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_changes_nothing_and_is_told() {
    let system = system().await;
    let text = config(&system.registry, "b", "ruotes: []\n");
    system.replace(&text);
    let failed = r#"balancer_config_reloads_total{result="failed"}"#;
    let count = async || {
        let metrics = system.lb.metrics().await;
        metrics.lines().find_map(|l| l.strip_prefix(failed)?.trim().parse::<u32>().ok()).unwrap_or_default()
    };
    eventually("it is noticed", async || count().await == 1).await;
    let (status, problem) = system.reload().await;
    assert_eq!((status, &problem["type"]), (422, &json!("urn:balancer:problem:bad-configuration")));
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(r#"lb.yaml:6:1: unknown key "ruotes", did you mean "routes"?"#), "{detail}");
    assert_eq!((count().await, system.who().await.as_str()), (2, "a"));
    system.lb.signal(Signal::SIGHUP);
    eventually("the signal is heard", async || count().await == 3).await;
    assert!(system.lb.log().contains("the one before stays in force"));
    // Away is not empty.
    std::fs::remove_file(&system.file).unwrap();
    assert_eq!((system.reload().await.0, system.who().await.as_str()), (422, "a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_says_what_it_did_and_what_it_could_not() {
    let system = system().await;
    let (status, outcome) = system.reload().await;
    let nothing = json!({"changed": false, "generation": 1, "needs_restart": [], "warnings": []});
    assert_eq!((status, outcome), (200, nothing));
    client::get(system.lb.http, "/").await.unwrap();
    eventually("it is counted", async || system.lb.metrics().await.contains("path=\"all\"")).await;
    // Whichever comes first, the watch or the call: the change is made once, and what it came to stays known.
    let more = "  - { name: dead, service: a }\nworkers: 7\n";
    system.replace(&config(&system.registry, "b", more).replace("name: all", "name: every"));
    eventually("it is done", async || system.reload().await.1["generation"] == 2).await;
    let (_, outcome) = system.reload().await;
    assert_eq!(outcome["needs_restart"], json!(["workers"]));
    assert_eq!(outcome["warnings"].as_array().map(Vec::len), Some(1), "{outcome}");
    eventually("the new route is taken", async || system.who().await == "b").await;
    eventually("series follow", async || system.lb.metrics().await.contains("path=\"every\"")).await;
    assert!(!system.lb.metrics().await.contains("path=\"all\""), "a route's series go with it");
}

/// Routes and instances come and go; nobody notices.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_routes_and_instances_change() {
    let system = system().await;
    let (done, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (address, done, served) = (system.lb.http, done.clone(), served.clone());
            tokio::spawn(async move {
                let mut kept = Client::connect(address).await.expect("it listens");
                while !done.load(Ordering::Relaxed) {
                    let answer = kept.get("/x").await.expect("an answer");
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    // 300 changes of the catalog in three seconds, and a reload for every thirtieth.
    let extra = Backend::start("extra");
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    for change in 0..300 {
        ticks.tick().await;
        let id = format!("extra-{}", change / 2 % 5);
        match change % 2 {
            0 => system.registry.register_as(
                &id,
                &extra.url(),
                &json!({"service": (["a", "b"][change / 2 % 2])}),
            ),
            _ => system.registry.deregister(&id),
        }
        if change % 30 == 0 {
            system.replace(&config(&system.registry, ["b", "a"][change / 30 % 2], &format!("# {change}\n")));
            assert_eq!(system.reload().await.0, 200);
        }
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no request failed");
    }
    assert!(served.load(Ordering::Relaxed) > 0);
    assert!(system.lb.metrics().await.contains("balancer_config_generation 11"));
}
