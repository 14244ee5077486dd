//! A scrape: what the node counts, what it is like now, and the original's gauges.

use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, IntGaugeVec, Opts, TextEncoder};

use super::Api;
use crate::catalog::Status;
use crate::metrics::Facts;
use crate::registry::{Consistency, Registry, Role};

/// Everything in Prometheus' text format, as the node is now.
pub async fn exposition(api: &Api) -> prometheus::Result<String> {
    api.metrics.note(&facts(&api.registry));
    let mut families = api.metrics.gather();
    families.extend(original(&api.registry).await?);
    families.sort_by(|a, b| a.name().cmp(b.name()));
    TextEncoder::new().encode_to_string(&families)
}

fn facts(registry: &Registry) -> Facts {
    let (status, header) = (registry.status(), registry.header());
    Facts {
        revision: status.revision,
        instances: status.instances,
        term: status.term,
        role: match status.role {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Learner => "learner",
            Role::Candidate => "candidate",
        },
        log: [
            ("last", status.last_log_index),
            ("committed", status.committed_index),
            ("applied", status.applied_index),
            ("snapshot", status.snapshot_index),
            ("purged", status.purged_index),
        ],
        ready: status.not_ready.is_none(),
        quarantined: status.quarantined,
        alarm: status.alarm.is_some(),
        read_rounds: [("quorum", status.quorum_rounds), ("leader", status.leader_rounds)],
        watchers: status.watchers,
        watch_ring_bytes: registry.history_bytes(),
        watch_wake_ups: registry.wake_ups(),
        leader_age: header.age,
        disk_free: status.disk_free,
        disk_full: status.disk_full.is_some(),
        disk_slow: status.disk_slow.is_some(),
    }
}

/// The original's gauges, made anew for each scrape so that no series outlives its instance. None while this node
/// has not caught up: a scrape must not see instances vanish that did not.
async fn original(registry: &Registry) -> prometheus::Result<Vec<MetricFamily>> {
    let Ok(list) = registry.list(None, Consistency::Stale, 0).await else { return Ok(Vec::new()) };
    let scrape = prometheus::Registry::new();
    for name in ["service_registry_registered_services", "service_registry_registered_services_total"] {
        let gauge = IntGauge::new(name, "Registered instances")?;
        gauge.set(list.value.len() as i64);
        scrape.register(Box::new(gauge))?;
    }
    let help = "1 for an instance that takes requests, 0 for one that is draining or in maintenance";
    let labels = ["instance_id", "service_name"];
    let alive = IntGaugeVec::new(Opts::new("service_registry_instance_alive", help), &labels)?;
    for record in &list.value {
        let labels = [record.spec.id.as_str(), record.spec.service.as_str()];
        alive.with_label_values(&labels).set((record.spec.status == Status::Up).into());
    }
    scrape.register(Box::new(alive))?;
    Ok(scrape.gather())
}
