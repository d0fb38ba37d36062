//! What moves needs on between two deliveries, which are hours apart: at its own pace it looks which needs were held
//! back or not cured, and takes up again those that would be admitted now. Whether a target is still in need is looked
//! at when it is walked. Never for what no alert asked for: an alert that was resolved, or not heard of for too long,
//! asks for nothing any more.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    admission::Reason,
    api::{
        alertmanager::{self, Alerts, Standing},
        prometheus::{self, Exporter},
    },
    assess::Assessor,
    config::Config,
    journal::{Error, Held, Record},
    notify::{Notice, Occasion},
    outcome::Outcome,
    policy::Mode,
    rules::Rule,
    target::Target,
    walk::Walker,
    worker::Bell,
};

/// So many looks in a row make it worth telling: a target that restarts is down in one.
const BLIND: u32 = 2;

/// When and how long needs are kept in sight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reconcile {
    /// Between two looks.
    pub interval: Duration,
    /// An alert that was not heard of for so long asks for nothing any more: it may have been silenced, and then no
    /// message says that it is resolved.
    pub alert_ttl: Duration,
}

impl Default for Reconcile {
    fn default() -> Self {
        Self { interval: Duration::from_secs(60), alert_ttl: Duration::from_secs(6 * 3600) }
    }
}

/// Takes up again what was held back.
pub struct Reconciler {
    walker: Walker,
    live: watch::Receiver<Arc<Config>>,
    bell: Bell,
    /// Looks in a row in which Prometheus said that it does not scrape this host's exporter.
    blind: u32,
}

impl Reconciler {
    /// Rings `bell` when it has taken something up.
    pub fn new(walker: Walker, live: watch::Receiver<Arc<Config>>, bell: Bell) -> Self {
        Self { walker, live, bell, blind: 0 }
    }

    /// Looks at its pace, and at once when a person has decided something, until the walker's stop is set.
    pub async fn run(mut self) {
        let stop = self.walker.stop.clone();
        let mut last = Instant::now();
        loop {
            let interval = self.live.borrow().reconcile.interval;
            // What a person has decided may end what held a need back, before the time that was told.
            let decided = tokio::select! {
                () = sleep_until(last + interval) => false,
                () = self.bell.decided() => true,
                changed = self.live.changed() => {
                    if changed.is_err() { return }
                    continue;
                }
                () = stop.cancelled() => return,
            };
            last = Instant::now();
            if !decided && let Err(error) = self.watch_the_exporter().await {
                tracing::error!(%error, "that the exporter is down cannot be told");
            }
            match self.look(decided).await {
                Ok(taken_up) if taken_up > 0 => self.bell.ring(),
                Ok(_) => {}
                Err(Error::Closed) => return,
                Err(error) => {
                    self.walker.metrics.state_write_failed();
                    tracing::error!(%error, "what was held back cannot be taken up again");
                }
            }
        }
    }

    /// Without the exporter no alert comes, and nothing is repaired: people are told once, and it gates nothing.
    async fn watch_the_exporter(&mut self) -> Result<(), Error> {
        let config = Arc::clone(&self.live.borrow());
        let seen = prometheus::exporter(&config, &self.walker.metrics).await;
        self.walker.metrics.exporter(seen);
        let why = match seen {
            Some(blind @ (Exporter::Down | Exporter::Absent)) => blind.words(),
            Some(Exporter::Unknown) => return Ok(()),
            Some(Exporter::Up) | None => {
                self.blind = 0;
                return Ok(());
            }
        };
        self.blind = self.blind.saturating_add(1);
        if self.blind != BLIND {
            return Ok(());
        }
        tracing::warn!(why, "no alert about this host can come");
        let notifier = self.walker.assessor.under(config.clone()).notifier;
        let summary = format!("{why}: no alert comes from it, and so nothing is repaired");
        let host = config.hosts.first().map(String::as_str).unwrap_or_default();
        let letters = notifier.letters(&Notice::of_host(host, Occasion::Blind, summary));
        let dropped = self.walker.journal.post(letters, self.walker.clock.now()).await?;
        notifier.ring(dropped);
        Ok(())
    }

    /// One look over all needs; answers how many were taken up.
    async fn look(&self, decided: bool) -> Result<usize, Error> {
        let config = Arc::clone(&self.live.borrow());
        let assessor = self.walker.assessor.under(config);
        let now = self.walker.clock.now();
        let rules = assessor.config.rules.iter().filter(|rule| is_taken_up(rule));
        let rules: Vec<String> = rules.map(|rule| rule.name.clone()).collect();
        let asks = assessor.config.alertmanager.is_some();
        let outcomes =
            Outcome::ALL.into_iter().filter(|outcome| may_be_held(*outcome) || asks && is_well(*outcome));
        let ttl = assessor.config.reconcile.alert_ttl;
        let needs = self.walker.journal.unresolved(rules, outcomes.collect(), ttl, now).await?;
        let mut taken_up = 0;
        // Alertmanager is asked once a rule in each look.
        let mut known: HashMap<String, Option<Alerts>> = HashMap::new();
        for need in needs {
            let Some((rule, target)) = repairs(&assessor, &need.record) else { continue };
            let held = is_held(&need.record) && (decided || need.left.is_zero());
            // What was cured, or was well, and is in need again while its alert never stopped firing: no delivery comes
            // for that before the repeat interval is over.
            let relapsed = asks && need.record.outcome.is_some_and(is_well);
            if !(held || relapsed) || !self.admitted(&assessor, rule, &target).await? {
                continue;
            }
            if !known.contains_key(&rule.name) {
                let alerts = alertmanager::alerts(&assessor.config, rule, &self.walker.metrics).await;
                known.insert(rule.name.clone(), alerts);
            }
            let alerts = known.get(&rule.name).and_then(Option::as_ref);
            let standing = alerts
                .map_or(Standing::Unknown, |alerts| alerts.standing(&assessor.config, rule, &need.record));
            match standing {
                // Only here is the host looked at, one target after the other: there may be a thousand that were cured.
                Standing::Active if !held && assessor.look(rule, &target).await.is_err() => {}
                Standing::Active => taken_up += usize::from(self.take_up(rule, &need).await?),
                Standing::Unknown if held => taken_up += usize::from(self.take_up(rule, &need).await?),
                Standing::Gone => {
                    self.walker.journal.note_gone(need.record.id, self.walker.clock.now()).await?;
                }
                Standing::Muted(_) | Standing::Unknown => {}
            }
        }
        Ok(taken_up)
    }

    /// Whether the limits, the breaker and whatever else the journal knows would let it begin. What only looking at
    /// the host tells is told when it is walked.
    async fn admitted(&self, assessor: &Assessor, rule: &Rule, target: &Target) -> Result<bool, Error> {
        let question = assessor.question_before_looking(rule, target);
        Ok(self.walker.journal.would_admit(question, self.walker.clock.now()).await?.is_ok())
    }

    async fn take_up(&self, rule: &Rule, need: &Held) -> Result<bool, Error> {
        let now = self.walker.clock.now();
        let Some(id) = self.walker.journal.take_up(need.record.id, rule.interrupts(), now).await? else {
            return Ok(false);
        };
        tracing::info!(
            id,
            rule = rule.name,
            target = need.record.target,
            after = need.record.id,
            silent_seconds = need.silent.as_secs(),
            "taken up again: its alert has not been resolved"
        );
        Ok(true)
    }
}

/// The rule and the target of a need, when the rule is one that repairs what alerts are about and still admits it.
fn repairs<'a>(assessor: &'a Assessor, record: &Record) -> Option<(&'a Rule, Target)> {
    let rule = assessor.config.rules.iter().find(|rule| rule.name == record.rule)?;
    if !is_taken_up(rule) {
        return None;
    }
    let same_kind = record.kind() == Some(rule.selector.kind);
    let target = same_kind.then(|| rule.selector.admit(&record.target).ok())??;
    Some((rule, target))
}

/// Whether a rule repairs what alerts are about.
fn is_taken_up(rule: &Rule) -> bool {
    !rule.on_demand() && rule.acts() && rule.mode > Mode::Plan
}

/// Whether nothing was to be done when it ended.
fn is_well(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Succeeded | Outcome::NotNeeded)
}

/// Whether what ended so may have ended without curing its need, for a reason that may pass.
fn may_be_held(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Limited | Outcome::Blocked) || outcome.escalates()
}

/// Whether it ended without curing its need, for a reason that may pass. Not what a person has refused, or was asked
/// for in vain: that is asked anew when the alert comes again.
fn is_held(record: &Record) -> bool {
    let reason = record.reason.as_deref().unwrap_or_default();
    match record.outcome {
        Some(Outcome::Limited) => true,
        Some(Outcome::Blocked) => {
            reason == "probe_unknown" || Reason::ALL.iter().any(|known| known.as_str() == reason)
        }
        Some(outcome) => outcome.escalates(),
        None => false,
    }
}
