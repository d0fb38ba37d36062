//! The example `alertmanager.yml` and `prometheus.yml`, against the rules and against each other.

use std::{collections::BTreeMap, time::Duration};

use evenkeel_host::config::PromDuration;
use evenkeel_remediator::matcher::Matcher;
use serde::Deserialize;

use crate::{
    metrics::Metrics,
    promql, remediator, repository,
    rules::{self, Alert},
};

/// What remains for delays that nobody counted.
const SLACK: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    route: Route,
    receivers: Vec<Receiver>,
    inhibit_rules: Vec<Inhibition>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Route {
    receiver: String,
    #[serde(default)]
    matchers: Vec<String>,
    #[serde(default, rename = "continue")]
    goes_on: bool,
    group_by: Option<Vec<String>>,
    group_wait: Option<PromDuration>,
    group_interval: Option<PromDuration>,
    repeat_interval: Option<PromDuration>,
    #[serde(default)]
    routes: Vec<Route>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Receiver {
    name: String,
    #[serde(default)]
    webhook_configs: Vec<Webhook>,
}

/// Only what Alertmanager 0.25 knows: it refuses `url_file` and `timeout`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Webhook {
    url: String,
    send_resolved: bool,
    http_config: Http,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Http {
    follow_redirects: bool,
    authorization: Authorization,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Authorization {
    r#type: String,
    credentials_file: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inhibition {
    source_matchers: Vec<String>,
    target_matchers: Vec<String>,
    equal: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Prometheus {
    global: Global,
    rule_files: Vec<String>,
    scrape_configs: Vec<Scrape>,
}

#[derive(Debug, Deserialize)]
struct Global {
    scrape_interval: PromDuration,
    evaluation_interval: PromDuration,
}

#[derive(Debug, Deserialize)]
struct Scrape {
    job_name: String,
    static_configs: Vec<Targets>,
}

#[derive(Debug, Deserialize)]
struct Targets {
    targets: Vec<String>,
}

fn alertmanager() -> Config {
    repository::yaml("alerts/alertmanager.yml")
}

fn prometheus() -> Prometheus {
    repository::yaml("alerts/prometheus.yml")
}

fn match_all(matchers: &[String], labels: &BTreeMap<String, String>) -> bool {
    matchers.iter().all(|matcher| Matcher::parse(matcher).unwrap().matches(labels))
}

/// A route as it works: with what it inherits from the root.
struct Way<'a> {
    receiver: &'a str,
    group_wait: Duration,
    group_interval: Duration,
}

/// Where an alert with these labels goes; the shipped tree has one level.
fn ways<'a>(root: &'a Route, labels: &BTreeMap<String, String>) -> Vec<Way<'a>> {
    let set = |own: Option<PromDuration>, inherited: Option<PromDuration>| own.or(inherited).unwrap().get();
    let mut ways = Vec::new();
    for route in root.routes.iter().filter(|route| match_all(&route.matchers, labels)) {
        assert!(route.routes.is_empty());
        ways.push(Way {
            receiver: &route.receiver,
            group_wait: set(route.group_wait, root.group_wait),
            group_interval: set(route.group_interval, root.group_interval),
        });
        if !route.goes_on {
            return ways;
        }
    }
    ways.push(Way {
        receiver: &root.receiver,
        group_wait: set(root.group_wait, None),
        group_interval: set(root.group_interval, None),
    });
    ways
}

#[test]
fn the_remediator_gets_the_quick_alerts_and_no_others() {
    let config = alertmanager();
    for alert in rules::all() {
        let ways = ways(&config.route, &alert.as_sent());
        let remediator = ways.iter().any(|way| way.receiver == "evenkeel-remediator");
        assert_eq!(remediator, alert.is_quick(), "{}", alert.alert);
        // What is for the remediator is for somebody else too.
        assert!(ways.iter().any(|way| way.receiver != "evenkeel-remediator"), "{}", alert.alert);
    }
}

#[test]
fn severity_decides_who_is_called() {
    let config = alertmanager();
    for alert in rules::all() {
        let expected = match (alert.alert.as_str(), alert.severity()) {
            ("Watchdog", _) => "deadman",
            (_, "critical") => "pager",
            (_, "warning") => "team",
            _ => "log",
        };
        let ways = ways(&config.route, &alert.as_sent());
        assert_eq!(ways.last().unwrap().receiver, expected, "{}", alert.alert);
    }
}

/// The repair must have begun, and Prometheus must have seen it, before the page leaves.
#[test]
fn a_page_leaves_later_than_the_repair_holds_it_back() {
    let (config, prometheus) = (alertmanager(), prometheus());
    let alerts = rules::all();
    let mut compared = 0;
    for quick in alerts.iter().filter(|alert| alert.is_quick()) {
        let fix = ways(&config.route, &quick.as_sent())
            .into_iter()
            .find(|way| way.receiver == "evenkeel-remediator")
            .unwrap();
        // An alert that joins a group which was sent before waits for the group's interval instead.
        let delivered = quick.pending() + fix.group_wait.max(fix.group_interval);
        let held_back = delivered
            + prometheus.global.scrape_interval.get()
            + prometheus.global.evaluation_interval.get()
            + SLACK;
        let rule = quick.label("remediation_rule");
        for page in alerts.iter().filter(|page| page.is_page() && page.label("remediation_rule") == rule) {
            let way = &ways(&config.route, &page.as_sent())[0];
            let leaves = page.pending() + way.group_wait;
            assert!(
                leaves >= held_back,
                "{} leaves after {leaves:?}, {} holds it back only after {held_back:?}",
                page.alert,
                quick.alert
            );
            compared += 1;
        }
    }
    assert!(compared >= 4);
}

/// When a repair ends without success, or the remediator dies, people hear of it soon.
#[test]
fn what_was_held_back_leaves_within_a_minute() {
    let config = alertmanager();
    for page in rules::all().into_iter().filter(Alert::is_page) {
        for way in ways(&config.route, &page.as_sent()) {
            assert!(way.group_interval <= Duration::from_secs(60), "{}", page.alert);
        }
    }
}

#[test]
fn a_running_repair_inhibits_the_pages_of_its_host_and_rule() {
    let source = rules::named("RemediationInProgress");
    assert!(source.pending().is_zero() && source.keep_firing_for.is_none());
    assert_eq!(source.label("remediation_rule"), "{{ $labels.rule }}");
    let config = alertmanager();
    let inhibition = config
        .inhibit_rules
        .iter()
        .find(|rule| match_all(&rule.source_matchers, &source.as_sent()))
        .expect("an inhibition by RemediationInProgress");
    assert_eq!(inhibition.equal, ["host", "remediation_rule"]);
    for alert in rules::all() {
        let inhibited = match_all(&inhibition.target_matchers, &alert.as_sent());
        assert_eq!(inhibited, alert.is_page(), "{}", alert.alert);
    }
}

/// A label that both lack counts as equal: then one alert would hold back another host's.
#[test]
fn what_must_be_equal_is_there() {
    let metrics = Metrics::golden();
    for inhibition in alertmanager().inhibit_rules {
        let sources: Vec<_> = rules::all()
            .into_iter()
            .filter(|alert| match_all(&inhibition.source_matchers, &alert.as_sent()))
            .collect();
        assert!(!sources.is_empty(), "{:?} is no alert", inhibition.source_matchers);
        for alert in sources {
            let labels = promql::labels(&alert.expression(), &metrics).unwrap();
            for label in &inhibition.equal {
                assert!(
                    alert.labels.contains_key(label) || labels.contains(label),
                    "{} has no label {label}",
                    alert.alert
                );
            }
        }
    }
}

#[test]
fn the_webhook_is_the_remediators() {
    let config = alertmanager();
    let [webhook] = config
        .receivers
        .iter()
        .find(|receiver| receiver.name == "evenkeel-remediator")
        .expect("a receiver for the remediator")
        .webhook_configs
        .as_slice()
    else {
        panic!("one webhook")
    };
    let listen = remediator::shipped().access.listen[0].to_string();
    assert_eq!(webhook.url, format!("http://{listen}/api/v1/alerts"));
    assert!(webhook.send_resolved && !webhook.http_config.follow_redirects);
    let authorization = &webhook.http_config.authorization;
    assert_eq!(authorization.r#type, "Bearer");
    assert!(!authorization.credentials_file.contains('/'), "beside the configuration, wherever that is");

    let route = &config.route.routes[0];
    assert_eq!(route.receiver, "evenkeel-remediator");
    assert!(route.goes_on);
    assert_eq!(route.group_by.as_deref().unwrap_or_default(), ["alertname", "host"]);
    // An offer a little after the shortest window of the limits, not a little before.
    let repeat = route.repeat_interval.unwrap().get();
    for rule in remediator::shipped().rules.iter().filter(|rule| rule.acts() && !rule.on_demand()) {
        assert!(repeat > rule.limits[0].window, "{}", rule.name);
    }
}

#[test]
fn prometheus_scrapes_what_the_rules_are_about() {
    let prometheus = prometheus();
    assert_eq!(prometheus.rule_files, ["*.rules.yml"]);
    let job = |name: &str| {
        let found = prometheus.scrape_configs.iter().find(|job| job.job_name == name);
        found.unwrap_or_else(|| panic!("no job {name}")).static_configs[0].targets[0].clone()
    };
    assert_eq!(job("evenkeel-remediator"), remediator::shipped().access.listen[0].to_string());
    assert_eq!(job("evenkeel-exporter"), "127.0.0.1:19847");
    assert_eq!(job("alertmanager"), "127.0.0.1:9093");
    assert_eq!(job("prometheus"), "127.0.0.1:9090");
    for alert in rules::all() {
        let expression = alert.expression();
        for (selector, _) in promql::selectors(&expression) {
            for matcher in selector.matchers.matchers.iter().filter(|matcher| matcher.name == "job") {
                let known = prometheus.scrape_configs.iter().any(|job| matcher.is_match(&job.job_name));
                assert!(known, "{}: {matcher} is no job", alert.alert);
            }
        }
    }
}
