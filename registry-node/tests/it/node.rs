//! Starts real nodes on free ports of this machine and waits until they serve; ends them with the test.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use super::links::Link;
use super::wire;

/// How long anything may take that is not bounded by a promise, on a machine that is busy compiling.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Clusters run one after another: two at once would fight over two cores and test the scheduler.
static TURN: Mutex<()> = Mutex::const_new(());

/// This test's turn, for one that starts no cluster and must not disturb others.
pub async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// One node's process, and what it takes to start it again.
pub struct Node {
    /// `http://HOST:PORT`.
    pub rest: String,
    /// `http://HOST:PORT`.
    pub grpc: String,
    args: Vec<String>,
    log: PathBuf,
    process: Option<Child>,
}

/// Nodes 1..=N, a directory for each, and this test's turn.
pub struct Cluster {
    pub nodes: Vec<Node>,
    _dir: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts `count` nodes with further flags, and waits until each serves.
    pub async fn start(count: usize, flags: &[&str]) -> Cluster {
        Self::start_on(None, count, flags).await
    }

    /// The same with the nodes' directories in `data`, and the logs elsewhere.
    pub async fn start_on(data: Option<&Path>, count: usize, flags: &[&str]) -> Cluster {
        Self::start_with(data, count, |_, _| flags.iter().map(|flag| (*flag).to_owned()).collect()).await
    }

    /// The same where each node reaches each other through a link of its own.
    pub async fn start_linked(count: usize) -> (Cluster, Vec<Link>) {
        let mut links = Vec::new();
        let cluster = Self::start_with(None, count, |from, peers| {
            let others = (0..count).filter(|to| *to != from);
            let mine: Vec<Link> = others.map(|to| Link::open(from, to, peers[to].clone())).collect();
            let overrides: Vec<String> =
                mine.iter().map(|link| format!("{}={}", link.to + 1, link.address)).collect();
            links.extend(mine);
            vec!["--peer-override".to_owned(), overrides.join(",")]
        })
        .await;
        (cluster, links)
    }

    async fn start_with(
        data: Option<&Path>,
        count: usize,
        mut flags: impl FnMut(usize, &[String]) -> Vec<String>,
    ) -> Cluster {
        let turn = TURN.lock().await;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (host, ports) = (host(), free_ports(3 * count));
        let peers: Vec<String> = (0..count).map(|index| format!("{host}:{}", ports[3 * index + 2])).collect();
        let members: Vec<String> =
            peers.iter().enumerate().map(|(index, peer)| format!("{}={peer}", index + 1)).collect();
        let node = |index: usize| {
            let (rest, grpc) = (ports[3 * index], ports[3 * index + 1]);
            let mut args = vec!["--id".to_owned(), (index + 1).to_string()];
            let path = data.unwrap_or(dir.path()).join(format!("node-{}", index + 1));
            args.extend(["--dir".to_owned(), path.display().to_string()]);
            args.extend(["--rest".to_owned(), format!("{host}:{rest}")]);
            args.extend(["--grpc".to_owned(), format!("{host}:{grpc}")]);
            args.extend([
                "--peer".to_owned(),
                peers[index].clone(),
                "--members".to_owned(),
                members.join(","),
            ]);
            args.extend(flags(index, &peers));
            let log = dir.path().join(format!("node-{}.log", index + 1));
            let (rest, grpc) = (format!("http://{host}:{rest}"), format!("http://{host}:{grpc}"));
            Node { rest, grpc, args, log, process: None }
        };
        let mut cluster = Cluster { nodes: (0..count).map(node).collect(), _dir: dir, _turn: turn };
        cluster.nodes.iter_mut().for_each(Node::spawn);
        cluster.wait_ready().await;
        cluster
    }

    /// Starts one more node, which asks to join; gives its index. It is no member yet.
    pub fn join(&mut self, id: u64) -> usize {
        self.join_through(0, id)
    }

    /// The same through a node of which one knows that it runs.
    pub fn join_through(&mut self, through: usize, id: u64) -> usize {
        let ports = free_ports(3);
        let [rest, grpc, peer] = [0, 1, 2].map(|index| format!("{}:{}", host(), ports[index]));
        let path = self._dir.path().join(format!("node-{id}"));
        let through = self.nodes[through].peer().trim_start_matches("http://").to_owned();
        let args =
            ["--id", &id.to_string(), "--dir", &path.display().to_string(), "--rest", &rest, "--grpc", &grpc];
        let args = args.into_iter().chain(["--peer", &peer, "--join", &through]).map(str::to_owned).collect();
        let log = path.with_extension("log");
        let mut node =
            Node { rest: format!("http://{rest}"), grpc: format!("http://{grpc}"), args, log, process: None };
        node.spawn();
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Waits until every running node answers linearizable reads.
    pub async fn wait_ready(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.process.is_some()) {
            node.wait_ready().await;
        }
    }

    /// Where the running nodes answer REST.
    pub fn running(&self) -> Vec<String> {
        self.nodes.iter().filter(|node| node.process.is_some()).map(|node| node.rest.clone()).collect()
    }

    /// The index of the leader, once all running nodes agree on one that is running.
    pub async fn leader(&mut self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut leaders = Vec::new();
            for node in self.nodes.iter().filter(|node| node.process.is_some()) {
                leaders.push(node.leader().await);
            }
            if let Some(Some(leader)) = leaders.first().cloned()
                && leaders.iter().all(|other| other.as_ref() == Some(&leader))
                && let Some(index) =
                    self.nodes.iter().position(|node| node.rest == leader && node.process.is_some())
            {
                return index;
            }
            assert!(Instant::now() < deadline, "no leader: {leaders:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The index of some follower.
    pub async fn follower(&mut self) -> usize {
        (self.leader().await + 1) % self.nodes.len()
    }
}

impl Node {
    /// Starts the process; its log goes on where the last one's ended.
    pub fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).expect("the log can be written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_registry-node"));
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn().expect("the binary starts"));
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it is ours");
            process.wait().expect("it is ours");
        }
    }

    /// Asks it to stop, as a supervisor would.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Lets it stand still, with all its sockets open, until it is resumed.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = self.process.as_ref().expect("it runs").id();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("it is ours");
    }

    /// The same, and waits until it has ended; gives its exit code.
    pub async fn stop(&mut self) -> Option<i32> {
        self.terminate();
        let code = self.exit_code().await;
        self.process = None;
        code
    }

    /// Where it keeps everything.
    pub fn dir(&self) -> PathBuf {
        let flag = self.args.iter().position(|arg| arg == "--dir").expect("every node has one");
        PathBuf::from(&self.args[flag + 1])
    }

    /// Waits until it answers linearizable reads; with its log if it never does.
    pub async fn wait_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_ready().await {
            let exited = self.process.as_mut().and_then(|process| process.try_wait().ok()).flatten();
            assert!(exited.is_none() && Instant::now() < deadline, "{exited:?}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Empties its directory; it must not run.
    pub fn wipe(&self) {
        std::fs::remove_dir_all(self.dir()).expect("it is there");
    }

    /// Waits until it answers linearizable reads, or has ended: then with which code.
    pub async fn ready_or_exit(&mut self) -> Option<Option<i32>> {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_ready().await {
            let process = self.process.as_mut().expect("it was started");
            if let Some(status) = process.try_wait().expect("it is ours") {
                return Some(status.code());
            }
            assert!(Instant::now() < deadline, "it neither serves nor ends: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }

    /// Waits until the process ends by itself, and says with which code.
    pub async fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        let process = self.process.as_mut().expect("it was started");
        loop {
            if let Some(status) = process.try_wait().expect("it is ours") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it still runs");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Memory in use, in bytes.
    pub fn resident_bytes(&self) -> usize {
        let pid = self.process.as_ref().expect("it runs").id();
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("it runs");
        let pages: usize = statm.split(' ').nth(1).expect("the second field").parse().expect("a number");
        pages * 4096
    }

    /// Where its peers connect: `http://HOST:PORT`.
    pub fn peer(&self) -> String {
        let flag = self.args.iter().position(|arg| arg == "--peer").expect("every node has one");
        format!("http://{}", self.args[flag + 1])
    }

    async fn is_ready(&self) -> bool {
        wire::try_call("GET", &format!("{}/readyz", self.rest), "")
            .await
            .is_ok_and(|reply| reply.status == 200)
    }

    /// The REST URL of the leader as this node knows it.
    async fn leader(&self) -> Option<String> {
        let reply = wire::try_call("GET", &format!("{}/v1/status", self.rest), "").await.ok()?;
        let leader = reply.json()["header"]["leader"]["rest"].clone();
        if let Value::String(leader) = leader { Some(leader) } else { None }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
        self.kill();
    }
}

/// An address of this machine that only the nodes of this test program listen on. Whoever connects from this machine
/// does so from a port of 127.0.0.1, and other test programs listen elsewhere: the ports of a node that is down are
/// still free when it starts again.
fn host() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes(); // of 22 bits
    Ipv4Addr::new(127, 64 + high, middle, low)
}

/// Ports of [`host`] that no node was ever given.
fn free_ports(count: usize) -> Vec<u16> {
    static GIVEN: std::sync::Mutex<BTreeSet<u16>> = std::sync::Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().expect("no panic while it is held");
    // Held until all are found, so that none is found twice.
    let (mut listeners, mut ports) = (Vec::new(), Vec::new());
    while ports.len() < count {
        let listener = TcpListener::bind((host(), 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        listeners.push(listener);
        if given.insert(port) {
            ports.push(port);
        }
    }
    ports
}

#[test]
fn the_ports_of_a_node_that_is_down_stay_its_own() {
    let (first, second) = (free_ports(2), free_ports(2));
    assert!(first.iter().all(|port| !second.contains(port)), "{first:?} {second:?}");
    // A connection to anywhere on this machine takes its own port elsewhere.
    let listener = TcpListener::bind((host(), first[0])).expect("it is free");
    let connection = std::net::TcpStream::connect((host(), first[0])).expect("somebody listens");
    assert_eq!(connection.local_addr().expect("it stands").ip(), Ipv4Addr::LOCALHOST);
    drop(listener);
}
