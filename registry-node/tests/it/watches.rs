//! Watches under load and over bad networks: what a watcher misses, what it costs, and when it is let go.

use std::time::{Duration, Instant};

use proto::registry::v1 as pb;
use proto::registry::v1::pipeline_request::Call;
use proto::registry::v1::registry_client::RegistryClient;
use proto::registry::v1::watch_response::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
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
    let (service, cluster_id) = (service.to_owned(), cluster_id.to_owned());
    ask(client, pb::WatchOpen { service, cluster_id, after_revision, ..Default::default() }).await
}

async fn ask(
    client: &mut RegistryClient<Channel>,
    open: pb::WatchOpen,
) -> Result<(Streaming<pb::WatchResponse>, mpsc::Sender<pb::WatchRequest>), Status> {
    let (sender, requests) = mpsc::channel(1);
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
    write(client, (0..count).map(register).collect()).await;
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

/// A node that stops says so to its watchers, in the registry's own terms: they resume elsewhere at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_tells_its_watchers() {
    let cluster = Cluster::start(1, &[]).await;
    let mut client = RegistryClient::connect(cluster.nodes[0].grpc.clone()).await.expect("it listens");
    let (mut stream, _open) = open(&mut client, "w", "", 0).await.expect("a watch");
    message(&mut stream).await;
    cluster.nodes[0].terminate();
    let ended = loop {
        match timeout(PATIENCE, stream.message()).await.expect("in time") {
            Ok(told) => assert!(told.is_some(), "it ends as if there were no more"),
            Err(status) => break status,
        }
    };
    let info = ended.get_details_error_info().unwrap_or_else(|| panic!("{ended:?}"));
    assert_eq!((ended.code(), info.reason.as_str()), (Code::Unavailable, "NOT_READY"));
    assert_eq!(info.metadata["retryable"], "true");
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
    // Nor does it begin with less than what the client knows; what that is of another cluster means nothing here.
    let at_least = |cluster_id: &str| pb::WatchOpen {
        service: "w".to_owned(),
        cluster_id: cluster_id.to_owned(),
        min_revision: 1_000_000,
        ..Default::default()
    };
    let refused = match ask(&mut client, at_least("")).await {
        Err(status) => status,
        Ok((mut stream, _)) => stream.message().await.expect_err("it cannot know"),
    };
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("the watch needs 1000000"), "{refused}");
    let (mut stream, _open) = ask(&mut client, at_least("another")).await.expect("a watch");
    assert!(matches!(message(&mut stream).await.kind, Some(Kind::Reset(_))));
    let poll = call("GET", &format!("{}/v1/watch?service=w&min_revision=1000000", node.rest), "").await;
    assert_eq!((poll.status, poll.json()["code"].as_str()), (503, Some("NOT_READY")));
    // The next revision comes while the watch waits for it.
    let mut soon = client.clone();
    let id = cluster_id.clone();
    let waits = tokio::spawn(async move { open(&mut soon, "w", &id, 1).await });
    fill(&mut client, "w", 1).await;
    let (mut stream, _open) = waits.await.expect("no panic").expect("a watch");
    assert!(message(&mut stream).await.header.is_some_and(|header| header.revision >= 1));
}

/// A follower that was given a snapshot, because what it missed of the log is gone, tells its watchers everything
/// anew: it cannot know what changed in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_given_a_snapshot_tells_its_watchers_anew() {
    let mut cluster = Cluster::start(3, &["--snapshot-every=20", "--log-keep=5"]).await;
    let leader = cluster.leader().await;
    let behind = (leader + 1) % 3;
    let [leader, behind] = [leader, behind].map(|node| &cluster.nodes[node]);
    let mut writer = RegistryClient::connect(leader.grpc.clone()).await.expect("it listens");
    let mut client = RegistryClient::connect(behind.grpc.clone()).await.expect("it listens");
    fill(&mut writer, "w", 10).await;
    let (mut stream, _open) = open(&mut client, "w", "", 0).await.expect("a watch");
    let mut held = message(&mut stream).await.header.expect("a header").revision;
    let missed = index(&behind.rest, "appliedIndex").await;
    behind.pause();
    let deadline = Instant::now() + PATIENCE;
    while index(&leader.rest, "purgedIndex").await <= missed + 5 {
        assert!(Instant::now() < deadline, "the log is kept");
        fill(&mut writer, "w", 100).await;
    }
    behind.resume();
    // What it still had taken in comes first, and then all there is.
    let reset = loop {
        let told = message(&mut stream).await;
        let revision = told.header.expect("a header").revision;
        assert!(revision >= held, "back from {held} to {revision}");
        match told.kind.expect("a kind") {
            Kind::Reset(reset) => break reset,
            Kind::Events(events) => {
                let revisions: Vec<_> = events.events.iter().map(|event| event.revision).collect();
                assert!(revisions[0] == held + 1 && revisions.is_sorted(), "after {held}: {revisions:?}");
            }
            Kind::Progress(_) => assert_eq!(revision, held, "what it has not told"),
        }
        held = revision;
    };
    assert_eq!((reset.instances.len(), reset.first), (100, true));
    // From there on it is like any other.
    let (mut again, _open) = open(&mut writer, "w", "", 0).await.expect("a watch");
    let now = message(&mut again).await.header.expect("a header").revision;
    let mut reached = held;
    while reached < now {
        reached = message(&mut stream).await.header.expect("a header").revision;
    }
}

/// A number of a node's status.
async fn index(node: &str, name: &str) -> u64 {
    let status = call("GET", &format!("{node}/v1/status"), "").await.json();
    status[name].as_str().map_or(0, |text| text.parse().expect("a number"))
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

    // Who names no cluster has asked no other: what it holds is this one's, unless it holds nothing.
    assert!(poll("since=1&wait=100ms").await["progress"].is_object());
    assert!(poll("since=0&wait=100ms").await["reset"].is_object());
    assert!(poll("cluster_id=another&since=1&wait=100ms").await["reset"].is_object());
    assert_eq!(call("PUT", &format!("{base}/v1/instances/w-2"), body).await.status, 201);
    let update = poll("since=1&wait=4s").await;
    assert_eq!(update["events"]["events"][0]["instance"]["id"], "w-2", "{update}");
    let ahead = call("GET", &format!("{base}/v1/watch?service=w&since=1000"), "").await;
    assert_eq!(ahead.status, 503);
    assert!(ahead.json()["detail"].as_str().is_some_and(|why| why.contains("name its cluster_id")));
}

/// Who follows a large catalog is sent it in parts, whatever the protocol: many who read none of it cost a part each,
/// and keep nobody else from being sent it for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_catalog_is_sent_in_parts_and_its_turns_come_round() {
    const RECORDS: u64 = 1_200;
    const UNREAD: usize = 64;
    const EACH_MAX: usize = 4 << 20;
    let cluster = Cluster::start(1, &[]).await;
    let node = &cluster.nodes[0];
    let mut client = RegistryClient::connect(node.grpc.clone()).await.expect("it listens");
    write_large(&mut client, RECORDS, RECORDS).await;

    let whole = call("GET", &format!("{}/v1/watch?service=busy", node.rest), "").await.json();
    let parts = whole["updates"].as_array().expect("updates");
    let mark = |part: &serde_json::Value, name: &str| part["reset"][name].as_bool().unwrap_or(false);
    assert!(parts.len() > 10, "{} parts", parts.len());
    let is_placed =
        |(nth, part)| (mark(part, "first"), mark(part, "more")) == (nth == 0, nth + 1 < parts.len());
    assert!(parts.iter().enumerate().all(is_placed));
    let instances: usize =
        parts.iter().filter_map(|part| part["reset"]["instances"].as_array()).map(Vec::len).sum();
    assert_eq!(instances as u64, RECORDS);

    let before = node.resident_bytes();
    let mut unread = Vec::new();
    for nth in 0..UNREAD {
        let accept = if nth % 2 == 0 { "text/event-stream" } else { "application/json" };
        unread.push(leave_unread(&node.rest, accept).await);
    }
    let each = node.resident_bytes().saturating_sub(before) / UNREAD;
    println!("{each} bytes each");
    assert!(each < EACH_MAX, "{each} bytes each");
    // All turns are taken, by clients that are still there.
    let begun = Instant::now();
    loop {
        let told = match open(&mut client, "busy", "", 0).await {
            Ok((mut stream, _open)) => stream.message().await,
            Err(status) => Err(status),
        };
        match told {
            Ok(told) => break assert!(matches!(told.expect("a message").kind, Some(Kind::Reset(_)))),
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
        }
        assert!(begun.elapsed() < PATIENCE, "nobody else is sent the catalog");
        sleep(Duration::from_millis(100)).await;
    }
}

/// A watch of the service `busy` whose answer has begun and is not read.
async fn leave_unread(node: &str, accept: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    // What the kernel takes in would have the node believe that it is read.
    socket.set_recv_buffer_size(4 << 10).expect("it can be set");
    let address = node.trim_start_matches("http://").parse().expect("an address");
    let mut stream = socket.connect(address).await.expect("it listens");
    let request = format!("GET /v1/watch?service=busy HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it is open");
    timeout(PATIENCE, stream.read_exact(&mut [0])).await.expect("in time").expect("an answer");
    stream
}

/// Clients that stay connected and read nothing of their watches are let go; nobody else waits for them. Once the
/// ring has forgotten what they missed they are told everything anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_is_let_go_and_starts_over() {
    let cluster = Cluster::start(1, &["--stall-timeout-ms=5000"]).await;
    let node = &cluster.nodes[0];
    let mut client = RegistryClient::connect(node.grpc.clone()).await.expect("it listens");
    // One whose connection is as good as ever, with a small window for each stream.
    let endpoint = Channel::from_shared(node.grpc.clone()).expect("a URL").initial_stream_window_size(65_535);
    let mut stalled = RegistryClient::new(endpoint.connect().await.expect("it listens"));
    let (mut unread, _open) = open(&mut stalled, "busy", "", 0).await.expect("a watch");
    let begun = message(&mut unread).await.header.expect("a header");
    // One that has left its socket unread since the first byte of an endless answer.
    let mut socket = TcpStream::connect(node.rest.trim_start_matches("http://")).await.expect("it listens");
    let request = b"GET /v1/watch?service=busy HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n";
    socket.write_all(request).await.expect("it is open");
    timeout(PATIENCE, socket.read_exact(&mut [0])).await.expect("in time").expect("an answer");
    let (mut stream, _open) = open(&mut client, "busy", "", 0).await.expect("a watch");
    let first = message(&mut stream).await.header.expect("a header").revision;
    assert_eq!(watchers(&node.rest).await, 3);

    let (heard, mut hears) = watch::channel(first);
    let reader = tokio::spawn(async move {
        loop {
            let told = message(&mut stream).await;
            let Some(Kind::Events(batch)) = told.kind else { continue };
            for event in batch.events {
                assert_eq!(event.revision, *heard.borrow() + 1, "every revision, in order, once");
                heard.send_replace(event.revision);
            }
        }
    });
    let forgotten = overfill(&mut client, &node.rest, begun.revision).await;
    hears.wait_for(|heard| *heard >= forgotten).await.expect("the reader goes on");
    let begun_waiting = Instant::now();
    while watchers(&node.rest).await > 1 {
        assert!(begun_waiting.elapsed() < PATIENCE, "they are still there");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(!reader.is_finished(), "the one that reads is still told");
    reader.abort();

    // What was on its way is still read, in order, and then that it broke off.
    let mut held = begun.revision;
    loop {
        match timeout(PATIENCE, unread.message()).await.expect("in time") {
            Ok(Some(told)) => held = held.max(told.header.expect("a header").revision),
            Ok(None) => panic!("a stream that was broken off looks finished"),
            Err(_) => break,
        }
    }
    assert!(held < forgotten, "it has read everything");
    let (mut again, _open) = open(&mut stalled, "busy", &begun.cluster_id, held).await.expect("a watch");
    let told = message(&mut again).await;
    assert!(matches!(&told.kind, Some(Kind::Reset(reset)) if reset.first), "{:?}", told.header);
}

/// Changes large records until the ring has forgotten far more than what may be on the way to a watcher. Gives a
/// revision that is forgotten.
async fn overfill(client: &mut RegistryClient<Channel>, node: &str, after: u64) -> u64 {
    const ON_THE_WAY_MAX: u64 = 1_000;
    for _ in 0..40 {
        change(client, 250).await;
        let status = call("GET", &format!("{node}/v1/status"), "").await.json();
        let forgotten =
            status["header"]["compactRevision"].as_str().map_or(0, |text| text.parse().expect("a number"));
        if forgotten > after + ON_THE_WAY_MAX {
            return forgotten;
        }
    }
    panic!("the ring forgets nothing");
}

/// Changes the 20 large records of a service so many times, all on one stream.
async fn change(client: &mut RegistryClient<Channel>, count: u64) {
    write_large(client, count, 20).await;
}

/// Writes large records of a service so many times, to so many ids in turns, all on one stream.
async fn write_large(client: &mut RegistryClient<Channel>, count: u64, ids: u64) {
    let register = |seq: u64| {
        let instance = pb::Instance {
            id: format!("busy-{}", seq % ids),
            service: "busy".to_owned(),
            url: "http://127.0.0.1:1".to_owned(),
            ttl_ms: 600_000,
            metadata: [("filler".to_owned(), "x".repeat(14_000))].into(),
            ..Default::default()
        };
        let call = Call::Register(pb::RegisterRequest { instance: Some(instance), ..Default::default() });
        pb::PipelineRequest { seq, call: Some(call) }
    };
    write(client, (0..count).map(register).collect()).await;
}

/// Waits until all are registered.
async fn write(client: &mut RegistryClient<Channel>, requests: Vec<pb::PipelineRequest>) {
    let mut answers = client.pipeline(tokio_stream::iter(requests)).await.expect("a stream").into_inner();
    while let Some(answer) = timeout(PATIENCE, answers.message()).await.expect("in time").expect("it goes on")
    {
        assert!(matches!(answer.result, Some(pb::pipeline_response::Result::Register(_))), "{answer:?}");
    }
}

/// What a watcher was once sent does not stay with it: an idle one costs little, whatever its service is like.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_watchers_cost_little() {
    const WATCHERS: usize = 1_000;
    const EACH_MAX: usize = 16 << 10;
    let cluster = Cluster::start(1, &[]).await;
    let node = &cluster.nodes[0];
    let mut client = RegistryClient::connect(node.grpc.clone()).await.expect("it listens");
    change(&mut client, 20).await;
    // The first ones warm up what all share.
    let mut held = Vec::new();
    let mut before = 0;
    for number in 0..50 + WATCHERS {
        if number == 50 {
            before = node.resident_bytes();
        }
        if number % 250 == 0 {
            client = RegistryClient::connect(node.grpc.clone()).await.expect("it listens");
        }
        let (mut stream, sender) = open(&mut client, "busy", "", 0).await.expect("a watch");
        while !matches!(message(&mut stream).await.kind, Some(Kind::Reset(reset)) if !reset.more) {}
        held.push((stream, sender));
    }
    assert_eq!(watchers(&node.rest).await, (50 + WATCHERS) as u64);
    let each = node.resident_bytes().saturating_sub(before) / WATCHERS;
    println!("{each} bytes each");
    assert!(each < EACH_MAX, "{each} bytes each");
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
