//! Drives the lessor while this node leads, and takes heartbeats to whoever does.
//!
//! The ledger of leases is derived: it is armed from the catalog when this node starts to lead, and follows the
//! ring of changes from there. It is brought up to date under its lock before every use, so a heartbeat never
//! meets a lease older than the registration it renews.
//!
//! A heartbeat is acknowledged only by a leader that has applied the first entry of its term and has heard a
//! quorum within the election time-out, checked before and after the renewal. While that cannot be said, no
//! lease runs out either: heartbeats could not be acknowledged, so their senders must not be punished.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture, future::join_all};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{BrakeState, Lessor, Renewal};
use crate::{
    catalog::{Command, EventKind, InstanceId, Outcome, Proposal, Record},
    consensus::{self, Consensus, Error, Lead},
    metrics::Metrics,
    scope::scoped,
    watch::{Changes, Effect, Hub},
};

/// A lease's owner and incarnation; none renews whichever is registered.
pub type Beat = (InstanceId, Option<u64>);

/// How often leases are looked at; well below the shortest lease.
const TICK: Duration = Duration::from_millis(100);
/// A tick later than this means that heartbeats waited unread as well: deadlines move by the delay.
const STALL: Duration = Duration::from_millis(200);
/// Victims of one proposal: bounds the entry and the event message that follows.
const VICTIMS_MAX: usize = 100;
/// Such proposals at a tick: so 10 000 instances a second can go, and what the brake lets pass of a large registry
/// is gone within the second that is promised.
const EXPIRIES_AT_ONCE: usize = 10;
/// How long a heartbeat waits for the outcome of its lease's expiry. Then it is told to register again, which is
/// right whatever becomes of the expiry: the others of its call must not wait for a disk that hangs.
const OUTCOME_WAIT: Duration = Duration::from_millis(500);
/// Heartbeats that a follower sends on together, and how long the first of them waits for the others.
const FORWARD_MAX: usize = 512;
const FORWARD_LINGER: Duration = Duration::from_millis(5);
/// Calls to the leader at once; each ends by its deadline.
const FORWARD_CALLS: usize = 64;
/// Callers that may wait to be forwarded.
const FORWARD_QUEUE: usize = 1_024;

/// The leases of a node's cluster: kept here while this node leads. Cheap to clone.
#[derive(Clone)]
pub struct Keeper(Arc<Inner>);

struct Inner {
    consensus: Consensus,
    hub: Hub,
    metrics: Arc<Metrics>,
    ledger: Mutex<Ledger>,
    forward: mpsc::Sender<Forward>,
}

#[derive(Default)]
struct Ledger {
    /// The term it was armed for; none while this node does not lead.
    term: Option<u64>,
    lessor: Lessor,
    /// The revision up to which it follows the catalog.
    revision: u64,
}

/// Heartbeats on their way to the leader.
struct Forward {
    beats: Vec<Beat>,
    deadline: Instant,
    reply: oneshot::Sender<Result<Vec<bool>, Error>>,
}

impl Keeper {
    /// A keeper and the queue that [`Keeper::run`] works off.
    pub fn new(consensus: Consensus, hub: Hub, metrics: Arc<Metrics>) -> (Self, ForwardQueue) {
        let (forward, queue) = mpsc::channel(FORWARD_QUEUE);
        let inner = Inner { consensus, hub, metrics, ledger: Mutex::default(), forward };
        (Self(Arc::new(inner)), ForwardQueue(queue))
    }

    /// Renews leases wherever the leader is; false where the instance must register again.
    pub async fn renew(&self, beats: &[Beat], deadline: Instant) -> Result<Vec<bool>, Error> {
        loop {
            let attempt = match self.0.consensus.lead() {
                Lead::Here { .. } => self.renew_here(beats, deadline).await,
                Lead::Elsewhere { .. } => self.forward(beats.to_vec(), deadline).await,
                Lead::Nowhere => Err(Error::NoLeader),
            };
            match attempt {
                Err(_) if Instant::now() < deadline => self.0.consensus.await_change(deadline).await,
                done => return done,
            }
        }
    }

    /// Renews leases if this node leads; [`Error::NoLeader`] if it does not, or cannot prove it.
    pub async fn renew_here(&self, beats: &[Beat], deadline: Instant) -> Result<Vec<bool>, Error> {
        let inner = &self.0;
        let term = inner.consensus.confirmed_term().ok_or(Error::NoLeader)?;
        let mut results = vec![None; beats.len()];
        let patience = deadline.min(Instant::now() + OUTCOME_WAIT);
        loop {
            let revision = {
                let mut ledger = inner.up_to_date(term);
                for (beat, result) in beats.iter().zip(&mut results).filter(|(_, result)| result.is_none()) {
                    *result = match ledger.lessor.renew(&beat.0, beat.1, Instant::now().into_std()) {
                        Renewal::Renewed => Some(true),
                        Renewal::Lost => Some(false),
                        Renewal::Expiring if Instant::now() >= patience => Some(false),
                        Renewal::Expiring => None,
                    };
                }
                ledger.revision
            };
            if inner.consensus.confirmed_term() != Some(term) {
                return Err(Error::NoLeader);
            }
            if results.iter().all(Option::is_some) {
                let renewed: Vec<bool> = results.into_iter().flatten().collect();
                inner.count(&renewed);
                return Ok(renewed);
            }
            // Their expiry is proposed: its outcome decides, and moves the revision or re-arms at a tick.
            let _ = tokio::time::timeout(TICK, inner.hub.moved_from(revision)).await; // either is reason to look again
        }
    }

    /// Renews leases if that can be said at once: none if this node cannot prove that it leads, or the expiry of
    /// one is being decided. Then [`Keeper::renew`] waits for what can be said.
    pub fn renew_now(&self, beats: &[Beat]) -> Option<Vec<bool>> {
        let inner = &self.0;
        let term = inner.consensus.confirmed_term()?;
        let now = Instant::now().into_std();
        let renewed: Option<Vec<bool>> = {
            let mut ledger = inner.up_to_date(term);
            let renew = |(id, reg_rev): &Beat| match ledger.lessor.renew(id, *reg_rev, now) {
                Renewal::Renewed => Some(true),
                Renewal::Lost => Some(false),
                Renewal::Expiring => None,
            };
            beats.iter().map(renew).collect()
        };
        let renewed = renewed.filter(|_| inner.consensus.confirmed_term() == Some(term))?;
        inner.count(&renewed);
        Some(renewed)
    }

    /// Lets everything expire that the brake holds back, and says how many that is. The leader only.
    pub fn release(&self) -> Result<usize, Error> {
        let inner = &self.0;
        let term = inner.consensus.confirmed_term().ok_or(Error::NoLeader)?;
        let mut ledger = inner.up_to_date(term);
        if ledger.lessor.brake() == BrakeState::Released {
            return Ok(0);
        }
        let held = ledger.lessor.overdue();
        ledger.lessor.override_brake();
        warn!(held, "an operator releases the leases that are overdue");
        Ok(held)
    }

    async fn forward(&self, beats: Vec<Beat>, deadline: Instant) -> Result<Vec<bool>, Error> {
        let (reply, answer) = oneshot::channel();
        let forward = Forward { beats, deadline, reply };
        self.0
            .forward
            .try_send(forward)
            .map_err(|_| Error::Overloaded { what: "heartbeats waiting for the leader".into() })?;
        answer.await.map_err(|_| Error::NotReady { why: "it is stopping".into() })?
    }

    /// Expires leases while this node leads and forwards heartbeats while it does not, until `stop`; calls to the
    /// leader are tasks of `tracker`.
    pub async fn run(self, queue: ForwardQueue, stop: CancellationToken, tracker: TaskTracker) {
        let forwarding = forward_all(self.0.consensus.clone(), queue.0, tracker);
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.expire_overdue() => {}
            () = forwarding => {}
        }
    }

    /// Looks after the leases at every tick. Expiries are replicated beside it, one proposal at a time, so that a
    /// slow commit is not taken for time in which heartbeats were not heard.
    async fn expire_overdue(&self) {
        let inner = &self.0;
        let mut good_tick = Instant::now();
        let mut expiring: Option<BoxFuture<'_, ()>> = None;
        loop {
            let tick = tokio::time::sleep(TICK);
            tokio::pin!(tick);
            while let Some(expiry) = &mut expiring {
                tokio::select! {
                    biased;
                    () = expiry => expiring = None,
                    () = &mut tick => break,
                }
            }
            if expiring.is_none() {
                tick.await;
            }
            let now = Instant::now();
            let Some(term) = inner.consensus.confirmed_term() else {
                // A leader that cannot prove it is late from here on; whoever does not lead is not.
                if inner.give_up_if_deposed() {
                    good_tick = now;
                }
                continue;
            };
            let late = now.saturating_duration_since(good_tick + TICK);
            good_tick = now;
            let victims = inner.look_after(term, late, now, expiring.is_none());
            if !victims.is_empty() {
                let expiries =
                    victims.chunks(VICTIMS_MAX).map(|victims| inner.expire(term, victims.to_vec()));
                expiring = Some(join_all(expiries).map(drop).boxed());
            }
        }
    }
}

/// Heartbeats waiting to be forwarded.
pub struct ForwardQueue(mpsc::Receiver<Forward>);

impl Inner {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no panic while it is held")
    }

    /// The ledger of `term`, following the catalog as it is now.
    fn up_to_date(&self, term: u64) -> MutexGuard<'_, Ledger> {
        let mut ledger = self.ledger();
        let changes =
            if ledger.term == Some(term) { self.hub.since(ledger.revision) } else { Changes::Compacted };
        match changes {
            Changes::Compacted => self.arm(&mut ledger, term),
            Changes::Batches(batches) => {
                let now = Instant::now().into_std();
                for batch in batches {
                    for event in &batch.events {
                        let (id, record) = (&event.record.spec.id, &event.record);
                        match event.kind {
                            EventKind::Put if record.mod_rev == record.reg_rev => {
                                ledger.lessor.grant(
                                    id.clone(),
                                    record.reg_rev,
                                    Duration::from_millis(record.spec.ttl_ms.into()),
                                    now,
                                );
                            }
                            EventKind::Put => {}
                            EventKind::Delete | EventKind::Expire => ledger.lessor.revoke(id, record.reg_rev),
                        }
                    }
                    ledger.revision = batch.revision;
                }
            }
        }
        ledger
    }

    /// Grants every registered instance its whole time and the longest that its heartbeat may have been on the
    /// way: an election and a third of it.
    fn arm(&self, ledger: &mut Ledger, term: u64) {
        // Copied out: a catalog that is held while it changes is copied whole.
        let (revision, leases): (u64, Vec<_>) = self.hub.read(|catalog| {
            let lease = |record: &Arc<Record>| {
                (record.spec.id.clone(), record.reg_rev, Duration::from_millis(record.spec.ttl_ms.into()))
            };
            (catalog.revision(), catalog.records().map(lease).collect())
        });
        let (now, grace) = (Instant::now().into_std(), self.consensus.election_max());
        match ledger.term == Some(term) {
            true => ledger.lessor.rearm_all(leases, now, grace),
            false => ledger.lessor.arm_all(leases, now, grace),
        }
        ledger.revision = revision;
        ledger.term = Some(term);
        info!(term, leases = ledger.lessor.len(), "armed the leases");
    }

    /// One tick: makes up for lateness, and takes what is overdue if its expiry can be proposed now.
    fn look_after(
        &self,
        term: u64,
        late: Duration,
        now: Instant,
        may_expire: bool,
    ) -> Vec<(InstanceId, u64)> {
        let mut ledger = self.up_to_date(term);
        self.compensate(&mut ledger, late, term);
        let before = ledger.lessor.brake();
        let limit = if may_expire { VICTIMS_MAX * EXPIRIES_AT_ONCE } else { 0 };
        let victims = ledger.lessor.take_overdue(now.into_std(), limit);
        tell_brake(before, &ledger.lessor);
        self.metrics.leases(ledger.lessor.len(), ledger.lessor.brake() != BrakeState::Released);
        victims
    }

    fn compensate(&self, ledger: &mut Ledger, late: Duration, term: u64) {
        if late > self.consensus.election_max() {
            warn!(late_ms = late.as_millis() as u64, "leases were not looked after: arming them anew");
            self.arm(ledger, term);
        } else if late > STALL {
            ledger.lessor.postpone_all(late);
        }
    }

    fn count(&self, renewed: &[bool]) {
        let lost = renewed.iter().filter(|renewed| !**renewed).count();
        self.metrics.heartbeats(renewed.len() - lost, lost);
    }

    /// Drops the ledger unless this node leads; says whether it does not.
    fn give_up_if_deposed(&self) -> bool {
        let deposed = !matches!(self.consensus.lead(), Lead::Here { .. });
        let mut ledger = self.ledger();
        if deposed && ledger.term.take().is_some() {
            ledger.lessor.clear();
            self.metrics.leases(0, false);
        }
        deposed
    }

    /// Proposes the expiry and waits for its outcome: until it is known, none of the victims can be renewed.
    async fn expire(&self, term: u64, victims: Vec<(InstanceId, u64)>) {
        let cause = consensus::provenance("registry".into(), "no heartbeat within the lease".into());
        let command = Command::Expire { term, victims: victims.clone() };
        let proposal = Proposal { command, cause, origin: None };
        let mut in_doubt = false;
        loop {
            let error = match self.consensus.propose_here(proposal.clone()).await {
                // What did not expire was registered again or is gone: the ledger hears of it by the ring.
                Ok(effect) => return self.note_expired(effect),
                Err(error) => error,
            };
            in_doubt |= matches!(error, Error::Unknown { .. });
            match after(in_doubt, self.consensus.lead() == Lead::Here { term }) {
                After::Again => self.consensus.await_change(Instant::now() + TICK).await,
                After::Rearm => {
                    warn!(%error, "leases could not be expired");
                    return self.ledger().lessor.expiry_failed(&victims, Instant::now().into_std());
                }
                After::Leave => return warn!(%error, "leadership was lost while leases expired"),
            }
        }
    }

    fn note_expired(&self, effect: Effect) {
        if let Outcome::Expired { ids } = effect.outcome {
            ids.iter().for_each(|id| info!(instance = %id, revision = effect.revision, "expired"));
            self.metrics.expired(ids.len());
        }
    }
}

/// What follows when an expiry has no outcome.
#[derive(Debug, PartialEq, Eq)]
enum After {
    /// An attempt may still take effect: the same proposal again settles it, whatever became of that one.
    Again,
    /// No attempt ever takes effect: the leases live on.
    Rearm,
    /// An attempt may, and another leader answers for what becomes of it: this ledger is of no use any more.
    Leave,
}

/// Once an attempt's outcome was unknown, nothing that a later one is told can say that it had no effect.
fn after(in_doubt: bool, leads: bool) -> After {
    match (in_doubt, leads) {
        (false, _) => After::Rearm,
        (true, true) => After::Again,
        (true, false) => After::Leave,
    }
}

/// Says once that expiries are held back, and once what became of that.
fn tell_brake(before: BrakeState, lessor: &Lessor) {
    let after = lessor.brake();
    if std::mem::discriminant(&before) == std::mem::discriminant(&after) {
        return;
    }
    let (overdue, leases) = (lessor.overdue(), lessor.len());
    match after {
        BrakeState::Paused { ttl, .. } => warn!(
            overdue,
            leases,
            pause_ms = ttl.as_millis() as u64,
            "so many leases ran out that a broken network is likelier than as many deaths: none expires for a while; \
             `registryctl leases release` lets them go"
        ),
        BrakeState::Slow { .. } => warn!(overdue, leases, "leases that were held back expire slowly"),
        BrakeState::Released => info!(overdue, leases, "no lease is held back any more"),
        BrakeState::Overridden => {}
    }
}

/// Takes heartbeats to the leader, many in one call.
async fn forward_all(consensus: Consensus, mut queue: mpsc::Receiver<Forward>, tracker: TaskTracker) {
    let places = Arc::new(Semaphore::new(FORWARD_CALLS));
    while let Some(batch) = gather(&mut queue).await {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let consensus = consensus.clone();
        tracker.spawn(scoped(async move {
            let beats = batch.iter().flat_map(|forward| forward.beats.iter().cloned()).collect();
            let result = consensus.forward_heartbeats(beats, batch[0].deadline).await;
            share(batch, result);
            drop(place);
        }));
    }
}

/// What goes in one call: what waits, and what comes within a moment. None at the end.
async fn gather(queue: &mut mpsc::Receiver<Forward>) -> Option<Vec<Forward>> {
    let first = queue.recv().await?;
    let mut count = first.beats.len();
    let mut batch = vec![first];
    let linger = Instant::now() + FORWARD_LINGER;
    while count < FORWARD_MAX {
        // What is there goes along, however late it is.
        let next = match queue.try_recv() {
            Ok(next) => next,
            Err(_) => match tokio::time::timeout_at(linger, queue.recv()).await {
                Ok(Some(next)) => next,
                _ => break,
            },
        };
        count += next.beats.len();
        batch.push(next);
    }
    Some(batch)
}

/// Gives each caller what the leader said of its heartbeats.
fn share(batch: Vec<Forward>, mut result: Result<Vec<bool>, Error>) {
    for forward in batch {
        let part = match &mut result {
            Ok(renewed) => Ok(renewed.drain(..forward.beats.len().min(renewed.len())).collect()),
            Err(error) => Err(error.clone()),
        };
        let _ = forward.reply.send(part); // a caller that gave up wants nothing
    }
}

#[cfg(test)]
mod tests;
