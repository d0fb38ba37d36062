//! What Alertmanager says of an alert now: whether it is still there, and whether people have silenced it. Asked only
//! about what has waited; a delivery itself says that its alert is active.

use std::{collections::BTreeMap, time::Duration};

use hyper::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};

use super::{Fault, answer};
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
            let Status { state, silenced_by, inhibited_by } = &found.status;
            standing = match (silenced_by.first(), inhibited_by.first()) {
                (Some(silence), _) => {
                    Standing::Muted(format!("silenced in Alertmanager by {}", cut(silence)))
                }
                (None, Some(alert)) => {
                    Standing::Muted(format!("inhibited in Alertmanager by the alert {}", cut(alert)))
                }
                _ if state == "suppressed" => Standing::Muted("suppressed in Alertmanager".to_owned()),
                _ => return Standing::Active,
            };
        }
        standing
    }
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

async fn ask<T: DeserializeOwned>(request: reqwest::RequestBuilder, metrics: &Metrics) -> Option<T> {
    let read = answer(request).await.and_then(|(status, body)| match status {
        StatusCode::OK => serde_json::from_slice(&body).map_err(|_| Fault::Unreadable),
        status => Err(Fault::Status(status, String::new())),
    });
    metrics.asked("alertmanager", read.as_ref().err());
    read.inspect_err(|fault| tracing::warn!(%fault, "Alertmanager: going on without it")).ok()
}
