//! The documents name places that exist.

use std::{fs, path::Path};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Words in backticks that look like a path of this repository.
fn paths(text: &str) -> Vec<&str> {
    let tops = ["host/", "exporter/", "remediator/", "alerts/", "grafana/", "packaging/", "tests/"];
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| tops.iter().any(|top| word.starts_with(top)) && !word.contains(['*', ' ', '<', '{']))
        .collect()
}

#[test]
fn every_path_in_the_documents_exists() {
    let mut seen = 0;
    for document in ["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        let text = fs::read_to_string(Path::new(ROOT).join(document))
            .unwrap_or_else(|error| panic!("{document}: {error}"));
        for path in paths(&text) {
            assert!(Path::new(ROOT).join(path).exists(), "{document} names `{path}`, which does not exist");
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} paths were found to check");
}
