//! docs/metrics.md: every metric of both programs with what the code says of it. The exporter's are those of the golden
//! exposition, the remediator's are asked of the remediator's own registry.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use evenkeel_host::metrics::{Block, Format};
use evenkeel_host::web::Security;
use evenkeel_remediator::{
    api::{Fault, prometheus::Exporter},
    clock::Clock,
    config,
    fleet::{
        settings::Role,
        view::{Backlog, Budget, View},
    },
    journal::{Journal, Reader},
    metrics::{Metrics, observed, of_fleet},
    notify::Delivery,
    outcome::Outcome,
    pipeline::Report,
    target::Kind,
};
use evenkeel_tests::exposition::Exposition;
use prometheus_client::registry::Registry;

const GOLDEN: &str = include_str!("../../golden/exporter.prom");
/// Names and labels, compared with the running programs by the lab.
const LISTED: &str = include_str!("../../golden/metric-names.txt");
const EXAMPLE: &str = include_str!("../../../packaging/remediator.yml");

/// Gauges that neither shows, with the source that describes them: they take processes that may be looked into, a fleet, and
/// a repair that has ended.
const FROM_SOURCES: &[(&str, &str)] = &[
    ("evenkeel_environment_expected", include_str!("../../../exporter/src/collectors/environment.rs")),
    ("evenkeel_remediator_fleet_paused", include_str!("../../../remediator/src/metrics/observed.rs")),
    (
        "evenkeel_remediator_last_end_timestamp_seconds",
        include_str!("../../../remediator/src/metrics/observed.rs"),
    ),
];

/// The parts of the page, by how the names begin; the first that fits counts.
const PARTS: &[(&str, &str)] = &[
    ("evenkeel_remediator_", "evenkeel-remediator"),
    ("systemd_", "evenkeel-exporter: systemd"),
    ("docker_", "evenkeel-exporter: Docker"),
    ("node_filesystem_", "evenkeel-exporter: filesystems, under node_exporter's names"),
    ("redis_", "evenkeel-exporter: Redis, under redis_exporter's names where those have one"),
    ("evenkeel_host_", "evenkeel-exporter: memory, load and names"),
    ("evenkeel_web_config_", "Both: the web configuration file, where there is one"),
    ("evenkeel_", "evenkeel-exporter: expectations, and the exporter itself"),
    ("process_", "Both: the process"),
    ("", "evenkeel-exporter: others"),
];

struct Metric {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
}

pub(crate) fn page() -> String {
    let mut metrics = described(GOLDEN);
    metrics.extend(described(&remediator()));
    metrics.extend(described(&web()));
    for (name, source) in FROM_SOURCES {
        let metric =
            Metric { kind: "gauge".to_owned(), help: help_in(source, name), labels: BTreeSet::new() };
        metrics.insert((*name).to_owned(), metric);
    }
    listed_labels(&mut metrics);
    let mut body = String::from(
        "Names and labels change only with a major version. What vanished from a host is not exported any more; a state is one series for each word, 1 for the one that holds.\n",
    );
    for (prefix, title) in PARTS {
        let (names, rest): (BTreeMap<_, _>, _) =
            metrics.into_iter().partition(|(name, _)| name.starts_with(prefix));
        metrics = rest;
        if !names.is_empty() {
            body.push_str(&format!(
                "\n## {title}\n\n| Metric | Type | Unit | Labels | Meaning |\n|---|---|---|---|---|\n"
            ));
        }
        for (name, metric) in names {
            let labels: Vec<String> = metric.labels.iter().map(|label| shown(label)).collect();
            body.push_str(&format!(
                "| `{name}` | {} | {} | {} | {} |\n",
                metric.kind,
                unit(&name),
                labels.join(", "),
                crate::cell(&metric.help)
            ));
        }
    }
    crate::page("Metrics", "what both programs publish", &body)
}

/// The metrics that a text describes.
fn described(text: &str) -> BTreeMap<String, Metric> {
    // What differs from host to host is a star there.
    let samples = Exposition::parse(&text.replace(" *\n", " 0\n"));
    let mut metrics = BTreeMap::new();
    for (name, description) in Exposition::descriptions(text) {
        let of_it = |sample: &str| {
            let suffix = sample.strip_prefix(name);
            suffix.is_some_and(|suffix| ["", "_bucket", "_sum", "_count"].contains(&suffix))
        };
        let samples = samples.samples().filter(|sample| of_it(&sample.name));
        let labels =
            samples.flat_map(|sample| sample.labels.keys().cloned()).filter(|label| label != "le").collect();
        assert!(
            !description.help.is_empty() && !description.kind.is_empty(),
            "{name} has no help or no type"
        );
        metrics.insert(
            name.to_owned(),
            Metric {
                kind: description.kind.to_owned(),
                help: description.help.trim_end_matches('.').to_owned(),
                labels,
            },
        );
    }
    metrics
}

/// What a remediator publishes that has counted everything once.
fn remediator() -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("webhook.token"), "a token that only this test knows\n").expect("written");
    let example = EXAMPLE.replace("/etc/evenkeel/webhook.token", "webhook.token").replace(
        "# Ceilings for every rule below.",
        "state: {dir: state}\n\n# Ceilings for every rule below.",
    );
    fs::write(path("r.yml"), example).expect("written");
    let config = config::load(&path("r.yml")).expect("the example is good");
    let metrics = Metrics::new(&config.rules);
    metrics.request(200);
    metrics.ignored("other_host");
    metrics.decision("r", "planned", "plan_mode");
    metrics.ended("r", "a", "S2", Outcome::Succeeded);
    metrics.probe_took(Kind::Unit, std::time::Duration::from_secs(1));
    metrics.step_took("a", std::time::Duration::from_secs(1));
    metrics.verified("r", std::time::Duration::from_secs(1));
    metrics.freed("a", Some(1), Some(1));
    metrics.notification(Delivery::Delivered);
    metrics.asked("prometheus", None::<&Fault>);
    metrics.exporter(Some(Exporter::Up));
    metrics.pipeline(Some(&Report::default()));
    metrics.fleet.begin(Role::Both);
    let clock = Clock::default();
    // Makes the state; what is asked of it is read beside.
    let _journal = Journal::open_in(config.places(), clock.clone()).expect("the state can be made");
    let reader = Reader::open(&config.state_dir).expect("the state can be read");
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let known = observed(&config, &reader, &clock).expect("the state can be read");
    text(&Block::of_registry(&registry)) + &text(&known) + &text(&of_fleet(&fleet()))
}

/// What a gateway has seen of a fleet.
fn fleet() -> View {
    let budget = Budget { scope: "fleet".to_owned(), count: 1, window_ms: 1000, used: 0, wait_ms: 0 };
    View { budgets: vec![budget], backlog: Some(Backlog::default()), ..View::default() }
}

/// What both publish where there is a web configuration file.
fn web() -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("web.yml");
    fs::write(&file, "http_server_config: {headers: {X-Frame-Options: deny}}\n").expect("written");
    let security = Security::load(&file).expect("it is good");
    text(&Block::new(security.families()))
}

fn text(block: &Block) -> String {
    let parts = block.text(Format::Classic);
    parts.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// The help that stands behind a metric's name in a source.
fn help_in(source: &str, name: &str) -> String {
    let (_, after) = source.split_once(&format!("\"{name}\",")).unwrap_or_else(|| panic!("no {name}"));
    let help = after.split('"').nth(1).unwrap_or_default();
    help.trim_end_matches('.').to_owned()
}

/// What is on the list is described, and has the labels that stand there.
fn listed_labels(metrics: &mut BTreeMap<String, Metric>) {
    for line in LISTED.lines().filter(|line| line.starts_with("evenkeel_")) {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let base = base.filter(|base| metrics.contains_key(*base)).unwrap_or(name);
        let metric =
            metrics.get_mut(base).unwrap_or_else(|| panic!("{name} is listed, and nothing describes it"));
        metric.labels.extend(words.filter(|label| *label != "le").map(str::to_owned));
    }
}

/// Those of container labels have the names that somebody has configured.
fn shown(label: &str) -> String {
    if label.starts_with("container_label_") {
        "`container_label_…`".to_owned()
    } else {
        format!("`{label}`")
    }
}

/// By the end of the name, as Prometheus asks for it.
fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    for (suffix, unit) in [
        ("_timestamp_seconds", "seconds since 1970"),
        ("_time_seconds", "seconds since 1970"),
        ("_trigger_seconds", "seconds since 1970"),
        ("_seconds", "seconds"),
        ("_bytes", "bytes"),
        ("_ratio", "1 is all"),
        ("_info", "always 1"),
    ] {
        if name.ends_with(suffix) {
            return unit;
        }
    }
    ""
}
