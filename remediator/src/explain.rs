//! `check-config` and `explain`: what a rule means, why it does or does not act on a target, and when it may next.

use std::{io::Write, sync::Arc};

use anyhow::bail;
use evenkeel_host::config::{ConfigError, PromDuration, format_bytes};

use crate::{
    api::prometheus,
    assess::{Assessor, Planned, Sight},
    clock::{Clock, rfc3339},
    config::Config,
    journal::{Reader, StepState},
    notify::Notifier,
    observe::Host,
    policy::Mode,
    rules::{DoneWhen, Rule},
    status::whole,
    target::{Kind, Target},
    text::printable,
};

/// Prints every rule as it will work.
///
/// # Errors
/// When `out` is closed.
pub fn rules(config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "the configuration is good: {} rules, mode {}, deletion {}, alerts for {}",
        config.rules.len(),
        config.mode.as_str(),
        config.deletion.as_str(),
        config.hosts.join(", ")
    )?;
    for rule in &config.rules {
        describe(config, rule, out)?;
    }
    Ok(())
}

fn describe(config: &Config, rule: &Rule, out: &mut impl Write) -> std::io::Result<()> {
    let join = |parts: Vec<String>| parts.join(", ");
    writeln!(out, "\n{} (mode {})", rule.name, rule.mode.as_str())?;
    if rule.on_demand() {
        writeln!(out, "  match   nothing: only `trigger {}` begins it", rule.name)?;
    } else {
        writeln!(out, "  match   {}", join(rule.matchers.iter().map(ToString::to_string).collect()))?;
    }
    let allowed = join(rule.selector.allow.iter().map(ToString::to_string).collect());
    let target = match rule.selector.kind {
        Kind::Host => "this host".to_owned(),
        kind if rule.on_demand() => format!("{}: {allowed}", kind.as_str()),
        kind => format!("{} named by label {}: {allowed}", kind.as_str(), rule.selector.label),
    };
    writeln!(out, "  target  {target}")?;
    writeln!(out, "  limits  {}", join(rule.limits.iter().map(ToString::to_string).collect()))?;
    if let Some(hours) = &rule.hours {
        writeln!(out, "  hours   {hours}")?;
    }
    for gate in &rule.gates {
        let otherwise = if gate.open_on_error {
            "also when Prometheus does not say"
        } else {
            "not when Prometheus does not say"
        };
        writeln!(out, "  only if {} ({otherwise})", printable(&gate.promql))?;
    }
    for (position, step) in rule.steps.iter().enumerate() {
        let class = step.0.class();
        let blocked = if config.deletion.allows(class) {
            String::new()
        } else {
            format!("  BLOCKED(policy): policy.deletion is {}", config.deletion.as_str())
        };
        writeln!(out, "  step {}  {} [{}]{blocked}", position + 1, step.0.name(), class.as_str())?;
    }
    if let Some(verify) = &rule.verify {
        let done = match verify.done {
            DoneWhen::Below(marks) => marks.to_string(),
            DoneWhen::Active => "active".to_owned(),
            DoneWhen::NotFailed => "not failed".to_owned(),
            DoneWhen::Stopped => "stopped".to_owned(),
            DoneWhen::Healthy => "healthy".to_owned(),
            DoneWhen::Completed => "carried out".to_owned(),
        };
        let hold = match verify.done {
            DoneWhen::Completed => String::new(),
            _ => format!(" for {}", PromDuration::new(verify.hold)),
        };
        writeln!(out, "  done    {done}{hold}, within {}", PromDuration::new(verify.within))?;
    }
    Ok(())
}

/// Something that looks and plans, for the command line.
pub(crate) fn assessor(config: Config) -> Assessor {
    let host = Host::local();
    Assessor {
        reports: config.state_dir.join("reports"),
        config: Arc::new(config),
        eyes: Arc::new(host.clone()),
        host,
        notifier: Notifier::default(),
    }
}

/// Why a rule does or does not act on a target now, and what it did before.
///
/// # Errors
/// When there is no such rule, or it does not admit the target.
pub async fn target(config: Config, rule: &str, name: &str, out: &mut impl Write) -> anyhow::Result<()> {
    let assessor = assessor(config);
    let config = assessor.config.clone();
    let Some(rule) = config.rules.iter().find(|known| known.name == rule) else {
        let names: Vec<&str> = config.rules.iter().map(|rule| rule.name.as_str()).collect();
        return Err(ConfigError::new(
            "explain",
            format!("there is no rule `{rule}`: use one of {}", names.join(", ")),
        )
        .into());
    };
    let target = match rule.selector.admit(name) {
        Ok(target) => target,
        Err(no) => bail!("rule {} does not act on {name}: {}", rule.name, no.reason()),
    };
    let reader = Reader::open_if_any(&config.places())?;
    describe(&config, rule, out)?;
    writeln!(out, "\nnow")?;
    now(&assessor, rule, &target, reader.as_ref(), out).await?;
    let Some(reader) = reader else {
        writeln!(out, "\nbefore\n  there is no state yet in {}", config.state_dir.display())?;
        return Ok(());
    };
    writeln!(out, "\nbefore")?;
    // What was done under an alias is on record under the name of the thing itself.
    let known_as = match assessor.eyes.observe(&target).await {
        Ok(seen) => rule.canonical(&target, &seen, &config.deny).unwrap_or(target),
        Err(_) => target,
    };
    let recent = reader.recent(Some(&rule.name), Some(known_as.name()), 5)?;
    if recent.is_empty() {
        writeln!(out, "  nothing on record")?;
    }
    for remediation in recent {
        whole(&remediation, &reader.steps(remediation.id)?, out)?;
    }
    Ok(())
}

/// What an alert that came now would lead to. Reads the journal, reserves nothing.
pub(crate) async fn now(
    assessor: &Assessor,
    rule: &Rule,
    target: &Target,
    reader: Option<&Reader>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let sight = match assessor.look(rule, target).await {
        Err(stop) => {
            writeln!(out, "  {} ({}): {}", stop.outcome, stop.reason, printable(&stop.detail))?;
            return Ok(());
        }
        Ok(sight) => sight,
    };
    writeln!(out, "  seen    {}", sight.seen.summary())?;
    let steps = assessor.plan(0, rule, &sight).await;
    for Planned { record: step, frees } in &steps {
        let verdict = match (&step.reason, &step.detail, frees) {
            (Some(reason), Some(detail), _) => format!("no ({reason}): {}", printable(detail)),
            (.., Some(bytes)) => format!("would run, and free {} at most", format_bytes(*bytes)),
            _ => "would run".to_owned(),
        };
        writeln!(
            out,
            "  step    {} [{}] {verdict}\n            {}",
            step.action,
            step.class.as_str(),
            step.plan
        )?;
    }
    admission(assessor, rule, &sight, &steps, reader, out).await
}

/// Whether the first acting step would be admitted now.
async fn admission(
    assessor: &Assessor,
    rule: &Rule,
    sight: &Sight,
    steps: &[Planned],
    reader: Option<&Reader>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mut steps = steps.iter().map(|step| &step.record);
    let first = steps.find(|step| step.class.acts() && step.state == StepState::Planned);
    let Some(first) = first else {
        let text =
            if rule.acts() { "no step that acts may run: nothing would be done" } else { "it only observes" };
        writeln!(out, "  result  {text}")?;
        return Ok(());
    };
    let now = Clock::default().now();
    let mut refusals = Vec::new();
    refusals.extend(assessor.gates(rule, first.class, None, &now).await.err());
    refusals.extend(prometheus::admit(&assessor.config, rule, first.class, None).await.err());
    if let Some(reader) = reader {
        let now = reader.on_timeline(&now)?;
        let question = assessor.question(0, rule, sight, first.class, true);
        for (scope, limits) in &question.budgets {
            for (limit, used) in reader.budget(scope, limits)?.used(&now) {
                writeln!(out, "  budget  {}: {used} of {limit} used", scope.label())?;
            }
        }
        refusals.extend(reader.decide(&question, &now)?.err());
    }
    for refusal in &refusals {
        writeln!(
            out,
            "  refused ({}, scope {}): {}; next allowed {}",
            refusal.reason.as_str(),
            refusal.scope,
            refusal.detail,
            rfc3339(now.wall_after(refusal.wait))
        )?;
    }
    let result = match (rule.mode, refusals.is_empty()) {
        (Mode::Plan, _) => "mode is plan: it would be recorded, and nothing done",
        (_, false) => "it would not be done now",
        (Mode::Approve, true) => "mode is approve: it would be done when a person approves of it",
        (Mode::Auto, true) => "it would be done",
    };
    writeln!(out, "  result  {result}")?;
    Ok(())
}
