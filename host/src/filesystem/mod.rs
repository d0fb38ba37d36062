//! The mounted filesystems: which there are, how full they are, and what fills one. Not here: which of them deserve a
//! metric or a repair.
//!
//! A filesystem may hang (a dead NFS server, a FUSE program that died): whatever may touch one runs on a thread of its own
//! and is waited for with a limit ([`Prober`]).

mod deleted;
mod folder;
mod largest;
mod mountinfo;
mod probe;

use std::{io, path::Path};

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, makedev, statx};

/// Why a filesystem could not be asked.
pub use crate::blocking::Error as ProbeError;
pub use deleted::Deleted;
pub use largest::{Largest, largest_entries};
pub use mountinfo::{Mount, mounts, parse_mountinfo};
pub use probe::{Filling, Prober, Usage};

/// `st_dev` of what is at `path`, symlinks followed: equal for two paths on the same filesystem. Does not wait for a
/// remote server.
///
/// # Errors
/// When there is nothing at `path`, or it cannot be reached.
pub fn device_id(path: &Path) -> io::Result<u64> {
    let seen = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    Ok(device_of(&seen))
}

/// `st_dev`, which every `statx` answers whatever was asked.
fn device_of(seen: &Statx) -> u64 {
    makedev(seen.stx_dev_major, seen.stx_dev_minor)
}

#[cfg(feature = "foreign-input")]
pub(crate) const PARSERS: &[crate::foreign_input::Parser] = &[crate::foreign_input::Parser {
    name: "mountinfo",
    parse: |bytes| {
        let mounts = parse_mountinfo(&crate::foreign_input::text(bytes));
        assert!(mounts.len() <= bytes.len());
    },
    samples: &[
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n",
        "36 22 0:31 / /run/a\\040b\\012c\\134 ro,nosuid master:2 propagate_from:1 - tmpfs tmpfs\\040x rw,size=1k\n",
        "99 22 259:4294967295 /sub /mnt rw - fuse.sshfs user@host:/ rw\n",
    ],
}];
