//! The remediator's own disk has 0 bytes free, or fails: it accepts, records and remembers all the same, also over a
//! restart, and on the first start ever.

use std::{
    fs::{self, File},
    io::Write as _,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{binaries::Remediator, disk::Disk, http, namespace, process::free_port, wait::wait_for};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::{shared, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("full_disk_state_goes_on", state_goes_on),
        trial("full_disk_first_start_ever", first_start_ever),
        trial("full_disk_fails_while_it_runs", fails_while_it_runs),
    ]
}

async fn state_goes_on() -> Result<()> {
    let disk = Disk::new("state", 40)?;
    let mut remediator = start(&disk).await?;
    fill(&disk)?;
    deliver(&remediator, 0..40).await?;
    ended(&remediator, 40).await?;
    for round in 40..43 {
        remediator.restart().await?;
        ensure!(disk.usage()?.avail == 0, "the disk is no longer full");
        deliver(&remediator, round..round + 1).await?;
        ended(&remediator, round + 1).await?;
    }
    // All of it where it belongs.
    degraded(&remediator, false).await
}

async fn first_start_ever() -> Result<()> {
    let disk = Disk::new("state", 40)?;
    fill(&disk)?;
    let mut remediator = start(&disk).await?;
    degraded(&remediator, true).await?;
    deliver(&remediator, 0..5).await?;
    ended(&remediator, 5).await?;
    remediator.restart().await?;
    degraded(&remediator, true).await?;
    deliver(&remediator, 5..6).await?;
    ended(&remediator, 6).await?;
    ensure!(disk.usage()?.avail == 0, "the disk is no longer full");
    let status = remediator.cli(&["status"]).await?;
    ensure!(status.contains("STATE DEGRADED"), "{status}");

    fs::remove_file(disk.path().join("filling"))?;
    remediator.restart().await?;
    degraded(&remediator, false).await?;
    ended(&remediator, 6).await?;
    let scrape = remediator.scrape().await?;
    let lost = scrape.value("evenkeel_remediator_state_lost_timestamp_seconds", &[]);
    ensure!(lost == Some(0.0), "nothing was lost, and it says {lost:?}");
    // The command line finds it where it is now.
    remediator.cli(&["pause", "--reason", "test"]).await?;
    remediator.cli(&["resume"]).await.map(drop)
}

/// As after an I/O error: the kernel makes the filesystem read-only under the running process.
async fn fails_while_it_runs() -> Result<()> {
    let mut disk = Disk::new("state", 40)?;
    let mut remediator = start(&disk).await?;
    deliver(&remediator, 0..3).await?;
    ended(&remediator, 3).await?;
    remediator.cli(&["pause", "--reason", "test"]).await?;
    disk.fail()?;
    // Whoever meets the failure is told to come again, and is taken then.
    wait_for("a delivery to be taken", Duration::from_secs(20), async || deliver(&remediator, 3..4).await)
        .await?;
    degraded(&remediator, true).await?;
    ended(&remediator, 4).await?;
    let paused = async |remediator: &Remediator| -> Result<()> {
        let paused = remediator.scrape().await?.value("evenkeel_remediator_paused", &[]);
        ensure!(paused == Some(1.0), "the pause is lost: {paused:?}");
        Ok(())
    };
    paused(&remediator).await?;
    remediator.cli(&["status"]).await?;
    remediator.restart().await?;
    degraded(&remediator, true).await?;
    deliver(&remediator, 4..5).await?;
    ended(&remediator, 5).await?;
    paused(&remediator).await?;

    remediator.crash()?;
    disk.mend()?;
    remediator.restart().await?;
    degraded(&remediator, false).await?;
    ended(&remediator, 5).await?;
    paused(&remediator).await
}

/// With its state on this disk.
async fn start(disk: &Disk) -> Result<Remediator> {
    let dir = namespace::place("full")?;
    let port = free_port()?;
    let config = dir.join("remediator.yml");
    fs::write(
        &config,
        format!(
            "identity: {{hosts: [lab]}}\nserver: {{auth: none, listen: [\"127.0.0.1:{port}\"]}}\nstate: {{dir: {}}}\n{RULES}",
            disk.path().join("state").display()
        ),
    )?;
    Remediator::start(&dir, port, &config, &shared::surroundings().await?).await
}

async fn degraded(remediator: &Remediator, expected: bool) -> Result<()> {
    wait_for("the state's place", Duration::from_secs(10), async || {
        let degraded = remediator.scrape().await?.value("evenkeel_remediator_state_degraded", &[]);
        let is_so = degraded == Some(f64::from(u8::from(expected)));
        ensure!(is_so, "degraded is {degraded:?}\n{}", remediator.process().log());
        Ok(())
    })
    .await
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

async fn deliver(remediator: &Remediator, numbers: std::ops::Range<usize>) -> Result<()> {
    for number in numbers {
        let labels = json!({"alertname": "Full", "host": "lab", "name": format!("full-{number}.service")});
        let delivery = json!({"version": "4", "alerts": [{"status": "firing", "labels": labels}]});
        http::post_json(&format!("{}/api/v1/alerts", remediator.url()), &delivery).await?;
    }
    Ok(())
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
