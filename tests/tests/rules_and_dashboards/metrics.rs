//! The metrics that may be used, and their labels: `tests/golden/metric-names.txt`.

use std::collections::{BTreeMap, BTreeSet};

use crate::repository;

pub(crate) struct Metrics(BTreeMap<String, BTreeSet<String>>);

impl Metrics {
    pub(crate) fn golden() -> Self {
        let text = repository::text("tests/golden/metric-names.txt");
        let mut metrics = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut words = line.split_whitespace().map(str::to_owned);
            let name = words.next().unwrap();
            // Prometheus adds these two to everything it scrapes.
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
