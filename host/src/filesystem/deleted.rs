//! Files without a name that a process still has open: they take room that nobody finds, until that process closes them
//! or ends. Not here: which process should.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};

use super::device_of;

/// What the kernel adds to the last name of a file that has none any more (proc(5)).
const MARK: &str = " (deleted)";
/// Files that are remembered to count each once: a bound on memory.
const MOST_SEEN: usize = 100_000;

/// A file that was deleted while a process has it open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// Its last name, as the process knew it.
    pub path: PathBuf,
    /// What it takes, in bytes.
    pub bytes: u64,
    /// One process that has it open.
    pub pid: u32,
    /// The program of that process, at most 15 characters (proc(5), comm).
    pub command: String,
    /// The service or scope that it runs in.
    pub unit: Option<String>,
}

/// The largest of the deleted files on `device` that processes have open, as far as this process may look and gets until
/// `until`. What lies in the writable layer of a container shows another device, and is not found.
pub(super) fn deleted_files(proc: &Path, device: u64, until: Instant, top: usize) -> Vec<Deleted> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let Ok(processes) = fs::read_dir(proc) else { return found };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Other users' processes show theirs to root alone.
        let Ok(open) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in open.flatten() {
            if Instant::now() >= until {
                break;
            }
            let Some((inode, bytes)) = nameless(&descriptor.path(), device) else { continue };
            if seen.len() >= MOST_SEEN || !seen.insert(inode) {
                continue;
            }
            let path = fs::read_link(descriptor.path()).unwrap_or_default();
            let (command, unit) = (command(&process.path()), unit(&process.path()));
            found.push(Deleted { path: last_name(&path), bytes, pid, command, unit });
            if found.len() > 2 * top.max(32) {
                cut(&mut found, top.max(32));
            }
        }
    }
    cut(&mut found, top);
    found
}

fn cut(found: &mut Vec<Deleted>, top: usize) {
    found.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.pid.cmp(&b.pid)));
    found.truncate(top);
}

/// Inode and bytes of what a descriptor is, when that is a file on `device` that has no name. Asks no remote server.
fn nameless(descriptor: &Path, device: u64) -> Option<(u64, u64)> {
    let wanted = StatxFlags::TYPE | StatxFlags::NLINK | StatxFlags::INO | StatxFlags::BLOCKS;
    let seen = statx(CWD, descriptor, AtFlags::STATX_DONT_SYNC, wanted).ok()?;
    let is_file = FileType::from_raw_mode(u32::from(seen.stx_mode)) == FileType::RegularFile;
    let bytes = seen.stx_blocks.saturating_mul(512);
    (is_file && seen.stx_nlink == 0 && bytes > 0 && device_of(&seen) == device)
        .then_some((seen.stx_ino, bytes))
}

fn last_name(link: &Path) -> PathBuf {
    let name = link.to_str().and_then(|text| text.strip_suffix(MARK));
    name.map_or_else(|| link.to_path_buf(), PathBuf::from)
}

fn command(process: &Path) -> String {
    fs::read(process.join("comm"))
        .map(|name| String::from_utf8_lossy(&name).trim_end().to_owned())
        .unwrap_or_default()
}

/// The innermost service or scope in a process' control groups, of either version.
fn unit(process: &Path) -> Option<String> {
    let groups = fs::read_to_string(process.join("cgroup")).ok()?;
    let of_systemd = groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        rest.strip_prefix(':').or_else(|| rest.strip_prefix("name=systemd:"))
    });
    let parts = of_systemd?.rsplit('/');
    let is_unit = |part: &&str| part.ends_with(".service") || part.ends_with(".scope");
    parts.into_iter().find(is_unit).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::MetadataExt, time::Duration};

    use super::*;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_file_that_this_very_process_holds_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gone.log");
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(&vec![1; 3_000_000]).unwrap();
        file.sync_all().unwrap();
        let device = file.metadata().unwrap().dev();
        let mine = || -> Vec<Deleted> {
            let found = deleted_files(Path::new("/proc"), device, later(), 1000);
            found.into_iter().filter(|one| one.path == path).collect()
        };
        assert_eq!(mine(), []);
        fs::remove_file(&path).unwrap();
        let again = file.try_clone().unwrap();
        let [found] = &mine()[..] else { panic!("not once: {:?}", mine()) };
        assert_eq!(found.pid, std::process::id());
        assert!(found.bytes >= 3_000_000 && !found.command.is_empty(), "{found:?}");
        let elsewhere = deleted_files(Path::new("/proc"), device + 1, later(), 1000);
        assert!(elsewhere.iter().all(|one| one.path != path));
        assert_eq!(deleted_files(Path::new("/proc"), device, Instant::now(), 1000), []);
        drop((file, again));
        assert_eq!(mine(), []);
    }

    #[test]
    fn the_unit_is_the_innermost_one() {
        let folder = tempfile::tempdir().unwrap();
        let unit_of = |groups: &str| {
            fs::write(folder.path().join("cgroup"), groups).unwrap();
            unit(folder.path())
        };
        let user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/shop.service\n";
        assert_eq!(unit_of(user).as_deref(), Some("shop.service"));
        let first_version = "4:memory:/x\n1:name=systemd:/system.slice/docker-0a.scope\n";
        assert_eq!(unit_of(first_version).as_deref(), Some("docker-0a.scope"));
        assert_eq!(unit_of("0::/system.slice/shop.service/worker\n").as_deref(), Some("shop.service"));
        for none in ["", "0::/\n", "nonsense", "0::/init"] {
            assert_eq!(unit_of(none), None, "{none}");
        }
        assert_eq!(unit(&folder.path().join("no-such-process")), None);
    }

    #[test]
    fn a_name_is_told_without_the_kernel_s_mark() {
        assert_eq!(last_name(Path::new("/var/log/a (deleted)")), Path::new("/var/log/a"));
        assert_eq!(last_name(Path::new("/var/log/a (deleted) (deleted)")), Path::new("/var/log/a (deleted)"));
        assert_eq!(last_name(Path::new("/x")), Path::new("/x"));
    }
}
