//! What the SDK counts. The first three names are the original's; label values are closed sets.

use std::time::Instant;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::{Error, Transport};

#[cfg(test)]
mod tests;

/// All metrics of one client.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Attempts of calls, each counted where it ends.
    calls: IntCounterVec,
    /// How long an attempt took.
    duration: HistogramVec,
    /// 1 while the lease of a registration is acknowledged, else 0.
    pub(crate) registrar_state: IntGaugeVec,
    /// The revision a watch holds.
    pub(crate) watch_revision: IntGaugeVec,
    /// Watches that are connected.
    pub(crate) watch_connected: IntGaugeVec,
}

/// What a call does, as a label. `list` bears the original's name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    Register,
    Heartbeat,
    Deregister,
    List,
    SetStatus,
    Get,
    ListServices,
    Members,
    Status,
    ChangeMembers,
    History,
    Restore,
    Snapshot,
    ReleaseLeases,
}

/// One attempt under way.
pub(crate) struct CallTimer<'a> {
    metrics: &'a Metrics,
    operation: &'static str,
    protocol: &'static str,
    begun: Instant,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let labels = ["operation", "protocol", "status"];
        let calls =
            Opts::new("flux_registry_calls_total", "Calls to the registry, by outcome of each attempt");
        let duration = HistogramOpts::new(
            "flux_registry_call_duration_seconds",
            "Duration of calls to the registry, each attempt by itself",
        );
        let state = Opts::new("flux_registrar_state", "1 while the registration is acknowledged, else 0");
        let revision = Opts::new("flux_watch_revision", "Revision that the watch holds");
        let connected = Opts::new("flux_watch_connected", "Watches that are connected, by protocol");
        let valid = "names and labels are valid";
        Metrics {
            calls: IntCounterVec::new(calls, &labels).expect(valid),
            duration: HistogramVec::new(duration, &labels).expect(valid),
            registrar_state: IntGaugeVec::new(state, &["instance_id", "service_name"]).expect(valid),
            watch_revision: IntGaugeVec::new(revision, &["service"]).expect(valid),
            watch_connected: IntGaugeVec::new(connected, &["transport"]).expect(valid),
        }
    }

    /// Puts all of them into `registry`. Fails if another client's are there already.
    pub(crate) fn expose(&self, registry: &Registry) -> Result<(), Error> {
        let all: [Box<dyn prometheus::core::Collector>; 5] = [
            Box::new(self.calls.clone()),
            Box::new(self.duration.clone()),
            Box::new(self.registrar_state.clone()),
            Box::new(self.watch_revision.clone()),
            Box::new(self.watch_connected.clone()),
        ];
        for collector in all {
            registry.register(collector).map_err(|error| {
                Error::invalid(format!("{error}: clone one client instead of making two with one registry"))
            })?;
        }
        Ok(())
    }

    pub(crate) fn call(&self, operation: Operation, transport: Transport) -> CallTimer<'_> {
        let protocol = if transport == Transport::Rest { "http" } else { "grpc" };
        CallTimer { metrics: self, operation: operation.as_str(), protocol, begun: Instant::now() }
    }
}

impl CallTimer<'_> {
    pub(crate) fn done(self, success: bool) {
        let labels = [self.operation, self.protocol, if success { "success" } else { "failure" }];
        self.metrics.calls.with_label_values(&labels).inc();
        self.metrics.duration.with_label_values(&labels).observe(self.begun.elapsed().as_secs_f64());
    }
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Operation::Register => "register",
            Operation::Heartbeat => "heartbeat",
            Operation::Deregister => "deregister",
            Operation::List => "get_healthy_services",
            Operation::SetStatus => "set_status",
            Operation::Get => "get",
            Operation::ListServices => "list_services",
            Operation::Members => "members",
            Operation::Status => "status",
            Operation::ChangeMembers => "change_members",
            Operation::History => "history",
            Operation::Restore => "restore",
            Operation::Snapshot => "snapshot",
            Operation::ReleaseLeases => "release_leases",
        }
    }
}
