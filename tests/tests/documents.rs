//! The documents name places that exist, commands that the programs have, and in fences of `sh` only what a test runs or what
//! is marked as an example.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Command;
use evenkeel_exporter::collectors;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Folders of documents besides the root.
const FOLDERS: [&str; 7] =
    ["docs", "alerts", "alerts/runbooks", "grafana", "packaging", "tests", "docs/images"];

/// Installs the packages, and runs what stands below a heading of packaging/README.md as it stands there.
const DEB: &str = "deb_from_installation_to_purge";
const READ_THERE: &str = "documented(\"### From there to a repaired unit\")";

/// Each command of a fence of `sh` that is no example, the test (or file) that runs it, and what of it stands there.
const RUN: &[(&str, &str, &str)] = &[
    ("make up", "up_watches_this_host_and_says_what_is_absent", "evenkeel-lab"),
    ("make demo", "demo_heals_what_it_breaks", "evenkeel-lab"),
    ("make test", ".ci/run", "make test"),
    (
        "evenkeel-remediator generate polkit > /etc/polkit-1/rules.d/50-evenkeel.rules",
        "packaged_units_do_their_work_and_nothing_else",
        "evenkeel-remediator generate polkit >/etc/polkit-1/rules.d/50-evenkeel.rules",
    ),
    ("evenkeel-remediator generate alertmanager", "generated_routes_are_alertmanagers", "\"alertmanager\""),
    ("evenkeel-remediator selftest", "drill_follows_an_alert_to_its_end", "[\"selftest\"]"),
    ("evenkeel-remediator drill", "drill_follows_an_alert_to_its_end", "[\"drill\""),
    (
        "evenkeel-remediator drill --end-to-end",
        "drill_follows_an_alert_to_its_end",
        "[\"drill\", \"--end-to-end\"",
    ),
    ("make deb", DEB, "(`make deb`)"),
    ("apt-get install ./.run/dist/evenkeel-*.deb", DEB, "apt(host, \"install\""),
    ("apt-get remove evenkeel-exporter evenkeel-remediator", DEB, "apt(host, \"remove\""),
    ("apt-get purge evenkeel-exporter evenkeel-remediator", DEB, "apt(host, \"purge\""),
    (
        "sed -i 's/^ARGS=\"\"/ARGS=\"--cluster.listen-address= --web.listen-address=127.0.0.1:9093\"/' /etc/default/prometheus-alertmanager",
        DEB,
        READ_THERE,
    ),
    (
        "install -m 640 -g prometheus /etc/evenkeel/webhook.token /etc/prometheus/webhook.token",
        DEB,
        READ_THERE,
    ),
    (
        "evenkeel-remediator generate alertmanager | sed 's,/etc/evenkeel/,/etc/prometheus/,' > /etc/prometheus/alertmanager.yml",
        DEB,
        READ_THERE,
    ),
    ("systemctl restart prometheus-alertmanager", DEB, READ_THERE),
    (
        "sed -i 's/^  mode: plan /  mode: auto /; s/^# alertmanager: /alertmanager: /' /etc/evenkeel/remediator.yml",
        DEB,
        READ_THERE,
    ),
    ("systemctl reload evenkeel-remediator", DEB, READ_THERE),
];

/// Every document, with its path below the root.
fn documents() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for folder in FOLDERS.into_iter().chain([""]) {
        let Ok(entries) = fs::read_dir(Path::new(ROOT).join(folder)) else { continue };
        for entry in entries {
            let path = entry.expect("the folder can be read").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text =
                    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                found.push((path.strip_prefix(ROOT).unwrap_or(&path).to_owned(), text));
            }
        }
    }
    assert!(found.len() > 40, "only {} documents", found.len());
    found
}

/// Words in backticks that look like a path of this repository.
fn paths(text: &str) -> Vec<&str> {
    let tops = ["host/", "exporter/", "remediator/", "alerts/", "grafana/", "packaging/", "tests/", "docs/"];
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| {
            tops.iter().any(|top| word.starts_with(top)) && !word.contains(['*', ' ', '<', '{', '…'])
        })
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

/// Links to other places of this repository.
#[test]
fn every_link_between_documents_leads_somewhere() {
    let mut seen = 0;
    for (document, text) in documents() {
        let folder = document.parent().unwrap_or(Path::new(""));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap_or_default();
            if target.contains("://") || path.is_empty() {
                continue;
            }
            let exists = Path::new(ROOT).join(folder).join(path).exists();
            assert!(exists, "{} links to {target}, which is not there", document.display());
            seen += 1;
        }
    }
    assert!(seen > 5, "only {seen} links were found to check");
}

/// The lines of fences that begin with exactly this word.
fn fenced<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let mut lines = Vec::new();
    let mut inside = None;
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), inside) {
            (Some(_), Some(_)) => inside = None,
            (Some(info), None) => inside = Some(info.trim() == word),
            (None, Some(true)) => lines.push(line),
            _ => {}
        }
    }
    lines
}

/// The command without what is said behind it.
fn command(line: &str) -> &str {
    line.split(" # ").next().unwrap_or_default().trim()
}

/// The sources of all tests.
fn sources() -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["tests/tests", "tests/tests/lab", "remediator/tests", "exporter/tests"] {
        let entries = fs::read_dir(Path::new(ROOT).join(folder)).expect("there are tests");
        let files = entries.map(|entry| entry.expect("the folder can be read").path());
        let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
        found.extend(files.map(|path| fs::read_to_string(path).expect("a source is text")));
    }
    found
}

#[test]
fn every_command_in_a_fence_is_run_by_a_test_or_is_an_example() {
    let mut seen = 0;
    for (document, text) in documents() {
        let document = document.display();
        for word in ["bash", "shell", "console"] {
            assert!(
                fenced(&text, word).is_empty(),
                "{document} has a fence of {word}: write sh, or sh example"
            );
        }
        for line in fenced(&text, "sh").into_iter().map(command).filter(|line| !line.is_empty()) {
            let known = RUN.iter().any(|(run, ..)| *run == line);
            assert!(
                known,
                "{document}: no test is known to run `{line}`: name it in RUN, or mark the fence `sh example`"
            );
            seen += 1;
        }
    }
    assert!(seen > 5, "only {seen} commands were found");
}

#[test]
fn the_tests_that_run_commands_are_there_and_run_them() {
    let sources = sources();
    for (line, test, words) in RUN {
        let file = fs::read_to_string(Path::new(ROOT).join(test)).ok();
        let named = sources.iter().filter(|source| source.contains(&format!("\"{test}\"")));
        let runs = named.chain(&file).any(|source| source.contains(words));
        assert!(runs, "no test {test} has {words}, and so none is seen to run `{line}`");
    }
}

/// Also those in tables and sentences.
#[test]
fn the_programs_have_the_commands_and_flags_that_documents_name() {
    let programs =
        [evenkeel_exporter::cli::command(&collectors::names()), evenkeel_remediator::cli::command()];
    let mut seen = 0;
    for (document, text) in documents() {
        let inline = text.split('`').skip(1).step_by(2);
        let lines = inline.chain(["sh", "sh example"].into_iter().flat_map(|word| fenced(&text, word)));
        for line in lines.map(command) {
            let Some(program) =
                programs.iter().find(|program| line.starts_with(&format!("{} ", program.get_name())))
            else {
                continue;
            };
            if let Err(wrong) = exists(program, line) {
                panic!("{}: `{line}`: {wrong}", document.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "only {seen} commands were found");
}

/// Whether the program has the command and the flags of a line.
fn exists(program: &Command, line: &str) -> Result<(), String> {
    let mut below = program.clone().disable_help_flag(false);
    below.build();
    let mut command = &below;
    let mut words = line.split_whitespace().skip(1);
    while let Some(word) = words.next() {
        // What follows is another program's.
        if ["|", ">", "&&", ";"].contains(&word) {
            break;
        }
        let word = word.trim_matches(['[', ']']);
        if let Some(flag) = word.strip_prefix("--") {
            let (flag, value) =
                flag.split_once('=').map_or((flag, None), |(flag, value)| (flag, Some(value)));
            match command.get_arguments().find(|known| known.get_long() == Some(flag)) {
                Some(known) if known.get_action().takes_values() && value.is_none() => drop(words.next()),
                Some(_) => {}
                // A star or dots stand for several.
                None if flag.contains(['*', '…']) || ["help", "version"].contains(&flag) => {}
                None => return Err(format!("there is no flag --{flag}")),
            }
        } else if command.has_subcommands() {
            // One of several: `generate polkit\|haproxy`.
            let mut names = word.split(['|', '\\']).filter(|name| !name.is_empty());
            let first = names.clone().next().unwrap_or_default();
            if names.any(|name| command.find_subcommand(name).is_none() && name != "help") {
                return Err(format!("there is no command {word}"));
            }
            command = command.find_subcommand(first).unwrap_or(command);
        }
    }
    Ok(())
}

#[test]
fn what_is_wrong_in_a_document_is_seen() {
    let program = evenkeel_remediator::cli::command();
    for line in [
        "evenkeel-remediator history --json --rule X | head",
        "evenkeel-remediator drill [--end-to-end]",
        "evenkeel-remediator generate polkit\\|haproxy",
        "evenkeel-remediator generate polkit > /etc/x",
        "evenkeel-remediator --config.file FILE status",
    ] {
        assert_eq!(exists(&program, line), Ok(()), "{line}");
    }
    for line in [
        "evenkeel-remediator histry",
        "evenkeel-remediator drill --end",
        "evenkeel-remediator generate polkit\\|x",
    ] {
        assert!(exists(&program, line).is_err(), "{line}");
    }
    let text = "```sh\na  # why\n```\n```sh example\nb\n```\n```\nc\n```\n";
    assert_eq!(fenced(text, "sh").into_iter().map(command).collect::<Vec<_>>(), ["a"]);
    assert_eq!(fenced(text, "sh example"), ["b"]);
}
