//! The remediator cannot see its target: then it does nothing, and says so. When it sees again, the
//! loop goes on by itself.

use anyhow::{Result, ensure};
use evenkeel_tests::{
    binaries::Surroundings,
    engine::{Engine, Options},
    systemd_host::SystemdHost,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::{
    closed_loop::{ClosedLoop, Setup},
    shared, trial,
};

const UNIT: &str = "unseen.service";
const CONTAINER: &str = "unseen-sick";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("blind_remediator_acts_when_it_sees_again", remediator_acts_when_it_sees_again)]
}

async fn remediator_acts_when_it_sees_again() -> Result<()> {
    let mut engine = Engine::start(Options { disk_mib: 300, ..Options::default() }).await?;
    let host = SystemdHost::start(shared::engine().await?).await?;
    let remediator = r#"
policy: {gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, mode: auto, limits: {S2: [50/1h]}}
rules:
  - name: unit-failed
    match: ['alertname="SystemdUnitFailed"']
    target: {unit: name, allow: [unseen.service]}
    limits: [50/1h]
    cooldown: 0s
    steps: [unit_restart: {reset_failed: once}]
    verify: {active_for: 1s, within: 30s}
  - name: container-unhealthy
    match: ['alertname="ContainerUnhealthy"']
    target: {container: name, allow: [unseen-sick]}
    limits: [50/1h]
    cooldown: 0s
    steps: [container_restart: {}]
    verify: {healthy_for: 1s, within: 30s}
"#;
    let around = Surroundings { bus: Some(host.bus_address()), docker: Some(engine.host()) };
    let at = ClosedLoop::start(Setup { around, remediator, ..Setup::default() }).await?;
    host.install_unit(UNIT, "[Service]\nExecStart=/bin/sleep 600\n").await?;
    host.systemctl(&["start", UNIT]).await?;
    let program = ["sh", "-c", "touch /well; exec sleep 600"];
    engine.run_probed(CONTAINER, "test -e /well", &program).await?;

    // Both break, and nobody sees them; somebody else asks for the repair.
    engine.docker(&["exec", CONTAINER, "rm", "/well"]).await?;
    let frozen_engine = engine.freeze()?;
    host.systemctl(&["kill", "--signal=KILL", UNIT]).await?;
    let frozen_bus = host.freeze_bus().await?;
    for (alert, name) in [("SystemdUnitFailed", UNIT), ("ContainerUnhealthy", CONTAINER)] {
        at.deliver(json!({"alertname": alert, "instance": "127.0.0.1:1", "name": name})).await?;
    }
    for about in [("unit-failed", UNIT), ("container-unhealthy", CONTAINER)] {
        let record = at.remediation("the refusal", about, |one| one["phase"] == "ended").await?;
        ensure!(record["outcome"] == "blocked" && record["reason"] == "probe_unknown", "{record:#}");
        ensure!(record["acted"] == false, "{record:#}");
    }

    drop((frozen_engine, frozen_bus));
    let succeeded = |one: &Value| one["outcome"] == "succeeded";
    let first = at.remediation("the repair of the unit", ("unit-failed", UNIT), succeeded).await?;
    let of_container = ("container-unhealthy", CONTAINER);
    let first_of_container = at.remediation("the repair of the container", of_container, succeeded).await?;

    // Both daemons are started anew: whatever connection was kept is of no use any more.
    engine.stop()?;
    host.systemctl(&["stop", "dbus.socket", "dbus.service"]).await?;
    host.systemctl(&["kill", "--signal=KILL", UNIT]).await?;
    host.systemctl(&["start", "dbus.socket"]).await?;
    engine.start_again().await?;
    engine.docker(&["start", CONTAINER]).await?;
    engine.docker(&["exec", CONTAINER, "rm", "/well"]).await?;
    let later = |one: &Value, first: &Value| succeeded(one) && one["id"].as_u64() > first["id"].as_u64();
    let again = |one: &Value| later(one, &first);
    let record = at.remediation("the second repair of the unit", ("unit-failed", UNIT), again).await?;
    ensure!(host.starts(UNIT).await? == 3, "each failure was repaired once: {record:#}");
    let again = |one: &Value| later(one, &first_of_container);
    at.remediation("the second repair of the container", of_container, again).await?;
    at.resolves("SystemdUnitFailed", ("name", UNIT)).await?;
    at.resolves("ContainerUnhealthy", ("name", CONTAINER)).await
}
