//! What must hold at every tick, and at every answer.
//!
//! The authority is what lies on a quorum's disks: an entry is committed once a node says so, and from then on it
//! never changes (S6). Committed entries are replayed, in order, into a reference catalog; every node's catalog
//! must equal it at the revision it is at (S7), every answer must equal it at the revision it names (S1 to S3),
//! every watcher must have heard exactly its events (W1 to W11). What clients did is joined with it by their
//! sequence numbers and conditions (S5, S8, S9, D1), what leases did by incarnation (E1 to E6).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use registry_node::{
    catalog::{Catalog, Command, Event, EventKind, InstanceId, Proposal, Record, ServiceName},
    consensus::{
        NodeStatus, Role,
        seam::{Entry, What},
    },
};

use crate::{disk::Platter, trace::Trace};

/// The shortest lease that clients of the simulation ask for.
pub const TTL: Duration = Duration::from_millis(1_500);

/// The judge of one run. Cheap to clone.
#[derive(Clone)]
pub struct Judge(Arc<Mutex<State>>);

struct State {
    trace: Trace,
    violations: Vec<String>,
    disks: BTreeMap<u64, Platter>,
    /// By index, from 0: what is committed.
    log: Vec<Entry>,
    /// Members after the last entry, voting or not.
    nodes: BTreeSet<u64>,
    /// Nodes in quarantine: how often each had voted when it began, and how much was committed.
    quarantined: BTreeMap<u64, (usize, u64)>,
    /// Voters from this index on.
    members: BTreeMap<u64, Vec<BTreeSet<u64>>>,
    reference: Catalog,
    /// By revision: the records, the events and who caused them.
    states: Vec<Moment>,
    /// By index: the revision and the hash after it.
    catalogs: Vec<(u64, u64)>,
    /// Leader ids that were seen to lead.
    leaders: BTreeSet<(u64, u64)>,
    /// When a term's first entry was first seen on a disk, and each expiry.
    term_began: BTreeMap<u64, Duration>,
    first_seen: BTreeMap<(u64, u64, u64), Duration>,
    /// (client, seq): the revision of its effect, if it has had one.
    effects: BTreeMap<(String, u64), u64>,
    /// (client, seq) of every request that lies in the log.
    requested: BTreeSet<(String, u64)>,
    /// (instance, revision): who replaced the record of that revision on the condition that it is the newest.
    winners: BTreeMap<(InstanceId, u64), u64>,
    /// Instances whose clients have never stopped to try since they were last renewed.
    kept: BTreeSet<InstanceId>,
    /// Requests whose answer was that nothing happened.
    without_effect: BTreeSet<(String, u64)>,
    /// The greatest revision that anybody was told of.
    acked_revision: u64,
    /// (instance, reg_rev): when its last acknowledged renewal was called.
    renewed: BTreeMap<(InstanceId, u64), Duration>,
    /// Incarnations that are gone: at which revision.
    gone: BTreeMap<(InstanceId, u64), u64>,
    /// Answers about revisions that are not replayed yet.
    pending: Vec<Claim>,
    counts: Counts,
}

/// A revision of the reference.
struct Moment {
    records: Vec<Arc<Record>>,
    events: Vec<Event>,
    origin: Option<(String, u64)>,
}

/// How much a run has exercised.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub entries: u64,
    pub revisions: u64,
    pub leaders: u64,
    pub expiries: u64,
    pub writes: u64,
    pub unknown: u64,
    pub reads: u64,
    pub renewals: u64,
    pub watched: u64,
    pub resets: u64,
    /// Writes on a condition, and losses of the quorum.
    pub conditions: u64,
    pub outages: u64,
    pub quarantines: u64,
    pub repairs: u64,
    /// Expiries that were committed in another term than they were proposed in.
    pub late_expiries: u64,
    /// Runs whose members cannot decide anything any more in the end.
    pub stranded: u64,
}

/// Something that an answer said.
#[derive(Clone)]
pub enum Claim {
    /// These are the records at a revision.
    Records { revision: u64, of: Of, records: Vec<Arc<Record>> },
    /// A node's catalog is at this revision and has this hash after a log index.
    Catalog { index: u64, node: u64, revision: u64, hash: u64 },
    /// This request took effect at this revision.
    Write { revision: u64, client: String, seq: u64 },
    /// By this revision the request had taken effect, not before another; a call that changed nothing has no client.
    Took { after: u64, revision: u64, client: Option<String>, seq: u64 },
    /// These are all events of a service, or of all, after one revision up to another.
    Events { after: u64, upto: u64, service: Option<ServiceName>, batches: Vec<(u64, Vec<Event>)> },
}

/// Whose records.
#[derive(Clone)]
pub enum Of {
    All,
    Service(ServiceName),
    Instance(InstanceId),
}

impl Of {
    fn matches(&self, record: &Record) -> bool {
        match self {
            Self::All => true,
            Self::Service(service) => record.spec.service == *service,
            Self::Instance(id) => record.spec.id == *id,
        }
    }
}

impl Claim {
    fn revision(&self) -> u64 {
        match self {
            Self::Records { revision, .. }
            | Self::Write { revision, .. }
            | Self::Catalog { revision, .. }
            | Self::Took { revision, .. } => *revision,
            Self::Events { upto, .. } => *upto,
        }
    }
}

/// A node, as it is at a tick.
pub struct Observed {
    pub id: u64,
    pub status: NodeStatus,
}

impl Judge {
    pub fn new(trace: Trace, disks: BTreeMap<u64, Platter>, voters: BTreeSet<u64>) -> Self {
        let states = vec![Moment { records: Vec::new(), events: Vec::new(), origin: None }];
        Self(Arc::new(Mutex::new(State {
            trace,
            violations: Vec::new(),
            disks,
            log: Vec::new(),
            nodes: BTreeSet::new(),
            quarantined: BTreeMap::new(),
            members: BTreeMap::from([(0, vec![voters])]),
            reference: Catalog::default(),
            states,
            catalogs: Vec::new(),
            leaders: BTreeSet::new(),
            term_began: BTreeMap::new(),
            first_seen: BTreeMap::new(),
            effects: BTreeMap::new(),
            requested: BTreeSet::new(),
            winners: BTreeMap::new(),
            kept: BTreeSet::new(),
            without_effect: BTreeSet::new(),
            acked_revision: 0,
            renewed: BTreeMap::new(),
            gone: BTreeMap::new(),
            pending: Vec::new(),
            counts: Counts::default(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while it is held")
    }

    /// Something does not hold.
    pub fn violated(&self, what: String) {
        self.state().violations.push(what);
    }

    /// What did not hold so far.
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    pub fn counts(&self) -> Counts {
        let state = self.state();
        Counts {
            entries: state.log.len() as u64,
            revisions: state.reference.revision(),
            leaders: state.leaders.len() as u64,
            ..state.counts
        }
    }

    /// The greatest revision that anybody was told of: nobody who asks from now on may be told less.
    pub fn floor(&self) -> u64 {
        self.state().acked_revision
    }

    /// The members, voting or not.
    pub fn members(&self) -> BTreeSet<u64> {
        self.state().nodes.clone()
    }

    /// Whether those that are `up` are a majority of every set of voters that may count now: what was committed last,
    /// and what they hold after it.
    pub fn can_decide(&self, up: &BTreeSet<u64>) -> bool {
        let state = self.state();
        let committed = state.members.last_key_value().map(|(_, voters)| voters.clone());
        let mut sets: Vec<BTreeSet<u64>> = committed.into_iter().flatten().collect();
        for id in up {
            state.disks[id].durable(|durable| {
                for entry in durable.log.range(state.log.len() as u64..).map(|(_, entry)| entry) {
                    if let What::Members { voters, .. } = &entry.what {
                        sets.extend(voters.iter().cloned());
                    }
                }
            });
        }
        sets.iter().all(|voters| quorum(voters, |voter| up.contains(voter)))
    }

    /// A new disk.
    pub fn add_disk(&self, id: u64, disk: Platter) {
        self.state().disks.insert(id, disk);
    }

    /// What is registered, as far as it has been replayed.
    pub fn registered(&self) -> Vec<Arc<Record>> {
        self.state().reference.list(None)
    }

    pub fn revision(&self) -> u64 {
        self.state().reference.revision()
    }

    pub fn hash(&self) -> u64 {
        self.state().reference.hash()
    }

    /// The tick: looks at every running node and every disk.
    pub fn look(&self, nodes: &[Observed]) {
        let state = &mut *self.state();
        state.look_at_disks();
        for node in nodes {
            state.look_at_leader(node);
        }
        // Index 0 is also what a node says that knows of nothing.
        let committed =
            nodes.iter().map(|node| node.status.committed_index.max(node.status.applied_index)).max();
        if let Some(committed) = committed.filter(|index| *index > 0) {
            state.commit_up_to(committed);
        }
        for node in nodes {
            state.look_at_catalog(node);
            state.look_at_quarantine(node);
        }
        state.settle_claims();
    }

    /// An answer to a call that began when [`Judge::floor`] was `floor`.
    pub fn answered(&self, floor: u64, linearizable: bool, claim: Claim) {
        let state = &mut *self.state();
        let revision = claim.revision();
        if linearizable {
            let least = floor + u64::from(matches!(claim, Claim::Write { .. }));
            if revision < least {
                state.violations.push(format!(
                    "S2: revision {revision} was answered, and {floor} was acknowledged before the call"
                ));
            }
            state.acked_revision = state.acked_revision.max(revision);
        }
        state.pending.push(claim);
    }

    /// A write's answer was that nothing happened.
    pub fn had_no_effect(&self, client: &str, seq: u64) {
        let state = &mut *self.state();
        let key = (client.to_owned(), seq);
        if let Some(revision) = state.effects.get(&key) {
            state.violations.push(format!(
                "S8: {client}/{seq} was said to have had no effect, and has at revision {revision}"
            ));
        }
        state.without_effect.insert(key);
    }

    /// A renewal that was called at `called` was acknowledged, when [`Judge::floor`] was `floor` at the call.
    pub fn renewed(&self, id: &InstanceId, reg_rev: u64, called: Duration, floor: u64) {
        let state = &mut *self.state();
        state.counts.renewals += 1;
        let key = (id.clone(), reg_rev);
        if let Some(gone) = state.gone.get(&key)
            && *gone <= floor
        {
            state
                .violations
                .push(format!("E3: {id} of revision {reg_rev} was renewed, and had gone at revision {gone}"));
        }
        let last = state.renewed.entry(key).or_default();
        *last = called.max(*last);
    }

    /// A registration that was called at `called` was acknowledged.
    pub fn granted(&self, id: &InstanceId, reg_rev: u64, called: Duration) {
        let state = &mut *self.state();
        let last = state.renewed.entry((id.clone(), reg_rev)).or_default();
        *last = called.max(*last);
    }

    /// From now on a client tries all the time to renew it, or does no more.
    pub fn keep(&self, id: &InstanceId, tries: bool) {
        let kept = &mut self.state().kept;
        let _ = if tries { kept.insert(id.clone()) } else { kept.remove(id) };
    }

    pub fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.state().counts);
    }
}

impl State {
    fn fail(&mut self, what: String) {
        self.violations.push(what);
    }

    fn look_at_disks(&mut self) {
        let now = self.trace.now();
        let mut broken = Vec::new();
        for (id, disk) in &self.disks {
            disk.durable(|durable| {
                broken.extend(durable.broken.iter().map(|what| format!("{what} (node {id})")));
                for entry in durable.log.values().rev() {
                    let key = (entry.term, entry.node, entry.index);
                    if self.first_seen.contains_key(&key) {
                        break; // logs grow at their ends
                    }
                    self.first_seen.insert(key, now);
                    self.term_began.entry(entry.term).or_insert(now);
                }
            });
        }
        self.violations.append(&mut broken);
    }

    /// S6: who leads was voted for by a quorum, durably, and has everything that was committed before.
    fn look_at_leader(&mut self, node: &Observed) {
        if node.status.role != Role::Leader || self.leaders.contains(&(node.status.term, node.id)) {
            return;
        }
        let id = (node.status.term, node.id);
        let votes = |voter: &u64| self.disks[voter].durable(|durable| durable.voted.contains(&id));
        let configs = self.configs();
        if !configs.iter().any(|config| config.iter().all(|voters| quorum(voters, votes))) {
            let voted: Vec<_> = self.disks.keys().filter(|voter| votes(voter)).copied().collect();
            self.fail(format!(
                "S6: node {} leads term {} with the durable votes of {voted:?} only",
                id.1, id.0
            ));
        }
        let newest = self.leaders.last().is_none_or(|(term, _)| *term < id.0);
        if newest && (node.status.last_log_index + 1) < self.log.len() as u64 {
            self.fail(format!(
                "S6: node {} leads term {} with a log up to {}, and {} entries are committed",
                id.1,
                id.0,
                node.status.last_log_index,
                self.log.len()
            ));
        }
        self.leaders.insert(id);
    }

    /// The memberships that may count now: the last that is committed, and those on disks after it.
    fn configs(&self) -> Vec<Vec<BTreeSet<u64>>> {
        let mut configs: Vec<_> = self.members.values().rev().take(2).cloned().collect();
        for disk in self.disks.values() {
            disk.durable(|durable| {
                for entry in durable.log.range(self.log.len() as u64..).map(|(_, entry)| entry) {
                    if let What::Members { voters, .. } = &entry.what {
                        configs.push(voters.clone());
                    }
                }
            });
        }
        // A leader ends a joint membership as soon as that is committed, and counts by the new one alone before its
        // entry lies on any disk. That is safe: until it does, whoever is elected needs majorities of both.
        let ends: Vec<_> =
            configs.iter().filter(|sets| sets.len() == 2).map(|sets| sets[1..].to_vec()).collect();
        configs.extend(ends);
        configs
    }

    /// S6, S1: what is committed lies on a quorum's disks, and is one entry for ever.
    fn commit_up_to(&mut self, index: u64) {
        while (self.log.len() as u64) <= index {
            let at = self.log.len() as u64;
            let mut holders: BTreeMap<(u64, u64), (BTreeSet<u64>, Entry)> = BTreeMap::new();
            let mut covered = BTreeSet::new();
            for (id, disk) in &self.disks {
                disk.durable(|durable| {
                    if durable.reached() >= at && at > 0 {
                        covered.insert(*id);
                    }
                    for entry in durable.acknowledged(at) {
                        let holder = holders.entry((entry.term, entry.node));
                        holder.or_insert_with(|| (BTreeSet::new(), entry.clone())).0.insert(*id);
                    }
                });
            }
            let configs = self.configs();
            let on_quorum = |ids: &BTreeSet<u64>| {
                let holds = |voter: &u64| ids.contains(voter) || covered.contains(voter);
                configs.iter().any(|config| config.iter().all(|voters| quorum(voters, holds)))
            };
            let chosen =
                holders.values().filter(|(ids, _)| on_quorum(ids)).max_by_key(|(ids, e)| (ids.len(), e.term));
            match chosen.map(|(_, entry)| entry.clone()) {
                Some(entry) => self.replay(entry),
                None => {
                    let held: Vec<_> = holders.iter().map(|(id, (nodes, _))| (*id, nodes.clone())).collect();
                    // Once is enough: everything after it would be reported as well.
                    if self.violations.is_empty() {
                        self.fail(format!("S6: index {at} is committed, and lies on no quorum's disks: {held:?}, snapshots on {covered:?}"));
                    }
                    return;
                }
            }
        }
    }

    fn replay(&mut self, entry: Entry) {
        let index = entry.index;
        let id = (entry.term, entry.node, entry.index);
        let seen = self.first_seen.get(&id).copied().unwrap_or_default();
        match &entry.what {
            What::Blank => {}
            What::Members { voters, nodes } => {
                // Who is taken out is remembered, so that it never comes back.
                let gone = std::mem::replace(&mut self.nodes, nodes.clone());
                gone.difference(nodes).for_each(|id| self.reference.retire_node(*id));
                self.members.insert(index, voters.clone());
            }
            What::Batch(proposals) => {
                for proposal in proposals {
                    let late = |term| term != entry.term;
                    self.counts.late_expiries +=
                        u64::from(matches!(proposal.command, Command::Expire { term, .. } if late(term)));
                    let before = self.reference.revision();
                    let applied = self.reference.apply(entry.term, proposal);
                    self.note_condition(proposal, before, !applied.events.is_empty());
                    if applied.events.is_empty() {
                        continue;
                    }
                    let origin = proposal.origin.as_ref().map(|o| (o.client.to_string(), o.seq));
                    if let Some(origin) = &origin {
                        self.note_effect(origin.clone(), applied.revision);
                    }
                    if let Command::Expire { term, victims } = &proposal.command {
                        self.note_expiry(*term, victims, &entry, &applied.events, seen);
                    }
                    self.note_gone(&applied.events);
                    if applied.revision != self.states.len() as u64 {
                        self.fail(format!(
                            "S1: revision {} follows {}",
                            applied.revision,
                            self.states.len() - 1
                        ));
                    }
                    self.states.push(Moment {
                        records: self.reference.list(None),
                        events: applied.events,
                        origin,
                    });
                }
            }
        }
        self.catalogs.push((self.reference.revision(), self.reference.hash()));
        self.log.push(entry);
    }

    /// S9: of those who name the same condition one wins, and it is met. Looked at in the records of the revision
    /// before, not in the catalog that decided.
    fn note_condition(&mut self, proposal: &Proposal, before: u64, took_effect: bool) {
        let again = proposal
            .origin
            .as_ref()
            .is_some_and(|origin| !self.requested.insert((origin.client.to_string(), origin.seq)));
        let Command::Register { spec, expected: Some(expected) } = &proposal.command else { return };
        let records = &self.states[before as usize].records;
        let current = records.iter().find(|r| r.spec.id == spec.id).map_or(0, |record| record.mod_rev);
        self.counts.conditions += 1;
        match took_effect {
            true if current != *expected => self.fail(format!(
                "S9: {} was registered where revision {expected} was expected, and is at {current}",
                spec.id
            )),
            false if current == *expected && !again => self.fail(format!(
                "S9: nobody registered {} where revision {expected} was expected, and was there",
                spec.id
            )),
            true if current > 0 => {
                if let Some(other) = self.winners.insert((spec.id.clone(), current), before + 1) {
                    self.fail(format!(
                        "S9: {} at {current} was replaced at {other} and {}",
                        spec.id,
                        before + 1
                    ));
                }
            }
            _ => {}
        }
    }

    /// S5, S8.
    fn note_effect(&mut self, origin: (String, u64), revision: u64) {
        if self.without_effect.contains(&origin) {
            self.fail(format!(
                "S8: {origin:?} was said to have had no effect, and has at revision {revision}"
            ));
        }
        if let Some(before) = self.effects.insert(origin.clone(), revision) {
            self.fail(format!("S5: {origin:?} took effect at revisions {before} and {revision}"));
        }
    }

    /// E1, E4, E5.
    fn note_expiry(
        &mut self,
        term: u64,
        victims: &[(InstanceId, u64)],
        entry: &Entry,
        events: &[Event],
        seen: Duration,
    ) {
        if term != entry.term {
            self.fail(format!("E4: an expiry of term {term} took effect in term {}", entry.term));
        }
        let began = self.term_began.get(&entry.term).copied().unwrap_or_default();
        if seen < began + TTL {
            self.fail(format!("E5: an expiry at {seen:?} in a term that began at {began:?}"));
        }
        for event in events {
            let key = (event.record.spec.id.clone(), event.record.reg_rev);
            if !victims.contains(&key) {
                self.fail(format!("E4: {key:?} expired, and the expiry named {victims:?}"));
            }
            self.counts.expiries += 1;
            if self.kept.contains(&key.0) {
                self.fail(format!("E6: {key:?} expired at {seen:?}, and its client never stopped to try"));
            }
            if let Some(renewed) = self.renewed.get(&key)
                && seen < *renewed + Duration::from_millis(event.record.spec.ttl_ms.into())
            {
                self.fail(format!("E1: {key:?} expired at {seen:?}, and was renewed at {renewed:?}"));
            }
        }
    }

    fn note_gone(&mut self, events: &[Event]) {
        for event in events {
            let id = &event.record.spec.id;
            match event.kind {
                EventKind::Delete | EventKind::Expire => {
                    self.gone.insert((id.clone(), event.record.reg_rev), event.revision);
                }
                // A registration ends the one before.
                EventKind::Put if event.record.reg_rev == event.revision => {
                    let before =
                        self.states.last().and_then(|m| m.records.iter().find(|r| r.spec.id == *id).cloned());
                    if let Some(before) = before {
                        self.gone.insert((id.clone(), before.reg_rev), event.revision);
                    }
                }
                EventKind::Put => {}
            }
        }
    }

    /// D4: who may have lost entries neither votes nor leads, until its disk holds again all that was committed when
    /// it was found out.
    fn look_at_quarantine(&mut self, node: &Observed) {
        let (votes, end) = self.disks[&node.id].durable(|durable| (durable.voted.len(), durable.end()));
        if node.status.quarantined {
            let committed = self.log.len() as u64;
            let (before, _) = *self.quarantined.entry(node.id).or_insert_with(|| {
                self.counts.quarantines += 1;
                (votes, committed)
            });
            if votes > before || matches!(node.status.role, Role::Leader | Role::Candidate) {
                self.fail(format!("D4: node {} votes or campaigns in quarantine", node.id));
            }
        } else if let Some((_, committed)) = self.quarantined.remove(&node.id) {
            self.counts.repairs += 1;
            self.disks[&node.id].note_repaired();
            if end < committed {
                self.fail(format!(
                    "D4: node {} takes part again with a log up to {end}, and {committed} entries were committed before",
                    node.id
                ));
            }
        }
    }

    /// S7. What it has just applied may be known to be committed at the next tick only.
    fn look_at_catalog(&mut self, node: &Observed) {
        let status = &node.status;
        // Nothing is applied yet, or index 0, which founds the cluster: the catalog is empty either way.
        let (index, revision, hash) = (status.applied_index, status.revision, status.catalog_hash);
        self.pending.push(Claim::Catalog { index, node: node.id, revision, hash });
    }

    fn settle_claims(&mut self) {
        let claims = std::mem::take(&mut self.pending);
        for claim in claims {
            let known = match &claim {
                Claim::Catalog { index, .. } => *index < self.catalogs.len() as u64,
                _ => claim.revision() < self.states.len() as u64,
            };
            if known { self.settle(claim) } else { self.pending.push(claim) }
        }
    }

    fn settle(&mut self, claim: Claim) {
        match claim {
            Claim::Records { revision, of, records } => {
                let expected = self.states[revision as usize].records.iter();
                let expected: Vec<_> = expected.filter(|record| of.matches(record)).cloned().collect();
                if expected != records {
                    self.fail(format!(
                        "S3: a read at revision {revision} saw {records:?}, and there was {expected:?}"
                    ));
                }
            }
            Claim::Catalog { index, node, revision, hash } => {
                let expected = self.catalogs[index as usize];
                if expected != (revision, hash) {
                    self.fail(format!(
                        "S7: node {node} has another catalog after index {index}: (revision, hash) is {:?}, not {expected:?}",
                        (revision, hash)
                    ));
                }
            }
            Claim::Write { revision, client, seq } => {
                let origin = &self.states[revision as usize].origin;
                if origin.as_ref() != Some(&(client.clone(), seq)) {
                    self.fail(format!(
                        "S1: {client}/{seq} was acknowledged at revision {revision}, which is {origin:?}'s"
                    ));
                }
            }
            Claim::Took { after, revision, client: Some(client), seq } => {
                let at = self.effects.get(&(client.clone(), seq)).copied();
                if !at.is_some_and(|at| after < at && at <= revision) {
                    self.fail(format!("S1: {client}/{seq} was acknowledged between {after} and {revision}, and took effect at {at:?}"));
                }
            }
            Claim::Took { client: None, .. } => {}
            Claim::Events { after, upto, service, batches } => {
                let concerns =
                    |event: &Event| service.as_ref().is_none_or(|s| event.record.spec.service == *s);
                let expected = (after + 1..=upto).map(|revision| {
                    let events = self.states[revision as usize].events.iter();
                    (revision, events.filter(|event| concerns(event)).cloned().collect::<Vec<_>>())
                });
                let expected: Vec<_> = expected.filter(|(_, events)| !events.is_empty()).collect();
                if expected != batches {
                    let heard: Vec<_> =
                        batches.iter().map(|(revision, events)| (*revision, events.len())).collect();
                    self.fail(format!(
                        "W3: after {after} up to {upto} a watcher of {service:?} heard {heard:?}"
                    ));
                }
            }
        }
    }

    /// Claims that nothing that was committed can settle.
    fn unsettled(&self) -> usize {
        self.pending.len()
    }
}

impl Judge {
    /// At the end: everything that was claimed must have been about something that was committed.
    pub fn close(&self) {
        let state = &mut *self.state();
        state.settle_claims();
        let (left, at) = (state.unsettled(), state.states.len() - 1);
        if left > 0 {
            state.fail(format!(
                "D1: {left} answers are about revisions that are not committed; the last is {at}"
            ));
        }
    }
}

fn quorum(voters: &BTreeSet<u64>, has: impl Fn(&u64) -> bool) -> bool {
    voters.iter().filter(|voter| has(voter)).count() * 2 > voters.len()
}
