//! CPU time of other processes, to the nanosecond.
//!
//! /proc/PID/stat counts hundredths of a second, which is more than a whole scrape takes. The scheduler's own figure
//! (proc(5), schedstat) is exact, but of one thread: the sum is taken over all threads, and of those that have ended
//! what they were last seen with.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

/// More often than any thread pool lets an idle thread end.
const OFTEN: Duration = Duration::from_secs(1);

/// The CPU time of some processes.
#[derive(Clone)]
pub(crate) struct Clock(Arc<Mutex<Threads>>);

struct Threads {
    processes: Vec<u32>,
    seen: BTreeMap<(u32, u32), u64>,
}

impl Clock {
    /// Begins to follow these processes.
    pub(crate) fn of(processes: &[u32]) -> Self {
        let threads = Threads { processes: processes.to_vec(), seen: BTreeMap::new() };
        let clock = Self(Arc::new(Mutex::new(threads)));
        tokio::spawn(follow(Arc::downgrade(&clock.0)));
        clock
    }

    /// What they have used so far, in milliseconds; only differences mean something.
    pub(crate) fn ms(&self) -> f64 {
        let mut threads = lock(&self.0);
        threads.look();
        #[expect(clippy::cast_precision_loss)]
        let nanoseconds = threads.seen.values().sum::<u64>() as f64;
        nanoseconds / 1e6
    }
}

impl Threads {
    fn look(&mut self) {
        for &process in &self.processes {
            let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
            for task in tasks {
                let spent = fs::read_to_string(task.path().join("schedstat")).ok();
                let spent = spent.and_then(|text| text.split(' ').next()?.parse().ok());
                let thread = task.file_name().to_str().and_then(|name| name.parse().ok());
                if let (Some(thread), Some(spent)) = (thread, spent) {
                    self.seen.insert((process, thread), spent);
                }
            }
        }
    }
}

async fn follow(threads: Weak<Mutex<Threads>>) {
    while let Some(threads) = threads.upgrade() {
        lock(&threads).look();
        drop(threads);
        tokio::time::sleep(OFTEN).await;
    }
}

fn lock(threads: &Mutex<Threads>) -> MutexGuard<'_, Threads> {
    threads.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the calling thread has used so far, in milliseconds.
pub(crate) fn own_thread_ms() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse::<f64>().ok()).unwrap_or_default() / 1e6
}
