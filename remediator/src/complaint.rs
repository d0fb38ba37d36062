//! What goes wrong again and again is told once a minute, with how often it was not told meanwhile: whoever can make it
//! go wrong must not fill the log with it.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Between two of the same.
const PAUSE: Duration = Duration::from_secs(60);

/// One thing to complain about.
#[derive(Debug, Default)]
pub(crate) struct Complaint(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    told: Option<Instant>,
    untold: u64,
}

impl Complaint {
    /// Never told.
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(State { told: None, untold: 0 }))
    }

    /// Whether it is to be told now, and how often it was not since the last time.
    pub(crate) fn is_due(&self) -> Option<u64> {
        self.is_due_at(Instant::now())
    }

    fn is_due_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.told.is_some_and(|told| now.saturating_duration_since(told) < PAUSE) {
            state.untold += 1;
            return None;
        }
        state.told = Some(now);
        Some(std::mem::take(&mut state.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_once_a_minute_with_how_often_it_was_not() {
        let (complaint, begun) = (Complaint::new(), Instant::now());
        let at = |seconds| complaint.is_due_at(begun + Duration::from_secs(seconds));
        assert_eq!(at(0), Some(0));
        assert!((0..60).all(|second| at(second).is_none()));
        assert_eq!((at(60), at(61), at(120)), (Some(60), None, Some(1)));
    }
}
