//! Mode approve: asked once, looked at anew, and nothing without a yes in time. And rules that only people begin.

use std::time::Duration;

use tokio::time::sleep;

use super::bench::{Bench, Does, failed, receiver, unit_rule};
use crate::{
    actions::Check,
    journal::{Decided, Phase, Record, StepState, Verdict},
    observe::{HostState, Observation},
    outcome::Outcome,
    policy::{Class, Mode},
    walk::Next,
};

const APP: &str = "app.service";

fn ended(record: &Record) -> (Outcome, &str) {
    (record.outcome.unwrap(), record.reason.as_deref().unwrap())
}

fn bench() -> Bench {
    let mut bench = Bench::under(
        "policy: {mode: approve, limits: {S2: [100/1h]}}",
        &[unit_rule("unit", "    limits: [1/4m]\n    cooldown: 0s\n")],
    );
    let restart = bench.fake("restart", Class::S2, Does::Cure);
    bench.steps("unit", [restart]);
    bench.world.show(APP, failed());
    bench
}

async fn decide(bench: &Bench, id: i64, verdict: Verdict) -> Decided {
    let within = bench.config.approval_within;
    bench.journal().decide(id, verdict, "root".to_owned(), within, bench.now()).await.unwrap()
}

/// An alert fires, and the remediation waits for a person.
async fn asked(bench: &Bench) -> i64 {
    bench.alert("unit", APP).await;
    let id = bench.last().id;
    assert_eq!(bench.walk(id).await.unwrap(), Next::Again(Duration::from_secs(60)));
    assert_eq!((bench.last().phase, bench.last().outcome), (Phase::Awaiting, None));
    id
}

/// Whoever is asked sees what would change; the lines themselves stay on the host.
#[tokio::test(start_paused = true)]
async fn what_would_be_changed_is_on_record_and_its_first_line_in_the_question() {
    let mut bench = bench();
    let change = "1 file: /etc/a modified\n  - TOKEN=old\n  + TOKEN=new";
    let restore = bench.fake("restore", Class::S2, Does::Cure).checked(Check::Changes(change.to_owned()));
    bench.steps("unit", [restore]);
    let id = asked(&bench).await;
    let steps = bench.reader().steps(id).unwrap();
    assert_eq!(steps[0].detail.as_deref(), Some(change));
    let letter = bench.journal().next_letter(receiver().key(), bench.now()).await.unwrap().unwrap();
    assert!(letter.body.contains("(1 file: /etc/a modified)"), "{}", letter.body);
    assert!(!letter.body.contains("TOKEN"), "{}", letter.body);
    // It is no way around the rest.
    bench.world.depend(&["a.service", "b.service", "c.service", "d.service"]);
    assert_eq!(decide(&bench, id, Verdict::Approve).await, Decided::Taken);
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::Blocked, "blast_radius"));
}

#[tokio::test(start_paused = true)]
async fn what_is_approved_of_is_done_and_only_then() {
    let bench = bench();
    let id = asked(&bench).await;
    assert_eq!(bench.steps_of(id), ["restart planned"]);
    assert_eq!(bench.told().await, ["awaiting_approval "]);
    assert_eq!(bench.reader().rule_facts("unit").unwrap().awaiting, 1);
    // Looked at again meanwhile, and alerted again: nobody is asked twice.
    bench.walk(id).await.unwrap();
    bench.alert("unit", APP).await;
    assert!(bench.world.called().is_empty() && bench.told().await.is_empty());
    assert_eq!(decide(&bench, id, Verdict::Approve).await, Decided::Taken);
    bench.drive().await;
    let record = bench.last();
    assert_eq!((record.id, ended(&record)), (id, (Outcome::Succeeded, "verified")));
    assert_eq!(record.decided_by.as_deref(), Some("root"));
    assert_eq!(
        (bench.world.called(), bench.steps_of(id)),
        (vec!["restart"], vec!["restart done".to_owned()])
    );
    assert_eq!(decide(&bench, id, Verdict::Approve).await, Decided::NotAwaiting);
    // The next need is asked for anew.
    sleep(Duration::from_secs(300)).await;
    bench.world.sicken(APP);
    asked(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn what_became_well_meanwhile_is_not_done_although_it_was_approved_of() {
    let bench = bench();
    let id = asked(&bench).await;
    bench.world.cure(APP);
    assert_eq!(decide(&bench, id, Verdict::Approve).await, Decided::Taken);
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::NotNeeded, "already_well"));
    assert!(bench.world.called().is_empty());
}

#[tokio::test(start_paused = true)]
async fn rejected_and_expired_are_ends() {
    let bench = bench();
    let id = asked(&bench).await;
    assert_eq!(decide(&bench, id, Verdict::Reject).await, Decided::Taken);
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::Blocked, "rejected"));
    assert_eq!(bench.last().detail.as_deref(), Some("rejected by root"));
    let id = asked(&bench).await;
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::Blocked, "approval_expired"));
    assert_eq!(decide(&bench, id, Verdict::Approve).await, Decided::NotAwaiting);
    assert!(bench.world.called().is_empty());
}

/// The time to approve goes on while the process is dead, and a yes is not forgotten.
#[tokio::test(start_paused = true)]
async fn a_restart_forgets_neither_the_question_nor_the_answer() {
    let mut bench = bench();
    let id = asked(&bench).await;
    bench.restart();
    assert!(matches!(bench.walk(id).await.unwrap(), Next::Again(_)));
    assert_eq!(decide(&bench, id, Verdict::Approve).await, Decided::Taken);
    bench.restart();
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.told().await, ["awaiting_approval ", "succeeded verified"]);
}

/// A yes is for the steps that were shown: when the rule's steps change, it is asked again.
#[tokio::test(start_paused = true)]
async fn an_approval_is_for_what_was_shown() {
    let mut bench = bench();
    let id = asked(&bench).await;
    assert_eq!(decide(&bench, id, Verdict::Approve).await, Decided::Taken);
    let other = bench.fake("other", Class::S2, Does::Cure);
    bench.steps("unit", [other]);
    assert!(matches!(bench.walk(id).await.unwrap(), Next::Again(_)));
    assert_eq!((bench.last().phase, bench.steps_of(id)), (Phase::Awaiting, vec!["other planned".to_owned()]));
    assert!(bench.world.called().is_empty());
    assert_eq!(bench.told().await.len(), 2);
}

/// More drifts after people were asked: what would be changed now nobody has seen.
#[tokio::test(start_paused = true)]
async fn what_would_be_changed_otherwise_than_shown_is_asked_about_anew() {
    let mut bench = bench();
    let report = bench.fake("report", Class::S0, Does::Nothing);
    let restore = |bench: &Bench, files: &str| {
        bench.fake("restore", Class::S2, Does::Cure).checked(Check::Changes(files.to_owned()))
    };
    let steps = [report, restore(&bench, "1 file: /etc/a modified")];
    bench.steps("unit", steps.clone());
    let id = asked(&bench).await;
    assert_eq!(decide(&bench, id, Verdict::Approve).await, Decided::Taken);
    let drifted = [steps[0].clone(), restore(&bench, "2 files: /etc/a modified, /etc/b modified")];
    bench.steps("unit", drifted);
    assert!(matches!(bench.walk(id).await.unwrap(), Next::Again(_)));
    assert_eq!((bench.last().phase, bench.last().decided_by), (Phase::Awaiting, None));
    assert!(!bench.world.called().contains(&"restore"));
    assert_eq!(bench.told().await, ["awaiting_approval ", "awaiting_approval "]);
    let events = bench.reader().events(id).unwrap();
    assert!(events.iter().any(|(_, what, _)| what == "approval_void"), "{events:?}");
    // What was approved of the second time is done, and what it was stays on record.
    assert_eq!(decide(&bench, id, Verdict::Approve).await, Decided::Taken);
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::Succeeded, "verified"));
    let shown = bench.reader().shown(id).unwrap();
    assert_eq!(shown[1].changes.as_deref(), Some("2 files: /etc/a modified, /etc/b modified"));
}

/// What a step before it has made of the host, people have not seen: the ladder goes on without it.
#[tokio::test(start_paused = true)]
async fn a_later_step_that_would_change_something_else_is_left_out() {
    let mut bench = bench();
    let first = bench.fake("first", Class::S2, Does::Nothing);
    let restore = |bench: &Bench, files: &str| {
        bench.fake("restore", Class::S2, Does::Cure).checked(Check::Changes(files.to_owned()))
    };
    bench.steps("unit", [first.clone(), restore(&bench, "1 file")]);
    let id = asked(&bench).await;
    assert_eq!(decide(&bench, id, Verdict::Approve).await, Decided::Taken);
    bench.steps("unit", [first, restore(&bench, "2 files")]);
    bench.drive().await;
    assert_eq!(bench.world.called(), ["first"]);
    assert_eq!(bench.steps_of(id)[1], "restore skipped (not_approved)");
}

/// What a limit, a pause or the breaker would refuse, nobody is asked about.
#[tokio::test(start_paused = true)]
async fn nobody_is_asked_about_what_would_be_refused() {
    let bench = bench();
    let (reason, author) = ("deploy".to_owned(), "root".to_owned());
    bench.journal().pause(reason, author, None, bench.now()).await.unwrap();
    assert_eq!(ended(&bench.heal("unit", APP).await), (Outcome::Blocked, "paused"));
    assert_eq!(bench.told().await, ["blocked paused"]);
}

/// The mode is lowered while a remediation of mode auto is between two steps.
#[tokio::test(start_paused = true)]
async fn a_step_that_nobody_approved_of_is_not_done_after_the_mode_was_lowered() {
    let mut bench = Bench::new(&[unit_rule("unit", "    limits: [1/1h]\n")]);
    let first = bench.fake("first", Class::S2, Does::Hang);
    let second = bench.fake("second", Class::S2, Does::Cure);
    bench.steps("unit", [first, second]);
    bench.world.show(APP, failed());
    bench.alert("unit", APP).await;
    bench.walk_into_the_action(bench.last().id).await;
    bench.rule("unit").mode = Mode::Approve;
    bench.restart();
    bench.drive().await;
    assert_eq!(bench.world.called(), ["first"]);
    assert_eq!(bench.steps_of(bench.last().id)[1], "second skipped (not_approved)");
}

/// A rule that no alert selects: begun by hand, judged by its own need, and done when it has been carried out.
#[tokio::test(start_paused = true)]
async fn what_is_on_demand_has_its_own_need_and_mark() {
    let rule = "  - name: weekly
    on_demand: true
    needed: {build_cache_above: 1GB}
    limits: [1/24h]
    cooldown: 0s
    steps: [build_cache_prune]
    verify: {completed: true, within: 10m}
";
    let mut bench = Bench::new(&[rule.to_owned()]);
    let prune = bench.fake("prune", Class::D1, Does::Nothing);
    bench.steps("weekly", [prune]);
    let cache = |bytes| Observation::Host(HostState { build_cache_bytes: bytes });
    let labels = std::collections::BTreeMap::from([("alertname".to_owned(), "weekly".to_owned())]);
    assert!(crate::rules::find(&bench.config.rules, &labels).is_none(), "no alert selects it");
    bench.world.show("host", cache(Some(900_000_000)));
    assert_eq!(ended(&bench.heal("weekly", "host").await), (Outcome::NotNeeded, "already_well"));
    bench.world.show("host", cache(None));
    assert_eq!(ended(&bench.heal("weekly", "host").await), (Outcome::Blocked, "probe_unknown"));
    bench.world.show("host", cache(Some(1_100_000_000)));
    assert_eq!(ended(&bench.heal("weekly", "host").await), (Outcome::Succeeded, "verified"));
    assert_eq!(ended(&bench.heal("weekly", "host").await), (Outcome::Limited, "limited"));
    assert_eq!(bench.world.called(), ["prune"]);
    // What the host refused was not carried out, and what never answered is not known to have been.
    for (does, outcome, state) in [
        (Does::Refuse, Outcome::Failed, StepState::Failed),
        (Does::Hang, Outcome::Unknown, StepState::Unknown),
    ] {
        sleep(Duration::from_secs(86_400)).await;
        let prune = bench.fake("prune", Class::D1, does);
        bench.steps("weekly", [prune]);
        let record = bench.heal("weekly", "host").await;
        assert_eq!(record.outcome, Some(outcome));
        assert_eq!(bench.reader().steps(record.id).unwrap()[0].state, state);
    }
}

/// The process dies at any moment between the alert and the end, also around the question and the answer: asked once,
/// done once, and never without the yes.
#[tokio::test(start_paused = true)]
async fn a_death_at_any_moment_needs_no_second_yes_and_does_nothing_without_one() {
    for moment in 0..100 {
        let mut bench = bench();
        bench.alert("unit", APP).await;
        let id = bench.last().id;
        bench.journal().fuse.set(moment);
        let lived = {
            let fuse = bench.journal().fuse.clone();
            tokio::select! {
                biased;
                () = fuse.blown() => false,
                () = approved_and_done(&bench, id) => true,
            }
        };
        let (called, decided_by) = (bench.world.called(), bench.last().decided_by);
        assert!(called.is_empty() || decided_by.is_some(), "death at {moment}: {called:?} without a yes");
        bench.restart();
        approved_and_done(&bench, id).await;
        let (record, called) = (bench.last(), bench.world.called());
        // Between the note that it is called and the call itself: nobody knows, and it is not called again.
        let expected = if called.is_empty() { Outcome::Unknown } else { Outcome::Succeeded };
        assert_eq!(record.outcome, Some(expected), "death at {moment}: {called:?}");
        assert!(called.len() <= 1, "death at {moment}: {called:?}");
        let told = bench.told().await;
        assert_eq!(
            told.iter().filter(|one| one.starts_with("awaiting")).count(),
            1,
            "death at {moment}: {told:?}"
        );
        if lived {
            assert!(moment > 10 && called == ["restart"], "only {moment} moments to die at: {called:?}");
            return;
        }
    }
    panic!("it never comes through");
}

/// A person says yes as soon as there is a question.
async fn approved_and_done(bench: &Bench, id: i64) {
    while bench.last().outcome.is_none() {
        match bench.walk(id).await.unwrap() {
            Next::Again(_) if bench.last().phase == Phase::Awaiting => {
                assert_eq!(decide(bench, id, Verdict::Approve).await, Decided::Taken);
            }
            Next::Again(wait) => sleep(wait).await,
            Next::Ended | Next::Left => {}
        }
    }
}
