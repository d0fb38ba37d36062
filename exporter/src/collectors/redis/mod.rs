//! Redis: whether each can be reached, why not, and what it says about itself.

mod families;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use evenkeel_host::{
    config::{ConfigError, Located, Secret},
    metrics::{Family, Renewed},
    redis::{DEFAULT_BUDGET, Failure, Probe, Target, is_listening_default, probe},
};
use futures_util::{StreamExt, future::BoxFuture, stream};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use super::{CollectError, Collector, Look};
use crate::evidence::{self, Piece};
use families::{families, up};

/// The name of the collector.
pub const NAME: &str = "redis";

/// Probes at a time.
const IN_FLIGHT: usize = 16;

/// Of the time that a scrape leaves, kept back to publish that a Redis did not answer.
const RESERVE: Duration = Duration::from_millis(100);

/// Room for any word that names an instance.
const MAX_NAME_BYTES: usize = 64;

/// A Redis that is probed.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The `redis` label of its metrics.
    #[schemars(extend("minLength" = 1, "maxLength" = 64))]
    pub name: Located<String>,
    /// Where it is: `redis://host:6379/0`, `rediss://…` (TLS), `unix:///path`.
    #[schemars(extend("examples" = ["redis://127.0.0.1:6379/0", "unix:///run/redis/redis-server.sock"]))]
    pub url: Located<String>,
    /// An ACL user.
    pub username: Option<String>,
    /// The password, alone in a file. Read at each probe, so that it can be changed.
    pub password_file: Option<Located<PathBuf>>,
    /// PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

impl Config {
    /// Checks one entry; `others` are the entries before it.
    ///
    /// # Errors
    /// When the name is no label or taken, the URL cannot be used, or the password cannot be read.
    pub fn check(&self, others: &[Self], origin: &str) -> Result<(), ConfigError> {
        let name = &self.name.value;
        // An empty label would be no label at all.
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
            let message =
                format!("`redis`: a name has 1 to {MAX_NAME_BYTES} bytes on one line: write a word");
            return Err(ConfigError::at(origin, &self.name, message));
        }
        if others.iter().any(|other| other.name.value == *name) {
            let message =
                format!("`redis`: the name `{name}` stands twice: give every Redis a name of its own");
            return Err(ConfigError::at(origin, &self.name, message));
        }
        if let Err(why) = self.target().check() {
            return Err(ConfigError::at(origin, &self.url, format!("`redis`: the url of `{name}`: {why}")));
        }
        if let Some(path) = &self.password_file
            && let Err(error) = Secret::from_file(&path.value)
        {
            return Err(ConfigError::at(origin, path, format!("`redis`: the password of `{name}`: {error}")));
        }
        Ok(())
    }

    /// Without the password.
    fn target(&self) -> Target {
        Target {
            name: self.name.value.clone(),
            url: self.url.value.clone(),
            username: self.username.clone(),
            password: None,
            ca_file: self.ca_file.clone(),
        }
    }
}

/// Every Redis that is probed.
pub struct RedisCollector {
    instances: Vec<Instance>,
    /// Nobody configured any: the default address counts once something listened there.
    is_default: bool,
    was_seen: AtomicBool,
    /// Most of what Redis says of itself hardly ever changes.
    told: Renewed,
}

struct Instance {
    target: Target,
    password_file: Option<PathBuf>,
    /// Said once in the log, not at each probe.
    is_password_missing: AtomicBool,
}

impl RedisCollector {
    /// The configured ones, or the one on 127.0.0.1:6379.
    pub fn new(configured: &[Config]) -> Self {
        let is_default = configured.is_empty();
        let instances = if is_default {
            let (name, url) = ("local".into(), "redis://127.0.0.1:6379".into());
            vec![Instance::new(Target { name, url, ..Target::default() }, None)]
        } else {
            let path = |config: &Config| config.password_file.as_ref().map(|path| path.value.clone());
            configured.iter().map(|config| Instance::new(config.target(), path(config))).collect()
        };
        Self { instances, is_default, was_seen: AtomicBool::new(false), told: Renewed::default() }
    }

    async fn is_absent(&self) -> bool {
        if !self.is_default || self.was_seen.load(Ordering::Relaxed) {
            return false;
        }
        let is_listening = is_listening_default().await;
        self.was_seen.store(is_listening, Ordering::Relaxed);
        !is_listening
    }
}

impl Instance {
    fn new(target: Target, password_file: Option<PathBuf>) -> Self {
        Self { target, password_file, is_password_missing: AtomicBool::new(false) }
    }

    async fn probe(&self, deadline: Instant) -> (&str, Probe) {
        let mut target = self.target.clone();
        if let Some(path) = &self.password_file {
            let password = Secret::from_file(path);
            let is_missing = password.is_err();
            match password {
                Ok(password) => target.password = Some(password),
                Err(error) if !self.is_password_missing.load(Ordering::Relaxed) => {
                    tracing::warn!(redis = target.name, %error, "no password");
                }
                Err(_) => {}
            }
            self.is_password_missing.store(is_missing, Ordering::Relaxed);
            if is_missing {
                // Without it a server that wants none would look well, and it is not the one that was meant.
                return (&self.target.name, Probe::failed(Failure::Auth));
            }
        }
        let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(RESERVE);
        (&self.target.name, probe(&target, left.min(DEFAULT_BUDGET)).await)
    }
}

fn evidence(seen: &[(&str, Probe)]) -> Arc<[evidence::Redis]> {
    let redis = |(name, probe): &(&str, Probe)| evidence::Redis {
        name: (*name).to_owned(),
        is_ready: probe.ready,
        failure: probe.failure,
    };
    seen.iter().map(redis).collect()
}

impl Collector for RedisCollector {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&self, deadline: Instant) -> BoxFuture<'_, Result<Look, CollectError>> {
        Box::pin(async move {
            if self.is_absent().await {
                return Ok(Look::Absent(
                    "nothing listens on 127.0.0.1:6379, and `redis` of the configuration names none",
                ));
            }
            let probes: Vec<_> = self.instances.iter().map(|instance| instance.probe(deadline)).collect();
            let seen: Vec<(&str, Probe)> = stream::iter(probes).buffer_unordered(IN_FLIGHT).collect().await;
            Ok(Look::of(self.told.blocks(families(&seen))).with(Piece::Redis(evidence(&seen))))
        })
    }

    /// `redis_up` is there for every Redis whatever happens.
    fn down(&self) -> Vec<Family> {
        let mut up = up();
        for instance in &self.instances {
            up.sample(&[("redis", &instance.target.name)], 0.0);
        }
        vec![up]
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::{collectors::Seen, config};

    #[test]
    fn a_password_comes_from_a_file() {
        let mut password = tempfile::NamedTempFile::new().expect("a file");
        password.write_all(b"hunter2\n").expect("written");
        let path = password.path().display();
        let text = format!("redis: [{{name: a, url: 'redis://h', username: u, password_file: {path}}}]");
        let config = config::Config::parse("c.yml", &text).expect("good");
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn a_password_that_went_away_is_auth() {
        let instance =
            Instance::new(Target { name: "a".into(), ..Target::default() }, Some("/nonexistent".into()));
        let (_, seen) = instance.probe(Instant::now() + Duration::from_secs(5)).await;
        assert_eq!((seen.up, seen.failure), (false, Some(Failure::Auth)));
    }

    #[tokio::test]
    async fn a_configured_redis_is_never_absent() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let text = format!("redis: [{{name: a, url: 'redis://{address}'}}]");
        let collector = RedisCollector::new(&config::Config::parse("c.yml", &text).expect("good").redis);
        let look = collector.look(Instant::now() + Duration::from_secs(5)).await;
        let Ok(Look::Seen(Seen { blocks, .. })) = look else { panic!("{look:?}") };
        let families = blocks[0].read_back();
        assert_eq!((families[0].name, families[0].samples[0].value), ("redis_up", 0.0));
        assert_eq!(collector.down()[0].samples, families[0].samples);
    }
}
