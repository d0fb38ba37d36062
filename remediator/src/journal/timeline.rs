//! One timeline over all boots, and what is forgotten by it, a portion at a time.

use rusqlite::{Connection, OptionalExtension, params};

use super::{outbox, query, statement::execute};
use crate::clock::Moment;

/// So much a wall clock may drift, in milliseconds, before its boot is noted anew.
const DRIFT_MS: i64 = 1000;
/// Ended remediations kept, newest first. Those that acted are kept beside them: limits bound their number, and the
/// breaker must not forget them in a flood of refusals.
const HISTORY_MAX: i64 = 100_000;
/// Starts are kept for longer than any window is likely to be, in milliseconds: a year and a day.
const STARTS_MS: i64 = 366 * 86_400_000;
/// How long ended remediations are kept, in milliseconds: 90 days.
const HISTORY_MS: i64 = 90 * 86_400_000;
/// Boots that are remembered.
const BOOTS_MAX: i64 = 1000;

/// Remediations forgotten in one change.
const PORTION: i64 = 500;
/// Orders of people that are kept, newest first.
const COMMANDS_MAX: i64 = 10_000;

/// Whether there is more to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Portion {
    /// Perhaps.
    Full,
    /// No.
    Last,
}

/// Forgets some of what is too old. All of it goes by the timeline: a wall clock that is years ahead for a moment must
/// not make it forget anything.
pub(super) fn retain_some(db: &Connection, now: &Moment) -> rusqlite::Result<Portion> {
    note_boot(db, now)?;
    let timeline = query::on_timeline(db, now)?.wall_ms;
    let mut forgotten = execute(
        db,
        "DELETE FROM remediation WHERE id IN (
           SELECT id FROM remediation WHERE seen_ms < ?1 AND outcome IS NOT NULL ORDER BY seen_ms LIMIT ?2)",
        params![timeline - HISTORY_MS, PORTION],
    )?;
    forgotten += execute(
        db,
        "DELETE FROM remediation WHERE id IN (
           SELECT id FROM remediation WHERE outcome IS NOT NULL AND acted = 0
           AND id <= (SELECT id FROM remediation ORDER BY id DESC LIMIT 1 OFFSET ?1) ORDER BY id LIMIT ?2)",
        params![HISTORY_MAX, PORTION],
    )?;
    // Starts are counted one after the other: the oldest have the smallest numbers.
    forgotten += forget_oldest(db, "start", "moment", timeline - STARTS_MS)?;
    forgotten += forget_oldest(db, "loss", "moment", timeline - STARTS_MS)?;
    let kept = i64::try_from(outbox::KEPT.as_millis()).unwrap_or(i64::MAX);
    forgotten += forget_oldest(db, "outbox", "queued", timeline - kept)?;
    execute(
        db,
        "DELETE FROM command WHERE id <= (SELECT id FROM command ORDER BY id DESC LIMIT 1 OFFSET ?1)",
        params![COMMANDS_MAX],
    )?;
    execute(
        db,
        "DELETE FROM boot WHERE rowid <= (SELECT rowid FROM boot ORDER BY rowid DESC LIMIT 1 OFFSET ?1)",
        params![BOOTS_MAX],
    )?;
    Ok(if forgotten == 0 { Portion::Last } else { Portion::Full })
}

/// Forgets some of the oldest that ended without acting, however young they are; answers how many.
pub(super) fn forget_idle(db: &Connection) -> rusqlite::Result<usize> {
    execute(
        db,
        "DELETE FROM remediation WHERE id IN (
           SELECT id FROM remediation WHERE outcome IS NOT NULL AND acted = 0 ORDER BY id LIMIT ?1)",
        params![PORTION],
    )
}

/// Of the oldest rows of a table those whose moment is before `before` on the timeline.
fn forget_oldest(db: &Connection, table: &str, column: &str, before: i64) -> rusqlite::Result<usize> {
    let moment = query::moment(column);
    db.execute(
        &format!(
            "DELETE FROM {table} WHERE id IN (
               SELECT id FROM (SELECT * FROM {table} ORDER BY id LIMIT ?2) AS one
               WHERE json_extract({moment}, '$.wall_ms') < ?1)"
        ),
        params![before, PORTION],
    )
}

/// Keeps the timeline: notes a boot that is new, and in a known one where its wall clock stands after it was set. Only
/// the gap between two boots is measured by it, so that setting it makes nothing older or younger.
pub(super) fn note_boot(db: &Connection, now: &Moment) -> rusqlite::Result<()> {
    let known: Option<i64> = db
        .prepare_cached("SELECT epoch_ms FROM boot WHERE id = ?1")?
        .query_row(params![now.boot_id], |row| row.get(0))
        .optional()?;
    match known {
        Some(epoch) if (epoch - now.epoch_ms()).abs() <= DRIFT_MS => Ok(()),
        Some(_) => {
            execute(db, "UPDATE boot SET epoch_ms = ?2 WHERE id = ?1", params![now.boot_id, now.epoch_ms()])
                .map(drop)
        }
        // The first one of all takes the wall clock's word; each later one begins behind all that was counted before.
        None => execute(
            db,
            "INSERT INTO boot (id, began_ms, epoch_ms, counted_ms)
                 SELECT ?1, began, ?2, began FROM (
                   SELECT coalesce((SELECT max(began_ms + ?2 - epoch_ms, counted_ms) FROM boot
                                    ORDER BY rowid DESC LIMIT 1), ?2) AS began)",
            params![now.boot_id, now.epoch_ms()],
        )
        .map(drop),
    }
}

/// Something is counted now.
pub(super) fn note_counted(db: &Connection, now: &Moment) -> rusqlite::Result<()> {
    note_boot(db, now)?;
    db.prepare_cached("UPDATE boot SET counted_ms = max(counted_ms, began_ms + ?2) WHERE id = ?1")?
        .execute(params![now.boot_id, now.boot_ms])
        .map(drop)
}
