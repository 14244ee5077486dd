//! The original's API, REST and gRPC, as its unmodified clients expect it; the contract is in `proto/README.md`.
//!
//! Those clients know one URL, give up after 5 s and look at nothing but the status. So this node answers for the
//! leader wherever that is, waits through an election, and never says 200 with a list it is not sure of. A client
//! whose lease is gone is told so, and registers again.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use proto::legacy as pb;
use proto::legacy::service_registry_server::{ServiceRegistry, ServiceRegistryServer};
use serde::{Deserialize, Serialize};
use tonic::{Request, Response, Status as GrpcStatus};

use super::reply::Problem;
use super::request::{Connection, Message, Segment, Via, default_by};
use super::{Api, convert};
use crate::catalog::{InstanceId, Record, ServiceName, Spec, Status};
use crate::config::Limits;
use crate::registry::{Answer, Caller, Consistency, Error};

/// Everything under `/api/v1/services`.
pub fn routes() -> Router<Api> {
    Router::new()
        .route("/api/v1/services", get(list_all))
        .route("/api/v1/services/", get(list_all))
        .route("/api/v1/services/register", post(register))
        .route("/api/v1/services/heartbeat/{id}", post(heartbeat))
        .route("/api/v1/services/deregister/{id}", delete(deregister))
        .route("/api/v1/services/{service}/healthy", get(list_service))
}

/// The gRPC service.
pub fn grpc(api: &Api) -> ServiceRegistryServer<Api> {
    ServiceRegistryServer::new(api.clone()).max_decoding_message_size(api.limits.message_bytes_max)
}

/// An instance in requests. Anything may be missing or null, and unknown fields are ignored: the check names the
/// field that is missed, as the parser would not.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Registration {
    id: Option<String>,
    service_name: Option<String>,
    host: Option<String>,
    port: Option<i64>,
    url: Option<String>,
    health_path: Option<String>,
}

/// An instance in answers: the eight keys of the original.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    id: String,
    service_name: String,
    host: Option<String>,
    port: u16,
    url: String,
    health_path: String,
    /// Always null: heartbeats are known to the leader alone, and only as deadlines.
    last_heartbeat: Option<String>,
    alive: bool,
}

async fn register(
    State(api): State<Api>,
    via: Via,
    Message(registration): Message<Registration>,
) -> Result<(StatusCode, Json<Listed>), Problem> {
    let spec = spec(registration, &api.limits).map_err(|error| api.problem(error))?;
    let answer = api.registry.register(spec, None, caller(via.by("legacy rest"))).await;
    let answer = answer.map_err(|error| api.problem(error))?;
    Ok((StatusCode::CREATED, Json(listed(&answer.value))))
}

async fn heartbeat(State(api): State<Api>, Segment(id): Segment) -> Result<StatusCode, Problem> {
    match renew(&api, id.clone()).await.map_err(|error| api.problem(error))? {
        true => Ok(StatusCode::OK),
        false => Err(Problem::lease_lost(&id)),
    }
}

async fn deregister(State(api): State<Api>, Segment(id): Segment, via: Via) -> Result<StatusCode, Problem> {
    let done = take_out(&api, id, via.by("legacy rest")).await;
    done.map(|_| StatusCode::NO_CONTENT).map_err(|error| api.problem(error))
}

async fn list_all(State(api): State<Api>) -> Result<Json<Vec<Listed>>, Problem> {
    let records = healthy(&api, String::new()).await.map_err(|error| api.problem(error))?;
    Ok(Json(records.iter().map(|record| listed(record)).collect()))
}

async fn list_service(
    State(api): State<Api>,
    Segment(service): Segment,
) -> Result<Json<Vec<Listed>>, Problem> {
    let records = healthy(&api, service).await.map_err(|error| api.problem(error))?;
    Ok(Json(records.iter().map(|record| listed(record)).collect()))
}

#[tonic::async_trait]
impl ServiceRegistry for Api {
    async fn get_healthy_services(
        &self,
        request: Request<pb::GetHealthyServicesRequest>,
    ) -> Result<Response<pb::GetHealthyServicesResponse>, GrpcStatus> {
        // The original's clients put the service's name into the field called instanceName.
        let records = healthy(self, request.into_inner().instance_name).await;
        let records = records.map_err(|error| self.status(error))?;
        let services = records.iter().map(|record| grpc_listed(record)).collect();
        Ok(Response::new(pb::GetHealthyServicesResponse { services }))
    }

    async fn register_service(
        &self,
        request: Request<pb::RegisterServiceRequest>,
    ) -> Result<Response<pb::ServiceRegistryResponse>, GrpcStatus> {
        let by = caller_of(&request);
        let instance = request.into_inner().instance.unwrap_or_default();
        let spec = spec(instance.into(), &self.limits).map_err(|error| self.status(error))?;
        let done = self.registry.register(spec, None, caller(by)).await;
        done.map_err(|error| self.status(error))?;
        Ok(answer(true, "Service registered successfully"))
    }

    async fn deregister_service(
        &self,
        request: Request<pb::DeregisterServiceRequest>,
    ) -> Result<Response<pb::ServiceRegistryResponse>, GrpcStatus> {
        let by = caller_of(&request);
        take_out(self, request.into_inner().instance_id, by).await.map_err(|error| self.status(error))?;
        Ok(answer(true, "Service deregistered successfully"))
    }

    async fn send_heartbeat(
        &self,
        request: Request<pb::SendHeartbeatRequest>,
    ) -> Result<Response<pb::ServiceRegistryResponse>, GrpcStatus> {
        match renew(self, request.into_inner().instance_id).await.map_err(|error| self.status(error))? {
            true => Ok(answer(true, "Heartbeat received.")),
            false => Ok(answer(false, "Instance is not registered: register again.")),
        }
    }
}

async fn renew(api: &Api, id: String) -> Result<bool, Error> {
    let answer = api.registry.heartbeat(vec![(InstanceId::new(id)?, None)]).await?;
    Ok(answer.value == [true])
}

async fn take_out(api: &Api, id: String, by: String) -> Result<Answer<bool>, Error> {
    api.registry.deregister(InstanceId::new(id)?, None, caller(by)).await
}

/// Those that take traffic: draining instances and ones in maintenance are left out.
async fn healthy(api: &Api, service: String) -> Result<Vec<Arc<Record>>, Error> {
    let service = convert::service_filter(service)?;
    let mut records = api.registry.list(service, Consistency::Linearizable, 0).await?.value;
    records.retain(|record| record.spec.status == Status::Up);
    Ok(records)
}

/// These clients only ever repeat a call that failed, and each of their calls may be repeated.
fn caller(by: String) -> Caller {
    Caller { by, why: String::new(), origin: None, repeats: true }
}

fn spec(registration: Registration, limits: &Limits) -> Result<Spec, Error> {
    let required = |field, value: Option<String>| match value {
        Some(value) if !value.is_empty() => Ok(value),
        _ => Err(convert::invalid(field, "is required")),
    };
    let id = required("id", registration.id)?;
    let service = required("serviceName", registration.service_name)?;
    let url = required("url", registration.url)?;
    let health_path = required("healthPath", registration.health_path)?;
    let port = u16::try_from(registration.port.unwrap_or(0));
    let spec = Spec {
        host: registration.host.unwrap_or_default().into(),
        port: port.map_err(|_| convert::invalid("port", "is not within 0 to 65535"))?,
        health_path: health_path.into(),
        ttl_ms: limits.ttl_default.as_millis() as u32,
        ..Spec::new(InstanceId::new(id)?, ServiceName::new(service)?, url)
    };
    spec.validate(limits)?;
    Ok(spec)
}

fn listed(record: &Record) -> Listed {
    let spec = &record.spec;
    Listed {
        id: spec.id.to_string(),
        service_name: spec.service.to_string(),
        host: (!spec.host.is_empty()).then(|| spec.host.as_str().to_owned()),
        port: spec.port,
        url: spec.url.as_str().to_owned(),
        health_path: spec.health_path.as_str().to_owned(),
        last_heartbeat: None,
        alive: spec.status == Status::Up,
    }
}

fn grpc_listed(record: &Record) -> pb::GrpcServiceInstance {
    let spec = &record.spec;
    pb::GrpcServiceInstance {
        id: spec.id.to_string(),
        service_name: spec.service.to_string(),
        host: spec.host.as_str().to_owned(),
        port: spec.port.into(),
        url: spec.url.as_str().to_owned(),
        health_path: spec.health_path.as_str().to_owned(),
    }
}

impl From<pb::GrpcServiceInstance> for Registration {
    fn from(instance: pb::GrpcServiceInstance) -> Registration {
        Registration {
            id: Some(instance.id),
            service_name: Some(instance.service_name),
            host: Some(instance.host),
            port: Some(instance.port.into()),
            url: Some(instance.url),
            health_path: Some(instance.health_path),
        }
    }
}

fn answer(success: bool, message: &str) -> Response<pb::ServiceRegistryResponse> {
    Response::new(pb::ServiceRegistryResponse { success, message: message.to_owned() })
}

fn caller_of<T>(request: &Request<T>) -> String {
    default_by("legacy grpc", Connection::of(request.extensions()).map(|via| via.peer.ip()))
}
