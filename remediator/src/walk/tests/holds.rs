//! What holds a start back beside limits: the same disk under another name, a pause, a storm, the host's own state, a
//! rule's hours, and what acting would take along.

use std::time::Duration;

use tokio::time::sleep;

use super::bench::{Bench, Does, disk, disk_rule, failed, unit_rule};
use crate::{
    admission::gates::Conditions,
    journal::{HaltKind, Record},
    outcome::Outcome,
    policy::Class,
    walk::Next,
};

const APP: &str = "app.service";
const DISK: &str = "/no/such/disk";
const SECOND: &str = "/no/such/second";
/// Without what would come first.
const FREE: &str = "    limits: [100/1h]\n    cooldown: 0s\n    breaker: {after: 100, hold: 1h}\n";

fn ended(record: &Record) -> (Outcome, &str) {
    (record.outcome.unwrap(), record.reason.as_deref().unwrap())
}

/// As the worker does: each of those that came at once is looked at before any is taken up again.
async fn drive_all(bench: &Bench) {
    for id in bench.journal().open_targets(bench.now()).await.unwrap().into_keys() {
        bench.walk(id).await.unwrap();
    }
    bench.drive().await;
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

fn units(policy: &str) -> Bench {
    let mut bench = Bench::under(policy, &[unit_rule("unit", FREE)]);
    let restart = bench.fake("restart", Class::S2, Does::Cure);
    bench.steps("unit", [restart]);
    bench.world.show(APP, failed());
    bench
}

const FREE_POLICY: &str = "mode: auto, deletion: data, limits: {S2: [100/1h], D1: [100/1h]}";

fn policy(more: &str) -> String {
    format!("policy: {{{FREE_POLICY}{more}}}")
}

/// `/` and a bind mount of it are one disk: one remediation frees, the other waits and then has nothing to do.
#[tokio::test(start_paused = true)]
async fn one_device_under_two_names_is_repaired_once_at_a_time() {
    let mut bench = Bench::new(&[disk_rule("disk", FREE)]);
    let prune = bench.fake("prune", Class::D1, Does::Take(minutes(3)));
    bench.steps("disk", [prune]);
    for mount_point in [DISK, SECOND] {
        bench.world.show(mount_point, disk(0.9));
        bench.alert("disk", mount_point).await;
    }
    let ids: Vec<i64> = bench.journal().open_targets(bench.now()).await.unwrap().into_keys().collect();
    let second = async {
        bench.world.acting().await;
        assert_eq!(bench.walk(ids[1]).await.unwrap(), Next::Again(Duration::from_secs(10)));
        let record = bench.last();
        assert_eq!(record.reason.as_deref(), Some("busy"));
        assert_eq!(record.detail.as_deref(), Some("#1 is at work on the same device, under /no/such/disk"));
        // It was freed under the other name.
        sleep(minutes(3)).await;
        bench.world.show(SECOND, disk(0.5));
    };
    let (first, ()) = tokio::join!(bench.walk(ids[0]), second);
    assert_eq!(first.unwrap(), Next::Ended);
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::NotNeeded, "already_well"));
    assert_eq!(bench.world.called(), ["prune"]);
}

/// Another device is nobody's business, and what only waits holds no device.
#[tokio::test(start_paused = true)]
async fn another_device_is_not_busy() {
    let mut bench = Bench::new(&[disk_rule("disk", FREE)]);
    let prune = bench.fake("prune", Class::D1, Does::Take(minutes(3)));
    bench.steps("disk", [prune]);
    bench.world.show(DISK, disk(0.9));
    let crate::observe::Observation::Filesystem(other) = disk(0.9) else { unreachable!() };
    bench.world.show(
        SECOND,
        crate::observe::Observation::Filesystem(crate::observe::Filesystem { device: 2, ..other }),
    );
    for mount_point in [DISK, SECOND] {
        bench.alert("disk", mount_point).await;
    }
    let ids: Vec<i64> = bench.journal().open_targets(bench.now()).await.unwrap().into_keys().collect();
    let (first, second) = tokio::join!(bench.walk(ids[0]), bench.walk(ids[1]));
    assert_eq!((first.unwrap(), second.unwrap()), (Next::Ended, Next::Ended));
    assert_eq!(bench.world.most_under_way(), 2);
}

/// A device that never becomes free is not waited for for ever.
#[tokio::test(start_paused = true)]
async fn waiting_for_a_busy_device_has_an_end() {
    let mut bench = Bench::new(&[disk_rule("disk", FREE)]);
    let prune = bench.fake("prune", Class::D1, Does::Hang);
    bench.steps("disk", [prune]);
    for mount_point in [DISK, SECOND] {
        bench.world.show(mount_point, disk(0.9));
        bench.alert("disk", mount_point).await;
    }
    let ids: Vec<i64> = bench.journal().open_targets(bench.now()).await.unwrap().into_keys().collect();
    bench.walk_into_the_action(ids[0]).await;
    let began = tokio::time::Instant::now();
    while let Next::Again(wait) = bench.walk(ids[1]).await.unwrap() {
        sleep(wait).await;
    }
    assert_eq!(began.elapsed(), minutes(60));
    assert_eq!(ended(&bench.last()), (Outcome::Blocked, "busy"));
}

#[tokio::test(start_paused = true)]
async fn a_pause_lets_what_runs_end_and_begins_nothing() {
    let mut bench = units(&policy(""));
    let restart = bench.fake("restart", Class::S2, Does::Take(minutes(1)));
    bench.steps("unit", [restart]);
    bench.alert("unit", APP).await;
    let pause = async {
        bench.world.acting().await;
        let (reason, author) = ("deploy".to_owned(), "root".to_owned());
        bench.journal().pause(reason, author, Some(minutes(60)), bench.now()).await.unwrap();
    };
    tokio::join!(bench.drive(), pause);
    assert_eq!(ended(&bench.last()), (Outcome::Succeeded, "verified"));
    bench.world.sicken(APP);
    let record = bench.heal("unit", APP).await;
    assert_eq!(ended(&record), (Outcome::Blocked, "paused"));
    assert_eq!(record.detail.as_deref(), Some("paused by root: deploy"));
    // Over a restart too, until its time is over.
    bench.restart();
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Blocked, "paused"));
    sleep(minutes(60)).await;
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.world.called().len(), 2);
}

/// Six units fail at once: none is restarted, people are told once, and only a calm quarter of an hour ends it.
#[tokio::test(start_paused = true)]
async fn a_storm_stops_everything_until_it_has_been_calm() {
    let mut bench = units(&policy(", storm: {targets: 5, within: 5m, hold: 15m}"));
    let targets: Vec<String> = (0..6).map(|number| format!("app-{number}.service")).collect();
    for target in &targets {
        bench.world.show(target, failed());
        bench.alert("unit", target).await;
    }
    drive_all(&bench).await;
    assert!(bench.world.called().is_empty(), "{:?}", bench.world.called());
    let all = bench.reader().recent(None, None, 9).unwrap();
    assert!(all.iter().all(|record| ended(record) == (Outcome::Blocked, "storm")), "{all:#?}");
    let told = bench.told().await;
    assert_eq!(told.iter().filter(|told| *told == "storm storm").count(), 1, "{told:?}");
    let halts = bench.reader().halts(&bench.now()).unwrap();
    assert_eq!((halts.len(), halts[0].what), (1, HaltKind::Storm));
    // A seventh, alone and ten minutes later, is still in it; over a restart too.
    sleep(minutes(10)).await;
    bench.restart();
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Blocked, "storm"));
    sleep(minutes(6)).await;
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Succeeded, "verified"));
    assert!(!bench.told().await.contains(&"storm storm".to_owned()));
}

/// What came within five minutes is counted, whatever the wall clock says meanwhile.
#[tokio::test(start_paused = true)]
async fn setting_the_clock_hides_no_storm_and_makes_none() {
    const YEAR_MS: i64 = 365 * 86_400_000;
    for jump in [3_600_000, -3_600_000, 10 * YEAR_MS, -10 * YEAR_MS] {
        for (pause, repaired) in [(minutes(1), 3), (minutes(6), 6)] {
            let bench = units(&policy(", storm: {targets: 5, within: 5m, hold: 15m}"));
            for batch in 0..2 {
                for number in 0..3 {
                    let target = format!("app-{batch}-{number}.service");
                    bench.world.show(&target, failed());
                    bench.alert("unit", &target).await;
                }
                drive_all(&bench).await;
                bench.set_wall_clock(jump);
                sleep(pause).await;
            }
            let called = bench.world.called().len();
            assert_eq!(called, repaired, "{pause:?} between them, the clock set by {jump} ms");
        }
    }
}

/// Six alerts, one failed unit: the others are well, and it is repaired.
#[tokio::test(start_paused = true)]
async fn alerts_that_are_not_true_make_no_storm() {
    let bench = units(&policy(", storm: {targets: 5, within: 5m, hold: 15m}"));
    bench.alert("unit", APP).await;
    for number in 0..6 {
        let target = format!("app-{number}.service");
        bench.world.show(&target, failed());
        bench.world.cure(&target);
        bench.alert("unit", &target).await;
    }
    drive_all(&bench).await;
    assert_eq!(bench.world.called(), ["restart"]);
    assert!(bench.reader().halts(&bench.now()).unwrap().is_empty());
}

/// Five at once are many, and no storm; what was repaired counts for as long as the window.
#[tokio::test(start_paused = true)]
async fn as_many_as_the_bound_are_repaired() {
    let bench = units(&policy(", storm: {targets: 5, within: 5m, hold: 15m}"));
    for number in 0..5 {
        let target = format!("app-{number}.service");
        bench.world.show(&target, failed());
        bench.alert("unit", &target).await;
    }
    drive_all(&bench).await;
    assert_eq!(bench.world.called().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_gate_is_waited_for_and_one_that_stays_closed_ends_it() {
    let bench = units(&policy(", gates: {grace: 0s, engine_grace: 0s}"));
    let locked = Conditions { package_lock: Some("/var/lib/dpkg/lock".to_owned()), ..Conditions::default() };
    bench.world.stand(locked.clone());
    bench.alert("unit", APP).await;
    let id = bench.last().id;
    assert_eq!(bench.walk(id).await.unwrap(), Next::Again(Duration::from_secs(30)));
    assert_eq!(bench.last().reason.as_deref(), Some("package_manager"));
    bench.world.stand(Conditions::default());
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::Succeeded, "verified"));
    bench.world.stand(locked);
    bench.world.sicken(APP);
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Blocked, "package_manager"));
    assert_eq!(bench.world.called(), ["restart"]);
}

/// Five minutes after the host's start, to the second, and without a further alert.
#[tokio::test(start_paused = true)]
async fn after_a_boot_nothing_is_touched_for_the_grace() {
    let bench = units(&policy(", gates: {}"));
    bench.alert("unit", APP).await;
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.now().boot_ms, 300_000 + 10_000, "the grace, and the ten seconds it is verified");
}

/// The bench's clock begins on Friday, 2027-01-15, at 08:00 UTC.
#[tokio::test(start_paused = true)]
async fn outside_its_hours_a_rule_does_nothing_and_says_when_it_will() {
    let rule =
        unit_rule("unit", &format!("{FREE}    window: {{days: [sat], from: \"10:00\", to: \"12:00\"}}\n"));
    let mut bench = Bench::new(&[rule]);
    let restart = bench.fake("restart", Class::S2, Does::Cure);
    bench.steps("unit", [restart]);
    bench.world.show(APP, failed());
    let record = bench.heal("unit", APP).await;
    assert_eq!(ended(&record), (Outcome::Blocked, "hours"));
    let wait = Duration::from_secs(26 * 3600);
    assert_eq!(record.next_allowed_wall_ms, Some(bench.now().wall_after(wait)));
    sleep(wait).await;
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Succeeded, "verified"));
}

#[tokio::test(start_paused = true)]
async fn what_would_take_too_much_along_is_not_done() {
    let bench = units(&policy(", blast_radius: 2"));
    bench.world.depend(&["a.service", "b.service", "c.service"]);
    let record = bench.heal("unit", APP).await;
    assert_eq!(ended(&record), (Outcome::Blocked, "blast_radius"));
    assert!(record.detail.unwrap().contains("more than 2 others"));
    // One that is never touched is one too many.
    bench.world.depend(&["sshd.service"]);
    let record = bench.heal("unit", APP).await;
    assert!(record.detail.unwrap().contains("take sshd.service along"));
    bench.world.depend(&["a.service", "b.service"]);
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Succeeded, "verified"));
}

/// Somebody has looked at what two tries did not cure: one more is admitted, at once, and its failure holds again.
#[tokio::test(start_paused = true)]
async fn an_acknowledgement_admits_one_more_try() {
    let mut bench =
        Bench::new(&[unit_rule("unit", "    limits: [100/1h]\n    breaker: {after: 1, hold: 12h}\n")]);
    let restart = bench.fake("restart", Class::S2, Does::Sicken);
    bench.steps("unit", [restart]);
    bench.world.show(APP, failed());
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Ineffective, "steps_used_up"));
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Blocked, "breaker"));
    assert_eq!(bench.reader().rule_facts("unit").unwrap().escalated, 1);
    let ack = async |target: &str| {
        let (rule, target, author) = ("unit".to_owned(), target.to_owned(), "root".to_owned());
        bench.journal().ack(rule, "unit", target, author, bench.now()).await.unwrap()
    };
    assert_eq!(ack("app-other.service").await, None, "nothing was tried there");
    assert_eq!(ack(APP).await, Some(1));
    assert_eq!(bench.reader().rule_facts("unit").unwrap().escalated, 0, "somebody knows");
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Ineffective, "steps_used_up"));
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Blocked, "breaker"));
    assert_eq!(bench.world.called().len(), 2);
}
