use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use super::{
    found,
    recover::{Plan, REVISION_GAP, Step, beside, carry_out, was_interrupted},
    show,
};
use crate::{
    consensus::{self, Reading},
    metrics::Metrics,
    storage::{Disk, Sled, Store, Tree, survey},
};

/// A directory with a store of node 3 as a node leaves it: three members, commands a/1, b/2, a gone, and one more entry that
/// nobody knows to be committed.
fn store(dir: &Path, snapshot: bool) {
    consensus::offline_tests::write_example(dir, snapshot);
}

fn reading(dir: &Path) -> Reading {
    Reading::of(survey(dir).expect("it can be read"))
}

fn flaws(dir: &Path) -> Vec<String> {
    reading(dir).flaws.iter().map(|flaw| format!("{}: {}", flaw.place, flaw.what)).collect()
}

/// Every file with its content: what must not change.
fn bytes_of(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let content = std::fs::read(&path).expect("readable");
                files.push((path, content));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn a_sound_store_is_told_whole_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    store(dir.path(), false);
    let before = bytes_of(dir.path());
    let found = found(dir.path()).expect("it can be read");
    assert_eq!(found.reading.flaws, []);
    let lines: Vec<Value> = show::log_lines(&found.reading).collect();
    let brief: Vec<String> = lines
        .iter()
        .map(|line| {
            format!(
                "{} t{} {} rev={} {} by={} seq={} committed={}",
                line["index"],
                line["term"],
                line["command"]["do"].as_str().unwrap_or_default(),
                line["revision"],
                line["outcome"],
                line["by"],
                line["seq"],
                line["committed"],
            )
        })
        .collect();
    expect_test::expect![[r#"
        0 t0 members rev=null null by=null seq=null committed=true
        1 t1 blank rev=null null by=null seq=null committed=true
        2 t1 register rev=1 "registered" by="test" seq=7 committed=true
        2 t1 register rev=2 "registered" by="test" seq=null committed=true
        3 t1 deregister rev=3 "deregistered" by="test" seq=null committed=true
        4 t2 register rev=4 "registered" by="test" seq=null committed=false"#]]
    .assert_eq(&brief.join("\n"));
    assert_eq!(before, bytes_of(dir.path()), "inspecting changes nothing");
}

#[test]
fn a_running_store_and_no_store_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    survey(dir.path()).expect_err("there is none");
    store(dir.path(), false);
    let (held, _) = consensus::offline_tests::open(dir.path());
    let error = survey(dir.path()).expect_err("it is held").to_string();
    assert!(error.contains("a running node holds"), "{error}");
    consensus::offline_tests::close(held, dir.path());
    survey(dir.path()).expect("it is free again");
}

/// Damages one value, found by tree and key.
fn damage(dir: &Path, tree: Tree, key: &[u8]) {
    let mut disk = Sled::open(&dir.join("sled")).expect("it opens");
    let mut value = disk.get(tree, key).expect("readable").expect("it is there");
    let middle = value.len() / 2;
    value[middle] ^= 1;
    disk.put(tree, key, &value).and_then(|()| disk.sync()).expect("writable");
}

#[test]
fn damage_is_named_and_hides_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    store(dir.path(), false);
    damage(dir.path(), Tree::Log, &3_u64.to_be_bytes());
    let flaws = flaws(dir.path());
    assert!(flaws.iter().any(|flaw| flaw.starts_with("sled/log frame 3: frame 3 is damaged")), "{flaws:?}");
    assert!(flaws.iter().any(|flaw| flaw.contains("entries 3 to 3 are missing")), "{flaws:?}");
    let reading = reading(dir.path());
    let kept: Vec<u64> = reading.log.iter().map(|entry| entry.mark.index).collect();
    assert_eq!(kept, [0, 1, 2, 4], "what is whole is shown");
    let (at, catalog) = reading.catalog.as_ref().expect("it is known up to the damage");
    assert_eq!((at.map(|at| at.index), catalog.revision()), (Some(2), 2));
    let last = show::log_lines(&reading).last().expect("entry 4");
    assert_eq!(
        (&last["index"], &last["revision"]),
        (&Value::from(4), &Value::Null),
        "its revision is not guessed"
    );
}

/// A frame that nobody was promised is no damage; the same bytes without their sidecar are.
#[test]
fn the_sidecar_tells_torn_from_damaged() {
    let dir = tempfile::tempdir().expect("a directory");
    store(dir.path(), false);
    let mut disk = Sled::open(&dir.path().join("sled")).expect("it opens");
    disk.put(Tree::Log, &5_u64.to_be_bytes(), b"half a frame").and_then(|()| disk.sync()).expect("writable");
    drop(disk);
    let read = reading(dir.path());
    assert_eq!((read.flaws.len(), read.notes.len(), read.promised), (0, 1, Some(5)), "{:?}", read.flaws);
    std::fs::remove_file(dir.path().join("sidecar")).expect("it is there");
    let flaws = flaws(dir.path());
    assert!(flaws.iter().any(|flaw| flaw.starts_with("sidecar: it is missing")), "{flaws:?}");
    assert!(flaws.iter().any(|flaw| flaw.starts_with("sled/log frame 5")), "{flaws:?}");
}

/// What sled itself would not notice: the end of the log is gone, and everything that is left is whole.
#[test]
fn a_lost_tail_and_a_lost_vote_are_found() {
    let dir = tempfile::tempdir().expect("a directory");
    store(dir.path(), false);
    let mut disk = Sled::open(&dir.path().join("sled")).expect("it opens");
    disk.remove(Tree::Log, &4_u64.to_be_bytes()).expect("writable");
    disk.remove(Tree::Meta, b"ballot").and_then(|()| disk.sync()).expect("writable");
    drop(disk);
    let flaws = flaws(dir.path());
    assert!(flaws.iter().any(|flaw| flaw.contains("no frame that ends before index 5")), "{flaws:?}");
    assert!(
        flaws.iter().any(|flaw| flaw.contains("the newest vote is number 0, and number 1 was kept")),
        "{flaws:?}"
    );
    let vote = reading(dir.path()).vote.expect("the sidecar has it");
    assert_eq!((vote.term, vote.node), (2, 1));
}

#[test]
fn a_damaged_snapshot_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    store(dir.path(), true);
    assert_eq!(flaws(dir.path()), Vec::<String>::new());
    let mut key = 1_u64.to_be_bytes().to_vec();
    key.extend(0_u32.to_be_bytes());
    damage(dir.path(), Tree::Snapshot, &key);
    let flaws = flaws(dir.path());
    assert!(flaws.iter().any(|flaw| flaw.starts_with("sled/snapshot generation 1: its chunks")), "{flaws:?}");
    let why = Plan::of(&reading(dir.path()), None).expect_err("there is nothing to begin with");
    assert!(why.contains("the snapshot is damaged"), "{why}");
}

#[test]
fn a_database_that_does_not_open_is_a_flaw() {
    let dir = tempfile::tempdir().expect("a directory");
    store(dir.path(), false);
    let db = dir.path().join("sled/db");
    let length = std::fs::metadata(&db).expect("it is there").len();
    std::fs::File::options()
        .write(true)
        .open(&db)
        .and_then(|file| file.set_len(length / 3))
        .expect("writable");
    assert_ne!(flaws(dir.path()), Vec::<String>::new());
}

#[test]
fn a_plan_says_what_is_kept_and_what_may_be_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    store(dir.path(), false);
    let told = Plan::of(&reading(dir.path()), None).expect("it can be recovered").told(Path::new("/data"));
    for expected in [
        "node 3 of cluster old",
        "all 2 instances",
        "after entry 4 (term 2)",
        "entries 4 to 4, of which this node did not know whether they were committed",
        "acknowledged by nodes 1, 2 without this one, that is after entry 4",
        "/data.before-recover-N",
    ] {
        assert!(told.contains(expected), "{expected:?} is not in:\n{told}");
    }
}

/// Whatever step it stops after, the directory is the old store or the new one, whole, and starting again finishes.
#[test]
fn a_crash_after_any_step_leaves_a_usable_directory() {
    for with_snapshot in [false, true] {
        for crash in [Step::Marked, Step::Built, Step::Swapped, Step::Finished, Step::Kept] {
            let parent = tempfile::tempdir().expect("a directory");
            let dir = parent.path().join("data");
            store(&dir, with_snapshot);
            let plan = Plan::of(&reading(&dir), None).expect("it can be recovered");
            let mut stop = |step| if step == crash { Err(io::Error::other("crash")) } else { Ok(()) };
            carry_out(&dir, &plan, "first", &mut stop).expect_err("it crashes");
            let swapped = !matches!(crash, Step::Marked | Step::Built);
            assert_usable(&dir, if swapped { "first" } else { "old" }, crash);
            assert_eq!(
                was_interrupted(&dir).expect("readable"),
                matches!(crash, Step::Swapped | Step::Finished)
            );

            let args = crate::config::RecoverArgs { dir: dir.clone(), id: None, yes: true };
            if crash != Step::Kept {
                assert_eq!(
                    format!("{:?}", super::recover(&args)),
                    format!("{:?}", std::process::ExitCode::SUCCESS)
                );
            }
            assert!(!beside(&dir, "recovering").exists(), "after {crash:?}");
            let kept = beside(&dir, "before-recover-1");
            assert_usable(&kept, "old", crash);
            assert_ne!(cluster_of(&dir), "old", "after {crash:?}");
        }
    }
}

fn cluster_of(dir: &Path) -> String {
    reading(dir).identity.expect("it has one").cluster_id
}

#[track_caller]
fn assert_usable(dir: &Path, cluster: &str, crash: Step) {
    let reading = reading(dir);
    assert_eq!(reading.flaws, [], "after {crash:?}");
    assert_eq!(reading.identity.as_ref().expect("it has one").cluster_id, cluster, "after {crash:?}");
    let (at, catalog) = reading.catalog.as_ref().expect("it has one");
    assert_eq!((at.map(|at| at.index), catalog.len()), (Some(4), 2), "after {crash:?}");
    if cluster != "old" {
        assert_eq!(catalog.revision(), 4 + REVISION_GAP);
        assert_eq!(reading.members.iter().map(|peer| (peer.id, peer.voter)).collect::<Vec<_>>(), [(3, true)]);
    }
    // A running node would open it too.
    let (store, recovered) =
        Store::open(dir, &consensus::sound, Arc::new(Metrics::new()), |_| ()).expect("a node opens it");
    assert!(recovered.vote.is_some(), "it never votes twice in a term");
    consensus::offline_tests::close(store, dir);
}

#[test]
fn another_id_is_taken_over() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = parent.path().join("data");
    store(&dir, true);
    let plan = Plan::of(&reading(&dir), Some(9)).expect("it can be recovered");
    carry_out(&dir, &plan, "new", &mut |_| Ok(())).expect("it works");
    let reading = reading(&dir);
    assert_eq!(reading.identity.expect("it has one").node_id, 9);
    assert_eq!(reading.members.iter().map(|peer| peer.id).collect::<Vec<_>>(), [9]);
}
