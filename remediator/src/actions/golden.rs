//! Which units' files belong together and where their snapshots lie, for the actions that make golden snapshots and bring
//! them back. Not an action.

mod diff;
mod place;
mod store;

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use evenkeel_host::systemd::snapshot::{self, OWN_FOLDERS, Scan, Shelf};
use rustix::fs::{FlockOperation, flock};

use super::{Failure, Job};
use crate::{pattern::Pattern, trust};

pub(super) use diff::{Wanted, describe, difference};
pub(super) use place::{put, put_text, remove};
pub(super) use store::{Purpose, forget_old, keep};

/// In here is what was there before a snapshot was brought back.
const BEFORE: &str = "before";
/// Held by whoever writes snapshots or brings them back.
const LOCK: &str = "lock";

/// `snapshot` of the configuration.
#[derive(Debug, Clone)]
pub struct Golden {
    /// Where the snapshots are.
    pub dir: PathBuf,
    /// Those of [`OWN_FOLDERS`] whose files are theirs.
    pub folders: Vec<String>,
    /// Whose files they are.
    pub units: Vec<Pattern>,
    /// So many snapshots are kept, and as many backups.
    pub keep: usize,
    /// Where the host's files are, and who must own all of it: root, except in tests.
    pub(super) root: PathBuf,
    pub(super) owner: u32,
}

impl Golden {
    /// Where they are kept when nothing is said.
    pub const DIR: &str = "/var/lib/evenkeel/snapshots";
    /// Where unit files are looked for when nothing is said.
    pub const FOLDERS: [&str; 1] = [OWN_FOLDERS[0]];
    /// So many are kept when nothing is said.
    pub const KEEP: usize = 5;

    /// This host's.
    pub fn new(dir: PathBuf, folders: Vec<String>, units: Vec<Pattern>, keep: usize) -> Self {
        Self { dir, folders, units, keep, root: PathBuf::from("/"), owner: 0 }
    }

    /// What the configuration says, for an action that needs it.
    ///
    /// # Errors
    /// When it says nothing; the load of a configuration makes sure of that.
    pub(super) fn of(job: &Job) -> Result<Arc<Self>, Failure> {
        job.config
            .golden
            .clone()
            .ok_or_else(|| Failure::Refused("the configuration has no `snapshot`".to_owned()))
    }

    /// Whether a unit's files belong to it.
    pub(super) fn is_meant(&self, unit: &str) -> bool {
        self.units.iter().any(|pattern| pattern.matches(unit))
    }

    /// The golden snapshots.
    pub(super) fn shelf(&self) -> Shelf {
        Shelf::of(&self.dir, self.owner)
    }

    /// What was there before one of them was brought back.
    pub(super) fn before(&self) -> Shelf {
        Shelf::of(&self.dir.join(BEFORE), self.owner)
    }

    /// What belongs to the units now.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub(super) fn scan(&self) -> io::Result<Scan> {
        snapshot::scan(&self.root, &self.folders, &|unit| self.is_meant(unit))
    }

    /// The place of a path on this host.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Makes sure that nobody but root changes the snapshots or the unit files. What is not there is nobody's.
    ///
    /// # Errors
    /// With what is wrong, for people.
    pub(super) fn is_root_s_own(&self) -> Result<(), String> {
        let folders = self.folders.iter().map(|folder| self.at(folder));
        for folder in folders.chain([self.dir.clone()]).filter(|folder| folder.exists()) {
            trust::only_changed_by(&folder, &[0, self.owner])?;
        }
        Ok(())
    }

    /// Makes sure that a file's folder is a real one below these, and nobody's but root's.
    ///
    /// # Errors
    /// With what is wrong, for people.
    pub(super) fn folder_is_root_s_own(&self, path: &str) -> Result<(), String> {
        let place = self.at(path);
        let Some(folder) = place.parent().filter(|folder| fs::symlink_metadata(folder).is_ok()) else {
            return Ok(());
        };
        if fs::symlink_metadata(folder).is_ok_and(|about| !about.is_dir()) {
            return Err(format!("{}: it is no folder", folder.display()));
        }
        trust::only_changed_by(folder, &[0, self.owner])
    }

    /// Keeps everybody else from writing snapshots and bringing them back, until the answer is dropped.
    ///
    /// # Errors
    /// When somebody is at it, or the folder cannot be made.
    pub(super) fn lock(&self) -> Result<fs::File, Failure> {
        let refused = |error: io::Error| Failure::Refused(format!("{}: {error}", self.dir.display()));
        make_folder(&self.dir, 0o755).map_err(refused)?;
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.dir.join(LOCK));
        let file = file.map_err(refused)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(Failure::Busy("another snapshot is being made or brought back".to_owned()))
            }
            Err(error) => Err(refused(error.into())),
        }
    }
}

/// Makes a folder and those above it where they are missing. The mode is that of the last one, whatever the process'
/// umask says: who may read snapshots is no accident of how it was started.
fn make_folder(folder: &Path, mode: u32) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(mode).create(folder)?;
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

/// Does what blocks where it holds nobody up.
///
/// # Errors
/// As `work` says; when it broke, nobody knows how far it came.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|broken| Err(Failure::Unknown(format!("it broke: {broken}"))))
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use tempfile::TempDir;

    use super::*;

    /// 2026-01-07 12:00:00 UTC.
    pub(in super::super) const NOW: u64 = 1_767_787_200_000;

    /// A host with a few units in a folder, all of it the test's own.
    pub(in super::super) struct Yard {
        pub(in super::super) golden: Golden,
        root: TempDir,
    }

    impl Yard {
        pub(in super::super) fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let mut golden = Golden::new(
                root.path().join("snapshots"),
                vec![OWN_FOLDERS[0].to_owned()],
                vec!["shop*".parse().unwrap()],
                3,
            );
            golden.root = root.path().to_owned();
            golden.owner = fs::metadata(root.path()).unwrap().uid();
            let yard = Self { golden, root };
            for folder in ["multi-user.target.wants", "shop-api.service.d"] {
                fs::create_dir_all(yard.at(folder)).unwrap();
            }
            for folder in ["../..", "..", "", "multi-user.target.wants", "shop-api.service.d"] {
                yard.mode(folder, 0o755);
            }
            for (name, text) in [
                ("shop-api.service", "[Service]\nExecStart=/bin/api\n"),
                ("shop-db.service", "[Service]\nExecStart=/bin/db\n"),
                ("shop.target", "[Unit]\nWants=shop-api.service\n"),
            ] {
                yard.write(name, text);
            }
            let link = yard.at("multi-user.target.wants/shop-api.service");
            symlink("/etc/systemd/system/shop-api.service", link).unwrap();
            yard
        }

        pub(in super::super) fn at(&self, name: &str) -> PathBuf {
            self.root.path().join("etc/systemd/system").join(name)
        }

        pub(in super::super) fn write(&self, name: &str, text: &str) {
            fs::write(self.at(name), text).unwrap();
            self.mode(name, 0o644);
        }

        pub(in super::super) fn mode(&self, name: &str, mode: u32) {
            fs::set_permissions(self.at(name), fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}
