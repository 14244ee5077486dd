//! Read points, shared: whoever asks while a round is under way waits for the next one, and all who wait share it.
//! However many read at once, this node has one question on its way to the quorum or to the leader.
//!
//! A read must see what was committed when it began. A round therefore serves only those who asked before it
//! started, and a retry asks again.

use tokio::sync::{mpsc, oneshot};

use super::Error;

/// Reads that may wait; beyond it callers are told.
const QUEUE: usize = 16 << 10;

type Waiting = oneshot::Sender<Result<u64, Error>>;

/// Where read points are asked for. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ReadPoints {
    queue: mpsc::Sender<Waiting>,
}

/// Those who asked.
pub struct Questions(mpsc::Receiver<Waiting>);

impl ReadPoints {
    /// The asking end and the answering one.
    pub fn new() -> (Self, Questions) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        (Self { queue }, Questions(waiting))
    }

    /// What a round that begins after this call finds.
    pub async fn next(&self) -> Result<u64, Error> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(reply).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded { what: "reads waiting".into() },
            mpsc::error::TrySendError::Closed(_) => Error::NotReady { why: "it is stopping".into() },
        })?;
        answer.await.unwrap_or_else(|_| Err(Error::NotReady { why: "it is stopping".into() }))
    }
}

impl Questions {
    /// Answers all that wait with one `round`, again and again, until nobody can ask any more.
    pub async fn answer(mut self, mut round: impl AsyncFnMut() -> Result<u64, Error>) {
        let mut waiting = Vec::new();
        while self.0.recv_many(&mut waiting, QUEUE).await > 0 {
            waiting.retain(|reply| !reply.is_closed());
            if waiting.is_empty() {
                continue;
            }
            let point = round().await;
            waiting.drain(..).for_each(|reply| drop(reply.send(point.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
        time::Duration,
    };

    use futures_util::{future::join_all, poll};
    use tokio::{sync::Semaphore, task::yield_now};

    use super::*;

    /// A thousand reads at once are two rounds: the one they find under way, and one for all who came meanwhile.
    #[tokio::test]
    async fn reads_share_rounds_and_none_takes_a_round_that_began_before_it() {
        let (points, questions) = ReadPoints::new();
        let (rounds, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let (counted, quorum) = (rounds.clone(), gate.clone());
        tokio::spawn(questions.answer(async move || {
            let round = counted.fetch_add(1, Ordering::SeqCst) + 1;
            quorum.acquire().await.expect("it is never closed").forget();
            Ok(round)
        }));
        let mut first = Box::pin(points.next());
        assert!(poll!(&mut first).is_pending());
        while rounds.load(Ordering::SeqCst) == 0 {
            yield_now().await;
        }
        let mut late = join_all((0..1_000).map(|_| points.next()));
        assert!(poll!(&mut late).is_pending());
        gate.add_permits(10);
        let late = late.await;
        assert!(late.iter().all(|point| matches!(point, Ok(2))), "a round that began before served a read");
        assert!(matches!(first.await, Ok(1)));
        assert_eq!(rounds.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_round_that_nobody_wants_and_every_wait_ends() {
        let (points, questions) = ReadPoints::new();
        drop(tokio::time::timeout(Duration::ZERO, points.next()).await);
        let answering = tokio::spawn(questions.answer(async || Err(Error::NoLeader)));
        assert!(matches!(points.next().await, Err(Error::NoLeader)));
        answering.abort();
        let _ = answering.await;
        assert!(matches!(points.next().await, Err(Error::NotReady { .. })));
    }
}
