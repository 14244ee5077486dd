//! A network that lets HTTP/1.1 through and not gRPC: a balancer goes on over REST, and returns when it may.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use cluster::{Cluster, Kind};
use hyper::Method;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::support::{
    EXE, PATIENCE, eventually, get_json, instance_of, metric_with, options, request, with_cluster,
};

/// The address that the node gives out. It listens on another, so who believes it comes to the middlebox.
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// Sits in front of both ports of a node. While it blocks, it drops every connection that begins as HTTP/2 does.
struct Middlebox {
    url: String,
    blocks: Arc<watch::Sender<bool>>,
}

impl Middlebox {
    async fn in_front_of(cluster: &Cluster) -> Self {
        let Kind::Node { rest, grpc, .. } = cluster.spec("node-1").expect("there is one").kind else {
            panic!("node-1 is a node");
        };
        let blocks = Arc::new(watch::Sender::new(false));
        for url in [&rest, &grpc] {
            let node: SocketAddr = url.trim_start_matches("http://").parse().expect("an address");
            let listener = TcpListener::bind((OUTSIDE, node.port())).await.expect("a free port");
            tokio::spawn(guard(listener, node, blocks.clone()));
        }
        Self { url: rest.replace("127.0.0.1", &OUTSIDE.to_string()), blocks }
    }

    fn block(&self, blocks: bool) {
        self.blocks.send_replace(blocks);
    }
}

async fn guard(listener: TcpListener, node: SocketAddr, blocks: Arc<watch::Sender<bool>>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(carry(client, node, blocks.subscribe()));
    }
}

async fn carry(mut client: TcpStream, node: SocketAddr, mut blocks: watch::Receiver<bool>) {
    let mut first = [0];
    let is_http2 =
        matches!(client.peek(&mut first).await, Ok(1)) && first == *b"P" && starts_http2(&client).await;
    if is_http2 && *blocks.borrow() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(node).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = blocks.wait_for(|blocks| *blocks && is_http2) => {}
    }
}

/// `PRI`: neither PUT nor POST nor PATCH.
async fn starts_http2(client: &TcpStream) -> bool {
    let mut head = [0; 3];
    while let Ok(count) = client.peek(&mut head).await {
        if count == 0 || head[..count] != b"PRI"[..count] {
            return false;
        }
        if count == 3 {
            return true;
        }
    }
    false
}

/// A balancer of our own, because the cluster's would ask the nodes directly.
struct Balancer {
    process: Child,
    http: String,
    admin: String,
}

impl Balancer {
    fn start(registry: &str) -> Self {
        let free = || StdListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        let (http, admin) = (free(), free());
        let process = Command::new(EXE)
            .args(["balancer", "--host", "127.0.0.1", "--port", &http.port().to_string()])
            .args(["--admin", &admin.to_string(), "--registry", registry])
            .stdin(Stdio::null())
            .spawn()
            .expect("the binary starts");
        Self { process, http: format!("http://{http}"), admin: format!("http://{admin}") }
    }

    async fn follows_over(&self, transport: &str) {
        eventually(&format!("the balancer follows over {transport}"), PATIENCE, async || {
            let connected = metric_with(&self.admin, "flux_watch_connected", transport).await?;
            (connected >= 1.0).then_some(())
        })
        .await;
    }

    /// How many endpoints take requests.
    async fn sees(&self, expected: usize) {
        eventually(&format!("the balancer has {expected} endpoints"), PATIENCE, async || {
            let endpoints = get_json(&format!("{}/v1/endpoints", self.admin)).await.ok()?;
            (endpoints["endpoints"].as_array()?.len() == expected).then_some(())
        })
        .await;
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.process.kill(); // it may have ended already
        let _ = self.process.wait();
    }
}

#[test]
fn a_balancer_goes_on_over_rest_while_grpc_is_blocked_and_returns() {
    let node_args = vec!["--advertise".to_owned(), OUTSIDE.to_string()];
    let one = cluster::Options { nodes: 1, balancers: 0, backends: 1, node_args, ..options("grpc_blocked") };
    with_cluster(one, async |cluster| {
        let middlebox = Middlebox::in_front_of(cluster).await;
        let balancer = Balancer::start(&middlebox.url);
        balancer.follows_over("grpc").await;
        balancer.sees(1).await;

        middlebox.block(true);
        balancer.follows_over("rest").await;
        let added = cluster.add_backend().await.expect("there is room");
        balancer.sees(2).await;
        let id = instance_of(cluster, &added);
        eventually("the new backend answers through the balancer", PATIENCE, async || {
            let answer = get_json(&format!("{}/", balancer.http)).await.ok()?;
            (answer["instance"] == id.as_str()).then_some(())
        })
        .await;

        middlebox.block(false);
        balancer.follows_over("grpc").await;
        cluster.stop(&added).await.expect("it runs");
        balancer.sees(1).await;
        let (status, _) = request(Method::GET, &balancer.http, None).await.expect("an answer");
        assert_eq!(status, 200);
    });
}
