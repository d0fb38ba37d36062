//! Calls that may block for ever, at most one at a time for each subject. Not here: what the calls do, and how many
//! subjects are asked one after the other ([`super::round`]).

use std::{
    fmt, io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{Error, threads::hand_over};

/// Threads at once. Each stuck mount holds one, for as long as it is stuck: it can neither be killed nor left.
const MOST: usize = 32;

/// What a call came to.
pub(super) type Outcome<T> = Result<T, Arc<io::Error>>;

/// Where the outcome of a call will be told.
pub(super) type Awaited<T> = oneshot::Receiver<Outcome<T>>;

/// The calls under way. Clones share them.
pub(crate) struct InFlight<T> {
    /// As many as there are threads: too few for anything quicker than looking through them.
    calls: Arc<Mutex<Vec<Call<T>>>>,
}

struct Call<T> {
    subject: Arc<Path>,
    waiting: Vec<oneshot::Sender<Outcome<T>>>,
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
        formatter.debug_map().entries(calls.iter().map(|call| (&call.subject, call.stuck))).finish()
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
    calls: InFlight<T>,
    /// `None` once the outcome is told: somebody else may be asking the same by then.
    subject: Option<Arc<Path>>,
}

impl<T: Clone> Asking<T> {
    /// Tells everybody who waits.
    pub(super) fn tell(mut self, result: io::Result<T>) -> Outcome<T> {
        let outcome = result.map_err(Arc::new);
        // First out of the list, then the answer: who asks after the answer starts anew.
        for waiting in self.end() {
            // Who no longer waits does not want it.
            let _ = waiting.send(outcome.clone());
        }
        outcome
    }
}

impl<T> Asking<T> {
    fn end(&mut self) -> Vec<oneshot::Sender<Outcome<T>>> {
        self.subject.take().map_or_else(Vec::new, |subject| self.calls.end(&subject))
    }
}

impl<T> Drop for Asking<T> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<T: Clone + Send + 'static> InFlight<T> {
    /// The outcome of `call`, run on a thread of its own; or of the one that is already under way for this subject. A
    /// subject that is known to be stuck is not waited for again until its call returns.
    pub(crate) async fn run(
        &self,
        subject: Arc<Path>,
        limit: Duration,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let end = Instant::now() + limit;
        let outcome = match self.claim(&subject) {
            Claim::Stuck => return Err(Error::Stuck),
            Claim::Taken(outcome) => outcome,
            // This one is under way too.
            Claim::Mine(_) if self.is_full(1) => return Err(Error::TooMany),
            Claim::Mine(asking) => {
                let (tell, outcome) = oneshot::channel();
                hand_over(move || drop(tell.send(asking.tell(call()))))?;
                outcome
            }
        };
        self.wait(&subject, outcome, end).await
    }

    /// Waits for an outcome until `end`; who is late is remembered as stuck.
    pub(super) async fn wait(&self, subject: &Path, outcome: Awaited<T>, end: Instant) -> Result<T, Error> {
        match timeout_at(end, outcome).await {
            Ok(Ok(outcome)) => result(outcome),
            // The thread ended without a word: the call panicked.
            Ok(Err(_)) => Err(Error::Os(io::Error::other("the probe ended without an answer"))),
            Err(_) => Err(self.give_up(subject)),
        }
    }
}

impl<T> InFlight<T> {
    /// The right to ask this subject, unless somebody has it.
    pub(super) fn claim(&self, subject: &Arc<Path>) -> Claim<T> {
        let mut calls = self.lock();
        match calls.iter_mut().find(|call| is_same(&call.subject, subject)) {
            Some(call) if call.stuck => Claim::Stuck,
            Some(call) => {
                let (tell, outcome) = oneshot::channel();
                call.waiting.push(tell);
                Claim::Taken(outcome)
            }
            None => {
                let subject = Arc::clone(subject);
                calls.push(Call { subject: Arc::clone(&subject), waiting: Vec::new(), stuck: false });
                Claim::Mine(Asking { calls: self.clone(), subject: Some(subject) })
            }
        }
    }

    /// Takes a call out of the list; gives who waits for its outcome.
    fn end(&self, subject: &Path) -> Vec<oneshot::Sender<Outcome<T>>> {
        let mut calls = self.lock();
        let place = calls.iter().position(|call| is_same(&call.subject, subject));
        place.map_or_else(Vec::new, |place| calls.swap_remove(place).waiting)
    }

    /// Remembers a subject as stuck until its call returns.
    pub(super) fn give_up(&self, subject: &Path) -> Error {
        if let Some(call) = self.lock().iter_mut().find(|call| is_same(&call.subject, subject)) {
            call.stuck = true;
        }
        Error::TimedOut
    }

    /// Whether the calls under way, `but` for some of them, hold all the threads that there may be.
    pub(super) fn is_full(&self, but: usize) -> bool {
        self.lock().len().saturating_sub(but) >= MOST
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Call<T>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By their bytes: comparing paths part by part costs more than asking the kernel.
fn is_same(one: &Path, other: &Path) -> bool {
    one.as_os_str() == other.as_os_str()
}

/// `io::Error` cannot be cloned; its code says all that there is to say.
pub(super) fn result<T>(outcome: Outcome<T>) -> Result<T, Error> {
    outcome.map_err(|error| {
        Error::Os(
            error.raw_os_error().map_or_else(
                || io::Error::new(error.kind(), error.to_string()),
                io::Error::from_raw_os_error,
            ),
        )
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::{path::PathBuf, sync::mpsc};

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
        let path: Arc<Path> = Path::new("/mnt/dead").into();
        assert!(matches!(calls.run(path.clone(), IMPATIENCE, call).await, Err(Error::TimedOut)));
        let never = || -> io::Result<u8> { unreachable!("a second thread for a stuck mount") };
        assert!(matches!(calls.run(path.clone(), PATIENCE, never).await, Err(Error::Stuck)));
        assert_eq!(calls.run(Path::new("/mnt/alive").into(), PATIENCE, || Ok(2)).await.unwrap(), 2);
        drop(release);
        gone(&calls).await;
        assert_eq!(calls.run(path, PATIENCE, || Ok(3)).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn two_at_once_share_one_call() {
        let calls = InFlight::default();
        let (release, call) = blocked();
        let first = calls.run(Path::new("/x").into(), PATIENCE, call);
        let second = calls.run(Path::new("/x").into(), PATIENCE, || unreachable!("a second call"));
        let release = async { drop(release) };
        let (first, second, ()) = tokio::join!(first, second, release);
        assert_eq!((first.unwrap(), second.unwrap()), (1, 1));
    }

    #[tokio::test]
    async fn errors_and_panics_come_back() {
        let calls = InFlight::<u8>::default();
        let refused = calls
            .run(Path::new("/x").into(), PATIENCE, || Err(io::Error::from_raw_os_error(13)))
            .await
            .unwrap_err();
        assert_eq!(refused.to_string(), "Permission denied (os error 13)");
        let panicked =
            calls.run(Path::new("/x").into(), PATIENCE, || panic!("as the test wants")).await.unwrap_err();
        assert_eq!(panicked.reason(), "os");
        assert_eq!(calls.run(Path::new("/x").into(), PATIENCE, || Ok(1)).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn threads_are_bounded() {
        let calls = InFlight::default();
        let mut held = Vec::new();
        for number in 0..MOST {
            let (release, call) = blocked();
            held.push(release);
            let path = PathBuf::from(format!("/mnt/{number}"));
            assert!(matches!(calls.run(path.into(), Duration::ZERO, call).await, Err(Error::TimedOut)));
        }
        let one_more = calls.run(Path::new("/mnt/more").into(), PATIENCE, || Ok(1)).await;
        assert!(matches!(one_more, Err(Error::TooMany)));
        drop(held);
        gone(&calls).await;
        assert_eq!(calls.run(Path::new("/mnt/more").into(), PATIENCE, || Ok(1)).await.unwrap(), 1);
    }
}
