//! The `registry-node` program; everything is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    registry_node::main(registry_node::Args::parse())
}
