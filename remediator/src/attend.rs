//! `--wait`: stays with one remediation until it has ended or stops without the daemon's doing, shows on a terminal what it is
//! at, and then says all of it. Reads the state, and changes nothing.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::Context;
use evenkeel_host::progress::{Progress, since};
use tokio::time::sleep;

use crate::{
    clock::rfc3339,
    config::Config,
    history,
    journal::{Phase, Reader, Record, StepState},
    outcome::Outcome,
};

/// Between two looks into the state.
const PACE: Duration = Duration::from_millis(250);

/// How it went, for the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The target is well, or all that was asked for was to tell of it.
    Well,
    /// It was tried, and the target is not well.
    Unwell,
    /// Nothing was done, or not yet: a plan, a limit, a person who has not said yes.
    Undone,
}

/// Which remediation a text of the daemon's is about: `… is opened #12: …`.
pub fn number(said: &str) -> Option<i64> {
    let (_, after) = said.split_once('#')?;
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Stays with it. Where the daemon has not said its number, because it had ended by then, or where it has only repeated the
/// one before and was folded into that, it is the rule's newest.
///
/// # Errors
/// When the state cannot be read, has no such remediation, or `out` is closed.
pub async fn attend(
    config: &Config,
    number: Option<i64>,
    rule: Option<&str>,
    out: &mut impl Write,
) -> anyhow::Result<Verdict> {
    let began = Instant::now();
    let mut progress = Progress::new();
    let mut rule = rule.map(str::to_owned);
    loop {
        let reader = history::open(config)?.with_context(|| history::no_state(config))?;
        let record = match (number.map(|number| reader.one(number)).transpose()?.flatten(), &rule) {
            (None, Some(rule)) => reader.recent(Some(rule.as_str()), None, 1)?.pop(),
            (record, _) => record,
        };
        let record = record.context("it is not on record: evenkeel-remediator history shows what is")?;
        if let Some(verdict) = verdict(&record) {
            progress.clear();
            history::write(&reader, &[record], out)?;
            return Ok(verdict);
        }
        rule.get_or_insert_with(|| record.rule.clone());
        progress.show(&words(&reader, &record, began.elapsed())?);
        sleep(PACE).await;
    }
}

/// What it has come to; `None` while the daemon is at it.
fn verdict(record: &Record) -> Option<Verdict> {
    use Outcome::{
        Blocked, Failed, Ignored, Ineffective, Limited, NotNeeded, Partial, Planned, Reported, Succeeded,
        Unknown,
    };
    match (record.outcome, record.phase, record.next_allowed_wall_ms) {
        (Some(Succeeded | NotNeeded | Reported), ..) => Some(Verdict::Well),
        (Some(Partial | Ineffective | Failed | Unknown), ..) => Some(Verdict::Unwell),
        (Some(Planned | Limited | Blocked | Ignored), ..) => Some(Verdict::Undone),
        (None, Phase::Awaiting, _) | (None, Phase::Received, Some(_)) => Some(Verdict::Undone),
        (None, ..) => None,
    }
}

/// What it is at.
fn words(reader: &Reader, record: &Record, elapsed: Duration) -> anyhow::Result<String> {
    let steps = reader.steps(record.id)?;
    let step = steps.iter().rfind(|step| step.state == StepState::Running);
    let step = step.map_or_else(String::new, |step| {
        let since = step.started_wall_ms.map_or_else(String::new, |at| format!(" since {}", rfc3339(at)));
        format!(": {}{since}", step.action)
    });
    let about = history::named(&record.kind, &record.target);
    Ok(format!("{}  #{} {about}: {}{step}", since(elapsed), record.id, history::standing_and_why(record)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_number_is_read_from_what_the_daemon_says() {
        assert_eq!(
            number("disk-high on filesystem / is opened #12: its need, gates and limits decide"),
            Some(12)
        );
        assert_eq!(number("disk-high on filesystem / is open already #7"), Some(7));
        for said in ["a on host is opened: its need", "#", "#x", "#99999999999999999999"] {
            assert_eq!(number(said), None, "{said}");
        }
    }
}
