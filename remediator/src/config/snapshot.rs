//! Which units have golden snapshots, checked.

use std::path::PathBuf;

use evenkeel_host::{
    config::{ConfigError, Located},
    systemd::snapshot::OWN_FOLDERS,
};

use super::{Checker, file::SnapshotFile};
use crate::{actions::Golden, policy::DenyList};

impl Checker {
    pub(super) fn golden(
        &self,
        file: Option<Located<SnapshotFile>>,
        deny: &DenyList,
    ) -> Result<Option<Golden>, ConfigError> {
        let Some(Located { value: file, .. }) = file else { return Ok(None) };
        let SnapshotFile { dir, folders, units, keep } = file;
        if let Some(dir) = dir.as_ref().filter(|dir| !dir.value.is_absolute()) {
            let message =
                format!("`snapshot.dir` begins with /, as {}: a helper of root's writes there", Golden::DIR);
            return Err(self.at(dir, message));
        }
        if let Some(keep) = keep.as_ref().filter(|keep| keep.value == 0) {
            return Err(self.at(keep, "`snapshot.keep: 0` would keep none: write 1 or more"));
        }
        let folders = match folders {
            None => Golden::FOLDERS.map(str::to_owned).to_vec(),
            Some(folders) => {
                let is_other = |folder: &String| !OWN_FOLDERS.contains(&folder.as_str());
                if folders.value.is_empty() || folders.value.iter().any(is_other) {
                    let message = format!(
                        "`snapshot.folders` may have {}: the host's own unit files",
                        OWN_FOLDERS.join(" and ")
                    );
                    return Err(self.at(&folders, message));
                }
                folders.value
            }
        };
        if units.value.is_empty() {
            return Err(self.at(&units, "`snapshot.units` is empty: name the units that belong together, as in [\"shop-*.service\", shop.target]"));
        }
        for unit in &units.value {
            let text = unit.value.to_string();
            if unit.value.matches_all() {
                return Err(self.at(
                    unit,
                    "`snapshot.units: [*]` is every unit of the host: name those that belong together",
                ));
            }
            if unit.value.is_literal() && deny.denies(&text) {
                return Err(self.at(
                    unit,
                    format!("`snapshot.units` names {text}, which evenkeel never acts on: remove it"),
                ));
            }
        }
        let units = units.value.into_iter().map(|unit| unit.value).collect();
        let dir = dir.map_or_else(|| PathBuf::from(Golden::DIR), |dir| dir.value);
        Ok(Some(Golden::new(dir, folders, units, keep.map_or(Golden::KEEP, |keep| keep.value))))
    }
}
