//! Clears a unit's failed state. Hides the failure and flushes systemd's own start counter, so it is never a repair
//! of a service that should run.

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Action, Check, Done, Failure, Job, Permission, unit_job::call_failure};
use crate::{
    observe::Observation,
    policy::Class,
    systemd::ManagerProxy,
    target::{Kind, Target},
};

pub(super) const NAME: &str = "unit_reset_failed";

/// Clears a failed state (class S1).
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UnitResetFailed {}

impl Action for UnitResetFailed {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::S1
    }

    fn fits(&self, kind: Kind) -> bool {
        kind == Kind::Unit
    }

    fn prepares(&self) -> bool {
        true
    }

    fn plan(&self, target: &Target) -> String {
        format!("org.freedesktop.systemd1.Manager.ResetFailedUnit({:?})", target.name())
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        vec![Permission::Unit("reset-failed")]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            Ok(match &job.seen {
                Observation::Unit(unit) if unit.is_failed() => Check::Go,
                seen => Check::Skip("not_failed", seen.summary()),
            })
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let manager = ManagerProxy::of(&job.host.systemd).await?;
            manager.reset_failed_unit(job.target.name()).await.map_err(call_failure)?;
            Ok(Done { detail: "failed state cleared".to_owned(), ..Done::default() })
        })
    }
}
