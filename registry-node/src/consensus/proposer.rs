//! Packs the proposals that wait into one log entry, so that they share its round trip and its barrier.

use std::sync::Arc;

use bytes::Bytes;
use openraft::{Raft, errors::ClientWriteError, impls::ProgressResponder};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::{
    Error,
    state_machine::Machine,
    types::{Batch, Sealed, Types},
};
use crate::{
    catalog::{Proposal, decode_proposal, encode_proposal},
    envelope,
    scope::scoped,
    storage::Space,
    watch::Effect,
};

/// Proposals of one entry, whichever bound comes first; 16 entries make a leaf of the store that stays in one file.
const BATCH_MAX: usize = 2_048;
const BATCH_BYTES_MAX: usize = 7 << 10;
/// The largest proposal: a record of 16 KiB, its provenance and room.
const PROPOSAL_BYTES_MAX: usize = 30 << 10;
/// Entries on their way at once: enough to overlap disk and network, few enough that batches form.
const IN_FLIGHT: usize = 16;
/// Proposals that may wait; beyond it callers are told.
const QUEUE: usize = 16 << 10;

/// What became of a proposal.
pub type Outcome = Result<Effect, Error>;

/// Where the outcome of a proposal goes.
#[derive(Debug)]
pub enum Reply {
    /// To a caller that waits for nothing else.
    One(oneshot::Sender<Outcome>),
    /// To a caller with many on their way, which tells them apart by number. It bounds how many there are.
    Many(u64, mpsc::UnboundedSender<(u64, Outcome)>),
}

impl Reply {
    /// Answers; whoever gave up wants nothing.
    pub fn send(self, outcome: Outcome) {
        match self {
            Self::One(reply) => drop(reply.send(outcome)),
            Self::Many(number, replies) => drop(replies.send((number, outcome))),
        }
    }

    /// Whether nobody waits for the outcome any more.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::One(reply) => reply.is_closed(),
            Self::Many(_, replies) => replies.is_closed(),
        }
    }
}

/// A handle to the packing task. Cheap to clone.
#[derive(Clone)]
pub struct Proposer {
    queue: mpsc::Sender<(Sealed, Reply)>,
    space: Space,
}

impl Proposer {
    /// Starts the packing task.
    pub fn start(raft: Raft<Types, Machine>, space: Space, tracker: &TaskTracker) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tracker.spawn(scoped(pack(raft, waiting, tracker.clone())));
        Self { queue, space }
    }

    /// Replicates a proposal and answers by `reply`; [`Error::NoLeader`] if this node does not lead,
    /// [`Error::DiskFull`] if its disk has no room for more: sled must not find that out. Returns at once. A reply
    /// that is dropped unanswered means that the node stopped.
    pub fn submit(&self, sealed: Sealed, reply: Reply) {
        if let Err(error) = sealed.check() {
            return reply.send(Err(error));
        }
        if let Err(full) = self.space.for_proposals() {
            return reply.send(Err(Error::DiskFull { why: full.to_string() }));
        }
        match self.queue.try_send((sealed, reply)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full((_, reply))) => {
                reply.send(Err(Error::Overloaded { what: "proposals waiting".into() }));
            }
            Err(mpsc::error::TrySendError::Closed((_, reply))) => {
                reply.send(Err(Error::NotReady { why: "it is stopping".into() }));
            }
        }
    }
}

async fn pack(
    raft: Raft<Types, Machine>,
    mut waiting: mpsc::Receiver<(Sealed, Reply)>,
    tracker: TaskTracker,
) {
    let slots = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut carried = None;
    loop {
        let Some(first) = (match carried.take() {
            Some(first) => Some(first),
            None => waiting.recv().await,
        }) else {
            return;
        };
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        // Whatever has arrived together is proposed together: the tasks that are about to propose go first.
        tokio::task::yield_now().await;
        let (mut batch, mut replies) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some((sealed, reply)) = next {
            if batch.len() == BATCH_MAX || (bytes + sealed.weight() > BATCH_BYTES_MAX && !batch.is_empty()) {
                carried = Some((sealed, reply));
                break;
            }
            // Whoever gave up was told that the outcome is unknown; nobody waits for it any more.
            if !reply.is_closed() {
                bytes += sealed.weight();
                batch.push(sealed);
                replies.push(reply);
            }
            next = waiting.try_recv().ok();
        }
        if batch.is_empty() {
            continue;
        }
        submit(&raft, Batch::new(batch), replies, slot, &tracker).await;
    }
}

/// Hands the entry to Raft in order; its outcome is awaited apart.
async fn submit(
    raft: &Raft<Types, Machine>,
    batch: Batch,
    replies: Vec<Reply>,
    slot: OwnedSemaphorePermit,
    tracker: &TaskTracker,
) {
    let (responder, written) = ProgressResponder::complete_only();
    if raft.client_write_ff(batch, Some(responder)).await.is_err() {
        let error = Error::NotReady { why: "it is stopping".into() };
        return replies.into_iter().for_each(|reply| reply.send(Err(error.clone())));
    }
    tracker.spawn(scoped(async move {
        let result = match written.await {
            Ok(Ok(written)) => Ok(written.data),
            // Refused before it was appended.
            Ok(Err(ClientWriteError::ForwardToLeader(_))) => Err(Error::NoLeader),
            Ok(Err(other)) => Err(Error::Unknown { why: format!("leadership was lost: {other}") }),
            Err(_) => Err(Error::Unknown { why: "the node stopped".into() }),
        };
        drop(slot);
        match result {
            Ok(effects) => {
                replies.into_iter().zip(effects).for_each(|(reply, effect)| reply.send(Ok(effect)))
            }
            Err(error) => replies.into_iter().for_each(|reply| reply.send(Err(error.clone()))),
        }
    }));
}

/// Room that the container of an entry needs for each proposal.
const PER_PROPOSAL: usize = 8;

impl Sealed {
    /// A proposal and its bytes.
    pub fn new(proposal: Proposal) -> Self {
        let bytes = Bytes::from(encode_proposal(&proposal));
        Self { proposal, bytes }
    }

    /// The proposal that `bytes` were made from.
    pub fn of(bytes: Bytes) -> Result<Self, envelope::Error> {
        Ok(Self { proposal: decode_proposal(&bytes)?, bytes })
    }

    /// The proposal of another one's bytes, to be sent once more.
    pub fn again(bytes: &Bytes) -> Self {
        Self::of(bytes.clone()).expect("they were sealed here")
    }

    /// Whether an entry of the log can hold it.
    fn check(&self) -> Result<(), Error> {
        let bytes = self.bytes.len();
        if bytes > PROPOSAL_BYTES_MAX {
            let why = format!("the command is {bytes} bytes long, at most {PROPOSAL_BYTES_MAX} are taken");
            return Err(Error::Refused { why });
        }
        Ok(())
    }

    fn weight(&self) -> usize {
        self.bytes.len() + PER_PROPOSAL
    }
}
