//! The two that are compared: each is started, told of an alert, crashed and asked what it says of its own work.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    binaries::{Remediator, Surroundings},
    engine::Engine,
    http, namespace,
    process::{Process, free_port},
    systemd_host::SystemdHost,
    tools,
    wait::wait_for,
};
use reqwest::Client;
use serde_json::{Value, json};

use super::HOLD;

/// Longer than anything here takes.
pub(super) const LONG: Duration = Duration::from_secs(120);

/// As shipped, but for what a fresh lab would have to wait for (grace), what its neighbours cause (load, packages), and the
/// hold, which is seconds here instead of a minute. `FILESYSTEM` is the one disk that may be pruned.
const RULES: &str = r#"
policy: {mode: auto, deletion: cache, gates: {grace: 0s, engine_grace: 0s, load: 1000, stall: 100%, package_manager: false}}
rules:
  - name: unit-failed
    match: ['alertname="unit-failed"']
    target: {unit: name, allow: ["effect-*.service"]}
    limits: [1/5m, 3/1h, 6/24h]
    steps: [{unit_restart: {reset_failed: once}}]
    verify: {active_for: HOLD, within: 1m}
  - name: container-unhealthy
    match: ['alertname="container-unhealthy"']
    target: {container: name, allow: ["effect-*"]}
    limits: [1/15m, 3/6h]
    steps: [container_restart]
    verify: {healthy_for: HOLD, within: 1m}
  - name: disk-high
    match: ['alertname="disk-high"']
    target: {filesystem: name, allow: ["FILESYSTEM"]}
    needed: {usage_above: 85%}
    limits: [1/15m, 3/6h, 5/24h]
    steps: [{build_cache_prune: {unused_for: 48h}}, {build_cache_prune: {all: true}}]
    verify: {usage_below: 80%, within: 1m, hold: HOLD}
"#;

/// The commands that anybody would write. `systemctl` is the host's own, on the host.
const COMMANDS: [(&str, &str); 3] = [
    ("unit-failed", "exec nsenter --target HOST --mount --pid -- systemctl restart \"$1\""),
    ("container-unhealthy", "exec docker restart \"$1\""),
    ("disk-high", "exec docker builder prune -af"),
];

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Evenkeel,
    Plain,
}

impl Kind {
    /// Also what the targets are named after, which are each handler's own.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Evenkeel => "evenkeel",
            Self::Plain => "webhook",
        }
    }
}

/// One alert about one target.
#[derive(Clone)]
pub(super) struct Alert {
    /// The rule of ours and the hook of theirs that it is for.
    pub(super) rule: &'static str,
    pub(super) target: String,
}

impl Alert {
    fn delivery(&self, status: &str) -> Value {
        let labels = json!({"alertname": self.rule, "name": self.target, "host": "lab"});
        json!({
            "version": "4", "status": status, "receiver": "handler", "groupKey": "{}", "truncatedAlerts": 0,
            "groupLabels": labels, "commonLabels": labels, "commonAnnotations": {}, "externalURL": "http://127.0.0.1:9093",
            "alerts": [{
                "status": status, "labels": labels, "annotations": {}, "fingerprint": "feed",
                "startsAt": "2026-01-01T00:00:00Z", "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "",
            }],
        })
    }
}

/// A running handler. Dropping it ends it.
pub(super) struct Handler {
    of: Of,
    port: u16,
    client: Client,
}

enum Of {
    Evenkeel(Remediator),
    Plain { process: Process, dir: PathBuf, engine: Vec<(String, String)>, said: AtomicUsize },
}

impl Handler {
    /// Starts one that knows nothing yet, for this host and engine.
    pub(super) async fn start(kind: Kind, host: &SystemdHost, engine: &Engine) -> Result<Self> {
        let dir = namespace::place(kind.name())?;
        let port = free_port()?;
        let of = match kind {
            Kind::Evenkeel => {
                let config = dir.join("remediator.yml");
                let server = format!(
                    "identity: {{hosts: [lab]}}\nserver: {{auth: none, listen: [\"127.0.0.1:{port}\"]}}\nstate: {{dir: state}}"
                );
                let rules = RULES.replace("HOLD", &format!("{}s", HOLD.as_secs()));
                let rules = rules.replace("FILESYSTEM", &engine.disk().path().display().to_string());
                fs::write(&config, server + &rules)?;
                let around = Surroundings { bus: Some(host.bus_address()), docker: Some(engine.host()) };
                Of::Evenkeel(Remediator::start(&dir, port, &config, &around).await?)
            }
            Kind::Plain => {
                write_hooks(&dir, host.pid().await?)?;
                let engine: Vec<(String, String)> = engine
                    .client()?
                    .get_envs()
                    .filter_map(|(name, value)| {
                        Some((name.to_str()?.to_owned(), value?.to_str()?.to_owned()))
                    })
                    .collect();
                let process = Process::start("webhook", &dir, webhook(&dir, port, &engine)?)?;
                Of::Plain { process, dir, engine, said: AtomicUsize::new(0) }
            }
        };
        let mut handler = Self { of, port, client: http::client()? };
        handler.answers().await?;
        Ok(handler)
    }

    /// Delivers that the alert fires; answers whether there was an answer in time.
    pub(super) async fn fires(&self, alert: &Alert, patience: Duration) -> Result<bool> {
        let request = self.client.post(self.url(alert)).json(&alert.delivery("firing")).timeout(patience);
        let Ok(answer) = request.send().await else { return Ok(false) };
        match &self.of {
            Of::Evenkeel(_) => ensure!(answer.status().is_success(), "answered {}", answer.status()),
            Of::Plain { said, .. } => {
                said.fetch_add(usize::from(answer.status().is_success()), Ordering::SeqCst);
            }
        }
        Ok(true)
    }

    /// Delivers that the alert is resolved.
    pub(super) async fn is_resolved(&self, alert: &Alert) -> Result<()> {
        let request = self.client.post(self.url(alert)).json(&alert.delivery("resolved")).timeout(LONG);
        let answer = request.send().await?;
        ensure!(answer.status().is_success(), "answered {}", answer.status());
        Ok(())
    }

    /// Kills it (SIGKILL), and starts it again with what it left behind.
    pub(super) async fn crash(&mut self) -> Result<()> {
        match &mut self.of {
            Of::Evenkeel(remediator) => {
                remediator.crash()?;
                remediator.restart().await?;
            }
            Of::Plain { process, dir, engine, .. } => {
                process.kill()?;
                *process = Process::start("webhook", dir, webhook(dir, self.port, engine)?)?;
            }
        }
        self.answers().await
    }

    /// Waits until it has nothing under way.
    pub(super) async fn is_quiet(&self) -> Result<()> {
        wait_for("the handler to be done", LONG, async || {
            match &self.of {
                Of::Evenkeel(remediator) => {
                    let open: Vec<Value> = history(remediator)
                        .await?
                        .into_iter()
                        .filter(|one| one["phase"] != "ended")
                        .collect();
                    ensure!(open.is_empty(), "{open:?}");
                }
                Of::Plain { process, .. } => {
                    let running = children(process.id())?;
                    ensure!(running.is_empty(), "{running} run");
                }
            }
            Ok(())
        })
        .await
    }

    /// How often it has said that a target is well, or made well.
    pub(super) async fn successes(&self) -> Result<usize> {
        match &self.of {
            Of::Evenkeel(remediator) => {
                let history = history(remediator).await?;
                let well = |one: &&Value| one["outcome"] == "succeeded" || one["outcome"] == "not_needed";
                Ok(history.iter().filter(well).count())
            }
            Of::Plain { said, .. } => Ok(said.load(Ordering::SeqCst)),
        }
    }

    fn url(&self, alert: &Alert) -> String {
        match self.of {
            Of::Evenkeel(_) => format!("http://127.0.0.1:{}/api/v1/alerts", self.port),
            Of::Plain { .. } => format!("http://127.0.0.1:{}/hooks/{}", self.port, alert.rule),
        }
    }

    /// Evenkeel's start waits for that itself.
    async fn answers(&mut self) -> Result<()> {
        let Of::Plain { process, .. } = &mut self.of else { return Ok(()) };
        let url = format!("http://127.0.0.1:{}/", self.port);
        wait_for("webhook to answer", LONG, async || {
            process.check_alive()?;
            http::get(&url).await
        })
        .await
        .map(drop)
    }
}

async fn history(remediator: &Remediator) -> Result<Vec<Value>> {
    let lines = remediator.cli(&["history", "--json", "--limit", "1000"]).await?;
    lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn write_hooks(dir: &Path, host: u32) -> Result<()> {
    let mut hooks = Vec::new();
    for (name, command) in COMMANDS {
        let script = dir.join(format!("{name}.sh"));
        fs::write(&script, format!("#!/bin/sh\n{}\n", command.replace("HOST", &host.to_string())))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        hooks.push(json!({
            "id": name,
            "execute-command": script,
            // Only so does its answer say what became of the command.
            "include-command-output-in-response": true,
            "pass-arguments-to-command": [{"source": "payload", "name": "alerts.0.labels.name"}],
            "trigger-rule": {"match": {
                "type": "value", "value": "firing", "parameter": {"source": "payload", "name": "status"},
            }},
        }));
    }
    fs::write(dir.join("hooks.json"), Value::from(hooks).to_string()).context("cannot write the hooks")
}

fn webhook(dir: &Path, port: u16, engine: &[(String, String)]) -> Result<Command> {
    let mut command = tools::command(tools::program("webhook")?);
    command.envs(engine.iter().map(|(name, value)| (name, value)));
    command.arg("-verbose").arg("-hooks").arg(dir.join("hooks.json")).args([
        "-ip",
        "127.0.0.1",
        "-port",
        &port.to_string(),
    ]);
    Ok(command)
}

/// The children of all threads of a process.
fn children(pid: u32) -> Result<String> {
    let mut all = String::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        // A thread may end meanwhile.
        all += fs::read_to_string(task.path().join("children")).unwrap_or_default().trim();
    }
    Ok(all)
}
