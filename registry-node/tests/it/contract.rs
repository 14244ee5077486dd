//! The registry's own API: the same messages over gRPC and REST, fencing, watches, errors that help.

use std::time::{Duration, Instant};

use proto::registry::v1 as pb;
use proto::registry::v1::admin_client::AdminClient;
use proto::registry::v1::registry_client::RegistryClient;
use proto::registry::v1::watch_response::Kind;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use tonic_types::StatusExt;

use super::node::{Cluster, PATIENCE};
use super::wire::{call, call_as};

fn instance(id: &str, service: &str) -> pb::Instance {
    let url = "http://127.0.0.1:1".to_owned();
    pb::Instance { id: id.to_owned(), service: service.to_owned(), url, ttl_ms: 60_000, ..Default::default() }
}

/// Registers, and returns once `node` itself has applied it.
async fn put(node: &str, id: &str, service: &str) -> Value {
    let body = json!({ "service": service, "url": "http://127.0.0.1:1", "ttlMs": 60000 }).to_string();
    let reply = call("PUT", &format!("{node}/v1/instances/{id}"), &body).await;
    assert_eq!(reply.status, 201, "{}", reply.json());
    // A follower answers for the leader, perhaps before it has applied the change itself.
    let revision = number(&reply.json()["instance"]["modRev"]);
    let applied =
        call("GET", &format!("{node}/v1/services?consistency=stale&min_revision={revision}"), "").await;
    assert_eq!(applied.status, 200, "{}", applied.json());
    reply.json()
}

fn number(value: &Value) -> u64 {
    value
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("{value} is no 64-bit integer"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_contract_on_both_ports_in_both_protocols() {
    let mut cluster = Cluster::start(3, &["--ttl-min-ms", "1000"]).await;
    let follower = cluster.follower().await;
    let leader = cluster.leader().await;
    for node in [leader, follower] {
        let node = &cluster.nodes[node];
        over_grpc(&node.grpc).await;
        over_grpc(&node.rest).await;
        over_rest(&node.rest).await;
        watch_over_grpc(&node.grpc).await;
        watch_over_rest(&node.rest).await;
    }
    errors_name_the_leader(&cluster.nodes[follower].rest, &cluster.nodes[leader].rest).await;
    silent_instances_expire(&cluster.nodes[follower].rest).await;
    status_and_members(&cluster.nodes[follower].grpc, &cluster.nodes[follower].rest).await;
    assert_eq!(
        call_as("GET", &format!("{}/v1/services", cluster.nodes[0].grpc), "*/*", true).await.status,
        200
    );
}

async fn over_grpc(node: &str) {
    let mut client = RegistryClient::connect(node.to_owned()).await.expect("it listens");
    let register = |expected_revision, seq| pb::RegisterRequest {
        instance: Some(instance("g-1", "g")),
        expected_revision,
        by: "tester".to_owned(),
        why: "to see".to_owned(),
        client: node.to_owned(),
        seq,
    };
    let first = client.register(register(Some(0), 1)).await.expect("registered").into_inner();
    let (head, first) = (first.header.expect("a header"), first.instance.expect("the record"));
    assert_eq!((head.revision, first.reg_rev), (first.mod_rev, first.mod_rev));
    assert_eq!(
        first.changed.as_ref().map(|changed| (&changed.by[..], &changed.why[..])),
        Some(("tester", "to see"))
    );

    // The same call again has the same answer; another one has its precondition checked.
    let again = client.register(register(Some(0), 1)).await.expect("a repetition").into_inner();
    assert_eq!(again.instance.as_ref(), Some(&first));
    let refused = client.register(register(Some(0), 2)).await.expect_err("it is registered");
    let details = refused.get_details_error_info().expect("an ErrorInfo");
    assert_eq!((refused.code(), details.reason.as_str()), (Code::Aborted, "PRECONDITION"));
    assert_eq!(
        (details.domain.as_str(), details.metadata["had_no_effect"].as_str()),
        ("registry.v1", "true")
    );
    assert!(details.metadata["leader_grpc"].starts_with("http://"));

    let second = client.register(register(None, 3)).await.expect("registered").into_inner();
    let second = second.instance.expect("the record");
    assert!(second.reg_rev > first.reg_rev);

    // The predecessor is fenced off.
    let beats = [first.reg_rev, second.reg_rev, 0].map(|reg_rev| pb::Beat { id: "g-1".to_owned(), reg_rev });
    let beats =
        client.heartbeat(pb::HeartbeatRequest { beats: beats.to_vec() }).await.expect("beats").into_inner();
    use pb::BeatResult::{LeaseLost, Renewed};
    assert_eq!(beats.results, [LeaseLost, Renewed, Renewed].map(i32::from));
    let deregister = |reg_rev| pb::DeregisterRequest { id: "g-1".to_owned(), reg_rev, ..Default::default() };
    let refused = client.deregister(deregister(first.reg_rev)).await.expect_err("it was replaced");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.get_details_error_info().expect("an ErrorInfo").reason, "SUPERSEDED");

    let draining = pb::instance::Status::Draining;
    let set = pb::SetStatusRequest { id: "g-1".to_owned(), status: draining.into(), ..Default::default() };
    let set = client.set_status(set).await.expect("set").into_inner().instance.expect("the record");
    assert_eq!((set.status(), set.reg_rev), (draining, second.reg_rev));
    let get = client.get(pb::GetRequest { id: "g-1".to_owned(), ..Default::default() }).await.expect("there");
    assert_eq!(get.into_inner().instance, Some(set.clone()));
    let services =
        client.list_services(pb::ListServicesRequest::default()).await.expect("services").into_inner();
    let summary = services.services.iter().find(|service| service.name == "g").expect("the service");
    assert_eq!((summary.instances, summary.up), (1, 0));
    let stale = pb::ListRequest {
        service: "g".to_owned(),
        consistency: pb::Consistency::Stale.into(),
        min_revision: set.mod_rev,
        ..Default::default()
    };
    assert_eq!(client.list(stale).await.expect("a list").into_inner().instances, vec![set]);

    assert!(client.deregister(deregister(0)).await.expect("gone").into_inner().found);
    assert!(!client.deregister(deregister(0)).await.expect("gone").into_inner().found);
    let missing = client.get(pb::GetRequest { id: "g-1".to_owned(), ..Default::default() }).await;
    assert_eq!(missing.expect_err("gone").code(), Code::NotFound);
    let nothing = client.register(pb::RegisterRequest::default()).await.expect_err("no instance");
    assert_eq!(nothing.code(), Code::InvalidArgument);
}

async fn over_rest(node: &str) {
    let url = format!("{node}/v1/instances/r-1");
    let first = put(node, "r-1", "r").await;
    assert_eq!(first["instance"]["changed"]["by"], json!("rest 127.0.0.1"));
    assert!(first["header"]["leader"]["rest"].as_str().is_some_and(|rest| rest.starts_with("http://")));
    let (first, second) =
        (number(&first["instance"]["regRev"]), number(&put(node, "r-1", "r").await["instance"]["regRev"]));

    let body = json!({ "service": "r", "url": "http://127.0.0.1:1" }).to_string();
    let refused = call("PUT", &format!("{url}?expected_revision=0"), &body).await;
    assert_eq!((refused.status, refused.header("content-type")), (412, "application/problem+json"));
    assert_eq!(refused.json()["code"], json!("PRECONDITION"));
    let other = json!({ "id": "another", "service": "r", "url": "http://127.0.0.1:1" }).to_string();
    assert_eq!(call("PUT", &url, &other).await.status, 400);

    assert_eq!(call("POST", &format!("{url}/heartbeat?reg_rev={second}"), "").await.status, 200);
    let lost = call("POST", &format!("{url}/heartbeat?reg_rev={first}"), "").await;
    assert_eq!((lost.status, &lost.json()["code"]), (404, &json!("LEASE_LOST")));
    let refused = call("DELETE", &format!("{url}?reg_rev={first}"), "").await;
    assert_eq!((refused.status, &refused.json()["code"]), (409, &json!("SUPERSEDED")));

    let set =
        call("PUT", &format!("{url}/status"), &json!({ "status": "DRAINING", "by": "me" }).to_string()).await;
    assert_eq!((set.status, &set.json()["instance"]["status"]), (200, &json!("DRAINING")));
    let list =
        call("GET", &format!("{node}/v1/services/r?consistency=stale&min_revision={second}"), "").await;
    assert_eq!(list.json()["instances"].as_array().map(Vec::len), Some(1));
    assert_eq!(call("GET", &format!("{node}/v1/services?consistency=odd"), "").await.status, 400);

    let gone = call("DELETE", &format!("{url}?by=me&why=done"), "").await;
    assert_eq!((gone.status, &gone.json()["found"]), (200, &json!(true)));
    let missing = call("GET", &url, "").await;
    assert_eq!((missing.status, &missing.json()["code"]), (404, &json!("NOT_FOUND")));
}

// ---- watches ----

struct Stream(Streaming<pb::WatchResponse>, mpsc::Sender<pb::WatchRequest>);

impl Stream {
    async fn open(client: &mut RegistryClient<Channel>, service: &str, from: Option<(&str, u64)>) -> Stream {
        let (sender, requests) = mpsc::channel(4);
        let (cluster_id, after_revision) = from.unwrap_or_default();
        let open = pb::WatchOpen {
            service: service.to_owned(),
            cluster_id: cluster_id.to_owned(),
            after_revision,
            watcher: "tester".to_owned(),
            ..Default::default()
        };
        let kind = Some(pb::watch_request::Kind::Open(open));
        sender.send(pb::WatchRequest { kind }).await.expect("there is room");
        let stream = client.watch(ReceiverStream::new(requests)).await.expect("a watch").into_inner();
        Stream(stream, sender)
    }

    /// The next message that is more than progress, with its revision.
    async fn next(&mut self) -> (u64, Kind) {
        loop {
            let message = timeout(PATIENCE, self.0.message()).await.expect("in time").expect("no error");
            let message = message.expect("the stream goes on");
            let revision = message.header.expect("a header").revision;
            match message.kind.expect("a kind") {
                Kind::Progress(_) => continue,
                kind => return (revision, kind),
            }
        }
    }

    async fn events(&mut self) -> Vec<(u64, String, pb::event::Kind)> {
        match self.next().await {
            (_, Kind::Events(events)) => {
                let event = |event: pb::Event| {
                    (event.revision, event.instance.clone().unwrap_or_default().id, event.kind())
                };
                events.events.into_iter().map(event).collect()
            }
            other => panic!("{other:?} where events were expected"),
        }
    }
}

async fn watch_over_grpc(node: &str) {
    let mut client = RegistryClient::connect(node.to_owned()).await.expect("it listens");
    let registered = put(node, "w-1", "w").await;
    let cluster_id = registered["header"]["clusterId"].as_str().expect("an id").to_owned();
    let first = number(&registered["instance"]["modRev"]);

    let mut watch = Stream::open(&mut client, "w", None).await;
    let (revision, reset) = watch.next().await;
    let Kind::Reset(reset) = reset else { panic!("{reset:?} where a reset was expected") };
    assert!(revision >= first && reset.first && !reset.more);
    assert_eq!(reset.instances.iter().map(|instance| instance.id.as_str()).collect::<Vec<_>>(), ["w-1"]);

    // Other services pass by unseen; what is ours comes in order, whole and once; a move is a delete here.
    put(node, "x-1", "x").await;
    let moved = number(&put(node, "w-1", "x").await["instance"]["modRev"]);
    assert_eq!(watch.events().await, [(moved, "w-1".to_owned(), pb::event::Kind::Delete)]);
    let ack = pb::WatchAck { revision: moved, ..Default::default() };
    let ack = pb::WatchRequest { kind: Some(pb::watch_request::Kind::Ack(ack)) };
    watch.1.send(ack).await.expect("acknowledgements are read");

    // Resumed from the first revision: exactly what follows.
    let mut resumed = Stream::open(&mut client, "w", Some((&cluster_id, first))).await;
    assert_eq!(resumed.events().await, [(moved, "w-1".to_owned(), pb::event::Kind::Delete)]);
    let mut foreign = Stream::open(&mut client, "w", Some(("another cluster", first))).await;
    assert!(matches!(foreign.next().await, (_, Kind::Reset(reset)) if reset.instances.is_empty()));

    // Idle, it still says every second that it lives.
    let begun = Instant::now();
    let mut progress = 0;
    while progress < 2 {
        let message = timeout(PATIENCE, watch.0.message()).await.expect("in time").expect("no error");
        progress += usize::from(matches!(message.and_then(|message| message.kind), Some(Kind::Progress(_))));
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?} for two signs of life", begun.elapsed());

    let (sender, requests) = mpsc::channel(1);
    let ack = pb::watch_request::Kind::Ack(pb::WatchAck::default());
    sender.send(pb::WatchRequest { kind: Some(ack) }).await.expect("there is room");
    let refused = match client.watch(ReceiverStream::new(requests)).await {
        Err(status) => status,
        Ok(stream) => stream.into_inner().message().await.expect_err("an acknowledgement opens nothing"),
    };
    assert_eq!(refused.code(), Code::InvalidArgument);
    call("DELETE", &format!("{node}/v1/instances/x-1"), "").await;
    call("DELETE", &format!("{node}/v1/instances/w-1"), "").await;
}

async fn watch_over_rest(node: &str) {
    let registered = put(node, "l-1", "l").await;
    let cluster_id = registered["header"]["clusterId"].as_str().expect("an id").to_owned();
    let url = format!("{node}/v1/watch?service=l&cluster_id={cluster_id}");

    let reset = call("GET", &url, "").await.json();
    let update = &reset["updates"][0];
    assert_eq!(update["reset"]["instances"].as_array().map(Vec::len), Some(1), "{reset}");
    let since = number(&update["header"]["revision"]);

    let progress = call("GET", &format!("{url}&since={since}&wait=100ms"), "").await.json();
    assert!(progress["updates"][0]["progress"].is_object(), "{progress}");
    assert!(number(&progress["updates"][0]["header"]["revision"]) >= since);

    // A poll that waits is answered as soon as something happens.
    let waiting = tokio::spawn({
        let url = format!("{url}&since={since}&wait=4s");
        async move { call("GET", &url, "").await.json() }
    });
    let gone = call("DELETE", &format!("{node}/v1/instances/l-1?why=test"), "").await.json();
    let update = waiting.await.expect("it answers")["updates"][0].clone();
    let event = &update["events"]["events"][0];
    assert_eq!((&event["kind"], &event["instance"]["id"]), (&json!("DELETE"), &json!("l-1")));
    assert_eq!(event["cause"]["why"], json!("test"));
    assert_eq!(event["revision"], gone["header"]["revision"]);

    let refused = call("GET", &format!("{url}&wait=long"), "").await;
    assert_eq!((refused.status, &refused.json()["code"]), (400, &json!("INVALID")));
    server_sent_events(node, &url).await;
}

async fn server_sent_events(node: &str, url: &str) {
    put(node, "l-2", "l").await;
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n",
        url.strip_prefix(node).expect("a URL of the node")
    );
    let text = String::from_utf8(super::wire::raw(node, request.as_bytes()).await.to_vec()).expect("text");
    assert!(text.contains("content-type: text/event-stream"), "{text}");
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).expect("an event");
    let message: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(message["reset"]["instances"][0]["id"], json!("l-2"));
    let id = text.lines().find_map(|line| line.strip_prefix("id: ")).expect("an id");
    let header = &message["header"];
    assert_eq!(
        id,
        format!("{}:{}", header["clusterId"].as_str().expect("an id"), number(&header["revision"]))
    );
    // Reconnected as a browser does: by the same URL, which is older than what it holds.
    let changed = number(&put(node, "l-2", "l").await["instance"]["modRev"]);
    let request = format!(
        "GET {}&since=0 HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\nlast-event-id: {id}\r\n\r\n",
        url.strip_prefix(node).expect("a URL of the node")
    );
    let text = String::from_utf8(super::wire::raw(node, request.as_bytes()).await.to_vec()).expect("text");
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).expect("an event");
    let message: Value = serde_json::from_str(data).expect("JSON");
    let events = message["events"]["events"].as_array().unwrap_or_else(|| panic!("{message}"));
    assert_eq!(events.iter().map(|event| number(&event["revision"])).collect::<Vec<_>>(), [changed]);
    call("DELETE", &format!("{node}/v1/instances/l-2"), "").await;
}

// ---- the rest ----

async fn errors_name_the_leader(follower: &str, leader: &str) {
    let problem = call("GET", &format!("{follower}/v1/instances/nobody"), "").await;
    assert_eq!(problem.header("content-type"), "application/problem+json");
    let problem = problem.json();
    assert_eq!((&problem["status"], &problem["retryable"]), (&json!(404), &json!(false)));
    assert_eq!((&problem["had_no_effect"], &problem["leader"]["rest"]), (&json!(true), &json!(leader)));
    let nowhere = call("GET", &format!("{follower}/v2/instances"), "").await;
    assert_eq!((nowhere.status, &nowhere.json()["code"]), (404, &json!("NO_SUCH_PATH")));
    let patch = call("PATCH", &format!("{follower}/v1/services"), "").await;
    assert_eq!((patch.status, &patch.json()["code"]), (405, &json!("NO_SUCH_METHOD")));
}

/// Gone within its TTL and a second, or what a busy machine adds; never while it beats.
async fn silent_instances_expire(node: &str) {
    for id in ["silent", "beating"] {
        let body = json!({ "service": "e", "url": "http://127.0.0.1:1", "ttlMs": 1500 }).to_string();
        assert_eq!(call("PUT", &format!("{node}/v1/instances/{id}"), &body).await.status, 201);
    }
    let begun = Instant::now();
    while call("GET", &format!("{node}/v1/instances/silent"), "").await.status == 200 {
        assert_eq!(call("POST", &format!("{node}/v1/instances/beating/heartbeat"), "").await.status, 200);
        assert!(begun.elapsed() < PATIENCE, "it never expired");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(begun.elapsed() >= Duration::from_millis(1400), "expired after {:?}", begun.elapsed());
    assert_eq!(call("POST", &format!("{node}/v1/instances/silent/heartbeat"), "").await.status, 404);
    assert_eq!(call("DELETE", &format!("{node}/v1/instances/beating"), "").await.status, 200);
}

async fn status_and_members(grpc: &str, rest: &str) {
    let mut admin = AdminClient::connect(grpc.to_owned()).await.expect("it listens");
    let status = admin.status(pb::StatusRequest {}).await.expect("a status").into_inner();
    assert!(status.ready && status.role() == pb::member::Role::Follower, "{status:?}");
    let members = admin.members(pb::MembersRequest {}).await.expect("members").into_inner().members;
    assert_eq!(members.iter().map(|member| member.id).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(members.iter().filter(|member| member.role() == pb::member::Role::Leader).count(), 1);
    assert!(members.iter().any(|member| member.rest == rest));
    assert_eq!(
        call("GET", &format!("{rest}/v1/members"), "").await.json()["members"].as_array().map(Vec::len),
        Some(3)
    );
    assert_eq!(call("GET", &format!("{rest}/v1/status"), "").await.json()["role"], json!("FOLLOWER"));
    assert_eq!(call("GET", &format!("{rest}/livez"), "").await.status, 200);
    let verbose = call("GET", &format!("{rest}/readyz?verbose"), "").await;
    assert!(verbose.status == 200 && verbose.body.starts_with(b"[+]process ok"), "{verbose:?}");
}
