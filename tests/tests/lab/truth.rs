//! Two containers count as unhealthy for Docker. One is sick; the other's healthcheck cannot work,
//! which says nothing about it.

use anyhow::{Result, ensure};
use evenkeel_tests::{engine::Engine, wait::wait_for};
use libtest_mimic::Trial;
use serde_json::json;

use crate::{
    closed_loop::{ClosedLoop, SOON, Setup, acting_steps},
    shared, trial,
};

const SICK: &str = "truth-sick";
const BROKEN: &str = "truth-broken";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("truth_only_the_sick_container_is_restarted", only_the_sick_container_is_restarted)]
}

async fn only_the_sick_container_is_restarted() -> Result<()> {
    let engine = shared::engine().await?;
    let remediator = r#"
policy: {gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, mode: auto}
rules:
  - name: container-unhealthy
    match: ['alertname="ContainerUnhealthy"']
    target: {container: name, allow: ["truth-*"]}
    limits: [1/15m, 3/6h]
    steps: [container_restart: {}]
    verify: {healthy_for: 3s, within: 30s}
"#;
    let setup = Setup { around: shared::surroundings().await?, remediator, ..Setup::default() };
    let at = ClosedLoop::start(setup).await?;
    start(&engine, BROKEN, "curl --fail http://localhost/").await?;
    start(&engine, SICK, "test -e /well").await?;
    engine.docker(&["exec", SICK, "rm", "/well"]).await?;
    let broken_since = engine.inspect(BROKEN, "{{.State.StartedAt}}").await?;

    // Docker says the same of both; the exporter does not.
    wait_for("the exporter to tell the two apart", SOON, async || {
        let scrape = at.exporter.scrape().await?;
        for name in [SICK, BROKEN] {
            let labels = [("name", name), ("status", "unhealthy")];
            ensure!(scrape.value("docker_container_health", &labels) == Some(1.0), "{name} is not unhealthy");
        }
        let broken: Vec<_> = scrape.all("docker_container_healthcheck_broken", &[]).collect();
        let mut broken =
            broken.iter().filter(|one| one.labels["name"].starts_with("truth-") && one.value > 0.0);
        let (Some(one), None) = (broken.next(), broken.next()) else { anyhow::bail!("not one is broken") };
        ensure!(one.labels["name"] == BROKEN && one.labels["reason"] == "command_not_found", "{one:?}");
        Ok(())
    })
    .await?;
    at.fires("ContainerUnhealthy", ("name", SICK)).await?;
    let record = at
        .remediation("the repair to end", ("container-unhealthy", SICK), |one| one["phase"] == "ended")
        .await?;
    ensure!(record["outcome"] == "succeeded", "{record:#}");
    let [step] = acting_steps(&record)[..] else { anyhow::bail!("one step acts: {record:#}") };
    ensure!(step["action"] == "container_restart" && step["state"] == "done", "{step:#}");
    at.resolves("ContainerUnhealthy", ("name", SICK)).await?;
    ensure!(starts(&engine, SICK).await? == 2, "the sick one is restarted once");

    at.fires("ContainerHealthcheckBroken", ("name", BROKEN)).await?;
    ensure!(!at.ever_fired("ContainerUnhealthy", ("name", BROKEN)).await?, "no alert asks for a restart");
    // Not even when something else than the shipped rules asks for it.
    let about = json!({"alertname": "ContainerUnhealthy", "instance": "127.0.0.1:1", "name": BROKEN});
    at.deliver(about).await?;
    let refused =
        at.remediation("the refusal", ("container-unhealthy", BROKEN), |one| one["phase"] == "ended").await?;
    ensure!(refused["outcome"] == "blocked" && refused["reason"] == "healthcheck_broken", "{refused:#}");
    ensure!(engine.inspect(BROKEN, "{{.State.StartedAt}}").await? == broken_since, "it was restarted");
    ensure!(starts(&engine, BROKEN).await? == 1, "it was restarted");
    engine.docker(&["rm", "--force", SICK, BROKEN]).await.map(drop)
}

/// A container that is well after every start, and writes a line at each.
async fn start(engine: &Engine, name: &str, probe: &str) -> Result<()> {
    let program = ["sh", "-c", "touch /well; echo started; exec sleep 600"];
    engine.run_probed(name, probe, &program).await?;
    wait_for("the container to be well", SOON, async || {
        ensure!(starts(engine, name).await? == 1, "it has not started");
        Ok(())
    })
    .await
}

/// How often a container was started, by its own words.
async fn starts(engine: &Engine, name: &str) -> Result<usize> {
    Ok(engine.docker(&["logs", name]).await?.lines().filter(|line| *line == "started").count())
}
