//! The balancer as a program of its own.

fn main() -> std::process::ExitCode {
    balancer::main(clap::Parser::parse())
}
