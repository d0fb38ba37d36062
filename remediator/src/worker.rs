//! Takes up open remediations: several at once, never two on one target. Crash-safe because it begins with what the
//! journal has open, whatever the process before it was doing.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    journal::{Error, Record},
    walk::{Next, Walker},
};

/// Remediations walked at the same time at most.
const PARALLEL: usize = 8;
/// After an error, before the same remediation is taken up again.
const PAUSE: Duration = Duration::from_secs(30);
/// How long running actions may take to end when the process ends. What does not is verified by the next one.
const DRAIN: Duration = Duration::from_secs(20);
/// Between two clean-ups of the history.
const RETENTION: Duration = Duration::from_secs(24 * 3600);

/// What one walk answers: the remediation, its target, and what comes next.
type Walked = (i64, String, Result<Next, Error>);

/// The dispatcher.
pub struct Worker {
    walker: Walker,
    /// Rung when a delivery opened something.
    bell: Arc<Notify>,
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
    pub fn new(walker: Walker, bell: Arc<Notify>) -> Self {
        Self {
            walker,
            bell,
            busy: HashSet::new(),
            waiting: HashMap::new(),
            walks: JoinSet::new(),
            tasks: HashMap::new(),
        }
    }

    /// Works until the walker's stop is set; then gives running actions some time to end.
    pub async fn run(mut self) {
        let stop = self.walker.stop.clone();
        let mut retain = Instant::now();
        while !stop.is_cancelled() {
            if Instant::now() >= retain {
                retain = Instant::now() + RETENTION;
                if let Err(error) = self.walker.journal.retain(self.walker.clock.now()).await {
                    self.failed(&error);
                }
            }
            if let Err(error) = self.take_up().await {
                self.failed(&error);
            }
            let now = Instant::now();
            let next =
                self.waiting.values().copied().filter(|at| *at > now).chain([retain, now + PAUSE]).min();
            tokio::select! {
                () = self.bell.notified() => {}
                Some(ended) = self.walks.join_next_with_id() => self.ended(ended),
                () = sleep_until(next.unwrap_or(retain)) => {}
                () = stop.cancelled() => {}
            }
        }
        let drained = timeout(DRAIN, async { while self.walks.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!(
                running = self.walks.len(),
                "ending while actions run; the next start verifies them"
            );
        }
    }

    /// Starts walking whatever is open, due, and on a target that nobody works on.
    async fn take_up(&mut self) -> Result<(), Error> {
        let open = self.walker.journal.open_remediations().await?;
        let known: HashSet<i64> = open.iter().map(|remediation| remediation.id).collect();
        self.waiting.retain(|id, _| known.contains(id));
        let now = Instant::now();
        for remediation in open {
            if self.walks.len() >= PARALLEL {
                break;
            }
            if self.waiting.get(&remediation.id).is_some_and(|at| *at > now) {
                continue;
            }
            let target = key(&remediation);
            if self.busy.insert(target.clone()) {
                self.waiting.remove(&remediation.id);
                self.start(remediation, target);
            }
        }
        Ok(())
    }

    fn start(&mut self, remediation: Record, target: String) {
        let (walker, id, name) = (self.walker.clone(), remediation.id, target.clone());
        let task = self.walks.spawn(async move { (id, name, walker.walk(&remediation).await) });
        self.tasks.insert(task.id(), (id, target));
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, Walked), tokio::task::JoinError>) {
        let again = Instant::now() + PAUSE;
        match ended {
            Ok((task, (id, target, result))) => {
                self.tasks.remove(&task);
                self.busy.remove(&target);
                match result {
                    Ok(Next::Ended | Next::Left) => {}
                    Ok(Next::Again(wait)) => drop(self.waiting.insert(id, Instant::now() + wait)),
                    Err(error) => {
                        self.failed(&error);
                        self.waiting.insert(id, again);
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
    }

    fn failed(&self, error: &Error) {
        self.walker.metrics.state_write_failed();
        tracing::error!(%error, "the state cannot be written; nothing is done until it can");
    }
}

/// One target, whatever the rule.
fn key(remediation: &Record) -> String {
    format!("{} {}", remediation.kind, remediation.target)
}
