//! How a remediation ends or is put off, and who hears of it.

use std::time::Duration;

use evenkeel_host::config::format_bytes;

use super::{Next, Walker, ladder::Way};
use crate::{
    admission::Refusal,
    assess::Stop,
    clock::rfc3339,
    helper,
    journal::{End, Error, Record, StepRecord},
    notify::Notice,
    observe::Observation,
    outcome::Outcome,
    rules::Rule,
    target::Kind,
};

/// A limit that ends this soon is waited for; a longer refusal ends the remediation, and the next alert begins another.
const WAIT_MAX: Duration = Duration::from_secs(300);

impl Walker {
    /// The ladder has no more steps, or the target is no longer in need.
    pub(super) async fn used_up(
        &self,
        remediation: &Record,
        rule: &Rule,
        seen: Observation,
        way: Way,
    ) -> Result<Next, Error> {
        let (outcome, reason, detail) = verdict(rule, &seen, &way);
        if !way.acted && rule.acts() {
            self.metrics.decision(&rule.name, "refused", &reason);
        }
        self.end(remediation, rule, &way, outcome, &reason, &detail, Some(seen)).await
    }

    /// A limit, the cooldown or the breaker said no before anything was done.
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
        let outcome = if refusal.reason == "breaker" { Outcome::Blocked } else { Outcome::Limited };
        let end = End {
            outcome,
            reason: refusal.reason.to_owned(),
            detail: refusal.detail,
            next_allowed_wall_ms: Some(self.clock.now().wall_after(refusal.wait)),
            after: Some(seen.clone()),
        };
        self.finish(remediation, Some(rule), &Way::default(), end).await
    }

    /// Waits for a limit that ends soon; `None` when it is not worth waiting for.
    pub(super) async fn wait(&self, remediation: &Record, refusal: &Refusal) -> Result<Option<Next>, Error> {
        if refusal.reason != "limited" || refusal.wait > WAIT_MAX {
            return Ok(None);
        }
        let next_allowed = self.clock.now().wall_after(refusal.wait);
        self.journal.wait(remediation.id, refusal.clone(), next_allowed).await?;
        tracing::info!(
            id = remediation.id,
            rule = remediation.rule,
            target = remediation.target,
            detail = refusal.detail,
            next_allowed = rfc3339(next_allowed),
            "waiting for a limit"
        );
        Ok(Some(Next::Again(refusal.wait)))
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
                self.end(remediation, rule, &way, outcome, reason, &detail, seen).await
            }
            Stop { outcome: Outcome::NotNeeded, seen: Some(seen), .. } => {
                self.used_up(remediation, rule, seen, way).await
            }
            Stop { reason, detail, seen, .. } => {
                self.end(remediation, rule, &way, Outcome::Unknown, reason, &detail, seen).await
            }
        }
    }

    /// The configuration no longer has the rule, or no longer admits the target. What was done until then is not known
    /// to have helped.
    pub(super) async fn not_configured(&self, remediation: &Record, way: &Way) -> Result<Next, Error> {
        let end = End {
            outcome: if way.acted { Outcome::Unknown } else { Outcome::Ignored },
            reason: "not_configured".to_owned(),
            detail: "the configuration no longer has this rule or no longer admits this target".to_owned(),
            next_allowed_wall_ms: None,
            after: None,
        };
        self.finish(remediation, None, way, end).await
    }

    #[expect(clippy::too_many_arguments, reason = "an end has these parts, and every caller has all of them")]
    pub(super) async fn end(
        &self,
        remediation: &Record,
        rule: &Rule,
        way: &Way,
        outcome: Outcome,
        reason: &str,
        detail: &str,
        after: Option<Observation>,
    ) -> Result<Next, Error> {
        let mut detail = detail.to_owned();
        let unwell =
            outcome.escalates() || matches!(outcome, Outcome::Partial | Outcome::Blocked | Outcome::Planned);
        if unwell && let Some(shortfall) = &way.shortfall {
            detail += &format!("; {shortfall}");
        }
        // A disk that could not be seen is not walked through either.
        if unwell && rule.selector.kind == Kind::Filesystem && reason != "probe_unknown" {
            detail += &self.what_fills(&rule.name, &remediation.target).await;
        }
        let end = End {
            outcome,
            reason: reason.to_owned(),
            detail,
            next_allowed_wall_ms: way.next_allowed_wall_ms,
            after,
        };
        self.finish(remediation, Some(rule), way, end).await
    }

    /// Records the end, counts it, and tells whoever wants to know.
    async fn finish(
        &self,
        remediation: &Record,
        rule: Option<&Rule>,
        way: &Way,
        end: End,
    ) -> Result<Next, Error> {
        let id = self.journal.end(remediation.id, end.clone(), self.clock.now()).await?;
        let action = way.last_action.as_ref().map_or("none", |(action, _)| action);
        let class = way.last_action.as_ref().map_or("none", |(_, class)| class.as_str());
        self.metrics.ended(&remediation.rule, action, class, end.outcome);
        let repeats = id != remediation.id;
        tracing::info!(
            id,
            rule = remediation.rule,
            target = remediation.target,
            outcome = end.outcome.as_str(),
            reason = end.reason,
            detail = end.detail,
            repeats,
            "remediation ended"
        );
        // What only repeats has been told already; what nobody configured is told only when it acted.
        if !repeats
            && (rule.is_some() || way.acted)
            && let Some(ended) = self.journal.remediation(id).await?
        {
            let steps = self.journal.steps(id).await?;
            self.assessor.notifier.tell(&notice(&ended, end.outcome, &steps));
        }
        Ok(Next::Ended)
    }

    /// The answer to "what fills this disk", as a clause; empty when it could not be told.
    async fn what_fills(&self, rule: &str, mount_point: &str) -> String {
        let largest = helper::largest(&self.assessor.host, rule, mount_point, 3).await;
        let entries: Vec<String> = largest
            .iter()
            .map(|(path, bytes)| format!("{} {}", path.display(), format_bytes(*bytes)))
            .collect();
        if entries.is_empty() { String::new() } else { format!("; it is filled by {}", entries.join(", ")) }
    }
}

/// What the way down the ladder and the last look come to.
fn verdict(rule: &Rule, seen: &Observation, way: &Way) -> (Outcome, String, String) {
    if !rule.acts() {
        return (Outcome::Reported, "reported".to_owned(), seen.summary());
    }
    if !way.acted {
        let (reason, detail) = way.first_skip.clone().unwrap_or_default();
        return (Outcome::Blocked, reason, detail);
    }
    let (outcome, reason, detail) = if rule.selector.kind == Kind::Filesystem && !rule.needs(seen) {
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
    (outcome, reason.to_owned(), detail)
}

fn notice(ended: &Record, outcome: Outcome, steps: &[StepRecord]) -> Notice {
    let steps = steps.iter().map(|step| {
        let mut text = format!("{} [{}]: {}", step.action, step.class.as_str(), step.state.as_str());
        if let Some(reason) = &step.reason {
            text += &format!(" ({reason})");
        }
        if let Some(freed) = step.measured_freed_bytes.and_then(|bytes| u64::try_from(bytes).ok()) {
            text += &format!(", freed {}", format_bytes(freed));
        }
        text
    });
    let detail = ended.detail.as_deref().filter(|detail| !detail.is_empty());
    Notice {
        id: ended.id,
        rule: ended.rule.clone(),
        kind: ended.kind.clone(),
        target: ended.target.clone(),
        outcome,
        reason: ended.reason.clone().unwrap_or_default(),
        summary: detail.map_or_else(|| outcome.to_string(), str::to_owned),
        before: ended.before.as_ref().map(Observation::summary),
        after: ended.after.as_ref().map(Observation::summary),
        steps: steps.collect(),
        next_allowed: ended.next_allowed_wall_ms.map(rfc3339),
    }
}
