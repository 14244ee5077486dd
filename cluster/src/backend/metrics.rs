//! What the sample backend counts, beside what flux counts of itself.

use prometheus::{Encoder as _, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// Its metrics; flux adds its own to the registry.
#[derive(Debug)]
pub(super) struct Metrics {
    pub registry: Registry,
    /// Requests by route (the template, not the raw path) and status.
    pub requests: IntCounterVec,
    /// Requests whose answer's head is not yet written.
    pub in_flight: IntGauge,
}

impl Metrics {
    pub(super) fn new() -> prometheus::Result<Metrics> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new("backend_requests_total", "Requests answered, by route and status"),
            &["route", "status"],
        )?;
        let in_flight = IntGauge::new("backend_in_flight", "Requests being answered")?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        Ok(Metrics { registry, requests, in_flight })
    }

    /// The text exposition format, version 0.0.4.
    pub(super) fn render(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
