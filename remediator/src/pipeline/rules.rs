//! Whether Prometheus has the rules that raise the alerts which rules here wait for. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::{Check, Finding};
use crate::{api::prometheus::AlertRule, matcher::Matcher, rules::Rule, text::printable};

/// So many missed evaluations in a row are no accident,
const MISSED: u32 = 4;
/// and neither is as long without one.
const LATE: Duration = Duration::from_secs(120);

/// How surely a rule of Prometheus's raises what a rule here waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Raises {
    /// Its name or its labels say so.
    Yes,
    /// Nothing speaks against it, and nothing for it.
    Perhaps,
    No,
}

/// What is to be said of each rule here, or once that all is well.
pub(super) fn judge(rules: &[&Rule], loaded: &[AlertRule], now: Timestamp) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut well = Vec::new();
    for rule in rules {
        match of(rule, loaded, now) {
            Ok(alerts) => well.push(format!("{} ({alerts})", rule.name)),
            Err(finding) => findings.push(finding),
        }
    }
    if rules.is_empty() {
        findings.push(Finding::ok(Check::Rules, "no rule here waits for an alert"));
    } else if !well.is_empty() {
        findings.push(Finding::ok(Check::Rules, format!("loaded and evaluated: {}", well.join(", "))));
    }
    findings
}

/// The alerts that Prometheus raises for a rule, by name.
fn of(rule: &Rule, loaded: &[AlertRule], now: Timestamp) -> Result<String, Finding> {
    let matchers: Vec<String> = rule.matchers.iter().map(ToString::to_string).collect();
    let waits = format!("rule {} ({})", rule.name, printable(&matchers.join(", ")));
    let sure = raised_for(rule, loaded);
    if sure.is_empty() {
        let perhaps = loaded.iter().any(|alert| raises(&rule.matchers, alert) == Raises::Perhaps);
        return Err(if perhaps {
            Finding::unknown(
                Check::Rules,
                format!(
                    "which alert {waits} waits for cannot be told: it names neither an alertname nor a label that a rule of Prometheus sets"
                ),
                "name the alert in its `match`",
            )
        } else {
            Finding::failing(
                Check::Rules,
                format!("Prometheus has no rule that raises what {waits} waits for"),
                "load it (rule_files in prometheus.yml; the shipped ones are alerts/*.rules.yml), reload Prometheus, or correct `match`",
            )
        });
    }
    let mut names: Vec<String> = Vec::new();
    for alert in sure {
        let name = printable(&alert.name);
        evaluated(alert, &name, now)?;
        names.push(name);
    }
    names.sort_unstable();
    names.dedup();
    Ok(names.join(", "))
}

/// Whether a rule of Prometheus's is at work.
fn evaluated(alert: &AlertRule, name: &str, now: Timestamp) -> Result<(), Finding> {
    match alert.health.as_str() {
        "ok" => {}
        "unknown" => {
            return Err(Finding::unknown(
                Check::Rules,
                format!("{name} has not been evaluated yet"),
                "look again in a minute",
            ));
        }
        _ => {
            return Err(Finding::failing(
                Check::Rules,
                format!("{name} cannot be evaluated: {}", printable(&alert.last_error)),
                "correct its expression: a rule that errs counts as resolved",
            ));
        }
    }
    let Ok(last) = alert.last_evaluation.parse::<Timestamp>() else { return Ok(()) };
    let since = u64::try_from(now.as_second().saturating_sub(last.as_second())).unwrap_or(0);
    if Duration::from_secs(since) > LATE.max(alert.interval.saturating_mul(MISSED)) {
        return Err(Finding::failing(
            Check::Rules,
            format!(
                "{name} was last evaluated {since} s ago, and should be every {} s",
                alert.interval.as_secs()
            ),
            "see why Prometheus is late (prometheus_rule_group_iterations_missed_total), and that its clock and this host's agree",
        ));
    }
    Ok(())
}

/// The rules of Prometheus's that raise what a rule here waits for.
pub(super) fn raised_for<'a>(rule: &Rule, loaded: &'a [AlertRule]) -> Vec<&'a AlertRule> {
    loaded.iter().filter(|alert| raises(&rule.matchers, alert) == Raises::Yes).collect()
}

/// What the expression gives an alert in labels is only known when it fires: about those nothing is said.
fn raises(matchers: &[Matcher], alert: &AlertRule) -> Raises {
    let mut sure = Raises::Perhaps;
    for matcher in matchers {
        let value = match matcher.label() {
            "alertname" => Some(alert.name.as_str()),
            label => fixed(alert, label),
        };
        match value {
            Some(value) if !matcher.accepts(value) => return Raises::No,
            // One that is met by anything says nothing.
            Some(_) if !matcher.accepts_missing() => sure = Raises::Yes,
            _ => {}
        }
    }
    sure
}

/// The value that a rule gives a label in every alert.
pub(super) fn fixed<'a>(alert: &'a AlertRule, label: &str) -> Option<&'a str> {
    alert.labels.get(label).map(String::as_str).filter(|value| !value.contains("{{"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::tests::rule, pipeline::State};

    const NOW: &str = "2026-01-01T00:10:00Z";

    fn waiting(matchers: &str) -> Rule {
        rule(&format!(
            "{{name: r, match: [{matchers}], target: {{unit: name, allow: [a.service]}}, steps: [notify]}}"
        ))
    }

    fn alert(name: &str, labels: &[(&str, &str)]) -> AlertRule {
        AlertRule {
            name: name.to_owned(),
            labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            health: "ok".to_owned(),
            last_error: String::new(),
            last_evaluation: "2026-01-01T00:09:50.123456789Z".to_owned(),
            interval: Duration::from_secs(15),
        }
    }

    fn judged(rule: &Rule, loaded: &[AlertRule]) -> (State, String) {
        let findings = judge(&[rule], loaded, NOW.parse().unwrap());
        let [finding] = findings.as_slice() else { panic!("{findings:?}") };
        assert_eq!(finding.cure.is_empty(), finding.state == State::Ok);
        (finding.state, finding.detail.clone())
    }

    #[test]
    fn a_rule_is_known_by_its_name_and_by_the_labels_it_sets() {
        let failed = alert("UnitFailed", &[("remediate", "true"), ("host", "{{ $labels.instance }}")]);
        for (matchers, expected) in [
            ("'alertname=\"UnitFailed\"'", State::Ok),
            ("'alertname=~\"Unit.*\"', 'name=\"a.service\"'", State::Ok),
            ("'remediate=\"true\"'", State::Ok),
            // A label that the expression may give: nobody knows before it fires.
            ("'name=\"a.service\"'", State::Unknown),
            ("'host=\"vps1\"'", State::Unknown),
            ("'alertname=\"Other\"'", State::Failing),
            ("'alertname=\"UnitFailed\"', 'remediate=\"false\"'", State::Failing),
            ("'alertname!=\"Other\"', 'name=\"x\"'", State::Unknown),
        ] {
            let (state, detail) = judged(&waiting(matchers), std::slice::from_ref(&failed));
            assert_eq!(state, expected, "{matchers}: {detail}");
        }
        let (state, detail) = judged(&waiting("'alertname=\"UnitFailed\"'"), &[]);
        assert_eq!(state, State::Failing);
        assert_eq!(
            detail,
            "Prometheus has no rule that raises what rule r (alertname=\"UnitFailed\") waits for"
        );
    }

    #[test]
    fn a_rule_that_errs_or_is_late_raises_nothing() {
        let rule = waiting("'alertname=\"UnitFailed\"'");
        let with = |change: &dyn Fn(&mut AlertRule)| {
            let mut alert = alert("UnitFailed", &[]);
            change(&mut alert);
            judged(&rule, &[alert])
        };
        let (state, detail) = with(&|alert| {
            alert.health = "err".to_owned();
            alert.last_error = "many-to-many\nmatching".to_owned();
        });
        assert_eq!(
            (state, detail.as_str()),
            (State::Failing, "UnitFailed cannot be evaluated: many-to-many\\nmatching")
        );
        let (state, _) = with(&|alert| alert.health = "unknown".to_owned());
        assert_eq!(state, State::Unknown);
        let (state, detail) = with(&|alert| alert.last_evaluation = "2026-01-01T00:07:00Z".to_owned());
        assert_eq!(state, State::Failing);
        assert!(detail.contains("last evaluated 180 s ago, and should be every 15 s"), "{detail}");
        let (state, _) = with(&|alert| {
            alert.last_evaluation = "2026-01-01T00:07:00Z".to_owned();
            alert.interval = Duration::from_secs(60);
        });
        assert_eq!(state, State::Ok, "slow groups have their own pace");
        let (state, _) = with(&|alert| alert.last_evaluation = "soon".to_owned());
        assert_eq!(state, State::Ok);
    }
}
