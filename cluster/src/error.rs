//! Why something could not be done with a cluster: each says what, why, and what to do.

use std::{io, path::PathBuf, time::Duration};

use crate::plan;

/// Why something could not be done with a cluster, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory has no cluster.
    #[error("there is no cluster in {}; start one with `up`", dir.display())]
    NoCluster {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// It runs already.
    #[error("the cluster in {} is already running; see `status`, or end it with `down`", dir.display())]
    AlreadyUp {
        /// Where.
        dir: PathBuf,
    },
    /// The directory holds a cluster of another size.
    #[error(
        "{} holds a cluster of {has}, and {wanted} are asked for; leave out the numbers or choose another directory",
        dir.display()
    )]
    Layout {
        /// Where.
        dir: PathBuf,
        /// What it has.
        has: String,
        /// What is asked for.
        wanted: String,
    },
    /// It cannot be planned.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// Ports are part of a stored cluster: its members know each other by them.
    #[error(
        "port {port} of {owner} is taken, and the cluster in {} was built with it; free it or choose another directory",
        dir.display()
    )]
    PortTaken {
        /// Where.
        dir: PathBuf,
        /// Whose: `node-1 rest`.
        owner: String,
        /// Which.
        port: u16,
    },
    /// No such process.
    #[error("there is no {name} in this cluster; it has {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// It does not run.
    #[error("{name} is not running; start it with `start {name}`")]
    NotRunning {
        /// Which.
        name: String,
    },
    /// It runs.
    #[error("{name} is already running, pid {pid}")]
    Running {
        /// Which.
        name: String,
        /// Its pid.
        pid: i32,
    },
    /// No node leads now.
    #[error("no node says that it leads; see `status`: a majority of the nodes must run")]
    NoLeader,
    /// The owner died, so whatever is started would end at once.
    #[error("the program that started the cluster in {} is gone; start it again with `up --dir`", dir.display())]
    OwnerGone {
        /// Where.
        dir: PathBuf,
    },
    /// A process ended when it should have become ready.
    #[error("{name} ended ({how}); the end of its log {}:\n{tail}", log.display())]
    Died {
        /// Which.
        name: String,
        /// Exit status, as far as it is known.
        how: String,
        /// Where its output is.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// A process is not ready in time.
    #[error("{name} is not ready after {within:?} ({said}); the end of its log {}:\n{tail}", log.display())]
    NotReady {
        /// Which.
        name: String,
        /// How long was waited.
        within: Duration,
        /// Its last answer.
        said: String,
        /// Where its output is.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// Everyone is ready, but requests do not arrive everywhere.
    #[error("requests through {name} have not reached {missing} after {within:?} (last answer: {said})")]
    NotFlowing {
        /// The balancer.
        name: String,
        /// Instances that never answered.
        missing: String,
        /// How long was waited.
        within: Duration,
        /// The last answer.
        said: String,
    },
    /// It did not stop when told to, so it was killed.
    #[error("{name} did not stop within {within:?} of SIGTERM and was killed; see its log {}", log.display())]
    Stubborn {
        /// Which.
        name: String,
        /// How long was waited.
        within: Duration,
        /// Where its output is.
        log: PathBuf,
    },
    /// Even SIGKILL did not end it: it hangs in the kernel.
    #[error("{name}, pid {pid}, does not end")]
    Unkillable {
        /// Which.
        name: String,
        /// Its pid.
        pid: i32,
    },
    /// It could not be started.
    #[error("cannot start {name}")]
    Spawn {
        /// Which.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The directory cannot be used.
    #[error("cannot use {}", path.display())]
    Dir {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
