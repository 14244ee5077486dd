//! Many calls over one stream: writes and heartbeats of many tasks share messages, and a node's work.
//!
//! One task owns the stream. It follows the leader, and when a stream breaks it sends what is not answered once more
//! on the next: every write is numbered and takes effect once however often it is sent, and a heartbeat may be
//! repeated. A call ends by its own deadline; one that was sent and not answered by then has an unknown outcome,
//! and says so.

mod lanes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::Either;
use proto::registry::v1 as wire;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tonic::Streaming;
use wire::pipeline_request::Call;
use wire::pipeline_response::Result as Reply;

use self::lanes::{Lanes, Ticket};
use crate::backoff::Backoff;
use crate::calls::{Calls, leader_of};
use crate::error::Code;
use crate::leader_hint::Node;
use crate::transport::{Failure, Transport};
use crate::{Answer, Error, Instance, Status, WriteOptions};

/// Calls that may wait for the stream; beyond it their callers wait.
const QUEUE: usize = 1_024;

/// Calls on their way at once, heartbeats and writes. The registry takes 4 096 of one stream.
const IN_FLIGHT_MAX: usize = 2_048;

/// How long a stream may keep a call that another node could answer: three nodes, two of them mute, fit into the
/// default limit of a call.
const PATIENCE: Duration = Duration::from_secs(2);

/// The wait after every node was asked for a stream in vain.
const ROUND: Backoff = Backoff { base: Duration::from_millis(50), cap: Duration::from_millis(400) };

/// A stream of calls, shared by all clones of it. It lives as long as one of them, or a call under way.
#[derive(Clone, Debug)]
pub struct Pipeline {
    calls: Arc<Calls>,
    orders: mpsc::Sender<Order>,
}

/// A call on its way to the stream.
#[derive(Debug)]
struct Order {
    call: Call,
    deadline: Instant,
    reply: oneshot::Sender<Result<Answered, Error>>,
}

/// A call's result and the cluster that gave it.
#[derive(Debug)]
struct Answered {
    cluster_id: String,
    reply: Reply,
}

impl Pipeline {
    pub(crate) fn begin(calls: Arc<Calls>) -> Pipeline {
        let (orders, queue) = mpsc::channel(QUEUE);
        tokio::spawn(Carrier::new(Arc::clone(&calls)).run(queue));
        Pipeline { calls, orders }
    }

    /// As [`crate::Client::put`], with a number of its own: an error that leaves the outcome open comes only when
    /// no node has answered in time. The record is as it was given, completed by what the registry has set.
    pub async fn register(
        &self,
        instance: &Instance,
        options: WriteOptions,
    ) -> Result<Answer<Instance>, Error> {
        instance.check()?;
        let request = wire::RegisterRequest {
            instance: Some(instance.into()),
            expected_revision: options.expected_revision,
            by: if options.by.is_empty() { self.calls.name.clone() } else { options.by },
            why: options.why,
            ..Default::default()
        };
        let answered = self.call(Call::Register(request)).await?;
        let Reply::Register(reply) = answered.reply else { return Err(mismatched()) };
        let set = reply.instance.ok_or_else(mismatched)?;
        let mut record = instance.clone();
        record.ttl = Duration::from_millis(set.ttl_ms.into());
        record.weight = set.weight;
        (record.reg_rev, record.mod_rev) = (set.reg_rev, set.mod_rev);
        Ok(answer(reply.header, answered.cluster_id, record))
    }

    /// As [`crate::Client::heartbeat`].
    pub async fn heartbeat(&self, id: &str, reg_rev: u64) -> Result<Answer<bool>, Error> {
        let beats = vec![wire::Beat { id: id.to_owned(), reg_rev }];
        let answered = self.call(Call::Heartbeat(wire::HeartbeatRequest { beats })).await?;
        let Reply::Heartbeat(reply) = answered.reply else { return Err(mismatched()) };
        let renewed = reply.results().next() == Some(wire::BeatResult::Renewed);
        Ok(answer(reply.header, answered.cluster_id, renewed))
    }

    /// As [`crate::Client::deregister`], with a number of its own.
    pub async fn deregister(&self, id: &str, reg_rev: Option<u64>) -> Result<Answer<bool>, Error> {
        let request = wire::DeregisterRequest {
            id: id.to_owned(),
            reg_rev: reg_rev.unwrap_or(0),
            by: self.calls.name.clone(),
            ..Default::default()
        };
        let answered = self.call(Call::Deregister(request)).await?;
        let Reply::Deregister(reply) = answered.reply else { return Err(mismatched()) };
        Ok(answer(reply.header, answered.cluster_id, reply.found))
    }

    /// As [`crate::Client::set_status`], with a number of its own.
    pub async fn set_status(
        &self,
        id: &str,
        status: Status,
        reg_rev: Option<u64>,
    ) -> Result<Answer<Instance>, Error> {
        let request = wire::SetStatusRequest {
            id: id.to_owned(),
            status: wire::instance::Status::from(status).into(),
            reg_rev: reg_rev.unwrap_or(0),
            by: self.calls.name.clone(),
            ..Default::default()
        };
        let answered = self.call(Call::SetStatus(request)).await?;
        let Reply::SetStatus(reply) = answered.reply else { return Err(mismatched()) };
        let record = reply.instance.ok_or_else(mismatched)?.into();
        Ok(answer(reply.header, answered.cluster_id, record))
    }

    async fn call(&self, call: Call) -> Result<Answered, Error> {
        let deadline = Instant::now() + self.calls.limit;
        let (reply, answered) = oneshot::channel();
        let order = Order { call, deadline, reply };
        let full = |_| Error::new(Code::ResourceExhausted, "too many calls wait for the pipeline");
        let gone = || Error::new(Code::Unavailable, "the runtime of the pipeline went away");
        timeout_at(deadline, self.orders.send(order)).await.map_err(full)?.map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone().no_effect(Some(false))))
    }
}

/// The task behind a pipeline.
struct Carrier {
    calls: Arc<Calls>,
    /// By number, which is also their order in time: deadlines rise with it.
    pending: BTreeMap<u64, Pending>,
    next: u64,
    lanes: Lanes,
    /// No more orders come.
    closed: bool,
    /// What the last attempt to open a stream, or its end, said.
    said: Option<Error>,
}

struct Pending {
    order: Order,
    ticket: Option<Ticket>,
    /// When it was sent on the present stream.
    sent_at: Option<Instant>,
    /// Whether it was ever sent: then nobody knows until it is answered.
    in_doubt: bool,
}

/// An open stream.
struct Line {
    node: Node,
    requests: mpsc::UnboundedSender<wire::PipelineRequest>,
    answers: Streaming<wire::PipelineResponse>,
    /// As the last header that had texts said.
    cluster_id: String,
    /// Another node leads: nothing more is sent here.
    moves: bool,
}

impl Carrier {
    fn new(calls: Arc<Calls>) -> Carrier {
        let lanes = Lanes::new(calls.identity());
        Carrier { calls, pending: BTreeMap::new(), next: 1, lanes, closed: false, said: None }
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Order>) {
        let mut failures = 0;
        while self.has_work(&mut queue).await {
            match self.connect().await {
                Some(Ok(line)) => {
                    failures = 0;
                    self.carry(line, &mut queue).await;
                }
                Some(Err(error)) => {
                    self.said = Some(error);
                    failures += 1;
                    sleep(ROUND.wait(failures, &mut fastrand::Rng::new())).await;
                }
                None => {}
            }
            self.give_up_late();
        }
    }

    /// Waits until there is a call to make; false at the end.
    async fn has_work(&mut self, queue: &mut mpsc::Receiver<Order>) -> bool {
        if self.pending.is_empty() && !self.closed {
            match queue.recv().await {
                Some(order) => {
                    self.admit(order);
                }
                None => self.closed = true,
            }
        }
        !self.pending.is_empty()
    }

    /// A stream to the node that is asked first, or to the next that gives one; none if nobody needs it any more.
    async fn connect(&mut self) -> Option<Result<Line, Error>> {
        let calls = Arc::clone(&self.calls);
        let mut opening = std::pin::pin!(open_any(&calls));
        loop {
            let first = self.pending.values().next()?.order.deadline;
            tokio::select! {
                biased;
                line = &mut opening => return Some(line),
                () = sleep_until(first) => self.give_up_late(),
            }
        }
    }

    /// Carries calls until the stream ends or has to.
    async fn carry(&mut self, mut line: Line, queue: &mut mpsc::Receiver<Order>) {
        let now = Instant::now();
        for (seq, pending) in &mut self.pending {
            pending.send(*seq, &line, now);
        }
        loop {
            if self.pending.is_empty() && (line.moves || self.closed) {
                return;
            }
            let room = !line.moves && !self.closed && self.has_room();
            let first = self.pending.values().next().map(Pending::patience_ends);
            let patience = first
                .map_or_else(|| Either::Left(std::future::pending()), |at| Either::Right(sleep_until(at)));
            tokio::select! {
                biased;
                answer = line.answers.message() => match answer {
                    Ok(Some(answer)) => self.answered(answer, &mut line),
                    Ok(None) => return self.ended(&line, "the stream ended"),
                    Err(status) => return self.ended(&line, status.message()),
                },
                order = queue.recv(), if room => self.take(order, queue, &line),
                () = patience => {
                    self.give_up_late();
                    if self.pending.values().next().is_some_and(Pending::is_stuck) {
                        return self.ended(&line, "it does not answer");
                    }
                }
            }
        }
    }

    /// Sends what waits, all of it in one go.
    fn take(&mut self, order: Option<Order>, queue: &mut mpsc::Receiver<Order>, line: &Line) {
        let now = Instant::now();
        let mut next = order;
        self.closed = next.is_none();
        while let Some(order) = next {
            let seq = self.admit(order);
            if let Some(pending) = self.pending.get_mut(&seq) {
                pending.send(seq, line, now);
            }
            next = if self.has_room() { queue.try_recv().ok() } else { None };
        }
    }

    fn has_room(&self) -> bool {
        self.pending.len() < IN_FLIGHT_MAX && self.lanes.has_room()
    }

    fn admit(&mut self, mut order: Order) -> u64 {
        let seq = self.next;
        self.next += 1;
        let ticket = match &mut order.call {
            Call::Heartbeat(_) => None,
            Call::Register(call) => Some(self.lanes.number(&mut call.client, &mut call.seq)),
            Call::Deregister(call) => Some(self.lanes.number(&mut call.client, &mut call.seq)),
            Call::SetStatus(call) => Some(self.lanes.number(&mut call.client, &mut call.seq)),
        };
        self.pending.insert(seq, Pending { order, ticket, sent_at: None, in_doubt: false });
        seq
    }

    fn answered(&mut self, answer: wire::PipelineResponse, line: &mut Line) {
        let Some(reply) = answer.result else { return };
        let header = match &reply {
            Reply::Register(reply) => reply.header.as_ref(),
            Reply::Heartbeat(reply) => reply.header.as_ref(),
            Reply::Deregister(reply) => reply.header.as_ref(),
            Reply::SetStatus(reply) => reply.header.as_ref(),
            Reply::Error(_) => None,
        };
        if let Some(header) = header.filter(|header| !header.cluster_id.is_empty()) {
            line.cluster_id.clone_from(&header.cluster_id);
            self.follow(leader_of(header).as_ref(), line);
        }
        // One that was given up on is answered already.
        let Some(pending) = self.finish(answer.seq) else { return };
        let result = match reply {
            Reply::Error(error) => Err(refusal(error)),
            reply => Ok(Answered { cluster_id: line.cluster_id.clone(), reply }),
        };
        let _ = pending.order.reply.send(result); // a caller that gave up wants nothing
    }

    /// The leader answers without a detour: the next stream goes there.
    fn follow(&self, leader: Option<&Node>, line: &mut Line) {
        let mut nodes = self.calls.nodes();
        nodes.answered(&line.node, leader);
        line.moves = leader.is_some() && nodes.order(Instant::now()).first() != Some(&line.node);
    }

    fn ended(&mut self, line: &Line, why: &str) {
        tracing::debug!(node = %line.node.grpc, why, "a pipeline broke off");
        self.calls.nodes().failed(&line.node, Instant::now());
        self.calls.wire.doubt(&line.node);
        self.said = Some(Error::new(Code::Unavailable, format!("{}: {why}", line.node.grpc)));
    }

    fn give_up_late(&mut self) {
        let now = Instant::now();
        while let Some((seq, first)) = self.pending.first_key_value()
            && first.order.deadline <= now
        {
            let seq = *seq;
            let pending = self.finish(seq).expect("it is the first");
            let why = self.said.as_ref().map_or_else(String::new, |said| format!(": {said}"));
            let error = Error::new(
                if pending.in_doubt { Code::Timeout } else { Code::Unavailable },
                format!("no node has answered within {:?}{why}", self.calls.limit),
            );
            // A heartbeat changes nothing that would have to be known.
            let no_effect = !pending.in_doubt || pending.ticket.is_none();
            let _ = pending.order.reply.send(Err(error.no_effect(Some(no_effect))));
        }
    }

    fn finish(&mut self, seq: u64) -> Option<Pending> {
        let pending = self.pending.remove(&seq)?;
        if let Some(ticket) = pending.ticket {
            self.lanes.done(ticket);
        }
        Some(pending)
    }
}

impl Pending {
    fn send(&mut self, seq: u64, line: &Line, now: Instant) {
        self.in_doubt = true;
        self.sent_at = Some(now);
        let request = wire::PipelineRequest { seq, call: Some(self.order.call.clone()) };
        let _ = line.requests.send(request); // the stream's end is heard of by its answers
    }

    fn patience_ends(&self) -> Instant {
        self.order.deadline.min(self.sent_at.unwrap_or(self.order.deadline) + PATIENCE)
    }

    fn is_stuck(&self) -> bool {
        self.sent_at.is_some_and(|at| at.elapsed() >= PATIENCE)
    }
}

async fn open_any(calls: &Arc<Calls>) -> Result<Line, Error> {
    let order = calls.nodes().order(Instant::now());
    let mut said = None;
    for node in order {
        match open(calls, &node).await {
            Ok(line) => return Ok(line),
            Err(failure) => {
                calls.nodes().failed(&node, Instant::now());
                said = Some(failure.error);
            }
        }
    }
    Err(said.unwrap_or_else(|| Error::new(Code::Unavailable, "no node is known")))
}

async fn open(calls: &Calls, node: &Node) -> Result<Line, Failure> {
    if calls.way(node).await? == Transport::Rest {
        let why = format!("{}: gRPC does not get through, and a pipeline needs it", node.grpc);
        return Err(Failure::unreached(Error::new(Code::Unavailable, why)));
    }
    let (requests, outbound) = mpsc::unbounded_channel();
    let late = |_| {
        Failure::unreached(Error::new(Code::Timeout, format!("{}: no answer in {PATIENCE:?}", node.grpc)))
    };
    let opened = timeout(PATIENCE, calls.wire.grpc().pipeline(node, outbound)).await.map_err(late);
    let answers = opened.flatten().inspect_err(|failure| {
        if !failure.reached {
            calls.wire.doubt(node);
        }
    })?;
    Ok(Line { node: node.clone(), requests, answers, cluster_id: String::new(), moves: false })
}

fn refusal(error: wire::CallError) -> Error {
    let code = Code::named(&error.code).unwrap_or(Code::Internal);
    Error::new(code, error.message).retryable(Some(error.retryable)).no_effect(Some(error.had_no_effect))
}

fn mismatched() -> Error {
    Error::new(Code::Internal, "the answer is not one to the call")
}

fn answer<T>(header: Option<wire::ResponseHeader>, cluster_id: String, value: T) -> Answer<T> {
    let header = header.unwrap_or_default();
    let age = Duration::from_millis(header.age_ms);
    Answer { revision: header.revision, cluster_id, node_id: header.node_id, age, value }
}
