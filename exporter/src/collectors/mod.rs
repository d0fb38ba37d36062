//! The list of collectors, with the flags and the sections of the configuration that are their own, and what each must
//! be able to do.

pub mod docker;
pub mod docker_disk;
pub mod environment;
pub mod filesystem;
pub mod host;
pub mod journal;
pub mod redis;
pub mod resolve;
pub mod snapshot;
mod switches;
pub mod systemd;

use std::{fmt, sync::Arc};

use clap::Args;
use evenkeel_host::{
    config::ConfigError,
    docker::Docker,
    metrics::{Block, Family},
};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::switches::Switches;
use crate::{config::Options, evidence::Piece, expectations};

/// Every collector there is, in the order of their metrics. Each is on unless a flag says otherwise.
///
/// A new one is its file and one line here: `Entry { name: foo::NAME, build: |options, shutdown| Arc::new(…) }`; and one
/// in [`Flags`] or [`Config`] if it has flags or a section of its own.
pub const ALL: &[Entry] = &[
    Entry {
        name: systemd::NAME,
        build: |options, shutdown| {
            let config = &options.config.systemd;
            Arc::new(systemd::SystemdCollector::start(config, &options.flags.systemd, shutdown))
        },
    },
    Entry {
        name: snapshot::NAME,
        build: |options, _| Arc::new(snapshot::SnapshotCollector::new(options.config.snapshot.as_ref())),
    },
    Entry {
        name: docker::NAME,
        build: |options, shutdown| {
            let config = &options.config.docker;
            Arc::new(docker::DockerCollector::start(Docker::from_env(), config, shutdown))
        },
    },
    Entry {
        name: docker_disk::NAME,
        build: |options, shutdown| {
            let config = &options.config.docker.disk_usage;
            Arc::new(docker_disk::DockerDisk::start(Docker::from_env(), config, shutdown))
        },
    },
    Entry {
        name: filesystem::NAME,
        build: |options, _| {
            let (config, flags) = (&options.config.filesystem, &options.flags.filesystem);
            Arc::new(filesystem::FilesystemCollector::new(config, flags))
        },
    },
    Entry {
        name: redis::NAME,
        build: |options, _| Arc::new(redis::RedisCollector::new(&options.config.redis)),
    },
    Entry {
        name: resolve::NAME,
        build: |options, _| Arc::new(resolve::ResolveCollector::new(&options.config.resolve)),
    },
    Entry {
        name: environment::NAME,
        build: |options, _| Arc::new(environment::EnvironmentCollector::new(&options.config.environment)),
    },
    Entry { name: journal::NAME, build: |_, _| Arc::new(journal::JournalCollector::new()) },
    Entry { name: host::NAME, build: |_, _| Arc::new(host::HostCollector::new()) },
];

/// The flags that belong to one collector each.
#[derive(Debug, Clone, Default, Args)]
#[group(skip)]
pub struct Flags {
    /// Which units are published.
    #[command(flatten)]
    pub systemd: systemd::UnitFilter,
    /// Which filesystems are looked at.
    #[command(flatten)]
    pub filesystem: filesystem::Flags,
}

/// Configuration of evenkeel-exporter; every section may be missing. Durations as in Prometheus (30s 15m 7d), shares as 85%,
/// sizes as 500MiB.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "evenkeel-exporter")]
pub struct Config {
    /// Collectors that are switched off, or on: `{filesystem: false}`. The flags win.
    pub collectors: Switches,
    /// Which units to look at closely.
    pub systemd: systemd::Config,
    /// What the units' files are compared with.
    pub snapshot: Option<snapshot::Config>,
    /// Labels of containers, and how often to ask for disk usage.
    pub docker: docker::Config,
    /// Which filesystems are looked at.
    pub filesystem: filesystem::Config,
    /// Every Redis to probe; without any, the one on 127.0.0.1:6379 if it is there.
    pub redis: Vec<redis::Config>,
    /// Names to resolve, and the addresses that they are expected to have.
    pub resolve: Vec<resolve::Config>,
    /// Units, and the environment that their main processes are expected to have.
    pub environment: Vec<environment::Config>,
    /// What must be true of this host.
    pub expectations: expectations::Config,
}

impl Config {
    /// What no single value can know about itself.
    ///
    /// # Errors
    /// When a section says something that cannot be meant.
    pub(crate) fn check(&self, origin: &str) -> Result<(), ConfigError> {
        self.docker.check(origin)?;
        self.filesystem.check(origin)?;
        self.snapshot.as_ref().map_or(Ok(()), |snapshot| snapshot.check(origin))?;
        for (index, redis) in self.redis.iter().enumerate() {
            redis.check(&self.redis[..index], origin)?;
        }
        for (index, name) in self.resolve.iter().enumerate() {
            name.check(&self.resolve[..index], origin)?;
        }
        for (index, unit) in self.environment.iter().enumerate() {
            unit.check(&self.environment[..index], origin)?;
        }
        Ok(())
    }
}

/// One collector of the list.
pub struct Entry {
    /// The flag, the `collect[]` word and the `collector` label.
    pub name: &'static str,
    /// Makes it. Connections wait for the first look, so that this never fails; tasks end with the token.
    pub build: fn(&Options, &CancellationToken) -> Arc<dyn Collector>,
}

/// The names that flags and `collect[]` know: those of the collectors, and that of the expectations, which are judged from
/// what the collectors saw.
pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|entry| entry.name).chain([expectations::NAME]).collect()
}

/// The collectors that run.
pub fn build(options: &Options, shutdown: &CancellationToken) -> Vec<Arc<dyn Collector>> {
    let enabled = ALL.iter().filter(|entry| options.collectors.contains(&entry.name));
    enabled.map(|entry| (entry.build)(options, shutdown)).collect()
}

/// One subject of the host. Lives as long as the process and owns its connections; it may keep a picture between
/// looks in a task that ends with the shutdown token.
pub trait Collector: Send + Sync {
    /// The flag, the `collect[]` word and the `collector` label.
    fn name(&self) -> &'static str;

    /// Asks the source and says what was seen. The frame drops the future shortly after `deadline`, so that a collector
    /// that ends exactly then can still publish what it has. It must not block its thread.
    ///
    /// # Errors
    /// When the source did not answer, or answered nonsense. The frame then publishes [`Collector::down`] instead.
    fn look(&self, deadline: Instant) -> BoxFuture<'_, Result<Look, CollectError>>;

    /// What stands for the series when a look failed or ran into its deadline: `systemd_up 0`.
    fn down(&self) -> Vec<Family>;

    /// How many changes the source did not announce since the start, found by comparing; for collectors that keep a
    /// picture by announcements.
    fn missed_changes(&self) -> Option<u64> {
        None
    }
}

/// What one look gave.
#[derive(Debug)]
pub enum Look {
    /// The source answered.
    Seen(Seen),
    /// There is no such source here, it is not configured, and it was never seen since the start: why, for people.
    Absent(&'static str),
}

/// What was seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The metrics. What has not changed since the last look is best told by the same block again: it is neither written
    /// nor compressed anew then. No name may be in two blocks, nor in two collectors' blocks.
    pub blocks: Vec<Arc<Block>>,
    /// What expectations are judged by, if anything.
    pub piece: Option<Piece>,
}

impl Look {
    /// Of blocks alone.
    pub fn of(blocks: Vec<Arc<Block>>) -> Self {
        Self::Seen(Seen { blocks, piece: None })
    }

    /// Of families that are different at each look.
    pub fn fresh(families: Vec<Family>) -> Self {
        Self::of(vec![Arc::new(Block::new(families))])
    }

    /// The same with a piece of evidence.
    #[must_use]
    pub fn with(mut self, added: Piece) -> Self {
        if let Self::Seen(Seen { piece, .. }) = &mut self {
            *piece = Some(added);
        }
        self
    }
}

/// Why a look failed, in words for the log and the status page.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CollectError(String);

impl CollectError {
    /// From any error's text.
    pub fn new(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{cli::Arguments, config::WebOptions};

    #[tokio::test]
    async fn every_collector_is_built_without_asking_anything_and_knows_its_name() {
        let names: Vec<&'static str> = ALL.iter().map(|entry| entry.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
        let arguments = Arguments::parse(["evenkeel-exporter"], &names).expect("defaults");
        let Arguments { collectors, flags, .. } = arguments;
        let options = Options { config: Config::default(), collectors, web: WebOptions::default(), flags };
        let shutdown = CancellationToken::new();
        let built = build(&options, &shutdown);
        assert_eq!(built.iter().map(|collector| collector.name()).collect::<Vec<_>>(), names);
        shutdown.cancel();
    }
}
