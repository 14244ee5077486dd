//! etcd beside us: three local nodes as Debian's package has them, with their defaults, and the few messages of its
//! gRPC API (etcd 3.4, api/etcdserverpb/rpc.proto) that are needed to ask them the same as us.

use std::{
    fs::File,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use http::uri::PathAndQuery;
use tonic::{
    Request, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{load::Door, machine};

/// How long three nodes may take until one leads.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How often they are asked.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// `etcd --version`, if it is installed.
pub(crate) fn version() -> Option<String> {
    let said = Command::new("etcd").arg("--version").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    Some(text.lines().next()?.rsplit(' ').next()?.to_owned())
}

/// Three nodes; killed when dropped.
#[derive(Debug)]
pub(crate) struct Etcd {
    nodes: Vec<Child>,
    leader: String,
}

impl Etcd {
    /// Starts three nodes on free ports and waits until one leads.
    pub async fn launch(dir: &Path) -> Result<Self> {
        let ports: Vec<[u16; 2]> = (0..3).map(|_| Ok([free_port()?, free_port()?])).collect::<Result<_>>()?;
        let peer = |n: usize| format!("http://127.0.0.1:{}", ports[n][1]);
        let members = (0..3).map(|n| format!("e{n}={}", peer(n))).collect::<Vec<_>>().join(",");
        let clients: Vec<String> =
            ports.iter().map(|ports| format!("http://127.0.0.1:{}", ports[0])).collect();
        let mut etcd = Self { nodes: Vec::new(), leader: String::new() };
        for (n, client) in clients.iter().enumerate() {
            let args = [
                ("--name", format!("e{n}")),
                ("--data-dir", dir.join(format!("e{n}")).display().to_string()),
                ("--listen-client-urls", client.clone()),
                ("--advertise-client-urls", client.clone()),
                ("--listen-peer-urls", peer(n)),
                ("--initial-advertise-peer-urls", peer(n)),
                ("--initial-cluster", members.clone()),
                ("--initial-cluster-state", "new".into()),
                ("--logger", "zap".into()),
                ("--log-level", "warn".into()),
            ];
            let args = args.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
            let log = dir.join(format!("e{n}.log"));
            etcd.nodes.push(spawn("etcd", args, &log)?);
        }
        let deadline = Instant::now() + READY_WITHIN;
        while Instant::now() < deadline {
            for client in &clients {
                if leads(client).await {
                    etcd.leader.clone_from(client);
                    return Ok(etcd);
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        let said = std::fs::read_to_string(dir.join("e0.log")).unwrap_or_default();
        let last = said.lines().last().unwrap_or("nothing").to_owned();
        bail!("etcd has elected no leader within {READY_WITHIN:?}; its last words: {last}")
    }

    /// So many connections to the leader.
    pub async fn clients(&self, connections: usize) -> Result<Vec<Client>> {
        let mut clients = Vec::with_capacity(connections);
        for _ in 0..connections {
            clients.push(Client(Grpc::new(connect(&self.leader).await?)));
        }
        Ok(clients)
    }

    /// Whether the leader still leads.
    pub async fn still_leads(&self) -> bool {
        leads(&self.leader).await
    }

    /// Processor time that all nodes have used.
    pub fn cpu_time(&self) -> Duration {
        self.nodes.iter().filter_map(|node| i32::try_from(node.id()).ok()).map(machine::cpu_time).sum()
    }

    /// Resident memory of each node, in MiB.
    pub fn rss_mib(&self) -> Vec<f64> {
        self.nodes.iter().filter_map(|node| i32::try_from(node.id()).ok()).map(machine::rss_mib).collect()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // Fails only for one that has gone already.
            drop(node.kill());
            drop(node.wait());
        }
    }
}

/// Starts a program that is not ours. Its own group, so that Ctrl-C reaches us alone; and the kernel kills it should we
/// be killed.
pub(super) fn spawn(program: &str, args: Vec<String>, log: &Path) -> Result<Child> {
    let start = || {
        std::fs::create_dir_all(log.parent().unwrap_or(Path::new(".")))?;
        let output = File::create(log)?;
        let mut command = match which("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--", program]);
                command
            }
            None => Command::new(program),
        };
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
    };
    start().with_context(|| format!("cannot start {program}"))
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// A port that nobody has at the moment.
pub(super) fn free_port() -> Result<u16> {
    let free = (0..1_000).map(|_| fastrand::u16(12_000..30_000)).find(|port| crate::ports::is_free(*port));
    free.context("found no free port")
}

/// A connection as our own clients have it.
pub(crate) async fn connect(url: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned()).context("not a URL")?.tcp_nodelay(true);
    endpoint.connect().await.with_context(|| format!("cannot connect to {url}"))
}

async fn leads(client: &str) -> bool {
    let asked = async {
        let mut client = Grpc::new(connect(client).await.ok()?);
        let path = PathAndQuery::from_static("/etcdserverpb.Maintenance/Status");
        client.ready().await.ok()?;
        let said =
            client.unary(Request::new(Nothing {}), path, ProstCodec::<_, StatusResponse>::default()).await;
        let said = said.ok()?.into_inner();
        Some(said.leader != 0 && said.leader == said.header?.member_id)
    };
    tokio::time::timeout(Duration::from_secs(1), asked).await.ok().flatten().unwrap_or(false)
}

/// One connection to a node. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Client(Grpc<Channel>);

impl Client {
    /// Puts one key.
    pub async fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), Status> {
        self.ready().await?;
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
        let put = Request::new(PutRequest { key, value });
        self.0.unary(put, path, ProstCodec::<_, Nothing>::default()).await.map(drop)
    }

    /// Everything under a prefix, linearizable; how many there are.
    pub async fn range(&mut self, prefix: Vec<u8>) -> Result<usize, Status> {
        self.ready().await?;
        let mut range_end = prefix.clone();
        if let Some(last) = range_end.last_mut() {
            *last += 1; // our prefixes end with a slash
        }
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Range");
        let range = Request::new(RangeRequest { key: prefix, range_end });
        let found = self.0.unary(range, path, ProstCodec::<_, RangeResponse>::default()).await?;
        Ok(found.into_inner().kvs.len())
    }

    async fn ready(&mut self) -> Result<(), Status> {
        self.0.ready().await.map_err(|error| Status::unavailable(error.to_string()))
    }
}

/// One caller that puts values of `value_bytes`.
#[derive(Clone, Debug)]
pub(crate) struct Puts {
    pub client: Client,
    pub key: fn(u64) -> String,
    pub value_bytes: usize,
}

impl Door for Puts {
    async fn call(&mut self, nth: u64) -> Result<(), Status> {
        self.client.put((self.key)(nth).into_bytes(), vec![b'v'; self.value_bytes]).await
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
}
