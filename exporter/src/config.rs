//! The configuration file, and what it and the flags together say. What a section means stands beside its collector.

use std::path::Path;

use evenkeel_host::config::{self, ConfigError};
use serde::Deserialize;

use crate::collectors::{docker, filesystem, redis, systemd};

/// The file, section by section; every one may be missing.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which units to look at closely.
    pub systemd: systemd::Config,
    /// Labels of containers, and how often to ask for disk usage.
    pub docker: docker::Config,
    /// Which filesystems to leave out.
    pub filesystem: filesystem::Config,
    /// Every Redis to probe; without any, the one on 127.0.0.1:6379 if it is there.
    pub redis: Vec<redis::Config>,
}

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

    /// What no single value can know about itself.
    fn check(&self, origin: &str) -> Result<(), ConfigError> {
        self.docker.check(origin)?;
        for (index, redis) in self.redis.iter().enumerate() {
            redis.check(&self.redis[..index], origin)?;
        }
        Ok(())
    }
}

/// What the flags and the file together say.
#[derive(Debug)]
pub struct Options {
    /// The file, or its defaults.
    pub config: Config,
    /// The collectors that run, by name.
    pub collectors: Vec<&'static str>,
    /// Where the metrics are.
    pub telemetry_path: String,
    /// Which units `--collector.systemd.unit-include` and `-exclude` let through.
    pub units: systemd::UnitFilter,
}
