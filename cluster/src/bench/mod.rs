//! Measures the system: `cluster bench`. What it starts it stops, whichever way it ends.
//!
//! ```text
//! registry ──▶ load, etcd        what is measured; the load; who it is measured beside
//! balancer ──▶ (its own load, HAProxy, nginx)
//! deploys ───▶ (a whole system)
//!        └───▶ machine ──▶ report   what else the machine does; figures, bounds and verdicts (pure)
//! ```

mod balancer;
mod deploys;
mod etcd;
mod load;
mod machine;
mod registry;
mod report;

use anyhow::Result;
use clap::Subcommand;

pub(crate) use report::Report;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// The registry, beside etcd where it is installed: speed, memory, failover, scale.
    Registry(registry::Args),
    /// The balancer, beside HAProxy and nginx where they are installed: processor time, rate, latency, memory.
    Balancer(balancer::Args),
    /// Requests that fail while backends and balancers are killed, restarted and reconfigured: none.
    Deploys(deploys::Args),
}

impl Bench {
    /// Measures, and says on stderr how far it is.
    pub(crate) async fn run(&self, note: fn(&str)) -> Result<Report> {
        match self {
            Self::Registry(args) => registry::run(args, note).await,
            Self::Balancer(args) => balancer::run(args, note).await,
            Self::Deploys(args) => deploys::run(args, note).await,
        }
    }

    /// Whether a figure that misses its bound makes the command fail.
    pub(crate) fn checks(&self) -> bool {
        match self {
            Self::Registry(args) => args.check,
            Self::Balancer(args) => args.check,
            Self::Deploys(args) => args.check,
        }
    }
}
