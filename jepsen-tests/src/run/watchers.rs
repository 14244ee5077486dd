//! Watchers: they follow everything, or one service, through flux or through one node, and record what they are told.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::door::entry;
use super::recorder::Tape;
use super::rest::{Rest, Update};
use crate::history::Entry;
use crate::transcript::{Body, Change, Event};

/// One long poll waits so long for something new.
const POLL_WAIT: Duration = Duration::from_secs(2);
/// After a poll that failed.
const RETRY: Duration = Duration::from_millis(100);

/// How far a watcher is: nothing before its first snapshot.
pub(super) type Position = watch::Sender<Option<u64>>;

/// Follows through flux until `stop`.
pub(super) async fn through_flux(
    mut watch: flux::Watch,
    mut tape: Tape,
    position: Position,
    stop: CancellationToken,
) -> std::io::Result<()> {
    loop {
        let update = tokio::select! {
            () = stop.cancelled() => return tape.finish(),
            update = watch.next() => update,
        };
        let (revision, body) = match update {
            flux::Update::Reset { revision, instances } => {
                let instances = instances.iter().map(|instance| entry(instance)).collect();
                (revision, Body::Reset { revision, instances })
            }
            flux::Update::Events { revision, events } => {
                let events = events.iter().map(event).collect();
                (revision, Body::Events { revision, events })
            }
            flux::Update::Progress { revision } => (revision, Body::Progress { revision }),
        };
        tape.write(body);
        position.send_replace(Some(revision));
    }
}

/// Follows one node by long polls until `stop`. Resumes where it was, over failures and restarts of the node.
pub(super) async fn through_node(
    node: Rest,
    mut tape: Tape,
    position: Position,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let mut cluster_id = String::new();
    let mut snapshot: Vec<Entry> = Vec::new();
    loop {
        let at = *position.borrow();
        let resume = at.map(|at| (cluster_id.as_str(), at));
        let polled = tokio::select! {
            () = stop.cancelled() => return tape.finish(),
            polled = node.poll(None, resume, POLL_WAIT) => polled,
        };
        let Ok((cluster, updates)) = polled else {
            tokio::select! {
                () = stop.cancelled() => return tape.finish(),
                () = tokio::time::sleep(RETRY) => continue,
            }
        };
        if !cluster.is_empty() {
            cluster_id = cluster;
        }
        snapshot.clear();
        for update in updates {
            let (revision, body) = match update {
                Update::Reset { instances, more: true, .. } => {
                    snapshot.extend(instances);
                    continue;
                }
                Update::Reset { revision, instances, more: false } => {
                    snapshot.extend(instances);
                    (revision, Body::Reset { revision, instances: std::mem::take(&mut snapshot) })
                }
                Update::Events { revision, events } => (revision, Body::Events { revision, events }),
                Update::Progress { revision } => (revision, Body::Progress { revision }),
            };
            tape.write(body);
            position.send_replace(Some(revision));
        }
    }
}

fn event(event: &flux::Event) -> Event {
    let change = match event.kind {
        flux::EventKind::Put => Change::Put,
        flux::EventKind::Delete => Change::Delete,
        flux::EventKind::Expire => Change::Expire,
    };
    Event { revision: event.revision, change, entry: entry(&event.instance) }
}
