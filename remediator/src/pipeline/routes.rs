//! Whether Alertmanager's routes lead an alert to this remediator. Pure: from its configuration as it shows it, in which
//! newer versions hide the addresses of webhooks, and from the labels that an alert is known to have. Silences,
//! inhibitions and the hours of a route are not looked at: they pass.

use std::{collections::BTreeMap, net::IpAddr};

use evenkeel_host::web::ListenAddress;
use reqwest::Url;
use serde::Deserialize;

use super::{Check, Finding, fixed_labels, rules::raised_for};
use crate::{
    api::prometheus::AlertRule, clock::rfc3339, config::Config, matcher::Matcher, rules::Rule,
    text::printable,
};

/// Routes inside of routes; more is no tree that a person has written.
const DEPTH: usize = 32;

/// Alertmanager's own words for what it hides.
const HIDDEN: &str = "<secret>";

/// What tells this remediator from others.
pub(super) struct Ours<'a> {
    /// Where it listens, and under which names.
    pub(super) config: &'a Config,
    /// Through which receivers deliveries have come, and when.
    pub(super) arrived: &'a BTreeMap<String, i64>,
}

#[derive(Debug, Deserialize)]
struct Tree {
    route: Route,
    #[serde(default)]
    receivers: Vec<Receiver>,
}

#[derive(Debug, Deserialize)]
struct Route {
    receiver: Option<String>,
    #[serde(default)]
    matchers: Vec<String>,
    /// As it was written before 0.22.
    #[serde(default, rename = "match")]
    equal: BTreeMap<String, String>,
    #[serde(default, rename = "match_re")]
    like: BTreeMap<String, String>,
    #[serde(default, rename = "continue")]
    goes_on: bool,
    #[serde(default)]
    routes: Vec<Route>,
}

#[derive(Debug, Deserialize)]
struct Receiver {
    #[serde(default)]
    name: String,
    #[serde(default)]
    webhook_configs: Vec<Webhook>,
}

#[derive(Debug, Deserialize)]
struct Webhook {
    #[serde(default)]
    url: Option<String>,
}

/// Whether something holds, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    Yes,
    Perhaps,
    No,
}

/// Where a receiver leads.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Leads {
    /// Here, and how that is known.
    Here(String),
    /// To somewhere that may be here: where to.
    Perhaps(String),
    /// Surely not here.
    Elsewhere,
}

/// What is to be said of each rule, or once that all is well. `loaded` are Prometheus's rules, where it was asked.
pub(super) fn judge(
    ours: &Ours<'_>,
    rules: &[&Rule],
    loaded: Option<&[AlertRule]>,
    configuration: &str,
) -> Vec<Finding> {
    let tree: Tree = match evenkeel_host::config::parse("alertmanager", configuration) {
        Ok(tree) => tree,
        Err(_) => {
            return vec![Finding::unknown(
                Check::Routes,
                "Alertmanager's configuration is of a form that is not known here",
                "evenkeel-remediator drill shows whether alerts arrive",
            )];
        }
    };
    let mut findings = Vec::new();
    let mut well: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for rule in rules {
        match of(ours, rule, loaded, &tree) {
            Ok(way) => well.entry(way).or_default().push(&rule.name),
            Err(finding) => findings.push(finding),
        }
    }
    if rules.is_empty() {
        findings.push(Finding::ok(Check::Routes, "no rule here waits for an alert"));
    }
    for (way, names) in well {
        findings.push(Finding::ok(Check::Routes, format!("{}: {way}", names.join(", "))));
    }
    findings
}

/// The way of a rule's alerts, or what is to be said of it.
fn of(ours: &Ours<'_>, rule: &Rule, loaded: Option<&[AlertRule]>, tree: &Tree) -> Result<String, Finding> {
    let known = labels_of(ours.config, rule, loaded.unwrap_or_default());
    let mut ways = Vec::new();
    for labels in &known {
        ways.push(way(ours, rule, labels, tree)?);
    }
    ways.sort_unstable();
    ways.dedup();
    Ok(ways.join("; "))
}

/// The way of one alert.
fn way(
    ours: &Ours<'_>,
    rule: &Rule,
    labels: &BTreeMap<String, String>,
    tree: &Tree,
) -> Result<String, Finding> {
    let mut reached = Vec::new();
    walk(&tree.route, &[], labels, true, DEPTH, &mut reached);
    let mut names: Vec<&str> = Vec::new();
    let mut perhaps = None;
    for (receiver, certain) in &reached {
        let leads = leads(ours, receiver, tree);
        match leads {
            Leads::Here(how) if *certain => return Ok(how),
            Leads::Here(how) => {
                perhaps.get_or_insert(format!("whether they take the route to receiver {} ({how}) depends on labels that are only known when they fire", printable(receiver)));
            }
            Leads::Perhaps(where_to) => {
                perhaps.get_or_insert(where_to);
            }
            Leads::Elsewhere => {}
        }
        names.push(receiver);
    }
    let alerts = format!("the alerts of rule {}", rule.name);
    Err(match perhaps {
        Some(why) => Finding::unknown(
            Check::Routes,
            format!("{alerts}: {why}"),
            "evenkeel-remediator drill shows whether alerts arrive",
        ),
        None => {
            names.sort_unstable();
            names.dedup();
            Finding::failing(
                Check::Routes,
                format!("no route leads {alerts} here: they go to {}", printable(&names.join(", "))),
                "merge what evenkeel-remediator generate alertmanager writes into alertmanager.yml, and reload Alertmanager",
            )
        }
    })
}

/// The labels that a rule's alerts surely have: one set for each alert rule that raises them.
fn labels_of(config: &Config, rule: &Rule, loaded: &[AlertRule]) -> Vec<BTreeMap<String, String>> {
    let wanted = rule.matchers.iter().filter_map(|matcher| Some((matcher.label(), matcher.only()?)));
    let mut least: BTreeMap<String, String> =
        wanted.map(|(label, value)| (label.to_owned(), value.to_owned())).collect();
    // What is not about this host is not for it.
    if let Some(host) = config.hosts.first() {
        least.entry("host".to_owned()).or_insert_with(|| host.clone());
    }
    let mut sets = Vec::new();
    for alert in raised_for(rule, loaded) {
        let mut labels = least.clone();
        let fixed = fixed_labels(alert);
        labels.extend(fixed.map(|(label, value)| (label.to_owned(), value.to_owned())));
        labels.insert("alertname".to_owned(), alert.name.clone());
        sets.push(labels);
    }
    if sets.is_empty() { vec![least] } else { sets }
}

/// Puts down which receivers an alert reaches below a route, and whether that is certain; answers whether the route takes
/// it (Alertmanager's dispatch/route.go: the deepest routes that match, the first of them unless it says `continue`).
fn walk<'a>(
    route: &'a Route,
    inherited: &[&'a str],
    labels: &BTreeMap<String, String>,
    certain: bool,
    depth: usize,
    reached: &mut Vec<(&'a str, bool)>,
) -> Truth {
    let taken = holds(route, labels);
    if taken == Truth::No {
        return Truth::No;
    }
    if depth == 0 {
        return Truth::Perhaps;
    }
    let own: Vec<&str> = route.receiver.iter().map(String::as_str).collect();
    let receiver = if own.is_empty() { inherited } else { &own };
    let mut certain = certain && taken == Truth::Yes;
    let mut below = Truth::No;
    for child in &route.routes {
        let child_taken = walk(child, receiver, labels, certain, depth - 1, reached);
        match child_taken {
            Truth::Yes => below = Truth::Yes,
            Truth::Perhaps if below == Truth::No => below = Truth::Perhaps,
            Truth::Perhaps | Truth::No => {}
        }
        match child_taken {
            Truth::Yes if !child.goes_on => break,
            Truth::Perhaps if !child.goes_on => certain = false,
            _ => {}
        }
    }
    if below != Truth::Yes {
        reached.extend(receiver.iter().map(|name| (*name, certain && below == Truth::No)));
    }
    taken
}

/// Whether a route takes an alert of which these labels are known.
fn holds(route: &Route, labels: &BTreeMap<String, String>) -> Truth {
    let quoted = |text: &String| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let equal = route.equal.iter().map(|(label, value)| format!("{label}=\"{}\"", quoted(value)));
    let like = route.like.iter().map(|(label, value)| format!("{label}=~\"{}\"", quoted(value)));
    let mut truth = Truth::Yes;
    for text in route.matchers.iter().cloned().chain(equal).chain(like) {
        // Alertmanager's regular expressions are of another kind; most are the same.
        let Ok(matcher) = Matcher::parse(&text) else {
            truth = Truth::Perhaps;
            continue;
        };
        match labels.get(matcher.label()) {
            Some(value) if !matcher.accepts(value) => return Truth::No,
            Some(_) => {}
            None => truth = Truth::Perhaps,
        }
    }
    truth
}

fn leads(ours: &Ours<'_>, name: &str, tree: &Tree) -> Leads {
    let webhooks = tree.receivers.iter().filter(|receiver| receiver.name == name);
    let mut perhaps = None;
    let mut has_webhook = false;
    for webhook in webhooks.flat_map(|receiver| &receiver.webhook_configs) {
        has_webhook = true;
        let url = webhook.url.as_deref().filter(|url| !url.is_empty() && *url != HIDDEN);
        let Some(url) = url.and_then(|url| Url::parse(url).ok()) else {
            perhaps.get_or_insert_with(|| {
                format!(
                    "they go to receiver {}, whose address Alertmanager does not show, and by which nothing has come since the start",
                    printable(name)
                )
            });
            continue;
        };
        if is_ours(ours.config, &url) {
            return Leads::Here(format!("receiver {}, {}", printable(name), place(&url)));
        }
        let where_to = format!(
            "they go to receiver {} at {}, which is no address of `server.listen`, and by which nothing has come since the start",
            printable(name),
            place(&url)
        );
        perhaps = Some(where_to);
    }
    match (ours.arrived.get(name).filter(|_| has_webhook), perhaps) {
        (Some(last), _) => Leads::Here(format!(
            "receiver {}, by which deliveries come (the last {})",
            printable(name),
            rfc3339(*last)
        )),
        (None, Some(where_to)) => Leads::Perhaps(where_to),
        (None, None) => Leads::Elsewhere,
    }
}

/// Whether a webhook's address is one where this remediator listens.
fn is_ours(config: &Config, url: &Url) -> bool {
    let tls = url.scheme() == "https";
    if !matches!(url.path().trim_end_matches('/'), "" | "/api/v1/alerts")
        || tls != config.access.security.offers().tls
    {
        return false;
    }
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return false };
    let host = host.trim_matches(['[', ']']);
    // Loopback is this host's only where Alertmanager is on it.
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let near = config.alertmanager.as_ref().is_some_and(crate::api::Api::is_local);
    config.access.listen.iter().any(|address| {
        let ListenAddress::Tcp(address) = address else { return false };
        let Some((at, listens)) = address.rsplit_once(':') else { return false };
        let is_host = if loopback {
            near
        } else {
            at.trim_matches(['[', ']']) == host || config.hosts.iter().any(|name| name == host)
        };
        listens.parse() == Ok(port) && is_host
    })
}

/// An address without what may be secret in it.
fn place(url: &Url) -> String {
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    printable(&format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default()))
}

#[cfg(test)]
mod tests;
