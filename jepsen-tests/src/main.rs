//! `jepsen`: breaks a registry by seed and judges what its clients saw. See README.md.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use jepsen_tests::evidence::Evidence;
use jepsen_tests::judge::Report;
use jepsen_tests::plan::cuts::Fs;
use jepsen_tests::run::{Settings, history_of, power, run, temporary_dir};

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
    /// Cuts the power of the nodes' disks, again and again: nothing that was acknowledged may be lost. Needs root.
    PowerCuts(PowerCutsArgs),
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

#[derive(Debug, clap::Args)]
struct PowerCutsArgs {
    /// How many power cuts, dealt evenly to the file systems and to whom they hit. 30 take half a minute.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    cycles: u16,
    /// Everything random in the run comes from this number: whose power is cut, and after which write.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What the nodes' disks are.
    #[arg(long, value_enum, default_value_t = FsArg::Both)]
    fs: FsArg,
    /// Only a single node, or only clusters of three. Without it: both.
    #[arg(long, value_parser = ["1", "3"])]
    nodes: Option<String>,
    /// Checks this very test: the nodes' syncs do nothing (through strace), and it passes only if a loss is found.
    #[arg(long)]
    drop_syncs: bool,
    /// Where everything is written and kept. Without it: a temporary directory, kept only if the run fails.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Tells of every cut.
    #[arg(long, short)]
    verbose: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum FsArg {
    Ext4,
    Xfs,
    /// Side by side.
    Both,
}

fn main() -> ExitCode {
    // The cluster's processes are this very program: it must not do anything else first.
    if let Some(code) = cluster::role_main() {
        return code;
    }
    let outcome = match Args::parse().command {
        Command::Run(args) => run_command(&args),
        Command::PowerCuts(args) => power_cuts_command(&args),
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
    log_to_stderr(args.verbose);
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

fn power_cuts_command(args: &PowerCutsArgs) -> anyhow::Result<bool> {
    log_to_stderr(args.verbose);
    let dir = args.dir.clone().unwrap_or_else(|| temporary_dir(args.seed));
    let settings = power::Settings {
        seed: args.seed,
        cycles: args.cycles.into(),
        fs: match args.fs {
            FsArg::Ext4 => vec![Fs::Ext4],
            FsArg::Xfs => vec![Fs::Xfs],
            FsArg::Both => vec![Fs::Ext4, Fs::Xfs],
        },
        nodes: args.nodes.as_deref().map(|nodes| if nodes == "1" { 1 } else { 3 }),
        drop_syncs: args.drop_syncs,
        dir: dir.clone(),
    };
    let began = Instant::now();
    let outcome =
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(power::run(&settings));
    let took = began.elapsed().as_secs();
    match outcome {
        Ok(tally) => {
            if args.dir.is_none() {
                std::fs::remove_dir_all(&dir)?;
            }
            match args.drop_syncs {
                true => println!(
                    "passed: a loss was found, as it must be where no sync does anything, in {took} s"
                ),
                false => println!("passed: {tally}, in {took} s"),
            }
            Ok(true)
        }
        Err(error) => {
            println!("FAILED: {error:#}");
            println!("kept: {} (each disk is an image there: mount -o loop IMAGE DIR)", dir.display());
            let flags: Vec<String> = std::env::args().skip(2).filter(|flag| flag != "-v").collect();
            println!("replay: cargo jepsen power-cuts {} -v", flags.join(" "));
            Ok(false)
        }
    }
}

fn log_to_stderr(verbose: bool) {
    let level = if verbose { tracing::Level::INFO } else { tracing::Level::ERROR };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false).init();
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
