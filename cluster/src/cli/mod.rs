//! The command line. Every command but `up` acts on a running cluster, found by `--dir` or as the most recent one.
//!
//! Exit codes: 0 done, 1 failed (the reason on stderr), 2 wrong usage.

mod logs;
mod table;
mod up;

pub(crate) use table::columns;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{Cluster, bench::Bench, state::Recent};

/// A whole system on one machine: registry nodes, balancers and sample backends as real processes.
#[derive(Debug, Parser)]
#[command(name = "cluster", bin_name = "cargo cluster", version, max_term_width = 100)]
struct Cli {
    /// The cluster's directory. Without it, `up` makes a temporary one, and the other commands take the most
    /// recent cluster that runs.
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a system and keep it until Ctrl-C.
    Up(Up),
    /// Show what runs.
    Status {
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Stop processes in an orderly way (SIGTERM) and wait until they have gone.
    Stop(Names),
    /// Start processes that were stopped or killed, and wait until they are ready.
    Start(Names),
    /// Kill processes (SIGKILL).
    Kill(Names),
    /// Pause processes (SIGSTOP): they keep their connections and answer nothing.
    Pause(Names),
    /// Let paused processes go on (SIGCONT).
    Resume(Names),
    /// Print the output of a process.
    Logs {
        /// node-1, lb-1, backend-1, or leader.
        name: String,
        /// Goes on printing what is added.
        #[arg(short, long)]
        follow: bool,
        /// Only so many lines from the end.
        #[arg(short = 'n', long, default_value_t = 200, value_name = "N")]
        lines: usize,
    },
    /// Add a process.
    Add {
        /// What to add.
        #[arg(value_enum)]
        what: What,
    },
    /// Stop everything.
    Down,
    /// Measure, on nodes of its own.
    Bench {
        /// What to measure.
        #[command(subcommand)]
        what: Bench,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t, global = true)]
        output: Output,
    },
}

#[derive(Debug, Args)]
struct Up {
    /// Registry nodes [default: 3].
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Balancers [default: 2].
    #[arg(long, value_name = "N")]
    balancers: Option<usize>,
    /// Sample backends [default: 3].
    #[arg(long, value_name = "N")]
    backends: Option<usize>,
    /// The balancers' strategy, such as round_robin, least_request or sticky_sessions.
    #[arg(long)]
    strategy: Option<String>,
    /// Fail when a documented port is taken, instead of moving on.
    #[arg(long, conflicts_with = "free_ports")]
    strict_ports: bool,
    /// Take any free ports.
    #[arg(long)]
    free_ports: bool,
    /// Return once requests flow and leave the system running; end it with `down`.
    #[arg(long)]
    detach: bool,
}

#[derive(Debug, Args)]
struct Names {
    /// node-1, lb-1, backend-1, …, or leader.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// A further sample backend.
    Backend,
}

/// Runs the command that the command line asks for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match cli.command {
        // The load must not be what is slow.
        Command::Bench { .. } => tokio::runtime::Builder::new_multi_thread().enable_all().build(),
        _ => tokio::runtime::Builder::new_current_thread().enable_all().build(),
    };
    match runtime.context("cannot build a runtime").and_then(|runtime| runtime.block_on(run(cli))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    let dir = cli.dir.clone();
    let open = || open(cli.dir.clone());
    match cli.command {
        Command::Up(up) => Box::pin(up::up(up, dir)).await,
        Command::Status { output } => status(&open()?, output).await,
        Command::Stop(names) => each(&open()?, names, Verb::Stop).await,
        Command::Start(names) => start(&open()?, names).await,
        Command::Kill(names) => each(&open()?, names, Verb::Kill).await,
        Command::Pause(names) => each(&open()?, names, Verb::Pause).await,
        Command::Resume(names) => each(&open()?, names, Verb::Resume).await,
        Command::Logs { name, follow, lines } => {
            let cluster = open()?;
            let name = resolve(&cluster, &name).await?;
            cluster.spec(&name)?;
            logs::print(&cluster, &name, lines, follow).await
        }
        Command::Add { what: What::Backend } => add_backend(&open()?).await,
        Command::Down => down(open()?).await,
        Command::Bench { what, output } => bench(&what, output).await,
    }
}

/// Dropped half-way, it kills what it has started.
async fn bench(what: &Bench, output: Output) -> Result<()> {
    let mut signals = up::Signals::new()?;
    let report = tokio::select! {
        report = Box::pin(what.run(note)) => report?,
        () = signals.recv() => bail!("interrupted; nothing is left running"),
    };
    match output {
        Output::Json => say(&serde_json::to_string_pretty(&report)?),
        Output::Table => say(&report.table()),
    }
    if !report.failed.is_empty() {
        bail!("not everything was measured: {}", report.failed.join("; "));
    }
    match report.missed() {
        missed if missed > 0 && what.checks() => bail!("{missed} figures miss what must be"),
        _ => Ok(()),
    }
}

fn open(dir: Option<PathBuf>) -> Result<Cluster> {
    let Some(dir) =
        dir.map_or_else(|| Recent::of_user().map(|recent| recent.running()), |dir| Ok(Some(dir)))?
    else {
        bail!("no cluster of yours is running; start one with `up`, or name one with --dir");
    };
    Ok(Cluster::open(&dir)?)
}

async fn status(cluster: &Cluster, output: Output) -> Result<()> {
    let status = cluster.status().await?;
    match output {
        Output::Json => say(&serde_json::to_string_pretty(&status)?),
        Output::Table => say(table::status(&status).trim_end()),
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Verb {
    Stop,
    Kill,
    Pause,
    Resume,
}

/// All at once, so that `stop node-1 node-2 node-3` leaves no moment in which only some are gone.
async fn each(cluster: &Cluster, Names { names }: Names, verb: Verb) -> Result<()> {
    let names = resolve_all(cluster, names).await?;
    let act = async |name: &String| {
        match verb {
            Verb::Stop => cluster.stop(name).await.map(|()| "stopped"),
            Verb::Kill => cluster.kill(name).await.map(|()| "killed"),
            Verb::Pause => cluster.pause(name).await.map(|()| "paused"),
            Verb::Resume => cluster.resume(name).await.map(|()| "goes on"),
        }
        .map(|done| say(&format!("{name} {done}")))
    };
    for done in futures_util::future::join_all(names.iter().map(act)).await {
        done?;
    }
    Ok(())
}

async fn start(cluster: &Cluster, Names { names }: Names) -> Result<()> {
    for name in &names {
        cluster.start(name).await?;
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    cluster.wait_ready_of(&names).await?;
    say(&format!("{} ready", names.join(", ")));
    Ok(())
}

async fn add_backend(cluster: &Cluster) -> Result<()> {
    let name = cluster.add_backend().await?;
    cluster.wait_ready_of(&[&name]).await?;
    let url = cluster.spec(&name)?.kind.ready_url().replace("/health", "");
    say(&format!("{name} ready at {url}"));
    Ok(())
}

async fn down(cluster: Cluster) -> Result<()> {
    let dir = cluster.dir().to_owned();
    cluster.down().await?;
    drop(Recent::of_user().map(|recent| recent.remove(&dir)));
    say("everything is stopped");
    Ok(())
}

async fn resolve_all(cluster: &Cluster, names: Vec<String>) -> Result<Vec<String>> {
    let mut resolved = Vec::with_capacity(names.len());
    for name in names {
        let name = resolve(cluster, &name).await?;
        if !resolved.contains(&name) {
            resolved.push(name);
        }
    }
    Ok(resolved)
}

/// `leader` is whoever leads now.
async fn resolve(cluster: &Cluster, name: &str) -> Result<String> {
    if name != "leader" {
        return Ok(name.to_owned());
    }
    Ok(cluster.leader().await?.ok_or(crate::Error::NoLeader)?)
}

/// Prints a line; whoever no longer reads it (`| head`) does not make this fail.
fn say(line: &str) {
    drop(writeln!(io::stdout(), "{line}"));
}

/// The same for what is not the answer itself.
fn note(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}
