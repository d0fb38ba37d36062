//! What a host has that could be looked after: for a first configuration, which is written from it. One look at
//! everything, without a word of configuration. Not here: what is written of it, and what is watched from then on.
//!
//! Every name in it comes from the host and may be anything: whoever writes it down quotes it ([`quoted`]).

mod node_exporter;

use std::{collections::BTreeSet, path::Path, time::Duration};

use futures_util::{StreamExt, stream};

use crate::{
    docker::{Docker, Health, State},
    filesystem::{Mount, Prober, Usage},
    redis::{self, Failure, Target},
    systemd::{OWN_FOLDERS, Systemd, Unit},
};

/// Questions about single units at a time.
const IN_FLIGHT: usize = 16;
/// A mount that does not answer by then is left out.
const MOUNT_PATIENCE: Duration = Duration::from_secs(3);
/// A Redis here answers at once.
const REDIS_PATIENCE: Duration = Duration::from_secs(1);
/// Where a Redis listens unless it is told otherwise: its own default, and the sockets of the packages of Debian and of
/// Red Hat.
const REDIS_URLS: [&str; 3] =
    ["redis://127.0.0.1:6379", "unix:///run/redis/redis-server.sock", "unix:///run/redis/redis.sock"];

/// What there is of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source<T> {
    /// It answered.
    Found(T),
    /// There is none here, in words.
    Absent(String),
    /// There is one, and it does not say: why, in words.
    Silent(String),
}

impl<T> Source<T> {
    /// What was found, if it was.
    pub fn found(&self) -> Option<&T> {
        match self {
            Self::Found(found) => Some(found),
            Self::Absent(_) | Self::Silent(_) => None,
        }
    }

    /// Why nothing was found, if so.
    pub fn why_not(&self) -> Option<&str> {
        match self {
            Self::Found(_) => None,
            Self::Absent(why) | Self::Silent(why) => Some(why),
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// systemd and its services.
    pub systemd: Source<Services>,
    /// Docker and its containers.
    pub docker: Source<Containers>,
    /// The filesystems that lie on a disk and can be written to, each once, by mount point.
    pub filesystems: Vec<Filesystem>,
    /// Every Redis that listens where Redis does by default.
    pub redis: Vec<Redis>,
    /// Why node_exporter is taken to publish the filesystems already, if it is.
    pub node_exporter: Option<String>,
}

/// The services of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Services {
    /// systemd's version.
    pub version: String,
    /// Units in its memory.
    pub units: usize,
    /// Services whose file this host's people wrote: it lies in [`OWN_FOLDERS`]. By name.
    pub own: Vec<Service>,
    /// The other services that run or have failed, by name.
    pub packaged: Vec<Service>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The unit's name.
    pub name: String,
    /// `active`, `failed` …
    pub state: String,
}

/// The containers of an engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Containers {
    /// The engine's version.
    pub version: String,
    /// Those that run, by name.
    pub running: Vec<Running>,
    /// All others.
    pub stopped: usize,
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// Its image, as the user wrote it.
    pub image: String,
    /// What its healthcheck says; [`Health::None`] without one.
    pub health: Health,
}

/// A filesystem.
#[derive(Debug, Clone, PartialEq)]
pub struct Filesystem {
    /// Where it is mounted; where it is in several places, the shortest.
    pub mount_point: String,
    /// `ext4`, `xfs` …
    pub fs_type: String,
    /// How full it is, 0 to 1.
    pub used: f64,
}

/// A Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    /// Where it is.
    pub url: String,
    /// It wants a password, or another user.
    pub wants_login: bool,
}

/// Looks at everything at once. Takes as long as the slowest source, each of which has its own limit.
pub async fn look(systemd: &Systemd, docker: &Docker) -> Survey {
    let (systemd, docker, filesystems, redis, series) = tokio::join!(
        services(systemd),
        containers(docker),
        filesystems(),
        redis(),
        node_exporter::publishes_filesystems()
    );
    let node_exporter = node_exporter::found(series, &systemd, &docker);
    Survey { systemd, docker, filesystems, redis, node_exporter }
}

async fn services(systemd: &Systemd) -> Source<Services> {
    if !systemd.socket_exists() {
        return Source::Absent("there is no system bus".to_owned());
    }
    let (units, version) = match tokio::join!(systemd.units(), systemd.version()) {
        (Ok(units), Ok(version)) => (units, version),
        (Err(error), _) | (_, Err(error)) if error.is_no_systemd() => {
            return Source::Absent("there is a system bus, and no systemd on it".to_owned());
        }
        (Err(error), _) | (_, Err(error)) => return Source::Silent(error.to_string()),
    };
    let count = units.len();
    let is_service = |unit: &Unit| unit.kind() == "service" && unit.load_state == "loaded";
    let mut asked: Vec<_> = stream::iter(units.into_iter().filter(is_service))
        .map(|unit| async move {
            // A unit that is gone meanwhile is nobody's own.
            let file = systemd.file_of(&unit).await.unwrap_or_default();
            (unit, file)
        })
        .buffer_unordered(IN_FLIGHT)
        .collect()
        .await;
    asked.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let mut services = Services { version, units: count, ..Services::default() };
    for (unit, file) in asked {
        let is_own = Path::new(&file)
            .parent()
            .is_some_and(|folder| OWN_FOLDERS.iter().any(|own| folder == Path::new(own)));
        let service = Service { name: unit.name, state: unit.active_state };
        if is_own {
            services.own.push(service);
        } else if matches!(service.state.as_str(), "active" | "failed" | "activating" | "reloading") {
            services.packaged.push(service);
        }
    }
    Source::Found(services)
}

async fn containers(docker: &Docker) -> Source<Containers> {
    if !docker.is_configured() && !docker.socket_exists() {
        return Source::Absent("there is no Docker socket".to_owned());
    }
    let (engine, listed) = match tokio::join!(docker.engine(), docker.containers()) {
        (Ok(engine), Ok(listed)) => (engine, listed),
        (Err(error), _) | (_, Err(error)) => return Source::Silent(error.to_string()),
    };
    let all = listed.len();
    let mut running: Vec<Running> = listed
        .into_iter()
        .filter(|container| container.state == State::Running)
        .map(|container| Running { name: container.name, image: container.image, health: container.health })
        .collect();
    running.sort_by(|a, b| a.name.cmp(&b.name));
    let stopped = all - running.len();
    Source::Found(Containers { version: engine.version, running, stopped })
}

async fn filesystems() -> Vec<Filesystem> {
    let prober = Prober::default();
    let Ok(mounts) = prober.mounts(MOUNT_PATIENCE).await else { return Vec::new() };
    let chosen = on_disks(&mounts);
    let paths = chosen.iter().map(|mount| mount.mount_point.clone()).collect();
    let usages = prober.usages(paths, MOUNT_PATIENCE).await;
    let seen = chosen.iter().zip(usages);
    seen.filter_map(|(mount, usage)| filesystem(mount, &usage.ok()?)).collect()
}

fn filesystem(mount: &Mount, usage: &Usage) -> Option<Filesystem> {
    if usage.size == 0 || usage.read_only {
        return None;
    }
    let mount_point = mount.mount_point.to_str()?.to_owned();
    Some(Filesystem { mount_point, fs_type: mount.fs_type.clone(), used: usage.used_ratio() })
}

/// The mounts that lie on a disk of this host and can be written to, each device once, by mount point.
fn on_disks(mounts: &[Mount]) -> Vec<&Mount> {
    let is_on_a_disk = |mount: &&Mount| {
        let is_disk = mount.device.starts_with("/dev/") || matches!(mount.fs_type.as_str(), "zfs" | "btrfs");
        // What is there for a while only, and what a restart brings back, is nobody's to clean up.
        let is_for_booting = mount.mount_point.starts_with("/boot") || mount.mount_point.starts_with("/efi");
        is_disk && !mount.read_only && !is_for_booting && mount.mount_point.to_str().is_some()
    };
    let mut chosen: Vec<&Mount> = mounts.iter().filter(is_on_a_disk).collect();
    chosen.sort_by_key(|mount| (mount.mount_point.as_os_str().len(), mount.mount_point.clone()));
    let mut known = BTreeSet::new();
    chosen.retain(|mount| known.insert((mount.major, mount.minor)));
    chosen.sort_by(|a, b| a.mount_point.cmp(&b.mount_point));
    chosen
}

async fn redis() -> Vec<Redis> {
    let mut found = Vec::new();
    for url in REDIS_URLS {
        let target = Target { name: "local".to_owned(), url: url.to_owned(), ..Target::default() };
        let probe = redis::probe(&target, REDIS_PATIENCE).await;
        let wants_login = probe.failure == Some(Failure::Auth);
        let is_redis = probe.up || wants_login || probe.failure == Some(Failure::Loading);
        if is_redis {
            found.push(Redis { url: url.to_owned(), wants_login });
        }
    }
    found
}

/// Any text as a double-quoted YAML scalar, on one line and with nothing in it that is not seen.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            character
                if character.is_control() || crate::text::is_unseen(character) || !is_plain(character) =>
            {
                quoted.push_str(&format!("\\U{:08X}", u32::from(character)));
            }
            character => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

/// Whether YAML takes the character as it is within quotes (YAML 1.2, `nb-json` without what is not printable).
fn is_plain(character: char) -> bool {
    !matches!(character, '\u{fffe}' | '\u{ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::parse_mountinfo;

    #[test]
    fn each_disk_that_can_be_written_to_is_found_once() {
        let mounts = parse_mountinfo(concat!(
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
            "23 22 8:1 /home /srv/home rw - ext4 /dev/sda1 rw\n",
            "24 22 8:2 / /boot rw - ext4 /dev/sda2 rw\n",
            "25 22 8:3 / /var/lib/docker rw - xfs /dev/sda3 rw\n",
            "26 22 7:0 / /snap/core/1 ro - squashfs /dev/loop0 ro\n",
            "27 22 0:30 / /tank rw - zfs tank rw\n",
            "28 22 0:5 / /dev rw - devtmpfs udev rw\n",
            "29 22 0:40 / /mnt/nfs rw - nfs4 server:/x rw\n",
        ));
        let found: Vec<_> =
            on_disks(&mounts).iter().map(|mount| mount.mount_point.display().to_string()).collect();
        assert_eq!(found, ["/", "/tank", "/var/lib/docker"]);
    }

    #[test]
    fn whatever_a_name_holds_comes_back_as_it_was() {
        for name in [
            "shop-api.service",
            "shop\\x2dapi.service",
            "a\"b\\\"c",
            "- x: [y] # z",
            "two\nlines\r\n",
            "tab\t bell\u{7} esc\u{1b}[31m nul\u{0}",
            "ü ✓ 𝄞 \u{202e}\u{feff}\u{85}\u{2028}\u{fffe}",
            "*&!|>%@`{}",
            "",
            " ",
        ] {
            let text = format!("name: {}\n", quoted(name));
            assert_eq!(text.lines().count(), 1, "{text}");
            let read: std::collections::BTreeMap<String, String> =
                crate::config::parse("t", &text).expect(&text);
            assert_eq!(read["name"], name);
        }
    }
}
