//! Work that several callers share while it is under way.

use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::{sync::oneshot, time::Instant};

/// The result, or `None` when the work ended without one.
pub(super) type Landing<T> = Shared<BoxFuture<'static, Option<T>>>;

/// At most one piece of work that newcomers may join. It runs in a task of its own: whoever asked may go away.
pub(super) struct Flight<T: Clone> {
    current: Mutex<Option<(Instant, Landing<T>)>>,
}

impl<T: Clone> Default for Flight<T> {
    fn default() -> Self {
        Self { current: Mutex::new(None) }
    }
}

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Joins the work under way if `may_join` likes when it will end, or starts `work`, which will end at `until`.
    /// Says also whether it was started.
    pub(super) fn join_or_start(
        &self,
        may_join: impl FnOnce(Instant) -> bool,
        until: Instant,
        work: impl Future<Output = T> + Send + 'static,
    ) -> (Landing<T>, bool) {
        let mut current = self.lock();
        if let Some((end, landing)) = current.as_ref()
            && !has_landed(landing)
            && may_join(*end)
        {
            return (landing.clone(), false);
        }
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(async move {
            // Nobody waits any more: the result is for nobody.
            let _ = sender.send(work.await);
        });
        let landing = receiver.map(Result::ok).boxed().shared();
        *current = Some((until, landing.clone()));
        (landing, true)
    }

    /// Lets go of a result that all who wanted it have.
    pub(super) fn forget_landed(&self) {
        let mut current = self.lock();
        if current.as_ref().is_some_and(|(_, landing)| has_landed(landing)) {
            *current = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Instant, Landing<T>)>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the work has ended. Polled, not peeked at: where all who asked have gone away nobody else has done so, and
/// an old result would pass for work under way.
fn has_landed<T: Clone>(landing: &Landing<T>) -> bool {
    landing.clone().now_or_never().is_some()
}
