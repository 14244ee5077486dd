//! One fault in any file of a node's directory: the node is exactly what it was, or it is in quarantine, or it
//! refuses with an error that names the directory, what is wrong, and what to do. Never a silent loss.
//!
//! `CORRUPTION_CASES` sets how many cases are tried, `CORRUPTION_SEED` where they begin; a case that fails prints
//! its seed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use registry_node::storage::{Directory, Error, Purged, Recovered, Slot, Snapshot, Store};
use serde_json::json;
use tempfile::TempDir;

use super::node::{self, Cluster, PATIENCE};
use super::wire::call;

/// Cases under plain `cargo test`; CI asks for more.
const CASES: u64 = 300;
/// Cases that a real process goes through; each costs a start.
const PROCESS_CASES: u64 = 24;

fn from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, a number is needed")),
        Err(_) => default,
    }
}

// ---- faults ----

/// What happens to a file.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Flip {
        at: u64,
        bit: u8,
    },
    /// 4 KiB, aligned as a disk has them.
    Zero {
        at: u64,
    },
    Truncate {
        len: u64,
    },
    /// The end of the last write never arrived: the length is there, the bytes are not.
    Torn {
        from: u64,
    },
    Missing,
}

const PAGE: u64 = 4_096;

impl Fault {
    fn draw(file: &Path, rng: &mut Rng) -> Fault {
        let bytes = fs::read(file).expect("it was listed");
        let len = bytes.len() as u64;
        // Half of them where something is written: a young database is mostly holes.
        let written = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last as u64 + 1);
        let span = if rng.bool() { written } else { len.max(1) };
        let at = rng.u64(..span);
        match rng.u8(..5) {
            _ if len == 0 => Fault::Missing,
            0 => Fault::Flip { at, bit: rng.u8(..8) },
            1 => Fault::Zero { at: at / PAGE * PAGE },
            2 => Fault::Truncate { len: at },
            3 => Fault::Torn { from: written.saturating_sub(rng.u64(1..=PAGE)) },
            _ => Fault::Missing,
        }
    }

    fn strike(self, path: &Path) -> io::Result<()> {
        if matches!(self, Fault::Missing) {
            return fs::remove_file(path);
        }
        let file = File::options().read(true).write(true).open(path)?;
        let len = file.metadata()?.len();
        let zero = |from: u64, to: u64| file.write_all_at(&vec![0; (to - from) as usize], from);
        match self {
            Fault::Flip { at, bit } => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at)?;
                file.write_all_at(&[byte[0] ^ 1 << bit], at)
            }
            Fault::Zero { at } => zero(at, len.min(at + PAGE)),
            Fault::Truncate { len } => file.set_len(len),
            Fault::Torn { from } => zero(from, len),
            Fault::Missing => Ok(()),
        }
    }
}

/// Every file below `dir`, whatever it is for, in order; paths relative to it.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("readable") {
            let path = entry.expect("readable").path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path.strip_prefix(dir).expect("below it").to_path_buf()),
            }
        }
    }
    found.sort();
    found
}

/// What kind of file it is: its path without the numbers that sled puts into names.
fn kind(file: &Path) -> String {
    let name = file.display().to_string();
    name.split_once("snap.").map_or(name.clone(), |(folder, _)| format!("{folder}snap"))
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(&file);
        fs::create_dir_all(target.parent().expect("it has one")).expect("writable");
        fs::copy(from.join(&file), target).expect("copied");
    }
    // Empty folders count too: sled makes one for blobs.
    let _ = fs::create_dir_all(to.join("sled/blobs"));
}

// ---- stores ----

/// Everything that was acknowledged.
#[derive(Debug, Clone, Default)]
struct Kept {
    begin: u64,
    entries: Vec<Bytes>,
    vote: Option<Vec<u8>>,
    identity: Option<Vec<u8>>,
    purged: Option<Purged>,
    snapshot: Option<Snapshot>,
    /// Marks that were written on the way; an older one is as good.
    committed: Vec<Vec<u8>>,
    /// Where the log has ended; a quarantined node must reach it again.
    floor: u64,
    quarantined: bool,
}

/// A store that is driven by hand, so that it is closed when it says so.
struct Driven {
    store: Store,
    runtime: tokio::runtime::Runtime,
    work: tokio::task::JoinHandle<()>,
}

impl Driven {
    fn open(dir: &Path) -> Result<(Driven, Recovered), Error> {
        let io = |source| Error::Io { dir: dir.into(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(io)?;
        let medium = Directory::open(dir).map_err(io)?;
        // Whoever waits is told of a failure as well.
        let told = |_: &io::Error| ();
        let (store, found, work) =
            Store::in_task(medium, dir, &covers_the_purged, Arc::default(), told, || Duration::ZERO)?;
        let work = runtime.spawn(work);
        Ok((Driven { store, runtime, work }, found))
    }

    fn close(self) {
        drop(self.store);
        self.runtime.block_on(self.work).expect("the storage ends with its handles");
    }

    fn run<T>(&self, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        self.runtime.block_on(work)
    }

    fn append(&self, kept: &mut Kept, entries: Vec<Bytes>) -> io::Result<()> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let first = kept.begin + kept.entries.len() as u64;
        kept.entries.extend(entries.iter().cloned());
        kept.floor = kept.floor.max(kept.begin + kept.entries.len() as u64);
        self.run(async {
            self.store.append(first, entries, Box::new(move |result| drop(reply.send(result)))).await?;
            answer.await.map_err(io::Error::other)?
        })
    }
}

/// What consensus asks of its store: what is purged is in the snapshot.
fn covers_the_purged(found: &Recovered) -> Result<(), String> {
    let reach = found.snapshot.as_ref().map_or(0, |snapshot| snapshot.index + 1);
    match &found.purged {
        Some(purged) if reach <= purged.index => {
            Err(format!("purged to {}, snapshot to {reach}", purged.index))
        }
        _ => Ok(()),
    }
}

fn entries(count: usize, bytes: usize, rng: &mut Rng) -> Vec<Bytes> {
    let entry = |rng: &mut Rng| (0..rng.usize(1..=bytes)).map(|_| rng.u8(..)).collect();
    (0..count).map(|_| entry(rng)).collect()
}

/// A store as some life has left it.
struct Base {
    name: &'static str,
    dir: TempDir,
    kept: Kept,
}

/// Stores of several kinds, each with a vote and an identity; with other voters, but for the one that is named.
fn bases() -> Vec<Base> {
    let names = [
        "log",
        "alone",
        "many frames",
        "snapshot and purge",
        "truncated",
        "installed",
        "in quarantine",
        "fresh",
    ];
    names.into_iter().map(base).collect()
}

fn base(name: &'static str) -> Base {
    let dir = scratch();
    let mut rng = Rng::with_seed(7);
    let mut kept = Kept::default();
    let (mut store, _) = Driven::open(dir.path()).expect("an empty directory");
    let put =
        |store: &Driven, slot, value: &[u8]| store.run(store.store.put(slot, value.to_vec())).expect("kept");
    put(&store, Slot::Identity, b"cluster, node 3");
    kept.identity = Some(b"cluster, node 3".to_vec());
    store.run(store.store.alone(name == "alone")).expect("queued");
    let mut fill = |store: &Driven, kept: &mut Kept, appends: usize, bytes: usize| {
        for _ in 0..appends {
            let entries = entries(rng.usize(1..8), bytes, &mut rng);
            store.append(kept, entries).expect("appended");
            let mark = (kept.begin + kept.entries.len() as u64 - 1).to_be_bytes().to_vec();
            kept.committed.push(mark.clone());
            store.store.note_committed(mark);
        }
    };
    if name != "fresh" {
        fill(&store, &mut kept, if name == "many frames" { 300 } else { 20 }, 900);
    }
    put(&store, Slot::Vote, b"term 2");
    put(&store, Slot::Vote, b"term 3");
    kept.vote = Some(b"term 3".to_vec());
    let end = kept.begin + kept.entries.len() as u64;
    match name {
        "truncated" => {
            kept.entries.truncate(kept.entries.len() - 17);
            store.run(store.store.truncate_from(end - 17)).expect("truncated");
            kept.floor = end - 17;
            fill(&store, &mut kept, 3, 200);
        }
        "snapshot and purge" | "installed" => {
            let index = if name == "installed" { end + 40 } else { end - 5 };
            let chunks = entries(6, 60_000, &mut Rng::with_seed(9));
            let snapshot = Snapshot { index, meta: b"of it all".to_vec(), chunks };
            store.run(store.store.save_snapshot(snapshot.clone())).expect("saved");
            let purged = Purged { index, mark: b"up to here".to_vec() };
            store.run(store.store.purge(purged.clone())).expect("purged");
            let gone = kept.entries.len().min((index + 1 - kept.begin) as usize);
            kept.entries.drain(..gone);
            (kept.begin, kept.snapshot, kept.purged) = (index + 1, Some(snapshot), Some(purged));
            kept.floor = kept.floor.max(index + 1);
            fill(&store, &mut kept, 5, 300);
        }
        "in quarantine" => {
            store.run(store.store.condemn("a test says so")).expect("durable");
            store.close();
            let found;
            (store, found) = Driven::open(dir.path()).expect("set aside");
            assert_eq!(found.quarantine.map(|quarantine| quarantine.floor), Some(kept.floor));
            (kept.entries, kept.committed, kept.quarantined) = (Vec::new(), Vec::new(), true);
            fill(&store, &mut kept, 4, 300);
            kept.floor = end;
        }
        _ => {}
    }
    // The last mark is written with a barrier that somebody waits for.
    put(&store, Slot::Identity, b"cluster, node 3");
    store.close();
    if !matches!(name, "log" | "fresh") {
        // sled writes more files when it opens what is there.
        open_patiently(dir.path()).expect("sound").0.close();
    }
    Base { name, dir, kept }
}

/// In memory where that is possible: what a file system does is not the question here.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let builder = tempfile::Builder::new();
    if memory.is_dir() { builder.tempdir_in(memory) } else { builder.tempdir() }.expect("a directory")
}

// ---- judging ----

/// What became of a damaged store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// It is what it was.
    Exact,
    /// It knows itself and its vote, and takes no part until it is repaired.
    Quarantined,
    /// A person is told what to do.
    Refused,
    /// Anything else: what is wrong with it.
    Bad(String),
}

fn judge(dir: &Path, kept: &Kept) -> Verdict {
    let (store, found) = match open_patiently(dir) {
        Ok(opened) => opened,
        Err(error) => return refused(dir, &error),
    };
    if found.quarantine.is_some() && !kept.quarantined {
        let verdict = quarantined(dir, kept, &found);
        store.close();
        return verdict;
    }
    if let Err(lost) = exact(&store, kept, &found) {
        // One that was in quarantine may have been damaged again: it begins anew, and remembers.
        let verdict =
            if found.quarantine.is_some() { quarantined(dir, kept, &found) } else { Verdict::Bad(lost) };
        store.close();
        return verdict;
    }
    // It takes new entries, and is exact again after another opening.
    let mut kept = kept.clone();
    let written = store.append(&mut kept, vec![Bytes::from_static(b"one more")]);
    store.close();
    if let Err(error) = written {
        // The process would have ended: the next opening judges.
        kept.entries.pop();
        return match open_patiently(dir) {
            Ok((store, found)) => {
                let longer = found.log.end == kept.begin + kept.entries.len() as u64 + 1;
                if longer {
                    kept.entries.push(Bytes::from_static(b"one more"));
                }
                let same = exact(&store, &kept, &found);
                let verdict = match (same, found.quarantine.is_some()) {
                    (Ok(()), _) => Verdict::Exact,
                    (Err(_), true) => quarantined(dir, &kept, &found),
                    (Err(lost), false) => Verdict::Bad(format!("after {error}: {lost}")),
                };
                store.close();
                verdict
            }
            Err(error) => refused(dir, &error),
        };
    }
    match open_patiently(dir) {
        Ok((store, found)) => {
            let verdict = match (exact(&store, &kept, &found), found.quarantine.is_some()) {
                (Ok(()), _) => Verdict::Exact,
                (Err(_), true) => quarantined(dir, &kept, &found),
                (Err(lost), false) => Verdict::Bad(format!("at the second opening: {lost}")),
            };
            store.close();
            verdict
        }
        Err(error) => refused(dir, &error),
    }
}

/// sled's threads may hold its lock for a moment after it is closed.
fn open_patiently(dir: &Path) -> Result<(Driven, Recovered), Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Driven::open(dir) {
            Err(Error::Io { source, .. }) if is_locked(&source) && Instant::now() < deadline => {
                std::thread::yield_now()
            }
            opened => return opened,
        }
    }
}

fn is_locked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ResourceBusy
        || error.kind() == io::ErrorKind::WouldBlock
        || error.to_string().contains("could not acquire lock")
}

fn exact(store: &Driven, kept: &Kept, found: &Recovered) -> Result<(), String> {
    let log = kept.begin..kept.begin + kept.entries.len() as u64;
    if found.log != log {
        return Err(format!("the log is {:?}, not {log:?}", found.log));
    }
    if (&found.vote, &found.identity) != (&kept.vote, &kept.identity) {
        return Err(format!("vote {:?}, identity {:?}", found.vote, found.identity));
    }
    if found.purged != kept.purged {
        return Err(format!("purged {:?}", found.purged));
    }
    if found.snapshot != kept.snapshot {
        return Err(format!(
            "the snapshot is {:?}",
            found.snapshot.as_ref().map(|s| (s.index, s.chunks.len()))
        ));
    }
    if found.committed.as_ref().is_some_and(|mark| !kept.committed.contains(mark)) {
        return Err(format!("a commit mark that nobody wrote: {:?}", found.committed));
    }
    match store.run(store.store.read(log)) {
        Ok(read) if read == kept.entries => Ok(()),
        Ok(_) => Err("the entries are not those that were written".into()),
        Err(error) => Err(format!("an entry that was opened cannot be read: {error}")),
    }
}

/// It must know who it is, how it voted and how far it must get, and have kept what was damaged.
fn quarantined(dir: &Path, kept: &Kept, found: &Recovered) -> Verdict {
    let Some(quarantine) = &found.quarantine else { return Verdict::Bad("no quarantine".into()) };
    let aside = fs::read_dir(dir).is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("sled.damaged-")))
    });
    let knows_itself = (&found.vote, &found.identity) == (&kept.vote, &kept.identity);
    if knows_itself && aside && quarantine.floor >= kept.floor && !quarantine.why.is_empty() {
        return Verdict::Quarantined;
    }
    Verdict::Bad(format!(
        "in quarantine with vote {:?}, identity {:?}, set aside {aside}, {quarantine:?}, and the floor was {}",
        found.vote, found.identity, kept.floor
    ))
}

fn refused(dir: &Path, error: &Error) -> Verdict {
    let text = error.to_string();
    let helps = text.contains("--join") || text.contains("Remove sled.damaged-");
    match error {
        Error::Damaged { .. } | Error::Foreign { .. } | Error::Aside { .. }
            if helps && text.contains(&*dir.to_string_lossy()) =>
        {
            Verdict::Refused
        }
        other => Verdict::Bad(format!("an error that does not help: {other}: {other:?}")),
    }
}

/// What a case was, for people.
struct Case {
    seed: u64,
    base: &'static str,
    kind: String,
    fault: Fault,
    verdict: Verdict,
}

fn run_case(seed: u64, bases: &[Base]) -> Case {
    let mut rng = Rng::with_seed(seed);
    let base = &bases[rng.usize(..bases.len())];
    let dir = scratch();
    copy(base.dir.path(), dir.path());
    let files = files(dir.path());
    let mut kinds: BTreeMap<String, Vec<&PathBuf>> = BTreeMap::new();
    files.iter().for_each(|file| kinds.entry(kind(file)).or_default().push(file));
    // The database itself is most of what there is.
    let kind = match rng.bool() {
        true => "sled/db".to_owned(),
        false => kinds.keys().nth(rng.usize(..kinds.len())).expect("there are files").clone(),
    };
    let file = dir.path().join(kinds[&kind][rng.usize(..kinds[&kind].len())]);
    let fault = Fault::draw(&file, &mut rng);
    fault.strike(&file).expect("the fault fits the file");
    let judged = catch_unwind(AssertUnwindSafe(|| judge(dir.path(), &base.kept)));
    let verdict = judged.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map_or("a panic", String::as_str).to_owned();
        Verdict::Bad(format!("panicked: {text}"))
    });
    Case { seed, base: base.name, kind, fault, verdict }
}

/// sled says much of what it finds, by panicking; only what reaches the user counts.
fn quiet_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let thread = std::thread::current();
        let ours = thread.name().is_some_and(|name| name == "corruption" || name.starts_with("sled"));
        if !ours {
            before(info);
        }
    }));
}

/// All cases, on a thread of their own, so that one that hangs is noticed.
fn sweep(seeds: std::ops::Range<u64>, bases: Vec<Base>) -> Vec<Case> {
    let (tell, told) = mpsc::channel();
    let count = seeds.end - seeds.start;
    let all = seeds.clone();
    let work = move || all.map(|seed| run_case(seed, &bases)).all(|case| tell.send(case).is_ok());
    let worker = std::thread::Builder::new().name("corruption".into()).spawn(work).expect("a thread");
    let mut cases = Vec::new();
    while (cases.len() as u64) < count {
        match told.recv_timeout(4 * PATIENCE) {
            Ok(case) => cases.push(case),
            Err(why) => panic!("CORRUPTION_SEED={}: no verdict: {why}", seeds.start + cases.len() as u64),
        }
    }
    // It takes the stores' directories away, which are memory.
    worker.join().expect("every case is judged");
    cases
}

/// Every fault in every file of every kind of store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_in_any_file_is_never_silent() {
    let _turn = node::turn().await;
    quiet_panics();
    let first = from_env("CORRUPTION_SEED", 1);
    let count = from_env("CORRUPTION_CASES", CASES);
    let cases =
        tokio::task::spawn_blocking(move || sweep(first..first + count, bases())).await.expect("it ends");
    let mut tally: BTreeMap<(String, String), usize> = BTreeMap::new();
    for case in &cases {
        let verdict =
            if let Verdict::Bad(_) = case.verdict { "BAD".to_owned() } else { format!("{:?}", case.verdict) };
        *tally.entry((case.kind.clone(), verdict)).or_default() += 1;
    }
    let mut report = format!("{count} cases from seed {first}\n");
    tally
        .iter()
        .for_each(|((kind, verdict), count)| report += &format!("  {kind:<24} {verdict:<12} {count}\n"));
    println!("{report}");
    let bad: Vec<_> = cases.iter().filter(|case| matches!(case.verdict, Verdict::Bad(_))).collect();
    let lines = bad.iter().map(|case| {
        format!(
            "CORRUPTION_SEED={} ({}, {}, {:?}): {:?}",
            case.seed, case.base, case.kind, case.fault, case.verdict
        )
    });
    assert!(bad.is_empty(), "{} bad of\n{report}{}", bad.len(), lines.collect::<Vec<_>>().join("\n"));
    if count >= CASES {
        let seen = |verdict: &Verdict| cases.iter().any(|case| case.verdict == *verdict);
        let all = seen(&Verdict::Exact) && seen(&Verdict::Quarantined) && seen(&Verdict::Refused);
        assert!(all, "the faults are too few to tell: {report}");
    }
}

// ---- whole processes ----

/// The same through a process: it serves exactly what was registered, or ends with code 78 and the remedy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_on_a_damaged_directory_serves_all_or_says_why_not() {
    let mut cluster = Cluster::start(1, &["--snapshot-every", "20", "--log-keep", "5"]).await;
    let rest = cluster.nodes[0].rest.clone();
    let mut registered = Vec::new();
    for number in 0..50 {
        let body = json!({ "service": "web", "url": "http://127.0.0.1:1", "ttlMs": 3_600_000, "version": "v".repeat(number) });
        let reply = call("PUT", &format!("{rest}/v1/instances/i{number:02}"), &body.to_string()).await;
        assert_eq!(reply.status, 201, "{}", reply.json());
        registered.push((format!("i{number:02}"), "v".repeat(number)));
    }
    cluster.nodes[0].kill();
    cluster.nodes[0].spawn();
    cluster.wait_ready().await;
    cluster.nodes[0].kill();
    let home = cluster.nodes[0].dir();
    let whole = scratch();
    copy(&home, whole.path());
    let first = from_env("CORRUPTION_SEED", 1);
    let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in first..first + PROCESS_CASES {
        fs::remove_dir_all(&home).expect("it is there");
        copy(whole.path(), &home);
        let mut rng = Rng::with_seed(seed);
        let files = files(&home);
        let file = match rng.bool() {
            true => home.join("sled/db"),
            false => home.join(&files[rng.usize(..files.len())]),
        };
        let fault = Fault::draw(&file, &mut rng);
        fault.strike(&file).expect("the fault fits the file");
        let what = format!("CORRUPTION_SEED={seed} ({}, {fault:?})", file.display());
        let logged = cluster.nodes[0].log().len();
        cluster.nodes[0].spawn();
        match cluster.nodes[0].ready_or_exit().await {
            None => {
                assert_eq!(listed(&rest).await, registered, "{what}");
                *outcomes.entry("exact").or_default() += 1;
            }
            Some(code) => {
                let log = cluster.nodes[0].log()[logged..].to_owned();
                let helps = log.contains("--join") && log.contains(&*home.to_string_lossy());
                assert!(code == Some(78) && helps, "{what}: code {code:?}\n{log}");
                *outcomes.entry("refused").or_default() += 1;
            }
        }
        cluster.nodes[0].kill();
    }
    println!("{outcomes:?}");
    assert_eq!(outcomes.len(), 2, "the faults are too few to tell: {outcomes:?}");
}

async fn listed(rest: &str) -> Vec<(String, String)> {
    let list = call("GET", &format!("{rest}/v1/services/web"), "").await.json();
    let text = |one: &serde_json::Value, field: &str| one[field].as_str().unwrap_or_default().to_owned();
    let instances = list["instances"].as_array().cloned().unwrap_or_default();
    instances.iter().map(|one| (text(one, "id"), text(one, "version"))).collect()
}
