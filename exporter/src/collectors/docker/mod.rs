//! Docker's containers: states, healthchecks, restarts, what they use.
//!
//! A task keeps a picture of them by following the engine's announcements ([`follow`]), so that a look asks one small
//! question, whether the engine is alive, however many containers there are. Where there is no such picture, the
//! containers are listed at each look ([`by_list`]).

mod agenda;
mod by_list;
mod families;
mod follow;
mod moving;
mod picture;

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use evenkeel_host::{
    config::{ConfigError, Located},
    docker::{Docker, Error},
    metrics::{Block, Family},
};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::{
    by_list::ByList,
    follow::Shared,
    moving::{Moving, Watched},
    picture::Picture,
};
use super::{CollectError, Collector, Look, docker_disk};
use crate::evidence::{self, Piece};

/// The name of the collector.
pub const NAME: &str = "docker";

/// A container that the engine holds locked must not use up the whole deadline.
const INSPECT_LIMIT: Duration = Duration::from_secs(2);

/// What is asked of Docker.
#[derive(Debug, Default, Deserialize, JsonSchema)]
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
    labels: Arc<[ContainerLabel]>,
    was_seen: AtomicBool,
    shared: Arc<Shared>,
    /// What was made of the picture, and of which version of it.
    view: Mutex<Option<(u64, Arc<View>)>>,
    by_list: ByList,
    moving: Moving,
    /// Ends the task also when only this collector goes away.
    task: CancellationToken,
}

/// What is published of a picture until it changes.
struct View {
    block: Arc<Block>,
    evidence: Arc<[evidence::Container]>,
    watched: Arc<[Watched]>,
}

impl View {
    fn new(picture: &Picture, labels: &[ContainerLabel]) -> Self {
        let mut families = vec![up(1.0)];
        families.extend(families::families(picture, labels));
        let evidence = picture.containers.iter().map(|(id, known)| known.as_evidence(id)).collect();
        Self { block: Arc::new(Block::new(families)), evidence, watched: moving::watched(picture) }
    }
}

impl DockerCollector {
    /// Of the engine that `docker` leads to. Follows it from now on, in a task that ends with `shutdown`. Needs a tokio
    /// runtime.
    pub fn start(docker: Docker, config: &Config, shutdown: &CancellationToken) -> Self {
        let labels: Arc<[ContainerLabel]> =
            config.labels.iter().map(|label| ContainerLabel::new(&label.value)).collect();
        let shared = Arc::new(Shared::new());
        let task = shutdown.child_token();
        let following = {
            let (docker, labels, shared) = (docker.clone(), Arc::clone(&labels), Arc::clone(&shared));
            async move { follow::follow(&docker, &labels, &shared).await }
        };
        tokio::spawn(task.clone().run_until_cancelled_owned(following));
        Self {
            docker,
            labels,
            was_seen: AtomicBool::new(false),
            shared,
            view: Mutex::default(),
            by_list: ByList::default(),
            moving: Moving::under(Path::new("/")),
            task,
        }
    }

    async fn see(&self, deadline: Instant) -> Result<Look, Error> {
        // The engine may come back as another one.
        self.docker.ping().await.inspect_err(|_| self.by_list.forget())?;
        self.shared.settled(deadline).await;
        let view = match self.followed() {
            Some(view) => {
                self.by_list.forget();
                view
            }
            None => {
                let picture = self.by_list.look(&self.docker, &self.labels, deadline).await?;
                Arc::new(View::new(&picture, &self.labels))
            }
        };
        let mut blocks = vec![Arc::clone(&view.block)];
        blocks.extend(self.moving.read(&view.watched, deadline).await);
        Ok(Look::of(blocks).with(Piece::Containers(Arc::clone(&view.evidence))))
    }

    /// Made anew only when the picture has changed; `None` when there is none.
    fn followed(&self) -> Option<Arc<View>> {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = self.shared.current()?;
        if let Some((_, view)) = view.as_ref().filter(|(version, _)| *version == kept.version) {
            return Some(Arc::clone(view));
        }
        let made = Arc::new(View::new(&kept.picture, &self.labels));
        *view = Some((kept.version, Arc::clone(&made)));
        Some(made)
    }
}

impl Drop for DockerCollector {
    fn drop(&mut self) {
        self.task.cancel();
    }
}

impl Collector for DockerCollector {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&self, deadline: Instant) -> BoxFuture<'_, Result<Look, CollectError>> {
        Box::pin(async move {
            if is_absent(&self.docker, &self.was_seen) {
                return Ok(Look::Absent("there is no Docker socket"));
            }
            self.see(deadline).await.map_err(CollectError::new)
        })
    }

    fn down(&self) -> Vec<Family> {
        vec![up(0.0)]
    }

    fn missed_changes(&self) -> Option<u64> {
        Some(self.shared.missed())
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
