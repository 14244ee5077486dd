//! Flags and environment, read once, checked, and handed down as typed values. Nothing else reads them.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};

/// A registry node: keeps service records with its peers and answers gRPC and REST on both client ports.
///
/// Without a command it runs until SIGTERM. The commands are for the directory of a node that does not run.
#[derive(Debug, Clone, Parser)]
#[command(name = "registry-node", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What to do instead of running
    #[command(subcommand)]
    pub command: Option<Command>,
    /// This node's id, unique for ever: a node that lost its directory comes back under a new one
    #[arg(long, env = "REGISTRY_ID", default_value_t = 1)]
    pub id: u64,
    /// A name for people [default: node-ID]
    #[arg(long, env = "REGISTRY_NAME")]
    pub name: Option<String>,
    /// Where everything durable is kept
    #[arg(long, env = "REGISTRY_DIR", default_value = "registry-data")]
    pub dir: PathBuf,
    /// Where REST clients connect (gRPC works here too)
    #[arg(long, env = "REGISTRY_REST", default_value = "127.0.0.1:8081")]
    pub rest: SocketAddr,
    /// Where gRPC clients connect (REST works here too)
    #[arg(long, env = "REGISTRY_GRPC", default_value = "127.0.0.1:9091")]
    pub grpc: SocketAddr,
    /// Where the other nodes connect
    #[arg(long, env = "REGISTRY_PEER", default_value = "127.0.0.1:7091")]
    pub peer: SocketAddr,
    /// The host name or address others reach this node by; needed when listening on 0.0.0.0 or `[::]`
    #[arg(long, env = "REGISTRY_ADVERTISE")]
    pub advertise: Option<String>,
    /// The members the cluster starts with, itself included: ID=HOST:PEER_PORT,... [default: itself alone]
    #[arg(long, env = "REGISTRY_MEMBERS", value_delimiter = ',', value_parser = parse_member)]
    pub members: Vec<(u64, String)>,
    /// Join a running cluster instead, as a learner: the peer address of any member
    #[arg(long, env = "REGISTRY_JOIN", value_name = "HOST:PEER_PORT", conflicts_with = "members")]
    pub join: Option<String>,
    /// Reach a peer elsewhere than the cluster says: ID=HOST:PORT,...
    #[arg(long, env = "REGISTRY_PEER_OVERRIDE", value_delimiter = ',', value_parser = parse_member)]
    pub peer_override: Vec<(u64, String)>,
    /// How often the leader is heard from, in milliseconds
    #[arg(long, env = "REGISTRY_HEARTBEAT_MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(10..))]
    pub heartbeat_ms: u64,
    /// Shortest election time-out, in milliseconds
    #[arg(long, env = "REGISTRY_ELECTION_MIN_MS", default_value_t = 300)]
    pub election_min_ms: u64,
    /// Longest election time-out, in milliseconds
    #[arg(long, env = "REGISTRY_ELECTION_MAX_MS", default_value_t = 600)]
    pub election_max_ms: u64,
    /// Take a snapshot every so many log entries
    #[arg(long, env = "REGISTRY_SNAPSHOT_EVERY", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub snapshot_every: u64,
    /// Log entries kept behind a snapshot, so that a node that lags a little needs no snapshot
    #[arg(long, env = "REGISTRY_LOG_KEEP", default_value_t = 1_000)]
    pub log_keep: u64,
    /// Shortest lease that may be asked for, in milliseconds
    #[arg(long, env = "REGISTRY_TTL_MIN_MS", default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(100..))]
    pub ttl_min_ms: u32,
    /// Refuse writes while less than this is free on the disk of --dir, in MiB; 0 never refuses
    #[arg(long, env = "REGISTRY_DISK_FREE_MIN_MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(..=1 << 20))]
    pub disk_free_min_mib: u64,
    /// Keep a file of so many MiB in --dir that is given back when a node has to start on a full disk; 0 for none
    #[arg(long, env = "REGISTRY_BALLAST_MIB", default_value_t = 16, value_parser = clap::value_parser!(u64).range(..=1 << 10))]
    pub ballast_mib: u64,
    /// Threads that serve clients and peers; the store has its own [default: half of the cores, at least one]
    #[arg(long, env = "REGISTRY_WORKER_THREADS", value_parser = clap::value_parser!(u16).range(1..=1_024))]
    pub worker_threads: Option<u16>,
    /// Limits
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// What a node takes on, each bound with a name. A client that meets one is told which.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Connections on one client port; the limit of open files may allow fewer
    #[arg(long, env = "REGISTRY_CONNECTIONS_MAX", default_value_t = 8_192, value_parser = at_least(1))]
    pub connections_max: u64,
    /// Connections on the peers' port; a node needs four to each other node
    #[arg(long, env = "REGISTRY_PEER_CONNECTIONS_MAX", default_value_t = 256, value_parser = at_least(16))]
    pub peer_connections_max: u64,
    /// Concurrent calls on one HTTP/2 connection
    #[arg(long, env = "REGISTRY_STREAMS_PER_CONNECTION_MAX", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..))]
    pub streams_per_connection_max: u32,
    /// Until a connection's first byte, and until a request's whole head, in milliseconds
    #[arg(long, env = "REGISTRY_HEAD_TIMEOUT_MS", default_value_t = 10_000, value_parser = at_least(100))]
    pub head_timeout_ms: u64,
    /// Until a request's whole body, in milliseconds; streams have no such end
    #[arg(long, env = "REGISTRY_BODY_TIMEOUT_MS", default_value_t = 10_000, value_parser = at_least(100))]
    pub body_timeout_ms: u64,
    /// Until a client that reads nothing of a watch is let go, in milliseconds; an idle watch says something once a second
    #[arg(long, env = "REGISTRY_STALL_TIMEOUT_MS", default_value_t = 60_000, value_parser = at_least(5_000))]
    pub stall_timeout_ms: u64,
    /// Watches and polls that follow this node
    #[arg(long, env = "REGISTRY_WATCHERS_MAX", default_value_t = 20_000, value_parser = at_least(1))]
    pub watchers_max: u64,
    /// Of these from one address
    #[arg(long, env = "REGISTRY_WATCHERS_PER_CLIENT_MAX", default_value_t = 10_000, value_parser = at_least(1))]
    pub watchers_per_client_max: u64,
    /// Writes of one pipeline that are not answered; beyond it nothing more is read
    #[arg(long, env = "REGISTRY_CALLS_IN_FLIGHT_MAX", default_value_t = 4_096, value_parser = at_least(1))]
    pub calls_in_flight_max: u64,
    /// Bytes of one request
    #[arg(long, env = "REGISTRY_MESSAGE_BYTES_MAX", default_value_t = 1 << 20, value_parser = at_least(32 << 10))]
    pub message_bytes_max: u64,
    /// Bytes of one record: all its texts, and 8 for each
    #[arg(long, env = "REGISTRY_RECORD_BYTES_MAX", default_value_t = 16 << 10, value_parser = clap::value_parser!(u64).range(1_024..=24 << 10))]
    pub record_bytes_max: u64,
}

fn at_least(min: u64) -> clap::builder::RangedU64ValueParser {
    // More than any machine has, and within a usize everywhere.
    clap::builder::RangedU64ValueParser::new().range(min..=1 << 31)
}

impl Args {
    /// How many threads serve clients and peers. A write is a chain of short steps, and waking another thread takes
    /// longer than each of them: fewer threads answer sooner.
    pub fn worker_threads(&self) -> usize {
        let half = || std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        self.worker_threads.map_or_else(half, usize::from)
    }
}

/// What can be done with the directory of a node that does not run.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Say what a stopped node's directory holds, and whether it is sound; changes nothing
    Inspect(InspectArgs),
    /// Begin a new cluster with what one node still has, after a majority was lost for good
    Recover(RecoverArgs),
}

/// Flags of `inspect`.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Exit codes: 0 everything is sound, 78 something is damaged (and named), 64 nothing to look at, or a node is \
                  running there, 74 it cannot be read, 2 wrong flags."
)]
pub struct InspectArgs {
    /// The node's --dir
    pub dir: PathBuf,
    /// Dump the log instead: a JSON object a line, one for every command
    #[arg(long, conflicts_with = "catalog")]
    pub log: bool,
    /// Dump the catalog instead, as it is after the last entry: one JSON object
    #[arg(long)]
    pub catalog: bool,
    /// How to print the summary
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Flags of `recover`.
#[derive(Debug, Clone, clap::Args)]
#[command(
    long_about = "Begins a new cluster, of one node, with what the directory of one node of the old cluster still has. For when \
                  a majority of the nodes is lost for good: nothing else brings the old cluster back. Says first what is \
                  kept and what may be lost; does it only with --yes. The old directory is kept beside the new one.",
    after_help = "Exit codes: 0 done, 64 --yes is missing (nothing was changed) or a node is running there, 78 there is nothing to \
                  begin with (nothing was changed), 74 it was interrupted: start it again, 2 wrong flags."
)]
pub struct RecoverArgs {
    /// The --dir of the node that is left
    pub dir: PathBuf,
    /// The node's id in the new cluster [default: the one it had]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub id: Option<u64>,
    /// Do it
    #[arg(long)]
    pub yes: bool,
}

fn parse_member(text: &str) -> Result<(u64, String), String> {
    let (id, address) = text.split_once('=').ok_or("say ID=HOST:PORT, as in 2=10.0.0.2:7091")?;
    let id = id.trim().parse().map_err(|_| format!("{id:?} is no node id: say a number of 1 or more"))?;
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    match (id, port) {
        (0, _) => Err("0 is no node id: ids start at 1".into()),
        (_, None) => Err(format!("{address:?} has no port: say HOST:PORT")),
        _ => Ok((id, address.trim().into())),
    }
}

/// Why the flags cannot be used together.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--id 0`.
    #[error("0 is no node id: ids start at 1")]
    Id,
    /// The node is not among `--members`.
    #[error(
        "node {id} is not among --members {members:?}: add {id}=HOST:PEER_PORT, or use --join to join a running cluster"
    )]
    NotAMember {
        /// This node.
        id: u64,
        /// The ids given.
        members: Vec<u64>,
    },
    /// The same id twice.
    #[error("--members names node {0} twice")]
    Duplicate(u64),
    /// The election range makes no sense with the heartbeat.
    #[error(
        "--election-min-ms {min} must be at least twice --heartbeat-ms {heartbeat} and below --election-max-ms {max}"
    )]
    Timers {
        /// Heartbeat interval.
        heartbeat: u64,
        /// Shortest election time-out.
        min: u64,
        /// Longest election time-out.
        max: u64,
    },
    /// Listening everywhere, and no address to tell others.
    #[error("{0} is not an address others can connect to: say which is with --advertise HOST")]
    Advertise(SocketAddr),
}

/// Everything a node needs to know, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's id, at least 1.
    pub id: u64,
    /// Its name for people.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Listening addresses.
    pub rest: SocketAddr,
    /// For gRPC clients.
    pub grpc: SocketAddr,
    /// For peers.
    pub peer: SocketAddr,
    /// How others reach this node.
    pub advertise: Advertise,
    /// How this node gets into a cluster when its directory is empty.
    pub origin: Origin,
    /// Peers that are reached elsewhere than the cluster says.
    pub peer_override: BTreeMap<u64, String>,
    /// Raft's clocks.
    pub timers: Timers,
    /// Log entries between two snapshots.
    pub snapshot_every: u64,
    /// Log entries kept behind a snapshot.
    pub log_keep: u64,
    /// What a caller may ask for.
    pub limits: Limits,
    /// Bytes that must be free on the disk for a write to be taken: room for what is already on its way, for a
    /// snapshot of a usual catalog, and for what sled writes without being asked. 0 for any.
    pub disk_free_min: u64,
    /// Bytes of the file that is given back when a node starts on a full disk: opening sled there needs a few
    /// segments of 512 KiB. 0 for none.
    pub ballast: u64,
}

/// Full URLs under which this node tells others to reach it.
#[derive(Debug, Clone)]
pub struct Advertise {
    /// For REST clients.
    pub rest: String,
    /// For gRPC clients.
    pub grpc: String,
    /// For peers.
    pub peer: String,
}

/// How an empty node becomes part of a cluster.
#[derive(Debug, Clone)]
pub enum Origin {
    /// With these members (id to peer address, itself included), once all of them are empty too.
    Bootstrap(BTreeMap<u64, String>),
    /// By being added to the cluster of this peer.
    Join(String),
}

/// Raft's clocks.
#[derive(Debug, Clone, Copy)]
pub struct Timers {
    /// Between two of the leader's heartbeats.
    pub heartbeat: Duration,
    /// Shortest election time-out.
    pub election_min: Duration,
    /// Longest; also how long a leader counts as confirmed after a quorum answered it.
    pub election_max: Duration,
}

/// What a caller may ask for, each with its reason.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Shorter leases turn a scheduling hiccup into an expiry.
    pub ttl_min: Duration,
    /// A dead instance that stays listed longer than this is no lease any more.
    pub ttl_max: Duration,
    /// For callers that name none: three heartbeats of the legacy SDK.
    pub ttl_default: Duration,
    /// One record; keeps a command far below a log frame (96 KiB).
    pub record_bytes_max: usize,
    /// Metadata is for routing, not a database.
    pub metadata_keys_max: usize,
    /// One request; the largest legal one is a batch of heartbeats.
    pub message_bytes_max: usize,
    /// Request heads; hyper keeps them in memory.
    pub head_bytes_max: usize,
    /// Watchers a node serves; each costs a task and a stream, 4 KiB while it is idle.
    pub watchers_max: usize,
    /// Watchers of one address: one host must not take every place.
    pub watchers_per_client_max: usize,
    /// Writes of one pipeline between the oldest and the newest that are not answered. At 30 000 writes a second
    /// over one pipeline each may take 130 ms.
    pub calls_in_flight_max: usize,
    /// Connections on one client port; a file descriptor each.
    pub connections_max: usize,
    /// Connections on the peers' port: four from each other node, and room for those that are broken and not
    /// noticed yet.
    pub peer_connections_max: usize,
    /// Concurrent calls on one HTTP/2 connection.
    pub streams_per_connection_max: u32,
    /// Until the first byte and until the whole head of a request: a silent client must not hold a descriptor.
    pub head_timeout: Duration,
    /// How long a request's body may take to come: a message of 1 MiB at a megabit a second.
    pub body_timeout: Duration,
    /// How long a client may leave a watch unread: long enough for a process that is stopped and continued, short
    /// against what an operator would wait for.
    pub stall_timeout: Duration,
    /// How long a call waits for a leader; below the 5 s after which legacy clients give up.
    pub call_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ttl_min: Duration::from_secs(3),
            ttl_max: Duration::from_secs(3600),
            ttl_default: Duration::from_secs(30),
            record_bytes_max: 16 << 10,
            metadata_keys_max: 64,
            message_bytes_max: 1 << 20,
            head_bytes_max: 64 << 10,
            watchers_max: 20_000,
            watchers_per_client_max: 10_000,
            calls_in_flight_max: 4_096,
            connections_max: 8_192,
            peer_connections_max: 256,
            streams_per_connection_max: 1_024,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            call_timeout: Duration::from_secs(4),
        }
    }
}

impl Args {
    /// Checks what the flags say together.
    pub fn check(self) -> Result<Config, Error> {
        if self.id == 0 {
            return Err(Error::Id);
        }
        let advertise =
            Advertise { rest: self.url(self.rest)?, grpc: self.url(self.grpc)?, peer: self.url(self.peer)? };
        Ok(Config {
            id: self.id,
            name: self.name.clone().unwrap_or_else(|| format!("node-{}", self.id)),
            origin: self.origin()?,
            timers: self.timers()?,
            limits: self.limits(),
            peer_override: self.peer_override.into_iter().collect(),
            snapshot_every: self.snapshot_every,
            log_keep: self.log_keep,
            disk_free_min: self.disk_free_min_mib << 20,
            ballast: self.ballast_mib << 20,
            dir: self.dir,
            rest: self.rest,
            grpc: self.grpc,
            peer: self.peer,
            advertise,
        })
    }

    fn limits(&self) -> Limits {
        let said = &self.limits;
        Limits {
            ttl_min: Duration::from_millis(self.ttl_min_ms.into()),
            record_bytes_max: said.record_bytes_max as usize,
            message_bytes_max: said.message_bytes_max as usize,
            watchers_max: said.watchers_max as usize,
            watchers_per_client_max: said.watchers_per_client_max as usize,
            calls_in_flight_max: said.calls_in_flight_max as usize,
            connections_max: said.connections_max as usize,
            peer_connections_max: said.peer_connections_max as usize,
            streams_per_connection_max: said.streams_per_connection_max,
            head_timeout: Duration::from_millis(said.head_timeout_ms),
            body_timeout: Duration::from_millis(said.body_timeout_ms),
            stall_timeout: Duration::from_millis(said.stall_timeout_ms),
            ..Limits::default()
        }
    }

    fn url(&self, listen: SocketAddr) -> Result<String, Error> {
        match &self.advertise {
            Some(host) => Ok(format!("http://{host}:{}", listen.port())),
            None if listen.ip().is_unspecified() => Err(Error::Advertise(listen)),
            None => Ok(format!("http://{listen}")),
        }
    }

    fn origin(&self) -> Result<Origin, Error> {
        if let Some(peer) = &self.join {
            return Ok(Origin::Join(peer.clone()));
        }
        let mut members = BTreeMap::new();
        for (id, address) in &self.members {
            if members.insert(*id, address.clone()).is_some() {
                return Err(Error::Duplicate(*id));
            }
        }
        if members.is_empty() {
            members.insert(self.id, self.peer.to_string());
        }
        if !members.contains_key(&self.id) {
            return Err(Error::NotAMember { id: self.id, members: members.into_keys().collect() });
        }
        Ok(Origin::Bootstrap(members))
    }

    fn timers(&self) -> Result<Timers, Error> {
        let (heartbeat, min, max) = (self.heartbeat_ms, self.election_min_ms, self.election_max_ms);
        if min < 2 * heartbeat || max <= min {
            return Err(Error::Timers { heartbeat, min, max });
        }
        let ms = Duration::from_millis;
        Ok(Timers { heartbeat: ms(heartbeat), election_min: ms(min), election_max: ms(max) })
    }
}
