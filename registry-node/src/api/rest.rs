//! The registry's own API as REST: the same messages as over gRPC, as proto3 JSON.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future, stream};
use proto::registry::v1 as pb;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::reply::Problem;
use super::request::{Message, Params, Segment, Via};
use super::{Api, convert, stall};
use crate::catalog::InstanceId;
use crate::registry::{Consistency, Error, Update, Watcher};

/// How long a watch waits if it does not say, and at most: proxies on the way give up after a minute.
const WAIT_DEFAULT: Duration = Duration::from_secs(30);
const WAIT_MAX: Duration = Duration::from_secs(55);

type Reply<T> = Result<Json<T>, Problem>;

/// Everything under `/v1`.
pub fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/instances", get(list_all))
        .route("/v1/instances/{id}", put(register).get(get_instance).delete(deregister))
        .route("/v1/instances/{id}/heartbeat", post(heartbeat))
        .route("/v1/instances/{id}/history", get(history))
        .route("/v1/instances/{id}/status", put(set_status))
        .route("/v1/services", get(services))
        .route("/v1/services/{service}", get(list_service))
        .route("/v1/watch", get(watch))
        .route("/v1/status", get(status))
        .route("/v1/members", get(members).post(add_learner))
        .route("/v1/members/{id}", delete(remove_member))
        .route("/v1/members/{id}/promote", post(promote))
        .route("/v1/leader/transfer", post(transfer))
        .route("/v1/snapshot", get(backup).post(snapshot))
        .route("/v1/snapshot/restore", post(restore))
        .route("/v1/leases/release", post(release_leases))
}

// ---- writes ----

/// Query of the writes.
#[derive(Deserialize)]
struct WriteQuery {
    expected_revision: Option<u64>,
    #[serde(default)]
    reg_rev: u64,
    #[serde(default)]
    by: String,
    #[serde(default)]
    why: String,
    #[serde(default)]
    client: String,
    #[serde(default)]
    seq: u64,
}

async fn register(
    State(api): State<Api>,
    Segment(id): Segment,
    Params(query): Params<WriteQuery>,
    via: Via,
    Message(mut instance): Message<pb::Instance>,
) -> Result<(StatusCode, Json<pb::RegisterResponse>), Problem> {
    if instance.id.is_empty() {
        instance.id = id;
    } else if instance.id != id {
        return Err(api.problem(convert::invalid("id", "in the body is not the path's")));
    }
    let spec = convert::spec(Some(instance), &api.limits).map_err(|error| api.problem(error))?;
    let WriteQuery { expected_revision, by, why, client, seq, .. } = query;
    let caller = convert::caller(by, why, client, seq, via.by("rest")).map_err(|error| api.problem(error))?;
    let answer =
        api.registry.register(spec, expected_revision, caller).await.map_err(|error| api.problem(error))?;
    let instance = Some(convert::instance(&answer.value));
    let header = Some(convert::header(&answer.header));
    Ok((StatusCode::CREATED, Json(pb::RegisterResponse { header, instance })))
}

async fn deregister(
    State(api): State<Api>,
    Segment(id): Segment,
    Params(query): Params<WriteQuery>,
    via: Via,
) -> Reply<pb::DeregisterResponse> {
    let id = instance_id(&api, id)?;
    let WriteQuery { reg_rev, by, why, client, seq, .. } = query;
    let caller = convert::caller(by, why, client, seq, via.by("rest")).map_err(|error| api.problem(error))?;
    let answer = api.registry.deregister(id, convert::reg_rev(reg_rev), caller).await;
    let answer = answer.map_err(|error| api.problem(error))?;
    Ok(Json(pb::DeregisterResponse { header: Some(convert::header(&answer.header)), found: answer.value }))
}

async fn heartbeat(
    State(api): State<Api>,
    Segment(id): Segment,
    Params(query): Params<WriteQuery>,
) -> Reply<pb::HeartbeatResponse> {
    let beat = (instance_id(&api, id.clone())?, convert::reg_rev(query.reg_rev));
    let answer = api.registry.heartbeat(vec![beat]).await.map_err(|error| api.problem(error))?;
    match answer.value[..] {
        [true] => Ok(Json(convert::heartbeat(answer))),
        _ => Err(Problem::lease_lost(&id)),
    }
}

async fn set_status(
    State(api): State<Api>,
    Segment(id): Segment,
    Params(query): Params<WriteQuery>,
    via: Via,
    Message(body): Message<pb::SetStatusRequest>,
) -> Reply<pb::SetStatusResponse> {
    if !body.id.is_empty() && body.id != id {
        return Err(api.problem(convert::invalid("id", "in the body is not the path's")));
    }
    let id = instance_id(&api, id)?;
    let status = convert::instance_status(body.status).map_err(|error| api.problem(error))?;
    let reg_rev = convert::reg_rev(if body.reg_rev == 0 { query.reg_rev } else { body.reg_rev });
    let pb::SetStatusRequest { by, why, client, seq, .. } = body;
    let caller = convert::caller(by, why, client, seq, via.by("rest")).map_err(|error| api.problem(error))?;
    let answer = api.registry.set_status(id, status, reg_rev, caller).await;
    let answer = answer.map_err(|error| api.problem(error))?;
    let instance = Some(convert::instance(&answer.value));
    Ok(Json(pb::SetStatusResponse { header: Some(convert::header(&answer.header)), instance }))
}

// ---- reads ----

/// Query of the reads.
#[derive(Deserialize)]
struct ReadQuery {
    #[serde(default)]
    consistency: Freshness,
    #[serde(default)]
    min_revision: u64,
    /// Lists only: as it was right after this revision.
    at: Option<u64>,
    /// Histories only.
    #[serde(default)]
    limit: u32,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Freshness {
    #[default]
    Linearizable,
    Stale,
}

impl From<Freshness> for Consistency {
    fn from(freshness: Freshness) -> Consistency {
        match freshness {
            Freshness::Linearizable => Consistency::Linearizable,
            Freshness::Stale => Consistency::Stale,
        }
    }
}

async fn list_all(State(api): State<Api>, Params(query): Params<ReadQuery>) -> Reply<pb::ListResponse> {
    list(&api, String::new(), query).await
}

async fn list_service(
    State(api): State<Api>,
    Segment(service): Segment,
    Params(query): Params<ReadQuery>,
) -> Reply<pb::ListResponse> {
    list(&api, service, query).await
}

async fn list(api: &Api, service: String, query: ReadQuery) -> Reply<pb::ListResponse> {
    let service = convert::service_filter(service).map_err(|error| api.problem(error))?;
    let answer = match query.at {
        None => api.registry.list(service, query.consistency.into(), query.min_revision).await,
        Some(revision) => api.registry.list_at(service, revision).await,
    };
    answer.map(|answer| Json(convert::list(answer))).map_err(|error| api.problem(error))
}

async fn get_instance(
    State(api): State<Api>,
    Segment(id): Segment,
    Params(query): Params<ReadQuery>,
) -> Reply<pb::GetResponse> {
    let id = instance_id(&api, id)?;
    let answer = api.registry.get(id.clone(), query.consistency.into(), query.min_revision).await;
    let answer = answer.map_err(|error| api.problem(error))?;
    let Some(record) = answer.value else {
        return Err(api.problem(Error::NotFound { id: id.to_string() }));
    };
    let header = Some(convert::header(&answer.header));
    Ok(Json(pb::GetResponse { header, instance: Some(convert::instance(&record)) }))
}

async fn history(
    State(api): State<Api>,
    Segment(id): Segment,
    Params(query): Params<ReadQuery>,
) -> Reply<pb::HistoryResponse> {
    let id = instance_id(&api, id)?;
    let limit = convert::history_limit(query.limit).map_err(|error| api.problem(error))?;
    let answer = api.registry.history(id, limit, query.consistency.into(), query.min_revision).await;
    answer.map(|answer| Json(convert::history(answer))).map_err(|error| api.problem(error))
}

async fn services(
    State(api): State<Api>,
    Params(query): Params<ReadQuery>,
) -> Reply<pb::ListServicesResponse> {
    let answer = api.registry.services(query.consistency.into(), query.min_revision).await;
    answer.map(|answer| Json(convert::services(answer))).map_err(|error| api.problem(error))
}

// ---- watch ----

/// Query of a watch.
#[derive(Deserialize)]
struct WatchQuery {
    #[serde(default)]
    service: String,
    #[serde(default)]
    cluster_id: String,
    since: Option<u64>,
    #[serde(default)]
    min_revision: u64,
    wait: Option<String>,
}

async fn watch(
    State(api): State<Api>,
    Params(query): Params<WatchQuery>,
    headers: HeaderMap,
    via: Via,
) -> Result<Response, Problem> {
    let wait = wait(query.wait.as_deref()).map_err(|error| api.problem(error))?;
    let service = convert::service_filter(query.service).map_err(|error| api.problem(error))?;
    let WatchQuery { cluster_id, since, min_revision, .. } = query;
    // A browser that reconnects asks for the same URL again: what it says besides is newer.
    let (cluster_id, since) = match last_event_id(&headers) {
        Some((cluster_id, revision)) => (cluster_id.to_owned(), Some(revision)),
        // Who names no cluster has asked no other: as with an ETag, what it holds is this one's. 0 is nothing held.
        None if cluster_id.is_empty() && since.is_some_and(|revision| revision > 0) => {
            (api.registry.header().cluster_id.to_string(), since)
        }
        None => (cluster_id, since),
    };
    let watcher = api.registry.watch(service, &cluster_id, since, min_revision, via.peer()).await;
    let watcher = watcher.map_err(|error| api.problem(error))?;
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.contains("text/event-stream") {
        let events = server_sent(api, watcher, via.stop());
        return Ok(Sse::new(stall::noticed(events)).into_response());
    }
    let update = long_poll(watcher, Instant::now() + wait, via.stop()).await;
    let update = update.map_err(|error| api.problem(error))?;
    let body = Body::from_stream(stall::noticed(polled(messages(&api, update))));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// The next update that is more than progress; at the deadline, or when this node stops, how far the client is.
async fn long_poll(
    mut watcher: Watcher,
    deadline: Instant,
    stop: CancellationToken,
) -> Result<Update, Error> {
    loop {
        match stop.run_until_cancelled(timeout_at(deadline, watcher.next())).await {
            Some(Ok(Ok(Update::Progress { .. }))) => {}
            Some(Ok(done)) => return done,
            Some(Err(_)) | None => return watcher.standing(),
        }
    }
}

/// What a long poll answers: `{"updates": [...]}`, one update in one message or more.
fn polled(
    messages: impl Iterator<Item = pb::WatchResponse> + Send,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    let messages = messages.zip(0_u64..).map(|(message, nth)| {
        let mut text = if nth == 0 { br#"{"updates":["#.to_vec() } else { b",".to_vec() };
        serde_json::to_writer(&mut text, &message).expect("our messages are JSON");
        Bytes::from(text)
    });
    stream::iter(messages.chain([Bytes::from_static(b"]}")]).map(Ok))
}

/// The messages of an update, each made when it is taken. Others may wait until all of a snapshot is.
fn messages(api: &Api, update: Update) -> impl Iterator<Item = pb::WatchResponse> + Send + use<> {
    let hurry = matches!(update, Update::Reset { .. }).then(stall::hurry);
    convert::watch_messages(&api.registry.header(), update).inspect(move |_| {
        let _as_long_as_this = &hurry;
    })
}

/// A watch as server-sent events, until this node stops or the client has to resume.
fn server_sent(
    api: Api,
    watcher: Watcher,
    stop: CancellationToken,
) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    stream::unfold((api, watcher, stop), async |(api, mut watcher, stop)| {
        let update = stop.run_until_cancelled(watcher.next()).await?.ok()?;
        Some((messages(&api, update), (api, watcher, stop)))
    })
    .flat_map(stream::iter)
    .map(|message| {
        let event = sse::Event::default();
        // Half a snapshot is nothing to resume from.
        let whole = !matches!(&message.kind, Some(pb::watch_response::Kind::Reset(reset)) if reset.more);
        let event = if whole { event.id(event_id(message.header.as_ref())) } else { event };
        Ok(event.json_data(&message).expect("our messages are JSON"))
    })
}

/// What a client that reconnects says of itself: what it holds, of which cluster.
fn event_id(header: Option<&pb::ResponseHeader>) -> String {
    header.map_or_else(String::new, |header| format!("{}:{}", header.cluster_id, header.revision))
}

/// What a client that reconnects holds: a cluster's id and a revision.
fn last_event_id(headers: &HeaderMap) -> Option<(&str, u64)> {
    let (cluster_id, revision) = headers.get("last-event-id")?.to_str().ok()?.rsplit_once(':')?;
    Some((cluster_id, revision.parse().ok()?))
}

fn wait(text: Option<&str>) -> Result<Duration, Error> {
    let Some(text) = text else { return Ok(WAIT_DEFAULT) };
    match humantime::parse_duration(text) {
        Ok(wait) => Ok(wait.min(WAIT_MAX)),
        Err(_) if text == "0" => Ok(Duration::ZERO),
        Err(_) => Err(convert::invalid("wait", "is no duration such as 30s")),
    }
}

// ---- operators ----

async fn status(State(api): State<Api>) -> Json<pb::StatusResponse> {
    Json(convert::node_status(&api.registry.header(), api.registry.status()))
}

async fn members(State(api): State<Api>) -> Reply<pb::MembersResponse> {
    let answer = api.registry.members();
    answer.map(|answer| Json(convert::members(answer))).map_err(|error| api.problem(error))
}

async fn add_learner(
    State(api): State<Api>,
    Message(member): Message<pb::Member>,
) -> Reply<pb::MembersResponse> {
    let member = convert::new_member(Some(member)).map_err(|error| api.problem(error))?;
    let answer = api.registry.add_learner(member).await;
    answer.map(|answer| Json(convert::members(answer))).map_err(|error| api.problem(error))
}

async fn promote(State(api): State<Api>, Segment(id): Segment) -> Reply<pb::MembersResponse> {
    let id = node_id(&api, &id)?;
    let answer = api.registry.promote(id).await;
    answer.map(|answer| Json(convert::members(answer))).map_err(|error| api.problem(error))
}

async fn remove_member(State(api): State<Api>, Segment(id): Segment) -> Reply<pb::MembersResponse> {
    let id = node_id(&api, &id)?;
    let answer = api.registry.remove_member(id).await;
    answer.map(|answer| Json(convert::members(answer))).map_err(|error| api.problem(error))
}

#[derive(Deserialize)]
struct TransferQuery {
    #[serde(default)]
    to: u64,
}

async fn transfer(
    State(api): State<Api>,
    Params(query): Params<TransferQuery>,
) -> Reply<pb::TransferLeadershipResponse> {
    let answer = api.registry.transfer((query.to != 0).then_some(query.to)).await;
    let answer = answer.map_err(|error| api.problem(error))?;
    Ok(Json(pb::TransferLeadershipResponse { header: Some(convert::header(&answer.header)) }))
}

async fn snapshot(State(api): State<Api>) -> Reply<pb::SnapshotResponse> {
    let answer = api.registry.snapshot().await.map_err(|error| api.problem(error))?;
    let header = Some(convert::header(&answer.header));
    Ok(Json(pb::SnapshotResponse { header, snapshot_index: answer.value }))
}

/// The bytes of a backup file.
async fn backup(State(api): State<Api>, via: Via) -> Result<Response, Problem> {
    let answer = api.registry.backup().await.map_err(|error| api.problem(error))?;
    let name = format!("attachment; filename=\"registry-{}.snapshot\"", answer.header.revision);
    let body = Body::from_stream(until_stopped(convert::backup(answer), via.stop()));
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_DISPOSITION, name)];
    Ok((headers, body).into_response())
}

/// The pieces of something long until this node stops, and then that it did.
pub fn until_stopped<T: Send>(
    pieces: impl Stream<Item = T> + Send,
    stop: CancellationToken,
) -> impl Stream<Item = io::Result<T>> + Send {
    let stopped = stream::once(async move {
        stop.cancelled_owned().await;
        Err(io::Error::other("this node stops"))
    });
    let pieces = pieces.map(Ok).map(Some).chain(stream::once(future::ready(None)));
    stream::select(stopped.map(Some), pieces).scan(false, |failed, piece| {
        let piece = piece.filter(|_| !*failed);
        *failed |= matches!(piece, Some(Err(_)));
        future::ready(piece)
    })
}

async fn restore(
    State(api): State<Api>,
    Message(request): Message<pb::RestoreRequest>,
) -> Reply<pb::RestoreResponse> {
    let records = convert::restored(request.instances, &api.limits);
    let records = records.map_err(|error| api.problem(error))?;
    let mode = convert::restore_mode(request.mode).map_err(|error| api.problem(error))?;
    let answer = api.registry.restore(records, mode).await;
    answer.map(|answer| Json(convert::restore(&answer))).map_err(|error| api.problem(error))
}

async fn release_leases(State(api): State<Api>) -> Reply<pb::ReleaseLeasesResponse> {
    let answer = api.registry.release_leases();
    answer.map(|answer| Json(convert::released(answer))).map_err(|error| api.problem(error))
}

fn instance_id(api: &Api, id: String) -> Result<InstanceId, Problem> {
    InstanceId::new(id).map_err(|invalid| api.problem(invalid))
}

fn node_id(api: &Api, id: &str) -> Result<u64, Problem> {
    id.parse().map_err(|_| api.problem(convert::invalid("id", "is no node id")))
}
