//! One timeline over all boots, and what is forgotten by it.

use rusqlite::{Connection, OptionalExtension, params};

use super::{outbox, query};
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

/// What limits and breaker count by goes by the timeline: a wall clock that is years ahead for a moment must not make
/// them forget everything.
pub(super) fn retain(db: &Connection, now: &Moment) -> rusqlite::Result<()> {
    note_boot(db, now)?;
    let timeline = query::on_timeline(db, now)?.wall_ms;
    db.execute(
        "DELETE FROM remediation WHERE outcome IS NOT NULL AND acted = 0 AND (ended_wall_ms < ?1 OR id <= (
           SELECT id FROM remediation ORDER BY id DESC LIMIT 1 OFFSET ?2))",
        params![now.wall_ms - HISTORY_MS, HISTORY_MAX],
    )?;
    let (ended, made) = (query::moment("ended"), query::moment("moment"));
    db.execute(
        &format!(
            "DELETE FROM remediation WHERE id IN (SELECT id FROM remediation AS one
               WHERE acted = 1 AND outcome IS NOT NULL AND json_extract({ended}, '$.wall_ms') < ?1)"
        ),
        params![timeline - HISTORY_MS],
    )?;
    db.execute(
        &format!(
            "DELETE FROM start WHERE id IN (SELECT id FROM start AS one WHERE json_extract({made}, '$.wall_ms') < ?1)"
        ),
        params![timeline - STARTS_MS],
    )?;
    db.execute(
        "DELETE FROM boot WHERE rowid <= (SELECT rowid FROM boot ORDER BY rowid DESC LIMIT 1 OFFSET ?1)",
        params![BOOTS_MAX],
    )?;
    db.execute("DELETE FROM command WHERE wall_ms < ?1", params![now.wall_ms - HISTORY_MS])?;
    let queued = query::moment("queued");
    db.execute(
        &format!(
            "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox AS one WHERE json_extract({queued}, '$.wall_ms') < ?1)"
        ),
        params![timeline - i64::try_from(outbox::KEPT.as_millis()).unwrap_or(i64::MAX)],
    )
    .map(drop)
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
        Some(_) => db
            .execute("UPDATE boot SET epoch_ms = ?2 WHERE id = ?1", params![now.boot_id, now.epoch_ms()])
            .map(drop),
        // The first one of all takes the wall clock's word; each later one begins behind all that was counted before.
        None => db
            .execute(
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
