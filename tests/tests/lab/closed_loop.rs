//! The whole loop for one test: exporter, Prometheus, Alertmanager and remediator, wired by the
//! shipped files, around whatever host the test names. What a test asks of it is answered by the
//! programs themselves: Prometheus's alerts, the remediator's own `history --json`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use evenkeel_tests::{
    alerting::{Ports, Wiring},
    alertmanager::Alertmanager,
    binaries::{Exporter, Remediator, Surroundings},
    http, namespace,
    process::free_port,
    prometheus::Prometheus,
    receiver::Receiver,
    wait::wait_for,
};
use serde_json::Value;
use tokio::try_join;

/// Long enough for an alert to fire, be delivered and be acted on when the machine is busy; every
/// wait ends as soon as the fact is there.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// `server`, `state` and `notify` of every remediator here, and limits that never bind unless a test
/// sets its own.
const PREAMBLE: &str = r#"
server: {listen: ["127.0.0.1:PORT"], bearer_token_files: [webhook.token]}
state: {dir: state}
notify: [{webhook: {url: "TOLD", on: [escalated]}}]
"#;

const TOKEN: &str = "a token that only this test knows";

/// What a loop is made of.
#[derive(Default)]
pub(crate) struct Setup<'a> {
    /// The host.
    pub(crate) around: Surroundings,
    /// The exporter's configuration; without one its defaults hold.
    pub(crate) exporter: &'a str,
    /// The remediator's configuration without `server`, `state` and `notify`; PROMETHEUS and ALERTMANAGER stand for their
    /// addresses.
    pub(crate) remediator: &'a str,
    /// Alertmanagers that do not know each other, beside the first.
    pub(crate) more_alertmanagers: usize,
}

/// A running loop. Dropping it ends its programs.
pub(crate) struct ClosedLoop {
    pub(crate) exporter: Exporter,
    pub(crate) remediator: Remediator,
    pub(crate) prometheus: Prometheus,
    pub(crate) alertmanagers: Vec<Alertmanager>,
    /// Whom the remediator tells when it gives up.
    pub(crate) told: Receiver,
    /// Whom Alertmanager calls.
    pub(crate) people: Receiver,
    dir: PathBuf,
}

impl ClosedLoop {
    /// Starts all of it and waits until each part answers.
    pub(crate) async fn start(setup: Setup<'_>) -> Result<Self> {
        let dir = namespace::place("loop")?;
        let (told, people) = (Receiver::start().await?, Receiver::start().await?);
        let mut alertmanagers = vec![free_port()?];
        for _ in 0..setup.more_alertmanagers {
            alertmanagers.push(free_port()?);
        }
        let ports = Ports {
            exporter: free_port()?,
            remediator: free_port()?,
            prometheus: free_port()?,
            alertmanagers,
        };
        fs::write(dir.join("webhook.token"), TOKEN)?;
        let preamble = PREAMBLE.replace("PORT", &ports.remediator.to_string()).replace("TOLD", &told.url());
        let config = dir.join("remediator.yml");
        let local = |port: Option<&u16>| format!("http://127.0.0.1:{}", port.unwrap_or(&0));
        let rest = setup
            .remediator
            .replace("PROMETHEUS", &local(Some(&ports.prometheus)))
            .replace("ALERTMANAGER", &local(ports.alertmanagers.first()));
        fs::write(&config, preamble + &rest)?;
        let exporter = dir.join("exporter.yml");
        fs::write(&exporter, setup.exporter)?;
        let exporter = (!setup.exporter.is_empty()).then_some(exporter.as_path());
        let (token, people_url) = (dir.join("webhook.token"), people.url());
        let wiring = Wiring { ports: &ports, token: &token, hurry: true, people: Some(&people_url) };
        let files = wiring.write(&dir)?;
        let (exporter, remediator, prometheus, alertmanagers) = try_join!(
            Exporter::start(&dir, ports.exporter, exporter, &setup.around),
            Remediator::start(&dir, ports.remediator, &config, &setup.around),
            Prometheus::start(&files.prometheus, ports.prometheus),
            start_alertmanagers(&files.alertmanager, &ports.alertmanagers),
        )?;
        Ok(Self { exporter, remediator, prometheus, alertmanagers, told, people, dir })
    }

    /// Its folder, with the remediator's `state/` in it.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every remediation of a rule and target, newest first, as `history --json` shows them.
    pub(crate) async fn history(&self, rule: &str, target: &str) -> Result<Vec<Value>> {
        let arguments = ["history", "--json", "--limit", "1000", "--rule", rule, "--target", target];
        let lines = self.remediator.cli(&arguments).await?;
        lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// Waits for a remediation that `wanted` accepts.
    pub(crate) async fn remediation(
        &self,
        what: &str,
        (rule, target): (&str, &str),
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        wait_for(what, SOON, async || {
            let history = self.history(rule, target).await?;
            let seen: Vec<String> = history.iter().map(short).collect();
            history.into_iter().find(&wanted).with_context(|| format!("{rule} on {target}: {seen:?}"))
        })
        .await
    }

    /// Waits until an alert about this target fires in Prometheus.
    pub(crate) async fn fires(&self, alert: &str, label: (&str, &str)) -> Result<()> {
        wait_for(&format!("{alert} about {} to fire", label.1), SOON, async || {
            match self.state(alert, label).await?.as_deref() {
                Some("firing") => Ok(()),
                other => bail!("it is {other:?}; the exporter says {}", self.about(label.1).await),
            }
        })
        .await
    }

    /// Waits until an alert about this target is neither in Prometheus nor in any Alertmanager.
    pub(crate) async fn resolves(&self, alert: &str, label: (&str, &str)) -> Result<()> {
        wait_for(&format!("{alert} about {} to resolve", label.1), SOON, async || {
            if let Some(state) = self.state(alert, label).await? {
                bail!("it is {state} in Prometheus; the exporter says {}", self.about(label.1).await);
            }
            for alertmanager in &self.alertmanagers {
                let alerts = alertmanager.alerts().await?;
                ensure!(!alerts.iter().any(|one| is_about(one, alert, label)), "Alertmanager has it");
            }
            Ok(())
        })
        .await
    }

    /// Whether an alert about this target was pending or firing at any time until now.
    pub(crate) async fn ever_fired(&self, alert: &str, (label, value): (&str, &str)) -> Result<bool> {
        let series = format!("ALERTS{{alertname=\"{alert}\",{label}=\"{value}\"}}[1h]");
        Ok(!self.prometheus.query(&format!("count_over_time({series})")).await?.is_empty())
    }

    /// The alerts about this target that people were called for.
    pub(crate) fn calls_about(&self, label: (&str, &str)) -> Vec<String> {
        let deliveries = self.people.received();
        let alerts = deliveries.iter().filter_map(|delivery| delivery["alerts"].as_array()).flatten();
        alerts
            .filter(|alert| alert["labels"][label.0] == label.1)
            .filter_map(|alert| Some(alert["labels"]["alertname"].as_str()?.to_owned()))
            .collect()
    }

    /// Sends one alert as Alertmanager would, with the token.
    pub(crate) async fn deliver(&self, labels: Value) -> Result<()> {
        let body = serde_json::json!({
            "version": "4", "status": "firing", "groupKey": "{}", "groupLabels": {}, "commonLabels": {},
            "alerts": [{"status": "firing", "labels": labels, "fingerprint": "feed"}],
        });
        let url = format!("{}/api/v1/alerts", self.remediator.url());
        let answer = http::client()?.post(url).bearer_auth(TOKEN).json(&body).send().await?;
        ensure!(answer.status().is_success(), "the remediator answered {}", answer.status());
        Ok(())
    }

    async fn state(&self, alert: &str, label: (&str, &str)) -> Result<Option<String>> {
        let alerts = self.prometheus.alerts().await?;
        let found = alerts.iter().find(|one| is_about(one, alert, label));
        Ok(found.and_then(|one| Some(one["state"].as_str()?.to_owned())))
    }

    /// What the exporter says of a thing, for messages about waits in vain.
    async fn about(&self, name: &str) -> String {
        let page = http::get(&format!("{}/metrics", self.exporter.url())).await;
        let page = page.unwrap_or_else(|error| format!("{error:#}"));
        let lines = page.lines().filter(|line| line.contains(name) || line.contains("_up"));
        lines.filter(|line| !line.starts_with('#')).take(20).collect::<Vec<_>>().join("; ")
    }
}

async fn start_alertmanagers(config: &Path, ports: &[u16]) -> Result<Vec<Alertmanager>> {
    let mut started = Vec::new();
    for port in ports {
        started.push(Alertmanager::start(config, *port).await?);
    }
    Ok(started)
}

fn is_about(alert: &Value, name: &str, (label, value): (&str, &str)) -> bool {
    alert["labels"]["alertname"] == name && alert["labels"][label] == value
}

/// A remediation in a few words, for messages about waits in vain.
fn short(record: &Value) -> String {
    let words: Vec<String> = ["phase", "outcome", "reason", "detail", "deliveries"]
        .iter()
        .filter(|key| !record[**key].is_null())
        .map(|key| format!("{key} {}", record[*key]))
        .collect();
    words.join(", ")
}

/// The acting steps of a remediation, as recorded.
pub(crate) fn acting_steps(record: &Value) -> Vec<&Value> {
    let steps = record["steps"].as_array().into_iter().flatten();
    steps.filter(|step| step["class"] != "S0").collect()
}
