//! The configuration file, and what it and the flags together say. What a section means stands beside its collector.

use std::path::Path;

use evenkeel_host::{
    config::{self, ConfigError},
    web::Security,
};

use crate::collectors;
pub use crate::collectors::Config;

/// Scrapes at the same time, when nothing else is said; as node_exporter's.
pub const MAX_REQUESTS: usize = 40;

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read or says something that cannot be meant.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let origin = path.display().to_string();
        let config: Self = config::load(path)?;
        config.check(&origin)?;
        Ok(config)
    }

    /// Reads and checks a text; `origin` stands for the file name in errors.
    ///
    /// # Errors
    /// When it says something that cannot be meant.
    pub fn parse(origin: &str, text: &str) -> Result<Self, ConfigError> {
        let config: Self = config::parse(origin, text)?;
        config.check(origin)?;
        Ok(config)
    }
}

/// What the flags and the file together say.
#[derive(Debug)]
pub struct Options {
    /// The file, or its defaults.
    pub config: Config,
    /// The collectors that run, by name.
    pub collectors: Vec<&'static str>,
    /// What each collector's own flags say.
    pub flags: collectors::Flags,
    /// How it is served.
    pub web: WebOptions,
}

/// How the metrics are served.
#[derive(Debug)]
pub struct WebOptions {
    /// Where the metrics are.
    pub telemetry_path: String,
    /// Scrapes at the same time; 0 for any number.
    pub max_requests: usize,
    /// TLS and logins.
    pub security: Security,
}

impl Default for WebOptions {
    fn default() -> Self {
        Self {
            telemetry_path: "/metrics".to_owned(),
            max_requests: MAX_REQUESTS,
            security: Security::default(),
        }
    }
}
