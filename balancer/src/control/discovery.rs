//! From flux's words to ours: the only file that knows what an update of the registry looks like.

use super::record::{Change, Event, Intent, Probe, Record};
use crate::pool::Protocol;

/// The key of an instance's metadata that says how it is probed: `http`, `tcp` or `grpc`.
const HEALTH_CHECK: &str = "health-check";

/// The key that names the service a gRPC probe asks for.
const HEALTH_CHECK_SERVICE: &str = "health-check-service";

/// The key that says what it is spoken to in: `h2c`, or `grpc`, which is probed as such, too, unless [`HEALTH_CHECK`] says
/// otherwise. Anything else is HTTP/1.1: others may use the key for their own ends.
const PROTOCOL: &str = "protocol";

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
    let said = |key: &str| instance.metadata.get(key).map(String::as_str);
    let speaks = |name: &str| said(PROTOCOL).is_some_and(|protocol| protocol.eq_ignore_ascii_case(name));
    let is_grpc = speaks("grpc");
    Record {
        id: instance.id.clone(),
        service: instance.service.clone(),
        url: instance.url.clone(),
        health_path: instance.health_path.clone(),
        weight: instance.weight.max(1),
        zone: instance.zone.clone(),
        version: instance.version.clone(),
        probe: said(HEALTH_CHECK).and_then(Probe::named).or(is_grpc.then_some(Probe::Grpc)),
        probe_service: said(HEALTH_CHECK_SERVICE).unwrap_or_default().to_owned(),
        protocol: if is_grpc || speaks("h2c") { Protocol::H2c } else { Protocol::Http1 },
        intent: match instance.status {
            flux::Status::Up => Intent::Serve,
            flux::Status::Draining => Intent::Drain,
            flux::Status::Maintenance => Intent::Maintain,
        },
        incarnation: instance.reg_rev,
    }
}
