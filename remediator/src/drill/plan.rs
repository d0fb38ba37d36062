//! What a drill will do: which alert, which rule of this configuration answers it. Decided before anything is broken.

use std::collections::BTreeMap;

use evenkeel_host::config::ConfigError;

use super::{ALERT, Order, UNIT};
use crate::{
    api::prometheus::{self, AlertRule},
    config::Config,
    pipeline,
    policy::Mode,
    rules::Rule,
    webhook,
};

/// A drill as it will be.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Whether Prometheus raises the alert.
    pub(super) end_to_end: bool,
    /// The alert's labels, as far as they are known before.
    pub(super) labels: BTreeMap<String, String>,
    /// The rule that answers it.
    pub(super) rule: String,
    /// How far that may go.
    pub(super) mode: Mode,
}

impl Plan {
    /// Decides it. Where Prometheus is configured the alert has the labels that its own rule would give it.
    ///
    /// # Errors
    /// When the configuration lacks what the drill needs.
    pub(super) async fn new(config: &Config, order: Order) -> Result<Self, ConfigError> {
        let wrong = |message: String| Err(ConfigError::new(&config.path.display().to_string(), message));
        if order.end_to_end && config.prometheus.is_none() {
            return wrong(
                "a drill from end to end asks Prometheus: add `prometheus: {url: \"http://127.0.0.1:9090\"}`, or leave out --end-to-end"
                    .to_owned(),
            );
        }
        if !order.end_to_end && config.alertmanager.is_none() {
            return wrong(
                "a drill raises its alert in Alertmanager: add `alertmanager: {url: \"http://127.0.0.1:9093\"}`, or use --end-to-end"
                    .to_owned(),
            );
        }
        let labels = labels(config, loaded(config).await.as_ref());
        let Some((rule, _)) =
            webhook::selected(config, &labels, true).filter(|(_, target)| target.name() == UNIT)
        else {
            return wrong(format!(
                "no rule answers the drill's alert ({ALERT}, name=\"{UNIT}\"): add the rule `drill` of the shipped remediator.yml before the others"
            ));
        };
        Ok(Self { end_to_end: order.end_to_end, rule: rule.name.clone(), mode: rule.mode, labels })
    }

    /// The rule that answers it.
    pub(super) fn rule<'a>(&self, config: &'a Config) -> Option<&'a Rule> {
        config.rules.iter().find(|rule| rule.name == self.rule)
    }
}

/// Prometheus's own rule for the alert, where it says.
async fn loaded(config: &Config) -> Option<AlertRule> {
    let api = &config.prometheus.as_ref()?.api;
    let loaded = prometheus::alert_rules(api, None).await.ok()?;
    loaded.into_iter().find(|rule| rule.name == ALERT)
}

fn labels(config: &Config, loaded: Option<&AlertRule>) -> BTreeMap<String, String> {
    let fixed: Vec<(&str, &str)> = match loaded {
        Some(rule) => pipeline::fixed_labels(rule).collect(),
        None => vec![("severity", "info"), ("remediate", "true"), ("remediation_rule", "unit-failed")],
    };
    let mut labels: BTreeMap<String, String> =
        fixed.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let host = config.hosts.first().map_or("localhost", String::as_str);
    for (name, value) in [("alertname", ALERT), ("host", host), ("name", UNIT), ("state", "failed")] {
        labels.insert(name.to_owned(), value.to_owned());
    }
    labels
}

/// What people see who look at the alert meanwhile.
pub(super) fn annotations() -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("summary", "A drill of evenkeel.".to_owned()),
        (
            "description",
            format!("{UNIT} was made to fail by evenkeel-remediator drill, to see that it is repaired."),
        ),
    ])
}
