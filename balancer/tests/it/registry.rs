//! A registry that knows two calls: who is a member (nobody) and `GET /v1/watch`, as long polls over HTTP/1.1. Following it over gRPC fails,
//! which is what makes a watch fall back.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// The fake. Dropping it ends it and all its connections.
pub struct Registry {
    pub address: SocketAddr,
    inner: Arc<Inner>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct Inner {
    catalog: Mutex<Catalog>,
    changed: Notify,
}

#[derive(Default)]
struct Catalog {
    cluster: u64,
    revision: u64,
    instances: BTreeMap<String, Value>,
    events: Vec<(u64, Value)>,
}

impl Registry {
    pub async fn start() -> Registry {
        Registry::on("127.0.0.1:0".parse().unwrap(), Arc::default()).await
    }

    async fn on(address: SocketAddr, inner: Arc<Inner>) -> Registry {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, inner.clone()));
        Registry { address, inner, server }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it. What it held is kept by what is returned.
    pub async fn stop(self) -> Stopped {
        self.server.abort();
        Stopped { address: self.address, inner: self.inner.clone() }
    }

    pub fn register(&self, id: &str, url: &str) {
        self.put(id, url, "UP");
    }

    pub fn put(&self, id: &str, url: &str, status: &str) {
        self.change(id, "PUT", |revision| {
            json!({"id": id, "service": "web", "url": url, "healthPath": "/health", "ttlMs": 30000,
                   "weight": 100, "status": status, "regRev": revision.to_string(),
                   "modRev": revision.to_string()})
        });
    }

    /// As [`Registry::register`], with further fields of an instance.
    pub fn register_as(&self, id: &str, url: &str, fields: &Value) {
        self.change(id, "PUT", |revision| {
            let mut instance = json!({"id": id, "service": "web", "url": url, "healthPath": "/health",
                "ttlMs": 30000, "weight": 100, "status": "UP", "regRev": revision.to_string(),
                "modRev": revision.to_string()});
            let known = instance.as_object_mut().unwrap();
            known.extend(fields.as_object().unwrap().clone());
            instance
        });
    }

    pub fn deregister(&self, id: &str) {
        self.change(id, "DELETE", |_| json!({"id": id, "service": "web"}));
    }

    /// Forgets everything, as a registry that lost its disks would.
    pub fn lose_everything(&self) {
        let mut catalog = self.inner.catalog.lock().unwrap();
        *catalog = Catalog { cluster: catalog.cluster + 1, revision: 1, ..Catalog::default() };
        drop(catalog);
        self.inner.changed.notify_waiters();
    }

    fn change(&self, id: &str, kind: &str, instance: impl FnOnce(u64) -> Value) {
        let mut catalog = self.inner.catalog.lock().unwrap();
        catalog.revision += 1;
        let revision = catalog.revision;
        let instance = instance(revision);
        match kind {
            "PUT" => drop(catalog.instances.insert(id.to_owned(), instance.clone())),
            _ => drop(catalog.instances.remove(id)),
        }
        let event = json!({"revision": revision.to_string(), "kind": kind, "instance": instance});
        catalog.events.push((revision, event));
        drop(catalog);
        self.inner.changed.notify_waiters();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A registry that is away.
pub struct Stopped {
    address: SocketAddr,
    inner: Arc<Inner>,
}

impl Stopped {
    /// Back at the same address with what it held.
    pub async fn restart(self) -> Registry {
        Registry::on(self.address, self.inner).await
    }
}

async fn serve(listener: TcpListener, inner: Arc<Inner>) {
    // Aborting the task drops the set, and with it every connection.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let inner = inner.clone();
        let service = service_fn(move |request| answer(inner.clone(), request));
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move { drop(connection.await) });
    }
}

async fn answer(inner: Arc<Inner>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    match request.uri().path() {
        "/v1/watch" => {}
        "/v1/members" => {
            let header = inner.catalog.lock().unwrap().header();
            return Ok(json_of(&json!({"header": header, "members": []})));
        }
        _ => {
            let mut response = Response::new(Full::from("only /v1/watch and /v1/members"));
            *response.status_mut() = http::StatusCode::NOT_FOUND;
            return Ok(response);
        }
    }
    let query = request.uri().query().unwrap_or_default();
    let field = |name: &str| {
        query
            .split('&')
            .filter_map(|p| p.split_once('='))
            .find(|(n, _)| *n == name)
            .map(|(_, v)| v.to_owned())
    };
    let since: u64 = field("since").and_then(|v| v.parse().ok()).unwrap_or(0);
    let cluster = field("cluster_id").unwrap_or_default();
    let wait = field("wait").and_then(|v| v.trim_end_matches("ms").trim_end_matches('s').parse().ok());
    let wait = Duration::from_secs(wait.unwrap_or(1).min(1));
    let updates = inner.poll(since, &cluster, wait).await;
    Ok(json_of(&json!({"updates": updates})))
}

fn json_of(value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(value.to_string()));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}

impl Inner {
    async fn poll(&self, since: u64, cluster: &str, wait: Duration) -> Vec<Value> {
        let changed = self.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let now = self.catalog.lock().unwrap().updates(since, cluster);
        if !now.is_empty() {
            return now;
        }
        let _ = tokio::time::timeout(wait, changed).await;
        let catalog = self.catalog.lock().unwrap();
        match catalog.updates(since, cluster) {
            none if none.is_empty() => vec![json!({"header": catalog.header(), "progress": {}})],
            some => some,
        }
    }
}

impl Catalog {
    fn header(&self) -> Value {
        json!({"clusterId": format!("fake-{}", self.cluster), "nodeId": "1", "term": "1",
               "revision": self.revision.to_string(), "ageMs": "0"})
    }

    fn updates(&self, since: u64, cluster: &str) -> Vec<Value> {
        if since == 0 || cluster != format!("fake-{}", self.cluster) {
            let instances: Vec<&Value> = self.instances.values().collect();
            let reset = json!({"instances": instances, "more": false, "first": true});
            return vec![json!({"header": self.header(), "reset": reset})];
        }
        let events: Vec<&Value> = self.events.iter().filter(|(r, _)| *r > since).map(|(_, e)| e).collect();
        if events.is_empty() {
            return Vec::new();
        }
        vec![json!({"header": self.header(), "events": {"events": events}})]
    }
}
