use super::*;
use crate::control::record::{Intent, Probe};
use crate::pool::Protocol;

fn record() -> Record {
    Record {
        id: "a/b".into(),
        service: "web".into(),
        url: "http://a:1".into(),
        health_path: "/h".into(),
        zone: "z".into(),
        version: "v".into(),
        weight: 3,
        probe: Some(Probe::Grpc),
        probe_service: "shop.Cart".into(),
        protocol: Protocol::H2c,
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

/// Files from before there were zones, versions and kinds of probes.
#[test]
fn a_file_of_an_older_balancer_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), "lb").unwrap();
    let old = r#"{"version":1,"saved_at_ms":1,"revision":7,"records":[{"id":"a","service":"web",
        "url":"http://a:1","health_path":"","weight":3,"intent":"serve","incarnation":9}]}"#;
    std::fs::write(&store.path, old).unwrap();
    let loaded = store.load().unwrap().unwrap().records.remove(0);
    assert_eq!((loaded.id.as_str(), loaded.zone.as_str(), loaded.version.as_str()), ("a", "", ""));
    assert_eq!((loaded.probe, loaded.probe_service.as_str()), (None, ""));
}
