//! Which fault comes when, and whom it hits.
//!
//! The schedule is drawn before the run; whom a fault hits is chosen when it comes, because only then is it known who
//! leads. Faults overlap. The kinds are dealt like cards, so a run meets all of them before it meets one twice.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What is done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// SIGKILL, and a new start as the heal.
    Kill,
    /// SIGTERM, and a new start as the heal.
    Term,
    /// SIGSTOP, and SIGCONT as the heal.
    Pause,
}

/// Which nodes are hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// The one that leads.
    Leader,
    /// One that does not lead.
    Follower,
    /// Any one.
    One,
    /// So many that the rest has no quorum.
    Majority,
    /// All that are not faulty already.
    All,
}

/// A fault to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Counted from 1.
    pub id: u64,
    /// When, counted from the first moment of the fault phase.
    pub at: Duration,
    /// How long until it is healed.
    pub lasts: Duration,
    /// What is done.
    pub action: Action,
    /// To whom.
    pub scope: Scope,
}

/// All kinds of faults.
pub const KINDS: [(Action, Scope); 8] = [
    (Action::Kill, Scope::Leader),
    (Action::Kill, Scope::Follower),
    (Action::Kill, Scope::Majority),
    (Action::Kill, Scope::All),
    (Action::Term, Scope::One),
    (Action::Pause, Scope::Leader),
    (Action::Pause, Scope::One),
    (Action::Pause, Scope::Majority),
];

/// Between two faults. Eight of the longest are 28 s: a run of 30 s meets every kind.
const INTERVAL_MS: std::ops::RangeInclusive<u64> = 2_000..=3_500;
/// The first comes soon: the calm before it is the run's warm-up.
const FIRST_MS: u64 = 500;
/// From well below an election time-out to several of them, so that both outcomes of the race are met.
const LASTS_MS: std::ops::RangeInclusive<u64> = 200..=3_500;

/// The faults that begin within `limit`, in order.
pub fn schedule(seed: u64, nodes: usize, limit: Duration) -> Vec<Fault> {
    let mut rng = super::rng(seed, "nemesis");
    let mut faults = Vec::new();
    let mut deck: Vec<(Action, Scope)> = Vec::new();
    let mut at = Duration::from_millis(FIRST_MS);
    while at < limit {
        if deck.is_empty() {
            deck =
                KINDS.iter().copied().filter(|(_, scope)| nodes > 1 || *scope != Scope::Follower).collect();
            rng.shuffle(&mut deck);
        }
        let (action, scope) = deck.pop().expect("a new deck has cards");
        let lasts = Duration::from_millis(rng.u64(LASTS_MS));
        faults.push(Fault { id: faults.len() as u64 + 1, at, lasts, action, scope });
        at += Duration::from_millis(rng.u64(INTERVAL_MS));
    }
    faults
}

/// Who is faulty now, and because of what.
#[derive(Debug)]
pub struct Board {
    nodes: Vec<String>,
    faulty: BTreeMap<String, u64>,
}

impl Board {
    /// All nodes are well.
    pub fn new(nodes: Vec<String>) -> Self {
        Self { nodes, faulty: BTreeMap::new() }
    }

    /// The nodes that no fault has hit.
    pub fn well(&self) -> impl Iterator<Item = &String> {
        self.nodes.iter().filter(|node| !self.faulty.contains_key(*node))
    }

    /// Whom a fault of `scope` can hit now; nothing if it must wait until others are healed or a leader is known.
    pub fn choose(&self, scope: Scope, leader: Option<&str>, rng: &mut fastrand::Rng) -> Option<Vec<String>> {
        let mut well: Vec<String> = self.well().cloned().collect();
        rng.shuffle(&mut well);
        let quorum = self.nodes.len() / 2 + 1;
        match scope {
            Scope::Leader => well.retain(|node| Some(node.as_str()) == leader),
            Scope::Follower => {
                leader?;
                well.retain(|node| Some(node.as_str()) != leader);
                well.truncate(1);
            }
            Scope::One => well.truncate(1),
            Scope::Majority | Scope::All if well.len() < quorum => return None,
            Scope::Majority => well.truncate(quorum),
            Scope::All => {}
        }
        well.sort();
        (!well.is_empty()).then_some(well)
    }

    /// `fault` hits `nodes`.
    pub fn install(&mut self, fault: u64, nodes: &[String]) {
        for node in nodes {
            let before = self.faulty.insert(node.clone(), fault);
            assert!(before.is_none(), "{node} has fault {before:?} already, {fault} must wait");
        }
    }

    /// The nodes that `fault` hit are well again.
    pub fn heal(&mut self, fault: u64) {
        self.faulty.retain(|_, by| *by != fault);
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Term => "term",
            Self::Pause => "pause",
        })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::One => "one",
            Self::Majority => "majority",
            Self::All => "all",
        })
    }
}

impl Fault {
    /// As the gates name it: `kill-leader`.
    pub fn name(&self) -> String {
        format!("{}-{}", self.action, self.scope)
    }
}
