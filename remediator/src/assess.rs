//! What would be done about a target now, and what speaks against it. Looks, changes nothing: the worker acts on it,
//! plan mode records it, and `simulate` and `explain` print it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use evenkeel_host::systemd::is_trouble;
use tokio::time::timeout;

use crate::{
    actions::{Check, Failure, Job, Step},
    admission::{Refusal, Scope},
    clock::Moment,
    config::Config,
    journal::{Question, StepRecord, StepState},
    notify::Notifier,
    observe::{Eyes, Host, Observation},
    outcome::Outcome,
    policy::{Class, Limit},
    rules::{Need, Rule},
    target::Target,
};

/// How long a check may take: one question to the engine for each container is many on a slow host.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);

/// Looks at targets and judges steps.
#[derive(Clone)]
pub struct Assessor {
    /// The configuration.
    pub config: Arc<Config>,
    /// How targets are looked at.
    pub eyes: Arc<dyn Eyes>,
    /// The sources that actions ask.
    pub host: Host,
    /// Where `notify` sends to.
    pub notifier: Notifier,
    /// Where reports are kept.
    pub reports: PathBuf,
}

/// A target that is in need of its rule.
#[derive(Debug, Clone)]
pub struct Sight {
    /// What was seen.
    pub seen: Observation,
    /// The target by its canonical name.
    pub target: Target,
}

/// One step as it would be taken now.
#[derive(Debug, Clone)]
pub struct Planned {
    /// What would be done, or why not.
    pub record: StepRecord,
    /// What it can free at most, in bytes, where that is known.
    pub frees: Option<u64>,
}

/// Why nothing is to be done.
#[derive(Debug, Clone, PartialEq)]
pub struct Stop {
    /// How a remediation ends for it.
    pub outcome: Outcome,
    /// As a word.
    pub reason: &'static str,
    /// For people.
    pub detail: String,
    /// What was seen, if anything was.
    pub seen: Option<Observation>,
}

impl Assessor {
    /// The same under another configuration.
    #[must_use]
    pub fn under(&self, config: Arc<Config>) -> Self {
        let host = config.hosts.first().map(String::as_str).unwrap_or_default();
        let notifier = self.notifier.to(&config.receivers, host);
        Self { config, notifier, ..self.clone() }
    }

    /// Looks whether the target is there, may be touched, and is in need.
    ///
    /// # Errors
    /// With the reason, when it is not. What cannot be seen is neither broken nor well: nothing is done.
    pub async fn look(&self, rule: &Rule, target: &Target) -> Result<Sight, Stop> {
        let seen = self.eyes.observe(target).await.map_err(|unseen| Stop {
            outcome: Outcome::Blocked,
            reason: "probe_unknown",
            detail: unseen.to_string(),
            seen: None,
        })?;
        let canonical = rule.canonical(target, &seen, &self.config.deny).map_err(|_| Stop {
            outcome: Outcome::Blocked,
            reason: "target_denied",
            detail: format!(
                "{target} is an alias of {}, which this rule may not touch",
                seen.canonical(target)
            ),
            seen: Some(seen.clone()),
        })?;
        match rule.need(&seen) {
            Need::Needed => Ok(Sight { seen: self.diagnosed(seen).await, target: canonical }),
            Need::NotNeeded(detail) => {
                Err(Stop { outcome: Outcome::NotNeeded, reason: "already_well", detail, seen: Some(seen) })
            }
            Need::Unknown(detail) => {
                Err(Stop { outcome: Outcome::Blocked, reason: "probe_unknown", detail, seen: Some(seen) })
            }
        }
    }

    /// The same with what it failed of, for a unit of which nobody has asked that yet.
    pub async fn diagnosed(&self, mut seen: Observation) -> Observation {
        if let Observation::Unit(unit) = &mut seen
            && unit.why.is_none()
            && is_trouble(&unit.load_state, &unit.active_state, &unit.sub_state)
        {
            unit.why = self.eyes.why(unit).await.map(Box::new);
        }
        seen
    }

    /// One step of a remediation, with all that its action may use.
    pub fn job(&self, id: i64, rule: &Rule, sight: &Sight) -> Job {
        Job {
            config: Arc::clone(&self.config),
            host: self.host.clone(),
            notifier: self.notifier.clone(),
            reports: self.reports.clone(),
            id,
            rule: rule.name.clone(),
            target: sight.target.clone(),
            seen: sight.seen.clone(),
            done_below: rule.done_below(),
        }
    }

    /// Whether a step may help and is allowed. A step whose check fails is not done: nobody knows what it would meet.
    pub async fn judge(&self, step: &Step, job: &Job) -> Check {
        let action = &step.0;
        let checked = timeout(CHECK_TIMEOUT, action.check(job)).await;
        match checked.unwrap_or_else(|_| Err(Failure::Refused(format!("no answer within {CHECK_TIMEOUT:?}"))))
        {
            Err(failure) => Check::Skip("check_failed", failure.to_string()),
            Ok(Check::Go | Check::Frees(_) | Check::Changes(_))
                if !self.config.deletion.allows(action.class()) =>
            {
                Check::Skip(
                    "policy",
                    format!(
                        "it is of class {} and policy.deletion is {}",
                        action.class().as_str(),
                        self.config.deletion.as_str()
                    ),
                )
            }
            Ok(check @ (Check::Go | Check::Changes(_))) if action.takes_along() => {
                match self.blast_radius(job).await {
                    Check::Go => check,
                    refused => refused,
                }
            }
            Ok(check) => check,
        }
    }

    /// Whether acting on a unit takes along too much else, or anything that is never touched.
    async fn blast_radius(&self, job: &Job) -> Check {
        let most = usize::try_from(self.config.blast_radius).unwrap_or(usize::MAX);
        let others = match self.eyes.dependents(&job.target, most).await {
            Err(unseen) => {
                let detail = format!("what depends on it cannot be seen: {unseen}");
                return Check::Skip("blast_radius", detail);
            }
            Ok(others) => others,
        };
        if let Some(denied) = others.iter().find(|unit| self.config.deny.denies(unit)) {
            let detail = format!("it would take {denied} along, which evenkeel never touches");
            Check::Skip("blast_radius", detail)
        } else if others.len() > most {
            let named = others.iter().take(most).map(String::as_str).collect::<Vec<_>>().join(", ");
            let detail =
                format!("it would take more than {most} others along (policy.blast_radius): {named} …");
            Check::Skip("blast_radius", detail)
        } else {
            Check::Go
        }
    }

    /// The whole ladder as it would be walked now, without walking it.
    pub async fn plan(&self, id: i64, rule: &Rule, sight: &Sight) -> Vec<Planned> {
        let mut job = self.job(id, rule, sight);
        let mut steps = Vec::new();
        for (position, step) in rule.steps.iter().enumerate() {
            let mut record = record(position, step, &sight.target, StepState::Planned);
            let mut frees = None;
            match self.judge(step, &job).await {
                Check::Go => {}
                Check::Frees(bytes) => frees = Some(bytes),
                Check::Changes(what) => record.detail = Some(what),
                Check::Skip(reason, detail) => {
                    record.state = StepState::Skipped;
                    record.reason = Some(reason.to_owned());
                    record.detail = Some(detail);
                }
            }
            if record.class.acts() && record.state == StepState::Planned {
                // What it failed of may be cured by then.
                job.seen = job.seen.without_why();
            }
            steps.push(Planned { record, frees });
        }
        steps
    }

    /// What the journal is asked before a step of this class. `first`: it is the first acting step of its remediation,
    /// which is when the walk itself counts.
    pub fn question(&self, id: i64, rule: &Rule, sight: &Sight, class: Class, first: bool) -> Question {
        let device = match &sight.seen {
            Observation::Filesystem(filesystem) => Some(filesystem.device),
            _ => None,
        };
        Question { id, device, ..self.question_about(rule, &sight.target, class, first) }
    }

    /// What the journal is asked about a target that nobody has looked at yet: by the rule's first acting step.
    pub fn question_before_looking(&self, rule: &Rule, target: &Target) -> Question {
        let mut classes = rule.steps.iter().map(|step| step.0.class()).filter(|class| class.acts());
        self.question_about(rule, target, classes.next().unwrap_or(Class::S0), true)
    }

    fn question_about(&self, rule: &Rule, target: &Target, class: Class, first: bool) -> Question {
        Question {
            id: 0,
            rule: rule.name.clone(),
            target: target.clone(),
            device: None,
            class,
            budgets: self.scopes(rule, target, class, first),
            restraint: first.then_some(rule.restraint),
            storm: self.config.storm,
        }
    }

    /// Whether the rule's hours and the host itself let a step of this class begin now.
    ///
    /// # Errors
    /// With what speaks against it.
    pub async fn gates(
        &self,
        rule: &Rule,
        class: Class,
        started: Option<&Moment>,
        now: &Moment,
    ) -> Result<(), Refusal> {
        if !class.acts() {
            return Ok(());
        }
        if let Some(hours) = &rule.hours {
            hours.admit(now.wall_ms)?;
        }
        let mut seen = self.eyes.conditions().await;
        seen.up = u64::try_from(now.boot_ms).ok().map(Duration::from_millis);
        seen.running = started.map(|started| started.age(now));
        self.config.gates.admit(class, &seen)
    }

    /// Every scope that a step counts in, with its windows.
    fn scopes(&self, rule: &Rule, target: &Target, class: Class, first: bool) -> Vec<(Scope, Vec<Limit>)> {
        let limits = &self.config.limits;
        let mut scopes =
            vec![(Scope::Class(class), limits.class(class).to_vec()), (Scope::Host, limits.host.clone())];
        if first {
            let name = target.to_string();
            scopes.push((Scope::RuleTarget(rule.name.clone(), name.clone()), rule.limits.clone()));
            scopes.push((Scope::Rule(rule.name.clone()), rule.rule_limits.clone()));
            scopes.push((Scope::Target(name), limits.target.clone()));
        }
        scopes
    }
}

/// A step's record before anything happened to it.
pub fn record(position: usize, step: &Step, target: &Target, state: StepState) -> StepRecord {
    StepRecord {
        position,
        action: step.0.name().to_owned(),
        class: step.0.class(),
        plan: step.0.plan(target),
        state,
        reason: None,
        detail: None,
        started_wall_ms: None,
        ended_wall_ms: None,
        claimed_freed_bytes: None,
        measured_freed_bytes: None,
    }
}
