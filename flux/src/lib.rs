//! The SDK a service embeds: register, stay registered, discover, follow changes, leave without a trace.

mod backoff;
mod calls;
mod client;
mod env;
mod error;
mod instance;
mod leader_hint;
mod metrics;
mod registration;
mod transport;
mod view;
mod watch;

pub use client::{Answer, Builder, Client, Member, NodeStatus, Role, ServiceSummary, WriteOptions};
pub use error::{Code, Error};
pub use instance::{Instance, Status, TTL_DEFAULT, WEIGHT_DEFAULT};
pub use registration::{DRAIN_MIN, Registration, RegistrationState, ShutdownOptions};
pub use transport::Transport;
pub use view::View;
pub use watch::{Event, EventKind, Update, Watch, WatchStatus};
