//! Which units are watched and which are published, by the configuration and the units' files. Nothing here asks systemd.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use evenkeel_host::systemd::Unit;

use super::{Config, UnitFilter};

/// Where the host's own unit files lie.
const LOCAL_UNITS: &str = "/etc/systemd/system/";

/// How a published unit is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Role {
    /// The host's owner cares for it in particular.
    pub(super) is_watched: bool,
    /// It may be missing.
    pub(super) may_be_missing: bool,
}

/// Which units are watched and published.
#[derive(Debug)]
pub(super) struct Selection {
    config: Config,
    filter: UnitFilter,
}

impl Selection {
    pub(super) fn new(config: Config, filter: UnitFilter) -> Self {
        Self { config, filter }
    }

    /// Whether nothing is configured, so that the unit files say what is watched.
    pub(super) fn is_by_file(&self) -> bool {
        self.config.watch.is_empty()
    }

    /// Whether it takes the unit files to say which units are watched.
    pub(super) fn needs_files(&self) -> bool {
        self.is_by_file() || self.config.watch.iter().any(|pattern| pattern.literal().is_none())
    }

    /// Units to ask for by name where the list lacks them: systemd has only those in memory that something needs, and a
    /// stopped unit is no less watched for that. `files` are the unit files of the host, by name.
    pub(super) fn candidates(&self, files: &BTreeMap<String, PathBuf>) -> BTreeSet<String> {
        if self.is_by_file() {
            let local = files.iter().filter(|(_, path)| path.starts_with(LOCAL_UNITS));
            return local.map(|(name, _)| name.clone()).collect();
        }
        let meant = |name: &&String| self.config.watch.iter().any(|pattern| pattern.matches(name));
        let literals = self.config.watch.iter().filter_map(|pattern| pattern.literal());
        // A template is no unit: asking for one fails.
        let literals = literals.filter(|name| !name.contains("@.")).map(str::to_owned);
        literals.chain(files.keys().filter(meant).cloned()).collect()
    }

    /// The role of a unit in memory; `None` for one that is not published. `file` is its unit file, `wanted` what the
    /// local targets pull in; both count only when nothing is configured.
    pub(super) fn role(&self, unit: &Unit, file: Option<&str>, wanted: &BTreeSet<String>) -> Option<Role> {
        let is_watched = self.is_watched(&unit.name, file, wanted);
        self.is_published(unit, is_watched).then(|| self.as_role(unit, is_watched))
    }

    /// The role of a unit that rests: none unless it is watched.
    pub(super) fn resting_role(&self, unit: &Unit, file: Option<&str>) -> Option<Role> {
        let is_watched = self.is_watched(&unit.name, file, &BTreeSet::new());
        (is_watched && self.is_published(unit, true)).then(|| self.as_role(unit, true))
    }

    fn as_role(&self, unit: &Unit, is_watched: bool) -> Role {
        Role { is_watched, may_be_missing: self.may_be_missing(&unit.name) }
    }

    /// Whether a unit of this name may be missing.
    pub(super) fn may_be_missing(&self, name: &str) -> bool {
        self.config.not_found_ok.iter().any(|pattern| pattern.matches(name))
    }

    fn is_watched(&self, name: &str, file: Option<&str>, wanted: &BTreeSet<String>) -> bool {
        if self.is_by_file() {
            file.is_some_and(is_local) || wanted.contains(name)
        } else {
            self.config.watch.iter().any(|pattern| pattern.matches(name))
        }
    }

    fn is_published(&self, unit: &Unit, is_watched: bool) -> bool {
        let name = &unit.name;
        if self.filter.exclude.as_ref().is_some_and(|exclude| exclude.is_match(name)) {
            return false;
        }
        match &self.filter.include {
            Some(include) => include.is_match(name),
            None => {
                is_watched
                    || matches!(unit.kind(), "service" | "timer" | "socket")
                    || has_load_problem(&unit.load_state)
            }
        }
    }
}

/// Whether a unit file is the host's own, not a package's or a generator's.
pub(super) fn is_local(path: &str) -> bool {
    path.starts_with(LOCAL_UNITS)
}

/// Load states that say that a file is there and does not work, or is switched off.
fn has_load_problem(load_state: &str) -> bool {
    matches!(load_state, "bad-setting" | "error" | "masked")
}

impl Role {
    /// Whether the unit has a state to speak of. One that does not exist and never ran has none, unless it is watched:
    /// the lists of names that other units mention are long, and mean nothing.
    pub(super) fn has_state(self, unit: &Unit) -> bool {
        let exists = unit.load_state != "not-found";
        exists || unit.active_state != "inactive" || (self.is_watched && !self.may_be_missing)
    }

    /// Whether `systemd_unit_load_state` is told.
    pub(super) fn has_load_state(self, unit: &Unit) -> bool {
        if unit.load_state == "not-found" && self.may_be_missing {
            return false;
        }
        self.is_watched || has_load_problem(&unit.load_state)
    }
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    fn unit(name: &str, load: &str, active: &str) -> Unit {
        Unit {
            name: name.into(),
            load_state: load.into(),
            active_state: active.into(),
            sub_state: "x".into(),
            job_id: 0,
            path: Default::default(),
        }
    }

    fn selection(watch: &[&str], not_found_ok: &[&str], filter: UnitFilter) -> Selection {
        let patterns = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let config =
            Config { watch: patterns(watch), not_found_ok: patterns(not_found_ok), ..Config::default() };
        Selection::new(config, filter)
    }

    fn host() -> Vec<Unit> {
        vec![
            unit("app.target", "loaded", "active"),
            unit("app-a.service", "loaded", "active"),
            unit("app-gone.service", "not-found", "inactive"),
            unit("ssh.service", "loaded", "active"),
            unit("elsewhere.service", "not-found", "inactive"),
            unit("ghost.service", "not-found", "failed"),
            unit("srv.mount", "bad-setting", "inactive"),
            unit("off.service", "masked", "inactive"),
            unit("dev-vda.device", "loaded", "active"),
            unit("user.slice", "loaded", "active"),
        ]
    }

    /// The published units for which `says` is true, none of which has a file that matters.
    fn names(selection: &Selection, says: impl Fn(Role, &Unit) -> bool) -> Vec<String> {
        let told =
            |unit: &Unit| selection.role(unit, None, &BTreeSet::new()).is_some_and(|role| says(role, unit));
        host().into_iter().filter(told).map(|unit| unit.name).collect()
    }

    #[test]
    fn by_default_the_hosts_own_files_and_what_their_targets_want_are_watched() {
        let selection = selection(&[], &[], UnitFilter::default());
        let file = |name: &str| match name {
            "app.target" => Some("/etc/systemd/system/app.target"),
            _ => Some("/usr/lib/systemd/system/x"),
        };
        let wanted = BTreeSet::from(["app-a.service".to_owned(), "app-gone.service".to_owned()]);
        let mut published = Vec::new();
        let (mut watched, mut stateless) = (Vec::new(), Vec::new());
        for unit in host() {
            let Some(role) = selection.role(&unit, file(&unit.name), &wanted) else { continue };
            published.push(unit.name.clone());
            if role.has_load_state(&unit) {
                watched.push(unit.name.clone());
            }
            if !role.has_state(&unit) {
                stateless.push(unit.name.clone());
            }
        }
        assert_eq!(
            published,
            [
                "app.target",
                "app-a.service",
                "app-gone.service",
                "ssh.service",
                "elsewhere.service",
                "ghost.service",
                "srv.mount",
                "off.service",
            ]
        );
        assert_eq!(watched, ["app.target", "app-a.service", "app-gone.service", "srv.mount", "off.service"]);
        // A name that is only mentioned has no state; a failed ghost has one, and so has a watched unit.
        assert_eq!(stateless, ["elsewhere.service"]);
    }

    #[test]
    fn a_watch_list_is_the_whole_truth() {
        let selection = selection(&["app-*", "app.target"], &[], UnitFilter::default());
        let own = unit("ssh.service", "loaded", "active");
        let role = selection.role(&own, Some("/etc/systemd/system/ssh.service"), &BTreeSet::new());
        assert_eq!(role, Some(Role::default()));
        assert_eq!(
            names(&selection, |role, _| role.is_watched),
            ["app.target", "app-a.service", "app-gone.service"]
        );
    }

    #[test]
    fn what_may_be_missing_is_not_told_while_it_is() {
        let selection = selection(&["app-*"], &["app-*.service"], UnitFilter::default());
        let told = names(&selection, |role, unit| role.has_load_state(unit) && role.is_watched);
        assert_eq!(told, ["app-a.service"]);
        assert!(
            !names(&selection, |role, unit| role.has_state(unit)).contains(&"app-gone.service".to_owned())
        );
    }

    #[test]
    fn watched_units_are_asked_for_where_the_list_lacks_them() {
        let files = [
            ("app-a.service", "/etc/systemd/system/app-a.service"),
            ("app-b.service", "/usr/lib/systemd/system/app-b.service"),
            ("own.timer", "/etc/systemd/system/own.timer"),
        ];
        let files = files.map(|(name, path)| (name.to_owned(), PathBuf::from(path))).into();
        let by_file = selection(&[], &[], UnitFilter::default());
        assert_eq!(Vec::from_iter(by_file.candidates(&files)), ["app-a.service", "own.timer"]);
        let by_name =
            selection(&["app-*", "gone.service", "t@.service", "t@1.service"], &[], UnitFilter::default());
        assert_eq!(
            Vec::from_iter(by_name.candidates(&files)),
            ["app-a.service", "app-b.service", "gone.service", "t@1.service"]
        );
    }

    #[test]
    fn what_was_asked_for_counts_only_when_watched() {
        let selection = selection(&["app-*"], &[], UnitFilter::default());
        let role = |name| selection.resting_role(&unit(name, "loaded", "inactive"), None);
        assert_eq!(role("app-z.service"), Some(Role { is_watched: true, may_be_missing: false }));
        assert_eq!(role("alias.service"), None);
    }

    #[test]
    fn flags_have_the_last_word() {
        let regex = |text: &str| Some(Regex::new(text).unwrap());
        let filter = UnitFilter { include: regex("^(?:(app|dev).*)$"), exclude: regex("^(?:.*\\.target)$") };
        let selection = selection(&["app-a.service", "app.target", "ssh.service"], &[], filter);
        assert_eq!(names(&selection, |_, _| true), ["app-a.service", "app-gone.service", "dev-vda.device"]);
    }
}
