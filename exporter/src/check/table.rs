//! A check as text, markdown and JSON. Pure.

use std::{fmt::Write, time::SystemTime};

use evenkeel_host::config::format_bytes;

use super::baseline::{Baseline, Document};
use crate::expectations::{Bound, Measure, State, Verdict};

/// What is told.
pub(super) struct Report<'a> {
    pub(super) verdicts: &'a [Verdict],
    pub(super) before: Option<&'a Baseline>,
    pub(super) taken: SystemTime,
}

/// How text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Coloured,
}

/// One line of the table.
type Row = Vec<String>;

impl Report<'_> {
    /// Aligned columns, and below a line what it is about in particular.
    pub(super) fn text(&self, style: Style) -> String {
        if self.verdicts.is_empty() {
            return NOTHING.to_owned() + "\n";
        }
        let (head, rows) = (self.head(), self.rows());
        let width = |column: usize| {
            let cells = rows.iter().chain([&head]).map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let line = |row: &Row| -> String {
            let cells = row.iter().zip(&widths).map(|(cell, width)| {
                // Counted in characters, as the eye does.
                let padding = width - cell.chars().count();
                format!("{cell}{}", " ".repeat(padding))
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let mut out = line(&head) + "\n";
        for (row, verdict) in rows.iter().zip(self.verdicts) {
            let text = line(row);
            let text = match (style, verdict.state) {
                (Style::Plain, _) => text,
                (Style::Coloured, State::Met) => coloured(&text, GREEN, word(verdict.state)),
                (Style::Coloured, State::NotMet) => coloured(&text, RED, word(verdict.state)),
                (Style::Coloured, State::Unknown) => coloured(&text, YELLOW, word(verdict.state)),
            };
            out += &text;
            out.push('\n');
            for detail in told(verdict) {
                // Writing to a string never fails.
                let _ = writeln!(out, "    {detail}");
            }
        }
        out
    }

    /// A table as documents have it.
    pub(super) fn markdown(&self) -> String {
        if self.verdicts.is_empty() {
            return NOTHING.to_owned() + "\n";
        }
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut head = self.head();
        head.push("Details".to_owned());
        let mut out = line(&head);
        out += &line(&vec!["---".to_owned(); head.len()]);
        for (mut row, verdict) in self.rows().into_iter().zip(self.verdicts) {
            row.push(told(verdict).join("; "));
            let cells: Vec<String> = row.iter().map(|cell| in_markdown(cell)).collect();
            out += &line(&cells);
        }
        out
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        let document = Document::new(self.verdicts, self.taken);
        // Every number in it is finite, and every key a text.
        serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
    }

    fn head(&self) -> Row {
        let before = self.before.map(|_| "Before");
        let columns = [Some("Expectation"), Some("Target"), before, Some("Result"), Some("Status")];
        columns.into_iter().flatten().map(str::to_owned).collect()
    }

    fn rows(&self) -> Vec<Row> {
        let row = |verdict: &Verdict| {
            let mut row = vec![verdict.title.clone(), target(verdict)];
            if let Some(before) = self.before {
                let before = before.of(verdict);
                row.push(before.map_or_else(
                    || "-".to_owned(),
                    |before| before.value.map_or_else(unknown, |value| number(value, before.measure)),
                ));
            }
            row.push(verdict.value.map_or_else(unknown, |value| number(value, verdict.measure)));
            row.push(word(verdict.state).to_owned());
            row
        };
        self.verdicts.iter().map(row).collect()
    }
}

const NOTHING: &str = "nothing is expected of this host that could be looked at here";

const GREEN: &str = "32";
const RED: &str = "1;31";
const YELLOW: &str = "33";

fn word(state: State) -> &'static str {
    match state {
        State::Met => "met",
        State::NotMet => "NOT MET",
        State::Unknown => "unknown",
    }
}

fn unknown() -> String {
    "?".to_owned()
}

/// Only the last word of a line has a colour.
fn coloured(line: &str, colour: &str, word: &str) -> String {
    let rest = line.strip_suffix(word).unwrap_or(line);
    format!("{rest}\u{1b}[{colour}m{word}\u{1b}[0m")
}

/// What a person wants to know besides the number: of what is met only what the number is about.
fn told(verdict: &Verdict) -> &[String] {
    match verdict.state {
        State::Met if verdict.measure != Measure::Ratio => &[],
        _ => &verdict.details,
    }
}

fn target(verdict: &Verdict) -> String {
    let bound = number(verdict.bound.value(), verdict.measure);
    match verdict.bound {
        Bound::AtMost(0.0) => bound,
        Bound::AtMost(_) => format!("≤ {bound}"),
        Bound::AtLeast(_) => format!("≥ {bound}"),
    }
}

fn number(value: f64, measure: Measure) -> String {
    match measure {
        Measure::Count => format!("{value:.0}"),
        Measure::Ratio => {
            let percent = format!("{:.1}", value * 100.0);
            format!("{} %", percent.strip_suffix(".0").unwrap_or(&percent))
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        Measure::Bytes => format_bytes(value as u64),
    }
}

/// Text that means nothing to markdown.
fn in_markdown(cell: &str) -> String {
    let mut out = String::with_capacity(cell.len());
    for c in cell.chars() {
        if matches!(c, '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(title: &str, state: State, value: Option<f64>, bound: Bound, measure: Measure) -> Verdict {
        Verdict {
            name: title.replace(' ', "_"),
            title: title.into(),
            state,
            value,
            bound,
            measure,
            details: Vec::new(),
            is_pending: false,
        }
    }

    /// The host of the operations documents, before.
    fn before() -> Vec<Verdict> {
        let at_most = Bound::AtMost;
        vec![
            Verdict {
                details: vec!["quantum-ai-engine.service: not-found".into()],
                ..verdict("failed units", State::NotMet, Some(1.0), at_most(0.0), Measure::Count)
            },
            verdict(
                "running quantum-*.service",
                State::Met,
                Some(12.0),
                Bound::AtLeast(12.0),
                Measure::Count,
            ),
            Verdict {
                details: vec!["/".into()],
                ..verdict("disk usage", State::NotMet, Some(0.91), at_most(0.85), Measure::Ratio)
            },
            verdict("build cache", State::NotMet, Some(13.59e9), at_most(1e9), Measure::Bytes),
            Verdict {
                details: vec!["the engine did not say".into()],
                ..verdict("restarts of a container a day", State::Unknown, None, at_most(3.0), Measure::Count)
            },
        ]
    }

    fn report<'a>(verdicts: &'a [Verdict], before: Option<&'a Baseline>) -> Report<'a> {
        Report { verdicts, before, taken: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn columns_are_aligned_and_details_stand_below() {
        assert_eq!(
            report(&before(), None).text(Style::Plain),
            "\
Expectation                    Target    Result   Status
failed units                   0         1        NOT MET
    quantum-ai-engine.service: not-found
running quantum-*.service      ≥ 12      12       met
disk usage                     ≤ 85 %    91 %     NOT MET
    /
build cache                    ≤ 1.0 GB  13.6 GB  NOT MET
restarts of a container a day  ≤ 3       ?        unknown
    the engine did not say
"
        );
    }

    #[test]
    fn only_the_status_has_a_colour() {
        let text = report(&before(), None).text(Style::Coloured);
        assert!(text.contains("13.6 GB  \u{1b}[1;31mNOT MET\u{1b}[0m\n"), "{text}");
        assert!(text.contains("12       \u{1b}[32mmet\u{1b}[0m\n"), "{text}");
        assert_eq!(text.matches("\u{1b}[").count(), 2 * 5);
    }

    #[test]
    fn a_baseline_adds_how_it_was() {
        let earlier = Baseline::parse(report(&before(), None).json().as_bytes()).expect("its own JSON");
        let mut after = before();
        (after[2].state, after[2].value) = (State::Met, Some(0.82));
        (after[3].state, after[3].value) = (State::Met, Some(44_910_000.0));
        after.push(verdict("journal", State::Met, Some(1e9), Bound::AtMost(4e9), Measure::Bytes));
        let text = report(&after, Some(&earlier)).text(Style::Plain);
        for line in [
            "disk usage                     ≤ 85 %    91 %     82 %     met\n    /\n",
            "build cache                    ≤ 1.0 GB  13.6 GB  44.9 MB  met\n",
            "restarts of a container a day  ≤ 3       ?        ?        unknown\n",
            "journal                        ≤ 4.0 GB  -        1.0 GB   met\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn markdown_is_a_table_whatever_names_hold() {
        let odd = Verdict {
            details: vec!["a|b`c.service".into()],
            ..verdict("failed units", State::NotMet, Some(1.0), Bound::AtMost(0.0), Measure::Count)
        };
        assert_eq!(
            report(&[odd], None).markdown(),
            "| Expectation | Target | Result | Status | Details |\n\
             | --- | --- | --- | --- | --- |\n\
             | failed units | 0 | 1 | NOT MET | a\\|b\\`c.service |\n"
        );
    }

    #[test]
    fn json_says_met_only_where_somebody_knows() {
        let json: serde_json::Value = serde_json::from_str(&report(&before(), None).json()).expect("JSON");
        let rows = json["expectations"].as_array().expect("a list");
        assert_eq!((rows[0]["met"].as_bool(), rows[1]["met"].as_bool()), (Some(false), Some(true)));
        assert!(rows[4].get("met").is_none() && rows[4].get("value").is_none(), "{json}");
        assert_eq!(rows[3]["measure"], "bytes");
        assert_eq!(rows[1]["comparison"], "at_least");
    }

    #[test]
    fn nothing_expected_is_said() {
        assert_eq!(report(&[], None).text(Style::Plain), format!("{NOTHING}\n"));
        assert_eq!(report(&[], None).markdown(), format!("{NOTHING}\n"));
    }
}
