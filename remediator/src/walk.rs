//! One remediation's straight way: look → judge → reserve → act → verify, step by step until the target is well.
//! Every transition that matters is on disk before it happens. Here: from wherever it stands to the ladder; the ladder
//! itself is in `ladder`, the ends in `ending`.

mod approval;
mod ending;
mod ladder;
mod room;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::ladder::{Effect, Way};
use crate::{
    admission::{Reason, Refusal},
    api::{
        alertmanager::{self, Standing},
        prometheus,
    },
    assess::{Assessor, Sight, Stop},
    clock::{Clock, Moment},
    fleet::member::Member,
    journal::{End, Error, Journal, Phase, Record, Renamed, StepState},
    metrics::Metrics,
    outcome::Outcome,
    policy::{Class, Mode},
    rules::Rule,
    target::Target,
};

/// What walking one remediation needs.
#[derive(Clone)]
pub struct Walker {
    /// Looks and judges.
    pub assessor: Assessor,
    /// The durable memory.
    pub journal: Journal,
    /// The time.
    pub clock: Clock,
    /// Counts what happens.
    pub metrics: Metrics,
    /// Between two looks of a verification.
    pub pace: Duration,
    /// How long freed space may take to show.
    pub settle: Duration,
    /// When the process began.
    pub started: Option<Moment>,
    /// Set when the process is to end.
    pub stop: CancellationToken,
    /// What this host shares budgets with, where it is not alone.
    pub fleet: Option<Arc<Member>>,
}

/// What comes after walking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It has an outcome.
    Ended,
    /// It waits, for a limit or for its target under another name: come again after this time.
    Again(Duration),
    /// The process ends; the next one goes on where this one left.
    Left,
}

impl Walker {
    /// Goes on with an open remediation from wherever it stands.
    ///
    /// # Errors
    /// When the state cannot be written; the remediation stays open and is taken up again.
    pub async fn walk(&self, id: i64) -> Result<Next, Error> {
        let next = self.walk_on(id).await;
        if let Some(fleet) = &self.fleet {
            fleet.leave(id).await;
        }
        next
    }

    async fn walk_on(&self, id: i64) -> Result<Next, Error> {
        let Some(remediation) = self.journal.remediation(id).await?.filter(|known| known.outcome.is_none())
        else {
            return Ok(Next::Ended);
        };
        self.put_in_order(&remediation).await?;
        let way = self.way(&remediation).await?;
        let Some((rule, target)) = self.configured(&remediation) else {
            return self.not_configured(&remediation, &way).await;
        };
        let mut position = remediation.step;
        let interrupted = matches!(remediation.phase, Phase::Running | Phase::Verifying);
        // Whatever was done before is verified first: it may have helped meanwhile.
        if interrupted || way.acted {
            let before = remediation.before.as_ref();
            let effect = if !way.done && ladder::proves_nothing(rule, before) {
                Effect::NotWell(None)
            } else {
                self.effect(rule, &target, before, way.unknown).await
            };
            match effect {
                Effect::Left => return Ok(Next::Left),
                Effect::Well(after) => {
                    let end = End::new(Outcome::Succeeded, "verified", "", Some(after));
                    return self.end(&remediation, rule, &way, end).await;
                }
                // An interrupted step is never done again blindly; the next one may be.
                Effect::NotWell(_) => position += usize::from(interrupted),
            }
        }
        match self.look(rule, &target).await {
            Err(stop) => self.stopped(&remediation, rule, stop, way).await,
            Ok(sight) if !way.acted && sight.target != target => {
                self.rename(remediation.id, &sight.target).await
            }
            Ok(sight) if !self.same_ladder(remediation.id, rule, &sight).await? => {
                if way.acted {
                    let detail = "the rule's steps changed after this began, and it is not well";
                    let end = End::new(Outcome::Unknown, "rule_changed", detail, Some(sight.seen));
                    return self.end(&remediation, rule, &way, end).await;
                }
                self.journal.forget_steps(remediation.id).await?;
                self.judged(&remediation, rule, sight, 0, way).await
            }
            Ok(sight) => self.judged(&remediation, rule, sight, position, way).await,
        }
    }

    /// Looks at the target, and notes how long that took.
    async fn look(&self, rule: &Rule, target: &Target) -> Result<Sight, Stop> {
        let begun = Instant::now();
        let sight = self.assessor.look(rule, target).await;
        self.metrics.probe_took(target.kind(), begun.elapsed());
        sight
    }

    /// Walks on a target that is in need: in words only, or down the ladder.
    async fn judged(
        &self,
        remediation: &Record,
        rule: &Rule,
        sight: Sight,
        position: usize,
        way: Way,
    ) -> Result<Next, Error> {
        // What was said while it waited counts: an alert that somebody has silenced meanwhile is left alone.
        if rule.acts()
            && !way.acted
            && rule.mode > Mode::Plan
            && has_waited(remediation)
            && let Standing::Muted(detail) =
                alertmanager::standing(&self.assessor.config, rule, remediation, &self.metrics).await
        {
            let wait = self.assessor.config.reconcile.interval;
            let refusal = Refusal { reason: Reason::Silenced, scope: "rule_target", detail, wait };
            self.metrics.decision(&rule.name, "refused", refusal.reason.as_str());
            return self.refused(remediation, rule, refusal, &sight.seen).await;
        }
        // A rule that only observes does so in every mode, and what has begun is not begun again.
        match rule.mode {
            _ if !rule.acts() || way.acted => self.ladder(remediation, rule, sight, position, way).await,
            Mode::Plan => self.plan(remediation, rule, &sight).await,
            Mode::Approve => self.approval(remediation, rule, sight, position, way).await,
            Mode::Auto => self.ladder(remediation, rule, sight, position, way).await,
        }
    }

    /// Whether the rule's hours, the host itself and Prometheus let a step of this class begin now.
    async fn gates(&self, rule: &Rule, class: Class) -> Result<(), Refusal> {
        self.assessor.gates(rule, class, self.started.as_ref(), &self.clock.now()).await?;
        prometheus::admit(&self.assessor.config, rule, class, Some(&self.metrics)).await
    }

    /// The rule and the target of a remediation, if the configuration still has and admits them.
    fn configured(&self, remediation: &Record) -> Option<(&Rule, Target)> {
        let rule = self.assessor.config.rules.iter().find(|rule| rule.name == remediation.rule)?;
        let same_kind = remediation.kind() == Some(rule.selector.kind);
        let target = same_kind.then(|| rule.selector.admit(&remediation.target).ok())??;
        Some((rule, target))
    }

    /// What an earlier process left: a start that was counted and never made is taken back; a step that was running
    /// becomes one whose effect is unknown.
    async fn put_in_order(&self, remediation: &Record) -> Result<(), Error> {
        let Some((step, mut record)) = self.journal.interrupted_step(remediation.id).await? else {
            return Ok(());
        };
        if record.state == StepState::Reserved {
            return self.journal.release(remediation.id, step).await;
        }
        record.state = StepState::Unknown;
        record.reason = Some("interrupted".to_owned());
        record.detail = Some("the remediator ended, or could not write, while this ran".to_owned());
        self.journal.verifying(remediation.id, step, record, self.clock.now()).await
    }

    /// What is on record of the way so far.
    async fn way(&self, remediation: &Record) -> Result<Way, Error> {
        let mut way = Way { acted: remediation.acted, ..Way::default() };
        for step in self.journal.steps(remediation.id).await?.iter().filter(|step| step.class.acts()) {
            match step.state {
                StepState::Done | StepState::Failed | StepState::Unknown => way.did(step),
                // Behind it for good; what is ahead is judged anew.
                StepState::Skipped if step.position < remediation.step => {
                    let text = |text: &Option<String>| text.clone().unwrap_or_default();
                    way.left_out(&step.action, step.class, &text(&step.reason), &text(&step.detail));
                }
                _ => {}
            }
        }
        Ok(way)
    }

    /// Whether the steps on record are still those of the rule, so that a position means the same.
    async fn same_ladder(&self, id: i64, rule: &Rule, sight: &Sight) -> Result<bool, Error> {
        let steps = self.journal.steps(id).await?;
        Ok(steps.iter().all(|recorded| {
            let step = rule.steps.get(recorded.position).map(|step| &step.0);
            step.is_some_and(|step| {
                step.name() == recorded.action && step.plan(&sight.target) == recorded.plan
            })
        }))
    }

    /// Goes on under the target's canonical name, so that an alias is no second target.
    async fn rename(&self, id: i64, target: &Target) -> Result<Next, Error> {
        match self.journal.rename(id, target.name().to_owned(), self.clock.now()).await? {
            Renamed::Renamed => Ok(Next::Again(Duration::ZERO)),
            Renamed::Absorbed => Ok(Next::Ended),
        }
    }
}

/// Whether the alert may be another than when it came: it waited for a limit, a gate or a person, or was taken up again.
fn has_waited(remediation: &Record) -> bool {
    remediation.deliveries == 0
        || remediation.next_allowed_wall_ms.is_some()
        || remediation.decided_by.is_some()
}
