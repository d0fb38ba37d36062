//! Watched units that systemd does not have in memory, because nothing needs them: stopped ones, and such that do not
//! exist. They are in no list, and a stopped unit is no less watched for that.
//!
//! While a unit is in no list it rests, so what was said of it holds until systemd reads all files again. It is not asked
//! about anew: for each question systemd reads the unit's file, and writes everything that is wrong with it into the
//! journal. Nothing here asks.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::PathBuf,
    sync::Arc,
};

use evenkeel_host::systemd::Unit;

use super::{
    picture::Picture,
    selection::{Role, Selection},
};

/// What is known of resting units.
#[derive(Debug, Default)]
pub(super) struct Resting {
    /// The units to ask for when the list lacks them, and their files; `None` for not yet put together.
    candidates: Option<BTreeMap<String, Option<String>>>,
    /// What systemd said of them; `None` for a name that is no unit's own.
    units: BTreeMap<String, Option<Arc<Unit>>>,
    /// Those that are published.
    shown: Vec<(Arc<Unit>, Role)>,
    /// `shown` is made of the candidates that there are.
    is_complete: bool,
}

impl Resting {
    /// Takes the units that there are now. What is known of those that were there before stays, but for what was missing:
    /// it may have appeared, and asking for what does not exist leaves no trace.
    pub(super) fn refresh(&mut self, names: BTreeSet<String>, files: &BTreeMap<String, PathBuf>) {
        let file = |name: &String| files.get(name).and_then(|path| path.to_str()).map(str::to_owned);
        let candidates: BTreeMap<_, _> = names
            .into_iter()
            .map(|name| {
                let file = file(&name);
                (name, file)
            })
            .collect();
        let before = self.candidates.replace(candidates).unwrap_or_default();
        let candidates = self.candidates.as_ref().unwrap_or(&before);
        self.units.retain(|name, unit| {
            let is_gone = before.contains_key(name) && !candidates.contains_key(name);
            let was_missing = unit.as_ref().is_some_and(|unit| unit.load_state == "not-found");
            !is_gone && !was_missing
        });
        self.is_complete = false;
    }

    /// Whether the candidates have been put together.
    pub(super) fn is_begun(&self) -> bool {
        self.candidates.is_some()
    }

    /// Whether what is shown is all that there is to show.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// The units to ask for: those that systemd does not have in memory.
    pub(super) fn unknown(&self, picture: &Picture) -> Vec<String> {
        let listed = names(picture);
        let unlisted = self.candidates.iter().flatten().filter(|(name, _)| !listed.contains(name.as_str()));
        unlisted.filter(|(name, _)| !self.units.contains_key(*name)).map(|(name, _)| name.clone()).collect()
    }

    /// Takes in what systemd said of the units asked for. Those that woke up meanwhile are announced.
    pub(super) fn learn(&mut self, asked: Vec<String>, answer: Vec<Unit>) {
        // A name that does not come back is an alias, whose unit comes back under its own name, or invalid.
        self.units.extend(asked.into_iter().map(|name| (name, None)));
        for unit in answer {
            if unit.active_state == "inactive" && unit.job_id == 0 {
                self.units.insert(unit.name.clone(), Some(Arc::new(unit)));
            } else {
                self.units.remove(&unit.name);
            }
        }
    }

    /// Chooses what is published: what is watched and not in memory. Says whether that is anything new.
    pub(super) fn show(&mut self, picture: &Picture, selection: &Selection) -> bool {
        let listed = names(picture);
        let candidates = self.candidates.as_ref();
        let file = |unit: &Unit| candidates?.get(&unit.name)?.as_deref();
        let resting = self.units.values().flatten().filter(|unit| !listed.contains(unit.name.as_str()));
        let shown = resting
            .filter_map(|unit| Some((Arc::clone(unit), selection.resting_role(unit, file(unit))?)))
            .collect();
        let before = std::mem::replace(&mut self.shown, shown);
        self.is_complete = true;
        before != self.shown
    }

    /// What is published.
    pub(super) fn shown(&self) -> &[(Arc<Unit>, Role)] {
        &self.shown
    }
}

fn names(picture: &Picture) -> HashSet<&str> {
    picture.units().map(|known| known.unit.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::collectors::systemd::{Config, UnitFilter};

    fn unit(name: &str, load: &str, active: &str) -> Unit {
        Unit {
            name: name.into(),
            load_state: load.into(),
            active_state: active.into(),
            sub_state: "dead".into(),
            job_id: 0,
            path: format!("/{}", name.replace('.', "_")).try_into().unwrap(),
        }
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn listed(names: &[&str]) -> Picture {
        let mut picture = Picture::default();
        let list = names.iter().map(|name| unit(name, "loaded", "active")).collect();
        let since = picture.begin_list();
        picture.take_list(list, since, Instant::now());
        picture
    }

    fn shown(resting: &mut Resting, picture: &Picture) -> Vec<String> {
        let config = Config { watch: vec!["*.service".parse().unwrap()], ..Config::default() };
        resting.show(picture, &Selection::new(config, UnitFilter::default()));
        resting.shown().iter().map(|(unit, _)| unit.name.clone()).collect()
    }

    #[test]
    fn each_unit_is_asked_for_once() {
        let mut resting = Resting::default();
        assert!(!resting.is_begun());
        resting.refresh(names(&["a.service", "b.service", "running.service"]), &BTreeMap::new());
        assert!(resting.is_begun() && !resting.is_complete());
        let running = listed(&["running.service"]);
        let asked = resting.unknown(&running);
        assert_eq!(asked, ["a.service", "b.service"]);
        resting.learn(
            asked,
            vec![unit("a.service", "loaded", "inactive"), unit("b.service", "bad-setting", "inactive")],
        );
        resting.refresh(names(&["a.service", "b.service", "c.service"]), &BTreeMap::new());
        assert_eq!(resting.unknown(&running), ["c.service"]);
        assert_eq!(shown(&mut resting, &running), ["a.service", "b.service"]);
        assert!(resting.is_complete());
        assert!(
            shown(&mut resting, &listed(&["a.service", "b.service"])).is_empty(),
            "the list knows better"
        );
    }

    #[test]
    fn what_was_missing_is_asked_for_again_and_what_went_is_forgotten() {
        let (mut resting, nothing) = (Resting::default(), Picture::default());
        resting.refresh(names(&["gone.service", "old.service"]), &BTreeMap::new());
        let answer =
            vec![unit("gone.service", "not-found", "inactive"), unit("old.service", "loaded", "inactive")];
        resting.learn(resting.unknown(&nothing), answer);
        resting.refresh(names(&["gone.service"]), &BTreeMap::new());
        assert_eq!(resting.unknown(&nothing), ["gone.service"]);
        assert!(shown(&mut resting, &nothing).is_empty());
    }

    #[test]
    fn aliases_are_asked_for_once_too() {
        let (mut resting, nothing) = (Resting::default(), Picture::default());
        for _ in 0..2 {
            resting.refresh(names(&["sshd.service"]), &BTreeMap::new());
            let asked = resting.unknown(&nothing);
            let answer =
                if asked.is_empty() { vec![] } else { vec![unit("ssh.service", "loaded", "inactive")] };
            resting.learn(asked, answer);
            assert_eq!(shown(&mut resting, &nothing), ["ssh.service"]);
            assert!(resting.unknown(&nothing).is_empty());
        }
    }

    #[test]
    fn what_woke_up_is_not_remembered() {
        let (mut resting, nothing) = (Resting::default(), Picture::default());
        resting.refresh(names(&["a.service"]), &BTreeMap::new());
        resting.learn(vec!["a.service".into()], vec![unit("a.service", "loaded", "active")]);
        assert!(shown(&mut resting, &nothing).is_empty());
        assert_eq!(resting.unknown(&nothing), ["a.service"]);
    }
}
