//! Trees as people write them, and what cannot be told of them.

use std::time::Duration;

use super::*;
use crate::{config::tests::config, pipeline::State};

const CONFIG: &str = "
identity: {hosts: [vps1]}
alertmanager: {url: 'http://127.0.0.1:9093'}
rules:
  - name: unit-failed
    match: ['alertname=\"UnitFailed\"']
    target: {unit: name, allow: ['*.service']}
    steps: [notify]
";

const OURS: &str = "receivers:
- name: team
- name: evenkeel
  webhook_configs:
  - send_resolved: true
    http_config: {follow_redirects: false}
    url: http://127.0.0.1:19848/api/v1/alerts
    url_file: \"\"
    max_alerts: 0
";

/// A rule of Prometheus's that says `remediate="true"`.
fn quick() -> AlertRule {
    AlertRule {
        name: "UnitFailed".to_owned(),
        labels: BTreeMap::from([
            ("remediate".to_owned(), "true".to_owned()),
            ("severity".to_owned(), "info".to_owned()),
            ("host".to_owned(), "{{ $labels.instance | stripPort }}".to_owned()),
        ]),
        health: "ok".to_owned(),
        last_error: String::new(),
        last_evaluation: String::new(),
        interval: Duration::from_secs(15),
    }
}

fn judged_with(
    configuration: &str,
    loaded: Option<&[AlertRule]>,
    arrived: &BTreeMap<String, i64>,
) -> (State, String) {
    let config = config(CONFIG).unwrap();
    let rules: Vec<&Rule> = config.rules.iter().collect();
    let findings = judge(&Ours { config: &config, arrived }, &rules, loaded, configuration);
    let [finding] = findings.as_slice() else { panic!("{findings:?}") };
    assert_eq!(finding.cure.is_empty(), finding.state == State::Ok);
    (finding.state, finding.detail.clone())
}

fn judged(route: &str) -> (State, String) {
    judged_with(&format!("{route}\n{OURS}"), Some(&[quick()]), &BTreeMap::new())
}

#[test]
fn a_route_is_followed_as_alertmanager_follows_it() {
    for (route, expected) in [
        ("route: {receiver: evenkeel}", State::Ok),
        (
            "route: {receiver: team, routes: [{receiver: evenkeel, matchers: ['remediate=\"true\"']}]}",
            State::Ok,
        ),
        ("route: {receiver: team, routes: [{receiver: evenkeel, match: {remediate: 'true'}}]}", State::Ok),
        (
            "route: {receiver: team, routes: [{receiver: evenkeel, match_re: {alertname: 'Unit.*|Disk.*'}}]}",
            State::Ok,
        ),
        // Inherited from above.
        ("route: {receiver: evenkeel, routes: [{matchers: ['severity=\"info\"']}]}", State::Ok),
        // In a tree of more than one level.
        (
            "route: {receiver: team, routes: [{receiver: team, matchers: ['host=\"vps1\"'], routes: [{receiver: evenkeel, matchers: ['remediate=\"true\"']}]}]}",
            State::Ok,
        ),
        // The first that matches takes it, unless it says `continue`.
        (
            "route: {receiver: team, routes: [{receiver: team, matchers: ['severity=\"info\"']}, {receiver: evenkeel, matchers: ['remediate=\"true\"']}]}",
            State::Failing,
        ),
        (
            "route: {receiver: team, routes: [{receiver: team, matchers: ['severity=\"info\"'], continue: true}, {receiver: evenkeel, matchers: ['remediate=\"true\"']}]}",
            State::Ok,
        ),
        (
            "route: {receiver: evenkeel, routes: [{receiver: team, matchers: ['severity=\"info\"']}]}",
            State::Failing,
        ),
        (
            "route: {receiver: team, routes: [{receiver: evenkeel, matchers: ['severity=\"critical\"']}]}",
            State::Failing,
        ),
        ("route: {receiver: team}", State::Failing),
        ("route: {receiver: nowhere}", State::Failing),
        // What depends on a label that only the firing alert has cannot be told.
        (
            "route: {receiver: team, routes: [{receiver: evenkeel, matchers: ['datacenter=\"a\"']}]}",
            State::Unknown,
        ),
        (
            "route: {receiver: team, routes: [{receiver: team, matchers: ['datacenter=\"a\"']}, {receiver: evenkeel}]}",
            State::Unknown,
        ),
        // It reaches here in either case.
        (
            "route: {receiver: evenkeel, routes: [{receiver: evenkeel, matchers: ['datacenter=\"a\"'], continue: true}, {receiver: evenkeel, matchers: ['remediate=\"true\"']}]}",
            State::Ok,
        ),
        // A regular expression that is not known here.
        (
            "route: {receiver: team, routes: [{receiver: evenkeel, matchers: ['alertname=~\"(?i\"']}]}",
            State::Unknown,
        ),
    ] {
        let (state, detail) = judged(route);
        assert_eq!(state, expected, "{route}: {detail}");
    }
    let (_, detail) = judged("route: {receiver: team}");
    assert_eq!(detail, "no route leads the alerts of rule unit-failed here: they go to team");
    let (_, detail) = judged("route: {receiver: evenkeel}");
    assert_eq!(detail, "unit-failed: receiver evenkeel, http://127.0.0.1:19848");
}

#[test]
fn without_prometheus_only_what_the_rule_itself_says_is_known() {
    let by_name = format!(
        "route: {{receiver: team, routes: [{{receiver: evenkeel, matchers: ['alertname=\"UnitFailed\"']}}]}}\n{OURS}"
    );
    assert_eq!(judged_with(&by_name, None, &BTreeMap::new()).0, State::Ok);
    let by_label = format!(
        "route: {{receiver: team, routes: [{{receiver: evenkeel, matchers: ['remediate=\"true\"']}}]}}\n{OURS}"
    );
    assert_eq!(judged_with(&by_label, None, &BTreeMap::new()).0, State::Unknown);
}

#[test]
fn an_address_that_is_hidden_or_foreign_is_known_by_what_has_come_from_it() {
    let arrived = BTreeMap::from([("evenkeel".to_owned(), 0)]);
    for url in [
        "<secret>",
        "https://proxy.example/hooks/s3cret?token=s3cret",
        "http://127.0.0.1:1/",
        "http://other:19848/",
    ] {
        let text = format!(
            "route: {{receiver: evenkeel}}\n{}",
            OURS.replace("http://127.0.0.1:19848/api/v1/alerts", &format!("'{url}'"))
        );
        let (state, detail) = judged_with(&text, Some(&[quick()]), &BTreeMap::new());
        assert_eq!(state, State::Unknown, "{url}: {detail}");
        assert!(!detail.contains("s3cret"), "{detail}");
        let (state, detail) = judged_with(&text, Some(&[quick()]), &arrived);
        assert_eq!(state, State::Ok, "{url}: {detail}");
        assert!(detail.contains("by which deliveries come (the last 1970-01-01T00:00:00Z)"), "{detail}");
    }
    // A receiver without a webhook is not ours, whatever came by its name before.
    let (state, _) =
        judged_with("route: {receiver: evenkeel}\nreceivers: [{name: evenkeel}]", Some(&[quick()]), &arrived);
    assert_eq!(state, State::Failing);
}

#[test]
fn our_addresses_are_known_by_port_path_and_host() {
    let at = |url: &str, listen: &str| {
        let mut config = config(CONFIG).unwrap();
        config.access.listen = vec![listen.parse().unwrap()];
        is_ours(&config, &Url::parse(url).unwrap())
    };
    for (url, listen, expected) in [
        ("http://127.0.0.1:19848/api/v1/alerts", "127.0.0.1:19848", true),
        ("http://localhost:19848/api/v1/alerts/", "127.0.0.1:19848", true),
        ("http://[::1]:19848/", "[::1]:19848", true),
        ("http://vps1:19848", ":19848", true),
        ("http://10.0.0.5:19848/api/v1/alerts", "10.0.0.5:19848", true),
        ("http://10.0.0.6:19848/api/v1/alerts", "10.0.0.5:19848", false),
        ("http://127.0.0.1:19849/api/v1/alerts", "127.0.0.1:19848", false),
        ("http://127.0.0.1:19848/elsewhere", "127.0.0.1:19848", false),
        ("https://127.0.0.1:19848/api/v1/alerts", "127.0.0.1:19848", false),
        ("http://127.0.0.1:19848/api/v1/alerts", "unix:/run/evenkeel.sock", false),
    ] {
        assert_eq!(at(url, listen), expected, "{url} {listen}");
    }
}

#[test]
fn what_is_no_configuration_is_unknown() {
    let deep = format!("route: {}{}", "{routes: [".repeat(1000), "]}".repeat(1000));
    for text in ["", "route: 3", "receivers: []", "route: {receiver: [", &deep] {
        let (state, _) = judged_with(text, None, &BTreeMap::new());
        assert_eq!(state, State::Unknown, "{text:.40}");
    }
    // Deeper than anybody writes, and still readable: nothing is followed without end.
    let deep = format!(
        "route: {{receiver: team, routes: [{}{{receiver: evenkeel}}{}]}}",
        "{routes: [".repeat(40),
        "]}".repeat(40)
    );
    let (state, _) = judged_with(&format!("{deep}\n{OURS}"), None, &BTreeMap::new());
    assert_ne!(state, State::Ok);
}
