//! Puts a file or link where it belongs, so that whoever looks sees the old one or the new one, whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{
        MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, fchown, lchown, symlink,
    },
    path::{Path, PathBuf},
};

use evenkeel_host::systemd::snapshot::Entry;
use rustix::fs::{XattrFlags, fsetxattr, lgetxattr};

use super::make_folder;

/// The end of the name of what is not finished; with a dot before it, it is nothing to systemd.
const UNFINISHED: &str = ".evenkeel-new";
/// Where SELinux keeps a file's label: it stays what it was.
const LABEL: &std::ffi::CStr = c"security.selinux";

/// Makes what is at `place` be as `entry` says, with this content where it is a file.
///
/// # Errors
/// When that cannot be done; what was there is as it was, unless only the folder could not be flushed.
pub(in super::super) fn put(place: &Path, entry: &Entry, content: &[u8]) -> io::Result<()> {
    let folder = place.parent().ok_or_else(|| io::Error::other("it lies in no folder"))?;
    if !folder.is_dir() {
        make_folder(folder, 0o755)?;
        // As the one that it is in, whatever group this process has.
        let about = fs::metadata(folder.parent().unwrap_or(folder))?;
        chown(folder, Some(about.uid()), Some(about.gid()))?;
    }
    let beside = beside(place)?;
    let made = match entry {
        Entry::File { uid, gid, .. } => {
            let mode = entry.mode().ok_or_else(|| io::Error::other("its mode is none"))?;
            fill(&beside, content, mode, (*uid, *gid), place)
        }
        Entry::Link { uid, gid, to } => symlink(to, &beside).and_then(|()| {
            let about = fs::symlink_metadata(&beside)?;
            if owner(&about) == (*uid, *gid) { Ok(()) } else { lchown(&beside, Some(*uid), Some(*gid)) }
        }),
    };
    if let Err(error) = made.and_then(|()| fs::rename(&beside, place)) {
        // Nothing that anybody reads.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    flush(folder)
}

/// Writes a file of our own the same way, for root alone.
///
/// # Errors
/// As [`put`].
pub(in super::super) fn put_text(place: &Path, text: &[u8]) -> io::Result<()> {
    let beside = beside(place)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&beside, place)?;
    place.parent().map_or(Ok(()), flush)
}

/// Removes a file or link; one that is gone is fine.
///
/// # Errors
/// When it stays.
pub(in super::super) fn remove(place: &Path) -> io::Result<()> {
    let is_removed = unlink(place)?;
    if is_removed { place.parent().map_or(Ok(()), flush) } else { Ok(()) }
}

fn fill(beside: &Path, content: &[u8], mode: u32, (uid, gid): (u32, u32), place: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
    file.write_all(content)?;
    if owner(&file.metadata()?) != (uid, gid) {
        fchown(&file, Some(uid), Some(gid))?;
    }
    // Behind the owner, whose change takes bits away.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    keep_label(place, &file)?;
    file.sync_all()
}

/// Gives the new file the old one's label; a new name gets what the policy says.
fn keep_label(place: &Path, file: &File) -> io::Result<()> {
    let mut label = [0_u8; 4096];
    match lgetxattr(place, LABEL, &mut label) {
        Ok(length) => Ok(fsetxattr(file, LABEL, &label[..length], XattrFlags::empty())?),
        // No file, no label, or no SELinux.
        Err(_) => Ok(()),
    }
}

fn owner(about: &fs::Metadata) -> (u32, u32) {
    (about.uid(), about.gid())
}

/// Whether there was something to remove.
fn unlink(place: &Path) -> io::Result<bool> {
    match fs::remove_file(place) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Where it is written until it is whole: nothing is there.
fn beside(place: &Path) -> io::Result<PathBuf> {
    let name = place.file_name().ok_or_else(|| io::Error::other("it has no name"))?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(UNFINISHED);
    let beside = place.with_file_name(beside);
    // What a death left behind. Nobody else writes in this folder.
    unlink(&beside)?;
    Ok(beside)
}

pub(super) fn flush(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use evenkeel_host::systemd::snapshot::look;

    use super::*;

    fn file(mode: &str, dir: &Path) -> Entry {
        let (uid, gid) = owner(&fs::metadata(dir).unwrap());
        Entry::File { mode: mode.to_owned(), uid, gid, bytes: 0, sha256: None }
    }

    #[test]
    fn a_file_becomes_what_was_asked_for_whatever_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a.service.d/limits.conf");
        put(&place, &file("0640", dir.path()), b"new").unwrap();
        let about = fs::metadata(&place).unwrap();
        assert_eq!((about.mode() & 0o7777, fs::read(&place).unwrap()), (0o640, b"new".to_vec()));
        assert_eq!(fs::metadata(place.parent().unwrap()).unwrap().mode() & 0o777, 0o755);
        let (uid, gid) = owner(&about);
        put(&place, &Entry::Link { uid, gid, to: "/dev/null".to_owned() }, b"").unwrap();
        assert_eq!(fs::read_link(&place).unwrap(), Path::new("/dev/null"));
        // The link is replaced, not what it leads to.
        put(&place, &file("0644", dir.path()), b"again").unwrap();
        assert!(fs::symlink_metadata(&place).unwrap().is_file());
        assert_eq!(fs::read_dir(place.parent().unwrap()).unwrap().count(), 1, "something was left");
        remove(&place).unwrap();
        remove(&place).unwrap();
        assert!(look(&place).unwrap().is_none());
    }

    #[test]
    fn what_a_death_left_behind_is_in_nobody_s_way() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a.service");
        fs::write(dir.path().join(".a.service.evenkeel-new"), "half").unwrap();
        put(&place, &file("0644", dir.path()), b"new").unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"new");
        put_text(&dir.path().join("own"), b"text").unwrap();
        assert_eq!(fs::metadata(dir.path().join("own")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_cannot_be_replaced_stays() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a.service");
        fs::create_dir(&place).unwrap();
        assert!(put(&place, &file("0644", dir.path()), b"new").is_err());
        assert!(place.is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left");
    }
}
