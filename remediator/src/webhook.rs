//! Alertmanager's webhook, version 4 (prometheus.io/docs/alerting/latest/configuration/#webhook_config), and Grafana's
//! of the same shape. Only `alerts[]` counts: the group's own status and labels say what one of its alerts says.

mod body;

use std::{
    borrow::{Borrow, Cow},
    collections::BTreeMap,
    net::IpAddr,
};

use serde::Deserialize;

use crate::{
    config::Config,
    journal::{Incoming, Labels},
    policy::DenyList,
    rules,
    rules::Rule,
    target::{Kind, Target},
};

/// A delivery's size at most, in bytes: 10,000 alerts are 6 to 8 MB.
pub const BODY_MAX: usize = 16 << 20;
/// And its alerts.
const ALERTS_MAX: usize = 30_000;
/// One alert's labels at most, in bytes and in number; more are hostile.
const LABELS_MAX: usize = 64 << 10;
const PAIRS_MAX: usize = 128;
/// What is kept of an alert's labels at most, in bytes: enough to find the alert again, and thousands fill no disk.
const LABELS_KEPT: usize = 4 << 10;
/// And of its fingerprint, in characters.
const FINGERPRINT_KEPT: usize = 64;
/// And of each label's value, in characters.
const VALUE_KEPT: usize = 300;

/// An alert's labels, by their names. They are those of the body itself, as far as they are written there as they are
/// meant.
pub type Labelled<'a> = BTreeMap<Cow<'a, str>, Cow<'a, str>>;

/// One alert of a delivery.
#[derive(Debug, Deserialize)]
pub struct Alert<'a> {
    status: Status,
    /// None where they are more than Prometheus ever sends.
    #[serde(borrow, deserialize_with = "body::labels")]
    labels: Option<Labelled<'a>>,
    #[serde(borrow, default)]
    fingerprint: Cow<'a, str>,
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
    /// One of its alerts is none; counted from 1.
    #[error("the body is no Alertmanager webhook: alert {0}: {1}")]
    Alert(usize, serde_json::Error),
    /// More of them than any host has needs; answered with 413.
    #[error(
        "a delivery may have {ALERTS_MAX} alerts at most: group them by host, or set max_alerts of the receiver"
    )]
    TooMany,
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

/// Reads a request's body, and hands over each alert with what it means under this configuration, in order. `local`: the
/// delivery came over loopback. Answers the name of Alertmanager's receiver by which it came, empty where it has none.
///
/// # Errors
/// When it is not JSON of the known shape and version. What was handed over by then counts for nothing: a delivery is
/// taken as a whole.
pub fn read(
    body: &[u8],
    config: &Config,
    local: bool,
    mut take: impl FnMut(&Alert<'_>, Meaning),
) -> Result<String, DeliveryError> {
    let envelope = body::read(body, |alert| take(&alert, meaning(&alert, config, local)))?;
    if !matches!(envelope.version.as_str(), "4" | "1") {
        return Err(DeliveryError::Version(envelope.version.chars().take(20).collect()));
    }
    Ok(envelope.receiver.unwrap_or_default())
}

/// Reads one alert that a gateway has passed on, and what it means here.
///
/// # Errors
/// When it is none.
pub fn read_one<'a>(text: &'a [u8], config: &Config) -> Result<(Alert<'a>, Meaning), serde_json::Error> {
    let alert: Alert<'_> = serde_json::from_slice(text)?;
    let meaning = meaning(&alert, config, false);
    Ok((alert, meaning))
}

impl Alert<'_> {
    /// Whether it fires; otherwise it is resolved.
    pub fn is_firing(&self) -> bool {
        self.status == Status::Firing
    }

    /// What one of its labels says.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name).map(Cow::as_ref)
    }

    /// The rule that its labels select.
    pub(crate) fn rule<'c>(&self, config: &'c Config) -> Option<&'c Rule> {
        rules::find(&config.rules, self.labels.as_ref()?)
    }

    /// All of its labels; none where they are more than Prometheus ever sends.
    pub fn labels(&self) -> Option<&Labelled<'_>> {
        self.labels.as_ref()
    }

    /// The name by which its labels say which host it is about: `host`, else `instance` without the port.
    pub fn host(&self) -> Option<&str> {
        named(self.labels.as_ref()?)
    }

    /// By what Alertmanager knows it; as much of it as is kept.
    pub fn fingerprint(&self) -> &str {
        let end = self.fingerprint.char_indices().nth(FINGERPRINT_KEPT);
        end.map_or(&self.fingerprint, |(end, _)| &self.fingerprint[..end])
    }
}

/// The rule and the target that an alert with these labels selects on this host.
pub(crate) fn selected<'a, S: Borrow<str> + Ord>(
    config: &'a Config,
    labels: &BTreeMap<S, S>,
    local: bool,
) -> Option<(&'a Rule, Target)> {
    let rule = is_here(labels, &config.hosts, local).then(|| rules::find(&config.rules, labels))??;
    Some((rule, rule.selector.select(labels).ok()?))
}

fn meaning(alert: &Alert<'_>, config: &Config, local: bool) -> Meaning {
    let Some(labels) = &alert.labels else { return Meaning::Ignored("labels_too_long") };
    if !is_here(labels, &config.hosts, local) {
        return Meaning::Ignored("other_host");
    }
    let Some(rule) = rules::find(&config.rules, labels) else { return Meaning::Ignored("no_rule") };
    match rule.selector.select(labels) {
        Err(none) => Meaning::Ignored(none.reason()),
        Ok(target) if denied(&config.deny, target.kind(), target.name()) => Meaning::Ignored("target_denied"),
        Ok(target) => Meaning::Ours(Incoming {
            rule: rule.name.clone(),
            target,
            firing: alert.is_firing(),
            impact: rule.interrupts(),
            fingerprint: alert.fingerprint().to_owned(),
            labels: evidence(labels),
            triggered_by: None,
        }),
    }
}

/// The labels as they are remembered.
fn evidence(labels: &Labelled<'_>) -> Labels {
    let mut left = LABELS_KEPT;
    labels
        .iter()
        .map_while(|(name, value)| {
            let end = value.char_indices().nth(VALUE_KEPT).map_or(value.len(), |(end, _)| end);
            left = left.checked_sub(name.len() + end)?;
            Some((&**name, &value[..end]))
        })
        .collect()
}

fn denied(deny: &DenyList, kind: Kind, name: &str) -> bool {
    kind == Kind::Unit && deny.denies(name)
}

/// Whether an alert is about this host: by its `host` label, else by its `instance` without the port. The names of
/// loopback mean this host only when the delivery came over it.
pub(crate) fn is_here<S: Borrow<str> + Ord>(labels: &BTreeMap<S, S>, hosts: &[String], local: bool) -> bool {
    let Some(named) = named(labels) else { return false };
    hosts.iter().any(|host| host == named) || (local && is_loopback_name(named))
}

fn named<S: Borrow<str> + Ord>(labels: &BTreeMap<S, S>) -> Option<&str> {
    match (labels.get("host").map(S::borrow), labels.get("instance").map(S::borrow)) {
        (Some(host), _) if !host.is_empty() => Some(host),
        (_, Some(instance)) => Some(without_port(instance)),
        _ => None,
    }
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
        let mut meanings = Vec::new();
        let take = |_: &Alert<'_>, meaning| {
            meanings.push(match meaning {
                Meaning::Ours(alert) => format!("{} {} {}", alert.rule, alert.target, alert.firing),
                Meaning::Ignored(reason) => reason.to_owned(),
            });
        };
        read(body.as_bytes(), &config(CONFIG).unwrap(), local, take).unwrap();
        meanings
    }

    fn refused(body: &str) -> DeliveryError {
        read(body.as_bytes(), &config(CONFIG).unwrap(), true, |_, _| ()).unwrap_err()
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
            "{\"version\":4,\"alerts\":[]}",
        ] {
            assert!(matches!(refused(body), DeliveryError::Json(_)), "{body:.60}");
        }
        let good = alert("firing", "\"alertname\":\"Other\"");
        for bad in [
            "{}",
            "null",
            "{\"status\":\"maybe\",\"labels\":{}}",
            "{\"status\":\"firing\",\"labels\":{\"a\":1}}",
        ] {
            let error = refused(&format!("{{\"version\":\"4\",\"alerts\":[{good},{bad}]}}"));
            assert!(matches!(error, DeliveryError::Alert(2, _)), "{bad}: {error}");
        }
        assert!(matches!(refused(&deep), DeliveryError::Alert(1, _)));
        assert_eq!(
            refused("{\"version\":\"5\",\"alerts\":[]}").to_string(),
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
    fn labels_without_number_are_not_kept_and_not_the_next_alert_s_fault() {
        let labels = |count: usize| {
            let pairs: Vec<_> = (0..count).map(|number| format!("\"l{number}\":\"x\"")).collect();
            format!("\"alertname\":\"Other\",\"host\":\"vps1\",{}", pairs.join(","))
        };
        let alerts = [PAIRS_MAX - 2, PAIRS_MAX - 1, 100_000, 1].map(|count| alert("firing", &labels(count)));
        assert_eq!(
            meanings(&alerts.join(","), false),
            ["no_rule", "labels_too_long", "labels_too_long", "no_rule"]
        );
    }

    #[test]
    fn a_delivery_without_end_is_refused() {
        let body = |count| {
            let alerts = vec!["{\"status\":\"firing\",\"labels\":{}}"; count];
            format!("{{\"alerts\":[{}],\"version\":\"4\"}}", alerts.join(","))
        };
        let mut taken = 0;
        read(body(ALERTS_MAX).as_bytes(), &config(CONFIG).unwrap(), true, |_, _| taken += 1).unwrap();
        assert_eq!(taken, ALERTS_MAX);
        assert!(matches!(refused(&body(ALERTS_MAX + 1)), DeliveryError::TooMany));
        // What is no alert ends it at once, however many follow.
        let zeros = format!("{{\"version\":\"4\",\"alerts\":[{}]}}", vec!["0"; 1_000_000].join(","));
        assert!(matches!(refused(&zeros), DeliveryError::Alert(1, _)));
    }

    #[test]
    fn only_so_much_is_remembered() {
        let labels: Labelled<'_> =
            (0..100).map(|number| (format!("label-{number:03}").into(), "ä".repeat(1000).into())).collect();
        let kept: BTreeMap<String, String> = serde_json::from_str(evidence(&labels).json()).unwrap();
        assert_eq!(kept.len(), 6);
        assert!(kept.values().all(|value| *value == "ä".repeat(300)));
        let usual = BTreeMap::from([("alertname".into(), "HostDiskHigh".into())]);
        assert_eq!(evidence(&usual).json(), r#"{"alertname":"HostDiskHigh"}"#);
    }
}
