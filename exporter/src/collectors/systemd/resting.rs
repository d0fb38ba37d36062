//! Watched units that systemd does not have in memory, because nothing needs them: stopped ones, and such that do not
//! exist. They are in no list, and a stopped unit is no less watched for that.
//!
//! While a unit is in no list it rests, so what was said of it holds; asking anew has systemd read its file each time.
//! Nothing here asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use evenkeel_host::systemd::Unit;
use tokio::time::Instant;

/// How long what was said of a resting unit holds, and which units there are to ask for: a file may have appeared.
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
    /// Nothing is known yet of these units.
    pub(super) fn new(candidates: BTreeSet<String>) -> Self {
        Self { since: Some(Instant::now()), candidates, units: BTreeMap::new() }
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
