//! What is written: deliveries, reservations, transitions and ends. Each method is one durable change.

use std::collections::{BTreeMap, HashSet};

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;

use super::{Error, Journal, query};
use crate::{
    admission::{self, Budget, Refusal, Restraint, Scope},
    clock::Moment,
    observe::Observation,
    outcome::Outcome,
    policy::{Class, Limit},
    target::{Kind, Target},
};

/// Open remediations at most; more is a flood, and the sender is asked to come again.
const OPEN_MAX: usize = 10_000;
/// Ended remediations kept, newest first.
const HISTORY_MAX: i64 = 100_000;
/// Days that ended remediations are kept.
const HISTORY_DAYS: i64 = 90;

/// One alert that a rule admitted.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The rule's name.
    pub rule: String,
    /// What it names on this host.
    pub target: Target,
    /// Whether it fires; otherwise it says that it is resolved.
    pub firing: bool,
    /// Alertmanager's fingerprint, for people to find the alert again.
    pub fingerprint: String,
    /// The alert's labels.
    pub labels: BTreeMap<String, String>,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Remediations opened.
    pub opened: u64,
    /// Alerts absorbed by an open remediation.
    pub absorbed: u64,
    /// Resolved alerts noted on an open remediation.
    pub resolved: u64,
}

/// Whether a delivery was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It is on disk.
    Taken(Tally),
    /// Too many remediations are open already; nothing of it was taken.
    TooMany,
}

/// Where an open remediation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Waits for the worker.
    Received,
    /// The start is counted; the action has not been called.
    Reserved,
    /// The action may have been called.
    Running,
    /// The action has ended; the effect is being measured.
    Verifying,
    /// It has an outcome.
    Ended,
}

impl Phase {
    const ALL: [Self; 5] = [Self::Received, Self::Reserved, Self::Running, Self::Verifying, Self::Ended];

    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Reserved => "reserved",
            Self::Running => "running",
            Self::Verifying => "verifying",
            Self::Ended => "ended",
        }
    }
}

/// One remediation as stored.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// Its number.
    pub id: i64,
    /// The rule's name.
    pub rule: String,
    /// What kind of thing it is about.
    pub kind: String,
    /// The thing's name.
    pub target: String,
    /// Where it stands.
    pub phase: Phase,
    /// The step of the ladder it is at.
    pub step: usize,
    /// Whether it acted on the host.
    pub acted: bool,
    /// Alertmanager's fingerprint of the first alert.
    pub fingerprint: String,
    /// Labels of the first alert.
    pub labels: BTreeMap<String, String>,
    /// Alerts that said the same.
    pub deliveries: u64,
    /// When the first alert came.
    pub received_wall_ms: i64,
    /// When the last alert came.
    pub last_seen_wall_ms: i64,
    /// When the alert said that it is resolved, if it did.
    pub resolved_wall_ms: Option<i64>,
    /// What was seen before acting.
    pub before: Option<Observation>,
    /// What was seen at the end.
    pub after: Option<Observation>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Why it ended so, as a word.
    pub reason: Option<String>,
    /// Why it ended so, for people.
    pub detail: Option<String>,
    /// When a start may be admitted again, after a refusal.
    pub next_allowed_wall_ms: Option<i64>,
    /// When it ended.
    pub ended_wall_ms: Option<i64>,
}

/// What became of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    /// Would have run; the rule is in plan mode.
    Planned,
    /// Not run: the reason says why.
    Skipped,
    /// Counted, not yet called.
    Reserved,
    /// Called; no answer is recorded.
    Running,
    /// The host did it.
    Done,
    /// The host refused it.
    Failed,
    /// Interrupted: it may have happened.
    Unknown,
}

impl StepState {
    const ALL: [Self; 7] = [
        Self::Planned,
        Self::Skipped,
        Self::Reserved,
        Self::Running,
        Self::Done,
        Self::Failed,
        Self::Unknown,
    ];

    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Skipped => "skipped",
            Self::Reserved => "reserved",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// One step as stored.
#[derive(Debug, Clone, Serialize)]
pub struct StepRecord {
    /// Its place in the rule's ladder, from 0.
    pub position: usize,
    /// The action's name.
    pub action: String,
    /// The action's class.
    pub class: Class,
    /// The exact calls.
    pub plan: String,
    /// What became of it.
    pub state: StepState,
    /// Why, as a word.
    pub reason: Option<String>,
    /// Why, for people.
    pub detail: Option<String>,
    /// When it was called.
    pub started_wall_ms: Option<i64>,
    /// When it ended.
    pub ended_wall_ms: Option<i64>,
    /// What the API says it freed, in bytes.
    pub claimed_freed_bytes: Option<i64>,
    /// What the filesystem says it freed, in bytes; negative when less was available afterwards.
    pub measured_freed_bytes: Option<i64>,
}

/// A start that wants to be admitted: one step of one remediation.
#[derive(Debug, Clone)]
pub struct Request {
    /// The remediation.
    pub id: i64,
    /// The step, as it will be recorded; none when the walk itself is what counts, for rules that only observe.
    pub step: Option<StepRecord>,
    /// Every scope it counts in, with the windows.
    pub budgets: Vec<(Scope, Vec<Limit>)>,
    /// Cooldown and breaker, when this is the remediation's first acting step.
    pub restraint: Option<Restraint>,
    /// Now.
    pub now: Moment,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It is counted and reserved; this is the step's number, 0 without a step.
    Admitted(i64),
    /// It is not.
    Refused(Refusal),
}

/// How a remediation ends.
#[derive(Debug, Clone)]
pub struct End {
    /// How.
    pub outcome: Outcome,
    /// Why, as a word.
    pub reason: String,
    /// Why, for people.
    pub detail: String,
    /// When a start may be admitted, after a refusal.
    pub next_allowed_wall_ms: Option<i64>,
    /// The last look.
    pub after: Option<Observation>,
}

impl Journal {
    /// Takes one delivery's admitted alerts, all or none.
    ///
    /// # Errors
    /// When it is not on disk; the sender must come again.
    pub async fn accept(&self, alerts: Vec<Incoming>, now: Moment) -> Result<Accepted, Error> {
        self.try_change(move |db| accept(db, &alerts, &now)).await
    }

    /// Every remediation that has no outcome yet, oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn open_remediations(&self) -> Result<Vec<Record>, Error> {
        self.change(|db| query::records(db, "WHERE outcome IS NULL ORDER BY id", params![])).await
    }

    /// The steps of one remediation, in order.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn steps(&self, id: i64) -> Result<Vec<StepRecord>, Error> {
        self.change(move |db| query::steps(db, id)).await
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
                    ended.detail,
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
            // They are judged anew when it is taken up again.
            db.execute("DELETE FROM step WHERE remediation = ?1 AND state = 'skipped'", params![id])?;
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
        self.change(move |db| {
            let oldest = now.wall_ms - HISTORY_DAYS * 86_400_000;
            db.execute(
                "DELETE FROM remediation WHERE outcome IS NOT NULL AND (ended_wall_ms < ?1 OR id <= (
                   SELECT id FROM remediation ORDER BY id DESC LIMIT 1 OFFSET ?2))",
                params![oldest, HISTORY_MAX],
            )?;
            db.execute(
                "DELETE FROM start WHERE id <= (SELECT id FROM start ORDER BY id DESC LIMIT 1 OFFSET ?1)",
                params![HISTORY_MAX],
            )
            .map(drop)
        })
        .await
    }
}

fn accept(db: &Connection, alerts: &[Incoming], now: &Moment) -> rusqlite::Result<Accepted> {
    if !has_room(db, alerts)? {
        return Ok(Accepted::TooMany);
    }
    let mut tally = Tally::default();
    let mut resolve = db.prepare_cached(
        "UPDATE remediation SET resolved_wall_ms = ?4 WHERE rule = ?1 AND kind = ?2 AND target = ?3 AND outcome IS NULL",
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

fn reserve(db: &Connection, request: &Request) -> rusqlite::Result<Admission> {
    let (rule, kind, target): (String, String, String) = db.query_row(
        "SELECT rule, kind, target FROM remediation WHERE id = ?1",
        params![request.id],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    if let Some(restraint) = &request.restraint {
        let history = query::history(db, &rule, &kind, &target)?;
        if let Err(refusal) = restraint.admits(&history, &request.now) {
            return Ok(Admission::Refused(refusal));
        }
    }
    let budgets = request
        .budgets
        .iter()
        .map(|(scope, limits)| budget(db, scope, limits))
        .collect::<rusqlite::Result<Vec<_>>>()?;
    if let Err(refusal) = admission::limits(&budgets, &request.now) {
        return Ok(Admission::Refused(refusal));
    }
    let step = match &request.step {
        Some(record) => insert_step(db, request.id, record)?,
        None => 0,
    };
    for (scope, _) in &request.budgets {
        db.execute(
            "INSERT INTO start (scope, step, moment) VALUES (?1, ?2, ?3)",
            params![scope.key(), step, json(&request.now)?],
        )?;
    }
    if let Some(record) = &request.step {
        db.execute(
            "UPDATE remediation SET phase = 'reserved', step = ?2 WHERE id = ?1",
            params![request.id, integer(record.position)],
        )?;
        event(db, request.id, request.now.wall_ms, "reserved", &record.action)?;
    }
    Ok(Admission::Admitted(step))
}

/// The starts that can matter: as many as the largest window allows, newest first.
pub(super) fn budget(db: &Connection, scope: &Scope, limits: &[Limit]) -> rusqlite::Result<Budget> {
    let most = limits.iter().map(|limit| limit.count).max().unwrap_or(0).max(1);
    let mut rows =
        db.prepare_cached("SELECT moment FROM start WHERE scope = ?1 ORDER BY id DESC LIMIT ?2")?;
    let starts = rows
        .query_map(params![scope.key(), most], |row| from_json(row, 0))?
        .collect::<rusqlite::Result<Vec<Moment>>>()?;
    Ok(Budget { scope: scope.clone(), limits: limits.to_vec(), starts })
}

fn release(db: &Connection, id: i64, step: i64) -> rusqlite::Result<()> {
    db.execute("DELETE FROM start WHERE step = ?1", params![step])?;
    db.execute("DELETE FROM step WHERE id = ?1", params![step])?;
    db.execute("UPDATE remediation SET phase = 'received' WHERE id = ?1", params![id]).map(drop)
}

fn insert_step(db: &Connection, id: i64, step: &StepRecord) -> rusqlite::Result<i64> {
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
            step.detail,
            step.started_wall_ms,
            step.ended_wall_ms
        ],
    )?;
    Ok(db.last_insert_rowid())
}

fn finish(db: &Connection, id: i64, end: &End, now: &Moment) -> rusqlite::Result<i64> {
    if let Some(earlier) = repeated(db, id, end)? {
        db.execute(
            "UPDATE remediation SET deliveries = deliveries + (SELECT deliveries FROM remediation WHERE id = ?2),
             last_seen_wall_ms = ?3, next_allowed_wall_ms = ?4, detail = ?5 WHERE id = ?1",
            params![earlier, id, now.wall_ms, end.next_allowed_wall_ms, end.detail],
        )?;
        db.execute("DELETE FROM remediation WHERE id = ?1", params![id])?;
        return Ok(earlier);
    }
    let after = end.after.as_ref().map(json).transpose()?;
    db.execute(
        "UPDATE remediation SET phase = 'ended', outcome = ?2, reason = ?3, detail = ?4, next_allowed_wall_ms = ?5,
         after = ?6, ended = ?7, ended_wall_ms = ?8 WHERE id = ?1",
        params![
            id,
            end.outcome.as_str(),
            end.reason,
            end.detail,
            end.next_allowed_wall_ms,
            after,
            json(now)?,
            now.wall_ms
        ],
    )?;
    event(db, id, now.wall_ms, end.outcome.as_str(), &end.detail)?;
    Ok(id)
}

/// The remediation just before this one of the same rule and target, when neither acted and both ended alike.
fn repeated(db: &Connection, id: i64, end: &End) -> rusqlite::Result<Option<i64>> {
    db.query_row(
        "SELECT earlier.id FROM remediation AS this JOIN remediation AS earlier
         ON earlier.rule = this.rule AND earlier.kind = this.kind AND earlier.target = this.target
            AND earlier.id < this.id
         WHERE this.id = ?1 AND this.acted = 0 AND earlier.acted = 0 AND earlier.outcome = ?2 AND earlier.reason = ?3
           AND earlier.id = (SELECT max(id) FROM remediation WHERE rule = this.rule AND kind = this.kind
                             AND target = this.target AND id < this.id)",
        params![id, end.outcome.as_str(), end.reason],
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
pub(super) fn json<T: Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// A value from stored JSON.
pub(super) fn from_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

pub(super) fn phase(text: &str) -> Phase {
    Phase::ALL.into_iter().find(|phase| phase.as_str() == text).unwrap_or(Phase::Ended)
}

pub(super) fn step_state(text: &str) -> StepState {
    StepState::ALL.into_iter().find(|state| state.as_str() == text).unwrap_or(StepState::Unknown)
}

pub(super) fn class(text: &str) -> Class {
    [Class::S0, Class::S1, Class::S2, Class::D1, Class::D2]
        .into_iter()
        .find(|class| class.as_str() == text)
        .unwrap_or(Class::D2)
}

fn integer(position: usize) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

fn count(rows: usize) -> u64 {
    u64::try_from(rows).unwrap_or(u64::MAX)
}

impl Record {
    /// What kind of thing it is about, if this version knows it.
    pub fn kind(&self) -> Option<Kind> {
        [Kind::Filesystem, Kind::Unit, Kind::Container].into_iter().find(|kind| kind.as_str() == self.kind)
    }
}
