//! A scripted engine, and jobs about a host that has it. Only for tests of actions.

use std::{path::Path, sync::Arc};

use evenkeel_host::{
    docker::{
        Docker,
        fake::{Answer, FakeDocker},
    },
    filesystem::{Prober, device_id},
    resolve::Resolver,
    systemd::Systemd,
};
use tempfile::TempDir;

use super::Job;
use crate::{
    fullness::Marks,
    notify::Notifier,
    observe::{Container, Filesystem, Host, Inodes, Observation},
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

    fn job(&self, target: Target, seen: Observation, done_below: Option<Marks>) -> Job {
        let socket = self.dir.path().join("docker.sock");
        let host = Host {
            systemd: Systemd::at("unix:path=/no/such/bus"),
            docker: Docker::at(&format!("unix://{}", socket.display())),
            prober: Prober::default(),
            resolver: Resolver::default(),
        };
        Job {
            config: Arc::new(crate::config::tests::config("rules: []\n").unwrap()),
            host,
            notifier: Notifier::default(),
            reports: self.dir.path().join("reports"),
            id: 1,
            rule: "rule".to_owned(),
            target,
            seen,
            done_below,
        }
    }

    /// A job about a filesystem of this machine that lacks so many bytes, and will whatever is deleted.
    pub(super) fn disk(&self, mount_point: &str, lack: u64) -> Job {
        self.lacking(mount_point, lack, None)
    }

    /// The same, and so many inodes.
    pub(super) fn inodes(&self, mount_point: &str, lack: u64, inodes: u64) -> Job {
        self.lacking(mount_point, lack, Some(inodes))
    }

    fn lacking(&self, mount_point: &str, lack: u64, inodes: Option<u64>) -> Job {
        const ALL: u64 = 1 << 40;
        let seen = Filesystem {
            size_bytes: ALL,
            avail_bytes: ALL - lack,
            used_ratio: 0.9,
            inodes: inodes.map(|lack| Inodes { total: ALL, free: ALL - lack, used_ratio: 0.9 }),
            device: device_id(Path::new(mount_point)).unwrap(),
        };
        // All of it must be free.
        let marks = Marks { usage: Some(0.0), inodes: inodes.map(|_| 0.0) };
        self.job(target(Kind::Filesystem, mount_point), Observation::Filesystem(seen), Some(marks))
    }

    /// A job about a container.
    pub(super) fn container(&self, name: &str, seen: Container) -> Job {
        self.job(target(Kind::Container, name), Observation::Container(seen), None)
    }
}

fn target(kind: Kind, name: &str) -> Target {
    Selector { kind, label: String::new(), allow: vec!["*".parse().unwrap()] }.admit(name).unwrap()
}
