//! Removes stopped containers that their owner has labelled for it. Their writable layers and logs go with them, their
//! volumes never do. A selection of our own: the engine's prune counts a container's age from when it was made, not from
//! when it ended.

use std::time::{Duration, SystemTime};

use bollard::{errors::Error as DockerError, query_parameters::RemoveContainerOptionsBuilder};
use evenkeel_host::{
    config::PromDuration,
    docker::{Container, Object, State},
};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Action, Check, Done, Failure, Job, Permission,
    container_restart::is_self,
    disk::{self, Freed, engine_unseen},
    engine,
};
use crate::{
    policy::Class,
    target::{Kind, Target},
};

pub(super) const NAME: &str = "container_prune";

/// What a person may still want to look at stays at least so long.
const MIN_AGE: Duration = Duration::from_secs(7 * 86_400);
const SWARM: &str = "com.docker.swarm.service.id";

/// Removes containers that have ended and carry the label; never their volumes (class D2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Parameters")]
#[schemars(with = "Parameters")]
pub(super) struct ContainerPrune {
    min_age: PromDuration,
    label: String,
}

/// Removes containers that have ended and carry the label; never their volumes (class D2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Parameters {
    /// Only such as ended so long ago; 7d at least.
    min_age: PromDuration,
    /// The label that must be `true` on the container.
    label: String,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { min_age: PromDuration::new(MIN_AGE), label: "evenkeel.prune".to_owned() }
    }
}

impl TryFrom<Parameters> for ContainerPrune {
    type Error = String;

    fn try_from(Parameters { min_age, label }: Parameters) -> Result<Self, String> {
        if min_age.get() < MIN_AGE {
            return Err(format!(
                "`container_prune.min_age: {min_age}` is below 7d: what ended lately may still be looked at"
            ));
        }
        Ok(Self { min_age, label })
    }
}

impl Action for ContainerPrune {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::D2
    }

    fn fits(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Filesystem | Kind::Host)
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(15 * 60)
    }

    fn plan(&self, _: &Target) -> String {
        format!(
            "DELETE /containers/ID?v=false&force=false of each that ended {} ago and has the label {}=true",
            self.min_age, self.label
        )
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        // Never with its volumes, and never a running one.
        vec![Permission::Docker {
            method: "DELETE",
            path: r"/containers/[0-9a-f]{64}\?(&?(v|force|link)=false)+",
        }]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            let engine = job.host.docker.engine().await.map_err(engine_unseen)?;
            if let Some(check) = disk::elsewhere(job, "containers", &disk::image_places(&engine)).await {
                return Ok(check);
            }
            if self.select(job).await?.is_empty() {
                return Ok(Check::Skip(
                    "nothing_to_delete",
                    "no stopped container is old enough and labelled".to_owned(),
                ));
            }
            let usage = disk::counted(job.host.docker.disk_usage(&[Object::Containers])).await;
            let most =
                usage.and_then(|usage| usage.get(Object::Containers)).map(|usage| usage.reclaimable_bytes);
            Ok(disk::worth(job, Freed::files(most)))
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let client = job.host.docker.client().await.map_err(engine_unseen)?;
            let client = client.with_timeout(Duration::from_secs(300));
            let options = RemoveContainerOptionsBuilder::new().v(false).force(false).link(false).build();
            let mut gone = Vec::new();
            for (id, name) in self.select(job).await? {
                if disk::is_enough(job).await {
                    break;
                }
                match client.remove_container(&id, Some(options.clone())).await {
                    Ok(()) => gone.push(name),
                    // Started again meanwhile, or somebody else removes it.
                    Err(DockerError::DockerResponseServerError { status_code: 404 | 409, .. }) => {}
                    Err(error) if gone.is_empty() => return Err(engine::failure(error)),
                    Err(error) => {
                        return Err(Failure::Unknown(format!("removed {}, then: {error}", gone.join(", "))));
                    }
                }
            }
            let detail = if gone.is_empty() {
                "removed none".to_owned()
            } else {
                format!("removed {}", gone.join(", "))
            };
            Ok(Done { detail, ..Done::default() })
        })
    }
}

impl ContainerPrune {
    /// Ids and names of what may go now.
    async fn select(&self, job: &Job) -> Result<Vec<(String, String)>, Failure> {
        let mut selected = Vec::new();
        for listed in job.host.docker.containers().await.map_err(engine_unseen)? {
            // The list says nothing of when it ended; only few are labelled.
            if listed.state != State::Exited
                || listed.labels.get(&self.label).is_none_or(|value| value != "true")
            {
                continue;
            }
            let Some(container) = job.host.docker.inspect(&listed.id).await.map_err(engine_unseen)? else {
                continue;
            };
            let id = container.id.clone();
            let own = tokio::task::spawn_blocking(move || is_self(&id)).await.unwrap_or(true);
            if !own && self.may_go(&container, SystemTime::now()) {
                selected.push((container.id, container.name));
            }
        }
        Ok(selected)
    }

    fn may_go(&self, container: &Container, now: SystemTime) -> bool {
        let ended = container.finished.and_then(|finished| now.duration_since(finished).ok());
        container.state == State::Exited
            && ended.is_some_and(|age| age >= self.min_age.get())
            && container.labels.get(&self.label).is_some_and(|value| value == "true")
            && !container.labels.contains_key(SWARM)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::actions::{Step, bench::Bench};

    fn step(text: &str) -> Result<Step, String> {
        let steps: Result<Vec<Step>, _> =
            evenkeel_host::config::parse("t.yml", &format!("- container_prune: {text}\n"));
        steps.map(|mut steps| steps.remove(0)).map_err(|error| error.to_string())
    }

    #[test]
    fn what_ended_lately_cannot_be_asked_for() {
        assert_eq!(step("{}").unwrap().0.class(), Class::D2);
        assert!(step("{min_age: 24h}").unwrap_err().contains("below 7d"));
    }

    #[tokio::test]
    async fn only_what_ended_long_ago_and_is_labelled_goes_and_its_volumes_stay() {
        let labelled = json!({"evenkeel.prune": "true"});
        let containers = json!([
            {"Id": "0a", "Names": ["/old"], "State": "exited", "Labels": labelled},
            {"Id": "0b", "Names": ["/made-long-ago-ended-now"], "State": "exited", "Labels": labelled},
            {"Id": "0c", "Names": ["/plain"], "State": "exited", "Labels": {}},
            {"Id": "0d", "Names": ["/running"], "State": "running", "Labels": labelled},
            {"Id": "0e", "Names": ["/swarm"], "State": "exited", "Labels": labelled},
        ]);
        let bench = Bench::new(move |path| {
            let one = |id: &str, finished: &str, more: serde_json::Value| {
                let mut labels = json!({"evenkeel.prune": "true"});
                labels.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                json!({"Id": id, "Name": format!("/{id}"), "Created": "2020-01-01T00:00:00Z",
                       "State": {"Status": "exited", "ExitCode": 1, "FinishedAt": finished},
                       "Config": {"Labels": labels}})
                .to_string()
            };
            let now = jiff::Timestamp::now().to_string();
            match path {
                "/info" => Some(json!({"DockerRootDir": "/"}).to_string()),
                "/containers/json?all=1" => Some(containers.to_string()),
                "/containers/0a/json" => Some(one("0a", "2020-01-01T00:00:00Z", json!({}))),
                "/containers/0b/json" => Some(one("0b", &now, json!({}))),
                "/containers/0e/json" => Some(one("0e", "2020-01-01T00:00:00Z", json!({SWARM: "x"}))),
                "/containers/0a?v=false&force=false&link=false" => Some(String::new()),
                path if path.starts_with("/system/df") => {
                    Some(json!({"Containers": [{"SizeRw": 700, "State": "exited"}]}).to_string())
                }
                _ => None,
            }
        });
        let job = bench.disk("/", 100);
        let step = step("{}").unwrap();
        assert_eq!(step.0.check(&job).await, Ok(Check::Frees(700)));
        assert_eq!(step.0.run(&job).await.unwrap().detail, "removed 0a");
        let removed: Vec<String> =
            bench.docker.take_requests().into_iter().filter(|path| path.contains("force")).collect();
        assert_eq!(removed.len(), 1, "{removed:?}");
    }
}
