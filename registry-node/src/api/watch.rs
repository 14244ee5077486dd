//! `Watch` over gRPC, from bytes that all watchers of a service share: an event is encoded when the first of them
//! needs it, a part of a snapshot likewise, and the texts of a header once for the whole node. What is left for
//! each watcher is to put them in line.
//!
//! # Why not the generated service
//! Its codec encodes each message for each watcher: with a thousand of them that is a thousand times the same work.
//! And it keeps a buffer for each stream that is as large as the largest message it has carried: a watcher that has
//! once been sent a snapshot would cost a quarter of a MiB for as long as it lives.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, stream};
use hyper::HeaderMap;
use hyper::body::Frame;
use prost::Message;
use prost::encoding::{self, WireType, encode_key, encode_varint, encoded_len_varint};
use proto::registry::v1 as pb;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};
use tonic::{Status, Streaming};

use super::request::Connection;
use super::{Api, convert, stall};
use crate::registry::{Batch, Error, Header, Shared, Snapshot, Update, Watcher};

/// A watch says what it wants in its first message, and at once.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How old the common part of a header may be: only the leader's address and the age of a follower's word change.
const HEAD_AGE: Duration = Duration::from_millis(10);

/// Room for what a watch is asked for: an opening or an acknowledgement. It grows for a larger one.
const REQUEST_BYTES: usize = 256;

/// Serves one call of `registry.v1.Registry/Watch`.
pub async fn serve(State(api): State<Api>, request: Request) -> Response {
    match open(api, request).await {
        Ok(answer) => {
            let mut response = Response::new(Body::new(answer));
            let kind = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Err(status) => status.into_http(),
    }
}

async fn open(api: Api, request: Request) -> Result<Answer, Status> {
    let (parts, body) = request.into_parts();
    if let Some(encoding) = parts.headers.get("grpc-encoding").filter(|encoding| *encoding != "identity") {
        return Err(Status::unimplemented(format!(
            "{encoding:?} is not supported: send messages as they are"
        )));
    }
    let connection = Connection::of(&parts.extensions).cloned();
    drop(parts); // it would live as long as the watch
    let mut inbound = Streaming::new_request(Requests, body, None, Some(api.limits.message_bytes_max));
    let open = timeout(OPEN_TIMEOUT, inbound.message()).await;
    let open = match open.map_err(|_| api.status(convert::invalid("open", "did not come")))?? {
        Some(pb::WatchRequest { kind: Some(pb::watch_request::Kind::Open(open)) }) => open,
        _ => return Err(api.status(convert::invalid("open", "must be the first message"))),
    };
    let service = convert::service_filter(open.service).map_err(|error| api.status(error))?;
    let peer = connection.as_ref().map(|connection| connection.peer.ip());
    let after = Some(open.after_revision).filter(|revision| *revision > 0);
    let watcher = api.registry.watch(service, &open.cluster_id, after, open.min_revision, peer).await;
    let watcher = watcher.map_err(|error| api.status(error))?;
    let stop = connection.map(|connection| connection.stop).unwrap_or_default();
    let messages = Messages {
        updates: updates(api, watcher, stop).boxed(),
        inbound: Some(inbound),
        reset: None,
        ready: VecDeque::new(),
        ended: false,
    };
    Ok(Answer(stall::noticed(messages).boxed()))
}

/// The updates of a watch, each with what its header says, and why it ended.
fn updates(
    api: Api,
    watcher: Watcher,
    stop: CancellationToken,
) -> impl Stream<Item = Result<(Arc<Head>, Update), Status>> + Send {
    stream::unfold(Some((api, watcher, stop)), async |state| {
        let (api, mut watcher, stop) = state?;
        match stop.run_until_cancelled(watcher.next()).await {
            Some(Ok(update)) => Some((Ok((api.heads.now(&api), update)), Some((api, watcher, stop)))),
            Some(Err(error)) => Some((Err(api.status(error)), None)),
            None => Some((Err(api.status(Error::NotReady { why: "it is stopping".into() })), None)),
        }
    })
}

/// The body of the answer: the messages' bytes, and at the end the status, which is why the watch ended.
struct Answer(BoxStream<'static, Result<Bytes, Status>>);

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(ready!(self.0.poll_next_unpin(cx)).map(|piece| match piece {
            Ok(bytes) => Ok(Frame::data(bytes)),
            Err(status) => {
                let mut trailers = HeaderMap::new();
                status.add_header(&mut trailers)?;
                Ok(Frame::trailers(trailers))
            }
        }))
    }
}

/// What a watcher is sent, piece by piece, in the end the status.
struct Messages {
    updates: BoxStream<'static, Result<(Arc<Head>, Update), Status>>,
    /// What the watcher says; none once it has closed its side, which ends nothing.
    inbound: Option<Streaming<pb::WatchRequest>>,
    /// The snapshot that is being sent.
    reset: Option<Reset>,
    /// Pieces of one message that can go.
    ready: VecDeque<Bytes>,
    ended: bool,
}

/// A snapshot on its way, part by part. Its turn is given back with it, for which others may wait.
struct Reset {
    head: Arc<Head>,
    snapshot: Arc<Snapshot>,
    part: usize,
    _turn: OwnedSemaphorePermit,
    _hurry: stall::Hurry,
}

impl Stream for Messages {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(piece) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(piece)));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            if let Some(reset) = &mut this.reset {
                if !reset.write(&mut this.ready) {
                    this.reset = None;
                }
                continue;
            }
            let next = match this.poll_inbound(cx) {
                Some(status) => Some(Err(status)),
                None => ready!(this.updates.poll_next_unpin(cx)),
            };
            match next {
                Some(Ok((head, Update::Reset { snapshot, turn }))) => {
                    let _hurry = stall::hurry();
                    this.reset = Some(Reset { head, snapshot, part: 0, _turn: turn, _hurry });
                }
                Some(Ok((head, Update::Events { revision, batches }))) => {
                    this.ready.push_back(events(&head, revision, &batches));
                }
                Some(Ok((head, Update::Progress { revision }))) => {
                    this.ready.push_back(begin(&head, revision, 4, 0, 0).freeze());
                }
                Some(Err(status)) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(status)));
                }
                None => this.ended = true,
            }
        }
    }
}

impl Messages {
    /// Takes in what the watcher says, so that it never blocks on saying it; barriers will keep it. Gives why the
    /// watch has to end if it cannot be read.
    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> Option<Status> {
        while let Some(inbound) = &mut self.inbound {
            match inbound.poll_next_unpin(cx) {
                Poll::Pending => return None,
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(status))) => return Some(status),
                Poll::Ready(None) => self.inbound = None,
            }
        }
        None
    }
}

impl Reset {
    /// Puts the next part in line; false after the last.
    fn write(&mut self, ready: &mut VecDeque<Bytes>) -> bool {
        let (part, parts) = (self.part, self.snapshot.parts());
        let instances = self.snapshot.wire(part, |records| {
            let instances = convert::instances(records);
            pb::WatchReset { instances, ..Default::default() }.encode_to_vec().into()
        });
        let mut marks = BytesMut::new();
        let (first, more) = self.snapshot.place(part);
        for (tag, mark) in [(2, more), (3, first)] {
            if mark {
                encoding::bool::encode(tag, &true, &mut marks);
            }
        }
        let body = instances.len() + marks.len();
        ready.push_back(begin(&self.head, self.snapshot.revision, 2, body, 0).freeze());
        // Shared by all who are sent it.
        ready.extend([instances.clone(), marks.freeze()].into_iter().filter(|piece| !piece.is_empty()));
        self.part += 1;
        self.part < parts
    }
}

/// A message of events. They are copied: many small pieces would cost more on their way than that.
fn events(head: &Head, revision: u64, batches: &[Arc<Shared>]) -> Bytes {
    let wires = || batches.iter().map(|shared| shared.wire(encode_events));
    let bytes = wires().map(Bytes::len).sum();
    let mut message = begin(head, revision, 3, bytes, bytes);
    wires().for_each(|wire| message.put_slice(wire));
    message.freeze()
}

/// The events of a batch as they stand in `WatchEvents`, which is what several of them are put together to.
fn encode_events(batch: &Batch) -> Bytes {
    pb::WatchEvents { events: batch.events.iter().map(convert::event).collect() }.encode_to_vec().into()
}

/// A message up to where its kind's `body` bytes follow, with room for `room` of them: gRPC's mark that it is not
/// compressed, its length, its header, and its kind's key and length.
fn begin(head: &Head, revision: u64, kind: u32, body: usize, room: usize) -> BytesMut {
    const PREFIX: usize = 5;
    let head_bytes = head.bytes(revision);
    let bytes = field_bytes(head_bytes) + head_bytes + field_bytes(body) + body;
    let mut message = BytesMut::with_capacity(PREFIX + bytes - body + room);
    message.put_u8(0);
    message.put_u32(u32::try_from(bytes).expect("an update is cut into messages far smaller"));
    field(1, head_bytes, &mut message);
    head.write(revision, &mut message);
    field(kind, body, &mut message);
    message
}

/// The key and length of a message that follows. Keys up to 15 take a byte.
fn field(tag: u32, bytes: usize, into: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, into);
    encode_varint(bytes as u64, into);
}

fn field_bytes(bytes: usize) -> usize {
    1 + encoded_len_varint(bytes as u64)
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

    /// The numbers of a header about `revision`. Zero is not written, as everywhere in proto3.
    fn numbers(&self, revision: u64) -> impl Iterator<Item = (u32, u64)> + use<> {
        let numbers = [(4, revision), (5, self.compact_revision), (7, self.age_ms)];
        numbers.into_iter().filter(|(_, number)| *number != 0)
    }

    fn bytes(&self, revision: u64) -> usize {
        let numbers = self.numbers(revision).map(|(_, number)| field_bytes(number as usize));
        self.texts.len() + numbers.sum::<usize>()
    }

    fn write(&self, revision: u64, into: &mut impl BufMut) {
        into.put_slice(&self.texts);
        self.numbers(revision).for_each(|(tag, number)| encoding::uint64::encode(tag, &number, into));
    }
}

/// The newest head, made anew when it has become old.
#[derive(Default)]
pub struct Heads(Mutex<Option<Arc<Head>>>);

impl Heads {
    fn now(&self, api: &Api) -> Arc<Head> {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*newest {
            Some(head) if head.made_at.elapsed() < HEAD_AGE => head.clone(),
            _ => newest.insert(Arc::new(Head::new(&api.registry.header()))).clone(),
        }
    }
}

/// Reads what a watcher says.
#[derive(Clone, Copy)]
struct Requests;

impl Decoder for Requests {
    type Item = pb::WatchRequest;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<pb::WatchRequest>, Status> {
        let garbled =
            |error| Status::invalid_argument(format!("a message of a watch cannot be read: {error}"));
        pb::WatchRequest::decode(from).map(Some).map_err(garbled)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(REQUEST_BYTES, REQUEST_BYTES)
    }
}

#[cfg(test)]
mod tests;
