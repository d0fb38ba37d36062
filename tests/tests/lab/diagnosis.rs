//! Services that fail of what no restart cures, by the names and the cures of the operations documents (case 22): each is seen
//! with its cause, none is restarted, the cure is told, and what was cured is started again.

use std::fs;

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{binaries::Surroundings, redis_server, systemd_host::SystemdHost, wait::wait_for};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::{
    closed_loop::{ClosedLoop, SOON, Setup},
    shared, trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("diagnosis_refuses_what_no_restart_cures_and_tells_the_cure", refuses_and_tells)]
}

const EXECUTION: &str = "quantum-execution.service";
const RL_MONITOR: &str = "quantum-rl-monitor.service";
const CLM: &str = "quantum-clm.service";
const RISK_SAFETY: &str = "quantum-risk-safety.service";
const PORTFOLIO: &str = "quantum-portfolio-intelligence.service";

/// Each service with its unit file, and the cause and a part of the cure that must be told.
const SERVICES: &[(&str, &str, &str, &str)] = &[
    (
        EXECUTION,
        "[Service]\nProtectSystem=strict\nProtectHome=read-only\nExecStart=/bin/sh -c 'echo event >/home/qt/quantum_trader/runtime/disk_buffer && exec sleep 600'\n",
        "read_only_filesystem",
        "ReadWritePaths=/home/qt/quantum_trader/runtime ",
    ),
    (
        RL_MONITOR,
        "[Service]\nUser=qt\nExecStart=/bin/sh -c 'echo step,reward >/var/log/rl_monitor.csv && exec sleep 600'\n",
        "permission_denied",
        "let qt use /var/log/rl_monitor.csv ",
    ),
    (
        CLM,
        "[Service]\nReadOnlyPaths=/\nExecStartPre=/bin/mkdir -p /app/models\nExecStart=/bin/sleep 600\n",
        "read_only_filesystem",
        "have it write elsewhere",
    ),
    (
        RISK_SAFETY,
        "[Service]\nUser=qt\nExecStart=/usr/bin/python3 -m microservices.risk_safety.main\n",
        "module_not_found",
        "Environment=PYTHONPATH=",
    ),
    (
        PORTFOLIO,
        "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec=10\nExecStart=/usr/bin/python3 -c 'import redis, time; redis.Redis(host=\"quantum_redis\").ping(); time.sleep(600)'\n",
        "name_resolution",
        "give quantum_redis an alias in /etc/hosts (127.0.0.1 quantum_redis)",
    ),
];

const REMEDIATOR: &str = r#"
policy: {gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, storm: {targets: 1000}, mode: auto, limits: {S2: [50/1h]}}
rules:
  - name: unit-failed
    match: ['alertname="SystemdUnitFailed"']
    target: {unit: name, allow: ["quantum-*.service"]}
    limits: [50/1h]
    cooldown: 0s
    steps: [unit_restart: {reset_failed: once}]
    verify: {active_for: 2s, within: 30s}
  - name: unit-looping
    match: ['alertname="SystemdRestartLoop"']
    target: {unit: name, allow: ["quantum-*.service"]}
    limits: [50/1h]
    steps: [collect_report, notify]
"#;

async fn refuses_and_tells() -> Result<()> {
    let engine = shared::engine().await?;
    let host = SystemdHost::start(engine.clone()).await?;
    let around = Surroundings { bus: Some(host.bus_address()), docker: Some(engine.host()) };
    let redis = redis_server::on_host(&host).await?;
    provoke(&host).await?;
    let at = ClosedLoop::start(Setup { around, remediator: REMEDIATOR, ..Setup::default() }).await?;
    for (unit, _, cause, _) in SERVICES {
        wait_for(&format!("the cause of {unit}"), SOON, async || {
            let scrape = at.exporter.scrape().await?;
            let about = [("name", *unit)];
            let told = scrape.all("systemd_service_failure_cause", &about);
            let causes: Vec<_> = told.map(|sample| sample.labels["cause"].as_str()).collect();
            ensure!(causes == [*cause], "{causes:?} and not {cause}");
            Ok(())
        })
        .await?;
    }
    for (unit, _, cause, cure) in SERVICES.iter().filter(|(unit, ..)| *unit != PORTFOLIO) {
        is_refused(&at, &host, unit, cause, cure).await?;
    }
    a_loop_is_reported(&at, &host).await?;
    let writes = "[Service]\nReadWritePaths=/home/qt/quantum_trader/runtime\n";
    cured_is_restarted(&at, &host, EXECUTION, writes).await?;
    let path = "[Service]\nEnvironment=\"PYTHONPATH=/home/qt/quantum_trader\"\n";
    cured_is_restarted(&at, &host, RISK_SAFETY, path).await?;
    // The document's own fix, and the service comes up by its own Restart=.
    host.exec(&["sh", "-c", "echo '127.0.0.1 quantum_redis' >>/etc/hosts"]).await?;
    wait_for("the name to resolve for its service", SOON, async || {
        ensure!(host.property(PORTFOLIO, "SubState").await? == "running");
        Ok(())
    })
    .await?;
    drop(redis);
    Ok(())
}

async fn provoke(host: &SystemdHost) -> Result<()> {
    let prepare = "useradd --system qt
        code=/home/qt/quantum_trader/microservices/risk_safety
        mkdir -p /home/qt/quantum_trader/runtime $code
        echo 'import time; time.sleep(600)' >$code/main.py";
    host.exec(&["sh", "-ec", prepare]).await?;
    for (unit, text, ..) in SERVICES {
        host.install_unit(unit, text).await?;
    }
    for (unit, ..) in SERVICES {
        host.exec(&["sh", "-c", "systemctl start \"$1\" || true", "sh", unit]).await?;
    }
    Ok(())
}

/// Nothing is called, and people hear why and what to do.
async fn is_refused(at: &ClosedLoop, host: &SystemdHost, unit: &str, cause: &str, cure: &str) -> Result<()> {
    at.fires("SystemdUnitFailed", ("name", unit)).await?;
    let ended = |one: &Value| one["phase"] == "ended";
    let record = at.remediation("the refusal", ("unit-failed", unit), ended).await?;
    ensure!(record["outcome"] == "blocked" && record["reason"] == "restart_cannot_cure", "{record:#}");
    let why = &record["before"]["unit"]["why"];
    ensure!(why["cause"] == cause, "{record:#}");
    let starts = host.starts(unit).await?;
    ensure!(starts == 1, "{unit} was started {starts} times: by the test, and by nobody else");
    let told = at.told.wait_for("people to hear of it", SOON, |one| one["target"] == unit).await?;
    let text = told["text"].as_str().context("a message has a text")?;
    ensure!(text.contains("a restart cannot cure it, a person is needed") && text.contains(cure), "{text}");
    let explained = at.remediator.cli(&["explain", "unit-failed", unit]).await?;
    ensure!(explained.contains("no (restart_cannot_cure)") && explained.contains(cure), "{explained}");
    Ok(())
}

async fn a_loop_is_reported(at: &ClosedLoop, host: &SystemdHost) -> Result<()> {
    // While it happens to run nobody can tell what it failed of, nor before the journal has its words.
    for state in ["running", "auto-restart"] {
        wait_for(&format!("it to be {state}"), SOON, async || {
            let seen = host.property(PORTFOLIO, "SubState").await?;
            ensure!(seen == state, "it is {seen}");
            Ok(())
        })
        .await?;
    }
    host.exec(&["journalctl", "--sync"]).await?;
    let alert = json!({"alertname": "SystemdRestartLoop", "instance": "127.0.0.1:1", "name": PORTFOLIO});
    at.deliver(alert).await?;
    let ended = |one: &Value| one["phase"] == "ended";
    let record = at.remediation("the report", ("unit-looping", PORTFOLIO), ended).await?;
    ensure!(record["outcome"] == "reported", "{record:#}");
    let told = at.told.wait_for("the message", SOON, |one| one["target"] == PORTFOLIO).await?;
    let text = told["text"].as_str().context("a message has a text")?;
    ensure!(text.contains("no address for the name quantum_redis"), "{text}");
    ensure!(text.contains("Cure: ") && text.contains("127.0.0.1 quantum_redis"), "{text}");
    let steps = record["steps"].as_array().into_iter().flatten();
    let report = steps.filter_map(|step| step["detail"].as_str()?.strip_prefix("report ")).next();
    let report = fs::read_to_string(report.context("there is a report")?)?;
    ensure!(report.contains("cause: no address for the name quantum_redis (name_resolution)"), "{report}");
    ensure!(
        report.contains("journal:\n") && report.contains("Temporary failure in name resolution"),
        "{report}"
    );
    Ok(())
}

/// The document's own fix, as a drop-in. Only then is the service restarted, and runs.
async fn cured_is_restarted(at: &ClosedLoop, host: &SystemdHost, unit: &str, text: &str) -> Result<()> {
    let folder = format!("/etc/systemd/system/{unit}.d");
    // Nothing is looked at while the cure is half made.
    at.remediator.cli(&["pause", "--reason", "a cure"]).await?;
    // The lab's /etc is its own copy, which the remediator sees: there the file is as young as on the host.
    fs::create_dir_all(&folder)?;
    fs::write(format!("{folder}/cure.conf"), text)?;
    host.exec(&["mkdir", "-p", &folder]).await?;
    host.write_file(&format!("{folder}/cure.conf"), text).await?;
    host.systemctl(&["daemon-reload"]).await?;
    at.remediator.cli(&["resume"]).await?;
    let record = at
        .remediation("the restart after the cure", ("unit-failed", unit), |one| one["outcome"] == "succeeded")
        .await?;
    let changed = record["before"]["unit"]["why"]["changed"].as_str().unwrap_or_default();
    ensure!(changed.contains("cure.conf has changed since"), "{record:#}");
    ensure!(host.property(unit, "ActiveState").await? == "active");
    ensure!(host.starts(unit).await? == 2, "by the test, and by the one repair");
    let scrape = at.exporter.scrape().await?;
    let told = scrape.all("systemd_service_failure_cause", &[("name", unit)]).count();
    ensure!(told == 0, "what runs fails of nothing");
    Ok(())
}
