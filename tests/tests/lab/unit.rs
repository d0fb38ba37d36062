//! Failed units: one that a restart cures, and one that it does not. The first is the controlled failure of the operations
//! documents (case 12): the alert fires, the service is repaired, the alert resolves.

use anyhow::{Result, ensure};
use evenkeel_tests::wait::wait_for;
use libtest_mimic::Trial;

use crate::{
    closed_loop::{ClosedLoop, SOON, Setup, acting_steps},
    shared, trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("unit_that_crashed_is_restarted_once", crashed_is_restarted_once),
        trial("unit_that_fails_again_ends_with_a_person", fails_again_ends_with_a_person),
    ]
}

async fn crashed_is_restarted_once() -> Result<()> {
    const UNIT: &str = "quantum-risk-brain.service";
    let host = shared::host().await?;
    let remediator = r#"
policy: {gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, mode: auto}
rules:
  - name: unit-failed
    match: ['alertname="SystemdUnitFailed"']
    target: {unit: name, allow: [quantum-risk-brain.service]}
    limits: [1/5m, 3/1h, 6/24h]
    steps: [unit_restart: {reset_failed: once}]
    verify: {active_for: 3s, within: 30s}
"#;
    let setup = Setup { around: shared::surroundings().await?, remediator, ..Setup::default() };
    let at = ClosedLoop::start(setup).await?;
    host.install_unit(UNIT, "[Service]\nExecStart=/bin/sleep 600\n").await?;
    host.systemctl(&["start", UNIT]).await?;
    host.systemctl(&["kill", "--signal=SEGV", UNIT]).await?;

    at.fires("SystemdUnitFailed", ("name", UNIT)).await?;
    let record =
        at.remediation("the repair to end", ("unit-failed", UNIT), |one| one["phase"] == "ended").await?;
    ensure!(record["outcome"] == "succeeded", "{record:#}");
    let (before, after) = (&record["before"]["unit"], &record["after"]["unit"]);
    ensure!(before["active_state"] == "failed" && before["exec_main_status"] == 11, "{record:#}");
    ensure!(after["active_state"] == "active" && after["invocation_id"] != before["invocation_id"]);
    let [step] = acting_steps(&record)[..] else { anyhow::bail!("one step acts: {record:#}") };
    ensure!(step["state"] == "done" && step["detail"] == "restart job done", "{step:#}");

    at.resolves("SystemdUnitFailed", ("name", UNIT)).await?;
    ensure!(host.property(UNIT, "ActiveState").await? == "active");
    let invocation = host.property(UNIT, "InvocationID").await?;
    ensure!(after["invocation_id"] == *invocation, "the run that was verified is the one that runs");
    let starts = host.starts(UNIT).await?;
    ensure!(starts == 2, "started {starts} times: by the test, and by the one repair");
    ensure!(at.calls_about(("name", UNIT)).is_empty(), "nobody is called for what was repaired");
    host.systemctl(&["stop", UNIT]).await.map(drop)
}

async fn fails_again_ends_with_a_person() -> Result<()> {
    const UNIT: &str = "shop-hopeless.service";
    let host = shared::host().await?;
    let remediator = r#"
policy: {gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, mode: auto, limits: {S2: [50/1h]}}
rules:
  - name: unit-failed
    match: ['alertname="SystemdUnitFailed"']
    target: {unit: name, allow: [shop-hopeless.service]}
    limits: [50/1h]
    cooldown: 1s
    breaker: {after: 2, hold: 1h}
    steps: [unit_restart: {reset_failed: once}]
    verify: {active_for: 3s, within: 30s}
"#;
    let setup = Setup { around: shared::surroundings().await?, remediator, ..Setup::default() };
    let at = ClosedLoop::start(setup).await?;
    host.install_unit(UNIT, "[Service]\nExecStart=/bin/sh -c 'exit 3'\n").await?;
    host.systemctl(&["start", UNIT]).await?;

    let about = ("unit-failed", UNIT);
    // The alert goes on, and is offered again and again.
    let refused = at
        .remediation("the breaker to refuse three offers", about, |record| {
            record["reason"] == "breaker" && record["deliveries"].as_u64() >= Some(3)
        })
        .await?;
    ensure!(refused["outcome"] == "blocked" && !refused["next_allowed"].is_null(), "{refused:#}");
    let history = at.history(about.0, about.1).await?;
    let tried: Vec<_> = history.iter().filter(|record| record["acted"] == true).collect();
    ensure!(tried.len() == 2, "{history:#?}");
    ensure!(tried.iter().all(|record| record["outcome"] == "ineffective"), "{tried:#?}");
    ensure!(tried[1]["before"]["unit"]["exec_main_status"] == 3, "{:#}", tried[1]);
    let starts = host.starts(UNIT).await?;
    ensure!(starts == 3, "started {starts} times: by the test, and by the two tries");

    let told = at.told.received();
    ensure!(told.len() == 2, "one message for each try: {told:#?}");
    ensure!(told.iter().all(|one| one["target"] == UNIT && one["outcome"] == "ineffective"), "{told:#?}");
    wait_for("people to be called", SOON, async || {
        let called = at.calls_about(("name", UNIT));
        ensure!(called.contains(&"SystemdUnitStillFailed".to_owned()), "called for {called:?}");
        Ok(())
    })
    .await?;
    at.fires("RemediationEscalated", ("rule", "unit-failed")).await?;
    let status = at.remediator.cli(&["status"]).await?;
    ensure!(status.contains(&format!("breaker of unit-failed on unit {UNIT}: open")), "{status}");
    host.systemctl(&["reset-failed", UNIT]).await.map(drop)
}
