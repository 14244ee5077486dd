use std::collections::BTreeMap;
use std::fmt::Write as _;

use expect_test::{Expect, expect};
use futures_util::stream;
use proptest::prelude::*;
use wire::watch_response::Kind;

use super::*;
use crate::View;
use crate::calls::Known;
use crate::metrics::Metrics;

fn header(cluster_id: &str, revision: u64) -> Option<wire::ResponseHeader> {
    Some(wire::ResponseHeader { cluster_id: cluster_id.to_owned(), revision, ..Default::default() })
}

fn record(id: &str, revision: u64) -> wire::Instance {
    wire::Instance { id: id.to_owned(), service: "pay".into(), mod_rev: revision, ..Default::default() }
}

fn reset(cluster_id: &str, revision: u64, ids: &[&str], first: bool, more: bool) -> wire::WatchResponse {
    let instances = ids.iter().map(|id| record(id, revision)).collect();
    let kind = Kind::Reset(wire::WatchReset { instances, more, first });
    wire::WatchResponse { header: header(cluster_id, revision), kind: Some(kind) }
}

fn progress(cluster_id: &str, revision: u64) -> wire::WatchResponse {
    let kind = Kind::Progress(wire::WatchProgress {});
    wire::WatchResponse { header: header(cluster_id, revision), kind: Some(kind) }
}

fn event_of(revision: u64, id: &str, kind: wire::event::Kind) -> wire::Event {
    wire::Event { revision, kind: kind.into(), instance: Some(record(id, revision)), cause: None }
}

fn events(cluster_id: &str, reached: u64, events: Vec<wire::Event>) -> wire::WatchResponse {
    let kind = Kind::Events(wire::WatchEvents { events });
    wire::WatchResponse { header: header(cluster_id, reached), kind: Some(kind) }
}

#[test]
fn a_watch_begins_with_no_less_than_is_known() {
    check(
        "
        open
        open c1 0
        open c1 7
        reset c1 8 a
        open c1 9
        open c2 9
        ",
        expect![[r#"
            open                     after 0 of ""
            open c1 0                after 0 of ""
            open c1 7                after 0 of "c1", at least 7
            reset c1 8 a             tell reset 8 a
            open c1 9                after 8 of "c1"
            open c2 9                after 8 of "c1"
        "#]],
    );
}

/// Runs a script of messages against a fresh cursor. `events c1 9 7+a 8-b` reaches 9 with a put of a at 7 and an
/// expiry of b at 8. `open` shows how a stream resumes.
fn check(script: &str, want: Expect) {
    let mut cursor = Cursor::default();
    let mut out = String::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let revision = words.get(2).map_or(0, |text| text.parse().expect("a revision"));
        let rest = words.get(3..).unwrap_or_default();
        let message = match words[0] {
            // `open c1 7`: answers of cluster c1 have named revision 7.
            "open" => {
                let known = words.get(1).map_or("", |cluster_id| cluster_id).to_owned();
                let open = cursor.open("pay", "lb-1", Known { cluster_id: known, revision });
                write!(out, "{line:<24} after {} of {:?}", open.after_revision, open.cluster_id)
                    .expect("strings take everything");
                let least = (open.min_revision > 0).then(|| format!(", at least {}", open.min_revision));
                writeln!(out, "{}", least.unwrap_or_default()).expect("strings take everything");
                continue;
            }
            "reset" => reset(words[1], revision, rest, true, false),
            "first" => reset(words[1], revision, rest, true, true),
            "middle" => reset(words[1], revision, rest, false, true),
            "last" => reset(words[1], revision, rest, false, false),
            "progress" => progress(words[1], revision),
            "events" => events(words[1], revision, rest.iter().map(|text| change(text)).collect()),
            other => panic!("unknown message {other}"),
        };
        let shown = match cursor.take(message) {
            Verdict::Tell(Update::Reset { revision, instances }) => {
                let ids: Vec<&str> = instances.iter().map(|i| i.id.as_str()).collect();
                format!("tell reset {revision} {}", ids.join(" "))
            }
            Verdict::Tell(Update::Events { revision, events }) => {
                let shown = |e: &Event| format!(" {}:{:?}:{}", e.revision, e.kind, e.instance.id);
                format!("tell events {revision}{}", events.iter().map(shown).collect::<String>())
            }
            Verdict::Tell(Update::Progress { revision }) => format!("tell progress {revision}"),
            Verdict::Pass => "pass".to_owned(),
            Verdict::Leave(why) => format!("leave: {why}"),
        };
        writeln!(out, "{line:<24} {}", shown.trim_end()).expect("strings take everything");
    }
    want.assert_eq(&out);
}

fn change(text: &str) -> wire::Event {
    let at = text.find(['+', '-']).expect("REVISION+ID or REVISION-ID");
    let kind = if &text[at..=at] == "+" { wire::event::Kind::Put } else { wire::event::Kind::Expire };
    event_of(text[..at].parse().expect("a revision"), &text[at + 1..], kind)
}

#[test]
fn events_are_told_once_and_in_order() {
    check(
        "
        open
        events c1 5 5+a
        reset c1 5 a b
        events c1 6 6+c
        events c1 7 5+a 6+c 7-a
        events c1 7 6+c 7-a
        progress c1 9
        progress c1 8
        events c1 12 9+x 10+d 10-b
        open
        events c1 14 13+e 12+f
        events c2 20 20+z
        ",
        expect![[r#"
            open                     after 0 of ""
            events c1 5 5+a          leave: changes came before the snapshot they belong to
            reset c1 5 a b           tell reset 5 a b
            events c1 6 6+c          tell events 6 6:Put:c
            events c1 7 5+a 6+c 7-a  tell events 7 7:Expire:a
            events c1 7 6+c 7-a      pass
            progress c1 9            tell progress 9
            progress c1 8            pass
            events c1 12 9+x 10+d 10-b tell events 10 10:Put:d 10:Expire:b
            open                     after 10 of "c1"
            events c1 14 13+e 12+f   leave: events came out of order
            events c2 20 20+z        leave: changes came before the snapshot they belong to
        "#]],
    );
}

#[test]
fn a_snapshot_counts_when_it_is_whole() {
    check(
        "
        middle c1 5 a
        first c1 5 a
        middle c1 5 b
        last c1 5 c
        first c1 9 a
        progress c1 9
        open
        last c1 9 b
        reset c1 9
        ",
        expect![[r#"
            middle c1 5 a            leave: a snapshot began in its middle
            first c1 5 a             pass
            middle c1 5 b            pass
            last c1 5 c              tell reset 5 a b c
            first c1 9 a             pass
            progress c1 9            leave: a snapshot broke off
            open                     after 5 of "c1"
            last c1 9 b              leave: a snapshot began in its middle
            reset c1 9               tell reset 9
        "#]],
    );
}

#[test]
fn a_node_behind_is_left_and_another_cluster_is_believed() {
    check(
        "
        reset c1 50 a
        reset c1 49
        first c1 49
        progress c1 49
        open
        reset c1 50 a b
        reset c2 3 z
        progress c2 4
        progress c1 60
        ",
        expect![[r#"
            reset c1 50 a            tell reset 50 a
            reset c1 49              leave: the node is behind what is held
            first c1 49              leave: the node is behind what is held
            progress c1 49           pass
            open                     after 50 of "c1"
            reset c1 50 a b          tell reset 50 a b
            reset c2 3 z             tell reset 3 z
            progress c2 4            tell progress 4
            progress c1 60           leave: changes came before the snapshot they belong to
        "#]],
    );
}

/// What the whole history up to `upto` amounts to.
fn replay(history: &[wire::Event], upto: u64) -> BTreeMap<String, u64> {
    let mut held = BTreeMap::new();
    for event in history.iter().filter(|event| event.revision <= upto) {
        let record = event.instance.as_ref().expect("every event here has a record");
        match event.kind() {
            wire::event::Kind::Put => held.insert(record.id.clone(), record.mod_rev),
            _ => held.remove(&record.id),
        };
    }
    held
}

/// All that a node which has applied `applied` sends to a watch that opens so: in pieces of `piece` revisions,
/// beginning `again` revisions too early, and with a snapshot if it was asked for what it does not know.
fn sent(
    history: &[wire::Event],
    applied: u64,
    open: &wire::WatchOpen,
    piece: u64,
    again: u64,
) -> Vec<wire::WatchResponse> {
    let mut messages = Vec::new();
    let mut from = open.after_revision;
    if open.cluster_id != "c1" || from > applied || again == 0 {
        let instances: Vec<wire::Instance> =
            replay(history, applied).iter().map(|(id, revision)| record(id, *revision)).collect();
        let parts: Vec<_> = instances.chunks(2).map(<[_]>::to_vec).chain([vec![]]).collect();
        let last = parts.len() - 1;
        for (at, instances) in parts.into_iter().enumerate() {
            let kind = Kind::Reset(wire::WatchReset { instances, more: at < last, first: at == 0 });
            messages.push(wire::WatchResponse { header: header("c1", applied), kind: Some(kind) });
        }
        from = applied;
    }
    from = from.saturating_sub(again.saturating_sub(1));
    while from < applied {
        let to = (from + piece).min(applied);
        let within = |e: &&wire::Event| e.revision > from && e.revision <= to;
        messages.push(events("c1", to, history.iter().filter(within).cloned().collect()));
        from = to;
    }
    messages.push(progress("c1", applied));
    messages
}

proptest! {
    /// A watch that wanders between nodes which are behind, repeat themselves, and break off anywhere, always holds
    /// exactly what the history up to its revision amounts to, and its revision never falls.
    #[test]
    fn a_watch_holds_the_history_up_to_its_revision(
        changes in prop::collection::vec((0u8..6, any::<bool>(), any::<bool>()), 1..40),
        streams in prop::collection::vec((0u64..45, 1u64..5, 0u64..4, 0usize..8), 1..25),
    ) {
        let mut revision = 0;
        let history: Vec<wire::Event> = changes.into_iter().map(|(id, put, joins)| {
            revision += u64::from(revision == 0 || !joins);
            let kind = if put { wire::event::Kind::Put } else { wire::event::Kind::Delete };
            event_of(revision, &format!("pay-{id}"), kind)
        }).collect();
        let (mut cursor, mut view) = (Cursor::default(), View::default());
        for (applied, piece, again, whole) in streams {
            let open = cursor.open("", "", Known::default());
            prop_assert_eq!(open.after_revision, view.revision());
            for message in sent(&history, applied.min(revision), &open, piece, again).into_iter().take(whole) {
                let update = match cursor.take(message) {
                    Verdict::Tell(update) => update,
                    Verdict::Pass => continue,
                    Verdict::Leave(_) => break,
                };
                let before = view.revision();
                view.apply(&update);
                prop_assert!(view.revision() >= before, "went back from {} by {:?}", before, update);
                let held: BTreeMap<String, u64> =
                    view.instances().iter().map(|(id, i)| (id.clone(), i.mod_rev)).collect();
                prop_assert_eq!(&held, &replay(&history, view.revision()), "at {}", view.revision());
            }
        }
    }
}

/// A follower whose streams are given to it, and the holder's end.
fn follower() -> (Follower, mpsc::Receiver<Update>) {
    let node = Node::parse("127.0.0.1:1").expect("an endpoint");
    let calls = Calls::new(vec![node], Transport::Grpc, "t".into(), Duration::from_secs(1), Metrics::new());
    let (updates, incoming) = mpsc::channel(UPDATES_WAITING_MAX);
    let status = WatchStatus {
        connected: false,
        transport: Transport::Auto,
        endpoint: String::new(),
        revision: 0,
        last_heard: Instant::now(),
    };
    let follower = Follower {
        calls: Arc::new(calls),
        service: String::new(),
        cursor: Cursor::default(),
        updates,
        status: watch::Sender::new(status),
        looked_for_fresher: None,
    };
    (follower, incoming)
}

#[tokio::test]
async fn a_stream_is_dead_when_it_is_silent_and_not_before() {
    let (mut follower, _incoming) = follower();
    let begun = tokio::time::Instant::now();
    let pause = Duration::from_millis(100);
    let messages = [reset("c1", 5, &[], true, false), progress("c1", 5), progress("c1", 6)];
    let spoken = stream::iter(messages).then(|message| async move {
        sleep(pause).await;
        Ok(message)
    });
    let Err(left) = follower.read(spoken.chain(stream::pending())).await;
    assert_eq!((left.why.as_str(), left.unreachable), ("silent for 3s", true));
    assert!(begun.elapsed() >= 3 * pause + SILENCE_MAX, "left after {:?}", begun.elapsed());
    assert_eq!(follower.cursor.revision(), 6);
}

#[tokio::test]
async fn a_slow_holder_holds_the_stream_back_and_loses_nothing() {
    let (mut follower, mut incoming) = follower();
    let many = UPDATES_WAITING_MAX as u64 * 3;
    let put = |revision| events("c1", revision, vec![event_of(revision, "a", wire::event::Kind::Put)]);
    let messages: Vec<_> =
        std::iter::once(reset("c1", 1, &[], true, false)).chain((2..=many).map(put)).map(Ok).collect();
    let reading = tokio::spawn(async move { follower.read(stream::iter(messages)).await });
    while incoming.len() < UPDATES_WAITING_MAX {
        tokio::task::yield_now().await;
    }
    let mut view = View::default();
    for revision in 1..=many {
        view.apply(&incoming.recv().await.expect("the stream goes on"));
        assert_eq!(view.revision(), revision);
    }
    let Err(left) = reading.await.expect("no panic");
    assert_eq!(left.why, "the node ended the stream");
}

#[tokio::test]
async fn a_node_without_a_leader_is_left_once_in_a_while() {
    let (mut follower, _incoming) = follower();
    follower.calls.nodes().learn([Node::parse("127.0.0.1:2").expect("an endpoint")]);
    let stale = || {
        let mut message = progress("c1", 5);
        message.header.as_mut().expect("it has one").age_ms = 4000;
        message
    };
    follower.take(reset("c1", 5, &[], true, false)).await.expect("fresh");
    let left = follower.take(stale()).await.expect_err("stale");
    assert_eq!((left.why.as_str(), left.unreachable), ("the node has not heard of a leader for 4s", false));
    follower.take(stale()).await.expect("it was just left for that");
    follower.looked_for_fresher = tokio::time::Instant::now().checked_sub(FRESHER_EVERY);
    follower.take(stale()).await.expect_err("stale still, and long ago");
}
