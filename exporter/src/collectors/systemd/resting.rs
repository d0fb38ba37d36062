//! Watched units that systemd does not have in memory, because nothing needs them: stopped ones, and such that do not
//! exist. They are in no list, and a stopped unit is no less watched for that.
//!
//! While a unit is in no list it rests, so what was said of it holds until systemd reads all files again. It is not asked
//! about anew: for each question systemd reads the unit's file, and writes everything that is wrong with it into the
//! journal. Nothing here asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use evenkeel_host::systemd::Unit;
use tokio::time::Instant;

/// How often the candidates are put together again: a file may have appeared.
const FRESH: Duration = Duration::from_secs(60);

/// What is known of resting units.
#[derive(Debug, Default)]
pub(super) struct Resting {
    /// When the candidates were put together; `None` for not yet.
    since: Option<Instant>,
    /// The units to ask for when the list lacks them.
    candidates: BTreeSet<String>,
    /// What systemd said of them; `None` for a name that is no unit's own.
    units: BTreeMap<String, Option<Unit>>,
}

impl Resting {
    /// Takes the units that there are now. What is known of those that were there before stays, but for what was missing:
    /// it may have appeared, and asking for what does not exist leaves no trace.
    pub(super) fn refresh(&mut self, candidates: BTreeSet<String>) {
        self.since = Some(Instant::now());
        let before = std::mem::replace(&mut self.candidates, candidates);
        self.units.retain(|name, unit| {
            let is_gone = before.contains(name) && !self.candidates.contains(name);
            let was_missing = unit.as_ref().is_some_and(|unit| unit.load_state == "not-found");
            !is_gone && !was_missing
        });
    }

    /// Whether it is too early to put the candidates together again.
    pub(super) fn is_fresh(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() < FRESH)
    }

    /// The units to ask for.
    pub(super) fn unknown(&self, listed: &BTreeSet<&str>) -> Vec<String> {
        let unlisted = self.candidates.iter().filter(|name| !listed.contains(name.as_str()));
        unlisted.filter(|name| !self.units.contains_key(*name)).cloned().collect()
    }

    /// Takes in what systemd said of the units asked for. Those that woke up meanwhile come back: the next list has them.
    pub(super) fn learn(&mut self, asked: Vec<String>, answer: Vec<Unit>) -> Vec<Unit> {
        // A name that does not come back is an alias, whose unit comes back under its own name, or invalid.
        self.units.extend(asked.into_iter().map(|name| (name, None)));
        let (resting, awake): (Vec<Unit>, Vec<Unit>) =
            answer.into_iter().partition(|unit| unit.active_state == "inactive" && unit.job_id == 0);
        for unit in &awake {
            self.units.remove(&unit.name);
        }
        self.units.extend(resting.into_iter().map(|unit| (unit.name.clone(), Some(unit))));
        awake
    }

    /// The resting units.
    pub(super) fn units(&self, listed: &BTreeSet<&str>) -> Vec<Unit> {
        self.units.values().flatten().filter(|unit| !listed.contains(unit.name.as_str())).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
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

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn resting(resting: &Resting) -> Vec<String> {
        resting.units(&BTreeSet::new()).into_iter().map(|unit| unit.name).collect()
    }

    #[test]
    fn each_unit_is_asked_for_once() {
        let mut units = Resting::default();
        assert!(!units.is_fresh());
        units.refresh(names(&["a.service", "b.service", "running.service"]));
        assert!(units.is_fresh());
        let listed = BTreeSet::from(["running.service"]);
        let asked = units.unknown(&listed);
        assert_eq!(asked, ["a.service", "b.service"]);
        let answer =
            vec![unit("a.service", "loaded", "inactive"), unit("b.service", "bad-setting", "inactive")];
        assert!(units.learn(asked, answer).is_empty());
        units.refresh(names(&["a.service", "b.service", "c.service"]));
        assert_eq!(units.unknown(&listed), ["c.service"]);
        assert_eq!(resting(&units), ["a.service", "b.service"]);
        assert!(units.units(&BTreeSet::from(["a.service", "b.service"])).is_empty(), "the list knows better");
    }

    #[test]
    fn what_was_missing_is_asked_for_again_and_what_went_is_forgotten() {
        let mut units = Resting::default();
        units.refresh(names(&["gone.service", "old.service"]));
        let answer =
            vec![unit("gone.service", "not-found", "inactive"), unit("old.service", "loaded", "inactive")];
        units.learn(units.unknown(&BTreeSet::new()), answer);
        units.refresh(names(&["gone.service"]));
        assert_eq!(units.unknown(&BTreeSet::new()), ["gone.service"]);
        assert!(resting(&units).is_empty());
    }

    #[test]
    fn aliases_are_asked_for_once_too() {
        let mut units = Resting::default();
        for _ in 0..2 {
            units.refresh(names(&["sshd.service"]));
            let asked = units.unknown(&BTreeSet::new());
            let answer =
                if asked.is_empty() { vec![] } else { vec![unit("ssh.service", "loaded", "inactive")] };
            units.learn(asked, answer);
            assert_eq!(resting(&units), ["ssh.service"]);
            assert!(units.unknown(&BTreeSet::new()).is_empty());
        }
    }

    #[test]
    fn what_woke_up_is_not_remembered() {
        let mut units = Resting::default();
        units.refresh(names(&["a.service"]));
        let awake = units.learn(vec!["a.service".into()], vec![unit("a.service", "loaded", "active")]);
        assert_eq!(awake.len(), 1);
        assert!(resting(&units).is_empty());
        assert_eq!(units.unknown(&BTreeSet::new()), ["a.service"]);
    }
}
