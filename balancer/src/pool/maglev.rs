//! Consistent hashing by a table: which endpoint a key belongs to, in one look. Pure.
//!
//! Maglev (Eisenbud et al., NSDI 2016, §3.4): each endpoint has an order of its own over the slots, drawn from its id
//! alone, and they take turns in claiming the next free slot of theirs. So every balancer that knows the same
//! endpoints comes to the same table, shares differ by a slot, and when an endpoint leaves or joins nearly only its
//! own keys move. Weights as Envoy has them: who has half of the greatest weight claims in every other turn.

use super::endpoint::{hash, mix};

/// Slots, a prime. The same for every pool: were it to depend on how many endpoints there are, all keys would move
/// with the endpoint that changes it. 65 slots for each of 1 000 endpoints; more would make the table slow to build.
pub const SLOTS: usize = 65_537;

/// Separates the two hashes of one id.
const SKIP_SALT: u64 = 0x9e37_79b9_7f4a_7c15;

const FREE: u16 = u16::MAX;

/// Which of the endpoints it was built of owns each slot.
#[derive(Debug)]
pub struct Maglev {
    slots: Box<[u16]>,
}

struct Claimant {
    index: u16,
    /// The slot it would take next.
    next: usize,
    skip: usize,
    weight: u64,
    /// Its turn has come when the rounds times its weight have reached this.
    due: u64,
}

impl Maglev {
    /// Of endpoints given by index, id and weight; at most 65 535, further ones get no slot. They must come in an
    /// order that all balancers share.
    pub fn new<'a>(endpoints: impl Iterator<Item = (usize, &'a str, u32)>) -> Maglev {
        let claimant = |(index, id, weight): (usize, &str, u32)| {
            let hash = hash(id.as_bytes());
            Some(Claimant {
                index: u16::try_from(index).ok().filter(|&i| i != FREE)?,
                next: (mix(hash) % SLOTS as u64) as usize,
                skip: (mix(hash ^ SKIP_SALT) % (SLOTS as u64 - 1)) as usize + 1,
                weight: u64::from(weight.max(1)),
                due: 0,
            })
        };
        let mut claimants: Vec<Claimant> = endpoints.filter_map(claimant).collect();
        let heaviest = claimants.iter().map(|c| c.weight).max().unwrap_or(0);
        let mut slots = vec![FREE; SLOTS].into_boxed_slice();
        let mut left = if claimants.is_empty() { 0 } else { SLOTS };
        for round in 1.. {
            for claimant in &mut claimants {
                if left == 0 {
                    return Maglev { slots };
                }
                if round * claimant.weight < claimant.due {
                    continue;
                }
                claimant.due += heaviest;
                claimant.claim(&mut slots);
                left -= 1;
            }
            if left == 0 {
                break;
            }
        }
        Maglev { slots }
    }

    /// The index of the endpoint that `key`, a good hash, belongs to; `None` if there are no endpoints.
    pub fn owner(&self, key: u64) -> Option<usize> {
        match self.slots[(key % SLOTS as u64) as usize] {
            FREE => None,
            index => Some(usize::from(index)),
        }
    }
}

impl Claimant {
    fn claim(&mut self, slots: &mut [u16]) {
        while slots[self.next] != FREE {
            self.step();
        }
        slots[self.next] = self.index;
        self.step();
    }

    fn step(&mut self) {
        self.next += self.skip;
        if self.next >= SLOTS {
            self.next -= SLOTS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("web-{i:04}")).collect()
    }

    fn table(ids: &[String], weights: &[u32]) -> Maglev {
        Maglev::new(ids.iter().enumerate().map(|(i, id)| (i, id.as_str(), weights[i % weights.len()])))
    }

    fn owned(table: &Maglev, n: usize) -> Vec<usize> {
        let mut counts = vec![0; n];
        table.slots.iter().for_each(|&i| counts[usize::from(i)] += 1);
        counts
    }

    #[test]
    fn nobody_owns_anything_where_nobody_is() {
        assert_eq!(table(&[], &[1]).owner(7), None);
        assert_eq!(table(&ids(1), &[1]).owner(7), Some(0));
    }

    #[test]
    fn shares_differ_by_a_slot() {
        for n in [2, 3, 10, 1000] {
            let counts = owned(&table(&ids(n), &[100]), n);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{n}: {least} to {most}");
        }
    }

    /// How many slots belong to another after the endpoint `left` is gone, besides its own.
    fn moved(n: usize, left: usize) -> usize {
        let (all, mut fewer) = (ids(n), ids(n));
        fewer.remove(left);
        let (before, after) = (table(&all, &[1]), table(&fewer, &[1]));
        let id_before = |i: usize| &all[usize::from(before.slots[i])];
        let id_after = |i: usize| &fewer[usize::from(after.slots[i])];
        (0..SLOTS).filter(|&i| *id_before(i) != all[left] && id_before(i) != id_after(i)).count()
    }

    /// The paper's figure 12: a few percent at most at this size.
    #[test]
    fn few_others_move_when_one_leaves_or_joins() {
        for (n, percent_max) in [(3, 2), (10, 2), (100, 2), (1000, 4)] {
            let moved = moved(n, n / 2);
            assert!(moved * 100 <= SLOTS * percent_max, "{n}: {moved} of {SLOTS}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn shares_go_by_weight(weights in prop::collection::vec(1u32..=20, 1..30)) {
            let n = weights.len();
            let counts = owned(&table(&ids(n), &weights), n);
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts.into_iter().zip(&weights) {
                let want = SLOTS as f64 * f64::from(*weight) / f64::from(total);
                prop_assert!((count as f64 - want).abs() <= 2.0 + want * 0.01, "{count} of {want}");
            }
        }
    }
}
