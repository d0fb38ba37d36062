//! The remediator is killed while an action runs. What runs goes on without it; the next process
//! finds out what came of it, and does nothing twice.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use evenkeel_tests::{
    binaries::Surroundings,
    engine::{Engine, Options},
    systemd_host::SystemdHost,
    wait::wait_for,
};
use libtest_mimic::Trial;
use serde_json::Value;
use tokio::try_join;

use crate::{
    closed_loop::{ClosedLoop, SOON, Setup, acting_steps},
    shared, trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("crash_while_a_unit_starts", while_a_unit_starts),
        trial("crash_while_the_engine_prunes", while_the_engine_prunes),
    ]
}

async fn while_a_unit_starts() -> Result<()> {
    const CURED: &str = "slow-cured.service";
    const HOPELESS: &str = "slow-hopeless.service";
    let host = shared::host().await?;
    // No limit binds, and the cooldown counts only what has ended: the memory of what was begun is
    // all that keeps the next process from beginning again.
    let remediator = r#"
policy: {gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, mode: auto, limits: {S2: [50/1h]}}
rules:
  - name: unit-failed
    match: ['alertname="SystemdUnitFailed"']
    target: {unit: name, allow: ["slow-*.service"]}
    limits: [50/1h]
    cooldown: 1h
    steps: [unit_restart: {reset_failed: once}]
    verify: {active_for: 2s, within: 30s}
"#;
    let setup = Setup { around: shared::surroundings().await?, remediator, ..Setup::default() };
    let mut at = ClosedLoop::start(setup).await?;
    // Both fail at once when they start first, and take six seconds for every later start.
    for (unit, end) in [(CURED, "exec sleep 600"), (HOPELESS, "exit 4")] {
        let unit_file = format!(
            "[Service]\n\
             ExecStartPre=/bin/sh -c 'test ! -e /run/%n || sleep 6'\n\
             ExecStart=/bin/sh -c 'test -e /run/%n && {end}; touch /run/%n; exit 3'\n"
        );
        host.install_unit(unit, &unit_file).await?;
        host.systemctl(&["start", unit]).await?;
    }

    wait_for("both restarts to be under way", SOON, async || both_are(&host, "activating").await).await?;
    at.remediator.crash()?;
    both_are(&host, "activating").await.context("the kill came too late for this test")?;
    for unit in [CURED, HOPELESS] {
        let [record] = &at.history("unit-failed", unit).await?[..] else { bail!("one is open on {unit}") };
        ensure!(record["phase"] == "running", "{record:#}");
    }
    at.remediator.restart().await?;

    let ended = async |unit, outcome: &str| {
        let wanted = |one: &Value| one["acted"] == true && one["outcome"] == outcome;
        at.remediation(&format!("{unit} to have {outcome}"), ("unit-failed", unit), wanted).await
    };
    let cured = ended(CURED, "succeeded").await?;
    was_interrupted(&cured)?;
    ensure!(cured["after"]["unit"]["active_state"] == "active", "{cured:#}");
    let hopeless = ended(HOPELESS, "unknown").await?;
    was_interrupted(&hopeless)?;
    ensure!(hopeless["after"]["unit"]["exec_main_status"] == 4, "{hopeless:#}");
    at.told.wait_for("a person to be told", SOON, |one| one["target"] == HOPELESS).await?;

    at.resolves("SystemdUnitFailed", ("name", CURED)).await?;
    at.remediation("another offer to be refused", ("unit-failed", HOPELESS), |one| {
        one["reason"] == "cooldown"
    })
    .await?;
    ensure!(at.told.received().len() == 1, "one message: {:#?}", at.told.received());
    for unit in [CURED, HOPELESS] {
        let starts = host.starts(unit).await?;
        ensure!(
            starts == 2,
            "{unit} started {starts} times: by the test, and by the process that was killed"
        );
    }
    host.systemctl(&["stop", CURED]).await?;
    host.systemctl(&["reset-failed", HOPELESS]).await.map(drop)
}

async fn both_are(host: &SystemdHost, wanted: &str) -> Result<()> {
    let states = host.systemctl(&["show", "--value", "--property=ActiveState", "slow-*.service"]).await?;
    let states: Vec<&str> = states.split_whitespace().collect();
    ensure!(states == [wanted; 2], "they are {states:?}");
    Ok(())
}

async fn while_the_engine_prunes() -> Result<()> {
    let engine = Engine::start(Options { disk_mib: 400, ..Options::default() }).await?;
    let disk = engine.disk().path().to_str().context("the lab's paths are UTF-8")?;
    let around = Surroundings { docker: Some(engine.host()), bus: None };
    let remediator = format!(
        r#"
policy: {{gates: {{grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}}, mode: auto, deletion: cache, limits: {{D1: [50/1h]}}}}
rules:
  - name: disk-high
    match: ['alertname="HostDiskHigh"']
    target: {{filesystem: mountpoint, allow: ["{disk}"]}}
    limits: [50/1h]
    cooldown: 1h
    steps: [build_cache_prune: {{all: true}}]
    verify: {{usage_below: 80%, within: 30s, hold: 2s}}
"#
    );
    let setup = Setup { around, remediator: &remediator, ..Setup::default() };
    let (mut at, ()) = try_join!(ClosedLoop::start(setup), many_small_files(&engine))?;

    // Held in the middle of it, so that the kill meets a prune that is neither answered nor done.
    let deadline = Instant::now() + SOON;
    while engine.requests("POST", "/build/prune") == 0 {
        ensure!(Instant::now() < deadline, "no prune: {:#?}", at.history("disk-high", disk).await?);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let frozen = engine.freeze()?;
    let used = engine.disk().usage()?.used_ratio();
    at.remediator.crash()?;
    ensure!(used > 0.8, "the engine was frozen too late for this test: {used}");
    drop(frozen);
    at.remediator.restart().await?;

    let record = at.remediation("the outcome", ("disk-high", disk), |one| one["phase"] == "ended").await?;
    was_interrupted(&record)?;
    // Whether an engine goes on with a prune when its client has gone is the engine's affair. The
    // outcome must say what became of the disk, which may still be getting emptier.
    let seen = record["after"]["filesystem"]["used_ratio"].as_f64().context("nothing seen at the end")?;
    let used = engine.disk().usage()?.used_ratio();
    ensure!(used < seen + 0.01, "{seen} was seen, and it is {used}: {record:#}");
    let outcome = record["outcome"].as_str().unwrap_or_default();
    match outcome {
        "succeeded" => ensure!(seen < 0.8, "{record:#}"),
        "partial" => ensure!((0.8..=0.85).contains(&seen), "{record:#}"),
        "unknown" => {
            ensure!(seen > 0.85, "{record:#}");
            at.told.wait_for("a person to be told", SOON, |one| one["target"] == disk).await?;
        }
        other => bail!("{other} at {seen}: {record:#}"),
    }
    eprintln!("crash_while_the_engine_prunes: {outcome}, {:.0} % used", used * 100.0);
    ensure!(engine.requests("POST", "/build/prune") == 1, "it was pruned again");
    Ok(())
}

/// Build cache that takes a while to delete.
async fn many_small_files(engine: &Engine) -> Result<()> {
    let dockerfile = "FROM lab/busybox\n\
        RUN mkdir /many && cd /many && i=0 && while [ $i -lt 45000 ]; do echo $i >$i; i=$((i+1)); done\n";
    engine.build("lab/many", dockerfile).await?;
    engine.docker(&["image", "rm", "lab/many"]).await?;
    engine.fill_with_build_cache(0.9).await
}

/// The one acting step is on record as one whose effect was not known.
fn was_interrupted(record: &Value) -> Result<()> {
    let [step] = acting_steps(record)[..] else { bail!("one step acts: {record:#}") };
    ensure!(step["state"] == "unknown" && step["reason"] == "interrupted", "{step:#}");
    Ok(())
}
