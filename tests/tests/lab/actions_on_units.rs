//! What is done to units, on a real systemd: what a start, a stop, a reload and a unit of one's own do, and what they
//! leave alone.

use std::fs;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    alone::{Alone, ended, rule},
    shared, trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("actions_on_units_do_what_they_say", do_what_they_say)]
}

const DOWN: &str = "acted-down.service";
const RUNAWAY: &str = "acted-runaway.service";
const SOCKETED: &str = "acted-socketed.service";
const STALE: &str = "acted-stale.service";
const UNTIDY: &str = "acted-untidy.service";

async fn do_what_they_say() -> Result<()> {
    let rules = [
        rule("down", "unit", DOWN, "unit_reset_failed, unit_start", "active_for: 1s, within: 30s"),
        rule("runaway", "unit", "acted-*.service", "unit_stop", "stopped_for: 1s, within: 30s"),
        rule("old", "unit", "acted-*.service", "unit_reload", "active_for: 1s, within: 30s"),
        rule("stale", "unit", STALE, "{daemon_reload: {quiet_for: 0s}}", ""),
        rule("deployed", "unit", STALE, "{daemon_reload: {quiet_for: 1h}}", ""),
        rule("untidy", "unit", UNTIDY, "{run_unit: {name: tidy}}", "not_failed_for: 1s, within: 30s"),
    ];
    let at = Alone::start(&shared::surroundings().await?, &rules.concat()).await?;
    starts_what_is_enabled(&at).await?;
    stops_what_nothing_starts_again(&at).await?;
    reloads_what_can(&at).await?;
    has_systemd_read_its_files(&at).await?;
    runs_only_what_is_root_s_own(&at).await
}

async fn starts_what_is_enabled(at: &Alone) -> Result<()> {
    let host = shared::host().await?;
    let text = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n";
    host.install_unit(DOWN, text).await?;
    ended(&at.told("down", DOWN).await?, "blocked", "not_enabled")?;
    ensure!(host.property(DOWN, "ActiveState").await? == "inactive", "a disabled unit was started");
    host.systemctl(&["enable", DOWN]).await?;
    ended(&at.told("down", DOWN).await?, "succeeded", "verified")?;
    ensure!(host.property(DOWN, "ActiveState").await? == "active");
    ensure!(host.starts(DOWN).await? == 1);
    ended(&at.told("down", DOWN).await?, "not_needed", "already_well")
}

async fn stops_what_nothing_starts_again(at: &Alone) -> Result<()> {
    let host = shared::host().await?;
    for unit in [RUNAWAY, SOCKETED] {
        host.install_unit(unit, "[Service]\nExecStart=/bin/sleep infinity\n").await?;
        host.systemctl(&["start", unit]).await?;
    }
    ended(&at.told("runaway", RUNAWAY).await?, "succeeded", "verified")?;
    ensure!(host.property(RUNAWAY, "ActiveState").await? == "inactive");
    ended(&at.told("runaway", RUNAWAY).await?, "not_needed", "already_well")?;
    let path = SOCKETED.replace(".service", ".path");
    host.install_unit(&path, "[Path]\nPathExists=/etc/machine-id\n").await?;
    host.systemctl(&["start", &path]).await?;
    let record = at.told("runaway", SOCKETED).await?;
    ended(&record, "blocked", "triggered")?;
    host.systemctl(&["stop", &path, SOCKETED]).await.map(drop)
}

async fn reloads_what_can(at: &Alone) -> Result<()> {
    let host = shared::host().await?;
    ended(&at.told("old", DOWN).await?, "blocked", "no_reload")?;
    let text = "[Service]\nExecStart=/bin/sleep infinity\nExecReload=/bin/touch /run/acted-reloaded\n";
    host.install_unit(RUNAWAY, text).await?;
    host.systemctl(&["start", RUNAWAY]).await?;
    let before = host.property(RUNAWAY, "InvocationID").await?;
    ended(&at.told("old", RUNAWAY).await?, "succeeded", "verified")?;
    host.exec(&["test", "-e", "/run/acted-reloaded"]).await?;
    ensure!(host.property(RUNAWAY, "InvocationID").await? == before, "it was restarted");
    host.systemctl(&["stop", RUNAWAY]).await.map(drop)
}

async fn has_systemd_read_its_files(at: &Alone) -> Result<()> {
    let host = shared::host().await?;
    host.install_unit(STALE, "[Service]\nExecStart=/bin/sleep infinity\n").await?;
    host.systemctl(&["start", STALE]).await?;
    ended(&at.told("stale", STALE).await?, "not_needed", "already_well")?;
    let file = format!("/etc/systemd/system/{STALE}");
    // The lab's /etc is its own copy: there the file is as young as on the host.
    fs::create_dir_all("/etc/systemd/system")?;
    fs::write(&file, "")?;
    ended(&told_of_stale(at, "deployed").await?, "blocked", "being_deployed")?;
    ended(&told_of_stale(at, "stale").await?, "succeeded", "verified")?;
    ensure!(host.property(STALE, "NeedDaemonReload").await? == "no");
    ensure!(host.property(STALE, "Nice").await? == "5");
    host.systemctl(&["stop", STALE]).await.map(drop)
}

/// What comes of a unit whose file systemd has not read. Other scenarios have this systemd read its files too: when one of
/// them was faster, the file is written once more.
async fn told_of_stale(at: &Alone, rule: &str) -> Result<Value> {
    const TRIES: usize = 10;
    let host = shared::host().await?;
    let file = format!("/etc/systemd/system/{STALE}");
    let mut record = Value::Null;
    for _ in 0..TRIES {
        host.write_file(&file, "[Service]\nExecStart=/bin/sleep infinity\nNice=5\n").await?;
        record = at.told(rule, STALE).await?;
        if record["reason"] != "already_well" {
            break;
        }
    }
    Ok(record)
}

async fn runs_only_what_is_root_s_own(at: &Alone) -> Result<()> {
    const TEMPLATE: &str = "evenkeel-action-tidy@.service";
    let host = shared::host().await?;
    host.install_unit(UNTIDY, "[Service]\nExecStart=/bin/false\n").await?;
    host.systemctl(&["start", UNTIDY]).await?;
    ended(&at.told("untidy", UNTIDY).await?, "blocked", "not_loaded")?;
    let text = "[Service]\nType=oneshot\nExecStart=/bin/systemctl reset-failed %I\nExecStart=/bin/touch /run/acted-%i\n";
    host.install_unit(TEMPLATE, text).await?;
    let file = format!("/etc/systemd/system/{TEMPLATE}");
    fs::write(&file, text)?;
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o664))?;
    let record = at.told("untidy", UNTIDY).await?;
    ended(&record, "blocked", "not_root_s_own")?;
    ensure!(record["detail"].as_str().is_some_and(|detail| detail.contains("0664")), "{record:#}");
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    ended(&at.told("untidy", UNTIDY).await?, "succeeded", "verified")?;
    host.exec(&["test", "-e", "/run/acted-acted\\x2duntidy.service"]).await.map(drop)
}
