//! Lets a test's process die at a chosen moment: before or after a chosen change is on disk.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// Burns one step before and one after each change; at its end whoever asked gets no answer, ever.
#[derive(Clone)]
pub(crate) struct Fuse {
    left: Arc<AtomicUsize>,
    blown: Arc<Notify>,
    /// Whether changes are made by a thread, which a paused clock does not see.
    threaded: bool,
}

impl Default for Fuse {
    /// One that never ends.
    fn default() -> Self {
        Self { left: Arc::new(AtomicUsize::new(usize::MAX)), blown: Arc::default(), threaded: true }
    }
}

impl Fuse {
    /// Ends after so many more steps.
    pub(crate) fn set(&self, steps: usize) {
        self.left.store(steps, Ordering::SeqCst);
    }

    pub(super) async fn burn(&self) {
        let less = |left: usize| Some(if left == usize::MAX { left } else { left.saturating_sub(1) });
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).unwrap_or(0);
        if left == 0 {
            self.blown.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// One for a journal whose writer is a task of the same runtime.
    pub(super) fn of_a_task() -> Self {
        Self { threaded: false, ..Self::default() }
    }

    /// Holds the paused clock as long as this lives.
    pub(super) fn standstill(&self) -> Option<Standstill> {
        self.threaded.then(standstill)
    }

    /// Returns when it has ended.
    pub(crate) async fn blown(&self) {
        self.blown.notified().await;
    }
}

/// Keeps a test's paused time from running on while a change is on its way to the disk: tokio lets it stand as long as
/// something blocks.
pub(super) struct Standstill {
    _ends_it: std::sync::mpsc::Sender<()>,
}

fn standstill() -> Standstill {
    let (ends_it, ended) = std::sync::mpsc::channel();
    drop(tokio::task::spawn_blocking(move || ended.recv()));
    Standstill { _ends_it: ends_it }
}
