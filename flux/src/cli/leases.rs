//! Leases, from the operator's side: letting go of what the registry holds back because it is so much.

use clap::Subcommand;

use super::{Failed, Session};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lets the leases expire at once that have run out and are held back because they are so many. For when you
    /// know that those instances are really gone, and no broken network hides them. What runs out later is held
    /// back again if it is as much.
    Release,
}

pub(super) async fn run(session: &mut Session<'_>, command: &Command) -> Result<(), Failed> {
    match command {
        Command::Release => {
            let answer = session.client.release_leases().await;
            let answer = answer.map_err(|error| Failed::call("cannot release leases", error))?;
            session.print(&session.output.released(&answer))
        }
    }
}
