//! One collector in the frame: at most one look under way, cut off in time, and a record of how it went.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use evenkeel_host::metrics::{Block, Family};
use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::{Budget, flight::Flight};
use crate::collectors::{Collector, Look};

/// Longest error text kept for the log and the status page: sources may say anything.
const MAX_WORDS: usize = 300;

/// How one look ended.
#[derive(Debug, Clone)]
pub enum Ending {
    /// With metrics.
    Seen(Vec<Arc<Block>>),
    /// There is nothing to look at.
    Absent,
    /// With an error or a panic, in words.
    Failed(String),
    /// Not before the scrape had to answer.
    Late,
}

impl Ending {
    /// Whether it ended as it should.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Seen(_) | Self::Absent)
    }
}

/// One look: how it ended, and how long it took.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// How it ended.
    pub ending: Ending,
    /// Until then.
    pub took: Duration,
}

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

pub(super) struct Slot {
    collector: Arc<dyn Collector>,
    flight: Flight<Arc<Sighting>>,
    record: Mutex<Record>,
}

#[derive(Default)]
struct Record {
    counts: Counts,
    last: Option<Last>,
}

impl Slot {
    pub(super) fn new(collector: Arc<dyn Collector>) -> Self {
        Self { collector, flight: Flight::default(), record: Mutex::default() }
    }

    pub(super) fn name(&self) -> &'static str {
        self.collector.name()
    }

    /// Looks, or joins the look that another scrape has begun. Always answers by `budget.cut`.
    ///
    /// A look that blocks its thread cannot be cut off; no second one is started on top of it, and until it ends every
    /// scrape reports the collector as late.
    pub(super) async fn look(&self, budget: Budget) -> Arc<Sighting> {
        let begun = Instant::now();
        loop {
            let work = look_once(Arc::clone(&self.collector), budget);
            let (landing, started) = self.flight.join_or_start(|_| true, budget.cut, work);
            let landed = timeout_at(budget.cut, landing).await;
            self.flight.forget_landed();
            match landed {
                // It had less time than this scrape has.
                Ok(Some(sighting))
                    if matches!(sighting.ending, Ending::Late)
                        && !started
                        && Instant::now() < budget.deadline => {}
                Ok(Some(sighting)) => return sighting,
                Ok(None) | Err(_) => {
                    return Arc::new(Sighting { ending: Ending::Late, took: begun.elapsed() });
                }
            }
        }
    }

    /// What stands for the series of a look that did not succeed.
    pub(super) fn down(&self) -> Vec<Family> {
        let down = std::panic::catch_unwind(AssertUnwindSafe(|| self.collector.down()));
        down.unwrap_or_default()
    }

    /// How many changes the collector's source did not announce.
    pub(super) fn missed_changes(&self) -> Option<u64> {
        self.collector.missed_changes()
    }

    /// Counts a look and tells the log when things have changed.
    pub(super) fn record(&self, sighting: &Sighting) -> Counts {
        let now = SystemTime::now();
        let collector = self.name();
        let words = words(&sighting.ending);
        let success = sighting.ending.is_success();
        let mut record = self.lock();
        match sighting.ending {
            Ending::Seen(_) | Ending::Absent => record.counts.last_success = Some(now),
            Ending::Failed(_) => record.counts.errors += 1,
            Ending::Late => record.counts.timeouts += 1,
        }
        match (record.last.as_ref().map(|last| last.success), success) {
            (Some(true) | None, false) => warn!(collector, "{words}"),
            (Some(false), true) => info!(collector, "works again: {words}"),
            (None, true) => info!(collector, "{words}"),
            _ => {}
        }
        record.last = Some(Last { success, words, took: sighting.took, at: now });
        record.counts
    }

    pub(super) fn status(&self) -> Status {
        Status { name: self.name(), last: self.lock().last.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn look_once(collector: Arc<dyn Collector>, budget: Budget) -> Arc<Sighting> {
    let begun = Instant::now();
    let look = AssertUnwindSafe(async { collector.look(budget.deadline).await }).catch_unwind();
    let ending = match timeout_at(budget.cut, look).await {
        Ok(Ok(Ok(Look::Seen(blocks)))) => Ending::Seen(blocks),
        Ok(Ok(Ok(Look::Absent))) => Ending::Absent,
        Ok(Ok(Err(error))) => Ending::Failed(bounded(&error.to_string())),
        Ok(Err(panic)) => Ending::Failed(bounded(&format!("panicked: {}", panic_words(panic.as_ref())))),
        Err(_) => Ending::Late,
    };
    Arc::new(Sighting { ending, took: begun.elapsed() })
}

fn words(ending: &Ending) -> String {
    match ending {
        Ending::Seen(blocks) => {
            let samples: usize = blocks.iter().map(|block| block.samples()).sum();
            format!("{samples} series")
        }
        Ending::Absent => "nothing to look at here".to_owned(),
        Ending::Failed(words) => words.clone(),
        Ending::Late => "did not answer in time".to_owned(),
    }
}

/// One line of bounded length.
fn bounded(text: &str) -> String {
    text.chars().take(MAX_WORDS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn panic_words(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
