//! Commands for a node's directory while no node runs it: `inspect` says what is there and whether it is sound, `recover`
//! makes a new cluster of what one node still has.
//!
//! Both read through `consensus` and `storage` what the running node would read, from a copy, and leave the directory
//! as it is; `recover` builds the new one beside it and swaps the two in one step.

mod recover;
mod show;
#[cfg(test)]
mod tests;

use std::{path::Path, process::ExitCode};

use crate::{
    config::{InspectArgs, Output, RecoverArgs},
    consensus::Reading,
    storage::{Survey, SurveyError, survey},
};

/// Exit codes, as `sysexits.h` has them.
const EX_USAGE: u8 = 64;
const EX_IOERR: u8 = 74;
const EX_CONFIG: u8 = 78;

/// `registry-node inspect`. Exits with 0 if everything is sound, 78 if anything is not, 64 if there is nothing to look at.
pub fn inspect(args: &InspectArgs) -> ExitCode {
    quiet();
    let found = match found(&args.dir) {
        Ok(found) => found,
        Err(code) => return code,
    };
    let printed = match (args.log, args.catalog, args.output) {
        (true, _, _) => show::log(&found.reading),
        (_, true, _) => show::catalog(&found.reading),
        (_, _, Output::Json) => show::json(&args.dir, &found),
        (_, _, Output::Text) => show::text(&args.dir, &found),
    };
    if let Err(error) = printed {
        // A reader that has seen enough is no failure of ours.
        if error.kind() != std::io::ErrorKind::BrokenPipe {
            eprintln!("registry-node: cannot write: {error}");
            return ExitCode::from(EX_IOERR);
        }
    }
    if found.reading.flaws.is_empty() {
        return ExitCode::SUCCESS;
    }
    if args.log || args.catalog {
        for flaw in &found.reading.flaws {
            eprintln!("registry-node: damaged: {}: {}", flaw.place, flaw.what);
        }
    }
    ExitCode::from(EX_CONFIG)
}

/// `registry-node recover`. Exits with 0 if it is done, 64 if `--yes` is missing or the directory is not one of a stopped
/// node, 78 if there is nothing to begin again with, 74 if it could not be done.
pub fn recover(args: &RecoverArgs) -> ExitCode {
    quiet();
    recover::command(args)
}

/// What a directory holds.
struct Found {
    files: Vec<(std::path::PathBuf, u64)>,
    format: Option<u32>,
    reading: Reading,
}

fn found(dir: &Path) -> Result<Found, ExitCode> {
    match survey(dir) {
        Ok(mut survey) => {
            let files = std::mem::take(&mut survey.files);
            let format = survey.format;
            Ok(Found { files, format, reading: Reading::of(Survey { format, ..survey }) })
        }
        Err(error) => {
            let source =
                std::error::Error::source(&error).map_or(String::new(), |source| format!(": {source}"));
            eprintln!("registry-node: {error}{source}");
            Err(ExitCode::from(match error {
                SurveyError::Io { .. } => EX_IOERR,
                SurveyError::Held { .. } | SurveyError::None { .. } => EX_USAGE,
            }))
        }
    }
}

/// sled panics over some kinds of damage, which is caught and told as a flaw: its own words would only confuse.
fn quiet() {
    std::panic::set_hook(Box::new(|_| ()));
}
