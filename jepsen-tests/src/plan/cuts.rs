//! Which power cuts come in a run: on which file system, of whom, and when. Drawn before anything starts, from one seed.

use std::fmt;
use std::time::Duration;

use super::rng;

/// What the nodes' disks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fs {
    /// ext4.
    Ext4,
    /// xfs.
    Xfs,
}

/// Whose power is cut, and what happens to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// The only node there is.
    Single,
    /// One of three; the others go on.
    Minority,
    /// All three at the same moment: the whole rack.
    All,
    /// One of three, and the others are killed at the same moment.
    MinorityAndKill,
}

/// A power cut to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Whose.
    pub mode: Mode,
    /// The node that is hit, where it is one of several; counted from 0.
    pub node: usize,
    /// Comes after so many acknowledged writes since the last one was judged, so that there is something to lose ...
    pub acks: u64,
    /// ... and then after so long, so that it falls anywhere between two syncs.
    pub after: Duration,
    /// So long the nodes go on without their disks before they die.
    pub limps: Duration,
}

/// A cluster on its own disks, and the cuts that it lives through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rig {
    /// Counted from 1, in the whole run.
    pub number: usize,
    /// What its disks are.
    pub fs: Fs,
    /// Nodes.
    pub nodes: usize,
    /// One after the other.
    pub cuts: Vec<Cut>,
}

/// A cluster lives through no more than these: every lifetime begins with the first write to an empty disk, which is
/// the moment with the most directories to sync.
pub const CUTS_PER_RIG_MAX: usize = 15;

/// Deals `cycles` cuts evenly to the file systems and the modes. `nodes` (1 or 3) leaves only the modes of that size.
pub fn plan(seed: u64, cycles: usize, fs: &[Fs], nodes: Option<usize>) -> Vec<Rig> {
    let modes: Vec<Mode> = [Mode::Minority, Mode::All, Mode::MinorityAndKill, Mode::Single]
        .into_iter()
        .filter(|mode| nodes.is_none_or(|nodes| nodes == mode.nodes()))
        .collect();
    let mut draw = rng(seed, "power cuts");
    // A hand of every mode on every file system; the last hand may not be whole, so it is shuffled.
    let mut hand: Vec<(Fs, Mode)> = fs.iter().flat_map(|fs| modes.iter().map(|mode| (*fs, *mode))).collect();
    let mut dealt = Vec::with_capacity(cycles);
    while dealt.len() < cycles {
        draw.shuffle(&mut hand);
        dealt.extend(hand.iter().copied().take(cycles - dealt.len()));
    }
    let mut rigs = Vec::new();
    for fs in fs {
        for nodes in [1, 3] {
            let cuts: Vec<Cut> = dealt
                .iter()
                .filter(|(on, mode)| on == fs && mode.nodes() == nodes)
                .map(|(_, mode)| cut(*mode, &mut draw))
                .collect();
            rigs.extend(cuts.chunks(CUTS_PER_RIG_MAX).map(|cuts| (*fs, nodes, cuts.to_vec())));
        }
    }
    let numbered = rigs.into_iter().zip(1..);
    numbered.map(|((fs, nodes, cuts), number)| Rig { number, fs, nodes, cuts }).collect()
}

fn cut(mode: Mode, draw: &mut fastrand::Rng) -> Cut {
    Cut {
        mode,
        node: draw.usize(..mode.nodes()),
        acks: draw.u64(20..200),
        after: Duration::from_micros(draw.u64(..20_000)),
        limps: Duration::from_micros(if draw.bool() { 0 } else { draw.u64(..100_000) }),
    }
}

impl Mode {
    /// How many nodes it takes.
    pub fn nodes(self) -> usize {
        if self == Mode::Single { 1 } else { 3 }
    }

    /// The nodes without power, counted from 0.
    pub fn dark(self, node: usize) -> Vec<usize> {
        match self {
            Mode::Single | Mode::All => (0..self.nodes()).collect(),
            Mode::Minority | Mode::MinorityAndKill => vec![node],
        }
    }
}

impl fmt::Display for Fs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fs::Ext4 => "ext4",
            Fs::Xfs => "xfs",
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Single => "single",
            Mode::Minority => "minority",
            Mode::All => "all",
            Mode::MinorityAndKill => "minority+kill",
        })
    }
}
