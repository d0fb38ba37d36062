//! How full a filesystem is, asked so that one that hangs harms nobody.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatVfsMountFlags, StatxFlags, fstatvfs, openat, statx};

use super::{
    Deleted, Largest, Mount, ProbeError, deleted::deleted_files, device_of, folder::folder_size,
    largest_entries, mounts,
};
use crate::blocking::InFlight;

/// Sizes of one filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// All of it, in bytes.
    pub size: u64,
    /// What nobody uses, in bytes, reserved blocks included.
    pub free: u64,
    /// What users other than root may still fill, in bytes.
    pub avail: u64,
    /// All inodes; 0 where the filesystem makes them as it goes (btrfs).
    pub files: u64,
    /// Inodes that nobody uses.
    pub files_free: u64,
    /// Mounted read-only.
    pub read_only: bool,
    /// `st_dev` of what is really at the path, to tell a hidden mount from the one that shows. `None` where the kernel
    /// would not say.
    pub device: Option<u64>,
}

impl Usage {
    /// The used part, 0 to 1: `1 − avail / size`, so that reserved blocks count as used. 0 for an empty size.
    pub fn used_ratio(&self) -> f64 {
        used(self.avail, self.size).unwrap_or(0.0)
    }

    /// The used part of the inodes, 0 to 1; `None` where there is no fixed number of them.
    pub fn inodes_used_ratio(&self) -> Option<f64> {
        used(self.files_free, self.files)
    }
}

/// Quotas may say that more is left than there is.
#[allow(clippy::cast_precision_loss, reason = "a ratio of sizes needs no 64 bits")]
fn used(left: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| (1.0 - left as f64 / all as f64).clamp(0.0, 1.0))
}

/// What fills a filesystem, the most first. Lower bounds, where there was not the time or the right to see all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filling {
    /// Folders and files, with their allocated bytes.
    pub by_bytes: Vec<(PathBuf, u64)>,
    /// Folders, with the files and folders that they hold, themselves included.
    pub by_inodes: Vec<(PathBuf, u64)>,
    /// Files that have no name any more and are still open.
    pub deleted: Vec<Deleted>,
    /// What is free and kept for root, or by the filesystem for itself (ext4 keeps up to 2 % so), in bytes.
    pub reserved_bytes: u64,
}

/// Asks filesystems on threads of its own, one question at a time for each path. Clones share what is under way and what
/// is known to be stuck.
#[derive(Debug, Clone, Default)]
pub struct Prober {
    usages: InFlight<Usage>,
    lists: InFlight<Arc<[Mount]>>,
    walks: InFlight<Filling>,
    folders: InFlight<Option<u64>>,
}

/// Entries of each kind that a walk keeps.
const MOST_TOLD: usize = 20;

impl Prober {
    /// The sizes of the filesystem at `path`.
    ///
    /// # Errors
    /// After `limit`, at once when an earlier question to the same path is known to be stuck, and with the kernel's error.
    pub async fn usage(&self, path: &Path, limit: Duration) -> Result<Usage, ProbeError> {
        let subject = Arc::<Path>::from(path);
        self.usages.run(Arc::clone(&subject), limit, move || usage(&subject)).await
    }

    /// The sizes of the filesystems at all these paths, in their order, within `limit` in all: those that answer do so
    /// however many others hang.
    ///
    /// # Errors
    /// Each path has its own, as [`Prober::usage`].
    pub async fn usages(&self, paths: Vec<Arc<Path>>, limit: Duration) -> Vec<Result<Usage, ProbeError>> {
        self.usages.run_all(paths, limit, usage).await
    }

    /// The bytes that the files in `folder` and in the folders directly in it take on the disk, hard links counted each
    /// time; `None` where there is no such folder.
    ///
    /// # Errors
    /// As [`Prober::usage`], and when there are more than 10,000 files.
    pub async fn folder_size(&self, folder: &Path, limit: Duration) -> Result<Option<u64>, ProbeError> {
        let subject = Arc::<Path>::from(folder);
        self.folders.run(Arc::clone(&subject), limit, move || folder_size(&subject)).await
    }

    /// [`mounts`], waited for with a limit: reading the list waits for whoever is mounting something right now.
    ///
    /// # Errors
    /// As [`Prober::usage`].
    pub async fn mounts(&self, limit: Duration) -> Result<Arc<[Mount]>, ProbeError> {
        self.lists.run(Path::new("mountinfo").into(), limit, || mounts().map(Arc::from)).await
    }

    /// What fills the filesystem at `path`: at most 20 of each kind, found within about `limit`, and one look at a time
    /// for each path.
    ///
    /// # Errors
    /// As [`Prober::usage`], with twice `limit`.
    pub async fn filling(&self, path: &Path, limit: Duration) -> Result<Filling, ProbeError> {
        let subject = Arc::<Path>::from(path);
        let root = Arc::clone(&subject);
        self.walks.run(subject, limit * 2, move || filling(&root, limit)).await
    }
}

/// May block for as long as it likes.
fn filling(root: &Path, limit: Duration) -> io::Result<Filling> {
    let began = Instant::now();
    let usage = usage(root)?;
    // Few processes have many files open: this is quick, and the walk has the rest of the time.
    let deleted = usage.device.map_or_else(Vec::new, |device| {
        deleted_files(Path::new("/proc"), device, began + limit / 4, MOST_TOLD)
    });
    let Largest { by_bytes, by_inodes } =
        largest_entries(root, true, limit.saturating_sub(began.elapsed()), MOST_TOLD);
    let reserved_bytes = usage.free.saturating_sub(usage.avail);
    Ok(Filling { by_bytes, by_inodes, deleted, reserved_bytes })
}

/// May block for as long as it likes.
fn usage(path: &Path) -> io::Result<Usage> {
    // One handle for both questions, so that they are about the same filesystem whatever is mounted meanwhile.
    let root = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let sizes = fstatvfs(&root)?;
    // Asking for nothing is answered with st_dev alone, also by a FUSE mount that lets nobody else in.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let device = statx(&root, c"", flags, StatxFlags::empty()).ok().map(|seen| device_of(&seen));
    let bytes = |blocks: u64| blocks.saturating_mul(sizes.f_frsize);
    Ok(Usage {
        size: bytes(sizes.f_blocks),
        free: bytes(sizes.f_bfree),
        avail: bytes(sizes.f_bavail),
        files: sizes.f_files,
        files_free: sizes.f_ffree,
        read_only: sizes.f_flag.contains(StatVfsMountFlags::RDONLY),
        device,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::{super::device_id, *};

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn asks_the_filesystem_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let usage = Prober::default().usage(folder.path(), PATIENCE).await.unwrap();
        let expected = rustix::fs::statvfs(folder.path()).unwrap();
        assert_eq!(usage.size, expected.f_blocks * expected.f_frsize);
        assert_eq!(usage.files, expected.f_files);
        assert!(usage.avail <= usage.free && usage.free <= usage.size, "{usage:?}");
        assert!(!usage.read_only);
        let device = folder.path().metadata().unwrap().dev();
        assert_eq!((usage.device, device_id(folder.path()).unwrap()), (Some(device), device));
    }

    #[tokio::test]
    async fn asks_many_as_it_asks_one() {
        let folder = tempfile::tempdir().unwrap();
        let prober = Prober::default();
        let one = prober.usage(folder.path(), PATIENCE).await.unwrap();
        let all =
            prober.usages(vec![Path::new("/no/such/place").into(), folder.path().into()], PATIENCE).await;
        assert_eq!(all[0].as_ref().unwrap_err().to_string(), "No such file or directory (os error 2)");
        // Somebody may write meanwhile.
        let other = all[1].as_ref().unwrap();
        assert_eq!((other.size, other.files, other.device), (one.size, one.files, one.device));
    }

    #[tokio::test]
    async fn says_what_the_kernel_says() {
        let error = Prober::default().usage(Path::new("/no/such/place"), PATIENCE).await.unwrap_err();
        assert_eq!(error.to_string(), "No such file or directory (os error 2)");
        assert!(device_id(Path::new("/no/such/place")).is_err());
    }

    #[tokio::test]
    async fn what_fills_it_is_told_from_one_look() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("many")).unwrap();
        for number in 0..30 {
            std::fs::write(folder.path().join(format!("many/{number}")), vec![1; 5000]).unwrap();
        }
        let filling = Prober::default().filling(folder.path(), PATIENCE).await.unwrap();
        assert_eq!(filling.by_inodes, [(folder.path().join("many"), 31)]);
        assert_eq!(filling.by_bytes.first().map(|(path, _)| path.clone()), Some(folder.path().join("many")));
        assert!(filling.by_bytes.len() <= MOST_TOLD);
        let nowhere = Prober::default().filling(Path::new("/no/such/place"), PATIENCE).await;
        assert_eq!(nowhere.unwrap_err().reason(), "os");
    }

    #[tokio::test]
    async fn lists_mounts_too() {
        let listed = Prober::default().mounts(PATIENCE).await.unwrap();
        assert!(listed.iter().any(|mount| &*mount.mount_point == Path::new("/")));
    }

    #[test]
    fn ratios_count_reserved_blocks_as_used() {
        let usage = Usage { size: 150, free: 30, avail: 15, files: 100, files_free: 25, ..Usage::default() };
        assert!((usage.used_ratio() - 0.9).abs() < 1e-9);
        assert!((usage.inodes_used_ratio().unwrap() - 0.75).abs() < 1e-9);
    }

    #[test]
    fn ratios_of_odd_filesystems() {
        let nothing = Usage::default();
        assert_eq!((nothing.used_ratio(), nothing.inodes_used_ratio()), (0.0, None));
        let more_left_than_there_is =
            Usage { size: 10, avail: 20, files: 10, files_free: 20, ..Usage::default() };
        assert_eq!(
            (more_left_than_there_is.used_ratio(), more_left_than_there_is.inodes_used_ratio()),
            (0.0, Some(0.0))
        );
    }
}
