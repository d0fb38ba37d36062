//! The host is at something that excludes a step: the step is put off, and nothing of it counts until it was done.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use super::bench::{Bench, Does, disk, disk_rule};
use crate::{admission::Scope, outcome::Outcome, policy::Class, walk::Next};

const DISK: &str = "/no/such/disk";
const LIMITED: &str = "    limits: [1/15m]\n";

fn ended(record: &crate::journal::Record) -> (Outcome, &str) {
    (record.outcome.unwrap(), record.reason.as_deref().unwrap())
}

fn in_turn(turns: impl IntoIterator<Item = Does>) -> Does {
    Does::InTurn(Arc::new(Mutex::new(turns.into_iter().collect())))
}

fn forever() -> Does {
    in_turn(std::iter::repeat_n(Does::Defer, 1000))
}

fn bench(steps: &[(&'static str, Does)]) -> Bench {
    let mut bench = Bench::new(&[disk_rule("disk", LIMITED)]);
    let steps: Vec<_> = steps.iter().map(|(name, does)| bench.fake(name, Class::D1, does.clone())).collect();
    bench.steps("disk", steps);
    bench.world.show(DISK, disk(0.9));
    bench
}

/// Starts counted for the host.
fn starts(bench: &Bench) -> usize {
    bench.reader().budget(&Scope::Host, &["99/24h".parse().unwrap()]).unwrap().starts.len()
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_put_off_is_tried_again_and_counted_once() {
    let bench = bench(&[("prune", in_turn([Does::Defer, Does::Defer, Does::Cure]))]);
    bench.alert("disk", DISK).await;
    let id = bench.last().id;
    assert_eq!(bench.walk(id).await.unwrap(), Next::Again(Duration::from_secs(15)));
    let waiting = bench.last();
    assert_eq!((waiting.outcome, waiting.acted, waiting.reason.as_deref()), (None, false, Some("busy")));
    assert_eq!(waiting.detail.as_deref(), Some("prune: another is at it"));
    assert_eq!(starts(&bench), 0);
    assert!(bench.steps_of(id).is_empty());
    bench.drive().await;
    let record = bench.last();
    assert_eq!((record.id, ended(&record)), (id, (Outcome::Succeeded, "verified")));
    assert_eq!(bench.world.called(), ["prune", "prune", "prune"]);
    assert_eq!(bench.steps_of(id), ["prune done"]);
    assert_eq!(starts(&bench), 1);
}

/// It is told as blocked, and not as something that was tried: the next alert may try at once.
#[tokio::test(start_paused = true)]
async fn what_is_never_free_ends_as_blocked_and_costs_no_start() {
    let bench = bench(&[("prune", forever())]);
    let began = Instant::now();
    let record = bench.heal("disk", DISK).await;
    assert_eq!(ended(&record), (Outcome::Blocked, "busy"));
    assert_eq!(began.elapsed(), Duration::from_secs(3600));
    assert!(!record.acted && bench.steps_of(record.id).is_empty());
    assert_eq!(starts(&bench), 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_done_before_stays_done_and_is_not_done_again() {
    let bench = bench(&[
        ("gentle", Does::Leave(0.88)),
        ("prune", in_turn([Does::Defer, Does::Cure])),
        ("harsh", Does::Cure),
    ]);
    let record = bench.heal("disk", DISK).await;
    assert_eq!(ended(&record), (Outcome::Succeeded, "verified"));
    assert_eq!(bench.world.called(), ["gentle", "prune", "prune"]);
    assert_eq!(bench.steps_of(record.id), ["gentle done", "prune done"]);
    assert_eq!(starts(&bench), 2);
}

/// That a gentle step cannot be done is no reason for a harsher one; a person is told.
#[tokio::test(start_paused = true)]
async fn what_is_never_free_after_a_step_that_did_not_help_is_escalated() {
    let bench = bench(&[("gentle", Does::Leave(0.88)), ("prune", forever()), ("harsh", Does::Cure)]);
    let record = bench.heal("disk", DISK).await;
    assert_eq!(ended(&record), (Outcome::Ineffective, "steps_used_up"));
    assert!(record.detail.unwrap().contains("not done: prune: "));
    assert_eq!(bench.steps_of(record.id), ["gentle done", "prune skipped (busy)"]);
    assert!(!bench.world.called().contains(&"harsh"));
    assert_eq!(starts(&bench), 1);
    assert_eq!(bench.told().await, ["ineffective steps_used_up"]);
}

/// Whoever was at it may have freed enough: it is looked at anew, by the next process too.
#[tokio::test(start_paused = true)]
async fn a_crash_while_it_waits_begins_with_a_look() {
    let mut bench = bench(&[("prune", in_turn([Does::Defer, Does::Cure]))]);
    bench.alert("disk", DISK).await;
    let id = bench.last().id;
    assert!(matches!(bench.walk(id).await.unwrap(), Next::Again(_)));
    let steps = [bench.fake("prune", Class::D1, Does::Cure)];
    bench.restart();
    bench.steps("disk", steps);
    // Whoever was at it has freed what was needed.
    bench.world.show(DISK, disk(0.5));
    bench.drive().await;
    assert_eq!(ended(&bench.last()), (Outcome::NotNeeded, "already_well"));
    assert_eq!(bench.world.called(), ["prune"]);
}
