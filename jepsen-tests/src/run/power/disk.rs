//! A disk of one's own whose power can be cut: a file system in a file, mounted through a loop device.
//!
//! Needs root, `mount` and `mkfs.ext4` or `mkfs.xfs`. Everything is undone when the value is dropped; what a killed run
//! left behind the next one sweeps: the image's name tells whose it was.
//!
//! # What a cut keeps
//! What the file system has handed to its device counts as kept, as if the device had no cache of its own. So bytes that were
//! written back over older ones without a barrier survive here, and might not on a real disk; sizes, names and new
//! extents, which need the journal, do not survive.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cluster::Pid;
use tokio::process::Command;

use crate::kernel;
use crate::plan::cuts::Fs;

/// Images are called so, then by the pid of their owner, the moment that one began, and a name.
const PREFIX: &str = "flux-power-";
/// What a node keeps in a run is a few MiB. The images are sparse; xfs refuses less than 300 MiB.
const EXT4_BYTES: u64 = 256 << 20;
const XFS_BYTES: u64 = 320 << 20;
/// A killed process may hold its files a moment longer than its pid.
const BUSY_WITHIN: Duration = Duration::from_secs(10);
const BUSY_POLL: Duration = Duration::from_millis(5);

/// A mounted file system.
#[derive(Debug)]
pub(super) struct Disk {
    fs: Fs,
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// Makes a file system in an image below `dir` and mounts it at `at`, which is made.
    pub(super) async fn make(fs: Fs, dir: &Path, name: &str, at: PathBuf) -> anyhow::Result<Self> {
        let me = Pid::me();
        let image = dir.join(format!("{PREFIX}{}-{}-{name}.img", me.pid, me.started));
        std::fs::create_dir_all(&at).with_context(|| format!("cannot create {}", at.display()))?;
        let file =
            std::fs::File::create(&image).with_context(|| format!("cannot create {}", image.display()))?;
        let (bytes, mkfs, flags): (_, _, &[&str]) = match fs {
            Fs::Ext4 => (EXT4_BYTES, "mkfs.ext4", &["-q", "-F"]),
            Fs::Xfs => (XFS_BYTES, "mkfs.xfs", &["-q", "-f"]),
        };
        file.set_len(bytes)?;
        tool(Command::new(mkfs).args(flags).arg(&image)).await?;
        let disk = Self { fs, image, at };
        disk.mount().await?;
        Ok(disk)
    }

    /// Cuts the power: see [`kernel::cut_power`].
    pub(super) fn cut(&self) -> anyhow::Result<()> {
        let what = || format!("cannot cut the power of {} at {}", self.fs, self.at.display());
        kernel::cut_power(&self.at).with_context(what)
    }

    /// Brings the power back: what the journal has is replayed. Nobody may have a file of it open any more.
    pub(super) async fn restore(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + BUSY_WITHIN;
        while let Err(error) = tool(Command::new("umount").arg(&self.at)).await {
            anyhow::ensure!(Instant::now() < deadline, "after {BUSY_WITHIN:?}: {error:#}");
            tokio::time::sleep(BUSY_POLL).await;
        }
        self.mount().await
    }

    /// Proves that a cut here is one: a file that was synced survives it, one that was not does not.
    pub(super) async fn prove(&self) -> anyhow::Result<()> {
        let (kept, lost) = (self.at.join("synced"), self.at.join("not-synced"));
        let write = |path: &Path| -> std::io::Result<std::fs::File> {
            let mut file = std::fs::File::create(path)?;
            file.write_all(PROOF).map(|()| file)
        };
        write(&kept)?.sync_all()?;
        std::fs::File::open(&self.at)?.sync_all()?;
        write(&lost)?;
        self.cut()?;
        self.restore().await?;
        let holds = |path: &Path| std::fs::read(path).is_ok_and(|bytes| bytes == PROOF);
        anyhow::ensure!(
            holds(&kept),
            "the rig is broken: a synced file did not survive a power cut on {}",
            self.fs
        );
        anyhow::ensure!(
            !holds(&lost),
            "the rig is broken: a file that was never synced survived a power cut on {}, so this proves nothing",
            self.fs
        );
        for path in [kept, lost] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    async fn mount(&self) -> anyhow::Result<()> {
        // `-o loop` frees the device with the mount, and so its cache.
        tool(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at)).await
    }
}

const PROOF: &[u8] = b"what was synced is kept, what was not is lost";

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.at);
    }
}

/// Unmounts what can be unmounted; what somebody still has open goes when they close it.
fn unmount(at: &Path) {
    let run = |args: &[&str]| {
        let done = std::process::Command::new("umount").args(args).arg(at).output();
        done.is_ok_and(|output| output.status.success())
    };
    if !run(&[]) {
        run(&["-l"]);
    }
}

/// Unmounts and removes what earlier runs of this program left when they were killed, and nothing else.
pub(super) fn sweep() -> anyhow::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the list of mounts")?;
    for device in std::fs::read_dir("/sys/block").context("cannot list block devices")? {
        let device = device?;
        let Ok(backing) = std::fs::read_to_string(device.path().join("loop/backing_file")) else { continue };
        let image = PathBuf::from(backing.trim_end().trim_end_matches(" (deleted)"));
        if !is_left_over(&image) {
            continue;
        }
        let source = format!("/dev/{}", device.file_name().to_string_lossy());
        for at in mounts.lines().filter_map(|line| mounted(line, &source)) {
            unmount(&at);
        }
        match std::fs::remove_file(&image) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Whether this is an image of ours whose owner has gone.
fn is_left_over(image: &Path) -> bool {
    let name = image.file_name().unwrap_or_default().to_string_lossy();
    let Some(mut parts) = name.strip_prefix(PREFIX).map(|rest| rest.split('-')) else { return false };
    let (Some(Ok(pid)), Some(Ok(started))) = (parts.next().map(str::parse), parts.next().map(str::parse))
    else {
        return false;
    };
    !Pid { pid, started }.is_running()
}

/// Where `source` is mounted, by a line of `/proc/self/mountinfo` (proc(5)): the fifth field, and the second after the dash.
fn mounted(line: &str, source: &str) -> Option<PathBuf> {
    let (about, what) = line.split_once(" - ")?;
    (what.split(' ').nth(1)? == source).then(|| about.split(' ').nth(4).map(PathBuf::from))?
}

/// Runs a tool; its words are the error.
async fn tool(command: &mut Command) -> anyhow::Result<()> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.output().await.with_context(|| {
        format!("cannot run {program}: power cuts need root and the packages mount, e2fsprogs and xfsprogs")
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{program}: {}", said.trim());
    Ok(())
}
