//! What the files of units are on the host now. Links are never followed.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use super::{Entry, Holds, LARGEST, MOST, folder_of, has_controls, sha256, unit_of};

/// The files of units on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// By absolute path.
    pub entries: BTreeMap<String, Entry>,
    /// What is in the place of a file or a link and cannot be recorded.
    pub odd: BTreeMap<String, Odd>,
}

/// What cannot be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Odd {
    /// The unit that it belongs to.
    pub unit: String,
    /// Why not, for people.
    pub why: String,
}

/// A file or link as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What there is to say of it.
    pub entry: Entry,
    /// What a file holds, where it may be read.
    pub content: Option<Vec<u8>>,
}

/// Looks at what belongs to units that are meant, in these of [`super::OWN_FOLDERS`]. `root` is where the host's files
/// are.
///
/// # Errors
/// When a folder cannot be read, or holds too much.
pub fn scan(root: &Path, folders: &[String], is_meant: &dyn Fn(&str) -> bool) -> io::Result<Scan> {
    let mut scan = Scan::default();
    for folder in folders {
        let place = below(root, folder);
        for (name, kind) in names_in(&place)? {
            let Some(name) = name.to_str() else { continue };
            match folder_of(name).filter(|_| !kind.is_file()) {
                Some(_) if kind.is_dir() => {
                    for (inner, _) in names_in(&place.join(name))? {
                        let path = format!("{name}/{}", inner.to_string_lossy());
                        let is_text = inner.to_str().is_some_and(|name| !has_controls(name));
                        match unit_of(&path, is_meant) {
                            Some(unit) if !is_text => {
                                scan.is_odd(format!("{folder}/{path}"), unit, "its name is no text");
                            }
                            _ => scan.take(root, folder, &path, is_meant)?,
                        }
                    }
                }
                // systemd follows it; what it leads to is in nobody's care.
                Some((unit, holds)) if is_meant(unit) => {
                    let what = if holds == Holds::DropIns { "drop-ins" } else { "links" };
                    let why = format!("a folder of {what} must be one, not a link to one");
                    scan.is_odd(format!("{folder}/{name}"), unit, why);
                }
                Some(_) => {}
                None => scan.take(root, folder, name, is_meant)?,
            }
        }
    }
    Ok(scan)
}

impl Scan {
    fn take(
        &mut self,
        root: &Path,
        folder: &str,
        name: &str,
        is_meant: &dyn Fn(&str) -> bool,
    ) -> io::Result<()> {
        let Some(unit) = unit_of(name, is_meant) else { return Ok(()) };
        let path = format!("{folder}/{name}");
        match look(&below(root, &path)) {
            Ok(Some(found)) => drop(self.entries.insert(path, found.entry)),
            // It went while the folder was read.
            Ok(None) => {}
            Err(error) => self.is_odd(path, unit, error.to_string()),
        }
        if self.entries.len() + self.odd.len() > MOST {
            return Err(io::Error::other(format!("the units have more than {MOST} files")));
        }
        Ok(())
    }

    fn is_odd(&mut self, path: String, unit: &str, why: impl Into<String>) {
        self.odd.insert(path, Odd { unit: unit.to_owned(), why: why.into() });
    }
}

/// What is at a path; nothing where nothing is.
///
/// # Errors
/// When it is neither a file nor a link, too large, or cannot be looked at.
pub fn look(path: &Path) -> io::Result<Option<Found>> {
    let about = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        about => about?,
    };
    if about.is_symlink() {
        let to = fs::read_link(path)?.into_os_string().into_string().ok().filter(|to| !has_controls(to));
        let to = to.ok_or_else(|| io::Error::other("it leads to a name that is no text"))?;
        return Ok(Some(Found {
            entry: Entry::Link { uid: about.uid(), gid: about.gid(), to },
            content: None,
        }));
    }
    if !about.is_file() {
        return Err(io::Error::other("it is neither a file nor a link"));
    }
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).map_err(io::Error::other)?;
    match fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Ok(Some(Found { entry: file(&about, None), content: None }))
        }
        Err(error) => Err(error),
        Ok(mut file_now) => {
            let about = file_now.metadata()?;
            let mut content = Vec::new();
            file_now.by_ref().take(LARGEST + 1).read_to_end(&mut content)?;
            if content.len() as u64 > LARGEST {
                return Err(io::Error::other("it is larger than any unit file (1 MiB)"));
            }
            Ok(Some(Found { entry: file(&about, Some(&content)), content: Some(content) }))
        }
    }
}

fn file(about: &fs::Metadata, content: Option<&[u8]>) -> Entry {
    Entry::File {
        mode: format!("{:04o}", about.mode() & 0o7777),
        uid: about.uid(),
        gid: about.gid(),
        bytes: content.map_or(about.len(), |content| content.len() as u64),
        sha256: content.map(sha256),
    }
}

/// The names in a folder and what they are, in order; none where there is no folder.
fn names_in(folder: &Path) -> io::Result<Vec<(OsString, fs::FileType)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => {
            entries.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.display())))?
        }
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        names.push((entry.file_name(), entry.file_type()?));
    }
    names.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(names)
}

/// An absolute path of the host below `root`.
pub(super) fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}
