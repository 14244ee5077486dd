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
}

pub(super) async fn services(session: &mut Session<'_>) -> Result<(), Failed> {
    let answer = session.client.services().await;
    let answer = answer.map_err(|error| Failed::call("cannot list services", error))?;
    session.print(&session.output.services(&answer))
}

pub(super) async fn instances(session: &mut Session<'_>, what: &Instances) -> Result<(), Failed> {
    let answer = session.client.list(what.service.as_deref()).await;
    let answer = answer.map_err(|error| Failed::call("cannot list instances", error))?;
    if let (Some(service), true) = (&what.service, answer.value.is_empty()) {
        let hint = "try `registryctl services` for what is registered".to_owned();
        let what = format!("no instance of service {service:?} is registered");
        return Err(Failed::NotFound { what, hint });
    }
    session.print(&session.output.instances(&answer))
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
