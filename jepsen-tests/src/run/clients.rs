//! Clients: they carry out what the plan says, and record what they asked and learned.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::door::{Door, Trouble, Write};
use super::recorder::Recorder;
use crate::history::{Consistency, Entry, F, Kind, Op, Value};
use crate::plan::workload::{BEAT_EVERY, Fate, Keeper, Mixed, Step, TTL_FOREVER, TTL_LEASE};

/// A client: one door, one call at a time.
#[derive(Debug)]
pub(super) struct Client {
    door: Door,
    recorder: Recorder,
    name: String,
    /// The node it is bound to.
    node: Option<String>,
    process: u64,
    seq: u64,
    last: bool,
}

impl Client {
    pub(super) fn new(door: Door, recorder: &Recorder, name: String, node: Option<String>) -> Self {
        let process = recorder.process();
        Self { door, recorder: recorder.clone(), name, node, process, seq: 0, last: false }
    }

    /// From here on its calls are final ones, which must succeed.
    pub(super) fn last(mut self) -> Self {
        self.last = true;
        self
    }

    /// Registers, and returns the incarnation if that is known.
    pub(super) async fn register(&mut self, key: &str, value: u64, ttl: Duration) -> Option<u64> {
        let invoke = Op {
            value: Value::Int(value),
            ttl_ms: Some(ttl.as_millis() as u64),
            ..self.op(F::Register, key)
        };
        self.invoke(&invoke);
        let outcome = self.door.put(&Write::new(key, value, ttl, None)).await;
        self.put_ended(invoke, outcome.map(|found| found.value)).map(|entry| entry.2)
    }

    /// Swaps the record that was last seen, and returns the new one.
    async fn cas(&mut self, key: &str, depends: Option<(u64, u64)>, value: u64) -> Option<Entry> {
        let expected = depends.map_or(0, |(_, mod_rev)| mod_rev);
        let swap = Value::Swap(depends.map(|(value, _)| value), value);
        let ttl_ms = Some(TTL_FOREVER.as_millis() as u64);
        let invoke = Op { value: swap, expected: Some(expected), ttl_ms, ..self.op(F::Cas, key) };
        self.invoke(&invoke);
        let outcome = self.door.put(&Write::new(key, value, TTL_FOREVER, Some(expected))).await;
        self.put_ended(invoke, outcome.map(|found| found.value))
    }

    pub(super) async fn deregister(&mut self, key: &str, reg_rev: Option<u64>) {
        let invoke = Op { reg_rev, ..self.op(F::Deregister, key) };
        self.invoke(&invoke);
        match self.door.deregister(key, reg_rev).await {
            Ok(found) => self.ok(Op { value: Value::Bool(found.value), revision: found.revision, ..invoke }),
            Err(trouble) => self.troubled(invoke, &trouble),
        }
    }

    /// Renews a lease. Nothing if it is not known whether that worked.
    async fn renew(&mut self, key: &str, reg_rev: u64) -> Option<bool> {
        let invoke = Op { reg_rev: Some(reg_rev), ..self.op(F::Renew, key) };
        self.invoke(&invoke);
        match self.door.renew(key, reg_rev).await {
            Ok(found) => {
                self.ok(Op { value: Value::Bool(found.value), ..invoke });
                Some(found.value)
            }
            Err(trouble) => {
                self.troubled(invoke, &trouble);
                None
            }
        }
    }

    /// Reads one instance; the outer nothing means that there was no answer.
    pub(super) async fn read(&mut self, key: &str) -> Option<Option<Entry>> {
        let invoke = Op { consistency: Some(Consistency::Linearizable), ..self.op(F::Read, key) };
        self.invoke(&invoke);
        match self.door.get(key).await {
            Ok(found) => {
                let (revision, entry) = (found.revision, found.value);
                let op = Op { revision, ..invoke };
                self.ok(match &entry {
                    None => op,
                    Some(Entry(_, value, reg_rev, mod_rev)) => Op {
                        value: value.map_or(Value::None, Value::Int),
                        reg_rev: Some(*reg_rev),
                        mod_rev: Some(*mod_rev),
                        ..op
                    },
                });
                Some(entry)
            }
            Err(trouble) => {
                self.troubled(invoke, &trouble);
                None
            }
        }
    }

    pub(super) async fn list(&mut self, service: Option<&str>, consistency: Consistency) {
        let key = service.map(str::to_owned);
        let invoke = Op { key, consistency: Some(consistency), ..self.op(F::List, "") };
        self.invoke(&invoke);
        match self.door.list(service, consistency).await {
            Ok(found) => self.ok(Op { value: Value::List(found.value), revision: found.revision, ..invoke }),
            Err(trouble) => self.troubled(invoke, &trouble),
        }
    }

    async fn step(&mut self, step: Step, plan: &mut Mixed) {
        let key = step.key.as_deref().unwrap_or_default();
        let value = step.value.unwrap_or_default();
        match step.f {
            F::Register => drop(self.register(key, value, TTL_FOREVER).await),
            F::Deregister => self.deregister(key, None).await,
            F::List => {
                self.list(step.key.as_deref(), step.consistency.unwrap_or(Consistency::Linearizable)).await
            }
            F::Cas => {
                if let Some(entry) = self.cas(key, step.depends, value).await {
                    plan.learn(key, Some((value, entry.3)));
                }
            }
            F::Read => match self.read(key).await {
                Some(None) => plan.learn(key, None),
                Some(Some(Entry(_, Some(value), _, mod_rev))) => plan.learn(key, Some((value, mod_rev))),
                _ => {}
            },
            F::Renew => unreachable!("mixed clients hold no leases"),
        }
    }

    fn put_ended(&mut self, invoke: Op, outcome: Result<Entry, Trouble>) -> Option<Entry> {
        match outcome {
            Ok(entry) => {
                let (reg_rev, mod_rev) = (Some(entry.2), Some(entry.3));
                self.ok(Op { revision: mod_rev, reg_rev, mod_rev, ..invoke });
                Some(entry)
            }
            Err(trouble) => {
                self.troubled(invoke, &trouble);
                None
            }
        }
    }

    fn op(&mut self, f: F, key: &str) -> Op {
        self.seq += 1;
        Op {
            index: 0,
            time: 0,
            process: self.process,
            kind: Kind::Invoke,
            f,
            key: Some(key.to_owned()),
            value: Value::None,
            expected: None,
            ttl_ms: None,
            consistency: None,
            revision: None,
            reg_rev: None,
            mod_rev: None,
            node: self.node.clone(),
            client: Some(self.name.clone()),
            seq: Some(self.seq),
            error: None,
            last: self.last,
        }
    }

    fn invoke(&self, op: &Op) {
        self.recorder.op(op.clone());
    }

    fn ok(&self, op: Op) {
        self.recorder.op(Op { kind: Kind::Ok, ..op });
    }

    /// A read that got no answer had no effect either way.
    fn troubled(&mut self, op: Op, trouble: &Trouble) {
        let certain = trouble.no_effect || matches!(op.f, F::Read | F::List);
        let kind = if certain { Kind::Fail } else { Kind::Info };
        self.recorder.op(Op { kind, error: Some(trouble.message.clone()), ..op });
        if !certain {
            self.process = self.recorder.process();
        }
    }
}

/// Carries out `plan` until `stop`; the call in hand is finished.
pub(super) async fn mix(mut client: Client, mut plan: Mixed, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let step = plan.step();
        client.step(step, &mut plan).await;
        let pause = plan.pause();
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Keeps leases until `stop`; then goes away without a word. No new life begins after `last_orders`.
pub(super) async fn keep(
    mut client: Client,
    mut plan: Keeper,
    last_orders: CancellationToken,
    stop: CancellationToken,
) {
    while !last_orders.is_cancelled() {
        let life = plan.life();
        let Some(reg_rev) = client.register(&life.key, life.value, TTL_LEASE).await else {
            pause(BEAT_EVERY, &stop).await;
            continue;
        };
        let beats = if life.fate == Fate::Kept { u64::MAX } else { life.beats };
        if !beat(&mut client, &life.key, reg_rev, beats, &stop).await {
            continue;
        }
        match life.fate {
            Fate::Kept | Fate::Abandoned => {}
            Fate::Deregistered => client.deregister(&life.key, Some(reg_rev)).await,
            Fate::Replaced => {
                if let Some(next) = client.register(&life.key, plan.again(), TTL_LEASE).await {
                    client.renew(&life.key, reg_rev).await;
                    beat(&mut client, &life.key, next, life.beats, &stop).await;
                }
            }
        }
    }
}

/// Renews `beats` times, an attempt every [`BEAT_EVERY`], at once after one that failed late. False if the lease was lost.
async fn beat(client: &mut Client, key: &str, reg_rev: u64, beats: u64, stop: &CancellationToken) -> bool {
    let mut every = tokio::time::interval(BEAT_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    every.tick().await;
    for _ in 0..beats {
        tokio::select! {
            () = stop.cancelled() => return true,
            _ = every.tick() => {}
        }
        if client.renew(key, reg_rev).await == Some(false) {
            return false;
        }
    }
    true
}

async fn pause(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(time) => {}
    }
}
