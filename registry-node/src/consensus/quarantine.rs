//! A node whose database was damaged takes no part: it grants no vote, does not campaign and serves nothing, and
//! says why. It takes entries and snapshots from a leader like any other, and comes back once nothing that it had
//! ever called durable can be missing.
//!
//! # When nothing is missing
//! A leader that a quorum confirms was elected without this node, or before the damage. Either way its log holds
//! every entry that this node had acknowledged and that was committed, so this node waits until it has applied
//! what such a leader had committed. On top of that its log must be, in Raft's order of logs, past everything its
//! sidecar called durable: as long as it was, or ending in a later term than any it had voted in.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{Consensus, Error, READ_INDEX_TIMEOUT, codec};
use crate::storage;

/// Whether this node takes part, and if not, why. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Quarantine(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Read on every call, so not behind the lock.
    on: AtomicBool,
    why: Mutex<String>,
}

impl Quarantine {
    /// As it was found at start.
    pub fn found(quarantine: Option<&storage::Quarantine>) -> Self {
        let this = Self::default();
        if let Some(found) = quarantine {
            this.begin(format!(
                "its database was damaged and set aside ({}); it waits until a leader has repaired it: until its log holds \
                 all entries below index {} again",
                found.why, found.floor
            ));
        }
        this
    }

    fn begin(&self, why: String) {
        *self.0.why.lock().expect("no panic while it is held") = why;
        self.0.on.store(true, Ordering::Release);
    }

    fn end(&self) {
        self.0.on.store(false, Ordering::Release);
    }

    /// Whether this node is kept from taking part.
    pub fn is_on(&self) -> bool {
        self.0.on.load(Ordering::Acquire)
    }

    /// Fails, and says why and what is waited for, if this node must not take part.
    pub fn check(&self) -> Result<(), Error> {
        match self.is_on() {
            false => Ok(()),
            true => {
                let why = self.0.why.lock().expect("no panic while it is held");
                Err(Error::NotReady { why: format!("it is in quarantine: {why}") })
            }
        }
    }
}

impl Consensus {
    /// Why this node takes no part although it runs; none if it does.
    pub fn quarantined(&self) -> Option<String> {
        self.0.quarantine.check().err().map(|error| error.to_string())
    }

    /// Takes this node out of service because what it holds is wrong, durably: it hands leadership over, grants no
    /// vote and serves nothing from now on. At its next start its database is set aside, and its peers repair it.
    pub async fn quarantine(&self, why: &str) -> std::io::Result<()> {
        error!(why, "this node takes itself out of service: restart it, and its peers will repair it");
        self.0.raft.runtime_config().elect(false);
        self.0.quarantine.begin(format!("{why}; it waits for a restart, then its peers repair it"));
        self.0.store.condemn(why).await?;
        self.hand_over().await;
        Ok(())
    }

    /// Brings a quarantined node back once nothing can be missing from its log.
    pub(super) async fn come_back(self, found: storage::Quarantine) {
        let before = found.vote_before.as_deref().and_then(|vote| codec::decode_vote(vote).ok());
        let before = before.map_or(0, |vote| vote.leader_id.term);
        loop {
            if self.stopped() {
                return;
            }
            let deadline = Instant::now() + READ_INDEX_TIMEOUT;
            if self.read_point(deadline).await.is_ok() {
                let later = (*self.0.applied.borrow()).is_some_and(|id| id.leader_id.term > before);
                match self.0.store.rejoin(later).await {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(error) => return warn!(%error, "the quarantine cannot be ended"),
                }
            }
            self.await_change(deadline).await;
        }
        self.0.raft.runtime_config().elect(true);
        self.0.quarantine.end();
        info!(floor = found.floor, "repaired by its peers: this node takes part again");
    }

    /// Keeps the store informed whether anybody could repair this node.
    pub(super) async fn note_company(self) {
        let mut metrics = self.0.raft.server_metrics();
        let mut noted = None;
        loop {
            let alone = {
                let metrics = metrics.borrow_watched();
                let mut voters = metrics.membership_config.voter_ids();
                let known = metrics.membership_config.voter_ids().next().is_some();
                known.then(|| voters.all(|voter| voter == self.0.id))
            };
            if let Some(alone) = alone.filter(|alone| noted != Some(*alone)) {
                noted = Some(alone);
                if self.0.store.alone(alone).await.is_err() {
                    return;
                }
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }
}
