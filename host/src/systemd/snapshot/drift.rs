//! How the host differs from a snapshot. Pure.

use std::collections::BTreeMap;

use super::{Entry, Scan, unit_at};

/// How one file or link differs. The words are metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It is not in the snapshot.
    Added,
    /// It is only in the snapshot.
    Missing,
    /// It holds something else, leads elsewhere, or has another mode or owner.
    Modified,
}

impl Change {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Added, Self::Missing, Self::Modified];

    /// As in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Missing => "missing",
            Self::Modified => "modified",
        }
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// The file or link.
    pub path: String,
    /// The unit that it belongs to.
    pub unit: String,
    /// How it differs.
    pub change: Change,
}

/// All differences, by path, as far as they are about units that are meant.
pub fn drift(
    folders: &[String],
    golden: &BTreeMap<String, Entry>,
    host: &Scan,
    is_meant: &dyn Fn(&str) -> bool,
) -> Vec<Drift> {
    let missing_or_modified = golden.iter().filter_map(|(path, entry)| {
        let change = match host.entries.get(path) {
            _ if host.odd.contains_key(path) => Change::Modified,
            None => Change::Missing,
            Some(found) if entry.is_same(found) => return None,
            Some(_) => Change::Modified,
        };
        Some((path, change))
    });
    let found = host.entries.keys().chain(host.odd.keys());
    let added = found.filter(|path| !golden.contains_key(*path)).map(|path| (path, Change::Added));
    let mut drift: Vec<Drift> = missing_or_modified
        .chain(added)
        .filter_map(|(path, change)| {
            // A folder that is none is odd as well, and no path of a unit.
            let odd = host.odd.get(path).map(|odd| odd.unit.as_str()).filter(|unit| is_meant(unit));
            let unit = unit_at(folders, path, is_meant).or(odd)?.to_owned();
            Some(Drift { path: path.clone(), unit, change })
        })
        .collect();
    drift.sort_by(|one, other| one.path.cmp(&other.path));
    drift
}
