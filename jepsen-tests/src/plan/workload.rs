//! What each client does next.
//!
//! A [`Mixed`] client writes, swaps, removes, reads and lists records that live for ever; all mixed clients share the
//! same few keys, so they meet. Keys are used up after a number of calls that differs from key to key, so
//! that their histories stay short and drift apart. A [`Keeper`] lives through one short lease after another.

use std::collections::HashMap;
use std::time::Duration;

use crate::history::{Consistency, F};
use crate::judge::linear::SERVICE as CAS;

/// The service that is written without conditions.
pub const REGISTER: &str = "register";
/// The service of leased instances.
pub const LEASE: &str = "lease";
/// Long enough that a record of [`REGISTER`] or the cas service never runs out.
pub const TTL_FOREVER: Duration = Duration::from_secs(3_600);
/// The shortest lease the registry grants.
pub const TTL_LEASE: Duration = Duration::from_secs(3);
/// Attempts to renew: five in a lease, so that one that times out does not end it.
pub const BEAT_EVERY: Duration = Duration::from_millis(600);

/// Keys in use at once per service.
const SLOTS: u64 = 6;
/// Calls of one client until a slot moves on to a new key.
const SLOT_CALLS: std::ops::RangeInclusive<u64> = 40..=90;
/// Values of one client are beneath this; more calls than any run makes.
const VALUES_PER_CLIENT: u64 = 10_000_000;

/// A call to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub f: F,
    /// Of which instance; of a list, of which service or nothing for all.
    pub key: Option<String>,
    /// What to write.
    pub value: Option<u64>,
    /// Of a cas: the record it depends on, as last seen; `(value, mod_rev)`, or nothing for "not registered".
    pub depends: Option<(u64, u64)>,
    /// Of reads.
    pub consistency: Option<Consistency>,
}

/// A client of records that live for ever.
#[derive(Debug)]
pub struct Mixed {
    rng: fastrand::Rng,
    number: u64,
    seq: u64,
    slot_calls: Vec<u64>,
    weights: [(Choice, u64); 7],
    may_read_stale: bool,
    /// What was last seen under each cas key.
    known: HashMap<String, Option<(u64, u64)>>,
}

#[derive(Clone, Copy, Debug)]
enum Choice {
    Register,
    Deregister,
    Read,
    Swap,
    ListAll,
    ListService,
    ListStale,
}

impl Mixed {
    /// The client `number` of a run. `may_read_stale`: it is bound to one node, so a stale read says something.
    pub fn new(seed: u64, number: u64, may_read_stale: bool) -> Self {
        let mut shared = super::rng(seed, "keys");
        let slot_calls = (0..SLOTS * 2).map(|_| shared.u64(SLOT_CALLS)).collect();
        let mut mix = super::rng(seed, "mix");
        let mut about = |weight: u64| mix.u64(weight / 2..=weight * 2);
        let weights = [
            (Choice::Register, about(20)),
            (Choice::Deregister, about(10)),
            (Choice::Read, about(20)),
            (Choice::Swap, about(40)),
            (Choice::ListAll, about(3)),
            (Choice::ListService, about(4)),
            (Choice::ListStale, about(3)),
        ];
        let rng = super::rng(seed, &format!("client {number}"));
        Self { rng, number, seq: 0, slot_calls, weights, may_read_stale, known: HashMap::new() }
    }

    /// The next call.
    pub fn step(&mut self) -> Step {
        self.seq += 1;
        let read = |key: String| Step {
            f: F::Read,
            key: Some(key),
            value: None,
            depends: None,
            consistency: Some(Consistency::Linearizable),
        };
        let list = |service: Option<&str>, consistency| Step {
            f: F::List,
            key: service.map(str::to_owned),
            value: None,
            depends: None,
            consistency: Some(consistency),
        };
        match self.choice() {
            Choice::Register => {
                let key = self.key(REGISTER);
                self.write(F::Register, key, None)
            }
            Choice::Deregister => {
                let service = if self.rng.bool() { REGISTER } else { CAS };
                let key = Some(self.key(service));
                Step { f: F::Deregister, key, value: None, depends: None, consistency: None }
            }
            Choice::Read => {
                let service = if self.rng.bool() { REGISTER } else { CAS };
                read(self.key(service))
            }
            Choice::Swap => {
                let key = self.key(CAS);
                match self.known.remove(&key) {
                    Some(depends) => self.write(F::Cas, key, depends),
                    None => read(key),
                }
            }
            Choice::ListStale if self.may_read_stale => list(None, Consistency::Stale),
            Choice::ListAll | Choice::ListStale => list(None, Consistency::Linearizable),
            Choice::ListService => {
                let service = if self.rng.bool() { REGISTER } else { CAS };
                list(Some(service), Consistency::Linearizable)
            }
        }
    }

    /// What a call showed to be under a key, `(value, mod_rev)`: the next swap depends on it.
    pub fn learn(&mut self, key: &str, found: Option<(u64, u64)>) {
        if crate::history::service_of(key) == CAS {
            self.known.insert(key.to_owned(), found);
        }
    }

    /// How long to wait before the next call: about 25 ms, uneven, so that clients do not march in step.
    pub fn pause(&mut self) -> Duration {
        Duration::from_millis(self.rng.u64(5..=45))
    }

    fn write(&mut self, f: F, key: String, depends: Option<(u64, u64)>) -> Step {
        let value = Some(self.number * VALUES_PER_CLIENT + self.seq);
        Step { f, key: Some(key), value, depends, consistency: None }
    }

    fn choice(&mut self) -> Choice {
        let sum: u64 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut left = self.rng.u64(0..sum);
        for (choice, weight) in self.weights {
            if left < weight {
                return choice;
            }
            left -= weight;
        }
        unreachable!("{left} is left of {sum}, the sum of all weights");
    }

    fn key(&mut self, service: &str) -> String {
        let slot = self.rng.u64(0..SLOTS);
        let offset = if service == CAS { SLOTS } else { 0 };
        let generation = self.seq / self.slot_calls[(offset + slot) as usize];
        format!("{service}-{slot}-{generation}")
    }
}

/// A client that keeps a leased instance alive, then ends it in one of several ways, and begins anew.
#[derive(Debug)]
pub struct Keeper {
    rng: fastrand::Rng,
    number: u64,
    lives: u64,
}

/// One incarnation in the care of a keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// The id.
    pub key: String,
    /// What is written when it is registered.
    pub value: u64,
    /// How often it is renewed.
    pub beats: u64,
    /// What happens then.
    pub fate: Fate,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The keeper goes on until the run ends.
    Kept,
    /// The keeper goes away without a word: it must expire.
    Abandoned,
    /// The keeper deregisters this very incarnation.
    Deregistered,
    /// The id is registered again; then the old incarnation's late heartbeat must be refused.
    Replaced,
}

impl Keeper {
    /// The keeper `number` of a run; its number is distinct from those of mixed clients.
    pub fn new(seed: u64, number: u64) -> Self {
        Self { rng: super::rng(seed, &format!("keeper {number}")), number, lives: 0 }
    }

    /// The next life. Every other keeper keeps its first instance to the end.
    pub fn life(&mut self) -> Life {
        self.lives += 1;
        let fate = match self.rng.u64(0..4) {
            _ if self.number.is_multiple_of(2) => Fate::Kept,
            0 => Fate::Deregistered,
            1 => Fate::Replaced,
            _ => Fate::Abandoned,
        };
        Life {
            key: format!("{LEASE}-{}-{}", self.number, self.lives),
            value: self.fresh(0),
            beats: self.rng.u64(2..=12),
            fate,
        }
    }

    /// The value with which the id of the current life is registered again.
    pub fn again(&self) -> u64 {
        self.fresh(1)
    }

    fn fresh(&self, nth: u64) -> u64 {
        self.number * VALUES_PER_CLIENT + self.lives * 2 + nth
    }
}
