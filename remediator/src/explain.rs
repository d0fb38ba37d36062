//! `explain`: what a rule means, why it does or does not act on a target, when it may next, and what to type.

use std::{io::Write, sync::Arc};

use anyhow::bail;
use evenkeel_host::config::{ConfigError, PromDuration, format_bytes};

use crate::{
    admission::{Reason, Refusal},
    api::prometheus::{self, Exporter},
    assess::{Assessor, Planned, Sight},
    check_config::{allowed, describe},
    clock::{Clock, Moment, rfc3339},
    config::Config,
    daemon::{self, Daemon},
    history,
    journal::{Reader, StepState},
    notify::Notifier,
    observe::{Host, Observation, Unit},
    outcome::Outcome,
    policy::{Class, Mode},
    rules::Rule,
    target::Target,
    text::{printable, printable_lines, shell_word},
};

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
            format!("there is no rule `{}`: use one of {}", printable(rule), names.join(", ")),
        )
        .into());
    };
    let target = match rule.selector.admit(name) {
        Ok(target) => target,
        Err(no) => bail!(
            "rule {} does not act on {}: {} ({}); it admits {}",
            rule.name,
            printable(name),
            no.words(),
            no.reason(),
            allowed(rule)
        ),
    };
    let reader = Reader::open_if_any(&config.places())?;
    let (daemon, clock) = (daemon::ask(&config).await, Clock::default());
    let view = View { assessor: &assessor, reader: reader.as_ref(), daemon: &daemon, clock: &clock };
    view.explain(rule, &target, out).await
}

/// Looks at what would be done now: at the host, in the journal, and at what the daemon says of itself. Reserves
/// nothing.
pub(crate) struct View<'a> {
    pub(crate) assessor: &'a Assessor,
    /// None where there is no state yet.
    pub(crate) reader: Option<&'a Reader>,
    /// What the daemon answered, or why it did not.
    pub(crate) daemon: &'a anyhow::Result<Daemon>,
    pub(crate) clock: &'a Clock,
}

impl View<'_> {
    /// The rule, what would be done about the target now, and what was done before.
    pub(crate) async fn explain(
        &self,
        rule: &Rule,
        target: &Target,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        let config = &self.assessor.config;
        describe(config, rule, out)?;
        writeln!(out, "\nnow")?;
        self.now(rule, target, out).await?;
        self.alerts(out)?;
        writeln!(out, "\non record")?;
        let Some(reader) = self.reader else {
            return Ok(writeln!(out, "  {}", history::no_state(config))?);
        };
        // What was done under an alias is on record under the name of the thing itself.
        let known_as = match self.assessor.eyes.observe(target).await {
            Ok(seen) => rule.canonical(target, &seen, &config.deny).unwrap_or_else(|_| target.clone()),
            Err(_) => target.clone(),
        };
        let recent = reader.recent(Some(&rule.name), Some(known_as.name()), 5)?;
        if recent.is_empty() {
            return Ok(writeln!(out, "  nothing")?);
        }
        history::write(reader, &recent, out)
    }

    /// What an alert that came now would lead to.
    pub(crate) async fn now(&self, rule: &Rule, target: &Target, out: &mut impl Write) -> anyhow::Result<()> {
        let sight = match self.assessor.look(rule, target).await {
            Err(stop) => {
                let words = match stop.outcome {
                    Outcome::NotNeeded => "nothing has to be done",
                    other => other.as_str(),
                };
                writeln!(out, "  {words} ({}): {}", stop.reason, printable(&stop.detail))?;
                return Ok(());
            }
            Ok(sight) => sight,
        };
        entry("seen", &printable(&sight.seen.summary()), out)?;
        why(&sight.seen, out)?;
        let steps = self.assessor.plan(0, rule, &sight).await;
        for (position, Planned { record: step, frees }) in steps.iter().enumerate() {
            let verdict = match (&step.reason, &step.detail, frees) {
                (Some(reason), Some(detail), _) => format!("no ({reason}): {}", printable(detail)),
                (.., Some(bytes)) => format!("would run, and free {} at most", format_bytes(*bytes)),
                (None, Some(changes), None) => {
                    format!("would run: {}", printable_lines(changes).replace('\n', "\n          "))
                }
                _ => "would run".to_owned(),
            };
            let text = format!("{} [{}] {verdict}", step.action, step.class.as_str());
            entry(&format!("step {}", position + 1), &text, out)?;
            entry("", &printable(&step.plan), out)?;
        }
        self.admission(rule, &sight, &steps, out).await
    }

    /// Whether the first acting step would be admitted now.
    async fn admission(
        &self,
        rule: &Rule,
        sight: &Sight,
        steps: &[Planned],
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        let mut steps = steps.iter().map(|step| &step.record);
        let first = steps.find(|step| step.class.acts() && step.state == StepState::Planned);
        let Some(first) = first else {
            let text = match rule.acts() {
                true => "no step that acts may run: nothing would be done",
                false => "it only observes",
            };
            return Ok(entry("result", text, out)?);
        };
        let now = self.clock.now();
        let refusals = self.refusals(rule, sight, first.class, &now, out).await?;
        for Refusal { reason, detail, wait, .. } in &refusals {
            entry("not now", &format!("{detail} ({})", reason.as_str()), out)?;
            entry("", &format!("not before {}", rfc3339(now.wall_after(*wait))), out)?;
        }
        if refusals.is_empty() && self.daemon.is_err() && self.may_be_young(first.class) {
            let grace = PromDuration::new(self.assessor.config.gates.grace);
            let text = format!(
                "whether the daemon has run for the {grace} of `policy.gates.grace`: it does not answer"
            );
            entry("unknown", &text, out)?;
        }
        let result = match (rule.mode, refusals.is_empty()) {
            (Mode::Plan, _) => {
                "mode is plan: it would be recorded, and nothing done; to have it done, `mode: auto` in the rule and in `policy`"
            }
            (_, false) => "it would not be done now",
            (Mode::Approve, true) => "mode is approve: it would be done when a person approves of it",
            (Mode::Auto, true) => "it would be done",
        };
        entry("result", result, out)?;
        for command in refusals.iter().filter_map(|refusal| cure(refusal.reason, rule, &sight.target)) {
            entry("type", &command, out)?;
        }
        Ok(())
    }

    /// Everything that speaks against beginning now; prints what the limits have left.
    async fn refusals(
        &self,
        rule: &Rule,
        sight: &Sight,
        class: Class,
        now: &Moment,
        out: &mut impl Write,
    ) -> anyhow::Result<Vec<Refusal>> {
        let assessor = self.assessor;
        let started = self.daemon.as_ref().ok().map(|daemon| &daemon.started);
        let mut refusals = Vec::new();
        refusals.extend(assessor.gates(rule, class, started, now).await.err());
        refusals.extend(prometheus::admit(&assessor.config, rule, class, None).await.err());
        let Some(reader) = self.reader else { return Ok(refusals) };
        let on_timeline = reader.on_timeline(now)?;
        let question = assessor.question(0, rule, sight, class, true);
        for (scope, limits) in &question.budgets {
            let used = reader.budget(scope, limits)?.used(&on_timeline);
            let windows: Vec<String> = used
                .iter()
                .map(|(limit, used)| {
                    format!("{used} of {} in {}", limit.count, PromDuration::new(limit.window))
                })
                .collect();
            if !windows.is_empty() {
                entry("used", &format!("{}: starts {}", windows.join(", "), scope.words()), out)?;
            }
        }
        refusals.extend(reader.decide(&question, &on_timeline)?.err());
        Ok(refusals)
    }

    /// Whether the grace after a start of the daemon may hold such a step up.
    fn may_be_young(&self, class: Class) -> bool {
        class > Class::S1 && !self.assessor.config.gates.grace.is_zero()
    }

    /// Whether alerts can come at all, where the daemon knows.
    fn alerts(&self, out: &mut impl Write) -> anyhow::Result<()> {
        let Ok(daemon) = self.daemon else { return Ok(()) };
        if !daemon.reload.succeeded {
            let text = "the daemon goes by an older configuration: the last reload was refused, evenkeel-remediator check-config says why";
            entry("beware", text, out)?;
        }
        match daemon.exporter {
            Some(Exporter::Up) | None => Ok(()),
            Some(seen @ Exporter::Unknown) => Ok(entry("alerts", seen.words(), out)?),
            Some(seen) => Ok(entry("alerts", &format!("{}: none comes from it", seen.words()), out)?),
        }
    }
}

/// One line of what would be done now, and a further one below it.
fn entry(name: &str, text: &str, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "  {name:<8}{text}")
}

/// What is known to cure what a unit fails of, and why that may not be known.
fn why(seen: &Observation, out: &mut impl Write) -> std::io::Result<()> {
    let Observation::Unit(Unit { why: Some(why), .. }) = seen else { return Ok(()) };
    for (name, words) in [("cure", &why.cure), ("since", &why.changed), ("unread", &why.unread)] {
        if let Some(words) = words {
            entry(name, words, out)?;
        }
    }
    Ok(())
}

/// What a person may type to have it done all the same.
fn cure(reason: Reason, rule: &Rule, target: &Target) -> Option<String> {
    match reason {
        Reason::Breaker | Reason::Cooldown => {
            Some(format!("evenkeel-remediator ack {} {}", rule.name, shell_word(target.name())))
        }
        Reason::Paused | Reason::Storm => Some("evenkeel-remediator resume".to_owned()),
        _ => None,
    }
}
