//! Every bound that a client can meet: it is told which, nobody else is hurt, and it is served again once it has
//! let go.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::Request;
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use proto::registry::v1 as pb;
use proto::registry::v1::pipeline_request::Call;
use proto::registry::v1::pipeline_response::Result as Answer;
use proto::registry::v1::registry_client::RegistryClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use super::node::{Cluster, PATIENCE};
use super::wire::call;

type Watch = (Streaming<pb::WatchResponse>, mpsc::Sender<pb::WatchRequest>);

async fn watch(client: &mut RegistryClient<Channel>) -> Result<Watch, Status> {
    let (sender, requests) = mpsc::channel(1);
    let open = pb::watch_request::Kind::Open(pb::WatchOpen::default());
    sender.send(pb::WatchRequest { kind: Some(open) }).await.expect("there is room");
    let mut stream = client.watch(ReceiverStream::new(requests)).await?.into_inner();
    stream.message().await?;
    Ok((stream, sender))
}

async fn connect(cluster: &Cluster) -> RegistryClient<Channel> {
    RegistryClient::connect(cluster.nodes[0].grpc.clone()).await.expect("it listens")
}

fn register(id: &str, url: String) -> pb::RegisterRequest {
    let instance =
        pb::Instance { id: id.to_owned(), service: "limits".to_owned(), url, ..Default::default() };
    pb::RegisterRequest { instance: Some(instance), ..Default::default() }
}

/// Waits until `done`, for as long as anything may take.
async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_which_limit_they_meet() {
    let flags = [
        "--watchers-per-client-max=2",
        "--calls-in-flight-max=8",
        "--message-bytes-max=32768",
        "--record-bytes-max=1024",
        "--body-timeout-ms=3000",
        "--streams-per-connection-max=3",
    ];
    let cluster = Cluster::start(1, &flags).await;
    watchers_of_one_client(&cluster).await;
    streams_of_one_connection(&cluster).await;
    calls_in_flight(&cluster).await;
    sizes(&cluster).await;
    a_body_that_does_not_come(&cluster).await;
}

async fn watchers_of_one_client(cluster: &Cluster) {
    let mut client = connect(cluster).await;
    let held = [watch(&mut client).await.expect("the first"), watch(&mut client).await.expect("the second")];
    let mut another = connect(cluster).await;
    let refused = watch(&mut another).await.expect_err("one too many");
    let info = refused.get_details_error_info().expect("an ErrorInfo");
    assert_eq!((refused.code(), info.reason.as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    assert!(refused.message().contains("each address may have 2"), "{refused}");
    let poll = call("GET", &format!("{}/v1/watch?service=limits", cluster.nodes[0].rest), "").await;
    assert_eq!((poll.status, poll.json()["code"].as_str()), (429, Some("OVERLOADED")));
    drop(held);
    until("a place that was given back is not free", || {
        let mut client = another.clone();
        async move { watch(&mut client).await.is_ok() }
    })
    .await;
}

/// Beyond the streams of one connection a call waits for one of them; other connections do not.
async fn streams_of_one_connection(cluster: &Cluster) {
    let mut client = connect(cluster).await;
    let services = async |mut client: RegistryClient<Channel>| {
        client.list_services(pb::ListServicesRequest::default()).await.map(drop)
    };
    let mut lines = Vec::new();
    for _ in 0..3 {
        timeout(PATIENCE, services(client.clone())).await.expect("in time").expect("there is a stream left");
        let (sender, requests) = mpsc::channel::<pb::PipelineRequest>(1);
        lines.push((client.pipeline(ReceiverStream::new(requests)).await.expect("a stream"), sender));
    }
    let mut waiting = std::pin::pin!(services(client.clone()));
    let early = timeout(Duration::from_millis(500), &mut waiting).await;
    assert!(early.is_err(), "a fourth stream of one connection was taken: {early:?}");
    services(connect(cluster).await).await.expect("another connection is served");
    lines.pop();
    timeout(PATIENCE, waiting).await.expect("in time").expect("served at last");
}

async fn calls_in_flight(cluster: &Cluster) {
    let requests = (0..200).map(|seq| {
        let call = Call::Register(register(&format!("l-{seq}"), "http://127.0.0.1:1".to_owned()));
        pb::PipelineRequest { seq, call: Some(call) }
    });
    let requests = tokio_stream::iter(requests.collect::<Vec<_>>());
    let mut answers = connect(cluster).await.pipeline(requests).await.expect("a stream").into_inner();
    let mut count = 0;
    while let Some(answer) = timeout(PATIENCE, answers.message()).await.expect("in time").expect("it goes on")
    {
        assert!(matches!(answer.result, Some(Answer::Register(_))), "{answer:?}");
        count += 1;
    }
    assert_eq!(count, 200, "what is beyond the limit waits and is not lost");
}

async fn sizes(cluster: &Cluster) {
    let mut client = connect(cluster).await;
    let large = register("large", format!("http://h/{}", "x".repeat(1_100)));
    let refused = client.register(large).await.expect_err("too large a record");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("1024 are allowed"), "{refused}");
    let huge = register("huge", "x".repeat(40_000));
    let refused = client.register(huge.clone()).await.expect_err("too large a message");
    assert_eq!(refused.code(), Code::OutOfRange);
    assert!(refused.message().contains("the limit is: 32768 bytes"), "{refused}");
    let put = call("PUT", &format!("{}/v1/instances/huge", cluster.nodes[0].rest), &"x".repeat(40_000)).await;
    assert_eq!((put.status, put.json()["code"].as_str()), (413, Some("TOO_LARGE")));
    // A pipeline answers what came before, and ends with the reason.
    let small = Call::Register(register("small", "http://127.0.0.1:1".to_owned()));
    let requests = [small, Call::Register(huge)].into_iter().zip(0..);
    let requests = requests.map(|(call, seq)| pb::PipelineRequest { seq, call: Some(call) });
    let requests = tokio_stream::iter(requests.collect::<Vec<_>>());
    let mut answers = client.pipeline(requests).await.expect("a stream").into_inner();
    let first = answers.message().await.expect("answered").expect("answered");
    assert!(first.seq == 0 && matches!(first.result, Some(Answer::Register(_))), "{first:?}");
    let end = answers.message().await.expect_err("it cannot be read");
    assert_eq!(end.code(), Code::OutOfRange, "{end}");
}

async fn a_body_that_does_not_come(cluster: &Cluster) {
    let http = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    for path in ["registry.v1.Registry/Register", "serviceregistry.ServiceRegistry/RegisterService"] {
        let request = Request::builder().method("POST").uri(format!("{}/{path}", cluster.nodes[0].grpc));
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        let never = StreamBody::new(tokio_stream::pending::<Result<Frame<Bytes>, std::io::Error>>());
        let answer = http.request(request.body(never).expect("valid"));
        let answer =
            timeout(PATIENCE, answer).await.expect("it is not waited for for ever").expect("an answer");
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        assert_eq!(header("grpc-status"), "3", "{answer:?}");
        assert!(header("grpc-message").contains("did%20not%20come"), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_serves_so_many_and_the_next_when_one_has_left() {
    let cluster = Cluster::start(1, &["--connections-max=4", "--watchers-max=3"]).await;
    connections_of_a_port(&cluster).await;
    watchers_of_a_node(&cluster).await;
}

/// A connection too many is made and not served; the other port is.
async fn connections_of_a_port(cluster: &Cluster) {
    let address = cluster.nodes[0].rest.trim_start_matches("http://").to_owned();
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut one = ask(&address).await;
        timeout(PATIENCE, one.read_exact(&mut [0])).await.expect("in time").expect("an answer");
        held.push(one);
    }
    let mut waits = ask(&address).await;
    let silence = timeout(Duration::from_millis(500), waits.read_exact(&mut [0])).await;
    assert!(silence.is_err(), "a fifth connection was served: {silence:?}");
    let other = call("GET", &format!("{}/v1/services", cluster.nodes[0].grpc), "").await;
    assert_eq!(other.status, 200, "the other port has places of its own");
    drop(held.pop());
    timeout(PATIENCE, waits.read_exact(&mut [0])).await.expect("in time").expect("served at last");
}

/// A connection that has asked something and stays.
async fn ask(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(b"GET /v1/services HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it is open");
    stream
}

/// Whatever protocol and connection they come by.
async fn watchers_of_a_node(cluster: &Cluster) {
    let (mut client, mut another) = (connect(cluster).await, connect(cluster).await);
    let mut held = vec![
        watch(&mut client).await.expect("the first"),
        watch(&mut client).await.expect("the second"),
        watch(&mut another).await.expect("the third"),
    ];
    let refused = watch(&mut another).await.expect_err("one too many");
    let info = refused.get_details_error_info().expect("an ErrorInfo");
    assert_eq!((refused.code(), info.reason.as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    assert_eq!(info.metadata["retryable"], "true");
    assert!(refused.message().contains("this node serves 3"), "{refused}");
    let poll = format!("{}/v1/watch?service=limits", cluster.nodes[0].grpc);
    let refused = call("GET", &poll, "").await;
    assert_eq!((refused.status, refused.json()["code"].as_str()), (429, Some("OVERLOADED")));
    drop(held.pop());
    until("a place that was given back is not free", async || call("GET", &poll, "").await.status == 200)
        .await;
}

/// The peers' port takes so many connections, and none that says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_on_the_peers_port_are_few_and_brief() {
    let cluster = Cluster::start(1, &["--peer-connections-max=16", "--head-timeout-ms=2000"]).await;
    let address = cluster.nodes[0].peer().trim_start_matches("http://").to_owned();
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(TcpStream::connect(&address).await.expect("it listens"));
    }
    until("a 17th connection is kept", || async {
        let mut one = TcpStream::connect(&address).await.expect("it listens");
        matches!(timeout(Duration::from_millis(500), one.read(&mut [0])).await, Ok(Ok(0) | Err(_)))
    })
    .await;
    for mut one in silent {
        let end = timeout(PATIENCE, one.read(&mut [0])).await.expect("a silent connection is held");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    // Now there is room, and who speaks is heard.
    let mut speaks = TcpStream::connect(&address).await.expect("it listens");
    speaks.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("it reads");
    let mut settings = [0; 9];
    timeout(PATIENCE, speaks.read_exact(&mut settings)).await.expect("in time").expect("settings");
    assert_eq!(settings[3], 4, "{settings:?}");
    assert_eq!(call("GET", &format!("{}/readyz", cluster.nodes[0].rest), "").await.status, 200);
}
