//! What the control side believes about every endpoint, and the pool that follows from it. Pure: changes of
//! the catalog, probe results and reports go in with the time; due probes and pools come out.
//!
//! Invariants
//! - At most one probe per endpoint counts: none is ordered while one runs, unless what has been learned
//!   meanwhile makes its answer worthless; then that answer is ignored.
//! - An endpoint keeps its [`Endpoint`] (its load, its key) while id and URL stay the same.
//! - A record that the registry removed leaves the pool at once. Only a reset without a single record is
//!   doubted: it looks the same as a registry that lost its data, so what we hold stays until it fails or
//!   [`Policy::hold`] has passed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::member::{Member, Verdict};
use super::outlier;
use super::record::{Change, Event, Probe, Record};
use crate::picker::Strategy;
use crate::pool::{Endpoint, Gate, Pool, Rules, Standing};
use crate::report::Report;
use crate::route::{Limits, Routes};
use crate::table::Table;

#[cfg(test)]
mod tests;

/// Least time from one probe of an endpoint to the next.
const PROBE_GAP: Duration = Duration::from_millis(100);

/// Knobs of probing and of passive judgement.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Between probes of a healthy endpoint.
    pub interval: Duration,
    /// Between probes of one that failed its last, if that is shorter.
    pub fast_interval: Duration,
    /// Probed where a record has no health path.
    pub health_path: String,
    /// Passed probes in a row that bring an endpoint back.
    pub rise: u32,
    /// Failed probes in a row that take one out. A refused connection is proof and needs no second.
    pub fall: u32,
    /// Requests that failed to connect in a row that take one out; refused ones need no second.
    pub connect_failures_max: u32,
    /// How long records outlive a reset that has none.
    pub hold: Duration,
    /// Passive ejection.
    pub outlier: outlier::Policy,
    /// An endpoint that has become up takes its whole share only after so long; zero for at once.
    pub slow_start: Duration,
    /// Who is in rotation, beyond how endpoints stand.
    pub rules: Rules,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            interval: Duration::from_secs(5),
            fast_interval: Duration::from_millis(300),
            health_path: "/health".into(),
            rise: 2,
            fall: 3,
            connect_failures_max: 3,
            hold: Duration::from_secs(30),
            outlier: outlier::Policy::default(),
            slow_start: Duration::ZERO,
            rules: Rules::default(),
        }
    }
}

/// A probe to send now.
#[derive(Clone, Debug)]
pub struct ProbeOrder {
    /// Returned with the result.
    pub ticket: Ticket,
    /// Whom to probe.
    pub endpoint: Arc<Endpoint>,
    /// How, if the instance says.
    pub method: Option<Probe>,
    /// The path of a GET, base path included.
    pub path: String,
    /// The service that gRPC is asked for.
    pub grpc_service: String,
}

/// Ties a probe's result to the order it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    id: String,
    number: u64,
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// It answered as it should.
    Healthy,
    /// It answered otherwise, or not in time; the text says how.
    Unhealthy(String),
    /// Nothing listens there.
    Refused,
}

/// Something the shell should tell people about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The instance.
    pub id: String,
    /// Its address.
    pub authority: Arc<str>,
    /// What it stands as now.
    pub standing: Standing,
    /// Why.
    pub why: String,
}

/// The members of one service.
#[derive(Default)]
struct Service {
    ids: BTreeSet<String>,
    pool: Kept,
}

/// A pool for as long as it is true.
#[derive(Clone, Default)]
struct Kept {
    /// What follows from its members, unless something changed.
    now: Option<Arc<Pool>>,
    /// What followed before that: some of it may still be true.
    before: Option<Arc<Pool>>,
}

impl Kept {
    fn drop_if_there(&mut self) {
        self.before = self.now.take().or(self.before.take());
    }

    fn get_or_build(&mut self, build: impl FnOnce(Option<&Pool>) -> Pool) -> Arc<Pool> {
        let before = &mut self.before;
        self.now.get_or_insert_with(|| Arc::new(build(before.take().as_deref()))).clone()
    }
}

/// Everything the control side knows.
pub struct State {
    policy: Policy,
    members: BTreeMap<String, Member>,
    services: BTreeMap<Arc<str>, Service>,
    routes: Arc<Routes>,
    /// Those of selectors that are not a whole service.
    pools: Vec<Kept>,
    gate: Arc<Gate>,
    revision: u64,
    next_key: u64,
    next_ticket: u64,
    dirty: bool,
    ejections: u64,
    notices: Vec<Notice>,
}

impl State {
    /// Knows nobody.
    pub fn new(policy: Policy) -> State {
        State {
            policy,
            members: BTreeMap::new(),
            services: BTreeMap::new(),
            routes: Arc::new(Routes::to_all(Strategy::RoundRobin, Limits::default())),
            pools: vec![Kept::default()],
            gate: Arc::default(),
            revision: 0,
            next_key: 1,
            next_ticket: 1,
            dirty: true,
            ejections: 0,
            notices: Vec::new(),
        }
    }

    /// The same, with endpoints that tell those who wait at `gate` of slots that become free.
    pub fn behind(self, gate: Arc<Gate>) -> State {
        State { gate, ..self }
    }

    /// Other routes need other pools.
    pub fn lead(&mut self, routes: Arc<Routes>) {
        self.pools = vec![Kept::default(); routes.selectors().len()];
        self.routes = routes;
        self.dirty = true;
    }

    /// The catalog changed.
    pub fn apply(&mut self, change: Change, now: Instant) {
        match change {
            Change::Reset { revision, records } => {
                self.reset(records, now);
                self.advance(revision);
            }
            Change::Events { revision, events } => {
                events.into_iter().for_each(|event| match event {
                    Event::Put(record) => self.put(record, now),
                    Event::Gone(id) => self.remove(&id),
                });
                self.advance(revision);
            }
            Change::Progress { revision } => self.advance(revision),
        }
    }

    /// A probe came back. Answers to anything but the latest order are ignored.
    pub fn probed(&mut self, ticket: &Ticket, result: ProbeResult, now: Instant, rng: &mut fastrand::Rng) {
        let policy = &self.policy;
        let Some(member) = self.members.get_mut(&ticket.id) else { return };
        if member.probe_running != Some(ticket.number) {
            return;
        }
        member.probe_running = None;
        let before = member.verdict;
        member.judge(result, policy, now);
        // Not only when all are looked at: until then it would take its whole share.
        member.ramp = member.ramp_at(policy.slow_start, now);
        let settled = member.verdict == Verdict::Up && member.contrary == 0;
        let interval = if settled { policy.interval } else { policy.interval.min(policy.fast_interval) };
        member.probe_due = now + jittered(interval, rng);
        if before != member.verdict {
            self.notice(&ticket.id);
        }
        self.bury(&ticket.id);
    }

    /// A worker saw an endpoint fail.
    pub fn report(&mut self, report: Report, now: Instant) {
        let Some(id) = self.id_of(report.endpoint) else { return };
        let Some(member) = self.members.get_mut(&id) else { return };
        if report.began < member.since {
            return;
        }
        let before = member.verdict;
        member.blame(report.failure, &self.policy, now);
        if before != member.verdict {
            self.notice(&id);
        }
        self.bury(&id);
        self.consider_ejection(&id, now);
    }

    /// Lets time pass: ejections end, doubted records go, windows slide.
    pub fn tick(&mut self, now: Instant) {
        let doomed: Vec<String> = self
            .members
            .iter()
            .filter(|(_, m)| m.doomed_at.is_some_and(|at| at <= now))
            .map(|(id, _)| id.clone())
            .collect();
        doomed.iter().for_each(|id| self.remove(id));
        let mut readmitted = Vec::new();
        let mut ramped = BTreeSet::new();
        for (id, member) in &mut self.members {
            member.count_requests(now);
            let ramp = member.ramp_at(self.policy.slow_start, now);
            if std::mem::replace(&mut member.ramp, ramp) != ramp {
                ramped.insert(member.endpoint.service.clone());
            }
            if member.outlier.readmit(now) {
                member.turn(Verdict::Unproven, "ejection over, not probed yet".into(), now);
                member.probe_due = now;
                readmitted.push(id.clone());
            }
        }
        readmitted.iter().for_each(|id| self.notice(id));
        ramped.iter().for_each(|service| self.touch(service));
    }

    /// How many endpoints there are.
    pub fn endpoints(&self) -> usize {
        self.members.len()
    }

    /// The probes to send now, `max` at most: those that have been due for longest; the others stay due. Each counts as
    /// running until [`State::probed`] hears of it.
    pub fn due(&mut self, now: Instant, max: usize) -> Vec<ProbeOrder> {
        let is_due = |m: &Member| m.is_probed() && m.probe_running.is_none() && m.probe_at() <= now;
        let mut due: Vec<(&String, &mut Member)> =
            self.members.iter_mut().filter(|(_, m)| is_due(m)).collect();
        if due.len() > max {
            due.sort_by_key(|(_, m)| m.probe_at());
            due.truncate(max);
        }
        let mut orders = Vec::new();
        for (id, member) in due {
            let number = self.next_ticket;
            self.next_ticket += 1;
            member.probe_running = Some(number);
            member.probe_due = now;
            member.probe_floor = now + PROBE_GAP;
            orders.push(ProbeOrder {
                ticket: Ticket { id: id.clone(), number },
                endpoint: member.endpoint.clone(),
                method: member.record.probe,
                path: member.probe_path(&self.policy.health_path),
                grpc_service: member.record.probe_service.clone(),
            });
        }
        orders
    }

    /// When [`State::tick`] or [`State::due`] next has something to do; `None` if only events can change that.
    pub fn next_deadline(&self) -> Option<Instant> {
        let times = self.members.values().flat_map(|m| {
            let probe = (m.is_probed() && m.probe_running.is_none()).then_some(m.probe_at());
            [probe, m.outlier.ejected_until(), m.doomed_at, m.next_ramp(self.policy.slow_start)]
        });
        times.flatten().min()
    }

    /// The table, if it differs from the one returned last.
    pub fn take_table(&mut self) -> Option<Table> {
        std::mem::take(&mut self.dirty).then(|| self.table())
    }

    /// What happened since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Endpoints ejected so far.
    pub fn ejections(&self) -> u64 {
        self.ejections
    }

    /// The catalog's revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Every record held, by id.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.members.values().map(|m| &m.record)
    }

    /// Builds what has changed, and shares the rest with the table before.
    fn table(&mut self) -> Table {
        self.services.retain(|_, service| !service.ids.is_empty());
        let (members, revision) = (&self.members, self.revision);
        let rules = &self.policy.rules;
        let build = |ids: &mut dyn Iterator<Item = &String>, before: Option<&Pool>| {
            let entries = ids.filter_map(|id| members.get(id)).map(Member::entry).collect();
            Pool::under(rules, revision, entries, before)
        };
        for service in self.services.values_mut() {
            service.pool.get_or_build(|before| build(&mut service.ids.iter(), before));
        }
        let whole = |name: &str| self.services.get(name).and_then(|s| s.pool.now.clone()).unwrap_or_default();
        let pools = self.routes.selectors().iter().zip(&mut self.pools);
        let pools = pools.map(|(selector, kept)| match (&selector.service, &selector.version) {
            (Some(name), None) => whole(name),
            _ => {
                let taken = |id: &&String| {
                    members.get(*id).is_some_and(|m| selector.takes(&m.record.service, &m.record.version))
                };
                kept.get_or_build(|before| build(&mut members.keys().filter(taken), before))
            }
        });
        Table {
            revision,
            routes: self.routes.clone(),
            pools: pools.collect(),
            services: self
                .services
                .iter()
                .filter_map(|(name, service)| Some((name.clone(), service.pool.now.clone()?)))
                .collect(),
        }
    }

    /// Something about a member of `service` changed: pools with it have to be built anew.
    fn touch(&mut self, service: &str) {
        self.dirty = true;
        if let Some(service) = self.services.get_mut(service) {
            service.pool.drop_if_there();
        }
        for (selector, pool) in self.routes.selectors().iter().zip(&mut self.pools) {
            if selector.service.as_deref().is_none_or(|s| s == service) {
                pool.drop_if_there();
            }
        }
    }

    fn advance(&mut self, revision: u64) {
        if revision != self.revision {
            self.revision = revision;
            self.dirty = true;
        }
    }

    fn reset(&mut self, records: Vec<Record>, now: Instant) {
        if records.is_empty() {
            let at = now + self.policy.hold;
            self.members.values_mut().for_each(|m| m.doomed_at = m.doomed_at.or(Some(at)));
            self.dirty = true;
            return;
        }
        let kept: BTreeSet<&str> = records.iter().map(|r| r.id.as_str()).collect();
        let gone: Vec<String> =
            self.members.keys().filter(|id| !kept.contains(id.as_str())).cloned().collect();
        gone.iter().for_each(|id| self.remove(id));
        records.into_iter().for_each(|record| self.put(record, now));
        self.dirty = true;
    }

    fn put(&mut self, record: Record, now: Instant) {
        let service = record.service.clone();
        let same_place = self.members.get(&record.id).is_some_and(|m| m.is_at(&record));
        match self.members.get_mut(&record.id) {
            Some(member) if same_place => member.update(record, now),
            _ => {
                self.remove(&record.id);
                let member = Member::new(self.next_key, record, &self.gate, &self.policy, now);
                self.next_key += 1;
                let service = member.endpoint.service.clone();
                self.services.entry(service).or_default().ids.insert(member.record.id.clone());
                self.members.insert(member.record.id.clone(), member);
            }
        }
        self.touch(&service);
    }

    fn remove(&mut self, id: &str) {
        let Some(member) = self.members.remove(id) else { return };
        if let Some(service) = self.services.get_mut(&*member.record.service) {
            service.ids.remove(id);
        }
        self.touch(&member.record.service);
    }

    /// Removes a doubted record once there is evidence against it too.
    fn bury(&mut self, id: &str) {
        let dead =
            |m: &Member| m.doomed_at.is_some() && matches!(m.verdict, Verdict::Down | Verdict::Failing);
        if self.members.get(id).is_some_and(dead) {
            self.remove(id);
        }
    }

    fn consider_ejection(&mut self, id: &str, now: Instant) {
        let Some(service) = self.members.get(id).map(|m| m.record.service.clone()) else { return };
        // Whoever is picked from together: one service, unless a route takes them all.
        let together = self.routes.selectors().iter().any(|s| s.service.is_none());
        let peers = || self.members.values().filter(|m| together || m.record.service == service);
        let serving = peers().filter(|m| m.is_probed()).count();
        let ejected = peers().filter(|m| m.outlier.ejected_until().is_some()).count();
        let healthy = peers().filter(|m| m.standing().0 == Standing::Up).count();
        let Some(member) = self.members.get_mut(id) else { return };
        let allowed = ejected < self.policy.outlier.ejected_max(serving) && healthy > 1;
        if member.verdict != Verdict::Up || !allowed || member.outlier.ejected_until().is_some() {
            return;
        }
        member.count_requests(now);
        if let Some(why) = member.deserves_ejection(&self.policy.outlier) {
            let until = member.outlier.eject(&self.policy.outlier, now);
            member.failures_in_a_row = 0;
            let rest = until.saturating_duration_since(now).as_secs();
            member.why = format!("{why}; ejected for {rest} s");
            self.ejections += 1;
            self.notice(id);
        }
    }

    fn notice(&mut self, id: &str) {
        let Some(member) = self.members.get(id) else { return };
        let (standing, why) = member.standing();
        let (authority, service) = (member.endpoint.authority.clone(), member.endpoint.service.clone());
        self.touch(&service);
        self.notices.push(Notice { id: id.to_owned(), authority, standing, why });
    }

    fn id_of(&self, key: u64) -> Option<String> {
        self.members.iter().find(|(_, m)| m.endpoint.key == key).map(|(id, _)| id.clone())
    }
}

/// `interval`, give or take a tenth: balancers that start together do not probe together for ever.
fn jittered(interval: Duration, rng: &mut fastrand::Rng) -> Duration {
    interval.mul_f64(0.9 + 0.2 * rng.f64())
}
