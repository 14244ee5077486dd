//! A whole system on one machine: registry nodes, balancers and sample backends as real processes.
//!
//! A process is data ([`ProcessSpec`]); a cluster is a directory. `cluster.json` in it names every process with
//! its pid and the moment that pid began, so that any program can open the directory, see who runs and signal
//! them, and never hits a stranger who was given an old pid. [`Cluster`] is the handle: the one who launched owns the
//! processes and ends them, whoever opens the directory later only acts on them.
//!
//! The binary re-executes itself for every process, with hidden subcommands that run the servers of the other
//! rooms. A program that uses this library does the same: it calls [`role_main`] first in its `main`.
//!
//! ```text
//! cli ──▶ cluster ──▶ ports, plan ──▶ spec        pure: who runs, with which arguments, on which ports
//!            │──────▶ state, process              cluster.json; spawning, signals, /proc
//!            └──────▶ status ──▶ http             what the processes say of themselves
//! roles ──▶ registry-node, balancer, backend      what a child process becomes
//! cli ──▶ bench ──▶ cluster                       figures, beside others of the kind
//! ```

pub mod backend;
mod bench;
mod cluster;
mod error;
mod http;
mod options;
mod plan;
mod ports;
mod process;
mod roles;
mod spec;
mod state;
mod status;

pub mod cli;

pub use cluster::Cluster;
pub use error::Error;
pub use options::{Lifetime, Options};
pub use plan::Error as PlanError;
pub use ports::{Error as PortError, Ports};
pub use process::{Exit, Pid};
pub use roles::role_main;
pub use spec::{Kind, ProcessSpec};
pub use status::{BackendStatus, BalancerStatus, NodeStatus, Role, Status};
