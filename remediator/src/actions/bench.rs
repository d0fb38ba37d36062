//! A scripted engine, and jobs about a host that has it. Only for tests of actions.

use std::path::Path;

use evenkeel_host::{
    docker::{
        Docker,
        fake::{Answer, FakeDocker},
    },
    filesystem::{Prober, device_id},
    systemd::Systemd,
};
use tempfile::TempDir;

use super::Job;
use crate::{
    notify::Notifier,
    observe::{Container, Filesystem, Host, Observation},
    target::{Kind, Selector, Target},
};

/// An engine and the folder of its socket.
pub(super) struct Bench {
    pub(super) docker: FakeDocker,
    dir: TempDir,
}

impl Bench {
    /// An engine that answers paths with bodies, and 404 where there is none.
    pub(super) fn new(answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        Self::refusing("no path at all", 500, answer)
    }

    /// The same, refusing paths that begin with `refused`.
    pub(super) fn refusing(
        refused: &'static str,
        status: u16,
        answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let says_no = |status| Answer::Says(status, r#"{"message": "no"}"#.to_owned());
        let docker = FakeDocker::start(&dir.path().join("docker.sock"), move |path| match path {
            "/version" => Answer::json(r#"{"Version": "20.10.24", "ApiVersion": "1.41"}"#),
            path if path.starts_with(refused) => says_no(status),
            path => answer(path).map_or_else(|| says_no(404), Answer::json),
        });
        Self { docker, dir }
    }

    fn job(&self, target: Target, seen: Observation, deficit_bytes: Option<u64>) -> Job {
        let socket = self.dir.path().join("docker.sock");
        let host = Host {
            systemd: Systemd::at("unix:path=/no/such/bus"),
            docker: Docker::at(&format!("unix://{}", socket.display())),
            prober: Prober::default(),
        };
        Job {
            host,
            notifier: Notifier::default(),
            reports: self.dir.path().join("reports"),
            id: 1,
            rule: "rule".to_owned(),
            target,
            seen,
            deficit_bytes,
        }
    }

    /// A job about a filesystem of this machine that lacks so many bytes.
    pub(super) fn disk(&self, mount_point: &str, deficit: u64) -> Job {
        let device = device_id(Path::new(mount_point)).unwrap();
        let seen = Filesystem { size_bytes: 1 << 40, avail_bytes: u64::MAX / 2, used_ratio: 0.9, device };
        self.job(target(Kind::Filesystem, mount_point), Observation::Filesystem(seen), Some(deficit))
    }

    /// As if a filesystem had been full when it was looked at.
    #[expect(clippy::unused_self, reason = "it reads as what the test says")]
    pub(super) fn as_if_full(&self, job: &mut Job) {
        if let Observation::Filesystem(seen) = &mut job.seen {
            seen.avail_bytes = 0;
        }
    }

    /// A job about a container.
    pub(super) fn container(&self, name: &str, seen: Container) -> Job {
        self.job(target(Kind::Container, name), Observation::Container(seen), None)
    }
}

fn target(kind: Kind, name: &str) -> Target {
    Selector { kind, label: String::new(), allow: vec!["*".parse().unwrap()] }.admit(name).unwrap()
}
