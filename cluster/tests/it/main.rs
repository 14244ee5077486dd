//! The whole system as its users see it: real processes, real ports of the loopback address, real signals.
//!
//! Tests that start a cluster run one after another: each wants the machine for itself. What a cluster wrote stays
//! under the target directory (`tmp/<test>`) until the test runs again, so that a failure can be read.

mod backend;
mod blocked;
mod faults;
mod lifecycle;
mod load;
mod promql;
mod restarts;
mod scrape;
mod support;
