//! What is registered: now, and as it changes.

use std::time::Duration;

use clap::Args;

use super::{Failed, Session};
use crate::Update;

/// A watch that is not connected says so this often.
const STILL_TRYING_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Instances {
    /// Only of this service; exit code 3 if it has none.
    service: Option<String>,
    /// As they were right after this revision, if the answering node still remembers it.
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(u64).range(1..))]
    at: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct History {
    /// The instance's id, registered or not.
    instance: String,
    /// At most so many of the newest changes.
    #[arg(long, default_value = "100", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

pub(super) async fn services(session: &mut Session<'_>) -> Result<(), Failed> {
    let answer = session.client.services().await;
    let answer = answer.map_err(|error| Failed::call("cannot list services", error))?;
    session.print(&session.output.services(&answer))
}

pub(super) async fn instances(session: &mut Session<'_>, what: &Instances) -> Result<(), Failed> {
    let service = what.service.as_deref();
    let answer = match what.at {
        None => session.client.list(service).await,
        Some(revision) => session.client.list_at(service, revision).await,
    };
    let answer = answer.map_err(|error| Failed::call("cannot list instances", error))?;
    if let (Some(service), true) = (&what.service, answer.value.is_empty()) {
        let hint = "try `registryctl services` for what is registered".to_owned();
        let when =
            what.at.map_or("is registered".to_owned(), |at| format!("was registered at revision {at}"));
        let what = format!("no instance of service {service:?} {when}");
        return Err(Failed::NotFound { what, hint });
    }
    session.print(&session.output.instances(&answer))
}

pub(super) async fn history(session: &mut Session<'_>, what: &History) -> Result<(), Failed> {
    let History { instance, limit } = what;
    let answer = session.client.history(instance, *limit).await;
    let answer =
        answer.map_err(|error| Failed::call(format!("cannot show the history of {instance:?}"), error))?;
    let crate::History { instance: now, changes, more, compact_revision } = &answer.value;
    if now.is_none() && changes.is_empty() {
        let what = format!(
            "{instance:?} is not registered, and nothing is known of it since revision {compact_revision}"
        );
        let hint = "try `registryctl instances` for what is registered".to_owned();
        return Err(Failed::NotFound { what, hint });
    }
    session.print(&session.output.history(&answer))?;
    match now {
        _ if *more => session.say(&format!("older changes are left out: more with --limit, now {limit}")),
        Some(now) if changes.is_empty() => session.say(&format!(
            "its last change, at revision {}, is older than what this node remembers (since revision \
             {compact_revision})",
            now.mod_rev
        )),
        _ => {}
    }
    Ok(())
}

pub(super) async fn watch(session: &mut Session<'_>, service: &str) -> Result<(), Failed> {
    let mut watch = session.client.watch(Some(service));
    let status = watch.status();
    let stop = session.stop.clone();
    let mut first = true;
    loop {
        tokio::select! {
            update = watch.next() => {
                session.print(&session.output.update(&update, first))?;
                first &= matches!(update, Update::Progress { .. });
            }
            () = tokio::time::sleep(STILL_TRYING_EVERY) => {
                let endpoint = status.borrow().endpoint.clone();
                session.say(&format!("no node answers, still trying (last {endpoint})"));
            }
            () = stop.cancelled() => return Ok(()),
        }
    }
}
