//! What to launch.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::Ports;

/// What to launch.
#[derive(Clone, Debug)]
pub struct Options {
    /// Registry nodes, 1 to 9.
    pub nodes: usize,
    /// Balancers, 0 to 9.
    pub balancers: usize,
    /// Sample backends, 0 to 90.
    pub backends: usize,
    /// Keeps everything here. `None`: a temporary directory that goes with the cluster.
    pub dir: Option<PathBuf>,
    /// How ports are chosen.
    pub ports: Ports,
    /// Whether the processes end with their owner.
    pub lifetime: Lifetime,
    /// What the sample backends register as.
    pub service: String,
    /// The balancers' strategy; `None` leaves it to their default.
    pub strategy: Option<String>,
    /// Appended to every node's arguments.
    pub node_args: Vec<String>,
    /// Appended to every balancer's arguments.
    pub balancer_args: Vec<String>,
    /// Appended to every sample backend's arguments.
    pub backend_args: Vec<String>,
    /// Added to every process's environment.
    pub env: BTreeMap<String, String>,
    /// The program that has the roles; `None`: the calling one, which then must call [`crate::role_main`].
    pub exe: Option<PathBuf>,
    /// How long [`crate::Cluster::wait_ready`] waits.
    pub ready_within: Duration,
    /// Is told what happens, in lines for people.
    pub progress: fn(&str),
}

impl Default for Options {
    /// The documented system: 3 nodes, 2 balancers, 3 backends of service `hello`.
    fn default() -> Options {
        Options {
            nodes: 3,
            balancers: 2,
            backends: 3,
            dir: None,
            ports: Ports::Default,
            lifetime: Lifetime::Owned,
            service: "hello".into(),
            strategy: None,
            node_args: Vec::new(),
            balancer_args: Vec::new(),
            backend_args: Vec::new(),
            env: BTreeMap::new(),
            exe: None,
            ready_within: Duration::from_secs(60),
            progress: |_| (),
        }
    }
}

/// Whether processes end with their owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lifetime {
    /// They end when the [`crate::Cluster`] is dropped, and also when its process is killed.
    #[default]
    Owned,
    /// They run until they are stopped.
    Detached,
}
