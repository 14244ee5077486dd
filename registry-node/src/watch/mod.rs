//! Following changes: the ring of recent events and the cursors that read it.

mod history;
mod hub;

pub use self::{
    history::{Batch, History, Slice},
    hub::{Changes, Effect, Hub, Past, Update, Watcher},
};
