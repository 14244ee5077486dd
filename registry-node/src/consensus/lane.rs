//! A lasting stream of appends to one peer: a call of its own for each would be most of what a small one costs. And
//! which appends are worth sending.

use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use openraft::raft::AppendEntriesRequest;
use proto::raft::v1::{self as pb, raft_client::RaftClient};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::{network::Wire, types::Types};

/// Appends to one peer, one at a time. Whoever gives up waiting for an answer leaves no stream behind on which it
/// could be taken for another one.
#[derive(Default)]
pub struct Lane {
    open: Option<Open>,
}

struct Open {
    requests: mpsc::Sender<pb::AppendRequest>,
    answers: Streaming<pb::AppendResponse>,
}

impl Lane {
    /// The peer's answer to an append.
    pub async fn append(
        &mut self,
        client: &mut RaftClient<Wire>,
        request: pb::AppendRequest,
    ) -> Result<Response<pb::AppendResponse>, Status> {
        // A stream that has broken since the last answer says so only now. To append twice does no harm.
        if let Some(open) = self.open.take()
            && open.requests.send(request.clone()).await.is_ok()
            && let Ok(answer) = self.answer(open).await
        {
            return Ok(answer);
        }
        let (requests, waiting) = mpsc::channel(1);
        // The first goes along with the call.
        let _ = requests.try_send(request); // there is room, and `waiting` is here
        let answers = client.append(ReceiverStream::new(waiting)).await?.into_inner();
        self.answer(Open { requests, answers }).await
    }

    /// The answer to what was sent last.
    async fn answer(&mut self, mut open: Open) -> Result<Response<pb::AppendResponse>, Status> {
        let answer = open.answers.message().await?;
        let answer = answer.ok_or_else(|| Status::unavailable("the peer takes no appends any more"))?;
        self.open = Some(open);
        Ok(Response::new(answer))
    }
}

/// How long a commit mark waits for entries that take it along.
const MARK_WAITS: Duration = Duration::from_millis(1);
/// Entries follow each other so closely that it is worth waiting for the next.
const CLOSE: Duration = Duration::from_millis(2);

/// The same appends without those that only move the commit mark, where entries that carry it follow at once: under
/// load every second one would be of that kind, and the entries would wait for its answer.
pub fn worth_sending<S>(
    appends: S,
) -> impl Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
{
    let thrift = Thrift { appends: appends.fuse(), entries_at: None, close: false };
    Box::pin(stream::unfold(thrift, async |mut thrift| Some((thrift.next().await?, thrift))))
}

struct Thrift<S> {
    appends: stream::Fuse<S>,
    /// When entries were sent last, and whether that was soon after those before.
    entries_at: Option<Instant>,
    close: bool,
}

impl<S: Stream<Item = AppendEntriesRequest<Types>> + Unpin> Thrift<S> {
    async fn next(&mut self) -> Option<AppendEntriesRequest<Types>> {
        let mut append = self.appends.next().await?;
        let until = Instant::now() + MARK_WAITS;
        while self.close && append.entries.is_empty() {
            match timeout_at(until, self.appends.next()).await {
                Ok(Some(next)) => append = next,
                Ok(None) | Err(_) => break,
            }
        }
        if !append.entries.is_empty() {
            let before = self.entries_at.replace(Instant::now());
            self.close = before.is_some_and(|before| before.elapsed() < CLOSE);
        }
        Some(append)
    }
}

#[cfg(test)]
mod tests {
    use openraft::{EntryPayload, vote::RaftLeaderId};
    use tokio::time::sleep;

    use super::*;
    use crate::consensus::types::{Entry, LeaderId, LogId, Vote};

    /// Entries up to `last`, if it says so, and a commit mark.
    fn append(last: Option<u64>, commit: u64) -> AppendEntriesRequest<Types> {
        let id = |index| LogId { leader_id: LeaderId::new(1, 1), index };
        AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: None,
            entries: last
                .map(|last| Entry { log_id: id(last), payload: EntryPayload::Blank })
                .into_iter()
                .collect(),
            leader_commit: Some(id(commit)),
        }
    }

    /// What is sent of appends that each come so many milliseconds after the one before, and when.
    async fn sent(appends: Vec<(u64, AppendEntriesRequest<Types>)>) -> Vec<(u128, bool, u64)> {
        let start = Instant::now();
        let appends = stream::iter(appends).then(async |(after, append)| {
            sleep(Duration::from_millis(after)).await;
            append
        });
        let described = async |append: AppendEntriesRequest<Types>| {
            let commit = append.leader_commit.map_or(0, |id| id.index);
            (start.elapsed().as_millis(), !append.entries.is_empty(), commit)
        };
        worth_sending(Box::pin(appends)).then(described).collect().await
    }

    #[tokio::test(start_paused = true)]
    async fn a_mark_goes_with_the_entries_that_follow_at_once() {
        let steady = vec![
            (0, append(Some(1), 0)),
            (0, append(None, 1)),
            (1, append(Some(2), 1)),
            (0, append(None, 2)),
        ];
        // The first mark does not know yet that entries are close; the second does, and none follow.
        assert_eq!(sent(steady.clone()).await, [(0, true, 0), (0, false, 1), (1, true, 1), (1, false, 2)]);
        let busy = steady.into_iter().chain([
            (0, append(Some(3), 2)),
            (0, append(None, 3)),
            (5, append(Some(4), 3)),
        ]);
        let seen = sent(busy.collect()).await;
        assert_eq!(
            seen,
            [(0, true, 0), (0, false, 1), (1, true, 1), (1, true, 2), (2, false, 3), (6, true, 3)],
            "a mark is held back for entries, and for a moment only"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn where_entries_are_rare_a_mark_goes_at_once() {
        let rare = vec![
            (0, append(Some(1), 0)),
            (5, append(Some(2), 0)),
            (0, append(None, 2)),
            (0, append(None, 3)),
        ];
        assert_eq!(sent(rare).await, [(0, true, 0), (5, true, 0), (5, false, 2), (5, false, 3)]);
    }
}
