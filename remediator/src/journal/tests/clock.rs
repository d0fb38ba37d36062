//! Somebody, or a bad battery, sets the wall clock: by hours or years, forward or back, inside a boot and over one.
//! Whatever has a time keeps it.

use std::time::Duration;

use super::*;
use crate::journal::people;

const HOUR_MS: i64 = 3_600_000;
const YEAR_MS: i64 = 365 * DAY_MS;
const JUMPS: [i64; 6] = [HOUR_MS, -HOUR_MS, DAY_MS, -DAY_MS, 10 * YEAR_MS, -10 * YEAR_MS];

/// So long after the beginning, with a wall clock that was set by `jump`.
fn jumped(second: i64, jump: i64) -> Moment {
    Moment { wall_ms: second * 1000 + jump, ..at(second) }
}

/// So long after the start of the next boot, whose wall clock is off by `jump`.
fn rebooted(second: i64, jump: i64) -> Moment {
    Moment { wall_ms: second * 1000 + jump, boot_ms: second * 1000, boot_id: "next".to_owned() }
}

#[tokio::test]
async fn an_approval_is_waited_for_as_long_as_was_said() {
    let within = Duration::from_secs(1800);
    for jump in JUMPS {
        let (_dir, journal) = open();
        let decide = async |id, now| {
            journal.decide(id, Verdict::Approve, "root".to_owned(), within, now).await.unwrap()
        };
        let id = opened(&journal, "a.service", at(0)).await;
        let late = opened(&journal, "b.service", at(0)).await;
        for id in [id, late] {
            journal.ask(id, Vec::new(), nobody(), at(0)).await.unwrap();
        }
        assert_eq!(decide(id, jumped(1799, jump)).await, Decided::Taken, "{jump}");
        assert_eq!(decide(late, jumped(1800, jump)).await, Decided::Expired, "{jump}");
        let given = journal.approval(id, jumped(1809, -jump)).await.unwrap();
        assert_eq!(given, Approval::Given(Duration::from_secs(10)), "{jump}");
    }
}

#[tokio::test]
async fn a_pause_and_a_storm_last_as_long_as_was_said() {
    let hour = Duration::from_secs(3600);
    for jump in JUMPS {
        let (dir, journal) = open();
        journal.pause("deploy".to_owned(), "root".to_owned(), Some(hour), at(0)).await.unwrap();
        let storm = move |db: &rusqlite::Connection| {
            people::set_halt(db, HaltKind::Storm, "many", "evenkeel", Some(hour), &at(0))
        };
        journal.change(storm).await.unwrap();
        let left = async |now: Moment| {
            // What the worker does with each look.
            journal.open_targets(now.clone()).await.unwrap();
            let reader = reader(&dir);
            let halts = reader.halts(&reader.on_timeline(&now).unwrap()).unwrap();
            halts.into_iter().map(|halt| halt.left.unwrap().as_secs()).collect::<Vec<_>>()
        };
        assert_eq!(left(jumped(3599, jump)).await, [1, 1], "{jump}");
        assert_eq!(left(jumped(600, -jump)).await, [3000, 3000], "{jump}");
        assert!(left(jumped(3600, jump)).await.is_empty(), "{jump}");
        // A boot whose clock has lost time cannot tell how long the machine was off, and claims nothing.
        if jump < 0 {
            let (dir, journal) = open();
            journal.pause("deploy".to_owned(), "root".to_owned(), Some(hour), at(100)).await.unwrap();
            journal.open_targets(rebooted(60, jump)).await.unwrap();
            let reader = reader(&dir);
            let now = reader.on_timeline(&rebooted(60, jump)).unwrap();
            assert_eq!(reader.halts(&now).unwrap()[0].left, Some(Duration::from_secs(3540)), "{jump}");
        }
    }
}

#[tokio::test]
async fn a_message_is_kept_for_its_day() {
    for jump in JUMPS {
        let (_dir, journal) = open();
        let letter = Letter { receiver: "r".to_owned(), body: "text".to_owned(), urgent: false };
        journal.post(vec![letter], at(0)).await.unwrap();
        let day = DAY_MS / 1000;
        journal.retain(jumped(day, jump)).await.unwrap();
        let waiting = journal.next_letter("r".to_owned(), jumped(day, jump)).await.unwrap();
        assert_eq!(waiting.map(|one| one.age), Some(Duration::from_secs(86_400)), "{jump}");
        journal.retain(jumped(day + 1, jump)).await.unwrap();
        assert!(journal.next_letter("r".to_owned(), at(day + 1)).await.unwrap().is_none(), "{jump}");
    }
}

#[tokio::test]
async fn history_is_kept_for_its_time() {
    for jump in JUMPS {
        let (dir, journal) = open();
        let id = opened(&journal, "a.service", at(0)).await;
        act(&journal, id, Outcome::Ineffective, at(0)).await;
        let id = opened(&journal, "b.service", at(0)).await;
        journal.end(id, end(Outcome::Blocked, "x"), nobody(), at(0)).await.unwrap();
        journal.note_command("root".to_owned(), "reload", String::new(), at(0)).await.unwrap();
        let ninety_days = 90 * DAY_MS / 1000;
        journal.retain(jumped(ninety_days, jump)).await.unwrap();
        assert_eq!(reader(&dir).recent(None, None, 9).unwrap().len(), 2, "{jump}");
        assert_eq!(reader(&dir).commands(9).unwrap().len(), 1, "{jump}");
        journal.retain(jumped(ninety_days + 1, jump)).await.unwrap();
        assert!(reader(&dir).recent(None, None, 9).unwrap().is_empty(), "{jump}");
    }
}

/// The same refusal is news again after a day, and not before.
#[tokio::test]
async fn a_repeat_is_folded_for_a_day() {
    for jump in JUMPS {
        let (_dir, journal) = open();
        let ended = async |now: Moment| {
            let id = opened(&journal, "a.service", now.clone()).await;
            journal.end(id, end(Outcome::Limited, "cooldown"), nobody(), now).await.unwrap().id
        };
        let first = ended(at(0)).await;
        assert_eq!(ended(jumped(3600, jump)).await, first, "{jump}");
        assert_ne!(ended(jumped(3600 + DAY_MS / 1000, -jump)).await, first, "{jump}");
    }
}
