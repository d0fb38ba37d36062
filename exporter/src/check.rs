//! `evenkeel-exporter check`: the expectations of this host, judged from one live look and told as a table. A look is taken
//! twice, a few seconds apart, because only that shows which services loop.

mod baseline;
mod graph;
mod table;

use std::{
    io::IsTerminal,
    time::{Duration, SystemTime},
};

use evenkeel_host::{config::PromDuration, progress::Progress, systemd::Systemd};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub use self::baseline::{Baseline, BaselineError};
use self::table::{Report, Style};
use crate::{
    cli::{Check, Format},
    collectors,
    config::Options,
    expectations::{APART, State, Verdict},
    scrape::{Budget, Scraper},
};

/// Everything that is expected is true.
const ALL_MET: u8 = 0;
/// Something is not.
const NOT_MET: u8 = 1;
/// Something cannot be told, and nothing that can be is wrong.
const CANNOT_TELL: u8 = 2;

/// How long one look may take. Nobody scrapes, a person waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait for what the engine has to count first.
const WAIT: Duration = Duration::from_secs(60);

/// What came of it.
#[derive(Debug)]
pub struct Answer {
    /// What was asked for.
    pub text: String,
    /// Why it could not be told, for people.
    pub trouble: Option<String>,
    /// The exit code.
    pub code: u8,
}

/// Looks and judges, or draws.
pub async fn run(options: Options, flags: &Check, before: Option<&Baseline>) -> Answer {
    if flags.graph {
        return match graph::draw(&Systemd::system(), &options.config.systemd).await {
            Ok(text) => Answer { text, trouble: None, code: ALL_MET },
            Err(error) => {
                Answer { text: String::new(), trouble: Some(format!("{error:#}")), code: CANNOT_TELL }
            }
        };
    }
    let verdicts = look(options).await;
    let report = Report { verdicts: &verdicts, before, taken: SystemTime::now() };
    let text = match flags.format {
        Format::Text => report.text(style()),
        Format::Markdown => report.markdown(),
        Format::Json => report.json(),
    };
    Answer { text, trouble: None, code: exit_code(&verdicts) }
}

/// Colours for people who have not said that they want none (no-color.org).
fn style() -> Style {
    let wants_none = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if std::io::stdout().is_terminal() && !wants_none { Style::Coloured } else { Style::Plain }
}

/// Two looks, and more where the engine needs longer for an answer.
async fn look(mut options: Options) -> Vec<Verdict> {
    // Nothing but the build cache is expected anything of, and the engine walks the disk for some of the rest.
    let usage = &mut options.config.docker.disk_usage;
    let never = PromDuration::default();
    (usage.images, usage.volumes, usage.containers) = (never, never, never);
    let Some(expectations) = crate::expectations(&options) else { return Vec::new() };
    let shutdown = CancellationToken::new();
    let _ended = shutdown.clone().drop_guard();
    let collectors = collectors::build(&options, &shutdown);
    let scraper = Scraper::new(collectors, Some(expectations), options.web.security.clone());
    let begun = Instant::now();
    let mut progress = Progress::new();
    progress.show("looking");
    scraper.verdicts(budget()).await;
    progress.show(&format!("looking again in {} s: only that shows which services loop", APART.as_secs()));
    sleep(APART).await;
    let mut verdicts = scraper.verdicts(budget()).await;
    while verdicts.iter().any(|verdict| verdict.is_pending) && begun.elapsed() < WAIT {
        progress.show(&format!("waiting for the engine to count, for {} s at most", WAIT.as_secs()));
        sleep(Duration::from_secs(1)).await;
        verdicts = scraper.verdicts(budget()).await;
    }
    verdicts
}

fn budget() -> Budget {
    let deadline = Instant::now() + PATIENCE;
    Budget { deadline, cut: deadline + Duration::from_millis(100) }
}

fn exit_code(verdicts: &[Verdict]) -> u8 {
    let is = |state| verdicts.iter().any(|verdict| verdict.state == state);
    if is(State::NotMet) {
        NOT_MET
    } else if is(State::Unknown) || verdicts.is_empty() {
        CANNOT_TELL
    } else {
        ALL_MET
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expectations::{Bound, Measure};

    fn verdict(state: State) -> Verdict {
        Verdict {
            name: "failed_units".into(),
            title: "failed units".into(),
            state,
            value: None,
            bound: Bound::AtMost(0.0),
            measure: Measure::Count,
            details: Vec::new(),
            is_pending: false,
        }
    }

    #[test]
    fn what_is_not_met_weighs_more_than_what_cannot_be_told() {
        for (states, code) in [
            (&[State::Met, State::Met][..], ALL_MET),
            (&[State::Met, State::NotMet], NOT_MET),
            (&[State::Unknown, State::Met], CANNOT_TELL),
            (&[State::Unknown, State::NotMet], NOT_MET),
            (&[], CANNOT_TELL),
        ] {
            let verdicts: Vec<Verdict> = states.iter().map(|state| verdict(*state)).collect();
            assert_eq!(exit_code(&verdicts), code, "{states:?}");
        }
    }
}
