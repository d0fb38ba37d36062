//! Whether a file has changed since it was read.

use std::{os::unix::fs::MetadataExt, path::Path};

/// Device, inode, size, and the times of its last change and of its content's, in nanoseconds: a file that was
/// replaced, rewritten or touched has another one. `None` when it is not there.
pub(super) type Stamp = Option<[i128; 5]>;

/// What the file is like now.
pub(super) fn stamp(path: &Path) -> Stamp {
    let file = std::fs::metadata(path).ok()?;
    let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    Some([
        file.dev().into(),
        file.ino().into(),
        file.size().into(),
        nanoseconds(file.ctime(), file.ctime_nsec()),
        nanoseconds(file.mtime(), file.mtime_nsec()),
    ])
}
