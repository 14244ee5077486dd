//! A network in memory: calls go into the client that the server was built with, whole, and out of the service
//! that its peer port serves, so that everything but HTTP/2 itself runs. Each message alone is delayed, lost,
//! doubled or cut off; late ones overtake, but for those of one lasting stream. As over TCP a lost message is sent again, at growing intervals, while its
//! caller waits; and as with HTTP/2's pings a connection that stays silent breaks.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Collected, StreamBody};
use hyper::body::Frame;
use registry_node::{
    consensus::{Dial, NoConnection, PeerService, Wire, WireError},
    scope::Scope,
};
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};
use tower::{Service, ServiceExt};

use crate::trace::Trace;

/// After this a lost message is sent again, then after twice this, and so on.
const RETRANSMIT: Duration = Duration::from_millis(200);
/// A connection over which nothing comes back for this long is given up, as pings every 4 s with 3 s to answer do.
const BROKEN: Duration = Duration::from_secs(7);

/// The one call that is a conversation.
const LASTING: &str = "/raft.v1.Raft/Append";

/// The network. Cheap to clone.
#[derive(Clone)]
pub struct Net(Arc<Mutex<State>>);

struct State {
    dice: fastrand::Rng,
    trace: Trace,
    nodes: BTreeMap<u64, Port>,
    /// Directions in which nothing passes.
    cut: BTreeMap<(u64, u64), ()>,
    weather: Weather,
    /// Directions with a weather of their own.
    local: BTreeMap<(u64, u64), Weather>,
    sent: u64,
    lost: u64,
}

#[derive(Clone)]
struct Port {
    service: PeerService,
    scope: Scope,
    /// Cancelled when its process ends.
    gone: CancellationToken,
}

/// How messages fare.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    pub delay_min: Duration,
    pub delay_max: Duration,
    /// Of a thousand messages.
    pub lost: u32,
    pub doubled: u32,
    /// Of a thousand messages, delayed ten times as long.
    pub late: u32,
}

impl Weather {
    /// A local network.
    pub const FAIR: Self = Self {
        delay_min: Duration::from_micros(100),
        delay_max: Duration::from_micros(600),
        lost: 0,
        doubled: 0,
        late: 0,
    };
}

impl Net {
    pub fn new(dice: fastrand::Rng, trace: Trace) -> Self {
        Self(Arc::new(Mutex::new(State {
            dice,
            trace,
            nodes: BTreeMap::new(),
            cut: BTreeMap::new(),
            weather: Weather::FAIR,
            local: BTreeMap::new(),
            sent: 0,
            lost: 0,
        })))
    }

    /// A node's port opens.
    pub fn open(&self, id: u64, service: PeerService, scope: Scope, gone: CancellationToken) {
        self.state().nodes.insert(id, Port { service, scope, gone });
    }

    /// A node's port is gone: its process is.
    pub fn close(&self, id: u64) {
        self.state().nodes.remove(&id);
    }

    /// Nothing passes from one node to another.
    pub fn cut(&self, from: u64, to: u64) {
        self.state().cut.insert((from, to), ());
    }

    /// Ends every cut and every bad weather.
    pub fn heal(&self) {
        let mut state = self.state();
        state.cut.clear();
        state.local.clear();
        state.weather = Weather::FAIR;
    }

    /// Ends every cut.
    pub fn mend(&self) {
        self.state().cut.clear();
    }

    /// Ends the cuts among these nodes, and the weather between them is fair.
    pub fn heal_among(&self, nodes: &[u64]) {
        let mut state = self.state();
        state.cut.retain(|(from, to), ()| !(nodes.contains(from) && nodes.contains(to)));
        for &from in nodes {
            for &to in nodes {
                state.local.insert((from, to), Weather::FAIR);
            }
        }
    }

    /// The weather everywhere else.
    pub fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// Messages sent, and how many of them were lost.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.sent, state.lost)
    }

    /// How a node reaches the others. Names are `http://node-ID`.
    pub fn dial(&self, from: u64) -> Dial {
        let net = self.clone();
        Arc::new(move |url: &str| {
            let to = url.rsplit_once("node-").and_then(|(_, id)| id.split(':').next()?.parse().ok());
            Wire::new(Way { net: net.clone(), from, to: to.unwrap_or(0) })
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while it is held")
    }

    /// What becomes of one message: how late it comes, and its double; never if none.
    fn fate(&self, from: u64, to: u64, what: &str, bytes: usize) -> (Option<Duration>, Option<Duration>) {
        let mut state = self.state();
        let weather = state.local.get(&(from, to)).copied().unwrap_or(state.weather);
        let cut = state.cut.contains_key(&(from, to));
        let delay = |dice: &mut fastrand::Rng| {
            let range = weather.delay_min.as_micros() as u64..=weather.delay_max.as_micros() as u64;
            let micros = dice.u64(range) * if dice.u32(..1000) < weather.late { 10 } else { 1 };
            Duration::from_micros(micros)
        };
        let lost = state.dice.u32(..1000) < weather.lost || cut;
        let doubled = state.dice.u32(..1000) < weather.doubled && !lost;
        let first = (!lost).then(|| delay(&mut state.dice));
        let second = doubled.then(|| delay(&mut state.dice));
        state.sent += 1;
        state.lost += u64::from(lost);
        state.trace.note(&[1, from, to, bytes as u64, first.map_or(0, |d| d.as_micros() as u64)], what);
        (first, second)
    }

    /// Takes a message across, however often it is lost; false if the connection breaks first. The time at which a
    /// double of it arrives is told to `double`.
    async fn carry(
        &self,
        (from, to): (u64, u64),
        what: &str,
        bytes: usize,
        double: impl FnOnce(Duration),
    ) -> bool {
        let (mut waited, mut again) = (Duration::ZERO, RETRANSMIT);
        loop {
            let (first, second) = self.fate(from, to, what, bytes);
            if let Some(delay) = first {
                second.map(double);
                sleep(delay).await;
                return true;
            }
            if waited + again > BROKEN {
                sleep(BROKEN - waited).await;
                return false;
            }
            sleep(again).await;
            (waited, again) = (waited + again, 2 * again);
        }
    }

    /// A request as it arrives, and its answer; fails if there is no process, or if it ends meanwhile.
    async fn deliver(&self, to: u64, request: Parcel) -> Result<Parcel2, WireError> {
        let port = self.state().nodes.get(&to).cloned().ok_or_else(|| WireError(NoConnection.into()))?;
        let service = port.service.clone();
        let work = async move {
            let response: Result<_, Infallible> = service.oneshot(request.unpack()).await;
            let (head, body) = response.unwrap_or_else(|never| match never {}).into_parts();
            let body = body.collect().await.unwrap_or_default();
            Parcel2 { head, body }
        };
        // The server's own task: it goes on when the caller has given up, stops with its node.
        let answer = tokio::spawn(port.scope.run(work));
        tokio::select! {
            biased;
            () = port.gone.cancelled() => Err(broken()),
            answer = answer => answer.map_err(|_| broken()),
        }
    }
}

/// The messages of a stream, one way.
type Messages = mpsc::Sender<Result<Frame<Bytes>, Status>>;

/// A stream that lasts: each of its messages crosses by itself, in order, and when one cannot the stream breaks.
#[derive(Clone)]
struct Link {
    net: Net,
    path: String,
    /// Cancelled when the called process is gone, or the connection is.
    broken: CancellationToken,
}

impl Link {
    /// Takes messages across until one end has no more, or is gone.
    async fn pump(
        self,
        way: (u64, u64),
        mut from: Body,
        to: Messages,
        double: impl Fn(Bytes, Duration) + Send,
    ) {
        loop {
            let frame = tokio::select! {
                biased;
                () = self.broken.cancelled() => Some(Err(lost())),
                frame = from.frame() => frame,
            };
            let Some(frame) = frame else { return };
            let data = frame.as_ref().ok().and_then(Frame::data_ref).cloned().unwrap_or_default();
            let crosses = frame.is_err()
                || self.net.carry(way, &self.path, data.len(), |delay| double(data.clone(), delay)).await;
            let ends = frame.is_err() || !crosses;
            let frame = if crosses { frame } else { Err(lost()) };
            if to.send(frame).await.is_err() || ends {
                return self.broken.cancel();
            }
        }
    }
}

fn lost() -> Status {
    Status::unavailable("the connection broke")
}

impl Net {
    /// A call whose messages come one by one, both ways.
    async fn lasting(
        self,
        from: u64,
        to: u64,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, WireError> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        if !self.carry((from, to), &path, 0, |_| ()).await {
            return Err(broken());
        }
        let port = self.state().nodes.get(&to).cloned().ok_or_else(|| WireError(NoConnection.into()))?;
        let link = Link { net: self.clone(), path: path.clone(), broken: port.gone.child_token() };
        let parcel = |body| Parcel {
            uri: head.uri.clone(),
            method: head.method.clone(),
            headers: head.headers.clone(),
            body,
        };
        // A double comes by a stream of its own.
        let (net, alone) = (self.clone(), parcel(Bytes::new()));
        let double = move |body, delay| {
            let (net, parcel) = (net.clone(), Parcel { body, ..alone.clone() });
            drop(tokio::spawn(async move {
                sleep(delay).await;
                drop(net.deliver(to, parcel).await);
            }));
        };
        let (there, arriving) = mpsc::channel(1);
        tokio::spawn(link.clone().pump((from, to), body, there, double));
        let request = parcel(Bytes::new()).unpack().map(|_| streamed(arriving));
        let service = port.service.clone();
        let begun = tokio::spawn(port.scope.run(async move {
            let response: Result<_, Infallible> = service.oneshot(request).await;
            response.unwrap_or_else(|never| match never {})
        }));
        let response = tokio::select! {
            biased;
            () = link.broken.cancelled() => return Err(broken()),
            response = begun => response.map_err(|_| broken())?,
        };
        let (head, mut answers) = response.into_parts();
        // What makes the answers is the server's own.
        let (made, making) = mpsc::channel(1);
        tokio::spawn(port.scope.run(async move {
            while let Some(frame) = answers.frame().await
                && made.send(frame).await.is_ok()
            {}
        }));
        let (back, arriving) = mpsc::channel(1);
        tokio::spawn(link.pump((to, from), streamed(making), back, |_, _| ()));
        match self.carry((to, from), &path, 0, |_| ()).await {
            true => Ok(http::Response::from_parts(head, streamed(arriving))),
            false => Err(broken()),
        }
    }
}

fn streamed(frames: mpsc::Receiver<Result<Frame<Bytes>, Status>>) -> Body {
    Body::new(StreamBody::new(ReceiverStream::new(frames)))
}

fn broken() -> WireError {
    WireError("the connection broke".into())
}

/// A request in one piece, so that it can be delivered twice.
#[derive(Clone)]
struct Parcel {
    uri: http::Uri,
    method: http::Method,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Parcel {
    async fn pack(request: http::Request<Body>) -> Option<Self> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.ok()?.to_bytes();
        Some(Self { uri: head.uri, method: head.method, headers: head.headers, body })
    }

    fn unpack(self) -> http::Request<Body> {
        let mut request = http::Request::new(Body::new(http_body_util::Full::new(self.body)));
        (*request.uri_mut(), *request.method_mut(), *request.headers_mut()) =
            (self.uri, self.method, self.headers);
        *request.version_mut() = http::Version::HTTP_2;
        request
    }
}

/// An answer in one piece, with its trailers.
struct Parcel2 {
    head: http::response::Parts,
    body: Collected<Bytes>,
}

/// The way from one node to another.
#[derive(Clone)]
struct Way {
    net: Net,
    from: u64,
    to: u64,
}

impl Service<http::Request<Body>> for Way {
    type Response = http::Response<Body>;
    type Error = WireError;
    type Future = BoxFuture<'static, Result<Self::Response, WireError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Self { net, from, to } = self.clone();
        if request.uri().path() == LASTING {
            return Box::pin(net.lasting(from, to, request));
        }
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let parcel = Parcel::pack(request).await.ok_or_else(broken)?;
            let double = |delay| {
                let (net, parcel) = (net.clone(), parcel.clone());
                drop(tokio::spawn(async move {
                    sleep(delay).await;
                    drop(net.deliver(to, parcel).await);
                }));
            };
            if !net.carry((from, to), &path, parcel.body.len(), double).await {
                return Err(broken());
            }
            let answer = net.deliver(to, parcel.clone()).await?;
            match net.carry((to, from), &path, 0, |_| ()).await {
                true => Ok(http::Response::from_parts(answer.head, Body::new(answer.body))),
                false => Err(broken()),
            }
        })
    }
}
