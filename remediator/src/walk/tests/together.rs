//! The worker: what may run at the same time and what may not, what it does when it must end, and when a walk breaks.

use std::time::Duration;

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::bench::{Bench, Does, failed, unit_rule};
use crate::{
    journal::{Error, Phase},
    outcome::Outcome,
    policy::Class,
    worker::{Bell, Worker},
};

const APP: &str = "app.service";

struct Running {
    bell: Bell,
    worker: JoinHandle<Result<(), Error>>,
}

fn start(bench: &Bench) -> Running {
    let bell = Bell::default();
    let (_, live) = watch::channel(bench.walker().assessor.config.clone());
    let worker = tokio::spawn(Worker::new(bench.walker().clone(), live, bell.clone()).run());
    Running { bell, worker }
}

impl Running {
    /// Waits until nothing is open any more.
    async fn idle(&self, bench: &Bench) {
        self.bell.ring();
        while bench.reader().queue().unwrap().0 > 0 {
            assert!(!self.worker.is_finished(), "the worker ended");
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn stop(self, bench: &Bench) -> Duration {
        let began = Instant::now();
        bench.walker().stop.cancel();
        self.worker.await.unwrap().unwrap();
        began.elapsed()
    }
}

fn bench(rules: &[&str], does: &Does) -> Bench {
    let rules: Vec<String> = rules
        .iter()
        .map(|name| {
            unit_rule(name, "    limits: [100/1h]\n    cooldown: 0s\n    breaker: {after: 99, hold: 1h}\n")
        })
        .collect();
    let mut bench = Bench::new(&rules);
    let names: Vec<String> = bench.config.rules.iter().map(|rule| rule.name.clone()).collect();
    for name in names {
        let step = bench.fake("act", Class::S2, does.clone());
        bench.steps(&name, [step]);
    }
    bench
}

/// The fake hands fail the test when two of them are on one target.
#[tokio::test(start_paused = true)]
async fn two_rules_on_one_target_come_one_after_the_other() {
    let bench = bench(&["one", "two", "three"], &Does::Take(Duration::from_secs(30)));
    bench.world.show(APP, failed());
    let running = start(&bench);
    for rule in ["one", "two", "three"] {
        bench.alert(rule, APP).await;
    }
    running.idle(&bench).await;
    assert_eq!(bench.world.most_under_way(), 1);
    // The first cured it: the others had nothing to do.
    let outcomes: Vec<Outcome> =
        bench.reader().recent(None, None, 9).unwrap().iter().rev().map(|one| one.outcome.unwrap()).collect();
    assert_eq!(outcomes, [Outcome::Succeeded, Outcome::NotNeeded, Outcome::NotNeeded]);
    running.stop(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn different_targets_are_worked_on_together_and_not_all_at_once() {
    let bench = bench(&["one"], &Does::Take(Duration::from_secs(30)));
    let targets: Vec<String> = (0..20).map(|number| format!("app-{number}.service")).collect();
    for target in &targets {
        bench.world.show(target, failed());
        bench.alert("one", target).await;
    }
    let running = start(&bench);
    running.idle(&bench).await;
    assert_eq!(bench.world.most_under_way(), 8);
    assert_eq!(bench.world.called().len(), 20);
    running.stop(&bench).await;
}

/// Whoever floods one rule keeps no other from its turn.
#[tokio::test(start_paused = true)]
async fn each_rule_has_its_turn_however_many_wait_of_another_one() {
    let bench = bench(&["flood", "true"], &Does::Take(Duration::from_secs(30)));
    for number in 0..100 {
        let target = format!("app-fake-{number}.service");
        bench.world.show(&target, failed());
        bench.alert("flood", &target).await;
    }
    bench.world.show(APP, failed());
    bench.alert("true", APP).await;
    let running = start(&bench);
    running.idle(&bench).await;
    let ended: Vec<String> =
        bench.reader().recent(None, None, 200).unwrap().into_iter().map(|one| one.rule).collect();
    assert_eq!(ended.len(), 101);
    let calls = bench.world.calls();
    let turn = calls.iter().position(|call| call.target == APP).unwrap();
    assert!(turn < 8, "it was the {turn}th");
    running.stop(&bench).await;
}

/// An alias is walked beside the unit itself only until its name is known.
#[tokio::test(start_paused = true)]
async fn an_alias_and_its_unit_are_never_worked_on_together() {
    use crate::observe::{Observation, Unit};
    let bench = bench(&["one"], &Does::Take(Duration::from_secs(30)));
    let seen = |name: &str| {
        let Observation::Unit(unit) = failed() else { unreachable!() };
        Observation::Unit(Unit { id: APP.to_owned(), names: vec![name.to_owned()], ..unit })
    };
    let aliases: Vec<String> = (0..6).map(|number| format!("app-{number}.service")).collect();
    for alias in &aliases {
        bench.world.show(alias, seen(alias));
    }
    bench.world.show(APP, seen(APP));
    let running = start(&bench);
    for alias in &aliases {
        bench.alert("one", alias).await;
    }
    bench.alert("one", APP).await;
    running.idle(&bench).await;
    assert_eq!(bench.world.called(), ["act"]);
    let targets: Vec<String> =
        bench.reader().recent(None, None, 9).unwrap().into_iter().map(|one| one.target).collect();
    assert!(targets.iter().all(|target| target == APP), "{targets:?}");
    running.stop(&bench).await;
}

/// What waits for a limit is taken up again by itself, without any further alert.
#[tokio::test(start_paused = true)]
async fn what_waits_is_taken_up_again() {
    let mut bench = Bench::new(&[unit_rule("one", "    limits: [1/3m]\n    cooldown: 0s\n")]);
    let act = bench.fake("act", Class::S2, Does::Cure);
    bench.steps("one", [act]);
    bench.world.show(APP, failed());
    let running = start(&bench);
    bench.alert("one", APP).await;
    running.idle(&bench).await;
    bench.world.sicken(APP);
    bench.alert("one", APP).await;
    running.idle(&bench).await;
    let calls = bench.world.calls();
    assert_eq!(calls.len(), 2);
    let between = calls[1].at.duration_since(calls[0].at);
    assert!((Duration::from_secs(180)..Duration::from_secs(185)).contains(&between), "{between:?}");
    running.stop(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_a_short_action_end_and_begins_nothing_new() {
    let mut bench = bench(&["one"], &Does::Take(Duration::from_secs(10)));
    for target in [APP, "app-second.service"] {
        bench.world.show(target, failed());
    }
    bench.alert("one", APP).await;
    let running = start(&bench);
    bench.world.acting().await;
    bench.walker().stop.cancel();
    bench.alert("one", "app-second.service").await;
    let took = running.stop(&bench).await;
    assert!(took <= Duration::from_secs(20), "{took:?}");
    let first = bench.reader().recent(None, Some(APP), 1).unwrap().remove(0);
    assert_eq!((first.phase, first.outcome), (Phase::Verifying, None), "it ended, and is verified later");
    assert_eq!(bench.world.called().len(), 1);
    // The next process goes on with both.
    bench.restart();
    let running = start(&bench);
    running.idle(&bench).await;
    let outcomes: Vec<_> =
        bench.reader().recent(None, None, 9).unwrap().iter().map(|one| one.outcome).collect();
    assert_eq!(outcomes, [Some(Outcome::Succeeded), Some(Outcome::Succeeded)]);
    assert_eq!(bench.world.called().len(), 2);
    running.stop(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_a_long_action_and_the_next_process_verifies_it() {
    let mut bench = bench(&["one"], &Does::Hang);
    bench.world.show(APP, failed());
    bench.alert("one", APP).await;
    let running = start(&bench);
    bench.world.acting().await;
    let took = running.stop(&bench).await;
    assert!((Duration::from_secs(20)..Duration::from_secs(25)).contains(&took), "{took:?}");
    assert_eq!(bench.last().phase, Phase::Running);
    bench.restart();
    let running = start(&bench);
    running.idle(&bench).await;
    assert_eq!(bench.last().outcome, Some(Outcome::Unknown));
    assert_eq!(bench.world.called(), ["act"]);
    running.stop(&bench).await;
}

/// A walk that panics takes nothing with it: what it did is verified, never done again.
#[tokio::test(start_paused = true)]
async fn a_walk_that_breaks_is_verified() {
    let bench = bench(&["one"], &Does::Panic);
    bench.world.show(APP, failed());
    let running = start(&bench);
    bench.alert("one", APP).await;
    running.idle(&bench).await;
    assert_eq!(bench.last().outcome, Some(Outcome::Unknown));
    assert_eq!(bench.steps_of(bench.last().id), ["act unknown (interrupted)"]);
    assert_eq!(bench.world.called(), ["act"]);
    running.stop(&bench).await;
}

/// The disk is so slow that the sender is told to come again, and its first try is stored all the same; nobody rings.
#[tokio::test(start_paused = true)]
async fn a_delivery_that_nobody_waited_for_is_worked_on_once() {
    let bench = bench(&["one"], &Does::Cure);
    bench.world.show(APP, failed());
    let running = start(&bench);
    for _ in 0..3 {
        let mut delivery = Box::pin(bench.alert("one", APP));
        // Given to the writer, and then the connection is gone; the writer may already have answered.
        let _ = futures_util::poll!(&mut delivery);
        drop(delivery);
    }
    // The writer is a thread of its own. Nothing else runs, and no time of the test passes, until it has all three.
    while bench.reader().recent(None, None, 9).unwrap().first().is_none_or(|one| one.deliveries < 3) {
        std::thread::sleep(Duration::from_millis(1));
    }
    while bench.world.called().is_empty() || bench.reader().queue().unwrap().0 > 0 {
        sleep(Duration::from_secs(1)).await;
    }
    let all = bench.reader().recent(None, None, 9).unwrap();
    assert_eq!((all.len(), all[0].deliveries, all[0].outcome), (1, 3, Some(Outcome::Succeeded)));
    assert_eq!(bench.world.called(), ["act"]);
    running.stop(&bench).await;
}
