//! What is believed about one instance, and how probes and failed requests change it. Pure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::outlier::{self, Outlier};
use super::record::{Intent, Record};
use super::state::{Policy, ProbeResult};
use crate::pool::{Address, Endpoint, Entry, Gate, RAMP_FULL, Standing};
use crate::report::Failure;

/// Health as probes and connects have it; ejection and the owner's intent are separate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Unproven,
    Up,
    Failing,
    Down,
}

/// What is believed about one instance.
pub struct Member {
    pub record: Record,
    pub endpoint: Arc<Endpoint>,
    pub zone: Arc<str>,
    /// Why the record cannot be used; such a member is never probed.
    pub unusable: Option<String>,
    pub verdict: Verdict,
    pub why: String,
    /// When `verdict` last became what it is.
    pub since: Instant,
    /// Probes in a row that contradict `verdict`.
    pub contrary: u32,
    /// Connects in vain since the endpoint was last reached.
    pub connect_failures: u32,
    /// [`Endpoint::times_reached`] as of the last of them.
    pub reached_seen: u64,
    /// Failed requests since the endpoint last answered one.
    pub failures_in_a_row: u32,
    /// [`Endpoint::times_answered`] as of the last of them.
    pub answered_seen: u64,
    /// How much of its weight is in effect, in tenths.
    pub ramp: u8,
    pub outlier: Outlier,
    /// [`Endpoint::served`] as last fed to `outlier`.
    pub served_seen: u64,
    pub probe_due: Instant,
    /// No probe before this, whatever happens: failing requests must not turn into a storm of probes.
    pub probe_floor: Instant,
    pub probe_running: Option<u64>,
    /// Not in the last (empty) reset; gone at this time.
    pub doomed_at: Option<Instant>,
}

impl Member {
    /// An instance that nobody has looked at.
    pub fn new(key: u64, record: Record, gate: &Arc<Gate>, policy: &Policy, now: Instant) -> Member {
        let (address, unusable) = match Address::parse(&record.url) {
            Ok(address) => (address, None),
            Err(e) => {
                (Address { host: String::new(), port: 0, base_path: String::new() }, Some(e.to_string()))
            }
        };
        let endpoint = Endpoint::new(key, &record.id, &record.service, address);
        Member {
            endpoint: Arc::new(endpoint.speaking(record.protocol).behind(gate.clone())),
            zone: record.zone.as_str().into(),
            record,
            unusable,
            verdict: Verdict::Unproven,
            why: "not probed yet".into(),
            since: now,
            contrary: 0,
            connect_failures: 0,
            reached_seen: 0,
            failures_in_a_row: 0,
            answered_seen: 0,
            ramp: RAMP_FULL,
            outlier: Outlier::new(&policy.outlier, now),
            served_seen: 0,
            probe_due: now,
            probe_floor: now,
            probe_running: None,
            doomed_at: None,
        }
    }

    /// Whether `record` is of the same place, so that what is known of it stays true.
    pub fn is_at(&self, record: &Record) -> bool {
        let known = &self.record;
        known.url == record.url && known.service == record.service && known.protocol == record.protocol
    }

    /// Takes a new record for the same place. A new incarnation is looked at right away: it may have come
    /// back to life; and one that was not probed for a while is unproven again.
    pub fn update(&mut self, record: Record, now: Instant) {
        let was_probed = self.is_probed();
        let reborn = record.incarnation != self.record.incarnation;
        let moved = (record.health_path != self.record.health_path)
            || (record.probe, &record.probe_service) != (self.record.probe, &self.record.probe_service);
        if *self.zone != *record.zone {
            self.zone = record.zone.as_str().into();
        }
        self.record = record;
        self.doomed_at = None;
        if self.is_probed() && !was_probed {
            self.turn(Verdict::Unproven, "back in service, not probed yet".into(), now);
        }
        if reborn || moved || !was_probed {
            self.probe_due = now;
            self.probe_running = None;
        }
    }

    /// What a pool says of it.
    pub fn entry(&self) -> Entry {
        let (standing, why) = self.standing();
        let weight = self.record.weight.max(1);
        Entry {
            ramp: self.ramp,
            zone: self.zone.clone(),
            ..Entry::new(self.endpoint.clone(), weight, standing, why)
        }
    }

    /// How much of its weight is to be in effect: a tenth at first, and with each tenth of `window` another one. Envoy's
    /// slow start, linear, in steps, since each is a new pool.
    pub fn ramp_at(&self, window: Duration, now: Instant) -> u8 {
        if window.is_zero() || self.verdict != Verdict::Up {
            return RAMP_FULL;
        }
        let steps = now.saturating_duration_since(self.since).as_nanos() * u128::from(RAMP_FULL);
        (steps / window.as_nanos()).clamp(1, u128::from(RAMP_FULL)) as u8
    }

    /// When that changes next.
    pub fn next_ramp(&self, window: Duration) -> Option<Instant> {
        (self.ramp < RAMP_FULL).then(|| self.since + window * u32::from(self.ramp + 1) / u32::from(RAMP_FULL))
    }

    /// Whether its health matters.
    pub fn is_probed(&self) -> bool {
        self.unusable.is_none() && self.record.intent == Intent::Serve
    }

    /// When it is probed next.
    pub fn probe_at(&self) -> Instant {
        self.probe_due.max(self.probe_floor)
    }

    /// The path of its probe, base path included.
    pub fn probe_path(&self, default: &str) -> String {
        let path = if self.record.health_path.is_empty() { default } else { &self.record.health_path };
        format!("{}/{}", self.endpoint.address.base_path, path.trim_start_matches('/'))
    }

    /// How it stands, and why.
    pub fn standing(&self) -> (Standing, String) {
        if let Some(why) = &self.unusable {
            return (Standing::Unusable, why.clone());
        }
        match self.record.intent {
            Intent::Drain => return (Standing::Draining, "its owner drains it".into()),
            Intent::Maintain => return (Standing::Maintenance, "its owner has it in maintenance".into()),
            Intent::Serve => {}
        }
        let standing = match self.verdict {
            Verdict::Up if self.outlier.ejected_until().is_some() => Standing::Ejected,
            Verdict::Up => Standing::Up,
            Verdict::Unproven => Standing::Unproven,
            Verdict::Failing => Standing::Failing,
            Verdict::Down => Standing::Down,
        };
        (standing, self.why.clone())
    }

    /// A probe came back.
    pub fn judge(&mut self, result: ProbeResult, policy: &Policy, now: Instant) {
        match (result, self.verdict) {
            (ProbeResult::Healthy, Verdict::Up) => {
                self.contrary = 0;
                self.connect_failures = 0;
            }
            (ProbeResult::Healthy, verdict) => {
                self.contrary += 1;
                if verdict == Verdict::Unproven || self.contrary >= policy.rise {
                    self.turn(Verdict::Up, "probe passed".into(), now);
                }
            }
            (ProbeResult::Refused, Verdict::Down) => self.contrary = 0,
            (ProbeResult::Refused, _) => {
                self.turn(Verdict::Down, "probe: connection refused".into(), now);
            }
            (ProbeResult::Unhealthy(why), Verdict::Up) => {
                self.contrary += 1;
                if self.contrary >= policy.fall {
                    self.turn(Verdict::Failing, format!("probe: {why}"), now);
                }
            }
            (ProbeResult::Unhealthy(why), Verdict::Failing) => {
                self.contrary = 0;
                self.why = format!("probe: {why}");
            }
            (ProbeResult::Unhealthy(why), Verdict::Unproven | Verdict::Down) => {
                self.turn(Verdict::Failing, format!("probe: {why}"), now);
            }
        }
    }

    /// A request failed.
    pub fn blame(&mut self, failure: Failure, policy: &Policy, now: Instant) {
        match failure {
            Failure::Refused => self.refuse("request: connection refused", now),
            Failure::Unreachable => {
                self.count_failure(now);
                self.count_connect_failure();
                if self.connect_failures >= policy.connect_failures_max {
                    self.refuse("requests: cannot connect", now);
                }
            }
            Failure::Broke | Failure::Silent | Failure::Gateway => {
                self.count_failure(now);
                self.probe_due = self.probe_due.min(now);
            }
            Failure::Reset => self.probe_due = self.probe_due.min(now),
        }
    }

    /// Only failures in a row count: an endpoint that is reached in between is busy, not gone.
    fn count_connect_failure(&mut self) {
        let reached = self.endpoint.times_reached();
        if reached != self.reached_seen {
            self.reached_seen = reached;
            self.connect_failures = 0;
        }
        self.connect_failures += 1;
    }

    /// Marks it down and looks again at once: the probe that may be under way started before.
    fn refuse(&mut self, why: &str, now: Instant) {
        if self.verdict != Verdict::Down {
            self.turn(Verdict::Down, why.to_owned(), now);
            self.probe_due = now;
            self.probe_running = None;
        }
    }

    /// It is believed to be something else now.
    pub fn turn(&mut self, verdict: Verdict, why: String, now: Instant) {
        self.verdict = verdict;
        self.why = why;
        self.since = now;
        self.contrary = 0;
        self.connect_failures = 0;
    }

    /// Why it should be ejected, if it should.
    pub fn deserves_ejection(&self, policy: &outlier::Policy) -> Option<String> {
        let (window, in_a_row) = (policy.window.as_secs(), self.failures_in_a_row);
        if policy.in_a_row_max.is_some_and(|max| in_a_row >= max) {
            return Some(format!("{in_a_row} failed requests in a row"));
        }
        let failures = self.outlier.failures();
        self.outlier
            .deserves_ejection(policy)
            .then(|| format!("{failures} failed requests within {window} s"))
    }

    fn count_failure(&mut self, now: Instant) {
        self.outlier.failure(now);
        let answered = self.endpoint.times_answered();
        if std::mem::replace(&mut self.answered_seen, answered) != answered {
            self.failures_in_a_row = 0;
        }
        self.failures_in_a_row += 1;
    }

    /// Tells the outlier's window of requests since the last time.
    pub fn count_requests(&mut self, now: Instant) {
        let served = self.endpoint.served();
        let fresh = served - self.served_seen;
        self.served_seen = served;
        if fresh > 0 || self.outlier.failures() > 0 {
            self.outlier.requests(fresh, now);
        }
    }
}
