//! How one remediation ends, and what is on record of it.

use std::time::Duration;

use tokio::time::Instant;

use super::bench::{Bench, Does, disk, disk_rule, failed, unit, unit_rule};
use crate::{
    actions::Check,
    observe::{Container, Observation, Unit},
    outcome::Outcome,
    policy::{Class, Mode},
    rules::NeededWhen,
};

const APP: &str = "app.service";
const DISK: &str = "/no/such/disk";

fn ended(record: &crate::journal::Record) -> (Outcome, &str) {
    (record.outcome.unwrap(), record.reason.as_deref().unwrap())
}

/// One rule about units with these steps, and a failed unit.
fn unit_bench(steps: &[(&'static str, Does)]) -> Bench {
    let mut bench = Bench::new(&[unit_rule("unit", "")]);
    let steps: Vec<_> = steps.iter().map(|(name, does)| bench.fake(name, Class::S2, does.clone())).collect();
    bench.steps("unit", steps);
    bench.world.show(APP, failed());
    bench
}

fn disk_bench(steps: &[(&'static str, Does)]) -> Bench {
    let mut bench = Bench::new(&[disk_rule("disk", "")]);
    let steps: Vec<_> = steps.iter().map(|(name, does)| bench.fake(name, Class::D1, does.clone())).collect();
    bench.steps("disk", steps);
    bench.world.show(DISK, disk(0.9));
    bench
}

#[tokio::test(start_paused = true)]
async fn the_first_step_helps_and_is_the_last() {
    let bench = unit_bench(&[("first", Does::Cure), ("second", Does::Cure)]);
    let began = Instant::now();
    let record = bench.heal("unit", APP).await;
    assert_eq!(ended(&record), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.world.called(), ["first"]);
    assert_eq!(bench.steps_of(record.id), ["first done"]);
    // Well for the whole hold time, and no longer waited for.
    assert_eq!(began.elapsed(), Duration::from_secs(10));
    let summary = |seen: &Option<Observation>| seen.as_ref().unwrap().summary();
    assert_eq!(summary(&record.before), "failed (failed), result , status 0");
    assert_eq!(summary(&record.after), "active (active)");
    assert!(record.acted && record.next_allowed_wall_ms.is_none());
    assert_eq!(bench.told().await, ["succeeded verified"]);
}

#[tokio::test(start_paused = true)]
async fn what_all_steps_together_cannot_free_is_said() {
    const GB: u64 = 1_000_000_000;
    let mut bench = Bench::new(&[disk_rule("disk", "")]);
    // 100 GB are needed. Steps of one action free the same.
    let frees = |name, does, gb| bench.fake(name, Class::D1, does).checked(Check::Frees(gb * GB));
    let steps = [
        frees("cache", Does::Nothing, 5),
        frees("cache", Does::Nothing, 20),
        frees("images", Does::Leave(0.89), 30),
    ];
    bench.steps("disk", steps);
    bench.world.show(DISK, disk(0.9));
    let record = bench.heal("disk", DISK).await;
    assert_eq!(record.outcome, Some(Outcome::Ineffective));
    let detail = record.detail.unwrap();
    assert!(detail.contains("the steps can free 50.0 GB of the 100.0 GB that are needed"), "{detail}");
    // Where one of them does not know, nobody can say.
    let unknown = bench.fake("logs", Class::D1, Does::Nothing);
    let known = bench.fake("cache", Class::D1, Does::Nothing).checked(Check::Frees(GB));
    bench.steps("disk", [known, unknown]);
    bench.world.show(DISK, disk(0.9));
    bench.rule("disk").restraint.cooldown = Duration::ZERO;
    bench.reconfigure();
    let record = bench.heal("disk", DISK).await;
    assert!(!record.detail.unwrap_or_default().contains("the steps can free"));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_makes_way_holds_nothing_up() {
    let mut bench = Bench::new(&[unit_rule("unit", "")]);
    let steps = [("reload", Does::Nothing), ("restart", Does::Cure)];
    let steps = steps.map(|(name, does)| bench.fake(name, Class::S2, does));
    let [reload, restart] = steps;
    bench.steps("unit", [reload.that_prepares(), restart]);
    bench.world.show(APP, failed());
    let began = Instant::now();
    let record = bench.heal("unit", APP).await;
    assert_eq!(ended(&record), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.steps_of(record.id), ["reload done", "restart done"]);
    assert_eq!(began.elapsed(), Duration::from_secs(10), "the hold time of the second, and no more");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_only_makes_way_may_be_enough() {
    let mut bench = Bench::new(&[unit_rule("unit", "")]);
    let reload = bench.fake("reload", Class::S2, Does::Cure).that_prepares();
    let restart = bench.fake("restart", Class::S2, Does::Cure);
    bench.steps("unit", [reload, restart]);
    bench.world.show(APP, failed());
    let record = bench.heal("unit", APP).await;
    assert_eq!(ended(&record), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.world.called(), ["reload"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_well_needs_nothing_and_costs_nothing() {
    let bench = unit_bench(&[("restart", Does::Cure)]);
    bench.world.cure(APP);
    let record = bench.heal("unit", APP).await;
    assert_eq!(ended(&record), (Outcome::NotNeeded, "already_well"));
    assert!(bench.world.called().is_empty());
    assert!(bench.steps_of(record.id).is_empty());
    // It did not use up the limit of one in fifteen minutes.
    bench.world.sicken(APP);
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.told().await, ["not_needed already_well", "succeeded verified"]);
}

/// A report takes time, and the unit comes back by itself meanwhile.
#[tokio::test(start_paused = true)]
async fn what_recovers_while_the_report_is_taken_is_left_alone() {
    let mut bench = unit_bench(&[]);
    let report = bench.fake("report", Class::S0, Does::Show(Box::new(unit("active", "by-itself"))));
    let restart = bench.fake("restart", Class::S2, Does::Cure);
    bench.steps("unit", [report, restart]);
    let record = bench.heal("unit", APP).await;
    assert_eq!(ended(&record), (Outcome::NotNeeded, "already_well"));
    assert_eq!(bench.world.called(), ["report"]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_seen_is_neither_broken_nor_well() {
    let bench = unit_bench(&[("restart", Does::Cure)]);
    bench.world.hide(APP);
    let record = bench.heal("unit", APP).await;
    assert_eq!(ended(&record), (Outcome::Blocked, "probe_unknown"));
    assert_eq!(record.detail.as_deref(), Some("no answer"));
    assert!(bench.world.called().is_empty());
}

#[tokio::test(start_paused = true)]
async fn plan_mode_says_what_it_would_do_and_does_nothing() {
    let mut bench = unit_bench(&[]);
    let skipped = bench
        .fake("first", Class::S2, Does::Cure)
        .checked(Check::Skip("job_queued", "systemd has a job queued for it".to_owned()));
    let second = bench.fake("second", Class::S2, Does::Cure);
    bench.steps("unit", [skipped, second]);
    bench.rule("unit").mode = Mode::Plan;
    bench.reconfigure();
    for _ in 0..3 {
        let record = bench.heal("unit", APP).await;
        assert_eq!(ended(&record), (Outcome::Planned, "plan_mode"));
        assert_eq!(bench.steps_of(record.id), ["first skipped (job_queued)", "second planned"]);
    }
    let record = bench.last();
    assert_eq!(record.deliveries, 3, "three times the same is one on record");
    assert_eq!(bench.reader().steps(record.id).unwrap()[1].plan, "second unit app.service");
    assert!(bench.world.called().is_empty());
    // Going live is not held up by what was only planned.
    bench.rule("unit").mode = Mode::Auto;
    bench.reconfigure();
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Succeeded, "verified"));
}

/// The policy is checked when the configuration is read; here it is lowered behind that check's back.
#[tokio::test(start_paused = true)]
async fn the_deletion_policy_holds_at_admission_too() {
    use crate::policy::Deletion;
    for (deletion, class, called) in [
        (Deletion::None, Class::D1, false),
        (Deletion::None, Class::D2, false),
        (Deletion::Cache, Class::D1, true),
        (Deletion::Cache, Class::D2, false),
        (Deletion::Data, Class::D2, true),
        (Deletion::None, Class::S2, true),
    ] {
        let mut bench = Bench::new(&[disk_rule("disk", "")]);
        let step = bench.fake("delete", class, Does::Leave(0.5));
        bench.config.deletion = deletion;
        bench.steps("disk", [step]);
        bench.world.show(DISK, disk(0.9));
        let record = bench.heal("disk", DISK).await;
        let expected = if called { (Outcome::Succeeded, "verified") } else { (Outcome::Blocked, "policy") };
        assert_eq!(ended(&record), expected, "{deletion:?} {class:?}");
        assert_eq!(!bench.world.called().is_empty(), called);
    }
}

#[tokio::test(start_paused = true)]
async fn what_held_a_step_back_is_told_before_what_another_had_nothing_to_do() {
    let mut bench = Bench::new(&[disk_rule("disk", "")]);
    let nothing = Check::Skip("nothing_to_delete", "3 in use".to_owned());
    let images = bench.fake("images", Class::D1, Does::Nothing).checked(nothing);
    let cache = bench.fake("cache", Class::D2, Does::Leave(0.5));
    bench.config.deletion = crate::policy::Deletion::Cache;
    bench.steps("disk", [images, cache]);
    bench.world.show(DISK, disk(0.9));
    assert_eq!(ended(&bench.heal("disk", DISK).await), (Outcome::Blocked, "policy"));
}

#[tokio::test(start_paused = true)]
async fn the_second_step_helps_when_the_first_did_not() {
    let skip = Check::Skip("not_failed", "it is not".to_owned());
    for (first, check, expected) in [
        (Does::Cure, skip, ["first skipped (not_failed)", "second done"]),
        (Does::Nothing, Check::Go, ["first done", "second done"]),
        (Does::Sicken, Check::Go, ["first done", "second done"]),
        (Does::Refuse, Check::Go, ["first failed (refused_by_host)", "second done"]),
        (Does::Hang, Check::Go, ["first unknown (unanswered)", "second done"]),
    ] {
        let mut bench = unit_bench(&[]);
        let first = bench.fake("first", Class::S2, first).checked(check);
        let second = bench.fake("second", Class::S2, Does::Cure);
        bench.steps("unit", [first, second]);
        let record = bench.heal("unit", APP).await;
        assert_eq!(ended(&record), (Outcome::Succeeded, "verified"), "{expected:?}");
        assert_eq!(bench.steps_of(record.id), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_is_brought_down_step_by_step_and_each_is_measured() {
    let bench = disk_bench(&[
        ("gentle", Does::Leave(0.84)),
        ("harsher", Does::Leave(0.75)),
        ("last", Does::Leave(0.1)),
    ]);
    let record = bench.heal("disk", DISK).await;
    assert_eq!(ended(&record), (Outcome::Succeeded, "verified"));
    // Below the mark of need is not below the mark of done: the ladder goes on, and stops there.
    assert_eq!(bench.world.called(), ["gentle", "harsher"]);
    let freed: Vec<i64> = bench
        .reader()
        .steps(record.id)
        .unwrap()
        .iter()
        .map(|step| (step.measured_freed_bytes.unwrap() + 500_000_000) / 1_000_000_000)
        .collect();
    assert_eq!(freed, [60, 90]);
}

#[tokio::test(start_paused = true)]
async fn a_disk_between_the_marks_is_partial_and_nobody_is_called() {
    let bench = disk_bench(&[("gentle", Does::Leave(0.84)), ("harsher", Does::Leave(0.82))]);
    let record = bench.heal("disk", DISK).await;
    assert_eq!(ended(&record), (Outcome::Partial, "below_needed"));
    assert!(record.detail.unwrap().starts_with("better, and not as good as the mark"));
    assert_eq!(bench.told().await, ["partial below_needed"]);
    assert!(!Outcome::Partial.escalates());
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fills_again_within_the_hold_time_gets_the_time_it_is_given() {
    let bench = disk_bench(&[("prune", Does::Leave(0.7)), ("more", Does::Leave(0.1))]);
    // The look of the walk, the measurement, twenty seconds well, five not, then well for good.
    let looks = [vec![disk(0.9)], vec![disk(0.7); 21], vec![disk(0.81); 5]].concat();
    bench.world.script(DISK, looks.into_iter().map(Ok));
    let record = bench.heal("disk", DISK).await;
    assert_eq!(ended(&record), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.world.called(), ["prune"], "a flap is no reason to delete more");
}

/// The hold time runs from when it is well, and the deadline does not move.
#[tokio::test(start_paused = true)]
async fn a_flap_during_the_hold_begins_it_anew() {
    let bench = unit_bench(&[("restart", Does::Cure)]);
    let well = || unit("active", "run-1");
    let looks = [vec![failed()], vec![well(); 8], vec![unit("activating", "run-1")]].concat();
    bench.world.script(APP, looks.into_iter().map(Ok));
    let began = Instant::now();
    let record = bench.heal("unit", APP).await;
    assert_eq!(ended(&record), (Outcome::Succeeded, "verified"));
    assert_eq!(began.elapsed(), Duration::from_secs(8 + 1 + 10));
}

#[tokio::test(start_paused = true)]
async fn a_unit_that_flaps_until_the_deadline_is_not_repaired() {
    let bench = unit_bench(&[("restart", Does::Cure), ("again", Does::Cure)]);
    let mut looks = vec![failed()];
    // Up for nine of ten seconds: never for the ten that count. At the deadline it happens to be up.
    for second in 0..61 {
        looks.push(unit(if second % 10 == 9 { "activating" } else { "active" }, "run-1"));
    }
    bench.world.script(APP, looks.into_iter().map(Ok));
    let record = bench.heal("unit", APP).await;
    assert_eq!(ended(&record), (Outcome::Ineffective, "steps_used_up"));
    assert_eq!(bench.world.called(), ["restart"], "a running unit is not restarted for that");
}

/// A service that ends at once without an error is not failed any more, and not repaired.
#[tokio::test(start_paused = true)]
async fn down_without_an_error_is_not_better() {
    for state in ["inactive", "activating", "deactivating"] {
        let bench = unit_bench(&[("restart", Does::Show(Box::new(unit(state, "run-1"))))]);
        let record = bench.heal("unit", APP).await;
        assert_eq!(ended(&record), (Outcome::Ineffective, "steps_used_up"), "{state}");
        assert_eq!(bench.told().await, ["ineffective steps_used_up"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_that_never_gets_past_starting_is_not_repaired() {
    let container = |health: &str| {
        Observation::Container(Container {
            id: "c0ffee".to_owned(),
            state: "running".to_owned(),
            health: health.to_owned(),
            ..Container::default()
        })
    };
    let rule = "  - name: container
    match: ['alertname=\"container\"']
    target: {container: name, allow: [app]}
    steps: [container_restart]
    verify: {healthy_for: 10s, within: 60s}
";
    for (after, outcome) in [("starting", Outcome::Ineffective), ("healthy", Outcome::Succeeded)] {
        let mut bench = Bench::new(&[rule.to_owned()]);
        let restart = bench.fake("restart", Class::S2, Does::Show(Box::new(container(after))));
        bench.steps("container", [restart]);
        bench.world.show("app", container("unhealthy"));
        assert_eq!(bench.heal("container", "app").await.outcome, Some(outcome), "{after}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_help_calls_a_person() {
    for (does, expected) in [
        (Does::Nothing, (Outcome::Ineffective, "steps_used_up")),
        (Does::Sicken, (Outcome::Ineffective, "steps_used_up")),
        (Does::Refuse, (Outcome::Failed, "refused_by_host")),
        (Does::Hang, (Outcome::Unknown, "unanswered")),
    ] {
        let bench = unit_bench(&[("first", does.clone()), ("second", does)]);
        let record = bench.heal("unit", APP).await;
        assert_eq!(ended(&record), expected);
        assert!(record.outcome.unwrap().escalates());
        assert_eq!(bench.world.called(), ["first", "second"]);
        assert_eq!(bench.told().await, [format!("{} {}", expected.0, expected.1)]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_action_that_hangs_is_not_waited_for_beyond_its_time() {
    let bench = unit_bench(&[("hang", Does::Hang)]);
    let began = Instant::now();
    let record = bench.heal("unit", APP).await;
    assert_eq!(began.elapsed(), Duration::from_secs(90 + 60));
    let step = bench.reader().steps(record.id).unwrap().remove(0);
    assert_eq!(step.detail.as_deref(), Some("no answer within 90 s"));
    // It may have been done after all: then that is the truth.
    let bench = unit_bench(&[("hang", Does::Hang)]);
    bench.world.script(APP, [Ok(failed())]);
    bench.world.show(APP, unit("active", "run-1"));
    let record = bench.heal("unit", APP).await;
    assert_eq!(ended(&record), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.steps_of(record.id), ["hang unknown (unanswered)"]);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_is_not_waited_for_and_its_step_not_done() {
    let mut bench = unit_bench(&[]);
    let first = bench.fake("first", Class::S2, Does::Cure).whose_check_hangs();
    let second = bench.fake("second", Class::S2, Does::Cure);
    bench.steps("unit", [first, second]);
    let record = bench.heal("unit", APP).await;
    assert_eq!(ended(&record), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.steps_of(record.id), ["first skipped (check_failed)", "second done"]);
}

/// After a step nobody sees the target any more: what a further step would meet, nobody knows.
#[tokio::test(start_paused = true)]
async fn blind_after_a_step_means_no_further_step() {
    for (bench, rule, target, seen) in [
        (unit_bench(&[("one", Does::Nothing), ("two", Does::Cure)]), "unit", APP, failed()),
        (disk_bench(&[("one", Does::Nothing), ("two", Does::Leave(0.1))]), "disk", DISK, disk(0.9)),
    ] {
        bench.world.hide(target);
        bench.world.script(target, [Ok(seen)]);
        let record = bench.heal(rule, target).await;
        assert_eq!(ended(&record), (Outcome::Unknown, "probe_unknown"));
        assert_eq!(bench.world.called(), ["one"]);
        assert_eq!(bench.told().await, ["unknown probe_unknown"]);
    }
}

/// A busy disk does not answer once while it is being verified.
#[tokio::test(start_paused = true)]
async fn one_look_into_the_dark_is_no_reason_to_delete_more() {
    let bench = disk_bench(&[("prune", Does::Leave(0.7)), ("more", Does::Leave(0.1))]);
    let dark = Err(crate::observe::Unseen("busy".to_owned()));
    let looks = [vec![Ok(disk(0.9))], vec![Ok(disk(0.7)); 20], vec![dark; 3]].concat();
    bench.world.script(DISK, looks);
    assert_eq!(ended(&bench.heal("disk", DISK).await), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.world.called(), ["prune"]);
}

#[tokio::test(start_paused = true)]
async fn a_rule_without_a_mark_is_done_when_it_is_no_longer_needed() {
    let rule = unit_rule("unit", "").replace("    verify: {active_for: 10s, within: 60s}\n", "");
    let rule = rule.replace("unit_restart", "unit_reset_failed");
    for (does, expected) in [
        (Does::Show(Box::new(unit("inactive", "run-0"))), (Outcome::Succeeded, "verified")),
        (Does::Nothing, (Outcome::Ineffective, "steps_used_up")),
    ] {
        let mut bench = Bench::new(std::slice::from_ref(&rule));
        let reset = bench.fake("reset", Class::S1, does);
        bench.steps("unit", [reset]);
        bench.world.show(APP, failed());
        assert_eq!(ended(&bench.heal("unit", APP).await), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_only_observes_reports_in_every_mode_and_within_its_limits() {
    for mode in [Mode::Plan, Mode::Auto] {
        let mut bench = Bench::new(&[unit_rule("unit", "    limits: [1/10m]\n")]);
        let report = bench.fake("report", Class::S0, Does::Nothing);
        bench.rule("unit").mode = mode;
        bench.steps("unit", [report]);
        bench.world.show(APP, unit("activating", "run-1"));
        let record = bench.heal("unit", APP).await;
        assert_eq!(ended(&record), (Outcome::Reported, "reported"));
        assert!(!record.acted);
        let record = bench.heal("unit", APP).await;
        assert_eq!(ended(&record), (Outcome::Limited, "limited"));
        assert_eq!(bench.world.called(), ["report"]);
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Reported, "reported"));
        assert_eq!(bench.told().await, ["reported reported", "limited limited", "reported reported"]);
    }
}

/// An alias in an alert leads to the unit itself, under its own name: one history, one set of limits.
#[tokio::test(start_paused = true)]
async fn an_alias_is_no_second_target() {
    let mut bench = unit_bench(&[("restart", Does::Sicken)]);
    let seen = |run: &str| {
        let Observation::Unit(failed) = unit("failed", run) else { unreachable!() };
        let names = vec![APP.to_owned(), "app-alias.service".to_owned()];
        Observation::Unit(Unit { id: APP.to_owned(), names, ..failed })
    };
    bench.world.show("app-alias.service", seen("run-0"));
    bench.world.show(APP, seen("run-0"));
    let step = bench.fake("restart", Class::S2, Does::Show(Box::new(seen("run-1"))));
    bench.steps("unit", [step]);
    // Both at once: one stands for both.
    bench.alert("unit", "app-alias.service").await;
    let record = bench.heal("unit", APP).await;
    assert_eq!((record.target.as_str(), record.deliveries), (APP, 2));
    assert_eq!(ended(&record), (Outcome::Ineffective, "steps_used_up"));
    // Alone, it comes too early under either name.
    let record = bench.heal("unit", "app-alias.service").await;
    assert_eq!((record.target.as_str(), ended(&record)), (APP, (Outcome::Limited, "cooldown")));
    assert_eq!(bench.world.called(), ["restart"]);
    assert_eq!(bench.reader().recent(None, Some("app-alias.service"), 9).unwrap().len(), 0);
}

/// What a change of files cures is not always to be seen in the state of the unit.
#[tokio::test(start_paused = true)]
async fn what_looked_well_before_is_judged_by_the_step_s_own_answer() {
    for (does, expected) in [
        (Does::Nothing, (Outcome::Succeeded, "verified")),
        (Does::Refuse, (Outcome::Failed, "refused_by_host")),
        (Does::Hang, (Outcome::Unknown, "unanswered")),
        (Does::Sicken, (Outcome::Ineffective, "steps_used_up")),
    ] {
        let mut bench = unit_bench(&[("restore", does)]);
        bench.rule("unit").needed = NeededWhen::Always;
        bench.reconfigure();
        bench.world.show(APP, unit("active", "run-0"));
        let record = bench.heal("unit", APP).await;
        assert_eq!(ended(&record), expected);
    }
}
