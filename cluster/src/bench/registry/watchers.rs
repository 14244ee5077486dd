//! Watchers that cost the load little: of each message they decode what they measure, and skip the rest.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, stream};
use http::uri::PathAndQuery;
use proto::registry::v1 as pb;
use tokio::{task::JoinSet, time::Instant};
use tonic::{Request, Streaming, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use super::nodes::{Unary, instance};
use crate::bench::report::quantile;

/// When something happened, in microseconds since a run began, by the number of a write.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    begun: Instant,
    sent: Arc<[AtomicU64]>,
    acknowledged: Arc<[AtomicU64]>,
}

impl Clock {
    /// For so many writes.
    pub fn new(writes: usize) -> Self {
        let blank = || (0..writes).map(|_| AtomicU64::new(0)).collect();
        Self { begun: Instant::now(), sent: blank(), acknowledged: blank() }
    }

    fn now(&self) -> u64 {
        // Zero is "not yet".
        self.begun.elapsed().as_micros() as u64 + 1
    }

    /// How many writes were acknowledged.
    pub fn writes(&self) -> usize {
        self.acknowledged.iter().filter(|at| at.load(Ordering::Relaxed) > 0).count()
    }

    /// How long after it was sent, and after it was acknowledged, each event arrived, in milliseconds. One that came
    /// before its acknowledgement counts as zero.
    fn lags(&self, arrivals: &[(u32, u64)]) -> (Vec<f64>, Vec<f64>) {
        let since = |marks: &[AtomicU64]| {
            let lag = |(nth, at): &(u32, u64)| {
                let mark = marks.get(*nth as usize).map_or(0, |mark| mark.load(Ordering::Relaxed));
                (mark > 0).then(|| at.saturating_sub(mark) as f64 / 1e3)
            };
            arrivals.iter().filter_map(lag).collect()
        };
        (since(&self.sent), since(&self.acknowledged))
    }
}

/// What a watch says.
#[derive(Debug)]
pub(super) enum Said {
    /// It starts over with the present records.
    Reset,
    /// Events, by the numbers of their writes, and the revision that is reached.
    Events(Vec<u32>),
    /// Nothing new up to this revision.
    Progress(u64),
}

/// A watch of every service from now on.
#[derive(Debug)]
pub(super) struct Watch(Streaming<Response>);

impl Watch {
    /// Opens it and reads its first reset to the end.
    pub async fn open(channel: &Channel) -> Result<Self> {
        let mut watch = Self::begin(channel, String::new(), 0).await?;
        let first = watch.0.message().await.context("the watch has ended")?.context("the watch has ended")?;
        let mut reset = first.reset.context("a watch without a revision must begin with a reset")?;
        while reset.more {
            let next = watch.0.message().await.context("the watch has ended")?;
            reset = next.and_then(|next| next.reset).context("a reset must be whole")?;
        }
        Ok(watch)
    }

    /// Opens it after a revision of a cluster; what comes first is not read.
    pub async fn resume(channel: &Channel, from: &pb::ResponseHeader) -> Result<Self> {
        Self::begin(channel, from.cluster_id.clone(), from.revision).await
    }

    async fn begin(channel: &Channel, cluster_id: String, after_revision: u64) -> Result<Self> {
        let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
        grpc.ready().await?;
        let watcher = "bench".into();
        let open = pb::WatchOpen { watcher, cluster_id, after_revision, ..pb::WatchOpen::default() };
        let open = pb::WatchRequest { kind: Some(pb::watch_request::Kind::Open(open)) };
        // It stays open: a client that has nothing to say is still there.
        let requests = Request::new(stream::iter([open]).chain(stream::pending()));
        let path = PathAndQuery::from_static("/registry.v1.Registry/Watch");
        let codec = ProstCodec::<pb::WatchRequest, Response>::default();
        Ok(Self(grpc.streaming(requests, path, codec).await.context("the watch is refused")?.into_inner()))
    }

    /// What comes next.
    pub async fn next(&mut self) -> Result<Said> {
        let said = self.0.message().await.context("the watch has ended")?.context("the watch has ended")?;
        Ok(match said {
            Response { reset: Some(_), .. } => Said::Reset,
            Response { events: Some(Events { events }), .. } => {
                let number = |event: &Event| event.instance.as_ref()?.version.parse().ok();
                Said::Events(events.iter().filter_map(number).collect())
            }
            response => Said::Progress(response.header.map_or(0, |header| header.revision)),
        })
    }
}

/// What watchers have received of one run of writes.
#[derive(Debug, Default)]
pub(super) struct Received {
    /// Writes that failed: nobody has to hear of them.
    pub failed: usize,
    /// Events that came, over all watchers.
    pub events: usize,
    /// Of these, how many within a second of being sent.
    pub in_time: usize,
    /// Milliseconds from sending the write to receiving the event.
    pub since_sent: Vec<f64>,
    /// The same from the write's acknowledgement, which leaves the leader when it is committed and applied.
    pub since_acknowledged: Vec<f64>,
}

impl Received {
    /// p50 and p99 since the acknowledgement and since sending, for people.
    pub fn describe(&self) -> String {
        format!(
            "from the acknowledgement p50 {:.2} ms p99 {:.2} ms; from sending the write p50 {:.2} ms p99 {:.2} ms",
            quantile(&self.since_acknowledged, 0.5),
            quantile(&self.since_acknowledged, 0.99),
            quantile(&self.since_sent, 0.5),
            quantile(&self.since_sent, 0.99),
        )
    }
}

/// How long after the last write a watcher may take to hear of it.
const DRAIN: Duration = Duration::from_secs(5);

/// Writes `per_second` for so long, and returns what `watches` heard of it.
pub(super) async fn follow(
    watches: Vec<Watch>,
    writers: Vec<Unary>,
    per_second: u64,
    duration: Duration,
) -> Result<(Received, Clock)> {
    let writes = (per_second as f64 * duration.as_secs_f64()) as usize;
    let clock = Clock::new(writes);
    let deadline = Instant::now() + duration + DRAIN;
    let mut watching = JoinSet::new();
    for watch in watches {
        watching.spawn(collect(watch, clock.clone(), writes, deadline));
    }
    let failed = pace(writers, &clock, writes, per_second).await?;
    let mut received = Received { failed, ..Received::default() };
    while let Some(arrivals) = watching.join_next().await {
        let (sent, acknowledged) = clock.lags(&arrivals.context("a watcher has panicked")?);
        received.events += sent.len();
        received.in_time += sent.iter().filter(|lag| **lag <= 1_000.0).count();
        received.since_sent.extend(sent);
        received.since_acknowledged.extend(acknowledged);
    }
    Ok((received, clock))
}

/// Numbers and times of what arrives, until all has or the deadline passes.
async fn collect(mut watch: Watch, clock: Clock, writes: usize, deadline: Instant) -> Vec<(u32, u64)> {
    let mut arrivals = Vec::with_capacity(writes);
    let mut timeout = pin!(tokio::time::sleep_until(deadline));
    while arrivals.len() < writes {
        tokio::select! {
            said = watch.next() => match said {
                Ok(Said::Events(numbers)) => {
                    let now = clock.now();
                    arrivals.extend(numbers.into_iter().map(|nth| (nth, now)));
                }
                Ok(Said::Progress(_)) => {}
                // Overtaken by the ring, or its connection given up: what it has not heard counts as missed.
                Ok(Said::Reset) | Err(_) => break,
            },
            () = &mut timeout => break,
        }
    }
    arrivals
}

/// Instances that are written in turns.
const INSTANCES: u64 = 1_000;

/// Sends `writes` at equal distances, whether or not the ones before are answered. Returns how many failed.
async fn pace(writers: Vec<Unary>, clock: &Clock, writes: usize, per_second: u64) -> Result<usize> {
    let mut calls = JoinSet::new();
    let begun = Instant::now();
    for (nth, writer) in (0..writes).zip(writers.iter().cycle()) {
        tokio::time::sleep_until(begun + Duration::from_secs_f64(nth as f64 / per_second as f64)).await;
        let (clock, mut writer) = (clock.clone(), writer.clone());
        calls.spawn(async move {
            let mut instance = instance(nth as u64 % INSTANCES);
            instance.version = nth.to_string();
            if let Some(sent) = clock.sent.get(nth) {
                sent.store(clock.now(), Ordering::Relaxed);
            }
            let answered = writer.put(instance).await;
            if let (Ok(()), Some(at)) = (&answered, clock.acknowledged.get(nth)) {
                at.store(clock.now(), Ordering::Relaxed);
            }
            answered
        });
    }
    let mut failed = 0;
    while let Some(answered) = calls.join_next().await {
        failed += usize::from(answered.context("a writer has panicked")?.is_err());
    }
    Ok(failed)
}

#[derive(Clone, PartialEq, prost::Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(message, optional, tag = "2")]
    reset: Option<Reset>,
    #[prost(message, optional, tag = "3")]
    events: Option<Events>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "4")]
    revision: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Reset {
    #[prost(bool, tag = "2")]
    more: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Events {
    #[prost(message, repeated, tag = "1")]
    events: Vec<Event>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    #[prost(message, optional, tag = "3")]
    instance: Option<Instance>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Instance {
    #[prost(string, tag = "10")]
    version: String,
}
