//! An HTTP load balancer that follows the service registry through flux.
//!
//! ```text
//!                 run (composition root) ── config ── metrics ── admin
//!                  │                  │
//!    control: discovery, probes,   proxy: workers: accept, route, pick, send, retry
//!    outliers → one Table             │
//!                  │    Arc<Table>    │
//!                  └──── table ─▶─────┤ route, picker
//!                  ◀──── report ──────┘
//! ```
//!
//! `control` and `proxy` never import each other: an immutable [`table::Table`] is swapped in going down, and
//! [`report::Report`]s go up through a bounded, lossy channel.

pub mod access;
pub mod admin;
pub mod config;
pub mod control;
pub mod metrics;
pub mod picker;
pub mod pool;
pub mod proxy;
pub mod report;
pub mod route;
mod run;
pub mod table;
pub mod trace;

pub use config::Args;
pub use run::main;
