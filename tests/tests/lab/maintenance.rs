//! Maintenance by the shipped timers, on a real systemd with the shipped units: the timer's service asks the remediator,
//! whose policy, limits and audit are those of any repair. Case 13 of the operations documents: weekly
//! `docker builder prune`, monthly `docker image prune -a`.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use evenkeel_tests::{
    engine::{BUSYBOX, Engine, Options},
    systemd_host::SystemdHost,
    wait::wait_for,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{closed_loop::acting_steps, installed, trial};

const SOON: Duration = Duration::from_secs(60);
const SERVICE: &str = "evenkeel-maintenance@weekly-build-cache.service";
const TIMER: &str = "evenkeel-weekly@weekly-build-cache.timer";
const MONTHLY: &str = "evenkeel-maintenance@monthly-unused-images.service";
const MONTHLY_TIMER: &str = "evenkeel-monthly@monthly-unused-images.timer";

/// The shipped examples with other needs: what a test builds is no gigabyte, was used just now, and cannot be pulled.
const CONFIG: &str = r#"
server: {auth: none}
policy: {gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, mode: auto, deletion: data, limits: {D1: [100/1h]}}
rules:
  - name: weekly-build-cache
    mode: auto
    on_demand: true
    needed: {build_cache_above: 1MB}
    limits: [1/24h]
    steps: [build_cache_prune: {all: true}]
    verify: {completed: true, within: 1m}
  - name: monthly-unused-images
    mode: auto
    on_demand: true
    needed: {always: true}
    limits: [1/24h]
    steps: [image_prune: {unused: true, min_age: 0s, keep_last: 1, locally_built: true}]
    verify: {completed: true, within: 1m}
"#;

const CONFIGURED: &str = r#"set -e
cd /packaging
printf %s "$1" >/etc/evenkeel/remediator.yml
mkdir -p /etc/systemd/system/evenkeel-remediator.service.d
cp drop-ins/evenkeel-remediator.service.d/docker-group.conf /etc/systemd/system/evenkeel-remediator.service.d/
systemctl daemon-reload
systemctl start evenkeel-remediator
"#;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("maintenance_by_a_timer_is_judged_and_recorded_like_any_repair", by_a_timer)]
}

async fn by_a_timer() -> Result<()> {
    // Its own engine: it is pruned.
    let engine = Arc::new(Engine::start(Options::default()).await?);
    let host = installed::packaged_with_docker(engine.clone()).await?;
    host.exec(&["sh", "-c", CONFIGURED, "sh", CONFIG]).await?;
    build_cache(&engine, "maintained").await?;

    // systemd knows when: the timer leads to the service of its instance.
    host.systemctl(&["enable", "--now", TIMER]).await?;
    ensure!(host.property(TIMER, "Unit").await? == SERVICE);
    ensure!(host.property(TIMER, "Persistent").await? == "yes");
    let next = host.property(TIMER, "NextElapseUSecRealtime").await?;
    ensure!(next.starts_with("Mon"), "the next run is {next:?}");

    // Its service asks, as the remediator's own user, and is done.
    host.systemctl(&["start", SERVICE]).await?;
    ensure!(host.property(SERVICE, "Result").await? == "success", "{}", log(&host).await?);
    let said = log(&host).await?;
    ensure!(said.contains("weekly-build-cache on host host is opened #1"), "{said}");
    let record = ended(&host, 1).await?;
    ensure!(record["outcome"] == "succeeded" && record["rule"] == "weekly-build-cache", "{record:#}");
    let uid = host.exec(&["id", "-u", "evenkeel-remediator"]).await?;
    ensure!(record["triggered_by"] == format!("uid {}", uid.trim()), "{record:#}");
    let [step] = acting_steps(&record)[..] else { bail!("one step acts: {record:#}") };
    ensure!(step["action"] == "build_cache_prune" && step["state"] == "done", "{record:#}");
    ensure!(step["claimed_freed_bytes"].as_u64() > Some(1_000_000), "{record:#}");
    let before = record["before"]["host"]["build_cache_bytes"].as_u64().context("nothing seen before")?;
    ensure!(before > 1_000_000, "{record:#}");
    let left = reclaimable(&engine).await?;
    ensure!(!left.contains("MB"), "build cache is left: {left}");

    // The limit holds for a timer too, and there is nothing to do any more: recorded, and no failure of the unit.
    host.systemctl(&["start", SERVICE]).await?;
    let second = ended(&host, 2).await?;
    ensure!(second["outcome"] == "not_needed", "{second:#}");
    ensure!(second["acted"] == false, "{second:#}");
    build_cache(&engine, "maintained-again").await?;
    host.systemctl(&["start", SERVICE]).await?;
    let third = ended(&host, 3).await?;
    ensure!(third["outcome"] == "limited" && !third["next_allowed"].is_null(), "{third:#}");

    the_monthly_one_deletes_what_no_container_uses(&engine, &host).await?;

    // A rule that is not there, and a remediator that is not: the unit says so by failing.
    let unknown = "evenkeel-maintenance@no-such-rule.service";
    ensure!(host.systemctl(&["start", unknown]).await.is_err(), "there is no such rule");
    ensure!(host.property(unknown, "Result").await? == "exit-code");
    host.systemctl(&["stop", "evenkeel-remediator"]).await?;
    ensure!(host.systemctl(&["start", SERVICE]).await.is_err(), "nobody was there to be asked");

    // It has no more than it needs.
    let said = host.exec(&["systemd-analyze", "--no-pager", "security", SERVICE]).await?;
    let line = said.lines().find(|line| line.contains("Overall exposure level")).context("no figure")?;
    let figure = line.split(": ").nth(1).and_then(|rest| rest.split(' ').next()).context("no figure")?;
    ensure!(figure.parse::<f64>()? < 2.0, "{line}");
    Ok(())
}

/// Of the images of the document's containers, the versions before the one that runs.
async fn the_monthly_one_deletes_what_no_container_uses(engine: &Engine, host: &SystemdHost) -> Result<()> {
    const FRONTEND: &str = "quantum_dashboard_frontend";
    for version in 1..=3 {
        let text = format!("FROM {BUSYBOX}\nRUN echo {version} >/version\n");
        engine.build(&format!("{FRONTEND}:{version}"), &text).await?;
    }
    let used = format!("{FRONTEND}:1");
    engine
        .docker(&["run", "--detach", "--network", "none", "--name", FRONTEND, &used, "sleep", "100000"])
        .await?;
    host.systemctl(&["enable", "--now", MONTHLY_TIMER]).await?;
    ensure!(host.property(MONTHLY_TIMER, "Unit").await? == MONTHLY);
    let next = host.property(MONTHLY_TIMER, "NextElapseUSecRealtime").await?;
    ensure!(next.contains("-01 "), "the next run is {next:?}");
    host.systemctl(&["start", MONTHLY]).await?;
    let record = ended(host, 4).await?;
    ensure!(record["outcome"] == "succeeded" && record["rule"] == "monthly-unused-images", "{record:#}");
    let [step] = acting_steps(&record)[..] else { bail!("one step acts: {record:#}") };
    ensure!(step["detail"] == format!("deleted {FRONTEND}:2"), "{step:#}");
    let left = engine.docker(&["images", "--format", "{{.Tag}}", FRONTEND]).await?;
    let mut left: Vec<&str> = left.lines().collect();
    left.sort_unstable();
    ensure!(left == ["1", "3"], "in use, and the newest: {left:?}");
    Ok(())
}

/// Makes build cache, and waits until the engine says that nothing uses it any more.
async fn build_cache(engine: &Engine, tag: &str) -> Result<()> {
    let text = format!("FROM {BUSYBOX}\nRUN echo {tag} && dd if=/dev/urandom of=/big bs=1M count=3\n");
    engine.build(tag, &text).await?;
    engine.docker(&["image", "rm", tag]).await?;
    wait_for("the build cache to be let go of", SOON, async || {
        let size = reclaimable(engine).await?;
        ensure!(size.contains("MB"), "reclaimable: {size}");
        Ok(())
    })
    .await
}

/// The size of build cache that nothing uses, in docker's words.
async fn reclaimable(engine: &Engine) -> Result<String> {
    let usage = engine.docker(&["system", "df", "--format", "{{.Type}}: {{.Reclaimable}}"]).await?;
    let cache = usage.lines().find_map(|line| line.strip_prefix("Build Cache: "));
    Ok(cache.context("no line about build cache")?.to_owned())
}

async fn log(host: &SystemdHost) -> Result<String> {
    let entries = host.journal(SERVICE).await?;
    Ok(entries.iter().filter_map(|entry| entry["MESSAGE"].as_str()).collect::<Vec<_>>().join("\n"))
}

/// A remediation that has ended, by its number.
async fn ended(host: &SystemdHost, id: i64) -> Result<Value> {
    wait_for(&format!("remediation #{id} to end"), SOON, async || {
        let lines = host.exec(&["evenkeel-remediator", "history", "--json"]).await?;
        for line in lines.lines() {
            let record: Value = serde_json::from_str(line)?;
            if record["id"] == id && record["phase"] == "ended" {
                return Ok(record);
            }
        }
        bail!("{lines}")
    })
    .await
}
