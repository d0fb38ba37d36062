//! Judges a schedule by the log of its host and by what the schedule asked for. The remediator's own records are only
//! asked what it said of the end of each remediation, and that is held against the log too.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::AddAssign,
};

use tokio::task;

use super::{
    host::{Call, Entry, State, What, World, identity},
    life::{APPROVAL_WITHIN, taken},
    plan::{POLICIES, Plan, PolicyPlan, RULES, RuleKind, RulePlan},
};
use crate::{
    journal::{Phase, Record, StepRecord, StepState, memory::Memory},
    outcome::Outcome,
    policy::{Class, Limit, Mode},
};

/// Marks of the rule about disks.
const NEEDED_ABOVE: f64 = 0.85;
const DONE_BELOW: f64 = 0.8;

/// What schedules made happen, so that one sees whether they try anything.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Seen {
    /// Actions called that change the host.
    pub(super) calls: u64,
    /// Processes.
    lives: u64,
    remediations: u64,
    succeeded: u64,
    /// Of those that called something, the ones that say a person is needed.
    escalated: u64,
    /// Steps that a death interrupted.
    pub(super) interrupted: u64,
    /// Ended by a limit or anything else that said no.
    pub(super) refusals: u64,
    storms: u64,
    approved: u64,
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.lives += other.lives;
        self.remediations += other.remediations;
        self.succeeded += other.succeeded;
        self.escalated += other.escalated;
        self.interrupted += other.interrupted;
        self.refusals += other.refusals;
        self.storms += other.storms;
        self.approved += other.approved;
    }
}

type Judged = Result<(), String>;

/// One remediation's calls: when the first was and when the last.
struct Walk {
    id: i64,
    began: u64,
    last: u64,
}

/// Everything that is true of every schedule, in order of what it costs when it is not.
pub(super) fn judge(plan: &Plan, world: &World, memory: &Memory) -> Result<Seen, String> {
    if let Some(violation) = world.violations().into_iter().next() {
        return Err(violation);
    }
    let oracle = Oracle {
        plan,
        policy: &POLICIES[plan.policy],
        log: &world.log(),
        records: &memory.records(),
        world,
        memory,
    };
    oracle.calls_are_allowed()?;
    oracle.calls_are_looked_at_before()?;
    oracle.nothing_is_called_twice()?;
    oracle.no_window_is_exceeded()?;
    oracle.rules_hold_back()?;
    oracle.storms_hold_everything()?;
    oracle.everything_has_ended()?;
    oracle.ends_are_true()?;
    Ok(oracle.seen())
}

struct Oracle<'a> {
    plan: &'a Plan,
    policy: &'a PolicyPlan,
    log: &'a [Entry],
    records: &'a [(Record, Vec<StepRecord>)],
    world: &'a World,
    memory: &'a Memory,
}

/// Something that is not so is said with when and where.
fn must(holds: bool, what: impl FnOnce() -> String) -> Judged {
    if holds { Ok(()) } else { Err(what()) }
}

impl Oracle<'_> {
    /// Calls that change the host: when, and what. `lost`: also those that a process died just before.
    fn acting(&self, lost: bool) -> impl Iterator<Item = (usize, &Entry, &Call)> {
        let calls = self.log.iter().enumerate().filter_map(move |(index, entry)| match &entry.what {
            What::Called(call) => Some((index, entry, call)),
            What::Lost(call) if lost => Some((index, entry, call)),
            _ => None,
        });
        calls.filter(|(_, _, call)| call.class.acts())
    }

    /// The first call of each walk, in order: its start.
    fn starts(&self) -> Vec<(&Entry, &Call)> {
        let mut known = BTreeSet::new();
        let calls = self.acting(true).filter(|(_, _, call)| known.insert(call.remediation));
        calls.map(|(_, entry, call)| (entry, call)).collect()
    }

    fn rule(&self, name: &str) -> (usize, &RulePlan) {
        let place = RULES.iter().position(|(known, ..)| *known == name).unwrap();
        (place, &self.plan.rules[place])
    }

    /// Nothing outside the policy, the modes, the lists, the hours, the gates and what people said.
    fn calls_are_allowed(&self) -> Judged {
        for (_, entry, call) in self.acting(false) {
            let at = entry.at;
            let (place, rule) = self.rule(call.rule);
            let about = |what: &str| format!("at {at} ms: {call:?} {what}");
            must(self.policy.deletion.allows(call.class), || about("against policy.deletion"))?;
            must(is_listed(place, &call.target), || about("outside its allow-list"))?;
            let never = ["docker.service", "sshd.service", "app-evil.service", "app-heavy.service"];
            let takes_along = call.class == Class::S2 && call.target == "app-heavy.service";
            must(!never[..3].contains(&call.target.as_str()) && !takes_along, || {
                about("on what is never touched")
            })?;
            must(identity(&call.target).is_some(), || about("on nothing that there is"))?;
            match rule.mode {
                Mode::Plan => return Err(about("in mode plan")),
                Mode::Approve => must(self.is_approved(call.remediation, at), || about("without approval"))?,
                Mode::Auto => {}
            }
            must(!self.is_lowered(place, entry, call), || about("after its rule was lowered to mode plan"))?;
            must(!self.is_paused(at), || about("while everything is paused"))?;
            if let Some((from, to)) = rule.hours {
                must(is_within(entry.wall_ms, from, to), || about("outside its hours"))?;
            }
            if call.class > Class::S1 {
                must(!self.is_young(entry), || about("in the grace after a start"))?;
                must(!self.packages_at_work(at), || about("while packages are installed"))?;
            }
        }
        Ok(())
    }

    /// By a person, before, and not too long before it began; a report that is taken first has its own time, and a clock
    /// that lost time while the host was off makes an approval younger.
    fn is_approved(&self, remediation: i64, at: u64) -> bool {
        let approved = self.log.iter().find(|entry| {
            matches!(entry.what, What::Decided { id, approved: true } if id == remediation) && entry.at <= at
        });
        let began = self.starts().into_iter().find(|(_, call)| call.remediation == remediation);
        let valid = u64::try_from(APPROVAL_WITHIN.as_millis()).unwrap() + 300_000;
        let (Some(approved), Some((began, _))) = (approved, began) else { return false };
        let booted =
            self.log.iter().any(|entry| matches!(entry.what, What::Booted) && entry.at >= approved.at);
        booted || began.at - approved.at <= valid
    }

    /// A walk that began before goes on for the steps that it has: not a process that was started after, and not a
    /// remediation that had done nothing.
    fn is_lowered(&self, rule: usize, call_entry: &Entry, call: &Call) -> bool {
        let lowered = self.log.iter().find(|entry| matches!(entry.what, What::Lowered(one) if one == rule));
        lowered.is_some_and(|lowered| {
            let first = self.starts().into_iter().find(|(_, first)| first.remediation == call.remediation);
            let began = first.map_or(call_entry.at, |(entry, _)| entry.at);
            call_entry.life > lowered.life || began > lowered.at + 120_000
        })
    }

    /// Orders of the same millisecond may come after what was begun before.
    fn is_paused(&self, at: u64) -> bool {
        let mut until: Option<Option<u64>> = None;
        for entry in self.log.iter().take_while(|entry| entry.at < at) {
            match entry.what {
                What::Paused(lasts) => until = Some(lasts.map(|lasts| entry.at + lasts * 1000)),
                What::Resumed => until = None,
                _ => {}
            }
        }
        let resumed = self.log.iter().any(|entry| entry.at == at && matches!(entry.what, What::Resumed));
        !resumed && until.is_some_and(|until| until.is_none_or(|until| at < until))
    }

    fn is_young(&self, call: &Entry) -> bool {
        let grace = self.policy.grace * 1000;
        let mut starts = self.log.iter().filter(|entry| {
            entry.at <= call.at && matches!(entry.what, What::Booted) || {
                matches!(entry.what, What::Started) && entry.life == call.life
            }
        });
        starts.any(|start| call.at - start.at < grace) || call.at < grace
    }

    fn packages_at_work(&self, at: u64) -> bool {
        let before = self.log.iter().take_while(|entry| entry.at < at);
        let last = before.filter_map(|entry| match entry.what {
            What::Packages(at_work) => Some(at_work),
            _ => None,
        });
        let changes = self.log.iter().any(|entry| entry.at == at && matches!(entry.what, What::Packages(_)));
        !changes && last.last() == Some(true)
    }

    /// Before each call, the same walk has looked and seen that it is needed: nothing is done blindly, nor by what
    /// was seen before the last thing that was done.
    fn calls_are_looked_at_before(&self) -> Judged {
        let starts: BTreeSet<(u64, i64)> =
            self.starts().iter().map(|(entry, call)| (entry.at, call.remediation)).collect();
        for (index, entry, call) in self.acting(false) {
            let thing = identity(&call.target);
            let about = |what: &str| format!("at {} ms: {call:?} {what}", entry.at);
            let mut before = self.log[..index].iter().rev();
            let look = before.find_map(|earlier| match &earlier.what {
                What::Looked { thing: looked, walk, seen }
                    if Some(*looked) == thing && *walk == call.walk =>
                {
                    Some((earlier, *seen))
                }
                _ => None,
            });
            let Some((look, seen)) = look else { return Err(about("without any look")) };
            must(entry.at - look.at < 1000, || about(&format!("by a look at {} ms", look.at)))?;
            let Some(seen) = seen else { return Err(about("although it could not be seen")) };
            let is_first = starts.contains(&(entry.at, call.remediation));
            let needed = match seen {
                State::Unit { failed, .. } => failed,
                State::Disk(used) if is_first => used > NEEDED_ABOVE,
                State::Disk(used) => used >= DONE_BELOW,
            };
            must(needed, || about(&format!("although {seen:?} was seen")))?;
            let place = self.log.iter().position(|one| std::ptr::eq(one, look)).unwrap();
            let between = self.log[place..index].iter().any(
                |between| matches!(&between.what, What::Called(other) if other.class.acts() && identity(&other.target) == thing),
            );
            must(!between, || about("by a look from before the last call"))?;
        }
        Ok(())
    }

    /// One need is worked on once: no step twice, no two walks of one rule on one thing at the same time, and no second
    /// walk that no alert asked for.
    fn nothing_is_called_twice(&self) -> Judged {
        let mut steps = BTreeSet::new();
        for (_, entry, call) in self.acting(true) {
            must(steps.insert((call.remediation, call.position)), || {
                format!("at {} ms: {call:?} for the second time", entry.at)
            })?;
        }
        let mut walks: BTreeMap<(&str, Option<&str>), Vec<Walk>> = BTreeMap::new();
        for (_, entry, call) in self.acting(true) {
            let thing = identity(&call.target);
            let rule = if thing.is_some_and(|thing| thing.starts_with('/')) { "" } else { call.rule };
            let walk = walks.entry((rule, thing)).or_default();
            match walk.last_mut() {
                Some(walk) if walk.id == call.remediation => walk.last = entry.at,
                _ => {
                    must(walk.iter().all(|walk| walk.id != call.remediation), || {
                        format!("at {} ms: {call:?} although another one was at work meanwhile", entry.at)
                    })?;
                    if let Some(Walk { id, last, .. }) = walk.last() {
                        must(self.is_asked_for(call, *last, entry.at), || {
                            format!("at {} ms: {call:?}, which only the alerts of #{id} asked for", entry.at)
                        })?;
                    }
                    walk.push(Walk { id: call.remediation, began: entry.at, last: entry.at });
                }
            }
        }
        Ok(())
    }

    /// Whether an alert came for it after the last call for the one before. One under another name may have been open
    /// beside that.
    fn is_asked_for(&self, call: &Call, after: u64, until: u64) -> bool {
        self.log.iter().any(|entry| {
            matches!(&entry.what, What::Taken { rule, target, firing: true, .. }
                if *rule == call.rule && identity(target) == identity(&call.target)
                    && (entry.at >= after || *target != call.target))
                && entry.at <= until
        })
    }

    /// In true time no window of any scope holds more starts than its limit.
    fn no_window_is_exceeded(&self) -> Judged {
        let starts = self.starts();
        let at = |which: &dyn Fn(&Call) -> bool| -> Vec<u64> {
            starts.iter().filter(|(_, call)| which(call)).map(|(entry, _)| entry.at).collect()
        };
        let things: BTreeSet<&str> = starts.iter().map(|(_, call)| call.target.as_str()).collect();
        for ((name, ..), rule) in RULES.iter().zip(&self.plan.rules) {
            within(rule.rule_limits, &at(&|call| call.rule == *name), name)?;
            for thing in &things {
                let of = at(&|call| call.rule == *name && call.target == **thing);
                within(rule.limits, &of, &format!("{name} on {thing}"))?;
            }
        }
        for thing in &things {
            within(self.policy.target, &at(&|call| call.target == **thing), thing)?;
        }
        let steps = |class: Option<Class>| -> Vec<u64> {
            let calls =
                self.acting(false).filter(|(_, _, call)| class.is_none_or(|class| call.class == class));
            calls.map(|(_, entry, _)| entry.at).collect()
        };
        let policy = self.policy;
        for (class, limits) in
            [(Class::S1, policy.s1), (Class::S2, policy.s2), (Class::D1, policy.d1), (Class::D2, policy.d2)]
        {
            within(limits, &steps(Some(class)), class.as_str())?;
        }
        within(policy.host, &steps(None), "the host")
    }

    /// Cooldown and breaker, by what is certain: a walk ended after its last call at the earliest.
    fn rules_hold_back(&self) -> Judged {
        let mut walks: BTreeMap<(&str, &str), Vec<Walk>> = BTreeMap::new();
        for (_, entry, call) in self.acting(true) {
            let walk = walks.entry((call.rule, &call.target)).or_default();
            match walk.iter_mut().find(|walk| walk.id == call.remediation) {
                Some(walk) => walk.last = entry.at,
                None => walk.push(Walk { id: call.remediation, began: entry.at, last: entry.at }),
            }
        }
        for ((rule, target), walks) in walks {
            let planned = self.rule(rule).1;
            let (tries, hold) = planned.breaker;
            for place in 1..walks.len() {
                let (last, Walk { id, began, .. }) = (walks[place - 1].last, &walks[place]);
                let began = *began;
                let acked = self.log.iter().any(|entry| {
                    matches!(&entry.what, What::Acked { rule: acked, target: thing } if *acked == rule && thing == target)
                        && (last..=began).contains(&entry.at)
                });
                if acked {
                    continue;
                }
                must((began - last) * 4 >= planned.cooldown * 1000 * 3, || {
                    format!(
                        "at {began} ms: #{id} {} ms after the one before it, against the cooldown",
                        began - last
                    )
                })?;
                let tries = usize::try_from(tries).unwrap();
                let in_a_row = walks[..place].iter().rev().take(tries);
                let failures =
                    in_a_row.filter(|walk| self.outcome(walk.id).is_some_and(Outcome::escalates)).count();
                must(failures < tries || began - last >= hold * 1000, || {
                    format!("at {began} ms: #{id} after {failures} tries that did not help")
                })?;
            }
        }
        Ok(())
    }

    fn outcome(&self, id: i64) -> Option<Outcome> {
        self.records.iter().find(|(record, _)| record.id == id)?.0.outcome
    }

    /// Of the targets that alerts named within the storm's time, never more were touched than it lets.
    fn storms_hold_everything(&self) -> Judged {
        let (most, within, _) = self.policy.storm;
        let within = within * 1000;
        let starts: Vec<_> = self.starts().into_iter().filter(|(_, call)| call.class == Class::S2).collect();
        for (last, _) in &starts {
            let recent = |at: u64| at <= last.at && last.at - at < within;
            // Targets are counted by the wall clock: where it was set, the count begins anew.
            if self.log.iter().any(|e| recent(e.at) && matches!(e.what, What::ClockSet | What::Booted)) {
                continue;
            }
            let touched: BTreeSet<&str> = starts
                .iter()
                .filter(|(entry, call)| recent(entry.at) && self.was_named(call, last.at, within))
                .map(|(_, call)| call.target.as_str())
                .collect();
            must(touched.len() <= usize::try_from(most).unwrap(), || {
                format!("at {} ms: {touched:?} touched within {within} ms: that is a storm", last.at)
            })?;
        }
        Ok(())
    }

    fn was_named(&self, call: &Call, at: u64, within: u64) -> bool {
        self.log.iter().any(|entry| {
            entry.at <= at
                && at - entry.at < within
                && matches!(&entry.what, What::Taken { rule, target, firing: true, sure: true } if *rule == call.rule && *target == call.target)
        })
    }

    /// After the quiet time nothing is open, no alert is forgotten, and everything has a reason.
    fn everything_has_ended(&self) -> Judged {
        let mut deliveries = 0;
        for (record, steps) in self.records {
            let about = |what: &str| format!("#{} {} {}: {what}", record.id, record.rule, record.target);
            let has = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
            deliveries += record.deliveries;
            let Some(outcome) = record.outcome else { return Err(about("never ended")) };
            must(record.phase == Phase::Ended, || about("has an outcome and goes on"))?;
            must(has(&record.reason), || about(&format!("{outcome} without a reason")))?;
            must(matches!(outcome, Outcome::Succeeded) || has(&record.detail), || {
                about(&format!("{outcome} without a word of why"))
            })?;
            must(outcome != Outcome::Limited || record.next_allowed_wall_ms.is_some(), || {
                about("limited, and until when is not said")
            })?;
            for step in steps {
                let settled = !matches!(step.state, StepState::Reserved | StepState::Running);
                must(settled, || about(&format!("left a step {:?}", step.state)))?;
                let well = matches!(step.state, StepState::Done | StepState::Planned);
                must(well || has(&step.reason), || {
                    about(&format!("a step {:?} without a reason", step.state))
                })?;
            }
        }
        let taken = taken(self.world);
        let (sure, maybe) = (taken.get(&true).copied().unwrap_or(0), taken.get(&false).copied().unwrap_or(0));
        must((sure..=sure + maybe).contains(&deliveries), || {
            format!("{sure} alerts were taken, {maybe} more perhaps, and {deliveries} are accounted for")
        })
    }

    /// What is said of each end is what was seen.
    fn ends_are_true(&self) -> Judged {
        let called: BTreeSet<i64> = self.acting(true).map(|(_, _, call)| call.remediation).collect();
        for id in &called {
            must(self.outcome(*id).is_some(), || format!("#{id} acted and is not on record"))?;
        }
        for (record, _) in self.records {
            let outcome = record.outcome.unwrap_or(Outcome::Unknown);
            let about =
                |what: &str| format!("#{} {} {} {outcome}: {what}", record.id, record.rule, record.target);
            must(outcome.acted() == called.contains(&record.id), || about("its calls say otherwise"))?;
            let ended = self.memory.ended(record.id).and_then(|moment| self.world.true_ms(&moment));
            let Some(ended) = ended else { return Err(about("its end is not on the clock")) };
            let walks = self.walks_of(record, ended);
            let one_saw = |is_true: &dyn Fn(&[Look]) -> bool| walks.iter().any(|looks| is_true(looks));
            let last = |looks: &[Look]| looks.last().and_then(|(_, seen)| *seen);
            match outcome {
                Outcome::Succeeded => {
                    let hold = if record.kind == "filesystem" { 30_000 } else { 10_000 };
                    let held = |looks: &[Look]| {
                        let good = looks.iter().rev().take_while(|(_, seen)| seen.is_some_and(is_well));
                        good.last().is_some_and(|(since, _)| ended - since >= hold)
                    };
                    must(one_saw(&held), || about(&format!("at {ended} ms; it was seen {walks:?}")))?;
                }
                Outcome::NotNeeded => {
                    let is_so = |looks: &[Look]| last(looks).is_some_and(|seen| !is_needy(seen));
                    must(one_saw(&is_so), || about(&format!("at {ended} ms; it was seen {walks:?}")))?;
                }
                Outcome::Partial => {
                    let is_so = |looks: &[Look]| matches!(last(looks), Some(State::Disk(used)) if used <= NEEDED_ABOVE);
                    must(one_saw(&is_so), || about(&format!("at {ended} ms; it was seen {walks:?}")))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What each walk that may have said how it ended saw of the target until then: the walks that called something for
    /// it, and those that looked within the second before, as one that goes on after a death does. What another walk sees between two looks of a walk is
    /// not its own.
    fn walks_of(&self, record: &Record, ended: u64) -> Vec<Vec<Look>> {
        let thing = identity(&record.target);
        let mut callers = BTreeSet::new();
        let mut walks: BTreeMap<Option<task::Id>, Vec<Look>> = BTreeMap::new();
        for entry in self.log.iter().filter(|entry| entry.at <= ended) {
            match &entry.what {
                What::Looked { thing: looked, walk, seen } if Some(*looked) == thing => {
                    walks.entry(*walk).or_default().push((entry.at, *seen));
                }
                What::Called(call) if call.remediation == record.id => {
                    callers.insert(call.walk);
                }
                _ => {}
            }
        }
        let is_late = |looks: &[Look]| looks.last().is_some_and(|(at, _)| ended - at < 1000);
        walks.retain(|walk, looks| callers.contains(walk) || is_late(looks));
        walks.into_values().collect()
    }

    fn seen(&self) -> Seen {
        let count = |which: &dyn Fn(&Record) -> bool| {
            self.records.iter().filter(|(record, _)| which(record)).count() as u64
        };
        let entries =
            |which: &dyn Fn(&What) -> bool| self.log.iter().filter(|entry| which(&entry.what)).count() as u64;
        let steps = self.records.iter().flat_map(|(_, steps)| steps);
        Seen {
            calls: self.acting(false).count() as u64,
            lives: entries(&|what| matches!(what, What::Started)),
            remediations: self.records.len() as u64,
            succeeded: count(&|record| record.outcome == Some(Outcome::Succeeded)),
            escalated: count(&|record| record.outcome.is_some_and(Outcome::escalates)),
            interrupted: steps.filter(|step| step.reason.as_deref() == Some("interrupted")).count() as u64,
            refusals: count(&|record| matches!(record.outcome, Some(Outcome::Limited | Outcome::Blocked))),
            storms: count(&|record| record.reason.as_deref() == Some("storm")),
            approved: entries(&|what| matches!(what, What::Decided { approved: true, .. })),
        }
    }
}

/// When it was, and what was seen.
type Look = (u64, Option<State>);

fn is_well(state: State) -> bool {
    match state {
        State::Unit { failed, .. } => !failed,
        State::Disk(used) => used < DONE_BELOW,
    }
}

fn is_needy(state: State) -> bool {
    match state {
        State::Unit { failed, .. } => failed,
        State::Disk(used) => used > NEEDED_ABOVE,
    }
}

/// Whether a rule's allow-list has a name, worked out by hand.
fn is_listed(rule: usize, target: &str) -> bool {
    match (RULES[rule].0, RULES[rule].1) {
        (_, RuleKind::Disk) => ["/no/such/disk", "/no/such/second"].contains(&target),
        ("some", _) => ["app-a.service", "app-b.service"].contains(&target),
        _ => ["app-a.service", "app-b.service", "app-c.service", "app-heavy.service"].contains(&target),
    }
}

/// Whether the wall clock is between two times of day, UTC.
fn is_within(wall_ms: i64, from: &str, to: &str) -> bool {
    let minutes = |text: &str| {
        let (hour, minute) = text.split_once(':').unwrap();
        hour.parse::<i64>().unwrap() * 60 + minute.parse::<i64>().unwrap()
    };
    let (from, to, now) = (minutes(from), minutes(to), wall_ms.rem_euclid(86_400_000) / 60_000);
    if from < to { (from..to).contains(&now) } else { now >= from || now < to }
}

/// Every half-open window that ends at a start, and so every window: none may hold more than its limit.
fn within(limits: &[&str], starts: &[u64], what: &str) -> Judged {
    for limit in limits.iter().map(|text| text.parse::<Limit>().unwrap()) {
        let window = u64::try_from(limit.window.as_millis()).unwrap();
        for end in starts {
            let inside = starts.iter().filter(|start| *start <= end && end - **start < window).count();
            must(inside <= limit.count as usize, || {
                format!("at {end} ms: {inside} starts of {what} within {limit}")
            })?;
        }
    }
    Ok(())
}
