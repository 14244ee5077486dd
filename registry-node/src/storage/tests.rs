//! The store on a disk that loses what was not synced and flips what it is told to flip, and on sled.

use std::{io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::poll_immediate;
use proptest::prelude::*;

use self::memory::Memory;
use super::{
    Disk, Error, Purged, Recovered, Slot, Snapshot, Store, Tree,
    frame::{self, FRAME_BYTES_MAX},
    sidecar::{self, Claim, Record, Sidecar, State},
    writer::Ballot,
};

mod crash;
pub(super) mod memory;

/// Opens it and lets a thread work for it, as [`Store::open`] does.
fn open_with(
    medium: &Memory,
    on_failure: impl FnOnce(&io::Error) + Send + 'static,
) -> Result<(Store, Recovered), Error> {
    let (store, found, work) =
        Store::in_task(medium.clone(), Path::new("memory"), &|_| Ok(()), Arc::default(), on_failure, || {
            Duration::ZERO
        })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    std::thread::spawn(move || runtime.block_on(work));
    Ok((store, found))
}

fn open(medium: &Memory) -> Result<(Store, Recovered), Error> {
    open_with(medium, |_| ())
}

fn entry(index: u64) -> Bytes {
    Bytes::from(format!("entry {index}").repeat(1 + (index % 7) as usize))
}

async fn append(store: &Store, range: std::ops::Range<u64>) -> io::Result<()> {
    let (reply, answer) = tokio::sync::oneshot::channel();
    let entries = range.clone().map(entry).collect();
    store.append(range.start, entries, Box::new(move |result| drop(reply.send(result)))).await?;
    answer.await.unwrap_or_else(|_| Err(super::gone())) // dropped unanswered by a writer that has ended
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

/// A mark waits for the next append, and at the latest for a clean stop.
#[tokio::test]
async fn a_commit_mark_goes_with_the_next_append_or_with_the_end() {
    let committed = |disk: &Memory| open(&disk.killed()).expect("readable").1.committed;
    let disk = Memory::default();
    let none = || Duration::ZERO;
    let path = Path::new("memory");
    let work = Store::in_task(disk.clone(), path, &|_| Ok(()), Arc::default(), |e| panic!("{e}"), none);
    let (store, found, work) = work.expect("an empty disk");
    assert_eq!(found.committed, None);
    let seen = disk.clone();
    let writes = async move {
        append(&store, 0..3).await.expect("appended");
        store.note_committed(b"1".to_vec());
        store.note_committed(b"2".to_vec());
        assert_eq!(committed(&seen), None);
        append(&store, 3..4).await.expect("appended");
        assert_eq!(committed(&seen).as_deref(), Some(&b"2"[..]));
        store.note_committed(b"3".to_vec());
        drop(store);
    };
    tokio::join!(writes, work);
    assert_eq!(committed(&disk).as_deref(), Some(&b"3"[..]));
}

/// What a store must hold.
#[derive(Debug, Default)]
struct Model {
    begin: u64,
    end: u64,
    /// The largest commit mark that has reached the disk.
    committed: u64,
    vote: Option<Vec<u8>>,
    purged: Option<Purged>,
    snapshot: Option<Snapshot>,
}

impl Model {
    /// Opens what a cut has left; `torn` may or may not have taken the snapshot's place.
    fn reopen(&mut self, disk: &Memory, torn: Option<Snapshot>) -> Store {
        let (store, found) = open(disk).expect("a cut leaves the store readable");
        assert_eq!(found.log, self.begin..self.end);
        assert_eq!((&found.vote, &found.purged), (&self.vote, &self.purged));
        assert!(
            found.snapshot == self.snapshot || (torn.is_some() && found.snapshot == torn),
            "{:?}",
            found.snapshot
        );
        self.snapshot = found.snapshot;
        store
    }
}

/// A snapshot of up to 4 chunks that reaches further the later it is taken.
fn snapshot(number: usize, value: u8) -> Snapshot {
    let chunks = (0..value % 5).map(|n| Bytes::from(vec![value, n])).collect();
    Snapshot { index: number as u64 + 1, meta: vec![value], chunks }
}

#[derive(Debug, Clone)]
enum Step {
    Append(u64),
    Truncate(u64),
    Purge(u64),
    Vote(u8),
    Snapshot(u8),
    /// How much of what was not synced is kept, of the database and of the sidecar.
    PowerCut(f64, f64),
    /// A cut in the middle of an append and the commit mark that follows it, before the step of this number.
    TornAppend(u64, usize, f64, f64),
    /// A cut in the middle of saving a snapshot.
    TornSnapshot(u8, usize, f64, f64),
    /// A cut in the middle of dropping so many entries.
    TornTruncate(u64, usize, f64, f64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let part = || 0.0..=1.0f64;
    let step = prop_oneof![
        4 => (1u64..40).prop_map(Step::Append),
        1 => (0u64..30).prop_map(Step::Truncate),
        1 => (0u64..40).prop_map(Step::Purge),
        1 => any::<u8>().prop_map(Step::Vote),
        1 => any::<u8>().prop_map(Step::Snapshot),
        2 => (part(), part()).prop_map(|(kept, sidecar)| Step::PowerCut(kept, sidecar)),
        2 => (1u64..40, 0usize..5, part(), part()).prop_map(|(n, step, kept, sidecar)| Step::TornAppend(n, step, kept, sidecar)),
        1 => (any::<u8>(), 0usize..9, part(), part()).prop_map(|(v, step, kept, sidecar)| Step::TornSnapshot(v, step, kept, sidecar)),
        1 => (1u64..30, 0usize..9, part(), part()).prop_map(|(n, step, kept, sidecar)| Step::TornTruncate(n, step, kept, sidecar)),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever was acknowledged is there after a power cut, exactly, and no cut makes a store unreadable.
    #[test]
    fn acknowledged_steps_survive_power_cuts(steps in steps()) {
        run(async {
            let mut disk = Memory::default();
            let mut store = open(&disk).expect("an empty disk").0;
            let mut model = Model::default();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Append(count) => {
                        append(&store, model.end..model.end + count).await.expect("appended");
                        model.end += count;
                    }
                    Step::Truncate(back) => {
                        model.end = model.end.saturating_sub(back).max(model.begin);
                        store.truncate_from(model.end).await.expect("truncated");
                    }
                    Step::Purge(forward) => {
                        // Past the end too: a node that installs a snapshot is ahead of its log.
                        model.begin += forward + 1;
                        model.end = model.end.max(model.begin);
                        let purged = Purged { index: model.begin - 1, mark: vec![model.begin as u8] };
                        store.purge(purged.clone()).await.expect("purged");
                        model.purged = Some(purged);
                    }
                    Step::Vote(value) => {
                        store.put(Slot::Vote, vec![value; 3]).await.expect("kept");
                        model.vote = Some(vec![value; 3]);
                    }
                    Step::Snapshot(value) => {
                        model.snapshot = Some(snapshot(number, value));
                        store.save_snapshot(snapshot(number, value)).await.expect("saved");
                        // One that was built before it and comes after it changes nothing.
                        store.save_snapshot(Snapshot { index: number as u64, ..snapshot(0, !value) }).await.expect("ignored");
                    }
                    Step::PowerCut(kept, sidecar) => {
                        disk = disk.power_cut(kept, sidecar);
                        store = model.reopen(&disk, None);
                    }
                    Step::TornAppend(count, step, kept, sidecar) => {
                        disk.fail_after(step);
                        let middle = model.end + count;
                        let torn = append(&store, model.end..middle);
                        let next = async {
                            store.note_committed(middle.to_be_bytes().to_vec());
                            append(&store, middle..middle + 1).await
                        };
                        // Both in one batch, or not; either may meet the failure.
                        let (torn, next) = tokio::join!(torn, next);
                        model.end += if torn.is_ok() { count } else { 0 };
                        model.end += u64::from(next.is_ok());
                        disk = disk.power_cut(kept, sidecar);
                        let (_, found) = open(&disk.killed()).expect("readable");
                        let committed = found.committed.map_or(0, |mark| u64::from_be_bytes(mark.try_into().expect("8 bytes")));
                        assert!(found.log.end >= model.end && (committed <= found.log.end || committed <= model.committed), "{committed} {:?}", found.log);
                        model.committed = model.committed.max(committed);
                        model.end = found.log.end;
                        store = model.reopen(&disk, None);
                    }
                    Step::TornSnapshot(value, step, kept, sidecar) => {
                        disk.fail_after(step);
                        let torn = snapshot(number, value);
                        if store.save_snapshot(torn.clone()).await.is_ok() {
                            model.snapshot = Some(torn.clone());
                        }
                        disk = disk.power_cut(kept, sidecar);
                        store = model.reopen(&disk, Some(torn));
                    }
                    Step::TornTruncate(back, step, kept, sidecar) => {
                        disk.fail_after(step);
                        let to = model.end.saturating_sub(back).max(model.begin);
                        if store.truncate_from(to).await.is_ok() {
                            model.end = to;
                        }
                        disk = disk.power_cut(kept, sidecar);
                        let (_, found) = open(&disk.killed()).expect("readable");
                        assert!((to..=model.end).contains(&found.log.end), "{to} {} {:?}", model.end, found.log);
                        model.end = found.log.end;
                        store = model.reopen(&disk, None);
                    }
                }
                let read = store.read(model.begin..model.end).await.expect("readable");
                assert_eq!(read, (model.begin..model.end).map(entry).collect::<Vec<_>>());
            }
        });
    }

    /// A frame never decodes to anything but what was written.
    #[test]
    fn a_changed_frame_is_refused(at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
        let entries: Vec<Bytes> = (0..9).map(entry).collect();
        let (mut bytes, _) = frame::encode(5, 17, &entries);
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        prop_assert!(frame::decode(5, &Bytes::from(bytes)).is_err());
    }
}

#[test]
fn frames_on_disk_keep_their_bytes() {
    let (bytes, crc) = frame::encode(5, 17, &[Bytes::from_static(b"ab"), Bytes::from_static(b"")]);
    expect_test::expect!["[31, 58, 4c, 46, 1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 11, 0, 0, 0, a, 0, 0, 0, 2, 0, 0, 0, 61, 62, 0, 0, 0, 0, 70, 29, 47, 26]"]
    .assert_eq(&format!("{bytes:x?}"));
    let frame = frame::decode(5, &Bytes::from(bytes)).expect("sound");
    assert_eq!((frame.first, frame.last(), frame.previous, frame.crc), (5, 6, 17, crc));
}

#[test]
fn entries_are_spread_over_frames_that_stay_small() {
    run(async {
        let disk = Memory::default();
        let (store, _) = open(&disk).expect("an empty disk");
        let big: Vec<Bytes> = (0..40).map(|n| Bytes::from(vec![n; 30_000])).collect();
        let (reply, answer) = tokio::sync::oneshot::channel();
        store.append(0, big.clone(), Box::new(move |r| drop(reply.send(r)))).await.expect("queued");
        answer.await.expect("answered").expect("written");
        let largest = disk.scan(Tree::Log, &[]).map(|p| p.expect("readable").1.len()).max();
        assert!(largest.expect("frames") <= FRAME_BYTES_MAX);
        assert_eq!(store.read(3..37).await.expect("readable"), big[3..37]);
    });
}

#[test]
fn appends_go_on_while_a_snapshot_is_saved() {
    run(async {
        let disk = Memory::default();
        let (store, _) = open(&disk).expect("an empty disk");
        let large = |index| Snapshot { index, meta: vec![1], chunks: (0..1_000).map(entry).collect() };
        let order = std::cell::RefCell::new(Vec::new());
        let save = async {
            store.save_snapshot(large(1)).await.expect("saved");
            order.borrow_mut().push("saved");
        };
        let add = async {
            append(&store, 0..3).await.expect("appended");
            order.borrow_mut().push("appended");
        };
        tokio::join!(save, add);
        assert_eq!(order.into_inner(), ["appended", "saved"]);

        // Given up half-way: the one before is still whole, and the next one leaves nothing of either.
        assert!(poll_immediate(store.save_snapshot(large(2))).await.is_none());
        append(&store, 3..6).await.expect("appended");
        assert_eq!(open(&disk.killed()).expect("sound").1.snapshot, Some(large(1)));
        let small = Snapshot { chunks: (0..90).map(entry).collect(), ..large(2) };
        store.save_snapshot(small.clone()).await.expect("saved");
        assert_eq!(disk.scan(Tree::Snapshot, &[]).count(), 90);
        assert_eq!(open(&disk.killed()).expect("sound").1.snapshot, Some(small));
    });
}

/// The writer runs when this test waits, and only then: which of them is quicker decides nothing.
#[test]
fn appends_go_on_while_a_snapshot_is_loaded() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let (disk, path, none) = (Memory::default(), Path::new("memory"), || Duration::ZERO);
        let opened = Store::in_task(disk, path, &|_| Ok(()), Arc::default(), |e| panic!("{e}"), none);
        let (store, _, work) = opened.expect("an empty disk");
        tokio::spawn(work);
        let large = |index: u64| Snapshot {
            index,
            meta: vec![1],
            chunks: (index..index + 1_000).map(entry).collect(),
        };
        store.save_snapshot(large(1)).await.expect("saved");
        let order = std::cell::RefCell::new(Vec::new());
        let load = async {
            assert_eq!(store.load_snapshot().await.expect("readable"), Some(large(1)));
            order.borrow_mut().push("loaded");
        };
        let add = async {
            append(&store, 0..3).await.expect("appended");
            order.borrow_mut().push("appended");
        };
        tokio::join!(load, add);
        assert_eq!(order.into_inner(), ["appended", "loaded"]);

        // One that is replaced half-way is not mixed with the one that took its place.
        let mut loading = Box::pin(store.load_snapshot());
        for next in 3..7 {
            assert!(poll_immediate(&mut loading).await.is_none(), "a thousand chunks at once");
            append(&store, next..next + 1).await.expect("appended"); // behind what was asked for
        }
        store.save_snapshot(large(2)).await.expect("saved");
        assert_eq!(loading.await.expect("readable"), Some(large(2)));
    });
}

#[test]
fn damage_is_refused_and_named() {
    run(async {
        for (tree, word) in [(Tree::Log, "frame"), (Tree::Snapshot, "snapshot"), (Tree::Meta, "snapshot")] {
            let disk = Memory::default();
            let (store, _) = open(&disk).expect("an empty disk");
            append(&store, 0..20).await.expect("appended");
            store
                .save_snapshot(Snapshot { index: 9, meta: vec![1], chunks: vec![entry(1), entry(2)] })
                .await
                .expect("saved");
            disk.edit(tree, |value| {
                let middle = value.len() / 2;
                value[middle] ^= 4;
            });
            let error = open(&disk.killed()).expect_err("damaged").to_string();
            assert!(error.contains("damaged") && error.contains(word) && error.contains("--join"), "{error}");
        }
    });
}

#[test]
fn a_missing_frame_and_a_lost_beginning_are_refused() {
    run(async {
        for victim in [0u64, 10] {
            let mut disk = Memory::default();
            let (store, _) = open(&disk).expect("an empty disk");
            for first in [0, 10, 20] {
                append(&store, first..first + 10).await.expect("appended");
            }
            disk.remove(Tree::Log, &victim.to_be_bytes()).expect("removed");
            open(&disk.killed()).expect_err("a hole");
        }
    });
}

#[test]
fn a_newer_format_is_refused() {
    let mut disk = Memory::default();
    disk.put(Tree::Meta, b"format", &super::seal(&(super::FORMAT + 1))).expect("put");
    let error = open(&disk).expect_err("newer").to_string();
    assert!(error.contains("format 3") && error.contains("newer program"), "{error}");
}

#[test]
fn nothing_is_acknowledged_once_a_sync_has_failed() {
    run(async {
        let disk = Memory::default();
        let (failed, failure) = std::sync::mpsc::channel();
        let (store, _) = open_with(&disk, move |e| drop(failed.send(e.to_string()))).expect("empty");
        append(&store, 0..3).await.expect("appended");
        disk.fail_after(0);
        append(&store, 3..6).await.expect_err("the sync failed");
        assert_eq!(failure.recv().expect("told"), "the disk is gone");
        disk.repair();
        append(&store, 6..9).await.expect_err("the writer has ended");
        assert_eq!(open(&disk.power_cut(0.0, 0.0)).expect("intact").1.log, 0..3);
    });
}

#[test]
fn sled_keeps_it_all_over_a_restart_and_a_kill_during_opening() {
    run(async {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, found) =
            Store::open(dir.path(), &|_| Ok(()), Arc::default(), |_| ()).expect("an empty directory");
        assert_eq!(found, Recovered::default());
        append(&store, 0..500).await.expect("appended");
        store.put(Slot::Vote, b"vote".to_vec()).await.expect("kept");
        store
            .save_snapshot(Snapshot { index: 499, meta: b"m".to_vec(), chunks: vec![entry(7)] })
            .await
            .expect("saved");
        store.purge(Purged { index: 99, mark: b"p".to_vec() }).await.expect("purged");
        store.truncate_from(450).await.expect("truncated");
        drop(store);
        // What a kill in the middle of an opening leaves behind.
        let leftover = dir.path().join("sled/snap.FFFFFFFFFFFFFFFF.generating");
        let (store, found) = reopen(dir.path(), &leftover);
        assert_eq!((found.log.clone(), found.vote.as_deref()), (100..450, Some(&b"vote"[..])));
        assert_eq!(found.snapshot.expect("a snapshot").chunks, [entry(7)]);
        assert_eq!(store.read(100..450).await.expect("readable"), (100..450).map(entry).collect::<Vec<_>>());
    });
}

/// The directory's lock is free only once the writer's thread has ended.
fn reopen(dir: &Path, leftover: &Path) -> (Store, Recovered) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        std::fs::write(leftover, b"").expect("writable");
        match Store::open(dir, &|_| Ok(()), Arc::default(), |_| ()) {
            Ok(opened) => return opened,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error:?}"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn sidecars_on_disk_keep_their_bytes() {
    let record = Record {
        count: 7,
        log: vec![Claim { next: 42, crc: 0xdead_beef }],
        snapshot: 40,
        votes: 3,
        vote: Some(b"v".to_vec()),
        identity: Some(b"id".to_vec()),
        alone: false,
        state: State::Repairing { why: "bit".into() },
        floor: 41,
        vote_before: None,
    };
    let mut disk = Memory::default();
    Sidecar::create(record.clone(), &mut disk).expect("created");
    let bytes = super::Medium::read_sidecar(&disk).expect("readable").expect("there");
    let length = bytes.iter().rposition(|byte| *byte != 0).expect("a record") + 1 - sidecar::SLOT_BYTES;
    let hex: String = bytes[..length].iter().map(|byte| format!("{byte:02x}")).collect();
    expect_test::expect!["464c5558090001005a000000dbe4f530070000000000000001000000000000002a00000000000000efbeadde280000000000000003000000000000000101000000000000007601020000000000000069640003000000030000000000000062697429"].assert_eq(&hex);
    assert_eq!(bytes[..sidecar::SLOT_BYTES], bytes[sidecar::SLOT_BYTES..]);
    assert_eq!(Sidecar::read(&bytes).expect("sound").record, record);
}

/// A store with a log, two votes, an identity and a snapshot; other voters know it.
async fn used() -> Memory {
    let disk = Memory::default();
    let (store, _) = open(&disk).expect("an empty disk");
    store.alone(false).await.expect("noted");
    store.put(Slot::Identity, b"us".to_vec()).await.expect("kept");
    for (number, first) in [0, 10, 20].into_iter().enumerate() {
        store.put(Slot::Vote, vec![number as u8]).await.expect("kept");
        append(&store, first..first + 10).await.expect("appended");
    }
    store.save_snapshot(Snapshot { index: 9, meta: vec![1], chunks: vec![entry(1)] }).await.expect("saved");
    disk
}

/// Damage to the database alone: the node comes back without it, in quarantine, as itself.
#[test]
fn what_the_database_has_lost_is_noticed_and_quarantined() {
    type Fault = fn(&mut Memory);
    let cases: [(&str, Fault); 8] = [
        ("ends before index 20", |disk| disk.remove(Tree::Log, &20u64.to_be_bytes()).expect("removed")),
        ("does not follow", |disk| disk.remove(Tree::Log, &10u64.to_be_bytes()).expect("removed")),
        ("checksum", |disk| disk.edit(Tree::Log, |frame| frame[40] ^= 1)),
        ("vote is number 0", |disk| disk.remove(Tree::Meta, Slot::Vote.key()).expect("removed")),
        ("vote is number 2", |disk| {
            let older = super::seal(&Ballot { number: 2, vote: vec![1] });
            disk.put(Tree::Meta, Slot::Vote.key(), &older).expect("put");
        }),
        ("identity is missing", |disk| disk.remove(Tree::Meta, Slot::Identity.key()).expect("removed")),
        ("no format mark", |disk| disk.remove(Tree::Meta, b"format").expect("removed")),
        ("snapshot", |disk| disk.remove(Tree::Meta, b"snapshot").expect("removed")),
    ];
    run(async {
        for (word, fault) in cases {
            let mut disk = used().await.killed();
            fault(&mut disk);
            let (store, found) = open(&disk).unwrap_or_else(|error| panic!("{word}: {error}"));
            let quarantine = found.quarantine.unwrap_or_else(|| panic!("{word}: opened as if nothing was"));
            assert!(quarantine.why.contains(word), "{word}: {}", quarantine.why);
            assert_eq!((quarantine.floor, found.log, found.vote), (30, 0..0, Some(vec![2])), "{word}");
            assert_eq!((found.identity.as_deref(), disk.aside()), (Some(&b"us"[..]), vec![1]), "{word}");

            // A restart in the middle of the repair goes on; what was durable is needed, and no less.
            append(&store, 0..29).await.expect("appended");
            assert!(!store.rejoin(false).await.expect("answered"), "{word}: an entry short");
            let (store, found) = open(&disk.killed()).expect("sound");
            assert_eq!((found.log, found.quarantine.expect("still").floor), (0..29, 30), "{word}");
            append(&store, 29..30).await.expect("appended");
            assert!(store.rejoin(false).await.expect("answered"), "{word}: all of it");
        }
    });
}

#[test]
fn a_quarantine_ends_for_good_and_damage_during_it_keeps_the_floor() {
    run(async {
        let disk = used().await.killed();
        disk.edit(Tree::Log, |frame| frame[40] ^= 1);
        let (store, _) = open(&disk).expect("quarantined");
        append(&store, 0..5).await.expect("appended");
        let disk = disk.killed();
        disk.edit(Tree::Log, |frame| frame[40] ^= 1);
        let (store, found) = open(&disk).expect("quarantined again");
        assert_eq!((found.quarantine.expect("still").floor, disk.aside()), (30, vec![1, 2]));
        // A leader of a later term may have less: then the caller knows that nothing is missing.
        append(&store, 0..7).await.expect("appended");
        assert!(store.rejoin(true).await.expect("answered"));
        let (_, found) = open(&disk.killed()).expect("sound");
        assert_eq!((found.log, found.quarantine), (0..7, None));
    });
}

#[test]
fn a_condemned_database_is_set_aside_at_the_next_opening() {
    run(async {
        let disk = used().await;
        let (store, _) = open(&disk.killed()).expect("sound");
        drop(store);
        let disk = disk.killed();
        let (store, found) = open(&disk).expect("sound");
        assert_eq!(found.quarantine, None);
        store.condemn("its catalog is not the others'").await.expect("durable");
        let disk = disk.power_cut(0.0, 0.0);
        let (_, found) = open(&disk).expect("quarantined");
        assert_eq!(found.quarantine.expect("condemned").why, "its catalog is not the others'");
        assert_eq!((found.vote, disk.aside()), (Some(vec![2]), vec![1]));
    });
}

/// Where repair in place cannot be trusted, nothing is touched and the error says what to do.
#[test]
fn what_cannot_be_repaired_in_place_is_refused() {
    type Fault = fn(&mut Memory);
    let break_frame: Fault = |disk| disk.edit(Tree::Log, |frame| frame[40] ^= 1);
    let cases: [(&str, Vec<Fault>); 4] = [
        ("sidecar: it is missing", vec![|disk| disk.edit_sidecar(|sidecar| *sidecar = None)]),
        (
            "at offset 4096",
            vec![|disk| {
                disk.edit_sidecar(|s| s.as_mut().expect("there").iter_mut().for_each(|byte| *byte ^= 1))
            }],
        ),
        (
            "vote is uncertain",
            vec![break_frame, |disk| disk.edit_sidecar(|s| s.as_mut().expect("there")[30] ^= 1)],
        ),
        (
            "two different nodes",
            vec![|disk| disk.put(Tree::Meta, Slot::Identity.key(), b"them").expect("put")],
        ),
    ];
    run(async {
        for (word, faults) in cases {
            let mut disk = used().await.killed();
            faults.into_iter().for_each(|fault| fault(&mut disk));
            let error = open(&disk).expect_err(word).to_string();
            assert!(error.contains(word) && error.contains("--join"), "{word}: {error}");
            assert_eq!(disk.aside(), [0; 0], "{word}");
        }
        // One slot alone is no damage to what is kept: the database is whole.
        for offset in [30, sidecar::SLOT_BYTES + 30] {
            let disk = used().await.killed();
            disk.edit_sidecar(|s| s.as_mut().expect("there")[offset] ^= 1);
            let (_, found) = open(&disk).expect("exact");
            assert_eq!((found.log, found.vote, found.quarantine), (0..30, Some(vec![2]), None));
        }
    });
}

#[test]
fn so_many_damaged_databases_and_no_more_are_set_aside() {
    run(async {
        let mut disk = used().await.killed();
        for number in 1..=4 {
            disk.put(Tree::Meta, Slot::Vote.key(), b"no vote").expect("put");
            drop(open(&disk).expect("quarantined"));
            disk = disk.killed();
            assert_eq!(disk.aside().len(), number);
        }
        disk.put(Tree::Meta, Slot::Vote.key(), b"no vote").expect("put");
        let error = open(&disk).expect_err("too many").to_string();
        assert!(error.contains("4 damaged ones") && error.contains("Remove sled.damaged-*"), "{error}");
    });
}

/// A frame behind everything that was promised is the torn end of a batch nobody was told of.
#[test]
fn a_torn_end_is_dropped_only_behind_what_was_promised() {
    run(async {
        let mut disk = used().await.killed();
        let (bytes, _) = frame::encode(30, 1, &[entry(30)]); // continues another log
        disk.put(Tree::Log, &30u64.to_be_bytes(), &bytes).expect("put");
        disk.put(Tree::Log, &31u64.to_be_bytes(), b"half").expect("put");
        let (store, found) = open(&disk).expect("exact");
        assert_eq!((found.log, found.quarantine), (0..30, None));
        append(&store, 30..33).await.expect("appended");
        assert_eq!(open(&disk.killed()).expect("exact").1.log, 0..33);
    });
}

/// A directory as format 1 has it: no sidecar, the vote without a number.
fn format_1(disk: &mut impl Disk) {
    let entries: Vec<Bytes> = (0..30).map(entry).collect();
    let (first, crc) = frame::encode(0, 0, &entries[..20]);
    disk.put(Tree::Log, &0u64.to_be_bytes(), &first).expect("put");
    disk.put(Tree::Log, &20u64.to_be_bytes(), &frame::encode(20, crc, &entries[20..]).0).expect("put");
    disk.put(Tree::Meta, b"format", &super::seal(&1u32)).expect("put");
    disk.put(Tree::Meta, b"vote", b"vote").expect("put");
    disk.put(Tree::Meta, b"identity", b"us").expect("put");
    disk.put(Tree::Meta, b"committed", b"29").expect("put");
    disk.sync().expect("synced");
}

#[test]
fn format_1_is_migrated_once() {
    run(async {
        let expected = Recovered {
            vote: Some(b"vote".to_vec()),
            committed: Some(b"29".to_vec()),
            identity: Some(b"us".to_vec()),
            log: 0..30,
            ..Recovered::default()
        };
        let mut disk = Memory::default();
        format_1(&mut disk);
        let (store, found) = open(&disk).expect("migrated");
        assert_eq!(found, expected);
        store.put(Slot::Vote, b"later".to_vec()).await.expect("kept");
        let disk = disk.killed();
        let (store, found) = open(&disk).expect("not again");
        assert_eq!(found, Recovered { vote: Some(b"later".to_vec()), ..expected.clone() });
        assert_eq!(store.read(0..30).await.expect("readable"), (0..30).map(entry).collect::<Vec<_>>());
        disk.edit_sidecar(|sidecar| *sidecar = None);
        open(&disk.killed()).expect_err("a directory of format 2 has a sidecar");

        let dir = tempfile::tempdir().expect("a directory");
        format_1(&mut super::Sled::open(&dir.path().join("sled")).expect("created"));
        let (_, found) = reopen(dir.path(), &dir.path().join("sled/snap.FFFFFFFFFFFFFFFF.generating"));
        assert_eq!(found, expected);
    });
}

#[test]
fn damage_in_format_1_is_refused() {
    let mut disk = Memory::default();
    format_1(&mut disk);
    disk.edit(Tree::Log, |frame| frame[40] ^= 1);
    let error = open(&disk).expect_err("nothing says what was promised").to_string();
    assert!(error.contains("frame 20 is damaged") && error.contains("--join"), "{error}");
}
