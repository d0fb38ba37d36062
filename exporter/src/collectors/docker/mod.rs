//! Docker's containers: states, healthchecks, restarts.
//!
//! Each look lists the containers and inspects those of which something may have changed that the list does not show.
//! What a change would show in is decided by [`Inspected::is_current`]; what is published of it all, by [`picture`].

mod picture;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use evenkeel_host::{
    config::{ConfigError, Located},
    docker::{Container, Docker, Engine, Error, Health, Listed},
    metrics::Family,
};
use futures_util::{StreamExt, future::BoxFuture, stream};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::{CollectError, Collector, Look, docker_disk};
use picture::{Known, Picture};

/// The name of the collector.
pub const NAME: &str = "docker";

/// Inspects at a time.
const IN_FLIGHT: usize = 8;

/// A container that the engine holds locked must not use up the whole deadline.
const INSPECT_LIMIT: Duration = Duration::from_secs(2);

/// How old an answer about a healthcheck that is not content may be: its streak and last run change without a sign.
const UNHEALTHY_AGE: Duration = Duration::from_secs(15);

/// The same for a content one, and for what hardly ever changes (restart policy, the engine itself).
const QUIET_AGE: Duration = Duration::from_secs(300);

/// For clocks: the engine's runs on while it answers.
const AGE_MARGIN: Duration = Duration::from_secs(2);

/// The `docker` section of the configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Container labels that become labels of `docker_container_labels`; none by default, because labels may hold
    /// anything.
    pub labels: Vec<Located<String>>,
    /// How often to ask for the disk usage of each kind of object.
    pub disk_usage: docker_disk::Config,
}

impl Config {
    /// What no single value can know about itself.
    ///
    /// # Errors
    /// When two labels would get the same name as metric labels.
    pub fn check(&self, origin: &str) -> Result<(), ConfigError> {
        for (index, label) in self.labels.iter().enumerate() {
            let name = metric_label(&label.value);
            if let Some(first) = self.labels[..index].iter().find(|first| metric_label(&first.value) == name)
            {
                let message = format!(
                    "`docker.labels`: `{}` and `{}` would both become `{name}`: keep one of them",
                    first.value, label.value
                );
                return Err(ConfigError::at(origin, label, message));
            }
        }
        Ok(())
    }
}

/// A container label that is published.
#[derive(Debug)]
struct ContainerLabel {
    key: String,
    metric_label: &'static str,
}

impl ContainerLabel {
    /// Metric labels live as long as the process, which the configuration does too: leaked once, at the start.
    fn new(key: &str) -> Self {
        Self { key: key.to_owned(), metric_label: Box::leak(metric_label(key).into_boxed_str()) }
    }
}

/// `com.example.team` → `container_label_com_example_team`.
fn metric_label(key: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("container_label_{}", key.chars().map(word).collect::<String>())
}

/// The containers of one engine.
pub struct DockerCollector {
    docker: Docker,
    labels: Vec<ContainerLabel>,
    was_seen: AtomicBool,
    kept: Mutex<Kept>,
}

/// What earlier looks learnt.
#[derive(Default)]
struct Kept {
    engine: Option<(Engine, Instant)>,
    containers: HashMap<String, Inspected>,
}

/// An inspect answer and when it was asked for.
#[derive(Clone)]
struct Inspected {
    container: Arc<Container>,
    at: Instant,
}

impl Inspected {
    /// Whether it still holds, judged by the container's line of the list.
    ///
    /// Restart count, exit code and times change only when the container starts or ends. The list shows neither, but
    /// its status text gives a lower bound of the time since: when that is longer than the answer is old, nothing
    /// happened in between.
    fn is_current(&self, listed: &Listed, now: Instant) -> bool {
        let Self { container, at } = self;
        let age = now.duration_since(*at);
        let health = container.health.as_ref().map_or(Health::None, |health| health.status);
        let is_same =
            listed.state == container.state && listed.health == health && listed.name == container.name;
        let oldest = match health {
            Health::Starting | Health::Unhealthy => UNHEALTHY_AGE,
            Health::None | Health::Healthy => QUIET_AGE,
        };
        is_same
            && age < oldest
            && listed.unchanged_for().is_some_and(|unchanged| unchanged > age + AGE_MARGIN)
    }
}

impl DockerCollector {
    /// Of the engine that `docker` leads to.
    pub fn new(docker: Docker, config: &Config) -> Self {
        let labels = config.labels.iter().map(|label| ContainerLabel::new(&label.value)).collect();
        Self { docker, labels, was_seen: AtomicBool::new(false), kept: Mutex::default() }
    }

    async fn picture(&self, deadline: Instant) -> Result<Picture, Error> {
        // Taken, so that a look that fails or is dropped leaves nothing: the engine may come back as another one.
        let kept = std::mem::take(&mut *self.kept());
        let listed = self.docker.containers().await?;
        let engine = self.engine(kept.engine).await;
        let now = Instant::now();
        let mut inspected = HashMap::with_capacity(listed.len());
        let mut containers = Vec::with_capacity(listed.len());
        let looks = listed.into_iter().map(|listed| {
            let kept = kept.containers.get(&listed.id).filter(|kept| kept.is_current(&listed, now)).cloned();
            self.look_closer(listed, kept, deadline)
        });
        let mut looks = stream::iter(looks).buffer_unordered(IN_FLIGHT);
        while let Some(look) = looks.next().await {
            let Some((listed, answer)) = look else { continue };
            let detail = answer.as_ref().map(|answer| Arc::clone(&answer.container));
            inspected.extend(answer.map(|answer| (listed.id.clone(), answer)));
            containers.push(Known { listed, detail });
        }
        *self.kept() = Kept { engine: engine.clone(), containers: inspected };
        Ok(Picture { engine: engine.map(|(engine, _)| engine), containers })
    }

    /// Adds what inspect says; `None` when the container went away meanwhile, which is normal life.
    async fn look_closer(
        &self,
        listed: Listed,
        kept: Option<Inspected>,
        deadline: Instant,
    ) -> Option<(Listed, Option<Inspected>)> {
        let at = Instant::now();
        if kept.is_some() || at >= deadline {
            return Some((listed, kept));
        }
        match timeout_at(deadline.min(at + INSPECT_LIMIT), self.docker.inspect(&listed.id)).await {
            Ok(Ok(Some(container))) => Some((listed, Some(Inspected { container: Arc::new(container), at }))),
            Ok(Ok(None)) => None,
            // The engine lists it and says no more about it: publish what the list says.
            Ok(Err(error)) => {
                tracing::debug!(container = listed.name, %error, "not inspected");
                Some((listed, None))
            }
            Err(_) => {
                tracing::debug!(container = listed.name, "not inspected in time");
                Some((listed, None))
            }
        }
    }

    async fn engine(&self, kept: Option<(Engine, Instant)>) -> Option<(Engine, Instant)> {
        if let Some(kept) = kept.filter(|(_, at)| at.elapsed() < QUIET_AGE) {
            return Some(kept);
        }
        let answer = self.docker.engine().await;
        let engine =
            answer.inspect_err(|error| tracing::debug!(%error, "the engine does not describe itself"));
        engine.ok().map(|engine| (engine, Instant::now()))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for DockerCollector {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&self, deadline: Instant) -> BoxFuture<'_, Result<Look, CollectError>> {
        Box::pin(async move {
            if is_absent(&self.docker, &self.was_seen) {
                return Ok(Look::Absent);
            }
            match self.picture(deadline).await {
                Ok(picture) => {
                    let mut families = vec![up(1.0)];
                    families.extend(picture::families(&picture, &self.labels));
                    Ok(Look::fresh(families))
                }
                Err(error) => Err(CollectError::new(error)),
            }
        })
    }

    fn down(&self) -> Vec<Family> {
        vec![up(0.0)]
    }
}

/// Nobody named an engine, none was seen since the start, and there is no socket of one.
pub(super) fn is_absent(docker: &Docker, was_seen: &AtomicBool) -> bool {
    if docker.socket_exists() {
        was_seen.store(true, Ordering::Relaxed);
    }
    !docker.is_configured() && !was_seen.load(Ordering::Relaxed)
}

fn up(value: f64) -> Family {
    Family::gauge("docker_up", "Whether the Docker engine answered.").with(&[], value)
}
