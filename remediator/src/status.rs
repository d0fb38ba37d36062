//! `status` and `history`: what the journal holds, for people and as JSON lines. Read-only, also while the daemon runs.

use std::{collections::BTreeMap, io::Write};

use anyhow::Context;
use evenkeel_host::config::{PromDuration, format_bytes};
use serde::Serialize;

use crate::{
    admission::{self, Breaker, Scope},
    clock::{Clock, Moment, rfc3339},
    config::Config,
    journal::{HaltKind, Phase, Reader, Record, StepRecord},
    policy::Class,
    text::shell_word,
};

/// What is open, what was done last, and what the limits leave.
///
/// # Errors
/// When there is no state or it cannot be read.
pub fn status(config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    let reader = open(config)?;
    let clock = Clock::default();
    let now = reader.on_timeline(&clock.now())?;
    writeln!(
        out,
        "host {}, mode {}, deletion {}, {} rules",
        config.hosts.join(", "),
        config.mode.as_str(),
        config.deletion.as_str(),
        config.rules.len()
    )?;
    state(config, &reader, out)?;
    halts(&reader, &now, out)?;
    let open = reader.open_remediations()?;
    writeln!(out, "\nopen: {}", if open.is_empty() { "none".to_owned() } else { open.len().to_string() })?;
    for remediation in &open {
        writeln!(out, "  {}", line(remediation))?;
        if remediation.phase == Phase::Awaiting {
            let id = remediation.id;
            writeln!(
                out,
                "      evenkeel-remediator approve {id}, or reject {id}; explain says what it would do"
            )?;
        }
    }
    writeln!(out, "\nlast:")?;
    let recent = reader.newest_ended(10)?;
    if recent.is_empty() {
        writeln!(out, "  none yet")?;
    }
    for remediation in &recent {
        writeln!(out, "  {}", line(remediation))?;
    }
    writeln!(out, "\nlimits of this host (used of admitted):")?;
    for class in [Class::S1, Class::S2, Class::D1, Class::D2] {
        let budget = reader.budget(&Scope::Class(class), config.limits.class(class))?;
        let used = budget.used(&now);
        if !used.is_empty() {
            let windows: Vec<String> = used
                .iter()
                .map(|(limit, used)| {
                    format!("{used} of {} in {}", limit.count, PromDuration::new(limit.window))
                })
                .collect();
            let full = admission::limits(&[budget], &now).err().map_or_else(String::new, |refusal| {
                format!("; the next one {}", rfc3339(clock.now().wall_after(refusal.wait)))
            });
            writeln!(out, "  {}  {}{full}", class.as_str(), windows.join(", "))?;
        }
    }
    for rule in &config.rules {
        for (kind, target, state) in reader.breakers(&rule.name, &rule.restraint, &now)? {
            if state != Breaker::Closed {
                let ack = format!("evenkeel-remediator ack {} {}", rule.name, shell_word(&target));
                let means = match state {
                    Breaker::Open => format!("open, the tries did not help; after a look: {ack}"),
                    _ => "half open, one try is admitted and decides".to_owned(),
                };
                writeln!(out, "\nbreaker of {} on {kind} {target}: {means}", rule.name)?;
            }
        }
    }
    Ok(())
}

/// What is wrong with the state itself.
fn state(config: &Config, reader: &Reader, out: &mut impl Write) -> anyhow::Result<()> {
    let places = config.places();
    if places.in_use() != places.dir {
        writeln!(
            out,
            "STATE DEGRADED: {} cannot be written; until the next start that can, the state lies in {} and is gone with a reboot",
            places.dir.display(),
            places.in_use().display()
        )?;
    }
    if let Some(loss) = reader.loss()? {
        writeln!(
            out,
            "the state was lost {}: {}; until each window has passed since, its limit counts as used up",
            rfc3339(loss.wall_ms),
            loss.why
        )?;
    }
    Ok(())
}

/// Why nothing is begun, where that is so.
pub(crate) fn halts(reader: &Reader, now: &Moment, out: &mut impl Write) -> anyhow::Result<()> {
    for halt in reader.halts(now)? {
        let what = match halt.what {
            HaltKind::Pause => format!("PAUSED by {}", halt.author),
            HaltKind::Storm => "STORM".to_owned(),
        };
        let until = halt.left.map_or_else(
            || "until somebody resumes".to_owned(),
            |left| format!("until {}", rfc3339(Clock::default().now().wall_after(left))),
        );
        writeln!(out, "{what} since {}, {until}: {}", rfc3339(halt.since_wall_ms), halt.reason)?;
    }
    Ok(())
}

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
    let reader = open(config)?;
    for remediation in reader.recent(rule, target, limit)? {
        let steps = reader.steps(remediation.id)?;
        if json {
            let events = reader.events(remediation.id)?;
            serde_json::to_writer(&mut *out, &Full::new(&remediation, steps, events))?;
            writeln!(out)?;
        } else {
            whole(&remediation, &steps, out)?;
        }
    }
    Ok(())
}

/// One remediation with all that is known of it, times in RFC 3339.
#[derive(Serialize)]
struct Full<'a> {
    #[serde(flatten)]
    remediation: &'a Record,
    steps: Vec<StepRecord>,
    events: Vec<BTreeMap<&'static str, String>>,
    received: String,
    ended: Option<String>,
    next_allowed: Option<String>,
}

impl<'a> Full<'a> {
    fn new(remediation: &'a Record, steps: Vec<StepRecord>, events: Vec<(i64, String, String)>) -> Self {
        let event = |(at, what, detail): (i64, String, String)| {
            BTreeMap::from([("at", rfc3339(at)), ("what", what), ("detail", detail)])
        };
        Self {
            remediation,
            steps,
            events: events.into_iter().map(event).collect(),
            received: rfc3339(remediation.received_wall_ms),
            ended: remediation.ended_wall_ms.map(rfc3339),
            next_allowed: remediation.next_allowed_wall_ms.map(rfc3339),
        }
    }
}

/// Opens the state for reading.
fn open(config: &Config) -> anyhow::Result<Reader> {
    Reader::open(config.places().in_use()).with_context(|| {
        format!(
            "cannot read the state in {}; has evenkeel-remediator been started with this state.dir?",
            config.state_dir.display()
        )
    })
}

/// A remediation in one line.
pub(crate) fn line(remediation: &Record) -> String {
    let ended = remediation.ended_wall_ms.map_or_else(|| "now".to_owned(), rfc3339);
    let standing = match remediation.outcome {
        Some(outcome) => outcome.as_str(),
        None if remediation.next_allowed_wall_ms.is_some() => "waiting",
        None => remediation.phase.as_str(),
    };
    let mut text = format!(
        "#{} {ended}  {} {} {}  {standing}",
        remediation.id, remediation.rule, remediation.kind, remediation.target
    );
    if let Some(reason) = remediation.reason.as_deref().filter(|reason| !reason.is_empty()) {
        text += &format!(" ({reason})");
    }
    if let Some(next) = remediation.next_allowed_wall_ms {
        text += &format!(", next allowed {}", rfc3339(next));
    }
    text
}

/// A remediation with its evidence.
pub(crate) fn whole(remediation: &Record, steps: &[StepRecord], out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{}", line(remediation))?;
    let deliveries = match remediation.deliveries {
        // Taken up again after an earlier remediation of the same need.
        0 => format!("without a new alert, the last {}", rfc3339(remediation.last_seen_wall_ms)),
        1 => "one alert".to_owned(),
        n => format!("{n} alerts, the last {}", rfc3339(remediation.last_seen_wall_ms)),
    };
    writeln!(out, "    received {}, {deliveries}", rfc3339(remediation.received_wall_ms))?;
    for (what, author) in
        [("decided by", &remediation.decided_by), ("acknowledged by", &remediation.acked_by)]
    {
        if let Some(author) = author {
            writeln!(out, "    {what} {author}")?;
        }
    }
    if let Some(resolved) = remediation.resolved_wall_ms {
        writeln!(out, "    the alert said resolved {}", rfc3339(resolved))?;
    }
    for (when, seen) in [("before", &remediation.before), ("after ", &remediation.after)] {
        if let Some(seen) = seen {
            writeln!(out, "    {when}  {}", seen.summary())?;
        }
    }
    for step in steps {
        write!(out, "    {} [{}] {}", step.action, step.class.as_str(), step.state.as_str())?;
        if let Some(reason) = &step.reason {
            write!(out, " ({reason})")?;
        }
        if let Some(detail) = step.detail.as_deref().filter(|detail| !detail.is_empty()) {
            write!(out, ": {detail}")?;
        }
        writeln!(out)?;
        writeln!(out, "        {}", step.plan)?;
        if let Some(freed) = step.measured_freed_bytes {
            let claimed = step.claimed_freed_bytes.map_or_else(|| "nothing".to_owned(), bytes);
            writeln!(out, "        freed {} by the filesystem, the API claims {claimed}", bytes(freed))?;
        }
    }
    if let Some(detail) = remediation.detail.as_deref().filter(|detail| !detail.is_empty()) {
        writeln!(out, "    {detail}")?;
    }
    writeln!(out)
}

fn bytes(count: i64) -> String {
    let sign = if count < 0 { "−" } else { "" };
    format!("{sign}{}", format_bytes(count.unsigned_abs()))
}
