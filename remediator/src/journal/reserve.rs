//! Whether a start is admitted, and its counting, as one change: no two starts are ever admitted by the same room.

use std::time::Duration;

use rusqlite::{Connection, params};

use super::{
    Admission, HaltKind, Question, Request, outbox, people, query,
    statement::execute,
    store::{event, insert_step, integer, json},
    timeline::note_counted,
};
use crate::{
    admission::{self, Reason, Refusal},
    clock::Moment,
    policy::Class,
    target::Kind,
};

/// How soon to look again whether a device is free.
const BUSY_PAUSE: Duration = Duration::from_secs(10);
/// How soon to look again whether what came at once is all in need.
const LOOKING_PAUSE: Duration = Duration::from_secs(2);

/// Counts a start in all its scopes, or none of them.
pub(super) fn reserve(db: &Connection, request: &Request) -> rusqlite::Result<Admission> {
    let question = &request.question;
    note_counted(db, &request.now)?;
    // A walk that only observes, interrupted after it was admitted.
    if request.step.is_none() && counted(db, -question.id)? {
        return Ok(Admission::Admitted(0));
    }
    let now = query::on_timeline(db, &request.now)?;
    if is_impact(question) && need(db, question, &now)?.is_storm(question) {
        break_out(db, request, &now)?;
    }
    if let Err(refusal) = decide(db, question, &now)? {
        return Ok(Admission::Refused(refusal));
    }
    let step = match &request.step {
        Some(record) => insert_step(db, question.id, record)?,
        None => -question.id,
    };
    for (scope, _) in &question.budgets {
        execute(
            db,
            "INSERT INTO start (scope, step, moment) VALUES (?1, ?2, ?3)",
            params![scope.key(), step, json(&request.now)?],
        )?;
    }
    if let Some(record) = &request.step {
        execute(
            db,
            "UPDATE remediation SET phase = 'reserved', step = ?2, reason = NULL, detail = NULL,
             next_allowed_wall_ms = NULL WHERE id = ?1",
            params![question.id, integer(record.position)],
        )?;
        event(db, question.id, request.now.wall_ms, "reserved", &record.action)?;
    }
    Ok(Admission::Admitted(step))
}

/// Takes back what [`reserve`] counted, for a step that was not done after all.
pub(super) fn release(db: &Connection, id: i64, step: i64) -> rusqlite::Result<()> {
    execute(db, "DELETE FROM start WHERE step = ?1", params![step])?;
    execute(db, "DELETE FROM step WHERE id = ?1", params![step])?;
    // It may have been called, and put off by the host; what came before it stays done.
    execute(
        db,
        "UPDATE remediation SET phase = 'received', acted = EXISTS (SELECT 1 FROM step WHERE remediation = ?1
           AND class <> 'S0' AND state IN ('done', 'failed', 'unknown')) WHERE id = ?1",
        params![id],
    )
    .map(drop)
}

/// The decision itself, without its counting. `now` is on the timeline.
pub(super) fn decide(
    db: &Connection,
    question: &Question,
    now: &Moment,
) -> rusqlite::Result<Result<(), Refusal>> {
    if question.class.acts()
        && let Some(refusal) = halted(db, question, now)?
    {
        return Ok(Err(refusal));
    }
    if let Some(restraint) = &question.restraint {
        let (kind, target) = (question.target.kind().as_str(), question.target.name());
        let history = query::history(db, &question.rule, kind, target)?;
        if let Err(refusal) = restraint.admits(&history, now) {
            return Ok(Err(refusal));
        }
    }
    if let Some(refusal) = busy(db, question)? {
        return Ok(Err(refusal));
    }
    let budgets = question
        .budgets
        .iter()
        .map(|(scope, limits)| query::budget(db, scope, limits))
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(admission::limits(&budgets, now))
}

/// A pause holds everything that acts; a storm what begins to interrupt services.
fn halted(db: &Connection, question: &Question, now: &Moment) -> rusqlite::Result<Option<Refusal>> {
    // Without an end it is worth asking again tomorrow.
    let tomorrow = Duration::from_secs(86_400);
    if let Some(pause) = people::halt(db, HaltKind::Pause, now)? {
        let detail = format!("paused by {}: {}", pause.author, pause.reason);
        let wait = pause.left.unwrap_or(tomorrow);
        return Ok(Some(Refusal { reason: Reason::Paused, scope: "host", detail, wait }));
    }
    if let Some(pause) = people::halt(db, HaltKind::FleetPause, now)? {
        let detail = format!("the fleet is paused by {}: {}", pause.author, pause.reason);
        let wait = pause.left.unwrap_or(tomorrow);
        return Ok(Some(Refusal { reason: Reason::FleetPaused, scope: "fleet", detail, wait }));
    }
    if !is_impact(question) {
        return Ok(None);
    }
    if let Some(storm) = people::halt(db, HaltKind::Storm, now)? {
        let wait = storm.left.unwrap_or(question.storm.hold);
        return Ok(Some(Refusal { reason: Reason::Storm, scope: "host", detail: storm.reason, wait }));
    }
    let need = need(db, question, now)?;
    let looking = need.seen + need.unseen > question.storm.targets && need.unseen > 0;
    let detail = format!(
        "{} targets are in need and {} are still being looked at: more than {} would be a storm",
        need.seen, need.unseen, question.storm.targets
    );
    let refusal = Refusal { reason: Reason::Storm, scope: "host", detail, wait: LOOKING_PAUSE };
    Ok(looking.then_some(refusal))
}

/// Only the first step of a walk: what is at work already is finished.
fn is_impact(question: &Question) -> bool {
    question.class == Class::S2 && question.restraint.is_some()
}

/// Distinct targets that came lately, or were taken up again lately, and whose rule may interrupt a service.
struct Need {
    /// Seen to be in need.
    seen: u32,
    /// Not looked at yet.
    unseen: u32,
}

impl Need {
    fn is_storm(&self, question: &Question) -> bool {
        self.seen > question.storm.targets
    }
}

/// `now` is on the timeline, and so is what it is compared with.
fn need(db: &Connection, question: &Question, now: &Moment) -> rusqlite::Result<Need> {
    let within = i64::try_from(question.storm.within.as_millis()).unwrap_or(i64::MAX);
    // What was refused for another reason than a storm adds nothing to it: nobody was going to work on it.
    let mut rows = db.prepare_cached(
        "SELECT count(*), coalesce(sum(seen), 0) FROM (
           SELECT max(before IS NOT NULL) AS seen FROM remediation
           WHERE impact = 1 AND (seen_ms > ?1 OR taken_up_ms > ?1)
             AND (outcome IS NULL OR acted = 1 OR reason = 'storm')
           GROUP BY kind, target)",
    )?;
    rows.query_row(params![now.wall_ms.saturating_sub(within)], |row| {
        let (all, seen): (u32, u32) = (row.get(0)?, row.get(1)?);
        Ok(Need { seen, unseen: all - seen })
    })
}

/// Too many are in need: nothing of the kind is begun until it has been calm. Told once.
fn break_out(db: &Connection, request: &Request, now: &Moment) -> rusqlite::Result<()> {
    let storm = &request.question.storm;
    let known = people::halt(db, HaltKind::Storm, now)?.is_some();
    let reason = format!(
        "more than {} targets needed a restart or the like within {} s: that is one cause and not many, and restarts do not cure it",
        storm.targets,
        storm.within.as_secs()
    );
    people::set_halt(db, HaltKind::Storm, &reason, "evenkeel", Some(storm.hold), &request.now)?;
    if !known {
        event(db, request.question.id, request.now.wall_ms, "storm", &reason)?;
        outbox::post(db, &request.on_storm, &request.now)?;
    }
    Ok(())
}

/// Whether another remediation is at work on the same device: two mount points of it are one disk.
fn busy(db: &Connection, question: &Question) -> rusqlite::Result<Option<Refusal>> {
    let (Kind::Filesystem, Some(device), true) =
        (question.target.kind(), question.device, question.class.acts())
    else {
        return Ok(None);
    };
    let mut rows = db.prepare_cached(
        "SELECT id, target FROM remediation WHERE id <> ?1 AND kind = 'filesystem' AND outcome IS NULL
         AND (acted = 1 OR phase IN ('reserved', 'running', 'verifying'))
         AND json_extract(before, '$.filesystem.device') = ?2 LIMIT 1",
    )?;
    let mut others = rows.query(params![question.id, i64::try_from(device).unwrap_or(i64::MAX)])?;
    let Some(other) = others.next()? else { return Ok(None) };
    let (id, target): (i64, String) = (other.get(0)?, other.get(1)?);
    let detail = format!("#{id} is at work on the same device, under {target}");
    Ok(Some(Refusal { reason: Reason::Busy, scope: "device", detail, wait: BUSY_PAUSE }))
}

/// Whether a start is counted for this step.
fn counted(db: &Connection, step: i64) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM start WHERE step = ?1")?.exists(params![step])
}
