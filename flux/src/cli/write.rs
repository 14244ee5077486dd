//! Registering, deregistering, and whether an instance takes requests. Every write tells the registry who and why.

use std::time::Duration;

use clap::{Args, ValueEnum};
use http::Uri;
use tokio::time::sleep;

use super::{Failed, Session};
use crate::{
    Client, Code, Instance, RegistrationState, ShutdownOptions, Status, TTL_DEFAULT, WEIGHT_DEFAULT,
    WriteOptions,
};

/// The lease of a registration that nobody renews: long enough to look at.
const TTL_ONCE: Duration = Duration::from_secs(30);

/// A registration that is not acknowledged yet says so this often.
const STILL_TRYING_EVERY: Duration = Duration::from_secs(5);

pub(super) const REGISTER_HELP: &str = "Examples:
  registryctl register web --host 10.0.0.7 --port 8082 --keep
  registryctl register web --id web-7 --url http://10.0.0.7:8082 --ttl 1h --tag blue --meta rack=4 --why 'moved here'

Without --keep nobody renews the lease: the instance is gone after --ttl unless it sends heartbeats itself.";

/// Why, for whoever reads the history.
#[derive(Debug, Args)]
pub(super) struct Reason {
    /// Why, for people: kept with the change, at most 256 bytes.
    #[arg(long, default_value = "", hide_default_value = true)]
    why: String,
}

#[derive(Debug, Args)]
pub(super) struct Register {
    /// The service that it is an instance of.
    service: String,
    /// Unique in the whole registry [default: SERVICE-HOST-PORT]. Registering a known id replaces its record.
    #[arg(long)]
    id: Option<String>,
    /// Where it runs [default: the URL's].
    #[arg(long)]
    host: Option<String>,
    /// Where it listens [default: the URL's].
    #[arg(long)]
    port: Option<u16>,
    /// Requests go to this URL + path [default: http://HOST:PORT].
    #[arg(long)]
    url: Option<String>,
    /// Path of the health probe [default: the balancer's].
    #[arg(long, default_value = "", hide_default_value = true)]
    health_path: String,
    /// How long the registration lives without a heartbeat, 3s to 1h [default: 30s; with --keep 10s].
    #[arg(long, value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// Its share of traffic relative to the others.
    #[arg(long, default_value_t = WEIGHT_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=1000))]
    weight: u32,
    /// For balancers that prefer their own zone.
    #[arg(long, default_value = "", hide_default_value = true)]
    zone: String,
    /// Of the program.
    #[arg(long, default_value = "", hide_default_value = true)]
    version: String,
    /// A word to select by; may be given again.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// An entry of the metadata; may be given again.
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = key_value)]
    metadata: Vec<(String, String)>,
    /// What it is registered as.
    #[arg(long, value_enum, default_value = "up")]
    status: StatusName,
    /// Only if nothing is registered under the id; exit code 6 if something is.
    #[arg(long, conflicts_with = "keep")]
    if_absent: bool,
    /// Stay: renew the lease and register again if it is lost, until interrupted; then drain and deregister.
    #[arg(long)]
    keep: bool,
    /// With --keep: how long it is draining before it is deregistered; at least 500ms.
    #[arg(long, default_value = "500ms", value_parser = humantime::parse_duration, requires = "keep")]
    drain: Duration,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Debug, Args)]
pub(super) struct Deregister {
    #[command(flatten)]
    mark: Mark,
}

#[derive(Debug, Args)]
pub(super) struct SetStatus {
    #[command(flatten)]
    pub(super) mark: Mark,
    /// What it is to be.
    #[arg(value_enum)]
    pub(super) status: StatusName,
}

/// An instance, and perhaps which incarnation of it.
#[derive(Debug, Args)]
pub(super) struct Mark {
    /// The instance.
    id: String,
    /// Only the incarnation that was registered at this revision; exit code 6 if it has been replaced.
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(u64).range(1..))]
    reg_rev: Option<u64>,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum StatusName {
    /// Takes requests.
    Up,
    /// Finishes what is in flight, takes nothing new.
    Draining,
    /// Stays registered, takes nothing.
    Maintenance,
}

impl From<StatusName> for Status {
    fn from(name: StatusName) -> Status {
        match name {
            StatusName::Up => Status::Up,
            StatusName::Draining => Status::Draining,
            StatusName::Maintenance => Status::Maintenance,
        }
    }
}

impl Register {
    /// Whether it goes on until it is interrupted.
    pub(super) fn keeps(&self) -> bool {
        self.keep
    }

    /// The instance: what is not said is taken from the URL, or the URL from what is said.
    fn instance(&self) -> Result<Instance, Failed> {
        let usage = |what: String, hint: &str| Failed::Usage { what, hint: hint.to_owned() };
        let url = self.url.as_deref().map(|url| {
            let parsed = url.parse::<Uri>().ok().filter(|uri| uri.scheme().is_some());
            parsed.ok_or_else(|| usage(format!("--url {url:?} is no URL"), "such as http://10.0.0.7:8082"))
        });
        let url = url.transpose()?;
        let host = self.host.clone().or_else(|| Some(url.as_ref()?.host()?.to_owned()));
        let port = self.port.or_else(|| port_of(url.as_ref()?));
        let (Some(host), Some(port)) = (host, port) else {
            return Err(usage(
                "it is not said where the instance is".to_owned(),
                "give --host and --port, or --url http://HOST:PORT",
            ));
        };
        let mut instance = Instance::new(&self.service, host, port);
        instance.id = self.id.clone().unwrap_or(instance.id);
        instance.url = self.url.clone().unwrap_or(instance.url);
        instance.health_path.clone_from(&self.health_path);
        instance.ttl = self.ttl.unwrap_or(if self.keep { TTL_DEFAULT } else { TTL_ONCE });
        instance.weight = self.weight;
        instance.zone.clone_from(&self.zone);
        instance.version.clone_from(&self.version);
        instance.tags.clone_from(&self.tags);
        instance.metadata = self.metadata.iter().cloned().collect();
        instance.status = self.status.into();
        Ok(instance)
    }
}

fn port_of(url: &Uri) -> Option<u16> {
    url.port_u16().or_else(|| match url.scheme_str() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    })
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("is not KEY=VALUE".to_owned()),
    }
}

fn because(client: &Client, reason: &Reason) -> Client {
    client.because(reason.why.as_str())
}

pub(super) async fn register(session: &mut Session<'_>, what: &Register) -> Result<(), Failed> {
    let instance = what.instance()?;
    let options = WriteOptions { expected_revision: what.if_absent.then_some(0), ..Default::default() };
    let answer = because(&session.client, &what.reason).put(&instance, options).await.map_err(|error| {
        let failed = format!("cannot register {:?}", instance.id);
        let hint = match error.code() {
            Code::Precondition => format!(
                "to replace it leave --if-absent out; `registryctl instances {}` shows it",
                instance.service
            ),
            _ => String::new(),
        };
        Failed::Call { what: failed, error, hint }
    })?;
    session.print(&session.output.instance(&answer))?;
    let ttl = humantime::format_duration(answer.value.ttl);
    session.say(&format!("{} is gone in {ttl} unless heartbeats come; --keep sends them", answer.value.id));
    Ok(())
}

/// Registers, stays registered until stopped, then leaves in order.
pub(super) async fn keep(session: &mut Session<'_>, what: &Register) -> Result<(), Failed> {
    let instance = what.instance()?;
    let id = instance.id.clone();
    let stop = session.stop.clone();
    let client = because(&session.client, &what.reason);
    let registering = client.register(instance);
    tokio::pin!(registering);
    let registration = loop {
        tokio::select! {
            registered = &mut registering => {
                break registered.map_err(|error| Failed::call(format!("cannot register {id:?}"), error))?;
            }
            () = sleep(STILL_TRYING_EVERY) => {
                session.say(&format!("{id} is not registered yet, still trying at {}", session.endpoints.join(", ")));
            }
            () = stop.cancelled() => return Err(Failed::Interrupted),
        }
    };
    session.print(&session.output.kept(&registration.instance()))?;
    let mut states = registration.state();
    loop {
        let state = states.borrow_and_update().clone();
        match state {
            RegistrationState::Registered { reg_rev } => {
                session.say(&format!("{id} is registered at revision {reg_rev}"))
            }
            RegistrationState::Lost { reason } => {
                session.say(&format!("{id} is not acknowledged, trying again: {reason}"))
            }
            RegistrationState::Draining | RegistrationState::Stopped => {}
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { break },
            () = stop.cancelled() => break,
        }
    }
    session.say(&format!("{id} is draining for {}", humantime::format_duration(what.drain)));
    registration.shutdown(ShutdownOptions { drain: what.drain }).await.map_err(|error| Failed::Call {
        what: format!("cannot deregister {id:?}"),
        error,
        hint: "its lease runs out by itself".to_owned(),
    })?;
    session.say(&format!("{id} is deregistered"));
    Ok(())
}

pub(super) async fn deregister(session: &mut Session<'_>, what: &Deregister) -> Result<(), Failed> {
    let Mark { id, reg_rev, reason } = &what.mark;
    let answer = because(&session.client, reason).deregister(id, *reg_rev).await;
    let answer = answer.map_err(|error| failed(format!("cannot deregister {id:?}"), error))?;
    if !answer.value {
        return Err(not_registered(id));
    }
    session.print(&session.output.deregistered(id, &answer))
}

pub(super) async fn set_status(session: &mut Session<'_>, mark: &Mark, status: Status) -> Result<(), Failed> {
    let Mark { id, reg_rev, reason } = mark;
    let answer = because(&session.client, reason).set_status(id, status, *reg_rev).await;
    let answer = answer.map_err(|error| match error.code() {
        Code::NotFound => not_registered(id),
        _ => failed(format!("cannot mark {id:?} {}", status.as_str()), error),
    })?;
    session.print(&session.output.instance(&answer))
}

fn not_registered(id: &str) -> Failed {
    let hint = "try `registryctl instances` for what is registered".to_owned();
    Failed::NotFound { what: format!("{id:?} is not registered"), hint }
}

fn failed(what: String, error: crate::Error) -> Failed {
    let hint = match error.code() {
        Code::Superseded => "leave --reg-rev out to act on whichever incarnation is there",
        _ => "",
    };
    Failed::Call { what, error, hint: hint.to_owned() }
}
