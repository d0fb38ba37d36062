//! The incidents: what breaks, what is delivered about it, and when it is looked at what came of it.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, bail, ensure};
use evenkeel_tests::{
    engine::{Engine, Options},
    systemd_host::SystemdHost,
    wait::wait_for,
};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::sleep,
};

use super::{
    Course, HOLD, Lab, Need,
    facts::Facts,
    handler::{Alert, Handler, Kind, LONG},
};

/// Deliveries of an alert that stays.
const REPEATS: usize = 5;
/// Identical deliveries that come at once.
const BURST: usize = 200;
/// Units that fail for one cause.
const STORM: usize = 50;

/// A service that has failed and that a restart cures.
const CURABLE: &str = "[Service]\nExecStart=/bin/sleep infinity\n";
/// Lives for two seconds after every start.
const SHORT_LIVED: &str = "[Service]\nExecStart=/bin/sh -c 'sleep 2; exit 3'\n";
const HOPELESS: &str = "[Service]\nExecStart=/bin/sh -c 'exit 3'\n";

/// One of the fixed set.
#[derive(Clone, Copy)]
pub(super) enum Incident {
    Duplicates,
    SlowReceiver,
    FalseResolved,
    Crash,
    Flapping,
    Hopeless,
    NothingToPrune,
    BrokenHealthcheck,
    Storm,
    DiskFull,
}

impl Incident {
    pub(super) const ALL: [Self; 10] = [
        Self::Duplicates,
        Self::SlowReceiver,
        Self::FalseResolved,
        Self::Crash,
        Self::Flapping,
        Self::Hopeless,
        Self::NothingToPrune,
        Self::BrokenHealthcheck,
        Self::Storm,
        Self::DiskFull,
    ];

    /// For people.
    pub(super) fn what(self) -> String {
        match self {
            Self::Duplicates => format!("A service has crashed: {BURST} identical deliveries at once"),
            Self::SlowReceiver => {
                format!(
                    "A sick container takes 10 s to stop: the sender gives up after 2 s and delivers again, {REPEATS} times at most"
                )
            }
            Self::FalseResolved => {
                "The same: a false *resolved* comes while it is restarted, and the alert again".to_owned()
            }
            Self::Flapping => {
                format!("A service dies 2 s after every start: the alert comes and goes {REPEATS} times")
            }
            Self::Hopeless => {
                format!("A service fails at every start: the alert is delivered {REPEATS} times")
            }
            Self::NothingToPrune => {
                format!("A disk is full of what is no build cache: the alert is delivered {REPEATS} times")
            }
            Self::BrokenHealthcheck => {
                format!(
                    "A container's healthcheck asks for a program that it does not have: the alert is delivered {REPEATS} times"
                )
            }
            Self::Storm => format!("{STORM} services fail for one cause that lasts: {STORM} alerts at once"),
            Self::Crash => {
                "The same: the handler is killed while it is restarted, and told again afterwards".to_owned()
            }
            Self::DiskFull => {
                format!("A disk is full of build cache: the alert is delivered {REPEATS} times")
            }
        }
    }

    /// What it calls for.
    pub(super) fn need(self) -> Need {
        match self {
            Self::Duplicates | Self::SlowReceiver | Self::FalseResolved | Self::Crash | Self::DiskFull => {
                Need::One
            }
            Self::Flapping | Self::Hopeless | Self::NothingToPrune | Self::Storm => Need::AtMostOne,
            Self::BrokenHealthcheck => Need::Nothing,
        }
    }

    /// Happens under one handler, and ends when the handler is done with it.
    pub(super) async fn run(self, lab: &Lab, kind: Kind) -> Result<Course> {
        match self {
            Self::Duplicates => duplicates(lab, kind).await,
            Self::SlowReceiver => slow_receiver(lab, kind).await,
            Self::FalseResolved => false_resolved(lab, kind).await,
            Self::Flapping => flapping(lab, kind).await,
            Self::Hopeless => hopeless(lab, kind).await,
            Self::NothingToPrune => nothing_to_prune(lab, kind).await,
            Self::BrokenHealthcheck => broken_healthcheck(lab, kind).await,
            Self::Storm => storm(lab, kind).await,
            Self::Crash => crash(lab, kind).await,
            Self::DiskFull => disk_full(lab, kind).await,
        }
    }
}

/// A handler, what happens to its target, and what it said about it so far.
struct Trial<'a> {
    handler: Arc<Handler>,
    facts: Facts<'a>,
    said: usize,
    false_successes: usize,
}

impl<'a> Trial<'a> {
    fn new(handler: Handler, facts: Facts<'a>) -> Self {
        Self { handler: Arc::new(handler), facts, said: 0, false_successes: 0 }
    }

    /// Delivers, and expects an answer.
    async fn deliver(&self, alert: &Alert) -> Result<()> {
        ensure!(self.handler.fires(alert, LONG).await?, "no answer about {}", alert.target);
        Ok(())
    }

    /// Delivers, and does not wait for the answer.
    fn deliver_aside(&self, alert: &Alert) -> JoinHandle<Result<bool>> {
        let (handler, alert) = (Arc::clone(&self.handler), alert.clone());
        tokio::spawn(async move { handler.fires(&alert, LONG).await })
    }

    /// Delivers all at once.
    async fn deliver_all(&self, alerts: impl IntoIterator<Item = Alert>) -> Result<()> {
        let mut deliveries = JoinSet::new();
        for alert in alerts {
            let handler = Arc::clone(&self.handler);
            deliveries.spawn(async move { handler.fires(&alert, LONG).await });
        }
        while let Some(answered) = deliveries.join_next().await {
            ensure!(answered??, "a delivery was not answered");
        }
        Ok(())
    }

    /// Holds what was said since the last time against the target, once the handler is done.
    async fn judge(&mut self) -> Result<()> {
        self.handler.is_quiet().await?;
        sleep(HOLD).await;
        let said = self.handler.successes().await?;
        if !self.facts.is_well().await? {
            self.false_successes += said - self.said;
        }
        self.said = said;
        Ok(())
    }

    async fn course(mut self) -> Result<Course> {
        self.judge().await?;
        let effect = if self.facts.is_well().await? { self.facts.well_after().await? } else { None };
        Ok(Course {
            executions: self.facts.executions().await?,
            false_successes: self.false_successes,
            effect,
        })
    }
}

// ---- units -----------------------------------------------------------------------------------------

fn unit_alert(unit: &str) -> Alert {
    Alert { rule: "unit-failed", target: unit.to_owned() }
}

/// A failed unit of this incident and handler.
async fn failed_unit(lab: &Lab, kind: Kind, name: &str, text: &str) -> Result<String> {
    let unit = format!("effect-{name}-{}.service", kind.name());
    lab.host.install_unit(&unit, text).await?;
    // The start of one that fails at once may fail too.
    lab.host.systemctl(&["start", &unit]).await.ok();
    if text == CURABLE {
        lab.host.systemctl(&["kill", "--signal=KILL", &unit]).await?;
    }
    is_in_state(&lab.host, &unit, "failed").await?;
    Ok(unit)
}

async fn is_in_state(host: &SystemdHost, unit: &str, wanted: &str) -> Result<()> {
    wait_for(&format!("{unit} to be {wanted}"), LONG, async || {
        let state = host.property(unit, "ActiveState").await?;
        ensure!(state == wanted, "it is {state}");
        Ok(())
    })
    .await
}

async fn unit_trial<'a>(lab: &'a Lab, kind: Kind, pattern: &str) -> Result<Trial<'a>> {
    let handler = Handler::start(kind, &lab.host, &lab.engine).await?;
    Ok(Trial::new(handler, Facts::units(&lab.host, pattern).await?))
}

/// What one unit leaves, so that it does not disturb what comes next.
async fn put_away(lab: &Lab, pattern: &str) -> Result<()> {
    lab.host.systemctl(&["stop", pattern]).await?;
    lab.host.systemctl(&["reset-failed"]).await.map(drop)
}

async fn duplicates(lab: &Lab, kind: Kind) -> Result<Course> {
    let unit = failed_unit(lab, kind, "duplicates", CURABLE).await?;
    let trial = unit_trial(lab, kind, &unit).await?;
    trial.deliver_all(std::iter::repeat_n(unit_alert(&unit), BURST)).await?;
    let course = trial.course().await?;
    put_away(lab, &unit).await?;
    Ok(course)
}

async fn flapping(lab: &Lab, kind: Kind) -> Result<Course> {
    let unit = failed_unit(lab, kind, "flapping", SHORT_LIVED).await?;
    let mut trial = unit_trial(lab, kind, &unit).await?;
    let alert = unit_alert(&unit);
    for _ in 0..REPEATS {
        is_in_state(&lab.host, &unit, "failed").await?;
        trial.deliver(&alert).await?;
        trial.judge().await?;
        trial.handler.is_resolved(&alert).await?;
    }
    let course = trial.course().await?;
    put_away(lab, &unit).await?;
    Ok(course)
}

async fn hopeless(lab: &Lab, kind: Kind) -> Result<Course> {
    let unit = failed_unit(lab, kind, "hopeless", HOPELESS).await?;
    let trial = unit_trial(lab, kind, &unit).await?;
    let course = delivered_again_and_again(trial, &unit_alert(&unit)).await?;
    put_away(lab, &unit).await?;
    Ok(course)
}

async fn storm(lab: &Lab, kind: Kind) -> Result<Course> {
    let prefix = format!("effect-storm-{}", kind.name());
    lab.host.install_unit(&format!("{prefix}@.service"), HOPELESS).await?;
    let units: Vec<String> = (1..=STORM).map(|number| format!("{prefix}@{number}.service")).collect();
    let names = units.iter().map(String::as_str);
    lab.host.systemctl(&["start"].into_iter().chain(names).collect::<Vec<_>>()).await.ok();
    let pattern = format!("{prefix}@*.service");
    wait_for("all to have failed", LONG, async || {
        let states = lab.host.property(&pattern, "ActiveState").await?;
        let failed = states.split_whitespace().filter(|state| *state == "failed").count();
        ensure!(failed == STORM, "{failed} have failed");
        Ok(())
    })
    .await?;
    let trial = unit_trial(lab, kind, &pattern).await?;
    trial.deliver_all(units.iter().map(|unit| unit_alert(unit))).await?;
    let course = trial.course().await?;
    put_away(lab, &pattern).await?;
    Ok(course)
}

/// The alert stays, whatever is done.
async fn delivered_again_and_again(mut trial: Trial<'_>, alert: &Alert) -> Result<Course> {
    for _ in 0..REPEATS {
        trial.deliver(alert).await?;
        trial.judge().await?;
    }
    trial.course().await
}

// ---- containers and disks --------------------------------------------------------------------------

/// A container, and when Docker calls it unhealthy.
async fn sick_container(lab: &Lab, name: &str) -> Result<()> {
    // Its first process ignores SIGTERM, as those do that do not handle it: every stop takes ten seconds.
    let program = ["sh", "-c", "touch /well; sleep 1000000 & wait"];
    let often = ["--health-interval", "1s", "--health-retries", "2", "--health-cmd", "test -e /well"];
    lab.engine.run(&[&["--name", name], &often[..]].concat(), &program).await?;
    has_health(&lab.engine, name, "healthy").await?;
    lab.engine.docker(&["exec", name, "rm", "/well"]).await?;
    has_health(&lab.engine, name, "unhealthy").await
}

async fn has_health(engine: &Engine, name: &str, wanted: &str) -> Result<()> {
    wait_for(&format!("{name} to be {wanted}"), LONG, async || {
        let health = engine.inspect(name, "{{.State.Health.Status}}").await?;
        ensure!(health == wanted, "it is {health}");
        Ok(())
    })
    .await
}

async fn container_trial<'a>(lab: &'a Lab, kind: Kind, name: &str) -> Result<(Trial<'a>, Alert)> {
    let handler = Handler::start(kind, &lab.host, &lab.engine).await?;
    let alert = Alert { rule: "container-unhealthy", target: name.to_owned() };
    Ok((Trial::new(handler, Facts::container(&lab.engine, name)?), alert))
}

async fn slow_receiver(lab: &Lab, kind: Kind) -> Result<Course> {
    let name = format!("effect-slow-{}", kind.name());
    sick_container(lab, &name).await?;
    let (trial, alert) = container_trial(lab, kind, &name).await?;
    for _ in 0..REPEATS {
        if trial.handler.fires(&alert, Duration::from_secs(2)).await? {
            break;
        }
    }
    let course = trial.course().await?;
    lab.engine.docker(&["rm", "--force", &name]).await?;
    Ok(course)
}

async fn false_resolved(lab: &Lab, kind: Kind) -> Result<Course> {
    let name = format!("effect-resolved-{}", kind.name());
    sick_container(lab, &name).await?;
    let (trial, alert) = container_trial(lab, kind, &name).await?;
    let first = trial.deliver_aside(&alert);
    trial.facts.is_being_stopped().await?;
    trial.handler.is_resolved(&alert).await?;
    trial.deliver(&alert).await?;
    ensure!(first.await??, "no answer");
    let course = trial.course().await?;
    lab.engine.docker(&["rm", "--force", &name]).await?;
    Ok(course)
}

async fn crash(lab: &Lab, kind: Kind) -> Result<Course> {
    let name = format!("effect-crash-{}", kind.name());
    sick_container(lab, &name).await?;
    let (mut trial, alert) = container_trial(lab, kind, &name).await?;
    let first = trial.deliver_aside(&alert);
    trial.facts.is_being_stopped().await?;
    first.abort();
    // It ends at its next breath, and lets go of the handler.
    first.await.ok();
    let Some(handler) = Arc::get_mut(&mut trial.handler) else { bail!("a delivery is under way") };
    handler.crash().await?;
    // Whether there was an answer or not, the alert is still there: it is delivered again.
    trial.deliver(&alert).await?;
    let course = trial.course().await?;
    lab.engine.docker(&["rm", "--force", &name]).await?;
    Ok(course)
}

async fn broken_healthcheck(lab: &Lab, kind: Kind) -> Result<Course> {
    let name = format!("effect-broken-{}", kind.name());
    lab.engine.run_probed(&name, "curl --fail http://localhost/", &["sleep", "100000"]).await?;
    has_health(&lab.engine, &name, "unhealthy").await?;
    let (trial, alert) = container_trial(lab, kind, &name).await?;
    let course = delivered_again_and_again(trial, &alert).await?;
    lab.engine.docker(&["rm", "--force", &name]).await?;
    Ok(course)
}

async fn nothing_to_prune(lab: &Lab, kind: Kind) -> Result<Course> {
    let engine = Engine::start(Options { disk_mib: 300, ..Options::default() }).await?;
    // Build cache that an image uses.
    engine.build("lab/kept", "FROM lab/busybox\nRUN dd if=/dev/urandom of=/kept bs=1M count=20\n").await?;
    engine.disk().fill_to(0.95, "of-another-kind")?;
    disk(lab, kind, &engine).await
}

async fn disk_full(lab: &Lab, kind: Kind) -> Result<Course> {
    let engine = Engine::start(Options { disk_mib: 400, ..Options::default() }).await?;
    engine.fill_with_build_cache(0.6).await?;
    engine.disk().fill_to(0.99, "of-another-kind")?;
    disk(lab, kind, &engine).await
}

async fn disk(lab: &Lab, kind: Kind, engine: &Engine) -> Result<Course> {
    let handler = Handler::start(kind, &lab.host, engine).await?;
    let trial = Trial::new(handler, Facts::disk(engine));
    let target = engine.disk().path().display().to_string();
    delivered_again_and_again(trial, &Alert { rule: "disk-high", target }).await
}
