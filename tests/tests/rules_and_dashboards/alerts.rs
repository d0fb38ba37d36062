//! Alerts by themselves, and against runbooks, tests and the remediator's rules.

use std::{collections::BTreeSet, time::Duration};

use evenkeel_remediator::{
    drill,
    fullness::Marks,
    policy::Mode,
    rules::{NeededWhen, find},
};
use regex::Regex;

use crate::{
    metrics::Metrics,
    promql, remediator, repository,
    rules::{self, Alert},
};

/// About Prometheus itself and not about a host.
const WITHOUT_HOST: &str = "Watchdog";

#[test]
fn names_are_unique_and_speak() {
    let mut seen = BTreeSet::new();
    let camel = Regex::new("^[A-Z][a-z]+([A-Z][a-z]+)+$|^Watchdog$").unwrap();
    for alert in rules::all() {
        assert!(camel.is_match(&alert.alert), "{} is not CamelCase", alert.alert);
        assert!(seen.insert(alert.alert.clone()), "{} stands twice", alert.alert);
    }
}

#[test]
fn every_metric_and_label_in_a_rule_exists() {
    let metrics = Metrics::golden();
    for alert in rules::all() {
        let wrong = promql::misspelt(&alert.expression(), &metrics);
        assert!(wrong.is_empty(), "{}: {}", alert.alert, wrong.join("; "));
    }
}

/// A template that names a label which an aggregation dropped is an empty word in a message at night.
#[test]
fn labels_named_in_templates_survive_the_expression() {
    let metrics = Metrics::golden();
    let named = Regex::new(r"\$labels\.(\w+)").unwrap();
    for alert in rules::all() {
        let has = promql::labels(&alert.expression(), &metrics).unwrap_or_default();
        for text in alert.labels.values().chain(alert.annotations.values()) {
            for label in named.captures_iter(text).map(|found| found[1].to_owned()) {
                assert!(has.contains(&label), "{}: its result has no label {label}: {text}", alert.alert);
            }
        }
    }
}

/// A counter's own value means nothing: it begins anew with its process.
#[test]
fn counters_are_only_used_by_their_increase() {
    for alert in rules::all() {
        let expression = alert.expression();
        for (selector, inside) in promql::selectors(&expression) {
            let name = promql::name(selector);
            let increase = inside.iter().any(|function| matches!(function.as_str(), "rate" | "increase"));
            assert!(!name.ends_with("_total") || increase, "{}: {name}", alert.alert);
        }
    }
}

/// An expression without a comparison fires for every series there is.
#[test]
fn every_expression_selects() {
    for alert in rules::all().into_iter().filter(|alert| alert.alert != WITHOUT_HOST) {
        let mut selects = false;
        let expression = alert.expression();
        promql::walk(&expression, &mut |part, _| {
            if let promql_parser::parser::Expr::Binary(binary) = part {
                selects |= binary.op.is_comparison_operator() || alert.alert == "TargetVanished";
            }
        });
        assert!(selects, "{}", alert.alert);
    }
}

#[test]
fn labels_are_those_of_the_design() {
    for alert in rules::all() {
        let name = &alert.alert;
        assert!(matches!(alert.severity(), "critical" | "warning" | "info" | "none"), "{name}");
        if name != WITHOUT_HOST {
            assert_eq!(alert.label("host"), "{{ $labels.instance | stripPort }}", "{name}");
        }
        for (label, value) in &alert.labels {
            assert!(
                matches!(label.as_str(), "host" | "severity" | "remediate" | "remediation_rule"),
                "{name}: what does the label {label} mean?"
            );
            assert!(!value.contains("$value"), "{name}: each value in {label} would be an alert of its own");
        }
    }
}

#[test]
fn annotations_say_what_is_wrong_and_where_to_read_on() {
    for alert in rules::all() {
        let name = &alert.alert;
        let annotation = |key: &str| alert.annotations.get(key).map_or("", String::as_str);
        assert_eq!(alert.annotations.len(), 4, "{name}");
        assert!(!annotation("summary").contains("{{"), "{name}: a summary is the same for every instance");
        assert!(annotation("summary").ends_with('.') && annotation("description").ends_with('.'), "{name}");
        if name != WITHOUT_HOST {
            assert!(annotation("description").contains("$labels.instance"), "{name}");
        }
        let runbook = format!("file:///usr/share/doc/evenkeel/runbooks/{name}.md");
        assert_eq!(annotation("runbook_url"), runbook);
        let dashboard = annotation("dashboard_url").strip_prefix("http://127.0.0.1:3000/d/").unwrap();
        let uid = dashboard.split('?').next().unwrap();
        assert!(crate::dashboards::uids().iter().any(|known| known == uid), "{name}: no dashboard {uid}");
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let alerts: BTreeSet<String> = rules::all().into_iter().map(|alert| alert.alert).collect();
    let mut pages = BTreeSet::new();
    for file in repository::files("alerts/runbooks", ".md") {
        let name = file.rsplit('/').next().unwrap().trim_end_matches(".md").to_owned();
        let text = repository::text(&file);
        assert!(text.starts_with(&format!("# {name}\n")), "{file}");
        for heading in ["What it means", "What evenkeel does", "What to look at", "How to stop it"] {
            let after = text.split(&format!("\n## {heading}\n\n")).nth(1);
            assert!(after.is_some_and(|body| !body.starts_with(['#', '\n'])), "{file}: {heading}");
        }
        pages.insert(name);
    }
    assert_eq!(alerts, pages);
}

#[test]
fn every_alert_has_a_line_about_where_it_goes() {
    let script = repository::text("alerts/check.sh");
    for alert in rules::all() {
        let line = script.lines().find(|line| line.starts_with(&format!("route {} ", alert.alert)));
        let said: BTreeSet<&str> =
            line.unwrap_or_else(|| panic!("no route line for {}", alert.alert)).split(' ').skip(3).collect();
        let has: BTreeSet<String> = alert
            .labels
            .iter()
            .filter(|(label, _)| *label != "host")
            // The rule that is at work is only known at run time.
            .map(|(label, value)| {
                format!("{label}={}", if value.contains("{{") { "disk-high" } else { value })
            })
            .collect();
        assert_eq!(said, has.iter().map(String::as_str).collect(), "{}", alert.alert);
    }
}

fn quick() -> Vec<Alert> {
    let quick: Vec<Alert> = rules::all().into_iter().filter(Alert::is_quick).collect();
    assert!(!quick.is_empty());
    quick
}

/// A quick alert means something to the remediator: the rule it names matches it, and finds its target in its labels.
#[test]
fn quick_alerts_and_the_rules_of_the_remediator_agree() {
    let metrics = Metrics::golden();
    let config = remediator::shipped();
    let mut answered = BTreeSet::new();
    for alert in quick() {
        let name = &alert.alert;
        let rule = find(&config.rules, &alert.as_sent()).unwrap_or_else(|| panic!("no rule answers {name}"));
        assert_eq!(rule.name, alert.label("remediation_rule"), "{name}");
        assert!(answered.insert(rule.name.clone()), "{} answers two alerts", rule.name);
        let labels = promql::labels(&alert.expression(), &metrics).unwrap();
        assert!(labels.contains(&rule.selector.label), "{name} has no label {}", rule.selector.label);
        // Nobody is called for what is being repaired, and a failed scrape is not the end of the problem.
        assert_eq!(alert.severity(), "info", "{name}");
        assert!(alert.keep_firing_for.is_some(), "{name}");
        let pending = alert.pending();
        assert!((Duration::from_secs(60)..=Duration::from_secs(120)).contains(&pending), "{name}");
    }
    // What timers begin waits for no alert, and a drill's alert is the one about any unit.
    let rules = config.rules.iter().filter(|rule| !rule.on_demand() && rule.name != "drill");
    let rules: BTreeSet<String> = rules.map(|rule| rule.name.clone()).collect();
    assert_eq!(answered, rules, "every rule has its alert");
}

/// Of all services only the drill's own is the drill rule's.
#[test]
fn the_drill_rule_answers_for_the_drills_unit_alone() {
    let config = remediator::shipped();
    let alert = rules::named(drill::ALERT);
    for (unit, expected) in [(drill::UNIT, "drill"), ("shop.service", "unit-failed")] {
        let mut labels = alert.as_sent();
        labels.insert("name".to_owned(), unit.to_owned());
        let rule = find(&config.rules, &labels).unwrap();
        assert_eq!(rule.name, expected);
        assert!(rule.selector.select(&labels).is_ok());
    }
    let rule = config.rules.iter().find(|rule| rule.name == "drill").unwrap();
    assert!(rule.selector.admit("shop.service").is_err() && !config.deny.denies(drill::UNIT));
}

#[test]
fn the_disk_rule_needs_what_its_alert_fires_at() {
    let config = remediator::shipped();
    let alert = rules::named("HostDiskHigh");
    let rule = find(&config.rules, &alert.as_sent()).unwrap();
    let above: Vec<f64> = promql::numbers(&alert.expression())
        .into_iter()
        .filter(|(metric, _)| metric == "node_filesystem_avail_bytes")
        .map(|(_, number)| number)
        .collect();
    let NeededWhen::Above(Marks { usage: Some(mark), inodes: None }) = rule.needed else {
        panic!("a disk is in need by its usage")
    };
    assert_eq!(above, [mark]);
}

#[test]
fn as_shipped_the_remediator_changes_nothing() {
    let config = remediator::shipped();
    assert!(config.rules.iter().all(|rule| rule.mode == Mode::Plan));
    assert_eq!(config.deletion.as_str(), "none");
}

/// What the remediator could not repair is said to people: each quick alert has a slower one about the same.
#[test]
fn every_quick_alert_has_one_for_people() {
    for alert in quick() {
        let page = rules::all().into_iter().find(|page| {
            page.is_page()
                && page.label("remediation_rule") == alert.label("remediation_rule")
                && page.expr == alert.expr
        });
        assert!(page.is_some_and(|page| page.pending() > alert.pending()), "{}", alert.alert);
    }
}

/// A repair may end after a page's `for`. The page is held back until then, and must be gone when that ends.
#[test]
fn alerts_for_people_about_a_rule_end_with_their_problem() {
    for alert in rules::all().into_iter().filter(Alert::is_page) {
        if alert.labels.contains_key("remediation_rule") {
            assert!(alert.keep_firing_for.is_none(), "{}", alert.alert);
        }
    }
}
