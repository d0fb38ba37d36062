//! What is known of an engine's containers, kept small: there may be thousands. Pure: who asks, and when, is the
//! business of [`super::follow`] and [`super::by_list`]; what is published of it, that of [`super::families`].

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, SystemTime},
};

use evenkeel_host::docker::{Container, Engine, Health, Listed, ProbeResult, State};
use tokio::time::Instant;

use super::ContainerLabel;
use crate::evidence;

/// Longest label value that comes from a container's labels, which may hold anything.
const VALUE_LIMIT: usize = 512;

/// How old an answer may be about what is not as it should be: a failing streak grows unannounced.
pub(super) const UNHEALTHY_AGE: Duration = Duration::from_secs(15);

/// The same for a content healthcheck, and for what hardly ever changes.
pub(super) const QUIET_AGE: Duration = Duration::from_secs(300);

/// The engine's name of a container, which stays the same when its name changes.
pub(super) type Id = Box<str>;

/// An engine and its containers.
#[derive(Debug, Default)]
pub(super) struct Picture {
    /// `None` when the engine did not describe itself.
    pub(super) engine: Option<Engine>,
    /// Every container, by id.
    pub(super) containers: BTreeMap<Id, Known>,
}

/// One container.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Known {
    pub(super) name: Box<str>,
    pub(super) state: State,
    /// [`Health::None`] unless it runs.
    pub(super) health: Health,
    /// As the user wrote it; an id when only the list is known and the image lost its tag.
    pub(super) image: Box<str>,
    pub(super) image_id: Box<str>,
    pub(super) compose_project: Box<str>,
    pub(super) compose_service: Box<str>,
    /// The values of the labels that are published, in the order of the configuration.
    pub(super) labels: Box<[Box<str>]>,
    /// What only inspect says, where it is known to hold now.
    pub(super) detail: Option<Box<Detail>>,
    /// When the engine was asked for all this.
    pub(super) asked: Instant,
}

/// What inspect adds to the list.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Detail {
    pub(super) restart_count: u64,
    pub(super) exit_code: i64,
    pub(super) oom_killed: bool,
    pub(super) created: Option<SystemTime>,
    pub(super) started: Option<SystemTime>,
    pub(super) finished: Option<SystemTime>,
    pub(super) restart_policy: Box<str>,
    /// On the host; 0 when not running.
    pub(super) pid: i64,
    pub(super) memory_limit: Option<u64>,
    pub(super) log_path: Option<Box<Path>>,
    pub(super) has_log_rotation: bool,
    /// What its healthcheck says; the engine keeps the last words when a container stops.
    pub(super) health: Option<HealthDetail>,
}

/// What the engine announces only when the verdict changes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HealthDetail {
    pub(super) failing_streak: u64,
    pub(super) last: Option<LastProbe>,
}

/// The last run of a healthcheck, without its output, which may hold secrets.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LastProbe {
    pub(super) exit_code: i64,
    pub(super) end: Option<SystemTime>,
    pub(super) result: ProbeResult,
}

impl Known {
    /// From a line of the list.
    pub(super) fn listed(listed: Listed, asked: Instant, wanted: &[ContainerLabel]) -> Self {
        Self {
            compose_project: value(&listed.labels, "com.docker.compose.project"),
            compose_service: value(&listed.labels, "com.docker.compose.service"),
            labels: wanted.iter().map(|label| value(&listed.labels, &label.key)).collect(),
            name: listed.name.into(),
            state: listed.state,
            health: listed.health,
            image: listed.image.into(),
            image_id: listed.image_id.into(),
            detail: None,
            asked,
        }
    }

    /// From what inspect says.
    pub(super) fn inspected(container: Container, asked: Instant, wanted: &[ContainerLabel]) -> Self {
        let health = container.health.as_ref();
        let detail = Detail {
            restart_count: container.restart_count,
            exit_code: container.exit_code,
            oom_killed: container.oom_killed,
            created: container.created,
            started: container.started,
            finished: container.finished,
            restart_policy: container.restart_policy.into(),
            pid: container.pid,
            memory_limit: container.memory_limit,
            log_path: container.log_path.map(Into::into),
            has_log_rotation: container.has_log_rotation,
            health: health.map(|health| HealthDetail {
                failing_streak: health.failing_streak,
                last: health.last.as_ref().map(|probe| LastProbe {
                    exit_code: probe.exit_code,
                    end: probe.end,
                    result: probe.result,
                }),
            }),
        };
        Self {
            health: health.map_or(Health::None, |health| health.status),
            compose_project: value(&container.labels, "com.docker.compose.project"),
            compose_service: value(&container.labels, "com.docker.compose.service"),
            labels: wanted.iter().map(|label| value(&container.labels, &label.key)).collect(),
            name: container.name.into(),
            state: container.state,
            image: container.image.into(),
            image_id: container.image_id.into(),
            detail: Some(Box::new(detail)),
            asked,
        }
    }

    /// What expectations are judged by.
    pub(super) fn as_evidence(&self, id: &Id) -> evidence::Container {
        let detail = self.detail.as_deref();
        let last = detail.and_then(|detail| detail.health.as_ref()?.last.as_ref());
        evidence::Container {
            id: id.clone(),
            name: self.name.clone(),
            is_up: matches!(self.state, State::Running | State::Paused | State::Restarting),
            is_running: self.state == State::Running,
            health: self.health,
            is_probe_broken: last.is_some_and(|probe| probe.result.is_broken()),
            detail: detail.map(|detail| evidence::ContainerDetail {
                restarts: detail.restart_count,
                created: detail.created,
                started: detail.started,
                has_log_rotation: detail.has_log_rotation,
            }),
        }
    }

    /// Whether a line of the list says what is known.
    pub(super) fn agrees_with(&self, listed: &Listed) -> bool {
        *self.name == *listed.name && self.state == listed.state && self.health == listed.health
    }

    /// Whether a later answer says the same.
    pub(super) fn is_confirmed_by(&self, later: &Self) -> bool {
        Self { asked: later.asked, ..self.clone() } == *later
    }

    /// Whether a later answer says the same but for what the engine does not announce.
    pub(super) fn is_announced_as(&self, later: &Self) -> bool {
        let mut expected = Self { asked: later.asked, ..self.clone() };
        if let (Some(expected), Some(later)) = (&mut expected.detail, &later.detail) {
            expected.health.clone_from(&later.health);
        }
        expected == *later
    }

    /// How old an answer about it may grow without an announcement; `None` for ever.
    pub(super) fn lifetime(&self) -> Option<Duration> {
        match (&self.state, self.health) {
            (_, Health::Starting | Health::Unhealthy) => Some(UNHEALTHY_AGE),
            (_, Health::Healthy) => Some(QUIET_AGE),
            // The engine does not announce that it cannot start a container, and keeps the reason as its exit code.
            (State::Created, Health::None) => Some(UNHEALTHY_AGE),
            (State::Exited, Health::None) => Some(QUIET_AGE),
            (_, Health::None) => None,
        }
    }
}

impl Picture {
    /// Puts an inspected container in its place. Whoever else has its name is not called so any more, and is taken out
    /// and returned: it is to be asked about.
    pub(super) fn insert(&mut self, id: Id, known: Known) -> Option<Id> {
        let namesake = self.containers.iter().find(|(other, one)| **other != id && one.name == known.name);
        let namesake = namesake.map(|(other, _)| other.clone());
        if let Some(namesake) = &namesake {
            self.containers.remove(namesake);
        }
        self.containers.insert(id, known);
        namesake
    }
}

fn value(labels: &BTreeMap<String, String>, key: &str) -> Box<str> {
    let value = labels.get(key).map_or("", String::as_str);
    value[..value.floor_char_boundary(VALUE_LIMIT)].into()
}
