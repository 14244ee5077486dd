//! The only reader of flags, environment and files. What leaves here is typed and checked.
//!
//! Precedence: flag, then environment, then file, then default. Unknown keys are errors: a misspelt time-out
//! that is silently ignored is found out in an outage.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use self::listeners::Listener;
use crate::access::Sink;
use crate::control::record::Probe;
use crate::control::state;
use crate::picker::{self, Strategy};
use crate::trace;

use crate::route::{self, Routes};

pub use reload::{Loaded, Reloader, Source};

pub mod duration;
pub mod listeners;
mod picking;
pub mod reload;
mod routes;
mod schema;

#[cfg(test)]
#[path = "config/reference_tests.rs"]
mod reference;
#[cfg(test)]
mod tests;

/// The file that is read, if it is there, when no `--config` is given.
const FILE_DEFAULT: &str = "config.yaml";

/// HTTP load balancer that follows the service registry
///
/// Sends requests to the instances that the registry knows and that pass their health probe. Reads config.yaml
/// in the working directory if there is one; flags override it.
#[derive(clap::Parser, Clone, Debug, Default)]
#[command(name = "balancer", version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    flags: Flags,
}

const EXAMPLES: &str = "\
Examples:
  balancer --registry http://10.0.0.1:8081,http://10.0.0.2:8081
  balancer --config config.yaml --port 8070 --admin 127.0.0.1:8061
  balancer check config.yaml

Look at it:
  curl http://127.0.0.1:8060/readyz          has it a catalog?
  curl http://127.0.0.1:8060/v1/endpoints    who takes requests, who does not, and why

SIGTERM finishes what is in flight, then exits 0; a second one exits at once.";

#[derive(clap::Subcommand, Clone, Debug)]
enum Command {
    /// Check a configuration file and print what it comes to
    Check {
        /// The file
        file: PathBuf,
    },
}

#[derive(clap::Args, Clone, Debug, Default)]
struct Flags {
    /// Configuration file; without it config.yaml is read if it exists
    #[arg(long, env = "BALANCER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Port for requests [default: 8080]
    #[arg(long, env = "BALANCER_PORT")]
    port: Option<u16>,

    /// Address to listen on for requests [default: 0.0.0.0]
    #[arg(long, env = "BALANCER_HOST", value_name = "IP")]
    host: Option<IpAddr>,

    /// Address of the admin server, which must not be reachable for strangers [default: 127.0.0.1:8060]
    #[arg(long, env = "BALANCER_ADMIN", value_name = "IP:PORT")]
    admin: Option<SocketAddr>,

    /// Registry nodes; any one is enough, more survive its loss [default: http://127.0.0.1:8081]
    #[arg(long, env = "BALANCER_REGISTRY", value_name = "URL[,URL...]", value_delimiter = ',')]
    registry: Option<Vec<String>>,

    /// How endpoints are picked [default: round_robin]
    #[arg(long, env = "BALANCER_STRATEGY", value_enum)]
    strategy: Option<Strategy>,

    /// Worker threads [default: one per core, at least 2]
    #[arg(long, env = "BALANCER_WORKERS", value_name = "N")]
    workers: Option<usize>,

    /// Name of this balancer, for logs and the registry [default: balancer]
    #[arg(long, env = "BALANCER_NAME")]
    name: Option<String>,

    /// One line of JSON for each request, to standard output or the end of a file, which SIGHUP opens again [default: off]
    #[arg(long, env = "BALANCER_ACCESS_LOG", value_name = "off|stdout|FILE")]
    access_log: Option<String>,

    /// Zone of this balancer, whose endpoints are preferred
    #[arg(long, env = "BALANCER_ZONE")]
    zone: Option<String>,

    /// Signs the cookies of sticky sessions; the same for all balancers. Better given as a variable: others see flags
    #[arg(long, env = "BALANCER_STICKY_SECRET", value_name = "SECRET", hide_env_values = true)]
    sticky_secret: Option<String>,

    /// Directory for the last known endpoints, so that a restart without a registry works
    #[arg(long, env = "BALANCER_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}: {reason}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The file is not what it should be.
    #[error("{path}:{place}{message}")]
    Parse {
        /// The file.
        path: String,
        /// `line:column: `, or empty.
        place: String,
        /// What is wrong, and what may have been meant.
        message: String,
    },
    /// A value is out of its range.
    #[error("{0}")]
    Value(String),
}

/// What the process is to do.
pub enum Task {
    /// Run with this configuration.
    Run(Box<Loaded>),
    /// Print that the named file is good, and what it comes to.
    Checked(PathBuf, Box<Config>),
}

/// Everything that can be set, checked. One value for the whole process.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of this balancer.
    pub name: String,
    /// Where requests arrive; at least one.
    pub listeners: Vec<Listener>,
    /// Where operators look.
    pub admin: SocketAddr,
    /// Registry nodes, as full URLs.
    pub registry: Vec<String>,
    /// How endpoints are picked.
    pub picking: picker::Settings,
    /// Worker threads.
    pub workers: usize,
    /// Where the last known endpoints are kept.
    pub state_dir: Option<PathBuf>,
    /// Probes and passive judgement.
    pub health: state::Policy,
    /// How long one probe may take.
    pub probe_timeout: Duration,
    /// How instances are probed that do not say.
    pub probe_method: Probe,
    /// Status codes of a passed probe.
    pub probe_statuses: Vec<u16>,
    /// Limits of the data path.
    pub limits: Limits,
    /// Where finished requests are told of.
    pub access_log: Option<Sink>,
    /// What clients are told about the way of their requests.
    pub telling: Telling,
    /// What is traced.
    pub tracing: Option<trace::Settings>,
    /// Where requests go.
    pub routes: Arc<Routes>,
    /// A line for each configured route, for people.
    pub route_lines: Vec<String>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<String>,
}

/// What clients are told about the way of their requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Telling {
    /// Route, endpoint, attempts and the pool's age, to requests with `x-balancer-debug: 1`.
    pub debug_headers: bool,
    /// `Server-Timing`, with every response.
    pub server_timing: bool,
}

/// Limits of the data path. None is unlimited: whatever waits, waits for a bounded time.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From a connection's or a request's first byte to the end of its head. A client that sends a byte now
    /// and then must not hold a connection.
    pub header_timeout: Duration,
    /// Between requests of one connection.
    pub keep_alive: Duration,
    /// For a TCP connection to an endpoint.
    pub connect_timeout: Duration,
    /// From the end of a request to the head of its response.
    pub response_timeout: Duration,
    /// Between two pieces of a body, in either direction.
    pub body_idle: Duration,
    /// Without a byte in either direction on an upgraded connection, or without an event in a stream of them.
    pub tunnel_idle: Duration,
    /// An idle connection to an endpoint is kept this long. Shorter than what servers usually grant, so that
    /// we close first.
    pub upstream_idle: Duration,
    /// Idle connections kept per endpoint and worker.
    pub upstream_idle_max: usize,
    /// Connections of clients; further ones wait in the kernel.
    pub connections_max: usize,
    /// Read and write buffer of a connection, and so the longest request head.
    pub buffer_bytes_max: usize,
    /// How long requests in flight have when the balancer stops.
    pub drain_grace: Duration,
    /// Whether a response of 502, 503 or 504 counts as a failure of its endpoint.
    pub gateway_failures: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            header_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(30),
            body_idle: Duration::from_secs(60),
            tunnel_idle: Duration::from_secs(3600),
            upstream_idle: Duration::from_secs(30),
            upstream_idle_max: 256,
            connections_max: 16_384,
            buffer_bytes_max: 64 * 1024,
            drain_grace: Duration::from_secs(10),
            gateway_failures: false,
        }
    }
}

impl Args {
    /// Reads what the arguments point to and checks everything.
    pub fn task(self) -> Result<Task, Error> {
        match self.command {
            Some(Command::Check { file }) => {
                let config = resolve(Flags::default(), load(&file)?)?;
                Ok(Task::Checked(file, Box::new(config)))
            }
            None => {
                let default = || Path::new(FILE_DEFAULT).exists().then(|| PathBuf::from(FILE_DEFAULT));
                let file = self.flags.config.clone().or_else(default);
                Source { flags: self.flags, file }.load().map(|loaded| Task::Run(Box::new(loaded)))
            }
        }
    }
}

/// The file's keys. The first seven are the original's; their names never change.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct File {
    port: Option<u16>,
    strategy: Option<Strategy>,
    #[serde(rename = "serviceRegistryURL")]
    service_registry_url: Option<OneOrMany>,
    service_registry_type: Option<RegistryType>,
    health_check_interval: Option<Span>,
    backend_health_path: Option<String>,
    health_check_timeout: Option<Span>,

    host: Option<IpAddr>,
    listeners: Option<Vec<listeners::Keys>>,
    admin: Option<SocketAddr>,
    name: Option<String>,
    workers: Option<usize>,
    state_dir: Option<PathBuf>,
    health_check_rise: Option<u32>,
    health_check_fall: Option<u32>,
    healthy_statuses: Option<Vec<u16>>,
    header_timeout: Option<Span>,
    keep_alive_timeout: Option<Span>,
    connect_timeout: Option<Span>,
    response_timeout: Option<Span>,
    body_idle_timeout: Option<Span>,
    tunnel_idle_timeout: Option<Span>,
    drain_grace: Option<Span>,
    max_connections: Option<usize>,
    access_log: Option<String>,
    health_check_type: Option<picking::ProbeKind>,
    hash_on: Option<picking::HashKey>,
    hash_balance_factor: Option<u32>,
    sticky_secret: Option<OneOrMany>,
    zone: Option<String>,
    zone_healthy_min: Option<u32>,
    slow_start: Option<Span>,
    outlier_detection: Option<picking::OutlierFile>,
    max_requests_per_endpoint: Option<u32>,
    queue: Option<picking::QueueFile>,
    tracing: Option<Tracing>,
    debug_headers: Option<bool>,
    server_timing: Option<bool>,
    routes: Option<Vec<Spanned<schema::RouteFile>>>,

    /// Where it was read.
    #[serde(skip)]
    origin: String,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Tracing {
    endpoint: String,
    #[serde(default = "sample_ratio")]
    sample_ratio: f64,
}

fn sample_ratio() -> f64 {
    0.01
}

#[derive(Deserialize, Debug)]
#[serde(untagged, expecting = "expected a URL, a comma-separated list of them, or a list")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// The protocol that the original was told to use. Both are understood; flux picks, since every node speaks both.
#[derive(Debug)]
struct RegistryType;

impl<'de> Deserialize<'de> for RegistryType {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.to_ascii_lowercase().as_str() {
            "http" | "grpc" => Ok(RegistryType),
            _ => Err(serde::de::Error::custom(format!("serviceRegistryType is http or grpc, not {text:?}"))),
        }
    }
}

/// A duration, as Go writes it.
#[derive(Debug, Clone, Copy)]
struct Span(Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        duration::parse(&text).map(Span).map_err(serde::de::Error::custom)
    }
}

fn load(path: &Path) -> Result<File, Error> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::Read { path: name.clone(), reason: e.to_string() })?;
    parse(&name, &text)
}

fn parse(path: &str, text: &str) -> Result<File, Error> {
    if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) {
        return Ok(File::default());
    }
    let read: Result<File, _> = serde_saphyr::from_str(text);
    let file = read.map_err(|e| misplaced(path, e.location(), explain(e.without_snippet())))?;
    Ok(File { origin: path.to_owned(), ..file })
}

fn misplaced(path: &str, at: Option<Location>, message: String) -> Error {
    let at = at.filter(|l| l.line() > 0);
    let place = at.map_or(String::new(), |l| format!("{}:{}: ", l.line(), l.column()));
    Error::Parse { path: path.to_owned(), place, message }
}

fn explain(error: &serde_saphyr::Error) -> String {
    match error {
        serde_saphyr::Error::SerdeUnknownField { field, expected, .. } => {
            unknown("unknown key", field, expected)
        }
        serde_saphyr::Error::SerdeUnknownVariant { variant, expected, .. } => {
            unknown("unknown value", variant, expected)
        }
        // The place stands in front already.
        other => other.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
    }
}

fn unknown(what: &str, got: &str, expected: &[&str]) -> String {
    match closest(got, expected) {
        Some(near) => format!("{what} {got:?}, did you mean {near:?}?"),
        None => format!("{what} {got:?}; known are {}", expected.join(", ")),
    }
}

/// The candidate that differs least, if it differs in no more than a third of its letters; case is free.
fn closest<'a>(got: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let got = got.to_lowercase().replace(['-', '_'], "");
    let distance = |c: &str| edits(&got, &c.to_lowercase().replace('_', ""));
    let best = candidates.iter().copied().min_by_key(|c| distance(c))?;
    (distance(best) <= best.len() / 3).then_some(best)
}

/// Levenshtein distance, the two-row form.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

fn resolve(flags: Flags, file: File) -> Result<Config, Error> {
    let (rules, outlier) = (picking::rules(&flags, &file)?, picking::outliers(&file)?);
    let gateway_failures = picking::counts_gateway_errors(&file);
    let defaults = Limits::default();
    let span = |key: &str, span: Option<Span>, default| positive(key, span.map_or(default, |s| s.0));
    let of_routes = route::Limits {
        response_timeout: span("responseTimeout", file.response_timeout, defaults.response_timeout)?,
        body_idle: span("bodyIdleTimeout", file.body_idle_timeout, defaults.body_idle)?,
        tunnel_idle: span("tunnelIdleTimeout", file.tunnel_idle_timeout, defaults.tunnel_idle)?,
        total: None,
    };
    let picking = picking::settings(&flags, &file)?;
    let compiled = compile(&file, &picking, &of_routes)?;
    let (host, port) = (flags.host.or(file.host), flags.port.or(file.port));
    let listeners = match file.listeners {
        Some(_) if host.is_some() || port.is_some() => {
            let what = "listeners says where requests arrive, and so does port or host: leave one out";
            return Err(Error::Value(what.into()));
        }
        Some(keys) => listeners::resolve(keys)?,
        None => {
            let host = host.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            vec![Listener::plain(SocketAddr::new(host, port.unwrap_or(8080)))]
        }
    };
    let admin = flags.admin.or(file.admin);
    let urls = match (flags.registry, file.service_registry_url) {
        (Some(urls), _) | (None, Some(OneOrMany::Many(urls))) => urls,
        (None, Some(OneOrMany::One(url))) => vec![url],
        (None, None) => vec!["http://127.0.0.1:8081".to_owned()],
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let health = state::Policy::default();
    Ok(Config {
        name: flags.name.or(file.name).unwrap_or_else(|| "balancer".to_owned()),
        listeners,
        admin: admin.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8060))),
        registry: registry_urls(&urls)?,
        picking,
        routes: Arc::new(compiled.routes),
        route_lines: compiled.lines,
        warnings: compiled.warnings,
        workers: within("workers", flags.workers.or(file.workers).unwrap_or(cores.max(2)), 1, 1024)?,
        state_dir: flags.state_dir.or(file.state_dir),
        probe_timeout: span("healthCheckTimeout", file.health_check_timeout, Duration::from_secs(2))?,
        probe_method: file.health_check_type.map_or(Probe::Http, |kind| kind.0),
        probe_statuses: statuses(file.healthy_statuses.unwrap_or_else(|| vec![200]))?,
        health: state::Policy {
            interval: span("healthCheckInterval", file.health_check_interval, health.interval)?,
            health_path: health_path(file.backend_health_path.unwrap_or(health.health_path.clone()))?,
            rise: within("healthCheckRise", file.health_check_rise.unwrap_or(health.rise), 1, 100)?,
            fall: within("healthCheckFall", file.health_check_fall.unwrap_or(health.fall), 1, 100)?,
            slow_start: file.slow_start.map_or(health.slow_start, |s| s.0),
            outlier,
            rules,
            ..health
        },
        limits: Limits {
            header_timeout: span("headerTimeout", file.header_timeout, defaults.header_timeout)?,
            keep_alive: span("keepAliveTimeout", file.keep_alive_timeout, defaults.keep_alive)?,
            connect_timeout: span("connectTimeout", file.connect_timeout, defaults.connect_timeout)?,
            response_timeout: of_routes.response_timeout,
            body_idle: of_routes.body_idle,
            tunnel_idle: of_routes.tunnel_idle,
            gateway_failures,
            drain_grace: file.drain_grace.map_or(defaults.drain_grace, |s| s.0),
            connections_max: within(
                "maxConnections",
                file.max_connections.unwrap_or(defaults.connections_max),
                1,
                10_000_000,
            )?,
            ..defaults
        },
        access_log: sink(flags.access_log.or(file.access_log))?,
        telling: Telling {
            debug_headers: file.debug_headers.unwrap_or_default(),
            server_timing: file.server_timing.unwrap_or_default(),
        },
        tracing: file.tracing.map(tracing).transpose()?,
    })
}

fn tracing(Tracing { endpoint, sample_ratio }: Tracing) -> Result<trace::Settings, Error> {
    let sample_ratio = within("tracing.sampleRatio", sample_ratio, 0.0, 1.0)?;
    let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
    let is_good = |uri: &http::Uri| uri.scheme_str() == Some("http") && uri.authority().is_some();
    match url.parse().ok().filter(is_good) {
        Some(endpoint) => Ok(trace::Settings { endpoint, sample_ratio }),
        None => Err(Error::Value(format!(
            "tracing.endpoint {endpoint:?} is not a collector's address; write http://host:4318, \
             and for TLS put a collector beside this process"
        ))),
    }
}

fn sink(text: Option<String>) -> Result<Option<Sink>, Error> {
    match text.as_deref() {
        None | Some("off") => Ok(None),
        Some("stdout") => Ok(Some(Sink::Stdout)),
        Some("") => Err(Error::Value("accessLog is empty: write off, stdout or a file's path".into())),
        Some(path) => Ok(Some(Sink::File(path.into()))),
    }
}

/// The routes that `file` has; without any the one that leads everywhere.
fn compile(
    file: &File,
    picking: &picker::Settings,
    limits: &route::Limits,
) -> Result<routes::Compiled, Error> {
    let (picking, limits) = (picking.clone(), limits.clone());
    match &file.routes {
        Some(list) => routes::compile(list, &routes::Defaults { picking, limits })
            .map_err(|flaw| misplaced(&file.origin, Some(flaw.at), flaw.message)),
        None => {
            let routes = Routes::to_all(picking, limits);
            Ok(routes::Compiled { routes, lines: Vec::new(), warnings: Vec::new() })
        }
    }
}

fn positive(key: &str, value: Duration) -> Result<Duration, Error> {
    match value.is_zero() {
        true => Err(Error::Value(format!("{key} must be longer than 0"))),
        false => Ok(value),
    }
}

fn within<T: PartialOrd + fmt::Display>(key: &str, value: T, least: T, most: T) -> Result<T, Error> {
    if value < least || value > most {
        return Err(Error::Value(format!("{key} must be from {least} to {most}, not {value}")));
    }
    Ok(value)
}

fn statuses(statuses: Vec<u16>) -> Result<Vec<u16>, Error> {
    if statuses.is_empty() {
        return Err(Error::Value("healthyStatuses is empty: no backend could be healthy".into()));
    }
    statuses.into_iter().map(|s| within("healthyStatuses", s, 100, 599)).collect()
}

fn health_path(path: String) -> Result<String, Error> {
    let uri = format!("/{}", path.trim_start_matches('/'));
    match uri.parse::<http::uri::PathAndQuery>() {
        Ok(_) => Ok(uri),
        Err(_) => Err(Error::Value(format!("backendHealthPath {path:?} is not a path"))),
    }
}

/// Splits comma lists, adds `http://` where the scheme is missing (the original took `host:port` for gRPC) and
/// drops paths: the nodes are addressed, not one of their resources.
fn registry_urls(urls: &[String]) -> Result<Vec<String>, Error> {
    let parts = urls.iter().flat_map(|u| u.split(',')).map(str::trim).filter(|u| !u.is_empty());
    let urls = parts.map(registry_url).collect::<Result<Vec<_>, _>>()?;
    if urls.is_empty() {
        return Err(Error::Value("serviceRegistryURL names no registry".into()));
    }
    Ok(urls)
}

fn registry_url(text: &str) -> Result<String, Error> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Option<http::Uri> = full.parse().ok();
    match uri.as_ref().and_then(|u| Some((u.scheme_str()?, u.authority()?))) {
        Some((scheme @ ("http" | "https"), authority)) => Ok(format!("{scheme}://{authority}")),
        _ => Err(Error::Value(format!("{text:?} is not a registry URL; write http://host:port"))),
    }
}

/// The effective configuration, for `balancer check`.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = |d: Duration| humantime::format_duration(d);
        let listen = |l: &Listener| format!("{}://{}", l.scheme(), l.address);
        let listen: Vec<String> = self.listeners.iter().map(listen).collect();
        writeln!(f, "listen    {}   admin http://{}", listen.join(" "), self.admin)?;
        writeln!(f, "registry  {}", self.registry.join(", "))?;
        writeln!(f, "strategy  {}   workers {}", self.picking.strategy.name(), self.workers)?;
        writeln!(
            f,
            "probes    {} every {}, time-out {}, path {}, healthy on {:?}, rise {}, fall {}",
            self.probe_method.name(),
            span(self.health.interval),
            span(self.probe_timeout),
            self.health.health_path,
            self.probe_statuses,
            self.health.rise,
            self.health.fall,
        )?;
        write!(
            f,
            "limits    connect {}, response {}, body idle {}, drain {}, connections {}",
            span(self.limits.connect_timeout),
            span(self.limits.response_timeout),
            span(self.limits.body_idle),
            span(self.limits.drain_grace),
            self.limits.connections_max,
        )?;
        for line in &self.route_lines {
            write!(f, "\nroute     {line}")?;
        }
        for warning in &self.warnings {
            write!(f, "\nwarning   {warning}")?;
        }
        Ok(())
    }
}
