//! `Pipeline`: many calls on one stream, at the leader and through a follower, each answered once, whatever
//! becomes of the nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::registry::v1 as pb;
use proto::registry::v1::pipeline_request::Call;
use proto::registry::v1::pipeline_response::Result as Answer;
use proto::registry::v1::registry_client::RegistryClient;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::node::{Cluster, PATIENCE};
use super::wire::call;

/// One open pipeline.
struct Line {
    requests: Option<mpsc::Sender<pb::PipelineRequest>>,
    answers: Streaming<pb::PipelineResponse>,
}

impl Line {
    async fn open(node: &str) -> Line {
        let mut client = RegistryClient::connect(node.to_owned()).await.expect("it listens");
        let (requests, outbound) = mpsc::channel(16);
        let answers = client.pipeline(ReceiverStream::new(outbound)).await.expect("a stream").into_inner();
        Line { requests: Some(requests), answers }
    }

    async fn send(&self, seq: u64, call: Call) -> bool {
        let requests = self.requests.as_ref().expect("it is open");
        requests.send(pb::PipelineRequest { seq, call: Some(call) }).await.is_ok()
    }

    async fn answer(&mut self) -> Result<Option<pb::PipelineResponse>, Status> {
        timeout(PATIENCE, self.answers.message()).await.expect("an answer in time")
    }

    /// One call, alone on the line.
    async fn call(&mut self, seq: u64, call: Call) -> Answer {
        assert!(self.send(seq, call).await);
        let answer = self.answer().await.expect("the stream goes on").expect("it goes on");
        assert_eq!(answer.seq, seq);
        answer.result.expect("a result")
    }
}

fn register(id: &str, client: &str, seq: u64) -> Call {
    let instance = pb::Instance {
        id: id.to_owned(),
        service: "piped".to_owned(),
        url: "http://127.0.0.1:1".to_owned(),
        ttl_ms: 600_000,
        ..Default::default()
    };
    let (instance, client) = (Some(instance), client.to_owned());
    Call::Register(pb::RegisterRequest { instance, client, seq, ..Default::default() })
}

fn beat(id: &str, reg_rev: u64) -> Call {
    Call::Heartbeat(pb::HeartbeatRequest { beats: vec![pb::Beat { id: id.to_owned(), reg_rev }] })
}

fn deregister(id: &str, reg_rev: u64) -> Call {
    Call::Deregister(pb::DeregisterRequest { id: id.to_owned(), reg_rev, ..Default::default() })
}

/// Ids of the service, as a linearizable read has them.
async fn listed(node: &str) -> BTreeSet<String> {
    let list = call("GET", &format!("{node}/v1/services/piped"), "").await;
    assert_eq!(list.status, 200, "{}", list.json());
    let list = list.json();
    let instances = list["instances"].as_array().cloned().unwrap_or_default();
    instances.iter().map(|one| one["id"].as_str().expect("an id").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_of_a_pipeline_has_its_answer() {
    let mut cluster = Cluster::start(3, &[]).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    for node in [leader, follower] {
        let node = &cluster.nodes[node];
        one_after_another(&node.grpc).await;
        many_at_once(&node.rest, &node.grpc).await;
    }
}

async fn one_after_another(node: &str) {
    let mut line = Line::open(node).await;
    let Answer::Register(first) = line.call(10, register("p-1", node, 1)).await else { panic!("registered") };
    let head = first.header.expect("a header");
    let record = first.instance.expect("a receipt");
    // The texts of a header come once; what the registrar has said itself does not come back.
    assert!(!head.cluster_id.is_empty() && head.leader.is_some_and(|leader| leader.grpc.starts_with("http")));
    assert_eq!((record.id.as_str(), record.url.as_str(), record.reg_rev), ("p-1", "", head.revision));
    // The same write again is the same write.
    let Answer::Register(again) = line.call(11, register("p-1", node, 1)).await else { panic!("repeated") };
    let head = again.header.expect("a header");
    assert_eq!(again.instance.expect("a receipt"), record);
    assert_eq!((head.cluster_id.as_str(), head.leader), ("", None));
    assert!(head.node_id > 0 && head.term > 0);

    let Answer::Heartbeat(renewed) = line.call(12, beat("p-1", record.reg_rev)).await else {
        panic!("renewed")
    };
    assert_eq!(renewed.results, [i32::from(pb::BeatResult::Renewed)]);
    let Answer::Heartbeat(lost) = line.call(12, beat("p-1", 1 << 40)).await else { panic!("answered") };
    assert_eq!(lost.results, [i32::from(pb::BeatResult::LeaseLost)]);

    let draining = pb::instance::Status::Draining;
    let status = pb::SetStatusRequest { id: "p-1".to_owned(), status: draining.into(), ..Default::default() };
    let Answer::SetStatus(set) = line.call(13, Call::SetStatus(status)).await else { panic!("set") };
    let set = set.instance.expect("the record");
    assert_eq!((set.status(), set.url.as_str()), (draining, "http://127.0.0.1:1"));

    // What fails, fails alone.
    let failures = [
        (register("", "", 0), "INVALID"),
        (beat("", 0), "INVALID"),
        (deregister("p-1", 1 << 40), "SUPERSEDED"),
        (
            Call::SetStatus(pb::SetStatusRequest { id: "nobody".to_owned(), ..Default::default() }),
            "NOT_FOUND",
        ),
        (Call::Heartbeat(pb::HeartbeatRequest { beats: vec![pb::Beat::default(); 1_025] }), "INVALID"),
    ];
    for (call, code) in failures {
        let Answer::Error(error) = line.call(14, call).await else { panic!("{code}") };
        assert_eq!((error.code.as_str(), error.retryable, error.had_no_effect), (code, false, true));
        assert!(!error.message.is_empty());
    }
    line.requests
        .as_ref()
        .expect("open")
        .send(pb::PipelineRequest { seq: 15, call: None })
        .await
        .expect("sent");
    let answer = line.answer().await.expect("the stream goes on").expect("it goes on");
    assert!(matches!(answer.result, Some(Answer::Error(error)) if error.code == "INVALID"));

    let Answer::Deregister(gone) = line.call(16, deregister("p-1", record.reg_rev)).await else {
        panic!("gone")
    };
    assert!(gone.found && gone.header.is_some_and(|head| head.revision > record.reg_rev));
    // A client that has no more requests is answered to the end.
    assert!(line.send(17, deregister("p-1", 0)).await);
    line.requests = None;
    let last = line.answer().await.expect("answered").expect("answered");
    assert!(matches!(last.result, Some(Answer::Deregister(gone)) if !gone.found));
    assert!(line.answer().await.expect("a clean end").is_none());
}

/// More calls than a pipeline may have in flight, sent without reading an answer: the node reads no further, the
/// client waits, and nothing is lost.
async fn many_at_once(rest: &str, grpc: &str) {
    const WRITES: u64 = 6_000;
    let mut line = Line::open(grpc).await;
    let requests = line.requests.take().expect("it is open");
    let before = listed(rest).await.len();
    let sending = tokio::spawn(async move {
        for seq in 0..WRITES {
            let call = match seq % 3 {
                0 => register(&format!("m-{seq}"), "", 0),
                1 => beat(&format!("m-{}", seq - 1), 0),
                _ => deregister("nobody", 0),
            };
            requests.send(pb::PipelineRequest { seq, call: Some(call) }).await.expect("the node goes on");
        }
    });
    let mut answers = BTreeMap::new();
    while let Some(answer) = line.answer().await.expect("it goes on") {
        assert!(answers.insert(answer.seq, answer.result.expect("a result")).is_none(), "answered twice");
    }
    sending.await.expect("all sent");
    assert_eq!(answers.len() as u64, WRITES);
    for (seq, answer) in &answers {
        let fits = match (seq % 3, answer) {
            (0, Answer::Register(registered)) => {
                registered.instance.as_ref().is_some_and(|one| one.id == format!("m-{seq}"))
            }
            (1, Answer::Heartbeat(beat)) => beat.results.len() == 1,
            (2, Answer::Deregister(gone)) => !gone.found,
            _ => false,
        };
        assert!(fits, "{seq}: {answer:?}");
    }
    assert!(listed(rest).await.len() > before || before > 0);
}

/// Numbered writes through a follower while the leader dies: each is answered, and each took effect once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_outlives_the_leader() {
    const WRITES: u64 = 3_000;
    let mut cluster = Cluster::start(3, &[]).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let mut line = Line::open(&cluster.nodes[follower].grpc).await;
    let requests = line.requests.take().expect("it is open");
    let sending = tokio::spawn(async move {
        for seq in 1..=WRITES {
            // Each client's last 32 outcomes are remembered: a hundred of them may have all these in doubt.
            let call = register(&format!("o-{seq}"), &format!("outlives-{}", seq % 100), seq / 100 + 1);
            requests.send(pb::PipelineRequest { seq, call: Some(call) }).await.expect("the node goes on");
        }
    });
    let (mut revisions, mut answered) = (BTreeSet::new(), 0);
    while let Some(answer) = line.answer().await.expect("it goes on") {
        answered += 1;
        if answered == WRITES / 10 {
            cluster.nodes[leader].kill();
        }
        match answer.result.expect("a result") {
            Answer::Register(registered) => {
                assert!(
                    revisions.insert(registered.instance.expect("a receipt").reg_rev),
                    "a revision twice"
                );
            }
            other => panic!("{}: {other:?}", answer.seq),
        }
    }
    sending.await.expect("all sent");
    assert_eq!((answered, revisions.len() as u64), (WRITES, WRITES));
    // Once each: no revision was spent on a second registration of the same write.
    let spread = revisions.last().zip(revisions.first()).map_or(0, |(last, first)| last - first + 1);
    assert_eq!(spread, WRITES);
    assert_eq!(listed(&cluster.nodes[follower].rest).await.len() as u64, WRITES);
}

/// A node that is told to stop answers what it has taken in and says that it stops; what it did not answer had no
/// effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_answers_what_it_took() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let mut line = Line::open(&cluster.nodes[leader].grpc).await;
    let requests = line.requests.take().expect("it is open");
    let sending = tokio::spawn(async move {
        for seq in 0.. {
            let call = register(&format!("s-{seq}"), &format!("stops-{}", seq / 30), seq % 30 + 1);
            if requests.send(pb::PipelineRequest { seq, call: Some(call) }).await.is_err() {
                return seq;
            }
        }
        unreachable!("the node stops")
    });
    let (mut done, mut unknown, mut told) = (BTreeSet::new(), BTreeSet::new(), false);
    let end = loop {
        match line.answer().await {
            Ok(Some(answer)) => {
                match answer.result.expect("a result") {
                    Answer::Register(registered) => done.insert(registered.instance.expect("a receipt").id),
                    Answer::Error(error) if error.had_no_effect => false,
                    // The lead moves on meanwhile: on a slow machine not within the time of a call.
                    Answer::Error(_) => unknown.insert(format!("s-{}", answer.seq)),
                    other => panic!("{}: {other:?}", answer.seq),
                };
                // Once: a second time ends it at once.
                if done.len() >= 200 && !std::mem::replace(&mut told, true) {
                    cluster.nodes[leader].terminate();
                }
            }
            Ok(None) => panic!("the stream ends with a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    assert!(end.message().contains("stops"), "{end:?}");
    drop(line);
    sending.await.expect("it ends");
    assert_eq!(cluster.nodes[leader].exit_code().await, Some(0));
    let survivor = cluster.nodes[(leader + 1) % 3].rest.clone();
    let deadline = std::time::Instant::now() + PATIENCE;
    while super::wire::try_call("GET", &format!("{survivor}/readyz"), "").await.is_ok_and(|r| r.status != 200)
    {
        assert!(std::time::Instant::now() < deadline, "no new leader");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let listed = listed(&survivor).await;
    assert!(done.is_subset(&listed), "{:?} were acknowledged", done.difference(&listed));
    let more: Vec<_> = listed.difference(&done).filter(|id| !unknown.contains(*id)).collect();
    assert!(more.is_empty(), "{more:?} were never answered, and had an effect");
}

/// Many tasks share one stream; the leader dies under it; every call succeeds and took effect once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdks_pipeline_outlives_the_leader() {
    const TASKS: u64 = 100;
    const ROUNDS: u64 = 20;
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let endpoints: Vec<String> = cluster.nodes.iter().map(|node| node.grpc.clone()).collect();
    let client = flux::Client::builder(endpoints).call_timeout(PATIENCE).build().expect("endpoints");
    let pipeline = client.pipeline();
    let (tell, mut told) = mpsc::channel(64);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (pipeline, tell) = (pipeline.clone(), tell.clone());
        tasks.spawn(async move {
            let mut revisions = Vec::new();
            for round in 0..ROUNDS {
                let mut instance = flux::Instance::new("piped", "127.0.0.1", 1);
                instance.id = format!("t-{task}-{round}");
                instance.ttl = Duration::from_secs(600);
                let registered = pipeline.register(&instance, flux::WriteOptions::default()).await;
                let registered = registered.unwrap_or_else(|error| panic!("{task} {round}: {error}"));
                assert!(!registered.cluster_id.is_empty());
                assert_eq!(registered.value.url, instance.url);
                revisions.push(registered.value.reg_rev);
                let beaten = pipeline.heartbeat(&instance.id, registered.value.reg_rev).await;
                assert!(beaten.expect("a beat is answered").value, "its lease is held");
                tell.send(()).await.expect("somebody counts");
            }
            revisions
        });
    }
    drop(tell);
    let mut rounds = 0;
    while timeout(PATIENCE, told.recv()).await.expect("it goes on").is_some() {
        rounds += 1;
        if rounds == TASKS * ROUNDS / 4 {
            cluster.nodes[leader].kill();
        }
    }
    let revisions: BTreeSet<u64> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(revisions.len() as u64, TASKS * ROUNDS, "each write has a revision of its own");
    let spread = revisions.last().zip(revisions.first()).map_or(0, |(last, first)| last - first + 1);
    assert_eq!(spread, TASKS * ROUNDS, "and none took two");
    let listed = listed(&cluster.nodes[(leader + 1) % 3].rest).await;
    assert_eq!(listed.len() as u64, TASKS * ROUNDS);

    let draining = pipeline.set_status("t-0-0", flux::Status::Draining, None).await.expect("set");
    assert_eq!((draining.value.status, draining.value.id.as_str()), (flux::Status::Draining, "t-0-0"));
    let refused = pipeline.deregister("t-0-0", Some(1 << 40)).await.expect_err("it was never that");
    assert_eq!((refused.code(), refused.had_no_effect()), (flux::Code::Superseded, true));
    assert!(pipeline.deregister("t-0-0", None).await.expect("gone").value);
    assert!(!pipeline.heartbeat("t-0-0", 0).await.expect("answered").value);
}

/// Without any node, a call ends by its limit and says that nothing happened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdks_pipeline_says_when_nothing_was_sent() {
    let client = flux::Client::builder(["http://127.0.0.1:1"]).call_timeout(Duration::from_millis(300));
    let pipeline = client.build().expect("an endpoint").pipeline();
    let error = pipeline.deregister("nobody", None).await.expect_err("no node is there");
    assert_eq!((error.code(), error.had_no_effect()), (flux::Code::Unavailable, true), "{error}");
    assert!(error.is_retryable());
}
