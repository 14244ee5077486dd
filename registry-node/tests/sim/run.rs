//! One seed, one run: a cluster, its clients, and everything that goes wrong; then a part of it stays wrong for
//! ever, and in the end nothing is wrong any more.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use registry_node::consensus::Lead;
use tokio::time::{Instant, sleep};

use crate::{
    check::{Counts, TTL},
    clients::Client,
    cluster::{Cluster, Life, Shape},
    net::{Net, Weather},
    trace::Trace,
};

/// How often everything is looked at.
const TICK: Duration = Duration::from_millis(5);
/// A majority that is well makes progress within this, whatever the others do (C2): each of it serves `ROUNDS` writes
/// and reads.
const PROGRESS: Duration = Duration::from_secs(5);
const ROUNDS: u32 = 3;
/// Renewals after which a lease counts as renewed.
const RENEWALS: usize = 6;
/// Entries that a leader lets be on their way at once, as the proposer has it.
const IN_FLIGHT: u64 = 16;
/// Once nothing is wrong any more, everything succeeds within this (C3).
const RECOVERY: Duration = Duration::from_secs(10);
/// From then on a dead instance is gone within its lease, what a new leader adds to it, and a second (E2).
const EXPIRY: Duration = Duration::from_millis(1_500 + 500 + 600 + 1_000);

/// A run is over after this, and needs a tenth of these: more is a loop.
const SIMULATED_MAX: Duration = Duration::from_secs(120);
const MESSAGES_MAX: u64 = 50_000;

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Report {
    pub seed: u64,
    pub violations: Vec<String>,
    pub hash: u64,
    pub simulated: Duration,
    pub counts: Counts,
    pub faults: Faults,
}

/// How often each kind of fault happened.
#[derive(Debug, Default, Clone, Copy)]
pub struct Faults {
    pub power_cuts: u64,
    pub kills: u64,
    pub torn: u64,
    pub flips: u64,
    pub pauses: u64,
    pub cuts: u64,
    pub weathers: u64,
    pub transfers: u64,
    pub snapshots: u64,
    pub members: u64,
    pub messages: u64,
    pub lost: u64,
    pub cores: u64,
}

/// A fault that nothing survives: the judge must see it, or it sees nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// A sync that syncs nothing.
    LazySync,
    /// Votes never reach the disk.
    LostVotes,
    /// Reads that no quorum confirmed pass for linearizable ones.
    UnconfirmedReads,
    /// Heartbeats are acknowledged by nobody.
    EmptyRenewals,
    /// A watcher resumes one revision too early.
    EarlyResume,
    /// A client that should never stop to try never tries.
    SilentClient,
}

impl Plant {
    pub const ALL: [Self; 6] = [
        Self::LazySync,
        Self::LostVotes,
        Self::UnconfirmedReads,
        Self::EmptyRenewals,
        Self::EarlyResume,
        Self::SilentClient,
    ];
}

/// How a seed is run.
#[derive(Debug, Default, Clone, Copy)]
pub struct How {
    /// Tells everything that happens.
    pub verbose: bool,
    /// What the wall clocks show: whatever it is, the run is the same (E7).
    pub clocks: u64,
    pub plant: Option<Plant>,
}

/// Runs a seed to its end.
pub fn run(seed: u64, how: How) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime needs nothing from outside");
    runtime.block_on(async {
        let mut world = World::new(seed, how);
        world.play().await;
        world.report(seed)
    })
}

struct World {
    dice: fastrand::Rng,
    trace: Trace,
    net: Net,
    cluster: Cluster,
    shape: Shape,
    faults: Faults,
    next_id: u64,
    stop: Arc<AtomicBool>,
}

impl World {
    fn new(seed: u64, How { verbose, clocks, plant }: How) -> Self {
        let mut dice = fastrand::Rng::with_seed(seed);
        let trace = Trace::new(verbose);
        let net = Net::new(dice.fork(), trace.clone());
        let tiny = dice.bool();
        let shape = Shape {
            voters: [1, 3, 3, 3, 3, 3, 5, 5][dice.usize(..8)],
            snapshot_every: if tiny { dice.u64(5..60) } else { 10_000 },
            log_keep: if dice.bool() { 0 } else { dice.u64(1..40) },
            disk_micros_max: [50, 500, 5_000, 40_000][dice.usize(..4)],
            ring: if dice.bool() { dice.usize(4..24) } else { 1 << 17 },
            clocks,
            plant,
        };
        let cluster = Cluster::new(shape.clone(), dice.fork(), net.clone(), trace.clone());
        let next_id = shape.voters + 1;
        Self { dice, trace, net, cluster, shape, faults: Faults::default(), next_id, stop: Arc::default() }
    }

    fn report(&self, seed: u64) -> Report {
        let (messages, lost) = self.net.counts();
        Report {
            seed,
            violations: self.cluster.judge().violations(),
            hash: self.trace.hash(),
            simulated: self.trace.now(),
            counts: self.cluster.judge().counts(),
            faults: Faults { messages, lost, ..self.faults },
        }
    }

    async fn play(&mut self) {
        self.cluster.ids().into_iter().for_each(|id| self.cluster.start(id));
        if !self.wait(RECOVERY, |world| world.cluster.lives().len() as u64 == world.shape.voters).await {
            return self.cluster.judge().violated("C3: the cluster was never founded".into());
        }
        // Whatever founds a cluster and is lost before it is replicated takes the cluster with it.
        let founded = |world: &mut Self| {
            let all = world.cluster.observe();
            all.iter().all(|node| node.status.applied_index > 0 && node.status.not_ready.is_none())
        };
        if !self.wait(RECOVERY, founded).await {
            let states = self.states();
            return self.cluster.judge().violated(format!("C3: the cluster never began to work: {states}"));
        }
        self.admit_clients();
        let chaos = Duration::from_millis(self.dice.u64(1_000..4_000));
        self.chaos(chaos).await;
        // Who votes is not certain while members change: then nobody can say which nodes are a majority.
        if self.dice.u32(..3) == 0 && self.shape.voters > 1 && self.faults.members == 0 {
            self.only_a_core_is_well().await;
        }
        if self.dice.u32(..5) == 0 && self.faults.members == 0 {
            self.the_quorum_is_lost().await;
        }
        if self.dice.u32(..6) == 0 && self.shape.voters > 1 && self.faults.members == 0 {
            self.an_expiry_outlives_its_term().await;
        }
        self.all_is_well().await;
    }

    fn admit_clients(&mut self) {
        for number in 0..self.dice.u64(5..9) {
            let client = Client::new(
                number,
                self.cluster.clone(),
                self.trace.clone(),
                self.dice.fork(),
                self.stop.clone(),
            );
            match number % 4 {
                0 | 3 => drop(tokio::spawn(client.write_and_read())),
                1 => drop(tokio::spawn(client.keep_alive())),
                _ => drop(tokio::spawn(client.follow())),
            }
        }
    }

    fn hurt(&self) -> bool {
        !self.cluster.judge().violations().is_empty()
    }

    /// Lets the time pass until something holds; false if it did not in time, or something else does not.
    async fn wait(&mut self, most: Duration, mut until: impl FnMut(&mut Self) -> bool) -> bool {
        let deadline = Instant::now() + most;
        while !until(self) {
            if Instant::now() >= deadline || self.hurt() {
                return false;
            }
            self.tick().await;
        }
        true
    }

    async fn tick(&mut self) {
        sleep(TICK).await;
        let observed = self.cluster.observe();
        self.cluster.judge().look(&observed);
        self.cluster.note_repaired(&observed);
        let ((messages, _), now) = (self.net.counts(), self.trace.now());
        if (messages > MESSAGES_MAX || now > SIMULATED_MAX) && !self.hurt() {
            let what =
                format!("R2: {messages} messages in {now:?}, at most {MESSAGES_MAX} in {SIMULATED_MAX:?}");
            self.cluster.judge().violated(what);
        }
        let blown = self.cluster.bury_the_blown();
        self.faults.torn += blown.len() as u64;
        for id in blown {
            self.restart_later(id, 500);
        }
    }

    fn restart_later(&mut self, id: u64, most_ms: u64) {
        let after = Duration::from_millis(self.dice.u64(1..most_ms));
        let cluster = self.cluster.clone();
        tokio::spawn(async move {
            sleep(after).await;
            cluster.start(id);
        });
    }

    async fn chaos(&mut self, lasts: Duration) {
        let end = Instant::now() + lasts;
        while Instant::now() < end && !self.hurt() {
            let calm = Duration::from_millis(self.dice.u64(5..300));
            let until = Instant::now() + calm;
            self.wait(calm, |_| Instant::now() >= until).await;
            self.something_happens();
        }
    }

    fn something_happens(&mut self) {
        let ids = self.cluster.ids();
        let id = ids[self.dice.usize(..ids.len())];
        match self.dice.u32(..20) {
            0..=2 => {
                self.faults.power_cuts += 1;
                self.cluster.crash(id, true);
                self.restart_later(id, 1_500);
            }
            3..=4 => {
                self.faults.kills += 1;
                self.cluster.crash(id, false);
                self.restart_later(id, 300);
            }
            5 => self.cluster.disk(id).light_fuse(self.dice.u32(..30)),
            6..=8 => {
                self.faults.pauses += 1;
                self.cluster.pause(id);
                let (after, cluster) =
                    (Duration::from_millis(self.dice.u64(20..2_500)), self.cluster.clone());
                tokio::spawn(async move {
                    sleep(after).await;
                    cluster.resume(id);
                });
            }
            9..=12 => self.cut_somehow(&ids),
            13..=14 => self.net.mend(),
            15 => self.change_the_weather(),
            16 => {
                self.faults.transfers += 1;
                self.on_a_node(|life| async move { drop(life.registry.transfer(None).await) });
            }
            17 => {
                self.faults.snapshots += 1;
                self.on_a_node(|life| async move { drop(life.registry.snapshot().await) });
            }
            18 => self.change_members(),
            _ => self.damage_one(id),
        }
    }

    /// Somebody asks a node for something, and does not wait.
    fn on_a_node<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        ask: impl FnOnce(Life) -> F + Send + 'static,
    ) {
        let lives = self.cluster.lives();
        if lives.is_empty() {
            return;
        }
        let life = lives[self.dice.usize(..lives.len())].clone();
        tokio::spawn(async move { life.clone().call(ask(life)).await });
    }

    fn cut_somehow(&mut self, ids: &[u64]) {
        self.faults.cuts += 1;
        let one = ids[self.dice.usize(..ids.len())];
        let cut_both = |net: &Net, a: u64, b: u64| {
            net.cut(a, b);
            net.cut(b, a);
        };
        match self.dice.u32(..6) {
            // One node alone.
            0 => ids.iter().filter(|id| **id != one).for_each(|id| cut_both(&self.net, one, *id)),
            // It hears nobody, or nobody hears it.
            1 => ids.iter().filter(|id| **id != one).for_each(|id| self.net.cut(one, *id)),
            2 => ids.iter().filter(|id| **id != one).for_each(|id| self.net.cut(*id, one)),
            // Two parts.
            3 => {
                let side: BTreeSet<u64> = ids.iter().copied().filter(|_| self.dice.bool()).collect();
                for a in ids.iter().filter(|id| side.contains(id)) {
                    ids.iter().filter(|id| !side.contains(id)).for_each(|b| cut_both(&self.net, *a, *b));
                }
            }
            // A ring: everybody reaches only the next one.
            4 => {
                for (at, from) in ids.iter().enumerate() {
                    let next = ids[(at + 1) % ids.len()];
                    ids.iter()
                        .filter(|to| **to != next && *to != from)
                        .for_each(|to| self.net.cut(*from, *to));
                }
            }
            // A bridge: two parts, and one node in both.
            _ => {
                for (at, a) in ids.iter().enumerate().filter(|(_, id)| **id != one) {
                    let others = ids.iter().enumerate().filter(|(n, id)| **id != one && n % 2 != at % 2);
                    others.for_each(|(_, b)| self.net.cut(*a, *b));
                }
            }
        }
    }

    fn change_the_weather(&mut self) {
        self.faults.weathers += 1;
        let micros = Duration::from_micros;
        let weather = Weather {
            delay_min: micros(self.dice.u64(50..2_000)),
            delay_max: micros(self.dice.u64(2_000..60_000)),
            lost: self.dice.u32(..200),
            doubled: self.dice.u32(..100),
            late: self.dice.u32(..50),
        };
        self.net.set_weather(weather);
    }

    /// A new node joins and is promoted, or one that is not needed is taken out.
    fn change_members(&mut self) {
        self.faults.members += 1;
        let members = self.cluster.ids();
        if members.len() < 5 && self.dice.bool() {
            let Some(through) = self.cluster.lives().first().map(|life| life.id) else { return };
            let id = self.next_id;
            self.next_id += 1;
            self.cluster.add(id, through);
            self.cluster.start(id);
            let cluster = self.cluster.clone();
            self.everywhere(move |life| {
                let cluster = cluster.clone();
                async move {
                    // It has to have asked for its place before it is added.
                    while cluster.life(id).is_none() {
                        cluster.start(id);
                        sleep(Duration::from_millis(100)).await;
                    }
                    if life.registry.add_learner(Cluster::member(id)).await.is_ok() {
                        while life.registry.promote(id).await.is_err() {
                            sleep(Duration::from_millis(100)).await;
                            if !matches!(life.consensus.lead(), Lead::Here { .. }) {
                                return;
                            }
                        }
                    }
                }
            });
        } else if members.len() > 3 && self.cluster.refused().is_empty() {
            // Who is no member yet would be stopped, and could still be added.
            let known = self.cluster.judge().members();
            let members: Vec<u64> = members.into_iter().filter(|id| known.contains(id)).collect();
            if members.is_empty() {
                return;
            }
            let id = members[self.dice.usize(..members.len())];
            let cluster = self.cluster.clone();
            self.everywhere(move |life| {
                let cluster = cluster.clone();
                async move {
                    if life.registry.remove_member(id).await.is_ok() {
                        // It may still lead, or have to hear of it: an operator stops it a little later.
                        tokio::spawn(async move {
                            sleep(Duration::from_millis(200)).await;
                            cluster.note_removed(id);
                        });
                    }
                }
            });
        }
    }

    /// Asks every node, one of which leads.
    fn everywhere<F: Future<Output = ()> + Send + 'static>(
        &self,
        ask: impl Fn(Life) -> F + Clone + Send + 'static,
    ) {
        for life in self.cluster.lives() {
            let ask = ask.clone();
            tokio::spawn(async move { life.clone().call(ask(life)).await });
        }
    }

    /// A bit turns on one disk, of a minority at most: the node is exact, or is repaired by its peers, or refuses to
    /// start; it must not be wrong.
    fn damage_one(&mut self, id: u64) {
        let (members, refused) = (self.cluster.ids().len(), self.cluster.refused().len());
        if (refused + 1) * 2 >= members
            || members as u64 != self.shape.voters
            || self.cluster.life(id).is_none()
        {
            return;
        }
        self.faults.flips += 1;
        self.cluster.damage(id);
        self.restart_later(id, 300);
    }

    /// C2: a majority is well, and whatever happens to the others, it makes progress.
    async fn only_a_core_is_well(&mut self) {
        self.faults.cores += 1;
        let refused = self.cluster.refused();
        let (mut well, mut others): (Vec<u64>, Vec<u64>) =
            self.cluster.ids().into_iter().partition(|id| !refused.contains(id));
        let majority = self.cluster.ids().len() / 2 + 1;
        if well.len() < majority {
            return;
        }
        while well.len() > majority {
            others.push(well.swap_remove(self.dice.usize(..well.len())));
        }
        self.net.heal_among(&well);
        for id in &well {
            self.cluster.disk(*id).put_out_fuse();
            self.cluster.resume(*id);
            self.cluster.start(*id);
        }
        let pattern = self.dice.u32(..5);
        for (at, other) in others.iter().enumerate() {
            // Two outside and one of the core could be a quorum that the rest of the core cannot reach: Raft's
            // leader is then no use to it, and with a quorum it does not give way.
            if matches!(pattern, 2 | 3) {
                others.iter().filter(|o| *o != other).for_each(|o| self.net.cut(*other, *o));
            }
            for (n, core) in well.iter().enumerate() {
                match pattern {
                    // It is heard and hears nothing, or the other way round.
                    0 => self.net.cut(*core, *other),
                    1 => self.net.cut(*other, *core),
                    // It reaches one, and is reached by another.
                    2 if n != at % well.len() => self.net.cut(*other, *core),
                    2 => self.net.cut(*core, *other),
                    // It knows only one of them.
                    3 if n != at % well.len() => {
                        self.net.cut(*other, *core);
                        self.net.cut(*core, *other);
                    }
                    _ => {}
                }
            }
            self.cluster.resume(*other);
            self.cluster.start(*other);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicUsize::new(0));
        for (number, id) in (100..).zip(well.clone()) {
            let mut client =
                Client::new(number, self.cluster.clone(), self.trace.clone(), self.dice.fork(), stop.clone());
            let (cluster, stop, served) = (self.cluster.clone(), stop.clone(), served.clone());
            tokio::spawn(async move {
                let mut rounds = 0;
                while rounds < ROUNDS && !stop.load(Ordering::Relaxed) {
                    match cluster.life(id) {
                        Some(life) => rounds += u32::from(client.try_all(&life).await),
                        None => sleep(TICK).await,
                    }
                }
                served.fetch_add(usize::from(rounds == ROUNDS), Ordering::Relaxed);
            });
        }
        // Of three nodes one outside and the one it knows are a quorum: what the other cannot reach may lead.
        let needed = if pattern == 3 && self.shape.voters == 3 { 1 } else { well.len() };
        let flapping = pattern == 4;
        let mut flaps = 0_u32;
        let all_others = others.clone();
        let ok = self
            .wait(PROGRESS, |world| {
                flaps += 1;
                if flapping && flaps.is_multiple_of(40) {
                    all_others.iter().for_each(|id| world.cluster.crash(*id, flaps.is_multiple_of(80)));
                    all_others.iter().for_each(|id| world.cluster.start(*id));
                }
                served.load(Ordering::Relaxed) >= needed
            })
            .await;
        stop.store(true, Ordering::Relaxed);
        if !ok && !self.hurt() {
            let states = self.states();
            self.cluster.judge().violated(format!(
                "C2: nodes {well:?} are well and made no progress in {PROGRESS:?}, pattern {pattern}: {states}"
            ));
        }
    }

    /// E6: a majority is away for any time, and whoever kept trying is still registered when it is back.
    async fn the_quorum_is_lost(&mut self) {
        self.end_all_faults();
        if !self.wait(RECOVERY, |world| world.cluster.refused().is_empty()).await {
            return; // who refuses to start stays away
        }
        let (stop, kept) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client =
            Client::new(300, self.cluster.clone(), self.trace.clone(), self.dice.fork(), stop.clone());
        tokio::spawn(client.keep_trying(kept.clone()));
        let renewed_again = || {
            let (kept, before) = (kept.clone(), kept.load(Ordering::Relaxed));
            // A renewal that was asked for before may be told of later.
            move |_: &mut Self| kept.load(Ordering::Relaxed) >= before + RENEWALS
        };
        if self.wait(RECOVERY, renewed_again()).await {
            self.cluster.judge().count(|counts| counts.outages += 1);
            let mut ids = self.cluster.ids();
            self.dice.shuffle(&mut ids);
            let away = &ids[..ids.len() / 2 + 1];
            match self.dice.u32(..3) {
                0 => away.iter().for_each(|id| self.cluster.crash(*id, true)),
                1 => away.iter().for_each(|id| self.cluster.pause(*id)),
                _ => {
                    for (a, b) in
                        ids.iter().flat_map(|a| ids.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b)
                    {
                        self.net.cut(a, b);
                    }
                }
            }
            let back = Instant::now() + Duration::from_millis(self.dice.u64(100..6_000));
            self.wait(Duration::from_secs(10), |_| Instant::now() >= back).await;
            self.end_all_faults();
            if !self.wait(RECOVERY, renewed_again()).await && !self.hurt() {
                let states = self.states();
                let what =
                    format!("C3: nobody renews a lease {RECOVERY:?} after the quorum is back: {states}");
                self.cluster.judge().violated(what);
            }
            // Whoever expires it now does so because of the time before.
            let settled = Instant::now() + 2 * TTL;
            self.wait(3 * TTL, |_| Instant::now() >= settled).await;
        } else if !self.hurt() && self.shape.plant.is_none() {
            let states = self.states();
            self.cluster.judge().violated(format!("C3: nobody renews a lease within {RECOVERY:?}: {states}"));
        }
        stop.store(true, Ordering::Relaxed);
    }

    /// E4: a leader comes back in another term, and an expiry of the old one is still on its way. As many entries as
    /// may be in flight wait for a quorum that is gone, and the expiry behind them; the lead is given up, and whoever
    /// has the longest log gets it again, and commits all of it.
    async fn an_expiry_outlives_its_term(&mut self) {
        self.end_all_faults();
        let settled = |world: &mut Self| world.cluster.refused().is_empty() && world.leader().is_some();
        if !self.wait(RECOVERY, settled).await {
            return;
        }
        let Some((leader, term)) = self.leader() else { return };
        let registered = Arc::new(AtomicBool::new(false));
        let client = self.client(400);
        tokio::spawn(client.abandon(leader.clone(), registered.clone()));
        if !self.wait(RECOVERY, |_| registered.load(Ordering::Relaxed)).await {
            return;
        }
        let (granted, ms) = (Instant::now(), Duration::from_millis);
        let early = ms(self.dice.u64(50..200));
        self.wait_until(granted + TTL - early).await;
        let ids = self.cluster.ids();
        for (from, to) in ids.iter().flat_map(|a| ids.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b) {
            self.net.cut(from, to);
        }
        // One after the other: what comes together is one entry.
        for number in 0..IN_FLIGHT + 4 {
            let (mut client, leader) = (self.client(401 + number), leader.clone());
            tokio::spawn(async move {
                sleep(ms(2 * number)).await;
                client.write_something(&leader).await;
            });
        }
        // The lease has run out, and that a quorum was heard is not so long ago that this could not be said.
        self.wait_until(granted + TTL + ms(250)).await;
        let asked = leader.clone();
        tokio::spawn(async move { asked.clone().call(asked.registry.transfer(None)).await });
        let leads = |life: &Life| matches!(life.consensus.lead(), Lead::Here { term: now } if now == term);
        self.wait(RECOVERY, |_| !leads(&leader)).await;
        // The others cannot elect each other: its log is longer.
        ids.iter().filter(|id| **id != leader.id).for_each(|id| self.net.heal_among(&[leader.id, *id]));
        self.wait(RECOVERY, |world| world.leader().is_some()).await;
        self.end_all_faults();
        self.wait_until(Instant::now() + ms(300)).await;
    }

    async fn wait_until(&mut self, then: Instant) {
        self.wait(then.saturating_duration_since(Instant::now()) + TICK, |_| Instant::now() >= then).await;
    }

    /// Who leads and can prove it, and in which term.
    fn leader(&self) -> Option<(Life, u64)> {
        self.cluster
            .lives()
            .into_iter()
            .find_map(|life| life.consensus.confirmed_term().map(|term| (life, term)))
    }

    fn client(&mut self, number: u64) -> Client {
        Client::new(number, self.cluster.clone(), self.trace.clone(), self.dice.fork(), self.stop.clone())
    }

    fn end_all_faults(&mut self) {
        self.net.heal();
        for id in self.cluster.ids() {
            self.cluster.disk(id).put_out_fuse();
            self.cluster.resume(id);
            self.cluster.start(id);
        }
    }

    /// C3, E2, S7: in the end everything succeeds, everybody agrees, and who is dead is gone.
    async fn all_is_well(&mut self) {
        if self.hurt() {
            return;
        }
        self.end_all_faults();
        self.stop.store(true, Ordering::Relaxed);
        let refused = self.cluster.refused();
        let up: Vec<u64> = self.cluster.ids().into_iter().filter(|id| !refused.contains(id)).collect();
        let succeeded = Arc::new(AtomicBool::new(false));
        let (cluster, trace, dice, done) =
            (self.cluster.clone(), self.trace.clone(), self.dice.fork(), succeeded.clone());
        let everyone = up.clone();
        tokio::spawn(async move {
            let mut client = Client::new(200, cluster.clone(), trace, dice, Arc::default());
            for id in everyone {
                // Of one that was never added, or has been taken out, nothing is expected.
                while cluster.judge().members().contains(&id) {
                    match cluster.life(id) {
                        Some(life) if client.try_all(&life).await => break,
                        _ => sleep(Duration::from_millis(20)).await,
                    }
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        let all_served = |world: &mut Self| {
            // One that joined and whom nobody answered: its operator tries again.
            world.cluster.judge().members().iter().for_each(|id| world.cluster.start(*id));
            succeeded.load(Ordering::Relaxed)
        };
        if !self.wait(RECOVERY, all_served).await {
            self.owed(&up, |states| format!("C3: not everything succeeded within {RECOVERY:?}: {states}"));
            return;
        }
        let gone = |world: &mut Self| {
            let judge = world.cluster.judge();
            let (revision, hash, members) = (judge.revision(), judge.hash(), judge.members());
            let mut all = world.cluster.observe().into_iter().filter(|node| members.contains(&node.id));
            let agree = all.all(|node| (node.status.revision, node.status.catalog_hash) == (revision, hash));
            agree && judge.registered().is_empty()
        };
        let mut leaders = self.cluster.judge().counts().leaders;
        while !self.wait(EXPIRY + TTL, gone).await {
            // Members may still change, and leaders with them: each change adds its bound.
            let more = self.cluster.judge().counts().leaders;
            if self.hurt() || more == leaders || self.faults.members == 0 {
                let left = self.cluster.judge().registered().len();
                self.owed(&up, |states| {
                    format!("E2: {left} dead instances are still there, or the nodes do not agree: {states}")
                });
                break;
            }
            leaders = more;
        }
        self.cluster.judge().close();
    }

    /// Something that should have been did not happen. That is a violation if the nodes that are `up` can decide:
    /// where a removal and a damaged disk have left no majority of the voters, nothing can.
    fn owed(&self, up: &[u64], what: impl FnOnce(String) -> String) {
        let judge = self.cluster.judge();
        let up = up.iter().copied().filter(|id| self.cluster.ids().contains(id)).collect();
        match judge.can_decide(&up) {
            _ if self.hurt() => {}
            true => judge.violated(what(self.states())),
            false => judge.count(|counts| counts.stranded += 1),
        }
    }

    fn states(&self) -> String {
        let observed = self.cluster.observe();
        let line = |node: &crate::check::Observed| {
            let s = &node.status;
            format!(
                "node {} {:?} term {} log {} committed {} applied {} revision {}{}",
                node.id,
                s.role,
                s.term,
                s.last_log_index,
                s.committed_index,
                s.applied_index,
                s.revision,
                s.not_ready.as_ref().map(|why| format!(" ({why})")).unwrap_or_default()
            )
        };
        observed.iter().map(line).collect::<Vec<_>>().join("; ")
    }
}
