//! How large the database becomes when it is told more than it can keep.

use super::{
    super::bound,
    stress::{open_at, places},
    *,
};

const MIB: u64 = 1 << 20;

fn told(numbers: std::ops::Range<u32>) -> Vec<Incoming> {
    let value = "x".repeat(4000);
    let labels: Labels = [("text", value.as_str())].into_iter().collect();
    of_rule("rule", numbers).into_iter().map(|one| Incoming { labels: labels.clone(), ..one }).collect()
}

async fn grows_to(journal: &Journal, bytes: u64) {
    journal.change(move |db| bound::set(db, bytes)).await.unwrap();
}

/// All that is open ends without acting.
async fn all_end(journal: &Journal) {
    let change = |db: &rusqlite::Connection| {
        db.execute_batch(
            "UPDATE remediation SET outcome = 'blocked', reason = 'x', phase = 'ended', ended = received,
             ended_wall_ms = 0 WHERE outcome IS NULL",
        )
    };
    journal.change(change).await.unwrap();
}

#[tokio::test]
async fn a_history_without_end_makes_room_for_what_is_new_and_keeps_what_acted() {
    let (dir, journal) = open();
    grows_to(&journal, 12 * MIB).await;
    let acted = opened(&journal, "acted.service", at(0)).await;
    act(&journal, acted, Outcome::Ineffective, at(0)).await;
    for round in 0..60 {
        let accepted = journal.accept(told(round * 100..(round + 1) * 100), 10_000, at(1)).await.unwrap();
        assert_eq!(accepted, Accepted::Taken(Tally { opened: 100, ..Tally::default() }), "round {round}");
        all_end(&journal).await;
        // What is taken up beside it, as often.
        journal.retain(at(1)).await.unwrap();
    }
    let size = std::fs::metadata(dir.path().join(FILE)).unwrap().len();
    assert!(size <= 12 * MIB, "{size} bytes");
    let newest = reader(&dir).recent(None, None, 1).unwrap();
    assert_eq!(newest[0].target, "a5999.service");
    assert!(reader(&dir).recent(Some("rule"), Some("acted.service"), 1).unwrap()[0].acted);
}

#[tokio::test]
async fn what_is_open_finds_room_for_its_end_when_nothing_new_does() {
    let dir = directory();
    let places = places(&dir);
    let journal = open_at(&places, 0).unwrap();
    grows_to(&journal, 12 * MIB).await;
    let mut opened = 0;
    for round in 0..50 {
        let told = told(round * 100..(round + 1) * 100);
        match journal.accept(told, 1_000_000, at(0)).await.unwrap() {
            Accepted::Taken(tally) => opened += tally.opened,
            Accepted::TooMany => break,
        }
    }
    assert!((500..2_500).contains(&opened), "{opened}");
    assert_eq!(journal.accept(told(9_000..9_001), 1_000_000, at(0)).await.unwrap(), Accepted::TooMany);
    let open: Vec<i64> = journal.open_targets(at(0)).await.unwrap().into_keys().collect();
    for id in open.iter().take(20) {
        act(&journal, *id, Outcome::Succeeded, at(0)).await;
    }
    assert_eq!(journal.standing().borrow().degraded, None);
    all_end(&journal).await;
    let accepted = journal.accept(told(9_000..9_001), 1_000_000, at(0)).await.unwrap();
    assert_eq!(accepted, Accepted::Taken(Tally { opened: 1, ..Tally::default() }));
}

/// A state that is as large as it may be is no disk that fails: it stays where it belongs, and forgets.
#[tokio::test(flavor = "multi_thread")]
async fn at_its_bound_it_does_not_move() {
    let dir = directory();
    let places = places(&dir);
    let journal = open_at(&places, 0).unwrap();
    journal.accept(told(0..1_000), 10_000, at(0)).await.unwrap();
    all_end(&journal).await;
    let fill = |db: &rusqlite::Connection| {
        let pages: u64 = db.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        bound::set(db, pages * 4096)?;
        db.execute_batch(
            "CREATE TABLE IF NOT EXISTS filling (bytes BLOB); INSERT INTO filling VALUES (zeroblob(500000))",
        )
    };
    let mut full = 0;
    while full < 3 {
        full += u32::from(journal.change(fill).await.is_err());
    }
    assert_eq!(journal.standing().borrow().degraded, None);
    journal.change(|db| db.execute_batch("DROP TABLE filling")).await.unwrap();
    opened(&journal, "new.service", at(1)).await;
    let left = journal.reader().unwrap().recent(None, None, 5_000).unwrap().len();
    assert!(left < 1_000, "{left}");
}
