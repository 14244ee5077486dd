//! Who holds a lease, until when, and whose ran out: the leader's memory, as a pure state machine.
//!
//! Deadlines are monotonic time and never leave this struct: a new leader arms every lease afresh, with grace, so
//! a deadline is only ever pushed later and a leader change removes nobody who kept beating. The struct decides
//! nothing about the catalog: an expiry is an intent that the caller proposes, and until it proposes, a late
//! heartbeat still saves the instance.
//!
//! A renewal is one look-up: it moves the deadline and leaves the lease where it is filed; when that place comes
//! due, the lease is filed again under its real deadline.
//!
//! # Why not a wheel of ticks
//! A revoked lease would stay in its bucket until the bucket comes due, and an instance that registers and
//! deregisters in a loop with a lease of an hour would fill memory. An ordered set forgets at once.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::catalog::InstanceId;

/// The brake engages when more than this share of all instances, in percent, ran out within one TTL ...
pub const BRAKE_PERCENT: usize = 15;

/// ... and more than this many: in a small system half of the instances may well die together.
pub const BRAKE_INSTANCES: usize = 50;

/// Expiries per second while the brake is released slowly. A registry of 300 000 forgets everything in 5 minutes,
/// time enough for a person to see what goes on.
pub const BRAKE_RATE_PER_S: u128 = 1_000;

/// What became of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease runs for its TTL from now.
    Renewed,
    /// There is no such lease, or it is another incarnation's.
    Lost,
    /// Its expiry is proposed: only the outcome can tell. The caller waits for it and asks again.
    Expiring,
}

/// Whether expiries are held back: so many at once are likelier a broken network than so many deaths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BrakeState {
    /// Expiries run freely.
    #[default]
    Released,
    /// None until then.
    Paused {
        /// The end of the pause.
        until: Instant,
        /// The TTL the pause was taken from.
        ttl: Duration,
    },
    /// At most 1 000 a second.
    Slow {
        /// How far the rate is used up: what has passed since then may be spent.
        since: Instant,
        /// The TTL over which expiries are counted.
        ttl: Duration,
    },
    /// An operator let everything go that is overdue.
    Overridden,
}

/// The leases of one leader in one term.
#[derive(Debug, Default)]
pub struct Lessor {
    leases: HashMap<InstanceId, Lease>,
    /// Armed leases by when to look at them, which is never after their deadlines.
    filed: BTreeSet<(Instant, InstanceId)>,
    /// Leases past their deadlines whose expiry is not proposed yet.
    overdue: BTreeSet<(Instant, InstanceId)>,
    /// How many were taken out, and when: the brake's memory of the last TTL.
    taken: VecDeque<(Instant, usize)>,
    brake: BrakeState,
}

#[derive(Debug)]
struct Lease {
    reg_rev: u64,
    ttl: Duration,
    deadline: Instant,
    place: Place,
}

/// Where a lease stands; the instant is its key there.
#[derive(Clone, Copy, Debug)]
enum Place {
    Filed(Instant),
    Overdue(Instant),
    Expiring,
}

impl Lessor {
    /// No leases.
    pub fn new() -> Lessor {
        Lessor::default()
    }

    /// Grants a lease of `ttl` from `now` to the incarnation `reg_rev`, in place of any earlier one's. A grant for
    /// an incarnation older than the present one changes nothing; one for the same only extends it.
    pub fn grant(&mut self, id: InstanceId, reg_rev: u64, ttl: Duration, now: Instant) {
        let mut deadline = now + ttl;
        if let Some(lease) = self.leases.get(&id) {
            if lease.reg_rev > reg_rev {
                return;
            }
            if lease.reg_rev == reg_rev {
                deadline = deadline.max(lease.deadline);
            }
        }
        self.remove(&id);
        self.arm(id, reg_rev, ttl, deadline);
    }

    /// Ends the lease of this incarnation; another's is left alone.
    pub fn revoke(&mut self, id: &InstanceId, reg_rev: u64) {
        if self.leases.get(id).is_some_and(|lease| lease.reg_rev == reg_rev) {
            self.remove(id);
        }
    }

    /// Renews the lease of `reg_rev`, or of whichever incarnation holds it when that is none. A deadline is never
    /// brought forward: grace that a new leader gave stays.
    pub fn renew(&mut self, id: &InstanceId, reg_rev: Option<u64>, now: Instant) -> Renewal {
        let Some(lease) = self.leases.get_mut(id) else { return Renewal::Lost };
        if reg_rev.is_some_and(|reg_rev| reg_rev != lease.reg_rev) {
            return Renewal::Lost;
        }
        match lease.place {
            Place::Expiring => return Renewal::Expiring,
            Place::Filed(_) => lease.deadline = lease.deadline.max(now + lease.ttl),
            Place::Overdue(key) => {
                lease.deadline = now + lease.ttl;
                lease.place = Place::Filed(lease.deadline);
                self.filed.insert((lease.deadline, id.clone()));
                self.overdue.remove(&(key, id.clone()));
            }
        }
        Renewal::Renewed
    }

    /// Forgets everything and arms each (id, reg_rev, ttl) at its TTL, a third of it (a heartbeat on its way) and
    /// `grace` from `now`: what a new leader does once it has applied the first entry of its term.
    pub fn arm_all(
        &mut self,
        instances: impl IntoIterator<Item = (InstanceId, u64, Duration)>,
        now: Instant,
        grace: Duration,
    ) {
        self.clear();
        self.leases.extend(instances.into_iter().map(|(id, reg_rev, ttl)| {
            let deadline = now + ttl + ttl / 3 + grace;
            (id, Lease { reg_rev, ttl, deadline, place: Place::Filed(deadline) })
        }));
        // At once: one by one would take a large registry's new leader half a second.
        self.filed = self.leases.iter().map(|(id, lease)| (lease.deadline, id.clone())).collect();
    }

    /// The same once more within a term: what is expiring stays so, because its expiry may still apply.
    pub fn rearm_all(
        &mut self,
        instances: impl IntoIterator<Item = (InstanceId, u64, Duration)>,
        now: Instant,
        grace: Duration,
    ) {
        let expiring = |(id, lease): (&InstanceId, &Lease)| {
            matches!(lease.place, Place::Expiring).then(|| (id.clone(), lease.reg_rev))
        };
        let expiring: Vec<_> = self.leases.iter().filter_map(expiring).collect();
        self.arm_all(instances, now, grace);
        for (id, reg_rev) in expiring {
            if let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.reg_rev == reg_rev) {
                self.filed.remove(&(lease.deadline, id));
                lease.place = Place::Expiring;
            }
        }
    }

    /// Takes up to `limit` overdue leases to propose their expiry, longest overdue first, unless the brake holds
    /// them. From here on they cannot be renewed: the caller answers for each with a revoke or a grant (the
    /// outcome was applied) or with [`Lessor::expiry_failed`].
    pub fn take_overdue(&mut self, now: Instant, limit: usize) -> Vec<(InstanceId, u64)> {
        self.collect_overdue(now);
        let allowed = self.ask_brake(now).min(limit);
        let mut victims = Vec::with_capacity(allowed.min(self.overdue.len()));
        while victims.len() < allowed
            && let Some((_, id)) = self.overdue.pop_first()
        {
            let lease = self.leases.get_mut(&id).expect("overdue names only leases");
            lease.place = Place::Expiring;
            victims.push((id, lease.reg_rev));
        }
        self.note_taken(now, victims.len());
        victims
    }

    /// Arms those of `victims` again, for a full TTL from `now`, that are still the same incarnation and still
    /// expiring. Only for expiries that are certain never to apply: a renewal after it is a promise.
    pub fn expiry_failed(&mut self, victims: &[(InstanceId, u64)], now: Instant) {
        for (id, reg_rev) in victims {
            let Some(lease) = self.leases.get_mut(id) else { continue };
            if lease.reg_rev == *reg_rev && matches!(lease.place, Place::Expiring) {
                lease.deadline = now + lease.ttl;
                lease.place = Place::Filed(lease.deadline);
                self.filed.insert((lease.deadline, id.clone()));
            }
        }
    }

    /// Pushes every deadline, and the end of the brake's pause: time during which heartbeats could not be heard
    /// does not count.
    pub fn postpone_all(&mut self, by: Duration) {
        if let BrakeState::Paused { until, .. } = &mut self.brake {
            *until += by;
        }
        for (id, lease) in &mut self.leases {
            lease.deadline += by;
            if let Place::Overdue(key) = lease.place {
                self.overdue.remove(&(key, id.clone()));
                self.filed.insert((lease.deadline, id.clone()));
                lease.place = Place::Filed(lease.deadline);
            }
        }
    }

    /// Lets go of everything that is overdue, at once: an operator knows that they are really gone. The brake is
    /// as new afterwards.
    pub fn override_brake(&mut self) {
        self.brake = BrakeState::Overridden;
    }

    /// When [`Lessor::take_overdue`] could next have something: a time at or before that.
    pub fn next_due(&self) -> Option<Instant> {
        let filed = self.filed.first().map(|(key, _)| *key);
        let overdue = self.overdue.first().map(|(key, _)| *key);
        match (self.brake, overdue) {
            (_, None) => filed,
            // Nothing moves before the pause ends, but what comes due has to be looked at then as well.
            (BrakeState::Paused { until, .. }, Some(_)) => Some(until),
            (_, Some(overdue)) => Some(overdue),
        }
    }

    /// How many leases there are, expiring ones included.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// How many are overdue and held back.
    pub fn overdue(&self) -> usize {
        self.overdue.len()
    }

    /// Whether expiries are held back.
    pub fn brake(&self) -> BrakeState {
        self.brake
    }

    /// Forgets every lease and releases the brake: leadership is gone.
    pub fn clear(&mut self) {
        *self = Lessor::new();
    }

    fn arm(&mut self, id: InstanceId, reg_rev: u64, ttl: Duration, deadline: Instant) {
        self.filed.insert((deadline, id.clone()));
        self.leases.insert(id, Lease { reg_rev, ttl, deadline, place: Place::Filed(deadline) });
    }

    fn remove(&mut self, id: &InstanceId) {
        let Some(lease) = self.leases.remove(id) else { return };
        match lease.place {
            Place::Filed(key) => self.filed.remove(&(key, id.clone())),
            Place::Overdue(key) => self.overdue.remove(&(key, id.clone())),
            Place::Expiring => true,
        };
    }

    /// Looks at every lease whose place came due: overdue, or filed again under its real deadline.
    fn collect_overdue(&mut self, now: Instant) {
        while self.filed.first().is_some_and(|(key, _)| *key <= now)
            && let Some((_, id)) = self.filed.pop_first()
        {
            let lease = self.leases.get_mut(&id).expect("filed names only leases");
            if lease.deadline <= now {
                lease.place = Place::Overdue(lease.deadline);
                self.overdue.insert((lease.deadline, id));
            } else {
                lease.place = Place::Filed(lease.deadline);
                self.filed.insert((lease.deadline, id));
            }
        }
    }

    /// Moves the brake on to `now` and says how many may go.
    fn ask_brake(&mut self, now: Instant) -> usize {
        let brake = self.brake;
        match brake {
            BrakeState::Overridden => usize::MAX,
            BrakeState::Released => match self.shortest_overdue_ttl() {
                Some(ttl) if self.is_mass(now, ttl) => {
                    self.brake = BrakeState::Paused { until: now + ttl, ttl };
                    0
                }
                _ => usize::MAX,
            },
            BrakeState::Paused { until, .. } if now < until => 0,
            BrakeState::Paused { until, ttl } => {
                self.brake = BrakeState::Slow { since: until, ttl };
                self.ask_brake(now)
            }
            BrakeState::Slow { ttl, .. } if !self.is_mass(now, ttl) => {
                self.brake = BrakeState::Released;
                usize::MAX
            }
            BrakeState::Slow { since, .. } => {
                // Never more than a second's worth, however long nobody asked.
                let passed_ms = now.saturating_duration_since(since).as_millis().min(1_000);
                (passed_ms * BRAKE_RATE_PER_S / 1_000) as usize
            }
        }
    }

    fn note_taken(&mut self, now: Instant, count: usize) {
        if self.brake == BrakeState::Overridden && self.overdue.is_empty() {
            self.taken.clear();
            self.brake = BrakeState::Released;
            return;
        }
        if count == 0 {
            return;
        }
        if let BrakeState::Slow { ttl, .. } = self.brake {
            self.brake = BrakeState::Slow { since: now, ttl };
        }
        self.taken.push_back((now, count));
    }

    /// Whether more ran out within `ttl` before `now` than the brake lets pass.
    fn is_mass(&mut self, now: Instant, ttl: Duration) -> bool {
        while self.taken.front().is_some_and(|(at, _)| *at + ttl < now) {
            self.taken.pop_front();
        }
        let taken: usize = self.taken.iter().map(|(_, count)| count).sum();
        let out = taken + self.overdue.len();
        out > BRAKE_INSTANCES && out * 100 > BRAKE_PERCENT * (self.leases.len() + taken)
    }

    /// The shortest, so that one instance with an hour's lease does not hold everybody else's expiry for an hour.
    fn shortest_overdue_ttl(&self) -> Option<Duration> {
        self.overdue.iter().map(|(_, id)| self.leases[id].ttl).min()
    }
}

#[cfg(test)]
mod tests;
