//! What bringing a snapshot back comes to now, and doing it to the files. Not here: what systemd makes of it.

use std::io;

use evenkeel_host::systemd::snapshot::{self, Change, Drift, Entry, Manifest, Scan, Snapshot};

use super::{Added, Files, UnitRestore};
use crate::{
    actions::golden::{self, Golden, Wanted},
    policy::DenyList,
};

/// What would be done.
#[derive(Debug)]
pub(super) struct Aim {
    pub(super) snapshot: Snapshot,
    /// What is there now, of all that belongs to the units.
    pub(super) scan: Scan,
    /// What is to change.
    pub(super) wanted: Vec<Wanted>,
    /// What is not in the snapshot and stays.
    left: Vec<Drift>,
}

/// Why nothing is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stop {
    /// As a word.
    pub(super) reason: &'static str,
    /// For people.
    pub(super) detail: String,
}

fn stop(reason: &'static str, detail: impl ToString) -> Stop {
    Stop { reason, detail: detail.to_string() }
}

/// Finds out what would be done about `target`. Changes nothing.
///
/// # Errors
/// With why nothing may be, or has to be, done.
pub(super) fn aim(params: &UnitRestore, golden: &Golden, target: &str, deny: &DenyList) -> Result<Aim, Stop> {
    golden.is_root_s_own().map_err(|wrong| stop("not_root_s_own", wrong))?;
    let snapshot = chosen(params, golden)?;
    let manifest = &snapshot.manifest;
    if let Some(other) = manifest.folders.iter().find(|folder| !golden.folders.contains(folder)) {
        let detail = format!("snapshot {} is about {other}, and snapshot.folders is not", snapshot.name);
        return Err(stop("other_folders", detail));
    }
    manifest.is_trustworthy(golden.owner).map_err(|wrong| stop("snapshot_not_trusted", wrong))?;
    snapshot.is_whole().map_err(|damaged| stop("snapshot_damaged", damaged))?;
    let scan = golden.scan().map_err(|error| stop("check_failed", error))?;
    let is_meant = |unit: &str| golden.is_meant(unit) && (params.files == Files::All || unit == target);
    let drift = snapshot::drift(&golden.folders, &manifest.entries, &scan, &is_meant);
    if let Some((path, odd)) = drift.iter().find_map(|one| scan.odd.get_key_value(&one.path)) {
        return Err(stop("not_a_unit_file", format!("{path}: {}: move it away first", odd.why)));
    }
    let (wanted, left) = split(drift, manifest, params.added);
    if wanted.is_empty() {
        return Err(stop("not_needed", unchanged(&snapshot, &left)));
    }
    if let Some(denied) = wanted.iter().find(|one| deny.denies(&one.unit)) {
        let detail = format!("it would change {}, of a unit that evenkeel never touches", denied.path);
        return Err(stop("target_denied", detail));
    }
    for one in &wanted {
        golden.folder_is_root_s_own(&one.path).map_err(|wrong| stop("not_root_s_own", wrong))?;
    }
    Ok(Aim { snapshot, scan, wanted, left })
}

fn chosen(params: &UnitRestore, golden: &Golden) -> Result<Snapshot, Stop> {
    let shelf = golden.shelf();
    let chosen = match &params.snapshot {
        Some(name) => shelf.open(name).map(Some),
        None => shelf.newest(),
    };
    let none = || {
        let cure = "trigger a rule with the step unit_snapshot while all is well";
        stop("no_snapshot", format!("there is no snapshot in {}: {cure}", shelf.dir().display()))
    };
    chosen.map_err(|damaged| stop("snapshot_damaged", damaged))?.ok_or_else(none)
}

fn unchanged(snapshot: &Snapshot, left: &[Drift]) -> String {
    let mut text = format!("every file is as in snapshot {}", snapshot.name);
    if !left.is_empty() {
        let added = golden::describe(left.iter().map(|one| (one.path.as_str(), one.change)));
        text += &format!(", beside what it does not have: {added}");
    }
    text
}

/// What is to change, and what stays although it is not in the snapshot.
fn split(drift: Vec<Drift>, manifest: &Manifest, added: Added) -> (Vec<Wanted>, Vec<Drift>) {
    let stays = |one: &Drift| one.change == Change::Added && added == Added::Leave;
    let (left, changed): (Vec<Drift>, Vec<Drift>) = drift.into_iter().partition(stays);
    let wanted = changed.into_iter().map(|Drift { path, unit, change }| {
        let entry = manifest.entries.get(&path).cloned();
        Wanted { path, unit, change, entry }
    });
    (wanted.collect(), left)
}

impl Aim {
    /// Tells it from every other, also where the difference is too long or too secret to be shown: an approval is for this.
    pub(super) fn identity(&self) -> String {
        let sides: Vec<_> = self
            .wanted
            .iter()
            .map(|one| format!("{:?}", (&one.path, self.scan.entries.get(&one.path), &one.entry)))
            .collect();
        format!("(all of it: {})", snapshot::sha256(sides.join("\n").as_bytes()))
    }

    /// What it comes to, in one line.
    pub(super) fn summary(&self) -> String {
        let wanted = self.wanted.iter().map(|one| (one.path.as_str(), one.change));
        let mut text = format!("brings back from {} {}", self.snapshot.name, golden::describe(wanted));
        if !self.left.is_empty() {
            let left = golden::describe(self.left.iter().map(|one| (one.path.as_str(), one.change)));
            text += &format!("; not in it, and left as they are: {left}");
        }
        text
    }
}

/// Changes the files.
///
/// # Errors
/// At the first that cannot be changed; those before it are.
pub(super) fn apply(golden: &Golden, aim: &Aim) -> Result<(), String> {
    for one in &aim.wanted {
        let said = |error: &dyn std::fmt::Display| format!("{}: {error}", one.path);
        // Somebody may have been at it since it was looked at.
        let now = snapshot::look(&golden.at(&one.path)).map_err(|error| said(&error))?;
        if now.map(|now| now.entry).as_ref() != aim.scan.entries.get(&one.path) {
            return Err(said(&"somebody else has changed it meanwhile"));
        }
        become_like(golden, &aim.snapshot, &one.path, one.entry.as_ref()).map_err(|error| said(&error))?;
    }
    Ok(())
}

/// Makes one path as it is in a snapshot; gone, where the snapshot does not have it.
pub(super) fn become_like(
    golden: &Golden,
    snapshot: &Snapshot,
    path: &str,
    entry: Option<&Entry>,
) -> io::Result<()> {
    let place = golden.at(path);
    let Some(entry) = entry else { return golden::remove(&place) };
    let content = match entry {
        Entry::File { .. } => snapshot.content(path).map_err(io::Error::other)?,
        Entry::Link { .. } => Vec::new(),
    };
    golden::put(&place, entry, &content)?;
    let now = snapshot::look(&place)?;
    if now.is_some_and(|now| now.entry == *entry) {
        Ok(())
    } else {
        Err(io::Error::other("it did not become what it was to be"))
    }
}
