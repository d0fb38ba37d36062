//! What becomes of units whose files changed: which are restarted, and whether all is well afterwards.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use evenkeel_host::systemd::{Systemd, Unit, UnitStatus, covers};
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{FuturesOrdered, FuturesUnordered},
};
use tokio::time::{Instant, sleep, timeout};

use super::Restart;
use crate::{
    actions::{
        Check, Failure, Job,
        golden::Wanted,
        unit_job::{self, Verb, call_failure},
    },
    systemd::ManagerProxy,
};

/// Between two looks.
const PACE: Duration = Duration::from_millis(500);
/// How long the restarts may take that put things back.
const BACK: Duration = Duration::from_secs(90);
/// What a restart does no harm to; restarting a mount or a slice would end what is in it.
const RESTARTED: [&str; 5] = ["service", "socket", "timer", "path", "target"];
/// Our own units, among them this very helper's: what becomes of them says nothing of the files.
const OURS: &str = "evenkeel-";

/// The units that matter, as they were before.
#[derive(Debug)]
pub(super) struct Services {
    systemd: Systemd,
    /// The target, if it is restarted.
    target: Option<String>,
    /// Others to restart, and when each had become active.
    changed: BTreeMap<String, Option<SystemTime>>,
    /// Whose files change, whether they are restarted or not.
    touched: BTreeSet<String>,
    /// Those that are failed, of all units.
    failed: BTreeSet<String>,
}

impl Services {
    /// What changing these files is about.
    ///
    /// # Errors
    /// When systemd does not say.
    pub(super) async fn of(
        systemd: &Systemd,
        target: &str,
        restart: Restart,
        wanted: &[Wanted],
    ) -> Result<Self, Failure> {
        let units = systemd.units().await.map_err(asking)?;
        let touched: BTreeSet<String> = touched(wanted, &units).map(|unit| unit.name.clone()).collect();
        let is_up = |unit: &&Unit| unit.active_state != "inactive" && is_restarted(unit);
        let named = units.iter().find(|unit| unit.name == target);
        // Restarting a target starts what it wants, as it does by hand. What somebody stopped stays stopped.
        let is_named_restarted = target.ends_with(".target") || named.is_some_and(|unit| is_up(&unit));
        let mut changed = BTreeMap::new();
        if restart == Restart::Changed {
            for unit in
                units.iter().filter(|unit| touched.contains(&unit.name) && unit.name != target && is_up(unit))
            {
                let status = systemd.unit(&unit.name).await.map_err(asking)?;
                changed.insert(unit.name.clone(), status.active_enter);
            }
        }
        Ok(Self {
            systemd: systemd.clone(),
            target: (restart != Restart::None && is_named_restarted).then(|| target.to_owned()),
            changed,
            touched,
            failed: failed(&units),
        })
    }

    /// Whether the restarts take along too much else, or anything that is never touched.
    ///
    /// # Errors
    /// When systemd does not say.
    pub(super) async fn blast_radius(&self, job: &Job) -> Result<Option<Check>, Failure> {
        let most = usize::try_from(job.config.blast_radius).unwrap_or(usize::MAX);
        // Those that are restarted anyway are among them, and are not counted.
        let asked = most.saturating_add(self.changed.len()).saturating_add(1);
        let mut others = BTreeSet::new();
        for unit in self.changed.keys().chain(&self.target) {
            if job.config.deny.denies(unit) {
                let detail = format!("it would restart {unit}, which evenkeel never touches");
                return Ok(Some(Check::Skip("blast_radius", detail)));
            }
            let along = self.systemd.dependents(unit, asked).await.map_err(asking)?;
            others.extend(
                along
                    .into_iter()
                    .filter(|other| !self.changed.contains_key(other) && Some(other) != self.target.as_ref()),
            );
        }
        if let Some(denied) = others.iter().find(|other| job.config.deny.denies(other)) {
            let detail = format!("it would take {denied} along, which evenkeel never touches");
            return Ok(Some(Check::Skip("blast_radius", detail)));
        }
        if others.len() > most {
            let named: Vec<&str> = others.iter().take(most).map(String::as_str).collect();
            let detail = format!(
                "its restarts would take more than {most} others along (policy.blast_radius): {} …",
                named.join(", ")
            );
            return Ok(Some(Check::Skip("blast_radius", detail)));
        }
        Ok(None)
    }

    /// Restarts what is to be, the target first: it may take others along, and those are not restarted twice.
    ///
    /// # Errors
    /// When one does not come up, in words.
    pub(super) async fn restart(&self, manager: &ManagerProxy<'_>) -> Result<Vec<String>, String> {
        let mut restarted = Vec::new();
        if let Some(target) = &self.target {
            restart(manager, target).await?;
            restarted.push(target.clone());
        }
        let mut left = Vec::new();
        for (unit, entered) in &self.changed {
            let status = self.systemd.unit(unit).await.map_err(|error| format!("systemd: {error}"))?;
            if status.active_state != "active" || status.active_enter == *entered {
                left.push(unit.as_str());
            }
        }
        // All at once: systemd puts them into the order that the units say.
        let jobs: FuturesUnordered<_> = left.iter().map(|unit| restart(manager, unit)).collect();
        jobs.try_collect::<()>().await?;
        restarted.extend(left.into_iter().map(str::to_owned));
        Ok(restarted)
    }

    /// Looks until all has been well for `hold`.
    ///
    /// # Errors
    /// With what is not well: at once where that does not pass, at the deadline otherwise.
    pub(super) async fn hold(&self, hold: Duration, deadline: Instant) -> Result<(), String> {
        let mut well: Option<(Instant, Vec<String>)> = None;
        loop {
            let (runs, trouble) = match self.look().await {
                Ok(runs) => (runs, None),
                Err(Trouble::ForGood(why)) => return Err(why),
                Err(Trouble::Perhaps(why)) => (Vec::new(), Some(why)),
            };
            let now = Instant::now();
            match (&trouble, &well) {
                (Some(_), _) => well = None,
                (None, Some((since, known))) if *known == runs => {
                    if now.duration_since(*since) >= hold {
                        return Ok(());
                    }
                }
                // The first good look, or a run that has begun since: a restart in between was no time in health.
                _ => well = Some((now, runs)),
            }
            if now >= deadline {
                return Err(trouble
                    .unwrap_or_else(|| "the units did not stay as they were for long enough".to_owned()));
            }
            sleep(PACE).await;
        }
    }

    /// One look at everything: which runs of the units are under way, or what is not well.
    async fn look(&self) -> Result<Vec<String>, Trouble> {
        let perhaps = |error: evenkeel_host::systemd::Error| Trouble::Perhaps(format!("systemd: {error}"));
        let units = self.systemd.units().await.map_err(perhaps)?;
        if let Some(new) = failed(&units).difference(&self.failed).next() {
            return Err(Trouble::ForGood(format!("{new} is failed and was not before")));
        }
        let mut runs = Vec::new();
        for name in self.touched.iter().chain(&self.target) {
            let unit = self.systemd.unit(name).await.map_err(perhaps)?;
            let is_restarted = self.changed.contains_key(name) || self.target.as_ref() == Some(name);
            well(&unit, is_restarted).map_err(Trouble::Perhaps)?;
            runs.push(run_of(&unit));
        }
        Ok(runs)
    }
}

/// What is not well.
enum Trouble {
    /// It does not pass by itself.
    ForGood(String),
    /// It may.
    Perhaps(String),
}

/// Whether a unit is as its files say; one that was restarted has to be up as well.
fn well(unit: &UnitStatus, is_restarted: bool) -> Result<(), String> {
    let service = unit.service.as_ref();
    let runs_once = service.is_some_and(|one| one.kind == "oneshot" && !one.remain_after_exit);
    let has_run =
        runs_once && unit.active_state == "inactive" && service.is_some_and(|one| one.result == "success");
    if unit.need_daemon_reload {
        Err(format!("systemd has not read the files of {}", unit.id))
    } else if matches!(unit.load_state.as_str(), "bad-setting" | "error") {
        Err(format!("systemd does not take the files of {}: {}", unit.id, unit.load_state))
    } else if !is_restarted || unit.load_state == "masked" || unit.active_state == "active" || has_run {
        Ok(())
    } else {
        Err(format!("{} is {} ({})", unit.id, unit.active_state, unit.sub_state))
    }
}

/// What is the same as long as nothing is restarted.
fn run_of(unit: &UnitStatus) -> String {
    let run = unit.service.as_ref().map(|service| (service.invocation_id.as_str(), service.n_restarts));
    format!("{} {:?} {run:?}", unit.id, unit.active_enter)
}

/// Has systemd read files that were put back, and restarts those of their units that ran with the others since `begun_ms`
/// or did not come up with them. Says what it did.
///
/// # Errors
/// When systemd did not read them.
pub(super) async fn read_again(
    systemd: &Systemd,
    wanted: &[Wanted],
    begun_ms: Option<u64>,
) -> Result<String, Failure> {
    let unknown = |failure: Failure| {
        Failure::Unknown(format!("the files were put back, and systemd did not read them: {failure}"))
    };
    let manager = ManagerProxy::of(systemd).await.map_err(unknown)?;
    manager.reload().await.map_err(|error| unknown(call_failure(error)))?;
    let Some(begun) = begun_ms.and_then(|ms| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)))
    else {
        return Ok(String::new());
    };
    let units = systemd.units().await.map_err(asking)?;
    let mut names = Vec::new();
    for unit in touched(wanted, &units).filter(|unit| is_restarted(unit) && unit.load_state == "loaded") {
        let status = systemd.unit(&unit.name).await.map_err(asking)?;
        let is_young = status.active_enter.is_some_and(|entered| entered >= begun);
        if status.active_state != "inactive" && (status.active_state != "active" || is_young) {
            names.push(unit.name.as_str());
        }
    }
    let jobs: FuturesOrdered<_> = names.iter().map(|unit| restart_in_time(&manager, unit)).collect();
    let ended: Vec<Result<(), String>> = jobs.collect().await;
    let restarted: Vec<&str> =
        names.iter().zip(&ended).filter(|(_, ended)| ended.is_ok()).map(|(unit, _)| *unit).collect();
    let mut said = String::new();
    if !restarted.is_empty() {
        said += &format!(", with them restarted {}", restarted.join(", "));
    }
    for why in ended.into_iter().filter_map(Result::err) {
        said += &format!("; {why}");
    }
    Ok(said)
}

/// The same, not waited for longer than [`BACK`].
async fn restart_in_time(manager: &ManagerProxy<'_>, unit: &str) -> Result<(), String> {
    let late = |_| Err(format!("the restart of {unit} did not end within {} s", BACK.as_secs()));
    timeout(BACK, restart(manager, unit)).await.unwrap_or_else(late)
}

async fn restart(manager: &ManagerProxy<'_>, unit: &str) -> Result<(), String> {
    match unit_job::result(manager, Verb::Restart, unit).await {
        Ok(result) if result == "done" => Ok(()),
        Ok(result) => Err(format!("the restart of {unit} ended as {result}")),
        Err(failure) => Err(format!("the restart of {unit}: {failure}")),
    }
}

/// The units in memory whose own files these are: also those made from a template, and those that a drop-in for a common
/// beginning of names is about (man systemd.unit). A link that enables a unit changes nothing about how it runs.
fn touched<'a>(wanted: &'a [Wanted], units: &'a [Unit]) -> impl Iterator<Item = &'a Unit> {
    units.iter().filter(move |unit| {
        wanted.iter().filter(|one| is_about_how_it_runs(one)).any(|one| covers(&one.unit, &unit.name))
    })
}

fn is_about_how_it_runs(one: &Wanted) -> bool {
    let folder = one.path.rsplit('/').nth(1).unwrap_or_default();
    ![".wants", ".requires", ".upholds"].iter().any(|suffix| folder.ends_with(suffix))
}

fn is_restarted(unit: &Unit) -> bool {
    RESTARTED.contains(&unit.kind()) && !unit.name.starts_with(OURS)
}

fn failed(units: &[Unit]) -> BTreeSet<String> {
    let failed = units.iter().filter(|unit| unit.active_state == "failed" && !unit.name.starts_with(OURS));
    failed.map(|unit| unit.name.clone()).collect()
}

fn asking(error: evenkeel_host::systemd::Error) -> Failure {
    Failure::Refused(format!("systemd: {error}"))
}

#[cfg(test)]
mod tests {
    use evenkeel_host::systemd::{ServiceStatus, snapshot::Change};

    use super::*;

    fn wanted(path: &str, unit: &str) -> Wanted {
        Wanted {
            path: format!("/etc/systemd/system/{path}"),
            unit: unit.to_owned(),
            change: Change::Modified,
            entry: None,
        }
    }

    #[test]
    fn the_units_that_a_file_is_about_are_found() {
        for (own, name, reaches_it) in [
            ("shop-api.service", "shop-api.service", true),
            ("shop-api.service", "shop-api.socket", false),
            ("shop-api.service", "shop-api2.service", false),
            ("shop@.service", "shop@1.service", true),
            ("shop@.service", "shop.service", false),
            ("shop-.service", "shop-api.service", true),
            ("shop-.service", "shop.service", false),
            ("shop@1.service", "shop@1.service", true),
        ] {
            assert_eq!(covers(own, name), reaches_it, "{own} {name}");
        }
        assert!(is_about_how_it_runs(&wanted("shop.service.d/a.conf", "shop.service")));
        assert!(!is_about_how_it_runs(&wanted("shop.target.wants/shop.service", "shop.service")));
    }

    fn unit(load: &str, active: &str) -> UnitStatus {
        UnitStatus {
            id: "shop.service".to_owned(),
            names: Vec::new(),
            load_state: load.to_owned(),
            active_state: active.to_owned(),
            sub_state: "x".to_owned(),
            job_id: 0,
            need_daemon_reload: false,
            can_start: true,
            active_enter: None,
            service: None,
            fragment_path: String::new(),
        }
    }

    #[test]
    fn what_was_restarted_has_to_be_up_and_what_was_not_only_read() {
        assert_eq!(well(&unit("loaded", "active"), true), Ok(()));
        assert_eq!(well(&unit("loaded", "activating"), true).unwrap_err(), "shop.service is activating (x)");
        assert_eq!(well(&unit("loaded", "inactive"), false), Ok(()));
        assert_eq!(well(&unit("masked", "inactive"), true), Ok(()));
        assert!(
            well(&unit("bad-setting", "inactive"), false).unwrap_err().contains("does not take the files")
        );
        let unread = UnitStatus { need_daemon_reload: true, ..unit("loaded", "active") };
        assert!(well(&unread, false).unwrap_err().contains("has not read"));
        let once = |result: &str| UnitStatus {
            service: Some(ServiceStatus {
                kind: "oneshot".to_owned(),
                result: result.to_owned(),
                n_restarts: 0,
                exec_main_code: 1,
                exec_main_status: 0,
                exec_main_exit: None,
                main_pid: 0,
                remain_after_exit: false,
                invocation_id: String::new(),
            }),
            ..unit("loaded", "inactive")
        };
        assert_eq!(well(&once("success"), true), Ok(()));
        assert!(well(&once("exit-code"), true).is_err());
    }
}
