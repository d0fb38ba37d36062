//! What the remediator begins, on a real systemd: never more than its budget however many alerts come, and how soon.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::{
    binaries::{Remediator, Surroundings},
    engine::{Engine, Options},
    http, namespace,
    process::free_port,
    systemd_host::SystemdHost,
    wait::wait_for,
};
use reqwest::Client;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{sleep, sleep_until},
};

use crate::{
    program::memory_mib,
    table::{Row, quantile, quantiles, short},
    webhook::is_idle,
};

/// Connections that alerts come over.
const SENDERS: u32 = 8;
/// Alerts about as many failed units, in one second,
const FLOOD: u32 = 500;
/// of which so many may be restarted in an hour.
const BUDGET: u32 = 20;
/// Of resident memory, in MiB.
const MEMORY: f64 = 32.0;
/// Restarts that are timed, one after the other.
const TIMED: u32 = 100;
/// From the alert to the action, in milliseconds.
const SOON: f64 = 50.0;

/// Fails until the cause is gone.
const UNIT: &str = "[Service]\nExecStart=/bin/sh -c 'test -e /run/mended && exec sleep infinity; exit 3'\n";

pub(crate) async fn measure() -> Result<Vec<Row>> {
    let engine = Arc::new(Engine::start(Options::default()).await?);
    let host = SystemdHost::start(engine).await?;
    for (kind, count) in [("flood", FLOOD), ("timed", TIMED)] {
        host.install_unit(&format!("{kind}@.service"), UNIT).await?;
        let units: Vec<String> = (0..count).map(|number| format!("{kind}@{number}.service")).collect();
        let arguments: Vec<&str> = ["start"].into_iter().chain(units.iter().map(String::as_str)).collect();
        // Those that fail at once make the command fail.
        host.systemctl(&arguments).await.ok();
        wait_for("the units to have failed", Duration::from_secs(60), async || {
            let states = host.property(&format!("{kind}@*.service"), "ActiveState").await?;
            let failed = states.split_whitespace().filter(|state| *state == "failed").count();
            ensure!(failed == count as usize, "{failed} of {count} have failed");
            Ok(())
        })
        .await?;
    }
    host.exec(&["touch", "/run/mended"]).await?;
    let mut rows = flood(&host).await?;
    rows.extend(latency(&host).await?);
    Ok(rows)
}

async fn remediator(host: &SystemdHost, budget: u32) -> Result<Remediator> {
    let dir = namespace::place("bench-starts")?;
    let port = free_port()?;
    let config = dir.join("remediator.yml");
    let text = format!(
        r#"
identity: {{hosts: [bench]}}
server: {{auth: none, listen: ["127.0.0.1:{port}"]}}
state: {{dir: state}}
policy:
  mode: auto
  gates: {{grace: 0s, engine_grace: 0s, load: 1000, stall: 100%, package_manager: false}}
  storm: {{targets: {FLOOD}}}
  limits: {{S2: [{budget}/1h]}}
rules:
  - name: bench
    match: ['alertname="Bench"']
    target: {{unit: name, allow: ["flood@*.service", "timed@*.service"]}}
    limits: [1/15m]
    steps: [unit_restart]
    verify: {{active_for: 1s, within: 30s}}
"#
    );
    fs::write(&config, text)?;
    // No Docker: nothing here is about it.
    let docker = Some(format!("unix://{}", dir.join("no-docker").display()));
    Remediator::start(&dir, port, &config, &Surroundings { bus: Some(host.bus_address()), docker }).await
}

/// One delivery for each alert, evenly over a second.
async fn flood(host: &SystemdHost) -> Result<Vec<Row>> {
    let remediator = remediator(host, BUDGET).await?;
    let before = host.starts("flood@*.service").await?;
    let begun = Instant::now();
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        let url = remediator.url();
        senders.spawn(async move {
            let client = http::client()?;
            for number in (sender..FLOOD).step_by(SENDERS as usize) {
                sleep_until((begun + Duration::from_secs(1) / FLOOD * number).into()).await;
                deliver(&client, &url, &format!("flood@{number}.service")).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(sent) = senders.join_next().await {
        sent??;
    }
    let delivered = begun.elapsed();
    is_idle(&remediator).await?;
    let starts = host.starts("flood@*.service").await? - before;
    let most = memory_mib(remediator.process().id(), "VmHWM")?;
    let text = format!(
        "{starts} starts; accepted in {} s, decided in {} s",
        short(delivered.as_secs_f64()),
        short(begun.elapsed().as_secs_f64())
    );
    let what = format!("{FLOOD} alerts about {FLOOD} failed services in a second, limit {BUDGET}/1h");
    let row = Row::new(what, text).must(&format!("exactly {BUDGET} starts"), starts == BUDGET as usize);
    let memory = Row::new("Resident memory during that, at most", format!("{} MiB", short(most)));
    Ok(vec![row, memory.at_most(most, MEMORY, "MiB")])
}

/// From sending the delivery until systemd begins, which says itself when that was, and until it is asked to, as it stands
/// in the history. Looking at the unit, and the report of the cause that is taken before the repair destroys the evidence,
/// are told apart.
async fn latency(host: &SystemdHost) -> Result<[Row; 2]> {
    let remediator = remediator(host, 10 * TIMED).await?;
    let client = http::client()?;
    let (mut times, mut called) = (Vec::new(), Vec::new());
    let mut looked = Duration::ZERO;
    for number in 0..TIMED {
        let unit = format!("timed@{number}.service");
        let sent = clock_gettime(ClockId::Monotonic);
        let sent_wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        deliver(&client, &remediator.url(), &unit).await?;
        // It is verified for a second; until then nobody else asks anything.
        sleep(Duration::from_secs(1)).await;
        is_idle(&remediator).await?;
        let begun: u64 = host.property(&unit, "InactiveExitTimestampMonotonic").await?.parse()?;
        let sent = Duration::new(sent.tv_sec.try_into()?, sent.tv_nsec.try_into()?);
        let took = Duration::from_micros(begun).checked_sub(sent);
        let took = took.ok_or_else(|| anyhow::anyhow!("{unit} was not restarted"))?;
        let looked_until_now = looking(&remediator).await?;
        times.push(took);
        let until_called = call_of(&remediator, "unit_restart").await?.saturating_sub(sent_wall);
        called.push(until_called.saturating_sub(looked_until_now - looked));
        looked = looked_until_now;
    }
    let started = Row::new("From an alert until systemd has begun the restart, idle", quantiles(&mut times));
    let late = quantile(&mut called, 0.99);
    let what = "From an alert until the restart is asked for, without looking at the unit and the report of the cause";
    let row = Row::new(what, quantiles(&mut called));
    Ok([started, row.at_most(late, SOON, "ms besides the probe")])
}

/// When the last remediation has called an action, since 1970.
async fn call_of(remediator: &Remediator, action: &str) -> Result<Duration> {
    let told = remediator.cli(&["history", "--json", "--limit", "1"]).await?;
    let last: Value = serde_json::from_str(&told)?;
    let steps = last["steps"].as_array().context("no steps")?;
    let step = steps.iter().find(|step| step["action"] == action).context("it was not called")?;
    Ok(Duration::from_millis(step["started_wall_ms"].as_u64().context("it has not begun")?))
}

/// How long it has looked at units and written reports until now.
async fn looking(remediator: &Remediator) -> Result<Duration> {
    let scrape = remediator.scrape().await?;
    let sum = |what: &str, label: (&str, &str)| {
        let name = format!("evenkeel_remediator_{what}_duration_seconds_sum");
        scrape.value(&name, &[label]).with_context(|| format!("no {name}"))
    };
    Ok(Duration::from_secs_f64(sum("probe", ("kind", "unit"))? + sum("step", ("action", "collect_report"))?))
}

async fn deliver(client: &Client, remediator: &str, unit: &str) -> Result<()> {
    let body = json!({
        "version": "4", "status": "firing", "groupKey": "{}", "groupLabels": {}, "commonLabels": {},
        "alerts": [{
            "status": "firing", "fingerprint": "feed",
            "labels": {"alertname": "Bench", "name": unit, "host": "bench"},
        }],
    });
    client.post(format!("{remediator}/api/v1/alerts")).json(&body).send().await?.error_for_status()?;
    Ok(())
}
