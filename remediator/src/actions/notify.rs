//! Tells the configured receivers about the alert, as a step of its own: for rules that only observe.

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Action, Check, Done, Failure, Job, Permission};
use crate::{
    notify::{Notice, Occasion},
    outcome::Outcome,
    policy::Class,
    target::{Kind, Target},
};

pub(super) const NAME: &str = "notify";

/// Tells every receiver under `notify` of the alert (class S0).
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Notify {}

impl Action for Notify {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::S0
    }

    fn fits(&self, _: Kind) -> bool {
        true
    }

    fn plan(&self, _: &Target) -> String {
        "POST to every receiver under `notify`".to_owned()
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        Vec::new()
    }

    fn check<'a>(&'a self, _: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async { Ok(Check::Go) })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let notice = Notice {
                id: job.id,
                rule: job.rule.clone(),
                kind: job.target.kind().as_str().to_owned(),
                target: job.target.name().to_owned(),
                occasion: Occasion::Ended(Outcome::Reported),
                reason: "notify".to_owned(),
                summary: job.seen.summary(),
                before: Some(job.seen.summary()),
                after: None,
                cure: job.seen.why().and_then(|why| why.cure.clone()),
                steps: Vec::new(),
                since_wall_ms: None,
                next_allowed_wall_ms: None,
                expires_wall_ms: None,
            };
            let told = job.notifier.tell_all(&notice).await;
            let receivers =
                told.map_err(|error| Failure::Refused(format!("it cannot be stored: {error}")))?;
            Ok(Done { detail: format!("queued for {receivers} receiver(s)"), ..Done::default() })
        })
    }
}
