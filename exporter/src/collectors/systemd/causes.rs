//! Why services fail: read from the journal behind the looks, so that no scrape waits for it, one service after the other,
//! and for each at most once a minute.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use evenkeel_host::{
    diagnose::{Cause, look},
    metrics::Family,
    systemd::is_trouble,
};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::{
    keeper::Keeper,
    picture::{Known, Picture},
};

/// A service's journal is not read more often, however often it fails; and one that has restarted by itself is taken to
/// loop for as long after.
const PAUSE: Duration = Duration::from_secs(60);

/// systemd and the journal have limits of their own; together they may not take longer.
const LIMIT: Duration = Duration::from_secs(15);

/// What is known of services that fail.
#[derive(Debug, Default)]
pub(super) struct Causes {
    failing: BTreeMap<String, Failing>,
    /// The restart counters of services that have restarted, to see them grow.
    restarts: HashMap<String, Restarts>,
    /// Somebody was told that the journal cannot be read.
    was_complained: bool,
}

#[derive(Debug)]
struct Failing {
    /// Nothing where it just ran when it was asked about.
    cause: Option<Cause>,
    /// Of which change of its state.
    state_change: u64,
    read: Instant,
}

#[derive(Debug)]
struct Restarts {
    count: u32,
    grown: Option<Instant>,
}

/// Reads causes for ever.
pub(super) async fn keep_reading(keeper: Arc<Keeper>) {
    loop {
        keeper.looked_for_causes.notified().await;
        read_due(&keeper).await;
    }
}

/// Reads why those services fail of which it is not known.
pub(super) async fn read_due(keeper: &Keeper) {
    let due = {
        let picture = keeper.picture();
        keeper.causes().due(&picture, Instant::now())
    };
    for (name, state_change) in due {
        let finding = match timeout(LIMIT, look(&keeper.systemd, &name)).await {
            Ok(Ok(finding)) => finding,
            Ok(Err(error)) => {
                debug!(unit = name, %error, "cannot ask why it fails");
                continue;
            }
            Err(_) => {
                debug!(unit = name, "no answer to why it fails");
                continue;
            }
        };
        let mut causes = keeper.causes();
        if let Some(error) = finding.as_ref().and_then(|finding| finding.unread.as_ref())
            && !std::mem::replace(&mut causes.was_complained, true)
        {
            warn!(unit = name, %error, "cannot read why services fail from the journal");
        }
        let cause = finding.map(|finding| finding.diagnosis.cause);
        causes.learn(name, cause, state_change, Instant::now());
    }
}

impl Causes {
    /// Those to read about now, with what their state was; forgets those that fail no more.
    fn due(&mut self, picture: &Picture, now: Instant) -> Vec<(String, u64)> {
        self.count_restarts(picture, now);
        let failing: BTreeMap<&str, &Known> = picture
            .units()
            .filter(|known| self.is_failing(known, now))
            .map(|known| (known.unit.name.as_str(), known))
            .collect();
        self.failing.retain(|name, _| failing.contains_key(name.as_str()));
        let due = failing.into_iter().filter(|(name, unit)| match self.failing.get(*name) {
            None => true,
            Some(Failing { cause: None, .. }) if is_in_trouble(unit) => true,
            Some(known) => {
                known.state_change != state_change(unit) && now.duration_since(known.read) >= PAUSE
            }
        });
        due.map(|(name, unit)| (name.to_owned(), state_change(unit))).collect()
    }

    fn learn(&mut self, name: String, cause: Option<Cause>, state_change: u64, now: Instant) {
        self.failing.insert(name, Failing { cause, state_change, read: now });
    }

    fn count_restarts(&mut self, picture: &Picture, now: Instant) {
        let counts: HashMap<&str, u32> =
            picture.units().filter_map(|known| Some((known.unit.name.as_str(), restarts(known)?))).collect();
        self.restarts.retain(|name, _| counts.contains_key(name.as_str()));
        for (name, count) in counts {
            match self.restarts.get_mut(name) {
                None => drop(self.restarts.insert(name.to_owned(), Restarts { count, grown: None })),
                Some(known) => {
                    if count > known.count {
                        known.grown = Some(now);
                    }
                    known.count = count;
                }
            }
        }
    }

    /// Whether it is published, and has failed, loops or cannot be loaded. One that loops is not at every moment seen to
    /// wait for its next start: its restart counter grows.
    fn is_failing(&self, known: &Known, now: Instant) -> bool {
        let unit = &known.unit;
        if unit.kind() != "service" || known.role.is_none() {
            return false;
        }
        let grown = self.restarts.get(&unit.name).and_then(|restarts| restarts.grown);
        is_in_trouble(known)
            || (unit.active_state != "inactive"
                && grown.is_some_and(|grown| now.duration_since(grown) < PAUSE))
    }

    /// Why those services fail that still do.
    pub(super) fn families(&self, picture: &Picture, now: Instant) -> Vec<Family> {
        let mut family = Family::gauge(
            "systemd_service_failure_cause",
            "Why the service fails or loops, from its result and its last words in the journal, always 1. Absent until it is read, a moment after the first scrape that saw it fail.",
        );
        let mut failing: Vec<(&str, Cause)> = picture
            .units()
            .filter(|known| self.is_failing(known, now))
            .filter_map(|known| Some((known.unit.name.as_str(), self.failing.get(&known.unit.name)?.cause?)))
            .collect();
        failing.sort_unstable();
        for (name, cause) in failing {
            family.sample(&[("name", name), ("cause", cause.as_str())], 1.0);
        }
        vec![family]
    }
}

fn is_in_trouble(known: &Known) -> bool {
    is_trouble(&known.unit.load_state, &known.unit.active_state, &known.unit.sub_state)
}

fn state_change(known: &Known) -> u64 {
    known.details.as_ref().map_or(0, |details| details.state_change)
}

/// The restart counter of a service that has restarted.
fn restarts(known: &Known) -> Option<u32> {
    let service = known.details.as_ref()?.service.as_ref()?;
    (service.n_restarts > 0).then_some(service.n_restarts)
}

#[cfg(test)]
mod tests {
    use evenkeel_host::systemd::{Details, ServiceDetails, Unit};

    use super::*;
    use crate::collectors::systemd::{
        families::tests::{lines, picture_of, unit},
        selection::Role,
    };

    /// A picture of services with the stamps of their last change and their restart counters.
    fn picture(services: &[(Unit, u64, u32)]) -> Picture {
        let mut picture = picture_of(services.iter().map(|(unit, ..)| unit.clone()).collect());
        picture.assign(|_| Some(Role::default()));
        let since = picture.clock();
        for (unit, state_change, n_restarts) in services {
            let service = ServiceDetails { n_restarts: *n_restarts, ..ServiceDetails::default() };
            let details =
                Details { state_change: *state_change, service: Some(service), ..Details::default() };
            picture.take_details(unit, Some(details), since, Instant::now());
        }
        picture
    }

    fn failed(name: &str) -> Unit {
        unit(name, "loaded", "failed", "failed")
    }

    fn names(due: &[(String, u64)]) -> Vec<&str> {
        due.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn what_fails_is_read_once_and_again_when_it_failed_anew_but_not_within_a_minute() {
        let (mut causes, start) = (Causes::default(), Instant::now());
        let well = unit("well.service", "loaded", "active", "running");
        let bad = unit("bad.service", "bad-setting", "inactive", "dead");
        let timer = unit("tick.timer", "loaded", "failed", "failed");
        let at = |stamp| {
            picture(&[
                (failed("app.service"), stamp, 0),
                (well.clone(), 1, 0),
                (bad.clone(), 1, 0),
                (timer.clone(), 1, 0),
            ])
        };
        assert_eq!(names(&causes.due(&at(1), start)), ["app.service", "bad.service"]);
        causes.learn("app.service".to_owned(), Some(Cause::MissingFile), 1, start);
        causes.learn("bad.service".to_owned(), Some(Cause::BadUnitFile), 1, start);
        assert!(causes.due(&at(1), start + PAUSE * 100).is_empty(), "nothing has changed");
        assert!(causes.due(&at(2), start + PAUSE / 2).is_empty(), "it was read half a minute ago");
        assert_eq!(names(&causes.due(&at(2), start + PAUSE)), ["app.service"]);
        assert_eq!(
            lines(&causes.families(&at(2), start), "systemd_service_failure_cause"),
            ["name=app.service cause=missing_file 1", "name=bad.service cause=bad_unit_file 1"]
        );
    }

    #[test]
    fn what_runs_again_or_is_gone_has_no_cause() {
        let (mut causes, now) = (Causes::default(), Instant::now());
        causes.learn("app.service".to_owned(), Some(Cause::MissingFile), 1, now);
        let well = picture(&[(unit("app.service", "loaded", "active", "running"), 2, 0)]);
        assert!(lines(&causes.families(&well, now), "systemd_service_failure_cause").is_empty());
        assert!(causes.due(&well, now).is_empty() && causes.failing.is_empty());
        causes.learn("app.service".to_owned(), Some(Cause::MissingFile), 1, now);
        assert!(causes.due(&picture(&[]), now).is_empty() && causes.failing.is_empty());
    }

    #[test]
    fn what_loops_has_its_cause_also_while_it_runs_for_a_moment() {
        let (mut causes, start) = (Causes::default(), Instant::now());
        let running = |count| {
            picture(&[(unit("loop.service", "loaded", "active", "running"), u64::from(count), count)])
        };
        assert!(causes.due(&running(3), start).is_empty(), "it may have restarted long ago");
        assert_eq!(names(&causes.due(&running(4), start)), ["loop.service"]);
        causes.learn("loop.service".to_owned(), Some(Cause::ConnectionRefused), 4, start);
        let told =
            |causes: &Causes, now| lines(&causes.families(&running(4), now), "systemd_service_failure_cause");
        assert_eq!(told(&causes, start + PAUSE / 2), ["name=loop.service cause=connection_refused 1"]);
        assert!(told(&causes, start + PAUSE).is_empty(), "it has run for a minute");
        causes.learn("loop.service".to_owned(), None, 4, start);
        assert!(told(&causes, start).is_empty() && causes.due(&running(4), start).is_empty());
        let waiting = picture(&[(unit("loop.service", "loaded", "activating", "auto-restart"), 9, 5)]);
        assert_eq!(names(&causes.due(&waiting, start)), ["loop.service"], "now it can be told");
        let stopped = picture(&[(unit("loop.service", "loaded", "inactive", "dead"), 10, 6)]);
        assert!(causes.due(&stopped, start + PAUSE * 2).is_empty(), "somebody stopped it");
    }
}
