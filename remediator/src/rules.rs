//! What an alert means here: which rule it selects, when that is needed, and when it is done. Pure.

use std::{borrow::Borrow, collections::BTreeMap, net::IpAddr, time::Duration};

use crate::{
    actions::Step,
    admission::{Restraint, hours::Hours},
    api::prometheus::Gate,
    fullness::{Lack, Marks},
    matcher::Matcher,
    observe::Observation,
    policy::{Class, DenyList, Limit, Mode},
    target::{Kind, NoTarget, Selector, Target},
};

/// One rule, checked.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its name; unique.
    pub name: String,
    /// All must match. Empty for a rule that only people trigger.
    pub matchers: Vec<Matcher>,
    /// How far it may go: the lower of its own mode and the policy's.
    pub mode: Mode,
    /// What it may be about.
    pub selector: Selector,
    /// When its target is in need.
    pub needed: NeededWhen,
    /// Starts of this rule on one target.
    pub limits: Vec<Limit>,
    /// Starts of this rule on all its targets.
    pub rule_limits: Vec<Limit>,
    /// Cooldown and breaker.
    pub restraint: Restraint,
    /// When it may act; always where not set.
    pub hours: Option<Hours>,
    /// What Prometheus must say for it to act.
    pub gates: Vec<Gate>,
    /// Whether the budgets and the pace of the fleet hold for it.
    pub shares: bool,
    /// Tried in this order until it is done.
    pub steps: Vec<Step>,
    /// When it is done; rules that only observe have none.
    pub verify: Option<Verify>,
}

/// When a target is in need.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NeededWhen {
    /// The filesystem above one of these marks.
    Above(Marks),
    /// One of the steps is for what is seen: the unit is failed or looping, the container runs and is unhealthy, the name
    /// does not resolve …
    Unwell,
    /// More build cache than this that nothing uses, in bytes.
    BuildCacheAbove(u64),
    /// Whenever it is triggered.
    Always,
}

/// What must be seen, and for how long, before a repair counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verify {
    /// What must be seen.
    pub done: DoneWhen,
    /// Without a break for so long.
    pub hold: Duration,
    /// At the latest so long after the action ended.
    pub within: Duration,
}

/// What a target must look like to be done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DoneWhen {
    /// The filesystem below all of these marks.
    Below(Marks),
    /// The unit is active; one that runs once and ends: its new run ended well.
    Active,
    /// The unit is not failed.
    NotFailed,
    /// The unit is not running, and does not start again.
    Stopped,
    /// The container is healthy, or runs and has no healthcheck.
    Healthy,
    /// No file of the host's own names the unit that does not exist, and it is not failed.
    Unreferenced,
    /// The name resolves, and to this address alone.
    ResolvesTo(IpAddr),
    /// The action has been carried out: for rules that are no repair.
    Completed,
}

/// Whether something must be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// Yes.
    Needed,
    /// No: why, for people.
    NotNeeded(String),
    /// It could not be told: why, for people.
    Unknown(String),
}

impl Rule {
    /// Whether an alert with these labels is this rule's.
    pub fn matches<S: Borrow<str> + Ord>(&self, labels: &BTreeMap<S, S>) -> bool {
        !self.on_demand() && self.matchers.iter().all(|matcher| matcher.matches(labels))
    }

    /// Whether only people trigger it.
    pub fn on_demand(&self) -> bool {
        self.matchers.is_empty()
    }

    /// Whether it may interrupt a service by itself or with approval: what a storm is counted by.
    pub fn interrupts(&self) -> bool {
        self.mode > Mode::Plan && self.steps.iter().any(|step| step.0.class() == Class::S2)
    }

    /// Whether any step changes the host.
    pub fn acts(&self) -> bool {
        self.steps.iter().any(|step| step.0.class().acts())
    }

    /// The highest class among the steps.
    pub fn class(&self) -> Class {
        self.steps.iter().map(|step| step.0.class()).max().unwrap_or(Class::S0)
    }

    /// Whether it is no repair, and done when its steps have been carried out.
    pub fn is_done_when_completed(&self) -> bool {
        self.verify.is_some_and(|verify| verify.done == DoneWhen::Completed)
    }

    /// The target under its canonical name, when that may be touched too: an alias must not lead around the lists.
    ///
    /// # Errors
    /// When the canonical name or any other of its names is denied, or not on the allow-list.
    pub fn canonical(
        &self,
        target: &Target,
        seen: &Observation,
        deny: &DenyList,
    ) -> Result<Target, NoTarget> {
        if let Observation::Unit(unit) = seen
            && unit.names.iter().any(|name| deny.denies(name))
        {
            return Err(NoTarget::NotAllowed);
        }
        let canonical = seen.canonical(target);
        if target.kind() == Kind::Unit && deny.denies(canonical) {
            return Err(NoTarget::NotAllowed);
        }
        self.selector.admit(canonical)
    }

    /// Whether what was seen needs this rule. Rules that only observe are needed by whatever there is, for the alert
    /// itself is the news; not by a unit that does not exist and that nothing on the host names.
    pub fn need(&self, seen: &Observation) -> Need {
        if !self.acts() {
            return match seen {
                Observation::Unit(unit) if unit.is_unheard_of() => Need::NotNeeded(seen.summary()),
                _ => Need::Needed,
            };
        }
        let needed = match (self.needed, seen) {
            (NeededWhen::Always, _) => true,
            (NeededWhen::Above(marks), Observation::Filesystem(filesystem)) => marks.exceeded(filesystem),
            (
                NeededWhen::Unwell,
                Observation::Unit(_) | Observation::Container(_) | Observation::Hostname(_),
            ) => self.steps.iter().any(|step| step.0.class().acts() && step.0.is_for(seen)),
            (NeededWhen::BuildCacheAbove(most), Observation::Host(host)) => match host.build_cache_bytes {
                Some(bytes) => bytes > most,
                None => return Need::Unknown(seen.summary()),
            },
            // Checked at load: what it is needed by goes with what it is about.
            _ => false,
        };
        if needed { Need::Needed } else { Need::NotNeeded(seen.summary()) }
    }

    /// Whether what was seen needs this rule.
    pub fn needs(&self, seen: &Observation) -> bool {
        self.need(seen) == Need::Needed
    }

    /// The marks below which a filesystem is done; `None` for other rules.
    pub fn done_below(&self) -> Option<Marks> {
        match self.verify?.done {
            DoneWhen::Below(marks) => Some(marks),
            _ => None,
        }
    }

    /// What must come free until a filesystem is done; `None` for other targets.
    pub fn lack(&self, seen: &Observation) -> Option<Lack> {
        let Observation::Filesystem(filesystem) = seen else { return None };
        Some(self.done_below()?.lack(filesystem))
    }
}

impl DoneWhen {
    /// Whether `seen` is done, for an action that began when `before` was seen.
    pub fn met(&self, before: &Observation, seen: &Observation) -> bool {
        match (self, seen) {
            (Self::Below(marks), Observation::Filesystem(filesystem)) => marks.kept(filesystem),
            (Self::Active, Observation::Unit(unit)) if unit.runs_once => {
                let new_run =
                    !matches!(before, Observation::Unit(b) if b.invocation_id == unit.invocation_id);
                new_run
                    && unit.result == "success"
                    && matches!(unit.active_state.as_str(), "active" | "inactive")
            }
            (Self::Active, Observation::Unit(unit)) => unit.active_state == "active",
            (Self::NotFailed, Observation::Unit(unit)) => !unit.is_failed() && !unit.is_looping(),
            (Self::Stopped, Observation::Unit(unit)) => {
                matches!(unit.active_state.as_str(), "inactive" | "failed")
            }
            (Self::Unreferenced, Observation::Unit(unit)) => unit.named_by.is_empty() && !unit.is_failed(),
            (Self::ResolvesTo(address), Observation::Hostname(name)) => name.resolves_to(*address),
            (Self::Healthy, Observation::Container(container)) => {
                container.state == "running" && matches!(container.health.as_str(), "healthy" | "none")
            }
            _ => false,
        }
    }
}

/// The first rule that matches wins, as in a routing tree without `continue`.
pub fn find<'a, S: Borrow<str> + Ord>(rules: &'a [Rule], labels: &BTreeMap<S, S>) -> Option<&'a Rule> {
    rules.iter().find(|rule| rule.matches(labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::tests::rule,
        observe::{Container, Filesystem, Unit},
    };

    fn disk(size_bytes: u64, avail_bytes: u64) -> Observation {
        let used_ratio = 1.0 - avail_bytes as f64 / size_bytes as f64;
        Observation::Filesystem(Filesystem { size_bytes, avail_bytes, used_ratio, inodes: None, device: 1 })
    }

    fn unit(active_state: &str) -> Unit {
        Unit { load_state: "loaded".to_owned(), active_state: active_state.to_owned(), ..Unit::default() }
    }

    #[test]
    fn a_disk_needs_help_above_one_mark_and_is_done_below_a_lower_one() {
        let rule = rule(
            "{name: disk, match: ['a=\"b\"'], target: {filesystem: mountpoint, allow: [/]}, needed: {usage_above: 85%},
              steps: [build_cache_prune], verify: {usage_below: 80%, within: 5m}}",
        );
        assert_eq!(rule.need(&disk(1000, 140)), Need::Needed);
        assert!(matches!(rule.need(&disk(1000, 150)), Need::NotNeeded(_)));
        assert_eq!(rule.done_below(), Some(Marks { usage: Some(0.8), inodes: None }));
        let done = rule.verify.unwrap().done;
        assert!(!done.met(&disk(1000, 90), &disk(1000, 200)));
        assert!(done.met(&disk(1000, 90), &disk(1000, 201)));
    }

    #[test]
    fn a_stopped_unit_needs_nothing() {
        let rule = rule(
            "{name: unit, match: ['a=\"b\"'], target: {unit: name, allow: [app.service]}, steps: [unit_restart],
              verify: {active_for: 5s, within: 1m}}",
        );
        assert_eq!(rule.need(&Observation::Unit(unit("failed"))), Need::Needed);
        assert!(matches!(rule.need(&Observation::Unit(unit("inactive"))), Need::NotNeeded(_)));
        assert!(matches!(rule.need(&Observation::Unit(unit("active"))), Need::NotNeeded(_)));
    }

    #[test]
    fn a_rule_is_needed_by_what_its_steps_are_for() {
        let about = |steps: &str, verify: &str| {
            rule(&format!(
                "{{name: unit, match: ['a=\"b\"'], target: {{unit: name, allow: [app.service]}}, steps: [{steps}],
                  verify: {{{verify}, within: 1m}}}}"
            ))
        };
        let needs = |rule: &Rule, state: &str| rule.needs(&Observation::Unit(unit(state)));
        let start = about("unit_start", "active_for: 5s");
        assert!(needs(&start, "inactive") && needs(&start, "failed") && !needs(&start, "active"));
        let stop = about("unit_stop", "stopped_for: 5s");
        assert!(needs(&stop, "active") && !needs(&stop, "inactive"));
        assert!(
            DoneWhen::Stopped.met(&Observation::Unit(unit("active")), &Observation::Unit(unit("inactive")))
        );
        let reload = about("daemon_reload, unit_restart", "active_for: 5s");
        assert!(!needs(&reload, "active") && needs(&reload, "failed"));
        let stale = Unit { need_daemon_reload: true, ..unit("active") };
        assert!(reload.needs(&Observation::Unit(stale)));
    }

    #[test]
    fn a_oneshot_is_done_when_its_new_run_ended_well() {
        let run = |invocation: &str, result: &str| {
            Observation::Unit(Unit {
                runs_once: true,
                invocation_id: invocation.to_owned(),
                result: result.to_owned(),
                ..unit(if result == "success" { "inactive" } else { "failed" })
            })
        };
        let before = run("1", "exit-code");
        assert!(DoneWhen::Active.met(&before, &run("2", "success")));
        assert!(!DoneWhen::Active.met(&before, &run("2", "exit-code")));
        // `reset-failed` alone makes it inactive with the old run's id: that is no new run.
        assert!(!DoneWhen::Active.met(&before, &run("1", "success")));
    }

    #[test]
    fn a_rule_that_only_observes_is_needed_by_whatever_there_is() {
        let rule = rule(
            "{name: tell, match: ['a=\"b\"'], target: {unit: name, allow: ['*.service']}, steps: [notify]}",
        );
        let gone = Unit { load_state: "not-found".to_owned(), ..unit("inactive") };
        let left_behind = Unit { active_state: "failed".to_owned(), ..gone.clone() };
        for seen in [unit("active"), unit("failed"), left_behind] {
            assert_eq!(rule.need(&Observation::Unit(seen)), Need::Needed);
        }
        assert!(matches!(rule.need(&Observation::Unit(gone)), Need::NotNeeded(_)));
    }

    #[test]
    fn an_alias_does_not_lead_around_the_lists() {
        let rule = rule(
            "{name: unit, match: ['a=\"b\"'], target: {unit: name, allow: ['app*.service']}, steps: [unit_restart],
              verify: {active_for: 5s, within: 1m}}",
        );
        let deny = DenyList::with(Vec::new());
        let target = rule.selector.admit("app-alias.service").unwrap();
        let seen = |id: &str, names: &[&str]| {
            Observation::Unit(Unit {
                id: id.to_owned(),
                names: names.iter().map(|name| (*name).to_owned()).collect(),
                ..unit("failed")
            })
        };
        let canonical = |seen| rule.canonical(&target, &seen, &deny).map(|target| target.name().to_owned());
        assert_eq!(
            canonical(seen("app.service", &["app.service", "app-alias.service"])).unwrap(),
            "app.service"
        );
        assert_eq!(
            canonical(seen("nginx.service", &["nginx.service", "app-alias.service"])),
            Err(NoTarget::NotAllowed)
        );
        assert_eq!(canonical(seen("docker.service", &["docker.service"])), Err(NoTarget::NotAllowed));
        assert_eq!(
            canonical(seen("app.service", &["app.service", "sshd.service"])),
            Err(NoTarget::NotAllowed)
        );
    }

    #[test]
    fn a_paused_or_exited_container_needs_nothing() {
        let rule = rule(
            "{name: c, match: ['a=\"b\"'], target: {container: name, allow: [app]}, steps: [container_restart],
              verify: {healthy_for: 5s, within: 1m}}",
        );
        let seen = |state: &str, health: &str| {
            Observation::Container(Container {
                state: state.to_owned(),
                health: health.to_owned(),
                ..Container::default()
            })
        };
        assert_eq!(rule.need(&seen("running", "unhealthy")), Need::Needed);
        for (state, health) in
            [("running", "healthy"), ("running", "starting"), ("paused", "none"), ("exited", "none")]
        {
            assert!(matches!(rule.need(&seen(state, health)), Need::NotNeeded(_)), "{state} {health}");
        }
    }
}
