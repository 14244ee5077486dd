//! Who proxies: our balancer as the cluster runs it, HAProxy and nginx as Debian has them, set up for the same work: two
//! worker threads, kept connections to three backends, no access log.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto::registry::v1 as pb;
use proto::registry::v1::registry_client::RegistryClient;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::{
    Cluster, Kind, Options, Ports,
    bench::{
        etcd::{connect, free_port, spawn},
        machine,
        report::Peer,
    },
};

/// How long one may take until it proxies.
const READY_WITHIN: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Connections that HAProxy provides for: two descriptors each, of what a process usually may have.
const CONNECTIONS_MAX: usize = 9_500;
/// Longer than any run.
const TTL_MS: u32 = 3_600_000;

/// What `program`'s first line about itself says last, if it is installed.
fn version(program: &str, flag: &str) -> Option<String> {
    let said = Command::new(program).arg(flag).stdin(Stdio::null()).output().ok()?;
    let text = [said.stdout, said.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let version =
        text.lines().next()?.split_whitespace().find(|w| w.contains(|c: char| c.is_ascii_digit()))?;
    Some(version.trim_start_matches("nginx/").to_owned())
}

/// What a program has said last.
fn last_words(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    format!("it said {:?}", text.lines().last().unwrap_or_default())
}

/// HAProxy and nginx, installed or not.
pub(super) fn peers() -> Vec<Peer> {
    vec![
        Peer { name: "haproxy", version: version("haproxy", "-v"), package: "haproxy" },
        Peer { name: "nginx", version: version("nginx", "-v"), package: "nginx-light" },
    ]
}

/// Somebody who proxies to the backends.
#[derive(Debug)]
pub(super) struct Proxy {
    pub name: &'static str,
    pub address: SocketAddr,
    pub pid: i32,
    process: Process,
}

#[derive(Debug)]
enum Process {
    Ours(Box<Cluster>),
    Theirs(Killed),
}

/// Killed when dropped.
#[derive(Debug)]
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // nginx's workers outlive a master that is killed.
        for pid in machine::children(self.0.id() as i32) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        // Fails only for one that has gone already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Proxy {
    /// Our balancer, with a registry of one node that knows the backends.
    pub async fn ours(dir: &Path, backends: &[SocketAddr]) -> Result<Proxy> {
        let options = Options {
            nodes: 1,
            balancers: 1,
            backends: 0,
            dir: Some(dir.join("ours")),
            ports: Ports::Free,
            balancer_args: vec!["--workers".into(), "2".into()],
            ..Options::default()
        };
        let cluster = Box::new(Box::pin(Cluster::launch(options)).await?);
        let (mut http, mut grpc, mut pid) = (None, None, None);
        for (spec, (_, running)) in cluster.specs()?.into_iter().zip(cluster.running()?) {
            match spec.kind {
                Kind::Balancer { http: url, .. } => (http, pid) = (Some(url), running),
                Kind::Node { grpc: url, .. } => grpc = Some(url),
                _ => {}
            }
        }
        let (http, grpc) = (http.context("no balancer runs")?, grpc.context("no node runs")?);
        let mut registry = RegistryClient::new(connect(&grpc).await?);
        for (nth, backend) in backends.iter().enumerate() {
            let instance = pb::Instance {
                id: format!("bench-{nth}"),
                service: "bench".into(),
                url: format!("http://{backend}"),
                health_path: "/health".into(),
                ttl_ms: TTL_MS,
                ..pb::Instance::default()
            };
            registry
                .register(pb::RegisterRequest { instance: Some(instance), ..pb::RegisterRequest::default() })
                .await
                .context("cannot register a backend")?;
        }
        let address = http.trim_start_matches("http://").parse().context("not an address")?;
        let pid = pid.context("the balancer does not run")?.pid;
        Proxy { name: "balancer", address, pid, process: Process::Ours(cluster) }.ready(backends.len()).await
    }

    /// HAProxy.
    pub async fn haproxy(dir: &Path, backends: &[SocketAddr]) -> Result<Proxy> {
        let port = free_port()?;
        let servers: String = backends
            .iter()
            .enumerate()
            .map(|(n, b)| format!("    server s{n} {b} pool-max-conn 256\n"))
            .collect();
        let config = format!(
            "global\n    nbthread 2\n    maxconn {CONNECTIONS_MAX}\n\
             defaults\n    mode http\n    option http-keep-alive\n    http-reuse always\n    option forwardfor\n\
             \x20   timeout connect 2s\n    timeout client 60s\n    timeout server 60s\n\
             frontend f\n    bind 127.0.0.1:{port}\n    default_backend b\n\
             backend b\n    balance roundrobin\n{servers}"
        );
        let file = dir.join("haproxy.cfg");
        std::fs::write(&file, config)?;
        let log = dir.join("haproxy.log");
        let args = vec!["-db".into(), "-f".into(), file.display().to_string()];
        Self::theirs("haproxy", port, spawn("haproxy", args, &log)?, backends.len())
            .await
            .with_context(|| last_words(&log))
    }

    /// nginx.
    pub async fn nginx(dir: &Path, backends: &[SocketAddr]) -> Result<Proxy> {
        let port = free_port()?;
        let dir = dir.join("nginx");
        std::fs::create_dir_all(dir.join("tmp"))?;
        let servers: String = backends.iter().map(|b| format!("        server {b};\n")).collect();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("    {kind}_temp_path {}/tmp/{kind};\n", dir.display()))
            .collect();
        let config = format!(
            "daemon off;\nworker_processes 2;\npid {dir}/pid;\nerror_log {dir}/error.log;\n\
             events {{ worker_connections 12000; }}\n\
             http {{\n    access_log off;\n    keepalive_requests 1000000000;\n    tcp_nodelay on;\n{temporary}\
             \x20   upstream b {{\n{servers}        keepalive 256;\n        keepalive_requests 1000000000;\n    }}\n\
             \x20   server {{\n        listen 127.0.0.1:{port} backlog=4096 reuseport;\n\
             \x20       location / {{\n            proxy_pass http://b;\n            proxy_http_version 1.1;\n\
             \x20           proxy_set_header Connection \"\";\n            proxy_set_header Host $host;\n\
             \x20           proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n        }}\n    }}\n}}\n",
            dir = dir.display(),
        );
        let file = dir.join("nginx.conf");
        std::fs::write(&file, config)?;
        let log = dir.join("log");
        let args = vec!["-c".into(), file.display().to_string(), "-p".into(), dir.display().to_string()];
        Self::theirs("nginx", port, spawn("nginx", args, &log)?, backends.len())
            .await
            .with_context(|| last_words(&log))
    }

    async fn theirs(name: &'static str, port: u16, child: Child, backends: usize) -> Result<Proxy> {
        let pid = i32::try_from(child.id()).context("no process id")?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Proxy { name, address, pid, process: Process::Theirs(Killed(child)) }.ready(backends).await
    }

    /// Returns when it answers as often as there are backends.
    async fn ready(self, backends: usize) -> Result<Proxy> {
        let deadline = Instant::now() + READY_WITHIN;
        let mut answered = 0;
        while answered < backends {
            if Instant::now() >= deadline {
                bail!("{} does not proxy within {READY_WITHIN:?}", self.name);
            }
            match super::load::once(self.address).await {
                Ok(()) => answered += 1,
                Err(_) => tokio::time::sleep(ASK_EVERY).await,
            }
        }
        Ok(self)
    }

    /// So many connections, each of which has served a request.
    pub async fn rest(&self, count: usize) -> Result<Vec<TcpStream>> {
        let mut resting = Vec::with_capacity(count);
        for _ in 0..count {
            resting.push(super::load::resting(self.address).await?);
        }
        Ok(resting)
    }

    /// Ends it in order.
    pub async fn shutdown(self) -> Result<()> {
        match self.process {
            Process::Ours(cluster) => Ok(cluster.shutdown().await?),
            Process::Theirs(_killed) => Ok(()),
        }
    }
}
