//! Keeps a picture of the containers by following what the engine announces.
//!
//! A stream of announcements is opened first, then everything is read: whatever happens meanwhile is announced. From
//! then on only what an announcement names is asked about. When the stream ends, for whatever reason, nothing that was
//! read is trusted any more, and it all begins again.
//!
//! Announcements may get lost. So the list is read now and then and compared, a few containers are asked about for no
//! reason, and changes that nothing announced are counted: the picture proves itself.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use evenkeel_host::docker::{Docker, Engine, Error, Events, Listed};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use super::{
    ContainerLabel, INSPECT_LIMIT,
    agenda::{Agenda, Rate, Why},
    picture::{Id, Known, Picture},
};

/// Until a lost stream is opened anew: doubled each time up to the second.
const RECONNECT: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(15)];

/// A stream that lived this long was not lost at once.
const STEADY: Duration = Duration::from_secs(60);

/// What is announced between the request and its effect would be lost; an engine's clock is not ours.
const OVERLAP: Duration = Duration::from_secs(2);

/// How often what is old is looked for. All of it is asked about together, which costs the engine less.
const ROUND: Duration = Duration::from_secs(15);

/// The shortest pause between two comparisons with the list.
const CHECK: Duration = Duration::from_secs(60);

/// The longest one.
const LONGEST_CHECK: Duration = Duration::from_secs(30 * 60);

/// The engine works for the comparisons at most one part in this many of the time: the list of 300 containers costs
/// it as much as 300 scrapes.
const CHECK_REST: u32 = 50_000;

/// How many containers are asked about at each comparison for no reason.
const SAMPLE: usize = 8;

/// How many more containers may be announced than there are, while the engine says nothing about them.
const UNKNOWN: usize = 1000;

/// While the engine says nothing about a container, its line of the list is read this often at most.
const LINES: Duration = Duration::from_secs(5);

/// How much of the picture is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing: there is no stream, or more is announced than can be followed.
    Apart,
    /// Nothing yet: there is a stream, and the engine has been asked for the list.
    Listing,
    /// The list, and inspect's answers as they come.
    Reading,
    /// Everything.
    Complete,
}

/// What the task and the collector share.
pub(super) struct Shared {
    phase: watch::Sender<Phase>,
    kept: Mutex<Kept>,
    missed: AtomicU64,
}

/// The picture and how often it has changed.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) picture: Picture,
    pub(super) version: u64,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self { phase: watch::Sender::new(Phase::Apart), kept: Mutex::default(), missed: AtomicU64::new(0) }
    }

    /// Waits until everything is read, or until there is no stream to wait for, or until `deadline`.
    pub(super) async fn settled(&self, deadline: Instant) {
        let mut phase = self.phase.subscribe();
        let settled = phase.wait_for(|phase| matches!(phase, Phase::Apart | Phase::Complete));
        // In time or not: what is there counts.
        let _ = timeout_at(deadline, settled).await;
    }

    /// The picture, if there is one that can be trusted.
    pub(super) fn current(&self) -> Option<MutexGuard<'_, Kept>> {
        // Before it is emptied, the phase is another one.
        let kept = self.kept();
        matches!(*self.phase.borrow(), Phase::Reading | Phase::Complete).then_some(kept)
    }

    /// How many changes nothing announced.
    pub(super) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|old| std::mem::replace(old, phase) != phase);
    }

    /// Nothing is known any more.
    fn forget(&self) {
        self.enter(Phase::Apart);
        let mut kept = self.kept();
        kept.picture = Picture::default();
        kept.version += 1;
    }

    fn change(&self, change: impl FnOnce(&mut Picture)) {
        let mut kept = self.kept();
        change(&mut kept.picture);
        kept.version += 1;
    }
}

/// Never ends.
pub(super) async fn follow(docker: &Docker, labels: &[ContainerLabel], shared: &Shared) {
    let [first, longest] = RECONNECT;
    let mut pause = first;
    loop {
        let begun = Instant::now();
        let error = match docker.events(SystemTime::now() - OVERLAP).await {
            Ok(events) => Follower::new(docker, labels, shared).run(events).await,
            Err(error) => error,
        };
        shared.forget();
        tracing::debug!(%error, "not following the Docker engine");
        if begun.elapsed() >= STEADY {
            pause = first;
        }
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// One life of a stream.
struct Follower<'a> {
    docker: &'a Docker,
    labels: &'a [ContainerLabel],
    shared: &'a Shared,
    agenda: Agenda,
    rate: Rate,
    answers: FuturesUnordered<BoxFuture<'a, Answer>>,
    is_listing: bool,
    listed: Instant,
    check: Instant,
    round: Instant,
    /// Where the last sample ended.
    cursor: Option<Id>,
}

enum Answer {
    Engine(Result<Engine, Error>),
    List(Instant, Result<Vec<Listed>, Error>),
    Inspect(Id, Result<Option<Known>, Error>),
}

impl<'a> Follower<'a> {
    fn new(docker: &'a Docker, labels: &'a [ContainerLabel], shared: &'a Shared) -> Self {
        let now = Instant::now();
        Self {
            docker,
            labels,
            shared,
            agenda: Agenda::default(),
            rate: Rate::new(now),
            answers: FuturesUnordered::new(),
            is_listing: false,
            listed: now,
            check: now,
            round: now + ROUND,
            cursor: None,
        }
    }

    /// Ends with the stream or with the trust in it.
    async fn run(mut self, mut events: Events) -> Error {
        self.begin();
        loop {
            let now = Instant::now();
            if self.rate.ebbs(now) {
                self.begin();
            }
            if self.rate.flood_until().is_none() {
                if let Err(error) = self.judge(now) {
                    return error;
                }
                self.ask(now);
            }
            let wake = self.wake();
            let learnt = tokio::select! {
                event = events.next() => event.map(|event| self.hear(&event.container)),
                Some(answer) = self.answers.next() => self.learn(answer),
                () = sleep_until(wake) => Ok(()),
            };
            if let Err(error) = learnt {
                return error;
            }
        }
    }

    /// Everything is to be read.
    fn begin(&mut self) {
        let docker = self.docker;
        self.answers.push(Box::pin(async { Answer::Engine(docker.engine().await) }));
        self.shared.enter(Phase::Listing);
        self.check = Instant::now();
    }

    fn hear(&mut self, id: &str) {
        let now = Instant::now();
        if self.agenda.len() > self.shared.kept().picture.containers.len() + UNKNOWN {
            self.rate.overflow(now);
        }
        if self.rate.hear(now) {
            if *self.shared.phase.borrow() != Phase::Apart {
                tracing::info!(
                    "more changes of containers than can be followed: the list is read at each scrape"
                );
                self.shared.forget();
                self.agenda = Agenda::default();
                self.answers.clear();
                self.is_listing = false;
            }
        } else {
            self.agenda.mark(id, Why::Announced);
        }
    }

    /// Counts what was missed. A stream that misses what the list shows is broken, whatever it looks like.
    fn judge(&mut self, now: Instant) -> Result<(), Error> {
        let missed = self.agenda.unannounced(now);
        self.shared.missed.fetch_add(missed.len() as u64, Ordering::Relaxed);
        if missed.contains(&Why::Differs) {
            return Err(Error::Broken("it does not announce every change".into()));
        }
        Ok(())
    }

    /// Asks what is to be asked now.
    fn ask(&mut self, now: Instant) {
        let (docker, labels) = (self.docker, self.labels);
        if now >= self.check && !self.is_listing {
            self.is_listing = true;
            self.answers.push(Box::pin(async move { Answer::List(now, docker.containers().await) }));
        }
        if now >= self.round {
            self.round = now + ROUND;
            self.mark_old(now);
        }
        while let Some(id) = self.agenda.next(now) {
            self.answers.push(Box::pin(async move {
                let answer = timeout(INSPECT_LIMIT, docker.inspect(&id)).await;
                let answer = answer.unwrap_or(Err(Error::Timeout(INSPECT_LIMIT)));
                let known = |container| Known::inspected(container, now, labels);
                Answer::Inspect(id, answer.map(|container| container.map(known)))
            }));
        }
    }

    /// What the engine does not announce is asked for when it is old.
    fn mark_old(&mut self, now: Instant) {
        for (id, known) in &self.shared.kept().picture.containers {
            // At the next round it would be too old.
            let age = now.saturating_duration_since(known.asked) + ROUND;
            if known.lifetime().is_some_and(|lifetime| age > lifetime) {
                self.agenda.mark(id, Why::Old);
            }
        }
    }

    fn learn(&mut self, answer: Answer) -> Result<(), Error> {
        match answer {
            Answer::Engine(Ok(engine)) => self.shared.change(|picture| picture.engine = Some(engine)),
            Answer::Engine(Err(error)) => tracing::debug!(%error, "the engine does not describe itself"),
            Answer::List(asked, list) => self.learn_list(asked, list)?,
            Answer::Inspect(id, known) => self.learn_container(id, known),
        }
        if self.agenda.is_read() && *self.shared.phase.borrow() == Phase::Reading {
            self.shared.enter(Phase::Complete);
        }
        Ok(())
    }

    fn learn_list(&mut self, asked: Instant, list: Result<Vec<Listed>, Error>) -> Result<(), Error> {
        let now = Instant::now();
        self.is_listing = false;
        self.listed = now;
        self.check = now + (now - asked).saturating_mul(CHECK_REST).clamp(CHECK, LONGEST_CHECK);
        let is_first = *self.shared.phase.borrow() == Phase::Listing;
        match list {
            Ok(list) if is_first => {
                self.shared.change(|picture| {
                    for listed in list {
                        self.agenda.mark(&listed.id, Why::Beginning);
                        // What was announced meanwhile may have been asked about already.
                        let known = picture.containers.entry(listed.id.as_str().into());
                        known.or_insert_with(|| Known::listed(listed, asked, self.labels));
                    }
                });
                self.shared.enter(Phase::Reading);
            }
            Ok(list) => self.compare(asked, list),
            Err(error) if is_first => return Err(error),
            Err(error) => tracing::debug!(%error, "the list of containers cannot be compared"),
        }
        Ok(())
    }

    fn compare(&mut self, asked: Instant, list: Vec<Listed>) {
        let mut kept = self.shared.kept();
        let mut gone: BTreeMap<&str, &Known> =
            kept.picture.containers.iter().map(|(id, known)| (&**id, known)).collect();
        let mut lines = Vec::new();
        for listed in list {
            let known = gone.remove(listed.id.as_str());
            if known.is_some_and(|known| known.detail.is_none()) {
                lines.push(listed);
            } else if known.is_none_or(|known| known.asked < asked && !known.agrees_with(&listed)) {
                self.agenda.mark(&listed.id, Why::Differs);
            }
        }
        for (id, _) in gone.iter().filter(|(_, known)| known.asked < asked) {
            self.agenda.mark(id, Why::Differs);
        }
        let after = self.cursor.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let sample = kept.picture.containers.range::<Id, _>((after, Bound::Unbounded)).take(SAMPLE);
        let sample: Vec<&Id> = sample.map(|(id, _)| id).collect();
        sample.iter().for_each(|id| self.agenda.mark(id, Why::Old));
        self.cursor = sample.last().map(|id| (*id).clone());
        for listed in lines {
            let id = listed.id.as_str().into();
            kept.picture.containers.insert(id, Known::listed(listed, asked, self.labels));
            kept.version += 1;
        }
    }

    fn learn_container(&mut self, id: Id, known: Result<Option<Known>, Error>) {
        let now = Instant::now();
        let Some(why) = self.agenda.answered(&id, known.is_ok(), now) else { return };
        let mut kept = self.shared.kept();
        let before = kept.picture.containers.get(&id);
        if let Ok(known) = &known
            && matches!(why, Why::Old | Why::Differs)
        {
            let is_as_announced = match (before, known) {
                (Some(before), Some(known)) => before.is_announced_as(known),
                (None, None) => true,
                _ => false,
            };
            if !is_as_announced {
                self.agenda.doubt(&id, why, now);
            }
        }
        match known {
            Ok(Some(known)) => {
                if !before.is_some_and(|before| before.is_confirmed_by(&known)) {
                    kept.version += 1;
                }
                if let Some(namesake) = kept.picture.insert(id, known) {
                    self.agenda.mark(&namesake, Why::Announced);
                }
            }
            // Removed while it was asked about, which is normal life.
            Ok(None) => {
                if kept.picture.containers.remove(&id).is_some() {
                    kept.version += 1;
                }
            }
            Err(error) => {
                tracing::debug!(container = &*id, %error, "not inspected");
                // It may have changed, and only the list says into what.
                if why != Why::Old
                    && let Some(known) = kept.picture.containers.get_mut(&id)
                {
                    known.detail = None;
                    kept.version += 1;
                    self.check = self.check.min(self.listed + LINES);
                }
            }
        }
    }

    /// When there is something to do even if nothing happens.
    fn wake(&self) -> Instant {
        if let Some(end) = self.rate.flood_until() {
            return end;
        }
        let check = (!self.is_listing).then_some(self.check);
        [check, self.agenda.wake()].into_iter().flatten().fold(self.round, Instant::min)
    }
}
