use expect_test::expect;
use tonic_types::StatusExt;

use super::*;
use crate::watch::{Batch, Shared, Snapshot};

fn every_error() -> Vec<Error> {
    let text = || "x".to_owned();
    vec![
        Error::NotReady { why: text() },
        Error::NoLeader,
        Error::Unknown { why: text() },
        Error::NotFound { id: text() },
        Error::Precondition { current: None },
        Error::Superseded { id: text(), current: 7 },
        Error::StaleSequence,
        Error::Invalid { field: text(), why: text() },
        Error::Overloaded { what: text() },
        Error::DiskFull { why: text() },
        Error::Unsupported { what: text() },
    ]
}

#[test]
fn the_table_of_errors_is_api() {
    let mut table = String::new();
    for error in every_error() {
        let wire = wire(&error);
        let line = format!(
            "{:<16} {} {:<18?} retryable={:<5} had_no_effect={:<5} {}\n",
            error.code(),
            wire.http.as_u16(),
            wire.grpc,
            error.is_retryable(),
            error.had_no_effect(),
            wire.title
        );
        table += &line;
    }
    expect![[r#"
        NOT_READY        503 Unavailable retryable=true  had_no_effect=true  not ready
        NO_LEADER        503 Unavailable retryable=true  had_no_effect=true  no leader
        UNKNOWN_OUTCOME  504 DeadlineExceeded retryable=true  had_no_effect=false outcome unknown
        NOT_FOUND        404 NotFound retryable=false had_no_effect=true  not registered
        PRECONDITION     412 Aborted retryable=false had_no_effect=true  precondition failed
        SUPERSEDED       409 FailedPrecondition retryable=false had_no_effect=true  superseded
        STALE_SEQUENCE   409 FailedPrecondition retryable=false had_no_effect=false stale sequence number
        INVALID          400 InvalidArgument retryable=false had_no_effect=true  invalid request
        OVERLOADED       429 ResourceExhausted retryable=true  had_no_effect=true  overloaded
        DISK_FULL        507 ResourceExhausted retryable=true  had_no_effect=true  disk full
        UNSUPPORTED      501 Unimplemented retryable=false had_no_effect=true  not supported
    "#]]
    .assert_eq(&table);
}

#[test]
fn unavailable_promises_that_nothing_happened() {
    for error in every_error() {
        let wire = wire(&error);
        assert_eq!(wire.grpc == Code::Unavailable, wire.http == StatusCode::SERVICE_UNAVAILABLE);
        assert!(wire.grpc != Code::Unavailable || (error.had_no_effect() && error.is_retryable()), "{error}");
    }
}

#[test]
fn a_status_says_what_to_do_and_where_to_go() {
    let [peer, grpc, rest] = ["http://p", "http://g", "http://r"].map(str::to_owned);
    let leader = Member { id: 2, name: "node-2".to_owned(), peer, grpc, rest, role: Role::Leader };
    let status = status(&Error::NotReady { why: "it starts".to_owned() }, Some(&leader));
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("NOT_READY", "registry.v1"));
    assert_eq!(
        (info.metadata["leader_grpc"].as_str(), info.metadata["leader_rest"].as_str()),
        ("http://g", "http://r")
    );
    assert_eq!(
        (info.metadata["retryable"].as_str(), info.metadata["had_no_effect"].as_str()),
        ("true", "true")
    );
    assert_eq!(status.get_details_retry_info().and_then(|retry| retry.retry_delay), Some(RETRY_AFTER));
}

fn record(number: u64, url_bytes: usize) -> Arc<Record> {
    let id = InstanceId::new(format!("web-{number:04}")).expect("valid");
    let service = ServiceName::new("web").expect("valid");
    let spec = Spec::new(id, service, "u".repeat(url_bytes));
    Arc::new(Record { spec: Arc::new(spec), reg_rev: number, mod_rev: number, changed: Arc::default() })
}

fn head() -> Header {
    Header {
        cluster_id: "c".into(),
        node_id: 1,
        term: 1,
        revision: 999,
        compact_revision: 0,
        leader: None,
        age: Duration::ZERO,
    }
}

fn revision(message: &pb::WatchResponse) -> u64 {
    message.header.as_ref().expect("every message has one").revision
}

fn reset(records: Vec<Arc<Record>>) -> Vec<pb::WatchResponse> {
    let turn = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().expect("one is free");
    watch_messages(&head(), Update::Reset { snapshot: Arc::new(Snapshot::new(70, records)), turn }).collect()
}

#[test]
fn a_snapshot_comes_in_parts_that_say_so() {
    let records: Vec<_> = (0..100).map(|number| record(number, 16_000)).collect();
    let messages = reset(records.clone());
    assert!(messages.len() > 5);
    let mut ids = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let Some(pb::watch_response::Kind::Reset(reset)) = &message.kind else { panic!("{message:?}") };
        assert_eq!((reset.first, reset.more), (index == 0, index + 1 < messages.len()));
        assert_eq!(revision(message), 70);
        ids.extend(reset.instances.iter().map(|instance| instance.id.clone()));
    }
    assert_eq!(ids, records.iter().map(|record| record.spec.id.to_string()).collect::<Vec<_>>());
    assert!(
        matches!(&reset(Vec::new())[..], [one] if matches!(&one.kind, Some(pb::watch_response::Kind::Reset(r)) if r.first && !r.more))
    );
}

#[test]
fn revisions_of_an_update_share_a_message_that_reaches_its_end() {
    let event = |revision| Event {
        revision,
        kind: EventKind::Expire,
        record: record(revision, 10),
        previous: None,
        cause: Arc::default(),
    };
    let batch = |revision| {
        Arc::new(Shared::new(Arc::new(Batch { revision, events: vec![event(revision), event(revision)] })))
    };
    let update = Update::Events { revision: 9, batches: vec![batch(3), batch(5)] };
    let messages: Vec<_> = watch_messages(&head(), update).collect();
    assert_eq!(messages.iter().map(revision).collect::<Vec<_>>(), [9]);
    let Some(pb::watch_response::Kind::Events(events)) = &messages[0].kind else { panic!("{messages:?}") };
    assert_eq!(events.events.iter().map(|event| event.revision).collect::<Vec<_>>(), [3, 3, 5, 5]);
}
