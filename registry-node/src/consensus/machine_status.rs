//! What a node tells operators of itself and of the cluster.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use openraft::{ServerState, async_runtime::watch::WatchReceiver};

use super::{Consensus, Lead, types::Address};

/// A node's part in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes proposals.
    Leader,
    /// Votes and replicates.
    Follower,
    /// Replicates only.
    Learner,
    /// Asks for votes.
    Candidate,
}

/// A member and where it is; full URLs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// For people.
    pub name: String,
    /// For other nodes.
    pub peer: String,
    /// For gRPC clients.
    pub grpc: String,
    /// For REST clients.
    pub rest: String,
    /// Its part, as far as the answering node knows.
    pub role: Role,
}

impl Member {
    pub(super) fn new(id: u64, address: Address, role: Role) -> Self {
        let Address { name, peer, grpc, rest } = address;
        Self { id, name, peer, grpc, rest, role }
    }
}

/// Comes with every answer.
#[derive(Debug, Clone)]
pub struct Header {
    /// The cluster's id.
    pub cluster_id: Arc<str>,
    /// The node that answered.
    pub node_id: u64,
    /// Its Raft term.
    pub term: u64,
    /// The catalog's revision that the answer is about.
    pub revision: u64,
    /// Events up to here can no longer be replayed.
    pub compact_revision: u64,
    /// The leader, if one is known.
    pub leader: Option<Member>,
    /// Since this node last heard of a leader; zero on the leader.
    pub age: Duration,
}

/// What a node knows of itself.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    /// Its own addresses, whether or not the cluster knows them yet.
    pub node: Member,
    /// Its part.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// The last log entry it has applied.
    pub applied_index: u64,
    /// The last it knows to be committed.
    pub committed_index: u64,
    /// The last it has.
    pub last_log_index: u64,
    /// How far its snapshot reaches.
    pub snapshot_index: u64,
    /// How far its log is purged.
    pub purged_index: u64,
    /// Registered instances.
    pub instances: usize,
    /// Watchers that follow it.
    pub watchers: usize,
    /// Why it answers no linearizable reads now; none if it does as far as it knows.
    pub not_ready: Option<String>,
    /// Whether it takes no part until its peers have repaired it.
    pub quarantined: bool,
    /// Hash of the catalog.
    pub catalog_hash: u64,
    /// The catalog's revision.
    pub revision: u64,
    /// Bytes free on the disk of its directory, if it has an end.
    pub disk_free: Option<u64>,
    /// Why its disk takes no proposals; none if it does.
    pub disk_full: Option<String>,
    /// Why its disk is too slow for the election time-outs; none if it is not.
    pub disk_slow: Option<String>,
    /// What an operator must look at.
    pub alarm: Option<String>,
    /// Rounds that read points took of this node's quorum while it led.
    pub quorum_rounds: u64,
    /// Questions that they took to a leader elsewhere.
    pub leader_rounds: u64,
}

impl Consensus {
    /// This node's state.
    pub fn status(&self) -> NodeStatus {
        let (instances, catalog_hash, revision) = self.0.hub.read(|c| (c.len(), c.hash(), c.revision()));
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let lead = self.lead();
        let age = self.age(&lead);
        let not_ready = match (self.caught_up(), lead) {
            (Err(error), _) => Some(error.to_string()),
            (_, Lead::Nowhere) => Some("it knows no leader".into()),
            _ if age > 2 * self.election_max() => {
                Some(format!("it has not heard the leader for {} ms", age.as_millis()))
            }
            _ => None,
        };
        NodeStatus {
            node: Member::new(self.0.id, self.0.own.clone(), role(metrics.state)),
            role: role(metrics.state),
            term: metrics.current_term,
            // As the catalog is, not as openraft has reported it.
            applied_index: (*self.0.applied.borrow()).map_or(0, |id| id.index),
            committed_index: metrics.cluster_committed.map_or(0, |id| id.index),
            last_log_index: metrics.last_log_index.unwrap_or(0),
            snapshot_index: metrics.snapshot.map_or(0, |id| id.index),
            purged_index: metrics.purged.map_or(0, |id| id.index),
            instances,
            watchers: self.0.hub.watchers(),
            not_ready,
            quarantined: self.quarantined().is_some(),
            catalog_hash,
            revision,
            disk_free: self.0.space.free(),
            disk_full: self.0.space.for_proposals().err().map(|full| full.to_string()),
            disk_slow: self.disk_slow(),
            alarm: self.alarm(),
            quorum_rounds: self.0.read_rounds[0].load(Ordering::Relaxed),
            leader_rounds: self.0.read_rounds[1].load(Ordering::Relaxed),
        }
    }

    /// What an operator must look at: that this node takes no part, or that nodes disagree.
    pub fn alarm(&self) -> Option<String> {
        let halted = self.0.halted.get().cloned().or_else(|| self.quarantined());
        halted.or_else(|| self.0.alarm.lock().expect("no panic while it is held").clone())
    }

    /// The members, in order of their ids.
    pub fn members(&self) -> Vec<Member> {
        let metrics = self.0.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let membership = &metrics.membership_config;
        let voters: Vec<u64> = membership.voter_ids().collect();
        let part = |id: u64| match metrics.current_leader {
            Some(leader) if leader == id => Role::Leader,
            _ if id == self.0.id => role(metrics.state),
            _ if voters.contains(&id) => Role::Follower,
            _ => Role::Learner,
        };
        membership.nodes().map(|(id, address)| Member::new(*id, address.clone(), part(*id))).collect()
    }
}

fn role(state: ServerState) -> Role {
    match state {
        ServerState::Leader => Role::Leader,
        ServerState::Candidate => Role::Candidate,
        ServerState::Learner => Role::Learner,
        _ => Role::Follower,
    }
}
