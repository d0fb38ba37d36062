//! Alertmanager's webhook, version 4 (prometheus.io/docs/alerting/latest/configuration/#webhook_config), and Grafana's
//! of the same shape. Only `alerts[]` counts: the group's own status and labels say what one of its alerts says.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;

use crate::{
    config::Config,
    journal::Incoming,
    policy::DenyList,
    rules,
    rules::Rule,
    target::{Kind, Target},
};

/// A delivery's size at most, in bytes: 10,000 alerts are 6 to 8 MB.
pub const BODY_MAX: usize = 16 << 20;
/// One alert's labels at most, in bytes; longer ones are hostile.
const LABELS_MAX: usize = 64 << 10;
/// What is kept of an alert's labels at most, in bytes: enough to find the alert again, and thousands fill no disk.
const LABELS_KEPT: usize = 4 << 10;
/// And of each label's value, in characters.
const VALUE_KEPT: usize = 300;

/// One delivery.
#[derive(Debug, Deserialize)]
pub struct Delivery {
    #[serde(default)]
    version: String,
    alerts: Vec<Alert>,
}

/// One alert of a delivery.
#[derive(Debug, Deserialize)]
pub struct Alert {
    status: Status,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    fingerprint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Firing,
    Resolved,
}

/// Why a body is no delivery; answered with 400.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// Not JSON, or not of this shape.
    #[error("the body is no Alertmanager webhook: {0}")]
    Json(#[from] serde_json::Error),
    /// A version that does not exist yet.
    #[error("webhook version {0:?} is not known here: 4 (Alertmanager) and 1 (Grafana) are")]
    Version(String),
}

/// What an alert means here.
#[derive(Debug, Clone)]
pub enum Meaning {
    /// A rule admits it.
    Ours(Incoming),
    /// Nothing: the word is a metric label.
    Ignored(&'static str),
}

impl Delivery {
    /// Reads a request's body.
    ///
    /// # Errors
    /// When it is not JSON of the known shape and version.
    pub fn parse(body: &[u8]) -> Result<Self, DeliveryError> {
        let delivery: Self = serde_json::from_slice(body)?;
        match delivery.version.as_str() {
            "4" | "1" => Ok(delivery),
            other => Err(DeliveryError::Version(other.chars().take(20).collect())),
        }
    }

    /// What each alert means under this configuration, in order. `local`: the delivery came over loopback.
    pub fn meanings<'a>(
        &'a self,
        config: &'a Config,
        local: bool,
    ) -> impl Iterator<Item = (&'a Alert, Meaning)> {
        self.alerts.iter().map(move |alert| (alert, meaning(alert, config, local)))
    }
}

impl Alert {
    /// Whether it fires; otherwise it is resolved.
    pub fn is_firing(&self) -> bool {
        self.status == Status::Firing
    }
}

/// The rule and the target that an alert with these labels selects on this host.
pub(crate) fn selected<'a>(
    config: &'a Config,
    labels: &BTreeMap<String, String>,
    local: bool,
) -> Option<(&'a Rule, Target)> {
    let rule = is_here(labels, &config.hosts, local).then(|| rules::find(&config.rules, labels))??;
    Some((rule, rule.selector.select(labels).ok()?))
}

fn meaning(alert: &Alert, config: &Config, local: bool) -> Meaning {
    let size: usize = alert.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > LABELS_MAX {
        return Meaning::Ignored("labels_too_long");
    }
    if !is_here(&alert.labels, &config.hosts, local) {
        return Meaning::Ignored("other_host");
    }
    let Some(rule) = rules::find(&config.rules, &alert.labels) else { return Meaning::Ignored("no_rule") };
    match rule.selector.select(&alert.labels) {
        Err(none) => Meaning::Ignored(none.reason()),
        Ok(target) if denied(&config.deny, target.kind(), target.name()) => Meaning::Ignored("target_denied"),
        Ok(target) => Meaning::Ours(Incoming {
            rule: rule.name.clone(),
            target,
            firing: alert.is_firing(),
            impact: rule.interrupts(),
            fingerprint: alert.fingerprint.chars().take(64).collect(),
            labels: evidence(&alert.labels),
        }),
    }
}

/// The labels as they are remembered.
fn evidence(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut left = LABELS_KEPT;
    let mut kept = BTreeMap::new();
    for (name, value) in labels {
        let value: String = value.chars().take(VALUE_KEPT).collect();
        let Some(rest) = left.checked_sub(name.len() + value.len()) else { break };
        left = rest;
        kept.insert(name.clone(), value);
    }
    kept
}

fn denied(deny: &DenyList, kind: Kind, name: &str) -> bool {
    kind == Kind::Unit && deny.denies(name)
}

/// Whether an alert is about this host: by its `host` label, else by its `instance` without the port. The names of
/// loopback mean this host only when the delivery came over it.
pub(crate) fn is_here(labels: &BTreeMap<String, String>, hosts: &[String], local: bool) -> bool {
    let named = match (labels.get("host"), labels.get("instance")) {
        (Some(host), _) if !host.is_empty() => host.as_str(),
        (_, Some(instance)) => without_port(instance),
        _ => return false,
    };
    hosts.iter().any(|host| host == named) || (local && is_loopback_name(named))
}

fn is_loopback_name(name: &str) -> bool {
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// `vps1:9100` → `vps1`, `[::1]:9100` → `::1`; an address without a port stays whole.
fn without_port(instance: &str) -> &str {
    if let Some(rest) = instance.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match instance.split_once(':') {
        Some((host, port)) if !port.contains(':') => host,
        _ => instance,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::config;

    const CONFIG: &str = "
identity: {hosts: [vps1]}
rules:
  - name: disk-high
    match: ['alertname=\"HostDiskHigh\"']
    target: {filesystem: mountpoint, allow: [/, /srv]}
    steps: [notify]
  - name: unit-failed
    match: ['alertname=\"SystemdUnitFailed\"']
    target: {unit: name, allow: ['*.service']}
    steps: [notify]
";

    fn meanings(alerts: &str, local: bool) -> Vec<String> {
        let body = format!("{{\"version\":\"4\",\"status\":\"firing\",\"new\":{{}},\"alerts\":[{alerts}]}}");
        let delivery = Delivery::parse(body.as_bytes()).unwrap();
        let config = config(CONFIG).unwrap();
        delivery
            .meanings(&config, local)
            .map(|(_, meaning)| match meaning {
                Meaning::Ours(alert) => format!("{} {} {}", alert.rule, alert.target, alert.firing),
                Meaning::Ignored(reason) => reason.to_owned(),
            })
            .collect()
    }

    fn alert(status: &str, labels: &str) -> String {
        format!(
            "{{\"status\":\"{status}\",\"labels\":{{{labels}}},\"annotations\":{{\"summary\":\"x\"}},
              \"startsAt\":\"2026-01-01T00:00:00Z\",\"endsAt\":\"0001-01-01T00:00:00Z\",\"fingerprint\":\"ab\"}}"
        )
    }

    #[test]
    fn each_alert_counts_by_itself() {
        let alerts = [
            alert("firing", "\"alertname\":\"HostDiskHigh\",\"instance\":\"vps1:9100\",\"mountpoint\":\"/\""),
            alert("resolved", "\"alertname\":\"HostDiskHigh\",\"host\":\"vps1\",\"mountpoint\":\"/srv\""),
            alert("firing", "\"alertname\":\"HostDiskHigh\",\"host\":\"vps1\",\"mountpoint\":\"/home\""),
            alert("firing", "\"alertname\":\"HostDiskHigh\",\"host\":\"vps1\",\"mountpoint\":\"../x\""),
            alert("firing", "\"alertname\":\"HostDiskHigh\",\"host\":\"vps1\""),
            alert("firing", "\"alertname\":\"Other\",\"host\":\"vps1\""),
            alert(
                "firing",
                "\"alertname\":\"SystemdUnitFailed\",\"host\":\"vps1\",\"name\":\"docker.service\"",
            ),
        ];
        assert_eq!(
            meanings(&alerts.join(","), false),
            [
                "disk-high filesystem / true",
                "disk-high filesystem /srv false",
                "target_not_allowed",
                "target_not_a_name",
                "target_label_missing",
                "no_rule",
                "target_denied",
            ]
        );
    }

    #[test]
    fn an_alert_for_another_host_is_not_ours() {
        let disk = "\"alertname\":\"HostDiskHigh\",\"mountpoint\":\"/\"";
        for (labels, local, expected) in [
            ("\"instance\":\"vps2:9100\"", true, "other_host"),
            ("\"host\":\"vps2\",\"instance\":\"vps1:9100\"", true, "other_host"),
            ("\"host\":\"vps1\",\"instance\":\"vps2:9100\"", false, "disk-high filesystem / true"),
            ("\"host\":\"\",\"instance\":\"vps1\"", false, "disk-high filesystem / true"),
            ("\"host\":\"vps1.example\"", false, "other_host"),
            ("\"instance\":\"localhost:9100\"", true, "disk-high filesystem / true"),
            ("\"instance\":\"127.0.0.1:9100\"", true, "disk-high filesystem / true"),
            ("\"instance\":\"[::1]:9100\"", true, "disk-high filesystem / true"),
            ("\"instance\":\"127.0.0.1:9100\"", false, "other_host"),
            ("\"job\":\"node\"", true, "other_host"),
        ] {
            assert_eq!(
                meanings(&alert("firing", &format!("{disk},{labels}")), local),
                [expected],
                "{labels}"
            );
        }
    }

    #[test]
    fn what_is_no_delivery_is_said() {
        let deep = format!("{{\"version\":\"4\",\"alerts\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        for body in [
            "",
            "{",
            "[]",
            "null",
            "{\"version\":\"4\"}",
            "{\"version\":\"4\",\"alerts\":{}}",
            "{\"version\":\"4\",\"alerts\":[{}]}",
            "{\"version\":\"4\",\"alerts\":[{\"status\":\"maybe\",\"labels\":{}}]}",
            "{\"version\":\"4\",\"alerts\":[{\"status\":\"firing\",\"labels\":{\"a\":1}}]}",
            "{\"version\":4,\"alerts\":[]}",
            &deep,
        ] {
            let error = Delivery::parse(body.as_bytes()).unwrap_err();
            assert!(matches!(error, DeliveryError::Json(_)), "{body:.60}");
        }
        let error = Delivery::parse(b"{\"version\":\"5\",\"alerts\":[]}").unwrap_err();
        assert_eq!(
            error.to_string(),
            "webhook version \"5\" is not known here: 4 (Alertmanager) and 1 (Grafana) are"
        );
    }

    #[test]
    fn endless_labels_are_refused() {
        let labels = format!(
            "\"alertname\":\"HostDiskHigh\",\"host\":\"vps1\",\"mountpoint\":\"/\",\"x\":\"{}\"",
            "y".repeat(LABELS_MAX)
        );
        assert_eq!(meanings(&alert("firing", &labels), false), ["labels_too_long"]);
    }

    #[test]
    fn only_so_much_is_remembered() {
        let labels: BTreeMap<String, String> =
            (0..100).map(|number| (format!("label-{number:03}"), "ä".repeat(1000))).collect();
        let kept = evidence(&labels);
        assert_eq!(kept.len(), 6);
        assert!(kept.values().all(|value| *value == "ä".repeat(300)));
        let usual = BTreeMap::from([("alertname".to_owned(), "HostDiskHigh".to_owned())]);
        assert_eq!(evidence(&usual), usual);
    }
}
