//! Nodes: each put together as a server is, on the network, the disk and the clock of the simulation.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::Duration,
};

use clap::Parser;
use registry_node::{
    Args,
    config::{Advertise, Config, Origin},
    consensus::{BootstrapError, Consensus, Member, Parts, PeerServer, StartError, identity_in, sound},
    lease::Keeper,
    metrics::Metrics,
    registry::Registry,
    scope::{Scope, scoped},
    storage::Store,
    watch::{History, Hub},
};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    check::{Judge, Observed, TTL},
    disk::Platter,
    net::Net,
    run::Plant,
    trace::Trace,
};

/// Heartbeats forwarded to a leader are worked on this long, as in a server.
const GRACE: Duration = Duration::from_secs(5);

/// What differs between runs.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Voters to begin with.
    pub voters: u64,
    /// Log entries between snapshots.
    pub snapshot_every: u64,
    /// Log entries kept behind one.
    pub log_keep: u64,
    /// Longest wait of a disk, twice per batch.
    pub disk_micros_max: u64,
    /// Changes that a node remembers: who is further behind starts over.
    pub ring: usize,
    /// What the nodes' wall clocks show, which jump with every look.
    pub clocks: u64,
    /// What was broken on purpose.
    pub plant: Option<Plant>,
}

/// The nodes. Cheap to clone.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    shape: Shape,
    net: Net,
    trace: Trace,
    judge: Judge,
    nodes: Mutex<State>,
}

struct State {
    dice: fastrand::Rng,
    /// Whatever the wall clocks show.
    clocks: fastrand::Rng,
    nodes: BTreeMap<u64, Node>,
}

struct Node {
    disk: Platter,
    origin: Origin,
    life: Option<Life>,
    /// Started, and perhaps not there yet.
    scope: Option<(Scope, CancellationToken)>,
    paused: bool,
    /// It refused to start: its disk is damaged, and it may.
    refused: bool,
    /// Its disk was damaged on purpose.
    damaged: bool,
    /// Taken out of the cluster.
    removed: bool,
}

/// A node's process.
#[derive(Clone)]
pub struct Life {
    pub id: u64,
    pub registry: Registry,
    pub consensus: Consensus,
    scope: Scope,
    gone: CancellationToken,
}

impl Life {
    /// A call to this process from outside: none if the process ends before the answer.
    pub async fn call<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.gone.cancelled() => None,
            answer = self.scope.run(call) => Some(answer),
        }
    }
}

impl Cluster {
    /// Nodes 1 to `shape.voters`, none started.
    pub fn new(shape: Shape, dice: fastrand::Rng, net: Net, trace: Trace) -> Self {
        let members: BTreeMap<u64, String> = (1..=shape.voters).map(|id| (id, address(id))).collect();
        let node = |id| (id, Node::new(Origin::Bootstrap(members.clone()), shape.plant));
        let nodes: BTreeMap<u64, Node> = members.keys().map(|id| node(*id)).collect();
        let disks = nodes.iter().map(|(id, node)| (*id, node.disk.clone())).collect();
        let judge = Judge::new(trace.clone(), disks, members.keys().copied().collect());
        let clocks = fastrand::Rng::with_seed(shape.clocks);
        let nodes = Mutex::new(State { dice, clocks, nodes });
        Self(Arc::new(Inner { shape, net, trace, judge, nodes }))
    }

    pub fn judge(&self) -> &Judge {
        &self.0.judge
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.nodes.lock().expect("no panic while it is held")
    }

    pub fn plant(&self) -> Option<Plant> {
        self.0.shape.plant
    }

    /// All ids that ever were, but those taken out.
    pub fn ids(&self) -> Vec<u64> {
        self.state().nodes.iter().filter(|(_, node)| !node.removed).map(|(id, _)| *id).collect()
    }

    /// Those that refuse to start, or whose damage is not repaired yet.
    pub fn refused(&self) -> BTreeSet<u64> {
        self.state()
            .nodes
            .iter()
            .filter(|(_, node)| node.refused || node.damaged)
            .map(|(id, _)| *id)
            .collect()
    }

    /// The processes that run and have a place in the cluster.
    pub fn lives(&self) -> Vec<Life> {
        self.state().nodes.values().filter_map(|node| node.life.clone()).collect()
    }

    /// One process.
    pub fn life(&self, id: u64) -> Option<Life> {
        self.state().nodes.get(&id)?.life.clone()
    }

    pub fn disk(&self, id: u64) -> Platter {
        self.state().nodes[&id].disk.clone()
    }

    /// What the judge looks at.
    pub fn observe(&self) -> Vec<Observed> {
        self.lives().iter().map(|life| Observed { id: life.id, status: life.consensus.status() }).collect()
    }

    /// Makes room for a node that joins.
    pub fn add(&self, id: u64, through: u64) {
        let node = Node::new(Origin::Join(address(through)), self.0.shape.plant);
        self.0.judge.add_disk(id, node.disk.clone());
        self.state().nodes.insert(id, node);
    }

    /// What a joining node's operator tells the leader.
    pub fn member(id: u64) -> Member {
        let at = advertise(id);
        Member {
            id,
            name: format!("node-{id}"),
            peer: at.peer,
            grpc: at.grpc,
            rest: at.rest,
            role: registry_node::consensus::Role::Learner,
        }
    }

    /// It is no member any more: nothing is expected of it.
    pub fn note_removed(&self, id: u64) {
        if let Some(node) = self.state().nodes.get_mut(&id) {
            node.removed = true;
        }
        self.end(id, |disk, _| disk.kill_process());
    }

    /// Starts a node that is down; nothing if it is not, or refuses.
    pub fn start(&self, id: u64) {
        let (config, disk, scope, gone, mut latency) = {
            let state = &mut *self.state();
            let node = state.nodes.get_mut(&id).expect("a known node");
            if node.scope.is_some() || node.refused || node.removed {
                return;
            }
            let scope = Scope::new(state.dice.u64(..), state.clocks.u64(..));
            let gone = CancellationToken::new();
            node.scope = Some((scope.clone(), gone.clone()));
            node.paused = false;
            (config(id, &node.origin, &self.0.shape), node.disk.clone(), scope, gone, state.dice.fork())
        };
        self.0.trace.note(&[2, id], "start");
        let longest = self.0.shape.disk_micros_max;
        let latency = move || Duration::from_micros(latency.u64(20..=longest));
        let cluster = self.clone();
        let body = async move {
            if let Err(error) = cluster.run(id, config, disk, gone, latency).await {
                cluster.note_refused(id, &error);
            }
        };
        tokio::spawn(scope.run(body));
    }

    async fn run(
        &self,
        id: u64,
        config: Config,
        disk: Platter,
        gone: CancellationToken,
        latency: impl FnMut() -> Duration + Send + 'static,
    ) -> Result<(), anyhow::Error> {
        let scope = self.state().nodes[&id].scope.clone().expect("it is being started").0;
        // As a server ends its process: before anything else can run.
        let process = scope.clone();
        let on_failure = move |_: &std::io::Error| process.kill();
        let (store, recovered, writer) =
            Store::in_task(disk.open(), &config.dir, &sound, metrics(), on_failure, latency)?;
        if let Some(quarantine) = &recovered.quarantine {
            self.note_quarantine(id, &quarantine.why);
        }
        tokio::spawn(scoped(writer));
        let identity = identity_in(&recovered).map_err(anyhow::Error::msg)?;
        let initialised =
            recovered.vote.is_some() || !recovered.log.is_empty() || recovered.quarantine.is_some();
        let server = PeerServer::new(&config, store.clone(), identity, initialised);
        self.0.net.open(id, server.service(), scope.clone(), gone.clone());
        let history = History::with_bounds(usize::MAX, self.0.shape.ring);
        let hub = Hub::with_history(config.limits.watchers_max, history);
        let tracker = TaskTracker::new();
        let dial = self.0.net.dial(id);
        let parts = Parts {
            config: &config,
            store,
            recovered,
            hub: hub.clone(),
            dial,
            server: &server,
            tracker: &tracker,
        };
        let consensus = Consensus::start(parts).await?;
        let (keeper, queue) = Keeper::new(consensus.clone(), hub.clone(), metrics());
        tokio::spawn(scoped(keeper.clone().run(queue, CancellationToken::new(), tracker.clone())));
        let forwarded = keeper.clone();
        server.open_leases(Box::new(move |beats| {
            let keeper = forwarded.clone();
            Box::pin(async move { keeper.renew_here(&beats, Instant::now() + GRACE).await })
        }));
        let registry = Registry::new(consensus.clone(), hub, keeper, Arc::new(config.limits.clone()));
        let life = Life { id, registry, consensus, scope, gone };
        if let Some(node) = self.state().nodes.get_mut(&id) {
            node.life = Some(life);
        }
        Ok(())
    }

    /// A node may refuse to start only where its disk was damaged.
    fn note_refused(&self, id: u64, error: &anyhow::Error) {
        self.0.trace.note(&[3, id], "refuses");
        let (damaged, removed) = {
            let state = &mut *self.state();
            let node = state.nodes.get_mut(&id).expect("a known node");
            if node.disk.blown() {
                return; // the power failed while it started
            }
            if matches!(error.downcast_ref(), Some(StartError::Bootstrap(BootstrapError::Join { .. }))) {
                node.scope = None; // nobody had an answer for it: its operator tries again
                return;
            }
            node.refused = true;
            (node.damaged, node.removed)
        };
        self.0.net.close(id);
        if !damaged && !removed {
            self.0.judge.violated(format!("D3: node {id} refuses an undamaged disk: {error:#}"));
        }
    }

    /// A node may be in quarantine only where its disk was damaged, until it has been repaired.
    fn note_quarantine(&self, id: u64, why: &str) {
        self.0.trace.note(&[14, id], "is in quarantine");
        let damaged = self.state().nodes[&id].damaged;
        if !damaged {
            self.0.judge.violated(format!("D3: node {id} sets an undamaged disk aside: {why}"));
        }
    }

    /// Those whose damage has been repaired, or was none, are as good as the others again.
    pub fn note_repaired(&self, observed: &[Observed]) {
        let state = &mut *self.state();
        for node in observed.iter().filter(|node| !node.status.quarantined) {
            state.nodes.get_mut(&node.id).expect("a known node").damaged = false;
        }
    }

    /// The process is gone, and what it had not synced with it, or not.
    pub fn crash(&self, id: u64, power: bool) {
        self.0.trace.note(&[4, id, u64::from(power)], "crash");
        self.end(id, |disk, dice| match power {
            true => disk.cut_power(dice),
            false => disk.kill_process(),
        });
    }

    fn end(&self, id: u64, disk: impl FnOnce(&Platter, &mut fastrand::Rng)) {
        self.0.net.close(id);
        let state = &mut *self.state();
        let Some(node) = state.nodes.get_mut(&id) else { return };
        node.life = None;
        if let Some((scope, gone)) = node.scope.take() {
            scope.kill();
            gone.cancel();
        }
        disk(&node.disk, &mut state.dice);
    }

    /// Crashes those whose disks have failed in the middle of a write.
    pub fn bury_the_blown(&self) -> Vec<u64> {
        let blown: Vec<u64> =
            self.state().nodes.iter().filter(|(_, node)| node.disk.blown()).map(|(id, _)| *id).collect();
        blown.iter().for_each(|id| self.crash(*id, true));
        blown
    }

    /// Turns a bit on the disk of a node, and ends its process before it: only then does the sidecar say all that
    /// the node ever promised. A bit and a power cut at once are two faults.
    pub fn damage(&self, id: u64) {
        self.crash(id, false);
        let state = &mut *self.state();
        let node = state.nodes.get_mut(&id).expect("a known node");
        if let Some(place) = node.disk.flip(&mut state.dice) {
            node.damaged = true;
            self.0.trace.note(&[5, id], "a bit turns");
            let _ = place; // differs with the wall clock's bytes: not for the trace
        }
    }

    pub fn pause(&self, id: u64) {
        self.0.trace.note(&[6, id], "pause");
        if let Some(node) = self.state().nodes.get_mut(&id)
            && let Some((scope, _)) = &node.scope
        {
            node.paused = true;
            scope.pause();
        }
    }

    pub fn resume(&self, id: u64) {
        self.0.trace.note(&[7, id], "resume");
        if let Some(node) = self.state().nodes.get_mut(&id)
            && let Some((scope, _)) = &node.scope
        {
            node.paused = false;
            scope.resume();
        }
    }
}

impl Node {
    fn new(origin: Origin, plant: Option<Plant>) -> Self {
        let disk = Platter::new(plant);
        Self {
            disk,
            origin,
            life: None,
            scope: None,
            paused: false,
            refused: false,
            damaged: false,
            removed: false,
        }
    }
}

fn address(id: u64) -> String {
    format!("node-{id}:1")
}

fn advertise(id: u64) -> Advertise {
    let url = format!("http://{}", address(id));
    Advertise { rest: url.clone(), grpc: url.clone(), peer: url }
}

/// One for all nodes of all runs: nobody reads it.
fn metrics() -> Arc<Metrics> {
    static METRICS: OnceLock<Arc<Metrics>> = OnceLock::new();
    METRICS.get_or_init(|| Arc::new(Metrics::new())).clone()
}

fn config(id: u64, origin: &Origin, shape: &Shape) -> Config {
    static BASE: OnceLock<Config> = OnceLock::new();
    let base = BASE.get_or_init(|| {
        Args::try_parse_from(["registry-node"]).expect("no flag is needed").check().expect("the defaults fit")
    });
    let mut config = base.clone();
    config.id = id;
    config.name = format!("node-{id}");
    config.dir = PathBuf::from(format!("node-{id}"));
    config.origin = origin.clone();
    config.advertise = advertise(id);
    config.snapshot_every = shape.snapshot_every;
    config.log_keep = shape.log_keep;
    config.limits.ttl_min = TTL;
    config
}
