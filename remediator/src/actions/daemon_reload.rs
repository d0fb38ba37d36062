//! Has systemd read the unit files again that changed on disk.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use evenkeel_host::config::PromDuration;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Action, Check, Done, Failure, Job, Permission, by_root, unit_job::call_failure};
use crate::{
    helper::Verb,
    observe::Observation,
    policy::Class,
    systemd::{ManagerProxy, UnitProxy, asking},
    target::{Kind, Target},
};

pub(super) const NAME: &str = "daemon_reload";

/// Has systemd read unit files that changed on disk (class S1).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DaemonReload {
    /// How long the unit's files must have been left alone: a deployment that is under way leaves halves.
    quiet_for: PromDuration,
}

impl Default for DaemonReload {
    fn default() -> Self {
        Self { quiet_for: PromDuration::new(Duration::from_secs(10)) }
    }
}

impl Action for DaemonReload {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::S1
    }

    fn fits(&self, kind: Kind) -> bool {
        kind == Kind::Unit
    }

    fn is_for(&self, seen: &Observation) -> bool {
        matches!(seen, Observation::Unit(unit) if unit.need_daemon_reload)
    }

    fn prepares(&self) -> bool {
        true
    }

    fn plan(&self, _: &Target) -> String {
        by_root::plan("org.freedesktop.systemd1.Manager.Reload()", Verb::DaemonReload)
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        vec![Permission::Helper(Verb::DaemonReload.template())]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            if !self.is_for(&job.seen) {
                return Ok(Check::Skip("not_needed", "systemd has read its files".to_owned()));
            }
            let unit = UnitProxy::of(&job.host.systemd, job.target.name()).await?;
            let mut files = unit.drop_in_paths().await.map_err(asking)?;
            files.push(unit.fragment_path().await.map_err(asking)?);
            let youngest = tokio::task::spawn_blocking(move || youngest(&files)).await;
            let age = youngest
                .ok()
                .flatten()
                .and_then(|(file, changed)| Some((file, SystemTime::now().duration_since(changed).ok()?)));
            Ok(match age {
                Some((file, age)) if age < self.quiet_for.get() => {
                    let detail = format!("{} was written {} s ago", file.display(), age.as_secs());
                    Check::Skip("being_deployed", detail)
                }
                _ => Check::Go,
            })
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            if !by_root::is_root() {
                return by_root::done(job, Verb::DaemonReload).await;
            }
            let manager = ManagerProxy::of(&job.host.systemd).await?;
            manager.reload().await.map_err(call_failure)?;
            Ok(Done { detail: "systemd has read its unit files again".to_owned(), ..Done::default() })
        })
    }
}

/// The file that was written last, and when. Files that are gone or not to be seen from here say nothing.
fn youngest(files: &[String]) -> Option<(PathBuf, SystemTime)> {
    let changed = |file: &String| {
        let changed = std::fs::metadata(file).ok()?.modified().ok()?;
        Some((PathBuf::from(file), changed))
    };
    files.iter().filter_map(changed).max_by_key(|(_, changed)| *changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_youngest_file_counts_and_a_lost_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        for (name, seconds) in [("old", 100), ("young", 200)] {
            let file = std::fs::File::create(path(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        }
        let (file, changed) = youngest(&[path("old"), path("gone"), path("young"), String::new()]).unwrap();
        assert_eq!(file, dir.path().join("young"));
        assert_eq!(changed, SystemTime::UNIX_EPOCH + Duration::from_secs(200));
        assert_eq!(youngest(&[path("gone")]), None);
    }
}
