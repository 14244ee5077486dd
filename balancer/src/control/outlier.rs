//! Passive ejection: which endpoint fails so much that it should rest. Pure; the caller passes the time.
//!
//! A sliding window of one-second buckets counts failures beside requests. The share matters as well as the
//! number: five failures among twenty requests are an outlier, five among fifty thousand are not. Whether an
//! endpoint that deserves it may be ejected at all (the cap) is the caller's to say, since it sees the others.

use std::time::{Duration, Instant};

/// When an endpoint is ejected, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The window's length, in whole seconds.
    pub window: Duration,
    /// Fewest failures within the window; `None` to eject nobody for them.
    pub failures_min: Option<u32>,
    /// Least share of failures among the window's requests, in percent.
    pub share_min_percent: u32,
    /// As many failures without an answer between them eject, whatever their share; `None` for never.
    pub in_a_row_max: Option<u32>,
    /// The first ejection; each further one is longer by as much.
    pub base: Duration,
    /// The longest ejection. After as long without an ejection the next one is a first one again.
    pub max: Duration,
    /// Largest share of the endpoints that may be ejected at once, in percent.
    pub ejected_max_percent: u32,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            window: Duration::from_secs(10),
            failures_min: Some(5),
            share_min_percent: 1,
            in_a_row_max: None,
            base: Duration::from_secs(5),
            max: Duration::from_secs(60),
            ejected_max_percent: 50,
        }
    }
}

impl Policy {
    /// How many of `endpoints` may be ejected at once: the share, at least one, never the last.
    pub fn ejected_max(&self, endpoints: usize) -> usize {
        let share = endpoints * self.ejected_max_percent as usize / 100;
        share.max(1).min(endpoints.saturating_sub(1))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    failures: u32,
    requests: u64,
}

/// The record of one endpoint.
#[derive(Clone, Debug)]
pub struct Outlier {
    /// Buckets count seconds from here.
    epoch: Instant,
    /// The second that `buckets[second % buckets.len()]` is for; those of the seconds before are live.
    second: u64,
    /// One for each second of the window.
    buckets: Box<[Bucket]>,
    ejections: u32,
    ejected_until: Option<Instant>,
    last_ejected: Option<Instant>,
}

impl Outlier {
    /// A clean record that begins `now`.
    pub fn new(policy: &Policy, now: Instant) -> Outlier {
        let buckets = vec![Bucket::default(); policy.window.as_secs().max(1) as usize];
        Outlier {
            epoch: now,
            second: 0,
            buckets: buckets.into(),
            ejections: 0,
            ejected_until: None,
            last_ejected: None,
        }
    }

    /// Counts requests, failed ones included.
    pub fn requests(&mut self, n: u64, now: Instant) {
        self.advance(now);
        self.bucket().requests += n;
    }

    /// Counts a failure.
    pub fn failure(&mut self, now: Instant) {
        self.advance(now);
        self.bucket().failures += 1;
    }

    /// Failures in the window.
    pub fn failures(&self) -> u32 {
        self.buckets.iter().map(|b| b.failures).sum()
    }

    /// Whether the window as of the last count calls for an ejection.
    pub fn deserves_ejection(&self, policy: &Policy) -> bool {
        let failures = self.failures();
        let requests: u64 = self.buckets.iter().map(|b| b.requests).sum();
        policy.failures_min.is_some_and(|min| failures >= min)
            && u64::from(failures) * 100 >= requests * u64::from(policy.share_min_percent)
    }

    /// Ejects from `now` on and returns until when. The window starts afresh: old failures do not eject twice.
    pub fn eject(&mut self, policy: &Policy, now: Instant) -> Instant {
        let forgiven = self.last_ejected.is_some_and(|t| now.saturating_duration_since(t) > policy.max * 2);
        self.ejections = if forgiven { 1 } else { self.ejections.saturating_add(1) };
        let until = now + (policy.base * self.ejections.min(1000)).min(policy.max);
        self.buckets.fill(Bucket::default());
        self.last_ejected = Some(now);
        self.ejected_until = Some(until);
        until
    }

    /// Until when it is ejected.
    pub fn ejected_until(&self) -> Option<Instant> {
        self.ejected_until
    }

    /// Ends an ejection that is over by `now`. Returns whether one ended.
    pub fn readmit(&mut self, now: Instant) -> bool {
        let over = self.ejected_until.is_some_and(|until| until <= now);
        if over {
            self.ejected_until = None;
        }
        over
    }

    fn bucket(&mut self) -> &mut Bucket {
        let n = self.buckets.len() as u64;
        &mut self.buckets[(self.second % n) as usize]
    }

    fn advance(&mut self, now: Instant) {
        let second = now.saturating_duration_since(self.epoch).as_secs();
        let n = self.buckets.len();
        for stale in (self.second + 1..=second).rev().take(n) {
            self.buckets[(stale % n as u64) as usize] = Bucket::default();
        }
        self.second = self.second.max(second);
    }
}

#[cfg(test)]
mod tests;
