//! The store on a disk that loses what was not synced and flips what it is told to flip, and on sled.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    Disk, Error, Purged, Recovered, Slot, Snapshot, Store, Tree,
    disk::Pair,
    frame::{self, FRAME_BYTES_MAX},
};

type Key = (Tree, Vec<u8>);

/// What the disk holds, and what of it would survive a power cut.
#[derive(Debug, Default)]
struct Platters {
    now: BTreeMap<Key, Vec<u8>>,
    synced: BTreeMap<Key, Vec<u8>>,
    /// What was written since, in order: a value, or none for a removal.
    unsynced: Vec<(Key, Option<Vec<u8>>)>,
    syncs_until_failure: Option<usize>,
}

/// A disk in memory: a power cut brings back what was last synced.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Platters>>);

impl Memory {
    /// What a power cut leaves when `kept` in 0..=1 of the unsynced writes had reached the disk: any prefix can.
    fn power_cut(&self, kept: f64) -> Self {
        let platters = self.0.lock().expect("no panic holds it");
        let mut synced = platters.synced.clone();
        let reached = (platters.unsynced.len() as f64 * kept) as usize;
        for (key, value) in platters.unsynced.iter().take(reached) {
            match value {
                Some(value) => drop(synced.insert(key.clone(), value.clone())),
                None => drop(synced.remove(key)),
            }
        }
        let now = synced.clone();
        Self(Arc::new(Mutex::new(Platters { now, synced, ..Platters::default() })))
    }

    /// The disk goes away after so many more syncs.
    fn fail_after(&self, syncs: usize) {
        self.0.lock().expect("no panic holds it").syncs_until_failure = Some(syncs);
    }

    fn edit(&self, tree: Tree, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut platters = self.0.lock().expect("no panic holds it");
        let value =
            platters.now.iter_mut().filter(|(key, _)| key.0 == tree).map(|(_, value)| value).next_back();
        edit(value.expect("the tree holds something"));
    }
}

impl Disk for Memory {
    fn put(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> io::Result<()> {
        let mut platters = self.0.lock().expect("no panic holds it");
        platters.unsynced.push(((tree, key.into()), Some(value.into())));
        platters.now.insert((tree, key.into()), value.into());
        Ok(())
    }

    fn remove(&mut self, tree: Tree, key: &[u8]) -> io::Result<()> {
        let mut platters = self.0.lock().expect("no panic holds it");
        platters.unsynced.push(((tree, key.into()), None));
        platters.now.remove(&(tree, key.into()));
        Ok(())
    }

    fn get(&self, tree: Tree, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().expect("no panic holds it").now.get(&(tree, key.into())).cloned())
    }

    fn scan(&self, tree: Tree, prefix: &[u8]) -> Box<dyn Iterator<Item = io::Result<Pair>> + '_> {
        let platters = self.0.lock().expect("no panic holds it");
        let found = platters.now.iter().filter(|((t, key), _)| *t == tree && key.starts_with(prefix));
        Box::new(
            found.map(|((_, key), value)| Ok((key.clone(), value.clone()))).collect::<Vec<_>>().into_iter(),
        )
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut platters = self.0.lock().expect("no panic holds it");
        match &mut platters.syncs_until_failure {
            Some(0) => return Err(io::Error::other("the disk is gone")),
            Some(left) => *left -= 1,
            None => {}
        }
        platters.synced = platters.now.clone();
        platters.unsynced.clear();
        Ok(())
    }
}

fn open(disk: &Memory) -> Result<(Store, Recovered), Error> {
    Store::on(disk.clone(), Path::new("memory"), Arc::default(), |_| ())
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
    PowerCut(f64),
    /// A cut in the middle of an append and the commit mark that follows it.
    TornAppend(u64, f64),
    /// A cut in the middle of saving a snapshot, before the sync of this number.
    TornSnapshot(u8, usize, f64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u64..40).prop_map(Step::Append),
        1 => (0u64..30).prop_map(Step::Truncate),
        1 => (0u64..40).prop_map(Step::Purge),
        1 => any::<u8>().prop_map(Step::Vote),
        1 => any::<u8>().prop_map(Step::Snapshot),
        2 => (0.0..=1.0f64).prop_map(Step::PowerCut),
        2 => (1u64..40, 0.0..=1.0f64).prop_map(|(count, kept)| Step::TornAppend(count, kept)),
        1 => (any::<u8>(), 0usize..2, 0.0..=1.0f64).prop_map(|(value, syncs, kept)| Step::TornSnapshot(value, syncs, kept)),
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
                    Step::PowerCut(kept) => {
                        disk = disk.power_cut(kept);
                        store = model.reopen(&disk, None);
                    }
                    Step::TornAppend(count, kept) => {
                        disk.fail_after(0);
                        let torn = append(&store, model.end..model.end + count);
                        let mark = store.put_lazily(Slot::Committed, (model.end + count).to_be_bytes().to_vec());
                        let _ = tokio::join!(torn, mark); // one of them meets the failure
                        disk = disk.power_cut(kept);
                        let (_, found) = open(&disk).expect("readable");
                        let committed = found.committed.map_or(0, |mark| u64::from_be_bytes(mark.try_into().expect("8 bytes")));
                        assert!(found.log.end >= model.end && (committed <= found.log.end || committed <= model.committed), "{committed} {:?}", found.log);
                        model.committed = model.committed.max(committed);
                        model.end = found.log.end;
                        store = model.reopen(&disk, None);
                    }
                    Step::TornSnapshot(value, syncs, kept) => {
                        disk.fail_after(syncs);
                        store.save_snapshot(snapshot(number, value)).await.expect_err("the disk is gone");
                        disk = disk.power_cut(kept);
                        store = model.reopen(&disk, Some(snapshot(number, value)));
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
            let error = open(&disk).expect_err("damaged").to_string();
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
            open(&disk).expect_err("a hole");
        }
    });
}

#[test]
fn a_newer_format_is_refused() {
    let mut disk = Memory::default();
    disk.put(Tree::Meta, b"format", &super::seal(&(super::FORMAT + 1))).expect("put");
    let error = open(&disk).expect_err("newer").to_string();
    assert!(error.contains("format 2") && error.contains("newer program"), "{error}");
}

#[test]
fn nothing_is_acknowledged_once_a_sync_has_failed() {
    run(async {
        let disk = Memory::default();
        let (failed, failure) = std::sync::mpsc::channel();
        let (store, _) = Store::on(disk.clone(), Path::new("memory"), Arc::default(), move |e| {
            drop(failed.send(e.to_string()))
        })
        .expect("empty");
        append(&store, 0..3).await.expect("appended");
        disk.fail_after(0);
        append(&store, 3..6).await.expect_err("the sync failed");
        assert_eq!(failure.recv().expect("told"), "the disk is gone");
        disk.0.lock().expect("free").syncs_until_failure = None;
        append(&store, 6..9).await.expect_err("the writer has ended");
        assert_eq!(open(&disk.power_cut(0.0)).expect("intact").1.log, 0..3);
    });
}

#[test]
fn sled_keeps_it_all_over_a_restart_and_a_kill_during_opening() {
    run(async {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, found) = Store::open(dir.path(), Arc::default(), |_| ()).expect("an empty directory");
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
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        std::fs::write(leftover, b"").expect("writable");
        match Store::open(dir, Arc::default(), |_| ()) {
            Ok(opened) => return opened,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error:?}"),
        }
        std::thread::yield_now();
    }
}
