//! Every call of the registry, once: how it goes over gRPC, how over REST, and whether repeating it is harmless.

use std::future::Future;
use std::time::Duration;

use http::Method;
use proto::registry::v1 as wire;
use serde::de::DeserializeOwned;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use wire::admin_client::AdminClient;
use wire::registry_client::RegistryClient;

use super::ANSWER_BYTES_MAX;
use super::rest;
use crate::metrics::Operation;

/// One kind of call.
pub(crate) trait Call: Clone + Send + Sync + 'static {
    type Reply: DeserializeOwned + Send + 'static;
    const OPERATION: Operation;
    /// Whether it changes nothing.
    const READS: bool = false;

    /// Whether it is about the configured nodes themselves, and not to be answered by others.
    const CONFIGURED_ONLY: bool = false;

    /// Whether sending it twice is the same as sending it once.
    fn repeatable(&self) -> bool {
        true
    }

    /// Sends it over gRPC; the node is told the time `limit`.
    fn grpc(
        self,
        channel: Channel,
        limit: Duration,
    ) -> impl Future<Output = Result<Response<Self::Reply>, Status>> + Send;

    /// The same as a REST request.
    fn rest(&self) -> rest::Request;

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader>;
}

/// Asks for the members.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Members;

/// Asks a node for what it knows of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeStatus;

impl Call for wire::RegisterRequest {
    type Reply = wire::RegisterResponse;
    const OPERATION: Operation = Operation::Register;

    /// A request with a client and a number takes effect once, however often it is sent.
    fn repeatable(&self) -> bool {
        !self.client.is_empty()
    }

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        registry(channel).register(timed(self, limit)).await
    }

    fn rest(&self) -> rest::Request {
        let id = self.instance.as_ref().map_or("", |instance| &instance.id);
        rest::Request::new(Method::PUT, &["instances", id])
            .query("expected_revision", self.expected_revision)
            .query("by", some(&self.by))
            .query("why", some(&self.why))
            .query("client", some(&self.client))
            .query("seq", positive(self.seq))
            .json(&self.instance)
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for wire::Beat {
    type Reply = wire::HeartbeatResponse;
    const OPERATION: Operation = Operation::Heartbeat;

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        registry(channel).heartbeat(timed(wire::HeartbeatRequest { beats: vec![self] }, limit)).await
    }

    fn rest(&self) -> rest::Request {
        rest::Request::new(Method::POST, &["instances", &self.id, "heartbeat"])
            .query("reg_rev", positive(self.reg_rev))
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for wire::DeregisterRequest {
    type Reply = wire::DeregisterResponse;
    const OPERATION: Operation = Operation::Deregister;

    fn repeatable(&self) -> bool {
        !self.client.is_empty()
    }

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        registry(channel).deregister(timed(self, limit)).await
    }

    fn rest(&self) -> rest::Request {
        rest::Request::new(Method::DELETE, &["instances", &self.id])
            .query("reg_rev", positive(self.reg_rev))
            .query("by", some(&self.by))
            .query("why", some(&self.why))
            .query("client", some(&self.client))
            .query("seq", positive(self.seq))
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for wire::SetStatusRequest {
    type Reply = wire::SetStatusResponse;
    const OPERATION: Operation = Operation::SetStatus;

    fn repeatable(&self) -> bool {
        !self.client.is_empty()
    }

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        registry(channel).set_status(timed(self, limit)).await
    }

    fn rest(&self) -> rest::Request {
        rest::Request::new(Method::PUT, &["instances", &self.id, "status"]).json(self)
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for wire::ListRequest {
    type Reply = wire::ListResponse;
    const OPERATION: Operation = Operation::List;
    const READS: bool = true;

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        registry(channel).list(timed(self, limit)).await
    }

    fn rest(&self) -> rest::Request {
        let path: &[&str] =
            if self.service.is_empty() { &["instances"] } else { &["services", &self.service] };
        rest::Request::new(Method::GET, path)
            .query("consistency", stale(self.consistency()))
            .query("min_revision", positive(self.min_revision))
            .query("at", positive(self.at_revision))
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for wire::GetRequest {
    type Reply = wire::GetResponse;
    const OPERATION: Operation = Operation::Get;
    const READS: bool = true;

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        registry(channel).get(timed(self, limit)).await
    }

    fn rest(&self) -> rest::Request {
        rest::Request::new(Method::GET, &["instances", &self.id])
            .query("consistency", stale(self.consistency()))
            .query("min_revision", positive(self.min_revision))
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for wire::HistoryRequest {
    type Reply = wire::HistoryResponse;
    const OPERATION: Operation = Operation::History;
    const READS: bool = true;

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        registry(channel).history(timed(self, limit)).await
    }

    fn rest(&self) -> rest::Request {
        rest::Request::new(Method::GET, &["instances", &self.id, "history"])
            .query("limit", positive(self.limit.into()))
            .query("consistency", stale(self.consistency()))
            .query("min_revision", positive(self.min_revision))
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for wire::ListServicesRequest {
    type Reply = wire::ListServicesResponse;
    const OPERATION: Operation = Operation::ListServices;
    const READS: bool = true;

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        registry(channel).list_services(timed(self, limit)).await
    }

    fn rest(&self) -> rest::Request {
        rest::Request::new(Method::GET, &["services"])
            .query("consistency", stale(self.consistency()))
            .query("min_revision", positive(self.min_revision))
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for Members {
    type Reply = wire::MembersResponse;
    const OPERATION: Operation = Operation::Members;
    const READS: bool = true;

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        admin(channel).members(timed(wire::MembersRequest {}, limit)).await
    }

    fn rest(&self) -> rest::Request {
        rest::Request::new(Method::GET, &["members"])
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for NodeStatus {
    type Reply = wire::StatusResponse;
    const OPERATION: Operation = Operation::Status;
    const READS: bool = true;
    const CONFIGURED_ONLY: bool = true;

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        admin(channel).status(timed(wire::StatusRequest {}, limit)).await
    }

    fn rest(&self) -> rest::Request {
        rest::Request::new(Method::GET, &["status"])
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for wire::AddLearnerRequest {
    type Reply = wire::MembersResponse;
    const OPERATION: Operation = Operation::ChangeMembers;

    fn repeatable(&self) -> bool {
        false
    }

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        admin(channel).add_learner(timed(self, limit)).await
    }

    fn rest(&self) -> rest::Request {
        rest::Request::new(Method::POST, &["members"]).json(&self.member)
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for wire::PromoteRequest {
    type Reply = wire::MembersResponse;
    const OPERATION: Operation = Operation::ChangeMembers;

    fn repeatable(&self) -> bool {
        false
    }

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        admin(channel).promote(timed(self, limit)).await
    }

    fn rest(&self) -> rest::Request {
        rest::Request::new(Method::POST, &["members", &self.id.to_string(), "promote"])
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for wire::RemoveMemberRequest {
    type Reply = wire::MembersResponse;
    const OPERATION: Operation = Operation::ChangeMembers;

    fn repeatable(&self) -> bool {
        false
    }

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        admin(channel).remove_member(timed(self, limit)).await
    }

    fn rest(&self) -> rest::Request {
        rest::Request::new(Method::DELETE, &["members", &self.id.to_string()])
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for wire::TransferLeadershipRequest {
    type Reply = wire::TransferLeadershipResponse;
    const OPERATION: Operation = Operation::ChangeMembers;

    fn repeatable(&self) -> bool {
        false
    }

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        admin(channel).transfer_leadership(timed(self, limit)).await
    }

    fn rest(&self) -> rest::Request {
        rest::Request::new(Method::POST, &["leader", "transfer"]).query("to", positive(self.to))
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for wire::SnapshotRequest {
    type Reply = wire::SnapshotResponse;
    const OPERATION: Operation = Operation::Snapshot;
    const CONFIGURED_ONLY: bool = true;

    fn repeatable(&self) -> bool {
        false
    }

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        admin(channel).snapshot(timed(self, limit)).await
    }

    fn rest(&self) -> rest::Request {
        rest::Request::new(Method::POST, &["snapshot"])
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for wire::RestoreRequest {
    type Reply = wire::RestoreResponse;
    const OPERATION: Operation = Operation::Restore;

    /// A second attempt would find what the first one restored, and count it as what was there before.
    fn repeatable(&self) -> bool {
        false
    }

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        admin(channel).restore(timed(self, limit)).await
    }

    fn rest(&self) -> rest::Request {
        rest::Request::new(Method::POST, &["snapshot", "restore"]).json(self)
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

impl Call for wire::ReleaseLeasesRequest {
    type Reply = wire::ReleaseLeasesResponse;
    const OPERATION: Operation = Operation::ReleaseLeases;

    async fn grpc(self, channel: Channel, limit: Duration) -> Result<Response<Self::Reply>, Status> {
        admin(channel).release_leases(timed(self, limit)).await
    }

    fn rest(&self) -> rest::Request {
        rest::Request::new(Method::POST, &["leases", "release"])
    }

    fn header(reply: &Self::Reply) -> Option<&wire::ResponseHeader> {
        reply.header.as_ref()
    }
}

/// The stub of the registry's own calls.
pub(super) fn registry(channel: Channel) -> RegistryClient<Channel> {
    RegistryClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

pub(super) fn admin(channel: Channel) -> AdminClient<Channel> {
    AdminClient::new(channel)
}

fn timed<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn positive(number: u64) -> Option<u64> {
    Some(number).filter(|number| *number > 0)
}

fn stale(consistency: wire::Consistency) -> Option<&'static str> {
    (consistency == wire::Consistency::Stale).then_some("stale")
}
