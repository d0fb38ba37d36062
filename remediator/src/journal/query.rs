//! What is read: by the worker inside its transactions, and by the command line and `/metrics` read-only.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Params, Row, params};

use super::{
    Error, FILE, Halt, HaltKind, Loss, Phase, Places, Question, Record, Shown, StepRecord, StepState, people,
    reserve, schema, statement::query_row,
};
use crate::{
    admission::{Breaker, Budget, Past, Refusal, Restraint, Scope},
    clock::Moment,
    outcome::Outcome,
    policy::{Class, Limit},
};

/// The newest tries that cooldown and breaker look back on.
const LOOK_BACK: i64 = 200;

const COLUMNS: &str = "id, rule, kind, target, phase, step, acted, fingerprint, labels, deliveries, received_wall_ms,
    last_seen_wall_ms, resolved_wall_ms, before, after, outcome, reason, detail, next_allowed_wall_ms, ended_wall_ms,
    decided_by, acked_by, triggered_by";

/// Reads the state while the daemon may be writing it.
pub struct Reader {
    pub(super) db: Connection,
}

/// What `/metrics` says of one rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleFacts {
    /// Remediations between reservation and the end of verification.
    pub in_progress: u64,
    /// Targets whose last try did not help.
    pub escalated: u64,
    /// Remediations that wait for a person to approve of them.
    pub awaiting: u64,
}

impl Reader {
    /// The state in `dir`.
    ///
    /// # Errors
    /// When there is none or it cannot be read.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_file(&dir.join(FILE))
    }

    /// The state where it lies now, if there is any yet.
    ///
    /// # Errors
    /// When there is one and it cannot be read.
    pub fn open_if_any(places: &Places) -> Result<Option<Self>, Error> {
        let path = places.in_use().join(FILE);
        match path.try_exists() {
            Ok(false) => Ok(None),
            Ok(true) => Self::open_file(&path).map(Some),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    pub(super) fn open_file(path: &Path) -> Result<Self, Error> {
        Ok(Self { db: schema::open_read_only(path)? })
    }

    /// The newest remediations, newest first, of one rule and target where given.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn recent(&self, rule: Option<&str>, target: Option<&str>, most: u32) -> Result<Vec<Record>, Error> {
        let clause =
            "WHERE (?1 IS NULL OR rule = ?1) AND (?2 IS NULL OR target = ?2) ORDER BY id DESC LIMIT ?3";
        Ok(records(&self.db, clause, params![rule, target, most])?)
    }

    /// The remediation of this number; none where it has only repeated the one before it, and was folded into that.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn one(&self, id: i64) -> Result<Option<Record>, Error> {
        Ok(records(&self.db, "WHERE id = ?1", params![id])?.pop())
    }

    /// Every remediation that has no outcome yet, oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn open_remediations(&self) -> Result<Vec<Record>, Error> {
        Ok(records(&self.db, &format!("{OPEN} ORDER BY id"), params![])?)
    }

    /// Remediations that have no outcome yet, oldest first, at most so many.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn oldest_open(&self, most: u32) -> Result<Vec<Record>, Error> {
        Ok(records(&self.db, &format!("{OPEN} ORDER BY id LIMIT ?1"), params![most])?)
    }

    /// Remediations that have an outcome, newest first, at most so many.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn newest_ended(&self, most: u32) -> Result<Vec<Record>, Error> {
        Ok(records(&self.db, "WHERE outcome IS NOT NULL ORDER BY id DESC LIMIT ?1", params![most])?)
    }

    /// How many remediations are open, and when the oldest alert among them came.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn queue(&self) -> Result<(u64, Option<i64>), Error> {
        Ok(query_row(
            &self.db,
            "SELECT count(*), min(received_wall_ms) FROM remediation WHERE outcome IS NULL",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?)
    }

    /// The steps of one remediation, in order.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn steps(&self, id: i64) -> Result<Vec<StepRecord>, Error> {
        Ok(steps(&self.db, id)?)
    }

    /// What people were shown of the steps of one remediation when they were asked to approve of it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn shown(&self, id: i64) -> Result<Vec<Shown>, Error> {
        let mut rows = self.db.prepare_cached(
            "SELECT position, plan, changes FROM shown WHERE remediation = ?1 ORDER BY position",
        )?;
        let shown = rows.query_map(params![id], |row| {
            let position = usize::try_from(row.get::<_, i64>(0)?).unwrap_or(0);
            Ok(Shown { position, plan: row.get(1)?, changes: row.get(2)? })
        })?;
        Ok(shown.collect::<rusqlite::Result<_>>()?)
    }

    /// What happened to one remediation and when: wall-clock milliseconds, word, detail.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn events(&self, id: i64) -> Result<Vec<(i64, String, String)>, Error> {
        let mut rows = self
            .db
            .prepare_cached("SELECT wall_ms, what, detail FROM event WHERE remediation = ?1 ORDER BY id")?;
        let events = rows.query_map(params![id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok(events.collect::<rusqlite::Result<_>>()?)
    }

    /// The tries of one rule and target, newest first, and what was needed since, as cooldown and breaker see them.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn history(&self, rule: &str, kind: &str, target: &str) -> Result<Vec<Past>, Error> {
        Ok(history(&self.db, rule, kind, target)?)
    }

    /// Where the breaker of a rule stands on each target it ever acted on: kind, name and position.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn breakers(
        &self,
        rule: &str,
        restraint: &Restraint,
        now: &Moment,
    ) -> Result<Vec<(String, String, Breaker)>, Error> {
        let targets = self.targets(rule)?.into_iter();
        targets
            .map(|(kind, target)| {
                let state = restraint.breaker(&self.history(rule, &kind, &target)?, now);
                Ok((kind, target, state))
            })
            .collect()
    }

    /// Whether a start would be admitted now, by what `now` is on the timeline. Counts nothing.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn decide(
        &self,
        question: &Question,
        now: &Moment,
    ) -> Result<std::result::Result<(), Refusal>, Error> {
        Ok(reserve::decide(&self.db, question, now)?)
    }

    /// What keeps anything from being begun, by what `now` is on the timeline.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn halts(&self, now: &Moment) -> Result<Vec<Halt>, Error> {
        let halts = HaltKind::ALL.map(|what| people::halt(&self.db, what, now));
        Ok(halts.into_iter().filter_map(Result::transpose).collect::<rusqlite::Result<_>>()?)
    }

    /// How many of a rule's remediations that acted ended in each way, within what is kept.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn results(&self, rule: &str) -> Result<Vec<(Outcome, u64)>, Error> {
        let mut rows = self.db.prepare_cached(
            "SELECT outcome, count(*) FROM remediation WHERE rule = ?1 AND acted = 1 AND outcome IS NOT NULL
             GROUP BY outcome",
        )?;
        let counts = rows.query_map(params![rule], |row| {
            Ok((row.get::<_, String>(0)?.parse().unwrap_or(Outcome::Unknown), row.get(1)?))
        })?;
        Ok(counts.collect::<rusqlite::Result<_>>()?)
    }

    /// When a rule's remediations that acted last ended in each way, in milliseconds since 1970, within what is kept.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn last_ends(&self, rule: &str) -> Result<Vec<(Outcome, i64)>, Error> {
        let mut rows = self.db.prepare_cached(
            "SELECT outcome, max(ended_wall_ms) FROM remediation
             WHERE rule = ?1 AND acted = 1 AND outcome IS NOT NULL AND ended_wall_ms IS NOT NULL GROUP BY outcome",
        )?;
        let ends = rows.query_map(params![rule], |row| {
            Ok((row.get::<_, String>(0)?.parse().unwrap_or(Outcome::Unknown), row.get(1)?))
        })?;
        Ok(ends.collect::<rusqlite::Result<_>>()?)
    }

    /// The last time that an earlier state was lost.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn loss(&self) -> Result<Option<Loss>, Error> {
        Ok(loss(&self.db)?)
    }

    /// The starts counted in one scope.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn budget(&self, scope: &Scope, limits: &[Limit]) -> Result<Budget, Error> {
        Ok(budget(&self.db, scope, limits)?)
    }

    /// Now as limits and histories count it, which a wall clock that was set does not move.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn on_timeline(&self, now: &Moment) -> Result<Moment, Error> {
        Ok(on_timeline(&self.db, now)?)
    }

    /// The targets of one rule that it ever acted on: kind and name.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn targets(&self, rule: &str) -> Result<Vec<(String, String)>, Error> {
        let mut rows = self
            .db
            .prepare_cached("SELECT DISTINCT kind, target FROM remediation WHERE rule = ?1 AND acted = 1")?;
        let targets = rows.query_map(params![rule], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(targets.collect::<rusqlite::Result<_>>()?)
    }

    /// What `/metrics` says of one rule.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn rule_facts(&self, rule: &str) -> Result<RuleFacts, Error> {
        Ok(query_row(&self.db, "SELECT (SELECT count(*) FROM remediation WHERE rule = ?1
                     AND phase IN ('reserved', 'running', 'verifying') AND outcome IS NULL),
                    (SELECT count(*) FROM remediation AS r WHERE rule = ?1 AND acted = 1
                     AND outcome IN ('ineffective', 'failed', 'unknown') AND resolved_wall_ms IS NULL
                     AND acked_by IS NULL
                     AND id = (SELECT max(id) FROM remediation WHERE rule = r.rule AND kind = r.kind
                               AND target = r.target AND acted = 1)),
                    (SELECT count(*) FROM remediation WHERE rule = ?1 AND phase = 'awaiting' AND outcome IS NULL)",
            params![rule],
            |row| Ok(RuleFacts { in_progress: row.get(0)?, escalated: row.get(1)?, awaiting: row.get(2)? }),
        )?)
    }
}

/// Those that have no outcome yet. To have them in order SQLite would otherwise read all that has ever been.
pub(super) const OPEN: &str = "INDEXED BY remediation_open WHERE outcome IS NULL";

/// The remediations that `clause` selects.
pub(super) fn records<P: Params>(db: &Connection, clause: &str, values: P) -> rusqlite::Result<Vec<Record>> {
    let mut rows = db.prepare_cached(&format!("SELECT {COLUMNS} FROM remediation {clause}"))?;
    rows.query_map(values, record)?.collect()
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let outcome: Option<String> = row.get(15)?;
    Ok(Record {
        id: row.get(0)?,
        rule: row.get(1)?,
        kind: row.get(2)?,
        target: row.get(3)?,
        phase: phase(&row.get::<_, String>(4)?),
        step: usize::try_from(row.get::<_, i64>(5)?).unwrap_or(0),
        acted: row.get(6)?,
        fingerprint: row.get(7)?,
        // Evidence of another shape is no reason to lose sight of a remediation that is open.
        labels: from_json(row, 8).unwrap_or_default(),
        deliveries: row.get(9)?,
        received_wall_ms: row.get(10)?,
        last_seen_wall_ms: row.get(11)?,
        resolved_wall_ms: row.get(12)?,
        before: from_json(row, 13).ok(),
        after: from_json(row, 14).ok(),
        outcome: outcome.and_then(|text| text.parse().ok()),
        reason: row.get(16)?,
        detail: row.get(17)?,
        next_allowed_wall_ms: row.get(18)?,
        ended_wall_ms: row.get(19)?,
        decided_by: row.get(20)?,
        acked_by: row.get(21)?,
        triggered_by: row.get(22)?,
    })
}

const STEP_COLUMNS: &str =
    "id, position, action, class, plan, state, reason, detail, started_wall_ms, ended_wall_ms,
    claimed_freed_bytes, measured_freed_bytes";

pub(super) fn steps(db: &Connection, id: i64) -> rusqlite::Result<Vec<StepRecord>> {
    let mut rows =
        db.prepare_cached(&format!("SELECT {STEP_COLUMNS} FROM step WHERE remediation = ?1 ORDER BY id"))?;
    rows.query_map(params![id], |row| step(row).map(|(_, step)| step))?.collect()
}

pub(super) fn interrupted_step(db: &Connection, id: i64) -> rusqlite::Result<Option<(i64, StepRecord)>> {
    let mut rows = db.prepare_cached(&format!(
        "SELECT {STEP_COLUMNS} FROM step WHERE remediation = ?1 AND state IN ('reserved', 'running')
         ORDER BY id DESC LIMIT 1"
    ))?;
    rows.query_row(params![id], step).optional()
}

fn step(row: &Row<'_>) -> rusqlite::Result<(i64, StepRecord)> {
    let record = StepRecord {
        position: usize::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
        action: row.get(2)?,
        class: class(&row.get::<_, String>(3)?),
        plan: row.get(4)?,
        state: step_state(&row.get::<_, String>(5)?),
        reason: row.get(6)?,
        detail: row.get(7)?,
        started_wall_ms: row.get(8)?,
        ended_wall_ms: row.get(9)?,
        claimed_freed_bytes: row.get(10)?,
        measured_freed_bytes: row.get(11)?,
    };
    Ok((row.get(0)?, record))
}

/// The tries of one rule and target, newest first, each with the first need after it. Refusals and plans in between,
/// however many, push no try out of sight.
pub(super) fn history(db: &Connection, rule: &str, kind: &str, target: &str) -> rusqlite::Result<Vec<Past>> {
    let mut tries = db.prepare_cached(&format!(
        "SELECT id, outcome, acked_by IS NOT NULL, {}, {} FROM remediation AS one
         WHERE rule = ?1 AND kind = ?2 AND target = ?3 AND acted = 1
         AND outcome IS NOT NULL ORDER BY id DESC LIMIT ?4",
        moment("received"),
        moment("ended")
    ))?;
    let mut need = db.prepare_cached(&format!(
        "SELECT outcome, 0, {}, {} FROM remediation AS one WHERE rule = ?1 AND kind = ?2 AND target = ?3 AND id > ?4 AND id < ?5
         AND acted = 0 AND outcome IS NOT NULL AND outcome <> 'not_needed' ORDER BY id LIMIT 1",
        moment("received"),
        moment("ended")
    ))?;
    let past = |row: &Row<'_>, acted, first: usize| {
        Ok(Past {
            acted,
            // An outcome of a later version is not known to have helped.
            outcome: row.get::<_, String>(first)?.parse().unwrap_or(Outcome::Unknown),
            acked: row.get(first + 1)?,
            received: from_json(row, first + 2)?,
            ended: from_json(row, first + 3)?,
        })
    };
    let mut history = Vec::new();
    let mut newer = i64::MAX;
    let rows = tries.query_map(params![rule, kind, target, LOOK_BACK], |row| {
        Ok((row.get::<_, i64>(0)?, past(row, true, 1)?))
    })?;
    for row in rows {
        let (id, attempt) = row?;
        let between = params![rule, kind, target, id, newer];
        history.extend(need.query_row(between, |row| past(row, false, 0)).optional()?);
        history.push(attempt);
        newer = id;
    }
    Ok(history)
}

/// The starts that can matter: as many as the largest window allows, newest first.
pub(super) fn budget(db: &Connection, scope: &Scope, limits: &[Limit]) -> rusqlite::Result<Budget> {
    let most = limits.iter().map(|limit| limit.count).max().unwrap_or(0);
    let mut rows = db.prepare_cached(&format!(
        "SELECT {} FROM start AS one WHERE scope = ?1 ORDER BY id DESC LIMIT ?2",
        moment("moment")
    ))?;
    let starts = rows
        .query_map(params![scope.key(), most], |row| from_json(row, 0))?
        .collect::<rusqlite::Result<Vec<Moment>>>()?;
    let lost = loss(db)?.map(|loss| loss.moment);
    Ok(Budget { scope: scope.clone(), limits: limits.to_vec(), starts, lost })
}

/// The last time that the state was lost, on the timeline.
pub(super) fn loss(db: &Connection) -> rusqlite::Result<Option<Loss>> {
    let mut rows = db.prepare_cached(&format!(
        "SELECT {}, json_extract(moment, '$.wall_ms'), why FROM loss AS one ORDER BY id DESC LIMIT 1",
        moment("moment")
    ))?;
    rows.query_row(params![], |row| {
        Ok(Loss { moment: from_json(row, 0)?, wall_ms: row.get(1)?, why: row.get(2)? })
    })
    .optional()
}

/// A stored moment whose wall clock is the timeline over all boots; as it was stored where its boot is forgotten.
pub(super) fn moment(column: &str) -> String {
    format!(
        "coalesce((SELECT json_set(one.{column}, '$.wall_ms', boot.began_ms + json_extract(one.{column}, '$.boot_ms'))
          FROM boot WHERE boot.id = json_extract(one.{column}, '$.boot_id')), one.{column})"
    )
}

/// Now, with the timeline over all boots for its wall clock: what stored moments are compared with.
pub(super) fn on_timeline(db: &Connection, now: &Moment) -> rusqlite::Result<Moment> {
    let began: Option<i64> = db
        .prepare_cached("SELECT began_ms FROM boot WHERE id = ?1")?
        .query_row(params![now.boot_id], |row| row.get(0))
        .optional()?;
    Ok(Moment { wall_ms: began.map_or(now.wall_ms, |began| began + now.boot_ms), ..now.clone() })
}

/// A value from stored JSON.
pub(super) fn from_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

fn phase(text: &str) -> Phase {
    Phase::ALL.into_iter().find(|phase| phase.as_str() == text).unwrap_or(Phase::Ended)
}

fn step_state(text: &str) -> StepState {
    StepState::ALL.into_iter().find(|state| state.as_str() == text).unwrap_or(StepState::Unknown)
}

fn class(text: &str) -> Class {
    Class::ALL.into_iter().find(|class| class.as_str() == text).unwrap_or(Class::D2)
}
