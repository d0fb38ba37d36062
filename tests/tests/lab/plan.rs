//! The configuration as shipped: plan mode, no deletion. Every alert is answered by what would be
//! done, and nothing is.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use evenkeel_tests::{
    alerting::replaced,
    binaries::{Surroundings, built},
    engine::{Engine, Options},
    tools,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tokio::try_join;

use crate::{
    closed_loop::{ClosedLoop, SOON, Setup, acting_steps},
    shared, trial,
};

const UNIT: &str = "planned-failed.service";
const CONTAINER: &str = "planned-sick";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("plan_as_shipped_changes_nothing", as_shipped_changes_nothing)]
}

/// All that a repair would change.
#[derive(Debug, PartialEq)]
struct World {
    build_cache: String,
    container_started: String,
    unit_invocation: String,
    unit_state: String,
    unit_starts: usize,
    changing_requests: usize,
}

async fn as_shipped_changes_nothing() -> Result<()> {
    let engine = Engine::start(Options { disk_mib: 300, ..Options::default() }).await?;
    let host = shared::host().await?;
    let disk = engine.disk().path().to_str().context("the lab's paths are UTF-8")?.to_owned();
    let around = Surroundings { bus: Some(host.bus_address()), docker: Some(engine.host()) };
    let shipped = shipped(&disk)?;
    let setup = Setup { around, remediator: &shipped, ..Setup::default() };
    let ((), mut at) = try_join!(engine.fill_with_build_cache(0.87), ClosedLoop::start(setup))?;
    engine.run_probed(CONTAINER, "false", &["sleep", "600"]).await?;
    host.install_unit(UNIT, "[Service]\nExecStart=/bin/sh -c 'exit 3'\n").await?;
    host.systemctl(&["start", UNIT]).await?;
    at.fires("HostDiskHigh", ("mountpoint", &disk)).await?;
    at.fires("SystemdUnitFailed", ("name", UNIT)).await?;
    at.fires("ContainerUnhealthy", ("name", CONTAINER)).await?;
    let before = world(&at, &engine).await?;

    // Offered more than once, so that a second offer is known to change nothing either.
    let planned = async |rule: &str, target: &str, outcome: &str, reason: &str| {
        let what = format!("{rule} on {target} to be {outcome} ({reason})");
        let wanted = |record: &Value| {
            record["outcome"] == outcome
                && record["reason"] == reason
                && record["deliveries"].as_u64() >= Some(2)
        };
        at.remediation(&what, (rule, target), wanted).await
    };
    let disk_high = planned("disk-high", &disk, "blocked", "policy").await?;
    let unit_failed = planned("unit-failed", UNIT, "planned", "plan_mode").await?;
    let container = planned("container-unhealthy", CONTAINER, "planned", "plan_mode").await?;
    let detail = disk_high["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains("policy.deletion is none") && detail.contains("it is filled by"), "{detail}");
    let call = |record: &Value| {
        acting_steps(record).last().and_then(|step| step["plan"].as_str()).unwrap_or_default().to_owned()
    };
    ensure!(call(&disk_high) == "POST /build/prune?all=true", "{disk_high:#}");
    ensure!(call(&unit_failed).contains(&format!("RestartUnit(\"{UNIT}\"")), "{unit_failed:#}");
    ensure!(call(&container).contains(&format!("/containers/{CONTAINER}/restart")), "{container:#}");
    for record in [&disk_high, &unit_failed, &container] {
        let done = acting_steps(record)
            .iter()
            .any(|step| !matches!(step["state"].as_str(), Some("planned" | "skipped")));
        ensure!(record["acted"] == false && !done, "{record:#}");
    }
    says(&at, "disk-high", &disk, "no (policy): it is of class D1 and policy.deletion is none").await?;
    for (rule, target) in [("unit-failed", UNIT), ("container-unhealthy", CONTAINER)] {
        says(&at, rule, target, "mode is plan: it would be recorded, and nothing done").await?;
    }

    // Deletion allowed, and still in plan mode.
    let config = at.dir().join("remediator.yml");
    let allowed = replaced(&fs::read_to_string(&config)?, "deletion: none ", "deletion: cache ")?;
    fs::write(&config, &allowed)?;
    at.remediator.restart().await?;
    let disk_high = at
        .remediation("the plan to prune", ("disk-high", &disk), |record| record["outcome"] == "planned")
        .await?;
    // No cache of a disk filled just now is two days old.
    let steps = acting_steps(&disk_high);
    let states = steps.iter().map(|step| (&step["state"], &step["reason"]));
    ensure!(
        states.eq([(&json!("skipped"), &json!("too_little_to_free")), (&json!("planned"), &Value::Null)]),
        "{disk_high:#}"
    );
    says(&at, "disk-high", &disk, "mode is plan: it would be recorded, and nothing done").await?;

    // The other way round cannot be configured: a rule that may act, with a step that may not.
    let forbidden =
        allowed.replace("mode: plan", "mode: auto").replace("deletion: cache ", "deletion: none ");
    let forbidden = replaced(&forbidden, "allow: [\"*.service\"]", "allow: [\"planned-*.service\"]")?;
    let forbidden = replaced(&forbidden, "allow: [\"*-*\", \"*_*\"]", "allow: [\"planned-*\"]")?;
    fs::write(at.dir().join("forbidden.yml"), forbidden)?;
    refused(&at.dir().join("forbidden.yml")).await?;

    let after = world(&at, &engine).await?;
    ensure!(after == before, "the host was changed: {before:#?} became {after:#?}");
    ensure!(before.changing_requests == 0 && before.unit_starts == 1, "{before:#?}");
    host.systemctl(&["reset-failed", UNIT]).await.map(drop)
}

/// The configuration of the package, for the lab's address, token and disk.
fn shipped(disk: &str) -> Result<String> {
    let text = fs::read_to_string(tools::repository().join("packaging/remediator.yml"))?;
    let text = replaced(&text, "server:\n  listen: [\"127.0.0.1:19848\"]\n", "")?;
    let text = replaced(&text, "  bearer_token_files: [/etc/evenkeel/webhook.token]\n", "")?;
    replaced(&text, "allow: [\"/\", \"/var\", \"/var/lib/docker\"]", &format!("allow: [\"{disk}\"]"))
}

async fn world(at: &ClosedLoop, engine: &Engine) -> Result<World> {
    let host = shared::host().await?;
    let scrape = at.exporter.scrape().await?;
    ensure!(scrape.value("docker_up", &[]) == Some(1.0), "the exporter sees the engine");
    Ok(World {
        build_cache: engine.build_cache().await?,
        container_started: engine.inspect(CONTAINER, "{{.State.StartedAt}}").await?,
        unit_invocation: host.property(UNIT, "InvocationID").await?,
        unit_state: host.property(UNIT, "ActiveState").await?,
        unit_starts: host.starts(UNIT).await?,
        changing_requests: engine.requests("POST", "/prune") + engine.requests("POST", "/restart"),
    })
}

async fn says(at: &ClosedLoop, rule: &str, target: &str, wanted: &str) -> Result<()> {
    let explained = at.remediator.cli(&["explain", rule, target]).await?;
    ensure!(explained.contains(wanted), "no {wanted:?} in:\n{explained}");
    Ok(())
}

async fn refused(config: &std::path::Path) -> Result<()> {
    let mut command = tools::command(built("evenkeel-remediator")?);
    command.arg("check-config").arg("--config.file").arg(config);
    let Err(error) = tools::run(command, SOON).await else { bail!("{} is accepted", config.display()) };
    let error = format!("{error:#}");
    let reason = "step `build_cache_prune` deletes (class D1) and `policy.deletion` is none";
    ensure!(error.contains("exit status: 64") && error.contains(reason), "{error}");
    Ok(())
}
