//! Backups of the whole catalog: taken, looked at, restored. The format is `proto::backup`.
//!
//! A file counts only when it is whole: it is written under another name, synced, read back and then renamed. A
//! damaged one is refused before anything is done with it.

use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use prost::Message;
use proto::backup::{self, Summary};
use proto::registry::v1 as wire;
use tokio::time::{Duration, Instant};
use wire::restore_request::Mode;

use super::{Failed, Session};
use crate::{Code, Instance};

/// Bytes of records in one call, and how many records: well below what a node takes at once.
const BATCH_BYTES: usize = 128 << 10;
const BATCH_RECORDS: usize = 512;

/// Progress is told this often at most.
const TELL_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Writes the whole catalog, as it is at one revision, into a file. Writes go on meanwhile.
    Save {
        /// The file; it appears only when it is whole and on disk.
        file: PathBuf,
        /// Even if there is such a file.
        #[arg(long)]
        force: bool,
    },
    /// Verifies a backup and shows what is in it; asks no node. With -o json all records.
    Inspect {
        /// The file.
        file: PathBuf,
    },
    /// Registers what is in a backup, with the provenance it had. Into a cluster without instances, unless told what
    /// becomes of them. Leases begin anew; a service that still runs registers again by itself.
    Restore(Restore),
    /// Has the first node of --endpoints write its own snapshot now and purge its log behind it. No backup: nodes do
    /// it by themselves.
    Take,
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The file.
    file: PathBuf,
    /// Add what is missing, leave what is registered as it is; so a restore that broke off is gone on with.
    #[arg(long, conflicts_with = "replace")]
    keep: bool,
    /// Make the catalog what the file says: replace what is registered, take out what the file does not have.
    #[arg(long)]
    replace: bool,
    /// With --replace: yes, take instances out.
    #[arg(long, requires = "replace")]
    yes: bool,
}

pub(super) async fn run(session: &mut Session<'_>, command: &Command) -> Result<(), Failed> {
    match command {
        Command::Save { file, force } => save(session, file, *force).await,
        Command::Inspect { file } => {
            let (summary, records) = read(file)?;
            let records: Vec<Instance> = records.into_iter().map(Into::into).collect();
            session.print(&session.output.backup(&file.display().to_string(), &summary, Some(&records)))
        }
        Command::Restore(restore) => self::restore(session, restore).await,
        Command::Take => {
            let answer = session.client.take_snapshot().await;
            let answer = answer.map_err(|error| Failed::call("cannot take a snapshot", error))?;
            session.print(&session.output.taken(&answer))
        }
    }
}

async fn save(session: &mut Session<'_>, file: &Path, force: bool) -> Result<(), Failed> {
    if file.exists() && !force {
        return Err(Failed::Refused {
            what: format!("{} exists", file.display()),
            hint: "name another file, or replace this one with --force".to_owned(),
        });
    }
    let name = file.file_name().ok_or_else(|| Failed::Usage {
        what: format!("{} names no file", file.display()),
        hint: "such as registry.snapshot".to_owned(),
    })?;
    let mut partial = name.to_owned();
    partial.push(format!(".partial-{}", std::process::id()));
    let partial = Partial(file.with_file_name(partial));
    let io = |error: std::io::Error| Failed::Other(format!("cannot write {}: {error}", partial.0.display()));
    let mut out = File::create(&partial.0).map_err(io)?;
    let hint = "nothing was saved; run it again, it begins anew";
    let broke = |error| Failed::Call { what: "cannot save".to_owned(), error, hint: hint.to_owned() };
    let mut pieces = session.client.backup().await.map_err(|error| Failed::call("cannot save", error))?;
    while let Some(piece) = pieces.next().await {
        out.write_all(&piece.map_err(broke)?).map_err(io)?;
    }
    out.sync_all().map_err(io)?;
    drop(out);
    // What was sent may have been cut short without a word: only the file itself can tell.
    let (summary, _) = read(&partial.0).map_err(|failed| match failed {
        Failed::Refused { what, .. } => Failed::TimedOut {
            what: format!("what the node sent is not whole: {what}"),
            hint: hint.to_owned(),
        },
        other => other,
    })?;
    fs::rename(&partial.0, file).map_err(io)?;
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)?;
    session.print(&session.output.backup(&file.display().to_string(), &summary, None))
}

/// A file that goes unless it was renamed.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // it has been renamed, or is of no use
    }
}

/// All of a backup, verified.
fn read(file: &Path) -> Result<(Summary, Vec<wire::Instance>), Failed> {
    let cannot = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let hint = "it cannot be used: take another backup, or restore an older one".to_owned();
    let input = match File::open(file) {
        Ok(input) => BufReader::new(input),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let hint = "take one with `registryctl snapshot save FILE`".to_owned();
            return Err(Failed::NotFound { what: cannot(&error), hint });
        }
        Err(error) => return Err(Failed::Other(cannot(&error))),
    };
    let mut records = Vec::new();
    match backup::read(input, |record| records.push(record)) {
        Ok(summary) => Ok((summary, records)),
        Err(backup::Error::Io(error)) => Err(Failed::Other(cannot(&error))),
        Err(damaged) => Err(Failed::Refused { what: cannot(&damaged), hint }),
    }
}

async fn restore(session: &mut Session<'_>, what: &Restore) -> Result<(), Failed> {
    let (summary, records) = read(&what.file)?;
    if what.replace && !what.yes {
        return Err(Failed::Usage {
            what: "--replace takes out every instance that the file does not have".to_owned(),
            hint: "say --yes if that is what you want".to_owned(),
        });
    }
    let (total, ids) = (records.len(), records.iter().map(|record| record.id.clone()).collect());
    session.say(&format!(
        "restoring {total} instances of cluster {}, as they were at revision {}",
        summary.head.cluster_id, summary.head.revision
    ));
    let (first, others) = match (what.keep, what.replace) {
        (true, _) => (Mode::Keep, Mode::Keep),
        (_, true) => (Mode::Replace, Mode::Replace),
        // What the first call restored must not stand in the way of the second.
        _ => (Mode::Unspecified, Mode::Keep),
    };
    let (mut restored, mut kept, mut revision, mut told) = (0, 0, 0, Instant::now());
    for (number, batch) in batches(records).into_iter().enumerate() {
        let mode = if number == 0 { first } else { others };
        let answer = session.client.restore(batch, mode).await.map_err(|error| {
            let failed = format!("cannot restore, {restored} of {total} instances are");
            let go_on = "run it again with --keep: it adds what is missing";
            let hint = match error.code() {
                Code::Precondition => {
                    "with --keep only what is missing is added; with --replace --yes the catalog becomes \
                                       what the file says"
                }
                Code::InvalidArgument => "this cluster does not take what the other took: compare its limits",
                _ if what.replace => "run it again",
                _ => go_on,
            };
            Failed::Call { what: failed, error, hint: hint.to_owned() }
        })?;
        (restored, kept) = (restored + answer.value.restored, kept + answer.value.kept);
        revision = answer.revision;
        if told.elapsed() >= TELL_EVERY {
            session.say(&format!("{} of {total}", restored + kept));
            told = Instant::now();
        }
    }
    let removed = if what.replace { remove_others(session, &ids).await? } else { 0 };
    session.print(&session.output.restored(revision, restored, kept, removed))
}

/// Takes out everything that is not of `ids`.
async fn remove_others(
    session: &mut Session<'_>,
    ids: &std::collections::BTreeSet<String>,
) -> Result<u32, Failed> {
    let failed = |error| Failed::Call {
        what: "the file is restored, but not all others are taken out".to_owned(),
        error,
        hint: "run it again".to_owned(),
    };
    let client = session.client.because("not in the backup that was restored");
    let there = client.list(None).await.map_err(failed)?.value;
    let mut removed = 0;
    for other in there.into_iter().filter(|instance| !ids.contains(&instance.id)) {
        match client.deregister(&other.id, Some(other.reg_rev)).await {
            Ok(answer) => removed += u32::from(answer.value),
            // It registered again meanwhile: it lives, and is not what was to be taken out.
            Err(error) if error.code() == Code::Superseded => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(removed)
}

/// At least one batch, so that also an empty backup is refused where it does not belong.
fn batches(records: Vec<wire::Instance>) -> Vec<Vec<wire::Instance>> {
    let (mut batches, mut bytes) = (vec![Vec::new()], 0);
    for record in records {
        let size = record.encoded_len();
        let last = batches.last().expect("there is a first");
        if !last.is_empty() && (bytes + size > BATCH_BYTES || last.len() == BATCH_RECORDS) {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        batches.last_mut().expect("there is a first").push(record);
    }
    batches
}
