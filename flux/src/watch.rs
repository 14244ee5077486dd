//! Follows changes: gapless, in order, and never back.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};

use crate::{Instance, Transport};

/// What a watch says next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Replaces everything held so far.
    Reset {
        /// What `instances` is as of.
        revision: u64,
        /// Everything there is.
        instances: Vec<Arc<Instance>>,
    },
    /// What happened since the last update.
    Events {
        /// Everything up to here has been told.
        revision: u64,
        /// By ascending revision; several may share one.
        events: Vec<Event>,
    },
    /// Nothing more happened up to `revision`.
    Progress {
        /// Everything up to here has been told.
        revision: u64,
    },
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The change's place in the order of all changes.
    pub revision: u64,
    /// What happened.
    pub kind: EventKind,
    /// For a put the record; for a removal the record as it was.
    pub instance: Arc<Instance>,
}

/// What happened to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// Registered or changed.
    Put,
    /// Deregistered, or moved to another service.
    Delete,
    /// Its lease ran out.
    Expire,
}

/// How a watch is doing.
#[derive(Clone, Debug)]
pub struct WatchStatus {
    /// Whether a node is sending now. While it is not, the holder keeps what it has.
    pub connected: bool,
    /// The protocol in use, or last used.
    pub transport: Transport,
    /// The node in use, or last tried.
    pub endpoint: String,
    /// The revision held.
    pub revision: u64,
    /// When anything last came from a node.
    pub last_heard: Instant,
}

/// Follows one service, or all. Reconnects for ever; dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    updates: mpsc::Receiver<Update>,
    status: watch::Receiver<WatchStatus>,
}

impl Watch {
    /// The next update. Waits as long as it takes; while the registry is away it keeps silent and keeps
    /// trying. Cancel-safe: an update is either returned or still there.
    pub async fn next(&mut self) -> Update {
        match self.updates.recv().await {
            Some(update) => update,
            None => std::future::pending().await,
        }
    }

    /// How the watch is doing, as it changes.
    pub fn status(&self) -> watch::Receiver<WatchStatus> {
        self.status.clone()
    }

    pub(crate) fn silent() -> Watch {
        let status = WatchStatus {
            connected: false,
            transport: Transport::Auto,
            endpoint: String::new(),
            revision: 0,
            last_heard: Instant::now(),
        };
        Watch { updates: mpsc::channel(1).1, status: watch::channel(status).1 }
    }
}
