//! Takes up open remediations: several at once, never two on one target. Crash-safe because it begins with what the
//! journal has open, whatever the process before it was doing.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    complaint::Complaint,
    config::Config,
    journal::{Error, Open},
    walk::{Next, Walker},
};

/// Remediations walked at the same time at most.
const PARALLEL: usize = 8;
/// After an error, before the same remediation is taken up again.
const PAUSE: Duration = Duration::from_secs(30);
/// How long running actions may take to end when the process ends. What does not is verified by the next one.
const DRAIN: Duration = Duration::from_secs(20);
/// Between two clean-ups of the history.
const RETENTION: Duration = Duration::from_secs(3600);

/// What one walk answers: the remediation, its target, and what comes next.
type Walked = (i64, String, Result<Next, Error>);

/// Wakes the worker. Cloning shares it.
#[derive(Clone, Default)]
pub struct Bell {
    rung: Arc<Notify>,
    urged: Arc<AtomicBool>,
    decided: Arc<Notify>,
}

impl Bell {
    /// Something was opened.
    pub fn ring(&self) {
        self.rung.notify_one();
    }

    /// A person decided something: what waits is looked at again at once.
    pub fn urge(&self) {
        self.urged.store(true, Ordering::SeqCst);
        self.rung.notify_one();
        self.decided.notify_one();
    }

    /// Returns when a person has decided something, for one who waits.
    pub async fn decided(&self) {
        self.decided.notified().await;
    }
}

/// The dispatcher.
pub struct Worker {
    walker: Walker,
    /// The configuration in force; each walk keeps the one that it began with.
    live: watch::Receiver<Arc<Config>>,
    bell: Bell,
    /// What is open by the last look into the journal: the targets of each rule, oldest first.
    open: BTreeMap<String, BTreeMap<i64, String>>,
    /// Whose rule's turn was last.
    served: String,
    /// Targets being worked on.
    busy: HashSet<String>,
    /// Remediations that are not to be taken up before a time.
    waiting: HashMap<i64, Instant>,
    walks: JoinSet<Walked>,
    /// Which walk is which remediation on which target, for those that end in a panic.
    tasks: HashMap<tokio::task::Id, (i64, String)>,
}

impl Worker {
    /// A worker that takes up what is open when `bell` rings.
    pub fn new(walker: Walker, live: watch::Receiver<Arc<Config>>, bell: Bell) -> Self {
        Self {
            walker,
            live,
            bell,
            open: BTreeMap::new(),
            served: String::new(),
            busy: HashSet::new(),
            waiting: HashMap::new(),
            walks: JoinSet::new(),
            tasks: HashMap::new(),
        }
    }

    /// Works until the walker's stop is set; then gives running actions some time to end.
    ///
    /// # Errors
    /// When the journal is closed for good.
    pub async fn run(mut self) -> Result<(), Error> {
        let stop = self.walker.stop.clone();
        let mut retain = Instant::now();
        let mut look = true;
        while !stop.is_cancelled() {
            if Instant::now() >= retain {
                retain = Instant::now() + RETENTION;
                let retained = self.walker.journal.retain(self.walker.clock.now()).await;
                self.survive(retained)?;
            }
            if look {
                let looked = self.look().await;
                self.survive(looked)?;
            }
            self.take_up();
            let now = Instant::now();
            let next =
                self.waiting.values().copied().filter(|at| *at > now).chain([retain, now + PAUSE]).min();
            // In a fixed order, so that what happened can be played again.
            look = tokio::select! {
                biased;
                () = stop.cancelled() => false,
                Some(ended) = self.walks.join_next_with_id() => self.ended(ended)?,
                () = self.bell.rung.notified() => true,
                () = sleep_until(next.unwrap_or(retain)) => true,
            };
        }
        let drained = timeout(DRAIN, async { while self.walks.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!(
                running = self.walks.len(),
                "ending while actions run; the next start verifies them"
            );
        }
        Ok(())
    }

    /// Looks into the journal for what is open.
    async fn look(&mut self) -> Result<(), Error> {
        let open = self.walker.journal.open_targets(self.walker.clock.now()).await?;
        self.waiting.retain(|id, _| open.contains_key(id));
        self.open.clear();
        for (id, Open { rule, target }) in open {
            self.open.entry(rule).or_default().insert(id, target);
        }
        Ok(())
    }

    /// Starts walking whatever is open, due, and on a target that nobody works on.
    fn take_up(&mut self) {
        let now = Instant::now();
        if self.bell.urged.swap(false, Ordering::SeqCst) {
            self.waiting.clear();
        }
        let config = Arc::clone(&self.live.borrow());
        if !Arc::ptr_eq(&config, &self.walker.assessor.config) {
            self.walker.assessor = self.walker.assessor.under(config);
        }
        while self.walks.len() < PARALLEL {
            let Some((rule, id, target)) = self.next(now) else { break };
            self.busy.insert(target.clone());
            self.waiting.remove(&id);
            self.served = rule;
            let (walker, name) = (self.walker.clone(), target.clone());
            let task = self.walks.spawn(async move { (id, name, walker.walk(id).await) });
            self.tasks.insert(task.id(), (id, target));
        }
    }

    /// What to take up next: of one rule after the other, so that none waits behind the many of another one; of each the
    /// oldest that is due, on a target that nobody works on.
    fn next(&self, now: Instant) -> Option<(String, i64, String)> {
        let served = self.served.as_str();
        let after = self.open.range::<str, _>((Bound::Excluded(served), Bound::Unbounded));
        let rules = after.chain(self.open.range::<str, _>((Bound::Unbounded, Bound::Included(served))));
        for (rule, targets) in rules {
            let free = targets.iter().find(|(id, target)| {
                !self.busy.contains(*target) && self.waiting.get(id).is_none_or(|at| *at <= now)
            });
            if let Some((id, target)) = free {
                return Some((rule.clone(), *id, target.clone()));
            }
        }
        None
    }

    /// Takes note of a walk's end; answers whether the journal must be looked into.
    fn ended(
        &mut self,
        ended: Result<(tokio::task::Id, Walked), tokio::task::JoinError>,
    ) -> Result<bool, Error> {
        let again = Instant::now() + PAUSE;
        match ended {
            Ok((task, (id, target, result))) => {
                self.tasks.remove(&task);
                self.busy.remove(&target);
                match result {
                    Ok(Next::Ended | Next::Left) => {
                        self.open.values_mut().for_each(|targets| drop(targets.remove(&id)));
                    }
                    Ok(Next::Again(wait)) => {
                        self.waiting.insert(id, Instant::now() + wait);
                        // Its target may have another name by now.
                        return Ok(true);
                    }
                    Err(error) => {
                        self.waiting.insert(id, again);
                        self.survive(Err(error))?;
                    }
                }
            }
            Err(panic) => {
                if let Some((id, target)) = self.tasks.remove(&panic.id()) {
                    tracing::error!(id, %target, %panic, "a remediation broke off; it is verified before anything else");
                    self.busy.remove(&target);
                    self.waiting.insert(id, again);
                }
            }
        }
        Ok(false)
    }

    /// Counts an error of the journal and goes on: the disk may take writes again. Not when the journal is closed, for
    /// then it will not.
    fn survive(&self, result: Result<(), Error>) -> Result<(), Error> {
        let Err(error) = result else { return Ok(()) };
        self.walker.metrics.state_write_failed();
        static UNWRITTEN: Complaint = Complaint::new();
        if let Some(untold) = UNWRITTEN.is_due() {
            tracing::error!(%error, untold, "the state cannot be written; nothing is done until it can");
        }
        if matches!(error, Error::Closed) { Err(error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_waits_for_longer_than_running_actions_are_given() {
        let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/evenkeel-remediator.service");
        let text = std::fs::read_to_string(unit).unwrap();
        assert!(text.contains(&format!("# A repair that runs has {} s to end.", DRAIN.as_secs())));
        let stop = text.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
        let minutes: u64 = stop.strip_suffix("min").unwrap().parse().unwrap();
        assert!(Duration::from_secs(minutes * 60) >= DRAIN * 2);
    }
}
