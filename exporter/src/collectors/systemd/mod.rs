//! systemd's units: their states, and of services what became of them.
//!
//! A [`picture`] of the units is kept, which systemd's own announcements ([`link`]) keep up to date. A look makes sure that
//! all of them have come, asks what they left open ([`keeper`]), and publishes blocks of series that are printed anew only
//! when something is different ([`press`]). Behind the looks the picture is proved against the whole list ([`check`]),
//! what systemd does not announce is asked for ([`unannounced`]), and why services fail is read from the journal
//! ([`causes`]).

mod causes;
mod check;
mod evidence;
mod families;
mod groups;
mod keeper;
mod link;
mod pattern;
mod picture;
mod press;
mod resting;
mod selection;
mod stale;
#[cfg(test)]
mod tests;
mod unannounced;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Args;
use evenkeel_host::{config::PromDuration, metrics::Family, systemd::Systemd};
use futures_util::future::BoxFuture;
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{CollectError, Collector, Look};
use crate::evidence::Piece;
use keeper::Keeper;
pub use pattern::{PatternError, UnitPattern};
use selection::Selection;

/// The name of the collector.
pub const NAME: &str = "systemd";

/// What is asked seldom is asked in one of so many checks.
const SLOW: u32 = 5;

/// A check is never made more often, whatever is configured.
const SHORTEST_CHECK: Duration = Duration::from_secs(1);

/// Which units are looked at closely.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Units to look at closely: names or globs. Without any: units whose file lies under `/etc/systemd/system`, and what
    /// the targets among them want.
    pub watch: Vec<UnitPattern>,
    /// Watched units that may be missing: while they are, they have no `systemd_unit_load_state`, so that a rule on
    /// `load_state="not-found"` needs no exceptions of its own. Nor is a file that names one stale.
    pub not_found_ok: Vec<UnitPattern>,
    /// How often what systemd announced is checked against its whole list, and counters of sockets are read; what the
    /// unit files say is asked in every fifth check.
    pub check_every: PromDuration,
}

impl Default for Config {
    fn default() -> Self {
        let check_every = PromDuration::new(Duration::from_secs(60));
        Self { watch: Vec::new(), not_found_ok: Vec::new(), check_every }
    }
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

/// How often what is asked that no look asks.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// The list, and what may change at any time.
    check: Duration,
    /// What changes when somebody works on the host.
    slow: Duration,
}

/// The collector.
#[derive(Debug)]
pub struct SystemdCollector {
    source: Systemd,
    keeper: Arc<Keeper>,
    pace: Pace,
    /// Somebody counts on systemd being here: its absence is a failure from the start.
    is_expected: bool,
    /// It answered once: its absence is a failure from then on.
    was_seen: AtomicBool,
    /// Ends the task also when only this collector goes away.
    _task: DropGuard,
}

impl SystemdCollector {
    /// The collector for this host's systemd. It connects at the first look, and checks itself in a task that ends with
    /// `shutdown`. Needs a tokio runtime.
    pub fn start(config: &Config, filter: &UnitFilter, shutdown: &CancellationToken) -> Self {
        let is_expected = !config.watch.is_empty() || std::env::var_os("DBUS_SYSTEM_BUS_ADDRESS").is_some();
        let task = shutdown.child_token();
        let collector = Self {
            _task: task.clone().drop_guard(),
            ..Self::over(Systemd::system(), Path::new("/"), is_expected, config, filter)
        };
        let checks = check::keep_checking(Arc::clone(&collector.keeper), collector.pace);
        let causes = causes::keep_reading(Arc::clone(&collector.keeper));
        tokio::spawn(task.clone().run_until_cancelled_owned(causes));
        tokio::spawn(task.run_until_cancelled_owned(checks));
        collector
    }

    /// Without the task.
    fn over(source: Systemd, root: &Path, is_expected: bool, config: &Config, filter: &UnitFilter) -> Self {
        let selection = Selection::new(config.clone(), filter.clone());
        let check = config.check_every.get().max(SHORTEST_CHECK);
        Self {
            keeper: Arc::new(Keeper::new(source.clone(), root.to_path_buf(), selection)),
            source,
            pace: Pace { check, slow: check * SLOW },
            is_expected,
            was_seen: AtomicBool::new(false),
            _task: CancellationToken::new().drop_guard(),
        }
    }

    async fn look(&self) -> Result<Look, CollectError> {
        if !self.counts() && !self.source.socket_exists() {
            return Ok(Look::Absent("there is no system bus"));
        }
        match self.keeper.look().await {
            Ok((blocks, units)) => {
                self.was_seen.store(true, Ordering::Relaxed);
                Ok(Look::of(blocks).with(Piece::Units(units)))
            }
            Err(error) if error.is_no_systemd() && !self.counts() => {
                Ok(Look::Absent("there is a system bus, and no systemd on it"))
            }
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

    fn missed_changes(&self) -> Option<u64> {
        Some(self.keeper.missed.load(Ordering::Relaxed))
    }
}
