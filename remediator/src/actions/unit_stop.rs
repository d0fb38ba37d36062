//! Stops a unit: what a host can do against a service that fills its disk or wears it down, without deleting anything.

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
    observe::{Observation, Unit},
    policy::Class,
    systemd::{ManagerProxy, UnitProxy, asking},
    target::{Kind, Target},
};

pub(super) const NAME: &str = "unit_stop";

/// Stops a unit (class S2). Not one whose socket or timer would start it again.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UnitStop {
    /// How long the job may take.
    timeout: PromDuration,
}

impl Default for UnitStop {
    fn default() -> Self {
        // systemd gives a service 90 s to end before it kills it (TimeoutStopSec=).
        Self { timeout: PromDuration::new(Duration::from_secs(120)) }
    }
}

impl Action for UnitStop {
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
        matches!(seen, Observation::Unit(unit) if is_up(unit))
    }

    fn timeout(&self) -> Duration {
        self.timeout.get()
    }

    fn plan(&self, target: &Target) -> String {
        Verb::Stop.plan(target.name())
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        vec![Permission::Unit("stop")]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            let Observation::Unit(seen) = &job.seen else {
                return Ok(Check::Skip("not_a_unit", job.seen.summary()));
            };
            // Unlike a start, a stop needs no unit file that is read and in order.
            if !is_up(seen) {
                return Ok(Check::Skip("not_up", job.seen.summary()));
            }
            // The job of a unit that loops is its next start.
            if seen.job_queued && !seen.is_looping() {
                return Ok(Check::Skip("job_queued", "systemd has a job queued for it".to_owned()));
            }
            let unit = UnitProxy::of(&job.host.systemd, job.target.name()).await?;
            for trigger in unit.triggered_by().await.map_err(asking)? {
                let state = job.host.systemd.unit(&trigger).await;
                let state = state.map_err(|error| Failure::Refused(format!("systemd: {error}")))?;
                if state.active_state == "active" {
                    let detail = format!("{trigger} would start it again: it would have to be stopped first");
                    return Ok(Check::Skip("triggered", detail));
                }
            }
            Ok(Check::Go)
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let manager = ManagerProxy::of(&job.host.systemd).await?;
            unit_job::carry_out(&manager, Verb::Stop, job.target.name()).await
        })
    }
}

/// Whether there is anything to stop.
fn is_up(unit: &Unit) -> bool {
    matches!(unit.active_state.as_str(), "active" | "activating" | "reloading" | "refreshing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_only_what_is_up() {
        let up = |state: &str| is_up(&Unit { active_state: state.to_owned(), ..Unit::default() });
        assert!(["active", "activating", "reloading"].into_iter().all(up));
        assert!(!["inactive", "failed", "deactivating", ""].into_iter().any(up));
    }
}
