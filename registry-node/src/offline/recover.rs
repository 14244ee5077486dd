//! A new cluster of what one node still has, when a majority of the old one is lost for good.
//!
//! The new store is built beside the old one and swapped with it in one step (renameat2(2) with RENAME_EXCHANGE), so
//! whenever this is interrupted the directory is the old store or the new one, whole:
//!
//! ```text
//! DIR                       the store                     old  old  NEW  NEW
//! DIR.recovering            with `unfinished` in it: new  -    new  -    -
//!                           without it: the old one       -    -    old  -
//! DIR.before-recover-N      the old one, kept             -    -    -    old
//! ```
//!
//! The new cluster has an id of its own, so that no node of the old one can ever take part, and every watcher starts
//! over with a snapshot. Revisions go on above everything that any node of the old cluster can have given out: they
//! are the fencing tokens of registrations, and one that was given twice would let a stranger deregister.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use uuid::Uuid;

use super::{EX_CONFIG, EX_IOERR, EX_USAGE, found};
use crate::{
    config::RecoverArgs,
    consensus::{Address, Beginning, Identity, Mark, Reading, begin_again},
    storage::hold,
};

/// Added to the last revision that is known here. The lost nodes can have given out more than this one knows of, and never so
/// many: it is an hour of 250 000 writes a second.
pub(super) const REVISION_GAP: u64 = 1_000_000_000;
/// In the directory that is being built, until it stands in its place.
const UNFINISHED: &str = "unfinished";

/// What will be done, decided before anything is.
#[derive(Debug)]
pub(super) struct Plan {
    /// The node that is left, by the identity in its directory.
    survivor: Identity,
    id: u64,
    address: Address,
    last: Mark,
    term: u64,
    revision: u64,
    instances: usize,
    beginning: crate::catalog::Catalog,
    lost: Vec<String>,
}

/// The steps of [`carry_out`], in order; a crash may come after any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Marked,
    Built,
    Swapped,
    Finished,
    Kept,
}

pub(super) fn command(args: &RecoverArgs) -> ExitCode {
    let fail = |code: u8, what: String| {
        eprintln!("registry-node: {what}");
        ExitCode::from(code)
    };
    let dir = match args.dir.canonicalize() {
        Ok(dir) => dir,
        Err(error) => return fail(EX_USAGE, format!("cannot find {}: {error}", args.dir.display())),
    };
    match was_interrupted(&dir) {
        Ok(true) if !args.yes => {
            println!(
                "An earlier recover of {} has swapped the stores and was interrupted then.",
                dir.display()
            );
            println!("Nothing was changed. Say --yes to finish it: it only gives the old store its name.");
            return ExitCode::from(EX_USAGE);
        }
        Ok(true) => {
            return match finish(&dir, &mut |_| Ok(())) {
                Ok(kept) => {
                    println!("Finished an earlier recover. The old store is kept in {}.", kept.display());
                    ExitCode::SUCCESS
                }
                Err(error) => fail(EX_IOERR, format!("cannot finish an earlier recover: {error}")),
            };
        }
        Ok(false) => {}
        Err(error) => return fail(EX_IOERR, format!("cannot look beside {}: {error}", dir.display())),
    }
    let found = match found(&dir) {
        Ok(found) => found,
        Err(code) => return code,
    };
    let plan = match Plan::of(&found.reading, args.id) {
        Ok(plan) => plan,
        Err(why) => return fail(EX_CONFIG, format!("nothing was changed: {why}")),
    };
    println!("{}", plan.told(&dir));
    if !args.yes {
        println!("\nNothing was changed. Say --yes to do it.");
        return ExitCode::from(EX_USAGE);
    }
    let cluster_id = Uuid::new_v4().simple().to_string();
    match carry_out(&dir, &plan, &cluster_id, &mut |_| Ok(())) {
        Ok(kept) => {
            let id = plan.id;
            println!("\nDone: {} is node {id}, alone, of the new cluster {cluster_id}.", dir.display());
            println!("The old store is kept in {}.", kept.display());
            println!(
                "Start it: registry-node --id {id} --dir {} ... (its addresses as before)\n\
                 Then add nodes with empty directories: registry-node --id NEW --dir NEW_DIR --join HOST:PEER_PORT",
                dir.display()
            );
            ExitCode::SUCCESS
        }
        Err(error) => fail(EX_IOERR, format!("recover was interrupted, and can be started again: {error}")),
    }
}

impl Plan {
    /// What can be made of it; why nothing can, if so.
    pub(super) fn of(reading: &Reading, id: Option<u64>) -> Result<Self, String> {
        let survivor = reading.identity.clone().ok_or(
            "the directory does not say whose it is: it never belonged to a cluster, or what said so is damaged",
        )?;
        let (last, catalog) = match &reading.catalog {
            Some((Some(last), catalog)) => (*last, catalog),
            Some((None, _)) => return Err("the directory holds no entry: there is nothing to recover".into()),
            None => {
                return Err(
                    "the snapshot is damaged or missing, and the log before it is gone: `registry-node inspect` says \
                     more, and its --log shows what is left"
                        .into(),
                );
            }
        };
        let address =
            reading.members.iter().find(|peer| peer.id == survivor.node_id).map(|peer| peer.address.clone());
        let address = address.ok_or_else(|| {
            format!(
                "the log does not say where node {} is: it was never a member of its cluster",
                survivor.node_id
            )
        })?;
        let id = id.unwrap_or(survivor.node_id);
        let term = reading.vote.map_or(0, |vote| vote.term).max(reading.last().map_or(0, |last| last.term));
        let revision = catalog.revision().saturating_add(REVISION_GAP);
        let mut beginning = catalog.clone();
        beginning.skip_to(revision);
        Ok(Self {
            lost: lost(reading, last),
            survivor,
            id,
            address,
            last,
            term,
            revision,
            instances: catalog.len(),
            beginning,
        })
    }

    /// The plan for people, with what may be lost by it.
    pub(super) fn told(&self, dir: &Path) -> String {
        let Self { survivor, id, last, revision, instances, .. } = self;
        let mut told = format!(
            "recover {}: node {} of cluster {}\n\nIt would begin a new cluster, with a new id, of node {id} alone, with all \
             {instances} instances\nas they are after entry {} (term {}) of its log. Revisions go on from {revision}.\n\nWhat that means:\n",
            dir.display(),
            survivor.node_id,
            survivor.cluster_id,
            last.index,
            last.term,
        );
        for line in &self.lost {
            told.push_str(&format!("- {line}\n"));
        }
        told.push_str(&format!(
            "- The other nodes can never join it with their old directories. Do this only if a majority of them is\n  \
             lost for good: a cluster that still has one goes on, and then there are two.\n- The old store is kept as {}.",
            beside(dir, "before-recover-N").display()
        ));
        told
    }
}

/// What may be lost, and what may come that nobody was promised.
fn lost(reading: &Reading, last: Mark) -> Vec<String> {
    let mut lost = Vec::new();
    let known = reading.certain().map(|certain| certain.index);
    match known {
        Some(known) if known >= last.index => {
            lost.push(format!(
                "Kept: every entry up to {}, which this node knew to be committed.",
                last.index
            ));
        }
        known => {
            let from = known.map_or(0, |known| known + 1);
            lost.push(format!(
                "Kept: entries {from} to {}, of which this node did not know whether they were committed. Some may never\n  \
                 have been acknowledged, and a client may have been told that their outcome is unknown.",
                last.index
            ));
        }
    }
    let others: Vec<String> = reading
        .members
        .iter()
        .filter(|peer| Some(peer.id) != reading.identity.as_ref().map(|it| it.node_id))
        .map(|peer| peer.id.to_string())
        .collect();
    if !others.is_empty() {
        lost.push(format!(
            "Lost: whatever was acknowledged by nodes {} without this one, that is after entry {}. How much that is\n  \
             cannot be known here. If any of them still has its directory, compare `registry-node inspect`: recover the\n  \
             one whose last entry has the highest term, then the highest index.",
            others.join(", "),
            last.index
        ));
    }
    if reading.log.last().is_some_and(|logged| logged.mark.index > last.index) {
        lost.push(format!(
            "Lost: what is left of the log after entry {}, because something before it is damaged.",
            last.index
        ));
    }
    for flaw in &reading.flaws {
        lost.push(format!("Damaged: {}: {}", flaw.place, flaw.what));
    }
    lost
}

/// Builds, swaps, keeps. `after` is told of every step. Returns where the old store is.
pub(super) fn carry_out(
    dir: &Path,
    plan: &Plan,
    cluster_id: &str,
    after: &mut dyn FnMut(Step) -> io::Result<()>,
) -> io::Result<PathBuf> {
    let new = beside(dir, "recovering");
    discard(&new)?;
    fs::create_dir(&new)?;
    File::create(new.join(UNFINISHED))?.sync_all()?;
    sync_dir(&new)?;
    sync_parent(&new)?;
    after(Step::Marked)?;

    let beginning = Beginning {
        identity: Identity { cluster_id: cluster_id.into(), node_id: plan.id },
        address: plan.address.clone(),
        last: plan.last,
        term: plan.term,
        catalog: plan.beginning.clone(),
    };
    begin_again(&new, &beginning)?;
    sync_all(&new)?;
    after(Step::Built)?;

    // A node started meanwhile would go on writing to what is about to be set aside.
    let _held = hold(dir).map_err(|error| io::Error::other(error.to_string()))?;
    renameat2(AT_FDCWD, dir, AT_FDCWD, &new, RenameFlags::RENAME_EXCHANGE).map_err(|error| {
        io::Error::other(format!(
            "cannot swap {} and {}: {error}. If the directory is a mount point, or its file system cannot swap, copy it \
             elsewhere, recover the copy, and put that in its place",
            dir.display(),
            new.display()
        ))
    })?;
    sync_parent(dir)?;
    after(Step::Swapped)?;
    finish(dir, after)
}

/// Gives the old store, which has been swapped out, its name.
fn finish(dir: &Path, after: &mut dyn FnMut(Step) -> io::Result<()>) -> io::Result<PathBuf> {
    match fs::remove_file(dir.join(UNFINISHED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => sync_dir(dir)?,
    }
    after(Step::Finished)?;
    let names = (1..).map(|number: u32| beside(dir, &format!("before-recover-{number}")));
    let kept = names.into_iter().find(|name| !name.exists()).ok_or(io::ErrorKind::AlreadyExists)?;
    fs::rename(beside(dir, "recovering"), &kept)?;
    sync_parent(dir)?;
    after(Step::Kept)?;
    Ok(kept)
}

/// Whether an earlier run has swapped the stores and got no further.
pub(super) fn was_interrupted(dir: &Path) -> io::Result<bool> {
    let beside = beside(dir, "recovering");
    match fs::read_dir(&beside) {
        // What is being removed loses its mark last.
        Ok(mut entries) => {
            Ok(entries.next().transpose()?.is_some() && !beside.join(UNFINISHED).try_exists()?)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes what an earlier run has left unfinished, its mark last.
fn discard(new: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(new) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else if !path.ends_with(UNFINISHED) {
            fs::remove_file(&path)?;
        }
    }
    fs::remove_dir_all(new)
}

/// `DIR.WHAT`.
pub(super) fn beside(dir: &Path, what: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{what}"));
    dir.with_file_name(name)
}

fn sync_all(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { sync_all(&path)? } else { File::open(&path)?.sync_all()? }
    }
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn sync_parent(dir: &Path) -> io::Result<()> {
    dir.parent().map_or(Ok(()), sync_dir)
}
