//! Deliveries accepted durably, and what a huge one costs.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use evenkeel_tests::{
    binaries::{Remediator, Surroundings},
    http, namespace,
    process::free_port,
};
use reqwest::Client;
use serde_json::{Value, json};

use crate::{
    program::{memory_mib, size_mib},
    table::{Row, quantile},
};

/// Connections that post at the same time, each one delivery after the other.
const SENDERS: usize = 8;

pub(crate) async fn measure() -> Result<Vec<Row>> {
    let dir = namespace::place("bench-remediator")?;
    let port = free_port()?;
    let config = dir.join("remediator.yml");
    fs::write(
        &config,
        format!(
            "identity: {{hosts: [bench]}}\nserver: {{auth: none, listen: [\"127.0.0.1:{port}\"]}}\nstate: {{dir: state}}\nrules:\n  \
             - name: bench\n    match: ['alertname=\"Bench\"']\n    target: {{unit: name, allow: [\"bench-*.service\"]}}\n    \
             steps: [notify]\n"
        ),
    )?;
    // No bus: what is accepted ends as blocked at once, as on a host in trouble.
    let nowhere = Surroundings {
        bus: Some(format!("unix:path={}", dir.join("no-bus").display())),
        docker: Some(format!("unix://{}", dir.join("no-docker").display())),
    };
    let remediator = Remediator::start(&dir, port, &config, &nowhere).await?;
    let url = format!("{}/api/v1/alerts", remediator.url());
    let pid = remediator.process().id();
    let idle = format!("{:.1} MiB", memory_mib(pid, "VmRSS")?);
    let mut rows = vec![Row::new("Remediator resident memory, idle", idle)];
    for (alerts, deliveries) in [(1, 500), (100, 100)] {
        let (rate, p99) = load(&url, alerts, deliveries).await?;
        let what = format!("Deliveries accepted durably, {alerts} alert(s) each, {SENDERS} senders");
        rows.push(Row::new(what, format!("{rate:.0}/s, p99 {p99:.1} ms")));
    }
    let body = delivery(0, 10_000).to_string();
    let start = Instant::now();
    post(&http::client()?, &url, &body).await?;
    rows.push(Row::new(
        format!("One delivery of 10,000 alerts ({:.1} MB)", body.len() as f64 / 1e6),
        format!("{} ms, {:.0} MiB at most", start.elapsed().as_millis(), memory_mib(pid, "VmHWM")?),
    ));
    rows.push(Row::new("Remediator binary", format!("{:.1} MiB", size_mib("evenkeel-remediator")?)));
    Ok(rows)
}

/// Deliveries per second and their 99th percentile in milliseconds.
async fn load(url: &str, alerts: usize, deliveries: usize) -> Result<(f64, f64)> {
    let start = Instant::now();
    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        let (url, body) = (url.to_owned(), delivery(sender * alerts, alerts).to_string());
        senders.spawn(async move {
            let client = http::client()?;
            let mut times = Vec::new();
            for _ in 0..deliveries {
                let start = Instant::now();
                post(&client, &url, &body).await?;
                times.push(start.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times: Vec<Duration> = Vec::new();
    while let Some(sent) = senders.join_next().await {
        times.extend(sent??);
    }
    #[expect(clippy::cast_precision_loss)]
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    Ok((rate, quantile(&mut times, 0.99)))
}

async fn post(client: &Client, url: &str, body: &str) -> Result<()> {
    let request = client.post(url).header("content-type", "application/json").body(body.to_owned());
    let response = request.send().await?;
    ensure!(response.status() == 200, "{}: {}", response.status(), response.text().await?);
    Ok(())
}

/// A delivery as Alertmanager makes it, of the size that its alerts have in life.
fn delivery(first: usize, alerts: usize) -> Value {
    let alert = |number: usize| {
        json!({
            "status": "firing",
            "labels": {
                "alertname": "Bench", "host": "bench", "instance": "bench:19847", "job": "evenkeel-exporter",
                "name": format!("bench-{number}.service"), "remediate": "true", "severity": "info",
                "remediation_rule": "bench", "state": "failed", "type": "service",
            },
            "annotations": {
                "summary": "A unit has failed.",
                "description": "The unit is in the failed state for more than a minute, systemd does not start it again.",
            },
            "startsAt": "2026-01-01T00:00:00.000000000Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "http://127.0.0.1:9090/graph?g0.expr=systemd_unit_state&g0.tab=1",
            "fingerprint": format!("{number:016x}"),
        })
    };
    json!({
        "version": "4", "groupKey": "{}:{}", "truncatedAlerts": 0, "status": "firing", "receiver": "evenkeel",
        "groupLabels": {}, "commonLabels": {}, "commonAnnotations": {}, "externalURL": "http://127.0.0.1:9093",
        "alerts": (first..first + alerts).map(alert).collect::<Vec<_>>(),
    })
}
