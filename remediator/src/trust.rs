//! Whether a file says what root wrote: what runs as root must not be told what to do by anybody else.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// Others than the owner may write.
const OTHERS_WRITE: u32 = 0o022;
/// In a folder: who may write in it may still not replace what is not his own.
const STICKY: u32 = 0o1000;

/// Makes sure that only root can change what is at `path`: it and every folder on the way to it belong to root, and
/// nobody else may write there.
///
/// # Errors
/// With what is wrong, for people. May block on a filesystem that hangs.
pub fn only_root_changes(path: &Path) -> Result<(), String> {
    only_changed_by(path, &[0])
}

/// The same with others beside root who may own it.
///
/// # Errors
/// As [`only_root_changes`].
pub(crate) fn only_changed_by(path: &Path, owners: &[u32]) -> Result<(), String> {
    let said = |path: &Path, what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
    // A link is as good as the place it leads to; who may change the link itself may write in its folder.
    let real = fs::canonicalize(path).map_err(|error| said(path, &error))?;
    let on_the_way = path.ancestors().filter(|part| !part.as_os_str().is_empty());
    for part in real.ancestors().chain(on_the_way) {
        let metadata = fs::metadata(part).map_err(|error| said(part, &error))?;
        if let Err(wrong) = judge(metadata.uid(), metadata.mode(), metadata.is_dir(), owners) {
            return Err(said(part, &wrong));
        }
    }
    Ok(())
}

/// The same of a folder and of all that is in it. Here nobody else may even add a file.
///
/// # Errors
/// As [`only_root_changes`]; a folder that is not there is fine.
pub fn only_root_fills(folder: &Path) -> Result<(), String> {
    let said = |error: &dyn std::fmt::Display| format!("{}: {error}", folder.display());
    let metadata = match fs::metadata(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.map_err(|error| said(&error))?,
    };
    judge(metadata.uid(), metadata.mode(), false, &[0]).map_err(|wrong| said(&wrong))?;
    only_root_changes(folder)?;
    for entry in fs::read_dir(folder).map_err(|error| said(&error))? {
        only_root_changes(&entry.map_err(|error| said(&error))?.path())?;
    }
    Ok(())
}

/// Whether a file or folder of this owner and mode is changed by `owners` only.
///
/// # Errors
/// With what is wrong, for people.
pub(crate) fn judge(owner: u32, mode: u32, is_folder: bool, owners: &[u32]) -> Result<(), String> {
    if !owners.contains(&owner) {
        Err(format!("it belongs to uid {owner} and not to root"))
    } else if mode & OTHERS_WRITE != 0 && !(is_folder && mode & STICKY != 0) {
        Err(format!("others than root may write to it (mode {:04o}): chmod go-w", mode & 0o7777))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_root_alone_can_change_is_trusted() {
        let judge = |owner, mode, is_folder| judge(owner, mode, is_folder, &[0]);
        assert_eq!(judge(0, 0o100_644, false), Ok(()));
        assert_eq!(judge(0, 0o040_755, true), Ok(()));
        // A folder like /tmp: others may add to it, and not replace what is root's.
        assert_eq!(judge(0, 0o041_777, true), Ok(()));
        assert!(judge(0, 0o040_775, true).unwrap_err().contains("0775"));
        assert!(judge(0, 0o100_646, false).is_err());
        assert!(judge(0, 0o101_666, false).is_err(), "the bit means nothing on a file");
        assert!(judge(1000, 0o100_600, false).unwrap_err().contains("uid 1000"));
    }

    #[test]
    fn a_folder_that_others_may_add_to_is_not_trusted() {
        assert_eq!(only_root_fills(Path::new("/no/such/folder")), Ok(()));
        let wrong = only_root_fills(Path::new("/tmp")).unwrap_err();
        assert!(wrong.starts_with("/tmp: others than root may write to it"), "{wrong}");
    }

    #[test]
    fn what_is_not_there_is_not_trusted() {
        assert!(only_root_changes(Path::new("/no/such/file")).unwrap_err().starts_with("/no/such/file: "));
        assert_eq!(only_root_changes(Path::new("/etc/passwd")), Ok(()));
    }
}
