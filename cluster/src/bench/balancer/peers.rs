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

/// The registry that our balancer follows.
#[derive(Clone, Debug)]
pub(super) struct Registry(RegistryClient<tonic::transport::Channel>);

impl Registry {
    /// Registers an instance.
    pub async fn register(&self, service: &str, id: &str, address: SocketAddr) -> Result<()> {
        let instance = pb::Instance {
            id: id.into(),
            service: service.into(),
            url: format!("http://{address}"),
            health_path: "/health".into(),
            ttl_ms: TTL_MS,
            ..pb::Instance::default()
        };
        let request = pb::RegisterRequest { instance: Some(instance), ..pb::RegisterRequest::default() };
        self.0.clone().register(request).await.context("cannot register a backend")?;
        Ok(())
    }

    /// Takes it out.
    pub async fn deregister(&self, id: &str) -> Result<()> {
        let request = pb::DeregisterRequest { id: id.into(), ..pb::DeregisterRequest::default() };
        self.0.clone().deregister(request).await.context("cannot deregister a backend")?;
        Ok(())
    }
}

/// Somebody who proxies to the backends.
#[derive(Debug)]
pub(super) struct Proxy {
    pub name: &'static str,
    pub address: SocketAddr,
    /// Where it speaks HTTP/2.
    pub http2: SocketAddr,
    pub pid: i32,
    process: Process,
}

/// How our balancer is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setup {
    /// As it comes: one pool, metrics, retries, outlier detection.
    Bare,
    /// With routes and an access log besides.
    Full,
    /// With a route to one service among many others.
    Among,
}

impl Setup {
    fn config(self, dir: &Path) -> Option<String> {
        match self {
            Setup::Bare => None,
            Setup::Full => {
                let elsewhere: String = (0..20)
                    .map(|n| format!("- {{match: {{host: s{n}.example}}, service: other-{n}}}\n"))
                    .collect();
                Some(format!(
                    "accessLog: {}\nroutes:\n{elsewhere}\
                     - {{match: {{path: /other}}, service: other, rewrite: {{stripPrefix: true}}}}\n\
                     - {{service: bench, requestHeaders: {{set: {{x-bench: 'yes'}}}}}}\n",
                    dir.join("access.log").display()
                ))
            }
            // Instances that nobody asks for are probed once.
            Setup::Among => Some("healthCheckInterval: 1h\nroutes:\n- {service: bench}\n".to_owned()),
        }
    }
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
    pub async fn ours(dir: &Path, setup: Setup, backends: &[SocketAddr]) -> Result<(Proxy, Registry)> {
        let dir = dir.join(format!("{setup:?}").to_lowercase());
        std::fs::create_dir_all(&dir)?;
        let mut balancer_args = vec!["--workers".to_owned(), "2".to_owned()];
        if let Some(config) = setup.config(&dir) {
            let file = dir.join("balancer.yaml");
            std::fs::write(&file, config)?;
            balancer_args.extend(["--config".to_owned(), file.display().to_string()]);
        }
        let options = Options {
            nodes: 1,
            balancers: 1,
            backends: 0,
            dir: Some(dir.join("cluster")),
            ports: Ports::Free,
            balancer_args,
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
        let registry = Registry(RegistryClient::new(connect(&grpc).await?));
        for (nth, backend) in backends.iter().enumerate() {
            registry.register("bench", &format!("bench-{nth}"), *backend).await?;
        }
        let address = http.trim_start_matches("http://").parse().context("not an address")?;
        let pid = pid.context("the balancer does not run")?.pid;
        let proxy = Proxy { name: "balancer", address, http2: address, pid, process: Process::Ours(cluster) };
        Ok((proxy.ready(backends.len()).await?, registry))
    }

    /// HAProxy.
    pub async fn haproxy(dir: &Path, backends: &[SocketAddr]) -> Result<Proxy> {
        let (port, http2) = (free_port()?, free_port()?);
        let servers: String = backends
            .iter()
            .enumerate()
            .map(|(n, b)| format!("    server s{n} {b} pool-max-conn 256\n"))
            .collect();
        let config = format!(
            "global\n    nbthread 2\n    maxconn {CONNECTIONS_MAX}\n\
             defaults\n    mode http\n    option http-keep-alive\n    http-reuse always\n    option forwardfor\n\
             \x20   timeout connect 2s\n    timeout client 60s\n    timeout server 60s\n\
             frontend f\n    bind 127.0.0.1:{port}\n    bind 127.0.0.1:{http2} proto h2\n    default_backend b\n\
             backend b\n    balance roundrobin\n{servers}"
        );
        let file = dir.join("haproxy.cfg");
        std::fs::write(&file, config)?;
        let log = dir.join("haproxy.log");
        let args = vec!["-db".into(), "-f".into(), file.display().to_string()];
        Self::theirs("haproxy", [port, http2], spawn("haproxy", args, &log)?, backends.len())
            .await
            .with_context(|| last_words(&log))
    }

    /// nginx.
    pub async fn nginx(dir: &Path, backends: &[SocketAddr]) -> Result<Proxy> {
        let (port, http2) = (free_port()?, free_port()?);
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
             \x20       listen 127.0.0.1:{http2} http2 backlog=4096 reuseport;\n        http2_max_requests 1000000000;\n\
             \x20       location / {{\n            proxy_pass http://b;\n            proxy_http_version 1.1;\n\
             \x20           proxy_set_header Connection \"\";\n            proxy_set_header Host $host;\n\
             \x20           proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n        }}\n    }}\n}}\n",
            dir = dir.display(),
        );
        let file = dir.join("nginx.conf");
        std::fs::write(&file, config)?;
        let log = dir.join("log");
        let args = vec!["-c".into(), file.display().to_string(), "-p".into(), dir.display().to_string()];
        Self::theirs("nginx", [port, http2], spawn("nginx", args, &log)?, backends.len())
            .await
            .with_context(|| last_words(&log))
    }

    async fn theirs(name: &'static str, ports: [u16; 2], child: Child, backends: usize) -> Result<Proxy> {
        let pid = i32::try_from(child.id()).context("no process id")?;
        let [address, http2] = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        Proxy { name, address, http2, pid, process: Process::Theirs(Killed(child)) }.ready(backends).await
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
