//! One remediation's straight way: look → judge → reserve → act → verify, step by step until the target is well.
//! Every transition that matters is on disk before it happens.

use std::time::Duration;

use evenkeel_host::config::format_bytes;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    actions::{Check, Done, Failure, Job, Step},
    admission::Refusal,
    assess::{Assessor, Sight, Stop, record},
    clock::{Clock, rfc3339},
    journal::{Admission, End, Error, Journal, Phase, Record, Request, StepRecord, StepState},
    metrics::Metrics,
    notify::Notice,
    observe::{self, Observation},
    outcome::Outcome,
    policy::{Class, Mode},
    rules::Rule,
    target::Kind,
    verify::{Verdict, Verification},
};

/// A refusal that ends this soon is waited for; a longer one ends the remediation, and the next alert begins another.
const WAIT_MAX: Duration = Duration::from_secs(300);

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
    /// Set when the process is to end.
    pub stop: CancellationToken,
}

/// What comes after walking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It has an outcome.
    Ended,
    /// It waits for a limit: come again after this time.
    Again(Duration),
    /// The process ends; the next one goes on where this one left.
    Left,
}

/// Whether acting helped.
enum Effect {
    Well(Observation),
    NotWell(Option<Observation>),
    Left,
}

/// What happened on the way down the ladder.
#[derive(Default)]
struct Way {
    acted: bool,
    unknown: bool,
    done: bool,
    planned: bool,
    last_action: Option<Step>,
    first_skip: Option<(String, String)>,
}

impl Way {
    fn skipped(&mut self, step: &Step, reason: &str, detail: &str) {
        if step.0.class().acts() && self.first_skip.is_none() {
            self.first_skip = Some((reason.to_owned(), format!("{}: {detail}", step.0.name())));
        }
    }
}

impl Walker {
    /// Goes on with an open remediation from wherever it stands.
    ///
    /// # Errors
    /// When the state cannot be written; the remediation stays open and is taken up again.
    pub async fn walk(&self, remediation: &Record) -> Result<Next, Error> {
        let rules = &self.assessor.config.rules;
        let rule = rules.iter().find(|rule| rule.name == remediation.rule);
        let target = rule.and_then(|rule| {
            let same_kind = remediation.kind() == Some(rule.selector.kind);
            same_kind.then(|| rule.selector.admit(&remediation.target).ok()).flatten()
        });
        let (Some(rule), Some(target)) = (rule, target) else {
            let detail = "the configuration no longer has this rule or no longer admits this target";
            return self
                .end(remediation, None, &Way::default(), Outcome::Ignored, "not_configured", detail, None)
                .await;
        };
        let mut way = Way { acted: remediation.acted, ..Way::default() };
        let mut position = remediation.step;
        match remediation.phase {
            Phase::Received | Phase::Ended => {}
            Phase::Reserved => {
                // Reserved, and never called: as if it had not been admitted.
                if let Some((step, _)) = self.journal.interrupted_step(remediation.id).await? {
                    self.journal.release(remediation.id, step).await?;
                }
            }
            Phase::Running | Phase::Verifying => {
                way.last_action = rule.steps.get(remediation.step).cloned();
                self.interrupted(remediation.id, &mut way).await?;
                match self.effect(rule, &target, &remediation.before).await {
                    Effect::Left => return Ok(Next::Left),
                    Effect::Well(after) => {
                        let outcome = Outcome::Succeeded;
                        return self
                            .end(remediation, Some(rule), &way, outcome, "verified", "", Some(after))
                            .await;
                    }
                    // The interrupted step is never done again blindly; the next one may be.
                    Effect::NotWell(_) => position += 1,
                }
            }
        }
        match self.assessor.look(rule, &target).await {
            Err(stop) if !way.acted => self.stopped(remediation, rule, stop).await,
            // After acting, "not in need" is better than the mark of need and not as good as done.
            Err(Stop { outcome: Outcome::NotNeeded, detail, seen, .. }) => {
                self.end(remediation, Some(rule), &way, Outcome::Partial, "below_needed", &detail, seen).await
            }
            Err(stop) => {
                let outcome = Outcome::Unknown;
                self.end(remediation, Some(rule), &way, outcome, stop.reason, &stop.detail, stop.seen).await
            }
            // A rule that only observes does so in every mode.
            Ok(sight) if rule.mode == Mode::Plan && rule.acts() && !way.acted => {
                self.plan(remediation, rule, &sight).await
            }
            Ok(sight) => self.ladder(remediation, rule, sight, position, way).await,
        }
    }

    /// A step that was running when the process ended becomes one whose effect is unknown.
    async fn interrupted(&self, id: i64, way: &mut Way) -> Result<(), Error> {
        if let Some((step, mut record)) = self.journal.interrupted_step(id).await? {
            record.state = StepState::Unknown;
            record.reason = Some("interrupted".to_owned());
            record.detail = Some("the remediator ended while this ran".to_owned());
            self.journal.verifying(id, step, record, self.clock.now()).await?;
        }
        let steps = self.journal.steps(id).await?;
        way.unknown = steps.iter().any(|step| step.state == StepState::Unknown);
        way.done = steps.iter().any(|step| step.class.acts() && step.state == StepState::Done);
        Ok(())
    }

    /// Plan mode: records what would be done, and does nothing.
    async fn plan(&self, remediation: &Record, rule: &Rule, sight: &Sight) -> Result<Next, Error> {
        self.journal.set_before(remediation.id, sight.seen.clone()).await?;
        let mut way = Way::default();
        for (record, step) in
            self.assessor.plan(remediation.id, rule, sight).await.into_iter().zip(&rule.steps)
        {
            if record.state == StepState::Planned {
                way.planned |= step.0.class().acts() || !rule.acts();
                way.last_action.get_or_insert_with(|| step.clone());
            }
            way.skipped(step, record.reason.as_deref().unwrap_or(""), record.detail.as_deref().unwrap_or(""));
            self.journal.note_step(remediation.id, record).await?;
        }
        let (outcome, reason, detail) = match way.first_skip.clone() {
            _ if way.planned => {
                (Outcome::Planned, "plan_mode".to_owned(), format!("mode is plan; {}", sight.seen.summary()))
            }
            Some((reason, detail)) => (Outcome::Blocked, reason, detail),
            None => (Outcome::Planned, "plan_mode".to_owned(), sight.seen.summary()),
        };
        self.metrics.decision(&rule.name, outcome.as_str(), &reason);
        self.end(remediation, Some(rule), &way, outcome, &reason, &detail, None).await
    }

    /// Walks down the steps from `position` until the target is well or they are used up.
    async fn ladder(
        &self,
        remediation: &Record,
        rule: &Rule,
        mut sight: Sight,
        position: usize,
        mut way: Way,
    ) -> Result<Next, Error> {
        if remediation.before.is_none() {
            self.journal.set_before(remediation.id, sight.seen.clone()).await?;
        }
        // What only observes is limited too: a flapping alert must not flood whoever is told.
        if !rule.acts()
            && position == 0
            && let Admission::Refused(refusal) =
                self.reserve(remediation.id, rule, None, &sight, true).await?
        {
            return self.refused(remediation, rule, refusal, &sight.seen).await;
        }
        for (position, step) in rule.steps.iter().enumerate().skip(position) {
            let job = self.assessor.job(remediation.id, rule, &sight);
            if let Check::Skip(reason, detail) = self.assessor.judge(step, &job).await {
                way.skipped(step, reason, &detail);
                let record =
                    skipped(record(position, step, &sight.target, StepState::Skipped), reason, detail);
                self.journal.note_step(remediation.id, record).await?;
                continue;
            }
            if !step.0.class().acts() {
                self.observe(remediation.id, position, step, &job).await?;
                continue;
            }
            if rule.mode == Mode::Plan {
                // It acted in mode auto, and the mode was lowered since.
                let detail = "mode is plan".to_owned();
                way.skipped(step, "plan_mode", &detail);
                let record = record(position, step, &sight.target, StepState::Skipped);
                self.journal.note_step(remediation.id, skipped(record, "plan_mode", detail)).await?;
                continue;
            }
            let reserved =
                match self.reserve(remediation.id, rule, Some((position, step)), &sight, !way.acted).await? {
                    Admission::Admitted(reserved) => reserved,
                    Admission::Refused(refusal) if way.acted => {
                        way.skipped(step, refusal.reason, &refusal.detail);
                        let record = record(position, step, &sight.target, StepState::Skipped);
                        let record = skipped(record, refusal.reason, refusal.detail);
                        self.journal.note_step(remediation.id, record).await?;
                        continue;
                    }
                    Admission::Refused(refusal) => {
                        return self.refused(remediation, rule, refusal, &sight.seen).await;
                    }
                };
            if self.stop.is_cancelled() {
                self.journal.release(remediation.id, reserved).await?;
                return Ok(Next::Left);
            }
            way.acted = true;
            way.last_action = Some(step.clone());
            let before = sight.seen.clone();
            let record = self.act(remediation.id, reserved, position, step, &job).await?;
            way.unknown |= record.state == StepState::Unknown;
            way.done |= record.state == StepState::Done;
            match self.effect(rule, &sight.target, &Some(before)).await {
                Effect::Left => return Ok(Next::Left),
                Effect::Well(after) => {
                    return self
                        .end(remediation, Some(rule), &way, Outcome::Succeeded, "verified", "", Some(after))
                        .await;
                }
                Effect::NotWell(Some(seen)) => sight.seen = seen,
                Effect::NotWell(None) => {}
            }
        }
        self.used_up(remediation, rule, sight, way).await
    }

    /// Runs a step that only observes; its failure is no reason to stop.
    async fn observe(&self, id: i64, position: usize, step: &Step, job: &Job) -> Result<(), Error> {
        let started = self.clock.now().wall_ms;
        let result = self.run(step, job).await;
        let mut record = record(position, step, &job.target, StepState::Done);
        record.started_wall_ms = Some(started);
        record.ended_wall_ms = Some(self.clock.now().wall_ms);
        settle(&mut record, result);
        self.journal.note_step(id, record).await?;
        // Taken up again after a wait, it goes on behind this step.
        self.journal.next_step(id, position + 1).await
    }

    async fn reserve(
        &self,
        id: i64,
        rule: &Rule,
        step: Option<(usize, &Step)>,
        sight: &Sight,
        first: bool,
    ) -> Result<Admission, Error> {
        let class = step.map_or(Class::S0, |(_, step)| step.0.class());
        let admission = self
            .journal
            .reserve(Request {
                id,
                step: step.map(|(position, step)| record(position, step, &sight.target, StepState::Reserved)),
                budgets: self.assessor.scopes(rule, &sight.target, class, first),
                restraint: first.then_some(rule.restraint),
                now: self.clock.now(),
            })
            .await?;
        match &admission {
            Admission::Admitted(_) => self.metrics.decision(&rule.name, "admitted", "none"),
            Admission::Refused(refusal) => self.metrics.decision(&rule.name, "refused", refusal.reason),
        }
        Ok(admission)
    }

    /// Calls the action, between two durable marks, and measures what it freed.
    async fn act(
        &self,
        id: i64,
        reserved: i64,
        position: usize,
        step: &Step,
        job: &Job,
    ) -> Result<StepRecord, Error> {
        self.journal.running(id, reserved, self.clock.now()).await?;
        let started = Instant::now();
        let result = self.run(step, job).await;
        self.metrics.step_took(step.0.name(), started.elapsed());
        let mut record = record(position, step, &job.target, StepState::Done);
        settle(&mut record, result);
        record.measured_freed_bytes = self.measure(job).await;
        self.metrics.freed(step.0.name(), record.claimed_freed_bytes, record.measured_freed_bytes);
        tracing::info!(id, rule = job.rule, target = %job.target, action = step.0.name(), state = record.state.as_str(),
            detail = record.detail.as_deref().unwrap_or(""), "step ended");
        self.journal.verifying(id, reserved, record.clone(), self.clock.now()).await?;
        Ok(record)
    }

    async fn run(&self, step: &Step, job: &Job) -> Result<Done, Failure> {
        let limit = step.0.timeout();
        timeout(limit, step.0.run(job))
            .await
            .unwrap_or_else(|_| Err(Failure::Unknown(format!("no answer within {} s", limit.as_secs()))))
    }

    /// What a step freed by the filesystem's own account, in bytes.
    async fn measure(&self, job: &Job) -> Option<i64> {
        let Observation::Filesystem(before) = &job.seen else { return None };
        let Ok(Observation::Filesystem(after)) = self.assessor.eyes.observe(&job.target).await else {
            return None;
        };
        let after = i64::try_from(after.avail_bytes).ok()?;
        after.checked_sub(i64::try_from(before.avail_bytes).ok()?)
    }

    /// Looks until it is decided whether acting helped.
    async fn effect(
        &self,
        rule: &Rule,
        target: &crate::target::Target,
        before: &Option<Observation>,
    ) -> Effect {
        let (Some(verify), Some(before)) = (&rule.verify, before) else {
            return Effect::NotWell(self.assessor.eyes.observe(target).await.ok());
        };
        let began = Instant::now();
        let mut verification = Verification::begin(verify, before.clone(), began);
        loop {
            let seen = self.assessor.eyes.observe(target).await.ok();
            let now = Instant::now();
            let verdict = verification.look(seen.as_ref(), now);
            // A disk that is not done shortly after a step will not become so by waiting: the next step may help.
            let settled = target.kind() == Kind::Filesystem
                && now.duration_since(began) >= self.settle
                && !seen.as_ref().is_some_and(|seen| verify.done.met(before, seen));
            match verdict {
                Verdict::Done => {
                    self.metrics.verified(&rule.name, began.elapsed());
                    return seen.map_or(Effect::NotWell(None), Effect::Well);
                }
                Verdict::NotDone => return Effect::NotWell(seen),
                Verdict::Wait if settled => return Effect::NotWell(seen),
                Verdict::Wait => {}
            }
            tokio::select! {
                () = sleep(self.pace) => {}
                () = self.stop.cancelled() => return Effect::Left,
            }
        }
    }

    /// The ladder has no more steps.
    async fn used_up(
        &self,
        remediation: &Record,
        rule: &Rule,
        sight: Sight,
        way: Way,
    ) -> Result<Next, Error> {
        if !rule.acts() {
            let detail = sight.seen.summary();
            return self
                .end(remediation, Some(rule), &way, Outcome::Reported, "reported", &detail, Some(sight.seen))
                .await;
        }
        let seen = Some(sight.seen);
        let needed = matches!(&seen, Some(seen) if rule.need(seen) == crate::rules::Need::Needed);
        let (outcome, reason, detail) = if !way.acted {
            let (reason, detail) = way.first_skip.clone().unwrap_or_default();
            self.metrics.decision(&rule.name, "refused", &reason);
            (Outcome::Blocked, reason, detail)
        } else if !needed {
            let detail = "better, and not as good as the mark".to_owned();
            (Outcome::Partial, "below_needed".to_owned(), detail)
        } else if way.unknown {
            let detail = "what an interrupted or unanswered step did is not known".to_owned();
            (Outcome::Unknown, "unanswered".to_owned(), detail)
        } else if way.done {
            (
                Outcome::Ineffective,
                "steps_used_up".to_owned(),
                "every step was done, and it is not well".to_owned(),
            )
        } else {
            (Outcome::Failed, "refused_by_host".to_owned(), "the host refused every step".to_owned())
        };
        self.end(remediation, Some(rule), &way, outcome, &reason, &detail, seen).await
    }

    /// A limit, the cooldown or the breaker said no before anything was done.
    async fn refused(
        &self,
        remediation: &Record,
        rule: &Rule,
        refusal: Refusal,
        seen: &Observation,
    ) -> Result<Next, Error> {
        let next_allowed = self.clock.now().wall_after(refusal.wait);
        if refusal.reason == "limited" && refusal.wait <= WAIT_MAX {
            self.journal.wait(remediation.id, refusal.clone(), next_allowed).await?;
            tracing::info!(
                id = remediation.id,
                rule = rule.name,
                target = remediation.target,
                detail = refusal.detail,
                next_allowed = rfc3339(next_allowed),
                "waiting for a limit"
            );
            return Ok(Next::Again(refusal.wait));
        }
        let outcome = if refusal.reason == "breaker" { Outcome::Blocked } else { Outcome::Limited };
        let end = End {
            outcome,
            reason: refusal.reason.to_owned(),
            detail: refusal.detail,
            next_allowed_wall_ms: Some(next_allowed),
            after: Some(seen.clone()),
        };
        self.finish(remediation, Some(rule), &Way::default(), end).await
    }

    /// The look said that nothing is to be done.
    async fn stopped(&self, remediation: &Record, rule: &Rule, stop: Stop) -> Result<Next, Error> {
        let decision = if stop.outcome == Outcome::NotNeeded { "not_needed" } else { "refused" };
        self.metrics.decision(&rule.name, decision, stop.reason);
        self.end(remediation, Some(rule), &Way::default(), stop.outcome, stop.reason, &stop.detail, stop.seen)
            .await
    }

    #[expect(clippy::too_many_arguments, reason = "an end has these parts, and every caller has all of them")]
    async fn end(
        &self,
        remediation: &Record,
        rule: Option<&Rule>,
        way: &Way,
        outcome: Outcome,
        reason: &str,
        detail: &str,
        after: Option<Observation>,
    ) -> Result<Next, Error> {
        let mut detail = detail.to_owned();
        let unwell =
            outcome.escalates() || matches!(outcome, Outcome::Partial | Outcome::Blocked | Outcome::Planned);
        if unwell && remediation.kind() == Some(Kind::Filesystem) {
            detail += &what_fills(&remediation.target).await;
        }
        let end = End { outcome, reason: reason.to_owned(), detail, next_allowed_wall_ms: None, after };
        self.finish(remediation, rule, way, end).await
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
        let action = way.last_action.as_ref().map_or("none", |step| step.0.name());
        let class = way.last_action.as_ref().map_or("none", |step| step.0.class().as_str());
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
        // What only repeats has been told already.
        if !repeats && rule.is_some() {
            let steps = self.journal.steps(id).await?;
            self.assessor.notifier.tell(&notice(remediation, &end, &steps));
        }
        Ok(Next::Ended)
    }
}

fn skipped(mut record: StepRecord, reason: &str, detail: String) -> StepRecord {
    record.reason = Some(reason.to_owned());
    record.detail = Some(detail);
    record
}

/// Writes an action's answer into its record.
fn settle(record: &mut StepRecord, result: Result<Done, Failure>) {
    let (state, reason, detail) = match result {
        Ok(done) => {
            record.claimed_freed_bytes = done.claimed_freed_bytes.and_then(|bytes| i64::try_from(bytes).ok());
            (StepState::Done, None, done.detail)
        }
        Err(Failure::Refused(detail)) => (StepState::Failed, Some("refused_by_host"), detail),
        Err(Failure::Unknown(detail)) => (StepState::Unknown, Some("unanswered"), detail),
    };
    record.state = state;
    record.reason = reason.map(str::to_owned);
    record.detail = Some(detail);
}

/// The answer to "what fills this disk", as a clause; empty when it could not be told.
async fn what_fills(mount_point: &str) -> String {
    let largest = observe::largest(mount_point, 3).await;
    let entries: Vec<String> =
        largest.iter().map(|(path, bytes)| format!("{} {}", path.display(), format_bytes(*bytes))).collect();
    if entries.is_empty() { String::new() } else { format!("; it is filled by {}", entries.join(", ")) }
}

fn notice(remediation: &Record, end: &End, steps: &[StepRecord]) -> Notice {
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
    Notice {
        id: remediation.id,
        rule: remediation.rule.clone(),
        kind: remediation.kind.clone(),
        target: remediation.target.clone(),
        outcome: end.outcome,
        reason: end.reason.clone(),
        summary: if end.detail.is_empty() { end.outcome.to_string() } else { end.detail.clone() },
        before: remediation.before.as_ref().map(Observation::summary),
        after: end.after.as_ref().map(Observation::summary),
        steps: steps.collect(),
        next_allowed: end.next_allowed_wall_ms.map(rfc3339),
    }
}
