//! A full disk: from the filesystem over the alert to one prune, measured, and back.

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    binaries::Surroundings,
    engine::{Engine, Options},
    http,
    wait::wait_for,
};
use libtest_mimic::Trial;
use tokio::try_join;

use crate::{
    closed_loop::{ClosedLoop, SOON, Setup, acting_steps},
    trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("disk_full_of_build_cache_is_pruned_once", full_of_build_cache_is_pruned_once)]
}

async fn full_of_build_cache_is_pruned_once() -> Result<()> {
    let engine = Engine::start(Options { disk_mib: 300, ..Options::default() }).await?;
    let disk = engine.disk().path().to_str().context("the lab's paths are UTF-8")?;
    let around = Surroundings { docker: Some(engine.host()), bus: None };
    let remediator = format!(
        r#"
policy: {{gates: {{grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}}, mode: auto, deletion: cache}}
rules:
  - name: disk-high
    match: ['alertname="HostDiskHigh"']
    target: {{filesystem: mountpoint, allow: ["{disk}"]}}
    needed: {{usage_above: 85%}}
    limits: [1/15m, 3/6h, 5/24h]
    steps: [build_cache_prune: {{all: true}}]
    verify: {{usage_below: 80%, within: 30s, hold: 2s}}
"#
    );
    let setup = Setup { around, remediator: &remediator, ..Setup::default() };
    let ((), at) = try_join!(engine.fill_with_build_cache(0.87), ClosedLoop::start(setup))?;
    let about = ("mountpoint", disk);

    exported_usage(&at, disk, |used| used > 0.85).await?;
    at.fires("HostDiskHigh", about).await?;
    let record =
        at.remediation("the repair to end", ("disk-high", disk), |record| record["phase"] == "ended").await?;
    ensure!(record["outcome"] == "succeeded", "{record:#}");
    let used = engine.disk().usage()?.used_ratio();
    ensure!(used < 0.8, "the disk is still {used} full");

    // What the audit holds is what was there.
    let (before, after) = (&record["before"]["filesystem"], &record["after"]["filesystem"]);
    ensure!(before["used_ratio"].as_f64() > Some(0.85), "{record:#}");
    ensure!(after["used_ratio"].as_f64() < Some(0.8), "{record:#}");
    let avail = |seen: &serde_json::Value| seen["avail_bytes"].as_f64().context("no avail_bytes");
    let gained = avail(after)? - avail(before)?;
    let [step] = acting_steps(&record)[..] else { anyhow::bail!("one step acts: {record:#}") };
    ensure!(step["action"] == "build_cache_prune" && step["state"] == "done", "{step:#}");
    let measured = step["measured_freed_bytes"].as_f64().context("nothing measured")?;
    let claimed = step["claimed_freed_bytes"].as_f64().context("nothing claimed")?;
    ensure!(claimed > 0.0 && (measured - gained).abs() < gained / 10.0, "gained {gained}: {step:#}");

    let counted = at.remediator.scrape().await?;
    let by_action = [("action", "build_cache_prune")];
    for (metric, bytes) in [("freed", measured), ("claimed_freed", claimed)] {
        let metric = format!("evenkeel_remediator_{metric}_bytes_total");
        ensure!(counted.value(&metric, &by_action) == Some(bytes), "{metric} is not {bytes}");
    }
    // Alertmanager came with the token every time; who comes without it is refused.
    let code = |code| counted.value("evenkeel_remediator_webhook_requests_total", &[("code", code)]);
    ensure!(code("200") >= Some(1.0) && code("401").is_none(), "{:?} {:?}", code("200"), code("401"));
    let url = format!("{}/api/v1/alerts", at.remediator.url());
    let stranger = http::post_json(&url, &serde_json::json!({"version": "4", "alerts": []})).await;
    ensure!(stranger.is_err_and(|error| error.to_string().contains("401")), "a stranger was let in");

    exported_usage(&at, disk, |used| used < 0.8).await?;
    at.resolves("HostDiskHigh", about).await?;
    ensure!(engine.requests("POST", "/build/prune") == 1, "more than one prune");
    ensure!(at.history("disk-high", disk).await?.iter().filter(|one| one["acted"] == true).count() == 1);
    let called = at.calls_about(about);
    ensure!(called.is_empty(), "nobody is called for what was repaired: {called:?}");
    let told = at.told.received();
    ensure!(told.is_empty(), "nobody is told either: {told:?}");
    Ok(())
}

/// Waits until the exporter shows a filesystem as `wanted`.
async fn exported_usage(at: &ClosedLoop, mount_point: &str, wanted: impl Fn(f64) -> bool) -> Result<()> {
    wait_for("the exporter to show the disk", SOON, async || {
        let scrape = at.exporter.scrape().await?;
        let bytes = |what: &str| {
            scrape
                .value(&format!("node_filesystem_{what}_bytes"), &[("mountpoint", mount_point)])
                .with_context(|| format!("no {what} of {mount_point}"))
        };
        let used = 1.0 - bytes("avail")? / bytes("size")?;
        ensure!(wanted(used), "it is {used} full");
        Ok(())
    })
    .await
}
