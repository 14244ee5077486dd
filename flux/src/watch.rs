//! Follows changes: gapless, in order, and never back. What a message means is decided by the cursor; this is
//! the loop that keeps a stream open to some node, over gRPC or by long polls.
//!
//! Any node can serve a watch, so watches begin at random nodes and do not follow the leader. A stream that is
//! silent, ends, or comes from a node that has lost its leader is left for another node, and resumed there at
//! the same position. While no node answers nothing is told: the holder keeps what it has.

mod cursor;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use prometheus::IntGauge;
use proto::registry::v1 as wire;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info};

use self::cursor::{Cursor, Verdict};
use crate::backoff::Backoff;
use crate::calls::{Calls, leader_of};
use crate::leader_hint::Node;
use crate::transport::{Failure, grpc};
use crate::{Instance, Transport};

/// A node says something each second; after so much silence the stream is dead.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// How long a poll over REST waits for news: as often as a stream would speak.
const POLL_WAIT: Duration = Duration::from_secs(1);

/// The least time from one poll to the next if the first brought nothing new: a node that cannot wait, as one
/// whose catalog is still at revision 0, is not asked in a spin.
const POLL_GAP: Duration = Duration::from_millis(250);

/// A node that has not heard of a leader for so long may be cut off; another may know more.
const AGE_MAX: Duration = Duration::from_secs(3);

/// How often a watch looks for a fresher node: when the whole registry has no leader, none is.
const FRESHER_EVERY: Duration = Duration::from_secs(10);

/// Between streams. The first retry goes to another node almost at once.
const RECONNECT: Backoff = Backoff { base: Duration::from_millis(50), cap: Duration::from_secs(2) };

/// Updates that wait for the holder. A slow holder holds back the stream, and the node keeps its place.
const UPDATES_WAITING_MAX: usize = 64;

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

impl From<wire::event::Kind> for EventKind {
    /// A kind that is newer than this program is a change of the record.
    fn from(kind: wire::event::Kind) -> EventKind {
        match kind {
            wire::event::Kind::Delete => EventKind::Delete,
            wire::event::Kind::Expire => EventKind::Expire,
            wire::event::Kind::Put | wire::event::Kind::Unspecified => EventKind::Put,
        }
    }
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
    _task: AbortOnDropHandle<()>,
}

impl Watch {
    /// The next update. Waits as long as it takes; while the registry is away it keeps silent and keeps
    /// trying. Cancel-safe: an update is either returned or still there.
    pub async fn next(&mut self) -> Update {
        match self.updates.recv().await {
            Some(update) => update,
            // The task ends only with the runtime.
            None => std::future::pending().await,
        }
    }

    /// How the watch is doing, as it changes.
    pub fn status(&self) -> watch::Receiver<WatchStatus> {
        self.status.clone()
    }

    /// Begins to follow `service`; empty follows all.
    pub(crate) fn begin(calls: Arc<Calls>, service: &str) -> Watch {
        let (updates, incoming) = mpsc::channel(UPDATES_WAITING_MAX);
        let (status, seen) = watch::channel(WatchStatus {
            connected: false,
            transport: Transport::Auto,
            endpoint: String::new(),
            revision: 0,
            last_heard: Instant::now(),
        });
        let follower = Follower {
            service: service.to_owned(),
            calls,
            cursor: Cursor::default(),
            updates,
            status,
            looked_for_fresher: None,
        };
        let task = AbortOnDropHandle::new(tokio::spawn(follower.run()));
        Watch { updates: incoming, status: seen, _task: task }
    }
}

/// The task behind a watch.
struct Follower {
    calls: Arc<Calls>,
    service: String,
    cursor: Cursor,
    updates: mpsc::Sender<Update>,
    status: watch::Sender<WatchStatus>,
    looked_for_fresher: Option<tokio::time::Instant>,
}

/// Why a stream was left.
#[derive(Debug)]
struct Left {
    why: String,
    /// Whether the node itself is in doubt, and not only this stream.
    unreachable: bool,
    /// Whether to go on at the same node.
    stay: bool,
}

/// A stream is followed until it is left.
type Followed = Result<Infallible, Left>;

impl Follower {
    async fn run(mut self) {
        let mut rng = fastrand::Rng::new();
        let turn = rng.usize(..1024);
        let mut left: Option<Node> = None;
        let mut failures = 0;
        loop {
            let node = self.choose(turn, left.as_ref());
            let Err(why) = self.follow(&node).await;
            failures = if self.disconnected(&node, &why) { 1 } else { failures + 1 };
            left = (!why.stay).then_some(node);
            sleep(RECONNECT.wait(failures, &mut rng)).await;
        }
    }

    fn choose(&self, turn: usize, left: Option<&Node>) -> Node {
        let order = self.calls.nodes().order_for_watch(turn, left, tokio::time::Instant::now());
        order.into_iter().next().expect("a client has at least one endpoint")
    }

    /// Takes note that the stream has ended. Returns whether anything had come over it.
    fn disconnected(&self, node: &Node, left: &Left) -> bool {
        if left.unreachable {
            self.calls.wire.doubt(node);
            self.calls.nodes().failed(node, tokio::time::Instant::now());
        }
        let mut was_connected = false;
        self.status.send_modify(|status| {
            was_connected = std::mem::replace(&mut status.connected, false);
        });
        if was_connected {
            info!(service = %self.service, node = %node.rest, why = left.why, "watch interrupted");
        } else {
            debug!(service = %self.service, node = %node.rest, why = left.why, "watch not connected");
        }
        was_connected
    }

    async fn follow(&mut self, node: &Node) -> Followed {
        let transport = self.calls.way(node).await?;
        let endpoint = if transport == Transport::Rest { &node.rest } else { &node.grpc };
        self.status.send_modify(|status| {
            status.transport = transport;
            status.endpoint = endpoint.to_string();
        });
        match transport {
            Transport::Rest => self.poll(node).await,
            _ => self.open(node).await,
        }
    }

    async fn open(&mut self, node: &Node) -> Followed {
        let open = self.cursor.open(&self.service, &self.calls.name, self.calls.known());
        let opening = timeout(SILENCE_MAX, self.calls.wire.grpc().watch(node, open));
        let stream = opening.await.map_err(|_| Left::node("the node does not answer"))??;
        self.read(stream).await
    }

    /// Reads a stream to its end.
    async fn read(
        &mut self,
        stream: impl Stream<Item = Result<wire::WatchResponse, tonic::Status>>,
    ) -> Followed {
        let mut stream = pin!(stream);
        let mut _connected = None;
        loop {
            let next = timeout(SILENCE_MAX, stream.next()).await;
            let next = next.map_err(|_| Left::node(format!("silent for {SILENCE_MAX:?}")))?;
            let message = next.ok_or_else(|| Left::stream("the node ended the stream"))?;
            _connected.get_or_insert_with(|| self.connected(Transport::Grpc));
            self.take(message.map_err(|status| grpc::failure(&status))?).await?;
        }
    }

    /// Polls until gRPC gets through again, or REST does not.
    async fn poll(&mut self, node: &Node) -> Followed {
        let mut returned = self.calls.wire.returned();
        let mut _connected = None;
        loop {
            let next = tokio::time::Instant::now() + POLL_GAP;
            let open = self.cursor.open(&self.service, &self.calls.name, self.calls.known());
            let held = open.after_revision;
            let polling = timeout(SILENCE_MAX, self.calls.wire.rest().poll(node, &open, POLL_WAIT));
            let messages = polling.await.map_err(|_| Left::node("the node does not answer"))??;
            _connected.get_or_insert_with(|| self.connected(Transport::Rest));
            for message in messages {
                self.take(message).await?;
            }
            let news = returned.has_changed().unwrap_or(false);
            returned.mark_unchanged();
            if news && self.calls.way(node).await? == Transport::Grpc {
                return Err(Left { why: "grpc gets through again".into(), unreachable: false, stay: true });
            }
            if self.cursor.revision() == held {
                sleep_until(next).await;
            }
        }
    }

    async fn take(&mut self, message: wire::WatchResponse) -> Result<(), Left> {
        let header = message.header.clone().unwrap_or_default();
        let verdict = self.cursor.take(message);
        if let Verdict::Leave(why) = verdict {
            return Err(Left::stream(why));
        }
        self.heard(&header);
        if let Verdict::Tell(update) = verdict {
            self.updates.send(update).await.map_err(|_| Left::stream("nobody listens any more"))?;
        }
        self.look_for_fresher(Duration::from_millis(header.age_ms))
    }

    fn heard(&self, header: &wire::ResponseHeader) {
        if let Some(leader) = leader_of(header) {
            self.calls.nodes().follow(&leader);
        }
        let revision = self.cursor.revision();
        let shown = i64::try_from(revision).unwrap_or(i64::MAX);
        self.calls.metrics.watch_revision.with_label_values(&[self.service_label()]).set(shown);
        self.status.send_modify(|status| {
            status.connected = true;
            status.revision = revision;
            status.last_heard = Instant::now();
        });
    }

    /// Leaves a node that has lost its leader, if there is another to ask and it was not tried just now.
    fn look_for_fresher(&mut self, age: Duration) -> Result<(), Left> {
        let now = tokio::time::Instant::now();
        let just_tried = self.looked_for_fresher.is_some_and(|then| now < then + FRESHER_EVERY);
        if age <= AGE_MAX || just_tried || self.calls.nodes().len() == 1 {
            return Ok(());
        }
        self.looked_for_fresher = Some(now);
        Err(Left::stream(format!("the node has not heard of a leader for {age:?}")))
    }

    fn connected(&self, transport: Transport) -> Connected {
        let node = self.status.borrow().endpoint.clone();
        info!(service = %self.service, %node, %transport, revision = self.cursor.revision(), "watch connected");
        Connected::new(self.calls.metrics.watch_connected.with_label_values(&[&transport.to_string()]))
    }

    fn service_label(&self) -> &str {
        if self.service.is_empty() { "*" } else { &self.service }
    }
}

impl Left {
    fn stream(why: impl Into<String>) -> Left {
        Left { why: why.into(), unreachable: false, stay: false }
    }

    fn node(why: impl Into<String>) -> Left {
        Left { why: why.into(), unreachable: true, stay: false }
    }
}

impl From<Failure> for Left {
    fn from(failure: Failure) -> Left {
        Left { why: failure.error.to_string(), unreachable: !failure.reached, stay: false }
    }
}

/// Counts a watch as connected for as long as it lives.
struct Connected(IntGauge);

impl Connected {
    fn new(gauge: IntGauge) -> Connected {
        gauge.inc();
        Connected(gauge)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}
