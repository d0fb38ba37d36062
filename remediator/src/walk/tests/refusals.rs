//! What comes again, what comes to an end by itself, and what changes under an open remediation.

use std::time::Duration;

use tokio::time::sleep;

use super::bench::{Bench, Does, failed, unit_rule};
use crate::{
    journal::{Phase, Record},
    outcome::Outcome,
    policy::{Class, Mode},
    walk::Next,
};

const APP: &str = "app.service";

fn ended(record: &Record) -> (Outcome, &str) {
    (record.outcome.unwrap(), record.reason.as_deref().unwrap())
}

fn bench(does: Does) -> Bench {
    let mut bench = Bench::new(&[unit_rule("unit", "")]);
    let restart = bench.fake("restart", Class::S2, does);
    bench.steps("unit", [restart]);
    bench.world.show(APP, failed());
    bench
}

#[tokio::test(start_paused = true)]
async fn duplicates_are_one_remediation() {
    let bench = bench(Does::Cure);
    for _ in 0..5 {
        bench.alert("unit", APP).await;
    }
    bench.drive().await;
    let record = bench.last();
    assert_eq!((record.deliveries, ended(&record)), (5, (Outcome::Succeeded, "verified")));
    assert_eq!(bench.reader().recent(None, None, 9).unwrap().len(), 1);
    assert_eq!(bench.world.called(), ["restart"]);
}

/// Another Alertmanager's copy arrives while the action runs, and another while it is verified.
#[tokio::test(start_paused = true)]
async fn duplicates_while_it_works_are_absorbed() {
    let bench = bench(Does::Take(Duration::from_secs(30)));
    bench.alert("unit", APP).await;
    let id = bench.last().id;
    let deliveries = async {
        bench.world.acting().await;
        for second in [10, 15, 10] {
            sleep(Duration::from_secs(second)).await;
            bench.alert("unit", APP).await;
        }
    };
    let (next, ()) = tokio::join!(bench.walk(id), deliveries);
    assert_eq!(next.unwrap(), Next::Ended);
    assert_eq!((bench.last().id, bench.last().deliveries), (id, 4));
    assert_eq!(bench.world.called(), ["restart"]);
}

#[tokio::test(start_paused = true)]
async fn resolved_before_it_began_is_checked_and_believed_only_then() {
    let bench = bench(Does::Cure);
    bench.alert("unit", APP).await;
    bench.say("unit", APP, false).await;
    bench.drive().await;
    // It is still failed, whatever the message says: an exporter that is down resolves alerts too.
    let record = bench.last();
    assert!(record.resolved_wall_ms.is_some());
    assert_eq!(ended(&record), (Outcome::Succeeded, "verified"));
    // A resolved message for what is not open is nothing.
    bench.say("unit", APP, false).await;
    bench.drive().await;
    assert_eq!(bench.reader().recent(None, None, 9).unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn resolved_while_it_works_changes_nothing_and_is_no_success() {
    for (does, outcome) in
        [(Does::Take(Duration::from_secs(30)), Outcome::Succeeded), (Does::Sicken, Outcome::Ineffective)]
    {
        let bench = bench(does);
        bench.alert("unit", APP).await;
        let id = bench.last().id;
        let resolve = async {
            bench.world.acting().await;
            bench.say("unit", APP, false).await;
        };
        let (next, ()) = tokio::join!(bench.walk(id), resolve);
        assert_eq!(next.unwrap(), Next::Ended);
        assert_eq!(bench.last().outcome, Some(outcome));
    }
}

#[tokio::test(start_paused = true)]
async fn what_only_repeats_is_one_on_record_and_told_once_a_day() {
    let bench = bench(Does::Cure);
    bench.heal("unit", APP).await;
    bench.world.sicken(APP);
    bench.told().await;
    for minute in 0..5 {
        let record = bench.heal("unit", APP).await;
        assert_eq!(ended(&record), (Outcome::Limited, "cooldown"));
        assert_eq!(record.deliveries, minute + 1);
        assert_eq!(record.ended_wall_ms, Some(bench.now().wall_ms), "it shows when it was last refused");
        sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(bench.reader().recent(None, None, 9).unwrap().len(), 2);
    assert_eq!(bench.told().await, ["limited cooldown"]);
    // What is seen and said then is the newest, not the oldest.
    bench.world.hide(APP);
    for _ in 0..2 {
        bench.heal("unit", APP).await;
    }
    assert_eq!(bench.told().await, ["blocked probe_unknown"]);
    sleep(Duration::from_secs(25 * 3600)).await;
    let record = bench.heal("unit", APP).await;
    assert_eq!((ended(&record), record.deliveries), ((Outcome::Blocked, "probe_unknown"), 1));
    assert_eq!(bench.told().await, ["blocked probe_unknown"]);
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_repeats_shows_the_newest_look() {
    let mut bench = bench(Does::Cure);
    bench.rule("unit").mode = Mode::Plan;
    bench.reconfigure();
    bench.heal("unit", APP).await;
    bench.world.sicken(APP);
    let record = bench.heal("unit", APP).await;
    assert_eq!(record.deliveries, 2);
    assert_eq!(record.before, Some(bench.world.seen(APP)));
    assert_eq!(bench.steps_of(record.id), ["restart planned"]);
}

/// A remediation whose action runs while its process dies.
async fn interrupted(does: Does) -> (Bench, i64) {
    let mut bench = bench(does);
    bench.alert("unit", APP).await;
    let id = bench.last().id;
    bench.walk_into_the_action(id).await;
    assert_eq!((bench.last().phase, bench.last().acted), (Phase::Running, true));
    bench.restart();
    (bench, id)
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_is_gone_ends_what_is_open() {
    let mut bench = bench(Does::Cure);
    bench.alert("unit", APP).await;
    bench.config.rules.clear();
    bench.restart();
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::Ignored, "not_configured"));
    assert!(bench.told().await.is_empty());
    assert!(bench.world.called().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_no_longer_allowed_ends_what_is_open() {
    let mut bench = bench(Does::Cure);
    bench.alert("unit", APP).await;
    bench.rule("unit").selector.allow = vec!["other.service".parse().unwrap()];
    bench.restart();
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::Ignored, "not_configured"));
    assert!(bench.world.called().is_empty());
}

/// What an interrupted action did stays unknown, and is told, also when its rule is gone by then.
#[tokio::test(start_paused = true)]
async fn a_rule_that_is_gone_does_not_hide_what_was_done() {
    let (mut bench, id) = interrupted(Does::Hang).await;
    bench.config.rules.clear();
    bench.restart();
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::Unknown, "not_configured"));
    assert_eq!(bench.steps_of(id), ["restart unknown (interrupted)"]);
    assert_eq!(bench.told().await, ["unknown not_configured"]);
}

/// Positions of another ladder mean nothing: an interrupted step must not come again at another place.
#[tokio::test(start_paused = true)]
async fn changed_steps_are_not_walked_on_from_the_old_place() {
    let (mut bench, _) = interrupted(Does::Hang).await;
    let report = bench.fake("report", Class::S0, Does::Nothing);
    let other = bench.fake("other", Class::S2, Does::Cure);
    let restart = bench.fake("restart", Class::S2, Does::Cure);
    bench.steps("unit", [report, other, restart]);
    bench.restart();
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::Unknown, "rule_changed"));
    assert_eq!(bench.world.called(), ["restart"]);
    // When it turns out to be well, that is the truth, whatever the rule is now.
    let (mut bench, id) = interrupted(Does::Hang).await;
    bench.world.cure(APP);
    let other = bench.fake("other", Class::S2, Does::Cure);
    bench.steps("unit", [other]);
    bench.restart();
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.steps_of(id), ["restart unknown (interrupted)"]);
}

/// It waits behind its report, because the host is busy; then the rule gets other steps. Nothing was done yet: it begins
/// anew.
#[tokio::test(start_paused = true)]
async fn changed_steps_before_anything_was_done_begin_anew() {
    let mut bench = Bench::new(&[unit_rule("unit", "    limits: [1/4m]\n    cooldown: 0s\n")]);
    let report = bench.fake("report", Class::S0, Does::Nothing);
    let busy = bench.fake("restart", Class::S2, Does::Defer);
    bench.steps("unit", [report, busy]);
    bench.world.show(APP, failed());
    bench.alert("unit", APP).await;
    let id = bench.last().id;
    assert!(matches!(bench.walk(id).await.unwrap(), Next::Again(_)));
    assert_eq!(bench.steps_of(id), ["report done"]);
    let restart = bench.fake("restart", Class::S2, Does::Cure);
    bench.steps("unit", [restart]);
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.world.called(), ["report", "restart", "restart"]);
    assert_eq!(bench.steps_of(id), ["restart done"]);
}

#[tokio::test(start_paused = true)]
async fn a_mode_that_was_lowered_holds_for_what_is_open() {
    let mut fresh = bench(Does::Cure);
    fresh.alert("unit", APP).await;
    fresh.rule("unit").mode = Mode::Plan;
    fresh.restart();
    fresh.drive().await;
    assert_eq!(ended(&fresh.last()), (Outcome::Planned, "plan_mode"));
    assert!(fresh.world.called().is_empty());

    // One that had begun is verified, and not gone on with.
    let mut begun = Bench::new(&[unit_rule("unit", "")]);
    let hang = begun.fake("hang", Class::S2, Does::Hang);
    let next = begun.fake("next", Class::S2, Does::Cure);
    begun.steps("unit", [hang, next]);
    begun.world.show(APP, failed());
    begun.alert("unit", APP).await;
    let id = begun.last().id;
    begun.walk_into_the_action(id).await;
    begun.rule("unit").mode = Mode::Plan;
    begun.restart();
    begun.drive().await;
    let record = begun.last();
    assert_eq!(ended(&record), (Outcome::Unknown, "unanswered"));
    assert_eq!(begun.steps_of(id), ["hang unknown (interrupted)", "next skipped (plan_mode)"]);
    assert!(record.detail.unwrap().ends_with("not done: next: mode is plan"));
    assert_eq!(begun.world.called(), ["hang"]);
}
