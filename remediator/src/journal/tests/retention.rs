//! What is forgotten, and how long that keeps others waiting.

use std::time::Instant;

use super::*;

/// A history made by hand: remediations with a step and two events each, as refusals and plans leave them.
pub(super) fn flood(dir: &TempDir, count: u32) {
    second_connection(dir)
        .execute_batch(&format!(
            "BEGIN;
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
             INSERT INTO remediation (rule, kind, target, phase, fingerprint, labels, received, received_wall_ms,
               last_seen_wall_ms, outcome, reason, ended, ended_wall_ms)
             SELECT 'rule', 'unit', 'flood-' || i, 'ended', '', '{{\"alertname\": \"Flood\"}}', '{{}}', 0, 0, 'blocked',
               'x', '{{}}', 0 FROM n;
             INSERT INTO step (remediation, position, action, class, plan, state)
             SELECT id, 0, 'restart', 'S2', 'restart it', 'planned' FROM remediation WHERE target LIKE 'flood-%';
             INSERT INTO event (remediation, wall_ms, what, detail)
             SELECT id, 0, 'planned', '' FROM remediation WHERE target LIKE 'flood-%';
             COMMIT;"
        ))
        .unwrap();
}

fn count(dir: &TempDir, what: &str) -> i64 {
    second_connection(dir).query_row(&format!("SELECT count(*) FROM {what}"), [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn history_is_kept_for_its_time_and_what_acted_longest() {
    let (dir, journal) = open();
    let id = opened(&journal, "acted.service", at(0)).await;
    act(&journal, id, Outcome::Ineffective, at(0)).await;
    let open = opened(&journal, "open.service", at(0)).await;
    flood(&dir, 100_100);
    journal.retain(at(60)).await.unwrap();
    assert_eq!(count(&dir, "remediation WHERE target LIKE 'flood-%'"), 100_000);
    assert_eq!(count(&dir, "remediation WHERE acted = 1"), 1, "the breaker needs it");
    let starts = || reader(&dir).budget(&Scope::Host, &["9/1h".parse().unwrap()]).unwrap().starts.len();
    journal.retain(at(90 * DAY_MS / 1000 + 1)).await.unwrap();
    assert_eq!((count(&dir, "remediation WHERE outcome IS NOT NULL"), starts()), (0, 1));
    journal.retain(at(366 * DAY_MS / 1000 + 1)).await.unwrap();
    assert_eq!(starts(), 0);
    assert_eq!(count(&dir, &format!("remediation WHERE id = {open}")), 1, "what is open is never forgotten");
    assert_eq!((count(&dir, "step"), count(&dir, "event WHERE remediation <> 2")), (0, 0), "orphans");
}

/// While a whole history is forgotten, a delivery waits for a portion of it and not for all, and the place it had is
/// used again.
#[tokio::test(flavor = "multi_thread")]
async fn forgetting_holds_nobody_up_and_gives_the_place_back() {
    let (dir, journal) = open();
    flood(&dir, 20_000);
    journal.accept(vec![alert("first.service")], 10_000, at(0)).await.unwrap();
    let size = || std::fs::metadata(dir.path().join(FILE)).unwrap().len();
    let (before, ninety_days) = (size(), 90 * DAY_MS / 1000 + 1);
    let forgetting = tokio::spawn({
        let journal = journal.clone();
        async move { journal.retain(at(ninety_days)).await }
    });
    let mut among = 0;
    for number in 0.. {
        let begun = Instant::now();
        journal.accept(vec![alert(&format!("a{number}.service"))], 100_000, at(ninety_days)).await.unwrap();
        if forgetting.is_finished() {
            break;
        }
        among += 1;
        assert!(begun.elapsed() < Duration::from_secs(5), "it waited {:?}", begun.elapsed());
    }
    forgetting.await.unwrap().unwrap();
    assert!(among > 10, "{among} deliveries came in between: portions are too large");
    assert_eq!(count(&dir, "remediation WHERE outcome IS NOT NULL"), 0);
    flood(&dir, 15_000);
    journal.accept(vec![alert("last.service")], 100_000, at(ninety_days)).await.unwrap();
    assert!(size() <= before + (4 << 20), "{} after {before}", size());
}

#[tokio::test]
async fn orders_of_people_are_kept_by_number() {
    let (dir, journal) = open();
    second_connection(&dir)
        .execute_batch(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10050)
             INSERT INTO command (wall_ms, author, what, detail) SELECT i, 'root', 'ack', '' FROM n",
        )
        .unwrap();
    journal.retain(at(0)).await.unwrap();
    assert_eq!((count(&dir, "command"), reader(&dir).commands(1).unwrap()[0].0), (10_000, 10_050));
}
