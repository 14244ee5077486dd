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
//! that writes. Every run is one seed; the same seed twice gives the same trace, whatever the nodes' wall clocks show
//! meanwhile, which each call of this program checks on a few seeds first.

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

use run::{How, Plant, Report, run};
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// What `cargo test` runs.
const SEEDS: u64 = 2_000;
/// Seeds that are run twice, to compare.
const TWICE: u64 = 10;
/// Seeds within which every planted fault must be noticed.
const PLANTED: u64 = 100;
/// Seeds in which everything happens at least once.
const ENOUGH: u64 = 1_000;
/// Failures after which a run ends.
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
        let report = guarded(options.first, How { verbose: options.verbose, ..How::default() });
        println!("{report:#?}");
        tell(&report);
        return if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let mut planted = Vec::new();
    if let Err(what) = repeats() {
        eprintln!("{what}");
        return ExitCode::FAILURE;
    }
    for plant in Plant::ALL {
        let how = How { plant: Some(plant), ..How::default() };
        match (1..=PLANTED).find(|seed| !guarded(*seed, how).violations.is_empty()) {
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
                    let report = guarded(seed, How::default());
                    tell(&report);
                    if report.counts.stranded > 0 {
                        println!("seed {seed}: no majority of the voters was left, so nothing was owed");
                    }
                    let list = if report.violations.is_empty() { &reports } else { &failures };
                    list.lock().expect("no panic").push(report);
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic");
    let reports = reports.into_inner().expect("no panic");
    println!("{}", summary(&reports, began.elapsed()));
    let unseen = totals(&reports).into_iter().find(|(count, _)| *count == 0);
    if let Some((_, what)) = unseen.filter(|_| failures.is_empty() && options.seeds >= ENOUGH) {
        eprintln!("{} seeds saw no {what}: the simulation does not exercise what it should", options.seeds);
        return ExitCode::FAILURE;
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A run, and whatever panicked in it as something that does not hold.
fn guarded(seed: u64, how: How) -> Report {
    PANICS.with(|panics| panics.borrow_mut().clear());
    running().insert(std::thread::current().id(), (seed, Instant::now()));
    let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, how)));
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

/// The same seed leaves the same trace, and with other wall clocks too (E7).
fn repeats() -> Result<(), String> {
    for seed in 1..=TWICE {
        let trace = |clocks| guarded(seed, How { clocks, ..How::default() }).hash;
        let first = trace(0);
        if trace(0) != first {
            return Err(format!(
                "seed {seed} ran twice and left two traces: something depends on more than the seed"
            ));
        }
        if trace(1) != first {
            return Err(format!("E7: seed {seed} runs otherwise when the wall clocks show something else"));
        }
    }
    Ok(())
}

/// Says at once what did not hold, if anything, and how to see it again.
fn tell(report: &Report) {
    if report.violations.is_empty() {
        return;
    }
    let what: Vec<String> = report.violations.iter().take(4).map(|what| format!("\n    {what}")).collect();
    eprintln!(
        "seed {} failed after {:?}; again: cargo sim --seed {}{}",
        report.seed,
        report.simulated,
        report.seed,
        what.concat()
    );
}

/// How often everything happened that a run exercises.
fn totals(reports: &[Report]) -> Vec<(u64, &'static str)> {
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    vec![
        (sum(|r| r.counts.entries), "entries"),
        (sum(|r| r.counts.revisions), "revisions"),
        (sum(|r| r.counts.leaders), "leaders"),
        (sum(|r| r.counts.writes), "writes"),
        (sum(|r| r.counts.unknown), "of unknown outcome"),
        (sum(|r| r.counts.conditions), "on a condition"),
        (sum(|r| r.counts.reads), "reads"),
        (sum(|r| r.counts.renewals), "renewals"),
        (sum(|r| r.counts.expiries), "expiries"),
        (sum(|r| r.counts.late_expiries), "expiries of a term that was over"),
        (sum(|r| r.counts.watched), "updates watched"),
        (sum(|r| r.counts.resets), "resets"),
        (sum(|r| r.counts.quarantines), "quarantines"),
        (sum(|r| r.counts.repairs), "repairs"),
        (sum(|r| r.counts.outages), "outages"),
        (sum(|r| r.faults.power_cuts), "power cuts"),
        (sum(|r| r.faults.torn), "in the middle of a write"),
        (sum(|r| r.faults.kills), "kills"),
        (sum(|r| r.faults.flips), "flips"),
        (sum(|r| r.faults.pauses), "pauses"),
        (sum(|r| r.faults.cuts), "partitions"),
        (sum(|r| r.faults.weathers), "weathers"),
        (sum(|r| r.faults.transfers), "transfers"),
        (sum(|r| r.faults.snapshots), "snapshots"),
        (sum(|r| r.faults.members), "membership changes"),
        (sum(|r| r.faults.cores), "cores"),
        (sum(|r| r.faults.messages), "messages"),
        (sum(|r| r.faults.lost), "lost"),
    ]
}

fn summary(reports: &[Report], took: Duration) -> String {
    let simulated: Duration = reports.iter().map(|report| report.simulated).sum();
    let totals: Vec<String> =
        totals(reports).into_iter().map(|(count, what)| format!("{count} {what}")).collect();
    let stranded: u64 = reports.iter().map(|report| report.counts.stranded).sum();
    format!(
        "simulation: {} seeds in {:.0} s, {:.0} s simulated: {}; {stranded} clusters without a majority in the end",
        reports.len(),
        took.as_secs_f64(),
        simulated.as_secs_f64(),
        totals.join(", "),
    )
}
