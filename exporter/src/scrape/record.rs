//! What became of the looks of one collector, since the start and last.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tracing::{info, warn};

use super::slot::{Ending, Sighting};

/// What is known of a collector's last look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The collector.
    pub name: &'static str,
    /// How it went, `None` before the first look.
    pub last: Option<Last>,
}

/// The last look, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    /// Whether it succeeded.
    pub success: bool,
    /// What it gave, or why not.
    pub words: String,
    /// How long it took.
    pub took: Duration,
    /// When it ended.
    pub at: SystemTime,
}

/// Since the start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) errors: u64,
    pub(super) timeouts: u64,
    pub(super) last_success: Option<SystemTime>,
}

/// The record of one collector.
pub(super) struct Record {
    name: &'static str,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    counts: Counts,
    last: Option<Last>,
}

impl Record {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, known: Mutex::default() }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Counts a look and tells the log when things have changed.
    pub(super) fn add(&self, sighting: &Sighting) -> Counts {
        let now = SystemTime::now();
        let collector = self.name;
        let words = words(&sighting.ending);
        let success = sighting.ending.is_success();
        let mut known = self.lock();
        match sighting.ending {
            Ending::Seen(_) | Ending::Absent(_) => known.counts.last_success = Some(now),
            Ending::Failed(_) => known.counts.errors += 1,
            Ending::Late => known.counts.timeouts += 1,
        }
        match (known.last.as_ref().map(|last| last.success), success) {
            (Some(true) | None, false) => warn!(collector, "{words}"),
            (Some(false), true) => info!(collector, "works again: {words}"),
            (None, true) => info!(collector, "{words}"),
            _ => {}
        }
        known.last = Some(Last { success, words, took: sighting.took, at: now });
        known.counts
    }

    pub(super) fn status(&self) -> Status {
        Status { name: self.name, last: self.lock().last.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a look ended, for people.
pub(super) fn words(ending: &Ending) -> String {
    match ending {
        Ending::Seen(seen) => {
            let samples: usize = seen.blocks.iter().map(|block| block.samples()).sum();
            format!("watched: {samples} series")
        }
        Ending::Absent(why) => format!("not watched: {why}"),
        Ending::Failed(words) => words.clone(),
        Ending::Late => "did not answer in time".to_owned(),
    }
}
