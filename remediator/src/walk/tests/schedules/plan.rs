//! What a schedule is made of: a policy, rules with their steps, and what happens. Random, small, and readable in a
//! failure.

use std::fmt;

use proptest::{
    collection::vec,
    option,
    prelude::{Just, Strategy, prop_oneof},
    sample::{Index, select},
};

use crate::policy::{Class, Deletion, Mode};

/// One schedule.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Which of [`POLICIES`].
    pub(super) policy: usize,
    /// One for each of [`RULES`].
    pub(super) rules: Vec<RulePlan>,
    pub(super) moves: Vec<Move>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", POLICIES[self.policy])?;
        for ((name, ..), rule) in RULES.iter().zip(&self.rules) {
            writeln!(f, "{name}: {rule:?}")?;
        }
        self.moves.iter().try_for_each(|one| writeln!(f, "{one:?}"))
    }
}

/// What holds for all rules together.
#[derive(Debug)]
pub(super) struct PolicyPlan {
    pub(super) deletion: Deletion,
    pub(super) s1: &'static [&'static str],
    pub(super) s2: &'static [&'static str],
    pub(super) d1: &'static [&'static str],
    pub(super) d2: &'static [&'static str],
    pub(super) target: &'static [&'static str],
    pub(super) host: &'static [&'static str],
    /// More targets than this within so many seconds hold everything for so many.
    pub(super) storm: (u32, u64, u64),
    /// Seconds after a start in which nothing is touched.
    pub(super) grace: u64,
}

const FREE: &[&str] = &["999/1h"];

pub(super) const POLICIES: [PolicyPlan; 6] = [
    PolicyPlan {
        deletion: Deletion::Data,
        s1: FREE,
        s2: &["2/10m", "5/2h"],
        d1: FREE,
        d2: FREE,
        target: &["2/1h"],
        host: &["6/2h"],
        storm: (99, 300, 900),
        grace: 0,
    },
    PolicyPlan {
        deletion: Deletion::Data,
        s1: FREE,
        s2: FREE,
        d1: FREE,
        d2: FREE,
        target: &[],
        host: &[],
        storm: (99, 300, 900),
        grace: 0,
    },
    PolicyPlan {
        deletion: Deletion::None,
        s1: &["2/5m"],
        s2: &["1/4m", "4/1h"],
        d1: FREE,
        d2: FREE,
        target: &["1/3m", "3/2h"],
        host: &["3/10m", "9/3h"],
        storm: (99, 300, 900),
        grace: 60,
    },
    PolicyPlan {
        deletion: Deletion::Cache,
        s1: FREE,
        s2: &["3/5m"],
        d1: &["1/2m", "2/30m"],
        d2: FREE,
        target: &["3/1h"],
        host: &["4/5m", "12/6h"],
        storm: (2, 120, 300),
        grace: 0,
    },
    PolicyPlan {
        deletion: Deletion::Data,
        s1: FREE,
        s2: FREE,
        d1: &["1/1m"],
        d2: &["1/6m", "2/1h"],
        target: &["4/30m"],
        host: &["2/2m", "5/20m", "9/6h"],
        storm: (2, 300, 900),
        grace: 0,
    },
    PolicyPlan {
        deletion: Deletion::Data,
        s1: &["1/5m"],
        s2: FREE,
        d1: FREE,
        d2: FREE,
        target: &[],
        host: &["9/1h"],
        storm: (1, 60, 120),
        grace: 120,
    },
];

/// The name of each rule, what it is about, and what it may name.
pub(super) const RULES: [(&str, RuleKind, &[&str]); 4] = [
    ("apps", RuleKind::Unit, &["app-*.service"]),
    ("some", RuleKind::Unit, &["app-a.service", "app-b.service", "*-alias.service", "docker.*"]),
    ("disk", RuleKind::Disk, &["/no/such/disk", "/no/such/second"]),
    ("look", RuleKind::Look, &["app-*.service"]),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RuleKind {
    Unit,
    Disk,
    /// Only observes.
    Look,
}

/// What alerts name. Not all of it may be touched, or is what it seems.
pub(super) const TARGETS: [&str; 14] = [
    "app-a.service",
    "app-b.service",
    "app-c.service",
    // app-a.service by another name.
    "app-alias.service",
    "/no/such/disk",
    // The same device under another name.
    "/no/such/second",
    // Takes docker.service along.
    "app-heavy.service",
    // sshd.service by another name.
    "app-evil.service",
    "docker.service",
    "other.service",
    "/no/such/third",
    "../app-a.service",
    "-rf",
    "app-a.service\nsshd.service",
];

/// Of those, the ones that break and heal.
pub(super) const THINGS: [&str; 6] =
    ["app-a.service", "app-b.service", "app-c.service", "app-heavy.service", "sshd.service", "/no/such/disk"];

#[derive(Debug, Clone)]
pub(super) struct RulePlan {
    pub(super) mode: Mode,
    pub(super) limits: &'static [&'static str],
    pub(super) rule_limits: &'static [&'static str],
    /// Seconds.
    pub(super) cooldown: u64,
    /// So many tries, and seconds.
    pub(super) breaker: (u32, u64),
    /// From and to, UTC.
    pub(super) hours: Option<(&'static str, &'static str)>,
    pub(super) steps: Vec<StepPlan>,
}

#[derive(Debug, Clone)]
pub(super) struct StepPlan {
    pub(super) class: Class,
    /// What it does at each call, over and over.
    pub(super) does: Vec<Does>,
}

/// What an action does to its host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Does {
    /// Seconds; more than the 90 that the remediator waits for are none to it.
    pub(super) takes: u64,
    pub(super) effect: Effect,
    pub(super) answers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Cure,
    /// A disk that is better, and not good.
    Ease,
    Nothing,
    /// Restarted, and failed again.
    Sicken,
    /// Says no, and does nothing.
    Refuse,
}

/// What happens.
#[derive(Debug, Clone)]
pub(super) enum Move {
    /// A thing breaks, and its alert comes: rule and target.
    Trouble(usize, usize),
    /// One delivery: rule, target and whether it fires, of each alert.
    Deliver(Vec<(usize, usize, bool)>),
    /// The same, and the process dies while it takes it; nobody knows whether it did.
    Torn(usize, usize),
    Break(usize),
    Heal(usize),
    /// A thing cannot be seen for so many seconds; slowly, each look takes ten.
    Blind(usize, u64, bool),
    /// Seconds in which nothing new happens.
    Wait(u64),
    /// The process dies, and is down for so many seconds.
    Die(u64),
    /// It dies at a later change of its state: before or after the so-manieth.
    DieAfter(usize),
    /// It is asked to end, and started again.
    Stop,
    /// The host starts again: seconds that it is off, seconds that its clock has lost meanwhile.
    Boot(u64, i64),
    /// The wall clock is set, by seconds.
    SetClock(i64),
    /// For so many seconds, or until resumed.
    Pause(Option<u64>),
    Resume,
    /// A person decides about one of those that wait for it.
    Decide(Index, bool),
    /// A person wants a rule's last try of a target repeated.
    Ack(usize, usize),
    /// The package manager begins or ends.
    Packages(bool),
    /// A rule is lowered to mode plan for good.
    Lower(usize),
}

fn does() -> impl Strategy<Value = Does> {
    let takes = prop_oneof![6 => Just(0), 3 => 1..20_u64, 1 => Just(60), 1 => Just(100)];
    let effect = prop_oneof![
        4 => Just(Effect::Cure),
        2 => Just(Effect::Ease),
        3 => Just(Effect::Nothing),
        3 => Just(Effect::Sicken),
        1 => Just(Effect::Refuse),
    ];
    let answers = prop_oneof![9 => Just(true), 1 => Just(false)];
    (takes, effect, answers).prop_map(|(takes, effect, answers)| Does { takes, effect, answers })
}

fn rule(kind: RuleKind) -> impl Strategy<Value = RulePlan> {
    let class = match kind {
        RuleKind::Unit => select(&[Class::S0, Class::S1, Class::S2, Class::S2, Class::S2, Class::S2][..]),
        RuleKind::Disk => select(&[Class::S0, Class::D1, Class::D1, Class::D1, Class::D2][..]),
        RuleKind::Look => select(&[Class::S0][..]),
    };
    let step = (class, vec(does(), 1..3)).prop_map(|(class, does)| StepPlan { class, does });
    let mode = prop_oneof![8 => Just(Mode::Auto), 3 => Just(Mode::Approve), 1 => Just(Mode::Plan)];
    let limits: &[&'static [&'static str]] =
        &[&["1/5m"], &["1/15m", "3/3h"], &["2/10m", "3/1h"], &["3/20m", "5/2h"], &["9/1h"]];
    let rule_limits: &[&'static [&'static str]] = &[&[], &[], &["2/30m", "5/6h"], &["3/10m"]];
    let hours =
        option::weighted(0.15, select(&[("06:00", "12:00"), ("22:00", "09:00"), ("09:00", "10:00")][..]));
    (
        mode,
        select(limits),
        select(rule_limits),
        select(&[0_u64, 1, 30, 300][..]),
        select(&[(1_u32, 1800_u64), (2, 3600), (99, 3600), (99, 3600)][..]),
        hours,
        vec(step, 1..4),
    )
        .prop_map(|(mode, limits, rule_limits, cooldown, breaker, hours, steps)| RulePlan {
            mode,
            limits,
            rule_limits,
            cooldown,
            breaker,
            hours,
            steps,
        })
}

/// Mostly of a rule and a target that go together, for others are ignored.
fn alert() -> impl Strategy<Value = (usize, usize, bool)> {
    let fitting = prop_oneof![
        6 => (0..2_usize, 0..4_usize),
        4 => (Just(2_usize), 4..6_usize),
        1 => (Just(3_usize), 0..4_usize),
        1 => (0..RULES.len(), 0..TARGETS.len()),
    ];
    let firing = prop_oneof![6 => Just(true), 1 => Just(false)];
    (fitting, firing).prop_map(|((rule, target), firing)| (rule, target, firing))
}

fn one_move() -> impl Strategy<Value = Move> {
    let seconds = prop_oneof![5 => 0..40_u64, 4 => 40..600_u64, 1 => 600..6000_u64];
    let things = 0..THINGS.len();
    prop_oneof![
        30 => alert().prop_map(|(rule, target, _)| Move::Trouble(rule, target)),
        10 => vec(alert(), 1..4).prop_map(Move::Deliver),
        1 => alert().prop_map(|(rule, target, _)| Move::Torn(rule, target)),
        3 => things.clone().prop_map(Move::Break),
        3 => things.clone().prop_map(Move::Heal),
        3 => (things, 1..200_u64, prop_oneof![Just(true), Just(false)])
            .prop_map(|(thing, seconds, slowly)| Move::Blind(thing, seconds, slowly)),
        25 => seconds.prop_map(Move::Wait),
        3 => (0..30_u64).prop_map(Move::Die),
        8 => (0..60_usize).prop_map(Move::DieAfter),
        1 => Just(Move::Stop),
        2 => (0..300_u64, prop_oneof![Just(0), 1..7200_i64]).prop_map(|(off, lost)| Move::Boot(off, lost)),
        4 => (-90_000..90_000_i64).prop_map(Move::SetClock),
        1 => option::of(1..900_u64).prop_map(Move::Pause),
        2 => Just(Move::Resume),
        8 => (proptest::prelude::any::<Index>(), prop_oneof![4 => Just(true), 1 => Just(false)])
            .prop_map(|(which, yes)| Move::Decide(which, yes)),
        1 => alert().prop_map(|(rule, target, _)| Move::Ack(rule, target)),
        2 => prop_oneof![1 => Just(true), 3 => Just(false)].prop_map(Move::Packages),
        1 => (0..RULES.len()).prop_map(Move::Lower),
    ]
}

/// Any schedule.
pub(super) fn plan() -> impl Strategy<Value = Plan> {
    let rules: Vec<_> = RULES.iter().map(|(_, kind, _)| rule(*kind).boxed()).collect();
    (0..POLICIES.len(), rules, vec(one_move(), 8..36)).prop_map(|(policy, rules, moves)| Plan {
        policy,
        rules,
        moves,
    })
}
