//! What people say to a fleet from the command line of any of its members. It goes to Redis directly: a gateway that is
//! down must not keep anybody from stopping everything.

use std::io::Write;

use anyhow::{Context, bail};
use evenkeel_host::config::PromDuration;

use super::view::Viewer;
use crate::{clock::Clock, config::Config};

/// What is kept of a reason, in characters.
const REASON_MAX: usize = 300;

fn viewer(config: &Config) -> anyhow::Result<Viewer> {
    // The client of the fleet's Redis takes the process's default provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = config.fleet.clone();
    settings
        .map(Viewer::new)
        .context("this host is in no fleet: there is no section `fleet` in its configuration")
}

/// Who orders it: the user, and the host that it comes from.
fn author(config: &Config) -> String {
    let uid = rustix::process::getuid();
    let user = if uid.is_root() { "root".to_owned() } else { format!("uid {}", uid.as_raw()) };
    format!("{user}@{}", config.hosts.first().map_or("?", String::as_str))
}

/// Writes the fleet as it is now.
///
/// # Errors
/// When there is none, or it cannot be asked.
pub async fn status(config: &Config, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let view = viewer(config)?.look(&Clock::default()).await?;
    match &config.fleet {
        Some(settings) if !json => view.write(settings, out)?,
        _ => writeln!(out, "{}", serde_json::to_string(&view)?)?,
    }
    Ok(())
}

/// Pauses all hosts.
///
/// # Errors
/// When the fleet cannot be asked, or the order makes no sense.
pub async fn pause(
    config: &Config,
    reason: &str,
    lasts: Option<PromDuration>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let reason: String = reason.trim().chars().take(REASON_MAX).collect();
    if reason.is_empty() {
        bail!("a pause needs a reason, for whoever finds it");
    }
    if lasts.is_some_and(|lasts| lasts.get().is_zero()) {
        bail!("a pause for no time is none: write 30m, or leave it out");
    }
    viewer(config)?.pause(&author(config), &reason, lasts.map(PromDuration::get)).await?;
    let until = lasts.map_or_else(|| "until somebody resumes".to_owned(), |lasts| format!("for {lasts}"));
    writeln!(out, "the fleet is paused {until}: what runs is finished, nothing new is begun on any host")?;
    Ok(())
}

/// Ends a pause of all hosts.
///
/// # Errors
/// When the fleet cannot be asked.
pub async fn resume(config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    let known = viewer(config)?.resume(&author(config)).await?;
    let said = if known {
        "the fleet's pause is over"
    } else {
        "the fleet's Redis knew of no pause; hosts that remember one hear that it is over"
    };
    writeln!(out, "{said}")?;
    Ok(())
}

/// Opens the budgets of a fleet whose Redis has only just begun to remember.
///
/// # Errors
/// When the fleet cannot be asked.
pub async fn trust_memory(config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    viewer(config)?.trust_memory().await?;
    writeln!(out, "what the fleet's Redis remembers counts as all that was started")?;
    Ok(())
}
