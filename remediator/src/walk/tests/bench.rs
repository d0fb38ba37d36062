//! A host that does what a test says, and a remediator on it whose process can die.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use evenkeel_host::config::Secret;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    actions::{Action, Check, Done, Failure, Job, Permission, Step},
    admission::gates::{Conditions, Gates},
    assess::Assessor,
    clock::{Clock, Moment},
    config::{Config, tests::config},
    filling::Filling,
    journal::{Accepted, Error, Incoming, Journal, Reader, Record, StepRecord},
    metrics::Metrics,
    notify::{Form, Notifier, On, Post, Receiver},
    observe::{Container, Eyes, Filesystem, Host, Observation, Unit, Unseen},
    policy::Class,
    rules::Rule,
    target::{Kind, Target},
    walk::{Next, Walker},
};

/// What a look answers.
pub(super) type Look = Result<Observation, Unseen>;

/// One call of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) action: &'static str,
    pub(super) class: Class,
    pub(super) rule: String,
    pub(super) target: String,
    pub(super) remediation: i64,
    pub(super) at: Instant,
}

/// The host: what is to be seen of it, and what was done to it. Outlives every process of the remediator.
#[derive(Clone, Default)]
pub(super) struct World(Arc<Mutex<State>>, Arc<Notify>);

#[derive(Default)]
struct State {
    /// What is seen of each target once its script is used up.
    seen: BTreeMap<String, Look>,
    /// What is seen first, one look each.
    script: BTreeMap<String, VecDeque<Look>>,
    calls: Vec<Call>,
    /// Targets that an action is at work on.
    under_way: Vec<String>,
    /// The most at once.
    most_under_way: usize,
    runs: u32,
    /// What acting on any target would take along.
    dependents: Vec<String>,
    conditions: Conditions,
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn show(&self, target: &str, seen: Observation) {
        self.state().seen.insert(target.to_owned(), Ok(seen));
    }

    pub(super) fn hide(&self, target: &str) {
        self.state().seen.insert(target.to_owned(), Err(Unseen("no answer".to_owned())));
    }

    /// What the next looks at a target see, before what `show` said.
    pub(super) fn script(&self, target: &str, looks: impl IntoIterator<Item = Look>) {
        self.state().script.entry(target.to_owned()).or_default().extend(looks);
    }

    /// What acting would take along.
    pub(super) fn depend(&self, others: &[&str]) {
        self.state().dependents = others.iter().map(|other| (*other).to_owned()).collect();
    }

    /// How the host itself is.
    pub(super) fn stand(&self, conditions: Conditions) {
        self.state().conditions = conditions;
    }

    pub(super) fn seen(&self, target: &str) -> Observation {
        self.state().seen[target].clone().unwrap()
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// The names of the actions that were called, in order.
    pub(super) fn called(&self) -> Vec<&'static str> {
        self.state().calls.iter().map(|call| call.action).collect()
    }

    /// Returns when an action has begun.
    pub(super) async fn acting(&self) {
        self.1.notified().await;
    }

    pub(super) fn most_under_way(&self) -> usize {
        self.state().most_under_way
    }

    /// The unit runs again, as a new run.
    pub(super) fn cure(&self, target: &str) {
        let mut state = self.state();
        state.runs += 1;
        let run = format!("run-{}", state.runs);
        let cured = match &state.seen[target] {
            Ok(Observation::Filesystem(_)) => disk(0.5),
            Ok(Observation::Container(container)) => Observation::Container(Container {
                health: "healthy".to_owned(),
                started_seconds: Some(f64::from(state.runs)),
                ..container.clone()
            }),
            _ => unit("active", &run),
        };
        state.seen.insert(target.to_owned(), Ok(cured));
    }

    /// The unit has failed again, as a new run.
    pub(super) fn sicken(&self, target: &str) {
        let mut state = self.state();
        state.runs += 1;
        let run = format!("run-{}", state.runs);
        state.seen.insert(target.to_owned(), Ok(unit("failed", &run)));
    }
}

impl Eyes for World {
    fn what_fills<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Filling> {
        Box::pin(async { Filling::default() })
    }

    fn dependents<'a>(&'a self, _: &'a Target, _: usize) -> BoxFuture<'a, Result<Vec<String>, Unseen>> {
        let dependents = self.state().dependents.clone();
        Box::pin(async move { Ok(dependents) })
    }

    fn conditions(&self) -> BoxFuture<'_, Conditions> {
        let conditions = self.state().conditions.clone();
        Box::pin(async move { conditions })
    }

    fn observe<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Observation, Unseen>> {
        let mut state = self.state();
        let scripted = state.script.get_mut(target.name()).and_then(VecDeque::pop_front);
        let missing = || Err(Unseen(format!("there is no {target}")));
        let look = scripted.unwrap_or_else(|| state.seen.get(target.name()).cloned().unwrap_or_else(missing));
        Box::pin(async move { look })
    }
}

/// What an action does when it is called.
#[derive(Clone)]
#[allow(clippy::large_enum_variant, reason = "a few of them in a test")]
pub(super) enum Does {
    /// Makes the target well.
    Cure,
    /// Says it did, and changes nothing.
    Nothing,
    /// Restarts the unit, which fails again at once.
    Sicken,
    /// Leaves this much of the filesystem in use.
    Leave(f64),
    /// Makes the target look so.
    Show(Box<Observation>),
    /// Is refused.
    Refuse,
    /// Finds the host busy with something that excludes it.
    Defer,
    /// Gives no answer.
    Hang,
    /// Takes so long, then makes the target well.
    Take(Duration),
    /// Panics.
    Panic,
    /// One of these, the next one at each call.
    InTurn(Arc<Mutex<VecDeque<Does>>>),
}

/// An action of a test.
#[derive(Clone)]
pub(super) struct Fake {
    name: &'static str,
    class: Class,
    does: Does,
    /// What its check answers; nothing at all when there is nothing here.
    check: Option<Check>,
    prepares: bool,
    world: World,
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Fake {
    pub(super) fn checked(mut self, check: Check) -> Self {
        self.check = Some(check);
        self
    }

    pub(super) fn that_prepares(mut self) -> Self {
        self.prepares = true;
        self
    }

    pub(super) fn whose_check_hangs(mut self) -> Self {
        self.check = None;
        self
    }
}

impl Action for Fake {
    fn name(&self) -> &'static str {
        self.name
    }

    fn class(&self) -> Class {
        self.class
    }

    fn fits(&self, _: Kind) -> bool {
        true
    }

    fn prepares(&self) -> bool {
        self.prepares
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(90)
    }

    fn plan(&self, target: &Target) -> String {
        format!("{} {target}", self.name)
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        Vec::new()
    }

    fn check<'a>(&'a self, _: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async {
            match &self.check {
                Some(check) => Ok(check.clone()),
                None => std::future::pending().await,
            }
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let target = job.target.name().to_owned();
            let at_work = AtWork::begin(self, job);
            let mut does = self.does.clone();
            while let Does::InTurn(turns) = &does {
                let next = turns.lock().unwrap().pop_front().unwrap_or(Does::Nothing);
                does = next;
            }
            match does {
                Does::Cure => self.world.cure(&target),
                Does::Nothing => {}
                Does::Sicken => self.world.sicken(&target),
                Does::Leave(used) => self.world.show(&target, disk(used)),
                Does::Show(seen) => self.world.show(&target, *seen),
                Does::Refuse => return Err(Failure::Refused("it says no".to_owned())),
                Does::Defer => return Err(Failure::Busy("another is at it".to_owned())),
                Does::Hang => std::future::pending().await,
                Does::Take(time) => {
                    sleep(time).await;
                    self.world.cure(&target);
                }
                Does::Panic => panic!("as the test wants"),
                Does::InTurn(_) => unreachable!("unpacked above"),
            }
            drop(at_work);
            Ok(Done { detail: "did it".to_owned(), claimed_freed_bytes: None })
        })
    }
}

/// An action at work on a target: two at once are what must never be.
struct AtWork(World, String);

impl AtWork {
    fn begin(fake: &Fake, job: &Job) -> Self {
        let target = job.target.name().to_owned();
        let mut state = fake.world.state();
        if fake.class.acts() {
            assert!(!state.under_way.contains(&target), "two actions at once on {target}");
        }
        state.calls.push(Call {
            action: fake.name,
            class: fake.class,
            rule: job.rule.clone(),
            target: target.clone(),
            remediation: job.id,
            at: Instant::now(),
        });
        state.under_way.push(target.clone());
        state.most_under_way = state.most_under_way.max(state.under_way.len());
        drop(state);
        fake.world.1.notify_one();
        Self(fake.world.clone(), target)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        // Also when the process dies under it, or a test has failed meanwhile.
        if let Ok(mut state) = self.0.0.lock() {
            let place = state.under_way.iter().position(|target| *target == self.1);
            place.map(|place| state.under_way.remove(place));
        }
    }
}

pub(super) fn unit(active_state: &str, run: &str) -> Observation {
    Observation::Unit(Unit {
        load_state: "loaded".to_owned(),
        active_state: active_state.to_owned(),
        sub_state: active_state.to_owned(),
        invocation_id: run.to_owned(),
        ..Unit::default()
    })
}

pub(super) fn failed() -> Observation {
    unit("failed", "run-0")
}

pub(super) fn disk(used_ratio: f64) -> Observation {
    const SIZE: u64 = 1_000_000_000_000;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "the disk of a test"
    )]
    let avail_bytes = ((1.0 - used_ratio) * SIZE as f64) as u64;
    Observation::Filesystem(Filesystem { size_bytes: SIZE, avail_bytes, used_ratio, inodes: None, device: 1 })
}

/// Hears of everything.
pub(super) fn receiver() -> Receiver {
    let url = Secret::new("http://receiver.example");
    Receiver { form: Form::Webhook, url, bearer_token: None, on: vec![On::All] }
}

/// Milliseconds since 1970 at which a test begins: 2027-01-15.
const BEGINNING_MS: i64 = 1_800_000_000_000;

/// The clocks of the host, apart from the time that passes.
#[derive(Debug, Clone)]
struct Clocks {
    beginning: Instant,
    boot: u32,
    booted: Instant,
    wall_offset_ms: i64,
}

/// A remediator on a host, with its state.
pub(super) struct Bench {
    pub(super) world: World,
    pub(super) config: Config,
    /// None only while the process is dead.
    walker: Option<Walker>,
    clocks: Arc<Mutex<Clocks>>,
    dir: TempDir,
}

/// A rule about units that may act, with these keys beside.
pub(super) fn unit_rule(name: &str, more: &str) -> String {
    format!(
        "  - name: {name}
    match: ['alertname=\"{name}\"']
    target: {{unit: name, allow: ['app*.service']}}
    steps: [unit_restart]
    verify: {{active_for: 10s, within: 60s}}
{more}"
    )
}

/// A rule about filesystems that may act.
pub(super) fn disk_rule(name: &str, more: &str) -> String {
    format!(
        "  - name: {name}
    match: ['alertname=\"{name}\"']
    target: {{filesystem: mountpoint, allow: [/no/such/disk, /no/such/second]}}
    steps: [build_cache_prune]
    verify: {{usage_below: 80%, within: 5m, hold: 30s}}
{more}"
    )
}

impl Bench {
    /// In mode auto, everything allowed, no limits but those that the rules name.
    pub(super) fn new(rules: &[String]) -> Self {
        let free = "S1: [1000/1h], S2: [1000/1h], D1: [1000/1h], D2: [1000/1h]";
        Self::under(&format!("policy: {{mode: auto, deletion: data, limits: {{{free}}}}}"), rules)
    }

    pub(super) fn under(policy: &str, rules: &[String]) -> Self {
        let text = format!("identity: {{hosts: [vps1]}}\n{policy}\nrules:\n{}", rules.join(""));
        let mut config = config(&text).unwrap();
        // Without the report that a rule takes first: what is called is what a test names.
        for rule in &mut config.rules {
            rule.steps.clear();
        }
        // The gates have tests of their own; here every host is a young one.
        if !policy.contains("gates") {
            config.gates = Gates { grace: Duration::ZERO, engine_grace: Duration::ZERO, ..config.gates };
        }
        if !policy.contains("storm") {
            config.storm.targets = u32::MAX;
        }
        config.receivers = vec![receiver()];
        // Memory, where there is some: thousands of durable changes are made here.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let now = Instant::now();
        let clocks = Clocks { beginning: now, boot: 1, booted: now, wall_offset_ms: 0 };
        let clocks = Arc::new(Mutex::new(clocks));
        let world = World::default();
        let mut bench = Self { world, config, walker: None, clocks, dir };
        bench.start(Journal::open(bench.dir.path()).unwrap());
        bench
    }

    fn start(&mut self, journal: Journal) {
        let clocks = Arc::clone(&self.clocks);
        let clock = Clock::new(move || {
            let clocks = clocks.lock().unwrap().clone();
            let ms = |since: Instant| i64::try_from(since.elapsed().as_millis()).unwrap();
            Moment {
                wall_ms: BEGINNING_MS + ms(clocks.beginning) + clocks.wall_offset_ms,
                boot_ms: ms(clocks.booted),
                boot_id: format!("boot-{}", clocks.boot),
            }
        });
        let metrics = Metrics::new(&self.config.rules);
        let bell = Arc::new(watch::Sender::new(()));
        let post = Post { journal: journal.clone(), clock: clock.clone(), metrics: metrics.clone(), bell };
        let config = Arc::new(self.config.clone());
        let assessor = Assessor {
            reports: self.dir.path().join("reports"),
            config: config.clone(),
            eyes: Arc::new(self.world.clone()),
            host: Host::local(),
            notifier: Notifier::new(post),
        };
        self.walker = Some(Walker {
            journal,
            metrics,
            assessor: assessor.under(config),
            started: None,
            clock,
            pace: Duration::from_secs(1),
            settle: Duration::from_secs(10),
            stop: CancellationToken::new(),
            fleet: None,
        });
    }

    pub(super) fn walker(&self) -> &Walker {
        self.walker.as_ref().unwrap()
    }

    /// An action of this host.
    pub(super) fn fake(&self, name: &'static str, class: Class, does: Does) -> Fake {
        Fake { name, class, does, check: Some(Check::Go), prepares: false, world: self.world.clone() }
    }

    pub(super) fn rule(&mut self, name: &str) -> &mut Rule {
        self.config.rules.iter_mut().find(|rule| rule.name == name).unwrap()
    }

    /// Gives a rule its steps. The configuration holds from the next start of the process.
    pub(super) fn steps(&mut self, rule: &str, steps: impl IntoIterator<Item = Fake>) {
        self.rule(rule).steps = steps.into_iter().map(|fake| Step(Arc::new(fake))).collect();
        self.reconfigure();
    }

    /// The configuration as it is now, in the running process.
    pub(super) fn reconfigure(&mut self) {
        let config = Arc::new(self.config.clone());
        let walker = self.walker.as_mut().unwrap();
        walker.assessor = walker.assessor.under(config);
    }

    /// Other eyes than the world's.
    pub(super) fn look_with(&mut self, eyes: Arc<dyn Eyes>) {
        self.walker.as_mut().unwrap().assessor.eyes = eyes;
    }

    pub(super) fn journal(&self) -> &Journal {
        &self.walker().journal
    }

    pub(super) fn reader(&self) -> Reader {
        Reader::open(self.dir.path()).unwrap()
    }

    pub(super) async fn say(&self, rule: &str, target: &str, firing: bool) {
        let rule = self.config.rules.iter().find(|known| known.name == rule).unwrap();
        let incoming = Incoming {
            rule: rule.name.clone(),
            target: rule.selector.admit(target).unwrap(),
            firing,
            impact: rule.interrupts(),
            fingerprint: "ab".to_owned(),
            labels: [("alertname", rule.name.as_str())].into_iter().collect(),
            triggered_by: None,
        };
        self.take(vec![incoming]).await;
    }

    /// What a delivery means here is taken.
    pub(super) async fn take(&self, alerts: Vec<Incoming>) {
        let accepted = self.journal().accept(alerts, 10_000, self.now()).await.unwrap();
        assert!(matches!(accepted, Accepted::Taken(_)));
    }

    /// An alert fires.
    pub(super) async fn alert(&self, rule: &str, target: &str) {
        self.say(rule, target, true).await;
    }

    /// Walks whatever is open, one after the other, as often as it wants, until nothing is.
    pub(super) async fn drive(&self) {
        for _ in 0..1000 {
            let open = self.journal().open_targets(self.now()).await.unwrap();
            let Some(id) = open.keys().next() else { return };
            if let Next::Again(wait) = self.walk(*id).await.unwrap() {
                sleep(wait).await;
            }
        }
        panic!("it never comes to an end");
    }

    pub(super) async fn walk(&self, id: i64) -> Result<Next, Error> {
        self.walker().walk(id).await
    }

    /// An alert fires, and is worked on to its end; the newest remediation.
    pub(super) async fn heal(&self, rule: &str, target: &str) -> Record {
        self.alert(rule, target).await;
        self.drive().await;
        self.last()
    }

    /// The newest remediation.
    pub(super) fn last(&self) -> Record {
        self.reader().recent(None, None, 1).unwrap().remove(0)
    }

    /// Its steps: action, state and reason.
    pub(super) fn steps_of(&self, id: i64) -> Vec<String> {
        let text = |step: StepRecord| {
            let reason = step.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
            format!("{} {}{reason}", step.action, step.state.as_str())
        };
        self.reader().steps(id).unwrap().into_iter().map(text).collect()
    }

    /// The messages since the last time, as they wait for their receiver: outcome and reason.
    pub(super) async fn told(&self) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(letter) = self.journal().next_letter(receiver().key(), self.now()).await.unwrap() {
            let message: serde_json::Value = serde_json::from_str(&letter.body).unwrap();
            let word = |key: &str| message[key].as_str().unwrap().to_owned();
            told.push(format!("{} {}", word("outcome"), word("reason")));
            self.journal().letter_done(letter.id).await.unwrap();
        }
        told
    }

    pub(super) fn now(&self) -> Moment {
        self.walker().clock.now()
    }

    /// The wall clock is set.
    pub(super) fn set_wall_clock(&self, by_ms: i64) {
        self.clocks.lock().unwrap().wall_offset_ms += by_ms;
    }

    /// Walks until an action has begun, and leaves it there.
    pub(super) async fn walk_into_the_action(&self, id: i64) {
        tokio::select! {
            next = self.walk(id) => panic!("it ended: {next:?}"),
            () = self.world.acting() => {}
        }
    }

    /// The process dies where it stands and is started again with the present configuration; its files are all that
    /// remains.
    pub(super) fn restart(&mut self) {
        drop(self.walker.take());
        // The old one's writer lets go of the file when the last who may ask it is gone.
        let journal = loop {
            match Journal::open(self.dir.path()) {
                Err(Error::InUse(_)) => std::thread::yield_now(),
                opened => break opened.unwrap(),
            }
        };
        self.start(journal);
    }
    /// The whole host starts again.
    pub(super) fn reboot(&mut self, wall_clock_by_ms: i64) {
        {
            let mut clocks = self.clocks.lock().unwrap();
            clocks.boot += 1;
            clocks.booted = Instant::now();
            clocks.wall_offset_ms += wall_clock_by_ms;
        }
        self.restart();
    }
}
