//! Down the steps of a rule, each judged, admitted, done and measured, until the target is well or they are used up.

use std::{collections::BTreeMap, time::Duration};

use evenkeel_host::config::format_bytes;
use tokio::time::{Instant, sleep, timeout};

use super::{Next, Walker, approval::Leave, room::Room};
use crate::{
    actions::{Check, Done, Failure, Job, Step},
    admission::{Reason, Refusal},
    assess::{Planned, Sight, record},
    journal::{End, Error, Record, Shown, StepRecord, StepState},
    observe::Observation,
    outcome::Outcome,
    policy::Class,
    rules::{Rule, Verify},
    target::{Kind, Target},
    verify::{Verdict, Verification},
};

/// How soon to try again what the host was too busy for.
const BUSY_PAUSE: Duration = Duration::from_secs(15);

/// Whether acting helped.
pub(super) enum Effect {
    /// Seen to be well for the whole hold time.
    Well(Observation),
    /// Not so, or not seen at the last look.
    NotWell(Option<Observation>),
    /// The process ends before it is decided.
    Left,
}

/// What happened on the way down the ladder.
#[derive(Default)]
pub(super) struct Way {
    /// Something was called that changes the host.
    pub(super) acted: bool,
    /// What one of the calls did is not known.
    pub(super) unknown: bool,
    /// The host did one of them.
    pub(super) done: bool,
    /// Plan mode: something would have been done.
    pub(super) planned: bool,
    /// Plan mode: each step as people are shown it.
    pub(super) shown: Vec<Shown>,
    /// The last call, or in plan mode the first that would be made.
    pub(super) last_action: Option<(String, Class)>,
    /// Why the first step that might have helped was not done; when none might, why the first was not.
    pub(super) first_skip: Option<(String, String)>,
    /// All steps together cannot free what is needed: how much they can.
    pub(super) shortfall: Option<String>,
    /// A limit ended the ladder; until when.
    pub(super) next_allowed_wall_ms: Option<i64>,
}

impl Way {
    pub(super) fn skipped(&mut self, step: &Step, reason: &str, detail: &str) {
        self.left_out(step.0.name(), step.0.class(), reason, detail);
    }

    /// The same for a step that is only on record.
    pub(super) fn left_out(&mut self, action: &str, class: Class, reason: &str, detail: &str) {
        let is_first = |skip: &(String, String)| would_not_help(&skip.0) && !would_not_help(reason);
        if class.acts() && self.first_skip.as_ref().is_none_or(is_first) {
            self.first_skip = Some((reason.to_owned(), format!("{action}: {detail}")));
        }
    }

    /// A step was called and has an answer, or none will come.
    pub(super) fn did(&mut self, step: &StepRecord) {
        self.acted = true;
        self.done |= step.state == StepState::Done;
        self.unknown |= step.state == StepState::Unknown;
        self.last_action = Some((step.action.clone(), step.class));
    }
}

impl Walker {
    /// Plan mode: records what would be done, and does nothing.
    pub(super) async fn plan(&self, remediation: &Record, rule: &Rule, sight: &Sight) -> Result<Next, Error> {
        let way = self.write_plan(remediation, rule, sight).await?;
        let end = match way.first_skip.clone() {
            Some((reason, detail)) if !way.planned => End::new(Outcome::Blocked, &reason, detail, None),
            _ => {
                let detail = format!("mode is plan; {}", sight.seen.summary());
                End::new(Outcome::Planned, "plan_mode", detail, None)
            }
        };
        self.metrics.decision(&rule.name, end.outcome.as_str(), &end.reason);
        self.end(remediation, rule, &way, end).await
    }

    /// Writes down what would be done.
    pub(super) async fn write_plan(
        &self,
        remediation: &Record,
        rule: &Rule,
        sight: &Sight,
    ) -> Result<Way, Error> {
        self.journal.set_before(remediation.id, sight.seen.clone()).await?;
        let plan = self.assessor.plan(remediation.id, rule, sight).await;
        let mut way = Way { shortfall: shortfall(rule, sight, &plan), ..Way::default() };
        for (Planned { record, .. }, step) in plan.into_iter().zip(&rule.steps) {
            let is_planned = record.state == StepState::Planned;
            if is_planned && record.class.acts() {
                way.planned = true;
                way.last_action.get_or_insert_with(|| (record.action.clone(), record.class));
            }
            // Also what is not for now: a step before it may make it so.
            way.shown.push(Shown {
                position: record.position,
                plan: record.plan.clone(),
                changes: record.detail.clone().filter(|_| is_planned),
            });
            way.skipped(step, record.reason.as_deref().unwrap_or(""), record.detail.as_deref().unwrap_or(""));
            self.journal.note_step(remediation.id, record).await?;
        }
        Ok(way)
    }

    /// Walks down the steps from `position` until the target is well or they are used up.
    pub(super) async fn ladder(
        &self,
        remediation: &Record,
        rule: &Rule,
        mut sight: Sight,
        position: usize,
        mut way: Way,
    ) -> Result<Next, Error> {
        let id = remediation.id;
        if !way.acted {
            self.journal.set_before(id, sight.seen.clone()).await?;
        }
        // What only observes is limited too: a flapping alert must not flood whoever is told.
        if !rule.acts()
            && let Err(refusal) = self.reserve(id, rule, None, &sight, true).await?
        {
            return self.refused(remediation, rule, refusal, &sight.seen).await;
        }
        // Evidence of what may not begin is taken once it may: otherwise each repeat would push other evidence out.
        if rule.acts()
            && !way.acted
            && let Some(refusal) = self.nothing_may_begin(id, rule, &sight, position).await?
        {
            self.metrics.decision(&rule.name, "refused", refusal.reason.as_str());
            return self.refused(remediation, rule, refusal, &sight.seen).await;
        }
        if !way.acted && rule.lack(&sight.seen).is_some() {
            let plan = self.assessor.plan(id, rule, &sight).await;
            way.shortfall = shortfall(rule, &sight, &plan);
            if let Some(detail) = &way.shortfall {
                // Said at once: what the steps do may take long, and somebody will have to do more.
                tracing::warn!(id, rule = rule.name, target = %sight.target, detail, "the steps will not be enough");
            }
        }
        let mut is_fresh = true;
        for (position, step) in rule.steps.iter().enumerate().skip(position) {
            if step.0.class().acts() && !is_fresh {
                // A report takes its time; what it was about may have changed.
                match self.look(rule, &sight.target).await {
                    Ok(now) => sight = now,
                    Err(stop) => return self.stopped(remediation, rule, stop, way).await,
                }
                is_fresh = true;
            }
            let job = self.assessor.job(id, rule, &sight);
            let changes = match self.assessor.judge(step, &job).await {
                Check::Go | Check::Frees(_) => None,
                Check::Changes(what) => Some(what),
                Check::Skip(reason, detail) => {
                    way.skipped(step, reason, &detail);
                    self.skip(id, position, step, &sight.target, reason, detail).await?;
                    continue;
                }
            };
            if !step.0.class().acts() {
                self.observe(id, position, step, &job).await?;
                is_fresh = false;
                continue;
            }
            let meant = Shown { position, plan: step.0.plan(&sight.target), changes };
            let refused = match self.leave(id, rule, meant).await? {
                Leave::Given => None,
                Leave::Changed if !way.acted => {
                    return self.ask_anew(remediation, rule, &sight, step.0.name()).await;
                }
                Leave::Changed => Some(("not_approved", "what it would do is not what was approved of")),
                // It began in another mode, which was lowered since.
                Leave::Refused(reason, detail) => Some((reason, detail)),
            };
            if let Some((reason, detail)) = refused {
                way.skipped(step, reason, detail);
                self.skip(id, position, step, &sight.target, reason, detail.to_owned()).await?;
                continue;
            }
            let reserved = self.reserve(id, rule, Some((position, step)), &sight, !way.acted).await?;
            if self.stop.is_cancelled() {
                if let Ok(room) = reserved {
                    self.give_back(id, &room).await?;
                }
                return Ok(Next::Left);
            }
            let before = sight.seen.clone();
            let done = match reserved {
                Ok(room) => self.act(id, &room, position, step, &job).await?,
                Err(refusal) => Err(refusal),
            };
            let record = match done {
                Ok(record) => record,
                Err(refusal) => {
                    match self
                        .held_back(remediation, rule, (position, step), refusal, &sight, &mut way)
                        .await?
                    {
                        Some(next) => return Ok(next),
                        None => break,
                    }
                }
            };
            way.did(&record);
            let is_unanswered = record.state == StepState::Unknown;
            let makes_way = step.0.prepares() && has_more(rule, position);
            let glance = if makes_way { self.glance(rule, &sight.target, &before).await } else { None };
            let effect = match glance {
                Some(effect) => effect,
                None if rule.is_done_when_completed() => self.completed(&record, &sight.target).await,
                None if !way.done && proves_nothing(rule, Some(&before)) => {
                    Effect::NotWell(self.assessor.eyes.observe(&sight.target).await.ok())
                }
                None => self.effect(rule, &sight.target, Some(&before), is_unanswered).await,
            };
            match effect {
                Effect::Left => return Ok(Next::Left),
                Effect::Well(after) => {
                    let end = End::new(Outcome::Succeeded, "verified", "", Some(after));
                    return self.end(remediation, rule, &way, end).await;
                }
                Effect::NotWell(Some(seen)) => sight.seen = seen,
                // Nobody knows what a further step would meet.
                Effect::NotWell(None) => {
                    let detail = "the target could not be seen after it";
                    let end = End::new(Outcome::Unknown, "probe_unknown", detail, None);
                    return self.end(remediation, rule, &way, end).await;
                }
            }
            if is_met(rule.verify.as_ref(), &before, &sight.seen) {
                // Well, and not for long enough: a further step has nothing to do.
                break;
            }
        }
        self.used_up(remediation, rule, sight.seen, way).await
    }

    /// A step may not begin now: that is waited for, or ends the remediation; nothing comes back when it ends only the
    /// ladder, because something was done already.
    async fn held_back(
        &self,
        remediation: &Record,
        rule: &Rule,
        (position, step): (usize, &Step),
        refusal: Refusal,
        sight: &Sight,
        way: &mut Way,
    ) -> Result<Option<Next>, Error> {
        if !way.acted {
            return self.refused(remediation, rule, refusal, &sight.seen).await.map(Some);
        }
        if let Some(next) = self.wait(remediation, &refusal).await? {
            return Ok(Some(next));
        }
        // That a gentle step is refused is no reason for a harsher one: the ladder ends here.
        let reason = refusal.reason.as_str();
        way.skipped(step, reason, &refusal.detail);
        way.next_allowed_wall_ms = Some(self.clock.now().wall_after(refusal.wait));
        self.skip(remediation.id, position, step, &sight.target, reason, refusal.detail).await?;
        Ok(None)
    }

    async fn skip(
        &self,
        id: i64,
        position: usize,
        step: &Step,
        target: &Target,
        reason: &str,
        detail: String,
    ) -> Result<(), Error> {
        let mut record = record(position, step, target, StepState::Skipped);
        record.reason = Some(reason.to_owned());
        record.detail = Some(detail);
        self.journal.note_step(id, record).await
    }

    /// Runs a step that only observes; its failure is no reason to stop.
    async fn observe(&self, id: i64, position: usize, step: &Step, job: &Job) -> Result<(), Error> {
        let started = self.clock.now().wall_ms;
        let begun = Instant::now();
        let result = self.run(step, job).await;
        self.metrics.step_took(step.0.name(), begun.elapsed());
        let mut record = record(position, step, &job.target, StepState::Done);
        record.started_wall_ms = Some(started);
        record.ended_wall_ms = Some(self.clock.now().wall_ms);
        settle(&mut record, result);
        self.journal.note_step(id, record).await?;
        // Taken up again after a wait, it goes on behind this step.
        self.journal.next_step(id, position + 1).await
    }

    /// Calls the action, between two durable marks, and measures what it freed. Where the fleet's lease is gone by now, or
    /// the host is busy with something that excludes it, nothing was done, and the start is given back.
    async fn act(
        &self,
        id: i64,
        room: &Room,
        position: usize,
        step: &Step,
        job: &Job,
    ) -> Result<Result<StepRecord, Refusal>, Error> {
        if let Err(refusal) = self.confirm(room).await {
            self.give_back(id, room).await?;
            self.metrics.decision(&job.rule, "refused", refusal.reason.as_str());
            return Ok(Err(refusal));
        }
        self.journal.running(id, room.step, self.clock.now()).await?;
        let started = Instant::now();
        let result = self.run(step, job).await;
        if let Err(Failure::Busy(detail)) = result {
            self.give_back(id, room).await?;
            let detail = format!("{}: {detail}", step.0.name());
            let busy = Refusal { reason: Reason::Busy, scope: "host", detail, wait: BUSY_PAUSE };
            self.metrics.decision(&job.rule, "refused", busy.reason.as_str());
            return Ok(Err(busy));
        }
        self.metrics.step_took(step.0.name(), started.elapsed());
        let mut record = record(position, step, &job.target, StepState::Done);
        settle(&mut record, result);
        record.measured_freed_bytes = self.measure(job).await;
        self.metrics.freed(step.0.name(), record.claimed_freed_bytes, record.measured_freed_bytes);
        tracing::info!(id, rule = job.rule, target = %job.target, action = step.0.name(), state = record.state.as_str(),
            detail = record.detail.as_deref().unwrap_or(""), "step ended");
        self.journal.verifying(id, room.step, record.clone(), self.clock.now()).await?;
        Ok(Ok(record))
    }

    async fn run(&self, step: &Step, job: &Job) -> Result<Done, Failure> {
        let limit = step.patience(job.target.kind());
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

    /// For rules that are no repair: what was carried out is done, and not what was refused or never answered.
    async fn completed(&self, record: &StepRecord, target: &Target) -> Effect {
        let seen = self.assessor.eyes.observe(target).await.ok();
        match (record.state, seen) {
            (StepState::Done, Some(seen)) => Effect::Well(seen),
            (_, seen) => Effect::NotWell(seen),
        }
    }

    /// Looks until it is decided whether acting helped. `is_unanswered`: nobody knows whether the host is still at it.
    pub(super) async fn effect(
        &self,
        rule: &Rule,
        target: &Target,
        before: Option<&Observation>,
        is_unanswered: bool,
    ) -> Effect {
        if rule.is_done_when_completed() {
            // Whether an interrupted step was carried out, no look tells.
            return Effect::NotWell(self.assessor.eyes.observe(target).await.ok());
        }
        let (Some(verify), Some(before)) = (&rule.verify, before) else {
            return self.no_longer_needed(rule, target).await;
        };
        let began = Instant::now();
        let mut verification = Verification::begin(verify, before.clone(), began);
        let mut was_met = false;
        loop {
            let seen = self.assessor.eyes.observe(target).await.ok();
            let now = Instant::now();
            was_met |= seen.as_ref().is_some_and(|seen| verify.done.met(before, seen));
            match verification.look(seen.as_ref(), now) {
                Verdict::Done => {
                    self.metrics.verified(&rule.name, began.elapsed());
                    return seen.map_or(Effect::NotWell(None), Effect::Well);
                }
                Verdict::NotDone => return Effect::NotWell(seen),
                // A disk that is not done shortly after a step has ended will not become so by waiting: the next step
                // may help. One that was done and is so no more has the time that it is given.
                Verdict::Wait
                    if target.kind() == Kind::Filesystem
                        && !is_unanswered
                        && !was_met
                        && now.duration_since(began) >= self.settle =>
                {
                    return Effect::NotWell(seen);
                }
                Verdict::Wait => {}
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Effect::Left,
                () = sleep(self.pace) => {}
            }
        }
    }

    /// One look after a step that only makes way for the next; nothing when the target looks well all the same, and so
    /// has to be verified.
    async fn glance(&self, rule: &Rule, target: &Target, before: &Observation) -> Option<Effect> {
        let seen = self.assessor.eyes.observe(target).await.ok();
        let is_well = match &rule.verify {
            Some(verify) => seen.as_ref().is_some_and(|seen| verify.done.met(before, seen)),
            None => seen.as_ref().is_some_and(|seen| !rule.needs(seen)),
        };
        (!is_well).then_some(Effect::NotWell(seen))
    }

    /// One look for a rule without a mark: what it no longer needs is done.
    async fn no_longer_needed(&self, rule: &Rule, target: &Target) -> Effect {
        match self.assessor.eyes.observe(target).await {
            Ok(seen) if rule.verify.is_none() && !rule.needs(&seen) => Effect::Well(seen),
            seen => Effect::NotWell(seen.ok()),
        }
    }
}

/// What all steps together can free, when that is known of each and is less than what is needed.
fn shortfall(rule: &Rule, sight: &Sight, plan: &[Planned]) -> Option<String> {
    let deficit = rule.lack(&sight.seen)?.bytes?;
    // Steps of one action free the same: the most of them counts.
    let mut most: BTreeMap<&str, u64> = BTreeMap::new();
    let going =
        plan.iter().filter(|step| step.record.state == StepState::Planned && step.record.class.acts());
    for step in going {
        let of_it = most.entry(&step.record.action).or_default();
        *of_it = step.frees?.max(*of_it);
    }
    let all = most.values().copied().fold(0, u64::saturating_add);
    (!most.is_empty() && all < deficit).then(|| {
        format!("the steps can free {} of the {} that are needed", format_bytes(all), format_bytes(deficit))
    })
}

/// Whether a step was left out because there is nothing for it to do, and not because something held it back.
fn would_not_help(reason: &str) -> bool {
    matches!(reason, "nothing_to_delete" | "too_little_to_free" | "not_on_this_filesystem" | "not_failed")
}

/// Whether a step that acts comes after this one.
fn has_more(rule: &Rule, position: usize) -> bool {
    rule.steps.iter().skip(position + 1).any(|step| step.0.class().acts())
}

/// Whether a look afterwards proves nothing, because the target looked well before: what a change of files cures is not
/// always to be seen in the state of a unit. Then the step's own answer counts.
pub(super) fn proves_nothing(rule: &Rule, before: Option<&Observation>) -> bool {
    before.is_some_and(|before| is_met(rule.verify.as_ref(), before, before))
}

fn is_met(verify: Option<&Verify>, before: &Observation, seen: &Observation) -> bool {
    verify.is_some_and(|verify| verify.done.met(before, seen))
}

/// Writes an action's answer into its record.
fn settle(record: &mut StepRecord, result: Result<Done, Failure>) {
    let (state, reason, detail) = match result {
        Ok(done) => {
            record.claimed_freed_bytes = done.claimed_freed_bytes.and_then(|bytes| i64::try_from(bytes).ok());
            (StepState::Done, None, done.detail)
        }
        Err(Failure::Refused(detail)) => (StepState::Failed, Some("refused_by_host"), detail),
        // Of a step that only observes; one that acts is put off.
        Err(Failure::Busy(detail)) => (StepState::Failed, Some("busy"), detail),
        Err(Failure::Unknown(detail)) => (StepState::Unknown, Some("unanswered"), detail),
    };
    record.state = state;
    record.reason = reason.map(str::to_owned);
    record.detail = Some(detail);
}
