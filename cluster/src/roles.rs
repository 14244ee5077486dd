//! What the program becomes when it is started as one process of a cluster, and how that process knows that its owner
//! is gone.

use std::{ffi::OsString, io::Read as _, process::ExitCode, time::Duration};

use clap::Parser;
use nix::{sys::signal::Signal, unistd};

use crate::{
    backend,
    process::{DETACHED_ENV, LIFELINE_ENV},
};

/// How long a process without an owner may take to stop by itself.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);

/// Runs the role that the command line asks for (`node`, `balancer` or `backend`), and returns its exit code; `None` if
/// it asks for none. Call it first in `main`: there must be no runtime and no other thread yet.
pub fn role_main() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    match args.next()?.to_str()? {
        "node" => Some(run("registry-node", args, registry_node::main)),
        "balancer" => Some(run("balancer", args, balancer::main)),
        "backend" => Some(run("backend", args, backend::main)),
        _ => None,
    }
}

fn run<A: Parser>(name: &str, args: impl Iterator<Item = OsString>, main: fn(A) -> ExitCode) -> ExitCode {
    let args = A::parse_from(std::iter::once(name.into()).chain(args));
    if std::env::var_os(LIFELINE_ENV).is_some() {
        std::thread::Builder::new()
            .name("lifeline".into())
            .spawn(follow_owner)
            .expect("a first thread can be made");
    }
    if std::env::var_os(DETACHED_ENV).is_some() {
        // Fails only for the leader of a group, which is in nobody's session that could end.
        let _ = unistd::setsid();
    }
    main(args)
}

/// Blocks until the owner is gone, then stops this process: first as SIGTERM would, then for good.
fn follow_owner() {
    let mut buffer = [0; 64];
    let mut lifeline = std::io::stdin().lock();
    while lifeline.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
    let _ = nix::sys::signal::kill(unistd::Pid::this(), Signal::SIGTERM);
    let deadline = std::time::Instant::now() + ORPHAN_GRACE;
    while let Some(rest) = deadline.checked_duration_since(std::time::Instant::now()) {
        std::thread::park_timeout(rest);
    }
    std::process::exit(1);
}
