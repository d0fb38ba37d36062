//! A disk that runs out of inodes while it has room: what helps against that is done, and where nothing does, somebody is
//! told where the files are.

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    binaries::Surroundings,
    disk::Disk,
    engine::{BUSYBOX, Engine, Options},
};
use libtest_mimic::Trial;

use crate::{
    alone::{Alone, ended, rule},
    closed_loop::acting_steps,
    shared, trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("inodes_of_build_cache_come_back", of_build_cache_come_back),
        trial("inodes_of_somebody_else_are_told", of_somebody_else_are_told),
    ]
}

async fn of_build_cache_come_back() -> Result<()> {
    let engine = Engine::start(Options { disk_mib: 300, inodes: Some(8000), ..Options::default() }).await?;
    let disk = engine.disk().path().to_str().context("the lab's paths are UTF-8")?;
    let files =
        format!("FROM {BUSYBOX}\nRUN mkdir /many && cd /many && for i in $(seq 6800); do : >$i; done\n");
    engine.build("lab/many", &files).await?;
    engine.docker(&["image", "rm", "lab/many"]).await?;
    let full = engine.disk().inodes_used_ratio()?;
    ensure!(full > 0.85, "only {full} of the inodes are in use");
    let steps = "{container_log_truncate: {containers: [\"some-*\"]}}, {build_cache_prune: {all: true}}";
    let rules = rule("inodes", "filesystem", disk, steps, "inodes_below: 80%, within: 30s, hold: 1s");
    let around = Surroundings { docker: Some(engine.host()), bus: None };
    let at = Alone::start(&around, &(rules + "    needed: {inodes_above: 85%}\n")).await?;
    let record = at.told("inodes", disk).await?;
    ended(&record, "succeeded", "verified")?;
    let seen = |when: &str| {
        let filesystem = &record[when]["filesystem"];
        filesystem["inodes"]["used_ratio"].as_f64().zip(filesystem["used_ratio"].as_f64())
    };
    let (before, after) = seen("before").zip(seen("after")).with_context(|| format!("{record:#}"))?;
    ensure!(before.0 > 0.85 && before.1 < 0.5, "its room was not the trouble: {record:#}");
    ensure!(after.0 < 0.8 && engine.disk().inodes_used_ratio()? < 0.8, "{record:#}");
    ensure!(engine.requests("POST", "/build/prune") == 1);
    ended(&at.told("inodes", disk).await?, "not_needed", "already_well")
}

async fn of_somebody_else_are_told() -> Result<()> {
    let engine = shared::engine().await?;
    let second = Disk::of_inodes("second", 100, 1000)?;
    let mount_point = second.path().to_str().context("the lab's paths are UTF-8")?;
    let sessions = second.path().join("var/sessions");
    fs::create_dir_all(&sessions)?;
    for number in 0..920 {
        File::create(sessions.join(number.to_string()))?;
    }
    // A file that no look at folders finds: this very process holds it.
    let path = second.fill_to(0.6, "gone.log")?;
    let held = File::open(&path)?;
    fs::remove_file(&path)?;
    let cache = engine.build_cache().await?;
    let steps = "{build_cache_prune: {all: true}}";
    let verify = "usage_below: 50%, inodes_below: 80%, within: 30s, hold: 1s";
    let rules = rule("both", "filesystem", mount_point, steps, verify)
        + "    needed: {usage_above: 55%, inodes_above: 85%}\n";
    let around = Surroundings { docker: Some(engine.host()), bus: None };
    let at = Alone::start(&around, &rules).await?;
    let record = at.told("both", mount_point).await?;
    ended(&record, "blocked", "not_on_this_filesystem")?;
    ensure!(acting_steps(&record).iter().all(|step| step["state"] == "skipped"), "{record:#}");
    let detail = record["detail"].as_str().context("no detail")?;
    let held_by = format!("(pid {}", std::process::id());
    for told in [
        format!("; deleted and still open: {} ", path.display()),
        held_by.clone(),
        format!("; most files are in {} 921", sessions.display()),
    ] {
        ensure!(detail.contains(&told), "no {told:?} in {detail}");
    }
    // The report that is taken first says the same.
    let steps = record["steps"].as_array().context("no steps")?;
    let report = steps[0]["detail"].as_str().and_then(|detail| detail.strip_prefix("report "));
    let report = fs::read_to_string(report.with_context(|| format!("no report: {record:#}"))?)?;
    for told in [
        &held_by,
        &format!("       921  {}\n", sessions.display()),
        "reserved for root or by the filesystem: ",
    ] {
        ensure!(report.contains(told), "no {told:?} in {report}");
    }
    drop(held);
    fs::remove_dir_all(sessions)?;
    ended(&at.told("both", mount_point).await?, "not_needed", "already_well")?;
    let left = engine.build_cache().await?;
    ensure!(left == cache, "{cache} became {left}");
    Ok(())
}
