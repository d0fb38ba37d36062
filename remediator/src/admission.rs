//! Whether a start is admitted now: exact sliding-log limits in several scopes, the cooldown after an earlier try,
//! and the breaker after tries that did not help. Pure functions of the log, the history and the time. What the host
//! itself says against it is in [`gates`], a rule's hours in [`hours`].

pub mod gates;
pub mod hours;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use crate::{
    clock::Moment,
    outcome::Outcome,
    policy::{Class, Limit},
};

/// The longest cooldown, however often it doubled.
const COOLDOWN_MAX: Duration = Duration::from_secs(24 * 3600);

/// What a start is counted under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// One rule on one target.
    RuleTarget(String, String),
    /// One rule on all its targets.
    Rule(String),
    /// One target, whatever the rule.
    Target(String),
    /// One class of actions on this host.
    Class(Class),
    /// Everything on this host.
    Host,
}

impl Scope {
    /// The key in the log of starts.
    pub fn key(&self) -> String {
        match self {
            Self::RuleTarget(rule, target) => format!("rule_target:{rule}:{target}"),
            Self::Rule(rule) => format!("rule:{rule}"),
            Self::Target(target) => format!("target:{target}"),
            Self::Class(class) => format!("class:{}", class.as_str()),
            Self::Host => "host".to_owned(),
        }
    }

    /// For people, without the target: after `starts`.
    pub fn words(&self) -> String {
        match self {
            Self::RuleTarget(..) => "of this rule on this target".to_owned(),
            Self::Rule(_) => "of this rule".to_owned(),
            Self::Target(_) => "on this target".to_owned(),
            Self::Class(class) => format!("of {} ({})", class.words(), class.as_str()),
            Self::Host => "on this host".to_owned(),
        }
    }

    /// The word for metrics: bounded, without the target.
    pub fn label(&self) -> &'static str {
        match self {
            Self::RuleTarget(..) => "rule_target",
            Self::Rule(_) => "rule",
            Self::Target(_) => "target",
            Self::Class(class) => class.as_str(),
            Self::Host => "host",
        }
    }
}

/// One scope with its windows, and the starts counted in it so far.
#[derive(Debug, Clone)]
pub struct Budget {
    /// What is counted.
    pub scope: Scope,
    /// Windows, each longer than the one before.
    pub limits: Vec<Limit>,
    /// The starts, in any order.
    pub starts: Vec<Moment>,
    /// When the memory of earlier starts was lost: every window may have been full just then.
    pub lost: Option<Moment>,
}

/// Why a start is not admitted; the words are metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A window of some scope is full.
    Limited,
    /// Too soon after the last try.
    Cooldown,
    /// The last tries did not help.
    Breaker,
    /// A person has stopped everything.
    Paused,
    /// Too many targets are in need at once.
    Storm,
    /// The same device is being repaired under another name.
    Busy,
    /// Outside the hours that the rule names.
    Hours,
    /// The host or the remediator has only just started.
    Grace,
    /// The message bus has only just started.
    BusGrace,
    /// The engine has only just started.
    EngineGrace,
    /// systemd is starting or shutting the host down.
    SystemState,
    /// Packages are being installed.
    PackageManager,
    /// The host is short of memory, disk time or processors.
    Pressure,
    /// A condition that the rule sets in PromQL does not hold, or nobody knows whether it does.
    Condition,
    /// Somebody has silenced the alert, or another one inhibits it.
    Silenced,
    /// A window of a scope of the whole fleet is full.
    FleetLimited,
    /// As many hosts of the fleet act as may at once.
    FleetPace,
    /// Too many hosts of the fleet are gone or in need.
    FleetStop,
    /// A person has stopped the whole fleet.
    FleetPaused,
    /// The fleet's Redis cannot be asked.
    FleetLost,
    /// The lease ran out before the action began: another host may act in its place.
    FleetLate,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::Limited,
        Self::Cooldown,
        Self::Breaker,
        Self::Paused,
        Self::Storm,
        Self::Busy,
        Self::Hours,
        Self::Grace,
        Self::BusGrace,
        Self::EngineGrace,
        Self::SystemState,
        Self::PackageManager,
        Self::Pressure,
        Self::Condition,
        Self::Silenced,
        Self::FleetLimited,
        Self::FleetPace,
        Self::FleetStop,
        Self::FleetPaused,
        Self::FleetLost,
        Self::FleetLate,
    ];

    /// As in metrics and the audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Limited => "limited",
            Self::Cooldown => "cooldown",
            Self::Breaker => "breaker",
            Self::Paused => "paused",
            Self::Storm => "storm",
            Self::Busy => "busy",
            Self::Hours => "hours",
            Self::Grace => "grace",
            Self::BusGrace => "bus_grace",
            Self::EngineGrace => "engine_grace",
            Self::SystemState => "system_state",
            Self::PackageManager => "package_manager",
            Self::Pressure => "pressure",
            Self::Condition => "condition",
            Self::Silenced => "silenced",
            Self::FleetLimited => "fleet_limited",
            Self::FleetPace => "fleet_pace",
            Self::FleetStop => "fleet_stop",
            Self::FleetPaused => "fleet_paused",
            Self::FleetLost => "fleet_lost",
            Self::FleetLate => "fleet_late",
        }
    }

    /// How a remediation ends that is not waiting for this to pass.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Limited | Self::Cooldown | Self::FleetLimited => Outcome::Limited,
            _ => Outcome::Blocked,
        }
    }

    /// Whether it passes by itself, at a time that only looking again tells.
    pub fn is_passing(self) -> bool {
        matches!(
            self,
            Self::Busy
                | Self::Grace
                | Self::BusGrace
                | Self::EngineGrace
                | Self::SystemState
                | Self::PackageManager
                | Self::Pressure
                | Self::Condition
                | Self::FleetPace
                | Self::FleetLost
                | Self::FleetLate
        )
    }
}

/// Why a start is not admitted, and when one may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// As a word.
    pub reason: Reason,
    /// What the reason is about: a scope of the limits, `rule_target`, `rule`, `device` or `host`.
    pub scope: &'static str,
    /// For people: which limit, how much of it is used.
    pub detail: String,
    /// How long from now until this reason ends; when nobody knows, until it is worth looking again.
    pub wait: Duration,
}

impl Budget {
    /// How many starts each window holds now.
    pub fn used(&self, now: &Moment) -> Vec<(Limit, usize)> {
        let ages: Vec<Duration> = self.starts.iter().map(|start| start.age(now)).collect();
        let lost = self.lost.as_ref().map(|lost| lost.age(now));
        self.limits
            .iter()
            .map(|limit| {
                if lost.is_some_and(|age| age < limit.window) {
                    return (*limit, usize::try_from(limit.count).unwrap_or(usize::MAX));
                }
                (*limit, ages.iter().filter(|age| **age < limit.window).count())
            })
            .collect()
    }

    /// Refuses one more start when any window is full: at most `count` starts in any (t − window, t].
    fn refuses(&self, now: &Moment) -> Option<Refusal> {
        let mut ages: Vec<Duration> = self.starts.iter().map(|start| start.age(now)).collect();
        ages.sort_unstable();
        let lost = self.lost.as_ref().map(|lost| lost.age(now));
        let full = |limit: &Limit| {
            if let Some(wait) =
                lost.and_then(|age| limit.window.checked_sub(age)).filter(|wait| !wait.is_zero())
            {
                let detail = format!(
                    "the state was lost: how many starts {} there were is not known, and counts as {limit} used",
                    self.scope.words()
                );
                return Some(Refusal { reason: Reason::Limited, scope: self.scope.label(), detail, wait });
            }
            let count = usize::try_from(limit.count).unwrap_or(usize::MAX);
            let used = ages.partition_point(|age| *age < limit.window);
            if used < count {
                return None;
            }
            // Room comes when the oldest of the newest `count` starts leaves the window; with a count of 0, never.
            let wait = count.checked_sub(1).map_or(limit.window, |oldest| limit.window - ages[oldest]);
            let detail = format!("{} of {} starts {} used ({limit})", used, limit.count, self.scope.words());
            Some(Refusal { reason: Reason::Limited, scope: self.scope.label(), detail, wait })
        };
        self.limits.iter().filter_map(full).max_by_key(|refusal| refusal.wait)
    }
}

/// The longest-lasting of the refusals by `budgets`, if any refuses.
pub fn limits(budgets: &[Budget], now: &Moment) -> Result<(), Refusal> {
    match budgets.iter().filter_map(|budget| budget.refuses(now)).max_by_key(|refusal| refusal.wait) {
        Some(refusal) => Err(refusal),
        None => Ok(()),
    }
}

/// One ended remediation of the same rule and target, as the cooldown and the breaker see it.
#[derive(Debug, Clone)]
pub struct Past {
    /// Whether it acted on the host; a refusal or a plan did not.
    pub acted: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether a person has looked at it since and wants it tried again.
    pub acked: bool,
    /// When the alert came.
    pub received: Moment,
    /// When it ended.
    pub ended: Moment,
}

/// How a rule holds back after it has acted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restraint {
    /// Wait this long after acting; doubled with each consecutive need, at most 24 h, ± 25 %.
    pub cooldown: Duration,
    /// So long a time in health makes the next need a first one again.
    pub healthy_reset: Duration,
    /// So many tries in a row that did not help open the breaker.
    pub breaker_after: u32,
    /// So long the breaker stays open; then one try is admitted.
    pub breaker_hold: Duration,
}

impl Default for Restraint {
    fn default() -> Self {
        Self {
            cooldown: Duration::from_secs(600),
            healthy_reset: Duration::from_secs(3600),
            breaker_after: 2,
            breaker_hold: Duration::from_secs(12 * 3600),
        }
    }
}

/// The breaker's three positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breaker {
    /// Tries are admitted.
    Closed,
    /// The hold is over, or a person has ended it: one try is admitted, and decides.
    HalfOpen,
    /// No try is admitted.
    Open,
}

impl Breaker {
    /// As in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

impl Restraint {
    /// Refuses when the breaker is open, or the cooldown after the last try has not passed. `history` is newest first.
    pub fn admits(&self, history: &[Past], now: &Moment) -> Result<(), Refusal> {
        let Some(last) = history.iter().find(|past| past.acted) else { return Ok(()) };
        if last.acked {
            return Ok(());
        }
        let since = last.ended.age(now);
        if self.breaker(history, now) == Breaker::Open {
            return Err(Refusal {
                reason: Reason::Breaker,
                scope: "rule_target",
                detail: format!("the last {} tries did not help; a person is needed", self.breaker_after),
                wait: self.breaker_hold - since,
            });
        }
        let cooldown = self.cooldown_after(history);
        if since < cooldown {
            let consecutive = self.consecutive(history);
            return Err(Refusal {
                reason: Reason::Cooldown,
                scope: "rule_target",
                detail: match consecutive {
                    0 | 1 => "it cools down after the last try".to_owned(),
                    n => format!("it cools down after {n} tries in a row"),
                },
                wait: cooldown - since,
            });
        }
        Ok(())
    }

    /// Where the breaker stands. `history` is newest first.
    pub fn breaker(&self, history: &[Past], now: &Moment) -> Breaker {
        let tries = usize::try_from(self.breaker_after).unwrap_or(usize::MAX);
        let mut acted = history.iter().filter(|past| past.acted);
        let Some(last) = acted.clone().next() else { return Breaker::Closed };
        let failures = acted.by_ref().take_while(|past| past.outcome.escalates()).take(tries).count();
        if tries == 0 || failures < tries {
            Breaker::Closed
        } else if last.acked || last.ended.age(now) >= self.breaker_hold {
            Breaker::HalfOpen
        } else {
            Breaker::Open
        }
    }

    /// The tries in a row, the last one included, without `healthy_reset` of health between two of them.
    fn consecutive(&self, history: &[Past]) -> u32 {
        let mut count = 0;
        // The need that came after the try being looked at: the earliest alert since then.
        let mut next_need: Option<&Moment> = None;
        for past in history {
            if past.acted {
                let healthy = match next_need {
                    Some(need) if !past.outcome.escalates() => past.ended.age(need),
                    _ => Duration::ZERO,
                };
                if healthy >= self.healthy_reset {
                    break;
                }
                count += 1;
            }
            if past.outcome != Outcome::NotNeeded {
                next_need = Some(&past.received);
            }
        }
        count
    }

    /// The wait after the last try, jittered by up to a quarter. The jitter comes from the try itself, so that the
    /// announced time does not move.
    fn cooldown_after(&self, history: &[Past]) -> Duration {
        let Some(last) = history.iter().find(|past| past.acted) else { return Duration::ZERO };
        let doublings = self.consecutive(history).saturating_sub(1).min(16);
        let wait = self.cooldown.saturating_mul(1 << doublings).min(COOLDOWN_MAX);
        let mut hasher = DefaultHasher::new();
        (last.ended.wall_ms, last.ended.boot_ms).hash(&mut hasher);
        let jitter = hasher.finish() % 501;
        wait.mul_f64(0.75 + f64::from(u32::try_from(jitter).unwrap_or(0)) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Moment {
        Moment { wall_ms: seconds * 1000, boot_ms: seconds * 1000, boot_id: "boot".to_owned() }
    }

    fn budget(limits: &[&str], starts: &[i64]) -> Budget {
        Budget {
            scope: Scope::Rule("r".to_owned()),
            limits: limits.iter().map(|text| text.parse().unwrap()).collect(),
            starts: starts.iter().map(|second| at(*second)).collect(),
            lost: None,
        }
    }

    #[test]
    fn a_window_is_half_open() {
        let one = budget(&["1/10s"], &[100]);
        let refusal = limits(std::slice::from_ref(&one), &at(109)).unwrap_err();
        assert_eq!((refusal.reason, refusal.wait), (Reason::Limited, Duration::from_secs(1)));
        assert_eq!(refusal.detail, "1 of 1 starts of this rule used (1/10s)");
        // Exactly one window later the start is out.
        assert!(limits(&[one], &at(110)).is_ok());
    }

    #[test]
    fn the_longest_wait_of_all_windows_and_scopes_counts() {
        let windows = budget(&["1/10s", "3/100s"], &[0, 40, 95]);
        assert_eq!(limits(std::slice::from_ref(&windows), &at(98)).unwrap_err().wait, Duration::from_secs(7));
        let other = budget(&["1/1h"], &[50]);
        assert_eq!(limits(&[windows, other], &at(98)).unwrap_err().wait, Duration::from_secs(3552));
    }

    #[test]
    fn starts_never_exceed_any_window() {
        let mut log = budget(&["1/10s", "2/60s", "3/200s"], &[]);
        let mut starts: Vec<i64> = Vec::new();
        for second in 0..2000 {
            if limits(std::slice::from_ref(&log), &at(second)).is_ok() {
                log.starts.push(at(second));
                starts.push(second);
            }
        }
        for (count, window) in [(1, 10), (2, 60), (3, 200)] {
            for end in 0..2000 {
                let inside = starts.iter().filter(|start| **start > end - window && **start <= end).count();
                assert!(inside <= count, "{inside} starts in the {window} s before {end}");
            }
        }
        assert_eq!(starts.len(), 30);
    }

    #[test]
    fn a_lost_memory_counts_as_full_until_the_window_has_passed() {
        let log = Budget { lost: Some(at(1000)), ..budget(&["1/10s", "3/100s"], &[1050]) };
        let wait = |second| limits(std::slice::from_ref(&log), &at(second)).map_err(|refusal| refusal.wait);
        assert_eq!(wait(1000), Err(Duration::from_secs(100)));
        assert_eq!(wait(1099), Err(Duration::from_secs(1)));
        assert_eq!(wait(1100), Ok(()));
        let used = |second| log.used(&at(second)).into_iter().map(|(_, used)| used).collect::<Vec<_>>();
        assert_eq!((used(1005), used(1060), used(1100)), (vec![1, 3], vec![0, 3], vec![0, 1]));
    }

    #[test]
    fn a_clock_set_back_between_boots_frees_nothing() {
        let mut log = budget(&["1/1h"], &[]);
        log.starts.push(Moment { wall_ms: 10_000_000, boot_ms: 5, boot_id: "earlier".to_owned() });
        let later = |boot_ms| Moment { wall_ms: 4_000_000, boot_ms, boot_id: "later".to_owned() };
        // It was made before this boot began; more is not known, and more is not claimed.
        let wait =
            |uptime| limits(std::slice::from_ref(&log), &later(uptime)).map_err(|refusal| refusal.wait);
        assert_eq!(wait(60_000), Err(Duration::from_secs(3540)));
        assert_eq!(wait(3_599_999), Err(Duration::from_millis(1)));
        assert_eq!(wait(3_600_000), Ok(()));
    }

    fn past(acted: bool, outcome: Outcome, received: i64, ended: i64) -> Past {
        Past { acted, outcome, acked: false, received: at(received), ended: at(ended) }
    }

    const RULE: Restraint = Restraint {
        cooldown: Duration::from_secs(600),
        healthy_reset: Duration::from_secs(3600),
        breaker_after: 2,
        breaker_hold: Duration::from_secs(43_200),
    };

    #[test]
    fn the_cooldown_doubles_until_a_healthy_hour_has_passed() {
        let bounds =
            |wait: Duration, nominal: f64| (nominal * 0.75..=nominal * 1.25).contains(&wait.as_secs_f64());
        let first = vec![past(true, Outcome::Succeeded, 0, 100)];
        assert!(bounds(RULE.cooldown_after(&first), 600.0));
        // Needed again ten minutes after the first success: not yet healthy.
        let second = vec![past(true, Outcome::Succeeded, 700, 2000), first[0].clone()];
        assert!(bounds(RULE.cooldown_after(&second), 1200.0));
        // Needed again two hours after: a first need.
        let later = vec![past(true, Outcome::Succeeded, 7300, 9000), first[0].clone()];
        assert!(bounds(RULE.cooldown_after(&later), 600.0));
        // A refused need in between shows that it was not healthy so long.
        let refused = vec![
            past(true, Outcome::Succeeded, 7300, 9000),
            past(false, Outcome::Limited, 400, 401),
            first[0].clone(),
        ];
        assert!(bounds(RULE.cooldown_after(&refused), 1200.0));
        // What did not help was no time in health, however long ago.
        let failed =
            vec![past(true, Outcome::Ineffective, 90_000, 90_100), past(true, Outcome::Ineffective, 0, 100)];
        assert!(bounds(RULE.cooldown_after(&failed), 1200.0));
        assert_eq!(RULE.admits(&first, &at(101)).unwrap_err().reason, Reason::Cooldown);
        assert!(RULE.admits(&first, &at(100 + 751)).is_ok());
    }

    #[test]
    fn the_cooldown_never_exceeds_a_day() {
        let long: Vec<Past> = (0..40).rev().map(|i| past(true, Outcome::Partial, i, i)).collect();
        assert!(RULE.cooldown_after(&long) <= COOLDOWN_MAX.mul_f64(1.25));
    }

    #[test]
    fn the_breaker_opens_holds_and_lets_one_try_through() {
        let bad = |ended| past(true, Outcome::Ineffective, ended, ended);
        assert_eq!(RULE.breaker(&[bad(10)], &at(20)), Breaker::Closed);
        assert_eq!(RULE.breaker(&[bad(10), past(true, Outcome::Succeeded, 0, 5)], &at(20)), Breaker::Closed);
        let open = [bad(1000), past(false, Outcome::Limited, 500, 501), bad(10)];
        assert_eq!(RULE.breaker(&open, &at(1001)), Breaker::Open);
        let refusal = RULE.admits(&open, &at(1001)).unwrap_err();
        assert_eq!((refusal.reason, refusal.wait), (Reason::Breaker, Duration::from_secs(43_199)));
        assert_eq!(RULE.breaker(&open, &at(1000 + 43_200)), Breaker::HalfOpen);
        assert!(RULE.admits(&open, &at(1000 + 43_200)).is_ok());
        // The one try did not help either: open again.
        let again = [bad(50_000), open[0].clone(), open[2].clone()];
        assert_eq!(RULE.breaker(&again, &at(50_001)), Breaker::Open);
    }

    #[test]
    fn a_person_who_has_looked_ends_hold_and_cooldown_for_one_try() {
        let bad = |ended| past(true, Outcome::Ineffective, ended, ended);
        let acked = Past { acked: true, ..bad(1000) };
        let history = [acked.clone(), bad(10)];
        assert_eq!(RULE.breaker(&history, &at(1001)), Breaker::HalfOpen);
        assert!(RULE.admits(&history, &at(1001)).is_ok());
        // It did not help either: open again, and the acknowledgement is used up.
        assert_eq!(RULE.breaker(&[bad(1100), acked, bad(10)], &at(1101)), Breaker::Open);
    }
}
