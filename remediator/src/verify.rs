//! Whether a repair helped: the target must look well for the whole hold time, before the deadline. A flap begins the
//! hold anew, not the deadline. Pure; the worker does the looking.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    observe::Observation,
    rules::{DoneWhen, Verify},
};

/// What one more look means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Well for long enough.
    Done,
    /// Not yet decided: look again.
    Wait,
    /// It did not help.
    NotDone,
}

/// One verification under way.
#[derive(Debug)]
pub struct Verification {
    mark: DoneWhen,
    hold: Duration,
    deadline: Instant,
    before: Observation,
    /// Since when it is well, and what identifies the run that is.
    well_since: Option<(Instant, String)>,
}

impl Verification {
    /// Begins when an action has ended; `before` was seen before it.
    pub fn begin(verify: &Verify, before: Observation, now: Instant) -> Self {
        Self { mark: verify.done, hold: verify.hold, deadline: now + verify.within, before, well_since: None }
    }

    /// Takes one look into account; `None` when the target could not be seen, which counts as not well.
    pub fn look(&mut self, seen: Option<&Observation>, now: Instant) -> Verdict {
        match seen.filter(|seen| self.mark.met(&self.before, seen)) {
            None => {
                self.well_since = None;
                if seen.is_some_and(|seen| self.is_lost(seen)) {
                    return Verdict::NotDone;
                }
            }
            Some(seen) => {
                let run = identity(seen);
                match &self.well_since {
                    Some((since, known)) if *known == run => {
                        if now.duration_since(*since) >= self.hold {
                            return Verdict::Done;
                        }
                    }
                    // The first good look, or a new run of it: a restart in between was no time in health.
                    _ => self.well_since = Some((now, run)),
                }
            }
        }
        if now >= self.deadline { Verdict::NotDone } else { Verdict::Wait }
    }

    /// Whether waiting is useless: a unit that has failed again does not recover by itself.
    fn is_lost(&self, seen: &Observation) -> bool {
        match (seen, &self.before) {
            (Observation::Unit(unit), Observation::Unit(before)) => {
                unit.is_failed() && unit.invocation_id != before.invocation_id
            }
            _ => false,
        }
    }
}

/// What is the same as long as the thing has not been restarted.
fn identity(seen: &Observation) -> String {
    match seen {
        Observation::Filesystem(_) | Observation::Hostname(_) | Observation::Host(_) => String::new(),
        Observation::Unit(unit) => format!("{} {}", unit.invocation_id, unit.restarts),
        Observation::Container(container) => {
            format!("{} {} {:?}", container.id, container.restarts, container.started_seconds)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Unit;

    const VERIFY: Verify =
        Verify { done: DoneWhen::Active, hold: Duration::from_secs(10), within: Duration::from_secs(60) };

    fn unit(active_state: &str, invocation: &str, restarts: u32) -> Observation {
        Observation::Unit(Unit {
            active_state: active_state.to_owned(),
            invocation_id: invocation.to_owned(),
            restarts,
            ..Unit::default()
        })
    }

    /// Feeds looks at whole seconds and answers the first verdict that decides.
    fn verdict(looks: &[(u64, Observation)]) -> (u64, Verdict) {
        let start = Instant::now();
        let mut verification = Verification::begin(&VERIFY, unit("failed", "old", 0), start);
        for (second, seen) in looks {
            match verification.look(Some(seen), start + Duration::from_secs(*second)) {
                Verdict::Wait => {}
                decided => return (*second, decided),
            }
        }
        (u64::MAX, Verdict::Wait)
    }

    #[tokio::test]
    async fn well_for_the_hold_time_is_done() {
        let looks: Vec<_> = (0..60).map(|second| (second, unit("active", "new", 0))).collect();
        assert_eq!(verdict(&looks), (10, Verdict::Done));
    }

    #[tokio::test]
    async fn a_flap_or_a_restart_begins_the_hold_anew() {
        let looks: Vec<_> = (0..60)
            .map(|second| match second {
                5 => (second, unit("activating", "new", 0)),
                6..=14 => (second, unit("active", "new", 0)),
                _ => (second, unit("active", "new", u32::from(second > 14))),
            })
            .collect();
        assert_eq!(verdict(&looks), (25, Verdict::Done));
    }

    #[tokio::test]
    async fn not_well_by_the_deadline_is_not_done() {
        let looks: Vec<_> = (0..=60).map(|second| (second, unit("activating", "new", 0))).collect();
        assert_eq!(verdict(&looks), (60, Verdict::NotDone));
        // Well again just before the deadline is too late for the hold.
        let late: Vec<_> = (0..=60)
            .map(|second| (second, unit(if second < 55 { "activating" } else { "active" }, "new", 0)))
            .collect();
        assert_eq!(verdict(&late), (60, Verdict::NotDone));
    }

    #[tokio::test]
    async fn a_unit_that_fails_again_is_not_waited_for() {
        let looks =
            vec![(1, unit("failed", "old", 0)), (2, unit("active", "new", 0)), (3, unit("failed", "new", 0))];
        assert_eq!(verdict(&looks), (3, Verdict::NotDone));
    }

    #[tokio::test]
    async fn what_cannot_be_seen_is_not_well() {
        let start = Instant::now();
        let mut verification = Verification::begin(&VERIFY, unit("failed", "old", 0), start);
        let well = unit("active", "new", 0);
        assert_eq!(verification.look(Some(&well), start), Verdict::Wait);
        assert_eq!(verification.look(None, start + Duration::from_secs(9)), Verdict::Wait);
        assert_eq!(verification.look(Some(&well), start + Duration::from_secs(11)), Verdict::Wait);
        assert_eq!(verification.look(None, start + Duration::from_secs(60)), Verdict::NotDone);
    }
}
