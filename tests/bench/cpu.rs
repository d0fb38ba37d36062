//! CPU time of other processes, to the nanosecond.
//!
//! The clock of a process (clock_getcpuclockid(3)) counts all of its threads, also those that have ended. What /proc shows
//! does not do: stat counts hundredths of a second, which is more than a whole scrape takes, and schedstat one thread.

use std::{fs, time::Duration};

use nix::{time::clock_getcpuclockid, unistd::Pid};

/// The CPU time of some processes that live on.
#[derive(Clone)]
pub(crate) struct Clock(Vec<u32>);

impl Clock {
    /// Of these processes together.
    pub(crate) fn of(processes: &[u32]) -> Self {
        Self(processes.to_vec())
    }

    /// What they have used so far, in milliseconds; only differences mean something, and none when one has ended.
    pub(crate) fn ms(&self) -> f64 {
        self.0
            .iter()
            .map(|process| spent(*process).map_or(f64::NAN, |spent| spent.as_secs_f64() * 1000.0))
            .sum()
    }
}

fn spent(process: u32) -> Option<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(process.try_into().ok()?)).ok()?;
    clock.now().ok().map(Duration::from)
}

/// What the calling thread has used so far, in milliseconds.
pub(crate) fn own_thread_ms() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse::<f64>().ok()).unwrap_or_default() / 1e6
}
