//! Makes a retried command apply once: what became of the last commands of each client that numbers them.
//!
//! A client whose answer was lost asks again with the same number and gets the first answer. Bounded in both
//! directions; what was forgotten is refused rather than applied a second time.

use std::collections::{BTreeMap, BTreeSet};

use super::types::{Origin, Outcome, Refusal};

/// Clients remembered; the one that was idle longest goes first. A client that comes back after 1024 others
/// wrote can no longer retry an old command, which a retry within seconds does not notice.
pub const CLIENTS_MAX: usize = 1_024;

/// Outcomes remembered per client, which is also how many of its writes may be under way at once.
pub const OUTCOMES_MAX: usize = 32;

/// The sessions of all clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    clients: BTreeMap<String, Session>,
    /// (last use, client), one per client: the first is evicted first. Ties go by name, so that every node evicts
    /// the same.
    by_use: BTreeSet<(u64, String)>,
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
}

impl Sessions {
    /// What a command of this origin and digest must answer without being applied; none if it is to be applied.
    pub fn recall(&self, origin: &Origin, digest: u64) -> Option<Outcome> {
        let session = self.clients.get(&origin.client)?;
        if let Some(done) = session.outcomes.get(&origin.seq) {
            let same = done.digest == digest;
            return Some(if same { done.outcome.clone() } else { Outcome::Refused(Refusal::SequenceReused) });
        }
        (origin.seq <= session.forgotten).then_some(Outcome::Refused(Refusal::StaleSequence))
    }

    /// Notes what became of a command that [`Sessions::recall`] did not know, at the catalog's `revision`.
    pub fn remember(&mut self, origin: &Origin, revision: u64, done: Done) {
        let mut session = self.clients.remove(&origin.client).unwrap_or_default();
        self.by_use.remove(&(session.used, origin.client.clone()));
        session.used = revision;
        session.outcomes.insert(origin.seq, done);
        if session.outcomes.len() > OUTCOMES_MAX
            && let Some((seq, _)) = session.outcomes.pop_first()
        {
            session.forgotten = seq;
        }
        self.insert(origin.client.clone(), session);
        if self.clients.len() > CLIENTS_MAX {
            self.evict();
        }
    }

    /// Every client, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Session)> {
        self.clients.iter()
    }

    /// Puts back what [`Sessions::iter`] gave.
    pub fn insert(&mut self, client: String, session: Session) {
        self.by_use.insert((session.used, client.clone()));
        self.clients.insert(client, session);
    }

    /// One more outcome of a client put back before; false if there is no such client.
    pub fn insert_outcome(&mut self, client: &str, seq: u64, done: Done) -> bool {
        let session = self.clients.get_mut(client);
        session.map(|session| session.outcomes.insert(seq, done)).is_some()
    }

    fn evict(&mut self) {
        if let Some((_, client)) = self.by_use.pop_first() {
            self.clients.remove(&client);
        }
    }
}
