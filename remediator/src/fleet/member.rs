//! This host as a member of its fleet: its heartbeat, its lease, and what the fleet says to each start. While the fleet
//! cannot be asked, the configuration decides by class; the limits of the host, and the last pause that was seen, hold in
//! any case.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use evenkeel_host::build;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    fault::Fault,
    ledger::{Ask, Beat, Grant, Heard, Hold, Ledger, takes_a_lease},
    link::Link,
    policy,
    settings::{Alone, Settings, is_about_redis},
};
use crate::{
    admission::{Reason, Refusal},
    clock::Clock,
    config::Config,
    journal::{Error, Journal},
    metrics::Metrics,
    outcome::Outcome,
    policy::Class,
    rules::Rule,
    target::Target,
    worker::Bell,
};

/// What is read of one answer at most, in bytes.
const ANSWER_MAX: u64 = 256 << 10;
/// How soon to ask again what was refused because nobody answered.
const AGAIN: Duration = Duration::from_secs(30);
/// A heartbeat between two looks at how Redis is configured.
const POLICY_EVERY: u32 = 40;

/// This host in its fleet.
pub struct Member {
    settings: Arc<Settings>,
    ledger: Ledger,
    link: Arc<Link>,
    metrics: Metrics,
    journal: Journal,
    clock: Clock,
    /// Wakes whoever waits for the end of a pause.
    bell: Bell,
    /// The configuration in force.
    live: watch::Receiver<Arc<Config>>,
    /// One word for this process.
    instance: String,
    /// Of the starts that it has asked for.
    starts: AtomicU64,
    /// The greatest fence that it has seen.
    seen: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The walks that act or are about to, each with its lease; 0 for one that was admitted while nobody could be asked.
    walks: BTreeMap<i64, u64>,
    /// Starts that were asked for and not answered: asked for again they are the same.
    unanswered: BTreeMap<i64, String>,
    /// Since when nobody answers.
    lost: Option<Instant>,
    /// What was said of it already.
    told: Told,
}

#[derive(Default, PartialEq, Eq, Clone)]
struct Told {
    twin: bool,
    taken: Vec<String>,
    evicts: Option<String>,
}

/// A start that the fleet admits, or that it has nothing to say about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    id: i64,
    class: Class,
    in_need: bool,
    /// None when nobody was asked.
    start: Option<String>,
    /// None where no lease is needed or none was given.
    fence: Option<u64>,
}

impl Member {
    /// A member that has said nothing yet.
    pub fn new(
        settings: Arc<Settings>,
        journal: Journal,
        clock: Clock,
        metrics: Metrics,
        bell: Bell,
        live: watch::Receiver<Arc<Config>>,
    ) -> Self {
        let ledger = Ledger::new(settings.keys.clone(), settings.terms.clone());
        let link = Arc::new(Link::new(settings.redis.clone(), settings.timeout, ANSWER_MAX));
        let now = clock.now();
        let mut hasher = DefaultHasher::new();
        (&now.boot_id, now.boot_ms, now.wall_ms, std::process::id()).hash(&mut hasher);
        let instance = format!("{:016x}", hasher.finish());
        Self {
            settings,
            ledger,
            link,
            metrics,
            journal,
            clock,
            bell,
            live,
            instance,
            starts: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// The same over a connection that others use too.
    #[cfg(all(test, feature = "lab"))]
    pub(super) fn over(self, link: Arc<Link>) -> Self {
        Self { link, ..self }
    }

    /// Says that this host is here and keeps its leases, until it is told to stop.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut beats = interval(self.settings.heartbeat);
        let mut renewals = interval(self.settings.terms.lease / 3);
        for timer in [&mut beats, &mut renewals] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut count: u32 = 0;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = renewals.tick() => self.keep().await,
                _ = beats.tick() => {
                    self.hear(count == 0).await;
                    if count.is_multiple_of(POLICY_EVERY) {
                        self.look_at_policy().await;
                    }
                    count = count.wrapping_add(1).max(1);
                }
            }
        }
    }

    /// Whether the fleet lets this rule begin a step of this class on this target; counted when it does.
    ///
    /// # Errors
    /// With why not, and how long that lasts.
    pub async fn admit(
        &self,
        id: i64,
        rule: &Rule,
        target: &Target,
        class: Class,
    ) -> Result<Permit, Refusal> {
        let in_need = !rule.matchers.is_empty();
        let mut permit = Permit { id, class, in_need, start: None, fence: None };
        // What observes asks nobody; what repairs Redis must not wait for Redis.
        if !class.acts() || !rule.shares || is_about_redis(target.name()) {
            return Ok(permit);
        }
        let start = self.lock().unanswered.get(&id).cloned().unwrap_or_else(|| self.next_start());
        let (ledger, ask) = (&self.ledger, &self.ask(&permit, &start));
        let answer =
            self.link.ask(move |mut redis| async move { ledger.reserve(&mut redis, ask).await }).await;
        match self.heard_of(answer) {
            Ok(Ok(grant)) => {
                permit.fence = self.granted(id, class, &grant);
                permit.start = Some(start);
                Ok(permit)
            }
            Ok(Err(refusal)) => {
                self.lock().unanswered.remove(&id);
                if refusal.reason == Reason::FleetPaused {
                    self.hear(false).await;
                }
                Err(self.spread_out(refusal))
            }
            Err(fault) => {
                self.lock().unanswered.insert(id, start);
                self.alone(id, class, &fault)?;
                self.lock().unanswered.remove(&id);
                Ok(permit)
            }
        }
    }

    /// Right before acting: whether the lease still stands, and nobody has paused the fleet meanwhile.
    ///
    /// # Errors
    /// When it does not: nothing may be begun.
    pub async fn confirm(&self, permit: &Permit) -> Result<(), Refusal> {
        let Some(fence) = permit.fence else { return Ok(()) };
        match self.hold(fence, true).await {
            Ok(Hold::Held) => Ok(()),
            Ok(Hold::Paused(pause)) => {
                self.hear(false).await;
                Err(pause.refusal())
            }
            Ok(Hold::Late) => {
                self.metrics.fleet.late();
                self.lock().walks.remove(&permit.id);
                let detail =
                    "the fleet's lease ran out before the action began: another host may act in its place";
                let wait = Duration::from_secs(1);
                Err(Refusal { reason: Reason::FleetLate, scope: "fleet", detail: detail.to_owned(), wait })
            }
            Err(fault) => self.alone(permit.id, permit.class, &fault),
        }
    }

    /// The step was not done after all.
    pub async fn take_back(&self, permit: &Permit) {
        let fence = self.left(permit.id);
        let Some(start) = &permit.start else { return };
        let (ledger, ask) = (&self.ledger, &self.ask(permit, start));
        let say = move |mut redis| async move { ledger.take_back(&mut redis, ask, fence).await };
        let answer = self.link.ask(say).await;
        drop(self.heard_of(answer));
    }

    /// The walk has come to an end, or waits: it needs no lease any more.
    pub async fn leave(&self, id: i64) {
        let Some(fence) = self.left(id) else { return };
        let (ledger, host) = (&self.ledger, &self.settings.host);
        let say = move |mut redis| async move { ledger.release(&mut redis, host, fence).await };
        let answer = self.link.ask(say).await;
        drop(self.heard_of(answer));
    }

    async fn hold(&self, fence: u64, before_acting: bool) -> Result<Hold, Fault> {
        let (ledger, host) = (&self.ledger, &self.settings.host);
        let ask = move |mut redis| async move { ledger.hold(&mut redis, host, fence, before_acting).await };
        let answer = self.link.ask(ask).await;
        self.heard_of(answer)
    }

    /// Forgets a walk; answers the lease that nobody else here needs any more.
    fn left(&self, id: i64) -> Option<u64> {
        let mut state = self.lock();
        state.unanswered.remove(&id);
        let fence = state.walks.remove(&id).filter(|fence| *fence != 0)?;
        (!state.walks.values().any(|other| *other == fence)).then_some(fence)
    }

    /// Notes a grant; answers the number of its lease, if it came with one.
    fn granted(&self, id: i64, class: Class, grant: &Grant) -> Option<u64> {
        self.seen.fetch_max(grant.fence, Ordering::Relaxed);
        let mut state = self.lock();
        state.unanswered.remove(&id);
        takes_a_lease(class).then(|| {
            state.walks.insert(id, grant.fence);
            grant.fence
        })
    }

    /// What the configuration says to a class while nobody can be asked.
    fn alone(&self, id: i64, class: Class, fault: &Fault) -> Result<(), Refusal> {
        let verdict = self.settings.on_loss.of(class);
        let refused = |detail: String, wait| {
            Err(Refusal {
                reason: Reason::FleetLost,
                scope: "fleet",
                detail: format!("{fault}; {detail}"),
                wait,
            })
        };
        let mut state = self.lock();
        let result = match verdict {
            Alone::Allow => Ok(()),
            Alone::Deny => refused(format!("fleet.on_loss says deny for {}", class.as_str()), AGAIN),
            Alone::Local => {
                let lost = state.lost.map_or(Duration::ZERO, |since| since.elapsed());
                match self.own_share().checked_sub(lost).filter(|left| !left.is_zero()) {
                    Some(left) => refused("not all hosts begin in the same moment".to_owned(), left),
                    None if state.walks.keys().any(|other| *other != id) => refused(
                        "by itself it does one remediation at a time".to_owned(),
                        Duration::from_secs(5),
                    ),
                    None => Ok(()),
                }
            }
        };
        if result.is_ok() && takes_a_lease(class) {
            state.walks.entry(id).or_insert(0);
        }
        drop(state);
        self.metrics.fleet.alone(class, result.is_ok());
        result
    }

    /// This host's place in the time over which all of them spread themselves: always the same.
    fn own_share(&self) -> Duration {
        self.settings.spread.mul_f64(share_of(&self.settings.host))
    }

    /// Many hosts are told the same time to come again: each takes its own, up to as long again.
    fn spread_out(&self, mut refusal: Refusal) -> Refusal {
        if refusal.reason == Reason::FleetPace {
            let turn = (&self.settings.host, self.starts.load(Ordering::Relaxed));
            refusal.wait = refusal.wait.min(self.settings.terms.lease).mul_f64(0.5 + share_of(&turn));
        }
        refusal
    }

    /// Prolongs the leases of walks that are under way.
    async fn keep(&self) {
        let mut fences: Vec<u64> = self.lock().walks.values().copied().filter(|fence| *fence != 0).collect();
        fences.sort_unstable();
        fences.dedup();
        for fence in fences {
            if let Ok(Hold::Late) = self.hold(fence, false).await {
                self.metrics.fleet.late();
                tracing::warn!(
                    fence,
                    "the lease ran out while this host was acting: it did not answer for too long"
                );
                // What has begun is finished; a further step asks for another lease.
                let mut state = self.lock();
                for held in state.walks.values_mut().filter(|held| **held == fence) {
                    *held = 0;
                }
            }
        }
    }

    /// A heartbeat, whose answer is kept. Also when a refused start has told of a pause: Redis may be gone before the next.
    async fn hear(&self, first: bool) {
        if let Err(error) = self.beat(first).await {
            self.metrics.state_write_failed();
            tracing::error!(%error, "what the fleet says cannot be remembered");
        }
    }

    /// One heartbeat, and what it is answered.
    async fn beat(&self, first: bool) -> Result<(), Error> {
        let beat = Beat {
            host: &self.settings.host,
            names: &self.settings.names,
            instance: &self.instance,
            version: build::VERSION,
            seen: self.seen.load(Ordering::Relaxed),
            first,
            in_need: self.is_in_need().await?,
        };
        let (ledger, beat) = (&self.ledger, &beat);
        let answer = self.link.ask(move |mut redis| async move { ledger.beat(&mut redis, beat).await }).await;
        let Ok(heard) = self.heard_of(answer) else { return Ok(()) };
        self.seen.fetch_max(heard.fence, Ordering::Relaxed);
        self.metrics.fleet.heard(&heard);
        self.tell(&heard);
        // That Redis knows of no order says nothing about one that was seen before it forgot.
        if heard.order > 0 && self.journal.pause_by_fleet(heard.pause, self.clock.now()).await? {
            self.bell.urge();
        }
        Ok(())
    }

    /// Whether something of this host's own is in need: being repaired, held back, or not cured.
    async fn is_in_need(&self) -> Result<bool, Error> {
        let now = self.clock.now();
        if self.journal.is_any_open(now.clone()).await? {
            return Ok(true);
        }
        let config = Arc::clone(&self.live.borrow());
        let rules = config.rules.iter().filter(|rule| rule.acts()).map(|rule| rule.name.clone());
        let cured = |outcome: &Outcome| {
            matches!(outcome, Outcome::Succeeded | Outcome::NotNeeded | Outcome::Reported | Outcome::Ignored)
        };
        let uncured = Outcome::ALL.into_iter().filter(|outcome| !cured(outcome));
        let ttl = config.reconcile.alert_ttl;
        let held = self.journal.unresolved(rules.collect(), uncured.collect(), ttl, now).await?;
        Ok(!held.is_empty())
    }

    /// What somebody has to put right, once and not at each heartbeat.
    fn tell(&self, heard: &Heard) {
        let mut state = self.lock();
        if heard.twin && !state.told.twin {
            tracing::error!(
                host = %self.settings.host,
                "another process says that it is this host: give each host an `identity.hosts` of its own"
            );
        }
        if heard.taken != state.told.taken && !heard.taken.is_empty() {
            tracing::error!(
                names = heard.taken.join(", "),
                "another host has claimed these names: their alerts go there"
            );
        }
        state.told.twin = heard.twin;
        state.told.taken.clone_from(&heard.taken);
    }

    /// A Redis that throws keys away when it is full throws budgets away.
    async fn look_at_policy(&self) {
        // It may be forbidden, and is no reason for anything.
        let Ok(evicts) = policy::evicts(&self.link).await else { return };
        self.metrics.fleet.evicts(evicts.is_some());
        let mut state = self.lock();
        if state.told.evicts != evicts {
            policy::tell(evicts.as_deref());
        }
        state.told.evicts = evicts;
    }

    /// Notes whether the fleet answers.
    fn heard_of<T>(&self, answer: Result<T, Fault>) -> Result<T, Fault> {
        let mut state = self.lock();
        match &answer {
            Ok(_) => {
                if let Some(since) = state.lost.take() {
                    tracing::info!(after_s = since.elapsed().as_secs(), "the fleet answers again");
                }
                self.metrics.fleet.up(true);
            }
            Err(fault) => {
                if state.lost.is_none() {
                    tracing::warn!(%fault, "the fleet is lost: its last pause, fleet.on_loss and the host's own limits hold");
                    state.lost = Some(Instant::now());
                }
                self.metrics.fleet.up(false);
                self.metrics.fleet.fault(fault);
            }
        }
        answer
    }

    fn ask<'a>(&'a self, permit: &Permit, start: &'a str) -> Ask<'a> {
        Ask {
            host: &self.settings.host,
            start,
            class: permit.class,
            in_need: permit.in_need,
            seen: self.seen.load(Ordering::Relaxed),
        }
    }

    fn next_start(&self) -> String {
        format!("{}:{}-{}", self.settings.host, self.instance, self.starts.fetch_add(1, Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked while holding it left whole values.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number from 0 to 1, the same for the same thing.
fn share_of(thing: &impl Hash) -> f64 {
    let mut hasher = DefaultHasher::new();
    thing.hash(&mut hasher);
    f64::from(u32::try_from(hasher.finish() % 10_000).unwrap_or(0)) / 10_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_spread_themselves_evenly() {
        let mut quarters = [0; 4];
        for number in 0..1000 {
            let share = share_of(&format!("host-{number}"));
            assert!((0.0..1.0).contains(&share));
            let quarter = (0..4).find(|quarter| share < f64::from(*quarter + 1) / 4.0).unwrap();
            quarters[usize::try_from(quarter).unwrap()] += 1;
        }
        assert!(quarters.iter().all(|count| (150..350).contains(count)), "{quarters:?}");
    }
}
