//! What a broken peer may send: each field of each call garbled, arbitrary bytes, numbers that nobody counts up to.
//! The call fails with a status, nothing is changed, and the node lives on.

use std::cell::Cell;

use bytes::Bytes;
use http_body_util::Full;
use openraft::{EntryPayload, async_runtime::watch::WatchReceiver, vote::RaftLeaderId};
use proptest::prelude::*;
use proto::raft::v1::{self as pb, raft_client::RaftClient};
use tokio::{runtime::Runtime, time::Instant};
use tonic::{Code, Status, body::Body};
use tower::ServiceExt;

use super::{
    super::{
        PeerService, codec,
        network::{to_log_id, to_vote},
        types::{Batch, Entry, LeaderId, LogId, Membership, StoredMembership, Vote},
    },
    trio::{Node, PATIENCE, Trio, registration},
};

const PATH: &str = "/raft.v1.Raft";
/// Calls with one message, and one that streams.
const METHODS: [&str; 11] = [
    "Append",
    "Vote",
    "PreVote",
    "TransferLeader",
    "InstallSnapshot",
    "Propose",
    "ReadIndex",
    "Heartbeat",
    "CatalogMarks",
    "Identify",
    "Adopt",
];

/// A follower that has heard its leader and is cut off from it, so that only these tests speak to it.
struct Victim {
    trio: Trio,
    id: u64,
    leader: u64,
    /// The leader's.
    vote: Vote,
    /// The last entry, which is committed and applied.
    last: LogId,
}

/// What must not change.
#[derive(Debug, PartialEq)]
struct Held {
    vote: String,
    log: [u64; 4],
    hash: u64,
    members: String,
}

impl Victim {
    async fn new() -> Self {
        let trio = Trio::start().await;
        let leader = trio.leader().await.id;
        let effect = trio.node(leader).register("before").await.expect("a quorum");
        let id = trio.others(leader).next().expect("two others").id;
        let victim = trio.node(id);
        victim.hub.reached(effect.revision, Instant::now() + PATIENCE).await.expect("replicated");
        trio.cut(id, true);
        let vote = victim.consensus.0.raft.metrics().borrow_watched().vote;
        let last = victim.consensus.0.applied.borrow().expect("something is applied");
        assert_eq!(victim.consensus.status().last_log_index, last.index);
        Self { trio, id, leader, vote, last }
    }

    fn node(&self) -> &Node {
        self.trio.node(self.id)
    }

    fn client(&self) -> RaftClient<PeerService> {
        RaftClient::new(self.node().server.service())
    }

    fn header(&self) -> Option<pb::PeerHeader> {
        self.node().header(self.leader)
    }

    fn held(&self) -> Held {
        let status = self.node().consensus.status();
        let metrics = self.node().consensus.0.raft.metrics();
        Held {
            vote: metrics.borrow_watched().vote.to_string(),
            log: [status.last_log_index, status.applied_index, status.snapshot_index, status.purged_index],
            hash: status.catalog_hash,
            members: format!("{:?}", self.node().consensus.members()),
        }
    }

    /// Appends on a stream of its own.
    async fn appended(&self, append: pb::AppendRequest) -> Result<pb::AppendResponse, Status> {
        let mut answers = self.client().append(futures_util::stream::iter([append])).await?.into_inner();
        answers.message().await.map(|answer| answer.expect("an answer to each"))
    }

    async fn is_alive(&self) {
        let asked = pb::IdentifyRequest { from: self.leader, joining: false };
        let answer = self.client().identify(asked).await.expect("it answers").into_inner();
        assert_eq!(answer.node_id, self.id);
        assert!(!self.node().consensus.stopped(), "consensus has ended");
    }

    /// What the leader would send next.
    fn append(&self) -> pb::AppendRequest {
        let next = LogId { index: self.last.index + 1, ..self.last };
        pb::AppendRequest {
            header: self.header(),
            vote: Some(to_vote(&self.vote)),
            prev: Some(to_log_id(&self.last)),
            entries: vec![entry(next)],
            leader_commit: Some(to_log_id(&self.last)),
        }
    }

    /// A candidate's question that would be granted once the leader has been silent for long.
    fn question(&self) -> pb::VoteRequest {
        pb::VoteRequest {
            header: self.header(),
            vote: Some(to_vote(&Vote::new(self.vote.leader_id.term + 1, self.leader))),
            last_log: Some(to_log_id(&self.last)),
            leadership_transfer: true,
        }
    }

    fn transfer(&self) -> pb::TransferLeaderRequest {
        pb::TransferLeaderRequest {
            header: self.header(),
            from_leader: Some(to_vote(&self.vote)),
            to_node: self.id,
            last_log: Some(to_log_id(&self.last)),
        }
    }

    /// The leader's catalog as a snapshot that reaches further than this node.
    fn snapshot(&self) -> Vec<pb::SnapshotChunk> {
        let chunks = self.trio.node(self.leader).hub.catalog().to_chunks();
        let last = LogId { index: self.last.index + 10, ..self.last };
        let meta = pb::SnapshotMeta {
            header: self.header(),
            vote: Some(to_vote(&self.vote)),
            last_log: Some(to_log_id(&last)),
            membership: membership(self.last, [1, 2, 3]),
            total_bytes: chunks.iter().map(|chunk| chunk.len() as u64).sum(),
        };
        let first = pb::SnapshotChunk { meta: Some(meta), ..Default::default() };
        let data =
            chunks.into_iter().map(|data| pb::SnapshotChunk { data: data.into(), ..Default::default() });
        let last = pb::SnapshotChunk { last: true, ..Default::default() };
        std::iter::once(first).chain(data).chain([last]).collect()
    }

    async fn install(&self, chunks: Vec<pb::SnapshotChunk>) -> Result<(), Status> {
        self.client().install_snapshot(tokio_stream::iter(chunks)).await.map(drop)
    }
}

fn entry(id: LogId) -> Bytes {
    let payload = EntryPayload::Normal(Batch::new([registration("told")]));
    codec::encode_entry(&Entry { log_id: id, payload })
}

fn membership<const N: usize>(id: LogId, voters: [u64; N]) -> Bytes {
    let nodes = voters.map(|id| (id, super::super::Address::default()));
    let members = match voters.is_empty() {
        true => Membership::default(),
        false => {
            Membership::new(vec![voters.into()], std::collections::BTreeMap::from(nodes)).expect("valid")
        }
    };
    codec::encode_stored_membership(&StoredMembership::new(Some(id), members)).into()
}

fn no_leader(index: u64) -> Option<pb::LogId> {
    Some(pb::LogId { leader: None, index })
}

/// Ways to garble a log id that stands beside `vote`.
fn wrong_ids(last: LogId, vote: Vote) -> [Option<pb::LogId>; 4] {
    let newer = LogId { leader_id: LeaderId::new(vote.leader_id.term + 9, 1), ..last };
    let far = LogId { index: u64::MAX, ..last };
    let long_after = LogId { leader_id: LeaderId::new(u64::MAX, 1), ..last };
    [no_leader(last.index), Some(to_log_id(&newer)), Some(to_log_id(&far)), Some(to_log_id(&long_after))]
}

/// Ways to garble a vote of a leader, or of a candidate.
fn wrong_votes(vote: Vote) -> [Option<pb::Vote>; 4] {
    let other_kind = Vote { committed: !vote.committed, ..vote };
    let far = Vote { leader_id: LeaderId::new(u64::MAX, 1), ..vote };
    let nobody = pb::Vote { leader: None, committed: vote.committed };
    [None, Some(nobody), Some(to_vote(&other_kind)), Some(to_vote(&far))]
}

fn wrong_headers(right: &pb::PeerHeader) -> [Option<pb::PeerHeader>; 3] {
    let other_cluster = pb::PeerHeader { cluster_id: "another".into(), ..right.clone() };
    [None, Some(other_cluster), Some(pb::PeerHeader { to: 9, ..right.clone() })]
}

/// The request with each of its fields garbled, one at a time: what is in `wrong` put where `field` is.
fn each<R: Clone, T>(
    right: &R,
    wrong: impl IntoIterator<Item = T>,
    field: impl Fn(&mut R) -> &mut T,
) -> Vec<R> {
    let garble = |value| {
        let mut request = right.clone();
        *field(&mut request) = value;
        request
    };
    wrong.into_iter().map(garble).collect()
}

/// A call that must fail and change nothing.
async fn refused<T: std::fmt::Debug>(
    victim: &Victim,
    what: &str,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) {
    let before = victim.held();
    let status = call.await.map(tonic::Response::into_inner).expect_err(what);
    let expected = [Code::InvalidArgument, Code::FailedPrecondition, Code::ResourceExhausted, Code::DataLoss];
    assert!(expected.contains(&status.code()), "{what}: {status:?}");
    assert!(!status.message().is_empty(), "{what}");
    assert_eq!(victim.held(), before, "{what}");
    victim.is_alive().await;
}

#[tokio::test(start_paused = true)]
async fn every_garbled_field_of_a_leaders_entries_is_refused() {
    let victim = Victim::new().await;
    let (right, last) = (victim.append(), victim.last);
    let next = LogId { index: last.index + 1, ..last };
    let older = LogId { leader_id: LeaderId::new(0, 0), ..next };
    let newer = LogId { leader_id: LeaderId::new(victim.vote.leader_id.term + 1, 1), ..next };
    // Another entry than the one this node has applied at that index.
    let contradiction = LogId { leader_id: LeaderId::new(0, 0), ..last };
    let wrong_entries = [
        vec![entry(last)],
        vec![entry(LogId { index: next.index + 1, ..next })],
        vec![entry(next), entry(next)],
        vec![entry(older)],
        vec![entry(newer)],
        vec![entry(LogId { index: u64::MAX, ..next })],
        vec![Bytes::new()],
    ];
    let mut garbled = each(&right, wrong_headers(&victim.header().expect("one")), |it| &mut it.header);
    garbled.extend(each(&right, wrong_votes(victim.vote), |it| &mut it.vote));
    garbled.extend(each(&right, wrong_ids(last, victim.vote), |it| &mut it.prev));
    garbled.extend(each(&right, [None, Some(to_log_id(&contradiction))], |it| &mut it.prev));
    garbled.extend(each(&right, wrong_ids(last, victim.vote), |it| &mut it.leader_commit));
    garbled.extend(each(&right, [Some(to_log_id(&contradiction))], |it| &mut it.leader_commit));
    garbled.extend(each(&right, wrong_entries, |it| &mut it.entries));
    for request in garbled {
        refused(&victim, &format!("{request:?}"), async {
            victim.appended(request.clone()).await.map(tonic::Response::new)
        })
        .await;
    }
    // What was not garbled is taken.
    let taken = victim.appended(right).await.expect("the leader's own");
    assert!(matches!(taken.result, Some(pb::append_response::Result::Success(_))), "{taken:?}");
    assert_eq!(victim.held().log[0], next.index);
}

/// A leader that was deposed may know another end of the log: it must hear that it is deposed.
#[tokio::test(start_paused = true)]
async fn a_deposed_leader_with_another_history_is_told_so() {
    let victim = Victim::new().await;
    let old = LeaderId::new(0, 0);
    let prev = LogId { leader_id: old, index: victim.last.index + 3 };
    let vote = Vote { leader_id: old, committed: true };
    let request = pb::AppendRequest {
        vote: Some(to_vote(&vote)),
        prev: Some(to_log_id(&prev)),
        entries: Vec::new(),
        leader_commit: None,
        ..victim.append()
    };
    let before = victim.held();
    let answer = victim.appended(request).await.expect("an answer");
    assert!(matches!(answer.result, Some(pb::append_response::Result::HigherVote(_))), "{answer:?}");
    assert_eq!(victim.held(), before);
}

#[tokio::test(start_paused = true)]
async fn every_garbled_field_of_a_candidates_question_is_refused() {
    let victim = Victim::new().await;
    let right = victim.question();
    let candidate = Vote::new(victim.vote.leader_id.term + 1, victim.leader);
    let mut garbled = each(&right, wrong_headers(&victim.header().expect("one")), |it| &mut it.header);
    garbled.extend(each(&right, wrong_votes(candidate), |it| &mut it.vote));
    garbled.extend(each(&right, wrong_ids(victim.last, candidate), |it| &mut it.last_log));
    for request in garbled {
        refused(&victim, &format!("{request:?}"), victim.client().vote(request.clone())).await;
        refused(&victim, &format!("{request:?}"), victim.client().pre_vote(request.clone())).await;
    }
    let right_transfer = victim.transfer();
    let headers = wrong_headers(&victim.header().expect("one"));
    let mut garbled = each(&right_transfer, headers, |it| &mut it.header);
    garbled.extend(each(&right_transfer, wrong_votes(victim.vote), |it| &mut it.from_leader));
    garbled.extend(each(&right_transfer, wrong_ids(victim.last, victim.vote), |it| &mut it.last_log));
    for request in garbled {
        refused(&victim, &format!("{request:?}"), victim.client().transfer_leader(request.clone())).await;
    }
    let granted = victim.client().vote(right).await.expect("a candidate's own").into_inner();
    assert!(granted.granted, "{granted:?}");
}

#[tokio::test(start_paused = true)]
async fn every_garbled_part_of_a_snapshot_is_refused() {
    let victim = Victim::new().await;
    let right = victim.snapshot();
    let meta = right[0].meta.clone().expect("the first chunk names it");
    let contradiction = LogId { leader_id: LeaderId::new(0, 0), index: victim.last.index + 10 };
    let after = LogId { index: victim.last.index + 11, ..victim.last };
    let wrong_members = [
        Bytes::new(),
        Bytes::from_static(b"nobody"),
        membership(after, [1, 2, 3]),
        membership(victim.last, []),
    ];
    let mut metas = each(&meta, wrong_headers(&victim.header().expect("one")), |it| &mut it.header);
    metas.extend(each(&meta, wrong_votes(victim.vote), |it| &mut it.vote));
    metas.extend(each(&meta, wrong_ids(victim.last, victim.vote), |it| &mut it.last_log));
    metas.extend(each(&meta, [Some(to_log_id(&contradiction))], |it| &mut it.last_log));
    metas.extend(each(&meta, wrong_members, |it| &mut it.membership));
    metas.extend(each(&meta, [0, 1, meta.total_bytes + 1, u64::MAX], |it| &mut it.total_bytes));
    let with = |meta| {
        let mut chunks = right.clone();
        chunks[0].meta = Some(meta);
        chunks
    };
    let mut garbled: Vec<Vec<pb::SnapshotChunk>> = metas.into_iter().map(with).collect();
    garbled.extend([Vec::new(), right[1..].to_vec(), right[..right.len() - 1].to_vec()]);
    garbled.extend((1..right.len() - 1).map(|missing| {
        let mut chunks = right.clone();
        chunks.remove(missing);
        chunks
    }));
    let mut flipped = right.clone();
    flipped[1].data = flipped[1].data.iter().map(|byte| byte ^ 1).collect::<Vec<u8>>().into();
    garbled.push(flipped);
    for chunks in garbled {
        let what = format!("{chunks:?}");
        refused(&victim, &what, async { victim.install(chunks).await.map(tonic::Response::new) }).await;
    }
    victim.install(right).await.expect("the leader's own");
    assert_eq!(victim.held().log[2], victim.last.index + 10);
}

#[tokio::test(start_paused = true)]
async fn every_garbled_field_of_what_is_forwarded_is_refused() {
    let victim = Victim::new().await;
    let header = victim.header();
    let wrong = wrong_headers(&header.clone().expect("one"));
    let command = registration("forwarded").bytes;
    let right = pb::ProposeRequest { header: header.clone(), commands: vec![command.clone()] };
    let mut garbled = each(&right, wrong.clone(), |it| &mut it.header);
    let bytes =
        [Bytes::new(), Bytes::from_static(b"?"), command.slice(1..), command.slice(..command.len() - 1)];
    garbled.extend(each(&right, bytes, |it| &mut it.commands[0]));
    garbled.extend(each(&right, [vec![command; 4_097]], |it| &mut it.commands));
    for request in garbled {
        let what = format!("{:?} {}", request.header, request.commands.len());
        refused(&victim, &what, victim.client().propose(request)).await;
    }
    let beat = pb::PeerBeat { id: "a".into(), reg_rev: 1 };
    let right = pb::PeerHeartbeatRequest { header, beats: vec![beat.clone()] };
    let mut garbled = each(&right, wrong.clone(), |it| &mut it.header);
    garbled.extend(each(&right, [String::new(), "x".repeat(257)], |it| &mut it.beats[0].id));
    garbled.extend(each(&right, [vec![beat; 4_097]], |it| &mut it.beats));
    for request in garbled {
        let what = format!("{:?} {}", request.header, request.beats.len());
        refused(&victim, &what, victim.client().heartbeat(request)).await;
    }
    for header in wrong {
        let request = pb::ReadIndexRequest { header: header.clone() };
        refused(&victim, "read index", victim.client().read_index(request)).await;
        let request = pb::CatalogMarksRequest { header };
        refused(&victim, "marks", victim.client().catalog_marks(request)).await;
    }
    let cluster_id = victim.node().consensus.cluster_id().to_string();
    for (from, to, cluster_id) in
        [(1, 9, cluster_id.clone()), (9, victim.id, cluster_id), (1, victim.id, "x".into())]
    {
        let request = pb::AdoptRequest { from, to, cluster_id };
        refused(&victim, &format!("{request:?}"), victim.client().adopt(request)).await;
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime")
}

/// A message of gRPC.
fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&[0][..], &length, message].concat().into()
}

async fn raw(victim: &Victim, method: &str, body: Bytes) -> http::HeaderMap {
    let request = http::Request::post(format!("{PATH}/{method}"))
        .header("content-type", "application/grpc")
        .body(Body::new(Full::new(body)))
        .expect("a request");
    let answer = victim.node().server.service().oneshot(request).await.expect("never fails");
    let (head, body) = answer.into_parts();
    let end = http_body_util::BodyExt::collect(body).await.expect("it ends");
    end.trailers().cloned().unwrap_or(head.headers)
}

/// Numbers as they are, beside them, and out of all bounds.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0u64..8, 1 => Just((1 << 62) - 1), 1 => Just(u64::MAX), 1 => any::<u64>()]
}

fn any_id() -> impl Strategy<Value = LogId> {
    let id = (number(), 0u64..5, number());
    id.prop_map(|(term, node, index)| LogId { leader_id: LeaderId::new(term, node), index })
}

fn any_log_id() -> impl Strategy<Value = Option<LogId>> {
    prop::option::weighted(0.8, any_id())
}

fn any_vote() -> impl Strategy<Value = Vote> {
    let vote = (number(), 0u64..5, any::<bool>());
    vote.prop_map(|(term, node, committed)| Vote { leader_id: LeaderId::new(term, node), committed })
}

/// A call that is well formed, whatever it says.
#[derive(Debug, Clone)]
enum Call {
    /// Entries after the one before, of these leaders.
    Append(Vote, Option<LogId>, Vec<(u64, u64)>, Option<LogId>),
    Vote(Vote, Option<LogId>),
    PreVote(Vote, Option<LogId>),
    Transfer(Vote, u64, Option<LogId>),
    /// A catalog that ends there, with a membership of that entry.
    Snapshot(Vote, Option<LogId>, LogId),
}

fn any_call() -> impl Strategy<Value = Call> {
    let leaders = prop::collection::vec((number(), 0u64..5), 0..4);
    prop_oneof![
        4 => (any_vote(), any_log_id(), leaders, any_log_id()).prop_map(|(v, p, e, c)| Call::Append(v, p, e, c)),
        2 => (any_vote(), any_log_id()).prop_map(|(v, l)| Call::Vote(v, l)),
        1 => (any_vote(), any_log_id()).prop_map(|(v, l)| Call::PreVote(v, l)),
        1 => (any_vote(), number(), any_log_id()).prop_map(|(v, n, l)| Call::Transfer(v, n, l)),
        2 => (any_vote(), any_log_id(), any_id())
            .prop_map(|(v, l, m)| Call::Snapshot(v, l, m)),
    ]
}

impl Call {
    async fn make(self, victim: &Victim) -> Result<(), Status> {
        let (header, mut client) = (victim.header(), victim.client());
        let id = |id: Option<LogId>| id.as_ref().map(to_log_id);
        match self {
            Self::Append(vote, prev, leaders, commit) => {
                let first = prev.map_or(0, |prev| prev.index.wrapping_add(1));
                let entries = (first..).zip(leaders).map(|(index, (term, node))| {
                    entry(LogId { leader_id: LeaderId::new(term, node), index })
                });
                let (vote, entries) = (Some(to_vote(&vote)), entries.collect());
                let (prev, leader_commit) = (id(prev), id(commit));
                let append = pb::AppendRequest { header, vote, prev, entries, leader_commit };
                victim.appended(append).await.map(drop)
            }
            Self::Vote(vote, last) => {
                let (vote, last_log) = (Some(to_vote(&vote)), id(last));
                client
                    .vote(pb::VoteRequest { header, vote, last_log, leadership_transfer: true })
                    .await
                    .map(drop)
            }
            Self::PreVote(vote, last) => {
                let (vote, last_log) = (Some(to_vote(&vote)), id(last));
                let request = pb::VoteRequest { header, vote, last_log, leadership_transfer: false };
                client.pre_vote(request).await.map(drop)
            }
            Self::Transfer(vote, to_node, last) => {
                let (from_leader, last_log) = (Some(to_vote(&vote)), id(last));
                let request = pb::TransferLeaderRequest { header, from_leader, to_node, last_log };
                client.transfer_leader(request).await.map(drop)
            }
            Self::Snapshot(vote, last, members) => {
                let mut chunks = victim.snapshot();
                let meta = chunks[0].meta.as_mut().expect("the first chunk names it");
                meta.vote = Some(to_vote(&vote));
                meta.last_log = id(last);
                meta.membership = membership(members, [1, 2, 3]);
                victim.install(chunks).await
            }
        }
    }
}

#[test]
fn no_bytes_and_no_numbers_of_a_peer_end_a_node() {
    let runtime = runtime();
    let victim = runtime.block_on(Victim::new());
    let any_bytes = prop::collection::vec(any::<u8>(), 0..200);
    proptest!(ProptestConfig::with_cases(512), |(method in prop::sample::select(&METHODS[..]), bytes in any_bytes, frame in any::<bool>())| {
        let before = victim.held();
        let body = if frame { framed(&bytes) } else { bytes.into() };
        let end = runtime.block_on(raw(&victim, method, body));
        let status = end.get("grpc-status").map(|status| status.as_bytes().to_vec());
        // Who asks who this is need not say who asks.
        prop_assert!(method == "Identify" || status.as_deref().is_some_and(|status| status != b"0"), "{end:?}");
        prop_assert_eq!(victim.held(), before);
        runtime.block_on(victim.is_alive());
    });
    // With the right header the bytes of a field come further.
    let any_bytes = prop::collection::vec(any::<u8>(), 0..200);
    proptest!(ProptestConfig::with_cases(256), |(bytes in any_bytes)| {
        let before = victim.held();
        let append = pb::AppendRequest { entries: vec![bytes.clone().into()], ..victim.append() };
        let propose = pb::ProposeRequest { header: victim.header(), commands: vec![bytes.clone().into()] };
        let mut snapshot = victim.snapshot();
        snapshot[0].meta.as_mut().expect("the first chunk names it").membership = bytes.clone().into();
        let mut altered = victim.snapshot();
        altered[0].meta.as_mut().expect("the first chunk names it").total_bytes = bytes.len() as u64;
        altered.splice(1..altered.len() - 1, [pb::SnapshotChunk { data: bytes.into(), ..Default::default() }]);
        runtime.block_on(async {
            let answers = [
                victim.appended(append).await.err(),
                victim.client().propose(propose).await.err(),
                victim.install(snapshot).await.err(),
                victim.install(altered).await.err(),
            ];
            assert!(answers.iter().all(Option::is_some), "{answers:?}");
            victim.is_alive().await;
        });
        prop_assert_eq!(victim.held(), before);
    });
}

#[test]
fn no_well_formed_call_ends_a_node_whatever_it_says() {
    let runtime = runtime();
    let calls = prop::collection::vec(any_call(), 1..8);
    let answered = Cell::new(0);
    proptest!(ProptestConfig::with_cases(96), |(calls in calls)| {
        runtime.block_on(async {
            let victim = Victim::new().await;
            for call in calls {
                let before = victim.held();
                match call.clone().make(&victim).await {
                    Ok(()) => answered.set(answered.get() + 1),
                    Err(status) => assert_eq!(victim.held(), before, "{call:?}: {status:?}"),
                }
                victim.is_alive().await;
            }
        });
    });
    assert!(answered.get() > 0, "every call was refused: nothing was tried");
}
