//! What a watcher holds: the catalog, or one service of it, as of one revision. Pure: updates in, state out.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{EventKind, Instance, Update};

#[cfg(test)]
mod tests;

/// The instances a watch has told of so far. Apply every [`Update`] in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Everything up to here is in `instances`. Falls only by a reset, when the registry itself is another.
    revision: u64,
    instances: BTreeMap<String, Arc<Instance>>,
}

impl View {
    /// Takes one update in. Returns whether any instance was added, changed or removed. Events the view
    /// already holds are passed over, so applying an update twice is applying it once.
    pub fn apply(&mut self, update: &Update) -> bool {
        match update {
            Update::Reset { revision, instances } => self.replace(*revision, instances),
            Update::Events { revision, events } => {
                let held = self.revision;
                let fresh = events.iter().filter(|event| event.revision > held);
                let changed = fresh.fold(false, |changed, event| {
                    match event.kind {
                        EventKind::Put => {
                            self.instances.insert(event.instance.id.clone(), Arc::clone(&event.instance));
                        }
                        EventKind::Delete | EventKind::Expire => {
                            return self.instances.remove(&event.instance.id).is_some() || changed;
                        }
                    }
                    true
                });
                self.revision = held.max(*revision);
                changed
            }
            Update::Progress { revision } => {
                self.revision = self.revision.max(*revision);
                false
            }
        }
    }

    /// The revision the view is as of; 0 before the first update.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The instances by id.
    pub fn instances(&self) -> &BTreeMap<String, Arc<Instance>> {
        &self.instances
    }

    fn replace(&mut self, revision: u64, instances: &[Arc<Instance>]) -> bool {
        let fresh: BTreeMap<_, _> = instances.iter().map(|i| (i.id.clone(), Arc::clone(i))).collect();
        let changed = fresh != self.instances;
        self.revision = revision;
        self.instances = fresh;
        changed
    }
}
