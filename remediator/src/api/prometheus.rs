//! What Prometheus is asked: whether it scrapes this host, which alert rules it has loaded and which alerts fire, and the
//! conditions that rules set in PromQL.

use std::{collections::BTreeMap, time::Duration};

use hyper::StatusCode;
use reqwest::RequestBuilder;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Api, Fault, answer};
use crate::{
    admission::{Reason, Refusal},
    config::Config,
    metrics::Metrics,
    policy::Class,
    rules::Rule,
    text::printable,
    webhook,
};

/// How soon a condition is asked again.
const AGAIN: Duration = Duration::from_secs(60);

/// A condition of a rule: it acts only while the expression has a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// PromQL. True while it gives at least one series, whatever its value, as in an alerting rule; a scalar while it
    /// is not 0.
    pub promql: String,
    /// Whether the rule may act when Prometheus does not answer.
    pub open_on_error: bool,
}

/// Where Prometheus is, and what it calls the exporter's job.
#[derive(Debug, Clone)]
pub struct Prometheus {
    /// The server.
    pub api: Api,
    /// The job under which it scrapes exporters.
    pub job: String,
    /// Further jobs that alerts rest on.
    pub jobs: Vec<String>,
}

/// An alert rule that Prometheus has loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertRule {
    /// The alert's name.
    pub name: String,
    /// The labels that the rule adds, templates as they are written.
    pub labels: BTreeMap<String, String>,
    /// `ok`, `err` or, before the first evaluation, `unknown`.
    pub health: String,
    /// What the last evaluation complained about.
    pub last_error: String,
    /// When it was last evaluated, RFC 3339; in the year 1 when never.
    pub last_evaluation: String,
    /// Between two evaluations.
    pub interval: Duration,
}

/// An alert as Prometheus sees it now.
#[derive(Debug, Clone, Deserialize)]
pub struct Alert {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `pending` or `firing`.
    pub state: String,
}

/// What Prometheus knows of this host's exporter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exporter {
    /// It is scraped.
    Up,
    /// It does not answer.
    Down,
    /// It is not among the targets.
    Absent,
    /// Prometheus does not say.
    Unknown,
}

impl Exporter {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Up => "Prometheus scrapes this host's exporter",
            Self::Down => "Prometheus cannot scrape this host's exporter",
            Self::Absent => "Prometheus has no exporter of this host among its targets",
            Self::Unknown => "whether Prometheus scrapes this host's exporter is not known: it does not say",
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Answer<T> {
    Success {
        data: T,
    },
    Error {
        #[serde(default)]
        error: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Sample>),
    Scalar((f64, String)),
    Matrix(serde::de::IgnoredAny),
    String(serde::de::IgnoredAny),
}

#[derive(Debug, Deserialize)]
struct Sample {
    #[serde(default)]
    metric: BTreeMap<String, String>,
    value: (f64, String),
}

#[derive(Debug, Deserialize)]
struct Groups {
    #[serde(default)]
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    #[serde(default)]
    interval: f64,
    #[serde(default)]
    rules: Vec<Loaded>,
}

/// A rule as `/api/v1/rules` shows it; one that records has no labels worth knowing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Loaded {
    r#type: String,
    name: String,
    labels: BTreeMap<String, String>,
    health: String,
    last_error: String,
    last_evaluation: String,
}

#[derive(Debug, Deserialize)]
struct Alerts {
    #[serde(default)]
    alerts: Vec<Alert>,
}

/// Whether the conditions of a rule let a step of this class begin.
///
/// # Errors
/// With the first that does not.
pub async fn admit(
    config: &Config,
    rule: &Rule,
    class: Class,
    metrics: Option<&Metrics>,
) -> Result<(), Refusal> {
    let Some(prometheus) = config.prometheus.as_ref().filter(|_| class.acts()) else { return Ok(()) };
    for gate in &rule.gates {
        let detail = match query(&prometheus.api, &gate.promql, metrics).await {
            Ok(data) if holds(&data) => continue,
            Ok(_) => format!("the condition does not hold: {}", printable(&gate.promql)),
            Err(_) if gate.open_on_error => continue,
            Err(fault) => {
                format!("Prometheus does not say whether it holds ({fault}): {}", printable(&gate.promql))
            }
        };
        return Err(Refusal { reason: Reason::Condition, scope: "rule", detail, wait: AGAIN });
    }
    Ok(())
}

/// Whether this host's exporter is scraped.
pub async fn exporter(config: &Config, metrics: &Metrics) -> Option<Exporter> {
    let prometheus = config.prometheus.as_ref()?;
    Some(scraped(config, prometheus, &prometheus.job, Some(metrics)).await.unwrap_or(Exporter::Unknown))
}

/// Whether what Prometheus scrapes of this host under a job answers.
pub(crate) async fn scraped(
    config: &Config,
    prometheus: &Prometheus,
    job: &str,
    metrics: Option<&Metrics>,
) -> Result<Exporter, Fault> {
    let job = job.replace('\\', "\\\\").replace('"', "\\\"");
    let samples = series(&prometheus.api, &format!("up{{job=\"{job}\"}}"), metrics).await?;
    let ours = here(config, &prometheus.api, &samples);
    Ok(if ours.is_empty() {
        Exporter::Absent
    } else if ours.iter().any(|sample| sample.value.1 == "1") {
        Exporter::Up
    } else {
        Exporter::Down
    })
}

/// Whether Prometheus has this remediator's own metrics, under whatever job.
pub(crate) async fn knows_us(
    config: &Config,
    prometheus: &Prometheus,
    metrics: Option<&Metrics>,
) -> Result<bool, Fault> {
    let samples = series(&prometheus.api, "evenkeel_remediator_build_info", metrics).await?;
    Ok(!here(config, &prometheus.api, &samples).is_empty())
}

/// The alert rules that it has loaded.
pub(crate) async fn alert_rules(api: &Api, metrics: Option<&Metrics>) -> Result<Vec<AlertRule>, Fault> {
    // The second is known from 2.53 on, and ignored before.
    let request = api.get("/api/v1/rules").query(&[("type", "alert"), ("exclude_alerts", "true")]);
    let Groups { groups } = ask(request, metrics).await?;
    let loaded = groups.into_iter().flat_map(|group| {
        let interval = Duration::try_from_secs_f64(group.interval).unwrap_or_default();
        let alerting = group.rules.into_iter().filter(|rule| rule.r#type == "alerting");
        alerting.map(move |Loaded { name, labels, health, last_error, last_evaluation, .. }| AlertRule {
            name,
            labels,
            health,
            last_error,
            last_evaluation,
            interval,
        })
    });
    Ok(loaded.collect())
}

/// The alerts that are pending or fire.
pub(crate) async fn alerts(api: &Api) -> Result<Vec<Alert>, Fault> {
    let Alerts { alerts } = ask(api.get("/api/v1/alerts"), None).await?;
    Ok(alerts)
}

/// Those about this host.
fn here<'a>(config: &Config, api: &Api, samples: &'a [Sample]) -> Vec<&'a Sample> {
    let local = api.is_local();
    samples.iter().filter(|sample| webhook::is_here(&sample.metric, &config.hosts, local)).collect()
}

fn holds(data: &Data) -> bool {
    match data {
        Data::Vector(samples) => !samples.is_empty(),
        Data::Scalar((_, value)) => value.parse::<f64>().is_ok_and(|value| value != 0.0 && !value.is_nan()),
        Data::Matrix(_) | Data::String(_) => false,
    }
}

async fn series(api: &Api, promql: &str, metrics: Option<&Metrics>) -> Result<Vec<Sample>, Fault> {
    match query(api, promql, metrics).await? {
        Data::Vector(samples) => Ok(samples),
        Data::Scalar(_) | Data::Matrix(_) | Data::String(_) => Err(Fault::Unreadable),
    }
}

async fn query(api: &Api, promql: &str, metrics: Option<&Metrics>) -> Result<Data, Fault> {
    ask(api.get("/api/v1/query").query(&[("query", promql), ("timeout", "4s")]), metrics).await
}

async fn ask<T: DeserializeOwned>(request: RequestBuilder, metrics: Option<&Metrics>) -> Result<T, Fault> {
    let read = answer(request).await.and_then(|(status, body)| {
        match (status, serde_json::from_slice(&body)) {
            (StatusCode::OK, Ok(Answer::Success { data })) => Ok(data),
            (StatusCode::OK, _) => Err(Fault::Unreadable),
            // It says what it does not like about the expression.
            (status, Ok(Answer::Error { error })) => {
                let why: String = error.chars().take(200).collect();
                Err(Fault::Status(status, format!(": {}", printable(&why))))
            }
            (status, _) => Err(Fault::Status(status, String::new())),
        }
    });
    if let Some(metrics) = metrics {
        metrics.asked("prometheus", read.as_ref().err());
    }
    read.inspect_err(|fault| tracing::warn!(%fault, "Prometheus: no answer to a question"))
}
