//! Sets up logging for a binary: to stderr, one event a line. Not here: what is logged.

mod logfmt;

use std::{io::IsTerminal, str::FromStr};

use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// What `--log.level` takes.
pub const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// What `--log.format` takes.
pub const FORMATS: [&str; 3] = ["text", "logfmt", "json"];

/// Crates whose debug logs hold bodies of the sources' answers, and with them container environments and secrets.
const CAPPED: [&str; 6] = ["bollard", "hyper", "hyper_util", "redis", "reqwest", "zbus"];

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people and the journal.
    Text,
    /// `key=value` pairs, as Prometheus writes them.
    Logfmt,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        match text {
            "text" => Ok(Self::Text),
            "logfmt" => Ok(Self::Logfmt),
            "json" => Ok(Self::Json),
            other => Err(FormatError(other.to_owned())),
        }
    }
}

/// A word that is none of [`FORMATS`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no log format: write text, logfmt or json")]
pub struct FormatError(String);

/// Starts logging to stderr. `level` is one of [`LEVELS`], anything else counts as `info`.
///
/// A second call in one process changes nothing, so that tests may start a binary's `run` more than once.
pub fn init(level: &str, format: Format) {
    let output = fmt::layer()
        .with_writer(std::io::stderr)
        // Its complaint about a full disk or a closed stderr goes to stderr and would end the process.
        .log_internal_errors(false);
    let layer = match format {
        Format::Text => output.with_ansi(std::io::stderr().is_terminal()).boxed(),
        Format::Logfmt => output.event_format(logfmt::Logfmt).with_ansi(false).boxed(),
        Format::Json => output.json().flatten_event(true).boxed(),
    };
    // It fails only when logging was started before.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter(level))).try_init();
}

/// The user's level, but never more than `info` from the crates that would log secrets.
fn filter(level: &str) -> Targets {
    let level = LevelFilter::from_str(level).unwrap_or(LevelFilter::INFO);
    let capped = level.min(LevelFilter::INFO);
    Targets::new().with_default(level).with_targets(CAPPED.map(|target| (target, capped)))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn bodies_of_answers_never_reach_the_log() {
        for level in ["debug", "trace"] {
            let filter = filter(level);
            assert!(filter.would_enable("evenkeel_host::docker", &Level::DEBUG));
            for target in
                ["bollard", "bollard::uri", "hyper::proto", "hyper_util::client", "zbus::connection"]
            {
                assert!(!filter.would_enable(target, &Level::DEBUG), "{target} at {level}");
                assert!(filter.would_enable(target, &Level::INFO), "{target} at {level}");
            }
        }
    }

    #[test]
    fn the_cap_raises_nothing() {
        assert!(!filter("error").would_enable("bollard", &Level::INFO));
        assert!(filter("nonsense").would_enable("evenkeel_exporter", &Level::INFO));
    }

    #[test]
    fn formats_are_checked() {
        assert_eq!("json".parse::<Format>().ok(), Some(Format::Json));
        let error = "xml".parse::<Format>().expect_err("unknown").to_string();
        assert_eq!(error, "`xml` is no log format: write text, logfmt or json");
        for format in FORMATS {
            assert!(format.parse::<Format>().is_ok(), "{format}");
        }
    }
}
