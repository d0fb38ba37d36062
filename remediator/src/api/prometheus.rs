//! What Prometheus is asked: whether it scrapes this host's exporter, and the conditions that rules set in PromQL.

use std::{collections::BTreeMap, time::Duration};

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

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
enum Answer {
    Success {
        data: Data,
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
    let job = prometheus.job.replace('\\', "\\\\").replace('"', "\\\"");
    let Ok(Data::Vector(samples)) =
        query(&prometheus.api, &format!("up{{job=\"{job}\"}}"), Some(metrics)).await
    else {
        return Some(Exporter::Unknown);
    };
    let local = prometheus.api.is_local();
    let ours: Vec<&Sample> =
        samples.iter().filter(|sample| webhook::is_here(&sample.metric, &config.hosts, local)).collect();
    Some(if ours.is_empty() {
        Exporter::Absent
    } else if ours.iter().any(|sample| sample.value.1 == "1") {
        Exporter::Up
    } else {
        Exporter::Down
    })
}

fn holds(data: &Data) -> bool {
    match data {
        Data::Vector(samples) => !samples.is_empty(),
        Data::Scalar((_, value)) => value.parse::<f64>().is_ok_and(|value| value != 0.0 && !value.is_nan()),
        Data::Matrix(_) | Data::String(_) => false,
    }
}

async fn query(api: &Api, promql: &str, metrics: Option<&Metrics>) -> Result<Data, Fault> {
    let request = api.get("/api/v1/query").query(&[("query", promql), ("timeout", "4s")]);
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
