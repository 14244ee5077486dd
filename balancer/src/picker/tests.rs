use std::sync::Arc;

use clap::ValueEnum;

use super::*;
use crate::pool::{Address, Endpoint, InFlight, Standing};
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

/// A pool of endpoints `0..n` with keys equal to their number and the given weights.
fn pool(weights: &[u32]) -> Pool {
    let entries = weights.iter().enumerate().map(|(i, &weight)| {
        let address = Address { host: "127.0.0.1".into(), port: 80, base_path: String::new() };
        let endpoint = Arc::new(Endpoint::new(i as u64, &format!("web-{i:03}"), "web", address));
        Entry { endpoint, weight, standing: Standing::Up, why: String::new() }
    });
    Pool::new(1, entries.collect())
}

fn key(entry: Option<&Entry>) -> Option<u64> {
    entry.map(|e| e.endpoint.key)
}

fn load(pool: &Pool, loads: &[u32]) -> Vec<InFlight> {
    let each = loads.iter().enumerate();
    each.flat_map(|(i, &n)| (0..n).map(move |_| i)).map(|i| pool.rotated(i).endpoint.begin()).collect()
}

#[test]
fn round_robin_goes_round_and_skips_the_tried() {
    let p = pool(&[100, 100, 100]);
    let order: Vec<_> =
        (0..6).map(|t| key(pick(Strategy::RoundRobin, &p, t, 0, None, &[])).unwrap()).collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    assert_eq!(key(pick(Strategy::RoundRobin, &p, 0, 0, None, &[0])), Some(1));
    assert_eq!(key(pick(Strategy::RoundRobin, &p, 0, 0, None, &[0, 1])), Some(2));
    assert_eq!(key(pick(Strategy::RoundRobin, &p, 0, 0, None, &[0, 1, 2])), None);
}

#[test]
fn a_spare_is_of_the_best_tier_left_and_never_of_the_rotation() {
    use Standing::*;
    let standings = [Up, Down, Ejected, Unproven, Failing, Draining, Maintenance, Unusable];
    let mut entries = pool(&[100; 8]).entries().to_vec();
    entries.iter_mut().zip(standings).for_each(|(e, standing)| e.standing = standing);
    let p = Pool::new(1, entries);
    let spare = |turn, tried: &[u64]| key(spare(&p, turn, tried));
    assert_eq!([spare(0, &[0]), spare(1, &[0])], [Some(3), Some(3)]);
    assert_eq!([spare(0, &[0, 3]), spare(1, &[0, 3])], [Some(2), Some(4)]);
    assert_eq!(spare(7, &[0, 3, 2, 4]), Some(1));
    assert_eq!(spare(0, &[0, 1, 2, 3, 4]), None);
}

#[test]
fn nobody_is_picked_from_an_empty_pool() {
    for strategy in Strategy::value_variants().iter().copied() {
        assert!(pick(strategy, &Pool::default(), 7, 0, Some("s"), &[]).is_none());
    }
}

#[test]
fn least_connections_breaks_ties_by_turn() {
    let p = pool(&[100, 100, 100]);
    let _held = load(&p, &[1, 0, 0]);
    let order: Vec<_> =
        (0..3).map(|t| key(pick(Strategy::LeastConnections, &p, t, 0, None, &[])).unwrap()).collect();
    assert_eq!(order, [1, 1, 2]);
}

#[test]
fn a_session_moves_only_when_its_endpoint_leaves() {
    let all = pool(&[100; 5]);
    for i in 0..500 {
        let session = format!("session-{i}");
        let home = key(pick(Strategy::StickySessions, &all, i, 0, Some(&session), &[])).unwrap();
        for other in (0..5).filter(|&k| k != home) {
            let without = key(pick(Strategy::StickySessions, &all, i, 0, Some(&session), &[other]));
            assert_eq!(without, Some(home), "{session} moved because {other} left");
        }
    }
}

/// The hash is part of what balancers agree on: a change sends every session elsewhere.
#[test]
fn the_hash_stays_what_it_is() {
    let p = pool(&[100; 4]);
    let homes: Vec<_> = ["a", "b", "abc", "", "0f9e"]
        .iter()
        .map(|s| key(pick(Strategy::StickySessions, &p, 0, 0, Some(s), &[])).unwrap())
        .collect();
    expect_test::expect!["[0, 3, 2, 0, 2]"].assert_eq(&format!("{homes:?}"));
}

/// How often each of `n` endpoints was picked in so many draws, while each pick stays in flight.
fn drawn(strategy: Strategy, weights: &[u32], picks: u64) -> Vec<u32> {
    let p = pool(weights);
    let mut held = Vec::new();
    let mut rng = fastrand::Rng::with_seed(7);
    for turn in 0..picks {
        let entry = pick(strategy, &p, turn as usize, rng.u64(..), None, &[]).expect("somebody takes it");
        held.push(entry.endpoint.begin());
    }
    p.rotation().map(|e| e.endpoint.in_flight()).collect()
}

#[test]
fn two_choices_are_far_more_even_than_one() {
    let spread = |counts: Vec<u32>| counts.iter().max().unwrap() - counts.iter().min().unwrap();
    let one = spread(drawn(Strategy::Random, &[100; 20], 2_000));
    let two = spread(drawn(Strategy::LeastRequest, &[100; 20], 2_000));
    assert!(two <= 8 && one >= 3 * two, "{two} and {one} around 100");
}

#[test]
fn chance_goes_by_weight() {
    for strategy in [Strategy::Random, Strategy::LeastRequest] {
        let counts = drawn(strategy, &[300, 100], 4_000);
        assert!((2_850..=3_150).contains(&counts[0]), "{strategy:?}: {counts:?}");
    }
}

proptest! {
    /// Whatever is drawn, an untried endpoint is found if there is one, and of the two drawn never the heavier.
    #[test]
    fn a_draw_finds_whoever_is_left(
        loads in prop::collection::vec(0u32..5, 1..8),
        draw: u64,
        tried in prop::collection::vec(0u64..8, 0..8),
    ) {
        let p = pool(&vec![100; loads.len()]);
        let _held = load(&p, &loads);
        let left = (0..loads.len() as u64).any(|k| !tried.contains(&k));
        for strategy in [Strategy::Random, Strategy::LeastRequest] {
            let picked = key(pick(strategy, &p, 0, draw, None, &tried));
            prop_assert_eq!(picked.is_some(), left);
            prop_assert!(picked.is_none_or(|k| !tried.contains(&k)));
        }
        let least = key(pick(Strategy::LeastRequest, &p, 0, draw, None, &[])).unwrap() as usize;
        prop_assert!(loads.len() == 1 || loads.iter().filter(|l| **l >= loads[least]).count() >= 2);
    }
}

proptest! {
    #[test]
    fn round_robin_is_fair(n in 1usize..30, start in 0usize..1000, rounds in 1usize..5) {
        let p = pool(&vec![100; n]);
        let mut counts = vec![0; n];
        for t in start..start + n * rounds {
            counts[key(pick(Strategy::RoundRobin, &p, t, 0, None, &[])).unwrap() as usize] += 1;
        }
        prop_assert!(counts.iter().all(|&c| c == rounds), "{counts:?}");
    }

    #[test]
    fn least_connections_picks_a_minimum(
        cases in prop::collection::vec((0u32..5, 1u32..4), 1..20),
        turn in 0usize..100,
        tried in prop::collection::vec(0u64..20, 0..4),
    ) {
        let weights: Vec<u32> = cases.iter().map(|c| c.1 * 100).collect();
        let p = pool(&weights);
        let _held = load(&p, &cases.iter().map(|c| c.0).collect::<Vec<_>>());
        let per_weight = |i: u64| f64::from(cases[i as usize].0 + 1) / f64::from(cases[i as usize].1);
        let least = (0..cases.len() as u64).filter(|i| !tried.contains(i)).map(per_weight).reduce(f64::min);
        let picked = key(pick(Strategy::LeastConnections, &p, turn, 0, None, &tried));
        prop_assert_eq!(picked.map(per_weight), least);
        prop_assert!(picked.is_none_or(|k| !tried.contains(&k)));
    }

    #[test]
    fn sessions_spread_by_weight(seed in any::<u64>()) {
        let p = pool(&[100, 300]);
        let heavy = (0..2000u64)
            .filter(|i| {
                let session = format!("{:x}", seed ^ i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                key(pick(Strategy::StickySessions, &p, 0, 0, Some(&session), &[])) == Some(1)
            })
            .count();
        prop_assert!((1350..1650).contains(&heavy), "{heavy} of 2000, about 1500 expected");
    }
}
