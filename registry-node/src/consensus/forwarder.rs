//! Takes this node's proposals to the leader while that is another node: those that wait while calls are under way
//! share the next one.

use std::sync::Arc;

use bytes::Bytes;
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use super::{Error, Lead, network::Peers, proposer::Reply};
use crate::{latest, scope::scoped};

/// Proposals of one call; the leader takes four times as many.
const BATCH_MAX: usize = 1_024;
/// Bytes of one call after which it takes no further proposal: well below the size of a message between nodes.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Calls at once: the leader packs what they carry together, and each ends by its deadline.
const CALLS: usize = 8;
/// Proposals that may wait; beyond it callers are told.
const QUEUE: usize = 16 << 10;

struct Forward {
    bytes: Bytes,
    deadline: Instant,
    reply: Reply,
}

/// A handle to the forwarding task. Cheap to clone.
#[derive(Clone)]
pub struct Forwarder {
    queue: mpsc::Sender<Forward>,
}

impl Forwarder {
    /// Starts the forwarding task.
    pub fn start(peers: Peers, lead: latest::Receiver<Lead>, tracker: &TaskTracker) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tracker.spawn(scoped(forward_all(peers, lead, waiting, tracker.clone())));
        Self { queue }
    }

    /// Takes a sealed proposal to the leader and answers by `reply`; [`Error::NoLeader`] if no other node leads.
    /// Returns at once.
    pub fn submit(&self, bytes: Bytes, deadline: Instant, reply: Reply) {
        match self.queue.try_send(Forward { bytes, deadline, reply }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(forward)) => {
                let what = "proposals waiting for the leader".into();
                forward.reply.send(Err(Error::Overloaded { what }));
            }
            Err(mpsc::error::TrySendError::Closed(forward)) => {
                forward.reply.send(Err(Error::NotReady { why: "it is stopping".into() }));
            }
        }
    }
}

async fn forward_all(
    peers: Peers,
    lead: latest::Receiver<Lead>,
    mut queue: mpsc::Receiver<Forward>,
    tracker: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(CALLS));
    while let Some(first) = queue.recv().await {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let mut bytes = 0;
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some(forward) = next {
            // Whoever gave up was told that the outcome is unknown; nobody waits for it any more.
            if !forward.reply.is_closed() {
                bytes += forward.bytes.len();
                batch.push(forward);
            }
            let full = batch.len() == BATCH_MAX || bytes >= BATCH_BYTES_MAX;
            next = if full { None } else { queue.try_recv().ok() };
        }
        if batch.is_empty() {
            continue;
        }
        let (peers, lead) = (peers.clone(), lead.borrow().clone());
        tracker.spawn(scoped(async move {
            forward(&peers, lead, batch).await;
            drop(place);
        }));
    }
}

async fn forward(peers: &Peers, lead: Lead, batch: Vec<Forward>) {
    // Each caller keeps its own deadline; the call may last as long as one of them waits.
    let deadline = batch.iter().map(|forward| forward.deadline).max().unwrap_or_else(Instant::now);
    let commands = batch.iter().map(|forward| forward.bytes.clone()).collect();
    let outcomes = match lead {
        Lead::Elsewhere { id, address } => peers.propose(id, &address, commands, deadline).await,
        _ => Err(Error::NoLeader),
    };
    match outcomes {
        Ok(outcomes) => {
            batch.into_iter().zip(outcomes).for_each(|(forward, outcome)| forward.reply.send(outcome));
        }
        Err(error) => batch.into_iter().for_each(|forward| forward.reply.send(Err(error.clone()))),
    }
}
