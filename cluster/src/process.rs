//! Processes as the kernel sees them: spawning one from its data, signalling it, waiting for its end.
//!
//! A pid alone says nothing after its process has gone: the kernel gives it to the next one. [`Pid`] carries the
//! moment the process began, and nothing is signalled whose beginning differs.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{Signal, kill},
    sys::stat::Mode,
    unistd,
};
use serde::{Deserialize, Serialize};

use crate::spec::ProcessSpec;

#[cfg(test)]
mod tests;

/// How often the end of a process is looked for.
const POLL: Duration = Duration::from_millis(10);

/// Tells a role that its standard input is the owner's lifeline: when it ends, so does the role.
pub(crate) const LIFELINE_ENV: &str = "CLUSTER_LIFELINE";
/// Tells a role to leave its session, so that closing the terminal does not end it.
pub(crate) const DETACHED_ENV: &str = "CLUSTER_DETACHED";

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pid {
    /// Its number.
    pub pid: i32,
    /// When it began, in clock ticks since the machine booted.
    pub started: u64,
}

impl Pid {
    /// The process that has this number now, if any.
    pub fn of(pid: i32) -> Option<Pid> {
        let (state, started) = read_stat(pid)?;
        is_alive(state).then_some(Pid { pid, started })
    }

    /// The calling process.
    pub fn me() -> Pid {
        let pid = i32::try_from(std::process::id()).expect("Linux pids are below 2^22");
        Pid::of(pid).unwrap_or(Pid { pid, started: 0 })
    }

    /// Whether it still runs, or is paused. A zombie does not run: it only waits to be noticed.
    pub fn is_running(&self) -> bool {
        read_stat(self.pid).is_some_and(|(state, started)| is_alive(state) && started == self.started)
    }

    /// Sends `signal` if it still runs; says whether it did.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        self.is_running() && kill(unistd::Pid::from_raw(self.pid), signal).is_ok()
    }

    /// SIGTERM, and SIGCONT for one that is paused: it could not hear the first without.
    pub(crate) fn terminate(&self) -> bool {
        let told = self.signal(Signal::SIGTERM);
        self.signal(Signal::SIGCONT);
        told
    }

    /// Waits until it has gone; false if it still runs after `within`.
    pub(crate) async fn gone(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while self.is_running() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }

    /// [`Pid::gone`] where there is no runtime: in `drop`.
    #[expect(clippy::disallowed_methods, reason = "a poll with a deadline, outside any runtime")]
    pub(crate) fn gone_blocking(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while self.is_running() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        !self.is_running()
    }
}

fn is_alive(state: char) -> bool {
    !matches!(state, 'Z' | 'X' | 'x')
}

/// State and start time of a process: fields 3 and 22 of `/proc/PID/stat` (proc(5)).
fn read_stat(pid: i32) -> Option<(char, u64)> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The second field is the program's name in parentheses and may itself hold blanks and parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// How a process ended, as far as its parent knows.
#[derive(Clone, Debug, Default)]
pub struct Exit(Arc<Mutex<Option<ExitStatus>>>);

impl Exit {
    /// Its exit status, once it has ended.
    pub fn status(&self) -> Option<ExitStatus> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its exit status; `None` if it does not come in time.
    pub(crate) async fn status_within(&self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        while self.status().is_none() && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
        self.status()
    }

    fn set(&self, status: ExitStatus) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }
}

/// What keeps a process alive.
pub(crate) enum Leash<'a> {
    /// The FIFO at this path, held open by the owner: when the owner dies, however it dies, the process reads the end
    /// of its standard input and exits.
    Lifeline(&'a Path),
    /// Nothing: it runs until it is stopped.
    None,
}

/// Starts `spec`; its output is appended to `log`. Must be called within a runtime, which reaps the child.
pub(crate) fn spawn(spec: &ProcessSpec, log: &Path, leash: &Leash<'_>) -> io::Result<(Pid, Exit)> {
    std::fs::create_dir_all(&spec.dir)?;
    let output = OpenOptions::new().create(true).append(true).open(log)?;
    let mut argv: Vec<&str> = Vec::new();
    if let Some(netns) = &spec.netns {
        argv.extend(["ip", "netns", "exec", netns.as_str()]);
    }
    argv.extend(spec.argv.iter().map(String::as_str));
    let (program, args) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = tokio::process::Command::new(program);
    command.args(args).envs(&spec.env).current_dir(&spec.dir);
    command.stdout(output.try_clone()?).stderr(output);
    match leash {
        // Its own group: Ctrl-C on the terminal reaches the owner alone, who stops the others in order. And when the
        // owner dies, the kernel wakes those of its orphaned groups that are paused (setpgid(2)), so they see the end too.
        Leash::Lifeline(fifo) => {
            command.process_group(0).stdin(hold(fifo)?).env(LIFELINE_ENV, "1").env_remove(DETACHED_ENV)
        }
        Leash::None => command.stdin(Stdio::null()).env(DETACHED_ENV, "1").env_remove(LIFELINE_ENV),
    };
    let mut child = command.spawn()?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).expect("not yet reaped");
    // A child that ended at once is a zombie until the task below reaps it, so its start time can still be read.
    let started = read_stat(pid).map_or(0, |(_, started)| started);
    let exit = Exit::default();
    let noted = exit.clone();
    tokio::spawn(async move {
        if let Ok(status) = child.wait().await {
            noted.set(status);
        }
    });
    Ok((Pid { pid, started }, exit))
}

/// Makes the FIFO and opens both its ends: as long as the returned file is open, readers see no end.
pub(crate) fn lifeline(fifo: &Path) -> io::Result<File> {
    match std::fs::remove_file(fifo) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => unistd::mkfifo(fifo, Mode::from_bits_truncate(0o600))?,
    }
    OpenOptions::new().read(true).write(true).open(fifo)
}

/// The reading end for a child. Opened without blocking (the owner may just have died), read with.
fn hold(fifo: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(fifo)?;
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(file)
}

/// Creates a directory that only this user may enter.
pub(crate) fn create_private_dir(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
}
