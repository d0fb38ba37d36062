//! The shipped configuration of the remediator, read by the remediator's own code.

use std::fs;

use evenkeel_remediator::{
    config::{self, Config},
    drill::UNIT,
    generate::{self, Around},
};

use crate::repository;

/// With a token in place of the one that an administrator makes.
pub(crate) fn shipped() -> Config {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("webhook.token"), "0123456789abcdef0123456789abcdef").unwrap();
    let text = repository::text("packaging/remediator.yml");
    let here = text.replace("/etc/evenkeel/webhook.token", "webhook.token");
    assert_ne!(here, text, "the configuration names the token's file");
    let file = folder.path().join("remediator.yml");
    fs::write(&file, here).unwrap();
    config::load(&file).unwrap_or_else(|error| panic!("{error}"))
}

/// evenkeel never repairs itself: of its own units only the drill's may be acted on.
#[test]
fn of_its_own_units_only_the_drills_may_be_touched() {
    let config = shipped();
    let files = [".service", ".timer"].map(|suffix| repository::files("packaging", suffix)).concat();
    assert!(files.len() > 8, "{files:?}");
    for file in files {
        let name = file.rsplit('/').next().unwrap().replace('@', "@x");
        assert_eq!(config.deny.denies(&name), name != UNIT, "{name}");
    }
}

/// What the timers' documentation and the rules' comment name is there.
#[test]
fn the_rules_that_timers_begin_are_there() {
    let config = shipped();
    let readme = repository::text("packaging/README.md");
    let timers = regex::Regex::new(r"evenkeel-(?:weekly|monthly)@([a-z-]+)\.timer").unwrap();
    let named: Vec<String> = timers.captures_iter(&readme).map(|found| found[1].to_owned()).collect();
    assert_eq!(named, ["weekly-build-cache", "monthly-unused-images"]);
    for name in named {
        assert!(config.rules.iter().any(|rule| rule.name == name && rule.on_demand()), "{name}");
    }
}

/// What the package allows, as long as nobody has written a rule from a configuration of his own.
#[test]
fn the_shipped_polkit_rule_is_the_one_of_the_shipped_configuration() {
    let mut generated = Vec::new();
    generate::write(Around::Polkit, &shipped(), &mut generated).unwrap();
    let file = "packaging/polkit-1/rules.d/50-evenkeel.rules";
    let hint = format!("evenkeel-remediator --config.file packaging/remediator.yml generate polkit > {file}");
    assert_eq!(String::from_utf8(generated).unwrap(), repository::text(file), "{hint}");
}
