//! How many connections are served at once, and which one has to go when there are too many: of those whose client has
//! shown no login the one that has said nothing for longest, and only then one of those that have. So neither idle nor
//! slow nor busy strangers keep others out.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// A connection that has waited so long for its client, which has shown a login, may be ended in favour of another one.
/// A request that is on its way across the world arrives within it.
const YIELDS_AFTER: Duration = Duration::from_secs(2);

/// A connection without a login may be ended when it is so old, whatever has been asked on it: whoever has one shows it
/// with the first request.
const STRANGERS_YIELD_AFTER: Duration = Duration::from_millis(250);

/// How long to wait for the place of one that is being ended, or until one may be.
const PACE: Duration = Duration::from_millis(50);

/// The connections of one server.
pub(super) struct Slots {
    free: Arc<Semaphore>,
    taken: Arc<Mutex<BTreeMap<u64, Arc<Activity>>>>,
    next: AtomicU64,
}

impl Slots {
    pub(super) fn new(connections: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(connections)), taken: Arc::default(), next: AtomicU64::new(0) }
    }

    /// Waits until there is a free one, or one whose client does not use it.
    pub(super) async fn take(&self) -> Slot {
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            return self.slot(permit);
        }
        loop {
            self.end_the_quietest();
            match timeout(PACE, Arc::clone(&self.free).acquire_owned()).await {
                Ok(Ok(permit)) => return self.slot(permit),
                // Nobody closes the semaphore.
                Ok(Err(_)) => std::future::pending().await,
                Err(_) => {}
            }
        }
    }

    fn slot(&self, permit: OwnedSemaphorePermit) -> Slot {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let activity = Arc::new(Activity::new());
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.insert(number, Arc::clone(&activity));
        Slot { activity, number, taken: Arc::clone(&self.taken), _permit: permit }
    }

    fn end_the_quietest(&self) {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let ending = taken.values().filter_map(|activity| Some((activity.rank()?, activity)));
        if let Some((_, activity)) = ending.min_by_key(|(rank, _)| *rank) {
            activity.yields.cancel();
        }
    }
}

/// A place among the connections, free again when dropped.
pub(super) struct Slot {
    pub(super) activity: Arc<Activity>,
    number: u64,
    taken: Arc<Mutex<BTreeMap<u64, Arc<Activity>>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

/// What a connection is doing.
pub(super) struct Activity {
    /// Set when another connection needs the place.
    pub(super) yields: CancellationToken,
    requests: AtomicUsize,
    busy: AtomicBool,
    /// Bytes have come that no answered request has asked us to expect.
    unread: AtomicBool,
    /// The client has shown a login, or a certificate.
    known: AtomicBool,
    since: Instant,
    quiet_since: Mutex<Instant>,
}

impl Activity {
    fn new() -> Self {
        Self {
            yields: CancellationToken::new(),
            requests: AtomicUsize::new(0),
            busy: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            known: AtomicBool::new(false),
            since: Instant::now(),
            quiet_since: Mutex::new(Instant::now()),
        }
    }

    /// Requests whose heads have come.
    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::Acquire)
    }

    /// Whether a request is being answered.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// The client has sent something.
    pub(super) fn hears(&self) {
        self.unread.store(true, Ordering::Release);
    }

    /// The client has taken some of an answer.
    pub(super) fn progresses(&self) {
        *self.quiet_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// The client has shown who it is.
    pub(super) fn recognizes(&self) {
        self.known.store(true, Ordering::Release);
    }

    /// Whether the client may be sending what nobody has read.
    pub(super) fn has_more_to_say(&self) -> bool {
        self.unread.load(Ordering::Acquire)
    }

    /// A request has come, and is being answered until what is returned is dropped.
    pub(super) fn begin(self: &Arc<Self>, has_body: bool) -> Busy {
        self.requests.fetch_add(1, Ordering::AcqRel);
        self.unread.store(has_body, Ordering::Release);
        self.busy.store(true, Ordering::Release);
        Busy(Arc::clone(self))
    }

    /// Whether it may be ended now, and the lower the sooner.
    fn rank(&self) -> Option<(bool, Instant)> {
        let quiet_since = *self.quiet_since.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.known.load(Ordering::Acquire);
        let may_go = match known {
            true => quiet_since.elapsed() >= YIELDS_AFTER,
            false => self.since.elapsed() >= STRANGERS_YIELD_AFTER,
        };
        (may_go && !self.is_busy() && !self.yields.is_cancelled()).then_some((known, quiet_since))
    }
}

/// A request in hand.
pub(super) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.progresses();
        self.0.busy.store(false, Ordering::Release);
    }
}
