//! When to beat and when to register again. Pure: it is told what happened and when.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

#[cfg(test)]
mod tests;

/// After a beat that was not answered: soon, because two more must fit into the lease.
const BEAT_RETRY: Backoff = Backoff { base: Duration::from_millis(200), cap: Duration::from_secs(1) };

/// After a registration that was not answered. Many instances lose their leases together; they must not come
/// back together.
pub(crate) const REGISTER_RETRY: Backoff =
    Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(5) };

/// The lease as this side knows it.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    ttl: Duration,
    /// The incarnation to beat for; none once the registry says that it is gone.
    reg_rev: Option<u64>,
    /// When the last acknowledged beat was sent: the lease lives at least `ttl` from here.
    renewed_at: Instant,
    /// When to do the next step.
    next_at: Instant,
    /// In a row.
    failures: u32,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Renew this incarnation.
    Beat { reg_rev: u64 },
    /// Register a new one.
    Register,
}

impl Lease {
    /// A registration that was sent at `sent_at` is acknowledged.
    pub(crate) fn registered(
        ttl: Duration,
        reg_rev: u64,
        sent_at: Instant,
        rng: &mut fastrand::Rng,
    ) -> Lease {
        let next_at = sent_at + interval(ttl, rng);
        Lease { ttl, reg_rev: Some(reg_rev), renewed_at: sent_at, next_at, failures: 0 }
    }

    /// What to do next, and when.
    pub(crate) fn due(&self) -> (Instant, Step) {
        let step = self.reg_rev.map_or(Step::Register, |reg_rev| Step::Beat { reg_rev });
        (self.next_at, step)
    }

    /// The beat sent at `sent_at` is acknowledged.
    pub(crate) fn renewed(&mut self, sent_at: Instant, rng: &mut fastrand::Rng) {
        (self.renewed_at, self.failures) = (sent_at, 0);
        self.next_at = sent_at + interval(self.ttl, rng);
    }

    /// The registry says that the incarnation is gone.
    pub(crate) fn lost(&mut self, now: Instant, rng: &mut fastrand::Rng) {
        (self.reg_rev, self.failures) = (None, 1);
        self.next_at = now + REGISTER_RETRY.wait(self.failures, rng);
    }

    /// The last step was not answered. Until the registry says otherwise the incarnation is the same: a leader
    /// that is new, or back, grants every lease anew.
    pub(crate) fn failed(&mut self, now: Instant, rng: &mut fastrand::Rng) {
        self.failures += 1;
        let retry = if self.reg_rev.is_some() { BEAT_RETRY } else { REGISTER_RETRY };
        self.next_at = now + retry.wait(self.failures, rng);
    }

    /// Whether the registry certainly still holds the lease.
    pub(crate) fn is_held(&self, now: Instant) -> bool {
        self.reg_rev.is_some() && now < self.renewed_at + self.ttl
    }

    /// The incarnation, unless it is gone.
    pub(crate) fn reg_rev(&self) -> Option<u64> {
        self.reg_rev
    }

    /// How long a beat may take: the next one is due then.
    pub(crate) fn beat_limit(&self) -> Duration {
        (self.ttl / 3).max(Duration::from_secs(1))
    }
}

/// A third of the lease, up to a tenth less, so that instances which started together drift apart.
fn interval(ttl: Duration, rng: &mut fastrand::Rng) -> Duration {
    (ttl / 3).mul_f64(1.0 - rng.f64() / 10.0)
}
