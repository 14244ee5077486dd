//! Between the domain and the wire: messages both ways, and the one table of errors.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future, stream};
use proto::backup::Encoder;
use proto::registry::v1 as pb;
use tonic::Code;
use tonic_types::{ErrorDetails, StatusExt};

use crate::catalog::{
    Event, EventKind, InstanceId, NAME_BYTES_MAX, Origin, Provenance, Record, ServiceName, Spec, Status,
    WEIGHT_DEFAULT,
};
use crate::config::Limits;
use crate::lease::Beat;
use crate::registry::{
    Answer, Backup, Caller, Consistency, Error, Header, Member, NodeStatus, Past, RestoreMode, Restored,
    Role, ServiceSummary,
};
use crate::watch::Update;

/// Changes of one history: a screen or two, and at most what stays below a message's limit as a rule.
const HISTORY_DEFAULT: usize = 100;
const HISTORY_MAX: usize = 1_000;

/// How long a client had better wait before it repeats a call that could not be served: an election's length.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An error's place on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// For gRPC.
    pub grpc: Code,
    /// For REST.
    pub http: StatusCode,
    /// One phrase for all errors of the code.
    pub title: &'static str,
}

/// The table: what each error is in either protocol. UNAVAILABLE and 503 promise that nothing happened.
pub fn wire(error: &Error) -> Wire {
    let (grpc, http, title) = match error {
        Error::NotReady { .. } => (Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE, "not ready"),
        Error::NoLeader => (Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE, "no leader"),
        Error::Unknown { .. } => (Code::DeadlineExceeded, StatusCode::GATEWAY_TIMEOUT, "outcome unknown"),
        Error::NotFound { .. } => (Code::NotFound, StatusCode::NOT_FOUND, "not registered"),
        Error::Precondition { .. } => (Code::Aborted, StatusCode::PRECONDITION_FAILED, "precondition failed"),
        Error::Superseded { .. } => (Code::FailedPrecondition, StatusCode::CONFLICT, "superseded"),
        Error::StaleSequence => (Code::FailedPrecondition, StatusCode::CONFLICT, "stale sequence number"),
        Error::Compacted { .. } => (Code::OutOfRange, StatusCode::GONE, "no longer remembered"),
        Error::Refused { .. } => (Code::FailedPrecondition, StatusCode::CONFLICT, "refused as things are"),
        Error::Invalid { .. } => (Code::InvalidArgument, StatusCode::BAD_REQUEST, "invalid request"),
        Error::Overloaded { .. } => (Code::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS, "overloaded"),
        Error::DiskFull { .. } => (Code::ResourceExhausted, StatusCode::INSUFFICIENT_STORAGE, "disk full"),
        Error::Unsupported { .. } => (Code::Unimplemented, StatusCode::NOT_IMPLEMENTED, "not supported"),
    };
    Wire { grpc, http, title }
}

/// The error as a gRPC status, with `google.rpc.ErrorInfo` that says what a client may do and where the leader is.
pub fn status(error: &Error, leader: Option<&Member>) -> tonic::Status {
    let mut metadata = HashMap::from([
        ("retryable".to_owned(), error.is_retryable().to_string()),
        ("had_no_effect".to_owned(), error.had_no_effect().to_string()),
    ]);
    if let Some(leader) = leader {
        metadata.insert("leader_grpc".to_owned(), leader.grpc.clone());
        metadata.insert("leader_rest".to_owned(), leader.rest.clone());
    }
    let mut details = ErrorDetails::with_error_info(error.code(), "registry.v1", metadata);
    if error.is_retryable() {
        details.set_retry_info(Some(RETRY_AFTER));
    }
    if let Error::Invalid { field, why } = error {
        details.add_bad_request_violation(field, why);
    }
    tonic::Status::with_error_details(wire(error).grpc, error.to_string(), details)
}

/// The error of one call among many, which does not end their stream.
pub fn call_error(error: &Error) -> pb::CallError {
    pb::CallError {
        code: error.code().to_owned(),
        message: error.to_string(),
        retryable: error.is_retryable(),
        had_no_effect: error.had_no_effect(),
    }
}

// ---- requests ----

/// The spec of a request, checked; what the registry sets is ignored.
pub fn spec(instance: Option<pb::Instance>, limits: &Limits) -> Result<Spec, Error> {
    let instance = instance.ok_or_else(|| invalid("instance", "is missing"))?;
    let status = instance_status(instance.status)?;
    let spec = Spec {
        id: InstanceId::new(instance.id)?,
        service: ServiceName::new(instance.service)?,
        host: instance.host.into(),
        port: u16::try_from(instance.port).map_err(|_| invalid("port", "is over 65535"))?,
        url: instance.url.into(),
        health_path: instance.health_path.into(),
        ttl_ms: or_default(instance.ttl_ms, limits.ttl_default.as_millis() as u32),
        weight: or_default(instance.weight, WEIGHT_DEFAULT),
        zone: instance.zone.into(),
        version: instance.version.into(),
        tags: instance.tags,
        metadata: instance.metadata.into_iter().collect(),
        status,
    };
    spec.validate(limits)?;
    Ok(spec)
}

/// A status named in a request; unnamed it is up.
pub fn instance_status(status: i32) -> Result<Status, Error> {
    use pb::instance::Status as Wire;
    match Wire::try_from(status) {
        Ok(Wire::Unspecified | Wire::Up) => Ok(Status::Up),
        Ok(Wire::Draining) => Ok(Status::Draining),
        Ok(Wire::Maintenance) => Ok(Status::Maintenance),
        Err(_) => Err(invalid("status", "is none of UP, DRAINING, MAINTENANCE")),
    }
}

/// An empty name asks for all services.
pub fn service_filter(service: String) -> Result<Option<ServiceName>, Error> {
    match service.is_empty() {
        true => Ok(None),
        false => Ok(Some(ServiceName::new(service)?)),
    }
}

/// How fresh a read must be; unnamed it is linearizable.
pub fn consistency(consistency: i32) -> Result<Consistency, Error> {
    match pb::Consistency::try_from(consistency) {
        Ok(pb::Consistency::Unspecified | pb::Consistency::Linearizable) => Ok(Consistency::Linearizable),
        Ok(pb::Consistency::Stale) => Ok(Consistency::Stale),
        Err(_) => Err(invalid("consistency", "is neither LINEARIZABLE nor STALE")),
    }
}

/// One heartbeat.
pub fn beat(beat: pb::Beat) -> Result<Beat, Error> {
    Ok((InstanceId::new(beat.id)?, reg_rev(beat.reg_rev)))
}

/// Where the wire says 0 for "whichever".
pub fn reg_rev(reg_rev: u64) -> Option<u64> {
    (reg_rev != 0).then_some(reg_rev)
}

/// Who asks. A request that names nobody is `default_by`; one that names a client and a number may be repeated.
pub fn caller(
    by: String,
    why: String,
    client: String,
    seq: u64,
    default_by: String,
) -> Result<Caller, Error> {
    for (field, text) in [("by", &by), ("why", &why), ("client", &client)] {
        if text.len() > NAME_BYTES_MAX {
            return Err(invalid(field, format!("has {} bytes; {NAME_BYTES_MAX} are allowed", text.len())));
        }
    }
    if !client.is_empty() && seq == 0 {
        return Err(invalid("seq", "is 0: a client that names itself numbers its requests from 1"));
    }
    let by = if by.is_empty() { default_by } else { by };
    let origin = (!client.is_empty()).then(|| Origin { client: client.into(), seq });
    Ok(Caller { by, why, repeats: origin.is_some(), origin })
}

/// Records of a backup, each with who made it; nobody says so of one that was written by hand.
pub fn restored(instances: Vec<pb::Instance>, limits: &Limits) -> Result<Vec<(Spec, Provenance)>, Error> {
    let record = |mut instance: pb::Instance| {
        let pb::Provenance { by, why, at_ms } = instance.changed.take().unwrap_or_default();
        for (field, text) in [("changed.by", &by), ("changed.why", &why)] {
            if text.len() > NAME_BYTES_MAX {
                let why = format!("has {} bytes; {NAME_BYTES_MAX} are allowed", text.len());
                return Err(invalid(field, why));
            }
        }
        let id = instance.id.clone();
        let spec = spec(Some(instance), limits).map_err(|error| match error {
            Error::Invalid { field, why } => invalid(&format!("{field} of {id:?}"), why),
            other => other,
        })?;
        Ok((spec, Provenance { by: by.into(), why: why.into(), at_ms }))
    };
    instances.into_iter().map(record).collect()
}

/// What becomes of what is there; unsaid there must be nothing.
pub fn restore_mode(mode: i32) -> Result<RestoreMode, Error> {
    use pb::restore_request::Mode;
    match Mode::try_from(mode) {
        Ok(Mode::Unspecified) => Ok(RestoreMode::IntoEmpty),
        Ok(Mode::Keep) => Ok(RestoreMode::Keep),
        Ok(Mode::Replace) => Ok(RestoreMode::Replace),
        Err(_) => Err(invalid("mode", "is neither KEEP nor REPLACE")),
    }
}

/// What became of restored records.
pub fn restore(answer: &Answer<Restored>) -> pb::RestoreResponse {
    let Restored { restored, kept } = answer.value;
    pb::RestoreResponse { header: Some(header(&answer.header)), restored, kept }
}

/// The bytes of a backup file, in pieces; work is done only as they are taken.
pub fn backup(answer: Answer<Backup>) -> impl Stream<Item = Bytes> + Send + 'static {
    let Answer { header, value: Backup { catalog, index } } = answer;
    let head = pb::BackupHead {
        cluster_id: header.cluster_id.to_string(),
        revision: header.revision,
        index,
        term: header.term,
        taken_at_ms: SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64),
        node_id: header.node_id,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let (encoder, first) = Encoder::begin(&head);
    let records = catalog.list(None).into_iter();
    let rest = stream::unfold(Some((encoder, records)), async |state| {
        let (mut encoder, mut records) = state?;
        for record in records.by_ref() {
            if let Some(bytes) = encoder.record(instance(&record)) {
                return Some((Bytes::from(bytes), Some((encoder, records))));
            }
        }
        Some((Bytes::from(encoder.finish()), None))
    });
    stream::once(future::ready(Bytes::from(first))).chain(rest)
}

/// A member that is to join.
pub fn new_member(member: Option<pb::Member>) -> Result<Member, Error> {
    let member = member.ok_or_else(|| invalid("member", "is missing"))?;
    for (field, text) in [("peer", &member.peer), ("grpc", &member.grpc), ("rest", &member.rest)] {
        if text.is_empty() {
            return Err(invalid(field, "is empty; the member's full URL is expected"));
        }
    }
    if member.id == 0 {
        return Err(invalid("id", "is 0; node ids start at 1"));
    }
    let pb::Member { id, name, peer, grpc, rest, .. } = member;
    Ok(Member { id, name, peer, grpc, rest, role: Role::Learner })
}

/// The request says something that cannot be.
pub fn invalid(field: &str, why: impl Into<String>) -> Error {
    Error::Invalid { field: field.to_owned(), why: why.into() }
}

fn or_default(value: u32, default: u32) -> u32 {
    if value == 0 { default } else { value }
}

// ---- answers ----

/// The header of an answer.
pub fn header(header: &Header) -> pb::ResponseHeader {
    pb::ResponseHeader {
        cluster_id: header.cluster_id.to_string(),
        node_id: header.node_id,
        term: header.term,
        revision: header.revision,
        compact_revision: header.compact_revision,
        leader: header.leader.as_ref().map(member),
        age_ms: header.age.as_millis() as u64,
    }
}

/// A record.
pub fn instance(record: &Record) -> pb::Instance {
    let spec = &record.spec;
    pb::Instance {
        id: spec.id.as_str().to_owned(),
        service: spec.service.as_str().to_owned(),
        host: spec.host.as_str().to_owned(),
        port: spec.port.into(),
        url: spec.url.as_str().to_owned(),
        health_path: spec.health_path.as_str().to_owned(),
        ttl_ms: spec.ttl_ms,
        weight: spec.weight,
        zone: spec.zone.as_str().to_owned(),
        version: spec.version.as_str().to_owned(),
        tags: spec.tags.clone(),
        metadata: spec.metadata.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        status: wire_status(spec.status).into(),
        reg_rev: record.reg_rev,
        mod_rev: record.mod_rev,
        changed: Some(provenance(&record.changed)),
    }
}

/// Records.
pub fn instances(records: &[Arc<Record>]) -> Vec<pb::Instance> {
    records.iter().map(|record| instance(record)).collect()
}

/// A member, in an answer.
pub fn member(from: &Member) -> pb::Member {
    pb::Member {
        id: from.id,
        name: from.name.clone(),
        peer: from.peer.clone(),
        grpc: from.grpc.clone(),
        rest: from.rest.clone(),
        role: role(from.role).into(),
    }
}

/// All members.
pub fn members(answer: Answer<Vec<Member>>) -> pb::MembersResponse {
    pb::MembersResponse {
        header: Some(header(&answer.header)),
        members: answer.value.iter().map(member).collect(),
    }
}

/// Records as the answer to a list.
pub fn list(answer: Answer<Vec<Arc<Record>>>) -> pb::ListResponse {
    pb::ListResponse { header: Some(header(&answer.header)), instances: instances(&answer.value) }
}

/// What became of an instance.
pub fn history(answer: Answer<Past>) -> pb::HistoryResponse {
    let Past { record, events, more, .. } = &answer.value;
    let change = |from: &Event| {
        let previous = from.previous.as_ref().map(|record| instance(record));
        pb::Change { event: Some(event(from)), previous }
    };
    pb::HistoryResponse {
        header: Some(header(&answer.header)),
        instance: record.as_ref().map(|record| instance(record)),
        changes: events.iter().map(change).collect(),
        more: *more,
    }
}

/// How many changes of a history are answered; unsaid a hundred.
pub fn history_limit(limit: u32) -> Result<usize, Error> {
    match limit {
        0 => Ok(HISTORY_DEFAULT),
        limit if limit as usize <= HISTORY_MAX => Ok(limit as usize),
        limit => Err(invalid("limit", format!("is {limit}; at most {HISTORY_MAX} are answered"))),
    }
}

/// Services, counted.
pub fn services(answer: Answer<Vec<ServiceSummary>>) -> pb::ListServicesResponse {
    let summary = |service: ServiceSummary| pb::ServiceSummary {
        name: service.name.into(),
        instances: service.instances as u32,
        up: service.up as u32,
    };
    let services = answer.value.into_iter().map(summary).collect();
    pb::ListServicesResponse { header: Some(header(&answer.header)), services }
}

/// One result a heartbeat.
pub fn heartbeat(answer: Answer<Vec<bool>>) -> pb::HeartbeatResponse {
    pb::HeartbeatResponse { header: Some(header(&answer.header)), results: beat_results(answer.value) }
}

/// Whether leases were renewed.
pub fn beat_results(renewed: Vec<bool>) -> Vec<i32> {
    let result = |renewed| if renewed { pb::BeatResult::Renewed } else { pb::BeatResult::LeaseLost };
    renewed.into_iter().map(|renewed| result(renewed).into()).collect()
}

/// What a node says of itself.
pub fn node_status(head: &Header, status: NodeStatus) -> pb::StatusResponse {
    pb::StatusResponse {
        header: Some(header(head)),
        name: status.node.name.clone(),
        node: Some(member(&status.node)),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        role: role(status.role).into(),
        applied_index: status.applied_index,
        committed_index: status.committed_index,
        last_log_index: status.last_log_index,
        snapshot_index: status.snapshot_index,
        purged_index: status.purged_index,
        instances: status.instances as u64,
        watchers: status.watchers as u64,
        ready: status.not_ready.is_none(),
        not_ready_reason: status.not_ready.unwrap_or_default(),
        catalog_hash: format!("{:016x}", status.catalog_hash),
        alarm: status.alarm.unwrap_or_default(),
        disk_slow: status.disk_slow.unwrap_or_default(),
    }
}

/// An update as messages of a stream: a snapshot in parts, or whole revisions. Each message's header says which
/// revision its receiver holds after it, and each is made when it is taken: of a snapshot, which all who are sent it
/// share, no more than a part exists for one of them.
pub fn watch_messages(
    head: &Header,
    update: Update,
) -> impl Iterator<Item = pb::WatchResponse> + Send + use<> {
    let header = pb::ResponseHeader { revision: update.revision(), ..header(head) };
    let messages = if let Update::Reset { snapshot, .. } = &update { snapshot.parts() } else { 1 };
    (0..messages).map(move |nth| pb::WatchResponse {
        header: Some(header.clone()),
        kind: Some(watch_message(&update, nth)),
    })
}

fn watch_message(update: &Update, nth: usize) -> pb::watch_response::Kind {
    use pb::watch_response::Kind;
    match update {
        Update::Reset { snapshot, .. } => {
            let (first, more) = snapshot.place(nth);
            Kind::Reset(pb::WatchReset { instances: instances(snapshot.part(nth)), more, first })
        }
        Update::Events { batches, .. } => {
            let events = batches.iter().flat_map(|shared| &shared.batch().events).map(event).collect();
            Kind::Events(pb::WatchEvents { events })
        }
        Update::Progress { .. } => Kind::Progress(pb::WatchProgress {}),
    }
}

/// How many leases were let go.
pub fn released(answer: Answer<usize>) -> pb::ReleaseLeasesResponse {
    pb::ReleaseLeasesResponse { header: Some(header(&answer.header)), released: answer.value as u64 }
}

/// An event.
pub fn event(event: &Event) -> pb::Event {
    use pb::event::Kind;
    let kind = match event.kind {
        EventKind::Put => Kind::Put,
        EventKind::Delete => Kind::Delete,
        EventKind::Expire => Kind::Expire,
    };
    pb::Event {
        revision: event.revision,
        kind: kind.into(),
        instance: Some(instance(&event.record)),
        cause: Some(provenance(&event.cause)),
    }
}

fn provenance(from: &Provenance) -> pb::Provenance {
    let Provenance { by, why, at_ms } = from;
    pb::Provenance { by: by.as_str().to_owned(), why: why.as_str().to_owned(), at_ms: *at_ms }
}

fn wire_status(status: Status) -> pb::instance::Status {
    match status {
        Status::Up => pb::instance::Status::Up,
        Status::Draining => pb::instance::Status::Draining,
        Status::Maintenance => pb::instance::Status::Maintenance,
    }
}

fn role(role: Role) -> pb::member::Role {
    match role {
        Role::Leader => pb::member::Role::Leader,
        Role::Follower => pb::member::Role::Follower,
        Role::Learner => pb::member::Role::Learner,
        Role::Candidate => pb::member::Role::Candidate,
    }
}

#[cfg(test)]
mod tests;
