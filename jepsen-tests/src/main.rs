//! `jepsen`: breaks a registry by seed and judges what its clients saw. See README.md.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use jepsen_tests::evidence::Evidence;
use jepsen_tests::judge::Report;
use jepsen_tests::run::{Settings, history_of, run, temporary_dir};

/// Fault tests of the registry: real processes, real faults, and judges that share no code with the servers.
#[derive(Debug, Parser)]
#[command(
    name = "jepsen",
    version,
    after_help = "Exit codes: 0 every check passed, 1 a check or gate failed, 2 wrong usage."
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts a cluster, runs clients and faults against it, and judges the history.
    Run(RunArgs),
    /// Judges a written history again, with the watch transcripts beside it.
    Check {
        /// The `history.jsonl` of a run.
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Everything random in the run comes from this number: workload, faults, whom they hit.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long faults go on, in seconds. A run of 30 s meets every kind.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    time_limit_s: u64,
    /// Where everything is written and kept. Without it: a temporary directory, kept only if the run fails.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Registry nodes, 1 to 9.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Says what happens: faults, phases.
    #[arg(long, short)]
    verbose: bool,
}

fn main() -> ExitCode {
    // The cluster's processes are this very program: it must not do anything else first.
    if let Some(code) = cluster::role_main() {
        return code;
    }
    let outcome = match Args::parse().command {
        Command::Run(args) => run_command(&args),
        Command::Check { file } => check_command(&file),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_command(args: &RunArgs) -> anyhow::Result<bool> {
    let level = if args.verbose { tracing::Level::INFO } else { tracing::Level::ERROR };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false).init();
    let dir = args.dir.clone().unwrap_or_else(|| temporary_dir(args.seed));
    let settings = Settings {
        seed: args.seed,
        time_limit: Duration::from_secs(args.time_limit_s),
        nodes: args.nodes.into(),
        dir: dir.clone(),
        git: git_commit(),
        argv: std::env::args().collect(),
        exe: None,
    };
    let outcome = tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(&settings));
    let passed = matches!(&outcome, Ok(report) if report.passed());
    if passed && args.dir.is_none() {
        std::fs::remove_dir_all(&dir)?;
    } else {
        println!("kept: {}", history_of(&dir).display());
    }
    if !passed {
        let (seed, limit, nodes) = (args.seed, args.time_limit_s, args.nodes);
        println!("replay: cargo jepsen run --seed {seed} --time-limit-s {limit} --nodes {nodes} -v");
    }
    tell(&outcome?);
    Ok(passed)
}

fn check_command(file: &Path) -> anyhow::Result<bool> {
    let report = Evidence::read(file)?.judge()?;
    tell(&report);
    Ok(report.passed())
}

/// What is wrong, if anything, and the verdict as the last line.
fn tell(report: &Report) {
    for violation in &report.violations {
        println!("violation {}: {}", violation.rule, violation.what);
    }
    for gate in &report.gates {
        println!("gate: {gate}");
    }
    println!("{report}");
}

/// The commit of the working directory, for the header; a run does not depend on git.
fn git_commit() -> String {
    let git = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    match git {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".into(),
    }
}
