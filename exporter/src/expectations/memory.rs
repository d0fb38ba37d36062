//! What one look cannot show: which services were restarted since the last, and which containers within a day. Bounded by
//! what there is to remember of, and forgotten with it.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use crate::evidence::{Answer, Container, Evidence, Unit};

/// A restart counter that grew between two looks this far apart is a loop.
pub(crate) const APART: Duration = Duration::from_secs(5);

/// Restarts are counted by the quarter of an hour.
const BUCKET: Duration = Duration::from_secs(15 * 60);

/// What is counted.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The moment of a look on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For what passed between looks.
    pub instant: Instant,
    /// For what the sources say about times.
    pub wall: SystemTime,
}

impl Now {
    /// The present.
    pub fn present() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }
}

/// Everything that is remembered.
#[derive(Debug, Default)]
pub(super) struct Memory {
    units: Units,
    containers: HashMap<Box<str>, History>,
}

#[derive(Debug, Default)]
struct Units {
    /// The restart counters that are known, and when they were read.
    counters: Option<(Instant, HashMap<String, u32>)>,
    /// Those whose counters grew between the last two looks far enough apart.
    growing: BTreeSet<String>,
}

/// One container's restarts.
#[derive(Debug)]
struct History {
    since: Instant,
    counter: u64,
    /// The numbers of the quarters of an hour, and the restarts seen in each.
    seen: VecDeque<(u64, u64)>,
}

/// How often a container was restarted within a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restarts {
    /// Exactly so often.
    Exactly(u64),
    /// Nobody has watched for long enough: at least the first, at most the second.
    Between(u64, u64),
    /// The engine did not say.
    Unknown,
}

impl Memory {
    /// Takes in a look.
    pub(super) fn see(&mut self, evidence: &Evidence, now: Now) {
        if let Answer::Seen(units) = &evidence.units {
            self.see_units(units, now);
        }
        if let Answer::Seen(containers) = &evidence.containers {
            self.see_containers(containers, now);
        }
    }

    fn see_units(&mut self, units: &[Unit], now: Now) {
        let is_due = self.units.counters.as_ref().is_none_or(|(at, _)| now.instant - *at >= APART);
        if !is_due {
            return;
        }
        let counters: HashMap<String, u32> =
            units.iter().filter_map(|unit| Some((unit.unit.name.clone(), unit.restarts?))).collect();
        if let Some((_, before)) = &self.units.counters {
            // A counter that is seen for the first time says nothing of when it grew.
            let grew = |(name, now): &(&String, &u32)| before.get(*name).is_some_and(|before| before < *now);
            self.units.growing = counters.iter().filter(grew).map(|(name, _)| name.clone()).collect();
        }
        self.units.counters = Some((now.instant, counters));
    }

    /// Whether a service is being restarted again and again: it waits for its next restart, or was restarted between the
    /// last two looks.
    pub(super) fn is_looping(&self, unit: &Unit) -> bool {
        unit.unit.sub_state.starts_with("auto-restart") || self.units.growing.contains(&unit.unit.name)
    }

    fn see_containers(&mut self, containers: &[Container], now: Now) {
        let mut before = std::mem::take(&mut self.containers);
        for container in containers {
            let history = before.remove(&container.id);
            let counter = container.detail.as_ref().map(|detail| detail.restarts);
            let history = match (history, counter) {
                (Some(mut history), Some(counter)) => {
                    history.count(counter, now.instant);
                    Some(history)
                }
                (history, None) => history,
                (None, Some(counter)) => Some(History { since: now.instant, counter, seen: VecDeque::new() }),
            };
            if let Some(history) = history {
                self.containers.insert(container.id.clone(), history);
            }
        }
    }

    /// How often a container was restarted within a day. Its counter alone says it only of a young one, and of one that was
    /// last started longer ago; otherwise it says how often at most, until it has been watched for a day.
    pub(super) fn restarts(&self, container: &Container, now: Now) -> Restarts {
        let Some(detail) = &container.detail else { return Restarts::Unknown };
        let age =
            |time: Option<SystemTime>| time.map(|time| now.wall.duration_since(time).unwrap_or_default());
        if age(detail.started).is_some_and(|age| age > DAY) {
            return Restarts::Exactly(0);
        }
        let history = self.containers.get(&container.id);
        let seen = history.map_or(0, |history| history.within_a_day(now.instant));
        if age(detail.created).is_some_and(|age| age <= DAY) {
            // The counter begins anew when somebody starts it by hand: what was seen counts too.
            return Restarts::Exactly(detail.restarts.max(seen));
        }
        if history.is_some_and(|history| now.instant - history.since >= DAY) {
            return Restarts::Exactly(seen);
        }
        Restarts::Between(seen, detail.restarts.max(seen))
    }
}

impl History {
    fn count(&mut self, counter: u64, now: Instant) {
        // One that was set back counts from nothing.
        let more = if counter >= self.counter { counter - self.counter } else { counter };
        self.counter = counter;
        let bucket = self.bucket(now);
        let oldest = bucket.saturating_sub(DAY.as_secs() / BUCKET.as_secs());
        while self.seen.front().is_some_and(|(of, _)| *of < oldest) {
            self.seen.pop_front();
        }
        match self.seen.back_mut() {
            _ if more == 0 => {}
            Some((of, count)) if *of == bucket => *count += more,
            _ => self.seen.push_back((bucket, more)),
        }
    }

    fn within_a_day(&self, now: Instant) -> u64 {
        let oldest = self.bucket(now).saturating_sub(DAY.as_secs() / BUCKET.as_secs());
        self.seen.iter().filter(|(of, _)| *of >= oldest).map(|(_, count)| count).sum()
    }

    fn bucket(&self, now: Instant) -> u64 {
        (now - self.since).as_secs() / BUCKET.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use evenkeel_host::{docker::Health, systemd};

    use super::*;
    use crate::evidence::ContainerDetail;

    fn service(sub_state: &str, restarts: u32) -> Unit {
        let unit = systemd::Unit {
            name: "quantum-clm.service".into(),
            load_state: "loaded".into(),
            active_state: "activating".into(),
            sub_state: sub_state.into(),
            job_id: 0,
            path: Default::default(),
        };
        Unit { unit: Arc::new(unit), restarts: Some(restarts), is_watched: false, may_be_missing: false }
    }

    fn later(now: Now, seconds: u64) -> Now {
        let more = Duration::from_secs(seconds);
        Now { instant: now.instant + more, wall: now.wall + more }
    }

    #[test]
    fn a_counter_that_grows_between_two_looks_is_a_loop() {
        let (mut memory, start) = (Memory::default(), Now::present());
        let running = |restarts| service("running", restarts);
        memory.see_units(&[running(3)], start);
        assert!(!memory.is_looping(&running(3)), "nobody knows when it was restarted");
        assert!(memory.is_looping(&service("auto-restart", 3)));
        assert!(memory.is_looping(&service("auto-restart-queued", 3)));
        // Too soon to tell.
        memory.see_units(&[running(4)], later(start, 4));
        assert!(!memory.is_looping(&running(4)));
        memory.see_units(&[running(5)], later(start, 5));
        assert!(memory.is_looping(&running(5)));
        memory.see_units(&[running(5)], later(start, 7));
        assert!(memory.is_looping(&running(5)), "until the next look that is far enough away");
        memory.see_units(&[running(5)], later(start, 20));
        assert!(!memory.is_looping(&running(5)));
        // Set back by a person, which is no restart; then restarted.
        memory.see_units(&[running(0)], later(start, 40));
        assert!(!memory.is_looping(&running(0)));
        memory.see_units(&[running(1)], later(start, 60));
        assert!(memory.is_looping(&running(1)));
    }

    #[test]
    fn a_counter_that_was_not_known_before_has_not_grown() {
        let (mut memory, start) = (Memory::default(), Now::present());
        let unread = Unit { restarts: None, ..service("running", 0) };
        memory.see_units(&[unread], start);
        memory.see_units(&[service("running", 3)], later(start, 10));
        assert!(!memory.is_looping(&service("running", 3)));
        memory.see_units(&[service("running", 4)], later(start, 20));
        assert!(memory.is_looping(&service("running", 4)));
        // A unit that is new, and one that was unknown in between.
        let mut memory = Memory::default();
        memory.see_units(&[], start);
        memory.see_units(&[service("running", 2)], later(start, 10));
        assert!(!memory.is_looping(&service("running", 2)));
    }

    fn container(restarts: u64, created: Option<SystemTime>, started: Option<SystemTime>) -> Container {
        Container {
            id: "4f1a".into(),
            name: "quantum_market_publisher".into(),
            is_up: true,
            is_running: true,
            health: Health::None,
            is_probe_broken: false,
            detail: Some(ContainerDetail { restarts, created, started, has_log_rotation: true }),
        }
    }

    fn ago(now: Now, hours: u64) -> Option<SystemTime> {
        now.wall.checked_sub(Duration::from_secs(hours * 3600))
    }

    #[test]
    fn one_look_knows_the_restarts_of_old_runs_and_of_young_containers() {
        let (memory, now) = (Memory::default(), Now::present());
        let restarts = |restarts, created, started| {
            memory.restarts(&container(restarts, ago(now, created), ago(now, started)), now)
        };
        assert_eq!(restarts(7, 1000, 25), Restarts::Exactly(0));
        assert_eq!(restarts(7, 23, 1), Restarts::Exactly(7));
        assert_eq!(restarts(7, 1000, 1), Restarts::Between(0, 7));
        let unknown = Container { detail: None, ..container(1, None, None) };
        assert_eq!(memory.restarts(&unknown, now), Restarts::Unknown);
    }

    #[test]
    fn whoever_watches_for_a_day_knows() {
        let (mut memory, start) = (Memory::default(), Now::present());
        let seen =
            |counter, now| [container(counter, ago(start, 1000), Some(start.wall + (now - start.instant)))];
        let mut look = |counter, hours: u64| {
            let now = later(start, hours * 3600);
            let seen = seen(counter, now.instant);
            memory.see_containers(&seen, now);
            memory.restarts(&seen[0], now)
        };
        assert_eq!(look(10, 0), Restarts::Between(0, 10));
        assert_eq!(look(12, 1), Restarts::Between(2, 12));
        // Started by hand, and restarted once since.
        assert_eq!(look(1, 2), Restarts::Between(3, 3));
        assert_eq!(look(2, 24), Restarts::Exactly(4));
        assert_eq!(look(2, 25), Restarts::Exactly(4), "to a quarter of an hour");
        assert_eq!(look(2, 26), Restarts::Exactly(2));
        assert_eq!(look(2, 49), Restarts::Exactly(0));
    }

    #[test]
    fn what_went_away_is_forgotten() {
        let (mut memory, now) = (Memory::default(), Now::present());
        memory.see_containers(&[container(1, None, None)], now);
        memory.see_containers(&[], now);
        assert!(memory.containers.is_empty());
        memory.see_units(&[service("running", 9)], now);
        memory.see_units(&[], later(now, 60));
        assert_eq!(memory.units.counters.map(|(_, counters)| counters.len()), Some(0));
    }
}
