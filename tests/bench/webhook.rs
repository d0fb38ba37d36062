//! Deliveries accepted durably, beside a handler that keeps nothing, and what a huge one costs.

use std::{
    fs::{self, File},
    io::{Seek as _, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::{
    binaries::{Remediator, Surroundings},
    http, namespace,
    process::{Process, free_port},
    tools,
    wait::wait_for,
};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    program::{memory_mib, size_mib},
    table::{Row, ms, quantile, quantiles, short},
};

/// Connections that post at the same time, each one delivery after the other.
const SENDERS: usize = 8;
/// Alerts in a delivery.
const SIZES: [usize; 3] = [1, 50, 1000];
/// How long they post: long enough that what a handler puts off meets the deliveries that come after.
const POSTED: Duration = Duration::from_secs(5);
/// What memory may be above idle afterwards, in MiB: an allocator gives back whole pages only.
const KEPT: f64 = 4.0;
/// Of the time until a delivery of these sizes is answered, in milliseconds.
const ANSWERED: f64 = 100.0;

pub(crate) async fn measure() -> Result<Vec<Row>> {
    let dir = namespace::place("bench-remediator")?;
    let remediator = remediator(&dir).await?;
    let url = format!("{}/api/v1/alerts", remediator.url());
    let (plain_url, plain) = plain(&dir).await?;
    let pid = remediator.process().id();
    // The program itself is read from its file as it is needed: one delivery first, so that this is no part of what the
    // huge one costs.
    post(&http::client()?, &url, &delivery(0, 1).to_string()).await?;
    is_idle(&remediator).await?;
    let idle = memory_mib(pid, "VmRSS")?;
    let what = "Remediator resident memory, idle after its first delivery";
    let mut rows = vec![Row::new(what, format!("{} MiB", short(idle)))];
    // First, while nothing else has left its traces in the memory.
    rows.extend(huge(&remediator, &url, idle).await?);
    rows.push(flush(&dir)?);
    for alerts in SIZES {
        let (rate, mut times) = load(&url, alerts).await?;
        is_idle(&remediator).await?;
        let (plain_rate, mut plain_times) = load(&plain_url, alerts).await?;
        is_at_rest(plain.id()).await?;
        let what = format!("Deliveries accepted durably, {alerts} alert(s) each, {SENDERS} connections");
        let beside =
            format!("webhook, which keeps nothing: {plain_rate:.0}/s, {}", quantiles(&mut plain_times));
        let row = Row::new(what, format!("{rate:.0}/s")).beside(beside);
        rows.push(row.at_least(rate, plain_rate.round(), "/s"));
        let row = Row::new("Of these, until the answer", quantiles(&mut times));
        let late = quantile(&mut times, 0.99);
        rows.push(if alerts < 1000 { row.at_most(late, ANSWERED, "ms") } else { row });
    }
    rows.push(Row::new("Remediator binary", format!("{:.1} MiB", size_mib("evenkeel-remediator")?)));
    Ok(rows)
}

/// One that knows one rule, which tells nobody.
pub(crate) async fn remediator(dir: &Path) -> Result<Remediator> {
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
    Remediator::start(dir, port, &config, &nowhere).await
}

/// The package `webhook` as it is when nothing is asked of it: it answers before the command runs, which does nothing.
async fn plain(dir: &Path) -> Result<(String, Process)> {
    let port = free_port()?;
    let hooks = dir.join("hooks.json");
    fs::write(&hooks, json!([{"id": "bench", "execute-command": "/bin/true"}]).to_string())?;
    let mut command = tools::command(tools::program("webhook")?);
    command.arg("-hooks").arg(hooks).args(["-ip", "127.0.0.1", "-port", &port.to_string()]);
    let mut process = Process::start("webhook", dir, command)?;
    wait_for("webhook to answer", Duration::from_secs(20), async || {
        process.check_alive()?;
        http::get(&format!("http://127.0.0.1:{port}/")).await
    })
    .await?;
    Ok((format!("http://127.0.0.1:{port}/hooks/bench"), process))
}

/// What bounds everything that is durable: one block, written over in place and flushed.
fn flush(dir: &Path) -> Result<Row> {
    const TIMES: usize = 200;
    let mut file = File::create(dir.join("flush"))?;
    let block = [0x5a; 4096];
    let mut times = Vec::new();
    for _ in 0..TIMES {
        file.rewind()?;
        file.write_all(&block)?;
        let begun = Instant::now();
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    Ok(Row::new(
        "A flush of the disk with the remediator's state (fdatasync of 4 KiB)",
        quantiles(&mut times),
    ))
}

/// One delivery that is as large as Alertmanager makes none by itself.
async fn huge(remediator: &Remediator, url: &str, idle: f64) -> Result<[Row; 2]> {
    const ALERTS: usize = 10_000;
    let pid = remediator.process().id();
    let body = delivery(0, ALERTS).to_string();
    let start = Instant::now();
    post(&http::client()?, url, &body).await?;
    let took = start.elapsed().as_secs_f64() * 1000.0;
    is_idle(remediator).await?;
    let (after, most) = (memory_mib(pid, "VmRSS")?, memory_mib(pid, "VmHWM")?);
    #[expect(clippy::cast_precision_loss)]
    let megabytes = body.len() as f64 / 1e6;
    let what = format!("One delivery of {ALERTS} alerts ({megabytes:.1} MB), accepted");
    let accepted = Row::new(what, ms(took));
    let memory = Row::new(
        "Resident memory when all of it is decided",
        format!("{} MiB ({} at most, {} before)", short(after), short(most), short(idle)),
    );
    Ok([
        accepted.at_most(took, 1000.0, "ms"),
        memory.at_most(after, ((idle + KEPT) * 10.0).round() / 10.0, "MiB"),
    ])
}

/// Waits until everything that was accepted is decided.
pub(crate) async fn is_idle(remediator: &Remediator) -> Result<()> {
    wait_for("all to be decided", Duration::from_secs(300), async || {
        let depth = remediator.scrape().await?.value("evenkeel_remediator_queue_depth", &[]);
        let depth = depth.context("no depth of the queue")?;
        ensure!(depth < 0.5, "{depth} are open");
        Ok(())
    })
    .await
}

/// Waits until the commands that a handler has put off have all run.
async fn is_at_rest(pid: u32) -> Result<()> {
    let mut before = None;
    wait_for("the handler's commands to have run", Duration::from_secs(60), async || {
        sleep(Duration::from_millis(500)).await;
        // Of itself and of the children it has waited for, in ticks.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("no name in it")?;
        let now: Vec<String> = fields.split_whitespace().skip(11).take(4).map(str::to_owned).collect();
        let last = before.replace(now.clone());
        ensure!(last == Some(now), "it is still at work");
        Ok(())
    })
    .await
}

/// Deliveries per second and how long each took.
pub(crate) async fn load(url: &str, alerts: usize) -> Result<(f64, Vec<Duration>)> {
    let clients = (0..SENDERS).map(|_| http::client()).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    let mut senders = tokio::task::JoinSet::new();
    for (sender, client) in clients.into_iter().enumerate() {
        let (url, body) = (url.to_owned(), delivery(sender * alerts, alerts).to_string());
        senders.spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < POSTED {
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
    Ok((rate, times))
}

pub(crate) async fn post(client: &Client, url: &str, body: &str) -> Result<()> {
    let request = client.post(url).header("content-type", "application/json").body(body.to_owned());
    let response = request.send().await?;
    ensure!(response.status() == 200, "{}: {}", response.status(), response.text().await?);
    Ok(())
}

/// A delivery as Alertmanager makes it, of the size that its alerts have in life.
pub(crate) fn delivery(first: usize, alerts: usize) -> Value {
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
