//! The table that a run prints.

use std::{fmt::Write as _, time::Duration};

/// One line of it.
pub(crate) struct Row {
    what: String,
    measured: String,
    beside: String,
    goal: String,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, measured: impl Into<String>) -> Self {
        Self { what: what.into(), measured: measured.into(), beside: String::new(), goal: String::new() }
    }

    /// What the same run measured beside it: the floor, the peers.
    pub(crate) fn beside(mut self, beside: impl Into<String>) -> Self {
        self.beside = beside.into();
        self
    }

    /// A figure that should not be above `limit`.
    pub(crate) fn at_most(mut self, value: f64, limit: f64, unit: &str) -> Self {
        self.goal = judged(format!("≤ {limit} {unit}"), value <= limit, value - limit, unit);
        self
    }

    /// A figure that should not be below `limit`.
    pub(crate) fn at_least(mut self, value: f64, limit: f64, unit: &str) -> Self {
        self.goal = judged(format!("≥ {limit} {unit}"), value >= limit, limit - value, unit);
        self
    }

    /// A fact that should hold.
    pub(crate) fn must(mut self, goal: &str, holds: bool) -> Self {
        self.goal = format!("{goal}: {}", if holds { "met" } else { "missed" });
        self
    }
}

fn judged(goal: String, met: bool, by: f64, unit: &str) -> String {
    if met { format!("{goal}: met") } else { format!("{goal}: missed by {} {unit}", short(by)) }
}

/// As Markdown.
pub(crate) fn table(rows: &[Row]) -> String {
    format!("| What | Measured | Beside it, in the same run | Goal |\n|---|---|---|---|\n{}", lines(rows))
}

/// The lines alone.
pub(crate) fn lines(rows: &[Row]) -> String {
    let mut text = String::new();
    for Row { what, measured, beside, goal } in rows {
        // Writing to a string never fails.
        let _ = writeln!(text, "| {what} | {measured} | {beside} | {goal} |");
    }
    text
}

/// A number with as many digits as mean something.
pub(crate) fn short(number: f64) -> String {
    match number.abs() {
        size if size < 10.0 => format!("{number:.2}"),
        size if size < 100.0 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    }
}

/// `12.3 ms`.
pub(crate) fn ms(milliseconds: f64) -> String {
    format!("{} ms", short(milliseconds))
}

/// The `q`-quantile of some durations, in milliseconds.
pub(crate) fn quantile(durations: &mut [Duration], q: f64) -> f64 {
    durations.sort_unstable();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let position = ((durations.len() as f64 * q).ceil() as usize).clamp(1, durations.len()) - 1;
    durations[position].as_secs_f64() * 1000.0
}

/// `p50 1.2 ms, p99 3.4 ms`.
pub(crate) fn quantiles(durations: &mut [Duration]) -> String {
    let (half, most) = (quantile(durations, 0.5), quantile(durations, 0.99));
    format!("p50 {}, p99 {}", ms(half), ms(most))
}
