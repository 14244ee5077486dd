//! Traces: a request's place in one (W3C Trace Context), and what the balancer did in it (OpenTelemetry).
//!
//! Nobody waits for it. A worker notes the spans of requests that are sampled and puts them into a bounded queue;
//! a task on the control thread fetches them now and then and sends them to a collector. What finds the queue full, or
//! no collector, is dropped and counted (`balancer_spans_dropped_total`).
//!
//! # Why not the OpenTelemetry crates
//! They bring a dozen more, a model of spans that allocates and locks for requests that are not sampled, and threads of
//! their own. What is sent is eight small messages whose numbers never change: see [`otlp`].

use std::time::{Duration, SystemTime};

use prometheus::IntCounter;
use tokio::sync::mpsc;

pub mod context;
pub mod export;
pub mod otlp;

use context::{SpanId, TraceId};

/// Spans that may wait. At 40 000 sampled requests a second the queue is full when it is looked at next.
const QUEUED_MAX: usize = 8192;

/// What is to be traced.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The collector's address, for OTLP over HTTP: spans go to `/v1/traces` behind it.
    pub endpoint: http::Uri,
    /// The share of the traces begun here that are recorded, from 0 to 1. Callers' decisions are kept.
    pub sample_ratio: f64,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

/// What a span stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request that was served.
    Server,
    /// An attempt at an endpoint.
    Client,
}

/// One step of a trace that is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The trace.
    pub trace: TraceId,
    /// The step.
    pub id: SpanId,
    /// The step that it is a part of.
    pub parent: Option<SpanId>,
    /// The trace's `tracestate`.
    pub state: String,
    /// What is done, such as `GET /`.
    pub name: String,
    /// What it stands for.
    pub kind: Kind,
    /// When it began.
    pub began: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Facts, by the names of OpenTelemetry's semantic conventions where they have one.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// A worker's end of the queue, cheap to clone.
#[derive(Clone)]
pub struct Tracer {
    spans: mpsc::Sender<Span>,
    dropped: IntCounter,
    sample_ratio: f64,
}

impl Tracer {
    /// Whether a trace that begins here is recorded.
    pub fn samples(&self) -> bool {
        fastrand::f64() < self.sample_ratio
    }

    /// A step is over. Dropped and counted if the queue is full.
    pub fn ended(&self, span: Span) {
        if self.spans.try_send(span).is_err() {
            self.dropped.inc();
        }
    }
}

/// The queue.
pub fn channel(settings: &Settings, dropped: IntCounter) -> (Tracer, mpsc::Receiver<Span>) {
    let (spans, receiver) = mpsc::channel(QUEUED_MAX);
    (Tracer { spans, dropped, sample_ratio: settings.sample_ratio }, receiver)
}
