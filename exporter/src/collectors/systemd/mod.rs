//! systemd's units: their states, and of services what became of them.
//!
//! A look asks for the list of units, then for the details of those that are published. [`read`] asks and fills a
//! [`Picture`]; [`families`] turns a picture into metrics and asks nothing.

mod families;
mod pattern;
mod picture;
mod read;
mod resting;
#[cfg(test)]
mod tests;

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use clap::Args;
use evenkeel_host::{metrics::Family, systemd::Systemd};
use futures_util::future::BoxFuture;
use regex::Regex;
use serde::Deserialize;
use tokio::time::Instant;

use super::{CollectError, Collector, Look};
use families::families;
pub use pattern::{PatternError, UnitPattern};
pub use picture::Picture;
use picture::Selection;
use read::Reader;

/// The name of the collector.
pub const NAME: &str = "systemd";

/// The `systemd` section of the configuration.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Units to look at closely: names or globs. Without any: units whose file lies under `/etc/systemd/system`, and what
    /// the targets among them want.
    pub watch: Vec<UnitPattern>,
    /// Watched units that may be missing: while they are, they have no `systemd_unit_load_state`, so that a rule on
    /// `load_state="not-found"` needs no exceptions of its own.
    pub not_found_ok: Vec<UnitPattern>,
}

/// Which units are published; both match the whole name, as in systemd_exporter and node_exporter.
#[derive(Debug, Clone, Default, Args)]
#[group(skip)]
pub struct UnitFilter {
    /// Publish only units whose whole name matches this regular expression [default: services, timers, sockets and every
    /// watched unit].
    #[arg(id = "collector.systemd.unit-include", long, value_name = "REGEX", value_parser = anchored)]
    pub include: Option<Regex>,

    /// Publish no unit whose whole name matches this regular expression.
    #[arg(id = "collector.systemd.unit-exclude", long, value_name = "REGEX", value_parser = anchored)]
    pub exclude: Option<Regex>,
}

/// The expression has to match the whole name.
fn anchored(text: &str) -> Result<Regex, String> {
    Regex::new(&format!("^(?:{text})$")).map_err(|error| error.to_string())
}

/// The collector.
#[derive(Debug)]
pub struct SystemdCollector {
    source: Systemd,
    reader: Reader,
    selection: Selection,
    /// Somebody counts on systemd being here: its absence is a failure from the start.
    is_expected: bool,
    /// It answered once: its absence is a failure from then on.
    was_seen: AtomicBool,
}

impl SystemdCollector {
    /// The collector for this host's systemd. It connects at the first look.
    pub fn new(config: &Config, filter: &UnitFilter) -> Self {
        let is_expected = !config.watch.is_empty() || std::env::var_os("DBUS_SYSTEM_BUS_ADDRESS").is_some();
        Self::over(Systemd::system(), Path::new("/"), is_expected, config, filter)
    }

    /// `root` is where the host's files are.
    fn over(source: Systemd, root: &Path, is_expected: bool, config: &Config, filter: &UnitFilter) -> Self {
        Self {
            reader: Reader::new(source.clone(), root),
            selection: Selection::new(config.clone(), filter.clone()),
            source,
            is_expected,
            was_seen: AtomicBool::new(false),
        }
    }

    async fn look(&self) -> Result<Look, CollectError> {
        if !self.counts() && !self.source.socket_exists() {
            return Ok(Look::Absent);
        }
        match self.reader.picture(&self.selection).await {
            Ok(picture) => {
                self.was_seen.store(true, Ordering::Relaxed);
                Ok(Look::fresh(families(&picture)))
            }
            Err(error) if error.is_no_systemd() && !self.counts() => Ok(Look::Absent),
            Err(error) => Err(CollectError::new(error)),
        }
    }

    /// Whether it matters when there is no systemd.
    fn counts(&self) -> bool {
        self.is_expected || self.was_seen.load(Ordering::Relaxed)
    }
}

impl Collector for SystemdCollector {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&self, _deadline: Instant) -> BoxFuture<'_, Result<Look, CollectError>> {
        // Dropped at the deadline. What was read by then is remembered, so that the next look has less to do.
        Box::pin(self.look())
    }

    fn down(&self) -> Vec<Family> {
        if self.counts() || self.source.socket_exists() { vec![families::up(false)] } else { Vec::new() }
    }
}
