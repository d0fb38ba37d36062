//! Starts a container that ended in failure, where its owner has labelled it for that: the engine does not keep who
//! stopped a container.

use std::time::Duration;

use evenkeel_host::docker::{Container as Inspected, State};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Action, Check, Done, Failure, Job, Permission,
    container_restart::{dependents, is_self, still_the_same},
    disk::engine_unseen,
    engine,
};
use crate::{
    observe::Observation,
    policy::Class,
    target::{Kind, Target},
};

pub(super) const NAME: &str = "container_start";

/// Starts a container that ended in failure and carries the label (class S2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ContainerStart {
    /// The label that must be `true` on the container.
    label: String,
}

impl Default for ContainerStart {
    fn default() -> Self {
        Self { label: "evenkeel.start".to_owned() }
    }
}

impl Action for ContainerStart {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::S2
    }

    fn fits(&self, kind: Kind) -> bool {
        kind == Kind::Container
    }

    fn is_for(&self, seen: &Observation) -> bool {
        matches!(seen, Observation::Container(container) if is_down(&container.state))
    }

    fn plan(&self, target: &Target) -> String {
        format!("POST /containers/{}/start", target.name())
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        vec![Permission::Docker { method: "POST", path: r"/containers/{container}/start" }]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            let Observation::Container(seen) = &job.seen else {
                return Ok(Check::Skip("not_a_container", job.seen.summary()));
            };
            if !is_down(&seen.state) {
                return Ok(Check::Skip("not_down", format!("it is {}", seen.state)));
            }
            if seen.swarm {
                return Ok(Check::Skip("swarm", "Swarm manages it".to_owned()));
            }
            let id = seen.id.clone();
            if tokio::task::spawn_blocking(move || is_self(&id)).await.unwrap_or(true) {
                return Ok(Check::Skip("own_container", "evenkeel runs in it".to_owned()));
            }
            let Some(container) = job.host.docker.inspect(&seen.id).await.map_err(engine_unseen)? else {
                return Ok(Check::Skip("gone", "there is no such container any more".to_owned()));
            };
            if let Check::Skip(reason, detail) = self.judge(&container) {
                return Ok(Check::Skip(reason, detail));
            }
            // Its network is another container's: without that one it cannot start.
            if let Some(other) = container.network_mode.strip_prefix("container:") {
                let other_one = job.host.docker.inspect(other).await.map_err(engine_unseen)?;
                if other_one.is_none_or(|other| other.state != State::Running) {
                    let detail = format!("it uses the network of {other}, which does not run");
                    return Ok(Check::Skip("network_gone", detail));
                }
            }
            Ok(Check::Go)
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let Observation::Container(container) = &job.seen else {
                return Err(Failure::Refused("not a container".to_owned()));
            };
            let client = job.host.docker.client().await.map_err(engine_unseen)?;
            let client = client.with_timeout(Duration::from_secs(60));
            still_the_same(job, &container.id).await?;
            client.start_container(job.target.name(), None).await.map_err(engine::failure)?;
            let mut detail = "started".to_owned();
            // They hold on to what ended with its last run.
            let cut_off = dependents(job, &container.id).await.unwrap_or_default();
            if !cut_off.is_empty() {
                detail += &format!("; these need a restart: {}", cut_off.join(", "));
            }
            Ok(Done { detail, ..Done::default() })
        })
    }
}

impl ContainerStart {
    /// Whether a start is what its owner wants.
    fn judge(&self, container: &Inspected) -> Check {
        if container.auto_remove {
            Check::Skip("auto_remove", "it was started with --rm: the engine is removing it".to_owned())
        } else if container.exit_code == 0 {
            Check::Skip("ended_well", "it ended with exit code 0".to_owned())
        } else if container.labels.get(&self.label).is_none_or(|value| value != "true") {
            let detail = format!(
                "it has no label {}=true: perhaps a person stopped it, which the engine does not tell",
                self.label
            );
            Check::Skip("not_labelled", detail)
        } else if container.restart_policy == "no" {
            Check::Skip(
                "no_restart_policy",
                "its restart policy is `no`: nobody wants it restarted".to_owned(),
            )
        } else if let Some(broken) = container.health.as_ref().and_then(|health| health.broken()) {
            let detail = format!(
                "its healthcheck cannot ever work ({}), so nobody could tell whether a start helped: repair the healthcheck",
                broken.as_str()
            );
            Check::Skip("healthcheck_broken", detail)
        } else {
            Check::Go
        }
    }
}

fn is_down(state: &str) -> bool {
    state == State::Exited.as_str() || state == State::Created.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{actions::bench::Bench, observe::Container};

    const ID: &str = "0123456789abcdef";

    fn inspected() -> Value {
        json!({
            "Id": ID, "Name": "/app",
            "State": {"Status": "exited", "ExitCode": 137},
            "Config": {"Labels": {"evenkeel.start": "true"}},
            "HostConfig": {"RestartPolicy": {"Name": "on-failure"}, "NetworkMode": "bridge"},
        })
    }

    fn seen(state: &str) -> Container {
        Container { id: ID.to_owned(), state: state.to_owned(), ..Container::default() }
    }

    /// The verdict on a container that is as `change` says.
    async fn judged(change: impl Fn(&mut Value), seen: Container) -> String {
        let mut answer = inspected();
        change(&mut answer);
        let bench =
            Bench::new(move |path| (path == format!("/containers/{ID}/json")).then(|| answer.to_string()));
        match ContainerStart::default().check(&bench.container("app", seen)).await.unwrap() {
            Check::Skip(reason, _) => reason.to_owned(),
            check => format!("{check:?}"),
        }
    }

    #[tokio::test]
    async fn starts_only_what_failed_and_is_labelled_for_it() {
        assert_eq!(judged(|_| (), seen("exited")).await, "Go");
        for state in ["running", "paused", "restarting", "removing", "dead"] {
            assert_eq!(judged(|_| (), seen(state)).await, "not_down", "{state}");
        }
        assert_eq!(judged(|_| (), Container { swarm: true, ..seen("exited") }).await, "swarm");
        assert_eq!(judged(|a| a["State"]["ExitCode"] = json!(0), seen("exited")).await, "ended_well");
        assert_eq!(judged(|a| a["Config"]["Labels"] = json!({}), seen("exited")).await, "not_labelled");
        let other = |a: &mut Value| a["Config"]["Labels"] = json!({"evenkeel.start": "false"});
        assert_eq!(judged(other, seen("exited")).await, "not_labelled");
        let no_policy = |a: &mut Value| a["HostConfig"]["RestartPolicy"]["Name"] = json!("no");
        assert_eq!(judged(no_policy, seen("exited")).await, "no_restart_policy");
        assert_eq!(
            judged(|a| a["HostConfig"]["AutoRemove"] = json!(true), seen("exited")).await,
            "auto_remove"
        );
        let broken = |a: &mut Value| {
            a["State"]["Health"] = json!({"Log": [{"ExitCode": 127, "Output": "/bin/sh: curl: not found"}]});
        };
        assert_eq!(judged(broken, seen("exited")).await, "healthcheck_broken");
        let network = |a: &mut Value| a["HostConfig"]["NetworkMode"] = json!("container:feedc0de");
        assert_eq!(judged(network, seen("exited")).await, "network_gone");
    }

    #[tokio::test]
    async fn says_who_lost_the_network_that_it_gave() {
        let bench = Bench::new(|path| {
            match path {
            "/containers/json?all=1" => Some(
                json!([{"Id": ID, "Names": ["/app"], "State": "running"},
                       {"Id": "5ide", "Names": ["/side"], "State": "running"},
                       {"Id": "0ther", "Names": ["/other"], "State": "running"}])
                .to_string(),
            ),
            "/containers/5ide/json" => Some(
                json!({"Id": "5ide", "Name": "/side", "HostConfig": {"NetworkMode": format!("container:{ID}")}})
                    .to_string(),
            ),
            "/containers/0ther/json" => Some(json!({"Id": "0ther", "Name": "/other"}).to_string()),
            "/containers/app/json" => Some(json!({"Id": ID, "Name": "/app"}).to_string()),
            "/containers/app/start" => Some(String::new()),
            _ => None,
        }
        });
        let done = ContainerStart::default().run(&bench.container("app", seen("exited"))).await.unwrap();
        assert_eq!(done.detail, "started; these need a restart: side uses its network");
    }
}
