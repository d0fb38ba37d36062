//! What one look saw, and which units deserve to be seen. Nothing here asks systemd.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use evenkeel_host::systemd::{Details, Manager, Unit};

use super::{Config, UnitFilter};

/// Where the host's own unit files lie.
const LOCAL_UNITS: &str = "/etc/systemd/system/";

/// Everything that the metrics are made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// The manager itself.
    pub manager: Manager,
    /// How many units are in each active state, published or not.
    pub counts: BTreeMap<String, usize>,
    /// The units that are published.
    pub units: Vec<Seen>,
}

/// A unit that is published.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Its line in the list.
    pub unit: Unit,
    /// The host's owner cares for it in particular.
    pub is_watched: bool,
    /// It may be missing.
    pub may_be_missing: bool,
    /// systemd has it in memory. What nothing needs it forgets, its times and counters with it.
    pub is_in_memory: bool,
    /// What the list does not tell; `None` where nobody asked, or the unit was gone when asked.
    pub details: Option<Details>,
}

/// What is known of the units' files, where the default watch list needs it.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Unit file by unit.
    pub(super) paths: BTreeMap<String, String>,
    /// What each local target pulls in.
    pub(super) pulled_in: BTreeMap<String, Vec<String>>,
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

    /// The units worth publishing, without details: of those in the list, and of those that were asked for by name.
    pub(super) fn choose(&self, listed: Vec<Unit>, asked_for: Vec<Unit>, files: &Files) -> Vec<Seen> {
        let wanted = wanted(files);
        let listed = listed.into_iter().map(|unit| (unit, true));
        let asked_for = asked_for.into_iter().map(|unit| (unit, false));
        let mut seen = Vec::new();
        for (unit, is_in_memory) in listed.chain(asked_for) {
            let is_watched = self.is_watched(&unit.name, files, &wanted);
            if (is_watched || is_in_memory) && self.is_published(&unit, is_watched) {
                let may_be_missing =
                    self.config.not_found_ok.iter().any(|pattern| pattern.matches(&unit.name));
                seen.push(Seen { unit, is_watched, may_be_missing, is_in_memory, details: None });
            }
        }
        seen
    }

    fn is_watched(&self, name: &str, files: &Files, wanted: &BTreeSet<&str>) -> bool {
        if self.is_by_file() {
            files.paths.get(name).is_some_and(|path| is_local(path)) || wanted.contains(name)
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

/// What the local targets pull in.
fn wanted(files: &Files) -> BTreeSet<&str> {
    files.pulled_in.values().flatten().map(String::as_str).collect()
}

/// Whether a unit file is the host's own, not a package's or a generator's.
pub(super) fn is_local(path: &str) -> bool {
    path.starts_with(LOCAL_UNITS)
}

/// Load states that say that a file is there and does not work, or is switched off.
pub(super) fn has_load_problem(load_state: &str) -> bool {
    matches!(load_state, "bad-setting" | "error" | "masked")
}

impl Seen {
    /// Whether the unit has a state to speak of. One that does not exist and never ran has none, unless it is watched:
    /// the lists of names that other units mention are long, and mean nothing.
    pub(super) fn has_state(&self) -> bool {
        let exists = self.unit.load_state != "not-found";
        exists || self.unit.active_state != "inactive" || (self.is_watched && !self.may_be_missing)
    }

    /// Whether `systemd_unit_load_state` is told.
    pub(super) fn has_load_state(&self) -> bool {
        if self.unit.load_state == "not-found" && self.may_be_missing {
            return false;
        }
        self.is_watched || has_load_problem(&self.unit.load_state)
    }

    /// Whether there is more to know than the list tells.
    pub(super) fn has_details(&self) -> bool {
        self.is_in_memory && (self.unit.load_state == "loaded" || self.unit.active_state != "inactive")
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
            sub_state: "dead".into(),
            job_id: 0,
            path: Default::default(),
        }
    }

    fn selection(watch: &[&str], not_found_ok: &[&str], filter: UnitFilter) -> Selection {
        let patterns = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Selection::new(Config { watch: patterns(watch), not_found_ok: patterns(not_found_ok) }, filter)
    }

    fn names(seen: &[Seen], which: impl Fn(&Seen) -> bool) -> Vec<&str> {
        seen.iter().filter(|seen| which(seen)).map(|seen| seen.unit.name.as_str()).collect()
    }

    fn host() -> Vec<Unit> {
        vec![
            unit("ssh.service", "loaded", "active"),
            unit("backup.timer", "loaded", "active"),
            unit("docker.socket", "loaded", "active"),
            unit("basic.target", "loaded", "active"),
            unit("app.target", "loaded", "active"),
            unit("app-a.service", "loaded", "failed"),
            unit("app-gone.service", "not-found", "inactive"),
            unit("elsewhere.service", "not-found", "inactive"),
            unit("ghost.service", "not-found", "failed"),
            unit("srv.mount", "bad-setting", "inactive"),
            unit("dev-vda.device", "loaded", "active"),
            unit("off.service", "masked", "inactive"),
        ]
    }

    #[test]
    fn without_a_word_the_unit_files_say_what_is_watched() {
        let mut files = Files::default();
        for (name, path) in [
            ("ssh.service", "/usr/lib/systemd/system/ssh.service"),
            ("app.target", "/etc/systemd/system/app.target"),
            ("srv.mount", "/run/systemd/generator/srv.mount"),
            ("basic.target", "/etc/systemd/system.control/basic.target"),
        ] {
            files.paths.insert(name.into(), path.into());
        }
        files.pulled_in.insert("app.target".into(), vec!["app-a.service".into(), "app-gone.service".into()]);
        let seen = selection(&[], &[], UnitFilter::default()).choose(host(), vec![], &files);
        assert_eq!(names(&seen, |seen| seen.is_watched), ["app.target", "app-a.service", "app-gone.service"]);
        assert_eq!(
            names(&seen, |_| true),
            [
                "ssh.service",
                "backup.timer",
                "docker.socket",
                "app.target",
                "app-a.service",
                "app-gone.service",
                "elsewhere.service",
                "ghost.service",
                "srv.mount",
                "off.service",
            ]
        );
        assert_eq!(
            names(&seen, Seen::has_load_state),
            ["app.target", "app-a.service", "app-gone.service", "srv.mount", "off.service"]
        );
        // A name that is only mentioned has no state; a failed ghost has one, and so has a watched unit.
        assert_eq!(names(&seen, |seen| !seen.has_state()), ["elsewhere.service"]);
        assert_eq!(
            names(&seen, |seen| !seen.has_details()),
            ["app-gone.service", "elsewhere.service", "srv.mount", "off.service"]
        );
    }

    #[test]
    fn a_watch_list_is_the_whole_truth() {
        let mut files = Files::default();
        files.paths.insert("ssh.service".into(), "/etc/systemd/system/ssh.service".into());
        let seen =
            selection(&["app-*", "app.target"], &[], UnitFilter::default()).choose(host(), vec![], &files);
        assert_eq!(names(&seen, |seen| seen.is_watched), ["app.target", "app-a.service", "app-gone.service"]);
    }

    #[test]
    fn what_may_be_missing_is_not_told_while_it_is() {
        let selection = selection(&["app-*"], &["app-*.service"], UnitFilter::default());
        let seen = selection.choose(host(), vec![], &Files::default());
        assert_eq!(names(&seen, |seen| seen.has_load_state() && seen.is_watched), ["app-a.service"]);
        let gone = seen.iter().find(|seen| seen.unit.name == "app-gone.service").unwrap();
        assert!(!gone.has_state());
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
        let asked_for =
            vec![unit("app-z.service", "loaded", "inactive"), unit("alias.service", "loaded", "inactive")];
        let seen = selection.choose(vec![], asked_for, &Files::default());
        assert_eq!(names(&seen, |_| true), ["app-z.service"]);
        assert!(seen[0].has_state() && seen[0].has_load_state() && !seen[0].has_details());
    }

    #[test]
    fn flags_have_the_last_word() {
        let regex = |text: &str| Some(Regex::new(text).unwrap());
        let filter = UnitFilter { include: regex("^(?:(app|dev).*)$"), exclude: regex("^(?:.*\\.target)$") };
        let seen = selection(&["app-a.service", "app.target", "ssh.service"], &[], filter).choose(
            host(),
            vec![],
            &Files::default(),
        );
        assert_eq!(names(&seen, |_| true), ["app-a.service", "app-gone.service", "dev-vda.device"]);
    }
}
