//! Heartbeats through `Pipeline`: how many a second are acknowledged, and whether so many instances live.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use proto::registry::v1 as pb;
use proto::registry::v1::{
    admin_client::AdminClient, pipeline_request::Call, pipeline_response::Result as Answer,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tonic::Status;

use super::{
    Run,
    nodes::{Nodes, id, instance, name},
    pipeline::Pipeline,
};
use crate::bench::{
    etcd::connect,
    load::{Door, closed_loop, explain},
    report::{Bound, Line, median, with_unit},
};

pub(super) const NAME: &str = "heartbeats";

/// What flux asks for, and how often it beats.
const TTL: Duration = Duration::from_secs(10);
const BEAT_EVERY: Duration = Duration::from_millis(3_333);
/// Beats of one message: those of one process that keeps many instances alive, or of one agent's.
const PER_MESSAGE: u64 = 100;
/// Messages on their way at once.
const CALLERS: usize = 16;
const IN_FLIGHT: usize = 256;
/// Registrations on their way at once while the instances are made.
const MAKERS: usize = 256;
/// How often a registration is sent that fails, as all do that are under way when another node is elected.
const TRIES_MAX: u32 = 3;
/// Three leases.
const LIVE: Duration = Duration::from_secs(30);
/// Beats are sent in slices of this.
const SLICE: Duration = Duration::from_millis(20);

/// How long all instances are kept alive once they are there.
fn live(run: &Run<'_>) -> Duration {
    if run.args.quick { BEAT_EVERY } else { LIVE }
}

pub(super) fn estimate(run: &Run<'_>) -> Duration {
    // Registered at 6 000/s.
    Duration::from_secs(run.live() / 6_000) + live(run) + run.window().mul_f64(1.15) * run.rounds() * 2 + TTL
}

pub(super) async fn measure(run: &mut Run<'_>) -> Result<()> {
    let nodes = run.nodes("heartbeats").await?;
    let pipelines = Pipeline::open(&nodes.clients(run.connections()).await?).await?;
    let population = Arc::new(Population::new(run.live()));
    let stop = Arc::new(AtomicBool::new(false));
    let keeper = tokio::spawn(keep_alive(pipelines.clone(), population.clone(), stop.clone()));
    let begun = Instant::now();
    register_all(&pipelines, &population).await?;
    let rate = run.live() as f64 / begun.elapsed().as_secs_f64();
    run.line(Line::info(
        NAME,
        format!("{} instances registered under heartbeats", run.live()),
        vec![rate],
        "/s",
    ));
    run.progress("heartbeats: registered");
    let (before, since) = (population.renewed.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(live(run)).await;
    let renewed = population.renewed.load(Ordering::Relaxed) - before;
    let rate = renewed as f64 / since.elapsed().as_secs_f64();
    let alive = alive(&nodes).await?;
    let lost = population.lost.load(Ordering::Relaxed);
    run.line(
        Line::info(NAME, format!("instances alive after {} s", live(run).as_secs()), vec![alive], "")
            .held_to(Bound::AtLeast { must: run.live() as f64, goal: run.live() as f64 })
            .with(format!(
                "{lost} leases lost early, leases of {} s, {} beats/s, {PER_MESSAGE} in a message, {} of them failed",
                TTL.as_secs(),
                with_unit(rate, ""),
                population.failed.load(Ordering::Relaxed),
            )),
    );
    ceiling(run, &nodes, pipelines, &population).await?;
    stop.store(true, Ordering::Relaxed);
    keeper.await.context("the keeper has panicked")??;
    nodes.shutdown().await
}

/// Instances by number, and the fencing token of each.
struct Population {
    /// Zero until it is registered.
    reg_revs: Vec<AtomicU64>,
    renewed: AtomicU64,
    lost: AtomicU64,
    /// Messages that failed while they kept instances alive: the next one comes within the lease.
    failed: AtomicU64,
}

impl Population {
    fn new(count: u64) -> Self {
        let reg_revs = (0..count).map(|_| AtomicU64::new(0)).collect();
        let none = || AtomicU64::new(0);
        Self { reg_revs, renewed: none(), lost: none(), failed: none() }
    }

    /// The heartbeats of the registered ones of a range.
    fn beats(&self, range: std::ops::Range<u64>) -> pb::HeartbeatRequest {
        let beat = |nth: u64| {
            let reg_rev = self.reg_revs.get(nth as usize)?.load(Ordering::Relaxed);
            (reg_rev > 0).then(|| pb::Beat { id: id(nth), reg_rev })
        };
        pb::HeartbeatRequest { beats: range.filter_map(beat).collect() }
    }

    fn note(&self, answer: &pb::HeartbeatResponse) {
        let renewed =
            answer.results.iter().filter(|result| **result == pb::BeatResult::Renewed as i32).count() as u64;
        self.renewed.fetch_add(renewed, Ordering::Relaxed);
        self.lost.fetch_add(answer.results.len() as u64 - renewed, Ordering::Relaxed);
    }
}

async fn beat(
    pipeline: &Pipeline,
    population: &Population,
    range: std::ops::Range<u64>,
) -> Result<(), Status> {
    let beats = population.beats(range);
    if beats.beats.is_empty() {
        return Ok(());
    }
    match pipeline.ask(Call::Heartbeat(beats)).await? {
        Answer::Heartbeat(answer) => {
            population.note(&answer);
            Ok(())
        }
        _ => Err(Status::internal("a heartbeat was answered with something else")),
    }
}

/// Sends every instance's heartbeat in its turn, evenly over the interval, until told to stop.
async fn keep_alive(
    pipelines: Vec<Pipeline>,
    population: Arc<Population>,
    stop: Arc<AtomicBool>,
) -> Result<()> {
    let messages = (population.reg_revs.len() as u64).div_ceil(PER_MESSAGE);
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut slices = tokio::time::interval(SLICE);
    slices.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut calls: JoinSet<Result<(), Status>> = JoinSet::new();
    let (begun, mut sent) = (Instant::now(), 0_u64);
    while !stop.load(Ordering::Relaxed) {
        slices.tick().await;
        let due = (begun.elapsed().as_secs_f64() / BEAT_EVERY.as_secs_f64() * messages as f64) as u64;
        while sent < due {
            let place = places.clone().acquire_owned().await.context("the semaphore is never closed")?;
            let nth = sent % messages;
            let pipeline = pipelines[sent as usize % pipelines.len()].clone();
            let population = population.clone();
            sent += 1;
            calls.spawn(async move {
                let done = beat(&pipeline, &population, nth * PER_MESSAGE..(nth + 1) * PER_MESSAGE).await;
                drop(place);
                done
            });
        }
        while let Some(done) = calls.try_join_next() {
            population.failed.fetch_add(u64::from(done?.is_err()), Ordering::Relaxed);
        }
    }
    Ok(())
}

async fn register_all(pipelines: &[Pipeline], population: &Arc<Population>) -> Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut makers = JoinSet::new();
    for pipeline in pipelines.iter().cycle().take(MAKERS) {
        let pipeline = pipeline.clone();
        let (next, population) = (next.clone(), population.clone());
        makers.spawn(async move {
            let (client, mut seq) = (name(), 0);
            loop {
                let nth = next.fetch_add(1, Ordering::Relaxed);
                let Some(reg_rev) = population.reg_revs.get(nth as usize) else { return Ok(()) };
                seq += 1;
                let mut instance = instance(nth);
                instance.ttl_ms = TTL.as_millis() as u32;
                let client = client.clone();
                let register =
                    pb::RegisterRequest { instance: Some(instance), client, seq, ..Default::default() };
                let mut tries = 1;
                let answer = loop {
                    match pipeline.ask(Call::Register(register.clone())).await {
                        Err(_) if tries < TRIES_MAX => tries += 1, // numbered: it takes effect once
                        answer => break answer?,
                    }
                };
                match answer {
                    Answer::Register(answer) => {
                        reg_rev.store(answer.instance.map_or(0, |made| made.reg_rev), Ordering::Relaxed);
                    }
                    _ => return Err(Status::internal("a registration was answered with something else")),
                }
            }
        });
    }
    while let Some(done) = makers.join_next().await {
        done?.map_err(|status| anyhow::anyhow!("a registration failed: {}", explain(&status)))?;
    }
    Ok(())
}

/// Instances that are registered, by the leader's count.
async fn alive(nodes: &Nodes) -> Result<f64> {
    let mut leader = AdminClient::new(connect(&nodes.leader().await?.grpc).await?);
    Ok(leader.status(pb::StatusRequest {}).await?.into_inner().instances as f64)
}

/// As many as go: callers that send the next message when the last is answered. A window in which one failed, as all do
/// that are under way when another node is elected, is measured again, at whoever leads then.
async fn ceiling(
    run: &mut Run<'_>,
    nodes: &Nodes,
    mut pipelines: Vec<Pipeline>,
    population: &Arc<Population>,
) -> Result<()> {
    for (per_message, callers, bound) in [
        (PER_MESSAGE, CALLERS, Some(Bound::AtLeast { must: 100_000.0, goal: 200_000.0 })),
        (1, IN_FLIGHT, None),
    ] {
        let mut rates = Vec::new();
        let mut tails = Vec::new();
        let mut again = 0;
        while rates.len() < run.rounds() as usize {
            let door = |pipeline: &Pipeline| Beats {
                pipeline: pipeline.clone(),
                population: population.clone(),
                per_message,
            };
            let doors: Vec<Beats> = pipelines.iter().cycle().take(callers).map(door).collect();
            let window = closed_loop(doors, run.live() / per_message, run.window()).await;
            if window.failed > 0 && again < run.rounds() {
                again += 1;
                pipelines = Pipeline::open(&nodes.clients(run.connections()).await?).await?;
                continue;
            }
            let window = window.whole("heartbeats")?;
            rates.push(window.rate() * per_message as f64);
            tails.push(window.quantile(0.99));
        }
        if population.lost.load(Ordering::Relaxed) > 0 {
            bail!("leases were lost under the load: the rate counts for nothing");
        }
        let what = format!("heartbeats acknowledged, {per_message} in a message, {callers} callers");
        let line = Line::info(NAME, what, rates, "/s").with(format!(
            "message p99 {}; beside the {} beats/s that keep {} instances alive; {again} windows measured again",
            with_unit(median(&tails), "ms"),
            with_unit(run.live() as f64 / BEAT_EVERY.as_secs_f64(), ""),
            run.live(),
        ));
        run.line(match bound {
            Some(bound) => line.held_to(bound),
            None => line,
        });
    }
    Ok(())
}

/// One caller that beats for a run of instances.
struct Beats {
    pipeline: Pipeline,
    population: Arc<Population>,
    per_message: u64,
}

impl Door for Beats {
    async fn call(&mut self, nth: u64) -> Result<(), Status> {
        beat(&self.pipeline, &self.population, nth * self.per_message..(nth + 1) * self.per_message).await
    }
}
