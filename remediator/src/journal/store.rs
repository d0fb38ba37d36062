//! What is written: deliveries, reservations, transitions and ends. Each method is one durable change.

use std::{collections::BTreeMap, path::Path, time::Duration};

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use super::{
    Accepted, Admission, End, Ended, Error, Incoming, Journal, Open, Question, Record, Renamed, Request,
    Standing, StepRecord, StepState, Tally, Write, outbox, place, query, reserve,
    room::Room,
    schema,
    statement::{execute, query_row},
    timeline::{self, Portion, note_boot, note_counted},
};
use crate::{
    admission::Refusal,
    clock::Moment,
    observe::Observation,
    text::{printable, printable_lines},
};

/// After so long a silence on the timeline, in milliseconds, the same refusal is news again: 24 hours.
const SILENCE_MS: i64 = 86_400_000;

impl Journal {
    /// Takes one delivery's admitted alerts, as far as there is room with `most` remediations open, and a small share
    /// for each rule. None of it where there is no room from the beginning: each open one comes to an end by
    /// itself, so whoever sends it again gets through.
    ///
    /// # Errors
    /// When it is not on disk; the sender must come again.
    pub async fn accept(&self, alerts: Vec<Incoming>, most: usize, now: Moment) -> Result<Accepted, Error> {
        self.try_change(move |db| accept(db, &alerts, most, &now)).await
    }

    /// Whether any remediation has no outcome yet.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn is_any_open(&self, now: Moment) -> Result<bool, Error> {
        Ok(!self.open_targets(now).await?.is_empty())
    }

    /// The numbers of the remediations that have no outcome yet, with their rules and targets. Notes where the wall clock stands.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn open_targets(&self, now: Moment) -> Result<BTreeMap<i64, Open>, Error> {
        self.change(move |db| {
            note_boot(db, &now)?;
            let sql = format!("SELECT id, rule, kind || ' ' || target FROM remediation {}", query::OPEN);
            let mut rows = db.prepare_cached(&sql)?;
            rows.query_map(params![], |row| {
                Ok((row.get(0)?, Open { rule: row.get(1)?, target: row.get(2)? }))
            })?
            .collect()
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

    /// The number of the remediation that is open for this rule and target.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn open_number(
        &self,
        rule: String,
        kind: &'static str,
        target: String,
    ) -> Result<Option<i64>, Error> {
        self.change(move |db| {
            query_row(db, "SELECT id FROM remediation WHERE rule = ?1 AND kind = ?2 AND target = ?3 AND outcome IS NULL",
                params![rule, kind, target],
                |row| row.get(0),
            )
            .optional()
        })
        .await
    }

    /// How long ago the alert of a remediation came.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn age(&self, id: i64, now: Moment) -> Result<Duration, Error> {
        self.change(move |db| {
            let now = query::on_timeline(db, &now)?;
            let received = query::moment("received");
            let mut rows =
                db.prepare_cached(&format!("SELECT {received} FROM remediation AS one WHERE id = ?1"))?;
            rows.query_row(params![id], |row| Ok(query::from_json::<Moment>(row, 0)?.age(&now)))
        })
        .await
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
            execute(db, "UPDATE remediation SET before = ?2 WHERE id = ?1", params![id, json(&before)?])
                .map(drop)
        })
        .await
    }

    /// Decides over all scopes, the cooldown and the breaker at once, and when admitted counts and reserves.
    ///
    /// # Errors
    /// When it is not on disk, and so not admitted.
    pub async fn reserve(&self, request: Request) -> Result<Admission, Error> {
        self.change(move |db| reserve::reserve(db, &request)).await
    }

    /// Whether a start would be admitted now. Counts nothing.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn would_admit(
        &self,
        question: Question,
        now: Moment,
    ) -> Result<std::result::Result<(), Refusal>, Error> {
        self.change(move |db| {
            note_boot(db, &now)?;
            reserve::decide(db, &question, &query::on_timeline(db, &now)?)
        })
        .await
    }

    /// Takes back a reservation whose action was never called.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn release(&self, id: i64, step: i64) -> Result<(), Error> {
        self.change(move |db| reserve::release(db, id, step)).await
    }

    /// From here on the action may have been called.
    ///
    /// # Errors
    /// When it is not on disk, and so must not be called.
    pub async fn running(&self, id: i64, step: i64, now: Moment) -> Result<(), Error> {
        self.change(move |db| {
            execute(
                db,
                "UPDATE step SET state = 'running', started_wall_ms = ?2 WHERE id = ?1",
                params![step, now.wall_ms],
            )?;
            execute(db, "UPDATE remediation SET phase = 'running', acted = 1 WHERE id = ?1", params![id])?;
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
            execute(db, "UPDATE step SET state = ?2, reason = ?3, detail = ?4, ended_wall_ms = ?5, claimed_freed_bytes = ?6,
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
            execute(db, "UPDATE remediation SET phase = 'verifying', step = ?2 WHERE id = ?1", params![
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
        self.change(move |db| forget_steps(db, id)).await
    }

    /// Goes on with the next step of the ladder.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn next_step(&self, id: i64, position: usize) -> Result<(), Error> {
        self.change(move |db| {
            execute(
                db,
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
            execute(
                db,
                "UPDATE remediation SET reason = ?2, detail = ?3, next_allowed_wall_ms = ?4 WHERE id = ?1",
                params![id, refusal.reason.as_str(), refusal.detail, next_allowed_wall_ms],
            )
            .map(drop)
        })
        .await
    }

    /// Ends a remediation. A refusal, plan or no-need that only repeats the one before it is folded into that one,
    /// so that an alert which stays for weeks does not push the history out. What is news is written down for the
    /// receivers in the same change: nobody can die between the two.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn end(&self, id: i64, end: End, write: Write, now: Moment) -> Result<Ended, Error> {
        self.change(move |db| finish(db, id, &end, write, &now)).await
    }

    /// Steps that were reserved or running when the process before this one ended.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn interrupted_step(&self, id: i64) -> Result<Option<(i64, StepRecord)>, Error> {
        self.change(move |db| query::interrupted_step(db, id)).await
    }

    /// Forgets ended remediations beyond the retention, and starts older than any window can be. In portions: what
    /// is delivered meanwhile waits for one of them, and the log does not outgrow the place that it has.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn retain(&self, now: Moment) -> Result<(), Error> {
        loop {
            let now = now.clone();
            if self.change(move |db| timeline::retain_some(db, &now)).await? == Portion::Last {
                break;
            }
        }
        self.make_room().await
    }
}

impl Journal {
    /// While the disk has room: sees to it that a full one finds some in the database, and some beside it.
    async fn make_room(&self) -> Result<(), Error> {
        let Standing { path, degraded, .. } = self.standing.borrow().clone();
        // What lies in memory takes no room from a disk.
        let dir =
            path.parent().filter(|dir| degraded.is_none() && !dir.as_os_str().is_empty()).map(Path::to_owned);
        let Some(dir) = dir else { return Ok(()) };
        let laid = tokio::task::spawn_blocking(move || {
            place::keep_ballast(&dir);
            place::has_room(&dir)
        });
        if laid.await.unwrap_or(false) { self.change(schema::keep_room).await } else { Ok(()) }
    }
}

fn accept(db: &Connection, alerts: &[Incoming], most: usize, now: &Moment) -> rusqlite::Result<Accepted> {
    let mut room = Room::read(db, most)?;
    if !room.admits(db, alerts)? {
        return Ok(Accepted::TooMany);
    }
    note_boot(db, now)?;
    let seen = query::on_timeline(db, now)?.wall_ms;
    let mut tally = Tally::default();
    let mut resolve = db.prepare_cached(
        // Also of the last one, which is not taken up again, and of the last one that acted: an escalation is over when
        // its alert is.
        "UPDATE remediation SET resolved_wall_ms = ?4
         WHERE rule = ?1 AND kind = ?2 AND target = ?3 AND resolved_wall_ms IS NULL
           AND id IN ((SELECT max(id) FROM remediation WHERE rule = ?1 AND kind = ?2 AND target = ?3),
                      (SELECT max(id) FROM remediation WHERE rule = ?1 AND kind = ?2 AND target = ?3 AND acted = 1))",
    )?;
    let mut absorb = db.prepare_cached(
        "UPDATE remediation SET deliveries = deliveries + 1, last_seen_wall_ms = ?4, seen_ms = ?5, resolved_wall_ms = NULL
         WHERE rule = ?1 AND kind = ?2 AND target = ?3 AND outcome IS NULL",
    )?;
    let mut insert = db.prepare_cached(
        "INSERT INTO remediation (rule, kind, target, phase, fingerprint, labels, received, received_wall_ms,
         last_seen_wall_ms, impact, seen_ms, triggered_by)
         VALUES (?1, ?2, ?3, 'received', ?4, ?5, ?6, ?7, ?7, ?8, ?9, ?10)",
    )?;
    let received = json(now)?;
    for alert in alerts {
        let key = (&alert.rule, alert.target.kind().as_str(), alert.target.name());
        if !alert.firing {
            let noted = resolve.execute(params![key.0, key.1, key.2, now.wall_ms])?;
            tally.resolved += u64::from(noted > 0);
        } else if absorb.execute(params![key.0, key.1, key.2, now.wall_ms, seen])? > 0 {
            tally.absorbed += 1;
        } else if !room.is_left_for(&alert.rule) {
            tally.left += 1;
        } else {
            insert.execute(params![
                key.0,
                key.1,
                key.2,
                alert.fingerprint,
                alert.labels.json(),
                received,
                now.wall_ms,
                alert.impact,
                seen,
                alert.triggered_by
            ])?;
            room.take(&alert.rule, &alert.labels);
            tally.opened += 1;
        }
    }
    Ok(Accepted::Taken(tally))
}

fn rename(db: &Connection, id: i64, target: &str, now: &Moment) -> rusqlite::Result<Renamed> {
    let other: Option<i64> = query_row(
        db,
        "SELECT other.id FROM remediation AS this JOIN remediation AS other
             ON other.rule = this.rule AND other.kind = this.kind AND other.id <> this.id
             WHERE this.id = ?1 AND other.target = ?2 AND other.outcome IS NULL",
        params![id, target],
        |row| row.get(0),
    )
    .optional()?;
    let Some(other) = other else {
        let alias: String =
            query_row(db, "SELECT target FROM remediation WHERE id = ?1", params![id], |row| row.get(0))?;
        execute(db, "UPDATE remediation SET target = ?2 WHERE id = ?1", params![id, target])?;
        event(db, id, now.wall_ms, "renamed", &format!("{alias} is {target}"))?;
        return Ok(Renamed::Renamed);
    };
    execute(db, "UPDATE remediation SET deliveries = remediation.deliveries + this.deliveries, last_seen_wall_ms = ?3,
         seen_ms = max(remediation.seen_ms, this.seen_ms)
         FROM (SELECT * FROM remediation WHERE id = ?2) AS this WHERE remediation.id = ?1",
        params![other, id, now.wall_ms],
    )?;
    execute(db, "DELETE FROM remediation WHERE id = ?1", params![id])?;
    Ok(Renamed::Absorbed)
}

pub(super) fn insert_step(db: &Connection, id: i64, step: &StepRecord) -> rusqlite::Result<i64> {
    // Taken up again after a wait or a crash, it is judged anew.
    execute(
        db,
        "DELETE FROM step WHERE remediation = ?1 AND position = ?2 AND state IN ('skipped', 'planned')",
        params![id, integer(step.position)],
    )?;
    execute(db, "INSERT INTO step (remediation, position, action, class, plan, state, reason, detail, started_wall_ms,
         ended_wall_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            id,
            integer(step.position),
            step.action,
            step.class.as_str(),
            step.plan,
            step.state.as_str(),
            step.reason,
            // What a plan would change has lines of its own; whatever is told by others is one.
            step.detail.as_deref().map(match step.state {
                StepState::Planned => printable_lines,
                _ => printable,
            }),
            step.started_wall_ms,
            step.ended_wall_ms
        ],
    )?;
    Ok(db.last_insert_rowid())
}

/// What was noted of a ladder, and what people approved of with it, which is no longer what would be done.
pub(super) fn forget_steps(db: &Connection, id: i64) -> rusqlite::Result<()> {
    execute(db, "DELETE FROM step WHERE remediation = ?1", params![id])?;
    execute(db, "DELETE FROM shown WHERE remediation = ?1", params![id])?;
    execute(
        db,
        "UPDATE remediation SET step = 0, asked = NULL, decided = NULL, decided_by = NULL, verdict = NULL
         WHERE id = ?1",
        params![id],
    )
    .map(drop)
}

fn finish(db: &Connection, id: i64, end: &End, write: Write, now: &Moment) -> rusqlite::Result<Ended> {
    note_counted(db, now)?;
    let after = end.after.as_ref().map(json).transpose()?;
    let detail = printable(&end.detail);
    let known_as = repeated(db, id, end, now)?.unwrap_or(id);
    if known_as == id {
        event(db, id, now.wall_ms, end.outcome.as_str(), &detail)?;
    } else {
        fold(db, id, known_as)?;
    }
    execute(db, "UPDATE remediation SET phase = 'ended', outcome = ?2, reason = ?3, detail = ?4, next_allowed_wall_ms = ?5,
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
    // What only repeats has been told already.
    let dropped = if known_as == id { outbox::tell(db, id, write, now)? } else { 0 };
    Ok(Ended { id: known_as, dropped })
}

/// Adds a remediation to an earlier one, which then shows what was seen and judged last.
fn fold(db: &Connection, id: i64, earlier: i64) -> rusqlite::Result<()> {
    execute(db, "UPDATE remediation SET deliveries = remediation.deliveries + this.deliveries,
         last_seen_wall_ms = this.last_seen_wall_ms, seen_ms = this.seen_ms, resolved_wall_ms = this.resolved_wall_ms, before = this.before,
         labels = this.labels, fingerprint = this.fingerprint, triggered_by = this.triggered_by
         FROM (SELECT * FROM remediation WHERE id = ?2) AS this WHERE remediation.id = ?1",
        params![earlier, id],
    )?;
    for table in ["step", "shown"] {
        execute(db, &format!("DELETE FROM {table} WHERE remediation = ?1"), params![earlier])?;
        execute(
            db,
            &format!("UPDATE {table} SET remediation = ?1 WHERE remediation = ?2"),
            params![earlier, id],
        )?;
    }
    execute(db, "DELETE FROM remediation WHERE id = ?1", params![id]).map(drop)
}

/// The remediation just before this one of the same rule and target, not long ago, when neither acted and both ended
/// alike.
fn repeated(db: &Connection, id: i64, end: &End, now: &Moment) -> rusqlite::Result<Option<i64>> {
    query_row(db, "SELECT earlier.id FROM remediation AS this JOIN remediation AS earlier
         ON earlier.rule = this.rule AND earlier.kind = this.kind AND earlier.target = this.target
            AND earlier.id < this.id
         WHERE this.id = ?1 AND this.acted = 0 AND earlier.acted = 0 AND earlier.outcome = ?2 AND earlier.reason = ?3
           AND earlier.seen_ms > ?4
           AND earlier.id = (SELECT max(id) FROM remediation WHERE rule = this.rule AND kind = this.kind
                             AND target = this.target AND id < this.id)",
        params![id, end.outcome.as_str(), end.reason, query::on_timeline(db, now)?.wall_ms - SILENCE_MS],
        |row| row.get(0),
    )
    .optional()
}

pub(super) fn event(
    db: &Connection,
    id: i64,
    wall_ms: i64,
    what: &str,
    detail: &str,
) -> rusqlite::Result<()> {
    execute(
        db,
        "INSERT INTO event (remediation, wall_ms, what, detail) VALUES (?1, ?2, ?3, ?4)",
        params![id, wall_ms, what, detail],
    )
    .map(drop)
}

/// A value as stored JSON.
pub(super) fn json<T: Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

pub(super) fn integer(position: usize) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}
