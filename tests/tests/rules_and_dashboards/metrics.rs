//! The metrics that may be used, and their labels: those in `tests/golden/exporter.prom`, and those listed in
//! `tests/golden/metric-names.txt`.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_remediator::outcome::Outcome;

use crate::repository;

/// Labels of the exporter whose values are all in the golden exposition, because it publishes each of them as 0 or 1.
const CLOSED: [&str; 6] = ["state", "status", "object", "kind", "window", "resource"];

type Values = BTreeSet<String>;

/// The labels of each metric, with the values that were seen.
pub(crate) struct Metrics(BTreeMap<String, BTreeMap<String, Values>>);

impl Metrics {
    pub(crate) fn golden() -> Self {
        let exporter = repository::text("tests/golden/exporter.prom");
        let mut metrics = BTreeMap::<String, BTreeMap<String, Values>>::new();
        for line in exporter.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let labels = metrics.entry(name.to_owned()).or_default();
            // No value in this file holds a quotation mark, so every other piece is outside of them.
            let pieces: Vec<&str> = line[name.len()..].split('"').collect();
            for pair in pieces.chunks_exact(2) {
                let label = pair[0].trim_start_matches(['{', ',']).trim_end_matches('=');
                labels.entry(label.to_owned()).or_default().insert(pair[1].to_owned());
            }
        }
        for name in listed() {
            let mut words = name.split_whitespace();
            let name = words.next().unwrap();
            let labels = words.map(|label| (label.to_owned(), Values::new())).collect();
            assert!(metrics.insert(name.to_owned(), labels).is_none(), "{name} is listed twice");
        }
        for (name, labels) in &mut metrics {
            // Prometheus adds these two to everything it scrapes.
            for label in ["instance", "job"] {
                labels.entry(label.to_owned()).or_default();
            }
            // Not those of questions to Alertmanager and Prometheus, which have outcomes of their own.
            if let Some(values) = labels.get_mut("outcome").filter(|_| !name.contains("_api_")) {
                values.extend(Outcome::ALL.map(|outcome| outcome.as_str().to_owned()));
            }
        }
        Self(metrics)
    }

    /// Whether something exports it.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The labels of a metric.
    pub(crate) fn labels(&self, name: &str) -> BTreeSet<String> {
        let labels = self.0.get(name).unwrap_or_else(|| panic!("nothing exports {name}"));
        labels.keys().cloned().collect()
    }

    /// All values that a label of a metric takes, where they are known.
    pub(crate) fn closed(&self, name: &str, label: &str) -> Option<&Values> {
        let values = self.0.get(name)?.get(label)?;
        let known = CLOSED.contains(&label) || label == "outcome";
        (known && !values.is_empty()).then_some(values)
    }
}

/// The lines of the list, each a name and its labels.
pub(crate) fn listed() -> Vec<String> {
    let text = repository::text("tests/golden/metric-names.txt");
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}
