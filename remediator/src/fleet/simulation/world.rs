//! What is true of all hosts, whatever any remediator believes: which unit has failed, which action is at work. What must
//! never be is noted here when it happens.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::sleep;

use crate::{
    actions::{Action, Check, Done, Failure, Job, Permission},
    admission::gates::Conditions,
    filling::Filling,
    observe::{Eyes, Observation, Unit, Unseen},
    policy::Class,
    target::{Kind, Target},
};

/// How long an action takes: scaled down, as all durations here.
const ACTION: Duration = Duration::from_millis(50);

/// All hosts. Cloning shares them.
#[derive(Clone)]
pub(super) struct World(Arc<Mutex<Inner>>);

struct Inner {
    hosts: Vec<Host>,
    /// Whether an action helps: not as long as the common cause is there.
    curable: bool,
    acting: usize,
    most_acting: usize,
    starts: usize,
    /// What must never be.
    wrong: Vec<String>,
}

#[derive(Clone, Default)]
struct Host {
    failed: bool,
    run: u32,
    acting: bool,
    starts: usize,
    /// Actions that the death of their process ended.
    torn: usize,
}

impl World {
    pub(super) fn new(hosts: usize) -> Self {
        let hosts = vec![Host::default(); hosts];
        Self(Arc::new(Mutex::new(Inner {
            hosts,
            curable: true,
            acting: 0,
            most_acting: 0,
            starts: 0,
            wrong: Vec::new(),
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// The unit of a host fails.
    pub(super) fn fail(&self, host: usize) {
        let host = &mut self.inner().hosts[host];
        host.failed = true;
        host.run += 1;
    }

    /// The common cause is there or gone; what it has broken stays so.
    pub(super) fn curable(&self, curable: bool) {
        self.inner().curable = curable;
    }

    /// A person repairs one.
    pub(super) fn mend(&self, host: usize) {
        let host = &mut self.inner().hosts[host];
        host.failed = false;
        host.run += 1;
    }

    /// Whether an action was ever begun on a host.
    pub(super) fn has_acted(&self, host: usize) -> bool {
        self.inner().hosts[host].starts > 0
    }

    pub(super) fn failed(&self) -> Vec<usize> {
        let inner = self.inner();
        let failed = inner.hosts.iter().enumerate().filter(|(_, host)| host.failed);
        failed.map(|(number, _)| number).collect()
    }

    pub(super) fn is_acting(&self, host: usize) -> bool {
        self.inner().hosts[host].acting
    }

    /// The most actions at the same time.
    pub(super) fn most_acting(&self) -> usize {
        self.inner().most_acting
    }

    /// Actions that were begun on all hosts.
    pub(super) fn starts(&self) -> usize {
        self.inner().starts
    }

    /// Hosts on which any was.
    pub(super) fn hosts_that_acted(&self) -> usize {
        self.inner().hosts.iter().filter(|host| host.starts > 0).count()
    }

    /// What must never be and was, that every host acted at most once and once more for each death in it included.
    pub(super) fn wrong(&self) -> Vec<String> {
        let inner = self.inner();
        let too_often = inner.hosts.iter().enumerate().filter(|(_, host)| host.starts > 1 + host.torn);
        let too_often = too_often.map(|(number, host)| {
            format!("host {number} began {} actions, and {} were torn off", host.starts, host.torn)
        });
        inner.wrong.iter().cloned().chain(too_often).collect()
    }
}

/// The eyes and the hand of one host.
#[derive(Clone)]
pub(super) struct Body {
    pub(super) world: World,
    pub(super) host: usize,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {}", self.host)
    }
}

impl Eyes for Body {
    fn observe<'a>(&'a self, _: &'a Target) -> BoxFuture<'a, Result<Observation, Unseen>> {
        let host = self.world.inner().hosts[self.host].clone();
        let state = if host.failed { "failed" } else { "active" };
        let unit = Unit {
            load_state: "loaded".to_owned(),
            active_state: state.to_owned(),
            sub_state: state.to_owned(),
            invocation_id: format!("run-{}", host.run),
            ..Unit::default()
        };
        Box::pin(async { Ok(Observation::Unit(unit)) })
    }

    fn dependents<'a>(&'a self, _: &'a Target, _: usize) -> BoxFuture<'a, Result<Vec<String>, Unseen>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn conditions(&self) -> BoxFuture<'_, Conditions> {
        Box::pin(async { Conditions::default() })
    }

    fn what_fills<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Filling> {
        Box::pin(async { Filling::default() })
    }
}

impl Action for Body {
    fn name(&self) -> &'static str {
        "unit_restart"
    }

    fn class(&self) -> Class {
        Class::S2
    }

    fn fits(&self, _: Kind) -> bool {
        true
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(90)
    }

    fn plan(&self, target: &Target) -> String {
        format!("restart {target}")
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        Vec::new()
    }

    fn check<'a>(&'a self, _: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async { Ok(Check::Go) })
    }

    fn run<'a>(&'a self, _: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let mut at_work = AtWork::begin(self);
            sleep(ACTION).await;
            at_work.ended = true;
            let mut inner = self.world.inner();
            let curable = inner.curable;
            let host = &mut inner.hosts[self.host];
            host.run += 1;
            host.failed &= !curable;
            drop(inner);
            Ok(Done { detail: "restarted".to_owned(), claimed_freed_bytes: None })
        })
    }
}

/// An action at work.
struct AtWork<'a> {
    body: &'a Body,
    /// Otherwise its process died in it.
    ended: bool,
}

impl<'a> AtWork<'a> {
    fn begin(body: &'a Body) -> Self {
        let mut inner = body.world.inner();
        inner.acting += 1;
        inner.starts += 1;
        inner.most_acting = inner.most_acting.max(inner.acting);
        let host = &mut inner.hosts[body.host];
        host.starts += 1;
        let (twice, needless) = (host.acting, !host.failed);
        host.acting = true;
        if twice {
            inner.wrong.push(format!("two actions at once on host {}", body.host));
        }
        if needless {
            inner.wrong.push(format!("an action on host {}, which was well", body.host));
        }
        drop(inner);
        Self { body, ended: false }
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        let mut inner = self.body.world.inner();
        inner.acting -= 1;
        let host = &mut inner.hosts[self.body.host];
        host.acting = false;
        host.torn += usize::from(!self.ended);
    }
}
