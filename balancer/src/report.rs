//! What the proxy tells the control side: one bounded, lossy channel of reports going up.
//!
//! Lossy, because a worker must never wait for the control side; a lost report costs one more failed attempt
//! somewhere, which is retried. Successes are not reported: the endpoints' own counters tell of them.

use std::time::Instant;

use tokio::sync::mpsc;

/// Reports that may wait. A control thread that falls this far behind needs no more evidence.
const QUEUED_MAX: usize = 1024;

/// How an endpoint failed a request. What a client did wrong is never a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing listens there.
    Refused,
    /// It could not be connected to in time, or not be reached.
    Unreachable,
    /// It broke off before or within its response, or answered what is not HTTP.
    Broke,
    /// It took the request and did not answer in time.
    Silent,
    /// It answered that it, or what stands behind it, cannot serve: 502, 503 or 504. Only told of where that counts.
    Gateway,
    /// A connection kept from an earlier request was reset: not held against it, but a reason to look.
    Reset,
}

/// One failure at one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The endpoint's key.
    pub endpoint: u64,
    /// What happened.
    pub failure: Failure,
    /// When the attempt began: what has been learned since then outweighs it.
    pub began: Instant,
}

/// The sending half, cheap to clone.
#[derive(Clone)]
pub struct Reporter {
    sender: mpsc::Sender<Report>,
    dropped: prometheus::IntCounter,
}

impl Reporter {
    /// Sends `report` unless the queue is full, and counts it if it is.
    pub fn report(&self, report: Report) {
        if self.sender.try_send(report).is_err() {
            self.dropped.inc();
        }
    }
}

/// The channel. `dropped` counts reports that found it full.
pub fn channel(dropped: prometheus::IntCounter) -> (Reporter, mpsc::Receiver<Report>) {
    let (sender, receiver) = mpsc::channel(QUEUED_MAX);
    (Reporter { sender, dropped }, receiver)
}
