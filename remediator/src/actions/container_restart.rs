//! Restarts a running container that its own healthcheck calls unhealthy.

use std::time::Duration;

use bollard::query_parameters::RestartContainerOptionsBuilder;
use evenkeel_host::{config::PromDuration, docker::State};
use futures_util::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Action, Check, Done, Failure, Job, Permission, engine};
use crate::{
    observe::{Container, Observation},
    policy::Class,
    target::{Kind, Target},
};

pub(super) const NAME: &str = "container_restart";

/// The engine kills a container this long after asking it to stop, when neither it nor the rule says otherwise
/// (docker-container-restart(1)).
const STOP_DEFAULT: Duration = Duration::from_secs(10);

/// Restarts an unhealthy container (class S2). Not one whose healthcheck is broken, whose namespaces others use, or that
/// is Swarm's.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ContainerRestart {
    /// How long the container may take to stop before it is killed; the engine's own setting when not given.
    stop_timeout: Option<PromDuration>,
}

impl Action for ContainerRestart {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::S2
    }

    fn fits(&self, kind: Kind) -> bool {
        kind == Kind::Container
    }

    fn timeout(&self) -> Duration {
        self.stop_timeout.as_ref().map_or(STOP_DEFAULT * 6, |timeout| timeout.get()) + Duration::from_secs(60)
    }

    fn plan(&self, target: &Target) -> String {
        match self.stop_seconds() {
            Some(seconds) => format!("POST /containers/{}/restart?t={seconds}", target.name()),
            None => format!("POST /containers/{}/restart", target.name()),
        }
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        vec![Permission::Docker { method: "POST", path: r"/containers/{container}/restart(\?t=[0-9]+)?" }]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            let Observation::Container(container) = &job.seen else {
                return Ok(Check::Skip("not_a_container", job.seen.summary()));
            };
            if let Check::Skip(reason, detail) = judge(container) {
                return Ok(Check::Skip(reason, detail));
            }
            let id = container.id.clone();
            if tokio::task::spawn_blocking(move || is_self(&id)).await.unwrap_or(true) {
                return Ok(Check::Skip("own_container", "evenkeel runs in it".to_owned()));
            }
            let dependents = dependents(job, &container.id)
                .await
                .map_err(|error| Failure::Refused(format!("cannot see what depends on it: {error}")))?;
            Ok(if dependents.is_empty() {
                Check::Go
            } else {
                let detail = format!("{} and would lose it", dependents.join(", "));
                Check::Skip("has_dependents", detail)
            })
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let Observation::Container(container) = &job.seen else {
                return Err(Failure::Refused("not a container".to_owned()));
            };
            let client =
                job.host.docker.client().await.map_err(|error| Failure::Refused(error.to_string()))?;
            // Its own time-out is for small questions; this call ends when the container has stopped and started.
            let client = client.with_timeout(self.timeout());
            let mut options = RestartContainerOptionsBuilder::new();
            if let Some(seconds) = self.stop_seconds() {
                options = options.t(seconds);
            }
            still_the_same(job, &container.id).await?;
            let options = Some(options.build());
            client.restart_container(job.target.name(), options).await.map_err(engine::failure)?;
            Ok(Done { detail: "restarted".to_owned(), ..Done::default() })
        })
    }
}

impl ContainerRestart {
    fn stop_seconds(&self) -> Option<i32> {
        self.stop_timeout.as_ref().map(|timeout| i32::try_from(timeout.get().as_secs()).unwrap_or(i32::MAX))
    }
}

/// Calls name the container, because a proxy before the engine's socket admits names by the same list (`generate
/// haproxy`); one made anew under that name since it was seen is another one.
///
/// # Errors
/// When it is not the one that was seen, or cannot be seen: nothing was done.
pub(super) async fn still_the_same(job: &Job, id: &str) -> Result<(), Failure> {
    let name = job.target.name();
    let now = job.host.docker.inspect(name).await;
    let now = now.map_err(|error| Failure::Refused(format!("docker: {error}")))?;
    if now.is_none_or(|now| now.id != id) {
        return Err(Failure::Refused(format!("{name} was removed or made anew meanwhile")));
    }
    Ok(())
}

/// Whether a restart may help what was seen.
fn judge(container: &Container) -> Check {
    if container.state != State::Running.as_str() {
        Check::Skip("not_running", format!("it is {}", container.state))
    } else if let Some(reason) = &container.healthcheck_broken {
        Check::Skip(
            "healthcheck_broken",
            format!(
                "its healthcheck cannot ever work ({reason}), which says nothing about the container: repair the healthcheck"
            ),
        )
    } else if container.health != "unhealthy" {
        Check::Skip("not_unhealthy", format!("its health is {}", container.health))
    } else if container.auto_remove {
        Check::Skip("auto_remove", "it was started with --rm: a restart would destroy it".to_owned())
    } else if container.swarm {
        Check::Skip("swarm", "Swarm manages it".to_owned())
    } else {
        Check::Go
    }
}

/// Whether this process runs in that container: Docker mounts /etc/hostname and its kin from the container's folder.
pub(super) fn is_self(id: &str) -> bool {
    std::fs::read_to_string("/proc/self/mountinfo")
        .is_ok_and(|mounts| mounts.contains(&format!("/containers/{id}/")))
}

/// Containers that are asked about at the same time.
const AT_ONCE: usize = 8;

/// The running containers that use one of this one's namespaces (`--network`, `--pid`, `--ipc container:NAME`), and
/// lose it at a restart: each with what it uses.
pub(super) async fn dependents(job: &Job, id: &str) -> Result<Vec<String>, evenkeel_host::docker::Error> {
    let running = job.host.docker.containers().await?.into_iter();
    let others =
        running.filter(|other| other.state == State::Running && other.id != id).map(|other| other.id);
    let inspected = stream::iter(others)
        .map(|other| async move { job.host.docker.inspect(&other).await })
        .buffered(AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
    Ok(inspected.into_iter().flatten().filter_map(|other| shares(&other, id, job.target.name())).collect())
}

/// What a container uses of the one of this id and name.
fn shares(other: &evenkeel_host::docker::Container, id: &str, name: &str) -> Option<String> {
    let modes = [
        ("network", &other.network_mode),
        ("process namespace", &other.pid_mode),
        ("ipc namespace", &other.ipc_mode),
    ];
    let (what, _) = modes.into_iter().find(|(_, mode)| {
        // The engine keeps what the user wrote: a name, or an id, also a short one.
        let with = mode.strip_prefix("container:").unwrap_or_default();
        !with.is_empty() && (with == name || id.starts_with(with))
    })?;
    Some(format!("{} uses its {what}", other.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::bench::Bench;

    #[test]
    fn restarts_only_a_sick_container_that_survives_it() {
        let judged = |change: fn(&mut Container)| {
            let mut container = Container {
                id: "0123456789abcdef".to_owned(),
                state: "running".to_owned(),
                health: "unhealthy".to_owned(),
                ..Container::default()
            };
            change(&mut container);
            match judge(&container) {
                Check::Skip(reason, _) => reason,
                _ => "go",
            }
        };
        assert_eq!(judged(|_| ()), "go");
        assert_eq!(
            judged(|c| c.healthcheck_broken = Some("command_not_found".to_owned())),
            "healthcheck_broken"
        );
        assert_eq!(judged(|c| c.state = "paused".to_owned()), "not_running");
        assert_eq!(judged(|c| c.state = "exited".to_owned()), "not_running");
        assert_eq!(judged(|c| c.health = "starting".to_owned()), "not_unhealthy");
        assert_eq!(judged(|c| c.health = "healthy".to_owned()), "not_unhealthy");
        assert_eq!(judged(|c| c.auto_remove = true), "auto_remove");
        assert_eq!(judged(|c| c.swarm = true), "swarm");
    }

    const ID: &str = "00000000000000000000000000000000000000000000000000000000000000aa";

    /// An engine with a sick container that is `id` by now, and another one that runs with these settings.
    fn engine(id: &'static str, other: &'static str) -> Bench {
        Bench::new(move |path| {
            Some(match path {
                "/containers/json?all=1" => format!(
                    r#"[{{"Id": "{ID}", "Names": ["/app"], "State": "running"}}, {{"Id": "0b", "Names": ["/side"], "State": "running"}}]"#
                ),
                "/containers/0b/json" => format!(
                    r#"{{"Id": "0b", "Name": "/side", "State": {{"Status": "running"}}, "HostConfig": {{{other}}}}}"#
                ),
                "/containers/app/json" => {
                    format!(r#"{{"Id": "{id}", "Name": "/app", "State": {{"Status": "running"}}}}"#)
                }
                "/containers/app/restart?t=20" => String::new(),
                _ => return None,
            })
        })
    }

    fn sick() -> Container {
        let text = |text: &str| text.to_owned();
        Container { id: text(ID), state: text("running"), health: text("unhealthy"), ..Container::default() }
    }

    fn action() -> ContainerRestart {
        ContainerRestart { stop_timeout: Some(PromDuration::new(Duration::from_secs(20))) }
    }

    #[tokio::test]
    async fn whoever_uses_what_it_gives_would_lose_it() {
        for (other, uses) in [
            (r#""NetworkMode": "container:app""#, Some("network")),
            (r#""PidMode": "container:0000000000000000""#, Some("process namespace")),
            (r#""IpcMode": "container:app""#, Some("ipc namespace")),
            (r#""NetworkMode": "container:another""#, None),
            (r#""NetworkMode": "bridge""#, None),
        ] {
            let bench = engine(ID, other);
            let check = action().check(&bench.container("app", sick())).await.unwrap();
            match uses {
                None => assert_eq!(check, Check::Go, "{other}"),
                Some(uses) => {
                    let Check::Skip("has_dependents", detail) = check else { panic!("{other}: {check:?}") };
                    assert!(detail.contains(&format!("side uses its {uses}")), "{detail}");
                }
            }
        }
    }

    /// The name was admitted, and the one that was judged is restarted: not whatever has that name by now.
    #[tokio::test]
    async fn one_that_was_made_anew_meanwhile_is_left_alone() {
        let calls = |bench: &Bench| {
            bench.docker.take_requests().into_iter().filter(|path| path.contains("restart")).count()
        };
        let bench = engine("0c", "");
        let failed = action().run(&bench.container("app", sick())).await.unwrap_err();
        assert_eq!(failed, Failure::Refused("app was removed or made anew meanwhile".to_owned()));
        assert_eq!(calls(&bench), 0);
        let bench = engine(ID, "");
        assert_eq!(action().run(&bench.container("app", sick())).await.unwrap().detail, "restarted");
        assert_eq!(calls(&bench), 1);
    }
}
