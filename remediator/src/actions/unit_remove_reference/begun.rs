//! The note that unit files are being changed, and putting back what such a note tells of: what a process that is no more
//! had begun. Everything here blocks; systemd is not asked.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use evenkeel_host::systemd::snapshot::sha256;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::change::Kept;
use crate::{
    actions::{
        Failure, golden,
        safe_file::{SafeFile, owners},
    },
    trust,
};

/// The note's name, beside the backups.
const NOTE: &str = "unit_remove_reference.begun.json";
/// Held by whoever changes files or puts them back.
const LOCK: &str = "unit_remove_reference.lock";
/// What is written, and all that is read.
const FORMAT: u32 = 1;

/// What is being done.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    format: u32,
    /// Whose it is: the instance of the helper's unit that does it for this rule and target.
    instance: String,
    files: Vec<Begun>,
}

/// One file that is changed, or was not come to.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begun {
    folder: PathBuf,
    below: PathBuf,
    /// What it was before.
    backup: PathBuf,
    /// Of what is written into it.
    sha256: String,
}

/// What was put back.
#[derive(Debug, Default)]
pub(super) struct Back {
    /// So many files.
    pub(super) files: usize,
    /// What is neither as it was nor as it was to be: somebody else has changed it since.
    pub(super) foreign: Vec<String>,
}

fn unknown(place: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::Unknown(format!("{}: {error}", place.display()))
}

/// Keeps everybody else from changing files until the answer is dropped.
///
/// # Errors
/// When somebody is at it, or others than root may write to the backups.
pub(super) fn lock(backups: &Path) -> Result<File, Failure> {
    let refused = |error: &dyn std::fmt::Display| Failure::Refused(format!("{}: {error}", backups.display()));
    DirBuilder::new().recursive(true).mode(0o700).create(backups).map_err(|error| refused(&error))?;
    trust::only_changed_by(backups, &owners()).map_err(Failure::Refused)?;
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(backups.join(LOCK));
    let file = file.map_err(|error| refused(&error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => {
            Err(Failure::Busy("another name is being taken out of unit files".to_owned()))
        }
        Err(error) => Err(refused(&io::Error::from(error))),
    }
}

/// Notes what is begun.
///
/// # Errors
/// When it cannot be written for good; then nothing must be changed.
pub(super) fn begin(backups: &Path, instance: String, kept: &[Kept]) -> Result<(), Failure> {
    let begun = |kept: &Kept| Begun {
        folder: kept.change.folder.clone(),
        below: kept.change.below.clone(),
        backup: kept.backup.clone(),
        sha256: sha256(&kept.change.removal.text),
    };
    let note = Note { format: FORMAT, instance, files: kept.iter().map(begun).collect() };
    let refused = |error: &dyn std::fmt::Display| {
        Failure::Refused(format!("what is begun cannot be noted, so nothing was done: {error}"))
    };
    let text = serde_json::to_vec(&note).map_err(|error| refused(&error))?;
    golden::put_text(&backups.join(NOTE), &text).map_err(|error| refused(&error))
}

/// Notes that it is done, or as it was before.
///
/// # Errors
/// When the note stays: then it would be taken back.
pub(super) fn end(backups: &Path) -> Result<(), Failure> {
    let place = backups.join(NOTE);
    golden::remove(&place).map_err(|error| unknown(&place, &error))
}

/// Whether this helper has something begun; another's is taken back by the next one who begins.
///
/// # Errors
/// When the note cannot be read.
pub(super) fn is_begun_by(backups: &Path, instance: &str) -> Result<bool, Failure> {
    Ok(read(backups)?.is_some_and(|note| note.instance == instance))
}

fn read(backups: &Path) -> Result<Option<Note>, Failure> {
    let place = backups.join(NOTE);
    let text = match fs::read(&place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| unknown(&place, &error))?,
    };
    let note = serde_json::from_slice(&text).ok().filter(|note: &Note| note.format == FORMAT);
    let cure = "it cannot be read: compare the unit files with the newest backups beside it, and remove it";
    note.ok_or_else(|| unknown(&place, &cure)).map(Some)
}

/// Puts back the files that the note tells of, each that is as it was to become; nothing where there is no note.
///
/// # Errors
/// When one cannot be put back; the note stays.
pub(super) fn put_back(backups: &Path) -> Result<Option<Back>, Failure> {
    let Some(note) = read(backups)? else { return Ok(None) };
    let mut back = Back::default();
    for Begun { folder, below, backup, sha256: written } in note.files {
        let place = folder.join(&below);
        if fs::symlink_metadata(&place).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            back.foreign.push(place.display().to_string());
            continue;
        }
        let file =
            SafeFile::read(&folder, &below).map_err(|failure| Failure::Unknown(failure.to_string()))?;
        let before = fs::read(&backup).map_err(|error| unknown(&backup, &error))?;
        if file.bytes() == before {
            continue;
        }
        if sha256(file.bytes()) != written {
            back.foreign.push(place.display().to_string());
            continue;
        }
        file.write(&before).map_err(|failure| Failure::Unknown(failure.to_string()))?;
        back.files += 1;
    }
    Ok(Some(back))
}
