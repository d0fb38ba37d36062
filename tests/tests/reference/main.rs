//! The reference pages in docs/ are made from the code: metrics from what is published, the configuration from its schema,
//! actions from their list, the command line from its flags. `make docs` writes them; here they are compared, so that none
//! can be out of date.

mod actions;
mod cli;
mod configuration;
mod keys;
mod metrics;

use std::{fs, path::Path};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
/// Set by `make docs`.
const UPDATE: &str = "EVENKEEL_UPDATE_DOCS";

/// What is said at the head of each page.
fn page(title: &str, source: &str, body: &str) -> String {
    format!("# {title}\n\n<!-- Written by `make docs` from {source}; a test compares them. -->\n\n{body}")
}

/// Text as a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn is_current(name: &str, text: &str) {
    let path = Path::new(DOCS).join(name);
    if std::env::var_os(UPDATE).is_some() {
        fs::create_dir_all(DOCS).expect("docs/ can be made");
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let line = written.lines().zip(text.lines()).position(|(one, other)| one != other);
    assert!(
        written == text,
        "docs/{name} is out of date{}: run make docs",
        line.map_or_else(String::new, |line| format!(" at line {}", line + 1))
    );
}

#[test]
fn metrics_are_those_that_are_published() {
    is_current("metrics.md", &metrics::page());
}

#[test]
fn the_configuration_is_what_the_schemas_say() {
    is_current("configuration.md", &configuration::page());
}

#[test]
fn actions_are_those_on_the_list() {
    is_current("actions.md", &actions::page());
}

#[test]
fn the_command_line_is_what_help_says() {
    is_current("cli.md", &cli::page());
}
