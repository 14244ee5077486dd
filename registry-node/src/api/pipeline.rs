//! `Pipeline`: one stream each way for all writes and heartbeats of a client.
//!
//! Everything that has come is taken in before anything is waited for, and everything that is answered leaves
//! together. Beyond the bounds of a pipeline nothing is read: the client's window fills, and it waits. A stream
//! that this node ends has answered every request that it took in; what it did not answer it has not seen.

use std::pin::Pin;

use futures_util::{Stream, StreamExt, future::poll_immediate, stream};
use proto::registry::v1 as pb;
use proto::registry::v1::pipeline_request::Call;
use proto::registry::v1::pipeline_response::Result as Answer;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Status, Streaming};

use super::{Api, convert};
use crate::catalog::{InstanceId, Record};
use crate::registry::{Answered, Caller, Done, Error, Header, Pipeline};

/// The answers to the requests that come in; nobody named is `by`.
pub fn answers(
    api: Api,
    inbound: Streaming<pb::PipelineRequest>,
    by: String,
    stop: CancellationToken,
) -> impl Stream<Item = Result<pb::PipelineResponse, Status>> + Send {
    let calls = api.registry.pipeline();
    let stop = Box::pin(stop.cancelled_owned());
    let carrier = Carrier { api, inbound, calls, by, stop, end: None, leader: None };
    stream::unfold(carrier, async |mut carrier| Some((carrier.turn().await?, carrier))).flat_map(stream::iter)
}

/// One stream.
struct Carrier {
    api: Api,
    inbound: Streaming<pb::PipelineRequest>,
    calls: Pipeline,
    by: String,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Nothing more is taken in, and how the stream ends once everything is answered.
    end: Option<End>,
    /// Whom the client was last told to be the leader: none yet, or nobody.
    leader: Option<Option<u64>>,
}

enum End {
    /// The client has no more requests.
    Served,
    /// This node stops, or what came cannot be read.
    Failed(Status),
    /// The end has been told.
    Told,
}

impl Carrier {
    /// The next messages; none at the end.
    async fn turn(&mut self) -> Option<Vec<Result<pb::PipelineResponse, Status>>> {
        loop {
            if self.calls.is_idle()
                && let Some(end) = &mut self.end
            {
                return match std::mem::replace(end, End::Told) {
                    End::Failed(status) => Some(vec![Err(status)]),
                    End::Served | End::Told => None,
                };
            }
            let reads = self.end.is_none();
            tokio::select! {
                biased;
                () = self.stop.as_mut(), if reads => {
                    self.end = Some(End::Failed(Status::unavailable("this node stops")));
                }
                answered = self.calls.next(), if !self.calls.is_idle() => return Some(self.tell(answered)),
                request = self.inbound.message(), if reads && self.calls.has_room() => {
                    self.take(request);
                    self.take_what_is_there().await;
                }
            }
        }
    }

    async fn take_what_is_there(&mut self) {
        while self.end.is_none()
            && self.calls.has_room()
            && let Some(request) = poll_immediate(self.inbound.message()).await
        {
            self.take(request);
        }
    }

    fn take(&mut self, request: Result<Option<pb::PipelineRequest>, Status>) {
        match request {
            Ok(Some(request)) => self.begin(request),
            Ok(None) => self.end = Some(End::Served),
            Err(status) => self.end = Some(End::Failed(status)),
        }
    }

    fn begin(&mut self, request: pb::PipelineRequest) {
        let seq = request.seq;
        let (operation, begun) = match request.call {
            Some(Call::Register(call)) => ("register", self.register(seq, call)),
            Some(Call::Heartbeat(call)) => {
                return self.calls.heartbeat(seq, call.beats.into_iter().map(convert::beat));
            }
            Some(Call::Deregister(call)) => ("deregister", self.deregister(seq, call)),
            Some(Call::SetStatus(call)) => ("set_status", self.set_status(seq, call)),
            None => {
                ("pipeline", Err(convert::invalid("call", "is missing, or is one this node does not know")))
            }
        };
        if let Err(error) = begun {
            self.calls.refuse(seq, operation, error);
        }
    }

    fn register(&mut self, seq: u64, call: pb::RegisterRequest) -> Result<(), Error> {
        let pb::RegisterRequest { instance, expected_revision, by, why, client, seq: number } = call;
        let caller = self.caller(by, why, client, number)?;
        let spec = convert::spec(instance, &self.api.limits)?;
        self.calls.register(seq, spec, expected_revision, caller);
        Ok(())
    }

    fn deregister(&mut self, seq: u64, call: pb::DeregisterRequest) -> Result<(), Error> {
        let pb::DeregisterRequest { id, reg_rev, by, why, client, seq: number } = call;
        let caller = self.caller(by, why, client, number)?;
        self.calls.deregister(seq, InstanceId::new(id)?, convert::reg_rev(reg_rev), caller);
        Ok(())
    }

    fn set_status(&mut self, seq: u64, call: pb::SetStatusRequest) -> Result<(), Error> {
        let pb::SetStatusRequest { id, status, reg_rev, by, why, client, seq: number } = call;
        let caller = self.caller(by, why, client, number)?;
        let status = convert::instance_status(status)?;
        self.calls.set_status(seq, InstanceId::new(id)?, status, convert::reg_rev(reg_rev), caller);
        Ok(())
    }

    fn caller(&self, by: String, why: String, client: String, seq: u64) -> Result<Caller, Error> {
        convert::caller(by, why, client, seq, self.by.clone())
    }

    fn tell(&mut self, answered: Vec<Answered>) -> Vec<Result<pb::PipelineResponse, Status>> {
        self.count(&answered);
        let head = self.calls.header();
        answered.into_iter().map(|answered| Ok(self.message(&head, answered))).collect()
    }

    fn message(&mut self, head: &Header, answered: Answered) -> pb::PipelineResponse {
        let result = match answered.result {
            Ok(Done::Registered(record)) => Answer::Register(pb::RegisterResponse {
                header: Some(self.header(head, record.mod_rev)),
                instance: Some(receipt(&record)),
            }),
            Ok(Done::Renewed(renewed)) => Answer::Heartbeat(pb::HeartbeatResponse {
                header: Some(self.header(head, head.revision)),
                results: convert::beat_results(renewed),
            }),
            Ok(Done::Deregistered { revision, found }) => {
                let header = Some(self.header(head, revision));
                Answer::Deregister(pb::DeregisterResponse { header, found })
            }
            Ok(Done::StatusSet { revision, record }) => Answer::SetStatus(pb::SetStatusResponse {
                header: Some(self.header(head, revision)),
                instance: Some(convert::instance(&record)),
            }),
            Err(error) => Answer::Error(convert::call_error(&error)),
        };
        pb::PipelineResponse { seq: answered.seq, result: Some(result) }
    }

    /// A header whose texts are told when they are news.
    fn header(&mut self, head: &Header, revision: u64) -> pb::ResponseHeader {
        let leader = head.leader.as_ref().map(|leader| leader.id);
        if self.leader != Some(leader) {
            self.leader = Some(leader);
            return pb::ResponseHeader { revision, ..convert::header(head) };
        }
        pb::ResponseHeader {
            node_id: head.node_id,
            term: head.term,
            revision,
            compact_revision: head.compact_revision,
            age_ms: head.age.as_millis() as u64,
            ..Default::default()
        }
    }

    /// Counts each; those that were renewed together once.
    fn count(&self, answered: &[Answered]) {
        let mut beats: Option<(&Answered, usize)> = None;
        for call in answered {
            match (&call.result, &mut beats) {
                (Ok(Done::Renewed(_)), Some((_, count))) => *count += 1,
                (Ok(Done::Renewed(_)), none) => *none = Some((call, 1)),
                (result, _) => {
                    let result = result.as_ref().map_or_else(Error::code, |_| "ok");
                    self.api.metrics.request(call.operation, "pipeline", result, call.took);
                }
            }
        }
        if let Some((first, count)) = beats {
            self.api.metrics.requests("heartbeat", "pipeline", "ok", count, first.took);
        }
    }
}

/// A record as its own registrar needs it: what the registry has set. The rest it has said itself.
fn receipt(record: &Record) -> pb::Instance {
    pb::Instance {
        id: record.spec.id.as_str().to_owned(),
        ttl_ms: record.spec.ttl_ms,
        weight: record.spec.weight,
        reg_rev: record.reg_rev,
        mod_rev: record.mod_rev,
        ..Default::default()
    }
}
