//! Pids that cannot be confused, and a lifeline that ends with its owner.

use std::{collections::BTreeMap, path::Path, time::Duration};

use super::{Leash, Pid, lifeline, parse_stat, spawn};
use crate::{Kind, ProcessSpec};

const SOON: Duration = Duration::from_secs(10);

fn sh(dir: &Path, script: &str) -> ProcessSpec {
    ProcessSpec {
        name: "x".into(),
        kind: Kind::Balancer { http: String::new(), admin: String::new() },
        argv: ["sh", "-c", script].map(String::from).to_vec(),
        env: BTreeMap::new(),
        dir: dir.join("x"),
        netns: None,
    }
}

#[test]
fn a_stat_line_survives_a_nasty_program_name() {
    let tail = "S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
    assert_eq!(parse_stat(&format!("7 (a) b) ) {tail}")), Some(('S', 4711)));
    assert_eq!(parse_stat("7 (a"), None);
    assert_eq!(parse_stat("7 (a) S 1"), None);
}

#[test]
fn another_process_with_the_same_number_is_not_the_same() {
    let me = Pid::me();
    assert!(me.is_running());
    let predecessor = Pid { started: me.started - 1, ..me };
    assert!(!predecessor.is_running());
    assert!(!predecessor.terminate(), "would have hit the test itself");
}

#[tokio::test]
async fn the_end_of_the_lifeline_reaches_a_child() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let fifo = dir.path().join("lifeline");
    let owner = lifeline(&fifo).expect("a FIFO");
    let log = dir.path().join("x.log");
    let (pid, exit) =
        spawn(&sh(dir.path(), "echo up; cat; exit 3"), &log, &Leash::Lifeline(&fifo)).expect("sh runs");
    assert!(!pid.gone(Duration::from_millis(50)).await);
    drop(owner);
    assert!(pid.gone(SOON).await);
    assert_eq!(exit.status_within(SOON).await.and_then(|status| status.code()), Some(3));
    assert_eq!(std::fs::read_to_string(&log).expect("a log"), "up\n");
}

#[tokio::test]
async fn a_paused_process_runs_and_hears_that_it_shall_stop() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let spec = ProcessSpec { argv: vec!["sleep".into(), "100".into()], ..sh(dir.path(), "") };
    let (pid, _) = spawn(&spec, &dir.path().join("x.log"), &Leash::None).expect("sleep runs");
    assert!(pid.signal(nix::sys::signal::Signal::SIGSTOP));
    assert!(pid.is_running());
    assert!(pid.terminate());
    assert!(pid.gone(SOON).await);
}
