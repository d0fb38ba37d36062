//! Threads for calls that may block for ever. One whose call came back waits for the next: starting a thread costs more
//! than most of what is asked from it, and each new one may leave a heap of its own behind.
//!
//! Not `spawn_blocking`: a runtime that shuts down waits for its blocking tasks, for a plain thread it does not.

use std::{
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};

use super::Error;

type Work = Box<dyn FnOnce() + Send>;

/// How many wait for work; more than these end with their call. Two, because who has an answer often asks the next
/// question before the thread that gave it has come to wait.
const KEPT: usize = 2;

/// Those that wait, each by the way to give it work.
static WAITING: Mutex<Vec<mpsc::Sender<Work>>> = Mutex::new(Vec::new());

/// Does `work` on a thread that may block for as long as it likes.
///
/// # Errors
/// [`Error::Thread`] when one would have to be started and cannot.
pub(super) fn hand_over(work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let work: Work = Box::new(work);
    let waiting = waiting().pop();
    match waiting {
        Some(thread) => thread.send(work).or_else(|mpsc::SendError(work)| start(work)),
        None => start(work),
    }
}

fn start(mut work: Work) -> Result<(), Error> {
    let thread = thread::Builder::new().name("probe".into()).stack_size(128 * 1024);
    let (give, given) = mpsc::channel();
    let live = move || {
        loop {
            work();
            if !wait(&give) {
                return;
            }
            let Ok(next) = given.recv() else { return };
            work = next;
        }
    };
    thread.spawn(live).map(drop).map_err(Error::Thread)
}

/// Enters a thread among those that wait, unless there are enough.
fn wait(give: &mpsc::Sender<Work>) -> bool {
    let mut waiting = waiting();
    let has_room = waiting.len() < KEPT;
    if has_room {
        waiting.push(give.clone());
    }
    has_room
}

fn waiting() -> MutexGuard<'static, Vec<mpsc::Sender<Work>>> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use super::*;

    #[test]
    fn threads_that_came_back_are_used_again() {
        let (tell, told) = mpsc::channel();
        let mut threads = HashSet::new();
        for _ in 0..100 {
            let tell = tell.clone();
            hand_over(move || tell.send(thread::current().id()).unwrap()).unwrap();
            threads.insert(told.recv().unwrap());
            // Other tests of this process take from the same threads.
            thread::sleep(Duration::from_millis(1));
        }
        assert!(threads.len() < 50, "{} threads for 100 calls", threads.len());
    }

    #[test]
    fn blocked_threads_hold_up_nobody() {
        let (release, wait) = mpsc::channel::<()>();
        let wait = std::sync::Arc::new(Mutex::new(wait));
        for _ in 0..KEPT + 2 {
            let wait = std::sync::Arc::clone(&wait);
            let blocks = move || {
                let _ = wait.lock().unwrap_or_else(PoisonError::into_inner).recv();
            };
            hand_over(blocks).unwrap();
        }
        let (tell, told) = mpsc::channel();
        hand_over(move || tell.send(()).unwrap()).unwrap();
        told.recv_timeout(Duration::from_secs(20)).unwrap();
        drop(release);
    }
}
