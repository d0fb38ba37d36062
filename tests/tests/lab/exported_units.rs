//! What the exporter says of units, against what `systemctl show` says of the same ones, on a real systemd.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use evenkeel_tests::{
    binaries::{Exporter, Surroundings},
    exposition::Exposition,
    namespace,
    process::free_port,
    systemd_host::SystemdHost,
};
use libtest_mimic::Trial;

use crate::{shared, trial};

/// More than the exporter reads again in turn at each look, so that it has to notice what changed.
const APPS: usize = 40;

/// What happens to the units, one line at a time; after each the exporter has to be right.
const EVENTS: &[&str] = &[
    "true",
    "systemctl start app-1 app-2 app-3 once remains; systemctl start --no-block fails missing",
    "systemctl kill --signal=KILL app-1 app-2 app-9",
    "systemctl kill --signal=SEGV app-1",
    "systemctl restart app-2",
    // Sets the restart counter back and changes no state.
    "systemctl reset-failed app-1 app-9",
    "systemctl stop app-4 app-5",
    "systemctl daemon-reload",
    "systemctl kill --signal=KILL app-6; systemctl daemon-reexec",
    "systemctl reset-failed; systemctl start once",
    "systemctl start app-4; systemctl kill --signal=KILL app-4",
    // Found at its start, without a reload.
    "cp /etc/systemd/system/app-1.service /etc/systemd/system/late.service; systemctl start late",
];

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("exported_units_are_what_systemctl_shows", exported_units_are_what_systemctl_shows)]
}

async fn exported_units_are_what_systemctl_shows() -> Result<()> {
    let host = SystemdHost::start(shared::engine().await?).await?;
    let dir = namespace::place("units")?;
    host.exec(&["sh", "-ec", &unit_files()]).await?;
    host.systemctl(&["daemon-reload"]).await?;
    host.exec(&["sh", "-c", &format!("systemctl start $(seq -f app-%g {APPS})")]).await?;
    let around = Surroundings { bus: Some(host.bus_address()), docker: None };
    let exporter = Exporter::start(&dir, free_port()?, None, &around).await?;
    for event in EVENTS {
        // Some of what the lines say is meant to fail.
        host.exec(&["sh", "-c", &format!("{event}; true")]).await?;
        let (shown, scraped) = both_at_once(&host, &exporter).await.context(*event)?;
        for (unit, expected) in &shown {
            let said = said(&scraped, unit);
            ensure!(
                said == *expected,
                "after {event}: of {unit} the exporter says {said:?}, systemctl {expected:?}"
            );
        }
        ensure!(shown.len() >= APPS, "only {} units were shown", shown.len());
    }
    ensure!(scraped_load(&exporter.scrape().await?, "broken.service").as_deref() == Some("bad-setting"));
    Ok(())
}

fn unit_files() -> String {
    let app = "[Unit]\\nStartLimitIntervalSec=0\\n[Service]\\nExecStart=/bin/sleep 1000\\nRestart=always\\nRestartSec=50ms\\n";
    format!(
        "cd /etc/systemd/system
        for n in $(seq {APPS}); do printf '{app}' >app-$n.service; done
        printf '[Service]\\nType=oneshot\\nExecStart=/bin/true\\n' >once.service
        printf '[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=/bin/true\\n' >remains.service
        printf '[Service]\\nExecStart=/bin/sh -c \"exit 7\"\\n' >fails.service
        printf '[Service]\\nExecStart=/no/such/program\\n' >missing.service
        printf '[Unit]\\nBefore=broken.service\\n[Service]\\nExecStart=/bin/true\\n' >mentions.service
        printf '[Service]\\nExecStart=not/absolute\\n' >broken.service
        mkdir multi-user.target.wants 2>/dev/null || true
        ln -s ../broken.service multi-user.target.wants/"
    )
}

/// What `systemctl` says and a scrape from a time in which that did not change.
async fn both_at_once(
    host: &SystemdHost,
    exporter: &Exporter,
) -> Result<(BTreeMap<String, BTreeMap<&'static str, String>>, Exposition)> {
    for _ in 0..50 {
        let before = shown(host).await?;
        let scraped = exporter.scrape().await?;
        if shown(host).await? == before {
            return Ok((before, scraped));
        }
    }
    bail!("the units never stand still")
}

/// Loaded services with their properties, in the words of [`said`].
async fn shown(host: &SystemdHost) -> Result<BTreeMap<String, BTreeMap<&'static str, String>>> {
    let properties = "Id,LoadState,ActiveState,SubState,NRestarts,Result,ExecMainStatus,ExecMainExitTimestamp,\
                      ActiveEnterTimestamp,InactiveEnterTimestamp";
    let text =
        host.systemctl(&["show", "--all", "--timestamp=unix", "--property", properties, "*.service"]).await?;
    let mut units = BTreeMap::new();
    for block in text.split("\n\n") {
        let of_unit: BTreeMap<&str, &str> = block.lines().filter_map(|line| line.split_once('=')).collect();
        let value = |name: &str| of_unit.get(name).copied().unwrap_or_default().to_owned();
        if value("LoadState") != "loaded" {
            continue;
        }
        // Shown as `@seconds`, and as nothing for never.
        let time = |name: &str| value(name).trim_start_matches('@').to_owned();
        let or_never = |time: String| if time.is_empty() { "0".to_owned() } else { time };
        let ended = time("ExecMainExitTimestamp");
        let mut properties = BTreeMap::from([
            ("state", value("ActiveState")),
            ("sub state", value("SubState")),
            ("restarts", value("NRestarts")),
            ("result", value("Result")),
            ("active since", or_never(time("ActiveEnterTimestamp"))),
            ("inactive since", or_never(time("InactiveEnterTimestamp"))),
        ]);
        if !ended.is_empty() {
            properties.extend([("status", value("ExecMainStatus")), ("ended", ended)]);
        }
        units.insert(value("Id"), properties);
    }
    Ok(units)
}

/// What the exporter says of a service.
fn said(scraped: &Exposition, unit: &str) -> BTreeMap<&'static str, String> {
    let name = [("name", unit)];
    let mut properties = BTreeMap::new();
    for (property, metric, label) in [
        ("state", "systemd_unit_state", "state"),
        ("sub state", "systemd_unit_sub_state", "sub_state"),
        ("result", "systemd_service_result", "result"),
    ] {
        let current: Vec<_> = scraped.all(metric, &name).filter(|sample| sample.value == 1.0).collect();
        let words: Vec<&str> = current.iter().map(|sample| sample.labels[label].as_str()).collect();
        properties.insert(property, words.join(" and "));
    }
    for (property, metric) in [
        ("restarts", "systemd_service_restart_total"),
        ("active since", "systemd_unit_active_enter_time_seconds"),
        ("inactive since", "systemd_unit_inactive_enter_time_seconds"),
        ("status", "systemd_service_exec_main_status"),
        ("ended", "systemd_service_exec_main_exit_timestamp_seconds"),
    ] {
        if let Some(value) = scraped.value(metric, &name) {
            properties.insert(property, value.floor().to_string());
        }
    }
    properties
}

fn scraped_load(scraped: &Exposition, unit: &str) -> Option<String> {
    scraped
        .all("systemd_unit_load_state", &[("name", unit)])
        .next()
        .map(|sample| sample.labels["load_state"].clone())
}
