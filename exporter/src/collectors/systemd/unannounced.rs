//! What systemd does not announce: counters of sockets, and what the unit files on disk say. Asked about at its own slow
//! pace, one bounded step at a time, and never during a look.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use evenkeel_host::systemd::{Error, Unit, unit_files_stamp};
use futures_util::{StreamExt, join, stream};
use tokio::{task::spawn_blocking, time::Instant};

use super::{
    Pace,
    keeper::{Desk, Keeper, all_but_odd},
    picture::Known,
    stale::Stale,
};

/// Units asked about in one step: for each, systemd looks at files.
const FILES_AT_ONCE: usize = 256;

/// What the files of watched units say.
#[derive(Debug, Default)]
pub(super) struct FileFacts {
    facts: BTreeMap<String, FileFact>,
    /// Changes when the answers may.
    pub(super) edition: u64,
    /// What the files looked like then; `None` where they are not ours to see.
    stamp: Option<u64>,
    pub(super) looked: Option<Instant>,
    /// Which of them name units that do not exist.
    pub(super) stale: Stale,
}

/// What the files of one unit say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileFact {
    /// The files on disk are newer than what systemd works with.
    pub(super) needs_reload: bool,
    /// `enabled`, `static` …; empty where the unit has no file.
    pub(super) state: String,
    edition: u64,
}

#[cfg(test)]
impl FileFact {
    pub(super) fn of(needs_reload: bool, state: &str) -> Self {
        Self { needs_reload, state: state.into(), edition: 0 }
    }
}

impl FileFacts {
    /// What is known of a unit.
    pub(super) fn get(&self, name: &str) -> Option<&FileFact> {
        self.facts.get(name)
    }

    /// All is to be asked again.
    pub(super) fn doubt(&mut self) {
        self.edition += 1;
    }

    /// Those to ask about, the longest unasked first.
    fn due(&self, watched: &[Arc<Unit>]) -> Vec<Arc<Unit>> {
        let edition = |unit: &Unit| self.facts.get(&unit.name).map_or(0, |fact| fact.edition);
        let mut due: Vec<&Arc<Unit>> =
            watched.iter().filter(|unit| edition(unit) < self.edition.max(1)).collect();
        due.sort_by_key(|unit| edition(unit));
        due.into_iter().take(FILES_AT_ONCE).cloned().collect()
    }
}

impl Keeper {
    /// Asks about files of watched units that may say something new.
    pub(super) async fn ask_about_files(&self, pace: &Pace) -> Result<(), Error> {
        let mut desk = self.desk.lock().await;
        let now = Instant::now();
        if desk.files.looked.is_none_or(|looked| now.duration_since(looked) >= pace.slow) {
            let root = self.root.clone();
            let is_here = desk.is_here;
            let stamp =
                spawn_blocking(move || is_here.then(|| unit_files_stamp(&root))).await.unwrap_or_default();
            if stamp.is_none() || stamp != desk.files.stamp {
                desk.files.doubt();
            }
            (desk.files.stamp, desk.files.looked) = (stamp, Some(now));
        }
        let watched = self.watched(&desk);
        let names: BTreeSet<&str> = watched.iter().map(|unit| unit.name.as_str()).collect();
        let before = desk.files.facts.len();
        desk.files.facts.retain(|name, _| names.contains(name.as_str()));
        let mut is_changed = desk.files.facts.len() != before;
        let (due, edition) = (desk.files.due(&watched), desk.files.edition);
        let answers = Mutex::new(Vec::new());
        all_but_odd(stream::iter(due).map(async |unit| {
            let (needs_reload, state) =
                join!(self.systemd.need_daemon_reload(&unit), self.systemd.unit_file_state(&unit));
            let fact = FileFact { needs_reload: needs_reload?, state: state?, edition };
            answers.lock().unwrap_or_else(PoisonError::into_inner).push((unit.name.clone(), fact));
            Ok(())
        }))
        .await?;
        for (name, fact) in answers.into_inner().unwrap_or_default() {
            let before = desk.files.facts.get(&name);
            is_changed |= before.is_none_or(|before| {
                (before.needs_reload, &before.state) != (fact.needs_reload, &fact.state)
            });
            desk.files.facts.insert(name, fact);
        }
        if is_changed {
            self.picture().was_changed();
        }
        Ok(())
    }

    /// The watched units that exist.
    pub(super) fn watched(&self, desk: &Desk) -> Vec<Arc<Unit>> {
        let mut watched: Vec<Arc<Unit>> = {
            let picture = self.picture();
            let watched = picture.units().filter(|known| known.role.is_some_and(|role| role.is_watched));
            watched.map(|known| known.unit.clone()).collect()
        };
        watched.extend(desk.resting.shown().iter().map(|(unit, _)| unit.clone()));
        watched.retain(|unit| unit.load_state != "not-found");
        watched
    }

    /// Reads the counters of sockets: often where they count, seldom where they cannot.
    pub(super) async fn ask_about_sockets(&self, pace: &Pace) -> Result<(), Error> {
        let _desk = self.desk.lock().await;
        let now = Instant::now();
        let due = |known: &Known| {
            let is_socket = known.unit.kind() == "socket" && known.role.is_some() && known.has_details();
            is_socket
                && known.counters.is_none_or(|(accepts, _, read)| {
                    now.duration_since(read) >= if accepts { pace.check } else { pace.slow }
                })
        };
        let due: Vec<(Arc<Unit>, Option<bool>)> = {
            let picture = self.picture();
            let due = picture.units().filter(|known| due(known));
            due.map(|known| (known.unit.clone(), known.counters.map(|(accepts, ..)| accepts))).collect()
        };
        all_but_odd(stream::iter(due).map(async |(unit, accepts)| {
            let accepts = match accepts {
                Some(accepts) => accepts,
                None => self.systemd.accepts(&unit).await?,
            };
            let counters = self.systemd.socket_counters(&unit).await?;
            let mut picture = self.picture();
            let Some(known) = picture.get_mut(&unit.path) else { return Ok(()) };
            let before = known.counters.replace((accepts, counters, now));
            if before.is_none_or(|(_, before, _)| before != counters) {
                picture.was_changed();
            }
            Ok(())
        }))
        .await
    }
}
