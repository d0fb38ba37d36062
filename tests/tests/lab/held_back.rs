//! A repair that does not help: people are called, and not before it has ended.

use anyhow::{Context, Result, bail, ensure};
use evenkeel_tests::wait::wait_for;
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    closed_loop::{ClosedLoop, SOON, Setup},
    shared, trial,
};

const CONTAINER: &str = "held-back-sick";
const PAGE: &str = "ContainerStillUnhealthy";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("held_back_page_comes_when_the_repair_has_failed", page_comes_when_the_repair_has_failed)]
}

async fn page_comes_when_the_repair_has_failed() -> Result<()> {
    let engine = shared::engine().await?;
    // Long enough to see the page held back: that is due five seconds after the container is sick again.
    let remediator = r#"
policy: {gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, mode: auto}
rules:
  - name: container-unhealthy
    match: ['alertname="ContainerUnhealthy"']
    target: {container: name, allow: [held-back-sick]}
    limits: [1/15m]
    steps: [container_restart: {}]
    verify: {healthy_for: 1s, within: 16s}
"#;
    let around = shared::surroundings().await?;
    let at = ClosedLoop::start(Setup { around, remediator, ..Setup::default() }).await?;
    engine.run_probed(CONTAINER, "false", &["sleep", "600"]).await?;

    let rule = ("container-unhealthy", CONTAINER);
    at.remediation("the repair to be measured", rule, |one| one["phase"] == "verifying").await?;
    wait_for("the page to be held back", SOON, async || {
        let alerts = at.alertmanagers[0].alerts().await?;
        let labels = |one: &Value| one["labels"]["alertname"] == PAGE && one["labels"]["name"] == CONTAINER;
        let page = alerts.iter().find(|one| labels(one)).context("it is not due yet")?;
        match page["status"]["state"].as_str() {
            Some("suppressed") => Ok(()),
            other => bail!("it is {other:?}"),
        }
    })
    .await?;
    let about = ("name", CONTAINER);
    let called = at.calls_about(about);
    ensure!(called.is_empty(), "people were called too early: {called:?}");
    let [record] = &at.history(rule.0, rule.1).await?[..] else { bail!("one remediation") };
    ensure!(record["phase"] == "verifying", "the repair still runs: {record:#}");

    let record = at.remediation("the repair to have failed", rule, |one| one["phase"] == "ended").await?;
    ensure!(record["outcome"] == "ineffective", "{record:#}");
    wait_for("people to be called", SOON, async || {
        let called = at.calls_about(about);
        ensure!(called.iter().any(|alert| alert == PAGE), "called for {called:?}");
        Ok(())
    })
    .await?;
    at.told.wait_for("the message", SOON, |one| one["target"] == CONTAINER).await?;
    engine.docker(&["rm", "--force", CONTAINER]).await.map(drop)
}
