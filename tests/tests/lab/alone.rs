//! A remediator by itself, for what its actions do: a test says the alert instead of waiting for one.

use std::fs;

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    binaries::{Remediator, Surroundings},
    http, namespace,
    process::free_port,
    wait::wait_for,
};
use serde_json::{Value, json};

use crate::closed_loop::SOON;

/// A running remediator. Dropping it ends it.
pub(crate) struct Alone {
    pub(crate) remediator: Remediator,
}

impl Alone {
    /// Starts one that may do everything its rules say, as often as it is told to.
    pub(crate) async fn start(around: &Surroundings, rules: &str) -> Result<Self> {
        let dir = namespace::place("alone")?;
        let port = free_port()?;
        let many = "[1000/1h]";
        let text = format!(
            r#"
identity: {{hosts: [here]}}
server: {{listen: ["127.0.0.1:{port}"], auth: none}}
state: {{dir: state}}
policy:
  mode: auto
  deletion: data
  gates: {{grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}}
  storm: {{targets: 1000}}
  limits: {{S1: {many}, S2: {many}, D1: {many}, D2: {many}}}
rules:
{rules}"#
        );
        let config = dir.join("remediator.yml");
        fs::write(&config, text)?;
        Ok(Self { remediator: Remediator::start(&dir, port, &config, around).await? })
    }

    /// Tells it that the alert of this rule's name fires about `target`, and waits for the end of what it does.
    pub(crate) async fn told(&self, rule: &str, target: &str) -> Result<Value> {
        let last = self.history(rule, target).await?.first().map(|last| last["id"].clone());
        let labels = json!({"alertname": rule, "name": target, "host": "here"});
        let body = json!({
            "version": "4", "status": "firing", "groupKey": "{}", "groupLabels": {}, "commonLabels": {},
            "alerts": [{"status": "firing", "labels": labels, "fingerprint": "feed"}],
        });
        http::post_json(&format!("{}/api/v1/alerts", self.remediator.url()), &body).await?;
        wait_for(&format!("{rule} on {target} to end"), SOON, async || {
            let newest = self.history(rule, target).await?.into_iter().next().context("nothing yet")?;
            let is_new = last.as_ref().is_none_or(|last| *last != newest["id"]);
            ensure!(is_new && newest["phase"] == "ended", "it is in phase {}", newest["phase"]);
            Ok(newest)
        })
        .await
    }

    async fn history(&self, rule: &str, target: &str) -> Result<Vec<Value>> {
        let arguments = ["history", "--json", "--rule", rule, "--target", target];
        let lines = self.remediator.cli(&arguments).await?;
        lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

/// A rule that does `steps` about a thing of this kind, of the alert of its own name.
pub(crate) fn rule(name: &str, kind: &str, allow: &str, steps: &str, verify: &str) -> String {
    let verify = if verify.is_empty() { String::new() } else { format!("\n    verify: {{{verify}}}") };
    format!(
        r#"
  - name: {name}
    match: ['alertname="{name}"']
    target: {{{kind}: name, allow: ["{allow}"]}}
    limits: [1000/1h]
    cooldown: 0s
    steps: [{steps}]{verify}
"#
    )
}

/// Fails unless a remediation ended so.
pub(crate) fn ended(record: &Value, outcome: &str, reason: &str) -> Result<()> {
    ensure!(
        record["outcome"] == outcome && record["reason"] == reason,
        "not {outcome} ({reason}): {record:#}"
    );
    Ok(())
}
