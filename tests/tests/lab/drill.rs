//! Drills and the self-test, with the real Prometheus, Alertmanager and systemd: the whole way works, and where it is
//! broken they say where, and put back what they broke.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    alerting::replaced,
    binaries::Surroundings,
    peers::Peer,
    process::{Process, send},
    redis_server::RedisServer,
    systemd_host::SystemdHost,
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::{
    closed_loop::{ClosedLoop, SOON, Setup, acting_steps},
    shared, trial,
};

const UNIT: &str = "evenkeel-drill.service";
/// A drill ends long before, whatever it finds.
const LONG: Duration = Duration::from_secs(180);

const REMEDIATOR: &str = r#"
reconcile: {interval: 1s}
alertmanager: {url: "ALERTMANAGER"}
prometheus: {url: "PROMETHEUS"}
policy: {gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, mode: auto, limits: {S2: [100/1h]}}
rules:
  - name: drill
    match: ['alertname="SystemdUnitFailed"', 'name="evenkeel-drill.service"']
    target: {unit: name, allow: [evenkeel-drill.service]}
    limits: [50/1h]
    cooldown: 0s
    steps: [unit_restart: {reset_failed: once}]
    verify: {active_for: 1s, within: 20s}
"#;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("drill_follows_an_alert_to_its_end", to_its_end),
        trial("drill_says_where_an_alert_stops", where_it_stops),
    ]
}

/// How a run of the command line ended, and what it said.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
}

impl Ran {
    fn ensure(&self, code: i32, words: &[&str]) -> Result<()> {
        ensure!(self.code == Some(code), "{self:#?}");
        for words in words {
            ensure!(self.out.contains(words), "no {words:?}: {self:#?}");
        }
        Ok(())
    }
}

struct Scene {
    host: SystemdHost,
    at: ClosedLoop,
}

impl Scene {
    /// A host of its own: no other test's remediator may repair the unit.
    async fn start() -> Result<Self> {
        let engine = shared::engine().await?;
        let host = SystemdHost::start(engine.clone()).await?;
        let unit = fs::read_to_string(tools::repository().join("packaging").join(UNIT))?;
        host.install_unit(UNIT, &unit).await?;
        let around = Surroundings { bus: Some(host.bus_address()), docker: Some(engine.host()) };
        let at = ClosedLoop::start(Setup { around, remediator: REMEDIATOR, ..Setup::default() }).await?;
        let scene = Self { host, at };
        wait_for("everything to be scraped and evaluated", SOON, async || {
            let ran = scene.run(&["selftest"]).await?;
            ensure!(ran.code != Some(1) && !ran.out.contains("not been evaluated"), "{ran:#?}");
            Ok(())
        })
        .await?;
        Ok(scene)
    }

    async fn run(&self, arguments: &[&str]) -> Result<Ran> {
        let output = tools::output(self.at.remediator.subcommand(arguments)?, LONG).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ran { code: output.status.code(), out: text(&output.stdout) + &text(&output.stderr) })
    }

    /// Whatever came of a drill, its unit is as it was before.
    async fn is_put_back(&self) -> Result<()> {
        let state = self.host.property(UNIT, "ActiveState").await?;
        ensure!(state == "inactive", "{UNIT} is {state}");
        for alert in self.at.alertmanagers[0].alerts().await? {
            let ends = alert["endsAt"].as_str().unwrap_or_default();
            let drill = alert["annotations"]["summary"] == "A drill of evenkeel.";
            ensure!(!drill || ends < now().as_str(), "the alert goes on: {alert:#}");
        }
        Ok(())
    }

    /// What a check of the pipeline says, as a metric.
    async fn check_is(&self, check: &str, state: &str) -> Result<()> {
        wait_for(&format!("check {check} to be {state}"), SOON, async || {
            let scrape = self.at.remediator.scrape().await?;
            let labels = [("check", check), ("state", state)];
            let value = scrape.value("evenkeel_remediator_pipeline_check", &labels);
            ensure!(value == Some(1.0), "it is not: {value:?}");
            Ok(())
        })
        .await
    }

    fn file(&self, name: &str) -> PathBuf {
        self.at.dir().join(name)
    }
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

async fn to_its_end() -> Result<()> {
    let scene = Scene::start().await?;
    let ran = scene.run(&["drill", "--timeout", "2m"]).await?;
    eprintln!("{}", ran.out);
    in_order(&ran)?;
    ran.ensure(
        0,
        &["SystemdUnitFailed fires in Alertmanager", "of rule drill", "unit_restart: restart job done"],
    )?;
    ensure!(!ran.out.contains('\u{1b}'), "no colours in a pipe: {ran:#?}");
    scene.is_put_back().await?;
    let record = scene
        .at
        .remediation("the drill's remediation", ("drill", UNIT), |one| one["outcome"] == "succeeded")
        .await?;
    ensure!(record["before"]["unit"]["active_state"] == "failed", "{record:#}");
    ensure!(!record["resolved_wall_ms"].is_null(), "{record:#}");
    ensure!(record["acted"] == true && acting_steps(&record)[0]["state"] == "done", "{record:#}");

    // The same once more, from the exporter over Prometheus.
    let ran = scene.run(&["drill", "--end-to-end", "--timeout", "2m"]).await?;
    in_order(&ran)?;
    ran.ensure(0, &["SystemdUnitFailed fires in Prometheus"])?;
    scene.is_put_back().await?;
    let succeeded = scene.at.history("drill", UNIT).await?;
    ensure!(succeeded.iter().filter(|one| one["outcome"] == "succeeded").count() == 2, "{succeeded:#?}");

    // A delivery has come: also what newer Alertmanagers hide is known now.
    let ran = scene.run(&["selftest"]).await?;
    eprintln!("{}", ran.out);
    ran.ensure(
        0,
        &[
            "ok       routes",
            "ok       rules",
            "ok       jobs           scraped: evenkeel-exporter, this remediator",
        ],
    )?;
    for check in ["prometheus", "jobs", "rules", "alertmanager", "routes"] {
        scene.check_is(check, "ok").await?;
    }
    a_job_that_nobody_scrapes(&scene).await
}

/// Case 11 of the operations documents: "ensure critical services scraped".
async fn a_job_that_nobody_scrapes(scene: &Scene) -> Result<()> {
    const JOB: &str = "quantum_redis_exporter";
    let (config, prometheus) = (scene.file("remediator.yml"), scene.file("prometheus.yml"));
    let named =
        replaced(&fs::read_to_string(&config)?, "prometheus: {", &format!("prometheus: {{jobs: [{JOB}], "))?;
    fs::write(&config, named)?;
    scene.at.remediator.cli(&["reload"]).await?;
    scene.check_is("jobs", "failing").await?;
    scene.run(&["selftest"]).await?.ensure(1, &["FAILING  jobs", JOB])?;

    let redis = RedisServer::start().await?;
    let exporter = Peer::redis_exporter(scene.at.dir(), &redis.url()).await?;
    let job =
        format!("  - {{job_name: {JOB}, static_configs: [{{targets: [\"{}\"]}}]}}\n", exporter.address());
    fs::write(&prometheus, fs::read_to_string(&prometheus)? + &job)?;
    scene.at.prometheus.reload()?;
    scene.check_is("jobs", "ok").await?;
    let ran = scene.run(&["selftest"]).await?;
    ran.ensure(0, &[&format!("scraped: evenkeel-exporter, {JOB}, this remediator")])
}

/// Each stage is there, after the one before it.
fn in_order(ran: &Ran) -> Result<()> {
    let mut place = 0;
    for stage in ["broken", "firing", "delivered", "repaired", "verified", "resolved", "put back", "passed"] {
        let found =
            ran.out[place..].find(stage).with_context(|| format!("no {stage} in its place: {ran:#?}"))?;
        place += found;
    }
    Ok(())
}

async fn where_it_stops() -> Result<()> {
    let mut scene = Scene::start().await?;
    paused(&scene).await?;
    without_a_route(&scene).await?;
    without_the_rule(&scene).await?;
    without_the_exporter(&scene).await?;
    without_alertmanager(&mut scene).await
}

async fn paused(scene: &Scene) -> Result<()> {
    scene.at.remediator.cli(&["pause", "--reason", "a move"]).await?;
    let ran = scene.run(&["drill", "--timeout", "1m"]).await?;
    ran.ensure(
        1,
        &["delivered", "STOPPED before repaired", "blocked (paused)", "evenkeel-remediator resume"],
    )?;
    scene.is_put_back().await?;
    scene.run(&["selftest"]).await?.ensure(1, &["FAILING  halted", "a move"])?;
    scene.at.remediator.cli(&["resume"]).await.map(drop)
}

async fn without_a_route(scene: &Scene) -> Result<()> {
    let alertmanager = &scene.at.alertmanagers[0];
    let whole = fs::read_to_string(scene.file("alertmanager.yml"))?;
    let broken = whole.replace(r#"'remediate="true"'"#, r#"'remediate="yes"'"#);
    ensure!(broken != whole, "the shipped route is another: {whole}");
    fs::write(scene.file("alertmanager.yml"), broken)?;
    alertmanager.reload().await?;
    let ran = scene.run(&["drill", "--timeout", "1m"]).await?;
    let words = "no route leads the alerts of rule drill here: they go to log";
    ran.ensure(
        1,
        &["firing", "STOPPED before delivered", words, "evenkeel-remediator generate alertmanager"],
    )?;
    ensure!(!ran.out.contains("its time is over"), "it was seen at once: {ran:#?}");
    scene.is_put_back().await?;
    scene.run(&["selftest"]).await?.ensure(1, &["FAILING  routes", words])?;
    scene.check_is("routes", "failing").await?;
    fs::write(scene.file("alertmanager.yml"), whole)?;
    alertmanager.reload().await?;
    scene.check_is("routes", "ok").await
}

async fn without_the_rule(scene: &Scene) -> Result<()> {
    let whole = fs::read_to_string(scene.file("systemd.rules.yml"))?;
    fs::write(scene.file("systemd.rules.yml"), "groups: []\n")?;
    scene.at.prometheus.reload()?;
    scene.check_is("rules", "failing").await?;
    let ran = scene.run(&["drill", "--end-to-end", "--timeout", "1m"]).await?;
    let words = "Prometheus has no rule that raises what rule drill";
    ran.ensure(1, &["broken", "STOPPED before firing", words, "rule_files"])?;
    scene.is_put_back().await?;
    scene.run(&["selftest"]).await?.ensure(1, &["FAILING  rules", words])?;
    interrupted(scene).await?;
    fs::write(scene.file("systemd.rules.yml"), whole)?;
    scene.at.prometheus.reload()?;
    scene.check_is("rules", "ok").await
}

/// Somebody loses patience.
async fn interrupted(scene: &Scene) -> Result<()> {
    let mut command: Command =
        scene.at.remediator.subcommand(&["drill", "--end-to-end", "--timeout", "10m"])?;
    command.env("LC_ALL", "C");
    let mut drill = Process::start("drill", scene.at.dir(), command)?;
    wait_for("the unit to be broken", SOON, async || {
        let log = drill.log();
        ensure!(log.contains("broken"), "{log}");
        Ok(())
    })
    .await?;
    send(drill.id(), Signal::INT)?;
    let status = drill.stop()?;
    let log = drill.log();
    ensure!(status.code() == Some(2), "{status}: {log}");
    ensure!(log.contains("it was interrupted") && log.contains("put back"), "{log}");
    scene.is_put_back().await
}

async fn without_the_exporter(scene: &Scene) -> Result<()> {
    let frozen = scene.at.exporter.process().freeze()?;
    scene.check_is("jobs", "failing").await?;
    let ran = scene.run(&["drill", "--end-to-end", "--timeout", "1m"]).await?;
    let words = "Prometheus cannot scrape job evenkeel-exporter on this host";
    ran.ensure(1, &["STOPPED before firing", words])?;
    scene.is_put_back().await?;
    scene.run(&["selftest"]).await?.ensure(1, &["FAILING  jobs", words])?;
    drop(frozen);
    scene.check_is("jobs", "ok").await
}

async fn without_alertmanager(scene: &mut Scene) -> Result<()> {
    scene.at.alertmanagers.clear();
    let ran = scene.run(&["drill", "--timeout", "1m"]).await?;
    ran.ensure(1, &["broken", "STOPPED before firing", "did not take the alert: cannot be reached"])?;
    let state = scene.host.property(UNIT, "ActiveState").await?;
    ensure!(state == "inactive", "{UNIT} is {state}");
    scene.run(&["selftest"]).await?.ensure(1, &["FAILING  alertmanager", "unknown  routes"])?;
    scene.check_is("alertmanager", "failing").await
}
