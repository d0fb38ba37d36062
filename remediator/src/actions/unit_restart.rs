//! Restarts a failed unit over D-Bus and waits for systemd's verdict on the job.

use std::time::Duration;

use evenkeel_host::config::PromDuration;
use futures_util::{StreamExt, future::BoxFuture};
use serde::Deserialize;
use zbus::OwnedObjectPath;

use super::{Action, Check, Done, Failure, Job};
use crate::{
    observe::Observation,
    policy::Class,
    systemd::{JobRemoved, ManagerProxy},
    target::{Kind, Target},
};

pub(super) const NAME: &str = "unit_restart";

/// systemd's answer to a client that asks for its signals a second time (src/libsystemd/sd-bus/bus-common-errors.h).
const ALREADY_SUBSCRIBED: &str = "org.freedesktop.systemd1.AlreadySubscribed";

/// Parameters.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UnitRestart {
    /// Which states of the unit a restart is for.
    only_if: Vec<UnitState>,
    /// Whether systemd's start counter is cleared first, so that its start limit does not refuse the restart.
    reset_failed: ResetFailed,
    /// How long the job may take.
    timeout: PromDuration,
}

/// States that a restart may be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum UnitState {
    /// It ended in failure and stays so.
    Failed,
    /// It waits for its next automatic restart.
    Looping,
}

/// Whether systemd's start counter is cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
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
        let restart =
            format!("org.freedesktop.systemd1.Manager.RestartUnit({:?}, \"replace\")", target.name());
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

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move { Ok(self.judge(&job.seen)) })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let manager = ManagerProxy::of(&job.host.systemd).await?;
            restart(&manager, job.target.name(), self.reset_failed).await
        })
    }
}

impl UnitRestart {
    /// Whether a restart may help what was seen. Never restarts what an administrator stopped, what systemd is about
    /// to restart itself, or what would start from a unit file that systemd has not read yet.
    fn judge(&self, seen: &Observation) -> Check {
        let Observation::Unit(unit) = seen else { return Check::Skip("not_a_unit", seen.summary()) };
        let wanted = self.only_if.iter().any(|state| match state {
            UnitState::Failed => unit.is_failed(),
            UnitState::Looping => unit.is_looping(),
        });
        if unit.load_state != "loaded" {
            Check::Skip("not_loaded", format!("its load state is {}", unit.load_state))
        } else if !wanted {
            Check::Skip("not_failed", seen.summary())
        } else if unit.job_queued {
            Check::Skip("job_queued", "systemd has a job queued for it".to_owned())
        } else if unit.need_daemon_reload {
            let detail = "its unit file changed on disk: systemctl daemon-reload first";
            Check::Skip("daemon_reload_needed", detail.to_owned())
        } else {
            Check::Go
        }
    }
}

/// Asks for the restart and waits for its end. The signals are subscribed to before the call, so that a job which
/// ends at once is not missed.
async fn restart(manager: &ManagerProxy<'_>, unit: &str, reset_failed: ResetFailed) -> Result<Done, Failure> {
    match manager.subscribe().await {
        // The connection is kept, and an earlier restart has subscribed it.
        Err(zbus::Error::MethodError(name, ..)) if name.as_str() == ALREADY_SUBSCRIBED => {}
        other => other.map_err(|error| Failure::Refused(error.to_string()))?,
    }
    let mut removed =
        manager.receive_job_removed().await.map_err(|error| Failure::Refused(error.to_string()))?;
    if reset_failed == ResetFailed::Once {
        manager.reset_failed_unit(unit).await.map_err(call_failure)?;
    }
    let mut ended = Vec::new();
    let job = {
        // A stream that nobody reads blocks its connection, the answer to this call included.
        let mut call = std::pin::pin!(manager.restart_unit(unit, "replace"));
        loop {
            tokio::select! {
                job = &mut call => break job.map_err(|error| after_reset(call_failure(error), reset_failed))?,
                Some(signal) = removed.next() => ended.extend(job_end(&signal)),
            }
        }
    };
    loop {
        if let Some((_, result)) = ended.iter().find(|(ended, _)| *ended == job) {
            return verdict(result);
        }
        let Some(signal) = removed.next().await else {
            return Err(Failure::Unknown("the bus closed before the restart job ended".to_owned()));
        };
        ended = job_end(&signal).into_iter().collect();
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

/// The job and its result, from the signal that says it ended.
fn job_end(signal: &JobRemoved) -> Option<(OwnedObjectPath, String)> {
    signal.args().ok().map(|ended| (ended.job, ended.result))
}

/// What a job's result says of the restart (org.freedesktop.systemd1(5), JobRemoved).
fn verdict(result: &str) -> Result<Done, Failure> {
    match result {
        "done" => Ok(Done { detail: "restart job done".to_owned(), ..Done::default() }),
        // It was carried out, and the unit did not come up: whether that helped is for the verification to say.
        "failed" | "timeout" => {
            Ok(Done { detail: format!("restart job ended as {result}"), ..Done::default() })
        }
        // A job that somebody else replaced or cancelled says nothing about the unit: look.
        "canceled" | "skipped" => Err(Failure::Unknown(format!("restart job {result}"))),
        result => Err(Failure::Refused(format!("restart job ended as {result}"))),
    }
}

/// An error that systemd itself sent means that nothing happened; anything else may have been lost on the way.
pub(super) fn call_failure(error: zbus::Error) -> Failure {
    match error {
        zbus::Error::MethodError(name, text, _) => {
            Failure::Refused(format!("{}: {}", name.as_str(), text.unwrap_or_default()))
        }
        other => Failure::Unknown(other.to_string()),
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
                Check::Go => "go",
                Check::Skip(reason, _) => reason,
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
