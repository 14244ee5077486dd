//! From flux's words to ours: the only file that knows what an update of the registry looks like.

use super::record::{Change, Event, Intent, Probe, Record};

/// The key of an instance's metadata that says how it is probed: `http`, `tcp` or `grpc`.
const HEALTH_CHECK: &str = "health-check";

/// The key that names the service a gRPC probe asks for.
const HEALTH_CHECK_SERVICE: &str = "health-check-service";

/// What `update` says, reduced to what a balancer uses.
pub fn change(update: flux::Update) -> Change {
    match update {
        flux::Update::Reset { revision, instances } => {
            Change::Reset { revision, records: instances.iter().map(|i| record(i)).collect() }
        }
        flux::Update::Events { revision, events } => {
            Change::Events { revision, events: events.iter().map(event).collect() }
        }
        flux::Update::Progress { revision } => Change::Progress { revision },
    }
}

fn event(event: &flux::Event) -> Event {
    match event.kind {
        flux::EventKind::Put => Event::Put(record(&event.instance)),
        flux::EventKind::Delete | flux::EventKind::Expire => Event::Gone(event.instance.id.clone()),
    }
}

fn record(instance: &flux::Instance) -> Record {
    Record {
        id: instance.id.clone(),
        service: instance.service.clone(),
        url: instance.url.clone(),
        health_path: instance.health_path.clone(),
        weight: instance.weight.max(1),
        zone: instance.zone.clone(),
        version: instance.version.clone(),
        probe: instance.metadata.get(HEALTH_CHECK).and_then(|name| Probe::named(name)),
        probe_service: instance.metadata.get(HEALTH_CHECK_SERVICE).cloned().unwrap_or_default(),
        intent: match instance.status {
            flux::Status::Up => Intent::Serve,
            flux::Status::Draining => Intent::Drain,
            flux::Status::Maintenance => Intent::Maintain,
        },
        incarnation: instance.reg_rev,
    }
}
