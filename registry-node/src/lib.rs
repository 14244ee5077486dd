//! A registry node: service records replicated with Raft, leases, watches, gRPC and REST.
//!
//! One registration runs down through the rooms: `api` (wire) → `registry` (use case) → `consensus` (replicate)
//! → `storage` (durable), and comes back through `catalog` (apply) to `watch` and `lease`. `offline` looks at what a stopped
//! node has left.

pub mod api;
pub mod catalog;
pub mod config;
pub mod consensus;
pub mod envelope;
pub mod latest;
pub mod lease;
pub mod metrics;
pub mod offline;
pub mod registry;
mod run;
#[doc(hidden)]
pub mod scope;
pub mod storage;
#[cfg(test)]
mod tidy;
pub mod watch;

pub use config::Args;
pub use run::main;
