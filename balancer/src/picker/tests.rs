use std::sync::Arc;

use clap::ValueEnum;

use super::*;
use crate::pool::{Address, InFlight, Rules, Standing, Zones};
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

fn entry(i: u64, weight: u32) -> Entry {
    let address = Address { host: "127.0.0.1".into(), port: 80, base_path: String::new() };
    let endpoint = Arc::new(Endpoint::new(i, &format!("web-{i:04}"), "web", address));
    Entry::new(endpoint, weight, Standing::Up, String::new())
}

/// A pool of endpoints `0..n` with keys equal to their number and the given weights.
fn pool(weights: &[u32]) -> Pool {
    Pool::new(1, weights.iter().zip(0..).map(|(&weight, i)| entry(i, weight)).collect())
}

/// The same without the endpoints `gone`.
fn without(pool: &Pool, gone: &[u64]) -> Pool {
    let left = pool.entries().iter().filter(|e| !gone.contains(&e.endpoint.key));
    Pool::new(2, left.cloned().collect())
}

fn key(entry: Option<&Entry>) -> Option<u64> {
    entry.map(|e| e.endpoint.key)
}

/// A pick with nothing special about it.
fn pick<'a>(
    strategy: Strategy,
    pool: &'a Pool,
    turn: usize,
    draw: u64,
    session: Option<&str>,
    tried: &[u64],
) -> Option<&'a Entry> {
    let key = session.map(|s| Key::of(s.as_bytes()));
    super::pick(&strategy.into(), pool, &Ask { turn, draw, now: Instant::now(), key, tried }).ok()
}

/// Whom `key` leads to.
fn hashed(settings: &Settings, pool: &Pool, key: u64, tried: &[u64]) -> Option<u64> {
    let key = Some(Key::Hash(mix(key)));
    let ask = Ask { turn: 0, draw: 0, now: Instant::now(), key, tried };
    super::pick(settings, pool, &ask).ok().map(|e| e.endpoint.key)
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
    let spare = |turn, tried: &[u64]| key(spare(&Strategy::Random.into(), &p, turn, tried));
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
    expect_test::expect!["[1, 3, 0, 1, 3]"].assert_eq(&format!("{homes:?}"));
}

#[test]
fn two_balancers_that_learn_of_endpoints_in_their_own_order_agree_on_every_key() {
    let one = pool(&[100, 300, 100, 50, 100]);
    let rules = Rules { zones: Some(Zones { own: "far".into(), fit_min_percent: 70 }), ..Rules::default() };
    // The other one knew of an endpoint that has gone, has others down for a moment, and is in another zone.
    let before = pool(&[1; 9]);
    before.owner(1);
    let other = Pool::under(&rules, 7, one.entries().to_vec(), Some(&before));
    let signed = |pool: &Pool, session| {
        let ask = Ask { turn: 0, draw: 9, now: Instant::now(), key: Some(Key::Home(session)), tried: &[] };
        key(super::pick(&Strategy::StickySessions.into(), pool, &ask).ok())
    };
    for i in 0..1000 {
        for strategy in [Strategy::ConsistentHash, Strategy::StickySessions] {
            let (a, b) = (hashed(&strategy.into(), &one, i, &[]), hashed(&strategy.into(), &other, i, &[]));
            assert!(a.is_some() && a == b, "{strategy:?} {i}: {a:?} and {b:?}");
        }
        let session = Session { endpoint: one.entries()[i as usize % 5].endpoint.id_hash, issued: i };
        assert_eq!(signed(&one, session), Some(i % 5));
        assert_eq!(signed(&other, session), Some(i % 5));
        let gone = Session { endpoint: 1, issued: i };
        assert!(signed(&one, gone).is_some() && signed(&one, gone) == signed(&other, gone));
    }
}

#[test]
fn keys_of_an_endpoint_that_is_down_spread_over_all_others_and_come_back() {
    let up = pool(&[100; 10]);
    let mut entries = up.entries().to_vec();
    entries[3].standing = Standing::Down;
    let down = Pool::under(&Rules::default(), 2, entries, Some(&up));
    let settings = Strategy::ConsistentHash.into();
    let mut heirs = [0; 10];
    for i in 0..20_000 {
        let (home, now) =
            (hashed(&settings, &up, i, &[]).unwrap(), hashed(&settings, &down, i, &[]).unwrap());
        match home {
            3 => heirs[now as usize] += 1,
            _ => assert_eq!(now, home, "{i} moved for no reason"),
        }
    }
    assert_eq!(heirs[3], 0);
    assert!(heirs.iter().enumerate().all(|(i, &n)| i == 3 || (150..320).contains(&n)), "{heirs:?}");
}

/// Nearly: the paper's table moves a few others, too.
#[test]
fn when_an_endpoint_leaves_or_joins_nearly_only_its_own_keys_move() {
    let (all, settings) = (pool(&[100; 50]), Strategy::ConsistentHash.into());
    let fewer = without(&all, &[20]);
    let moved = (0..20_000).filter(|&i| {
        let home = hashed(&settings, &all, i, &[]);
        home != Some(20) && home != hashed(&settings, &fewer, i, &[])
    });
    let moved = moved.count();
    assert!(moved < 20_000 / 50, "{moved} of 20000, about 400 belonged to it");
}

#[test]
fn an_endpoint_that_nobody_can_take_the_place_of_keeps_its_keys_beyond_the_bound() {
    let p = pool(&[100]);
    let settings = Settings { balance_percent: 125, ..Strategy::ConsistentHash.into() };
    let _held = load(&p, &[1000]);
    assert_eq!(hashed(&settings, &p, 1, &[]), Some(0));
}

#[test]
fn a_signed_session_spills_while_its_endpoint_is_overloaded_and_returns() {
    let p = pool(&[100; 4]);
    let session = Session { endpoint: p.entries()[2].endpoint.id_hash, issued: 5 };
    let picked = |settings: &Settings, tried: &[u64]| {
        let ask = Ask { turn: 0, draw: 0, now: Instant::now(), key: Some(Key::Home(session)), tried };
        super::pick(settings, &p, &ask).map(|e| e.endpoint.key)
    };
    let plain = Strategy::StickySessions.into();
    let limited = Settings { requests_max: 6, ..Strategy::StickySessions.into() };
    let balanced = Settings { balance_percent: 150, ..Strategy::StickySessions.into() };
    for settings in [&plain, &limited, &balanced] {
        assert_eq!(picked(settings, &[]), Ok(2));
    }
    let held = load(&p, &[0, 0, 6, 0]);
    assert_eq!(picked(&plain, &[]), Ok(2));
    let elsewhere = picked(&limited, &[]).unwrap();
    assert!(
        elsewhere != 2 && picked(&balanced, &[]) == Ok(elsewhere) && picked(&plain, &[2]) == Ok(elsewhere)
    );
    drop(held);
    assert_eq!([picked(&limited, &[]), picked(&balanced, &[])], [Ok(2), Ok(2)]);
}

#[test]
fn without_a_slot_left_it_says_so() {
    let p = pool(&[100; 3]);
    let held = load(&p, &[2, 2, 2]);
    for &strategy in Strategy::value_variants() {
        let settings = Settings { requests_max: 2, ..strategy.into() };
        for key in [None, Some(Key::Hash(7))] {
            let ask = Ask { turn: 1, draw: 5, now: Instant::now(), key, tried: &[] };
            let missing = super::pick(&settings, &p, &ask).map(|e| e.endpoint.key);
            assert_eq!(missing, Err(Missing::Full), "{strategy:?}");
            let all = Ask { tried: &[0, 1, 2], ..ask };
            assert_eq!(super::pick(&settings, &p, &all).map(|e| e.endpoint.key), Err(Missing::Nobody));
        }
        assert!(spare(&settings, &p, 0, &[]).is_none());
    }
    drop(held);
    let _held = load(&p, &[2, 1, 2]);
    for &strategy in Strategy::value_variants() {
        let settings = Settings { requests_max: 2, ..strategy.into() };
        for (turn, draw) in (0..9).zip([0, u64::MAX, 1 << 40, 7, 3 << 33, 9, 2, 4, 5]) {
            let ask = Ask { turn, draw, now: Instant::now(), key: Some(Key::Hash(draw)), tried: &[] };
            assert_eq!(key(super::pick(&settings, &p, &ask).ok()), Some(1), "{strategy:?}");
        }
    }
}

#[test]
fn the_other_zones_help_out_before_anybody_has_to_wait() {
    let mut entries: Vec<Entry> = (0..3).map(|i| entry(i, 100)).collect();
    entries[0].zone = "a".into();
    entries[1].zone = "b".into();
    entries[2].zone = "b".into();
    entries[2].standing = Standing::Failing;
    let rules = Rules { zones: Some(Zones { own: "a".into(), fit_min_percent: 70 }), ..Rules::default() };
    let p = Pool::under(&rules, 1, entries, None);
    let settings = Settings { requests_max: 1, ..Strategy::RoundRobin.into() };
    let ask = Ask { turn: 0, draw: 0, now: Instant::now(), key: None, tried: &[] };
    let mut held = Vec::new();
    for want in [Ok(0), Ok(1), Err(Missing::Full)] {
        let picked = super::pick(&settings, &p, &ask);
        assert_eq!(picked.map(|e| e.endpoint.key), want);
        held.extend(picked.ok().map(|e| e.endpoint.begin()));
    }
}

#[test]
fn the_faster_of_two_is_asked_until_it_has_as_much_to_do() {
    let (p, start) = (pool(&[100; 2]), Instant::now());
    let ms = |n| start + Duration::from_millis(n);
    let picked = |now| {
        let ask = Ask { turn: 0, draw: 3, now, key: None, tried: &[] };
        super::pick(&Strategy::PeakEwma.into(), &p, &ask).unwrap().endpoint.clone()
    };
    p.rotated(0).endpoint.observe(Duration::from_millis(40), false, ms(1));
    p.rotated(1).endpoint.observe(Duration::from_millis(10), false, ms(1));
    let mut held = Vec::new();
    for _ in 0..50 {
        held.push(picked(ms(2)).begin());
    }
    let loads: Vec<u32> = p.rotation().map(|e| e.endpoint.in_flight()).collect();
    assert!((9..=11).contains(&loads[0]) && loads[0] + loads[1] == 50, "{loads:?}");
}

/// Plain averages favour whoever answers at once, and nothing answers as quickly as an error.
#[test]
fn an_endpoint_that_fails_fast_is_not_favoured() {
    let (p, start) = (pool(&[100; 3]), Instant::now());
    let mut rng = fastrand::Rng::with_seed(7);
    let mut counts = [0; 3];
    for i in 0..2000u64 {
        let now = start + Duration::from_millis(i);
        let ask = Ask { turn: 0, draw: rng.u64(..), now, key: None, tried: &[] };
        let endpoint = &super::pick(&Strategy::PeakEwma.into(), &p, &ask).unwrap().endpoint;
        let fails = endpoint.key == 1;
        let took = if fails { Duration::from_micros(100) } else { Duration::from_millis(20) };
        endpoint.observe(took, fails, now + took);
        counts[endpoint.key as usize] += 1;
    }
    assert!(counts[1] < 20 && counts[0] > 700 && counts[2] > 700, "{counts:?}");
}

/// A new endpoint gets one request to show how fast it is, not all that come until it has.
#[test]
fn an_unknown_endpoint_is_tried_once() {
    let (p, now) = (pool(&[100; 2]), Instant::now());
    p.rotated(0).endpoint.observe(Duration::from_millis(5), false, now);
    let picked = || {
        let ask = Ask { turn: 0, draw: 3, now, key: None, tried: &[] };
        super::pick(&Strategy::PeakEwma.into(), &p, &ask).unwrap().endpoint.clone()
    };
    let first = picked();
    let _held = first.begin();
    assert_eq!((first.key, picked().key, picked().key), (1, 0, 0));
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

    /// Whatever keys come, as many as come of one: nobody has more than its share of all, times the factor.
    #[test]
    fn no_endpoint_has_more_than_its_bound(
        weights in prop::collection::vec(1u32..4, 2..20),
        percent in 110u32..200,
        keys in prop::collection::vec(0u64..6, 1..300),
    ) {
        let p = pool(&weights);
        let settings = Settings { balance_percent: percent, ..Strategy::ConsistentHash.into() };
        let total: u32 = weights.iter().sum();
        let mut held = Vec::new();
        for (m, k) in (1u64..).zip(keys) {
            let picked = hashed(&settings, &p, k, &[]).expect("somebody takes it");
            held.push(p.rotated(picked as usize).endpoint.begin());
            let share = (m as f64) * f64::from(weights[picked as usize]) / f64::from(total);
            // Counts are taken every so often: up to two picks are unknown here, and of so few nobody is overloaded.
            let bound = (f64::from(percent) / 100.0 * (share + 1.0)).ceil().max(4.0);
            prop_assert!(f64::from(p.rotated(picked as usize).endpoint.in_flight()) <= bound, "{k}: {bound}");
        }
    }

    /// A key that its own endpoint has no room for leads every balancer to the same other one.
    #[test]
    fn spilling_is_agreed_on(loads in prop::collection::vec(0u32..30, 2..12), key: u64) {
        let (one, other) = (pool(&vec![100; loads.len()]), pool(&vec![100; loads.len()]));
        let _held = (load(&one, &loads), load(&other, &loads));
        let settings = Settings { balance_percent: 125, ..Strategy::ConsistentHash.into() };
        prop_assert_eq!(hashed(&settings, &one, key, &[]), hashed(&settings, &other, key, &[]));
    }
}
