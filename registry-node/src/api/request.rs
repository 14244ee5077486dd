//! What handlers take from a request, each refused with a problem where it cannot be read.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{Extensions, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use serde::de::DeserializeOwned;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Api;
use super::reply::Problem;

/// A body that is refused for its size is read to its end up to this many bytes: a client that is still sending
/// would otherwise see a reset connection instead of the answer.
const DISCARD_BYTES_MAX: usize = 64 << 20;

/// Who is at the other end and when to let go of them: put into every request by the connection that carried it.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The peer's address.
    pub peer: SocketAddr,
    /// Cancelled when this node stops: what would last ends now.
    pub stop: CancellationToken,
}

impl Connection {
    /// Of a request's extensions.
    pub fn of(extensions: &Extensions) -> Option<&Connection> {
        extensions.get()
    }
}

/// The caller's address and protocol, as provenance of changes by callers that say nothing.
pub fn default_by(protocol: &str, peer: Option<IpAddr>) -> String {
    match peer {
        Some(ip) => format!("{protocol} {ip}"),
        None => protocol.to_owned(),
    }
}

/// The connection of a REST request.
pub struct Via(pub Option<Connection>);

impl Via {
    /// The caller's name if it gives none.
    pub fn by(&self, protocol: &str) -> String {
        default_by(protocol, self.0.as_ref().map(|connection| connection.peer.ip()))
    }

    /// Where the client is.
    pub fn peer(&self) -> Option<IpAddr> {
        self.0.as_ref().map(|connection| connection.peer.ip())
    }

    /// Cancelled when this node stops.
    pub fn stop(self) -> CancellationToken {
        self.0.map(|connection| connection.stop).unwrap_or_default()
    }
}

impl<S: Sync> FromRequestParts<S> for Via {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Via, Problem> {
        Ok(Via(Connection::of(&parts.extensions).cloned()))
    }
}

/// The one variable segment of a path, percent-decoded.
pub struct Segment(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Segment, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(segment)) => Ok(Segment(segment)),
            Err(rejection) => Err(Problem::malformed(rejection.body_text())),
        }
    }
}

/// The query, as `T`.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Params<T>, Problem> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Params(params)),
            Err(rejection) => Err(Problem::malformed(rejection.body_text())),
        }
    }
}

/// A body of JSON, whatever its content type says.
pub struct Message<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Api> for Message<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, api: &Api) -> Result<Message<T>, Problem> {
        let late = |_| Problem::malformed("the body did not come in time");
        let body = timeout(api.limits.body_timeout, read(request, api.limits.message_bytes_max))
            .await
            .map_err(late)??;
        match serde_json::from_slice(&body) {
            Ok(message) => Ok(Message(message)),
            Err(error) => Err(Problem::malformed(format!("the body is not what is expected here: {error}"))),
        }
    }
}

/// A body that has to come within `limit` of its first being waited for: tonic would wait for ever.
pub fn within(limit: Duration, body: Body) -> Body {
    Body::new(Timed { body, limit, deadline: None })
}

struct Timed {
    body: Body,
    limit: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        let limit = self.limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(deadline.as_mut().poll(cx));
        let late = tonic::Status::invalid_argument(format!("the message did not come within {limit:?}"));
        Poll::Ready(Some(Err(late.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn read(request: Request, bytes_max: usize) -> Result<Bytes, Problem> {
    let said = request.headers().get(header::CONTENT_LENGTH);
    let said = said.and_then(|value| value.to_str().ok()?.parse::<usize>().ok()).unwrap_or(0);
    let mut body = request.into_body();
    if said > bytes_max {
        return Err(refuse(body, bytes_max).await);
    }
    let mut bytes = BytesMut::with_capacity(said);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::malformed(format!("the body broke off: {error}")))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > bytes_max {
                return Err(refuse(body, bytes_max).await);
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.freeze())
}

async fn refuse(mut body: Body, bytes_max: usize) -> Problem {
    let mut discarded = 0;
    while discarded < DISCARD_BYTES_MAX
        && let Some(Ok(frame)) = body.frame().await
    {
        discarded += frame.data_ref().map_or(0, Bytes::len);
    }
    Problem::too_large(bytes_max)
}
