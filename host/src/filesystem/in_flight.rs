//! Calls that may block for ever, at most one at a time for each subject. Not here: what the calls do, and how many
//! subjects are asked one after the other ([`super::round`]).

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::ProbeError;

/// Threads at once. Each stuck mount holds one, for as long as it is stuck: it can neither be killed nor left.
const MOST: usize = 32;

/// What a call came to.
pub(super) type Outcome<T> = Result<T, Arc<io::Error>>;

/// Where the outcome of a call will be told.
pub(super) type Awaited<T> = watch::Receiver<Option<Outcome<T>>>;

/// The calls under way. Clones share them.
pub(super) struct InFlight<T> {
    calls: Arc<Mutex<HashMap<PathBuf, Call<T>>>>,
}

struct Call<T> {
    outcome: Awaited<T>,
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

/// Who may ask a subject.
pub(super) enum Claim<T> {
    /// Whoever claimed it, now.
    Mine(Asking<T>),
    /// Somebody is asking already: his answer will do.
    Taken(Awaited<T>),
    /// The same, and he was given up on.
    Stuck,
}

/// The right to ask a subject. When it is dropped, also by a panic, the next one may ask.
pub(super) struct Asking<T> {
    tell: watch::Sender<Option<Outcome<T>>>,
    entry: Entry<T>,
}

impl<T: Clone> Asking<T> {
    /// Tells everybody who waits.
    pub(super) fn tell(self, result: io::Result<T>) -> Outcome<T> {
        let outcome = result.map_err(Arc::new);
        // First out of the list, then the answer: who asks after the answer starts anew.
        drop(self.entry);
        let _ = self.tell.send(Some(outcome.clone()));
        outcome
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
        let end = Instant::now() + limit;
        let outcome = match self.claim(&subject) {
            Claim::Stuck => return Err(ProbeError::Stuck),
            Claim::Taken(outcome) => outcome,
            // This one is under way too.
            Claim::Mine(_) if self.is_full(1) => return Err(ProbeError::TooMany),
            Claim::Mine(asking) => {
                let outcome = asking.tell.subscribe();
                start_thread(move || drop(asking.tell(call())))?;
                outcome
            }
        };
        self.wait(&subject, outcome, end).await
    }

    /// The right to ask this subject, unless somebody has it.
    pub(super) fn claim(&self, subject: &Path) -> Claim<T> {
        let mut calls = self.lock();
        match calls.get(subject) {
            Some(call) if call.stuck => Claim::Stuck,
            Some(call) => Claim::Taken(call.outcome.clone()),
            None => {
                let (tell, outcome) = watch::channel(None);
                calls.insert(subject.to_owned(), Call { outcome, stuck: false });
                let entry = Entry { calls: self.clone(), subject: subject.to_owned() };
                Claim::Mine(Asking { tell, entry })
            }
        }
    }

    /// Waits for an outcome until `end`; who is late is remembered as stuck.
    pub(super) async fn wait(
        &self,
        subject: &Path,
        mut outcome: Awaited<T>,
        end: Instant,
    ) -> Result<T, ProbeError> {
        match timeout_at(end, outcome.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => match outcome.as_ref() {
                Some(outcome) => result(outcome),
                None => Err(ProbeError::Stuck),
            },
            // The thread ended without a word: the call panicked.
            Ok(Err(_)) => Err(ProbeError::Os(io::Error::other("the probe ended without an answer"))),
            Err(_) => Err(self.give_up(subject)),
        }
    }

    /// Remembers a subject as stuck until its call returns.
    pub(super) fn give_up(&self, subject: &Path) -> ProbeError {
        if let Some(call) = self.lock().get_mut(subject) {
            call.stuck = true;
        }
        ProbeError::TimedOut
    }

    /// Whether the calls under way, `but` for some of them, hold all the threads that there may be.
    pub(super) fn is_full(&self, but: usize) -> bool {
        self.lock().len().saturating_sub(but) >= MOST
    }
}

impl<T> InFlight<T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Call<T>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call's place in the list.
struct Entry<T> {
    calls: InFlight<T>,
    subject: PathBuf,
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        self.calls.lock().remove(&self.subject);
    }
}

/// A thread that may block for as long as it likes.
pub(super) fn start_thread(work: impl FnOnce() + Send + 'static) -> Result<(), ProbeError> {
    let thread = thread::Builder::new().name("probe".into()).stack_size(128 * 1024);
    thread.spawn(work).map(drop).map_err(ProbeError::Thread)
}

/// `io::Error` cannot be cloned; its code says all that there is to say.
pub(super) fn result<T: Clone>(outcome: &Outcome<T>) -> Result<T, ProbeError> {
    match outcome {
        Ok(value) => Ok(value.clone()),
        Err(error) => Err(ProbeError::Os(error.raw_os_error().map_or_else(
            || io::Error::new(error.kind(), error.to_string()),
            io::Error::from_raw_os_error,
        ))),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::mpsc;

    use super::*;

    pub(in super::super) const PATIENCE: Duration = Duration::from_secs(20);
    const IMPATIENCE: Duration = Duration::from_millis(50);

    /// A call that blocks until the sender is dropped or used.
    fn blocked() -> (mpsc::Sender<()>, impl FnOnce() -> io::Result<u8> + Send + 'static) {
        let (release, wait) = mpsc::channel();
        (release, move || {
            let _ = wait.recv();
            Ok(1)
        })
    }

    pub(in super::super) async fn gone<T>(calls: &InFlight<T>) {
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
