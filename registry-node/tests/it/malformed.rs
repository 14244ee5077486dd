//! Whatever comes in on a port: a clear refusal, no panic, no growth, and the next client is served.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::node::Cluster;
use super::wire::{call, grpc, grpc_frame, raw};

/// What all the bad input together may leave behind in memory.
const GROWTH_BYTES_MAX: usize = 96 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_refused_and_forgotten() {
    let cluster = Cluster::start(1, &[]).await;
    let node = &cluster.nodes[0];
    let before = node.resident_bytes();
    for round in 0..3 {
        for port in [&node.rest, &node.grpc] {
            bad_json(port).await;
            bad_grpc(port).await;
            bad_bytes(port).await;
            too_large(port).await;
        }
        peer_port(&cluster).await;
        let growth = node.resident_bytes().saturating_sub(before);
        assert!(growth < GROWTH_BYTES_MAX, "{growth} bytes more after round {round}");
    }
    served(&node.rest).await;
    assert!(!node.log().contains("panicked"), "{}", node.log());
}

async fn served(port: &str) {
    assert_eq!(call("GET", &format!("{port}/readyz"), "").await.status, 200);
    assert_eq!(&call("GET", &format!("{port}/api/v1/services"), "").await.body[..], b"[]");
}

async fn bad_json(port: &str) {
    let paths =
        [("POST", "api/v1/services/register"), ("PUT", "v1/instances/x"), ("PUT", "v1/instances/x/status")];
    let deep = "[".repeat(100_000);
    let bodies = [
        "",
        "{",
        "null",
        "[]",
        "\"x\"",
        "{\"id\":7}",
        "{\"port\":\"many\"}",
        "{\"status\":\"ODD\"}",
        "\u{0}",
        &deep,
    ];
    for (method, path) in paths {
        for body in bodies {
            if path.ends_with("status") && body.contains("port") {
                continue; // a field of no meaning there is ignored
            }
            let refused = call(method, &format!("{port}/{path}"), body).await;
            assert_eq!(refused.status, 400, "{method} {path} {body:.20}");
            assert_eq!(refused.header("content-type"), "application/problem+json");
            assert!(refused.json()["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
        }
    }
    for port_number in ["-1", "65536", "4294967296000"] {
        let body = format!(
            r#"{{"id":"x","serviceName":"y","url":"http://h","healthPath":"/","port":{port_number}}}"#
        );
        assert_eq!(call("POST", &format!("{port}/api/v1/services/register"), &body).await.status, 400);
    }
    for path in
        ["v1/instances/%FF", "v1/watch?since=-1", "v1/watch?wait=1s&wait=2s", "v1/services?min_revision=x"]
    {
        assert_eq!(call("GET", &format!("{port}/{path}"), "").await.status, 400, "{path}");
    }
    served(port).await;
}

async fn bad_grpc(port: &str) {
    // A string that claims more bytes than there are; a field of a wrong type; a varint without an end.
    for message in [&b"\x0a\x7fabc"[..], b"\x08\x01", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
        for call in ["registry.v1.Registry/Register", "serviceregistry.ServiceRegistry/RegisterService"] {
            let (status, _) = grpc(port, call, message).await;
            assert!(status > 0, "{call} {message:?}: {status}");
        }
    }
    for call in
        ["registry.v1.Registry/NoSuchCall", "no.such.Service/Call", "serviceregistry.ServiceRegistry/"]
    {
        assert_eq!(grpc(port, call, b"").await.0, 12, "{call} is UNIMPLEMENTED");
    }
    // A frame cut off, one that claims 4 GiB, one that claims compression.
    for frame in [&b"\0\0\0\0\x09abc"[..], b"\0\xff\xff\xff\xffabc", b"\x01\0\0\0\x03abc", b"\0\0"] {
        let (status, _) = grpc_frame(port, "registry.v1.Registry/Register", frame.to_vec()).await;
        assert!(status > 0, "{frame:?}: {status}");
    }
    served(port).await;
}

async fn bad_bytes(port: &str) {
    let noise: Vec<u8> =
        (0..4096u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [
        &b"\0\0\0\0\0\0\0\0"[..],
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01",
        &noise,
    ] {
        let answer = String::from_utf8_lossy(&raw(port, bytes).await).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer:.80}");
    }
    // HTTP/2's preface, then noise.
    let mut h2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    h2.extend(&noise);
    raw(port, &h2).await;
    let head = format!("GET /livez HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(100 << 10));
    let answer = raw(port, head.as_bytes()).await;
    assert!(answer.starts_with(b"HTTP/1.1 431"), "{:.80}", String::from_utf8_lossy(&answer));
    // A request that smuggles another is not understood as two.
    let both = b"POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /livez HTTP/1.1\r\n\r\n";
    let answer = String::from_utf8_lossy(&raw(port, both).await).into_owned();
    assert!(answer.matches("HTTP/1.1 200").count() == 0, "{answer}");
    served(port).await;
}

async fn too_large(port: &str) {
    let body = "x".repeat(20 << 20);
    for path in ["api/v1/services/register", "v1/instances/x/status"] {
        let method = if path.starts_with("api") { "POST" } else { "PUT" };
        let refused = call(method, &format!("{port}/{path}"), &body).await;
        assert_eq!((refused.status, refused.json()["code"].as_str()), (413, Some("TOO_LARGE")));
    }
    let (status, _) = grpc(port, "registry.v1.Registry/Register", body.as_bytes()).await;
    assert!(status > 0, "{status}");
    let long = format!(r#"{{"service":"s","url":"http://h","tags":["{}"]}}"#, "x".repeat(17 << 10));
    let refused = call("PUT", &format!("{port}/v1/instances/x"), &long).await;
    assert_eq!((refused.status, refused.json()["code"].as_str()), (400, Some("INVALID")));
    served(port).await;
}

/// The peers' port speaks gRPC alone, and does not mind others.
async fn peer_port(cluster: &Cluster) {
    let peer = cluster.nodes[0].peer();
    raw(&peer, b"GARBAGE\r\n\r\n").await;
    for call in ["raft.v1.Raft/Append", "raft.v1.Raft/Vote", "raft.v1.Raft/Nothing"] {
        let (status, _) = grpc(&peer, call, b"\x0a\x7fabc").await;
        assert!(status > 0, "{call}: {status}");
    }
}

/// Silence is not held against the others, but it ends: after 10 s for a client that says nothing at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_are_closed() {
    let cluster = Cluster::start(1, &[]).await;
    let address = cluster.nodes[0].rest.strip_prefix("http://").expect("http");
    let mut waits = Vec::new();
    let body = b"POST /api/v1/services/register HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{";
    for said in [&b""[..], b"PRI * HTTP/2", b"GET /livez HTTP/1.1\r\nhost:", body] {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(said).await.expect("it reads");
        waits.push(tokio::spawn(async move {
            let mut answer = Vec::new();
            timeout(Duration::from_secs(25), stream.read_to_end(&mut answer)).await.map(|_| ())
        }));
    }
    let mut idle = TcpStream::connect(address).await.expect("it listens");
    ask(&mut idle).await;
    served(&cluster.nodes[0].rest).await;
    for wait in waits {
        wait.await.expect("no panic").expect("a silent connection was held open");
    }
    // Beats come every 10 s: a connection that waits for the next one is not closed under it.
    ask(&mut idle).await;
}

async fn ask(connection: &mut TcpStream) {
    connection.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it is open");
    let mut answer = [0; 12];
    let read = timeout(Duration::from_secs(5), connection.read_exact(&mut answer)).await;
    read.expect("an answer in time").expect("it is open");
    assert_eq!(&answer, b"HTTP/1.1 200");
    let mut rest = Vec::with_capacity(1024);
    while !rest.ends_with(b"ok\n") {
        connection.read_buf(&mut rest).await.expect("it is open");
    }
}
