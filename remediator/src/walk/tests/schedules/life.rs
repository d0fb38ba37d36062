//! Plays a schedule: a remediator that lives, dies and is started again on its host, until everything has had time to
//! end.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use serde_json::json;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    host::{Call, Hand, What, World, identity},
    oracle::{self, Seen},
    plan::{Move, POLICIES, Plan, RULES, RuleKind, TARGETS, THINGS},
};
use crate::{
    actions::Step,
    admission::hours::Hours,
    assess::Assessor,
    clock::Clock,
    config::{Config, tests::config},
    journal::{Accepted, Decided, Error, Incoming, Journal, Verdict, memory::Memory},
    metrics::Metrics,
    notify::{Notifier, Post},
    observe::Host,
    policy::{Limit, Mode},
    walk::Walker,
    webhook::{self, Alert, Meaning},
    worker::{Bell, Worker},
};

/// How long a person has to approve.
pub(super) const APPROVAL_WITHIN: Duration = Duration::from_secs(600);
/// Long enough for whatever is open to end: the patience with what passes by itself is an hour.
const QUIET: Duration = Duration::from_secs(3 * 3600);

/// The configuration of each policy, with rules that only have their names, their targets and what they are done by.
static CONFIGS: LazyLock<Vec<Config>> = LazyLock::new(|| POLICIES.iter().map(read).collect());

fn read(policy: &super::plan::PolicyPlan) -> Config {
    let list = |limits: &[&str]| format!("[{}]", limits.join(", "));
    let (targets, within, hold) = policy.storm;
    let mut text = format!(
        "identity: {{hosts: [vps1]}}
policy:
  mode: auto
  deletion: data
  blast_radius: 2
  approval_within: {}s
  limits: {{S1: {}, S2: {}, D1: {}, D2: {}, target: {}, host: {}}}
  storm: {{targets: {targets}, within: {within}s, hold: {hold}s}}
  gates: {{grace: {}s, engine_grace: 0s}}
rules:
",
        APPROVAL_WITHIN.as_secs(),
        list(policy.s1),
        list(policy.s2),
        list(policy.d1),
        list(policy.d2),
        list(policy.target),
        list(policy.host),
        policy.grace
    );
    for (name, kind, allow) in RULES {
        let (about, step, verify) = match kind {
            RuleKind::Unit => ("unit: name", "unit_restart", "    verify: {active_for: 10s, within: 60s}\n"),
            RuleKind::Disk => (
                "filesystem: name",
                "build_cache_prune",
                "    verify: {usage_below: 80%, within: 5m, hold: 30s}\n",
            ),
            RuleKind::Look => ("unit: name", "notify", ""),
        };
        text += &format!(
            "  - name: {name}\n    match: ['alertname=\"{name}\"']\n    target: {{{about}, allow: {allow:?}}}\n    steps: [{step}]\n{verify}"
        );
    }
    let mut config = config(&text).unwrap();
    config.deletion = policy.deletion;
    config
}

fn rule_name(name: &str) -> &'static str {
    RULES.iter().find(|(known, ..)| *known == name).unwrap().0
}

fn limits(texts: &[&str]) -> Vec<Limit> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The configuration that a schedule begins with.
fn configured(plan: &Plan, world: &World) -> Config {
    let mut config = CONFIGS[plan.policy].clone();
    for (rule, (planned, (name, ..))) in config.rules.iter_mut().zip(plan.rules.iter().zip(RULES)) {
        rule.mode = planned.mode;
        rule.limits = limits(planned.limits);
        rule.rule_limits = limits(planned.rule_limits);
        rule.restraint.cooldown = Duration::from_secs(planned.cooldown);
        rule.restraint.breaker_after = planned.breaker.0;
        rule.restraint.breaker_hold = Duration::from_secs(planned.breaker.1);
        rule.hours = planned.hours.map(|(from, to)| Hours::read(&[], from, to, "UTC").unwrap());
        let steps = planned.steps.iter().enumerate();
        rule.steps = steps
            .map(|(position, step)| {
                let (class, does) = (step.class, step.does.clone());
                Step(Arc::new(Hand { world: world.clone(), rule: name, position, class, does }))
            })
            .collect();
    }
    config
}

/// Where schedules are played, one after the other.
pub(super) struct Stage {
    memory: Memory,
    metrics: Metrics,
}

/// A living process.
struct Process {
    journal: Journal,
    writer: JoinHandle<()>,
    worker: JoinHandle<Result<(), Error>>,
    live: watch::Sender<Arc<Config>>,
    bell: Bell,
    stop: CancellationToken,
}

struct Play<'a> {
    stage: &'a Stage,
    world: World,
    config: Arc<Config>,
    process: Process,
}

impl Stage {
    pub(super) fn new() -> Self {
        Self { memory: Memory::new(), metrics: Metrics::new(&CONFIGS[0].rules) }
    }

    /// Plays a schedule to its end and has it judged.
    pub(super) fn play(&self, plan: &Plan) -> Result<Seen, String> {
        self.memory.clear();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let world = runtime.block_on(async {
            let world = World::new();
            let config = Arc::new(configured(plan, &world));
            let process = self.start(&world, &config);
            let mut play = Play { stage: self, world: world.clone(), config, process };
            for one in &plan.moves {
                play.make(one).await;
            }
            play.quiet().await;
            world
        });
        oracle::judge(plan, &world, &self.memory)
    }

    fn start(&self, world: &World, config: &Arc<Config>) -> Process {
        world.start();
        let (journal, writer) = self.memory.journal();
        let clocks = world.clone();
        let clock = Clock::new(move || clocks.now());
        let bell = Arc::new(watch::Sender::new(()));
        let post =
            Post { journal: journal.clone(), clock: clock.clone(), metrics: self.metrics.clone(), bell };
        let assessor = Assessor {
            reports: "/nowhere".into(),
            config: config.clone(),
            eyes: Arc::new(world.clone()),
            host: Host::local(),
            notifier: Notifier::new(post),
        };
        let stop = CancellationToken::new();
        let walker = Walker {
            journal: journal.clone(),
            metrics: self.metrics.clone(),
            assessor: assessor.under(config.clone()),
            started: Some(clock.now()),
            clock,
            pace: Duration::from_secs(2),
            settle: Duration::from_secs(10),
            stop: stop.clone(),
            fleet: None,
        };
        let (live, watched) = watch::channel(config.clone());
        let bell = Bell::default();
        let worker = tokio::spawn(Worker::new(walker, watched, bell.clone()).run());
        Process { journal, writer, worker, live, bell, stop }
    }
}

impl Play<'_> {
    async fn make(&mut self, one: &Move) {
        // People and senders come in the middle of everything; the host itself changes when what takes no time is over,
        // so that a look says what was true in its millisecond.
        if matches!(
            one,
            Move::Trouble(..)
                | Move::Break(_)
                | Move::Heal(_)
                | Move::Blind(..)
                | Move::SetClock(_)
                | Move::Packages(_)
        ) {
            self.pass(Duration::from_millis(1)).await;
        }
        match one {
            Move::Trouble(rule, target) => {
                if let Some(thing) = identity(TARGETS[*target]) {
                    self.world.break_down(thing);
                }
                self.deliver(&[(*rule, *target, true)]).await;
            }
            Move::Deliver(alerts) => self.deliver(alerts).await,
            Move::Torn(rule, target) => self.torn(*rule, *target).await,
            Move::Break(thing) => self.world.break_down(THINGS[*thing]),
            Move::Heal(thing) => self.world.heal(THINGS[*thing]),
            Move::Blind(thing, seconds, slowly) => self.world.blind(THINGS[*thing], *seconds, *slowly),
            Move::Wait(seconds) => self.pass(Duration::from_secs(*seconds)).await,
            Move::Die(seconds) => {
                self.die().await;
                tokio::time::sleep(Duration::from_secs(*seconds)).await;
                self.revive();
            }
            Move::DieAfter(changes) => self.process.journal.fuse.set(*changes),
            Move::Stop => self.stop().await,
            Move::Boot(seconds, lost) => {
                // The last the worker knows of the wall clock must be true: that it was set just before, nobody could
                // know.
                self.look_up().await;
                self.die().await;
                tokio::time::sleep(Duration::from_secs(*seconds)).await;
                self.world.boot(*lost);
                self.revive();
                self.look_up().await;
            }
            Move::SetClock(seconds) => {
                self.world.set_clock(*seconds);
                self.look_up().await;
            }
            Move::Pause(seconds) => {
                let lasts = seconds.map(Duration::from_secs);
                self.order(async |journal, now| {
                    journal.pause("a test".to_owned(), "someone".to_owned(), lasts, now).await
                })
                .await;
                self.world.note(What::Paused(*seconds));
            }
            Move::Resume => {
                self.world.note(What::Resumed);
                self.order(async |journal, now| journal.resume("someone".to_owned(), now).await).await;
            }
            Move::Decide(which, approved) => self.decide(which, *approved).await,
            Move::Ack(rule, target) => self.ack(*rule, *target).await,
            Move::Packages(at_work) => self.world.packages(*at_work),
            Move::Lower(rule) => {
                let mut lowered = (*self.config).clone();
                lowered.rules[*rule].mode = Mode::Plan;
                self.config = Arc::new(lowered);
                self.process.live.send_replace(self.config.clone());
                self.world.note(What::Lowered(*rule));
            }
        }
    }

    /// Lets time pass; whoever dies meanwhile is started again.
    async fn pass(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let fuse = self.process.journal.fuse.clone();
            tokio::select! {
                biased;
                () = fuse.blown() => {
                    self.die().await;
                    self.revive();
                }
                () = sleep_until(end) => return,
            }
        }
    }

    /// The process is no more: nothing of it is ever polled again, and what it had not committed is gone.
    async fn die(&mut self) {
        self.process.worker.abort();
        self.process.writer.abort();
        drop((&mut self.process.worker).await);
        drop((&mut self.process.writer).await);
        // The walks, which the worker's end aborts.
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        for (record, step) in self.stage.memory.interrupted() {
            if !self.world.was_called(record.id, step.position) {
                self.world.note(What::Lost(Call {
                    rule: rule_name(&record.rule),
                    position: step.position,
                    class: step.class,
                    target: record.target,
                    remediation: record.id,
                    walk: None,
                }));
            }
        }
    }

    fn revive(&mut self) {
        self.process = self.stage.start(&self.world, &self.config);
    }

    async fn stop(&mut self) {
        self.process.stop.cancel();
        let fuse = self.process.journal.fuse.clone();
        tokio::select! {
            biased;
            () = fuse.blown() => {}
            ended = &mut self.process.worker => ended.unwrap().unwrap(),
        }
        self.process.worker.abort();
        self.process.worker = tokio::spawn(async { Ok(()) });
        self.die().await;
        self.revive();
    }

    /// Asks the journal for something that somebody waits for; a process that dies of it is started again and asked
    /// once more.
    async fn order<T>(&mut self, ask: impl AsyncFn(Journal, crate::clock::Moment) -> Result<T, Error>) -> T {
        loop {
            let journal = self.process.journal.clone();
            let fuse = journal.fuse.clone();
            tokio::select! {
                biased;
                () = fuse.blown() => {}
                answer = ask(journal, self.world.now()) => {
                    self.process.bell.urge();
                    return answer.unwrap();
                }
            }
            self.die().await;
            self.revive();
        }
    }

    /// The worker looks into the journal, as it does twice a minute.
    async fn look_up(&mut self) {
        self.order(async |journal, now| journal.open_targets(now).await).await;
    }

    /// What a body means here, as the webhook finds out.
    fn admitted(&self, alerts: &[(usize, usize, bool)]) -> Vec<Incoming> {
        let alerts: Vec<_> = alerts
            .iter()
            .map(|(rule, target, firing)| {
                json!({
                    "status": if *firing { "firing" } else { "resolved" },
                    "labels": {"alertname": RULES[*rule].0, "host": "vps1", "name": TARGETS[*target]},
                    "fingerprint": "ab",
                })
            })
            .collect();
        let body = json!({"version": "4", "alerts": alerts}).to_string();
        let mut ours = Vec::new();
        let take = |_: &Alert<'_>, meaning| match meaning {
            Meaning::Ours(alert) => ours.push(alert),
            Meaning::Ignored(_) => {}
        };
        webhook::read(body.as_bytes(), &self.config, false, take).unwrap();
        ours
    }

    fn taken(&self, alerts: &[Incoming], sure: bool) {
        for alert in alerts {
            let rule = rule_name(&alert.rule);
            let target = TARGETS.iter().find(|name| **name == alert.target.name()).unwrap();
            self.world.note(What::Taken { rule, target, firing: alert.firing, sure });
        }
    }

    async fn deliver(&mut self, alerts: &[(usize, usize, bool)]) {
        let admitted = self.admitted(alerts);
        if admitted.is_empty() {
            return;
        }
        let journal = &self.process.journal;
        let accepted = journal.accept(admitted.clone(), 10_000, self.world.now()).await.unwrap();
        assert!(matches!(accepted, Accepted::Taken(_)));
        self.taken(&admitted, true);
        self.process.bell.ring();
    }

    async fn torn(&mut self, rule: usize, target: usize) {
        let admitted = self.admitted(&[(rule, target, true)]);
        if admitted.is_empty() {
            return;
        }
        let journal = self.process.journal.clone();
        self.taken(&admitted, false);
        let now = self.world.now();
        let asked = tokio::spawn(async move { journal.accept(admitted, 10_000, now).await });
        tokio::task::yield_now().await;
        asked.abort();
        self.die().await;
        self.revive();
    }

    async fn decide(&mut self, which: &proptest::sample::Index, approved: bool) {
        let awaiting = self.stage.memory.awaiting();
        if awaiting.is_empty() {
            return;
        }
        let id = *which.get(&awaiting);
        let verdict = if approved { Verdict::Approve } else { Verdict::Reject };
        let decided = self
            .order(async |journal, now| {
                journal.decide(id, verdict, "someone".to_owned(), APPROVAL_WITHIN, now).await
            })
            .await;
        // Not awaiting: it died between taking the decision and saying so, and was asked again.
        if matches!(decided, Decided::Taken | Decided::NotAwaiting) {
            self.world.note(What::Decided { id, approved });
        }
    }

    async fn ack(&mut self, rule: usize, target: usize) {
        let ((name, kind, _), target) = (RULES[rule], TARGETS[target].to_owned());
        let kind = if kind == RuleKind::Disk { "filesystem" } else { "unit" };
        self.world.note(What::Acked { rule: name, target: target.clone() });
        self.order(async |journal, now| {
            journal.ack(name.to_owned(), kind, target.clone(), "someone".to_owned(), now).await
        })
        .await;
    }

    /// Nothing happens any more, until everything has ended or has had the time for it.
    async fn quiet(&mut self) {
        self.world.calm();
        let end = Instant::now() + QUIET;
        while self.stage.memory.open() > 0 && Instant::now() < end {
            self.pass(Duration::from_secs(60)).await;
        }
        self.die().await;
    }
}

/// Alerts taken for sure, and those that may have been, by what the host's log says.
pub(super) fn taken(world: &World) -> BTreeMap<bool, u64> {
    let mut counts = BTreeMap::new();
    for entry in world.log() {
        if let What::Taken { firing: true, sure, .. } = entry.what {
            *counts.entry(sure).or_default() += 1;
        }
    }
    counts
}
