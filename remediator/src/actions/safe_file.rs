//! Files of root's that an action changes: reached below a folder that only root changes and never through a link, backed
//! up, and replaced whole with everything else about them kept. Not an action, and not what is written into the files.
//!
//! Everything here blocks.

use std::{
    ffi::{CStr, CString, OsStr, OsString},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Component, Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{
        AtFlags, CWD, Mode, OFlags, Stat, StatxAttributes, StatxFlags, XattrFlags, fchmod, fchown, fgetxattr,
        fgetxattr_query, flistxattr, flistxattr_query, fsetxattr, fstat, fsync, openat, renameat, statat,
        statx, unlinkat,
    },
    io::Errno,
    process::{Gid, Uid, geteuid},
};

use super::Failure;
use crate::{clock::rfc3339, trust};

/// Where what a file was before is kept.
pub(super) const BACKUPS: &str = "/var/lib/evenkeel/backups";
/// So many backups of one file are kept, the newest.
const KEPT: usize = 20;
/// A file that is longer is none of those that are changed here, in bytes.
const LONGEST: u64 = 1024 * 1024;
/// The end of the name of what is not finished.
const UNFINISHED: &str = ".evenkeel-new";
/// Extended attributes that speak of what a file holds (ima(7), evm): those of the old contents are wrong for the new.
const OF_THE_CONTENTS: [&[u8]; 2] = [b"security.ima", b"security.evm"];

/// A plain file that only we change (root, where this runs for real), as it was when it was read.
#[derive(Debug)]
pub(super) struct SafeFile {
    /// Where it is, for people.
    path: PathBuf,
    /// The folder that holds it.
    folder: OwnedFd,
    name: OsString,
    file: File,
    stat: Stat,
    bytes: Vec<u8>,
}

/// How a file is given its new contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// A new file takes its place: who reads meanwhile reads the old one or the new one, whole.
    Replaced,
    /// Something is mounted on it, as a container engine does with /etc/hosts: it can only be written to, and who reads
    /// meanwhile may read half of it.
    InPlace,
}

impl SafeFile {
    /// Opens and reads the file at `below` in `folder`.
    ///
    /// # Errors
    /// Where it is not there, is no plain file, lies behind a link, is too long, or is not ours alone to change; with the
    /// cure where there is one.
    pub(super) fn read(folder: &Path, below: &Path) -> Result<Self, Failure> {
        let path = folder.join(below);
        let refused = |what: &dyn std::fmt::Display| Failure::Refused(format!("{}: {what}", path.display()));
        let us = owners();
        trust::only_changed_by(folder, &us).map_err(Failure::Refused)?;
        let mut names: Vec<&OsStr> = Vec::new();
        for part in below.components() {
            match part {
                Component::Normal(name) => names.push(name),
                _ => return Err(refused(&format_args!("it does not lie in {}", folder.display()))),
            }
        }
        let name = names.pop().ok_or_else(|| refused(&"it names no file"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = openat(CWD, folder, flags, Mode::empty()).map_err(|error| refused(&io(error)))?;
        for part in names {
            at = openat(&at, part, flags | OFlags::NOFOLLOW, Mode::empty())
                .map_err(|error| refused(&not_followed(error)))?;
            let stat = fstat(&at).map_err(|error| refused(&io(error)))?;
            trust::judge(stat.st_uid, stat.st_mode, true, &us).map_err(|wrong| refused(&wrong))?;
        }
        // Opening a device or a pipe could do something, or wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(
            openat(&at, name, flags, Mode::empty()).map_err(|error| refused(&not_followed(error)))?,
        );
        let metadata = file.metadata().map_err(|error| refused(&error))?;
        if !metadata.is_file() {
            return Err(refused(&"it is no plain file"));
        }
        trust::judge(metadata.uid(), metadata.mode(), false, &us).map_err(|wrong| refused(&wrong))?;
        let (stat, bytes) = whole(&file, contents).map_err(|error| refused(&error))?;
        if bytes.len() as u64 > LONGEST {
            return Err(refused(&"it is longer than 1 MiB"));
        }
        let name = name.to_owned();
        Ok(Self { path, folder: at, name, file, stat, bytes })
    }

    /// Where it is, for people.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What was in it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How long ago it was changed.
    pub(super) fn age(&self, now: SystemTime) -> Duration {
        let changed = self.file.metadata().and_then(|metadata| metadata.modified());
        changed.map_or(Duration::ZERO, |changed| now.duration_since(changed).unwrap_or_default())
    }

    /// How it would be given new contents.
    ///
    /// # Errors
    /// When the kernel does not say what is mounted there.
    pub(super) fn manner(&self) -> Result<Manner, Failure> {
        let about = statx(&self.file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
            .map_err(|error| self.refused(&io(error)))?;
        let is_mounted = about.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        Ok(if is_mounted { Manner::InPlace } else { Manner::Replaced })
    }

    /// Keeps a copy of what was read below `folder`, in a folder of this file's own, and answers where that is. The oldest
    /// copies of the file beyond the newest twenty go.
    ///
    /// # Errors
    /// When it cannot be written down for good; then the file must not be changed.
    pub(super) fn back_up(&self, folder: &Path, now_wall_ms: i64) -> Result<PathBuf, Failure> {
        let below = self.path.strip_prefix("/").unwrap_or(&self.path);
        let backups = Backups::open(folder.join(below))?;
        let stamp = rfc3339(now_wall_ms).replace(':', "");
        let place = backups
            .keep(&stamp, &self.bytes)
            .map_err(|error| Failure::Refused(format!("{}: no backup: {error}", self.path.display())))?;
        backups.forget_old();
        Ok(place)
    }

    /// Gives the file new contents; owner, group, mode and extended attributes stay. The answer is the file as it is now,
    /// which is how a change is taken back: `changed.write(before.bytes())`.
    ///
    /// # Errors
    /// `Refused` when nothing was changed, also because somebody else changed the file since it was read; `Unknown` when
    /// the file may be half written.
    pub(super) fn write(&self, contents: &[u8]) -> Result<Self, Failure> {
        if contents.len() as u64 > LONGEST {
            return Err(self.refused(&"it would become longer than 1 MiB"));
        }
        match self.manner()? {
            Manner::Replaced => self.replace(contents)?,
            Manner::InPlace => self.overwrite(contents)?,
        }
        self.read_again().map_err(|failure| Failure::Unknown(failure.to_string()))
    }

    fn replace(&self, contents: &[u8]) -> Result<(), Failure> {
        // A name with a dot before it is nothing to systemd, nor to what lists folders.
        let mut unfinished = OsString::from(".");
        unfinished.push(&self.name);
        unfinished.push(UNFINISHED);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // What a death left behind. Nobody else writes in this folder.
        match unlinkat(&self.folder, &unfinished, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(self.refused(&io(error))),
        }
        let new = openat(&self.folder, &unfinished, flags, Mode::from_raw_mode(0o600))
            .map_err(|error| self.refused(&io(error)))?;
        let made = self.fill(File::from(new), contents).and_then(|()| {
            self.is_unchanged()?;
            renameat(&self.folder, &unfinished, &self.folder, &self.name)
                .map_err(|error| self.refused(&io(error)))
        });
        if let Err(failure) = made {
            // The old file is as it was; what is left of the new one is nothing that anybody reads.
            let _ = unlinkat(&self.folder, &unfinished, AtFlags::empty());
            return Err(failure);
        }
        // The change has been made; a folder that cannot be flushed may lose it with the power, and nothing else.
        if let Err(error) = fsync(&self.folder) {
            tracing::warn!(file = %self.path.display(), %error, "cannot flush the folder");
        }
        Ok(())
    }

    /// Makes a new file that differs from this one in its contents alone.
    fn fill(&self, mut new: File, contents: &[u8]) -> Result<(), Failure> {
        let refused = |what: &dyn std::fmt::Display| self.refused(what);
        new.write_all(contents).map_err(|error| refused(&error))?;
        let (owner, group) = (Uid::from_raw(self.stat.st_uid), Gid::from_raw(self.stat.st_gid));
        fchown(&new, Some(owner), Some(group))
            .map_err(|error| refused(&format_args!("its owner cannot be kept: {}", io(error))))?;
        for name in attributes(&self.file).map_err(|error| refused(&error))? {
            let (value, there) = (attribute(&self.file, &name), attribute(&new, &name));
            let value = value.map_err(|error| refused(&error))?;
            if there.is_ok_and(|there| there == value) || OF_THE_CONTENTS.contains(&name.to_bytes()) {
                continue;
            }
            fsetxattr(&new, name.as_c_str(), &value, XattrFlags::empty()).map_err(|error| {
                refused(&format_args!(
                    "its attribute {} cannot be kept: {}",
                    name.to_string_lossy(),
                    io(error)
                ))
            })?;
        }
        // Behind the owner, whose change takes bits away.
        fchmod(&new, Mode::from_raw_mode(self.stat.st_mode & 0o7777))
            .map_err(|error| refused(&format_args!("its mode cannot be kept: {}", io(error))))?;
        new.sync_all().map_err(|error| refused(&error))
    }

    /// Writes into the file itself.
    fn overwrite(&self, contents: &[u8]) -> Result<(), Failure> {
        self.is_unchanged()?;
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&self.folder, &self.name, flags, Mode::empty());
        let file = File::from(file.map_err(|error| self.refused(&not_followed(error)))?);
        if !fstat(&file).is_ok_and(|now| is_same(&now, &self.stat)) {
            return Err(self.refused(&CHANGED));
        }
        let put = |contents: &[u8]| {
            file.write_all_at(contents, 0)?;
            file.set_len(contents.len() as u64)?;
            file.sync_all()
        };
        put(contents).map_err(|error| match put(&self.bytes) {
            Ok(()) => self.refused(&error),
            Err(again) => {
                Failure::Unknown(format!("{}: half written: {error}, {again}", self.path.display()))
            }
        })
    }

    /// Makes sure that nobody has changed the file since it was read.
    fn is_unchanged(&self) -> Result<(), Failure> {
        let now = statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.refused(&io(error)))?;
        if is_same(&now, &self.stat) { Ok(()) } else { Err(self.refused(&CHANGED)) }
    }

    /// The file of this name as it is now.
    ///
    /// # Errors
    /// When it cannot be read any more.
    pub(super) fn read_again(&self) -> Result<Self, Failure> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&self.folder, &self.name, flags, Mode::empty());
        let file = File::from(file.map_err(|error| self.refused(&not_followed(error)))?);
        let (stat, bytes) = whole(&file, contents).map_err(|error| self.refused(&error))?;
        let folder = self.folder.try_clone().map_err(|error| self.refused(&error))?;
        Ok(Self { path: self.path.clone(), folder, name: self.name.clone(), file, stat, bytes })
    }

    fn refused(&self, what: &dyn std::fmt::Display) -> Failure {
        Failure::Refused(format!("{}: {what}", self.path.display()))
    }
}

const CHANGED: &str = "somebody else has changed it meanwhile";

/// The folder of one file's backups.
struct Backups(PathBuf);

impl Backups {
    /// The folder, made where it is missing; what is in it may be secret.
    fn open(path: PathBuf) -> Result<Self, Failure> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|error| Failure::Refused(format!("{}: {error}", path.display())))?;
        trust::only_changed_by(&path, &owners()).map_err(Failure::Refused)?;
        Ok(Self(path))
    }

    /// Writes a copy under a name of its own.
    fn keep(&self, stamp: &str, bytes: &[u8]) -> io::Result<PathBuf> {
        let mut number = 0;
        // A change and its roll-back may come within a second.
        let (path, mut file) = loop {
            let path = self.0.join(format!("{stamp}.{number:02}"));
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 99 => number += 1,
                file => break (path, file?),
            }
        };
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        if let Err(error) = written.and_then(|()| File::open(&self.0)?.sync_all()) {
            // What is left of it would be taken for a backup.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(path)
    }

    /// Removes the oldest beyond so many. What cannot be removed is in nobody's way.
    fn forget_old(&self) {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> =
            entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
        // Their names sort by time.
        paths.sort_unstable();
        for old in paths.iter().rev().skip(KEPT) {
            let _ = fs::remove_file(old);
        }
    }
}

/// Who may own what is changed here: root, and in tests whoever runs them.
pub(super) fn owners() -> [u32; 2] {
    [0, geteuid().as_raw()]
}

/// What is in a file by `read`, and the state of it in which all of that was in it: what is written while it is read would
/// otherwise be taken for what was read.
fn whole(file: &File, read: impl Fn(&File) -> io::Result<Vec<u8>>) -> io::Result<(Stat, Vec<u8>)> {
    let before = fstat(file)?;
    let bytes = read(file)?;
    if is_same(&before, &fstat(file)?) { Ok((before, bytes)) } else { Err(io::Error::other(CHANGED)) }
}

/// What is in a file, and one byte more than it may be long.
fn contents(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether it is the same file with the same contents.
fn is_same(a: &Stat, b: &Stat) -> bool {
    let key =
        |s: &Stat| (s.st_dev, s.st_ino, s.st_size, s.st_mtime, s.st_mtime_nsec, s.st_ctime, s.st_ctime_nsec);
    key(a) == key(b)
}

/// The names of a file's extended attributes; none where the filesystem has none.
fn attributes(file: &File) -> io::Result<Vec<CString>> {
    let names = flistxattr_query(file).and_then(|length| {
        let mut names = vec![0; length];
        let filled = if length == 0 { 0 } else { flistxattr(file, &mut names[..])? };
        names.truncate(filled);
        Ok(names)
    });
    let names = match names {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        names => names?,
    };
    let names = names.split_inclusive(|byte| *byte == 0);
    Ok(names.filter_map(|name| CStr::from_bytes_with_nul(name).ok()).map(CStr::to_owned).collect())
}

fn attribute(file: &File, name: &CStr) -> io::Result<Vec<u8>> {
    let length = fgetxattr_query(file, name)?;
    let mut value = vec![0; length];
    let filled = if length == 0 { 0 } else { fgetxattr(file, name, &mut value[..])? };
    value.truncate(filled);
    Ok(value)
}

/// An error of the kernel's in the words of the standard library.
fn io(error: Errno) -> io::Error {
    error.into()
}

/// The same, for what is opened without following links.
fn not_followed(error: Errno) -> io::Error {
    match error {
        Errno::LOOP | Errno::NOTDIR => io::Error::other("it is a link, or lies behind one, or is no folder"),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tempfile::TempDir;

    use super::*;

    /// A folder that only we change.
    fn folder() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    fn read(folder: &TempDir, below: &str) -> Result<SafeFile, String> {
        SafeFile::read(folder.path(), Path::new(below)).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_file_is_replaced_with_all_else_about_it_kept() {
        let dir = folder();
        fs::create_dir(dir.path().join("app.service.d")).unwrap();
        let path = dir.path().join("app.service.d/10-x.conf");
        fs::write(&path, "old\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        // Where the filesystem of the tests has such attributes.
        let marked = rustix::fs::setxattr(&path, "user.kept", b"yes", XattrFlags::empty()).is_ok();
        let before = fs::metadata(&path).unwrap();
        let file = read(&dir, "app.service.d/10-x.conf").unwrap();
        assert_eq!((file.bytes(), file.manner()), (&b"old\n"[..], Ok(Manner::Replaced)));
        let file = file.write(b"new and longer\n").unwrap();
        assert_eq!(file.bytes(), b"new and longer\n");
        assert_eq!(fs::read(&path).unwrap(), b"new and longer\n");
        let after = fs::metadata(&path).unwrap();
        assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
        assert_ne!(after.ino(), before.ino(), "it was written in place");
        if marked {
            assert_eq!(attribute(&File::open(&path).unwrap(), c"user.kept").unwrap(), b"yes");
        }
        assert_eq!(fs::read_dir(dir.path().join("app.service.d")).unwrap().count(), 1, "something was left");
        file.write(b"old\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old\n");
    }

    #[test]
    fn nothing_is_reached_through_a_link_or_outside_the_folder() {
        let (dir, elsewhere) = (folder(), folder());
        fs::write(elsewhere.path().join("target"), "x").unwrap();
        symlink(elsewhere.path().join("target"), dir.path().join("link.service")).unwrap();
        symlink(elsewhere.path(), dir.path().join("link.service.d")).unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        for (below, why) in [
            ("link.service", "a link"),
            ("link.service.d/target", "a link"),
            ("folder", "no plain file"),
            ("gone", "No such file"),
            ("../x", "does not lie in"),
            ("/etc/passwd", "does not lie in"),
            ("folder/../../x", "does not lie in"),
            ("", "names no file"),
        ] {
            let said = read(&dir, below).unwrap_err();
            assert!(said.contains(why), "{below}: {said}");
        }
        assert_eq!(fs::read(elsewhere.path().join("target")).unwrap(), b"x");
    }

    #[test]
    fn what_others_may_write_is_not_changed() {
        let dir = folder();
        let path = dir.path().join("app.service");
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        assert!(read(&dir, "app.service").unwrap_err().contains("others than root may write"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        read(&dir, "app.service").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o775)).unwrap();
        assert!(read(&dir, "app.service").unwrap_err().contains("others than root may write"));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(&path, vec![b'x'; 1024 * 1024 + 1]).unwrap();
        assert!(read(&dir, "app.service").unwrap_err().contains("longer than 1 MiB"));
    }

    #[test]
    fn what_somebody_else_changed_meanwhile_is_left_alone() {
        let dir = folder();
        let path = dir.path().join("app.service");
        fs::write(&path, "old").unwrap();
        let file = read(&dir, "app.service").unwrap();
        fs::write(&path, "theirs").unwrap();
        let failure = file.write(b"ours").unwrap_err();
        assert!(matches!(&failure, Failure::Refused(said) if said.contains(CHANGED)), "{failure}");
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left");
    }

    #[test]
    fn what_somebody_changes_while_it_is_read_is_not_taken_for_what_was_read() {
        let dir = folder();
        let path = dir.path().join("app.service");
        fs::write(&path, "old").unwrap();
        let file = File::open(&path).unwrap();
        let edited = whole(&file, |file| {
            let bytes = contents(file)?;
            fs::write(&path, "theirs")?;
            Ok(bytes)
        });
        assert_eq!(edited.unwrap_err().to_string(), CHANGED);
        let (_, bytes) = whole(&File::open(&path).unwrap(), contents).unwrap();
        assert_eq!(bytes, b"theirs");
    }

    #[test]
    fn what_a_death_left_behind_is_in_nobody_s_way() {
        let dir = folder();
        let path = dir.path().join("app.service");
        fs::write(&path, "old").unwrap();
        fs::write(dir.path().join(".app.service.evenkeel-new"), "half").unwrap();
        read(&dir, "app.service").unwrap().write(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_can_be_written_in_place_and_shortened() {
        let dir = folder();
        let path = dir.path().join("hosts");
        fs::write(&path, "a long old text\n").unwrap();
        let before = fs::metadata(&path).unwrap().ino();
        let file = read(&dir, "hosts").unwrap();
        file.overwrite(b"short\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short\n");
        assert_eq!(fs::metadata(&path).unwrap().ino(), before);
        assert!(file.overwrite(b"again\n").is_err(), "it was changed since it was read");
    }

    #[test]
    fn backups_are_secret_and_the_oldest_of_a_file_go() {
        let (dir, kept) = (folder(), folder());
        let backups = kept.path().join("backups");
        fs::write(dir.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
        let file = read(&dir, "hosts").unwrap();
        let mut last = PathBuf::new();
        for second in 0..25 {
            last = file.back_up(&backups, 1_800_000_000_000 + second * 1000).unwrap();
        }
        assert_eq!(fs::read(&last).unwrap(), b"127.0.0.1 localhost\n");
        assert_eq!(fs::metadata(&last).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&backups).unwrap().mode() & 0o777, 0o700);
        let of_this = last.parent().unwrap();
        assert!(of_this.ends_with(dir.path().strip_prefix("/").unwrap().join("hosts")), "{of_this:?}");
        assert_eq!(fs::read_dir(of_this).unwrap().count(), KEPT);
        // Twice in one second.
        assert_ne!(file.back_up(&backups, 1_800_000_024_000).unwrap(), last);
        assert!(last.exists());
    }
}
