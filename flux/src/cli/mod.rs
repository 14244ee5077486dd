//! `registryctl`: what the registry knows and what an operator may change, for people and scripts. Data goes to
//! stdout, messages to stderr.
//!
//! One file per kind of command: `read`, `write`, `leases`, `cluster`, `snapshot`. `show` says how answers look, `failed` how failures
//! do: what, why, what to try next, and the exit code.
//!
//! It is a function, so that programs and tests can run it against their own streams; `main` is its process.

mod cluster;
mod failed;
mod leases;
mod read;
mod show;
mod snapshot;
mod write;

use std::ffi::OsString;
use std::io::{self, Write};
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use tokio_util::sync::CancellationToken;

use self::failed::Failed;
use self::show::Output;
use crate::{Client, Error};

/// Shows what the registry knows, and changes it: services and instances, and the registry's own nodes.
#[derive(Debug, Parser)]
#[command(name = "registryctl", version, after_help = AFTER_HELP)]
struct Args {
    /// Nodes of the registry, comma separated. One is enough; with several it goes on when one is down.
    #[arg(
        long,
        global = true,
        env = "REGISTRY_ENDPOINTS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8081"
    )]
    endpoints: Vec<String>,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Format,
    /// How long a call may take, in seconds. A change of the registry's own nodes may take longer.
    #[arg(long, global = true, default_value = "5", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout_s: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Aligned columns.
    Table,
    /// One JSON value; `watch` prints one per line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// All services, with how many instances each has and how many of them take requests.
    Services,
    /// All instances, or those of one service.
    Instances(read::Instances),
    /// Follows the instances of a service until interrupted: first what there is, then what changes.
    Watch {
        /// The service to follow.
        service: String,
    },
    /// What became of an instance: who changed what, when and why, as far back as the answering node remembers.
    History(read::History),
    /// Registers an instance: once, or with --keep until interrupted.
    #[command(after_help = write::REGISTER_HELP)]
    Register(Box<write::Register>),
    /// Takes an instance out. Exit code 3 if it is not registered.
    Deregister(write::Deregister),
    /// Says whether an instance takes requests: up, draining or maintenance.
    Status(write::SetStatus),
    /// Marks an instance draining: it finishes what is in flight and takes nothing new.
    Drain(write::Mark),
    /// Marks an instance in maintenance: it stays registered and takes nothing.
    Maintenance(write::Mark),
    /// Marks an instance up again: it takes requests.
    Up(write::Mark),
    /// Leases: what runs out and is held back.
    #[command(subcommand)]
    Leases(leases::Command),
    /// The registry's own nodes.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Backups: of the whole catalog, into a file and back.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
}

const AFTER_HELP: &str = "Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 unavailable or timed out, 6 conflict or refused as \
                          things are, 130 interrupted.";

/// What every command has at hand.
struct Session<'a> {
    client: Client,
    endpoints: &'a [String],
    timeout: Duration,
    output: Output,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    /// Cancelled by the first signal.
    stop: CancellationToken,
}

/// Runs one command line, the program's name first, until it ends by itself or `stop` is cancelled. Data goes to
/// `out`, messages to `err`; the answer is the exit code.
pub async fn run<A>(
    args: impl IntoIterator<Item = A>,
    out: &mut dyn Write,
    err: &mut dyn Write,
    stop: CancellationToken,
) -> u8
where
    A: Into<OsString> + Clone,
{
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(said) => {
            let to: &mut dyn Write = if said.use_stderr() { err } else { out };
            let _ = write!(to, "{}", said.render()); // nobody is left to be told
            return u8::try_from(said.exit_code()).unwrap_or(2);
        }
    };
    match dispatch(&args, out, err, stop).await {
        Ok(()) | Err(Failed::OutputClosed) => 0,
        Err(failed) => {
            let (code, message, hint) = failed.explain(&args.endpoints);
            let hint = if hint.is_empty() { hint } else { format!("{hint}\n") };
            let _ = write!(err, "registryctl: {message}\n{hint}"); // nobody is left to be told
            code
        }
    }
}

async fn dispatch(
    args: &Args,
    out: &mut dyn Write,
    err: &mut dyn Write,
    stop: CancellationToken,
) -> Result<(), Failed> {
    let timeout = Duration::from_secs(args.timeout_s);
    let client =
        client(&args.endpoints, timeout).map_err(|error| Failed::call("cannot use --endpoints", error))?;
    let output = Output { json: matches!(args.output, Format::Json) };
    let mut session =
        Session { client, endpoints: &args.endpoints, timeout, output, out, err, stop: stop.clone() };
    let session = &mut session;
    match &args.command {
        // These two end when they are told to.
        Command::Watch { service } => read::watch(session, service).await,
        Command::Register(register) if register.keeps() => write::keep(session, register).await,
        command => stop.run_until_cancelled(one(session, command)).await.unwrap_or(Err(Failed::Interrupted)),
    }
}

/// A command that ends by itself.
async fn one(session: &mut Session<'_>, command: &Command) -> Result<(), Failed> {
    use crate::Status;
    match command {
        Command::Services => read::services(session).await,
        Command::Instances(what) => read::instances(session, what).await,
        Command::Watch { service } => read::watch(session, service).await,
        Command::History(what) => read::history(session, what).await,
        Command::Register(register) => write::register(session, register).await,
        Command::Deregister(what) => write::deregister(session, what).await,
        Command::Status(what) => write::set_status(session, &what.mark, what.status.into()).await,
        Command::Drain(mark) => write::set_status(session, mark, Status::Draining).await,
        Command::Maintenance(mark) => write::set_status(session, mark, Status::Maintenance).await,
        Command::Up(mark) => write::set_status(session, mark, Status::Up).await,
        Command::Leases(command) => leases::run(session, command).await,
        Command::Cluster(command) => cluster::run(session, command).await,
        Command::Snapshot(command) => snapshot::run(session, command).await,
    }
}

fn client(endpoints: &[String], timeout: Duration) -> Result<Client, Error> {
    Client::builder(endpoints).name(operator()).call_timeout(timeout).build()
}

/// Who this is, for provenance: the program, the user, the machine.
fn operator() -> String {
    /// Names of users and machines are this long at most where they mean anything.
    const PART_MAX: usize = 64;
    let part =
        |text: String| text.trim().chars().filter(|c| !c.is_control()).take(PART_MAX).collect::<String>();
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).map(part).unwrap_or_default();
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").map(part).unwrap_or_default();
    match (user.as_str(), machine.as_str()) {
        ("", "") => "registryctl".to_owned(),
        ("", machine) => format!("registryctl on {machine}"),
        (user, machine) => format!("registryctl {user}@{machine}"),
    }
}

impl Session<'_> {
    /// Prints data.
    fn print(&mut self, text: &str) -> Result<(), Failed> {
        match self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failed::OutputClosed),
            Err(error) => Err(Failed::Other(format!("cannot write to stdout: {error}"))),
        }
    }

    /// Tells a person something.
    fn say(&mut self, text: &str) {
        let _ = writeln!(self.err, "registryctl: {text}"); // nobody is left to be told
    }
}
