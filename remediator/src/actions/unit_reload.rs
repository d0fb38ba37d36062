//! Has a running service read its own configuration again (`ExecReload=`).

use std::time::Duration;

use evenkeel_host::config::PromDuration;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Action, Check, Done, Failure, Job, Permission,
    unit_job::{self, Verb},
};
use crate::{
    observe::Observation,
    policy::Class,
    systemd::{ManagerProxy, UnitProxy, asking},
    target::{Kind, Target},
};

pub(super) const NAME: &str = "unit_reload";

/// Has a running service read its configuration (class S2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UnitReload {
    /// How long the job may take.
    timeout: PromDuration,
}

impl Default for UnitReload {
    fn default() -> Self {
        Self { timeout: PromDuration::new(Duration::from_secs(90)) }
    }
}

impl Action for UnitReload {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::S2
    }

    fn fits(&self, kind: Kind) -> bool {
        kind == Kind::Unit
    }

    /// Nothing shows from outside that a service works with an old configuration: the alert alone says so.
    fn is_for(&self, seen: &Observation) -> bool {
        matches!(seen, Observation::Unit(unit) if unit.active_state == "active")
    }

    fn timeout(&self) -> Duration {
        self.timeout.get()
    }

    fn plan(&self, target: &Target) -> String {
        Verb::Reload.plan(target.name())
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        vec![Permission::Unit("reload")]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            let check = unit_job::judge(&job.seen, "not_active", |unit| unit.active_state == "active");
            if check != Check::Go {
                return Ok(check);
            }
            let unit = UnitProxy::of(&job.host.systemd, job.target.name()).await?;
            Ok(if unit.can_reload().await.map_err(asking)? {
                Check::Go
            } else {
                Check::Skip("no_reload", "its unit has no ExecReload=".to_owned())
            })
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let manager = ManagerProxy::of(&job.host.systemd).await?;
            unit_job::carry_out(&manager, Verb::Reload, job.target.name()).await
        })
    }
}
