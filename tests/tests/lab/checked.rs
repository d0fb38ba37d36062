//! What `evenkeel-exporter check` and a scrape say of what is expected of a host.

use anyhow::{Context, Result, ensure};
use evenkeel_tests::exposition::Exposition;
use serde_json::Value;

/// What `check --format json` said, and how it ended.
pub(crate) struct Checked {
    pub(crate) code: i32,
    pub(crate) json: Value,
}

impl Checked {
    pub(crate) fn of(code: i32, text: &str) -> Result<Self> {
        let json = serde_json::from_str(text).with_context(|| format!("no JSON: {text}"))?;
        Ok(Self { code, json })
    }

    pub(crate) fn row(&self, expectation: &str) -> Result<&Value> {
        let rows = self.json["expectations"].as_array().context("no rows")?;
        let row = rows.iter().find(|row| row["expectation"] == expectation);
        row.with_context(|| format!("no {expectation} in {}", self.json))
    }

    /// That an expectation is met or not, or that nobody can tell, with this value.
    pub(crate) fn says(&self, expectation: &str, met: Option<bool>, value: Option<f64>) -> Result<()> {
        let row = self.row(expectation)?;
        let said = (row["met"].as_bool(), row["value"].as_f64());
        ensure!(said == (met, value), "{expectation}: {row}");
        Ok(())
    }

    pub(crate) fn details(&self, expectation: &str) -> Result<Vec<&str>> {
        let details = self.row(expectation)?["details"].as_array().context("no details")?;
        Ok(details.iter().filter_map(Value::as_str).collect())
    }
}

/// The same in a scrape.
pub(crate) fn scrape_says(
    page: &Exposition,
    expectation: &str,
    met: Option<bool>,
    value: Option<f64>,
) -> Result<()> {
    let labels = [("expectation", expectation)];
    let of = |metric: &str| page.value(metric, &labels);
    let said = (
        of("evenkeel_expectation_met").map(|met| met > 0.0),
        of("evenkeel_expectation_value"),
        of("evenkeel_expectation_unknown"),
    );
    let expected = (met, value, Some(f64::from(u8::from(met.is_none()))));
    ensure!(said == expected, "{expectation}: {said:?}, expected {expected:?}");
    Ok(())
}
