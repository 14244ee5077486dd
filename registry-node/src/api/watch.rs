//! `Watch` over gRPC, from bytes that all watchers of a service share: an event is encoded when the first of them
//! needs it, a part of a snapshot likewise, and the texts of a header once for the whole node. What is left for
//! each watcher is to copy them into its stream.
//!
//! # Why not the generated service
//! Its codec encodes each message for each watcher: with a thousand of them that is a thousand times the same work.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::{BufMut, Bytes};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, future, stream};
use prost::Message;
use prost::encoding::{self, WireType, encode_key, encode_varint, encoded_len_varint};
use proto::registry::v1 as pb;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, StreamingService};
use tonic::{Status, Streaming};

use super::request::Connection;
use super::{Api, convert, stall};
use crate::registry::{Batch, Header, Shared, Snapshot, Update, Watcher};

/// A watch says what it wants in its first message, and at once.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How old the common part of a header may be: only the leader's address and the age of a follower's word change.
const HEAD_AGE: Duration = Duration::from_millis(10);

/// Serves one call of `registry.v1.Registry/Watch`.
pub async fn serve(State(api): State<Api>, request: Request) -> Response {
    let bytes_max = api.limits.message_bytes_max;
    let mut grpc = Grpc::new(Wire).apply_max_message_size_config(Some(bytes_max), None);
    grpc.streaming(Watch(api), request).await.map(Body::new)
}

struct Watch(Api);

impl StreamingService<pb::WatchRequest> for Watch {
    type Response = Frame;
    type ResponseStream = BoxStream<'static, Result<Frame, Status>>;
    type Future = BoxFuture<'static, Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<pb::WatchRequest>>) -> Self::Future {
        Box::pin(open(self.0.clone(), request))
    }
}

async fn open(
    api: Api,
    request: tonic::Request<Streaming<pb::WatchRequest>>,
) -> Result<tonic::Response<BoxStream<'static, Result<Frame, Status>>>, Status> {
    let connection = Connection::of(request.extensions()).cloned();
    let mut inbound = request.into_inner();
    let open = timeout(OPEN_TIMEOUT, inbound.message()).await;
    let open = match open.map_err(|_| api.status(convert::invalid("open", "did not come")))?? {
        Some(pb::WatchRequest { kind: Some(pb::watch_request::Kind::Open(open)) }) => open,
        _ => return Err(api.status(convert::invalid("open", "must be the first message"))),
    };
    let service = convert::service_filter(open.service).map_err(|error| api.status(error))?;
    let peer = connection.as_ref().map(|connection| connection.peer.ip());
    let after = Some(open.after_revision).filter(|revision| *revision > 0);
    let watcher = api.registry.watch(service, &open.cluster_id, after, peer).await;
    let watcher = watcher.map_err(|error| api.status(error))?;
    let stop = connection.map(|connection| connection.stop).unwrap_or_default();
    let frames = frames(api, watcher, stop).map(Some);
    // Acknowledgements are read, so that a client never blocks on sending them; barriers will keep them.
    let acknowledgements = inbound.map(|_| None);
    // The watch ends with the updates, not with the acknowledgements: a client may close its side early.
    let both = stream::select(frames, acknowledgements).filter_map(future::ready);
    let until_error = both.scan(false, |ended, frame| {
        let frame = (!*ended).then_some(frame);
        *ended |= matches!(frame, Some(Err(_)));
        future::ready(frame)
    });
    Ok(tonic::Response::new(stall::noticed(until_error).boxed()))
}

/// The frames of a watch, and why it ended.
fn frames(
    api: Api,
    watcher: Watcher,
    stop: CancellationToken,
) -> impl Stream<Item = Result<Frame, Status>> + Send {
    stream::unfold(Some((api, watcher, stop)), async |state| {
        let (api, mut watcher, stop) = state?;
        match stop.run_until_cancelled(watcher.next()).await {
            Some(Ok(update)) => Some((Ok((api.heads.now(&api), update)), Some((api, watcher, stop)))),
            Some(Err(error)) => Some((Err(api.status(error)), None)),
            None => Some((Err(Status::unavailable("this node stops")), None)),
        }
    })
    .flat_map(|update| {
        let (head, update) = match update {
            Ok(both) => both,
            Err(status) => return stream::iter(vec![Err(status)]).left_stream(),
        };
        stream::iter(Frame::of(head, update)).map(Ok).right_stream()
    })
}

/// One message of a watch.
struct Frame {
    head: Arc<Head>,
    /// What its receiver holds after it.
    revision: u64,
    body: Content,
}

enum Content {
    /// A part of a snapshot, by its number; the last one gives back the turn.
    Reset {
        snapshot: Arc<Snapshot>,
        part: usize,
        _turn: Arc<OwnedSemaphorePermit>,
    },
    Events(Vec<Arc<Shared>>),
    Progress,
}

impl Frame {
    fn of(head: Arc<Head>, update: Update) -> Vec<Frame> {
        let revision = update.revision();
        let frame = |body| Frame { head: head.clone(), revision, body };
        match update {
            Update::Reset { snapshot, turn } => {
                let turn = Arc::new(turn);
                let part = |part| Content::Reset { snapshot: snapshot.clone(), part, _turn: turn.clone() };
                (0..snapshot.parts()).map(|number| frame(part(number))).collect()
            }
            Update::Events { batches, .. } => vec![frame(Content::Events(batches))],
            Update::Progress { .. } => vec![frame(Content::Progress)],
        }
    }

    fn write(&self, into: &mut impl BufMut) {
        self.head.write(self.revision, into);
        match &self.body {
            Content::Reset { snapshot, part, .. } => {
                let instances = snapshot.wire(*part, |records| {
                    let instances = records.iter().map(|record| convert::instance(record)).collect();
                    pb::WatchReset { instances, ..Default::default() }.encode_to_vec().into()
                });
                let mut marks = [0u8; 4];
                let mut rest = &mut marks[..];
                for (tag, mark) in [(2, *part + 1 < snapshot.parts()), (3, *part == 0)] {
                    if mark {
                        encoding::bool::encode(tag, &true, &mut rest);
                    }
                }
                let left = rest.len();
                let marks = &marks[..marks.len() - left];
                field(2, instances.len() + marks.len(), into);
                into.put_slice(instances);
                into.put_slice(marks);
            }
            Content::Events(batches) => {
                let wires = || batches.iter().map(|shared| shared.wire(encode_events));
                field(3, wires().map(Bytes::len).sum(), into);
                wires().for_each(|wire| into.put_slice(wire));
            }
            Content::Progress => field(4, 0, into),
        }
    }
}

/// The events of a batch as they stand in `WatchEvents`, which is what several of them are put together to.
fn encode_events(batch: &Batch) -> Bytes {
    pb::WatchEvents { events: batch.events.iter().map(convert::event).collect() }.encode_to_vec().into()
}

/// The key and length of a message that follows.
fn field(tag: u32, bytes: usize, into: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, into);
    encode_varint(bytes as u64, into);
}

/// What is the same in every header that this node sends within a moment.
struct Head {
    made_at: Instant,
    /// All fields but the numbers below.
    texts: Bytes,
    compact_revision: u64,
    age_ms: u64,
}

impl Head {
    fn new(header: &Header) -> Head {
        let whole = convert::header(header);
        let (compact_revision, age_ms) = (whole.compact_revision, whole.age_ms);
        let texts = pb::ResponseHeader { revision: 0, compact_revision: 0, age_ms: 0, ..whole };
        Head { made_at: Instant::now(), texts: texts.encode_to_vec().into(), compact_revision, age_ms }
    }

    fn write(&self, revision: u64, into: &mut impl BufMut) {
        let numbers = [(4, revision), (5, self.compact_revision), (7, self.age_ms)];
        // Zero is not written, as everywhere in proto3; the keys of these fields take a byte.
        let bytes = numbers.iter().map(|(_, n)| if *n == 0 { 0 } else { 1 + encoded_len_varint(*n) });
        field(1, self.texts.len() + bytes.sum::<usize>(), into);
        into.put_slice(&self.texts);
        numbers.iter().filter(|(_, n)| *n != 0).for_each(|(tag, n)| encoding::uint64::encode(*tag, n, into));
    }
}

/// The newest head, made anew when it has become old.
#[derive(Clone, Default)]
pub struct Heads(Arc<Mutex<Option<Arc<Head>>>>);

impl Heads {
    fn now(&self, api: &Api) -> Arc<Head> {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*newest {
            Some(head) if head.made_at.elapsed() < HEAD_AGE => head.clone(),
            _ => newest.insert(Arc::new(Head::new(&api.registry.header()))).clone(),
        }
    }
}

/// Frames out, requests in.
#[derive(Clone, Copy, Default)]
struct Wire;

impl Codec for Wire {
    type Encode = Frame;
    type Decode = pb::WatchRequest;
    type Encoder = Wire;
    type Decoder = Wire;

    fn encoder(&mut self) -> Wire {
        Wire
    }

    fn decoder(&mut self) -> Wire {
        Wire
    }
}

impl Encoder for Wire {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        frame.write(into);
        Ok(())
    }
}

impl Decoder for Wire {
    type Item = pb::WatchRequest;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<pb::WatchRequest>, Status> {
        let garbled =
            |error| Status::invalid_argument(format!("a message of a watch cannot be read: {error}"));
        pb::WatchRequest::decode(from).map(Some).map_err(garbled)
    }
}

#[cfg(test)]
mod tests;
