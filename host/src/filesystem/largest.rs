//! What fills a filesystem: a walk that adds up what is really allocated, and counts files and folders, within a time
//! limit. Not here: what to do about it.

use std::{
    collections::HashSet,
    ffi::{CStr, OsStr},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Statx, StatxFlags, openat, statx},
    io::Errno,
};

use super::device_of;

/// How far down entries are named; what lies deeper counts for the entry above it.
const NAMED_DEPTH: usize = 3;
/// How far down is looked at all: each level holds a descriptor.
const DEEPEST: usize = 128;
/// Most directories that are named, and most hard links that are remembered: bounds on memory, far above real trees.
const MOST_NAMED: usize = 20_000;
const MOST_LINKS: usize = 500_000;
/// A directory of which one entry makes up this much is not told: the entry says more.
const SAYS_IT_ALL: f64 = 0.9;

/// What holds most of a tree, the most first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Largest {
    /// Folders and files, with their allocated bytes.
    pub by_bytes: Vec<(PathBuf, u64)>,
    /// Folders, with the files and folders that they hold, themselves included: each is an inode.
    pub by_inodes: Vec<(PathBuf, u64)>,
}

/// The entries below `dir` (at most three levels down) that hold most.
///
/// Walks for at most `limit`, then says what it has: lower bounds. Follows no symlink, counts each hard-linked file once,
/// and with `same_device` leaves out what is mounted below. May block in a filesystem that hangs: not for an async task.
pub fn largest_entries(dir: &Path, same_device: bool, limit: Duration, top: usize) -> Largest {
    let mut walk = Walk {
        until: Instant::now() + limit,
        only_device: None,
        named: Vec::new(),
        files: Vec::new(),
        links: HashSet::new(),
        top,
    };
    if let Ok(root) = openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        if same_device {
            walk.only_device = look(&root, c"", AtFlags::EMPTY_PATH).ok().map(|seen| device_of(&seen));
        }
        walk.tree(dir, root);
    }
    walk.largest()
}

struct Walk {
    until: Instant,
    only_device: Option<u64>,
    /// Directories down to [`NAMED_DEPTH`]; the first is the root. A parent comes before its children.
    named: Vec<Named>,
    /// Files down to that depth: only the largest are kept.
    files: Vec<Named>,
    links: HashSet<(u64, u64)>,
    top: usize,
}

struct Named {
    path: PathBuf,
    parent: usize,
    bytes: u64,
    inodes: u64,
}

/// A directory being read.
struct Level {
    entries: Dir,
    /// Which named directory its content counts for.
    named: usize,
    /// Whether that is the directory itself.
    is_named: bool,
}

impl Walk {
    fn tree(&mut self, dir: &Path, root: OwnedFd) {
        self.named.push(Named { path: dir.to_path_buf(), parent: 0, bytes: 0, inodes: 0 });
        let Ok(entries) = Dir::new(root) else { return };
        let mut levels = vec![Level { entries, named: 0, is_named: true }];
        while let Some(level) = levels.last_mut() {
            if Instant::now() >= self.until {
                return;
            }
            let Some(entry) = level.entries.next() else {
                levels.pop();
                continue;
            };
            let Ok(entry) = entry else { continue };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let depth = levels.len();
            if let Some(below) = self.entry(&levels, name, depth) {
                levels.push(below);
            }
        }
    }

    /// Counts one entry; a directory that is to be walked comes back.
    fn entry(&mut self, levels: &[Level], name: &CStr, depth: usize) -> Option<Level> {
        let level = levels.last()?;
        let parent = level.entries.fd().ok()?;
        let seen = look(parent, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT).ok()?;
        if self.only_device.is_some_and(|device| device != device_of(&seen)) {
            return None;
        }
        let is_directory = FileType::from_raw_mode(u32::from(seen.stx_mode)) == FileType::Directory;
        let counts = is_directory || self.first_link(&seen);
        let bytes = if counts { seen.stx_blocks.saturating_mul(512) } else { 0 };
        let is_nameable = level.is_named && depth <= NAMED_DEPTH;
        let is_named = is_nameable && is_directory && self.named.len() < MOST_NAMED;
        let mut counts_for = level.named;
        if is_named || (is_nameable && !is_directory) {
            let path = self.named[level.named].path.join(OsStr::from_bytes(name.to_bytes()));
            if is_directory {
                counts_for = self.named.len();
                self.named.push(Named { path, parent: level.named, bytes: 0, inodes: 0 });
            } else {
                self.keep_file(Named { path, parent: level.named, bytes, inodes: 0 });
            }
        }
        self.named[counts_for].bytes += bytes;
        self.named[counts_for].inodes += u64::from(counts);
        if !is_directory || depth >= DEEPEST {
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entries = Dir::new(openat(parent, name, flags, Mode::empty()).ok()?).ok()?;
        Some(Level { entries, named: counts_for, is_named })
    }

    /// False for a further name of a file that was already counted.
    fn first_link(&mut self, seen: &Statx) -> bool {
        seen.stx_nlink < 2
            || self.links.len() >= MOST_LINKS
            || self.links.insert((device_of(seen), seen.stx_ino))
    }

    /// Keeps the largest few files; the list is cut back when it has grown to twice that.
    fn keep_file(&mut self, file: Named) {
        self.files.push(file);
        if self.files.len() > 2 * self.top.max(32) {
            self.cut_files();
        }
    }

    fn cut_files(&mut self) {
        self.files.sort_by_key(|file| std::cmp::Reverse(file.bytes));
        self.files.truncate(self.top.max(32));
    }

    fn largest(mut self) -> Largest {
        // Of each directory, what the largest of its parts holds.
        let mut parts = vec![Part::default(); self.named.len()];
        // Children come after their parents: from the end, each total is complete before it is passed up.
        for child in (1..self.named.len()).rev() {
            let Named { parent, bytes, inodes, .. } = self.named[child];
            self.named[parent].bytes += bytes;
            self.named[parent].inodes += inodes;
            parts[parent].bytes = parts[parent].bytes.max(bytes);
            parts[parent].inodes = parts[parent].inodes.max(inodes);
        }
        for file in &self.files {
            parts[file.parent].bytes = parts[file.parent].bytes.max(file.bytes);
        }
        let (mut by_bytes, mut by_inodes) = (Vec::new(), Vec::new());
        for (directory, part) in self.named.into_iter().zip(parts).skip(1) {
            if !says_it_all(part.inodes, directory.inodes) {
                by_inodes.push((directory.path.clone(), directory.inodes));
            }
            if !says_it_all(part.bytes, directory.bytes) {
                by_bytes.push((directory.path, directory.bytes));
            }
        }
        by_bytes.extend(self.files.into_iter().map(|file| (file.path, file.bytes)));
        Largest { by_bytes: most(by_bytes, self.top), by_inodes: most(by_inodes, self.top) }
    }
}

#[derive(Clone, Copy, Default)]
struct Part {
    bytes: u64,
    inodes: u64,
}

fn most(mut entries: Vec<(PathBuf, u64)>, top: usize) -> Vec<(PathBuf, u64)> {
    entries.retain(|(_, count)| *count > 0);
    entries.sort_by(|(a_path, a), (b_path, b)| b.cmp(a).then_with(|| a_path.cmp(b_path)));
    entries.truncate(top);
    entries
}

#[allow(clippy::cast_precision_loss, reason = "a ratio of sizes needs no 64 bits")]
fn says_it_all(part: u64, whole: u64) -> bool {
    part as f64 >= whole as f64 * SAYS_IT_ALL
}

/// Does not wait for a remote server: what the kernel remembers is good enough to add up.
fn look(parent: impl std::os::fd::AsFd, name: &CStr, flags: AtFlags) -> Result<Statx, Errno> {
    let wanted = StatxFlags::TYPE | StatxFlags::NLINK | StatxFlags::INO | StatxFlags::BLOCKS;
    statx(parent, name, flags | AtFlags::STATX_DONT_SYNC, wanted)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);
    const KIB: u64 = 1024;

    fn write(path: &Path, kib: u64) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![1; usize::try_from(kib * KIB).unwrap()]).unwrap();
        // Some filesystems allocate only when they write.
        fs::File::open(path).unwrap().sync_all().unwrap();
    }

    /// Names relative to `root`, and whole 100 KiB, so that directories' own blocks do not show.
    fn told(root: &Path, entries: &[(PathBuf, u64)]) -> Vec<(String, u64)> {
        let name = |path: &Path| path.strip_prefix(root).unwrap().display().to_string();
        entries.iter().map(|(path, bytes)| (name(path), bytes / (100 * KIB))).collect()
    }

    #[test]
    fn names_what_fills_it_and_not_its_parents() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(&root.join("var/lib/docker/overlay/x/y/z/layer"), 900);
        write(&root.join("var/lib/docker/overlay/other"), 310);
        write(&root.join("var/log/syslog"), 420);
        write(&root.join("home/a"), 10);
        let entries = largest_entries(root, true, PATIENCE, 4).by_bytes;
        assert_eq!(
            told(root, &entries),
            [
                ("var".into(), 16),
                ("var/lib/docker".into(), 12),
                ("var/log/syslog".into(), 4),
                ("home".into(), 0)
            ]
        );
    }

    #[test]
    fn counts_hard_links_once_and_holes_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(&root.join("a/file"), 500);
        fs::create_dir(root.join("b")).unwrap();
        fs::hard_link(root.join("a/file"), root.join("b/link")).unwrap();
        fs::File::create(root.join("b/sparse")).unwrap().set_len(1 << 40).unwrap();
        let total: u64 = largest_entries(root, true, PATIENCE, 10)
            .by_bytes
            .iter()
            .filter(|(path, _)| path.is_file())
            .map(|(_, bytes)| bytes / (100 * KIB))
            .sum();
        assert_eq!(total, 5);
    }

    #[test]
    fn counts_files_and_folders_and_hard_links_once() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for number in 0..200 {
            fs::create_dir_all(root.join("var/spool/mail/deep/er")).unwrap();
            fs::File::create(root.join(format!("var/spool/mail/deep/er/{number}"))).unwrap();
        }
        fs::create_dir(root.join("few")).unwrap();
        fs::File::create(root.join("few/file")).unwrap();
        for link in 0..50 {
            fs::hard_link(root.join("few/file"), root.join(format!("few/link-{link}"))).unwrap();
        }
        let told: Vec<(String, u64)> = largest_entries(root, true, PATIENCE, 10)
            .by_inodes
            .into_iter()
            .map(|(path, inodes)| (path.strip_prefix(root).unwrap().display().to_string(), inodes))
            .collect();
        // With the folders themselves.
        assert_eq!(told, [("var/spool/mail".into(), 203), ("few".into(), 2)]);
    }

    #[test]
    fn follows_no_link() {
        let outside = tempfile::tempdir().unwrap();
        write(&outside.path().join("big"), 500);
        let root = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("link")).unwrap();
        symlink(outside.path().join("big"), root.path().join("file")).unwrap();
        symlink(root.path(), root.path().join("loop")).unwrap();
        let entries = largest_entries(root.path(), true, PATIENCE, 10).by_bytes;
        assert!(entries.iter().all(|(_, bytes)| *bytes < 100 * KIB), "{entries:?}");
    }

    #[test]
    fn stays_on_the_filesystem() {
        let other = tempfile::tempdir_in("/dev/shm").unwrap();
        write(&other.path().join("big"), 4096);
        let big = |entries: Largest| entries.by_bytes.iter().any(|(path, _)| path.starts_with(other.path()));
        assert!(!big(largest_entries(Path::new("/dev"), true, PATIENCE, 1000)));
        assert!(big(largest_entries(Path::new("/dev"), false, PATIENCE, 1000)));
    }

    #[test]
    fn deep_trees_are_bounded() {
        let root = tempfile::tempdir().unwrap();
        let mut deep = root.path().to_path_buf();
        for _ in 0..DEEPEST + 50 {
            deep.push("d");
        }
        write(&deep.join("file"), 500);
        write(&root.path().join("d/d/d/d/near"), 500);
        let entries = largest_entries(root.path(), true, PATIENCE, 10).by_bytes;
        let (path, bytes) = &entries[0];
        assert_eq!(path, &root.path().join("d/d/d"));
        assert!((500 * KIB..1000 * KIB + 4096 * 200).contains(bytes), "{bytes}");
    }

    #[test]
    fn ends_in_time_and_without_a_folder() {
        assert_eq!(largest_entries(Path::new("/"), true, Duration::ZERO, 10), Largest::default());
        assert_eq!(largest_entries(Path::new("/no/such/place"), true, PATIENCE, 10), Largest::default());
    }

    #[test]
    fn many_files_keep_the_largest() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..300 {
            write(&root.path().join(format!("f{number}")), if number == 7 { 200 } else { 1 });
        }
        let entries = largest_entries(root.path(), true, PATIENCE, 2).by_bytes;
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0], (root.path().join("f7"), 200 * KIB));
    }
}
