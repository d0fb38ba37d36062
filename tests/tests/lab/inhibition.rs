//! What the shipped `alertmanager.yml` holds back, and what it must not: asked of a real Alertmanager.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Result, ensure};
use evenkeel_tests::{
    alerting::{Ports, Wiring},
    alertmanager::Alertmanager,
    http, namespace,
    process::free_port,
    wait::wait_for,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::trial;

type Labels = BTreeMap<String, String>;
/// Of each alert, by its labels.
type States = BTreeMap<Labels, String>;

const SOON: Duration = Duration::from_secs(20);

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("inhibition_is_by_host_and_rule", by_host_and_rule)]
}

async fn by_host_and_rule() -> Result<()> {
    let dir = namespace::place("inhibition")?;
    let token = dir.join("webhook.token");
    fs::write(&token, "nobody listens")?;
    let ports = Ports {
        exporter: free_port()?,
        remediator: free_port()?,
        prometheus: free_port()?,
        alertmanagers: vec![free_port()?],
    };
    let files = Wiring { ports: &ports, token: &token, hurry: true, people: None }.write(&dir)?;
    let at = Alertmanager::start(&files.alertmanager, ports.alertmanagers[0]).await?;

    // Exporter and remediator of a host have different ports: `instance` never decides.
    let running = alert("RemediationInProgress", "vps1", "none", &[("remediation_rule", "disk-high")]);
    let about = |rule, point| [("remediation_rule", rule), ("mountpoint", point)];
    let alerts = [
        (running.clone(), "active"),
        // A repair runs: its page waits, on this host and by this rule alone. What the remediator gets never waits.
        (alert("HostDiskStillHigh", "vps1", "warning", &about("disk-high", "/")), "suppressed"),
        (alert("HostDiskAlmostFull", "vps1", "critical", &about("disk-high", "/")), "suppressed"),
        (alert("HostDiskHigh", "vps1", "info", &about("disk-high", "/")), "active"),
        (alert("HostDiskStillHigh", "vps2", "warning", &about("disk-high", "/")), "active"),
        (
            alert("SystemdUnitStillFailed", "vps1", "warning", &[("remediation_rule", "unit-failed")]),
            "active",
        ),
        // Without a rule: nothing that repairs is about it.
        (alert("HostInodesHigh", "vps1", "warning", &[("mountpoint", "/")]), "active"),
        (alert("SomebodyElses", "vps1", "critical", &[]), "active"),
        // Of several alerts about a filesystem the worst is enough; about that filesystem.
        (alert("HostDiskAlmostFull", "vps3", "critical", &about("disk-high", "/")), "active"),
        (alert("HostDiskStillHigh", "vps3", "warning", &about("disk-high", "/")), "suppressed"),
        (alert("HostDiskFillingUp", "vps3", "warning", &[("mountpoint", "/")]), "suppressed"),
        (alert("HostDiskStillHigh", "vps3", "warning", &about("disk-high", "/srv")), "active"),
        (alert("HostDiskFillingUp", "vps3", "warning", &[("mountpoint", "/srv")]), "suppressed"),
        (alert("HostDiskFillingUp", "vps2", "warning", &[("mountpoint", "/srv")]), "active"),
    ];
    let url = format!("{}/api/v2/alerts", at.url());
    let sent: Vec<Value> = alerts.iter().map(|(alert, _)| alert.clone()).collect();
    http::post_json(&url, &Value::from(sent)).await?;
    let mut expected: States = BTreeMap::new();
    for (alert, state) in &alerts {
        expected.insert(labels(alert)?, (*state).to_owned());
    }
    are(&at, &expected).await?;

    // The repair has ended: what was held back about it is held back no longer, where nothing worse fires.
    let mut ended = running;
    ended["endsAt"] = json!("2020-01-01T00:00:00Z");
    ended["startsAt"] = json!("2019-01-01T00:00:00Z");
    http::post_json(&url, &json!([ended])).await?;
    expected.remove(&labels(&ended)?);
    let almost = alert("HostDiskAlmostFull", "vps1", "critical", &about("disk-high", "/"));
    expected.insert(labels(&almost)?, "active".to_owned());
    are(&at, &expected).await
}

/// As Prometheus sends it: with the port of whichever binary it is about.
fn alert(name: &str, host: &str, severity: &str, labels: &[(&str, &str)]) -> Value {
    let port = if name.starts_with("Remediation") { 19848 } else { 19847 };
    let mut all = json!({
        "alertname": name, "host": host, "severity": severity, "instance": format!("{host}:{port}"),
    });
    for (label, value) in labels {
        all[label] = json!(value);
    }
    json!({ "labels": all })
}

fn labels(alert: &Value) -> Result<Labels> {
    Ok(serde_json::from_value(alert["labels"].clone())?)
}

/// Waits until Alertmanager has exactly these alerts in these states.
async fn are(at: &Alertmanager, expected: &States) -> Result<()> {
    wait_for("Alertmanager to hold these back and no others", SOON, async || {
        let mut states: States = BTreeMap::new();
        for alert in at.alerts().await? {
            let state = alert["status"]["state"].as_str().unwrap_or_default();
            states.insert(labels(&alert)?, state.to_owned());
        }
        let differing: Vec<_> =
            states.iter().filter(|(labels, state)| expected.get(*labels) != Some(*state)).collect();
        ensure!(differing.is_empty() && states.len() == expected.len(), "{differing:?} of {}", states.len());
        Ok(())
    })
    .await
}
