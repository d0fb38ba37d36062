//! Takes the oldest part out of a file that somebody writes to, so that what stays is whole lines.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::{FallocateFlags, OFlags, fallocate, fstatvfs};

/// Longest line that is looked for: the engine writes at most 16 KiB of output a line, as JSON.
const LINE_MAX: usize = 256 * 1024;

/// Cuts all but the last `keep` bytes off the beginning, rounded to whole blocks, and answers how many bytes that were. The
/// rest of the line that was cut through becomes white space, which is nothing between values of JSON.
///
/// The file stays the same one, so who has it open for appending goes on. Needs no room.
///
/// # Errors
/// Where the filesystem cannot do it (ext4 and XFS can), and when it is no plain file.
pub(super) fn cut(path: &Path, keep: u64) -> io::Result<u64> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    let block = fstatvfs(&file)?.f_bsize.max(1);
    let length = metadata.len().saturating_sub(keep) / block * block;
    if length == 0 {
        return Ok(0);
    }
    fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, length).map_err(|error| {
        if error == rustix::io::Errno::OPNOTSUPP {
            io::Error::other("this filesystem cannot cut off the beginning of a file (ext4 and XFS can)")
        } else {
            error.into()
        }
    })?;
    blank_first_line(&file)?;
    Ok(length)
}

fn blank_first_line(file: &File) -> io::Result<()> {
    let mut beginning = vec![0; LINE_MAX];
    let read = file.read_at(&mut beginning, 0)?;
    if let Some(end) = beginning[..read].iter().position(|byte| *byte == b'\n') {
        file.write_all_at(&vec![b' '; end], 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn what_stays_is_the_newest_and_whole_lines_of_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x-json.log");
        let mut writer = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        for line in 0..50_000 {
            writeln!(writer, "{{\"log\":\"line {line}\\n\",\"stream\":\"stdout\"}}").unwrap();
        }
        let before = fs::metadata(&path).unwrap().len();
        let freed = match cut(&path, 100_000) {
            Ok(freed) => freed,
            // Where the tests run on another filesystem, nothing is lost.
            Err(error) => {
                assert!(error.to_string().contains("ext4 and XFS can"), "{error}");
                assert_eq!(fs::metadata(&path).unwrap().len(), before);
                return;
            }
        };
        writeln!(writer, "{{\"log\":\"after\"}}").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(freed > 0 && freed <= before - 100_000, "{freed} of {before}");
        let values: Vec<serde_json::Value> =
            serde_json::Deserializer::from_str(&text).into_iter().map(Result::unwrap).collect();
        assert_eq!(values[values.len() - 1]["log"], "after");
        assert_eq!(values[values.len() - 2]["log"], "line 49999\n");
        assert!(values.len() < 50_000);
        // It is small enough now.
        assert_eq!(cut(&path, 1 << 30).unwrap(), 0);
    }

    #[test]
    fn neither_a_link_nor_a_folder_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("target"), vec![b'x'; 100_000]).unwrap();
        symlink(dir.path().join("target"), dir.path().join("link")).unwrap();
        assert!(cut(&dir.path().join("link"), 0).is_err());
        assert!(cut(dir.path(), 0).is_err());
        assert!(cut(&dir.path().join("gone"), 0).is_err());
        assert_eq!(fs::metadata(dir.path().join("target")).unwrap().len(), 100_000);
    }
}
