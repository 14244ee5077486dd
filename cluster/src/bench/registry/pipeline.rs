//! The client's end of `Pipeline`: many callers on one stream, their answers matched by number.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use proto::registry::v1 as pb;
use proto::registry::v1::{
    pipeline_request::Call, pipeline_response::Result as Answer, registry_client::RegistryClient,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use super::nodes::{name, register};
use crate::bench::load::Door;

/// Requests that may wait to be sent; callers wait for their answers, so there are never more of them than callers.
const QUEUE: usize = 4_096;

/// One stream. Cheap to clone; it ends with the last handle.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    requests: mpsc::Sender<pb::PipelineRequest>,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    callers: HashMap<u64, oneshot::Sender<Answer>>,
}

impl Pipeline {
    /// Opens a stream on each connection.
    pub async fn open(clients: &[RegistryClient<Channel>]) -> Result<Vec<Self>> {
        let mut pipelines = Vec::with_capacity(clients.len());
        for client in clients {
            let (requests, queue) = mpsc::channel(QUEUE);
            let answers = client.clone().pipeline(ReceiverStream::new(queue)).await;
            let answers = answers.context("the node does not open a pipeline")?.into_inner();
            let waiting = Arc::<Mutex<Waiting>>::default();
            tokio::spawn(deliver(answers, waiting.clone()));
            pipelines.push(Self { requests, waiting });
        }
        Ok(pipelines)
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&self, call: Call) -> Result<Answer, Status> {
        let gone = || Status::unavailable("the pipeline has ended");
        let (reply, answer) = oneshot::channel();
        let seq = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.last += 1;
            let seq = waiting.last;
            waiting.callers.insert(seq, reply);
            seq
        };
        self.requests.send(pb::PipelineRequest { seq, call: Some(call) }).await.map_err(|_| gone())?;
        match answer.await.map_err(|_| gone())? {
            Answer::Error(error) => {
                Err(Status::new(Code::Unknown, format!("{}: {}", error.code, error.message)))
            }
            answer => Ok(answer),
        }
    }
}

/// Hands out the answers until the stream ends; who still waits then is told by the loss of its sender.
async fn deliver(mut answers: Streaming<pb::PipelineResponse>, waiting: Arc<Mutex<Waiting>>) {
    while let Ok(Some(pb::PipelineResponse { seq, result: Some(answer) })) = answers.message().await {
        let caller = waiting.lock().unwrap_or_else(PoisonError::into_inner).callers.remove(&seq);
        if let Some(caller) = caller {
            let _ = caller.send(answer); // a caller that was dropped wants nothing
        }
    }
    waiting.lock().unwrap_or_else(PoisonError::into_inner).callers.clear();
}

/// One caller that registers through a stream.
#[derive(Clone, Debug)]
pub(super) struct Writes {
    pipeline: Pipeline,
    name: String,
    seq: u64,
}

impl Writes {
    /// Callers spread over the streams.
    pub fn callers(pipelines: &[Pipeline], count: usize) -> Vec<Self> {
        let caller = |pipeline: &Pipeline| Self { pipeline: pipeline.clone(), name: name(), seq: 0 };
        pipelines.iter().cycle().take(count).map(caller).collect()
    }
}

impl Door for Writes {
    async fn call(&mut self, nth: u64) -> Result<(), Status> {
        self.seq += 1;
        self.pipeline.ask(Call::Register(register(nth, &self.name, self.seq))).await.map(drop)
    }
}
