//! Another disk than Docker's fills up: pruning would help nobody, and somebody has to know what
//! fills it.

use anyhow::{Context, Result, ensure};
use evenkeel_tests::disk::Disk;
use libtest_mimic::Trial;

use crate::{
    closed_loop::{ClosedLoop, Setup, acting_steps},
    shared, trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("second_disk_costs_docker_nothing", costs_docker_nothing)]
}

async fn costs_docker_nothing() -> Result<()> {
    let engine = shared::engine().await?;
    let second = Disk::new("second", 100)?;
    let mount_point = second.path().to_str().context("the lab's paths are UTF-8")?;
    let docker = engine.disk().path().display();
    let remediator = format!(
        r#"
policy: {{gates: {{grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}}, mode: auto, deletion: cache}}
rules:
  - name: disk-high
    match: ['alertname="HostDiskHigh"']
    target: {{filesystem: mountpoint, allow: ["{mount_point}", "{docker}"]}}
    limits: [1/15m, 3/6h, 5/24h]
    steps: [build_cache_prune: {{unused_for: 48h}}, build_cache_prune: {{all: true}}]
    verify: {{usage_below: 80%, within: 30s, hold: 2s}}
"#
    );
    let around = shared::surroundings().await?;
    let at = ClosedLoop::start(Setup { around, remediator: &remediator, ..Setup::default() }).await?;
    // There is something to prune, only not there.
    engine
        .build("lab/cached", "FROM lab/busybox\nRUN dd if=/dev/urandom of=/cached bs=1M count=30\n")
        .await?;
    engine.docker(&["image", "rm", "lab/cached"]).await?;
    let file = second.fill_to(0.9, "forgotten.log")?;
    let cache = engine.build_cache().await?;

    at.fires("HostDiskHigh", ("mountpoint", mount_point)).await?;
    let record = at
        .remediation("the refusal", ("disk-high", mount_point), |record| record["phase"] == "ended")
        .await?;
    ensure!(record["outcome"] == "blocked" && record["reason"] == "not_on_this_filesystem", "{record:#}");
    ensure!(record["acted"] == false, "{record:#}");
    let steps = acting_steps(&record);
    ensure!(steps.len() == 2 && steps.iter().all(|step| step["state"] == "skipped"), "{record:#}");
    let detail = record["detail"].as_str().context("no detail")?;
    ensure!(detail.contains(&format!("the build cache lies in {docker}")), "{detail}");
    ensure!(detail.contains(&format!("it is filled by {} ", file.display())), "{detail}");
    let explained = at.remediator.cli(&["explain", "disk-high", mount_point]).await?;
    ensure!(
        explained.contains("nothing would be done") && explained.contains("forgotten.log"),
        "{explained}"
    );

    ensure!(engine.requests("POST", "/prune") == 0, "something was pruned");
    let left = engine.build_cache().await?;
    ensure!(left == cache, "{cache} became {left}");
    std::fs::remove_file(file)?;
    at.resolves("HostDiskHigh", ("mountpoint", mount_point)).await
}
