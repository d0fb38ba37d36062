//! How it was before: the JSON of an earlier check, written here and read here.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::expectations::{Bound, Measure, State, Verdict};

/// What is written is of this form.
const VERSION: u32 = 1;

/// No check is a tenth as long.
const LARGEST: u64 = 4 << 20;

/// A check as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Document {
    version: u32,
    /// When, in seconds since 1970.
    taken_seconds: u64,
    expectations: Vec<Row>,
}

/// One expectation.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    expectation: String,
    title: String,
    /// Absent where nobody can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<f64>,
    bound: f64,
    comparison: Comparison,
    measure: Unit,
    details: Vec<String>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Comparison {
    AtMost,
    AtLeast,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Unit {
    Count,
    Ratio,
    Bytes,
}

impl Document {
    pub(super) fn new(verdicts: &[Verdict], taken: SystemTime) -> Self {
        let row = |verdict: &Verdict| Row {
            expectation: verdict.name.clone(),
            title: verdict.title.clone(),
            met: match verdict.state {
                State::Met => Some(true),
                State::NotMet => Some(false),
                State::Unknown => None,
            },
            value: verdict.value,
            bound: verdict.bound.value(),
            comparison: match verdict.bound {
                Bound::AtMost(_) => Comparison::AtMost,
                Bound::AtLeast(_) => Comparison::AtLeast,
            },
            measure: match verdict.measure {
                Measure::Count => Unit::Count,
                Measure::Ratio => Unit::Ratio,
                Measure::Bytes => Unit::Bytes,
            },
            details: verdict.details.clone(),
        };
        let taken_seconds = taken.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { version: VERSION, taken_seconds, expectations: verdicts.iter().map(row).collect() }
    }
}

/// What an earlier check found.
#[derive(Debug, PartialEq)]
pub struct Baseline(BTreeMap<String, Before>);

/// What it found of one expectation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Before {
    pub(super) value: Option<f64>,
    pub(super) measure: Measure,
}

/// Why a file is no earlier check.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {why}: give a file that `evenkeel-exporter check --format json` has written")]
pub struct BaselineError {
    origin: String,
    why: String,
}

impl Baseline {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is no earlier check.
    pub fn load(path: &Path) -> Result<Self, BaselineError> {
        let refuse = |why: String| BaselineError { origin: path.display().to_string(), why };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|error| refuse(format!("cannot read the file: {error}")))?;
        let read = file.take(LARGEST + 1).read_to_end(&mut bytes);
        read.map_err(|error| refuse(format!("cannot read the file: {error}")))?;
        if bytes.len() as u64 > LARGEST {
            return Err(refuse(format!("it is larger than {LARGEST} bytes")));
        }
        Self::parse(&bytes).map_err(refuse)
    }

    /// Reads what was written.
    ///
    /// # Errors
    /// In words, when it is no earlier check.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let document: Document =
            serde_json::from_slice(bytes).map_err(|error| format!("this is no check ({error})"))?;
        if document.version != VERSION {
            return Err(format!("its version is {}, and this one knows {VERSION}", document.version));
        }
        let before = |row: Row| {
            let measure = match row.measure {
                Unit::Count => Measure::Count,
                Unit::Ratio => Measure::Ratio,
                Unit::Bytes => Measure::Bytes,
            };
            (row.expectation, Before { value: row.value, measure })
        };
        Ok(Self(document.expectations.into_iter().map(before).collect()))
    }

    pub(super) fn of(&self, verdict: &Verdict) -> Option<Before> {
        self.0.get(&verdict.name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_check_is_refused_in_words() {
        for (text, says) in [
            ("", "this is no check (EOF while parsing"),
            ("[]", "this is no check ("),
            (
                "{\"version\": 2, \"taken_seconds\": 0, \"expectations\": []}",
                "its version is 2, and this one knows 1",
            ),
            ("{\"version\": 1, \"taken_seconds\": 0, \"expectations\": [{}]}", "missing field `expectation`"),
        ] {
            let error = Baseline::parse(text.as_bytes()).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
        let error = Baseline::load(Path::new("/no/such/file")).expect_err("nothing there").to_string();
        assert_eq!(
            error,
            "/no/such/file: cannot read the file: No such file or directory (os error 2): give a file that \
             `evenkeel-exporter check --format json` has written"
        );
    }
}
