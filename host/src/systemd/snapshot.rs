//! Golden snapshots: what the files of some units were when somebody called them good, and how the host differs from
//! that now. Only reading: snapshots are made, and brought back, by the remediator.
//!
//! What belongs to a unit is its file (or the link that masks it or gives it another name), its drop-ins, and the links
//! that enable it. A snapshot is a folder:
//!
//! ```text
//! 20260107T120000.000Z-0123456789abcdef/    when, and the beginning of the SHA-256 of manifest.json
//!     manifest.json                         each path with its mode, owner and hash, or where it leads to
//!     files/etc/systemd/system/…            the files, as they were
//! ```

mod drift;
mod look;
mod shelf;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use drift::{Change, Drift, drift};
pub use look::{Found, Odd, Scan, look, scan};
#[cfg(feature = "foreign-input")]
pub(crate) use shelf::PARSERS;
pub use shelf::{FILES, MANIFEST, Shelf, Snapshot, SnapshotError, is_name, name};

use super::{files::is_in_a_unit_folder, is_unit_name};

/// The format that is written, and the newest that is read.
pub const FORMAT: u32 = 1;

/// Only here is anything recorded or brought back. What is in systemd's other folders belongs to packages, or is made anew
/// at each boot.
pub use super::OWN_FOLDERS;

/// A larger file is no unit file, in bytes.
const LARGEST: u64 = 1024 * 1024;
/// Files and links of one snapshot.
const MOST: usize = 4096;

/// What is known of all files of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// When it was made, in milliseconds since 1970.
    pub made_ms: u64,
    /// Those of [`OWN_FOLDERS`] that were looked into.
    pub folders: Vec<String>,
    /// By absolute path.
    pub entries: BTreeMap<String, Entry>,
}

/// One file or link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Entry {
    /// A unit file or a drop-in.
    File {
        /// As `0644`.
        mode: String,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Its size.
        bytes: u64,
        /// In hexadecimal; none where it could not be read. A snapshot always has it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
    },
    /// A link that enables, masks or names a unit.
    Link {
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
        /// As it is written in the link.
        to: String,
    },
}

impl Entry {
    /// Whether this, as recorded, is what was found. What could not be read is taken to be the same as long as nothing
    /// else differs.
    pub fn is_same(&self, found: &Self) -> bool {
        match (self, found) {
            (Self::File { sha256: known, .. }, Self::File { mode, uid, gid, bytes, sha256: None }) => {
                let (mode, sha256) = (mode.clone(), known.clone());
                *self == Self::File { mode, uid: *uid, gid: *gid, bytes: *bytes, sha256 }
            }
            _ => self == found,
        }
    }

    fn owner(&self) -> u32 {
        match self {
            Self::File { uid, .. } | Self::Link { uid, .. } => *uid,
        }
    }

    /// A file's permissions; `None` for links, and for what is none.
    pub fn mode(&self) -> Option<u32> {
        match self {
            Self::File { mode, .. } if mode.len() == 4 && !mode.starts_with('+') => {
                u32::from_str_radix(mode, 8).ok()
            }
            _ => None,
        }
    }
}

impl Manifest {
    /// As it is written.
    ///
    /// # Errors
    /// Never; the library cannot know.
    pub fn text(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(self)
    }

    /// Whether it says what a manifest can say, whoever wrote it.
    fn check(&self) -> Result<(), String> {
        if self.folders.is_empty() || self.folders.iter().any(|one| !OWN_FOLDERS.contains(&one.as_str())) {
            return Err(format!("it is about other folders than {}", OWN_FOLDERS.join(" and ")));
        }
        if self.entries.len() > MOST {
            return Err(format!("it has more than {MOST} files"));
        }
        for (path, entry) in &self.entries {
            let wrong = |what: &str| Err(format!("{}: {what}", path.escape_debug()));
            if has_controls(path) || unit_at(&self.folders, path, &|_| true).is_none() {
                return wrong("it belongs to no unit");
            }
            match entry {
                Entry::File { sha256, bytes, .. } => {
                    let is_hash = |text: &String| text.len() == 64 && text.bytes().all(is_hex);
                    let is_known = sha256.as_ref().is_some_and(is_hash);
                    if !is_known || *bytes > LARGEST || entry.mode().is_none() {
                        return wrong("its hash, size or mode is none");
                    }
                }
                Entry::Link { to, .. } if to.is_empty() || to.len() > 4096 || has_controls(to) => {
                    return wrong("it leads nowhere");
                }
                Entry::Link { .. } => {}
            }
        }
        Ok(())
    }

    /// Why it must not be taken for good, if so: all of a good one belongs to `owner`, nobody else may write it, and no
    /// link leads out of systemd's folders.
    ///
    /// # Errors
    /// With what is wrong first, for people.
    pub fn is_trustworthy(&self, owner: u32) -> Result<(), String> {
        for (path, entry) in &self.entries {
            if entry.owner() != owner {
                let owner_name = if owner == 0 { "root".to_owned() } else { format!("uid {owner}") };
                return Err(format!("{path} belongs to uid {} and not to {owner_name}", entry.owner()));
            }
            match entry {
                Entry::File { mode, .. } if entry.mode().is_none_or(|mode| mode & 0o7022 != 0) => {
                    return Err(format!(
                        "others than its owner may write to {path}, or it has special rights (mode {mode}): chmod 0644"
                    ));
                }
                Entry::Link { to, .. } if !leads_to_a_unit(path, to) => {
                    return Err(format!(
                        "{path} is a link out of systemd's folders ({}): put the file itself there",
                        to.escape_debug()
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The unit that a path in one of these folders belongs to, if that is one that is meant.
pub fn unit_at<'a>(folders: &[String], path: &'a str, is_meant: &dyn Fn(&str) -> bool) -> Option<&'a str> {
    let below = |folder: &String| path.strip_prefix(folder.as_str())?.strip_prefix('/');
    unit_of(folders.iter().find_map(below)?, is_meant)
}

/// The same for a path relative to a folder.
fn unit_of<'a>(path: &'a str, is_meant: &dyn Fn(&str) -> bool) -> Option<&'a str> {
    let is_meant = |name: &str| is_unit_name(name) && is_meant(name);
    let Some((folder, name)) = path.split_once('/') else { return is_meant(path).then_some(path) };
    if name.contains('/') {
        return None;
    }
    match folder_of(folder)? {
        (unit, Holds::DropIns) => (name.ends_with(".conf") && is_meant(unit)).then_some(unit),
        (owner, Holds::Links) if is_unit_name(owner) && is_unit_name(name) => {
            if is_meant(name) {
                Some(name)
            } else {
                is_meant(owner).then_some(owner)
            }
        }
        (_, Holds::Links) => None,
    }
}

/// What a folder beside a unit file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    DropIns,
    Links,
}

/// The unit whose folder this is by its name, and what it holds (man systemd.unit).
fn folder_of(name: &str) -> Option<(&str, Holds)> {
    if let Some(unit) = name.strip_suffix(".d") {
        return Some((unit, Holds::DropIns));
    }
    let unit = [".wants", ".requires", ".upholds"].iter().find_map(|suffix| name.strip_suffix(suffix));
    unit.map(|unit| (unit, Holds::Links))
}

/// Whether a link at `path` leads to nothing, which masks a unit, or into one of systemd's folders, by its words.
fn leads_to_a_unit(path: &str, to: &str) -> bool {
    let mut place = PathBuf::new();
    for part in Path::new(path).parent().unwrap_or(Path::new("/")).join(to).components() {
        match part {
            Component::ParentDir => drop(place.pop()),
            Component::CurDir => {}
            other => place.push(other),
        }
    }
    to == "/dev/null" || is_in_a_unit_folder(&place)
}

fn has_controls(text: &str) -> bool {
    text.chars().any(char::is_control)
}

fn is_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
