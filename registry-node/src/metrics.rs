//! What a node measures, in one struct. Counters count as things happen; gauges are read from the node when it is
//! scraped (`api/scrape.rs`), so that they cannot drift. Names and labels are API: they stay.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry as Exposition, proto::MetricFamily,
};

/// Seconds; from a local round trip to the longest that a call waits for a leader.
const SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 4.0];

/// A node's metrics.
#[derive(Debug)]
pub struct Metrics {
    exposition: Exposition,
    /// Calls answered, by operation, protocol (`grpc`, `pipeline`, `rest`, `legacy`) and result (`ok` or an error code).
    requests: IntCounterVec,
    /// Their duration, by operation and protocol.
    request_duration: HistogramVec,
    /// Heartbeats, by result: `renewed`, `lost`.
    heartbeats: IntCounterVec,
    /// Leases that ran out.
    expirations: IntCounter,
    /// Leases kept here; 0 unless this node leads.
    leases: IntGauge,
    /// 1 while a mass expiry is held back.
    expiry_brake: IntGauge,
    /// From the first byte of a batch to the end of its barrier.
    barrier_duration: Histogram,
    /// Rounds that read points took, by whom was asked: `quorum` by the leader, `leader` by the others.
    read_rounds: IntCounterVec,
    /// What was last added up into them, by the same order as [`Facts::read_rounds`].
    read_rounds_seen: [AtomicU64; 2],
    /// 1 while an operator must look at this node.
    alarm: IntGauge,
    /// The catalog's revision.
    revision: IntGauge,
    /// Registered instances.
    instances: IntGauge,
    /// Raft's term.
    term: IntGauge,
    /// 1 for the role that this node has, 0 for the others.
    role: IntGaugeVec,
    /// Log indices: `last`, `committed`, `applied`, `snapshot`, `purged`.
    log_index: IntGaugeVec,
    /// 1 if this node answers linearizable reads as far as it knows.
    ready: IntGauge,
    /// 1 while this node takes no part until its peers have repaired it.
    quarantined: IntGauge,
    /// Streams and polls that follow this node.
    watchers: IntGauge,
    /// Memory that the recent changes hold from which watchers resume, by estimate.
    watch_ring_bytes: IntGauge,
    /// Calls of watchers: each time something changed that concerns one.
    watch_wake_ups: IntCounter,
    /// Seconds since a leader was heard; 0 on the leader.
    leader_age: GaugeVec,
    /// Bytes free on the disk of the node's directory.
    disk_free: IntGauge,
    /// 1 while proposals are refused because the disk is nearly full.
    disk_full: IntGauge,
    /// 1 while the disk is too slow for the election time-outs.
    disk_slow: IntGauge,
}

impl Metrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        let exposition = Exposition::new();
        #[cfg(target_os = "linux")]
        exposition
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("the first to register");
        let gauge =
            |name: &str, help: &str| add(&exposition, IntGauge::new(name, help).expect("a valid name"));
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            add(&exposition, IntGaugeVec::new(Opts::new(name, help), labels).expect("valid names"))
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            add(&exposition, IntCounterVec::new(Opts::new(name, help), labels).expect("valid names"))
        };
        let seconds = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(SECONDS.into());
        let durations = seconds("registry_request_duration_seconds", "Time to answer a call");
        let barriers =
            seconds("registry_storage_barrier_duration_seconds", "Time to make a batch of writes durable");
        let age = GaugeVec::new(
            Opts::new("registry_leader_age_seconds", "Since a leader was heard; 0 on the leader"),
            &[],
        );
        Self {
            requests: counters(
                "registry_requests_total",
                "Calls answered",
                &["operation", "protocol", "result"],
            ),
            request_duration: add(
                &exposition,
                HistogramVec::new(durations, &["operation", "protocol"]).expect("valid names"),
            ),
            heartbeats: counters("registry_heartbeats_total", "Heartbeats, by result", &["result"]),
            expirations: add(
                &exposition,
                IntCounter::new("registry_expirations_total", "Leases that ran out").expect("a valid name"),
            ),
            leases: gauge("registry_leases", "Leases kept here; 0 unless this node leads"),
            expiry_brake: gauge("registry_expiry_brake", "1 while a mass expiry is held back"),
            barrier_duration: add(&exposition, Histogram::with_opts(barriers).expect("a valid name")),
            read_rounds: counters(
                "registry_read_rounds_total",
                "Rounds of read points, each shared by the reads that waited for it",
                &["asked"],
            ),
            read_rounds_seen: Default::default(),
            alarm: gauge("registry_alarm", "1 while an operator must look: see alarm in /v1/status"),
            revision: gauge("registry_revision", "The catalog's revision"),
            instances: gauge("registry_instances", "Registered instances"),
            term: gauge("registry_raft_term", "Raft's term"),
            role: gauges("registry_raft_role", "1 for the role this node has", &["role"]),
            log_index: gauges("registry_raft_log_index", "Log indices, by what they mark", &["mark"]),
            ready: gauge("registry_ready", "1 if linearizable reads are answered"),
            quarantined: gauge(
                "registry_quarantined",
                "1 while the node takes no part until its peers have repaired it",
            ),
            watchers: gauge("registry_watchers", "Streams and polls that follow this node"),
            watch_ring_bytes: gauge(
                "registry_watch_ring_bytes",
                "Memory of the changes that watchers resume from",
            ),
            watch_wake_ups: add(
                &exposition,
                IntCounter::new(
                    "registry_watch_wakeups_total",
                    "Watchers called, each for a change of its own",
                )
                .expect("a valid name"),
            ),
            leader_age: add(&exposition, age.expect("valid names")),
            disk_free: gauge("registry_disk_free_bytes", "Bytes free on the disk of the node's directory"),
            disk_full: gauge("registry_disk_full", "1 while writes are refused for want of room on the disk"),
            disk_slow: gauge("registry_disk_slow", "1 while the disk is too slow for the election time-outs"),
            exposition,
        }
    }

    /// Notes a call: its operation, protocol, result and duration. All three labels are from small closed sets.
    pub fn request(
        &self,
        operation: &'static str,
        protocol: &'static str,
        result: &'static str,
        took: Duration,
    ) {
        self.requests.with_label_values(&[operation, protocol, result]).inc();
        self.request_duration.with_label_values(&[operation, protocol]).observe(took.as_secs_f64());
    }

    /// Notes calls of one kind that took about as long; they are one in the histogram.
    pub fn requests(
        &self,
        operation: &'static str,
        protocol: &'static str,
        result: &'static str,
        count: usize,
        took: Duration,
    ) {
        self.requests.with_label_values(&[operation, protocol, result]).inc_by(count as u64);
        self.request_duration.with_label_values(&[operation, protocol]).observe(took.as_secs_f64());
    }

    /// Notes heartbeats.
    pub fn heartbeats(&self, renewed: usize, lost: usize) {
        self.heartbeats.with_label_values(&["renewed"]).inc_by(renewed as u64);
        self.heartbeats.with_label_values(&["lost"]).inc_by(lost as u64);
    }

    /// Notes leases that ran out.
    pub fn expired(&self, count: usize) {
        self.expirations.inc_by(count as u64);
    }

    /// Notes how many leases there are, and whether their expiry is held back.
    pub fn leases(&self, count: usize, braked: bool) {
        self.leases.set(count as i64);
        self.expiry_brake.set(braked.into());
    }

    /// Notes how long a batch of writes took to become durable.
    pub fn barrier(&self, took: Duration) {
        self.barrier_duration.observe(took.as_secs_f64());
    }

    /// Notes what the node is like now, for the scrape that follows.
    pub fn note(&self, facts: &Facts) {
        self.revision.set(facts.revision as i64);
        self.instances.set(facts.instances as i64);
        self.term.set(facts.term as i64);
        self.ready.set(facts.ready.into());
        self.quarantined.set(facts.quarantined.into());
        self.alarm.set(facts.alarm.into());
        for ((asked, rounds), seen) in facts.read_rounds.into_iter().zip(&self.read_rounds_seen) {
            // Of two scrapes at once only one adds what is new.
            let new = rounds.saturating_sub(seen.fetch_max(rounds, Ordering::Relaxed));
            self.read_rounds.with_label_values(&[asked]).inc_by(new);
        }
        self.watchers.set(facts.watchers as i64);
        self.watch_ring_bytes.set(facts.watch_ring_bytes as i64);
        self.watch_wake_ups.inc_by(facts.watch_wake_ups.saturating_sub(self.watch_wake_ups.get()));
        self.leader_age.with_label_values::<&str>(&[]).set(facts.leader_age.as_secs_f64());
        self.disk_free.set(facts.disk_free.map_or(i64::MAX, |bytes| bytes as i64));
        self.disk_full.set(facts.disk_full.into());
        self.disk_slow.set(facts.disk_slow.into());
        for role in ROLES {
            self.role.with_label_values(&[role]).set((role == facts.role).into());
        }
        for (mark, index) in facts.log {
            self.log_index.with_label_values(&[mark]).set(index as i64);
        }
    }

    /// Everything measured.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.exposition.gather()
    }
}

/// Every value of the label `role`.
pub const ROLES: [&str; 4] = ["leader", "follower", "learner", "candidate"];

/// What a node is like at the moment of a scrape.
#[derive(Debug)]
pub struct Facts {
    /// The catalog's revision.
    pub revision: u64,
    /// Registered instances.
    pub instances: usize,
    /// Raft's term.
    pub term: u64,
    /// One of [`ROLES`].
    pub role: &'static str,
    /// Log indices and what they mark.
    pub log: [(&'static str, u64); 5],
    /// Whether linearizable reads are answered as far as it knows.
    pub ready: bool,
    /// Whether it takes no part until its peers have repaired it.
    pub quarantined: bool,
    /// Whether an operator must look at this node.
    pub alarm: bool,
    /// Rounds of read points since the start, by whom was asked.
    pub read_rounds: [(&'static str, u64); 2],
    /// Streams and polls that follow it.
    pub watchers: usize,
    /// Memory of the ring of recent changes.
    pub watch_ring_bytes: usize,
    /// How often a watcher was called since the start.
    pub watch_wake_ups: u64,
    /// Since a leader was heard.
    pub leader_age: Duration,
    /// Bytes free on the disk, if it has an end.
    pub disk_free: Option<u64>,
    /// Whether proposals are refused for want of room.
    pub disk_full: bool,
    /// Whether the disk is too slow for the election time-outs.
    pub disk_slow: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn add<C: prometheus::core::Collector + Clone + 'static>(exposition: &Exposition, collector: C) -> C {
    exposition.register(Box::new(collector.clone())).expect("every name is registered once");
    collector
}
