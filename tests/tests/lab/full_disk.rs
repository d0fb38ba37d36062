//! The remediator's own disk has 0 bytes free: it accepts, records and remembers all the same, also over a restart.

use std::{fs::File, io::Write as _, time::Duration};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{binaries::Remediator, disk::Disk, http, namespace, process::free_port, wait::wait_for};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::{shared, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("full_disk_state_goes_on", state_goes_on)]
}

async fn state_goes_on() -> Result<()> {
    let disk = Disk::new("state", 40)?;
    let dir = namespace::place("full")?;
    let port = free_port()?;
    let config = dir.join("remediator.yml");
    std::fs::write(
        &config,
        format!(
            "identity: {{hosts: [lab]}}\nserver: {{auth: none, listen: [\"127.0.0.1:{port}\"]}}\nstate: {{dir: {}}}\n{RULES}",
            disk.path().join("state").display()
        ),
    )?;
    let mut remediator = Remediator::start(&dir, port, &config, &shared::surroundings().await?).await?;
    fill(&disk)?;
    for number in 0..40 {
        deliver(&remediator, number).await?;
    }
    ended(&remediator, 40).await?;
    remediator.restart().await?;
    ensure!(disk.usage()?.avail == 0, "the disk is no longer full");
    deliver(&remediator, 40).await?;
    ended(&remediator, 41).await
}

/// Units that do not exist: each alert ends as not needed, and that is on disk.
const RULES: &str = r#"rules:
  - name: full
    match: ['alertname="Full"']
    target: {unit: name, allow: ["full-*.service"]}
    steps: [unit_restart]
    verify: {active_for: 1s, within: 20s}
"#;

/// Writes until the kernel says ENOSPC, in ever smaller pieces.
fn fill(disk: &Disk) -> Result<()> {
    let mut file = File::create(disk.path().join("filling"))?;
    for size in [1 << 20, 1 << 12, 1] {
        while file.write_all(&vec![0x5a; size]).and_then(|()| file.sync_data()).is_ok() {}
    }
    ensure!(disk.usage()?.avail == 0, "{} bytes are left", disk.usage()?.avail);
    Ok(())
}

async fn deliver(remediator: &Remediator, number: usize) -> Result<()> {
    let labels = json!({"alertname": "Full", "host": "lab", "name": format!("full-{number}.service")});
    let delivery = json!({"version": "4", "alerts": [{"status": "firing", "labels": labels}]});
    http::post_json(&format!("{}/api/v1/alerts", remediator.url()), &delivery).await.map(drop)
}

async fn ended(remediator: &Remediator, expected: usize) -> Result<()> {
    wait_for("every alert to end", Duration::from_secs(60), async || {
        let history = remediator.cli(&["history", "--json", "--limit", "1000"]).await?;
        let records: Vec<Value> =
            history.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("JSON lines")?;
        let ended = records.iter().filter(|record| record["outcome"] == "not_needed").count();
        ensure!(ended == expected, "{ended} of {expected} ended; the newest: {:?}", records.first());
        Ok(())
    })
    .await
}
