//! Keeps one instance registered, whatever happens to the registry, until it is told to stop. When to do what
//! is decided by the lease; this is the task that does it.
//!
//! Nothing is ever given up: a beat that fails is repeated, a lease that is lost is registered again, with a
//! growing, jittered wait. Shutting down is bounded in time and never waits for a registry that is away.

mod lease;

use std::sync::Arc;
use std::time::Duration;

use proto::registry::v1 as wire;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use self::lease::{Lease, REGISTER_RETRY, Step};
use crate::calls::Calls;
use crate::error::Code;
use crate::transport::call::Call;
use crate::{Answer, Error, Instance, Status, WriteOptions, client};

/// The least time between announcing a shutdown and deregistering: balancers need it to stop sending.
pub const DRAIN_MIN: Duration = Duration::from_millis(500);

/// The longest a shutdown tries to announce itself.
const ANNOUNCE_MAX: Duration = Duration::from_secs(2);

/// The longest a shutdown tries to deregister; what is not deregistered then expires.
const DEREGISTER_MAX: Duration = Duration::from_secs(3);

/// The longest one attempt to register takes. A shutdown waits for an attempt under way, so that it knows which
/// incarnation to take out.
const REGISTER_MAX: Duration = Duration::from_secs(3);

/// How often a write that came too late for its number is sent at once under a new one. The newest number is
/// refused only if dozens overtake it on the way, so the second is nearly always enough.
const NUMBERS_MAX: usize = 3;

/// How a registration is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationState {
    /// The registry has acknowledged the lease, and it has not run out since.
    Registered {
        /// The incarnation.
        reg_rev: u64,
    },
    /// The lease is lost, or unacknowledged for longer than it lives. Trying again, for ever.
    Lost {
        /// What the last attempt said.
        reason: String,
    },
    /// Shutting down: announced as draining, still beating.
    Draining,
    /// Deregistered or abandoned; it does nothing any more.
    Stopped,
}

/// How to shut down.
#[derive(Clone, Copy, Debug)]
pub struct ShutdownOptions {
    /// From announcing `draining` to deregistering, at least [`DRAIN_MIN`].
    pub drain: Duration,
}

impl Default for ShutdownOptions {
    fn default() -> ShutdownOptions {
        ShutdownOptions { drain: DRAIN_MIN }
    }
}

/// An instance that stays registered. Dropping it is [`Registration::abandon`].
#[derive(Debug)]
#[must_use = "dropping a registration lets it expire"]
pub struct Registration {
    commands: mpsc::Sender<Command>,
    instance: watch::Receiver<Arc<Instance>>,
    state: watch::Receiver<RegistrationState>,
    end: watch::Receiver<Option<Result<(), Error>>>,
}

#[derive(Debug)]
enum Command {
    SetStatus(Status, oneshot::Sender<Result<(), Error>>),
    Shutdown(ShutdownOptions),
}

impl Registration {
    /// The record as last acknowledged.
    pub fn instance(&self) -> Arc<Instance> {
        Arc::clone(&self.instance.borrow())
    }

    /// The incarnation as last acknowledged: the fencing token.
    pub fn reg_rev(&self) -> u64 {
        self.instance.borrow().reg_rev
    }

    /// How the registration is doing, as it changes.
    pub fn state(&self) -> watch::Receiver<RegistrationState> {
        self.state.clone()
    }

    /// Marks the instance up, draining or in maintenance, and keeps it so over re-registrations. On an error
    /// nothing is kept.
    pub async fn set_status(&self, status: Status) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        let stopped = || Error::invalid("the registration is shut down");
        self.commands.send(Command::SetStatus(status, answer)).await.map_err(|_| stopped())?;
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Announces draining, waits, deregisters. Beats go on meanwhile. Bounded in time: the drain time plus a
    /// few seconds, also when the registry is away. It goes on if the caller stops waiting; every call after
    /// the first waits for the same end and returns the same result. An error means that the deregistration is
    /// not confirmed: the lease will expire by itself.
    pub async fn shutdown(&self, options: ShutdownOptions) -> Result<(), Error> {
        let _ = self.commands.send(Command::Shutdown(options)).await;
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(Ok(())),
            Err(_) => {
                Err(Error::new(Code::Unavailable, "the runtime went away before the shutdown was done"))
            }
        }
    }

    /// Stops beating at once and tells nobody: the lease runs out by itself.
    pub fn abandon(self) {}

    /// Registers and begins to keep it so.
    pub(crate) async fn begin(
        calls: Arc<Calls>,
        instance: Instance,
        why: &str,
    ) -> Result<Registration, Error> {
        let mut rng = fastrand::Rng::new();
        let mut failures = 0;
        loop {
            let sent_at = Instant::now();
            match register(&calls, &instance, why).await {
                Ok(record) => return Ok(Registration::keep(calls, record, sent_at, rng)),
                Err(error) if error.is_retryable() => {
                    failures += 1;
                    complain(failures, &instance.id, "not registered yet", &error);
                    sleep(REGISTER_RETRY.wait(failures, &mut rng)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn keep(calls: Arc<Calls>, record: Instance, sent_at: Instant, mut rng: fastrand::Rng) -> Registration {
        let lease = Lease::registered(record.ttl, record.reg_rev, sent_at, &mut rng);
        info!(id = %record.id, reg_rev = record.reg_rev, "registered");
        let state = watch::Sender::new(RegistrationState::Registered { reg_rev: record.reg_rev });
        let (shown, end) = (watch::Sender::new(Arc::new(record.clone())), watch::Sender::new(None));
        let (commands, inbox) = mpsc::channel(8);
        let registration = Registration {
            commands,
            instance: shown.subscribe(),
            state: state.subscribe(),
            end: end.subscribe(),
        };
        let keeper = Keeper { calls, record, lease, in_doubt: false, rng, failures: 0, state, shown, end };
        keeper.show(RegistrationState::Registered { reg_rev: registration.reg_rev() });
        tokio::spawn(keeper.run(inbox));
        registration
    }
}

/// The task behind a registration.
struct Keeper {
    calls: Arc<Calls>,
    /// As last acknowledged, and as it is registered again.
    record: Instance,
    lease: Lease,
    /// The lease is lost, and an attempt to register since then may have taken effect.
    in_doubt: bool,
    rng: fastrand::Rng,
    /// In a row, of anything.
    failures: u32,
    state: watch::Sender<RegistrationState>,
    shown: watch::Sender<Arc<Instance>>,
    end: watch::Sender<Option<Result<(), Error>>>,
}

/// What the task reacts to.
enum Event {
    /// None: the registration was dropped.
    Command(Option<Command>),
    Beaten(Instant, Result<bool, Error>),
    RegisterDue,
}

impl Keeper {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        loop {
            match self.next(&mut inbox).await {
                Event::Command(Some(Command::SetStatus(status, answer))) => {
                    let result = self.set_status(status, self.calls.limit).await;
                    let _ = answer.send(result);
                }
                Event::Command(Some(Command::Shutdown(options))) => {
                    drop(inbox);
                    let result = self.shut_down(options).await;
                    return self.stop(result);
                }
                Event::Command(None) => return self.stop(Ok(())),
                Event::Beaten(sent_at, result) => self.beaten(sent_at, result),
                Event::RegisterDue => self.register_again().await,
            }
        }
    }

    /// The next thing to react to. A command interrupts a beat, which is harmless, but not a registration,
    /// whose outcome must be known.
    async fn next(&self, inbox: &mut mpsc::Receiver<Command>) -> Event {
        let (at, step) = self.lease.due();
        let due = async {
            sleep_until(at).await;
            match step {
                Step::Beat { reg_rev } => self.beat(reg_rev).await,
                Step::Register => Event::RegisterDue,
            }
        };
        tokio::select! {
            biased;
            command = inbox.recv() => Event::Command(command),
            event = due => event,
        }
    }

    async fn beat(&self, reg_rev: u64) -> Event {
        let sent_at = Instant::now();
        let answer = client::beat(&self.calls, &self.record.id, reg_rev, self.lease.beat_limit()).await;
        Event::Beaten(sent_at, answer.map(|answer| answer.value))
    }

    fn beaten(&mut self, sent_at: Instant, result: Result<bool, Error>) {
        let now = Instant::now();
        match result {
            Ok(true) => {
                self.failures = 0;
                self.lease.renewed(sent_at, &mut self.rng);
                self.show(RegistrationState::Registered { reg_rev: self.record.reg_rev });
            }
            Err(error) if error.is_retryable() => {
                self.lease.failed(now, &mut self.rng);
                self.failed("heartbeat not acknowledged", &error);
            }
            Ok(false) => self.lost(now, "the lease was lost"),
            Err(error) => self.lost(now, &error.to_string()),
        }
    }

    fn lost(&mut self, now: Instant, reason: &str) {
        warn!(id = %self.record.id, reg_rev = self.record.reg_rev, reason, "registration lost, registering again");
        self.lease.lost(now, &mut self.rng);
        self.show(RegistrationState::Lost { reason: reason.to_owned() });
    }

    async fn register_again(&mut self) {
        let sent_at = Instant::now();
        match register(&self.calls, &self.record, "lease lost").await {
            Ok(record) => {
                info!(id = %record.id, reg_rev = record.reg_rev, "registered again");
                (self.failures, self.in_doubt) = (0, false);
                self.lease = Lease::registered(record.ttl, record.reg_rev, sent_at, &mut self.rng);
                self.show(RegistrationState::Registered { reg_rev: record.reg_rev });
                self.keep(record);
            }
            Err(error) => {
                self.in_doubt |= !error.had_no_effect();
                self.lease.failed(Instant::now(), &mut self.rng);
                self.failed("not registered again yet", &error);
            }
        }
    }

    fn failed(&mut self, what: &str, error: &Error) {
        self.failures += 1;
        complain(self.failures, &self.record.id, what, error);
        if !self.lease.is_held(Instant::now()) {
            self.show(RegistrationState::Lost { reason: error.to_string() });
        }
    }

    async fn set_status(&mut self, status: Status, limit: Duration) -> Result<(), Error> {
        let request = |client, seq| {
            let Instance { id, reg_rev, .. } = &self.record;
            wire::SetStatusRequest {
                client,
                seq,
                ..self.calls.set_status(id, status, *reg_rev, status.as_str())
            }
        };
        let answer = write(&self.calls, limit, request).await?;
        self.keep(answer.instance(|reply| reply.instance)?.value);
        Ok(())
    }

    async fn shut_down(&mut self, options: ShutdownOptions) -> Result<(), Error> {
        self.show(RegistrationState::Draining);
        if self.lease.reg_rev().is_none() {
            if !self.in_doubt {
                info!(id = %self.record.id, "shut down while not registered");
                return Ok(());
            }
            // Nobody told us which incarnation that attempt made, if it made one: whichever has the id.
            self.record.reg_rev = 0;
        }
        if let Err(error) = self.set_status(Status::Draining, ANNOUNCE_MAX).await {
            warn!(id = %self.record.id, %error, "draining not announced");
        }
        self.drain_until(Instant::now() + options.drain.max(DRAIN_MIN)).await;
        self.deregister().await
    }

    /// Waits, and beats meanwhile, as long as the lease is there.
    async fn drain_until(&mut self, end: Instant) {
        loop {
            let (at, step) = self.lease.due();
            let Step::Beat { reg_rev } = step else { return sleep_until(end).await };
            let beaten = tokio::select! {
                () = sleep_until(end) => return,
                event = async { sleep_until(at).await; self.beat(reg_rev).await } => event,
            };
            let Event::Beaten(sent_at, result) = beaten else { return };
            let now = Instant::now();
            match result {
                Ok(true) => self.lease.renewed(sent_at, &mut self.rng),
                Ok(false) => self.lease.lost(now, &mut self.rng),
                Err(_) => self.lease.failed(now, &mut self.rng),
            }
        }
    }

    async fn deregister(&self) -> Result<(), Error> {
        let request = |client, seq| {
            let Instance { id, reg_rev, .. } = &self.record;
            wire::DeregisterRequest { client, seq, ..self.calls.deregister(id, *reg_rev, "shut down") }
        };
        match write(&self.calls, DEREGISTER_MAX, request).await {
            Ok(_) => Ok(()),
            // It is gone, or a successor has the id: either way this incarnation is out.
            Err(error) if matches!(error.code(), Code::NotFound | Code::Superseded | Code::LeaseLost) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn stop(self, result: Result<(), Error>) {
        match &result {
            Ok(()) => info!(id = %self.record.id, "registration ended"),
            Err(error) => warn!(id = %self.record.id, %error, "not deregistered, the lease will expire"),
        }
        self.show(RegistrationState::Stopped);
        let _ =
            self.calls.metrics.registrar_state.remove_label_values(&[&self.record.id, &self.record.service]);
        self.end.send_replace(Some(result));
    }

    fn keep(&mut self, record: Instance) {
        self.record = record;
        self.shown.send_replace(Arc::new(self.record.clone()));
    }

    fn show(&self, state: RegistrationState) {
        let registered = matches!(state, RegistrationState::Registered { .. } | RegistrationState::Draining);
        let labels = [self.record.id.as_str(), self.record.service.as_str()];
        self.calls.metrics.registrar_state.with_label_values(&labels).set(i64::from(registered));
        self.state.send_if_modified(|shown| {
            let changed = *shown != state;
            *shown = state;
            changed
        });
    }
}

/// One attempt, harmless to repeat.
async fn register(calls: &Calls, instance: &Instance, why: &str) -> Result<Instance, Error> {
    let request = |client, seq| {
        let request = calls.register(instance, WriteOptions::default(), why);
        wire::RegisterRequest { client, seq, ..request }
    };
    let answer = write(calls, REGISTER_MAX.min(calls.limit), request).await.map_err(|error| {
        // The next attempt has a number of its own.
        let stale = error.code() == Code::StaleSequence;
        error.retryable(stale.then_some(true))
    })?;
    Ok(answer.instance(|reply| reply.instance)?.value)
}

/// Sends a write under a number of its own, and again under a new one if that came too late. What became of the
/// first is unknown then; every write here is harmless to repeat.
async fn write<C: Call>(
    calls: &Calls,
    limit: Duration,
    request: impl Fn(String, u64) -> C,
) -> Result<Answer<C::Reply>, Error> {
    let deadline = Instant::now() + limit;
    let mut numbers = 0;
    loop {
        let (client, seq) = calls.ticket();
        let left = deadline.saturating_duration_since(Instant::now());
        numbers += 1;
        match calls.call_within(request(client, seq), left).await {
            Err(error) if error.code() == Code::StaleSequence && numbers < NUMBERS_MAX => {
                debug!(%error, seq, "sent again under a new number");
            }
            result => return result,
        }
    }
}

/// Failures come in long rows: the 1st, 2nd, 4th, 8th .. are worth a line.
fn complain(failures: u32, id: &str, what: &str, error: &Error) {
    if failures.is_power_of_two() {
        warn!(id, failures, %error, "{what}");
    } else {
        debug!(id, failures, %error, "{what}");
    }
}
