//! The balancer as a process.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::backend::Backend;
use crate::client;
use crate::registry::Registry;

/// Long enough for a loaded machine; what is waited for usually takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(15);

pub struct Balancer {
    /// The first listener.
    pub http: SocketAddr,
    /// All of them.
    pub listeners: Vec<SocketAddr>,
    pub admin: SocketAddr,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    output: Arc<Mutex<Vec<String>>>,
    _dir: tempfile::TempDir,
}

impl Balancer {
    /// Follows `registry` and is ready.
    pub async fn start(registry: &Registry, args: &[&str]) -> Balancer {
        let url = registry.url();
        let mut all = vec!["--registry", &url];
        all.extend(args);
        let balancer = Balancer::spawn(&all, "").await;
        eventually("the balancer is ready", async || balancer.ready().await).await;
        balancer
    }

    /// With `config` as its config.yaml, if it is not empty; listens, but may not be ready.
    pub async fn spawn(args: &[&str], config: &str) -> Balancer {
        Balancer::spawn_in(tempfile::tempdir().unwrap(), args, config).await
    }

    /// As [`Balancer::spawn`], with what else is in `dir`, where it runs.
    pub async fn spawn_in(dir: tempfile::TempDir, args: &[&str], config: &str) -> Balancer {
        if !config.is_empty() {
            std::fs::write(dir.path().join("config.yaml"), config).unwrap();
        }
        let defaults: &[&str] = if config.is_empty() { &["--port", "0", "--host", "127.0.0.1"] } else { &[] };
        let mut child = command(dir.path())
            .args(defaults)
            .args(["--admin", "127.0.0.1:0"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the balancer starts");
        let (log, output) =
            (collected(child.stderr.take().unwrap()), collected(child.stdout.take().unwrap()));
        let mut addresses = None;
        eventually("it listens", async || {
            addresses =
                log.lock().unwrap().iter().find_map(|l| Some((fields(l, "http=")?, fields(l, "admin=")?)));
            addresses.is_some()
        })
        .await;
        let (listeners, admin) = addresses.unwrap();
        Balancer { http: listeners[0], listeners, admin: admin[0], child, log, output, _dir: dir }
    }

    pub async fn ready(&self) -> bool {
        client::get(self.admin, "/readyz").await.is_ok_and(|r| r.status == 200)
    }

    /// `/v1/endpoints`.
    pub async fn endpoints(&self) -> Value {
        let response = client::get(self.admin, "/v1/endpoints").await.expect("the admin server answers");
        serde_json::from_str(&response.text()).expect("JSON")
    }

    /// One field of one endpoint; null if it is not known.
    pub async fn endpoint(&self, id: &str, field: &str) -> Value {
        let all = self.endpoints().await;
        let found = all["endpoints"].as_array().and_then(|l| l.iter().find(|e| e["id"] == id).cloned());
        found.map_or(Value::Null, |e| e[field].clone())
    }

    /// Waits until exactly `ids` take requests.
    pub async fn rotates(&self, ids: &[&str]) {
        eventually(&format!("{ids:?} are in rotation"), async || {
            let all = self.endpoints().await;
            let list = all["endpoints"].as_array().cloned().unwrap_or_default();
            let up = |e: &&Value| e["in_rotation"] == true && e["state"] == "up";
            let now: Vec<&str> = list.iter().filter(up).filter_map(|e| e["id"].as_str()).collect();
            now == ids
        })
        .await;
    }

    /// The exposition of the admin port.
    pub async fn metrics(&self) -> String {
        client::get(self.admin, "/metrics").await.expect("the admin server answers").text()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it is there");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether all of its threads are being traced.
    pub fn is_traced(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        threads.filter_map(Result::ok).all(|thread| {
            let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            status.lines().any(|l| l.starts_with("TracerPid:") && !l.ends_with("\t0"))
        })
    }

    /// Waits until the process has ended.
    pub async fn exited(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the balancer ends", async || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    /// The lines on its standard output.
    pub fn output(&self) -> Vec<String> {
        self.output.lock().unwrap().clone()
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("--- the balancer's log\n{log}");
        }
        assert!(std::thread::panicking() || !log.contains("panicked"), "the balancer panicked:\n{log}");
    }
}

/// The lines that come, as they come.
fn collected(source: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let all = lines.clone();
    std::thread::spawn(move || {
        BufReader::new(source).lines().map_while(Result::ok).for_each(|l| lines.lock().unwrap().push(l));
    });
    all
}

/// The program, in `dir`, without anything of our environment that it would read.
pub fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balancer"));
    let ours = std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("BALANCER_"));
    for name in ours {
        command.env_remove(name);
    }
    command.current_dir(dir).env("NO_COLOR", "1");
    command
}

/// A registry, `n` backends `b0..` registered with it, and a balancer that has them all in rotation.
pub async fn system(n: usize, args: &[&str]) -> (Registry, Vec<Backend>, Balancer) {
    let registry = Registry::start().await;
    let backends: Vec<Backend> = (0..n).map(|i| Backend::start(&format!("b{i}"))).collect();
    backends.iter().for_each(|b| registry.register(&b.id, &b.url()));
    let balancer = Balancer::start(&registry, args).await;
    let ids: Vec<&str> = backends.iter().map(|b| b.id.as_str()).collect();
    balancer.rotates(&ids).await;
    (registry, backends, balancer)
}

/// As [`system`], with `settings`, lines of a config file.
pub async fn system_with(n: usize, settings: &str) -> (Registry, Vec<Backend>, Balancer) {
    let registry = Registry::start().await;
    let backends: Vec<Backend> = (0..n).map(|i| Backend::start(&format!("b{i}"))).collect();
    backends.iter().for_each(|b| registry.register(&b.id, &b.url()));
    let config = format!("port: 0\nhost: 127.0.0.1\nserviceRegistryURL: {}\n{settings}", registry.url());
    let balancer = Balancer::spawn(&[], &config).await;
    let ids: Vec<&str> = backends.iter().map(|b| b.id.as_str()).collect();
    balancer.rotates(&ids).await;
    (registry, backends, balancer)
}

/// Waits for a condition; panics with `what` if it does not come about.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The addresses of the URLs that `name` has in `line`.
fn fields(line: &str, name: &str) -> Option<Vec<SocketAddr>> {
    let urls = line.split(name).nth(1)?.split_whitespace().next()?;
    urls.split(',').map(|url| url.split_once("://")?.1.parse().ok()).collect()
}
