//! The catalog: who is registered, as a pure state machine.
//!
//! Every node applies the same proposals in the same order and must arrive at the same bytes: no clock, no
//! randomness, no I/O, no order of a hash map. Revisions are the catalog's own time: one per command that changed
//! something, and each comes with at least one event, so watchers can tell that they miss none.
//!
//! `types` is the vocabulary (`metadata` is a part of it), `sessions` makes retries apply once, `retired` keeps the ids of removed nodes from
//! coming back, `codec` is what leaves memory.

mod codec;
mod metadata;
mod retired;
mod sessions;
mod types;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use codec::SpecHash;
use retired::Retired;
use sessions::{Done, Sessions};

pub use codec::{
    HASH_VERSION, RestoreError, decode_outcome, decode_proposal, encode_outcome, encode_proposal,
};
pub use metadata::Metadata;
pub use types::{
    Applied, Command, Event, EventKind, InstanceId, Invalid, NAME_BYTES_MAX, Origin, Outcome, Proposal,
    Provenance, Record, Refusal, ServiceName, Spec, Status, WEIGHT_DEFAULT, WEIGHT_MAX,
};

/// The registered instances at one revision. A clone shares its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    revision: u64,
    feature_level: u32,
    records: BTreeMap<InstanceId, Kept>,
    /// The ids of each service that has any; the same instances as in `records`.
    services: BTreeMap<ServiceName, BTreeSet<InstanceId>>,
    sessions: Sessions,
    retired: Retired,
    /// Wrapping sum of [`codec::record_hash`] over `records`: order does not matter, removal subtracts.
    records_hash: u64,
}

/// A record and its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    record: Arc<Record>,
    hash: u64,
}

impl Catalog {
    /// Applies a proposal from an entry of `entry_term`. Whatever it asks, the answer is the same on every node
    /// whose catalog is the same.
    pub fn apply(&mut self, entry_term: u64, proposal: &Proposal) -> Applied {
        let Proposal { command, cause, origin } = proposal;
        let hash = match command {
            Command::Register { spec, .. } => Some(SpecHash::of(spec)),
            _ => None,
        };
        let ticket = origin.as_ref().map(|origin| (origin, codec::command_digest(command, hash)));
        if let Some(outcome) = ticket.and_then(|(origin, digest)| self.sessions.recall(origin, digest)) {
            return Applied { revision: self.revision, outcome, events: Vec::new() };
        }
        let (outcome, events) = match (command, hash) {
            (Command::Register { spec, expected }, Some(hash)) => self.register(spec, *expected, cause, hash),
            _ => self.execute(entry_term, command, cause),
        };
        if let Some((origin, digest)) = ticket {
            self.sessions.remember(origin, self.revision, Done::new(digest, outcome.clone(), hash));
        }
        Applied { revision: self.revision, outcome, events }
    }

    /// How many commands changed something.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Goes on from `revision`, if that is higher: what begins again must not give out a revision a second time.
    pub fn skip_to(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// What every member is known to understand.
    pub fn feature_level(&self) -> u32 {
        self.feature_level
    }

    /// The record of `id`.
    pub fn get(&self, id: &InstanceId) -> Option<&Arc<Record>> {
        self.records.get(id).map(|kept| &kept.record)
    }

    /// All records, or those of one service, by id.
    pub fn list(&self, service: Option<&ServiceName>) -> Vec<Arc<Record>> {
        match service {
            None => self.records().cloned().collect(),
            Some(service) => self.members(service).cloned().collect(),
        }
    }

    /// Every service that has an instance, by name: the name, how many instances, how many of them are up.
    pub fn services(&self) -> Vec<(ServiceName, usize, usize)> {
        let up = |name| self.members(name).filter(|record| record.spec.status == Status::Up).count();
        self.services.iter().map(|(name, ids)| (name.clone(), ids.len(), up(name))).collect()
    }

    /// All records, by id.
    pub fn records(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.records.values().map(|kept| &kept.record)
    }

    /// How many instances are registered.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Notes that a node was removed from the cluster now: its id is never a member's again. Takes no revision.
    pub fn retire_node(&mut self, id: u64) {
        self.retired.note(id, self.revision);
    }

    /// The revision at which the node of this id was removed, if it was one. An id that is too old to be
    /// remembered by itself counts as removed with the oldest that is.
    pub fn retired_node(&self, id: u64) -> Option<u64> {
        self.retired.revision_of(id)
    }

    /// A hash of everything: revision, feature level, records, what makes retries apply once, removed nodes. The
    /// same on every node that applied the same entries, on every architecture; kept up with each change, so that
    /// asking costs nothing. Each part is a wrapping sum over its items, whose order does not matter, of
    /// `mix(fnv1a(..))` of their frozen bytes; `mix` is the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
    /// It finds accidents, not attackers. [`HASH_VERSION`] names this definition.
    pub fn hash(&self) -> u64 {
        let parts = [
            codec::mix(self.revision),
            codec::chain(&[codec::tag::FEATURE_LEVEL, self.feature_level.into()]),
            self.records_hash,
            self.sessions.hash(),
            self.retired.hash(),
        ];
        codec::mix(parts.into_iter().fold(0, u64::wrapping_add))
    }

    /// What a snapshot of version 1 says: of revision and records alone.
    fn hash_of_version_1(&self) -> u64 {
        codec::mix(codec::mix(self.revision).wrapping_add(self.records_hash))
    }

    fn execute(
        &mut self,
        entry_term: u64,
        command: &Command,
        cause: &Arc<Provenance>,
    ) -> (Outcome, Vec<Event>) {
        match command {
            Command::Register { spec, expected } => self.register(spec, *expected, cause, SpecHash::of(spec)),
            Command::Deregister { id, reg_rev } => self.deregister(id, *reg_rev, cause),
            Command::SetStatus { id, status, reg_rev } => self.set_status(id, *status, *reg_rev, cause),
            Command::Expire { term, .. } if *term != entry_term => refused(Refusal::StaleTerm),
            Command::Expire { victims, .. } => self.expire(victims, cause),
            Command::SetFeatureLevel { level } => {
                self.feature_level = self.feature_level.max(*level);
                (Outcome::FeatureLevel(self.feature_level), Vec::new())
            }
        }
    }

    fn register(
        &mut self,
        spec: &Arc<Spec>,
        expected: Option<u64>,
        cause: &Arc<Provenance>,
        hash: SpecHash,
    ) -> (Outcome, Vec<Event>) {
        if let Some(expected) = expected {
            let current = self.get(&spec.id).map(|record| record.mod_rev);
            if expected != current.unwrap_or(0) {
                return refused(Refusal::Precondition { current });
            }
        }
        self.revision += 1;
        let (reg_rev, mod_rev) = (self.revision, self.revision);
        let record = Arc::new(Record { spec: spec.clone(), reg_rev, mod_rev, changed: cause.clone() });
        let previous = self.put(record.clone(), hash);
        let mut events = Vec::with_capacity(1);
        if let Some(moved) = previous.as_ref().filter(|previous| previous.service() != record.service()) {
            events.push(self.event(EventKind::Delete, moved.clone(), cause));
        }
        events.push(Event { previous, ..self.event(EventKind::Put, record.clone(), cause) });
        (Outcome::Registered(record), events)
    }

    fn deregister(
        &mut self,
        id: &InstanceId,
        reg_rev: Option<u64>,
        cause: &Arc<Provenance>,
    ) -> (Outcome, Vec<Event>) {
        match self.incarnation(id, reg_rev) {
            Err(Refusal::NotFound) => (Outcome::Deregistered { found: false }, Vec::new()),
            Err(refusal) => refused(refusal),
            Ok(record) => {
                self.revision += 1;
                self.take(id);
                (Outcome::Deregistered { found: true }, vec![self.event(EventKind::Delete, record, cause)])
            }
        }
    }

    fn set_status(
        &mut self,
        id: &InstanceId,
        status: Status,
        reg_rev: Option<u64>,
        cause: &Arc<Provenance>,
    ) -> (Outcome, Vec<Event>) {
        let record = match self.incarnation(id, reg_rev) {
            Err(refusal) => return refused(refusal),
            Ok(record) if record.spec.status == status => return (Outcome::StatusSet(record), Vec::new()),
            Ok(record) => record,
        };
        self.revision += 1;
        let mut changed = Record::clone(&record);
        Arc::make_mut(&mut changed.spec).status = status;
        changed.mod_rev = self.revision;
        changed.changed = cause.clone();
        let (record, previous) = (Arc::new(changed), Some(record));
        self.put(record.clone(), SpecHash::of(&record.spec));
        let event = Event { previous, ..self.event(EventKind::Put, record.clone(), cause) };
        (Outcome::StatusSet(record), vec![event])
    }

    fn expire(&mut self, victims: &[(InstanceId, u64)], cause: &Arc<Provenance>) -> (Outcome, Vec<Event>) {
        let mut gone = Vec::new();
        for (id, reg_rev) in victims {
            if self.incarnation(id, Some(*reg_rev)).is_ok() {
                gone.extend(self.take(id));
            }
        }
        if !gone.is_empty() {
            self.revision += 1;
        }
        let ids = gone.iter().map(|record| record.spec.id.clone()).collect();
        let events = gone.into_iter().map(|record| self.event(EventKind::Expire, record, cause)).collect();
        (Outcome::Expired { ids }, events)
    }

    /// The record of `id` if it is the incarnation `reg_rev`, or any when that is none.
    fn incarnation(&self, id: &InstanceId, reg_rev: Option<u64>) -> Result<Arc<Record>, Refusal> {
        let record = self.get(id).ok_or(Refusal::NotFound)?;
        if reg_rev.is_some_and(|reg_rev| reg_rev != record.reg_rev) {
            return Err(Refusal::Superseded { current: record.reg_rev });
        }
        Ok(record.clone())
    }

    fn event(&self, kind: EventKind, record: Arc<Record>, cause: &Arc<Provenance>) -> Event {
        Event { revision: self.revision, kind, record, previous: None, cause: cause.clone() }
    }

    fn members(&self, service: &ServiceName) -> impl Iterator<Item = &Arc<Record>> {
        let ids = self.services.get(service).into_iter().flatten();
        ids.map(|id| self.get(id).expect("`services` names only ids of `records`"))
    }

    /// Puts a record of a spec of this hash in, in place of one of the same id, which is returned.
    fn put(&mut self, record: Arc<Record>, hash: SpecHash) -> Option<Arc<Record>> {
        let hash = hash.record_hash(&record);
        self.records_hash = self.records_hash.wrapping_add(hash);
        let (id, service) = (record.spec.id.clone(), record.spec.service.clone());
        let previous = self.records.insert(id.clone(), Kept { record, hash });
        if let Some(Kept { record, hash }) = &previous {
            self.records_hash = self.records_hash.wrapping_sub(*hash);
            if *record.service() != service {
                self.leave(record);
            }
        }
        let previous = previous.map(|kept| kept.record);
        if previous.as_ref().is_none_or(|record| *record.service() != service) {
            self.services.entry(service).or_default().insert(id);
        }
        previous
    }

    fn take(&mut self, id: &InstanceId) -> Option<Arc<Record>> {
        let Kept { record, hash } = self.records.remove(id)?;
        self.records_hash = self.records_hash.wrapping_sub(hash);
        self.leave(&record);
        Some(record)
    }

    /// Its service has one member less.
    fn leave(&mut self, record: &Record) {
        let ids = self.services.get_mut(record.service()).expect("each record's service is in `services`");
        ids.remove(&record.spec.id);
        if ids.is_empty() {
            self.services.remove(record.service());
        }
    }
}

fn refused(refusal: Refusal) -> (Outcome, Vec<Event>) {
    (Outcome::Refused(refusal), Vec::new())
}
