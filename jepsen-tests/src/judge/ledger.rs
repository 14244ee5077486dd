//! What was asked of a registry and what it acknowledged, key by key, and whether it still knows: promise D1.
//!
//! Every key has one writer, one call at a time, and a key whose last call has an unknown outcome is left alone until
//! it is known. So there are never more than two things a key may be: what was acknowledged last, or what was asked
//! last. Pure: the run tells it what happened, in the order it happened.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::Entry;

/// What a key holds, as far as a client can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It is not registered.
    Nothing,
    /// It is registered with this value, since this revision.
    Value {
        /// Unique in the run.
        value: u64,
        /// The revision that wrote it; none while that is unknown.
        mod_rev: Option<u64>,
    },
}

#[derive(Clone, Debug)]
struct Key {
    acked: Held,
    asked: Option<Held>,
}

/// The account of one cluster.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    keys: BTreeMap<String, Key>,
    /// The highest revision that any answer named.
    revision: u64,
    values: u64,
    acked: u64,
    unknown: u64,
    troubles: Vec<String>,
}

impl Ledger {
    /// A value that no key has had.
    pub fn value(&mut self) -> u64 {
        self.values += 1;
        self.values
    }

    /// What a key held when it was last known; nothing if it was never asked for.
    pub fn held(&self, key: &str) -> Held {
        self.keys.get(key).map_or(Held::Nothing, |key| key.acked)
    }

    /// The keys that have no call of unknown outcome.
    pub fn settled(&self) -> Vec<String> {
        self.keys.iter().filter(|(_, key)| key.asked.is_none()).map(|(name, _)| name.clone()).collect()
    }

    /// Acknowledged writes so far.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Writes so far whose outcome no answer told.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    /// Before a write is sent: `value`, or to be deregistered.
    pub fn ask(&mut self, name: &str, value: Option<u64>) {
        let asked = value.map_or(Held::Nothing, |value| Held::Value { value, mod_rev: None });
        let key = self.keys.entry(name.into()).or_insert(Key { acked: Held::Nothing, asked: None });
        assert!(key.asked.is_none(), "{name} has a call of unknown outcome and must be left alone");
        key.asked = Some(asked);
    }

    /// The write was acknowledged at `revision`. `was_there` is what the answer to a deregistration said.
    pub fn ack(&mut self, name: &str, revision: Option<u64>, was_there: Option<bool>) {
        self.acked += 1;
        self.revision = self.revision.max(revision.unwrap_or(0));
        let Some(key) = self.keys.get_mut(name) else { return };
        let held = matches!(key.acked, Held::Value { .. });
        if was_there.is_some_and(|was_there| was_there != held) {
            self.troubles.push(format!(
                "{name} was {:?} before it was deregistered, and the answer denies it",
                key.acked
            ));
        }
        key.acked = match key.asked.take() {
            Some(Held::Value { value, .. }) => Held::Value { value, mod_rev: revision },
            _ => Held::Nothing,
        };
    }

    /// The write was refused, and certainly changed nothing.
    pub fn refused(&mut self, name: &str) {
        if let Some(key) = self.keys.get_mut(name) {
            key.asked = None;
        }
    }

    /// No answer told what became of the write.
    pub fn lost_track(&mut self) {
        self.unknown += 1;
    }

    /// Compares everything with a linearizable read of everything, taken with no call open; `whom` is who answered. What was
    /// unknown and shows is known from here on. Returns what is wrong.
    pub fn judge(&mut self, whom: &str, revision: u64, entries: &[Entry]) -> Vec<String> {
        let mut wrong = std::mem::take(&mut self.troubles);
        if revision < self.revision {
            wrong.push(format!("{whom} is at revision {revision}, and {} was seen before", self.revision));
        }
        self.revision = self.revision.max(revision);
        let mut absent: BTreeSet<&str> = self.keys.keys().map(String::as_str).collect();
        for Entry(name, value, _, mod_rev) in entries {
            absent.remove(name.as_str());
            let found = Held::Value { value: value.unwrap_or(0), mod_rev: Some(*mod_rev) };
            match self.keys.get(name) {
                None => wrong.push(format!("{whom} has {name}, which nobody asked for")),
                Some(key) if key.acked == found || key.asked.is_some_and(|asked| same(asked, found)) => {}
                Some(key) => wrong.push(unlike(whom, name, key, found)),
            }
        }
        for name in absent {
            let key = &self.keys[name];
            if key.acked != Held::Nothing && key.asked != Some(Held::Nothing) {
                wrong.push(unlike(whom, name, key, Held::Nothing));
            }
        }
        self.learn(entries);
        wrong
    }

    /// An unknown write that shows has happened. One that does not may still come, from a queue that outlived its caller.
    fn learn(&mut self, entries: &[Entry]) {
        let found: BTreeMap<&str, Held> = entries
            .iter()
            .map(|Entry(name, value, _, mod_rev)| {
                (name.as_str(), Held::Value { value: value.unwrap_or(0), mod_rev: Some(*mod_rev) })
            })
            .collect();
        for (name, key) in &mut self.keys {
            let found = found.get(name.as_str()).copied().unwrap_or(Held::Nothing);
            // A deregistration of what was never there shows nothing either way, and harms nothing.
            if key.asked.is_some_and(|asked| same(asked, found)) && key.acked != found {
                *key = Key { acked: found, asked: None };
            }
        }
    }
}

/// The revision of something asked for is not known before it is found.
fn same(asked: Held, found: Held) -> bool {
    match (asked, found) {
        (Held::Value { value: asked, .. }, Held::Value { value: found, .. }) => asked == found,
        _ => asked == found,
    }
}

fn unlike(whom: &str, name: &str, key: &Key, found: Held) -> String {
    let maybe = key.asked.map_or(String::new(), |asked| format!(", perhaps {asked:?}"));
    format!("{whom} has {name} as {found:?}; acknowledged was {:?}{maybe}", key.acked)
}
