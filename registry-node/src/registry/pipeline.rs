//! Many calls of one client on their way at once: writes go to the proposer and heartbeats to the lease keeper
//! in batches, without a task or a timer of their own, and their answers are gathered as they come.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep, sleep_until},
};

use super::{BEATS_MAX, Caller, Error, Header, Registry, refusal, seal};
use crate::{
    catalog::{Command, InstanceId, Outcome, Record, Spec, Status},
    consensus::{self, Reply, Sealed},
    lease::Beat,
    watch::Effect,
};

/// Bytes of a pipeline's writes that are not answered; the greatest take 30 KiB each.
const BYTES_IN_FLIGHT_MAX: usize = 4 << 20;

/// Batches of heartbeats that wait for a leader, or for the outcome of an expiry.
const BEATS_IN_FLIGHT_MAX: usize = 64;

/// Outcomes taken in at once: bounds how long the answers before them wait.
const OUTCOMES_AT_ONCE: usize = 1_024;

/// One client's calls under way.
pub struct Pipeline {
    registry: Registry,
    window: Window,
    replies: mpsc::UnboundedSender<(u64, consensus::Outcome)>,
    /// As many as the window is long, or fewer.
    outcomes: mpsc::UnboundedReceiver<(u64, consensus::Outcome)>,
    taken: Vec<(u64, consensus::Outcome)>,
    /// Writes that certainly, or harmlessly, may be sent once more, and when to do it.
    again: Vec<u64>,
    change: Option<BoxFuture<'static, ()>>,
    /// Never later than the oldest write's deadline; only ever moved when it fires.
    late: Pin<Box<Sleep>>,
    /// Heartbeats that came since the last batch, and whose they are.
    beats: Vec<Beat>,
    parts: Vec<Part>,
    slow: FuturesUnordered<BoxFuture<'static, Renewed>>,
    answers: Vec<Answered>,
}

/// A call's answer.
#[derive(Debug)]
pub struct Answered {
    /// The caller's number of the call.
    pub seq: u64,
    /// How long it took.
    pub took: Duration,
    /// What kind of call it was: `register`, `heartbeat`, `deregister`, `set_status`.
    pub operation: &'static str,
    /// What became of it.
    pub result: Result<Done, Error>,
}

/// What a call did.
#[derive(Debug)]
pub enum Done {
    /// The record as it stands.
    Registered(Arc<Record>),
    /// One a heartbeat, in order; false where the lease is gone.
    Renewed(Vec<bool>),
    /// Whether something was there.
    Deregistered {
        /// The catalog's revision after it.
        revision: u64,
        /// Whether something was there.
        found: bool,
    },
    /// The record as it stands.
    StatusSet {
        /// The catalog's revision after it.
        revision: u64,
        /// The record.
        record: Arc<Record>,
    },
}

/// Heartbeats that had to wait, and whose they were.
type Renewed = (Vec<Part>, Result<Vec<bool>, Error>);

/// The heartbeats of one call.
#[derive(Debug, Clone, Copy)]
struct Part {
    seq: u64,
    beats: usize,
    begun: Instant,
}

/// A write whose outcome is not known.
struct Pending {
    seq: u64,
    operation: &'static str,
    id: InstanceId,
    /// As it is sent again.
    bytes: bytes::Bytes,
    deadline: Instant,
    /// Whether sending it again is harmless even if it took effect.
    repeats: bool,
    /// An attempt that may have taken effect.
    doubt: Option<consensus::Error>,
    /// What the last attempt said, while it waits for the next.
    said: Option<consensus::Error>,
}

impl Pipeline {
    pub(super) fn new(registry: Registry) -> Self {
        let (replies, outcomes) = mpsc::unbounded_channel();
        Self {
            registry,
            window: Window::default(),
            replies,
            outcomes,
            taken: Vec::new(),
            again: Vec::new(),
            change: None,
            late: Box::pin(sleep_until(Instant::now())),
            beats: Vec::new(),
            parts: Vec::new(),
            slow: FuturesUnordered::new(),
            answers: Vec::new(),
        }
    }

    /// Whether another call may begin: else its caller waits. What is answered and not taken yet counts as well.
    pub fn has_room(&self) -> bool {
        let calls = self.window.calls.len() + self.parts.len() + self.answers.len();
        calls < self.registry.limits.calls_in_flight_max
            && self.window.bytes < BYTES_IN_FLIGHT_MAX
            && self.slow.len() < BEATS_IN_FLIGHT_MAX
            && self.beats.len() < BEATS_MAX
    }

    /// Whether everything is answered.
    pub fn is_idle(&self) -> bool {
        self.window.calls.is_empty()
            && self.slow.is_empty()
            && self.parts.is_empty()
            && self.answers.is_empty()
    }

    /// As [`Registry::register`].
    pub fn register(&mut self, seq: u64, spec: Spec, expected: Option<u64>, caller: Caller) {
        let (id, command) = (spec.id.clone(), Command::Register { spec: Arc::new(spec), expected });
        self.write(seq, "register", id, command, caller);
    }

    /// As [`Registry::deregister`].
    pub fn deregister(&mut self, seq: u64, id: InstanceId, reg_rev: Option<u64>, caller: Caller) {
        self.write(seq, "deregister", id.clone(), Command::Deregister { id, reg_rev }, caller);
    }

    /// As [`Registry::set_status`].
    pub fn set_status(
        &mut self,
        seq: u64,
        id: InstanceId,
        status: Status,
        reg_rev: Option<u64>,
        caller: Caller,
    ) {
        self.write(seq, "set_status", id.clone(), Command::SetStatus { id, status, reg_rev }, caller);
    }

    /// As [`Registry::heartbeat`]. What comes before the next [`Pipeline::next`] is renewed together.
    pub fn heartbeat(&mut self, seq: u64, beats: impl ExactSizeIterator<Item = Result<Beat, Error>>) {
        let count = beats.len();
        if count > BEATS_MAX {
            return self.refuse(seq, "heartbeat", super::too_many_beats(count));
        }
        let before = self.beats.len();
        for beat in beats {
            match beat {
                Ok(beat) => self.beats.push(beat),
                Err(error) => {
                    self.beats.truncate(before);
                    return self.refuse(seq, "heartbeat", error);
                }
            }
        }
        self.parts.push(Part { seq, beats: count, begun: Instant::now() });
    }

    /// Answers a call that cannot begin.
    pub fn refuse(&mut self, seq: u64, operation: &'static str, error: Error) {
        self.answers.push(Answered { seq, took: Duration::ZERO, operation, result: Err(error) });
    }

    /// The next answers, in any order, at least one: for ever pending if nothing is under way. Cancel-safe.
    pub async fn next(&mut self) -> Vec<Answered> {
        loop {
            self.renew();
            if !self.answers.is_empty() {
                return std::mem::take(&mut self.answers);
            }
            tokio::select! {
                biased;
                _ = self.outcomes.recv_many(&mut self.taken, OUTCOMES_AT_ONCE) => self.settle(),
                Some((parts, result)) = self.slow.next(), if !self.slow.is_empty() => self.renewed(&parts, result),
                () = pending_or(&mut self.change), if self.change.is_some() => self.send_again(),
                () = self.late.as_mut(), if !self.window.calls.is_empty() => self.give_up_late(),
            }
        }
    }

    /// What a header says now; its revision is the node's own.
    pub fn header(&self) -> Header {
        self.registry.header()
    }

    // ---- writes ----

    fn write(&mut self, seq: u64, operation: &'static str, id: InstanceId, command: Command, caller: Caller) {
        let deadline = Instant::now() + self.registry.limits.call_timeout;
        let repeats = caller.repeats;
        let sealed = seal(command, caller);
        let bytes = sealed.bytes.clone();
        let pending = Pending { seq, operation, id, bytes, deadline, repeats, doubt: None, said: None };
        let number = self.window.push(pending);
        self.submit(number, sealed, deadline);
    }

    fn submit(&self, number: u64, sealed: Sealed, deadline: Instant) {
        self.registry.consensus.submit(sealed, deadline, Reply::Many(number, self.replies.clone()));
    }

    /// Takes in what became of writes: an answer, or a reason to send them once more.
    fn settle(&mut self) {
        let now = Instant::now();
        let mut taken = std::mem::take(&mut self.taken);
        for (number, outcome) in taken.drain(..) {
            // One that was given up on is answered already.
            let Some(pending) = self.window.get(number) else { continue };
            match outcome {
                Err(error @ consensus::Error::NoLeader) if now < pending.deadline => {
                    pending.said = Some(error);
                    self.again.push(number);
                }
                Err(error @ consensus::Error::Unknown { .. })
                    if pending.repeats && now < pending.deadline =>
                {
                    pending.doubt = Some(error);
                    self.again.push(number);
                }
                outcome => {
                    let pending = self.window.take(number).expect("it was there");
                    self.answers.push(pending.answer(outcome, now, self.registry.limits.call_timeout));
                }
            }
        }
        self.taken = taken;
        if !self.again.is_empty() && self.change.is_none() {
            let consensus = self.registry.consensus.clone();
            let until = now + self.registry.limits.call_timeout;
            self.change = Some(Box::pin(async move { consensus.await_change(until).await }));
        }
    }

    fn send_again(&mut self) {
        self.change = None;
        for number in std::mem::take(&mut self.again) {
            let Some(pending) = self.window.get(number) else { continue };
            pending.said = None;
            let (sealed, deadline) = (Sealed::again(&pending.bytes), pending.deadline);
            self.submit(number, sealed, deadline);
        }
    }

    fn give_up_late(&mut self) {
        let now = Instant::now();
        let late = || consensus::Error::Unknown { why: "no quorum has confirmed it in time".into() };
        while let Some(mut pending) = self.window.pop_late(now) {
            let said = pending.said.take().unwrap_or_else(late);
            self.answers.push(pending.answer(Err(said), now, self.registry.limits.call_timeout));
        }
        if let Some(next) = self.window.deadline() {
            self.late.as_mut().reset(next);
        }
    }

    // ---- heartbeats ----

    /// Renews what has gathered, at once if this node leads.
    fn renew(&mut self) {
        if self.parts.is_empty() {
            return;
        }
        match self.registry.keeper.renew_now(&self.beats) {
            Some(renewed) => {
                let parts = std::mem::take(&mut self.parts);
                self.beats.clear();
                self.renewed(&parts, Ok(renewed));
                self.parts = parts;
                self.parts.clear();
            }
            None => {
                let (parts, beats) = (std::mem::take(&mut self.parts), std::mem::take(&mut self.beats));
                let (keeper, limit) = (self.registry.keeper.clone(), self.registry.limits.call_timeout);
                self.slow.push(Box::pin(async move {
                    let renewed = keeper.renew(&beats, Instant::now() + limit).await;
                    (parts, renewed.map_err(Error::from))
                }));
            }
        }
    }

    fn renewed(&mut self, parts: &[Part], result: Result<Vec<bool>, Error>) {
        let now = Instant::now();
        let mut first = 0;
        for part in parts {
            let result = match &result {
                Ok(renewed) => Ok(Done::Renewed(renewed[first..first + part.beats].to_vec())),
                Err(error) => Err(error.clone()),
            };
            first += part.beats;
            let took = now.saturating_duration_since(part.begun);
            self.answers.push(Answered { seq: part.seq, took, operation: "heartbeat", result });
        }
    }
}

impl Pending {
    fn answer(self, outcome: consensus::Outcome, now: Instant, limit: Duration) -> Answered {
        let result = match outcome {
            Ok(effect) => done(&self.id, effect),
            // However the repetition failed, the first may still have happened.
            Err(error) => Err(self.doubt.unwrap_or(error).into()),
        };
        let took = (now + limit).saturating_duration_since(self.deadline);
        Answered { seq: self.seq, took, operation: self.operation, result }
    }
}

fn done(id: &InstanceId, effect: Effect) -> Result<Done, Error> {
    let revision = effect.revision;
    match effect.outcome {
        Outcome::Registered(record) => Ok(Done::Registered(record)),
        Outcome::Deregistered { found } => Ok(Done::Deregistered { revision, found }),
        Outcome::StatusSet(record) => Ok(Done::StatusSet { revision, record }),
        other => Err(refusal(id, other)),
    }
}

/// Waits for what is there. Only polled if something is.
async fn pending_or(future: &mut Option<BoxFuture<'static, ()>>) {
    if let Some(future) = future {
        future.await;
    }
}

/// Writes by number, from the oldest that is not answered to the newest. Their deadlines only ever rise.
#[derive(Default)]
struct Window {
    /// The number of the first.
    first: u64,
    /// None where the answer is given.
    calls: VecDeque<Option<Pending>>,
    /// Of those that are not answered.
    bytes: usize,
}

impl Window {
    fn push(&mut self, pending: Pending) -> u64 {
        self.bytes += pending.bytes.len();
        self.calls.push_back(Some(pending));
        self.first + self.calls.len() as u64 - 1
    }

    fn get(&mut self, number: u64) -> Option<&mut Pending> {
        let place = number.checked_sub(self.first)?;
        self.calls.get_mut(usize::try_from(place).ok()?)?.as_mut()
    }

    fn take(&mut self, number: u64) -> Option<Pending> {
        let place = number.checked_sub(self.first)?;
        let pending = self.calls.get_mut(usize::try_from(place).ok()?)?.take()?;
        self.bytes -= pending.bytes.len();
        while matches!(self.calls.front(), Some(None)) {
            self.calls.pop_front();
            self.first += 1;
        }
        Some(pending)
    }

    /// The oldest, if its time is over.
    fn pop_late(&mut self, now: Instant) -> Option<Pending> {
        if self.deadline()? > now {
            return None;
        }
        self.take(self.first)
    }

    fn deadline(&self) -> Option<Instant> {
        self.calls.front()?.as_ref().map(|pending| pending.deadline)
    }
}

#[cfg(test)]
mod tests {
    use crate::{consensus::SoleMember, lease::Keeper};

    use super::*;

    /// Calls that wait for nobody are bounded as well: what is answered and not taken has its place.
    #[tokio::test]
    async fn answers_that_nobody_takes_fill_a_pipeline() {
        let SoleMember { config, consensus, hub, metrics, dir: _dir, .. } =
            SoleMember::lead(&["--calls-in-flight-max=8"]).await;
        let (keeper, _queue) = Keeper::new(consensus.clone(), hub.clone(), metrics);
        let limits = Arc::new(config.limits);
        let mut calls = Registry::new(consensus, hub, keeper, limits).pipeline();
        let begin: [fn(&mut Pipeline, u64); 2] = [
            |calls, seq| calls.refuse(seq, "pipeline", Error::Unsupported { what: "this".into() }),
            |calls, seq| calls.heartbeat(seq, std::iter::empty()),
        ];
        for begin in begin {
            for seq in 0..8 {
                assert!(calls.has_room());
                begin(&mut calls, seq);
            }
            assert!(!calls.has_room());
            assert_eq!(calls.next().await.len(), 8);
            assert!(calls.has_room() && calls.is_idle());
        }
    }
}
