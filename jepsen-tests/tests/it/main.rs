//! The real binary: verdicts on recorded histories, and one short run against real processes.

use std::path::Path;
use std::process::{Command, Output};

use expect_test::{Expect, expect};

const HEADER: &str = r#"{"format":"flux-history/1","seed":1,"nodes":["node-1"],"git":"unknown","argv":[],"start":"2026-11-22T10:00:00Z"}"#;

const GOOD: &str = r#"{"index":0,"time":1000,"process":0,"type":"invoke","f":"register","key":"web-1","value":10,"ttl_ms":3600000}
{"index":1,"time":2000,"process":0,"type":"ok","f":"register","key":"web-1","value":10,"revision":1}
{"index":2,"time":3000,"process":1,"type":"invoke","f":"read","key":"web-1","consistency":"linearizable"}
{"index":3,"time":4000,"process":1,"type":"ok","f":"read","key":"web-1","value":10,"revision":1,"reg_rev":1,"mod_rev":1}
{"index":4,"time":5000,"process":1,"type":"invoke","f":"list","key":null,"consistency":"linearizable","final":true}
{"index":5,"time":6000,"process":1,"type":"ok","f":"list","key":null,"value":[["web-1",10,1,1]],"revision":1,"final":true}
"#;

const TRANSCRIPT: &str = r#"{"time":10,"kind":"open","service":null,"endpoints":["http://127.0.0.1:1"]}
{"time":20,"kind":"reset","revision":0,"instances":[]}
{"time":1900,"kind":"events","revision":1,"events":[{"revision":1,"change":"put","entry":["web-1",10,1,1]}]}
"#;

fn jepsen() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jepsen"));
    command.env("RUST_BACKTRACE", "0");
    command
}

/// What `jepsen check` prints and whether it passes.
#[track_caller]
fn check(history: &str, transcript: &str, passes: bool, expected: Expect) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("history.jsonl");
    std::fs::write(&file, format!("{HEADER}\n{history}")).expect("write");
    std::fs::write(dir.path().join("watch-w1.jsonl"), transcript).expect("write");
    let output = jepsen().arg("check").arg(&file).output().expect("the binary runs");
    expected.assert_eq(text(&output).trim_end());
    assert_eq!(output.status.success(), passes);
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_good_history_passes() {
    check(
        GOOD,
        TRANSCRIPT,
        true,
        expect![
            "passed: 3 operations (3 ok, 0 failed, 0 unknown), 0 faults, 1 revisions seen by 1 watchers, 0 violations"
        ],
    );
}

#[test]
fn a_lost_write_is_found() {
    let lost = GOOD.replace(r#""value":[["web-1",10,1,1]]"#, r#""value":[]"#);
    check(
        &lost,
        TRANSCRIPT,
        false,
        expect![[r#"
        violation S3: line 5 lists revision 1 wrongly in 1 places: web-1 None where Record { value: Some(10), reg_rev: 1, mod_rev: 1 } was
        violation D1: the final read of the cluster (line 5) lacks web-1, acknowledged at 1 (line 1)
        FAILED: 3 operations (3 ok, 0 failed, 0 unknown), 0 faults, 1 revisions seen by 1 watchers, 2 violations"#]],
    );
}

#[test]
fn a_stale_read_is_found() {
    let stale = GOOD.replace(
        r#""f":"read","key":"web-1","value":10,"revision":1,"reg_rev":1,"mod_rev":1"#,
        r#""f":"read","key":"web-1""#,
    );
    check(
        &stale,
        TRANSCRIPT,
        false,
        expect![[r#"
        violation S3: line 3 did not find web-1, which was there
        FAILED: 3 operations (3 ok, 0 failed, 0 unknown), 0 faults, 1 revisions seen by 1 watchers, 1 violations"#]],
    );
}

#[test]
fn a_gap_in_a_watch_is_found() {
    let gap = TRANSCRIPT.replace(r#""kind":"events","revision":1"#, r#""kind":"events","revision":2"#);
    check(
        GOOD,
        &gap,
        false,
        expect![[r#"
        violation W3: no watcher was told of 2 up to 2
        FAILED: 3 operations (3 ok, 0 failed, 0 unknown), 0 faults, 1 revisions seen by 1 watchers, 1 violations"#]],
    );
}

#[test]
fn a_broken_history_is_refused() {
    check(
        &GOOD.replace("\"index\":3", "\"index\":4"),
        TRANSCRIPT,
        false,
        expect!["error: line 5: index 4 where 3 follows"],
    );
}

#[test]
fn wrong_usage_is_told_from_a_failed_check() {
    let output = jepsen().args(["run", "--nodes", "0"]).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

/// About half a minute: a cluster of real processes, 12 s of faults, the judges.
#[test]
fn a_short_run_passes_and_can_be_judged_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let run = dir.path().join("run");
    let ran = jepsen()
        .args(["run", "--seed", "3", "--time-limit-s", "12", "-v", "--dir"])
        .arg(&run)
        .output()
        .expect("the binary runs");
    assert!(ran.status.success(), "{}", text(&ran));
    let again = jepsen().arg("check").arg(run.join("history.jsonl")).output().expect("the binary runs");
    assert!(again.status.success(), "{}", text(&again));
    assert_eq!(last_line(&ran), last_line(&again));
    assert_all_gone(&run);

    // The same evidence with one message less must not pass: the judges look at what is there.
    let tape = run.join("watch-flux-1.jsonl");
    let told = std::fs::read_to_string(&tape).expect("every watcher has a transcript");
    let dropped =
        told.lines().filter(|line| line.contains(r#""kind":"events""#)).nth(20).expect("hundreds of events");
    std::fs::write(&tape, told.replacen(&format!("{dropped}\n"), "", 1)).expect("write");
    let less = jepsen().arg("check").arg(run.join("history.jsonl")).output().expect("the binary runs");
    assert!(text(&less).contains("violation W3: watch flux-1"), "{}", text(&less));
    assert_eq!(less.status.code(), Some(1));
}

fn last_line(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).lines().next_back().unwrap_or_default().to_owned()
}

/// No process of the run is left: none works in its directory.
fn assert_all_gone(run: &Path) {
    let run = run.canonicalize().expect("the run kept its directory");
    let left: Vec<_> = Path::new("/proc")
        .read_dir()
        .expect("Linux")
        .flatten()
        .filter(|entry| std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&run)))
        .map(|entry| entry.file_name())
        .collect();
    assert!(left.is_empty(), "still running: {left:?}");
}
