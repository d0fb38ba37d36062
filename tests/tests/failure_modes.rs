//! The tables of failure modes and of cases in `tests/README.md` name tests that exist, in every row.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Those about many hosts are not in the table.
const ROWS: [std::ops::RangeInclusive<u32>; 2] = [1..=11, 15..=34];

/// Every test of the repository: functions below a `#[test]` of any kind, and the names that the lab gives its own.
fn tests_below(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                let name = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "));
                if let (true, Some(name)) = (is_test, name) {
                    found.extend(name.split('(').next().map(str::to_owned));
                    is_test = false;
                }
            }
            if path.components().any(|part| part.as_os_str() == "lab") {
                let names =
                    text.split("trial(").skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"'));
                found.extend(names.filter_map(|rest| rest.split('"').next()).map(str::to_owned));
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

/// The names in a column of each row.
fn table(heading: &str, column: usize) -> BTreeMap<u32, (Vec<String>, bool)> {
    let section = section(heading);
    let rows = section.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (number, tests) = (cells.get(1)?.parse().ok()?, cells.get(column)?);
        let words = tests.split('`').skip(1).step_by(2).filter(|word| !word.contains([' ', '/']));
        Some((number, (words.map(str::to_owned).collect(), tests.contains("missing"))))
    });
    rows.collect()
}

fn known() -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for folder in ["host", "exporter", "remediator", "tests"] {
        tests_below(&Path::new(ROOT).join(folder), &mut known);
    }
    assert!(known.len() > 300, "only {} tests were found", known.len());
    known
}

#[test]
fn every_test_in_the_table_of_failure_modes_exists() {
    let (known, table) = (known(), table("## Failure modes", 4));
    let rows: Vec<u32> = ROWS.into_iter().flatten().collect();
    assert_eq!(table.keys().copied().collect::<Vec<_>>(), rows, "the rows of the table");
    for (row, (tests, is_missing)) in &table {
        assert!(
            !tests.is_empty() || *is_missing,
            "row {row} names no test and does not say that it is missing"
        );
        for test in tests.iter().filter(|test| *test != "webhook") {
            assert!(known.contains(test), "row {row} names `{test}`, which is no test");
        }
    }
}

#[test]
fn every_test_in_the_table_of_cases_exists() {
    let (known, table) = (known(), table("## Cases", 3));
    assert!(!table.is_empty(), "no table of cases");
    for (row, (tests, _)) in &table {
        assert!(!tests.is_empty(), "case {row} names no test");
        for test in tests {
            assert!(known.contains(test), "case {row} names `{test}`, which is no test");
        }
    }
}
