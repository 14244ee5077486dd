//! The command line: what it starts, prints, finds, stops, and that it leaves nothing behind.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use cluster::{Pid, Role, Status};
use nix::sys::signal::{Signal, kill};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::support::{EXE, PATIENCE, alone, eventually, fresh_dir, get_json};

/// The command line of one user.
struct Shell {
    home: PathBuf,
}

impl Shell {
    fn new(test: &str) -> Shell {
        Shell { home: fresh_dir(test) }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(EXE);
        command.args(line.split_whitespace()).env("XDG_RUNTIME_DIR", &self.home).env("TMPDIR", &self.home);
        command.current_dir(&self.home).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn run(&self, line: &str) -> Output {
        let output = tokio::time::timeout(3 * PATIENCE, self.command(line).output()).await;
        output.unwrap_or_else(|_| panic!("`{line}` does not end")).expect("the binary runs")
    }

    async fn ok(&self, line: &str) -> String {
        let output = self.run(line).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`{line}`: {}\n{error}", output.status);
        String::from_utf8(output.stdout).expect("text")
    }

    async fn fails(&self, line: &str) -> String {
        let output = self.run(line).await;
        assert_eq!(output.status.code(), Some(1), "`{line}` {output:?}");
        String::from_utf8(output.stderr).expect("text")
    }

    async fn status(&self, dir: &str) -> Status {
        serde_json::from_str(&self.ok(&format!("{dir} status -o json")).await).expect("the documented shape")
    }
}

/// An `up` in the foreground that has said that it is up.
async fn up(shell: &Shell, line: &str) -> (Child, String) {
    let mut child = shell.command(line).stdout(Stdio::piped()).spawn().expect("the binary runs");
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut said = String::new();
    let read = async {
        while let Some(line) = lines.next_line().await.expect("text") {
            said.push_str(&line);
            said.push('\n');
            if line.contains("logs and data") {
                return;
            }
        }
        panic!("it ended before it was up: {said}");
    };
    tokio::time::timeout(3 * PATIENCE, read).await.expect("it comes up");
    (child, said)
}

fn pids(status: &Status) -> Vec<Pid> {
    let nodes = status.nodes.iter().filter_map(|one| one.pid);
    let balancers = status.balancers.iter().filter_map(|one| one.pid);
    let backends = status.backends.iter().filter_map(|one| one.pid);
    nodes.chain(balancers).chain(backends).filter_map(Pid::of).collect()
}

async fn all_gone(pids: &[Pid]) {
    eventually("every process has gone", PATIENCE, async || {
        pids.iter().all(|pid| !pid.is_running()).then_some(())
    })
    .await;
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).expect("it runs");
    kill(nix::unistd::Pid::from_raw(pid), signal).expect("it is ours");
}

async fn rotates_over(balancer: &str, backends: usize) {
    let mut seen = BTreeSet::new();
    for _ in 0..2 * backends {
        let answer = get_json(&format!("{balancer}/")).await.expect("requests flow");
        seen.insert(answer["instance"].as_str().expect("an id").to_owned());
    }
    assert_eq!(seen.len(), backends, "{seen:?}");
}

#[test]
fn up_starts_a_whole_system_and_ctrl_c_leaves_nothing_behind() {
    alone(async {
        let shell = Shell::new("up_and_ctrl_c");
        let (mut child, said) = up(&shell, "up --free-ports").await;
        let status = shell.status("").await;
        assert_eq!((status.nodes.len(), status.balancers.len(), status.backends.len()), (3, 2, 3));
        assert_eq!(status.leaders().count(), 1, "{status:?}");
        assert!(status.nodes.iter().all(|node| node.role != Role::Down && node.revision > 0), "{status:?}");
        assert!(status.balancers.iter().all(|balancer| balancer.ready_endpoints == 3), "{status:?}");
        for url in status
            .nodes
            .iter()
            .map(|node| &node.rest)
            .chain(status.backends.iter().map(|backend| &backend.url))
        {
            assert!(said.contains(url.as_str()), "{url} is not in\n{said}");
        }
        for balancer in &status.balancers {
            rotates_over(&balancer.http, 3).await;
        }
        let pids = pids(&status);
        assert_eq!(pids.len(), 8);
        signal(&child, Signal::SIGINT);
        let ended =
            tokio::time::timeout(2 * PATIENCE, child.wait()).await.expect("it ends").expect("it is ours");
        assert!(ended.success(), "{ended}");
        assert!(pids.iter().all(|pid| !pid.is_running()), "something was left running");
        assert_eq!(temporary_dirs(&shell.home), 0, "its directory was left");
        assert!(shell.fails("status").await.contains("no cluster of yours is running"));
    });
}

fn temporary_dirs(home: &Path) -> usize {
    let entries = std::fs::read_dir(home).expect("it is ours").flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("flux-cluster-")).count()
}

#[test]
fn a_killed_supervisor_takes_everything_along_and_its_directory_starts_again() {
    alone(async {
        let shell = Shell::new("killed_supervisor");
        let dir = "--dir state";
        let (mut child, _) =
            up(&shell, &format!("{dir} up --free-ports --nodes 1 --balancers 1 --backends 1")).await;
        let before = shell.status(dir).await;
        assert!(shell.fails(&format!("{dir} up")).await.contains("already running"));
        // A paused process cannot read; it goes too.
        shell.ok(&format!("{dir} pause backend-1")).await;
        child.kill().await.expect("it is ours");
        all_gone(&pids(&before)).await;

        let refused = shell.fails(&format!("{dir} up --nodes 3")).await;
        assert!(refused.contains("1 node, 1 balancer and 1 backend"), "{refused}");
        let (mut child, _) = up(&shell, &format!("{dir} up")).await;
        let after = shell.status(dir).await;
        assert_eq!(after.nodes[0].rest, before.nodes[0].rest, "its ports are part of it");
        assert!(after.nodes[0].revision > before.nodes[0].revision, "it began anew: {after:?}");
        signal(&child, Signal::SIGTERM);
        child.wait().await.expect("it is ours");
        assert!(pids(&after).is_empty(), "something was left running");
        assert!(shell.home.join("state/cluster.json").exists(), "--dir keeps what it has");
    });
}

#[test]
fn a_detached_system_is_steered_by_name() {
    alone(async {
        let shell = Shell::new("detached");
        let said = shell.ok("up --detach --free-ports --balancers 1 --backends 2").await;
        assert!(said.contains("down"), "{said}");
        let status = shell.status("").await;

        let led = status.leaders().next().expect("it was ready").name.clone();
        assert_eq!(shell.ok("kill leader").await, format!("{led} killed\n"));
        let now = shell.status("").await;
        let node = now.nodes.iter().find(|node| node.name == led).expect("it is listed");
        assert_eq!((node.pid, node.role, node.revision), (None, Role::Down, 0));
        assert!(shell.fails(&format!("kill {led}")).await.contains(&format!("start {led}")));
        assert_eq!(shell.ok(&format!("start {led}")).await, format!("{led} ready\n"));
        assert!(shell.fails(&format!("start {led}")).await.contains("already running"));

        shell.ok("pause lb-1").await;
        assert_eq!(shell.status("").await.balancers[0].ready_endpoints, 0);
        shell.ok("resume lb-1").await;
        assert_eq!(shell.ok("stop backend-1 backend-2").await.lines().count(), 2);
        assert!(shell.ok("add backend").await.starts_with("backend-3 ready at http://"));
        eventually("only the new one is in rotation", PATIENCE, async || {
            let status = shell.status("").await;
            (status.balancers[0].ready_endpoints == 1).then_some(())
        })
        .await;
        rotates_over(&status.balancers[0].http, 1).await;

        assert!(shell.ok("status").await.contains("backend-3"));
        assert!(!shell.ok("logs node-1 -n 5").await.is_empty());
        assert!(shell.fails("logs node-9").await.contains("node-1, node-2, node-3"));
        let pids = pids(&shell.status("").await);
        assert_eq!(shell.ok("down").await, "everything is stopped\n");
        assert!(pids.iter().all(|pid| !pid.is_running()), "something was left running");
        assert_eq!(temporary_dirs(&shell.home), 0, "its directory was left");
    });
}

/// The runs that a directory's file knows of.
fn runs(file: &Path) -> Vec<Pid> {
    let Ok(bytes) = std::fs::read(file) else { return Vec::new() };
    let state: serde_json::Value = serde_json::from_slice(&bytes).expect("it is replaced in one step");
    let processes = state["processes"].as_array().expect("processes").iter();
    processes
        .filter_map(|process| serde_json::from_value(process["run"].clone()).expect("a pid or null"))
        .collect()
}

#[test]
fn an_interrupted_detached_launch_leaves_nothing_running() {
    alone(async {
        let shell = Shell::new("interrupted_detached");
        let mut command = shell.command("--dir state up --detach --free-ports");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let file = shell.home.join("state/cluster.json");
        eventually("something is started", PATIENCE, async || (!runs(&file).is_empty()).then_some(())).await;
        let meanwhile = shell.fails("--dir state up --detach").await;
        assert!(meanwhile.contains("already running"), "{meanwhile}");
        signal(&child, Signal::SIGINT);
        let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it ends");
        let said = String::from_utf8(ended.expect("it is ours").stderr).expect("text");
        assert!(said.contains("nothing is left running"), "{said}");
        let runs = runs(&file);
        assert!(!runs.is_empty() && runs.iter().all(|pid| !pid.is_running()), "{runs:?}");
        assert!(shell.fails("status").await.contains("no cluster of yours is running"));
    });
}

#[test]
fn of_two_launches_in_one_directory_one_is_refused() {
    alone(async {
        let shell = Shell::new("two_launches");
        let line = "--dir state up --detach --free-ports --nodes 1 --balancers 0 --backends 0";
        let (one, two) = tokio::join!(shell.run(line), shell.run(line));
        let refused = if one.status.success() { &two } else { &one };
        assert!(one.status.success() != two.status.success(), "{one:?}\n{two:?}");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("already running"), "{said}");
        assert_eq!(shell.status("--dir state").await.leaders().count(), 1);
        shell.ok("--dir state down").await;
    });
}

#[test]
fn a_launch_that_cannot_be_noted_as_recent_is_up_all_the_same() {
    alone(async {
        let shell = Shell::new("not_noted");
        // Where the list should be, a directory is.
        std::fs::create_dir_all(shell.home.join("flux-cluster/clusters")).expect("it is ours");
        let line = "--dir state up --detach --free-ports --nodes 1 --balancers 0 --backends 0";
        let output = shell.run(line).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("name it with --dir"), "{said}");
        assert_eq!(shell.status("--dir state").await.leaders().count(), 1);
        shell.ok("--dir state down").await;
    });
}

#[test]
fn strict_ports_refuse_a_taken_port_before_anything_starts() {
    alone(async {
        let shell = Shell::new("strict_ports");
        // If somebody else has it, all the better.
        let _taken = std::net::TcpListener::bind("127.0.0.1:8081");
        let said = shell.fails("up --strict-ports").await;
        assert!(said.contains("port 8081") && said.contains("node-1 rest"), "{said}");
        assert_eq!(temporary_dirs(&shell.home), 0, "a directory was left");
    });
}

#[test]
fn a_process_that_cannot_start_shows_its_last_words_and_the_rest_is_cleaned_up() {
    alone(async {
        let shell = Shell::new("cannot_start");
        let said = shell.fails("--dir state up --free-ports --nodes 1 --strategy upside_down").await;
        assert!(
            said.contains("lb-1 ended") && said.contains("upside_down") && said.contains("lb-1.log"),
            "{said}"
        );
        let state: serde_json::Value = serde_json::from_slice(
            &std::fs::read(shell.home.join("state/cluster.json")).expect("it was written"),
        )
        .expect("JSON");
        for process in state["processes"].as_array().expect("processes") {
            let run: Option<Pid> = serde_json::from_value(process["run"].clone()).expect("a pid or null");
            let gone = async || run.is_none_or(|pid| !pid.is_running()).then_some(());
            eventually("it is gone", Duration::from_secs(5), gone).await;
        }
    });
}
