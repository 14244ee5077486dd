//! `registryctl`: what the registry knows, for people and scripts. Data goes to stdout, messages to stderr.
//!
//! Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 unavailable or timed out, 6 conflict.

mod show;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use flux::{Client, Code, Error, Member, NodeStatus, Role, Update};
use futures_util::future::join_all;

use self::show::{MemberStatus, Output};

/// How long a node may take to tell its status; it is shown as unreachable then.
const STATUS_TIMEOUT_MAX: Duration = Duration::from_secs(2);

/// A watch that is not connected says so this often.
const STILL_TRYING_EVERY: Duration = Duration::from_secs(5);

/// Shows what the registry knows: services, instances, changes as they happen, and its own nodes.
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
    /// How long a call may take, in seconds.
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
    Instances {
        /// Only of this service; exit code 3 if it has none.
        service: Option<String>,
    },
    /// Follows the instances of a service until interrupted: first what there is, then what changes.
    Watch {
        /// The service to follow.
        service: String,
    },
    /// The registry's own nodes.
    #[command(subcommand)]
    Cluster(ClusterCommand),
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Every node: its role, how far it is, and whether it serves. Exit code 4 if no leader answers.
    Status,
}

const AFTER_HELP: &str =
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 unavailable or timed out, 6 conflict.";

/// Why a command failed, as far as the exit code tells causes apart.
enum Failed {
    /// What was asked for failed with this error.
    Call(&'static str, Error),
    NotFound(String),
    NoLeader,
    /// Nobody reads the output any more; that is how `| head` ends.
    OutputClosed,
    Other(anyhow::Error),
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) | Err(Failed::OutputClosed) => ExitCode::SUCCESS,
        Err(failed) => {
            let (code, message, hint) = failed.explain(&args.endpoints);
            eprintln!("registryctl: {message}");
            if !hint.is_empty() {
                eprintln!("{hint}");
            }
            ExitCode::from(code)
        }
    }
}

fn run(args: &Args) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .map_err(Failed::Other)?;
    let client = client(&args.endpoints, Duration::from_secs(args.timeout_s))
        .map_err(|error| Failed::Call("cannot use --endpoints", error))?;
    let output = Output { json: matches!(args.output, Format::Json) };
    runtime.block_on(async {
        match &args.command {
            Command::Services => services(&client, &output).await,
            Command::Instances { service } => instances(&client, service.as_deref(), &output).await,
            Command::Watch { service } => watch(&client, service, &output).await,
            Command::Cluster(ClusterCommand::Status) => {
                cluster_status(&client, args.timeout_s, &output).await
            }
        }
    })
}

fn client(endpoints: &[String], timeout: Duration) -> Result<Client, Error> {
    Client::builder(endpoints).name("registryctl").call_timeout(timeout).build()
}

async fn services(client: &Client, output: &Output) -> Result<(), Failed> {
    let answer = client.services().await.map_err(|error| Failed::Call("cannot list services", error))?;
    print(&output.services(&answer))
}

async fn instances(client: &Client, service: Option<&str>, output: &Output) -> Result<(), Failed> {
    let answer = client.list(service).await.map_err(|error| Failed::Call("cannot list instances", error))?;
    if let (Some(service), true) = (service, answer.value.is_empty()) {
        return Err(Failed::NotFound(format!("no instance of service {service:?} is registered")));
    }
    print(&output.instances(&answer))
}

async fn watch(client: &Client, service: &str, output: &Output) -> Result<(), Failed> {
    let mut watch = client.watch(Some(service));
    let status = watch.status();
    let mut first = true;
    loop {
        tokio::select! {
            update = watch.next() => {
                print(&output.update(&update, first))?;
                first &= matches!(update, Update::Progress { .. });
            }
            () = tokio::time::sleep(STILL_TRYING_EVERY) => {
                let status = status.borrow().clone();
                eprintln!("registryctl: no node answers, still trying (last {})", status.endpoint);
            }
            interrupted = tokio::signal::ctrl_c() => {
                return interrupted.context("cannot wait for the interrupt").map_err(Failed::Other);
            }
        }
    }
}

async fn cluster_status(client: &Client, timeout_s: u64, output: &Output) -> Result<(), Failed> {
    let answer = client.members().await.map_err(|error| Failed::Call("cannot list the nodes", error))?;
    let timeout = STATUS_TIMEOUT_MAX.min(Duration::from_secs(timeout_s));
    let members = join_all(answer.value.into_iter().map(|member| ask(member, timeout))).await;
    let leads = |m: &MemberStatus| matches!(&m.status, Ok((NodeStatus { role: Role::Leader, .. }, _)));
    let has_leader = members.iter().any(leads);
    print(&output.cluster(&answer.cluster_id, &members))?;
    if has_leader { Ok(()) } else { Err(Failed::NoLeader) }
}

/// Asks one node for its own status.
async fn ask(member: Member, timeout: Duration) -> MemberStatus {
    let status = match client(std::slice::from_ref(&member.rest), timeout) {
        Ok(client) => client.status().await.map(|answer| (answer.value, answer.revision)),
        Err(error) => Err(error),
    };
    MemberStatus { member, status }
}

fn print(text: &str) -> Result<(), Failed> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failed::OutputClosed),
        Err(error) => Err(Failed::Other(anyhow::Error::new(error).context("cannot write to stdout"))),
    }
}

impl Failed {
    /// The exit code, what failed and why, and what to try next.
    fn explain(&self, endpoints: &[String]) -> (u8, String, String) {
        match self {
            Failed::Call(what, error) => {
                let (code, hint) = explain(error.code(), endpoints);
                (code, format!("{what}: {error}"), hint)
            }
            Failed::NotFound(what) => {
                (3, what.clone(), "try `registryctl services` for what is registered".to_owned())
            }
            Failed::NoLeader => {
                let hint = "try again in a second: an election takes less. If it stays so, a majority of the \
                            nodes is down: start them";
                (4, "no node is the leader now: nothing can be registered".to_owned(), hint.to_owned())
            }
            Failed::OutputClosed => (0, String::new(), String::new()),
            Failed::Other(error) => (1, format!("{error:#}"), String::new()),
        }
    }
}

fn explain(code: Code, endpoints: &[String]) -> (u8, String) {
    let unavailable = || {
        format!(
            "is the registry running at {}? name its nodes by --endpoints or REGISTRY_ENDPOINTS; \
             a node's own view is at its /readyz?verbose",
            endpoints.join(", ")
        )
    };
    match code {
        Code::InvalidArgument => (2, "try `registryctl --help`".to_owned()),
        Code::NotFound => (3, "try `registryctl instances` for what is registered".to_owned()),
        Code::Unavailable | Code::Timeout => (4, unavailable()),
        Code::Precondition | Code::Superseded | Code::LeaseLost => {
            (6, "it was changed meanwhile: look again with `registryctl instances`".to_owned())
        }
        Code::Unimplemented => (1, "the registry is older than this program".to_owned()),
        Code::ResourceExhausted | Code::StaleSequence | Code::Internal => {
            (1, "the nodes' logs say more".to_owned())
        }
    }
}
