//! The host of a schedule: what is true of it, what the remediator sees and does, and a log of both in the time that
//! really passes. Whatever the remediator believes is not asked here.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    task,
    time::{Instant, sleep},
};

use super::{
    super::bench::disk,
    plan::{Does, Effect, THINGS},
};
use crate::{
    actions::{Action, Check, Done, Failure, Job, Permission},
    admission::gates::Conditions,
    clock::Moment,
    filling::Filling,
    observe::{Eyes, Observation, Unit, Unseen},
    policy::Class,
    target::{Kind, Target},
};

/// Milliseconds since 1970 at which a schedule begins: 2027-01-15 08:00 UTC.
const BEGINNING_MS: i64 = 1_800_000_000_000;
/// How long a slow look takes to fail.
const SLOW: Duration = Duration::from_secs(10);

/// One thing that happened.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Milliseconds of true time since the schedule began.
    pub(super) at: u64,
    /// What the wall clock said.
    pub(super) wall_ms: i64,
    /// Which process was alive.
    pub(super) life: u32,
    pub(super) what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    /// A look at a thing, by which walk, and what it saw.
    Looked {
        thing: &'static str,
        walk: Option<task::Id>,
        seen: Option<State>,
    },
    /// An action was called.
    Called(Call),
    /// The journal says that one may have been called, and the process died just before it was.
    Lost(Call),
    /// Alerts of a rule about a target were taken; `sure`, when the sender was told so.
    Taken {
        rule: &'static str,
        target: &'static str,
        firing: bool,
        sure: bool,
    },
    Paused(Option<u64>),
    Resumed,
    Decided {
        id: i64,
        approved: bool,
    },
    Acked {
        rule: &'static str,
        target: String,
    },
    /// A process was started.
    Started,
    /// The host was.
    Booted,
    ClockSet,
    Packages(bool),
    Lowered(usize),
}

/// One call of an action.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) rule: &'static str,
    pub(super) position: usize,
    pub(super) class: Class,
    /// The name that it was called with.
    pub(super) target: String,
    pub(super) remediation: i64,
    /// The walk that called it, when it did.
    pub(super) walk: Option<task::Id>,
}

/// What is true of a thing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum State {
    Unit { failed: bool, run: u32 },
    Disk(f64),
}

impl State {
    fn broken(self, run: u32) -> Self {
        match self {
            Self::Unit { .. } => Self::Unit { failed: true, run },
            Self::Disk(_) => Self::Disk(0.95),
        }
    }

    fn healed(self, run: u32) -> Self {
        match self {
            Self::Unit { .. } => Self::Unit { failed: false, run },
            Self::Disk(_) => Self::Disk(0.5),
        }
    }
}

/// The clocks of the host.
#[derive(Debug, Clone)]
pub(super) struct Clocks {
    began: Instant,
    boot: u32,
    booted: Instant,
    wall_offset_ms: i64,
}

struct Inner {
    clocks: Clocks,
    /// When each boot began, in milliseconds of true time.
    boots: Vec<u64>,
    life: u32,
    things: BTreeMap<&'static str, State>,
    blind: BTreeMap<&'static str, (Instant, bool)>,
    packages: bool,
    runs: u32,
    /// How often each step was called.
    turns: BTreeMap<(&'static str, usize), usize>,
    /// Things that an action is at work on, as its process sees it.
    busy: Vec<&'static str>,
    log: Vec<Entry>,
    violations: Vec<String>,
}

/// The host. Outlives every process.
#[derive(Clone)]
pub(super) struct World(Arc<Mutex<Inner>>);

/// Which thing a name means.
pub(super) fn identity(name: &str) -> Option<&'static str> {
    let name = match name {
        "app-alias.service" => "app-a.service",
        "app-evil.service" => "sshd.service",
        "/no/such/second" => "/no/such/disk",
        name => name,
    };
    THINGS.iter().find(|thing| **thing == name).copied()
}

impl World {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let thing = |name: &&'static str| {
            let disk = name.starts_with('/');
            (*name, if disk { State::Disk(0.5) } else { State::Unit { failed: false, run: 0 } })
        };
        Self(Arc::new(Mutex::new(Inner {
            clocks: Clocks { began: now, boot: 0, booted: now, wall_offset_ms: 0 },
            boots: vec![0],
            life: 0,
            things: THINGS.iter().map(thing).collect(),
            blind: BTreeMap::new(),
            packages: false,
            runs: 0,
            turns: BTreeMap::new(),
            busy: Vec::new(),
            log: Vec::new(),
            violations: Vec::new(),
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub(super) fn now(&self) -> Moment {
        self.inner().now()
    }

    pub(super) fn note(&self, what: What) {
        self.inner().note(what);
    }

    pub(super) fn log(&self) -> Vec<Entry> {
        self.inner().log.clone()
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.inner().violations.clone()
    }

    /// A moment of the clocks in milliseconds of true time.
    pub(super) fn true_ms(&self, moment: &Moment) -> Option<u64> {
        let boot: usize = moment.boot_id.strip_prefix("boot-")?.parse().ok()?;
        Some(self.inner().boots.get(boot)? + u64::try_from(moment.boot_ms).ok()?)
    }

    /// A process begins.
    pub(super) fn start(&self) {
        let mut inner = self.inner();
        inner.life += 1;
        inner.note(What::Started);
    }

    pub(super) fn boot(&self, lost_seconds: i64) {
        let mut inner = self.inner();
        inner.clocks.boot += 1;
        inner.clocks.booted = Instant::now();
        inner.clocks.wall_offset_ms -= lost_seconds * 1000;
        let now = inner.at();
        inner.boots.push(now);
        inner.note(What::Booted);
    }

    pub(super) fn set_clock(&self, by_seconds: i64) {
        let mut inner = self.inner();
        inner.clocks.wall_offset_ms += by_seconds * 1000;
        inner.note(What::ClockSet);
    }

    pub(super) fn break_down(&self, thing: &'static str) {
        self.inner().change(thing, State::broken);
    }

    pub(super) fn heal(&self, thing: &'static str) {
        self.inner().change(thing, State::healed);
    }

    pub(super) fn blind(&self, thing: &'static str, seconds: u64, slowly: bool) {
        let until = Instant::now() + Duration::from_secs(seconds);
        self.inner().blind.insert(thing, (until, slowly));
    }

    pub(super) fn packages(&self, at_work: bool) {
        let mut inner = self.inner();
        inner.packages = at_work;
        inner.note(What::Packages(at_work));
    }

    /// Whether a step of a remediation was called.
    pub(super) fn was_called(&self, remediation: i64, position: usize) -> bool {
        self.inner().log.iter().any(|entry| match &entry.what {
            What::Called(call) | What::Lost(call) => {
                call.remediation == remediation && call.position == position
            }
            _ => false,
        })
    }

    /// Everything can be seen, and nothing is in the way.
    pub(super) fn calm(&self) {
        let mut inner = self.inner();
        inner.blind.clear();
        if inner.packages {
            inner.packages = false;
            inner.note(What::Packages(false));
        }
    }
}

impl Inner {
    fn at(&self) -> u64 {
        u64::try_from(self.clocks.began.elapsed().as_millis()).unwrap()
    }

    fn now(&self) -> Moment {
        let ms = |since: Instant| i64::try_from(since.elapsed().as_millis()).unwrap();
        Moment {
            wall_ms: BEGINNING_MS + ms(self.clocks.began) + self.clocks.wall_offset_ms,
            boot_ms: ms(self.clocks.booted),
            boot_id: format!("boot-{}", self.clocks.boot),
        }
    }

    fn note(&mut self, what: What) {
        let entry = Entry { at: self.at(), wall_ms: self.now().wall_ms, life: self.life, what };
        self.log.push(entry);
    }

    fn change(&mut self, thing: &'static str, how: impl Fn(State, u32) -> State) {
        self.runs += 1;
        let run = self.runs;
        if let Some(state) = self.things.get_mut(thing) {
            *state = how(*state, run);
        }
    }

    fn apply(&mut self, thing: &'static str, effect: Effect) {
        match effect {
            Effect::Cure => self.change(thing, State::healed),
            Effect::Sicken => self.change(thing, State::broken),
            Effect::Ease => self.change(thing, |state, _| match state {
                State::Disk(used) => State::Disk(used.min(0.82)),
                unit => unit,
            }),
            Effect::Nothing | Effect::Refuse => {}
        }
    }
}

fn observation(thing: &'static str, name: &str, state: State) -> Observation {
    match state {
        State::Disk(used) => disk(used),
        State::Unit { failed, run } => {
            let active_state = if failed { "failed" } else { "active" };
            let names = [thing, name].map(str::to_owned).to_vec();
            Observation::Unit(Unit {
                id: thing.to_owned(),
                names,
                load_state: "loaded".to_owned(),
                active_state: active_state.to_owned(),
                sub_state: active_state.to_owned(),
                invocation_id: format!("run-{run}"),
                ..Unit::default()
            })
        }
    }
}

impl Eyes for World {
    fn what_fills<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Filling> {
        Box::pin(async { Filling::default() })
    }

    fn dependents<'a>(&'a self, target: &'a Target, _: usize) -> BoxFuture<'a, Result<Vec<String>, Unseen>> {
        let others =
            if target.name() == "app-heavy.service" { vec!["docker.service".to_owned()] } else { Vec::new() };
        Box::pin(async move { Ok(others) })
    }

    fn conditions(&self) -> BoxFuture<'_, Conditions> {
        let package_lock = self.inner().packages.then(|| "/var/lib/dpkg/lock".to_owned());
        Box::pin(async move { Conditions { package_lock, ..Conditions::default() } })
    }

    fn observe<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Observation, Unseen>> {
        Box::pin(async move {
            let Some(thing) = identity(target.name()) else {
                return Err(Unseen(format!("there is no {target}")));
            };
            let blind = self.inner().blind.get(thing).copied().filter(|(until, _)| *until > Instant::now());
            if let Some((_, slowly)) = blind {
                if slowly {
                    sleep(SLOW).await;
                }
                self.note(What::Looked { thing, walk: task::try_id(), seen: None });
                return Err(Unseen(format!("{target} gave no answer")));
            }
            let mut inner = self.inner();
            let state = inner.things[thing];
            inner.note(What::Looked { thing, walk: task::try_id(), seen: Some(state) });
            Ok(observation(thing, target.name(), state))
        })
    }
}

/// A step of a schedule's rule.
pub(super) struct Hand {
    pub(super) world: World,
    pub(super) rule: &'static str,
    pub(super) position: usize,
    pub(super) class: Class,
    pub(super) does: Vec<Does>,
}

impl fmt::Debug for Hand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Action for Hand {
    fn name(&self) -> &'static str {
        ["first", "second", "third"][self.position]
    }

    fn class(&self) -> Class {
        self.class
    }

    fn fits(&self, _: Kind) -> bool {
        true
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(90)
    }

    fn plan(&self, target: &Target) -> String {
        format!("{} {target}", self.name())
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        Vec::new()
    }

    fn check<'a>(&'a self, _: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async { Ok(Check::Go) })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let (at_work, does) = AtWork::begin(self, job);
            let Some(thing) = at_work.thing else {
                // It observes, which takes its time too.
                sleep(Duration::from_secs(does.takes)).await;
                return Ok(Done { detail: "noted".to_owned(), claimed_freed_bytes: None });
            };
            if does.effect == Effect::Refuse {
                return Err(Failure::Refused("it says no".to_owned()));
            }
            // The host goes on with it when the process that asked for it is dead.
            let world = self.world.clone();
            let done = tokio::spawn(async move {
                sleep(Duration::from_secs(does.takes)).await;
                world.inner().apply(thing, does.effect);
            });
            if !does.answers {
                std::future::pending::<()>().await;
            }
            drop(done.await);
            drop(at_work);
            Ok(Done { detail: "did it".to_owned(), claimed_freed_bytes: None })
        })
    }
}

/// An action that its process waits for: two at once on one thing are what must never be.
struct AtWork {
    world: World,
    thing: Option<&'static str>,
}

impl AtWork {
    fn begin(hand: &Hand, job: &Job) -> (Self, Does) {
        let thing = identity(job.target.name()).filter(|_| hand.class.acts());
        let mut inner = hand.world.inner();
        let turn = inner.turns.entry((hand.rule, hand.position)).or_default();
        let does = hand.does[*turn % hand.does.len()];
        *turn += 1;
        inner.note(What::Called(Call {
            rule: hand.rule,
            position: hand.position,
            class: hand.class,
            target: job.target.name().to_owned(),
            remediation: job.id,
            walk: task::try_id(),
        }));
        if let Some(thing) = thing {
            if inner.busy.contains(&thing) {
                let at = inner.at();
                inner.violations.push(format!("at {at} ms: two actions at once on {thing}"));
            }
            inner.busy.push(thing);
        }
        drop(inner);
        (Self { world: hand.world.clone(), thing }, does)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut inner = self.world.inner();
        let place = inner.busy.iter().position(|busy| Some(*busy) == self.thing);
        place.map(|place| inner.busy.swap_remove(place));
    }
}
