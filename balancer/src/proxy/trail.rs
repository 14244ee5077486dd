//! A request's place in its trace: the one that it came with goes on, or one begins here. Each attempt is a step of its own,
//! which the endpoint is told of.

use std::time::{Duration, SystemTime};

use super::account::{End, PATH_BYTES_MAX, Sender, TEXT_BYTES_MAX};
use super::http1::Request;
use crate::access::line::bounded;
use crate::pool::Endpoint;
use crate::trace::context::{Parent, SpanId, TraceId, state};
use crate::trace::{Kind, Span, Tracer, Value};

/// Whether a field says what this file writes anew.
pub fn is_ours(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"traceparent") || name.eq_ignore_ascii_case(b"tracestate")
}

/// The parent that a request names; two are none (§3.2.2 of the recommendation).
pub fn parent(request: &Request) -> Option<Parent> {
    let mut all = request.fields.iter().filter(|f| f.text.eq_ignore_ascii_case(b"traceparent"));
    match (all.next(), all.next()) {
        (Some(one), None) => Parent::parse(one.value),
        _ => None,
    }
}

/// See the file's head.
pub struct Trail {
    /// The step that the balancer is.
    here: Parent,
    came_from: Option<SpanId>,
    state: Vec<u8>,
    began: SystemTime,
    attempt: SpanId,
    attempts: u32,
    /// What is known of the request, if it is recorded.
    facts: Vec<(&'static str, Value)>,
    method: String,
    /// Steps that are over.
    spans: Vec<Span>,
}

impl Trail {
    /// Of a request whose head came just now.
    pub fn begin(request: &Request, from: &Sender<'_>, tracer: &Tracer) -> Trail {
        let came = parent(request);
        let here = match came {
            Some(parent) => Parent { span: SpanId::fresh(), ..parent },
            None => Parent {
                trace: TraceId::fresh(),
                span: SpanId::fresh(),
                is_sampled: tracer.samples(),
                is_random: true,
            },
        };
        let values =
            request.fields.iter().filter(|f| f.text.eq_ignore_ascii_case(b"tracestate")).map(|f| f.value);
        Trail {
            // Without a parent it belongs to nobody (§3.3).
            state: if came.is_some() { state(values) } else { Vec::new() },
            came_from: came.map(|parent| parent.span),
            began: SystemTime::now(),
            attempt: here.span,
            attempts: 0,
            facts: if here.is_sampled { facts(request, from) } else { Vec::new() },
            method: if here.is_sampled { request.method.to_string() } else { String::new() },
            spans: Vec::new(),
            here,
        }
    }

    /// The trace.
    pub fn trace(&self) -> TraceId {
        self.here.trace
    }

    /// An attempt begins.
    pub fn attempt(&mut self) {
        self.attempt = SpanId::fresh();
        self.attempts += 1;
    }

    /// Writes the fields that tell an endpoint of the current attempt.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"traceparent: ");
        Parent { span: self.attempt, ..self.here }.write(out);
        out.extend_from_slice(b"\r\n");
        if !self.state.is_empty() {
            out.extend_from_slice(b"tracestate: ");
            out.extend_from_slice(&self.state);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// The current attempt, which began `after` the request, has ended: with a status, or by what the endpoint did.
    pub fn attempted(
        &mut self,
        endpoint: &Endpoint,
        after: Duration,
        took: Duration,
        end: Result<u16, &str>,
    ) {
        if !self.here.is_sampled {
            return;
        }
        let mut attributes = vec![
            ("http.request.method", Value::Text(self.method.clone())),
            ("server.address", Value::Text(endpoint.address.host.clone())),
            ("server.port", Value::Number(i64::from(endpoint.address.port))),
            ("balancer.endpoint", Value::Text(endpoint.id.to_string())),
            ("balancer.service", Value::Text(endpoint.service.to_string())),
        ];
        if self.attempts > 1 {
            attributes.push(("http.request.resend_count", Value::Number(i64::from(self.attempts) - 1)));
        }
        if let Ok(status) = end {
            attributes.push(("http.response.status_code", Value::Number(i64::from(status))));
        }
        let error = match end {
            Ok(status) => (status >= 500).then(|| format!("status {status}")),
            Err(what) => Some(what.to_owned()),
        };
        let (parent, began) = (Some(self.here.span), self.began + after);
        let step = self.step(self.attempt, Kind::Client);
        self.spans.push(Span { parent, began, took, attributes, error, ..step });
    }

    /// The request has ended.
    pub fn ended(mut self, end: &End<'_>, took: Duration, reason: Option<&str>, tracer: &Tracer) {
        if !self.here.is_sampled {
            return;
        }
        let mut attributes = std::mem::take(&mut self.facts);
        attributes.push(("http.route", Value::Text(end.route.to_owned())));
        attributes.push(("http.response.status_code", Value::Number(i64::from(end.status))));
        attributes.push(("balancer.revision", Value::Number(end.revision as i64)));
        if let Some(reason) = reason {
            attributes.push(("balancer.reason", Value::Text(reason.to_owned())));
        }
        let error = match reason {
            _ if end.status >= 500 => Some(reason.map_or(format!("status {}", end.status), str::to_owned)),
            Some(cut @ ("upstream_broke" | "upstream_silent")) => Some(cut.to_owned()),
            _ => None,
        };
        let name = format!("{} {}", self.method, end.route);
        let step = self.step(self.here.span, Kind::Server);
        tracer.ended(Span { parent: self.came_from, name, took, attributes, error, ..step });
        self.spans.into_iter().for_each(|span| tracer.ended(span));
    }

    /// A step of this trace about which nothing else is known yet.
    fn step(&self, id: SpanId, kind: Kind) -> Span {
        Span {
            trace: self.here.trace,
            id,
            parent: None,
            state: String::from_utf8_lossy(&self.state).into_owned(),
            name: self.method.clone(),
            kind,
            began: self.began,
            took: Duration::ZERO,
            attributes: Vec::new(),
            error: None,
        }
    }
}

fn facts(request: &Request, from: &Sender<'_>) -> Vec<(&'static str, Value)> {
    let text = |bytes: &[u8], max| Value::Text(String::from_utf8_lossy(bounded(bytes, max)).into_owned());
    let mut facts = vec![
        ("http.request.method", Value::Text(request.method.to_string())),
        ("url.path", text(request.path().as_bytes(), PATH_BYTES_MAX)),
        ("url.scheme", Value::Text(from.scheme.to_owned())),
        ("client.address", text(from.address.as_bytes(), TEXT_BYTES_MAX)),
        ("network.protocol.version", Value::Text(from.protocol.trim_start_matches("HTTP/").to_owned())),
    ];
    if let Some(host) = request.host() {
        facts.push(("server.address", text(host, TEXT_BYTES_MAX)));
    }
    facts
}
