//! The shipped alerting rules as plain values.

use std::{collections::BTreeMap, time::Duration};

use evenkeel_host::config::PromDuration;
use promql_parser::parser::Expr;
use serde::Deserialize;

use crate::{promql, repository};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    rules: Vec<Alert>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Alert {
    pub(crate) alert: String,
    pub(crate) expr: String,
    #[serde(rename = "for")]
    pending: Option<PromDuration>,
    pub(crate) keep_firing_for: Option<PromDuration>,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Alert {
    /// How long its expression must hold.
    pub(crate) fn pending(&self) -> Duration {
        self.pending.map_or(Duration::ZERO, |pending| pending.get())
    }

    pub(crate) fn expression(&self) -> Expr {
        promql::parse(&self.expr)
    }

    pub(crate) fn severity(&self) -> &str {
        self.label("severity")
    }

    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    /// Whether it is one of the quick ones, for the remediator.
    pub(crate) fn is_quick(&self) -> bool {
        self.label("remediate") == "true"
    }

    /// Whether it is for people.
    pub(crate) fn is_page(&self) -> bool {
        matches!(self.severity(), "critical" | "warning")
    }

    /// The labels with which it reaches Alertmanager, as far as the rule says them, on host vps1.
    pub(crate) fn as_sent(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        labels.insert("alertname".to_owned(), self.alert.clone());
        if labels.contains_key("host") {
            labels.insert("host".to_owned(), "vps1".to_owned());
        }
        labels
    }
}

/// All of them, in the order of the files.
pub(crate) fn all() -> Vec<Alert> {
    let mut alerts = Vec::new();
    for file in repository::files("alerts", ".rules.yml") {
        for group in repository::yaml::<File>(&file).groups {
            assert!(group.name.starts_with("evenkeel-"), "{file}: group {}", group.name);
            alerts.extend(group.rules);
        }
    }
    alerts
}

/// The one of this name.
pub(crate) fn named(name: &str) -> Alert {
    all().into_iter().find(|alert| alert.alert == name).unwrap_or_else(|| panic!("no alert {name}"))
}
