//! One host of a simulation: a disk that outlives every process on it, a clock that is wrong by minutes, and the remediator
//! as it ships, as tasks: it takes alerts, works, reconciles and keeps its place in the fleet.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::world::{Body, World};
use crate::{
    actions::Step,
    assess::Assessor,
    clock::{Clock, Moment},
    config::Config,
    fleet::{agent::Agent, link::Link, member::Member, settings::Settings},
    journal::{Journal, Record, memory::Memory},
    metrics::Metrics,
    notify::{Notifier, Post},
    observe::Host,
    reconcile::Reconciler,
    walk::Walker,
    worker::{Bell, Worker},
};

/// Milliseconds since 1970 at which a simulation begins: 2027-01-15.
const BEGINNING_MS: i64 = 1_800_000_000_000;

/// Connections that many hosts of one process share, because two for each of ten thousand are more than it may have open.
#[derive(Clone)]
pub(in crate::fleet) struct Shared {
    /// For what members ask.
    pub(super) members: Arc<Link>,
    /// For what agents read.
    pub(super) agents: Arc<Link>,
    /// Between two reads of one agent: none can wait in Redis.
    pub(super) every: Duration,
}

/// A host.
pub(super) struct Machine {
    pub(super) name: String,
    body: Body,
    memory: Memory,
    settings: Arc<Settings>,
    config: Arc<Config>,
    metrics: Metrics,
    shared: Option<Shared>,
    skew_ms: Arc<AtomicI64>,
    booted: Instant,
    process: Option<Process>,
}

/// A living remediator.
struct Process {
    tasks: Vec<JoinHandle<()>>,
    /// The configuration stays as it is; a reader whose writer is gone takes that for the end.
    _live: watch::Sender<Arc<Config>>,
}

impl Machine {
    /// A host that has never run; `template` is the configuration that all have, but for the name and the way to Redis.
    pub(super) fn new(
        world: &World,
        number: usize,
        template: &Config,
        url: String,
        metrics: &Metrics,
    ) -> Self {
        let name = format!("host-{number}");
        let body = Body { world: world.clone(), host: number };
        let mut config = template.clone();
        config.hosts = vec![name.clone()];
        for rule in &mut config.rules {
            rule.steps = vec![Step(Arc::new(body.clone()))];
        }
        let mut settings = Settings::clone(template.fleet.as_ref().unwrap());
        settings.host = name.parse().unwrap();
        settings.names = vec![settings.host.clone()];
        settings.redis.url = url;
        Self {
            name,
            body,
            memory: Memory::new(),
            settings: Arc::new(settings),
            config: Arc::new(config),
            metrics: metrics.clone(),
            shared: None,
            skew_ms: Arc::default(),
            booted: Instant::now(),
            process: None,
        }
    }

    /// The same over connections that others use too.
    pub(super) fn over(self, shared: Shared) -> Self {
        Self { shared: Some(shared), ..self }
    }

    /// Its clock is wrong by so much from now on.
    pub(super) fn set_clock(&self, by_ms: i64) {
        self.skew_ms.store(by_ms, Ordering::SeqCst);
    }

    fn clock(&self) -> Clock {
        let (skew_ms, booted, boot_id) = (self.skew_ms.clone(), self.booted, self.name.clone());
        Clock::new(move || {
            let boot_ms = i64::try_from(booted.elapsed().as_millis()).unwrap();
            let wall_ms = BEGINNING_MS + boot_ms + skew_ms.load(Ordering::SeqCst);
            Moment { wall_ms, boot_ms, boot_id: boot_id.clone() }
        })
    }

    pub(super) fn is_alive(&self) -> bool {
        self.process.is_some()
    }

    /// A process is started, with what is on the disk.
    pub(super) fn start(&mut self) {
        let (journal, writer) = self.memory.journal();
        let (clock, metrics, bell) = (self.clock(), self.metrics.clone(), Bell::default());
        let stop = CancellationToken::new();
        let (sender, live) = watch::channel(self.config.clone());
        let member = Member::new(
            self.settings.clone(),
            journal.clone(),
            clock.clone(),
            metrics.clone(),
            bell.clone(),
            live.clone(),
        );
        let agent = Agent::new(
            self.settings.clone(),
            live.clone(),
            journal.clone(),
            clock.clone(),
            metrics,
            bell.clone(),
            stop.clone(),
        );
        let (member, agent) = match self.shared.clone() {
            Some(Shared { members, agents, every }) => (member.over(members), agent.over(agents, every)),
            None => (member, agent),
        };
        let member = Arc::new(member);
        let walker = self.walker(journal, clock, stop.clone(), Arc::clone(&member));
        let reconciler = Reconciler::new(walker.clone(), live.clone(), bell.clone());
        let worker = Worker::new(walker, live, bell);
        let tasks = vec![
            tokio::spawn(async move { worker.run().await.unwrap() }),
            tokio::spawn(reconciler.run()),
            tokio::spawn(agent.run()),
            tokio::spawn(member.run(stop)),
            writer,
        ];
        self.process = Some(Process { tasks, _live: sender });
    }

    fn walker(&self, journal: Journal, clock: Clock, stop: CancellationToken, member: Arc<Member>) -> Walker {
        let post = Post {
            journal: journal.clone(),
            clock: clock.clone(),
            metrics: self.metrics.clone(),
            bell: Arc::new(watch::Sender::new(())),
        };
        let assessor = Assessor {
            reports: "/nowhere".into(),
            config: self.config.clone(),
            eyes: Arc::new(self.body.clone()),
            host: Host::local(),
            notifier: Notifier::new(post),
        };
        Walker {
            assessor: assessor.under(self.config.clone()),
            journal,
            clock,
            metrics: self.metrics.clone(),
            pace: Duration::from_millis(50),
            settle: Duration::from_secs(1),
            started: None,
            stop,
            fleet: Some(member),
        }
    }

    /// The process dies where it stands: what was not on the disk never was.
    pub(super) async fn die(&mut self) {
        let Some(process) = self.process.take() else { return };
        for task in &process.tasks {
            task.abort();
        }
        for task in process.tasks {
            drop(task.await);
        }
    }

    /// Remediations without an outcome.
    pub(super) fn open(&self) -> usize {
        self.memory.open()
    }

    /// Its remediations, oldest first.
    pub(super) fn records(&self) -> Vec<Record> {
        self.memory.records().into_iter().map(|(record, _)| record).collect()
    }
}
