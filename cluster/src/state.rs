//! `cluster.json`: what a cluster's directory remembers, and the list of this user's clusters.
//!
//! Whoever changes the file holds `cluster.lock` (flock, so a dead holder holds nothing) while reading, acting and
//! writing; the file itself is replaced in one step, so a reader needs no lock.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Pid, Ports, ProcessSpec, process::create_private_dir};

const FILE: &str = "cluster.json";
const LOCK: &str = "cluster.lock";
const RECENT: &str = "clusters";
/// Clusters remembered as recent; older ones are still found by `--dir`.
const RECENT_MAX: usize = 32;

/// How temporary directories are called.
pub(crate) const TEMPORARY_PREFIX: &str = "flux-cluster-";

/// The layout of this file; a program refuses one that is newer than itself.
const FORMAT: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub format: u32,
    /// The directory goes when the cluster does.
    pub temporary: bool,
    /// Who owns the processes; `None` if nobody does (detached).
    pub owner: Option<Pid>,
    /// Who is launching it; `None` once it is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launcher: Option<Pid>,
    /// How a further process is planned.
    pub template: Template,
    pub processes: Vec<Process>,
}

/// What a process that is added later has in common with the first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Template {
    pub ports: Ports,
    pub service: String,
    pub backend_args: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Process {
    pub spec: ProcessSpec,
    /// Its latest run.
    pub run: Option<Pid>,
}

impl Process {
    pub(crate) fn running(&self) -> Option<Pid> {
        self.run.filter(Pid::is_running)
    }
}

impl State {
    pub(crate) fn new(
        temporary: bool,
        owner: Option<Pid>,
        template: Template,
        specs: Vec<ProcessSpec>,
    ) -> State {
        let processes = specs.into_iter().map(|spec| Process { spec, run: None }).collect();
        State { format: FORMAT, temporary, owner, launcher: None, template, processes }
    }

    /// Reads the state of the cluster in `dir`; `NotFound` if there never was one.
    pub(crate) fn load(dir: &Path) -> io::Result<State> {
        let state: State = serde_json::from_slice(&std::fs::read(dir.join(FILE))?)?;
        if state.format > FORMAT {
            let newer = format!("format {} is newer than this program's {FORMAT}", state.format);
            return Err(io::Error::new(io::ErrorKind::InvalidData, newer));
        }
        Ok(state)
    }

    pub(crate) fn save(&self, dir: &Path) -> io::Result<()> {
        replace(&dir.join(FILE), &serde_json::to_vec_pretty(self)?)
    }

    /// Whether anything of it runs, or is about to.
    pub(crate) fn is_running(&self) -> bool {
        self.owner.is_some_and(|owner| owner.is_running())
            || self.launcher.is_some_and(|launcher| launcher.is_running())
            || self.processes.iter().any(|process| process.running().is_some())
    }
}

/// Held while the state is changed; released when dropped.
pub(crate) fn lock(dir: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(dir.join(LOCK))?;
    file.lock()?;
    Ok(file)
}

/// Writes beside and renames: a reader sees the old or the new, never a part.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    drop(file);
    std::fs::rename(&beside, path)
}

/// The clusters this user started, most recent last: how a command finds the one that is meant.
pub(crate) struct Recent {
    dir: PathBuf,
}

impl Recent {
    /// The list of this user, under `$XDG_RUNTIME_DIR` or `/tmp`.
    pub(crate) fn of_user() -> io::Result<Recent> {
        let dir = match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(dir) if Path::new(&dir).is_dir() => PathBuf::from(dir).join("flux-cluster"),
            _ => std::env::temp_dir().join(format!("flux-clusters-{}", nix::unistd::getuid())),
        };
        Recent::at(dir)
    }

    pub(crate) fn at(dir: PathBuf) -> io::Result<Recent> {
        create_private_dir(&dir)?;
        Ok(Recent { dir })
    }

    pub(crate) fn list(&self) -> Vec<PathBuf> {
        let text = std::fs::read_to_string(self.dir.join(RECENT)).unwrap_or_default();
        text.lines().map(PathBuf::from).collect()
    }

    /// The most recent one of which something runs.
    pub(crate) fn running(&self) -> Option<PathBuf> {
        let runs = |dir: &PathBuf| State::load(dir).is_ok_and(|state| state.is_running());
        self.list().into_iter().rev().find(runs)
    }

    /// Makes `cluster` the most recent.
    pub(crate) fn push(&self, cluster: &Path) -> io::Result<()> {
        self.change(|list| list.push(cluster.to_owned()), cluster)
    }

    pub(crate) fn remove(&self, cluster: &Path) -> io::Result<()> {
        self.change(|_| (), cluster)
    }

    fn change(&self, edit: impl FnOnce(&mut Vec<PathBuf>), without: &Path) -> io::Result<()> {
        let _lock = lock(&self.dir)?;
        let mut list = self.list();
        list.retain(|dir| dir != without);
        edit(&mut list);
        let from = list.len().saturating_sub(RECENT_MAX);
        let lines: Vec<String> = list[from..].iter().map(|dir| dir.display().to_string()).collect();
        replace(&self.dir.join(RECENT), lines.join("\n").as_bytes())
    }

    /// Removes the temporary directories of clusters that did not come up, or whose owner was killed and could not do
    /// it itself, and forgets those that are gone.
    pub(crate) fn sweep(&self) {
        for dir in temporary_dirs(&std::env::temp_dir()).chain(self.list()) {
            match State::load(&dir) {
                Ok(state) if state.temporary && !state.is_running() => drop(std::fs::remove_dir_all(&dir)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                _ => continue,
            }
            drop(self.remove(&dir));
        }
    }
}

fn temporary_dirs(within: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(within).into_iter().flatten().flatten();
    let ours = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(TEMPORARY_PREFIX.as_bytes());
    entries.filter(move |entry| ours(&entry.file_name())).map(|entry| entry.path())
}

#[cfg(test)]
mod tests;
