//! `cluster`: starts a whole system on one machine and looks after it. See README.md.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// As in the programs that it runs.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    cluster::role_main().unwrap_or_else(cluster::cli::main)
}
