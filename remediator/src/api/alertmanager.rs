//! What Alertmanager says of an alert now: whether it is still there, and whether people have silenced it. Asked only
//! about what has waited; a delivery itself says that its alert is active. Also its configuration, for who checks where
//! alerts go, and the alert of a drill.

use std::{collections::BTreeMap, time::Duration};

use hyper::StatusCode;
use jiff::Timestamp;
use reqwest::RequestBuilder;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;

use super::{Api, Fault, answer};
use crate::{config::Config, journal::Record, metrics::Metrics, rules::Rule, webhook};

/// It keeps no alerts over a restart, and Prometheus sends them again within minutes.
const SETTLED: Duration = Duration::from_secs(300);

/// How an alert stands with Alertmanager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It fires.
    Active,
    /// It fires, and is silenced or inhibited: by what, for people.
    Muted(String),
    /// It is not there.
    Gone,
    /// Nobody knows: not configured, no answer, or only just restarted.
    Unknown,
}

/// The alerts of one rule.
pub struct Alerts {
    found: Vec<Found>,
    local: bool,
    /// Whether it has been up for long enough to have heard of every alert.
    settled: bool,
}

#[derive(Debug, Deserialize)]
struct Found {
    #[serde(default)]
    fingerprint: String,
    labels: BTreeMap<String, String>,
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Status {
    state: String,
    #[serde(default, rename = "silencedBy")]
    silenced_by: Vec<String>,
    #[serde(default, rename = "inhibitedBy")]
    inhibited_by: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Process {
    /// Since when it has been up.
    uptime: String,
    #[serde(default)]
    config: Configuration,
}

#[derive(Debug, Default, Deserialize)]
struct Configuration {
    /// As YAML, with `<secret>` in place of what is secret.
    #[serde(default)]
    original: String,
}

/// What Alertmanager has of a rule's alerts; nothing when it is not configured or does not say.
pub async fn alerts(config: &Config, rule: &Rule, metrics: &Metrics) -> Option<Alerts> {
    let api = config.alertmanager.as_ref()?;
    let mut query: Vec<(&str, String)> =
        rule.matchers.iter().map(|matcher| ("filter", matcher.to_string())).collect();
    query.extend(["active", "silenced", "inhibited"].map(|kind| (kind, "true".to_owned())));
    let found: Vec<Found> = ask(api.get("/api/v2/alerts").query(&query), metrics).await?;
    let process: Option<Process> = ask(api.get("/api/v2/status"), metrics).await;
    let settled = process.is_some_and(|process| {
        let since = process.uptime.parse::<Timestamp>().ok();
        let up = since.map(|since| Timestamp::now().as_second().saturating_sub(since.as_second()));
        up.is_some_and(|up| u64::try_from(up).is_ok_and(|up| up >= SETTLED.as_secs()))
    });
    Some(Alerts { found, local: api.is_local(), settled })
}

/// The configuration that it works with, as YAML. What is secret in it, it does not show.
pub(crate) async fn configuration(api: &Api, metrics: Option<&Metrics>) -> Result<String, Fault> {
    let process: Process = question(api.get("/api/v2/status"), metrics).await?;
    Ok(process.config.original)
}

/// The alerts that have this label, and how each stands.
pub(crate) async fn labelled(
    api: &Api,
    label: &str,
    value: &str,
) -> Result<Vec<(BTreeMap<String, String>, Standing)>, Fault> {
    let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
    let mut query = vec![("filter", format!("{label}=\"{quoted}\""))];
    query.extend(["active", "silenced", "inhibited"].map(|kind| (kind, "true".to_owned())));
    let found: Vec<Found> = question(api.get("/api/v2/alerts").query(&query), None).await?;
    Ok(found.into_iter().map(|found| (found.labels, found.status.standing())).collect())
}

/// Raises an alert that ends by itself, or ends one that was raised.
pub(crate) async fn raise(
    api: &Api,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<&str, String>,
    ends: Timestamp,
) -> Result<(), Fault> {
    let alert = json!([{"labels": labels, "annotations": annotations, "endsAt": ends.to_string()}]);
    match answer(api.post("/api/v2/alerts").json(&alert)).await? {
        (StatusCode::OK, _) => Ok(()),
        (status, _) => Err(Fault::Status(status, String::new())),
    }
}

/// How the alert of a remediation stands now.
pub async fn standing(config: &Config, rule: &Rule, record: &Record, metrics: &Metrics) -> Standing {
    alerts(config, rule, metrics)
        .await
        .map_or(Standing::Unknown, |alerts| alerts.standing(config, rule, record))
}

impl Alerts {
    /// How the alert of a remediation stands. Where several alerts name its target, one that is active is enough.
    pub fn standing(&self, config: &Config, rule: &Rule, record: &Record) -> Standing {
        let names_it = |labels: &BTreeMap<String, String>| {
            webhook::selected(config, labels, self.local)
                .is_some_and(|(found, target)| found.name == rule.name && target.name() == record.target)
        };
        let mut standing = if self.settled { Standing::Gone } else { Standing::Unknown };
        for found in &self.found {
            let same = !found.fingerprint.is_empty() && found.fingerprint == record.fingerprint;
            if !same && !names_it(&found.labels) {
                continue;
            }
            match found.status.standing() {
                Standing::Active => return Standing::Active,
                muted => standing = muted,
            }
        }
        standing
    }
}

impl Status {
    /// How an alert stands that is there.
    fn standing(&self) -> Standing {
        match (self.silenced_by.first(), self.inhibited_by.first()) {
            (Some(silence), _) => Standing::Muted(format!("silenced in Alertmanager by {}", cut(silence))),
            (None, Some(alert)) => {
                Standing::Muted(format!("inhibited in Alertmanager by the alert {}", cut(alert)))
            }
            _ if self.state == "suppressed" => Standing::Muted("suppressed in Alertmanager".to_owned()),
            _ => Standing::Active,
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

async fn ask<T: DeserializeOwned>(request: RequestBuilder, metrics: &Metrics) -> Option<T> {
    question(request, Some(metrics))
        .await
        .inspect_err(|fault| tracing::warn!(%fault, "Alertmanager: going on without it"))
        .ok()
}

async fn question<T: DeserializeOwned>(
    request: RequestBuilder,
    metrics: Option<&Metrics>,
) -> Result<T, Fault> {
    let read = answer(request).await.and_then(|(status, body)| match status {
        StatusCode::OK => serde_json::from_slice(&body).map_err(|_| Fault::Unreadable),
        status => Err(Fault::Status(status, String::new())),
    });
    if let Some(metrics) = metrics {
        metrics.asked("alertmanager", read.as_ref().err());
    }
    read
}
