//! Spans on their way to a collector: OTLP over HTTP in protobuf, in batches, one at a time.

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prometheus::IntCounter;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Settings, Span, otlp};

/// Between looks at the queue. Nobody is woken for a span.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Spans sent at once; some hundred bytes each.
const BATCH_MAX: usize = 512;

/// For one batch to be taken; what the specification suggests.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tries of a batch that the collector cannot take now, with a pause before each but the first.
const TRIES_MAX: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// See the file's head.
pub struct Exporter {
    name: String,
    to: Uri,
    client: Client<HttpConnector, Full<Bytes>>,
    spans: mpsc::Receiver<Span>,
    dropped: IntCounter,
    is_failing: bool,
}

impl Exporter {
    /// Sends what comes over `spans` in the name of `name`. `dropped` counts what no collector took.
    pub fn new(
        settings: &Settings,
        name: &str,
        spans: mpsc::Receiver<Span>,
        dropped: IntCounter,
    ) -> Exporter {
        Exporter {
            name: name.to_owned(),
            to: settings.endpoint.clone(),
            client: Client::builder(TokioExecutor::new()).build(HttpConnector::new()),
            spans,
            dropped,
            is_failing: false,
        }
    }

    /// Runs until `stop`, and then sends what there is; that takes as long as a batch may.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let is_last = tokio::select! {
                () = stop.cancelled() => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            loop {
                let batch = self.batch();
                if batch.is_empty() {
                    break;
                }
                self.send(batch, &stop).await;
            }
            if is_last {
                return;
            }
        }
    }

    fn batch(&mut self) -> Vec<Span> {
        std::iter::from_fn(|| self.spans.try_recv().ok()).take(BATCH_MAX).collect()
    }

    async fn send(&mut self, batch: Vec<Span>, stop: &CancellationToken) {
        let spans = batch.len() as u64;
        let body = Bytes::from(otlp::request(&self.name, batch));
        let mut tries = 0;
        let why = loop {
            tries += 1;
            match self.post(body.clone()).await {
                Ok(()) => {
                    if std::mem::take(&mut self.is_failing) {
                        info!(collector = %self.to, "spans are taken again");
                    }
                    return;
                }
                Err(Failed { why, may_retry }) if !may_retry || tries == TRIES_MAX => break why,
                Err(Failed { why, .. }) => {
                    tokio::select! {
                        () = tokio::time::sleep(PAUSE * tries) => {}
                        () = stop.cancelled() => break why,
                    }
                }
            }
        };
        self.dropped.inc_by(spans);
        if !std::mem::replace(&mut self.is_failing, true) {
            warn!(collector = %self.to, why, "spans are lost until the collector takes them");
        }
    }

    async fn post(&self, body: Bytes) -> Result<(), Failed> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.to.clone();
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let answer = match tokio::time::timeout(PATIENCE, self.client.request(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Failed { why: reason(&error), may_retry: true }),
            Err(_) => return Err(Failed { why: format!("no answer within {PATIENCE:?}"), may_retry: true }),
        };
        let status = answer.status();
        // https://opentelemetry.io/docs/specs/otlp/#failures-1
        let may_retry = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        );
        match status.is_success() {
            true => Ok(()),
            false => Err(Failed { why: format!("it answered {status}"), may_retry }),
        }
    }
}

struct Failed {
    why: String,
    may_retry: bool,
}

/// The error's innermost source: the outer ones say that a request failed.
fn reason(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
