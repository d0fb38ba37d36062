//! Mode approve: what would be done is written down, people are asked, and what they approve of is looked at anew
//! before it is done: what is no longer as it was shown is asked about anew.

use std::time::Duration;

use super::{Next, Walker, ladder::Way};
use crate::{
    assess::Sight,
    journal::{Approval, End, Error, Record, Shown},
    notify::Occasion,
    outcome::Outcome,
    policy::{Class, Mode},
    rules::Rule,
};

/// What nobody has decided yet is looked at again this often: it may have become well.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Whether a step may be done.
pub(super) enum Leave {
    /// It may.
    Given,
    /// People approved of something else.
    Changed,
    /// It may not: the word, and why for people.
    Refused(&'static str, &'static str),
}

impl Walker {
    /// Goes on with a remediation of a rule in mode approve that has done nothing yet.
    pub(super) async fn approval(
        &self,
        remediation: &Record,
        rule: &Rule,
        sight: Sight,
        position: usize,
        way: Way,
    ) -> Result<Next, Error> {
        let within = self.assessor.config.approval_within;
        let ended = |reason, detail: String| End::new(Outcome::Blocked, reason, detail, None);
        let end = match self.journal.approval(remediation.id, self.clock.now()).await? {
            Approval::NotAsked => return self.ask(remediation, rule, &sight, within).await,
            Approval::Asked(ago) if ago < within => return Ok(Next::Again((within - ago).min(LOOK_AGAIN))),
            Approval::Given(ago) if ago < within => {
                return self.ladder(remediation, rule, sight, position, way).await;
            }
            Approval::Asked(_) => {
                ended("approval_expired", format!("nobody approved of it within {} s", within.as_secs()))
            }
            Approval::Given(_) => ended(
                "approval_expired",
                format!("it was approved of and could not begin within {} s", within.as_secs()),
            ),
            Approval::Rejected(by) => ended("rejected", format!("rejected by {by}")),
        };
        self.metrics.decision(&rule.name, "refused", &end.reason);
        self.end(remediation, rule, &way, end).await
    }

    /// Whether a step may be done as it is `meant` now: what people approved of may have been something else, and the
    /// rule may have been in another mode when it began.
    pub(super) async fn leave(&self, id: i64, rule: &Rule, meant: Shown) -> Result<Leave, Error> {
        Ok(match rule.mode {
            Mode::Plan => Leave::Refused("plan_mode", "mode is plan"),
            Mode::Approve => match self.journal.approval(id, self.clock.now()).await? {
                Approval::Given(_) if self.journal.was_shown(id, meant).await? => Leave::Given,
                Approval::Given(_) => Leave::Changed,
                _ => Leave::Refused("not_approved", "mode is approve, and nobody approved of it"),
            },
            Mode::Auto => Leave::Given,
        })
    }

    /// Something else would be done than what people approved of, and nothing has been done yet.
    pub(super) async fn ask_anew(
        &self,
        remediation: &Record,
        rule: &Rule,
        sight: &Sight,
        action: &str,
    ) -> Result<Next, Error> {
        let id = remediation.id;
        let why = format!("what {action} would do is not what was approved of");
        tracing::info!(id, rule = rule.name, target = remediation.target, why, "the approval counts no more");
        self.metrics.decision(&rule.name, "refused", "approval_void");
        self.journal.void_approval(id, why, self.clock.now()).await?;
        self.ask(remediation, rule, sight, self.assessor.config.approval_within).await
    }

    /// Asks, unless nothing could be done anyway.
    async fn ask(
        &self,
        remediation: &Record,
        rule: &Rule,
        sight: &Sight,
        within: Duration,
    ) -> Result<Next, Error> {
        let way = self.write_plan(remediation, rule, sight).await?;
        if !way.planned {
            let (reason, detail) = way.first_skip.clone().unwrap_or_default();
            self.metrics.decision(&rule.name, "blocked", &reason);
            let end = End::new(Outcome::Blocked, &reason, detail, None);
            return self.end(remediation, rule, &way, end).await;
        }
        let class = way.last_action.as_ref().map_or(Class::S0, |(_, class)| *class);
        if let Some(refusal) = self.refusal(remediation.id, rule, sight, class).await? {
            self.metrics.decision(&rule.name, "refused", refusal.reason.as_str());
            return self.refused(remediation, rule, refusal, &sight.seen).await;
        }
        let letters = self.letters(Occasion::Approval);
        let dropped = self.journal.ask(remediation.id, way.shown, letters, self.clock.now()).await?;
        self.assessor.notifier.ring(dropped);
        self.metrics.decision(&rule.name, "asked", "none");
        tracing::info!(
            id = remediation.id,
            rule = rule.name,
            target = remediation.target,
            "waiting for approval"
        );
        Ok(Next::Again(within.min(LOOK_AGAIN)))
    }
}
