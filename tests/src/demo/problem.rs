//! One thing that was broken, and how far its healing has come. What is known at one moment is a
//! [`Picture`]; what it means is decided without asking anything more.

use std::time::{Duration, Instant};

use anyhow::Result;
use evenkeel_host::config::format_bytes;
use serde_json::Value;

use crate::{exposition::Exposition, stack::Stack};

/// What the loop's programs say at one moment.
#[derive(Debug, Default)]
pub struct Picture {
    /// The exporter's scrape.
    pub scrape: Exposition,
    /// Prometheus's alerts.
    pub prometheus: Vec<Value>,
    /// Alertmanager's alerts.
    pub alertmanager: Vec<Value>,
    /// The remediator's `history --json`.
    pub history: Vec<Value>,
}

impl Picture {
    /// Asks all of them.
    ///
    /// # Errors
    ///
    /// When one does not answer.
    pub async fn take(stack: &Stack) -> Result<Self> {
        let (scrape, prometheus, alertmanager, history) = tokio::try_join!(
            stack.exporter.scrape(),
            stack.prometheus.alerts(),
            stack.alertmanager.alerts(),
            stack.remediator.cli(&["history", "--json", "--limit", "100"]),
        )?;
        let history = history.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(Self { scrape, prometheus, alertmanager, history })
    }

    /// Whether an alert with this name and label fires in Prometheus.
    #[must_use]
    pub fn is_firing(&self, (alert, label): (&str, &str), target: &str) -> bool {
        let fires = |one: &&Value| one["state"] == "firing" && is_about(one, alert, label, target);
        self.prometheus.iter().any(|one| fires(&one))
    }

    fn knows(&self, (alert, label): (&str, &str), target: &str) -> bool {
        self.prometheus.iter().chain(&self.alertmanager).any(|one| is_about(one, alert, label, target))
    }
}

fn is_about(alert: &Value, name: &str, label: &str, target: &str) -> bool {
    alert["labels"]["alertname"] == name && alert["labels"][label] == target
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Broken,
    Seen,
    Fired,
    Delivered,
    Verified,
    Resolved,
}

/// What has happened to a thing, so long after it was broken.
#[must_use]
pub fn line(since: Duration, name: &str, text: &str) -> String {
    format!("{:6.1} s  {name:9}  {text}", since.as_secs_f64())
}

/// One thing that was broken.
#[derive(Debug)]
pub struct Problem {
    name: &'static str,
    alert: (&'static str, &'static str),
    rule: &'static str,
    target: String,
    broken: Instant,
    stage: Stage,
    /// Steps that were reported.
    steps: usize,
    healed: Option<Duration>,
    skipped: Vec<String>,
    failure: Option<String>,
}

impl Problem {
    /// Broken now. `alert` is its name and the label with the target.
    #[must_use]
    pub fn new(
        name: &'static str,
        alert: (&'static str, &'static str),
        rule: &'static str,
        target: &str,
    ) -> Self {
        Self {
            name,
            alert,
            rule,
            target: target.to_owned(),
            broken: Instant::now(),
            stage: Stage::Broken,
            steps: 0,
            healed: None,
            skipped: Vec::new(),
            failure: None,
        }
    }

    /// One word for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The name of what was broken.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Whether it has healed and its alert has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Resolved
    }

    /// How long after being broken it was verified to be well.
    #[must_use]
    pub fn healed_after(&self) -> Option<Duration> {
        self.healed
    }

    /// Why it will not heal any more.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The steps that were left out, and why.
    #[must_use]
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// Takes a picture in and returns what is new, a line for each.
    pub fn advance(&mut self, picture: &Picture, now: Instant) -> Vec<String> {
        let since = now.saturating_duration_since(self.broken);
        let said = self.news(picture, since);
        said.into_iter().map(|text| line(since, self.name, &text)).collect()
    }

    fn news(&mut self, picture: &Picture, since: Duration) -> Vec<String> {
        let mut said = Vec::new();
        // The oldest: an alert that has not ended yet may be offered again, and is not needed then.
        let is_ours = |one: &&Value| one["rule"] == self.rule && one["target"] == *self.target;
        let record = picture.history.iter().rfind(is_ours);
        let fires = picture.is_firing(self.alert, &self.target);
        // What comes later proves what came before, also when it was over between two looks.
        if self.stage < Stage::Seen
            && let Some(seen) = seen(picture, self.alert.0, &self.target)
                .or_else(|| (fires || record.is_some()).then(|| "it is broken".to_owned()))
        {
            self.stage = Stage::Seen;
            said.push(format!("the exporter shows: {seen}"));
        }
        if self.stage < Stage::Fired && (fires || record.is_some()) {
            self.stage = Stage::Fired;
            said.push(format!("alert {} fires", self.alert.0));
        }
        let Some(record) = record else { return said };
        if self.stage < Stage::Delivered {
            self.stage = Stage::Delivered;
            said.push(format!("delivered: the remediator opens #{} by its rule {}", record["id"], self.rule));
        }
        said.extend(self.new_steps(record));
        match record["outcome"].as_str() {
            Some("succeeded") if self.stage < Stage::Verified => {
                self.stage = Stage::Verified;
                self.healed = Some(since);
                said.push(format!("verified: {} has been well for 5 s", self.target));
            }
            Some("succeeded") | None => {}
            Some(other) => {
                let why = record["detail"].as_str().unwrap_or_default();
                self.failure = Some(format!("{} ended as {other}: {why}", self.target));
            }
        }
        if self.stage == Stage::Verified && !picture.knows(self.alert, &self.target) {
            self.stage = Stage::Resolved;
            said.push(format!("alert {} is resolved", self.alert.0));
        }
        said
    }

    /// The steps that have ended since the last picture.
    fn new_steps(&mut self, record: &Value) -> Vec<String> {
        let none = Vec::new();
        let steps = record["steps"].as_array().unwrap_or(&none);
        let ended = |step: &&Value| !matches!(step["state"].as_str(), Some("reserved" | "running") | None);
        let new: Vec<&Value> = steps.iter().take_while(ended).skip(self.steps).collect();
        self.steps += new.len();
        let mut said = Vec::new();
        for step in new {
            let text = in_words(step);
            if step["state"] == "skipped" {
                self.skipped.push(format!("{}: {text}", self.target));
            } else if step["class"] == "S0" {
                said.push(format!("evidence is kept: {} [S0]", step["action"].as_str().unwrap_or_default()));
            } else {
                said.push(format!("acted: {text}"));
            }
        }
        said
    }
}

/// What the exporter says of a broken thing, if it says so.
fn seen(picture: &Picture, alert: &str, target: &str) -> Option<String> {
    let scrape = &picture.scrape;
    let (name, point) = ([("name", target)], [("mountpoint", target)]);
    match alert {
        "HostDiskHigh" => {
            let avail = scrape.value("node_filesystem_avail_bytes", &point)?;
            let used = 1.0 - avail / scrape.value("node_filesystem_size_bytes", &point)?;
            (used > 0.85).then(|| format!("{target} is {:.0} % full", used * 100.0))
        }
        "SystemdUnitFailed" => {
            let failed = scrape.value("systemd_unit_state", &[name[0], ("state", "failed")]) == Some(1.0);
            let result = scrape.all("systemd_service_result", &name).find(|one| one.value == 1.0);
            let result = result.and_then(|one| one.labels.get("result")).map_or("unknown", String::as_str);
            failed.then(|| format!("{target} has failed (result {result})"))
        }
        _ => {
            let labels = [name[0], ("status", "unhealthy")];
            (scrape.value("docker_container_health", &labels) == Some(1.0))
                .then(|| format!("{target} is unhealthy"))
        }
    }
}

fn in_words(step: &Value) -> String {
    let word = |key: &str| step[key].as_str().unwrap_or_default();
    let mut text = format!("{} [{}] {}", word("action"), word("class"), word("state"));
    for detail in ["reason", "detail"] {
        if !word(detail).is_empty() {
            text += &format!(", {}", word(detail));
        }
    }
    if let Some(freed) = step["measured_freed_bytes"].as_i64() {
        text += &format!("; freed {} by statvfs", format_bytes(freed.max(0).unsigned_abs()));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problem() -> Problem {
        Problem::new("unit", ("SystemdUnitFailed", "name"), "unit-failed", "a.service")
    }

    fn firing() -> Value {
        json!({"state": "firing", "labels": {"alertname": "SystemdUnitFailed", "name": "a.service"}})
    }

    fn texts(problem: &mut Problem, picture: &Picture) -> Vec<String> {
        problem.news(picture, Duration::from_secs(1))
    }

    #[test]
    fn each_stage_is_said_once_and_in_order() {
        let mut unit = problem();
        let mut picture = Picture::default();
        assert!(texts(&mut unit, &picture).is_empty());
        picture.scrape = Exposition::parse(concat!(
            "systemd_unit_state{name=\"a.service\",state=\"failed\"} 1.0\n",
            "systemd_service_result{name=\"a.service\",result=\"signal\"} 1.0\n"
        ));
        assert_eq!(texts(&mut unit, &picture), ["the exporter shows: a.service has failed (result signal)"]);
        assert!(texts(&mut unit, &picture).is_empty());
        picture.prometheus = vec![firing()];
        assert_eq!(texts(&mut unit, &picture), ["alert SystemdUnitFailed fires"]);
        let mut record = json!({"id": 3, "rule": "unit-failed", "target": "a.service", "outcome": null,
            "steps": [{"action": "unit_restart", "class": "S2", "state": "running"}]});
        picture.history = vec![record.clone()];
        assert_eq!(
            texts(&mut unit, &picture),
            ["delivered: the remediator opens #3 by its rule unit-failed"]
        );
        record["steps"][0]["state"] = json!("done");
        picture.history = vec![record.clone()];
        assert_eq!(texts(&mut unit, &picture), ["acted: unit_restart [S2] done"]);
        record["outcome"] = json!("succeeded");
        picture.history = vec![record];
        assert_eq!(texts(&mut unit, &picture), ["verified: a.service has been well for 5 s"]);
        assert!(!unit.is_over());
        picture.prometheus.clear();
        assert_eq!(texts(&mut unit, &picture), ["alert SystemdUnitFailed is resolved"]);
        assert!(unit.is_over() && unit.failure().is_none());
        assert_eq!(unit.healed_after(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn an_outcome_that_does_not_help_is_the_end() {
        let mut unit = problem();
        let history =
            vec![json!({"id": 1, "rule": "unit-failed", "target": "a.service", "outcome": "limited",
            "detail": "1 of 1 in 5m", "steps": []})];
        let said = texts(&mut unit, &Picture { history, ..Picture::default() });
        assert_eq!(said.len(), 3, "{said:?}");
        assert_eq!(unit.failure(), Some("a.service ended as limited: 1 of 1 in 5m"));
    }

    #[test]
    fn what_was_left_out_is_kept_with_its_reason() {
        let mut unit = problem();
        let steps = json!([
            {"action": "build_cache_prune", "class": "D1", "state": "skipped", "reason": "too_little", "detail": "0 B"},
            {"action": "build_cache_prune", "class": "D1", "state": "done", "measured_freed_bytes": 5_000_000},
        ]);
        let again = json!({"id": 2, "rule": "unit-failed", "target": "a.service", "outcome": "not_needed", "steps": []});
        let first = json!({"id": 1, "rule": "unit-failed", "target": "a.service", "steps": steps});
        let history = vec![again, first];
        let said = texts(&mut unit, &Picture { history, ..Picture::default() });
        assert_eq!(said.last().unwrap(), "acted: build_cache_prune [D1] done; freed 5.0 MB by statvfs");
        assert_eq!(unit.failure(), None);
        assert_eq!(unit.skipped(), ["a.service: build_cache_prune [D1] skipped, too_little, 0 B"]);
    }
}
