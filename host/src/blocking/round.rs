//! Many subjects asked one after the other on one thread, which costs next to nothing while all of them answer. Where one
//! blocks, another thread takes over those behind it: it costs only itself.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{
    Error,
    in_flight::{Awaited, Claim, InFlight, Outcome, result},
    threads::hand_over,
};

/// How long nothing moves before another thread takes over. Too short only costs a thread, and too long is what every
/// mount that died since the last round adds to this one.
const STANDSTILL: Duration = Duration::from_millis(20);

/// What all threads of a round share.
struct Round<T, F> {
    calls: InFlight<T>,
    subjects: Vec<Arc<Path>>,
    ask: F,
    progress: Mutex<Progress<T>>,
    complete: Notify,
}

struct Progress<T> {
    /// The first subject that nobody has taken up.
    next: usize,
    /// One for each subject.
    answers: Vec<Answer<T>>,
    /// How many answers are missing.
    missing: usize,
}

enum Answer<T> {
    Missing,
    Here(Outcome<T>),
    /// Somebody else asks the same right now.
    Elsewhere(Awaited<T>),
    /// Somebody else asked, and was given up on.
    Stuck,
}

impl<T: Clone + Send + 'static> InFlight<T> {
    /// What `ask` says of every subject, in their order, within `limit`. A subject that does not answer by then is
    /// remembered as stuck, and left out until it does.
    pub(crate) async fn run_all(
        &self,
        subjects: Vec<Arc<Path>>,
        limit: Duration,
        ask: impl Fn(&Path) -> io::Result<T> + Send + Sync + 'static,
    ) -> Vec<Result<T, Error>> {
        if subjects.is_empty() {
            return Vec::new();
        }
        let end = Instant::now() + limit;
        let missing = subjects.len();
        let answers = subjects.iter().map(|_| Answer::Missing).collect();
        let progress = Mutex::new(Progress { next: 0, answers, missing });
        let round = Arc::new(Round { calls: self.clone(), subjects, ask, progress, complete: Notify::new() });
        let started = round.answer_all(end).await;
        let Progress { next, answers, .. } = round.close();
        let mut results = Vec::with_capacity(missing);
        for (index, (answer, subject)) in answers.into_iter().zip(&round.subjects).enumerate() {
            results.push(match answer {
                Answer::Here(outcome) => result(outcome),
                Answer::Stuck => Err(Error::Stuck),
                Answer::Elsewhere(outcome) => self.wait(subject, outcome, end).await,
                Answer::Missing if index < next => Err(self.give_up(subject)),
                Answer::Missing if started.is_err() => Err(Error::TooMany),
                Answer::Missing => Err(Error::TimedOut),
            });
        }
        results
    }
}

impl<T, F> Round<T, F>
where
    T: Clone + Send + 'static,
    F: Fn(&Path) -> io::Result<T> + Send + Sync + 'static,
{
    /// Waits until every subject has answered, but not beyond `end`.
    ///
    /// # Errors
    /// When there were subjects left that no thread could be started for.
    async fn answer_all(self: &Arc<Self>, end: Instant) -> Result<(), Error> {
        // However many are stuck, those that are well get their thread.
        self.start_thread()?;
        let mut started = Ok(());
        loop {
            let before = self.lock().next;
            let tick = end.min(Instant::now() + STANDSTILL);
            if timeout_at(tick, self.complete.notified()).await.is_ok() || tick == end {
                return started;
            }
            let stands_still = self.lock().next == before && before < self.subjects.len();
            if stands_still {
                started = if self.calls.is_full(0) { Err(Error::TooMany) } else { self.start_thread() };
            }
        }
    }

    fn start_thread(self: &Arc<Self>) -> Result<(), Error> {
        let round = Arc::clone(self);
        hand_over(move || round.work())
    }

    /// Asks until nothing is left.
    fn work(&self) {
        while let Some((index, subject)) = self.take() {
            let answer = match self.calls.claim(subject) {
                Claim::Mine(asking) => Answer::Here(asking.tell((self.ask)(subject))),
                Claim::Taken(outcome) => Answer::Elsewhere(outcome),
                Claim::Stuck => Answer::Stuck,
            };
            self.put(index, answer);
        }
    }

    fn take(&self) -> Option<(usize, &Arc<Path>)> {
        let mut progress = self.lock();
        let index = progress.next;
        let subject = self.subjects.get(index)?;
        progress.next += 1;
        Some((index, subject))
    }

    fn put(&self, index: usize, answer: Answer<T>) {
        let mut progress = self.lock();
        // Nobody waits for it any more once the round is closed.
        if let Some(place) = progress.answers.get_mut(index) {
            *place = answer;
            progress.missing -= 1;
            if progress.missing == 0 {
                self.complete.notify_one();
            }
        }
    }

    /// What there is by now. Threads that come back later find nothing left to do.
    fn close(&self) -> Progress<T> {
        let closed = Progress { next: self.subjects.len(), answers: Vec::new(), missing: 0 };
        std::mem::replace(&mut *self.lock(), closed)
    }

    fn lock(&self) -> MutexGuard<'_, Progress<T>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        sync::{
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
    };

    use super::{
        super::in_flight::tests::{PATIENCE, gone},
        *,
    };

    fn path(name: &str) -> Arc<Path> {
        Path::new(name).into()
    }

    fn paths<const N: usize>(names: [&str; N]) -> Vec<Arc<Path>> {
        names.map(path).to_vec()
    }

    /// Paths with `dead` in their name block until the sender is dropped; the others say how long they are.
    fn ask() -> (mpsc::Sender<()>, impl Fn(&Path) -> io::Result<usize> + Send + Sync + Clone + 'static) {
        let (release, wait) = mpsc::channel();
        let wait = Arc::new(Mutex::new(wait));
        (release, move |path: &Path| {
            let name = path.to_string_lossy();
            if name.contains("dead") {
                let _ = wait.lock().unwrap_or_else(PoisonError::into_inner).recv();
            }
            if name.contains("none") { Err(io::Error::from_raw_os_error(2)) } else { Ok(name.len()) }
        })
    }

    fn words(results: Vec<Result<usize, Error>>) -> Vec<String> {
        let word = |result| match result {
            Ok(length) => format!("{length}"),
            Err(error) => Error::reason(&error).to_owned(),
        };
        results.into_iter().map(word).collect()
    }

    #[tokio::test]
    async fn answers_come_in_the_order_of_the_questions() {
        let calls = InFlight::default();
        let (_release, ask) = ask();
        let results = calls.run_all(paths(["/a", "/none", "/abc"]), PATIENCE, ask).await;
        assert_eq!(words(results), ["2", "os", "4"]);
        assert_eq!(words(calls.run_all(Vec::new(), PATIENCE, |_| Ok(1)).await), [""; 0]);
    }

    #[tokio::test]
    async fn many_subjects_do_not_take_many_threads() {
        let calls = InFlight::default();
        let threads = Arc::new(Mutex::new(HashSet::new()));
        let seen = Arc::clone(&threads);
        let ask = move |_: &Path| {
            seen.lock().unwrap().insert(std::thread::current().id());
            Ok(1)
        };
        let all = (0..1000).map(|number| path(&format!("/{number}"))).collect();
        assert!(calls.run_all(all, PATIENCE, ask).await.into_iter().all(|result| result.is_ok()));
        // One, and on a busy machine a few that took over from one that had to wait for its turn.
        assert!(threads.lock().unwrap().len() < 50);
    }

    #[tokio::test]
    async fn the_dead_cost_only_themselves_and_are_left_out_until_they_return() {
        let calls = InFlight::default();
        let (release, ask) = ask();
        let all = paths(["/a", "/dead/1", "/ab", "/dead/2", "/abc"]);
        let limit = Duration::from_millis(500);
        let results = calls.run_all(all.clone(), limit, ask.clone()).await;
        assert_eq!(words(results), ["2", "timeout", "3", "timeout", "4"]);
        // Now they are known, and nobody waits for them.
        let begun = Instant::now();
        let results = calls.run_all(all.clone(), PATIENCE, ask.clone()).await;
        assert_eq!(words(results), ["2", "stuck", "3", "stuck", "4"]);
        assert!(begun.elapsed() < PATIENCE / 2);
        drop(release);
        gone(&calls).await;
        assert_eq!(words(calls.run_all(all, PATIENCE, ask).await), ["2", "7", "3", "7", "4"]);
    }

    #[tokio::test]
    async fn those_that_are_well_answer_however_many_are_dead() {
        let calls = InFlight::default();
        let (release, ask) = ask();
        let mut all: Vec<_> = (0..40).map(|number| path(&format!("/dead/{number}"))).collect();
        all.push(path("/well"));
        // All threads are held by the first of them.
        let results = words(calls.run_all(all.clone(), Duration::from_secs(2), ask.clone()).await);
        assert_eq!(results[0], "timeout");
        assert_eq!(results[40], "too_many");
        // Each further round finds one more of them dead, until the last one is left.
        for _ in 0..8 {
            calls.run_all(all.clone(), Duration::from_millis(50), ask.clone()).await;
        }
        assert_eq!(words(calls.run_all(all, PATIENCE, ask).await)[40], "5");
        drop(release);
        gone(&calls).await;
    }

    #[tokio::test]
    async fn two_rounds_at_once_ask_nobody_twice() {
        let calls = InFlight::default();
        let (release, ask) = ask();
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let ask = move |path: &Path| {
            counter.fetch_add(1, Ordering::SeqCst);
            ask(path)
        };
        let first = calls.run_all(paths(["/dead"]), PATIENCE, ask.clone());
        let second = async {
            while asked.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            let second = calls.run_all(paths(["/dead", "/a"]), PATIENCE, ask.clone());
            let release = async { drop(release) };
            tokio::join!(second, release).0
        };
        let (first, second) = tokio::join!(first, second);
        assert_eq!(
            (words(first), words(second)),
            (vec!["5".to_owned()], vec!["5".to_owned(), "2".to_owned()])
        );
        assert!(asked.load(Ordering::SeqCst) <= 3);
    }

    #[tokio::test]
    async fn a_panic_costs_only_its_subject() {
        let calls = InFlight::default();
        let ask = |path: &Path| if path.ends_with("bad") { panic!("as the test wants") } else { Ok(1) };
        let results = calls.run_all(paths(["/bad", "/good"]), Duration::from_millis(500), ask).await;
        assert_eq!(words(results), ["timeout", "1"]);
        gone(&calls).await;
        assert_eq!(words(calls.run_all(paths(["/bad"]), PATIENCE, |_| Ok(2)).await), ["2"]);
    }
}
