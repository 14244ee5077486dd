//! The position of a watch, and what a message means at that position. Pure.
//!
//! This is where *never back, never a gap* is decided. The position moves only by messages that were received
//! whole; whatever a node sends that is not a continuation of it, or a snapshot that is not behind it, is
//! passed over or ends the stream. A node is not trusted to have understood where the watch is.

use std::sync::Arc;

use proto::registry::v1 as wire;
use wire::watch_response::Kind;

use crate::calls::Known;
use crate::{Event, Instance, Update};

/// A position in the history of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Whose history. Empty before the first snapshot.
    cluster_id: String,
    /// Everything up to here was told.
    revision: u64,
    /// The part of a snapshot that has come so far.
    snapshot: Option<Vec<Arc<Instance>>>,
}

/// What to do with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Tell the holder.
    Tell(Update),
    /// Nothing new.
    Pass,
    /// This stream cannot go on: open another one, elsewhere. For people: why.
    Leave(&'static str),
}

impl Cursor {
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// How a stream resumes here; one that only begins begins with no less than what is `known` from elsewhere. What
    /// was left of an unfinished snapshot is dropped.
    pub(crate) fn open(&mut self, service: &str, watcher: &str, known: Known) -> wire::WatchOpen {
        self.snapshot = None;
        let (cluster_id, min_revision) = match self.cluster_id.is_empty() {
            true if known.revision > 0 => (known.cluster_id, known.revision),
            _ => (self.cluster_id.clone(), 0),
        };
        wire::WatchOpen {
            service: service.to_owned(),
            cluster_id,
            after_revision: self.revision,
            watcher: watcher.to_owned(),
            min_revision,
        }
    }

    /// Takes one message in.
    pub(crate) fn take(&mut self, message: wire::WatchResponse) -> Verdict {
        let header = message.header.unwrap_or_default();
        match message.kind {
            Some(Kind::Reset(reset)) => self.reset(header, reset),
            _ if header.cluster_id != self.cluster_id || self.cluster_id.is_empty() => {
                Verdict::Leave("changes came before the snapshot they belong to")
            }
            _ if self.snapshot.is_some() => Verdict::Leave("a snapshot broke off"),
            Some(Kind::Events(events)) => self.events(events),
            Some(Kind::Progress(_)) => self.progress(header.revision),
            // A kind that is newer than this program.
            None => Verdict::Pass,
        }
    }

    fn reset(&mut self, header: wire::ResponseHeader, reset: wire::WatchReset) -> Verdict {
        if header.cluster_id.is_empty() {
            return Verdict::Leave("the snapshot names no cluster");
        }
        if header.cluster_id == self.cluster_id && header.revision < self.revision {
            return Verdict::Leave("the node is behind what is held");
        }
        if reset.first {
            self.snapshot = Some(Vec::with_capacity(reset.instances.len()));
        }
        let Some(snapshot) = &mut self.snapshot else {
            return Verdict::Leave("a snapshot began in its middle");
        };
        snapshot.extend(reset.instances.into_iter().map(|instance| Arc::new(instance.into())));
        if reset.more {
            return Verdict::Pass;
        }
        let instances = self.snapshot.take().unwrap_or_default();
        (self.cluster_id, self.revision) = (header.cluster_id, header.revision);
        Verdict::Tell(Update::Reset { revision: self.revision, instances })
    }

    /// The position moves to the last event, not to the header's revision: that one may be ahead of what this
    /// message carries.
    fn events(&mut self, events: wire::WatchEvents) -> Verdict {
        let fresh: Vec<Event> =
            events.events.into_iter().filter(|event| event.revision > self.revision).map(event).collect();
        if !fresh.is_sorted_by_key(|event| event.revision) {
            return Verdict::Leave("events came out of order");
        }
        let Some(last) = fresh.last() else { return Verdict::Pass };
        self.revision = last.revision;
        Verdict::Tell(Update::Events { revision: self.revision, events: fresh })
    }

    fn progress(&mut self, revision: u64) -> Verdict {
        if revision < self.revision {
            return Verdict::Pass;
        }
        self.revision = revision;
        Verdict::Tell(Update::Progress { revision })
    }
}

/// An event of a kind that is newer than this program is a change of the record, which it carries.
fn event(event: wire::Event) -> Event {
    let kind = event.kind().into();
    Event { revision: event.revision, kind, instance: Arc::new(event.instance.unwrap_or_default().into()) }
}
