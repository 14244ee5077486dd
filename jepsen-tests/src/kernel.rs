//! What only the kernel can do, asked directly. The one place of this crate with `unsafe` in it.
#![expect(unsafe_code, reason = "an ioctl has no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

// The same number on ext4 (EXT4_IOC_SHUTDOWN, fs/ext4/ext4.h) and xfs (XFS_IOC_GOINGDOWN, fs/xfs/libxfs/xfs_fs.h):
// `_IOR('X', 125, __u32)`, though it is the kernel that reads the word.
nix::ioctl_read!(shut_down, b'X', 125, u32);

/// `EXT4_GOING_FLAGS_NOLOGFLUSH`, `XFS_FSOP_GOING_FLAGS_NOLOGFLUSH`: neither data nor journal is written any more.
const WITHOUT_FLUSHING: u32 = 2;

/// Cuts the power of the file system mounted at `mount`, ext4 or xfs: what was not synced is lost, and every call on
/// it fails from now on, until it is mounted again. Needs root.
pub(crate) fn cut_power(mount: &Path) -> io::Result<()> {
    let directory = File::open(mount)?;
    let mut how = WITHOUT_FLUSHING;
    // SAFETY: the descriptor is open for the whole call, and the kernel reads exactly one `u32` through the pointer,
    // which points at one that lives on this stack frame.
    unsafe { shut_down(directory.as_raw_fd(), &mut how) }?;
    Ok(())
}
