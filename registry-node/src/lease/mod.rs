//! The right to stay registered: deadlines in the leader's memory, renewed by heartbeats, never in the log.

mod keeper;
mod lessor;

pub use self::{
    keeper::{Beat, Keeper},
    lessor::{BrakeState, Lessor, Renewal},
};
