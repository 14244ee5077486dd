//! A disk in memory that behaves like sled on a real one: writes reach it in order and survive a power cut once
//! they are synced; of what was not, any prefix may survive. It reads along: every log entry, vote and snapshot
//! that becomes durable is noted for the checks, because what is on disk is what a node can be held to.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use registry_node::{
    consensus::seam::{self, Entry, Vote},
    storage::{self, Disk, Medium, Tree},
};

use crate::run::Plant;

type Key = (Tree, Vec<u8>);
type Pair = (Vec<u8>, Vec<u8>);

/// A node's disk over its whole life. Cheap to clone.
#[derive(Clone)]
pub struct Platter(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// What a reader sees.
    seen: BTreeMap<Key, Vec<u8>>,
    /// What survives a power cut.
    durable: BTreeMap<Key, Vec<u8>>,
    /// Writes since the last sync, in order.
    unsynced: Vec<(Key, Option<Vec<u8>>)>,
    /// The small file beside the database: as a reader sees it, as it survives, and what was written between.
    sidecar: Option<Vec<u8>>,
    durable_sidecar: Option<Vec<u8>>,
    unsynced_sidecar: Vec<(u64, Vec<u8>)>,
    /// Numbers under which a database was set aside.
    aside: BTreeSet<u32>,
    /// Counts power cuts: a handle from before one reaches nothing.
    power: u64,
    /// Operations until the power fails by itself.
    fuse: Option<u32>,
    blown: bool,
    plant: Option<Plant>,
    record: Durable,
}

/// What a disk has promised.
#[derive(Default, Clone)]
pub struct Durable {
    /// The log as a start would find it.
    pub log: BTreeMap<u64, Entry>,
    /// How far the snapshot reaches.
    pub snapshot: u64,
    /// The newest vote.
    pub vote: Option<Vote>,
    /// Every leader id that was voted for before it led.
    pub voted: BTreeSet<(u64, u64)>,
    /// What was promised and not kept.
    pub broken: Vec<String>,
    /// What a database held that was set aside: acknowledged, and gone until the peers have repaired the node.
    lost: BTreeMap<u64, Entry>,
    lost_snapshot: u64,
    /// First index of each frame: the entries it holds.
    frames: BTreeMap<Vec<u8>, Vec<u64>>,
}

impl Platter {
    /// An empty one.
    pub fn new(plant: Option<Plant>) -> Self {
        Self(Arc::new(Mutex::new(State { plant, ..State::default() })))
    }

    /// The disk as the present process sees it.
    pub fn open(&self) -> Handle {
        Handle { platter: self.clone(), power: self.state().power }
    }

    /// The node has been repaired: what it had lost counts no more.
    pub fn note_repaired(&self) {
        let record = &mut self.state().record;
        record.lost.clear();
        record.lost_snapshot = 0;
    }

    /// What it has promised so far.
    pub fn durable<T>(&self, look: impl FnOnce(&Durable) -> T) -> T {
        look(&self.state().record)
    }

    /// The power fails in the middle of the `n`th operation from now.
    pub fn light_fuse(&self, n: u32) {
        self.state().fuse = Some(n);
    }

    /// It will not.
    pub fn put_out_fuse(&self) {
        self.state().fuse = None;
    }

    /// Whether the power has failed by itself.
    pub fn blown(&self) -> bool {
        self.state().blown
    }

    /// The power is cut: a prefix of what was not synced survives, chosen by `dice`.
    pub fn cut_power(&self, dice: &mut fastrand::Rng) {
        let mut state = self.state();
        let kept = dice.usize(..=state.unsynced.len());
        let survivors: Vec<_> = state.unsynced.drain(..).take(kept).collect();
        for (key, value) in survivors {
            put(&mut state.durable, key.clone(), value.clone());
            state.record.note(&key, value.as_deref());
        }
        let torn: Vec<_> = state.unsynced_sidecar.drain(..).collect();
        for (offset, bytes) in torn.iter().take(dice.usize(..=torn.len())) {
            let survives = if dice.bool() { bytes.len() } else { dice.usize(..=bytes.len()) };
            write_at(&mut state.durable_sidecar, *offset, &bytes[..survives]);
        }
        state.restart();
    }

    /// The process dies and the kernel lives: everything written survives.
    pub fn kill_process(&self) {
        let mut state = self.state();
        let written = std::mem::take(&mut state.unsynced);
        for (key, value) in written {
            put(&mut state.durable, key.clone(), value.clone());
            state.record.note(&key, value.as_deref());
        }
        state.durable_sidecar = state.sidecar.clone();
        state.restart();
    }

    /// One bit of a value that is on disk turns; says where, or none if there is nothing.
    pub fn flip(&self, dice: &mut fastrand::Rng) -> Option<String> {
        let mut state = self.state();
        if dice.u32(..6) == 0
            && let Some(sidecar) = &mut state.durable_sidecar
        {
            let at = dice.usize(..sidecar.len());
            sidecar[at] ^= 1 << dice.u8(..8);
            state.sidecar = state.durable_sidecar.clone();
            return Some(format!("the sidecar's byte {at}"));
        }
        let count = state.durable.len();
        let (key, value) = state.durable.iter_mut().nth(dice.usize(..count.max(1)))?;
        let at = dice.usize(..value.len().max(1));
        *value.get_mut(at)? ^= 1 << dice.u8(..8);
        let place = format!("{:?} {:?} byte {at}", key.0, String::from_utf8_lossy(&key.1));
        state.seen = state.durable.clone();
        Some(place)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while it is held")
    }
}

fn write_at(file: &mut Option<Vec<u8>>, offset: u64, bytes: &[u8]) {
    let file = file.get_or_insert_default();
    let end = offset as usize + bytes.len();
    file.resize(file.len().max(end), 0);
    file[offset as usize..end].copy_from_slice(bytes);
}

impl State {
    /// The database is gone from its place.
    fn clear(&mut self) {
        self.seen.clear();
        self.durable.clear();
        self.unsynced.clear();
        let record = &mut self.record;
        record.lost.append(&mut record.log);
        record.lost_snapshot = record.lost_snapshot.max(record.snapshot);
        record.frames.clear();
        record.snapshot = 0;
    }

    /// What survived is what the next process finds.
    fn restart(&mut self) {
        self.seen = self.durable.clone();
        self.sidecar = self.durable_sidecar.clone();
        self.unsynced_sidecar.clear();
        self.power += 1;
        self.fuse = None;
        self.blown = false;
    }
}

fn put(tree: &mut BTreeMap<Key, Vec<u8>>, key: Key, value: Option<Vec<u8>>) {
    match value {
        Some(value) => drop(tree.insert(key, value)),
        None => drop(tree.remove(&key)),
    }
}

impl Durable {
    /// The entries of an index that this node has acknowledged: what it has, and what it has lost and not got back.
    pub fn acknowledged(&self, index: u64) -> impl Iterator<Item = &Entry> {
        self.log.get(&index).into_iter().chain(self.lost.get(&index))
    }

    /// The log up to here was in a snapshot once.
    pub fn reached(&self) -> u64 {
        self.snapshot.max(self.lost_snapshot)
    }

    /// The log and the snapshot reach up to here, exclusively.
    pub fn end(&self) -> u64 {
        let log = self.log.last_key_value().map_or(0, |(index, _)| index + 1);
        let snapshot = if self.snapshot > 0 { self.snapshot + 1 } else { 0 };
        log.max(snapshot)
    }

    fn note(&mut self, (tree, key): &Key, value: Option<&[u8]>) {
        match (tree, value) {
            (Tree::Log, value) => self.note_frame(key, value),
            (Tree::Meta, Some(value)) if key == storage::VOTE_KEY => self.note_vote(value),
            (Tree::Meta, Some(value)) if key == storage::SNAPSHOT_KEY => {
                match storage::snapshot_reach(value) {
                    Ok(reach) if reach < self.snapshot => {
                        self.broken.push(format!(
                            "D1: a snapshot up to {reach} took the place of one up to {}",
                            self.snapshot
                        ));
                    }
                    Ok(reach) => self.snapshot = reach,
                    Err(error) => {
                        self.broken.push(format!("D3: an unreadable snapshot pointer was written: {error}"))
                    }
                }
            }
            _ => {}
        }
    }

    fn note_frame(&mut self, key: &[u8], value: Option<&[u8]>) {
        for index in self.frames.remove(key).unwrap_or_default() {
            self.log.remove(&index);
        }
        let Some(value) = value else { return };
        let entries = match storage::frame_entries(key, value) {
            Ok(entries) => entries,
            Err(error) => return self.broken.push(format!("D3: an unreadable frame was written: {error}")),
        };
        let mut indices = Vec::with_capacity(entries.len());
        for bytes in entries {
            match seam::entry_in(&bytes) {
                Ok(entry) => {
                    indices.push(entry.index);
                    self.log.insert(entry.index, entry);
                }
                Err(error) => self.broken.push(format!("D3: an unreadable entry was written: {error}")),
            }
        }
        self.frames.insert(key.to_vec(), indices);
    }

    /// D2: the vote of a node only ever grows, over its whole life.
    fn note_vote(&mut self, value: &[u8]) {
        let vote = storage::vote_in(value).ok_or_else(|| "no ballot".to_owned());
        let vote = match vote.and_then(|vote| seam::vote_in(&vote)) {
            Ok(vote) => vote,
            Err(error) => return self.broken.push(format!("D3: an unreadable vote was written: {error}")),
        };
        if self.vote.is_some_and(|before| before > vote) {
            self.broken.push(format!("D2: vote {vote:?} after {:?}", self.vote));
        }
        // One that a majority gave is taken over from the leader itself.
        if !vote.committed {
            self.voted.insert((vote.term, vote.node));
        }
        self.vote = Some(vote);
    }
}

/// A process's handle; worth nothing after a power cut.
#[derive(Clone)]
pub struct Handle {
    platter: Platter,
    power: u64,
}

impl Handle {
    fn live(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.platter.state();
        if let Some(left) = state.fuse {
            state.blown |= left == 0;
            state.fuse = left.checked_sub(1);
        }
        match state.power == self.power && !state.blown {
            true => Ok(state),
            false => Err(io::Error::other("the power is off")),
        }
    }

    fn write(&self, tree: Tree, key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
        let mut state = self.live()?;
        if state.plant == Some(Plant::LostVotes) && (tree, key) == (Tree::Meta, storage::VOTE_KEY) {
            return Ok(());
        }
        let (key, value) = ((tree, key.to_vec()), value.map(<[u8]>::to_vec));
        put(&mut state.seen, key.clone(), value.clone());
        state.unsynced.push((key, value));
        Ok(())
    }
}

impl Disk for Handle {
    fn put(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.write(tree, key, Some(value))
    }

    fn remove(&mut self, tree: Tree, key: &[u8]) -> io::Result<()> {
        self.write(tree, key, None)
    }

    fn get(&self, tree: Tree, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.live()?.seen.get(&(tree, key.to_vec())).cloned())
    }

    fn scan(&self, tree: Tree, prefix: &[u8]) -> Box<dyn Iterator<Item = io::Result<Pair>> + '_> {
        let pairs: Vec<_> = match self.live() {
            Err(error) => vec![Err(error)],
            Ok(state) => state
                .seen
                .range((tree, prefix.to_vec())..)
                .take_while(|((t, key), _)| *t == tree && key.starts_with(prefix))
                .map(|((_, key), value)| Ok((key.clone(), value.clone())))
                .collect(),
        };
        Box::new(pairs.into_iter())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.live()?;
        if state.plant == Some(Plant::LazySync) {
            return Ok(());
        }
        let written = std::mem::take(&mut state.unsynced);
        for (key, value) in written {
            put(&mut state.durable, key.clone(), value.clone());
            state.record.note(&key, value.as_deref());
        }
        Ok(())
    }
}

impl Medium for Handle {
    type Disk = Self;

    fn has_database(&self) -> io::Result<bool> {
        Ok(!self.live()?.seen.is_empty())
    }

    fn open(&mut self) -> io::Result<Self> {
        drop(self.live()?);
        Ok(self.clone())
    }

    fn discard(&mut self) -> io::Result<()> {
        self.live()?.clear();
        Ok(())
    }

    fn is_aside(&self, number: u32) -> io::Result<bool> {
        Ok(self.live()?.aside.contains(&number))
    }

    fn set_aside(&mut self, number: u32) -> io::Result<()> {
        let mut state = self.live()?;
        if !state.seen.is_empty() {
            state.aside.insert(number);
            state.clear();
        }
        Ok(())
    }

    fn read_sidecar(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.live()?.sidecar.clone())
    }

    fn create_sidecar(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.live()?;
        state.sidecar = Some(bytes.to_vec());
        state.durable_sidecar = Some(bytes.to_vec());
        state.unsynced_sidecar.clear();
        Ok(())
    }

    fn write_sidecar(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.live()?;
        write_at(&mut state.sidecar, offset, bytes);
        state.unsynced_sidecar.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn sync_sidecar(&mut self) -> io::Result<()> {
        let mut state = self.live()?;
        state.durable_sidecar = state.sidecar.clone();
        state.unsynced_sidecar.clear();
        Ok(())
    }
}
