//! That the tests of the rules (`alerts/*.test.yml`, run by promtool) say of every alert when it begins and when it ends.
//! Whether that is so, promtool finds out.

use std::time::Duration;

use evenkeel_host::config::PromDuration;
use serde::Deserialize;
use serde_json::Value;

use crate::{promql, repository, rules};

#[derive(Debug, Deserialize)]
struct File {
    tests: Vec<Test>,
}

#[derive(Debug, Deserialize)]
struct Test {
    name: String,
    #[serde(default)]
    alert_rule_test: Vec<OfAlert>,
    #[serde(default)]
    promql_expr_test: Vec<OfExpression>,
}

#[derive(Debug, Deserialize)]
struct OfAlert {
    alertname: String,
    eval_time: PromDuration,
    exp_alerts: Vec<Expected>,
}

#[derive(Debug, Deserialize)]
struct Expected {
    #[serde(default)]
    exp_annotations: Value,
}

#[derive(Debug, Deserialize)]
struct OfExpression {
    expr: String,
    eval_time: PromDuration,
    exp_samples: Vec<Sample>,
}

#[derive(Debug, Deserialize)]
struct Sample {
    #[serde(default)]
    labels: String,
    value: f64,
}

impl Test {
    /// When it says that an alert fires, and when that it does not.
    fn says(&self, alert: &str) -> (Vec<Duration>, Vec<Duration>) {
        let (mut fires, mut silent) = (Vec::new(), Vec::new());
        for one in self.alert_rule_test.iter().filter(|one| one.alertname == alert) {
            let moments = if one.exp_alerts.is_empty() { &mut silent } else { &mut fires };
            moments.push(one.eval_time.get());
        }
        for one in &self.promql_expr_test {
            match one.says(alert) {
                Some(true) => fires.push(one.eval_time.get()),
                Some(false) => silent.push(one.eval_time.get()),
                None => {}
            }
        }
        (fires, silent)
    }
}

impl OfExpression {
    /// Whether an alert fires, where it says anything about that.
    fn says(&self, alert: &str) -> Option<bool> {
        let expression = promql::parse(&self.expr);
        let is_asked = promql::selectors(&expression).into_iter().any(|(selector, inside)| {
            // What was so over a range is not what is so at one moment.
            inside.is_empty()
                && promql::name(selector) == "ALERTS"
                && selector.matchers.matchers.iter().all(|matcher| match matcher.name.as_str() {
                    "alertname" => matcher.is_match(alert),
                    "alertstate" => matcher.is_match("firing"),
                    _ => true,
                })
        });
        let nothing = self.exp_samples.iter().all(|sample| sample.labels.is_empty() && sample.value == 0.0);
        let by_name = self.exp_samples.iter().all(|sample| sample.labels.contains("alertname="));
        let named = format!("alertname=\"{alert}\"");
        match is_asked {
            true if nothing => Some(false),
            true if by_name => Some(self.exp_samples.iter().any(|sample| sample.labels.contains(&named))),
            _ => None,
        }
    }
}

fn all() -> Vec<Test> {
    let files = repository::files("alerts", ".test.yml");
    files.iter().flat_map(|file| repository::yaml::<File>(file).tests).collect()
}

/// In one and the same test it is silent, fires with all that people read, and is silent again.
#[test]
fn both_edges_of_every_alert_are_tested() {
    let tests = all();
    // It fires for ever, because that is what it is for.
    for alert in rules::all().into_iter().filter(|alert| alert.alert != "Watchdog") {
        let edges = tests.iter().any(|test| {
            let (fires, silent) = test.says(&alert.alert);
            let (first, last) = (fires.iter().min(), fires.iter().max());
            silent.iter().any(|at| Some(at) < first)
                && silent.iter().any(|at| last.is_some_and(|last| at > last))
        });
        assert!(edges, "{}: no test says when it begins and when it ends", alert.alert);
    }
}

#[test]
fn what_people_read_is_tested_of_every_alert() {
    let tests = all();
    for alert in rules::all() {
        let is_read = tests.iter().flat_map(|test| &test.alert_rule_test).any(|one| {
            let texts = |expected: &Expected| expected.exp_annotations["description"].is_string();
            one.alertname == alert.alert && one.exp_alerts.iter().any(texts)
        });
        assert!(is_read, "{}: no test says what its description reads", alert.alert);
    }
}

#[test]
fn every_test_says_what_it_is_about() {
    for test in all() {
        assert!(!test.name.is_empty());
        let says = !test.alert_rule_test.is_empty() || !test.promql_expr_test.is_empty();
        assert!(says, "{} tests nothing", test.name);
    }
}
