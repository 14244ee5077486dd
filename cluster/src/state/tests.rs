//! What is written is read back, and the right cluster is found.

use std::path::Path;

use super::{Recent, State, Template};
use crate::{Options, Pid};

fn state(owner: Option<Pid>, temporary: bool) -> State {
    let plan = crate::plan::plan(&Options::default(), Path::new("/d"), Path::new("/c"), 32_768, |_| true);
    State::new(temporary, owner, Template::default(), plan.expect("the default fits").specs)
}

#[test]
fn a_state_comes_back_as_it_was_written() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    assert_eq!(State::load(dir.path()).expect_err("none yet").kind(), std::io::ErrorKind::NotFound);
    let mut written = state(Some(Pid::me()), false);
    written.processes[0].run = Some(Pid::me());
    written.save(dir.path()).expect("the directory is ours");
    let read = State::load(dir.path()).expect("just written");
    assert_eq!(read.processes[0].running(), Some(Pid::me()));
    assert_eq!(read.processes[1].spec, written.processes[1].spec);
    written.format += 1;
    written.save(dir.path()).expect("the directory is ours");
    let refused = State::load(dir.path()).expect_err("newer than the program");
    assert!(refused.to_string().contains("newer"), "{refused}");
}

#[test]
fn the_most_recent_running_cluster_is_found_and_dead_temporary_ones_are_swept() {
    let base = tempfile::tempdir().expect("a temporary directory");
    let recent = Recent::at(base.path().join("recent")).expect("the directory is ours");
    let dead = Some(Pid { started: Pid::me().started - 1, ..Pid::me() });
    for (name, owner, temporary) in [
        ("old", Some(Pid::me()), false),
        ("live", Some(Pid::me()), true),
        ("kept", dead, false),
        ("gone", dead, true),
    ] {
        let dir = base.path().join(name);
        std::fs::create_dir(&dir).expect("the directory is ours");
        state(owner, temporary).save(&dir).expect("the directory is ours");
        recent.push(&dir).expect("the directory is ours");
    }
    assert_eq!(recent.running(), Some(base.path().join("live")));
    recent.sweep();
    assert!(!base.path().join("gone").exists());
    assert!(base.path().join("kept").exists());
    assert_eq!(recent.list(), ["old", "live", "kept"].map(|name| base.path().join(name)));
    recent.push(&base.path().join("old")).expect("the directory is ours");
    assert_eq!(recent.running(), Some(base.path().join("old")));
}
