//! Deterministic simulation: whole clusters in one thread and in simulated time, everything that goes wrong drawn
//! from a seed, everything that must hold looked at every five simulated milliseconds.
//!
//!     cargo sim                 2 000 seeds, as `cargo test` runs them
//!     cargo sim --seeds N       N seeds from the first on
//!     cargo sim --seed N        one seed, once more
//!     cargo sim --seed N -v     ... and everything that happens in it; RUST_LOG=registry_node=info adds the nodes' log
//!
//! What runs is what is shipped: Raft, its log and state machine on the store, the proposer, bootstrap, leases,
//! watches and the use cases above them, joined as `run.rs` joins them. Replaced are, behind seams that a server
//! has as well: the clock (tokio's, paused), the TCP connections between nodes (`net`), sled (`disk`), the thread
//! that writes. Every run is one seed; the same seed twice gives the same trace, which each call of this program
//! checks on a few seeds first.

mod check;
mod clients;
mod cluster;
mod disk;
mod net;
mod run;
mod trace;

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{
        LazyLock, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread::ThreadId,
    time::{Duration, Instant},
};

use run::{Plant, Report, run};
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// What `cargo test` runs.
const SEEDS: u64 = 2_000;
/// Seeds that are run twice, to compare.
const TWICE: u64 = 10;
/// Seeds within which every planted fault must be noticed.
const PLANTED: u64 = 100;
/// Failures that are told before a run ends.
const FAILURES_MAX: usize = 5;
/// A seed takes 50 ms. One that takes this long hangs, and says nothing by itself: in a loop that never waits
/// simulated time stands still.
const HANGS: Duration = Duration::from_secs(120);

struct Options {
    first: u64,
    seeds: u64,
    verbose: bool,
}

fn main() -> ExitCode {
    let Some(options) = options() else { return ExitCode::SUCCESS };
    keep_panics();
    std::thread::spawn(watch_for_hangs);
    if options.verbose {
        log_to_stderr();
    }
    if options.seeds == 1 {
        let report = guarded(options.first, options.verbose, None);
        println!("{report:#?}");
        return tell(&[report]);
    }
    let mut planted = Vec::new();
    if let Err(seed) = repeats() {
        eprintln!("seed {seed} ran twice and left two traces: something depends on more than the seed");
        return ExitCode::FAILURE;
    }
    for plant in Plant::ALL {
        match (1..=PLANTED).find(|seed| !guarded(*seed, false, Some(plant)).violations.is_empty()) {
            Some(seed) => planted.push(format!("{plant:?} by seed {seed}")),
            None => {
                eprintln!("{PLANTED} seeds did not notice {plant:?}: the checks see nothing");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("simulation: planted faults noticed: {}", planted.join(", "));
    run_all(&options)
}

/// Flags of other test programs are none of ours: `cargo test -- --nocapture` reaches every one of them.
fn options() -> Option<Options> {
    let mut options = Options { first: 1, seeds: SEEDS, verbose: false };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at + 1).and_then(|n| n.parse().ok());
    for (at, argument) in arguments.iter().enumerate() {
        match (argument.as_str(), number(at)) {
            ("--seeds", Some(seeds)) => options.seeds = seeds,
            ("--seed", Some(seed)) => (options.first, options.seeds) = (seed, 1),
            ("--from", Some(seed)) => options.first = seed,
            ("--seeds" | "--seed" | "--from", None) => {
                eprintln!("{argument} needs a number, as in `cargo sim {argument} 7`");
                std::process::exit(64);
            }
            ("-v", _) => options.verbose = true,
            ("--list", _) => return None,
            // A test's name: this program has no tests of that name.
            (word, _) if !word.starts_with('-') && at == 0 => return (word == "sim").then_some(options),
            _ => {}
        }
    }
    Some(options)
}

fn run_all(options: &Options) -> ExitCode {
    let (began, next) = (Instant::now(), AtomicU64::new(options.first));
    let end = options.first + options.seeds;
    let (reports, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || failures.lock().expect("no panic").len() >= FAILURES_MAX {
                        return;
                    }
                    let report = guarded(seed, false, None);
                    let list = if report.violations.is_empty() { &reports } else { &failures };
                    list.lock().expect("no panic").push(report);
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic");
    let reports = reports.into_inner().expect("no panic");
    println!("{}", summary(&reports, began.elapsed()));
    tell(&failures)
}

/// A run, and whatever panicked in it as something that does not hold.
fn guarded(seed: u64, verbose: bool, plant: Option<Plant>) -> Report {
    PANICS.with(|panics| panics.borrow_mut().clear());
    running().insert(std::thread::current().id(), (seed, Instant::now()));
    let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, verbose, plant)));
    running().remove(&std::thread::current().id());
    let mut report = outcome.unwrap_or_else(|_| Report {
        seed,
        violations: Vec::new(),
        hash: 0,
        simulated: Duration::ZERO,
        counts: check::Counts::default(),
        faults: run::Faults::default(),
    });
    PANICS.with(|panics| {
        report.violations.extend(panics.borrow_mut().drain(..).map(|panic| format!("R4: {panic}")))
    });
    report
}

/// The seeds that run now, and since when.
fn running() -> MutexGuard<'static, HashMap<ThreadId, (u64, Instant)>> {
    static RUNNING: LazyLock<Mutex<HashMap<ThreadId, (u64, Instant)>>> = LazyLock::new(Mutex::default);
    RUNNING.lock().expect("no panic while it is held")
}

/// Ends the program when a seed does not end.
fn watch_for_hangs() {
    loop {
        std::thread::park_timeout(Duration::from_secs(1));
        if let Some((seed, _)) = running().values().find(|(_, since)| since.elapsed() > HANGS) {
            eprintln!(
                "seed {seed} has not ended after {HANGS:?}: it hangs; again: cargo sim --seed {seed} -v"
            );
            std::process::exit(1);
        }
    }
}

thread_local! {
    static PANICS: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// tokio keeps the panics of tasks to itself.
fn keep_panics() {
    std::panic::set_hook(Box::new(|panic| {
        if std::env::args().any(|argument| argument == "-v") {
            eprintln!("{panic}");
        }
        PANICS.with(|panics| panics.borrow_mut().push(panic.to_string()));
    }));
}

/// `RUST_LOG=registry_node=info,openraft=debug cargo sim --seed N -v`: what the nodes themselves say.
fn log_to_stderr() {
    let Some(levels) = std::env::var("RUST_LOG").ok().and_then(|levels| levels.parse::<Targets>().ok())
    else {
        return;
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time();
    tracing_subscriber::registry().with(lines.with_filter(levels)).init();
}

fn repeats() -> Result<(), u64> {
    for seed in 1..=TWICE {
        let (first, second) = (guarded(seed, false, None), guarded(seed, false, None));
        if first.hash != second.hash {
            return Err(seed);
        }
    }
    Ok(())
}

fn tell(failures: &[Report]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for report in failures.iter().filter(|report| !report.violations.is_empty()) {
        code = ExitCode::FAILURE;
        eprintln!(
            "seed {} failed after {:?}; again: cargo sim --seed {}",
            report.seed, report.simulated, report.seed
        );
        report.violations.iter().take(4).for_each(|what| eprintln!("    {what}"));
    }
    code
}

fn summary(reports: &[Report], took: Duration) -> String {
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    let simulated: Duration = reports.iter().map(|report| report.simulated).sum();
    format!(
        "simulation: {} seeds in {:.0} s, {:.0} s simulated; {} entries, {} revisions, {} leaders, {} writes ({} unknown), {} reads, \
         {} renewals, {} expiries, {} updates watched ({} resets), {} quarantines ({} repaired), {} writes on a condition; {} outages, {} power cuts, {} torn, {} kills, {} flips, {} pauses, \
         {} partitions, {} weathers, {} transfers, {} snapshots, {} membership changes, {} cores, {} of {} messages lost",
        reports.len(),
        took.as_secs_f64(),
        simulated.as_secs_f64(),
        sum(|r| r.counts.entries),
        sum(|r| r.counts.revisions),
        sum(|r| r.counts.leaders),
        sum(|r| r.counts.writes),
        sum(|r| r.counts.unknown),
        sum(|r| r.counts.reads),
        sum(|r| r.counts.renewals),
        sum(|r| r.counts.expiries),
        sum(|r| r.counts.watched),
        sum(|r| r.counts.resets),
        sum(|r| r.counts.quarantines),
        sum(|r| r.counts.repairs),
        sum(|r| r.counts.conditions),
        sum(|r| r.counts.outages),
        sum(|r| r.faults.power_cuts),
        sum(|r| r.faults.torn),
        sum(|r| r.faults.kills),
        sum(|r| r.faults.flips),
        sum(|r| r.faults.pauses),
        sum(|r| r.faults.cuts),
        sum(|r| r.faults.weathers),
        sum(|r| r.faults.transfers),
        sum(|r| r.faults.snapshots),
        sum(|r| r.faults.members),
        sum(|r| r.faults.cores),
        sum(|r| r.faults.lost),
        sum(|r| r.faults.messages),
    )
}
