use super::*;
use crate::control::state::Intent;

fn record() -> Record {
    Record {
        id: "a/b".into(),
        service: "web".into(),
        url: "http://a:1".into(),
        health_path: "/h".into(),
        zone: "z".into(),
        version: "v".into(),
        weight: 3,
        intent: Intent::Drain,
        incarnation: 9,
    }
}

#[test]
fn what_was_saved_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("deep"), "lb/1").unwrap();
    assert_eq!(store.load().unwrap(), None);
    let saved = Saved::new(7, vec![record()]);
    store.save(&saved).unwrap();
    assert_eq!(store.load().unwrap(), Some(saved));
}

#[test]
fn damage_is_an_error_and_another_version_is_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), "lb").unwrap();
    std::fs::write(&store.path, b"{\"version\":1,").unwrap();
    assert!(store.load().is_err());
    let other = Saved { version: 2, ..Saved::new(7, vec![record()]) };
    store.save(&other).unwrap();
    assert_eq!(store.load().unwrap(), None);
}
