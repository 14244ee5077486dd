//! Many calls over one stream: writes and heartbeats of many tasks share messages, and a node's work.
//!
//! One task owns the stream. It follows the leader, and when a stream breaks it sends what is not answered once more
//! on the next: every write is numbered and takes effect once however often it is sent, and a heartbeat may be
//! repeated. For the same reason a refusal that may pass is not handed on: the call is sent again until its deadline.
//!
//! What a write's error says of effects takes all its sendings together. One that was not answered, or whose answer
//! leaves it open, may have been carried out, or may yet be; no later refusal takes that back.

mod lanes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::registry::v1 as wire;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::Streaming;
use wire::pipeline_request::Call;
use wire::pipeline_response::Result as Reply;

use self::lanes::{Lanes, Ticket};
use crate::calls::{Calls, ROUND, cannot_serve, last_word, leader_of, none_could, share};
use crate::error::Code;
use crate::leader_hint::Node;
use crate::transport::{Failure, Transport};
use crate::{Answer, Error, Instance, Status, WriteOptions};

/// Calls that may wait for the stream; beyond it their callers wait.
const QUEUE: usize = 1_024;

/// Calls on their way at once, heartbeats and writes. The registry takes 4 096 of one stream.
const IN_FLIGHT_MAX: usize = 2_048;

/// Refusals of one call after which the stream moves to another node: what has no room for it now may have some soon,
/// and another may have some already.
const CROWDED_MAX: u32 = 3;

/// A stream of calls, shared by all clones of it. It lives as long as one of them, or a call under way.
#[derive(Clone, Debug)]
pub struct Pipeline {
    calls: Arc<Calls>,
    /// Goes with every write that gives no reason of its own; empty for none.
    why: Arc<str>,
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
    pub(crate) fn begin(calls: Arc<Calls>, why: Arc<str>) -> Pipeline {
        let (orders, queue) = mpsc::channel(QUEUE);
        tokio::spawn(Carrier::new(Arc::clone(&calls)).run(queue));
        Pipeline { calls, why, orders }
    }

    /// As [`crate::Client::put`], with a number of its own: it is sent again within its time, also where `put` may
    /// not. An error leaves the outcome open if one of its sendings was not answered, or answered so. The record is
    /// as it was given, completed by what the registry has set.
    pub async fn register(
        &self,
        instance: &Instance,
        options: WriteOptions,
    ) -> Result<Answer<Instance>, Error> {
        instance.check()?;
        let request = self.calls.register(instance, options, &self.why);
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
        let request = self.calls.deregister(id, reg_rev.unwrap_or(0), &self.why);
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
        let request = self.calls.set_status(id, status, reg_rev.unwrap_or(0), &self.why);
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
    /// By number, which is their order in time.
    pending: BTreeMap<u64, Pending>,
    next: u64,
    lanes: Lanes,
    /// Never later than the next thing to do for a call that is pending on an open stream.
    due: Instant,
    /// No more orders come.
    closed: bool,
    /// What the last attempt to open a stream, or its end, said.
    said: Option<Error>,
}

struct Pending {
    order: Order,
    ticket: Option<Ticket>,
    /// When it was sent on the present stream, which has not answered it yet.
    sent_at: Option<Instant>,
    /// A sending may have taken effect, and that will not be heard any more.
    in_doubt: bool,
    /// Times it was refused.
    refusals: u32,
    /// Not to be sent before.
    again_at: Instant,
    /// The last refusal.
    said: Option<Error>,
}

/// An open stream.
struct Line {
    node: Node,
    requests: mpsc::UnboundedSender<wire::PipelineRequest>,
    answers: Streaming<wire::PipelineResponse>,
    /// As the last header that had texts said.
    cluster_id: String,
    /// Another node leads, or this one cannot serve: nothing more is sent here.
    moves: bool,
}

impl Carrier {
    fn new(calls: Arc<Calls>) -> Carrier {
        let lanes = Lanes::new(calls.identity());
        let due = Instant::now();
        Carrier { calls, pending: BTreeMap::new(), next: 1, lanes, due, closed: false, said: None }
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Order>) {
        let mut failures = 0;
        while self.has_work(&mut queue).await {
            match self.connect(&mut queue).await {
                Some(line) => {
                    failures = 0;
                    self.carry(line, &mut queue).await;
                }
                None => {
                    failures += 1;
                    self.pause(ROUND.wait(failures, &mut fastrand::Rng::new())).await;
                }
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

    /// A stream to the node that is asked first, or to the next that gives one; none if none does, or nobody needs
    /// it any more.
    async fn connect(&mut self, queue: &mut mpsc::Receiver<Order>) -> Option<Line> {
        let calls = Arc::clone(&self.calls);
        let order = calls.nodes().order(Instant::now());
        for node in order {
            let mut opening = std::pin::pin!(open(&calls, &node));
            let opened = loop {
                let Some(first) = self.first_deadline() else { break Err(no_time_left(&node)) };
                let room = !self.closed && self.has_room();
                tokio::select! {
                    biased;
                    opened = &mut opening => break opened,
                    () = sleep_until(first) => self.give_up_late(),
                    order = queue.recv(), if room => match order {
                        Some(order) => {
                            self.admit(order);
                        }
                        None => self.closed = true,
                    },
                }
            };
            match opened {
                Ok(line) => return Some(line),
                Err(failure) => {
                    calls.nodes().failed(&node, Instant::now());
                    if !failure.reached {
                        calls.wire.doubt(&node);
                    }
                    self.said = Some(failure.error);
                }
            }
            if self.pending.is_empty() {
                return None;
            }
        }
        None
    }

    /// Waits, for as long as somebody waits for it.
    async fn pause(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        while let Some(first) = self.first_deadline() {
            sleep_until(first.min(until)).await;
            if Instant::now() >= until {
                return;
            }
            self.give_up_late();
        }
    }

    fn first_deadline(&self) -> Option<Instant> {
        self.pending.values().next().map(|pending| pending.order.deadline)
    }

    /// Carries calls until the stream ends or has to.
    async fn carry(&mut self, mut line: Line, queue: &mut mpsc::Receiver<Order>) {
        self.look_after(&line);
        let mut due = std::pin::pin!(sleep_until(self.due));
        loop {
            if self.is_done_with(&line) {
                return;
            }
            let room = !line.moves && !self.closed && self.has_room();
            if due.deadline() != self.due {
                due.as_mut().reset(self.due);
            }
            tokio::select! {
                biased;
                // First, and seldom due: a stream that is never silent must not hide a call it never answers.
                () = &mut due, if !self.pending.is_empty() => {
                    if self.look_after(&line) {
                        return self.ended(&line, "it does not answer");
                    }
                }
                answer = line.answers.message() => match answer {
                    Ok(Some(answer)) => self.answered(answer, &mut line),
                    Ok(None) => return self.ended(&line, "the stream ended"),
                    Err(status) => return self.ended(&line, status.message()),
                },
                order = queue.recv(), if room => self.take(order, queue, &line),
            }
        }
    }

    /// Whether nothing more is sent or answered on it.
    fn is_done_with(&self, line: &Line) -> bool {
        (self.closed && self.pending.is_empty())
            || (line.moves && self.pending.values().all(|pending| pending.sent_at.is_none()))
    }

    /// Sends what waits for its time, and gives up what is late. True if the stream has kept a call for too long.
    fn look_after(&mut self, line: &Line) -> bool {
        self.give_up_late();
        let (now, patience) = (Instant::now(), share(self.calls.limit));
        let mut due: Option<Instant> = None;
        for (seq, pending) in &mut self.pending {
            if pending.sent_at.is_some_and(|at| at + patience <= now) {
                return true;
            }
            if pending.sent_at.is_none() && pending.again_at <= now && !line.moves {
                pending.send(*seq, line, now);
            }
            let next = pending.due(patience, line);
            due = Some(due.map_or(next, |due| due.min(next)));
        }
        self.due = due.unwrap_or(self.due);
        false
    }

    /// Sends what waits, all of it in one go.
    fn take(&mut self, order: Option<Order>, queue: &mut mpsc::Receiver<Order>, line: &Line) {
        let (now, patience) = (Instant::now(), share(self.calls.limit));
        let mut next = order;
        self.closed = next.is_none();
        while let Some(order) = next {
            let seq = self.admit(order);
            if let Some(pending) = self.pending.get_mut(&seq) {
                if pending.order.deadline > now {
                    pending.send(seq, line, now);
                }
                self.due = self.due.min(pending.due(patience, line));
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
        let pending = Pending {
            order,
            ticket,
            sent_at: None,
            in_doubt: false,
            refusals: 0,
            again_at: Instant::now(),
            said: None,
        };
        self.pending.insert(seq, pending);
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
            self.due = Instant::now(); // what waits may be sent here after all
        }
        if let Some(header) = header {
            self.calls.note(&line.cluster_id, header.revision);
        }
        if let Reply::Error(error) = reply {
            return self.refused(answer.seq, refusal(error), line);
        }
        // One that was given up on is answered already.
        let Some(pending) = self.finish(answer.seq) else { return };
        pending.end(Ok(Answered { cluster_id: line.cluster_id.clone(), reply }));
    }

    /// Has a call sent again that may succeed later, here or elsewhere; hands on what stays.
    fn refused(&mut self, seq: u64, error: Error, line: &mut Line) {
        let now = Instant::now();
        let refusals = self.pending.get(&seq).map_or(0, |pending| pending.refusals + 1);
        let crowded = error.code() == Code::ResourceExhausted && refusals > 0;
        let elsewhere = cannot_serve(&error) || (crowded && refusals.is_multiple_of(CROWDED_MAX));
        if elsewhere && !line.moves {
            let mut nodes = self.calls.nodes();
            nodes.failed(&line.node, now);
            line.moves = nodes.order(now).first() != Some(&line.node);
        }
        let Some(pending) = self.pending.get_mut(&seq) else { return };
        pending.sent_at = None;
        if error.is_retryable() && now < pending.order.deadline {
            pending.in_doubt |= !error.had_no_effect();
            pending.refusals = refusals;
            pending.again_at = now + ROUND.wait(pending.refusals, &mut fastrand::Rng::new());
            pending.said = Some(error);
            self.due = self.due.min(pending.due(share(self.calls.limit), line));
        } else if let Some(pending) = self.finish(seq) {
            pending.end(Err(error));
        }
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
        for pending in self.pending.values_mut().filter(|pending| pending.sent_at.is_some()) {
            pending.sent_at = None;
            pending.in_doubt = true;
            pending.said = None; // the stream's end is the later word
        }
    }

    fn give_up_late(&mut self) {
        let now = Instant::now();
        let late = |(seq, pending): (&u64, &Pending)| (pending.order.deadline <= now).then_some(*seq);
        let late: Vec<u64> = self.pending.iter().filter_map(late).collect();
        for seq in late {
            let pending = self.finish(seq).expect("it is pending");
            let error = pending.late(self.calls.limit, self.said.as_ref());
            pending.end(Err(error));
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
        self.sent_at = Some(now);
        let request = wire::PipelineRequest { seq, call: Some(self.order.call.clone()) };
        let _ = line.requests.send(request); // the stream's end is heard of by its answers
    }

    /// When there is something to do about it while `line` is open.
    fn due(&self, patience: Duration, line: &Line) -> Instant {
        let next = match self.sent_at {
            Some(at) => at + patience,
            None if line.moves => self.order.deadline,
            None => self.again_at,
        };
        next.min(self.order.deadline)
    }

    /// Why it is given up; `said` is the last word of no call in particular.
    fn late(&self, limit: Duration, said: Option<&Error>) -> Error {
        let (code, begin) = match &self.said {
            Some(refusal) if self.sent_at.is_none() => (refusal.code(), none_could(limit)),
            _ if self.is_open() => (Code::Timeout, format!("no node has answered within {limit:?}")),
            _ => (Code::Unavailable, none_could(limit)),
        };
        let why = self.said.as_ref().or(said).map_or_else(String::new, |said| format!(": {said}"));
        Error::new(code, begin + &why).retryable(Some(true)).no_effect(Some(true))
    }

    /// Whether it was sent and nobody knows what became of it.
    fn is_open(&self) -> bool {
        self.in_doubt || self.sent_at.is_some()
    }

    fn end(self, result: Result<Answered, Error>) {
        // A heartbeat changes nothing that would have to be known.
        let (changes_nothing, open) = (self.ticket.is_none(), self.is_open());
        let result = result.map_err(|error| last_word(error, changes_nothing, open));
        let _ = self.order.reply.send(result); // a caller that gave up wants nothing
    }
}

/// Opens a stream within a node's share of a call's time.
async fn open(calls: &Calls, node: &Node) -> Result<Line, Failure> {
    let share = share(calls.limit);
    let late =
        |_| Failure::unreached(Error::new(Code::Timeout, format!("{}: no answer in {share:?}", node.grpc)));
    let (requests, outbound) = mpsc::unbounded_channel();
    let answers = async {
        if calls.way(node).await? == Transport::Rest {
            let why = format!("{}: gRPC does not get through, and a pipeline needs it", node.grpc);
            let error = Error::new(Code::Unavailable, why);
            return Err(Failure { error, reached: true, leader: None });
        }
        calls.wire.grpc().pipeline(node, outbound).await
    };
    let answers = timeout(share, answers).await.map_err(late).flatten()?;
    Ok(Line { node: node.clone(), requests, answers, cluster_id: String::new(), moves: false })
}

fn no_time_left(node: &Node) -> Failure {
    let why = format!("{}: no answer by the end of the call's time", node.grpc);
    Failure::unreached(Error::new(Code::Timeout, why))
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
