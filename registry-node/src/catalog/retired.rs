//! The ids of nodes that were removed from the cluster. A removed node may have voted for what its successor under
//! the same id would not know of, so that two leaders could be elected: its id is spent.

use std::collections::BTreeMap;

use super::codec::{chain, tag};

/// Removed nodes remembered one by one. Beyond it the lowest id is given up, and with it every lower one: whoever
/// replaced a thousand nodes counts upwards.
pub const RETIRED_MAX: usize = 1_024;

/// Removed nodes, each with the catalog's revision at its removal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    nodes: BTreeMap<u64, u64>,
    /// Every id up to this one is spent; 0 if none is by this rule. The revision is that of the id itself.
    floor: (u64, u64),
    /// Wrapping sum over the nodes, kept up with them.
    nodes_hash: u64,
}

impl Retired {
    /// Notes a removal at `revision`. The first one of an id counts.
    pub fn note(&mut self, id: u64, revision: u64) {
        if self.revision_of(id).is_some() {
            return;
        }
        self.nodes.insert(id, revision);
        self.nodes_hash = self.nodes_hash.wrapping_add(node_hash(id, revision));
        if self.nodes.len() > RETIRED_MAX
            && let Some((id, revision)) = self.nodes.pop_first()
        {
            self.nodes_hash = self.nodes_hash.wrapping_sub(node_hash(id, revision));
            self.floor = (id, revision);
        }
    }

    /// When a node was removed; none if it was not.
    pub fn revision_of(&self, id: u64) -> Option<u64> {
        let (floor, revision) = self.floor;
        if id <= floor { Some(revision) } else { self.nodes.get(&id).copied() }
    }

    /// Everything: the floor if there is one, and the nodes by id.
    pub fn parts(&self) -> (Option<(u64, u64)>, impl Iterator<Item = (u64, u64)>) {
        (Some(self.floor).filter(|(id, _)| *id > 0), self.nodes.iter().map(|(id, revision)| (*id, *revision)))
    }

    /// Puts back a floor that [`Retired::parts`] gave.
    pub fn set_floor(&mut self, floor: (u64, u64)) {
        self.floor = floor;
    }

    /// Its part of the catalog's hash.
    pub fn hash(&self) -> u64 {
        let (id, revision) = self.floor;
        self.nodes_hash.wrapping_add(chain(&[tag::RETIRED_FLOOR, id, revision]))
    }
}

fn node_hash(id: u64, revision: u64) -> u64 {
    chain(&[tag::RETIRED, id, revision])
}
