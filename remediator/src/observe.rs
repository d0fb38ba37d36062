//! Looks at one target, before and after acting, with the same code the exporter uses. The answers are plain values;
//! whether they mean "broken" or "well" is decided here too, as pure functions of them.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use evenkeel_host::{
    diagnose,
    docker::{Docker, Health, Object},
    filesystem::Prober,
    resolve::{Failure, HostName, Resolver},
    systemd::{Named, Systemd, own_references},
};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{
    admission::gates::Conditions,
    filling::Filling,
    helper, hosts,
    target::{Kind, Target},
    text::printable,
};

/// What was seen of a target. Written to the audit as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Observation {
    /// A filesystem, by statvfs.
    Filesystem(Filesystem),
    /// A unit, by systemd.
    Unit(Unit),
    /// A container, by the engine.
    Container(Container),
    /// The name of a host, by the resolver that services use.
    Hostname(Hostname),
    /// The host as a whole.
    Host(HostState),
}

/// What rules about no single thing are needed by.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HostState {
    /// Build cache that nothing uses, in bytes; not known where the engine does not say.
    pub build_cache_bytes: Option<u64>,
}

/// A filesystem's figures, in bytes and as ratios.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Filesystem {
    /// Size in bytes.
    pub size_bytes: u64,
    /// What an unprivileged writer can still use, in bytes.
    pub avail_bytes: u64,
    /// 1 − avail / size.
    pub used_ratio: f64,
    /// Its inodes; none where it makes them as it goes (btrfs).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inodes: Option<Inodes>,
    /// st_dev of the mount point: what lies on the same filesystem has the same.
    pub device: u64,
}

/// A filesystem's inodes: files and folders that it can have.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Inodes {
    /// All of them.
    pub total: u64,
    /// Those that nothing uses.
    pub free: u64,
    /// 1 − free / total.
    pub used_ratio: f64,
}

/// A unit's state.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Unit {
    /// The canonical name; differs from the target's where that is an alias.
    pub id: String,
    /// All names.
    pub names: Vec<String>,
    /// loaded, not-found, bad-setting, masked …
    pub load_state: String,
    /// active, failed …
    pub active_state: String,
    /// running, auto-restart …
    pub sub_state: String,
    /// Whether a job is queued.
    pub job_queued: bool,
    /// Whether the unit file on disk is newer than what systemd has loaded.
    pub need_daemon_reload: bool,
    /// `Result` of a service, else empty.
    pub result: String,
    /// `NRestarts` of a service.
    pub restarts: u32,
    /// `ExecMainStatus` of a service.
    pub exec_main_status: i32,
    /// `InvocationID` of the present or last run.
    pub invocation_id: String,
    /// When it last became active, seconds since 1970.
    pub active_enter_seconds: Option<f64>,
    /// When the main process last ended, seconds since 1970.
    pub exec_main_exit_seconds: Option<f64>,
    /// Whether this is a `Type=oneshot` service that does not remain after exit, and so is well when it has ended well.
    pub runs_once: bool,
    /// Why it failed or loops, where somebody has looked for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Box<Why>>,
    /// Of a unit that does not exist: where the host's own unit files name it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named_by: Vec<Place>,
}

/// Why a service failed or loops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// In one word.
    pub cause: diagnose::Cause,
    /// In words, with what is involved.
    pub words: String,
    /// What is known to cure it.
    pub cure: Option<String>,
    /// What has changed since and may have cured it.
    pub changed: Option<String>,
    /// Why nobody could read the journal for it.
    pub unread: Option<String>,
}

/// A place in a unit file that names another unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The unit whose file it is, as in [`Named::by`].
    pub unit: String,
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; `None` where the file is a link, whose name is what names the unit.
    pub line: Option<usize>,
    /// `After`, `Wants` …
    pub directive: String,
}

/// What a name resolves to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hostname {
    /// Its addresses, in the resolver's order.
    pub addresses: Vec<IpAddr>,
    /// Why there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The address that a line of ours in /etc/hosts gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<IpAddr>,
}

/// A container's state.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Container {
    /// The full id; changes when the container is made anew.
    pub id: String,
    /// running, exited …
    pub state: String,
    /// none, starting, healthy, unhealthy.
    pub health: String,
    /// Failed probes in a row.
    pub failing_streak: u64,
    /// Why the probe cannot ever work, when that is so: command_not_found or not_executable.
    pub healthcheck_broken: Option<String>,
    /// Restarts by the restart policy.
    pub restarts: u64,
    /// When it was last started, seconds since 1970.
    pub started_seconds: Option<f64>,
    /// Whether the engine removes it when it stops: a restart would destroy it.
    pub auto_remove: bool,
    /// Whether Swarm manages it.
    pub swarm: bool,
}

impl Observation {
    /// The name that identifies the thing itself, whatever alias the alert used.
    pub fn canonical<'a>(&'a self, target: &'a Target) -> &'a str {
        match self {
            Self::Unit(unit) if !unit.id.is_empty() => &unit.id,
            _ => target.name(),
        }
    }

    /// Whether a unit has failed or loops, or a container runs and says that it is sick. What a filesystem looks like
    /// says by itself whether it is full, not whether it is too full.
    pub fn is_unwell(&self) -> bool {
        match self {
            Self::Filesystem(_) | Self::Host(_) => false,
            Self::Unit(unit) => unit.is_failed() || unit.is_looping(),
            Self::Container(container) => container.state == "running" && container.health == "unhealthy",
            Self::Hostname(name) => name.addresses.is_empty(),
        }
    }

    /// Why a unit failed or loops, where somebody has looked for that and found something.
    pub fn why(&self) -> Option<&Why> {
        match self {
            Self::Unit(unit) => unit.why.as_deref().filter(|why| why.cause != diagnose::Cause::Unknown),
            _ => None,
        }
    }

    /// The same without what it failed of: something was done since.
    #[must_use]
    pub fn without_why(mut self) -> Self {
        if let Self::Unit(unit) = &mut self {
            unit.why = None;
        }
        self
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        match self {
            Self::Filesystem(fs) => format!(
                "{:.1} % used, {} of {} available, {}",
                fs.used_ratio * 100.0,
                evenkeel_host::config::format_bytes(fs.avail_bytes),
                evenkeel_host::config::format_bytes(fs.size_bytes),
                fs.inodes.map_or_else(
                    || "no fixed number of inodes".to_owned(),
                    |inodes| format!("{:.1} % of its inodes used", inodes.used_ratio * 100.0)
                )
            ),
            Self::Unit(unit) if unit.load_state != "loaded" => {
                let mut text = format!("{} {}", unit.load_state, unit.active_state);
                if !unit.named_by.is_empty() {
                    text += &format!(", named by {}", places(&unit.named_by));
                }
                text
            }
            Self::Unit(unit) => {
                let mut text = format!("{} ({})", unit.active_state, unit.sub_state);
                if unit.active_state == "failed" {
                    text += &format!(", result {}, status {}", unit.result, unit.exec_main_status);
                }
                if unit.restarts > 0 {
                    text += &format!(", {} automatic restarts", unit.restarts);
                }
                if let Some(why) = self.why() {
                    text += &format!("; {}", why.words);
                }
                text
            }
            Self::Container(container) => {
                let mut text = format!("{}, health {}", container.state, container.health);
                if container.failing_streak > 0 {
                    text += &format!(", {} failed probes in a row", container.failing_streak);
                }
                if let Some(reason) = &container.healthcheck_broken {
                    text += &format!(", its healthcheck is broken ({reason})");
                }
                text
            }
            Self::Hostname(name) => {
                let mut text = match (&name.failure, name.addresses.as_slice()) {
                    (Some(failure), _) => format!("does not resolve: {failure}"),
                    (None, []) => "does not resolve".to_owned(),
                    (None, addresses) => {
                        let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                        format!("resolves to {}", addresses.join(", "))
                    }
                };
                if let Some(alias) = name.alias {
                    text += &format!(", alias {alias} in /etc/hosts");
                }
                text
            }
            Self::Host(HostState { build_cache_bytes: Some(bytes) }) => {
                format!("{} of unused build cache", evenkeel_host::config::format_bytes(*bytes))
            }
            Self::Host(HostState { build_cache_bytes: None }) => {
                "how much build cache there is, is not known".to_owned()
            }
        }
    }
}

impl Unit {
    /// Whether it does not exist, is nothing that was left behind, and nothing on the host names it: a name only.
    pub fn is_unheard_of(&self) -> bool {
        self.load_state == "not-found" && self.active_state == "inactive" && self.named_by.is_empty()
    }

    /// Whether it ended in failure and stays so.
    pub fn is_failed(&self) -> bool {
        self.active_state == "failed"
    }

    /// Whether it waits for its next automatic restart.
    pub fn is_looping(&self) -> bool {
        self.sub_state.starts_with("auto-restart")
    }
}

impl Hostname {
    /// Whether this is the address of the name, and the only one.
    pub fn resolves_to(&self, address: IpAddr) -> bool {
        !self.addresses.is_empty() && self.addresses.iter().all(|known| *known == address)
    }
}

impl Place {
    /// As `FILE:LINE`.
    pub fn at(&self) -> String {
        let file = self.file.display();
        self.line.map_or_else(|| file.to_string(), |line| format!("{file}:{line}"))
    }
}

/// The first few places, for people.
fn places(places: &[Place]) -> String {
    const FEW: usize = 5;
    let mut shown: Vec<String> =
        places.iter().take(FEW).map(|place| format!("{} ({}=)", place.at(), place.directive)).collect();
    if places.len() > FEW {
        shown.push(format!("and {} more", places.len() - FEW));
    }
    shown.join(", ")
}

/// Why a target could not be seen. Never taken for "broken" and never for "well".
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Unseen(pub String);

/// Something that can look at a target: this host, or a script in tests.
pub trait Eyes: Send + Sync {
    /// One look, bounded in time.
    fn observe<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Observation, Unseen>>;

    /// What acting on a target may take along: at most `most` others and one more, bounded in time.
    fn dependents<'a>(
        &'a self,
        target: &'a Target,
        most: usize,
    ) -> BoxFuture<'a, Result<Vec<String>, Unseen>>;

    /// Why a unit failed or loops, bounded in time; nothing where it did not, or where that cannot be told of this run.
    fn why<'a>(&'a self, _unit: &'a Unit) -> BoxFuture<'a, Option<Why>> {
        Box::pin(async { None })
    }

    /// One look round for what speaks against acting at all, bounded in time.
    fn conditions(&self) -> BoxFuture<'_, Conditions>;

    /// What fills a filesystem that a rule is about, bounded in time.
    fn what_fills<'a>(&'a self, rule: &'a str, mount_point: &'a str) -> BoxFuture<'a, Filling>;
}

/// How long one look may take. A host in trouble answers slowly; a hung one not at all.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a name may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(8);
/// So many places that name a unit are told.
const MOST_PLACES: usize = 64;
/// The engine counts its disk usage by walking its folders.
const COUNT_TIMEOUT: Duration = Duration::from_secs(60);

/// This host's sources. Shared with the actions, which bring the hands.
#[derive(Clone)]
pub struct Host {
    /// The system bus.
    pub systemd: Systemd,
    /// The engine.
    pub docker: Docker,
    /// statvfs with a time limit.
    pub prober: Prober,
    /// getaddrinfo with a time limit.
    pub resolver: Resolver,
}

impl Host {
    /// The host this process runs on, as DBUS_SYSTEM_BUS_ADDRESS and DOCKER_HOST say.
    pub fn local() -> Self {
        Self {
            systemd: Systemd::system(),
            docker: Docker::from_env(),
            prober: Prober::default(),
            resolver: Resolver::default(),
        }
    }

    /// How full the filesystem is that is mounted there.
    pub(crate) async fn filesystem(&self, mount_point: &str) -> Result<Filesystem, Unseen> {
        let path = Path::new(mount_point);
        let mounts = self
            .prober
            .mounts(LOOK_TIMEOUT)
            .await
            .map_err(|error| Unseen(format!("cannot read the mount table: {error}")))?;
        if !mounts.iter().any(|mount| &*mount.mount_point == path) {
            return Err(Unseen(format!("nothing is mounted on {mount_point}")));
        }
        let usage = self.prober.usage(path, LOOK_TIMEOUT).await.map_err(|error| Unseen(error.to_string()))?;
        let device = usage
            .device
            .ok_or_else(|| Unseen(format!("the kernel does not say which device {mount_point} is")))?;
        Ok(Filesystem {
            size_bytes: usage.size,
            avail_bytes: usage.avail,
            used_ratio: usage.used_ratio(),
            inodes: usage.inodes_used_ratio().map(|used_ratio| Inodes {
                total: usage.files,
                free: usage.files_free,
                used_ratio,
            }),
            device,
        })
    }

    /// What fills a filesystem, as far as this process sees, found within a few seconds.
    pub async fn filling(&self, mount_point: &str) -> Filling {
        const LIMIT: Duration = Duration::from_secs(5);
        self.prober.filling(Path::new(mount_point), LIMIT).await.map(Filling::from).unwrap_or_default()
    }

    async fn unit(&self, name: &str) -> Result<Unit, Unseen> {
        let status = self.systemd.unit(name).await.map_err(|error| Unseen(format!("systemd: {error}")))?;
        let service = status.service;
        let is_missing = status.load_state == "not-found";
        let named_by = if is_missing { named_by(&status.id).await } else { Vec::new() };
        Ok(Unit {
            named_by,
            id: status.id,
            names: status.names,
            load_state: status.load_state,
            active_state: status.active_state,
            sub_state: status.sub_state,
            job_queued: status.job_id != 0,
            need_daemon_reload: status.need_daemon_reload,
            active_enter_seconds: status.active_enter.and_then(seconds),
            runs_once: service.as_ref().is_some_and(|s| s.kind == "oneshot" && !s.remain_after_exit),
            result: service.as_ref().map(|s| s.result.clone()).unwrap_or_default(),
            restarts: service.as_ref().map_or(0, |s| s.n_restarts),
            exec_main_status: service.as_ref().map_or(0, |s| s.exec_main_status),
            exec_main_exit_seconds: service.as_ref().and_then(|s| s.exec_main_exit).and_then(seconds),
            invocation_id: service.map(|s| s.invocation_id).unwrap_or_default(),
            why: None,
        })
    }

    async fn hostname(&self, name: &str) -> Result<Hostname, Unseen> {
        let host: HostName = name.parse().map_err(|error| Unseen(format!("{error}")))?;
        let alias = blocking({
            let host = host.clone();
            move || hosts::alias_in(Path::new(hosts::FILE), host.as_str())
        });
        let (answer, alias) = tokio::join!(self.resolver.resolve(&host, RESOLVE_TIMEOUT), alias);
        match answer {
            Ok(addresses) => Ok(Hostname { addresses: addresses.to_vec(), failure: None, alias }),
            Err(failure @ (Failure::Timeout | Failure::System)) => {
                Err(Unseen(format!("{name}: {}", failure.words())))
            }
            Err(failure) => {
                Ok(Hostname { addresses: Vec::new(), failure: Some(failure.words().to_owned()), alias })
            }
        }
    }

    async fn whole(&self) -> HostState {
        let usage = self.docker.disk_usage(&[Object::BuildCache]).await;
        let cache = usage.ok().and_then(|usage| usage.get(Object::BuildCache));
        HostState { build_cache_bytes: cache.map(|cache| cache.reclaimable_bytes) }
    }

    async fn container(&self, name: &str) -> Result<Container, Unseen> {
        let unseen = |error: evenkeel_host::docker::Error| Unseen(format!("docker: {error}"));
        let Some(container) = self.docker.inspect(name).await.map_err(unseen)? else {
            return Err(Unseen(format!("there is no container {name}")));
        };
        // The engine also finds containers by a prefix of their id: only the name was admitted.
        if container.name != name {
            return Err(Unseen(format!("there is no container named {name}")));
        }
        let health = container.health.as_ref();
        Ok(Container {
            id: container.id,
            state: container.state.as_str().to_owned(),
            health: health.map_or(Health::None, |h| h.status).as_str().to_owned(),
            failing_streak: health.map_or(0, |h| h.failing_streak),
            healthcheck_broken: health.and_then(|h| h.broken()).map(|result| result.as_str().to_owned()),
            restarts: container.restart_count,
            started_seconds: container.started.and_then(seconds),
            auto_remove: container.auto_remove,
            swarm: container.labels.contains_key("com.docker.swarm.service.id"),
        })
    }
}

impl Eyes for Host {
    fn why<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Option<Why>> {
        Box::pin(async move {
            let look = tokio::time::timeout(LOOK_TIMEOUT, diagnose::look(&self.systemd, &unit.id));
            let finding = match look.await {
                Ok(Ok(finding)) => finding?,
                Ok(Err(error)) => {
                    tracing::debug!(unit = unit.id, %error, "cannot ask why it fails");
                    return None;
                }
                Err(_) => return None,
            };
            // Another run may have begun since it was seen.
            if finding.failure.invocation_id != unit.invocation_id {
                return None;
            }
            let (cause, diagnosis) = (finding.diagnosis.cause, &finding.diagnosis);
            let changed =
                if cause.restart_may_help() { None } else { diagnose::changed_since(&finding).await };
            Some(Why {
                cause,
                words: diagnosis.words(),
                cure: diagnosis.cure(),
                changed,
                unread: finding.unread.as_ref().map(|error| printable(&error.to_string())),
            })
        })
    }

    fn what_fills<'a>(&'a self, rule: &'a str, mount_point: &'a str) -> BoxFuture<'a, Filling> {
        Box::pin(helper::filling(self, rule, mount_point))
    }

    fn dependents<'a>(
        &'a self,
        target: &'a Target,
        most: usize,
    ) -> BoxFuture<'a, Result<Vec<String>, Unseen>> {
        Box::pin(async move {
            if target.kind() != Kind::Unit {
                return Ok(Vec::new());
            }
            tokio::time::timeout(LOOK_TIMEOUT, self.systemd.dependents(target.name(), most))
                .await
                .map_err(|_| Unseen(format!("systemd did not answer within {LOOK_TIMEOUT:?}")))?
                .map_err(|error| Unseen(format!("systemd: {error}")))
        })
    }

    fn conditions(&self) -> BoxFuture<'_, Conditions> {
        Box::pin(self.look_round())
    }

    fn observe<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Observation, Unseen>> {
        Box::pin(async move {
            let limit = if target.kind() == Kind::Host { COUNT_TIMEOUT } else { LOOK_TIMEOUT };
            let look = async {
                Ok(match target.kind() {
                    Kind::Filesystem => Observation::Filesystem(self.filesystem(target.name()).await?),
                    Kind::Unit => Observation::Unit(self.unit(target.name()).await?),
                    Kind::Container => Observation::Container(self.container(target.name()).await?),
                    Kind::Hostname => Observation::Hostname(self.hostname(target.name()).await?),
                    Kind::Host => Observation::Host(self.whole().await),
                })
            };
            tokio::time::timeout(limit, look)
                .await
                .unwrap_or_else(|_| Err(Unseen(format!("{target} did not answer within {limit:?}"))))
        })
    }
}

/// Where the host's own unit files name a unit.
async fn named_by(name: &str) -> Vec<Place> {
    let name = name.to_owned();
    blocking(move || {
        let named = own_references(Path::new("/")).into_iter().filter(|named| named.name == name);
        named
            .map(|Named { by, file, line, directive, .. }| Place {
                unit: by,
                file,
                line,
                directive: directive.to_owned(),
            })
            .take(MOST_PLACES)
            .collect()
    })
    .await
}

/// What takes the disk, aside; it ends early only when the process does.
async fn blocking<T: Default + Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

/// Seconds since 1970; `None` before that.
fn seconds(time: SystemTime) -> Option<f64> {
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64())
}
