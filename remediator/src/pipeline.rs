//! Whether an alert can reach this remediator at all: what alerts rest on is scraped, the rules that raise them are loaded
//! and evaluated, and a route of Alertmanager's leads here. Only the APIs are asked; nothing is changed, and nothing
//! waits for it. What cannot be told is unknown, not well. That a repair really comes of an alert only `drill` shows.

mod arrivals;
mod routes;
mod rules;
#[cfg(test)]
mod tests;
mod watch;

use std::{cmp::Reverse, collections::BTreeMap};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::{arrivals::Arrivals, watch::watch};
use crate::{
    api::{
        Fault, alertmanager,
        prometheus::{self, AlertRule, Exporter, Prometheus},
    },
    config::Config,
    metrics::Metrics,
    rules::Rule,
    text::printable,
};

/// Findings of one check that are told; the others are counted.
const TOLD: usize = 10;

const NO_PROMETHEUS: &str = "not asked: no `prometheus` in the configuration";
const ADD_PROMETHEUS: &str = "add prometheus: {url: \"http://127.0.0.1:9090\"} to it";
const NO_ALERTMANAGER: &str = "not asked: no `alertmanager` in the configuration";
const ADD_ALERTMANAGER: &str = "add alertmanager: {url: \"http://127.0.0.1:9093\"} to it";

/// What is checked; the words are metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Prometheus answers.
    Prometheus,
    /// It scrapes this host's exporter, this remediator, and the jobs that the configuration names.
    Jobs,
    /// It has loaded the rules that raise the alerts which rules here wait for, and evaluates them.
    Rules,
    /// Alertmanager answers.
    Alertmanager,
    /// Its routes lead these alerts here.
    Routes,
}

impl Check {
    /// All of them, in the order of an alert's way.
    pub const ALL: [Self; 5] = [Self::Prometheus, Self::Jobs, Self::Rules, Self::Alertmanager, Self::Routes];

    /// As in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prometheus => "prometheus",
            Self::Jobs => "jobs",
            Self::Rules => "rules",
            Self::Alertmanager => "alertmanager",
            Self::Routes => "routes",
        }
    }
}

/// How it is; the words are metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it must be.
    Ok,
    /// Nobody can tell.
    Unknown,
    /// Not as it must be: alerts do not arrive.
    Failing,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Unknown, Self::Failing];

    /// As in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Failing => "failing",
        }
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check.
    pub check: Check,
    /// How it is.
    pub state: State,
    /// What was seen, for people.
    pub detail: String,
    /// What to do about it, for people; empty where all is well.
    pub cure: String,
}

impl Finding {
    fn ok(check: Check, detail: impl Into<String>) -> Self {
        Self { check, state: State::Ok, detail: detail.into(), cure: String::new() }
    }

    fn unknown(check: Check, detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, state: State::Unknown, detail: detail.into(), cure: cure.into() }
    }

    fn failing(check: Check, detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, state: State::Failing, detail: detail.into(), cure: cure.into() }
    }
}

/// What all checks found, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// In the order of an alert's way; at least one for each check.
    pub findings: Vec<Finding>,
}

impl Report {
    /// How a check stands: as badly as the worst that it found.
    pub fn state(&self, check: Check) -> State {
        let states = self.findings.iter().filter(|finding| finding.check == check).map(|found| found.state);
        states.max().unwrap_or(State::Unknown)
    }
}

/// Makes all checks for these rules. At most five seconds for each question, of which there are three and one for each job.
pub async fn look(
    config: &Config,
    rules: &[&Rule],
    arrived: &BTreeMap<String, i64>,
    metrics: Option<&Metrics>,
) -> Report {
    let (mut findings, loaded) = raised(config, rules, metrics).await;
    // Without Prometheus's answer the next question is not worth its five seconds.
    let scraped = match &config.prometheus {
        Some(prometheus) if loaded.is_some() => scraped(config, prometheus, metrics).await,
        Some(_) => vec![Finding::unknown(Check::Jobs, "Prometheus gave no answer", "see prometheus")],
        None => vec![Finding::unknown(Check::Jobs, NO_PROMETHEUS, ADD_PROMETHEUS)],
    };
    findings.extend(scraped);
    findings.extend(routed(config, rules, loaded.as_deref(), arrived, metrics).await);
    // In the order of an alert's way, and the worst of each first.
    findings.sort_by_key(|finding| (finding.check, Reverse(finding.state)));
    Report { at_ms: Timestamp::now().as_millisecond(), findings }
}

/// Whether Prometheus has the rules that raise what these rules wait for; with all that it has, where it says.
pub(crate) async fn raised(
    config: &Config,
    rules: &[&Rule],
    metrics: Option<&Metrics>,
) -> (Vec<Finding>, Option<Vec<AlertRule>>) {
    let Some(prometheus) = &config.prometheus else {
        let not_asked = |check| Finding::unknown(check, NO_PROMETHEUS, ADD_PROMETHEUS);
        return (vec![not_asked(Check::Prometheus), not_asked(Check::Rules)], None);
    };
    let url = printable(prometheus.api.url().as_str());
    match prometheus::alert_rules(&prometheus.api, metrics).await {
        Ok(loaded) => {
            let mut findings = vec![Finding::ok(Check::Prometheus, format!("{url} answers"))];
            findings.extend(told(rules::judge(&waiting(rules), &loaded, Timestamp::now())));
            (findings, Some(loaded))
        }
        Err(fault) => {
            let detail = format!("{url}: {}", printable(&fault.to_string()));
            let cure = "see that it runs and lets the remediator in (`prometheus` in the configuration: url, login, tls)";
            let unknown = Finding::unknown(Check::Rules, "Prometheus gave no answer", "see prometheus");
            (vec![Finding::failing(Check::Prometheus, detail, cure), unknown], None)
        }
    }
}

/// Whether Alertmanager's routes lead the alerts of these rules here. `loaded` are Prometheus's rules, where they are known.
pub(crate) async fn routed(
    config: &Config,
    rules: &[&Rule],
    loaded: Option<&[AlertRule]>,
    arrived: &BTreeMap<String, i64>,
    metrics: Option<&Metrics>,
) -> Vec<Finding> {
    let unknown = |detail: &str, cure: &str| Finding::unknown(Check::Routes, detail, cure);
    let Some(api) = &config.alertmanager else {
        let not_asked = Finding::unknown(Check::Alertmanager, NO_ALERTMANAGER, ADD_ALERTMANAGER);
        return vec![not_asked, unknown(NO_ALERTMANAGER, ADD_ALERTMANAGER)];
    };
    let url = printable(api.url().as_str());
    match alertmanager::configuration(api, metrics).await {
        Ok(text) => {
            let mut findings = vec![Finding::ok(Check::Alertmanager, format!("{url} answers"))];
            let ours = routes::Ours { config, arrived };
            findings.extend(told(routes::judge(&ours, &waiting(rules), loaded, &text)));
            findings
        }
        Err(fault) => {
            let detail = format!("{url}: {}", printable(&fault.to_string()));
            let cure = "see that it runs and lets the remediator in (`alertmanager` in the configuration: url, login, tls)";
            let failing = Finding::failing(Check::Alertmanager, detail, cure);
            vec![failing, unknown("Alertmanager gave no answer", "see alertmanager")]
        }
    }
}

/// The labels that a rule of Prometheus's gives each of its alerts, but for those that only the firing alert knows.
pub(crate) fn fixed_labels(rule: &AlertRule) -> impl Iterator<Item = (&str, &str)> {
    rule.labels.keys().filter_map(|label| Some((label.as_str(), rules::fixed(rule, label)?)))
}

/// Those that wait for an alert.
fn waiting<'a>(rules: &[&'a Rule]) -> Vec<&'a Rule> {
    rules.iter().copied().filter(|rule| !rule.on_demand()).collect()
}

/// Whether what alerts rest on is scraped.
async fn scraped(config: &Config, prometheus: &Prometheus, metrics: Option<&Metrics>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut up = Vec::new();
    let further = prometheus.jobs.iter().filter(|job| **job != prometheus.job);
    for job in std::iter::once(&prometheus.job).chain(further) {
        match job_is_scraped(config, prometheus, job, metrics).await {
            Ok(()) => up.push(printable(job)),
            Err(finding) => findings.push(finding),
        }
    }
    match prometheus::knows_us(config, prometheus, metrics).await {
        Ok(true) => up.push("this remediator".to_owned()),
        Ok(false) => findings.push(Finding::failing(
            Check::Jobs,
            "Prometheus does not scrape this remediator: RemediationInProgress holds back no page, and nobody hears when it dies",
            "add job evenkeel-remediator to scrape_configs, as the shipped prometheus.yml does",
        )),
        Err(fault) => findings.push(unanswered(&fault)),
    }
    if !up.is_empty() {
        findings.push(Finding::ok(Check::Jobs, format!("scraped: {}", up.join(", "))));
    }
    told(findings)
}

/// Whether Prometheus scrapes this host under a job.
pub(crate) async fn job_is_scraped(
    config: &Config,
    prometheus: &Prometheus,
    job: &str,
    metrics: Option<&Metrics>,
) -> Result<(), Finding> {
    let named = printable(job);
    match prometheus::scraped(config, prometheus, job, metrics).await {
        Ok(Exporter::Up) => Ok(()),
        Ok(Exporter::Down) => Err(Finding::failing(
            Check::Jobs,
            format!("Prometheus cannot scrape job {named} on this host"),
            "see that it runs, and what Prometheus says of it (Status, Targets)",
        )),
        Ok(Exporter::Absent | Exporter::Unknown) => Err(Finding::failing(
            Check::Jobs,
            format!("Prometheus has no target of this host in job {named}"),
            format!(
                "add one to scrape_configs under a name of this host ({}), as the shipped prometheus.yml does",
                printable(&config.hosts.join(", "))
            ),
        )),
        Err(fault) => Err(unanswered(&fault)),
    }
}

fn unanswered(fault: &Fault) -> Finding {
    let detail = format!("Prometheus did not say what it scrapes: {}", printable(&fault.to_string()));
    Finding::unknown(Check::Jobs, detail, "look at its log")
}

/// As many as people can read, the worst first.
fn told(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by_key(|finding| Reverse(finding.state));
    let Some(more) = findings.len().checked_sub(TOLD).filter(|more| *more > 0) else { return findings };
    findings.truncate(TOLD);
    if let Some(last) = findings.last_mut() {
        last.detail += &format!("; and {more} more like this or better");
    }
    findings
}
