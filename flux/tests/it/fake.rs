//! A registry of a few lines: one catalog, one or more nodes that serve it over both protocols on one port.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use proto::registry::v1 as wire;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};
use wire::admin_server::{Admin, AdminServer};
use wire::pipeline_request::Call;
use wire::pipeline_response::Result as Reply;
use wire::registry_server::{Registry, RegistryServer};
use wire::watch_response::Kind;

/// How often an idle stream speaks. The contract says each second at least.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// What all nodes of one registry share.
#[derive(Clone)]
pub struct Catalog {
    state: Arc<Mutex<Records>>,
    revision: watch::Sender<u64>,
}

#[derive(Default)]
struct Records {
    cluster_id: String,
    instances: BTreeMap<String, wire::Instance>,
    history: Vec<wire::Event>,
    /// The writes, as they came.
    log: Vec<String>,
    /// Client and number of every write that came, applied or not.
    tickets: Vec<(String, u64)>,
    /// The reasons that writes of pipelines gave.
    reasons: Vec<String>,
}

/// One node.
#[derive(Clone)]
pub struct Node {
    pub address: SocketAddr,
    catalog: Catalog,
    knobs: Arc<Mutex<Knobs>>,
}

/// How a node misbehaves, and what it says of the cluster.
#[derive(Clone, Default)]
pub struct Knobs {
    pub id: u64,
    /// Whom it names as the leader.
    pub leader: Option<wire::Member>,
    /// Whom it names as members.
    pub members: Vec<wire::Member>,
    /// Refuses every call, naming the leader.
    pub unavailable: bool,
    /// Applies registrations and never answers them.
    pub mute_registrations: bool,
    /// So many registrations are refused: their numbers come too late.
    pub stale_registrations: usize,
    /// So many pipelines end at their first registration, which is applied and not answered.
    pub breaking_pipelines: usize,
    /// What the calls of pipelines are answered, one each, before any is carried out.
    pub refusals: VecDeque<wire::CallError>,
    /// What they are answered after that, if not what they ask for.
    pub refusal: Option<wire::CallError>,
    /// Calls that came through pipelines.
    pub piped: usize,
    /// Has applied nothing after this revision, and tells watchers so.
    pub stuck_at: Option<u64>,
    /// How long ago it last heard of a leader.
    pub age_ms: u64,
    /// Calls it has answered.
    pub answered: usize,
}

impl Catalog {
    pub fn new(cluster_id: &str) -> Catalog {
        let state = Records { cluster_id: cluster_id.to_owned(), ..Records::default() };
        Catalog { state: Arc::new(Mutex::new(state)), revision: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        self.state.lock().expect("no test panics while it holds the catalog")
    }

    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    pub fn ids(&self) -> Vec<String> {
        self.lock().instances.keys().cloned().collect()
    }

    pub fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    pub fn tickets(&self) -> Vec<(String, u64)> {
        self.lock().tickets.clone()
    }

    pub fn reasons(&self) -> Vec<String> {
        self.lock().reasons.clone()
    }

    /// Registers `id` as of the service `pay`, from nowhere.
    pub fn put(&self, id: &str) -> u64 {
        let instance = wire::Instance { id: id.into(), service: "pay".into(), ..Default::default() };
        self.register(instance).reg_rev
    }

    pub fn put_five(&self) {
        for n in 1..=5 {
            self.put(&format!("pay-{n}"));
        }
    }

    /// Lets a lease run out.
    pub fn expire(&self, id: &str) {
        self.remove(id, wire::event::Kind::Expire);
    }

    fn register(&self, mut instance: wire::Instance) -> wire::Instance {
        self.commit(|records, revision| {
            (instance.reg_rev, instance.mod_rev) = (revision, revision);
            records.log.push(format!("register {}", instance.id));
            records.instances.insert(instance.id.clone(), instance.clone());
            Some((wire::event::Kind::Put, instance.clone()))
        });
        instance
    }

    fn set_status(&self, request: &wire::SetStatusRequest) -> Option<wire::Instance> {
        self.commit(|records, revision| {
            let instance = records.instances.get_mut(&request.id)?;
            instance.status = request.status;
            instance.mod_rev = revision;
            let instance = instance.clone();
            let status = instance.status().as_str_name().to_lowercase();
            records.log.push(format!("{status} {}", request.id));
            Some((wire::event::Kind::Put, instance))
        })
    }

    fn remove(&self, id: &str, kind: wire::event::Kind) -> Option<wire::Instance> {
        self.commit(|records, _| {
            let gone = records.instances.remove(id)?;
            records.log.push(format!("{} {id}", kind.as_str_name().to_lowercase()));
            Some((kind, gone))
        })
    }

    /// Makes one change under the next revision, if there is one to make.
    fn commit(
        &self,
        change: impl FnOnce(&mut Records, u64) -> Option<(wire::event::Kind, wire::Instance)>,
    ) -> Option<wire::Instance> {
        let mut records = self.lock();
        let revision = self.revision() + 1;
        let (kind, instance) = change(&mut records, revision)?;
        records.history.push(wire::Event {
            revision,
            kind: kind.into(),
            instance: Some(instance.clone()),
            cause: None,
        });
        self.revision.send_replace(revision);
        Some(instance)
    }
}

impl Node {
    pub async fn start(catalog: &Catalog) -> Node {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let knobs = Knobs { id: 1, ..Knobs::default() };
        let node = Node { address, catalog: catalog.clone(), knobs: Arc::new(Mutex::new(knobs)) };
        let grpc = Routes::new(RegistryServer::new(node.clone())).add_service(AdminServer::new(node.clone()));
        let app = grpc.into_axum_router().merge(rest(node.clone()));
        tokio::spawn(async move { axum::serve(listener, app).await });
        node
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, change: impl FnOnce(&mut Knobs)) {
        change(&mut self.knobs.lock().expect("no test panics while it holds the knobs"));
    }

    pub fn knobs(&self) -> Knobs {
        self.knobs.lock().expect("no test panics while it holds the knobs").clone()
    }

    fn revision(&self) -> u64 {
        self.knobs().stuck_at.unwrap_or(u64::MAX).min(self.catalog.revision())
    }

    fn header(&self) -> Option<wire::ResponseHeader> {
        let knobs = self.knobs();
        Some(wire::ResponseHeader {
            cluster_id: self.catalog.lock().cluster_id.clone(),
            node_id: knobs.id,
            revision: self.revision(),
            leader: knobs.leader,
            age_ms: knobs.age_ms,
            ..Default::default()
        })
    }

    fn enter(&self) -> Result<(), Status> {
        let knobs = self.knobs();
        if !knobs.unavailable {
            self.set(|knobs| knobs.answered += 1);
            return Ok(());
        }
        let leader = knobs.leader.unwrap_or_default();
        let metadata = HashMap::from([
            ("retryable".to_owned(), "true".to_owned()),
            ("had_no_effect".to_owned(), "true".to_owned()),
            ("leader_grpc".to_owned(), leader.grpc),
            ("leader_rest".to_owned(), leader.rest),
        ]);
        let details = ErrorDetails::with_error_info("NOT_READY", "registry.v1", metadata);
        Err(Status::with_error_details(tonic::Code::Unavailable, "not ready", details))
    }

    fn note(&self, client: String, seq: u64) {
        self.catalog.lock().tickets.push((client, seq));
    }

    fn in_time(&self) -> Result<(), Status> {
        let left = self.knobs().stale_registrations;
        if left == 0 {
            return Ok(());
        }
        self.set(|knobs| knobs.stale_registrations = left - 1);
        let no = || "false".to_owned();
        let metadata = HashMap::from([("retryable".to_owned(), no()), ("had_no_effect".to_owned(), no())]);
        let details = ErrorDetails::with_error_info("STALE_SEQUENCE", "registry.v1", metadata);
        Err(Status::with_error_details(tonic::Code::FailedPrecondition, "stale sequence number", details))
    }

    fn gone(&self, id: &str) -> Status {
        let metadata: HashMap<String, String> = HashMap::new();
        let details = ErrorDetails::with_error_info("NOT_FOUND", "registry.v1", metadata);
        Status::with_error_details(tonic::Code::NotFound, format!("{id} is not registered"), details)
    }

    /// What a watcher at `after` of `cluster_id` is told next, if there is anything.
    fn news(&self, cluster_id: &str, after: u64, service: &str) -> Option<wire::WatchResponse> {
        let header = self.header().expect("there is always one");
        let records = self.catalog.lock();
        let wanted = |i: &wire::Instance| service.is_empty() || i.service == service;
        let kind = if cluster_id != records.cluster_id || after == 0 || after > header.revision {
            let instances = records.instances.values().filter(|i| wanted(i)).cloned().collect();
            Kind::Reset(wire::WatchReset { instances, more: false, first: true })
        } else {
            let reached = |e: &&wire::Event| e.revision > after && e.revision <= header.revision;
            let concerns = |e: &&wire::Event| e.instance.as_ref().is_some_and(&wanted);
            let events: Vec<_> = records.history.iter().filter(reached).filter(concerns).cloned().collect();
            if events.is_empty() {
                return None;
            }
            Kind::Events(wire::WatchEvents { events })
        };
        Some(wire::WatchResponse { header: Some(header), kind: Some(kind) })
    }

    fn progress(&self) -> wire::WatchResponse {
        wire::WatchResponse { header: self.header(), kind: Some(Kind::Progress(wire::WatchProgress {})) }
    }

    /// Answers the calls of a pipeline, until its end or the node's whim.
    async fn carry(
        self,
        mut requests: Streaming<wire::PipelineRequest>,
        out: mpsc::Sender<Result<wire::PipelineResponse, Status>>,
    ) {
        while let Ok(Some(wire::PipelineRequest { seq, call: Some(call) })) = requests.message().await {
            self.note_reason(&call);
            let (mut breaks, mut refusal) = (false, None);
            self.set(|knobs| {
                knobs.piped += 1;
                breaks = knobs.breaking_pipelines > 0 && matches!(call, Call::Register(_));
                knobs.breaking_pipelines -= usize::from(breaks);
                if !breaks {
                    refusal = knobs.refusals.pop_front().or_else(|| knobs.refusal.clone());
                }
            });
            let registers = matches!(call, Call::Register(_));
            let result = match refusal {
                Some(error) => {
                    self.note_call(&call);
                    Reply::Error(error)
                }
                None if breaks || registers && self.knobs().mute_registrations => {
                    let node = self.clone();
                    // Never answered if the node is mute, which the stream's other calls are not to feel.
                    let applied = tokio::spawn(async move { node.carry_out(call).await });
                    if !breaks {
                        continue;
                    }
                    let _ = applied.await;
                    return;
                }
                None => self.carry_out(call).await,
            };
            if out.send(Ok(wire::PipelineResponse { seq, result: Some(result) })).await.is_err() {
                return;
            }
        }
    }

    fn note_call(&self, call: &Call) {
        match call {
            Call::Register(call) => self.note(call.client.clone(), call.seq),
            Call::Deregister(call) => self.note(call.client.clone(), call.seq),
            Call::SetStatus(call) => self.note(call.client.clone(), call.seq),
            Call::Heartbeat(_) => {}
        }
    }

    fn note_reason(&self, call: &Call) {
        let reason = match call {
            Call::Register(call) => &call.why,
            Call::Deregister(call) => &call.why,
            Call::SetStatus(call) => &call.why,
            Call::Heartbeat(_) => return,
        };
        self.catalog.lock().reasons.push(reason.clone());
    }

    /// Whether a watch asks for more than this node has applied.
    fn is_behind(&self, cluster_id: &str, min_revision: u64) -> bool {
        cluster_id == self.catalog.lock().cluster_id && min_revision > self.revision()
    }

    async fn carry_out(&self, call: Call) -> Reply {
        let done = match call {
            Call::Register(call) => {
                self.register(Request::new(call)).await.map(|r| Reply::Register(r.into_inner()))
            }
            Call::Heartbeat(call) => {
                self.heartbeat(Request::new(call)).await.map(|r| Reply::Heartbeat(r.into_inner()))
            }
            Call::Deregister(call) => {
                self.deregister(Request::new(call)).await.map(|r| Reply::Deregister(r.into_inner()))
            }
            Call::SetStatus(call) => {
                self.set_status(Request::new(call)).await.map(|r| Reply::SetStatus(r.into_inner()))
            }
        };
        done.unwrap_or_else(|status| {
            Reply::Error(wire::CallError {
                code: status.get_details_error_info().map_or_else(String::new, |info| info.reason),
                message: status.message().to_owned(),
                retryable: status.code() == tonic::Code::Unavailable,
                had_no_effect: true,
            })
        })
    }

    async fn stream(self, open: wire::WatchOpen, out: mpsc::Sender<Result<wire::WatchResponse, Status>>) {
        let mut revisions = self.catalog.revision.subscribe();
        let (mut cluster_id, mut after) = (open.cluster_id, open.after_revision);
        loop {
            revisions.mark_unchanged();
            let message = match self.news(&cluster_id, after, &open.service) {
                Some(message) => message,
                None => {
                    let _ = tokio::time::timeout(PROGRESS_EVERY, revisions.changed()).await;
                    self.progress()
                }
            };
            let header = message.header.clone().unwrap_or_default();
            let stale = matches!(message.kind, Some(Kind::Progress(_))) && header.revision > after;
            if stale && self.news(&cluster_id, after, &open.service).is_some() {
                continue;
            }
            (cluster_id, after) = (header.cluster_id, header.revision);
            if out.send(Ok(message)).await.is_err() {
                return;
            }
        }
    }
}

type Answer<T> = Result<tonic::Response<T>, Status>;

#[tonic::async_trait]
impl Registry for Node {
    async fn register(&self, request: Request<wire::RegisterRequest>) -> Answer<wire::RegisterResponse> {
        self.enter()?;
        let request = request.into_inner();
        self.note(request.client, request.seq);
        self.in_time()?;
        let instance = self.catalog.register(request.instance.unwrap_or_default());
        if self.knobs().mute_registrations {
            std::future::pending::<()>().await;
        }
        Ok(wire::RegisterResponse { header: self.header(), instance: Some(instance) }.into())
    }

    async fn heartbeat(&self, request: Request<wire::HeartbeatRequest>) -> Answer<wire::HeartbeatResponse> {
        self.enter()?;
        let records = self.catalog.lock();
        let renewed = |beat: &wire::Beat| {
            records.instances.get(&beat.id).is_some_and(|i| beat.reg_rev == 0 || i.reg_rev == beat.reg_rev)
        };
        let result = |renewed| if renewed { wire::BeatResult::Renewed } else { wire::BeatResult::LeaseLost };
        let results = request.into_inner().beats.iter().map(|beat| result(renewed(beat)).into()).collect();
        drop(records);
        Ok(wire::HeartbeatResponse { header: self.header(), results }.into())
    }

    async fn deregister(
        &self,
        request: Request<wire::DeregisterRequest>,
    ) -> Answer<wire::DeregisterResponse> {
        self.enter()?;
        let request = request.into_inner();
        self.note(request.client, request.seq);
        let found = self.catalog.remove(&request.id, wire::event::Kind::Delete).is_some();
        Ok(wire::DeregisterResponse { header: self.header(), found }.into())
    }

    async fn set_status(&self, request: Request<wire::SetStatusRequest>) -> Answer<wire::SetStatusResponse> {
        self.enter()?;
        let request = request.into_inner();
        self.note(request.client.clone(), request.seq);
        let instance = self.catalog.set_status(&request).ok_or_else(|| self.gone(&request.id))?;
        Ok(wire::SetStatusResponse { header: self.header(), instance: Some(instance) }.into())
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Answer<wire::ListResponse> {
        self.enter()?;
        let service = request.into_inner().service;
        let all = self.catalog.lock().instances.clone();
        let wanted = |i: &wire::Instance| service.is_empty() || i.service == service;
        let instances = all.into_values().filter(wanted).collect();
        Ok(wire::ListResponse { header: self.header(), instances }.into())
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Answer<wire::GetResponse> {
        self.enter()?;
        let id = request.into_inner().id;
        let instance = self.catalog.lock().instances.get(&id).cloned();
        let instance = instance.ok_or_else(|| self.gone(&id))?;
        Ok(wire::GetResponse { header: self.header(), instance: Some(instance) }.into())
    }

    async fn history(&self, _: Request<wire::HistoryRequest>) -> Answer<wire::HistoryResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn list_services(
        &self,
        _: Request<wire::ListServicesRequest>,
    ) -> Answer<wire::ListServicesResponse> {
        self.enter()?;
        let mut services: BTreeMap<String, wire::ServiceSummary> = BTreeMap::new();
        for instance in self.catalog.lock().instances.values() {
            let summary = services.entry(instance.service.clone()).or_default();
            summary.name = instance.service.clone();
            summary.instances += 1;
            summary.up += u32::from(instance.status() != wire::instance::Status::Draining);
        }
        let services = services.into_values().collect();
        Ok(wire::ListServicesResponse { header: self.header(), services }.into())
    }

    type PipelineStream = Pin<Box<dyn Stream<Item = Result<wire::PipelineResponse, Status>> + Send>>;

    async fn pipeline(
        &self,
        requests: Request<Streaming<wire::PipelineRequest>>,
    ) -> Answer<Self::PipelineStream> {
        self.enter()?;
        let (out, stream) = mpsc::channel(64);
        tokio::spawn(self.clone().carry(requests.into_inner(), out));
        Ok(tonic::Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    type WatchStream = ReceiverStream<Result<wire::WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<wire::WatchRequest>>) -> Answer<Self::WatchStream> {
        self.enter()?;
        let mut requests = request.into_inner();
        let Some(wire::watch_request::Kind::Open(open)) = requests.message().await?.and_then(|r| r.kind)
        else {
            return Err(Status::invalid_argument("open first"));
        };
        if self.is_behind(&open.cluster_id, open.min_revision) {
            return Err(Status::unavailable("the watch needs more"));
        }
        let (out, stream) = mpsc::channel(4);
        tokio::spawn(self.clone().stream(open, out));
        Ok(ReceiverStream::new(stream).into())
    }
}

#[tonic::async_trait]
impl Admin for Node {
    async fn status(&self, _: Request<wire::StatusRequest>) -> Answer<wire::StatusResponse> {
        self.enter()?;
        let knobs = self.knobs();
        let leads = knobs.leader.is_some_and(|leader| leader.rest == self.url());
        let role = if leads { wire::member::Role::Leader } else { wire::member::Role::Follower };
        let status = wire::StatusResponse {
            header: self.header(),
            name: format!("node-{}", knobs.id),
            role: role.into(),
            ready: true,
            ..Default::default()
        };
        Ok(status.into())
    }

    async fn members(&self, _: Request<wire::MembersRequest>) -> Answer<wire::MembersResponse> {
        self.enter()?;
        Ok(wire::MembersResponse { header: self.header(), members: self.knobs().members }.into())
    }

    async fn add_learner(&self, _: Request<wire::AddLearnerRequest>) -> Answer<wire::MembersResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn promote(&self, _: Request<wire::PromoteRequest>) -> Answer<wire::MembersResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn remove_member(&self, _: Request<wire::RemoveMemberRequest>) -> Answer<wire::MembersResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn transfer_leadership(
        &self,
        _: Request<wire::TransferLeadershipRequest>,
    ) -> Answer<wire::TransferLeadershipResponse> {
        Err(Status::unimplemented("not here"))
    }

    type BackupStream = ReceiverStream<Result<wire::BackupResponse, Status>>;

    async fn backup(&self, _: Request<wire::BackupRequest>) -> Answer<Self::BackupStream> {
        Err(Status::unimplemented("not here"))
    }

    async fn restore(&self, _: Request<wire::RestoreRequest>) -> Answer<wire::RestoreResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn snapshot(&self, _: Request<wire::SnapshotRequest>) -> Answer<wire::SnapshotResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn release_leases(
        &self,
        _: Request<wire::ReleaseLeasesRequest>,
    ) -> Answer<wire::ReleaseLeasesResponse> {
        Err(Status::unimplemented("not here"))
    }
}

type Params = Query<HashMap<String, String>>;

/// The same calls as JSON.
fn rest(node: Node) -> Router {
    let instance = put(put_instance).get(get_instance).delete(delete_instance);
    Router::new()
        .route("/v1/instances/{id}", instance)
        .route("/v1/instances/{id}/heartbeat", post(beat))
        .route("/v1/instances/{id}/status", put(put_status))
        .route("/v1/instances", get(list))
        .route("/v1/services/{service}", get(list_service))
        .route("/v1/services", get(services))
        .route("/v1/members", get(members))
        .route("/v1/status", get(status))
        .route("/v1/watch", get(poll))
        .with_state(node)
}

fn number(params: &Params, name: &str) -> u64 {
    params.get(name).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn ticket(params: &Params) -> (String, u64) {
    (params.get("client").cloned().unwrap_or_default(), number(params, "seq"))
}

fn json<T: serde::Serialize>(answer: Answer<T>) -> Response {
    match answer {
        Ok(answer) => Json(answer.into_inner()).into_response(),
        Err(status) => {
            let info = status.get_details_error_info().expect("every refusal here carries one");
            let said = |key: &str| info.metadata.get(key).cloned().unwrap_or_default();
            let http = match status.code() {
                tonic::Code::NotFound => 404,
                tonic::Code::FailedPrecondition => 409,
                _ => 503,
            };
            problem(
                http,
                &serde_json::json!({
                    "title": status.message(), "code": info.reason,
                    "retryable": said("retryable") == "true",
                    "had_no_effect": said("had_no_effect") != "false",
                    "leader": {"grpc": said("leader_grpc"), "rest": said("leader_rest")},
                }),
            )
        }
    }
}

fn problem(status: u16, body: &serde_json::Value) -> Response {
    (StatusCode::from_u16(status).expect("a status"), body.to_string()).into_response()
}

async fn put_instance(
    State(node): State<Node>,
    Path(id): Path<String>,
    params: Params,
    Json(mut instance): Json<wire::Instance>,
) -> Response {
    instance.id = id;
    let (client, seq) = ticket(&params);
    let request = wire::RegisterRequest { instance: Some(instance), client, seq, ..Default::default() };
    json(node.register(Request::new(request)).await)
}

async fn get_instance(State(node): State<Node>, Path(id): Path<String>) -> Response {
    json(node.get(Request::new(wire::GetRequest { id, ..Default::default() })).await)
}

async fn delete_instance(State(node): State<Node>, Path(id): Path<String>, params: Params) -> Response {
    let (client, seq) = ticket(&params);
    let request = wire::DeregisterRequest { id, client, seq, ..Default::default() };
    json(node.deregister(Request::new(request)).await)
}

async fn beat(State(node): State<Node>, Path(id): Path<String>, params: Params) -> Response {
    let beats = vec![wire::Beat { id, reg_rev: number(&params, "reg_rev") }];
    let answer = node.heartbeat(Request::new(wire::HeartbeatRequest { beats })).await;
    match answer {
        Ok(answer) if answer.get_ref().results().next() == Some(wire::BeatResult::LeaseLost) => {
            problem(404, &serde_json::json!({"title": "lease lost", "code": "LEASE_LOST"}))
        }
        answer => json(answer),
    }
}

async fn put_status(
    State(node): State<Node>,
    Path(id): Path<String>,
    Json(mut request): Json<wire::SetStatusRequest>,
) -> Response {
    request.id = id;
    json(node.set_status(Request::new(request)).await)
}

async fn list(State(node): State<Node>) -> Response {
    json(Registry::list(&node, Request::new(wire::ListRequest::default())).await)
}

async fn list_service(State(node): State<Node>, Path(service): Path<String>) -> Response {
    json(Registry::list(&node, Request::new(wire::ListRequest { service, ..Default::default() })).await)
}

async fn services(State(node): State<Node>) -> Response {
    json(node.list_services(Request::new(wire::ListServicesRequest::default())).await)
}

async fn members(State(node): State<Node>) -> Response {
    json(Admin::members(&node, Request::new(wire::MembersRequest {})).await)
}

async fn status(State(node): State<Node>) -> Response {
    json(Admin::status(&node, Request::new(wire::StatusRequest {})).await)
}

async fn poll(State(node): State<Node>, params: Params) -> Response {
    if let Err(refused) = node.enter() {
        return json::<wire::GetResponse>(Err(refused));
    }
    let text = |name: &str| params.get(name).cloned().unwrap_or_default();
    if node.is_behind(&text("cluster_id"), number(&params, "min_revision")) {
        return problem(503, &serde_json::json!({"title": "the watch needs more", "code": "NOT_READY"}));
    }
    let news = || node.news(&text("cluster_id"), number(&params, "since"), &text("service"));
    let wait = text("wait").trim_end_matches('s').parse().map_or(Duration::ZERO, Duration::from_secs);
    let mut revisions = node.catalog.revision.subscribe();
    let message = match news() {
        Some(message) => message,
        None => {
            let _ = tokio::time::timeout(wait, revisions.changed()).await;
            news().unwrap_or_else(|| node.progress())
        }
    };
    Json(serde_json::json!({ "updates": [message] })).into_response()
}
