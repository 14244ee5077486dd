//! Those who use the registry: they write and read, keep instances alive, follow the changes; and tell the judge
//! what they were told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use registry_node::{
    catalog::{InstanceId, Origin, ServiceName, Spec, Status},
    registry::{Caller, Consistency, Error, Update},
};
use tokio::time::{sleep, timeout};

use crate::{
    check::{Claim, Judge, Of, TTL},
    cluster::{Cluster, Life},
    run::Plant,
    trace::Trace,
};

/// A client gives up a call after this, and never learns its outcome.
const PATIENCE: Duration = Duration::from_secs(6);
/// ... and one that can ask again after this.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// Names of instances that several clients write to.
const SHARED: u64 = 3;

/// One client.
pub struct Client {
    pub number: u64,
    pub cluster: Cluster,
    pub trace: Trace,
    pub dice: fastrand::Rng,
    pub stop: Arc<AtomicBool>,
    seq: u64,
    patience: Duration,
    /// The newest revision it was told of.
    seen: u64,
}

enum Write {
    Register { id: InstanceId, expected: Option<u64> },
    Deregister { id: InstanceId, reg_rev: Option<u64> },
    SetStatus { id: InstanceId, status: Status },
}

fn id(text: String) -> InstanceId {
    InstanceId::new(text).expect("a valid id")
}

fn name(service: &str) -> ServiceName {
    ServiceName::new(service).expect("a valid name")
}

fn spec(id: &InstanceId, service: &str) -> Spec {
    let mut spec = Spec::new(id.clone(), name(service), "http://u");
    spec.ttl_ms = TTL.as_millis() as u32;
    spec
}

impl Client {
    pub fn new(
        number: u64,
        cluster: Cluster,
        trace: Trace,
        dice: fastrand::Rng,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Self { number, cluster, trace, dice, stop, seq: 0, patience: PATIENCE, seen: 0 }
    }

    fn judge(&self) -> Judge {
        self.cluster.judge().clone()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    async fn think(&mut self, most: Duration) {
        let micros = self.dice.u64(1_000..=most.as_micros() as u64);
        sleep(Duration::from_micros(micros)).await;
    }

    fn some_node(&mut self) -> Option<Life> {
        let lives = self.cluster.lives();
        (!lives.is_empty()).then(|| lives[self.dice.usize(..lives.len())].clone())
    }

    /// Writes and reads until it is told to stop.
    pub async fn write_and_read(mut self) {
        while !self.stopped() {
            self.think(Duration::from_millis(60)).await;
            let Some(node) = self.some_node() else { continue };
            match self.dice.u32(..10) {
                0..=3 => drop(self.write_something(&node).await),
                4..=5 => drop(self.list(&node, Consistency::Linearizable).await),
                6..=7 => self.get(&node).await,
                8 => drop(self.list(&node, Consistency::Stale).await),
                _ => drop(self.write_something(&node).await),
            }
        }
    }

    /// Registers an instance through `node` and leaves it; says when it is there.
    pub async fn abandon(mut self, node: Life, registered: Arc<AtomicBool>) {
        let own = id(format!("left-{}", self.number));
        if self.write(&node, Write::Register { id: own, expected: None }).await {
            registered.store(true, Ordering::Relaxed);
        }
    }

    /// One write of any kind; whether it was acknowledged.
    pub async fn write_something(&mut self, node: &Life) -> bool {
        let id = id(format!("shared-{}", self.dice.u64(..SHARED)));
        let registered = self.judge().registered();
        let current = registered.iter().find(|record| record.spec.id == id).map(|record| record.mod_rev);
        let write = match self.dice.u32(..8) {
            0..=1 => Write::Register { id, expected: None },
            2 => Write::Register { id, expected: Some(0) },
            6..=7 => Write::Register { id, expected: current },
            3 => Write::Deregister { id, reg_rev: None },
            4 => Write::SetStatus { id, status: Status::Draining },
            _ => Write::SetStatus { id, status: Status::Up },
        };
        self.write(node, write).await
    }

    /// One write; whether it was acknowledged.
    async fn write(&mut self, node: &Life, write: Write) -> bool {
        self.seq += 1;
        let (judge, floor, seq) = (self.judge(), self.judge().floor(), self.seq);
        let client = format!("client-{}", self.number);
        let origin = Some(Origin { client: client.as_str().into(), seq });
        let caller = Caller { by: client.clone(), why: String::new(), origin, repeats: self.dice.bool() };
        let registry = node.registry.clone();
        judge.count(|counts| counts.writes += 1);
        let service = if self.dice.bool() { "a" } else { "b" };
        let outcome = match write {
            Write::Register { id, expected } => {
                let called = self.trace.now();
                let call = registry.register(spec(&id, service), expected, caller);
                let answer = timeout(self.patience, node.call(call)).await.ok().flatten();
                answer.map(|answer| {
                    answer.map(|answer| {
                        let revision = answer.value.mod_rev;
                        judge.answered(floor, true, Claim::Write { revision, client: client.clone(), seq });
                        // Granted when it was applied, which is later than it was asked for.
                        judge.granted(&id, answer.value.reg_rev, called);
                        revision
                    })
                })
            }
            Write::Deregister { id, reg_rev } => {
                let call = registry.deregister(id, reg_rev, caller);
                let answer = timeout(self.patience, node.call(call)).await.ok().flatten();
                answer.map(|answer| {
                    answer.map(|answer| {
                        let revision = answer.header.revision;
                        let client = answer.value.then_some(client.clone());
                        judge.answered(floor, true, Claim::Took { after: floor, revision, client, seq });
                        revision
                    })
                })
            }
            Write::SetStatus { id, status } => {
                let call = registry.set_status(id, status, None, caller);
                let answer = timeout(self.patience, node.call(call)).await.ok().flatten();
                answer.map(|answer| {
                    answer.map(|answer| {
                        let revision = answer.header.revision;
                        judge.answered(
                            floor,
                            true,
                            Claim::Took { after: floor, revision, client: None, seq },
                        );
                        revision
                    })
                })
            }
        };
        self.trace.note(&[8, self.number, node.id, seq], result(&outcome));
        match outcome {
            Some(Ok(revision)) => {
                self.seen = self.seen.max(revision);
                true
            }
            Some(Err(error)) if error.had_no_effect() => {
                judge.had_no_effect(&client, seq);
                false
            }
            _ => {
                judge.count(|counts| counts.unknown += 1);
                false
            }
        }
    }

    /// Everything that is registered; whether there was an answer.
    pub async fn list(&mut self, node: &Life, consistency: Consistency) -> bool {
        let (judge, floor) = (self.judge(), self.judge().floor());
        let at_least = if self.dice.bool() { self.seen } else { 0 };
        let asked = match self.cluster.plant() {
            Some(Plant::UnconfirmedReads) => Consistency::Stale,
            _ => consistency,
        };
        let registry = node.registry.clone();
        let call = registry.list(None, asked, at_least);
        let outcome = timeout(self.patience, node.call(call)).await.ok().flatten();
        self.trace.note(&[9, self.number, node.id], result(&outcome));
        let Some(Ok(answer)) = outcome else { return false };
        let revision = answer.header.revision;
        if revision < at_least {
            judge.violated(format!("S4: revision {revision} was answered, and {at_least} was asked for"));
        }
        judge.count(|counts| counts.reads += 1);
        let claim = Claim::Records { revision, of: Of::All, records: answer.value };
        judge.answered(floor, consistency == Consistency::Linearizable, claim);
        self.seen = self.seen.max(revision);
        true
    }

    async fn get(&mut self, node: &Life) {
        let (judge, floor) = (self.judge(), self.judge().floor());
        let id = id(format!("shared-{}", self.dice.u64(..SHARED)));
        let registry = node.registry.clone();
        let call = registry.get(id.clone(), Consistency::Linearizable, 0);
        let outcome = timeout(self.patience, node.call(call)).await.ok().flatten();
        self.trace.note(&[10, self.number, node.id], result(&outcome));
        let Some(Ok(answer)) = outcome else { return };
        judge.count(|counts| counts.reads += 1);
        let records = answer.value.into_iter().collect();
        judge.answered(
            floor,
            true,
            Claim::Records { revision: answer.header.revision, of: Of::Instance(id), records },
        );
    }

    /// Keeps an instance of its own alive, lets it die, takes it out, begins again.
    pub async fn keep_alive(mut self) {
        let own = id(format!("own-{}", self.number));
        while !self.stopped() {
            self.think(Duration::from_millis(200)).await;
            let Some(mut node) = self.some_node() else { continue };
            self.write(&node, Write::Register { id: own.clone(), expected: None }).await;
            let registered = self.judge().registered();
            let Some(reg_rev) = registered.iter().find(|r| r.spec.id == own).map(|r| r.reg_rev) else {
                continue;
            };
            for _ in 0..self.dice.u32(1..8) {
                self.think(TTL / 3).await;
                if self.stopped() {
                    return;
                }
                match self.beat(&node, &own, reg_rev).await {
                    Some(true) => {}
                    Some(false) => break,
                    None => match self.some_node() {
                        Some(other) => node = other,
                        None => continue,
                    },
                }
            }
            match self.dice.u32(..3) {
                // It dies: somebody else has to notice.
                0 => sleep(TTL * 2).await,
                1 => drop(
                    self.write(&node, Write::Deregister { id: own.clone(), reg_rev: Some(reg_rev) }).await,
                ),
                _ => {}
            }
        }
    }

    /// Keeps an instance alive as well as anybody can: it asks all nodes at once and again, whatever they answer.
    /// `kept` is told when it has been renewed; it stops when it is told to.
    pub async fn keep_trying(mut self, kept: Arc<AtomicUsize>) {
        self.patience = IMPATIENCE;
        let (own, reg_rev) = loop {
            if self.stopped() {
                return;
            }
            self.think(Duration::from_millis(50)).await;
            let Some(node) = self.some_node() else { continue };
            // A registration of unknown outcome may still take effect, and must not end the next one's.
            let own = id(format!("kept-{}", self.seq));
            if self.write(&node, Write::Register { id: own.clone(), expected: None }).await {
                break (own, self.seen);
            }
        };
        self.judge().keep(&own, true);
        while !self.stopped() {
            let nodes = self.cluster.lives();
            if self.cluster.plant() != Some(Plant::SilentClient) {
                for node in nodes {
                    let (own, kept) = (own.clone(), kept.clone());
                    let (judge, trace, number) = (self.judge(), self.trace.clone(), self.number);
                    tokio::spawn(async move {
                        let (floor, called) = (judge.floor(), trace.now());
                        let call = node.registry.heartbeat(vec![(own.clone(), Some(reg_rev))]);
                        let outcome = timeout(IMPATIENCE, node.call(call)).await.ok().flatten();
                        trace.note(&[16, number, node.id], result(&outcome));
                        if let Some(Ok(answer)) = outcome
                            && answer.value == [true]
                        {
                            judge.renewed(&own, reg_rev, called, floor);
                            kept.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            }
            sleep(TTL / 4).await;
        }
        self.judge().keep(&own, false);
    }

    /// One heartbeat; none if nobody can say what became of it.
    async fn beat(&mut self, node: &Life, own: &InstanceId, reg_rev: u64) -> Option<bool> {
        let (judge, floor, called) = (self.judge(), self.judge().floor(), self.trace.now());
        let registry = node.registry.clone();
        let call = registry.heartbeat(vec![(own.clone(), Some(reg_rev))]);
        let outcome = timeout(self.patience, node.call(call)).await.ok().flatten();
        self.trace.note(&[11, self.number, node.id], result(&outcome));
        let planted = self.cluster.plant() == Some(Plant::EmptyRenewals);
        let renewed = planted || *outcome?.ok()?.value.first()?;
        if renewed {
            judge.renewed(own, reg_rev, called, floor);
        }
        Some(renewed)
    }

    /// Follows the changes of a service, or of all, from node to node.
    pub async fn follow(mut self) {
        let service = [None, Some(name("a")), Some(name("b"))][self.dice.usize(..3)].clone();
        let mut cursor = None;
        while !self.stopped() {
            self.think(Duration::from_millis(50)).await;
            let Some(node) = self.some_node() else { continue };
            let resume = match self.dice.u32(..20) {
                // Now and then as a client that has lost its place.
                0..=1 => None,
                2 => {
                    self.look_ahead(&node).await;
                    continue;
                }
                _ => cursor,
            };
            let early = u64::from(self.cluster.plant() == Some(Plant::EarlyResume) && resume > Some(1));
            let (registry, cluster_id) = (node.registry.clone(), node.consensus.cluster_id());
            let from = resume.map(|revision| revision - early);
            // Whoever starts over does not go back behind what it was told of.
            let least = if resume.is_none() { self.seen } else { 0 };
            let opened = node.call(registry.watch(service.clone(), &cluster_id, from, least, None)).await;
            self.trace.note(&[12, self.number, node.id, resume.unwrap_or(0)], result(&opened));
            let Some(Ok(mut watcher)) = opened else { continue };
            let mut held = resume;
            for _ in 0..self.dice.u32(1..40) {
                let Some(Ok(update)) = node.call(watcher.next()).await else { break };
                if self.stopped() {
                    return;
                }
                let revision = update.revision();
                if revision < least {
                    self.judge().violated(format!("W10: a watch from {least} began at revision {revision}"));
                }
                self.hear(held, update, &service);
                (held, cursor) = (Some(revision), Some(revision));
                self.seen = self.seen.max(revision);
                // One that is slow: what it has not heard may be forgotten meanwhile.
                if self.dice.u32(..10) == 0 {
                    self.think(Duration::from_millis(1_500)).await;
                }
            }
        }
    }

    /// W9: what has not happened yet cannot be followed.
    async fn look_ahead(&self, node: &Life) {
        let (registry, cluster_id) = (node.registry.clone(), node.consensus.cluster_id());
        let ahead = self.judge().floor() + 1_000;
        let opened = node.call(registry.watch(None, &cluster_id, Some(ahead), 0, None)).await;
        self.trace.note(&[15, self.number, node.id], result(&opened));
        if let Some(Ok(_)) = opened {
            self.judge().violated(format!("W9: a watch continues from revision {ahead}, which has not been"));
        }
    }

    fn hear(&self, held: Option<u64>, update: Update, service: &Option<ServiceName>) {
        let judge = self.judge();
        self.trace.note(&[13, self.number, held.unwrap_or(0), update.revision()], "hears");
        if Some(update.revision()) < held {
            return judge
                .violated(format!("W1: a watcher at revision {held:?} heard of {}", update.revision()));
        }
        judge.count(|counts| counts.watched += 1);
        let events = |after: Option<u64>, upto, batches| {
            after.map(|after| Claim::Events { after, upto, service: service.clone(), batches })
        };
        let claim = match update {
            Update::Reset { snapshot, .. } => {
                judge.count(|counts| counts.resets += u64::from(held.is_some()));
                let records = (0..snapshot.parts()).flat_map(|part| snapshot.part(part).to_vec()).collect();
                let of = service.clone().map_or(Of::All, Of::Service);
                Some(Claim::Records { revision: snapshot.revision, of, records })
            }
            Update::Events { revision, batches } => {
                let batches = batches.iter().map(|shared| shared.batch());
                let batches = batches.map(|batch| (batch.revision, batch.events.clone())).collect();
                events(held, revision, batches)
            }
            Update::Progress { revision } => events(held, revision, Vec::new()),
        };
        match claim {
            Some(claim) => judge.answered(0, false, claim),
            None => judge.violated("W9: a watcher that held nothing did not begin with a reset".into()),
        }
    }

    /// Proof of life: a write and a read through a node; whether both succeed. It does not wait for what was lost
    /// before all was well.
    pub async fn try_all(&mut self, node: &Life) -> bool {
        self.patience = IMPATIENCE;
        let id = id(format!("shared-{}", self.dice.u64(..SHARED)));
        self.write(node, Write::Register { id, expected: None }).await
            && self.list(node, Consistency::Linearizable).await
    }
}

fn result<T>(outcome: &Option<Result<T, Error>>) -> &'static str {
    match outcome {
        None => "no answer",
        Some(Ok(_)) => "ok",
        Some(Err(error)) => error.code(),
    }
}
