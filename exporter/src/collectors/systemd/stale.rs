//! Which watched units name units that do not exist, in the host's own unit files. Found at the slow pace of what the files
//! say; the file and the line go into the log, because they are no labels.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_host::systemd::{Error, Named, covers, has_unit_file, own_references};
use tokio::{task::spawn_blocking, time::Instant};
use tracing::info;

use super::keeper::Keeper;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Stale {
    found: BTreeMap<String, BTreeSet<StaleReference>>,
    /// The files as of when: edition and time of the last look at them.
    as_of: Option<(u64, Option<Instant>)>,
}

/// A unit that does not exist, and what names it so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StaleReference {
    /// `After`, `Wants` …
    pub(super) directive: &'static str,
    /// The unit that does not exist.
    pub(super) name: String,
}

impl Stale {
    /// What a unit's files name.
    pub(super) fn of(&self, unit: &str) -> BTreeSet<StaleReference> {
        self.found.get(unit).cloned().unwrap_or_default()
    }

    /// Takes what was found now; says whether that is anything else than before.
    fn take(&mut self, found: &[(String, Named)]) -> bool {
        let mut now: BTreeMap<String, BTreeSet<StaleReference>> = BTreeMap::new();
        for (unit, Named { name, directive, file, line, .. }) in found {
            let reference = StaleReference { directive, name: name.clone() };
            if !self.of(unit).contains(&reference) {
                let (file, line) = (file.display(), line.unwrap_or_default());
                info!(unit, %file, line, directive, reference = name, "names a unit that does not exist");
            }
            now.entry(unit.clone()).or_default().insert(reference);
        }
        let is_changed = self.found != now;
        self.found = now;
        is_changed
    }
}

impl Keeper {
    /// Looks for references to units that do not exist, when the files have been looked at since the last time.
    pub(super) async fn ask_about_references(&self) -> Result<(), Error> {
        let (as_of, watched) = {
            let desk = self.desk.lock().await;
            let as_of = Some((desk.files.edition, desk.files.looked));
            if !desk.is_here || desk.files.stale.as_of == as_of {
                return Ok(());
            }
            let watched = self.watched(&desk).into_iter().map(|unit| unit.name.clone());
            (as_of, watched.collect::<Vec<String>>())
        };
        let root = self.root.clone();
        // The files are read while looks go on; of those that are named, most have files of their own.
        let reading = spawn_blocking(move || {
            let mut named = of_units(own_references(&root), &watched);
            named.retain(|(_, named)| !has_unit_file(&root, &named.name));
            named
        });
        // Ends early only when the process does.
        let mut named = reading.await.unwrap_or_default();
        named.retain(|(_, named)| !self.selection.may_be_missing(&named.name));
        let names: BTreeSet<&str> = named.iter().map(|(_, named)| named.name.as_str()).collect();
        let missing = self.missing(&names).await?;
        named.retain(|(_, named)| missing.contains(&named.name));
        let mut desk = self.desk.lock().await;
        desk.files.stale.as_of = as_of;
        if desk.files.stale.take(&named) {
            self.picture().was_changed();
        }
        Ok(())
    }

    /// Those of these units that systemd does not find. One without a file may exist all the same: devices do, and what was
    /// made for the moment.
    async fn missing(&self, names: &BTreeSet<&str>) -> Result<BTreeSet<String>, Error> {
        let (mut missing, mut unknown) = (BTreeSet::new(), names.clone());
        {
            let picture = self.picture();
            for known in picture.units().filter(|known| known.is_known()) {
                if unknown.remove(known.unit.name.as_str()) && known.unit.load_state == "not-found" {
                    missing.insert(known.unit.name.clone());
                }
            }
        }
        if !unknown.is_empty() {
            let unknown: Vec<String> = unknown.into_iter().map(str::to_owned).collect();
            let answer = self.systemd.units_by_names(&unknown).await?;
            let answer = answer.into_iter().filter(|unit| unit.load_state == "not-found");
            missing.extend(answer.map(|unit| unit.name));
        }
        Ok(missing)
    }
}

/// What is named by files of these units, with the unit; a drop-in may be one of several.
fn of_units(named: Vec<Named>, units: &[String]) -> Vec<(String, Named)> {
    let mut found = Vec::new();
    for named in named {
        for unit in units.iter().filter(|unit| covers(&named.by, unit)) {
            found.push((unit.clone(), named.clone()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(by: &str, directive: &'static str, name: &str) -> Named {
        Named {
            by: by.to_owned(),
            name: name.to_owned(),
            directive,
            file: format!("/etc/systemd/system/{by}").into(),
            line: Some(2),
        }
    }

    #[test]
    fn a_drop_in_counts_for_each_unit_that_it_speaks_for() {
        let units = ["app-a.service", "app-b.service", "web.service"].map(str::to_owned);
        let found = of_units(
            vec![
                named("app-.service", "After", "gone.service"),
                named("web.service", "Wants", "gone.service"),
                named("other.service", "Wants", "gone.service"),
            ],
            &units,
        );
        let units: Vec<&str> = found.iter().map(|(unit, _)| unit.as_str()).collect();
        assert_eq!(units, ["app-a.service", "app-b.service", "web.service"]);
    }

    #[test]
    fn only_what_is_different_is_a_change() {
        let mut stale = Stale::default();
        let once = [("a.service".to_owned(), named("a.service", "After", "gone.service"))];
        assert!(stale.take(&once));
        assert!(!stale.take(&once));
        // Named twice it is one series.
        assert!(!stale.take(&[once[0].clone(), once[0].clone()]));
        assert_eq!(stale.of("a.service").len(), 1);
        assert!(stale.take(&[]));
        assert!(stale.of("a.service").is_empty());
    }
}
