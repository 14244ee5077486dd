use futures_util::FutureExt;

use super::*;
use crate::catalog::{Event, EventKind, InstanceId, Provenance, Record, ServiceName, Spec};

fn record(id: &str, mod_rev: u64, url_bytes: usize) -> Arc<Record> {
    let (id, service) = (InstanceId::new(id).expect("valid"), ServiceName::new("web").expect("valid"));
    let changed = Arc::new(Provenance { by: "me".into(), why: "because".into(), at_ms: 9 });
    Arc::new(Record {
        spec: Spec::new(id, service, "u".repeat(url_bytes)).into(),
        reg_rev: 1,
        mod_rev,
        changed,
    })
}

fn batch(revision: u64) -> Arc<Shared> {
    let record = record(&format!("i-{revision}"), revision, 20);
    let cause = Arc::new(Provenance { by: "me".into(), ..Default::default() });
    let event = Event { revision, kind: EventKind::Put, record, previous: None, cause };
    Arc::new(Shared::new(Arc::new(Batch { revision, events: vec![event] })))
}

fn head(age: Duration, compact_revision: u64) -> Header {
    let leader = crate::registry::Member {
        id: 2,
        name: "two".into(),
        peer: "p".into(),
        grpc: "g".into(),
        rest: "r".into(),
        role: crate::registry::Role::Leader,
    };
    Header {
        cluster_id: "c".into(),
        node_id: 3,
        term: 7,
        revision: 99,
        compact_revision,
        leader: Some(leader),
        age,
    }
}

fn turn() -> OwnedSemaphorePermit {
    Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().expect("one is free")
}

/// The messages that a watcher reads of one update.
fn sent(head: Arc<Head>, update: Update) -> Vec<pb::WatchResponse> {
    let pieces = Messages {
        updates: stream::iter([Ok((head, update))]).boxed(),
        inbound: None,
        reset: None,
        ready: VecDeque::new(),
        ended: false,
    };
    let pieces: Vec<_> = pieces.collect::<Vec<_>>().now_or_never().expect("it is all there");
    let bytes: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.expect("no error")).collect();
    let (mut rest, mut messages) = (&bytes[..], Vec::new());
    while let [0, a, b, c, d, after @ ..] = rest {
        let (message, next) = after.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        messages.push(pb::WatchResponse::decode(message).expect("a message"));
        rest = next;
    }
    assert!(rest.is_empty(), "{rest:?} is left over");
    messages
}

/// What is put together from shared bytes is what the generated code would have written of the same update.
#[test]
fn what_is_sent_are_the_messages_of_the_contract() {
    let records: Vec<_> = (0..700).map(|n| record(&format!("r-{n}"), n, 1_000)).collect();
    let updates = || {
        [
            Update::Progress { revision: 0 },
            Update::Progress { revision: 300 },
            Update::Events { revision: 12, batches: vec![batch(9), batch(11)] },
            Update::Reset { snapshot: Arc::new(Snapshot::new(5, Vec::new())), turn: turn() },
            Update::Reset { snapshot: Arc::new(Snapshot::new(800, records.clone())), turn: turn() },
        ]
    };
    for header in [head(Duration::ZERO, 0), head(Duration::from_millis(1_234), 8)] {
        for (update, same) in updates().into_iter().zip(updates()) {
            let expected: Vec<_> = convert::watch_messages(&header, update).collect();
            assert_eq!(sent(Arc::new(Head::new(&header)), same), expected);
        }
    }
}

/// A thousand watchers of one service cost one encoding.
#[test]
fn an_event_is_encoded_once() {
    let shared = batch(4);
    let first = shared.wire(encode_events).as_ptr();
    for _ in 0..1_000 {
        assert_eq!(shared.wire(|_| unreachable!("it is there")).as_ptr(), first);
    }
    let snapshot = Snapshot::new(5, vec![record("a", 1, 10)]);
    snapshot.wire(0, |records| Bytes::from(vec![0; records.len()]));
    assert_eq!(snapshot.wire(0, |_| unreachable!("it is there")).len(), 1);
}
