//! Makes a golden snapshot of unit files: a copy of what a host in a good state has, to compare with and to bring back.

use evenkeel_host::systemd::{Unit, snapshot};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Action, Check, Done, Failure, Job, Permission, by_root,
    golden::{self, Golden, Purpose},
    unit_restore::interrupted,
};
use crate::{
    clock::Clock,
    helper::Verb,
    policy::Class,
    target::{Kind, Target},
};

pub(super) const NAME: &str = "unit_snapshot";

/// Makes a golden snapshot of the files of `snapshot.units` (class S1).
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UnitSnapshot {
    /// Also while one of the units is failed.
    even_if_failed: bool,
}

impl Action for UnitSnapshot {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::S1
    }

    fn fits(&self, kind: Kind) -> bool {
        kind == Kind::Host
    }

    fn plan(&self, _: &Target) -> String {
        by_root::plan(
            "copy the unit files, drop-ins and enablement links of snapshot.units to a new folder in snapshot.dir",
            Verb::UnitSnapshot,
        )
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        vec![Permission::Helper(Verb::UnitSnapshot.template())]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            let golden = Golden::of(job)?;
            if let Some(check) = self.units_are_well(job, &golden).await? {
                return Ok(check);
            }
            let deny = job.config.deny.clone();
            golden::blocking(move || {
                if let Err(wrong) = golden.is_root_s_own() {
                    return Ok(Check::Skip("not_root_s_own", wrong));
                }
                if interrupted(&golden) {
                    let detail = "a snapshot was being brought back when that was interrupted: trigger that rule again first";
                    return Ok(Check::Skip("interrupted", detail.to_owned()));
                }
                let scan = golden.scan().map_err(|error| Failure::Refused(error.to_string()))?;
                let unit_of = |path: &String| {
                    snapshot::unit_at(&golden.folders, path, &|unit| golden.is_meant(unit)).map(str::to_owned)
                };
                let denied = scan.entries.keys().filter_map(unit_of).find(|unit| deny.denies(unit));
                if let Some(denied) = denied {
                    let detail = format!("snapshot.units takes in {denied}, which evenkeel never touches: name less");
                    return Ok(Check::Skip("target_denied", detail));
                }
                Ok(judge(&golden, &scan))
            })
            .await
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            if !by_root::is_root() {
                return by_root::done(job, Verb::UnitSnapshot).await;
            }
            let golden = Golden::of(job)?;
            let now_ms = u64::try_from(Clock::default().now().wall_ms).unwrap_or_default();
            golden::blocking(move || make(&golden, now_ms)).await
        })
    }
}

impl UnitSnapshot {
    /// A golden snapshot is of a good state: why this is none.
    async fn units_are_well(&self, job: &Job, golden: &Golden) -> Result<Option<Check>, Failure> {
        let systemd = &job.host.systemd;
        let asking = |error: evenkeel_host::systemd::Error| Failure::Refused(format!("systemd: {error}"));
        let units = systemd.units().await.map_err(asking)?;
        let meant: Vec<&Unit> = units.iter().filter(|unit| golden.is_meant(&unit.name)).collect();
        let is_failed =
            |unit: &&&Unit| unit.active_state == "failed" || unit.sub_state.starts_with("auto-restart");
        if let Some(failed) = meant.iter().find(is_failed).filter(|_| !self.even_if_failed) {
            let detail = format!(
                "{} is {} ({}): a golden snapshot is of a good state, unless `even_if_failed: true`",
                failed.name, failed.active_state, failed.sub_state
            );
            return Ok(Some(Check::Skip("not_well", detail)));
        }
        for unit in meant.iter().filter(|unit| unit.load_state == "loaded") {
            if systemd.need_daemon_reload(unit).await.map_err(asking)? {
                let detail =
                    format!("systemd has not read the files of {}: systemctl daemon-reload first", unit.name);
                return Ok(Some(Check::Skip("daemon_reload_needed", detail)));
            }
        }
        Ok(None)
    }
}

/// Whether there is anything to keep, and what is new in it.
fn judge(golden: &Golden, scan: &snapshot::Scan) -> Check {
    if let Some((path, odd)) = scan.odd.first_key_value() {
        return Check::Skip("not_a_unit_file", format!("{path}: {}", odd.why));
    }
    if scan.entries.is_empty() {
        let detail = format!("no file in {} belongs to snapshot.units", golden.folders.join(" or "));
        return Check::Skip("nothing_to_keep", detail);
    }
    let files = scan.entries.len();
    match golden.shelf().newest() {
        Ok(None) => Check::Changes(format!("the first snapshot, of {files} files and links")),
        // It stays as evidence; the new one takes its place.
        Err(damaged) => {
            Check::Changes(format!("a snapshot of {files} files and links; the one before: {damaged}"))
        }
        Ok(Some(last)) => {
            let manifest = &last.manifest;
            let is_meant = |unit: &str| golden.is_meant(unit);
            let drift = snapshot::drift(&manifest.folders, &manifest.entries, scan, &is_meant);
            if drift.is_empty() && manifest.folders == golden.folders {
                return Check::Skip("unchanged", format!("nothing has changed since snapshot {}", last.name));
            }
            let changes = golden::describe(drift.iter().map(|one| (one.path.as_str(), one.change)));
            Check::Changes(format!("a snapshot of {files} files and links; since {}, {changes}", last.name))
        }
    }
}

/// Makes one, and forgets the oldest.
fn make(golden: &Golden, now_ms: u64) -> Result<Done, Failure> {
    let _held = golden.lock()?;
    if interrupted(golden) {
        return Err(Failure::Busy(
            "a snapshot that was being brought back is to be taken back first".to_owned(),
        ));
    }
    let scan = golden.scan().map_err(|error| Failure::Refused(error.to_string()))?;
    let name = golden::keep(golden, &golden.shelf(), Purpose::Golden, &scan, now_ms)?;
    let mut detail = format!("snapshot {name} of {} files and links", scan.entries.len());
    if let Err(error) = golden::forget_old(&golden.shelf(), golden.keep, &[]) {
        detail += &format!("; the oldest could not be removed: {error}");
    }
    Ok(Done { detail, ..Done::default() })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::{
        super::golden::tests::{NOW, Yard},
        *,
    };

    fn skipped(check: Check) -> (&'static str, String) {
        match check {
            Check::Skip(reason, detail) => (reason, detail),
            other => panic!("{other:?}"),
        }
    }

    fn judged(yard: &Yard) -> Check {
        judge(&yard.golden, &yard.golden.scan().unwrap())
    }

    #[test]
    fn what_was_made_is_what_was_there_and_can_be_read_back() {
        let yard = Yard::new();
        assert_eq!(judged(&yard), Check::Changes("the first snapshot, of 4 files and links".to_owned()));
        let done = make(&yard.golden, NOW).unwrap();
        let newest = yard.golden.shelf().newest().unwrap().unwrap();
        assert_eq!(done.detail, format!("snapshot {} of 4 files and links", newest.name));
        newest.is_whole().unwrap();
        assert_eq!(newest.manifest.entries, yard.golden.scan().unwrap().entries);
        assert_eq!(skipped(judged(&yard)).0, "unchanged");
        yard.write("shop-api.service", "changed");
        let Check::Changes(said) = judged(&yard) else { panic!("nothing to do") };
        assert!(said.ends_with("1 file: /etc/systemd/system/shop-api.service modified"), "{said}");
    }

    #[test]
    fn the_oldest_go_and_time_that_runs_backwards_makes_no_old_ones() {
        let yard = Yard::new();
        let mut names = Vec::new();
        for turn in 0..5 {
            yard.write("shop-api.service", &format!("turn {turn}"));
            make(&yard.golden, NOW - turn * 1000).unwrap();
            names.push(yard.golden.shelf().newest().unwrap().unwrap().name);
        }
        assert_eq!(yard.golden.shelf().names().unwrap(), names[5 - yard.golden.keep..]);
    }

    #[test]
    fn what_was_half_written_is_no_snapshot_and_in_nobody_s_way() {
        let yard = Yard::new();
        let half = yard.golden.dir.join(".new/files");
        fs::create_dir_all(&half).unwrap();
        fs::write(half.join("half"), "").unwrap();
        assert!(yard.golden.shelf().newest().unwrap().is_none());
        make(&yard.golden, NOW).unwrap();
        assert!(!yard.golden.dir.join(".new").exists());
        let snapshot = yard.golden.shelf().newest().unwrap().unwrap();
        assert!(!snapshot.dir.join("files/half").exists());
    }

    #[test]
    fn only_what_is_root_s_own_and_stays_in_its_folders_is_kept() {
        let yard = Yard::new();
        symlink("/opt/evil.service", yard.at("shop-evil.service")).unwrap();
        let refusal = make(&yard.golden, NOW).unwrap_err();
        assert!(refusal.to_string().contains("is a link out of systemd's folders"), "{refusal}");
        assert!(yard.golden.shelf().newest().unwrap().is_none());
        fs::remove_file(yard.at("shop-evil.service")).unwrap();
        yard.mode("shop-api.service", 0o666);
        let refusal = make(&yard.golden, NOW).unwrap_err();
        assert!(refusal.to_string().contains("others than its owner may write"), "{refusal}");
        yard.mode("shop-api.service", 0o644);
        fs::create_dir(yard.at("shop-x.service")).unwrap();
        assert_eq!(skipped(judged(&yard)).0, "not_a_unit_file");
        assert!(make(&yard.golden, NOW).is_err());
    }

    #[test]
    fn a_damaged_one_is_replaced_and_left_where_it_is() {
        let yard = Yard::new();
        make(&yard.golden, NOW).unwrap();
        let first = yard.golden.shelf().newest().unwrap().unwrap();
        fs::write(first.dir.join("manifest.json"), "{}").unwrap();
        let Check::Changes(said) = judged(&yard) else { panic!("nothing to do") };
        assert!(said.contains("it was changed or damaged"), "{said}");
        make(&yard.golden, NOW + 1).unwrap();
        assert_ne!(yard.golden.shelf().newest().unwrap().unwrap().name, first.name);
        assert!(first.dir.exists());
    }

    #[test]
    fn nobody_makes_two_at_a_time() {
        let yard = Yard::new();
        let held = yard.golden.lock().unwrap();
        assert!(matches!(make(&yard.golden, NOW), Err(Failure::Busy(_))));
        drop(held);
        make(&yard.golden, NOW).unwrap();
    }

    #[test]
    fn a_pattern_that_fits_nothing_is_said() {
        let mut yard = Yard::new();
        yard.golden.units = vec!["nothing-*.service".parse().unwrap()];
        assert_eq!(
            skipped(judged(&yard)),
            ("nothing_to_keep", "no file in /etc/systemd/system belongs to snapshot.units".to_owned())
        );
    }
}
