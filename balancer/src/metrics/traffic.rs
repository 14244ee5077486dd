//! What all series of requests come to, for who looks without a time-series database behind.

use std::collections::BTreeMap;

use prometheus::proto::{Metric, MetricFamily};
use serde::Serialize;

/// Requests answered since the start, backends that have gone included.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Traffic {
    /// All of them.
    pub requests: u64,
    /// By the first digit of their status: `2xx`.
    pub by_class: BTreeMap<String, u64>,
    /// By the route that took them.
    pub by_route: BTreeMap<String, RouteTraffic>,
    /// How long they took: for each bound how many took no longer.
    pub durations: Vec<Bucket>,
}

/// Requests of one route.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RouteTraffic {
    /// All of them.
    pub requests: u64,
    /// Those answered with a status from 500 on.
    pub errors: u64,
}

/// A bucket of a cumulative histogram.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bucket {
    /// Its bound.
    pub le_seconds: f64,
    /// Requests that took no longer.
    pub count: u64,
}

impl Traffic {
    /// Adds every series of `families`, histograms with the labels `path` and `status`.
    pub(super) fn add_all(&mut self, families: &[MetricFamily]) {
        families.iter().flat_map(MetricFamily::get_metric).for_each(|metric| self.add(metric));
    }

    /// Adds one such series.
    pub(super) fn add(&mut self, metric: &Metric) {
        let label = |name: &str| {
            metric.get_label().iter().find(|l| l.name() == name).map(|l| l.value()).unwrap_or_default()
        };
        let (histogram, status) = (metric.get_histogram(), label("status"));
        let count = histogram.get_sample_count();
        self.requests += count;
        *self.by_class.entry(format!("{}xx", status.get(..1).unwrap_or_default())).or_default() += count;
        let route = self.by_route.entry(label("path").to_owned()).or_default();
        route.requests += count;
        route.errors += if status.starts_with('5') { count } else { 0 };
        for (i, bucket) in histogram.get_bucket().iter().enumerate() {
            match self.durations.get_mut(i) {
                Some(known) => known.count += bucket.cumulative_count(),
                None => self
                    .durations
                    .push(Bucket { le_seconds: bucket.upper_bound(), count: bucket.cumulative_count() }),
            }
        }
    }
}
