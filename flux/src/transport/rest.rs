//! REST over HTTP/1.1: proto3 JSON of the same messages, and long polls for watches.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::{BodyDataStream, BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use proto::registry::v1 as wire;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_stream::StreamExt;

use super::call::Call;
use super::{ANSWER_BYTES_MAX, CONNECT_TIMEOUT, Failure};
use crate::Error;
use crate::error::Code;
use crate::leader_hint::Node;

/// A connection unused for so long is closed: sooner than the nodes close it, so that none is used while it
/// goes away.
const IDLE_MAX: Duration = Duration::from_secs(15);

/// What stands as it is in a path segment or a query value (RFC 3986, unreserved).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The connections to all nodes.
#[derive(Debug)]
pub(crate) struct Rest {
    client: Client<HttpConnector, Full<Bytes>>,
}

/// A request of the API, without the node.
#[derive(Debug)]
pub(crate) struct Request {
    method: Method,
    path_and_query: String,
    body: Bytes,
}

/// What a long poll brings.
#[derive(Debug, Deserialize)]
pub(crate) struct Poll {
    #[serde(default)]
    pub(crate) updates: Vec<wire::WatchResponse>,
}

/// RFC 9457, with the registry's own members.
#[derive(Deserialize)]
struct Problem {
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
    code: String,
    retryable: Option<bool>,
    had_no_effect: Option<bool>,
    leader: Option<ProblemLeader>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ProblemLeader {
    grpc: String,
    rest: String,
}

impl Request {
    /// A request to `/v1/` + `segments`, each of them escaped.
    pub(crate) fn new(method: Method, segments: &[&str]) -> Request {
        let mut path_and_query = "/v1".to_owned();
        for segment in segments {
            path_and_query.push('/');
            path_and_query.extend(utf8_percent_encode(segment, ESCAPED));
        }
        Request { method, path_and_query, body: Bytes::new() }
    }

    /// Adds a parameter if there is a value.
    pub(crate) fn query(mut self, name: &str, value: Option<impl Display>) -> Request {
        if let Some(value) = value {
            let separator = if self.path_and_query.contains('?') { '&' } else { '?' };
            let value = value.to_string();
            let value = utf8_percent_encode(&value, ESCAPED);
            write!(self.path_and_query, "{separator}{name}={value}").expect("strings take everything");
        }
        self
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Request {
        self.body = serde_json::to_vec(body).expect("wire messages serialise").into();
        self
    }
}

impl Rest {
    pub(crate) fn new() -> Rest {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .build(connector);
        Rest { client }
    }

    pub(crate) async fn call<C: Call>(&self, node: &Node, call: &C) -> Result<C::Reply, Failure> {
        self.send(node, call.rest()).await
    }

    /// One long poll: what happened since `open`, or after `wait`, in whole seconds, that nothing did.
    pub(crate) async fn poll(
        &self,
        node: &Node,
        open: &wire::WatchOpen,
        wait: Duration,
    ) -> Result<Vec<wire::WatchResponse>, Failure> {
        let request = Request::new(Method::GET, &["watch"])
            .query("service", Some(&open.service).filter(|service| !service.is_empty()))
            .query("cluster_id", Some(&open.cluster_id).filter(|id| !id.is_empty()))
            // Who begins holds nothing, not even what was there at revision 0.
            .query("since", Some(open.after_revision).filter(|_| open.min_revision == 0))
            .query("min_revision", Some(open.min_revision).filter(|revision| *revision > 0))
            .query("wait", Some(format!("{}s", wait.as_secs())));
        Ok(self.send::<Poll>(node, request).await?.updates)
    }

    /// Opens the stream of a backup file's bytes.
    pub(crate) async fn backup(&self, node: &Node) -> Result<super::Pieces, Failure> {
        let request = Request::new(Method::GET, &["snapshot"]);
        let response = self.open(node, request).await.map_err(Failure::unreached)?;
        let status = response.status();
        let broke_off = |error| Error::new(Code::Unavailable, format!("the answer broke off: {error}"));
        if !status.is_success() {
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            return Err(body.map_or_else(
                |error| Failure::unreached(broke_off(error.to_string())),
                |body| refusal(status, &body.to_bytes()),
            ));
        }
        let pieces = BodyDataStream::new(response.into_body());
        Ok(Box::pin(pieces.map(move |piece| piece.map_err(|error| broke_off(error.to_string())))))
    }

    async fn send<T: DeserializeOwned>(&self, node: &Node, request: Request) -> Result<T, Failure> {
        let (status, body) = self.exchange(node, request).await.map_err(Failure::unreached)?;
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        serde_json::from_slice(&body).map_err(|error| {
            Failure::unreached(Error::new(
                Code::Internal,
                format!("the answer is not the registry's: {error}"),
            ))
        })
    }

    async fn exchange(&self, node: &Node, request: Request) -> Result<(StatusCode, Bytes), Error> {
        let response = self.open(node, request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| {
            Error::new(Code::Unavailable, format!("the answer broke off: {error}")).no_effect(Some(false))
        })?;
        Ok((status, body.to_bytes()))
    }

    /// Sends a request; its answer's body is still to come.
    async fn open(&self, node: &Node, request: Request) -> Result<http::Response<Incoming>, Error> {
        let url = format!("{}{}", node.rest, request.path_and_query);
        let request = http::Request::builder()
            .method(request.method)
            .uri(url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Full::new(request.body))
            .map_err(|error| Error::invalid(format!("{}: {error}", node.rest)))?;
        self.client
            .request(request)
            .await
            .map_err(|error| Error::new(Code::Unavailable, cause(&error)).no_effect(Some(error.is_connect())))
    }
}

/// Reads a refusal: the registry's own, or that of something in between.
fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let Ok(problem) = serde_json::from_slice::<Problem>(body) else {
        let message = format!("answered {status}, which is not the registry's own");
        return Failure::unreached(Error::new(Code::Unavailable, message).no_effect(Some(false)));
    };
    let message = if problem.detail.is_empty() { problem.title } else { problem.detail };
    let leader = problem.leader.unwrap_or_default();
    Failure {
        error: Error::new(Code::named(&problem.code).unwrap_or_else(|| code_of(status)), message)
            .retryable(problem.retryable)
            .no_effect(problem.had_no_effect),
        reached: true,
        leader: Node::of_urls(&leader.grpc, &leader.rest),
    }
}

/// For a code that is newer than this program.
fn code_of(status: StatusCode) -> Code {
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => Code::NotFound,
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => Code::Precondition,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::INSUFFICIENT_STORAGE => Code::ResourceExhausted,
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => Code::Timeout,
        StatusCode::NOT_IMPLEMENTED | StatusCode::METHOD_NOT_ALLOWED => Code::Unimplemented,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        status if status.is_client_error() => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

fn cause(error: &hyper_util::client::legacy::Error) -> String {
    let first: &dyn std::error::Error = error;
    std::iter::successors(Some(first), |error| error.source()).last().unwrap_or(first).to_string()
}
