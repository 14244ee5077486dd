//! The handle on a cluster's directory: launch, open, act on its processes, wait, end.
//!
//! The directory is the truth, not this value: every call reads `cluster.json`, so several programs may act on one
//! cluster at once. What the handle has for itself is ownership: who launches, and afterwards who launched not
//! detached and so holds the write end of the lifeline, kills everything when it is dropped.
//!
//! ```text
//! DIR/cluster.json, cluster.lock    who runs
//! DIR/lifeline                      FIFO; its end is the order to exit
//! DIR/node-1/                       working directory of a process, with all it stores
//! DIR/node-1.log                    its output, across its runs
//! ```

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use nix::sys::signal::Signal;

use crate::{
    Error, Exit, Kind, Lifetime, Options, Pid, ProcessSpec, Role, Status, plan, ports,
    process::{self, Leash},
    spec::port_of,
    state::{self, Process, State, Template},
    status,
};

mod ready;

/// How long a process may take to stop after SIGTERM; then it is killed. Longer than any drain of ours.
const STOP_GRACE: Duration = Duration::from_secs(12);
/// How long the kernel may take to end a killed process.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// A cluster, by its directory. Every method acts on the processes as they are now, whoever started them.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    /// The write end of the lifeline, if the processes are ours.
    lifeline: Option<File>,
    /// Not all of it is up yet: until then even detached processes are ours.
    launching: bool,
    exits: Mutex<HashMap<Pid, Exit>>,
    ready_within: Duration,
    progress: fn(&str),
}

impl Cluster {
    /// Plans and starts a whole system. Returns once requests really flow: every balancer has passed one to every
    /// backend. On failure, and when dropped, everything started is killed; on failure the logs stay.
    pub async fn launch(options: Options) -> Result<Cluster, Error> {
        let (cluster, specs) = Cluster::prepare(&options)?;
        cluster.bring_up(&options, specs).await
    }

    /// Starts processes that the caller has planned ([`Cluster::plan`]) and perhaps changed: in other network
    /// namespaces, with other addresses. Waits for nothing; see [`Cluster::wait_ready`].
    pub async fn launch_specs(options: Options, specs: Vec<ProcessSpec>) -> Result<Cluster, Error> {
        let dir = directory(options.dir.as_deref())?;
        let lock = lock(dir.path())?;
        let mut cluster = Cluster::own(&options, dir, &specs, &lock)?;
        drop(lock);
        for spec in &specs {
            cluster.spawn(&spec.name)?;
        }
        cluster.launched()?;
        Ok(cluster)
    }

    /// What [`Cluster::launch`] would start in `dir`.
    pub fn plan(options: &Options, dir: &Path) -> Result<Vec<ProcessSpec>, Error> {
        let planned = plan::plan(options, dir, &exe(options)?, ports::ephemeral_begins(), ports::is_free)?;
        for moved in &planned.moved {
            (options.progress)(&format!(
                "port {} is taken, {} is on {}",
                moved.want.port, moved.want.owner, moved.port
            ));
        }
        Ok(planned.specs)
    }

    /// The cluster in `dir`, launched by somebody else.
    pub fn open(dir: &Path) -> Result<Cluster, Error> {
        let dir = dir.canonicalize().map_err(|_| Error::NoCluster { dir: dir.to_owned() })?;
        let options = Options::default();
        let cluster = Cluster {
            dir,
            lifeline: None,
            launching: false,
            exits: Mutex::default(),
            ready_within: options.ready_within,
            progress: options.progress,
        };
        cluster.state()?;
        Ok(cluster)
    }

    /// How many nodes, balancers and backends the directory holds, if it holds a cluster.
    pub fn counts(dir: &Path) -> Option<(usize, usize, usize)> {
        Some(counts(State::load(dir).ok()?.processes.iter().map(|process| &process.spec)))
    }

    /// Where everything lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Everything needed to start each process again.
    pub fn specs(&self) -> Result<Vec<ProcessSpec>, Error> {
        Ok(self.state()?.processes.into_iter().map(|process| process.spec).collect())
    }

    /// One of [`Cluster::specs`].
    pub fn spec(&self, name: &str) -> Result<ProcessSpec, Error> {
        Ok(find(&mut self.state()?, name)?.spec.clone())
    }

    /// Names and processes; `None` for one that does not run.
    pub fn running(&self) -> Result<Vec<(String, Option<Pid>)>, Error> {
        let named = |process: Process| (process.spec.name.clone(), process.running());
        Ok(self.state()?.processes.into_iter().map(named).collect())
    }

    /// Who owns the processes, if anybody does and still runs.
    pub fn owner(&self) -> Result<Option<Pid>, Error> {
        Ok(self.state()?.owner.filter(Pid::is_running))
    }

    /// Where the output of `name` goes.
    pub fn logs(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// What runs and what it says of itself. Takes up to two seconds when somebody does not answer.
    pub async fn status(&self) -> Result<Status, Error> {
        Ok(status::gather(&self.state()?).await)
    }

    /// The node that leads: of those that say so, the one with the highest term.
    pub async fn leader(&self) -> Result<Option<String>, Error> {
        let state = self.state()?;
        let asked = state.processes.iter().filter_map(|process| match &process.spec.kind {
            Kind::Node { rest, .. } if process.running().is_some() => Some((&process.spec.name, rest)),
            _ => None,
        });
        let says =
            join_all(asked.map(async |(name, rest)| Some((status::ask_node(rest).await?, name.clone()))))
                .await;
        let leads = says.into_iter().flatten().filter(|(says, _)| says.role == Role::Leader);
        Ok(leads.max_by_key(|(says, _)| says.term).map(|(_, name)| name))
    }

    /// Starts `name`, which must not run. Returns at once; see [`Cluster::wait_ready_of`].
    pub async fn start(&self, name: &str) -> Result<(), Error> {
        // One that was just killed may count as gone while its last threads still hold its ports.
        let last = find(&mut self.state()?, name)?.run.filter(|pid| !pid.is_running());
        if let Some(exit) = last.and_then(|pid| self.exit(pid)) {
            exit.status_within(KILL_GRACE).await;
        }
        self.spawn(name).map(drop)
    }

    /// SIGTERM, then waits until it has gone. One that does not stop within 12 s is killed, and that is an error.
    pub async fn stop(&self, name: &str) -> Result<(), Error> {
        let pid = self.pid(name)?;
        pid.terminate();
        if pid.gone(STOP_GRACE).await {
            return Ok(());
        }
        self.kill(name).await?;
        Err(Error::Stubborn { name: name.into(), within: STOP_GRACE, log: self.logs(name) })
    }

    /// SIGKILL, then waits until it has gone.
    pub async fn kill(&self, name: &str) -> Result<(), Error> {
        let pid = self.pid(name)?;
        pid.signal(Signal::SIGKILL);
        if pid.gone(KILL_GRACE).await {
            Ok(())
        } else {
            Err(Error::Unkillable { name: name.into(), pid: pid.pid })
        }
    }

    /// SIGSTOP: it keeps its connections and answers nothing.
    pub async fn pause(&self, name: &str) -> Result<(), Error> {
        self.pid(name)?.signal(Signal::SIGSTOP);
        Ok(())
    }

    /// SIGCONT after [`Cluster::pause`].
    pub async fn resume(&self, name: &str) -> Result<(), Error> {
        self.pid(name)?.signal(Signal::SIGCONT);
        Ok(())
    }

    /// Plans and starts a further sample backend and returns its name. Does not wait for it.
    pub async fn add_backend(&self) -> Result<String, Error> {
        let name = self.change(|state| {
            let template = state.template.clone();
            let options = Options {
                ports: template.ports,
                service: template.service,
                backend_args: template.backend_args,
                ..Options::default()
            };
            let existing: Vec<ProcessSpec> =
                state.processes.iter().map(|process| process.spec.clone()).collect();
            let exe = existing.first().and_then(|spec| spec.argv.first()).map(PathBuf::from);
            let exe = exe.map_or_else(exe_of_caller, Ok)?;
            let begins = ports::ephemeral_begins();
            let planned = plan::plan_backend(&options, &existing, &self.dir, &exe, begins, ports::is_free)?;
            let spec = planned.specs.into_iter().next().expect("one was planned");
            let name = spec.name.clone();
            state.processes.push(Process { spec, run: None });
            Ok(name)
        })?;
        self.spawn(&name)?;
        Ok(name)
    }

    /// Ends everything in order: balancers, backends, nodes; whoever does not stop is killed. A temporary directory goes.
    pub async fn shutdown(mut self) -> Result<(), Error> {
        self.stop_all().await?;
        self.lifeline = None;
        self.remove_if_temporary();
        Ok(())
    }

    /// Ends a cluster that somebody else may own: its owner is told and does it; without an owner, or if that one does
    /// not manage, the caller does.
    pub async fn down(self) -> Result<(), Error> {
        if let Some(owner) = self.owner()?.filter(|owner| *owner != Pid::me()) {
            owner.terminate();
            if owner.gone(4 * STOP_GRACE).await && !self.dir.join("cluster.json").exists() {
                return Ok(());
            }
            owner.signal(Signal::SIGKILL);
        }
        self.shutdown().await
    }

    /// Looks and writes under one lock: of two that launch in one directory, one is refused.
    fn prepare(options: &Options) -> Result<(Cluster, Vec<ProcessSpec>), Error> {
        let dir = directory(options.dir.as_deref())?;
        let path = dir.path();
        let lock = lock(path)?;
        let specs = match State::load(path) {
            Ok(state) if state.is_running() => return Err(Error::AlreadyUp { dir: path.to_owned() }),
            Ok(state) => stored(options, path, state)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Cluster::plan(options, path)?,
            Err(source) => return Err(Error::Dir { path: path.join("cluster.json"), source }),
        };
        Ok((Cluster::own(options, dir, &specs, &lock)?, specs))
    }

    /// Makes the directory the caller's, who holds its lock.
    fn own(options: &Options, dir: Dir, specs: &[ProcessSpec], _lock: &File) -> Result<Cluster, Error> {
        let (dir, temporary) = dir.keep();
        let owned = options.lifetime == Lifetime::Owned;
        let template = Template {
            ports: options.ports,
            service: options.service.clone(),
            backend_args: options.backend_args.clone(),
        };
        let mut specs = specs.to_vec();
        specs.iter_mut().for_each(|spec| spec.env.extend(options.env.clone()));
        let mut state = State::new(temporary, owned.then(Pid::me), template, specs);
        state.launcher = Some(Pid::me());
        state.save(&dir).map_err(|source| Error::Dir { path: dir.clone(), source })?;
        let fifo = dir.join(LIFELINE);
        let lifeline = owned.then(|| process::lifeline(&fifo)).transpose();
        let lifeline = lifeline.map_err(|source| Error::Dir { path: fifo, source })?;
        let (ready_within, progress) = (options.ready_within, options.progress);
        Ok(Cluster { dir, lifeline, launching: true, exits: Mutex::default(), ready_within, progress })
    }

    /// Ends the launch: from now on detached processes are nobody's.
    fn launched(&mut self) -> Result<(), Error> {
        self.change(|state| {
            state.launcher = None;
            Ok(())
        })?;
        self.launching = false;
        Ok(())
    }

    /// Nodes first: whoever starts before the registry answers only waits and logs that it does.
    async fn bring_up(mut self, options: &Options, specs: Vec<ProcessSpec>) -> Result<Cluster, Error> {
        let started = async {
            let (nodes, others): (Vec<_>, Vec<_>) =
                specs.iter().partition(|spec| matches!(spec.kind, Kind::Node { .. }));
            self.bring_up_group(&nodes, &format!("starting {}", noun(options.nodes, "registry node")))
                .await?;
            let what = format!(
                "starting {} and {}",
                noun(options.balancers, "balancer"),
                noun(others.len() - options.balancers.min(others.len()), "sample backend")
            );
            self.bring_up_group(&others, &what).await?;
            self.wait_flowing().await
        };
        if let Err(error) = started.await {
            // Not left to the drop: the logs that the error names must stay.
            self.kill_all();
            drop(self.launched()); // it is dead already, so nobody is misled if this cannot be noted
            (self.lifeline, self.launching) = (None, false);
            return Err(error);
        }
        self.launched()?;
        Ok(self)
    }

    async fn bring_up_group(&self, specs: &[&ProcessSpec], what: &str) -> Result<(), Error> {
        if specs.is_empty() {
            return Ok(());
        }
        (self.progress)(what);
        for spec in specs {
            self.spawn(&spec.name)?;
        }
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        self.wait_ready_of(&names).await
    }

    fn spawn(&self, name: &str) -> Result<Pid, Error> {
        self.change(|state| {
            let fifo = self.dir.join(LIFELINE);
            let leash = match state.owner {
                None => Leash::None,
                Some(owner) if owner.is_running() => Leash::Lifeline(&fifo),
                Some(_) => return Err(Error::OwnerGone { dir: self.dir.clone() }),
            };
            let process = find(state, name)?;
            if let Some(pid) = process.running() {
                return Err(Error::Running { name: name.into(), pid: pid.pid });
            }
            let (pid, exit) = process::spawn(&process.spec, &self.logs(name), &leash)
                .map_err(|source| Error::Spawn { name: name.into(), source })?;
            process.run = Some(pid);
            self.exits.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, exit);
            Ok(pid)
        })
    }

    async fn stop_all(&self) -> Result<(), Error> {
        let processes = self.state()?.processes;
        let ranks: BTreeSet<u8> = processes.iter().map(|process| process.spec.kind.stop_rank()).collect();
        for rank in ranks {
            let of_rank = processes.iter().filter(|process| process.spec.kind.stop_rank() == rank);
            let pids: Vec<(&str, Pid)> = of_rank
                .filter_map(|process| Some((process.spec.name.as_str(), process.running()?)))
                .collect();
            for (_, pid) in &pids {
                pid.terminate();
            }
            join_all(pids.iter().map(|(name, pid)| self.gone_or_killed(name, *pid))).await;
        }
        Ok(())
    }

    async fn gone_or_killed(&self, name: &str, pid: Pid) {
        if !pid.gone(STOP_GRACE).await {
            (self.progress)(&format!("{name} did not stop within {STOP_GRACE:?} and is killed"));
            pid.signal(Signal::SIGKILL);
            pid.gone(KILL_GRACE).await;
        }
    }

    fn kill_all(&self) {
        let Ok(state) = self.state() else { return };
        let pids: Vec<Pid> = state.processes.iter().filter_map(Process::running).collect();
        for pid in &pids {
            pid.signal(Signal::SIGKILL);
        }
        for pid in &pids {
            pid.gone_blocking(KILL_GRACE);
        }
    }

    fn remove_if_temporary(&self) {
        if self.state().is_ok_and(|state| state.temporary) {
            // Nothing is lost if it stays: the next `up` sweeps.
            drop(std::fs::remove_dir_all(&self.dir));
        }
    }

    fn pid(&self, name: &str) -> Result<Pid, Error> {
        find(&mut self.state()?, name)?.running().ok_or_else(|| Error::NotRunning { name: name.into() })
    }

    fn state(&self) -> Result<State, Error> {
        State::load(&self.dir).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::NoCluster { dir: self.dir.clone() },
            _ => Error::Dir { path: self.dir.join("cluster.json"), source },
        })
    }

    fn change<T>(&self, edit: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
        let _lock = lock(&self.dir)?;
        let mut state = self.state()?;
        let done = edit(&mut state)?;
        state.save(&self.dir).map_err(|source| Error::Dir { path: self.dir.clone(), source })?;
        Ok(done)
    }
}

impl Drop for Cluster {
    /// Kills what it owns. [`Cluster::shutdown`] is the orderly way.
    fn drop(&mut self) {
        if self.lifeline.take().is_some() || self.launching {
            self.kill_all();
            if self.launching {
                drop(self.launched()); // the launcher soon ends, which says the same
            }
            self.remove_if_temporary();
        }
    }
}

/// The FIFO's name within the directory.
const LIFELINE: &str = "lifeline";

/// A directory for a cluster. A temporary one vanishes unless it is kept: a refused launch leaves nothing.
enum Dir {
    Given(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Dir {
    fn path(&self) -> &Path {
        match self {
            Dir::Given(path) => path,
            Dir::Temporary(dir) => dir.path(),
        }
    }

    /// Its path, and whether it is temporary.
    fn keep(self) -> (PathBuf, bool) {
        match self {
            Dir::Given(path) => (path, false),
            Dir::Temporary(dir) => (dir.keep(), true),
        }
    }
}

fn lock(dir: &Path) -> Result<File, Error> {
    state::lock(dir).map_err(|source| Error::Dir { path: dir.to_owned(), source })
}

fn directory(wanted: Option<&Path>) -> Result<Dir, Error> {
    let at = |path: &Path, source| Error::Dir { path: path.to_owned(), source };
    match wanted {
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(|source| at(dir, source))?;
            Ok(Dir::Given(dir.canonicalize().map_err(|source| at(dir, source))?))
        }
        None => {
            let made = tempfile::Builder::new().prefix(state::TEMPORARY_PREFIX).tempdir();
            Ok(Dir::Temporary(made.map_err(|source| at(&std::env::temp_dir(), source))?))
        }
    }
}

/// The processes of a directory that has had a cluster before, run by today's program.
fn stored(options: &Options, dir: &Path, state: State) -> Result<Vec<ProcessSpec>, Error> {
    let mut specs: Vec<ProcessSpec> = state.processes.into_iter().map(|process| process.spec).collect();
    let (has, wanted) = (counts(specs.iter()), (options.nodes, options.balancers, options.backends));
    if has != wanted {
        return Err(Error::Layout { dir: dir.to_owned(), has: layout(has), wanted: layout(wanted) });
    }
    for (spec, (what, url)) in
        specs.iter().flat_map(|spec| spec.kind.listens().into_iter().map(move |at| (spec, at)))
    {
        if let Some(port) = port_of(url).filter(|port| !ports::is_free(*port)) {
            return Err(Error::PortTaken {
                dir: dir.to_owned(),
                owner: format!("{} {what}", spec.name),
                port,
            });
        }
    }
    let exe = exe(options)?.display().to_string();
    specs.iter_mut().filter_map(|spec| spec.argv.first_mut()).for_each(|program| program.clone_from(&exe));
    Ok(specs)
}

fn counts<'a>(specs: impl Iterator<Item = &'a ProcessSpec>) -> (usize, usize, usize) {
    specs.fold((0, 0, 0), |(nodes, balancers, backends), spec| match spec.kind {
        Kind::Node { .. } => (nodes + 1, balancers, backends),
        Kind::Balancer { .. } => (nodes, balancers + 1, backends),
        Kind::Backend { .. } => (nodes, balancers, backends + 1),
    })
}

fn layout((nodes, balancers, backends): (usize, usize, usize)) -> String {
    format!("{}, {} and {}", noun(nodes, "node"), noun(balancers, "balancer"), noun(backends, "backend"))
}

fn noun(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn exe(options: &Options) -> Result<PathBuf, Error> {
    options.exe.clone().map_or_else(exe_of_caller, Ok)
}

fn exe_of_caller() -> Result<PathBuf, Error> {
    std::env::current_exe().map_err(|source| Error::Dir { path: "/proc/self/exe".into(), source })
}

fn find<'a>(state: &'a mut State, name: &str) -> Result<&'a mut Process, Error> {
    let known: Vec<String> = state.processes.iter().map(|process| process.spec.name.clone()).collect();
    let found = state.processes.iter_mut().find(|process| process.spec.name == name);
    found.ok_or_else(|| Error::Unknown { name: name.into(), known: known.join(", ") })
}
