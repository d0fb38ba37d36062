//! Three hosts with a systemd and an address of their own, two gateways, and four Alertmanagers, two of which know each
//! other: each alert is done once, on the host that it is for. A host that is cut off finds its alerts when it is back.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    alertmanager::Alertmanager,
    binaries::{Surroundings, built},
    http, namespace,
    process::{Process, free_port},
    redis_server::RedisServer,
    systemd_host::SystemdHost,
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::{shared, trial};

/// On a busy machine everything takes its time.
const SOON: Duration = Duration::from_secs(90);
const UNIT: &str = "fleet-shop.service";
/// Where the hosts find Redis.
const HUB: &str = "10.99.7.254";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("fleet_alerts_are_done_once_on_the_host_that_they_are_for", done_once)]
}

/// One host of the fleet.
struct Host {
    name: String,
    systemd: SystemdHost,
    agent: Process,
    config: PathBuf,
}

impl Host {
    /// Boots it, gives it an address on the bridge, and starts its agent there: on no port.
    async fn start(number: u8, redis: u16) -> Result<Self> {
        let systemd = SystemdHost::start(shared::engine().await?).await?;
        let name = format!("web{number}");
        let pid = systemd.pid().await?.to_string();
        ip(&["link", "add", &link(number), "type", "veth", "peer", "name", "eth0", "netns", &pid]).await?;
        ip(&["link", "set", &link(number), "master", "fleet0", "up"]).await?;
        let inside =
            format!("ip link set lo up; ip addr add 10.99.7.{number}/24 dev eth0; ip link set eth0 up");
        let mut command = tools::command("nsenter");
        command.args(["--net", "--target", &pid, "sh", "-c", &inside]);
        tools::run(command, Duration::from_secs(10)).await?;
        systemd.install_unit(UNIT, "[Service]\nExecStart=/bin/sleep 600\n").await?;
        systemd.systemctl(&["start", UNIT]).await?;

        let dir = namespace::place("fleet-host")?;
        let config = dir.join("remediator.yml");
        let text = AGENT.replace("HOST", &name).replace("HUB", &format!("{HUB}:{redis}"));
        let text = text.replace("DIR", &dir.display().to_string());
        fs::write(&config, text)?;
        let mut command = tools::command("nsenter");
        command.args(["--net", "--target", &pid]).arg(built("evenkeel-remediator")?);
        command.arg("serve").arg("--role=agent").arg("--config.file").arg(&config);
        around(&systemd).apply(&mut command);
        let agent = Process::start("agent", &dir, command)?;
        Ok(Self { name, systemd, agent, config })
    }

    /// The unit dies; the alert about that.
    async fn fail(&self) -> Result<Value> {
        self.systemd.systemctl(&["kill", "--signal=KILL", UNIT]).await?;
        Ok(json!({
            "labels": {"alertname": "SystemdUnitFailed", "host": self.name, "name": UNIT},
            "annotations": {"summary": "a unit failed"},
        }))
    }

    /// What its agent did, by its own journal.
    async fn acted(&self) -> Result<Vec<Value>> {
        let mut command = tools::command(built("evenkeel-remediator")?);
        command.args(["history", "--json", "--config.file"]).arg(&self.config);
        let told = tools::run(command, Duration::from_secs(20)).await?;
        let records = told.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        Ok(records.into_iter().filter(|record| record["acted"] == true).collect())
    }

    /// Waits until its agent has repaired the unit so often.
    async fn has_repaired(&self, times: usize) -> Result<()> {
        wait_for("a repair on the host", SOON, async || {
            let acted = self.acted().await?;
            let good = acted.iter().filter(|record| record["outcome"] == "succeeded").count();
            ensure!(good == times, "{}: {acted:#?}\n{}", self.name, tail(&self.agent.log()));
            Ok(())
        })
        .await
    }
}

async fn done_once() -> Result<()> {
    ip(&["link", "add", "fleet0", "type", "bridge"]).await?;
    ip(&["addr", "add", &format!("{HUB}/24"), "dev", "fleet0"]).await?;
    ip(&["link", "set", "fleet0", "up"]).await?;
    let bind = ["--save", "", "--protected-mode", "no", "--bind", "127.0.0.1", HUB];
    let redis = RedisServer::start_with(&bind).await?;
    let mut hosts = Vec::new();
    for number in 1..=3 {
        hosts.push(Host::start(number, redis.port()).await?);
    }
    let gateways = [Gateway::start("gw1", redis.port()).await?, Gateway::start("gw2", redis.port()).await?];
    let [one, two] = &gateways;

    // Two that know each other, and two that know nobody: each tells one gateway or the other.
    let alone = [
        Alertmanager::start(&one.told_by()?, free_port()?).await?,
        Alertmanager::start(&two.told_by()?, free_port()?).await?,
    ];
    let first = Alertmanager::start_clustered(&one.told_by()?, free_port()?, &[]).await?;
    let second = Alertmanager::start_clustered(&two.told_by()?, free_port()?, &[&first]).await?;
    for one in [&first, &second] {
        one.wait_settled().await?;
    }
    let alertmanagers: Vec<&Alertmanager> = alone.iter().chain([&first, &second]).collect();
    let tell = async |alerts: &[Value]| -> Result<()> {
        for alertmanager in &alertmanagers {
            http::post_json(&format!("{}/api/v2/alerts", alertmanager.url()), &json!(alerts)).await?;
        }
        Ok(())
    };

    one.sees("all hosts", |fleet| fleet["total"] == 3 && fleet["gone"] == 0).await?;
    let mut alerts = Vec::new();
    for host in &hosts {
        alerts.push(host.fail().await?);
    }
    alerts.push(json!({"labels": {"alertname": "SystemdUnitFailed", "host": "nowhere", "name": UNIT}}));
    tell(&alerts).await?;
    for host in &hosts {
        host.has_repaired(1).await?;
    }
    // What is for nobody is seen by everybody who looks.
    let fleet = two.sees("the name that nobody has", |fleet| fleet["unclaimed"][0][0] == "nowhere").await?;
    ensure!(fleet["unclaimed_count"] == 1, "{fleet:#}");
    let told = two.cli(&["fleet", "status"]).await?;
    ensure!(told.contains("fleet of 3 hosts: 3 there, 0 gone"), "{told}");

    // One is cut off. Its alert waits, and it counts as gone.
    ip(&["link", "set", &link(2), "down"]).await?;
    one.sees("a host to be gone", |fleet| fleet["gone_hosts"][0][0] == "web2").await?;
    let mut alert = hosts[1].fail().await?;
    // Another alert: the first one is not told again so soon.
    alert["labels"]["again"] = json!("cut off");
    tell(&[alert]).await?;
    one.sees("its alert to wait", |fleet| fleet["backlog"]["hosts"][0][0] == "web2").await?;
    ip(&["link", "set", &link(2), "up"]).await?;
    hosts[1].has_repaired(2).await?;
    one.sees("nothing to wait", |fleet| fleet["backlog"]["alerts"] == 0 && fleet["gone"] == 0).await?;

    // A pause holds all of them, on whichever it is ordered.
    two.cli(&["pause", "--fleet", "--reason", "a rollout", "--for", "10m"]).await?;
    let mut alert = hosts[2].fail().await?;
    alert["labels"]["again"] = json!("paused");
    tell(&[alert]).await?;
    wait_for("the pause to hold a repair back", SOON, async || {
        let mut command = tools::command(built("evenkeel-remediator")?);
        command.args(["history", "--json", "--limit", "1", "--config.file"]).arg(&hosts[2].config);
        let told = tools::run(command, Duration::from_secs(20)).await?;
        let last: Value = serde_json::from_str(told.lines().next().context("no history")?)?;
        ensure!(last["reason"] == "fleet_paused", "{last:#}");
        Ok(())
    })
    .await?;
    two.cli(&["resume", "--fleet"]).await?;
    hosts[2].has_repaired(2).await?;

    for (host, starts) in hosts.iter().zip([2, 3, 3]) {
        let acted = host.acted().await?.len();
        ensure!(acted + 1 == starts, "{}: {acted} remediations acted", host.name);
        let started = host.systemd.starts(UNIT).await?;
        ensure!(started == starts, "{}: started {started} times, not {starts}", host.name);
    }
    Ok(())
}

/// A gateway: no agent, and nothing of its own that matters.
struct Gateway {
    process: Process,
    port: u16,
    config: PathBuf,
}

impl Gateway {
    async fn start(name: &str, redis: u16) -> Result<Self> {
        let (dir, port) = (namespace::place("fleet-gateway")?, free_port()?);
        let config = dir.join("remediator.yml");
        let text = GATEWAY
            .replace("HOST", name)
            .replace("HUB", &format!("{HUB}:{redis}"))
            .replace("PORT", &port.to_string());
        fs::write(&config, text)?;
        let mut command = tools::command(built("evenkeel-remediator")?);
        command.arg("serve").arg("--role=gateway").arg("--config.file").arg(&config);
        let mut process = Process::start("gateway", &dir, command)?;
        wait_for("a gateway", SOON, async || {
            process.check_alive()?;
            http::get(&format!("http://127.0.0.1:{port}/-/healthy")).await
        })
        .await?;
        Ok(Self { process, port, config })
    }

    /// The configuration of an Alertmanager that tells this one.
    fn told_by(&self) -> Result<PathBuf> {
        let path = namespace::place("fleet-alertmanager")?.join("alertmanager.yml");
        fs::write(&path, ALERTMANAGER.replace("PORT", &self.port.to_string()))?;
        Ok(path)
    }

    async fn cli(&self, arguments: &[&str]) -> Result<String> {
        let mut command = tools::command(built("evenkeel-remediator")?);
        command.args(arguments).arg("--config.file").arg(&self.config);
        tools::run(command, Duration::from_secs(20)).await
    }

    /// Waits until the fleet is as it should be, and answers how it is.
    async fn sees(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_for(what, SOON, async || {
            let fleet: Value = serde_json::from_str(&self.cli(&["fleet", "status", "--json"]).await?)?;
            ensure!(is_so(&fleet), "{fleet:#}\n{}", tail(&self.process.log()));
            Ok(fleet)
        })
        .await
    }
}

fn around(host: &SystemdHost) -> Surroundings {
    // No engine: nothing here is about containers.
    Surroundings { bus: Some(host.bus_address()), docker: Some("unix:///nowhere/docker.sock".to_owned()) }
}

/// The outer end of a host's cable.
fn link(number: u8) -> String {
    format!("fleet-v{number}")
}

async fn ip(arguments: &[&str]) -> Result<String> {
    let mut command = tools::command("ip");
    command.args(arguments);
    tools::run(command, Duration::from_secs(10)).await
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

const AGENT: &str = r#"
identity: {hosts: [HOST]}
server: {auth: none, listen: ["unix:DIR/http.sock"]}
state: {dir: state}
reconcile: {interval: 1s}
policy: {gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, mode: auto, limits: {S2: [50/1h]}}
fleet:
  redis: {url: "redis://HUB"}
  heartbeat: 500ms
  lost_after: 3s
  timeout: 2s
  lease: 10s
  spread: 0s
  max_hosts_acting: 1
  stop_above_unhealthy: 100%
rules:
  - name: unit-failed
    match: ['alertname="SystemdUnitFailed"']
    target: {unit: name, allow: [fleet-shop.service]}
    limits: [50/1h]
    cooldown: 0s
    steps: [unit_restart: {reset_failed: once}]
    verify: {active_for: 2s, within: 30s}
"#;

const GATEWAY: &str = r#"
identity: {hosts: [HOST]}
server: {auth: none, listen: ["127.0.0.1:PORT"]}
state: {dir: state}
fleet: {redis: {url: "redis://HUB"}, heartbeat: 500ms, lost_after: 3s}
"#;

const ALERTMANAGER: &str = r#"
route: {receiver: fleet, group_by: ["..."], group_wait: 1s, group_interval: 1s, repeat_interval: 1h}
receivers:
  - name: fleet
    webhook_configs: [{url: "http://127.0.0.1:PORT/api/v1/alerts"}]
"#;
