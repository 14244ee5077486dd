//! The SDK a service embeds: register, stay registered, discover, follow changes, leave without failing a
//! request.
//!
//! ```no_run
//! use flux::{Client, Instance, ShutdownOptions, View};
//!
//! # async fn example() -> Result<(), flux::Error> {
//! let client = Client::connect(["http://127.0.0.1:8081", "http://127.0.0.1:8181"])?;
//! let registration = client.register(Instance::new("hello", "10.0.0.1", 8082)).await?;
//!
//! let (mut watch, mut view) = (client.watch(Some("pay")), View::default());
//! view.apply(&watch.next().await);
//!
//! registration.shutdown(ShutdownOptions::default()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # How it is built
//!
//! Decisions are plain code without I/O: whom to ask next (`leader_hint`), what a message of a watch means
//! (`watch::cursor`), what the holder then holds ([`View`]), when to beat or to register again
//! (`registration::lease`). Around them: `calls` goes from node to node until one answers, `transport` finds the
//! protocol that gets through, `registration` and `watch` are one task each. Facts flow one way; nothing here
//! knows how the registry works.

mod backoff;
mod calls;
#[cfg(feature = "cli")]
pub mod cli;
mod client;
mod env;
mod error;
mod instance;
mod leader_hint;
mod metrics;
mod pipeline;
mod registration;
mod transport;
mod view;
mod watch;

pub use client::{
    Answer, Backup, Builder, Change, Client, History, Member, NodeStatus, Role, ServiceSummary, WriteOptions,
};
pub use error::{Code, Error};
pub use instance::{Instance, Status, TTL_DEFAULT, WEIGHT_DEFAULT};
pub use pipeline::Pipeline;
pub use registration::{DRAIN_MIN, Registration, RegistrationState, ShutdownOptions};
pub use transport::Transport;
pub use view::View;
pub use watch::{Event, EventKind, Update, Watch, WatchStatus};
