//! The checks against servers that answer as the real ones do; the real ones are in the lab.

use serde_json::{Value, json};

use super::*;
use crate::{
    api::fake::{Answer, Fake},
    config::tests::config,
};

const RULE: &str = "
rules:
  - name: unit-failed
    match: ['alertname=\"UnitFailed\"']
    target: {unit: name, allow: ['*.service']}
    steps: [notify]
  - name: weekly
    on_demand: true
    needed: {always: true}
    limits: [1/24h]
    steps: [build_cache_prune]
    verify: {completed: true, within: 1m}
";

fn result(series: &[Value]) -> Answer {
    let data = json!({"resultType": "vector", "result": series});
    ("/api/v1/query", 200, json!({"status": "success", "data": data}))
}

fn up(value: &str) -> Value {
    json!({"metric": {"instance": "vps1:1", "job": "x"}, "value": [1.0, value]})
}

/// The rules that Prometheus has, as it shows them.
fn rules(alerts: &[&str]) -> Answer {
    let rules: Vec<Value> = alerts
        .iter()
        .map(|name| {
            json!({"type": "alerting", "name": name, "query": "up == 0", "duration": 60, "labels": {"remediate": "true"},
                   "annotations": {}, "alerts": [], "health": "ok", "state": "inactive",
                   "lastEvaluation": Timestamp::now().to_string(), "evaluationTime": 0.001})
        })
        .collect();
    let data = json!({"groups": [{"name": "g", "file": "f", "interval": 15, "rules": rules, "limit": 0}]});
    ("/api/v1/rules", 200, json!({"status": "success", "data": data}))
}

fn routes(tree: &str) -> Answer {
    let status = json!({"uptime": "2026-01-01T00:00:00Z", "cluster": {}, "versionInfo": {}, "config": {"original": tree}});
    ("/api/v2/status", 200, status)
}

const TREE: &str = "route: {receiver: team, routes: [{receiver: us, matchers: ['remediate=\"true\"']}]}
receivers: [{name: team}, {name: us, webhook_configs: [{url: 'http://127.0.0.1:19848/api/v1/alerts'}]}]";

async fn looked(answers: &[Answer], more: &str) -> (Report, Fake) {
    let (fake, url) = Fake::start(answers).await;
    let text = format!(
        "identity: {{hosts: [vps1]}}\nprometheus: {{url: '{url}', job: own{more}}}\nalertmanager: {{url: '{url}'}}\n{RULE}"
    );
    let config = config(&text).unwrap();
    let rules: Vec<&Rule> = config.rules.iter().collect();
    (look(&config, &rules, &BTreeMap::new(), None).await, fake)
}

fn states(report: &Report) -> [State; 5] {
    Check::ALL.map(|check| report.state(check))
}

fn words(report: &Report) -> String {
    report
        .findings
        .iter()
        .map(|finding| format!("{}: {}\n", finding.check.as_str(), finding.detail))
        .collect()
}

#[tokio::test]
async fn where_all_is_well_each_check_says_what_it_saw() {
    let (report, fake) =
        looked(&[result(&[up("1")]), rules(&["UnitFailed"]), routes(TREE)], ", jobs: [node, own]").await;
    assert_eq!(states(&report), [State::Ok; 5], "{report:#?}");
    let words = words(&report);
    for expected in [
        "jobs: scraped: own, node, this remediator",
        "rules: loaded and evaluated: unit-failed (UnitFailed)",
        "routes: unit-failed: receiver us, http://127.0.0.1:19848",
    ] {
        assert!(words.contains(expected), "{words}");
    }
    // What people begin waits for no alert.
    assert!(!words.contains("weekly"), "{words}");
    assert!(report.findings.iter().all(|finding| finding.cure.is_empty()));
    let asked = fake.asked();
    assert_eq!(asked.len(), 5, "three jobs, the rules, the routes: {asked:?}");
}

#[tokio::test]
async fn what_is_broken_is_told_with_its_cure_and_nothing_else_is() {
    let good = [result(&[up("1")]), rules(&["UnitFailed"]), routes(TREE)];
    let with = |place: usize, answer: Answer| {
        let mut answers = good.clone();
        answers[place] = answer;
        answers
    };
    use State::{Failing, Ok, Unknown};
    for (answers, expected, word) in [
        (
            with(0, result(&[up("0")])),
            [Ok, Failing, Ok, Ok, Ok],
            "Prometheus cannot scrape job own on this host",
        ),
        (with(0, result(&[])), [Ok, Failing, Ok, Ok, Ok], "Prometheus has no target of this host in job own"),
        (
            with(0, ("/api/v1/query", 503, json!("x"))),
            [Ok, Unknown, Ok, Ok, Ok],
            "Prometheus did not say what it scrapes",
        ),
        (with(1, rules(&["Other"])), [Ok, Ok, Failing, Ok, Unknown], "Prometheus has no rule that raises"),
        (
            with(1, ("/api/v1/rules", 500, json!("x"))),
            [Failing, Unknown, Unknown, Ok, Unknown],
            "it answered 500",
        ),
        (with(2, routes("route: {receiver: team}")), [Ok, Ok, Ok, Ok, Failing], "they go to team"),
        (with(2, ("/api/v2/status", 401, json!("x"))), [Ok, Ok, Ok, Failing, Unknown], "it answered 401"),
        (
            with(2, ("/api/v2/status", 200, json!({"config": 3}))),
            [Ok, Ok, Ok, Failing, Unknown],
            "cannot be read",
        ),
        (with(2, routes("")), [Ok, Ok, Ok, Ok, Unknown], "of a form that is not known here"),
    ] {
        let (report, _fake) = looked(&answers, "").await;
        assert_eq!(states(&report), expected, "{word}: {report:#?}");
        assert!(words(&report).contains(word), "{word}: {report:#?}");
        for finding in &report.findings {
            assert_eq!(finding.cure.is_empty(), finding.state == State::Ok, "{finding:?}");
        }
    }
}

#[tokio::test]
async fn what_nobody_is_asked_about_is_unknown_and_what_does_not_answer_fails() {
    let without = config(&format!("identity: {{hosts: [vps1]}}\n{RULE}")).unwrap();
    let rules: Vec<&Rule> = without.rules.iter().collect();
    let report = look(&without, &rules, &BTreeMap::new(), None).await;
    assert_eq!(states(&report), [State::Unknown; 5], "{report:#?}");
    assert!(words(&report).contains("no `prometheus` in the configuration"));

    let dead = "prometheus: {url: 'http://127.0.0.1:1'}\nalertmanager: {url: 'http://127.0.0.1:1'}\n";
    let dead = config(&format!("identity: {{hosts: [vps1]}}\n{dead}{RULE}")).unwrap();
    let rules: Vec<&Rule> = dead.rules.iter().collect();
    let report = look(&dead, &rules, &BTreeMap::new(), None).await;
    let (fails, unknown) = (State::Failing, State::Unknown);
    assert_eq!(states(&report), [fails, unknown, unknown, fails, unknown], "{report:#?}");
}

/// However many rules are concerned, people read ten lines.
#[tokio::test]
async fn many_findings_are_counted_and_not_listed() {
    let findings: Vec<Finding> = (0..25)
        .map(|number| match number {
            24 => Finding::failing(Check::Rules, "the worst", "do"),
            _ => Finding::unknown(Check::Rules, format!("{number}"), "look"),
        })
        .collect();
    let told = told(findings);
    assert_eq!(told.len(), TOLD);
    assert_eq!(told[0].detail, "the worst");
    assert!(told[TOLD - 1].detail.ends_with("; and 15 more like this or better"));
}
