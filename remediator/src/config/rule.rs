//! One rule's checks: what would make it useless or dangerous is refused here, in words that name the rule and the cure.

use std::time::Duration;

use evenkeel_host::config::{ConfigError, Located, PromDuration, Ratio};

use super::{
    Checker,
    file::{BreakerFile, BudgetFile, NeededFile, Policy, RuleFile, TargetFile, VerifyFile, WindowFile},
    read_limits,
};
use crate::{
    actions::{self, Step},
    admission::{Restraint, hours::Hours},
    fullness::Marks,
    matcher::Matcher,
    policy::{Class, DenyList, Limit, Mode},
    rules::{DoneWhen, NeededWhen, Rule, Verify},
    target::{Kind, Selector},
};

/// Below this a disk rule without `needed` is not needed: the threshold of the shipped alerts.
const ABOVE: f64 = 0.85;
/// How long a filesystem must stay below its mark, when `hold` does not say.
const HOLD: Duration = Duration::from_secs(60);
/// A rule's name is part of the names of its reports.
const NAME_MAX: usize = 64;

/// Checks one rule; knows its name and what holds for all rules.
pub(super) struct RuleChecker<'a> {
    checker: &'a Checker,
    policy: &'a Policy,
    deny: &'a DenyList,
    name: Located<String>,
}

impl<'a> RuleChecker<'a> {
    pub(super) fn new(
        checker: &'a Checker,
        policy: &'a Policy,
        deny: &'a DenyList,
        name: Located<String>,
    ) -> Self {
        Self { checker, policy, deny, name }
    }

    pub(super) fn rule(self, file: RuleFile) -> Result<Rule, ConfigError> {
        self.name()?;
        let matchers = self.matchers(&file)?;
        let selector = self.selector(&file)?;
        let needed = self.needed(&file, selector.kind)?;
        let restraint = self.restraint(file.cooldown, file.breaker.as_ref())?;
        let limits = match file.limits {
            Some(limits) => self.windows(limits, "limits")?,
            None => read_limits(&["1/15m", "3/6h", "5/24h"]),
        };
        let rule_limits =
            file.rule_limits.map_or(Ok(Vec::new()), |limits| self.windows(limits, "rule_limits"))?;
        let hours = file.window.as_ref().map(|window| self.hours(window)).transpose()?;
        let gates = self.checker.conditions(&self.name.value, &file.gates)?;
        let mode = self.mode(file.mode, &file.steps.value);
        let verify = file.verify.as_ref();
        let verify =
            verify.map(|verify| self.verify(verify, file.on_demand, selector.kind, needed)).transpose()?;
        self.steps(&file.steps, selector.kind, mode)?;
        let rule = Rule {
            name: self.name.value.clone(),
            matchers,
            mode,
            selector,
            needed,
            limits,
            rule_limits,
            restraint,
            hours,
            gates,
            shares: file.budget != Some(BudgetFile::Local),
            steps: evidence_first(file.steps.value.into_iter().map(|step| step.value).collect()),
            verify,
        };
        self.is_measured(&rule)?;
        self.allow_list(&rule, file.target.as_ref())?;
        Ok(rule)
    }

    /// The lowest of what the rule, the policy and the ceilings of its steps' classes say.
    fn mode(&self, own: Option<Mode>, steps: &[Located<Step>]) -> Mode {
        let ceilings = &self.policy.ceilings;
        let ceiling = |class| match class {
            Class::S0 => None,
            Class::S1 => ceilings.S1,
            Class::S2 => ceilings.S2,
            Class::D1 => ceilings.D1,
            Class::D2 => ceilings.D2,
        };
        let mode = own.unwrap_or(self.policy.mode).min(self.policy.mode);
        steps.iter().filter_map(|step| ceiling(step.value.0.class())).fold(mode, Mode::min)
    }

    /// An error at a place of this rule.
    fn wrong<T>(&self, place: &Located<T>, message: impl AsRef<str>) -> ConfigError {
        self.checker.at(place, format!("rule `{}`: {}", self.name.value, message.as_ref()))
    }

    fn name(&self) -> Result<(), ConfigError> {
        let name = &self.name.value;
        let fits = (1..=NAME_MAX).contains(&name.len())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        if fits {
            return Ok(());
        }
        let shown: String = name.chars().take(NAME_MAX).collect();
        Err(self.checker.at(
            &self.name,
            format!(
                "`{shown}` is no rule name: use at most {NAME_MAX} letters, digits, - and _, as in disk-high"
            ),
        ))
    }

    fn windows(&self, limits: Located<Vec<Limit>>, key: &str) -> Result<Vec<Limit>, ConfigError> {
        self.checker.windows(limits, &format!("rule `{}`: `{key}`", self.name.value))
    }

    fn needed(&self, file: &RuleFile, kind: Kind) -> Result<NeededWhen, ConfigError> {
        let Some(needed) = &file.needed else {
            return match kind {
                Kind::Filesystem => Ok(NeededWhen::Above(above_by_default(file.verify.as_ref()))),
                Kind::Unit | Kind::Container | Kind::Hostname => Ok(NeededWhen::Unwell),
                Kind::Host => Err(self.wrong(
                    &self.name,
                    "`needed` is missing: a rule without a target must say when it is needed, as in {build_cache_above: 1GB} or {always: true}",
                )),
            };
        };
        let NeededFile { usage_above, inodes_above, build_cache_above, always } = &needed.value;
        let marks = Marks { usage: usage_above.map(Ratio::get), inodes: inodes_above.map(Ratio::get) };
        let is_marked = marks != Marks::default();
        match (is_marked, build_cache_above, always) {
            (true, None, None) if kind == Kind::Filesystem => Ok(NeededWhen::Above(marks)),
            (true, None, None) => {
                let key = if marks.usage.is_some() { "usage_above" } else { "inodes_above" };
                Err(self.wrong(needed, format!("`needed.{key}` is for filesystems: remove it")))
            }
            (false, Some(most), None) if kind == Kind::Host => Ok(NeededWhen::BuildCacheAbove(most.get())),
            (false, Some(_), None) => Err(self.wrong(
                needed,
                "`needed.build_cache_above` is for rules that are `on_demand: true` and have no `target`: remove one of the two",
            )),
            (false, None, Some(true)) if file.on_demand => Ok(NeededWhen::Always),
            (false, None, Some(true)) => Err(self.wrong(
                needed,
                "`needed.always` is for rules that are `on_demand: true`: an alert is no proof of need, remove it",
            )),
            _ => Err(self.wrong(
                needed,
                "`needed` wants exactly one kind of mark: usage_above, inodes_above or both; build_cache_above; `always: true`",
            )),
        }
    }

    fn hours(&self, file: &Located<WindowFile>) -> Result<Hours, ConfigError> {
        let WindowFile { days, from, to, tz } = &file.value;
        Hours::read(days, from, to, tz.as_deref().unwrap_or("UTC"))
            .map_err(|error| self.wrong(file, format!("`window`: {error}")))
    }

    fn restraint(
        &self,
        cooldown: Option<PromDuration>,
        breaker: Option<&BreakerFile>,
    ) -> Result<Restraint, ConfigError> {
        let mut restraint = Restraint::default();
        if let Some(cooldown) = cooldown {
            restraint.cooldown = cooldown.get();
        }
        if let Some(BreakerFile { after, hold }) = breaker {
            if after.value == 0 {
                return Err(self.wrong(
                    after,
                    "`breaker.after: 0` would never stop what does not help: write 1 or more, the default is 2",
                ));
            }
            (restraint.breaker_after, restraint.breaker_hold) = (after.value, hold.get());
        }
        Ok(restraint)
    }

    fn matchers(&self, file: &RuleFile) -> Result<Vec<Matcher>, ConfigError> {
        let texts = match (&file.matchers, file.on_demand) {
            (Some(texts), false) => texts,
            (None, true) => return Ok(Vec::new()),
            (Some(texts), true) => {
                return Err(self.wrong(
                    texts,
                    "`match` and `on_demand: true` exclude each other: alerts select a rule, or people trigger it",
                ));
            }
            (None, false) => {
                return Err(self.wrong(
                    &self.name,
                    "`match` is missing: say which alerts select it, as in match: ['alertname=\"HostDiskHigh\"'], or `on_demand: true`",
                ));
            }
        };
        let mut matchers = Vec::new();
        for text in &texts.value {
            let matcher = Matcher::parse(&text.value);
            matchers.push(matcher.map_err(|error| self.wrong(text, format!("`match`: {error}")))?);
        }
        if matchers.iter().all(Matcher::accepts_missing) {
            return Err(self.wrong(
                texts,
                "`match` selects every alert: name at least one label, as in 'alertname=\"HostDiskHigh\"'",
            ));
        }
        Ok(matchers)
    }

    fn selector(&self, file: &RuleFile) -> Result<Selector, ConfigError> {
        let Some(target) = &file.target else {
            return if file.on_demand {
                Ok(Selector::host())
            } else {
                Err(self.wrong(
                    &self.name,
                    "`target` is missing: say what it is about, as in target: {unit: name, allow: [app.service]}",
                ))
            };
        };
        let TargetFile { filesystem, unit, container, hostname, allow } = &target.value;
        let given = [
            (Kind::Filesystem, filesystem),
            (Kind::Unit, unit),
            (Kind::Container, container),
            (Kind::Hostname, hostname),
        ];
        let mut given =
            given.into_iter().filter_map(|(kind, label)| label.clone().map(|label| (kind, label)));
        let (Some((kind, label)), None) = (given.next(), given.next()) else {
            return Err(self.wrong(target, "`target` needs exactly one of filesystem, unit, container and hostname, with the label that names it: {unit: name, allow: [app.service]}"));
        };
        if allow.is_empty() {
            return Err(self.wrong(target, "`target.allow` admits nothing: list what this rule may touch"));
        }
        Ok(Selector { kind, label, allow: allow.iter().map(|pattern| pattern.value.clone()).collect() })
    }

    fn verify(
        &self,
        file: &Located<VerifyFile>,
        on_demand: bool,
        kind: Kind,
        needed: NeededWhen,
    ) -> Result<Verify, ConfigError> {
        let wrong = |message: &str| Err(self.wrong(file, message));
        let VerifyFile {
            usage_below,
            inodes_below,
            active_for,
            not_failed_for,
            stopped_for,
            healthy_for,
            unreferenced_for,
            resolves_to,
            completed,
            hold,
            within,
        } = &file.value;
        if completed.is_some() && !on_demand {
            return wrong(
                "`verify.completed` is for rules that are `on_demand: true`: that it was done is no proof that it helped",
            );
        }
        let below = Marks { usage: usage_below.map(Ratio::get), inodes: inodes_below.map(Ratio::get) };
        let given = [
            (below != Marks::default())
                .then(|| (Kind::Filesystem, DoneWhen::Below(below), hold.map_or(HOLD, |h| h.get()))),
            active_for.map(|hold| (Kind::Unit, DoneWhen::Active, hold.get())),
            not_failed_for.map(|hold| (Kind::Unit, DoneWhen::NotFailed, hold.get())),
            stopped_for.map(|hold| (Kind::Unit, DoneWhen::Stopped, hold.get())),
            healthy_for.map(|hold| (Kind::Container, DoneWhen::Healthy, hold.get())),
            unreferenced_for.map(|hold| (Kind::Unit, DoneWhen::Unreferenced, hold.get())),
            resolves_to.map(|address| {
                let hold = hold.map_or(Duration::ZERO, |hold| hold.get());
                (Kind::Hostname, DoneWhen::ResolvesTo(address), hold)
            }),
            completed.filter(|completed| *completed).map(|_| (kind, DoneWhen::Completed, Duration::ZERO)),
        ];
        let mut given = given.into_iter().flatten();
        let (Some((fits, done, hold_for)), None) = (given.next(), given.next()) else {
            return wrong(&format!(
                "`verify` needs exactly one mark that says when it is well: {}",
                example(kind)
            ));
        };
        if fits != kind {
            return wrong(&format!(
                "`verify` is for another kind of target: a {} needs {}",
                kind.as_str(),
                example(kind)
            ));
        }
        if hold.is_some() && !matches!(kind, Kind::Filesystem | Kind::Hostname) {
            return wrong(
                "`verify.hold` goes with usage_below, inodes_below and resolves_to: the other marks say themselves how long they must hold",
            );
        }
        if hold_for >= within.get() {
            return wrong(&format!(
                "`verify.within` must be longer than the {} it must hold: raise it",
                PromDuration::new(hold_for)
            ));
        }
        if let (DoneWhen::Below(below), NeededWhen::Above(above)) = (done, needed) {
            self.marks(file, "usage", above.usage, below.usage)?;
            self.marks(file, "inodes", above.inodes, below.inodes)?;
        }
        Ok(Verify { done, hold: hold_for, within: within.get() })
    }

    /// The two marks of one thing: what it is needed above, and done below.
    fn marks(
        &self,
        verify: &Located<VerifyFile>,
        what: &str,
        above: Option<f64>,
        below: Option<f64>,
    ) -> Result<(), ConfigError> {
        let message = match (above, below) {
            (Some(above), Some(below)) if below >= above => format!(
                "`verify.{what}_below` must be lower than `needed.{what}_above` (85% when not given): otherwise it is done when it begins"
            ),
            (Some(_), None) => format!(
                "`needed.{what}_above` has no mark at which it is done: add `{what}_below` to `verify`, below it"
            ),
            (None, Some(_)) => format!(
                "`verify.{what}_below` has no mark at which it is needed: add `{what}_above` to `needed`, above it"
            ),
            _ => return Ok(()),
        };
        Err(self.wrong(verify, message))
    }

    fn steps(&self, steps: &Located<Vec<Located<Step>>>, kind: Kind, mode: Mode) -> Result<(), ConfigError> {
        if steps.value.is_empty() {
            return Err(self.wrong(steps, "`steps` is empty: name at least one, such as notify"));
        }
        let deletion = self.policy.deletion;
        for step in &steps.value {
            let action = &step.value.0;
            if !action.fits(kind) {
                let fitting = actions::fitting(kind).join(", ");
                let message = format!(
                    "step `{}` cannot be done about a {}: use one of {fitting}",
                    action.name(),
                    kind.as_str(),
                );
                return Err(self.wrong(step, message));
            }
            if mode > Mode::Plan && !deletion.allows(action.class()) {
                let needed = if action.class() == Class::D1 { "cache" } else { "data" };
                let message = format!(
                    "step `{}` deletes (class {}) and `policy.deletion` is {}: set policy.deletion: {needed}, remove the step, or leave the rule in mode plan",
                    action.name(),
                    action.class().as_str(),
                    deletion.as_str()
                );
                return Err(self.wrong(step, message));
            }
        }
        Ok(())
    }

    /// What restarts or deletes says how its effect is measured.
    fn is_measured(&self, rule: &Rule) -> Result<(), ConfigError> {
        if rule.class() <= Class::S1 || rule.verify.is_some() {
            return Ok(());
        }
        let message = format!(
            "`verify` is missing: a rule that restarts or deletes must say how its effect is measured, as in verify: {}",
            example(rule.selector.kind)
        );
        Err(self.wrong(&self.name, message))
    }

    fn allow_list(&self, rule: &Rule, target: Option<&Located<TargetFile>>) -> Result<(), ConfigError> {
        for pattern in target.iter().flat_map(|target| &target.value.allow) {
            if rule.class() > Class::S1 && pattern.value.matches_all() {
                return Err(self.wrong(pattern, "`target.allow: [*]` admits everything, and this rule restarts or deletes: list what it may touch"));
            }
            let text = pattern.value.to_string();
            if rule.selector.kind == Kind::Unit && pattern.value.is_literal() && self.deny.denies(&text) {
                let message = format!("`target.allow` names {text}, which evenkeel never acts on: remove it");
                return Err(self.wrong(pattern, message));
            }
        }
        Ok(())
    }
}

/// When a rule about a filesystem is needed that says only when it is done.
fn above_by_default(verify: Option<&Located<VerifyFile>>) -> Marks {
    let inodes = verify.is_some_and(|verify| verify.value.inodes_below.is_some());
    let usage = !inodes || verify.is_some_and(|verify| verify.value.usage_below.is_some());
    Marks { usage: usage.then_some(ABOVE), inodes: inodes.then_some(ABOVE) }
}

/// What `verify` looks like for a kind of target.
fn example(kind: Kind) -> &'static str {
    match kind {
        Kind::Filesystem => "{usage_below: 80%, within: 5m}",
        Kind::Unit => "{active_for: 60s, within: 4m} or {not_failed_for: 60s, within: 4m}",
        Kind::Container => "{healthy_for: 60s, within: 5m}",
        Kind::Hostname => "{resolves_to: 127.0.0.1, within: 1m}",
        Kind::Host => "{completed: true, within: 10m}",
    }
}

/// A rule that acts takes a report before it does, for the repair may destroy the evidence; where the rule itself says
/// when, that holds.
fn evidence_first(mut steps: Vec<Step>) -> Vec<Step> {
    let acts = steps.iter().any(|step| step.0.class().acts());
    let reports = steps.iter().any(|step| step.0.name() == actions::REPORT);
    if acts && !reports {
        steps.insert(0, actions::report());
    }
    steps
}
