//! `registryctl` as a process: its arguments, its streams, its signals. What it does is in `flux::cli`.

use std::io;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Ended by a second signal, as shells number it for SIGINT.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("registryctl: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::spawn(stop_on_signal(stop.clone()));
        flux::cli::run(std::env::args_os(), &mut io::stdout(), &mut io::stderr(), stop).await
    });
    ExitCode::from(code)
}

/// The first signal asks for an end, the second one is the end.
async fn stop_on_signal(stop: CancellationToken) {
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return eprintln!("registryctl: signals cannot be handled: only kill ends it");
    };
    for first in [true, false] {
        tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
        if first {
            stop.cancel();
        }
    }
    std::process::exit(INTERRUPTED);
}
