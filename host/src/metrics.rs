//! Metrics as values, and written down: made fresh from a snapshot, so that nothing that vanished stays exported, and
//! written once, however often they are asked for.
//! Not here: what a client wants (`web::exposition`) and what any metric means (the collectors).

mod block;
mod classic;
mod draft;
pub mod gzip;
mod labels;
mod process;
#[cfg(any(test, feature = "read-back"))]
mod read_back;
mod renewed;
mod text;

use std::time::{SystemTime, UNIX_EPOCH};

pub use self::{
    block::{Block, Format},
    draft::{Draft, Samples},
    labels::Labels,
    process::process,
    renewed::Renewed,
};

/// All samples of one metric name.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// The exposed name; a counter's ends in `_total`.
    pub name: &'static str,
    /// One sentence. It is written raw: no backslash, no newline.
    pub help: &'static str,
    /// What the values are.
    pub kind: Kind,
    /// One for each label set.
    pub samples: Vec<Sample>,
}

/// The kinds evenkeel publishes from snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// May go up and down.
    Gauge,
    /// Only goes up, or restarts from zero.
    Counter,
}

/// One label set and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// What tells it from the others of its family.
    pub labels: Labels,
    /// In base units: seconds, bytes, ratios.
    pub value: f64,
}

impl Family {
    /// An empty gauge.
    pub fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Gauge, samples: Vec::new() }
    }

    /// An empty counter; `name` ends in `_total`.
    pub fn counter(name: &'static str, help: &'static str) -> Self {
        debug_assert!(name.ends_with("_total"), "{name}: counters end in _total");
        Self { name, help, kind: Kind::Counter, samples: Vec::new() }
    }

    /// Adds one sample.
    pub fn sample(&mut self, labels: &[(&'static str, &str)], value: f64) {
        self.sample_of(Labels::new(labels), value);
    }

    /// Adds one sample with labels that others may have too.
    pub fn sample_of(&mut self, labels: Labels, value: f64) {
        self.samples.push(Sample { labels, value });
    }

    /// Adds one sample of a point in time, in seconds since the epoch; nothing for a time that is not known.
    pub fn timestamp(&mut self, labels: &[(&'static str, &str)], time: Option<SystemTime>) {
        if let Some(since) = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()) {
            self.sample(labels, since.as_secs_f64());
        }
    }

    /// The same family with one sample more; for families of one sample.
    #[must_use]
    pub fn with(mut self, labels: &[(&'static str, &str)], value: f64) -> Self {
        self.sample(labels, value);
        self
    }
}
