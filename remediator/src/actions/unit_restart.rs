//! Restarts a failed unit over D-Bus and waits for systemd's verdict on the job.

use std::time::Duration;

use evenkeel_host::{config::PromDuration, diagnose::Cause};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Action, Check, Done, Failure, Job, Permission,
    unit_job::{self, Verb, call_failure},
};
use crate::{
    observe::Observation,
    policy::Class,
    systemd::ManagerProxy,
    target::{Kind, Target},
};

pub(super) const NAME: &str = "unit_restart";

/// Restarts a failed unit over D-Bus and waits for the job (class S2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UnitRestart {
    /// Which states of the unit a restart is for.
    #[schemars(extend("default" = ["failed"]))]
    only_if: Vec<UnitState>,
    /// Whether systemd's start counter is cleared first, so that its start limit does not refuse the restart.
    #[schemars(extend("default" = "never"))]
    reset_failed: ResetFailed,
    /// Causes of which the unit may fail and still be started, although a start alone does not cure them.
    #[schemars(extend("default" = []))]
    despite: Vec<Cause>,
    /// How long the job may take.
    timeout: PromDuration,
}

/// States that a restart may be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum UnitState {
    /// It ended in failure and stays so.
    Failed,
    /// It waits for its next automatic restart.
    Looping,
}

/// Whether systemd's start counter is cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ResetFailed {
    /// Once, before the restart.
    Once,
    /// Not at all.
    #[default]
    Never,
}

impl Default for UnitRestart {
    fn default() -> Self {
        Self {
            only_if: vec![UnitState::Failed],
            reset_failed: ResetFailed::default(),
            despite: Vec::new(),
            timeout: PromDuration::new(Duration::from_secs(90)),
        }
    }
}

impl Action for UnitRestart {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::S2
    }

    fn fits(&self, kind: Kind) -> bool {
        kind == Kind::Unit
    }

    fn timeout(&self) -> Duration {
        self.timeout.get()
    }

    fn plan(&self, target: &Target) -> String {
        let restart = Verb::Restart.plan(target.name());
        match self.reset_failed {
            ResetFailed::Never => restart,
            ResetFailed::Once => {
                format!(
                    "org.freedesktop.systemd1.Manager.ResetFailedUnit({:?}), then {restart}",
                    target.name()
                )
            }
        }
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        match self.reset_failed {
            ResetFailed::Never => vec![Permission::Unit("restart")],
            ResetFailed::Once => vec![Permission::Unit("reset-failed"), Permission::Unit("restart")],
        }
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move { Ok(self.judge(&job.seen)) })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let manager = ManagerProxy::of(&job.host.systemd).await?;
            if self.reset_failed == ResetFailed::Once {
                manager.reset_failed_unit(job.target.name()).await.map_err(call_failure)?;
            }
            unit_job::carry_out(&manager, Verb::Restart, job.target.name())
                .await
                .map_err(|failure| after_reset(failure, self.reset_failed))
        })
    }
}

impl UnitRestart {
    /// Whether a restart may help what was seen. Never restarts what an administrator stopped, what systemd is about
    /// to restart itself, what would start from a unit file that systemd has not read yet, or what fails of something that
    /// no restart cures.
    fn judge(&self, seen: &Observation) -> Check {
        let check = unit_job::judge(seen, "not_failed", |unit| {
            self.only_if.iter().any(|state| match state {
                UnitState::Failed => unit.is_failed(),
                UnitState::Looping => unit.is_looping(),
            })
        });
        if check == Check::Go { unit_job::may_cure(seen, &self.despite) } else { check }
    }
}

/// A refused restart is not "nothing was done" when the failed state had been cleared before.
fn after_reset(failure: Failure, reset_failed: ResetFailed) -> Failure {
    match (failure, reset_failed) {
        (Failure::Refused(detail), ResetFailed::Once) => {
            Failure::Unknown(format!("the failed state was cleared, and the restart refused: {detail}"))
        }
        (failure, _) => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Unit;

    fn failed() -> Unit {
        Unit {
            load_state: "loaded".to_owned(),
            active_state: "failed".to_owned(),
            sub_state: "failed".to_owned(),
            ..Unit::default()
        }
    }

    #[test]
    fn restarts_only_what_failed_and_stays_so() {
        let judge = |change: fn(&mut Unit)| {
            let mut unit = failed();
            change(&mut unit);
            match UnitRestart::default().judge(&Observation::Unit(unit)) {
                Check::Skip(reason, _) => reason,
                _ => "go",
            }
        };
        assert_eq!(judge(|_| ()), "go");
        assert_eq!(judge(|unit| unit.active_state = "inactive".to_owned()), "not_failed");
        assert_eq!(judge(|unit| unit.active_state = "active".to_owned()), "not_failed");
        assert_eq!(judge(|unit| unit.load_state = "masked".to_owned()), "not_loaded");
        assert_eq!(judge(|unit| unit.load_state = "not-found".to_owned()), "not_loaded");
        assert_eq!(judge(|unit| unit.job_queued = true), "job_queued");
        assert_eq!(judge(|unit| unit.need_daemon_reload = true), "daemon_reload_needed");
        assert_eq!(
            judge(|unit| {
                unit.active_state = "activating".to_owned();
                unit.sub_state = "auto-restart".to_owned();
            }),
            "not_failed"
        );
    }

    #[test]
    fn restarts_a_looping_unit_only_when_told_to() {
        let looping = Observation::Unit(Unit {
            active_state: "activating".to_owned(),
            sub_state: "auto-restart".to_owned(),
            ..failed()
        });
        let told =
            UnitRestart { only_if: vec![UnitState::Failed, UnitState::Looping], ..UnitRestart::default() };
        assert_eq!(told.judge(&looping), Check::Go);
    }
}
