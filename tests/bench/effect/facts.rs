//! What happened to a target, by the host's own words.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    engine::Engine, namespace, process::Process, systemd_host::SystemdHost, wait::wait_for,
};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::handler::LONG;

/// systemd's message that a job has started a unit (`SD_MESSAGE_UNIT_STARTED`).
const STARTED: &str = "39f53479d3a045ac8e11786248231fbf";

/// A disk that is less full is well, by what the rule says.
const DISK_IS_WELL: f64 = 0.8;

/// Takes note of what happens to one target from now on.
pub(super) struct Facts<'a> {
    of: Of<'a>,
    begun: SystemTime,
}

enum Of<'a> {
    /// The units of a pattern, and the jobs that they had had before.
    Units { host: &'a SystemdHost, pattern: String, before: BTreeSet<String> },
    /// A container, and all that the engine announces.
    Container { engine: &'a Engine, name: String, events: Process },
    /// A disk, the prunes before, and when it was first well.
    Disk { engine: &'a Engine, before: usize, emptied: Arc<OnceLock<SystemTime>>, watch: JoinHandle<()> },
}

impl<'a> Facts<'a> {
    pub(super) async fn units(host: &'a SystemdHost, pattern: &str) -> Result<Self> {
        let before = jobs(&host.journal(pattern).await?);
        Ok(Self::of(Of::Units { host, pattern: pattern.to_owned(), before }))
    }

    pub(super) fn container(engine: &'a Engine, name: &str) -> Result<Self> {
        let begun = SystemTime::now();
        let mut command = engine.client()?;
        command.arg("events").arg("--since").arg(begun.duration_since(UNIX_EPOCH)?.as_secs().to_string());
        command.args(["--filter", "type=container", "--filter", &format!("container={name}")]);
        command.args(["--format", "{{.TimeNano}} {{.Action}}"]);
        let events = Process::start("events", &namespace::place("events")?, command)?;
        Ok(Self { of: Of::Container { engine, name: name.to_owned(), events }, begun })
    }

    pub(super) fn disk(engine: &'a Engine) -> Self {
        let emptied = Arc::new(OnceLock::new());
        let (seen, path) = (Arc::clone(&emptied), engine.disk().path().to_owned());
        let watch = tokio::spawn(async move {
            while !is_well(&path).unwrap_or(false) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // Set once: the loop has ended.
            seen.set(SystemTime::now()).ok();
        });
        Self::of(Of::Disk { engine, before: prunes(engine), emptied, watch })
    }

    fn of(of: Of<'a>) -> Self {
        Self { of, begun: SystemTime::now() }
    }

    /// How often somebody acted on it.
    pub(super) async fn executions(&self) -> Result<usize> {
        match &self.of {
            Of::Units { host, pattern, before } => {
                Ok(jobs(&host.journal(pattern).await?).difference(before).count())
            }
            Of::Container { .. } => Ok(self.announced("restart")?.len()),
            Of::Disk { engine, before, .. } => Ok(prunes(engine) - before),
        }
    }

    /// Whether it is well now; of several units, all.
    pub(super) async fn is_well(&self) -> Result<bool> {
        match &self.of {
            Of::Units { host, pattern, .. } => {
                let states = host.property(pattern, "ActiveState").await?;
                Ok(!states.trim().is_empty() && states.split_whitespace().all(|state| state == "active"))
            }
            Of::Container { engine, name, .. } => {
                Ok(engine.inspect(name, "{{.State.Health.Status}}").await? == "healthy")
            }
            Of::Disk { engine, .. } => is_well(engine.disk().path()),
        }
    }

    /// How long after the first delivery it was well for the first time; nothing when it never was.
    pub(super) async fn well_after(&self) -> Result<Option<Duration>> {
        let at = match &self.of {
            Of::Units { host, pattern, .. } => {
                let journal = host.journal(pattern).await?;
                let started = journal.iter().filter(|entry| entry["MESSAGE_ID"] == STARTED);
                let times = started.filter_map(|entry| entry["__REALTIME_TIMESTAMP"].as_str()?.parse().ok());
                let times = times.map(|time| UNIX_EPOCH + Duration::from_micros(time));
                times.filter(|at| *at >= self.begun).min()
            }
            Of::Container { .. } => self.announced("health_status: healthy")?.into_iter().min(),
            Of::Disk { emptied, .. } => emptied.get().copied(),
        };
        Ok(at.and_then(|at| at.duration_since(self.begun).ok()))
    }

    /// Waits until somebody has begun to restart the container.
    pub(super) async fn is_being_stopped(&self) -> Result<()> {
        wait_for("the container to be stopped", LONG, async || {
            ensure!(!self.announced("kill")?.is_empty(), "nobody stops it");
            Ok(())
        })
        .await
    }

    /// When the engine announced this about the container.
    fn announced(&self, what: &str) -> Result<Vec<SystemTime>> {
        let Of::Container { events, .. } = &self.of else { return Ok(Vec::new()) };
        let mut times = Vec::new();
        for line in events.log().lines() {
            let (time, action) = line.split_once(' ').with_context(|| format!("an event: {line:?}"))?;
            let at = UNIX_EPOCH + Duration::from_nanos(time.parse()?);
            if action == what && at >= self.begun {
                times.push(at);
            }
        }
        Ok(times)
    }
}

impl Drop for Facts<'_> {
    fn drop(&mut self) {
        if let Of::Disk { watch, .. } = &self.of {
            watch.abort();
        }
    }
}

/// The jobs that systemd's entries are about.
fn jobs(journal: &[Value]) -> BTreeSet<String> {
    journal.iter().filter_map(|entry| Some(entry["JOB_ID"].as_str()?.to_owned())).collect()
}

fn prunes(engine: &Engine) -> usize {
    engine.requests("POST", "/build/prune")
}

fn is_well(disk: &std::path::Path) -> Result<bool> {
    let stat = rustix::fs::statvfs(disk)?;
    #[expect(clippy::cast_precision_loss, reason = "a ratio needs no 53 bits")]
    let free = stat.f_bavail as f64 / stat.f_blocks as f64;
    Ok(1.0 - free < DISK_IS_WELL)
}
