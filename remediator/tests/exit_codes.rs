//! What the binary answers to whoever starts it: 0 done, 1 cannot or is not well, 64 asked wrongly.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it says")]

mod common;

use std::{fs, net::TcpListener, path::Path};

use common::{Ran, remediator};
use evenkeel_remediator::journal::Journal;

const CONFIG: &str = "
identity: {hosts: [vps1]}
server: {auth: none, listen: ['127.0.0.1:0']}
state: {dir: state}
rules:
  - name: told
    match: ['alertname=\"Odd\"']
    target: {unit: name, allow: [app.service]}
    steps: [notify]
";

fn folder_with(config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("r.yml"), config).unwrap();
    folder
}

fn run(folder: &Path, arguments: &[&str]) -> Ran {
    remediator(folder, &[&["--config.file", "r.yml"], arguments].concat())
}

#[test]
fn help_and_version_are_no_errors() {
    let folder = tempfile::tempdir().unwrap();
    for (argument, expected) in [
        ("--help", "Usage: evenkeel-remediator [OPTIONS] <COMMAND>"),
        ("--version", concat!("evenkeel-remediator ", env!("CARGO_PKG_VERSION"))),
    ] {
        let ran = remediator(folder.path(), &[argument]);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{argument}");
        assert!(ran.stdout.contains(expected), "{}", ran.stdout);
    }
}

#[test]
fn wrong_usage_is_64() {
    let folder = folder_with(CONFIG);
    for arguments in [
        &[][..],
        &["srve"],
        &["serve", "--no-such-flag"],
        &["simulate"],
        &["history", "--limit", "many"],
        &["explain", "told"],
        &["--log.level", "loud", "check-config"],
        &["--log.format", "xml", "check-config"],
        &["explain", "no-such-rule", "app.service"],
        &["drill", "--timeout", "soon"],
        // Neither of the two that a drill asks is configured.
        &["drill"],
        &["drill", "--end-to-end"],
    ] {
        let ran = run(folder.path(), arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (64, ""), "{arguments:?}: {}", ran.stderr);
        assert!(!ran.stderr.is_empty());
    }
    // A configuration that lets it begin, and nothing that would answer the drill's alert.
    let asking = CONFIG.replace("rules:", "alertmanager: {url: 'http://127.0.0.1:1'}\nrules:");
    let ran = run(folder_with(&asking).path(), &["drill"]);
    assert_eq!(ran.code, 64);
    assert!(ran.stderr.contains("no rule answers the drill's alert"), "{}", ran.stderr);
    let ran = run(folder.path(), &["explain", "no-such-rule", "app.service"]);
    assert_eq!(
        ran.stderr,
        "evenkeel-remediator: explain: there is no rule `no-such-rule`: use one of told\n"
    );
}

#[test]
fn a_port_in_use_is_1_and_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = folder_with(&CONFIG.replace("127.0.0.1:0", &address));
    let ran = run(folder.path(), &["serve"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains(&address) && ran.stderr.contains("in use"), "{}", ran.stderr);
}

#[test]
fn a_state_directory_in_use_is_1_and_named() {
    let folder = folder_with(CONFIG);
    let _journal = Journal::open(&folder.path().join("state")).unwrap();
    let ran = run(folder.path(), &["serve"]);
    assert_eq!(ran.code, 1);
    let said = ran.stderr.lines().last().unwrap();
    assert_eq!(
        said,
        "evenkeel-remediator: cannot open the state in state: state is in use by another evenkeel-remediator: \
         stop it, or give this one a state.dir of its own"
    );
}

#[test]
fn a_state_directory_that_cannot_be_is_1() {
    let folder = folder_with(CONFIG);
    fs::write(folder.path().join("state"), "a file").unwrap();
    let ran = run(folder.path(), &["serve"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("cannot open the state in state"), "{}", ran.stderr);
}

#[test]
fn the_state_of_a_newer_version_is_64_and_left_alone() {
    let folder = folder_with(CONFIG);
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    let file = state.join("evenkeel-remediator.sqlite");
    rusqlite::Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let ran = run(folder.path(), &["serve"]);
    assert_eq!(ran.code, 64);
    let said = ran.stderr.lines().last().unwrap();
    assert!(
        said.contains("state/evenkeel-remediator.sqlite has state version 99, this version knows"),
        "{said}"
    );
    assert!(said.ends_with("run the newer evenkeel-remediator, or move the file away"), "{said}");
    let version: i64 = rusqlite::Connection::open(&file)
        .unwrap()
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap();
    assert_eq!(version, 99);
    // Nor does any command read what it may not understand.
    for command in ["status", "history"] {
        let ran = run(folder.path(), &[command]);
        assert_eq!(ran.code, 64, "{command}: {}", ran.stderr);
    }
}

#[test]
fn without_a_state_status_and_history_are_1_and_say_so() {
    let folder = folder_with(CONFIG);
    let ran = run(folder.path(), &["selftest"]);
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    for words in ["FAILING  daemon", "FAILING  state          there is none in state", "unknown  routes"] {
        assert!(ran.stdout.contains(words), "{words}: {}", ran.stdout);
    }
    // How the daemon stands is no question of the state.
    for (command, told) in [("status", "  daemon         not known: "), ("history", "")] {
        let ran = run(folder.path(), &[command]);
        assert_eq!(ran.code, 1, "{command}");
        assert!(ran.stdout.contains(told), "{command}: {}", ran.stdout);
        assert!(
            ran.stderr.contains("evenkeel-remediator has not been started with this state.dir"),
            "{}",
            ran.stderr
        );
    }
    assert!(!folder.path().join("state").exists(), "looking made a state");
}
