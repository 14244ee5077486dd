//! A medium in memory: a power cut brings back what was last synced and any beginning of what was not, and every
//! call to it can be the one that fails.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use super::super::{Disk, Medium, Tree, disk::Pair};

type Key = (Tree, Vec<u8>);
type Pairs = BTreeMap<Key, Vec<u8>>;

/// What it holds, and what of it would survive a power cut.
#[derive(Debug, Default, Clone)]
struct Platters {
    now: Pairs,
    synced: Pairs,
    /// What was written since, in order: a value, or none for a removal.
    unsynced: Vec<(Key, Option<Vec<u8>>)>,
    sidecar: Option<Vec<u8>>,
    sidecar_synced: Option<Vec<u8>>,
    /// What was written into the sidecar since.
    sidecar_unsynced: Vec<(usize, Vec<u8>)>,
    aside: BTreeMap<u32, Pairs>,
    /// Calls that change something or make it durable.
    steps: usize,
    fails: Fails,
}

#[derive(Debug, Default, Clone, Copy)]
enum Fails {
    #[default]
    Never,
    /// This step and all later ones, as when the machine or the process is gone.
    From(usize),
    /// This step only, as a kernel does that reports a lost write once.
    Once(usize),
}

#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<Platters>>);

impl Memory {
    fn platters(&self) -> MutexGuard<'_, Platters> {
        self.0.lock().expect("no panic holds it")
    }

    /// Counts a step, or fails it.
    fn step(&self) -> io::Result<MutexGuard<'_, Platters>> {
        let mut platters = self.platters();
        platters.steps += 1;
        let failed = match platters.fails {
            Fails::Never => false,
            Fails::From(step) => platters.steps > step,
            Fails::Once(step) => platters.steps == step + 1,
        };
        if failed { Err(io::Error::other("the disk is gone")) } else { Ok(platters) }
    }

    /// What a power cut leaves when `kept` in 0..=1 of the unsynced writes had reached the disk: any prefix can.
    /// The sidecar is a file of its own: of its writes as many as `sidecar_kept` says, the one after them torn.
    pub fn power_cut(&self, kept: f64, sidecar_kept: f64) -> Self {
        let platters = self.platters();
        let of = |count: usize, kept: f64| (count as f64 * kept) as usize;
        Self::cut_at(
            of(platters.unsynced.len(), kept),
            (of(platters.sidecar_unsynced.len(), sidecar_kept), true),
            platters,
        )
    }

    fn cut_at(kept: usize, (sidecar_kept, torn): (usize, bool), platters: MutexGuard<'_, Platters>) -> Self {
        let mut synced = platters.synced.clone();
        for (key, value) in platters.unsynced.iter().take(kept) {
            match value {
                Some(value) => drop(synced.insert(key.clone(), value.clone())),
                None => drop(synced.remove(key)),
            }
        }
        let mut sidecar = platters.sidecar_synced.clone();
        if let Some(sidecar) = &mut sidecar {
            for (number, (offset, bytes)) in platters.sidecar_unsynced.iter().enumerate() {
                let reached = match number.cmp(&sidecar_kept) {
                    std::cmp::Ordering::Less => bytes.len(),
                    std::cmp::Ordering::Equal if torn => bytes.len() / 2,
                    std::cmp::Ordering::Equal => 0,
                    std::cmp::Ordering::Greater => 0,
                };
                sidecar[*offset..offset + reached].copy_from_slice(&bytes[..reached]);
            }
        }
        let left = Platters {
            now: synced.clone(),
            synced,
            sidecar: sidecar.clone(),
            sidecar_synced: sidecar,
            aside: platters.aside.clone(),
            ..Platters::default()
        };
        Self(Arc::new(Mutex::new(left)))
    }

    /// Everything that a power cut could leave: every prefix of the database's writes with every prefix of the
    /// sidecar's, whether the write after it is torn or not. Says which are torn.
    pub fn power_cuts(&self) -> Vec<(Self, bool)> {
        let (writes, sidecar_writes) = {
            let platters = self.platters();
            (platters.unsynced.len(), platters.sidecar_unsynced.len())
        };
        let mut cuts = Vec::new();
        for kept in 0..=writes {
            for sidecar in 0..=sidecar_writes {
                for torn in [false, true] {
                    if !torn || sidecar < sidecar_writes {
                        cuts.push((Self::cut_at(kept, (sidecar, torn), self.platters()), torn));
                    }
                }
            }
        }
        cuts
    }

    /// What a killed process leaves: everything it had written.
    pub fn killed(&self) -> Self {
        let platters = self.platters();
        let left = Platters { fails: Fails::Never, steps: 0, ..platters.clone() };
        Self(Arc::new(Mutex::new(left)))
    }

    /// The medium goes away after so many more steps.
    pub fn fail_after(&self, steps: usize) {
        let mut platters = self.platters();
        platters.fails = Fails::From(platters.steps + steps);
    }

    /// After so many more steps one fails.
    pub fn fail_once_after(&self, steps: usize) {
        let mut platters = self.platters();
        platters.fails = Fails::Once(platters.steps + steps);
    }

    /// It works again.
    pub fn repair(&self) {
        self.platters().fails = Fails::Never;
    }

    /// Steps so far.
    pub fn steps(&self) -> usize {
        self.platters().steps
    }

    /// Changes the last value of a tree.
    pub fn edit(&self, tree: Tree, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut platters = self.platters();
        let value =
            platters.now.iter_mut().filter(|(key, _)| key.0 == tree).map(|(_, value)| value).next_back();
        edit(value.expect("the tree holds something"));
    }

    /// Changes the sidecar.
    pub fn edit_sidecar(&self, edit: impl FnOnce(&mut Option<Vec<u8>>)) {
        edit(&mut self.platters().sidecar);
    }

    /// Numbers of what is set aside.
    pub fn aside(&self) -> Vec<u32> {
        self.platters().aside.keys().copied().collect()
    }
}

impl Disk for Memory {
    fn put(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> io::Result<()> {
        let mut platters = self.step()?;
        platters.unsynced.push(((tree, key.into()), Some(value.into())));
        platters.now.insert((tree, key.into()), value.into());
        Ok(())
    }

    fn remove(&mut self, tree: Tree, key: &[u8]) -> io::Result<()> {
        let mut platters = self.step()?;
        platters.unsynced.push(((tree, key.into()), None));
        platters.now.remove(&(tree, key.into()));
        Ok(())
    }

    fn get(&self, tree: Tree, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.platters().now.get(&(tree, key.into())).cloned())
    }

    fn scan(&self, tree: Tree, prefix: &[u8]) -> Box<dyn Iterator<Item = io::Result<Pair>> + '_> {
        let platters = self.platters();
        let found = platters.now.iter().filter(|((t, key), _)| *t == tree && key.starts_with(prefix));
        Box::new(
            found.map(|((_, key), value)| Ok((key.clone(), value.clone()))).collect::<Vec<_>>().into_iter(),
        )
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut platters = self.step()?;
        platters.synced = platters.now.clone();
        platters.unsynced.clear();
        Ok(())
    }
}

impl Medium for Memory {
    type Disk = Self;

    fn has_database(&self) -> io::Result<bool> {
        Ok(!self.platters().now.is_empty())
    }

    fn open(&mut self) -> io::Result<Self> {
        Ok(self.clone())
    }

    fn discard(&mut self) -> io::Result<()> {
        let mut platters = self.step()?;
        (platters.now, platters.synced) = (Pairs::new(), Pairs::new());
        platters.unsynced.clear();
        Ok(())
    }

    fn is_aside(&self, number: u32) -> io::Result<bool> {
        Ok(self.platters().aside.contains_key(&number))
    }

    fn set_aside(&mut self, number: u32) -> io::Result<()> {
        let mut platters = self.step()?;
        let database = std::mem::take(&mut platters.now);
        platters.synced.clear();
        platters.unsynced.clear();
        platters.aside.insert(number, database);
        Ok(())
    }

    fn read_sidecar(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.platters().sidecar.clone())
    }

    fn create_sidecar(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut platters = self.step()?;
        (platters.sidecar, platters.sidecar_synced) = (Some(bytes.into()), Some(bytes.into()));
        platters.sidecar_unsynced.clear();
        Ok(())
    }

    fn write_sidecar(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut platters = self.step()?;
        let at = offset as usize;
        platters.sidecar_unsynced.push((at, bytes.into()));
        platters.sidecar.as_mut().expect("it was created")[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync_sidecar(&mut self) -> io::Result<()> {
        let mut platters = self.step()?;
        platters.sidecar_synced = platters.sidecar.clone();
        platters.sidecar_unsynced.clear();
        Ok(())
    }
}
