//! The remediator is killed while an action runs. What runs goes on without it; the next process
//! finds out what came of it, and does nothing twice.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use evenkeel_tests::{
    binaries::Surroundings,
    engine::{Engine, Options},
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
    const UNIT: &str = "slow-starter.service";
    let host = shared::host().await?;
    // No limit binds, so that only the memory of what was begun keeps it from beginning again.
    let remediator = r#"
policy: {mode: auto, limits: {S2: [50/1h]}}
rules:
  - name: unit-failed
    match: ['alertname="SystemdUnitFailed"']
    target: {unit: name, allow: [slow-starter.service]}
    limits: [50/1h]
    cooldown: 0s
    steps: [unit_restart: {reset_failed: once}]
    verify: {active_for: 2s, within: 30s}
"#;
    let setup = Setup { around: shared::surroundings().await?, remediator, ..Setup::default() };
    let mut at = ClosedLoop::start(setup).await?;
    // Fails at its first start; every later one takes five seconds and succeeds.
    host.install_unit(
        UNIT,
        "[Service]\n\
         ExecStartPre=/bin/sh -c 'test ! -e /run/slow-starter || sleep 5'\n\
         ExecStart=/bin/sh -c 'test -e /run/slow-starter && exec sleep 600; touch /run/slow-starter; exit 3'\n",
    )
    .await?;
    host.systemctl(&["start", UNIT]).await?;

    wait_for("the restart to be under way", SOON, async || {
        let state = host.property(UNIT, "ActiveState").await?;
        ensure!(state == "activating", "it is {state}");
        Ok(())
    })
    .await?;
    at.remediator.crash()?;
    ensure!(
        host.property(UNIT, "ActiveState").await? == "activating",
        "the kill came too late for this test"
    );
    let [record] = &at.history("unit-failed", UNIT).await?[..] else { bail!("one remediation is open") };
    ensure!(record["phase"] == "running", "{record:#}");
    at.remediator.restart().await?;

    let record =
        at.remediation("the verification", ("unit-failed", UNIT), |one| one["phase"] == "ended").await?;
    ensure!(
        record["outcome"] == "succeeded" && record["after"]["unit"]["active_state"] == "active",
        "{record:#}"
    );
    was_interrupted(&record)?;
    at.resolves("SystemdUnitFailed", ("name", UNIT)).await?;
    let starts = host.starts(UNIT).await?;
    ensure!(starts == 2, "started {starts} times: by the test, and by the remediator that was killed");
    host.systemctl(&["stop", UNIT]).await.map(drop)
}

async fn while_the_engine_prunes() -> Result<()> {
    let engine = Engine::start(Options { disk_mib: 400, ..Options::default() }).await?;
    let disk = engine.disk().path().to_str().context("the lab's paths are UTF-8")?;
    let around = Surroundings { docker: Some(engine.host()), bus: None };
    let remediator = format!(
        r#"
policy: {{mode: auto, deletion: cache, limits: {{D1: [50/1h]}}}}
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
    let used = engine.disk().usage()?.used_ratio();
    // Whether an engine goes on with a prune when its client has gone is the engine's affair; the
    // outcome must say what became of the disk.
    let outcome = record["outcome"].as_str().unwrap_or_default();
    match outcome {
        "succeeded" => ensure!(used < 0.8, "{used}: {record:#}"),
        "partial" => ensure!((0.79..0.86).contains(&used), "{used}: {record:#}"),
        "unknown" => ensure!(used > 0.84 && at.told.received().len() == 1, "{used}: {record:#}"),
        other => bail!("{other} at {used}: {record:#}"),
    }
    let seen = record["after"]["filesystem"]["used_ratio"].as_f64().context("nothing seen at the end")?;
    ensure!((seen - used).abs() < 0.01, "{used}: {record:#}");
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
