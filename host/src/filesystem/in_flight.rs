//! Calls that may block for ever, at most one at a time for each subject. Not here: what the calls do.

use std::{
    collections::HashMap,
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use super::ProbeError;

/// Threads at once. Each stuck mount holds one, for as long as it is stuck: it can neither be killed nor left.
const MOST: usize = 32;

/// What a call came to.
type Outcome<T> = Result<T, Arc<io::Error>>;

/// The calls under way. Clones share them.
pub(super) struct InFlight<T> {
    calls: Arc<Mutex<HashMap<PathBuf, Call<T>>>>,
}

struct Call<T> {
    outcome: watch::Receiver<Option<Outcome<T>>>,
    /// Someone waited for it to the end of his patience.
    stuck: bool,
}

impl<T> Clone for InFlight<T> {
    fn clone(&self) -> Self {
        Self { calls: Arc::clone(&self.calls) }
    }
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        Self { calls: Arc::default() }
    }
}

impl<T> fmt::Debug for InFlight<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = self.lock();
        formatter.debug_map().entries(calls.iter().map(|(subject, call)| (subject, call.stuck))).finish()
    }
}

impl<T: Clone + Send + Sync + 'static> InFlight<T> {
    /// The outcome of `call`, run on a thread of its own; or of the one that is already under way for this subject. A
    /// subject that is known to be stuck is not waited for again until its call returns.
    ///
    /// Not `spawn_blocking`: a runtime that shuts down waits for its blocking tasks, for a plain thread it does not.
    pub(super) async fn run(
        &self,
        subject: PathBuf,
        limit: Duration,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, ProbeError> {
        let mut outcome = self.join_or_start(&subject, call)?;
        match timeout(limit, outcome.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => match outcome.as_ref() {
                Some(Ok(value)) => Ok(value.clone()),
                Some(Err(error)) => Err(ProbeError::Os(copy(error))),
                None => Err(ProbeError::Stuck),
            },
            // The thread ended without a word: the call panicked.
            Ok(Err(_)) => Err(ProbeError::Os(io::Error::other("the probe ended without an answer"))),
            Err(_) => {
                if let Some(call) = self.lock().get_mut(&subject) {
                    call.stuck = true;
                }
                Err(ProbeError::TimedOut)
            }
        }
    }

    fn join_or_start(
        &self,
        subject: &PathBuf,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<watch::Receiver<Option<Outcome<T>>>, ProbeError> {
        let mut calls = self.lock();
        if let Some(under_way) = calls.get(subject) {
            return if under_way.stuck { Err(ProbeError::Stuck) } else { Ok(under_way.outcome.clone()) };
        }
        if calls.len() >= MOST {
            return Err(ProbeError::TooMany);
        }
        let (tell, outcome) = watch::channel(None);
        calls.insert(subject.clone(), Call { outcome: outcome.clone(), stuck: false });
        // A thread that cannot start drops its closure, and with it the entry, which takes this lock.
        drop(calls);
        let done = Done { calls: Arc::clone(&self.calls), subject: subject.clone() };
        thread::Builder::new()
            .name("probe".into())
            .stack_size(128 * 1024)
            .spawn(move || {
                let result = call().map_err(Arc::new);
                // First out of the list, then the answer: who asks after the answer starts anew.
                drop(done);
                let _ = tell.send(Some(result));
            })
            .map_err(ProbeError::Thread)?;
        Ok(outcome)
    }
}

impl<T> InFlight<T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Call<T>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a call out of the list when its thread is through with it, also by a panic.
struct Done<T> {
    calls: Arc<Mutex<HashMap<PathBuf, Call<T>>>>,
    subject: PathBuf,
}

impl<T> Drop for Done<T> {
    fn drop(&mut self) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.subject);
    }
}

/// `io::Error` cannot be cloned; its code says all that there is to say.
fn copy(error: &io::Error) -> io::Error {
    error
        .raw_os_error()
        .map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);
    const IMPATIENCE: Duration = Duration::from_millis(50);

    /// A call that blocks until the sender is dropped or used.
    fn blocked() -> (mpsc::Sender<()>, impl FnOnce() -> io::Result<u8> + Send + 'static) {
        let (release, wait) = mpsc::channel();
        (release, move || {
            let _ = wait.recv();
            Ok(1)
        })
    }

    async fn gone<T>(calls: &InFlight<T>) {
        while !calls.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn a_stuck_subject_is_remembered_until_it_returns() {
        let calls = InFlight::default();
        let (release, call) = blocked();
        let path = PathBuf::from("/mnt/dead");
        assert!(matches!(calls.run(path.clone(), IMPATIENCE, call).await, Err(ProbeError::TimedOut)));
        let never = || -> io::Result<u8> { unreachable!("a second thread for a stuck mount") };
        assert!(matches!(calls.run(path.clone(), PATIENCE, never).await, Err(ProbeError::Stuck)));
        assert_eq!(calls.run("/mnt/alive".into(), PATIENCE, || Ok(2)).await.unwrap(), 2);
        drop(release);
        gone(&calls).await;
        assert_eq!(calls.run(path, PATIENCE, || Ok(3)).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn two_at_once_share_one_call() {
        let calls = InFlight::default();
        let (release, call) = blocked();
        let first = calls.run("/x".into(), PATIENCE, call);
        let second = calls.run("/x".into(), PATIENCE, || unreachable!("a second call"));
        let release = async { drop(release) };
        let (first, second, ()) = tokio::join!(first, second, release);
        assert_eq!((first.unwrap(), second.unwrap()), (1, 1));
    }

    #[tokio::test]
    async fn errors_and_panics_come_back() {
        let calls = InFlight::<u8>::default();
        let refused =
            calls.run("/x".into(), PATIENCE, || Err(io::Error::from_raw_os_error(13))).await.unwrap_err();
        assert_eq!(refused.to_string(), "Permission denied (os error 13)");
        let panicked = calls.run("/x".into(), PATIENCE, || panic!("as the test wants")).await.unwrap_err();
        assert_eq!(panicked.reason(), "os");
        assert_eq!(calls.run("/x".into(), PATIENCE, || Ok(1)).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn threads_are_bounded() {
        let calls = InFlight::default();
        let mut held = Vec::new();
        for number in 0..MOST {
            let (release, call) = blocked();
            held.push(release);
            let path = PathBuf::from(format!("/mnt/{number}"));
            assert!(matches!(calls.run(path, Duration::ZERO, call).await, Err(ProbeError::TimedOut)));
        }
        let one_more = calls.run("/mnt/more".into(), PATIENCE, || Ok(1)).await;
        assert!(matches!(one_more, Err(ProbeError::TooMany)));
        drop(held);
        gone(&calls).await;
        assert_eq!(calls.run("/mnt/more".into(), PATIENCE, || Ok(1)).await.unwrap(), 1);
    }
}
