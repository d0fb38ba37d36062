//! Between two deliveries, which are hours apart: what was held back is done when it may be, without a further alert;
//! what no alert asks for any more is not.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::bench::{Bench, Does, disk, disk_rule, failed, unit_rule};
use crate::{
    config::Config,
    journal::{Accepted, Incoming, Labels, Record, Verdict},
    outcome::Outcome,
    policy::{Class, Mode},
    reconcile::{Reconcile, Reconciler},
    worker::{Bell, Worker},
};

const APP: &str = "app.service";
const DISK: &str = "/no/such/disk";
/// Without what would come first.
const FREE: &str = "    cooldown: 0s\n    breaker: {after: 100, hold: 1h}\n";

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

fn ended(record: &Record) -> (Outcome, &str) {
    (record.outcome.unwrap(), record.reason.as_deref().unwrap())
}

/// The daemon's own tasks, at work on a bench.
struct Daemon {
    bell: Bell,
    live: watch::Sender<Arc<Config>>,
    tasks: JoinSet<()>,
}

impl Daemon {
    fn start(bench: &Bench) -> Self {
        let bell = Bell::default();
        let (live, seen) = watch::channel(bench.walker().assessor.config.clone());
        let mut tasks = JoinSet::new();
        let worker = Worker::new(bench.walker().clone(), seen.clone(), bell.clone());
        tasks.spawn(async move { worker.run().await.unwrap() });
        tasks.spawn(Reconciler::new(bench.walker().clone(), seen, bell.clone()).run());
        Self { bell, live, tasks }
    }

    /// The process dies.
    async fn die(mut self) {
        self.tasks.shutdown().await;
    }

    async fn alert(&self, bench: &Bench, rule: &str, target: &str) {
        bench.alert(rule, target).await;
        self.bell.ring();
    }
}

/// Waits until the newest remediation is one that `wanted` accepts.
async fn until(bench: &Bench, within: Duration, wanted: impl Fn(&Record) -> bool) -> Record {
    let began = Instant::now();
    loop {
        let record = bench.last();
        if wanted(&record) {
            return record;
        }
        assert!(began.elapsed() < within, "still {record:#?}");
        sleep(within / 200).await;
    }
}

async fn until_ended(bench: &Bench, outcome: Outcome) -> Record {
    until(bench, minutes(5), |record| record.outcome == Some(outcome)).await
}

/// A unit that was restarted and has failed again, so that the second alert meets the limit.
async fn limited(more: &str) -> (Bench, Daemon) {
    let rule = unit_rule("unit", &format!("    limits: [1/15m]\n{FREE}{more}"));
    let mut bench = Bench::new(&[rule]);
    let restart = bench.fake("restart", Class::S2, Does::Cure);
    bench.steps("unit", [restart]);
    bench.world.show(APP, failed());
    let daemon = Daemon::start(&bench);
    daemon.alert(&bench, "unit", APP).await;
    until_ended(&bench, Outcome::Succeeded).await;
    bench.world.sicken(APP);
    daemon.alert(&bench, "unit", APP).await;
    let record = until_ended(&bench, Outcome::Limited).await;
    assert_eq!((record.id, record.reason.as_deref()), (2, Some("limited")));
    (bench, daemon)
}

/// Limited now and allowed in a quarter of an hour: it is done then, although the next delivery is hours away.
#[tokio::test(start_paused = true)]
async fn what_a_limit_held_back_is_done_when_it_allows() {
    let (bench, _daemon) = limited("").await;
    let record = until(&bench, minutes(30), |record| record.outcome == Some(Outcome::Succeeded)).await;
    let calls = bench.world.calls();
    assert_eq!(calls.len(), 2);
    let apart = calls[1].at.duration_since(calls[0].at);
    assert!(apart >= minutes(15) && apart <= minutes(16), "{apart:?}");
    // It is a remediation of its own, and nobody sent an alert for it.
    assert_eq!((record.id, record.deliveries, ended(&record)), (3, 0, (Outcome::Succeeded, "verified")));
    let event = &bench.reader().events(3).unwrap()[0];
    assert_eq!((event.1.as_str(), event.2.as_str()), ("taken_up", "after #2, without a new alert"));
    // Nothing more comes of it.
    sleep(minutes(600)).await;
    assert_eq!((bench.last().id, bench.world.calls().len()), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn what_was_resolved_is_not_taken_up() {
    let (bench, _daemon) = limited("").await;
    bench.say("unit", APP, false).await;
    sleep(minutes(400)).await;
    assert_eq!((bench.last().id, bench.world.calls().len()), (2, 1));
    assert!(bench.last().resolved_wall_ms.is_some());
}

#[tokio::test(start_paused = true)]
async fn what_has_become_well_is_noted_as_not_needed_once() {
    let (bench, _daemon) = limited("").await;
    bench.world.cure(APP);
    sleep(minutes(17)).await;
    let record = bench.last();
    assert_eq!((record.id, ended(&record)), (3, (Outcome::NotNeeded, "already_well")));
    // It fails again later: that is what the next alert is for.
    bench.world.sicken(APP);
    sleep(minutes(400)).await;
    assert_eq!((bench.last().id, bench.world.calls().len()), (3, 1));
}

/// No word of it for six hours: it may have been silenced, or Alertmanager is no more.
#[tokio::test(start_paused = true)]
async fn an_alert_that_is_heard_of_no_more_asks_for_nothing() {
    let mut bench = Bench::new(&[unit_rule("unit", &format!("    limits: [1/7h]\n{FREE}"))]);
    let restart = bench.fake("restart", Class::S2, Does::Cure);
    bench.steps("unit", [restart]);
    bench.world.show(APP, failed());
    let daemon = Daemon::start(&bench);
    daemon.alert(&bench, "unit", APP).await;
    until_ended(&bench, Outcome::Succeeded).await;
    bench.world.sicken(APP);
    daemon.alert(&bench, "unit", APP).await;
    until_ended(&bench, Outcome::Limited).await;
    sleep(minutes(16 * 60)).await;
    assert_eq!((bench.last().id, bench.world.calls().len()), (2, 1));
    // One that comes again meanwhile goes on asking: refused once more, it is done when it may be.
    bench.world.cure(APP);
    bench.world.sicken(APP);
    daemon.alert(&bench, "unit", APP).await;
    until_ended(&bench, Outcome::Succeeded).await;
    bench.world.sicken(APP);
    daemon.alert(&bench, "unit", APP).await;
    until_ended(&bench, Outcome::Limited).await;
    sleep(minutes(4 * 60)).await;
    daemon.alert(&bench, "unit", APP).await;
    until(&bench, minutes(4 * 60), |record| record.outcome == Some(Outcome::Succeeded)).await;
    assert_eq!(bench.world.calls().len(), 3);
}

/// What is known of a need outlives the process, and the host's own start.
#[tokio::test(start_paused = true)]
async fn a_new_process_takes_up_what_the_old_one_held() {
    for reboot in [false, true] {
        let (mut bench, daemon) = limited("").await;
        sleep(minutes(5)).await;
        daemon.die().await;
        if reboot {
            // With a clock that stood still meanwhile.
            bench.reboot(0);
        } else {
            bench.restart();
        }
        let _daemon = Daemon::start(&bench);
        until(&bench, minutes(20), |record| record.outcome == Some(Outcome::Succeeded)).await;
        let calls = bench.world.calls();
        assert!(calls[1].at.duration_since(calls[0].at) >= minutes(15));
    }
}

/// Two tries did not help: nobody tries before the hold is over, then once, and that decides.
#[tokio::test(start_paused = true)]
async fn a_held_breaker_is_tried_once_when_its_hold_is_over() {
    let rule = "    limits: [100/1h]\n    cooldown: 10m\n    breaker: {after: 2, hold: 12h}\n";
    let mut bench = Bench::new(&[unit_rule("unit", rule)]);
    bench.config.reconcile.alert_ttl = minutes(48 * 60);
    let restart = bench.fake("restart", Class::S2, Does::Sicken);
    bench.steps("unit", [restart]);
    bench.world.show(APP, failed());
    let daemon = Daemon::start(&bench);
    daemon.alert(&bench, "unit", APP).await;
    until_ended(&bench, Outcome::Ineffective).await;
    // After the cooldown it is tried again, without an alert, and that did not help either.
    until(&bench, minutes(20), |record| record.id == 2 && record.outcome == Some(Outcome::Ineffective)).await;
    sleep(minutes(12 * 60 - 20)).await;
    assert_eq!((bench.world.calls().len(), bench.last().id), (2, 2), "nothing is written down meanwhile");
    until(&bench, minutes(30), |record| record.id == 3 && record.outcome == Some(Outcome::Ineffective)).await;
    let calls = bench.world.calls();
    assert!(calls[2].at.duration_since(calls[1].at) >= minutes(12 * 60));
    sleep(minutes(11 * 60)).await;
    assert_eq!(bench.world.calls().len(), 3);
    // A person ends the hold: it is tried at once, not at the next look.
    let (rule, author) = ("unit".to_owned(), "root".to_owned());
    bench.journal().ack(rule, "unit", APP.to_owned(), author, bench.now()).await.unwrap();
    daemon.bell.urge();
    let began = Instant::now();
    bench.world.acting().await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

/// Six at once are a storm; five of them recover, and the sixth is repaired when it has been calm for long enough.
#[tokio::test(start_paused = true)]
async fn what_a_storm_held_back_is_done_when_it_is_over() {
    let policy = "policy: {mode: auto, limits: {S2: [100/1h]}, storm: {targets: 5, within: 5m, hold: 15m}}";
    let mut bench = Bench::under(policy, &[unit_rule("unit", &format!("    limits: [9/1h]\n{FREE}"))]);
    let restart = bench.fake("restart", Class::S2, Does::Cure);
    bench.steps("unit", [restart]);
    let targets: Vec<String> = (0..6).map(|number| format!("app-{number}.service")).collect();
    for target in &targets {
        bench.world.show(target, failed());
        bench.alert("unit", target).await;
    }
    let daemon = Daemon::start(&bench);
    daemon.bell.ring();
    let all_ended = |bench: &Bench| bench.reader().queue().unwrap().0 == 0;
    until(&bench, minutes(2), |_| all_ended(&bench)).await;
    let began = Instant::now();
    // All six are still in need a quarter of an hour later: it is still one cause.
    sleep(minutes(20)).await;
    assert!(bench.world.calls().is_empty());
    for target in &targets[1..] {
        bench.world.cure(target);
    }
    until(&bench, minutes(40), |_| !bench.world.calls().is_empty()).await;
    let calls = bench.world.calls();
    assert!(calls[0].at.duration_since(began) >= minutes(25), "{:?}", calls[0].at.duration_since(began));
    assert_eq!(calls[0].target, targets[0]);
    sleep(minutes(60)).await;
    assert_eq!(bench.world.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_pause_held_back_is_done_when_it_ends_or_somebody_resumes() {
    for resumed in [false, true] {
        let mut bench = Bench::new(&[unit_rule("unit", FREE)]);
        let restart = bench.fake("restart", Class::S2, Does::Cure);
        bench.steps("unit", [restart]);
        bench.world.show(APP, failed());
        let (reason, author) = ("deploy".to_owned(), "root".to_owned());
        bench.journal().pause(reason, author.clone(), Some(minutes(60)), bench.now()).await.unwrap();
        let began = Instant::now();
        let daemon = Daemon::start(&bench);
        daemon.alert(&bench, "unit", APP).await;
        assert_eq!(ended(&until_ended(&bench, Outcome::Blocked).await), (Outcome::Blocked, "paused"));
        if resumed {
            sleep(minutes(5)).await;
            bench.journal().resume(author, bench.now()).await.unwrap();
            daemon.bell.urge();
        }
        until(&bench, minutes(70), |record| record.outcome == Some(Outcome::Succeeded)).await;
        let after = bench.world.calls()[0].at.duration_since(began);
        let expected = if resumed { minutes(5)..minutes(6) } else { minutes(60)..minutes(62) };
        assert!(expected.contains(&after), "{after:?}");
    }
}

/// The bench's clock begins on Friday, 2027-01-15, at 08:00 UTC.
#[tokio::test(start_paused = true)]
async fn what_its_hours_held_back_is_done_when_they_begin() {
    let rule = format!("    limits: [9/1h]\n{FREE}    window: {{from: \"12:00\", to: \"13:00\"}}\n");
    let mut bench = Bench::new(&[unit_rule("unit", &rule)]);
    let restart = bench.fake("restart", Class::S2, Does::Cure);
    bench.steps("unit", [restart]);
    bench.world.show(APP, failed());
    let began = Instant::now();
    let daemon = Daemon::start(&bench);
    daemon.alert(&bench, "unit", APP).await;
    assert_eq!(ended(&until_ended(&bench, Outcome::Blocked).await), (Outcome::Blocked, "hours"));
    until(&bench, minutes(250), |record| record.outcome == Some(Outcome::Succeeded)).await;
    let after = bench.world.calls()[0].at.duration_since(began);
    assert!((minutes(240)..minutes(242)).contains(&after), "{after:?}");
}

/// What cannot be seen is looked at again, at a slower pace and as one on record.
#[tokio::test(start_paused = true)]
async fn what_could_not_be_seen_is_looked_at_again() {
    let mut bench = Bench::new(&[disk_rule("disk", FREE)]);
    let prune = bench.fake("prune", Class::D1, Does::Cure);
    bench.steps("disk", [prune]);
    bench.world.hide(DISK);
    let daemon = Daemon::start(&bench);
    daemon.alert(&bench, "disk", DISK).await;
    assert_eq!(ended(&until_ended(&bench, Outcome::Blocked).await), (Outcome::Blocked, "probe_unknown"));
    sleep(minutes(60)).await;
    let record = bench.last();
    assert_eq!((record.id, record.deliveries), (1, 1));
    bench.world.show(DISK, disk(0.9));
    until(&bench, minutes(12), |record| record.outcome == Some(Outcome::Succeeded)).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_again_without_an_alert() {
    let mut bench = Bench::new(&[unit_rule("unit", FREE)]);
    bench.rule("unit").mode = Mode::Approve;
    let restart = bench.fake("restart", Class::S2, Does::Cure);
    bench.steps("unit", [restart]);
    bench.world.show(APP, failed());
    let daemon = Daemon::start(&bench);
    daemon.alert(&bench, "unit", APP).await;
    until(&bench, minutes(2), |record| record.phase.as_str() == "awaiting").await;
    let within = bench.config.approval_within;
    let author = "root".to_owned();
    bench.journal().decide(1, Verdict::Reject, author, within, bench.now()).await.unwrap();
    daemon.bell.urge();
    assert_eq!(ended(&until_ended(&bench, Outcome::Blocked).await), (Outcome::Blocked, "rejected"));
    sleep(minutes(300)).await;
    assert_eq!(bench.last().id, 1);
}

/// Who triggers a rule has seen the answer, and may trigger it again.
#[tokio::test(start_paused = true)]
async fn what_a_person_began_is_not_taken_up() {
    let (bench, daemon) = limited("").await;
    bench.say("unit", APP, false).await;
    let rule = &bench.config.rules[0];
    let order = Incoming {
        rule: rule.name.clone(),
        target: rule.selector.admit(APP).unwrap(),
        firing: true,
        impact: true,
        fingerprint: String::new(),
        labels: Labels::default(),
        triggered_by: Some("root".to_owned()),
    };
    let accepted = bench.journal().accept(vec![order], 100, bench.now()).await.unwrap();
    assert!(matches!(accepted, Accepted::Taken(_)));
    daemon.bell.ring();
    until_ended(&bench, Outcome::Limited).await;
    sleep(minutes(300)).await;
    assert_eq!(bench.world.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn it_can_be_switched_off_and_on_while_it_runs() {
    let (mut bench, daemon) = limited("").await;
    bench.config.reconcile = Reconcile { alert_ttl: Duration::ZERO, ..Reconcile::default() };
    daemon.live.send_replace(Arc::new(bench.config.clone()));
    sleep(minutes(60)).await;
    assert_eq!(bench.world.calls().len(), 1);
    bench.config.reconcile = Reconcile::default();
    daemon.live.send_replace(Arc::new(bench.config.clone()));
    until(&bench, minutes(5), |record| record.outcome == Some(Outcome::Succeeded)).await;
}
