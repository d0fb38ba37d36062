//! What people decide: pauses, approvals, acknowledgements. Each is one durable change with its author.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    Approval, Decided, Error, Halt, HaltKind, Journal, Reader, Shown, Verdict, Write, outbox, query,
    statement::{execute, query_row},
    store::{event, forget_steps, integer, json},
    timeline::note_counted,
};
use crate::{
    clock::Moment,
    fleet::ledger::FleetPause,
    text::{printable, printable_lines},
};

/// By so much the end of the fleet's pause may differ between two times that it was heard of.
const FLEET_SLACK: Duration = Duration::from_secs(5);

impl Journal {
    /// Nothing that acts is begun any more: for so long, or until [`Journal::resume`].
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn pause(
        &self,
        reason: String,
        author: String,
        lasts: Option<Duration>,
        now: Moment,
    ) -> Result<(), Error> {
        self.change(move |db| {
            note_counted(db, &now)?;
            set_halt(db, HaltKind::Pause, &reason, &author, lasts, &now)?;
            command(db, &now, &author, "pause", &reason)
        })
        .await
    }

    /// Ends a pause, and a storm too. Answers what it ended.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn resume(&self, author: String, now: Moment) -> Result<Vec<HaltKind>, Error> {
        self.change(move |db| {
            note_counted(db, &now)?;
            let timeline = query::on_timeline(db, &now)?;
            let mut ended = Vec::new();
            for what in [HaltKind::Pause, HaltKind::Storm] {
                if halt(db, what, &timeline)?.is_some() {
                    ended.push(what);
                }
                execute(db, "DELETE FROM halt WHERE what = ?1", params![what.as_str()])?;
            }
            command(db, &now, &author, "resume", "")?;
            Ok(ended)
        })
        .await
    }

    /// The pause of the whole fleet as it was heard of last: in force here until another word is heard, also while nobody
    /// can be asked. Answers whether that is news.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn pause_by_fleet(&self, pause: Option<FleetPause>, now: Moment) -> Result<bool, Error> {
        self.change(move |db| pause_by_fleet(db, pause, &now)).await
    }

    /// Asks people for their approval of what they are `shown`, and writes to them, unless they have been asked already.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn ask(&self, id: i64, shown: Vec<Shown>, write: Write, now: Moment) -> Result<u64, Error> {
        self.change(move |db| {
            note_counted(db, &now)?;
            let asked = execute(
                db,
                "UPDATE remediation SET phase = 'awaiting', asked = ?2 WHERE id = ?1 AND asked IS NULL",
                params![id, json(&now)?],
            )?;
            if asked == 0 {
                return Ok(0);
            }
            for one in &shown {
                show(db, id, one)?;
            }
            event(db, id, now.wall_ms, "awaiting", "")?;
            outbox::tell(db, id, write, &now)
        })
        .await
    }

    /// How a remediation stands with whoever has to approve of it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn approval(&self, id: i64, now: Moment) -> Result<Approval, Error> {
        self.change(move |db| approval(db, id, &query::on_timeline(db, &now)?)).await
    }

    /// Whether this is what people were shown when they were asked.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn was_shown(&self, id: i64, meant: Shown) -> Result<bool, Error> {
        self.change(move |db| {
            let mut rows = db.prepare_cached(
                "SELECT 1 FROM shown WHERE remediation = ?1 AND position = ?2 AND digest = ?3",
            )?;
            rows.exists(params![id, integer(meant.position), meant.digest()])
        })
        .await
    }

    /// An approval counts no more, because something else would be done than what was shown. Nothing has been done yet.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn void_approval(&self, id: i64, why: String, now: Moment) -> Result<(), Error> {
        self.change(move |db| {
            forget_steps(db, id)?;
            event(db, id, now.wall_ms, "approval_void", &printable(&why))
        })
        .await
    }

    /// Takes a person's decision about a remediation that waits for one, if it came within `within`.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn decide(
        &self,
        id: i64,
        verdict: Verdict,
        author: String,
        within: Duration,
        now: Moment,
    ) -> Result<Decided, Error> {
        self.change(move |db| decide(db, id, verdict, &author, within, &now)).await
    }

    /// A person has looked at what the last try did not cure, and wants it tried again. Answers whether there is such
    /// a try.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn ack(
        &self,
        rule: String,
        kind: &'static str,
        target: String,
        author: String,
        now: Moment,
    ) -> Result<Option<i64>, Error> {
        self.change(move |db| {
            let last: Option<i64> = query_row(
                db,
                "SELECT id FROM remediation WHERE rule = ?1 AND kind = ?2 AND target = ?3 AND acted = 1
                     AND outcome IS NOT NULL ORDER BY id DESC LIMIT 1",
                params![rule, kind, target],
                |row| row.get(0),
            )
            .optional()?;
            if let Some(id) = last {
                execute(db, "UPDATE remediation SET acked_by = ?2 WHERE id = ?1", params![id, author])?;
                event(db, id, now.wall_ms, "acked", &author)?;
                command(db, &now, &author, "ack", &format!("{rule} {target}"))?;
            }
            Ok(last)
        })
        .await
    }

    /// Writes down what a person told the remediator.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn note_command(
        &self,
        author: String,
        what: &'static str,
        detail: String,
        now: Moment,
    ) -> Result<(), Error> {
        self.change(move |db| command(db, &now, &author, what, &detail)).await
    }
}

impl Reader {
    /// What people told the remediator last, newest first: wall-clock milliseconds, author, what and detail.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn commands(&self, most: u32) -> Result<Vec<(i64, String, String, String)>, Error> {
        let mut rows = self
            .db
            .prepare_cached("SELECT wall_ms, author, what, detail FROM command ORDER BY id DESC LIMIT ?1")?;
        let commands =
            rows.query_map(params![most], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
        Ok(commands.collect::<rusqlite::Result<_>>()?)
    }
}

fn pause_by_fleet(db: &Connection, pause: Option<FleetPause>, now: &Moment) -> rusqlite::Result<bool> {
    let known = halt(db, HaltKind::FleetPause, &query::on_timeline(db, now)?)?;
    let Some(pause) = pause else {
        if let Some(known) = &known {
            execute(db, "DELETE FROM halt WHERE what = ?1", params![HaltKind::FleetPause.as_str()])?;
            command(db, now, &known.author, "fleet resume", "")?;
        }
        return Ok(known.is_some());
    };
    // Heard of at each heartbeat: the same one again is no news, and its end moves only with the time that hearing takes.
    let is_same = known.is_some_and(|known| {
        let close = |a: Duration, b: Duration| a.abs_diff(b) < FLEET_SLACK;
        let ends_alike = match (known.left, pause.left) {
            (Some(known), Some(heard)) => close(known, heard),
            (None, None) => true,
            _ => false,
        };
        (&known.author, &known.reason) == (&pause.author, &pause.reason) && ends_alike
    });
    if !is_same {
        note_counted(db, now)?;
        set_halt(db, HaltKind::FleetPause, &pause.reason, &pause.author, pause.left, now)?;
        command(db, now, &pause.author, "fleet pause", &pause.reason)?;
    }
    Ok(!is_same)
}

fn command(db: &Connection, now: &Moment, author: &str, what: &str, detail: &str) -> rusqlite::Result<()> {
    execute(
        db,
        "INSERT INTO command (wall_ms, author, what, detail) VALUES (?1, ?2, ?3, ?4)",
        params![now.wall_ms, author, what, printable(detail)],
    )
    .map(drop)
}

/// What is in force now; `now` is on the timeline.
pub(super) fn halt(db: &Connection, what: HaltKind, now: &Moment) -> rusqlite::Result<Option<Halt>> {
    let mut rows = db.prepare_cached(&format!(
        "SELECT reason, author, json_extract(since, '$.wall_ms'), {}, lasts_ms FROM halt AS one WHERE what = ?1",
        query::moment("last")
    ))?;
    let found = rows
        .query_row(params![what.as_str()], |row| {
            let (last, lasts): (Moment, Option<u64>) = (query::from_json(row, 3)?, row.get(4)?);
            let left = lasts.map(|lasts| Duration::from_millis(lasts).checked_sub(last.age(now)));
            let halt = Halt {
                what,
                reason: row.get(0)?,
                author: row.get(1)?,
                since_wall_ms: row.get(2)?,
                left: left.flatten(),
            };
            // Over when nothing is left of a time that was set.
            let over = left.is_some_and(|left| left.is_none_or(|left| left.is_zero()));
            Ok((!over).then_some(halt))
        })
        .optional()?;
    Ok(found.flatten())
}

/// Puts it in force, or prolongs what is.
pub(super) fn set_halt(
    db: &Connection,
    what: HaltKind,
    reason: &str,
    author: &str,
    lasts: Option<Duration>,
    now: &Moment,
) -> rusqlite::Result<()> {
    // A storm goes on as the same one; a second pause is a new order.
    let goes_on = what == HaltKind::Storm && halt(db, what, &query::on_timeline(db, now)?)?.is_some();
    let since = if goes_on { "halt.since" } else { "excluded.since" };
    let lasts = lasts.map(|lasts| i64::try_from(lasts.as_millis()).unwrap_or(i64::MAX));
    db.execute(
        &format!(
            "INSERT INTO halt (what, reason, author, since, last, lasts_ms) VALUES (?1, ?2, ?3, ?4, ?4, ?5)
             ON CONFLICT (what) DO UPDATE SET reason = excluded.reason, author = excluded.author, since = {since},
             last = excluded.last, lasts_ms = excluded.lasts_ms"
        ),
        params![what.as_str(), printable(reason), author, json(now)?, lasts],
    )
    .map(drop)
}

/// Keeps what is shown of one step.
fn show(db: &Connection, id: i64, shown: &Shown) -> rusqlite::Result<()> {
    let changes = shown.changes.as_deref().map(printable_lines);
    execute(
        db,
        "INSERT OR REPLACE INTO shown (remediation, position, plan, changes, digest) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id, integer(shown.position), shown.plan, changes, shown.digest()],
    )
    .map(drop)
}

fn approval(db: &Connection, id: i64, now: &Moment) -> rusqlite::Result<Approval> {
    let mut rows = db.prepare_cached(&format!(
        "SELECT {}, {}, verdict, decided_by FROM remediation AS one WHERE id = ?1",
        query::moment("asked"),
        query::moment("decided")
    ))?;
    rows.query_row(params![id], |row| {
        let age = |column: usize| -> rusqlite::Result<Option<Duration>> {
            let known = row.get::<_, Option<String>>(column)?.is_some();
            known.then(|| Ok(query::from_json::<Moment>(row, column)?.age(now))).transpose()
        };
        let verdict: Option<String> = row.get(2)?;
        Ok(match (age(0)?, age(1)?, verdict.as_deref()) {
            (None, ..) => Approval::NotAsked,
            (Some(_), Some(ago), Some("approve")) => Approval::Given(ago),
            (Some(_), Some(_), _) => Approval::Rejected(row.get::<_, Option<String>>(3)?.unwrap_or_default()),
            (Some(ago), None, _) => Approval::Asked(ago),
        })
    })
}

fn decide(
    db: &Connection,
    id: i64,
    verdict: Verdict,
    author: &str,
    within: Duration,
    now: &Moment,
) -> rusqlite::Result<Decided> {
    note_counted(db, now)?;
    let awaiting: Option<bool> = query_row(
        db,
        "SELECT phase = 'awaiting' AND outcome IS NULL FROM remediation WHERE id = ?1",
        params![id],
        |row| row.get(0),
    )
    .optional()?;
    match awaiting {
        None => return Ok(Decided::Unknown),
        Some(false) => return Ok(Decided::NotAwaiting),
        Some(true) => {}
    }
    match approval(db, id, &query::on_timeline(db, now)?)? {
        Approval::Asked(ago) if ago < within => {}
        Approval::Asked(_) => return Ok(Decided::Expired),
        _ => return Ok(Decided::NotAwaiting),
    }
    execute(
        db,
        "UPDATE remediation SET phase = 'received', decided = ?2, decided_by = ?3, verdict = ?4 WHERE id = ?1",
        params![id, json(now)?, author, verdict.as_str()],
    )?;
    event(db, id, now.wall_ms, verdict.as_str(), author)?;
    command(db, now, author, verdict.as_str(), &format!("#{id}"))?;
    Ok(Decided::Taken)
}
