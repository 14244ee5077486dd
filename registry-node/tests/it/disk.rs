//! Disks that fill up and disks that fail, real ones: a small ext4 on a loop device.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;
use proto::registry::v1 as pb;
use proto::registry::v1::registry_client::RegistryClient;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::sleep;
use tonic_types::StatusExt;

use super::node::{Cluster, Node, PATIENCE};
use super::wire::{call, try_call};

const MIB: u64 = 1 << 20;
/// Directories of this test; a run that was killed leaves mounts, and the next run takes them away.
const PREFIX: &str = "registry-disk-";
/// Enough writes of 12 KiB to fill what a test leaves free, several times.
const WRITES_MAX: usize = 4_000;

/// A small ext4 of its own; gone with the value.
struct Disk {
    mount: PathBuf,
    /// The directories mounted below, outermost last.
    mounted: Vec<PathBuf>,
    _dir: TempDir,
}

impl Disk {
    /// None, with a word, where it cannot be made; in CI that is a failure.
    fn new(mib: u64) -> Option<Self> {
        Self::make(mib, None)
    }

    /// The same on a backing store of `backing_mib`: when that is used up, writes fail with EIO.
    fn thin(mib: u64, backing_mib: u64) -> Option<Self> {
        Self::make(mib, Some(backing_mib))
    }

    fn make(mib: u64, backing_mib: Option<u64>) -> Option<Self> {
        sweep();
        if !Uid::effective().is_root() {
            assert!(std::env::var_os("CI").is_none(), "a disk of one's own needs root");
            eprintln!("not run: a disk of one's own needs root");
            return None;
        }
        let dir = tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir();
        let dir = dir.expect("a temporary directory");
        let (backing, mount) = (dir.path().join("backing"), dir.path().join("mount"));
        fs::create_dir(&backing).expect("a directory");
        fs::create_dir(&mount).expect("a directory");
        let mut disk = Self { mount, mounted: Vec::new(), _dir: dir };
        if let Some(backing_mib) = backing_mib {
            let size = format!("size={backing_mib}m");
            tool("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", path(&backing)]);
            disk.mounted.push(backing.clone());
        }
        let image = backing.join("image");
        File::create(&image).and_then(|file| file.set_len(mib * MIB)).expect("an image");
        tool("mkfs.ext4", &["-q", "-F", "-m", "0", path(&image)]);
        disk.mount_image();
        Some(disk)
    }

    fn image(&self) -> PathBuf {
        self.mount.with_file_name("backing").join("image")
    }

    fn mount_image(&mut self) {
        tool("mount", &["-o", "loop", path(&self.image()), path(&self.mount)]);
        self.mounted.insert(0, self.mount.clone());
    }

    /// Gives the backing store more room and mounts the file system anew, as it is on its device.
    fn repair(&mut self, backing_mib: u64) {
        tool("umount", &[path(&self.mounted.remove(0))]);
        let backing = self.mount.with_file_name("backing");
        tool("mount", &["-o", &format!("remount,size={backing_mib}m"), path(&backing)]);
        self.mount_image();
    }

    fn free(&self) -> u64 {
        let disk = statvfs(&self.mount).expect("it is mounted");
        disk.blocks_available() * disk.fragment_size()
    }

    /// Lets a file grow until `free` bytes are left, or until the disk takes no more.
    fn fill(&self, free: u64) {
        let mut file = File::options().create(true).append(true).open(self.filler()).expect("it opens");
        let mut block = vec![1; MIB as usize];
        while self.free() > free && !block.is_empty() {
            block.truncate((self.free() - free).min(MIB) as usize);
            if file.write_all(&block).is_err() {
                block.truncate(block.len() / 2);
            }
            let _ = file.sync_all(); // what is still on its way does not count as used yet
        }
    }

    fn empty(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("filler")
    }

    fn ballast(&self) -> PathBuf {
        self.mount.join("node-1/ballast")
    }

    async fn wait_for_ballast(&self, bytes: u64) {
        let deadline = Instant::now() + PATIENCE;
        while !fs::metadata(self.ballast()).is_ok_and(|m| m.blocks() * 512 >= bytes) {
            assert!(Instant::now() < deadline, "no ballast of {bytes} bytes");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for mount in &self.mounted {
            unmount(mount);
        }
    }
}

fn unmount(mount: &Path) {
    let plain = Command::new("umount").arg(mount).output();
    if !plain.is_ok_and(|out| out.status.success()) {
        let _ = Command::new("umount").arg("-l").arg(mount).output(); // a process of a failed test may still use it
    }
}

/// Takes away what runs that were killed have left: their process is gone.
fn sweep() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
        let owner =
            mount.split('/').find_map(|part| part.strip_prefix(PREFIX)?.split('-').next()?.parse().ok());
        let Some(owner): Option<u32> = owner else { continue };
        if !Path::new("/proc").join(owner.to_string()).exists() {
            unmount(Path::new(mount));
        }
    }
}

fn tool(name: &str, args: &[&str]) {
    let out = Command::new(name).args(args).output().unwrap_or_else(|e| panic!("{name} is needed: {e}"));
    assert!(out.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn path(path: &Path) -> &str {
    path.to_str().expect("our own names are text")
}

/// Registers an instance of some 12 KiB that does not expire while a test runs; the answer's status, if there is one.
async fn register(node: &Node, id: usize) -> Option<u16> {
    let body = json!({
        "service": "web", "url": "http://127.0.0.1:1", "ttlMs": 3_600_000, "metadata": { "fill": "x".repeat(12_000) },
    });
    let reply = try_call("PUT", &format!("{}/v1/instances/i{id}", node.rest), &body.to_string()).await;
    reply.ok().map(|reply| reply.status)
}

async fn listed(node: &Node) -> BTreeSet<String> {
    let list = call("GET", &format!("{}/v1/services/web", node.rest), "").await;
    assert_eq!(list.status, 200, "{}", list.json());
    let list = list.json();
    let instances = list["instances"].as_array().cloned().unwrap_or_default();
    let whole =
        |one: &serde_json::Value| one["metadata"]["fill"].as_str().is_some_and(|fill| fill.len() == 12_000);
    assert!(instances.iter().all(whole), "a record is not what was registered");
    instances.iter().map(|one| one["id"].as_str().expect("an id").to_owned()).collect()
}

/// Registers until something else than success comes; what was acknowledged, and what came.
async fn register_until_refused(node: &Node, acknowledged: &mut BTreeSet<String>) -> Option<u16> {
    for _ in 0..WRITES_MAX {
        let id = acknowledged.len();
        match register(node, id).await {
            Some(201) => acknowledged.insert(format!("i{id}")),
            other => return other,
        };
    }
    panic!("{WRITES_MAX} writes did not fill the disk");
}

/// Below the mark writes are refused with a clear error, and reads and heartbeats go on; a node starts on a disk
/// without a free byte, several times; once there is room writes go on. Nothing acknowledged is lost on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    let Some(disk) = Disk::new(144) else { return };
    let flags = ["--disk-free-min-mib", "32", "--ballast-mib", "16"];
    let mut cluster = Cluster::start_on(Some(&disk.mount), 1, &flags).await;
    disk.wait_for_ballast(16 * MIB).await;
    disk.fill(36 * MIB);
    let mut acknowledged = BTreeSet::new();
    assert_eq!(register_until_refused(&cluster.nodes[0], &mut acknowledged).await, Some(507));
    assert!(disk.free() > 24 * MIB, "refused with {} bytes left", disk.free());

    let rest = cluster.nodes[0].rest.clone();
    let body = json!({ "service": "web", "url": "http://127.0.0.1:1" }).to_string();
    let refused = call("PUT", &format!("{rest}/v1/instances/more"), &body).await;
    let problem = refused.json();
    assert_eq!((refused.status, problem["code"].as_str()), (507, Some("DISK_FULL")), "{problem}");
    assert_eq!((&problem["retryable"], &problem["had_no_effect"]), (&json!(true), &json!(true)), "{problem}");
    let detail = problem["detail"].as_str().expect("a detail");
    for word in [path(&disk.mount), "MiB are free", "32 MiB", "Free space"] {
        assert!(detail.contains(word), "{word:?} is not in {detail:?}");
    }
    assert_eq!(refused.header("retry-after"), "1");
    let mut client = RegistryClient::connect(cluster.nodes[0].grpc.clone()).await.expect("it listens");
    let instance = pb::Instance {
        id: "more".into(),
        service: "web".into(),
        url: "http://127.0.0.1:1".into(),
        ..Default::default()
    };
    let request = pb::RegisterRequest { instance: Some(instance), ..Default::default() };
    let status = client.register(request).await.expect_err("refused");
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
    assert_eq!(status.get_details_error_info().map(|info| info.reason).as_deref(), Some("DISK_FULL"));

    assert_eq!(call("GET", &format!("{rest}/readyz"), "").await.status, 200);
    let checks = call("GET", &format!("{rest}/readyz?verbose"), "").await;
    assert!(String::from_utf8_lossy(&checks.body).contains("[-]disk failed"), "{checks:?}");
    let metrics = call("GET", &format!("{rest}/metrics"), "").await;
    assert!(String::from_utf8_lossy(&metrics.body).contains("\nregistry_disk_full 1\n"));
    assert_eq!(call("POST", &format!("{rest}/v1/instances/i0/heartbeat"), "{}").await.status, 200);
    assert_eq!(listed(&cluster.nodes[0]).await, acknowledged);

    disk.fill(0);
    for start in 1..=3 {
        cluster.nodes[0].kill();
        cluster.nodes[0].spawn();
        cluster.wait_ready().await;
        assert!(!disk.ballast().exists(), "start {start} needed the ballast");
        assert_eq!(listed(&cluster.nodes[0]).await, acknowledged, "start {start}");
        assert_eq!(register(&cluster.nodes[0], usize::MAX).await, Some(507), "start {start}");
    }
    disk.empty();
    let deadline = Instant::now() + PATIENCE;
    while register(&cluster.nodes[0], acknowledged.len()).await != Some(201) {
        assert!(
            Instant::now() < deadline,
            "there is room, and writes are refused: {}",
            cluster.nodes[0].log()
        );
        sleep(Duration::from_millis(20)).await;
    }
    acknowledged.insert(format!("i{}", acknowledged.len()));
    disk.wait_for_ballast(16 * MIB).await;
    assert_eq!(listed(&cluster.nodes[0]).await, acknowledged);
    assert!(
        String::from_utf8_lossy(&call("GET", &format!("{rest}/metrics"), "").await.body)
            .contains("\nregistry_disk_full 0\n")
    );
}

/// Without the mark the disk itself says no: the node ends, never having acknowledged what is not there, and starts
/// again with the ballast's room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_without_room_ends_the_node() {
    let Some(disk) = Disk::new(80) else { return };
    let flags = ["--disk-free-min-mib", "0", "--ballast-mib", "16"];
    let mut cluster = Cluster::start_on(Some(&disk.mount), 1, &flags).await;
    disk.wait_for_ballast(16 * MIB).await;
    disk.fill(4 * MIB);
    let mut acknowledged = BTreeSet::new();
    let answer = register_until_refused(&cluster.nodes[0], &mut acknowledged).await;
    assert!(answer.is_none_or(|status| status >= 500), "{answer:?}");
    assert_eq!(cluster.nodes[0].exit_code().await, Some(74), "{}", cluster.nodes[0].log());
    assert!(cluster.nodes[0].log().contains("the store cannot be written"), "{}", cluster.nodes[0].log());
    disk.fill(0);
    cluster.nodes[0].spawn();
    cluster.wait_ready().await;
    assert!(!disk.ballast().exists(), "the start needed the ballast");
    let found = listed(&cluster.nodes[0]).await;
    assert!(
        found.is_superset(&acknowledged),
        "lost: {:?}",
        acknowledged.difference(&found).collect::<Vec<_>>()
    );
    // The one that was on its way may have arrived; nothing else can be there.
    assert!(found.len() <= acknowledged.len() + 1, "{} of {}", found.len(), acknowledged.len());
}

/// A disk that fails ends the node at the first error; what it had acknowledged is on the device.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_disk_ends_the_node() {
    let Some(mut disk) = Disk::thin(256, 24) else { return };
    let mut cluster = Cluster::start_on(Some(&disk.mount), 1, &["--ballast-mib", "0"]).await;
    let mut acknowledged = BTreeSet::new();
    let answer = register_until_refused(&cluster.nodes[0], &mut acknowledged).await;
    assert!(answer.is_none_or(|status| status >= 500), "{answer:?}");
    assert_eq!(cluster.nodes[0].exit_code().await, Some(74), "{}", cluster.nodes[0].log());
    assert!(cluster.nodes[0].log().contains("the store cannot be written"), "{}", cluster.nodes[0].log());
    assert!(!acknowledged.is_empty(), "it failed before the first write");
    disk.repair(200);
    cluster.nodes[0].spawn();
    cluster.wait_ready().await;
    let found = listed(&cluster.nodes[0]).await;
    assert!(
        found.is_superset(&acknowledged),
        "lost: {:?}",
        acknowledged.difference(&found).collect::<Vec<_>>()
    );
    assert!(found.len() <= acknowledged.len() + 1, "{} of {}", found.len(), acknowledged.len());
}
