//! One collector in the frame: at most one look under way, cut off in time.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use evenkeel_host::metrics::Family;
use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};

use super::{Budget, flight::Flight, record::Record};
use crate::collectors::{Collector, Look, Seen};

/// Longest error text kept for the log and the status page: sources may say anything.
const MAX_WORDS: usize = 300;

/// How one look ended.
#[derive(Debug, Clone)]
pub enum Ending {
    /// With metrics.
    Seen(Seen),
    /// There is nothing to look at, in words.
    Absent(&'static str),
    /// With an error or a panic, in words.
    Failed(String),
    /// Not before the scrape had to answer.
    Late,
}

impl Ending {
    /// Whether it ended as it should.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Seen(_) | Self::Absent(_))
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

pub(super) struct Slot {
    collector: Arc<dyn Collector>,
    flight: Flight<Arc<Sighting>>,
    record: Record,
}

impl Slot {
    pub(super) fn new(collector: Arc<dyn Collector>) -> Self {
        let record = Record::new(collector.name());
        Self { collector, flight: Flight::default(), record }
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

    /// What became of its looks.
    pub(super) fn record(&self) -> &Record {
        &self.record
    }
}

async fn look_once(collector: Arc<dyn Collector>, budget: Budget) -> Arc<Sighting> {
    let begun = Instant::now();
    let look = AssertUnwindSafe(async { collector.look(budget.deadline).await }).catch_unwind();
    let ending = match timeout_at(budget.cut, look).await {
        Ok(Ok(Ok(Look::Seen(seen)))) => Ending::Seen(seen),
        Ok(Ok(Ok(Look::Absent(why)))) => Ending::Absent(why),
        Ok(Ok(Err(error))) => Ending::Failed(bounded(&error.to_string())),
        Ok(Err(panic)) => Ending::Failed(bounded(&format!("panicked: {}", panic_words(panic.as_ref())))),
        Err(_) => Ending::Late,
    };
    Arc::new(Sighting { ending, took: begun.elapsed() })
}

/// One line of bounded length.
pub(super) fn bounded(text: &str) -> String {
    text.chars().take(MAX_WORDS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

pub(super) fn panic_words(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
