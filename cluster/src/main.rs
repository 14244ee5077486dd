//! `cluster`: starts a whole system on one machine and looks after it. See README.md.

use std::process::ExitCode;

fn main() -> ExitCode {
    cluster::role_main().unwrap_or_else(cluster::cli::main)
}
