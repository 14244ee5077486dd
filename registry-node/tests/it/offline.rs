//! The commands for a stopped node's directory, as an operator runs them.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use super::node::{Cluster, PATIENCE};
use super::wire::call;

fn registry_node(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_registry-node"));
    // A node's environment must not confuse its commands.
    command.args(args).env("REGISTRY_ID", "3").env("REGISTRY_DIR", "elsewhere");
    command.output().expect("the binary runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What `inspect` prints of a stopped node's directory, and its exit code.
pub fn inspected(dir: &Path, flag: &str) -> (Option<i32>, Vec<Value>) {
    let dir = dir.to_str().expect("a plain path");
    let args = if flag == "json" { vec!["inspect", dir, "-o", "json"] } else { vec!["inspect", dir, flag] };
    let output = registry_node(&args);
    let values = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
    let values: Result<Vec<Value>, _> = values.collect();
    (output.status.code(), values.unwrap_or_else(|error| panic!("{error}: {}", text(&output))))
}

async fn put(node: &str, id: &str) -> u64 {
    let body = json!({ "service": "web", "url": "http://127.0.0.1:1", "ttlMs": 600_000 }).to_string();
    let answer = call("PUT", &format!("{node}/v1/instances/{id}"), &body).await;
    assert_eq!(answer.status, 201, "{}", answer.json());
    answer.json()["instance"]["modRev"].as_str().expect("a revision").parse().expect("a number")
}

async fn ids(node: &str) -> Vec<String> {
    let list = call("GET", &format!("{node}/v1/services/web"), "").await;
    assert_eq!(list.status, 200, "{}", list.json());
    let list = list.json()["instances"].as_array().cloned().unwrap_or_default();
    list.iter().map(|it| it["id"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Three nodes, two of them lost for good. The third begins again alone, serves everything, has another cluster's id and
/// higher revisions; a watcher that was at the old cluster is given a snapshot; a new node joins and takes over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_cluster_begins_again_and_grows() {
    let mut cluster = Cluster::start(3, &["--snapshot-every", "20", "--log-keep", "5"]).await;
    let mut highest = 0;
    for number in 0..60 {
        let node = cluster.nodes[number % 3].rest.clone();
        highest = put(&node, &format!("web-{:02}", number % 30)).await;
    }
    let survivor = cluster.nodes[2].rest.clone();
    let before = ids(&survivor).await;
    assert_eq!(before.len(), 30);
    let status = call("GET", &format!("{survivor}/v1/status"), "").await.json();
    let old_cluster = status["header"]["clusterId"].as_str().expect("an id").to_owned();
    let client = flux::Client::builder([survivor.clone()]).name("watcher").build().expect("a client");
    let mut watch = client.watch(Some("web"));
    let first = tokio::time::timeout(PATIENCE, watch.next()).await.expect("in time");
    assert!(matches!(first, flux::Update::Reset { .. }), "{first:?}");

    let dir = cluster.nodes[2].dir();
    let path = dir.to_str().expect("a plain path");
    let running = registry_node(&["inspect", path]);
    assert_eq!(running.status.code(), Some(64), "{}", text(&running));
    assert!(text(&running).contains("a running node holds"), "{}", text(&running));

    for index in 0..3 {
        cluster.nodes[index].kill();
    }
    cluster.nodes[0].wipe();
    cluster.nodes[1].wipe();

    let (code, values) = inspected(&dir, "json");
    assert_eq!((code, &values[0]["sound"]), (Some(0), &json!(true)), "{values:#?}");
    assert_eq!((&values[0]["node_id"], &values[0]["cluster_id"]), (&json!(3), &json!(old_cluster)));
    assert_eq!(values[0]["members"].as_array().map(Vec::len), Some(3));
    let (code, catalog) = inspected(&dir, "--catalog");
    assert_eq!((code, catalog[0]["instances"].as_array().map(Vec::len)), (Some(0), Some(30)));
    assert_eq!(catalog[0]["revision"], json!(highest));
    let (code, log) = inspected(&dir, "--log");
    let last =
        log.iter().rfind(|line| line["command"]["do"] == "register").expect("the log holds the last write");
    assert_eq!(
        (code, &last["command"]["id"], &last["revision"]),
        (Some(0), &json!("web-29"), &json!(highest))
    );

    let asked = registry_node(&["recover", path]);
    assert_eq!(asked.status.code(), Some(64), "{}", text(&asked));
    assert!(text(&asked).contains("Lost: whatever was acknowledged by nodes 1, 2"), "{}", text(&asked));
    assert_eq!(inspected(&dir, "json").1, values, "nothing was changed");

    let done = registry_node(&["recover", path, "--yes"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done));
    assert!(Path::new(&format!("{path}.before-recover-1")).is_dir(), "{}", text(&done));

    cluster.nodes[2].spawn();
    cluster.nodes[2].wait_ready().await;
    assert_eq!(ids(&survivor).await, before);
    let status = call("GET", &format!("{survivor}/v1/status"), "").await.json();
    assert_ne!(status["header"]["clusterId"], json!(old_cluster));
    assert!(put(&survivor, "after").await > highest);
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The watcher goes on by itself: with a snapshot of the new cluster first, then with what came after.
        let left = deadline.saturating_duration_since(Instant::now());
        let update = tokio::time::timeout(left, watch.next()).await.expect("in time");
        let told = match update {
            flux::Update::Reset { instances, .. } => instances.iter().any(|it| it.id == "after"),
            flux::Update::Events { events, .. } => events.iter().any(|event| event.instance.id == "after"),
            _ => false,
        };
        if told {
            break;
        }
    }

    let joined = cluster.join_through(2, 4);
    let node = &cluster.nodes[joined];
    let deadline = Instant::now() + PATIENCE;
    while !node.log().contains("joined cluster") {
        assert!(Instant::now() < deadline, "{}", node.log());
        sleep(Duration::from_millis(20)).await;
    }
    let member =
        json!({ "id": 4, "name": "node-4", "peer": node.peer(), "grpc": node.grpc, "rest": node.rest });
    let added = call("POST", &format!("{survivor}/v1/members"), &member.to_string()).await;
    assert_eq!(added.status, 200, "{}", added.json());
    cluster.nodes[joined].wait_ready().await;
    let mut all = before;
    all.insert(0, "after".into());
    assert_eq!(ids(&cluster.nodes[joined].rest).await, all);
}

#[test]
fn commands_explain_themselves() {
    let nothing = tempfile::tempdir().expect("a directory");
    let path = nothing.path().to_str().expect("a plain path");
    for command in ["inspect", "recover"] {
        let output = registry_node(&[command, path]);
        assert_eq!(output.status.code(), Some(64), "{}", text(&output));
        assert!(text(&output).contains("holds no store"), "{}", text(&output));
        let help = registry_node(&[command, "--help"]);
        assert!(text(&help).contains("Exit codes: 0"), "{}", text(&help));
    }
    let help = text(&registry_node(&["--help"]));
    assert!(help.contains("inspect") && help.contains("recover") && help.contains("--members"), "{help}");
    assert_eq!(std::fs::read_dir(path).expect("readable").count(), 0, "nothing was made there");
}
