//! Makes a retried command apply once: what became of the last commands of each client that numbers them.
//!
//! A client whose answer was lost asks again with the same number and gets the first answer. Bounded in both
//! directions: an outcome of a client that is remembered, and was forgotten, is refused rather than applied a second
//! time; a client that is forgotten itself is a new one. See [`CLIENTS_MAX`].

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use compact_str::CompactString;

use super::codec::{self, SpecHash, chain, tag};
use super::types::{Origin, Outcome, Refusal};

/// Clients remembered; the one that was idle longest goes first. A client that comes back after 1024 others
/// wrote can no longer retry an old command, which a retry within seconds does not notice.
pub const CLIENTS_MAX: usize = 1_024;

/// Outcomes remembered per client, which is also how many of its writes may be under way at once.
pub const OUTCOMES_MAX: usize = 32;

/// The sessions of all clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    clients: BTreeMap<CompactString, Session>,
    /// (last use, client), one per client: the first is evicted first. Ties go by name, so that every node evicts
    /// the same.
    by_use: BTreeSet<(u64, CompactString)>,
    /// Wrapping sum over clients and outcomes, kept up with them.
    hash: u64,
}

/// What is remembered of one client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// The catalog's revision when it last wrote.
    pub used: u64,
    /// Numbers up to this one are forgotten; 0 if none is.
    pub forgotten: u64,
    /// By number; all greater than `forgotten`.
    pub outcomes: BTreeMap<u64, Done>,
}

/// A command that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Of the command, to notice a number that is used twice.
    pub digest: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// Of both.
    hash: u64,
}

impl Done {
    /// A command of this digest had this outcome; it concerned a spec of this hash, if it is known.
    pub fn new(digest: u64, outcome: Outcome, spec: Option<SpecHash>) -> Done {
        let hash = chain(&[digest, codec::outcome_hash(&outcome, spec)]);
        Done { digest, outcome, hash }
    }
}

impl Sessions {
    /// What a command of this origin and digest must answer without being applied; none if it is to be applied.
    pub fn recall(&self, origin: &Origin, digest: u64) -> Option<Outcome> {
        let session = self.clients.get(origin.client.as_str())?;
        if let Some(done) = session.outcomes.get(&origin.seq) {
            let same = done.digest == digest;
            return Some(if same { done.outcome.clone() } else { Outcome::Refused(Refusal::SequenceReused) });
        }
        (origin.seq <= session.forgotten).then_some(Outcome::Refused(Refusal::StaleSequence))
    }

    /// Notes what became of a command that [`Sessions::recall`] did not know, at the catalog's `revision`.
    pub fn remember(&mut self, origin: &Origin, revision: u64, done: Done) {
        let name = codec::name_hash(&origin.client);
        let session = match self.clients.entry(origin.client.clone()) {
            Entry::Occupied(known) => {
                let session = known.into_mut();
                self.hash = self.hash.wrapping_sub(session.head_hash(name));
                session
            }
            Entry::Vacant(new) => {
                self.by_use.insert((revision, origin.client.clone()));
                new.insert(Session { used: revision, ..Session::default() })
            }
        };
        if session.used != revision {
            self.by_use.remove(&(session.used, origin.client.clone()));
            self.by_use.insert((revision, origin.client.clone()));
            session.used = revision;
        }
        self.hash = self.hash.wrapping_add(outcome_hash(name, origin.seq, &done));
        session.outcomes.insert(origin.seq, done);
        if session.outcomes.len() > OUTCOMES_MAX
            && let Some((seq, done)) = session.outcomes.pop_first()
        {
            self.hash = self.hash.wrapping_sub(outcome_hash(name, seq, &done));
            session.forgotten = seq;
        }
        self.hash = self.hash.wrapping_add(session.head_hash(name));
        if self.clients.len() > CLIENTS_MAX {
            self.evict();
        }
    }

    /// Every client, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&CompactString, &Session)> {
        self.clients.iter()
    }

    /// Puts back a client that is not there yet, without its outcomes.
    pub fn insert(&mut self, client: CompactString, used: u64, forgotten: u64) {
        let session = Session { used, forgotten, outcomes: BTreeMap::new() };
        self.hash = self.hash.wrapping_add(session.head_hash(codec::name_hash(&client)));
        self.by_use.insert((used, client.clone()));
        self.clients.insert(client, session);
    }

    /// One more outcome of a client put back before; false if there is no such client, or it is there already.
    pub fn insert_outcome(&mut self, client: &str, seq: u64, done: Done) -> bool {
        let Some(session) = self.clients.get_mut(client) else { return false };
        if session.outcomes.contains_key(&seq) {
            return false;
        }
        self.hash = self.hash.wrapping_add(outcome_hash(codec::name_hash(client), seq, &done));
        session.outcomes.insert(seq, done);
        true
    }

    /// Its part of the catalog's hash.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    fn evict(&mut self) {
        let Some((_, client)) = self.by_use.pop_first() else { return };
        if let Some(session) = self.clients.remove(&client) {
            let name = codec::name_hash(&client);
            self.hash = self.hash.wrapping_sub(session.head_hash(name));
            for (seq, done) in &session.outcomes {
                self.hash = self.hash.wrapping_sub(outcome_hash(name, *seq, done));
            }
        }
    }
}

impl Session {
    /// Of what it is without its outcomes.
    fn head_hash(&self, name: u64) -> u64 {
        chain(&[tag::CLIENT, name, self.used, self.forgotten])
    }
}

fn outcome_hash(name: u64, seq: u64, done: &Done) -> u64 {
    chain(&[tag::OUTCOME, name, seq, done.hash])
}
