//! A node that takes itself out of service while it runs.

use std::{path::Path, sync::Arc, time::Duration};

use openraft::vote::RaftLeaderId;
use proto::raft::v1::{self as pb, raft_client::RaftClient};
use tokio::time::{Instant, sleep_until};
use tonic::Code;

use super::{
    super::{
        Error,
        network::{to_log_id, to_vote},
        sound,
        types::{LeaderId, LogId, Vote},
    },
    trio::{PATIENCE, Trio},
};
use crate::storage::Store;

const WHY: &str = "its catalog is wrong";

#[tokio::test(start_paused = true)]
async fn a_leader_that_quarantines_itself_hands_over_and_takes_no_part() {
    let trio = Trio::start().await;
    let odd = trio.leader().await;
    odd.register("before").await.expect("a quorum");
    odd.consensus.quarantine(WHY).await.expect("its disk works");

    // The others go on at once, and it follows them.
    let rest: Vec<u64> = trio.others(odd.id).map(|node| node.id).collect();
    let leader = trio.leader_among(&rest).await;
    let effect = leader.register("after").await.expect("a quorum");
    odd.hub
        .reached(effect.revision, Instant::now() + PATIENCE)
        .await
        .expect("it takes entries like any other");

    // It answers nobody, and says why.
    let soon = Instant::now() + Duration::from_secs(1);
    let refusals = [
        odd.register("through-it").await.err(),
        odd.consensus.read_barrier(soon).await.err(),
        odd.consensus.caught_up().err(),
        odd.consensus.forward_heartbeats(Vec::new(), soon).await.err(),
    ];
    for refusal in refusals {
        assert!(matches!(&refusal, Some(Error::NotReady { why }) if why.contains(WHY)), "{refusal:?}");
    }
    let status = odd.consensus.status();
    assert!(status.quarantined, "{status:?}");
    for told in [status.alarm, status.not_ready] {
        assert!(told.as_ref().is_some_and(|told| told.contains(WHY)), "{told:?}");
    }

    // It has no say in who leads, whoever asks.
    let mut client = RaftClient::new(odd.server.service());
    let candidate = Vote::new(status.term + 1, leader.id);
    let last = LogId { leader_id: LeaderId::new(status.term, leader.id), index: status.last_log_index };
    let question = pb::VoteRequest {
        header: odd.header(leader.id),
        vote: Some(to_vote(&candidate)),
        last_log: Some(to_log_id(&last)),
        leadership_transfer: true,
    };
    let transfer = pb::TransferLeaderRequest {
        header: odd.header(leader.id),
        from_leader: Some(to_vote(&Vote { committed: true, ..candidate })),
        to_node: odd.id,
        last_log: Some(to_log_id(&last)),
    };
    let refusals = [
        client.vote(question.clone()).await.err(),
        client.pre_vote(question).await.err(),
        client.transfer_leader(transfer).await.err(),
    ];
    for refusal in refusals {
        let why = refusal.expect("it must not help to elect anybody");
        assert!(why.code() == Code::FailedPrecondition && why.message().contains(WHY), "{why:?}");
    }

    // Two whole nodes would elect a leader within 1.2 s. It neither stands nor votes, so the other one cannot win.
    trio.cut(leader.id, true);
    let other = *rest.iter().find(|id| **id != leader.id).expect("three nodes");
    sleep_until(Instant::now() + 20 * odd.consensus.election_max()).await;
    let terms = [odd.id, other].map(|id| trio.node(id).consensus.status().term);
    assert_eq!(terms, [status.term; 2], "a leader was elected, or tried for");
    trio.cut(leader.id, false);
    trio.leader_among(&rest).await.register("healed").await.expect("a quorum without it");

    // At its next start its database is set aside: its peers repair it.
    let disk = odd.disk.killed();
    let opened = Store::in_task(
        disk,
        Path::new("/trio"),
        &sound,
        Arc::default(),
        |e| panic!("{e}"),
        || Duration::ZERO,
    );
    let (_, found, _) = opened.expect("its peers can repair it");
    let quarantine = found.quarantine.as_ref().expect("it was condemned");
    assert!(quarantine.why.contains(WHY), "{quarantine:?}");
    assert!(found.log.is_empty() && found.vote.is_some(), "{found:?}");
}
