//! A scrape: all collectors at once, each within the deadline, whatever happens to the others. What came is published,
//! what did not is said to be missing. Not here: HTTP ([`crate::routes`]) and what any collector looks at.

mod budget;
mod flight;
mod judge;
mod record;
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
    record::{Last, Status},
    slot::{Ending, Sighting},
};
use self::{flight::Flight, judge::Judge, record::Record, slot::Slot};
use crate::{
    collectors::Collector,
    expectations::{self, Expectations, Verdict},
};

/// The collectors and what is remembered of them between scrapes.
pub struct Scraper {
    frame: Arc<Frame>,
    /// The scrape of all collectors that is under way; a second one asked for meanwhile shares its text.
    full: Flight<Arc<Pass>>,
}

/// Whom a scrape asks.
struct Frame {
    slots: Vec<Arc<Slot>>,
    judge: Option<Judge>,
    /// Asked how its last reading went.
    security: Security,
}

/// One look of each collector, written down.
struct Pass {
    exposition: Arc<Exposition>,
    /// Whether every collector answered in time.
    complete: bool,
}

impl Scraper {
    /// For these collectors, in the order of their metrics, and what is judged by what they see.
    pub fn new(
        collectors: Vec<Arc<dyn Collector>>,
        expectations: Option<Expectations>,
        security: Security,
    ) -> Self {
        let slots = collectors.into_iter().map(|c| Arc::new(Slot::new(c))).collect();
        let frame = Frame { slots, judge: expectations.map(Judge::new), security };
        Self { frame: Arc::new(frame), full: Flight::default() }
    }

    /// The collectors' names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.frame.records().map(Record::name)
    }

    /// What the last look of each collector gave.
    pub fn status(&self) -> Vec<Status> {
        self.frame.records().map(Record::status).collect()
    }

    /// Looks with every collector.
    pub async fn all(&self, budget: Budget) -> Arc<Exposition> {
        loop {
            let frame = Arc::clone(&self.frame);
            let work = async move { Arc::new(frame.pass(|_| true, budget).await) };
            // One that ends after this scrape has to answer is of no use to it.
            let (landing, started) = self.full.join_or_start(|end| end <= budget.cut, budget.cut, work);
            let landed = landing.await;
            self.full.forget_landed();
            match landed {
                // It had less time than this scrape has.
                Some(pass) if !pass.complete && !started && Instant::now() < budget.deadline => {}
                Some(pass) => return Arc::clone(&pass.exposition),
                // The task that would have answered is gone: writing the metrics down has panicked.
                None => return write_down(&[], &self.frame.security).exposition,
            }
        }
    }

    /// Looks with the named collectors only; where the expectations are among them with all, and publishes the named.
    pub async fn some(&self, names: &[&str], budget: Budget) -> Arc<Exposition> {
        self.frame.pass(|name| names.contains(&name), budget).await.exposition
    }

    /// Looks with every collector, and judges; nothing where nothing is expected.
    pub async fn verdicts(&self, budget: Budget) -> Vec<Verdict> {
        let seen = self.frame.look(&self.frame.slots, budget).await;
        self.frame.judge.as_ref().map_or_else(Vec::new, |judge| judge.verdicts(&seen))
    }
}

impl Frame {
    fn records(&self) -> impl Iterator<Item = &Record> {
        self.slots.iter().map(|slot| slot.record()).chain(self.judge.as_ref().map(Judge::record))
    }

    /// All at once, then the judge.
    async fn pass(&self, is_asked: impl Fn(&str) -> bool, budget: Budget) -> Pass {
        let judge = self.judge.as_ref().filter(|_| is_asked(expectations::NAME));
        // What is judged has to be seen, also where it is not to be told.
        let slots = self.slots.iter().filter(|slot| judge.is_some() || is_asked(slot.name()));
        let seen = self.look(slots, budget).await;
        let judged = judge.map(|judge| (judge, judge.look(&seen)));
        let mut told: Vec<Told<'_>> = seen
            .iter()
            .filter(|(slot, _)| is_asked(slot.name()))
            .map(|(slot, sighting)| Told { record: slot.record(), slot: Some(Arc::as_ref(slot)), sighting })
            .collect();
        if let Some((judge, sighting)) = &judged {
            told.push(Told { record: judge.record(), slot: None, sighting });
        }
        write_down(&told, &self.security)
    }

    async fn look<'a>(
        &self,
        slots: impl IntoIterator<Item = &'a Arc<Slot>>,
        budget: Budget,
    ) -> Vec<(&'a Arc<Slot>, Arc<Sighting>)> {
        join_all(slots.into_iter().map(|slot| async move { (slot, slot.look(budget).await) })).await
    }
}

/// One look that is told of.
struct Told<'a> {
    record: &'a Record,
    /// `None` for the expectations, which have no source that could be down.
    slot: Option<&'a Slot>,
    sighting: &'a Sighting,
}

fn write_down(told: &[Told<'_>], security: &Security) -> Pass {
    let complete = !told.iter().any(|told| matches!(told.sighting.ending, Ending::Late));
    let mut blocks = Vec::new();
    // What is different each time, in a block of its own behind the others.
    let mut last = Vec::new();
    let mut own = OwnMetrics::new();
    for told in told {
        own.add(told);
        match &told.sighting.ending {
            Ending::Seen(seen) => blocks.extend(seen.blocks.iter().cloned()),
            Ending::Absent(_) => {}
            Ending::Failed(_) | Ending::Late => last.extend(told.slot.iter().flat_map(|slot| slot.down())),
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

    fn add(&mut self, told: &Told<'_>) {
        let sighting = told.sighting;
        let counts = told.record.add(sighting);
        let labels = &[("collector", told.record.name())];
        let truth = |is: bool| f64::from(u8::from(is));
        self.duration.sample(labels, sighting.took.as_secs_f64());
        self.success.sample(labels, truth(sighting.ending.is_success()));
        self.absent.sample(labels, truth(matches!(sighting.ending, Ending::Absent(_))));
        if let Some(time) = counts.last_success {
            self.last_success.sample(labels, seconds(time));
        }
        self.errors.sample(labels, counts.errors as f64);
        self.timeouts.sample(labels, counts.timeouts as f64);
        if let Some(changes) = told.slot.and_then(Slot::missed_changes) {
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
