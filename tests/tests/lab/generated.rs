//! What `evenkeel-remediator generate` writes for others, tried on them: HAProxy before a real engine, amtool on the
//! routes. The polkit rule is tried with the units that it is for (`packaged`).

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    alerting::replaced,
    binaries::{Exporter, Remediator, Surroundings, built},
    http, namespace,
    process::{Process, free_port},
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;
use reqwest::Method;
use serde_json::Value;

use crate::{shared, trial};

const SOON: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(20);
const TOKEN: &str = "a token that only this test knows";

const CONFIG: &str = r#"
server: {listen: ["127.0.0.1:PORT"], bearer_token_files: [webhook.token]}
state: {dir: state}
policy: {gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, mode: auto, deletion: cache}
rules:
  - name: container-unhealthy
    match: ['alertname="ContainerUnhealthy"']
    target: {container: name, allow: ["proxied-*"]}
    limits: [9/5m]
    steps: [container_restart: {stop_timeout: 1s}]
    verify: {healthy_for: 2s, within: 40s}
  - name: disk-high
    match: ['alertname="HostDiskHigh"']
    target: {filesystem: mountpoint, allow: ["/"]}
    steps: [build_cache_prune: {all: true}]
    verify: {usage_below: 80%, within: 5m}
"#;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("generated_proxy_lets_through_what_the_rules_need", proxy_lets_through_what_the_rules_need),
        trial("generated_routes_are_alertmanagers", routes_are_alertmanagers),
    ]
}

/// An HAProxy with what `generate haproxy` wrote.
struct Proxy {
    dir: PathBuf,
    _process: Process,
}

impl Proxy {
    async fn start(dir: &Path, config: &Path, engine: &Path) -> Result<Self> {
        // The lab's /etc is its own copy.
        let mut groups = OpenOptions::new().append(true).open("/etc/group")?;
        writeln!(groups, "evenkeel-exporter:x:64001:\nevenkeel-remediator:x:64002:")?;
        let text = generate(config, "haproxy").await?;
        let text = replaced(&text, "/run/docker.sock", &engine.display().to_string())?;
        let text = replaced(&text, "/run/evenkeel-docker-proxy/", &format!("{}/", dir.display()))?;
        let file = dir.join("docker-proxy.cfg");
        fs::write(&file, text)?;
        let mut command = tools::command(tools::program("haproxy")?);
        command.args(["-db", "-f"]).arg(&file);
        let mut process = Process::start("haproxy", dir, command)?;
        let proxy = dir.join("remediator.sock");
        wait_for("the proxy", LIMIT, async || {
            process.check_alive()?;
            ensure!(proxy.exists());
            Ok(())
        })
        .await?;
        Ok(Self { dir: dir.to_owned(), _process: process })
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.sock"))
    }

    fn around(&self, name: &str) -> Surroundings {
        Surroundings { bus: None, docker: Some(format!("unix://{}", self.socket(name).display())) }
    }

    /// The status of one call.
    async fn status(&self, name: &str, method: &str, path: &str, upgrade: bool) -> Result<u16> {
        http::client()?;
        let client = reqwest::Client::builder().unix_socket(self.socket(name)).timeout(LIMIT).build()?;
        let mut request = client.request(method.parse::<Method>()?, format!("http://docker{path}"));
        if upgrade {
            request = request.header("Connection", "Upgrade").header("Upgrade", "tcp");
        }
        Ok(request.send().await?.status().as_u16())
    }
}

async fn generate(config: &Path, what: &str) -> Result<String> {
    let mut command = tools::command(built("evenkeel-remediator")?);
    command.arg("--config.file").arg(config).args(["generate", what]);
    tools::run(command, LIMIT).await
}

fn write_config(dir: &Path, port: u16) -> Result<PathBuf> {
    fs::write(dir.join("webhook.token"), TOKEN)?;
    let config = dir.join("remediator.yml");
    fs::write(&config, CONFIG.replace("PORT", &port.to_string()))?;
    Ok(config)
}

/// Calls by the remediator, and whether they get through to the engine.
const CALLS: [(&str, &str, bool); 29] = [
    ("GET", "/_ping", true),
    ("HEAD", "/_ping", true),
    ("GET", "/v1.41/version", true),
    ("GET", "/v1.41/info", true),
    ("GET", "/v1.41/containers/json?all=1", true),
    ("GET", "/v1.41/containers/proxied-web/json", true),
    ("GET", "/v1.41/system/df", true),
    ("POST", "/v1.41/containers/proxied-web/restart?t=1", true),
    ("POST", "/build/prune?all=true", true),
    // Another container, another verb, another way to the same.
    ("POST", "/v1.41/containers/bystander/restart", false),
    ("POST", "/v1.41/containers/proxied-web/stop", false),
    ("POST", "/v1.41/containers/proxied-web/kill", false),
    ("POST", "/v1.41/containers/proxied-web/restart?signal=KILL", false),
    ("POST", "/v1.41/containers/proxied-web/restart/", false),
    ("POST", "/v1.41/containers/proxied-web%2f..%2fbystander/restart", false),
    ("POST", "//containers/bystander/restart", false),
    ("POST", "/v1.41/containers/proxied-web/exec", false),
    ("POST", "/v1.41/containers/create", false),
    ("POST", "/v1.41/containers/prune", false),
    ("DELETE", "/v1.41/containers/proxied-web?force=1", false),
    ("POST", "/v1.41/volumes/prune", false),
    ("POST", "/v1.41/images/prune", false),
    ("DELETE", "/v1.41/images/lab/busybox", false),
    ("POST", "/v1.41/build?remote=x", false),
    ("POST", "/session", false),
    // What is inside of containers.
    ("GET", "/v1.41/containers/proxied-web/logs?stdout=1", false),
    ("GET", "/v1.41/containers/proxied-web/archive?path=/", false),
    ("GET", "/v1.41/containers/proxied-web/export", false),
    ("PUT", "/v1.41/containers/proxied-web/archive?path=/", false),
];

async fn proxy_lets_through_what_the_rules_need() -> Result<()> {
    let engine = shared::engine().await?;
    let dir = namespace::place("proxy")?;
    let port = free_port()?;
    let config = write_config(&dir, port)?;
    let proxy = Proxy::start(&dir, &config, &engine.socket()).await?;
    // Healthy until the file is there, and again after a restart.
    let program = ["sh", "-c", "rm -f /sick; exec sleep 600"];
    engine.run_probed("proxied-web", "test ! -e /sick", &program).await?;
    engine.run_probed("bystander", "true", &["sleep", "600"]).await?;
    let started = engine.inspect("bystander", "{{.State.StartedAt}}").await?;

    for (method, path, allowed) in CALLS {
        let status = proxy.status("remediator", method, path, false).await?;
        let through = status != 403;
        ensure!(through == allowed, "{method} {path}: {status}");
        ensure!(!allowed || (200..300).contains(&status), "{method} {path}: {status}");
        // The exporter only looks.
        let status = proxy.status("exporter", method, path, false).await?;
        let looks = allowed && matches!(method, "GET" | "HEAD");
        ensure!((status != 403) == looks, "{method} {path} by the exporter: {status}");
    }
    ensure!(proxy.status("remediator", "GET", "/_ping", true).await? == 403, "it leaves HTTP");
    ensure!(engine.inspect("bystander", "{{.State.StartedAt}}").await? == started, "it was restarted");
    for denied in ["/volumes/prune", "/containers/prune", "bystander/restart", "proxied-web/exec"] {
        ensure!(engine.requests("POST", denied) == 0, "the engine was asked for {denied}");
    }

    let exporter = Exporter::start(&dir, free_port()?, None, &proxy.around("exporter")).await?;
    wait_for("docker through the proxy", SOON, async || {
        let page = exporter.scrape().await?;
        ensure!(page.value("docker_up", &[]) == Some(1.0));
        let health = [("name", "proxied-web"), ("status", "healthy")];
        ensure!(page.value("docker_container_health", &health) == Some(1.0), "it is not healthy");
        let usage = page.value("docker_disk_usage_last_success_timestamp_seconds", &[("object", "images")]);
        ensure!(usage.is_some_and(|at| at > 0.0), "no disk usage");
        Ok(())
    })
    .await?;

    engine.docker(&["exec", "proxied-web", "touch", "/sick"]).await?;
    wait_for("the container to be sick", SOON, async || {
        let health = engine.inspect("proxied-web", "{{.State.Health.Status}}").await?;
        ensure!(health == "unhealthy", "it is {health}");
        Ok(())
    })
    .await?;
    let remediator = Remediator::start(&dir, port, &config, &proxy.around("remediator")).await?;
    deliver(&remediator, "proxied-web").await?;
    let record = wait_for("the repair to end", SOON, async || {
        let lines = remediator.cli(&["history", "--json"]).await?;
        let record: Value = serde_json::from_str(lines.lines().next().context("no record")?)?;
        ensure!(record["phase"] == "ended", "{record}");
        Ok(record)
    })
    .await?;
    ensure!(record["outcome"] == "succeeded", "{record:#}");
    engine.docker(&["rm", "--force", "proxied-web", "bystander"]).await.map(drop)
}

async fn deliver(remediator: &Remediator, container: &str) -> Result<()> {
    let body = serde_json::json!({
        "version": "4", "status": "firing", "groupKey": "{}", "groupLabels": {}, "commonLabels": {},
        "alerts": [{"status": "firing", "fingerprint": "feed",
                    "labels": {"alertname": "ContainerUnhealthy", "name": container, "host": "localhost"}}],
    });
    let url = format!("{}/api/v1/alerts", remediator.url());
    let answer = http::client()?.post(url).bearer_auth(TOKEN).json(&body).send().await?;
    ensure!(answer.status().is_success(), "the remediator answered {}", answer.status());
    Ok(())
}

async fn routes_are_alertmanagers() -> Result<()> {
    let dir = namespace::place("routes")?;
    let config = write_config(&dir, 19848)?;
    let file = dir.join("alertmanager.yml");
    fs::write(&file, generate(&config, "alertmanager").await?)?;
    let amtool = |arguments: &[&str]| {
        let mut command = tools::command(tools::program("amtool")?);
        command.args(arguments);
        Ok::<_, anyhow::Error>(command)
    };
    let path = file.to_str().context("the lab's path is UTF-8")?;
    tools::run(amtool(&["check-config", path])?, LIMIT).await?;
    let both = "evenkeel-remediator,people";
    for (label, receivers) in [
        ("alertname=HostDiskHigh", both),
        ("alertname=ContainerUnhealthy", both),
        ("alertname=Other", "people"),
    ] {
        let flags = [format!("--config.file={path}"), format!("--verify.receivers={receivers}")];
        let test = ["config", "routes", "test", &flags[0], &flags[1], label];
        let said = tools::run(amtool(&test)?, LIMIT).await;
        ensure!(said.is_ok(), "{label} is not for {receivers}: {said:?}");
    }
    Ok(())
}
