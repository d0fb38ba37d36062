//! What one scrape's looks saw, as values: what expectations are judged by. Each collector adds its piece to its look, so
//! that nothing is asked twice. Not here: what is expected, and what any of this means.

use std::{fmt, net::IpAddr, path::Path, sync::Arc, time::SystemTime};

use evenkeel_host::{docker::Health, environ::Unread, redis::Failure, resolve, systemd};

use serde::{Deserialize, Serialize};

use crate::collectors;

/// The pieces of one scrape. A collector that does not run, found nothing here or failed leaves words in its place.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// systemd's units.
    pub units: Answer<[Unit]>,
    /// Docker's containers.
    pub containers: Answer<[Container]>,
    /// Docker's build cache.
    pub build_cache: Answer<BuildCache>,
    /// The filesystems.
    pub filesystems: Answer<[Filesystem]>,
    /// Every Redis that is probed.
    pub redis: Answer<[Redis]>,
    /// Every name that is resolved.
    pub names: Answer<[Name]>,
    /// The environments that are looked at.
    pub environments: Answer<[Environment]>,
    /// What the journal takes, in bytes.
    pub journal: Answer<u64>,
}

/// What one collector has to say.
pub enum Answer<T: ?Sized> {
    /// What it saw.
    Seen(Arc<T>),
    /// There is nothing to look at here, or the collector does not run.
    Absent(&'static str),
    /// It failed, in words.
    Unknown(String),
}

/// What one look adds.
#[derive(Debug, Clone)]
pub enum Piece {
    /// See [`Evidence::units`].
    Units(Arc<[Unit]>),
    /// See [`Evidence::containers`].
    Containers(Arc<[Container]>),
    /// See [`Evidence::build_cache`].
    BuildCache(BuildCache),
    /// See [`Evidence::filesystems`].
    Filesystems(Arc<[Filesystem]>),
    /// See [`Evidence::redis`].
    Redis(Arc<[Redis]>),
    /// See [`Evidence::names`].
    Names(Arc<[Name]>),
    /// See [`Evidence::environments`].
    Environments(Arc<[Environment]>),
    /// See [`Evidence::journal`].
    Journal(u64),
}

/// A unit in systemd's memory, or a watched one that rests.
#[derive(Debug, Clone)]
pub struct Unit {
    /// As systemd lists it.
    pub unit: Arc<systemd::Unit>,
    /// Of services: automatic restarts since the last manual start.
    pub restarts: Option<u32>,
    /// It was named in the configuration, or stands for itself where nothing was.
    pub is_watched: bool,
    /// It may be missing.
    pub may_be_missing: bool,
}

/// A container.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// The engine's own name for it, which never changes.
    pub id: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// It runs, also when it is paused or about to be restarted: what writes its log is there.
    pub is_up: bool,
    /// It runs and is not paused.
    pub is_running: bool,
    /// [`Health::None`] where it has no healthcheck or does not run.
    pub health: Health,
    /// Its healthcheck cannot ever work.
    pub is_probe_broken: bool,
    /// What only inspecting it says; `None` where the engine did not answer.
    pub detail: Option<ContainerDetail>,
}

/// What only inspecting a container says.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerDetail {
    /// Restarts by its policy since it was last started by hand.
    pub restarts: u64,
    /// When it was made.
    pub created: Option<SystemTime>,
    /// When it was last started.
    pub started: Option<SystemTime>,
    /// Its log cannot grow without end.
    pub has_log_rotation: bool,
}

/// Docker's build cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildCache {
    /// Its size in bytes.
    Bytes(u64),
    /// The engine has not answered yet.
    Pending,
    /// It is not asked for, or the engine did not say.
    Unknown,
}

/// A filesystem.
#[derive(Debug, Clone, PartialEq)]
pub struct Filesystem {
    /// Where it is mounted.
    pub mount_point: Arc<Path>,
    /// `ext4`, `tmpfs` …
    pub fs_type: String,
    /// Nothing can be written to it.
    pub is_read_only: bool,
    /// The used parts, or why they are not known.
    pub usage: Result<Used, String>,
}

/// The used parts of a filesystem, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Used {
    /// `1 − avail / size`.
    pub bytes: f64,
    /// Of its inodes, where there is a fixed number of them.
    pub inodes: Option<f64>,
}

/// A Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    /// Its name in the configuration.
    pub name: String,
    /// PING was answered with PONG.
    pub is_ready: bool,
    /// The first thing that went wrong.
    pub failure: Option<Failure>,
}

/// A name that is resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The name.
    pub host: String,
    /// Its addresses, or why there are none.
    pub addresses: Result<Arc<[IpAddr]>, resolve::Failure>,
    /// Whether every address is one of those expected; `None` where nothing is.
    pub is_as_expected: Option<bool>,
}

/// The environment of a unit's main process, as far as anybody asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// The unit.
    pub unit: String,
    /// Each variable that something is expected of, or why nothing is known.
    pub variables: Result<Vec<(String, Variable)>, NoEnvironment>,
}

/// How a variable stands to what is expected. Its value is nobody's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variable {
    /// As expected.
    Met,
    /// It has another value.
    Different,
    /// It is not set.
    Missing,
}

/// Why nothing is known of an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoEnvironment {
    /// The unit has no main process.
    NotRunning,
    /// There is one, and it cannot be read.
    Unread(Unread),
}

impl Evidence {
    /// Puts a piece in its place.
    pub(crate) fn add(&mut self, piece: Piece) {
        match piece {
            Piece::Units(units) => self.units = Answer::Seen(units),
            Piece::Containers(containers) => self.containers = Answer::Seen(containers),
            Piece::BuildCache(size) => self.build_cache = Answer::Seen(Arc::new(size)),
            Piece::Filesystems(filesystems) => self.filesystems = Answer::Seen(filesystems),
            Piece::Redis(redis) => self.redis = Answer::Seen(redis),
            Piece::Names(names) => self.names = Answer::Seen(names),
            Piece::Environments(environments) => self.environments = Answer::Seen(environments),
            Piece::Journal(bytes) => self.journal = Answer::Seen(Arc::new(bytes)),
        }
    }
}

/// Why a collector has nothing to say.
pub(crate) enum Lack {
    /// It found nothing to look at, in words.
    Absent(&'static str),
    /// It failed, in words.
    Failed(String),
}

impl Evidence {
    /// Says why the piece of a collector is not there; of one that has none nothing.
    pub(crate) fn lack(&mut self, collector: &str, lack: &Lack) {
        match collector {
            collectors::systemd::NAME => self.units = lack.answer(),
            collectors::docker::NAME => self.containers = lack.answer(),
            collectors::docker_disk::NAME => self.build_cache = lack.answer(),
            collectors::filesystem::NAME => self.filesystems = lack.answer(),
            collectors::redis::NAME => self.redis = lack.answer(),
            collectors::resolve::NAME => self.names = lack.answer(),
            collectors::environment::NAME => self.environments = lack.answer(),
            collectors::journal::NAME => self.journal = lack.answer(),
            _ => {}
        }
    }
}

impl Lack {
    fn answer<T: ?Sized>(&self) -> Answer<T> {
        match self {
            Self::Absent(why) => Answer::Absent(why),
            Self::Failed(words) => Answer::Unknown(words.clone()),
        }
    }
}

impl NoEnvironment {
    /// All of them, in the order they are published.
    pub const ALL: [Self; 5] = [
        Self::NotRunning,
        Self::Unread(Unread::Gone),
        Self::Unread(Unread::Permission),
        Self::Unread(Unread::NotOfTheUnit),
        Self::Unread(Unread::Failed),
    ];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotRunning => "not_running",
            Self::Unread(Unread::Gone) => "gone",
            Self::Unread(Unread::Permission) => "permission",
            Self::Unread(Unread::NotOfTheUnit) => "not_of_the_unit",
            Self::Unread(Unread::Failed) => "failed",
        }
    }

    /// For people, with the cure where it is theirs.
    pub fn words(self) -> &'static str {
        match self {
            Self::NotRunning => "it has no main process: it does not run, or does not exist",
            Self::Unread(Unread::Gone) => "its main process ended while it was looked at",
            Self::Unread(Unread::Permission) => {
                "its main process belongs to another user: enable evenkeel-facts.timer, or look as root"
            }
            Self::Unread(Unread::NotOfTheUnit) => {
                "the process of that number is not the unit's: this systemd is another host's"
            }
            Self::Unread(Unread::Failed) => "the kernel did not say",
        }
    }
}

impl<T: ?Sized> Default for Answer<T> {
    fn default() -> Self {
        Self::Absent("its collector does not run")
    }
}

impl<T: ?Sized> Clone for Answer<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Seen(seen) => Self::Seen(Arc::clone(seen)),
            Self::Absent(words) => Self::Absent(words),
            Self::Unknown(words) => Self::Unknown(words.clone()),
        }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seen(seen) => f.debug_tuple("Seen").field(seen).finish(),
            Self::Absent(words) => f.debug_tuple("Absent").field(words).finish(),
            Self::Unknown(words) => f.debug_tuple("Unknown").field(words).finish(),
        }
    }
}
