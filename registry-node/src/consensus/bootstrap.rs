//! How a node comes by its place in a cluster.
//!
//! A directory that knows its cluster says it. An empty one founds a cluster only together with all the others:
//! the member with the lowest id asks every named peer, gives the new cluster an id once all have answered that
//! they are empty too, has each of them keep that id, and only then begins. If any peer already runs, the empty
//! directory was wiped: a node that had voted and forgot it could vote again, and two leaders could be elected.
//! It must come back under a new id.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use proto::raft::v1 as pb;
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    codec,
    codec::Identity,
    membership::spent,
    network::{Dial, client_at},
    peer_server::PeerServer,
    types::Address,
};
use crate::{
    config::{Config, Origin},
    storage::Recovered,
};

/// Between two rounds of asking.
const ROUND: Duration = Duration::from_millis(100);
/// A peer answers this soon or not at all in this round.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// A joining node's question needs a round trip through the leader.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a waiting node says what it waits for.
const REMIND: Duration = Duration::from_secs(5);

/// Why a node has no place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory is another node's.
    #[error("{} belongs to node {found}, and this is node {asked}: give each node its own --dir, or start it with --id {found}", .dir.display())]
    OtherNode {
        /// The directory.
        dir: std::path::PathBuf,
        /// Whose it is.
        found: u64,
        /// Who was started.
        asked: u64,
    },
    /// The directory was emptied while the cluster went on.
    #[error(
        "{dir} is empty, but node {peer} says that cluster {cluster} is running: node {id} has lost its memory and must not \
         vote again under its id. Replace it by a node with a new id: start `registry-node --id NEW --dir DIR --join {join}`, \
         then `registryctl --endpoints {rest} cluster replace {id} REST_URL_OF_NEW`", dir = .dir.display()
    )]
    Wiped {
        /// The directory.
        dir: std::path::PathBuf,
        /// This node.
        id: u64,
        /// Who knows better.
        peer: u64,
        /// The cluster it knows.
        cluster: String,
        /// That peer's address.
        join: String,
        /// That peer's REST address.
        rest: String,
    },
    /// The node's id was removed from the cluster it wants to join.
    #[error("cluster {cluster} cannot be joined: {why}: start this node again with another --id")]
    Removed {
        /// The cluster.
        cluster: String,
        /// When, and why that is for ever.
        why: String,
    },
    /// A peer keeps the id of a cluster that never began.
    #[error(
        "node {peer} keeps the id of another cluster that never began ({cluster}): empty its directory and start it again"
    )]
    Promised {
        /// The peer.
        peer: u64,
        /// The id it keeps.
        cluster: String,
    },
    /// The cluster to be joined cannot take the node.
    #[error("cannot join through {peer}: {why}")]
    Join {
        /// The peer asked.
        peer: String,
        /// What it said.
        why: String,
    },
    /// The store.
    #[error("cannot keep the cluster's id")]
    Io(#[from] std::io::Error),
}

/// A node's place.
#[derive(Debug)]
pub struct Place {
    /// The cluster.
    pub cluster_id: Arc<str>,
    /// The members to begin with, if this node founds the cluster.
    pub found_with: Option<BTreeMap<u64, Address>>,
}

/// Finds the place, waiting for peers as long as it takes.
pub async fn find_place(
    config: &Config,
    found: &Recovered,
    server: &PeerServer,
    dial: &Dial,
) -> Result<Place, Error> {
    let known = server.identity();
    if let Some(Identity { node_id, .. }) = known.as_ref().filter(|identity| identity.node_id != config.id) {
        return Err(Error::OtherNode { dir: config.dir.clone(), found: *node_id, asked: config.id });
    }
    let running = found.vote.is_some()
        || !found.log.is_empty()
        || found.snapshot.is_some()
        || found.quarantine.is_some();
    match (&config.origin, known) {
        (_, Some(known)) if running => Ok(Place { cluster_id: known.cluster_id.into(), found_with: None }),
        (Origin::Join(_), Some(known)) => Ok(Place { cluster_id: known.cluster_id.into(), found_with: None }),
        (Origin::Join(peer), None) => join(config, peer, server, dial).await,
        (Origin::Bootstrap(members), known) if members.keys().next() == Some(&config.id) => {
            found_cluster(config, members, known, server, dial).await
        }
        (Origin::Bootstrap(members), _) => await_founding(config, members, server, dial).await,
    }
}

/// Takes the cluster's id from a member; the leader sends everything else once it has been told of this node.
async fn join(config: &Config, peer: &str, server: &PeerServer, dial: &Dial) -> Result<Place, Error> {
    let refused = |why: String| Error::Join { peer: peer.into(), why };
    let mut client = client_at(dial, peer);
    let asked = tokio::time::timeout(
        JOIN_TIMEOUT,
        client.identify(pb::IdentifyRequest { from: config.id, joining: true }),
    )
    .await;
    let answer = asked
        .map_err(|_| refused("it does not answer".into()))?
        .map_err(|e| refused(e.message().into()))?
        .into_inner();
    if answer.cluster_id.is_empty() {
        return Err(refused("it belongs to no cluster yet".into()));
    }
    if let Some(revision) = answer.removed_at_revision {
        return Err(Error::Removed { cluster: answer.cluster_id, why: spent(config.id, revision) });
    }
    if answer.knows_you {
        return Err(Error::Wiped {
            dir: config.dir.clone(),
            id: config.id,
            peer: answer.node_id,
            cluster: answer.cluster_id,
            join: peer.into(),
            rest: answer.rest,
        });
    }
    server.adopt(Identity { cluster_id: answer.cluster_id.clone(), node_id: config.id }).await?;
    let (Config { id, .. }, at) = (config, &config.advertise);
    info!(
        "joined cluster {}; tell it: registryctl --endpoints {} cluster join {} (then `cluster promote {id}`), or \
         `cluster replace OLD {}`",
        answer.cluster_id, answer.rest, at.rest, at.rest
    );
    Ok(Place { cluster_id: answer.cluster_id.into(), found_with: None })
}

/// The founder's part.
async fn found_cluster(
    config: &Config,
    members: &BTreeMap<u64, String>,
    known: Option<Identity>,
    server: &PeerServer,
    dial: &Dial,
) -> Result<Place, Error> {
    let mut reminder = Reminder::new();
    loop {
        let answers = ask(config, members, dial).await;
        refuse_if_running(config, members, &answers)?;
        if answers.len() + 1 == members.len() {
            let cluster_id = match &known {
                Some(known) => known.cluster_id.clone(),
                None => server
                    .identity()
                    .map_or_else(|| Uuid::new_v4().simple().to_string(), |identity| identity.cluster_id),
            };
            if let Some(other) =
                answers.iter().find(|a| !a.cluster_id.is_empty() && a.cluster_id != cluster_id)
            {
                return Err(Error::Promised { peer: other.node_id, cluster: other.cluster_id.clone() });
            }
            server.adopt(Identity { cluster_id: cluster_id.clone(), node_id: config.id }).await?;
            if adopted_by_all(config, members, &cluster_id, dial).await {
                info!(cluster = cluster_id, members = members.len(), "founding the cluster");
                return Ok(Place {
                    cluster_id: cluster_id.into(),
                    found_with: Some(addresses(config, answers)),
                });
            }
        }
        reminder.waits_for(config, members, &answers);
        tokio::time::sleep(ROUND).await;
    }
}

/// Everybody else's part: wait for the founder, unless the cluster turns out to be running.
async fn await_founding(
    config: &Config,
    members: &BTreeMap<u64, String>,
    server: &PeerServer,
    dial: &Dial,
) -> Result<Place, Error> {
    let mut reminder = Reminder::new();
    loop {
        if let Some(identity) = server.identity() {
            return Ok(Place { cluster_id: identity.cluster_id.into(), found_with: None });
        }
        let answers = ask(config, members, dial).await;
        if server.identity().is_none() {
            refuse_if_running(config, members, &answers)?;
        }
        reminder.waits_for(config, members, &answers);
        tokio::time::sleep(ROUND).await;
    }
}

async fn ask(config: &Config, members: &BTreeMap<u64, String>, dial: &Dial) -> Vec<pb::IdentifyResponse> {
    let others = members.iter().filter(|(id, _)| **id != config.id);
    let asked = others.map(|(id, address)| async move {
        let mut client = client_at(dial, config.peer_override.get(id).unwrap_or(address));
        let answer = tokio::time::timeout(
            ASK_TIMEOUT,
            client.identify(pb::IdentifyRequest { from: config.id, joining: false }),
        )
        .await
        .ok()?;
        answer.ok().map(tonic::Response::into_inner).filter(|answer| answer.node_id == *id)
    });
    join_all(asked).await.into_iter().flatten().collect()
}

fn refuse_if_running(
    config: &Config,
    members: &BTreeMap<u64, String>,
    answers: &[pb::IdentifyResponse],
) -> Result<(), Error> {
    match answers.iter().find(|answer| answer.initialised) {
        None => Ok(()),
        Some(answer) => Err(Error::Wiped {
            dir: config.dir.clone(),
            id: config.id,
            peer: answer.node_id,
            cluster: answer.cluster_id.clone(),
            join: members.get(&answer.node_id).cloned().unwrap_or_default(),
            rest: answer.rest.clone(),
        }),
    }
}

async fn adopted_by_all(
    config: &Config,
    members: &BTreeMap<u64, String>,
    cluster_id: &str,
    dial: &Dial,
) -> bool {
    let others = members.iter().filter(|(id, _)| **id != config.id);
    let asked = others.map(|(id, address)| async move {
        let mut client = client_at(dial, config.peer_override.get(id).unwrap_or(address));
        let request = pb::AdoptRequest { from: config.id, to: *id, cluster_id: cluster_id.into() };
        match tokio::time::timeout(ASK_TIMEOUT, client.adopt(request)).await {
            Ok(Ok(_)) => true,
            Ok(Err(status)) => {
                warn!(peer = id, "the peer does not take part yet: {}", status.message());
                false
            }
            Err(_) => false,
        }
    });
    join_all(asked).await.into_iter().all(|adopted| adopted)
}

fn addresses(config: &Config, answers: Vec<pb::IdentifyResponse>) -> BTreeMap<u64, Address> {
    let at = &config.advertise;
    let own = Address {
        name: config.name.clone(),
        peer: at.peer.clone(),
        grpc: at.grpc.clone(),
        rest: at.rest.clone(),
    };
    let others = answers
        .into_iter()
        .map(|a| (a.node_id, Address { name: a.name, peer: a.peer, grpc: a.grpc, rest: a.rest }));
    std::iter::once((config.id, own)).chain(others).collect()
}

/// Says from time to time whom a node waits for.
struct Reminder(Instant);

impl Reminder {
    fn new() -> Self {
        Self(Instant::now() + REMIND)
    }

    fn waits_for(
        &mut self,
        config: &Config,
        members: &BTreeMap<u64, String>,
        answers: &[pb::IdentifyResponse],
    ) {
        if Instant::now() < self.0 {
            return;
        }
        self.0 = Instant::now() + REMIND;
        let silent: Vec<_> = members
            .iter()
            .filter(|(id, _)| **id != config.id && answers.iter().all(|answer| answer.node_id != **id))
            .map(|(id, address)| format!("{id}={address}"))
            .collect();
        info!(waiting_for = ?silent, "an empty node founds a cluster only when every member answers that it is empty too");
    }
}

/// What a directory says of itself.
pub fn identity_in(found: &Recovered) -> Result<Option<Identity>, String> {
    found
        .identity
        .as_deref()
        .map(codec::decode_identity)
        .transpose()
        .map_err(|e| format!("the node's identity: {e}"))
}
