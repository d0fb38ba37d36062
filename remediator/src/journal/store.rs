//! What is written: deliveries, reservations, transitions and ends. Each method is one durable change.

use std::collections::{BTreeMap, HashSet};

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use super::{
    Accepted, Admission, End, Error, Incoming, Journal, Record, Renamed, Request, StepRecord, Tally, query,
};
use crate::{
    admission::{self, Refusal},
    clock::Moment,
    observe::Observation,
    target::Target,
    text::printable,
};

/// Open remediations at most; more is a flood, and the sender is asked to come again.
const OPEN_MAX: usize = 10_000;
/// Ended remediations kept, newest first. Those that acted are kept beside them: limits bound their number, and the
/// breaker must not forget them in a flood of refusals.
const HISTORY_MAX: i64 = 100_000;
/// Starts are kept for longer than any window is likely to be, in milliseconds: a year and a day.
const STARTS_MS: i64 = 366 * 86_400_000;
/// How long ended remediations are kept, in milliseconds: 90 days.
const HISTORY_MS: i64 = 90 * 86_400_000;
/// After so long a silence, in milliseconds, the same refusal is news again: 24 hours.
const SILENCE_MS: i64 = 86_400_000;
/// Boots that are remembered.
const BOOTS_MAX: i64 = 1000;
/// So much a wall clock may drift, in milliseconds, before its boot is noted anew.
const DRIFT_MS: i64 = 1000;

impl Journal {
    /// Takes one delivery's admitted alerts, all or none.
    ///
    /// # Errors
    /// When it is not on disk; the sender must come again.
    pub async fn accept(&self, alerts: Vec<Incoming>, now: Moment) -> Result<Accepted, Error> {
        self.try_change(move |db| accept(db, &alerts, &now)).await
    }

    /// The numbers of the remediations that have no outcome yet, with their targets. Notes where the wall clock stands.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn open_targets(&self, now: Moment) -> Result<BTreeMap<i64, String>, Error> {
        self.change(move |db| {
            note_boot(db, &now)?;
            let mut rows = db.prepare_cached(
                "SELECT id, kind || ' ' || target FROM remediation WHERE outcome IS NULL ORDER BY id",
            )?;
            rows.query_map(params![], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })
        .await
    }

    /// One remediation.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn remediation(&self, id: i64) -> Result<Option<Record>, Error> {
        self.change(move |db| Ok(query::records(db, "WHERE id = ?1", params![id])?.pop())).await
    }

    /// The steps of one remediation, in order.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn steps(&self, id: i64) -> Result<Vec<StepRecord>, Error> {
        self.change(move |db| query::steps(db, id)).await
    }

    /// Gives an open remediation the canonical name of its target. Where one of the same rule is open under that name,
    /// that one stands for both.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn rename(&self, id: i64, target: String, now: Moment) -> Result<Renamed, Error> {
        self.change(move |db| rename(db, id, &target, &now)).await
    }

    /// Writes down what was seen before acting.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn set_before(&self, id: i64, before: Observation) -> Result<(), Error> {
        self.change(move |db| {
            db.execute("UPDATE remediation SET before = ?2 WHERE id = ?1", params![id, json(&before)?])
                .map(drop)
        })
        .await
    }

    /// Decides over all scopes, the cooldown and the breaker at once, and when admitted counts and reserves.
    ///
    /// # Errors
    /// When it is not on disk, and so not admitted.
    pub async fn reserve(&self, request: Request) -> Result<Admission, Error> {
        self.change(move |db| reserve(db, &request)).await
    }

    /// Takes back a reservation whose action was never called.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn release(&self, id: i64, step: i64) -> Result<(), Error> {
        self.change(move |db| release(db, id, step)).await
    }

    /// From here on the action may have been called.
    ///
    /// # Errors
    /// When it is not on disk, and so must not be called.
    pub async fn running(&self, id: i64, step: i64, now: Moment) -> Result<(), Error> {
        self.change(move |db| {
            db.execute(
                "UPDATE step SET state = 'running', started_wall_ms = ?2 WHERE id = ?1",
                params![step, now.wall_ms],
            )?;
            db.execute("UPDATE remediation SET phase = 'running', acted = 1 WHERE id = ?1", params![id])?;
            event(db, id, now.wall_ms, "running", "")
        })
        .await
    }

    /// The action has ended, or is known to have been interrupted; what comes is the verification.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn verifying(&self, id: i64, step: i64, ended: StepRecord, now: Moment) -> Result<(), Error> {
        self.change(move |db| {
            db.execute(
                "UPDATE step SET state = ?2, reason = ?3, detail = ?4, ended_wall_ms = ?5, claimed_freed_bytes = ?6,
                 measured_freed_bytes = ?7 WHERE id = ?1",
                params![
                    step,
                    ended.state.as_str(),
                    ended.reason,
                    ended.detail.as_deref().map(printable),
                    now.wall_ms,
                    ended.claimed_freed_bytes,
                    ended.measured_freed_bytes
                ],
            )?;
            db.execute("UPDATE remediation SET phase = 'verifying', step = ?2 WHERE id = ?1", params![
                id,
                integer(ended.position)
            ])?;
            event(db, id, now.wall_ms, "verifying", ended.state.as_str())
        })
        .await
    }

    /// Writes down a step that was not reserved: planned, skipped, or an observing one that is done.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn note_step(&self, id: i64, step: StepRecord) -> Result<(), Error> {
        self.change(move |db| insert_step(db, id, &step).map(drop)).await
    }

    /// Forgets what was noted of a ladder that has changed before anything was done.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn forget_steps(&self, id: i64) -> Result<(), Error> {
        self.change(move |db| {
            db.execute("DELETE FROM step WHERE remediation = ?1", params![id])?;
            db.execute("UPDATE remediation SET step = 0 WHERE id = ?1", params![id]).map(drop)
        })
        .await
    }

    /// Goes on with the next step of the ladder.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn next_step(&self, id: i64, position: usize) -> Result<(), Error> {
        self.change(move |db| {
            db.execute(
                "UPDATE remediation SET phase = 'received', step = ?2 WHERE id = ?1",
                params![id, integer(position)],
            )
            .map(drop)
        })
        .await
    }

    /// Notes that it waits for a limit, until when, and why.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn wait(&self, id: i64, refusal: Refusal, next_allowed_wall_ms: i64) -> Result<(), Error> {
        self.change(move |db| {
            db.execute(
                "UPDATE remediation SET reason = ?2, detail = ?3, next_allowed_wall_ms = ?4 WHERE id = ?1",
                params![id, refusal.reason, refusal.detail, next_allowed_wall_ms],
            )
            .map(drop)
        })
        .await
    }

    /// Ends a remediation. A refusal, plan or no-need that only repeats the one before it is folded into that one,
    /// so that an alert which stays for weeks does not push the history out. Answers the number it is known by then.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn end(&self, id: i64, end: End, now: Moment) -> Result<i64, Error> {
        self.change(move |db| finish(db, id, &end, &now)).await
    }

    /// Steps that were reserved or running when the process before this one ended.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn interrupted_step(&self, id: i64) -> Result<Option<(i64, StepRecord)>, Error> {
        self.change(move |db| query::interrupted_step(db, id)).await
    }

    /// Forgets ended remediations beyond the retention, and starts older than any window can be.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn retain(&self, now: Moment) -> Result<(), Error> {
        self.change(move |db| retain(db, &now)).await
    }
}

/// What limits and breaker count by goes by the timeline: a wall clock that is years ahead for a moment must not make
/// them forget everything.
fn retain(db: &Connection, now: &Moment) -> rusqlite::Result<()> {
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
    )
    .map(drop)
}

/// Keeps the timeline: notes a boot that is new, and in a known one where its wall clock stands after it was set. Only
/// the gap between two boots is measured by it, so that setting it makes nothing older or younger.
fn note_boot(db: &Connection, now: &Moment) -> rusqlite::Result<()> {
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
fn note_counted(db: &Connection, now: &Moment) -> rusqlite::Result<()> {
    note_boot(db, now)?;
    db.prepare_cached("UPDATE boot SET counted_ms = max(counted_ms, began_ms + ?2) WHERE id = ?1")?
        .execute(params![now.boot_id, now.boot_ms])
        .map(drop)
}

fn accept(db: &Connection, alerts: &[Incoming], now: &Moment) -> rusqlite::Result<Accepted> {
    if !has_room(db, alerts)? {
        return Ok(Accepted::TooMany);
    }
    let mut tally = Tally::default();
    let mut resolve = db.prepare_cached(
        // Also of the last one that acted: an escalation is over when its alert is.
        "UPDATE remediation SET resolved_wall_ms = ?4
         WHERE rule = ?1 AND kind = ?2 AND target = ?3 AND resolved_wall_ms IS NULL
           AND (outcome IS NULL OR id = (SELECT max(id) FROM remediation
                                         WHERE rule = ?1 AND kind = ?2 AND target = ?3 AND acted = 1))",
    )?;
    let mut absorb = db.prepare_cached(
        "UPDATE remediation SET deliveries = deliveries + 1, last_seen_wall_ms = ?4, resolved_wall_ms = NULL
         WHERE rule = ?1 AND kind = ?2 AND target = ?3 AND outcome IS NULL",
    )?;
    let mut insert = db.prepare_cached(
        "INSERT INTO remediation (rule, kind, target, phase, fingerprint, labels, received, received_wall_ms,
         last_seen_wall_ms) VALUES (?1, ?2, ?3, 'received', ?4, ?5, ?6, ?7, ?7)",
    )?;
    let received = json(now)?;
    for alert in alerts {
        let key = (&alert.rule, alert.target.kind().as_str(), alert.target.name());
        if !alert.firing {
            tally.resolved += count(resolve.execute(params![key.0, key.1, key.2, now.wall_ms])?);
        } else if absorb.execute(params![key.0, key.1, key.2, now.wall_ms])? > 0 {
            tally.absorbed += 1;
        } else {
            let labels = json(&alert.labels)?;
            insert.execute(params![key.0, key.1, key.2, alert.fingerprint, labels, received, now.wall_ms])?;
            tally.opened += 1;
        }
    }
    Ok(Accepted::Taken(tally))
}

/// Whether the remediations that these alerts would open fit beside those already open.
fn has_room(db: &Connection, alerts: &[Incoming]) -> rusqlite::Result<bool> {
    let open: usize =
        db.query_row("SELECT count(*) FROM remediation WHERE outcome IS NULL", [], |row| row.get(0))?;
    let keys: HashSet<(&str, &Target)> = alerts
        .iter()
        .filter(|alert| alert.firing)
        .map(|alert| (alert.rule.as_str(), &alert.target))
        .collect();
    if open + keys.len() <= OPEN_MAX {
        return Ok(true);
    }
    let mut is_open = db.prepare_cached(
        "SELECT 1 FROM remediation WHERE rule = ?1 AND kind = ?2 AND target = ?3 AND outcome IS NULL",
    )?;
    let mut new = 0;
    for (rule, target) in keys {
        new += usize::from(!is_open.exists(params![rule, target.kind().as_str(), target.name()])?);
    }
    Ok(open + new <= OPEN_MAX)
}

fn rename(db: &Connection, id: i64, target: &str, now: &Moment) -> rusqlite::Result<Renamed> {
    let other: Option<i64> = db
        .query_row(
            "SELECT other.id FROM remediation AS this JOIN remediation AS other
             ON other.rule = this.rule AND other.kind = this.kind AND other.id <> this.id
             WHERE this.id = ?1 AND other.target = ?2 AND other.outcome IS NULL",
            params![id, target],
            |row| row.get(0),
        )
        .optional()?;
    let Some(other) = other else {
        let alias: String =
            db.query_row("SELECT target FROM remediation WHERE id = ?1", params![id], |row| row.get(0))?;
        db.execute("UPDATE remediation SET target = ?2 WHERE id = ?1", params![id, target])?;
        event(db, id, now.wall_ms, "renamed", &format!("{alias} is {target}"))?;
        return Ok(Renamed::Renamed);
    };
    db.execute(
        "UPDATE remediation SET deliveries = deliveries + (SELECT deliveries FROM remediation WHERE id = ?2),
         last_seen_wall_ms = ?3 WHERE id = ?1",
        params![other, id, now.wall_ms],
    )?;
    db.execute("DELETE FROM remediation WHERE id = ?1", params![id])?;
    Ok(Renamed::Absorbed)
}

fn reserve(db: &Connection, request: &Request) -> rusqlite::Result<Admission> {
    note_counted(db, &request.now)?;
    let now = query::on_timeline(db, &request.now)?;
    let (rule, kind, target): (String, String, String) = db.query_row(
        "SELECT rule, kind, target FROM remediation WHERE id = ?1",
        params![request.id],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    // A walk that only observes, interrupted after it was admitted.
    if request.step.is_none() && counted(db, -request.id)? {
        return Ok(Admission::Admitted(0));
    }
    if let Some(restraint) = &request.restraint {
        let history = query::history(db, &rule, &kind, &target)?;
        if let Err(refusal) = restraint.admits(&history, &now) {
            return Ok(Admission::Refused(refusal));
        }
    }
    let budgets = request
        .budgets
        .iter()
        .map(|(scope, limits)| query::budget(db, scope, limits))
        .collect::<rusqlite::Result<Vec<_>>>()?;
    if let Err(refusal) = admission::limits(&budgets, &now) {
        return Ok(Admission::Refused(refusal));
    }
    let step = match &request.step {
        Some(record) => insert_step(db, request.id, record)?,
        None => -request.id,
    };
    for (scope, _) in &request.budgets {
        db.execute(
            "INSERT INTO start (scope, step, moment) VALUES (?1, ?2, ?3)",
            params![scope.key(), step, json(&request.now)?],
        )?;
    }
    if let Some(record) = &request.step {
        db.execute(
            "UPDATE remediation SET phase = 'reserved', step = ?2, reason = NULL, detail = NULL,
             next_allowed_wall_ms = NULL WHERE id = ?1",
            params![request.id, integer(record.position)],
        )?;
        event(db, request.id, request.now.wall_ms, "reserved", &record.action)?;
    }
    Ok(Admission::Admitted(step))
}

/// Whether a start is counted for this step.
fn counted(db: &Connection, step: i64) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM start WHERE step = ?1")?.exists(params![step])
}

fn release(db: &Connection, id: i64, step: i64) -> rusqlite::Result<()> {
    db.execute("DELETE FROM start WHERE step = ?1", params![step])?;
    db.execute("DELETE FROM step WHERE id = ?1", params![step])?;
    db.execute("UPDATE remediation SET phase = 'received' WHERE id = ?1", params![id]).map(drop)
}

fn insert_step(db: &Connection, id: i64, step: &StepRecord) -> rusqlite::Result<i64> {
    // Taken up again after a wait or a crash, it is judged anew.
    db.execute(
        "DELETE FROM step WHERE remediation = ?1 AND position = ?2 AND state IN ('skipped', 'planned')",
        params![id, integer(step.position)],
    )?;
    db.execute(
        "INSERT INTO step (remediation, position, action, class, plan, state, reason, detail, started_wall_ms,
         ended_wall_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            id,
            integer(step.position),
            step.action,
            step.class.as_str(),
            step.plan,
            step.state.as_str(),
            step.reason,
            step.detail.as_deref().map(printable),
            step.started_wall_ms,
            step.ended_wall_ms
        ],
    )?;
    Ok(db.last_insert_rowid())
}

fn finish(db: &Connection, id: i64, end: &End, now: &Moment) -> rusqlite::Result<i64> {
    note_counted(db, now)?;
    let after = end.after.as_ref().map(json).transpose()?;
    let detail = printable(&end.detail);
    let known_as = match repeated(db, id, end, now)? {
        Some(earlier) => {
            fold(db, id, earlier)?;
            earlier
        }
        None => {
            event(db, id, now.wall_ms, end.outcome.as_str(), &detail)?;
            id
        }
    };
    db.execute(
        "UPDATE remediation SET phase = 'ended', outcome = ?2, reason = ?3, detail = ?4, next_allowed_wall_ms = ?5,
         after = ?6, ended = ?7, ended_wall_ms = ?8 WHERE id = ?1",
        params![
            known_as,
            end.outcome.as_str(),
            end.reason,
            detail,
            end.next_allowed_wall_ms,
            after,
            json(now)?,
            now.wall_ms
        ],
    )?;
    Ok(known_as)
}

/// Adds a remediation to an earlier one, which then shows what was seen and judged last.
fn fold(db: &Connection, id: i64, earlier: i64) -> rusqlite::Result<()> {
    db.execute(
        "UPDATE remediation SET deliveries = remediation.deliveries + this.deliveries,
         last_seen_wall_ms = this.last_seen_wall_ms, resolved_wall_ms = this.resolved_wall_ms, before = this.before,
         labels = this.labels, fingerprint = this.fingerprint
         FROM (SELECT * FROM remediation WHERE id = ?2) AS this WHERE remediation.id = ?1",
        params![earlier, id],
    )?;
    db.execute("DELETE FROM step WHERE remediation = ?1", params![earlier])?;
    db.execute("UPDATE step SET remediation = ?1 WHERE remediation = ?2", params![earlier, id])?;
    db.execute("DELETE FROM remediation WHERE id = ?1", params![id]).map(drop)
}

/// The remediation just before this one of the same rule and target, not long ago, when neither acted and both ended
/// alike.
fn repeated(db: &Connection, id: i64, end: &End, now: &Moment) -> rusqlite::Result<Option<i64>> {
    db.query_row(
        "SELECT earlier.id FROM remediation AS this JOIN remediation AS earlier
         ON earlier.rule = this.rule AND earlier.kind = this.kind AND earlier.target = this.target
            AND earlier.id < this.id
         WHERE this.id = ?1 AND this.acted = 0 AND earlier.acted = 0 AND earlier.outcome = ?2 AND earlier.reason = ?3
           AND earlier.last_seen_wall_ms > ?4
           AND earlier.id = (SELECT max(id) FROM remediation WHERE rule = this.rule AND kind = this.kind
                             AND target = this.target AND id < this.id)",
        params![id, end.outcome.as_str(), end.reason, now.wall_ms - SILENCE_MS],
        |row| row.get(0),
    )
    .optional()
}

fn event(db: &Connection, id: i64, wall_ms: i64, what: &str, detail: &str) -> rusqlite::Result<()> {
    db.execute(
        "INSERT INTO event (remediation, wall_ms, what, detail) VALUES (?1, ?2, ?3, ?4)",
        params![id, wall_ms, what, detail],
    )
    .map(drop)
}

/// A value as stored JSON.
fn json<T: Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

fn integer(position: usize) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

fn count(rows: usize) -> u64 {
    u64::try_from(rows).unwrap_or(u64::MAX)
}
