//! The dashboards: their shape, their queries, and that their thresholds are the alerts'.
//!
//! The rules are those of grafana/dashboard-linter where they fit, and what experience adds.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use promql_parser::{
    label::MatchOp,
    parser::{Expr, VectorSelector},
};
use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    metrics::{self, Metrics},
    promql, repository, rules,
};

/// What stands for `$__rate_interval` when an expression is parsed: no query says this itself.
const RATE_INTERVAL: Duration = Duration::from_secs(7 * 60);
const SOURCE: &str = "${datasource}";

#[derive(Debug, Deserialize)]
struct Dashboard {
    uid: String,
    title: String,
    tags: Vec<String>,
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    editable: bool,
    timezone: String,
    refresh: String,
    #[serde(rename = "graphTooltip")]
    graph_tooltip: u32,
    panels: Vec<Panel>,
    templating: List<Variable>,
    annotations: List<Annotation>,
    links: Vec<Link>,
}

#[derive(Debug, Deserialize)]
struct List<T> {
    list: Vec<T>,
}

#[derive(Debug, Clone, Deserialize)]
struct Panel {
    id: u32,
    r#type: String,
    title: String,
    #[serde(default)]
    description: String,
    #[serde(rename = "gridPos")]
    place: Place,
    datasource: Option<Source>,
    #[serde(default)]
    targets: Vec<Target>,
    #[serde(default, rename = "fieldConfig")]
    fields: Value,
    /// Of a collapsed row.
    #[serde(default)]
    panels: Vec<Panel>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Place {
    x: u32,
    y: u32,
    w: u32,
    h: u32,
}

impl Place {
    fn overlaps(self, other: Self) -> bool {
        self.x < other.x + other.w
            && other.x < self.x + self.w
            && self.y < other.y + other.h
            && other.y < self.y + self.h
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Source {
    uid: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    ref_id: String,
    datasource: Source,
    expr: String,
    format: String,
    legend_format: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Variable {
    name: String,
    label: String,
    r#type: String,
    query: Value,
    datasource: Option<Source>,
    multi: bool,
    refresh: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Annotation {
    datasource: Source,
    expr: String,
    title_format: String,
    text_format: String,
    filter: Filter,
}

#[derive(Debug, Deserialize)]
struct Filter {
    ids: Vec<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    r#type: String,
    url: String,
    keep_time: bool,
}

fn all() -> Vec<(String, Dashboard)> {
    let files = repository::files("grafana/dashboards", ".json");
    files.into_iter().map(|file| (file.clone(), repository::json(&file))).collect()
}

/// Of all dashboards.
pub(crate) fn uids() -> Vec<String> {
    all().into_iter().map(|(_, dashboard)| dashboard.uid).collect()
}

impl Dashboard {
    /// All panels, also those in collapsed rows; no rows.
    fn panels(&self) -> Vec<&Panel> {
        let inner = self.panels.iter().flat_map(|panel| &panel.panels);
        self.panels.iter().chain(inner).filter(|panel| panel.r#type != "row").collect()
    }

    /// Every query with where it stands.
    fn queries(&self) -> Vec<(String, &str)> {
        let panels = self.panels().into_iter().flat_map(|panel| {
            panel.targets.iter().map(|target| (format!("{} {}", panel.title, target.ref_id), &*target.expr))
        });
        let annotations = self.annotations.list.iter().map(|one| ("annotation".to_owned(), &*one.expr));
        panels.chain(annotations).collect()
    }
}

/// As Grafana would send it, for host vps1.
fn parse(expr: &str) -> Expr {
    let filled =
        expr.replace("$__rate_interval", "7m").replace("$__range", "6h").replace("$instance", "vps1");
    // What `label_replace` has found is no variable of Grafana's.
    assert!(!filled.replace("\"$1\"", "").contains('$'), "an unknown variable: {expr}");
    promql::parse(&filled)
}

#[test]
fn dashboards_can_be_provisioned_and_imported_as_they_are() {
    let mut seen = BTreeSet::new();
    for (file, dashboard) in all() {
        let raw: Value = repository::json(&file);
        for key in ["__inputs", "__requires", "id"] {
            assert!(raw.get(key).is_none_or(Value::is_null), "{file}: {key} is resolved by import alone");
        }
        assert!(seen.insert(dashboard.uid.clone()), "{file}: {} is taken", dashboard.uid);
        assert!(dashboard.uid.starts_with("evenkeel-") && dashboard.uid.len() <= 40, "{file}");
        assert!(dashboard.title.starts_with("evenkeel / "), "{file}");
        assert!((39..=42).contains(&dashboard.schema_version), "{file}: Grafana migrates upwards only");
        assert!(!dashboard.editable, "{file}: what is provisioned cannot be saved");
        assert_eq!((dashboard.timezone.as_str(), dashboard.graph_tooltip), ("browser", 1), "{file}");
        assert!(["30s", "1m", "5m"].contains(&dashboard.refresh.as_str()), "{file}");
        assert_eq!(dashboard.tags, ["evenkeel"], "{file}");
    }
}

/// From each dashboard to the two others, with the time that is looked at; and from what is in a cell.
#[test]
fn links_lead_to_the_other_dashboards() {
    let known: BTreeSet<String> = uids().into_iter().collect();
    let uid = Regex::new("\"url\": *\"/d/([a-z-]+)").unwrap();
    for (file, dashboard) in all() {
        let others: BTreeSet<String> = known.iter().filter(|uid| **uid != dashboard.uid).cloned().collect();
        let mut linked = BTreeSet::new();
        for link in &dashboard.links {
            assert!(link.r#type == "link" && link.keep_time, "{file}: {}", link.url);
            linked.insert(link.url.trim_start_matches("/d/").split('?').next().unwrap().to_owned());
        }
        assert_eq!(linked, others, "{file}");
        for found in uid.captures_iter(&repository::text(&file)) {
            assert!(known.contains(&found[1]), "{file}: no dashboard {}", &found[1]);
        }
    }
}

#[test]
fn variables_are_those_that_every_dashboard_has() {
    for (file, dashboard) in all() {
        let variable = |name: &str| {
            let found = dashboard.templating.list.iter().find(|variable| variable.name == name);
            found.unwrap_or_else(|| panic!("{file}: no variable {name}"))
        };
        let source = variable("datasource");
        assert_eq!((source.r#type.as_str(), source.label.as_str()), ("datasource", "Data source"), "{file}");
        assert_eq!(source.query, "prometheus", "{file}");
        // Only a variable of several values is escaped for `=~`; and hosts come and go with the time range.
        let instance = variable("instance");
        assert!(instance.multi && instance.refresh == 2, "{file}");
        let text = repository::text(&file);
        for variable in &dashboard.templating.list {
            let used = Regex::new(&format!(r"\$\{{?{}\b", variable.name)).unwrap();
            assert!(used.is_match(&text), "{file}: {} is not used", variable.name);
            let source = variable.datasource.as_ref().map(|source| source.uid.as_str());
            assert_eq!(source, (variable.r#type == "query").then_some(SOURCE), "{file}: {}", variable.name);
        }
    }
}

#[test]
fn panels_lie_side_by_side() {
    for (file, dashboard) in all() {
        let mut ids = BTreeSet::new();
        for panel in dashboard.panels.iter().chain(dashboard.panels.iter().flat_map(|row| &row.panels)) {
            assert!(ids.insert(panel.id), "{file}: {} is taken", panel.id);
            assert!(panel.place.x + panel.place.w <= 24, "{file}: {} is too wide", panel.title);
        }
        for (index, panel) in dashboard.panels.iter().enumerate() {
            for other in &dashboard.panels[index + 1..] {
                assert!(!panel.place.overlaps(other.place), "{file}: {} and {}", panel.title, other.title);
            }
        }
        let open = dashboard.panels.iter().filter(|panel| panel.r#type != "row").count();
        assert!(open <= 35, "{file}: {open} open panels are too many to look at");
    }
}

#[test]
fn every_panel_says_what_it_answers() {
    const TYPES: [&str; 4] = ["stat", "table", "timeseries", "state-timeline"];
    for (file, dashboard) in all() {
        for panel in dashboard.panels() {
            let title = format!("{file}: {}", panel.title);
            assert!(TYPES.contains(&panel.r#type.as_str()), "{title}: {}", panel.r#type);
            assert!(panel.description.contains('?'), "{title}: which question does it answer?");
            assert!(panel.fields.pointer("/defaults/unit").is_some_and(Value::is_string), "{title}: no unit");
            let empty = panel.fields.pointer("/defaults/noValue").and_then(Value::as_str);
            assert!(
                empty.is_some_and(|text| !text.is_empty()),
                "{title}: says nothing when there is nothing"
            );
            assert!(!panel.targets.is_empty(), "{title}");
            assert_eq!(panel.datasource.as_ref().map(|source| source.uid.as_str()), Some(SOURCE), "{title}");
            assert!(panel.targets.iter().all(|target| target.datasource.uid == SOURCE), "{title}");
        }
        assert!(dashboard.annotations.list.iter().all(|annotation| annotation.datasource.uid == SOURCE));
    }
}

#[test]
fn every_query_is_about_the_chosen_host_and_names_what_exists() {
    let metrics = Metrics::golden();
    let chosen = |selector: &VectorSelector| {
        selector.matchers.matchers.iter().any(|matcher| {
            matcher.name == "instance"
                && matches!(matcher.op, MatchOp::Re(_))
                && matcher.value == "vps1(:[0-9]+)?"
        })
    };
    for (file, dashboard) in all() {
        for (place, query) in dashboard.queries() {
            let expression = parse(query);
            let wrong = promql::misspelt(&expression, &metrics);
            assert!(wrong.is_empty(), "{file}: {place}: {}", wrong.join("; "));
            for (selector, _) in promql::selectors(&expression) {
                assert!(chosen(selector), "{file}: {place}: {selector} is of every host");
            }
        }
    }
}

/// Grafana knows how far apart the points of a graph are, and how often Prometheus scrapes; a fixed range does not.
#[test]
fn counters_are_shown_by_their_increase() {
    for (file, dashboard) in all() {
        for (place, query) in dashboard.queries() {
            let expression = parse(query);
            promql::walk(&expression, &mut |part, inside| {
                let function = inside.last().copied().unwrap_or_default();
                let (selector, range) = match part {
                    Expr::VectorSelector(selector) => (selector, None),
                    Expr::MatrixSelector(matrix) => (&matrix.vs, Some(matrix.range)),
                    _ => return,
                };
                if promql::name(selector).ends_with("_total") {
                    assert!(["rate", "increase"].contains(&function), "{file}: {place}: {selector}");
                }
                if function == "rate" {
                    assert_eq!(range, Some(RATE_INTERVAL), "{file}: {place}: {selector}");
                }
            });
        }
    }
}

#[test]
fn legends_name_labels_that_are_there() {
    let metrics = Metrics::golden();
    let named = Regex::new(r"\{\{\s*(\w+)\s*\}\}").unwrap();
    let check = |place: String, query: &str, legend: &str| {
        let has = promql::labels(&parse(query), &metrics).unwrap_or_default();
        for label in named.captures_iter(legend).map(|found| found[1].to_owned()) {
            assert!(has.contains(&label), "{place}: no label {label}");
        }
    };
    for (file, dashboard) in all() {
        for panel in dashboard.panels() {
            for target in &panel.targets {
                let place = format!("{file}: {} {}", panel.title, target.ref_id);
                let legend = target.legend_format.as_deref();
                assert!(target.format == "table" || legend.is_some(), "{place}: no legend");
                check(place, &target.expr, legend.unwrap_or_default());
            }
        }
        for annotation in &dashboard.annotations.list {
            check(file.clone(), &annotation.expr, &annotation.title_format);
            // Of alerts: each has some of the labels, and a missing one is an empty word.
            if !annotation.expr.starts_with("ALERTS") {
                check(file.clone(), &annotation.expr, &annotation.text_format);
            }
        }
    }
}

#[test]
fn annotations_lie_on_panels_that_exist() {
    for (file, dashboard) in all() {
        let ids: BTreeSet<u32> = dashboard.panels().into_iter().map(|panel| panel.id).collect();
        for annotation in &dashboard.annotations.list {
            assert!(!annotation.filter.ids.is_empty(), "{file}: {}", annotation.expr);
            assert!(annotation.filter.ids.iter().all(|id| ids.contains(id)), "{file}: {}", annotation.expr);
        }
    }
}

#[test]
fn queries_about_alerts_are_about_those_that_exist() {
    let alerts: Vec<String> = rules::all().into_iter().map(|alert| alert.alert).collect();
    for (file, dashboard) in all() {
        for (_, query) in dashboard.queries() {
            let expression = parse(query);
            for (selector, _) in promql::selectors(&expression) {
                for matcher in selector.matchers.matchers.iter().filter(|one| one.name == "alertname") {
                    for name in matcher.value.split('|') {
                        let name = Regex::new(&format!("^(?:{name})$")).unwrap();
                        assert!(alerts.iter().any(|alert| name.is_match(alert)), "{file}: {name}");
                    }
                }
            }
        }
    }
}

/// What is published and nowhere looked at is either missed on a dashboard or not needed.
#[test]
fn every_name_on_the_list_is_used() {
    // The names, and why no rule and no panel is about them.
    const ELSEWHERE: [&str; 2] = [
        // As every program with such a file has it; whether the last reading failed is what the alert is about.
        "evenkeel_web_config_last_reload_success_timestamp_seconds",
        // Judged by the expectation `environment`.
        "evenkeel_environment_expected",
    ];
    let mut used = BTreeSet::new();
    let mut take = |expression: &Expr| {
        used.extend(promql::selectors(expression).into_iter().map(|(one, _)| promql::name(one).to_owned()));
    };
    for alert in rules::all() {
        take(&alert.expression());
    }
    for (_, dashboard) in all() {
        for (_, query) in dashboard.queries() {
            take(&parse(query));
        }
    }
    for line in metrics::listed() {
        let name = line.split(' ').next().unwrap();
        let (is_used, elsewhere) = (used.contains(name), ELSEWHERE.contains(&name));
        assert!(is_used || elsewhere, "{name}: show it on a dashboard, or say here why not");
        assert!(!is_used || !elsewhere, "{name} is used");
    }
}

/// The test of the tests: every dashboard, with each of its metrics misspelt in turn.
#[test]
fn a_misspelt_metric_is_noticed_wherever_it_stands() {
    let metrics = Metrics::golden();
    let mut tried = 0;
    for (file, dashboard) in all() {
        for (place, query) in dashboard.queries() {
            for (selector, _) in promql::selectors(&parse(query)) {
                let name = promql::name(selector);
                let wrong = query.replace(name, &format!("{name}s"));
                let noticed = promql::misspelt(&parse(&wrong), &metrics);
                assert!(!noticed.is_empty(), "{file}: {place}: nobody notices {name}s");
                tried += 1;
            }
        }
    }
    assert!(tried > 300, "{tried}");
}

/// A panel that turns red where no alert fires, or stays green where one does, is believed once.
#[test]
fn thresholds_are_the_alerts() {
    let mut numbers: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for alert in rules::all() {
        for (metric, number) in promql::numbers(&alert.expression()) {
            numbers.entry(metric).or_default().push(number);
        }
    }
    // One alert that fires is one too many.
    numbers.insert("ALERTS".to_owned(), vec![0.0]);
    let mut compared = 0;
    for (file, dashboard) in all() {
        for panel in dashboard.panels() {
            let mut known = Vec::new();
            for target in &panel.targets {
                let expression = parse(&target.expr);
                for (selector, _) in promql::selectors(&expression) {
                    known.extend(numbers.get(promql::name(selector)).into_iter().flatten().copied());
                }
            }
            for threshold in thresholds(&panel.fields) {
                // Grafana colours from the step on; `> 3` of whole numbers begins at 4.
                let agrees = known.iter().any(|number| {
                    let next = if number.fract() == 0.0 { number + 1.0 } else { *number };
                    [*number, next].iter().any(|one| (one - threshold).abs() < 1e-9)
                });
                assert!(agrees, "{file}: {}: no alert is about {threshold}: {known:?}", panel.title);
                compared += 1;
            }
        }
    }
    assert!(compared > 10);
}

/// Every number at which a panel changes its colour, of the panel and of its overrides.
fn thresholds(fields: &Value) -> Vec<f64> {
    let steps = |thresholds: &Value| -> Vec<f64> {
        thresholds["steps"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|step| step["value"].as_f64())
            .collect()
    };
    let mut found = steps(&fields["defaults"]["thresholds"]);
    for one in fields["overrides"].as_array().into_iter().flatten() {
        for property in one["properties"].as_array().into_iter().flatten() {
            if property["id"] == "thresholds" {
                found.extend(steps(&property["value"]));
            }
        }
    }
    found
}

#[test]
fn provisioning_reads_the_dashboards_and_the_shipped_prometheus() {
    let sources: Value = repository::yaml("grafana/provisioning/datasources/evenkeel.yml");
    assert_eq!(sources["apiVersion"], 1);
    assert_eq!(sources["datasources"][0]["type"], "prometheus");
    assert_eq!(sources["datasources"][0]["url"], "http://127.0.0.1:9090");
    let prometheus: Value = repository::yaml("alerts/prometheus.yml");
    let interval = &prometheus["global"]["scrape_interval"];
    assert_eq!(&sources["datasources"][0]["jsonData"]["timeInterval"], interval);

    let providers: Value = repository::yaml("grafana/provisioning/dashboards/evenkeel.yml");
    assert_eq!(providers["apiVersion"], 1);
    assert_eq!(providers["providers"][0]["type"], "file");
    assert_eq!(providers["providers"][0]["allowUiUpdates"], false);
    let path = providers["providers"][0]["options"]["path"].as_str().unwrap();
    assert!(path.ends_with("/grafana/dashboards"));
}
