//! Puts the picture into print: blocks of series that stay the same as long as what they say does.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use evenkeel_host::metrics::{Block, Draft, Family, Renewed};
use rustix::time::{ClockId, clock_gettime};

use super::families::{self, Seen};

/// A clock that was set by less than this makes no difference to what a timer does next.
const SLIGHT: Duration = Duration::from_secs(1);

/// What was printed last.
#[derive(Debug, Default)]
pub(super) struct Press {
    small: Renewed,
    units: Option<(u64, Arc<Block>)>,
    /// When the monotonic clock was 0, as the timers' next times were printed with it.
    clock_start: Option<SystemTime>,
}

impl Press {
    /// Whether the series of the units are to be printed anew, and with which start of the monotonic clock.
    pub(super) fn needs_units(&mut self, version: u64) -> Option<SystemTime> {
        let now = clock_start();
        let before = self.clock_start.filter(|before| families::difference(*before, now) < SLIGHT);
        let is_printed = self.units.as_ref().is_some_and(|(printed, _)| *printed == version);
        if before.is_some() && is_printed {
            return None;
        }
        Some(*self.clock_start.insert(before.unwrap_or(now)))
    }

    /// Prints the series of units.
    pub(super) fn print_units(&mut self, units: &[Seen], clock_start: SystemTime, version: u64) {
        let mut draft = Draft::default();
        families::write(&mut draft, units, clock_start);
        self.units = Some((version, Arc::new(draft.finish())));
    }

    /// All blocks: of `small` families, and of the series of units as they were last printed.
    pub(super) fn blocks(&self, small: Vec<Family>) -> Vec<Arc<Block>> {
        let mut blocks = self.small.blocks(small);
        blocks.extend(self.units.as_ref().map(|(_, block)| Arc::clone(block)));
        blocks
    }
}

/// When the monotonic clock was 0.
fn clock_start() -> SystemTime {
    let monotonic = clock_gettime(ClockId::Monotonic);
    let since = Duration::new(
        u64::try_from(monotonic.tv_sec).unwrap_or_default(),
        u32::try_from(monotonic.tv_nsec).unwrap_or_default(),
    );
    SystemTime::now().checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH)
}
