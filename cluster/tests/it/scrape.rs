//! `deploy/` tells the truth: every target of the Prometheus file answers, every metric of the dashboard exists.

use std::collections::{BTreeMap, BTreeSet};

use cluster::{Cluster, Kind};
use hyper::Method;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    promql,
    support::{PATIENCE, balancers, eventually, options, request, with_cluster},
};

const PROMETHEUS: &str = include_str!("../../deploy/prometheus/prometheus.yml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/dashboards/flux.json");

/// The documented addresses that serve metrics, and whose they are.
const DOCUMENTED: [(&str, &str, &str); 10] = [
    ("127.0.0.1:8081", "node-1", "rest"),
    ("127.0.0.1:8181", "node-2", "rest"),
    ("127.0.0.1:8281", "node-3", "rest"),
    ("127.0.0.1:8080", "lb-1", "http"),
    ("127.0.0.1:8070", "lb-2", "http"),
    ("127.0.0.1:8060", "lb-1", "admin"),
    ("127.0.0.1:8061", "lb-2", "admin"),
    ("127.0.0.1:9092", "backend-1", "metrics"),
    ("127.0.0.1:9093", "backend-2", "metrics"),
    ("127.0.0.1:9094", "backend-3", "metrics"),
];

/// The part of a Prometheus configuration that is used here.
#[derive(Deserialize)]
struct Prometheus {
    scrape_configs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    job_name: String,
    static_configs: Vec<Static>,
}

#[derive(Deserialize)]
struct Static {
    targets: Vec<String>,
}

fn targets() -> Vec<(String, String)> {
    let config: Prometheus = serde_saphyr::from_str(PROMETHEUS).expect("valid YAML");
    let of_job = |job: Job| {
        let targets = job.static_configs.into_iter().flat_map(|config| config.targets);
        targets.map(move |target| (job.job_name.clone(), target)).collect::<Vec<_>>()
    };
    config.scrape_configs.into_iter().flat_map(of_job).collect()
}

fn expressions(json: &Value, found: &mut Vec<String>) {
    match json {
        Value::Array(all) => all.iter().for_each(|one| expressions(one, found)),
        Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(Value::as_str).map(String::from));
            fields.values().for_each(|one| expressions(one, found));
        }
        _ => (),
    }
}

fn dashboard_metrics() -> BTreeSet<String> {
    let mut found = Vec::new();
    expressions(&serde_json::from_str(DASHBOARD).expect("valid JSON"), &mut found);
    found.iter().flat_map(|expression| promql::metrics(expression)).filter(|name| name != "up").collect()
}

/// Where the process that has the documented `target` really is.
fn actual(cluster: &Cluster, target: &str) -> String {
    let (_, name, what) =
        DOCUMENTED.into_iter().find(|(address, ..)| *address == target).expect("a documented port");
    match (cluster.spec(name).expect("it is there").kind, what) {
        (Kind::Node { rest, .. }, "rest") => rest,
        (Kind::Balancer { http, .. }, "http") => http,
        (Kind::Balancer { admin, .. }, "admin") => admin,
        (Kind::Backend { metrics, .. }, "metrics") => metrics,
        other => panic!("{target}: {other:?}"),
    }
}

/// The names in a text exposition: first words of sample lines.
fn names(exposition: &str) -> BTreeSet<String> {
    let samples = exposition.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    samples.filter_map(|line| line.split(['{', ' ']).next().map(String::from)).collect()
}

#[test]
fn the_prometheus_file_has_every_documented_target_once_and_no_other() {
    let targets: Vec<String> = targets().into_iter().map(|(_, target)| target).collect();
    let distinct: BTreeSet<&str> = targets.iter().map(String::as_str).collect();
    assert_eq!(distinct.len(), targets.len(), "twice: {targets:?}");
    assert_eq!(distinct, DOCUMENTED.iter().map(|(address, ..)| *address).collect());
}

#[test]
fn every_metric_of_the_dashboard_and_every_target_exists_in_a_live_scrape() {
    with_cluster(options("scrape"), async |cluster| {
        let wanted = dashboard_metrics();
        assert!(wanted.len() > 10, "the dashboard shows hardly anything: {wanted:?}");
        let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        // Some series begin with the first event of their kind, so traffic flows while it is looked for them.
        let missing = async |seen: &mut BTreeMap<String, BTreeSet<String>>| {
            for url in balancers(cluster) {
                drop(request(Method::GET, &url, None).await);
            }
            for (job, target) in targets() {
                let url = format!("{}/metrics", actual(cluster, &target));
                let (status, body) =
                    request(Method::GET, &url, None).await.unwrap_or_else(|e| panic!("{url}: {e}"));
                assert_eq!(status, 200, "{job} {target} at {url}");
                let text = String::from_utf8(body.to_vec()).expect("the exposition is text");
                seen.entry(format!("{job} {target}")).or_default().extend(names(&text));
            }
            let all: BTreeSet<&String> = seen.values().flatten().collect();
            wanted.iter().filter(|name| !all.contains(name)).cloned().collect::<Vec<_>>()
        };
        let deadline = std::time::Instant::now() + PATIENCE;
        eventually("every metric is there", 2 * PATIENCE, async || {
            let missing = missing(&mut seen).await;
            assert!(
                missing.is_empty() || std::time::Instant::now() < deadline,
                "not in any scrape: {missing:?}"
            );
            missing.is_empty().then_some(())
        })
        .await;
        for (target, names) in &seen {
            assert!(names.len() > 3, "{target} says hardly anything: {names:?}");
        }
    });
}
