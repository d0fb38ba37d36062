//! The folder of one run under `.run/lab/`, and the removal of what earlier runs left there.
//!
//! A run's processes and mounts end with its namespaces ([`crate::namespace`]); what can stay behind
//! after a `SIGKILL` is its folder and its cgroups. A run holds a lock on its folder as long as it
//! lives, so that the next run can tell an abandoned folder from a busy one.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// One run's folder. Dropping it removes nothing; [`RunDir::remove`] does.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Makes a new folder below `parent`, after removing the abandoned ones there.
    ///
    /// # Errors
    ///
    /// When a folder cannot be made, locked or removed.
    pub fn create(parent: &Path) -> Result<Self> {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        // Between making a folder and locking it, it would look abandoned to another run.
        let door = File::create(parent.join(".door"))?;
        door.lock()?;
        remove_abandoned(parent)?;
        let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_micros();
        let path = parent.join(format!("{:x}-{}", started, std::process::id()));
        fs::create_dir(&path)?;
        let lock = File::create(path.join("lock"))?;
        lock.lock_shared()?;
        Ok(Self { path, _lock: lock })
    }

    /// Holds an existing folder too, as the processes inside the namespaces do.
    ///
    /// # Errors
    ///
    /// When the folder or its lock is gone.
    pub fn join(path: &Path) -> Result<Self> {
        let lock = File::open(path.join("lock")).with_context(|| format!("no run in {}", path.display()))?;
        lock.lock_shared()?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the run's cgroups and the folder. Everything in it must have ended.
    ///
    /// # Errors
    ///
    /// When a mount or a process of the run is still there.
    pub fn remove(self) -> Result<()> {
        remove(&self.path)
    }
}

/// The name of the cgroup that holds every container of the run in `folder`.
///
/// # Panics
///
/// Never for a run's folder, which has a name.
#[must_use]
pub fn cgroup_name(folder: &Path) -> String {
    format!("evenkeel-lab-{}", folder.file_name().expect("a run's folder has a name").to_string_lossy())
}

fn remove_abandoned(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        match File::open(path.join("lock")) {
            Ok(lock) => {
                if lock.try_lock().is_ok() {
                    remove(&path)?;
                }
            }
            // Killed between making the folder and its lock.
            Err(error) if error.kind() == ErrorKind::NotFound => remove(&path)?,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot open the lock of {}", path.display()));
            }
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let inside = format!("{}/", path.display());
    if let Some(line) =
        mounts.lines().find(|line| line.split(' ').nth(4).is_some_and(|at| at.starts_with(&inside)))
    {
        bail!("something is still mounted in {}: {line}", path.display());
    }
    remove_cgroups(&cgroup_name(path))?;
    fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Removes the cgroup `name` from every hierarchy; killed processes leave theirs a moment later.
fn remove_cgroups(name: &str) -> Result<()> {
    let top = Path::new("/sys/fs/cgroup");
    let mut candidates = vec![top.join(name)];
    if let Ok(hierarchies) = fs::read_dir(top) {
        candidates.extend(hierarchies.flatten().map(|entry| entry.path().join(name)));
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    for cgroup in candidates.into_iter().filter(|path| path.is_dir()) {
        while let Err(error) = remove_cgroup(&cgroup) {
            if Instant::now() > deadline {
                return Err(error).with_context(|| format!("cannot remove {}", cgroup.display()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

fn remove_cgroup(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_run_is_left_alone_and_an_abandoned_one_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let busy = RunDir::create(parent.path()).unwrap();
        let abandoned = parent.path().join("abandoned");
        fs::create_dir(&abandoned).unwrap();
        fs::write(abandoned.join("lock"), "").unwrap();
        let without_lock = parent.path().join("without-lock");
        fs::create_dir(&without_lock).unwrap();

        let next = RunDir::create(parent.path()).unwrap();
        assert!(busy.path().is_dir() && next.path().is_dir());
        assert!(!abandoned.exists() && !without_lock.exists());
    }

    #[test]
    fn a_run_that_was_joined_stays_busy_when_its_maker_has_gone() {
        let parent = tempfile::tempdir().unwrap();
        let run = RunDir::create(parent.path()).unwrap();
        let path = run.path().to_owned();
        let joined = RunDir::join(&path).unwrap();
        drop(run);
        drop(RunDir::create(parent.path()).unwrap());
        assert!(path.is_dir());
        drop(joined);
        drop(RunDir::create(parent.path()).unwrap());
        assert!(!path.exists());
    }
}
