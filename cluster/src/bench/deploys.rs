//! `cluster bench deploys`: what becomes of requests while everything that serves them is killed, restarted and
//! reconfigured.
//!
//! A whole system on this machine: three nodes, two balancers, three backends that register through flux. Clients ask
//! one of the balancers for as long as its connection lasts, and the other when it does not; what a client is told counts
//! as it is. Only a connection that ends before a response has begun, while balancers are restarted, is asked again, as
//! every client does that reconnects.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use proto::registry::v1 as pb;
use proto::registry::v1::registry_client::RegistryClient;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};

use super::{
    etcd::connect,
    machine,
    report::{Bound, Line, Report},
};
use crate::{Cluster, Kind, Options, Ports, http};

/// What to do, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Requests a second, over both balancers.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(100..=20_000))]
    rate: u32,
    /// How long services come and go while the configuration is replaced, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Fail if a request does.
    #[arg(long)]
    pub check: bool,
}

const CLIENTS: u32 = 64;

/// No answer takes as long, and no client reconnects for longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// For a balancer to have noticed who came.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Registrations and deregistrations are this far apart: a hundred a second.
const CHANGE_EVERY: Duration = Duration::from_millis(10);

/// Between two configurations.
const RELOAD_EVERY: Duration = Duration::from_secs(1);

/// Shown at most.
const SHOWN_MAX: usize = 3;

const SECTION: &str = "failed requests";

/// What clients have seen in one phase.
#[derive(Debug, Default)]
struct Tally {
    answered: AtomicU64,
    /// Responses that had begun and did not end.
    broken_off: AtomicU64,
    failed: AtomicU64,
    first: Mutex<Vec<String>>,
    /// Balancers are restarted: connections may end between responses.
    reconnects: bool,
    /// Backends are killed: what they had begun to say ends with them.
    may_break_off: bool,
}

impl Tally {
    fn fail(&self, why: String) {
        self.failed.fetch_add(1, Relaxed);
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.len() < SHOWN_MAX {
            first.push(why);
        }
    }
}

/// What a phase does to clients by its nature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allowed {
    Nothing,
    Reconnecting,
    BreakingOff,
}

/// How one request ended.
enum Ended {
    Answered,
    BrokeOff,
    /// Nothing of a response came.
    Lost(String),
    Refused(String),
}

type Sender = http1::SendRequest<Empty<Bytes>>;

async fn open(address: &str) -> Result<Sender> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn ask(kept: &mut Option<Sender>, address: &str) -> Ended {
    let mut sender = match kept.take() {
        Some(sender) => sender,
        None => match open(address).await {
            Ok(sender) => sender,
            Err(error) => return Ended::Lost(format!("{address}: {error:#}")),
        },
    };
    let request = Request::get("/").header("host", "hello").body(Empty::new()).expect("a valid request");
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        Err(error) => return Ended::Lost(format!("{address}: {error}")),
    };
    let status = response.status();
    let Ok(body) = response.into_body().collect().await else { return Ended::BrokeOff };
    if status != StatusCode::OK {
        return Ended::Refused(format!("{address}: {status} {}", String::from_utf8_lossy(&body.to_bytes())));
    }
    if sender.ready().await.is_ok() {
        *kept = Some(sender);
    }
    Ended::Answered
}

/// One client, which has a turn each `every`.
async fn client(nth: u32, balancers: Vec<String>, every: Duration, tally: Arc<Mutex<Arc<Tally>>>) {
    let mut at = nth as usize % balancers.len();
    let mut kept = None;
    let mut turns = tokio::time::interval_at(Instant::now() + every * nth / CLIENTS, every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        turns.tick().await;
        let tally = tally.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let begun = Instant::now();
        loop {
            let ended = tokio::time::timeout(PATIENCE, ask(&mut kept, &balancers[at])).await;
            match ended.unwrap_or_else(|_| Ended::Refused(format!("{}: no answer", balancers[at]))) {
                Ended::Answered => {
                    tally.answered.fetch_add(1, Relaxed);
                }
                Ended::BrokeOff if tally.may_break_off => {
                    tally.broken_off.fetch_add(1, Relaxed);
                }
                Ended::BrokeOff => tally.fail(format!("{}: broke off within a response", balancers[at])),
                Ended::Lost(_) if tally.reconnects && begun.elapsed() < PATIENCE => {
                    at = (at + 1) % balancers.len();
                    continue;
                }
                Ended::Lost(why) | Ended::Refused(why) => tally.fail(why),
            }
            break;
        }
    }
}

/// One run.
struct Run<'a> {
    args: &'a Args,
    note: fn(&str),
    cluster: Box<Cluster>,
    config: PathBuf,
    /// What the current phase has seen.
    tally: Arc<Mutex<Arc<Tally>>>,
    report: Report,
    begun: Instant,
}

/// Does what `args` ask for.
pub(super) async fn run(args: &Args, note: fn(&str)) -> Result<Report> {
    if cfg!(debug_assertions) {
        note("this is no release build: it may not keep up; use `cargo cluster bench`");
    }
    let dir = tempfile::Builder::new().prefix("flux-bench-").tempdir().context("no temporary directory")?;
    let config = dir.path().join("balancer.yaml");
    write_config(&config, 0)?;
    let options = Options {
        dir: Some(dir.path().join("cluster")),
        ports: Ports::Free,
        balancer_args: vec!["--config".into(), config.display().to_string()],
        ..Options::default()
    };
    let load = machine::load_average();
    let cluster = Box::new(Box::pin(Cluster::launch(options)).await?);
    let report = Report { cores: machine::cores(), ..Report::default() };
    let mut run = Run { args, note, cluster, config, tally: Arc::default(), report, begun: Instant::now() };
    run.report.load.push(("before".into(), load));
    if let Err(error) = run.phases().await {
        run.report.failed.push(format!("{error:#}"));
    }
    run.report.load.push(("after".into(), machine::load_average()));
    run.report.method = vec![format!(
        "three nodes, two balancers, three backends and {CLIENTS} clients share the machine; {} requests a second",
        args.rate
    )];
    run.report.seconds = run.begun.elapsed().as_secs_f64();
    Box::pin(run.cluster.shutdown()).await?;
    Ok(run.report)
}

/// The `nth` configuration: each differs from the one before.
fn write_config(path: &Path, nth: u64) -> Result<()> {
    let routes = format!(
        "routes:\n- {{match: {{path: /number-{nth}}}, service: nobody}}\n\
         - {{service: hello, responseHeaders: {{set: {{x-number: '{nth}'}}}}}}\n"
    );
    // As whole as a reader may ever see it.
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, routes)?;
    Ok(std::fs::rename(&fresh, path)?)
}

impl Run<'_> {
    async fn phases(&mut self) -> Result<()> {
        let specs = self.cluster.specs()?;
        let named = |is: fn(&Kind) -> bool| -> Vec<String> {
            specs.iter().filter(|spec| is(&spec.kind)).map(|spec| spec.name.clone()).collect()
        };
        let backends = named(|kind| matches!(kind, Kind::Backend { .. }));
        let balancers = named(|kind| matches!(kind, Kind::Balancer { .. }));
        let addresses: Vec<String> = specs
            .iter()
            .filter_map(|spec| match &spec.kind {
                Kind::Balancer { http, .. } => Some(http.trim_start_matches("http://").to_owned()),
                _ => None,
            })
            .collect();
        let mut clients = JoinSet::new();
        let every = Duration::from_secs(1) * CLIENTS / self.args.rate;
        for nth in 0..CLIENTS {
            clients.spawn(client(nth, addresses.clone(), every, self.tally.clone()));
        }
        self.phase("nothing happens", Allowed::Nothing, async |me| me.rest(3).await).await?;
        self.phase("each backend is killed, and comes back", Allowed::BreakingOff, async |me| {
            for name in &backends {
                me.cluster.kill(name).await?;
                me.rest(2).await?;
                me.back(name).await?;
            }
            Ok(())
        })
        .await?;
        self.phase("each backend is restarted", Allowed::Nothing, async |me| {
            for name in &backends {
                me.cluster.stop(name).await?;
                me.back(name).await?;
            }
            Ok(())
        })
        .await?;
        self.phase("each balancer is restarted", Allowed::Reconnecting, async |me| {
            for name in &balancers {
                me.cluster.stop(name).await?;
                me.back(name).await?;
            }
            me.rest(1).await
        })
        .await?;
        self.phase("services come and go, the configuration is replaced", Allowed::Nothing, async |me| {
            me.come_and_go().await
        })
        .await?;
        clients.abort_all();
        Ok(())
    }

    /// Does `what` while requests go on, and says how they ended.
    async fn phase(
        &mut self,
        what: &str,
        allowed: Allowed,
        does: impl AsyncFnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let tally = Arc::new(Tally {
            reconnects: allowed == Allowed::Reconnecting,
            may_break_off: allowed == Allowed::BreakingOff,
            ..Tally::default()
        });
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner) = tally.clone();
        let begun = Instant::now();
        let done =
            tokio::time::timeout(READY_WITHIN * 4 + Duration::from_secs(self.args.seconds), does(self));
        done.await.with_context(|| format!("{what}: it takes too long"))?.with_context(|| what.to_owned())?;
        let (failed, answered) = (tally.failed.load(Relaxed), tally.answered.load(Relaxed));
        let mut shown =
            format!("{answered} answered at {:.0} /s", answered as f64 / begun.elapsed().as_secs_f64());
        if tally.broken_off.load(Relaxed) > 0 {
            shown += &format!(", {} broke off within a response", tally.broken_off.load(Relaxed));
        }
        for why in tally.first.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            shown += &format!("; {why}");
        }
        if answered == 0 {
            bail!("{what}: nothing was answered: {shown}");
        }
        let line = Line::info(SECTION, what, vec![failed as f64], "");
        self.report.lines.push(line.held_to(Bound::AtMost { must: 0.0, goal: 0.0 }).with(shown));
        (self.note)(&format!("{:5.1} s  {what}", self.begun.elapsed().as_secs_f64()));
        Ok(())
    }

    async fn rest(&mut self, seconds: u64) -> Result<()> {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Ok(())
    }

    /// Starts `name` and waits until every balancer has all of the backends again.
    async fn back(&mut self, name: &str) -> Result<()> {
        self.cluster.start(name).await?;
        self.cluster.wait_ready_of(&[name]).await?;
        let end = Instant::now() + READY_WITHIN;
        while Instant::now() < end {
            let status = self.cluster.status().await?;
            let full = |b: &crate::BalancerStatus| b.ready_endpoints == status.backends.len() as u64;
            if status.balancers.iter().all(full) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("{name} is not in rotation within {READY_WITHIN:?}")
    }

    /// Instances of another service come and go, and the configuration is replaced, all the time.
    async fn come_and_go(&mut self) -> Result<()> {
        let specs = self.cluster.specs()?;
        let grpc = specs.iter().find_map(|spec| match &spec.kind {
            Kind::Node { grpc, .. } => Some(grpc.clone()),
            _ => None,
        });
        let backend = specs.iter().find_map(|spec| match &spec.kind {
            Kind::Backend { url, .. } => Some(url.clone()),
            _ => None,
        });
        let mut registry = RegistryClient::new(connect(&grpc.context("no node runs")?).await?);
        let url = backend.context("no backend runs")?;
        let begun = Instant::now();
        let mut ticks = tokio::time::interval(CHANGE_EVERY);
        let mut reloads = 0;
        while begun.elapsed() < Duration::from_secs(self.args.seconds) {
            if begun.elapsed() >= RELOAD_EVERY * (reloads + 1) {
                reloads += 1;
                write_config(&self.config, reloads.into())?;
            }
            // In the service that is asked for: they answer as its backends do.
            let instance = pb::Instance {
                id: format!("guest-{}", reloads % 10),
                service: "hello".into(),
                url: url.clone(),
                ttl_ms: 60_000,
                ..pb::Instance::default()
            };
            ticks.tick().await;
            let id = instance.id.clone();
            let request = pb::RegisterRequest { instance: Some(instance), ..pb::RegisterRequest::default() };
            registry.register(request).await.context("cannot register")?;
            ticks.tick().await;
            let request = pb::DeregisterRequest { id, ..pb::DeregisterRequest::default() };
            registry.deregister(request).await.context("cannot deregister")?;
        }
        // A phase in which nothing was replaced would have shown nothing.
        for spec in specs.iter().filter(|spec| matches!(spec.kind, Kind::Balancer { .. })) {
            let answer = http::get(&spec.kind.metrics_url(), PATIENCE).await?;
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            let name = "balancer_config_generation ";
            let generation = text.lines().find_map(|line| line.strip_prefix(name)?.parse::<f64>().ok());
            if generation.is_none_or(|generation| generation < f64::from(reloads / 2)) {
                bail!("{} has had {generation:?} configurations, of {reloads}", spec.name);
            }
        }
        Ok(())
    }
}
