//! From flux's words to ours: the only file that knows what an update of the registry looks like.

use super::state::{Change, Event, Intent, Record};

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
        intent: match instance.status {
            flux::Status::Up => Intent::Serve,
            flux::Status::Draining => Intent::Drain,
            flux::Status::Maintenance => Intent::Maintain,
        },
        incarnation: instance.reg_rev,
    }
}
