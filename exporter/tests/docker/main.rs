//! The Docker collectors against an engine whose answers are written here.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod by_list;
mod disk;
mod follow;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use evenkeel_exporter::collectors::{Collector, Look, Seen, docker::DockerCollector};
use evenkeel_host::{
    docker::{
        Docker,
        fake::{Answer, FakeDocker},
    },
    metrics::{Family, Sample},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// An engine's containers, changed by the test: list entry and inspect answer by name.
type Containers = Arc<Mutex<BTreeMap<&'static str, (Value, Inspect)>>>;

/// How the engine answers an inspect.
#[derive(Clone)]
enum Inspect {
    Says(Value),
    NotFound,
    Broken,
    Never,
}

fn place() -> (TempDir, PathBuf, Docker) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let docker = Docker::at(&format!("unix://{}", socket.display()));
    (dir, socket, docker)
}

fn start(docker: Docker) -> DockerCollector {
    DockerCollector::start(docker, &Default::default(), &CancellationToken::new())
}

/// Everyone who follows the engine's announcements.
type Followers = Arc<Mutex<Vec<UnboundedSender<String>>>>;

/// The same engine, that announces what the test says.
fn announcing(
    containers: &Containers,
    followers: &Followers,
) -> impl Fn(&str) -> Answer + Send + Sync + use<> {
    let (engine, followers) = (engine(containers), Arc::clone(followers));
    move |path| {
        if !path.starts_with("/events?") {
            return engine(path);
        }
        let (sender, receiver) = unbounded_channel();
        followers.lock().unwrap().push(sender);
        Answer::Follows(receiver)
    }
}

/// An engine that announces nothing.
fn engine(containers: &Containers) -> impl Fn(&str) -> Answer + Send + Sync + use<> {
    let containers = Arc::clone(containers);
    move |path| {
        let containers = containers.lock().unwrap();
        match path {
            "/version" => Answer::json(json!({"Version": "20.10.24", "ApiVersion": "1.41"})),
            "/_ping" => Answer::Says(200, "OK".into()),
            path if path.starts_with("/events?") => Answer::Says(403, r#"{"message": "forbidden"}"#.into()),
            "/info" => Answer::json(json!({"Driver": "overlay2", "CgroupVersion": "2"})),
            "/containers/json?all=1" => {
                Answer::json(Value::Array(containers.values().map(|(entry, _)| entry.clone()).collect()))
            }
            path => {
                let id = path.strip_prefix("/containers/").and_then(|rest| rest.strip_suffix("/json"));
                match id.and_then(|id| containers.get(id)).map(|(_, inspect)| inspect) {
                    Some(Inspect::Says(value)) => Answer::json(value),
                    Some(Inspect::Never) => Answer::Nothing,
                    Some(Inspect::Broken) => Answer::Says(500, r#"{"message": "no"}"#.into()),
                    Some(Inspect::NotFound) | None => Answer::Says(404, r#"{"message": "none"}"#.into()),
                }
            }
        }
    }
}

/// The id is the name. `health` is what the status text says in parentheses.
fn running(name: &str, up: &str, health: Option<&str>, restarts: u64) -> (Value, Inspect) {
    let text = health.map_or_else(|| format!("Up {up}"), |health| format!("Up {up} ({health})"));
    let names = [format!("/{name}")];
    let entry = json!({"Id": name, "Names": names, "State": "running", "Status": text, "Image": "i"});
    let mut answer = json!({"Id": name, "Name": format!("/{name}"), "RestartCount": restarts,
        "State": {"Status": "running", "ExitCode": 0}});
    if let Some(health) = health {
        answer["State"]["Health"] = json!({"Status": health, "FailingStreak": restarts, "Log": []});
    }
    (entry, Inspect::Says(answer))
}

async fn look(collector: &impl Collector) -> Vec<Family> {
    match collector.look(Instant::now() + Duration::from_secs(5)).await {
        Ok(Look::Seen(Seen { blocks, .. })) => blocks.iter().flat_map(|block| block.read_back()).collect(),
        other => panic!("{other:?}"),
    }
}

/// The values of one metric, by the value of one label; none for a metric that is not there.
fn values(families: &[Family], name: &str, label: &str) -> BTreeMap<String, f64> {
    let samples = families.iter().filter(|family| family.name == name).flat_map(|family| &family.samples);
    let labelled = |sample: &Sample| {
        let (_, value) = sample.labels.iter().find(|(key, _)| *key == label)?;
        Some((value.clone(), sample.value))
    };
    samples.filter_map(labelled).collect()
}

fn restarts(families: &[Family]) -> BTreeMap<String, f64> {
    values(families, "docker_container_restarts_total", "name")
}

/// The containers that were inspected since the last call.
fn inspected(fake: &FakeDocker) -> Vec<String> {
    let path =
        |path: String| path.strip_prefix("/v1.41/containers/")?.strip_suffix("/json").map(str::to_owned);
    fake.take_requests().into_iter().filter_map(path).collect()
}
