//! Three nodes in one thread and in simulated time, put together as in a server up to consensus: their disks are in
//! memory, and a call to another node is a call of its service.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use futures_util::{StreamExt, future::join_all};
use http_body_util::{BodyStream, StreamBody};
use proto::raft::v1 as pb;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::{ServiceExt, service_fn, util::BoxCloneSyncService};

use super::super::{
    Consensus, Dial, Lead, NoConnection, Outcome, Parts, PeerServer, PeerService, Sealed, WireError,
    identity_in, sound,
};
use crate::{
    catalog::{Command, InstanceId, Proposal, Provenance, ServiceName, Spec},
    config::{Args, Config},
    storage::{MemoryMedium, Store},
    watch::Hub,
};

/// What is not bounded by a promise takes this long at most, in simulated time.
pub const PATIENCE: Duration = Duration::from_secs(30);

const IDS: [u64; 3] = [1, 2, 3];

/// Who can be called, and who is cut off from everybody or hears no answers.
#[derive(Default)]
struct Net {
    services: BTreeMap<String, (u64, PeerService)>,
    cut: BTreeSet<u64>,
    deaf: BTreeSet<u64>,
    /// How long a call takes to arrive, and its answer.
    delay: Duration,
    /// When an append arrived, and whose.
    appends: Vec<(Instant, u64)>,
}

/// The nodes.
pub struct Trio {
    nodes: Vec<Node>,
    net: Arc<Mutex<Net>>,
}

/// One of them.
pub struct Node {
    pub id: u64,
    pub consensus: Consensus,
    pub hub: Hub,
    pub server: PeerServer,
    pub disk: MemoryMedium,
    /// How long its disk takes to make a batch durable, in milliseconds.
    pub disk_ms: Arc<AtomicU64>,
}

impl Trio {
    /// Founds a cluster and waits for its leader.
    pub async fn start() -> Self {
        let net = Arc::<Mutex<Net>>::default();
        let nodes = join_all(IDS.map(|id| Node::start(id, net.clone()))).await;
        let trio = Self { nodes, net };
        trio.leader().await;
        trio
    }

    /// The node of this id.
    pub fn node(&self, id: u64) -> &Node {
        self.nodes.iter().find(|node| node.id == id).expect("one of the three")
    }

    /// All of them.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    /// All but this one.
    pub fn others(&self, id: u64) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| node.id != id)
    }

    /// The leader, once all agree who that is.
    pub async fn leader(&self) -> &Node {
        self.leader_among(&IDS).await
    }

    /// The leader, once these agree who that is.
    pub async fn leader_among(&self, ids: &[u64]) -> &Node {
        let mut leader = None;
        until("these agree on a leader", || {
            let views: BTreeSet<Option<u64>> = ids.iter().map(|id| self.node(*id).leads()).collect();
            leader = views.first().copied().flatten().filter(|leader| ids.contains(leader));
            views.len() == 1 && leader.is_some()
        })
        .await;
        self.node(leader.expect("it was waited for"))
    }

    /// Cuts a node off from the others, or ends that.
    pub fn cut(&self, id: u64, cut: bool) {
        let mut net = self.net();
        match cut {
            true => net.cut.insert(id),
            false => net.cut.remove(&id),
        };
    }

    /// From now on a node's calls arrive, and it hears no answer.
    pub fn deafen(&self, id: u64) {
        self.net().deaf.insert(id);
    }

    /// From now on calls take so long to arrive, and so do their answers.
    pub fn delay(&self, delay: Duration) {
        self.net().delay = delay;
    }

    /// When appends of this node have arrived at others.
    pub fn appends_of(&self, id: u64) -> Vec<Instant> {
        self.net().appends.iter().filter(|(_, from)| *from == id).map(|(at, _)| *at).collect()
    }

    fn net(&self) -> MutexGuard<'_, Net> {
        self.net.lock().expect("no panic while it is held")
    }
}

impl Node {
    async fn start(id: u64, net: Arc<Mutex<Net>>) -> Self {
        let members: Vec<String> = IDS.iter().map(|id| format!("{id}=127.0.0.1:{}", 7_000 + id)).collect();
        let (own, port) = (id.to_string(), format!("127.0.0.1:{}", 7_000 + id));
        let flags =
            ["node", "--id", &own, "--dir", "/trio", "--peer", &port, "--members", &members.join(",")];
        let config: Config = Args::parse_from(flags).check().expect("valid flags");
        let (disk, disk_ms) = (MemoryMedium::default(), Arc::<AtomicU64>::default());
        let waits = disk_ms.clone();
        // Half before the writes and half before anybody is told.
        let latency = move || Duration::from_millis(waits.load(Ordering::Relaxed)) / 2;
        let (store, recovered, writing) = Store::in_task(
            disk.clone(),
            Path::new("/trio"),
            &sound,
            Arc::default(),
            |error| panic!("{error}"),
            latency,
        )
        .expect("an empty disk");
        tokio::spawn(writing);
        let identity = identity_in(&recovered).expect("none yet");
        let server = PeerServer::new(&config, store.clone(), identity, false);
        let at = (id, server.service());
        net.lock().expect("no panic while it is held").services.insert(config.advertise.peer.clone(), at);
        let hub = Hub::new(8);
        let parts = Parts {
            config: &config,
            store,
            recovered,
            hub: hub.clone(),
            dial: dial(id, net),
            server: &server,
            tracker: &TaskTracker::new(),
        };
        let consensus = Consensus::start(parts).await.expect("an empty node founds a cluster");
        server.open_leases(Box::new(|beats| Box::pin(async move { Ok(vec![true; beats.len()]) })));
        Self { id, consensus, hub, server, disk, disk_ms }
    }

    /// Who leads, as it knows.
    pub fn leads(&self) -> Option<u64> {
        match self.consensus.lead() {
            Lead::Here { .. } => Some(self.id),
            Lead::Elsewhere { id, .. } => Some(id),
            Lead::Nowhere => None,
        }
    }

    /// Registers an instance through it.
    pub async fn register(&self, name: &str) -> Outcome {
        self.consensus.propose(registration(name), Instant::now() + PATIENCE).await
    }

    /// Calls it as the node `from` would.
    pub fn header(&self, from: u64) -> Option<pb::PeerHeader> {
        Some(pb::PeerHeader { cluster_id: self.consensus.cluster_id().to_string(), from, to: self.id })
    }
}

/// A proposal that registers an instance.
pub fn registration(name: &str) -> Sealed {
    let id = InstanceId::new(name).expect("valid");
    let spec = Spec::new(id, ServiceName::new("web").expect("valid"), "http://127.0.0.1:1".to_owned());
    let command = Command::Register { spec: spec.into(), expected: None };
    Sealed::new(Proposal { command, cause: Provenance::default().into(), origin: None })
}

/// Waits until `done` says so.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn dial(from: u64, net: Arc<Mutex<Net>>) -> Dial {
    Arc::new(move |url: &str| {
        let (net, url) = (net.clone(), url.to_owned());
        BoxCloneSyncService::new(service_fn(move |request: http::Request<Body>| {
            let called = {
                let net = net.lock().expect("no panic while it is held");
                let called = net.services.get(&url).filter(|(to, _)| !net.cut.contains(to));
                called.filter(|_| !net.cut.contains(&from)).map(|(_, service)| service.clone())
            };
            let (net, url) = (net.clone(), url.clone());
            async move {
                let service = called.ok_or_else(|| WireError(Box::new(NoConnection)))?;
                if request.uri().path().ends_with("/Append") {
                    let way = Way { net, from, url };
                    let request = request.map(|body| way.clone().crossed(body, true));
                    let answer = service.oneshot(request).await.map_err(|never| match never {})?;
                    return Ok(answer.map(|body| way.crossed(body, false)));
                }
                let delay = net.lock().expect("no panic while it is held").delay;
                tokio::time::sleep(delay).await;
                let answer = service.oneshot(request).await.map_err(|never| match never {});
                tokio::time::sleep(delay).await;
                let lost = net.lock().expect("no panic while it is held").deaf.contains(&from);
                if lost { std::future::pending().await } else { answer }
            }
        }))
    })
}

/// The way that the messages of a stream take, one by one.
#[derive(Clone)]
struct Way {
    net: Arc<Mutex<Net>>,
    from: u64,
    url: String,
}

impl Way {
    /// The same messages as they arrive: `there`, or back.
    fn crossed(self, body: Body, there: bool) -> Body {
        let frames = BodyStream::new(body).then(move |frame| {
            let way = self.clone();
            async move {
                let delay = way.net.lock().expect("no panic while it is held").delay;
                tokio::time::sleep(delay).await;
                let (cut, lost) = way.noted(there);
                match () {
                    () if cut => Err(tonic::Status::unavailable("the connection broke")),
                    () if lost => std::future::pending().await,
                    () => frame,
                }
            }
        });
        Body::new(StreamBody::new(Box::pin(frames)))
    }

    /// Whether nothing passes any more, and whether this one gets lost.
    fn noted(&self, there: bool) -> (bool, bool) {
        let mut net = self.net.lock().expect("no panic while it is held");
        let to = net.services.get(&self.url).map(|(to, _)| *to);
        if there {
            net.appends.push((Instant::now(), self.from));
        }
        let cut = net.cut.contains(&self.from) || to.is_some_and(|to| net.cut.contains(&to));
        (cut, !there && net.deaf.contains(&self.from))
    }
}
