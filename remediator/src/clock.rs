//! Time as the limits count it. Inside one boot the clock that cannot be set (CLOCK_BOOTTIME, which also runs while
//! the machine sleeps); across boots the wall clock, and where that ran backwards, an entry counts as made when this
//! boot began.

use std::{fs, sync::Arc, time::Duration};

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// One point in time on both clocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Milliseconds since 1970 by the wall clock.
    pub wall_ms: i64,
    /// Milliseconds since boot (CLOCK_BOOTTIME).
    pub boot_ms: i64,
    /// /proc/sys/kernel/random/boot_id of the boot that `boot_ms` counts from.
    pub boot_id: String,
}

/// Begins the stand-in for a boot id that /proc does not tell.
const UNKNOWN: &str = "unknown-";

impl Moment {
    /// How long before `now` this moment was. What was in an earlier boot is at least as old as this one.
    pub fn age(&self, now: &Self) -> Duration {
        let ms = if self.boot_id == now.boot_id {
            now.boot_ms - self.boot_ms
        } else if now.boot_id.starts_with(UNKNOWN) {
            now.wall_ms - self.wall_ms
        } else {
            (now.wall_ms - self.wall_ms).max(now.boot_ms)
        };
        Duration::from_millis(u64::try_from(ms).unwrap_or(0))
    }

    /// When this boot began by the present wall clock, milliseconds since 1970. Moves when the clock is set.
    pub fn epoch_ms(&self) -> i64 {
        self.wall_ms - self.boot_ms
    }

    /// The wall-clock time that is `wait` after this moment, for people.
    pub fn wall_after(&self, wait: Duration) -> i64 {
        self.wall_ms.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))
    }
}

/// Tells the time: by the clocks of this host, or as a test says.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Moment + Send + Sync>);

impl Default for Clock {
    /// The clocks of this host. Remembers which boot this is. Where /proc does not say, every start counts as a boot of
    /// its own, which makes the limits fall back to the wall clock.
    fn default() -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
            .unwrap_or_else(|_| format!("{UNKNOWN}{}", Timestamp::now().as_nanosecond()));
        Self::new(move || {
            let boot = clock_gettime(ClockId::Boottime);
            Moment {
                wall_ms: Timestamp::now().as_millisecond(),
                boot_ms: boot.tv_sec * 1000 + boot.tv_nsec / 1_000_000,
                boot_id: boot_id.clone(),
            }
        })
    }
}

impl Clock {
    /// A clock that says what `read` says.
    pub fn new(read: impl Fn() -> Moment + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// Now.
    pub fn now(&self) -> Moment {
        (self.0)()
    }
}

/// A wall-clock time as people and JSON read it: RFC 3339, UTC, whole seconds.
pub fn rfc3339(wall_ms: i64) -> String {
    Timestamp::from_millisecond(wall_ms)
        .map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_else(|_| "out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(wall_ms: i64, boot_ms: i64, boot_id: &str) -> Moment {
        Moment { wall_ms, boot_ms, boot_id: boot_id.to_owned() }
    }

    #[test]
    fn inside_one_boot_a_set_wall_clock_changes_nothing() {
        let entry = moment(1_000_000, 5_000, "a");
        assert_eq!(entry.age(&moment(0, 8_000, "a")), Duration::from_secs(3));
        assert_eq!(entry.age(&moment(99_000_000, 8_000, "a")), Duration::from_secs(3));
    }

    #[test]
    fn across_boots_the_wall_clock_counts_and_never_backwards() {
        let entry = moment(1_000_000, 900_000, "a");
        assert_eq!(entry.age(&moment(1_060_000, 5_000, "b")), Duration::from_secs(60));
        // It was before this boot began, whatever the clock says.
        assert_eq!(entry.age(&moment(900_000, 5_000, "b")), Duration::from_secs(5));
        // Where the boot is not known, the clock is all there is.
        assert_eq!(entry.age(&moment(900_000, 5_000, "unknown-1")), Duration::ZERO);
        assert_eq!(entry.age(&moment(1_060_000, 900_000, "unknown-1")), Duration::from_secs(60));
    }

    #[test]
    fn writes_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(i64::MAX), "out of range");
    }
}
