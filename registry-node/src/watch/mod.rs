//! Following changes: the ring of recent events and the cursors that read it.

mod history;
mod hub;
mod topic;

pub use self::{
    history::{Batch, History, Slice},
    hub::{Changes, Crowded, Effect, Hub, Past, Update, Watcher},
    topic::{Shared, Snapshot},
};
