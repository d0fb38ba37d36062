//! How a remediation ends or is put off, and who hears of it.

use std::time::Duration;

use evenkeel_host::config::format_bytes;

use super::{Next, Walker, ladder::Way};
use crate::{
    admission::{Reason, Refusal},
    assess::Stop,
    clock::rfc3339,
    fullness::Lack,
    journal::{End, Error, Letter, Record, StepRecord, StepState, Write},
    notify::{Notice, Occasion},
    observe::Observation,
    outcome::Outcome,
    rules::Rule,
    target::Kind,
};

/// A limit that ends this soon is waited for; a longer refusal ends the remediation, and the next alert begins another.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// What passes by itself is looked at again this often,
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// and waited for this long after the alert came.
const PATIENCE: Duration = Duration::from_secs(3600);

impl Walker {
    /// The ladder has no more steps, or the target is no longer in need.
    pub(super) async fn used_up(
        &self,
        remediation: &Record,
        rule: &Rule,
        seen: Observation,
        way: Way,
    ) -> Result<Next, Error> {
        let end = verdict(rule, seen, &way);
        if !way.acted && rule.acts() {
            self.metrics.decision(&rule.name, "refused", &end.reason);
        }
        self.end(remediation, rule, &way, end).await
    }

    /// Something said no before anything was done.
    pub(super) async fn refused(
        &self,
        remediation: &Record,
        rule: &Rule,
        refusal: Refusal,
        seen: &Observation,
    ) -> Result<Next, Error> {
        if let Some(next) = self.wait(remediation, &refusal).await? {
            return Ok(next);
        }
        let mut end =
            End::new(refusal.reason.outcome(), refusal.reason.as_str(), refusal.detail, Some(seen.clone()));
        end.next_allowed_wall_ms = Some(self.clock.now().wall_after(refusal.wait));
        self.finish(remediation, Some(rule), &Way::default(), end).await
    }

    /// Waits for what ends soon or passes by itself; `None` when it is not worth waiting for.
    pub(super) async fn wait(&self, remediation: &Record, refusal: &Refusal) -> Result<Option<Next>, Error> {
        let now = self.clock.now();
        let again = match refusal.reason {
            Reason::Limited | Reason::FleetLimited if refusal.wait <= WAIT_MAX => refusal.wait,
            // Until everything that came at once has been looked at.
            Reason::Storm if refusal.wait <= LOOK_AGAIN => refusal.wait,
            reason
                if reason.is_passing() && self.journal.age(remediation.id, now.clone()).await? < PATIENCE =>
            {
                refusal.wait.min(LOOK_AGAIN)
            }
            _ => return Ok(None),
        };
        let next_allowed = now.wall_after(refusal.wait);
        self.journal.wait(remediation.id, refusal.clone(), next_allowed).await?;
        tracing::info!(
            id = remediation.id,
            rule = remediation.rule,
            target = remediation.target,
            reason = refusal.reason.as_str(),
            detail = refusal.detail,
            next_allowed = rfc3339(next_allowed),
            "waiting"
        );
        Ok(Some(Next::Again(again)))
    }

    /// A look said that nothing is to be done, or nothing more.
    pub(super) async fn stopped(
        &self,
        remediation: &Record,
        rule: &Rule,
        stop: Stop,
        way: Way,
    ) -> Result<Next, Error> {
        match stop {
            Stop { outcome, reason, detail, seen } if !way.acted => {
                let decision = if outcome == Outcome::NotNeeded { "not_needed" } else { "refused" };
                self.metrics.decision(&rule.name, decision, reason);
                self.end(remediation, rule, &way, End::new(outcome, reason, detail, seen)).await
            }
            Stop { outcome: Outcome::NotNeeded, seen: Some(seen), .. } => {
                self.used_up(remediation, rule, seen, way).await
            }
            Stop { reason, detail, seen, .. } => {
                self.end(remediation, rule, &way, End::new(Outcome::Unknown, reason, detail, seen)).await
            }
        }
    }

    /// The configuration no longer has the rule, or no longer admits the target. What was done until then is not known
    /// to have helped.
    pub(super) async fn not_configured(&self, remediation: &Record, way: &Way) -> Result<Next, Error> {
        let outcome = if way.acted { Outcome::Unknown } else { Outcome::Ignored };
        let detail = "the configuration no longer has this rule or no longer admits this target";
        self.finish(remediation, None, way, End::new(outcome, "not_configured", detail, None)).await
    }

    pub(super) async fn end(
        &self,
        remediation: &Record,
        rule: &Rule,
        way: &Way,
        mut end: End,
    ) -> Result<Next, Error> {
        let unwell = end.outcome.escalates()
            || matches!(end.outcome, Outcome::Partial | Outcome::Blocked | Outcome::Planned);
        if unwell && let Some(shortfall) = &way.shortfall {
            end.detail += &format!("; {shortfall}");
        }
        if unwell && let Some(after) = end.after.take() {
            end.after = Some(self.assessor.diagnosed(after).await);
        }
        // A disk that could not be seen is not walked through either.
        if unwell && rule.selector.kind == Kind::Filesystem && end.reason != "probe_unknown" {
            let filling = self.assessor.eyes.what_fills(&rule.name, &remediation.target).await;
            let lack = self.lack(rule, &remediation.target, end.after.as_ref()).await;
            end.detail += &filling.clauses(lack);
        }
        end.next_allowed_wall_ms = way.next_allowed_wall_ms;
        self.finish(remediation, Some(rule), way, end).await
    }

    /// What a filesystem lacks at the end.
    async fn lack(&self, rule: &Rule, mount_point: &str, after: Option<&Observation>) -> Lack {
        if let Some(seen) = after {
            return rule.lack(seen).unwrap_or_default();
        }
        let Ok(target) = rule.selector.admit(mount_point) else { return Lack::default() };
        let seen = self.assessor.eyes.observe(&target).await.ok();
        seen.and_then(|seen| rule.lack(&seen)).unwrap_or_default()
    }

    /// Records the end, counts it, and tells whoever wants to know.
    async fn finish(
        &self,
        remediation: &Record,
        rule: Option<&Rule>,
        way: &Way,
        end: End,
    ) -> Result<Next, Error> {
        // What nobody configured is told only when it acted.
        let is_told = rule.is_some() || way.acted;
        let write = if is_told { self.letters(Occasion::Ended(end.outcome)) } else { nobody() };
        let ended = self.journal.end(remediation.id, end.clone(), write, self.clock.now()).await?;
        self.assessor.notifier.ring(ended.dropped);
        let action = way.last_action.as_ref().map_or("none", |(action, _)| action);
        let class = way.last_action.as_ref().map_or("none", |(_, class)| class.as_str());
        self.metrics.ended(&remediation.rule, action, class, end.outcome);
        tracing::info!(
            id = ended.id,
            rule = remediation.rule,
            target = remediation.target,
            outcome = end.outcome.as_str(),
            reason = end.reason,
            detail = end.detail,
            repeats = ended.id != remediation.id,
            "remediation ended"
        );
        Ok(Next::Ended)
    }

    /// The messages about a remediation, made when it is known how it stands.
    pub(super) fn letters(&self, occasion: Occasion) -> Write {
        let notifier = self.assessor.notifier.clone();
        let expires_wall_ms = (occasion == Occasion::Approval)
            .then(|| self.clock.now().wall_after(self.assessor.config.approval_within));
        Box::new(move |record: &Record, steps: &[StepRecord]| {
            notifier.letters(&Notice { expires_wall_ms, ..notice(record, occasion, steps) })
        })
    }
}

/// Messages to nobody.
fn nobody() -> Write {
    Box::new(|_, _| Vec::<Letter>::new())
}

/// What the way down the ladder and the last look come to.
fn verdict(rule: &Rule, seen: Observation, way: &Way) -> End {
    if !rule.acts() {
        return End::new(Outcome::Reported, "reported", seen.summary(), Some(seen));
    }
    if !way.acted {
        let (reason, detail) = way.first_skip.clone().unwrap_or_default();
        return End::new(Outcome::Blocked, &reason, detail, Some(seen));
    }
    let (outcome, reason, detail) = if rule.selector.kind == Kind::Filesystem && !rule.needs(&seen) {
        (Outcome::Partial, "below_needed", "better, and not as good as the mark")
    } else if way.unknown {
        (Outcome::Unknown, "unanswered", "what an interrupted or unanswered step did is not known")
    } else if way.done {
        (Outcome::Ineffective, "steps_used_up", "it was done, and it is not well")
    } else {
        (Outcome::Failed, "refused_by_host", "the host refused it")
    };
    let detail = match &way.first_skip {
        Some((_, why)) => format!("{detail}; not done: {why}"),
        None => detail.to_owned(),
    };
    End::new(outcome, reason, detail, Some(seen))
}

pub(super) fn notice(ended: &Record, occasion: Occasion, steps: &[StepRecord]) -> Notice {
    let steps = steps.iter().map(|step| {
        let mut text = format!("{} [{}]: {}", step.action, step.class.as_str(), step.state.as_str());
        if let Some(reason) = &step.reason {
            text += &format!(" ({reason})");
        }
        if let Some(freed) = step.measured_freed_bytes.and_then(|bytes| u64::try_from(bytes).ok()) {
            text += &format!(", freed {}", format_bytes(freed));
        }
        let first_line = step.detail.as_deref().and_then(|detail| detail.lines().next());
        match step.state {
            StepState::Planned => {
                text += &format!(": {}", step.plan);
                if let Some(changes) = first_line {
                    text += &format!(" ({changes})");
                }
            }
            // Why is what a person has to know.
            StepState::Failed | StepState::Unknown if step.class.acts() => {
                text += &first_line.map_or_else(String::new, |why| format!(": {why}"));
            }
            _ => {}
        }
        text
    });
    let detail = ended.detail.as_deref().filter(|detail| !detail.is_empty());
    let last = ended.after.as_ref().or(ended.before.as_ref());
    Notice {
        cure: last.and_then(Observation::why).and_then(|why| why.cure.clone()),
        id: ended.id,
        rule: ended.rule.clone(),
        kind: ended.kind.clone(),
        target: ended.target.clone(),
        occasion,
        reason: ended.reason.clone().unwrap_or_default(),
        summary: detail.map_or_else(|| occasion.as_str().to_owned(), str::to_owned),
        before: ended.before.as_ref().map(Observation::summary),
        after: ended.after.as_ref().map(Observation::summary),
        steps: steps.collect(),
        since_wall_ms: Some(ended.received_wall_ms),
        next_allowed_wall_ms: ended.next_allowed_wall_ms,
        expires_wall_ms: None,
    }
}
