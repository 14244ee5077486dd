//! One node's REST API, and nothing else: no redirects, no other node, no retries.
//!
//! Flux follows the leader wherever it is, which is what services want; a test also wants clients that stay where they
//! are. This one speaks proto3 JSON with its own few types, so it judges the wire as well.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::door::{Found, Trouble, Write};
use crate::history::{Consistency, Entry};
use crate::transcript::{Change, Event};

/// More than any answer of a run.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// The metadata key that carries a record's integer.
pub(super) const VALUE: &str = "value";

/// A client of one node.
#[derive(Clone, Debug)]
pub(super) struct Rest {
    base: String,
    call_timeout: Duration,
    http: Client<HttpConnector, Full<Bytes>>,
}

/// What a long poll brought.
#[derive(Debug)]
pub(super) enum Update {
    /// A part of a snapshot.
    Reset { revision: u64, instances: Vec<Entry>, more: bool },
    /// Changes.
    Events { revision: u64, events: Vec<Event> },
    /// Nothing new.
    Progress { revision: u64 },
}

impl Rest {
    /// A client of the node at `base`, as `http://127.0.0.1:8081`.
    pub(super) fn new(base: &str, call_timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(call_timeout));
        let http = Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build(connector);
        Self { base: base.to_owned(), call_timeout, http }
    }

    pub(super) async fn put(&self, write: &Write<'_>) -> Result<Found<Entry>, Trouble> {
        let body = json!({
            "id": write.key,
            "service": write.service,
            "host": "127.0.0.1",
            "port": 1,
            "url": "http://127.0.0.1:1",
            "ttlMs": write.ttl.as_millis() as u64,
            "metadata": { VALUE: write.value.to_string() },
        });
        let query = write.expected.map_or(String::new(), |expected| format!("?expected_revision={expected}"));
        let path = format!("/v1/instances/{}{query}", write.key);
        let answer: Answer = self.call(Method::PUT, &path, Some(body), self.call_timeout).await?;
        let entry =
            answer.instance.ok_or_else(|| Trouble::unknown("an answer without its instance"))?.entry();
        Ok(Found { revision: Some(entry.3), value: entry })
    }

    pub(super) async fn deregister(&self, key: &str, reg_rev: Option<u64>) -> Result<Found<bool>, Trouble> {
        let query = reg_rev.map_or(String::new(), |reg_rev| format!("?reg_rev={reg_rev}"));
        let path = format!("/v1/instances/{key}{query}");
        let answer: Answer = self.call(Method::DELETE, &path, None, self.call_timeout).await?;
        Ok(Found { revision: Some(answer.header.revision), value: answer.found })
    }

    pub(super) async fn renew(&self, key: &str, reg_rev: u64) -> Result<Found<bool>, Trouble> {
        let path = format!("/v1/instances/{key}/heartbeat?reg_rev={reg_rev}");
        match self.call::<Answer>(Method::POST, &path, None, self.call_timeout).await {
            Ok(answer) => Ok(Found { revision: Some(answer.header.revision), value: true }),
            Err(trouble) if trouble.code == "LEASE_LOST" => Ok(Found { revision: None, value: false }),
            Err(trouble) => Err(trouble),
        }
    }

    pub(super) async fn get(&self, key: &str) -> Result<Found<Option<Entry>>, Trouble> {
        let path = format!("/v1/instances/{key}");
        match self.call::<Answer>(Method::GET, &path, None, self.call_timeout).await {
            Ok(answer) => Ok(Found {
                revision: Some(answer.header.revision),
                value: Some(
                    answer
                        .instance
                        .ok_or_else(|| Trouble::unknown("an answer without its instance"))?
                        .entry(),
                ),
            }),
            Err(trouble) if trouble.code == "NOT_FOUND" => Ok(Found { revision: None, value: None }),
            Err(trouble) => Err(trouble),
        }
    }

    pub(super) async fn list(
        &self,
        service: Option<&str>,
        consistency: Consistency,
    ) -> Result<Found<Vec<Entry>>, Trouble> {
        let path = service.map_or("/v1/instances".into(), |service| format!("/v1/services/{service}"));
        let consistency = match consistency {
            Consistency::Linearizable => "linearizable",
            Consistency::Stale => "stale",
        };
        let path = format!("{path}?consistency={consistency}");
        let answer: Answer = self.call(Method::GET, &path, None, self.call_timeout).await?;
        let value = answer.instances.into_iter().map(Instance::entry).collect();
        Ok(Found { revision: Some(answer.header.revision), value })
    }

    /// The term it leads in, if the node says that it leads.
    pub(super) async fn leads(&self) -> Result<Option<u64>, Trouble> {
        let answer: Status = self.call(Method::GET, "/v1/status", None, self.call_timeout).await?;
        Ok((answer.role == "LEADER").then_some(answer.header.term))
    }

    /// One long poll. Without a position it begins with a snapshot.
    pub(super) async fn poll(
        &self,
        service: Option<&str>,
        position: Option<(&str, u64)>,
        wait: Duration,
    ) -> Result<(String, Vec<Update>), Trouble> {
        let mut path = format!("/v1/watch?wait={}s", wait.as_secs());
        if let Some(service) = service {
            path.push_str(&format!("&service={service}"));
        }
        if let Some((cluster_id, since)) = position {
            path.push_str(&format!("&cluster_id={cluster_id}&since={since}"));
        }
        let answer: Polled = self.call(Method::GET, &path, None, wait + self.call_timeout).await?;
        let mut cluster_id = String::new();
        let mut updates = Vec::new();
        for response in answer.updates {
            cluster_id.clone_from(&response.header.cluster_id);
            updates.push(response.update());
        }
        Ok((cluster_id, updates))
    }

    async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<serde_json::Value>,
        within: Duration,
    ) -> Result<A, Trouble> {
        let reads = method == Method::GET;
        let called = tokio::time::timeout(within, self.exchange(method, path, body)).await;
        let result = called.unwrap_or_else(|_| Err(Trouble::unknown(format!("no answer within {within:?}"))));
        result.map_err(|trouble| Trouble { no_effect: trouble.no_effect || reads, ..trouble })
    }

    async fn exchange<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> Result<A, Trouble> {
        let bytes = body.map_or(Bytes::new(), |body| Bytes::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(bytes))
            .map_err(|error| Trouble::refused(error.to_string()))?;
        let response = self.http.request(request).await.map_err(|error| {
            let text = format!(
                "{error}{}",
                std::error::Error::source(&error).map_or(String::new(), |s| format!(": {s}"))
            );
            if error.is_connect() { Trouble::refused(text) } else { Trouble::unknown(text) }
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| Trouble::unknown(error.to_string()))?.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| Trouble::unknown(format!("unreadable answer: {error}")));
        }
        Err(problem(status, &body))
    }
}

fn problem(status: StatusCode, body: &[u8]) -> Trouble {
    #[derive(Deserialize)]
    struct Problem {
        code: String,
        #[serde(default)]
        detail: String,
        #[serde(default)]
        had_no_effect: bool,
    }
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => Trouble {
            no_effect: problem.had_no_effect,
            message: format!("{status} {}: {}", problem.code, problem.detail),
            code: problem.code,
        },
        Err(_) => Trouble::unknown(format!("{status} without a problem document")),
    }
}

/// Proto3 JSON of the answers to writes and reads, their fields together: absent ones are empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Answer {
    header: Header,
    instance: Option<Instance>,
    instances: Vec<Instance>,
    found: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    header: Header,
    role: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Header {
    cluster_id: String,
    #[serde(deserialize_with = "number")]
    term: u64,
    #[serde(deserialize_with = "number")]
    revision: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Instance {
    id: String,
    metadata: std::collections::BTreeMap<String, String>,
    #[serde(deserialize_with = "number")]
    reg_rev: u64,
    #[serde(deserialize_with = "number")]
    mod_rev: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Polled {
    updates: Vec<Response>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Response {
    header: Header,
    reset: Option<Snapshot>,
    events: Option<Events>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Snapshot {
    instances: Vec<Instance>,
    more: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Events {
    events: Vec<WireEvent>,
}

#[derive(Debug, Deserialize)]
struct WireEvent {
    #[serde(deserialize_with = "number")]
    revision: u64,
    kind: WireChange,
    instance: Instance,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum WireChange {
    Put,
    Delete,
    Expire,
}

impl Instance {
    fn entry(self) -> Entry {
        let value = self.metadata.get(VALUE).and_then(|value| value.parse().ok());
        Entry(self.id, value, self.reg_rev, self.mod_rev)
    }
}

impl Response {
    fn update(self) -> Update {
        let revision = self.header.revision;
        if let Some(reset) = self.reset {
            let instances = reset.instances.into_iter().map(Instance::entry).collect();
            return Update::Reset { revision, instances, more: reset.more };
        }
        match self.events {
            None => Update::Progress { revision },
            Some(events) => {
                Update::Events { revision, events: events.events.into_iter().map(WireEvent::event).collect() }
            }
        }
    }
}

impl WireEvent {
    fn event(self) -> Event {
        let change = match self.kind {
            WireChange::Put => Change::Put,
            WireChange::Delete => Change::Delete,
            WireChange::Expire => Change::Expire,
        };
        Event { revision: self.revision, change, entry: self.instance.entry() }
    }
}

/// Proto3 JSON writes 64-bit numbers as strings, and readers accept both.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    match Either::deserialize(deserializer)? {
        Either::Number(number) => Ok(number),
        Either::Text(text) => text.parse().map_err(D::Error::custom),
    }
}
