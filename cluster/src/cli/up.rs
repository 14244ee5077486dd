//! `up`: starts a system, says where it is, stays, and cleans up.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Up, note, say, table};
use crate::{Cluster, Lifetime, Options, Pid, Ports, state::Recent};

/// How often it looks who has gone or come back.
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub(super) async fn up(up: Up, dir: Option<PathBuf>) -> Result<()> {
    let mut signals = Signals::new()?;
    let recent = Recent::of_user().context("cannot keep the list of running clusters")?;
    recent.sweep();
    let options = options(&up, dir.clone());
    let begun = *BEGUN.get_or_init(Instant::now);
    let cluster = tokio::select! {
        // Dropped half-way, it kills what it has started.
        launched = Cluster::launch(options) => launched?,
        () = signals.recv() => {
            note("interrupted while starting; nothing is left running");
            return Ok(());
        }
    };
    if let Err(error) = recent.push(cluster.dir()) {
        let dir = cluster.dir().display();
        note(&format!("warning: not noted as the most recent cluster ({error}): name it with --dir {dir}"));
    }
    note(&format!("{:5.1} s  requests flow", begun.elapsed().as_secs_f32()));
    say(&welcome(&cluster, dir.as_deref(), up.detach).await?);
    if up.detach {
        return Ok(());
    }
    let dir = cluster.dir().to_owned();
    tokio::select! {
        () = signals.recv() => note("\nstopping balancers, backends and nodes, in this order (again: kill them)"),
        watched = watch(&cluster) => watched?,
    }
    tokio::select! {
        done = cluster.shutdown() => done?,
        () = signals.recv() => note("killed what was left"),
    }
    drop(recent.remove(&dir)); // what is gone is also left out by whoever reads the list
    note("everything is stopped");
    Ok(())
}

/// When `up` began: `progress` is a plain function and has nowhere else to know it from.
static BEGUN: OnceLock<Instant> = OnceLock::new();

fn progress(line: &str) {
    note(&format!("{:5.1} s  {line}", BEGUN.get_or_init(Instant::now).elapsed().as_secs_f32()));
}

fn options(up: &Up, dir: Option<PathBuf>) -> Options {
    let defaults = Options::default();
    // A directory that holds a cluster says itself how large it is.
    let stored = dir.as_deref().and_then(Cluster::counts);
    let (nodes, balancers, backends) =
        stored.unwrap_or((defaults.nodes, defaults.balancers, defaults.backends));
    let ports = match (up.strict_ports, up.free_ports) {
        (true, _) => Ports::Strict,
        (_, true) => Ports::Free,
        _ => Ports::Default,
    };
    Options {
        nodes: up.nodes.unwrap_or(nodes),
        balancers: up.balancers.unwrap_or(balancers),
        backends: up.backends.unwrap_or(backends),
        strategy: up.strategy.clone(),
        lifetime: if up.detach { Lifetime::Detached } else { Lifetime::Owned },
        dir,
        ports,
        progress,
        ..defaults
    }
}

/// The table, and what one can do next.
async fn welcome(cluster: &Cluster, dir: Option<&Path>, detached: bool) -> Result<String> {
    let status = cluster.status().await?;
    let this = dir.map_or(String::new(), |_| format!(" --dir {}", cluster.dir().display()));
    let command = format!("{}{this}", program());
    let mut lines = vec![String::new(), table::status(&status)];
    let mut hint = |line: String, what: &str| lines.push(format!("  {line:<44}  # {what}"));
    if let Some(balancer) = status.balancers.first() {
        hint(format!("curl {}/", balancer.http), "a request; again: the next backend");
    }
    if let Some(node) = status.nodes.first() {
        hint(format!("curl {}/v1/instances", node.rest), "who is registered");
    }
    hint(format!("{command} kill leader"), "requests go on; then: start node-N");
    hint(format!("{command} status"), "who leads now");
    hint(format!("{command} logs node-1 -f"), "what a process says");
    hint(format!("{command} add backend"), "it gets requests at once");
    hint(format!("{command} down"), if detached { "ends it" } else { "ends it, as Ctrl-C does here" });
    lines.push(format!("\n  logs and data: {}", cluster.dir().display()));
    Ok(lines.join("\n"))
}

/// How this program was called, to be typed again.
fn program() -> String {
    if std::env::var_os("CARGO").is_some() {
        return "cargo cluster".into();
    }
    std::env::args().next().unwrap_or_else(|| "cluster".into())
}

/// Says who goes and who comes. Returns when the cluster's directory is gone.
async fn watch(cluster: &Cluster) -> Result<()> {
    let mut known: BTreeMap<String, Option<Pid>> = cluster.running()?.into_iter().collect();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for (name, now) in cluster.running()? {
            let before = known.insert(name.clone(), now).flatten();
            match (before, now) {
                (before, Some(pid)) if before != now => note(&format!("{name} is up, pid {}", pid.pid)),
                (Some(_), None) => note(&format!("{name} is down; again: {} start {name}", program())),
                _ => (),
            }
        }
    }
}

/// Whatever asks this program to end.
pub(super) struct Signals([Signal; 3]);

impl Signals {
    pub(super) fn new() -> Result<Signals> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals([on(SignalKind::interrupt())?, on(SignalKind::terminate())?, on(SignalKind::hangup())?]))
    }

    pub(super) async fn recv(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
            _ = hangup.recv() => (),
        }
    }
}
