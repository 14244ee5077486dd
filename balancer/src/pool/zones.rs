//! One's own zone first, for as long as it can take it. Pure.
//!
//! After Envoy's locality weighted load balancing and its overprovisioning factor: while at least a given share of the
//! zone's endpoints is fit, it takes everything (Envoy: 1/1.4, 71 %); below, as much of the traffic as is left of that
//! share, and the other zones take the rest by weight. So a zone that loses its endpoints one after the other hands over
//! slowly, and the last ones are not drowned.

use super::Entry;

/// Weights are scaled to this sum where zones change them: enough for a thousandth of a thousandth.
const SUM: f64 = 1_000_000.0;

/// A preference for the zone that the balancer is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zones {
    /// The balancer's own zone.
    pub own: String,
    /// The share of the zone's endpoints that has to be fit for it to take everything, in percent of their weight.
    pub fit_min_percent: u32,
}

impl Zones {
    /// The part of the traffic that stays in the zone: of all that could take requests there, `fit` do.
    fn stays(&self, fit: u64, all: u64) -> f64 {
        let least = all as f64 * f64::from(self.fit_min_percent) / 100.0;
        if fit as f64 >= least { 1.0 } else { fit as f64 / least }
    }
}

/// The weights in effect of `members`, numbers of `entries` that take requests; 0 for who is out of the rotation
/// because its zone is not needed.
pub fn weights(zones: Option<&Zones>, entries: &[Entry], members: &[u32]) -> Vec<u32> {
    let ramped = |&i: &u32| entries[i as usize].ramped();
    let Some(zones) = zones else { return members.iter().map(ramped).collect() };
    let is_own = |e: &Entry| *e.zone == *zones.own;
    let able = entries.iter().filter(|e| is_own(e) && e.standing.tier().is_some());
    let all: u64 = able.map(|e| u64::from(e.weight.max(1))).sum();
    let (own, others): (Vec<u32>, Vec<u32>) = members.iter().partition(|&&i| is_own(&entries[i as usize]));
    let fit: u64 = own.iter().map(|&i| u64::from(entries[i as usize].weight.max(1))).sum();
    if own.is_empty() || others.is_empty() {
        return members.iter().map(ramped).collect();
    }
    let stays = zones.stays(fit, all);
    let sum = |of: &[u32]| of.iter().map(|i| f64::from(ramped(i))).sum::<f64>();
    let (own_sum, others_sum) = (sum(&own), sum(&others));
    let weight = |i: &u32| match is_own(&entries[*i as usize]) {
        true if stays == 1.0 => ramped(i),
        true => (f64::from(ramped(i)) / own_sum * stays * SUM).max(1.0) as u32,
        false if stays == 1.0 => 0,
        false => (f64::from(ramped(i)) / others_sum * (1.0 - stays) * SUM).max(1.0) as u32,
    };
    members.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pool::{Address, Endpoint, Pool, Rules, Standing};
    use proptest::prelude::*;

    /// A pool seen from zone `a`, of endpoints given as `ZONE STANDING WEIGHT`; and the part of turns that `a` has.
    fn stays(endpoints: &[(&str, Standing, u32)]) -> f64 {
        let entries = endpoints.iter().enumerate().map(|(i, &(zone, standing, weight))| {
            let address = Address { host: "127.0.0.1".into(), port: 80, base_path: String::new() };
            let endpoint = Arc::new(Endpoint::new(i as u64, &format!("{i:03}"), "web", address));
            Entry { zone: zone.into(), ..Entry::new(endpoint, weight, standing, String::new()) }
        });
        let rules = Rules { zones: Some(Zones { own: "a".into(), fit_min_percent: 70 }), ..Rules::default() };
        let pool = Pool::under(&rules, 1, entries.collect(), None);
        pool.shares().filter(|(e, _)| *e.zone == *"a").map(|(_, share)| share).sum()
    }

    #[test]
    fn all_stays_in_the_zone_while_enough_of_it_is_up() {
        use Standing::{Down, Up};
        assert_eq!(stays(&[("a", Up, 1), ("b", Up, 1), ("c", Up, 1)]), 1.0);
        let a_third_down = [("a", Up, 1), ("a", Up, 1), ("a", Up, 1), ("a", Down, 1), ("b", Up, 9)];
        assert_eq!(stays(&a_third_down), 1.0);
    }

    #[test]
    fn below_that_it_spills_by_what_is_missing_and_nothing_stays_where_nobody_is() {
        use Standing::{Down, Draining, Up};
        let half = [("a", Up, 1), ("a", Down, 1), ("b", Up, 9), ("c", Up, 1)];
        assert!((stays(&half) - 0.5 / 0.7).abs() < 1e-5, "{}", stays(&half));
        let by_weight = [("a", Up, 1), ("a", Down, 3), ("b", Up, 9)];
        assert!((stays(&by_weight) - 0.25 / 0.7).abs() < 1e-5);
        // Who drains is not missed.
        assert_eq!(stays(&[("a", Up, 1), ("a", Draining, 1), ("b", Up, 1)]), 1.0);
        assert_eq!(stays(&[("a", Down, 1), ("b", Up, 1)]), 0.0);
        assert_eq!(stays(&[("", Up, 1), ("b", Up, 1)]), 0.0);
    }

    #[test]
    fn the_other_zones_stand_by_while_they_are_not_needed() {
        let entry = |i: u64, zone: &str| {
            let address = Address { host: "127.0.0.1".into(), port: 80, base_path: String::new() };
            let endpoint = Arc::new(Endpoint::new(i, &format!("{i}"), "web", address));
            Entry { zone: zone.into(), ..Entry::new(endpoint, 100, Standing::Up, String::new()) }
        };
        let rules = Rules { zones: Some(Zones { own: "a".into(), fit_min_percent: 70 }), ..Rules::default() };
        let pool = Pool::under(&rules, 1, vec![entry(1, "b"), entry(2, "a")], None);
        let keys = |entries: Vec<&Entry>| entries.iter().map(|e| e.endpoint.key).collect::<Vec<_>>();
        assert_eq!(keys(pool.rotation().collect()), [2]);
        assert_eq!(keys(pool.spares().collect()), [1]);
    }

    proptest! {
        /// What stays never grows as endpoints of the zone go down, and everybody in rotation has a turn.
        #[test]
        fn each_loss_hands_over_a_little_more(n in 1usize..20, others in 1usize..20) {
            let mut before = 1.0;
            for down in 0..=n {
                let own = (0..n).map(|i| ("a", if i < down { Standing::Down } else { Standing::Up }, 100));
                let all: Vec<_> = own.chain((0..others).map(|_| ("b", Standing::Up, 100))).collect();
                let now = stays(&all);
                prop_assert!(now <= before + 1e-4 && (down < n || now == 0.0), "{now} after {before}");
                before = now;
            }
        }
    }
}
