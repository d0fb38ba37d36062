//! `history`: what was done, or not, and why: for people, and as JSON lines. Read-only, also while the daemon runs.
//! What a remediation looks like in one line or as a whole is the same in `status` and `explain`.

use std::{collections::BTreeMap, io::Write, time::Duration};

use anyhow::Context;
use evenkeel_host::config::{PromDuration, format_bytes};
use serde::Serialize;

use crate::{
    clock::rfc3339,
    config::Config,
    journal::{self, Phase, Reader, Record, Shown, StepRecord},
    target::Kind,
    text::{printable, printable_json, printable_lines},
};

/// The remediations, newest first.
///
/// # Errors
/// When there is no state or it cannot be read.
pub fn history(
    config: &Config,
    rule: Option<&str>,
    target: Option<&str>,
    limit: u32,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let reader = open(config)?.with_context(|| no_state(config))?;
    let recent = reader.recent(rule, target, limit)?;
    if !json {
        return write(&reader, &recent, out);
    }
    for remediation in recent {
        let json = serde_json::to_string(&Full::read(&reader, &remediation)?)?;
        writeln!(out, "{}", printable_json(&json))?;
    }
    Ok(())
}

/// Remediations for people.
pub(crate) fn write(reader: &Reader, remediations: &[Record], out: &mut impl Write) -> anyhow::Result<()> {
    if remediations.is_empty() {
        writeln!(out, "nothing on record")?;
    }
    for remediation in remediations {
        whole(remediation, &reader.steps(remediation.id)?, out)?;
    }
    Ok(())
}

/// Opens the state for reading, if there is any yet.
pub(crate) fn open(config: &Config) -> anyhow::Result<Option<Reader>> {
    let reader = Reader::open_if_any(&config.places());
    reader.with_context(|| format!("cannot read the state in {}", config.state_dir.display()))
}

/// Where there is none.
pub(crate) fn no_state(config: &Config) -> String {
    let dir = config.state_dir.display();
    format!("there is no state yet in {dir}: evenkeel-remediator has not been started with this state.dir")
}

/// One remediation with all that is known of it, times in RFC 3339.
#[derive(Serialize)]
struct Full<'a> {
    #[serde(flatten)]
    remediation: &'a Record,
    steps: Vec<StepRecord>,
    /// What people were asked to approve of.
    shown: Vec<Shown>,
    events: Vec<BTreeMap<&'static str, String>>,
    received: String,
    ended: Option<String>,
    next_allowed: Option<String>,
}

impl<'a> Full<'a> {
    fn read(reader: &Reader, remediation: &'a Record) -> Result<Self, journal::Error> {
        let steps = reader.steps(remediation.id)?;
        let event = |(at, what, detail): (i64, String, String)| {
            BTreeMap::from([("at", rfc3339(at)), ("what", what), ("detail", detail)])
        };
        Ok(Self {
            remediation,
            steps,
            shown: reader.shown(remediation.id)?,
            events: reader.events(remediation.id)?.into_iter().map(event).collect(),
            received: rfc3339(remediation.received_wall_ms),
            ended: remediation.ended_wall_ms.map(rfc3339),
            next_allowed: remediation.next_allowed_wall_ms.map(rfc3339),
        })
    }
}

/// What a rule is about: `unit shop-api.service`; the host as a whole has no name of its own.
pub(crate) fn named(kind: &str, target: &str) -> String {
    if kind == Kind::Host.as_str() { "this host".to_owned() } else { printable(&format!("{kind} {target}")) }
}

/// How a remediation stands: its outcome, or what it is at.
pub(crate) fn standing(remediation: &Record) -> &'static str {
    match (remediation.outcome, remediation.phase, remediation.next_allowed_wall_ms) {
        (Some(outcome), ..) => outcome.as_str(),
        (None, Phase::Awaiting, _) => "waits for approval",
        (None, Phase::Received, Some(_)) => "held back",
        (None, Phase::Received, None) => "received",
        (None, Phase::Reserved, _) => "about to act",
        (None, Phase::Running, _) => "acting",
        (None, Phase::Verifying, _) => "verifying",
        (None, Phase::Ended, _) => "ended",
    }
}

/// The same with the word for why.
pub(crate) fn standing_and_why(remediation: &Record) -> String {
    let standing = standing(remediation);
    match remediation.reason.as_deref().filter(|reason| !reason.is_empty()) {
        Some(reason) => format!("{standing} ({})", printable(reason)),
        None => standing.to_owned(),
    }
}

/// When it ended, or since when it is open.
pub(crate) fn when(remediation: &Record) -> String {
    match remediation.ended_wall_ms {
        Some(ended) => rfc3339(ended),
        None => format!("since {}", rfc3339(remediation.received_wall_ms)),
    }
}

/// A remediation with its evidence, in the order in which it happened.
fn whole(remediation: &Record, steps: &[StepRecord], out: &mut impl Write) -> std::io::Result<()> {
    let Record { id, rule, kind, target, .. } = remediation;
    let (when, named, standing) = (when(remediation), named(kind, target), standing_and_why(remediation));
    writeln!(out, "#{id} {when}  {} on {named}: {standing}", printable(rule))?;
    if let Some(detail) = remediation.detail.as_deref().filter(|detail| !detail.is_empty()) {
        entry("why", &printable(detail), out)?;
    }
    entry("received", &received(remediation), out)?;
    if let Some(author) = &remediation.triggered_by {
        entry("triggered", &format!("by {}", printable(author)), out)?;
    }
    if let Some(seen) = &remediation.before {
        entry("before", &printable(&seen.summary()), out)?;
    }
    if let Some(author) = &remediation.decided_by {
        entry("decided", &format!("by {}", printable(author)), out)?;
    }
    for step in steps {
        describe(step, out)?;
    }
    if let Some(seen) = &remediation.after {
        entry("after", &printable(&seen.summary()), out)?;
    }
    if let Some(resolved) = remediation.resolved_wall_ms {
        entry("resolved", &format!("{}, says the alert", rfc3339(resolved)), out)?;
    }
    if let Some(author) = &remediation.acked_by {
        entry("looked at", &format!("by {}", printable(author)), out)?;
    }
    if let Some(next) = remediation.next_allowed_wall_ms {
        entry("next", &format!("not before {}", rfc3339(next)), out)?;
    }
    if remediation.phase == Phase::Awaiting && remediation.outcome.is_none() {
        for order in ["approve", "reject"] {
            entry(order, &format!("evenkeel-remediator {order} {id}"), out)?;
        }
    }
    writeln!(out)
}

/// One line of a remediation.
fn entry(name: &str, text: &str, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "    {name:<11}{text}")
}

fn received(remediation: &Record) -> String {
    let last = || rfc3339(remediation.last_seen_wall_ms);
    let alerts = match remediation.deliveries {
        // Taken up again after an earlier remediation of the same need.
        0 => format!("without a new alert, the last {}", last()),
        1 if remediation.triggered_by.is_some() => "by hand".to_owned(),
        1 => "one alert".to_owned(),
        n => format!("{n} alerts, the last {}", last()),
    };
    format!("{}, {alerts}", rfc3339(remediation.received_wall_ms))
}

fn describe(step: &StepRecord, out: &mut impl Write) -> std::io::Result<()> {
    let mut text = format!("{} [{}] {}", printable(&step.action), step.class.as_str(), step.state.as_str());
    if let Some(reason) = &step.reason {
        text += &format!(" ({})", printable(reason));
    }
    if let (Some(started), Some(ended)) = (step.started_wall_ms, step.ended_wall_ms) {
        let ms = u64::try_from(ended.saturating_sub(started)).unwrap_or(0);
        let took = if ms < 1000 { Duration::from_millis(ms) } else { Duration::from_secs(ms / 1000) };
        text += &format!(" in {}", PromDuration::new(took));
    }
    if let Some(detail) = step.detail.as_deref().filter(|detail| !detail.is_empty()) {
        // What a change of files changes has several lines.
        text += &format!(": {}", printable_lines(detail).replace('\n', "\n               "));
    }
    entry(&format!("step {}", step.position + 1), &text, out)?;
    entry("", &printable(&step.plan), out)?;
    if let Some(freed) = step.measured_freed_bytes {
        let claimed = step.claimed_freed_bytes.map_or_else(|| "nothing".to_owned(), signed);
        entry("", &format!("freed {} by the filesystem, the API claims {claimed}", signed(freed)), out)?;
    }
    Ok(())
}

/// Bytes that came free, or were taken.
pub(crate) fn signed(bytes: i64) -> String {
    let sign = if bytes < 0 { "−" } else { "" };
    format!("{sign}{}", format_bytes(bytes.unsigned_abs()))
}
