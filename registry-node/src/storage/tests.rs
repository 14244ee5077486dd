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

/// What the disk holds, and what of it would survive a power cut.
#[derive(Debug, Default)]
struct Platters {
    now: BTreeMap<(Tree, Vec<u8>), Vec<u8>>,
    synced: BTreeMap<(Tree, Vec<u8>), Vec<u8>>,
    syncs_until_failure: Option<usize>,
}

/// A disk in memory: a power cut brings back what was last synced.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Platters>>);

impl Memory {
    fn power_cut(&self) -> Self {
        let synced = self.0.lock().expect("no panic holds it").synced.clone();
        Self(Arc::new(Mutex::new(Platters { now: synced.clone(), synced, syncs_until_failure: None })))
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
        self.0.lock().expect("no panic holds it").now.insert((tree, key.into()), value.into());
        Ok(())
    }

    fn remove(&mut self, tree: Tree, key: &[u8]) -> io::Result<()> {
        self.0.lock().expect("no panic holds it").now.remove(&(tree, key.into()));
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

#[derive(Debug, Clone)]
enum Step {
    Append(u64),
    Truncate(u64),
    Purge(u64),
    Vote(u8),
    Snapshot(u8),
    PowerCut,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u64..40).prop_map(Step::Append),
        1 => (0u64..30).prop_map(Step::Truncate),
        1 => (0u64..40).prop_map(Step::Purge),
        1 => any::<u8>().prop_map(Step::Vote),
        1 => any::<u8>().prop_map(Step::Snapshot),
        2 => Just(Step::PowerCut),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever was acknowledged is there after a power cut, exactly.
    #[test]
    fn acknowledged_steps_survive_power_cuts(steps in steps()) {
        run(async {
            let mut disk = Memory::default();
            let mut store = open(&disk).expect("an empty disk").0;
            let (mut begin, mut end) = (0u64, 0u64);
            let (mut vote, mut purged, mut snapshot) = (None, None, None);
            for step in steps {
                match step {
                    Step::Append(count) => {
                        append(&store, end..end + count).await.expect("appended");
                        end += count;
                    }
                    Step::Truncate(back) => {
                        end = end.saturating_sub(back).max(begin);
                        store.truncate_from(end).await.expect("truncated");
                    }
                    Step::Purge(forward) => {
                        // Past the end too: a node that installs a snapshot is ahead of its log.
                        begin += forward + 1;
                        end = end.max(begin);
                        purged = Some(Purged { index: begin - 1, mark: vec![begin as u8] });
                        store.purge(purged.clone().expect("just set")).await.expect("purged");
                    }
                    Step::Vote(value) => {
                        vote = Some(vec![value; 3]);
                        store.put(Slot::Vote, vec![value; 3]).await.expect("kept");
                    }
                    Step::Snapshot(value) => {
                        let chunks = (0..value % 5).map(|n| Bytes::from(vec![value, n])).collect();
                        snapshot = Some(Snapshot { meta: vec![value], chunks });
                        store.save_snapshot(snapshot.clone().expect("just set")).await.expect("saved");
                    }
                    Step::PowerCut => {
                        disk = disk.power_cut();
                        let (reopened, found) = open(&disk).expect("an intact disk");
                        store = reopened;
                        assert_eq!(found.log, begin..end);
                        assert_eq!((&found.vote, &found.purged, &found.snapshot), (&vote, &purged, &snapshot));
                    }
                }
                let read = store.read(begin..end).await.expect("readable");
                assert_eq!(read, (begin..end).map(entry).collect::<Vec<_>>());
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
                .save_snapshot(Snapshot { meta: vec![1], chunks: vec![entry(1), entry(2)] })
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
        disk.0.lock().expect("free").syncs_until_failure = Some(0);
        append(&store, 3..6).await.expect_err("the sync failed");
        assert_eq!(failure.recv().expect("told"), "the disk is gone");
        disk.0.lock().expect("free").syncs_until_failure = None;
        append(&store, 6..9).await.expect_err("the writer has ended");
        assert_eq!(open(&disk.power_cut()).expect("intact").1.log, 0..3);
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
        store.save_snapshot(Snapshot { meta: b"m".to_vec(), chunks: vec![entry(7)] }).await.expect("saved");
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
