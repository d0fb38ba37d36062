//! Limits, the cooldown and the breaker, as the walk meets them: waited for, ended by, named with the next time.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::bench::{Bench, Does, disk, disk_rule, failed, unit_rule};
use crate::{
    journal::{Phase, Record},
    outcome::Outcome,
    policy::Class,
    walk::Next,
};

const APP: &str = "app.service";
const OTHER: &str = "app-other.service";
const DISK: &str = "/no/such/disk";

fn ended(record: &Record) -> (Outcome, &str) {
    (record.outcome.unwrap(), record.reason.as_deref().unwrap())
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

/// Without the cooldown, which would come first.
const NO_COOLDOWN: &str = "    cooldown: 0s\n    breaker: {after: 100, hold: 1h}\n";

fn limited(limits: &str) -> Bench {
    let mut bench = Bench::new(&[unit_rule("unit", &format!("    limits: {limits}\n{NO_COOLDOWN}"))]);
    let restart = bench.fake("restart", Class::S2, Does::Cure);
    bench.steps("unit", [restart]);
    bench.world.show(APP, failed());
    bench
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_ends_soon_is_waited_for() {
    let bench = limited("[1/4m]");
    bench.heal("unit", APP).await;
    let first = bench.world.calls()[0].at;
    bench.world.sicken(APP);
    bench.alert("unit", APP).await;
    let id = bench.last().id;
    let next = bench.walk(id).await.unwrap();
    assert_eq!(next, Next::Again(minutes(4) - first.elapsed()));
    let record = bench.last();
    assert_eq!((record.outcome, record.phase, record.acted), (None, Phase::Received, false));
    assert_eq!(record.detail.as_deref(), Some("1 of 1 starts of this rule on this target used (1/4m)"));
    assert!(record.next_allowed_wall_ms.is_some());
    // Asked too early, it waits on; what came meanwhile is absorbed.
    bench.alert("unit", APP).await;
    assert!(matches!(bench.walk(id).await.unwrap(), Next::Again(_)));
    bench.drive().await;
    let record = bench.last();
    assert_eq!((record.id, record.deliveries, ended(&record)), (id, 2, (Outcome::Succeeded, "verified")));
    assert_eq!(bench.world.calls()[1].at.duration_since(first), minutes(4));
    assert_eq!(record.next_allowed_wall_ms, None, "it waits for nothing any more");
}

/// Or each repeat of an alert that is held back would push the report of a true need out.
#[tokio::test(start_paused = true)]
async fn evidence_is_taken_of_what_may_begin_and_not_of_each_repeat() {
    let mut bench = limited("[1/1h]");
    let steps = [("report", Class::S0), ("restart", Class::S2)];
    let steps = steps
        .map(|(name, class)| bench.fake(name, class, if class.acts() { Does::Cure } else { Does::Nothing }));
    bench.steps("unit", steps);
    bench.heal("unit", APP).await;
    for _ in 0..3 {
        bench.world.sicken(APP);
        assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Limited, "limited"));
    }
    assert_eq!(bench.world.called(), ["report", "restart"]);
    sleep(minutes(60)).await;
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.world.called(), ["report", "restart", "report", "restart"]);
}

#[tokio::test(start_paused = true)]
async fn what_recovers_while_it_waits_is_left_alone() {
    let bench = limited("[1/4m]");
    bench.heal("unit", APP).await;
    bench.world.sicken(APP);
    bench.alert("unit", APP).await;
    let id = bench.last().id;
    assert!(matches!(bench.walk(id).await.unwrap(), Next::Again(_)));
    // The resolved message alone cancels nothing, the look does.
    bench.say("unit", APP, false).await;
    bench.world.cure(APP);
    bench.drive().await;
    let record = bench.last();
    assert_eq!(ended(&record), (Outcome::NotNeeded, "already_well"));
    assert!(record.resolved_wall_ms.is_some());
    assert_eq!(bench.world.called().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_lasts_ends_it_and_says_until_when() {
    let bench = limited("[1/15m]");
    bench.heal("unit", APP).await;
    let first = bench.world.calls()[0].at;
    bench.world.sicken(APP);
    let record = bench.heal("unit", APP).await;
    assert_eq!(ended(&record), (Outcome::Limited, "limited"));
    let wait = minutes(15) - first.elapsed();
    assert_eq!(record.next_allowed_wall_ms, Some(bench.now().wall_after(wait)));
    // One millisecond too early, and exactly in time.
    sleep(wait - Duration::from_millis(1) - minutes(5)).await;
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Limited, "limited"));
    sleep(minutes(5) + Duration::from_millis(1)).await;
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.told().await, ["succeeded verified", "limited limited", "succeeded verified"]);
}

/// One class on one host: two rules on two targets share it.
#[tokio::test(start_paused = true)]
async fn class_and_host_count_across_rules_and_targets() {
    for policy in ["limits: {S2: [1/1h]}", "limits: {host: [1/1h]}"] {
        let rules = [unit_rule("unit", NO_COOLDOWN), disk_rule("disk", NO_COOLDOWN)];
        let mut bench = Bench::under(&format!("policy: {{mode: auto, deletion: data, {policy}}}"), &rules);
        for (rule, does) in [("unit", Does::Cure), ("disk", Does::Leave(0.5))] {
            let step = bench.fake("act", Class::S2, does);
            bench.steps(rule, [step]);
        }
        bench.world.show(APP, failed());
        bench.world.show(DISK, disk(0.9));
        assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Succeeded, "verified"));
        let record = bench.heal("disk", DISK).await;
        assert_eq!(ended(&record), (Outcome::Limited, "limited"), "{policy}");
        let of =
            if policy.contains("S2") { "of steps that interrupt a service (S2)" } else { "on this host" };
        assert_eq!(record.detail.unwrap(), format!("1 of 1 starts {of} used (1/1h)"));
        sleep(minutes(60)).await;
        assert_eq!(ended(&bench.heal("disk", DISK).await), (Outcome::Succeeded, "verified"));
    }
}

/// Two rules about one target share the target's limit; one rule's targets share the rule's.
#[tokio::test(start_paused = true)]
async fn target_and_rule_count_across_each_other() {
    let rules = [unit_rule("one", NO_COOLDOWN), unit_rule("two", NO_COOLDOWN)];
    let mut bench = Bench::under("policy: {mode: auto, limits: {S2: [99/1h], target: [1/1h]}}", &rules);
    for rule in ["one", "two"] {
        let step = bench.fake("act", Class::S2, Does::Cure);
        bench.steps(rule, [step]);
    }
    bench.world.show(APP, failed());
    bench.world.show(OTHER, failed());
    bench.heal("one", APP).await;
    bench.world.sicken(APP);
    let record = bench.heal("two", APP).await;
    assert_eq!(record.detail.as_deref(), Some("1 of 1 starts on this target used (1/1h)"));
    assert_eq!(ended(&bench.heal("two", OTHER).await), (Outcome::Succeeded, "verified"));

    let mut bench = Bench::new(&[unit_rule("unit", &format!("    rule_limits: [1/1h]\n{NO_COOLDOWN}"))]);
    let step = bench.fake("act", Class::S2, Does::Cure);
    bench.steps("unit", [step]);
    bench.world.show(APP, failed());
    bench.world.show(OTHER, failed());
    bench.heal("unit", APP).await;
    let record = bench.heal("unit", OTHER).await;
    assert_eq!(record.detail.as_deref(), Some("1 of 1 starts of this rule used (1/1h)"));
}

/// A walk down the ladder is one start of its rule and target; each step counts for its class.
#[tokio::test(start_paused = true)]
async fn a_ladder_is_one_start_and_each_step_one_of_its_class() {
    let rule = unit_rule("unit", &format!("    limits: [2/1h]\n{NO_COOLDOWN}"));
    let mut bench = Bench::under("policy: {mode: auto, limits: {S1: [9/1h], S2: [3/1h]}}", &[rule]);
    let first = bench.fake("first", Class::S1, Does::Nothing);
    let second = bench.fake("second", Class::S2, Does::Nothing);
    let third = bench.fake("third", Class::S2, Does::Cure);
    bench.steps("unit", [first, second, third]);
    bench.world.show(APP, failed());
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Succeeded, "verified"));
    bench.world.sicken(APP);
    // The second walk is admitted; its third step would be the fourth of class S2.
    let record = bench.heal("unit", APP).await;
    assert_eq!(bench.world.called(), ["first", "second", "third", "first", "second"]);
    assert_eq!(ended(&record), (Outcome::Ineffective, "steps_used_up"));
    assert_eq!(bench.steps_of(record.id), ["first done", "second done", "third skipped (limited)"]);
    let detail = record.detail.unwrap();
    let refused = "not done: third: 3 of 3 starts of steps that interrupt a service (S2) used (3/1h)";
    assert!(detail.contains(refused), "{detail}");
    assert!(record.next_allowed_wall_ms.is_some());
    bench.world.sicken(APP);
    let record = bench.heal("unit", APP).await;
    assert_eq!(record.detail.as_deref(), Some("2 of 2 starts of this rule on this target used (2/1h)"));
}

/// A refused gentle step must not lead to a harsher one.
#[tokio::test(start_paused = true)]
async fn a_refused_step_ends_the_ladder() {
    let rule = disk_rule("disk", NO_COOLDOWN);
    let policy = "policy: {mode: auto, deletion: data, limits: {D1: [1/1h], D2: [9/1h]}}";
    let mut bench = Bench::under(policy, &[rule]);
    let gentle = bench.fake("gentle", Class::D1, Does::Leave(0.88));
    let gentle_too = bench.fake("gentle_too", Class::D1, Does::Leave(0.5));
    let harsh = bench.fake("harsh", Class::D2, Does::Leave(0.1));
    bench.steps("disk", [gentle, gentle_too, harsh]);
    bench.world.show(DISK, disk(0.9));
    let record = bench.heal("disk", DISK).await;
    assert_eq!(bench.world.called(), ["gentle"]);
    assert_eq!(ended(&record), (Outcome::Ineffective, "steps_used_up"));
}

/// In the middle of the ladder, a limit that ends soon is waited for as well, and nothing is done twice.
#[tokio::test(start_paused = true)]
async fn the_ladder_waits_for_a_limit_between_its_steps() {
    let policy = "policy: {mode: auto, limits: {S2: [1/2m]}}";
    let mut bench = Bench::under(policy, &[unit_rule("unit", NO_COOLDOWN)]);
    let report = bench.fake("report", Class::S0, Does::Nothing);
    let first = bench.fake("first", Class::S2, Does::Sicken);
    let second = bench.fake("second", Class::S2, Does::Cure);
    bench.steps("unit", [report, first, second]);
    bench.world.show(APP, failed());
    let began = Instant::now();
    let record = bench.heal("unit", APP).await;
    assert_eq!(ended(&record), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.world.called(), ["report", "first", "second"]);
    assert_eq!(bench.steps_of(record.id), ["report done", "first done", "second done"]);
    assert!(began.elapsed() >= minutes(2));
}

#[tokio::test(start_paused = true)]
async fn after_a_try_it_cools_down_longer_each_time_and_then_a_person_is_needed() {
    let mut bench = Bench::new(&[unit_rule("unit", "    limits: [100/1h]\n    cooldown: 10m\n")]);
    let restart = bench.fake("restart", Class::S2, Does::Sicken);
    bench.steps("unit", [restart]);
    bench.world.show(APP, failed());
    // The alert comes every minute for a day.
    let mut outcomes: Vec<(Outcome, String)> = Vec::new();
    for _ in 0..24 * 60 {
        let record = bench.heal("unit", APP).await;
        let one = (record.outcome.unwrap(), record.reason.unwrap());
        if outcomes.last() != Some(&one) {
            outcomes.push(one);
        }
        sleep(minutes(1)).await;
    }
    let words: Vec<String> = outcomes.iter().map(|(outcome, reason)| format!("{outcome} {reason}")).collect();
    assert_eq!(
        words,
        [
            "ineffective steps_used_up",
            "limited cooldown",
            "ineffective steps_used_up",
            "blocked breaker",
            // Half open after twelve hours: one try, and it decides.
            "ineffective steps_used_up",
            "blocked breaker",
        ]
    );
    let calls: Vec<Instant> = bench.world.calls().iter().map(|call| call.at).collect();
    assert_eq!(calls.len(), 3, "three restarts in a day, not 1440");
    let first = calls[1].duration_since(calls[0]);
    assert!((minutes(7)..minutes(14)).contains(&first), "{first:?}");
    assert!((minutes(720)..minutes(723)).contains(&calls[2].duration_since(calls[1])));
    assert_eq!(bench.told().await, words, "each news once");
    // A try that helps closes it.
    let restart = bench.fake("restart", Class::S2, Does::Cure);
    bench.steps("unit", [restart]);
    sleep(minutes(24 * 60)).await;
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Succeeded, "verified"));
}

#[tokio::test(start_paused = true)]
async fn a_day_of_flapping_starts_exactly_what_the_budget_allows() {
    let bench = limited("[3/6h]");
    let begun = Instant::now();
    while begun.elapsed() < minutes(24 * 60) {
        bench.world.sicken(APP);
        bench.heal("unit", APP).await;
        sleep(minutes(1)).await;
    }
    // The last of them waited for the next window.
    let within = |at: &Instant| at.duration_since(begun) < minutes(24 * 60);
    let calls: Vec<Instant> = bench.world.calls().iter().map(|call| call.at).filter(within).collect();
    assert_eq!(calls.len(), 4 * 3, "{calls:?}");
    for window in calls.windows(4) {
        assert!(window[3].duration_since(window[0]) >= minutes(6 * 60), "{window:?}");
    }
}

/// A flood of refusals of two kinds, which are not folded into one, makes nobody forget what was tried.
#[tokio::test(start_paused = true)]
async fn a_flapping_alert_does_not_make_the_breaker_forget() {
    let mut bench = Bench::new(&[unit_rule("unit", "    limits: [100/1h]\n    cooldown: 1s\n")]);
    let restart = bench.fake("restart", Class::S2, Does::Sicken);
    bench.steps("unit", [restart]);
    bench.world.show(APP, failed());
    bench.heal("unit", APP).await;
    sleep(minutes(1)).await;
    bench.heal("unit", APP).await;
    assert_eq!(bench.world.called().len(), 2);
    for _ in 0..250 {
        bench.world.cure(APP);
        assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::NotNeeded, "already_well"));
        bench.world.sicken(APP);
        assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Blocked, "breaker"));
    }
    assert_eq!(bench.world.called().len(), 2);
    assert!(bench.reader().recent(None, None, 1000).unwrap().len() > 500);
}
