//! A cluster for a test, conditions with deadlines, and plain HTTP.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use cluster::{Cluster, Kind, Options, Ports};
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, body::Bytes};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::{Value, json};

/// The binary under test.
pub const EXE: &str = env!("CARGO_BIN_EXE_cluster");

/// How long anything may take on a busy machine before it counts as not happening.
pub const PATIENCE: Duration = Duration::from_secs(30);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `test` in a runtime while no other test does.
pub fn alone<T>(test: impl Future<Output = T>) -> T {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime can be built").block_on(test)
}

/// An empty directory that outlives the test called `name`.
pub fn fresh_dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            panic!("cannot clear {}: {error}", dir.display())
        }
        _ => std::fs::create_dir_all(&dir).expect("the target directory is ours"),
    }
    dir
}

/// The documented system on free ports.
pub fn options(name: &str) -> Options {
    Options {
        dir: Some(fresh_dir(name)),
        ports: Ports::Free,
        exe: Some(EXE.into()),
        progress: |line| println!("{line}"),
        ..Options::default()
    }
}

/// Only registry nodes.
pub fn only_nodes(name: &str) -> Options {
    Options { balancers: 0, backends: 0, ..options(name) }
}

/// Launches, runs `test`, shuts down.
pub fn with_cluster(options: Options, test: impl AsyncFnOnce(&Cluster)) {
    alone(async {
        let cluster = Cluster::launch(options).await.unwrap_or_else(|error| panic!("{error}"));
        test(&cluster).await;
        cluster.shutdown().await.expect("it was running");
    });
}

/// Waits until `condition` gives a value, or panics saying `what` did not happen.
pub async fn eventually<T>(what: &str, within: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// REST URLs of the nodes, by name.
pub fn rests(cluster: &Cluster) -> BTreeMap<String, String> {
    let rest = |spec: cluster::ProcessSpec| match spec.kind {
        Kind::Node { rest, .. } => Some((spec.name, rest)),
        _ => None,
    };
    cluster.specs().expect("it runs").into_iter().filter_map(rest).collect()
}

/// URLs of the balancers.
pub fn balancers(cluster: &Cluster) -> Vec<String> {
    let url = |spec: cluster::ProcessSpec| match spec.kind {
        Kind::Balancer { http, .. } => Some(http),
        _ => None,
    };
    cluster.specs().expect("it runs").into_iter().filter_map(url).collect()
}

/// What a sample backend registers as.
pub fn instance_of(cluster: &Cluster, name: &str) -> String {
    match cluster.spec(name).expect("it is there").kind {
        Kind::Backend { id, .. } => id,
        other => panic!("{name} is {other:?}"),
    }
}

/// The name of the leader, once there is one.
pub async fn leader(cluster: &Cluster) -> String {
    eventually("a node leads", PATIENCE, async || cluster.leader().await.expect("the directory is readable"))
        .await
}

/// The name of a node that does not lead.
pub async fn follower(cluster: &Cluster) -> String {
    let leader = leader(cluster).await;
    rests(cluster).into_keys().find(|name| *name != leader).expect("there are three")
}

/// One request; `Err` when there is no whole answer within 10 s.
pub async fn request(method: Method, url: &str, body: Option<Value>) -> Result<(u16, Bytes), String> {
    let exchange = async {
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let mut request = Request::builder().method(method).uri(url);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = Full::from(body.map_or(Bytes::new(), |body| body.to_string().into()));
        let answer = client
            .request(request.body(body).expect("a valid request"))
            .await
            .map_err(|e| format!("{e:?}"))?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(|e| format!("{e:?}"))?;
        Ok((status, body.to_bytes()))
    };
    tokio::time::timeout(Duration::from_secs(10), exchange).await.unwrap_or_else(|_| Err("time-out".into()))
}

/// A GET that must answer 200 with JSON.
pub async fn get_json(url: &str) -> Result<Value, String> {
    let (status, body) = request(Method::GET, url, None).await?;
    if status != 200 {
        return Err(format!("{status} {}", String::from_utf8_lossy(&body)));
    }
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

/// Registers through any node, retrying until it is acknowledged.
pub async fn put(rest: &str, id: &str, url: &str, ttl_ms: u64) {
    let body = json!({"service": "hello", "url": url, "healthPath": "/health", "ttlMs": ttl_ms});
    eventually("the registration is acknowledged", PATIENCE, async || {
        let answer = request(Method::PUT, &format!("{rest}/v1/instances/{id}"), Some(body.clone())).await;
        matches!(answer, Ok((200 | 201, _))).then_some(())
    })
    .await;
}

/// The sum over all series of one metric in the exposition at `url`.
pub async fn metric(url: &str, name: &str) -> f64 {
    let (_, body) = request(Method::GET, &format!("{url}/metrics"), None).await.expect("a scrape");
    let text = String::from_utf8_lossy(&body);
    let of_name = |line: &&str| line.split(['{', ' ']).next() == Some(name);
    let value = |line: &str| line.rsplit_once(' ')?.1.parse::<f64>().ok();
    text.lines().filter(of_name).filter_map(value).sum()
}

/// The value of the series of `name` that has `label` among its labels' values, if there is one.
pub async fn metric_with(url: &str, name: &str, label: &str) -> Option<f64> {
    let (_, body) = request(Method::GET, &format!("{url}/metrics"), None).await.ok()?;
    let text = String::from_utf8_lossy(&body).into_owned();
    let quoted = format!("\"{label}\"");
    let line = text.lines().find(|line| line.starts_with(name) && line.contains(&quoted))?;
    line.rsplit_once(' ')?.1.parse().ok()
}
