//! Reading the configuration anew while running: on SIGHUP, when the file changes, or when the admin API is asked to.
//!
//! All or nothing: the whole file is checked as at the start, and the routes are swapped at once; a file with a mistake
//! changes nothing. What cannot change while running is named.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Config, Error, Flags, Limits, parse, resolve};
use crate::metrics::Metrics;
use crate::route::Routes;

/// Between looks at the file. Looking is one call to the kernel, and needs no watch that a renamed file or a swapped link, as
/// editors and Kubernetes do it, would lead astray.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How a reload is counted.
pub const RESULTS: [&str; 3] = ["done", "unchanged", "failed"];

/// When a file was written, how long it is, and which one it is.
type Stamp = (SystemTime, u64, u64);

/// A configuration and where it comes from.
#[derive(Debug)]
pub struct Loaded {
    /// What it comes to.
    pub config: Config,
    source: Source,
    text: String,
    stamp: Option<Stamp>,
}

/// Where a configuration comes from.
#[derive(Clone, Debug)]
pub struct Source {
    pub(super) flags: Flags,
    /// `None` if there is no file.
    pub(super) file: Option<PathBuf>,
}

impl Source {
    fn read(&self) -> Result<String, Error> {
        let Some(path) = &self.file else { return Ok(String::new()) };
        let name = path.display().to_string();
        std::fs::read_to_string(path).map_err(|e| Error::Read { path: name, reason: e.to_string() })
    }

    fn resolve(&self, text: &str) -> Result<Config, Error> {
        let name = self.file.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        resolve(self.flags.clone(), parse(&name, text)?)
    }

    /// Reads and checks everything.
    pub fn load(self) -> Result<Loaded, Error> {
        // First: what changes while it is read is read again.
        let stamp = self.stamp();
        let text = self.read()?;
        Ok(Loaded { config: self.resolve(&text)?, source: self, text, stamp })
    }

    /// What has to differ for a second look to be of use.
    fn stamp(&self) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(self.file.as_ref()?).ok()?;
        Some((meta.modified().ok()?, meta.len(), meta.ino()))
    }
}

/// What became of a reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Whether anything differs from before.
    pub changed: bool,
    /// How many configurations have been in force, this one included.
    pub generation: u64,
    /// Keys that differ and keep their old values until a restart.
    pub needs_restart: Vec<&'static str>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<String>,
}

/// See the file's head.
pub struct Reloader {
    source: Source,
    routes: watch::Sender<Arc<Routes>>,
    metrics: Arc<Metrics>,
    /// What the process was started with, of what cannot change.
    fixed: Vec<(&'static str, String)>,
    stamp: Option<Stamp>,
    state: Mutex<State>,
}

struct State {
    text: String,
    outcome: Outcome,
}

impl Reloader {
    /// `loaded` is in force; other routes go to `routes`.
    pub fn new(loaded: &Loaded, routes: watch::Sender<Arc<Routes>>, metrics: Arc<Metrics>) -> Reloader {
        let (config, source, text) = (&loaded.config, loaded.source.clone(), loaded.text.clone());
        metrics.config_generation.set(1);
        let warnings = config.warnings.clone();
        let outcome = Outcome { changed: false, generation: 1, needs_restart: Vec::new(), warnings };
        let state = Mutex::new(State { text, outcome });
        Reloader { source, routes, metrics, fixed: fixed(config), stamp: loaded.stamp, state }
    }

    /// Reads the configuration anew. If there is a mistake in it, what is in force stays.
    pub fn reload(&self) -> Result<Outcome, Error> {
        let result = self.try_reload();
        let counted = match &result {
            Ok(outcome) if outcome.changed => "done",
            Ok(_) => "unchanged",
            Err(error) => {
                warn!(%error, "cannot use the changed configuration; the one before stays in force");
                "failed"
            }
        };
        self.metrics.config_reloads.with_label_values(&[counted]).inc();
        result
    }

    fn try_reload(&self) -> Result<Outcome, Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let text = self.source.read()?;
        if text == state.text {
            return Ok(Outcome { changed: false, ..state.outcome.clone() });
        }
        let mut config = self.source.resolve(&text)?;
        if let Some(routes) = Arc::get_mut(&mut config.routes) {
            routes.inherit(&self.routes.borrow());
        }
        let now = fixed(&config);
        let differs = self.fixed.iter().zip(&now).filter(|(was, is)| was != is);
        let needs_restart: Vec<&'static str> = differs.map(|(was, _)| was.0).collect();
        let generation = state.outcome.generation + 1;
        self.routes.send_replace(config.routes.clone());
        self.metrics.config_generation.set(generation as i64);
        info!(generation, routes = config.route_lines.len(), "configuration loaded anew");
        if !needs_restart.is_empty() {
            warn!(keys = needs_restart.join(", "), "these changes need a restart");
        }
        for warning in &config.warnings {
            warn!("{warning}");
        }
        let outcome = Outcome { changed: true, generation, needs_restart, warnings: config.warnings };
        *state = State { text, outcome: outcome.clone() };
        Ok(outcome)
    }

    /// Reloads when the file has changed and is not being written to any more. Never returns.
    pub async fn watch(&self) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        let (mut known, mut seen) = (self.stamp, None);
        loop {
            ticks.tick().await;
            // A file that is away is being replaced.
            let Some(now) = self.source.stamp() else { continue };
            if known == Some(now) {
                seen = None;
            } else if seen == Some(now) {
                (known, seen) = (Some(now), None);
                // What is wrong has been told.
                let _ = self.reload();
            } else {
                seen = Some(now);
            }
        }
    }
}

/// Everything that cannot change while running, by its key.
fn fixed(config: &Config) -> Vec<(&'static str, String)> {
    let of_routes = Limits::default();
    let limits = Limits {
        response_timeout: of_routes.response_timeout,
        body_idle: of_routes.body_idle,
        tunnel_idle: of_routes.tunnel_idle,
        ..config.limits.clone()
    };
    vec![
        ("name", config.name.clone()),
        ("listeners, port or host", format!("{:?}", config.listeners)),
        ("admin", config.admin.to_string()),
        ("serviceRegistryURL", config.registry.join(",")),
        ("workers", config.workers.to_string()),
        ("stateDir", format!("{:?}", config.state_dir)),
        (
            "health checks, outlierDetection, zones or slowStart",
            format!(
                "{:?}{:?}{:?}{:?}",
                config.health, config.probe_timeout, config.probe_method, config.probe_statuses
            ),
        ),
        ("connection limits and time-outs, maxConnections or drainGrace", format!("{limits:?}")),
        ("accessLog", format!("{:?}", config.access_log)),
        ("debugHeaders or serverTiming", format!("{:?}", config.telling)),
        ("tracing", format!("{:?}", config.tracing)),
    ]
}
