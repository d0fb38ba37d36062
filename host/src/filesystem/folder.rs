//! What the files of a folder take on the disk. Not here: which of many folders takes most ([`super::largest`]).

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// Files that are looked at: a bound on time, far above what a journal or a log folder holds.
const MOST_FILES: u32 = 10_000;

/// What `st_blocks` counts, whatever the filesystem's own blocks are (stat(2)).
const BLOCK: u64 = 512;

/// The allocated bytes of the regular files in `folder` and in the folders directly in it; `None` when there is no
/// `folder`. Links are not followed. May block for as long as it likes.
pub(super) fn folder_size(folder: &Path) -> io::Result<Option<u64>> {
    let mut files = 0;
    match add_up(folder, true, &mut files) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        size => size.map(Some),
    }
}

fn add_up(folder: &Path, with_folders: bool, files: &mut u32) -> io::Result<u64> {
    let mut bytes: u64 = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        *files += 1;
        if *files > MOST_FILES {
            return Err(io::Error::other(format!("more than {MOST_FILES} files")));
        }
        let metadata = match entry.metadata() {
            // Files of logs come and go.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        if metadata.is_file() {
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(BLOCK));
        } else if metadata.is_dir() && with_folders {
            bytes = bytes.saturating_add(match add_up(&entry.path(), false, files) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                size => size?,
            });
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::symlink};

    use super::*;

    fn write(path: &Path, bytes: usize) -> u64 {
        let mut file = fs::File::create(path).unwrap();
        file.write_all(&vec![b'x'; bytes]).unwrap();
        // Without it, some filesystems have not decided yet where the bytes will be.
        file.sync_all().unwrap();
        file.metadata().unwrap().blocks() * BLOCK
    }

    #[test]
    fn adds_up_what_is_allocated_two_levels_deep() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("journal");
        assert_eq!(folder_size(&folder).unwrap(), None);
        fs::create_dir_all(folder.join("a1b2/deeper")).unwrap();
        assert_eq!(folder_size(&folder).unwrap(), Some(0));
        let expected =
            write(&folder.join("fss"), 10_000) + write(&folder.join("a1b2/system.journal"), 300_000);
        write(&folder.join("a1b2/deeper/not-counted"), 5000);
        write(&root.path().join("elsewhere"), 5000);
        symlink(root.path().join("elsewhere"), folder.join("link")).unwrap();
        symlink(root.path(), folder.join("linked-folder")).unwrap();
        // A hole takes nothing.
        fs::File::create(folder.join("hole")).unwrap().set_len(1 << 30).unwrap();
        assert_eq!(folder_size(&folder).unwrap(), Some(expected));
        assert!(expected >= 310_000);
    }

    #[test]
    fn what_is_no_folder_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(folder_size(file.path()).is_err());
    }

    #[test]
    fn files_are_bounded() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..=MOST_FILES {
            fs::File::create(root.path().join(number.to_string())).unwrap();
        }
        assert_eq!(folder_size(root.path()).unwrap_err().to_string(), "more than 10000 files");
    }
}
