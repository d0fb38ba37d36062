//! Needs that were held back or not cured, whose alert still fires by all that is known: what is taken up again between
//! two deliveries.

use std::time::Duration;

use rusqlite::{Connection, params};

use super::{
    Error, Journal, Record, query,
    statement::execute,
    store::{event, json},
};
use crate::{clock::Moment, outcome::Outcome};

/// So many are looked at in one go; more means that something else is wrong.
const MOST: u32 = 1000;

/// A refusal without an end that anybody knows is looked at again after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// One need whose last remediation ended without curing it.
#[derive(Debug, Clone)]
pub struct Held {
    /// The last remediation of its rule and target.
    pub record: Record,
    /// How long ago its alert was heard of last.
    pub silent: Duration,
    /// How much longer the refusal lasts; zero when it is over, or when it was tried, and cooldown and breaker decide.
    pub left: Duration,
}

impl Journal {
    /// The ended remediations of these rules that are the last of their rule and target, whose alert was heard of within
    /// `ttl` and has not said that it is resolved. Where they are very many, those that were well come last, and those
    /// that came last first. Not those that a person began: a person has seen the answer.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn unresolved(
        &self,
        rules: Vec<String>,
        outcomes: Vec<Outcome>,
        ttl: Duration,
        now: Moment,
    ) -> Result<Vec<Held>, Error> {
        self.change(move |db| unresolved(db, &rules, &outcomes, ttl, &now)).await
    }

    /// Alertmanager no longer has the alert: as good as a message that it is resolved.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn note_gone(&self, id: i64, now: Moment) -> Result<(), Error> {
        self.change(move |db| note_gone(db, id, &now)).await
    }

    /// Opens a remediation for the same need as an ended one. Answers its number, or nothing when something came
    /// between: an alert that opened one, or said that it is resolved.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn take_up(&self, id: i64, impact: bool, now: Moment) -> Result<Option<i64>, Error> {
        self.change(move |db| take_up(db, id, impact, &now)).await
    }
}

fn note_gone(db: &Connection, id: i64, now: &Moment) -> rusqlite::Result<()> {
    let noted = execute(
        db,
        "UPDATE remediation SET resolved_wall_ms = ?2 WHERE id = ?1 AND resolved_wall_ms IS NULL",
        params![id, now.wall_ms],
    )?;
    if noted > 0 {
        event(db, id, now.wall_ms, "gone", "Alertmanager has no such alert any more")
    } else {
        Ok(())
    }
}

fn unresolved(
    db: &Connection,
    rules: &[String],
    outcomes: &[Outcome],
    ttl: Duration,
    now: &Moment,
) -> rusqlite::Result<Vec<Held>> {
    let timeline = query::on_timeline(db, now)?;
    let oldest = timeline.wall_ms.saturating_sub(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
    let clause = "AS one WHERE seen_ms > ?1 AND outcome IS NOT NULL AND resolved_wall_ms IS NULL
         AND rule IN (SELECT value FROM json_each(?3)) AND outcome IN (SELECT value FROM json_each(?4))
         AND triggered_by IS NULL
         AND id = (SELECT max(id) FROM remediation WHERE rule = one.rule AND kind = one.kind AND target = one.target)
         ORDER BY outcome IN ('succeeded', 'not_needed'), id DESC LIMIT ?2";
    let outcomes: Vec<&str> = outcomes.iter().map(|outcome| outcome.as_str()).collect();
    let mut records = query::records(db, clause, params![oldest, MOST, json(&rules)?, json(&outcomes)?])?;
    // Who was first is asked about first.
    records.sort_unstable_by_key(|record| record.id);
    let mut ages = db.prepare_cached(&format!(
        "SELECT {}, seen_ms FROM remediation AS one WHERE id = ?1",
        query::moment("ended")
    ))?;
    let held = records.into_iter().map(|record| {
        let (ended, seen_ms) = ages.query_row(params![record.id], |row| {
            Ok((query::from_json::<Moment>(row, 0)?, row.get::<_, i64>(1)?))
        })?;
        // How long it lasts is what was told at its end; a clock that was set since does not move that.
        let wait = match (record.ended_wall_ms, record.next_allowed_wall_ms) {
            (Some(ended), Some(next)) => milliseconds(next - ended),
            _ if record.acted => Duration::ZERO,
            _ => LOOK_AGAIN,
        };
        let left = wait.saturating_sub(ended.age(&timeline));
        Ok(Held { record, silent: milliseconds(timeline.wall_ms - seen_ms), left })
    });
    held.collect()
}

fn milliseconds(count: i64) -> Duration {
    Duration::from_millis(u64::try_from(count).unwrap_or(0))
}

fn take_up(db: &Connection, id: i64, impact: bool, now: &Moment) -> rusqlite::Result<Option<i64>> {
    // The alert was heard of when it was; what is new is that somebody looks.
    let opened = execute(db, "INSERT OR IGNORE INTO remediation (rule, kind, target, phase, fingerprint, labels, deliveries, received,
           received_wall_ms, last_seen_wall_ms, seen_ms, impact, taken_up_ms)
         SELECT rule, kind, target, 'received', fingerprint, labels, 0, ?2, ?3, last_seen_wall_ms, seen_ms, ?4, ?5
         FROM remediation AS one WHERE id = ?1 AND outcome IS NOT NULL AND resolved_wall_ms IS NULL
           AND id = (SELECT max(id) FROM remediation
                     WHERE rule = one.rule AND kind = one.kind AND target = one.target)",
        params![id, json(now)?, now.wall_ms, impact, query::on_timeline(db, now)?.wall_ms],
    )?;
    if opened == 0 {
        return Ok(None);
    }
    let again = db.last_insert_rowid();
    event(db, again, now.wall_ms, "taken_up", &format!("after #{id}, without a new alert"))?;
    Ok(Some(again))
}
