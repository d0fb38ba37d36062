//! The metrics that may be used, and their labels: those in `tests/golden/exporter.prom`, and those listed in
//! `tests/golden/metric-names.txt`.

use std::collections::{BTreeMap, BTreeSet};

use crate::repository;

pub(crate) struct Metrics(BTreeMap<String, BTreeSet<String>>);

impl Metrics {
    pub(crate) fn golden() -> Self {
        let exporter = repository::text("tests/golden/exporter.prom");
        let mut metrics = BTreeMap::<String, BTreeSet<String>>::new();
        for line in exporter.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            // No value in this file holds a quotation mark, so every other piece is outside of them.
            let outside = line[name.len()..].split('"').step_by(2);
            let labels = outside.filter_map(|piece| piece.trim_start_matches(['{', ',']).strip_suffix('='));
            // Prometheus adds these two to everything it scrapes.
            let labels = labels.chain(["instance", "job"]).map(str::to_owned);
            metrics.entry(name.to_owned()).or_default().extend(labels);
        }
        let listed = repository::text("tests/golden/metric-names.txt");
        for line in listed.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut words = line.split_whitespace().map(str::to_owned);
            let name = words.next().unwrap();
            let labels = words.chain(["instance".to_owned(), "job".to_owned()]).collect();
            assert!(metrics.insert(name.clone(), labels).is_none(), "{name} is listed twice");
        }
        Self(metrics)
    }

    /// The labels of a metric.
    pub(crate) fn labels(&self, name: &str) -> &BTreeSet<String> {
        self.0.get(name).unwrap_or_else(|| panic!("nothing exports {name}"))
    }
}
