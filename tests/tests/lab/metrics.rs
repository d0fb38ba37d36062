//! The list that rules, dashboards and documents are checked against is what the remediator really publishes. What the
//! exporter does is pinned in golden.rs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    binaries::Remediator, exposition::Exposition, http, namespace, process::free_port,
    prometheus::Prometheus, tools, wait::wait_for,
};
use libtest_mimic::Trial;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use crate::{shared, trial};

const LIST: &str = include_str!("../../golden/metric-names.txt");

/// What is ours; the rest of the list is Prometheus' and Alertmanager's own.
const OURS: &str = "evenkeel_";

/// Those of a fleet; fleet.rs looks at them.
const THE_FLEETS: &str = "evenkeel_remediator_fleet_";

/// The exporter's, which the golden exposition cannot show; expectations.rs looks at it.
const THE_EXPORTERS: &str = "evenkeel_environment_expected";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("metrics_of_the_remediator_are_those_on_the_list", those_on_the_list)]
}

async fn those_on_the_list() -> Result<()> {
    let host = shared::host().await?;
    let around = shared::surroundings().await?;
    host.install_unit("metrics-failing.service", "[Service]\nExecStart=/bin/false\n").await?;
    host.systemctl(&["start", "metrics-failing.service"]).await?;

    let dir = namespace::place("metrics")?;
    let port = free_port()?;
    let config = dir.join("remediator.yml");
    // One to ask, which scrapes nothing.
    let (prometheus_config, prometheus_port) = (dir.join("prometheus.yml"), free_port()?);
    fs::write(&prometheus_config, "scrape_configs: []\n")?;
    let prometheus = Prometheus::start(&prometheus_config, prometheus_port).await?;
    let text = REMEDIATOR.replace("PORT", &port.to_string()).replace("PROMETHEUS", &prometheus.url());
    fs::write(&config, text)?;
    fs::write(dir.join("web.yml"), "http_server_config: {headers: {X-Frame-Options: deny}}\n")?;
    let remediator = Remediator::start(&dir, port, &config, &around).await?;
    // One alert that is repaired, one that means nothing here: each counter counts something.
    let alert = |labels| json!({"status": "firing", "labels": labels});
    let delivery = json!({"version": "4", "alerts": [
        alert(json!({"alertname": "Metrics", "host": "lab", "name": "metrics-failing.service"})),
        alert(json!({"alertname": "Metrics", "host": "elsewhere", "name": "metrics-failing.service"})),
    ]});
    host.write_file("/etc/systemd/system/metrics-failing.service", "[Service]\nExecStart=/bin/sleep 600\n")
        .await?;
    host.systemctl(&["daemon-reload"]).await?;
    http::post_json(&format!("{}/api/v1/alerts", remediator.url()), &delivery).await?;

    let missing = wait_for("every listed metric", Duration::from_secs(60), async || {
        let seen = labels_by_name(&remediator.scrape().await?);
        let missing: Vec<&str> = LIST
            .lines()
            .filter(|line| line.starts_with(OURS) && !line.starts_with(THE_EXPORTERS))
            .filter(|line| !line.starts_with(THE_FLEETS))
            .filter(|line| {
                let mut words = line.split_whitespace();
                let name = words.next().unwrap_or_default();
                let labels: BTreeSet<String> = words.map(str::to_owned).collect();
                seen.get(name).is_none_or(|known| !known.contains(&labels))
            })
            .collect();
        ensure!(missing.is_empty(), "not published, or with other labels: {missing:#?}");
        Ok(missing)
    })
    .await;
    let broken = promtool(&remediator.url()).await;
    host.systemctl(&["stop", "metrics-failing.service"]).await?;
    missing.map(drop).and(broken)
}

/// A rule that acts on one unit of this test.
const REMEDIATOR: &str = r#"
identity: {hosts: [lab]}
server: {auth: none, listen: ["127.0.0.1:PORT"], web_config_file: web.yml}
state: {dir: state}
reconcile: {interval: 1s}
prometheus: {url: "PROMETHEUS"}
policy: {gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, mode: auto}
rules:
  - name: metrics
    match: ['alertname="Metrics"']
    target: {unit: name, allow: [metrics-failing.service]}
    steps: [unit_restart: {reset_failed: once}]
    verify: {active_for: 1s, within: 20s}
  - name: metrics-disk
    mode: plan
    match: ['alertname="NeverSent"']
    target: {filesystem: mountpoint, allow: [/]}
    steps: [build_cache_prune]
    verify: {usage_below: 80%, within: 5m}
"#;

/// The sets of label names that each metric is published with.
fn labels_by_name(scrape: &Exposition) -> BTreeMap<String, BTreeSet<BTreeSet<String>>> {
    let mut names = BTreeMap::<String, BTreeSet<BTreeSet<String>>>::new();
    for sample in scrape.samples() {
        names.entry(sample.name.clone()).or_default().insert(sample.labels.keys().cloned().collect());
    }
    names
}

/// `promtool check metrics` finds nothing to complain about.
pub(crate) async fn promtool(url: &str) -> Result<()> {
    let text = http::get(&format!("{url}/metrics")).await?;
    let mut command = tools::command(tools::program("promtool")?);
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = tokio::process::Command::from(command).spawn()?;
    let mut input = child.stdin.take().context("the pipe was asked for")?;
    input.write_all(text.as_bytes()).await?;
    drop(input);
    let output = child.wait_with_output().await?;
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    ensure!(output.status.success() && said.trim().is_empty(), "promtool check metrics on {url}: {said}");
    Ok(())
}
