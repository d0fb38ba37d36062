//! The files that name a unit: found, judged, changed, and put back. Everything here blocks; systemd is not asked.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use evenkeel_host::systemd::{
    Named, own_references,
    unit_file::{self, Removal},
};
use jiff::Timestamp;

use crate::actions::{Failure, safe_file::SafeFile};

/// One file that would be changed.
#[derive(Debug)]
pub(super) struct Change {
    /// The unit whose file it is.
    pub(super) by: String,
    /// The folder that only root changes, and the way from there.
    pub(super) folder: PathBuf,
    pub(super) below: PathBuf,
    file: SafeFile,
    pub(super) removal: Removal,
}

/// One file of which there is a backup.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) change: Change,
    /// Where what it is now is.
    pub(super) backup: PathBuf,
}

/// One file that was changed.
#[derive(Debug)]
pub(super) struct Changed {
    before: SafeFile,
    pub(super) after: SafeFile,
    /// What was to be in it.
    pub(super) text: Vec<u8>,
    /// Where what it was before is.
    pub(super) backup: PathBuf,
}

/// Why nothing is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// As a word.
    pub(super) reason: &'static str,
    /// For people.
    pub(super) detail: String,
}

/// Where the host's own unit files name a unit.
pub(super) fn places(root: &Path, name: &str) -> Vec<Named> {
    let mut places = own_references(root);
    places.retain(|named| named.name == name);
    places
}

/// What would be changed for `name` to be named nowhere: in files in `folders`, of units that `admits` lets, left alone for
/// so long.
///
/// # Errors
/// When there is any place that may not be changed.
pub(super) fn find(
    root: &Path,
    folders: &[PathBuf],
    name: &str,
    quiet_for: Duration,
    admits: impl Fn(&str) -> Result<(), Refusal>,
) -> Result<Vec<Change>, Refusal> {
    let refused = |reason, detail: String| Err(Refusal { reason, detail });
    let mut places = places(root, name);
    places.dedup_by(|later, first| later.file == first.file);
    let mut changes = Vec::new();
    for Named { by, file, line, .. } in places {
        admits(&by)?;
        let shown = file.display();
        if line.is_none() {
            return refused("is_a_link", format!("{shown} names it, which is a link: remove it by hand"));
        }
        let below = folders.iter().find_map(|folder| Some((folder, file.strip_prefix(folder).ok()?)));
        let Some((folder, below)) = below else {
            return refused("not_in_folders", format!("{shown} names it, which is in none of `folders`"));
        };
        let folder = root.join(folder.strip_prefix("/").unwrap_or(folder));
        let below = below.to_owned();
        let file = match SafeFile::read(&folder, &below) {
            Ok(file) => file,
            Err(failure) => return refused("not_root_s_own", failure.to_string()),
        };
        let age = file.age(SystemTime::now());
        if age < quiet_for {
            let seconds = age.as_secs();
            return refused(
                "being_deployed",
                format!("{shown} was changed {seconds} s ago: it may not be finished"),
            );
        }
        let Some(removal) = unit_file::without(file.bytes(), name) else {
            return refused(
                "not_editable",
                format!("{shown}: without it other words would mean something else"),
            );
        };
        changes.push(Change { by, folder, below, file, removal });
    }
    if changes.is_empty() {
        return refused("not_named", "no unit file names it any more".to_owned());
    }
    Ok(changes)
}

/// What would be changed: how much in the first line, then each line as it is and as it would be.
pub(super) fn told(name: &str, changes: &[Change]) -> String {
    let places: Vec<String> = changes
        .iter()
        .flat_map(|change| {
            change.removal.edits.iter().map(|edit| format!("{}:{}", change.file.path().display(), edit.line))
        })
        .collect();
    let mut text = format!("takes {name} out of {}", places.join(", "));
    for change in changes {
        text += &format!("\n--- {}", change.file.path().display());
        for edit in &change.removal.edits {
            text += &format!("\n{}- {}", edit.line, edit.before);
            if let Some(after) = &edit.after {
                text += &format!("\n{}+ {after}", edit.line);
            }
        }
    }
    text
}

/// Keeps a copy of each below `backups`.
///
/// # Errors
/// When one cannot be written for good; then nothing must be changed.
pub(super) fn back_up(changes: Vec<Change>, backups: &Path) -> Result<Vec<Kept>, Failure> {
    let keep = |change: Change| {
        let backup = change.file.back_up(backups, Timestamp::now().as_millisecond())?;
        Ok(Kept { change, backup })
    };
    changes.into_iter().map(keep).collect()
}

/// Changes all of them, or none.
///
/// # Errors
/// When one could not be changed; those before it are as they were.
pub(super) fn write(kept: Vec<Kept>) -> Result<Vec<Changed>, Failure> {
    let mut changed = Vec::new();
    for Kept { change: Change { file, removal, .. }, backup } in kept {
        match file.write(&removal.text) {
            Ok(after) => changed.push(Changed { before: file, after, text: removal.text, backup }),
            Err(failure) => {
                return Err(match take_back(changed) {
                    Ok(()) => failure,
                    Err(error) => Failure::Unknown(format!("{failure}; it cannot be taken back: {error}")),
                });
            }
        }
    }
    Ok(changed)
}

/// Gives the files what was in them before.
///
/// # Errors
/// When one cannot be written, or was changed by somebody else meanwhile.
pub(super) fn take_back(changed: Vec<Changed>) -> Result<(), Failure> {
    let mut failed = Ok(());
    for Changed { before, after, .. } in changed.into_iter().rev() {
        if let Err(failure) = after.write(before.bytes()) {
            failed = Err(failure);
        }
    }
    failed
}
