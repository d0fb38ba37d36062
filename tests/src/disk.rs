//! A disk of a chosen size that really fills: an ext4 in a file, mounted over a loop device.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use rustix::fs::statvfs;

use crate::{namespace, tools};

/// A mounted disk. Dropping it unmounts it and removes the file.
#[derive(Debug)]
pub struct Disk {
    mount_point: PathBuf,
    image: PathBuf,
}

/// How full a filesystem is, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// All of it.
    pub size: u64,
    /// What an ordinary user may still write.
    pub avail: u64,
}

impl Usage {
    /// 1 − avail / size, evenkeel's one formula for disk usage.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio needs no 53 bits")]
    pub fn used_ratio(self) -> f64 {
        1.0 - self.avail as f64 / self.size as f64
    }
}

impl Disk {
    /// Makes and mounts a disk of `mib` MiB. Nothing is reserved for root, so that it can be filled
    /// to the last byte.
    ///
    /// # Errors
    ///
    /// When there is no room, no loop device, or no `mkfs.ext4`.
    pub fn new(name: &str, mib: u64) -> Result<Self> {
        Self::made(name, mib, &[])
    }

    /// The same with so many inodes, for files that use these up before the bytes.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn of_inodes(name: &str, mib: u64, inodes: u64) -> Result<Self> {
        Self::made(name, mib, &["-N", &inodes.to_string()])
    }

    fn made(name: &str, mib: u64, more: &[&str]) -> Result<Self> {
        let mount_point = namespace::place(name)?;
        let image = mount_point.with_extension("img");
        File::create(&image)?.set_len(mib * 1024 * 1024)?;
        let mut format = tools::command("mkfs.ext4");
        format.args(["-q", "-m", "0"]).args(more).arg(&image);
        tools::run_blocking(format)?;
        let disk = Self { mount_point, image };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<()> {
        let mut mount = tools::command("mount");
        mount.args(["-o", "loop"]).arg(&self.image).arg(&self.mount_point);
        tools::run_blocking(mount)
            .context("cannot mount a disk image (are loop devices available?)")
            .map(drop)
    }

    /// Has the kernel treat it as one that has failed: read-only from now on, whatever is open on it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn fail(&self) -> Result<()> {
        let mut abort = tools::command("mount");
        // ext4(5): what ext4_abort() does at an I/O error, for debugging.
        abort.args(["-o", "remount,abort"]).arg(&self.mount_point);
        // Depending on its age, mount(8) says that this failed, which is what was wanted.
        tools::run_blocking(abort).ok();
        let probe = File::create(self.mount_point.join("probe"));
        ensure!(probe.is_err(), "{} can still be written", self.mount_point.display());
        Ok(())
    }

    /// Puts a repaired copy of it in its place, as whoever changes a disk does. Nobody may have anything open on it.
    ///
    /// # Errors
    ///
    /// When it is in use or cannot be repaired.
    pub fn mend(&mut self) -> Result<()> {
        let mut umount = tools::command("umount");
        umount.arg(&self.mount_point);
        tools::run_blocking(umount)?;
        // A copy: other namespaces of the lab may still have the failed one mounted, and then it stays as it is.
        let mended = self.image.with_extension("mended.img");
        fs::copy(&self.image, &mended)?;
        fs::remove_file(&self.image)?;
        self.image = mended;
        let mut check = tools::command("e2fsck");
        check.args(["-f", "-p"]).arg(&self.image);
        // 1, errors were found and corrected, is what it is asked for.
        tools::run_blocking(check).ok();
        self.mount()
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// How full it is now, asked of the kernel.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub fn usage(&self) -> Result<Usage> {
        let stat = statvfs(&self.mount_point)?;
        Ok(Usage { size: stat.f_blocks * stat.f_frsize, avail: stat.f_bavail * stat.f_frsize })
    }

    /// The part of its inodes that is in use.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub fn inodes_used_ratio(&self) -> Result<f64> {
        let stat = statvfs(&self.mount_point)?;
        #[expect(clippy::cast_precision_loss, reason = "some thousand inodes")]
        Ok(1.0 - stat.f_ffree as f64 / stat.f_files as f64)
    }

    /// Writes a file until the disk is `ratio` full, and returns its path.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn fill_to(&self, ratio: f64, name: &str) -> Result<PathBuf> {
        let path = self.mount_point.join(name);
        let mut file = File::create(&path)?;
        let block = vec![0x5a_u8; 1024 * 1024];
        while self.usage()?.used_ratio() < ratio {
            file.write_all(&block)?;
            // Blocks that are only promised do not count in statvfs.
            file.sync_data()?;
        }
        Ok(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut umount = tools::command("umount");
        umount.arg(&self.mount_point);
        if let Err(error) = tools::run_blocking(umount) {
            eprintln!("{error:#}");
            return;
        }
        fs::remove_dir(&self.mount_point).ok();
        fs::remove_file(&self.image).ok();
    }
}
