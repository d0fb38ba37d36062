//! The shipped configuration of the remediator, read by the remediator's own code.

use std::fs;

use evenkeel_remediator::config::{self, Config};

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
