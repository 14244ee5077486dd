//! The `registry-node` program; everything is in the library.

use std::process::ExitCode;

use clap::Parser;
use tikv_jemallocator::Jemalloc;

/// A registry keeps many small strings for long, and frees them from other threads than those that made them.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    registry_node::main(registry_node::Args::parse())
}
