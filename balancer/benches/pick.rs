//! What a pick costs: `cargo bench -p balancer --bench pick`.
//!
//! For every strategy at 10, 100 and 1 000 endpoints: nanoseconds of one pick, the median of many rounds. Endpoints have
//! requests in flight and latencies, as they would under load; turns, draws and keys are different for every pick.
//! With `--bound` (as CI may run it on a quiet machine) it fails if a median at 1 000 endpoints is over its bound.

#![allow(clippy::unwrap_used)] // A benchmark may be blunt.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use balancer::picker::{self, Ask, Key, Session, Settings, Strategy};
use balancer::pool::{Address, Endpoint, Entry, InFlight, Pool, Rules, Standing};

const ROUNDS: usize = 41;
const PICKS: u64 = 4_000;
const SIZES: [usize; 3] = [10, 100, 1000];

/// Nanoseconds a pick may cost at 1 000 endpoints; looking at all of them is allowed more.
const BOUND: f64 = 100.0;
const BOUND_OF_ALL: f64 = 2_000.0;

fn pool(n: usize, rng: &mut fastrand::Rng) -> (Pool, Vec<InFlight>) {
    let now = Instant::now();
    let mut held = Vec::new();
    let entries = (0..n).map(|i| {
        let address = Address { host: "127.0.0.1".into(), port: 80, base_path: String::new() };
        let endpoint = Arc::new(Endpoint::new(i as u64 + 1, &format!("web-{i:04}"), "web", address));
        held.extend((0..rng.usize(1..6)).map(|_| endpoint.begin()));
        endpoint.observe(Duration::from_micros(rng.u64(500..50_000)), false, now);
        Entry::new(endpoint, 100, Standing::Up, String::new())
    });
    (Pool::new(1, entries.collect()), held)
}

enum Keys {
    None,
    Hashed,
    Signed,
}

fn cases() -> Vec<(&'static str, Settings, Keys)> {
    let plain = |strategy: Strategy| Settings::from(strategy);
    let bounded = Settings { balance_percent: 150, ..plain(Strategy::ConsistentHash) };
    let limited = Settings { requests_max: 1000, ..plain(Strategy::LeastRequest) };
    vec![
        ("round_robin", plain(Strategy::RoundRobin), Keys::None),
        ("random", plain(Strategy::Random), Keys::None),
        ("least_request", plain(Strategy::LeastRequest), Keys::None),
        ("least_request, limited", limited, Keys::None),
        ("peak_ewma", plain(Strategy::PeakEwma), Keys::None),
        ("consistent_hash, unbounded", plain(Strategy::ConsistentHash), Keys::Hashed),
        ("consistent_hash", bounded, Keys::Hashed),
        ("sticky_sessions", plain(Strategy::StickySessions), Keys::Hashed),
        ("sticky_sessions, signed", plain(Strategy::StickySessions), Keys::Signed),
        ("least_connections", plain(Strategy::LeastConnections), Keys::None),
    ]
}

/// Nanoseconds of one pick.
fn round(settings: &Settings, keys: &Keys, pool: &Pool, rng: &mut fastrand::Rng) -> f64 {
    let ids: Vec<u64> = pool.entries().iter().map(|e| e.endpoint.id_hash).collect();
    let key = |rng: &mut fastrand::Rng| match keys {
        Keys::None => None,
        Keys::Hashed => Some(Key::Hash(picker::mix(rng.u64(..)))),
        Keys::Signed => {
            Some(Key::Home(Session { endpoint: ids[rng.usize(..ids.len())], issued: rng.u64(..) }))
        }
    };
    let asked: Vec<(u64, Option<Key>)> = (0..PICKS).map(|_| (rng.u64(..), key(rng))).collect();
    let now = Instant::now();
    for (turn, (draw, key)) in asked.into_iter().enumerate() {
        let ask = Ask { turn, draw, now, key, tried: &[] };
        black_box(picker::pick(settings, pool, black_box(&ask)).map(|e| e.endpoint.key).ok());
    }
    now.elapsed().as_nanos() as f64 / PICKS as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> ExitCode {
    // `cargo test --benches` runs it to see that it runs.
    let is_test = std::env::args().any(|a| a == "--test");
    let checks = std::env::args().any(|a| a == "--bound");
    let rounds = if is_test { 1 } else { ROUNDS };
    let mut rng = fastrand::Rng::with_seed(7);
    let pools: Vec<(Pool, Vec<InFlight>)> = SIZES.iter().map(|&n| pool(n, &mut rng)).collect();
    println!("ns of one pick, median of {rounds} rounds of {PICKS}\n");
    println!("{:<28}{:>8}{:>8}{:>8}", "endpoints", SIZES[0], SIZES[1], SIZES[2]);
    let mut over = false;
    for (name, settings, keys) in cases() {
        let figures: Vec<f64> = pools
            .iter()
            .map(|(pool, _held)| {
                // The first builds what is built on demand.
                round(&settings, &keys, pool, &mut rng);
                median((0..rounds).map(|_| round(&settings, &keys, pool, &mut rng)).collect())
            })
            .collect();
        println!("{name:<28}{:>8.0}{:>8.0}{:>8.0}", figures[0], figures[1], figures[2]);
        let bound = if settings.strategy == Strategy::LeastConnections { BOUND_OF_ALL } else { BOUND };
        over |= figures[2] > bound;
    }
    let began = Instant::now();
    let fresh = pool(1000, &mut rng).0;
    let build = began.elapsed();
    black_box(fresh.owner(1));
    let table = began.elapsed() - build;
    println!("\na table for hashing over 1000 endpoints is built in {:.1} ms", table.as_secs_f64() * 1e3);
    let (many, _held) = pool(10_000, &mut rng);
    let rebuilds = (0..rounds).map(|i| {
        let entries = many.entries().to_vec();
        let began = Instant::now();
        black_box(Pool::under(&Rules::default(), i as u64, entries, Some(&many)));
        began.elapsed().as_secs_f64() * 1e3
    });
    println!("a pool of 10000 endpoints is built anew in {:.2} ms", median(rebuilds.collect()));
    if over && checks {
        eprintln!(
            "over the bound of {BOUND} ns, or {BOUND_OF_ALL} ns for least_connections, at 1000 endpoints"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
