//! Our three nodes and connections to them.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use prost::Message as _;
use proto::registry::v1 as pb;
use proto::registry::v1::registry_client::RegistryClient;
use tokio::{task::JoinSet, time::Instant};
use tonic::{Status, transport::Channel};

use crate::{
    Cluster, Error, Kind, Options, Pid, Ports,
    bench::{
        etcd::connect,
        load::{Door, explain},
        machine,
    },
};

/// How large a record, or a value in etcd, is.
pub(super) const VALUE_BYTES: usize = 256;
/// Instances of one service.
pub(super) const PER_SERVICE: u64 = 100;
/// Longer than any run.
const TTL_MS: u32 = 3_600_000;
/// A large record: a few thousand of them are a full ring.
const LARGE_BYTES: usize = 12 << 10;
/// Writes at once while a ring is filled, and between two looks at it.
const FILLERS: usize = 64;
const FILL_STEP: u64 = 1_024;
/// Writes that are certain to push everything out of a ring, which holds 2^17 revisions at most.
const FILL_MAX: u64 = (1 << 17) + 2 * FILL_STEP;
/// Messages that a snapshot of everything may need.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Launches before it is given up.
const ATTEMPTS: u32 = 3;
/// How long three nodes may be without a leader before that is a failure.
const LEADER_WITHIN: Duration = Duration::from_secs(20);
/// How often it is looked for.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Three nodes on free ports; killed when dropped.
#[derive(Debug)]
pub(super) struct Nodes {
    cluster: Cluster,
}

/// One node as it runs now.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub name: String,
    pub grpc: String,
    pub pid: Pid,
}

impl Node {
    /// Where it is now.
    pub async fn head(&self) -> Result<pb::ResponseHeader> {
        let answer = client(&self.grpc).await?.list_services(pb::ListServicesRequest::default()).await?;
        answer.into_inner().header.context("an answer without a header")
    }
}

impl Nodes {
    /// Starts them in `dir`, and returns when they answer.
    pub async fn launch(dir: &Path) -> Result<Self> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let options = Options {
                balancers: 0,
                backends: 0,
                // A directory keeps its ports, so each attempt has its own.
                dir: Some(dir.join(attempt.to_string())),
                ports: Ports::Free,
                ..Options::default()
            };
            match Box::pin(Cluster::launch(options)).await {
                Ok(cluster) => return Ok(Self { cluster }),
                // Somebody else took a port between its choice and its use.
                Err(Error::Died { .. }) if attempt < ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ends them in order.
    pub async fn shutdown(self) -> Result<()> {
        Ok(self.cluster.shutdown().await?)
    }

    /// The nodes that run.
    pub fn running(&self) -> Result<Vec<Node>> {
        let specs = self.cluster.specs()?;
        let pids = self.cluster.running()?;
        let nodes = specs.into_iter().zip(pids).filter_map(|(spec, (_, pid))| match spec.kind {
            Kind::Node { grpc, .. } => Some(Node { name: spec.name, grpc, pid: pid? }),
            _ => None,
        });
        Ok(nodes.collect())
    }

    /// Who leads, as soon as somebody does.
    pub async fn leader(&self) -> Result<Node> {
        let deadline = Instant::now() + LEADER_WITHIN;
        loop {
            if let Some(name) = self.cluster.leader().await?
                && let Some(node) = self.running()?.into_iter().find(|node| node.name == name)
            {
                return Ok(node);
            }
            if Instant::now() >= deadline {
                bail!("no node leads within {LEADER_WITHIN:?}");
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Starts a node again; see [`Nodes::ready`].
    pub async fn start(&self, name: &str) -> Result<()> {
        Ok(self.cluster.start(name).await?)
    }

    /// Returns when `name` says that it is ready.
    pub async fn ready(&self, name: &str) -> Result<()> {
        Ok(self.cluster.wait_ready_of(&[name]).await?)
    }

    /// SIGKILL or SIGTERM, without waiting for the end.
    pub fn signal(&self, node: &Node, signal: Signal) -> Result<()> {
        if node.pid.signal(signal) { Ok(()) } else { bail!("{} does not run", node.name) }
    }

    /// So many connections to the leader.
    pub async fn clients(&self, connections: usize) -> Result<Vec<RegistryClient<Channel>>> {
        let url = self.leader().await?.grpc;
        let mut clients = Vec::with_capacity(connections);
        for _ in 0..connections {
            clients.push(client(&url).await?);
        }
        Ok(clients)
    }

    /// Writes instances with numbers below `below`, by chance, until `done`, which is asked now and then.
    pub async fn write_until(
        &self,
        make: fn(u64) -> pb::Instance,
        below: u64,
        done: impl AsyncFn() -> Result<bool>,
    ) -> Result<()> {
        let writers = Unary::callers(&self.clients(4).await?, FILLERS);
        let mut written = 0;
        while !done().await? {
            if written >= FILL_MAX {
                bail!("{FILL_MAX} writes have not filled the ring");
            }
            let mut callers = JoinSet::new();
            for mut writer in writers.clone() {
                callers.spawn(async move {
                    for _ in 0..FILL_STEP / FILLERS as u64 {
                        writer.put(make(fastrand::u64(..below))).await?;
                    }
                    Ok::<_, Status>(())
                });
            }
            while let Some(done) = callers.join_next().await {
                done?.map_err(|status| anyhow::anyhow!("cannot fill the ring: {}", explain(&status)))?;
            }
            written += FILL_STEP;
        }
        Ok(())
    }

    /// Processor time that all nodes have used.
    pub fn cpu_time(&self) -> Result<Duration> {
        Ok(self.running()?.iter().map(|node| machine::cpu_time(node.pid.pid)).sum())
    }

    /// Resident memory of each node, in MiB.
    pub fn rss_mib(&self) -> Result<Vec<f64>> {
        Ok(self.running()?.iter().map(|node| machine::rss_mib(node.pid.pid)).collect())
    }
}

/// A connection of its own to a node.
pub(super) async fn client(url: &str) -> Result<RegistryClient<Channel>> {
    Ok(RegistryClient::new(connect(url).await?).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// The `nth` instance's id.
pub(super) fn id(nth: u64) -> String {
    format!("bench-{nth:08}")
}

/// The `nth` instance's service.
pub(super) fn service(nth: u64) -> String {
    format!("svc-{:05}", nth / PER_SERVICE)
}

/// Where the same thing lies in etcd: those of one service under one prefix.
pub(super) fn key(nth: u64) -> String {
    format!("{}/{}", service(nth), id(nth))
}

/// The `nth` instance: [`VALUE_BYTES`] on the wire.
pub(super) fn instance(nth: u64) -> pb::Instance {
    sized(nth, VALUE_BYTES)
}

/// The same, large.
pub(super) fn large(nth: u64) -> pb::Instance {
    sized(nth, LARGE_BYTES)
}

fn sized(nth: u64, bytes: usize) -> pb::Instance {
    let mut instance = pb::Instance {
        id: id(nth),
        service: service(nth),
        host: "10.20.30.40".into(),
        port: 8_080,
        url: "http://10.20.30.40:8080".into(),
        health_path: "/health".into(),
        ttl_ms: TTL_MS,
        zone: "zone-a".into(),
        version: "1.2.3".into(),
        ..pb::Instance::default()
    };
    // Tag, length, and within it tag and length of key and value: 8 bytes and the key, or two more.
    let key = "padding".to_owned();
    let rest = bytes.saturating_sub(instance.encoded_len() + key.len() + 8);
    instance.metadata.insert(key, "x".repeat(rest));
    instance
}

/// A registration as flux sends it: numbered, so that it takes effect once however often it is sent.
pub(super) fn register(nth: u64, client: &str, seq: u64) -> pb::RegisterRequest {
    pb::RegisterRequest {
        instance: Some(instance(nth)),
        client: client.into(),
        seq,
        ..pb::RegisterRequest::default()
    }
}

/// One caller of `Register`, a call for each.
#[derive(Clone, Debug)]
pub(super) struct Unary {
    client: RegistryClient<Channel>,
    name: String,
    seq: u64,
}

impl Unary {
    /// Callers spread over the connections.
    pub fn callers(clients: &[RegistryClient<Channel>], count: usize) -> Vec<Self> {
        let caller = |client: &RegistryClient<Channel>| Self { client: client.clone(), name: name(), seq: 0 };
        clients.iter().cycle().take(count).map(caller).collect()
    }

    /// Registers what the caller has made, unnumbered.
    pub async fn put(&mut self, instance: pb::Instance) -> Result<(), Status> {
        let request = pb::RegisterRequest { instance: Some(instance), ..pb::RegisterRequest::default() };
        self.client.register(request).await.map(drop)
    }
}

impl Door for Unary {
    async fn call(&mut self, nth: u64) -> Result<(), Status> {
        self.seq += 1;
        self.client.register(register(nth, &self.name, self.seq)).await.map(drop)
    }
}

/// A client's name nobody else has: its requests are numbered from one.
pub(super) fn name() -> String {
    format!("bench-{:016x}", fastrand::u64(..))
}

/// Registers so many instances over `doors`, each once.
pub(super) async fn fill<D: Door>(doors: Vec<D>, range: std::ops::Range<u64>) -> Result<()> {
    let next = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(range.start));
    let mut callers = JoinSet::new();
    for mut door in doors {
        let (next, end) = (next.clone(), range.end);
        callers.spawn(async move {
            loop {
                let nth = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if nth >= end {
                    return Ok(());
                }
                door.call(nth).await?;
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done.context("a caller has panicked")?
            .map_err(|s: Status| anyhow::anyhow!("cannot fill: {}", explain(&s)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_as_large_as_etcds_values() {
        let sizes = [0, 7, 123_456].map(|nth| instance(nth).encoded_len());
        assert_eq!(sizes, [VALUE_BYTES; 3]);
    }
}
