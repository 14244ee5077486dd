//! gRPC over HTTP/2 without TLS: one connection per node, made when needed.
//!
//! # Why not tonic's balanced channel
//! It picks endpoints that are dead, and hides which node answered; the leader hint needs to know.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use proto::registry::v1 as wire;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{ConnectError, Status, Streaming, TimeoutExpired};
use tonic_types::StatusExt;

use super::call::{self, Call};
use super::{CONNECT_TIMEOUT, Failure, Pieces};
use crate::Error;
use crate::error::Code;
use crate::leader_hint::Node;

/// A connection that carries nothing is pinged this often, so that a dead one is noticed by both sides.
const PING_EVERY: Duration = Duration::from_secs(4);

/// A ping unanswered for so long ends the connection.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// The connections.
#[derive(Debug, Default)]
pub(crate) struct Grpc {
    channels: Mutex<HashMap<Node, Channel>>,
}

impl Grpc {
    /// One call to `node`, which is told the time `limit`; keeping it is the caller's part.
    pub(crate) async fn call<C: Call>(
        &self,
        node: &Node,
        call: &C,
        limit: Duration,
    ) -> Result<C::Reply, Failure> {
        let channel = self.channel(node)?;
        match call.clone().grpc(channel, limit).await {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => Err(failure(&status)),
        }
    }

    /// Opens a watch. The stream of requests stays open for as long as the returned stream lives.
    pub(crate) async fn watch(
        &self,
        node: &Node,
        open: wire::WatchOpen,
    ) -> Result<Streaming<wire::WatchResponse>, Failure> {
        let open = wire::WatchRequest { kind: Some(wire::watch_request::Kind::Open(open)) };
        let requests = tokio_stream::once(open).chain(tokio_stream::pending());
        match call::registry(self.channel(node)?).watch(requests).await {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => Err(failure(&status)),
        }
    }

    /// Opens a pipeline. What is sent to `requests` leaves together if it comes together.
    pub(crate) async fn pipeline(
        &self,
        node: &Node,
        requests: mpsc::UnboundedReceiver<wire::PipelineRequest>,
    ) -> Result<Streaming<wire::PipelineResponse>, Failure> {
        let requests = UnboundedReceiverStream::new(requests);
        match call::registry(self.channel(node)?).pipeline(requests).await {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => Err(failure(&status)),
        }
    }

    /// Opens the stream of a backup file's bytes.
    pub(crate) async fn backup(&self, node: &Node) -> Result<Pieces, Failure> {
        match call::admin(self.channel(node)?).backup(wire::BackupRequest {}).await {
            Ok(reply) => Ok(Box::pin(reply.into_inner().map(|piece| match piece {
                Ok(piece) => Ok(piece.data.into()),
                Err(status) => Err(failure(&status).error),
            }))),
            Err(status) => Err(failure(&status)),
        }
    }

    /// Drops the connection to `node`; calls in flight keep it until they end.
    pub(crate) fn forget(&self, node: &Node) {
        self.lock().remove(node);
    }

    fn channel(&self, node: &Node) -> Result<Channel, Failure> {
        if let Some(channel) = self.lock().get(node) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(node.grpc.to_string())
            .map_err(|error| Failure::unreached(Error::invalid(format!("{}: {error}", node.grpc))))?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_lazy();
        self.lock().insert(node.clone(), channel.clone());
        Ok(channel)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Node, Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a refusal. A status that has a source was made on this side: the connection failed. One without, and
/// without the registry's own details, came from something in between.
pub(crate) fn failure(status: &Status) -> Failure {
    if let Some(source) = std::error::Error::source(status) {
        return Failure::unreached(disconnected(source));
    }
    let info = status.get_details_error_info().filter(|info| info.domain == "registry.v1");
    let code =
        info.as_ref().and_then(|info| Code::named(&info.reason)).unwrap_or_else(|| code_of(status.code()));
    let error = Error::new(code, status.message());
    let Some(info) = info else {
        // Only the registry knows whether anything happened.
        let foreign = error.retryable(Some(true)).no_effect(Some(false));
        return Failure {
            error: foreign,
            reached: status.code() != tonic::Code::Unimplemented,
            leader: None,
        };
    };
    let said = |key: &str| info.metadata.get(key).map(String::as_str);
    let flag = |key: &str| said(key).and_then(|text| text.parse().ok());
    Failure {
        error: error.retryable(flag("retryable")).no_effect(flag("had_no_effect")),
        reached: true,
        leader: Node::of_urls(said("leader_grpc").unwrap_or(""), said("leader_rest").unwrap_or("")),
    }
}

fn disconnected(source: &(dyn std::error::Error + 'static)) -> Error {
    let chain: Vec<_> = std::iter::successors(Some(source), |error| error.source()).collect();
    // The last one is the cause; those before say that there is one.
    let cause = chain.last().map_or_else(String::new, |error| error.to_string());
    let never_sent = chain.iter().any(|error| error.is::<ConnectError>());
    // The deadline that goes with a request is kept on this side as well.
    let late = chain.iter().any(|error| error.is::<TimeoutExpired>());
    Error::new(if late { Code::Timeout } else { Code::Unavailable }, cause).no_effect(Some(never_sent))
}

fn code_of(code: tonic::Code) -> Code {
    match code {
        tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Code::InvalidArgument,
        tonic::Code::NotFound => Code::NotFound,
        tonic::Code::Aborted | tonic::Code::AlreadyExists => Code::Precondition,
        tonic::Code::FailedPrecondition => Code::Superseded,
        tonic::Code::ResourceExhausted => Code::ResourceExhausted,
        tonic::Code::Unavailable => Code::Unavailable,
        tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => Code::Timeout,
        tonic::Code::Unimplemented => Code::Unimplemented,
        _ => Code::Internal,
    }
}
