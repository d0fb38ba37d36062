//! `generate` writes exactly the texts under `configs/generate`: each is reviewed as a file, because each grants something.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it says")]

mod common;

use std::{fs, path::Path};

use common::remediator;
use regex::Regex;

const CONFIGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/configs/generate");

fn generate(what: &str, config: &str) -> common::Ran {
    remediator(Path::new(CONFIGS), &["--config.file", config, "generate", what])
}

#[test]
fn every_text_is_what_was_reviewed() {
    for (what, file) in
        [("polkit", "all.rules"), ("haproxy", "all.cfg"), ("alertmanager", "all.alertmanager.yml")]
    {
        let ran = generate(what, "all.yml");
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{what}");
        let expected = fs::read_to_string(Path::new(CONFIGS).join(file)).unwrap();
        assert_eq!(ran.stdout, expected, "{what}");
    }
}

/// The instance of a helper's unit is all that says what root does: each rule has its own, for its own targets.
#[test]
fn a_helper_is_started_for_its_own_rule_and_targets_only() {
    let polkit = generate("polkit", "all.yml").stdout;
    let (_, helpers) = polkit.split_once("var helpers = [").unwrap();
    let allowed: Vec<Regex> = helpers
        .lines()
        .filter_map(|line| line.trim().strip_prefix("[\"start\", /")?.strip_suffix("/],"))
        .map(|expression| Regex::new(expression).unwrap())
        .collect();
    assert!(allowed.len() >= 7, "{helpers}");
    for (unit, is_allowed) in [
        (r"evenkeel-hosts-alias@hosts\x2dalias:shop_1.service", true),
        (r"evenkeel-unit-restore@golden\x2drestore:shop\x2da.service.service", true),
        // Another rule, another target, another thing done, none at all, and more than one.
        (r"evenkeel-hosts-alias@other:shop_1.service", false),
        (r"evenkeel-hosts-alias@unit\x2dstale:shop_1.service", false),
        (r"evenkeel-hosts-alias@hosts\x2dalias:localhost.service", false),
        (r"evenkeel-hosts-alias@hosts\x2dalias:shop_12.service", false),
        (r"evenkeel-unit-restore@hosts\x2dalias:shop_1.service", false),
        (r"evenkeel-unit-restore@golden\x2drestore:ssh.service.service", false),
        (r"evenkeel-journal-vacuum@disk\x2dhigh:-.service", false),
        (r"evenkeel-hosts-alias@.service", false),
        (r"evenkeel-hosts-alias@hosts\x2dalias:shop_1.service.timer", false),
        (r"x-evenkeel-hosts-alias@hosts\x2dalias:shop_1.service", false),
        ("evenkeel-hosts-alias@hosts\\x2dalias:shop_1.service\nssh.service", false),
    ] {
        assert_eq!(allowed.iter().any(|one| one.is_match(unit)), is_allowed, "{unit}");
    }
}

/// As shipped every rule only plans, and so nothing is granted.
#[test]
fn what_only_plans_is_granted_nothing() {
    let polkit = generate("polkit", "planned.yml").stdout;
    assert!(polkit.contains("var targets = [\n    ];"), "{polkit}");
    let haproxy = generate("haproxy", "planned.yml").stdout;
    assert!(!haproxy.contains("method "), "{haproxy}");
}

/// Whoever asks for these has no configuration yet.
#[test]
fn what_takes_no_configuration_asks_for_none() {
    let folder = tempfile::tempdir().unwrap();
    let ran = |arguments: &[&str]| remediator(folder.path(), &[&["generate"], arguments].concat());
    let page = ran(&["man"]).stdout;
    assert!(page.contains(".TH evenkeel-remediator 1") && page.contains("Exit codes:"), "{page}");
    assert!(!page.contains("helper"), "{page}");
    assert_eq!(ran(&["man", "--dir", "man1"]).code, 0);
    assert!(folder.path().join("man1/evenkeel-remediator-drill.1").is_file());
    assert!(ran(&["completions", "zsh"]).stdout.contains("check-config"));

    let config = ran(&["config", "--token-file=webhook.token", "--state-dir=state", "--listen=127.0.0.1:0"]);
    assert_eq!((config.code, config.stderr.as_str()), (0, ""));
    fs::write(folder.path().join("r.yml"), config.stdout).unwrap();
    fs::write(folder.path().join("webhook.token"), "a token that only this test knows\n").unwrap();
    let checked = remediator(folder.path(), &["--config.file", "r.yml", "check-config"]);
    assert_eq!(checked.code, 0, "{checked:?}");
    assert!(checked.stdout.contains("mode plan, deletion none"), "{checked:?}");
}

#[test]
fn what_cannot_be_written_is_said() {
    let ran = generate("alertmanager", "planned.yml");
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("add an address such as 127.0.0.1:19848 to server.listen"), "{}", ran.stderr);
    assert_eq!(generate("sudoers", "all.yml").code, 64);
}
