//! The registry's own API over gRPC.

use std::pin::Pin;

use axum::Router;
use axum::routing::post;
use futures_util::{Stream, StreamExt, stream};
use proto::registry::v1 as pb;
use proto::registry::v1::admin_server::{Admin, AdminServer};
use proto::registry::v1::registry_server::{Registry, RegistryServer};
use tonic::{Request, Response, Status, Streaming};

use super::request::{Connection, default_by};
use super::{Api, convert, legacy, pipeline, rest, watch};
use crate::catalog::InstanceId;
use crate::registry::{Error, Member};

type Reply<T> = Result<Response<T>, Status>;

/// Every gRPC service, the original's included, each under its own path.
pub fn routes(api: &Api) -> Router<Api> {
    let bytes_max = api.limits.message_bytes_max;
    let registry = RegistryServer::new(api.clone()).max_decoding_message_size(bytes_max);
    let admin = AdminServer::new(api.clone()).max_decoding_message_size(bytes_max);
    Router::new()
        .route("/registry.v1.Registry/Watch", post(watch::serve))
        .route_service("/registry.v1.Registry/{*call}", registry)
        .route_service("/registry.v1.Admin/{*call}", admin)
        .route_service("/serviceregistry.ServiceRegistry/{*call}", legacy::grpc(api))
}

#[tonic::async_trait]
impl Registry for Api {
    async fn register(&self, request: Request<pb::RegisterRequest>) -> Reply<pb::RegisterResponse> {
        let by = caller_of(&request);
        let pb::RegisterRequest { instance, expected_revision, by: named, why, client, seq } =
            request.into_inner();
        let spec = convert::spec(instance, &self.limits).map_err(|error| self.status(error))?;
        let caller = convert::caller(named, why, client, seq, by).map_err(|error| self.status(error))?;
        let answer = self.registry.register(spec, expected_revision, caller).await;
        let answer = answer.map_err(|error| self.status(error))?;
        let instance = Some(convert::instance(&answer.value));
        Ok(Response::new(pb::RegisterResponse { header: Some(convert::header(&answer.header)), instance }))
    }

    async fn heartbeat(&self, request: Request<pb::HeartbeatRequest>) -> Reply<pb::HeartbeatResponse> {
        let beats: Result<_, Error> = request.into_inner().beats.into_iter().map(convert::beat).collect();
        let beats = beats.map_err(|error| self.status(error))?;
        let answer = self.registry.heartbeat(beats).await.map_err(|error| self.status(error))?;
        Ok(Response::new(convert::heartbeat(answer)))
    }

    async fn deregister(&self, request: Request<pb::DeregisterRequest>) -> Reply<pb::DeregisterResponse> {
        let by = caller_of(&request);
        let pb::DeregisterRequest { id, reg_rev, by: named, why, client, seq } = request.into_inner();
        let id = InstanceId::new(id).map_err(|invalid| self.status(invalid))?;
        let caller = convert::caller(named, why, client, seq, by).map_err(|error| self.status(error))?;
        let answer = self.registry.deregister(id, convert::reg_rev(reg_rev), caller).await;
        let answer = answer.map_err(|error| self.status(error))?;
        let header = Some(convert::header(&answer.header));
        Ok(Response::new(pb::DeregisterResponse { header, found: answer.value }))
    }

    async fn set_status(&self, request: Request<pb::SetStatusRequest>) -> Reply<pb::SetStatusResponse> {
        let by = caller_of(&request);
        let pb::SetStatusRequest { id, status, reg_rev, by: named, why, client, seq } = request.into_inner();
        let id = InstanceId::new(id).map_err(|invalid| self.status(invalid))?;
        let status = convert::instance_status(status).map_err(|error| self.status(error))?;
        let caller = convert::caller(named, why, client, seq, by).map_err(|error| self.status(error))?;
        let answer = self.registry.set_status(id, status, convert::reg_rev(reg_rev), caller).await;
        let answer = answer.map_err(|error| self.status(error))?;
        let instance = Some(convert::instance(&answer.value));
        Ok(Response::new(pb::SetStatusResponse { header: Some(convert::header(&answer.header)), instance }))
    }

    async fn list(&self, request: Request<pb::ListRequest>) -> Reply<pb::ListResponse> {
        let pb::ListRequest { service, consistency, min_revision, at_revision } = request.into_inner();
        let service = convert::service_filter(service).map_err(|error| self.status(error))?;
        let consistency = convert::consistency(consistency).map_err(|error| self.status(error))?;
        let answer = match at_revision {
            0 => self.registry.list(service, consistency, min_revision).await,
            revision => self.registry.list_at(service, revision).await,
        };
        answer.map(|answer| Response::new(convert::list(answer))).map_err(|error| self.status(error))
    }

    async fn get(&self, request: Request<pb::GetRequest>) -> Reply<pb::GetResponse> {
        let pb::GetRequest { id, consistency, min_revision } = request.into_inner();
        let id = InstanceId::new(id).map_err(|invalid| self.status(invalid))?;
        let consistency = convert::consistency(consistency).map_err(|error| self.status(error))?;
        let answer = self.registry.get(id.clone(), consistency, min_revision).await;
        let answer = answer.map_err(|error| self.status(error))?;
        let not_found = || self.status(Error::NotFound { id: id.to_string() });
        let record = answer.value.ok_or_else(not_found)?;
        let instance = Some(convert::instance(&record));
        Ok(Response::new(pb::GetResponse { header: Some(convert::header(&answer.header)), instance }))
    }

    async fn history(&self, request: Request<pb::HistoryRequest>) -> Reply<pb::HistoryResponse> {
        let pb::HistoryRequest { id, limit, consistency, min_revision } = request.into_inner();
        let id = InstanceId::new(id).map_err(|invalid| self.status(invalid))?;
        let limit = convert::history_limit(limit).map_err(|error| self.status(error))?;
        let consistency = convert::consistency(consistency).map_err(|error| self.status(error))?;
        let answer = self.registry.history(id, limit, consistency, min_revision).await;
        answer.map(|answer| Response::new(convert::history(answer))).map_err(|error| self.status(error))
    }

    async fn list_services(
        &self,
        request: Request<pb::ListServicesRequest>,
    ) -> Reply<pb::ListServicesResponse> {
        let pb::ListServicesRequest { consistency, min_revision } = request.into_inner();
        let consistency = convert::consistency(consistency).map_err(|error| self.status(error))?;
        let answer = self.registry.services(consistency, min_revision).await;
        answer.map(|answer| Response::new(convert::services(answer))).map_err(|error| self.status(error))
    }

    type PipelineStream = Pin<Box<dyn Stream<Item = Result<pb::PipelineResponse, Status>> + Send>>;

    async fn pipeline(
        &self,
        request: Request<Streaming<pb::PipelineRequest>>,
    ) -> Reply<Self::PipelineStream> {
        let by = caller_of(&request);
        let stop = Connection::of(request.extensions()).map(|via| via.stop.clone()).unwrap_or_default();
        Ok(Response::new(Box::pin(pipeline::answers(self.clone(), request.into_inner(), by, stop))))
    }

    type WatchStream = stream::Empty<Result<pb::WatchResponse, Status>>;

    /// Never comes here: its own route sends what is encoded already.
    async fn watch(&self, _: Request<Streaming<pb::WatchRequest>>) -> Reply<Self::WatchStream> {
        Err(Status::unimplemented("watches have a route of their own"))
    }
}

#[tonic::async_trait]
impl Admin for Api {
    async fn status(&self, _: Request<pb::StatusRequest>) -> Reply<pb::StatusResponse> {
        Ok(Response::new(convert::node_status(&self.registry.header(), self.registry.status())))
    }

    async fn members(&self, _: Request<pb::MembersRequest>) -> Reply<pb::MembersResponse> {
        let answer = self.registry.members();
        answer.map(|answer| Response::new(convert::members(answer))).map_err(|error| Api::status(self, error))
    }

    async fn add_learner(&self, request: Request<pb::AddLearnerRequest>) -> Reply<pb::MembersResponse> {
        let member: Result<Member, Error> = convert::new_member(request.into_inner().member);
        let member = member.map_err(|error| Api::status(self, error))?;
        let answer = self.registry.add_learner(member).await;
        answer.map(|answer| Response::new(convert::members(answer))).map_err(|error| Api::status(self, error))
    }

    async fn promote(&self, request: Request<pb::PromoteRequest>) -> Reply<pb::MembersResponse> {
        let answer = self.registry.promote(request.into_inner().id).await;
        answer.map(|answer| Response::new(convert::members(answer))).map_err(|error| Api::status(self, error))
    }

    async fn remove_member(&self, request: Request<pb::RemoveMemberRequest>) -> Reply<pb::MembersResponse> {
        let answer = self.registry.remove_member(request.into_inner().id).await;
        answer.map(|answer| Response::new(convert::members(answer))).map_err(|error| Api::status(self, error))
    }

    async fn transfer_leadership(
        &self,
        request: Request<pb::TransferLeadershipRequest>,
    ) -> Reply<pb::TransferLeadershipResponse> {
        let to = request.into_inner().to;
        let answer = self.registry.transfer((to != 0).then_some(to)).await;
        let answer = answer.map_err(|error| Api::status(self, error))?;
        let header = Some(convert::header(&answer.header));
        Ok(Response::new(pb::TransferLeadershipResponse { header }))
    }

    type BackupStream = Pin<Box<dyn Stream<Item = Result<pb::BackupResponse, Status>> + Send>>;

    async fn backup(&self, request: Request<pb::BackupRequest>) -> Reply<Self::BackupStream> {
        let stop = Connection::of(request.extensions()).map(|via| via.stop.clone()).unwrap_or_default();
        let answer = self.registry.backup().await.map_err(|error| Api::status(self, error))?;
        let data = rest::until_stopped(convert::backup(answer), stop).map(|piece| match piece {
            Ok(data) => Ok(pb::BackupResponse { data: data.into() }),
            Err(stopped) => Err(Status::unavailable(stopped.to_string())),
        });
        Ok(Response::new(Box::pin(data)))
    }

    async fn restore(&self, request: Request<pb::RestoreRequest>) -> Reply<pb::RestoreResponse> {
        let pb::RestoreRequest { instances, mode } = request.into_inner();
        let records = convert::restored(instances, &self.limits);
        let records = records.map_err(|error| Api::status(self, error))?;
        let mode = convert::restore_mode(mode).map_err(|error| Api::status(self, error))?;
        let answer = self.registry.restore(records, mode).await.map_err(|error| Api::status(self, error))?;
        Ok(Response::new(convert::restore(&answer)))
    }

    async fn snapshot(&self, _: Request<pb::SnapshotRequest>) -> Reply<pb::SnapshotResponse> {
        let answer = self.registry.snapshot().await.map_err(|error| Api::status(self, error))?;
        let header = Some(convert::header(&answer.header));
        Ok(Response::new(pb::SnapshotResponse { header, snapshot_index: answer.value }))
    }

    async fn release_leases(&self, _: Request<pb::ReleaseLeasesRequest>) -> Reply<pb::ReleaseLeasesResponse> {
        let answer = self.registry.release_leases();
        answer
            .map(|answer| Response::new(convert::released(answer)))
            .map_err(|error| Api::status(self, error))
    }
}

/// The caller of a request that names nobody.
fn caller_of<T>(request: &Request<T>) -> String {
    default_by("grpc", Connection::of(request.extensions()).map(|via| via.peer.ip()))
}
