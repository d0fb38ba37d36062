//! The note that a snapshot is being brought back, and taking back what such a note tells of.

use std::{fs, io, path::PathBuf, sync::Arc};

use evenkeel_host::systemd::{
    Systemd,
    snapshot::{self, Change, Snapshot},
};
use serde::{Deserialize, Serialize};

use super::{
    aim::{Aim, become_like},
    services,
};
use crate::actions::{
    Failure,
    golden::{self, Golden, Purpose, Wanted},
};

/// The note's name, beside the backups.
const NOTE: &str = "begun.json";
/// What is written, and the newest that is read.
const FORMAT: u32 = 1;

/// What is being done.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    format: u32,
    /// Whose it is: the instance of the helper's unit that does it for this rule and target.
    #[serde(default)]
    instance: String,
    /// What is being brought back.
    snapshot: String,
    /// What was there before.
    pub(super) backup: String,
    /// Whether units are restarted.
    restarts: bool,
    /// When it began, in milliseconds since 1970.
    begun_ms: u64,
}

fn place(golden: &Golden) -> PathBuf {
    golden.before().dir().join(NOTE)
}

/// Whether something is begun and neither done nor taken back.
pub(in super::super) fn is_begun(golden: &Golden) -> bool {
    place(golden).exists()
}

/// Keeps what is there and notes what is begun. Answers the name of the backup.
///
/// # Errors
/// When either cannot be written for good; then nothing must be changed.
pub(super) fn begin(
    golden: &Golden,
    aim: &Aim,
    instance: String,
    restarts: bool,
    now_ms: u64,
) -> Result<String, Failure> {
    let refused =
        |error: &dyn std::fmt::Display| Failure::Refused(format!("no backup, so nothing was done: {error}"));
    let backup = golden::keep(golden, &golden.before(), Purpose::Backup, &aim.scan, now_ms)
        .map_err(|failure| refused(&failure))?;
    let note = Note {
        format: FORMAT,
        instance,
        snapshot: aim.snapshot.name.clone(),
        backup: backup.clone(),
        restarts,
        begun_ms: now_ms,
    };
    let text = serde_json::to_vec(&note).map_err(|error| refused(&error))?;
    golden::put_text(&place(golden), &text).map_err(|error| refused(&error))?;
    Ok(backup)
}

/// Notes that it is done, and forgets the oldest backups.
///
/// # Errors
/// When the note stays: then it would be taken back.
pub(super) fn end(golden: &Golden, backup: &str) -> Result<(), Failure> {
    golden::remove(&place(golden))
        .map_err(|error| Failure::Unknown(format!("{}: {error}", place(golden).display())))?;
    if let Err(error) = golden::forget_old(&golden.before(), golden.keep, &[backup]) {
        tracing::warn!(%error, "cannot remove the oldest backups of unit files");
    }
    Ok(())
}

/// Takes back what the helper of this instance had begun, which is no more. Answers what was done, and nothing where it
/// had nothing begun: then its own answer stands.
///
/// # Errors
/// When it cannot be taken back.
pub(crate) async fn take_back(
    systemd: &Systemd,
    golden: &Arc<Golden>,
    instance: &str,
) -> Result<Option<String>, Failure> {
    let (at, this) = (Arc::clone(golden), instance.to_owned());
    let held = golden::blocking(move || held_if_begun_by(&at, &this)).await?;
    match held {
        None => Ok(None),
        Some(_held) => take_back_held(systemd, golden).await,
    }
}

/// The lock, where there is something to take back that this helper had begun. Another that holds it takes back by itself
/// what it finds, before it begins.
pub(super) fn held_if_begun_by(golden: &Golden, instance: &str) -> Result<Option<fs::File>, Failure> {
    if !is_begun(golden) {
        return Ok(None);
    }
    let held = match golden.lock() {
        Err(Failure::Busy(_)) => return Ok(None),
        held => held?,
    };
    // One without an instance was written by an earlier version.
    let is_ours = |note: &Note| note.instance.is_empty() || note.instance == instance;
    Ok(read(golden)?.is_some_and(|note| is_ours(&note)).then_some(held))
}

/// The same for who holds the lock.
///
/// # Errors
/// When it cannot be taken back.
pub(super) async fn take_back_held(
    systemd: &Systemd,
    golden: &Arc<Golden>,
) -> Result<Option<String>, Failure> {
    let at = Arc::clone(golden);
    let Some((note, back)) = golden::blocking(move || put_back(&at)).await? else { return Ok(None) };
    let mut said = format!("every file is as it was before ({} taken back)", back.wanted.len());
    if !back.wanted.is_empty() {
        let restarts = note.restarts.then_some(note.begun_ms);
        said += &services::read_again(systemd, &back.wanted, restarts).await?;
    }
    if !back.foreign.is_empty() {
        let foreign = golden::describe(back.foreign.iter().map(|path| (path.as_str(), Change::Modified)));
        said = format!("taken back, but for what somebody else has changed meanwhile: {foreign}; {said}");
    }
    let at = Arc::clone(golden);
    golden::blocking(move || end(&at, &note.backup)).await?;
    Ok(Some(said))
}

/// What was put back.
#[derive(Debug, Default)]
pub(super) struct Back {
    pub(super) wanted: Vec<Wanted>,
    /// What is neither as it was nor as it was to be.
    pub(super) foreign: Vec<String>,
}

/// The note, where there is one.
fn read(golden: &Golden) -> Result<Option<Note>, Failure> {
    let unknown = |error: &dyn std::fmt::Display| Failure::Unknown(error.to_string());
    let note = match fs::read(place(golden)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| unknown(&format_args!("{}: {error}", place(golden).display())))?,
    };
    let note: Note =
        serde_json::from_slice(&note).ok().filter(|note: &Note| note.format == FORMAT).ok_or_else(|| {
            let cure = "compare with the newest folder beside it, and remove it";
            unknown(&format_args!("{} cannot be read: {cure}", place(golden).display()))
        })?;
    Ok(Some(note))
}

/// Puts back the files that the note tells of.
pub(super) fn put_back(golden: &Golden) -> Result<Option<(Note, Back)>, Failure> {
    let unknown = |error: &dyn std::fmt::Display| Failure::Unknown(error.to_string());
    let Some(note) = read(golden)? else { return Ok(None) };
    let open = |shelf: snapshot::Shelf, name: &str| shelf.open(name).map_err(|error| unknown(&error));
    let (new, old) = (open(golden.shelf(), &note.snapshot)?, open(golden.before(), &note.backup)?);
    let back = put_back_all(golden, &new, &old).map_err(|error| unknown(&error))?;
    Ok(Some((note, back)))
}

/// Makes all that is as `new` has it as `old` has it.
fn put_back_all(golden: &Golden, new: &Snapshot, old: &Snapshot) -> Result<Back, String> {
    let (new_files, old_files) = (&new.manifest.entries, &old.manifest.entries);
    let mut paths: Vec<&String> = new_files.keys().chain(old_files.keys()).collect();
    paths.sort();
    paths.dedup();
    let mut back = Back::default();
    for path in paths {
        let Some(unit) = snapshot::unit_at(&golden.folders, path, &|unit| golden.is_meant(unit)) else {
            continue;
        };
        let said = |error: io::Error| format!("{path}: {error}");
        let now = snapshot::look(&golden.at(path)).map_err(said)?.map(|now| now.entry);
        let (new, old_entry) = (new_files.get(path), old_files.get(path));
        if now.as_ref() == old_entry {
            continue;
        }
        if now.as_ref() != new {
            back.foreign.push(path.clone());
            continue;
        }
        become_like(golden, old, path, old_entry).map_err(said)?;
        let (unit, entry) = (unit.to_owned(), old_entry.cloned());
        back.wanted.push(Wanted { path: path.clone(), unit, change: Change::Modified, entry });
    }
    Ok(back)
}
