//! Do all nodes hold the same catalog? Each notes what its own hashes to at certain log indices, and asks the others
//! every second what theirs did.
//!
//! Applying is deterministic: at one index there is one hash. A node that differs was changed by something else
//! than the log: memory that flipped a bit, damage that nothing noticed, a bug. Who stands against a majority of
//! the voters knows that it is wrong, and goes into quarantine: it stops voting and answering, and its peers repair it
//! at its next start. Where no majority agrees nobody can know who is right, and
//! stopping would only take away what is left: then all say so and none stops.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Consensus, machine_status::Member};

/// A hash is kept at every index that this divides: often enough to find a difference soon, seldom enough that
/// nodes that are busy and never at the same index still have marks in common.
pub const MARK_EVERY: u64 = 1_024;
/// Marks kept, and taken from a peer. A node that lags by more (65 536 entries) is compared once it is nearer.
pub const MARKS_MAX: usize = 64;
/// Between two rounds of asking, and how long an answer may take.
const ROUND: Duration = Duration::from_secs(1);

/// What the catalog hashed to when `index` was the last log entry applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub index: u64,
    pub hash: u64,
}

/// This node's marks. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Marks(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// Ascending, at most [`MARKS_MAX`] - 1.
    regular: VecDeque<Mark>,
    /// Nodes that are idle are all at one index: there they are compared at once.
    newest: Option<Mark>,
}

impl Marks {
    /// Notes what the catalog hashes to after `index`.
    pub fn note(&self, index: u64, hash: u64) {
        let mark = Mark { index, hash };
        let mut kept = self.kept();
        kept.newest = Some(mark);
        if index.is_multiple_of(MARK_EVERY) {
            kept.regular.push_back(mark);
            if kept.regular.len() == MARKS_MAX {
                kept.regular.pop_front();
            }
        }
    }

    /// Forgets all: what was applied so far has been replaced by a snapshot that ends at `index`.
    pub fn restart(&self, index: u64, hash: u64) {
        *self.kept() = Kept { regular: VecDeque::new(), newest: Some(Mark { index, hash }) };
    }

    /// All of them, ascending by index, at most [`MARKS_MAX`].
    pub fn all(&self) -> Vec<Mark> {
        let kept = self.kept();
        let newest = kept.newest.filter(|newest| kept.regular.back() != Some(newest));
        kept.regular.iter().copied().chain(newest).collect()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("no panic while it is held")
    }
}

/// What a peer answers.
#[derive(Debug)]
pub enum Answer {
    /// Its marks; none if it hashes by another definition.
    Marks(Vec<Mark>),
    /// It knows that this node was removed from the cluster.
    Removed(String),
    /// Nothing.
    Silence,
}

/// What the marks of all nodes say, from one node's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody differs where they can be compared.
    Agreed,
    /// Somebody differs, and it is not known to be this node.
    Disputed(Difference),
    /// A majority of the voters agrees on something else than this node.
    Outvoted(Difference),
}

/// Who holds what at a log index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    index: u64,
    /// The nodes behind each hash; at least two hashes.
    camps: BTreeMap<u64, BTreeSet<u64>>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after log index {} the catalog hashes to", self.index)?;
        for (at, (hash, nodes)) in self.camps.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma} {hash:016x} on {nodes:?}")?;
        }
        Ok(())
    }
}

/// Compares the marks of node `own` with those of others. What outvotes it counts more than any other difference,
/// a newer index more than an older one.
pub fn judge(own: u64, marks: &BTreeMap<u64, Vec<Mark>>, voters: &BTreeSet<u64>) -> Verdict {
    let mut camps: BTreeMap<u64, BTreeMap<u64, BTreeSet<u64>>> = BTreeMap::new();
    for (node, marks) in marks {
        for Mark { index, hash } in marks {
            camps.entry(*index).or_default().entry(*hash).or_default().insert(*node);
        }
    }
    let differences = camps.into_iter().rev().filter(|(_, camps)| camps.len() > 1);
    let mut verdict = Verdict::Agreed;
    for (index, camps) in differences {
        let majority = |nodes: &BTreeSet<u64>| nodes.intersection(voters).count() > voters.len() / 2;
        let compared = camps.values().any(|nodes| nodes.contains(&own));
        let outvoted = compared && camps.values().any(|nodes| majority(nodes) && !nodes.contains(&own));
        let difference = Difference { index, camps };
        if outvoted {
            return Verdict::Outvoted(difference);
        }
        if verdict == Verdict::Agreed {
            verdict = Verdict::Disputed(difference);
        }
    }
    verdict
}

impl Consensus {
    /// Compares until this node stops.
    pub(super) async fn audit(self) {
        let mut rounds = tokio::time::interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.stopped() {
            rounds.tick().await;
            self.audit_once().await;
        }
    }

    async fn audit_once(&self) {
        if self.0.quarantine.is_on() {
            // Once may not have been enough: the heir was slow, or there was none.
            self.hand_over().await;
        }
        let own = self.0.id;
        let members = self.members();
        let others = members.iter().filter(|member| member.id != own);
        let asked = others.map(async |Member { id, peer, .. }| {
            (*id, self.0.peers.catalog_marks(*id, peer, Instant::now() + ROUND).await)
        });
        let repairing = self.0.quarantine.is_on();
        let mut marks = BTreeMap::from([(own, if repairing { Vec::new() } else { self.0.marks.all() })]);
        for (id, answer) in join_all(asked).await {
            match answer {
                Answer::Marks(theirs) => drop(marks.insert(id, theirs)),
                Answer::Removed(why) => return self.halt(why).await,
                Answer::Silence => {}
            }
        }
        match judge(own, &marks, &self.voters()) {
            Verdict::Agreed => self.sound_alarm(None),
            Verdict::Disputed(difference) => self.sound_alarm(Some(format!(
                "nodes disagree about the catalog: {difference}. Compare `List` on each of them, and replace those \
                 that are wrong"
            ))),
            Verdict::Outvoted(difference) => {
                let why = format!("a majority of the voters holds another catalog than this node: {difference}");
                if let Err(error) = self.quarantine(&why).await {
                    tracing::error!(%error, "the database cannot be condemned: a restart would not repair it");
                }
            }
        }
    }

    /// Notes what an operator must look at, and tells it once.
    fn sound_alarm(&self, alarm: Option<String>) {
        let mut current = self.0.alarm.lock().expect("no panic while it is held");
        // An index that moves on is no news.
        match (&alarm, current.is_some()) {
            (Some(alarm), false) => tracing::error!(node = self.0.id, "{alarm}"),
            (None, true) => tracing::info!(node = self.0.id, "nodes agree about the catalog again"),
            _ => {}
        }
        *current = alarm;
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// One node a line, `ID: INDEX=HASH ...`; seen from node 1 where `voters` have a vote.
    fn check(voters: &[u64], nodes: &str, expected: Expect) {
        let mark = |word: &str| {
            let (index, hash) = word.split_once('=').expect("INDEX=HASH");
            Mark {
                index: index.parse().expect("a number"),
                hash: u64::from_str_radix(hash, 16).expect("a hash"),
            }
        };
        let node = |line: &str| {
            let (id, marks) = line.trim().split_once(':').expect("ID: ...");
            (id.parse().expect("an id"), marks.split_whitespace().map(mark).collect())
        };
        let marks = nodes.lines().filter(|line| !line.trim().is_empty()).map(node).collect();
        let verdict = match judge(1, &marks, &voters.iter().copied().collect()) {
            Verdict::Agreed => "agreed".to_owned(),
            Verdict::Disputed(difference) => format!("disputed: {difference}"),
            Verdict::Outvoted(difference) => format!("outvoted: {difference}"),
        };
        expected.assert_eq(&verdict);
    }

    #[test]
    fn equal_hashes_agree_and_different_indices_say_nothing() {
        check(&[1, 2, 3], "1: 1024=a 2048=b\n2: 1024=a\n3: 2048=b 3072=c", expect!["agreed"]);
        check(&[1, 2, 3], "1: 1024=a\n2: 1025=b\n3:", expect!["agreed"]);
        check(&[1], "1: 1024=a", expect!["agreed"]);
    }

    #[test]
    fn who_stands_against_a_majority_is_wrong() {
        check(
            &[1, 2, 3],
            "1: 1024=a\n2: 1024=b\n3: 1024=b",
            expect![
                "outvoted: after log index 1024 the catalog hashes to 000000000000000a on {1}, 000000000000000b on {2, 3}"
            ],
        );
        // An older index outvotes too: what differed once was never repaired by the log.
        check(
            &[1, 2, 3],
            "1: 1024=a 2048=a\n2: 1024=b 2048=a\n3: 1024=b 2048=a",
            expect![
                "outvoted: after log index 1024 the catalog hashes to 000000000000000a on {1}, 000000000000000b on {2, 3}"
            ],
        );
        // A learner is outvoted by the voters.
        check(
            &[2, 3, 4],
            "1: 1024=a\n2: 1024=b\n3: 1024=b",
            expect![
                "outvoted: after log index 1024 the catalog hashes to 000000000000000a on {1}, 000000000000000b on {2, 3}"
            ],
        );
    }

    #[test]
    fn without_a_majority_against_it_no_node_stops() {
        // Somebody else is wrong.
        check(
            &[1, 2, 3],
            "1: 1024=a\n2: 1024=a\n3: 1024=b",
            expect![
                "disputed: after log index 1024 the catalog hashes to 000000000000000a on {1, 2}, 000000000000000b on {3}"
            ],
        );
        // One against one, the third away; three opinions; two of four.
        check(
            &[1, 2, 3],
            "1: 1024=a\n2: 1024=b",
            expect![
                "disputed: after log index 1024 the catalog hashes to 000000000000000a on {1}, 000000000000000b on {2}"
            ],
        );
        check(
            &[1, 2, 3],
            "1: 1024=a\n2: 1024=b\n3: 1024=c",
            expect![
                "disputed: after log index 1024 the catalog hashes to 000000000000000a on {1}, 000000000000000b on {2}, 000000000000000c on {3}"
            ],
        );
        check(
            &[1, 2, 3, 4],
            "1: 1024=a\n2: 1024=b\n3: 1024=b\n4: 1024=a",
            expect![
                "disputed: after log index 1024 the catalog hashes to 000000000000000a on {1, 4}, 000000000000000b on {2, 3}"
            ],
        );
        // Learners have no vote, however many.
        check(
            &[1, 2],
            "1: 1024=a\n2: 1024=a\n3: 1024=b\n4: 1024=b\n5: 1024=b",
            expect![
                "disputed: after log index 1024 the catalog hashes to 000000000000000a on {1, 2}, 000000000000000b on {3, 4, 5}"
            ],
        );
        // Others differ where this node cannot be compared.
        check(
            &[1, 2, 3, 4, 5],
            "1: 2048=a\n2: 1024=a\n3: 1024=b\n4: 1024=b\n5: 1024=b",
            expect![
                "disputed: after log index 1024 the catalog hashes to 000000000000000a on {2}, 000000000000000b on {3, 4, 5}"
            ],
        );
    }

    #[test]
    fn marks_are_few_and_a_snapshot_replaces_them() {
        let marks = Marks::default();
        (1..=100 * MARK_EVERY + 5).for_each(|index| marks.note(index, index));
        let all = marks.all();
        assert_eq!(all.len(), MARKS_MAX);
        assert!(all.is_sorted_by_key(|mark| mark.index), "{all:?}");
        assert_eq!(all.last().map(|mark| mark.index), Some(100 * MARK_EVERY + 5));
        marks.restart(7, 9);
        assert_eq!(marks.all(), [Mark { index: 7, hash: 9 }]);
    }
}
