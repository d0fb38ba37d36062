//! Looks round the host for what speaks against acting now (`admission::gates`). What cannot be seen is left out.

use std::{
    fs,
    os::{linux::fs::MetadataExt, unix::fs::MetadataExt as _},
    path::Path,
    time::{Duration, SystemTime},
};

use evenkeel_host::systemd::Systemd;
use tokio::{join, time::timeout};

use crate::{admission::gates::Conditions, observe::Host};

/// How long one look round may take; what has not answered by then is left out.
const LIMIT: Duration = Duration::from_secs(5);
/// What package managers lock while they are at work (fcntl): dpkg, apt, rpm.
const LOCKS: [&str; 5] = [
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
    "/usr/lib/sysimage/rpm/.rpm.lock",
];

impl Host {
    /// One look round.
    pub(crate) async fn look_round(&self) -> Conditions {
        let files = timeout(LIMIT, tokio::task::spawn_blocking(files));
        let state = timeout(LIMIT, self.systemd.system_state());
        let bus = timeout(LIMIT, up_for(&self.systemd, "dbus.service"));
        let engine = timeout(LIMIT, up_for(&self.systemd, "docker.service"));
        let (files, state, bus, engine) = join!(files, state, bus, engine);
        let seen = files.ok().and_then(Result::ok).unwrap_or_default();
        Conditions {
            system_state: state.ok().and_then(Result::ok),
            bus: bus.ok().flatten(),
            engine: engine.ok().flatten(),
            ..seen
        }
    }
}

/// For how long a unit has been active.
async fn up_for(systemd: &Systemd, unit: &str) -> Option<Duration> {
    if !systemd.socket_exists() {
        return None;
    }
    let since = systemd.active_since(unit).await.ok().flatten()?;
    // A start in the future is one before the clock was set back: as young as it can be.
    Some(SystemTime::now().duration_since(since).unwrap_or_default())
}

fn files() -> Conditions {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let locks = read("/proc/locks");
    Conditions {
        package_lock: LOCKS
            .iter()
            .find(|path| is_locked(&locks, Path::new(path)))
            .map(|path| (*path).to_owned()),
        memory_stall: stall(&read("/proc/pressure/memory")),
        io_stall: stall(&read("/proc/pressure/io")),
        load: load(&read("/proc/loadavg"), std::thread::available_parallelism().map_or(1, usize::from)),
        ..Conditions::default()
    }
}

/// Whether /proc/locks names the file's inode (proc_locks(5)). The lock itself cannot be asked: the files are root's.
fn is_locked(locks: &str, path: &Path) -> bool {
    let Ok(metadata) = fs::metadata(path) else { return false };
    let device = metadata.st_dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    locks.lines().any(|line| holds(line, (major, minor), metadata.ino()))
}

/// Whether a line of /proc/locks is a lock that is held on this inode. Filesystems with devices of their own making
/// (btrfs, overlayfs: major 0) are known there by other numbers; there the inode has to do.
fn holds(line: &str, device: (u32, u32), inode: u64) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    // 1: POSIX ADVISORY WRITE 4711 fe:01:393234 0 EOF; one that waits for another has -> in the second place.
    let [_, _, _, "WRITE", _, place, ..] = words.as_slice() else { return false };
    let mut parts = place.split(':');
    let (Some(major), Some(minor), Some(number)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let hex = |text| u32::from_str_radix(text, 16).ok();
    let same_device = device.0 == 0 || (hex(major), hex(minor)) == (Some(device.0), Some(device.1));
    same_device && number.parse() == Ok(inode)
}

/// The share of the last minute in which every task waited: `avg60` of the line `full` (PSI).
fn stall(text: &str) -> Option<f64> {
    let full = text.lines().find_map(|line| line.strip_prefix("full "))?;
    let percent: f64 = full.split_whitespace().find_map(|word| word.strip_prefix("avg60="))?.parse().ok()?;
    Some(percent / 100.0)
}

/// The load of the last 5 minutes per processor.
fn load(text: &str, processors: usize) -> Option<f64> {
    let load: f64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(load / f64::from(u32::try_from(processors.max(1)).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_is_known_by_its_inode() {
        let line = "1: POSIX  ADVISORY  WRITE 4711 fe:01:393234 0 EOF";
        assert!(holds(line, (0xfe, 1), 393_234));
        assert!(!holds(line, (0xfe, 2), 393_234));
        assert!(!holds(line, (0xfe, 1), 93_234));
        assert!(holds(line, (0, 48), 393_234), "btrfs");
        assert!(!holds("1: -> POSIX  ADVISORY  WRITE 4712 fe:01:393234 0 EOF", (0xfe, 1), 393_234));
        assert!(!holds("2: POSIX  ADVISORY  READ  4711 fe:01:393234 0 EOF", (0xfe, 1), 393_234));
        for odd in ["", "1:", "1: POSIX ADVISORY WRITE 1 :: 0 EOF", "1: POSIX ADVISORY WRITE 1 x 0"] {
            assert!(!holds(odd, (0xfe, 1), 0), "{odd}");
        }
    }

    #[test]
    fn a_lock_of_this_very_process_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = fs::File::create(&path).unwrap();
        assert!(!is_locked(&fs::read_to_string("/proc/locks").unwrap(), &path));
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(is_locked(&fs::read_to_string("/proc/locks").unwrap(), &path));
    }

    #[test]
    fn the_kernels_figures_are_read() {
        let memory = "some avg10=1.00 avg60=2.00 avg300=3.00 total=4\nfull avg10=0.00 avg60=81.50 avg300=0.10 total=9\n";
        assert_eq!(stall(memory), Some(0.815));
        assert_eq!(stall("some avg10=1.00 avg60=2.00 avg300=3.00 total=4\n"), None);
        assert_eq!(stall(""), None, "a kernel without PSI");
        assert_eq!(load("3.10 8.00 1.70 2/300 4711\n", 2), Some(4.0));
        assert_eq!(load("", 2), None);
    }
}
