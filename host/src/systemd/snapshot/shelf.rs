//! The folder that holds snapshots, and reading them back: what was changed or damaged is never taken for good.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::Deserialize;

use super::{Entry, FORMAT, Manifest, is_hex, look, look::below, sha256};

/// The file of a snapshot that tells of all others.
pub const MANIFEST: &str = "manifest.json";
/// The folder of a snapshot that holds the files.
pub const FILES: &str = "files";

/// A manifest's size at most, in bytes.
const LARGEST_MANIFEST: u64 = 4 * 1024 * 1024;
/// Others than the owner may write.
const OTHERS_WRITE: u32 = 0o022;

/// Why a snapshot cannot be used, in words for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SnapshotError(String);

/// A folder of snapshots.
#[derive(Debug, Clone)]
pub struct Shelf {
    dir: PathBuf,
    owner: u32,
}

/// One snapshot whose manifest is as it was written. What it says of the host may be anything:
/// [`Manifest::is_trustworthy`].
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// When it was made, and the beginning of its manifest's hash.
    pub name: String,
    /// Its folder.
    pub dir: PathBuf,
    /// What it holds.
    pub manifest: Manifest,
}

impl Shelf {
    /// A folder whose snapshots count only where they belong to root.
    pub fn of_root(dir: &Path) -> Self {
        Self::of(dir, 0)
    }

    /// The same of another user.
    pub fn of(dir: &Path, owner: u32) -> Self {
        Self { dir: dir.to_owned(), owner }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The names of the snapshots, the oldest first; none where there is no folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn names(&self) -> Result<Vec<String>, SnapshotError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| said(&self.dir, &error))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(|error| said(&self.dir, &error))?.file_name();
            names.extend(name.into_string().ok().filter(|name| is_name(name)));
        }
        names.sort();
        Ok(names)
    }

    /// The newest snapshot, if there is any.
    ///
    /// # Errors
    /// When it was changed or damaged; an older one is not taken instead.
    pub fn newest(&self) -> Result<Option<Snapshot>, SnapshotError> {
        self.names()?.last().map(|name| self.open(name)).transpose()
    }

    /// One snapshot.
    ///
    /// # Errors
    /// When there is none of this name, or it was changed or damaged.
    pub fn open(&self, name: &str) -> Result<Snapshot, SnapshotError> {
        if !is_name(name) {
            let wrong = format!("`{}` is no name of a snapshot, as in {EXAMPLE}", name.escape_debug());
            return Err(SnapshotError(wrong));
        }
        let dir = self.dir.join(name);
        let path = dir.join(MANIFEST);
        for part in [&self.dir, &dir, &path] {
            let about = fs::symlink_metadata(part).map_err(|error| said(part, &error))?;
            if about.uid() != self.owner || about.mode() & OTHERS_WRITE != 0 || about.is_symlink() {
                let mode = about.mode() & 0o7777;
                let wrong = format!(
                    "it belongs to uid {} with mode {mode:04o}, or is a link: it is not trusted",
                    about.uid()
                );
                return Err(said(part, &wrong));
            }
        }
        let text = read(&path, LARGEST_MANIFEST).map_err(|error| said(&path, &error))?;
        if !name.ends_with(&sha256(&text)[..HASH]) {
            return Err(said(&path, &"it is not what was written: it was changed or damaged"));
        }
        let manifest = parse(&text).map_err(|wrong| said(&path, &wrong))?;
        Ok(Snapshot { name: name.to_owned(), dir, manifest })
    }
}

impl Snapshot {
    /// What a file held.
    ///
    /// # Errors
    /// When the copy was changed or damaged, or the snapshot has no such file.
    pub fn content(&self, path: &str) -> Result<Vec<u8>, SnapshotError> {
        let copy = below(&self.dir.join(FILES), path);
        let Some(Entry::File { sha256: Some(hash), .. }) = self.manifest.entries.get(path) else {
            return Err(said(&copy, &"there is no such file in this snapshot"));
        };
        let found = look::look(&copy).map_err(|error| said(&copy, &error))?;
        let Some(found) = found else { return Err(said(&copy, &"the copy is gone")) };
        match (found.entry, found.content) {
            (Entry::File { sha256: Some(now), .. }, Some(content)) if now == *hash => Ok(content),
            (Entry::File { sha256: None, .. }, _) => Err(said(&copy, &"only its owner may read it")),
            _ => Err(said(&copy, &"the copy is not what was written: it was changed or damaged")),
        }
    }

    /// Whether every copy is as it was written, as far as this process may read them.
    ///
    /// # Errors
    /// With the first that is not.
    pub fn is_whole(&self) -> Result<(), SnapshotError> {
        let files = self.manifest.entries.iter().filter(|(_, entry)| matches!(entry, Entry::File { .. }));
        for (path, _) in files {
            let copy = below(&self.dir.join(FILES), path);
            let found = look::look(&copy).map_err(|error| said(&copy, &error))?;
            if found.is_none_or(|found| found.content.is_some()) {
                self.content(path)?;
            }
        }
        Ok(())
    }
}

/// Hexadecimal digits of the hash in a name.
const HASH: usize = 16;
/// What a name looks like.
const EXAMPLE: &str = "20260107T120000.000Z-0123456789abcdef";

/// The name of a snapshot with this manifest.
pub fn name(made_ms: u64, manifest: &[u8]) -> String {
    let time = i64::try_from(made_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let time = time.unwrap_or_default().strftime("%Y%m%dT%H%M%S");
    format!("{time}.{:03}Z-{}", made_ms % 1000, &sha256(manifest)[..HASH])
}

/// Whether this can be the name of a snapshot.
pub fn is_name(name: &str) -> bool {
    name.len() == EXAMPLE.len()
        && name.bytes().zip(EXAMPLE.bytes()).enumerate().all(|(place, (byte, like))| match like {
            _ if place >= EXAMPLE.len() - HASH => is_hex(byte),
            b'0'..=b'9' => byte.is_ascii_digit(),
            other => byte == other,
        })
}

fn parse(text: &[u8]) -> Result<Manifest, String> {
    /// The one thing that every format has.
    #[derive(Deserialize)]
    struct AnyFormat {
        format: u32,
    }
    let unreadable = |error: serde_json::Error| format!("it cannot be read: {error}");
    let AnyFormat { format } = serde_json::from_slice(text).map_err(unreadable)?;
    if format != FORMAT {
        return Err(format!("it is of format {format}, and this version reads format {FORMAT}"));
    }
    let manifest: Manifest = serde_json::from_slice(text).map_err(unreadable)?;
    manifest.check()?;
    Ok(manifest)
}

fn read(path: &Path, largest: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(largest + 1).read_to_end(&mut text)?;
    if text.len() as u64 > largest {
        return Err(io::Error::other(format!("it is larger than {largest} bytes")));
    }
    Ok(text)
}

fn said(path: &Path, wrong: &dyn std::fmt::Display) -> SnapshotError {
    SnapshotError(format!("{}: {wrong}", path.display()))
}

#[cfg(feature = "foreign-input")]
pub(crate) const PARSERS: &[crate::foreign_input::Parser] = &[crate::foreign_input::Parser {
    name: "manifests of snapshots",
    parse: |bytes| {
        let _ = is_name(&crate::foreign_input::text(bytes));
        let _ = parse(bytes).map(|manifest| manifest.is_trustworthy(0));
    },
    samples: &[
        EXAMPLE,
        r#"{"format": 1, "made_ms": 1767787200000, "folders": ["/etc/systemd/system"], "entries": {
            "/etc/systemd/system/shop.target.wants/shop.service": {"link": {"uid": 0, "gid": 0, "to": "../shop.service"}},
            "/etc/systemd/system/shop.service.d/a.conf": {"file": {"mode": "0644", "uid": 0, "gid": 0, "bytes": 1,
                "sha256": "9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0"}}}}"#,
    ],
}];
