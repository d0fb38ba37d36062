//! Starts a unit that should run and does not.

use std::time::Duration;

use evenkeel_host::{config::PromDuration, diagnose::Cause};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Action, Check, Done, Failure, Job, Permission,
    unit_job::{self, Verb},
};
use crate::{
    observe::{Observation, Unit},
    policy::Class,
    systemd::{ManagerProxy, UnitProxy, asking},
    target::{Kind, Target},
};

pub(super) const NAME: &str = "unit_start";

/// Starts a unit that is down (class S2). Not one that nothing enables, nor a oneshot that ended well.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UnitStart {
    /// Causes of which the unit may fail and still be started, although a start alone does not cure them.
    #[schemars(extend("default" = []))]
    despite: Vec<Cause>,
    /// How long the job may take.
    timeout: PromDuration,
}

impl Default for UnitStart {
    fn default() -> Self {
        Self { despite: Vec::new(), timeout: PromDuration::new(Duration::from_secs(90)) }
    }
}

impl Action for UnitStart {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::S2
    }

    fn fits(&self, kind: Kind) -> bool {
        kind == Kind::Unit
    }

    fn is_for(&self, seen: &Observation) -> bool {
        matches!(seen, Observation::Unit(unit) if is_down(unit))
    }

    fn timeout(&self) -> Duration {
        self.timeout.get()
    }

    fn plan(&self, target: &Target) -> String {
        Verb::Start.plan(target.name())
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        vec![Permission::Unit("start")]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            let check = unit_job::judge(&job.seen, "not_down", is_down);
            if check != Check::Go {
                return Ok(check);
            }
            let unit = UnitProxy::of(&job.host.systemd, job.target.name()).await?;
            if !unit.can_start().await.map_err(asking)? {
                let detail =
                    "it cannot be started by hand (RefuseManualStart=, or a template without an instance)";
                return Ok(Check::Skip("no_manual_start", detail.to_owned()));
            }
            let state = unit.unit_file_state().await.map_err(asking)?;
            let mut wanted_by = unit.wanted_by().await.map_err(asking)?;
            wanted_by.extend(unit.required_by().await.map_err(asking)?);
            Ok(if is_meant_to_run(&state, &wanted_by) {
                unit_job::may_cure(&job.seen, &self.despite)
            } else {
                Check::Skip(
                    "not_enabled",
                    format!("it is {state} and nothing wants it: somebody may have stopped it"),
                )
            })
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let manager = ManagerProxy::of(&job.host.systemd).await?;
            unit_job::carry_out(&manager, Verb::Start, job.target.name()).await
        })
    }
}

/// Whether a start would change anything. What runs once and has ended well is as it should be.
fn is_down(unit: &Unit) -> bool {
    match unit.active_state.as_str() {
        "failed" => true,
        "inactive" => !(unit.runs_once && unit.result == "success"),
        _ => false,
    }
}

/// Whether the host's own configuration starts it: a unit that nothing starts was perhaps stopped by a person.
fn is_meant_to_run(unit_file_state: &str, wanted_by: &[String]) -> bool {
    matches!(unit_file_state, "enabled" | "enabled-runtime") || !wanted_by.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(active_state: &str) -> Unit {
        Unit { active_state: active_state.to_owned(), result: "success".to_owned(), ..Unit::default() }
    }

    #[test]
    fn starts_what_is_down_and_not_what_has_ended_well() {
        assert!(is_down(&unit("inactive")));
        assert!(is_down(&unit("failed")));
        for state in ["active", "activating", "deactivating", "reloading", "maintenance", "a later word"] {
            assert!(!is_down(&unit(state)), "{state}");
        }
        assert!(!is_down(&Unit { runs_once: true, ..unit("inactive") }));
        assert!(is_down(&Unit { runs_once: true, ..unit("failed") }));
    }

    #[test]
    fn what_nothing_starts_was_perhaps_stopped_by_a_person() {
        assert!(is_meant_to_run("enabled", &[]));
        assert!(is_meant_to_run("static", &["multi-user.target".to_owned()]));
        for state in ["disabled", "static", "indirect", ""] {
            assert!(!is_meant_to_run(state, &[]), "{state}");
        }
    }
}
