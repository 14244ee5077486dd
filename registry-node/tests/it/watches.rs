//! Watches under load and over bad networks: what a watcher misses, what it costs, and when it is let go.

use std::time::{Duration, Instant};

use proto::registry::v1 as pb;
use proto::registry::v1::pipeline_request::Call;
use proto::registry::v1::registry_client::RegistryClient;
use proto::registry::v1::watch_response::Kind;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use super::node::{Cluster, PATIENCE};
use super::wire::call;

/// Opens a watch and keeps its side of the stream open.
async fn open(
    client: &mut RegistryClient<Channel>,
    service: &str,
    cluster_id: &str,
    after_revision: u64,
) -> Result<(Streaming<pb::WatchResponse>, mpsc::Sender<pb::WatchRequest>), Status> {
    let (sender, requests) = mpsc::channel(1);
    let open = pb::WatchOpen {
        service: service.to_owned(),
        cluster_id: cluster_id.to_owned(),
        after_revision,
        ..Default::default()
    };
    let open = pb::WatchRequest { kind: Some(pb::watch_request::Kind::Open(open)) };
    sender.send(open).await.expect("there is room");
    Ok((client.watch(ReceiverStream::new(requests)).await?.into_inner(), sender))
}

async fn message(stream: &mut Streaming<pb::WatchResponse>) -> pb::WatchResponse {
    let message = timeout(PATIENCE, stream.message()).await.expect("in time");
    message.expect("the stream goes on").expect("it goes on")
}

/// Registers `count` instances of a service, all on one stream.
async fn fill(client: &mut RegistryClient<Channel>, service: &str, count: u64) {
    let register = |seq: u64| {
        let instance = pb::Instance {
            id: format!("{service}-{seq}"),
            service: service.to_owned(),
            url: "http://127.0.0.1:1".to_owned(),
            ttl_ms: 600_000,
            ..Default::default()
        };
        let call = Call::Register(pb::RegisterRequest { instance: Some(instance), ..Default::default() });
        pb::PipelineRequest { seq, call: Some(call) }
    };
    let requests = tokio_stream::iter((0..count).map(register).collect::<Vec<_>>());
    let mut answers = client.pipeline(requests).await.expect("a stream").into_inner();
    for _ in 0..count {
        let answer = timeout(PATIENCE, answers.message()).await.expect("in time").expect("it goes on");
        let result = answer.expect("it goes on").result;
        assert!(matches!(result, Some(pb::pipeline_response::Result::Register(_))), "{result:?}");
    }
}

/// One that reads nothing while thousands of changes go by misses none of them, and is told many at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_stops_reading_misses_nothing() {
    const CHANGES: u64 = 4_000;
    let cluster = Cluster::start(1, &[]).await;
    let mut client = RegistryClient::connect(cluster.nodes[0].grpc.clone()).await.expect("it listens");
    let mut slow = RegistryClient::connect(cluster.nodes[0].grpc.clone()).await.expect("it listens");
    let (mut stream, _open) = open(&mut slow, "busy", "", 0).await.expect("a watch");
    let first = message(&mut stream).await;
    assert!(matches!(&first.kind, Some(Kind::Reset(reset)) if reset.first && !reset.more), "{first:?}");
    fill(&mut client, "busy", CHANGES).await;
    fill(&mut client, "other", 10).await;
    let (mut events, mut messages, mut last) = (0, 0, first.header.expect("a header").revision);
    while events < CHANGES {
        let told = message(&mut stream).await;
        let reached = told.header.expect("a header").revision;
        if let Some(Kind::Events(batch)) = told.kind {
            messages += 1;
            for event in batch.events {
                assert_eq!(event.revision, last + 1, "every revision, in order, once");
                last = event.revision;
                events += 1;
            }
        }
        assert!(reached >= last);
    }
    assert!(messages < CHANGES / 4, "{messages} messages for {CHANGES} changes");
    // What concerns others is only ever told as progress.
    loop {
        let told = message(&mut stream).await;
        assert!(matches!(told.kind, Some(Kind::Progress(_))), "{told:?}");
        if told.header.expect("a header").revision == CHANGES + 10 {
            break;
        }
    }
}

/// A node waits for a revision that it has not applied yet, for a while, and then says that it has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_the_future_waits_and_is_refused() {
    let mut cluster = Cluster::start(3, &[]).await;
    let follower = cluster.follower().await;
    let node = &cluster.nodes[follower];
    let status = call("GET", &format!("{}/v1/status", node.rest), "").await.json();
    let cluster_id = status["header"]["clusterId"].as_str().expect("an id").to_owned();
    let mut client = RegistryClient::connect(node.grpc.clone()).await.expect("it listens");
    let refused = match open(&mut client, "w", &cluster_id, 1_000_000).await {
        Err(status) => status,
        Ok((mut stream, _)) => stream.message().await.expect_err("it cannot know"),
    };
    assert_eq!(refused.code(), Code::Unavailable);
    let info = refused.get_details_error_info().expect("an ErrorInfo");
    assert_eq!((info.reason.as_str(), info.metadata["retryable"].as_str()), ("NOT_READY", "true"));
    assert!(info.metadata["leader_grpc"].starts_with("http://"));
    // The next revision comes while the watch waits for it.
    let mut soon = client.clone();
    let id = cluster_id.clone();
    let waits = tokio::spawn(async move { open(&mut soon, "w", &id, 1).await });
    fill(&mut client, "w", 1).await;
    let (mut stream, _open) = waits.await.expect("no panic").expect("a watch");
    assert!(message(&mut stream).await.header.is_some_and(|header| header.revision >= 1));
}

/// Who holds the empty catalog of this cluster waits for the first change; who holds nothing is told at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_from_the_beginning_waits_for_the_first_change() {
    let cluster = Cluster::start(1, &[]).await;
    let base = &cluster.nodes[0].rest;
    let status = call("GET", &format!("{base}/v1/status"), "").await.json();
    let id = status["header"]["clusterId"].as_str().expect("an id").to_owned();
    let poll = |query: &str| {
        let url = format!("{base}/v1/watch?service=w&{query}");
        async move { call("GET", &url, "").await.json()["updates"][0].clone() }
    };
    assert!(poll("since=0&wait=100ms").await["reset"].is_object());
    assert!(poll(&format!("cluster_id={id}&wait=100ms")).await["reset"].is_object());
    assert!(poll(&format!("cluster_id={id}&since=0&wait=100ms")).await["progress"].is_object());
    let waiting = tokio::spawn(poll(&format!("cluster_id={id}&since=0&wait=4s")));
    let body = r#"{"service":"w","url":"http://127.0.0.1:1"}"#;
    assert_eq!(call("PUT", &format!("{base}/v1/instances/w-1"), body).await.status, 201);
    let update = waiting.await.expect("no panic");
    assert_eq!(update["events"]["events"][0]["instance"]["id"], "w-1", "{update}");
}

/// A client whose network swallows everything holds its place no longer than its pings go unanswered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_behind_a_dead_network_is_let_go() {
    let cluster = Cluster::start(1, &[]).await;
    let (stop, address) = middlebox(cluster.nodes[0].grpc.trim_start_matches("http://")).await;
    let mut client = RegistryClient::connect(format!("http://{address}")).await.expect("it listens");
    let (mut stream, _open) = open(&mut client, "w", "", 0).await.expect("a watch");
    message(&mut stream).await;
    assert_eq!(watchers(&cluster.nodes[0].rest).await, 1);
    stop.send_replace(true);
    let begun = Instant::now();
    while watchers(&cluster.nodes[0].rest).await > 0 {
        assert!(begun.elapsed() < PATIENCE, "the watcher is still there");
        sleep(Duration::from_millis(100)).await;
    }
}

/// A way to `to` that can stop to carry anything while both ends stay connected to it.
async fn middlebox(to: &str) -> (watch::Sender<bool>, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let (stop, stopped) = watch::channel(false);
    let to = to.to_owned();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(&to).await.expect("the node listens");
            let mut stopped = stopped.clone();
            tokio::spawn(async move {
                let stop = async { drop(stopped.wait_for(|stopped| *stopped).await) };
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => return,
                    () = stop => {}
                }
                // Both connections are kept and neither is read any more.
                std::future::pending::<()>().await;
            });
        }
    });
    (stop, address)
}

async fn watchers(node: &str) -> u64 {
    let scrape = call("GET", &format!("{node}/metrics"), "").await;
    let text = String::from_utf8_lossy(&scrape.body).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("registry_watchers "));
    line.and_then(|count| count.trim().parse().ok()).expect("it is counted")
}
