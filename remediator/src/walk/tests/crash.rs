//! The process dies before and after every single change of the journal, and is started again. What was called is
//! never called again blindly, what was counted stays counted, and the end is true.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use super::bench::{Bench, Does, disk, disk_rule, failed, unit, unit_rule};
use crate::{
    admission::Scope,
    journal::{Phase, Record, StepState},
    outcome::Outcome,
    policy::{Class, Deletion},
    walk::Next,
};

const APP: &str = "app.service";
const DISK: &str = "/no/such/disk";
const ENOUGH: usize = 200;

/// One way that a remediation may go.
struct Story {
    name: &'static str,
    /// A bench with everything in place and nothing received, the rule and its target.
    begin: fn() -> (Bench, &'static str, &'static str),
    /// How it ends when nothing dies.
    undisturbed: Outcome,
}

fn units(steps: &[(&'static str, Class, Does)]) -> (Bench, &'static str, &'static str) {
    let mut bench = Bench::new(&[unit_rule("unit", "    limits: [1/1h]\n")]);
    let steps: Vec<_> =
        steps.iter().map(|(name, class, does)| bench.fake(name, *class, does.clone())).collect();
    bench.steps("unit", steps);
    bench.world.show(APP, failed());
    (bench, "unit", APP)
}

const STORIES: [Story; 7] = [
    Story {
        name: "one step helps",
        begin: || units(&[("report", Class::S0, Does::Nothing), ("restart", Class::S2, Does::Cure)]),
        undisturbed: Outcome::Succeeded,
    },
    Story {
        name: "the second step helps",
        begin: || units(&[("first", Class::S2, Does::Sicken), ("second", Class::S2, Does::Cure)]),
        undisturbed: Outcome::Succeeded,
    },
    Story {
        name: "nothing helps",
        begin: || units(&[("first", Class::S2, Does::Nothing), ("second", Class::S2, Does::Sicken)]),
        undisturbed: Outcome::Ineffective,
    },
    Story {
        name: "the host refuses",
        begin: || units(&[("first", Class::S2, Does::Refuse), ("second", Class::S2, Does::Refuse)]),
        undisturbed: Outcome::Failed,
    },
    Story {
        name: "a slow action",
        begin: || units(&[("slow", Class::S2, Does::Take(Duration::from_secs(20)))]),
        undisturbed: Outcome::Succeeded,
    },
    Story {
        name: "a disk",
        begin: || {
            let mut bench = Bench::new(&[disk_rule("disk", "    limits: [1/1h]\n")]);
            let gentle = bench.fake("gentle", Class::D1, Does::Leave(0.86));
            let harsher = bench.fake("harsher", Class::D1, Does::Leave(0.82));
            bench.steps("disk", [gentle, harsher]);
            bench.world.show(DISK, disk(0.9));
            (bench, "disk", DISK)
        },
        undisturbed: Outcome::Partial,
    },
    Story {
        name: "already well",
        begin: || {
            let (bench, rule, target) = units(&[("restart", Class::S2, Does::Cure)]);
            bench.world.cure(APP);
            (bench, rule, target)
        },
        undisturbed: Outcome::NotNeeded,
    },
];

/// Works until nothing is open or the process dies; whether it lives.
async fn lives(bench: &Bench) -> bool {
    let fuse = bench.journal().fuse.clone();
    tokio::select! {
        biased;
        () = fuse.blown() => false,
        () = bench.drive() => true,
    }
}

/// What must be true at the end, whatever died when.
fn check(bench: &Bench, rule: &str, target: &str, context: &str) -> Record {
    let record = bench.last();
    let outcome = record.outcome.unwrap_or_else(|| panic!("{context}: still open"));
    assert_eq!(record.phase, Phase::Ended, "{context}");
    let called = bench.world.called();
    let distinct: BTreeSet<&str> = called.iter().copied().filter(|name| *name != "report").collect();
    let acting = called.iter().filter(|name| **name != "report").count();
    assert_eq!(distinct.len(), acting, "{context}: a step was called twice: {called:?}");
    // What was called is on record as called, and counted.
    let steps = bench.reader().steps(record.id).unwrap();
    for name in distinct {
        let step = steps.iter().find(|step| step.action == name);
        let state = step.unwrap_or_else(|| panic!("{context}: {name} is not on record")).state;
        assert!(
            matches!(state, StepState::Done | StepState::Failed | StepState::Unknown),
            "{context}: {name} was called and is {state:?}"
        );
    }
    assert_eq!(record.acted, steps.iter().any(|step| step.class.acts() && step.state != StepState::Skipped));
    let scope = Scope::RuleTarget(rule.to_owned(), format!("{} {target}", record.kind));
    let limits = vec!["9/24h".parse().unwrap()];
    let starts = bench.reader().budget(&scope, &limits).unwrap().starts.len();
    assert_eq!(starts, usize::from(record.acted), "{context}: counted starts");
    // Success is what is seen, not what was tried.
    let rule = bench.config.rules.iter().find(|known| known.name == rule).unwrap();
    let well = !rule.needs(&bench.world.seen(target));
    match outcome {
        Outcome::Succeeded | Outcome::Partial | Outcome::NotNeeded => {
            assert!(well, "{context}: {outcome} and not well");
        }
        Outcome::Ineffective | Outcome::Failed | Outcome::Unknown => {
            assert!(!well, "{context}: {outcome} and well");
        }
        other => panic!("{context}: {other}"),
    }
    record
}

#[tokio::test(start_paused = true)]
async fn undisturbed_every_story_ends_as_told() {
    for Story { name, begin, undisturbed } in STORIES {
        let (bench, rule, target) = begin();
        bench.heal(rule, target).await;
        assert_eq!(check(&bench, rule, target, name).outcome, Some(undisturbed), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_death_at_any_moment_does_nothing_twice_and_ends_in_the_truth() {
    for Story { name, begin, undisturbed } in STORIES {
        let mut deaths = 0;
        for moment in 0.. {
            assert!(moment < ENOUGH, "{name} never comes through");
            let (mut bench, rule, target) = begin();
            bench.alert(rule, target).await;
            bench.journal().fuse.set(moment);
            let lived = lives(&bench).await;
            bench.restart();
            assert!(lives(&bench).await, "{name}: a fuse of an earlier life");
            let record = check(&bench, rule, target, &format!("{name}, death at {moment}"));
            if lived {
                assert_eq!(record.outcome, Some(undisturbed), "{name}");
                break;
            }
            deaths += 1;
        }
        assert!(deaths > 5, "{name}: only {deaths} moments to die at");
    }
}

/// It dies again while it finds out what it did.
#[tokio::test(start_paused = true)]
async fn a_second_death_changes_nothing() {
    let (name, begin) = (STORIES[1].name, STORIES[1].begin);
    // Every moment is tried alone above; together they are tried in steps.
    for first in (0..ENOUGH).step_by(3) {
        for second in (first % 4..ENOUGH).step_by(4) {
            let (mut bench, rule, target) = begin();
            bench.alert(rule, target).await;
            bench.journal().fuse.set(first);
            if lives(&bench).await {
                return;
            }
            bench.restart();
            bench.journal().fuse.set(second);
            let lived = lives(&bench).await;
            bench.restart();
            assert!(lives(&bench).await);
            check(&bench, rule, target, &format!("{name}, deaths at {first} and {second}"));
            if lived {
                break;
            }
        }
    }
    panic!("it never comes through");
}

/// The process dies while the action itself is under way, which the journal does not see.
#[tokio::test(start_paused = true)]
async fn an_interrupted_step_succeeds_only_when_it_is_seen_to() {
    for (meanwhile, expected, called) in [
        // The host went on with it alone: true, and nothing more is done.
        (Some(unit("active", "run-1")), Outcome::Succeeded, vec!["first"]),
        // It came to nothing: the next step, never the same again.
        (None, Outcome::Succeeded, vec!["first", "second"]),
        (Some(unit("failed", "run-1")), Outcome::Succeeded, vec!["first", "second"]),
    ] {
        let (mut bench, rule, target) =
            units(&[("first", Class::S2, Does::Hang), ("second", Class::S2, Does::Cure)]);
        bench.alert(rule, target).await;
        bench.walk_into_the_action(bench.last().id).await;
        if let Some(seen) = meanwhile {
            bench.world.show(target, seen);
        }
        bench.restart();
        bench.drive().await;
        let record = check(&bench, rule, target, "interrupted");
        assert_eq!((record.outcome, bench.world.called()), (Some(expected), called));
        assert_eq!(bench.steps_of(record.id)[0], "first unknown (interrupted)");
    }
    let (mut bench, rule, target) = units(&[("only", Class::S2, Does::Hang)]);
    bench.alert(rule, target).await;
    bench.walk_into_the_action(bench.last().id).await;
    bench.restart();
    bench.drive().await;
    assert_eq!(check(&bench, rule, target, "interrupted").outcome, Some(Outcome::Unknown));
    assert_eq!(bench.told().await, ["unknown unanswered"]);
}

/// A prune goes on in the engine when the process that asked for it is dead: a disk that is not well at once may become
/// so, and a further step would only do more.
#[tokio::test(start_paused = true)]
async fn what_may_still_be_at_work_has_the_time_it_is_given() {
    let mut bench = Bench::new(&[disk_rule("disk", "    limits: [1/1h]\n")]);
    let first = bench.fake("first", Class::D1, Does::Hang);
    let harsher = bench.fake("harsher", Class::D1, Does::Leave(0.1));
    bench.steps("disk", [first, harsher]);
    bench.world.show(DISK, disk(0.9));
    bench.alert("disk", DISK).await;
    bench.walk_into_the_action(bench.last().id).await;
    bench.world.script(DISK, vec![Ok(disk(0.9)); 60]);
    bench.world.show(DISK, disk(0.7));
    bench.restart();
    bench.drive().await;
    let record = check(&bench, "disk", DISK, "still at work");
    assert_eq!((record.outcome, bench.world.called()), (Some(Outcome::Succeeded), vec!["first"]));
}

/// After the restart the target cannot be seen for good: unknown, and nothing more is done.
#[tokio::test(start_paused = true)]
async fn interrupted_and_blind_is_unknown() {
    let (mut bench, rule, target) =
        units(&[("first", Class::S2, Does::Hang), ("second", Class::S2, Does::Cure)]);
    bench.alert(rule, target).await;
    bench.walk_into_the_action(bench.last().id).await;
    bench.world.hide(target);
    bench.restart();
    bench.drive().await;
    let record = bench.last();
    assert_eq!((record.outcome, record.reason.as_deref()), (Some(Outcome::Unknown), Some("probe_unknown")));
    assert_eq!(bench.world.called(), ["first"]);
}

/// What was found before the death is not forgotten after it: done is done, and not "the host refused".
#[tokio::test(start_paused = true)]
async fn what_was_done_before_the_death_counts_after_it() {
    let turns = |list: &[Does]| Does::InTurn(Arc::new(Mutex::new(VecDeque::from(list.to_vec()))));
    for moment in 0..ENOUGH {
        let (mut bench, rule, target) = units(&[
            ("first", Class::S2, turns(&[Does::Sicken])),
            ("second", Class::S2, turns(&[Does::Refuse])),
        ]);
        bench.alert(rule, target).await;
        bench.journal().fuse.set(moment);
        let lived = lives(&bench).await;
        bench.restart();
        bench.drive().await;
        let record = check(&bench, rule, target, &format!("death at {moment}"));
        let unknown = bench.steps_of(record.id).iter().any(|step| step.contains("unknown"));
        let expected = if unknown { Outcome::Unknown } else { Outcome::Ineffective };
        assert_eq!(record.outcome, Some(expected), "death at {moment}: {:?}", bench.steps_of(record.id));
        if lived {
            return;
        }
    }
}

/// A rule that only observes: a death costs it neither its report nor a second start.
#[tokio::test(start_paused = true)]
async fn a_death_while_observing_costs_no_report() {
    for moment in 0..ENOUGH {
        let (mut bench, rule, target) =
            units(&[("report", Class::S0, Does::Nothing), ("notify", Class::S0, Does::Nothing)]);
        bench.alert(rule, target).await;
        bench.journal().fuse.set(moment);
        let lived = lives(&bench).await;
        bench.restart();
        bench.drive().await;
        let record = bench.last();
        assert_eq!(record.outcome, Some(Outcome::Reported), "death at {moment}");
        let called = bench.world.called();
        assert!(called.contains(&"report") && called.contains(&"notify"), "death at {moment}: {called:?}");
        let scope = Scope::RuleTarget(rule.to_owned(), format!("unit {target}"));
        let starts = bench.reader().budget(&scope, &["9/24h".parse().unwrap()]).unwrap().starts.len();
        assert_eq!(starts, 1, "death at {moment}");
        if lived {
            return;
        }
    }
}

/// Taken up again behind a step that was left out, it still says why.
#[tokio::test(start_paused = true)]
async fn a_death_does_not_hide_why_nothing_was_done() {
    for moment in 0..ENOUGH {
        let mut bench = Bench::under("policy: {mode: auto, deletion: data}", &[disk_rule("disk", "")]);
        bench.config.deletion = Deletion::None;
        let prune = bench.fake("prune", Class::D1, Does::Leave(0.5));
        let report = bench.fake("report", Class::S0, Does::Nothing);
        bench.steps("disk", [prune, report]);
        bench.world.show(DISK, disk(0.9));
        bench.alert("disk", DISK).await;
        bench.journal().fuse.set(moment);
        let lived = lives(&bench).await;
        bench.restart();
        bench.drive().await;
        let record = bench.last();
        let ended = (record.outcome, record.reason.as_deref());
        assert_eq!(ended, (Some(Outcome::Blocked), Some("policy")), "death at {moment}");
        if lived {
            return;
        }
    }
}

/// The process is told to end between the reservation and the call: nothing is called, and nothing stays counted.
#[tokio::test(start_paused = true)]
async fn a_stop_before_the_call_takes_the_reservation_back() {
    let (mut bench, rule, target) = units(&[("restart", Class::S2, Does::Cure)]);
    bench.alert(rule, target).await;
    let id = bench.last().id;
    bench.walker().stop.cancel();
    assert_eq!(bench.walk(id).await.unwrap(), Next::Left);
    assert!(bench.world.called().is_empty() && bench.steps_of(id).is_empty());
    let scope = Scope::RuleTarget(rule.to_owned(), format!("unit {target}"));
    assert!(bench.reader().budget(&scope, &["9/24h".parse().unwrap()]).unwrap().starts.is_empty());
    bench.restart();
    bench.drive().await;
    assert_eq!(check(&bench, rule, target, "stopped").outcome, Some(Outcome::Succeeded));
}
