//! Carries out the schedule of faults, and heals everything at the end.

use std::collections::HashMap;
use std::time::Duration;

use cluster::Cluster;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::recorder::Recorder;
use super::rest::Rest;
use crate::history::{Phase, Target};
use crate::plan::nemesis::{Action, Board, Fault};

/// A fault that cannot be installed by then (no leader, or too many nodes faulty) is skipped, and the run fails.
const PATIENCE: Duration = Duration::from_secs(8);
/// Between two looks for a leader.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The one who breaks things.
pub(super) struct Nemesis<'a> {
    cluster: &'a Cluster,
    recorder: &'a Recorder,
    nodes: Vec<(String, Rest)>,
    board: Board,
    rng: fastrand::Rng,
    /// What is in effect, and when it ends.
    open: HashMap<u64, (Instant, Fault, Target)>,
}

impl<'a> Nemesis<'a> {
    /// `nodes` are names with clients of short patience.
    pub(super) fn new(
        cluster: &'a Cluster,
        recorder: &'a Recorder,
        nodes: Vec<(String, Rest)>,
        rng: fastrand::Rng,
    ) -> Self {
        let board = Board::new(nodes.iter().map(|(name, _)| name.clone()).collect());
        Self { cluster, recorder, nodes, board, rng, open: HashMap::new() }
    }

    /// Installs and heals as scheduled; returns when everything is healed. The phase of faults begins now and ends
    /// after `limit`, or later by as much as a fault had to wait for somebody to hit: the others keep their distance.
    pub(super) async fn run(&mut self, schedule: &[Fault], limit: Duration) -> Result<(), cluster::Error> {
        let mut began = Instant::now();
        for fault in schedule {
            self.heal_until(began + fault.at).await?;
            let planned = Instant::now();
            self.install(fault).await?;
            began += planned.elapsed();
        }
        self.heal_until(began + limit).await?;
        while let Some(fault) = self.next_heal() {
            sleep_until(self.open[&fault].0).await;
            self.heal(fault).await?;
        }
        Ok(())
    }

    /// Waits until `deadline` and heals what is due by then.
    async fn heal_until(&mut self, deadline: Instant) -> Result<(), cluster::Error> {
        while let Some(fault) = self.next_heal().filter(|fault| self.open[fault].0 <= deadline) {
            sleep_until(self.open[&fault].0).await;
            self.heal(fault).await?;
        }
        sleep_until(deadline).await;
        Ok(())
    }

    fn next_heal(&self) -> Option<u64> {
        self.open.iter().min_by_key(|(id, (at, ..))| (*at, **id)).map(|(id, _)| *id)
    }

    async fn install(&mut self, fault: &Fault) -> Result<(), cluster::Error> {
        let patience = Instant::now() + PATIENCE;
        let (nodes, leader) = loop {
            let leader = self.leader().await;
            if let Some(nodes) = self.board.choose(fault.scope, leader.as_deref(), &mut self.rng) {
                break (nodes, leader);
            }
            if Instant::now() > patience {
                info!(fault = fault.id, name = fault.name(), "skipped");
                let error = Some(format!("nobody to hit within {PATIENCE:?}"));
                self.record(fault, &Target { error, ..target(fault, Vec::new(), leader) }, Phase::Skipped);
                return Ok(());
            }
            self.heal_until(Instant::now() + LOOK_EVERY).await?;
        };
        info!(fault = fault.id, name = fault.name(), nodes = nodes.join(" "), lasts = ?fault.lasts, "install");
        let target = target(fault, nodes, leader);
        self.board.install(fault.id, &target.nodes);
        self.record(fault, &target, Phase::Installed);
        let cluster = self.cluster;
        let struck = target.nodes.iter().map(async |node| match fault.action {
            Action::Kill => cluster.kill(node).await,
            Action::Term => cluster.stop(node).await,
            Action::Pause => cluster.pause(node).await,
        });
        join_all(struck).await.into_iter().collect::<Result<(), _>>()?;
        self.open.insert(fault.id, (Instant::now() + fault.lasts, *fault, target));
        Ok(())
    }

    async fn heal(&mut self, fault: u64) -> Result<(), cluster::Error> {
        let Some((_, fault, target)) = self.open.remove(&fault) else { return Ok(()) };
        for node in &target.nodes {
            match fault.action {
                Action::Kill | Action::Term => self.cluster.start(node).await?,
                Action::Pause => self.cluster.resume(node).await?,
            }
        }
        self.board.heal(fault.id);
        self.record(&fault, &target, Phase::Healed);
        info!(fault = fault.id, name = fault.name(), "healed");
        Ok(())
    }

    /// Who leads, as the nodes that can answer say: the one in the highest term.
    async fn leader(&self) -> Option<String> {
        let asked = self.nodes.iter().filter(|(name, _)| self.board.well().any(|well| well == name));
        let says =
            join_all(asked.map(async |(name, node)| Some((node.leads().await.ok()??, name.clone())))).await;
        says.into_iter().flatten().max().map(|(_, name)| name)
    }

    fn record(&self, fault: &Fault, target: &Target, phase: Phase) {
        self.recorder.nemesis(fault.action.to_string(), target.clone(), phase);
    }
}

fn target(fault: &Fault, nodes: Vec<String>, leader: Option<String>) -> Target {
    Target { fault: fault.id, scope: fault.scope.to_string(), nodes, leader, error: None }
}
