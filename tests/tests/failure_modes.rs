//! The tables of failure modes and of cases in `tests/README.md` name tests that exist, in every row.

use std::{collections::BTreeSet, fs, path::Path};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What names a test: a `#[test]` of any kind, or the lab.
#[derive(Default)]
struct Known {
    all: BTreeSet<String>,
    lab: BTreeSet<String>,
}

impl Known {
    /// Every test of the repository.
    fn new() -> Self {
        let mut known = Self::default();
        for folder in ["host", "exporter", "remediator", "tests"] {
            known.add(&Path::new(ROOT).join(folder));
        }
        assert!(known.all.len() > 300 && known.lab.len() > 50, "only {} tests were found", known.all.len());
        known
    }

    /// Functions below a `#[test]`, and the names that the lab gives its own.
    fn add(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                self.add(&path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let mut is_test = false;
                for line in text.lines().map(str::trim) {
                    is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                    let name = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "));
                    if let (true, Some(name)) = (is_test, name) {
                        self.all.extend(name.split('(').next().map(str::to_owned));
                        is_test = false;
                    }
                }
                if path.components().any(|part| part.as_os_str() == "lab") {
                    let names = text.split("trial(").skip(1);
                    let names = names.filter_map(|rest| rest.trim_start().strip_prefix('"'));
                    let names = names.filter_map(|rest| rest.split('"').next()).map(str::to_owned);
                    self.lab.extend(names);
                    self.all.extend(self.lab.iter().cloned());
                }
            }
        }
    }
}

/// A section of the document, from its heading to the next.
fn section(heading: &str) -> String {
    let text = fs::read_to_string(Path::new(ROOT).join("tests/README.md")).expect("tests/README.md");
    let lines = text.lines().skip_while(|line| *line != heading).skip(1);
    lines.take_while(|line| !line.starts_with("## ")).map(|line| format!("{line}\n")).collect()
}

/// The rows of a table in their order: the number, and the names in a column.
fn table(heading: &str, column: usize) -> Vec<(u32, Vec<String>)> {
    let section = section(heading);
    let rows = section.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (number, tests) = (cells.get(1)?.parse().ok()?, cells.get(column)?);
        let words = tests.split('`').skip(1).step_by(2).filter(|word| !word.contains([' ', '/']));
        Some((number, words.map(str::to_owned).collect()))
    });
    rows.collect()
}

/// Fails unless each of these rows is there once, in order, and names tests, all of which exist.
fn names_tests(table: &[(u32, Vec<String>)], rows: impl Iterator<Item = u32>, known: &BTreeSet<String>) {
    let numbers: Vec<u32> = table.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, rows.collect::<Vec<_>>(), "the rows of the table");
    for (row, tests) in table {
        assert!(!tests.is_empty(), "row {row} names no test");
        for test in tests {
            assert!(known.contains(test), "row {row} names `{test}`, which is no such test");
        }
    }
}

#[test]
fn every_test_in_the_table_of_failure_modes_exists() {
    let mut known = Known::new().all;
    // One of the parsers that `make fuzz` feeds.
    known.insert("webhook".to_owned());
    names_tests(&table("## Failure modes", 4), 1..=34, &known);
}

#[test]
fn every_test_in_the_table_of_cases_exists_and_is_the_labs() {
    names_tests(&table("## Cases", 3), 1..=26, &Known::new().lab);
}
