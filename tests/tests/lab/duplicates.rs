//! Two Alertmanagers that do not know each other deliver the same alert.

use anyhow::{Result, ensure};
use evenkeel_tests::{exposition::Exposition, http, wait::wait_for};
use libtest_mimic::Trial;

use crate::{
    closed_loop::{ClosedLoop, SOON, Setup},
    shared, trial,
};

const UNIT: &str = "twice-reported.service";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("duplicates_of_two_alertmanagers_execute_once", of_two_alertmanagers_execute_once)]
}

async fn of_two_alertmanagers_execute_once() -> Result<()> {
    let host = shared::host().await?;
    // No limit binds: only the deduplication keeps it from acting twice. The repair is over before one
    // Alertmanager alone would deliver again, which is after 4 s.
    let remediator = r#"
policy: {gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, mode: auto, limits: {S2: [50/1h]}}
rules:
  - name: unit-failed
    match: ['alertname="SystemdUnitFailed"']
    target: {unit: name, allow: [twice-reported.service]}
    limits: [50/1h]
    cooldown: 0s
    steps: [unit_restart: {reset_failed: once}]
    verify: {active_for: 3s, within: 30s}
"#;
    let around = shared::surroundings().await?;
    let at =
        ClosedLoop::start(Setup { around, remediator, more_alertmanagers: 1, ..Setup::default() }).await?;
    host.install_unit(UNIT, "[Service]\nExecStart=/bin/sleep 600\n").await?;
    host.systemctl(&["start", UNIT]).await?;
    host.systemctl(&["kill", "--signal=KILL", UNIT]).await?;

    let record = at
        .remediation("one repair for two deliveries", ("unit-failed", UNIT), |record| {
            record["phase"] == "ended" && record["acted"] == true
        })
        .await?;
    ensure!(record["outcome"] == "succeeded", "{record:#}");
    ensure!(record["deliveries"].as_u64() >= Some(2), "both came while it was open: {record:#}");
    at.resolves("SystemdUnitFailed", ("name", UNIT)).await?;
    for alertmanager in &at.alertmanagers {
        wait_for("both to have delivered the end too", SOON, async || {
            let metrics = Exposition::parse(&http::get(&format!("{}/metrics", alertmanager.url())).await?);
            let webhook = [("integration", "webhook")];
            let sent = metrics.value("alertmanager_notifications_total", &webhook);
            let failed: f64 =
                metrics.all("alertmanager_notifications_failed_total", &webhook).map(|one| one.value).sum();
            ensure!(sent >= Some(2.0) && failed == 0.0, "{sent:?} sent, {failed} failed");
            Ok(())
        })
        .await?;
    }
    let acted = at.history("unit-failed", UNIT).await?;
    let acted = acted.iter().filter(|record| record["acted"] == true).count();
    ensure!(acted == 1, "{acted} remediations acted");
    let starts = host.starts(UNIT).await?;
    ensure!(starts == 2, "started {starts} times: by the test, and by the one repair");
    host.systemctl(&["stop", UNIT]).await.map(drop)
}
