//! The sample backend: a small HTTP service that registers itself through flux, for trying things and for tests.
//!
//! ```text
//! mod.rs      arguments; start and stop in order
//! serve.rs    accept loops with a deadline for what is in flight
//! routes.rs   what it answers
//! metrics.rs  what it counts
//! ```

mod metrics;
mod routes;
mod serve;

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use flux::{Client, Instance, Registration, ShutdownOptions, Status};
use tokio::{
    net::{TcpListener, lookup_host},
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use metrics::Metrics;

/// From saying that it drains to taking no more connections: balancers hear of it within this.
const DRAIN: Duration = Duration::from_millis(500);
/// What is still in flight then is cut off.
const IN_FLIGHT_GRACE: Duration = Duration::from_secs(4);
/// Without a registry the lease expires by itself; leaving does not wait for one.
const LEAVE_WITHIN: Duration = Duration::from_secs(3);

/// Arguments of the sample backend. The variables are those of the SDK.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "backend", about = "A sample service that registers itself")]
pub struct Args {
    /// The service it belongs to.
    #[arg(long, env = "SERVICE_NAME", default_value = "hello")]
    pub service: String,
    /// Listens here, and registers it as its host.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Port for requests; 0 picks one.
    #[arg(long, env = "PORT", default_value_t = 8082)]
    pub port: u16,
    /// Port for /metrics; 0 picks one.
    #[arg(long, env = "METRICS_PORT", default_value_t = 9092)]
    pub metrics_port: u16,
    /// URLs of registry nodes, separated by commas.
    #[arg(long, env = "REGISTRY_URL", default_value = "http://127.0.0.1:8081", value_delimiter = ',')]
    pub registry: Vec<String>,
    /// How long the registration outlives the last heartbeat; at least 3000.
    #[arg(long, default_value_t = 10_000)]
    pub ttl_ms: u64,
    /// Share of traffic relative to others.
    #[arg(long, default_value_t = 100)]
    pub weight: u32,
    /// Registers this version.
    #[arg(long, default_value = "")]
    pub version: String,
}

/// Serves until SIGTERM or SIGINT, then leaves without failing a request.
pub fn main(args: Args) -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("cannot build a runtime").and_then(|runtime| runtime.block_on(run(args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let mut signals = Signals::new()?;
    let metrics = Arc::new(Metrics::new()?);
    let http = bind(&args.host, args.port).await?;
    let scrape = bind(&args.host, args.metrics_port).await?;
    let instance = instance(&args, http.local_addr()?.port());
    let client = Client::builder(&args.registry).name(&instance.id).metrics(&metrics.registry).build()?;
    info!(instance = instance.id, http = %http.local_addr()?, metrics = %scrape.local_addr()?, "listening");

    let (tasks, stopping, ended) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
    let state = routes::Shared { instance: instance.id.as_str().into(), metrics, stopping: stopping.clone() };
    let serving =
        tasks.spawn(serve::serve(http, routes::service(state.clone()), stopping.clone(), IN_FLIGHT_GRACE));
    tasks.spawn(serve::serve(scrape, routes::scrape(state), ended.clone(), Duration::ZERO));
    tasks.close();

    let registration = tokio::select! {
        registration = client.register(instance) => Some(registration.context("the registry refuses this instance")?),
        () = signals.recv() => None,
    };
    if let Some(registration) = &registration {
        signals.recv().await;
        announce(registration).await;
    }
    info!("stopping");
    stopping.cancel();
    // It ends when nothing is in flight; the lease is held until then.
    serving.await.context("serving failed")?;
    if let Some(registration) = &registration {
        leave(registration).await;
    }
    ended.cancel();
    tasks.wait().await;
    info!("stopped");
    Ok(())
}

fn instance(args: &Args, port: u16) -> Instance {
    Instance::new(&args.service, &args.host, port)
        .id(format!("{}-{}-{port}", args.service, args.host))
        .url(format!("http://{}:{port}", args.host))
        .health_path("/health")
        .ttl(Duration::from_millis(args.ttl_ms))
        .weight(args.weight)
        .version(&args.version)
}

async fn bind(host: &str, port: u16) -> Result<TcpListener> {
    let address: SocketAddr = lookup_host((host, port))
        .await
        .with_context(|| format!("cannot resolve {host}"))?
        .next()
        .with_context(|| format!("{host} has no address"))?;
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

async fn announce(registration: &Registration) {
    match timeout(LEAVE_WITHIN, registration.set_status(Status::Draining)).await {
        Ok(Ok(())) => tokio::time::sleep(DRAIN).await,
        Ok(Err(error)) => warn!(%error, "could not announce that it drains"),
        Err(_) => warn!("could not announce that it drains: the registry does not answer"),
    }
}

async fn leave(registration: &Registration) {
    match timeout(LEAVE_WITHIN, registration.shutdown(ShutdownOptions::default())).await {
        Ok(Ok(())) => info!("deregistered"),
        Ok(Err(error)) => warn!(%error, "not deregistered: the lease expires by itself"),
        Err(_) => warn!("not deregistered, the registry does not answer: the lease expires by itself"),
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals { terminate: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())? })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}
