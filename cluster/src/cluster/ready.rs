//! Waiting until processes do their work, and telling why one does not.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _, Seek as _},
    path::Path,
    sync::PoisonError,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;

use super::{Cluster, find};
use crate::{Error, Exit, Kind, Pid, ProcessSpec, http, state::Process};

/// How long a child that has ended may take to be reaped; it ran in this process, so this is a turn of the runtime.
const REAP_WITHIN: Duration = Duration::from_millis(500);
/// How often readiness is asked for.
const ASK_EVERY: Duration = Duration::from_millis(25);
/// One question's deadline.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// Lines of a log shown with an error.
const TAIL_LINES: usize = 12;
/// Bytes read for them from the end of a log.
const TAIL_BYTES: u64 = 16 << 10;

impl Cluster {
    /// Waits until all running processes are ready, and requests flow through every balancer to every backend.
    pub async fn wait_ready(&self) -> Result<(), Error> {
        let state = self.state()?;
        let running = state.processes.iter().filter(|process| process.run.is_some());
        let names: Vec<&str> = running.map(|process| process.spec.name.as_str()).collect();
        self.wait_ready_of(&names).await?;
        self.wait_flowing().await
    }

    /// Waits until each of `names` says that it is ready; fails as soon as one ends.
    pub async fn wait_ready_of(&self, names: &[&str]) -> Result<(), Error> {
        let deadline = Instant::now() + self.ready_within;
        try_join_all(names.iter().map(|name| self.wait_one(name, deadline))).await.map(drop)
    }

    async fn wait_one(&self, name: &str, deadline: Instant) -> Result<(), Error> {
        let process = find(&mut self.state()?, name)?.clone();
        let url = process.spec.kind.ready_url();
        loop {
            let running = process.running();
            let said = match http::get(&url, ASK_WITHIN).await {
                Ok(answer) if answer.is_ok() && running.is_some() => return Ok(()),
                Ok(answer) => format!("{url} says {} {}", answer.status, first_line(&answer.body)),
                Err(error) => format!("{url}: {error}"),
            };
            if running.is_none() {
                return Err(self.died(name, process.run).await);
            }
            if Instant::now() >= deadline {
                let (log, tail) = (self.logs(name), tail(&self.logs(name)));
                return Err(Error::NotReady {
                    name: name.into(),
                    within: self.ready_within,
                    said,
                    log,
                    tail,
                });
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn died(&self, name: &str, run: Option<Pid>) -> Error {
        let how = match run.and_then(|pid| self.exit(pid)) {
            Some(exit) => exit.status_within(REAP_WITHIN).await.map(|status| status.to_string()),
            None => None,
        };
        let how = how.unwrap_or("nobody knows how".into());
        Error::Died { name: name.into(), how, log: self.logs(name), tail: tail(&self.logs(name)) }
    }

    pub(super) fn exit(&self, pid: Pid) -> Option<Exit> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner).get(&pid).cloned()
    }

    /// Waits until every balancer that runs has passed a request to every backend that runs.
    pub(super) async fn wait_flowing(&self) -> Result<(), Error> {
        let state = self.state()?;
        let up = || state.processes.iter().filter(|process| process.running().is_some());
        let backends: BTreeSet<String> = up().filter_map(|process| backend_id(&process.spec)).collect();
        let balancers: Vec<&Process> =
            up().filter(|one| matches!(one.spec.kind, Kind::Balancer { .. })).collect();
        if backends.is_empty() || balancers.is_empty() {
            return Ok(());
        }
        (self.progress)("waiting until requests flow through every balancer to every backend");
        let deadline = Instant::now() + self.ready_within;
        let flows = balancers.iter().map(|balancer| self.wait_flowing_through(balancer, &backends, deadline));
        try_join_all(flows).await.map(drop)
    }

    /// Round robin comes by everybody; of the other strategies only that they answer can be asked.
    async fn wait_flowing_through(
        &self,
        balancer: &Process,
        backends: &BTreeSet<String>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let Kind::Balancer { http, .. } = &balancer.spec.kind else { return Ok(()) };
        let name = &balancer.spec.name;
        let rotates = !balancer.spec.argv.iter().any(|arg| arg.contains("least") || arg.contains("sticky"));
        let mut missing = backends.clone();
        loop {
            let said = match http::get(&format!("{http}/"), ASK_WITHIN).await {
                Ok(answer) => {
                    let instance =
                        answer.json().and_then(|json| Some(json.get("instance")?.as_str()?.to_owned()));
                    let known = instance.is_some_and(|instance| missing.remove(&instance));
                    if answer.is_ok() && (missing.is_empty() || known && !rotates) {
                        return Ok(());
                    }
                    format!("{} {}", answer.status, first_line(&answer.body))
                }
                Err(error) => error.to_string(),
            };
            if balancer.running().is_none() {
                return Err(self.died(name, balancer.run).await);
            }
            if Instant::now() >= deadline {
                let missing = missing.into_iter().collect::<Vec<_>>().join(", ");
                return Err(Error::NotFlowing {
                    name: name.clone(),
                    missing,
                    within: self.ready_within,
                    said,
                });
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

fn backend_id(spec: &ProcessSpec) -> Option<String> {
    match &spec.kind {
        Kind::Backend { id, .. } => Some(id.clone()),
        _ => None,
    }
}

fn first_line(body: &[u8]) -> String {
    String::from_utf8_lossy(body).lines().next().unwrap_or_default().chars().take(200).collect()
}

/// The last lines of a log, indented.
fn tail(log: &Path) -> String {
    let read = || {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(io::SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_else(|error| format!("(unreadable: {error})"));
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if last.is_empty() { "    (empty)".into() } else { format!("    {}", last.join("\n    ")) }
}
