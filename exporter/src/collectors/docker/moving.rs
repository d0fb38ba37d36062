//! What moves at every look and costs the engine nothing: CPU and memory of the containers from their cgroups, and the
//! size of their log files.

use std::{
    collections::HashMap,
    fs, io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use evenkeel_host::{
    cgroup::{Cgroups, Meter},
    metrics::{Block, Family, Labels, Renewed},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use super::picture::{Id, Picture};
use crate::by_root::ByRoot;

/// Reads what moves. One reading at a time: a file that does not answer keeps one thread, not one each look.
pub(super) struct Moving {
    meters: Arc<Mutex<Meters>>,
    turn: Arc<Semaphore>,
    told: Renewed,
}

/// A container with something to read.
#[derive(Debug, PartialEq)]
pub(super) struct Watched {
    id: Id,
    /// Its name.
    labels: Labels,
    /// 0 when not running.
    pid: i64,
    log_path: Option<Box<Path>>,
}

/// Where to read.
struct Meters {
    root: Box<Path>,
    cgroups: Cgroups,
    by_id: HashMap<Id, Run>,
    /// What root has left, of logs that only root may see.
    by_root: ByRoot,
}

/// One run of a container.
struct Run {
    pid: i64,
    /// `None` where its cgroup cannot be seen.
    meter: Option<Meter>,
}

/// The containers of which something moves.
pub(super) fn watched(picture: &Picture) -> Arc<[Watched]> {
    let watched = picture.containers.iter().filter_map(|(id, known)| {
        let detail = known.detail.as_deref()?;
        (detail.pid > 0 || detail.log_path.is_some()).then(|| Watched {
            id: id.clone(),
            labels: Labels::new(&[("name", &known.name)]),
            pid: detail.pid,
            log_path: detail.log_path.clone(),
        })
    });
    watched.collect()
}

impl Moving {
    /// Of the host whose files are under `root`.
    pub(super) fn under(root: &Path) -> Self {
        let meters = Meters {
            root: root.into(),
            cgroups: Cgroups::under(root),
            by_id: HashMap::new(),
            by_root: ByRoot::default(),
        };
        Self {
            meters: Arc::new(Mutex::new(meters)),
            turn: Arc::new(Semaphore::new(1)),
            told: Renewed::default(),
        }
    }

    /// Reads by `deadline`; nothing when a file does not answer until then.
    pub(super) async fn read(&self, watched: &Arc<[Watched]>, deadline: Instant) -> Vec<Arc<Block>> {
        let Ok(turn) = Arc::clone(&self.turn).try_acquire_owned() else {
            tracing::debug!("the last reading of log files and cgroups has not ended");
            return Vec::new();
        };
        let (meters, watched) = (Arc::clone(&self.meters), Arc::clone(watched));
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            meters.lock().unwrap_or_else(PoisonError::into_inner).read(&watched, Instant::now())
        });
        match timeout_at(deadline, reading).await {
            Ok(Ok(families)) => self.told.blocks(families.into()),
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }
}

impl Meters {
    fn read(&mut self, watched: &[Watched], now: Instant) -> [Family; 3] {
        let mut cpu = Family::counter(
            "docker_container_cpu_seconds_total",
            "CPU time of a running container in this run, by its cgroup.",
        );
        let mut memory = Family::gauge(
            "docker_container_memory_bytes",
            "Memory of a running container, by its cgroup, as docker stats counts it: without inactive file cache.",
        );
        let mut log = Family::gauge(
            "docker_container_log_bytes",
            "Size of the container's current log file; absent where there is none, and without the right to see it (evenkeel-facts.timer, or CAP_DAC_READ_SEARCH).",
        );
        let mut before = std::mem::take(&mut self.by_id);
        // Asked for once, and only where something may not be seen.
        let mut facts = None;
        for Watched { id, labels, pid, log_path } in watched {
            if *pid > 0 {
                let kept = before.remove(id).filter(|run| run.pid == *pid);
                let mut run = kept.unwrap_or_else(|| Run::find(&self.root, id, *pid));
                let usage = run.meter.as_mut().and_then(|meter| meter.read(&self.cgroups, now));
                if let Some(time) = usage.and_then(|usage| usage.cpu) {
                    cpu.sample_of(labels.clone(), time.as_secs_f64());
                }
                if let Some(bytes) = usage.and_then(|usage| usage.memory) {
                    memory.sample_of(labels.clone(), bytes as f64);
                }
                self.by_id.insert(id.clone(), run);
            }
            let size = log_path.as_deref().and_then(|path| match fs::metadata(path) {
                Ok(file) => Some(file.len()),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    facts.get_or_insert_with(|| self.by_root.read()).as_ref()?.container_log(id)
                }
                Err(_) => None,
            });
            if let Some(bytes) = size {
                log.sample_of(labels.clone(), bytes as f64);
            }
        }
        [cpu, memory, log]
    }
}

impl Run {
    fn find(root: &Path, id: &str, pid: i64) -> Self {
        let table = fs::read_to_string(root.join(format!("proc/{pid}/cgroup"))).unwrap_or_default();
        Self { pid, meter: cgroup_of(id, &table).map(|path| Meter::new(&path)) }
    }
}

/// The container's cgroup, by the table of its first process (`/proc/PID/cgroup`, lines of `ID:CONTROLLERS:PATH`):
/// whoever made it, its name holds the container's id. A path without it belongs to somebody else, who got the number
/// of a process that has ended. What the container made below is its own affair.
fn cgroup_of(id: &str, table: &str) -> Option<String> {
    table.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(|path| {
        let start = path.find(id)?;
        let length = path[start..].find('/').unwrap_or(path.len() - start);
        Some(path[..start + length].to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ID: &str = "4f1a0c";

    #[test]
    fn the_cgroup_is_found_under_every_driver() {
        for (table, expected) in [
            ("0::/system.slice/docker-4f1a0c.scope\n", Some("/system.slice/docker-4f1a0c.scope")),
            ("0::/docker/4f1a0c/init.scope\n", Some("/docker/4f1a0c")),
            ("0::/docker/buildkit/4f1a0c\n", Some("/docker/buildkit/4f1a0c")),
            (
                "12:cpu,cpuacct:/docker/4f1a0c\n1:name=systemd:/docker/4f1a0c/system.slice\n0::/\n",
                Some("/docker/4f1a0c"),
            ),
            ("0::/user.slice/a:b/docker-4f1a0c.scope", Some("/user.slice/a:b/docker-4f1a0c.scope")),
            ("0::/system.slice/ssh.service\n", None),
            ("0::/\n", None),
            ("nonsense\n", None),
            ("", None),
        ] {
            assert_eq!(cgroup_of(ID, table).as_deref(), expected, "{table}");
        }
    }

    /// A host with one cgroup of v2, and a log of 5 bytes.
    fn host() -> tempfile::TempDir {
        let host = tempfile::tempdir().expect("a folder");
        let root = host.path();
        let cgroup = root.join("sys/fs/cgroup/docker").join(ID);
        for folder in [root.join("proc/7"), root.join("proc/8"), cgroup.clone()] {
            fs::create_dir_all(folder).expect("a folder");
        }
        let write = |path: &Path, text: &str| fs::write(path, text).expect("a file");
        write(&root.join("sys/fs/cgroup/cgroup.controllers"), "cpu memory\n");
        write(&root.join("proc/7/cgroup"), &format!("0::/docker/{ID}\n"));
        write(&root.join("proc/8/cgroup"), "0::/system.slice/ssh.service\n");
        write(&cgroup.join("cpu.stat"), "usage_usec 1500000\n");
        write(&cgroup.join("memory.current"), "1000\n");
        write(&cgroup.join("memory.stat"), "inactive_file 400\n");
        write(&root.join("a.log"), "12345");
        host
    }

    fn of(host: &tempfile::TempDir, pid: i64, log: &str) -> Arc<[Watched]> {
        let log_path = Some(host.path().join(log).into());
        [Watched { id: ID.into(), labels: Labels::new(&[("name", "web")]), pid, log_path }].into()
    }

    fn values(blocks: &[Arc<Block>]) -> Vec<(&'static str, f64)> {
        let families = blocks.iter().flat_map(|block| block.read_back());
        families.flat_map(|one| one.samples.into_iter().map(move |sample| (one.name, sample.value))).collect()
    }

    #[tokio::test]
    async fn cpu_memory_and_log_are_read_where_they_can_be() {
        let host = host();
        let moving = Moving::under(host.path());
        let deadline = || Instant::now() + Duration::from_secs(5);
        let cpu = ("docker_container_cpu_seconds_total", 1.5);
        let memory = ("docker_container_memory_bytes", 600.0);
        let log = ("docker_container_log_bytes", 5.0);
        for (pid, file, expected) in [
            (7, "a.log", vec![cpu, memory, log]),
            (7, "gone.log", vec![cpu, memory]),
            (0, "a.log", vec![log]),
            // Somebody else has the number now.
            (8, "a.log", vec![log]),
            (9, "gone.log", vec![]),
        ] {
            let families = moving.read(&of(&host, pid, file), deadline()).await;
            assert_eq!(values(&families), expected, "{pid} {file}");
        }
    }

    #[tokio::test]
    async fn a_reading_that_does_not_end_is_not_started_again() {
        let host = host();
        let moving = Moving::under(host.path());
        let watched = of(&host, 7, "a.log");
        // Whoever opens a pipe waits for somebody at its other end.
        let pipe = host.path().join("proc/7/cgroup");
        fs::remove_file(&pipe).expect("a file");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).expect("a pipe");
        assert_eq!(values(&moving.read(&watched, Instant::now() + Duration::from_millis(50)).await), []);
        for _ in 0..3 {
            assert_eq!(values(&moving.read(&watched, Instant::now() + Duration::from_secs(60)).await), []);
        }
        drop(fs::OpenOptions::new().write(true).open(&pipe).expect("a reader"));
        let _ended = moving.turn.acquire().await.expect("never closed");
    }
}
