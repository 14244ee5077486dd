//! The command line against real nodes: what it changes, what it says, and how it exits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flux::{Client, Instance, WriteOptions};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;

use super::leases;
use super::node::{Cluster, Node, PATIENCE};
use super::wire::{call, try_call};

/// What one run of the command line gave.
#[derive(Debug)]
struct Ran {
    code: u8,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// Checks the exit code, and that the message contains `said`.
    #[track_caller]
    fn expect(self, code: u8, said: &str) -> Ran {
        assert!(self.code == code && self.err.contains(said), "not {code} and {said:?}: {self:?}");
        self
    }
}

/// Runs registryctl against these endpoints.
async fn ctl(endpoints: &str, args: &[&str]) -> Ran {
    ctl_until(endpoints, args, CancellationToken::new()).await
}

async fn ctl_until(endpoints: &str, args: &[&str], stop: CancellationToken) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let line = [&["registryctl", "--endpoints", endpoints], args].concat();
    let code = flux::cli::run(line, &mut out, &mut err, stop).await;
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Ran { code, out: text(out), err: text(err) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_registered_marked_and_taken_out() {
    let cluster = Cluster::start(1, &[]).await;
    let node = cluster.nodes[0].rest.as_str();
    let instance = async |id: &str| call("GET", &format!("{node}/v1/instances/{id}"), "").await;

    let full = [
        "register",
        "web",
        "--id",
        "a",
        "--url",
        "http://10.0.0.7:8082",
        "--ttl",
        "1h",
        "--weight",
        "7",
        "--zone",
        "z1",
        "--version",
        "1.2",
        "--tag",
        "blue",
        "--tag",
        "new",
        "--meta",
        "rack=4",
        "--meta",
        "note=a=b",
        "--health-path",
        "/up",
        "--why",
        "moved here",
        "-o",
        "json",
    ];
    let registered = ctl(node, &full).await.expect(0, "a is gone in 1h unless").json();
    let record = &registered["instance"];
    assert_eq!(record["host"], "10.0.0.7");
    assert_eq!(
        (&record["port"], &record["ttl_ms"], &record["weight"]),
        (&8082.into(), &3_600_000.into(), &7.into())
    );
    assert_eq!(record["metadata"], serde_json::json!({"rack": "4", "note": "a=b"}));
    let kept = instance("a").await.json();
    assert_eq!(kept["instance"]["changed"]["why"], "moved here");
    let by = kept["instance"]["changed"]["by"].as_str().unwrap_or_default();
    assert!(by.starts_with("registryctl"), "{by}");
    assert_eq!(kept["instance"]["tags"], serde_json::json!(["blue", "new"]));

    let named = ctl(node, &["register", "web", "--host", "h", "--port", "80"]).await.expect(0, "30s");
    assert!(named.out.contains("web-h-80  web      up"), "{named:?}");
    ctl(node, &["register", "web", "--id", "a", "--host", "h", "--port", "1", "--if-absent"])
        .await
        .expect(6, "--if-absent");
    ctl(node, &["register", "web", "--id", "b"]).await.expect(2, "give --host and --port, or --url");
    ctl(node, &["register", "web", "--url", "nonsense"]).await.expect(2, "is no URL");
    ctl(node, &["register", "web", "--host", "h", "--port", "1", "--ttl", "1s"]).await.expect(2, "ttl_ms");
    ctl(node, &["register", "web", "--meta", "=x"]).await.expect(2, "is not KEY=VALUE");

    for (args, status) in [
        (vec!["drain", "a", "--why", "deploy 42"], "draining"),
        (vec!["maintenance", "a"], "maintenance"),
        (vec!["up", "a"], "up"),
        (vec!["status", "a", "draining"], "draining"),
    ] {
        let marked = ctl(node, &[&args[..], &["-o", "json"]].concat()).await.expect(0, "").json();
        assert_eq!(marked["instance"]["status"], status);
        assert_eq!(marked["instance"]["reg_rev"], record["reg_rev"]);
    }
    ctl(node, &["drain", "nobody"]).await.expect(3, "\"nobody\" is not registered");
    ctl(node, &["up", "a", "--reg-rev", "77"]).await.expect(6, "leave --reg-rev out");
    ctl(node, &["deregister", "a", "--reg-rev", "77"]).await.expect(6, "leave --reg-rev out");
    let gone = ctl(node, &["deregister", "a", "--why", "done", "-o", "json"]).await.expect(0, "").json();
    assert_eq!(gone["found"], true);
    assert_eq!(instance("a").await.status, 404);
    ctl(node, &["deregister", "a"]).await.expect(3, "\"a\" is not registered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_is_kept_until_it_is_interrupted() {
    let cluster = Cluster::start(1, &[]).await;
    let node = cluster.nodes[0].rest.clone();
    let url = format!("{node}/v1/instances/k");
    let stop = CancellationToken::new();
    let args = ["register", "web", "--id", "k", "--host", "h", "--port", "1", "--ttl", "3s", "--keep"];
    let meanwhile = async {
        let deadline = Instant::now() + PATIENCE;
        let first = loop {
            let known = call("GET", &url, "").await;
            if known.status == 200 {
                break known.json()["instance"]["regRev"].clone();
            }
            assert!(Instant::now() < deadline, "never registered");
            sleep(Duration::from_millis(20)).await;
        };
        // Taken away behind its back: it comes again.
        assert_eq!(call("DELETE", &url, "").await.status, 200);
        loop {
            let known = call("GET", &url, "").await;
            if known.status == 200 && known.json()["instance"]["regRev"] != first {
                break;
            }
            assert!(Instant::now() < deadline, "never registered again");
            sleep(Duration::from_millis(20)).await;
        }
        stop.cancel();
    };
    let (ran, ()) = tokio::join!(ctl_until(&node, &args, stop.clone()), meanwhile);
    let ran = ran.expect(0, "k is deregistered");
    assert!(ran.err.contains("k is not acknowledged") && ran.err.contains("draining for 500ms"), "{ran:?}");
    assert!(ran.out.contains("k   web      up      http://h:1"), "{ran:?}");
    assert_eq!(call("GET", &url, "").await.status, 404);
}

/// Leases so many that they are held back go when an operator says so, whichever node is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_that_are_held_back_are_released() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let (leader, follower) =
        (cluster.nodes[leader].rest.clone(), cluster.nodes[(leader + 1) % 3].rest.clone());
    let none = ctl(&follower, &["leases", "release", "-o", "json"]).await.expect(0, "").json();
    assert_eq!(none["released"], 0, "{none}");
    leases::register_all(&leader).await;
    leases::await_brake(&leader).await;
    let (braked, mut released) = (Instant::now(), 0);
    while leases::listed(&leader).await > 0 {
        // Again for those that run out a little later.
        let ran = ctl(&follower, &["leases", "release", "-o", "json"]).await.expect(0, "");
        released += ran.json()["released"].as_u64().expect("a number");
        assert!(braked.elapsed() < leases::TTL * 3 / 4, "some are still held back");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(released > 0, "what was held back is told");
    let log: String = cluster.nodes.iter().map(Node::log).collect();
    assert!(log.contains("none expires for a while") && log.contains("an operator releases"), "{log}");
    let table = ctl(&leader, &["leases", "release"]).await.expect(0, "");
    assert!(table.out.starts_with("LEADER  RELEASED\n"), "{table:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_is_told_as_far_as_it_is_remembered() {
    let mut cluster = Cluster::start(1, &[]).await;
    let node = cluster.nodes[0].rest.clone();
    let at = ["--host", "h", "--port", "1", "--ttl", "1h"];
    ctl(&node, &[&["register", "web", "--id", "a", "--why", "first"], &at[..]].concat()).await.expect(0, "");
    ctl(&node, &[&["register", "api", "--id", "b"], &at[..]].concat()).await.expect(0, "");
    ctl(&node, &["drain", "a", "--why", "deploy 42"]).await.expect(0, "");
    ctl(&node, &[&["register", "api", "--id", "a", "--zone", "z2"], &at[..]].concat()).await.expect(0, "");
    ctl(&node, &["deregister", "b"]).await.expect(0, "");

    let told = ctl(&node, &["history", "a", "-o", "json"]).await.expect(0, "").json();
    let told: Vec<(u64, String, String, String)> = told["changes"]
        .as_array()
        .expect("changes")
        .iter()
        .map(|change| {
            let text = |key: &str| change[key].as_str().unwrap_or_default().to_owned();
            (
                change["revision"].as_u64().expect("a revision"),
                text("type"),
                text("why"),
                change["changed"].to_string(),
            )
        })
        .collect();
    let want = [
        (1, "put", "first", "[]"),
        (3, "put", "deploy 42", r#"["status"]"#),
        (4, "delete", "", "[]"),
        (4, "put", "", r#"["service","status","zone"]"#),
    ];
    let want = want.map(|(revision, kind, why, changed)| {
        (revision, kind.to_owned(), why.to_owned(), changed.to_owned())
    });
    assert_eq!(told, want);
    let told = ctl(&node, &["history", "a"]).await.expect(0, "").out;
    assert!(told.contains("status up -> draining") && told.contains("registryctl"), "{told}");
    ctl(&node, &["history", "a", "--limit", "2"]).await.expect(0, "older changes are left out");
    ctl(&node, &["history", "nobody"]).await.expect(3, "nothing is known of it since revision 0");

    let ids = async |args: &[&str]| {
        let listed = ctl(&node, &[&["instances", "-o", "json"], args].concat()).await.expect(0, "").json();
        let ids = listed["instances"].as_array().expect("instances").iter();
        let ids = ids
            .map(|i| format!("{}:{}:{}", i["id"], i["service"], i["status"]).replace('"', ""))
            .collect::<Vec<_>>();
        (listed["revision"].as_u64().expect("a revision"), ids.join(" "))
    };
    assert_eq!(ids(&["--at", "1"]).await, (1, "a:web:up".into()));
    assert_eq!(ids(&["--at", "3"]).await, (3, "a:web:draining b:api:up".into()));
    assert_eq!(ids(&["api", "--at", "4"]).await, (4, "a:api:up b:api:up".into()));
    assert_eq!(ids(&["--at", "5"]).await, ids(&[]).await);
    ctl(&node, &["instances", "web", "--at", "4"]).await.expect(3, "was registered at revision 4");
    ctl(&node, &["instances", "--at", "6"]).await.expect(2, "the catalog is at revision 5");
    let by_rest = call("GET", &format!("{node}/v1/services/api?at=2"), "").await.json();
    assert_eq!((&by_rest["instances"][0]["id"], &by_rest["header"]["revision"]), (&"b".into(), &"2".into()));

    // After a restart from a snapshot the ring begins there: what was before is refused, not made up.
    assert_eq!(call("POST", &format!("{node}/v1/snapshot"), "").await.status, 200);
    cluster.nodes[0].kill();
    cluster.nodes[0].spawn();
    cluster.wait_ready().await;
    ctl(&node, &["instances", "--at", "3"]).await.expect(3, "5 is the oldest that this node can show");
    let gone = call("GET", &format!("{node}/v1/instances?at=3"), "").await;
    assert_eq!((gone.status, &gone.json()["code"]), (410, &"COMPACTED".into()));
    assert_eq!(ids(&["--at", "5"]).await, (5, "a:api:up".into()));
    ctl(&node, &["history", "a"]).await.expect(0, "at revision 4, is older than what this node remembers");
    ctl(&node, &["history", "b"]).await.expect(3, "nothing is known of it since revision 5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_taken_looked_at_and_restored_elsewhere() {
    const COUNT: usize = 1_500;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("b.snapshot").display().to_string();
    let (cluster_id, records) = {
        let cluster = Cluster::start(1, &[]).await;
        let node = cluster.nodes[0].rest.clone();
        let mut extra = vec!["register", "web", "--id", "kept", "--host", "h", "--port", "1", "--ttl", "1h"];
        extra.extend(["--why", "the first", "--status", "maintenance", "--meta", "a=b"]);
        ctl(&node, &extra).await.expect(0, "");
        fill(&node, COUNT).await;
        let saved = ctl(&node, &["snapshot", "save", &file, "-o", "json"]).await.expect(0, "").json();
        assert_eq!((&saved["count"], &saved["revision"]), (&(COUNT + 1).into(), &(COUNT + 1).into()));
        ctl(&node, &["snapshot", "save", &file]).await.expect(6, "--force");
        ctl(&node, &["snapshot", "save", &file, "--force"]).await.expect(0, "");
        // curl gets the same file.
        let by_rest = call("GET", &format!("{node}/v1/snapshot"), "").await;
        let rest = dir.path().join("rest.snapshot").display().to_string();
        std::fs::write(&rest, &by_rest.body).expect("it can be written");
        let of = async |file: &str| {
            ctl("http://127.0.0.1:1", &["snapshot", "inspect", file, "-o", "json"]).await.expect(0, "").json()
        };
        let (by_ctl, by_rest) = (of(&file).await, of(&rest).await);
        assert_eq!(by_ctl["instances"], by_rest["instances"]);
        let shown = ctl("http://127.0.0.1:1", &["snapshot", "inspect", &file]).await.expect(0, "").out;
        assert!(shown.contains("SERVICE") && shown.contains("web"), "{shown}");
        ctl(&node, &["snapshot", "take"]).await.expect(0, "");
        assert_eq!(std::fs::read_dir(dir.path()).expect("it is there").count(), 2, "nothing partial is left");
        (by_ctl["cluster_id"].clone(), by_ctl["instances"].clone())
    };

    // Damage is named, before anything is done.
    let whole = std::fs::read(&file).expect("it is there");
    let mut bad = whole.clone();
    bad[whole.len() / 2] ^= 1;
    let damaged = dir.path().join("damaged").display().to_string();
    std::fs::write(&damaged, bad).expect("it can be written");
    ctl("http://127.0.0.1:1", &["snapshot", "inspect", &damaged]).await.expect(6, "damaged at byte");
    ctl("http://127.0.0.1:1", &["snapshot", "restore", &damaged]).await.expect(6, "damaged at byte");
    ctl("http://127.0.0.1:1", &["snapshot", "inspect", "/nowhere"]).await.expect(3, "snapshot save FILE");

    let cluster = Cluster::start(3, &[]).await;
    let node = cluster.nodes[0].rest.clone();
    let restored = ctl(&node, &["snapshot", "restore", &file, "-o", "json"])
        .await
        .expect(0, cluster_id.as_str().expect("an id"))
        .json();
    assert_eq!((&restored["restored"], &restored["kept"]), (&(COUNT + 1).into(), &0.into()));
    let without_tokens = |records: &Value| {
        let records = records.as_array().expect("records").iter().cloned();
        records
            .map(|mut record| {
                (record["reg_rev"], record["mod_rev"]) = (0.into(), 0.into());
                record
            })
            .collect::<Vec<Value>>()
    };
    for node in &cluster.nodes {
        let listed = ctl(&node.rest, &["instances", "-o", "json"]).await.expect(0, "").json();
        assert_eq!(without_tokens(&listed["instances"]), without_tokens(&records));
    }
    let changed =
        call("GET", &format!("{node}/v1/instances/kept"), "").await.json()["instance"]["changed"].clone();
    assert_eq!(changed["why"], "the first");
    assert!(changed["by"].as_str().unwrap_or_default().starts_with("registryctl"), "{changed}");

    // A cluster that holds instances is not run over.
    ctl(&node, &["snapshot", "restore", &file]).await.expect(6, "--keep");
    ctl(&node, &["snapshot", "restore", &file, "--replace"]).await.expect(2, "--yes");
    ctl(&node, &["up", "kept", "--why", "it lives here"]).await.expect(0, "");
    ctl(&node, &["deregister", "f0"]).await.expect(0, "");
    ctl(&node, &["register", "web", "--id", "new", "--url", "http://h:2", "--ttl", "1h"]).await.expect(0, "");
    let kept = ctl(&node, &["snapshot", "restore", &file, "--keep", "-o", "json"]).await.expect(0, "").json();
    assert_eq!((&kept["restored"], &kept["kept"], &kept["removed"]), (&1.into(), &COUNT.into(), &0.into()));
    assert_eq!(
        call("GET", &format!("{node}/v1/instances/kept"), "").await.json()["instance"]["status"],
        "UP"
    );
    let replaced = ctl(&node, &["snapshot", "restore", &file, "--replace", "--yes", "-o", "json"])
        .await
        .expect(0, "")
        .json();
    assert_eq!((&replaced["restored"], &replaced["removed"]), (&(COUNT + 1).into(), &1.into()));
    let listed = ctl(&node, &["instances", "-o", "json"]).await.expect(0, "").json();
    assert_eq!(without_tokens(&listed["instances"]), without_tokens(&records));
    assert_eq!(call("POST", &format!("{node}/v1/snapshot/restore"), "{}").await.status, 409);
}

/// Registers so many instances, many at once.
async fn fill(node: &str, count: usize) {
    let client = Client::connect([node]).expect("an endpoint");
    let put = |number| {
        let client = client.clone();
        async move {
            let id = format!("f{number}");
            let instance = Instance::new("fill", "127.0.0.1", 1).id(id).ttl(Duration::from_secs(3_600));
            client.put(&instance, WriteOptions::default()).await.expect("registered");
        }
    };
    let mut puts = tokio::task::JoinSet::new();
    for number in 0..count {
        if puts.len() == 64 {
            puts.join_next().await.expect("64 are there").expect("no panic");
        }
        puts.spawn(put(number));
    }
    puts.join_all().await;
}

/// Registers one instance after another until stopped; all that is acknowledged is kept.
struct Load {
    acknowledged: Arc<Mutex<Vec<String>>>,
    stop: CancellationToken,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(endpoints: &str, writers: usize) -> Load {
        let (acknowledged, stop) = (Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
        let writer = |writer| {
            let client = Client::connect([endpoints]).expect("endpoints");
            let (acknowledged, stop) = (acknowledged.clone(), stop.clone());
            tokio::spawn(stop.run_until_cancelled_owned(async move {
                let mut pace = interval(Duration::from_millis(5));
                for n in 0.. {
                    pace.tick().await;
                    let id = format!("w{writer}-{n}");
                    let instance =
                        Instance::new("load", "127.0.0.1", 1).id(&id).ttl(Duration::from_secs(3_600));
                    if client.put(&instance, WriteOptions::default()).await.is_ok() {
                        acknowledged.lock().await.push(id);
                    }
                }
            }))
        };
        let writers =
            (0..writers).map(writer).map(|task| tokio::spawn(async move { drop(task.await) })).collect();
        Load { acknowledged, stop, writers }
    }

    /// Waits until so many more writes have been acknowledged.
    async fn goes_on(&self, more: usize) {
        let (deadline, begun) = (Instant::now() + PATIENCE, self.acknowledged.lock().await.len());
        while self.acknowledged.lock().await.len() < begun + more {
            assert!(Instant::now() < deadline, "the load does not go on");
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn end(self) -> Vec<String> {
        self.stop.cancel();
        for writer in self.writers {
            writer.await.expect("no writer panics");
        }
        std::mem::take(&mut *self.acknowledged.lock().await)
    }
}

/// The leader is replaced under load, then a dead follower; each in one command, one of them begun before and gone
/// on with. No acknowledged write is lost, and the new nodes have them all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_replaced_under_load_and_nothing_is_lost() {
    let mut cluster = Cluster::start(3, &[]).await;
    let endpoints = cluster.nodes.iter().map(|node| node.rest.clone()).collect::<Vec<_>>().join(",");
    let load = Load::start(&endpoints, 4);
    load.goes_on(50).await;

    let leader = (cluster.leader().await + 1).to_string();
    let fourth = cluster.join(4);
    let fourth = cluster.nodes[fourth].rest.clone();
    ctl(&endpoints, &["cluster", "replace", &leader, "http://127.0.0.1:1"])
        .await
        .expect(4, "does not say who it is");
    cluster_join(&endpoints, &fourth).await;
    let replaced = ctl(&endpoints, &["cluster", "replace", &leader, &fourth]).await.expect(0, "3/3 node");
    assert!(
        replaced.out.contains("node-4") && !replaced.out.contains(&format!("node-{leader} ")),
        "{replaced:?}"
    );
    load.goes_on(50).await;
    let again = ctl(&endpoints, &["cluster", "replace", &leader, &fourth]).await.expect(0, "");
    // The one that went may not have heard of it yet; removing twice is removing once.
    let told = ["nothing is left to do", &format!("3/3 node {leader} is out")];
    assert!(told.iter().any(|told| again.err.contains(told)), "{again:?}");
    ctl(&endpoints, &["cluster", "replace", "nobody", "http://127.0.0.1:1"]).await.expect(4, "does not say");

    // Of the two of the first three that are left, one that follows dies.
    let left: Vec<usize> = (0..3).filter(|index| (index + 1).to_string() != leader).collect();
    cluster.nodes[leader.parse::<usize>().expect("an id") - 1].kill();
    let now = cluster.leader().await;
    let dead = *left.iter().find(|index| **index != now).expect("two are left, one at most leads");
    cluster.nodes[dead].kill();
    let dead = (dead + 1).to_string();
    let through = left.iter().map(|index| cluster.nodes[*index].rest.clone()).chain([fourth.clone()]);
    let endpoints = through.collect::<Vec<_>>().join(",");
    ctl(&endpoints, &["cluster", "remove", &now_id(&endpoints).await]).await.expect(6, "no majority");
    let fifth = cluster.join_through(now, 5);
    let fifth = cluster.nodes[fifth].rest.clone();
    until_it_answers(&fifth).await;
    ctl(&endpoints, &["cluster", "replace", &dead, &fifth, "-o", "json"]).await.expect(0, "2/3 node 5");
    load.goes_on(50).await;
    let acknowledged = load.end().await;

    ctl(&endpoints, &["cluster", "status"]).await.expect(0, "");
    let handed = ctl(&endpoints, &["cluster", "transfer", "5", "-o", "json"]).await.expect(0, "").json();
    let leads = |member: &&Value| member["role"] == "leader";
    let leader = handed["members"].as_array().expect("members").iter().find(leads).expect("one leads");
    assert_eq!(leader["id"], 5);
    for node in [fourth, fifth] {
        let client = Client::connect([node.as_str()]).expect("an endpoint");
        let kept = client.list(Some("load")).await.expect("it serves").value;
        let kept: std::collections::BTreeSet<&str> =
            kept.iter().map(|instance| instance.id.as_str()).collect();
        let lost: Vec<&String> = acknowledged.iter().filter(|id| !kept.contains(id.as_str())).collect();
        assert!(lost.is_empty(), "{} of {} lost, such as {:?}", lost.len(), acknowledged.len(), lost[0]);
    }
}

/// Joins the node as soon as it says who it is.
async fn cluster_join(endpoints: &str, url: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let joined = ctl(endpoints, &["cluster", "join", url]).await;
        if joined.code == 0 {
            return;
        }
        assert!(joined.code == 4 && Instant::now() < deadline, "{joined:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a node that is no member yet says who it is.
async fn until_it_answers(url: &str) {
    let deadline = Instant::now() + PATIENCE;
    while try_call("GET", &format!("{url}/v1/status"), "").await.is_err() {
        assert!(Instant::now() < deadline, "{url} never answers");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The id of the leader, by `cluster status`.
async fn now_id(endpoints: &str) -> String {
    let status = ctl(endpoints, &["cluster", "status", "-o", "json"]).await.json();
    let members = status["members"].as_array().expect("members");
    let leader = members.iter().find(|member| member["role"] == "leader").expect("one leads");
    leader["id"].to_string()
}
