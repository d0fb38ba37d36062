//! A scrape: all collectors at once, each within the deadline, whatever happens to the others. What came is published,
//! what did not is said to be missing. Not here: HTTP ([`crate::routes`]) and what any collector looks at.

mod budget;
mod flight;
mod slot;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use evenkeel_host::{
    build,
    metrics::{self, Block, Family},
    web::{Security, exposition::Exposition},
};
use futures_util::future::join_all;
use tokio::time::Instant;

pub use self::{
    budget::Budget,
    slot::{Ending, Last, Sighting, Status},
};
use self::{flight::Flight, slot::Slot};
use crate::collectors::Collector;

/// The collectors and what is remembered of them between scrapes.
pub struct Scraper {
    slots: Vec<Arc<Slot>>,
    /// Asked how its last reading went.
    security: Security,
    /// The scrape of all collectors that is under way; a second one asked for meanwhile shares its text.
    full: Flight<Arc<Pass>>,
}

/// One look of each collector, written down.
struct Pass {
    exposition: Arc<Exposition>,
    /// Whether every collector answered in time.
    complete: bool,
}

impl Scraper {
    /// For these collectors, in the order of their metrics.
    pub fn new(collectors: Vec<Arc<dyn Collector>>, security: Security) -> Self {
        Self {
            slots: collectors.into_iter().map(|c| Arc::new(Slot::new(c))).collect(),
            security,
            full: Flight::default(),
        }
    }

    /// The collectors' names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.slots.iter().map(|slot| slot.name())
    }

    /// What the last look of each collector gave.
    pub fn status(&self) -> Vec<Status> {
        self.slots.iter().map(|slot| slot.status()).collect()
    }

    /// Looks with every collector.
    pub async fn all(&self, budget: Budget) -> Arc<Exposition> {
        loop {
            let (slots, security) = (self.slots.clone(), self.security.clone());
            let work = async move { Arc::new(pass(slots, &security, budget).await) };
            // One that ends after this scrape has to answer is of no use to it.
            let (landing, started) = self.full.join_or_start(|end| end <= budget.cut, budget.cut, work);
            let landed = landing.await;
            self.full.forget_landed();
            match landed {
                // It had less time than this scrape has.
                Some(pass) if !pass.complete && !started && Instant::now() < budget.deadline => {}
                Some(pass) => return Arc::clone(&pass.exposition),
                // The task that would have answered is gone: writing the metrics down has panicked.
                None => return write_down(Vec::new(), &self.security).exposition,
            }
        }
    }

    /// Looks with the named collectors only.
    pub async fn some(&self, names: &[&str], budget: Budget) -> Arc<Exposition> {
        let chosen = self.slots.iter().filter(|slot| names.contains(&slot.name())).cloned().collect();
        pass(chosen, &self.security, budget).await.exposition
    }
}

/// All at once.
async fn pass(slots: Vec<Arc<Slot>>, security: &Security, budget: Budget) -> Pass {
    let sightings = join_all(slots.iter().map(|slot| slot.look(budget))).await;
    write_down(slots.iter().zip(sightings).collect(), security)
}

fn write_down(seen: Vec<(&Arc<Slot>, Arc<Sighting>)>, security: &Security) -> Pass {
    let complete = !seen.iter().any(|(_, sighting)| matches!(sighting.ending, Ending::Late));
    let mut blocks = Vec::new();
    // What is different each time, in a block of its own behind the others.
    let mut last = Vec::new();
    let mut own = OwnMetrics::new();
    for (slot, sighting) in seen {
        own.add(slot, &sighting);
        match &sighting.ending {
            Ending::Seen(told) => blocks.extend(told.iter().cloned()),
            Ending::Absent => {}
            Ending::Failed(_) | Ending::Late => last.extend(slot.down()),
        }
    }
    last.extend(own.finish());
    last.extend(security.families());
    last.extend(metrics::process());
    let (mut blocks, left_out) = Block::distinct(blocks, &last);
    let dropped = left_out + blocks.iter().map(|block| block.dropped()).sum::<usize>();
    last.push(
        Family::gauge(
            "evenkeel_scrape_duplicate_samples",
            "Samples left out of this answer because others had the same name and labels, or a name of another collector's.",
        )
        .with(&[], dropped as f64),
    );
    blocks.iter().for_each(|block| block.tidy());
    blocks.push(Arc::new(Block::new(last)));
    Pass { exposition: Arc::new(Exposition::new(blocks)), complete }
}

/// What the exporter says about the scrape itself.
struct OwnMetrics {
    duration: Family,
    success: Family,
    absent: Family,
    last_success: Family,
    errors: Family,
    timeouts: Family,
    missed_changes: Family,
}

impl OwnMetrics {
    fn new() -> Self {
        Self {
            duration: Family::gauge(
                "evenkeel_scrape_collector_duration_seconds",
                "How long the collector's look took.",
            ),
            success: Family::gauge(
                "evenkeel_scrape_collector_success",
                "Whether the collector's look succeeded; finding nothing to look at is a success.",
            ),
            absent: Family::gauge(
                "evenkeel_collector_absent",
                "Whether there is nothing to look at: no such source here since the start, and none configured.",
            ),
            last_success: Family::gauge(
                "evenkeel_collector_last_success_timestamp_seconds",
                "When the collector last succeeded.",
            ),
            errors: Family::counter(
                "evenkeel_collector_errors_total",
                "Scrapes without this collector because its source failed.",
            ),
            timeouts: Family::counter(
                "evenkeel_collector_timeouts_total",
                "Scrapes without this collector because it did not answer in time.",
            ),
            missed_changes: Family::counter(
                "evenkeel_collector_missed_changes_total",
                "Changes that the collector's source did not announce, found by comparing now and then.",
            ),
        }
    }

    fn add(&mut self, slot: &Slot, sighting: &Sighting) {
        let counts = slot.record(sighting);
        let labels = &[("collector", slot.name())];
        let truth = |is: bool| f64::from(u8::from(is));
        self.duration.sample(labels, sighting.took.as_secs_f64());
        self.success.sample(labels, truth(sighting.ending.is_success()));
        self.absent.sample(labels, truth(matches!(sighting.ending, Ending::Absent)));
        if let Some(time) = counts.last_success {
            self.last_success.sample(labels, seconds(time));
        }
        self.errors.sample(labels, counts.errors as f64);
        self.timeouts.sample(labels, counts.timeouts as f64);
        if let Some(changes) = slot.missed_changes() {
            self.missed_changes.sample(labels, changes as f64);
        }
    }

    fn finish(self) -> Vec<Family> {
        let build_info = Family::gauge("evenkeel_exporter_build_info", "What this exporter was built from.")
            .with(
                &[("version", build::VERSION), ("revision", build::REVISION), ("rustc", build::RUSTC)],
                1.0,
            );
        vec![
            self.duration,
            self.success,
            self.absent,
            self.last_success,
            self.errors,
            self.timeouts,
            self.missed_changes,
            build_info,
        ]
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
