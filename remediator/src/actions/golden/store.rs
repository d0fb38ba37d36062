//! Writes a snapshot, whole or not at all, and forgets the oldest.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use evenkeel_host::systemd::snapshot::{self, Entry, FILES, FORMAT, MANIFEST, Manifest, Scan, Shelf};

use super::{Golden, make_folder, place::flush};
use crate::actions::Failure;

/// The snapshot that is being written.
const UNFINISHED: &str = ".new";

/// What a snapshot is for, which says how much of it must be as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Purpose {
    /// To be brought back one day: everything in it must be root's own, and stay in systemd's folders. Everybody may read
    /// the names and what everybody may read of the files, so that the exporter sees what has changed.
    Golden,
    /// To take back what is about to be done: whatever was there. For root alone.
    Backup,
}

/// Writes what was scanned and answers the name of the snapshot.
///
/// # Errors
/// When it must not be kept, changed while it was read, or cannot be written for good; then nothing is there.
pub(in super::super) fn keep(
    golden: &Golden,
    shelf: &Shelf,
    purpose: Purpose,
    scan: &Scan,
    now_ms: u64,
) -> Result<String, Failure> {
    let refused = |error: &dyn std::fmt::Display| Failure::Refused(error.to_string());
    if let Some((path, odd)) = scan.odd.first_key_value() {
        return Err(refused(&format_args!("{path}: {}", odd.why)));
    }
    // The newest is known by its name, also when the clock was set back.
    let last_ms = shelf.newest().ok().flatten().map_or(0, |newest| newest.manifest.made_ms);
    let manifest = Manifest {
        format: FORMAT,
        made_ms: now_ms.max(last_ms.saturating_add(1)),
        folders: golden.folders.clone(),
        entries: scan.entries.clone(),
    };
    if purpose == Purpose::Golden {
        manifest.is_trustworthy(golden.owner).map_err(|wrong| refused(&wrong))?;
    }
    // That a backup is in use is to be seen by all, what is in it by nobody.
    let (shelf_mode, folder_mode) = if purpose == Purpose::Golden { (0o755, 0o755) } else { (0o711, 0o700) };
    let text = manifest.text().map_err(|error| refused(&error))?;
    let name = snapshot::name(manifest.made_ms, &text);
    let unfinished = shelf.dir().join(UNFINISHED);
    let written = make_folder(shelf.dir(), shelf_mode)
        .and_then(|()| write(golden, &unfinished, &manifest, &text, folder_mode))
        .and_then(|()| fs::rename(&unfinished, shelf.dir().join(&name)))
        .and_then(|()| flush(shelf.dir()));
    if let Err(error) = written {
        // What is left is nothing to anybody, and goes with the next one.
        let _ = fs::remove_dir_all(&unfinished);
        return Err(refused(&format_args!("cannot write the snapshot: {error}")));
    }
    shelf.open(&name).and_then(|kept| kept.is_whole()).map_err(|error| refused(&error))?;
    Ok(name)
}

fn write(golden: &Golden, dir: &Path, manifest: &Manifest, text: &[u8], mode: u32) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    make_folder(dir, mode)?;
    let mut folders = std::collections::BTreeSet::new();
    for (path, entry) in &manifest.entries {
        let Entry::File { sha256: Some(_), .. } = entry else {
            if let Entry::File { .. } = entry {
                return Err(io::Error::other(format!("{path}: it may not be read")));
            }
            continue;
        };
        let now = snapshot::look(&golden.at(path))?;
        let content = now.filter(|now| now.entry == *entry).and_then(|now| now.content);
        let content =
            content.ok_or_else(|| io::Error::other(format!("{path}: it changed while it was read")))?;
        let copy = dir.join(FILES).join(path.trim_start_matches('/'));
        for folder in copy.ancestors().skip(1).take_while(|folder| *folder != dir) {
            if !folders.insert(folder.to_owned()) {
                break;
            }
        }
        if let Some(folder) = copy.parent() {
            make_folders(dir, folder, mode)?;
        }
        // Nothing here is ever run, and only root changes it.
        create(&copy, &content, entry.mode().unwrap_or(0o600) & mode & 0o644)?;
    }
    create(&dir.join(MANIFEST), text, mode & 0o644)?;
    folders.iter().rev().try_for_each(|folder| flush(folder))?;
    flush(dir)
}

/// Makes every folder from `dir` down to `folder`, each with this mode.
fn make_folders(dir: &Path, folder: &Path, mode: u32) -> io::Result<()> {
    let below = folder.strip_prefix(dir).map_err(io::Error::other)?;
    let mut at = dir.to_owned();
    for part in below {
        at.push(part);
        make_folder(&at, mode)?;
    }
    Ok(())
}

fn create(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

/// Forgets the oldest snapshots beyond the newest `keep`, but for those that are spared.
///
/// # Errors
/// When one cannot be removed.
pub(in super::super) fn forget_old(shelf: &Shelf, keep: usize, spared: &[&str]) -> io::Result<()> {
    let names = shelf.names().map_err(io::Error::other)?;
    let old = names.len().saturating_sub(keep);
    for name in names.iter().take(old).filter(|name| !spared.contains(&name.as_str())) {
        fs::remove_dir_all(shelf.dir().join(name))?;
    }
    Ok(())
}
